//! A stream, in clear text or over TLS: what protocol code speaks through, and need not know which it is.
//!
//! It has the methods of [`Stream`] with the same meaning, on plaintext. Promises: without TLS nothing is added but a
//! look at one pointer; with it, an idle connection holds no buffer; the end of what a peer sends is only taken for
//! one when the peer has said so under encryption, anything else is an error.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    ops::Range,
    os::fd::OwnedFd,
    task::{Context, Poll},
};

use crate::{
    ring::{BULK_SIZE, BULK_SMALL, Buf, BulkBuf, Recv, Ring, SendBuf, Stream},
    tls::{RECORD_CONTENT, Session},
};

/// What the records of `length` bytes add to them, rounded up (bytes).
const fn overhead(length: usize) -> usize {
    (length / RECORD_CONTENT + 1) * 64
}

/// Room in front of what is received in bulk: a record that is decrypted must not lie over its plaintext.
const GAP: usize = RECORD_CONTENT + 512;

/// A connection.
pub struct TransportStream {
    stream: Stream,
    tls: Option<Box<Tls>>,
}

struct Tls {
    ring: Ring,
    session: RefCell<Session>,
    /// What [`TransportStream::start_send_replayable`] sent.
    replay: RefCell<Option<Vec<u8>>>,
    bulk: Cell<Bulk>,
    /// The buffer of a bulk receive that was not begun: nothing more will come.
    unused: RefCell<Option<BulkBuf>>,
}

impl Tls {
    /// What a receive gives without waiting, once nothing more will come: the end, or an error.
    fn end(&self) -> Option<io::Result<()>> {
        let session = self.session.borrow();
        if session.is_finished() {
            return Some(Ok(()));
        }
        session.has_failed().then(|| Err(io::ErrorKind::InvalidData.into()))
    }
}

/// Where in its buffer a bulk receive is.
#[derive(Clone, Copy, Default)]
struct Bulk {
    /// Where the plaintext goes.
    start: usize,
    /// Where the records begin.
    records: usize,
    /// Where what is received begins.
    from: usize,
}

impl From<Stream> for TransportStream {
    fn from(stream: Stream) -> TransportStream {
        TransportStream { stream, tls: None }
    }
}

impl TransportStream {
    /// From now on it is over TLS: the handshake is done.
    pub(crate) fn secure(&mut self, ring: &Ring, session: Session) {
        self.tls = Some(Box::new(Tls {
            ring: ring.clone(),
            session: RefCell::new(session),
            replay: RefCell::default(),
            bulk: Cell::default(),
            unused: RefCell::default(),
        }));
    }

    /// Whether it is over TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The stream itself, if it is in clear text: for what only works on sockets.
    pub fn as_plain(&self) -> Option<&Stream> {
        self.tls.is_none().then_some(&self.stream)
    }

    /// Most bytes that are worth sending at a time: what the peer takes at once, and fits, with all that goes with it, a
    /// private buffer; never less than fits a small one.
    pub fn bulk_size(&self) -> usize {
        let size = self.stream.send_room().clamp(BULK_SMALL, BULK_SIZE);
        if self.tls.is_some() { size - overhead(size) } else { size }
    }

    /// The smallest private buffer that it can receive into: records are put together and decrypted in it.
    pub fn least_bulk(&self) -> usize {
        if self.tls.is_some() { BULK_SIZE } else { BULK_SMALL }
    }

    /// See [`Stream::poll_hangup`].
    pub fn poll_hangup(&self, or_finished: bool, context: &Context<'_>) -> Poll<()> {
        self.stream.poll_hangup(or_finished, context)
    }

    /// See [`Stream::stop_watching`].
    pub fn stop_watching(&self) {
        self.stream.stop_watching();
    }

    /// See [`Stream::is_paused`].
    pub fn is_paused(&self) -> bool {
        self.stream.is_paused()
    }

    /// See [`Stream::slow_down`].
    pub fn slow_down(&self) {
        self.stream.slow_down();
    }

    /// See [`Stream::expect_bulk`]. Over TLS a head can only be had with the whole record that it is in.
    pub fn expect_bulk(&self, length: Option<u64>) {
        self.stream.expect_bulk(length.filter(|_| self.tls.is_none()));
    }

