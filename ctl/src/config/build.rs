//! From checked sections to a [`State`]: what the keys mean together.
//!
//! Promises: nothing is opened wider than the file says. What cannot be served as asked is refused or skipped, with a
//! warning, never forwarded as if the key were absent.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    error::{ConfigError, Findings, Quoted},
    read::{Inherited, Section, Values},
};
use crate::{
    limits,
    state::{
        Backend, Cluster, ClusterProtocol, Forwarding, Frontend, Listener, ListenerProtocol, PathRule,
        Settings, Sizes, State, Steering, Timeouts,
    },
};

/// Puts a state together; what is wrong goes to `findings`. Relative paths are those of `folder`.
pub(super) fn state(root: &Section, folder: &Path, findings: &mut Findings<'_>) -> State {
    root.warn_unhonoured(findings);
    let settings = settings(root, folder, findings);
    let mut builder = Builder { findings, skipped: HashSet::new(), rules: HashMap::new() };
    let mut state = State { settings, ..State::default() };
    state.listeners = builder.listeners(root);
    for (name, offset, section) in root.named_tables("clusters") {
        if name.is_empty() || name.chars().count() > 255 || name.chars().any(char::is_control) {
            builder.findings.error(*offset, |place| ConfigError::BadClusterName { place });
        } else if let Some(cluster) = builder.cluster(name, section, &state.listeners) {
            state.clusters.insert(name.clone(), cluster);
        }
    }
    if root.bool("activate_listeners") == Some(false) {
        let offset = root.entry("activate_listeners").map_or(0, |entry| entry.key_offset);
        findings.warn(offset, "`activate_listeners` is `false`: nothing listens, and no frontend is served");
        state.listeners.clear();
        state.clusters.values_mut().for_each(|cluster| cluster.frontends.clear());
    }
    state
}

/// Overwrites a default where the file says something.
fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn settings(root: &Section, folder: &Path, findings: &mut Findings<'_>) -> Settings {
    let mut settings = Settings::default();
    let in_folder = |path: &Path| -> PathBuf { folder.join(path.strip_prefix("./").unwrap_or(path)) };
    set(&mut settings.command_socket, root.text("command_socket").map(PathBuf::from));
    settings.command_socket = in_folder(&settings.command_socket);
    if settings.command_socket.as_os_str().len() > limits::MAX_SOCKET_PATH {
        let offset = root.entry("command_socket").map_or(0, |entry| entry.offset);
        let found = Quoted(&settings.command_socket.to_string_lossy()).to_string();
        let allowed = super::keys::Kind::Socket.allowed();
        findings.error(offset, |place| ConfigError::BadValue {
            place,
            key: "command_socket",
            allowed,
            found,
        });
    }
    settings.pid_file_path = root.text("pid_file_path").map(|path| in_folder(Path::new(path)));
    settings.worker_count = root.integer("worker_count");
    // No host has that many: one that does not exist is refused when a worker is tied to it.
    let core = |core: u64| u16::try_from(core).unwrap_or(u16::MAX);
    settings.worker_cores = root.integers("worker_cores").into_iter().map(core).collect();
    if root.text("steering") == Some("cpu") {
        settings.steering = Steering::Cpu;
    }
    settings.rebalance_auto = root.text("rebalance") == Some("auto");
    set(&mut settings.rebalance_interval_ms, root.millis("rebalance_interval"));
    set(&mut settings.rebalance_threshold, root.integer("rebalance_threshold"));
    set(&mut settings.worker_automatic_restart, root.bool("worker_automatic_restart"));
    set(&mut settings.pin_workers, root.bool("handle_process_affinity"));
    set(&mut settings.max_connections, root.integer("max_connections"));
    set(&mut settings.graceful_timeout_ms, root.millis("graceful_timeout"));
    set(&mut settings.drain_timeout_ms, root.millis("drain_timeout"));
    settings.orphan_timeout_ms = root.millis("orphan_timeout");
    settings.command_allowed_uids =
        root.integers("command_allowed_uids").into_iter().map(|uid| uid as u32).collect();
    settings.saved_state = root.text("saved_state").map(|path| in_folder(Path::new(path)));
    set(&mut settings.automatic_state_save, root.bool("automatic_state_save"));
    if settings.automatic_state_save && settings.saved_state.is_none() {
        let offset = root.entry("automatic_state_save").map_or(0, |entry| entry.offset);
        findings.warn(offset, "`automatic_state_save` has no effect without `saved_state`");
    }
    settings.user = root.text("user").map(str::to_owned);
    settings.group = root.text("group").map(str::to_owned);
    settings.io_uring_level = root.integer("io_uring_level");
    set(&mut settings.buffer_count, root.integer("buffer_count"));
    set(&mut settings.upstream_max_idle, root.integer("upstream_max_idle"));
    set(&mut settings.upstream_idle_timeout_ms, root.millis("upstream_idle_timeout"));
    set(&mut settings.log_level, root.text("log_level").map(str::to_owned));
    settings
}

