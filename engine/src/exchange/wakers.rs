//! Tasks of one kind that are to be woken when something changes that is no matter of their sockets.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    task::{Context, Waker},
};

/// The tasks; each takes part as long as it keeps its [`WakeSlot`].
#[derive(Default)]
pub(crate) struct Wakers {
    slots: RefCell<Vec<Weak<WakeSlot>>>,
}

/// The waker of one task.
#[derive(Default)]
pub(crate) struct WakeSlot {
    waker: Cell<Option<Waker>>,
}

impl Wakers {
    /// A place for another task.
    pub(crate) fn register(&self) -> Rc<WakeSlot> {
        let slots = &mut *self.slots.borrow_mut();
        // Places of tasks that have ended are given up when room is needed: at most as many as live ones stay.
        if slots.len() == slots.capacity() {
            slots.retain(|slot| slot.strong_count() > 0);
        }
        let slot = Rc::new(WakeSlot::default());
        slots.push(Rc::downgrade(&slot));
        slot
    }

    /// Wakes all of them. The caller sees to it that the ring does not go to sleep on that.
    pub(crate) fn wake(&self) {
        let slots = self.slots.borrow();
        for waker in slots.iter().filter_map(|slot| slot.upgrade()?.waker.take()) {
            waker.wake();
        }
    }
}

impl WakeSlot {
    /// To be called before the task waits.
    pub(crate) fn wait(&self, context: &Context<'_>) {
        self.waker.set(Some(context.waker().clone()));
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::SeqCst},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn a_task_is_woken_once_for_each_wait_and_not_after_its_end() {
        let (wakers, count) = (Wakers::default(), Arc::new(Count::default()));
        let waker = Waker::from(Arc::clone(&count));
        let slot = wakers.register();
        slot.wait(&Context::from_waker(&waker));
        wakers.wake();
        wakers.wake();
        assert_eq!(count.0.load(SeqCst), 1);
        slot.wait(&Context::from_waker(&waker));
        drop(slot);
        wakers.wake();
        assert_eq!(count.0.load(SeqCst), 1);
    }

    #[test]
    fn tasks_that_have_ended_take_no_room() {
        let wakers = Wakers::default();
        let kept = wakers.register();
        (0..1_000).for_each(|_| drop(wakers.register()));
        assert!(wakers.slots.borrow().len() < 16);
        drop(kept);
    }
}
