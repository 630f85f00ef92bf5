//! The data plane of one kakehi worker.
//!
//! | folder | what lives there | relies on |
//! |---|---|---|
//! | [`ring`] | the io_uring runtime: feature probe, driver, sockets, buffers, timers | nothing of the engine |
//! | [`http`] | HTTP/1.1 heads, body framing, field edits: no sockets, no clock | nothing of the engine |
//! | [`route`] | hostname, path and method rules in one immutable table | nothing of the engine |
//! | [`cluster`] | backends, balancing, the pool of upstream connections | `ring`, `observe`, the reasons of `http` |
//! | [`proxy`] | one client connection from accept to close | all of the above |
//! | [`observe`] | counters | the list of reasons of `http` |
//! | [`worker`] | puts one worker together and obeys orders | all |

pub mod cluster;
pub mod http;
pub mod observe;
pub mod proxy;
pub mod proxy_header;
pub mod ring;
pub mod route;
pub mod tls;
pub mod worker;

pub use kakehi_ctl::limits;
