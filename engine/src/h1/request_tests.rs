//! Tests of request heads.

use super::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 4096, fields: 32, target: 1024 };

/// Parses `input` whole, in two pieces (every split) and byte by byte; all must agree. `None` = incomplete.
fn check<T>(
    input: &[u8],
    limits: &HeadLimits,
    look: impl Fn(RequestHead<'_>) -> T,
) -> Result<Option<T>, Reason>
where
    T: PartialEq + std::fmt::Debug,
{
    let mut scratch = Scratch::new();
    let mut parse = |input: &[u8], progress: &mut HeadProgress| {
        RequestHead::parse(input, progress, limits, &mut scratch).map(|head| head.map(&look))
    };
    let whole = parse(input, &mut HeadProgress::default());
    let mut bytewise = HeadProgress::default();
    let mut last = Ok(None);
    for len in 0..=input.len() {
        if last == Ok(None) {
            last = parse(&input[..len], &mut bytewise);
        }
        let mut progress = HeadProgress::default();
        let first = parse(&input[..len], &mut progress);
        let both = if first == Ok(None) { parse(input, &mut progress) } else { first };
        agree(&whole, &both, input);
    }
    agree(&whole, &last, input);
    whole
}

/// What is taken is taken alike. A refusal may wait for more bytes, but never turns into something else.
fn agree<T: PartialEq + std::fmt::Debug>(
    whole: &Result<Option<T>, Reason>,
    pieces: &Result<Option<T>, Reason>,
    input: &[u8],
) {
    match (whole, pieces) {
        (Err(_), Err(_) | Ok(None)) => {}
        _ => assert_eq!(whole, pieces, "in pieces: {}", input.escape_ascii()),
    }
}

fn refused(input: &str) -> Option<Reason> {
    check(input.as_bytes(), &LIMITS, |head| head.len).err()
}

/// A request with these field lines besides `Host`.
fn with(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

#[test]
fn a_request_is_read_with_all_its_parts() {
    let input = b"\r\nGET /a/b?c HTTP/1.1\r\nHost: a.example:8080\r\nX-Y:\t z \r\nEmpty:\r\n\r\nrest";
    check(input, &LIMITS, |head| {
        assert_eq!((head.method, head.method_text, head.version), (Method::Get, "GET", Version::Http11));
        assert_eq!((head.target, head.path()), ("/a/b?c", "/a/b"));
        assert_eq!((head.host, head.host_name()), ("a.example:8080", "a.example"));
        assert_eq!((head.body, head.keep_alive), (RequestBody::None, true));
        assert!(!head.expect_continue && !head.upgrade);
        assert_eq!(head.len, input.len() - "rest".len());
        let fields: Vec<_> = head.fields().collect();
        assert_eq!(fields, [("Host", &b"a.example:8080"[..]), ("X-Y", b"z"), ("Empty", b"")]);
    })
    .unwrap()
    .unwrap();
}

#[test]
fn an_incomplete_head_is_neither_taken_nor_refused() {
    let input = b"\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    for len in 0..input.len() {
        assert_eq!(check(&input[..len], &LIMITS, |head| head.len), Ok(None), "{len}");
    }
}

#[test]
fn lines_that_do_not_end_in_crlf_are_refused() {
    for input in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\nZ: z\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX:\nZ: z\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\n\r\n",
        "GET / HTTP/1.0\r\n\n",
        "GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\rX",
    ] {
        assert_eq!(refused(input), Some(Reason::BareLineFeed), "{input:?}");
    }
}

#[test]
fn a_request_line_has_exactly_three_parts() {
    for input in [
        "GET /\r\n",
        "GET /\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET / HTTP/1.10\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/x.1\r\nHost: a\r\n\r\n",
        "GET / HTTQ/1.1\r\nHost: a\r\n\r\n",
        "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "G\u{e9}T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\0\x01",
    ] {
        assert_eq!(refused(input), Some(Reason::BadRequestLine), "{input:?}");
    }
    let invalid = check(b"\xffET / HTTP/1.1\r\nHost: a\r\n\r\n", &LIMITS, |head| head.len);
    assert_eq!(invalid, Err(Reason::BadRequestLine));
    let invalid = check(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", &LIMITS, |head| head.len);
    assert_eq!(invalid, Err(Reason::BadRequestLine));
}

#[test]
fn other_versions_are_refused_as_such() {
    for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/3"] {
        let input = format!("GET / {version}\r\nHost: a\r\n\r\n");
        assert_eq!(refused(&input), Some(Reason::BadVersion), "{version}");
    }
    assert_eq!(refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some(Reason::BadVersion));
}

