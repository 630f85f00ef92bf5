//! The data plane of one kakehi worker.
//!
//! Imports go downwards only, in this order; `scripts/check-layers` refuses others.
//!
//! | folder | what lives there |
//! |---|---|
//! | [`worker`] | puts one worker together and obeys orders |
//! | [`config`] | a state compiled for traffic, whole or in part |
//! | [`downstream`] | client connections from accept to close |
//! | [`exchange`] | one request, from its head to the end of its response |
//! | [`route`] | hostname, path and method rules in one immutable table: no sockets, no clock |
//! | [`upstream`] | clusters, endpoints, balancing, the pool of upstream connections |
//! | [`transfer`] | bodies between two sides, with back-pressure |
//! | [`h1`] | HTTP/1.x text: no sockets, no clock |
//! | [`transport`] | one stream type for clear text and TLS, the PROXY header |
//! | [`tls`] | handshakes, records, certificates, tickets |
//! | [`passwords`] | slow hashes of passwords, computed beside the loop |
//! | [`ring`] | the io_uring runtime: feature probe, driver, sockets, buffers, timers |
//! | [`quota`] | how much may come from whom |
//! | [`ledger`] | what all workers count together |
//! | [`observe`] | counters |
//! | [`http`] | version-neutral parts of messages: no sockets, no clock |

pub mod config;
pub mod downstream;
pub mod exchange;
pub mod h1;
pub mod http;
pub mod ledger;
pub mod observe;
pub mod passwords;
pub mod quota;
pub mod ring;
pub mod route;
pub mod tls;
pub mod transfer;
pub mod transport;
pub mod upstream;
pub mod worker;

pub use kakehi_ctl::limits;
