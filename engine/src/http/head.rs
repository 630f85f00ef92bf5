//! Limits of a head, and how an incomplete one is looked at again.

/// Limits of one head.
#[derive(Debug, Clone, Copy)]
pub struct HeadLimits {
    /// Bytes of the whole head, line ends and leading empty lines included.
    pub bytes: u32,
    /// Field lines; at most [`limits::MAX_HEAD_FIELDS_CEILING`](crate::limits::MAX_HEAD_FIELDS_CEILING) count.
    pub fields: u16,
    /// Bytes of the request target; not used for responses.
    pub target: u32,
}

/// How far an incomplete head was looked at. One per connection and direction; starts as its default, and
/// is that again after a complete head.
#[derive(Debug, Default, Clone, Copy)]
pub struct HeadProgress {
    pub(super) scanned: u32,
    pub(super) attempted: u32,
}
