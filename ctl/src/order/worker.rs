//! What the supervisor orders its workers, what they report, and how they say who they are.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Found, Inquiry, Message};
use crate::{
    change::Change,
    state::{Binding, InterfaceName, NameAnswer, Revision, Settings},
};

/// Version of the vocabulary of orders and reports.
const ORDERS_VERSION: u32 = 1;

/// Version of the vocabulary in which a supervisor takes a worker over.
pub const ADOPTION_VERSION: u32 = 1;

impl Message for Order {
    const VERSION: u32 = ORDERS_VERSION;
    const VOCABULARY: &'static str = "orders";
}

impl Message for Report {
    const VERSION: u32 = ORDERS_VERSION;
    const VOCABULARY: &'static str = "orders";
}

/// One of the listening sockets of a listener: each worker has one, and sometimes those of workers that were removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerSocket {
    /// Where it listens.
    pub address: SocketAddr,
    /// Which one, in the order in which they were opened, from 0.
    pub rank: u32,
    /// The interface that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<InterfaceName>,
}

impl ListenerSocket {
    /// The one of this number that is bound so.
    pub fn new(Binding { address, interface }: Binding, rank: u32) -> ListenerSocket {
        ListenerSocket { address, rank, interface }
    }

    /// Where it is bound.
    pub fn binding(&self) -> Binding {
        Binding { address: self.address, interface: self.interface }
    }
}

/// What the supervisor orders a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Answer with [`Report::Done`]: a sign of life.
    Ping,
    /// The next of the changes that the `Prepare` behind it is about. It is not answered.
    Stage {
        /// In their order.
        changes: Vec<Change>,
    },
    /// Check the staged changes and these, and get them ready, without making them. Sockets of listeners that come were sent
    /// before.
    Prepare {
        /// How many were staged.
        #[serde(default)]
        staged: usize,
        /// In their order.
        changes: Vec<Change>,
        /// Of the state that they lead to.
        revision: Revision,
    },
    /// Make the changes that were prepared last.
    Commit,
    /// Forget the changes that were prepared last.
    Abort,
    /// Something is so from now on that is no configuration: no state has it, it makes no generation, and the next process of
    /// the worker is told anew.
    Fact {
        /// What.
        fact: Fact,
    },
    /// Answer with [`Report::Loads`]: what these backends have to do.
    TellLoads {
        /// Each with its cluster.
        backends: Vec<BackendName>,
    },
    /// Answer with [`Report::Explained`]: what would become of a request.
    Explain {
        /// The listener that it comes in at.
        listener: SocketAddr,
        /// The request.
        inquiry: Inquiry,
    },
    /// Close sessions of a cluster: idle upstream connections, tunnels and connections that are passed on now, all others when their
    /// exchange has ended. Answered with [`Report::SessionsClosed`].
    CloseSessions {
        /// The cluster.
        cluster: String,
        /// Only those of this backend.
        #[serde(default)]
        backend: Option<String>,
    },
    /// As [`Fact::TicketKeys`], from supervisors of earlier programs.
    RenewTicketKeys,
    /// Send the state as a memfd over the descriptor channel. For supervisors of earlier programs: this one asks no worker for it.
    TellState,
    /// Take what was sent over the descriptor channel: accept on further listening sockets, and go on with the connections
    /// that come out of a predecessor's channel.
    Take,
    /// Accept no more on these listening sockets; others of the same listener stay.
    Yield {
        /// Which.
        sockets: Vec<ListenerSocket>,
    },
    /// Look into the queue of every listening socket: another process has stopped to accept there.
    Stir,
    /// Give this many connections, as they come to rest, to the process behind the channel that was sent over the
    /// descriptor channel.
    Share {
        /// How many.
        connections: u32,
    },
    /// Accept no more, give every connection that is idle to the process that takes this one's place, finish the rest
    /// within `deadline_ms`, then exit.
    HandOver {
        /// What is still there then is cut (ms from now).
        deadline_ms: u64,
    },
    /// Accept no more, finish what is in flight within `deadline_ms`, then exit.
    Stop {
        /// What is still in flight then is cut (ms from now).
        deadline_ms: u64,
    },
}

