//! `[[clusters.ID.frontends]]`: rules, and what of them is settled in the handshake already.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    hash::{BuildHasher as _, Hash, RandomState},
    net::SocketAddr,
};

use super::{
    super::{
        error::{ConfigError, Quoted},
        levels::FRONTEND_TLS,
        read::{Section, Values},
        write,
    },
    Builder, Extent, hostname,
};
use crate::change::FrontendRule;
use crate::state::{
    ClientAuth, ClusterProtocol, EditPosition, Frontend, FrontendTls, HeaderEdit, Listener, ListenerProtocol,
    MAX_ALPN, MAX_HEADER_EDITS, MAX_PREDICATES, PathRule, Predicate, Predicates, Redirect, RedirectScheme,
    Rewrite, RulePosition, State, TlsVersion,
};

/// Rules of which it is looked at whether sozu would choose otherwise.
const LOOKED_AT: usize = 1_000;

/// What frontends say of which requests. There may be very many: of names and the like only hashes are kept.
#[derive(Default)]
pub(super) struct Rules {
    /// By listener, host name, path and method: where the first one stands (line), and what it leads to.
    answers: HashMap<u128, (usize, u128)>,
    /// By listener and host name: what is settled by that name alone.
    hosts: HashMap<u128, Vec<Settled>>,
    hashers: [RandomState; 2],
}

impl Rules {
    /// No two things that differ have the same, as nobody knows the keys of the hashes.
    fn hash(&self, of: impl Hash) -> u128 {
        let [one, other] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one(&of)));
        one << 64 | other
    }
}

/// What a frontend settles for a host name of a listener with TLS, before anything but that name is known.
struct Settled {
    line: usize,
    /// It is passed through.
    passes: bool,
    /// `None` if that is nothing.
    says: Option<Box<Demands>>,
}

/// Each may be nothing.
struct Demands {
    versions: Option<Vec<TlsVersion>>,
    client_auth: Option<ClientAuth>,
}

impl Builder<'_, '_> {
    /// `None` if it is wrong, or its listener is skipped.
    pub(super) fn frontend(
        &mut self,
        cluster: &str,
        protocol: ClusterProtocol,
        section: &Section,
        root: &Section,
        listeners: &mut BTreeMap<SocketAddr, Listener>,
    ) -> Option<Frontend> {
        let (address, offset) = self.required_address(section)?;
        let listener = match listeners.entry(address) {
            Entry::Occupied(listener) => listener.into_mut(),
            Entry::Vacant(_) if self.skipped.contains(&address) => return None,
            Entry::Vacant(_) if self.extent == Extent::Part => {
                self.findings.error(offset, |place| ConfigError::NoListener { place, address });
                return None;
            }
            Entry::Vacant(place) => {
                place.insert(self.made_up_listener(address, offset, protocol, section, root)?)
            }
        };
        self.refuse_clear_text(section, listener);
        match (protocol, listener.protocol) {
            (ClusterProtocol::Http, ListenerProtocol::Tcp) => {
                let reason = format!(
                    "the listener `{address}` is of `tcp` and reads no requests: the cluster {} must be of `tcp` too",
                    Quoted(cluster)
                );
                self.findings.unfit(offset, reason);
                return None;
            }
            (ClusterProtocol::Tcp, ListenerProtocol::Http) => {
                let reason = format!(
                    "the listener `{address}` is of `http`, and the cluster {} of `tcp`: it can have frontends on listeners of `tcp`, and of `https` where a host name is passed through",
                    Quoted(cluster)
                );
                self.findings.unfit(offset, reason);
                return None;
            }
            _ => {}
        }
        let hostname = self.hostname(section, protocol, listener)?;
        section.warn_unhonoured(self.findings);
        let mut frontend = Frontend { address, hostname: hostname.to_owned(), ..Frontend::default() };
        match protocol {
            ClusterProtocol::Http => {
                frontend.read_keys(section, section, self.folder);
                self.warn_of_method(section);
                frontend.path = self.path(section);
                frontend.predicates = self.predicates(section);
                self.refuse_alpn(section);
                (frontend.deny, frontend.redirect) = Self::redirect(section);
                frontend.rewrite = self.rewrite(section, &frontend, listener);
                frontend.redirect_template = self.redirect_template(section, frontend.redirect.status());
                frontend.headers = self.header_edits(section);
                let forwards = !frontend.deny && frontend.redirect == Redirect::Forward;
                frontend.split = self.split(section, forwards);
                frontend.tls = self.frontend_tls(section, listener);
            }
            ClusterProtocol::Tcp => {
                self.refuse_http(section);
                frontend.predicates = self.alpn(section);
            }
        }
        frontend.limits = self.frontend_limits(section, protocol == ClusterProtocol::Http);
        self.check_unique(cluster, section, &frontend);
        let asks_for_fields = frontend.predicates.as_ref().is_some_and(|it| !it.headers.is_empty());
        if asks_for_fields && frontend.position == RulePosition::Tree {
            self.asking.push((section.offset_of("header_predicates"), FrontendRule::from(&frontend)));
        }
        if listener.protocol == ListenerProtocol::Https {
            self.check_host(protocol, section, &frontend);
        }
        Some(frontend)
    }

