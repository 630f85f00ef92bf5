//! From TOML to typed values: every key is looked up in the tables of [`crate::keys`] and its value checked.
//!
//! Promises: a [`Section`] holds only known keys, each with a value of its kind and range; all else was reported. Offsets are those
//! in the file.

use std::{collections::BTreeMap, net::SocketAddr, ops::Range};

use ipnet::IpNet;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    duration::{Least, millis, number},
    error::{ConfigError, KeyHint, Quoted},
    findings::Findings,
    levels::ROOT,
    pieces::Text,
};
use crate::{
    keys::{DNS_PORT, Given, Key, Kind, Level, Support},
    state::{
        AdminAddress, BackendAddress, Conditions, FileMode, InterfaceName, RateKey, StatusRange, Statuses,
        is_token,
    },
};

/// One table of the file, checked.
pub(crate) struct Section {
    /// Which one.
    pub level: &'static Level,
    /// Where it begins (offset).
    pub offset: usize,
    entries: BTreeMap<&'static str, Entry>,
    /// Keys with a value that was reported, or that were probably meant by one that was.
    wrong: Vec<&'static str>,
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
    /// Each with its port.
    Resolvers(Vec<SocketAddr>),
    Statuses(Statuses),
    Conditions(Conditions),
    RateKey(RateKey),
    /// Each with its offset.
    Texts(Vec<(String, usize)>),
    /// Of an array of integers.
    Integers(Vec<u64>),
    Tables(Vec<Section>),
    Named(Vec<(String, usize, Section)>),
    /// Each name with the offset of its text, and the text.
    TextMap(Vec<(String, usize, String)>),
}

/// Reads what stands in `text`, of the root; what is wrong goes to `findings`. `None` if it is no TOML: what can be read of it was
/// looked at all the same.
pub(super) fn root(text: &Text<'_>, findings: &mut Findings<'_>) -> Option<Section> {
    let (table, errors) = text.parse();
    for error in &errors {
        let offset = text.offset(error.span().map_or(0, |span| span.start));
        let message = error.message().to_owned();
        findings.error(offset, |place| ConfigError::Syntax { place, message });
    }
    // What was made of a line that is no TOML is not looked at.
    let broken = errors.iter().map(|error| error.span().map_or(0, |span| span.start));
    let broken = broken.map(|at| findings.source.line(text.offset(at))).collect();
    let section = Reader { text, findings, broken }.section(&ROOT, &table, text.offset(0));
    errors.is_empty().then_some(section)
}

/// Where tables are read.
struct Reader<'r, 'f> {
    text: &'r Text<'r>,
    findings: &'r mut Findings<'f>,
    /// Lines that are no TOML.
    broken: Vec<usize>,
}

impl Reader<'_, '_> {
    /// Where in the file that begins which has this span.
    fn at(&self, span: Range<usize>) -> usize {
        self.text.offset(span.start)
    }

    fn error(&mut self, offset: usize, error: impl FnOnce(super::Place) -> ConfigError) {
        if self.broken.is_empty() || !self.broken.contains(&self.findings.source.line(offset)) {
            self.findings.error(offset, error);
        }
    }

    /// Reads `table`, which is of `level`, and begins at `offset` of the file.
    fn section(&mut self, level: &'static Level, table: &DeTable<'_>, offset: usize) -> Section {
        let (mut entries, mut wrong) = (BTreeMap::new(), Vec::new());
        for (name, value) in table {
            let key_offset = self.at(name.span());
            let Some(key) = level.key(name.get_ref()) else {
                let hint = hint(level, name.get_ref());
                if let Some(KeyHint::Nearest(meant)) = hint {
                    wrong.push(meant);
                }
                self.error(key_offset, |place| ConfigError::UnknownKey {
                    place,
                    key: name.get_ref().to_string(),
                    level: level.what,
                    hint,
                });
                continue;
            };
            let offset = self.at(value.span());
            match self.read(key, value.get_ref(), offset) {
                Ok(value) => drop(entries.insert(key.name, Entry { key, key_offset, offset, value })),
                Err(found) => {
                    wrong.push(key.name);
                    let Some(found) = found else { continue };
                    self.error(offset, |place| ConfigError::BadValue {
                        place,
                        key: key.name,
                        allowed: key.kind.allowed(),
                        found,
                    });
                }
            }
        }
        Section { level, offset, entries, wrong }
    }

