//! From TOML to typed values: every key is looked up in the tables of [`super::keys`] and its value checked.
//!
//! Promises: a [`Section`] holds only known keys, each with a value of its kind and range; all else was reported.

use std::{collections::BTreeMap, net::SocketAddr, ops::Range};

use ipnet::IpNet;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{ConfigError, Findings, KeyHint, Quoted},
    levels::ROOT,
};
use crate::{
    keys::{Given, Key, Kind, Level, MAX_SECONDS, Support},
    state::BackendAddress,
};

/// One table of the file, checked.
pub(crate) struct Section {
    /// Which one.
    pub level: &'static Level,
    /// Where it begins (offset).
    pub offset: usize,
    entries: BTreeMap<&'static str, Entry>,
}

/// One key with its value.
pub(super) struct Entry {
    key: &'static Key,
    /// Of the key (offset).
    pub key_offset: usize,
    /// Of the value (offset).
    pub offset: usize,
    value: Value,
}

/// A value of the kind of its key.
pub(crate) enum Value {
    Bool(bool),
    Text(String),
    Integer(u64),
    Millis(u64),
    Address(SocketAddr),
    Backend(BackendAddress),
    Networks(Vec<IpNet>),
    /// Each with its offset.
    Texts(Vec<(String, usize)>),
    /// Of an array of integers.
    Integers(Vec<u64>),
    Tables(Vec<Section>),
    Named(Vec<(String, usize, Section)>),
    /// Checked, and used by nothing yet.
    Unused,
}

/// Reads `table`, which is of `level`; what is wrong goes to `findings`.
pub(super) fn section(
    level: &'static Level,
    table: &DeTable<'_>,
    offset: usize,
    findings: &mut Findings<'_>,
) -> Section {
    let mut entries = BTreeMap::new();
    for (name, value) in table {
        let key_offset = name.span().start;
        let Some(key) = level.key(name.get_ref()) else {
            findings.error(key_offset, |place| ConfigError::UnknownKey {
                place,
                key: name.get_ref().to_string(),
                level: level.what,
                hint: hint(level, name.get_ref()),
            });
            continue;
        };
        let span = value.span();
        match read(key, value.get_ref(), &span, findings) {
            Ok(value) => drop(entries.insert(key.name, Entry { key, key_offset, offset: span.start, value })),
            Err(Some(found)) => findings.error(span.start, |place| ConfigError::BadValue {
                place,
                key: key.name,
                allowed: key.kind.allowed(),
                found,
            }),
            Err(None) => {}
        }
    }
    Section { level, offset, entries }
}

/// The value of `key`; otherwise what was found in its place, or `None` if that was reported already.
fn read(
    key: &'static Key,
    value: &DeValue<'_>,
    span: &Range<usize>,
    findings: &mut Findings<'_>,
) -> Result<Value, Option<String>> {
    let wrong_type = || Some(type_name(value).to_owned());
    let bad = |text: &str| Some(Quoted(text).to_string());
    match key.kind {
        Kind::Bool => value.as_bool().map(Value::Bool).ok_or_else(wrong_type),
        Kind::Integer(min, max) => integer(value, min, max).map(Value::Integer).map_err(Some),
        Kind::PowerOfTwo(min, max) => match integer(value, min, max).map_err(Some)? {
            count if count.is_power_of_two() => Ok(Value::Integer(count)),
            other => Err(bad(&other.to_string())),
        },
        Kind::Seconds => millis(value, Least::Millisecond).map(Value::Millis).map_err(Some),
        Kind::SecondsOrZero => millis(value, Least::Zero).map(Value::Millis).map_err(Some),
        Kind::Table(level) => {
            let table = value.as_table().ok_or_else(wrong_type)?;
            Ok(Value::Tables(vec![section(level, table, span.start, findings)]))
        }
        Kind::Tables(level) => {
            let tables = value.as_array().ok_or_else(wrong_type)?;
            let mut sections = Vec::with_capacity(tables.len());
            for item in tables {
                let Some(table) = item.get_ref().as_table() else {
                    report_item(key, item, findings);
                    continue;
                };
                sections.push(section(level, table, item.span().start, findings));
            }
            Ok(Value::Tables(sections))
        }
        Kind::NamedTables(level) => {
            let mut sections = Vec::new();
            for (name, item) in value.as_table().ok_or_else(wrong_type)? {
                let Some(table) = item.get_ref().as_table() else {
                    report_item(key, item, findings);
                    continue;
                };
                let section = section(level, table, item.span().start, findings);
                sections.push((name.get_ref().to_string(), name.span().start, section));
            }
            Ok(Value::Named(sections))
        }
        Kind::TextMap => {
            for item in value.as_table().ok_or_else(wrong_type)?.values() {
                if !item.get_ref().is_str() {
                    report_item(key, item, findings);
                }
            }
            Ok(Value::Unused)
        }
        Kind::Texts | Kind::Versions | Kind::CipherSuites | Kind::Groups | Kind::Protocols => {
            let mut texts = Vec::new();
            for item in value.as_array().ok_or_else(wrong_type)? {
                match item.get_ref().as_str() {
                    Some(text) => texts.push((text.to_owned(), item.span().start)),
                    None => report_item(key, item, findings),
                }
            }
            Ok(Value::Texts(texts))
        }
        Kind::Integers | Kind::Networks => {
            let (mut networks, mut integers) = (Vec::new(), Vec::new());
            for item in value.as_array().ok_or_else(wrong_type)? {
                let fits = match (key.kind, item.get_ref()) {
                    (Kind::Integers, item) => {
                        let number = integer(item, 0, u32::MAX.into());
                        integers.extend(number.as_ref().ok());
                        number.is_ok()
                    }
                    (_, item) => match item.as_str().and_then(network) {
                        Some(network) => {
                            networks.push(network);
                            true
                        }
                        None => false,
                    },
                };
                if !fits {
                    report_item(key, item, findings);
                }
            }
            Ok(if matches!(key.kind, Kind::Integers) {
                Value::Integers(integers)
            } else {
                Value::Networks(networks)
            })
        }
        Kind::Text
        | Kind::AnyText
        | Kind::Path
        | Kind::Socket
        | Kind::Address
        | Kind::BackendAddress
        | Kind::Method
        | Kind::Choice(_) => {
            let text = value.as_str().ok_or_else(wrong_type)?;
            read_text(key.kind, text).ok_or_else(|| bad(text))
        }
    }
}

