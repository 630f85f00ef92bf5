//! Receiving into the arena.

use io_uring::{opcode, squeue, types};

use super::{Core, End};
use crate::ring::{
    buffers::{Buf, Link, Part, Role},
    socket::{Intake, Operation, Socket, Token},
    uring::limit_per_turn,
};

/// Buffers that a socket may hold unread before its multishot receive is cancelled: with 17 KiB each, what
/// a sender can make us keep beyond what protocol code has asked for.
const QUEUE_HIGH: u16 = 8;

/// What is received of a message that is expected to be large (bytes): its head, most often, and little of its body.
const BRIEF: u32 = 4 * 1024;

impl Core {
    /// Gives the kernel its buffers back, and receives to the sockets that found none.
    pub(super) fn feed(&self) {
        for part in Part::ALL {
            let available = match &self.provided {
                Some(provided) => usize::from(provided[part as usize].borrow_mut().refill()),
                None => self.pool.free_count(part),
            };
            let starved = &self.starved[part as usize];
            if starved.borrow().is_empty() {
                continue;
            }
            for _ in 0..available {
                let Some(token) = starved.borrow_mut().pop_front() else { break };
                if let Some(socket) = self.sockets.borrow_mut().find(token)
                    && !socket.closing
                    && socket.starved
                {
                    socket.starved = false;
                    self.arm_receive(socket, token.slot);
                }
            }
        }
    }

    /// The kernel took a buffer out of its ring.
    pub(super) fn consumed(&self, id: u16) {
        if let Some(provided) = &self.provided {
            let part = if id < self.pool.count() { Part::Downstream } else { Part::Upstream };
            provided[part as usize].borrow_mut().consumed();
        }
    }

    pub(super) fn received(
        &self,
        socket: &mut Socket,
        token: Token,
        result: i32,
        buffer: Option<u16>,
        more: bool,
    ) {
        let buffer = match buffer {
            None if !self.features.provided_buffers => Some(socket.lent),
            other => other,
        };
        let paused = !more && std::mem::take(&mut socket.pausing);
        self.count_received(socket, result);
        match (result, buffer) {
            (1.., Some(id)) if !socket.closing => {
                self.batching.borrow_mut().received(&mut socket.window);
                // The kernel never receives more than the buffer's size, which is below 2^16.
                let scarce = self.keep_received(socket, id, result as u16);
                // Where buffers are scarce nobody keeps more than one unread.
                let high = if scarce || socket.intake == Intake::Single { 1 } else { QUEUE_HIGH };
                if more && (socket.queued >= high || socket.has_spilled()) && !socket.pausing {
                    socket.pausing = true;
                    self.cancel(socket, Operation::Receive, token.slot);
                }
            }
            (_, buffer) => {
                if let Some(id) = buffer {
                    self.pool.give_back(id);
                }
                match -result {
                    // Whoever asked for the pause is woken below; it is what they waited for.
                    libc::ENOBUFS if paused => {}
                    libc::ENOBUFS => return self.starve(socket, token),
                    // A pause, or an interrupted attempt: armed again when somebody asks.
                    libc::ECANCELED | libc::EINTR | libc::EAGAIN => {
                        if socket.wants_receive && !socket.closing {
                            self.arm_receive(socket, token.slot);
                        }
                    }
                    _ => socket.end = End::of(result),
                }
            }
        }
        // A multishot receive may end with data and no reason: armed again when the data has been taken.
        if paused {
            socket.wake_receiver();
        } else if socket.wants_receive && (socket.has_unread() || socket.end.is_some()) {
            socket.wants_receive = false;
            socket.wake_receiver();
        }
    }

    /// Puts a received buffer behind the others of its socket; where buffers are scarce only its content, so that
    /// others can be received. Whether they are.
    fn keep_received(&self, socket: &mut Socket, id: u16, length: u16) -> bool {
        self.pool.charge(id, socket.role);
        let scarce = self.pool.is_scarce(socket.role, self.published(socket.role.part()));
        if scarce || socket.has_spilled() {
            self.spill(socket, id, length);
            return scarce;
        }
        self.pool.set_link(id, Link { next: 0, length });
        if socket.queued == 0 {
            socket.first = id;
        } else {
            self.pool.set_link(socket.last, Link { next: id, ..self.pool.link(socket.last) });
        }
        socket.last = id;
        socket.queued += 1;
        scarce
    }

    /// Moves what was received out of the arena. Most often the task takes it in this very turn; if not, it may wait for
    /// long.
    fn spill(&self, socket: &mut Socket, id: u16, length: u16) {
        let bytes = Buf::take(&self.pool, id, length).to_vec();
        self.body_memory.take(bytes.len());
        socket.cold().spilled.push_back(bytes);
        self.uring.borrow_mut().stats.spilled += 1;
    }

    /// Buffers of a part that the kernel has.
    fn published(&self, part: Part) -> u16 {
        self.provided.as_ref().map_or(0, |provided| provided[part as usize].borrow().published())
    }

