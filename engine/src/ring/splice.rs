//! Large bodies without copying them: from socket to pipe to socket, pages moved by reference.
//!
//! `splice(2)` is called from the loop, on descriptors that do not block, and the ring only waits for readiness:
//! `IORING_OP_SPLICE` would hand each call to a kernel thread. Moving 1 MiB between loopback sockets took 250 us
//! of CPU so, and 500 us through a private buffer (a 2-core VM, Linux 6.18).
//!
//! A pipe takes two descriptors and holds pages of the kernel, so both are bounded: a worker has at most [`MAX_PIPES`], a
//! transfer that waits with an empty pipe gives it up ([`Splice::rest`]), and takes what the receiver has room for.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};

use super::{admission::Source, core::Ring, stream::Stream};
use crate::limits::PIPE_CAPACITY;

/// Most pipes of a worker; a transfer that finds none is copied.
const MAX_PIPES: usize = 256;
/// Of these, what tunnels may have, which may wait for long: bodies go on without a copy beside them.
const MAX_PIPES_OF_TUNNELS: usize = MAX_PIPES / 2;
/// Pipes that are kept for the next transfer.
const KEPT_PIPES: usize = 32;

/// A pipe that bytes pass through on their way from one socket to another.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// The capacity that was asked for.
    wanted: usize,
}

/// The pipes of a worker.
pub(super) struct Pipes {
    open: Cell<usize>,
    kept: RefCell<Vec<Pipe>>,
    /// Capacity that is asked for (bytes).
    capacity: Cell<usize>,
    /// It was said that it is not to be had.
    is_told: Cell<bool>,
}

impl Default for Pipes {
    fn default() -> Pipes {
        let capacity = Cell::new(PIPE_CAPACITY as usize);
        Pipes { open: Cell::new(0), kept: RefCell::default(), capacity, is_told: Cell::new(false) }
    }
}

impl Pipes {
    /// Sets the capacity that is asked for from now on (bytes). A pipe in use ends with its transfer.
    pub(super) fn set_capacity(&self, capacity: usize) {
        if self.capacity.replace(capacity) == capacity {
            return;
        }
        self.is_told.set(false);
        let kept = self.kept.take();
        self.open.set(self.open.get() - kept.len());
    }

    fn new_pipe(&self) -> io::Result<Pipe> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let wanted = self.capacity.get();
        // Where the user has used up what pipes may take, it stays as it is, and the transfer takes more turns.
        if let Err(error) = fcntl_setpipe_size(&writer, wanted)
            && !self.is_told.replace(true)
        {
            let capacity = fcntl_getpipe_size(&writer).unwrap_or_default();
            tracing::info!(
                "a pipe has room for {capacity} bytes instead of {wanted} (`splice_pipe_capacity_bytes`): {error}; see \
                 fs.pipe-max-size and fs.pipe-user-pages-soft"
            );
        }
        Ok(Pipe { reader, writer, wanted })
    }

    /// An empty pipe; `None` when there is none to be had, or `most` are in use.
    fn take(&self, most: usize) -> Option<Pipe> {
        let in_use = self.open.get() - self.kept.borrow().len();
        if in_use >= most {
            return None;
        }
        if let Some(pipe) = self.kept.borrow_mut().pop() {
            return Some(pipe);
        }
        if self.open.get() >= MAX_PIPES {
            return None;
        }
        let pipe = self.new_pipe().ok()?;
        self.open.set(self.open.get() + 1);
        Some(pipe)
    }

    fn put(&self, pipe: Pipe, is_empty: bool) {
        let mut kept = self.kept.borrow_mut();
        // A pipe with something in it would give it to the next receiver.
        if is_empty && pipe.wanted == self.capacity.get() && kept.len() < KEPT_PIPES {
            kept.push(pipe);
        } else {
            self.open.set(self.open.get() - 1);
        }
    }
}

/// What [`Splice::pass`] came to.
#[derive(Debug)]
pub enum Passed {
    /// Something was taken from the sender.
    Bytes {
        /// How much (bytes).
        taken: usize,
        /// What of it the receiver had no room for, and has to be sent.
        rest: Vec<u8>,
    },
    /// The sender has ended.
    Finished,
    /// Nothing has come.
    Nothing,
    /// There is no pipe to be had: move the bytes another way.
    NoPipe,
}

/// Which of the two connections broke.
#[derive(Debug)]
pub enum PassError {
    /// The sender's.
    Sender(io::Error),
    /// The receiver's.
    Receiver(io::Error),
}

impl From<PassError> for io::Error {
    fn from(error: PassError) -> io::Error {
        match error {
            PassError::Sender(error) | PassError::Receiver(error) => error,
        }
    }
}

/// What an attempt to move bytes came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spliced {
    /// So many bytes were moved; 0 from the sender = it has ended.
    Moved(usize),
    /// Nothing can be moved now: wait for readiness.
    WouldBlock,
    /// There is no pipe to be had.
    NoPipe,
}

