//! Waits for room to send.
//!
//! The kernel does not do that for us. It ends every wait on a socket whose peer has said that it sends no more, whatever the
//! wait is for; a send that finds no room then would be tried again at once, and at last by a kernel thread of its own, which
//! stays as long as the peer takes nothing. So no send waits in the kernel, and what a wait for room was told is looked at:
//!
//! | the peer | the wait |
//! |---|---|
//! | may still send | one poll |
//! | has finished | a multishot poll, which tells that once, and then of room; cancelled when there is some |
//! | has finished, kernel before 5.13 | a pause |

use io_uring::{opcode, types};

use super::Core;
use crate::ring::socket::{Socket, Token};

/// What ends a wait for room: room, or a connection that is broken.
const ROOM: i32 = (libc::POLLOUT | libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) as i32;

/// How long a peer that has finished is left alone where the kernel would tell of nothing else: long enough that a thousand of
/// them cost little.
static PAUSE: types::Timespec = types::Timespec::new().nsec(100_000_000);

impl Core {
    /// Starts to wait until there is room, for the operation of `token`; what completes it goes to [`Core::has_room`].
    pub(in crate::ring) fn await_room(&self, socket: &mut Socket, token: Token) {
        let entry = opcode::PollAdd::new(types::Fd(socket.fd), libc::POLLOUT as u32).build();
        // SAFETY: the entry points to no memory.
        unsafe { self.start(socket, token, entry) };
    }

    /// The same, for a peer that sends no more.
    fn await_room_of_finished(&self, socket: &mut Socket, token: Token) {
        if !self.features.multishot_poll {
            return self.pause(socket, token);
        }
        let entry = opcode::PollAdd::new(types::Fd(socket.fd), libc::POLLOUT as u32).multi(true).build();
        // SAFETY: the entry points to no memory.
        unsafe { self.start(socket, token, entry) };
    }

    /// Starts a pause, for the operation of `token`.
    pub(in crate::ring) fn pause(&self, socket: &mut Socket, token: Token) {
        let entry = opcode::Timeout::new(&raw const PAUSE).build();
        // SAFETY: the timespec is static.
        unsafe { self.start(socket, token, entry) };
    }

    /// A wait for room has told something: whether it is over. Who waited then tries, and may have to wait again.
    pub(super) fn has_room(&self, socket: &mut Socket, token: Token, result: i32, more: bool) -> bool {
        let over = result < 0 || result & ROOM != 0;
        match (over || socket.closing, more) {
            (true, false) => true,
            (true, true) => {
                // It is over when that has completed.
                self.cancel(socket, token.operation, token.slot);
                false
            }
            (false, true) => false,
            (false, false) => {
                self.await_room_of_finished(socket, token);
                false
            }
        }
    }
}
