//! Certificates that come, go, and change, by `kakehictl` and by their files.

use std::{net::SocketAddr, sync::Arc};

use kakehi_ctl::{
    change::Change,
    event::Happening,
    order::Changed as Done,
    state::{State, WantedCertificate},
};

use crate::{
    certificates::{self, Changed, Depth, Keeper, Wanted},
    control::change::Refused,
    supervisor::{Supervisor, turn::Stopped},
};

/// Who changes certificates, in the log.
const BY: &str = "a file";

impl Supervisor {
    /// Has `work` done with what keeps the certificates on another thread, as it reads files, and serves meanwhile.
    ///
    /// # Errors
    /// When a stop has begun.
    pub(crate) async fn with_keeper<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Keeper) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        if self.is_stopping() {
            return Err(Stopped);
        }
        let mut keeper = self.certificates.lend();
        let worked = self.serve_beside(move || {
            let done = work(&mut keeper);
            (done, keeper)
        });
        let (done, keeper) = worked.await?;
        self.certificates.take_back(keeper);
        Ok(done)
    }

    /// Reads what `state` names, and the certificates that are `wanted` besides, and serves meanwhile; what it is then, and of what to
    /// be aware.
    ///
    /// # Errors
    /// See [`Refused`]; nothing of it is used then.
    pub(crate) async fn furnish(
        &mut self,
        mut state: State,
        wanted: Vec<WantedCertificate>,
    ) -> Result<(State, Vec<String>), Refused> {
        let furnished = self.with_keeper(move |keeper| {
            let warnings = keeper.furnish(&mut state, wanted, Depth::Few)?;
            Ok::<_, certificates::Error>((state, warnings))
        });
        Ok(furnished.await??)
    }

    /// Throws away what nobody uses any more.
    pub(crate) async fn tidy_certificates(&mut self) {
        let state = Arc::clone(&self.state);
        // At a stop everything goes.
        let _ = self.with_keeper(move |keeper| keeper.tidy(&state)).await;
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
