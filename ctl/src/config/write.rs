//! A state as the text of a file that loads again to the same state.
//!
//! What is as it is without its key is left out. The text is what `kakehictl config dump` shows, and the way in which
//! changes that do not come out of a file are checked: what can be written as a file and read back unchanged is
//! as right as a file.
//!
//! Of certificates, the paths of their files are written. Those that came over the command socket have none, and are named
//! in a comment.

use std::{fmt::Write as _, path::Path};

use toml::{Table, Value};

use crate::state::{
    self, Backend, BackendTls, CertificateFiles, CipherSuite, ClientAuth, Cluster, ClusterProtocol,
    Forwarding, Frontend, Group, Hsts, Listener, ListenerProtocol, PathRule, Settings, Sizes, State,
    Steering, Timeouts, Tls, TlsVersion, UnknownName, WantedCertificate,
};

/// The text of a file with everything that `state` has.
pub fn write(state: &State) -> String {
    let mut root = settings(&state.settings);
    let wanted = state.wanted_certificates();
    let with_certificates = |it: &Listener| {
        let mut table = Writer(listener(it));
        let of_it = wanted.iter().filter(|certificate| certificate.address == it.address);
        let tables: Vec<Value> = of_it.map(|it| Value::Table(certificate(it))).collect();
        table.unless(Vec::new(), "certificates", tables);
        Value::Table(table.0)
    };
    let listeners: Vec<Value> = state.listeners.values().map(with_certificates).collect();
    if !listeners.is_empty() {
        root.insert("listeners".to_owned(), Value::Array(listeners));
    }
    let clusters: Table =
        state.clusters.iter().map(|(name, it)| (name.clone(), Value::Table(cluster(it)))).collect();
    if !clusters.is_empty() {
        root.insert("clusters".to_owned(), Value::Table(clusters));
    }
    // Every value in it is one that TOML has.
    without_files(state) + &toml::to_string(&root).unwrap_or_default()
}

