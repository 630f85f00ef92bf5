//! What workers report, as it comes over their order channels.
//!
//! A worker that strangers have taken over may say anything. Promises: what comes out of here has at most [`limits::MAX_REPORT_FRAME`],
//! its lists and texts have lengths that may be kept, told and written to the log.

use std::os::unix::net::UnixStream as StdUnixStream;

use kakehi_ctl::{
    limits,
    order::{BACKENDS_PER_ORDER, Envelope, Report},
    wire::{Decoder, WireError},
};
use tokio::{io::AsyncReadExt as _, net::UnixStream};

/// Names in a list: there are far fewer orders and features of io_uring.
const MAX_NAMES: usize = 128;
/// Length of a name, and of a version (bytes).
const MAX_NAME: usize = 64;
/// Length of a reason (bytes).
const MAX_REASON: usize = 4096;

/// The reports that come over an order channel.
pub(super) struct Reports {
    stream: UnixStream,
    decoder: Decoder,
}

impl Reports {
    pub(super) fn new(orders: StdUnixStream) -> std::io::Result<Self> {
        let decoder = Decoder::new(limits::MAX_REPORT_FRAME);
        Ok(Reports { stream: UnixStream::from_std(orders)?, decoder })
    }

    /// The next one; `None` when the worker has closed the channel. May be given up at any time without loss.
    pub(super) async fn next(&mut self) -> Result<Option<Envelope<Report>>, WireError> {
        let mut bytes = [0; 4096];
        loop {
            match self.decoder.next::<Report>() {
                Ok(Some(Envelope { id, body, .. })) => return Ok(Some(Envelope::new(id, bounded(body)))),
                // Of another program. Whoever waits for it does not wait in vain.
                Err(WireError::Unknown { id, reason }) => {
                    let reason = format!("what it says is not understood: {reason}");
                    return Ok(Some(Envelope::new(id, bounded(Report::Refused { reason }))));
                }
                Ok(None) => {}
                Err(error) => return Err(error),
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

/// The same with lists and texts no longer than they may be.
pub(super) fn bounded(mut report: Report) -> Report {
    match &mut report {
        Report::Ready { io_uring_features, capabilities, .. } => {
            bound_names(io_uring_features);
            bound_names(capabilities);
        }
        Report::Adopted(about) => {
            bound_names(&mut about.io_uring_features);
            bound_names(&mut about.capabilities);
            bound(&mut about.program.version, MAX_NAME);
        }
        Report::Failed { reason } | Report::Refused { reason } => bound(reason, MAX_REASON),
        Report::Loads { loads } => loads.truncate(BACKENDS_PER_ORDER),
        Report::Explained(found) => **found = std::mem::take(&mut **found).bounded(),
        Report::Finished { .. } | Report::SessionsClosed { .. } | Report::Done => {}
    }
    report
}

/// What is longer than any name is none.
fn bound_names(names: &mut Vec<String>) {
    names.retain(|name| name.len() <= MAX_NAME);
    names.truncate(MAX_NAMES);
    names.shrink_to_fit();
}

/// Nor has it what a terminal would obey.
fn bound(text: &mut String, length: usize) {
    if text.contains(|it: char| it.is_control() && it != '\n') {
        *text = text.replace(|it: char| it.is_control() && it != '\n', "?");
    }
    if text.len() > length {
        text.truncate(text.floor_char_boundary(length));
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use kakehi_ctl::wire;

    use super::*;

    fn channel() -> (StdUnixStream, Reports) {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (theirs, Reports::new(ours).unwrap())
    }

    #[tokio::test]
    async fn a_report_that_is_larger_than_any_is_not_taken() {
        let (mut worker, mut reports) = channel();
        let length = u32::try_from(limits::MAX_REPORT_FRAME).unwrap() + 1;
        worker.write_all(&length.to_le_bytes()).unwrap();
        assert!(reports.next().await.is_err());
    }

    #[tokio::test]
    async fn lists_and_texts_of_a_report_are_cut_to_what_may_be_kept() {
        let (mut worker, mut reports) = channel();
        let names = |name: &str| vec![name.to_owned(); 1000];
        let ready = Report::Ready {
            io_uring_level: 4,
            io_uring_features: names("multishot"),
            capabilities: [vec!["x".repeat(MAX_NAME + 1), "ping".to_owned()], names("stop")].concat(),
        };
        let refused = Report::Refused { reason: "é".repeat(100_000) };
        let writing = std::thread::spawn(move || {
            for report in [ready, refused] {
                let report = wire::encode(&Envelope::new(0, report), limits::MAX_FRAME).unwrap();
                worker.write_all(&report).unwrap();
            }
        });
        let Report::Ready { io_uring_features, capabilities, .. } =
            reports.next().await.unwrap().unwrap().body
        else {
            panic!("it is another report")
        };
        assert_eq!((io_uring_features.len(), capabilities.len()), (MAX_NAMES, MAX_NAMES));
        assert_eq!(capabilities[0], "ping");
        let Report::Refused { reason } = reports.next().await.unwrap().unwrap().body else {
            panic!("it is another report")
        };
        assert_eq!(reason, "é".repeat(MAX_REASON / 2));
        writing.join().unwrap();
    }
}
