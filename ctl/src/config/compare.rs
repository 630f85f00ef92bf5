//! In which keys two listeners, clusters, frontends or backends differ, in words: `front_timeout 60 → 70`.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::{
    levels::{BACKEND, CLUSTER, FRONTEND, LISTENER, ROOT},
    write,
};
use crate::{
    keys::{Effect, Kind, Level},
    state::{Backend, Cluster, Frontend, Listener, Settings},
};

/// What has no word of its own: the keys are the same, and the files that they name are not.
const CONTENTS: &str = "what its files hold";

/// The keys of a listener that differ.
pub(crate) fn listener(before: &Listener, after: &Listener) -> String {
    words(&write::listener(before), &write::listener(after), &LISTENER)
}

/// The keys of a cluster that differ, without its frontends and backends; `None` if it differs in these alone.
pub(crate) fn cluster(before: &Cluster, after: &Cluster) -> Option<String> {
    let own = |it: &Cluster| Cluster { frontends: Vec::new(), backends: Vec::new(), ..it.clone() };
    let (before, after) = (own(before), own(after));
    (before != after).then(|| words(&write::cluster(&before), &write::cluster(&after), &CLUSTER))
}

/// The keys of a frontend that differ.
pub(crate) fn frontend(before: &Frontend, after: &Frontend) -> String {
    words(&write::frontend(before), &write::frontend(after), &FRONTEND)
}

/// The keys of a backend that differ.
pub(crate) fn backend(before: &Backend, after: &Backend) -> String {
    words(&write::backend(before), &write::backend(after), &BACKEND)
}

/// The settings that differ, a line each.
pub(crate) fn settings(before: &Settings, after: &Settings) -> Vec<String> {
    let mut lines = Vec::new();
    differences(&write::settings(before), &write::settings(after), Some(&ROOT), "", &mut lines);
    lines
}

fn words(before: &Table, after: &Table, level: &Level) -> String {
    let mut lines = Vec::new();
    differences(before, after, Some(level), "", &mut lines);
    if lines.is_empty() { CONTENTS.to_owned() } else { lines.join(", ") }
}

fn differences(before: &Table, after: &Table, level: Option<&Level>, outer: &str, lines: &mut Vec<String>) {
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        if old == new {
            continue;
        }
        let key = level.and_then(|level| level.key(name));
        let inner = key.and_then(|key| match &key.kind {
            Kind::Table(level) | Kind::TableOrFalse(level) => Some(*level),
            _ => None,
        });
        let table = |value: Option<&Value>| value.and_then(Value::as_table).cloned();
        let is_off = |value: Option<&Value>| value.is_some_and(Value::is_bool);
        if let Some(inner) = inner.filter(|_| !is_off(old) && !is_off(new)) {
            let (old, new) = (table(old).unwrap_or_default(), table(new).unwrap_or_default());
            differences(&old, &new, Some(inner), &format!("{outer}{name}."), lines);
            continue;
        }
        // Secret, or long.
        if ["authorized_hashes", "answers", "redirect_template"].contains(&name.as_str()) {
            let count = |value: Option<&Value>| match value {
                Some(Value::Array(items)) => items.len(),
                Some(Value::Table(items)) => items.len(),
                it => usize::from(it.is_some()),
            };
            lines.push(format!("{outer}{name} changed ({} → {})", count(old), count(new)));
            continue;
        }
        let text =
            |value: Option<&Value>| match (value, key.map(|key| key.default()).filter(|it| !it.is_empty())) {
                (Some(value), _) => value.to_string(),
                (None, None) => "unset".to_owned(),
                (None, Some(default)) => default,
            };
        // Who looks for it on a connection that there is looks in vain.
        let when = match key.map(|key| key.effect) {
            Some(effect @ Effect::Connections) => format!(" ({})", effect.words()),
            _ => String::new(),
        };
        lines.push(format!("{outer}{name} {} → {}{when}", text(old), text(new)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    fn of(text: &str) -> Listener {
        let text = format!("[[listeners]]\naddress = \"127.0.0.1:80\"\nprotocol = \"http\"\n{text}");
        parse(&text, "k.toml").unwrap().state.listeners.into_values().next().unwrap()
    }

    #[test]
    fn each_key_is_named_with_what_it_was_and_is() {
        for (before, after, expected) in [
            ("", "front_timeout = 70", "front_timeout 60 → 70"),
            ("front_timeout = 70", "via = false", "front_timeout 70 → 60, via true → false"),
            ("", "public_address = \"1.2.3.4:80\"", "public_address unset → \"1.2.3.4:80\""),
            ("trusted_peers = [\"10.0.0.0/8\"]", "", "trusted_peers [\"10.0.0.0/8\"] → []"),
            ("", "active = false", "active true → false"),
            ("", "expect_proxy = true", "expect_proxy false → true (for new connections)"),
        ] {
            assert_eq!(listener(&of(before), &of(after)), expected);
        }
    }
}
