//! How a listener terminates TLS: versions, cipher suites, groups, client certificates, `hsts`.

use std::path::Path;

use super::{
    super::{
        error::{ConfigError, KeyHint, Quoted},
        levels::{FRONTEND_TLS, LISTENER_TLS},
        read::{Section, Values, nearest},
    },
    Builder, set,
};
use crate::{
    keys::in_folder,
    state::{CipherSuite, ClientAuth, Group, Hsts, Material, Tls, TlsVersion},
};

/// Versions that sozu knows and kakehi does not speak, as nobody should.
const OBSOLETE: [&str; 8] = ["SSL_V2", "SSL_V3", "TLS_V1", "TLS_V11", "SSLv2", "SSLv3", "TLSv1", "TLSv1.1"];

/// The keys of revocation lists.
const CRLS: [&str; 2] = ["client_crl", "client_ca_crls"];

/// Whether `key` is one of this level and has a value.
fn says(section: &Section, key: &str) -> bool {
    section.level.key(key).is_some() && section.entry(key).is_some()
}

impl Builder<'_, '_> {
    /// What a listener of `https` says of TLS.
    pub(super) fn tls(&mut self, section: &Section) -> Tls {
        let mut tls = Tls::default();
        let versions = self.versions(section);
        let suites = match (section.texts("cipher_list"), section.texts("cipher_suites")) {
            (Some(_), Some(_)) => {
                let text =
                    "`cipher_suites` has no effect beside `cipher_list`, of which it is the older name";
                self.findings.warn(section.offset_of("cipher_suites"), text);
                "cipher_list"
            }
            (None, Some(_)) => "cipher_suites",
            _ => "cipher_list",
        };
        let all_suites = CipherSuite::ALL.iter().flat_map(|suite| suite.names().iter().copied());
        let cipher_suites = self.words(section, suites, CipherSuite::from_name, all_suites);
        // One that is wrong is an error already.
        let right = (versions.is_some() || section.entry("tls_versions").is_none())
            && (cipher_suites.is_some() || section.entry(suites).is_none());
        set(&mut tls.versions, versions);
        set(&mut tls.cipher_suites, cipher_suites);
        if right {
            self.fit_versions(section, &mut tls.versions, &tls.cipher_suites);
        }
        let all_groups = Group::ALL.iter().flat_map(|group| group.names().iter().copied());
        set(&mut tls.groups, self.words(section, "groups_list", Group::from_name, all_groups));
        set(&mut tls.alpn, self.protocols(section));
        tls.read_keys(section, section, self.folder);
        if section.bool("disable_http11") == Some(true) {
            let text = "`disable_http11` is not honoured: HTTP/2 is not spoken yet, and HTTP/1.1 goes on";
            self.findings.warn(section.offset_of("disable_http11"), text);
        }
        tls.client_auth = self.client_auth(section);
        tls.hsts = self.hsts(section);
        tls
    }

    /// Two names for one thing say different things.
    fn contradiction(&mut self, section: &Section, one: &str, other: &str) {
        let line = self.findings.source.line(section.offset_of(other));
        let reason = format!("`{one}` says otherwise than `{other}`, another name for it, in line {line}");
        self.findings.unfit(section.offset_of(one), reason);
    }

    /// The items of a list by their names, each once; `None` if it is absent or wrong.
    fn words<T: PartialEq>(
        &mut self,
        section: &Section,
        key: &'static str,
        from_name: impl Fn(&str) -> Option<T>,
        names: impl Iterator<Item = &'static str> + Clone,
    ) -> Option<Vec<T>> {
        let texts = section.texts(key)?;
        let mut words = Vec::new();
        for (text, offset) in texts {
            match from_name(text) {
                Some(word) if words.contains(&word) => {}
                Some(word) => words.push(word),
                None => self.unknown_word(key, text, *offset, names.clone()),
            }
        }
        if texts.is_empty() {
            self.empty_list(section, key);
        }
        let all = texts.iter().all(|(text, _)| from_name(text).is_some());
        (all && !words.is_empty()).then_some(words)
    }

