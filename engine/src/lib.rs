//! The data plane of one kakehi worker.

pub mod route;

pub use kakehi_ctl::limits;
