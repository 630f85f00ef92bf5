//! What the one definition of a key promises.

use std::{fs, path::Path};

use super::{Default, Effect, Key, Kind};
use crate::state::{
    Admin, Admission, Backend, Balancing, Cluster, ClusterLimits, Forwarding, Frontend, FrontendLimits, Hsts,
    Listener, Passive, RateLimit, Retries, Settings, Sizes, Sources, Timeouts, Tls,
};

/// Every key that has a field.
fn all() -> impl Iterator<Item = &'static Key> {
    let groups = [
        Settings::OWN,
        Admin::OWN,
        Timeouts::INHERITED,
        Sizes::INHERITED,
        Forwarding::OWN,
        Forwarding::INHERITED,
        Listener::REQUIRED,
        Listener::OWN,
        Listener::INHERITED,
        Tls::OWN,
        Hsts::REQUIRED,
        Hsts::OWN,
        Cluster::REQUIRED,
        Cluster::OWN,
        Balancing::OWN,
        Admission::OWN,
        Retries::OWN,
        Retries::INHERITED,
        Passive::OWN,
        Sources::OWN,
        FrontendLimits::OWN,
        ClusterLimits::OWN,
        RateLimit::REQUIRED,
        RateLimit::OWN,
        Frontend::REQUIRED,
        Frontend::OWN,
        Backend::REQUIRED,
        Backend::OWN,
    ];
    groups.into_iter().flatten()
}

/// Keys whose name stands elsewhere too, because they mean something together with others.
const ELSEWHERE: [(&str, &str); 42] = [
    ("max_body_size", "not in what passes connections on"),
    ("rate", "who makes the limit needs it first"),
    ("key", "TLS and header edits have one, too"),
    ("status", "a verb of `kakehictl` is called so"),
    ("dry_run", "an option of `kakehictl` is called so"),
    ("dns_min_ttl", "it is not longer than the other"),
    ("dns_max_ttl", "the same"),
    ("fail_open", "`udp.health` has one of its own"),
    ("affinity_header", "it excludes others"),
    ("affinity_cookie", "the same"),
    ("affinity_path", "the same"),
    ("hash_balance_factor", "it has a gap"),
    ("sticky_session", "clusters of `tcp` have none"),
    ("command_socket", "its length is bounded, and kakehictl looks for it in files that are wrong"),
    ("automatic_state_save", "it needs `saved_state`"),
    ("command_socket_mode", "it lets nobody in that `command_allowed_uids` does not"),
    ("forwarded_headers", "it has to go together with these"),
    ("x_forwarded_for", "the same"),
    ("x_forwarded_proto", "the same"),
    ("x_forwarded_port", "the same"),
    ("x_forwarded_host", "the same"),
    ("forwarded", "the same"),
    ("address", "who makes the object needs it first"),
    ("protocol", "the same"),
    ("hostname", "the same"),
    ("backend_id", "its default comes from the address"),
    ("backup", "a word of `kakehictl backend list`"),
    ("enabled", "it is required"),
    ("mode", "health checks have one, too"),
    ("authorized_hashes", "each is looked at by itself, and none is shown"),
    ("www_authenticate", "its letters are looked at"),
    ("required_auth", "it needs users, and connections that are passed on have none"),
    ("position", "header edits have one, too, and connections that are passed on none"),
    ("order", "connections that are passed on have none"),
    ("https_redirect", "not in a cluster of `tcp`"),
    ("method", "not on a listener of `tcp`"),
    ("weight", "clusters of a split have one, too"),
    ("sozu_id_header", "not every name will do"),
    ("via", "the field is called so"),
    ("allow", "the same"),
    ("interface", "an address is on one only"),
    ("maintenance_retry_after", "not in a cluster of `tcp`"),
];

/// The sources of a folder, without tests.
fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name.starts_with("tests") || name == "reference.rs" {
            continue;
        }
        if path.is_dir() {
            sources(&path, text);
        } else if name.ends_with(".rs") {
            let source = fs::read_to_string(&path).unwrap();
            text.push_str(source.split("#[cfg(test)]\nmod tests {").next().unwrap());
        }
    }
}

#[test]
fn the_name_of_a_key_stands_in_one_place() {
    let mut text = String::new();
    for part in ["ctl", "supervisor"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(part).join("src"), &mut text);
    }
    let mut wrong = Vec::new();
    for key in all() {
        let found = text.matches(&format!("\"{}\"", key.name)).count();
        let defined = all().filter(|it| it.name == key.name).count();
        let elsewhere = ELSEWHERE.iter().any(|(name, _)| *name == key.name);
        if (found != defined) != elsewhere {
            wrong.push(format!("{}: {found} times, {defined} definitions, excepted: {elsewhere}", key.name));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_setting_of_the_process_says_what_the_process_needs_and_no_other_key_does() {
    let of_the_process = [Effect::Placement, Effect::Workers, Effect::Restart];
    for key in all() {
        let is_setting = Settings::OWN.iter().any(|it| std::ptr::eq(it, key));
        let fits = if is_setting {
            key.effect == Effect::Live || of_the_process.contains(&key.effect)
        } else {
            !of_the_process.contains(&key.effect)
        };
        assert!(fits, "{}: {:?}", key.name, key.effect);
    }
}

#[test]
fn a_default_is_a_value_that_its_key_takes() {
    for key in all() {
        let Default::Of(text) = key.default else { continue };
        let text = text();
        if text.is_empty() {
            continue;
        }
        let value = toml::from_str::<toml::Table>(&format!("it = {text}")).unwrap().remove("it").unwrap();
        let fits = match key.kind {
            Kind::Integer(min, max) | Kind::PowerOfTwo(min, max) => {
                value.as_integer().is_some_and(|it| (min..=max).contains(&(it as u64)))
            }
            Kind::Multiple(_) | Kind::Seconds | Kind::SecondsOrZero => value.is_integer() || value.is_float(),
            Kind::Bool => value.is_bool(),
            Kind::Choice(words) => value.as_str().is_some_and(|it| words.contains(&it)),
            Kind::Hostnames
            | Kind::Networks
            | Kind::Texts
            | Kind::Resolvers
            | Kind::Integers
            | Kind::RetryConditions
            | Kind::StatusRanges => value.is_array(),
            _ => value.is_str(),
        };
        assert!(fits, "{} = {text}", key.name);
    }
}
