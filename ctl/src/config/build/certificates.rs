//! Certificates that a file asks for: those of listeners, and those of frontends, which their listener serves.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    path::PathBuf,
};

use super::{
    super::{
        error::ConfigError,
        read::{Section, Values},
    },
    Builder, certificate_name,
};
use crate::state::{CertificateFiles, ClusterProtocol, State, WantedCertificate};

/// Certificates in the order in which they were asked for. There may be very many.
#[derive(Default)]
pub(super) struct AskedFor {
    all: Vec<Asked>,
    /// By a hash of listener and files, or a number after it where that is taken: copies of so many paths would leave the
    /// memory full of holes.
    places: HashMap<u64, usize>,
    hasher: RandomState,
    /// The default of a listener.
    defaults: HashMap<SocketAddr, usize>,
}

/// A certificate, and where it is asked for.
struct Asked {
    wanted: WantedCertificate,
    offset: usize,
    /// By a table of its own.
    by_table: bool,
}

impl AskedFor {
    /// What stands in `places` for these files, and under which key it stands or would.
    fn find(&self, address: SocketAddr, files: &CertificateFiles) -> (u64, Option<usize>) {
        let mut key = self.hasher.hash_one((address, files));
        while let Some(place) = self.places.get(&key) {
            let there = &self.all[*place].wanted;
            if there.address == address && there.files == *files {
                return (key, Some(*place));
            }
            key = key.wrapping_add(1);
        }
        (key, None)
    }
}

impl Builder<'_, '_> {
    /// Those that a listener names.
    pub(super) fn listener_certificates(&mut self, address: SocketAddr, section: &Section) {
        if let Some(files) = self.certificate_files(section) {
            let wanted = WantedCertificate { address, files, names: Vec::new(), default: true };
            self.ask_for(wanted, section.offset_of("certificate"), false);
        }
        for table in section.tables("certificates") {
            let names = self.certificate_names(table);
            let default = table.bool("default").unwrap_or(false);
            match (table.text("certificate"), table.text("key")) {
                (None, _) => self.missing(table, "certificate"),
                (_, None) => self.missing(table, "key"),
                _ => {
                    if let Some(files) = self.certificate_files(table) {
                        let wanted = WantedCertificate { address, files, names, default };
                        self.ask_for(wanted, table.offset, true);
                    }
                }
            }
        }
    }

    /// The one that a frontend names.
    pub(super) fn frontend_certificate(&mut self, address: SocketAddr, section: &Section) {
        if let Some(files) = self.certificate_files(section) {
            let wanted = WantedCertificate { address, files, names: Vec::new(), default: false };
            self.ask_for(wanted, section.offset_of("certificate"), false);
        }
    }

    /// `certificate`, `key` and `certificate_chain`; `None` if they are absent or wrong.
    fn certificate_files(&mut self, section: &Section) -> Option<CertificateFiles> {
        let path_of = |key| self.path_of(section, key).map(PathBuf::into_boxed_path);
        let [certificate, key, chain] = ["certificate", "key", "certificate_chain"].map(path_of);
        let (there, absent) = match (certificate, key) {
            (Some(certificate), Some(key)) => return Some(CertificateFiles { certificate, chain, key }),
            (Some(_), None) => ("certificate", "key"),
            (None, Some(_)) => ("key", "certificate"),
            (None, None) if chain.is_some() => ("certificate_chain", "certificate"),
            (None, None) => return None,
        };
        self.findings.unfit(section.offset_of(there), format!("`{there}` needs `{absent}` beside it"));
        None
    }

    fn certificate_names(&mut self, section: &Section) -> Vec<String> {
        let mut names = Vec::new();
        for (name, offset) in section.texts("names").unwrap_or_default() {
            match certificate_name(name) {
                Ok(name) => names.push(name),
                Err(reason) => {
                    let hostname = name.clone();
                    self.findings.error(*offset, |place| ConfigError::BadHostname {
                        place,
                        hostname,
                        reason,
                    });
                }
            }
        }
        names
    }

    /// Puts a certificate on the list, once: many frontends may name the same files.
    fn ask_for(&mut self, wanted: WantedCertificate, offset: usize, by_table: bool) {
        let (key, present) = self.certificates.find(wanted.address, &wanted.files);
        let AskedFor { all, places, defaults, .. } = &mut self.certificates;
        let line_of = |asked: &Asked| self.findings.source.line(asked.offset);
        if wanted.default {
            let other = defaults.get(&wanted.address).copied();
            if let Some(other) = other.filter(|other| Some(*other) != present) {
                let line = line_of(&all[other]);
                let reason = format!("the listener has a default certificate already, in line {line}");
                self.findings.unfit(offset, reason);
                return;
            }
        }
        let place = present.unwrap_or(all.len());
        match all.get_mut(place) {
            Some(present) if by_table && present.by_table => {
                let line = line_of(present);
                let reason = format!("the listener has this certificate already, in line {line}");
                self.findings.unfit(offset, reason);
                return;
            }
            Some(present) => {
                present.wanted.default |= wanted.default;
                if by_table {
                    present.by_table = true;
                    present.wanted.names = wanted.names;
                }
            }
            None => {
                places.insert(key, place);
                all.push(Asked { wanted, offset, by_table });
            }
        }
        if all[place].wanted.default {
            defaults.insert(all[place].wanted.address, place);
        }
    }

    /// A listener of `https` that terminates TLS for nobody, as far as the file says.
    pub(super) fn warn_of_missing_certificates(&mut self, root: &Section, state: &State) {
        for section in root.tables("listeners").iter().filter(|it| it.text("protocol") == Some("https")) {
            let Some(address) = section.address("address") else { continue };
            let asked = self.certificates.all.iter().any(|it| it.wanted.address == address);
            let tcp = state.clusters.values().filter(|it| it.protocol == ClusterProtocol::Tcp);
            let passes = tcp.flat_map(|it| &it.frontends).any(|it| it.address == address);
            if state.listeners.contains_key(&address) && !asked && !passes {
                let text = format!(
                    "the listener `{address}` has no certificate: handshakes fail until `kakehictl certificate add` gives it one"
                );
                self.findings.warn(section.offset, text);
            }
        }
    }

    /// All, in the order in which they were asked for.
    pub(super) fn wanted_certificates(self) -> Vec<WantedCertificate> {
        self.certificates.all.into_iter().map(|asked| asked.wanted).collect()
    }
}
