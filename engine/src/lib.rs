//! The data plane of one kakehi worker.
pub use kakehi_ctl::limits;
