//! New processes in the place of old ones, without losing a connection: of [`workers`], and of this [`program`] with all of them.

pub(crate) mod program;
pub(crate) mod workers;
