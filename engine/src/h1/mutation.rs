//! For tests: spoils messages in ways that parsers have been fooled by, the same ways at each run.

/// A small generator of pseudo-random numbers (xorshift).
pub(super) struct Mutation(u64);

impl Mutation {
    pub(super) fn new() -> Mutation {
        Mutation(0x9e37_79b9_7f4a_7c15)
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// `seed` with one to four bytes replaced, added, lost or repeated elsewhere.
    pub(super) fn spoil(&mut self, seed: &str) -> Vec<u8> {
        const BYTES: &[u8] = b"\r\n\t :,;/?#@[]()\"\\*_-0159aAxX\0\x7f\x80\xff";
        let mut bytes = seed.as_bytes().to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] = BYTES[self.below(BYTES.len())],
                1 => bytes.insert(at, BYTES[self.below(BYTES.len())]),
                2 => drop(bytes.remove(at)),
                _ => {
                    let to = (at + self.below(24)).min(bytes.len());
                    let piece = bytes[at..to].to_vec();
                    let into = self.below(bytes.len());
                    bytes.splice(into..into, piece);
                }
            }
        }
        bytes
    }
}
