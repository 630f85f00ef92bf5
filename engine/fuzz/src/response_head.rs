//! Response heads: what is taken of a backend, and what a client gets of it.

use kakehi_engine::{
    h1::{
        AddedFields, HeadLimits, HeadProgress, OutConnection, OutFraming, ResponseBody, ResponseDefect,
        ResponseHead, ResponsePlan, StrictTransport,
    },
    http::{Method, Scratch, Version},
};

use crate::pieces::Input;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 64, target: 0 };
/// Of heads that kakehi wrote itself, which are longer than what came.
const AMPLE: HeadLimits = HeadLimits { bytes: 65_536, fields: 128, target: 0 };

pub(crate) fn check(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    let method = match (input.option(0), input.option(1)) {
        (false, false) => Method::Get,
        (true, false) => Method::Head,
        (false, true) => Method::Post,
        (true, true) => Method::Options,
    };
    let whole = parse(input.bytes, method, &mut HeadProgress::default(), &LIMITS, |head| head.len);
    let mut progress = HeadProgress::default();
    let mut pieces = Ok(None);
    for prefix in input.prefixes() {
        pieces = parse(prefix, method, &mut progress, &LIMITS, |head| head.len);
        if pieces != Ok(None) {
            break;
        }
    }
    // A refusal may wait for more bytes, but never turns into something else.
    match (&whole, &pieces) {
        (Err(_), Err(_) | Ok(None)) => {}
        _ => assert_eq!(whole, pieces, "in pieces"),
    }
    if let Ok(Some(length)) = whole {
        assert!(length <= input.bytes.len());
        check_forwarded(&input, method, &input.bytes[..length]);
    }
}

/// Parses `bytes` and shows the head to `look`. `None` = incomplete.
fn parse<T>(
    bytes: &[u8],
    method: Method,
    progress: &mut HeadProgress,
    limits: &HeadLimits,
    look: impl FnOnce(&ResponseHead<'_>) -> T,
) -> Result<Option<T>, ResponseDefect> {
    let mut scratch = Scratch::new();
    Ok(ResponseHead::parse(bytes, method, progress, limits, &mut scratch)?.map(|head| look(&head)))
}

/// What a client gets of the head `bytes` is one head, and says to it what the plan says to us.
fn check_forwarded(input: &Input<'_>, method: Method, bytes: &[u8]) {
    let version = if input.option(2) { Version::Http10 } else { Version::Http11 };
    let keep_alive = input.option(3);
    let transport = input
        .option(4)
        .then(|| StrictTransport { value: "max-age=31536000".to_owned(), replaces: input.option(5) });
    let Ok(Some((status, plan, out))) = parse(bytes, method, &mut HeadProgress::default(), &LIMITS, |head| {
        let plan = ResponsePlan::new(head, method, version, keep_alive);
        let mut out = Vec::new();
        let added = AddedFields { transport: transport.as_ref(), ..AddedFields::default() };
        head.write_forwarded(&plan, &added, &mut out);
        (head.status, plan, out)
    }) else {
        panic!("a head is taken, and without what follows it is not");
    };
    let again = parse(&out, method, &mut HeadProgress::default(), &AMPLE, |head| {
        assert_eq!(head.len, out.len(), "more than one head: {}", out.escape_ascii());
        assert_eq!((head.status, head.version), (status, Version::Http11));
        let body = match plan.framing {
            OutFraming::None => ResponseBody::None,
            OutFraming::Length(length) => ResponseBody::Length(length),
            OutFraming::Chunked => ResponseBody::Chunked,
            OutFraming::UntilClose => ResponseBody::UntilClose,
        };
        assert_eq!(head.body, body, "{plan:?}: {}", out.escape_ascii());
        let goes_on = plan.connection != OutConnection::Close;
        assert_eq!(head.keep_alive, goes_on, "{plan:?}: {}", out.escape_ascii());
        let count = |name: &str| head.fields().filter(|(it, _)| it.eq_ignore_ascii_case(name)).count();
        assert!(count("content-length") + count("transfer-encoding") <= 1);
        if transport.as_ref().is_some_and(|transport| transport.replaces) {
            assert_eq!(count("strict-transport-security"), 1);
        }
    });
    if !matches!(again, Ok(Some(()))) {
        panic!("what is forwarded is no head, but {again:?}: {}", out.escape_ascii());
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        (0x08, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        (0x18, "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\nStrict-Transport-Security: max-age=1\r\n\r\n"),
        (0x38, "HTTP/1.1 200\r\nContent-Type: text/plain\r\n\r\nuntil the end"),
        (0x09, "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nConnection: X-A, close\r\nX-A: b\r\n\r\n"),
        (0x00, "HTTP/1.0 304 Not Modified\r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n"),
        (0x08, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        (0x0c, "HTTP/1.1 204 No Content\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\n\r\n"),
        (0x08, "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
        (0x08, "HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: TLS/1.3\r\n\r\n"),
    ]
    .map(|(options, text)| Input::seed(options, text.as_bytes()))
    .to_vec()
}
