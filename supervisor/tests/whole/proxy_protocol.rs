//! The PROXY protocol says who the client is: read on listeners of every kind, written to backends.

use std::net::SocketAddr;

use crate::harness::{Backend, Client, Config, GET, OK, Pki, Server, wait};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, rest].concat()
}

/// Addresses of IPv4: from 203.0.113.7:4711 to 198.51.100.1:443.
const IPV4: [u8; 12] = [203, 0, 113, 7, 198, 51, 100, 1, 0x12, 0x67, 1, 0xbb];

/// A header of version 2 with its checksum (CRC-32c, reflected polynomial 0x82f63b78), of which `flipped` bits are wrong.
fn checksummed(command: u8, family: u8, addresses: &[u8], flipped: u32) -> Vec<u8> {
    let mut header = v2(command, family, &[addresses, &[3, 0, 4, 0, 0, 0, 0]].concat());
    let sum = !header.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    });
    let at = header.len() - 4;
    header[at..].copy_from_slice(&(sum ^ flipped).to_be_bytes());
    header
}

/// Headers that say something, with the client's address as it is told; `None`: that of the connection.
fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
    let ipv6: Vec<u8> = [
        &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..],
        &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        &[0x12, 0x67, 1, 0xbb],
    ]
    .concat();
    vec![
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\n".to_vec(), Some("203.0.113.7")),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n".to_vec(), Some("2001:db8::1")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (v2(0x21, 0x11, &IPV4), Some("203.0.113.7")),
        (v2(0x21, 0x11, &[&IPV4[..], &[4, 0, 2, 0, 0]].concat()), Some("203.0.113.7")),
        (v2(0x21, 0x21, &ipv6), Some("2001:db8::1")),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, &IPV4), None),
        (v2(0x20, 0x11, &[]), None),
        (v2(0x20, 0x21, &IPV4), None),
        (v2(0x20, 0x32, &[]), None),
        (checksummed(0x21, 0x11, &IPV4, 0), Some("203.0.113.7")),
        (checksummed(0x20, 0x00, &[], 0), None),
    ]
}

#[test]
fn backends_learn_the_client_that_a_header_names() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::to(&backend)
        .listener("expect_proxy = true")
        .another_listener()
        .https(&pki.issue(&["a"]))
        .listener("expect_proxy = true")
        .frontend_on(1, "all", r#"hostname = "*""#)
        .start();
    let mut expected = Vec::new();
    for (header, address) in headers() {
        let address = address.unwrap_or("127.0.0.1");
        let forwarded = if address.contains(':') { format!("\"[{address}]\"") } else { address.to_owned() };
        // In one segment with the request, or byte by byte.
        for pieces in [header.len(), 1] {
            let mut client = Client::connect(proxy.address());
            header.chunks(pieces).for_each(|piece| client.send(piece));
            client.send(GET);
            client.response().expect(200, "ok");
            client.send(GET);
            client.response().expect(200, "ok");
            let tcp = std::net::TcpStream::connect(proxy.address_of(1)).unwrap();
            tcp.set_nodelay(true).unwrap();
            header.chunks(pieces).for_each(|piece| std::io::Write::write_all(&mut &tcp, piece).unwrap());
            let mut client = pki.caller().over(tcp).unwrap();
            client.send(GET);
            client.response().expect(200, "ok");
            for scheme in ["http", "http", "https"] {
                expected.push((address.to_owned(), format!("for={forwarded};host=a;proto={scheme}")));
            }
        }
    }
    let mut joined = Client::connect(proxy.address());
    joined.send([v2(0x21, 0x11, &IPV4).as_slice(), GET.as_bytes()].concat());
    joined.response().expect(200, "ok");
    expected.push(("203.0.113.7".to_owned(), "for=203.0.113.7;host=a;proto=http".to_owned()));
    let told: Vec<(String, String)> = backend
        .requests()
        .iter()
        .map(|it| (it.all("X-Forwarded-For").join(","), it.all("Forwarded").join(",")))
        .collect();
    assert_eq!(told, expected);
}

