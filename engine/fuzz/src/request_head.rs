//! Request heads: what is taken of a client, and what a backend gets of it.

use kakehi_ctl::state::Forwarding;
use kakehi_engine::{
    h1::{ClientCertificate, ForwardedBy, HeadLimits, HeadProgress, RequestHead, Rewritten},
    http::{Reason, Scratch, Version},
};

use crate::pieces::Input;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 64, target: 2048 };
/// Of heads that kakehi wrote itself, which are longer than what came.
const AMPLE: HeadLimits = HeadLimits { bytes: 65_536, fields: 128, target: 65_536 };

pub(crate) fn check(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    let whole = parse(input.bytes, &mut HeadProgress::default(), &LIMITS, |head| head.len);
    let mut progress = HeadProgress::default();
    let mut pieces = Ok(None);
    for prefix in input.prefixes() {
        pieces = parse(prefix, &mut progress, &LIMITS, |head| head.len);
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
        check_forwarded(&input, &input.bytes[..length]);
    }
}

/// Parses `bytes` and shows the head to `look`. `None` = incomplete.
fn parse<T>(
    bytes: &[u8],
    progress: &mut HeadProgress,
    limits: &HeadLimits,
    look: impl FnOnce(&RequestHead<'_>) -> T,
) -> Result<Option<T>, Reason> {
    let mut scratch = Scratch::new();
    Ok(RequestHead::parse(bytes, progress, limits, &mut scratch)?.map(|head| look(&head)))
}

/// What a head means to a proxy.
#[derive(Debug, PartialEq)]
struct Meaning {
    method: String,
    target: String,
    host: String,
    body: String,
    expect_continue: bool,
    upgrade: bool,
}

impl Meaning {
    fn of(head: &RequestHead<'_>) -> Meaning {
        assert!(head.target.starts_with(head.path()) && head.host.starts_with(head.host_name()));
        Meaning {
            method: head.method_text.to_owned(),
            target: head.target.to_owned(),
            host: head.host.to_owned(),
            body: format!("{:?}", head.body),
            expect_continue: head.expect_continue,
            upgrade: head.upgrade,
        }
    }
}

/// What a backend gets of the head `bytes` is one head, with the same meaning, and stays as it is when it is forwarded again.
fn check_forwarded(input: &Input<'_>, bytes: &[u8]) {
    let switches = Forwarding {
        x_forwarded_for: input.option(0),
        x_forwarded_proto: input.option(1),
        x_forwarded_port: input.option(2),
        x_forwarded_host: input.option(3),
        forwarded: input.option(4),
        via: input.option(5),
        x_request_id: input.option(6),
        x_real_ip: input.option(7),
        elide_x_real_ip: input.option(8),
        underscores: input.option(12),
        id_field: if input.option(13) { "Sozu-Id".to_owned() } else { String::new() },
        trusted_peers: Vec::new(),
        ..Forwarding::default()
    };
    let client =
        input.option(9).then_some(ClientCertificate { subject: "CN=a", fingerprint: "0123456789abcdef" });
    let by = ForwardedBy {
        peer_ip: if input.option(10) { "2001:db8::1" } else { "192.0.2.1" },
        local_port: "443",
        proto: "https",
        trusted: input.option(11),
        switches: &switches,
        request_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        session_cookie: None,
        rewritten: Rewritten::default(),
        client,
    };
    let Ok(Some((meaning, forwarded))) = parse(bytes, &mut HeadProgress::default(), &LIMITS, |head| {
        let mut out = Vec::new();
        head.write_forwarded(&by, &mut out);
        // RFC 9112 section 3.2: an HTTP/1.0 request may have no authority, and then the field is empty.
        let nameless = head.host.is_empty() && head.version == Version::Http10;
        ((!nameless).then(|| Meaning::of(head)), out)
    }) else {
        panic!("a head is taken, and without what follows it is not");
    };
    let Some(meaning) = meaning else { return };
    let again = forward_again(&forwarded, |head| {
        assert_eq!(head.version, Version::Http11);
        assert_eq!(meaning, Meaning::of(head), "in {}", forwarded.escape_ascii());
        let count = |name: &str| head.fields().filter(|(it, _)| it.eq_ignore_ascii_case(name)).count();
        assert_eq!(count("host"), 1);
        assert!(count("content-length") + count("transfer-encoding") <= 1);
        if !switches.id_field.is_empty() {
            assert_eq!(count(&switches.id_field), 1, "in {}", forwarded.escape_ascii());
        }
        if !by.trusted {
            for (name, switch) in [
                ("x-forwarded-for", switches.x_forwarded_for),
                ("x-forwarded-proto", switches.x_forwarded_proto),
                ("x-forwarded-port", switches.x_forwarded_port),
                ("x-forwarded-host", switches.x_forwarded_host),
                ("forwarded", switches.forwarded),
                ("via", switches.via),
                ("x-request-id", switches.x_request_id),
                ("x-real-ip", switches.x_real_ip),
                ("x-client-cert-subject", client.is_some()),
            ] {
                assert_eq!(count(name), usize::from(switch), "{name} in {}", forwarded.escape_ascii());
            }
        }
    });
    let third = forward_again(&again, |_| {});
    assert_eq!(without_max_forwards(&again), without_max_forwards(&third), "a head changes each time");
}

/// The lines of a head but the one that counts down.
fn without_max_forwards(head: &[u8]) -> String {
    let lines = head.split_inclusive(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.starts_with(b"Max-Forwards: "))
        .map(|line| line.escape_ascii().to_string())
        .collect()
}

/// What the next kakehi would send on of a head that kakehi has written, if it trusts that and adds nothing.
fn forward_again(bytes: &[u8], look: impl FnOnce(&RequestHead<'_>)) -> Vec<u8> {
    let switches = Forwarding {
        x_forwarded_for: false,
        x_forwarded_proto: false,
        x_forwarded_port: false,
        x_forwarded_host: false,
        forwarded: false,
        via: false,
        x_request_id: false,
        id_field: String::new(),
        ..Forwarding::default()
    };
    let by = ForwardedBy {
        peer_ip: "192.0.2.1",
        local_port: "80",
        proto: "http",
        trusted: true,
        switches: &switches,
        request_id: "",
        session_cookie: None,
        rewritten: Rewritten::default(),
        client: None,
    };
    let read = parse(bytes, &mut HeadProgress::default(), &AMPLE, |head| {
        assert_eq!(head.len, bytes.len(), "more than one head: {}", bytes.escape_ascii());
        look(head);
        let mut out = Vec::new();
        head.write_forwarded(&by, &mut out);
        out
    });
    match read {
        Ok(Some(out)) => out,
        other => panic!("what is forwarded is no head, but {other:?}: {}", bytes.escape_ascii()),
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        (0x00f, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (0x87f, "\r\nGET /a/b?c HTTP/1.1\r\nHost: a.example:8080\r\nX-Y:\t z \r\nEmpty:\r\n\r\nrest"),
        (0x1ff, "POST http://b.example:81/x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello"),
        (0x200, "OPTIONS * HTTP/1.1\r\nHost: [2001:db8::1]:80\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (0x400, "GET http://a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
        (0x800, "PUT /u HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"),
        (
            0xfff,
            "GET /s HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, TE, X-Hop\r\nTE: trailers\r\nX-Hop: 1\r\n\
             Upgrade: websocket, h2c\r\n\r\n",
        ),
        (
            0x0ff,
            "GET /f HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nX_Forwarded_For: 5\r\nForwarded: for=x\r\n\
             Via: 1.1 x\r\nX-Real-IP: 9\r\nX-Client-Cert-Subject: CN=z\r\nX-Request-Id: r\r\n\r\n",
        ),
        (0x000, "DELETE /%00%2e%2e/ HTTP/1.1\r\nhost: a\r\nContent-Length: 0\r\n\r\n"),
        (0x000, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ]
    .map(|(options, text)| Input::seed(options, text.as_bytes()))
    .to_vec()
}
