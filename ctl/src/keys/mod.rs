//! The keys of the file: each is defined once, with its name, type, range, default and what a change of it needs.
//!
//! A key that is honoured is an entry of the macro `keyed!` (`define`) where the struct stands that has its value
//! (`crate::state`): out of that entry come the field, its default, reading and writing, `docs/configuration.md`,
//! `docs/examples/kakehi.toml`, and how a change of it reads (old → new) and is made. A key that is not honoured yet has a line
//! in `crate::config::levels`, which also says at which level of the file each group of keys stands.
//!
//! Promises: a key that no table has is refused; a key that is not honoured is never silently dropped.

mod canonical;
pub(crate) mod define;
mod field;
#[cfg(test)]
mod tests;

pub(crate) use self::{
    canonical::{Canonical, write_unless_default},
    define::{keyed, words},
    field::{DNS_PORT, Field, Given, in_folder},
};

/// Longest duration that the file can set (s): a year.
pub(crate) const MAX_SECONDS: u64 = 86_400 * 365;

/// One level of the file: the root, a listener, a cluster...
pub struct Level {
    /// As it reads in an error: `a listener`.
    pub what: &'static str,
    /// Its keys; a group that stands in two levels is defined once.
    pub groups: &'static [&'static [Key]],
}

impl Level {
    /// The keys of this level, in the order of the reference.
    pub fn keys(&self) -> impl Iterator<Item = &'static Key> + use<> {
        self.groups.iter().copied().flatten()
    }

    /// The key of this name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }
}

/// One key.
pub struct Key {
    /// As it is written in the file.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What applies without it.
    pub default: Default,
    /// What becomes of it.
    pub support: Support,
    /// What a change of it needs.
    pub effect: Effect,
    /// What it does, with its unit: one line of the reference.
    pub doc: &'static str,
}

impl Key {
    /// Whether it is a table or an array of tables.
    pub const fn is_table(&self) -> bool {
        matches!(self.kind, Kind::Table(_) | Kind::TableOrFalse(_) | Kind::Tables(_) | Kind::NamedTables(_))
    }

    /// What applies without it, as it would be written in the file; empty: nothing.
    pub fn default(&self) -> String {
        match self.default {
            Default::Text(text) => text.to_owned(),
            Default::Of(text) => text(),
        }
    }

