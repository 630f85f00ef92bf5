//! Slots, and the end of a socket: cancel, wait for the last completion, close.

use std::{io, os::fd::RawFd};

use io_uring::{opcode, squeue, types};

use super::Core;
use crate::ring::{
    buffers::Role,
    socket::{Operation, Table},
    sys,
    uring::NOBODY,
};

impl Core {
    /// A slot for a descriptor.
    pub(in crate::ring) fn insert(&self, fd: RawFd, role: Role) -> io::Result<u32> {
        self.sockets.borrow_mut().insert(fd, role).ok_or_else(|| {
            sys::close(fd);
            io::Error::from(io::ErrorKind::OutOfMemory)
        })
    }

    /// The handle is gone: cancels what is in flight, and closes when the last of it has completed.
    pub(in crate::ring) fn release(&self, slot: u32) {
        let sockets = &mut *self.sockets.borrow_mut();
        let socket = sockets.get(slot);
        while self.pop_received(socket).is_some() {}
        socket.forget_waiters();
        socket.closing = true;
        if socket.in_flight == 0 {
            return self.close(sockets, slot);
        }
        for operation in Operation::ALL {
            let pausing = matches!(operation, Operation::Receive | Operation::Poll);
            if socket.is_in_flight(operation) && !(pausing && socket.pausing) {
                self.cancel(socket, operation, slot);
            }
        }
    }

    /// Gives a slot back and closes its descriptor.
    pub(super) fn close(&self, sockets: &mut Table, slot: u32) {
        let socket = sockets.get(slot);
        if let Some(sending) = socket.sending.take() {
            self.retire(sending);
        }
        let fd = sockets.remove(slot);
        let mut entry = opcode::Close::new(types::Fd(fd)).build().user_data(NOBODY);
        if self.features.skip_cqe {
            entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        }
        // SAFETY: the entry points to no memory, and the slot that owned the descriptor has given it up.
        unsafe { self.uring.borrow_mut().push(entry) };
    }
}