    /// See [`Stream::expects_bulk`].
    pub fn expects_bulk(&self) -> Option<u64> {
        self.stream.expects_bulk()
    }

    /// See [`Stream::speed_up`].
    pub fn speed_up(&self) {
        self.stream.speed_up();
    }

    /// Waits until there is something to receive in bulk, or the end.
    ///
    /// # Errors
    /// Those of `poll(2)`.
    pub async fn readable(&self) -> io::Result<()> {
        if self.tls.as_ref().is_some_and(|tls| tls.end().is_some()) {
            return Ok(());
        }
        self.stream.readable().await
    }

    /// See [`Stream::stop_polls`].
    pub async fn stop_polls(&self) {
        self.stream.stop_polls().await;
    }

    /// Receives what comes next.
    ///
    /// # Errors
    /// Those of `recv(2)`; `InvalidData` when what came is not TLS as it should be; `UnexpectedEof` when the connection
    /// ended without a word.
    pub fn poll_receive(&self, context: &Context<'_>) -> Poll<io::Result<Recv>> {
        match &self.tls {
            None => self.stream.poll_receive(context),
            Some(tls) => self.poll_receive_tls(tls, context),
        }
    }

    fn poll_receive_tls(&self, tls: &Tls, context: &Context<'_>) -> Poll<io::Result<Recv>> {
        loop {
            if let Some(end) = tls.end() {
                return Poll::Ready(end.map(|()| Recv::Finished));
            }
            match self.stream.poll_receive(context) {
                Poll::Ready(Ok(Recv::Data(buffer))) => {
                    if let Some(data) = self.open(tls, buffer)? {
                        return Poll::Ready(Ok(Recv::Data(data)));
                    }
                }
                Poll::Ready(Ok(Recv::Finished)) => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Decrypts what came; `None` when there is nothing in it for us yet.
    fn open(&self, tls: &Tls, mut buffer: Buf) -> io::Result<Option<Buf>> {
        let mut plain = Vec::new();
        let opened = tls.session.borrow_mut().open(&mut buffer, &mut plain);
        if let Err(error) = opened {
            self.send_pending();
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if plain.is_empty() {
            return Ok(None);
        }
        if plain.len() > usize::from(u16::MAX) {
            // More than a record and a receive can hold.
            return Err(io::ErrorKind::InvalidData.into());
        }
        if plain.len() <= buffer.len() {
            // It goes where it came from, so that it is counted with what lies in the arena.
            buffer[..plain.len()].copy_from_slice(&plain);
            buffer.truncate(plain.len());
            return Ok(Some(buffer));
        }
        Ok(Some(Buf::owned(plain)))
    }

    /// Receives what comes next.
    ///
    /// # Errors
    /// See [`TransportStream::poll_receive`].
    pub fn receive(&self) -> impl Future<Output = io::Result<Recv>> + '_ {
        poll_fn(move |context| self.poll_receive(context))
    }

    /// Receives something and throws it away. True if more may come. Over TLS too it need not make sense: a part of it may be
    /// lost already, with a bulk receive that was given up.
    pub async fn discard(&self) -> bool {
        let Ok(Recv::Data(mut buffer)) = self.stream.receive().await else { return false };
        let Some(tls) = &self.tls else { return true };
        let mut session = tls.session.borrow_mut();
        let _ = session.open(&mut buffer, &mut Vec::new());
        !session.is_finished()
    }

    /// Receives, without waiting, what has arrived already. An error shows at the next [`TransportStream::poll_receive`].
    pub fn try_receive(&self) -> Option<Buf> {
        let Some(tls) = &self.tls else { return self.stream.try_receive() };
        while let Some(buffer) = self.stream.try_receive() {
            match self.open(tls, buffer) {
                Ok(Some(data)) => return Some(data),
                Ok(None) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// See [`Stream::watch`].
    pub fn watch(&self) {
        self.stream.watch();
    }

    /// Whether nothing has arrived that anybody could take for data, and the connection is whole as far as is known.
    pub fn is_quiet(&self) -> bool {
        let Some(tls) = &self.tls else { return self.stream.is_quiet() };
        // A backend may send tickets at any time.
        while let Some(mut buffer) = self.stream.try_receive() {
            let mut plain = Vec::new();
            if tls.session.borrow_mut().open(&mut buffer, &mut plain).is_err() || !plain.is_empty() {
                return false;
            }
        }
        self.stream.is_quiet() && tls.session.borrow().is_between_records()
    }

    /// Whether more may come, as far as is known.
    pub fn is_open(&self) -> bool {
        self.stream.is_quiet() && self.tls.as_ref().is_none_or(|tls| tls.end().is_none())
    }

    /// See [`Stream::forget_waker`].
    pub fn forget_waker(&self) {
        if let Some(tls) = &self.tls {
            tls.replay.take();
        }
        self.stream.forget_waker();
    }

    /// See [`Stream::pause_receive`].
    pub async fn pause_receive(&self) {
        self.stream.pause_receive().await;
    }

    /// See [`Stream::start_receive_bulk`]; `buffer` is one of [`Ring::bulk_buffer`]. Over TLS more than the range may come,
    /// as far as the buffer has room.
    pub fn start_receive_bulk(&self, mut buffer: BulkBuf, range: Range<usize>) {
        let Some(tls) = &self.tls else { return self.stream.start_receive_bulk(buffer, range) };
        if tls.end().is_some() {
            tls.unused.replace(Some(buffer));
            return;
        }
        // What is kept of a record comes first.
        let session = tls.session.borrow();
        let records = range.start + GAP;
        let from = records + session.partial().len();
        assert!(from < buffer.len(), "a buffer of `least_bulk` has room for a record and its plaintext");
        buffer[records..from].copy_from_slice(session.partial());
        let end = buffer.len();
        self.stream.start_receive_bulk(buffer, from..end);
        tls.bulk.set(Bulk { start: range.start, records, from });
    }

    /// See [`Stream::poll_receive_bulk`].
    ///
    /// # Errors
    /// See [`TransportStream::poll_receive`].
    pub fn poll_receive_bulk(&self, context: &Context<'_>) -> Poll<io::Result<(BulkBuf, usize)>> {
        let Some(tls) = &self.tls else { return self.stream.poll_receive_bulk(context) };
        loop {
            if let Some(buffer) = tls.unused.take() {
                return Poll::Ready(tls.end().unwrap_or(Ok(())).map(|()| (buffer, 0)));
            }
            let (mut buffer, received) = std::task::ready!(self.stream.poll_receive_bulk(context))?;
            let Bulk { start, records, from } = tls.bulk.get();
            let mut session = tls.session.borrow_mut();
            if session.has_failed() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let opened =
                session.open_in_place(&mut buffer[start..], records - start..from + received - start);
            match opened {
                Err(error) => {
                    drop(session);
                    self.send_pending();
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
                }
                Ok(length) if length > 0 => return Poll::Ready(Ok((buffer, length))),
                Ok(_) if session.is_finished() => return Poll::Ready(Ok((buffer, 0))),
                Ok(_) if received == 0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {
                    drop(session);
                    self.start_receive_bulk(buffer, start..start);
                }
            }
        }
    }

    /// See [`Stream::stop_receive_bulk`].
    pub fn stop_receive_bulk(&self) {
        self.stream.stop_receive_bulk();
    }

    /// See [`Stream::receive_bulk`].
    pub fn receive_bulk(&self) -> impl Future<Output = io::Result<(BulkBuf, usize)>> + '_ {
        poll_fn(move |context| self.poll_receive_bulk(context))
    }

    /// See [`Stream::poll_flush`].
    ///
    /// # Errors
    /// That of the last send.
    pub fn poll_flush(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(context)
    }

    /// See [`Stream::flush`].
    ///
    /// # Errors
    /// Those of `send(2)`.
    pub fn flush(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.stream.flush()
    }

    /// See [`Stream::send`].
    ///
    /// # Errors
    /// That of an earlier send; that of this one comes with the next call.
    pub async fn send(&self, data: SendBuf) -> io::Result<()> {
        self.flush().await?;
        self.start_send(data);
        Ok(())
    }

    /// See [`Stream::start_send`].
    pub fn start_send(&self, data: SendBuf) {
        match &self.tls {
            None => self.stream.start_send(data),
            Some(tls) => {
                if data.is_empty() {
                    return;
                }
                tls.replay.take();
                self.seal(tls, data.bytes());
                if let SendBuf::Owned(buffer, _) = data {
                    tls.ring.recycle(buffer);
                }
            }
        }
    }

    /// See [`Stream::start_send_replayable`].
    pub fn start_send_replayable(&self, data: Vec<u8>) {
        match &self.tls {
            None => self.stream.start_send_replayable(data),
            Some(tls) => {
                self.seal(tls, &data);
                tls.replay.replace(Some(data));
            }
        }
    }

    /// Encrypts and sends; no send may be in flight.
    fn seal(&self, tls: &Tls, plain: &[u8]) {
        let length = plain.len();
        if length > RECORD_CONTENT
            && let Some(mut out) = tls.ring.bulk_buffer(length + overhead(length))
            && out.len() >= length + overhead(length)
        {
            let sealed = tls.session.borrow_mut().seal(plain, out.as_vec());
            return self.send_sealed(sealed, |length| SendBuf::Bulk(out, 0..length));
        }
        let mut out = match length {
            // Not more than it needs: a client that is slow to take it holds it for long.
            length if length > RECORD_CONTENT => Vec::with_capacity(length + overhead(length)),
            _ => tls.ring.head_buffer(),
        };
        let sealed = tls.session.borrow_mut().seal(plain, &mut out);
        self.send_sealed(sealed, |length| SendBuf::Owned(out, 0..length));
    }

    fn send_sealed(&self, sealed: Result<usize, rustls::Error>, records: impl FnOnce(u32) -> SendBuf) {
        match sealed {
            // Far below 4 GiB.
            Ok(length) => self.stream.start_send(records(length as u32)),
            Err(error) => {
                // As with a socket that takes nothing more: what waits for the send finds out.
                tracing::debug!(%error, "cannot encrypt");
                self.stream.break_sending();
            }
        }
    }

    /// See [`Stream::take_replay`].
    pub fn take_replay(&self) -> Option<Vec<u8>> {
        match &self.tls {
            None => self.stream.take_replay(),
            Some(_) if self.stream.is_sending() => None,
            Some(tls) => tls.replay.take(),
        }
    }

    /// See [`Stream::is_sending`].
    pub fn is_sending(&self) -> bool {
        self.stream.is_sending()
    }

    /// See [`Stream::unsent`].
    pub fn unsent(&self) -> usize {
        self.stream.unsent()
    }

    /// Whether something should be sent although nobody asked for it: tickets.
    pub fn has_pending(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.session.borrow().has_pending())
    }

    /// Sends what is pending, if nothing is being sent: otherwise it goes out with what is sent next.
    pub fn send_pending(&self) {
        if let Some(tls) = &self.tls
            && !self.stream.is_sending()
            && let Some(pending) = tls.session.borrow_mut().take_pending()
        {
            self.stream.start_send(pending.into());
        }
    }

    /// Tells the peer that nothing more will be sent; receiving goes on. Flush first.
    pub async fn shutdown_write(&self) {
        if let Some(tls) = &self.tls {
            let mut out = tls.ring.head_buffer();
            let closed = tls.session.borrow_mut().close(&mut out);
            if let Ok(length) = closed
                && !self.stream.is_sending()
            {
                self.stream.start_send(SendBuf::Owned(out, 0..length as u32));
                let _ = self.stream.flush().await;
            }
        }
        self.stream.shutdown_write();
    }

    /// See [`Stream::reset_on_close`].
    pub fn reset_on_close(&self) {
        self.stream.reset_on_close();
    }

    /// See [`Stream::peer_address`].
    pub fn peer_address(&self) -> Option<SocketAddr> {
        self.stream.peer_address()
    }

    /// See [`Stream::local_address`].
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.stream.local_address()
    }

    /// See [`Stream::detach`]. `None` over TLS, whose state cannot go with the socket.
    pub fn detach(&mut self) -> Option<OwnedFd> {
        if self.tls.is_some() {
            return None;
        }
        self.stream.detach()
    }
}
