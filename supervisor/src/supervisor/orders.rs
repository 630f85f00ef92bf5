//! Orders to workers, and the wait for their answers: one that does not answer within `worker_timeout` is given up.

use std::{collections::BTreeMap, time::Duration};

use kakehi_ctl::order::{ClosedSessions, Order, WorkerState};
use tokio::time::Instant;

use crate::{
    fleet::{
        process::Written,
        worker::{Outcome, Worker},
    },
    host::listeners::Sockets,
    supervisor::{Supervisor, turn::Happened},
};

/// A deadline that is found to have passed for so long passed while this process did not run.
const LATE: Duration = Duration::from_millis(500);

/// What became of an order.
#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    /// The same, and so many sessions were closed.
    Closed(ClosedSessions),
    /// The worker says why not.
    Refused(String),
    /// It did not answer, and was given up.
    Silence,
}

impl Answer {
    /// What is to be told of an order that was not carried out.
    pub(crate) fn failure(self) -> Option<String> {
        match self {
            Answer::Done | Answer::Closed(_) => None,
            Answer::Refused(reason) => Some(reason),
            Answer::Silence => Some("it did not answer, and is replaced".to_owned()),
        }
    }
}

impl Supervisor {
    /// Gives every worker an order; those that did not carry it out, and why.
    pub(crate) async fn tell_all(&mut self, order: &Order) -> Vec<(u32, String)> {
        let none: Vec<Sockets> = self.workers.iter().map(|_| Sockets::new()).collect();
        let answers = self.order_all(|_, _| Ok(order.clone()), &none).await;
        answers.into_iter().filter_map(|(id, answer)| Some((id, answer.failure()?))).collect()
    }

    /// Waits until every worker has answered all that it was asked.
    pub(crate) async fn ping_all(&mut self) {
        self.tell_all(&Order::Ping).await;
    }

    /// Gives one worker an order and waits for its answer.
    pub(crate) async fn order_worker(&mut self, id: u32, order: Order) -> Result<(), String> {
        let number = self.next_order();
        let worker = self.workers.get(id as usize).filter(|worker| worker.takes_orders());
        worker.ok_or("it does not run")?.order(number, order).map_err(|error| error.to_string())?;
        match self.answers(number, vec![id]).await.remove(&id) {
            Some(answer) => answer.failure().map_or(Ok(()), Err),
            None => Err("it has ended".to_owned()),
        }
    }

    /// Gives every worker that can take one an order, and waits for the answers. A worker that ends meanwhile is left
    /// out: its replacement starts from the state as it will be then.
    pub(crate) async fn order_all(
        &mut self,
        order: impl Fn(&Worker, &Sockets) -> Result<Order, String>,
        sockets: &[Sockets],
    ) -> BTreeMap<u32, Answer> {
        let number = self.next_order();
        let written = |worker: &Worker, sockets: &Sockets| {
            Written::new(number, order(worker, sockets)?).map_err(|error| error.to_string())
        };
        self.give_all(number, written, sockets).await
    }

    /// The number of the next order.
    pub(crate) fn next_order(&mut self) -> u64 {
        self.orders_given += 1;
        self.orders_given
    }

    /// As [`Supervisor::order_all`], an order of this number that was written before.
    pub(crate) async fn give_all(
        &mut self,
        number: u64,
        order: impl Fn(&Worker, &Sockets) -> Result<Written, String>,
        sockets: &[Sockets],
    ) -> BTreeMap<u32, Answer> {
        let mut answers = BTreeMap::new();
        let mut waiting = Vec::new();
        for (worker, sockets) in
            self.workers.iter_mut().zip(sockets).filter(|(worker, _)| worker.takes_orders())
        {
            let given = order(worker, sockets)
                .and_then(|order| worker.give(order).map_err(|error| error.to_string()));
            match given {
                Ok(()) => waiting.push(worker.id()),
                Err(reason) => drop(answers.insert(worker.id(), Answer::Refused(reason))),
            }
        }
        answers.append(&mut self.answers(number, waiting).await);
        answers
    }

    /// Waits for the answers of workers to order `number`. One that ends meanwhile is left out; one that does not answer within
    /// `worker_timeout` is given up, and replaced.
    async fn answers(&mut self, number: u64, mut waiting: Vec<u32>) -> BTreeMap<u32, Answer> {
        let mut answers = BTreeMap::new();
        let patience = Duration::from_millis(self.state.settings.worker_timeout_ms);
        let mut deadline = Instant::now() + patience;
        while !waiting.is_empty() {
            match self.turn(Some(deadline)).await {
                Happened::Event(event) => {
                    let id = event.worker;
                    match self.note(event) {
                        Outcome::Answered { order, refused } if order == number => {
                            waiting.retain(|waits| *waits != id);
                            answers.insert(id, refused.map_or(Answer::Done, Answer::Refused));
                        }
                        Outcome::SessionsClosed { order, closed } if order == number => {
                            waiting.retain(|waits| *waits != id);
                            answers.insert(id, Answer::Closed(closed));
                        }
                        other => drop(self.attend_to(id, other)),
                    }
                }
                // This supervisor was stopped, or starved of its core: that says nothing of the workers.
                Happened::Late if deadline.elapsed() > LATE => deadline = Instant::now() + patience,
                Happened::Late => {
                    // One that starts has a deadline of its own.
                    let starts = |id: &u32| {
                        self.workers.get(*id as usize).is_some_and(|it| it.state() == WorkerState::Starting)
                    };
                    let (starting, silent): (Vec<u32>, Vec<u32>) = waiting.drain(..).partition(starts);
                    for id in silent {
                        let seconds = patience.as_secs_f64();
                        let reason = format!("answered an order not within `worker_timeout` ({seconds} s)");
                        self.give_up(id, reason);
                        answers.insert(id, Answer::Silence);
                    }
                    (waiting, deadline) = (starting, Instant::now() + patience);
                }
                Happened::Other => {}
            }
            waiting.retain(|id| self.workers.get(*id as usize).is_some_and(Worker::takes_orders));
        }
        answers
    }
}
