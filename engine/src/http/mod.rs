//! Version-neutral parts of HTTP messages: methods, targets, fields, and the reasons for local replies.
//!
//! For: what HTTP/1 and HTTP/2 have in common. Relies on nothing of the engine.
//! Promises: no socket, no clock, no panic on any input.
//!
//! | module | what it knows |
//! |---|---|
//! | [`reason`](Reason) | why kakehi answers by itself, with status and stable code |
//! | `method` | methods and versions that a proxy treats differently |
//! | `target` | request targets and authorities |
//! | `field` | the field table, the names that mean something to a proxy, `Connection` |
//! | `asked` | what of a request tells clients and rules apart |
//! | `authentication`, `slow_hash` | users, and whether credentials name one; argon2id and bcrypt |
//! | `percent`, `query` | percent-encoding; parameters of a query |
//! | `networks` | lists of networks, in which an address is found quickly |
//! | `templates` | responses of kakehi's own as operators write them |
//! | `date` | `Date`, written once a second |

mod asked;
mod authentication;
mod date;
pub(crate) mod field;
mod method;
mod networks;
mod percent;
mod query;
mod reason;
mod slow_hash;
pub(crate) mod target;
mod templates;

pub use asked::Asked;
pub use authentication::Users;
#[cfg(test)]
pub(crate) use authentication::tests as authentication_tests;
pub(crate) use authentication::{Attempt, AttemptId, CHALLENGE, Judged};
pub use date::{DateCache, DateLine};
pub use field::Scratch;
pub(crate) use field::trim;
pub use method::{Method, Version};
pub use networks::Networks;
pub(crate) use percent::{next_byte, percent_decode};
pub use query::parameter;
pub use reason::Reason;
pub(crate) use reason::phrase;
pub(crate) use slow_hash::{Blocks, NoMemory};
pub use templates::{Templates, template};
