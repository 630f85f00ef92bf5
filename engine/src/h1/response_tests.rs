//! Tests of response heads.

use super::super::mutation::Mutation;
use super::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 32, target: 0 };

fn check<T>(
    input: &[u8],
    method: Method,
    look: impl Fn(ResponseHead<'_>) -> T,
) -> Result<Option<T>, ResponseDefect> {
    let mut scratch = Scratch::new();
    ResponseHead::parse(input, method, &mut HeadProgress::default(), &LIMITS, &mut scratch)
        .map(|head| head.map(look))
}

/// The head of a response to `method` as a client of `version` gets it.
fn forward(input: &str, method: Method, version: Version, keep_alive: bool) -> String {
    let forwarded = check(input.as_bytes(), method, |head| {
        let mut out = Vec::new();
        head.write_forwarded(
            &ResponsePlan::new(&head, method, version, keep_alive),
            &AddedFields::default(),
            &mut out,
        );
        String::from_utf8(out).unwrap()
    });
    forwarded.unwrap().unwrap()
}

fn to_http11(input: &str) -> String {
    forward(input, Method::Get, Version::Http11, true)
}

#[test]
fn the_id_of_the_request_takes_the_place_of_what_a_backend_says() {
    let input = "HTTP/1.1 200 OK\r\nsozu-ID: theirs\r\nA: b\r\nContent-Length: 0\r\n\r\n";
    let forwarded = check(input.as_bytes(), Method::Get, |head| {
        let mut out = Vec::new();
        let plan = ResponsePlan::new(&head, Method::Get, Version::Http11, true);
        let added = AddedFields { id: Some(("Sozu-Id", "ours")), ..AddedFields::default() };
        head.write_forwarded(&plan, &added, &mut out);
        String::from_utf8(out).unwrap()
    });
    let expected = "HTTP/1.1 200 OK\r\nA: b\r\nSozu-Id: ours\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(forwarded.unwrap().unwrap(), expected);
}

#[test]
fn the_end_of_a_body_follows_from_method_status_and_fields() {
    for (method, status, lines, body, keep_alive) in [
        (Method::Get, 200, "Content-Length: 5\r\n", ResponseBody::Length(5), true),
        (Method::Get, 200, "Transfer-Encoding: chunked\r\n", ResponseBody::Chunked, true),
        (Method::Get, 200, "", ResponseBody::UntilClose, false),
        (Method::Head, 200, "", ResponseBody::None, true),
        (Method::Head, 200, "Transfer-Encoding: chunked\r\n", ResponseBody::None, true),
        (Method::Get, 204, "", ResponseBody::None, true),
        (Method::Get, 304, "Content-Length: 5\r\n", ResponseBody::None, true),
        (Method::Get, 100, "", ResponseBody::None, true),
        (Method::Get, 101, "", ResponseBody::None, true),
        (Method::Get, 205, "Content-Length: 0\r\n", ResponseBody::Length(0), true),
        // What must have no body and announces one: nobody knows whether it comes.
        (Method::Get, 100, "Content-Length: 5\r\n", ResponseBody::None, false),
        (Method::Get, 103, "Transfer-Encoding: chunked\r\n", ResponseBody::None, false),
        (Method::Get, 204, "Content-Length: 5\r\n", ResponseBody::None, false),
        (Method::Get, 204, "Content-Length: 0\r\n", ResponseBody::None, true),
        (Method::Head, 204, "Transfer-Encoding: chunked\r\n", ResponseBody::None, false),
        (Method::Get, 304, "Transfer-Encoding: chunked\r\n", ResponseBody::None, false),
        (Method::Get, 205, "Content-Length: 5\r\n", ResponseBody::Length(0), false),
        (Method::Get, 205, "Transfer-Encoding: chunked\r\n", ResponseBody::Length(0), false),
        (Method::Get, 205, "", ResponseBody::Length(0), false),
        (Method::Get, 200, "Content-Length: 5\r\nConnection: close\r\n", ResponseBody::Length(5), false),
    ] {
        let input = format!("HTTP/1.1 {status} X\r\n{lines}\r\n");
        let read = check(input.as_bytes(), method, |head| (head.status, head.body, head.keep_alive));
        assert_eq!(read, Ok(Some((status, body, keep_alive))), "{method:?} {input:?}");
    }
    let old = |lines: &str| {
        check(
            format!("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n{lines}\r\n").as_bytes(),
            Method::Get,
            |head| head.keep_alive,
        )
    };
    assert_eq!((old(""), old("Connection: keep-alive\r\n")), (Ok(Some(false)), Ok(Some(true))));
}

#[test]
fn a_malformed_or_ambiguous_response_is_refused() {
    for input in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 204 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\n",
        "HTTP/1.1 200\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 600 OK\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 +20 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "http/1.1 200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "hello",
        "ICY 200 OK\r\n\r\n",
    ] {
        assert_eq!(
            check(input.as_bytes(), Method::Get, |_| ()).map_err(ResponseDefect::reason),
            Err(Reason::BackendBadResponse),
            "{input:?}"
        );
    }
    for input in [
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(5000)),
        format!("HTTP/1.1 200 {}", "K".repeat(5000)),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(33)),
    ] {
        let read = check(input.as_bytes(), Method::Get, |_| ());
        assert_eq!(read.map_err(ResponseDefect::reason), Err(Reason::BackendResponseHeadTooLarge));
    }
}

