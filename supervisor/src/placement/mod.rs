//! How many workers there are, where they run, and what each gets to do.

pub(crate) mod pin;
pub(crate) mod rebalance;
pub(crate) mod scale;
pub(crate) mod steering;
