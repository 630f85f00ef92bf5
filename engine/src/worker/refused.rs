//! Orders that are refused, or not understood.

use std::io;

use kakehi_ctl::order::Report;

use super::Worker;

/// Messages of the descriptor channel that are discarded at a time, at most.
const MOST_DISCARDED: usize = 64;

impl Worker {
    /// The answer to an order that was refused. What came with it over the descriptor channel must not be taken for what comes
    /// with another: orders come one by one, so that nothing is there for the next one yet.
    pub(super) fn refused(&self, reason: String) -> Report {
        for _ in 0..MOST_DISCARDED {
            match self.channel.receive() {
                Ok(descriptors) => drop(descriptors),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(_) => break,
            }
        }
        Report::Refused { reason }
    }
}
