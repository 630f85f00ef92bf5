//! Accepting connections.

use io_uring::{opcode, types};

use super::Core;
use crate::ring::{
    socket::{Operation, Socket, Token},
    sys,
};

/// Every accepted connection is non-blocking from its birth.
const ACCEPT_FLAGS: i32 = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

impl Core {
    pub(super) fn accepted(&self, socket: &mut Socket, token: Token, result: i32, more: bool) {
        let error = -result;
        if result >= 0 {
            if socket.closing {
                sys::close(result);
            } else {
                socket.cold().accepted.push_back(result);
            }
        } else if !matches!(error, libc::ECANCELED | libc::EINTR | libc::EAGAIN | libc::ECONNABORTED) {
            socket.cold().accept_error = Some(error);
        }
        let goes_on = socket.wants_receive && socket.cold().accept_error.is_none();
        if !more && !socket.closing && goes_on {
            match result {
                // More may wait: the poll comes only when there are none.
                0.. if !self.features.accept_waits => self.accept_now(socket, token.slot),
                _ => self.arm_accept(socket, token.slot),
            }
        }
        if !more {
            socket.pausing = false;
        }
        socket.wake_receiver();
    }

    /// Sees to it that an accept is armed.
    pub(in crate::ring) fn arm_accept(&self, socket: &mut Socket, slot: u32) {
        if socket.is_in_flight(Operation::Accept) || socket.is_in_flight(Operation::Poll) {
            return;
        }
        if self.features.accept_waits {
            return self.accept_now(socket, slot);
        }
        // On a socket that does not block, an accept of this kernel does not wait either.
        let entry = opcode::PollAdd::new(types::Fd(socket.fd), libc::POLLIN as u32).build();
        let token = Token { operation: Operation::Poll, slot, generation: socket.generation };
        // SAFETY: the entry points to no memory.
        unsafe { self.start(socket, token, entry) };
    }

    pub(super) fn accept_now(&self, socket: &mut Socket, slot: u32) {
        let fd = types::Fd(socket.fd);
        let entry = if self.features.multishot_accept && self.features.accept_waits {
            opcode::AcceptMulti::new(fd).flags(ACCEPT_FLAGS).build()
        } else {
            opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut()).flags(ACCEPT_FLAGS).build()
        };
        let token = Token { operation: Operation::Accept, slot, generation: socket.generation };
        // SAFETY: no address is asked for, so the entry points to no memory.
        unsafe { self.start(socket, token, entry) };
    }
}
