//! Puts one worker together and obeys the supervisor's orders.

mod adoption;
mod configured;
mod ending;
mod host;
mod patient;
mod privileges;
mod refused;
mod sandbox;
mod setup;

use std::{
    cell::Cell,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use kakehi_ctl::{
    order::{Envelope, Fact, Order, Report},
    state::{Revision, Settings, State},
    wire::{self, Decoder, WireError},
};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::thread::sched_getaffinity;

use self::{
    adoption::AdoptionState,
    configured::{Configured, Refusal},
    host::{Host, grow_descriptor_table, pin, within_limits},
    privileges::drop_privileges,
    sandbox::{PREEMPT_NEVER, Sandbox},
};
pub use self::{
    adoption::{AdoptRequest, DescriptorChannel, DescriptorKind},
    patient::Patient,
    setup::{End, Error, Identity, Setup},
};
use crate::{
    config::CompileError,
    downstream::{self, Connections, HandoverRegistry, Successor},
    exchange::{ListenerConfig, ListenerHandle},
    limits,
    observe::Counter,
    passwords::{HashingThread, Passwords},
    ring::{self, Recv, Ring, Role, Source, Stats, Stream, Timer},
    tls::{self, Context},
    upstream::{Cluster, Pooling},
};

/// How often idle upstream connections are looked through, and the ring's figures are published (ms).
const HOUSEKEEPING_MS: u64 = 1_000;

/// How long the last words of a worker may take: a supervisor that does not read them keeps nobody from ending.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);

/// Checks everything about a state that only the engine knows: hostnames, paths, expressions.
///
/// # Errors
/// See [`CompileError`].
pub fn check(state: &State) -> Result<(), CompileError> {
    ListenerConfig::check(state)
}

/// Serves until it is ordered to stop; says how that went. Sends `Report::Ready` when the listeners accept; when it cannot
/// get that far it sends `Report::Failed` and returns the error. When the order channel ends (the
/// supervisor died) it goes on serving; SIGTERM then makes it drain and end.
///
/// # Errors
/// See [`Error`].
pub fn run(setup: Setup) -> Result<End, Error> {
    let last_words = Rc::new(Cell::new(Some(setup.orders.try_clone()?)));
    let outcome = start(setup, Rc::clone(&last_words));
    let report = match &outcome {
        Ok(end) => Report::Finished { drained: *end == End::Drained },
        Err(error) => Report::Failed { reason: error.to_string() },
    };
    if let Some(orders) = last_words.take() {
        // If nobody listens, there is nobody to tell.
        let _ = say_last(&orders, report);
    }
    outcome
}

/// Sends the last report of this process over its order channel.
///
/// # Errors
/// Those of `send(2)`; `TimedOut` when the supervisor does not read in time.
pub fn say_last(orders: &impl AsFd, report: Report) -> Result<(), WireError> {
    let mut orders = Patient::new(orders, LAST_WORDS_TIMEOUT);
    wire::write_message(&mut orders, &Envelope::new(0, report), limits::MAX_FRAME)
}

fn start(setup: Setup, last_words: Rc<Cell<Option<OwnedFd>>>) -> Result<End, Error> {
    // Before it is tied to one core: how many workers there are where the file does not say it.
    let default_workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let cores = sched_getaffinity(None).map_err(io::Error::from)?;
    if let Some(core) = setup.core {
        pin(core)?;
    }
    // Before the executor, whose threads would otherwise take the signal.
    let signals = block_signals()?;
    // Before the executor too: once there are threads it is a wait each time.
    let max_connections = within_limits(&setup.state);
    grow_descriptor_table(&setup.orders, max_connections);
    // Before the executor too: its complaints about a missing io_uring do not say what to do.
    let ring = Ring::new(&ring::Settings {
        level: setup.level,
        buffer_count: setup.state.settings.buffer_count,
        buffer_size: limits::BUFFER_SIZE,
        body_memory: usize::try_from(setup.state.settings.body_memory).unwrap_or(usize::MAX),
    })?;
    ring.set_pipe_capacity(setup.state.settings.pipe_capacity as usize);
    drop_privileges(setup.identity)?;
    // Before files are closed: it looks for devices.
    tls::begin_randomness()?;
    // Before the executor too: its thread is to be in it.
    let mut backends = setup.state.clusters.values().flat_map(|cluster| &cluster.backends);
    let sandbox = Sandbox::enter(setup.id, backends.any(|backend| backend.address.is_abstract()));
    // Behind landlock, which it inherits, and before seccomp, which allows no other thread.
    let hashing = HashingThread::start(cores);
    if let Err(error) = &hashing {
        tracing::warn!(
            "users with argon2id or bcrypt are not let in, as there is no thread to compute them: {error}"
        );
    }
    let executor = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .name("kakehi")
        // Its own I/O is not used; the rest of its rings' memory counts against RLIMIT_MEMLOCK.
        .io_memory(1 << 16)
        .preempt_timer(PREEMPT_NEVER)
        .make()
        .map_err(|error| Error::Executor(error.to_string()))?;
    let host = Host { default_workers, max_connections };
    executor.run(serve(setup, host, ring, signals, last_words, sandbox, hashing.ok()))
}

/// SIGTERM comes through a descriptor that the ring reads; what a terminal sends is for the supervisor.
fn block_signals() -> io::Result<SignalFd> {
    let mut ignored = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE] {
        ignored.add(signal);
    }
    ignored.thread_block()?;
    let mut handled = SigSet::empty();
    handled.add(Signal::SIGTERM);
    handled.thread_block()?;
    Ok(SignalFd::with_flags(&handled, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// One worker at work.
struct Worker {
    id: u32,
    core: Option<usize>,
    host: Host,
    /// Settings of which this process keeps what needs another one.
    started_with: Settings,
    set_log_level: fn(&str),
    channel: Rc<dyn DescriptorChannel>,
    adoption_state: AdoptionState,
    connections: Rc<Connections>,
    configured: Configured,
    /// The channel to the process that may take this one's place, until it does.
    successor: Cell<Option<OwnedFd>>,
    /// When what is left is cut (ms on the ring's clock), once the worker is to end.
    end_due: Cell<Option<u64>>,
    /// Set when the worker is drained or past its deadline: the loop ends.
    end: Cell<Option<End>>,
    /// The supervisor was told that the worker cannot go on.
    failure_told: Cell<bool>,
    /// The ring's figures when they were last added to the counters.
    published: Cell<Stats>,
    /// Bytes of clients, in and out, when they were last added to the counters.
    published_bytes: Cell<(u64, u64)>,
    /// The same of the work that was deferred.
    published_deferred: Cell<u64>,
}

/// Handshakes of which this worker has its share: the number in the file is for all workers together.
fn max_handshakes(settings: &Settings, revision: &Revision, default_workers: u32) -> u32 {
    let workers = revision.workers.or(settings.worker_count).map_or(default_workers, u32::from).max(1);
    settings.max_handshakes.div_ceil(workers)
}

async fn serve(
    setup: Setup,
    host: Host,
    ring: Ring,
    signals: SignalFd,
    last_words: Rc<Cell<Option<OwnedFd>>>,
    sandbox: Sandbox,
    hashing: Option<HashingThread>,
) -> Result<End, Error> {
    let settings = &setup.state.settings;
    setup.counters.reset_gauges();
    let (ledger, ledger_memory) = setup.ledger.unzip();
    let pooling = Pooling::new(ring.clone(), setup.counters.clone(), ledger, settings);
    let tls = Context::new(setup.vault, settings.ticket_key_rotation_ms)?;
    let max_handshakes = max_handshakes(settings, &setup.state.revision, host.default_workers);
    let passwords = Passwords::new(ring.clone(), setup.counters.clone(), hashing);
    let passwords = passwords.map_err(|_| io::Error::other("there is no randomness"))?;
    let connections = Connections::new(pooling, passwords, settings, max_handshakes);
    connections.set_max_connections(host.max_connections);
    let started_with = settings.clone();
    let configured = Configured::new(
        &connections,
        setup.state,
        setup.listeners,
        (setup.names, &setup.verdicts),
        Rc::clone(&setup.channel),
        tls,
    )?;
    let adoption_state = AdoptionState {
        adoption: setup.adoption.into(),
        ended: setup.ended_memory,
        counters: setup.counters_memory,
        ledger: ledger_memory,
        launch: setup.launch,
        program: setup.program,
        last_words,
    };
    let worker = Rc::new(Worker {
        id: setup.id,
        core: setup.core,
        host,
        started_with,
        set_log_level: setup.set_log_level,
        channel: setup.channel,
        adoption_state,
        connections,
        configured,
        successor: Cell::new(Some(setup.successor)),
        end_due: Cell::new(None),
        end: Cell::new(None),
        failure_told: Cell::new(false),
        published: Cell::default(),
        published_bytes: Cell::default(),
        published_deferred: Cell::default(),
    });
    if let Some(predecessor) = setup.predecessor {
        downstream::inherit(Rc::clone(&worker.connections), predecessor, Rc::clone(&worker))?;
    }
    let orders = Stream::adopt(&ring, setup.orders, Role::Control)?;
    let ready = Report::Ready {
        io_uring_level: ring.features().level().number(),
        io_uring_features: ring.features().names().into_iter().map(str::to_owned).collect(),
        capabilities: Order::known().map(str::to_owned).collect(),
    };
    // The executor has entered its rings for the last time, and nothing of a client was read yet.
    sandbox.close(&ring);
    report(&ring, &orders, 0, ready).await?;
    ring.spawn(Rc::clone(&worker).run_orders(orders));
    ring.spawn(Rc::clone(&worker).watch_sigterm(Stream::adopt(&ring, signals.into(), Role::Control)?));
    ring.spawn(Rc::clone(&worker).end_on_failure());
    ring.spawn(Rc::clone(&worker).housekeeping());
    ring.drive(|| {
        worker.publish_bytes();
        worker.end.get().is_some()
    })
    .await?;
    worker.publish_ring_figures();
    if let Some(reason) = worker.connections.failure() {
        return Err(Error::Failed(reason));
    }
    // The loop ends for no other reason than that it is set.
    Ok(worker.end.get().unwrap_or(End::Drained))
}

async fn report(ring: &Ring, orders: &Stream, id: u64, report: Report) -> Result<(), WireError> {
    let frame = wire::encode_into(ring.head_buffer(), &Envelope::new(id, report), limits::MAX_FRAME)?;
    Ok(orders.send(frame.into()).await?)
}

/// What the task of the orders waits for.
enum Heard {
    /// The supervisor has said something, or is gone.
    Orders(io::Result<Recv>),
    /// The worker cannot go on.
    Failure(String),
}

impl HandoverRegistry for Rc<Worker> {
    fn listener(&self, address: SocketAddr) -> Option<Rc<ListenerHandle>> {
        self.configured.listener(address)
    }

    fn cluster(&self, name: &str) -> Option<Rc<Cluster>> {
        self.configured.cluster(name)
    }
}

impl Worker {
    /// Carries out orders until the channel ends, which is no reason to stop serving; then those of the supervisor that
    /// takes this worker over.
    async fn run_orders(self: Rc<Self>, mut orders: Stream) {
        loop {
            if let Err(error) = self.orders(&orders).await {
                tracing::warn!(%error, "the order channel is broken; serving goes on");
            }
            tracing::info!("the supervisor is gone; serving goes on");
            let timer = Timer::new(&self.connections.shared.ring);
            let orphan_timeout_ms = self.configured.settings().orphan_timeout_ms;
            if let Some(orphan_timeout_ms) = orphan_timeout_ms {
                timer.set(orphan_timeout_ms);
            }
            let adopted = match timer.limit(self.adopted()).await {
                Ok(adopted) => adopted,
                Err(_) => {
                    tracing::warn!("`orphan_timeout` is over and no supervisor has come: stopping");
                    self.stop_gracefully();
                    self.adopted().await
                }
            };
            match adopted {
                Some(adopted) => orders = adopted,
                None => return,
            }
        }
    }

    async fn orders(self: &Rc<Self>, orders: &Stream) -> Result<(), WireError> {
        let mut decoder = Decoder::new(limits::MAX_FRAME);
        loop {
            let buffer = match self.next_orders(orders).await {
                Heard::Orders(received) => match received? {
                    Recv::Data(buffer) => buffer,
                    Recv::Finished => return Ok(()),
                },
                Heard::Failure(reason) => {
                    report(&self.connections.shared.ring, orders, 0, Report::Failed { reason }).await?;
                    continue;
                }
            };
            decoder.extend(&buffer);
            let ring = &self.connections.shared.ring;
            let mut slice = ring.admission().slices(Source::Orders);
            loop {
                slice.pause().await;
                let decoded = decoder.next::<Order>();
                slice.end();
                match decoded {
                    Ok(None) => break,
                    Ok(Some(Envelope { id, body, .. })) => {
                        let outcome = match body {
                            Order::Ping => Ok(()),
                            Order::Stage { changes } => {
                                self.configured.stage(changes);
                                continue;
                            }
                            Order::Prepare { staged, changes, revision } => self
                                .configured
                                .prepare(ring, staged, changes, revision)
                                .await
                                .map_err(|error| error.to_string()),
                            Order::Commit => self.commit().await.map_err(|error| error.to_string()),
                            Order::Abort => {
                                self.configured.abort();
                                Ok(())
                            }
                            Order::Take => self.take().map_err(|error| error.to_string()),
                            Order::Yield { sockets } => {
                                self.configured.give_up(&self.connections, &sockets).await;
                                Ok(())
                            }
                            Order::Stir => {
                                self.configured.rearm(&self.connections);
                                Ok(())
                            }
                            Order::Share { connections } => {
                                self.share(connections).map_err(|error| error.to_string())
                            }
                            Order::Fact { fact: Fact::TicketKeys } | Order::RenewTicketKeys => {
                                self.configured.renew_ticket_keys().map_err(|error| error.to_string())
                            }
                            Order::Fact { fact: Fact::Verdicts { verdicts } } => {
                                self.configured.take_verdicts(&verdicts);
                                Ok(())
                            }
                            Order::Fact { fact: Fact::Names { answers } } => {
                                self.configured.take_names(&self.connections, answers);
                                Ok(())
                            }
                            Order::TellLoads { backends } => {
                                let loads =
                                    self.configured.loads(&backends, &self.connections.shared.pooling);
                                report(ring, orders, id, Report::Loads { loads }).await?;
                                continue;
                            }
                            Order::Explain { listener, inquiry } => {
                                let shared = &self.connections.shared;
                                let answer = match self.configured.explain(listener, shared, &inquiry) {
                                    Some(found) => Report::Explained(Box::new(found)),
                                    None => self.refused(format!("there is no listener at {listener}")),
                                };
                                report(ring, orders, id, answer).await?;
                                continue;
                            }
                            Order::CloseSessions { cluster, backend } => {
                                let (cluster, backend) = (&cluster, backend.as_deref());
                                let closed =
                                    self.configured.close_sessions(cluster, backend, &self.connections);
                                report(ring, orders, id, Report::SessionsClosed { closed }).await?;
                                continue;
                            }
                            Order::TellState => self.tell_state().map_err(|error| error.to_string()),
                            Order::HandOver { deadline_ms } => self.hand_over(deadline_ms),
                            Order::Stop { deadline_ms } => {
                                self.stop(deadline_ms);
                                Ok(())
                            }
                        };
                        let answer = match outcome {
                            Ok(()) => Report::Done,
                            Err(reason) => self.refused(reason),
                        };
                        report(&self.connections.shared.ring, orders, id, answer).await?;
                    }
                    Err(
                        error @ (WireError::Malformed(_)
                        | WireError::Unknown { .. }
                        | WireError::Version { .. }),
                    ) => {
                        // Nobody waits for the answer to an order that has no number.
                        let id = match error {
                            WireError::Unknown { id, .. } | WireError::Version { id, .. } => id,
                            _ => 0,
                        };
                        let answer = self.refused(error.to_string());
                        report(&self.connections.shared.ring, orders, id, answer).await?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Makes what was prepared.
    async fn commit(&self) -> Result<(), Refusal> {
        let before = self.configured.settings().clone();
        self.configured.commit(&self.connections).await?;
        let (revision, settings) = self.configured.revision_and_settings();
        let handshakes = max_handshakes(&settings, &revision, self.host.default_workers);
        self.connections.handshakes.set_most(handshakes);
        if before != settings {
            self.take_settings(&before, &settings);
        }
        Ok(())
    }

    /// Takes over what holds at once of settings that have changed.
    fn take_settings(&self, before: &Settings, settings: &Settings) {
        if before.max_connections != settings.max_connections {
            let max_connections = self.configured.with_state(within_limits);
            if max_connections < settings.max_connections {
                tracing::warn!(
                    max_connections,
                    "the limit of open files allows no more connections; raise it (`ulimit -n`; systemd: `LimitNOFILE=`)"
                );
            }
            self.connections.set_max_connections(max_connections);
        }
        if before.log_level != settings.log_level {
            (self.set_log_level)(&settings.log_level);
        }
        self.connections.take_settings(settings);
        let body_memory = usize::try_from(settings.body_memory).unwrap_or(usize::MAX);
        self.connections.shared.ring.set_body_memory(body_memory);
        self.connections.shared.ring.set_pipe_capacity(settings.pipe_capacity as usize);
    }

    /// Waits for what the supervisor says next, or for what is to be said to it: once, that the worker cannot go on.
    async fn next_orders(&self, orders: &Stream) -> Heard {
        poll_fn(|context| {
            if let Some(reason) = self.connections.failure()
                && !self.failure_told.replace(true)
            {
                return Poll::Ready(Heard::Failure(reason));
            }
            orders.poll_receive(context).map(Heard::Orders)
        })
        .await
    }

    /// SIGTERM: what a worker without a supervisor can be told.
    async fn watch_sigterm(self: Rc<Self>, signals: Stream) {
        if signals.readable().await.is_ok() {
            self.stop_gracefully();
        }
    }

    /// A worker that cannot go on finishes what it has and ends. By then its supervisor has another one in its place.
    async fn end_on_failure(self: Rc<Self>) {
        self.connections.failed().await;
        self.stop(self.connections.drain_timeout_ms.get());
    }

    fn stop_gracefully(self: &Rc<Self>) {
        let deadline_ms = self.configured.settings().graceful_timeout_ms;
        self.stop(deadline_ms);
    }

    /// Accepts no more, and ends when what is in flight has ended, or at the deadline: that of an earlier stop, if that
    /// comes first.
    fn stop(self: &Rc<Self>, deadline_ms: u64) {
        if !self.connections.is_draining() {
            self.connections.drain(deadline_ms);
        }
        self.configured.release_sockets();
        self.end_when_drained(deadline_ms);
    }

    /// Accepts no more, gives idle connections to the successor, and ends when all have gone, or at the deadline.
    fn hand_over(self: &Rc<Self>, deadline_ms: u64) -> Result<(), String> {
        let channel = self.successor.take().ok_or("it is handing over already")?;
        let successor =
            Successor::new(&self.connections.shared.ring, channel).map_err(|error| error.to_string())?;
        self.connections.hand_over(Rc::new(successor));
        self.end_when_drained(deadline_ms);
        Ok(())
    }

    /// Takes the listening sockets and connections of another worker.
    fn take(self: &Rc<Self>) -> io::Result<()> {
        for predecessor in self.configured.take(&self.connections)? {
            downstream::inherit(Rc::clone(&self.connections), predecessor, Rc::clone(self))?;
        }
        Ok(())
    }

    /// Gives some connections to another worker.
    fn share(&self, connections: u32) -> io::Result<()> {
        for (belonging, channel) in self.channel.receive()? {
            if belonging == DescriptorKind::Successor {
                let successor = Successor::new(&self.connections.shared.ring, channel)?;
                self.connections.share(Rc::new(successor), connections);
            }
        }
        Ok(())
    }

    async fn housekeeping(self: Rc<Self>) {
        let timer = Timer::new(&self.connections.shared.ring);
        loop {
            timer.set(HOUSEKEEPING_MS);
            timer.elapsed().await;
            self.configured.trim(&self.connections.shared.pooling);
            self.connections.shared.ring.trim_body_memory();
            self.publish_ring_figures();
        }
    }

    /// What clients have sent and received is counted at the sockets, and shown without delay.
    fn publish_bytes(&self) {
        let now = self.connections.shared.ring.downstream_bytes();
        let before = self.published_bytes.replace(now);
        for (counter, now, before) in
            [(Counter::BytesIn, now.0, before.0), (Counter::BytesOut, now.1, before.1)]
        {
            if now != before {
                self.connections.shared.counters.add(counter, now - before);
            }
        }
    }

    fn publish_ring_figures(&self) {
        let stats = self.connections.shared.ring.stats();
        // What is new since the last time: the counters go on from those of the predecessors.
        let before = self.published.replace(stats);
        for (counter, value, before) in [
            (Counter::RingEnters, stats.enters, before.enters),
            (Counter::RingSqes, stats.sqes, before.sqes),
            (Counter::RingCqes, stats.cqes, before.cqes),
            (Counter::RingNoBuffers, stats.no_buffers, before.no_buffers),
            (Counter::RingOverflows, stats.overflows, before.overflows),
            (Counter::RingBulk, stats.bulk, before.bulk),
            (Counter::RingSpilled, stats.spilled, before.spilled),
            (Counter::BodyMemoryRefused, stats.body_memory_refused, before.body_memory_refused),
        ] {
            self.connections.shared.counters.add(counter, value.saturating_sub(before));
        }
        self.connections.shared.counters.set(Counter::BodyMemory, stats.body_memory);
        let deferred = self.connections.shared.ring.deferred();
        let before = self.published_deferred.replace(deferred);
        self.connections.shared.counters.add(Counter::RingDeferred, deferred - before);
    }
}