    /// The value of `key`, which stands at `offset` of the file; otherwise what was found in its place, or `None` if that was
    /// reported already.
    fn read(
        &mut self,
        key: &'static Key,
        value: &DeValue<'_>,
        offset: usize,
    ) -> Result<Value, Option<String>> {
        let wrong_type = || Some(type_name(value).to_owned());
        match key.kind {
            Kind::Table(level) => {
                let table = value.as_table().ok_or_else(wrong_type)?;
                Ok(Value::Tables(vec![self.section(level, table, offset)]))
            }
            Kind::TableOrFalse(_) if value.as_bool() == Some(false) => Ok(Value::Bool(false)),
            Kind::TableOrFalse(level) => {
                let table = value.as_table().ok_or_else(wrong_type)?;
                Ok(Value::Tables(vec![self.section(level, table, offset)]))
            }
            Kind::Tables(level) => {
                let tables = value.as_array().ok_or_else(wrong_type)?;
                let mut sections = Vec::with_capacity(tables.len());
                for item in tables {
                    match item.get_ref().as_table() {
                        Some(table) => sections.push(self.section(level, table, self.at(item.span()))),
                        None => self.report_item(key, item),
                    }
                }
                Ok(Value::Tables(sections))
            }
            Kind::NamedTables(level) => {
                let mut sections = Vec::new();
                for (name, item) in value.as_table().ok_or_else(wrong_type)? {
                    let Some(table) = item.get_ref().as_table() else {
                        self.report_item(key, item);
                        continue;
                    };
                    let section = self.section(level, table, self.at(item.span()));
                    sections.push((name.get_ref().to_string(), self.at(name.span()), section));
                }
                Ok(Value::Named(sections))
            }
            Kind::TextMap => {
                let table = value.as_table().ok_or_else(wrong_type)?;
                let text = |item: &Spanned<DeValue<'_>>, at| Some((item.get_ref().as_str()?.to_owned(), at));
                let texts = self.items(key, table.values(), text).ok_or(None)?;
                let names = table.keys().map(|name| name.get_ref().to_string());
                Ok(Value::TextMap(names.zip(texts).map(|(name, (text, at))| (name, at, text)).collect()))
            }
            Kind::Texts | Kind::Versions | Kind::CipherSuites | Kind::Groups | Kind::Protocols => {
                let list = value.as_array().ok_or_else(wrong_type)?;
                let text = |item: &Spanned<DeValue<'_>>, at| Some((item.get_ref().as_str()?.to_owned(), at));
                self.items(key, list, text).map(Value::Texts).ok_or(None)
            }
            Kind::AcceptedStatuses => {
                let list = value.as_array().ok_or_else(wrong_type)?;
                let status = |item: &Spanned<DeValue<'_>>, at| {
                    let text = item.get_ref().as_str()?;
                    text.parse::<StatusRange>().ok().map(|_| (text.to_owned(), at))
                };
                self.items(key, list, status).map(Value::Texts).ok_or(None)
            }
            Kind::Integers => {
                let list = value.as_array().ok_or_else(wrong_type)?;
                let number =
                    |item: &Spanned<DeValue<'_>>, _| integer(item.get_ref(), 0, u32::MAX.into()).ok();
                self.items(key, list, number).map(Value::Integers).ok_or(None)
            }
            Kind::StatusRanges => {
                let list = value.as_array().ok_or_else(wrong_type)?;
                let status = |item: &Spanned<DeValue<'_>>, _| word(item.get_ref())?.parse().ok();
                self.items(key, list, status).map(|it| Value::Statuses(Statuses(it))).ok_or(None)
            }
            Kind::RetryConditions => {
                let list = value.as_array().ok_or_else(wrong_type)?;
                let known = |item: &Spanned<DeValue<'_>>, _| {
                    word(item.get_ref()).filter(|word| Conditions::default().add(word))
                };
                let words = self.items(key, list, known).ok_or(None)?;
                Ok(Value::Conditions(words.iter().map(String::as_str).collect()))
            }
            Kind::Hostnames => {
                let list = value.as_array().ok_or_else(wrong_type)?;
                let name = |item: &Spanned<DeValue<'_>>, at| {
                    let text = item.get_ref().as_str().filter(|it| super::certificate_name(it).is_ok())?;
                    (!text.contains('*')).then(|| (text.to_owned(), at))
                };
                self.items(key, list, name).map(Value::Texts).ok_or(None)
            }
            Kind::Networks => {
                let list = value.as_array().ok_or_else(wrong_type)?;
                let network = |item: &Spanned<DeValue<'_>>, _| item.get_ref().as_str().and_then(network);
                self.items(key, list, network).map(Value::Networks).ok_or(None)
            }
            Kind::Resolvers => {
                let list = value.as_array().ok_or_else(wrong_type)?;
                let resolver = |item: &Spanned<DeValue<'_>>, _| item.get_ref().as_str().and_then(resolver);
                self.items(key, list, resolver).map(Value::Resolvers).ok_or(None)
            }
            _ => scalar(key.kind, value).map_err(Some),
        }
    }

    /// The items of an array or a map, as `read` reads each with its offset; `None` if one of them was reported.
    fn items<'i, 'v: 'i, T>(
        &mut self,
        key: &'static Key,
        items: impl IntoIterator<Item = &'i Spanned<DeValue<'v>>>,
        read: impl Fn(&Spanned<DeValue<'_>>, usize) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut all = Some(Vec::new());
        for item in items {
            match (read(item, self.at(item.span())), &mut all) {
                (Some(item), Some(all)) => all.push(item),
                (Some(_), None) => {}
                (None, _) => {
                    all = None;
                    self.report_item(key, item);
                }
            }
        }
        all
    }

    /// An item of an array or a map that is not what its key takes.
    fn report_item(&mut self, key: &'static Key, item: &Spanned<DeValue<'_>>) {
        let offset = self.at(item.span());
        self.error(offset, |place| ConfigError::BadValue {
            place,
            key: key.name,
            allowed: key.kind.allowed(),
            found: match item.get_ref() {
                DeValue::String(text) => format!("one with {}", Quoted(text)),
                other => format!("one with {}", type_name(other)),
            },
        });
    }
}

