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
    error::{ConfigError, Quoted},
    faults::LeftOut,
    findings::Findings,
    pieces::Text,
    places::Places,
    read::{self, Section, Values},
};
use crate::{
    change::FrontendRule,
    keys::{Kind, in_folder},
    limits,
    state::{Cluster, FileMode, Listener, Material, Pages, Settings, State, WantedCertificate},
};

mod address;
mod admin;
mod answers;
mod certificates;
mod cluster;
mod frontend;
mod health;
mod hostname;
mod listener;
mod sources;
mod split;
mod tls;

/// How much of a configuration there is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// Some of it, put together from a change: what is absent may be elsewhere.
    Part,
}

/// What is made of a file.
#[derive(Default)]
pub(super) struct Built {
    pub state: State,
    /// Certificates that it asks for.
    pub certificates: Vec<WantedCertificate>,
    pub places: Places,
    pub left_out: LeftOut,
}

/// Puts a state together of `root` and of `clusters`, which are read one by one, and lists the certificates that it needs; what is
/// wrong goes to `findings`. Relative paths are those of `folder`.
pub(super) fn state<'t>(
    root: &Section,
    clusters: impl Iterator<Item = Text<'t>>,
    folder: &Path,
    extent: Extent,
    pages: Pages,
    findings: &mut Findings<'_>,
) -> Built {
    root.warn_unhonoured(findings);
    let mut settings = settings(root, folder, findings);
    settings.admin = admin::admin(root, folder, extent, findings);
    let mut builder = Builder {
        findings,
        folder,
        extent,
        skipped: HashSet::new(),
        made_up: HashMap::new(),
        rules: Default::default(),
        certificates: Default::default(),
        pages,
        page_bytes: 0,
        asking: Vec::new(),
        in_turn: Vec::new(),
        highest_order: 0,
        left_out: LeftOut::default(),
        divided: Vec::new(),
    };
    let mut state = State { settings, ..State::default() };
    state.listeners = builder.listeners(root);
    let mut built = Vec::new();
    builder.clusters(root, root, &mut state.listeners, &mut built);
    for text in clusters {
        if let Some(of_one) = read::root(&text, builder.findings) {
            builder.clusters(&of_one, root, &mut state.listeners, &mut built);
        }
    }
    // All at once, as a tree that grows one by one takes twice the memory.
    state.clusters = built.into_iter().collect();
    if extent == Extent::Whole {
        builder.warn_of_ipv6_only(root, &state.listeners);
        builder.warn_of_longer_paths(&state);
        builder.check_splits(&state);
        admin::check_listeners(root, &state.settings.admin, &state.listeners, builder.findings);
        builder.warn_of_missing_certificates(root, &state);
    }
    let (rules, written) = (std::mem::take(&mut builder.in_turn), builder.highest_order);
    let mut places = Places::new(rules, written);
    let left_out = std::mem::take(&mut builder.left_out);
    let mut certificates = builder.wanted_certificates();
    if root.bool("activate_listeners") == Some(false) {
        let offset = root.entry("activate_listeners").map_or(0, |entry| entry.key_offset);
        findings.warn(offset, "`activate_listeners` is `false`: nothing listens, and no frontend is served");
        state.listeners.clear();
        state.clusters.values_mut().for_each(|cluster| cluster.frontends.clear());
        certificates.clear();
        places = Places::default();
    }
    Built { state, certificates, places, left_out }
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
    if settings.command_socket_mode.is_some_and(FileMode::is_for_others)
        && settings.command_allowed_uids.is_empty()
    {
        let text = "whom `command_socket_mode` lets in is still turned away, unless it is root, the user of kakehi or in `command_allowed_uids`";
        findings.warn(root.offset_of("command_socket_mode"), text);
    }
    if settings.command_socket_mode.is_some_and(|mode| !mode.is_for_others())
        && !settings.command_allowed_uids.is_empty()
    {
        let text = "with this `command_socket_mode` nobody of `command_allowed_uids` can connect";
        findings.warn(root.offset_of("command_socket_mode"), text);
    }
    if settings.automatic_state_save && settings.saved_state.is_none() {
        let offset = root.entry("automatic_state_save").map_or(0, |entry| entry.offset);
        findings.warn(offset, "`automatic_state_save` has no effect without `saved_state`");
    }
    if settings.dns_min_ttl_ms > settings.dns_max_ttl_ms {
        let key = if root.says("dns_min_ttl") { "dns_min_ttl" } else { "dns_max_ttl" };
        findings.unfit(root.offset_of(key), "`dns_min_ttl` is longer than `dns_max_ttl`");
    }
    settings
}

struct Builder<'a, 'b> {
    findings: &'a mut Findings<'b>,
    /// That of relative paths.
    folder: &'a Path,
    extent: Extent,
    /// Listeners that are configured and not served, or wrong.
    skipped: HashSet<SocketAddr>,
    /// Listeners that no table configures, and the line of the frontend that they are for.
    made_up: HashMap<SocketAddr, usize>,
    rules: frontend::Rules,
    /// Certificates so far.
    certificates: certificates::AskedFor,
    /// What stands in files with answers, so that each is read and kept once.
    pages: Pages,
    /// How long responses are, all together.
    page_bytes: usize,
    /// Rules of sozu's kind that ask for fields, each with the offset of what it asks.
    asking: Vec<(usize, FrontendRule)>,
    /// Rules that can tie and say nothing of their order: where each begins (offset), its cluster, its place there.
    in_turn: Vec<(usize, String, usize)>,
    /// The highest number that a rule has.
    highest_order: u64,
    left_out: LeftOut,
    /// Clusters that are named in splits, each with its offset.
    divided: Vec<(usize, String)>,
}

impl Builder<'_, '_> {
    /// `section` lacks `key`, or has a wrong value of it, which was told already.
    fn missing(&mut self, section: &Section, key: &'static str) {
        if section.says(key) {
            return;
        }
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

    /// Adds those to `built` that stand in `text`.
    fn clusters(
        &mut self,
        text: &Section,
        root: &Section,
        listeners: &mut BTreeMap<SocketAddr, Listener>,
        built: &mut Vec<(String, Cluster)>,
    ) {
        for (name, offset, section) in text.named_tables("clusters") {
            if name.is_empty() || name.chars().count() > 255 || name.chars().any(char::is_control) {
                self.findings.error(*offset, |place| ConfigError::BadClusterName { place });
            } else if let Some(cluster) = self.cluster(name, section, root, listeners) {
                built.push((name.clone(), cluster));
            }
        }
    }

    fn listeners(&mut self, root: &Section) -> BTreeMap<SocketAddr, Listener> {
        let mut listeners = BTreeMap::new();
        let mut lines = HashMap::new();
        for section in root.tables("listeners") {
            let Some((address, offset)) = self.required_address(section) else { continue };
            let Some(protocol) = section.text("protocol") else {
                self.missing(section, "protocol");
                self.skipped.insert(address);
                continue;
            };
            if let Some(reason) = address::impossible(address) {
                self.findings.unfit(offset, reason);
                self.skipped.insert(address);
                continue;
            }
            let line = self.findings.source.line(offset);
            // A datagram socket and a stream socket may share an address.
            if let Some(first) = lines.insert((address, protocol == "udp"), line) {
                if section.says("interface") {
                    let reason = format!(
                        "there is a listener at `{address}` already, in line {first}: an address can be on one `interface` only"
                    );
                    self.findings.unfit(offset, reason);
                    continue;
                }
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
