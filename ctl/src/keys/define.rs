//! One definition per key: the macro that makes a struct out of the keys that its fields have.
//!
//! ```text
//! keyed! {
//!     /// Deadlines.
//!     pub struct Timeouts;
//!     inherited {
//!         /// Deadline of a complete request head, in seconds.
//!         "example_timeout" => request_ms: u64 = limits::REQUEST_TIMEOUT_MS, Seconds, Yes, Live;
//!     }
//! }
//! ```
//!
//! An entry has the key's documentation (which is that of the field and the line of the reference), its name in the file, the
//! field with type and default, the kind and range of the values, whether kakehi honours it, and what a change needs.
//! The sections, each of which may be absent:
//!
//! | section | its keys |
//! |---|---|
//! | `required` | are always there: read by whoever makes the struct, and always written |
//! | `own` | have a default, and are left out where that applies |
//! | `inherited` | the same, and the root can set them for all listeners or clusters |
//! | `beside` | fields without a key, or whose key needs more than its value to be read: `name: type = default` |
//!
//! What comes out: the struct with serde (what a state of an earlier program lacks has the default) and `Default`, and
//! `REQUIRED`, `OWN` and `INHERITED` (the [`Key`](super::Key)s), `read_keys`, `write_keys`, `take_keys`, and
//! [`Canonical`](super::Canonical).