/// A word, or a number as one.
fn word(value: &DeValue<'_>) -> Option<String> {
    let number = || value.as_integer().map(|written| written.as_str().to_owned());
    value.as_str().map(str::to_owned).or_else(number)
}

/// A value that is neither an array nor a table, or what was found in its place.
fn scalar(kind: Kind, value: &DeValue<'_>) -> Result<Value, String> {
    match kind {
        Kind::Bool => value.as_bool().map(Value::Bool).ok_or_else(|| type_name(value).to_owned()),
        Kind::Integer(min, max) => integer(value, min, max).map(Value::Integer),
        Kind::PowerOfTwo(min, max) => match integer(value, min, max)? {
            count if count.is_power_of_two() => Ok(Value::Integer(count)),
            other => Err(Quoted(&other.to_string()).to_string()),
        },
        Kind::Multiple(max) => thousandths(value, max).map(Value::Integer),
        Kind::Seconds => millis(value, Least::Millisecond).map(Value::Millis),
        Kind::SecondsOrZero => millis(value, Least::Zero).map(Value::Millis),
        _ => {
            let text = value.as_str().ok_or_else(|| type_name(value).to_owned())?;
            read_text(kind, text).ok_or_else(|| Quoted(text).to_string())
        }
    }
}

/// Thousandths of a number from 1 to `max`, or of 0; or what was found.
fn thousandths(value: &DeValue<'_>, max: u32) -> Result<u64, String> {
    let (written, number) = number(value)?;
    number
        .filter(|number| *number == 0.0 || (1.0..=f64::from(max)).contains(number))
        // The range was checked, so that the conversion is exact.
        .map(|number| (number * 1_000.0).round() as u64)
        .ok_or_else(|| Quoted(written).to_string())
}

