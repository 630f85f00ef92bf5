//! TLS on a ring socket: handshakes, records, certificates, tickets. The cryptography is that of rustls and AWS-LC.
//!
//! | file | idea |
//! |---|---|
//! | `session` | records in, plaintext out, and the other way round; no sockets |
//! | `handshake` | of clients with us, and ours with backends |
//! | `handshake_limit` | how many handshakes are under way at a time |
//! | `terminator` | how a listener terminates TLS, by name |
//! | `demands` | what is asked of the clients of a name |
//! | `connector` | how backends are reached by TLS |
//! | `backend_verifier` | which certificates of backends are trusted |
//! | `certificates` | which certificate a client gets; read when first needed |
//! | `identity` | who a client is, by its certificate |
//! | `tickets` | session tickets that every worker can open |
//! | `vault` | where certificates, keys and ticket keys lie |
//! | `record` | how a certificate with its key lies there |
//! | `names` | something for exact names, and for all names below one |
//!
//! Relies on `ring`. Promises: nothing of a peer is taken for said that was not authenticated; no key leaves the vault
//! but to be signed with; what a peer can make us hold before and after its handshake is bounded.

mod backend_verifier;
mod certificates;
mod connector;
mod demands;
mod handshake;
mod handshake_limit;
mod identity;
mod names;
mod record;
mod session;
mod terminator;
mod tickets;
mod vault;

pub use self::{
    connector::ClientTls,
    demands::Contradiction,
    handshake::{Failure, Hello, HelloReader, OfferedProtocols},
    identity::distinguished_name,
    record::Stored,
    terminator::{Context, TlsError},
    vault::{TICKET_KEYS, TicketKeys, Vault},
};
pub(crate) use self::{
    connector::Connector,
    demands::by_name as demands_by_name,
    handshake::{
        FailureKind, HandshakeResult, Input, TlsInfo, Turns, accept, read_hello, too_large, unrecognized_name,
    },
    handshake_limit::{HandshakeLimit, UnderWay},
    names::NameMap,
    session::{RECORD_CONTENT, Session},
    terminator::Terminator,
};

/// Has AWS-LC look where its randomness comes from, for which it may open a device: in the sandbox of a worker it cannot.
///
/// # Errors
/// When there is none.
pub(crate) fn begin_randomness() -> std::io::Result<()> {
    aws_lc_rs::rand::fill(&mut [0; 1]).map_err(|_| std::io::Error::other("there is no randomness"))
}
