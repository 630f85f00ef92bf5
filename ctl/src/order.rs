//! The messages: what `kakehictl` asks of the supervisor, what the supervisor orders its workers, and the answers.
//!
//! Every message travels in an [`Envelope`] with the version of its vocabulary, one [`crate::wire`] frame each. There are three
//! vocabularies, each with a version of its own: that of clients (here), that of orders ([`Order`], [`Report`]), and that in which
//! a supervisor takes workers over ([`ADOPTION_VERSION`]). Within a version words may be added: each side says in its greeting
//! which it understands ([`Request::Hello`], [`Report::Ready`], [`Adopted`]), and a word that is not understood is refused at once.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    change::Change,
    edit::Edit,
    event::{Event, Topic},
    state::{AuthorizedHash, CertificateFiles, Fingerprint, KeyKind, State},
};

mod backends;
mod explain;
mod topology;
mod worker;

pub use self::backends::{
    BackendInfo, Backends, ClusterCondition, LastProbe, NameFailure, NameInfo, OperatorVerdict, ProbeVerdict,
    TrafficVerdict,
};
pub use self::explain::{
    Answered, ClusterRule, ExplainedEdits, ExplainedLimit, ExplainedShare, Explanation, Found, Inquiry,
    MOST_EXPLAINED, TriedRule,
};
pub use self::topology::{Core, Interface, Topology};
pub use self::worker::{
    ADOPTION_VERSION, Adopted, BACKENDS_PER_ORDER, BackendLoad, BackendName, ClosedSessions, Fact,
    ListenerSocket, NAMES_PER_ORDER, Order, Program, Report, Verdict,
};

/// Version of the vocabulary of clients; a peer of another version is told so and nothing else happens.
pub const CLIENT_VERSION: u32 = 1;

/// A message of one of the vocabularies.
pub trait Message {
    /// Of its vocabulary.
    const VERSION: u32;
    /// What the vocabulary is for.
    const VOCABULARY: &'static str;
}

impl Message for Request {
    const VERSION: u32 = CLIENT_VERSION;
    const VOCABULARY: &'static str = "clients";
}

impl Message for Response {
    const VERSION: u32 = CLIENT_VERSION;
    const VOCABULARY: &'static str = "clients";
}

/// A message with its version and the number that pairs an answer with what it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// That of the vocabulary, in what this program writes.
    pub version: u32,
    /// Chosen by the one that asks; repeated in the answer. 0 for what nobody asked for.
    pub id: u64,
    /// The message.
    pub body: T,
}

impl<T: Message> Envelope<T> {
    /// `body` under number `id`, in this version.
    pub fn new(id: u64, body: T) -> Self {
        Envelope { version: T::VERSION, id, body }
    }
}

/// What a peer says of itself before anything else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of its program.
    pub program: String,
    /// What it can do beyond the first words of its vocabulary.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// A supervisor that can do this knows [`Request::Watch`].
pub const WATCH: &str = "watch";
/// A client that can do this knows [`Response::Working`]; a supervisor sends it while what was asked takes time.
pub const WORKING: &str = "working";

impl Hello {
    /// That of this program.
    pub fn new(capabilities: &[&str]) -> Hello {
        let capabilities = capabilities.iter().map(|it| (*it).to_owned()).collect();
        Hello { program: env!("CARGO_PKG_VERSION").to_owned(), capabilities }
    }

    /// Whether the peer can do this.
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|it| it == capability)
    }
}

