//! How many instructions the text of HTTP costs: counted, not timed, so that a busy machine changes nothing.
//!
//! `instructions NAME COUNT` does one thing so many times; `instructions` alone names all things. `scripts/instructions` runs it
//! under callgrind with two counts, whose difference knows nothing of the start of the program.

use std::hint::black_box;
use std::process::ExitCode;

use kakehi_benches::heads::{self, BROWSER_REQUEST, RESPONSE, SHORT_REQUEST, request, response};
use kakehi_ctl::state::{Forwarding, PathRule};
use kakehi_engine::h1::{AddedFields, ChunkedBody, Emit, ResponsePlan};
use kakehi_engine::http::{Method, Scratch, Version};
use kakehi_engine::route::{RouteTable, Rule};

/// What is done so many times.
type Repeated = fn(u32);

/// What is counted, by name.
const ALL: [(&str, Repeated); 9] = [
    ("request_short_read", |count| read_requests(SHORT_REQUEST, count)),
    ("request_browser_read", |count| read_requests(BROWSER_REQUEST, count)),
    ("request_short_write", |count| write_requests(SHORT_REQUEST, count)),
    ("request_browser_write", |count| write_requests(BROWSER_REQUEST, count)),
    ("response_read", read_responses),
    ("response_write", write_responses),
    ("route", |count| find_routes("/api/v2/users/17", count)),
    ("route_normalised", |count| find_routes("/api/%76%32/../v2/users", count)),
    ("chunks_of_4_kib", read_chunks),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (Some(name), Some(count)) = (arguments.first(), arguments.get(1).and_then(|text| text.parse().ok()))
    else {
        ALL.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    };
    let Some((_, what)) = ALL.iter().find(|(known, _)| known == name) else {
        eprintln!("instructions: nothing is called {name}");
        return ExitCode::FAILURE;
    };
    what(count);
    ExitCode::SUCCESS
}

fn read_requests(text: &str, count: u32) {
    let mut scratch = Scratch::new();
    for _ in 0..count {
        assert!(request(black_box(text.as_bytes()), &mut scratch).is_some());
    }
}

#[expect(clippy::expect_used, reason = "the heads are valid")]
fn write_requests(text: &str, count: u32) {
    let (forwarding, mut scratch, mut out) =
        (Forwarding::default(), Scratch::new(), Vec::with_capacity(4_096));
    let by = heads::by(&forwarding);
    let head = request(text.as_bytes(), &mut scratch).expect("a valid head");
    for _ in 0..count {
        out.clear();
        black_box(&head).write_forwarded(&by, &mut out);
        black_box(&out);
    }
}

fn read_responses(count: u32) {
    let mut scratch = Scratch::new();
    for _ in 0..count {
        assert!(response(black_box(RESPONSE.as_bytes()), &mut scratch).is_some());
    }
}

#[expect(clippy::expect_used, reason = "the heads are valid")]
fn write_responses(count: u32) {
    let (mut scratch, mut out) = (Scratch::new(), Vec::with_capacity(4_096));
    let head = response(RESPONSE.as_bytes(), &mut scratch).expect("a valid head");
    for _ in 0..count {
        out.clear();
        let plan = ResponsePlan::new(black_box(&head), Method::Get, Version::Http11, true);
        head.write_forwarded(&plan, &AddedFields::default(), &mut out);
        black_box(&out);
    }
}

/// Among a hundred hosts with two rules each.
#[expect(clippy::expect_used, reason = "the rules are valid")]
fn find_routes(path: &str, count: u32) {
    let rule = |host: u32, prefix: &str, target| {
        let path = PathRule::Prefix(prefix.to_owned());
        Rule::new(format!("site-{host}.example.org"), path, None, target)
    };
    let rules = (0..100).flat_map(|host| [rule(host, "/", 2 * host), rule(host, "/api/v2", 2 * host + 1)]);
    let table = RouteTable::compile(rules).expect("valid rules");
    for _ in 0..count {
        black_box(table.lookup(black_box("site-50.example.org"), black_box(path), "GET", &()));
    }
}

#[expect(clippy::expect_used, reason = "the chunks are valid")]
fn read_chunks(count: u32) {
    // They are passed on as they are, so that the input stays what it is.
    let (mut input, mut tail) = (heads::chunks(4_096), Vec::new());
    for _ in 0..count {
        tail.clear();
        let read = ChunkedBody::new(Emit::Chunked, 16).advance(black_box(&mut input), &mut tail);
        assert!(read.expect("valid chunks").done);
    }
}
