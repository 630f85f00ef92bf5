//! Clients against a server of rustls, which answers as the backend does.

use std::net::{SocketAddr, TcpListener};

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::NoServerSessionStorage;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::generator::{Bound, Generator, Load, Mode, Tally};
use crate::identity::Identity;
use crate::payload;

/// A server with a thread for each connection. Its threads end with the process of the test.
fn serve(identity: &Identity, resumes: bool) -> SocketAddr {
    let folder = tempfile::tempdir().unwrap();
    let key = PrivateKeyDer::from_pem_file(identity.write(folder.path()).unwrap().key).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate().clone()], key)
        .unwrap();
    if !resumes {
        config.session_storage = Arc::new(NoServerSessionStorage {});
    }
    let config = Arc::new(config);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let stream = StreamOwned::new(connection, stream.unwrap());
            std::thread::spawn(move || drop(converse(stream)));
        }
    });
    address
}

fn converse(mut stream: StreamOwned<ServerConnection, std::net::TcpStream>) -> io::Result<()> {
    let mut head = Vec::new();
    loop {
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
        let path = text.split(' ').nth(1).unwrap();
        let length = path.strip_prefix("/bytes/").unwrap().parse().unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(&[answer.as_bytes(), &payload::body(length)].concat())?;
        stream.flush()?;
        if text.contains("Connection: close") {
            stream.conn.send_close_notify();
            return stream.flush();
        }
    }
}

fn drive(target: SocketAddr, identity: &Identity, tickets: Tickets, body: usize, mode: Mode) -> Tally {
    let load = Load { connections: 4, body, mode, ..Load::on(target) };
    let tls = Tls::new(identity.certificate().clone(), tickets).unwrap();
    Generator::with(load, Some(tls)).unwrap().drive(Bound::Requests(40)).unwrap()
}

#[test]
fn bodies_of_any_length_come_through_whole() {
    let identity = Identity::generate().unwrap();
    let target = serve(&identity, true);
    for body in [0, 16, 16_384, 16_385, 1 << 20] {
        let tally = drive(target, &identity, Tickets::Ignore, body, Mode::KeepAlive);
        assert_eq!(tally.faults.to_string(), "none", "{body}");
        assert_eq!((tally.handshakes.full, tally.handshakes.resumed), (4, 0), "{body}");
    }
}

#[test]
fn every_connection_without_tickets_makes_a_full_handshake() {
    let identity = Identity::generate().unwrap();
    let tally = drive(serve(&identity, true), &identity, Tickets::Ignore, 16, Mode::Close);
    assert_eq!(tally.faults.to_string(), "none");
    assert!(tally.handshakes.full >= 40);
    assert_eq!(tally.handshakes.resumed, 0);
}

#[test]
fn every_connection_of_a_client_but_the_first_resumes() {
    let identity = Identity::generate().unwrap();
    let tally = drive(serve(&identity, true), &identity, Tickets::Use, 16, Mode::Close);
    assert_eq!(tally.faults.to_string(), "none");
    assert_eq!(tally.handshakes.full, 4);
    assert!(tally.handshakes.resumed >= 36);
}

#[test]
fn a_server_that_does_not_resume_is_found_out() {
    let identity = Identity::generate().unwrap();
    let target = serve(&identity, false);
    let load = Load { connections: 4, mode: Mode::Close, ..Load::on(target) };
    let tls = Tls::new(identity.certificate().clone(), Tickets::Use).unwrap();
    let mut generator = Generator::with(load, Some(tls)).unwrap();
    let error = generator.drive(Bound::Requests(5)).unwrap_err();
    assert!(error.to_string().ends_with(" not resumed"), "{error}");
}

#[test]
fn a_server_with_another_certificate_is_not_spoken_with() {
    let target = serve(&Identity::generate().unwrap(), true);
    let tls = Tls::new(Identity::generate().unwrap().certificate().clone(), Tickets::Ignore).unwrap();
    let error = Generator::with(Load::on(target), Some(tls)).unwrap().drive(Bound::Requests(1)).unwrap_err();
    assert!(error.to_string().ends_with(" TLS"), "{error}");
}