/// Least room (bytes) of a receiver for which it is worth taking more from its sender.
pub const LEAST_ROOM: usize = 32 * 1024;

/// A transfer from one stream to another. Others may use both meanwhile, each the other way.
pub struct Splice<'a> {
    ring: &'a Ring,
    from: &'a Stream,
    to: &'a Stream,
    pipe: Option<Pipe>,
    /// Pipes that may be in use where it takes one.
    most: usize,
    /// Bytes in the pipe.
    held: usize,
}

impl<'a> Splice<'a> {
    /// Prepares a transfer. The receive of `from` must be paused and what it brought taken, `to` flushed.
    pub fn new(ring: &'a Ring, from: &'a Stream, to: &'a Stream) -> Splice<'a> {
        debug_assert!(from.is_paused() && !to.is_sending(), "bytes must not overtake each other");
        Splice { ring, from, to, pipe: None, most: MAX_PIPES, held: 0 }
    }

    /// This one, of a tunnel: it has a pipe only while there are enough left for bodies.
    #[must_use]
    pub fn of_tunnel(mut self) -> Splice<'a> {
        self.most = MAX_PIPES_OF_TUNNELS;
        self
    }

    /// Passes on what has come, `most` bytes of it (the receiver has room for so much), without waiting for either side. Where there
    /// is less room after all, the rest leaves the pipe: nobody waits for a receiver with one that all share.
    ///
    /// # Errors
    /// When one of the connections broke.
    pub async fn pass(&mut self, most: usize) -> Result<Passed, PassError> {
        let ring = self.ring;
        let admission = ring.bulk_admission();
        let take_and_give = || {
            let taken = self.take(most);
            (taken, self.give())
        };
        let (taken, mut given) = admission.run(Source::Bulk, take_and_give).await;
        let taken = match taken.map_err(PassError::Sender)? {
            Spliced::Moved(0) => return Ok(Passed::Finished),
            Spliced::Moved(taken) => taken,
            Spliced::WouldBlock => return Ok(Passed::Nothing),
            Spliced::NoPipe => return Ok(Passed::NoPipe),
        };
        loop {
            let is_full = given.map_err(PassError::Receiver)? == Spliced::WouldBlock;
            if self.held == 0 {
                return Ok(Passed::Bytes { taken, rest: Vec::new() });
            }
            if is_full {
                let rest = self.drain().map_err(PassError::Sender)?;
                self.rest();
                return Ok(Passed::Bytes { taken, rest });
            }
            given = admission.run(Source::Bulk, || self.give()).await;
        }
    }

    /// Takes up to `most` bytes from the sender, without waiting: no more than the receiver has room for, as the pages stay in
    /// the pipe until it takes them.
    ///
    /// # Errors
    /// Those of `splice(2)`: the connection broke.
    fn take(&mut self, most: usize) -> io::Result<Spliced> {
        if self.pipe.is_none() {
            self.pipe = self.ring.core().pipes.take(self.most);
        }
        let Some(pipe) = &self.pipe else { return Ok(Spliced::NoPipe) };
        let taken = move_bytes(self.from.descriptor(), pipe.writer.as_fd(), most)?;
        if let Spliced::Moved(count) = taken {
            self.held += count;
            self.from.count_spliced_in(count);
        }
        Ok(taken)
    }

    /// Gives the receiver what is held, without waiting.
    ///
    /// # Errors
    /// Those of `splice(2)`: the connection broke.
    fn give(&mut self) -> io::Result<Spliced> {
        let Some(pipe) = self.pipe.as_ref().filter(|_| self.held > 0) else { return Ok(Spliced::Moved(0)) };
        let given = move_bytes(pipe.reader.as_fd(), self.to.descriptor(), self.held)?;
        if let Spliced::Moved(count) = given {
            self.held -= count;
            self.to.count_spliced_out(count);
        }
        Ok(given)
    }

