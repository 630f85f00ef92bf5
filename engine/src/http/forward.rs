//! A request as a backend gets it.
use super::RequestHead;
use kakehi_ctl::state::Forwarding;

/// What kakehi tells a backend about the connection that a request came from.
#[derive(Debug, Clone, Copy)]
pub struct ForwardedBy<'a> {
    /// Address of the peer, without port: `1.2.3.4` or `2001:db8::1`.
    pub peer_ip: &'a str,
    /// Port that the client connected to, in decimal.
    pub local_port: &'a str,
    /// `http` or `https`.
    pub proto: &'a str,
    /// Whether the peer may set these fields itself.
    pub trusted: bool,
    /// Which fields are added.
    pub switches: &'a Forwarding,
    /// Identity of this request (the text of a ULID).
    pub request_id: &'a str,
}

impl RequestHead<'_> {
    /// Appends the request as the backend gets it.
    pub fn write_forwarded(&self, by: &ForwardedBy<'_>, out: &mut Vec<u8>) {
        let _ = (by, out);
    }
}
