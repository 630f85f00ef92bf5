//! The words of `kakehictl`: options and verbs, with their help.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand};
use kakehi_ctl::{
    config,
    event::Topic,
    order::{Request, Response},
};

use crate::{
    certificate::CertificateVerb,
    client::{Failure, Patience},
    configuration::{ConfigVerb, StateVerb},
    explain::ExplainArguments,
    routing::{BackendVerb, ClusterVerb, FrontendVerb, ListenerVerb, Shown},
    settings::SettingsVerb,
};

/// Where the command socket lies if nobody says where.
const USUAL_SOCKETS: [&str; 2] = ["/run/kakehi/kakehi.sock", "./kakehi.sock"];
/// How long what changes nothing may take.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Environment variable that names the command socket.
const SOCKET_VARIABLE: &str = "KAKEHI_SOCKET";

/// Ask a running kakehi how it is, and change what it does.
///
/// kakehictl talks to the supervisor over its command socket. It finds the socket by --socket, by --config
/// (`command_socket` in that file, which may be wrong otherwise), by the environment variable KAKEHI_SOCKET, at
/// /run/kakehi/kakehi.sock, or at ./kakehi.sock, in this order.
#[derive(Debug, Parser)]
#[command(
    name = "kakehictl",
    version,
    after_help = "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 kakehi is not reachable, 4 outcome unknown."
)]
pub(crate) struct Arguments {
    /// Command socket of kakehi
    #[arg(short, long, global = true, value_name = "SOCKET", conflicts_with = "config")]
    socket: Option<PathBuf>,

    /// Configuration file of kakehi; its `command_socket` is used
    #[arg(short, long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print JSON, for programs; the fields are stable
    #[arg(short, long, global = true)]
    pub(crate) json: bool,

    /// How long kakehi may take for its answer, in milliseconds; 0 = for ever. By default 5000 for questions, for
    /// `stop` 5000 until kakehi has begun and then for ever, and for what changes something as long as kakehi gives signs of life (one each second; none for 30 s: given up)
    #[arg(short, long, global = true, value_name = "MS")]
    timeout: Option<u64>,

