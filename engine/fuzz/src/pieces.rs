//! Inputs of which the first bytes say how the rest is read and in which pieces it arrives.

/// An input, taken apart.
pub(crate) struct Input<'a> {
    /// Options of the target, a bit each.
    pub(crate) options: u16,
    /// Lengths of the first pieces; the last piece is what is left.
    lengths: &'a [u8],
    /// What arrives.
    pub(crate) bytes: &'a [u8],
}

/// Bytes of options and lengths.
const HEADER: usize = 5;

impl<'a> Input<'a> {
    /// `None` if there is not enough.
    pub(crate) fn of(data: &'a [u8]) -> Option<Input<'a>> {
        let (header, bytes) = data.split_at_checked(HEADER)?;
        Some(Input { options: u16::from_le_bytes([header[0], header[1]]), lengths: &header[2..], bytes })
    }

    /// An input with these options that arrives in pieces of 1, 20 and 60 bytes and the rest.
    pub(crate) fn seed(options: u16, bytes: &[u8]) -> Vec<u8> {
        let mut data = options.to_le_bytes().to_vec();
        data.extend_from_slice(&[1, 20, 60]);
        data.extend_from_slice(bytes);
        data
    }

    pub(crate) fn option(&self, bit: u32) -> bool {
        self.options & 1 << bit != 0
    }

    /// The pieces, none of which is lost. If all lengths are 0, every byte is one.
    pub(crate) fn pieces(&self) -> Vec<&'a [u8]> {
        if self.lengths.iter().all(|length| *length == 0) {
            return self.bytes.chunks(1).collect();
        }
        let mut rest = self.bytes;
        let mut pieces = Vec::new();
        for length in self.lengths {
            let (piece, behind) = rest.split_at(usize::from(*length).min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        pieces
    }

    /// The input as it is after each piece.
    pub(crate) fn prefixes(&self) -> Vec<&'a [u8]> {
        let mut length = 0;
        let grown = |piece: &[u8]| {
            length += piece.len();
            &self.bytes[..length]
        };
        self.pieces().into_iter().map(grown).collect()
    }
}