/// See the module.
macro_rules! keyed {
    (
        $(#[$meta:meta])*
        pub struct $Name:ident;
        $(required { $($required:tt)* })?
        $(own { $($own:tt)* })?
        $(inherited { $($inherited:tt)* })?
        $(beside { $($beside:tt)* })?
    ) => {
        $crate::keys::define::keyed_struct! {
            [$(#[$meta])*] $Name
            required [$($($required)*)?]
            own [$($($own)*)?]
            inherited [$($($inherited)*)?]
            beside [$($($beside)*)?]
        }
    };
}

/// The body of [`keyed`], for sections that are all there.
macro_rules! keyed_struct {
    (
        [$(#[$meta:meta])*] $Name:ident
        required [$(
            $(#[doc = $r_doc:literal])+
            $r_key:literal => $r_field:ident : $r_type:ty = $r_default:expr, $r_kind:expr, $r_support:expr, $r_effect:ident;
        )*]
        own [$(
            $(#[doc = $o_doc:literal])+
            $o_key:literal => $o_field:ident : $o_type:ty = $o_default:expr, $o_kind:expr, $o_support:expr, $o_effect:ident;
        )*]
        inherited [$(
            $(#[doc = $i_doc:literal])+
            $i_key:literal => $i_field:ident : $i_type:ty = $i_default:expr, $i_kind:expr, $i_support:expr, $i_effect:ident;
        )*]
        beside [$(
            $(#[doc = $b_doc:literal])+
            $b_field:ident : $b_type:ty = $b_default:expr;
        )*]
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(default)]
        pub struct $Name {
            $($(#[doc = $r_doc])+ pub $r_field: $r_type,)*
            $($(#[doc = $b_doc])+ pub $b_field: $b_type,)*
            $($(#[doc = $o_doc])+ pub $o_field: $o_type,)*
            $($(#[doc = $i_doc])+ pub $i_field: $i_type,)*
        }

        impl Default for $Name {
            fn default() -> Self {
                $Name {
                    $($r_field: $r_default,)*
                    $($b_field: $b_default,)*
                    $($o_field: $o_default,)*
                    $($i_field: $i_default,)*
                }
            }
        }

        impl $crate::keys::Canonical for $Name {
            fn write_canonical(&self, sink: &mut dyn ::std::io::Write) -> ::std::io::Result<()> {
                sink.write_all(b"{")?;
                $($crate::keys::write_unless_default(sink, $r_key, &self.$r_field, &{ let usual: $r_type = $r_default; usual })?;)*
                $($crate::keys::write_unless_default(sink, $o_key, &self.$o_field, &{ let usual: $o_type = $o_default; usual })?;)*
                $($crate::keys::write_unless_default(sink, $i_key, &self.$i_field, &{ let usual: $i_type = $i_default; usual })?;)*
                $($crate::keys::write_unless_default(sink, stringify!($b_field), &self.$b_field, &{ let usual: $b_type = $b_default; usual })?;)*
                sink.write_all(b"}")
            }
        }

        #[allow(unused_imports, unused_variables, unused_mut, dead_code, clippy::allow_attributes, reason = "each section may be empty")]
        const _: () = {
            use $crate::keys::{Effect, Field, Given, Key, Kind::*, Support::*};

            impl $Name {
                /// The keys that are always there.
                pub const REQUIRED: &'static [Key] = &[$(Key {
                    name: $r_key,
                    kind: $r_kind,
                    default: $crate::keys::Default::Text(""),
                    support: $r_support,
                    effect: Effect::$r_effect,
                    doc: concat!($($r_doc),+),
                },)*];
                /// The keys that have a default.
                pub const OWN: &'static [Key] = &[$(Key {
                    name: $o_key,
                    kind: $o_kind,
                    default: $crate::keys::Default::Of(|| {
                        let default: $o_type = $o_default;
                        default.write($o_kind).map_or_else(String::new, |it| it.to_string())
                    }),
                    support: $o_support,
                    effect: Effect::$o_effect,
                    doc: concat!($($o_doc),+),
                },)*];
                /// The keys that the root has too, for all listeners.
                pub const INHERITED: &'static [Key] = &[$(Key {
                    name: $i_key,
                    kind: $i_kind,
                    default: $crate::keys::Default::Of(|| {
                        let default: $i_type = $i_default;
                        default.write($i_kind).map_or_else(String::new, |it| it.to_string())
                    }),
                    support: $i_support,
                    effect: Effect::$i_effect,
                    doc: concat!($($i_doc),+),
                },)*];

                /// Takes the values of `given`, and those of keys that the root may have from `inherited`; what is absent stays.
                /// Relative paths are those of `folder`.
                pub(crate) fn read_keys(
                    &mut self,
                    given: &dyn Given,
                    inherited: &dyn Given,
                    folder: &::std::path::Path,
                ) {
                    $(if let Some(value) = given.value($o_key).and_then(|it| <$o_type>::read(it, $o_kind, folder)) {
                        self.$o_field = value;
                    })*
                    $(if let Some(value) = inherited.value($i_key).and_then(|it| <$i_type>::read(it, $i_kind, folder)) {
                        self.$i_field = value;
                    })*
                }

                /// Writes the keys that are required or differ from their default.
                pub(crate) fn write_keys(&self, table: &mut ::toml::Table) {
                    $(if let Some(value) = self.$r_field.write($r_kind) {
                        table.insert($r_key.to_owned(), value);
                    })*
                    $({
                        let default: $o_type = $o_default;
                        if self.$o_field != default && let Some(value) = self.$o_field.write($o_kind) {
                            table.insert($o_key.to_owned(), value);
                        }
                    })*
                    $({
                        let default: $i_type = $i_default;
                        if self.$i_field != default && let Some(value) = self.$i_field.write($i_kind) {
                            table.insert($i_key.to_owned(), value);
                        }
                    })*
                }

                /// Makes every key whose change needs `effect` what it is in `other`.
                pub fn take_keys(&mut self, other: &$Name, effect: Effect) {
                    $(if Effect::$o_effect == effect {
                        self.$o_field.clone_from(&other.$o_field);
                    })*
                    $(if Effect::$i_effect == effect {
                        self.$i_field.clone_from(&other.$i_field);
                    })*
                }

                /// The keys whose values differ, in their order.
                pub fn keys_that_differ(&self, other: &$Name) -> Vec<&'static Key> {
                    let mut keys = Vec::new();
                    let mut required = Self::REQUIRED.iter();
                    $(if let Some(key) = required.next() && self.$r_field != other.$r_field {
                        keys.push(key);
                    })*
                    let mut own = Self::OWN.iter();
                    $(if let Some(key) = own.next() && self.$o_field != other.$o_field {
                        keys.push(key);
                    })*
                    let mut inherited = Self::INHERITED.iter();
                    $(if let Some(key) = inherited.next() && self.$i_field != other.$i_field {
                        keys.push(key);
                    })*
                    keys
                }
            }
        };
    };
}

/// An enum whose values are words of the file, in the order in which the file's errors list them.
///
/// What comes out: the enum with serde, `WORDS`, `word`, and reading and writing as a field with a key of the kind
/// `Choice(Enum::WORDS)`, or of a kind with more words, which its reader handles.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $Name:ident {
            $($(#[$v_meta:meta])* $Variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, ::serde::Serialize, ::serde::Deserialize)]
        pub enum $Name {
            $($(#[$v_meta])* #[serde(rename = $word)] $Variant,)+
        }

        impl $Name {
            /// The words, in the order of the values.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// Its word.
            pub fn word(self) -> &'static str {
                match self {
                    $($Name::$Variant => $word,)+
                }
            }

            /// The value of this word.
            pub fn from_word(word: &str) -> Option<$Name> {
                match word {
                    $($word => Some($Name::$Variant),)+
                    _ => None,
                }
            }
        }

        impl $crate::keys::Field for $Name {
            fn read(
                value: &$crate::config::Value,
                _: $crate::keys::Kind,
                _: &::std::path::Path,
            ) -> Option<Self> {
                match value {
                    $crate::config::Value::Text(word) => $Name::from_word(word),
                    _ => None,
                }
            }

            fn write(&self, _: $crate::keys::Kind) -> Option<::toml::Value> {
                Some(::toml::Value::from(self.word()))
            }
        }
    };
}

pub(crate) use {keyed, keyed_struct, words};
