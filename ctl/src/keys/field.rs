//! Types of fields that have a key: how a value of the file becomes one, and how one is written as a value of the file.
//!
//! Promises: what is written, read again under the same [`Kind`], is the same.

use std::{
    net::SocketAddr,
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use toml::Value as Toml;

use super::Kind;
use crate::{
    config::Value,
    state::{
        AdminAddress, AuthorizedHash, BackendAddress, Conditions, FileMode, InterfaceName, RateKey,
        StatusRange, Statuses,
    },
};

/// Port of a server of the DNS.
pub(crate) const DNS_PORT: u16 = 53;

/// Where values come from: a table of the file, or one whose absent keys another one has.
pub(crate) trait Given {
    /// The value of the key of this name, if it is there; it is of the key's kind.
    fn value(&self, name: &str) -> Option<&Value>;
}

/// A type that a field with a key can have.
pub(crate) trait Field: Sized {
    /// Of a value of `kind`; relative paths are those of `folder`. `None`: a key of this kind has no such value.
    fn read(value: &Value, kind: Kind, folder: &Path) -> Option<Self>;

    /// As it is written under a key of `kind`; `None`: it is left out.
    fn write(&self, kind: Kind) -> Option<Toml>;
}

/// `path`, which is relative to `folder` unless it is absolute.
pub(crate) fn in_folder(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.strip_prefix("./").unwrap_or(path))
}

/// A key without its value is one that is left out.
impl<T: Field> Field for Option<T> {
    fn read(value: &Value, kind: Kind, folder: &Path) -> Option<Self> {
        T::read(value, kind, folder).map(Some)
    }

    fn write(&self, kind: Kind) -> Option<Toml> {
        self.as_ref().and_then(|it| it.write(kind))
    }
}

/// `true` or `false`, or one of two words: that of `false` first.
impl Field for bool {
    fn read(value: &Value, kind: Kind, _: &Path) -> Option<Self> {
        match (value, kind) {
            (Value::Bool(value), _) => Some(*value),
            (Value::Text(word), Kind::Choice([_, on])) => Some(word == on),
            _ => None,
        }
    }

    fn write(&self, kind: Kind) -> Option<Toml> {
        match kind {
            Kind::Choice([off, on]) => Some(Toml::from(if *self { *on } else { *off })),
            _ => Some(Toml::from(*self)),
        }
    }
}

/// A whole number, or a duration (ms), which is written in seconds.
impl Field for u64 {
    fn read(value: &Value, _: Kind, _: &Path) -> Option<Self> {
        match value {
            Value::Integer(number) | Value::Millis(number) => Some(*number),
            _ => None,
        }
    }

    fn write(&self, kind: Kind) -> Option<Toml> {
        // TOML has no larger integers; the keys allow none either.
        let whole = |number: u64| Toml::from(i64::try_from(number).unwrap_or(i64::MAX));
        Some(match kind {
            Kind::Seconds | Kind::SecondsOrZero if self.is_multiple_of(1000) => whole(self / 1000),
            Kind::Seconds | Kind::SecondsOrZero => Toml::Float(*self as f64 / 1000.0),
            _ => whole(*self),
        })
    }
}

macro_rules! smaller_integers {
    ($($type:ty)*) => {
        $(
            /// The range of its key fits the type.
            impl Field for $type {
                fn read(value: &Value, kind: Kind, folder: &Path) -> Option<Self> {
                    u64::read(value, kind, folder)?.try_into().ok()
                }

                fn write(&self, _: Kind) -> Option<Toml> {
                    Some(Toml::from(i64::from(*self)))
                }
            }
        )*
    };
}

smaller_integers!(u8 u16 u32);

impl Field for NonZeroU64 {
    fn read(value: &Value, kind: Kind, folder: &Path) -> Option<Self> {
        NonZeroU64::new(u64::read(value, kind, folder)?)
    }

    fn write(&self, kind: Kind) -> Option<Toml> {
        self.get().write(kind)
    }
}

impl Field for Box<str> {
    fn read(value: &Value, kind: Kind, folder: &Path) -> Option<Self> {
        String::read(value, kind, folder).map(String::into_boxed_str)
    }

    fn write(&self, _: Kind) -> Option<Toml> {
        Some(Toml::from(&**self))
    }
}

impl Field for PathBuf {
    fn read(value: &Value, _: Kind, folder: &Path) -> Option<Self> {
        match value {
            Value::Text(text) => Some(in_folder(folder, Path::new(text))),
            _ => None,
        }
    }

    fn write(&self, _: Kind) -> Option<Toml> {
        Some(Toml::from(self.to_string_lossy().into_owned()))
    }
}

