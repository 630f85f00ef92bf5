//! Sessions that are closed by hand, on all workers.

use kakehi_ctl::{
    event::Happening,
    order::{ClosedSessions, Order, Response, WorkerOutcome},
};

use crate::{
    host::listeners::Sockets,
    supervisor::{Supervisor, orders::Answer},
};

impl Supervisor {
    /// Closes the sessions of a backend of a cluster, or of all its backends, on all workers, and waits until they have done it. Processes
    /// that leave do it too, and do not say how many.
    pub(crate) async fn close_sessions(
        &mut self,
        cluster: String,
        backend: Option<String>,
        by: &str,
    ) -> Response {
        let Some(configured) = self.state.clusters.get(&cluster) else {
            return Response::Refused { reason: format!("there is no cluster `{cluster}`") };
        };
        // One with a name is all of its addresses; each of these is one, too.
        let expanded = self.names.expanded(configured, &self.state.settings);
        let is_there = |id: &str| configured.backends.iter().chain(&expanded.backends).any(|it| it.id == id);
        if let Some(id) = backend.as_ref().filter(|id| !is_there(id)) {
            let reason = format!("the cluster `{cluster}` has no backend `{id}`");
            return Response::Refused { reason };
        }
        let order = Order::CloseSessions { cluster: cluster.clone(), backend: backend.clone() };
        self.workers.iter().for_each(|worker| worker.order_leaving(&order));
        let none: Vec<Sockets> = self.workers.iter().map(|_| Sockets::new()).collect();
        let answers = self.order_all(|_, _| Ok(order.clone()), &none).await;
        let mut closed = ClosedSessions::default();
        let mut failed = Vec::new();
        for (id, answer) in answers {
            match answer {
                Answer::Closed(here) => closed = closed.plus(here),
                other => {
                    let outcome = other.failure().unwrap_or_else(|| "it did not say how many".to_owned());
                    failed.push(WorkerOutcome { id, outcome });
                }
            }
        }
        let what = Happening::SessionsClosed { by: by.to_owned(), cluster, backend, closed };
        tracing::info!("{what}");
        self.tell(what);
        Response::SessionsClosed { closed, failed }
    }
}
