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
    keys::{Kind, in_folder},
    limits,
    state::{Listener, Material, Settings, State, WantedCertificate},
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

fn settings(root: &Section, folder: &Path, findings: &mut Findings<'_>) -> Settings {
    let mut settings = Settings::default();
    settings.command_socket = in_folder(folder, &settings.command_socket);
    settings.read_keys(root, root, folder);
    if settings.command_socket.as_os_str().len() > limits::MAX_SOCKET_PATH {
        let offset = root.entry("command_socket").map_or(0, |entry| entry.offset);
        let found = Quoted(&settings.command_socket.to_string_lossy()).to_string();
        let allowed = Kind::Socket.allowed();
        findings.error(offset, |place| ConfigError::BadValue {
            place,
            key: "command_socket",
            allowed,
            found,
        });
    }
    if settings.automatic_state_save && settings.saved_state.is_none() {
        let offset = root.entry("automatic_state_save").map_or(0, |entry| entry.offset);
        findings.warn(offset, "`automatic_state_save` has no effect without `saved_state`");
    }
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
