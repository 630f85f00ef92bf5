//! Real certificates, made for each test, on their way from files into the vault.

use std::{
    fs::{self, File, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use kakehi_ctl::{
    change::Change,
    order::{KeyPair as SentPair, Pem},
    state::{
        BackendTls, Certificate, CertificateFiles, ClientAuth, Cluster, Fingerprint, KeyKind, Listener,
        Material, PackedFiles, Place, State, Tls, WantedCertificate,
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;

use super::{
    keeper::{Depth, Keeper},
    requests::{Wanted, find},
};

mod forged;
mod readings;
mod texts;

/// A certificate and its key as text.
struct Made {
    certificate: String,
    key: String,
}

/// Somebody who issues certificates.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

fn params(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn self_signed(params: &CertificateParams) -> Made {
    let key = KeyPair::generate().unwrap();
    Made { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn made(names: &[&str]) -> Made {
    self_signed(&params(names))
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = params(&[]);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority { certificate, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, names: &[&str]) -> Made {
        let key = KeyPair::generate().unwrap();
        let certificate = params(names).signed_by(&key, &self.issuer).unwrap().pem();
        Made { certificate, key: key.serialize_pem() }
    }

    fn crl(&self) -> String {
        self.crl_until(2034)
    }

    fn crl_until(&self, year: i32) -> String {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn write(folder: &TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

fn write_pair(folder: &TempDir, name: &str, made: &Made) -> CertificateFiles {
    CertificateFiles {
        certificate: write(folder, &format!("{name}.pem"), &made.certificate).into(),
        chain: None,
        key: write(folder, &format!("{name}.key"), &made.key).into(),
    }
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn wanted(port: u16, files: &CertificateFiles) -> WantedCertificate {
    WantedCertificate { address: address(port), files: files.clone(), names: Vec::new(), default: false }
}

fn https(port: u16) -> Listener {
    Listener { tls: Some(Box::default()), ..Listener::http(address(port)) }
}

fn keeper() -> Keeper {
    Keeper::new(None).unwrap()
}

fn load(
    keeper: &mut Keeper,
    wanted: &[WantedCertificate],
    depth: Depth,
) -> Result<(State, Vec<String>), String> {
    let mut state = State::default();
    state.listeners.extend([443, 444].map(|port| (address(port), https(port))));
    let warnings = keeper.furnish(&mut state, wanted.to_vec(), depth).map_err(|error| error.to_string())?;
    Ok((state, warnings))
}

#[track_caller]
fn only(state: &State) -> (Fingerprint, Certificate) {
    let all: Vec<_> = state.certificates.values().flatten().collect();
    assert_eq!(all.len(), 1);
    (*all[0].0, Certificate::clone(all[0].1))
}

/// Loads one certificate from its files.
fn load_one(files: &CertificateFiles, depth: Depth) -> Result<(Certificate, Vec<String>), String> {
    let (state, warnings) = load(&mut keeper(), &[wanted(443, files)], depth)?;
    Ok((only(&state).1, warnings))
}

#[test]
fn a_certificate_is_known_by_what_is_in_it_and_lies_in_the_vault_with_its_chain_and_key() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("Authority");
    let made = authority.issue(&["Shop.Example", "*.shop.example", "10.0.0.1", "::1"]);
    let mut files = write_pair(&folder, "shop", &made);
    files.chain = Some(write(&folder, "chain.pem", &authority.certificate).into());
    let mut keeper = keeper();
    let (state, warnings) = load(&mut keeper, &[wanted(443, &files)], Depth::All).unwrap();
    let (fingerprint, certificate) = only(&state);
    assert_eq!(certificate.names, ["shop.example", "*.shop.example", "10.0.0.1", "::1"]);
    assert_eq!((certificate.key, certificate.named), (KeyKind::Ecdsa, false));
    assert_eq!(certificate.files, Some(PackedFiles::from(&files)));
    assert!(warnings.is_empty() && certificate.not_after > 1_800_000_000, "{warnings:?}");
    let stored = keeper.vault().certificate(certificate.place).unwrap();
    assert_eq!(stored.chain.len(), 2);
    let info = super::content::describe(address(443), fingerprint, &certificate, &stored).unwrap();
    assert_eq!((info.issuer.as_str(), info.chain_length), ("CN=Authority", 1));
}

#[test]
fn without_alternative_names_the_common_name_counts_and_names_that_are_said_go_before_both() {
    let folder = TempDir::new().unwrap();
    let mut common = params(&[]);
    common.distinguished_name.push(DnType::CommonName, "Old.Example");
    let files = write_pair(&folder, "old", &self_signed(&common));
    assert_eq!(load_one(&files, Depth::All).unwrap().0.names, ["old.example"]);
    let mut said = wanted(443, &files);
    said.names = vec!["New.Example".to_owned()];
    let (state, _) = load(&mut keeper(), &[said], Depth::All).unwrap();
    let (_, certificate) = only(&state);
    assert!(certificate.named && certificate.names == ["new.example"], "{certificate:?}");
    let mut nameless = params(&[]);
    nameless.distinguished_name = rcgen::DistinguishedName::new();
    nameless.subject_alt_names = vec![SanType::Rfc822Name("a@b.example".try_into().unwrap())];
    let files = write_pair(&folder, "nameless", &self_signed(&nameless));
    let error = load_one(&files, Depth::Few).unwrap_err();
    assert!(error.contains("nameless.pem") && error.contains("`names`"), "{error}");
}

#[test]
fn every_kind_of_key_is_taken() {
    let folder = TempDir::new().unwrap();
    for (name, algorithm, kind) in [
        ("p384", &rcgen::PKCS_ECDSA_P384_SHA384, KeyKind::Ecdsa),
        ("p521", &rcgen::PKCS_ECDSA_P521_SHA512, KeyKind::Ecdsa),
        ("ed25519", &rcgen::PKCS_ED25519, KeyKind::Ed25519),
        ("rsa", &rcgen::PKCS_RSA_SHA256, KeyKind::Rsa),
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = params(&["a.example"]).self_signed(&key).unwrap().pem();
        let files = write_pair(&folder, name, &Made { certificate, key: key.serialize_pem() });
        let (certificate, _) = load_one(&files, Depth::All).unwrap();
        assert_eq!(certificate.key, kind, "{name}");
    }
}

#[test]
fn what_is_wrong_is_said_with_the_file_and_what_to_do() {
    let folder = TempDir::new().unwrap();
    let (good, other) = (made(&["a.example"]), made(&["a.example"]));
    let files = write_pair(&folder, "good", &good);
    let half = &good.certificate[..good.certificate.len() / 2];
    let key_of =
        |name: &str, text: &str| CertificateFiles { key: write(&folder, name, text).into(), ..files.clone() };
    let certificate_of = |name: &str, text: &str| CertificateFiles {
        certificate: write(&folder, name, text).into(),
        ..files.clone()
    };
    let many = good.certificate.clone() + &[(); 40].map(|()| made(&["b.example"]).certificate).concat();
    let missing = CertificateFiles { key: folder.path().join("missing.key").into(), ..files.clone() };
    let encrypted = good.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for (files, name, hint) in [
        (key_of("other.key", &other.key), "other.key", "does not belong to the certificate"),
        (key_of("encrypted.key", &encrypted), "encrypted.key", "openssl pkey"),
        (key_of("none.key", &good.certificate), "none.key", "no private key"),
        (certificate_of("half.pem", half), "half.pem", "is not PEM"),
        (certificate_of("empty.pem", ""), "empty.pem", "has no certificate"),
        (
            certificate_of("der.pem", "-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n"),
            "der.pem",
            "1 in it",
        ),
        (certificate_of("many.pem", &many), "many.pem", "more certificates"),
        (missing, "missing.key", "cannot be read"),
    ] {
        let error = load_one(&files, Depth::All).unwrap_err();
        assert!(error.contains(name) && error.contains(hint), "{name}: {error}");
        assert!(!error.contains("-----BEGIN PRIVATE KEY-----\n"), "{error}");
    }
    let same = "the same file for both";
    fs::write(folder.path().join("both.pem"), good.certificate + &good.key).unwrap();
    let both = folder.path().join("both.pem");
    load_one(
        &CertificateFiles { certificate: both.clone().into(), chain: None, key: both.into() },
        Depth::All,
    )
    .expect(same);
}

#[test]
fn only_regular_files_of_a_sensible_size_are_read() {
    let folder = TempDir::new().unwrap();
    let files = write_pair(&folder, "good", &made(&["a.example"]));
    let pipe = folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    let large = folder.path().join("large");
    File::create(&large).unwrap().set_len((16 << 20) + 1).unwrap();
    for (path, hint) in [
        (&*pipe, "no regular file"),
        (Path::new("/dev/zero"), "no regular file"),
        (folder.path(), "no regular file"),
        (&*large, "more than 16777216 bytes"),
    ] {
        let files = CertificateFiles { key: path.into(), ..files.clone() };
        let error = load_one(&files, Depth::All).unwrap_err();
        assert!(error.contains(hint), "{error}");
    }
}

#[test]
fn a_chain_in_the_wrong_order_is_refused_and_one_that_has_expired_is_a_warning() {
    let folder = TempDir::new().unwrap();
    let (right, wrong) = (Authority::new("Right"), Authority::new("Wrong"));
    let made = right.issue(&["a.example"]);
    let mut files = write_pair(&folder, "a", &made);
    files.chain = Some(write(&folder, "wrong.pem", &wrong.certificate).into());
    let error = load_one(&files, Depth::All).unwrap_err();
    assert!(
        error.contains("certificate 2 of the chain is `CN=Wrong`") && error.contains("`CN=Right`"),
        "{error}"
    );

    let mut old = params(&["a.example"]);
    (old.not_before, old.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    let files = write_pair(&folder, "old", &self_signed(&old));
    fs::set_permissions(&files.key, Permissions::from_mode(0o644)).unwrap();
    let (_, warnings) = load_one(&files, Depth::All).unwrap();
    assert!(warnings.iter().any(|it| it.contains("old.pem: it has expired")), "{warnings:?}");
    assert!(warnings.iter().any(|it| it.contains("everybody can read")), "{warnings:?}");
}

#[test]
fn what_is_the_same_lies_in_the_vault_once() {
    let folder = TempDir::new().unwrap();
    let made = made(&["a.example"]);
    let (one, two) = (write_pair(&folder, "one", &made), write_pair(&folder, "two", &made));
    let (state, _) =
        load(&mut keeper(), &[wanted(443, &one), wanted(444, &one), wanted(444, &two)], Depth::Few).unwrap();
    let places: Vec<Place> =
        state.certificates.values().flat_map(|it| it.values()).map(|it| it.place).collect();
    assert!(places.len() == 2 && places[0] == places[1], "{places:?}");
}

/// Gives a file another content, which cannot be seen from outside.
fn change_secretly(path: &Path) {
    let before = fs::metadata(path).unwrap();
    fs::write(path, vec![b'x'; before.len() as usize]).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(before.modified().unwrap()).unwrap();
}

#[test]
fn a_file_that_has_not_changed_is_not_read_again() {
    let folder = TempDir::new().unwrap();
    let files = write_pair(&folder, "a", &made(&["a.example"]));
    let mut keeper = keeper();
    let (first, _) = load(&mut keeper, &[wanted(443, &files)], Depth::Few).unwrap();
    change_secretly(&files.key);
    let (again, _) = load(&mut keeper, &[wanted(443, &files)], Depth::Few).unwrap();
    assert_eq!(first, again);
    // What came to nothing is read again the next time.
    keeper.settle(false);
    assert!(load(&mut keeper, &[wanted(443, &files)], Depth::Few).is_err());
    let renewed = write_pair(&folder, "a", &made(&["b.example"]));
    let (renewed, _) = load(&mut keeper, &[wanted(443, &renewed)], Depth::Few).unwrap();
    assert_eq!(only(&renewed).1.names, ["b.example"]);
}

#[test]
fn what_nobody_uses_any_more_is_erased_and_read_again_when_it_is_wanted() {
    let folder = TempDir::new().unwrap();
    let (one, two) =
        (write_pair(&folder, "1", &made(&["1.example"])), write_pair(&folder, "2", &made(&["2.example"])));
    let mut keeper = keeper();
    let (both, _) = load(&mut keeper, &[wanted(443, &one), wanted(443, &two)], Depth::Few).unwrap();
    let (rest, _) = load(&mut keeper, &[wanted(443, &two)], Depth::Few).unwrap();
    keeper.tidy(&rest);
    let gone = find(&both, address(443), "1.example").unwrap().1.place;
    assert!(keeper.vault().read(gone).unwrap().iter().all(|byte| *byte == 0));
    assert!(keeper.vault().certificate(only(&rest).1.place).is_ok());
    let (both, _) = load(&mut keeper, &[wanted(443, &one), wanted(443, &two)], Depth::Few).unwrap();
    for certificate in both.certificates[&address(443)].values() {
        assert!(keeper.vault().certificate(certificate.place).is_ok());
    }
}

#[test]
fn another_supervisor_goes_on_with_the_vault_and_puts_nothing_into_it_twice() {
    let folder = TempDir::new().unwrap();
    let files = write_pair(&folder, "a", &made(&["a.example"]));
    let mut first = keeper();
    let (before, _) = load(&mut first, &[wanted(443, &files)], Depth::Few).unwrap();
    let mut second = Keeper::new(Some(first.vault().try_clone().unwrap())).unwrap();
    second.adopt(&before);
    let (after, _) = load(&mut second, &[wanted(443, &files)], Depth::Few).unwrap();
    assert_eq!(before, after);
    assert!(first.vault().ticket_keys().unwrap() == second.vault().ticket_keys().unwrap());
}

#[test]
fn a_certificate_that_was_overwritten_in_the_vault_stands_in_the_way_of_no_other() {
    let folder = TempDir::new().unwrap();
    let files = ["1.example", "2.example"].map(|name| write_pair(&folder, name, &made(&[name])));
    let all = files.each_ref().map(|files| wanted(443, files));
    let mut first = keeper();
    let (state, _) = load(&mut first, &all, Depth::Few).unwrap();
    let place = |state: &State, name| find(state, address(443), name).unwrap().1.place;
    first.vault().erase(place(&state, "1.example")).unwrap();
    let mut second = Keeper::new(Some(first.vault().try_clone().unwrap())).unwrap();
    second.adopt(&state);
    second.tidy(&state);
    assert!(second.vault().certificate(place(&state, "2.example")).is_ok());
    let (again, _) = load(&mut second, &all, Depth::Few).unwrap();
    assert_eq!(place(&again, "2.example"), place(&state, "2.example"), "it was there");
    assert_ne!(place(&again, "1.example"), place(&state, "1.example"), "its place is not used again");
    assert!(second.vault().certificate(place(&again, "1.example")).is_ok());
}

#[test]
fn who_issued_many_certificates_lies_in_the_vault_once_and_as_long_as_any_of_them() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("Authority");
    let issued = ["1.example", "2.example", "3.example"].map(|name| {
        let Made { certificate, key } = authority.issue(&[name]);
        write_pair(&folder, name, &Made { certificate: certificate + &authority.certificate, key })
    });
    let mut keeper = keeper();
    let [one, two, three] = issued.each_ref().map(|files| wanted(443, files));
    let (all, _) = load(&mut keeper, &[one, two.clone(), three.clone()], Depth::Few).unwrap();
    let place = |name| find(&all, address(443), name).unwrap().1.place;
    let elsewhere =
        ["1.example", "2.example", "3.example"].map(|name| keeper.vault().elsewhere(place(name)).unwrap());
    assert!(elsewhere[0].len() == 2 && elsewhere.iter().all(|it| *it == elsewhere[0]));
    let chain = keeper.vault().certificate(place("2.example")).unwrap().chain;
    // The first one, which brought it, goes.
    let (rest, _) = load(&mut keeper, &[two.clone(), three.clone()], Depth::Few).unwrap();
    keeper.tidy(&rest);
    assert!(keeper.vault().certificate(place("1.example")).is_err());
    assert_eq!(keeper.vault().certificate(place("2.example")).unwrap().chain, chain);
    // So it is for another supervisor, which puts nothing into the vault twice and erases no more.
    let mut second = Keeper::new(Some(keeper.vault().try_clone().unwrap())).unwrap();
    second.adopt(&rest);
    let (again, _) = load(&mut second, &[two.clone(), three], Depth::Few).unwrap();
    assert_eq!(rest, again);
    let fourth = authority.issue(&["4.example"]);
    let fourth = Made { certificate: fourth.certificate + &authority.certificate, key: fourth.key };
    let fourth = wanted(443, &write_pair(&folder, "4", &fourth));
    let (more, _) = load(&mut second, &[two, fourth.clone()], Depth::Few).unwrap();
    let place = find(&more, address(443), "4.example").unwrap().1.place;
    // It does not know what the others were written like.
    assert_eq!(second.vault().elsewhere(place).unwrap()[1..], elsewhere[0][1..]);
    let (last, _) = load(&mut second, &[fourth], Depth::Few).unwrap();
    second.tidy(&last);
    assert_eq!(second.vault().certificate(place).unwrap().chain[1], chain[1]);
    second.tidy(&State::default());
    for gone in &elsewhere[0] {
        assert!(second.vault().read(*gone).unwrap().iter().all(|byte| *byte == 0));
    }
}

fn material(path: &Path) -> Material {
    Material { path: path.to_owned(), ..Material::default() }
}

#[test]
fn issuers_revocation_lists_and_client_certificates_are_read_and_must_be_what_they_should() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("Authority");
    let (ca, crl) =
        (write(&folder, "ca.pem", &authority.certificate), write(&folder, "crl.pem", authority.crl()));
    let (client, other) = (authority.issue(&["client"]), made(&["client"]));
    let (client, other) = (write_pair(&folder, "client", &client), write_pair(&folder, "other", &other));
    let state = |ca: &Path, crl: &Path, key: &Path| {
        let mut state = State::default();
        let auth = ClientAuth {
            ca: material(ca),
            crl: Some(material(crl)),
            required: true,
            ..ClientAuth::default()
        };
        let tls = Tls { client_auth: Some(auth), ..Tls::default() };
        state.listeners.insert(address(443), Listener { tls: Some(Box::new(tls)), ..https(443) });
        let client = Some((material(&client.certificate), material(key)));
        let tls = BackendTls { ca: material(ca), server_name: None, client, alpn: Vec::new() };
        state.clusters.insert("a".to_owned(), Cluster { tls: Some(Box::new(tls)), ..Cluster::default() });
        state
    };
    let mut keeper = keeper();
    let mut good = state(&ca, &crl, &client.key);
    keeper.furnish(&mut good, Vec::new(), Depth::Few).unwrap();
    let tls = good.clusters["a"].tls.as_ref().unwrap();
    assert_eq!(keeper.vault().read(tls.ca.place).unwrap(), authority.certificate.as_bytes());
    assert_eq!(tls.ca.digest.len(), 64);
    let auth = good.listeners[&address(443)].tls.as_ref().unwrap().client_auth.as_ref().unwrap();
    assert_eq!(auth.ca, tls.ca, "the same file");
    assert_eq!(good.clone().without_contents(), state(&ca, &crl, &client.key));
    let client_key = client.key.to_path_buf();
    let other_key = other.key.to_path_buf();
    for (ca, crl, key, name, hint) in [
        (&client_key, &crl, &client_key, "client.key", "no certificate"),
        (&ca, &ca, &client_key, "ca.pem", "no revocation list"),
        (&ca, &crl, &other_key, "other.key", "does not belong"),
    ] {
        let wrong = keeper.furnish(&mut state(ca, crl, key), Vec::new(), Depth::Few);
        let error = wrong.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(hint), "{error}");
    }

    // A list that is out of date is a warning, at first and every day.
    let old = write(&folder, "old.pem", authority.crl_until(2025));
    let mut stale = state(&ca, &old, &client.key);
    let warnings = keeper.furnish(&mut stale, Vec::new(), Depth::Few).unwrap();
    assert!(
        warnings.len() == 1 && warnings[0].contains("old.pem: the list of `CN=Authority`"),
        "{warnings:?}"
    );
    let daily = |state| super::expiry::stale_crls(state, keeper.vault(), super::verify::now());
    assert_eq!(daily(&stale), warnings.into_iter().collect());
    assert!(daily(&good).is_empty());

    // What comes in a change is not believed, unless it lies here.
    let cluster = good.clusters["a"].clone();
    let mut changes = vec![Change::SetCluster { name: "a".to_owned(), cluster }];
    let unchanged = changes.clone();
    change_secretly(&ca);
    keeper.furnish_changes(&mut changes).unwrap();
    assert_eq!(changes, unchanged);
    if let Change::SetCluster { cluster, .. } = &mut changes[0] {
        cluster.tls.as_mut().unwrap().client.as_mut().unwrap().0.place.offset += 1;
    }
    keeper.furnish_changes(&mut changes).unwrap();
    assert_eq!(changes, unchanged);
}

fn sent(made: &Made) -> SentPair {
    SentPair { chain: Pem(made.certificate.clone()), key: Pem(made.key.clone()) }
}

fn ask(made: &Made, default: bool, replaces: Option<&str>) -> Wanted {
    Wanted::from(kakehi_ctl::order::Request::AddCertificate {
        address: address(443),
        chain: sent(made).chain,
        key: sent(made).key,
        files: None,
        names: Vec::new(),
        default,
        replaces: replaces.map(str::to_owned),
    })
    .unwrap()
}

fn make(keeper: &mut Keeper, state: &mut State, wanted: &Wanted) -> Result<usize, String> {
    let (changes, _) = keeper.add(state, wanted).map_err(|error| error.to_string())?;
    changes.iter().for_each(|change| state.apply(change).unwrap());
    Ok(changes.len())
}

#[test]
fn a_certificate_that_is_sent_takes_the_place_of_another_and_there_is_one_default() {
    let (mut keeper, mut state) = (keeper(), State::default());
    state.listeners.insert(address(443), https(443));
    let (first, second, third) = (made(&["a.example"]), made(&["a.example"]), made(&["a.example"]));
    assert_eq!(make(&mut keeper, &mut state, &ask(&first, true, None)), Ok(1));
    // In the place of the default: it is the default.
    assert_eq!(make(&mut keeper, &mut state, &ask(&second, false, Some("A.example"))), Ok(2));
    assert!(only(&state).1.default);
    // Another one for the same name, which is the default from now on.
    assert_eq!(make(&mut keeper, &mut state, &ask(&third, true, None)), Ok(2));
    let defaults = state.certificates[&address(443)].values().filter(|it| it.default).count();
    assert_eq!((state.certificates[&address(443)].len(), defaults), (2, 1));
    for (which, reason) in [
        ("a.example", "2 certificates"),
        ("b.example", "no certificate"),
        (&"0".repeat(64), "no certificate"),
    ] {
        let error = make(&mut keeper, &mut state, &ask(&first, false, Some(which))).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
    let wrong = Made { key: first.key, ..made(&["a.example"]) };
    let error = make(&mut keeper, &mut state, &ask(&wrong, false, None)).unwrap_err();
    assert!(error.contains("does not belong"), "{error}");
}

#[test]
fn a_saved_state_has_certificates_from_files_and_others_only_with_their_keys() {
    let folder = TempDir::new().unwrap();
    let files = write_pair(&folder, "file", &made(&["file.example"]));
    let mut first = keeper();
    let (mut state, _) = load(&mut first, &[wanted(443, &files)], Depth::Few).unwrap();
    make(&mut first, &mut state, &ask(&made(&["sent.example"]), false, None)).unwrap();
    let keys = first.keys(&state).unwrap();
    assert_eq!(keys.len(), 1);
    let (saved, left_out) = (super::without_keys(&state), super::count_without_files(&state));
    assert_eq!((left_out, saved.certificates[&address(443)].len()), (1, 1));

    let mut again = state.clone();
    let warnings = keeper().restore(&mut again, &keys, &State::default()).unwrap();
    assert_eq!((again.certificates[&address(443)].len(), warnings.len()), (2, 0), "{warnings:?}");
    let mut without = state.clone();
    let warnings = keeper().restore(&mut without, &Default::default(), &State::default()).unwrap();
    assert!(warnings[0].starts_with("1 certificates"), "{warnings:?}");
    assert_eq!(only(&without).1.names, ["file.example"]);
    // Where it was never away, its key is not needed.
    let mut here = state.clone();
    first.restore(&mut here, &Default::default(), &state).unwrap();
    assert_eq!(here, state);
}

/// A certificate that was sent to a keeper, and the change by which it is served.
fn kept(keeper: &mut Keeper, made: &Made) -> (Fingerprint, Certificate) {
    let (changes, _) = keeper.add(&State::default(), &ask(made, false, None)).unwrap();
    let [Change::SetCertificate { fingerprint, certificate, .. }] = &changes[..] else { unreachable!() };
    (*fingerprint, Certificate::clone(certificate))
}
