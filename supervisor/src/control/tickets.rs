//! The keys of session tickets are renewed from time to time: whoever gets hold of one opens what was said under it.

use std::time::Duration;

use kakehi_ctl::order::{Fact, Order};
use tokio::time::Instant;

use crate::supervisor::Supervisor;

/// What workers are told.
const TICKET_KEYS: Order = Order::Fact { fact: Fact::TicketKeys };
/// A failed renewal is tried again after this time.
const PAUSE: Duration = Duration::from_secs(60);

impl Supervisor {
    /// When the ticket keys are to be renewed next.
    pub(crate) fn ticket_keys_due(&self) -> Option<Instant> {
        self.stopping.is_none().then_some(self.ticket_keys_due)
    }

    /// Plans the next renewal by the age of the keys, which may be older than this supervisor.
    pub(crate) fn plan_ticket_keys(&mut self) {
        let rotation = Duration::from_millis(self.state.settings.ticket_key_rotation_ms);
        let age = self.certificates.vault().ticket_keys_age().unwrap_or_default();
        self.ticket_keys_due = Instant::now() + rotation.saturating_sub(age);
    }

    /// Plans the next renewal, and has workers that run already give tickets for as long as keys are used from now on.
    pub(crate) async fn take_ticket_key_rotation(&mut self) {
        self.plan_ticket_keys();
        let rotation_ms = self.state.settings.ticket_key_rotation_ms;
        let vault = self.certificates.vault();
        let noted = match vault.ticket_key_rotation() {
            Ok(Some(noted)) if noted == rotation_ms => return,
            _ => vault.write_ticket_key_rotation(rotation_ms),
        };
        match noted {
            Ok(()) => {
                for (worker, reason) in self.tell_all(&TICKET_KEYS).await {
                    tracing::warn!(worker, "does not know how long tickets are good now: {reason}");
                }
            }
            Err(error) => tracing::error!("how long tickets are good cannot be noted: {error}"),
        }
    }

    /// Renews the ticket keys if that is due, and tells every worker.
    pub(crate) async fn renew_ticket_keys_if_due(&mut self) {
        if self.ticket_keys_due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        let vault = self.certificates.vault();
        let rotation_ms = self.state.settings.ticket_key_rotation_ms;
        let renewed = vault.ticket_keys().and_then(|keys| {
            vault.write_ticket_key_rotation(rotation_ms)?;
            vault.write_ticket_keys(&keys.renewed()?)
        });
        match renewed {
            Ok(()) => {
                for (worker, reason) in self.tell_all(&TICKET_KEYS).await {
                    tracing::warn!(worker, "does not use the new ticket keys: {reason}");
                }
                let rotation = Duration::from_millis(rotation_ms);
                self.ticket_keys_due = Instant::now() + rotation.max(Duration::from_secs(1));
                tracing::debug!("the ticket keys were renewed");
            }
            Err(error) => {
                tracing::error!("the ticket keys cannot be renewed: {error}");
                self.ticket_keys_due = Instant::now() + PAUSE;
            }
        }
    }
}
