//! Keys on the command line, `KEY=VALUE`: those of the file, and read by the same code, so they mean and allow the same.
//!
//! What is there already is written as a part of a file, the keys are put into it, and the part is read again.

use std::{env, io::Write as _};

use kakehi_ctl::{
    config::{self, write},
    state::{Cluster, Frontend, Listener, State},
};
use toml::{Table, Value};

use crate::client::Failure;

/// A key with its value; `None`: its default. `hsts.max_age` is a key of the table `hsts`.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    key: String,
    value: Option<Value>,
}

/// `KEY=VALUE`, where a value that is none of TOML is a string.
pub(crate) fn assignment(text: &str) -> Result<Assignment, String> {
    let (key, value) = text.split_once('=').ok_or("it has no `=`")?;
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
    let value = match (value, parsed.and_then(|mut table| table.remove("value"))) {
        ("", _) => None,
        (_, Some(value)) => Some(value),
        (text, None) => Some(text.into()),
    };
    Ok(Assignment { key: key.trim().to_owned(), value })
}

/// A listener with these keys besides those that it has.
///
/// # Errors
/// What a file would be refused for; a key that has a verb of its own.
pub(crate) fn listener(listener: &Listener, keys: &[Assignment]) -> Result<Listener, Failure> {
    let mut table = write::listener(listener);
    assign(&mut table, keys)?;
    let mut listeners = read([("listeners", vec![table].into())])?.listeners;
    listeners
        .remove(&listener.address)
        .ok_or_else(|| Failure::Usage("`address` cannot be changed, and `udp` is not supported".to_owned()))
}

/// The same for a cluster, which is named `name`.
///
/// # Errors
/// As for a listener.
pub(crate) fn cluster(name: &str, cluster: &Cluster, keys: &[Assignment]) -> Result<Cluster, Failure> {
    let mut table = write::cluster(cluster);
    assign(&mut table, keys)?;
    let clusters = Table::from_iter([(name.to_owned(), Value::Table(table))]);
    let mut clusters = read([("clusters", clusters.into())])?.clusters;
    clusters.remove(name).ok_or_else(|| Failure::Usage("such a cluster is not supported".to_owned()))
}

/// The same for a frontend of `cluster`.
///
/// # Errors
/// As for a listener; also if cluster or listener are not in `state`.
pub(crate) fn frontend(
    state: &State,
    cluster: &str,
    frontend: &Frontend,
    keys: &[Assignment],
) -> Result<Frontend, Failure> {
    let missing = || Failure::Refused(format!("there is no cluster `{cluster}`"));
    let its_cluster = state.clusters.get(cluster).ok_or_else(missing)?;
    let missing = || Failure::Refused(format!("there is no listener at {}", frontend.address));
    let its_listener = state.listeners.get(&frontend.address).ok_or_else(missing)?;
    let mut table = write::frontend(frontend);
    assign(&mut table, keys)?;
    // The others of the cluster are on other listeners, and say nothing of this one.
    let bare = Cluster { frontends: Vec::new(), backends: Vec::new(), ..its_cluster.clone() };
    let mut of_cluster = write::cluster(&bare);
    of_cluster.insert("frontends".to_owned(), vec![table].into());
    let clusters = Table::from_iter([(cluster.to_owned(), Value::Table(of_cluster))]);
    let listeners = vec![write::listener(its_listener)];
    let read = read([("listeners", listeners.into()), ("clusters", clusters.into())])?;
    let mut frontends = read.clusters.into_values().flat_map(|it| it.frontends);
    frontends.next().ok_or_else(|| Failure::Usage("such a frontend is not supported".to_owned()))
}

fn assign(table: &mut Table, keys: &[Assignment]) -> Result<(), Failure> {
    for Assignment { key, value } in keys {
        match key.split('.').next().unwrap_or_default() {
            "frontends" | "backends" => {
                return Err(Failure::Usage(format!("`{key}` cannot be set here; it has verbs of its own")));
            }
            "certificate" | "certificate_chain" | "key" | "certificates" => {
                return Err(Failure::Usage(format!(
                    "`{key}` cannot be set here; `kakehictl certificate add ADDRESS --certificate FILE --key FILE` gives a listener a certificate"
                )));
            }
            _ => put(table, key, value.as_ref())?,
        }
    }
    Ok(())
}

fn put(table: &mut Table, key: &str, value: Option<&Value>) -> Result<(), Failure> {
    match (key.split_once('.'), value) {
        (Some((outer, inner)), value) => {
            match table.entry(outer).or_insert_with(|| Value::Table(Table::new())) {
                Value::Table(table) => put(table, inner, value)?,
                _ => return Err(Failure::Usage(format!("`{outer}` is no table, so it has no `{inner}`"))),
            }
        }
        (None, Some(value)) => drop(table.insert(key.to_owned(), value.clone())),
        (None, None) => drop(table.remove(key)),
    }
    Ok(())
}

/// Reads what was put together from the command line, with relative paths from the working directory; warnings go to
/// standard error.
fn read<const N: usize>(parts: [(&str, Value); N]) -> Result<State, Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let table: Table = parts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let text = toml::to_string(&table).map_err(|error| usage(&error))?;
    let folder = env::current_dir().map_err(|error| usage(&error))?;
    let loaded = config::parse_part(&text, "the command line", &folder).map_err(|error| usage(&error))?;
    for warning in &loaded.warnings {
        let _ = writeln!(std::io::stderr(), "kakehictl: warning: {warning}");
    }
    Ok(loaded.state)
}

