//! The harness tells the truth: proved on its own client and backend, without a proxy between them.

use std::{
    io::{Read as _, Write as _},
    time::Duration,
};

use crate::harness::{
    Backend, Client, Config, Dice, End, Framing, OK, chunks,
    flow::{self, Body, Fate, Mirror, Plan, Range},
    noise,
};

#[test]
fn a_backend_keeps_what_it_was_sent_byte_for_byte() {
    let backend = Backend::respond(OK);
    let mut client = Client::connect(backend.socket_address());
    let request = b"POST /x HTTP/1.1\r\nhost:  a \r\nContent-Length: 3\r\n\r\nabc";
    client.send(request);
    client.response().expect(200, "ok");
    assert_eq!(backend.received(), request);
    let kept = backend.request();
    assert_eq!((kept.method(), kept.target(), kept.version()), ("POST", "/x", "HTTP/1.1"));
    assert_eq!((kept.field("Host"), kept.body.as_slice()), (Some("a"), b"abc".as_slice()));
    assert_eq!(kept.raw, request);
}

#[test]
fn a_client_reads_each_kind_of_body() {
    let data = noise(300_000);
    let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunked.extend(chunks(&data, 7_000));
    chunked.extend(b"0\r\nDigest: x\r\n\r\n");
    let backend = Backend::answer(move |request| match request.target() {
        "/chunked" => chunked.clone(),
        "/none" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        _ => OK.to_vec(),
    });
    let mut client = Client::connect(backend.socket_address());
    client.send("GET /none HTTP/1.1\r\n\r\nGET /chunked HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n");
    assert_eq!(client.response().framing, Framing::None);
    let response = client.response();
    assert_eq!((response.framing, response.body), (Framing::Chunked, data));
    assert_eq!(response.trailers, [("Digest".to_owned(), "x".to_owned())]);
    assert_eq!(client.response().framing, Framing::Length);
    assert_eq!(backend.targets(), ["/none", "/chunked", "/"]);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_body_that_is_cut_short_is_not_a_response() {
    for (answer, reset) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", false),
        ("HTTP/1.1 200 OK\r\n\r\nabc", true),
    ] {
        let backend = Backend::script(move |conn| {
            conn.request();
            conn.send(answer);
            if reset {
                conn.reset();
            }
        });
        let mut client = Client::connect(backend.socket_address());
        client.send("GET / HTTP/1.1\r\n\r\n");
        let broken = client.try_response().expect_err(answer);
        assert_eq!(broken.end, if reset { End::Reset } else { End::Eof }, "{broken}");
    }
}

#[test]
fn a_configuration_has_the_lines_of_the_test_and_the_defaults_of_the_harness() {
    let text = Config::new()
        .root("worker_count = 2")
        .listener("request_timeout = 0.3")
        .frontend("web", r#"hostname = "a.example""#)
        .backend_at("web", "127.0.0.1:9", "weight = 3")
        .text(&["127.0.0.1:8".parse().unwrap()]);
    assert_eq!(
        text,
        r#"command_socket = "kakehi.sock"
handle_process_affinity = false
worker_count = 2

[[listeners]]
address = "127.0.0.1:8"
protocol = "http"
request_timeout = 0.3

[clusters.web]
protocol = "http"
frontends = [
  { address = "127.0.0.1:8", hostname = "a.example" },
]
backends = [
  { address = "127.0.0.1:9", weight = 3 },
]
"#
    );
}

#[test]
fn both_sides_of_a_flow_see_all_of_each_other_without_a_proxy_between() {
    let mirror = Mirror::tcp(None);
    let mut dice = Dice::new(1);
    for number in 0..20 {
        let plan = Plan::random(&mut dice, Range { size: 2 << 20, pause: Duration::from_millis(10) });
        mirror.expect(number, &plan);
        let mut stream = flow::plain(mirror.address().parse().unwrap());
        let client = flow::call(&mut stream, &plan, number);
        assert_eq!((client.fate, client.sent), (Fate::Whole, true), "{plan:?}");
        drop(stream);
        let backend = mirror.seen(number);
        assert_eq!((backend.fate, backend.sent), (Fate::Whole, true), "{plan:?}");
    }
}

#[test]
#[should_panic(expected = "byte 70000 of 100000 is wrong")]
fn a_flow_fails_at_the_first_byte_that_is_wrong() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let plan = Plan { down: Body::of(100_000), ..Plan::default() };
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut body = noise(100_000);
        body[70_000] ^= 1;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").unwrap();
        stream.write_all(&body).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    flow::call(&mut flow::plain(address), &plan, 0);
}
