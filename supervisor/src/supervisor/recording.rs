//! The records of the state and of the listening sockets are written on a thread of their own, one thing after the other: whoever
//! needs something written waits for that, and everybody else is served meanwhile.

use std::{path::Path, sync::Arc, time::Duration};

use kakehi_ctl::{change::Change, layers::Whose, state::Revision};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    estate::record::StateRecord,
    fleet::{
        socket_record::{KnownSockets, SocketRecord},
        worker::Worker,
    },
    host::listeners::Sockets,
    supervisor::{Supervisor, turn::Stopped},
};

/// How long a stop waits for a disk until the records are removed.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

struct Records {
    state: StateRecord,
    sockets: SocketRecord,
}

impl Records {
    fn failed(&self) -> Failed {
        let [state, sockets] = [self.state.failure(), self.sockets.failure()];
        Failed {
            reason: state.reason().or(sockets.reason()).map(str::to_owned),
            retry: state.due().into_iter().chain(sockets.due()).min(),
        }
    }
}

/// What of the records could not be written.
#[derive(Default)]
struct Failed {
    /// Why, if anything.
    reason: Option<String>,
    /// When it is to be tried again.
    retry: Option<Instant>,
}

/// Something to be written, and who waits for it.
type Work = (Box<dyn FnOnce(&mut Records) + Send>, oneshot::Sender<()>);

/// Where the records are written.
pub(crate) struct Recording {
    work: mpsc::UnboundedSender<Work>,
    failed: watch::Receiver<Failed>,
}

impl Recording {
    /// Beside this command socket; not written yet.
    pub(crate) fn beside(command_socket: &Path) -> Recording {
        // As long as operations, which wait for what they have written, and run one at a time.
        let (work, mut waiting) = mpsc::unbounded_channel::<Work>();
        let (state, sockets) = (StateRecord::new(command_socket), SocketRecord::new(command_socket));
        let mut records = Records { state, sockets };
        let (failing, failed) = watch::channel(Failed::default());
        tokio::task::spawn_blocking(move || {
            while let Some((work, tell)) = waiting.blocking_recv() {
                work(&mut records);
                failing.send_replace(records.failed());
                // At a stop nobody waits any more.
                let _ = tell.send(());
            }
        });
        Recording { work, failed }
    }

    /// Has something written, behind all before it; what comes back says when it is.
    fn write(&self, work: impl FnOnce(&mut Records) + Send + 'static) -> oneshot::Receiver<()> {
        let (tell, written) = oneshot::channel();
        // The thread ends with this value only.
        let _ = self.work.send((Box::new(work), tell));
        written
    }

    /// Why a supervisor that comes after this one would not find what is running, if that is so.
    pub(super) fn failure(&self) -> Option<String> {
        self.failed.borrow().reason.clone()
    }

    /// When it is to be written again.
    pub(super) fn retry_due(&self) -> Option<Instant> {
        self.failed.borrow().retry
    }
}

impl Supervisor {
    /// Writes the whole state, whose text is `text`.
    pub(crate) async fn begin_record(&mut self, text: Arc<Vec<u8>>) {
        let (revision, in_file) = (self.state.revision.clone(), self.source.settings.clone());
        let written = self.recording.write(move |records| records.state.begin(&text, &revision, &in_file));
        // At a stop it is removed soon.
        let _ = self.serve_until(written).await;
    }

    /// Writes which listening sockets there are, before workers get those that `come`.
    ///
    /// # Errors
    /// When a stop has begun: no worker may get them.
    pub(crate) async fn note_sockets(&mut self, come: &[Sockets]) -> Result<(), Stopped> {
        let sockets = self.workers.iter().map(Worker::sockets).chain(come).flatten();
        let known = KnownSockets::of(sockets.map(|(which, socket)| (*which, socket)));
        let written = self.recording.write(move |records| records.sockets.write(known));
        self.serve_until(written).await.map(drop)
    }

    /// Writes how the configuration file has the settings.
    pub(crate) async fn note_file_in_record(&mut self) {
        let (revision, in_file) = (self.state.revision.clone(), self.source.settings.clone());
        let written = self.recording.write(move |records| records.state.note_file(&revision, &in_file));
        let _ = self.serve_until(written).await;
    }

    /// Writes what is about to be made, before it is.
    pub(crate) async fn append_to_record(
        &mut self,
        changes: Arc<Vec<Change>>,
        revision: Revision,
        whose: Whose,
    ) {
        let written = self.recording.write(move |records| records.state.append(&changes, &revision, &whose));
        let _ = self.serve_until(written).await;
    }

    /// Writes the whole again where that takes less room than the changes, or nothing is written.
    pub(super) async fn tidy_record(&mut self) {
        let state = Arc::clone(&self.state);
        let written = self.recording.write(move |records| records.state.tidy(state));
        let _ = self.serve_until(written).await;
    }

    /// Writes again what could not be written.
    pub(crate) async fn record_again(&mut self) {
        self.tidy_record().await;
        // At a stop they are removed soon.
        let _ = self.note_sockets(&[]).await;
    }

    /// What was written down is of no use any more: there are no workers.
    pub(crate) async fn remove_records(&mut self) {
        let removed = self.recording.write(|records| {
            records.state.remove();
            records.sockets.remove();
        });
        // What a disk does not take in this time stays: no worker is left that it would be believed for.
        let _ = self.serve_late(Instant::now() + STOP_PATIENCE, removed).await;
    }
}
