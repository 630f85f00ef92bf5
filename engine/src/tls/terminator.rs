//! How a listener terminates TLS: the configuration of rustls for each name, compiled from the state.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, Weak},
};

use kakehi_ctl::state::{CipherSuite, ClientAuth, Group, Material, Place, Tls, TlsVersion, UnknownName};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject as _};

use super::{
    backend_verifier::Authorities,
    certificates::{Certificates, KeyStore, Resolver},
    demands::Demands,
    handshake::TlsInfo,
    names::{NameMap, normal},
    tickets::{TicketStore, Ticketer},
    vault::Vault,
};

/// What all listeners of a worker share.
pub struct Context {
    pub(super) keys: Arc<KeyStore>,
    tickets: Arc<TicketStore>,
    certificates: RefCell<BTreeMap<SocketAddr, Arc<Certificates>>>,
    roots: RefCell<HashMap<Place, Weak<Authorities>>>,
}

/// Why TLS cannot be set up as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// rustls refuses the combination.
    #[error("{0}")]
    Config(#[from] rustls::Error),
    /// The certificates of authorities, or the list of void ones, cannot be used.
    #[error("{path}: {reason}")]
    Material {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The vault cannot be read.
    #[error("certificates and keys cannot be read: {0}")]
    Vault(#[from] io::Error),
}

impl Context {
    /// Over what is in `vault`; ticket keys are replaced every `rotation_ms`.
    ///
    /// # Errors
    /// When the vault cannot be read.
    pub fn new(vault: Vault, rotation_ms: u64) -> io::Result<Context> {
        let tickets = TicketStore::new(&vault, rotation_ms)?;
        let keys = Arc::new(KeyStore::new(vault, Arc::new(aws_lc_rs::default_provider())));
        let (certificates, roots) = (RefCell::default(), RefCell::default());
        Ok(Context { keys, tickets, certificates, roots })
    }

    /// Has AWS-LC gather its random numbers now, which takes 20 ms: otherwise the first handshake would, and all other
    /// connections with it.
    pub(crate) fn warm_up(&self) {
        // Without random numbers handshakes fail, and say so.
        let _ = self.keys.provider.secure_random.fill(&mut [0]);
    }

    /// The ticket keys in the vault are others now.
    ///
    /// # Errors
    /// When they cannot be read; the ones before stay.
    pub fn renew_ticket_keys(&self) -> io::Result<()> {
        self.tickets.renew()
    }

    /// Whether a certificate can be used.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn try_certificate(&self, certificate: &kakehi_ctl::state::Certificate) -> Result<(), String> {
        self.keys.load(certificate.place).map(drop).map_err(|error| error.to_string())
    }

    /// The vault.
    pub fn vault(&self) -> &Vault {
        &self.keys.vault
    }

    /// The certificates of a listener, which stay the same through all changes.
    pub(crate) fn certificates(&self, address: SocketAddr) -> Arc<Certificates> {
        let mut certificates = self.certificates.borrow_mut();
        Arc::clone(certificates.entry(address).or_insert_with(|| Arc::new(Certificates::new(&self.keys))))
    }

    /// Only these listeners are left.
    pub(crate) fn retain(&self, is_left: impl Fn(&SocketAddr) -> bool) {
        self.certificates.borrow_mut().retain(|address, _| is_left(address));
    }

    /// What the file had.
    pub(super) fn material(&self, material: &Material) -> Result<Vec<u8>, TlsError> {
        Ok(self.keys.vault.read(material.place)?)
    }

    pub(super) fn provider(&self) -> CryptoProvider {
        CryptoProvider::clone(&self.keys.provider)
    }

    /// The authorities in a file. Many clusters may name the same one.
    pub(super) fn authorities(&self, material: &Material) -> Result<Arc<Authorities>, TlsError> {
        if let Some(known) = self.roots.borrow().get(&material.place).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let roots = Arc::new(self.read_authorities(material)?);
        let mut known = self.roots.borrow_mut();
        known.retain(|_, roots| roots.strong_count() > 0);
        known.insert(material.place, Arc::downgrade(&roots));
        Ok(roots)
    }

    fn read_authorities(&self, material: &Material) -> Result<Authorities, TlsError> {
        let text = self.material(material)?;
        let wrong = |reason: String| TlsError::Material { path: material.path.display().to_string(), reason };
        let mut roots = RootCertStore::empty();
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let certificates = certificates.map_err(|error| wrong(error.to_string()))?;
        let (added, ignored) = roots.add_parsable_certificates(certificates.iter().cloned());
        if ignored > 0 {
            tracing::debug!(path = %material.path.display(), ignored, "some certificates cannot be used");
        }
        if added == 0 {
            return Err(wrong("it has no certificate that can be used".to_owned()));
        }
        Ok(Authorities::new(roots, &certificates))
    }
}

/// How handshakes for some names are done.
pub(crate) struct Policy {
    pub(super) config: Arc<ServerConfig>,
    /// Checks the certificates of clients.
    pub(super) verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// What is asked of clients; the same for the same demands.
    clients: Vec<u8>,
    versions: Vec<TlsVersion>,
}

/// How a listener terminates TLS.
pub(crate) struct Terminator {
    pub(crate) certificates: Arc<Certificates>,
    pub(crate) handshake_ms: u64,
    pub(crate) strict_sni: bool,
    pub(super) unknown: UnknownName,
    default: Rc<Policy>,
    named: NameMap<Rc<Policy>>,
}

impl Terminator {
    /// Compiles what a listener says, and what is asked of the clients of some names.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub(crate) fn compile(
        context: &Context,
        address: SocketAddr,
        tls: &Tls,
        demands: BTreeMap<String, Demands<'_>>,
    ) -> Result<Terminator, TlsError> {
        let certificates = context.certificates(address);
        let policy =
            |demands: Demands<'_>| Policy::compile(context, &certificates, tls, demands).map(Rc::new);
        let of_listener = Demands { versions: &tls.versions, client_auth: tls.client_auth.as_ref() };
        let default = policy(of_listener)?;
        let mut named = NameMap::default();
        let mut compiled: Vec<(Demands<'_>, Rc<Policy>)> = vec![(of_listener, Rc::clone(&default))];
        for (name, demands) in demands {
            let known = compiled.iter().find(|(known, _)| *known == demands);
            let policy = match known {
                Some((_, policy)) => Rc::clone(policy),
                None => {
                    let policy = policy(demands)?;
                    compiled.push((demands, Rc::clone(&policy)));
                    policy
                }
            };
            named.insert(&name, policy);
        }
        Ok(Terminator {
            certificates,
            handshake_ms: tls.handshake_ms,
            strict_sni: tls.strict_sni,
            unknown: tls.unknown_name,
            default,
            named,
        })
    }

    /// Whether the name has to be known before a handshake can begin.
    pub(crate) fn depends_on_name(&self) -> bool {
        !self.named.is_empty() || self.unknown == UnknownName::Refuse
    }

    /// Whether a client that asks for this name is refused.
    pub(crate) fn refuses(&self, name: Option<&str>) -> bool {
        self.unknown == UnknownName::Refuse && !name.is_some_and(|name| self.certificates.has(name))
    }

    /// How a handshake for this name, in lower case, is done.
    pub(crate) fn policy(&self, name: Option<&str>) -> &Rc<Policy> {
        name.and_then(|name| self.named.find(name)).unwrap_or(&self.default)
    }

    /// Whether a request for `host` must not come over the connection that it came over (RFC 9110 section 15.5.20): clients
    /// have to show other certificates for it, or the connection is bound to another name. A name that the client asked for
    /// binds it to the names of the certificate, if that is for the name, and else to the name alone. A client that asked
    /// for none is bound by nothing but what is demanded of clients.
    pub(crate) fn misdirects(&self, host: &str, info: &TlsInfo) -> bool {
        let asked_for = info.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(host));
        if asked_for && Rc::ptr_eq(self.policy(info.name.as_deref()), &info.policy) {
            return false;
        }
        let host = in_certificate_spelling(host);
        let wanted = self.policy(Some(&host));
        let same_clients = wanted.clients == info.policy.clients;
        !same_clients
            || !wanted.versions.contains(&info.version)
            || self.strict_sni && !info.is_bound_to(&host)
    }
}

