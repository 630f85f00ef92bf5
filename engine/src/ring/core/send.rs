//! Sending: one send in flight per socket, which owns its data.

use std::rc::Rc;

use io_uring::{opcode, types};

use super::Core;
use crate::ring::{
    body_memory::{BodyMemory, size_for},
    buffers::Role,
    message::SendBuf,
    socket::{End, Operation, Socket, Token},
};

/// Sends up to this size (bytes) are expected to go at once: nobody waits for their completion.
const SMALL_SEND: usize = 16 * 1024;

impl Core {
    /// The send, or the wait for room that takes its place in between, has completed.
    pub(super) fn send_completed(&self, socket: &mut Socket, token: Token, result: i32, more: bool) {
        if !socket.awaits_room {
            return self.sent(socket, token, result);
        }
        if self.has_room(socket, token, result, more) {
            socket.awaits_room = false;
            if !socket.closing {
                self.send_rest(socket, token);
            }
        }
    }

    fn sent(&self, socket: &mut Socket, token: Token, result: i32) {
        let Some(mut sending) = socket.sending.take() else { return };
        self.count_sent(socket, result);
        match result {
            1.. => sending.advance(result as usize),
            // Nothing was taken of something: the socket is of no use.
            0 => socket.send_end = socket.send_end.or(Some(End::broken(libc::EPIPE))),
            _ if matches!(-result, libc::EINTR | libc::EAGAIN) => {}
            error => socket.send_end = socket.send_end.or(Some(End::broken(-error))),
        }
        if !sending.is_empty() && !socket.closing && socket.send_end.is_none() {
            socket.sending = Some(settled(sending, &self.body_memory));
            socket.awaits_room = true;
            return self.await_room(socket, token);
        }
        if socket.replayable {
            socket.sending = Some(sending);
        } else {
            self.retire(sending);
        }
        if socket.wants_send {
            socket.wants_send = false;
            socket.wake_sender();
        }
    }

    pub(in crate::ring) fn count_sent(&self, socket: &Socket, result: i32) {
        if socket.role == Role::Downstream && result > 0 {
            let [_, sent] = &self.downstream_bytes;
            sent.set(sent.get() + result as u64);
        }
    }

    /// Starts a send; none may be in flight.
    pub(in crate::ring) fn send(&self, socket: &mut Socket, slot: u32, data: SendBuf, replayable: bool) {
        assert!(!socket.is_in_flight(Operation::Send), "the kernel reads what is being sent");
        if let Some(sent) = socket.sending.take() {
            self.retire(sent);
        }
        socket.expected = data.len() <= SMALL_SEND;
        socket.sending = Some(data);
        socket.replayable = replayable;
        let token = Token { operation: Operation::Send, slot, generation: socket.generation };
        self.send_rest(socket, token);
        if socket.expected {
            self.uring.borrow_mut().expect_immediate();
        }
    }

    /// Sends what is left to be sent, as much of it as there is room for.
    fn send_rest(&self, socket: &mut Socket, token: Token) {
        let Some(sending) = &socket.sending else { return };
        let bytes = sending.bytes();
        let entry = opcode::Send::new(types::Fd(socket.fd), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
            .build();
        // SAFETY: the slot owns the data until the completion; its heap block or arena buffer does not move with the handle
        // to it.
        unsafe { self.start(socket, token, entry) };
    }

    pub(in crate::ring) fn retire(&self, data: SendBuf) {
        if let SendBuf::Owned(buffer, ..) = data {
            self.recycle(buffer);
        }
    }
}

/// What is left of a send, in memory that waiting does no harm to: nobody may hold a buffer of the arena while a peer takes
/// its time, nor a large private one for a small rest.
fn settled(rest: SendBuf, memory: &Rc<BodyMemory>) -> SendBuf {
    match &rest {
        SendBuf::Received(buffer) if buffer.is_lent() => SendBuf::from(buffer.to_vec()),
        SendBuf::Bulk(buffer, _) if size_for(rest.len()) < buffer.len() => {
            let Some(mut small) = memory.lend(rest.len()).filter(|small| small.len() >= rest.len()) else {
                return rest;
            };
            let bytes = rest.bytes();
            small[..bytes.len()].copy_from_slice(bytes);
            // Not more than BULK_SIZE.
            let end = bytes.len() as u32;
            SendBuf::Bulk(small, 0..end)
        }
        _ => rest,
    }
}
