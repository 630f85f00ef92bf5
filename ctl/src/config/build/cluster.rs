//! `[clusters.ID]`, its backends, and how they are reached.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{
    super::{
        error::{ConfigError, Quoted},
        read::{Inherited, Section, Values},
    },
    Builder, Extent, hostname,
};
use crate::state::{
    Admission, Answers, Backend, BackendAddress, BackendTls, Balancing, Cluster, ClusterProtocol, Frontend,
    Listener, Material, Passive, Retries,
};

/// Where distributions keep the certificates of those that are commonly believed: Debian and Arch, RHEL and Fedora, Alpine, SUSE,
/// older RHEL. The first that exists is taken.
const COMMON_CA: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];

/// The one of [`COMMON_CA`] that exists below `root`, as it is called there; the first one where none does, so that a message
/// names it.
fn common_ca(root: &Path) -> &'static str {
    // Joined to an absolute path, `root` would be dropped.
    let exists = |path: &&&str| root.join(path.trim_start_matches('/')).is_file();
    COMMON_CA.iter().find(exists).copied().unwrap_or(COMMON_CA[0])
}

impl Builder<'_, '_> {
    /// `None` if it is wrong, or of a protocol that is not served.
    pub(super) fn cluster(
        &mut self,
        name: &str,
        section: &Section,
        root: &Section,
        listeners: &mut BTreeMap<SocketAddr, Listener>,
    ) -> Option<Cluster> {
        let protocol = match section.text("protocol").map(|it| (it, ClusterProtocol::from_word(it))) {
            Some((_, Some(protocol))) => protocol,
            Some((protocol, None)) => {
                let name = Quoted(name);
                self.findings.warn(
                    section.offset,
                    format!(
                        "`protocol = \"{protocol}\"` is not supported yet: the cluster {name} is skipped"
                    ),
                );
                return None;
            }
            None => {
                self.missing(section, "protocol");
                return None;
            }
        };
        section.warn_unhonoured(self.findings);
        let is_http = protocol == ClusterProtocol::Http;
        let mut cluster = Cluster { protocol, ..Cluster::default() };
        cluster.read_keys(section, section, self.folder);
        if cluster.https_redirect && !is_http {
            let text = "`https_redirect` has no effect in a cluster of `tcp`, which knows no requests";
            self.findings.warn(section.offset_of("https_redirect"), text);
            cluster.https_redirect = false;
        }
        if cluster.maintenance_retry_after.is_some() && !is_http {
            let key = "maintenance_retry_after";
            let text =
                format!("`{key}` has no effect in a cluster of `tcp`, whose clients cannot be told anything");
            self.findings.warn(section.offset_of(key), text);
            cluster.maintenance_retry_after = None;
        }
        // That of https is not written.
        cluster.https_redirect_port = cluster.https_redirect_port.filter(|port| is_http && *port != 443);
        cluster.tls = self.backend_tls(section, protocol).map(Box::new);
        cluster.balancing = self.balancing(section, is_http);
        let mut admission = Admission::default();
        admission.read_keys(section, section, self.folder);
        let mut retries = Retries::default();
        retries.read_keys(section, &Inherited { own: section, root }, self.folder);
        cluster.retries = (retries != Retries::default()).then(|| Box::new(retries));
        let mut passive = Passive::default();
        if let Some(section) = section.tables("passive").first() {
            passive.read_keys(section, section, self.folder);
        }
        passive.enabled = !section.is_off("passive");
        cluster.passive = (passive != Passive::default()).then(|| Box::new(passive));
        cluster.admission = (admission != Admission::default()).then(|| Box::new(admission));
        cluster.limits = self.cluster_limits(section, is_http);
        cluster.health = self.health_check(section).map(Box::new);
        self.check_users(section, &cluster);
        if !is_http && (!cluster.users.is_empty() || cluster.www_authenticate.is_some()) {
            let text =
                "users have no effect in a cluster of `tcp`, whose connections are passed on as they are";
            self.findings.warn(section.offset, text);
            (cluster.users, cluster.www_authenticate) = (Vec::new(), None);
        }
        cluster.answers = self.answers(section);
        if !is_http && !cluster.answers.is_empty() {
            let key = if section.says("answers") { "answers" } else { "answer_503" };
            let text = "own answers have no effect in a cluster of `tcp`, which knows no requests";
            self.findings.warn(section.offset_of(key), text);
            cluster.answers = Answers::default();
        }
        // Of just the size that is needed: there may be very many.
        cluster.frontends = Vec::with_capacity(section.tables("frontends").len());
        for (place, frontend) in section.tables("frontends").iter().enumerate() {
            let Some(made) = self.frontend(name, protocol, frontend, root, listeners) else {
                self.left_out.note(name, place);
                continue;
            };
            self.note_place(name, cluster.frontends.len(), frontend, &made);
            cluster.frontends.push(made);
        }
        cluster.backends = self.backends(name, section);
        Some(cluster)
    }

