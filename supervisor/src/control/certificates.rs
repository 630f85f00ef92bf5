//! Certificates that come, go, and change, by `kakehictl` and by their files.

use std::net::SocketAddr;

use kakehi_ctl::{
    change::Change,
    event::Happening,
    order::Changed as Done,
    state::{State, WantedCertificate},
};

use crate::{
    certificates::{self, Changed, Wanted, put_into},
    control::change::Refused,
    supervisor::Supervisor,
};

/// Who changes certificates, in the log.
const BY: &str = "a file";

/// Certificates that are read between two turns: some milliseconds.
const AT_A_TIME: usize = 64;

impl Supervisor {
    /// Reads what `state` names, and the certificates that are `wanted` besides, and serves in between; says of what to be aware.
    ///
    /// # Errors
    /// See [`Refused`]; nothing of it is used then.
    pub(crate) async fn furnish(
        &mut self,
        state: &mut State,
        mut wanted: Vec<WantedCertificate>,
    ) -> Result<Vec<String>, Refused> {
        // Counted once for all: a piece alone always has few.
        let depth = self.certificates.depth_of(&wanted);
        let mut warnings = self.certificates.fill_materials(state, depth)?;
        let mut found = Vec::with_capacity(wanted.len());
        while !wanted.is_empty() {
            let rest = wanted.split_off(wanted.len().min(AT_A_TIME));
            let (certificates, more) = self.certificates.certificates(wanted, depth)?;
            found.extend(certificates);
            warnings.extend(more);
            wanted = rest;
            self.serve_waiting().await?;
        }
        put_into(state, found);
        Ok(warnings)
    }

    /// Gives a listener a certificate.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn add_certificate(&mut self, wanted: &Wanted, by: &str) -> Result<Done, Refused> {
        let (changes, warnings) = self.certificates.add(&self.state, wanted)?;
        let mut changed = self.apply(changes, by).await?;
        changed.warnings.extend(warnings);
        Ok(changed)
    }

    /// Takes a certificate from a listener.
    ///
    /// # Errors
    /// See [`Refused`]; nothing has changed then.
    pub(crate) async fn remove_certificate(
        &mut self,
        address: SocketAddr,
        which: &str,
        by: &str,
    ) -> Result<Done, Refused> {
        let (fingerprint, _) = certificates::find(&self.state, address, which)?;
        let changed = self.apply(vec![Change::RemoveCertificate { address, fingerprint }], by).await?;
        self.certificates.tidy_later();
        Ok(changed)
    }

    /// Makes of files that are not as they were what they are now.
    pub(crate) async fn on_changed_files(&mut self, changed: Vec<Changed>) {
        for changed in changed {
            let about = changed.about();
            let taken = self.take_anew(changed).await;
            // What was refused is to be read again.
            self.certificates.settle(taken.is_ok());
            if let Some(news) = self.certificates.watching.note(about, taken) {
                self.tell(Happening::refused(BY, &news));
            }
        }
    }

    async fn take_anew(&mut self, changed: Changed) -> Result<(), String> {
        let about = changed.about();
        let (changes, warnings) = self.certificates.take_anew(&self.state, changed)?;
        if changes.is_empty() {
            return Ok(());
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!("{about} has changed and is taken anew");
        self.change_by_file(changes, BY).await.map(drop).map_err(|refused| refused.to_string())
    }
}
