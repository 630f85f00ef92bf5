//! The records of the state and of the listening sockets are written on a thread of their own, one thing after the other: whoever
//! needs something written waits for that, and everybody else is served meanwhile.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kakehi_ctl::{
    change::Change,
    layers::Whose,
    state::{KnownName, Revision},
    store,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{
    estate::{names_record, record::StateRecord},
    fleet::{
        socket_record::{self, KnownSockets, SocketRecord},
        worker::Worker,
    },
    host::{listeners::Sockets, own_file},
    supervisor::{Supervisor, turn::Stopped},
};

/// How long a stop waits for a disk until the records are removed.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// Between two records of what is known of names.
const NAMES_PAUSE: Duration = Duration::from_millis(250);

/// Why there are no records when a disk stands still.
const LATE: &str = "the disk did not take it within `worker_timeout`";

struct Records {
    state: StateRecord,
    sockets: SocketRecord,
    /// Place of the record of names.
    names: PathBuf,
}

impl Records {
    /// What is there does not hold any more, and is to be written anew.
    fn lapse(&mut self) {
        let error = io::Error::new(io::ErrorKind::TimedOut, LATE);
        self.state.lapse(&error);
        self.sockets.lapse(&error);
    }

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

/// What a supervisor before had written, to be put back.
pub(crate) struct Before {
    /// Each record's place and content.
    files: [(PathBuf, Option<Vec<u8>>); 3],
}

impl Before {
    /// What lies beside this command socket now.
    fn read(command_socket: &Path) -> Before {
        let places = [
            StateRecord::path(command_socket),
            socket_record::path(command_socket),
            names_record::path(command_socket),
        ];
        let content = |path: &PathBuf| {
            let mut text = Vec::new();
            own_file::open(path).ok()??.read_to_end(&mut text).ok().map(|_| text)
        };
        Before { files: places.map(|path| (path.clone(), content(&path))) }
    }

    fn put_back(&self) {
        for (path, content) in &self.files {
            let Some(content) = content else { continue };
            if let Err(error) = store::write_unsynced(path, &[content], store::MODE) {
                tracing::warn!("what was in {} cannot be put back: {error}", path.display());
            }
        }
    }
}

/// Something to be written, and who waits for it.
type Work = (Box<dyn FnOnce(&mut Records) + Send>, oneshot::Sender<()>);

/// Where the records are written.
pub(crate) struct Recording {
    work: mpsc::UnboundedSender<Work>,
    failed: watch::Receiver<Failed>,
    /// For what the thread cannot say, as a disk has it wait.
    failing: watch::Sender<Failed>,
    /// The records were given up, and are not removed yet.
    is_late: Arc<AtomicBool>,
    names: NamesNote,
}

/// When what is known of names is to be written.
#[derive(Default)]
struct NamesNote {
    /// Ends when what was written last is.
    writing: Option<oneshot::Receiver<()>>,
    due: Option<Instant>,
    /// When it was written last.
    last: Option<Instant>,
}

impl Recording {
    /// Beside this command socket; not written yet.
    pub(crate) fn beside(command_socket: &Path) -> Recording {
        // As long as operations, which wait for what they have written, and run one at a time.
        let (work, mut waiting) = mpsc::unbounded_channel::<Work>();
        let (state, sockets) = (StateRecord::new(command_socket), SocketRecord::new(command_socket));
        let mut records = Records { state, sockets, names: names_record::path(command_socket) };
        let (failing, failed) = watch::channel(Failed::default());
        let told = failing.clone();
        tokio::task::spawn_blocking(move || {
            while let Some((work, tell)) = waiting.blocking_recv() {
                work(&mut records);
                told.send_replace(records.failed());
                // At a stop nobody waits any more.
                let _ = tell.send(());
            }
        });
        Recording { work, failed, failing, is_late: Arc::default(), names: NamesNote::default() }
    }

    /// Has something written, behind all before it; what comes back says when it is.
    fn write(&self, work: impl FnOnce(&mut Records) + Send + 'static) -> oneshot::Receiver<()> {
        let (tell, written) = oneshot::channel();
        // The thread ends with this value only.
        let _ = self.work.send((Box::new(work), tell));
        written
    }

    /// Has the records removed as soon as the disk allows it.
    fn give_up(&self) {
        tracing::warn!(
            "the records of what is running are given up, as {LATE}; until they are written anew, a supervisor that has to go on after \
             this one may start the workers again"
        );
        self.is_late.store(true, Ordering::Release);
        let is_late = Arc::clone(&self.is_late);
        let lapse = move |records: &mut Records| {
            records.lapse();
            is_late.store(false, Ordering::Release);
        };
        drop(self.write(lapse));
        self.failing.send_replace(Failed { reason: Some(LATE.to_owned()), retry: None });
    }

    fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Acquire)
    }

    /// Why a supervisor that comes after this one would not find what is running, if that is so.
    pub(super) fn failure(&self) -> Option<String> {
        self.failed.borrow().reason.clone()
    }

    /// What is known of names has changed: it is written at once, but not for each change of many.
    pub(super) fn note_names_soon(&mut self) {
        let now = Instant::now();
        let at = self.names.last.map_or(now, |last| now.max(last + NAMES_PAUSE));
        self.names.due.get_or_insert(at);
    }

    /// When that is due.
    pub(super) fn names_due(&self) -> Option<Instant> {
        self.names.due
    }

    /// Writes what is `known` of names, if it is time. Nobody waits for it: where it cannot be written, a supervisor to come asks the DNS.
    pub(super) fn note_names_if_due(&mut self, now: Instant, known: impl FnOnce() -> Vec<KnownName>) {
        if self.names.due.is_none_or(|due| due > now) {
            return;
        }
        let is_writing = |it: &mut oneshot::Receiver<()>| {
            matches!(it.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        };
        if self.names.writing.as_mut().is_some_and(is_writing) {
            // The disk has it wait.
            self.names.due = Some(now + NAMES_PAUSE);
            return;
        }
        let known = known();
        (self.names.due, self.names.last) = (None, Some(now));
        self.names.writing = Some(self.write(move |records| {
            if let Err(error) = names_record::write(&records.names, &known) {
                tracing::debug!("the addresses of names cannot be written down: {error}");
            }
        }));
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
        // At a stop it is removed soon.
        let _ = self.record(move |records| records.state.begin(&text, &revision, &in_file)).await;
    }

    /// Writes which listening sockets there are, before workers get those that `come`.
    ///
    /// # Errors
    /// When a stop has begun: no worker may get them.
    pub(crate) async fn note_sockets(&mut self, come: &[Sockets]) -> Result<(), Stopped> {
        let sockets = self.workers.iter().map(Worker::sockets).chain(come).flatten();
        let known = KnownSockets::of(sockets.map(|(which, socket)| (*which, socket)));
        self.record(move |records| records.sockets.write(known)).await
    }

    /// Writes how the configuration file has the settings.
    pub(crate) async fn note_file_in_record(&mut self) {
        let (revision, in_file) = (self.state.revision.clone(), self.source.settings.clone());
        let _ = self.record(move |records| records.state.note_file(&revision, &in_file)).await;
    }

    /// Writes what is about to be made, before it is.
    pub(crate) async fn append_to_record(
        &mut self,
        changes: Arc<Vec<Change>>,
        revision: Revision,
        whose: Whose,
    ) {
        let _ = self.record(move |records| records.state.append(&changes, &revision, &whose)).await;
    }

    /// Writes the whole again where that takes less room than the changes, or nothing is written.
    pub(super) async fn tidy_record(&mut self) {
        let state = Arc::clone(&self.state);
        let _ = self.record(move |records| records.state.tidy(state)).await;
    }

    /// Writes again what could not be written.
    pub(crate) async fn record_again(&mut self) {
        self.tidy_record().await;
        // At a stop they are removed soon.
        let _ = self.note_sockets(&[]).await;
    }

    /// Writes something, and waits for it as long as for a worker. Then the records do not hold any more: they are removed as soon as the
    /// disk allows that, and written anew; what is to be written until then stands in the new ones.
    ///
    /// # Errors
    /// When a stop has begun.
    async fn record(&mut self, work: impl FnOnce(&mut Records) + Send + 'static) -> Result<(), Stopped> {
        if self.is_stopping() {
            return Err(Stopped);
        }
        if self.recording.is_late() {
            return Ok(());
        }
        let written = self.recording.write(work);
        let late = Instant::now() + Duration::from_millis(self.state.settings.worker_timeout_ms);
        match self.serve_until(tokio::time::timeout_at(late, written)).await? {
            Ok(_) => {}
            Err(_) => self.recording.give_up(),
        }
        Ok(())
    }

    /// Waits until all records are written, not longer than `until`; whether they are.
    pub(crate) async fn records_end(&mut self, until: Instant) -> bool {
        let written = self.recording.write(|_| {});
        self.serve_late(until, written).await.is_some()
    }

    /// What a supervisor before has written down, which may be put back.
    ///
    /// # Errors
    /// When a stop has begun.
    pub(crate) async fn read_before(&mut self) -> Result<Before, Stopped> {
        let command_socket = self.state.settings.command_socket.clone();
        self.serve_beside(move || Before::read(&command_socket)).await
    }

    /// What was written down is of no use any more: there are no workers.
    pub(crate) async fn remove_records(&mut self) {
        self.replace_records(None).await;
    }

    /// The same, where those of a supervisor before may be there still: what was written of them is there again.
    pub(crate) async fn replace_records(&mut self, before: Option<Before>) {
        let removed = self.recording.write(move |records| {
            records.state.remove();
            records.sockets.remove();
            names_record::remove(&records.names);
            before.iter().for_each(Before::put_back);
        });
        // What a disk does not take in this time stays: no worker is left that it would be believed for.
        let _ = self.serve_late(Instant::now() + STOP_PATIENCE, removed).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use kakehi_ctl::state::{Settings, State};

    use super::*;

    #[tokio::test]
    async fn a_record_that_a_disk_does_not_take_is_given_up_and_removed_when_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("k.sock");
        let recording = Recording::beside(&socket);
        let text = serde_json::to_vec(&State::default()).unwrap();
        let begin = move |records: &mut Records| {
            records.state.begin(&text, &Revision::default(), &Settings::default());
        };
        recording.write(begin).await.unwrap();
        assert!(StateRecord::load(&socket).unwrap().is_some() && recording.failure().is_none());
        // The disk stands still.
        let (let_go, gate) = channel::<()>();
        let held = recording.write(move |_| gate.recv().unwrap());
        recording.give_up();
        assert!(recording.is_late() && recording.failure().is_some() && recording.retry_due().is_none());
        let_go.send(()).unwrap();
        held.await.unwrap();
        recording.write(|_| {}).await.unwrap();
        assert!(StateRecord::load(&socket).unwrap().is_none(), "what is there does not hold any more");
        assert!(!recording.is_late() && recording.failure().is_some() && recording.retry_due().is_some());
    }
}