/// What is so, and is found out rather than configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact {
    /// The ticket keys in the vault, or how long they are good, are others than before.
    TicketKeys,
    /// What probes found of these backends. What is not named stays as it was.
    Verdicts {
        /// One for each.
        verdicts: Vec<Verdict>,
    },
    /// What the DNS says of these names. What is not named stays as it was.
    Names {
        /// One for each.
        answers: Vec<NameAnswer>,
    },
}

/// A backend and its cluster, by their names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendName {
    /// The cluster.
    pub cluster: String,
    /// The backend.
    pub id: String,
}

/// What probes found of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which.
    #[serde(flatten)]
    pub backend: BackendName,
    /// It is well.
    pub up: bool,
}

/// What a backend has to do, as a worker knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendLoad {
    /// Connections in use: requests, tunnels, connections that are passed on.
    pub connections: u32,
    /// Requests and connections since the process started.
    pub served: u64,
    /// Connection attempts in a row that failed.
    pub failures: u32,
    /// How long it is passed over for that (ms from now); 0: it is not.
    pub passed_over_ms: u64,
    /// It is so because of how it answered, and on all workers.
    #[serde(default)]
    pub ejected: bool,
    /// Requests of its cluster that wait for room on this worker.
    #[serde(default)]
    pub waiting: u32,
    /// How long it has been passed over already (ms); 0: it is not.
    #[serde(default)]
    pub passed_over_for_ms: u64,
}

/// How many sessions were closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedSessions {
    /// Upstream connections that nobody used.
    pub idle: u64,
    /// Tunnels, connections that are passed on, and those that belong to a client that was asking nothing.
    pub tunnels: u64,
    /// Exchanges that go on to their end: their upstream connections are closed then.
    pub ending: u64,
}

impl fmt::Display for ClosedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ClosedSessions { idle, tunnels, ending } = self;
        write!(
            f,
            "{idle} idle connections, {tunnels} tunnels; {ending} requests in flight end with their answer"
        )
    }
}

impl ClosedSessions {
    /// These and those.
    #[must_use]
    pub fn plus(self, other: ClosedSessions) -> ClosedSessions {
        ClosedSessions {
            idle: self.idle.saturating_add(other.idle),
            tunnels: self.tunnels.saturating_add(other.tunnels),
            ending: self.ending.saturating_add(other.ending),
        }
    }
}

/// Changes that one order names at most: reading an order holds everybody up who is served.
pub(super) const CHANGES_PER_ORDER: usize = 64;
/// The same of backends.
pub const BACKENDS_PER_ORDER: usize = 256;
/// The same of names, each of which may have many addresses.
pub const NAMES_PER_ORDER: usize = 16;

impl Order {
    /// The orders that every worker understands which does not say which it understands.
    const FIRST: [&'static str; 13] = [
        "ping",
        "stage",
        "prepare",
        "commit",
        "abort",
        "renew_ticket_keys",
        "tell_state",
        "take",
        "yield",
        "stir",
        "share",
        "hand_over",
        "stop",
    ];

    /// Those that came later.
    const LATER: [&'static str; 6] =
        ["fact", "fact.verdicts", "tell_loads", "close_sessions", "fact.names", "explain"];

    /// The orders that this program understands.
    pub fn known() -> impl Iterator<Item = &'static str> {
        Self::FIRST.into_iter().chain(Self::LATER)
    }

