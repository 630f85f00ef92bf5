//! The task that looks names up when they are due: one task for all, and one more for each lookup that is under way.
//!
//! At most [`limits::NAMES_AT_A_TIME`] are; the others wait. A lookup ends at its deadline, whatever servers of the DNS do.

use std::{sync::Arc, time::Duration};

use kakehi_ctl::{limits, state::DnsName};
use tokio::{task::JoinSet, time::Instant};

use super::{
    Servers, Shared,
    lookup::{Outcome, look_up},
    resolver::Resolver,
};
use crate::timer::sleep_until;

/// How long the system's files are believed after they were read.
const FILES_HOLD: Duration = Duration::from_secs(10);

/// Who is asked at present.
#[derive(Default)]
struct Current {
    servers: Servers,
    made: Option<(Instant, Arc<Resolver>)>,
}

impl Current {
    /// The resolver for `servers`.
    async fn resolver(&mut self, servers: &Servers) -> Result<Arc<Resolver>, String> {
        let holds = |made: &Instant| !servers.is_empty() || made.elapsed() < FILES_HOLD;
        if let Some((made, resolver)) = &self.made
            && self.servers == *servers
            && holds(made)
        {
            return Ok(Arc::clone(resolver));
        }
        let wanted = Arc::clone(servers);
        let made = tokio::task::spawn_blocking(move || Resolver::new(&wanted)).await;
        let resolver = Arc::new(made.map_err(|error| error.to_string())??);
        self.servers = Arc::clone(servers);
        self.made = Some((Instant::now(), Arc::clone(&resolver)));
        Ok(resolver)
    }
}

/// Looks names up for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut running: JoinSet<(DnsName, Outcome)> = JoinSet::new();
    let mut current = Current::default();
    loop {
        let free = limits::NAMES_AT_A_TIME.saturating_sub(running.len());
        let (jobs, next) = shared.table().due(Instant::now(), free);
        if !jobs.is_empty() {
            let servers = shared.servers();
            match current.resolver(&servers).await {
                Ok(resolver) => {
                    for job in jobs {
                        let resolver = Arc::clone(&resolver);
                        running.spawn(async move {
                            let outcome = look_up(resolver, &job.name, job.memory).await;
                            (job.name, outcome)
                        });
                    }
                }
                Err(error) => {
                    {
                        let mut table = shared.table();
                        for job in jobs {
                            table.note(&job.name, Outcome::Failed(error.clone().into()), Instant::now());
                        }
                    }
                    shared.news.notify_one();
                    // They are due again some time.
                    continue;
                }
            }
        }
        let next = next.filter(|_| running.len() < limits::NAMES_AT_A_TIME);
        tokio::select! {
            Some(done) = running.join_next() => {
                let mut table = shared.table();
                let now = Instant::now();
                let more = std::iter::from_fn(|| running.try_join_next());
                // It cannot fail but by a panic, which ends the program.
                for (name, outcome) in std::iter::once(done).chain(more).flatten() {
                    table.note(&name, outcome, now);
                }
                // Also that nothing came of it: somebody may wait for that.
                shared.news.notify_one();
            }
            () = shared.changed.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}
