//! What is said to somebody who may not listen: a thread of its own waits for him, and nobody else does.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::SigSet;

/// Between two looks whether everything is said.
const FLUSH_PAUSE: Duration = Duration::from_millis(2);

/// A queue of bounded length, and the thread that empties it. The thread ends with the process.
pub(crate) struct Outlet<T> {
    queue: SyncSender<T>,
    /// Not said yet, with what is being said.
    waiting: Arc<AtomicUsize>,
}

impl<T: Send + 'static> Outlet<T> {
    /// Has a thread `say` what is [`put`](Outlet::put), one after the other; `capacity` of them wait at most.
    ///
    /// # Errors
    /// When there can be no thread.
    pub(crate) fn new(capacity: usize, mut say: impl FnMut(T) + Send + 'static) -> io::Result<Outlet<T>> {
        let (queue, waiting_ones) = sync_channel(capacity);
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&waiting);
        thread::Builder::new().name("outlet".to_owned()).spawn(move || {
            // Signals are for the main thread. Where that fails, they have a handler all the same.
            let _ = SigSet::all().thread_block();
            for it in waiting_ones {
                say(it);
                counted.fetch_sub(1, Ordering::Release);
            }
        })?;
        Ok(Outlet { queue, waiting })
    }

    /// Puts something into the queue; `false` when it is full.
    pub(crate) fn put(&self, it: T) -> bool {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let put = self.queue.try_send(it).is_ok();
        if !put {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        put
    }

    /// Whether everything was said.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }

    /// Whether nothing waits behind what is being said.
    pub(crate) fn is_last(&self) -> bool {
        self.waiting.load(Ordering::Acquire) <= 1
    }

    /// Waits until everything was said, not longer than `patience`: before the process ends, or becomes another program.
    #[expect(clippy::disallowed_methods, reason = "the runtime has ended, or is about to")]
    pub(crate) fn flush(&self, patience: Duration) {
        let give_up = Instant::now() + patience;
        while !self.is_idle() && Instant::now() < give_up {
            thread::sleep(FLUSH_PAUSE);
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