/// What `kakehictl` asks of the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// What this supervisor is and can do.
    Hello(Hello),
    /// The whole in a few figures.
    Status,
    /// Each worker.
    Workers,
    /// To be told what happens from now on: [`Response::Watching`], then events under the same number, then
    /// [`Response::Ended`]. Other questions may be asked meanwhile.
    Watch {
        /// What about; none: everything.
        #[serde(default)]
        topics: Vec<Topic>,
    },
    /// Everything that is configured now.
    State,
    /// How backends are, and what they have to do.
    Backends {
        /// Only those of this cluster.
        #[serde(default)]
        cluster: Option<String>,
    },
    /// What would become of a request.
    Explain {
        /// The listener that it comes in at; `None`: the one of this scheme and port.
        #[serde(default)]
        listener: Option<SocketAddr>,
        /// Its scheme is `https`.
        tls: bool,
        /// The port that the client connects to.
        port: u16,
        /// The request.
        inquiry: Inquiry,
    },
    /// Read the configuration file again and make what has changed.
    Reload {
        /// Only say what would change.
        dry_run: bool,
        /// Then replace the processes of the workers, for the settings that need it.
        #[serde(default)]
        workers: bool,
        /// Also if nothing would accept connections any more.
        #[serde(default)]
        allow_empty: bool,
        /// Drop what is by hand.
        #[serde(default)]
        discard_live: bool,
    },
    /// Replace the process of a worker, or of each worker, one after the other, without losing a connection.
    UpgradeWorkers {
        /// Which worker; `None` = all.
        worker: Option<u32>,
    },
    /// Replace the supervisor and then each worker by the program that is on the disk now.
    Upgrade,
    /// Set the number of workers.
    Scale {
        /// How many.
        count: u32,
    },
    /// Move idle connections until all workers have about as many.
    Rebalance,
    /// What cores the host has, and where the workers are.
    Topology,
    /// Tie a worker to a core.
    Pin {
        /// Which worker.
        worker: u32,
        /// Which core.
        core: u16,
    },
    /// Spread the workers over the cores.
    PinAuto {
        /// One of the cores that share a physical one is enough.
        no_smt: bool,
        /// Only cores of this NUMA node.
        numa: Option<u32>,
        /// Leave cores alone that serve the interrupts of network cards.
        reserve_for_irq: bool,
    },
    /// Stop. The connection ends when the supervisor has.
    Stop {
        /// Cut what is in flight instead of letting it finish.
        now: bool,
    },
    /// Make listeners, clusters, frontends and backends what they are in this state.
    LoadState {
        /// A state that was saved.
        state: Box<State>,
        /// Of its certificates that have no files.
        #[serde(default)]
        keys: BTreeMap<Fingerprint, KeyPair>,
        /// Only say what would change.
        dry_run: bool,
        /// Also if nothing would accept connections any more.
        #[serde(default)]
        allow_empty: bool,
    },
    /// Save the state to `saved_state`.
    SaveState {
        /// With the keys of certificates that have no files; without them such certificates are left out.
        with_keys: bool,
    },
    /// The certificates that have no files, with their keys. For root and kakehi's own user only.
    Keys,
    /// The users of basic authentication with the digests of their passwords, which a state that is told has not. For root and kakehi's own user
    /// only.
    Users,
    /// Give a listener a certificate.
    AddCertificate {
        /// The listener.
        address: SocketAddr,
        /// Certificate and chain.
        chain: Pem,
        /// Its private key.
        key: Pem,
        /// The files that these come from, which are watched from now on.
        files: Option<CertificateFiles>,
        /// Names to serve it for, instead of those in it.
        names: Vec<String>,
        /// Make it the listener's default.
        default: bool,
        /// The certificate that goes as this one comes: its fingerprint, or a name that only one is served for.
        replaces: Option<String>,
    },
    /// Take a certificate from a listener.
    RemoveCertificate {
        /// The listener.
        address: SocketAddr,
        /// Its fingerprint, or a name that only one is served for.
        which: String,
    },
    /// Say what is in certificates.
    Certificates {
        /// Only those that are served for this name or have this fingerprint.
        which: Option<String>,
    },
    /// Make these changes, all or none.
    Apply {
        /// In their order.
        changes: Vec<Change>,
    },
    /// Make what these come to of the configuration as it is then, all or none.
    Edit {
        /// In their order.
        edits: Vec<Edit>,
        /// The folder of relative paths in them.
        folder: PathBuf,
        /// Only if the configuration is of this generation: nobody else has changed anything since.
        #[serde(default)]
        if_generation: Option<u64>,
    },
    /// Close sessions of a cluster: idle upstream connections, tunnels and connections that are passed on now, all others when their
    /// exchange has ended.
    CloseSessions {
        /// The cluster.
        cluster: String,
        /// Only those of this backend.
        #[serde(default)]
        backend: Option<String>,
    },
}

impl Request {
    /// Whether it is about what is configured, and not about workers.
    pub fn concerns_state(&self) -> bool {
        matches!(
            self,
            Request::Reload { .. }
                | Request::LoadState { .. }
                | Request::Apply { .. }
                | Request::Edit { .. }
                | Request::AddCertificate { .. }
                | Request::RemoveCertificate { .. }
        )
    }

