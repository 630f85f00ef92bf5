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

use crate::layers::Owner;
use crate::state::{
    Answers, Backend, BackendTls, CertificateFiles, CipherSuite, ClientAuth, Cluster, Frontend,
    FrontendLimits, Group, HeaderEdit, HealthCheck, Hsts, Listener, Material, PathRule, Predicate,
    ProbeHeader, RateLimit, Redirect, Settings, SplitPart, State, Tls, TlsVersion, WantedCertificate,
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
    whose(state) + &without_files(state) + &toml::to_string(&root).unwrap_or_default()
}

/// A comment that names what is by hand: `+` is not in the file that was read last, `-` is only there, `~` has other keys.
fn whose(state: &State) -> String {
    let (lines, owner) = (state.describe_by_hand(), Owner::Hand.words());
    let mut text: String = lines.iter().map(|line| format!("# {owner}: {}\n", printable(line))).collect();
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// What must not end a comment.
fn printable(line: &str) -> String {
    line.chars().filter(|it| !it.is_control()).collect()
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
    listener.write_keys(&mut table.0);
    listener.timeouts.write_keys(&mut table.0);
    listener.sizes.write_keys(&mut table.0);
    listener.forwarding.write_keys(&mut table.0);
    listener.sources.write_keys(&mut table.0);
    table.rates(&listener.rates);
    table.answers(&listener.answers);
    if let Some(tls) = &listener.tls {
        table.tls(tls);
    }
    table.0
}

/// The keys of a cluster, with its frontends and backends.
pub fn cluster(cluster: &Cluster) -> Table {
    let mut table = Writer::default();
    cluster.write_keys(&mut table.0);
    if let Some(balancing) = &cluster.balancing {
        balancing.write_keys(&mut table.0);
    }
    if let Some(admission) = &cluster.admission {
        admission.write_keys(&mut table.0);
    }
    if let Some(retries) = &cluster.retries {
        retries.write_keys(&mut table.0);
    }
    if let Some(passive) = &cluster.passive {
        let mut keys = Table::new();
        passive.write_keys(&mut keys);
        table.always("passive", if passive.enabled { Value::Table(keys) } else { Value::Boolean(false) });
    }
    if let Some(limits) = &cluster.limits {
        limits.write_keys(&mut table.0);
        table.rates(&limits.rates);
    }
    table.if_some("backend_tls", cluster.tls.as_deref().map(backend_tls));
    table.answers(&cluster.answers);
    table.if_some("health_check", cluster.health.as_deref().map(health_check));
    let frontends: Vec<Value> = cluster.frontends.iter().map(|it| Value::Table(frontend(it))).collect();
    table.unless(Vec::new(), "frontends", frontends);
    let backends: Vec<Value> = cluster.backends.iter().map(|it| Value::Table(backend(it))).collect();
    table.unless(Vec::new(), "backends", backends);
    table.0
}

/// The keys of a frontend.
pub fn frontend(frontend: &Frontend) -> Table {
    let mut table = Writer::default();
    frontend.write_keys(&mut table.0);
    let (kind, path) = match &frontend.path {
        PathRule::Prefix(path) => ("PREFIX", path),
        PathRule::Equals(path) => ("EQUALS", path),
        PathRule::Regex(path) => ("REGEX", path),
    };
    table.unless("PREFIX", "path_type", kind);
    table.unless("", "path", path.as_str());
    if let Some(predicates) = &frontend.predicates {
        predicates.write_keys(&mut table.0);
        for (key, kind) in predicates.kinds() {
            table.unless(Vec::new(), key, tables(kind, Predicate::write_keys));
        }
    }
    let redirect = if frontend.deny { Redirect::Unauthorized } else { frontend.redirect };
    table.unless(Redirect::Forward.word(), "redirect", redirect.word());
    if let Some(rewrite) = &frontend.rewrite {
        rewrite.write_keys(&mut table.0);
    }
    table.if_some("redirect_template", frontend.redirect_template.as_ref().map(|it| it.to_value()));
    table.unless(Vec::new(), "headers", tables(&frontend.headers, HeaderEdit::write_keys));
    if let Some(split) = &frontend.split {
        split.write_keys(&mut table.0);
        table.unless(Vec::new(), "split", tables(&split.parts, SplitPart::write_keys));
    }
    if let Some(limits) = &frontend.limits {
        table.0.extend(frontend_limits(limits));
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

/// What a frontend says of how much may come from whom.
pub(super) fn frontend_limits(limits: &FrontendLimits) -> Table {
    let mut table = Writer::default();
    limits.write_keys(&mut table.0);
    limits.sources.write_keys(&mut table.0);
    table.rates(&limits.rates);
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

fn health_check(check: &HealthCheck) -> Table {
    let mut table = Writer::default();
    check.write_keys(&mut table.0);
    table.if_some("tls", check.tls.as_deref().map(backend_tls));
    table.unless(Vec::new(), "headers", tables(&check.headers, ProbeHeader::write_keys));
    table.0
}

fn hsts(hsts: &Hsts) -> Table {
    let mut table = Table::new();
    hsts.write_keys(&mut table);
    table
}

/// The keys of a backend.
pub fn backend(backend: &Backend) -> Table {
    let mut table = Table::new();
    backend.write_keys(&mut table);
    table
}

/// The keys of the whole process.
pub fn settings(settings: &Settings) -> Table {
    let mut table = Table::new();
    settings.write_keys(&mut table);
    let mut admin = Table::new();
    settings.admin.write_keys(&mut admin);
    if !admin.is_empty() {
        table.insert("admin".to_owned(), admin.into());
    }
    table
}

/// A table of each.
fn tables<T>(items: &[T], write_keys: impl Fn(&T, &mut Table)) -> Vec<Value> {
    let table = |item| {
        let mut keys = Table::new();
        write_keys(item, &mut keys);
        Value::Table(keys)
    };
    items.iter().map(table).collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
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

    /// A list of words.
    fn texts<'a>(&mut self, key: &str, usual: &[&str], texts: impl Iterator<Item = &'a str>) {
        let texts: Vec<&str> = texts.collect();
        if texts != usual {
            self.always(key, texts.into_iter().map(Value::from).collect::<Vec<_>>());
        }
    }

    /// Rate limits, if there are any.
    fn rates(&mut self, rates: &[RateLimit]) {
        self.unless(Vec::new(), "rate_limits", tables(rates, RateLimit::write_keys));
    }

    /// Own answers, if there are any.
    fn answers(&mut self, answers: &Answers) {
        let texts = answers.0.iter().map(|(status, it)| (status.to_string(), it.to_value().into()));
        self.unless(Table::new(), "answers", texts.collect::<Table>());
    }

    /// What a listener says of TLS.
    fn tls(&mut self, now: &Tls) {
        now.write_keys(&mut self.0);
        let usual = Tls::default();
        let of_versions = |it: &Tls| it.versions.iter().map(|it| TlsVersion::name(*it)).collect::<Vec<_>>();
        let of_suites =
            |it: &Tls| it.cipher_suites.iter().map(|it| CipherSuite::name(*it)).collect::<Vec<_>>();
        let of_groups = |it: &Tls| it.groups.iter().map(|it| Group::name(*it)).collect::<Vec<_>>();
        self.texts("tls_versions", &of_versions(&usual), of_versions(now).into_iter());
        self.texts("cipher_list", &of_suites(&usual), of_suites(now).into_iter());
        self.texts("groups_list", &of_groups(&usual), of_groups(now).into_iter());
        self.texts("alpn_protocols", &["http/1.1"], now.alpn.iter().map(String::as_str));
        self.client_auth(now.client_auth.as_ref());
        self.if_some("hsts", now.hsts.as_ref().map(hsts));
    }

    fn client_auth(&mut self, now: Option<&ClientAuth>) {
        if let Some(now) = now {
            self.materials("client_ca", "client_ca_certificates", now.cas());
            self.materials("client_crl", "client_ca_crls", now.crls());
            if !now.required {
                self.always("client_auth", "optional");
            }
        }
    }

    /// Files under a key for one or, where there are more, under one for a list.
    fn materials<'a>(&mut self, one: &str, list: &str, materials: impl Iterator<Item = &'a Material>) {
        let paths: Vec<_> = materials.map(|material| text(&material.path)).collect();
        match &paths[..] {
            [] => {}
            [only] => self.always(one, only.as_str()),
            _ => self.always(list, paths),
        }
    }
}