#[test]
fn malformed_field_lines_are_refused() {
    for (lines, reason) in [
        ("X : y\r\n", Reason::BadField),
        ("X\t: y\r\n", Reason::BadField),
        (": y\r\n", Reason::BadField),
        ("no colon\r\n", Reason::BadField),
        ("nocolon\r\n", Reason::BadField),
        ("X(y): z\r\n", Reason::BadField),
        ("\u{e9}: z\r\n", Reason::BadField),
        ("X: a\0b\r\n", Reason::BadField),
        ("X: a\x01b\r\n", Reason::BadField),
        ("X: a\x7fb\r\n", Reason::BadField),
        ("X: a\x0bb\r\n", Reason::BadField),
        ("X: y\r\n z\r\n", Reason::ObsoleteFold),
        ("X: y\r\n\tz: z\r\n", Reason::ObsoleteFold),
    ] {
        assert_eq!(refused(&with(lines)), Some(reason), "{lines:?}");
    }
    // White space before the first field is folding of nothing.
    assert_eq!(refused("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), Some(Reason::ObsoleteFold));
    assert_eq!(refused(&with("X: \u{e9} obs-text \t tab\r\n")), None);
}

#[test]
fn a_body_has_one_length() {
    for (lines, body) in [
        ("", RequestBody::None),
        ("Content-Length: 0\r\n", RequestBody::Length(0)),
        ("content-length:\t5 \r\n", RequestBody::Length(5)),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", RequestBody::Length(5)),
        ("Content-Length: 5, 5\r\n", RequestBody::Length(5)),
        ("Transfer-Encoding: chunked\r\n", RequestBody::Chunked),
        ("transfer-ENCODING:\tCHUNKED \r\n", RequestBody::Chunked),
    ] {
        assert_eq!(check(with(lines).as_bytes(), &LIMITS, |head| head.body), Ok(Some(body)), "{lines:?}");
    }
    for (lines, reason) in [
        ("Content-Length: 5\r\nContent-Length: 6\r\n", Reason::BadContentLength),
        ("Content-Length:\r\n", Reason::BadContentLength),
        ("Content-Length: +5\r\n", Reason::BadContentLength),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Reason::ContentLengthAndTransferEncoding),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Reason::ContentLengthAndTransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Reason::BadTransferEncoding),
        ("Transfer-Encoding: identity\r\n", Reason::BadTransferEncoding),
        ("Transfer-Encoding: , chunked\r\n", Reason::BadTransferEncoding),
        ("Transfer-Encoding: gzip, chunked\r\n", Reason::UnknownTransferEncoding),
        ("Transfer-Encoding : chunked\r\n", Reason::BadField),
    ] {
        assert_eq!(refused(&with(lines)), Some(reason), "{lines:?}");
    }
    let old = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refused(old), Some(Reason::TransferEncodingInHttp10));
}

