//! What RFC 9110 asks of a gateway, and what clients and backends do that no RFC asks for: each is met in the way that hurts
//! nobody.

use std::time::SystemTime;

use crate::harness::{Backend, Client, Config, GET, Message, OK, Proxy, contains, exchange, get, wait};

/// Seconds since 1970 of an IMF-fixdate; fails where it is none.
#[track_caller]
fn seconds(date: &str) -> u64 {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    assert!(date.len() == 29 && date.ends_with(" GMT") && &date[3..5] == ", ", "{date}");
    let number = |at: std::ops::Range<usize>| date[at].parse::<u64>().expect(date);
    let is_leap =
        |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let (year, month) = (number(12..16), MONTHS.iter().position(|month| *month == &date[8..11]).expect(date));
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let days = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum::<u64>()
        + lengths[..month].iter().sum::<u64>()
        + number(5..7)
        - 1;
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    assert_eq!(&date[..3], weekday, "{date}");
    days * 86_400 + number(17..19) * 3_600 + number(20..22) * 60 + number(23..25)
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// Fails unless the message has one `Date`, which is the present.
#[track_caller]
fn expect_present(message: &Message, earliest: u64) {
    let dates = message.all("date");
    assert_eq!(dates.len(), 1, "{dates:?}");
    let said = seconds(dates[0]);
    assert!((earliest..=now()).contains(&said), "{} of {earliest}..={}", said, now());
}

#[test]
fn a_final_response_without_date_gets_the_present_one() {
    let backend = Backend::answer(|request| match request.target() {
        "/interim" => [&b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"[..], OK].concat(),
        "/dated" => b"HTTP/1.1 200 OK\r\ndate: long ago\r\nContent-Length: 2\r\n\r\nok".to_vec(),
        _ => OK.to_vec(),
    });
    let proxy = Proxy::to(&backend);
    let mut client = proxy.client();
    // Over more than a second, so that a line that is never renewed shows.
    let begin = now();
    let mut dates = std::collections::BTreeSet::new();
    while dates.len() < 3 {
        let earliest = now();
        client.send(GET);
        let response = client.response();
        response.expect(200, "ok");
        // The worker's clock is that of its last turn.
        expect_present(&response, earliest.max(begin + 1) - 1);
        dates.insert(response.field("date").unwrap().to_owned());
        wait::pace(std::time::Duration::from_millis(50));
    }
    client.send("GET /dated HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().all("date"), ["long ago"]);
    client.send("GET /interim HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().all("date"), [""; 0]);
    expect_present(&client.response(), begin);
}

#[test]
fn kakehis_own_answers_are_dated() {
    let backend = Backend::respond(OK);
    let proxy = Config::new().frontend("all", r#"hostname = "a""#).backend("all", &backend).start();
    let begin = now();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n", 404),
        ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
    ] {
        let response = exchange(&proxy, request);
        assert_eq!(response.status(), status);
        expect_present(&response, begin - 1);
    }
}

#[test]
fn options_and_trace_go_as_far_as_max_forwards_lets_them() {
    let backend = Backend::respond(OK);
    let proxy = Proxy::to(&backend);
    let ask = |method: &str, value: &str| {
        exchange(
            &proxy,
            format!("{method} /a HTTP/1.1\r\nHost: a\r\nCookie: secret\r\nMax-Forwards: {value}\r\n\r\n"),
        )
    };
    for method in ["OPTIONS", "TRACE"] {
        for (sent, passed) in [("1", "0"), ("70", "69"), ("99999999999999999999", "4294967294")] {
            ask(method, sent).expect(200, "ok");
            assert_eq!(backend.requests().last().unwrap().all("max-forwards"), [passed], "{method} {sent}");
        }
        for wrong in ["", "-1", "1x", "1, 1", "0x1", "1\r\nMax-Forwards: 1"] {
            ask(method, wrong).expect_answer(400, "bad_max_forwards");
        }
    }
    let forwarded = backend.requests().len();
    let options = ask("OPTIONS", "0");
    options.expect_answer(200, "max_forwards_reached");
    assert!(options.field("allow").is_some_and(|allow| allow.contains("GET")));
    let trace = ask("TRACE", "0");
    trace.expect_answer(405, "trace_not_reflected");
    assert!(
        !contains(&trace.raw, "secret") && trace.field("allow").is_some_and(|allow| !allow.contains("TRACE"))
    );
    assert_eq!(backend.requests().len(), forwarded, "0 goes no further");
    // The connection goes on behind such an answer.
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send("OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n");
        client.response().expect_answer(200, "max_forwards_reached");
    }
    // Other methods do not count it.
    ask("GET", "0").expect(200, "ok");
    assert_eq!(backend.requests().last().unwrap().all("max-forwards"), ["0"]);
}

#[test]
fn a_host_with_an_empty_port_is_the_host() {
    let backend = Backend::respond(OK);
    let proxy = Config::new().frontend("all", r#"hostname = "a.example""#).backend("all", &backend).start();
    for request in [
        "GET /x HTTP/1.1\r\nX: y\r\nHost: a.example:\r\n\r\n",
        "GET http://a.example:/x HTTP/1.1\r\nX: y\r\nHost: b\r\n\r\n",
        "GET http://a.example/x HTTP/1.1\r\nX: y\r\nHost: b:\r\n\r\n",
    ] {
        exchange(&proxy, request).expect(200, "ok");
        let requests = backend.requests();
        let forwarded = requests.last().unwrap();
        assert_eq!((forwarded.all("host"), forwarded.target()), (vec!["a.example"], "/x"), "{request:?}");
        assert_eq!(forwarded.all("x-forwarded-host"), ["a.example"], "{request:?}");
        assert_eq!(forwarded.all("x"), ["y"]);
    }
    get(&proxy, ":", "/").expect_answer(400, "bad_host");
    get(&proxy, "a.example::", "/").expect_answer(400, "bad_host");
}

#[test]
fn a_host_with_an_empty_port_is_not_misdirected() {
    let (backend, pki) = (Backend::respond(OK), crate::harness::Pki::new());
    let proxy = Config::https_to(&backend, &pki.issue(&["a.example"])).start();
    let mut client: Client = pki.caller().to("a.example").connect(proxy.address());
    client.send("GET / HTTP/1.1\r\nHost: a.example:\r\n\r\n");
    client.response().expect(200, "ok");
    client.send("GET / HTTP/1.1\r\nHost: b.example:\r\n\r\n");
    client.response().expect_answer(421, "misdirected_request");
}

#[test]
fn a_line_end_behind_a_request_leaves_an_idle_connection_idle() {
    const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    let backend = Backend::respond(OK);
    // Were it the beginning of a request, 408 would follow.
    let proxy =
        Config::to(&backend).listener("request_timeout = 0.2").listener("front_timeout = 1.5").start();
    // The harness has asked for something to see that the proxy serves.
    let own_answers = proxy.counter("http.own_answers");
    let begin = std::time::Instant::now();
    let mut clients: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    for (place, client) in clients.iter_mut().enumerate() {
        match place {
            // In one segment with the request, and behind its answer.
            0 => client.send(format!("{POST}\r\n")),
            _ => client.send(POST),
        }
        client.response().expect(200, "ok");
        client.send("\r\n");
    }
    // One more, twice, must not extend the deadline of an idle connection.
    wait::pace(std::time::Duration::from_millis(400));
    clients[1].send("\r\n");
    clients[2].send(format!("\r\n{GET}"));
    clients[2].response().expect(200, "ok");
    for client in &mut clients[..2] {
        client.expect_closed();
    }
    let idle = begin.elapsed();
    assert!(idle.as_secs_f64() > 1.4 && idle.as_secs_f64() < 5.0, "{idle:?}");
    assert_eq!(proxy.counter("http.own_answers"), own_answers);
}

#[test]
fn a_connection_that_is_idle_behind_a_line_end_moves_to_the_next_process_and_ends_at_a_stop() {
    let backend = Backend::respond(OK);
    let mut proxy = Proxy::to(&backend);
    // The first use of `kakehictl` may build it, for longer than a connection stays idle.
    assert_eq!(proxy.counter("client.handed_over"), 0);
    let mut client = proxy.client();
    client.send(format!("{GET}\r\n"));
    client.response().expect(200, "ok");
    client.send("\r\n");
    // It has come, as far as anybody can tell.
    wait::pace(std::time::Duration::from_millis(100));
    let upgraded = proxy.ctl(&["workers", "upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    client.send(GET);
    client.response().expect(200, "ok");
    assert!(proxy.counter("client.handed_over") >= 1);
    client.send("\r\n");
    wait::pace(std::time::Duration::from_millis(100));
    proxy.terminate();
    client.expect_closed();
    assert!(proxy.wait(std::time::Duration::from_secs(5)).success());
}
