//! A client that has done its handshake (TLS 1.3), and then sends records that no library would.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
};

use rustls::{
    Connection, ConnectionTrafficSecrets, ContentType, ProtocolVersion, SupportedCipherSuite,
    crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage},
};

use super::{Caller, tls_socket::TlsSocket, wait::SOON};

/// One connection.
pub(crate) struct Forger {
    tcp: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Forger {
    /// Connects and does the handshake.
    pub(crate) fn connect(caller: &Caller, address: SocketAddr) -> Forger {
        let tcp = TcpStream::connect_timeout(&address, SOON).expect("connect");
        tcp.set_read_timeout(Some(SOON)).expect("SO_RCVTIMEO");
        tcp.set_write_timeout(Some(SOON)).expect("SO_SNDTIMEO");
        let mut socket = TlsSocket::new(tcp, caller.tls13().connection().into(), None);
        socket.shake().expect("a handshake");
        let TlsSocket { tcp, connection: Connection::Client(connection), .. } = socket else {
            panic!("it is a client")
        };
        let Some(SupportedCipherSuite::Tls13(suite)) = connection.negotiated_cipher_suite() else {
            panic!("TLS 1.3 was to be spoken")
        };
        let (sequence, secrets) = connection.dangerous_extract_secrets().expect("secrets").tx;
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
        else {
            panic!("another kind of cipher")
        };
        Forger { tcp, encrypter: suite.aead_alg.encrypter(key, iv), sequence }
    }

    /// The next record.
    pub(crate) fn record(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let version = ProtocolVersion::TLSv1_2;
        let message = OutboundPlainMessage { typ, version, payload: OutboundChunks::from(payload) };
        let record = self.encrypter.encrypt(message, self.sequence).expect("a record");
        self.sequence += 1;
        record.encode()
    }

    /// Sends a record; whether that could be done.
    pub(crate) fn send(&mut self, typ: ContentType, payload: &[u8]) -> bool {
        let record = self.record(typ, payload);
        self.send_raw(&record)
    }

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> bool {
        self.tcp.write_all(bytes).is_ok()
    }

    /// Reads until the proxy closes; whether it does, in whatever way.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut rest = [0; 65_536];
        loop {
            match self.tcp.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Reads so many bytes of whatever comes.
    pub(crate) fn take(&mut self, count: usize) -> bool {
        self.tcp.read_exact(&mut vec![0; count]).is_ok()
    }

    pub(crate) fn shutdown(&self) {
        let _ = self.tcp.shutdown(Shutdown::Write);
    }
}