    fn unknown_word(
        &mut self,
        key: &'static str,
        text: &str,
        offset: usize,
        names: impl Iterator<Item = &'static str> + Clone,
    ) {
        let nearest = nearest(names.clone(), text).or_else(|| nearest(names, &text.to_ascii_uppercase()));
        let hint = nearest.map(KeyHint::Nearest);
        let found = text.to_owned();
        self.findings.error(offset, |place| ConfigError::UnknownWord { place, key, found, hint });
    }

    fn empty_list(&mut self, section: &Section, key: &str) {
        let offset = section.entry(key).map_or(section.offset, |entry| entry.offset);
        self.findings.unfit(offset, format!("`{key}` must not be empty; leave it out for the default"));
    }

    /// Versions of TLS, in their order; `None` if the key is absent or wrong.
    pub(super) fn versions(&mut self, section: &Section) -> Option<Vec<TlsVersion>> {
        const KEY: &str = "tls_versions";
        let texts = section.texts(KEY)?;
        let (mut versions, mut obsolete) = (Vec::new(), Vec::new());
        for (text, offset) in texts {
            if let Some(version) = TlsVersion::from_name(text) {
                versions.push(version);
            } else if OBSOLETE.iter().any(|it| it.eq_ignore_ascii_case(text)) {
                obsolete.push((text, *offset));
            } else {
                self.unknown_word(KEY, text, *offset, TlsVersion::ALL.into_iter().map(TlsVersion::name));
            }
        }
        versions.sort_unstable();
        versions.dedup();
        for (text, offset) in obsolete {
            let text = Quoted(text);
            if versions.is_empty() {
                let reason = format!(
                    "{text} is not spoken, and `tls_versions` has no other: add `TLS_V12` or `TLS_V13`"
                );
                self.findings.unfit(offset, reason);
            } else {
                self.findings.warn(
                    offset,
                    format!("{text} in `tls_versions` is not spoken: clients need TLS 1.2 at least"),
                );
            }
        }
        if texts.is_empty() {
            self.empty_list(section, KEY);
        }
        (!versions.is_empty()).then_some(versions)
    }

    /// Each version needs a cipher suite: one without is not spoken, as in sozu, whose files must go on to be read.
    pub(super) fn fit_versions(
        &mut self,
        section: &Section,
        versions: &mut Vec<TlsVersion>,
        suites: &[CipherSuite],
    ) {
        let fits = |version: &TlsVersion| suites.iter().any(|suite| suite.version() == *version);
        let key = ["cipher_list", "cipher_suites", "tls_versions"].into_iter();
        let mut there = key.filter(|key| section.level.key(key).is_some() && section.entry(key).is_some());
        let offset = there.next().map_or(section.offset, |key| section.offset_of(key));
        if !versions.iter().any(fits) {
            let reason = "no cipher suite of the listener fits the versions of TLS: add one";
            return self.findings.unfit(offset, reason.to_owned());
        }
        versions.retain(|version| {
            if !fits(version) {
                let name = version.name();
                let text =
                    format!("no cipher suite of the listener fits `{name}`, which is therefore not spoken");
                self.findings.warn(offset, text);
            }
            fits(version)
        });
    }

    /// Protocols that are agreed to; `None` if the key is absent or wrong.
    fn protocols(&mut self, section: &Section) -> Option<Vec<String>> {
        const KEY: &str = "alpn_protocols";
        let texts = section.texts(KEY)?;
        let mut protocols = Vec::new();
        let mut h2 = None;
        for (text, offset) in texts {
            match text.as_str() {
                "http/1.1" if protocols.is_empty() => protocols.push(text.clone()),
                "http/1.1" => {}
                "h2" => h2 = Some(*offset),
                _ => self.unknown_word(KEY, text, *offset, ["http/1.1", "h2"].into_iter()),
            }
        }
        match h2 {
            Some(offset) if protocols.is_empty() => {
                let text = "`h2` in `alpn_protocols` is not spoken yet: `http/1.1` is offered in its place";
                self.findings.warn(offset, text);
                protocols.push("http/1.1".to_owned());
            }
            Some(offset) => {
                self.findings.warn(offset, "`h2` in `alpn_protocols` is not spoken yet: it is not offered");
            }
            None if texts.is_empty() => self.empty_list(section, KEY),
            None => {}
        }
        (!protocols.is_empty()).then_some(protocols)
    }

