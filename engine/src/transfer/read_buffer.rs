//! What arrived on a connection and was not read yet.

use crate::{
    ring::{Buf, SendBuf},
    tls::Input,
};

/// Bytes in front of a reader, in order.
#[derive(Default)]
pub(crate) struct ReadBuffer {
    held: Held,
}

#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    /// In the arena, where they were received.
    Lent(Buf),
    /// Copied together, from `start` on.
    Joined(Box<Joined>),
}

struct Joined {
    bytes: Vec<u8>,
    start: usize,
}

impl Held {
    fn joined(bytes: &[u8]) -> Held {
        Held::Joined(Box::new(Joined { bytes: bytes.to_vec(), start: 0 }))
    }
}

impl ReadBuffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.held {
            Held::Nothing => &[],
            Held::Lent(buffer) => buffer,
            Held::Joined(joined) => &joined.bytes[joined.start..],
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.held {
            Held::Nothing => &mut [],
            Held::Lent(buffer) => buffer,
            Held::Joined(joined) => &mut joined.bytes[joined.start..],
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes().is_empty()
    }

    /// Adds what was received behind what is there.
    pub(crate) fn push(&mut self, buffer: Buf) {
        if self.is_empty() {
            self.held = Held::Lent(buffer);
            return;
        }
        self.copy_out_of_pool();
        if let Held::Joined(joined) = &mut self.held {
            joined.bytes.extend_from_slice(&buffer);
        }
    }

    /// Adds a copy of `bytes` behind what is there.
    pub(crate) fn push_copy(&mut self, more: &[u8]) {
        self.copy_out_of_pool();
        match &mut self.held {
            Held::Joined(joined) => joined.bytes.extend_from_slice(more),
            held => *held = Held::joined(more),
        }
    }

    /// Copies out of the arena: who waits for a peer, maybe for long, must not hold a buffer that all share.
    pub(crate) fn copy_out_of_pool(&mut self) {
        match &self.held {
            Held::Lent(buffer) if buffer.is_empty() => self.held = Held::Nothing,
            Held::Lent(buffer) => self.held = Held::joined(buffer),
            Held::Joined(joined) if joined.start == joined.bytes.len() => self.held = Held::Nothing,
            Held::Nothing | Held::Joined(_) => {}
        }
    }

    /// Everything, as it lies.
    pub(crate) fn take(&mut self) -> Input {
        match std::mem::take(&mut self.held) {
            Held::Nothing => Input::Own(Vec::new()),
            Held::Lent(buffer) => Input::Received(buffer),
            Held::Joined(joined) => Input::Own(joined.bytes[joined.start..].to_vec()),
        }
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        match &mut self.held {
            Held::Nothing => debug_assert!(count == 0),
            Held::Lent(buffer) => {
                buffer.advance(count);
                if buffer.is_empty() {
                    self.held = Held::Nothing;
                }
            }
            Held::Joined(joined) => {
                joined.start += count;
                debug_assert!(joined.start <= joined.bytes.len());
                if joined.start >= joined.bytes.len() {
                    self.held = Held::Nothing;
                }
            }
        }
    }

    /// The first `kept` bytes with `head` in front of them, where they lie, if that is where they were received and there is room;
    /// what stands behind them is forgotten. Otherwise `None`, and nothing has changed.
    pub(crate) fn take_behind(&mut self, head: &[u8], kept: usize) -> Option<Buf> {
        let Held::Lent(buffer) = &mut self.held else { return None };
        if !buffer.prepend(head) {
            return None;
        }
        buffer.truncate(head.len() + kept);
        match std::mem::take(&mut self.held) {
            Held::Lent(buffer) => Some(buffer),
            Held::Nothing | Held::Joined(_) => None,
        }
    }

