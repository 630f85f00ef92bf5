//! What happens in a running kakehi, as those hear it who watch ([`crate::order::Request::Watch`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::order::ClosedSessions;

/// Lines of a change that an event names at most.
const MOST_LINES: usize = 50;
/// Bytes of a text in an event at most; a reload may have thousands of long lines.
const MOST_BYTES: usize = 500;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// Processes of workers that die and are replaced.
    Workers,
    /// What is configured, and what was refused.
    Changes,
    /// Certificates that come, go and are renewed.
    Certificates,
    /// Steps of upgrades and scalings, and sessions that were closed.
    Operations,
    /// The state on the disk.
    Saves,
    /// Backends and clusters that can be used, and that cannot.
    Health,
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When (milliseconds since 1970).
    pub time_ms: u64,
    /// Of the configuration, then.
    pub generation: u64,
    /// So many events before it were not told to this watcher, which was too slow.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Happening {
    /// The process of a worker has ended, or is given up.
    WorkerDied {
        /// Which worker.
        worker: u32,
        /// How, or why.
        reason: String,
        /// When another one is started (ms from then); `None`: none is.
        replaced_in_ms: Option<u64>,
    },
    /// Another process serves in the place of one that died.
    WorkerReplaced {
        /// Which worker.
        worker: u32,
        /// The process.
        pid: u32,
    },
    /// What is configured is another than before.
    Changed {
        /// By whom.
        by: String,
        /// What has changed, in words; the first lines.
        changes: Vec<String>,
        /// Lines that are left out.
        #[serde(default)]
        left_out: usize,
    },
    /// The same, where only certificates have changed.
    CertificatesChanged {
        /// By whom.
        by: String,
        /// What has changed, in words; the first lines.
        changes: Vec<String>,
        /// Lines that are left out.
        #[serde(default)]
        left_out: usize,
    },
    /// A reload or another change was refused.
    Refused {
        /// Whose.
        by: String,
        /// Why.
        reason: String,
    },
    /// A longer operation has come so far.
    Step {
        /// `upgrade`, `scale`.
        operation: String,
        /// What was done.
        text: String,
        /// How much of it is done.
        done: u32,
        /// Of how much; 0: that is not known.
        total: u32,
    },
    /// The state could not be saved; it is tried again.
    SaveFailed {
        /// Why.
        reason: String,
    },
    /// It is saved again.
    SavedAgain,
    /// Probes found that a backend is not well.
    BackendDown {
        /// Its cluster.
        cluster: String,
        /// Its name in the cluster.
        backend: String,
        /// Why.
        reason: String,
    },
    /// Probes found that a backend is well.
    BackendUp {
        /// Its cluster.
        cluster: String,
        /// Its name in the cluster.
        backend: String,
        /// Why.
        reason: String,
    },
    /// A backend that takes no new work has nothing in flight any more.
    BackendDrained {
        /// Its cluster.
        cluster: String,
        /// Its name in the cluster.
        backend: String,
    },
    /// Operator and probes leave no backend of a cluster that can be used.
    ClusterDown {
        /// Which.
        cluster: String,
        /// Those that only probes call dead are all used (`fail_open`).
        fails_open: bool,
    },
    /// There is one again.
    ClusterRecovered {
        /// Which.
        cluster: String,
    },
    /// Probes of a cluster are not believed, as they call too few primaries well (`panic_threshold`).
    ClusterPanic {
        /// Which.
        cluster: String,
        /// What they call well (percent, by weight).
        healthy_percent: u8,
    },
    /// They are believed again.
    ClusterPanicEnded {
        /// Which.
        cluster: String,
    },
    /// A cluster is maintained: it takes nothing.
    ClusterMaintained {
        /// Which.
        cluster: String,
    },
    /// It takes requests again.
    ClusterReady {
        /// Which.
        cluster: String,
    },
    /// Sessions of a cluster were closed by hand.
    SessionsClosed {
        /// By whom.
        by: String,
        /// Which cluster.
        cluster: String,
        /// Only those of this backend.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backend: Option<String>,
        /// How many.
        #[serde(flatten)]
        closed: ClosedSessions,
    },
    /// Something this program does not know: it is from a later one.
    #[serde(other)]
    Other,
}

impl Happening {
    /// What it is about; `None`: that is not known.
    pub fn topic(&self) -> Option<Topic> {
        Some(match self {
            Happening::WorkerDied { .. } | Happening::WorkerReplaced { .. } => Topic::Workers,
            Happening::Changed { .. } | Happening::Refused { .. } => Topic::Changes,
            Happening::CertificatesChanged { .. } => Topic::Certificates,
            Happening::Step { .. } | Happening::SessionsClosed { .. } => Topic::Operations,
            Happening::SaveFailed { .. } | Happening::SavedAgain => Topic::Saves,
            Happening::BackendDown { .. }
            | Happening::BackendUp { .. }
            | Happening::BackendDrained { .. }
            | Happening::ClusterDown { .. }
            | Happening::ClusterRecovered { .. }
            | Happening::ClusterPanic { .. }
            | Happening::ClusterPanicEnded { .. }
            | Happening::ClusterMaintained { .. }
            | Happening::ClusterReady { .. } => Topic::Health,
            Happening::Other => return None,
        })
    }

