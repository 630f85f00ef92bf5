//! A client that sends the bytes it is told to and reads what comes.

use std::{
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use super::{
    Broken, End, Message,
    wait::SOON,
    wire::{Stream, Wire},
};

/// One connection.
pub(crate) struct Client {
    wire: Wire,
}

impl Client {
    /// Connects; fails the test where that is refused.
    pub(crate) fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    /// Connects, within [`SOON`].
    pub(crate) fn try_connect(address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect_timeout(&address, SOON)?;
        Ok(Client::of(stream))
    }

    /// A client on a socket that is connected already.
    pub(crate) fn of(stream: TcpStream) -> Client {
        stream.set_write_timeout(Some(SOON)).expect("SO_SNDTIMEO");
        Client::over(Stream::Tcp(stream))
    }

    pub(super) fn over(stream: Stream) -> Client {
        Client { wire: Wire::new(stream, Some(SOON), None) }
    }

    /// From now on a message has this long to become whole.
    pub(crate) fn patience(&mut self, patience: Duration) -> &mut Self {
        self.wire.set_patience(Some(patience));
        self
    }

    /// Sends. A peer that closed meanwhile is no failure: its answer is what the test looks at.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.wire.write(bytes.as_ref());
    }

    /// Whether all of it could be sent.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.wire.write(bytes).is_ok()
    }

    /// Reads the response to a request that was not HEAD.
    #[track_caller]
    pub(crate) fn response(&mut self) -> Message {
        self.response_to("GET")
    }

    /// Reads the response to a request with this method.
    #[track_caller]
    pub(crate) fn response_to(&mut self, method: &str) -> Message {
        match self.try_response_to(method) {
            Ok(message) => message,
            Err(broken) => panic!("response: {broken}"),
        }
    }

    /// Reads a response that may not become whole. An interim response is a response.
    pub(crate) fn try_response(&mut self) -> Result<Message, Broken> {
        self.try_response_to("GET")
    }

    fn try_response_to(&mut self, method: &str) -> Result<Message, Broken> {
        let mut message = Message::read_head(&mut self.wire)?;
        message.read_response_body(&mut self.wire, method)?;
        Ok(message)
    }

    /// Reads a response's head only.
    #[track_caller]
    pub(crate) fn head(&mut self) -> Message {
        Message::read_head(&mut self.wire).unwrap_or_else(|broken| panic!("response head: {broken}"))
    }

    /// Reads exactly so many bytes.
    #[track_caller]
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        self.wire.read_exactly(count).unwrap_or_else(|broken| panic!("{count} bytes: {broken}"))
    }

    /// Reads exactly so many bytes; `None` when the connection ends before.
    pub(crate) fn try_bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        self.wire.read_exactly(count).ok()
    }

    /// All that comes until the connection ends, and how it ends.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, End) {
        self.wire.read_to_end()
    }

    /// Fails unless the proxy closes without another byte.
    #[track_caller]
    pub(crate) fn expect_closed(&mut self) {
        let (rest, end) = self.rest();
        assert!(
            rest.is_empty() && end != End::Deadline,
            "expected the connection to close without another byte, got {end:?} after: {}",
            super::show(&rest)
        );
    }

    /// Fails if a byte comes, or the connection ends, within `time`.
    #[track_caller]
    pub(crate) fn expect_silence(&mut self, time: Duration) {
        self.patience(time);
        let (rest, end) = self.rest();
        self.patience(SOON);
        assert!(
            rest.is_empty() && end == End::Deadline,
            "expected {time:?} of silence, got {end:?} after: {}",
            super::show(&rest)
        );
    }

    /// Says that no more will be sent, and goes on reading.
    pub(crate) fn half_close(&mut self) {
        self.wire.shutdown(Shutdown::Write);
    }

    /// Says so in TLS only; the TCP connection stays open both ways.
    pub(crate) fn close_notify(&mut self) {
        self.wire.tls().close_notify();
    }

    /// Closes its direction of the TCP connection, without a word of TLS.
    pub(crate) fn cut(&mut self) {
        self.wire.cut();
    }

    /// What TLS has agreed on.
    #[track_caller]
    pub(crate) fn agreed(&mut self) -> &mut rustls::Connection {
        &mut self.wire.tls().connection
    }

    /// Whether its session was resumed.
    #[track_caller]
    pub(crate) fn resumed(&mut self) -> bool {
        self.agreed().handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    }

    /// SHA-256 of the certificate that the proxy showed.
    #[track_caller]
    pub(crate) fn served(&mut self) -> String {
        let certificates = self.agreed().peer_certificates().expect("certificates");
        super::pki::fingerprint(&certificates[0])
    }

    /// Records of TLS with these pieces in them, one in each, which are not sent yet.
    #[track_caller]
    pub(crate) fn seal(&mut self, pieces: &[&[u8]]) -> Vec<u8> {
        self.wire.tls().seal(pieces)
    }

    /// Sends bytes over TCP as they are; whether that could be done.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.wire.write_raw(bytes).is_ok()
    }

    /// Sends `data` and receives `count` bytes at the same time.
    #[track_caller]
    pub(crate) fn converse(&mut self, data: &[u8], count: usize) -> Vec<u8> {
        self.wire.converse(data, count).unwrap_or_else(|end| panic!("ended by {end:?}"))
    }

    /// Ends the connection with a reset.
    pub(crate) fn reset(mut self) {
        self.wire.reset_on_close();
    }
}
