//! What a configuration says, as bytes for a digest: only what is not as it would be without a key, so that a program with more keys
//! makes the same bytes of the same file.

use std::io::{self, Write};

use ipnet::IpNet;
use serde::Serialize;

use crate::state::{
    AdminAddress, Answer, Answers, AuthorizedHash, BackendAddress, BackendMode, BackendTls, CipherSuite,
    ClientAuth, ClusterMode, ClusterProtocol, Conditions, DnsOnEmpty, EditPosition, Factor, FileMode,
    ForwardedHeaders, FrontendTls, Group, InitialVerdict, InterfaceName, ListenerProtocol, LoadBalancing,
    LoadMetric, PathRule, PredicateMatch, ProbeMode, RateKey, Redirect, RedirectScheme, RulePosition,
    SameSite, ShardMode, StatusRange, Statuses, Steering, TlsVersion, UnknownName,
};

/// Something that a file says.
pub(crate) trait Canonical {
    /// Writes it. No two values are written the same way.
    ///
    /// # Errors
    /// Those of the sink.
    fn write_canonical(&self, sink: &mut dyn Write) -> io::Result<()>;
}

/// Writes a key with its value where that is not the usual one.
///
/// # Errors
/// Those of the sink.
pub(crate) fn write_unless_default<T: Canonical + PartialEq>(
    sink: &mut dyn Write,
    key: &str,
    value: &T,
    usual: &T,
) -> io::Result<()> {
    if value == usual {
        return Ok(());
    }
    key.write_canonical(sink)?;
    value.write_canonical(sink)
}

/// What is one value for the file.
macro_rules! as_json {
    ($($type:ty)*) => {
        $(
            impl Canonical for $type {
                fn write_canonical(&self, sink: &mut dyn Write) -> io::Result<()> {
                    json(sink, self)
                }
            }
        )*
    };
}

as_json! {
    bool u8 u16 u32 u64 std::num::NonZeroU64 str String std::path::PathBuf std::net::SocketAddr IpNet
    AdminAddress Answer Answers AuthorizedHash BackendAddress BackendMode BackendTls CipherSuite ClientAuth ClusterMode ClusterProtocol Conditions DnsOnEmpty EditPosition Factor FileMode
    ForwardedHeaders FrontendTls Group
    InitialVerdict InterfaceName ListenerProtocol LoadBalancing LoadMetric PathRule PredicateMatch ProbeMode RateKey Redirect RedirectScheme
    RulePosition SameSite ShardMode StatusRange Statuses
    Steering TlsVersion UnknownName
}

fn json<T: Serialize + ?Sized>(sink: &mut dyn Write, value: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *sink, value)?;
    sink.write_all(b",")
}

impl<T: Canonical> Canonical for Option<T> {
    fn write_canonical(&self, sink: &mut dyn Write) -> io::Result<()> {
        match self {
            Some(value) => value.write_canonical(sink),
            None => sink.write_all(b"-"),
        }
    }
}

impl<T: Canonical + ?Sized> Canonical for Box<T> {
    fn write_canonical(&self, sink: &mut dyn Write) -> io::Result<()> {
        (**self).write_canonical(sink)
    }
}

impl<T: Canonical> Canonical for Vec<T> {
    fn write_canonical(&self, sink: &mut dyn Write) -> io::Result<()> {
        sink.write_all(b"[")?;
        self.iter().try_for_each(|item| item.write_canonical(sink))?;
        sink.write_all(b"]")
    }
}
