//! Who may ask at the command socket: root, our own user and guests, but no worker. And what guests may not ask for.

use std::time::Duration;

use kakehi_ctl::{
    change::Change,
    state::{Backend, Cluster},
};
use tokio::{net::UnixStream, sync::watch, time::Instant};

use super::strangers::{Strangers, describe_peer};
use crate::{
    fleet::{process::is_alive, roster::Roster},
    supervisor::Supervisor,
};

/// Pause between two lines of the log that say the same of a worker.
const ALARM_PAUSE: Duration = Duration::from_secs(1);

/// Who may ask.
pub(super) struct Admission {
    guests: watch::Receiver<Vec<u32>>,
    workers: Roster,
    /// When it was last told that a worker has connected.
    alarmed: Option<Instant>,
    strangers: Strangers,
}

impl Admission {
    /// Root, our own user and `guests`, but none of `workers`.
    pub(super) fn new(guests: watch::Receiver<Vec<u32>>, workers: Roster) -> Admission {
        Admission { guests, workers, alarmed: None, strangers: Strangers::default() }
    }

    /// Why whoever has connected may not.
    pub(super) fn refuse(&mut self, stream: &UnixStream) -> Option<String> {
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid()?.try_into().ok());
        if let Some(worker) = pid.and_then(|pid| self.workers.worker_of(pid)) {
            if self.alarmed.is_none_or(|at| at.elapsed() >= ALARM_PAUSE) {
                self.alarmed = Some(Instant::now());
                tracing::error!(
                    "ALARM: {}, which is a worker or was started by one (pid {worker}), has connected to the command socket: \
                 what runs in it may be a stranger's code; refused",
                    describe_peer(stream)
                );
            }
            return Some("workers may not use the command socket".to_owned());
        }
        // 0: of another namespace, where workers are not. Whoever waits for an answer is there. Of one that is not, nobody can tell any
        // more whether it was a worker.
        if pid.is_some_and(|pid| pid > 0 && !is_alive(pid)) {
            tracing::debug!(
                "{} had ended before its connection was accepted: refused",
                describe_peer(stream)
            );
            return Some("a process that has ended may not use the command socket".to_owned());
        }
        if !may_use(stream, &self.guests) {
            self.strangers.note(&describe_peer(stream));
            let reason = "this user may not use the command socket; see `command_allowed_uids`";
            return Some(reason.to_owned());
        }
        None
    }

    /// Ends when whoever has connected is none of the guests any more.
    pub(super) fn shut_out(&self, stream: &UnixStream) -> impl Future<Output = ()> + Send + use<> {
        shut_out(guest(stream), self.guests.clone())
    }
}

/// Root, our own user, and guests. Whoever the kernel does not name is none of them.
fn may_use(stream: &UnixStream, guests: &watch::Receiver<Vec<u32>>) -> bool {
    is_privileged(stream) || guest(stream).is_some_and(|uid| guests.borrow().contains(&uid))
}

/// The user, if it is neither root nor our own.
pub(super) fn guest(stream: &UnixStream) -> Option<u32> {
    if is_privileged(stream) { None } else { stream.peer_cred().ok().map(|peer| peer.uid()) }
}

/// Ends when this user is none of the guests any more.
async fn shut_out(guest: Option<u32>, mut guests: watch::Receiver<Vec<u32>>) {
    let Some(uid) = guest else { return std::future::pending().await };
    if guests.wait_for(|guests| !guests.contains(&uid)).await.is_err() {
        // The supervisor ends, and tells whoever waits.
        std::future::pending().await
    }
}

/// Root and our own user.
pub(super) fn is_privileged(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

impl Supervisor {
    /// Whether `changes` have probes send what stands in files to others than now, or otherwise, or other files.
    pub(super) fn send_files_elsewhere(&self, changes: &[Change]) -> bool {
        changes.iter().any(|change| match change {
            Change::SetCluster { name, cluster } => self.sends_files_elsewhere(name, cluster),
            Change::SetBackend { cluster, backend } => {
                self.state.clusters.get(cluster).is_some_and(|present| {
                    sends_files(present) && !present.backends.iter().any(|it| it.address == backend.address)
                })
            }
            _ => false,
        })
    }

    /// The same of a cluster.
    pub(super) fn sends_files_elsewhere(&self, name: &str, cluster: &Cluster) -> bool {
        let as_now = |present: &Cluster| {
            let is_there = |it: &Backend| present.backends.iter().any(|known| known.address == it.address);
            let check = |it: &Cluster| {
                let check = it.health.as_deref().cloned().unwrap_or_default();
                (check.headers, check.mode, check.port, check.host, check.uri, check.tls)
            };
            check(present) == check(cluster)
                && present.tls == cluster.tls
                && cluster.backends.iter().all(is_there)
        };
        sends_files(cluster) && !self.state.clusters.get(name).is_some_and(as_now)
    }
}

/// Whether probes of a cluster send what stands in files.
fn sends_files(cluster: &Cluster) -> bool {
    cluster.health.as_deref().is_some_and(|check| !check.headers.is_empty())
}
