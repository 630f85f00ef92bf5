//! The field table.

/// Reusable memory of the head parsers: one per worker.
#[derive(Debug, Default)]
pub struct Scratch {}

impl Scratch {
    /// An empty table.
    pub fn new() -> Scratch {
        Scratch::default()
    }
}
