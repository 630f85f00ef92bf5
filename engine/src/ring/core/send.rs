//! Sending: one send in flight per socket, which owns its data.

use std::rc::Rc;

use io_uring::{opcode, types};

use super::Core;
use crate::ring::{
    body_memory::{BULK_SMALL, BodyMemory},
    buffers::Role,
    message::SendBuf,
    socket::{End, Operation, Socket, Token},
};

/// Sends up to this size (bytes) are left to the kernel until all of it has gone.
const SMALL_SEND: usize = 16 * 1024;

impl Core {
    pub(super) fn sent(&self, socket: &mut Socket, token: Token, result: i32) {
        let Some(mut sending) = socket.sending.take() else { return };
        let replayable = socket.replayable;
        self.count_sent(socket, result);
        let again = match result {
            1.. => {
                sending.advance(result as usize);
                // A short send: the rest follows.
                !sending.is_empty()
            }
            // Nothing was taken of something: the socket is of no use.
            0 => {
                socket.send_end.get_or_insert(End::broken(libc::EPIPE));
                false
            }
            _ => {
                let again = matches!(-result, libc::EINTR | libc::EAGAIN);
                if !again {
                    socket.send_end.get_or_insert(End::broken(-result));
                }
                again
            }
        };
        if again && !socket.closing && socket.send_end.is_none() {
            let rest = settled(sending, &self.body_memory);
            return self.send(socket, token.slot, rest, replayable);
        }
        if replayable {
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
        let bytes = data.bytes();
        let small = bytes.len() <= SMALL_SEND;
        let wait = match &data {
            // What the peer does not take at once is moved out of the arena, and waits there.
            SendBuf::Received(buffer) if buffer.is_lent() => libc::MSG_DONTWAIT,
            // The kernel's own retrying of short sends (5.19) saves turns, but hides the progress of long ones.
            _ if small => libc::MSG_WAITALL,
            _ => 0,
        };
        let entry = opcode::Send::new(types::Fd(socket.fd), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | wait)
            .build();
        let token = Token { operation: Operation::Send, slot, generation: socket.generation };
        // The data's heap block or arena buffer does not move with the handle to it.
        socket.sending = Some(data);
        socket.replayable = replayable;
        socket.expected = small;
        // SAFETY: the slot owns the data until the completion.
        unsafe { self.start(socket, token, entry) };
        if small {
            self.uring.borrow_mut().expect_immediate();
        }
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
        SendBuf::Bulk(buffer, _) if buffer.len() > BULK_SMALL && rest.len() <= BULK_SMALL => {
            let Some(mut small) = memory.lend(BULK_SMALL) else { return rest };
            let bytes = rest.bytes();
            small[..bytes.len()].copy_from_slice(bytes);
            // Not more than BULK_SMALL.
            let end = bytes.len() as u32;
            SendBuf::Bulk(small, 0..end)
        }
        _ => rest,
    }
}
