//! Changes in words, as `kakehictl` and the log show them.

use std::collections::BTreeMap;

use super::{Change, FrontendRule};
use crate::config::compare;
use crate::state::{Backend, Cluster, Frontend, PathRule, State};

impl State {
    /// `change` in words, one line for each thing that it does to this state: `+` comes, `-` goes, `~` changes.
    pub fn describe(&self, change: &Change) -> Vec<String> {
        match change {
            Change::SetSettings { settings } => {
                let lines = compare::settings(&self.settings, settings).into_iter();
                lines.map(|line| format!("~ {line}")).collect()
            }
            Change::SetListener { listener } => {
                let address = listener.address;
                let line = match self.listeners.get(&address) {
                    None => format!("+ listener {address}"),
                    Some(present) => {
                        format!("~ listener {address}: {}", compare::listener(present, listener))
                    }
                };
                let lost = self.certificates.get(&listener.address).filter(|_| listener.tls.is_none());
                let lost = lost.map(|it| format!("  - its {} certificates, as it is without TLS", it.len()));
                [line].into_iter().chain(lost).collect()
            }
            Change::RemoveListener { address } => vec![format!("- listener {address}")],
            Change::SetCluster { name, cluster } => self.describe_cluster(name, cluster),
            Change::RemoveCluster { name } => vec![format!("- cluster {name}")],
            Change::SetFrontend { cluster, frontend } => {
                let rule = FrontendRule::from(frontend);
                let present = self.clusters.get(cluster).map_or(&[][..], |cluster| &cluster.frontends);
                vec![match present.iter().find(|it| rule.is_of(it)) {
                    None => format!("+ frontend {} of cluster {cluster}", describe_frontend(frontend)),
                    Some(present) => {
                        let keys = compare::frontend(present, frontend);
                        format!("~ frontend {} of cluster {cluster}: {keys}", describe_rule(&rule))
                    }
                }]
            }
            Change::RemoveFrontend { cluster, rule } => {
                vec![format!("- frontend {} of cluster {cluster}", describe_rule(rule))]
            }
            Change::SetBackend { cluster, backend } => {
                let present = self.clusters.get(cluster).map_or(&[][..], |cluster| &cluster.backends);
                vec![describe_backend(cluster, present.iter().find(|it| it.id == backend.id), backend)]
            }
            Change::RemoveBackend { cluster, id } => vec![format!("- backend {id} of cluster {cluster}")],
            Change::SetCertificate { address, fingerprint, certificate } => {
                let present = self.certificate(*address, fingerprint).is_some();
                let (sign, names) = (if present { '~' } else { '+' }, &certificate.names);
                vec![format!("{sign} certificate {fingerprint} for {names} on {address}")]
            }
            Change::RemoveCertificate { address, fingerprint } => {
                vec![format!("- certificate {fingerprint} on {address}")]
            }
        }
    }

    fn describe_cluster(&self, name: &str, cluster: &Cluster) -> Vec<String> {
        let Some(present) = self.clusters.get(name) else {
            return vec![format!(
                "+ cluster {name} with {} frontends and {} backends",
                cluster.frontends.len(),
                cluster.backends.len()
            )];
        };
        let own = compare::cluster(present, cluster);
        let mut lines =
            vec![own.map_or_else(|| format!("~ cluster {name}"), |own| format!("~ cluster {name}: {own}"))];
        let by_rule = |cluster: &Cluster| -> BTreeMap<String, usize> {
            let rules = cluster.frontends.iter().map(|it| describe_rule(&FrontendRule::from(it)));
            rules.zip(0..).collect()
        };
        let (before, after) = (by_rule(present), by_rule(cluster));
        for (rule, place) in &after {
            let frontend = &cluster.frontends[*place];
            match before.get(rule).map(|place| &present.frontends[*place]) {
                None => lines.push(format!("  + frontend {}", describe_frontend(frontend))),
                Some(present) if present != frontend => {
                    lines.push(format!("  ~ frontend {rule}: {}", compare::frontend(present, frontend)));
                }
                Some(_) => {}
            }
        }
        for (_, place) in before.iter().filter(|(rule, _)| !after.contains_key(*rule)) {
            lines.push(format!("  - frontend {}", describe_frontend(&present.frontends[*place])));
        }
        for change in present.backend_changes(name, cluster) {
            lines.extend(self.describe(&change).into_iter().map(|line| format!("  {line}")));
        }
        lines
    }
}

fn describe_frontend(frontend: &Frontend) -> String {
    let refuses = if frontend.deny { ", refuses" } else { "" };
    let redirect = frontend.redirect.unless_forward().map_or_else(String::new, |word| format!(", {word}"));
    let auth = if frontend.required_auth { ", asks for a password" } else { "" };
    format!("{}{refuses}{auth}{redirect}", describe_rule(&FrontendRule::from(frontend)))
}

fn describe_rule(rule: &FrontendRule) -> String {
    let (kind, path) = match &rule.path {
        PathRule::Prefix(path) => ("", path),
        PathRule::Equals(path) => ("=", path),
        PathRule::Regex(path) => ("~", path),
    };
    let method = rule.method.as_deref().unwrap_or("any method");
    // The case of letters of a name makes no difference.
    let asks = rule.asks();
    let space = if asks.is_empty() { "" } else { " " };
    let hostname = rule.hostname.to_ascii_lowercase();
    format!("{hostname}{kind}{path} on {} ({method}){space}{asks}", rule.address)
}

fn describe_backend(cluster: &str, present: Option<&Backend>, backend: &Backend) -> String {
    let Backend { id, address, weight, backup, .. } = backend;
    let role = if *backup { ", backup" } else { "" };
    match present {
        None => format!("+ backend {id} ({address}, weight {weight}{role}) of cluster {cluster}"),
        Some(present) => {
            let keys = compare::backend(present, backend);
            format!("~ backend {id} of cluster {cluster}: {keys}")
        }
    }
}
