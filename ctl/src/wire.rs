//! Frames: four bytes of length (little endian, without themselves), then a JSON text.
//!
//! For: every control channel, that of `kakehictl` and those of the workers. [`encode`] and [`Decoder`] know no
//! socket, so that an event loop can feed them; [`write_message`] and [`read_message`] are the blocking form.
//!
//! Relies on: the caller, who chooses how many bytes it reads at a time and the largest frame that it accepts.
//!
//! Promises: memory follows the bytes that came, never the length that a peer announces; a frame that is too large,
//! cut short, not JSON, of another version or of another shape is a [`WireError`], never a panic; of what is not understood the
//! number is known, if it has one.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::order::{Envelope, Message, Response};

/// Bytes of the length that precedes each frame.
pub const LENGTH_SIZE: usize = 4;

/// How much [`read_message`] reads at a time (bytes).
const READ_SIZE: usize = 16 << 10;

/// What is allocated for a frame that is written (bytes).
const USUAL_FRAME: usize = 4 << 10;

/// A decoder that is empty keeps no more memory than this (bytes).
const KEPT_CAPACITY: usize = 256 << 10;

/// Why a message cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The message, or the length that the peer announces, is beyond the limit. A decoder that has said so stays so.
    #[error("a control message of {size} bytes is larger than the {max} bytes that are accepted")]
    TooLarge {
        /// Of the message (bytes).
        size: usize,
        /// What is accepted (bytes).
        max: usize,
    },
    /// The peer closed in the middle of a frame.
    #[error("the peer closed the control connection in the middle of a message ({have} bytes of it came)")]
    Truncated {
        /// What came of the frame, its length included (bytes).
        have: usize,
    },
    /// The peer speaks another version of the vocabulary.
    #[error(
        "the peer speaks version {theirs} of the vocabulary of {vocabulary}, this program ({program}) version {ours}: use programs of \
         one release", program = env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// What the vocabulary is for.
        vocabulary: &'static str,
        /// That of this program.
        ours: u32,
        /// What the peer wrote.
        theirs: u32,
        /// Number of the message; 0 if it has none.
        id: u64,
    },
    /// A message of this version with a body that this program does not know. The frame was dropped; the next one can be read.
    #[error("this program ({program}) does not understand it: {reason}", program = env!("CARGO_PKG_VERSION"))]
    Unknown {
        /// Number of the message.
        id: u64,
        /// What it does not know.
        reason: String,
    },
    /// The peer has said what it understands, and this is not among it.
    #[error(
        "it runs another program, which does not know the order `{0}`; `kakehictl workers upgrade` replaces it"
    )]
    NotKnown(&'static str),
    /// Not JSON, or no message. The frame was dropped; the next one can be read.
    #[error("a control message is not understood: {0}")]
    Malformed(serde_json::Error),
    /// The message cannot be written as JSON.
    #[error("a control message cannot be written: {0}")]
    Unwritable(serde_json::Error),
    /// The socket failed, or its deadline passed.
    #[error("the control connection failed: {0}")]
    Io(#[from] io::Error),
}

/// The frame of `envelope`, ready to be sent.
///
/// # Errors
///
/// [`WireError::TooLarge`] if the JSON text has more than `max` bytes, [`WireError::Unwritable`] if there is none.
pub fn encode<T: Serialize>(envelope: &Envelope<T>, max: usize) -> Result<Vec<u8>, WireError> {
    // Most are smaller: growing step by step would leave the allocator with a block of each size.
    encode_into(Vec::with_capacity(USUAL_FRAME), envelope, max)
}

/// As [`encode`], into an empty buffer that is at hand.
///
/// # Errors
///
/// Those of [`encode`].
pub fn encode_into<T: Serialize>(
    mut frame: Vec<u8>,
    envelope: &Envelope<T>,
    max: usize,
) -> Result<Vec<u8>, WireError> {
    frame.extend_from_slice(&[0; LENGTH_SIZE]);
    serde_json::to_writer(&mut frame, envelope).map_err(WireError::Unwritable)?;
    let size = frame.len() - LENGTH_SIZE;
    match u32::try_from(size) {
        Ok(length) if size <= max => frame[..LENGTH_SIZE].copy_from_slice(&length.to_le_bytes()),
        _ => return Err(WireError::TooLarge { size, max }),
    }
    Ok(frame)
}

/// What stands before and behind the text of a state, of `length` bytes, in the frame of a [`Response::State`]: for one who has the
/// text, and would need memory for the frame.
///
/// # Errors
///
/// Those of [`encode`].
pub fn around_state(id: u64, length: usize, max: usize) -> Result<[Vec<u8>; 2], WireError> {
    let version = Response::VERSION;
    let mut head = vec![0; LENGTH_SIZE];
    write!(head, r#"{{"version":{version},"id":{id},"body":{{"result":"state","content":"#)
        .map_err(WireError::Io)?;
    let tail = b"}}".to_vec();
    let size = head.len() - LENGTH_SIZE + length + tail.len();
    match u32::try_from(size) {
        Ok(length) if size <= max => head[..LENGTH_SIZE].copy_from_slice(&length.to_le_bytes()),
        _ => return Err(WireError::TooLarge { size, max }),
    }
    Ok([head, tail])
}

/// Turns bytes as they come into messages.
///
/// Call [`Decoder::next`] until it has no more after each [`Decoder::extend`]: the decoder then never holds more than
/// one frame and what one call of `extend` brought.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the first frame that was not taken yet begins.
    start: usize,
    max_frame: usize,
    /// Frames that may be larger.
    large: Option<Large>,
}

/// Which frames may be larger than others.
#[derive(Debug, Clone, Copy)]
struct Large {
    max_frame: usize,
    /// What stands near their beginning.
    mark: &'static str,
}

/// The mark of a large frame stands within so many bytes: behind version and number.
const MARK_WITHIN: usize = 128;

impl Decoder {
    /// A decoder that accepts frames of up to `max_frame` bytes of JSON.
    pub fn new(max_frame: usize) -> Self {
        Decoder { buffer: Vec::new(), start: 0, max_frame, large: None }
    }

    /// Accepts also frames of up to `max_frame` bytes, if `mark` stands near their beginning.
    #[must_use]
    pub fn or_large(self, max_frame: usize, mark: &'static str) -> Self {
        Decoder { large: Some(Large { max_frame, mark }), ..self }
    }

    /// Takes what was read from the peer: any number of bytes, cut anywhere.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT_CAPACITY {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message; `None` until all of it has come.
    ///
    /// # Errors
    ///
    /// [`WireError::TooLarge`], for ever after: the stream has no known frame any more and must be closed.
    /// [`WireError::Version`], [`WireError::Unknown`] and [`WireError::Malformed`] for this frame only, which is dropped.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator has one type of item; here each call names its own"
    )]
    pub fn next<T: Message + DeserializeOwned>(&mut self) -> Result<Option<Envelope<T>>, WireError> {
        let bytes = &self.buffer[self.start..];
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_SIZE>() else { return Ok(None) };
        let size = u32::from_le_bytes(*length) as usize;
        if size > self.max_frame {
            let large = self.large.filter(|large| size <= large.max_frame);
            let start = &rest[..rest.len().min(MARK_WITHIN)];
            let is_marked = large.is_some_and(|large| {
                start.windows(large.mark.len()).any(|window| window == large.mark.as_bytes())
            });
            // It may still come.
            let is_open = large.is_some() && start.len() < MARK_WITHIN;
            if !is_marked && !is_open {
                return Err(WireError::TooLarge { size, max: self.max_frame });
            }
        }
        let Some(text) = rest.get(..size) else { return Ok(None) };
        let message = parse(text);
        self.start += LENGTH_SIZE + size;
        message.map(Some)
    }

    /// How long the next message is (bytes), if all of it has come; otherwise 0.
    pub fn complete(&self) -> usize {
        let bytes = &self.buffer[self.start..];
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_SIZE>() else { return 0 };
        let size = u32::from_le_bytes(*length) as usize;
        if rest.len() < size { 0 } else { size }
    }

    /// To be called when the peer has closed.
    ///
    /// # Errors
    ///
    /// [`WireError::Truncated`] if it did so in the middle of a frame.
    pub fn finish(&self) -> Result<(), WireError> {
        match self.buffer.len() - self.start {
            0 => Ok(()),
            have => Err(WireError::Truncated { have }),
        }
    }
}