    pub(in crate::ring) fn count_received(&self, socket: &Socket, result: i32) {
        if socket.role == Role::Downstream && result > 0 {
            let [received, _] = &self.downstream_bytes;
            received.set(received.get() + result as u64);
        }
    }

    fn starve(&self, socket: &mut Socket, token: Token) {
        self.uring.borrow_mut().stats.no_buffers += 1;
        let part = socket.role.part();
        if let Some(provided) = &self.provided {
            provided[part as usize].borrow_mut().widen();
        }
        if !socket.starved && !socket.closing {
            socket.starved = true;
            self.starved[part as usize].borrow_mut().push_back(token);
        }
    }

    pub(super) fn became_readable(&self, socket: &mut Socket, token: Token, result: i32) {
        if socket.closing || result == -libc::ECANCELED {
            socket.pausing = false;
            socket.wake_receiver();
            return;
        }
        // Readable, hung up or broken: the receive tells which.
        self.receive_now(socket, token.slot);
    }

    /// Without provided buffers: lends one to a receive that will complete at once.
    fn receive_now(&self, socket: &mut Socket, slot: u32) {
        let token = Token { operation: Operation::Receive, slot, generation: socket.generation };
        let Some(id) = self.pool.borrow_one(socket.role.part()) else { return self.starve(socket, token) };
        socket.lent = id;
        let size = self.pool.size();
        let length = if matches!(socket.intake, Intake::Brief(_)) { BRIEF.min(size) } else { size };
        let entry = opcode::Recv::new(types::Fd(socket.fd), self.pool.address(id), length).build();
        // SAFETY: the buffer stays lent until the completion, which gives it back or passes it on.
        unsafe { self.start(socket, token, entry) };
    }

    /// Sees to it that a receive is armed, unless one is, or there will be no more to receive.
    pub(in crate::ring) fn arm_receive(&self, socket: &mut Socket, slot: u32) {
        let busy = Operation::Receive.bit() | Operation::Poll.bit() | Operation::ReceiveBulk.bit();
        if socket.in_flight & busy != 0 || socket.end.is_some() || socket.starved {
            return;
        }
        let fd = types::Fd(socket.fd);
        let group = socket.role.part() as u16;
        let token = Token { operation: Operation::Receive, slot, generation: socket.generation };
        // What a multishot receive without a limit brings at once (half a MiB) cannot be held back: of backends, who send as much as
        // they can, whoever takes it.
        let unlimited = !self.features.recv_limit && matches!(socket.role, Role::Upstream(_));
        let once = socket.intake != Intake::Many || unlimited;
        let brief = matches!(socket.intake, Intake::Brief(_));
        if socket.intake == Intake::First {
            socket.intake = Intake::Many;
        }
        let (token, entry) = if self.features.multishot_recv && !once {
            // One buffer per turn: a sender in a hurry does not fill the queue before anybody has looked at it.
            let entry = opcode::RecvMulti::new(fd, group).build();
            (token, if self.features.recv_limit { limit_per_turn(entry, self.pool.size()) } else { entry })
        } else if self.features.provided_buffers {
            // 0: as much as a buffer takes.
            let length = if brief { BRIEF } else { 0 };
            let entry = opcode::Recv::new(fd, std::ptr::null_mut(), length).buf_group(group).build();
            (token, entry.flags(squeue::Flags::BUFFER_SELECT))
        } else {
            let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
            (Token { operation: Operation::Poll, ..token }, opcode::PollAdd::new(fd, events).build())
        };
        // SAFETY: the kernel picks the memory from the registered buffers, or touches none.
        unsafe { self.start(socket, token, entry) };
    }

    /// Takes what a socket received first and nobody has taken yet.
    pub(in crate::ring) fn pop_received(&self, socket: &mut Socket) -> Option<Buf> {
        if socket.queued == 0 {
            let bytes = socket.cold.as_mut()?.spilled.pop_front()?;
            self.body_memory.release(bytes.len());
            return Some(Buf::owned(bytes));
        }
        let id = socket.first;
        let link = self.pool.link(id);
        socket.first = link.next;
        socket.queued -= 1;
        Some(Buf::take(&self.pool, id, link.length))
    }

    /// Moves what a socket holds unread out of the arena: its reader waits for somebody else.
    pub(in crate::ring) fn spill_unread(&self, socket: &mut Socket) {
        let mut unread = std::collections::VecDeque::with_capacity(usize::from(socket.queued));
        while socket.queued > 0 {
            let Some(buffer) = self.pop_received(socket) else { break };
            self.body_memory.take(buffer.len());
            unread.push_back(buffer.to_vec());
        }
        if !unread.is_empty() {
            self.uring.borrow_mut().stats.spilled += unread.len() as u64;
            let spilled = &mut socket.cold().spilled;
            unread.append(spilled);
            *spilled = unread;
        }
    }
}
