//! The task that stands beside one worker process: passes on what it reports and that it ended.
//!
//! Promises: everything that the worker reported comes before the event of its end.

use std::{os::unix::net::UnixStream as StdUnixStream, process::ExitStatus, sync::Arc, time::Duration};

use kakehi_ctl::{
    limits,
    order::{Envelope, Report},
    wire::{Decoder, WireError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::mpsc::{Receiver, Sender},
};

use super::{adoption::AdoptionFile, handle::Handle};

/// After its end, a worker's last reports must be there within this time: the kernel closes the sockets of a
/// process with a ring a little after it.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Something that happened to a process.
#[derive(Debug)]
pub(super) struct Event {
    /// Which worker.
    pub(super) worker: u32,
    /// Which of its processes, counted from 1.
    pub(super) launch: u64,
    /// What.
    pub(super) what: What,
}

/// What happened to a process.
#[derive(Debug)]
pub(super) enum What {
    /// It reported something, in answer to the order of this number (0: to none).
    Reported(u64, Report),
    /// Its order channel ended or makes no sense; it may still serve.
    Deaf(String),
    /// It ended; with its status, where it was a child of ours, which is reaped now.
    Ended(std::io::Result<ExitStatus>),
}

/// Stands beside the process until it has ended, and removes its adoption socket then.
pub(super) async fn attend(
    (worker, launch): (u32, u64),
    process: Arc<Handle>,
    (orders, adoption): (StdUnixStream, AdoptionFile),
    events: Sender<Event>,
) {
    let tell = async |what| {
        // The receiver is gone only when the supervisor ends.
        let _ = events.send(Event { worker, launch, what }).await;
    };
    let mut reports = match Reports::new(orders) {
        Ok(reports) => Some(reports),
        Err(error) => {
            tell(What::Deaf(error.to_string())).await;
            None
        }
    };
    let ended = loop {
        tokio::select! {
            // Reports first, in the order in which they were sent.
            biased;
            report = next_report(&mut reports) => match report {
                Ok(Some(Envelope { id, body, .. })) => tell(What::Reported(id, body)).await,
                Ok(None) => {
                    reports = None;
                    tell(What::Deaf("it closed its order channel".to_owned())).await;
                }
                Err(error) => {
                    reports = None;
                    tell(What::Deaf(error.to_string())).await;
                }
            },
            ended = process.ended() => break ended,
        }
    };
    if let Some(reports) = &mut reports {
        while let Ok(Ok(Some(report))) = tokio::time::timeout(LAST_WORDS, reports.next()).await {
            tell(What::Reported(report.id, report.body)).await;
        }
    }
    adoption.remove();
    tell(What::Ended(ended)).await;
}

/// Waits for ever when there is no channel to read from any more.
async fn next_report(reports: &mut Option<Reports>) -> Result<Option<Envelope<Report>>, WireError> {
    match reports {
        Some(reports) => reports.next().await,
        None => std::future::pending().await,
    }
}

/// Writes orders to a worker's channel, until it is closed or nobody has any more. A large one takes the worker's pace.
pub(super) async fn write_orders(orders: StdUnixStream, mut frames: Receiver<Vec<u8>>) {
    let Ok(mut orders) = UnixStream::from_std(orders) else { return };
    while let Some(frame) = frames.recv().await {
        // Whose channel is closed has ended, or will be found not to answer.
        if orders.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// The reports that come over an order channel.
struct Reports {
    stream: UnixStream,
    decoder: Decoder,
}

impl Reports {
    fn new(orders: StdUnixStream) -> std::io::Result<Self> {
        Ok(Reports { stream: UnixStream::from_std(orders)?, decoder: Decoder::new(limits::MAX_FRAME) })
    }

    /// The next one; `None` when the worker has closed the channel. May be given up at any time without loss.
    async fn next(&mut self) -> Result<Option<Envelope<Report>>, WireError> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(envelope) = self.decoder.next::<Report>()? {
                return Ok(Some(envelope));
            }
            match self.stream.read(&mut bytes).await {
                Ok(0) => return self.decoder.finish().map(|()| None),
                Ok(length) => self.decoder.extend(&bytes[..length]),
                // A worker that died with unread orders.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
