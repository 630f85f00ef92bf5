//! What an exchange needs of its client: an HTTP/1 connection is one, and a stream of an HTTP/2 connection will be.

use std::{net::IpAddr, rc::Rc};

use super::{Failure, ListenerConfig, Outcome, Request, Shared};
use crate::{
    h1::{OutFraming, RequestHead, ResponseHead},
    quota::Place,
    ring::{SendBuf, Timer},
    tls::TlsInfo,
    transfer::ReadBuffer,
    transport::{AddressPair, TransportStream},
    upstream::{Cluster, Lease},
};

/// What is known of a client beside its request.
pub(crate) struct Client<'a> {
    pub(crate) peer: Option<IpAddr>,
    /// What its TLS handshake told.
    pub(crate) tls: Option<&'a TlsInfo>,
    /// The name that it asked for there, in lower case.
    pub(crate) server_name: Option<&'a str>,
    pub(crate) is_tls: bool,
    /// This is the first request of its connection.
    pub(crate) is_young: bool,
    /// True if the connection ends with this exchange.
    pub(crate) is_last: bool,
    /// There is none: an operator asks what would become of the request. Nothing binds its connection to a name.
    pub(crate) is_explained: bool,
}

/// A response head as the client gets it.
pub(crate) struct Encoded {
    pub(crate) head: Vec<u8>,
    /// Framing of the body that follows.
    pub(crate) framing: OutFraming,
    /// Another request may follow on the connection.
    pub(crate) keep_alive: bool,
}

/// What was made of the head of a request.
pub(crate) enum Taken<T> {
    /// It is done with.
    Whole(T),
    /// It stays where it is, and is there when it is asked for again.
    Left(T),
}

/// The client's side of one exchange.
pub(crate) trait Downstream {
    /// What all exchanges of the worker share.
    fn shared(&self) -> &Shared;

    /// The configuration of the moment. An exchange keeps the one that it began with.
    fn config(&self) -> Rc<ListenerConfig>;

    /// For the deadlines of this exchange, one at a time.
    fn timer(&self) -> &Timer;

    /// True if the connection ends with the exchange that it is in.
    fn is_last(&self) -> bool;

    /// The two ends of the connection, as far as they are known.
    fn addresses(&self) -> Option<AddressPair>;

    /// Receives the head of a request, and gives it to `take`. Who leaves it there must call this again before the exchange ends.
    ///
    /// # Errors
    /// `ClientGone`, or a local reply when the head is malformed, too large or late.
    async fn head<T>(
        &mut self,
        config: &ListenerConfig,
        take: impl FnMut(&Shared, &RequestHead<'_>, &Client<'_>) -> Taken<T>,
    ) -> Result<T, Outcome>;

    /// What has come behind the head: the beginning of the body, and maybe the next request.
    fn read_buffer(&mut self) -> &mut ReadBuffer;

    /// Where bodies come from and go to; the socket itself, for what only works on sockets, is its `as_plain`.
    fn body(&self) -> &TransportStream;

    /// Writes the head of a response as this client gets it. `last`: no other request can follow, as this one was not read to its
    /// end, or as the session ends with it. `more`: lines of fields that it gets besides, each with its end.
    fn encode(&self, head: &ResponseHead<'_>, request: &Request, last: bool, more: &str) -> Encoded;

    /// Takes the upstream connection that is bound to this client, if it leads to `cluster` and is whole.
    fn take_bound(&mut self, cluster: &Rc<Cluster>) -> Option<Lease>;

    /// Keeps an upstream connection that has authenticated this client for its next request, and for nobody else.
    fn bind(&mut self, lease: Lease, cluster: &Rc<Cluster>);

    /// The place that the connection has at a cluster, if its clients have limits there.
    fn place(&self) -> Option<&Place>;

    /// Gives it another place, or none; the one that it had is free then.
    fn set_place(&mut self, place: Option<Place>);

    /// Sends an interim response.
    ///
    /// # Errors
    /// `ClientGone` or `ClientStalled`.
    async fn interim(&self, head: Vec<u8>, stall_ms: u64) -> Result<(), Failure>;

    /// Sends the head of the final response, with what of the body follows it. `stall_ms`: how long the client may take
    /// nothing of what was sent before.
    ///
    /// # Errors
    /// `ClientGone` or `ClientStalled`.
    async fn respond(&self, head: SendBuf, stall_ms: u64) -> Result<(), Failure>;

    /// True if the client speaks through TLS.
    fn is_tls(&self) -> bool {
        self.body().is_tls()
    }
}
