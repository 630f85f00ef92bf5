//! A worker whose supervisor has gone waits for another one, and goes on under it.
//!
//! Each worker has a listening socket for that from its start, which the supervisor made and named; nobody connects to it
//! while the supervisor lives. Whoever connects must be of root's or of the worker's own user. It sends the worker's
//! ends of three new channels, and gets what the old supervisor held: listening sockets, counters, the process.

use std::{
    cell::Cell,
    io::{self, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    rc::Rc,
};

use kakehi_ctl::{
    keys::Effect,
    order::{ADOPTION_VERSION, Adopted, ListenerSocket, Order, Program, Report},
};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{PidfdFlags, geteuid, getpid, pidfd_open},
};
use serde::{Deserialize, Serialize};

use super::{Worker, configured::Taken, report, say_last};
use crate::ring::{Role, Stream, Timer, receive_descriptors};

/// How long whoever connects may take to say what it wants (ms).
const WELCOME_TIMEOUT_MS: u64 = 2_000;
/// How long a supervisor may take to take what a worker has for it (ms).
const EXPORT_TIMEOUT_MS: u64 = 5_000;
/// Pause until it is looked whether it has taken some (ms).
const EXPORT_PAUSE_MS: u64 = 5;
/// Pause after a failed accept (ms).
const ACCEPT_PAUSE_MS: u64 = 100;

/// What a supervisor sends first over a worker's adoption socket, with the worker's ends of the order channel, the
/// descriptor channel and the successor's channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptRequest {
    /// [`ADOPTION_VERSION`] of its program.
    pub protocol: u32,
    /// Version of its program.
    #[serde(default)]
    pub program: String,
    /// It knows [`DescriptorKind::Ledger`].
    #[serde(default)]
    pub ledger: bool,
}

impl AdoptRequest {
    /// That of this program.
    pub fn new() -> AdoptRequest {
        AdoptRequest {
            protocol: ADOPTION_VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            ledger: true,
        }
    }
}

impl Default for AdoptRequest {
    fn default() -> Self {
        AdoptRequest::new()
    }
}

/// A descriptor that goes between supervisor and worker, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DescriptorKind {
    /// A listening socket.
    Listener(ListenerSocket),
    /// The memory of the counters that the process writes.
    Counters,
    /// The memory of the counters of processes before it that have ended.
    Ended,
    /// Where certificates and ticket keys lie.
    Vault,
    /// Where all workers count together.
    Ledger,
    /// The process itself (`pidfd_open(2)`). For supervisors of earlier programs: this one opens its own.
    Process,
    /// The state, as JSON.
    State,
    /// Where connections come from that another worker gives away.
    Predecessor,
    /// Where connections go that are given away.
    Successor,
}

/// The channel over which descriptors come from the supervisor and go to it. Nothing here waits.
pub trait DescriptorChannel {
    /// Takes what was sent by one call, and is there: an order that speaks of it comes after it.
    ///
    /// # Errors
    /// When there is nothing, or the supervisor is gone. `InvalidData` when it is not understood; it is closed then.
    fn receive(&self) -> io::Result<Vec<(DescriptorKind, OwnedFd)>>;

