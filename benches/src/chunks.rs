//! Bodies in chunks (RFC 9112 section 7.1), as the load sends them and as whatever proxy passes them on.

use crate::payload;

/// Data of each chunk that is sent (bytes).
const CHUNK: usize = 16 << 10;

/// The body of `length` bytes in chunks.
#[must_use]
pub fn body(length: usize) -> Vec<u8> {
    let data = payload::body(length);
    let mut body = Vec::with_capacity(length + length / 1_000 + 32);
    for chunk in data.chunks(CHUNK) {
        body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        body.extend_from_slice(chunk);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

/// Takes a body apart as it comes.
#[derive(Clone, Debug)]
pub struct Chunks {
    at: At,
    /// Of the chunk, as far as its line has come; then what is left of it.
    length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Size,
    /// Behind the size, before the end of its line.
    Extension,
    Data,
    /// Before the end of the line behind the data.
    DataEnd,
    /// In the trailer section, at the beginning of a line.
    Trailer,
    /// In a line of it.
    Field,
    End,
}

/// It is no body in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Default for Chunks {
    fn default() -> Self {
        Chunks { at: At::Size, length: 0 }
    }
}

impl Chunks {
    /// Takes bytes up to the end of the body, gives its data to `data`, and says how many they were.
    ///
    /// # Errors
    /// What `data` says, or when it is no such body.
    pub fn take<E: From<Malformed>>(
        &mut self,
        bytes: &[u8],
        mut data: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut at = 0;
        while at < bytes.len() && self.at != At::End {
            let byte = bytes[at];
            if self.at == At::Data {
                let piece = &bytes[at..];
                let piece = &piece[..piece.len().min(usize::try_from(self.length).unwrap_or(usize::MAX))];
                data(piece)?;
                self.length -= piece.len() as u64;
                at += piece.len();
                if self.length == 0 {
                    self.at = At::DataEnd;
                }
                continue;
            }
            at += 1;
            self.at = match (self.at, byte) {
                (At::Size, b';' | b' ') => At::Extension,
                (At::Size | At::Extension, b'\n') if self.length == 0 => At::Trailer,
                (At::Size | At::Extension, b'\n') => At::Data,
                (At::Size, b'\r') => At::Extension,
                (At::Size, digit) => {
                    let digit = char::from(digit).to_digit(16).ok_or(Malformed)?;
                    let shifted = self.length.checked_mul(16).ok_or(Malformed)?;
                    self.length = shifted + u64::from(digit);
                    At::Size
                }
                (At::DataEnd, b'\n') => At::Size,
                (At::DataEnd, b'\r') => At::DataEnd,
                (At::DataEnd, _) => return Err(Malformed.into()),
                (At::Trailer | At::Field, b'\n') if self.at == At::Trailer => At::End,
                (At::Trailer, b'\r') => At::Trailer,
                (At::Field, b'\n') => At::Trailer,
                (At::Trailer | At::Field, _) => At::Field,
                (other, _) => other,
            };
        }
        Ok(at)
    }

    /// Whether the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.at == At::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &mut Chunks, bytes: &[u8], into: &mut Vec<u8>) -> Result<usize, Malformed> {
        chunks.take(bytes, |data| {
            into.extend_from_slice(data);
            Ok(())
        })
    }

    #[test]
    fn a_body_is_read_as_it_was_however_it_is_cut() {
        let sent = body(300);
        let after = [sent.as_slice(), b"HTTP"].concat();
        for cut in 0..sent.len() {
            let (mut chunks, mut received) = (Chunks::default(), Vec::new());
            assert_eq!(read(&mut chunks, &after[..cut], &mut received), Ok(cut));
            assert!(!chunks.is_done(), "{cut}");
            assert_eq!(read(&mut chunks, &after[cut..], &mut received), Ok(sent.len() - cut));
            assert!(chunks.is_done(), "{cut}");
            assert_eq!(received, payload::body(300), "{cut}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_passed_over_and_rubbish_is_found() {
        let (mut chunks, mut received) = (Chunks::default(), Vec::new());
        let text = b"3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\n";
        assert_eq!(read(&mut chunks, text, &mut received), Ok(text.len()));
        assert!(chunks.is_done());
        assert_eq!(received, b"abc");
        for wrong in [&b"x\r\n"[..], b"1\r\nab", b"fffffffffffffffff\r\n"] {
            assert_eq!(read(&mut Chunks::default(), wrong, &mut Vec::new()), Err(Malformed));
        }
    }
}