#[test]
fn what_is_wrong_with_a_response_is_told_apart() {
    for (input, defect) in [
        ("0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", ResponseDefect::NoStatusLine),
        ("HTTX", ResponseDefect::NoStatusLine),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", ResponseDefect::NoStatusLine),
        ("HTTP/2.0 200 OK\r\n\r\n", ResponseDefect::StatusLine),
        ("HTTP/1.1 abc OK\r\n\r\n", ResponseDefect::StatusLine),
        ("HTTP/1.1 600 OK\r\n\r\n", ResponseDefect::Status),
        ("HTTP/1.1 200 OK\r\nX\r\n\r\n", ResponseDefect::Head(Reason::BadField)),
        ("HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n", ResponseDefect::Head(Reason::ObsoleteFold)),
        ("HTTP/1.1 200 OK\r\nX: y\n\r\n", ResponseDefect::Head(Reason::BareLineFeed)),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", ResponseDefect::Head(Reason::BadContentLength)),
    ] {
        assert_eq!(check(input.as_bytes(), Method::Get, |_| ()), Err(defect), "{input:?}");
    }
    // What may become a status line is waited for.
    for begin in ["H", "HTTP", "HTTP/", "HTTP/1.1 2"] {
        assert_eq!(check(begin.as_bytes(), Method::Get, |_| ()), Ok(None), "{begin:?}");
    }
}

#[test]
fn a_final_response_without_date_gets_one_and_no_other_does() {
    let dated = |input: &str| {
        check(input.as_bytes(), Method::Get, |head| {
            let mut out = Vec::new();
            let plan = ResponsePlan::new(&head, Method::Get, Version::Http11, true);
            let date = DateLine::at(784_111_777);
            let added = AddedFields { date: Some(&date), ..AddedFields::default() };
            head.write_forwarded(&plan, &added, &mut out);
            String::from_utf8(out).unwrap().contains("Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n")
        })
    };
    for (input, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", true),
        ("HTTP/1.1 304 N\r\n\r\n", true),
        ("HTTP/1.1 500 N\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\ndate: yesterday\r\nContent-Length: 1\r\n\r\n", false),
        ("HTTP/1.1 103 E\r\n\r\n", false),
        ("HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", false),
    ] {
        assert_eq!(dated(input), Ok(Some(expected)), "{input:?}");
    }
}

#[test]
fn a_401_that_authenticates_the_connection_is_known_however_it_says_so() {
    for (head, expected) in [
        ("401 U\r\nWWW-Authenticate: NTLM\r\n", true),
        ("401 U\r\nWWW-Authenticate: Basic realm=x\r\nwww-authenticate: Digest a=b, negotiate\r\n", true),
        ("401 U\r\nWWW-Authenticate: Basic realm=\"NTLM\"\r\n", false),
        ("200 O\r\nWWW-Authenticate: NTLM\r\n", false),
        ("401 U\r\nX: NTLM\r\n", false),
    ] {
        let input = format!("HTTP/1.1 {head}Content-Length: 0\r\n\r\n");
        let read = check(input.as_bytes(), Method::Get, |head| head.authenticates_connection);
        assert_eq!(read, Ok(Some(expected)), "{head}");
    }
}

#[test]
fn a_head_is_the_same_however_it_arrives() {
    let input = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello";
    let len = input.len() - 5;
    let mut scratch = Scratch::new();
    let mut bytewise = HeadProgress::default();
    for split in 0..len {
        let mut progress = HeadProgress::default();
        for progress in [&mut progress, &mut bytewise] {
            let head = ResponseHead::parse(&input[..split], Method::Get, progress, &LIMITS, &mut scratch);
            assert!(head.unwrap().is_none(), "{split}");
        }
        let head = ResponseHead::parse(input, Method::Get, &mut progress, &LIMITS, &mut scratch);
        assert_eq!(head.unwrap().unwrap().len, len);
    }
    let head = ResponseHead::parse(&input[..len], Method::Get, &mut bytewise, &LIMITS, &mut scratch);
    assert_eq!(head.unwrap().unwrap().len, len);
}

#[test]
fn end_to_end_fields_and_the_reason_phrase_are_passed_on_byte_for_byte() {
    let input = "HTTP/1.1 200 T\u{e9} \t ok\r\nserver: x\r\nSet-Cookie:a\r\nSet-Cookie:  b \r\nDate: d\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(to_http11(input), input);
    assert_eq!(
        to_http11("HTTP/1.0 200\r\nContent-Length: 1\r\n\r\n"),
        "HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\n"
    );
    assert_eq!(to_http11("HTTP/1.1 204 \r\n\r\n"), "HTTP/1.1 204 \r\n\r\n");
}

