//! One TLS connection as far as it is about bytes: records in, plaintext out, and the other way round. No sockets here.
//!
//! rustls works on our buffers, so what a connection that waits keeps is the state of its ciphers and, at most, the
//! beginning of a record. Promises: what is given out was authenticated; after a failure nothing more is.

use rustls::{
    CommonState, Error,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};

/// What a record adds to its content at most (RFC 8446 section 5.2; TLS 1.2 adds less): header, type and tag.
const RECORD_OVERHEAD: usize = 5 + 1 + 32;
/// Content of a record at most (RFC 8446 section 5.1).
pub(crate) const RECORD_CONTENT: usize = 16_384;
/// What may be kept of a message that is not complete (bytes): a record, and the overhead that it may have.
pub(crate) const MAX_RECORD: usize = RECORD_CONTENT + 2_048;
/// The same in a handshake in which the peer shows certificates: the longest message that there is.
pub(crate) const MAX_CERTIFICATES: usize = 65_536 + 4_096;

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// One TLS connection.
pub(crate) struct Session {
    side: Side,
    /// Received, and not a whole record or message yet.
    partial: Vec<u8>,
    /// To be sent before everything else: messages of the handshake, tickets, alerts.
    pending: Vec<u8>,
    established: bool,
    /// The peer has said that it sends no more.
    finished: bool,
    /// Nothing more can be received.
    failed: bool,
    /// What may be kept at most (bytes).
    most_kept: usize,
}

/// What a step over the records has led to.
enum Step {
    /// There is something to go on with.
    More,
    /// Nothing more can be done with what is there.
    Blocked,
    Finished,
    Failed(Error),
}

impl Session {
    pub(crate) fn server(connection: UnbufferedServerConnection) -> Session {
        Session::new(Side::Server(connection))
    }

    pub(crate) fn client(connection: UnbufferedClientConnection) -> Session {
        Session::new(Side::Client(connection))
    }

    fn new(side: Side) -> Session {
        let (partial, pending) = (Vec::new(), Vec::new());
        let most_kept = MAX_RECORD;
        Session { side, partial, pending, established: false, finished: false, failed: false, most_kept }
    }