    /// Show no steps of what takes longer
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Change something only if the configuration is of this generation (`kakehictl status`): nobody has changed it since
    #[arg(long, global = true, value_name = "N")]
    pub(crate) if_generation: Option<u64>,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What can be asked.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Verb {
    /// Show kakehi in a few figures: version, listeners, what is configured, connections, requests, workers
    ///
    /// With --json: an object.
    Status,

    /// Show each worker: process, core, state, connections, requests, CPU time, kernel features
    ///
    /// With --json: an array with one object per worker.
    Workers {
        #[command(subcommand)]
        action: Option<WorkersVerb>,
    },

    /// Show what happens, one line for each event, until kakehi stops: workers that die and are replaced, changes, refusals,
    /// certificates, steps of upgrades and scalings, the state on the disk, backends that go down and come up
    ///
    /// With --json: one object on each line.
    Events {
        /// Only these; may be repeated
        #[arg(long = "topic", value_name = "TOPIC")]
        topics: Vec<Topic>,
    },

    /// Show how backends are: what the operator, probes and traffic say of each, and what it has to do
    ///
    /// With --json: an object.
    Backends {
        /// Only those of this cluster
        cluster: Option<String>,
    },

    /// Show what would become of a request: the rule that takes it, those that were tried before, limits, edits, the cluster
    /// and its backends
    ///
    /// Nothing is sent, and nothing counted; a worker answers from the tables that it serves by. With --json: an object.
    Explain(ExplainArguments),

    /// Show the cores of the host, and where each worker runs with its load; change that
    ///
    /// What is set holds until kakehi stops; `worker_cores` in the file says it for good.
    /// With --json: an object.
    Pin {
        #[command(subcommand)]
        action: Option<PinVerb>,
    },

    /// Read the configuration file again and change what is different: all of it in every worker, or nothing
    ///
    /// What is by hand stays. Connections go on, but those of a listener that is gone. SIGHUP does the same.
    /// With --json: an object.
    Reload {
        /// Only show what would change
        #[arg(short = 'n', long)]
        dry_run: bool,
        /// Then replace the process of each worker, one after the other, for settings that need it (`user`, `buffer_count`, ...)
        #[arg(long, conflicts_with = "dry_run")]
        workers: bool,
        /// Also where the file has no listener that accepts connections: nothing is served any more then
        #[arg(long)]
        allow_empty: bool,
        /// Drop what was changed by hand: listeners, clusters, frontends, backends, certificates, settings. Number and cores of the
        /// workers (`workers scale`, `pin`) stay
        #[arg(long)]
        discard_live: bool,
    },

    /// Replace kakehi by the program that is on the disk now: the supervisor, then each worker; connections go on
    ///
    /// First the new program is tried: it must accept what is running, and a worker of it must come up. If it does not,
    /// everything goes on as it was. With --json: an array with one object per worker.
    Upgrade,

    /// Stop kakehi, and wait until it has: nothing new is accepted, what is in flight has `graceful_timeout` seconds
    Stop {
        /// Cut what is in flight
        #[arg(long)]
        now: bool,
    },

    /// Show everything that is configured now, as JSON; keep it in a file, or have it from one
    State {
        #[command(subcommand)]
        action: Option<StateVerb>,
    },

    /// Compare what is configured now with the file, or write it as a file
    #[command(subcommand)]
    Config(ConfigVerb),

    /// List the settings of the process, and change those that can change while kakehi runs
    #[command(subcommand)]
    Settings(SettingsVerb),

    /// List, add, change and remove listeners
    ///
    /// Changes survive reloads, upgrades, and a restart with `saved_state`.
    #[command(subcommand)]
    Listener(ListenerVerb),

    /// List, add, change and remove clusters
    ///
    /// Changes survive reloads, upgrades, and a restart with `saved_state`.
    #[command(subcommand)]
    Cluster(ClusterVerb),

    /// List, add, change and remove the frontends that lead to clusters
    ///
    /// Changes survive reloads, upgrades, and a restart with `saved_state`.
    #[command(subcommand)]
    Frontend(FrontendVerb),

    /// List, add, change, drain and remove the backends of clusters
    ///
    /// Changes survive reloads, upgrades, and a restart with `saved_state`.
    #[command(subcommand)]
    Backend(BackendVerb),

    /// List, show, add, replace and remove the certificates of listeners
    ///
    /// Changes survive reloads, upgrades, and a restart with `saved_state`.
    #[command(subcommand)]
    Certificate(CertificateVerb),
}

/// What can be done to workers.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum WorkersVerb {
    /// Replace the process of a worker, or of all, one after the other; connections go on in the new one
    ///
    /// With --json: an array with one object per worker.
    Upgrade {
        /// Which worker; without it, all
        worker: Option<u32>,
    },
    /// Set the number of workers; connections of those that go move to others
    ///
    /// With --json: an array with one object per worker that came or went.
    Scale {
        /// How many
        count: u32,
    },
    /// Move idle connections until all workers have about as many
    ///
    /// With --json: an array with one object per move.
    Rebalance,
}

/// Where workers run.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum PinVerb {
    /// Tie a worker to a core; it moves as it is, with all that it has in flight
    Set {
        /// Which worker
        worker: u32,
        /// Which core
        core: u16,
    },
    /// Spread the workers over the cores, physical cores first
    Auto {
        /// Use one of the cores that share a physical one
        #[arg(long)]
        no_smt: bool,
        /// Use only cores of this NUMA node
        #[arg(long, value_name = "NODE")]
        numa: Option<u32>,
        /// Leave cores alone that serve the interrupts of network cards
        #[arg(long)]
        reserve_for_irq: bool,
    },
}