/// What makes two frontends take the same requests: listener, host name, path and method.
type RuleKey = (SocketAddr, String, String, Option<String>);

struct Builder<'a, 'b> {
    findings: &'a mut Findings<'b>,
    /// Listeners that are configured and not served.
    skipped: HashSet<SocketAddr>,
    /// Where each rule stands (line), and what it leads to: a cluster, or a refusal.
    rules: HashMap<RuleKey, (usize, String, bool)>,
}

impl Builder<'_, '_> {
    /// `section` lacks `key`.
    fn missing(&mut self, section: &Section, key: &'static str) {
        let level = section.level.what;
        self.findings.error(section.offset, |place| ConfigError::MissingKey { place, key, level });
    }

    fn listeners(&mut self, root: &Section) -> BTreeMap<SocketAddr, Listener> {
        let mut listeners = BTreeMap::new();
        let mut lines = HashMap::new();
        for section in root.tables("listeners") {
            let Some((address, offset)) = self.required_address(section) else { continue };
            let Some(protocol) = section.text("protocol") else {
                self.missing(section, "protocol");
                continue;
            };
            let line = self.findings.source.line(offset);
            // A datagram socket and a stream socket may share an address.
            if let Some(first) = lines.insert((address, protocol == "udp"), line) {
                self.findings.error(offset, |place| ConfigError::DuplicateListener { place, address, first });
                continue;
            }
            let reason = match protocol {
                "http" if section.bool("expect_proxy") == Some(true) => "`expect_proxy`".to_owned(),
                "http" => {
                    section.warn_unhonoured(self.findings);
                    listeners.insert(address, listener(address, &Inherited { own: section, root }));
                    continue;
                }
                other => format!("`protocol = \"{other}\"`"),
            };
            self.skipped.insert(address);
            self.findings.warn(
                section.offset,
                format!(
                    "{reason} is not supported yet: the listener `{address}` and its frontends are skipped"
                ),
            );
        }
        listeners
    }

    /// The `address` of a listener or a frontend and where it stands.
    fn required_address(&mut self, section: &Section) -> Option<(SocketAddr, usize)> {
        let found =
            section.entry("address").and_then(|entry| Some((section.address("address")?, entry.offset)));
        if found.is_none() {
            self.missing(section, "address");
        }
        found
    }

    fn cluster(
        &mut self,
        name: &str,
        section: &Section,
        listeners: &BTreeMap<SocketAddr, Listener>,
    ) -> Option<Cluster> {
        let Some(protocol) = section.text("protocol") else {
            self.missing(section, "protocol");
            return None;
        };
        if protocol != "http" {
            let name = Quoted(name);
            self.findings.warn(
                section.offset,
                format!("`protocol = \"{protocol}\"` is not supported yet: the cluster {name} is skipped"),
            );
            return None;
        }
        section.warn_unhonoured(self.findings);
        if let Some(policy) = section.text("load_balancing").filter(|policy| *policy != "ROUND_ROBIN") {
            let offset = section.entry("load_balancing").map_or(section.offset, |entry| entry.offset);
            let text =
                format!("`load_balancing = \"{policy}\"` is not supported yet: treated as `ROUND_ROBIN`");
            self.findings.warn(offset, text);
        }
        Some(Cluster {
            protocol: ClusterProtocol::Http,
            send_proxy: false,
            tls: None,
            https_redirect: section.bool("https_redirect").unwrap_or(false),
            https_redirect_port: section.integer("https_redirect_port").filter(|port| *port != 443),
            frontends: section
                .tables("frontends")
                .iter()
                .filter_map(|frontend| self.frontend(name, frontend, listeners))
                .collect(),
            backends: self.backends(name, section),
        })
    }

