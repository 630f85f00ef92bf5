//! A file that is taken apart is read as if it were not, also where it is spoilt.

use std::path::Path;

use crate::{
    config::{Extent, Loaded, Pieces, parse_pieces},
    state::Pages,
};

/// Pseudo-random numbers (xorshift), the same at each run.
struct Numbers(u64);

impl Numbers {
    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// What is read, or the lines of the first error.
fn read(pieces: &Pieces<'_>, text: &str) -> Result<Loaded, Vec<String>> {
    let read = parse_pieces(pieces, text, "k.toml", Path::new("/"), Extent::Whole, Pages::default());
    read.map_err(|errors| errors.lines().collect())
}

/// Lines of files; any row of them is a file to try.
const LINES: &[&str] = &[
    "[clusters]",
    "[clusters] # all",
    "[clusters.a]",
    "  [clusters.a]",
    "[clusters.'b c']",
    "[ clusters . \"b c\" ]",
    "[[clusters.a.frontends]]",
    "[[clusters.a.backends]]",
    "[[clusters.c.backends]]",
    "[clusters.a.health_check]",
    "[[clusters]]",
    "[[listeners]]",
    "[metrics]",
    "clusters = {}",
    "clusters.d.protocol = \"http\"",
    "d.protocol = \"http\"",
    "d = { protocol = \"http\" }",
    "\"b c\" = { protocol = \"http\", backends = [",
    "{ address = \"127.0.0.1:1\" },",
    "]}",
    "]",
    "protocol = \"http\"",
    "protocol = \"tcp\"",
    "address = \"127.0.0.1:8080\"",
    "hostname = \"a\"",
    "hostname = \"\"\"",
    "\"\"\"",
    "backends = []",
    "frontends = [{ address = \"127.0.0.1:8080\", hostname = \"x\" }]",
    "worker_count = 1",
    "weight = 256",
    "= 1",
    "[clusters.a",
    "[clusters.]",
    "[clusters.\"\\q\"]",
    "# [clusters.e]",
    "",
];

#[test]
fn a_file_in_pieces_is_read_as_the_whole_file_is() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut right, mut wrong) = (0, 0);
    for _ in 0..4_000 {
        let count = 1 + numbers.below(12);
        let text: String = (0..count).flat_map(|_| [LINES[numbers.below(LINES.len())], "\n"]).collect();
        let apart = read(&Pieces::of(&text), &text);
        let whole = read(&Pieces::whole(&text), &text);
        match (&apart, &whole) {
            (Ok(apart), Ok(whole)) => {
                right += 1;
                assert_eq!(apart, whole, "{text}");
            }
            (Err(apart), Err(whole)) => {
                wrong += 1;
                // Where something is no TOML, the one may look further than the other.
                if !apart.iter().chain(whole).any(|it| it.contains("not TOML")) {
                    assert_eq!(apart, whole, "{text}");
                }
            }
            _ => panic!("apart {apart:#?}, whole {whole:#?}:\n{text}"),
        }
    }
    assert!(right > 50 && wrong > 500, "{right} {wrong}");
}
