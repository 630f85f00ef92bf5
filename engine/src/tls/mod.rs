//! TLS on a ring socket: handshakes, records, certificates, tickets.

mod vault;

pub use self::vault::{Stored, TICKET_KEYS, TicketKeys, Vault};