    /// Takes note of where a rule stands that is the one with this `index` in the cluster.
    fn note_place(&mut self, cluster: &str, index: usize, section: &Section, frontend: &Frontend) {
        match frontend.order {
            Some(order) => self.highest_order = self.highest_order.max(order.get()),
            None if self.extent == Extent::Whole && frontend.can_tie() => {
                self.in_turn.push((section.offset, cluster.to_owned(), index));
            }
            None => {}
        }
    }

    /// Each user must be one, and somebody must ask for them.
    fn check_users(&mut self, section: &Section, cluster: &Cluster) {
        let offsets = section.texts("authorized_hashes").unwrap_or_default();
        for (user, (_, offset)) in cluster.users.iter().zip(offsets) {
            if let Err(reason) = user.parse() {
                self.findings.unfit(*offset, format!("`authorized_hashes`: {reason}"));
            }
        }
        let challenge = cluster.www_authenticate.as_deref().unwrap_or_default();
        if challenge.bytes().any(|byte| byte.is_ascii_control()) || challenge.len() > 1_024 {
            let reason = "`www_authenticate` has 1024 bytes at most, and no control characters";
            self.findings.unfit(section.offset_of("www_authenticate"), reason);
        }
        if self.extent == Extent::Part {
            return;
        }
        for frontend in section.tables("frontends").iter().filter(|it| it.bool("required_auth") == Some(true))
        {
            if cluster.users.is_empty() {
                let text =
                    "`required_auth` refuses everybody: the cluster has no `authorized_hashes`".to_owned();
                self.warn_at(frontend, "required_auth", text);
            }
        }
    }

