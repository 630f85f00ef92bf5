//! A deadline of a task.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll},
};

use super::{
    core::{Core, Ring},
    timer::TimerId,
};

/// The deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// A deadline that its task sets, moves and waits under. Setting it costs a store most of the time.
pub struct Timer {
    core: Rc<Core>,
    id: TimerId,
}

impl Timer {
    /// A timer that is not set: it never elapses.
    pub fn new(ring: &Ring) -> Timer {
        let core = Rc::clone(ring.core());
        let id = core.wheel.borrow_mut().insert();
        Timer { core, id }
    }

    /// Sets the deadline to `milliseconds` from now, in place of the one before.
    pub fn set(&self, milliseconds: u64) {
        self.set_at(self.core.now().saturating_add(milliseconds));
    }

    /// Sets the deadline to a reading of [`Ring::now`].
    pub fn set_at(&self, milliseconds: u64) {
        self.core.wheel.borrow_mut().set(self.id, milliseconds);
    }

    /// The deadline (a reading of [`Ring::now`], up to a tick late), if it is set.
    pub fn due(&self) -> Option<u64> {
        self.core.wheel.borrow().due(self.id)
    }

    /// Unsets it.
    pub fn clear(&self) {
        self.core.wheel.borrow_mut().clear(self.id);
    }

    /// Ready when the deadline has passed.
    pub fn poll_elapsed(&self, context: &Context<'_>) -> Poll<Elapsed> {
        if self.core.wheel.borrow_mut().poll(self.id, context.waker()) {
            Poll::Ready(Elapsed)
        } else {
            Poll::Pending
        }
    }

    /// Waits for the deadline.
    pub async fn elapsed(&self) -> Elapsed {
        poll_fn(|context| self.poll_elapsed(context)).await
    }

    /// `work`, unless the deadline passes first.
    ///
    /// # Errors
    /// [`Elapsed`]; the work is dropped then.
    pub async fn limit<T>(&self, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        let mut work = pin!(work);
        poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(outcome) => Poll::Ready(Ok(outcome)),
            Poll::Pending => self.poll_elapsed(context).map(Err),
        })
        .await
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.core.wheel.borrow_mut().remove(self.id);
    }
}
