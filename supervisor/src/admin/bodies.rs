//! Texts of metrics: written on another thread, each once for all who ask at about the same time, and bounded in number.
//!
//! A text is alive as long as anybody is being sent it. Beyond [`limits::ADMIN_BODIES`] those who have the oldest are cut before there is
//! a further one: who reads slowly keeps nobody from new figures.

use std::{io::Write as _, sync::Arc, time::Duration};

use flate2::{Compression, write::GzEncoder};
use kakehi_ctl::limits;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::Sender, oneshot},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Ask, negotiate::Variant};
use crate::metrics::{self, Snapshot};

/// A text is as good as new for so long.
const FRESH: Duration = Duration::from_millis(limits::ADMIN_RENDER_INTERVAL_MS);
/// Whoever wants one waits so long.
const PATIENCE: Duration = Duration::from_millis(limits::ADMIN_ANSWER_TIMEOUT_MS);

/// A client wants a text.
pub(super) struct Order {
    pub(super) variant: Variant,
    /// `None`: there is none to be had.
    pub(super) answer: oneshot::Sender<Option<Arc<Text>>>,
}

/// What is sent.
pub(super) struct Text {
    bytes: Vec<u8>,
    /// They are counted from 1.
    pub(super) number: u64,
    /// Its place among those that are alive.
    _place: OwnedSemaphorePermit,
}

impl Text {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// One form of the text.
#[derive(Default)]
struct Kind {
    last: Option<(Arc<Text>, Instant)>,
    /// It is being written for these; none: it is not.
    waiting: Vec<oneshot::Sender<Option<Arc<Text>>>>,
}

/// All forms.
pub(super) struct Bodies {
    kinds: [Kind; Variant::COUNT],
    places: Arc<Semaphore>,
    written: JoinSet<(Variant, Option<Arc<Text>>)>,
    asks: Sender<Ask>,
    count: u64,
}

impl Bodies {
    /// Those of figures that whoever receives from `asks` says.
    pub(super) fn new(asks: Sender<Ask>) -> Bodies {
        Bodies {
            kinds: Default::default(),
            places: Arc::new(Semaphore::new(limits::ADMIN_BODIES)),
            written: JoinSet::new(),
            asks,
            count: 0,
        }
    }

    /// Gives the text, or has it written; whether the oldest that anybody is being sent has to go for that.
    pub(super) fn order(&mut self, Order { variant, answer }: Order) -> bool {
        let kind = &mut self.kinds[variant.index()];
        if let Some((text, _)) = kind.last.as_ref().filter(|(_, since)| since.elapsed() < FRESH) {
            // Whoever asked may have left; so below.
            let _ = answer.send(Some(Arc::clone(text)));
            return false;
        }
        kind.last = None;
        kind.waiting.push(answer);
        if kind.waiting.len() > 1 {
            return false;
        }
        self.count += 1;
        let is_full = self.places.available_permits() == 0;
        let made = write(variant, self.count, Arc::clone(&self.places), self.asks.clone());
        self.written.spawn(async move { (variant, timeout(PATIENCE, made).await.ok().flatten()) });
        is_full
    }

    /// Waits until a text is written, and gives it to those who wait. For ever when none is being written. May be given up without loss.
    pub(super) async fn go_on(&mut self) {
        let Some(written) = self.written.join_next().await else { return std::future::pending().await };
        // It cannot fail but by a panic, which ends the program.
        let Ok((variant, text)) = written else { return };
        let kind = &mut self.kinds[variant.index()];
        for answer in kind.waiting.drain(..) {
            let _ = answer.send(text.clone());
        }
        kind.last = text.map(|text| (text, Instant::now()));
    }

    /// When a text is to be forgotten.
    pub(super) fn due(&self) -> Option<Instant> {
        self.kinds.iter().filter_map(|kind| kind.last.as_ref().map(|(_, since)| *since + FRESH)).min()
    }

    /// Forgets texts that are not as good as new any more.
    pub(super) fn forget_stale(&mut self) {
        for kind in &mut self.kinds {
            kind.last.take_if(|(_, since)| since.elapsed() >= FRESH);
        }
    }

    /// Forgets all that nobody is being sent.
    pub(super) fn forget(&mut self) {
        self.kinds.iter_mut().for_each(|kind| kind.last = None);
    }
}

async fn write(
    variant: Variant,
    number: u64,
    places: Arc<Semaphore>,
    asks: Sender<Ask>,
) -> Option<Arc<Text>> {
    let place = places.acquire_owned().await.ok()?;
    let (answer, answered) = oneshot::channel();
    asks.send(Ask::Snapshot(answer)).await.ok()?;
    let snapshot = answered.await.ok()?;
    let written = tokio::task::spawn_blocking(move || {
        let bytes = bytes_of(&snapshot, variant);
        Arc::new(Text { bytes, number, _place: place })
    });
    written.await.ok()
}

fn bytes_of(snapshot: &Snapshot, variant: Variant) -> Vec<u8> {
    let mut text = Vec::new();
    metrics::expose(snapshot, variant.format, &mut text);
    if !variant.gzip {
        return text;
    }
    let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = compressed.write_all(&text);
    compressed.finish().unwrap_or_default()
}