    /// How a backend is chosen; `None`: as it is without keys.
    fn balancing(&mut self, section: &Section, is_http: bool) -> Option<Box<Balancing>> {
        let mut balancing = Balancing::default();
        balancing.read_keys(section, section, self.folder);
        if matches!(balancing.hash_balance_factor, 1..=100) {
            let reason = "`hash_balance_factor` is 0, or from 101 to 1000 percent of the mean load";
            self.findings.unfit(section.offset_of("hash_balance_factor"), reason);
        }
        let is_read_anyway =
            |name: &&String| ["host", "cookie"].iter().any(|other| name.eq_ignore_ascii_case(other));
        if balancing.affinity_header.as_ref().filter(is_read_anyway).is_some() {
            let reason =
                "`affinity_header` cannot be `Host` or `Cookie`; for a cookie there is `affinity_cookie`";
            self.findings.unfit(section.offset_of("affinity_header"), reason);
        }
        let sources = [
            ("affinity_header", balancing.affinity_header.is_some()),
            ("affinity_cookie", balancing.affinity_cookie.is_some()),
            ("affinity_path", balancing.affinity_path),
        ];
        let mut given = sources.iter().filter(|(_, given)| *given);
        if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
            let reason = format!("`{second}` beside `{first}`: a client is told by one of them");
            self.findings.unfit(section.offset_of(second), reason);
        }
        if !is_http {
            // Connections that are passed on have no requests.
            for key in sources.into_iter().chain([("sticky_session", balancing.sticky_session)]) {
                if let (key, true) = key {
                    let text =
                        format!("`{key}` has no effect in a cluster of `tcp`, which knows no requests");
                    self.findings.warn(section.offset_of(key), text);
                }
            }
            (balancing.affinity_header, balancing.affinity_cookie) = (None, None);
            (balancing.affinity_path, balancing.sticky_session) = (false, false);
        }
        (balancing != Balancing::default()).then(|| Box::new(balancing))
    }

    /// How backends are reached by TLS; `None` if they are not, or it is wrong.
    fn backend_tls(&mut self, cluster: &Section, protocol: ClusterProtocol) -> Option<BackendTls> {
        let section = cluster.tables("backend_tls").first()?;
        if protocol == ClusterProtocol::Tcp {
            let reason =
                "a cluster of `tcp` passes connections on as they are: `backend_tls` is for those of `http`";
            self.findings.unfit(cluster.offset_of("backend_tls"), reason);
            return None;
        }
        Some(self.tls_to_backends(section))
    }

    /// What a table says of TLS to backends.
    pub(super) fn tls_to_backends(&mut self, section: &Section) -> BackendTls {
        let common_ca = || Material { path: common_ca(Path::new("/")).into(), ..Material::default() };
        let client = match (self.material(section, "certificate"), self.material(section, "key")) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            (chain, _) => {
                let (there, absent) =
                    if chain.is_some() { ("certificate", "key") } else { ("key", "certificate") };
                self.findings
                    .unfit(section.offset_of(there), format!("`{there}` needs `{absent}` beside it"));
                None
            }
        };
        let server_name = section.text("server_name");
        if let Some(name) = server_name {
            let is_ip = name.parse::<IpAddr>().is_ok();
            let is_name = !name.contains('*') && hostname::check_exact(name).is_ok();
            if !is_ip && !is_name {
                let reason = format!("{} is no name that a certificate can be asked for", Quoted(name));
                self.findings
                    .unfit(section.entry("server_name").map_or(section.offset, |it| it.offset), reason);
            }
        }
        let alpn = match section.texts("alpn") {
            None => vec!["http/1.1".to_owned()],
            Some(protocols) => {
                for (protocol, offset) in protocols.iter().filter(|(protocol, _)| protocol != "http/1.1") {
                    let reason =
                        format!("backends are spoken to in `http/1.1` only, not in {}", Quoted(protocol));
                    self.findings.unfit(*offset, reason);
                }
                protocols.iter().take(1).map(|(protocol, _)| protocol.clone()).collect()
            }
        };
        BackendTls {
            ca: self.material(section, "ca").unwrap_or_else(common_ca),
            server_name: server_name.map(str::to_owned),
            client,
            alpn,
        }
    }

    /// The name of a backend that the file gives none: its address. One that is there twice, as files for sozu may have it,
    /// gets twice the share, and names that differ.
    fn nameless(
        &mut self,
        section: &Section,
        address: &BackendAddress,
        lines: &HashMap<String, usize>,
    ) -> String {
        let id = address.to_string();
        let Some(first) = lines.get(&id) else { return id };
        let text = format!(
            "the backend {} is there already, in line {first}: it gets the share of both",
            Quoted(&id)
        );
        self.findings.warn(section.offset, text);
        let more = (2..).map(|number| format!("{id}#{number}")).find(|it| !lines.contains_key(it));
        more.unwrap_or(id)
    }

    /// The address of a backend that listens on a unix socket is a name, which no other one of these has.
    fn check_name_of_socket(
        &mut self,
        section: &Section,
        address: &BackendAddress,
        named: &mut HashMap<BackendAddress, usize>,
    ) {
        let offset = section.offset_of("address");
        if matches!(address, BackendAddress::Unix(_)) {
            let reason = format!(
                "the backend has two unix sockets, `{address}` and that of `unix_path`: leave one out"
            );
            return self.findings.unfit(offset, reason);
        }
        let line = self.findings.source.line(offset);
        if let Some(first) = named.insert(address.clone(), line) {
            let reason = format!(
                "`{address}` names the backend with `unix_path` in line {first}: no two of them have the same address"
            );
            self.findings.unfit(offset, reason);
        }
    }

    fn backends(&mut self, cluster: &str, section: &Section) -> Vec<Backend> {
        let mut backends = Vec::with_capacity(section.tables("backends").len());
        let (mut lines, mut named) = (HashMap::new(), HashMap::new());
        for section in section.tables("backends") {
            let Some(address) = section.backend_address("address").cloned() else {
                self.missing(section, "address");
                continue;
            };
            section.warn_unhonoured(self.findings);
            let id = match section.text("backend_id") {
                Some(id) => id.to_owned(),
                None => self.nameless(section, &address, &lines),
            };
            let address = match section.backend_address("unix_path") {
                None => address,
                Some(path) => {
                    self.check_name_of_socket(section, &address, &mut named);
                    path.clone()
                }
            };
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
            let mut backend = Backend { id, address, ..Backend::default() };
            backend.read_keys(section, section, self.folder);
            backends.push(backend);
        }
        backends
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// A file system with a bundle in the first place, and links to it or folders in the others.
    fn host(bundle: &str, links: &[(&str, &str)], folders: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let below = |path: &str| root.path().join(path.trim_start_matches('/'));
        let make_parent = |path: &str| fs::create_dir_all(below(path).parent().unwrap()).unwrap();
        make_parent(bundle);
        fs::write(below(bundle), "certificates").unwrap();
        for (link, target) in links {
            make_parent(link);
            symlink(target, below(link)).unwrap();
        }
        folders.iter().for_each(|folder| fs::create_dir_all(below(folder)).unwrap());
        root
    }

    #[test]
    fn the_bundle_of_debian_rhel_alpine_and_suse_is_found_where_each_of_them_keeps_it() {
        let extracted = "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem";
        let of_rhel =
            [("/etc/pki/tls/certs/ca-bundle.crt", "../../ca-trust/extracted/pem/tls-ca-bundle.pem")];
        let of_alpine = [("/etc/ssl/cert.pem", "certs/ca-certificates.crt")];
        for (host, expected) in [
            // Debian and Ubuntu; Arch has it there, too.
            (host("/etc/ssl/certs/ca-certificates.crt", &[], &[]), "/etc/ssl/certs/ca-certificates.crt"),
            // RHEL, whose `/etc/ssl` has no bundle.
            (host(extracted, &of_rhel, &["/etc/ssl/certs"]), "/etc/pki/tls/certs/ca-bundle.crt"),
            // Without the link of old, which Fedora drops.
            (host(extracted, &[], &["/etc/ssl/certs", "/etc/pki/tls/certs"]), extracted),
            // Alpine, with the package `ca-certificates`, and with what its libtls alone brings.
            (
                host("/etc/ssl/certs/ca-certificates.crt", &of_alpine, &[]),
                "/etc/ssl/certs/ca-certificates.crt",
            ),
            (host("/etc/ssl/cert.pem", &[], &["/etc/ssl/certs"]), "/etc/ssl/cert.pem"),
            // openSUSE.
            (host("/etc/ssl/ca-bundle.pem", &[], &["/etc/ssl/certs"]), "/etc/ssl/ca-bundle.pem"),
            // A link to nothing and a folder are none; where there is none, the first is named.
            (host("/etc/other", &of_alpine, &["/etc/ssl/ca-bundle.pem"]), COMMON_CA[0]),
        ] {
            assert_eq!(common_ca(host.path()), expected);
        }
    }
}
