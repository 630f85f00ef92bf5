//! The admin address: what is served there, in which form, to whom, and by which name.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use kakehi_ctl::{
    limits,
    order::{Envelope, Request, Response},
    wire::{self, Decoder},
};

use crate::harness::{
    Backend, Cables, Client, Config, Message, Need, OK, Proxy, ask, ctl, free_port, machine, wait,
};

/// A proxy with an admin address on loopback, with further keys of it.
pub(super) fn with_admin(backend: &Backend, keys: &str) -> (Proxy, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    (Config::to(backend).root(&table(&address.to_string(), keys)).start(), address)
}

/// The table of the file.
pub(super) fn table(address: &str, keys: &str) -> String {
    format!("admin = {{ address = \"{address}\"{}{keys} }}", if keys.is_empty() { "" } else { ", " })
}

/// Asks on a connection of its own; `fields` end with their line ends.
#[track_caller]
pub(super) fn fetch(address: SocketAddr, target: &str, fields: &str) -> Message {
    send(address, &format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"))
}

#[track_caller]
fn send(address: SocketAddr, request: &str) -> Message {
    let mut client = Client::connect(address);
    client.send(request);
    if request.starts_with("HEAD ") { client.response_to("HEAD") } else { client.response() }
}

/// The value of a metric.
#[track_caller]
pub(super) fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().expect("a number")
}

fn unzipped(message: &Message) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(&message.body[..]).read_to_string(&mut text).expect("gzip");
    text
}

/// Whether somebody from this address of the loopback is served.
fn is_served_from(source: [u8; 4], address: SocketAddr) -> bool {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    is_served(socket.into())
}

