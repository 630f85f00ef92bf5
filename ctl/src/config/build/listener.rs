//! `[[listeners]]`, but for TLS.

use std::net::SocketAddr;

use super::{
    super::read::{Inherited, Section, Values as _},
    Builder,
};
use crate::state::{Answers, ForwardedHeaders, Forwarding, Listener, ListenerProtocol};

impl Builder<'_, '_> {
    /// `None` if it is of a protocol that is not served.
    pub(super) fn listener(
        &mut self,
        address: SocketAddr,
        protocol: &str,
        section: &Section,
        root: &Section,
    ) -> Option<Listener> {
        let protocol = ListenerProtocol::from_word(protocol)?;
        section.warn_unhonoured(self.findings);
        let tls = if protocol == ListenerProtocol::Https {
            self.listener_certificates(address, section);
            Some(Box::new(self.tls(section)))
        } else {
            self.refuse_tls(section);
            None
        };
        let given = &Inherited { own: section, root };
        let mut listener = Listener { address, protocol, tls, ..Listener::default() };
        listener.read_keys(section, given, self.folder);
        listener.timeouts.read_keys(section, given, self.folder);
        listener.sizes.read_keys(section, given, self.folder);
        listener.forwarding.read_keys(section, given, self.folder);
        self.check_forwarding(section, &listener.forwarding);
        listener.sources = self.sources(section);
        listener.rates = self.rates(section, protocol != ListenerProtocol::Tcp);
        listener.answers = self.answers(section);
        if protocol == ListenerProtocol::Tcp && !listener.answers.is_empty() {
            let text = "own answers have no effect on a listener of `tcp`, which knows no requests";
            self.findings.warn(section.offset, text);
            listener.answers = Answers::default();
        }
        Some(listener)
    }

    /// A field that is asked for cannot be of a family that is not added.
    fn check_forwarding(&mut self, section: &Section, forwarding: &Forwarding) {
        let mut effective = forwarding.effective();
        let mut switches: Vec<_> =
            effective.x_forwarded().into_iter().map(|(key, switch)| (key, *switch)).collect();
        switches.push(("forwarded", effective.forwarded));
        for (key, _) in switches.into_iter().filter(|(_, is_added)| !is_added) {
            if section.bool(key) == Some(true) {
                let line = self.findings.source.line(section.offset_of("forwarded_headers"));
                let word = forwarding.families.word();
                let reason = format!(
                    "`{key} = true` says otherwise than `forwarded_headers = \"{word}\"` in line {line}"
                );
                self.findings.unfit(section.offset_of(key), reason);
            }
        }
        if let Some(reason) = forwarding.unfit_id_field() {
            self.findings.unfit(section.offset_of("sozu_id_header"), reason);
        }
        if forwarding.families == ForwardedHeaders::None {
            let text = "nothing is added with `forwarded_headers = \"none\"`, and what peers outside `trusted_peers` send in these fields is dropped all the same";
            self.warn_at(section, "forwarded_headers", text.to_owned());
        }
    }
}
