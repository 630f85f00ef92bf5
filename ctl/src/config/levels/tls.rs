//! The keys of TLS: those of a listener, of a frontend, of `hsts`, of certificates and of backends.

use super::{
    Effect, Key,
    Kind::{Bool, Choice, CipherSuites, Groups, Path, Protocols, Table, Tables, Text, Texts, Versions},
    Level,
    Support::{Own, Partly, Yes},
    affecting, key,
};
use crate::state::Hsts;

/// `hsts`, of a listener or of a frontend.
pub(in crate::config) static HSTS: Level = Level { what: "`hsts`", groups: &[Hsts::REQUIRED, Hsts::OWN] };

/// `[[listeners.certificates]]`.
pub(in crate::config) static CERTIFICATE: Level = Level {
    what: "a certificate",
    groups: &[&affecting(
        Effect::Connections,
        [
            key("certificate", Path, "", Own, "Certificate (PEM), with or without its chain; required."),
            key("certificate_chain", Path, "", Own, "Its chain (PEM), where that is a file of its own."),
            key("key", Path, "", Own, "Its private key (PEM); required."),
            key(
                "names",
                Texts,
                "",
                Own,
                "Names to serve it for, `example.org` or `*.example.org` (one label). Without it: those in it.",
            ),
            key(
                "default",
                Bool,
                "false",
                Own,
                "Serve it also to clients that name no name or one that no certificate has; one of a listener.",
            ),
        ],
    )],
};

/// `[clusters.ID.backend_tls]`.
pub(in crate::config) static BACKEND_TLS: Level = Level {
    what: "`backend_tls`",
    groups: &[&affecting(
        Effect::Backends,
        [
            key(
                "ca",
                Path,
                "",
                Own,
                "Certificates of those who issue the backends' certificates (PEM). Without it: those of the system, the first that exists of `/etc/ssl/certs/ca-certificates.crt`, `/etc/pki/tls/certs/ca-bundle.crt`, `/etc/ssl/cert.pem`, `/etc/ssl/ca-bundle.pem` and `/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem`.",
            ),
            key(
                "server_name",
                Text,
                "",
                Own,
                "Name that their certificates must have, and that they are asked for. Without it: the name that the backend is configured with, or its ip address.",
            ),
            key(
                "certificate",
                Path,
                "",
                Own,
                "Certificate that they are shown (PEM), with its chain; needs `key`.",
            ),
            key("key", Path, "", Own, "Private key of that certificate (PEM)."),
            key(
                "alpn",
                Protocols,
                "[\"http/1.1\"]",
                Own,
                "Protocols that are offered in the handshake (ALPN): `http/1.1`, or none with `[]`.",
            ),
        ],
    )],
};

// What listeners and frontends say alike.
const CHAIN: Key =
    key("certificate_chain", Path, "", Yes, "Its chain (PEM), where that is a file of its own.");
const KEY: Key = key("key", Path, "", Yes, "Its private key (PEM).");
const CLIENT_CRL: Key = key("client_crl", Path, "", Own, "Revocation lists of those issuers (PEM).");

/// What a listener of `https` may say of TLS.
pub(in crate::config) const TLS: &[Key] = &affecting(
    Effect::Connections,
    [
        key(
            "tls_versions",
            Versions,
            "[\"TLS_V12\", \"TLS_V13\"]",
            Partly("older versions are not spoken"),
            "Versions of TLS that are spoken: `TLS_V12` and `TLS_V13`.",
        ),
        key(
            "cipher_list",
            CipherSuites,
            "[\"TLS_AES_256_GCM_SHA384\", \"TLS_AES_128_GCM_SHA256\", \"TLS_CHACHA20_POLY1305_SHA256\", \"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\", \"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\", \"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256\", \"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\", \"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\", \"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256\"]",
            Yes,
            "Cipher suites, the most wanted first, under their names of IANA, of sozu (`TLS13_AES_128_GCM_SHA256`) or of OpenSSL (`ECDHE-RSA-AES128-GCM-SHA256`). Each version needs one at least.",
        ),
        key(
            "cipher_suites",
            CipherSuites,
            "",
            Yes,
            "The same under an older name; `cipher_list` goes before it.",
        ),
        key(
            "groups_list",
            Groups,
            "[\"X25519MLKEM768\", \"x25519\", \"P-256\", \"P-384\"]",
            Yes,
            "Groups of the key exchange, the most wanted first; also `secp256r1`, `prime256v1` and `secp384r1`.",
        ),
        key(
            "certificate",
            Path,
            "",
            Yes,
            "Certificate (PEM), with or without its chain, for clients that name no name or one that no other certificate has. Needs `key`.",
        ),
        CHAIN,
        KEY,
        key(
            "certificates",
            Tables(&CERTIFICATE),
            "[]",
            Own,
            "More certificates, by the names that clients ask for.",
        ),
        key(
            "alpn_protocols",
            Protocols,
            "[\"http/1.1\"]",
            Partly("`h2` is not spoken yet and not offered"),
            "Protocols that are agreed to in the handshake (ALPN).",
        ),
        key(
            "disable_http11",
            Bool,
            "false",
            Partly("`true` changes nothing, as HTTP/2 is not spoken yet"),
            "Speak HTTP/2 only.",
        ),
        key(
            "client_ca",
            Path,
            "",
            Own,
            "Certificates of those who issue the clients' certificates (PEM): clients show certificates.",
        ),
        CLIENT_CRL,
        key("client_ca_certificates", Texts, "", Yes, "The same as `client_ca`, in any number of files."),
        key("client_ca_crls", Texts, "", Yes, "The same as `client_crl`, in any number of files."),
        key(
            "client_auth",
            Choice(&["none", "optional", "required"]),
            "",
            Own,
            "Whether clients show certificates that `client_ca` issued: `required` refuses those that show none, and is what applies with `client_ca`; `none` without it.",
        ),
        key("hsts", Table(&HSTS), "", Yes, "`Strict-Transport-Security`; `https` only."),
    ],
);

/// What a frontend of a listener of `https` may say of TLS.
pub(in crate::config) const FRONTEND_TLS: &[Key] = &affecting(
    Effect::Connections,
    [
        key(
            "certificate",
            Path,
            "",
            Yes,
            "Certificate (PEM), with or without its chain, that its listener serves for the names in it. Needs `key`.",
        ),
        KEY,
        CHAIN,
        key(
            "tls_versions",
            Versions,
            "",
            Partly("older versions are not spoken"),
            "Versions of TLS for clients that ask for this host name: an exact one, or `*.name`. Without it: those of the listener.",
        ),
        key(
            "client_ca",
            Path,
            "",
            Own,
            "Clients that ask for this host name show certificates that these issued (PEM): an exact name, or `*.name`. Without it: as the listener says.",
        ),
        CLIENT_CRL,
        key(
            "client_auth",
            Choice(&["none", "optional", "required"]),
            "",
            Own,
            "With `client_ca`: `required` (what applies without the key) or `optional`. A frontend can only ask for more than its listener.",
        ),
        key(
            "hsts",
            Table(&HSTS),
            "",
            Yes,
            "`Strict-Transport-Security`; as in a listener, in whose place it is.",
        ),
    ],
);