    /// A change, of which `lines` say everything.
    pub fn changed(by: &str, lines: &[String], of_certificates: bool) -> Happening {
        let changes: Vec<String> = lines.iter().take(MOST_LINES).map(|it| cut(it)).collect();
        let (by, left_out) = (by.to_owned(), lines.len() - changes.len());
        match of_certificates {
            true => Happening::CertificatesChanged { by, changes, left_out },
            false => Happening::Changed { by, changes, left_out },
        }
    }

    /// A change that was refused.
    pub fn refused(by: &str, reason: &str) -> Happening {
        Happening::Refused { by: by.to_owned(), reason: cut(reason) }
    }
}

/// The beginning of a text that may be long.
fn cut(text: &str) -> String {
    match text.char_indices().map(|(at, _)| at).take_while(|at| *at <= MOST_BYTES).last() {
        Some(end) if text.len() > MOST_BYTES => format!("{}...", &text[..end]),
        _ => text.to_owned(),
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Happening::WorkerDied { worker, reason, replaced_in_ms: Some(0) } => {
                write!(f, "worker {worker}: {reason}; replaced at once")
            }
            Happening::WorkerDied { worker, reason, replaced_in_ms: Some(delay) } => {
                write!(f, "worker {worker}: {reason}; replaced in {delay} ms")
            }
            Happening::WorkerDied { worker, reason, replaced_in_ms: None } => {
                write!(f, "worker {worker}: {reason}; not replaced")
            }
            Happening::WorkerReplaced { worker, pid } => {
                write!(f, "worker {worker}: process {pid} serves in the place of the one that died")
            }
            Happening::Changed { by, changes, left_out }
            | Happening::CertificatesChanged { by, changes, left_out } => {
                write!(f, "changed by {by}: {}", changes.join("; "))?;
                match left_out {
                    0 => Ok(()),
                    more => write!(f, "; and {more} more"),
                }
            }
            Happening::Refused { by, reason } => write!(f, "refused to {by}: {reason}"),
            Happening::Step { operation, text, total: 0, .. } => write!(f, "{operation}: {text}"),
            Happening::Step { operation, text, done, total } => {
                write!(f, "{operation} {done}/{total}: {text}")
            }
            Happening::SaveFailed { reason } => write!(f, "the state is not saved: {reason}"),
            Happening::SavedAgain => f.write_str("the state is saved again"),
            Happening::BackendDown { cluster, backend, reason } => {
                write!(f, "backend {backend} of cluster {cluster} is down: {reason}")
            }
            Happening::BackendUp { cluster, backend, reason } => {
                write!(f, "backend {backend} of cluster {cluster} is up: {reason}")
            }
            Happening::BackendDrained { cluster, backend } => {
                write!(f, "backend {backend} of cluster {cluster} is drained: nothing is in flight any more")
            }
            Happening::ClusterDown { cluster, fails_open: true } => write!(
                f,
                "cluster {cluster} has no backend that can be used: those that only probes call dead are all used"
            ),
            Happening::ClusterDown { cluster, fails_open: false } => {
                write!(f, "cluster {cluster} has no backend that can be used: requests are answered with 503")
            }
            Happening::ClusterRecovered { cluster } => {
                write!(f, "cluster {cluster} has a backend again that can be used")
            }
            Happening::ClusterPanic { cluster, healthy_percent } => write!(
                f,
                "cluster {cluster}: panic, probes call only {healthy_percent} % of its primaries well, and are not believed"
            ),
            Happening::ClusterPanicEnded { cluster } => {
                write!(f, "cluster {cluster}: the panic is over, probes are believed")
            }
            Happening::ClusterMaintained { cluster } => {
                write!(f, "cluster {cluster} is maintained: it takes nothing, and what it has goes on")
            }
            Happening::ClusterReady { cluster } => write!(f, "cluster {cluster} is ready again"),
            Happening::SessionsClosed { by, cluster, backend, closed } => {
                write!(f, "sessions of cluster {cluster}")?;
                if let Some(backend) = backend {
                    write!(f, ", backend {backend},")?;
                }
                write!(f, " closed by {by}: {closed}")
            }
            Happening::Other => f.write_str("something that this program does not know"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_object_and_what_a_later_program_says_is_no_error() {
        let what =
            Happening::Step { operation: "upgrade".into(), text: "worker 0".into(), done: 1, total: 2 };
        let event = Event { time_ms: 7, generation: 3, lost: 0, what };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"time_ms":7,"generation":3,"event":"step","operation":"upgrade","text":"worker 0","done":1,"total":2}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
        let later = r#"{"time_ms":7,"generation":3,"lost":2,"event":"eclipse","of":"the moon"}"#;
        let later: Event = serde_json::from_str(later).unwrap();
        assert!(later.what == Happening::Other && later.lost == 2 && later.what.topic().is_none());
    }

    #[test]
    fn an_event_is_small_whatever_has_happened() {
        let lines = vec!["ü".repeat(10_000); 1_000];
        let Happening::Changed { changes, left_out, .. } = Happening::changed("nobody", &lines, false) else {
            panic!("a change")
        };
        assert!(changes.len() == MOST_LINES && left_out == 1_000 - MOST_LINES);
        assert!(changes.iter().all(|line| line.len() <= MOST_BYTES + 3));
        assert_eq!(cut("short"), "short");
    }
}