    /// `None` if it is wrong, or its listener is skipped.
    fn frontend(
        &mut self,
        cluster: &str,
        section: &Section,
        listeners: &BTreeMap<SocketAddr, Listener>,
    ) -> Option<Frontend> {
        let (address, offset) = self.required_address(section)?;
        if !listeners.contains_key(&address) {
            if !self.skipped.contains(&address) {
                self.findings.error(offset, |place| ConfigError::NoListener { place, address });
            }
            return None;
        }
        let Some(hostname) = section.text("hostname") else {
            self.missing(section, "hostname");
            return None;
        };
        if let Err(reason) = check_hostname(hostname) {
            let offset = section.entry("hostname").map_or(section.offset, |entry| entry.offset);
            let hostname = hostname.to_owned();
            self.findings.error(offset, |place| ConfigError::BadHostname { place, hostname, reason });
            return None;
        }
        section.warn_unhonoured(self.findings);
        let frontend = Frontend {
            address,
            hostname: hostname.to_owned(),
            path: self.path(section),
            method: section.text("method").map(str::to_owned),
            deny: self.deny(section),
            tls: None,
        };
        if let Some(position) = section.text("position").filter(|position| *position != "TREE") {
            self.warn_at(
                section,
                "position",
                format!("`position = \"{position}\"` is not supported yet: treated as `TREE`"),
            );
        }
        self.check_unique(cluster, section, &frontend);
        Some(frontend)
    }

    /// Whether requests are refused: because the file says so, or because what it says cannot be done yet.
    fn deny(&mut self, section: &Section) -> bool {
        let mut deny = false;
        match section.text("redirect") {
            Some("unauthorized") => deny = true,
            Some("permanent") => {
                deny = true;
                let text = "`redirect = \"permanent\"` is not supported yet: the frontend refuses every request (401)";
                self.warn_at(section, "redirect", text.to_owned());
            }
            _ => {}
        }
        if section.bool("required_auth") == Some(true) {
            deny = true;
            let text = "`required_auth` is not supported yet: the frontend refuses every request (401)";
            self.warn_at(section, "required_auth", text.to_owned());
        }
        deny
    }

    fn path(&mut self, section: &Section) -> PathRule {
        let path = section.text("path").unwrap_or_default();
        let kind = section.text("path_type").unwrap_or("PREFIX");
        if kind != "REGEX" && path.contains(['?', '#']) {
            let text = "a `path` is compared without the query: one with `?` or `#` never matches";
            self.warn_at(section, "path", text.to_owned());
        } else if kind != "REGEX" && !path.is_empty() && !path.starts_with(['/', '*']) {
            self.warn_at(section, "path", "a `path` that does not begin with `/` never matches".to_owned());
        }
        let path = path.to_owned();
        match kind {
            "EQUALS" => PathRule::Equals(path),
            "REGEX" => PathRule::Regex(path),
            _ => PathRule::Prefix(path),
        }
    }

    fn warn_at(&mut self, section: &Section, key: &str, text: String) {
        self.findings.warn(section.entry(key).map_or(section.offset, |entry| entry.offset), text);
    }

    /// Two frontends for the same requests must lead to the same answer.
    fn check_unique(&mut self, cluster: &str, section: &Section, frontend: &Frontend) {
        let path = match &frontend.path {
            PathRule::Prefix(path) => format!("PREFIX {path}"),
            PathRule::Equals(path) => format!("EQUALS {path}"),
            PathRule::Regex(path) => format!("REGEX {path}"),
        };
        let rule = (frontend.address, frontend.hostname.to_ascii_lowercase(), path, frontend.method.clone());
        let this = (self.findings.source.line(section.offset), cluster.to_owned(), frontend.deny);
        let other = self.rules.entry(rule).or_insert_with(|| this.clone());
        if (&other.1, other.2) != (&this.1, this.2) {
            let other = other.0;
            self.findings.error(section.offset, |place| ConfigError::DuplicateFrontend { place, other });
        }
    }

