//! The tables of keys as documents: `docs/configuration.md` and `docs/examples/kakehi.toml`.
//!
//! The tests fail when a document does not say what the tables say. `KAKEHI_BLESS=1 cargo test -p kakehi-ctl`
//! writes the documents anew.

use std::{fmt::Write as _, fs, path::PathBuf};

use super::levels::{
    ADMIN, BACKEND, BACKEND_TLS, CERTIFICATE, CLUSTER, FRONTEND, FRONTEND_TLS, H2, HEADER, HEALTH_CHECK,
    HSTS, LISTENER, LISTENER_TLS, METRICS, PASSIVE, PLAIN_FRONTEND, PLAIN_LISTENER, PREDICATE, RATE_LIMIT,
    ROOT, SPLIT, UDP, UDP_HEALTH,
};
use crate::{
    keys::{Key, Kind, Level, Support},
    state::Tls,
};

/// Every level, with the name of its place in `docs/configuration.md`.
const LEVELS: [(&str, &Level); 18] = [
    ("root", &ROOT),
    ("listener", &LISTENER),
    ("hsts", &HSTS),
    ("certificate", &CERTIFICATE),
    ("cluster", &CLUSTER),
    ("backend-tls", &BACKEND_TLS),
    ("frontend", &FRONTEND),
    ("rate-limit", &RATE_LIMIT),
    ("predicate", &PREDICATE),
    ("header", &HEADER),
    ("split", &SPLIT),
    ("backend", &BACKEND),
    ("passive", &PASSIVE),
    ("health-check", &HEALTH_CHECK),
    ("udp", &UDP),
    ("udp-health", &UDP_HEALTH),
    ("metrics", &METRICS),
    ("admin", &ADMIN),
];

/// Those that it shows in one with TLS.
static TLS_LISTENER: Level = Level { what: "a listener of `https`", groups: &[LISTENER_TLS, Tls::OWN, H2] };
/// Those that it shows in one of a listener with TLS.
static TLS_FRONTEND: Level = Level { what: "a frontend of `https`", groups: &[FRONTEND_TLS] };

