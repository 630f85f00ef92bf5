//! From checked sections to a [`State`]: what the keys mean together.
//!
//! For each part of the file there is a module: listeners, their TLS, certificates, clusters, frontends, names of hosts.
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
    read::{Section, Values},
};
use crate::{
    limits,
    state::{Listener, Material, Settings, State, Steering, WantedCertificate},
};

mod certificates;
mod cluster;
mod frontend;
mod hostname;
mod listener;
mod tls;

/// How much of a configuration there is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// Some of it, put together from a change: what is absent may be elsewhere.
    Part,
}

/// Puts a state together, and lists the certificates that it needs; what is wrong goes to `findings`. Relative paths are
/// those of `folder`.
pub(super) fn state(
    root: &Section,
    folder: &Path,
    extent: Extent,
    findings: &mut Findings<'_>,
) -> (State, Vec<WantedCertificate>) {
    root.warn_unhonoured(findings);
    let settings = settings(root, folder, findings);
    let mut builder = Builder {
        findings,
        folder,
        skipped: HashSet::new(),
        rules: HashMap::new(),
        hosts: HashMap::new(),
        certificates: Default::default(),
    };
    let mut state = State { settings, ..State::default() };
    state.listeners = builder.listeners(root);
    for (name, offset, section) in root.named_tables("clusters") {
        if name.is_empty() || name.chars().count() > 255 || name.chars().any(char::is_control) {
            builder.findings.error(*offset, |place| ConfigError::BadClusterName { place });
        } else if let Some(cluster) = builder.cluster(name, section, &state.listeners) {
            state.clusters.insert(name.clone(), cluster);
        }
    }
    if extent == Extent::Whole {
        builder.warn_of_missing_certificates(root, &state);
    }
    let mut certificates = builder.wanted_certificates();
    if root.bool("activate_listeners") == Some(false) {
        let offset = root.entry("activate_listeners").map_or(0, |entry| entry.key_offset);
        findings.warn(offset, "`activate_listeners` is `false`: nothing listens, and no frontend is served");
        state.listeners.clear();
        state.clusters.values_mut().for_each(|cluster| cluster.frontends.clear());
        certificates.clear();
    }
    (state, certificates)
}

/// See [`super::certificate_name`].
pub(super) fn certificate_name(name: &str) -> Result<String, &'static str> {
    hostname::check_exact(name).map(|()| hostname::normal(name))
}

/// Overwrites a default where the file says something.
fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

/// `path`, which is relative to `folder` unless it is absolute.
pub(super) fn in_folder(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path.strip_prefix("./").unwrap_or(path))
}

fn settings(root: &Section, folder: &Path, findings: &mut Findings<'_>) -> Settings {
    let mut settings = Settings::default();
    let in_folder = |path: &Path| in_folder(folder, path);
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
    set(&mut settings.max_handshakes, root.integer("max_handshakes"));
    set(&mut settings.graceful_timeout_ms, root.millis("graceful_timeout"));
    set(&mut settings.stop_idle_grace_ms, root.millis("stop_idle_grace"));
    set(&mut settings.drain_timeout_ms, root.millis("drain_timeout"));
    settings.orphan_timeout_ms = root.millis("orphan_timeout");
    set(&mut settings.worker_timeout_ms, root.millis("worker_timeout"));
    set(&mut settings.worker_liveness_ms, root.millis("worker_liveness"));
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
    set(&mut settings.body_memory, root.integer("body_memory"));
    set(&mut settings.upstream_max_idle, root.integer("upstream_max_idle"));
    set(&mut settings.upstream_idle_timeout_ms, root.millis("upstream_idle_timeout"));
    set(&mut settings.certificate_watch, root.bool("certificate_watch"));
    set(&mut settings.certificate_watch_interval_ms, root.millis("certificate_watch_interval"));
    set(&mut settings.ticket_key_rotation_ms, root.millis("ticket_key_rotation"));
    set(&mut settings.log_level, root.text("log_level").map(str::to_owned));
    settings
}

/// What makes two frontends take the same requests: listener, host name, path and method.
type RuleKey = (SocketAddr, String, String, Option<String>);

struct Builder<'a, 'b> {
    findings: &'a mut Findings<'b>,
    /// That of relative paths.
    folder: &'a Path,
    /// Listeners that are configured and not served.
    skipped: HashSet<SocketAddr>,
    /// Where each rule stands (line), and what it leads to.
    rules: HashMap<RuleKey, (usize, frontend::Answer)>,
    /// By listener and host name: what is settled by that name alone.
    hosts: HashMap<(SocketAddr, String), Vec<frontend::Settled>>,
    /// Certificates so far.
    certificates: certificates::AskedFor,
}

impl Builder<'_, '_> {
    /// `section` lacks `key`.
    fn missing(&mut self, section: &Section, key: &'static str) {
        let level = section.level.what;
        self.findings.error(section.offset, |place| ConfigError::MissingKey { place, key, level });
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

    /// The file that a key names.
    fn path_of(&self, section: &Section, key: &str) -> Option<PathBuf> {
        section.text(key).map(|path| in_folder(self.folder, Path::new(path)))
    }

    /// The same, for a file whose content the workers need.
    fn material(&self, section: &Section, key: &str) -> Option<Material> {
        self.path_of(section, key).map(|path| Material { path, ..Material::default() })
    }

    fn warn_at(&mut self, section: &Section, key: &str, text: String) {
        self.findings.warn(section.entry(key).map_or(section.offset, |entry| entry.offset), text);
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
            if let Some(listener) = self.listener(address, protocol, section, root) {
                listeners.insert(address, listener);
                continue;
            }
            self.skipped.insert(address);
            self.findings.warn(
                section.offset,
                format!(
                    "`protocol = \"{protocol}\"` is not supported yet: the listener `{address}` and its frontends are skipped"
                ),
            );
        }
        listeners
    }
}
