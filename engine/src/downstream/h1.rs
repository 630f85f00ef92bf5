//! An HTTP/1 connection as the downstream of an exchange.

use std::rc::Rc;

use super::client::ClientConnection;
use crate::{
    exchange::{
        Client, Downstream, Encoded, Failure, ListenerConfig, LocalReply, Outcome, Request, Shared, Taken,
    },
    h1::{AddedFields, HeadProgress, OutConnection, OutFraming, RequestHead, ResponseHead, ResponsePlan},
    http::Reason,
    quota::Place,
    ring::{Recv, SendBuf, Timer},
    transfer::{ReadBuffer, RelayError, flush},
    transport::{AddressPair, TransportStream},
    upstream::{Cluster, Lease},
};

impl Downstream for ClientConnection {
    fn shared(&self) -> &Shared {
        &self.connections.shared
    }

    fn config(&self) -> Rc<ListenerConfig> {
        self.listener.config()
    }

    fn timer(&self) -> &Timer {
        &self.timer
    }

    fn is_last(&self) -> bool {
        ClientConnection::is_last(self)
    }

    fn addresses(&self) -> Option<AddressPair> {
        ClientConnection::addresses(self)
    }

    async fn head<T>(
        &mut self,
        config: &ListenerConfig,
        mut take: impl FnMut(&Shared, &RequestHead<'_>, &Client<'_>) -> Taken<T>,
    ) -> Result<T, Outcome> {
        let refuse = |reason| Outcome::LocalReply(Box::new(LocalReply::malformed(reason)));
        let mut progress = HeadProgress::default();
        let mut due = None;
        loop {
            if let Some(taken) = self.parse_head(config, &mut progress, &mut take).map_err(refuse)? {
                return Ok(taken);
            }
            self.read_buffer.copy_out_of_pool();
            // The deadline is that of the whole head, however many pieces it comes in.
            let due = *due.get_or_insert_with(|| self.head_due(config));
            self.timer.set_at(due);
            match self.timer.limit(self.stream.receive()).await {
                Ok(Ok(Recv::Data(buffer))) => self.read_buffer.push(buffer),
                Ok(Ok(Recv::Finished) | Err(_)) => return Err(Outcome::ClientGone),
                Err(_) => return Err(refuse(Reason::RequestTimeout)),
            }
        }
    }

    fn read_buffer(&mut self) -> &mut ReadBuffer {
        &mut self.read_buffer
    }

    fn body(&self) -> &TransportStream {
        &self.stream
    }

    fn encode(&self, head: &ResponseHead<'_>, request: &Request, last: bool, more: &str) -> Encoded {
        let keep_alive = request.keep_alive && !last && !self.is_last();
        let plan = ResponsePlan::new(head, request.method, request.version, keep_alive);
        let shared = &self.connections.shared;
        let date = (!head.is_interim() && !head.dated).then(|| shared.date());
        let mut out = shared.ring.head_buffer();
        let mut text = [0; ulid::ULID_LEN];
        let added = match head.is_interim() {
            true => AddedFields {
                id: request.id_line(shared, &mut text).map(|(name, _)| (name, "")),
                ..AddedFields::default()
            },
            false => AddedFields {
                transport: request.hsts.as_deref(),
                date: date.as_ref(),
                id: request.id_line(shared, &mut text),
            },
        };
        head.write_forwarded(&plan, &added, &mut out);
        if !more.is_empty() {
            // Before the empty line.
            out.truncate(out.len() - 2);
            out.extend_from_slice(more.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        if let Some(edits) = request.edits().filter(|_| !head.is_interim()) {
            edits.apply(&mut out);
        }
        let goes_on = plan.framing != OutFraming::UntilClose
            && matches!(plan.connection, OutConnection::Implicit | OutConnection::KeepAlive10);
        Encoded { head: out, framing: plan.framing, keep_alive: goes_on }
    }

    fn take_bound(&mut self, cluster: &Rc<Cluster>) -> Option<Lease> {
        ClientConnection::take_bound(self, cluster)
    }

    fn bind(&mut self, lease: Lease, cluster: &Rc<Cluster>) {
        ClientConnection::bind(self, lease, cluster);
    }

    fn place(&self) -> Option<&Place> {
        ClientConnection::place(self)
    }

    fn set_place(&mut self, place: Option<Place>) {
        ClientConnection::set_place(self, place);
    }

    async fn interim(&self, head: Vec<u8>, stall_ms: u64) -> Result<(), Failure> {
        self.respond(head.into(), stall_ms).await
    }

    async fn respond(&self, mut head: SendBuf, stall_ms: u64) -> Result<(), Failure> {
        if self.stream.is_sending() {
            // What was sent before may take the client long.
            head = head.out_of_arena();
        }
        match flush(&self.stream, &self.timer, stall_ms).await {
            Ok(()) => {
                self.stream.start_send(head);
                Ok(())
            }
            Err(RelayError::SinkStalled) => Err(Failure::ClientStalled),
            Err(_) => Err(Failure::ClientGone),
        }
    }
}

impl ClientConnection {
    /// Parses the head in the read buffer, gives it to `take`, and forgets it, unless it is left. `None` when it is incomplete.
    fn parse_head<T>(
        &mut self,
        config: &ListenerConfig,
        progress: &mut HeadProgress,
        take: &mut impl FnMut(&Shared, &RequestHead<'_>, &Client<'_>) -> Taken<T>,
    ) -> Result<Option<T>, Reason> {
        let (peer, is_last, is_young) = (self.peer(), self.is_last(), self.head_due != 0);
        let ClientConnection { connections, read_buffer, info, stream, .. } = self;
        let shared = &connections.shared;
        let scratch = &mut *shared.scratch.borrow_mut();
        let parsed = RequestHead::parse(read_buffer.bytes(), progress, &config.request_limits, scratch)?;
        let Some(head) = parsed else { return Ok(None) };
        let tls = info.as_ref().and_then(|info| info.tls.as_ref());
        let server_name = tls.and_then(|tls| tls.name.as_deref());
        let (is_tls, is_explained) = (stream.is_tls(), false);
        let client = Client { peer, tls, server_name, is_tls, is_young, is_last, is_explained };
        let (taken, length) = (take(shared, &head, &client), head.len);
        Ok(Some(match taken {
            Taken::Whole(taken) => {
                read_buffer.consume(length);
                taken
            }
            Taken::Left(taken) => taken,
        }))
    }
}