#[test]
fn what_does_not_begin_with_a_header_is_closed_and_counted() {
    let (backend, pki) = (Backend::respond(OK), Pki::new());
    let proxy = Config::to(&backend)
        .root("request_timeout = 0.4")
        .listener("expect_proxy = true")
        .another_listener()
        .https(&pki.issue(&["a"]))
        .listener("expect_proxy = true")
        .frontend_on(1, "all", r#"hostname = "*""#)
        .another_listener()
        .listener(r#"protocol = "tcp""#)
        .listener("expect_proxy = true")
        .cluster("tcp", r#"protocol = "tcp""#)
        .frontend_on(2, "tcp", "")
        .backend("tcp", &backend)
        .start();
    let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200)).into_bytes();
    let hello = pki.caller().hello();
    let mut count = 0;
    for listener in 0..3 {
        let address = proxy.address_of(listener);
        for wrong in [
            GET.as_bytes(),
            &hello,
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1000\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 99999\r\n",
            b"PROXY TCP4 ::1 ::1 1 1\r\n",
            b"proxy tcp4 1.2.3.4 5.6.7.8 1 1\r\n",
            &long,
            &v2(0x11, 0x11, &IPV4),
            &v2(0x21, 0x12, &IPV4),
            &v2(0x21, 0x11, &IPV4[..11]),
            &v2(0x21, 0x11, &[0; 5_000]),
            &checksummed(0x21, 0x11, &IPV4, 1),
            &checksummed(0x20, 0x00, &[], 1 << 31),
        ] {
            let mut client = Client::connect(address);
            client.send(wrong);
            client.expect_closed();
            count += 1;
        }
        assert_eq!(proxy.counter("proxy_protocol.errors"), count);
        // Half a header, or none, is waited for, but not for ever.
        for part in [&b""[..], b"PROXY TCP4 1.2", &SIGNATURE[..9]] {
            let mut client = Client::connect(address);
            client.send(part);
            if listener != 1 {
                client.expect_closed();
            }
        }
    }
    backend.expect_untouched();
}

#[test]
fn a_peer_that_may_not_say_who_the_client_is_is_refused() {
    let backend = Backend::respond(OK);
    for (networks, served) in
        [(r#"["10.0.0.0/8"]"#, false), ("[]", false), (r#"["10.0.0.0/8", "127.0.0.1"]"#, true)]
    {
        let proxy = Config::to(&backend)
            .listener("expect_proxy = true")
            .listener(&format!("proxy_protocol_from = {networks}"))
            .start();
        // The refusal may be so quick that it is one of the connection.
        let client = Client::try_connect(proxy.address()).map(|mut client| {
            client.send([&b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"[..], GET.as_bytes()].concat());
            client
        });
        if served {
            client.unwrap().response().expect(200, "ok");
        } else {
            if let Ok(mut client) = client {
                client.expect_closed();
            }
            proxy.wait_for_counter("proxy_protocol.refused", 1);
        }
    }
    assert_eq!(backend.requests().len(), 1);
}

/// Reads a header of version 2: the client that it names.
fn read_header(conn: &mut crate::harness::Conn) -> Option<SocketAddr> {
    let fixed = conn.bytes(16).ok()?;
    assert_eq!((&fixed[..12], fixed[12]), (&SIGNATURE[..], 0x21));
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let rest = conn.bytes(length).ok()?;
    assert_eq!((fixed[13], length), (0x11, 12));
    Some(SocketAddr::from(([rest[0], rest[1], rest[2], rest[3]], u16::from_be_bytes([rest[8], rest[9]]))))
}

#[test]
fn backends_see_a_header_first_and_no_connection_of_somebody_else() {
    let backend = Backend::script(|conn| {
        let Some(client) = read_header(conn) else { return };
        let answer = client.to_string();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
        while conn.serve(|_| answer.clone().into_bytes()) {}
    });
    let proxy = Config::to(&backend)
        .cluster("all", "send_proxy = true")
        .another_listener()
        .listener("expect_proxy = true")
        .frontend_on(1, "all", r#"hostname = "*""#)
        .start();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let tcp = std::net::TcpStream::connect(proxy.address()).unwrap();
        let me = tcp.local_addr().unwrap().to_string();
        let mut client = Client::of(tcp);
        for _ in 0..2 {
            client.send(GET);
            client.response().expect(200, &me);
        }
        seen.push(me);
    }
    let mut client = Client::connect(proxy.address_of(1));
    client.send("PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\n");
    client.send(GET);
    client.response().expect(200, "203.0.113.7:4711");
}

#[test]
fn the_header_goes_before_tls_and_before_a_connection_passed_on() {
    let pki = Pki::new();
    // TLS begins behind the header: so the backend is one of plain TCP that looks for both.
    let over_tls = Backend::script(|conn| {
        let Some(_) = read_header(conn) else { return };
        let record = conn.bytes(3).unwrap_or_default();
        assert_eq!(record, [22, 3, 1]);
        conn.send("tls follows");
    });
    let passed = Backend::script(|conn| {
        let Some(client) = read_header(conn) else { return };
        conn.send(client.to_string());
        conn.echo();
    });
    let proxy = Config::to(&over_tls)
        .cluster("all", "send_proxy = true")
        .cluster("all", &format!("backend_tls = {{ {} }}", pki.ca("ca")))
        .another_listener()
        .listener(r#"protocol = "tcp""#)
        .cluster("tcp", r#"protocol = "tcp""#)
        .cluster("tcp", "send_proxy = true")
        .frontend_on(1, "tcp", "")
        .backend("tcp", &passed)
        .start();
    let mut client = proxy.client();
    client.send(GET);
    client.response().expect_answer(502, "backend_tls_failed");
    wait::until("header and hello", || over_tls.received().starts_with(SIGNATURE));
    let tcp = std::net::TcpStream::connect(proxy.address_of(1)).unwrap();
    let me = tcp.local_addr().unwrap().to_string();
    let mut client = Client::of(tcp);
    assert_eq!(client.bytes(me.len()), me.as_bytes());
    client.send("hello");
    assert_eq!(client.bytes(5), b"hello");
}

#[test]
fn tls_behind_a_header_is_answered_whole() {
    let pki = Pki::new();
    let server: Server = pki.server(&["127.0.0.1"]);
    let backend = Backend::tls_behind_header(&server, |conn| while conn.serve(|_| OK.to_vec()) {});
    let proxy = Config::to(&backend)
        .cluster("all", "send_proxy = true")
        .cluster("all", &format!("backend_tls = {{ {} }}", pki.ca("ca")))
        .start();
    for _ in 0..3 {
        let mut client = proxy.client();
        for _ in 0..2 {
            client.send(GET);
            client.response().expect(200, "ok");
        }
    }
    assert_eq!(server.shaken().len(), 6, "no connection is used twice");
}