fn is_served(stream: TcpStream) -> bool {
    let mut client = Client::of(stream);
    client.send("GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    client.try_response().is_ok_and(|message| message.status() == 200)
}

#[test]
fn metrics_come_in_the_form_that_is_asked_for() {
    let backend = Backend::respond(OK);
    let (proxy, admin) = with_admin(&backend, "");
    ask(&mut proxy.client());
    let prometheus = "text/plain; version=0.0.4; charset=utf-8";
    let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    for (accept, media_type) in [
        ("", prometheus),
        ("Accept: */*\r\n", prometheus),
        ("Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n", open),
        (
            "Accept: application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.3\r\n",
            prometheus,
        ),
    ] {
        for gzip in [false, true] {
            let encoding = if gzip { "Accept-Encoding: br, gzip;q=0.8\r\n" } else { "" };
            let message = fetch(admin, "/metrics", &format!("{accept}{encoding}"));
            assert_eq!(
                (message.status(), message.field("content-type")),
                (200, Some(media_type)),
                "{accept}"
            );
            assert_eq!(message.field("content-encoding"), gzip.then_some("gzip"));
            assert_eq!(message.field("vary"), Some("Accept, Accept-Encoding"));
            let text = if gzip { unzipped(&message) } else { message.text() };
            assert!(metric(&text, "kakehi_http_requests_total") > 0);
            assert_eq!(text.ends_with("# EOF\n"), media_type == open);
            let described =
                if media_type == open { "kakehi_http_requests" } else { "kakehi_http_requests_total" };
            assert!(text.contains(&format!("# TYPE {described} counter\n")), "{text}");
            assert!(text.contains("# TYPE kakehi_client_connections gauge\n"), "{text}");
            if media_type == prometheus {
                check_with_promtool(&text);
            }
            let head =
                send(admin, &format!("HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}{encoding}\r\n"));
            assert_eq!((head.status(), head.field("content-type")), (200, Some(media_type)));
            assert!(head.body.is_empty() && head.field("content-length").is_some(), "{head:?}");
        }
    }
    let requests = proxy.counter("http.requests");
    let text = fetch(admin, "/metrics", "").text();
    assert_eq!(metric(&text, "kakehi_http_requests_total"), requests);
    for (name, value) in proxy.ctl_json("status")["counters"].as_object().unwrap() {
        if name.starts_with("answers.") || name.starts_with("http.") {
            let name = format!("kakehi_{}_total", name.replace('.', "_"));
            assert_eq!(Some(metric(&text, &name)), value.as_u64(), "{name}");
        }
    }
}

/// How long the supervisor takes to say its status.
fn time_of_status(proxy: &Proxy) -> Duration {
    let mut stream = UnixStream::connect(proxy.socket()).unwrap();
    let request = wire::encode(&Envelope::new(1, Request::Status), limits::MAX_REQUEST_FRAME).unwrap();
    let asked = Instant::now();
    stream.write_all(&request).unwrap();
    let mut decoder = Decoder::new(limits::MAX_FRAME);
    let answer: Envelope<Response> = wire::read_message(&mut stream, &mut decoder).unwrap().unwrap();
    assert!(matches!(answer.body, Response::Status(_)));
    asked.elapsed()
}

/// What the tool of Prometheus says of it.
fn check_with_promtool(text: &str) {
    if !machine::has(Need::Program("promtool")) {
        return;
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn only_what_is_there_is_answered_and_only_to_be_read() {
    let backend = Backend::respond(OK);
    let (_proxy, admin) = with_admin(&backend, "");
    for (request, status) in [
        ("GET / HTTP/1.1", 200),
        ("HEAD / HTTP/1.1", 200),
        ("GET /healthz HTTP/1.1", 200),
        ("GET /readyz?verbose HTTP/1.1", 200),
        ("GET /healthz HTTP/1.0", 200),
        ("GET /nothing HTTP/1.1", 404),
        ("GET /metrics/ HTTP/1.1", 404),
        ("GET //metrics HTTP/1.1", 404),
        ("GET /../metrics HTTP/1.1", 404),
        ("POST /metrics HTTP/1.1", 405),
        ("DELETE / HTTP/1.1", 405),
        ("OPTIONS * HTTP/1.1", 405),
        ("TRACE /healthz HTTP/1.1", 405),
        ("BREW /healthz HTTP/1.1", 405),
    ] {
        let message = send(admin, &format!("{request}\r\nHost: localhost\r\n\r\n"));
        assert_eq!(message.status(), status, "{request}");
        assert_eq!(message.field("allow"), (status == 405).then_some("GET, HEAD"), "{request}");
        let policy = message.field("content-security-policy").unwrap();
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(message.field(name), Some(value), "{request}");
        }
    }
    let index = fetch(admin, "/", "");
    assert_eq!(index.field("content-type"), Some("text/html; charset=utf-8"));
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert!(index.text().contains(&format!("<a href=\"{path}\">")), "{}", index.text());
    }
    assert_eq!(fetch(admin, "/healthz", "").text(), "ok\n");
}

#[test]
fn bodies_are_refused_and_heads_have_a_size() {
    let backend = Backend::respond(OK);
    let (_proxy, admin) = with_admin(&backend, "");
    for fields in ["Content-Length: 3\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
    {
        let mut client = Client::connect(admin);
        client.send(format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{fields}"));
        let refused = client.response();
        assert_eq!((refused.status(), refused.field("connection")), (413, Some("close")));
        client.expect_closed();
    }
    // An empty one is none.
    assert_eq!(fetch(admin, "/healthz", "Content-Length: 0\r\n").status(), 200);
    let long = format!("X-Long: {}\r\n", "a".repeat(15_000));
    assert_eq!(fetch(admin, "/healthz", &long).status(), 200);
    let mut client = Client::connect(admin);
    client
        .send(format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "a".repeat(20_000)));
    assert!(client.try_response().map_or(true, |message| message.status() == 431));
    let many = "X: y\r\n".repeat(500);
    let mut client = Client::connect(admin);
    client.send(format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"));
    assert!(client.try_response().map_or(true, |message| message.status() == 431));
    // Several requests on one connection, also sent at once.
    let mut client = Client::connect(admin);
    client.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3));
    for _ in 0..3 {
        client.response().expect(200, "ok\n");
    }
}

#[test]
fn a_host_that_is_neither_an_address_nor_named_is_refused() {
    let backend = Backend::respond(OK);
    let (proxy, admin) = with_admin(&backend, "hostnames = [\"kakehi.example.org\"]");
    let status = |hosts: &str| send(admin, &format!("GET /metrics HTTP/1.1\r\n{hosts}\r\n")).status();
    let own = format!("Host: {admin}\r\n");
    for host in [
        "Host: 127.0.0.1\r\n",
        &own,
        "Host: [::1]:80\r\n",
        "Host: localhost:1\r\n",
        "Host: Kakehi.example.org\r\n",
    ] {
        assert_eq!(status(host), 200, "{host}");
    }
    for (host, refused) in [
        ("Host: evil.example\r\n", 421),
        ("Host: 127.0.0.1.evil.example\r\n", 421),
        ("", 400),
        ("Host: localhost\r\nHost: localhost\r\n", 400),
    ] {
        assert_eq!(status(host), refused, "{host}");
    }
    let absolute = "GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(send(admin, absolute).status(), 421);
    // Live, for a connection that is there already.
    let mut client = Client::connect(admin);
    let mut ask = |host: &str| {
        client.send(format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.response().status()
    };
    assert_eq!((ask("other.example"), ask("kakehi.example.org")), (421, 200));
    ctl(&proxy, &["settings", "patch", "admin.hostnames=[\"other.example\"]"]);
    assert_eq!((ask("other.example"), ask("kakehi.example.org")), (200, 421));
}

#[test]
fn only_the_networks_that_are_allowed_may_connect() {
    let backend = Backend::respond(OK);
    let (proxy, admin) = with_admin(&backend, "");
    for source in [[127, 0, 0, 1], [127, 0, 0, 9]] {
        assert!(is_served_from(source, admin));
    }
    let mut kept = Client::connect(admin);
    kept.send("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    kept.response().expect(200, "ok\n");
    let said = ctl(&proxy, &["settings", "patch", "admin.allow=[\"127.0.0.8/29\"]"]);
    assert!(said.contains("~ admin.allow") && said.contains("127.0.0.8/29"), "{said}");
    // Also who is connected goes.
    kept.expect_closed();
    assert!(is_served_from([127, 0, 0, 9], admin));
    assert!(!is_served_from([127, 0, 0, 1], admin) && !is_served_from([127, 0, 0, 16], admin));
    wait::until("that is counted", || proxy.counter("admin.sources_refused") >= 3);
    proxy.logged("may not connect to the admin address");
    ctl(&proxy, &["settings", "patch", "admin.allow="]);
    assert!(is_served_from([127, 0, 0, 1], admin));
}

#[test]
fn of_two_networks_the_one_that_is_allowed_is_served() {
    if !(machine::has(Need::Networks) && machine::has(Need::Program("ip"))) {
        return;
    }
    let cables = Cables::new();
    let backend = Backend::respond(OK);
    let port = free_port();
    let table = table(&format!("0.0.0.0:{port}"), "allow = [\"10.9.0.0/24\"]");
    let _proxy = Config::to(&backend).root(&table).start();
    assert!(is_served(cables.connect(0, port).unwrap()));
    assert!(!is_served(cables.connect(1, port).unwrap()));
    assert!(!is_served(TcpStream::connect((IpAddr::from([127, 0, 0, 1]), port)).unwrap()));
}

#[test]
fn who_is_slow_with_a_head_is_cut_after_ten_seconds() {
    let backend = Backend::respond(OK);
    let (proxy, admin) = with_admin(&backend, "");
    let begun = Instant::now();
    let mut slow: Vec<_> = ["", "GET /metrics HTTP/1.1\r\nHost: l"]
        .into_iter()
        .map(|text| {
            let mut client = Client::connect(admin);
            client.send(text);
            client.patience(Duration::from_secs(20));
            client
        })
        .collect();
    assert_eq!(fetch(admin, "/healthz", "").status(), 200);
    slow.iter_mut().for_each(Client::expect_closed);
    let took = begun.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(20)).contains(&took), "{took:?}");
    wait::until("both are counted", || proxy.counter("admin.timeouts") >= 2);
}

#[test]
fn two_hundred_readers_that_do_not_read_cost_little_memory_and_hold_nobody_up() {
    let backend = Backend::respond(OK);
    let (proxy, admin) = with_admin(&backend, "");
    proxy.ctl_json("status");
    let before = proxy.supervisor().resident();
    let pipelined = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2_000);
    let mut readers = Vec::new();
    for number in 0..200 {
        let stream = TcpStream::connect(admin).unwrap();
        stream.set_nonblocking(true).unwrap();
        let _ = (&stream).write(pipelined.as_bytes());
        readers.push(stream);
        if number % 10 == 0 {
            ask(&mut proxy.client());
        }
    }
    let times = (0..50).map(|_| {
        ask(&mut proxy.client());
        time_of_status(&proxy)
    });
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    // Nine of ten: a machine that is busy with other tests holds up the one or the other.
    assert!(times[44] < Duration::from_millis(100), "status took {times:?}");
    let grown = proxy.supervisor().resident().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
    // Somebody who reads finds a place, as those who stand still go for him.
    wait::until("a place", || {
        let mut client = Client::connect(admin);
        client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client.try_response().is_ok_and(|message| message.status() == 200)
    });
    let counters = &proxy.ctl_json("status")["counters"];
    assert!(counters["admin.clients"].as_u64() <= Some(66), "{counters}");
    let gone = counters["admin.evicted"].as_u64().unwrap() + counters["admin.crowded"].as_u64().unwrap();
    assert!(gone >= 130, "{counters}");
    drop(readers);
    wait::until("all are gone", || proxy.counter("admin.clients") <= 1);
}
