//! Tests of forwarded requests.

use super::super::mutation::Mutation;
use super::super::{HeadLimits, HeadProgress, Reason, Scratch};
use super::*;

const LIMITS: HeadLimits = HeadLimits { bytes: 16_384, fields: 64, target: 8_192 };

fn nothing() -> Forwarding {
    Forwarding {
        x_forwarded_for: false,
        x_forwarded_proto: false,
        x_forwarded_port: false,
        x_forwarded_host: false,
        forwarded: false,
        via: false,
        x_request_id: false,
        id_field: String::new(),
        ..Forwarding::default()
    }
}

fn by(switches: &Forwarding, trusted: bool) -> ForwardedBy<'_> {
    ForwardedBy {
        peer_ip: "1.2.3.4",
        local_port: "8080",
        proto: "http",
        trusted,
        switches,
        request_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        session_cookie: None,
        rewritten: super::Rewritten::default(),
        client: None,
    }
}

fn forward(input: &[u8], by: &ForwardedBy<'_>) -> Result<Vec<u8>, Reason> {
    let mut scratch = Scratch::new();
    let head = RequestHead::parse(input, &mut HeadProgress::default(), &LIMITS, &mut scratch)?;
    let mut out = Vec::new();
    head.expect("a complete head").write_forwarded(by, &mut out);
    Ok(out)
}

/// The forwarded form of a request of an untrusted peer, nothing switched on.
fn plain(input: &str) -> String {
    let switches = nothing();
    String::from_utf8(forward(input.as_bytes(), &by(&switches, false)).unwrap()).unwrap()
}

/// The fields that `lines` (besides `Host`) become.
fn lines_of(lines: &str, by: &ForwardedBy<'_>) -> String {
    let input = format!("GET / HTTP/1.1\r\nHost: a:80\r\n{lines}\r\n");
    let out = String::from_utf8(forward(input.as_bytes(), by).unwrap()).unwrap();
    out.strip_prefix("GET / HTTP/1.1\r\nHost: a:80\r\n").unwrap().strip_suffix("\r\n").unwrap().to_owned()
}

#[test]
fn what_is_not_of_the_connection_is_passed_on_byte_for_byte() {
    let input = "GET /%2e/../a;b?c=%00&d HTTP/1.1\r\nuser-AGENT:  x\t \r\nHost:a\r\nX:\r\nX: \u{e9}\r\n\r\n";
    assert_eq!(plain(input), input);
    assert_eq!(plain(&format!("\r\n\r\n{input}")), input);
}

