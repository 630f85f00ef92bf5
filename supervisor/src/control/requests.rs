//! Requests that change something: each is an operation, one after the other.

use kakehi_ctl::{
    edit::{Edit, EditError},
    event::Happening,
    order::{Changed, Request, Response, WorkerOutcome},
};

use crate::{
    certificates,
    control::{change, reload},
    placement::pin,
    supervisor::{Supervisor, question::Question},
};

impl Supervisor {
    /// Carries out what changes something, and says how it went.
    pub(crate) async fn carry_out_request(&mut self, question: Question) {
        // It may have been shut out while it waited; what asks only is answered at once.
        if self.is_shut_out(&question) {
            drop(self.answer_now(question));
            return;
        }
        let Question { request, peer, guest, privileged, asker, watcher, answer } = question;
        let by = &peer;
        let concerns_state = request.is_change() && request.concerns_state();
        let response = match request {
            Request::Reload { dry_run, workers, allow_empty, discard_live } => {
                let wish = reload::Wish { dry_run, allow_empty, discard_live };
                let outcome = self.reload(wish, by).await;
                match outcome {
                    Ok(changed) if workers && !dry_run => match self.upgrade(None, by).await {
                        Ok(upgraded) => {
                            // They may be on other cores.
                            self.steer();
                            let with_new_workers = self.waiting_for_new_workers(&self.state.settings);
                            Response::Changed(Changed { workers: upgraded, with_new_workers, ..changed })
                        }
                        Err(refused) => {
                            let reason =
                                format!("the file is applied, but not every worker was replaced: {refused}");
                            Response::Refused { reason }
                        }
                    },
                    outcome => respond(outcome),
                }
            }
            Request::UpgradeWorkers { worker } => {
                let outcome = self.upgrade(worker, by).await;
                self.steer();
                outcomes(outcome)
            }
            Request::Scale { count } => outcomes(self.scale(count, by).await),
            Request::Rebalance => outcomes(self.rebalance(by).await),
            Request::Pin { worker, core } => outcomes(self.pin(worker, core, by).await),
            Request::PinAuto { no_smt, numa, reserve_for_irq } => {
                outcomes(self.pin_auto(&pin::Wish { no_smt, numa, reserve_for_irq }, by).await)
            }
            Request::Upgrade => match asker {
                Some(asker) => {
                    let refused = self.replace(&asker, by).await;
                    tracing::error!("upgrade by {by}: {refused}");
                    Response::Refused { reason: format!("{refused}; everything goes on as it was") }
                }
                None => Response::Refused { reason: "no descriptor is left; try again".to_owned() },
            },
            Request::LoadState { state, .. }
                if !privileged
                    && state.clusters.iter().any(|(name, it)| self.sends_files_elsewhere(name, it)) =>
            {
                respond(Err(change::Refused::GuestFiles))
            }
            Request::Apply { changes } if !privileged && self.send_files_elsewhere(&changes) => {
                respond(Err(change::Refused::GuestFiles))
            }
            Request::LoadState { state, keys, dry_run, allow_empty } => {
                let wish = reload::Wish { dry_run, allow_empty, ..reload::Wish::default() };
                respond(self.load_state(*state, keys, wish, by).await)
            }
            request @ Request::AddCertificate { .. } => match certificates::Wanted::from(request) {
                Some(wanted) => respond(self.add_certificate(&wanted, by).await),
                None => return,
            },
            Request::RemoveCertificate { address, which } => {
                respond(self.remove_certificate(address, &which, by).await)
            }
            Request::SaveState { with_keys } => match self.save_state(with_keys).await {
                Ok((path, left_out)) => Response::Saved { path, left_out },
                Err(error) => Response::Refused { reason: error.to_string() },
            },
            Request::Apply { changes } => respond(self.apply(changes, by).await),
            Request::Edit { edits, .. } if !privileged && edits.iter().any(Edit::names_pages) => {
                respond(Err(change::Refused::GuestPages))
            }
            Request::Edit { edits, folder, if_generation } => {
                respond(self.edit(&edits, &folder, if_generation, (by, privileged)).await)
            }
            Request::CloseSessions { cluster, backend } => self.close_sessions(cluster, backend, by).await,
            // It needs no turn.
            request => {
                let question = Question { request, peer, guest, privileged, asker, watcher, answer };
                if let Some(Question { answer, .. }) = self.answer_now(question) {
                    let reason = "this program does not do that".to_owned();
                    answer.send(Response::Refused { reason });
                }
                return;
            }
        };
        if let (true, Response::Refused { reason }) = (concerns_state, &response) {
            self.tell(Happening::refused(&peer, reason));
        }
        // Whoever asked may have left; that is nobody's loss.
        answer.send(response);
    }
}

fn outcomes<E: std::fmt::Display>(outcome: Result<Vec<WorkerOutcome>, E>) -> Response {
    match outcome {
        Ok(outcomes) => Response::Outcomes(outcomes),
        Err(refused) => Response::Refused { reason: refused.to_string() },
    }
}

fn respond(outcome: Result<Changed, change::Refused>) -> Response {
    match outcome {
        Ok(changed) => Response::Changed(changed),
        Err(change::Refused::Edit(misused @ EditError::Usage(_))) => {
            Response::Misused { reason: misused.to_string() }
        }
        Err(refused) => Response::Refused { reason: refused.to_string() },
    }
}
