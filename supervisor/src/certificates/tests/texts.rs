//! Texts (PEM) as programs and people leave them: what is complete is taken, what would be read in part is refused.

use super::*;

/// Made by `openssl`: keys and certificates of kinds that TLS is not spoken with.
const EXPLICIT_SEC1: &str = include_str!("data/explicit-sec1.pem");
const EXPLICIT_PKCS8: &str = include_str!("data/explicit-p8.pem");
const EXPLICIT_CERTIFICATE: &str = include_str!("data/explicit-cert.pem");
const ENCRYPTED_PKCS8: &str = include_str!("data/enc-p8.pem");
const ENCRYPTED_SEC1: &str = include_str!("data/enc-sec1.pem");
const VERSION_1: &str = include_str!("data/v1.pem");
/// The key of `VERSION_1`, and one whose curve was written out and then named.
const KEY: &str = include_str!("data/k.pem");
const NAMED: &str = include_str!("data/named.pem");

fn files(folder: &TempDir, certificate: &str, chain: Option<&str>, key: &str) -> CertificateFiles {
    CertificateFiles {
        certificate: write(folder, "certificate.pem", certificate).into(),
        chain: chain.map(|chain| write(folder, "chain.pem", chain).into()),
        key: write(folder, "key.pem", key).into(),
    }
}

fn glue(first: &str, second: &str) -> String {
    format!("{}{second}", first.trim_end())
}

fn indent(first: &str, second: &str) -> String {
    format!("{first}  {second}")
}

#[test]
fn a_part_that_would_be_passed_over_is_refused_with_its_line_in_files_of_every_kind() {
    let folder = TempDir::new().unwrap();
    let (one, other) = (Authority::new("One"), Authority::new("Other"));
    let made = one.issue(&["a.example"]);
    for join in [glue as fn(&str, &str) -> String, indent] {
        let refused = |error: String, path: &Path, text: &str| {
            let lines = text.lines().zip(1..).filter(|(line, _)| line.contains("-----BEGIN"));
            let line = lines.map(|(_, number)| number).nth(1).unwrap();
            let place = format!("{} has `-----BEGIN` in line {line},", path.display());
            assert!(error.contains(&place), "{error}");
        };
        let chain = join(&made.certificate, &one.certificate);
        let of_chain = files(&folder, &chain, None, &made.key);
        refused(load_one(&of_chain, Depth::Few).unwrap_err(), &of_chain.certificate, &chain);
        let chain = join(&one.certificate, &other.certificate);
        let of_chain = files(&folder, &made.certificate, Some(&chain), &made.key);
        refused(load_one(&of_chain, Depth::Few).unwrap_err(), of_chain.chain.as_ref().unwrap(), &chain);

        let authorities = write(&folder, "ca.pem", &chain);
        let lists_text = join(&one.crl(), &other.crl());
        let lists = write(&folder, "crl.pem", &lists_text);
        let whole = write(&folder, "whole.pem", &one.certificate);
        for (ca, crl, path, text) in
            [(&authorities, None, &authorities, &chain), (&whole, Some(&lists), &lists, &lists_text)]
        {
            let auth = ClientAuth {
                ca: material(ca),
                crl: crl.map(|it| material(it)),
                required: true,
                ..ClientAuth::default()
            };
            let tls = Tls { client_auth: Some(auth), ..Tls::default() };
            let listener = Listener { tls: Some(Box::new(tls)), ..https(443) };
            let mut state = State::default();
            state.listeners.insert(address(443), listener);
            let error = keeper().furnish(&mut state, Vec::new(), Depth::Few).unwrap_err().to_string();
            refused(error, path, text);
        }
    }
    let glued = glue(&made.certificate, &one.certificate);
    let wanted = ask(&Made { certificate: glued, key: made.key }, false, None);
    let mut state = State::default();
    state.listeners.insert(address(443), https(443));
    let error = make(&mut keeper(), &mut state, &wanted).unwrap_err();
    assert!(error.contains("what was sent has `-----BEGIN` in line"), "{error}");
}

#[test]
fn a_chain_that_repeats_the_certificate_is_taken_without_it() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("Authority");
    let made = authority.issue(&["a.example"]);
    let full = format!("{}{}", made.certificate, authority.certificate);
    let twice = format!("{full}{}", authority.certificate);
    for (certificate, chain) in [
        (&made.certificate, Some(full.as_str())),
        (&full, Some(full.as_str())),
        (&full, Some(authority.certificate.as_str())),
        (&twice, None),
    ] {
        let files = files(&folder, certificate, chain, &made.key);
        let mut keeper = keeper();
        let (state, warnings) = load(&mut keeper, &[wanted(443, &files)], Depth::All).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let stored = keeper.vault().certificate(only(&state).1.place).unwrap();
        assert_eq!(stored.chain.len(), 2);
    }
}

#[test]
fn keys_and_certificates_that_tls_does_not_know_are_refused_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let good = made(&["a.example"]);
    let named_curve = "has a private key with explicit EC parameters, which TLS does not know: write it with the name of its \
                       curve, `openssl pkey -in FILE -ec_param_enc named_curve -out NEW`";
    let password = "encrypted with a password, which nobody is there to give: decrypt it with `openssl pkey -in FILE -out NEW`";
    for (certificate, key, file, expected) in [
        (good.certificate.as_str(), EXPLICIT_SEC1, "key.pem", named_curve),
        (&good.certificate, EXPLICIT_PKCS8, "key.pem", named_curve),
        (&good.certificate, ENCRYPTED_SEC1, "key.pem", password),
        (&good.certificate, ENCRYPTED_PKCS8, "key.pem", password),
        (
            EXPLICIT_CERTIFICATE,
            NAMED,
            "certificate.pem",
            "explicit EC parameters, which TLS does not know: write its key",
        ),
        (VERSION_1, KEY, "certificate.pem", "is of version 1 of X.509"),
    ] {
        for depth in [Depth::Few, Depth::All] {
            let error = load_one(&files(&folder, certificate, None, key), depth).unwrap_err();
            assert!(error.contains(file) && error.contains(expected), "{error}");
            assert!(error.contains("`openssl "), "{error}");
        }
    }
}
