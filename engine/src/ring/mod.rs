//! The io_uring runtime of a worker: one ring, driven by the thread that owns it.
//!
//! [`Ring::drive`] is the main future of the worker's executor. It blocks in the one system call of a turn
//! (`io_uring_enter`: submit everything, wait for something), hands the completions to the sockets they are for,
//! wakes the tasks that wait for them, yields once so that they run, and comes round to submit what they asked
//! for. Protocol code is async Rust over [`Stream`], [`Listener`] and [`Timer`], and never sees the ring.
//!
//! | file | idea |
//! |---|---|
//! | `features` | what the kernel has, found by trying, masked by a level |
//! | `setup` | what a ring is made from; why a host has none for us, and the remedy |
//! | `uring` | entries in, system call, completions out |
//! | `core` | who a completion is for; the turn of the loop |
//! | `socket` | the state of one socket: what is in flight, what has arrived |
//! | `stream`, `listener`, `timer` | the handles that protocol code holds |
//! | `splice` | large bodies from socket to socket without a copy |
//! | `pass` | descriptors from process to process |
//! | `admission` | heavy work, about a millisecond of it per turn |
//! | `overload` | whether the loop has more to do than it can |
//! | `batching` | how many completions are worth waiting for |
//! | `buffers` | the arena that receives land in |
//! | `published` | which of its free buffers the kernel has, and when it may see them |
//!
//! What this folder promises: memory that the kernel may touch is owned by the socket table until the last
//! completion of its operation; a completion reaches the socket it is for or nobody (a generation in every mark);
//! a descriptor is closed once, after its last completion; what a peer can make us hold is bounded.

mod admission;
mod batching;
mod body_memory;
mod buffers;
mod core;
mod features;
mod listener;
mod message;
#[cfg(test)]
mod nonblocking_tests;
mod overload;
mod pass;
mod published;
mod setup;
mod socket;
mod splice;
mod stream;
mod sys;
mod timeout;
mod timer;
mod uring;

pub use self::{
    admission::{Admission, FairLine, Place, Slice, Source, run_undivided},
    body_memory::{BULK_SIZE, BULK_SMALL, BulkBuf},
    buffers::{Buf, Role, Share},
    core::Ring,
    features::{Features, Level},
    listener::{AcceptError, Accepted, Listener},
    message::{Recv, SendBuf},
    pass::{receive_descriptors, send_descriptors},
    setup::{LOCKED_MEMORY_PER_WORKER, LOCKED_MEMORY_REMEDY, Settings, SetupError, Unusable, check},
    splice::{LEAST_ROOM, PassError, Passed, Splice},
    stream::Stream,
    timeout::{Elapsed, Timer},
    uring::Stats,
};