/// A value that is written as a string.
fn read_text(kind: Kind, text: &str) -> Option<Value> {
    let owned = || Some(Value::Text(text.to_owned()));
    match kind {
        Kind::AnyText => owned(),
        Kind::Text | Kind::Path | Kind::Socket => {
            (!text.is_empty() && !text.contains('\0')).then(owned).flatten()
        }
        Kind::Address => {
            let address = text.parse::<SocketAddr>().ok()?;
            (address.port() != 0).then_some(Value::Address(address))
        }
        Kind::BackendAddress => match text.parse::<BackendAddress>().ok()? {
            BackendAddress::Ip(address) if address.port() == 0 => None,
            address => Some(Value::Backend(address)),
        },
        Kind::Method => (!text.is_empty() && text.bytes().all(is_token)).then(owned).flatten(),
        Kind::Choice(words) => words.contains(&text).then(owned).flatten(),
        _ => None,
    }
}

/// An item of an array or a map that is not what its key takes.
fn report_item(key: &'static Key, item: &Spanned<DeValue<'_>>, findings: &mut Findings<'_>) {
    findings.error(item.span().start, |place| ConfigError::BadValue {
        place,
        key: key.name,
        allowed: key.kind.allowed(),
        found: match item.get_ref() {
            DeValue::String(text) => format!("one with {}", Quoted(text)),
            other => format!("one with {}", type_name(other)),
        },
    });
}

/// `tchar` of RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// An integer from `min` to `max`, or what was found.
fn integer(value: &DeValue<'_>, min: u64, max: u64) -> Result<u64, String> {
    let Some(written) = value.as_integer() else { return Err(type_name(value).to_owned()) };
    let number = u64::from_str_radix(written.as_str(), written.radix()).ok();
    number.filter(|number| (min..=max).contains(number)).ok_or_else(|| Quoted(written.as_str()).to_string())
}

/// The shortest duration that a key takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Least {
    /// None at all: the key switches something off.
    Zero,
    /// More than none.
    Millisecond,
}

/// Milliseconds of a duration that is written in seconds, or what was found. Zero only where `least` is.
fn millis(value: &DeValue<'_>, least: Least) -> Result<u64, String> {
    let (written, seconds) = match value {
        DeValue::Integer(number) => (
            number.as_str(),
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|whole| whole as f64),
        ),
        DeValue::Float(number) => (number.as_str(), number.as_str().parse().ok()),
        other => return Err(type_name(other).to_owned()),
    };
    if least == Least::Zero && seconds == Some(0.0) {
        return Ok(0);
    }
    seconds
        .filter(|seconds: &f64| *seconds > 0.0 && *seconds <= MAX_SECONDS as f64)
        // The range was checked, so that the conversion is exact; less than a millisecond counts as one.
        .map(|seconds| ((seconds * 1000.0).round() as u64).max(1))
        .ok_or_else(|| Quoted(written).to_string())
}

