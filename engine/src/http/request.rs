//! A valid request head.
use super::*;

/// A request head, borrowed from the input and the scratch table. One that exists is valid.
#[derive(Debug)]
pub struct RequestHead<'b> {
    /// Kind of the method.
    pub method: Method,
    /// The method as sent.
    pub method_text: &'b str,
    /// Version of the client's message.
    pub version: Version,
    /// Target in origin-form (`/a?b`) or `*`, as sent.
    pub target: &'b str,
    /// The authority that counts, with its port if it was sent; empty only in HTTP/1.0 without `Host`.
    pub host: &'b str,
    /// How the body ends.
    pub body: RequestBody,
    /// Whether the client wants to go on with this connection (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends its body.
    pub expect_continue: bool,
    /// Whether the client asks for another protocol.
    pub upgrade: bool,
    /// Bytes of the head in the input, leading empty lines included.
    pub len: usize,
}

impl<'b> RequestHead<'b> {
    /// Reads a request head from the start of `input`; `None` = incomplete.
    pub fn parse(
        input: &'b [u8],
        progress: &mut HeadProgress,
        limits: &HeadLimits,
        scratch: &'b mut Scratch,
    ) -> Result<Option<RequestHead<'b>>, Reason> {
        let _ = (input, progress, limits, scratch);
        Ok(None)
    }

    /// The host without port; brackets of an IPv6 literal stay.
    pub fn host_name(&self) -> &'b str {
        self.host
    }

    /// The target without query.
    pub fn path(&self) -> &'b str {
        self.target
    }

    /// The fields as sent, in their order.
    pub fn fields(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        std::iter::empty()
    }
}