/// A file of the folder `docs`.
pub(super) fn document(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

/// A level as a table of Markdown.
fn markdown(level: &'static Level) -> String {
    let mut text = String::from(
        "| Key | Takes | Default | Honoured | Changes | What it does |\n|---|---|---|---|---|---|\n",
    );
    for key in level.keys() {
        let honoured = match key.support {
            Support::Yes => "yes".to_owned(),
            Support::Own => "yes, kakehi's own".to_owned(),
            Support::Partly(otherwise) => format!("in part: {otherwise}"),
            Support::NotYet => "not yet".to_owned(),
            Support::NoUse(why) => format!("no effect: {why}"),
        };
        let default = match key.default().as_str() {
            "" => String::new(),
            default if is_inherited(level, key) => format!("the root's (`{default}`)"),
            default => format!("`{default}`"),
        };
        let changes = match key.support {
            Support::NotYet | Support::NoUse(_) => "",
            // Its keys say it.
            _ if key.is_table() => "",
            _ => key.effect.words(),
        };
        let takes = match key.kind {
            Kind::Seconds => "seconds".to_owned(),
            Kind::SecondsOrZero => "seconds, or 0".to_owned(),
            Kind::Path => "a file's path".to_owned(),
            other => other.allowed(),
        };
        let _ = writeln!(
            text,
            "| `{}` | {takes} | {default} | {honoured} | {changes} | {} |",
            key.name,
            key.doc()
        );
    }
    text
}

/// A listener's key that the root has too.
fn is_inherited(level: &Level, key: &Key) -> bool {
    level.what == LISTENER.what && ROOT.key(key.name).is_some()
}

/// The lines of the example that are active as shipped.
const ACTIVE: [(&str, &str, &str); 6] = [
    ("a listener", "address", "\"127.0.0.1:8080\""),
    ("a listener", "protocol", "\"http\""),
    ("a cluster", "protocol", "\"http\""),
    ("a frontend", "address", "\"127.0.0.1:8080\""),
    ("a frontend", "hostname", "\"*\""),
    ("a backend", "address", "\"127.0.0.1:9000\""),
];

/// The example file; the keys that `uncomment` takes are active too, with the value that it gives.
pub(super) fn example(uncomment: &dyn Fn(&Level, &Key) -> Option<String>) -> String {
    let mut text = String::from(EXAMPLE_HEAD);
    // The third: what a second table of a kind needs besides the keys that it shows.
    let headers = [
        ("", &ROOT, ""),
        ("[[listeners]]", &PLAIN_LISTENER, ""),
        ("[[listeners]]", &TLS_LISTENER, "address = \"127.0.0.1:8443\"\nprotocol = \"https\"\n"),
        ("[listeners.hsts]", &HSTS, ""),
        ("[[listeners.certificates]]", &CERTIFICATE, ""),
        ("[clusters.example]", &CLUSTER, ""),
        ("[clusters.example.backend_tls]", &BACKEND_TLS, ""),
        ("[clusters.example.passive]", &PASSIVE, ""),
        ("[clusters.example.health_check]", &HEALTH_CHECK, ""),
        ("[clusters.example.udp]", &UDP, ""),
        ("[clusters.example.udp.health]", &UDP_HEALTH, ""),
        ("[[clusters.example.frontends]]", &PLAIN_FRONTEND, ""),
        ("[[clusters.example.frontends.rate_limits]]", &RATE_LIMIT, ""),
        ("[[clusters.example.frontends.header_predicates]]", &PREDICATE, ""),
        ("[[clusters.example.frontends.headers]]", &HEADER, ""),
        ("[[clusters.example.frontends.split]]", &SPLIT, ""),
        (
            "[[clusters.example.frontends]]",
            &TLS_FRONTEND,
            "address = \"127.0.0.1:8443\"\nhostname = \"example.org\"\n",
        ),
        ("[clusters.example.frontends.hsts]", &HSTS, ""),
        ("[[clusters.example.backends]]", &BACKEND, ""),
        ("[metrics]", &METRICS, ""),
        ("[admin]", &ADMIN, ""),
    ];
    for (header, level, first) in headers {
        let mut lines = String::new();
        let mut any_active = header.is_empty();
        for key in level.keys() {
            let active = ACTIVE.iter().find(|(what, name, _)| (*what, *name) == (level.what, key.name));
            let value = active.map(|(_, _, value)| value.to_string()).or_else(|| uncomment(level, key));
            if key.is_table() {
                continue;
            }
            any_active |= value.is_some();
            lines.push_str(&describe(level, key));
            let _ = match value {
                Some(value) => writeln!(lines, "{} = {value}", key.name),
                None => writeln!(lines, "#{} = {}", key.name, sample(key)),
            };
        }
        let _ = match header {
            "" => Ok(()),
            header => writeln!(text, "\n{}{header}\n", if any_active { "" } else { "#" }),
        };
        for line in first.lines() {
            let _ = writeln!(text, "{}{line}", if any_active { "" } else { "#" });
        }
        text.push_str(&lines);
    }
    text
}

const EXAMPLE_HEAD: &str = "\
# kakehi: an example, with every key of the file.
#
# As it stands, it listens on 127.0.0.1:8080 and forwards everything to 127.0.0.1:9000.
# A line that begins with `#` and a key shows the default, or an example where there is none: take the `#` away
# to use it. Durations are seconds, whole or with a fraction (0.25). Keys that are marked `not yet` or `no effect`
# are accepted with a warning. `docs/configuration.md` has the same as tables.

";

/// What stands above a key of the example.
fn describe(level: &'static Level, key: &Key) -> String {
    let mark = match key.support {
        Support::Yes | Support::Own => "",
        Support::Partly(otherwise) => &format!(" (In part: {otherwise}.)"),
        Support::NotYet => " (Not yet.)",
        Support::NoUse(_) => " (No effect.)",
    };
    let default = match key.default().as_str() {
        "" => "",
        _ if is_inherited(level, key) => " Default: what the root says.",
        default => &format!(" Default: {default}."),
    };
    let mut text = String::new();
    let mut line = String::from("#");
    for word in format!("{}{default}{mark}", key.doc()).split_whitespace() {
        if line.len() + word.len() > 108 {
            text.push_str(&line);
            text.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    format!("{text}{line}\n")
}

/// A value for a key: its default, or something that it takes.
pub(super) fn sample(key: &Key) -> String {
    if !key.default().is_empty() {
        return key.default();
    }
    match key.kind {
        Kind::Bool => "true".to_owned(),
        Kind::Text | Kind::AnyText => "\"text\"".to_owned(),
        Kind::ClusterName => "\"example\"".to_owned(),
        Kind::Path => "\"path/to/file\"".to_owned(),
        Kind::Socket => "\"path/to/socket\"".to_owned(),
        Kind::Texts => "[\"text\"]".to_owned(),
        Kind::Versions => "[\"TLS_V13\"]".to_owned(),
        Kind::CipherSuites => {
            "[\"TLS_AES_128_GCM_SHA256\", \"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\"]".to_owned()
        }
        Kind::Groups => "[\"x25519\"]".to_owned(),
        Kind::Protocols => "[\"http/1.1\"]".to_owned(),
        Kind::AcceptedStatuses => "[\"200-299\"]".to_owned(),
        Kind::TextMap => format!("{{ 503 = {} }}", RESPONSE.replace("301 Moved", "503 Gone")),
        Kind::Response => RESPONSE.to_owned(),
        Kind::Integer(min, max) => 4.clamp(min, max).to_string(),
        Kind::Multiple(_) => "2.5".to_owned(),
        Kind::Integers => "[1000]".to_owned(),
        Kind::PowerOfTwo(min, _) => min.to_string(),
        Kind::Seconds => "10".to_owned(),
        Kind::SecondsOrZero => "4".to_owned(),
        Kind::Address | Kind::BackendAddress => "\"192.0.2.1:80\"".to_owned(),
        Kind::IpOrUnix => "\"127.0.0.1:9901\"".to_owned(),
        Kind::Hostnames => "[\"kakehi.example.org\"]".to_owned(),
        Kind::Resolvers => "[\"192.0.2.53\"]".to_owned(),
        Kind::Networks => "[\"192.0.2.0/24\"]".to_owned(),
        Kind::Interface => "\"eth0\"".to_owned(),
        Kind::Method => "\"GET\"".to_owned(),
        Kind::Token => "\"X-User\"".to_owned(),
        Kind::CookieValue => "\"a1\"".to_owned(),
        Kind::BackendSocket => "\"/run/app.sock\"".to_owned(),
        Kind::Mode => "\"0660\"".to_owned(),
        Kind::LimitKey => "\"source\"".to_owned(),
        // The last, as the first is what applies without the key.
        Kind::Choice(words) => format!("\"{}\"", words[words.len() - 1]),
        Kind::RetryConditions => "[\"reset\", 503]".to_owned(),
        Kind::StatusRanges => "[\"5xx\"]".to_owned(),
        Kind::Table(_) | Kind::TableOrFalse(_) | Kind::Tables(_) | Kind::NamedTables(_) => String::new(),
    }
}

/// A whole response, as it is written.
const RESPONSE: &str = r#""HTTP/1.1 301 Moved\r\nContent-Type: text/plain\r\n\r\n%REQUEST_ID""#;

/// Compares a document with what it should be, or writes it.
fn compare(name: &str, expected: &str) {
    if std::env::var_os("KAKEHI_BLESS").is_some() {
        fs::write(document(name), expected).unwrap();
    }
    let found = fs::read_to_string(document(name)).unwrap();
    for (line, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(
            found,
            expected,
            "line {} of docs/{name}; KAKEHI_BLESS=1 cargo test writes it anew",
            line + 1
        );
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "docs/{name}");
}

#[test]
fn the_reference_has_every_key_as_it_is_defined() {
    let mut text = fs::read_to_string(document("configuration.md")).unwrap();
    for (place, level) in LEVELS {
        let begin = format!("<!-- keys: {place} -->\n");
        let from = text.find(&begin).unwrap_or_else(|| panic!("no place for {place}")) + begin.len();
        let to = from + text[from..].find("<!-- end -->").unwrap();
        text.replace_range(from..to, &markdown(level));
    }
    compare("configuration.md", &text);
}

#[test]
fn the_example_has_every_key_as_it_is_defined() {
    compare("examples/kakehi.toml", &example(&|_, _| None));
}
