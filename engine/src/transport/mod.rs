//! What protocol code speaks through: one stream type for clear text and TLS, and the header of the PROXY protocol.
//!
//! | file | idea |
//! |---|---|
//! | `stream` | [`TransportStream`]: a stream in clear text or over TLS, the same for protocol code |
//! | `proxy_header` | the header of the PROXY protocol, read and written; no sockets |
//!
//! Relies on `tls` and `ring`. Promises: without TLS nothing is added to the stream of the ring but a look at one
//! pointer; the end of what a peer sends over TLS is only taken for one when the peer has said so under encryption.

pub mod proxy_header;
mod stream;

pub use self::{proxy_header::AddressPair, stream::TransportStream};
