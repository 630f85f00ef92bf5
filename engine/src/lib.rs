//! The data plane of one kakehi worker.
pub mod http;

pub use kakehi_ctl::limits;