/// A network, or a single address as the network that holds only it.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse().ok().map(|address: std::net::IpAddr| address.into()))
}

/// As it reads in an error.
fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "`true` or `false`",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// What an unknown key of `level` may have meant: the same word elsewhere, or one that is written almost so.
fn hint(level: &'static Level, name: &str) -> Option<KeyHint> {
    fn elsewhere(level: &'static Level, name: &str) -> Option<&'static str> {
        if level.key(name).is_some() {
            return Some(level.what);
        }
        level.keys().find_map(|key| match key.kind {
            Kind::Table(inner) | Kind::Tables(inner) | Kind::NamedTables(inner) => elsewhere(inner, name),
            _ => None,
        })
    }

    if let Some(other) = elsewhere(&ROOT, name) {
        return Some(KeyHint::Elsewhere(other));
    }
    nearest(level.keys().map(|key| key.name), name).map(KeyHint::Nearest)
}

/// The one of `words` that is written almost like `text`.
pub(super) fn nearest(words: impl Iterator<Item = &'static str>, text: &str) -> Option<&'static str> {
    /// A likeness (Jaro-Winkler) below which a suggestion confuses more than it helps.
    const ALIKE: f64 = 0.8;

    words
        .map(|word| (strsim::jaro_winkler(word, text), word))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, word)| word)
}

impl Section {
    /// Where `key` stands; the table, where it is absent (offset).
    pub(super) fn offset_of(&self, key: &str) -> usize {
        self.entry(key).map_or(self.offset, |entry| entry.key_offset)
    }

    /// Warns of each key that is not honoured.
    pub(super) fn warn_unhonoured(&self, findings: &mut Findings<'_>) {
        for entry in self.entries.values() {
            let name = entry.key.name;
            match entry.key.support {
                Support::NotYet => findings.warn(
                    entry.key_offset,
                    format!("`{name}` in {} is not honoured yet and changes nothing", self.level.what),
                ),
                Support::NoUse(why) => findings
                    .warn(entry.key_offset, format!("`{name}` in {} has no effect: {why}", self.level.what)),
                Support::Yes | Support::Own | Support::Partly(_) => {}
            }
        }
    }
}

/// Reads the values of a section: `None` where the key is absent.
pub(super) trait Values {
    /// The key of this name, with its value.
    fn entry(&self, name: &str) -> Option<&Entry>;

    /// `true` or `false`.
    fn bool(&self, name: &str) -> Option<bool> {
        match self.entry(name)?.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A string.
    fn text(&self, name: &str) -> Option<&str> {
        match &self.entry(name)?.value {
            Value::Text(value) => Some(value),
            _ => None,
        }
    }

    /// An address.
    fn address(&self, name: &str) -> Option<SocketAddr> {
        match self.entry(name)?.value {
            Value::Address(value) => Some(value),
            _ => None,
        }
    }

    /// A backend's address.
    fn backend_address(&self, name: &str) -> Option<&BackendAddress> {
        match &self.entry(name)?.value {
            Value::Backend(value) => Some(value),
            _ => None,
        }
    }

    /// Strings, each with its offset.
    fn texts(&self, name: &str) -> Option<&[(String, usize)]> {
        match &self.entry(name)?.value {
            Value::Texts(value) => Some(value),
            _ => None,
        }
    }

    /// Tables, one after the other.
    fn tables(&self, name: &str) -> &[Section] {
        match self.entry(name).map(|entry| &entry.value) {
            Some(Value::Tables(value)) => value,
            _ => &[],
        }
    }

    /// Tables, each with its name and the name's offset.
    fn named_tables(&self, name: &str) -> &[(String, usize, Section)] {
        match self.entry(name).map(|entry| &entry.value) {
            Some(Value::Named(value)) => value,
            _ => &[],
        }
    }
}

impl Values for Section {
    fn entry(&self, name: &str) -> Option<&Entry> {
        debug_assert!(self.level.key(name).is_some(), "`{name}` is no key of {}", self.level.what);
        self.entries.get(name)
    }
}

impl Given for Section {
    fn value(&self, name: &str) -> Option<&Value> {
        self.entry(name).map(|entry| &entry.value)
    }
}

/// A section whose absent keys are taken from the root.
pub(super) struct Inherited<'a> {
    /// Comes first.
    pub own: &'a Section,
    /// Comes second.
    pub root: &'a Section,
}

impl Given for Inherited<'_> {
    fn value(&self, name: &str) -> Option<&Value> {
        self.own.value(name).or_else(|| self.root.value(name))
    }
}