#[test]
fn there_is_one_host_and_the_authority_of_the_target_wins() {
    for (input, host) in [
        ("GET / HTTP/1.1\r\nHost: A.example\r\n\r\n", "A.example"),
        ("GET http://b:81/ HTTP/1.1\r\nHost: a\r\n\r\n", "b:81"),
        ("GET http://b HTTP/1.0\r\n\r\n", "b"),
        ("GET / HTTP/1.0\r\n\r\n", ""),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", "a"),
    ] {
        let read = check(input.as_bytes(), &LIMITS, |head| head.host.to_owned());
        assert_eq!(read, Ok(Some(host.to_owned())), "{input:?}");
    }
    for (input, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", Reason::MissingHost),
        ("GET http://a/ HTTP/1.1\r\n\r\n", Reason::MissingHost),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Reason::DuplicateHost),
        ("GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n", Reason::DuplicateHost),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Reason::BadHost),
        ("GET / HTTP/1.1\r\nHost: a:0\r\n\r\n", Reason::BadHost),
        ("GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", Reason::BadHost),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Reason::BadHost),
        ("GET http://b/ HTTP/1.1\r\nHost: u@a\r\n\r\n", Reason::BadHost),
        ("GET b:80 HTTP/1.1\r\nHost: a\r\n\r\n", Reason::BadTarget),
        ("CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n", Reason::ConnectRefused),
    ] {
        assert_eq!(refused(input), Some(reason), "{input:?}");
    }
}

#[test]
fn the_connection_goes_on_as_the_version_has_it_unless_the_client_says_otherwise() {
    for (version, connection, keep_alive) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, CLOSE\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let input = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        let read = check(input.as_bytes(), &LIMITS, |head| head.keep_alive);
        assert_eq!(read, Ok(Some(keep_alive)), "{input:?}");
    }
}

