//! The first message of a TLS client.

use std::sync::Arc;

use kakehi_engine::{limits::MAX_CLIENT_HELLO, tls::HelloReader};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::aws_lc_rs::default_provider};

use crate::pieces::Input;

/// What the reader came to.
#[derive(Debug, PartialEq)]
enum Outcome {
    Incomplete,
    Refused,
    /// Complete, with the name that is asked for, and the protocols that are offered.
    Complete(Option<Box<str>>, Vec<Vec<u8>>),
}

pub(crate) fn check(data: &[u8]) {
    let Some(input) = Input::of(data) else { return };
    let whole = read([input.bytes]);
    if let Outcome::Complete(name, protocols) = &whole {
        assert!(name.as_ref().is_none_or(|name| **name == name.to_ascii_lowercase()));
        assert!(protocols.iter().all(|protocol| (1..=255).contains(&protocol.len())));
    }
    // Of what is longer, what comes at once may be refused for its length.
    if input.bytes.len() <= MAX_CLIENT_HELLO {
        assert_eq!(whole, read(input.pieces()), "in pieces");
    }
}

/// Reads `pieces`, which arrive one after the other.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut reader = HelloReader::default();
    for piece in pieces {
        match reader.read(piece) {
            Ok(None) => {}
            Ok(Some(hello)) => {
                let protocols = hello.protocols.iter().map(<[u8]>::to_vec).collect();
                return Outcome::Complete(hello.name, protocols);
            }
            Err(_) => return Outcome::Refused,
        }
    }
    Outcome::Incomplete
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for versions in [rustls::ALL_VERSIONS, &[&rustls::version::TLS12]] {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .map(|builder| builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
        let (Ok(mut config), Ok(name)) = (config, "A.example".try_into()) else { continue };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let Ok(mut client) = ClientConnection::new(Arc::new(config), name) else { continue };
        let mut bytes = Vec::new();
        let _ = client.write_tls(&mut bytes);
        seeds.push(Input::seed(0, &bytes));
    }
    // Something else altogether, an alert, and an empty record.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x15\x03\x03\0\x02\x02\x0a", b"\x16\x03\x01\0\0"] {
        seeds.push(Input::seed(0, bytes));
    }
    seeds
}
