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
    pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice},
};

use super::{admission::Source, core::Ring, stream::Stream};

/// Wanted size of a pipe (bytes); the highest that `fs.pipe-max-size` lets an ordinary user have by default.
const PIPE_SIZE: usize = 1 << 20;
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
}

impl Pipe {
    fn new() -> io::Result<Pipe> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Where the user has used up what pipes may take, it stays small, and the transfer takes more turns.
        let _ = fcntl_setpipe_size(&writer, PIPE_SIZE);
        Ok(Pipe { reader, writer })
    }
}

/// The pipes of a worker.
#[derive(Default)]
pub(super) struct Pipes {
    open: Cell<usize>,
    kept: RefCell<Vec<Pipe>>,
}

impl Pipes {
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
        let pipe = Pipe::new().ok()?;
        self.open.set(self.open.get() + 1);
        Some(pipe)
    }

    fn put(&self, pipe: Pipe, is_empty: bool) {
        let mut kept = self.kept.borrow_mut();
        // A pipe with something in it would give it to the next receiver.
        if is_empty && kept.len() < KEPT_PIPES {
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