/// A value that is written as a string.
fn read_text(kind: Kind, text: &str) -> Option<Value> {
    let owned = || Some(Value::Text(text.to_owned()));
    match kind {
        Kind::AnyText | Kind::Response => owned(),
        Kind::Text | Kind::ClusterName | Kind::Path | Kind::Socket => {
            (!text.is_empty() && !text.contains('\0')).then(owned).flatten()
        }
        Kind::Address => {
            let address = text.parse::<SocketAddr>().ok()?;
            (address.port() != 0).then_some(Value::Address(address))
        }
        Kind::IpOrUnix => text.parse::<AdminAddress>().is_ok().then(owned).flatten(),
        Kind::BackendAddress => match text.parse::<BackendAddress>().ok()? {
            BackendAddress::Ip(address) if address.port() == 0 => None,
            address => Some(Value::Backend(address)),
        },
        Kind::BackendSocket => format!("unix:{text}").parse().ok().map(Value::Backend),
        // RFC 6265 section 4.1.1.
        Kind::CookieValue => {
            let fits = |byte: u8| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte);
            (!text.is_empty() && text.len() <= 128 && text.bytes().all(fits)).then(owned).flatten()
        }
        Kind::Interface => text.parse::<InterfaceName>().is_ok().then(owned).flatten(),
        Kind::Mode => text.parse::<FileMode>().is_ok().then(owned).flatten(),
        Kind::LimitKey => text.parse().ok().map(Value::RateKey),
        Kind::Method | Kind::Token => is_token(text).then(owned).flatten(),
        Kind::Choice(words) => {
            words.iter().find(|word| is_same_word(word, text)).map(|word| Value::Text((*word).to_owned()))
        }
        _ => None,
    }
}

/// Files of different times write `USE_HTTPS` and `use-https`, `round_robin` and `ROUND_ROBIN`.
fn is_same_word(word: &str, text: &str) -> bool {
    let letter = |byte: u8| if byte == b'-' { b'_' } else { byte.to_ascii_lowercase() };
    word.bytes().map(letter).eq(text.bytes().map(letter))
}

/// An integer from `min` to `max`, or what was found.
fn integer(value: &DeValue<'_>, min: u64, max: u64) -> Result<u64, String> {
    let Some(written) = value.as_integer() else { return Err(type_name(value).to_owned()) };
    let number = u64::from_str_radix(written.as_str(), written.radix()).ok();
    number.filter(|number| (min..=max).contains(number)).ok_or_else(|| Quoted(written.as_str()).to_string())
}

/// A network, or a single address as the network that holds only it.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse().ok().map(|address: std::net::IpAddr| address.into()))
}

/// A server of the DNS.
fn resolver(text: &str) -> Option<SocketAddr> {
    let with_port = text.parse().ok().filter(|it: &SocketAddr| it.port() != 0);
    let address = with_port.or_else(|| Some(SocketAddr::new(text.parse().ok()?, DNS_PORT)));
    address.filter(|it| !it.ip().is_unspecified() && !it.ip().is_multicast())
}

/// As it reads in an error.
pub(super) fn type_name(value: &DeValue<'_>) -> &'static str {
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
            Kind::Table(inner)
            | Kind::TableOrFalse(inner)
            | Kind::Tables(inner)
            | Kind::NamedTables(inner) => elsewhere(inner, name),
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
    /// One in which nothing stands, at `offset`.
    pub(super) fn empty(level: &'static Level, offset: usize) -> Section {
        Section { level, offset, entries: BTreeMap::new(), wrong: Vec::new() }
    }

    /// Its keys, in alphabetical order.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.entries.keys().copied()
    }

    /// Whether `key` has a value, if only a wrong one.
    pub(super) fn says(&self, key: &str) -> bool {
        self.entries.contains_key(key) || self.wrong.contains(&key)
    }

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

    /// A whole number.
    fn integer(&self, name: &str) -> Option<u64> {
        match self.entry(name)?.value {
            Value::Integer(value) => Some(value),
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

    /// Whether a table is switched off by `false` in its place.
    fn is_off(&self, name: &str) -> bool {
        matches!(self.entry(name).map(|entry| &entry.value), Some(Value::Bool(false)))
    }

    /// Tables, one after the other.
    fn tables(&self, name: &str) -> &[Section] {
        match self.entry(name).map(|entry| &entry.value) {
            Some(Value::Tables(value)) => value,
            _ => &[],
        }
    }

    /// Texts by name, each with its offset.
    fn text_map(&self, name: &str) -> &[(String, usize, String)] {
        match self.entry(name).map(|entry| &entry.value) {
            Some(Value::TextMap(value)) => value,
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
