//! Changes in words, as `kakehictl` and the log show them.

use std::collections::BTreeMap;

use super::{Change, FrontendRule};
use crate::config::compare;
use crate::state::{Backend, Cluster, Frontend, PathRule, Settings, State};

impl State {
    /// `change` in words, one line for each thing that it does to this state: `+` comes, `-` goes, `~` changes.
    pub fn describe(&self, change: &Change) -> Vec<String> {
        match change {
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
    format!("{}{refuses}", describe_rule(&FrontendRule::from(frontend)))
}

fn describe_rule(rule: &FrontendRule) -> String {
    let (kind, path) = match &rule.path {
        PathRule::Prefix(path) => ("", path),
        PathRule::Equals(path) => ("=", path),
        PathRule::Regex(path) => ("~", path),
    };
    let method = rule.method.as_deref().unwrap_or("any method");
    // The case of letters of a name makes no difference.
    format!("{}{kind}{path} on {} ({method})", rule.hostname.to_ascii_lowercase(), rule.address)
}

fn describe_backend(cluster: &str, present: Option<&Backend>, backend: &Backend) -> String {
    let Backend { id, address, weight, backup } = backend;
    let role = if *backup { ", backup" } else { "" };
    match present {
        None => format!("+ backend {id} ({address}, weight {weight}{role}) of cluster {cluster}"),
        Some(present) => {
            let keys = compare::backend(present, backend);
            format!("~ backend {id} of cluster {cluster}: {keys}")
        }
    }
}

impl Settings {
    /// Whether a worker that runs with these settings has to be replaced by one that runs with `wanted`.
    pub fn differ_for_worker(&self, wanted: &Settings) -> bool {
        // What concerns the supervisor alone.
        let of_supervisor = [
            "command_socket",
            "pid_file_path",
            "handle_process_affinity",
            "command_allowed_uids",
            "saved_state",
            "automatic_state_save",
        ];
        self.fixed_until_restart(wanted).iter().any(|name| !of_supervisor.contains(name))
    }

    /// The settings in which `wanted` differs and that change while kakehi runs, in words.
    pub fn describe_live(&self, wanted: &Settings) -> Vec<String> {
        let count = |settings: &Settings| {
            settings.worker_count.map_or_else(|| "one per core".to_owned(), |count| count.to_string())
        };
        let cores = |settings: &Settings| format!("{:?}", settings.worker_cores);
        let steering = |settings: &Settings| format!("{:?}", settings.steering).to_lowercase();
        let rebalance = |settings: &Settings| {
            let how = if settings.rebalance_auto { "auto" } else { "manual" };
            format!("{how}, {} % every {} ms", settings.rebalance_threshold, settings.rebalance_interval_ms)
        };
        let millis = |millis: u64| format!("{millis} ms");
        let settings = [
            ("worker_count", count(self), count(wanted)),
            ("worker_cores", cores(self), cores(wanted)),
            ("steering", steering(self), steering(wanted)),
            ("rebalance", rebalance(self), rebalance(wanted)),
            ("graceful_timeout", millis(self.graceful_timeout_ms), millis(wanted.graceful_timeout_ms)),
            ("worker_timeout", millis(self.worker_timeout_ms), millis(wanted.worker_timeout_ms)),
            ("worker_liveness", millis(self.worker_liveness_ms), millis(wanted.worker_liveness_ms)),
            (
                "worker_automatic_restart",
                self.worker_automatic_restart.to_string(),
                wanted.worker_automatic_restart.to_string(),
            ),
            ("certificate_watch", self.certificate_watch.to_string(), wanted.certificate_watch.to_string()),
            (
                "certificate_watch_interval",
                millis(self.certificate_watch_interval_ms),
                millis(wanted.certificate_watch_interval_ms),
            ),
            (
                "ticket_key_rotation",
                millis(self.ticket_key_rotation_ms),
                millis(wanted.ticket_key_rotation_ms),
            ),
        ];
        let differ = settings.into_iter().filter(|(_, now, wanted)| now != wanted);
        differ.map(|(name, now, wanted)| format!("~ {name}: {now}, then {wanted}")).collect()
    }

    /// Takes over the settings that concern neither listeners, clusters nor a worker's process, and change at once.
    pub fn take_live(&mut self, wanted: &Settings) {
        self.graceful_timeout_ms = wanted.graceful_timeout_ms;
        self.worker_timeout_ms = wanted.worker_timeout_ms;
        self.worker_liveness_ms = wanted.worker_liveness_ms;
        self.worker_automatic_restart = wanted.worker_automatic_restart;
        self.steering = wanted.steering;
        self.rebalance_auto = wanted.rebalance_auto;
        self.rebalance_interval_ms = wanted.rebalance_interval_ms;
        self.rebalance_threshold = wanted.rebalance_threshold;
        self.certificate_watch = wanted.certificate_watch;
        self.certificate_watch_interval_ms = wanted.certificate_watch_interval_ms;
        self.ticket_key_rotation_ms = wanted.ticket_key_rotation_ms;
    }

    /// Names of the settings in which `wanted` differs and which only a start can change.
    pub fn fixed_until_restart(&self, wanted: &Settings) -> Vec<&'static str> {
        let pairs = [
            ("command_socket", self.command_socket != wanted.command_socket),
            ("pid_file_path", self.pid_file_path != wanted.pid_file_path),
            ("handle_process_affinity", self.pin_workers != wanted.pin_workers),
            ("max_connections", self.max_connections != wanted.max_connections),
            ("stop_idle_grace", self.stop_idle_grace_ms != wanted.stop_idle_grace_ms),
            ("max_handshakes", self.max_handshakes != wanted.max_handshakes),
            ("drain_timeout", self.drain_timeout_ms != wanted.drain_timeout_ms),
            ("command_allowed_uids", self.command_allowed_uids != wanted.command_allowed_uids),
            ("saved_state", self.saved_state != wanted.saved_state),
            ("automatic_state_save", self.automatic_state_save != wanted.automatic_state_save),
            ("user", self.user != wanted.user),
            ("group", self.group != wanted.group),
            ("orphan_timeout", self.orphan_timeout_ms != wanted.orphan_timeout_ms),
            ("io_uring_level", self.io_uring_level != wanted.io_uring_level),
            ("buffer_count", self.buffer_count != wanted.buffer_count),
            ("body_memory", self.body_memory != wanted.body_memory),
            ("upstream_max_idle", self.upstream_max_idle != wanted.upstream_max_idle),
            ("upstream_idle_timeout", self.upstream_idle_timeout_ms != wanted.upstream_idle_timeout_ms),
            ("log_level", self.log_level != wanted.log_level),
        ];
        pairs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}
