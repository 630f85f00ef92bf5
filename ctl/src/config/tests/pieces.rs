//! A file that is taken apart is read as if it were not, also where it is spoilt.

use std::path::Path;

use crate::{
    config::{Extent, Fault, FaultStep, FaultTable, Loaded, Pieces, load_judged, parse_pieces},
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
    let read =
        parse_pieces(pieces, text, "k.toml", (Path::new("/"), Extent::Whole), Pages::default(), &|_| {
            Vec::new()
        });
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

#[test]
fn the_place_of_a_fault_is_found_whatever_form_the_file_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("k.toml");
    let frontend =
        |address: &str, host: &str| format!("{{ address = \"127.0.0.1:{address}\", hostname = \"{host}\" }}");
    // Frontends of a listener of `udp` are left out.
    let list = format!("[{}, {}, {}]", frontend("2", "a"), frontend("1", "b"), frontend("1", "c"));
    let other_list = format!("[{}]", frontend("1", "z"));
    let listeners = "listeners = [{ address = \"127.0.0.1:1\", protocol = \"http\" }, { address = \"127.0.0.1:2\", protocol = \"udp\" }]\n";
    let fault = |table: FaultTable, path: &[FaultStep]| Fault {
        table,
        path: path.to_vec(),
        reason: "no\ngood".to_owned(),
        beside: Some(("y".to_owned(), 0)),
    };
    let faults = [
        fault(FaultTable::Frontend("x".to_owned(), 1), &[FaultStep::Key("hostname")]),
        fault(FaultTable::Cluster("x".to_owned()), &[FaultStep::Key("protocol")]),
        fault(FaultTable::Listener("127.0.0.1:1".parse().unwrap()), &[FaultStep::Key("address")]),
        fault(
            FaultTable::Frontend("x".to_owned(), 0),
            &[FaultStep::Key("header_predicates"), FaultStep::Item(3)],
        ),
    ];
    for clusters in [
        format!(
            "[clusters.x]\nprotocol = \"http\"\nfrontends = {list}\n[clusters.y]\nprotocol = \"http\"\nfrontends = {other_list}\n"
        ),
        format!(
            "[clusters]\nx = {{ protocol = \"http\", frontends = {list} }}\ny = {{ protocol = \"http\", frontends = {other_list} }}\n"
        ),
        format!(
            "clusters = {{ x = {{ protocol = \"http\", frontends = {list} }}, y = {{ protocol = \"http\", frontends = {other_list} }} }}\n"
        ),
    ] {
        let text = format!("{listeners}{clusters}");
        std::fs::write(&path, &text).unwrap();
        let errors = load_judged(&path, &|_| faults.to_vec()).unwrap_err();
        let line_of = |offset: usize| text[..offset].matches('\n').count() + 1;
        let place = |offset: usize| {
            let line = line_of(offset);
            format!("{line}:{}", offset - text[..offset].rfind('\n').map_or(0, |it| it + 1) + 1)
        };
        let x = text.find(&list).unwrap();
        let protocol = text[text.find("x]").or(text.find("x = {")).unwrap()..].find("\"http\"").unwrap();
        let protocol = protocol + text.find("x]").or(text.find("x = {")).unwrap();
        let wanted = [
            place(text.find("\"127").unwrap()),
            place(protocol),
            place(x + list.find("{ address = \"127.0.0.1:1").unwrap()),
            place(x + list.rfind("\"c\"").unwrap()),
        ];
        let other = line_of(text.rfind(&other_list).unwrap());
        let mut found: Vec<String> = errors.lines().collect();
        found.sort_by_key(|line| wanted.iter().position(|it| line.contains(&format!(":{it}: "))));
        for (line, place) in found.iter().zip(&wanted) {
            assert!(
                line.ends_with(&format!(":{place}: no\u{fffd}good; the other one stands in line {other}")),
                "{found:#?} {place}"
            );
        }
        assert_eq!(found.len(), 4);
    }
}
