//! What kakehi adds about the client: believed from trusted peers, replaced from all others.

use crate::harness::{Backend, Config, Message, Need, OK, exchange, machine};

/// A request that claims to come from somebody else.
const CLAIMS: &str = "GET / HTTP/1.1\r\nHost: a.example:81\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: gopher\r\n\
                      X-Forwarded-Port: 7\r\nX-Forwarded-Host: evil\r\nForwarded: for=9.9.9.9\r\nVia: 1.0 fred\r\n\
                      X-Request-Id: mine\r\n\r\n";
const PLAIN: &str = "GET / HTTP/1.1\r\nHost: a.example:81\r\n\r\n";

/// What the backend gets of `request` through a listener with these lines; also the listener's port.
fn seen(lines: &[&str], request: &str) -> (Message, String) {
    let backend = Backend::respond(OK);
    let config = lines.iter().fold(Config::to(&backend), |config, line| config.listener(line));
    let proxy = config.start();
    exchange(&proxy, request).expect(200, "ok");
    (backend.request(), proxy.address().port().to_string())
}

#[test]
fn the_backend_learns_who_asked_for_what() {
    for request in [PLAIN, CLAIMS] {
        let (request, port) = seen(&[], request);
        assert_eq!(request.all("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(request.all("x-forwarded-proto"), ["http"]);
        assert_eq!(request.all("x-forwarded-port"), [port]);
        assert_eq!(request.all("x-forwarded-host"), ["a.example:81"]);
        assert_eq!(request.all("forwarded"), ["for=127.0.0.1;host=\"a.example:81\";proto=http"]);
        assert_eq!(request.all("via"), ["1.1 kakehi"]);
        let id = request.all("x-request-id");
        assert!(id.len() == 1 && id[0].len() == 26, "a ULID has 26 characters: {id:?}");
        assert!(request.field("x-real-ip").is_none());
    }
}

#[test]
fn what_a_trusted_peer_says_is_kept_and_continued() {
    for lines in [r#"trusted_peers = ["127.0.0.0/8"]"#, r#"trusted_peers = ["10.0.0.0/8", "127.0.0.1"]"#] {
        let (request, _) = seen(&[lines], CLAIMS);
        assert_eq!(request.all("x-forwarded-for").join(", "), "9.9.9.9, 127.0.0.1");
        assert_eq!(request.all("x-forwarded-proto"), ["gopher"]);
        assert_eq!(request.all("x-forwarded-port"), ["7"]);
        assert_eq!(request.all("x-forwarded-host"), ["evil"]);
        assert_eq!(request.all("via").join(", "), "1.0 fred, 1.1 kakehi");
        assert_eq!(request.all("x-request-id"), ["mine"]);
        let forwarded = request.all("forwarded").join(", ");
        assert_eq!(forwarded, "for=9.9.9.9, for=127.0.0.1;host=\"a.example:81\";proto=http");
    }
}

#[test]
fn a_trusted_peer_that_says_nothing_is_the_client() {
    let (request, port) = seen(&[r#"trusted_peers = ["127.0.0.0/8"]"#], PLAIN);
    assert_eq!(request.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.all("x-forwarded-port"), [port]);
    assert_eq!(request.all("x-request-id").len(), 1);
}

#[test]
fn a_family_of_fields_that_is_not_added_is_not_let_through_either() {
    for (families, x_forwarded, forwarded) in
        [("both", true, true), ("x_forwarded", true, false), ("rfc7239", false, true), ("none", false, false)]
    {
        let line = format!("forwarded_headers = \"{families}\"");
        for request in [PLAIN, CLAIMS] {
            let (request, _) = seen(&[&line], request);
            for field in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-host"] {
                assert_eq!(request.all(field).len(), usize::from(x_forwarded), "{families}: {field}");
            }
            assert_eq!(request.all("forwarded").len(), usize::from(forwarded), "{families}");
            assert_eq!((request.all("via").len(), request.all("x-request-id").len()), (1, 1));
        }
        // Whom we believe says it himself.
        let (request, _) = seen(&[&line, r#"trusted_peers = ["127.0.0.0/8"]"#], CLAIMS);
        assert!(request.all("x-forwarded-for").join(", ").starts_with("9.9.9.9"), "{families}");
    }
}

#[test]
fn each_field_can_be_switched_off_and_is_not_let_through_either() {
    for field in [
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-port",
        "x-forwarded-host",
        "forwarded",
        "via",
        "x-request-id",
    ] {
        let line = format!("{} = false", field.replace('-', "_"));
        let (request, _) = seen(&[&line], CLAIMS);
        assert_eq!(request.all(field), Vec::<&str>::new(), "{line}");
        assert!(request.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("via") || field == "via"));
    }
}

#[test]
fn spellings_with_underscores_are_no_way_round() {
    let (request, _) =
        seen(&[], "GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 9.9.9.9\r\nX_Forwarded-Host: evil\r\n\r\n");
    assert!(
        !crate::harness::contains(&request.raw, "9.9.9.9") && !crate::harness::contains(&request.raw, "evil")
    );
}

#[test]
fn fields_with_underscores_are_dropped_unless_the_listener_passes_them_on_and_proxy_always() {
    const SENT: &str = "GET / HTTP/1.1\r\nHost: a\r\nA_B: 1\r\nA-B: 2_3\r\nContent_Length: 4\r\nProxy: evil\r\nCookie: c_d=5\r\n\r\n";
    for (lines, underscores) in [
        (vec![], false),
        (vec![r#"trusted_peers = ["127.0.0.0/8"]"#], false),
        (vec!["underscores_in_headers = false"], false),
        (vec!["underscores_in_headers = true"], true),
    ] {
        let (request, _) = seen(&lines, SENT);
        let expected = |value| if underscores { vec![value] } else { vec![] };
        assert_eq!(request.all("A_B"), expected("1"), "{lines:?}");
        assert_eq!(request.all("Content_Length"), expected("4"), "{lines:?}");
        assert_eq!(request.all("proxy"), [""; 0], "{lines:?}");
        assert_eq!((request.all("a-b"), request.all("cookie")), (vec!["2_3"], vec!["c_d=5"]));
    }
    // What a backend says is its own matter.
    let backend = Backend::respond("HTTP/1.1 200 OK\r\nA_B: 1\r\nProxy: x\r\nContent-Length: 2\r\n\r\nok");
    let proxy = Config::to(&backend).start();
    let response = exchange(&proxy, SENT);
    assert_eq!((response.all("a_b"), response.all("proxy")), (vec!["1"], vec!["x"]));
}

#[test]
fn connection_cannot_take_away_what_kakehi_says() {
    let (request, _) = seen(
        &[r#"trusted_peers = ["127.0.0.0/8"]"#],
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Forwarded-For, Forwarded, Via, X-Request-Id, Host\r\n\
         X-Forwarded-For: 9.9.9.9\r\n\r\n",
    );
    assert_eq!(request.all("x-forwarded-for").join(", "), "9.9.9.9, 127.0.0.1");
    assert_eq!((request.all("host"), request.all("via").len()), (vec!["a"], 1));
}

#[test]
fn x_real_ip_is_sent_and_elided_as_configured() {
    const CLAIM: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-Real-IP: 9.9.9.9\r\n\r\n";
    assert_eq!(
        seen(&["send_x_real_ip = true", "elide_x_real_ip = true"], CLAIM).0.all("x-real-ip"),
        ["127.0.0.1"]
    );
    assert_eq!(seen(&["send_x_real_ip = true"], PLAIN).0.all("x-real-ip"), ["127.0.0.1"]);
    assert_eq!(seen(&["elide_x_real_ip = true"], CLAIM).0.field("x-real-ip"), None);
}

#[test]
fn two_requests_have_two_request_ids() {
    let backend = Backend::respond(OK);
    let proxy = Config::to(&backend).start();
    for _ in 0..20 {
        exchange(&proxy, PLAIN).expect(200, "ok");
    }
    let mut ids: Vec<String> = backend
        .requests()
        .iter()
        .filter_map(|request| Some(request.field("x-request-id")?.to_owned()))
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 20);
}

#[test]
fn an_ipv6_client_is_written_as_each_field_wants_it() {
    let backend = Backend::respond(OK);
    if !machine::has(Need::Ipv6) {
        return;
    }
    let proxy = Config::to(&backend).on_ipv6().start();
    exchange(&proxy, "GET / HTTP/1.1\r\nHost: [::1]:81\r\n\r\n").expect(200, "ok");
    let request = backend.request();
    assert_eq!(request.all("x-forwarded-for"), ["::1"]);
    assert_eq!(request.all("forwarded"), ["for=\"[::1]\";host=\"[::1]:81\";proto=http"]);
}
