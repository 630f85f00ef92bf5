//! The task that stands beside one worker process: passes on what it reports and that it ended, pings it, and says when it
//! stands still. It does so whatever else the supervisor is waiting for.
//!
//! Promises: everything that the worker reported comes before the event of its end.

use std::{
    os::unix::net::UnixStream as StdUnixStream,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kakehi_ctl::{
    limits,
    order::{Envelope, Order, Report},
    wire::{self, WireError},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::UnixStream,
    sync::{
        mpsc::{Receiver, Sender},
        watch,
    },
    time::Instant,
};

use crate::{
    fleet::{
        adoption_file::AdoptionFile,
        handle::Handle,
        liveness::{self, Look, Pulse},
        reports::Reports,
        roster::{Entry, Roster},
    },
    timer::sleep_until,
};

/// After its end, a worker's last reports must be there within this time: the kernel closes the sockets of a
/// process with a ring a little after it.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The number of the pings, which are nobody's but this task's; orders are numbered from 1 upwards.
const PING: u64 = u64::MAX;

/// What the tasks beside all processes share.
#[derive(Clone)]
pub(crate) struct Attendance {
    /// Where events go.
    pub(crate) events: Sender<Event>,
    /// How long a process may leave pings unanswered; zero: for ever.
    liveness: Arc<watch::Sender<Duration>>,
    pub(crate) roster: Roster,
}

impl Attendance {
    /// Events go to `events`; processes stand in `roster`.
    pub(crate) fn new(events: Sender<Event>, liveness_ms: u64, roster: Roster) -> Attendance {
        let (liveness, _) = watch::channel(Duration::from_millis(liveness_ms));
        Attendance { events, liveness: Arc::new(liveness), roster }
    }

    /// Pings may stay unanswered for so long from now on; 0: for ever, and there are none any more.
    pub(crate) fn set_liveness(&self, liveness_ms: u64) {
        self.liveness.send_replace(Duration::from_millis(liveness_ms));
    }
}

/// Something that happened to a process.
#[derive(Debug)]
pub(crate) struct Event {
    /// Which worker.
    pub(crate) worker: u32,
    /// Which of its processes, counted from 1.
    pub(crate) launch: u64,
    /// What.
    pub(crate) what: What,
}

/// What happened to a process.
#[derive(Debug)]
pub(crate) enum What {
    /// It reported something, in answer to the order of this number (0: to none).
    Reported(u64, Report),
    /// It answered no ping for too long; with where it stood.
    Mute(String),
    /// Its order channel ended or makes no sense; it may still serve.
    Deaf(String),
    /// It ended; with its status, where it was a child of ours, which is reaped now.
    Ended(std::io::Result<ExitStatus>),
}

/// A process, and how it is reached.
pub(crate) struct Attended {
    /// Which worker.
    pub(crate) worker: u32,
    /// Which of its processes, counted from 1.
    pub(crate) launch: u64,
    pub(crate) pid: u32,
    pub(crate) handle: Arc<Handle>,
    /// Its order channel, to be read from.
    pub(crate) reports: StdUnixStream,
    /// Frames on their way to it.
    pub(crate) orders: Sender<Vec<u8>>,
    pub(crate) adoption: AdoptionFile,
    pub(crate) entry: Entry,
    /// It takes orders already; otherwise only once it has said that it is ready.
    pub(crate) ready: bool,
    /// Where it is said that it leaves a ping unanswered.
    pub(crate) is_mute: Arc<AtomicBool>,
}

/// Stands beside the process until it has ended, and removes its adoption socket then.
pub(crate) async fn attend(process: Attended, attendance: Attendance) {
    let Attended {
        worker,
        launch,
        pid,
        handle,
        reports,
        orders,
        mut adoption,
        entry: _entry,
        ready,
        is_mute,
    } = process;
    let tell = async |what| {
        // The receiver is gone only when the supervisor ends.
        let _ = attendance.events.send(Event { worker, launch, what }).await;
    };
    let mut reports = match Reports::new(reports) {
        Ok(reports) => Some(reports),
        Err(error) => {
            tell(What::Deaf(error.to_string())).await;
            None
        }
    };
    let mut wanted = attendance.liveness.subscribe();
    let mut pulse = Pulse::new(*wanted.borrow_and_update());
    if ready {
        pulse.begin(Instant::now());
    }
    let ended = loop {
        let look_due = pulse.due();
        tokio::select! {
            // Reports first, in the order in which they were sent: also before anybody is found mute.
            biased;
            report = next_report(&mut reports) => match report {
                Ok(Some(Envelope { id, body, .. })) => {
                    pulse.heard();
                    is_mute.store(false, Ordering::Relaxed);
                    if matches!(body, Report::Ready { .. }) {
                        pulse.begin(Instant::now());
                    }
                    if id != PING {
                        tell(What::Reported(id, body)).await;
                    }
                }
                // From now on it is mute: a process that does not end either is of no use.
                Ok(None) => {
                    reports = None;
                    tell(What::Deaf("it closed its order channel".to_owned())).await;
                }
                Err(error) => {
                    reports = None;
                    tell(What::Deaf(error.to_string())).await;
                }
            },
            ended = handle.ended() => break ended,
            Ok(()) = wanted.changed() => {
                pulse.set_liveness(*wanted.borrow_and_update(), Instant::now());
                is_mute.store(false, Ordering::Relaxed);
            }
            () = sleep_until(look_due) => match looked(&mut pulse, &is_mute) {
                // One that finds no place among the orders is as good as one that is not read.
                Look::Ping => drop(ping().map(|frame| orders.try_send(frame))),
                Look::Wait => {}
                Look::Mute => {
                    let position = liveness::position(pid).await;
                    pulse.end();
                    tell(What::Mute(position)).await;
                }
            },
        }
    };
    if let Some(reports) = &mut reports {
        while let Ok(Ok(Some(report))) = tokio::time::timeout(LAST_WORDS, reports.next()).await {
            tell(What::Reported(report.id, report.body)).await;
        }
    }
    adoption.remove_when_noted().await;
    tell(What::Ended(ended)).await;
}

/// Looks, and says whether the process keeps it waiting.
fn looked(pulse: &mut Pulse, is_mute: &AtomicBool) -> Look {
    let look = pulse.look(Instant::now());
    is_mute.store(pulse.is_late(), Ordering::Relaxed);
    look
}

fn ping() -> Result<Vec<u8>, WireError> {
    wire::encode(&Envelope::new(PING, Order::Ping), limits::MAX_FRAME)
}

/// Waits for ever when there is no channel to read from any more.
async fn next_report(reports: &mut Option<Reports>) -> Result<Option<Envelope<Report>>, WireError> {
    match reports {
        Some(reports) => reports.next().await,
        None => std::future::pending().await,
    }
}

/// Writes orders to a worker's channel, until it is closed or nobody has any more. A large one takes the worker's pace.
pub(crate) async fn write_orders(orders: StdUnixStream, mut frames: Receiver<Vec<u8>>) {
    let Ok(mut orders) = UnixStream::from_std(orders) else { return };
    while let Some(frame) = frames.recv().await {
        // Whose channel is closed has ended, or will be found not to answer.
        if orders.write_all(&frame).await.is_err() {
            return;
        }
    }
}