    /// What was agreed on.
    pub(crate) fn common(&self) -> &CommonState {
        match &self.side {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    /// The peer has said that it sends no more.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Nothing more can be received, since something was wrong.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// From now on at most this much is kept of messages that are not complete (bytes).
    pub(crate) fn keep_at_most(&mut self, bytes: usize) {
        self.most_kept = bytes;
    }

    /// Nothing is kept of what came, as far as is known.
    pub(crate) fn is_between_records(&self) -> bool {
        self.partial.is_empty() && !self.finished && !self.failed
    }

    /// What has to be sent before everything else, if there is anything.
    pub(crate) fn take_pending(&mut self) -> Option<Vec<u8>> {
        (!self.pending.is_empty()).then(|| std::mem::take(&mut self.pending))
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Decrypts what came into `received`, behind what is kept. The plaintext is appended to `plain`; `received` has no
    /// more use then. Without anything received it goes on with what is kept, which begins a handshake of ours.
    ///
    /// # Errors
    /// What is wrong with it. An alert that says so is pending then.
    pub(crate) fn open(&mut self, received: &mut [u8], plain: &mut Vec<u8>) -> Result<(), Error> {
        if self.failed || self.finished {
            return Ok(());
        }
        if self.partial.is_empty() {
            let consumed = self.process(received, plain)?;
            self.partial.extend_from_slice(&received[consumed..]);
        } else {
            self.partial.extend_from_slice(received);
            let mut records = std::mem::take(&mut self.partial);
            let consumed = self.process(&mut records, plain)?;
            // Given back when there is nothing to keep: a connection that waits holds no buffer.
            self.partial = if consumed == records.len() { Vec::new() } else { records.split_off(consumed) };
        }
        if self.partial.len() > self.most_kept {
            self.failed = true;
            return Err(Error::General("a message is too large".to_owned()));
        }
        Ok(())
    }

    /// Decrypts `buffer[records]`, which begins with [`Session::partial`] and lies behind room for a record at least, and
    /// puts the plaintext at the beginning of `buffer`. What is left of a record is kept. How much plaintext there is.
    ///
    /// # Errors
    /// See [`Session::open`].
    pub(crate) fn open_in_place(
        &mut self,
        buffer: &mut [u8],
        records: std::ops::Range<usize>,
    ) -> Result<usize, Error> {
        // It has been put in front.
        self.partial = Vec::new();
        let (mut read, mut written) = (records.start, 0);
        while !self.failed && !self.finished {
            // Plaintext is shorter than its records: the gap between the two does not close.
            let (front, back) = buffer.split_at_mut(read);
            let mut sink = |data: &[u8]| {
                front[written..written + data.len()].copy_from_slice(data);
                written += data.len();
            };
            let (discard, step) = self.step(&mut back[..records.end - read], &mut sink);
            read += discard;
            match step {
                Step::More => {}
                Step::Blocked => break,
                Step::Finished => self.finished = true,
                Step::Failed(error) => return Err(self.fail(error)),
            }
        }
        if !self.finished {
            self.partial.extend_from_slice(&buffer[read..records.end]);
        }
        Ok(written)
    }

    /// What is kept of a record, to be put in front of what comes next. It stays here too until then: rustls
    /// remembers how far it has looked at it, and panics when something is sent meanwhile and it is gone.
    pub(crate) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Processes records; returns how many bytes of them are done with.
    fn process(&mut self, records: &mut [u8], plain: &mut Vec<u8>) -> Result<usize, Error> {
        let mut consumed = 0;
        loop {
            let mut sink = |data: &[u8]| plain.extend_from_slice(data);
            let (discard, step) = self.step(&mut records[consumed..], &mut sink);
            consumed += discard;
            match step {
                Step::More => {}
                Step::Blocked => return Ok(consumed),
                Step::Finished => {
                    self.finished = true;
                    // Nothing that follows is of any meaning.
                    return Ok(records.len());
                }
                Step::Failed(error) => return Err(self.fail(error)),
            }
        }
    }

    /// Nothing more is received; the alert about it is made ready to be sent.
    fn fail(&mut self, error: Error) -> Error {
        self.failed = true;
        // Not a step more than there is something to send: rustls gives that out before it looks at what was received,
        // which it must not do again. It panics where a second message is wrong, and where what it has looked at is gone.
        while self.common().wants_write() {
            self.step(&mut [], &mut |_| {});
        }
        error
    }

    fn step(&mut self, records: &mut [u8], sink: &mut impl FnMut(&[u8])) -> (usize, Step) {
        let Session { side, pending, established, .. } = self;
        match side {
            Side::Server(connection) => {
                settle(connection.process_tls_records(records), pending, established, sink)
            }
            Side::Client(connection) => {
                settle(connection.process_tls_records(records), pending, established, sink)
            }
        }
    }

    /// Encrypts what is pending, and `plain` behind it, to the beginning of `out`, which grows if it must. How many bytes
    /// that is.
    ///
    /// # Errors
    /// When the connection cannot send any more, or not yet.
    pub(crate) fn seal(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<usize, Error> {
        self.write(Content::Data(plain), out)
    }

    /// Says, behind what is pending, that nothing more will be sent.
    ///
    /// # Errors
    /// When the connection cannot send any more.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) -> Result<usize, Error> {
        self.write(Content::CloseNotify, out)
    }

    fn write(&mut self, content: Content<'_>, out: &mut Vec<u8>) -> Result<usize, Error> {
        let Session { side, partial, pending, failed, .. } = self;
        if *failed {
            return Err(Error::General("the connection has failed".to_owned()));
        }
        loop {
            // What is kept is passed again, since rustls remembers how far it has looked at it.
            let outcome = match side {
                Side::Server(connection) => {
                    emit(connection.process_tls_records(partial), content, pending, out)
                }
                Side::Client(connection) => {
                    emit(connection.process_tls_records(partial), content, pending, out)
                }
            };
            match outcome {
                Some(Ok(length)) => return Ok(length),
                Some(Err(Refused::NotYet)) => return Err(Error::HandshakeNotComplete),
                Some(Err(Refused::Failed(error))) => return Err(self.fail(error)),
                None => {}
            }
        }
    }
}

/// Why nothing was sent.
enum Refused {
    NotYet,
    Failed(Error),
}

/// What is to be sent.
#[derive(Clone, Copy)]
enum Content<'a> {
    Data(&'a [u8]),
    CloseNotify,
}

/// Encrypts `content`; `None` when rustls has something else to say before.
fn emit<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    content: Content<'_>,
    pending: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Option<Result<usize, Refused>> {
    let UnbufferedStatus { state: Ok(ConnectionState::WriteTraffic(mut traffic)), .. } = status else {
        return match settle(status, pending, &mut false, &mut |_| {}).1 {
            Step::More | Step::Finished => None,
            Step::Blocked => Some(Err(Refused::NotYet)),
            Step::Failed(error) => Some(Err(Refused::Failed(error))),
        };
    };
    let length = match content {
        Content::Data(plain) => plain.len(),
        Content::CloseNotify => 2,
    };
    let at = pending.len();
    let needed = at + length + (length / RECORD_CONTENT + 1) * RECORD_OVERHEAD;
    if out.len() < needed {
        out.resize(needed, 0);
    }
    out[..at].copy_from_slice(pending);
    *pending = Vec::new();
    loop {
        let written = match content {
            Content::Data(plain) => traffic.encrypt(plain, &mut out[at..]),
            Content::CloseNotify => traffic.queue_close_notify(&mut out[at..]),
        };
        match written {
            Ok(written) => return Some(Ok(at + written)),
            Err(EncryptError::InsufficientSize(needed)) => out.resize(at + needed.required_size, 0),
            Err(EncryptError::EncryptExhausted) => return Some(Err(Refused::Failed(Error::EncryptError))),
        }
    }
}

/// Does what rustls asks for in one step: keeps what is to be sent, and gives the plaintext to `sink`. How many bytes of
/// what was received are done with, and how to go on.
fn settle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    pending: &mut Vec<u8>,
    established: &mut bool,
    sink: &mut impl FnMut(&[u8]),
) -> (usize, Step) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    sink(record.payload);
                }
                Some(Err(error)) => break Step::Failed(error),
                None => break Step::More,
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let at = pending.len();
            loop {
                match data.encode(&mut pending[at..]) {
                    Ok(written) => {
                        pending.truncate(at + written);
                        break Step::More;
                    }
                    Err(EncodeError::InsufficientSize(needed)) => {
                        pending.resize(at + needed.required_size, 0)
                    }
                    Err(EncodeError::AlreadyEncoded) => break Step::More,
                }
            }
        }
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Step::More
        }
        Ok(ConnectionState::WriteTraffic(_)) => {
            *established = true;
            Step::Blocked
        }
        Ok(ConnectionState::BlockedHandshake) => Step::Blocked,
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Step::Finished,
        // Early data is never agreed to; and whatever states there may be one day, none is known here.
        Ok(_) => Step::Failed(Error::General("unexpected state".to_owned())),
        Err(error) => Step::Failed(error),
    };
    (discard, step)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
