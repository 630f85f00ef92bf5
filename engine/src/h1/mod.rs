//! HTTP/1.x text: bytes in, decisions and bytes out.
//!
//! For: reading request and response heads, deciding where a message ends, and writing what is passed on.
//! Relies on: `http`, `httparse` for the grammar of a head, the limits of the caller, and buffers that the caller owns.
//! Promises: no socket, no clock, no panic on any input, and no allocation besides the growth of the caller's
//! `Vec<u8>` (and of a trailer section, which is bounded, and of one rare form of target). What is ambiguous about the end of a message is
//! refused; what is accepted is passed on byte for byte, inside framing that kakehi writes itself.
//!
//! | module | what it knows |
//! |---|---|
//! | `head` | limits of a head, and how an incomplete one is looked at again |
//! | `framing` | `Content-Length` and `Transfer-Encoding` |
//! | `request`, `forward` | a valid request head, and how a backend gets it |
//! | `response`, `plan` | a valid response head, and how a client gets it |
//! | `chunked`, `trailer` | bodies in chunks, both ways |
//! | `answer` | local replies |

mod answer;
mod chunked;
mod cookie;
mod forward;
mod framing;
mod head;
#[cfg(test)]
mod mutation;
mod plan;
mod request;
mod response;
mod trailer;

pub use answer::{write_answer, write_template};
pub use chunked::{Advance, CHUNK_SUFFIX, ChunkPrefix, ChunkedBody, Emit, LAST_CHUNK, chunk_prefix};
pub use forward::{ClientCertificate, ForwardedBy, Rewritten};
pub use framing::{RequestBody, ResponseBody};
pub use head::{HeadLimits, HeadProgress};
pub use plan::{OutConnection, OutFraming, ResponsePlan};
pub use request::RequestHead;
pub use response::{AddedFields, ResponseDefect, ResponseHead, StrictTransport};

use crate::http::{DateLine, Method, Reason, Scratch, Version, field, target};