/// One whole JSON text as a message of this version.
fn parse<T: Message + DeserializeOwned>(text: &[u8]) -> Result<Envelope<T>, WireError> {
    /// The part of an envelope that every version has: a body that is not known need not have a known shape.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
        id: Option<u64>,
    }

    let head = match serde_json::from_slice::<Envelope<T>>(text) {
        Ok(envelope) if envelope.version == T::VERSION => return Ok(envelope),
        Ok(Envelope { version, id, .. }) => (version, Some(id), None),
        Err(error) => match serde_json::from_slice::<Head>(text) {
            Ok(Head { version, id }) => (version, id, Some(error)),
            Err(_) => return Err(WireError::Malformed(error)),
        },
    };
    match head {
        (version, Some(id), Some(error)) if version == T::VERSION => {
            Err(WireError::Unknown { id, reason: shortened(&error) })
        }
        (version, None, Some(error)) if version == T::VERSION => Err(WireError::Malformed(error)),
        (theirs, id, _) => Err(WireError::Version {
            vocabulary: T::VOCABULARY,
            ours: T::VERSION,
            theirs,
            id: id.unwrap_or_default(),
        }),
    }
}

/// Without the row of all that is known.
fn shortened(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(", expected one of").next().unwrap_or_default().to_owned()
}

