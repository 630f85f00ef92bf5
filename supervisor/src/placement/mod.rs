//! How many workers there are, where they run, and what each gets to do.
//!
//! | file | what it is for |
//! |---|---|
//! | [`scale`] | more workers, or fewer |
//! | [`pin`] | on which core each runs |
//! | [`steering`] | which listening socket gets a new connection |
//! | [`rebalance`] | connections move from the busiest worker to the idlest |

pub(crate) mod pin;
pub(crate) mod rebalance;
pub(crate) mod scale;
pub(crate) mod steering;

use std::sync::Arc;

use kakehi_ctl::layers::Whose;
use kakehi_ctl::{order::Order, state::Revision};

use crate::{fleet::worker::Worker, host::listeners::Sockets, supervisor::Supervisor};

impl Supervisor {
    /// Notes number and place of the workers, as somebody has asked for them, also with the workers themselves: for a
    /// supervisor to come.
    pub(crate) async fn note_placement(&mut self) {
        let state = self.own_state().await;
        state.revision = Revision {
            generation: state.revision.generation + 1,
            workers: state.settings.worker_count,
            worker_cores: state.settings.worker_cores.clone(),
            ..state.revision.clone()
        };
        let revision = state.revision.clone();
        self.append_to_record(Arc::default(), revision, Whose::Files).await;
        self.note_changed().await;
        let none: Vec<Sockets> = self.workers.iter().map(|_| Sockets::new()).collect();
        let revision = self.state.revision.clone();
        let told = |_: &Worker, _: &Sockets| {
            Ok(Order::Prepare { staged: 0, changes: Vec::new(), revision: revision.clone() })
        };
        for answers in
            [self.order_all(told, &none).await, self.order_all(|_, _| Ok(Order::Commit), &none).await]
        {
            for (worker, reason) in answers.into_iter().filter_map(|(id, it)| Some((id, it.failure()?))) {
                tracing::warn!(worker, "was not told how many workers there are, and where: {reason}");
            }
        }
    }
}
