//! A valid response head.
use super::*;

/// A response head, borrowed from the input and the scratch table. One that exists is valid.
#[derive(Debug)]
pub struct ResponseHead<'b> {
    /// Status code, 100..=599.
    pub status: u16,
    /// Version of the backend's message.
    pub version: Version,
    /// How the body ends.
    pub body: ResponseBody,
    /// Whether the backend's connection can be used again after the body.
    pub keep_alive: bool,
    /// Whether the backend names another protocol in `Upgrade` (and `Connection`).
    pub upgrade: bool,
    /// Bytes of the head in the input.
    pub len: usize,
    input: &'b [u8],
}

impl<'b> ResponseHead<'b> {
    /// Reads a response head from the start of `input`; `None` = incomplete.
    pub fn parse(
        input: &'b [u8],
        request_method: Method,
        progress: &mut HeadProgress,
        limits: &HeadLimits,
        scratch: &'b mut Scratch,
    ) -> Result<Option<ResponseHead<'b>>, Reason> {
        let _ = (input, request_method, progress, limits, scratch);
        Ok(None)
    }

    /// Whether another head follows this one: any 1xx but 101.
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Appends the response as the client gets it.
    pub fn write_forwarded(&self, plan: &ResponsePlan, out: &mut Vec<u8>) {
        let _ = (plan, out, self.input);
    }

    /// The fields as sent, in their order.
    pub fn fields(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        std::iter::empty()
    }
}
