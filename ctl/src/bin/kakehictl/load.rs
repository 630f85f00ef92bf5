//! How busy each worker is, which shows only over a while.

use std::{
    thread,
    time::{Duration, Instant},
};

use kakehi_ctl::order::{Request, Response, Topology, WorkerInfo};

use crate::client::Failure;

/// The cores and workers, with the load of each worker.
///
/// # Errors
/// See [`Failure`].
pub(crate) fn measured(ask: &dyn Fn(Request) -> Result<Response, Failure>) -> Result<Response, Failure> {
    let before = ask(Request::Topology)?;
    let since = Instant::now();
    #[expect(clippy::disallowed_methods, reason = "nobody waits for this process but its user")]
    thread::sleep(MEASURED);
    let mut response = ask(Request::Topology)?;
    if let (Response::Topology(before), Response::Topology(topology)) = (&before, &mut response) {
        measure_load(topology, before, since.elapsed());
    }
    Ok(response)
}

/// How long the load of workers is measured.
const MEASURED: Duration = Duration::from_millis(500);

/// Notes how busy each worker was since `before`.
fn measure_load(topology: &mut Topology, before: &Topology, time: Duration) {
    for worker in &mut topology.workers {
        let earlier = before.workers.iter().find(|it| it.id == worker.id && it.pid == worker.pid);
        worker.load_percent = earlier.map(|earlier| {
            let cpu = |worker: &WorkerInfo| u128::from(worker.cpu_user_ms + worker.cpu_system_ms);
            let percent = cpu(worker).saturating_sub(cpu(earlier)) * 100 / time.as_millis().max(1);
            u64::try_from(percent).unwrap_or(u64::MAX)
        });
    }
}
