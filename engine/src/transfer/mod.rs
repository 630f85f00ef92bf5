//! Bodies between two sides, with back-pressure.
//!
//! | file | idea |
//! |---|---|
//! | `decoder` | where a body ends |
//! | `relay` | a body from one side to the other; large ones in bulk |
//! | `read_buffer` | what arrived on a connection and was not read yet |
//! | `min_rate` | the deadline of a body that must keep moving |
//!
//! Relies on `transport`, and on `h1` for chunks. Promises: nothing is read that cannot be sent on; every wait has a
//! deadline.

mod decoder;
mod min_rate;
mod read_buffer;
mod relay;

pub(crate) use self::{
    decoder::Decoder,
    min_rate::MinRate,
    read_buffer::ReadBuffer,
    relay::{Relay, RelayError, Watch, flush, receive_watching},
};