/// Writes one message to a blocking socket.
///
/// # Errors
///
/// Those of [`encode`], and [`WireError::Io`] if the socket fails or its write deadline passes.
pub fn write_message<T: Serialize>(
    writer: &mut impl Write,
    envelope: &Envelope<T>,
    max: usize,
) -> Result<(), WireError> {
    writer.write_all(&encode(envelope, max)?)?;
    Ok(writer.flush()?)
}

/// Reads one message from a blocking socket; `None` if the peer closed between two messages.
///
/// `decoder` keeps what came after the message: use the same one for the next.
///
/// # Errors
///
/// Those of [`Decoder::next`] and [`Decoder::finish`], and [`WireError::Io`] if the socket fails or its read deadline
/// passes.
pub fn read_message<T: Message + DeserializeOwned>(
    reader: &mut impl Read,
    decoder: &mut Decoder,
) -> Result<Option<Envelope<T>>, WireError> {
    let mut bytes = [0; READ_SIZE];
    loop {
        if let Some(message) = decoder.next()? {
            return Ok(Some(message));
        }
        match reader.read(&mut bytes) {
            Ok(0) => return decoder.finish().map(|()| None),
            Ok(count) => decoder.extend(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        limits,
        order::{Order, Report, Request},
        state::State,
    };

    fn frame_of(text: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(text);
        frame
    }

    #[test]
    fn the_text_of_a_state_is_framed_as_the_state_is() {
        let text = serde_json::to_vec(&State::default()).unwrap();
        let [head, tail] = around_state(7, text.len(), limits::MAX_FRAME).unwrap();
        let whole = Envelope::new(7, Response::State(Box::default()));
        assert_eq!([head, text.clone(), tail].concat(), encode(&whole, limits::MAX_FRAME).unwrap());
        assert!(matches!(around_state(7, text.len(), text.len()), Err(WireError::TooLarge { .. })));
    }

    #[test]
    fn a_message_survives_the_wire_however_it_is_cut() {
        let first = Envelope::new(7, Order::Stop { deadline_ms: 30_000 });
        let second = Envelope::new(8, Order::Ping);
        let mut bytes = encode(&first, limits::MAX_FRAME).unwrap();
        bytes.extend(encode(&second, limits::MAX_FRAME).unwrap());
        for piece in 1..=bytes.len() {
            let mut decoder = Decoder::new(limits::MAX_FRAME);
            let mut messages = Vec::new();
            for part in bytes.chunks(piece) {
                decoder.extend(part);
                while let Some(message) = decoder.next::<Order>().unwrap() {
                    messages.push(message);
                }
            }
            decoder.finish().unwrap();
            assert_eq!(messages, [first.clone(), second.clone()], "in pieces of {piece}");
        }
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_on_both_sides() {
        let envelope = Envelope::new(1, Report::Failed { reason: "x".repeat(100) });
        assert!(matches!(encode(&envelope, 100), Err(WireError::TooLarge { max: 100, .. })));
        let mut decoder = Decoder::new(100);
        decoder.extend(&101u32.to_le_bytes());
        for _ in 0..2 {
            assert!(matches!(decoder.next::<Report>(), Err(WireError::TooLarge { size: 101, max: 100 })));
        }
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut decoder = Decoder::new(limits::MAX_FRAME);
        decoder.extend(&u32::try_from(limits::MAX_FRAME).unwrap().to_le_bytes());
        decoder.extend(b"{");
        assert!(decoder.next::<Order>().unwrap().is_none());
        assert!(decoder.buffer.capacity() < 1024);
    }

    #[test]
    fn a_large_message_is_not_kept_in_memory() {
        let mut decoder = Decoder::new(limits::MAX_FRAME);
        let large = Report::Failed { reason: "x".repeat(1 << 20) };
        decoder.extend(&encode(&Envelope::new(1, large), limits::MAX_FRAME).unwrap());
        assert!(decoder.next::<Report>().unwrap().is_some());
        decoder.extend(&encode(&Envelope::new(2, Report::Done), limits::MAX_FRAME).unwrap());
        assert!(decoder.buffer.capacity() <= KEPT_CAPACITY);
    }

    #[test]
    fn another_version_is_named_whatever_its_body_looks_like() {
        for body in ["{\"verb\":\"status\"}", "{\"verb\":\"dance\"}", "[1,2]"] {
            let mut decoder = Decoder::new(1024);
            decoder.extend(&frame_of(format!("{{\"version\":9,\"id\":1,\"body\":{body}}}").as_bytes()));
            let error = decoder.next::<Request>().unwrap_err();
            assert!(matches!(error, WireError::Version { ours: 1, theirs: 9, id: 1, .. }), "{error}");
            assert!(
                error.to_string().contains("version 9") && error.to_string().contains("version 1"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_frame_that_is_not_understood_does_not_spoil_the_next() {
        for bad in [
            &b""[..],
            b"{",
            b"\xff\xfe",
            b"null",
            b"{\"version\":1}",
            b"{\"version\":1,\"id\":\"one\",\"body\":{}}",
        ] {
            let mut decoder = Decoder::new(1024);
            decoder.extend(&frame_of(bad));
            decoder.extend(&encode(&Envelope::new(2, Request::Status), 1024).unwrap());
            assert!(matches!(decoder.next::<Request>(), Err(WireError::Malformed(_))), "{bad:?}");
            assert_eq!(decoder.next().unwrap(), Some(Envelope::new(2, Request::Status)), "{bad:?}");
        }
    }

    #[test]
    fn of_a_message_whose_body_is_not_known_the_number_is() {
        for (body, said) in
            [("\"dance\"", "unknown variant `dance`"), ("{\"scale\":{}}", "missing field `count`"), ("7", "")]
        {
            let mut decoder = Decoder::new(1024);
            decoder.extend(&frame_of(format!("{{\"version\":1,\"id\":5,\"body\":{body}}}").as_bytes()));
            decoder.extend(&encode(&Envelope::new(6, Request::Status), 1024).unwrap());
            match decoder.next::<Request>() {
                Err(WireError::Unknown { id: 5, reason }) if reason.contains(said) => {
                    assert!(!reason.contains("expected one of"), "{reason}");
                }
                other => panic!("{body}: {other:?}"),
            }
            assert_eq!(decoder.next().unwrap(), Some(Envelope::new(6, Request::Status)));
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_stack_overflow() {
        let mut decoder = Decoder::new(limits::MAX_FRAME);
        decoder.extend(&frame_of(&b"[".repeat(1 << 20)));
        assert!(matches!(decoder.next::<Request>(), Err(WireError::Malformed(_))));
    }

    #[test]
    fn random_bytes_never_panic_and_never_grow_the_decoder() {
        // A fixed generator (xorshift), so that a failure can be repeated.
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let valid = encode(&Envelope::new(3, Order::Stop { deadline_ms: 5 }), 256).unwrap();
        for _ in 0..5_000 {
            let mut decoder = Decoder::new(256);
            let mut bytes = valid.repeat(2);
            for _ in 0..=random() % 4 {
                let at = (random() % bytes.len() as u64) as usize;
                bytes[at] = random() as u8;
            }
            let piece = 1 + (random() % 64) as usize;
            'stream: for part in bytes.chunks(piece) {
                decoder.extend(part);
                loop {
                    match decoder.next::<Order>() {
                        Ok(None) => break,
                        Ok(Some(_)) => {}
                        Err(
                            WireError::Malformed(_) | WireError::Unknown { .. } | WireError::Version { .. },
                        ) => {}
                        Err(WireError::TooLarge { .. }) => break 'stream,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            assert!(decoder.buffer.len() <= LENGTH_SIZE + 256 + piece);
        }
    }

    #[test]
    fn the_blocking_form_reads_what_it_wrote_and_tells_a_clean_end_from_a_cut() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &Envelope::new(1, Request::Status), 1024).unwrap();
        write_message(&mut bytes, &Envelope::new(2, Request::Workers), 1024).unwrap();

        let mut decoder = Decoder::new(1024);
        let mut reader = &bytes[..];
        assert_eq!(read_message(&mut reader, &mut decoder).unwrap(), Some(Envelope::new(1, Request::Status)));
        assert_eq!(
            read_message(&mut reader, &mut decoder).unwrap(),
            Some(Envelope::new(2, Request::Workers))
        );
        assert_eq!(read_message::<Request>(&mut reader, &mut decoder).unwrap(), None);

        let mut decoder = Decoder::new(1024);
        let mut reader = &bytes[..9];
        let cut = read_message::<Request>(&mut reader, &mut decoder);
        assert!(matches!(cut, Err(WireError::Truncated { have: 9 })), "{cut:?}");
    }

    /// Whatever it says.
    #[derive(Deserialize)]
    struct Anything(#[allow(dead_code, reason = "it is only read")] serde_json::Value);

    impl Message for Anything {
        const VERSION: u32 = 1;
        const VOCABULARY: &'static str = "tests";
    }

    #[test]
    fn only_a_marked_frame_may_be_large() {
        let large = |body: &str| {
            let text =
                format!("{{\"version\":1,\"id\":1,\"body\":{{\"{body}\":\"{}\"}}}}", "x".repeat(5_000));
            [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
        };
        for (body, max, taken) in
            [("load_state", 9_000, true), ("apply", 9_000, false), ("load_state", 5_000, false)]
        {
            let mut decoder = Decoder::new(1_000).or_large(max, "\"load_state\"");
            let mut outcome = Ok(None);
            for piece in large(body).chunks(7) {
                decoder.extend(piece);
                outcome = decoder.next::<Anything>();
                if !matches!(outcome, Ok(None)) {
                    break;
                }
            }
            assert_eq!(outcome.is_ok_and(|it| it.is_some()), taken, "{body} {max}");
        }
    }
}