impl Policy {
    /// What it asks for, for tests.
    #[cfg(test)]
    pub(crate) fn describe(&self) -> String {
        format!("{:?} {:?}", self.versions, String::from_utf8_lossy(&self.clients))
    }

    fn compile(
        context: &Context,
        certificates: &Arc<Certificates>,
        tls: &Tls,
        Demands { versions, client_auth }: Demands<'_>,
    ) -> Result<Policy, TlsError> {
        let provider = Arc::new(CryptoProvider {
            cipher_suites: tls.cipher_suites.iter().map(|suite| cipher_suite(*suite)).collect(),
            kx_groups: tls.groups.iter().map(|group| kx_group(*group)).collect(),
            ..context.provider()
        });
        let spoken: Vec<&'static SupportedProtocolVersion> = versions
            .iter()
            .map(|version| match version {
                TlsVersion::V12 => &TLS12,
                TlsVersion::V13 => &TLS13,
            })
            .collect();
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&spoken)?;
        let verifier = client_auth.map(|auth| verifier(context, &provider, auth)).transpose()?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Resolver {
            certificates: Arc::clone(certificates),
            unknown: tls.unknown_name,
            tls13: versions.contains(&TlsVersion::V13),
        }));
        config.alpn_protocols = tls.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        // A session that was made when clients were asked for other certificates must not be resumed.
        let auth_print = match client_auth {
            None => Vec::new(),
            Some(auth) => {
                let list = |digests: Vec<&str>| digests.join(",");
                let cas = list(auth.cas().map(|ca| &*ca.digest).collect());
                let crls = list(auth.crls().map(|crl| &*crl.digest).collect());
                format!("{} {cas} {crls}", auth.required).into_bytes()
            }
        };
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::new(Ticketer::new(&context.tickets, &auth_print, tls.tickets > 0));
        config.send_tls13_tickets = tls.tickets.into();
        Ok(Policy { config: Arc::new(config), verifier, clients: auth_print, versions: versions.to_vec() })
    }
}

