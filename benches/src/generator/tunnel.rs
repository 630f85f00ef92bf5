//! Reads what comes through a tunnel: the answer to the upgrade, then each message as it was sent; no sockets here.

use super::answer::Progress;
use super::tally::Fault;
use crate::payload;

/// A head longer than this is not one that a proxy in this comparison sends.
const MAX_HEAD: usize = 16 << 10;

/// What a connection has received.
#[derive(Debug, Default)]
pub(super) struct Tunnel {
    /// Start of the answer to the upgrade.
    head: Vec<u8>,
    is_open: bool,
    /// Bytes of the current message.
    received: usize,
}

impl Tunnel {
    /// The backend has agreed.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Takes received bytes; a message has `expected` bytes. The answer to the upgrade counts as one.
    pub(super) fn take(&mut self, received: &[u8], expected: u64) -> Result<Progress, Fault> {
        if self.is_open {
            let end = self.received + received.len();
            if end as u64 > expected {
                return Err(Fault::Length);
            }
            if !payload::fits(self.received as u64, received) {
                return Err(Fault::Content);
            }
            self.received = end;
            if (end as u64) < expected {
                return Ok(Progress::More);
            }
            self.received = 0;
            return Ok(Progress::Done { close: false });
        }
        self.head.extend_from_slice(received);
        if !self.head.ends_with(b"\r\n\r\n") {
            return if self.head.len() > MAX_HEAD { Err(Fault::Head) } else { Ok(Progress::More) };
        }
        if !self.head.starts_with(b"HTTP/1.1 101 ") {
            return Err(Fault::Status);
        }
        (self.is_open, self.head) = (true, Vec::new());
        Ok(Progress::Done { close: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were_sent_behind_the_agreement() {
        let message = payload::body(64);
        let mut tunnel = Tunnel::default();
        assert_eq!(tunnel.take(b"HTTP/1.1 101 Switching", 64), Ok(Progress::More));
        assert_eq!(tunnel.take(b" Protocols\r\n\r\n", 64), Ok(Progress::Done { close: false }));
        assert!(tunnel.is_open());
        for _ in 0..2 {
            assert_eq!(tunnel.take(&message[..10], 64), Ok(Progress::More));
            assert_eq!(tunnel.take(&message[10..], 64), Ok(Progress::Done { close: false }));
        }
        assert_eq!(tunnel.take(&[message.as_slice(), b"x"].concat(), 64), Err(Fault::Length));
        assert_eq!(tunnel.take(b"?", 64), Err(Fault::Content));
        assert_eq!(Tunnel::default().take(b"HTTP/1.1 200 OK\r\n\r\n", 64), Err(Fault::Status));
    }
}