#[cfg(test)]
mod tests {
    use kakehi_ctl::state::ListenerProtocol;

    use super::*;

    #[test]
    fn a_value_is_one_of_toml_or_a_string() {
        for (text, key, value) in [
            ("via=false", "via", Some(toml::Value::Boolean(false))),
            ("front_timeout=1.5", "front_timeout", Some(toml::Value::Float(1.5))),
            ("public_address=1.2.3.4:80", "public_address", Some("1.2.3.4:80".into())),
            ("log=\"a b\"", "log", Some("a b".into())),
            ("via=", "via", None),
        ] {
            let it = assignment(text).unwrap();
            assert_eq!((it.key.as_str(), it.value), (key, value), "{text}");
        }
        assert!(assignment("via").is_err());
    }

    #[test]
    fn keys_of_a_listener_are_those_of_the_file() {
        let http = Listener::http(([127, 0, 0, 1], 80).into());
        let keys = |texts: &[&str]| texts.iter().map(|text| assignment(text).unwrap()).collect::<Vec<_>>();
        let changed = listener(&http, &keys(&["front_timeout=7", "via=false"])).unwrap();
        assert_eq!((changed.timeouts.front_ms, changed.forwarding.via), (7_000, false));
        assert_eq!(listener(&changed, &keys(&["front_timeout=", "via="])).unwrap(), http);
        for (text, said) in
            [("front_timeot=7", "front_timeout"), ("via=3", "via"), ("address=1.1.1.1:1", "address")]
        {
            let error = listener(&http, &keys(&[text])).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn keys_of_tls_are_those_of_the_file_with_paths_from_here() {
        let http = Listener::http(([127, 0, 0, 1], 443).into());
        let keys = |texts: &[&str]| texts.iter().map(|text| assignment(text).unwrap()).collect::<Vec<_>>();
        let https =
            listener(&http, &keys(&["protocol=https", "client_ca=ca.pem", "hsts.enabled=true"])).unwrap();
        assert_eq!(https.protocol, ListenerProtocol::Https);
        let tls = https.tls.as_deref().unwrap();
        assert_eq!(
            tls.client_auth.as_ref().unwrap().ca.path,
            std::env::current_dir().unwrap().join("ca.pem")
        );
        assert_eq!(tls.hsts.as_ref().unwrap().max_age, 31_536_000);
        let patched = listener(&https, &keys(&["hsts.max_age=5", "send_tls13_tickets=0"])).unwrap();
        let tls = patched.tls.as_deref().unwrap();
        assert_eq!((tls.hsts.as_ref().unwrap().max_age, tls.tickets), (5, 0));
        let plain =
            listener(&patched, &keys(&["hsts=", "client_ca=", "send_tls13_tickets=", "protocol=http"]));
        assert_eq!(plain.unwrap(), http);
        for (text, said) in [
            ("certificate=c.pem", "kakehictl certificate add"),
            ("key=k.pem", "kakehictl certificate add"),
            ("certificates=[]", "kakehictl certificate add"),
            ("protocol.x=1", "`protocol` is no table"),
            ("hsts.max_age=-1", "`max_age` must be"),
        ] {
            let error = listener(&https, &keys(&[text])).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn keys_of_clusters_and_frontends_are_those_of_the_file() {
        let keys = |texts: &[&str]| texts.iter().map(|text| assignment(text).unwrap()).collect::<Vec<_>>();
        let tcp = cluster("db", &Cluster::default(), &keys(&["protocol=tcp", "send_proxy=true"])).unwrap();
        assert!(tcp.protocol == kakehi_ctl::state::ClusterProtocol::Tcp && tcp.send_proxy);
        let tls =
            cluster("web", &Cluster::default(), &keys(&["backend_tls.server_name=b"])).unwrap().tls.unwrap();
        assert_eq!(tls.server_name.as_deref(), Some("b"));
        for key in ["frontends=[]", "backends=[]"] {
            let error = cluster("web", &Cluster::default(), &keys(&[key])).unwrap_err().to_string();
            assert!(error.contains("verbs of its own"), "{error}");
        }

        let address = ([127, 0, 0, 1], 443).into();
        let https = listener(&Listener::http(address), &keys(&["protocol=https"])).unwrap();
        let state = State {
            listeners: [(address, https)].into(),
            clusters: [("web".to_owned(), Cluster::default())].into(),
            ..State::default()
        };
        let plain = Frontend {
            address,
            hostname: "a.example".to_owned(),
            path: kakehi_ctl::state::PathRule::Equals("/x".to_owned()),
            method: None,
            deny: true,
            tls: None,
        };
        let with = frontend(&state, "web", &plain, &keys(&["client_ca=/ca", "hsts.enabled=false"])).unwrap();
        let tls = with.tls.as_deref().unwrap();
        assert!(tls.client_auth.as_ref().unwrap().required && !tls.hsts.as_ref().unwrap().enabled);
        assert_eq!(Frontend { tls: None, ..with }, plain);
        for (cluster, text, said) in [
            ("nix", "client_ca=/ca", "no cluster `nix`"),
            ("web", "client_auth=none", "only ask for more"),
            ("web", "key=x", "kakehictl certificate add"),
        ] {
            let error = frontend(&state, cluster, &plain, &keys(&[text])).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        let elsewhere = Frontend { address: ([127, 0, 0, 1], 9).into(), ..plain };
        let error = frontend(&state, "web", &elsewhere, &keys(&["client_ca=/ca"])).unwrap_err().to_string();
        assert!(error.contains("no listener at 127.0.0.1:9"), "{error}");
    }
}