    fn backends(&mut self, cluster: &str, section: &Section) -> Vec<Backend> {
        let mut backends = Vec::new();
        let mut lines = HashMap::new();
        for (place_in_list, section) in section.tables("backends").iter().enumerate() {
            let Some(address) = section.backend_address("address").cloned() else {
                self.missing(section, "address");
                continue;
            };
            section.warn_unhonoured(self.findings);
            let named = section.text("backend_id").map(str::to_owned);
            let id = named.unwrap_or_else(|| format!("{cluster}-{place_in_list}-{address}"));
            let offset = section.entry("backend_id").map_or(section.offset, |entry| entry.offset);
            if let Some(first) = lines.insert(id.clone(), self.findings.source.line(offset)) {
                let cluster = cluster.to_owned();
                self.findings.error(offset, |place| ConfigError::DuplicateBackend {
                    place,
                    cluster,
                    id,
                    first,
                });
                continue;
            }
            backends.push(Backend {
                id,
                address,
                weight: section.integer("weight").unwrap_or(100),
                backup: section.bool("backup").unwrap_or(false),
            });
        }
        backends
    }
}

fn listener(address: SocketAddr, keys: &Inherited<'_>) -> Listener {
    Listener {
        address,
        protocol: ListenerProtocol::Http,
        active: keys.own.bool("active").unwrap_or(true),
        public_address: keys.own.address("public_address"),
        timeouts: timeouts(keys),
        sizes: sizes(keys),
        forwarding: forwarding(keys),
        expect_proxy: false,
        proxy_peers: crate::state::proxy_peers(),
        tls: None,
    }
}

fn timeouts(keys: &impl Values) -> Timeouts {
    let mut timeouts = Timeouts::default();
    set(&mut timeouts.request_ms, keys.millis("request_timeout"));
    set(&mut timeouts.front_ms, keys.millis("front_timeout"));
    set(&mut timeouts.back_ms, keys.millis("back_timeout"));
    set(&mut timeouts.connect_ms, keys.millis("connect_timeout"));
    set(&mut timeouts.body_ms, keys.millis("body_timeout"));
    set(&mut timeouts.body_min_rate, keys.integer("body_min_rate"));
    set(&mut timeouts.tunnel_ms, keys.millis("tunnel_timeout"));
    set(&mut timeouts.continue_ms, keys.millis("continue_timeout"));
    timeouts
}

fn sizes(keys: &impl Values) -> Sizes {
    let mut sizes = Sizes::default();
    set(&mut sizes.head, keys.integer("max_head_size"));
    set(&mut sizes.fields, keys.integer("max_head_fields"));
    set(&mut sizes.target, keys.integer("max_target_size"));
    set(&mut sizes.response_head, keys.integer("max_response_head_size"));
    set(&mut sizes.body, keys.integer("max_body_size"));
    sizes
}

fn forwarding(keys: &Inherited<'_>) -> Forwarding {
    let mut forwarding = Forwarding::default();
    set(&mut forwarding.x_forwarded_for, keys.bool("x_forwarded_for"));
    set(&mut forwarding.x_forwarded_proto, keys.bool("x_forwarded_proto"));
    set(&mut forwarding.x_forwarded_port, keys.bool("x_forwarded_port"));
    set(&mut forwarding.x_forwarded_host, keys.bool("x_forwarded_host"));
    set(&mut forwarding.forwarded, keys.bool("forwarded"));
    set(&mut forwarding.via, keys.bool("via"));
    set(&mut forwarding.x_request_id, keys.bool("x_request_id"));
    set(&mut forwarding.x_real_ip, keys.own.bool("send_x_real_ip"));
    set(&mut forwarding.elide_x_real_ip, keys.own.bool("elide_x_real_ip"));
    set(&mut forwarding.trusted_peers, keys.networks("trusted_peers"));
    forwarding
}

/// What can be said of a host name without compiling its regular expressions, which the engine does.
fn check_hostname(hostname: &str) -> Result<(), &'static str> {
    let (has_regex, is_any) = (hostname.contains('/'), hostname == "*");
    if hostname.len() > limits::MAX_HOSTNAME_RULE {
        return Err("it is longer than 4096 bytes");
    }
    if hostname.bytes().any(|byte| byte.is_ascii_control()) || (!has_regex && hostname.contains(' ')) {
        return Err("it has spaces or control characters");
    }
    if has_regex || is_any {
        return Ok(());
    }
    if !hostname.is_ascii() {
        return Err("write it in its ASCII form (`xn--...`)");
    }
    if hostname.strip_prefix("*.").unwrap_or(hostname).contains('*') {
        return Err("`*` may only be the first label (`*.example.org`), or the whole name");
    }
    if hostname.starts_with('.') || hostname.contains("..") {
        return Err("it has an empty label");
    }
    if !hostname.starts_with('[') && hostname.contains(':') {
        return Err("write it without a port");
    }
    Ok(())
}
