//! What a configuration says, as bytes for a digest: only what is not as it would be without a key, so that a program with more keys
//! makes the same bytes of the same file.

use std::io::{self, Write};

use ipnet::IpNet;
use serde::Serialize;

use crate::state::{
    BackendAddress, BackendTls, CipherSuite, ClientAuth, ClusterProtocol, FrontendTls, Group,
    ListenerProtocol, PathRule, Steering, TlsVersion, UnknownName,
};

/// Something that a file says.
pub(crate) trait Said {
    /// Writes it. No two values are written the same way.
    ///
    /// # Errors
    /// Those of the sink.
    fn say(&self, sink: &mut dyn Write) -> io::Result<()>;
}

/// Writes a key with its value where that is not the usual one.
///
/// # Errors
/// Those of the sink.
pub(crate) fn say_unless_usual<T: Said + PartialEq>(
    sink: &mut dyn Write,
    key: &str,
    value: &T,
    usual: &T,
) -> io::Result<()> {
    if value == usual {
        return Ok(());
    }
    key.say(sink)?;
    value.say(sink)
}

/// What is one value for the file.
macro_rules! as_json {
    ($($type:ty)*) => {
        $(
            impl Said for $type {
                fn say(&self, sink: &mut dyn Write) -> io::Result<()> {
                    json(sink, self)
                }
            }
        )*
    };
}

as_json! {
    bool u8 u16 u32 u64 str String std::path::PathBuf std::net::SocketAddr IpNet
    BackendAddress BackendTls CipherSuite ClientAuth ClusterProtocol FrontendTls Group ListenerProtocol PathRule Steering
    TlsVersion UnknownName
}

fn json<T: Serialize + ?Sized>(sink: &mut dyn Write, value: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *sink, value)?;
    sink.write_all(b",")
}

impl<T: Said> Said for Option<T> {
    fn say(&self, sink: &mut dyn Write) -> io::Result<()> {
        match self {
            Some(value) => value.say(sink),
            None => sink.write_all(b"-"),
        }
    }
}

impl<T: Said + ?Sized> Said for Box<T> {
    fn say(&self, sink: &mut dyn Write) -> io::Result<()> {
        (**self).say(sink)
    }
}

impl<T: Said> Said for Vec<T> {
    fn say(&self, sink: &mut dyn Write) -> io::Result<()> {
        sink.write_all(b"[")?;
        self.iter().try_for_each(|item| item.say(sink))?;
        sink.write_all(b"]")
    }
}
