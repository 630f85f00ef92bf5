//! `[[listeners]]`, but for TLS.

use std::net::SocketAddr;

use super::{
    super::read::{Inherited, Section},
    Builder,
};
use crate::state::{Listener, ListenerProtocol};

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
        listener.sources = self.sources(section);
        listener.rates = self.rates(section, protocol != ListenerProtocol::Tcp);
        Some(listener)
    }
}
