//! A task beside the loop of the supervisor that runs only while there is something for it to do.

use tokio::task::AbortHandle;

/// Such a task. It ends with this value.
#[derive(Default)]
pub(crate) struct Errand(Option<AbortHandle>);

impl Errand {
    /// Begins it, or ends it, as it is needed or not. False if it ran already and goes on: then it is to be told what has changed.
    pub(crate) fn keep<F>(&mut self, is_needed: bool, task: impl FnOnce() -> F) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match (is_needed, &self.0) {
            (true, None) => self.0 = Some(tokio::spawn(task()).abort_handle()),
            (false, Some(_)) => self.stop(),
            (true, Some(_)) => return false,
            (false, None) => {}
        }
        true
    }

    /// Ends it.
    pub(crate) fn stop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

impl Drop for Errand {
    fn drop(&mut self) {
        self.stop();
    }
}