    /// Splits off the first `kept` bytes to be sent as they lie, and forgets the first `consumed` (at least as many).
    pub(crate) fn split(&mut self, kept: usize, consumed: usize) -> SendBuf {
        if consumed < self.bytes().len() {
            let outgoing = self.bytes()[..kept].to_vec();
            self.consume(consumed);
            return outgoing.into();
        }
        match std::mem::take(&mut self.held) {
            Held::Nothing => SendBuf::Static(&[]),
            Held::Lent(mut buffer) => {
                buffer.truncate(kept);
                SendBuf::Received(buffer)
            }
            // Built from receives: far below 4 GiB.
            Held::Joined(joined) => {
                let Joined { bytes, start } = *joined;
                SendBuf::Owned(bytes, start as u32..(start + kept) as u32)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lent(bytes: &str) -> ReadBuffer {
        let mut read_buffer = ReadBuffer::default();
        read_buffer.push(Buf::received(bytes.as_bytes()));
        read_buffer
    }

    fn joined(bytes: &str) -> ReadBuffer {
        let mut read_buffer = ReadBuffer::default();
        read_buffer.push_copy(bytes.as_bytes());
        read_buffer
    }

    #[test]
    fn what_arrives_is_read_once_and_in_order_however_it_is_held() {
        for mut read_buffer in [lent("abc"), joined("abc")] {
            read_buffer.consume(1);
            read_buffer.push(Buf::received(b"def"));
            assert_eq!(read_buffer.bytes(), b"bcdef");
            read_buffer.consume(3);
            read_buffer.push_copy(b"gh");
            assert_eq!((read_buffer.bytes(), read_buffer.is_empty()), (b"efgh".as_slice(), false));
            read_buffer.bytes_mut()[0] = b'E';
            read_buffer.copy_out_of_pool();
            assert_eq!(read_buffer.bytes(), b"Efgh");
            read_buffer.consume(4);
            assert!(read_buffer.is_empty());
            read_buffer.push(Buf::received(b"i"));
            assert_eq!(read_buffer.bytes(), b"i");
        }
    }

    #[test]
    fn a_buffer_of_the_arena_is_held_until_it_is_read_or_the_inbox_settles() {
        let mut read_buffer = lent("abc");
        read_buffer.consume(1);
        assert!(matches!(read_buffer.held, Held::Lent(_)), "not copied without need");
        read_buffer.copy_out_of_pool();
        assert!(matches!(read_buffer.held, Held::Joined { .. }) && read_buffer.bytes() == b"bc");
        for mut read_buffer in [lent("abc"), joined("abc")] {
            read_buffer.consume(3);
            assert!(matches!(read_buffer.held, Held::Nothing));
        }
        let mut empty = lent("");
        empty.copy_out_of_pool();
        assert!(matches!(empty.held, Held::Nothing));
    }

    #[test]
    fn what_is_split_off_is_sent_and_what_follows_stays() {
        for (kept, consumed, rest) in
            [(3, 3, "def"), (2, 4, "ef"), (0, 2, "cdef"), (6, 6, ""), (4, 6, ""), (0, 6, "")]
        {
            for mut read_buffer in [lent("abcdef"), joined("abcdef")] {
                let outgoing = read_buffer.split(kept, consumed);
                assert_eq!(outgoing.bytes(), &b"abcdef"[..kept], "{kept} of {consumed}");
                assert_eq!(read_buffer.bytes(), rest.as_bytes(), "{kept} of {consumed}");
            }
        }
        assert_eq!(ReadBuffer::default().split(0, 0).bytes(), b"");
    }

    #[test]
    fn a_head_stands_in_front_of_what_lies_in_the_arena_and_of_nothing_else() {
        let mut read_buffer = lent("xabcd");
        read_buffer.consume(1);
        assert_eq!(&*read_buffer.take_behind(b"head:", 3).unwrap(), b"head:abc");
        assert!(read_buffer.is_empty());
        let mut read_buffer = joined("xabcd");
        read_buffer.consume(1);
        assert!(read_buffer.take_behind(b"h", 4).is_none());
        assert_eq!(read_buffer.bytes(), b"abcd");
        let mut read_buffer = lent("abcd");
        assert!(read_buffer.take_behind(&[b'x'; 9_999], 4).is_none());
        assert_eq!(read_buffer.bytes(), b"abcd");
    }

    #[test]
    fn a_buffer_that_is_split_off_whole_leaves_where_it_lies() {
        let mut read_buffer = lent("xabc");
        read_buffer.consume(1);
        let outgoing = read_buffer.split(2, 3);
        assert!(matches!(&outgoing, SendBuf::Received(_)) && outgoing.bytes() == b"ab");
        let mut read_buffer = joined("xabc");
        read_buffer.consume(1);
        let outgoing = read_buffer.split(2, 3);
        assert!(matches!(&outgoing, SendBuf::Owned(..)) && outgoing.bytes() == b"ab");
    }
}