    /// Its name, as it travels; that of a fact that came later than others is its own.
    pub fn name(&self) -> &'static str {
        match self {
            Order::Ping => "ping",
            Order::Stage { .. } => "stage",
            Order::Prepare { .. } => "prepare",
            Order::Commit => "commit",
            Order::Abort => "abort",
            Order::Fact { fact: Fact::TicketKeys } => "fact",
            Order::Fact { fact: Fact::Verdicts { .. } } => "fact.verdicts",
            Order::Fact { fact: Fact::Names { .. } } => "fact.names",
            Order::TellLoads { .. } => "tell_loads",
            Order::CloseSessions { .. } => "close_sessions",
            Order::Explain { .. } => "explain",
            Order::RenewTicketKeys => "renew_ticket_keys",
            Order::TellState => "tell_state",
            Order::Take => "take",
            Order::Yield { .. } => "yield",
            Order::Stir => "stir",
            Order::Share { .. } => "share",
            Order::HandOver { .. } => "hand_over",
            Order::Stop { .. } => "stop",
        }
    }

    /// Whether a worker with these capabilities understands it; none: one that does not say.
    pub fn is_understood_by(&self, capabilities: &[String]) -> bool {
        Self::is_name_understood_by(self.name(), capabilities)
    }

    /// The same of the order with this name.
    pub fn is_name_understood_by(name: &str, capabilities: &[String]) -> bool {
        match capabilities {
            [] => Self::FIRST.contains(&name),
            said => said.iter().any(|it| it == name),
        }
    }

    /// As orders that are each read in a short time, to be given one behind the other. Those before the last are not answered.
    /// All parts of a fact and of a question are.
    pub fn in_parts(self) -> Vec<Order> {
        let (mut changes, revision) = match self {
            Order::Prepare { staged: 0, changes, revision } => (changes, revision),
            Order::Fact { fact: Fact::Verdicts { verdicts } } if verdicts.len() > BACKENDS_PER_ORDER => {
                let parts = verdicts.chunks(BACKENDS_PER_ORDER);
                let part = |it: &[Verdict]| Order::Fact { fact: Fact::Verdicts { verdicts: it.to_vec() } };
                return parts.map(part).collect();
            }
            Order::Fact { fact: Fact::Names { answers } } if answers.len() > NAMES_PER_ORDER => {
                let parts = answers.chunks(NAMES_PER_ORDER);
                let part = |it: &[NameAnswer]| Order::Fact { fact: Fact::Names { answers: it.to_vec() } };
                return parts.map(part).collect();
            }
            Order::TellLoads { backends } if backends.len() > BACKENDS_PER_ORDER => {
                let parts = backends.chunks(BACKENDS_PER_ORDER);
                return parts.map(|it| Order::TellLoads { backends: it.to_vec() }).collect();
            }
            whole => return vec![whole],
        };
        let mut parts = Vec::new();
        let staged = changes.len().saturating_sub(1) / CHANGES_PER_ORDER * CHANGES_PER_ORDER;
        let last = changes.split_off(staged);
        let mut changes = changes.into_iter();
        while changes.len() > 0 {
            parts.push(Order::Stage { changes: changes.by_ref().take(CHANGES_PER_ORDER).collect() });
        }
        parts.push(Order::Prepare { staged, changes: last, revision });
        parts
    }
}

/// A worker that was started by another supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Adopted {
    /// Place in the row of workers.
    pub id: u32,
    /// Which of the worker's processes, counted from 1.
    pub launch: u64,
    /// Process.
    pub pid: u32,
    /// Core that it was told to run on at its start.
    pub core: Option<u32>,
    /// It accepts no more and will end.
    pub leaving: bool,
    /// Of the state that it serves.
    pub revision: Revision,
    /// Of the settings that it started with.
    pub settings: Settings,
    /// The program that it runs.
    pub program: Program,
    /// Rung of the ladder of kernel features, 0 to 4.
    pub io_uring_level: u8,
    /// Names of the kernel features in use.
    pub io_uring_features: Vec<String>,
    /// The orders that it understands.
    #[serde(default)]
    pub capabilities: Vec<String>,
}

/// Which program a process runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// As it calls itself.
    pub version: String,
    /// Its file: device and inode.
    pub file: (u64, u64),
}

/// What a worker tells the supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The ring stands, the listeners accept.
    Ready {
        /// Rung of the ladder of kernel features, 0 to 4.
        io_uring_level: u8,
        /// Names of the kernel features in use.
        io_uring_features: Vec<String>,
        /// The orders that it understands.
        #[serde(default)]
        capabilities: Vec<String>,
    },
    /// It cannot serve and exits.
    Failed {
        /// What is wrong and what to do.
        reason: String,
    },
    /// It goes on under this supervisor, over a channel that came through its adoption socket. What it holds was sent
    /// over the descriptor channel.
    Adopted(Box<Adopted>),
    /// It ends.
    Finished {
        /// Nothing was in flight any more.
        drained: bool,
    },
    /// To [`Order::TellLoads`]: one for each backend, in their order; `None`: there is no such backend.
    Loads {
        /// What they have to do.
        loads: Vec<Option<BackendLoad>>,
    },
    /// To [`Order::CloseSessions`].
    SessionsClosed {
        /// How many.
        closed: ClosedSessions,
    },
    /// To [`Order::Explain`].
    Explained(Box<Found>),
    /// An order was carried out.
    Done,
    /// An order was refused, or not understood; nothing changed, and the descriptors that came for it are closed.
    Refused {
        /// Why.
        reason: String,
    },
}