    /// Whether it changes something. What only asks is answered at any moment; changes are made one after the other.
    pub fn is_change(&self) -> bool {
        !matches!(
            self,
            Request::Hello(_)
                | Request::Status
                | Request::Workers
                | Request::Watch { .. }
                | Request::State
                | Request::Backends { .. }
                | Request::Explain { .. }
                | Request::Topology
                | Request::Certificates { .. }
                | Request::Keys
                | Request::Users
                | Request::Reload { dry_run: true, .. }
                | Request::LoadState { dry_run: true, .. }
        )
    }
}

/// What the supervisor answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result", content = "content")]
pub enum Response {
    /// To [`Request::Hello`].
    Hello(Hello),
    /// The answer is not there yet: a sign of life every [`limits::WORKING_INTERVAL_MS`](crate::limits::WORKING_INTERVAL_MS),
    /// for clients that know it ([`WORKING`]).
    Working,
    /// To [`Request::Watch`]: events follow.
    Watching,
    /// To [`Request::Watch`]: something has happened.
    Event(Event),
    /// To [`Request::Watch`]: no more events follow.
    Ended {
        /// Why.
        reason: Ending,
        /// Events that were not told, as this watcher was too slow.
        #[serde(default)]
        lost: u64,
    },
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Workers`].
    Workers(Vec<WorkerInfo>),
    /// To [`Request::State`].
    State(Box<State>),
    /// To [`Request::Backends`].
    Backends(Backends),
    /// To [`Request::Explain`].
    Explained(Box<Explanation>),
    /// To what is done to workers: what became of each that is concerned.
    Outcomes(Vec<WorkerOutcome>),
    /// To [`Request::SaveState`].
    Saved {
        /// Where.
        path: PathBuf,
        /// Certificates without files that are not in it, as their keys were not asked for.
        #[serde(default)]
        left_out: usize,
    },
    /// To [`Request::Keys`].
    Keys(BTreeMap<Fingerprint, KeyPair>),
    /// To [`Request::Users`]: in the order of [`State::users`].
    Users(Vec<Vec<AuthorizedHash>>),
    /// To [`Request::Topology`].
    Topology(Topology),
    /// To [`Request::Certificates`].
    Certificates(Vec<CertificateInfo>),
    /// To [`Request::Stop`]: it has begun.
    Stopping,
    /// To [`Request::Reload`], [`Request::LoadState`] and [`Request::Apply`].
    Changed(Changed),
    /// The request was understood and refused, or not understood.
    Refused {
        /// What is wrong and what to do.
        reason: String,
    },
    /// The request says what no file could say.
    Misused {
        /// What is wrong and what to do.
        reason: String,
    },
    /// To [`Request::CloseSessions`].
    SessionsClosed {
        /// How many, on all workers that have done it.
        #[serde(flatten)]
        closed: ClosedSessions,
        /// Workers that have not, and why.
        #[serde(default)]
        failed: Vec<WorkerOutcome>,
    },
}

/// Why no more events follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// kakehi has stopped.
    Stopped,
    /// Another program takes its place, which can be asked for them.
    Replaced,
}

/// Certificates or a key as text (RFC 7468), which no log shows.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pem(pub String);

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pem({} bytes)", self.0.len())
    }
}

/// A certificate with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyPair {
    /// Certificate and chain.
    pub chain: Pem,
    /// Its private key.
    pub key: Pem,
}

/// What is in a certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CertificateInfo {
    /// Its listener.
    pub address: SocketAddr,
    /// SHA-256 of it.
    pub fingerprint: Fingerprint,
    /// Names that it is served for.
    pub names: Vec<String>,
    /// Whom it is for (RFC 4514).
    pub subject: String,
    /// Who issued it (RFC 4514).
    pub issuer: String,
    /// Hexadecimal.
    pub serial: String,
    /// Since when it is valid (seconds since 1970).
    pub not_before: i64,
    /// Until when it is valid (seconds since 1970).
    pub not_after: i64,
    /// Kind of its key.
    pub key: KeyKind,
    /// It is the listener's default.
    pub default: bool,
    /// Certificates that are sent with it.
    pub chain_length: usize,
    /// Its files; `None` when it came over the command socket.
    pub files: Option<CertificateFiles>,
}

/// Where kakehi is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Workers come up, or are taken over and brought up to date.
    Starting,
    /// Everything is as the configuration says.
    #[default]
    Running,
    /// It was asked to stop.
    Stopping,
}

/// The whole in a few figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What it is about.
    #[serde(default)]
    pub phase: Phase,
    /// Generation of the configuration: every change makes the next one.
    #[serde(default)]
    pub generation: u64,
    /// Of the supervisor's program.
    pub version: String,
    /// Of the supervisor.
    pub pid: u32,
    /// Since the supervisor started (s).
    pub uptime_s: u64,
    /// Addresses that accept.
    pub listeners: Vec<SocketAddr>,
    /// How many are configured.
    pub clusters: usize,
    /// How many are configured.
    pub frontends: usize,
    /// How many are configured.
    pub backends: usize,
    /// Entries that are by hand, and not as the file says.
    #[serde(default)]
    pub by_hand: usize,
    /// Open client connections, all workers.
    pub connections: u64,
    /// Requests since the supervisor started, all workers.
    pub requests: u64,
    /// Workers that died and were replaced.
    pub restarts: u64,
    /// Why the state on the disk is not the one that is running (`automatic_state_save`); `None`: it is, or is not to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_failed: Option<String>,
    /// Why the state is not written down for a supervisor that has to go on after this one; `None`: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_failed: Option<String>,
    /// Where the admin address is, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<String>,
    /// Every counter and gauge by its name, summed over the workers; `answers.REASON` are the answers of kakehi's own
    /// making, by the reason code that stands in their body.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// One line each.
    pub workers: Vec<WorkerInfo>,
}

/// What became of a reload or a change that was not refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// It was made; `false` after a dry run.
    pub applied: bool,
    /// What changes, in words: `+` comes, `-` goes, `~` changes. Empty when there is no difference.
    pub changes: Vec<String>,
    /// Settings that differ in the file and change at the next start only.
    pub at_next_start: Vec<String>,
    /// Settings that hold in new processes of the workers only, which none has yet.
    #[serde(default)]
    pub with_new_workers: Vec<String>,
    /// What the file was warned of.
    pub warnings: Vec<String>,
    /// After a reload: what is not as the file says, by hand, and stays so. `+` is not in the file, `-` is there only, `~` has
    /// other keys.
    #[serde(default)]
    pub by_hand: Vec<String>,
    /// What each worker said; empty after a dry run and when there is no difference.
    pub workers: Vec<WorkerOutcome>,
}

/// What became of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerOutcome {
    /// Which worker.
    pub id: u32,
    /// `changed`, `upgraded`, `added`, `removed`, what was done to it otherwise, or why it is replaced by one that has the change.
    pub outcome: String,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerInfo {
    /// Place in the row of workers, from 0; a replacement has the number of the one it replaces.
    pub id: u32,
    /// Process.
    pub pid: u32,
    /// Core that it is pinned to.
    pub core: Option<u32>,
    /// Where it is in its life.
    pub state: WorkerState,
    /// Open client connections.
    pub connections: u64,
    /// Requests answered since the supervisor started, those of its predecessors included.
    pub requests: u64,
    /// CPU time of the process, user (ms).
    pub cpu_user_ms: u64,
    /// CPU time of the process, system (ms).
    pub cpu_system_ms: u64,
    /// Share of a core that it took just now (percent): measured for [`Request::Topology`], absent elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_percent: Option<u64>,
    /// Rung of the ladder of kernel features, 0 to 4.
    pub io_uring_level: u8,
    /// Names of the kernel features in use.
    pub io_uring_features: Vec<String>,
    /// `io_uring_enter` system calls since the supervisor started, those of its predecessors included. This figure
    /// and the two below are published once a second, and when a worker ends in order: up to 1 s old.
    pub ring_enters: u64,
    /// Submission queue entries, counted like `ring_enters`.
    pub ring_sqes: u64,
    /// Completion queue entries, counted like `ring_enters`.
    pub ring_cqes: u64,
    /// Receives that found no buffer and were armed again, likewise.
    pub ring_no_buffers: u64,
    /// Completions that did not fit the queue and were kept aside by the kernel, likewise.
    pub ring_overflows: u64,
    /// Transfers that went over from arena buffers to splicing or private buffers, likewise.
    pub ring_bulk: u64,
}

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// Started, not ready yet.
    Starting,
    /// Serves.
    Running,
    /// Accepts no more, finishes what it has.
    Stopping,
    /// Gone; its replacement waits for the end of its back-off.
    Dead,
}

#[cfg(test)]
mod tests;