#[test]
fn fields_of_the_backend_connection_are_removed() {
    let input = "HTTP/1.1 200 OK\r\nConnection: close, X\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nX: y\r\nA: b\r\n\
                 Upgrade: h2,h2c\r\ncontent-length: 05\r\n\r\n";
    assert_eq!(to_http11(input), "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\n");
}

#[test]
fn the_client_can_always_tell_where_the_body_ends() {
    let (length, chunked, none) = ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "");
    let (close, alive) = ("Connection: close\r\n", "Connection: keep-alive\r\n");
    for (sent, version, keep_alive, framing, connection) in [
        (length, Version::Http11, true, length, ""),
        (length, Version::Http11, false, length, close),
        (length, Version::Http10, true, length, alive),
        (length, Version::Http10, false, length, close),
        (chunked, Version::Http11, true, chunked, ""),
        (chunked, Version::Http11, false, chunked, close),
        (chunked, Version::Http10, true, none, close),
        (none, Version::Http11, true, chunked, ""),
        (none, Version::Http11, false, chunked, close),
        (none, Version::Http10, true, none, close),
    ] {
        let input = format!("HTTP/1.1 200 OK\r\n{sent}\r\n");
        let expected = format!("HTTP/1.1 200 OK\r\n{framing}{connection}\r\n");
        assert_eq!(
            forward(&input, Method::Get, version, keep_alive),
            expected,
            "{sent:?} {version:?} {keep_alive}"
        );
    }
}

#[test]
fn an_answer_without_body_keeps_the_fields_that_its_kind_may_have() {
    for (method, version, sent, passed) in [
        (Method::Head, Version::Http11, "200 OK\r\nContent-Length: 5\r\n", "200 OK\r\nContent-Length: 5\r\n"),
        (
            Method::Head,
            Version::Http11,
            "200 OK\r\nTransfer-Encoding: chunked\r\n",
            "200 OK\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            Method::Head,
            Version::Http10,
            "200 OK\r\nTransfer-Encoding: chunked\r\n",
            "200 OK\r\nConnection: keep-alive\r\n",
        ),
        (Method::Head, Version::Http11, "200 OK\r\n", "200 OK\r\n"),
        (Method::Get, Version::Http11, "304 N\r\nContent-Length: 5\r\n", "304 N\r\nContent-Length: 5\r\n"),
        (Method::Get, Version::Http11, "204 N\r\nContent-Length: 0\r\n", "204 N\r\n"),
        (Method::Get, Version::Http11, "204 N\r\nTransfer-Encoding: chunked\r\n", "204 N\r\n"),
        (Method::Get, Version::Http11, "205 R\r\nContent-Length: 5\r\n", "205 R\r\nContent-Length: 0\r\n"),
        (Method::Get, Version::Http11, "205 R\r\n", "205 R\r\nContent-Length: 0\r\n"),
        (Method::Get, Version::Http11, "103 E\r\nLink: x\r\nContent-Length: 5\r\n", "103 E\r\nLink: x\r\n"),
    ] {
        let forwarded = forward(&format!("HTTP/1.1 {sent}\r\n"), method, version, true);
        assert_eq!(forwarded, format!("HTTP/1.1 {passed}\r\n"), "{method:?} {sent:?}");
    }
    // An interim head says nothing about the connection.
    assert_eq!(
        forward("HTTP/1.1 100 Continue\r\n\r\n", Method::Post, Version::Http11, false),
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
}

#[test]
fn switching_protocols_keeps_upgrade_and_so_does_426() {
    assert_eq!(
        to_http11(
            "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: k\r\n\r\n"
        ),
        "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: k\r\nConnection: upgrade\r\n\r\n"
    );
    let refused = "HTTP/1.1 426 U\r\nUpgrade: foo/2\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(
        forward(refused, Method::Get, Version::Http11, false),
        "HTTP/1.1 426 U\r\nUpgrade: foo/2\r\nContent-Length: 0\r\nConnection: close, upgrade\r\n\r\n"
    );
}

#[test]
fn whatever_is_accepted_is_read_alike_after_forwarding() {
    const SEEDS: [&str; 5] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\nConnection: x\r\nX: y\r\n\r\n",
        "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n",
        "HTTP/1.0 404 Not Found\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 304 N\r\nContent-Length: 10\r\nETag: \"x\"\r\n\r\n",
    ];
    let mut mutation = Mutation::new();
    let mut accepted = 0;
    for round in 0..20_000 {
        let input = mutation.spoil(SEEDS[round % SEEDS.len()]);
        let forwarded = check(&input, Method::Get, |head| {
            let plan = ResponsePlan::new(&head, Method::Get, Version::Http11, true);
            let mut out = Vec::new();
            head.write_forwarded(&plan, &AddedFields::default(), &mut out);
            (out, head.status, plan.framing)
        });
        let Ok(Some((out, status, framing))) = forwarded else { continue };
        accepted += 1;
        let reread = check(&out, Method::Get, |head| {
            assert_eq!(head.len, out.len());
            (head.status, ResponsePlan::new(&head, Method::Get, Version::Http11, true).framing)
        });
        assert_eq!(reread, Ok(Some((status, framing))), "{}", input.escape_ascii());
    }
    assert!(accepted > 1_000, "{accepted} accepted");
}