    /// The host name, if it is one that such a frontend can have.
    fn hostname<'s>(
        &mut self,
        section: &'s Section,
        protocol: ClusterProtocol,
        listener: &Listener,
    ) -> Option<&'s str> {
        let is_tcp = protocol == ClusterProtocol::Tcp;
        let hostname = match section.text("hostname") {
            Some(hostname) => hostname,
            None if is_tcp && listener.protocol == ListenerProtocol::Tcp => "*",
            None if is_tcp => {
                let reason =
                    "a frontend that passes TLS through needs the key `hostname`: an exact name, or `*.name`";
                self.findings.unfit(section.offset, reason);
                return None;
            }
            None => {
                self.missing(section, "hostname");
                return None;
            }
        };
        let checked = match (is_tcp, listener.protocol) {
            (true, ListenerProtocol::Tcp) if hostname == "*" => Ok(()),
            (true, _) => hostname::check_exact(hostname),
            (false, _) => hostname::check(hostname),
        };
        if let Err(reason) = checked {
            let offset = section.entry("hostname").map_or(section.offset, |entry| entry.offset);
            let hostname = hostname.to_owned();
            self.findings.error(offset, |place| ConfigError::BadHostname { place, hostname, reason });
            return None;
        }
        Some(hostname)
    }

    /// Nothing of this has a meaning where bytes are passed on as they are, and some of it would protect.
    fn refuse_http(&mut self, section: &Section) {
        let mut wrong = Vec::new();
        wrong.extend(section.text("path").filter(|path| !path.is_empty()).map(|_| "path"));
        wrong.extend(section.text("method").map(|_| "method"));
        wrong.extend(section.text("redirect").filter(|it| *it != "forward").map(|_| "redirect"));
        wrong.extend(section.bool("required_auth").filter(|it| *it).map(|_| "required_auth"));
        wrong.extend(section.entry("max_body_size").map(|_| "max_body_size"));
        let lists = [
            "headers",
            "header_predicates",
            "query_predicates",
            "cookie_predicates",
            "sources",
            "redirect_template",
            "split",
            "split_key",
        ];
        wrong.extend(lists.into_iter().filter(|key| section.entry(key).is_some()));
        wrong.extend(section.text("position").filter(|it| *it != "TREE").map(|_| "position"));
        wrong.extend(section.entry("order").map(|_| "order"));
        wrong.extend(Rewrite::OWN.iter().map(|key| key.name).filter(|name| section.entry(name).is_some()));
        wrong.extend(FRONTEND_TLS.iter().map(|key| key.name).filter(|name| section.entry(name).is_some()));
        for key in wrong {
            let reason = format!(
                "`{key}` cannot be honoured in a frontend of a cluster of `tcp`: connections are passed on as they are"
            );
            self.findings.unfit(section.offset_of(key), reason);
        }
    }

    /// Which protocol is spoken with clients of HTTP is a matter of the listener.
    fn refuse_alpn(&mut self, section: &Section) {
        if section.texts("alpn").is_some_and(|protocols| !protocols.is_empty()) {
            let reason = "`alpn` cannot be honoured in a frontend of a cluster of `http`: it is for connections that are passed on";
            self.findings.unfit(section.offset_of("alpn"), reason);
        }
    }

    /// The protocols of which a client offers one; `None` if they make no difference.
    fn alpn(&mut self, section: &Section) -> Option<Box<Predicates>> {
        let protocols = section.texts("alpn").unwrap_or_default();
        if protocols.len() > MAX_ALPN {
            let reason = format!("`alpn` has {MAX_ALPN} protocols at most");
            self.findings.unfit(section.offset_of("alpn"), reason);
        }
        // RFC 7301 section 3.1.
        for (_, offset) in protocols.iter().filter(|(protocol, _)| !(1..=255).contains(&protocol.len())) {
            self.findings.unfit(*offset, "the name of a protocol in `alpn` has 1 to 255 bytes");
        }
        let alpn = protocols.iter().map(|(protocol, _)| protocol.clone()).collect();
        let mut predicates = Predicates { alpn, ..Predicates::default() };
        predicates.tidy();
        (!predicates.is_empty()).then(|| Box::new(predicates))
    }

    /// Whether all requests are refused, and what else is done in the place of forwarding.
    fn redirect(section: &Section) -> (bool, Redirect) {
        match section.text("redirect").and_then(Redirect::from_word).unwrap_or_default() {
            Redirect::Unauthorized => (true, Redirect::Forward),
            redirect => (false, redirect),
        }
    }

    /// What is made of hosts and paths; `None` if that is nothing. Whether their patterns have the parts that are named is looked at when
    /// they are compiled.
    fn rewrite(
        &mut self,
        section: &Section,
        frontend: &Frontend,
        listener: &Listener,
    ) -> Option<Box<Rewrite>> {
        let mut rewrite = Rewrite::default();
        rewrite.read_keys(section, section, self.folder);
        let leads_elsewhere = frontend.redirect.status().is_some();
        if frontend.deny || frontend.redirect == Redirect::SilentClose {
            for key in
                ["rewrite_host", "rewrite_path", "rewrite_port"].into_iter().filter(|key| section.says(key))
            {
                let text = format!("`{key}` has no effect in a frontend that neither forwards nor redirects");
                self.warn_at(section, key, text);
            }
        }
        if rewrite.scheme != RedirectScheme::UseSame && !leads_elsewhere {
            let text = "`redirect_scheme` has no effect in a frontend that does not redirect".to_owned();
            self.warn_at(section, "redirect_scheme", text);
            rewrite.scheme = RedirectScheme::UseSame;
        }
        let spoken = match listener.protocol {
            ListenerProtocol::Https => RedirectScheme::UseHttps,
            ListenerProtocol::Http | ListenerProtocol::Tcp => RedirectScheme::UseHttp,
        };
        let scheme = rewrite.scheme;
        let is_kept = |text: &Option<Box<str>>, whole: &str| text.as_deref().is_none_or(|text| text == whole);
        let stays = is_kept(&rewrite.host, "$HOST[0]")
            && is_kept(&rewrite.path, "$PATH[0]")
            && rewrite.port.is_none();
        if leads_elsewhere && stays && [RedirectScheme::UseSame, spoken].contains(&scheme) {
            let text =
                "the redirect leads to where the request was for: name another scheme, host, path or port";
            self.warn_at(section, "redirect", text.to_owned());
        }
        (rewrite != Rewrite::default()).then(|| Box::new(rewrite))
    }

    /// sozu takes a rule that asks for fields before those of longer paths.
    pub(super) fn warn_of_longer_paths(&mut self, state: &State) {
        // One is enough to be told of it.
        let asking: Vec<_> = std::mem::take(&mut self.asking).into_iter().take(LOOKED_AT).collect();
        let host = |address: SocketAddr, name: &str| (address, name.to_ascii_lowercase());
        let mut plain: HashMap<(SocketAddr, String), Vec<&str>> =
            asking.iter().map(|(_, rule)| (host(rule.address, &rule.hostname), Vec::new())).collect();
        if plain.is_empty() {
            return;
        }
        for frontend in state.clusters.values().flat_map(|cluster| &cluster.frontends) {
            let (PathRule::Prefix(path) | PathRule::Equals(path)) = &frontend.path else { continue };
            let paths = plain.get_mut(&host(frontend.address, &frontend.hostname));
            if let Some(paths) = paths.filter(|_| frontend.predicates.is_none()) {
                paths.push(path);
            }
        }
        for (offset, rule) in asking {
            let PathRule::Prefix(prefix) = &rule.path else { continue };
            let paths = plain.get(&host(rule.address, &rule.hostname)).map_or(&[][..], Vec::as_slice);
            let is_longer = |path: &&&str| path.len() > prefix.len() && path.starts_with(prefix.as_str());
            if let Some(path) = paths.iter().take(LOOKED_AT).find(is_longer) {
                let text = format!(
                    "sozu would take this rule before the one for the longer path {}: here the longer path wins",
                    Quoted(path)
                );
                self.findings.warn(offset, text);
            }
        }
    }

    /// What a request must have beyond host, path and method; `None` if that is nothing.
    fn predicates(&mut self, section: &Section) -> Option<Box<Predicates>> {
        let mut predicates = Predicates::default();
        predicates.read_keys(section, section, self.folder);
        predicates.headers = self.predicates_of(section, "header_predicates");
        predicates.query = self.predicates_of(section, "query_predicates");
        predicates.cookies = self.predicates_of(section, "cookie_predicates");
        predicates.tidy();
        if let Some((key, name)) = predicates.contradiction() {
            let reason = format!("the rule can never match: `{key}` asks for two values of {}", Quoted(name));
            self.findings.unfit(section.offset_of(key), reason);
        }
        (!predicates.is_empty()).then(|| Box::new(predicates))
    }

    fn predicates_of(&mut self, frontend: &Section, key: &'static str) -> Vec<Predicate> {
        let sections = frontend.tables(key);
        if sections.len() > MAX_PREDICATES {
            self.findings
                .unfit(frontend.offset_of(key), format!("`{key}` has {MAX_PREDICATES} predicates at most"));
        }
        let mut predicates = Vec::with_capacity(sections.len());
        for section in sections {
            let Some(name) = section.text("name") else {
                self.missing(section, "name");
                continue;
            };
            let mut predicate = Predicate { name: name.to_owned(), ..Predicate::default() };
            predicate.read_keys(section, section, self.folder);
            let is_header = key == "header_predicates";
            let unfit = predicate.unfit().or_else(|| is_header.then(|| predicate.unfit_header()).flatten());
            if let Some((key, reason)) = unfit {
                let at = section.entry(key).map_or(section.offset, |entry| entry.offset);
                self.findings.unfit(at, reason);
            }
            if is_header {
                predicate.name.make_ascii_lowercase();
            }
            predicates.push(predicate);
        }
        predicates
    }

    /// What is changed of fields.
    fn header_edits(&mut self, frontend: &Section) -> Vec<HeaderEdit> {
        let sections = frontend.tables("headers");
        if sections.len() > MAX_HEADER_EDITS {
            self.findings.unfit(frontend.offset_of("headers"), "`headers` has 64 edits at most");
        }
        let mut edits = Vec::with_capacity(sections.len());
        for section in sections {
            let position = section.text("position").and_then(EditPosition::from_word);
            let (Some(position), Some(name), Some(value)) =
                (position, section.text("key"), section.text("value"))
            else {
                HeaderEdit::REQUIRED.iter().for_each(|key| self.missing(section, key.name));
                continue;
            };
            let (name, value) = (name.to_owned(), value.to_owned());
            let mut edit = HeaderEdit { position, name, value, ..HeaderEdit::default() };
            edit.read_keys(section, section, self.folder);
            if let Some((key, reason)) = edit.unfit() {
                self.findings.unfit(section.offset_of(key), reason);
            }
            edits.push(edit);
        }
        edits
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

    /// Methods are case-sensitive (RFC 9110 section 9.1), and those that there are have capitals only.
    fn warn_of_method(&mut self, section: &Section) {
        let method = section.text("method").unwrap_or_default();
        if method.bytes().any(|it| it.is_ascii_lowercase()) {
            let (found, meant) = (Quoted(method), method.to_ascii_uppercase());
            let text = format!(
                "methods are case-sensitive: {found} is another one than `{meant}`, which clients send"
            );
            self.warn_at(section, "method", text);
        }
    }

    /// What a frontend says of TLS; `None` if that is nothing.
    fn frontend_tls(&mut self, section: &Section, listener: &Listener) -> Option<Box<FrontendTls>> {
        let Some(of_listener) = &listener.tls else {
            self.refuse_tls(section);
            return None;
        };
        self.frontend_certificate(listener.address, section);
        let mut versions = self.versions(section);
        if let Some(versions) = &mut versions {
            self.fit_versions(section, versions, &of_listener.cipher_suites);
        }
        let client_auth = self.frontend_client_auth(section, of_listener.client_auth.as_ref());
        let hsts = self.hsts(section);
        let settles = [(versions.is_some(), "tls_versions"), (client_auth.is_some(), "client_ca")];
        for (_, key) in settles.into_iter().filter(|(says, _)| *says) {
            let hostname = section.text("hostname").unwrap_or_default();
            if let Err(reason) = hostname::check_exact(hostname) {
                let reason =
                    format!("`{key}` cannot be honoured for the host name {}: {reason}", Quoted(hostname));
                self.findings.unfit(section.offset_of(key), reason);
            }
        }
        let says = FrontendTls { versions, client_auth, hsts };
        (says != FrontendTls::default()).then(|| Box::new(says))
    }

    /// Client certificates of a frontend, which can only ask for more than its listener.
    fn frontend_client_auth(
        &mut self,
        section: &Section,
        of_listener: Option<&ClientAuth>,
    ) -> Option<ClientAuth> {
        let asked = section.text("client_auth");
        let less = asked == Some("none")
            || (asked == Some("optional") && of_listener.is_some_and(|of_listener| of_listener.required));
        if less {
            let reason = "a frontend can only ask for more than its listener: leave `client_auth` to the listener, or take it away there and ask in the other frontends";
            self.findings.unfit(section.offset_of("client_auth"), reason);
            return None;
        }
        self.client_auth(section)
    }

    /// Two frontends for the same requests must lead to the same answer.
    fn check_unique(&mut self, cluster: &str, section: &Section, frontend: &Frontend) {
        let path = match &frontend.path {
            PathRule::Prefix(path) => format!("PREFIX {path}"),
            PathRule::Equals(path) => format!("EQUALS {path}"),
            PathRule::Regex(path) => format!("REGEX {path}"),
        };
        let asks = (frontend.position, &frontend.predicates);
        let rule = (frontend.address, frontend.hostname.to_ascii_lowercase(), path, &frontend.method, asks);
        let hsts = frontend.tls.as_ref().and_then(|tls| tls.hsts.as_ref());
        let limits = frontend
            .limits
            .as_deref()
            .map(|limits| toml::to_string(&write::frontend_limits(limits)).unwrap_or_default());
        let template = frontend.redirect_template.as_ref().map(|template| &*template.text);
        let redirect = (frontend.redirect.word(), &frontend.rewrite, template);
        let action = (frontend.deny, frontend.required_auth, redirect, &frontend.headers, &frontend.split);
        let answer = self.rules.hash((cluster, action, hsts, limits));
        let line = self.findings.source.line(section.offset);
        let (other, answers) = *self.rules.answers.entry(self.rules.hash(rule)).or_insert((line, answer));
        if answers != answer {
            self.findings.error(section.offset, |place| ConfigError::DuplicateFrontend { place, other });
        }
    }

    /// Two frontends for the same host name of a listener with TLS must not contradict each other in what is settled
    /// before a request is read.
    fn check_host(&mut self, protocol: ClusterProtocol, section: &Section, frontend: &Frontend) {
        let says = frontend.tls.as_deref().filter(|it| it.versions.is_some() || it.client_auth.is_some());
        let this = Settled {
            line: self.findings.source.line(section.offset),
            passes: protocol == ClusterProtocol::Tcp,
            says: says.map(|it| {
                Box::new(Demands { versions: it.versions.clone(), client_auth: it.client_auth.clone() })
            }),
        };
        let host = self.rules.hash((frontend.address, hostname::normal(&frontend.hostname)));
        let others = self.rules.hosts.entry(host).or_default();
        let reason = others.iter().find_map(|other| {
            let line = other.line;
            if this.passes != other.passes {
                return Some(format!(
                    "this host name is passed through by one frontend and decrypted for another, the one in line {line}"
                ));
            }
            let (Some(one), Some(other)) = (&this.says, &other.says) else { return None };
            let differ = if contradict(&one.versions, &other.versions) {
                "`tls_versions`"
            } else if contradict(&one.client_auth, &other.client_auth) {
                "client certificates"
            } else {
                return None;
            };
            Some(format!(
                "this frontend and the one in line {line} have the same host name and say otherwise of {differ}, which are settled by that name alone"
            ))
        });
        // One that says nothing contradicts in nothing but whether it is passed through.
        if others.is_empty() || this.says.is_some() {
            others.reserve_exact(1);
            others.push(this);
        }
        if let Some(reason) = reason {
            self.findings.unfit(section.offset, reason);
        }
    }
}

/// Both say something, and not the same.
fn contradict<T: PartialEq>(one: &Option<T>, other: &Option<T>) -> bool {
    matches!((one, other), (Some(one), Some(other)) if one != other)
}
