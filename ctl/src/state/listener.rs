//! Addresses that accept connections, and how they treat them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use super::{Answers, Binding, InterfaceName, RateLimit, Sources, Tls, header_edit::is_of_framing, is_token};
use crate::{
    keys::{keyed, words},
    limits,
};

words! {
    /// What a listener speaks.
    #[derive(Default)]
    pub enum ListenerProtocol {
        /// HTTP/1.x in clear text.
        #[default]
        Http = "http",
        /// HTTP/1.x over TLS.
        Https = "https",
        /// Bytes, which are passed on as they are.
        Tcp = "tcp",
    }
}

/// The address of nothing: what the default of a listener or frontend has.
pub(super) const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

keyed! {
    /// An address that accepts connections, and how it treats them.
    pub struct Listener;
    required {
        /// Where it listens; required.
        "address" => address: SocketAddr = NOWHERE, Address, Yes, Live;
        /// What it speaks; required. `https` terminates TLS and speaks HTTP within; `tcp` passes connections on as
        /// they are.
        "protocol" => protocol: ListenerProtocol = ListenerProtocol::Http, Choice(&["http", "https", "tcp", "udp"]), Partly("a listener of `udp` is skipped, with its frontends"), Live;
    }
    own {
        /// It accepts connections; otherwise it is only configured.
        "active" => active: bool = true, Bool, Own, Live;
        /// The interface of the network that connections come over; all others are refused, whatever address they are for. Without it: any.
        "interface" => interface: Option<InterfaceName> = None, Interface, Yes, Live;
        /// The address that clients see where that is another one (NAT); told to backends.
        "public_address" => public_address: Option<SocketAddr> = None, Address, Yes, Requests;
        /// Each connection begins with a PROXY protocol header (version 1 or 2), which names the client.
        "expect_proxy" => expect_proxy: bool = false, Bool, Yes, Connections;
        /// Name of the cookie of sticky sessions.
        "sticky_name" => sticky_name: String = "SOZUBALANCEID".to_owned(), Token, Yes, Requests;
        /// On a listener of `tcp` whose frontends have names: how long the first message of TLS, which has the name, may take to
        /// arrive, in seconds.
        "sni_preread_timeout" => sni_preread_ms: u64 = limits::SNI_PREREAD_TIMEOUT_MS, Seconds, Yes, Connections;
        /// And how long it may be (bytes).
        "sni_preread_max_bytes" => sni_preread_max: u32 = limits::MAX_CLIENT_HELLO as u32, Integer(5, limits::MAX_CLIENT_HELLO_CEILING as u64), Yes, Connections;
        /// With `expect_proxy`: networks whose peers may send that header; connections of others are closed. Takes
        /// the place of the default.
        "proxy_protocol_from" => proxy_peers: Vec<IpNet> = proxy_peers(), Networks, Own, Connections;
    }
    inherited {
        /// A client that closes its sending side is gone: its exchange ends at once. Without it such a client gets
        /// its answer, unless it still waits for a backend to have room.
        "abort_on_close" => abort_on_close: bool = false, Bool, Own, Requests;
    }
    beside {
        /// Deadlines of its connections.
        timeouts: Timeouts = Timeouts::default();
        /// Size limits of its messages.
        sizes: Sizes = Sizes::default();
        /// From whom it takes requests and connections.
        sources: Sources = Sources::default();
        /// How many requests.
        rates: Vec<RateLimit> = Vec::new();
        /// Responses of kakehi's own, where the cluster has none.
        answers: Answers = Answers::default();
        /// Fields that kakehi adds to requests.
        forwarding: Forwarding = Forwarding::default();
        /// How it terminates TLS, if it speaks `https`.
        tls: Option<Box<Tls>> = None;
    }
}

