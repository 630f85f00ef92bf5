//! Listening sockets and channels on their way to the process of a worker.

use std::{io, os::fd::OwnedFd};

use kakehi_ctl::state::Binding;
use kakehi_engine::worker::DescriptorKind;

use crate::{
    fleet::{launch, worker::Worker},
    host::listeners::Sockets,
    scm,
};

impl Worker {
    /// Sends the sockets of new listeners, for the order that follows.
    ///
    /// # Errors
    /// When it does not take them.
    pub(crate) fn pass(&self, sockets: &Sockets) -> Result<(), scm::Error> {
        match &self.process {
            Some(process) => process.pass(&launch::labelled(sockets)),
            None => Ok(()),
        }
    }

    /// Sends listening sockets and the channel of a predecessor, for the order that follows.
    ///
    /// # Errors
    /// When it does not take them.
    pub(crate) fn pass_with(
        &self,
        sockets: &Sockets,
        predecessor: Option<&OwnedFd>,
    ) -> Result<(), scm::Error> {
        let mut descriptors = launch::labelled(sockets);
        descriptors.extend(predecessor.map(|channel| (DescriptorKind::Predecessor, channel)));
        self.pass_descriptors(&descriptors)
    }

    /// Sends descriptors, for the order that follows.
    ///
    /// # Errors
    /// When it does not take them.
    pub(crate) fn pass_descriptors(
        &self,
        descriptors: &[(DescriptorKind, &OwnedFd)],
    ) -> Result<(), scm::Error> {
        match &self.process {
            Some(process) => process.pass(descriptors),
            None => Err(io::Error::from(io::ErrorKind::NotConnected).into()),
        }
    }

    /// Keeps the sockets of listeners that have come, and closes those of listeners that have gone.
    pub(crate) fn change_sockets(&mut self, come: Sockets, stays: impl Fn(&Binding) -> bool) {
        self.sockets.extend(come);
        self.sockets.retain(|(which, _)| stays(&which.binding()));
    }
}