    /// Sends duplicates, as many as the channel takes now: how many. The rest is to be sent next, and by itself.
    ///
    /// # Errors
    /// When the supervisor is gone.
    fn send(&self, descriptors: &[(DescriptorKind, BorrowedFd<'_>)]) -> io::Result<usize>;

    /// Goes on with another channel.
    fn replace(&self, channel: OwnedFd);
}

/// What a worker keeps for the supervisor that may take it over.
pub(super) struct AdoptionState {
    /// Listens, and does not block.
    pub(super) adoption: socket2::Socket,
    /// Where the processes before it counted.
    pub(super) ended: OwnedFd,
    /// Where this one counts.
    pub(super) counters: OwnedFd,
    /// Where all workers count together.
    pub(super) ledger: Option<OwnedFd>,
    pub(super) launch: u64,
    pub(super) program: Program,
    /// A copy of the order channel for the last words.
    pub(super) last_words: Rc<Cell<Option<OwnedFd>>>,
}

fn copy_of_listener((which, taken): (&ListenerSocket, &Taken)) -> io::Result<(DescriptorKind, OwnedFd)> {
    Ok((DescriptorKind::Listener(*which), taken.copy.try_clone()?))
}

impl Worker {
    /// Waits until a supervisor takes this worker over; its order channel. `None` when that cannot come any more.
    pub(super) async fn adopted(self: &Rc<Self>) -> Option<Stream> {
        let ring = &self.connections.shared.ring;
        let socket = self
            .adoption_state
            .adoption
            .try_clone()
            .and_then(|copy| Stream::adopt(ring, copy.into(), Role::Control));
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, "cannot wait for another supervisor");
                return None;
            }
        };
        loop {
            socket.readable().await.ok()?;
            match self.adoption_state.adoption.accept() {
                Ok((connection, _)) => match self.request(connection.into()).await {
                    Ok(orders) => return Some(orders),
                    Err(error) => tracing::warn!(%error, "was not taken over by whoever tried"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::warn!(%error, "the adoption socket cannot accept");
                    let timer = Timer::new(ring);
                    timer.set(ACCEPT_PAUSE_MS);
                    timer.elapsed().await;
                }
            }
        }
    }

    async fn request(self: &Rc<Self>, connection: OwnedFd) -> io::Result<Stream> {
        // Not by rustix, which has no place for the number 0: that of a process outside of our namespace.
        let peer = getsockopt(&connection, PeerCredentials)?;
        if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
            return Err(io::Error::other(format!("uid {} may not take a worker over", peer.uid())));
        }
        let ring = &self.connections.shared.ring;
        let readiness = Stream::adopt(ring, connection.try_clone()?, Role::Control)?;
        let timer = Timer::new(ring);
        timer.set(WELCOME_TIMEOUT_MS);
        timer.limit(readiness.readable()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let (text, channels) =
            receive_descriptors(&connection)?.ok_or_else(|| io::Error::other("it left without a word"))?;
        let AdoptRequest { protocol, program, ledger } = serde_json::from_str(&text)?;
        if protocol != ADOPTION_VERSION {
            let reason = format!(
                "the supervisor ({program}) speaks version {protocol} of the vocabulary of adoption, this worker ({}) version \
                 {ADOPTION_VERSION}",
                env!("CARGO_PKG_VERSION")
            );
            if let Some(orders) = channels.first() {
                // Where the first channel is another one, nobody understands it.
                let _ = say_last(orders, Report::Failed { reason: reason.clone() });
            }
            return Err(io::Error::other(reason));
        }
        let [orders, descriptors, successor] = <[OwnedFd; 3]>::try_from(channels)
            .map_err(|_| io::Error::other("it did not send three channels"))?;
        self.adoption_state.last_words.set(Some(orders.try_clone()?));
        let orders = Stream::adopt(ring, orders, Role::Control)?;
        self.channel.replace(descriptors);
        self.export(ledger).await?;
        report(ring, &orders, 0, Report::Adopted(Box::new(self.describe()?)))
            .await
            .map_err(io::Error::other)?;
        if !self.connections.is_handing_over() {
            self.successor.set(Some(successor));
        }
        tracing::info!(supervisor = peer.pid(), "goes on under another supervisor");
        Ok(orders)
    }

    /// Sends the supervisor all that it has to hold for this worker.
    async fn export(&self, with_ledger: bool) -> io::Result<()> {
        // Copies: listeners may go while the supervisor takes what was sent first.
        let listeners =
            self.configured.sockets().iter().map(copy_of_listener).collect::<io::Result<Vec<_>>>()?;
        let rest = [
            (DescriptorKind::Counters, self.adoption_state.counters.try_clone()?),
            (DescriptorKind::Ended, self.adoption_state.ended.try_clone()?),
            (DescriptorKind::Vault, self.configured.vault().as_fd().try_clone_to_owned()?),
            (DescriptorKind::Process, pidfd_open(getpid(), PidfdFlags::empty())?),
        ];
        let ledger = self.adoption_state.ledger.as_ref().filter(|_| with_ledger);
        let ledger = ledger.map(|memory| Ok::<_, io::Error>((DescriptorKind::Ledger, memory.try_clone()?)));
        let descriptors: Vec<_> = listeners.into_iter().chain(rest).chain(ledger.transpose()?).collect();
        let ring = &self.connections.shared.ring;
        let (due, timer) = (ring.now() + EXPORT_TIMEOUT_MS, Timer::new(ring));
        let mut unsent = &descriptors[..];
        while !unsent.is_empty() {
            let borrowed: Vec<_> = unsent.iter().map(|(kind, copy)| (*kind, copy.as_fd())).collect();
            match self.channel.send(&borrowed)? {
                0 if ring.now() >= due => return Err(io::ErrorKind::TimedOut.into()),
                0 => {
                    timer.set(EXPORT_PAUSE_MS);
                    timer.elapsed().await;
                }
                sent => unsent = &unsent[sent..],
            }
        }
        Ok(())
    }

    /// Sends the state.
    pub(super) fn tell_state(&self) -> io::Result<()> {
        let text = self.configured.state_text()?;
        let memory = memfd_create(c"kakehi-state", MemfdFlags::CLOEXEC)?;
        let mut file = std::fs::File::from(memory);
        file.write_all(&text)?;
        match self.channel.send(&[(DescriptorKind::State, file.as_fd())])? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    }

    fn describe(&self) -> io::Result<Adopted> {
        let features = self.connections.shared.ring.features();
        let (revision, mut settings) = self.configured.revision_and_settings();
        settings.take_keys(&self.started_with, Effect::Workers);
        Ok(Adopted {
            id: self.id,
            launch: self.adoption_state.launch,
            pid: std::process::id(),
            core: self.core.and_then(|core| u32::try_from(core).ok()),
            leaving: self.connections.is_draining() || self.connections.is_handing_over(),
            revision,
            settings,
            program: self.adoption_state.program.clone(),
            io_uring_level: features.level().number(),
            io_uring_features: features.names().into_iter().map(str::to_owned).collect(),
            capabilities: Order::known().map(str::to_owned).collect(),
        })
    }
}
