//! What bodies consist of, so that every received piece can be checked for its place in the body.
//!
//! Byte `i` of a body is `i % 251`. The period is a prime: a piece that was lost, doubled or moved by a
//! power of two does not fit any more.

/// Largest body that the backend sends (bytes).
pub const MAX_BODY: usize = 16 << 20;

const PERIOD: usize = 251;
/// Bytes compared at either end of each received piece. All of a big body would cost the client's core as
/// much as receiving it; a shift shows at the ends.
const COMPARED: usize = 64;

const TEMPLATE: [u8; PERIOD + COMPARED] = {
    let mut template = [0; PERIOD + COMPARED];
    let mut i = 0;
    while i < template.len() {
        template[i] = (i % PERIOD) as u8;
        i += 1;
    }
    template
};

/// The first `length` bytes of a body.
#[must_use]
pub fn body(length: usize) -> Vec<u8> {
    TEMPLATE[..PERIOD].iter().copied().cycle().take(length).collect()
}

/// Whether `piece` is what stands at `offset` of a body, judged by its first and last bytes.
#[must_use]
pub fn fits(offset: u64, piece: &[u8]) -> bool {
    let compared = piece.len().min(COMPARED);
    let tail_at = piece.len() - compared;
    stands_at(offset, &piece[..compared]) && stands_at(offset + tail_at as u64, &piece[tail_at..])
}

fn stands_at(offset: u64, few: &[u8]) -> bool {
    let start = (offset % PERIOD as u64) as usize;
    few == &TEMPLATE[start..start + few.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_a_body_fits_at_its_own_place() {
        let whole = body(5_000);
        for start in [0, 1, 250, 251, 252, 4_096] {
            for length in [0, 1, 64, 65, 700] {
                assert!(fits(start as u64, &whole[start..start + length]), "{start}+{length}");
            }
        }
    }

    #[test]
    fn a_piece_that_moved_does_not_fit() {
        let whole = body(10_000);
        for shift in [1, 2, 16, 512, 4_096, 8_192] {
            assert!(!fits(0, &whole[shift..shift + 16]), "{shift}");
        }
    }
}