/// Types that a value of the file holds as they are, with how each is written.
macro_rules! held {
    ($($type:ty: $variant:ident => |$it:ident| $written:expr;)*) => {
        $(
            impl Field for $type {
                fn read(value: &Value, _: Kind, _: &Path) -> Option<Self> {
                    match value {
                        Value::$variant($it) => Some($it.clone()),
                        _ => None,
                    }
                }

                fn write(&self, _: Kind) -> Option<Toml> {
                    let $it = self;
                    Some($written)
                }
            }
        )*
    };
}

held! {
    String: Text => |it| Toml::from(it.as_str());
    SocketAddr: Address => |it| Toml::from(it.to_string());
    BackendAddress: Backend => |it| Toml::from(it.to_string());
    Vec<IpNet>: Networks => |it| texts(it);
    Statuses: Statuses => |it| texts(&it.0);
    Conditions: Conditions => |it| texts(it.words());
    RateKey: RateKey => |it| Toml::from(it.to_string());
}

/// Types that are a text of the file, which says what it is.
macro_rules! parsed {
    ($($type:ty)*) => {
        $(
            impl Field for $type {
                fn read(value: &Value, _: Kind, _: &Path) -> Option<Self> {
                    match value {
                        Value::Text(text) => text.parse().ok(),
                        _ => None,
                    }
                }

                fn write(&self, _: Kind) -> Option<Toml> {
                    Some(Toml::from(self.to_string()))
                }
            }
        )*
    };
}

parsed!(AdminAddress FileMode InterfaceName);

/// An array of what these read as.
fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Toml {
    items.into_iter().map(|item| Toml::from(item.to_string())).collect::<Vec<_>>().into()
}

/// Strings as they are.
impl Field for Vec<String> {
    fn read(value: &Value, _: Kind, _: &Path) -> Option<Self> {
        match value {
            Value::Texts(texts) => Some(texts.iter().map(|(text, _)| text.clone()).collect()),
            _ => None,
        }
    }

    fn write(&self, _: Kind) -> Option<Toml> {
        Some(texts(self))
    }
}

/// Users of basic authentication.
impl Field for Vec<AuthorizedHash> {
    fn read(value: &Value, _: Kind, _: &Path) -> Option<Self> {
        match value {
            Value::Texts(texts) => Some(texts.iter().map(|(text, _)| AuthorizedHash(text.clone())).collect()),
            _ => None,
        }
    }

    fn write(&self, _: Kind) -> Option<Toml> {
        Some(texts(self.iter().map(|it| &it.0)))
    }
}

/// Servers of the DNS, the usual port of which is not written.
impl Field for Vec<SocketAddr> {
    fn read(value: &Value, _: Kind, _: &Path) -> Option<Self> {
        match value {
            Value::Resolvers(resolvers) => Some(resolvers.clone()),
            _ => None,
        }
    }

    fn write(&self, _: Kind) -> Option<Toml> {
        let text = |it: &SocketAddr| if it.port() == DNS_PORT { it.ip().to_string() } else { it.to_string() };
        Some(texts(self.iter().map(text)))
    }
}

/// The kind allows no others.
impl Field for Vec<StatusRange> {
    fn read(value: &Value, _: Kind, _: &Path) -> Option<Self> {
        match value {
            Value::Texts(texts) => texts.iter().map(|(text, _)| text.parse().ok()).collect(),
            _ => None,
        }
    }

    fn write(&self, _: Kind) -> Option<Toml> {
        Some(texts(self))
    }
}

/// Numbers of users.
impl Field for Vec<u32> {
    fn read(value: &Value, _: Kind, _: &Path) -> Option<Self> {
        match value {
            // The kind allows no others.
            Value::Integers(numbers) => numbers.iter().map(|it| u32::try_from(*it).ok()).collect(),
            _ => None,
        }
    }

    fn write(&self, _: Kind) -> Option<Toml> {
        Some(self.iter().map(|number| Toml::from(i64::from(*number))).collect::<Vec<_>>().into())
    }
}

/// Numbers of cores.
impl Field for Vec<u16> {
    fn read(value: &Value, _: Kind, _: &Path) -> Option<Self> {
        // No host has more: a core that does not exist is refused when a worker is tied to it.
        let core = |core: &u64| u16::try_from(*core).unwrap_or(u16::MAX);
        match value {
            Value::Integers(numbers) => Some(numbers.iter().map(core).collect()),
            _ => None,
        }
    }

    fn write(&self, _: Kind) -> Option<Toml> {
        Some(self.iter().map(|number| Toml::from(i64::from(*number))).collect::<Vec<_>>().into())
    }
}
