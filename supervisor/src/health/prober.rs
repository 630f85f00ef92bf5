//! The task that makes probes when they are due: one task for all backends, and one more for each probe that is under way.
//!
//! At most [`limits::PROBES_AT_A_TIME`] are, and no more than a quarter of the descriptors allows; the others wait. It shares this thread with the supervisor's loop, and gives it up after
//! each few.

use std::{sync::Arc, time::Duration};

use kakehi_ctl::limits;
use kakehi_engine::tls::Context;
use rustix::process::{Resource, getrlimit};
use tokio::{task::JoinSet, time::Instant};

use super::{Outcome, Shared, probe::probe, table::Job};
use crate::timer::sleep_until;

/// Probes that are begun before others of this thread have their turn.
const AT_ONCE: usize = 32;

/// A probe that was made.
type Done = (Job, Outcome, Duration);

/// Makes probes for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut running: JoinSet<Done> = JoinSet::new();
    let mut tls: Option<Context> = None;
    let most = most_at_a_time();
    loop {
        let free = most.saturating_sub(running.len());
        let (jobs, next) = shared.table().due(Instant::now(), free.min(AT_ONCE));
        let begun = jobs.len();
        for job in jobs {
            if job.plan.speaks_tls() && tls.is_none() {
                tls = shared.context();
            }
            // Compiled here, once for each cluster: not in a task for each probe.
            job.plan.tls(tls.as_ref());
            running.spawn(make(job));
        }
        if begun == AT_ONCE {
            tokio::task::yield_now().await;
        }
        let next = next.filter(|_| running.len() < most);
        tokio::select! {
            Some(done) = running.join_next() => {
                let mut table = shared.table();
                let now = Instant::now();
                let more = std::iter::from_fn(|| running.try_join_next());
                // It cannot fail but by a panic, which ends the program.
                for (job, outcome, took) in std::iter::once(done).chain(more).flatten() {
                    table.note(&job, &outcome, took, now);
                }
                if table.has_news() {
                    shared.news.notify_one();
                }
            }
            () = shared.changed.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}

/// Each takes a descriptor, of which the supervisor needs some for other things.
fn most_at_a_time() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    limits::PROBES_AT_A_TIME.min(usize::try_from(descriptors / 4).unwrap_or(usize::MAX)).max(1)
}

async fn make(job: Job) -> Done {
    let begun = Instant::now();
    let outcome = probe(&job.plan, &job.address, job.plan.compiled_tls()).await;
    (job, outcome, begun.elapsed())
}