#[test]
fn only_100_continue_can_be_expected_and_only_with_a_body() {
    for (version, lines, expected) in [
        ("1.1", "Content-Length: 1\r\nExpect: 100-Continue\r\n", Ok(Some(true))),
        ("1.1", "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", Ok(Some(true))),
        ("1.1", "Expect: 100-continue\r\n", Ok(Some(false))),
        ("1.1", "Content-Length: 0\r\nExpect: 100-continue\r\n", Ok(Some(false))),
        ("1.0", "Content-Length: 1\r\nExpect: 100-continue\r\n", Ok(Some(false))),
        ("1.0", "Content-Length: 1\r\nExpect: tea\r\n", Ok(Some(false))),
        ("1.1", "Content-Length: 1\r\nExpect: tea\r\n", Err(Reason::BadExpect)),
        ("1.1", "Expect: 100-continue, tea\r\n", Err(Reason::BadExpect)),
        ("1.1", "Expect:\r\n", Err(Reason::BadExpect)),
    ] {
        let input = format!("POST / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        assert_eq!(check(input.as_bytes(), &LIMITS, |head| head.expect_continue), expected, "{input:?}");
    }
}

#[test]
fn an_upgrade_has_to_be_named_by_connection_and_h2c_is_none() {
    for (version, lines, upgrade) in [
        ("1.1", "Connection: Upgrade\r\nUpgrade: websocket\r\n", Ok(Some(true))),
        ("1.1", "Connection: keep-alive, upgrade\r\nUpgrade: foo/1, h2c\r\n", Ok(Some(true))),
        ("1.1", "Upgrade: websocket\r\n", Ok(Some(false))),
        ("1.1", "Connection: upgrade\r\n", Ok(Some(false))),
        (
            "1.1",
            "Connection: upgrade, http2-settings\r\nUpgrade: H2C\r\nHTTP2-Settings: AA\r\n",
            Ok(Some(false)),
        ),
        ("1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n", Ok(Some(false))),
        ("1.1", "Connection: upgrade\r\nUpgrade: web socket\r\n", Err(Reason::BadUpgrade)),
    ] {
        let input = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
        assert_eq!(check(input.as_bytes(), &LIMITS, |head| head.upgrade), upgrade, "{input:?}");
    }
}

#[test]
fn max_forwards_is_a_number_and_counts_in_trace_and_options_only() {
    for (method, lines, expected) in [
        ("OPTIONS", "Max-Forwards: 0\r\n", Ok(Some(Some(0)))),
        ("TRACE", "max-forwards: 007\r\n", Ok(Some(Some(7)))),
        ("TRACE", "Max-Forwards: 18446744073709551616\r\n", Ok(Some(Some(u32::MAX)))),
        ("TRACE", "", Ok(Some(None))),
        ("GET", "Max-Forwards: x\r\nMax-Forwards: 0\r\n", Ok(Some(None))),
        ("TRACE", "Max-Forwards:\r\n", Err(Reason::BadMaxForwards)),
        ("TRACE", "Max-Forwards: +1\r\n", Err(Reason::BadMaxForwards)),
        ("TRACE", "Max-Forwards: 1, 2\r\n", Err(Reason::BadMaxForwards)),
        ("OPTIONS", "Max-Forwards: 1\r\nMax-Forwards: 1\r\n", Err(Reason::BadMaxForwards)),
    ] {
        let input = format!("{method} / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        assert_eq!(check(input.as_bytes(), &LIMITS, |head| head.max_forwards), expected, "{input:?}");
    }
}

#[test]
fn credentials_that_authenticate_the_connection_are_known() {
    for (value, expected) in
        [("NTLM TlRM", true), ("negotiate YII=", true), ("Basic TlRM", false), ("Bearer N", false)]
    {
        let read = check(with(&format!("authorization: {value}\r\n")).as_bytes(), &LIMITS, |head| {
            head.authenticates_connection
        });
        assert_eq!(read, Ok(Some(expected)), "{value}");
    }
}

#[test]
fn limits_are_kept_to_the_byte() {
    let head = |padding| with(&format!("X: {}\r\n", "y".repeat(padding)));
    let fits = LIMITS.bytes as usize - head(0).len();
    assert_eq!(refused(&head(fits)), None);
    assert_eq!(refused(&head(fits + 1)), Some(Reason::HeadTooLarge));
    let endless = with(&format!("X: {}\r\n", "y".repeat(5000)));
    assert_eq!(refused(&endless[..LIMITS.bytes as usize]), Some(Reason::HeadTooLarge));
    // A body behind the head does not count.
    let mut scratch = Scratch::new();
    let input = format!("{}{}", with("Content-Length: 9000\r\n"), "b".repeat(9000));
    let head = RequestHead::parse(input.as_bytes(), &mut HeadProgress::default(), &LIMITS, &mut scratch);
    assert!(head.unwrap().is_some());

    assert_eq!(refused(&with(&"X: y\r\n".repeat(31))), None);
    assert_eq!(refused(&with(&"X: y\r\n".repeat(32))), Some(Reason::TooManyFields));

    let target = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "t".repeat(len - 1));
    assert_eq!(refused(&target(1024)), None);
    assert_eq!(refused(&target(1025)), Some(Reason::TargetTooLong));
    assert_eq!(refused(&target(8000)), Some(Reason::TargetTooLong));
    assert_eq!(refused(&target(8000)[..2000]), Some(Reason::TargetTooLong));
}

#[test]
fn connection_cannot_be_made_to_cost_much() {
    let lines = format!("Connection: {}\r\n", "a,".repeat(65));
    assert_eq!(refused(&with(&lines)), Some(Reason::BadConnection));
}

#[test]
fn each_byte_is_judged_alike_wherever_it_stands_in_a_long_head() {
    // Long enough for the parser's vector code, whose tail is scalar.
    for byte in 0..=255u8 {
        for at in [0, 7, 31, 32, 40, 62, 63] {
            let mut text = [b'x'; 64];
            text[at] = byte;
            let parse = |parts: [&[u8]; 3]| {
                let mut scratch = Scratch::new();
                let input = parts.concat();
                RequestHead::parse(&input, &mut HeadProgress::default(), &LIMITS, &mut scratch).is_ok()
            };
            let target = parse([b"GET /", &text, b" HTTP/1.1\r\nHost: a\r\n\r\n"]);
            assert_eq!(target, byte.is_ascii_graphic() && byte != b'#', "{byte:#x} at {at} of a target");
            let name = parse([b"GET / HTTP/1.1\r\nHost: a\r\n", &text, b": y\r\n\r\n"]);
            let in_name = field::is_token_byte(byte) || (byte == b':' && at > 0);
            assert_eq!(name, in_name, "{byte:#x} at {at} of a name");
            let value = parse([b"GET / HTTP/1.1\r\nHost: a\r\nX: ", &text, b"\r\n\r\n"]);
            assert_eq!(value, field::is_value_byte(byte), "{byte:#x} at {at} of a value");
        }
    }
}