/// A host of a request in the spelling in which certificates have it.
fn in_certificate_spelling(host: &str) -> String {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match address.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => normal(host),
    }
}

fn verifier(
    context: &Context,
    provider: &Arc<CryptoProvider>,
    auth: &ClientAuth,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = Arc::clone(&context.authorities(&auth.ca)?.roots);
    for ca in &auth.more_cas {
        let more = context.authorities(ca)?;
        Arc::make_mut(&mut roots).extend(more.roots.roots.iter().cloned());
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let wrong = |material: &Material, reason: String| TlsError::Material {
        path: material.path.display().to_string(),
        reason,
    };
    for crl in auth.crls() {
        let text = context.material(crl)?;
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
        let lists = lists.map_err(|error| wrong(crl, error.to_string()))?;
        if lists.is_empty() {
            return Err(wrong(crl, "it has no revocation list".to_owned()));
        }
        builder = builder.with_crls(lists);
    }
    if !auth.required {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| wrong(&auth.ca, error.to_string()))
}

fn cipher_suite(suite: CipherSuite) -> rustls::SupportedCipherSuite {
    use aws_lc_rs::cipher_suite as suites;
    match suite {
        CipherSuite::Aes256GcmSha384 => suites::TLS13_AES_256_GCM_SHA384,
        CipherSuite::Aes128GcmSha256 => suites::TLS13_AES_128_GCM_SHA256,
        CipherSuite::ChaCha20Poly1305Sha256 => suites::TLS13_CHACHA20_POLY1305_SHA256,
        CipherSuite::EcdheEcdsaAes256GcmSha384 => suites::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheEcdsaAes128GcmSha256 => suites::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheEcdsaChaCha20Poly1305Sha256 => {
            suites::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        CipherSuite::EcdheRsaAes256GcmSha384 => suites::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheRsaAes128GcmSha256 => suites::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheRsaChaCha20Poly1305Sha256 => suites::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

fn kx_group(group: Group) -> &'static dyn rustls::crypto::SupportedKxGroup {
    match group {
        Group::X25519MlKem768 => aws_lc_rs::kx_group::X25519MLKEM768,
        Group::X25519 => aws_lc_rs::kx_group::X25519,
        Group::P256 => aws_lc_rs::kx_group::SECP256R1,
        Group::P384 => aws_lc_rs::kx_group::SECP384R1,
    }
}