#[test]
fn the_version_is_ours_and_host_stands_once() {
    assert_eq!(plain("GET /a HTTP/1.0\r\nHost: a\r\n\r\n"), "GET /a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(plain("GET /a HTTP/1.0\r\n\r\n"), "GET /a HTTP/1.1\r\nHost: \r\n\r\n");
    assert_eq!(
        plain("GET http://b:81/a?q HTTP/1.1\r\nX: y\r\nHost: a\r\nZ: z\r\n\r\n"),
        "GET /a?q HTTP/1.1\r\nHost: b:81\r\nX: y\r\nZ: z\r\n\r\n"
    );
    assert_eq!(plain("GET http://b?q HTTP/1.0\r\n\r\n"), "GET /?q HTTP/1.1\r\nHost: b\r\n\r\n");
}

#[test]
fn fields_of_the_connection_are_removed() {
    let switches = nothing();
    for (sent, passed) in [
        ("Connection: close\r\nA: b\r\n", "A: b\r\n"),
        ("A: b\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\nC: d\r\n", "A: b\r\nC: d\r\n"),
        ("A: b\r\nc: d\r\nE: f\r\nConnection: a, C\r\n", "E: f\r\n"),
        ("Connection: a\r\nA: b\r\nConnection: ,x,\r\nX: y\r\nXX: y\r\n", "XX: y\r\n"),
        (
            "Proxy-Connection: close\r\nProxy-Authorization: x\r\nProxy-Authenticate: y\r\nA: b\r\n",
            "A: b\r\n",
        ),
        ("TE: gzip\r\nTrailer: X\r\n", "Trailer: X\r\n"),
        ("TE: trailers\r\n", ""),
        ("TE: gzip;q=0.5 , Trailers\r\nConnection: te\r\n", "Connection: TE\r\nTE: trailers\r\n"),
        ("TE: gzip\r\nConnection: te\r\n", ""),
        ("Upgrade: websocket\r\n", ""),
    ] {
        assert_eq!(lines_of(sent, &by(&switches, false)), passed, "{sent:?}");
    }
}

#[test]
fn connection_cannot_remove_what_others_rely_on() {
    let switches = nothing();
    let sent = "Connection: host, content-length, x-forwarded-for, forwarded, via, x-request-id, x-forwarded-x\r\n\
                X-Forwarded-For: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\nVia: 1.1 x\r\nX-Request-Id: i\r\n\
                X-Forwarded-X: x\r\nContent-Length: 5\r\n";
    let passed = "X-Forwarded-For: 9.9.9.9\r\nForwarded: for=9.9.9.9\r\nVia: 1.1 x\r\nX-Request-Id: i\r\n\
                  X-Forwarded-X: x\r\nContent-Length: 5\r\n";
    assert_eq!(lines_of(sent, &by(&switches, true)), passed);
}

#[test]
fn framing_is_written_in_our_own_words() {
    let switches = nothing();
    for (sent, passed) in [
        ("content-length: 005\r\n", "Content-Length: 5\r\n"),
        ("Content-Length: 5, 5\r\nContent-Length: 5\r\nA: b\r\n", "A: b\r\nContent-Length: 5\r\n"),
        ("Content-Length: 0\r\n", "Content-Length: 0\r\n"),
        ("transfer-encoding: CHUNKED\r\nA: b\r\n", "A: b\r\nTransfer-Encoding: chunked\r\n"),
    ] {
        assert_eq!(lines_of(sent, &by(&switches, false)), passed, "{sent:?}");
    }
}

#[test]
fn an_expectation_reaches_the_backend_only_if_it_counts() {
    let switches = nothing();
    let sent = "Expect: 100-continue\r\nContent-Length: 1\r\n";
    assert_eq!(lines_of(sent, &by(&switches, false)), sent);
    assert_eq!(lines_of("Expect: 100-continue\r\n", &by(&switches, false)), "");
    let old = plain("POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n");
    assert!(!old.contains("Expect"));
}

#[test]
fn an_upgrade_is_passed_on_without_h2c() {
    let switches = nothing();
    for (sent, passed) in [
        (
            "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n",
            "Sec-WebSocket-Key: k\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
        ),
        (
            "Connection: upgrade, TE\r\nUpgrade: h2c, foo/1\r\nUpgrade: bar\r\nTE: trailers\r\n",
            "Connection: upgrade, TE\r\nTE: trailers\r\nUpgrade: foo/1, bar\r\n",
        ),
        ("Connection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n", ""),
        ("HTTP2-Settings: AAA\r\n", ""),
    ] {
        assert_eq!(lines_of(sent, &by(&switches, false)), passed, "{sent:?}");
    }
}

/// A client that claims everything about itself.
const CLAIMS: &str = "X-Forwarded-For: 9.9.9.9\r\nx-forwarded-for: 8.8.8.8, 7.7.7.7\r\nX-Forwarded-Proto: https\r\n\
     X-Forwarded-Port: 443\r\nX-Forwarded-Host: evil\r\nForwarded: for=9.9.9.9\r\nVia: 1.0 x\r\nX-Request-Id: i\r\n\
     X-Real-IP: 9.9.9.9\r\nX_Forwarded_For: 9.9.9.9\r\nX-Real_IP: 9.9.9.9\r\n";

#[test]
fn a_peer_that_is_not_trusted_sets_no_forwarding_field() {
    let off = nothing();
    assert_eq!(lines_of(CLAIMS, &by(&off, false)), "");
    let on = Forwarding { x_real_ip: true, ..Forwarding::default() };
    let added = "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Port: 8080\r\n\
                 X-Forwarded-Host: a:80\r\nX-Real-IP: 1.2.3.4\r\n\
                 Forwarded: for=1.2.3.4;host=\"a:80\";proto=http\r\nVia: 1.1 kakehi\r\n\
                 X-Request-Id: 01ARZ3NDEKTSV4RRFFQ69G5FAV\r\nSozu-Id: 01ARZ3NDEKTSV4RRFFQ69G5FAV\r\n";
    assert_eq!(lines_of("", &by(&on, false)), added);
    assert_eq!(lines_of(CLAIMS, &by(&on, false)), added);
}

#[test]
fn a_trusted_peer_is_believed_and_its_lists_are_continued() {
    let off = Forwarding { underscores: true, ..nothing() };
    assert_eq!(lines_of(CLAIMS, &by(&off, true)), CLAIMS);
    let on = Forwarding { x_real_ip: true, underscores: true, ..Forwarding::default() };
    assert_eq!(
        lines_of(CLAIMS, &by(&on, true)),
        "X-Forwarded-Proto: https\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Host: evil\r\nX-Request-Id: i\r\n\
         X-Real-IP: 9.9.9.9\r\nX_Forwarded_For: 9.9.9.9\r\nX-Real_IP: 9.9.9.9\r\n\
         X-Forwarded-For: 9.9.9.9, 8.8.8.8, 7.7.7.7, 1.2.3.4\r\n\
         Forwarded: for=9.9.9.9, for=1.2.3.4;host=\"a:80\";proto=http\r\nVia: 1.0 x, 1.1 kakehi\r\n\
         Sozu-Id: 01ARZ3NDEKTSV4RRFFQ69G5FAV\r\n"
    );
    let elide = Forwarding { elide_x_real_ip: true, ..nothing() };
    assert_eq!(lines_of("X-Real-IP: 9.9.9.9\r\n", &by(&elide, true)), "");
}

#[test]
fn names_with_underscores_are_dropped_unless_the_listener_passes_them_on_and_proxy_always() {
    let sent = "A_b: 1\r\nProxy: http://evil\r\n_: 2\r\nA-B: 3_\r\nContent_Length: 4\r\nX-Forwarded-A_B: 5\r\n\
                X_Real_IP: 6\r\nClient_Cert: 7\r\nProxy_: 8\r\n";
    let (drop, keep) = (nothing(), Forwarding { underscores: true, ..nothing() });
    for trusted in [false, true] {
        assert_eq!(lines_of(sent, &by(&drop, trusted)), "A-B: 3_\r\n");
    }
    let kept = "A_b: 1\r\n_: 2\r\nA-B: 3_\r\nContent_Length: 4\r\nX-Forwarded-A_B: 5\r\nProxy_: 8\r\n";
    assert_eq!(lines_of(sent, &by(&keep, false)), kept);
    let believed = kept.replace("Proxy_", "X_Real_IP: 6\r\nClient_Cert: 7\r\nProxy_");
    assert_eq!(lines_of(sent, &by(&keep, true)), believed);
}

#[test]
fn max_forwards_of_trace_and_options_counts_down_and_of_others_stays() {
    for (method, sent, passed) in [
        ("OPTIONS", "max-forwards: 10", "Max-Forwards: 9"),
        ("TRACE", "Max-Forwards: 1", "Max-Forwards: 0"),
        ("OPTIONS", "Max-Forwards: 0004", "Max-Forwards: 3"),
        ("OPTIONS", "Max-Forwards: 99999999999999999999", "Max-Forwards: 4294967294"),
        ("GET", "max-forwards: x", "max-forwards: x"),
    ] {
        let input = format!("{method} / HTTP/1.1\r\nHost: a\r\n{sent}\r\n\r\n");
        assert_eq!(plain(&input), input.replace(sent, passed));
    }
}

#[test]
fn a_host_with_an_empty_port_goes_on_without_the_colon() {
    for target in ["/a?b", "http://a:/a?b"] {
        assert_eq!(
            plain(&format!("GET {target} HTTP/1.1\r\nX: y\r\nHost: a:\r\n\r\n")),
            "GET /a?b HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n"
        );
    }
}

#[test]
fn addresses_of_ipv6_are_quoted_in_forwarded_and_hosts_only_if_need_be() {
    let switches = Forwarding { forwarded: true, via: true, ..nothing() };
    let by = ForwardedBy { peer_ip: "2001:db8::1", proto: "https", ..by(&switches, false) };
    for (input, forwarded) in [
        (
            "GET / HTTP/1.1\r\nHost: a_b\r\n\r\n",
            "for=\"[2001:db8::1]\";host=a_b;proto=https\r\nVia: 1.1 kakehi",
        ),
        (
            "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
            "for=\"[2001:db8::1]\";host=\"[::1]\";proto=https\r\nVia: 1.1 kakehi",
        ),
        ("GET / HTTP/1.0\r\n\r\n", "for=\"[2001:db8::1]\";proto=https\r\nVia: 1.0 kakehi"),
    ] {
        let out = String::from_utf8(forward(input.as_bytes(), &by).unwrap()).unwrap();
        assert!(out.ends_with(&format!("\r\nForwarded: {forwarded}\r\n\r\n")), "{out}");
    }
}

/// What has to survive forwarding.
fn essence(head: &RequestHead<'_>) -> (String, String, String, RequestBody, bool, bool) {
    let text = |text: &str| text.to_owned();
    (
        text(head.method_text),
        text(head.target),
        text(head.host),
        head.body,
        head.upgrade,
        head.expect_continue,
    )
}

#[test]
fn the_id_stands_in_its_field_whoever_says_otherwise() {
    let of = |field: &str| Forwarding { id_field: field.to_owned(), ..nothing() };
    let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    for trusted in [false, true] {
        let switches = of("Sozu-Id");
        let by = by(&switches, trusted);
        let lines = "sozu-id: x\r\nSOZU_ID: y\r\nSozu-Idx: z\r\n";
        assert_eq!(lines_of(lines, &by), format!("Sozu-Idx: z\r\nSozu-Id: {id}\r\n"));
        assert_eq!(lines_of("Connection: sozu-id\r\n", &by), format!("Sozu-Id: {id}\r\n"));
        // Of a name that has another meaning for trusted peers, too.
        let switches = of("x-request-id").effective();
        let by = super::ForwardedBy { switches: &switches, ..by };
        assert_eq!(lines_of("X-Request-Id: 1\r\n", &by), format!("x-request-id: {id}\r\n"));
        let switches = of("");
        let by = super::ForwardedBy { switches: &switches, ..by };
        assert_eq!(lines_of("Sozu-Id: x\r\n", &by), "Sozu-Id: x\r\n");
    }
}

#[test]
fn whatever_is_accepted_is_read_alike_after_forwarding() {
    const SEEDS: [&str; 6] = [
        "GET /a?b HTTP/1.1\r\nHost: a.example:80\r\nAccept: */*\r\nConnection: x\r\nX: y\r\n\r\n",
        "POST http://h:1/p HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\nExpect: 100-continue\r\n\r\n",
        "PUT / HTTP/1.0\r\nContent-Length: 10\r\nHost: [::1]:80\r\nConnection: keep-alive\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: TE, b\r\nB: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\nVia: 1.1 x\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nX_Real_Ip: 2\r\nForwarded: for=x\r\n\r\n",
    ];
    let mut mutation = Mutation::new();
    let switches = Forwarding::default();
    let by = by(&switches, false);
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..20_000 {
        let input = mutation.spoil(SEEDS[round % SEEDS.len()]);
        let mut scratch = Scratch::new();
        let head = match RequestHead::parse(&input, &mut HeadProgress::default(), &LIMITS, &mut scratch) {
            Ok(Some(head)) => head,
            Ok(None) => continue,
            Err(_) => {
                refused += 1;
                continue;
            }
        };
        accepted += 1;
        let mut out = Vec::new();
        head.write_forwarded(&by, &mut out);
        if head.host.is_empty() {
            continue;
        }
        let mut again = Scratch::new();
        let reread = RequestHead::parse(&out, &mut HeadProgress::default(), &LIMITS, &mut again);
        let reread = reread.expect("what was forwarded is valid").expect("and complete");
        assert_eq!(essence(&reread), essence(&head), "{}", input.escape_ascii());
        assert_eq!(reread.len, out.len());
        if head.version == Version::Http11 {
            assert_eq!(forward(&out, &by).as_ref(), Ok(&out), "{}", input.escape_ascii());
        }
    }
    assert!(accepted > 1_000 && refused > 1_000, "{accepted} accepted, {refused} refused");
}
