//! Bodies and tunnels between two sides, with back-pressure: the one place that decides on copying, gathering, splicing.
//!
//! | file | idea |
//! |---|---|
//! | `body` | a body: its data, its trailers, and where it ends |
//! | `relay` | a body from one side to the other; large ones in bulk |
//! | `tunnel` | bytes both ways |
//! | `read_buffer` | what arrived on a connection and was not read yet |
//! | `min_rate` | the deadline of a body that must keep moving |
//!
//! Relies on `transport`, and on `h1` for chunks. Promises: nothing is read that cannot be sent on; every wait has a
//! deadline.

mod body;
mod min_rate;
mod read_buffer;
mod relay;
mod tunnel;

pub(crate) use self::{
    body::Body,
    min_rate::MinRate,
    read_buffer::ReadBuffer,
    relay::{Relay, RelayError, Watch, flush, note_length, receive_watching},
    tunnel::{Tunnel, TunnelEnd, TunnelOwner, come_to_rest},
};