    /// Takes what is held out of the pipe, for a receiver that has no room for it.
    ///
    /// # Errors
    /// Those of `read(2)`.
    fn drain(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = vec![0; self.held];
        let mut filled = 0;
        if let Some(pipe) = &self.pipe {
            while filled < rest.len() {
                match rustix::io::read(&pipe.reader, &mut rest[filled..]) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => filled += count,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.held = 0;
        Ok(rest)
    }

    /// Gives the pipe up while nothing is held: who waits, maybe for long, must not hold what all share.
    pub fn rest(&mut self) {
        if self.held == 0
            && let Some(pipe) = self.pipe.take()
        {
            self.ring.core().pipes.put(pipe, true);
        }
    }
}

fn move_bytes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<Spliced> {
    match splice(from, None, to, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
        Ok(count) => Ok(Spliced::Moved(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Spliced::WouldBlock),
        Err(error) => Err(error.into()),
    }
}

impl Drop for Splice<'_> {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.ring.core().pipes.put(pipe, self.held == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
        rc::Rc,
    };

    use rustix::process::{Resource, Rlimit, setrlimit};

    use super::*;
    use crate::ring::{Level, Role, Settings};

    fn ring() -> Ring {
        let settings =
            Settings { level: Level::HIGHEST, buffer_count: 16, buffer_size: 1 << 14, body_memory: 0 };
        Ring::new(&settings).unwrap()
    }

    #[test]
    fn what_the_receiver_has_no_room_for_leaves_the_pipe_and_nothing_is_lost() {
        // glommio asks for 512 KiB, which earlier kernels do not give without being asked.
        let memory = Rlimit { current: Some(8 << 20), maximum: Some(8 << 20) };
        let _ = setrlimit(Resource::Memlock, memory);
        let ring = ring();
        let (mut sender, from) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        socket2::SockRef::from(&listener).set_recv_buffer_size(4_096).unwrap();
        let to = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        socket2::SockRef::from(&to).set_send_buffer_size(4_096).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        // Kernels differ in how much more they take than they were told to: all that they do.
        to.set_nonblocking(true).unwrap();
        let filler = std::iter::from_fn(|| (&to).write(&[0; 1_024]).ok()).sum::<usize>();
        let data: Vec<u8> = (0..60_000_u32).map(|number| (number % 251) as u8).collect();
        sender.write_all(&data).unwrap();
        let [from, to] = [OwnedFd::from(from), to.into()]
            .map(|socket| Stream::adopt(&ring, socket, Role::Control).unwrap());
        let outcome = Rc::new(RefCell::new(None));
        let executor = glommio::LocalExecutorBuilder::default().make().unwrap();
        executor.run(async {
            ring.spawn({
                let (ring, outcome, most) = (ring.clone(), Rc::clone(&outcome), data.len());
                async move {
                    let passed = Splice::new(&ring, &from, &to).pass(most).await;
                    outcome.replace(Some(passed));
                }
            });
            ring.drive(|| outcome.borrow().is_some()).await.unwrap();
        });
        let Some(Ok(Passed::Bytes { taken, rest })) = outcome.take() else { panic!("nothing was passed on") };
        assert!(!rest.is_empty(), "of {taken}");
        let mut received = vec![0; filler + taken - rest.len()];
        receiver.read_exact(&mut received).unwrap();
        assert_eq!([&received[filler..], &rest].concat(), data[..taken]);
        let pipes = &ring.core().pipes;
        assert_eq!((pipes.open.get(), pipes.kept.borrow().len()), (1, 1), "the pipe is for others");
    }

    #[test]
    fn a_pipe_has_the_capacity_that_is_asked_for_and_one_of_another_is_not_used_again() {
        let pipes = Pipes::default();
        let size = |pipe: &Pipe| fcntl_getpipe_size(&pipe.writer).unwrap();
        pipes.set_capacity(5_000);
        let small = pipes.take(MAX_PIPES).unwrap();
        assert_eq!(size(&small), 8_192, "whole pages, a power of two");
        pipes.put(small, true);
        let small = pipes.take(MAX_PIPES).unwrap();
        assert_eq!((size(&small), pipes.open.get()), (8_192, 1), "the same one");
        pipes.put(pipes.take(MAX_PIPES).unwrap(), true);
        pipes.set_capacity(1 << 17);
        assert_eq!((pipes.open.get(), pipes.kept.borrow().len()), (1, 0));
        pipes.put(small, true);
        assert_eq!((pipes.open.get(), pipes.kept.borrow().len()), (0, 0));
        let large = pipes.take(MAX_PIPES).unwrap();
        assert_eq!(size(&large), 1 << 17);
        pipes.put(large, true);
        pipes.set_capacity(1 << 17);
        assert_eq!(pipes.kept.borrow().len(), 1);
    }

    #[test]
    fn a_capacity_that_nobody_can_have_leaves_the_pipe_as_it_is() {
        let pipes = Pipes::default();
        pipes.set_capacity(1 << 40);
        let pipe = pipes.take(MAX_PIPES).unwrap();
        assert!(fcntl_getpipe_size(&pipe.writer).unwrap() >= 4_096 && pipes.is_told.get());
    }

    #[test]
    fn tunnels_leave_half_of_the_pipes_to_bodies() {
        let pipes = Pipes::default();
        let of_tunnels: Vec<Pipe> = std::iter::from_fn(|| pipes.take(MAX_PIPES_OF_TUNNELS)).collect();
        assert_eq!(of_tunnels.len(), MAX_PIPES_OF_TUNNELS);
        let of_bodies: Vec<Pipe> = std::iter::from_fn(|| pipes.take(MAX_PIPES)).collect();
        assert_eq!(of_bodies.len(), MAX_PIPES - MAX_PIPES_OF_TUNNELS);
        for pipe in of_tunnels {
            pipes.put(pipe, true);
        }
        assert!(pipes.take(MAX_PIPES_OF_TUNNELS).is_none(), "those of bodies count too");
        assert!(pipes.take(MAX_PIPES).is_some());
    }
}