/// A comment that names the certificates that no file can have.
fn without_files(state: &State) -> String {
    let mut text = String::new();
    for (address, certificates) in &state.certificates {
        for (fingerprint, _) in certificates.iter().filter(|(_, it)| it.files.is_none()) {
            if text.is_empty() {
                text.push_str(
                    "# Certificates that came over the command socket and have no files are left out:\n",
                );
            }
            let _ = writeln!(text, "#   {fingerprint} of the listener {address}");
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn certificate(wanted: &WantedCertificate) -> Table {
    let mut table = Writer::default();
    let CertificateFiles { certificate, chain, key } = &wanted.files;
    table.always("certificate", text(certificate));
    table.if_some("certificate_chain", chain.as_deref().map(text));
    table.always("key", text(key));
    table.texts("names", &[], wanted.names.iter().map(String::as_str));
    table.unless(false, "default", wanted.default);
    table.0
}

/// The keys of a listener.
pub fn listener(listener: &Listener) -> Table {
    let mut table = Writer::default();
    table.always("address", listener.address.to_string());
    table.always(
        "protocol",
        match listener.protocol {
            ListenerProtocol::Http => "http",
            ListenerProtocol::Https => "https",
            ListenerProtocol::Tcp => "tcp",
        },
    );
    table.unless(true, "active", listener.active);
    table.unless(false, "expect_proxy", listener.expect_proxy);
    table.unless(false, "abort_on_close", listener.abort_on_close);
    if listener.proxy_peers != state::proxy_peers() {
        let peers: Vec<Value> = listener.proxy_peers.iter().map(|it| it.to_string().into()).collect();
        table.always("proxy_protocol_from", peers);
    }
    table.if_some("public_address", listener.public_address.map(|address| address.to_string()));
    let (now, usual) = (&listener.timeouts, Timeouts::default());
    table.millis("request_timeout", now.request_ms, usual.request_ms);
    table.millis("front_timeout", now.front_ms, usual.front_ms);
    table.millis("back_timeout", now.back_ms, usual.back_ms);
    table.millis("connect_timeout", now.connect_ms, usual.connect_ms);
    table.millis("body_timeout", now.body_ms, usual.body_ms);
    table.unless(usual.body_min_rate, "body_min_rate", now.body_min_rate);
    table.unless(usual.response_min_rate, "response_min_rate", now.response_min_rate);
    table.millis("max_response_time", now.response_ms, usual.response_ms);
    table.millis("lingering_time", now.lingering_ms, usual.lingering_ms);
    table.millis("lingering_timeout", now.lingering_idle_ms, usual.lingering_idle_ms);
    table.millis("tunnel_timeout", now.tunnel_ms, usual.tunnel_ms);
    table.millis("continue_timeout", now.continue_ms, usual.continue_ms);
    let (now, usual) = (&listener.sizes, Sizes::default());
    table.unless(usual.head, "max_head_size", now.head);
    table.unless(usual.fields.into(), "max_head_fields", u32::from(now.fields));
    table.unless(usual.target, "max_target_size", now.target);
    table.unless(usual.response_head, "max_response_head_size", now.response_head);
    table.unless(whole(usual.body), "max_body_size", whole(now.body));
    let (now, usual) = (&listener.forwarding, Forwarding::default());
    for (key, now, usual) in [
        ("x_forwarded_for", now.x_forwarded_for, usual.x_forwarded_for),
        ("x_forwarded_proto", now.x_forwarded_proto, usual.x_forwarded_proto),
        ("x_forwarded_port", now.x_forwarded_port, usual.x_forwarded_port),
        ("x_forwarded_host", now.x_forwarded_host, usual.x_forwarded_host),
        ("forwarded", now.forwarded, usual.forwarded),
        ("via", now.via, usual.via),
        ("x_request_id", now.x_request_id, usual.x_request_id),
        ("send_x_real_ip", now.x_real_ip, usual.x_real_ip),
        ("elide_x_real_ip", now.elide_x_real_ip, usual.elide_x_real_ip),
        ("underscores_in_headers", now.underscores, usual.underscores),
    ] {
        table.unless(usual, key, now);
    }
    let peers: Vec<Value> = now.trusted_peers.iter().map(|network| network.to_string().into()).collect();
    table.unless(Vec::new(), "trusted_peers", peers);
    if let Some(tls) = &listener.tls {
        table.tls(tls);
    }
    table.0
}

/// The keys of a cluster, with its frontends and backends.
pub fn cluster(cluster: &Cluster) -> Table {
    let mut table = Writer::default();
    table.always(
        "protocol",
        match cluster.protocol {
            ClusterProtocol::Http => "http",
            ClusterProtocol::Tcp => "tcp",
        },
    );
    table.unless(false, "send_proxy", cluster.send_proxy);
    table.if_some("backend_tls", cluster.tls.as_deref().map(backend_tls));
    table.unless(false, "https_redirect", cluster.https_redirect);
    table.if_some("https_redirect_port", cluster.https_redirect_port.map(u32::from));
    let frontends: Vec<Value> = cluster.frontends.iter().map(|it| Value::Table(frontend(it))).collect();
    table.unless(Vec::new(), "frontends", frontends);
    let backends: Vec<Value> = cluster.backends.iter().map(|it| Value::Table(backend(it))).collect();
    table.unless(Vec::new(), "backends", backends);
    table.0
}

/// The keys of a frontend.
pub fn frontend(frontend: &Frontend) -> Table {
    let mut table = Writer::default();
    table.always("address", frontend.address.to_string());
    table.always("hostname", frontend.hostname.as_str());
    let (kind, path) = match &frontend.path {
        PathRule::Prefix(path) => ("PREFIX", path),
        PathRule::Equals(path) => ("EQUALS", path),
        PathRule::Regex(path) => ("REGEX", path),
    };
    table.unless("PREFIX", "path_type", kind);
    table.unless("", "path", path.as_str());
    table.if_some("method", frontend.method.clone());
    if frontend.deny {
        table.always("redirect", "unauthorized");
    }
    if let Some(tls) = &frontend.tls {
        if let Some(versions) = &tls.versions {
            table.texts("tls_versions", &[], versions.iter().map(|it| it.name()));
        }
        table.client_auth(tls.client_auth.as_ref());
        table.if_some("hsts", tls.hsts.as_ref().map(hsts));
    }
    table.0
}

fn backend_tls(tls: &BackendTls) -> Table {
    let mut table = Writer::default();
    table.always("ca", text(&tls.ca.path));
    table.if_some("server_name", tls.server_name.clone());
    if let Some((chain, key)) = &tls.client {
        table.always("certificate", text(&chain.path));
        table.always("key", text(&key.path));
    }
    table.texts("alpn", &["http/1.1"], tls.alpn.iter().map(String::as_str));
    table.0
}

fn hsts(hsts: &Hsts) -> Table {
    let mut table = Writer::default();
    table.always("enabled", hsts.enabled);
    table.unless(31_536_000, "max_age", hsts.max_age);
    table.unless(false, "include_subdomains", hsts.include_subdomains);
    table.unless(false, "preload", hsts.preload);
    table.unless(false, "force_replace_backend", hsts.force_replace_backend);
    table.0
}

/// The keys of a backend.
pub fn backend(backend: &Backend) -> Table {
    let mut table = Writer::default();
    table.always("address", backend.address.to_string());
    table.always("backend_id", backend.id.as_str());
    table.unless(100, "weight", u32::from(backend.weight));
    table.unless(false, "backup", backend.backup);
    table.0
}

fn settings(now: &Settings) -> Table {
    let usual = Settings::default();
    let mut table = Writer::default();
    table.always("command_socket", text(&now.command_socket));
    table.if_some("pid_file_path", now.pid_file_path.as_deref().map(text));
    table.if_some("worker_count", now.worker_count.map(u32::from));
    let cores: Vec<Value> = now.worker_cores.iter().map(|core| i64::from(*core).into()).collect();
    table.unless(Vec::new(), "worker_cores", cores);
    if now.steering == Steering::Cpu {
        table.always("steering", "cpu");
    }
    if now.rebalance_auto {
        table.always("rebalance", "auto");
    }
    table.millis("rebalance_interval", now.rebalance_interval_ms, usual.rebalance_interval_ms);
    table.unless(
        u32::from(usual.rebalance_threshold),
        "rebalance_threshold",
        u32::from(now.rebalance_threshold),
    );
    table.unless(usual.worker_automatic_restart, "worker_automatic_restart", now.worker_automatic_restart);
    table.unless(usual.pin_workers, "handle_process_affinity", now.pin_workers);
    table.unless(usual.max_connections, "max_connections", now.max_connections);
    table.unless(usual.max_handshakes, "max_handshakes", now.max_handshakes);
    table.millis("graceful_timeout", now.graceful_timeout_ms, usual.graceful_timeout_ms);
    table.millis("stop_idle_grace", now.stop_idle_grace_ms, usual.stop_idle_grace_ms);
    table.millis("drain_timeout", now.drain_timeout_ms, usual.drain_timeout_ms);
    table.if_some("orphan_timeout", now.orphan_timeout_ms.map(seconds));
    table.millis("worker_timeout", now.worker_timeout_ms, usual.worker_timeout_ms);
    table.millis("worker_liveness", now.worker_liveness_ms, usual.worker_liveness_ms);
    let uids: Vec<Value> = now.command_allowed_uids.iter().map(|uid| i64::from(*uid).into()).collect();
    table.unless(Vec::new(), "command_allowed_uids", uids);
    table.if_some("saved_state", now.saved_state.as_deref().map(text));
    table.unless(usual.automatic_state_save, "automatic_state_save", now.automatic_state_save);
    table.if_some("user", now.user.clone());
    table.if_some("group", now.group.clone());
    table.if_some("io_uring_level", now.io_uring_level.map(u32::from));
    table.unless(u32::from(usual.buffer_count), "buffer_count", u32::from(now.buffer_count));
    table.unless(whole(usual.body_memory), "body_memory", whole(now.body_memory));
    table.unless(usual.upstream_max_idle, "upstream_max_idle", now.upstream_max_idle);
    table.millis("upstream_idle_timeout", now.upstream_idle_timeout_ms, usual.upstream_idle_timeout_ms);
    table.unless(usual.certificate_watch, "certificate_watch", now.certificate_watch);
    table.millis(
        "certificate_watch_interval",
        now.certificate_watch_interval_ms,
        usual.certificate_watch_interval_ms,
    );
    table.millis("ticket_key_rotation", now.ticket_key_rotation_ms, usual.ticket_key_rotation_ms);
    table.unless(usual.log_level.as_str(), "log_level", now.log_level.as_str());
    table.0
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// TOML has no larger integers; the keys allow none either.
fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Milliseconds as seconds: whole ones where they are.
fn seconds(millis: u64) -> Value {
    match millis % 1000 {
        0 => Value::Integer(whole(millis / 1000)),
        _ => Value::Float(millis as f64 / 1000.0),
    }
}

#[derive(Default)]
struct Writer(Table);

impl Writer {
    fn always(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn unless<T: PartialEq + Into<Value>>(&mut self, usual: T, key: &str, value: T) {
        if value != usual {
            self.always(key, value);
        }
    }

    fn if_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.always(key, value);
        }
    }

    fn millis(&mut self, key: &str, value: u64, usual: u64) {
        if value != usual {
            self.always(key, seconds(value));
        }
    }
    /// A list of words.
    fn texts<'a>(&mut self, key: &str, usual: &[&str], texts: impl Iterator<Item = &'a str>) {
        let texts: Vec<&str> = texts.collect();
        if texts != usual {
            self.always(key, texts.into_iter().map(Value::from).collect::<Vec<_>>());
        }
    }

    /// What a listener says of TLS.
    fn tls(&mut self, now: &Tls) {
        let usual = Tls::default();
        let of_versions = |it: &Tls| it.versions.iter().map(|it| TlsVersion::name(*it)).collect::<Vec<_>>();
        let of_suites =
            |it: &Tls| it.cipher_suites.iter().map(|it| CipherSuite::name(*it)).collect::<Vec<_>>();
        let of_groups = |it: &Tls| it.groups.iter().map(|it| Group::name(*it)).collect::<Vec<_>>();
        self.texts("tls_versions", &of_versions(&usual), of_versions(now).into_iter());
        self.texts("cipher_list", &of_suites(&usual), of_suites(now).into_iter());
        self.texts("groups_list", &of_groups(&usual), of_groups(now).into_iter());
        self.texts("alpn_protocols", &["http/1.1"], now.alpn.iter().map(String::as_str));
        self.unless(u32::from(usual.tickets), "send_tls13_tickets", now.tickets.into());
        self.millis("handshake_timeout", now.handshake_ms, usual.handshake_ms);
        self.unless(usual.strict_sni, "strict_sni_binding", now.strict_sni);
        if now.unknown_name == UnknownName::Refuse {
            self.always("unknown_sni", "refuse");
        }
        self.client_auth(now.client_auth.as_ref());
        self.if_some("hsts", now.hsts.as_ref().map(hsts));
    }

    fn client_auth(&mut self, now: Option<&ClientAuth>) {
        if let Some(now) = now {
            self.always("client_ca", text(&now.ca.path));
            self.if_some("client_crl", now.crl.as_ref().map(|crl| text(&crl.path)));
            if !now.required {
                self.always("client_auth", "optional");
            }
        }
    }
}