    /// Whether clients show certificates.
    pub(super) fn client_auth(&mut self, section: &Section) -> Option<ClientAuth> {
        let asked = section.text("client_auth");
        let mut cas = self.materials(section, "client_ca", "client_ca_certificates");
        let mut crls = self.materials(section, "client_crl", "client_ca_crls");
        let Some(ca) = cas.next() else {
            if let Some(asked) = asked.filter(|asked| *asked != "none") {
                let reason = format!(
                    "`client_auth = \"{asked}\"` needs `client_ca`: certificates of those who issue the clients' certificates"
                );
                self.findings.unfit(section.offset_of("client_auth"), reason);
            }
            for key in CRLS.into_iter().filter(|key| crls.len() > 0 && says(section, key)) {
                let reason = format!("`{key}` needs `client_ca` beside it");
                self.findings.unfit(section.offset_of(key), reason);
            }
            return None;
        };
        let required = asked != Some("optional");
        let (crl, more_cas) = (crls.next(), cas.collect());
        let auth = ClientAuth { ca, crl, required, more_cas, more_crls: crls.collect() };
        (asked != Some("none")).then_some(auth)
    }

    /// The files that a key names, or a list under another name for it.
    fn materials(
        &mut self,
        section: &Section,
        key: &'static str,
        list: &'static str,
    ) -> std::vec::IntoIter<Material> {
        let one = self.material(section, key);
        let texts = if says(section, list) { section.texts(list).unwrap_or_default() } else { &[] };
        if says(section, list) && texts.is_empty() {
            self.empty_list(section, list);
        }
        let material =
            |text: &str| Material { path: in_folder(self.folder, Path::new(text)), ..Material::default() };
        let mut listed: Vec<_> = texts.iter().map(|(text, _)| material(text)).collect();
        for (_, offset) in texts.iter().filter(|(text, _)| text.is_empty() || text.contains('\0')) {
            self.findings.unfit(*offset, format!("`{list}` is a list of paths of files"));
        }
        match one {
            Some(one) if listed.is_empty() => listed.push(one),
            Some(one) if listed != std::slice::from_ref(&one) => self.contradiction(section, list, key),
            _ => {}
        }
        listed.into_iter()
    }

    /// `hsts` of a listener or a frontend of `https`.
    pub(super) fn hsts(&mut self, section: &Section) -> Option<Hsts> {
        let section = section.tables("hsts").first()?;
        let Some(enabled) = section.bool("enabled") else {
            self.missing(section, "enabled");
            return None;
        };
        let mut hsts = Hsts { enabled, ..Hsts::default() };
        hsts.read_keys(section, section, self.folder);
        Some(hsts)
    }

    /// Keys of TLS where there is none: those that protect are errors, the others change nothing.
    pub(super) fn refuse_tls(&mut self, section: &Section) {
        let is_of_tls = |name: &&str| {
            LISTENER_TLS.iter().chain(Tls::OWN).chain(FRONTEND_TLS).any(|key| key.name == *name)
        };
        for name in section.names().filter(is_of_tls) {
            let offset = section.offset_of(name);
            let protects = match name {
                "client_ca" | "client_crl" | "client_ca_certificates" | "client_ca_crls" | "certificates" => {
                    true
                }
                "client_auth" => section.text(name) != Some("none"),
                "hsts" => self.hsts(section).is_some_and(|hsts| hsts.enabled),
                _ => false,
            };
            if protects {
                self.findings
                    .unfit(offset, format!("`{name}` is for listeners of `https` and their frontends only"));
            } else {
                let text =
                    format!("`{name}` has no effect: it is for listeners of `https` and their frontends");
                self.findings.warn(offset, text);
            }
        }
    }
}
