//! What is said to somebody who may not listen: a thread of its own waits for him, and nobody else does.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use nix::sys::signal::SigSet;

/// A queue of bounded length, and the thread that empties it. The thread ends with the process.
pub(crate) struct Outlet<T> {
    queue: SyncSender<T>,
    waiting: Arc<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Not said yet, with what is being said.
    count: AtomicUsize,
    /// Who waits until nothing is left.
    flusher: OnceLock<Thread>,
}

impl Waiting {
    fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    fn remove_one(&self) {
        self.count.fetch_sub(1, Ordering::Release);
        if let Some(flusher) = self.flusher.get() {
            flusher.unpark();
        }
    }
}

impl<T: Send + 'static> Outlet<T> {
    /// Has a thread `say` what is [`put`](Outlet::put), one after the other; `capacity` of them wait at most.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(crate) fn new(capacity: usize, mut say: impl FnMut(T) + Send + 'static) -> io::Result<Outlet<T>> {
        let (queue, waiting_ones) = sync_channel(capacity);
        let waiting = Arc::new(Waiting::default());
        let counted = Arc::clone(&waiting);
        thread::Builder::new().name("outlet".to_owned()).spawn(move || {
            // Signals are for the main thread. Where that fails, they have a handler all the same.
            let _ = SigSet::all().thread_block();
            for it in waiting_ones {
                say(it);
                counted.remove_one();
            }
        })?;
        Ok(Outlet { queue, waiting })
    }

    /// Puts something into the queue; `false` when it is full.
    pub(crate) fn put(&self, it: T) -> bool {
        self.waiting.count.fetch_add(1, Ordering::Relaxed);
        let put = self.queue.try_send(it).is_ok();
        if !put {
            self.waiting.remove_one();
        }
        put
    }

    /// Whether everything was said.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.count() == 0
    }

    /// Whether nothing waits behind what is being said.
    pub(crate) fn is_last(&self) -> bool {
        self.waiting.count() <= 1
    }

    /// Waits until everything was said, not longer than `patience`: before the process ends, or becomes another program. To be
    /// called on one thread only.
    pub(crate) fn flush(&self, patience: Duration) {
        self.waiting.flusher.get_or_init(thread::current);
        let give_up = Instant::now() + patience;
        while !self.is_idle() && Instant::now() < give_up {
            thread::park_timeout(give_up.saturating_duration_since(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn nobody_waits_for_who_does_not_listen_and_what_waits_is_said_in_order() {
        let (let_go, gate) = channel::<()>();
        let (said, heard) = channel();
        let outlet = Outlet::new(2, move |number: u32| {
            gate.recv().unwrap();
            said.send(number).unwrap();
        })
        .unwrap();
        assert!(outlet.is_idle());
        // One is taken out to be said, when the thread comes to it; two wait.
        let put = (0..100).filter(|number| outlet.put(*number)).count();
        assert!((2..=3).contains(&put), "{put}");
        outlet.flush(Duration::ZERO);
        assert!(!outlet.is_idle());
        (0..put).for_each(|_| let_go.send(()).unwrap());
        outlet.flush(Duration::from_secs(5));
        assert!(outlet.is_idle());
        let all: Vec<u32> = heard.try_iter().collect();
        assert!(all.len() == put && all.is_sorted(), "{all:?}");
    }
}
