//! Sending: one send in flight per socket, which owns its data.

use std::rc::Rc;

use io_uring::{opcode, types};

use super::Core;
use crate::ring::{
    body_memory::{BULK_SMALL, BodyMemory},
    buffers::Role,
    socket::{Operation, Sending, Socket, Token},
    stream::SendBuf,
};

/// Sends up to this size (bytes) are left to the kernel until all of it has gone.
const SMALL_SEND: usize = 16 * 1024;

impl Core {
    pub(super) fn sent(&self, socket: &mut Socket, token: Token, result: i32) {
        let Some(mut sending) = socket.sending.take() else { return };
        self.count_sent(socket, result);
        if result > 0 && !socket.closing {
            sending.at += result as u32;
            if (sending.at as usize) < sending.data.len() {
                // A short send: the rest follows.
                return self.send(socket, token.slot, sending.settled(&self.body_memory));
            }
        }
        if result == 0 && socket.send_error == 0 {
            // Nothing was taken of something: the socket is of no use.
            socket.send_error = libc::EPIPE;
        }
        if result < 0 && socket.send_error == 0 {
            if (-result == libc::EINTR || -result == libc::EAGAIN) && !socket.closing {
                return self.send(socket, token.slot, sending.settled(&self.body_memory));
            }
            socket.send_error = -result;
        }
        if sending.replayable {
            socket.sending = Some(sending);
        } else {
            self.retire(sending.data);
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
    pub(in crate::ring) fn send(&self, socket: &mut Socket, slot: u32, sending: Sending) {
        assert!(!socket.is_in_flight(Operation::Send), "the kernel reads what is being sent");
        if let Some(sent) = socket.sending.take() {
            self.retire(sent.data);
        }
        let bytes = &sending.data.bytes()[sending.at as usize..];
        let small = bytes.len() <= SMALL_SEND;
        let wait = match &sending.data {
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
        socket.sending = Some(sending);
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

impl Sending {
    /// What is left of it, in memory that waiting does no harm to: nobody may hold a buffer of the arena while a peer takes
    /// its time, nor a large private one for a small rest.
    fn settled(self, memory: &Rc<BodyMemory>) -> Sending {
        let at = self.at as usize;
        let rest = match &self.data {
            SendBuf::Received(buffer) if buffer.is_lent() => SendBuf::from(buffer[at..].to_vec()),
            SendBuf::Bulk(buffer, _) if buffer.len() > BULK_SMALL && self.data.len() - at <= BULK_SMALL => {
                let Some(mut small) = memory.lend(BULK_SMALL) else { return self };
                let rest = &self.data.bytes()[at..];
                small[..rest.len()].copy_from_slice(rest);
                // Not more than BULK_SMALL.
                SendBuf::Bulk(small, 0..rest.len() as u32)
            }
            _ => return self,
        };
        Sending { data: rest, at: 0, ..self }
    }
}