keyed! {
    /// Deadlines (ms). All are absolute: bytes that trickle do not extend them, except where a rate is named.
    pub struct Timeouts;
    inherited {
        /// Deadline of a complete request head, in seconds.
        "request_timeout" => request_ms: u64 = limits::REQUEST_TIMEOUT_MS, Seconds, Yes, Requests;
        /// How long a client connection may stay idle, or take no bytes, in seconds.
        "front_timeout" => front_ms: u64 = limits::FRONT_TIMEOUT_MS, Seconds, Yes, Requests;
        /// How long a backend may stay silent, in seconds.
        "back_timeout" => back_ms: u64 = limits::BACK_TIMEOUT_MS, Seconds, Yes, Requests;
        /// Deadline of one connection attempt to a backend, in seconds.
        "connect_timeout" => connect_ms: u64 = limits::CONNECT_TIMEOUT_MS, Seconds, Yes, Requests;
        /// How long a request body may stand still before `body_min_rate` counts, in seconds.
        "body_timeout" => body_ms: u64 = limits::BODY_TIMEOUT_MS, Seconds, Own, Requests;
        /// Slowest request body, in bytes per second; 0 = any.
        "body_min_rate" => body_min_rate: u32 = limits::BODY_MIN_RATE, Integer(0, u32::MAX as u64), Own, Requests;
        /// Slowest response, in bytes per second, of a backend that was silent for `back_timeout` in all, or to a
        /// client that took nothing for `front_timeout` in all; 0 = any.
        "response_min_rate" => response_min_rate: u32 = limits::RESPONSE_MIN_RATE, Integer(0, u32::MAX as u64), Own, Requests;
        /// Deadline of a whole response, in seconds; 0 = none.
        "max_response_time" => response_ms: u64 = limits::MAX_RESPONSE_TIME_MS, SecondsOrZero, Own, Requests;
        /// How long a request body that is still coming when its request was answered is read and thrown away, in
        /// seconds.
        "lingering_time" => lingering_ms: u64 = limits::LINGERING_TIME_MS, Seconds, Own, Requests;
        /// How long such a body may stand still, in seconds.
        "lingering_timeout" => lingering_idle_ms: u64 = limits::LINGERING_TIMEOUT_MS, Seconds, Own, Requests;
        /// How long an upgraded connection (WebSocket) may stay silent, in seconds.
        "tunnel_timeout" => tunnel_ms: u64 = limits::TUNNEL_TIMEOUT_MS, Seconds, Own, Requests;
        /// How long the backend's `100 Continue` is waited for, in seconds.
        "continue_timeout" => continue_ms: u64 = limits::CONTINUE_TIMEOUT_MS, Seconds, Own, Requests;
    }
}

keyed! {
    /// Size limits of messages (bytes, fields).
    pub struct Sizes;
    inherited {
        /// Largest request head (bytes); beyond: 431.
        "max_head_size" => head: u32 = limits::MAX_HEAD_SIZE, Integer(512, limits::MAX_HEAD_SIZE_CEILING as u64), Own, Requests;
        /// Most fields of a head; beyond: 431.
        "max_head_fields" => fields: u16 = limits::MAX_HEAD_FIELDS, Integer(1, limits::MAX_HEAD_FIELDS_CEILING as u64), Own, Requests;
        /// Longest request target (bytes); beyond: 414.
        "max_target_size" => target: u32 = limits::MAX_TARGET_SIZE, Integer(64, limits::MAX_HEAD_SIZE_CEILING as u64), Own, Requests;
        /// Largest response head of a backend (bytes); beyond: 502.
        "max_response_head_size" => response_head: u32 = limits::MAX_RESPONSE_HEAD_SIZE, Integer(512, limits::MAX_HEAD_SIZE_CEILING as u64), Own, Requests;
        /// Largest request body (bytes), 0 = no limit; beyond: 413.
        "max_body_size" => body: u64 = limits::MAX_BODY_SIZE, Integer(0, i64::MAX as u64), Own, Requests;
    }
}

words! {
    /// Which families of fields kakehi adds to a request.
    #[derive(Default)]
    pub enum ForwardedHeaders {
        /// `X-Forwarded-*` and `Forwarded`.
        #[default]
        Both = "both",
        /// `X-Forwarded-*`.
        XForwarded = "x_forwarded",
        /// `Forwarded` (RFC 7239).
        Rfc7239 = "rfc7239",
        /// Neither.
        None = "none",
    }
}

