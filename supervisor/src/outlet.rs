//! What is said to somebody who may not listen: a thread of its own waits for him, and nobody else does.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::SigSet;

/// A queue of bounded length, and the thread that empties it. The thread ends with the process.
pub(crate) struct Outlet<T> {
    queue: SyncSender<T>,
    waiting: Arc<Waiting>,
}

/// How many are not said yet, with the one that is being said.
#[derive(Default)]
struct Waiting {
    count: Mutex<usize>,
    fewer: Condvar,
}

impl Waiting {
    fn count(&self) -> MutexGuard<'_, usize> {
        // A number is whole whatever has happened to who held it.
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_one(&self) {
        *self.count() -= 1;
        self.fewer.notify_all();
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
        *self.waiting.count() += 1;
        let put = self.queue.try_send(it).is_ok();
        if !put {
            self.waiting.remove_one();
        }
        put
    }

    /// Whether everything was said.
    pub(crate) fn is_idle(&self) -> bool {
        *self.waiting.count() == 0
    }

    /// Whether nothing waits behind what is being said.
    pub(crate) fn is_last(&self) -> bool {
        *self.waiting.count() <= 1
    }

    /// Waits until everything was said, not longer than `patience`: before the process ends, or becomes another program.
    pub(crate) fn flush(&self, patience: Duration) {
        // Who does not listen in time has missed it.
        let _ = self.waiting.fewer.wait_timeout_while(self.waiting.count(), patience, |count| *count > 0);
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