    /// [`Key::doc`] as one line.
    pub fn doc(&self) -> String {
        self.doc.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// What applies without a key.
#[derive(Clone, Copy)]
pub enum Default {
    /// As it would be written in the file; empty: nothing.
    Text(&'static str),
    /// Makes that text from the default of the field.
    Of(fn() -> String),
}

/// What a change of a key affects and needs, and when it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Needs nothing: what runs takes it over at once.
    Live,
    /// The next requests, also of connections that there are.
    Requests,
    /// New connections of clients: those that there are go on as they began.
    Connections,
    /// Which way requests find: the rules of the hosts concerned are compiled anew.
    Routes,
    /// Which backends are chosen, and how they are reached.
    Backends,
    /// Workers start, end or move, one by one: by the file, or by `kakehictl workers scale` and `pin`.
    Placement,
    /// New processes of the workers: `kakehictl reload --workers`.
    Workers,
    /// A new start of kakehi.
    Restart,
}

impl Effect {
    /// As it reads in the reference and in `kakehictl settings list`.
    pub fn words(self) -> &'static str {
        match self {
            Effect::Live => "at once",
            Effect::Requests => "from the next request on",
            Effect::Connections => "for new connections",
            Effect::Routes => "routes, from the next request on",
            Effect::Backends => "backends, from the next request on",
            Effect::Placement => "at once, worker by worker",
            Effect::Workers => "with new workers",
            Effect::Restart => "at a new start",
        }
    }
}

/// What a key takes.
#[derive(Clone, Copy)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A string that is not empty.
    Text,
    /// The name of a cluster.
    ClusterName,
    /// A string that may be empty.
    AnyText,
    /// A whole response, or `file://` and a path.
    Response,
    /// A file's path; relative to the folder of the configuration.
    Path,
    /// The path of a unix socket; relative to the folder of the configuration.
    Socket,
    /// Strings.
    Texts,
    /// Names of versions of TLS.
    Versions,
    /// Names of cipher suites.
    CipherSuites,
    /// Names of groups of the key exchange.
    Groups,
    /// Names of protocols (ALPN).
    Protocols,
    /// Statuses of HTTP, and ranges of them.
    AcceptedStatuses,
    /// A table of strings.
    TextMap,
    /// A whole number of this range.
    Integer(u64, u64),
    /// A number from 1 to so much, whole or with a fraction, or 0; kept in thousandths.
    Multiple(u32),
    /// Whole numbers from 0 to 4294967295.
    Integers,
    /// A power of two of this range.
    PowerOfTwo(u64, u64),
    /// Seconds, whole or with a fraction, or a text with a unit; above 0, up to a year.
    Seconds,
    /// As [`Kind::Seconds`], or 0, which switches off what the key is about.
    SecondsOrZero,
    /// `ip:port`, with a port.
    Address,
    /// `ip:port`, or `unix:` and an absolute path.
    IpOrUnix,
    /// `ip:port`, `unix:/path`, `unix:@name`, `host:port` or `srv:NAME`.
    BackendAddress,
    /// The path of a unix socket of a backend, or `@name`.
    BackendSocket,
    /// Addresses of servers of the DNS, with their ports or without.
    Resolvers,
    /// Names of hosts.
    Hostnames,
    /// Networks (`10.0.0.0/8`) and single addresses.
    Networks,
    /// The name of an interface of the network.
    Interface,
    /// A method of HTTP.
    Method,
    /// The name of a field or a cookie.
    Token,
    /// The value of a cookie.
    CookieValue,
    /// The permissions of a file.
    Mode,
    /// What a rate limit counts by.
    LimitKey,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Conditions under which a request is sent again: words, and statuses.
    RetryConditions,
    /// Statuses of responses: `503`, `"502-504"`, `"5xx"`.
    StatusRanges,
    /// A table of that level.
    Table(&'static Level),
    /// The same, or `false`.
    TableOrFalse(&'static Level),
    /// Tables of that level, one after the other.
    Tables(&'static Level),
    /// Tables of that level, each under a name.
    NamedTables(&'static Level),
}

impl Kind {
    /// As it reads in an error: "`key` must be ...".
    pub fn allowed(&self) -> String {
        match self {
            Kind::Bool => "`true` or `false`".to_owned(),
            Kind::Text => "a string that is not empty".to_owned(),
            Kind::ClusterName => "the name of a cluster".to_owned(),
            Kind::AnyText => "a string".to_owned(),
            Kind::Response => "a whole response, or `file://` and a path".to_owned(),
            Kind::Path => "a file's path (a string)".to_owned(),
            Kind::Socket => "the path of a unix socket, of 95 bytes at most".to_owned(),
            Kind::Texts => "an array of strings".to_owned(),
            Kind::Versions => "an array of versions of TLS (strings)".to_owned(),
            Kind::CipherSuites => "an array of names of cipher suites (strings)".to_owned(),
            Kind::Groups => "an array of names of groups (strings)".to_owned(),
            Kind::Protocols => "an array of names of protocols (strings)".to_owned(),
            Kind::AcceptedStatuses => {
                "an array of statuses (strings), such as `200`, `200-399`, `2xx` or `any`".to_owned()
            }
            Kind::TextMap => "a table of strings".to_owned(),
            Kind::Integer(min, max) if *max >= i64::MAX as u64 => format!("an integer, {min} or more"),
            Kind::Integer(min, max) => format!("an integer from {min} to {max}"),
            Kind::Multiple(max) => format!("0, or a number from 1 to {max}, such as `1.5`"),
            Kind::Integers => "an array of integers from 0 to 4294967295".to_owned(),
            Kind::PowerOfTwo(min, max) => format!("a power of two from {min} to {max}"),
            Kind::Seconds => {
                format!(
                    "a number of seconds above 0 and up to {MAX_SECONDS}, or such as `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"`"
                )
            }
            Kind::SecondsOrZero => {
                format!(
                    "a number of seconds from 0 to {MAX_SECONDS}, or such as `\"500ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"`"
                )
            }
            Kind::Address => "`ip:port` or `[ipv6]:port` (names are not resolved)".to_owned(),
            Kind::IpOrUnix => {
                "`ip:port`, `[ipv6]:port`, or `unix:` and an absolute path of 107 bytes at most".to_owned()
            }
            Kind::Hostnames => "an array of names of hosts, without ports and `*`".to_owned(),
            Kind::BackendAddress => {
                "`ip:port`, `[ipv6]:port`, `host:port`, `srv:NAME`, `unix:/path` of 107 bytes at most, or `unix:@name`"
                    .to_owned()
            }
            Kind::BackendSocket => "an absolute path of 107 bytes at most, or `@name`".to_owned(),
            Kind::Resolvers => "an array of `ip` or `ip:port`".to_owned(),
            Kind::Networks => "an array of networks (`10.0.0.0/8`) or ip addresses".to_owned(),
            Kind::Interface => {
                "the name of an interface, of 1 to 15 bytes without `/`, `:` and white space".to_owned()
            }
            Kind::Method => "a method of HTTP, such as `GET`".to_owned(),
            Kind::Token => "a name without spaces and separators, such as `X-User`".to_owned(),
            Kind::CookieValue => {
                "a string of visible ASCII characters but `\"`, `,`, `;` and `\\`, of 128 at most".to_owned()
            }
            Kind::Mode => {
                "octal permissions up to `0777` (a string) with read and write for the owner, such as `0660`".to_owned()
            }
            Kind::LimitKey => "`source`, `header:NAME`, `cookie:NAME` or `route`".to_owned(),
            Kind::Choice(words) => {
                words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or ")
            }
            Kind::RetryConditions => {
                "an array of `reset`, `timeout`, and statuses such as 503, \"502-504\", \"5xx\"".to_owned()
            }
            Kind::StatusRanges => "an array of statuses such as 503, \"502-504\", \"5xx\"".to_owned(),
            Kind::Table(_) | Kind::NamedTables(_) => "a table".to_owned(),
            Kind::TableOrFalse(_) => "a table, or `false`".to_owned(),
            Kind::Tables(_) => "an array of tables".to_owned(),
        }
    }
}

/// What becomes of a key.
#[derive(Clone, Copy)]
pub enum Support {
    /// Honoured.
    Yes,
    /// Honoured; the key is kakehi's own.
    Own,
    /// Honoured for some values; a warning says so for the others. What happens then.
    Partly(&'static str),
    /// Read, checked, and met with a warning.
    NotYet,
    /// Read, checked, and met with a warning: kakehi has no use for it. Why.
    NoUse(&'static str),
}

/// A line of a table: a key without a field, because it is not honoured or because more than its value decides.
pub(crate) const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    support: Support,
    doc: &'static str,
) -> Key {
    Key { name, kind, default: Default::Text(default), support, effect: Effect::Live, doc }
}

/// The same keys, with what a change of them affects; tables have keys of their own that say it.
pub(crate) const fn affecting<const N: usize>(effect: Effect, mut keys: [Key; N]) -> [Key; N] {
    let mut n = 0;
    while n < N {
        if !keys[n].is_table() {
            keys[n].effect = effect;
        }
        n += 1;
    }
    keys
}