keyed! {
    /// Which fields kakehi adds to a request, and whose it believes.
    ///
    /// A field that is switched off is not added. What a peer outside `trusted_peers` sends in any of
    /// them never reaches a backend, switched on or off.
    pub struct Forwarding;
    own {
        /// Add `X-Real-IP`, the client's address.
        "send_x_real_ip" => x_real_ip: bool = false, Bool, Yes, Requests;
        /// Drop the `X-Real-IP` that a client sent.
        "elide_x_real_ip" => elide_x_real_ip: bool = false, Bool, Yes, Requests;
        /// Which families of fields are added at most: `X-Forwarded-*` (`x_forwarded`), `Forwarded` (`rfc7239`), both, or none of them. What
        /// a peer outside `trusted_peers` sends in any of them is dropped all the same.
        "forwarded_headers" => families: ForwardedHeaders = ForwardedHeaders::Both, Choice(ForwardedHeaders::WORDS), Yes, Requests;
        /// Name of the field in which the backend, and in the response the client, is told the id of the request, which no other has. Whatever
        /// stands there goes. Empty: it is not added.
        "sozu_id_header" => id_field: String = "Sozu-Id".to_owned(), AnyText, Yes, Requests;
    }
    inherited {
        /// Add the client's address to `X-Forwarded-For`.
        "x_forwarded_for" => x_forwarded_for: bool = true, Bool, Own, Requests;
        /// Add `X-Forwarded-Proto`.
        "x_forwarded_proto" => x_forwarded_proto: bool = true, Bool, Own, Requests;
        /// Add `X-Forwarded-Port`, the port that the client connected to.
        "x_forwarded_port" => x_forwarded_port: bool = true, Bool, Own, Requests;
        /// Add `X-Forwarded-Host`, the authority that the client asked for.
        "x_forwarded_host" => x_forwarded_host: bool = true, Bool, Own, Requests;
        /// Add the client to `Forwarded` (RFC 7239).
        "forwarded" => forwarded: bool = true, Bool, Own, Requests;
        /// Add kakehi to `Via` (RFC 9110).
        "via" => via: bool = true, Bool, Own, Requests;
        /// Add `X-Request-Id`.
        "x_request_id" => x_request_id: bool = true, Bool, Own, Requests;
        /// Pass on request fields with `_` in their names. They are dropped otherwise, because many backends cannot
        /// tell `A_B` from `A-B`.
        "underscores_in_headers" => underscores: bool = false, Bool, Own, Requests;
        /// Networks whose peers may send these fields themselves; from all others they are dropped. What they say counts for limits, keys
        /// and `https_redirect`, too.
        "trusted_peers" => trusted_peers: Vec<IpNet> = Vec::new(), Networks, Own, Requests;
    }
}

/// Fields that whoever reads them acts on, besides those that frame a message.
const WITH_MEANING: [&str; 34] = [
    "accept",
    "accept-encoding",
    "accept-ranges",
    "age",
    "allow",
    "alt-svc",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-location",
    "content-range",
    "content-security-policy",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expires",
    "forwarded",
    "last-modified",
    "location",
    "origin",
    "pragma",
    "range",
    "referer",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];
/// And those whose names begin so.
const WITH_MEANING_FROM: [&str; 6] =
    ["access-control-", "if-", "proxy-", "sec-", "x-client-cert-", "x-forwarded-"];

impl Forwarding {
    /// Its switches of the family `X-Forwarded-*`, with their keys.
    pub(crate) fn x_forwarded(&mut self) -> [(&'static str, &mut bool); 4] {
        [
            ("x_forwarded_for", &mut self.x_forwarded_for),
            ("x_forwarded_proto", &mut self.x_forwarded_proto),
            ("x_forwarded_port", &mut self.x_forwarded_port),
            ("x_forwarded_host", &mut self.x_forwarded_host),
        ]
    }

    /// The same, with each field switched off that is of a family which is not added.
    #[must_use]
    pub fn effective(&self) -> Forwarding {
        let mut forwarding = self.clone();
        let families = self.families;
        let x_forwarded = matches!(families, ForwardedHeaders::Both | ForwardedHeaders::XForwarded);
        forwarding.x_forwarded().into_iter().for_each(|(_, switch)| *switch &= x_forwarded);
        forwarding.forwarded &= matches!(families, ForwardedHeaders::Both | ForwardedHeaders::Rfc7239);
        forwarding.x_request_id &= !self.id_field.eq_ignore_ascii_case("x-request-id");
        forwarding
    }

    /// Why no field can be called as [`Forwarding::id_field`] says; `None`: one can, or none is added.
    pub fn unfit_id_field(&self) -> Option<&'static str> {
        let name = self.id_field.as_str();
        if name.is_empty() {
            return None;
        }
        if !is_token(name) || name.len() > 256 {
            return Some("`sozu_id_header` is no name of a field");
        }
        let begins = |it: &&str| name.get(..it.len()).is_some_and(|start| start.eq_ignore_ascii_case(it));
        let means_more = WITH_MEANING.iter().any(|it| name.eq_ignore_ascii_case(it))
            || WITH_MEANING_FROM.iter().any(begins)
            || name.eq_ignore_ascii_case("x-real-ip");
        (means_more || is_of_framing(name)).then_some("`sozu_id_header`: that field means something else")
    }
}

impl Listener {
    /// A listener at `address` with every default.
    pub fn http(address: SocketAddr) -> Self {
        Listener { address, ..Listener::default() }
    }

    /// Where its sockets are bound.
    pub fn binding(&self) -> Binding {
        Binding { address: self.address, interface: self.interface }
    }
}

/// Networks whose peers may send a header of the PROXY protocol where nothing else is said: those that are not reached from
/// the internet (RFC 1918, 3927, 4193, 4291, 6598).
fn proxy_peers() -> Vec<IpNet> {
    [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    ]
    .into_iter()
    .filter_map(|network| network.parse().ok())
    .collect()
}
