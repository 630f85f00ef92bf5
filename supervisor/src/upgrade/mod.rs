//! New processes in the place of old ones.

pub(crate) mod program;
pub(crate) mod workers;
