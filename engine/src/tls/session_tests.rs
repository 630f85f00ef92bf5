//! Sessions against each other: whole, in pieces, and harassed.

use std::sync::Arc;

use ::aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{
    ClientConfig, ConnectionTrafficSecrets, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs::default_provider,
    version::{TLS12, TLS13},
};
use rustls_pki_types::PrivateKeyDer;

use super::*;

/// A client and a server that have not said anything yet.
fn pair(version: &'static SupportedProtocolVersion) -> (Session, Session) {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let name = "a.example".try_into().unwrap();
    let mut sessions = (
        Session::client(UnbufferedClientConnection::new(Arc::new(client), name).unwrap()),
        Session::server(UnbufferedServerConnection::new(Arc::new(server)).unwrap()),
    );
    sessions.0.keep_at_most(MAX_CERTIFICATES);
    sessions.0.open(&mut [], &mut Vec::new()).unwrap();
    sessions
}

/// Gives `bytes` to `to` in pieces; the plaintext.
fn feed(to: &mut Session, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut plain = Vec::new();
    for piece in bytes.chunks(piece) {
        to.open(&mut piece.to_vec(), &mut plain).unwrap();
    }
    plain
}

/// Both after their handshake, which came in pieces.
fn shaken(version: &'static SupportedProtocolVersion, piece: usize) -> (Session, Session) {
    let (mut client, mut server) = pair(version);
    loop {
        let (said, answered) = (client.take_pending(), server.take_pending());
        if said.is_none() && answered.is_none() {
            assert!(client.is_established() && server.is_established());
            return (client, server);
        }
        for (to, bytes) in [(&mut server, said), (&mut client, answered)] {
            assert!(feed(to, &bytes.unwrap_or_default(), piece).is_empty());
        }
    }
}

fn sealed(from: &mut Session, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let length = from.seal(plain, &mut out).unwrap();
    out.truncate(length);
    out
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn what_one_side_says_the_other_hears_however_it_is_cut() {
    for version in [&TLS12, &TLS13] {
        for piece in [1, 7, 1_000, 16_384, usize::MAX] {
            let (mut client, mut server) = shaken(version, piece);
            for length in [1, 100, 16_383, 16_384, 16_385, 100_000] {
                let plain = pattern(length);
                let records = sealed(&mut client, &plain);
                assert_eq!(feed(&mut server, &records, piece), plain, "{version:?} {piece} {length}");
                let records = sealed(&mut server, &plain);
                assert_eq!(feed(&mut client, &records, piece), plain, "{version:?} {piece} {length}");
            }
            assert!(server.is_between_records(), "nothing is kept");
            assert_eq!((server.partial.capacity(), server.pending.capacity()), (0, 0), "nor any buffer");
        }
    }
}

#[test]
fn in_bulk_it_is_decrypted_where_it_lies_and_what_is_left_of_a_record_comes_first_the_next_time() {
    let (mut client, mut server) = shaken(&TLS13, usize::MAX);
    let plain = pattern(300_000);
    let records = sealed(&mut client, &plain);
    const GAP: usize = RECORD_CONTENT + 512;
    for piece in [50_000, 16_406, 5, 123_456] {
        let records = if piece == 50_000 { records.clone() } else { sealed(&mut client, &plain) };
        let mut heard = Vec::new();
        for bytes in records.chunks(piece) {
            let kept = server.partial().to_vec();
            let mut buffer = vec![0; GAP + kept.len() + bytes.len()];
            buffer[GAP..GAP + kept.len()].copy_from_slice(&kept);
            buffer[GAP + kept.len()..].copy_from_slice(bytes);
            let end = buffer.len();
            let length = server.open_in_place(&mut buffer, GAP..end).unwrap();
            heard.extend_from_slice(&buffer[..length]);
        }
        assert!(heard == plain, "{piece}");
    }
}

#[test]
fn the_end_is_heard_and_nothing_behind_it() {
    let (mut client, mut server) = shaken(&TLS13, usize::MAX);
    let mut records = sealed(&mut client, b"last");
    let mut out = Vec::new();
    let length = client.close(&mut out).unwrap();
    records.extend_from_slice(&out[..length]);
    records.extend_from_slice(b"whatever");
    assert_eq!(feed(&mut server, &records, usize::MAX), b"last");
    assert!(server.is_finished() && !server.is_between_records());
    // A half-close: the other direction goes on.
    let records = sealed(&mut server, b"answer");
    assert_eq!(feed(&mut client, &records, usize::MAX), b"answer");
}

#[test]
fn what_was_changed_on_the_way_is_not_given_out_and_nothing_after_it() {
    for at in [0, 3, 5, 20, 100] {
        let (mut client, mut server) = shaken(&TLS13, usize::MAX);
        let mut records = sealed(&mut client, &pattern(200));
        records[at] ^= 0x55;
        records.append(&mut sealed(&mut client, b"behind"));
        let mut plain = Vec::new();
        let heard = server.open(&mut records, &mut plain);
        // A length that was made longer is an incomplete record first.
        if heard.is_ok() {
            assert!(server.open(&mut pattern(40_000), &mut plain).is_err(), "byte {at}");
        }
        assert!(plain.is_empty() && server.has_failed(), "byte {at}");
        assert!(server.take_pending().is_some(), "the alert");
        let mut more = sealed(&mut client, b"more");
        assert!(server.open(&mut more, &mut plain).is_ok() && plain.is_empty());
        assert!(server.seal(b"x", &mut Vec::new()).is_err());
    }
}

#[test]
fn garbage_and_endless_messages_are_refused_before_they_fill_memory() {
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], &[22, 3, 1, 255, 255, 1], &[22, 3, 1, 0, 0]] {
        let (_, mut server) = pair(&TLS13);
        let mut bytes = garbage.repeat(2_000);
        assert!(server.open(&mut bytes, &mut Vec::new()).is_err(), "{garbage:?}");
    }
    // A first message that says that it has 16 MiB, in records that are right.
    let (_, mut server) = pair(&TLS13);
    server.keep_at_most(16_384);
    let mut plain = Vec::new();
    let mut record = vec![22, 3, 1, 0x40, 0, 1, 255, 255, 255];
    record.resize(5 + 0x4000, 0);
    let refused = (0..3).any(|_| server.open(&mut record.clone(), &mut plain).is_err());
    assert!(refused && server.partial.capacity() < 70_000);
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below.max(1) as u64) as usize
    }
}