impl Verb {
    /// Does it, asking the supervisor whatever is needed.
    ///
    /// # Errors
    /// See [`Failure`].
    pub(crate) fn run(&self, ask: &dyn Fn(Request) -> Result<Response, Failure>) -> Result<Shown, Failure> {
        let request = match self.clone() {
            Verb::Listener(verb) => return verb.run(ask),
            Verb::Cluster(verb) => return verb.run(ask),
            Verb::Frontend(verb) => return verb.run(ask),
            Verb::Backend(verb) => return verb.run(ask),
            Verb::Certificate(verb) => return verb.run(ask),
            Verb::Config(verb) => return verb.run(ask),
            Verb::Settings(verb) => return verb.run(ask),
            Verb::Explain(arguments) => return arguments.run(ask),
            Verb::State { action: Some(verb) } => return verb.run(ask),
            // It is no question with an answer: `main` attends to it.
            Verb::Events { topics } => Request::Watch { topics },
            Verb::Pin { action: None } => Request::Topology,
            Verb::Backends { cluster } => Request::Backends { cluster },
            Verb::Status => Request::Status,
            Verb::Workers { action: None } => Request::Workers,
            Verb::Workers { action: Some(WorkersVerb::Upgrade { worker }) } => {
                Request::UpgradeWorkers { worker }
            }
            Verb::Workers { action: Some(WorkersVerb::Scale { count }) } => Request::Scale { count },
            Verb::Workers { action: Some(WorkersVerb::Rebalance) } => Request::Rebalance,
            Verb::Pin { action: Some(PinVerb::Set { worker, core }) } => Request::Pin { worker, core },
            Verb::Pin { action: Some(PinVerb::Auto { no_smt, numa, reserve_for_irq }) } => {
                Request::PinAuto { no_smt, numa, reserve_for_irq }
            }
            Verb::State { action: None } => Request::State,
            Verb::Upgrade => Request::Upgrade,
            Verb::Stop { now } => Request::Stop { now },
            Verb::Reload { dry_run, workers, allow_empty, discard_live } => {
                Request::Reload { dry_run, workers, allow_empty, discard_live }
            }
        };
        ask(request).map(Shown::Response)
    }
}

/// Whether a socket that nobody has named may be used. One in the working directory must belong to root or to this user, as
/// anybody may have put it there.
fn is_trusted(socket: &Path) -> bool {
    if socket.is_absolute() {
        return socket.exists();
    }
    let own = rustix::process::geteuid().as_raw();
    fs::symlink_metadata(socket).is_ok_and(|it| [0, own].contains(&it.uid()))
}

impl Arguments {
    /// The command socket.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        if let Some(file) = &self.config {
            let unreadable = |error| Failure::Usage(format!("{}: {error}", file.display()));
            return config::command_socket(file).map_err(unreadable);
        }
        if let Some(socket) = env::var_os(SOCKET_VARIABLE).filter(|socket| !socket.is_empty()) {
            return Ok(PathBuf::from(socket));
        }
        let mut usual = USUAL_SOCKETS.map(PathBuf::from).into_iter();
        usual.find(|socket| is_trusted(socket)).ok_or_else(|| {
            Failure::Usage(format!(
                "which kakehi? There is no {}; name the command socket with -s SOCKET, the configuration with -c FILE, or set \
                 {SOCKET_VARIABLE}",
                USUAL_SOCKETS.join(" and no ")
            ))
        })
    }

    /// Whether steps of what is asked are shown.
    pub(crate) fn shows_steps(&self, request: &Request) -> bool {
        let has_steps =
            matches!(request, Request::Upgrade | Request::UpgradeWorkers { .. } | Request::Scale { .. });
        has_steps && !self.quiet && !self.json
    }

    /// How long what is asked for may take.
    pub(crate) fn patience(&self, request: &Request) -> Patience {
        match (self.timeout, request) {
            (Some(0), _) | (None, Request::Stop { .. }) => Patience::ForEver,
            (Some(timeout), _) => Patience::Total(Duration::from_millis(timeout)),
            // What is only looked at waits for its turn all the same.
            (None, Request::Reload { .. } | Request::LoadState { .. }) => Patience::WITH_CHANGES,
            (None, request) if request.is_change() => Patience::WITH_CHANGES,
            (None, _) => Patience::Total(QUESTION_TIMEOUT),
        }
    }

    /// How long it may take until events come; `None` = for ever.
    pub(crate) fn watch_timeout(&self) -> Option<Duration> {
        let timeout = self.timeout.map_or(QUESTION_TIMEOUT, Duration::from_millis);
        (!timeout.is_zero()).then_some(timeout)
    }
}
