//! The checks of TLS: handshakes, bodies both ways, sessions that are resumed, in both versions of the protocol.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, SupportedProtocolVersion,
    version,
};

use crate::message::{SOCKET_DEADLINE, Sum, Wire, pattern};
use crate::traffic::{answer, expect, get};
use crate::{Verdict, explain};

const MIB: usize = 1024 * 1024;
/// The name that the certificate is for.
const NAME: &str = "guest.test";
const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";

/// A check by its name, which is the sentence that it proves.
type Check = (&'static str, fn(&Client) -> Verdict);

const CHECKS: [Check; 2] = [
    ("a_mebibyte_goes_both_ways_by_tls", a_mebibyte_goes_both_ways),
    ("a_tls_session_is_resumed", a_session_is_resumed),
];

/// Puts a certificate and its key into `folder`; the keys of a listener's section that name them.
pub(crate) fn issue(folder: &Path) -> Result<String, String> {
    let key = KeyPair::generate().map_err(explain("making a key"))?;
    let params = CertificateParams::new([NAME.to_owned()]).map_err(explain("naming a certificate"))?;
    let certificate = params.self_signed(&key).map_err(explain("signing a certificate"))?;
    fs::write(folder.join(CERTIFICATE), certificate.pem()).map_err(explain("writing a certificate"))?;
    fs::write(folder.join(KEY), key.serialize_pem()).map_err(explain("writing a key"))?;
    let folder = folder.display();
    Ok(format!("certificate = \"{folder}/{CERTIFICATE}\"\nkey = \"{folder}/{KEY}\""))
}

/// Runs all of them on what listens at `address` with the certificate in `folder`; the outcome of each goes to `add`.
pub(crate) fn check(address: SocketAddr, folder: &Path, mut add: impl FnMut(&str, Verdict)) {
    for (suffix, version) in [("1.3", &version::TLS13), ("1.2", &version::TLS12)] {
        let client = Client::new(address, folder, version);
        for (name, check) in CHECKS {
            let verdict = client.as_ref().map_err(Clone::clone).and_then(check);
            add(&format!("{name}_{suffix}"), verdict);
        }
    }
}

/// Somebody who trusts nothing but that certificate.
struct Client {
    address: SocketAddr,
    config: Arc<ClientConfig>,
}

type TlsWire = Wire<StreamOwned<ClientConnection, TcpStream>>;

impl Client {
    fn new(
        address: SocketAddr,
        folder: &Path,
        version: &'static SupportedProtocolVersion,
    ) -> Result<Client, String> {
        let certificate = CertificateDer::from_pem_file(folder.join(CERTIFICATE));
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate.map_err(explain("reading the certificate"))?)
            .map_err(explain("trusting the certificate"))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .map_err(explain("choosing a version"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Client { address, config: Arc::new(config) })
    }

    fn connect(&self) -> Result<TlsWire, String> {
        let name = ServerName::try_from(NAME).map_err(explain("naming the server"))?;
        let session = ClientConnection::new(Arc::clone(&self.config), name);
        let session = session.map_err(explain("beginning a handshake"))?;
        let stream = TcpStream::connect_timeout(&self.address, SOCKET_DEADLINE)
            .map_err(explain(&format!("connecting to {}", self.address)))?;
        let wire = Wire::new(stream).map_err(explain("setting up the socket"))?;
        Ok(wire.map(|stream| StreamOwned::new(session, stream)))
    }
}

fn a_mebibyte_goes_both_ways(client: &Client) -> Verdict {
    let mut wire = client.connect()?;
    let body = pattern(MIB);
    let head = format!("POST /sum HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {}\r\n\r\n", body.len());
    wire.send(head.as_bytes()).map_err(explain("sending a head"))?;
    wire.send(&body).map_err(explain("sending a body"))?;
    expect(&answer(&mut wire)?, Sum::of(&body).to_string().as_bytes())?;
    let down = get(&mut wire, &format!("/bytes/{MIB}"))?;
    expect(Sum::of(&down).to_string().as_bytes(), Sum::of(&body).to_string().as_bytes())?;
    expect(&get(&mut wire, "/hello")?, b"hello")
}

/// Whichever worker gets a connection: the tickets of all are the same.
fn a_session_is_resumed(client: &Client) -> Verdict {
    expect(&get(&mut client.connect()?, "/hello")?, b"hello")?;
    for number in 1..=8 {
        let mut wire = client.connect()?;
        expect(&get(&mut wire, "/hello")?, b"hello")?;
        match wire.stream.conn.handshake_kind() {
            Some(HandshakeKind::Resumed) => {}
            kind => return Err(format!("connection {number} after the first: {kind:?}")),
        }
    }
    Ok(())
}