/// Gives `bytes`, with some of them changed, cut out or repeated, to `to` in pieces, and has it speak in between.
fn harass(to: &mut Session, mut bytes: Vec<u8>, dice: &mut Dice) {
    for _ in 0..dice.roll(3) {
        let at = dice.roll(bytes.len());
        match dice.roll(5) {
            0 => bytes.truncate(at),
            1 => bytes.splice(at..at, bytes[at..bytes.len().min(at + 40)].to_vec()).for_each(drop),
            // The header of a record: kinds and lengths that may fit.
            2 => bytes
                .splice(at..at, [[20, 21, 22, 23][dice.roll(4)], 3, 3, 0, dice.roll(20) as u8])
                .for_each(drop),
            3 => drop(bytes.drain(at..bytes.len().min(at + 10))),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << dice.roll(8)),
        }
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(1 + dice.roll(rest.len()));
        rest = behind;
        if dice.roll(3) == 0 && to.partial().len() < 20_000 {
            let mut buffer = vec![0; 17_000];
            buffer.extend_from_slice(to.partial());
            buffer.extend_from_slice(piece);
            let end = buffer.len();
            let _ = to.seal(b"meanwhile", &mut Vec::new());
            if !to.has_failed() {
                let _ = to.open_in_place(&mut buffer, 17_000..end);
            }
        } else {
            let _ = to.open(&mut piece.to_vec(), &mut Vec::new());
        }
        match dice.roll(8) {
            0 => drop(to.seal(&pattern(dice.roll(20_000)), &mut Vec::new())),
            1 => drop(to.close(&mut Vec::new())),
            2 => drop(to.take_pending()),
            _ => {}
        }
    }
}

#[test]
fn whatever_comes_before_between_and_after_handshakes_nothing_panics() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for round in 0..400 {
        let version = if round % 2 == 0 { &TLS12 } else { &TLS13 };
        let (mut client, mut server) = pair(version);
        let late = dice.roll(4);
        for turn in 0..4 {
            let (said, answered) = (client.take_pending(), server.take_pending());
            for (to, bytes) in [(&mut server, said), (&mut client, answered)] {
                let bytes = bytes.unwrap_or_default();
                if turn >= late {
                    harass(to, bytes, &mut dice);
                } else {
                    let _ = to.open(&mut bytes.clone(), &mut Vec::new());
                }
            }
        }
        for _ in 0..6 {
            let mut out = Vec::new();
            if let Ok(length) = client.seal(&pattern(1 + dice.roll(30_000)), &mut out) {
                out.truncate(length);
                harass(&mut server, out, &mut dice);
            }
        }
    }
}

/// A record of TLS 1.3 as a client that obeys no rule may send it.
fn record(key: &LessSafeKey, iv: &[u8], number: u64, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut nonce: [u8; 12] = iv.try_into().unwrap();
    for (byte, of_number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
        *byte ^= of_number;
    }
    let mut sealed = [content, &[kind]].concat();
    let header = [23, 3, 3, 0, u8::try_from(sealed.len() + 16).unwrap()];
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).unwrap();
    [&header[..], &sealed].concat()
}

#[test]
fn half_a_message_of_a_handshake_is_no_obstacle_to_sending() {
    let (client, mut server) = shaken(&TLS13, usize::MAX);
    let Side::Client(client) = client.side else { unreachable!() };
    let (number, secrets) = client.dangerous_into_kernel_connection().unwrap().0.tx;
    let ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else { panic!("another suite") };
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap());
    // KeyUpdate (RFC 8446 section 4.6.3), in two records.
    let half = record(&key, iv.as_ref(), number, 22, &[24, 0]);
    let rest = record(&key, iv.as_ref(), number + 1, 22, &[0, 1, 0]);
    let mut buffer = vec![0; 40_000];
    let at = 20_000;
    buffer[at..at + half.len()].copy_from_slice(&half);
    assert_eq!(server.open_in_place(&mut buffer, at..at + half.len()), Ok(0));
    // While the rest is waited for, in a buffer that the kernel has, an answer leaves.
    let mut out = Vec::new();
    assert!(server.seal(b"answer", &mut out).unwrap() > 6);
    let kept = server.partial().to_vec();
    assert!(!kept.is_empty());
    let end = at + kept.len() + rest.len();
    buffer[at..end].copy_from_slice(&[kept, rest].concat());
    assert_eq!(server.open_in_place(&mut buffer, at..end), Ok(0));
    assert!(server.is_between_records());
    assert!(server.seal(b"answer", &mut out).unwrap() > 6);
}
