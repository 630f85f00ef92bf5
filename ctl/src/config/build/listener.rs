//! `[[listeners]]`, but for TLS.

use std::net::SocketAddr;

use super::{
    super::read::{Inherited, Section, Values},
    Builder, set,
};
use crate::state::{self, Forwarding, Listener, ListenerProtocol, Sizes, Timeouts};

impl Builder<'_, '_> {
    /// `None` if it is of a protocol that is not served.
    pub(super) fn listener(
        &mut self,
        address: SocketAddr,
        protocol: &str,
        section: &Section,
        root: &Section,
    ) -> Option<Listener> {
        let protocol = match protocol {
            "http" => ListenerProtocol::Http,
            "https" => ListenerProtocol::Https,
            "tcp" => ListenerProtocol::Tcp,
            _ => return None,
        };
        section.warn_unhonoured(self.findings);
        let tls = if protocol == ListenerProtocol::Https {
            self.listener_certificates(address, section);
            Some(Box::new(self.tls(section)))
        } else {
            self.refuse_tls(section);
            None
        };
        let keys = &Inherited { own: section, root };
        Some(Listener {
            address,
            protocol,
            active: section.bool("active").unwrap_or(true),
            public_address: section.address("public_address"),
            timeouts: timeouts(keys),
            sizes: sizes(keys),
            forwarding: forwarding(keys),
            expect_proxy: section.bool("expect_proxy").unwrap_or(false),
            abort_on_close: keys.bool("abort_on_close").unwrap_or(false),
            proxy_peers: section.networks("proxy_protocol_from").unwrap_or_else(state::proxy_peers),
            tls,
        })
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
    set(&mut timeouts.response_min_rate, keys.integer("response_min_rate"));
    set(&mut timeouts.response_ms, keys.millis("max_response_time"));
    set(&mut timeouts.lingering_ms, keys.millis("lingering_time"));
    set(&mut timeouts.lingering_idle_ms, keys.millis("lingering_timeout"));
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
    set(&mut forwarding.underscores, keys.bool("underscores_in_headers"));
    set(&mut forwarding.trusted_peers, keys.networks("trusted_peers"));
    forwarding
}
