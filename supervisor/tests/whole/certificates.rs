//! Certificates: read from files, kept over the end of a supervisor, renewed, added and removed while kakehi runs.
//!
//! A state that was saved is the way by which they get into the program here, so that nothing depends on how a file asks
//! for them.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    net::SocketAddr,
    os::unix::{
        fs::{FileExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use kakehi_ctl::{
    limits,
    order::{CertificateInfo, Changed, Envelope, Pem, Request, Response},
    state::{
        Certificate, CertificateFiles, Fingerprint, KeyKind, Listener, ListenerProtocol, Names, PackedFiles,
        Place, State,
    },
    store,
    wire::{self, Decoder},
};
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};

use crate::harness::{Backend, Config, OK, Proxy, ask, free_port, program, send_signal, wait};

/// A certificate for `name` and its key as text.
fn made(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn write(path: &Path, text: &str) {
    // As whoever renews certificates should: nobody ever sees half a file.
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

fn write_pair(folder: &Path, name: &str) -> CertificateFiles {
    let path = |ending: &str| folder.join(format!("{name}.{ending}"));
    let files = CertificateFiles { certificate: path("pem").into(), chain: None, key: path("key").into() };
    let (certificate, key) = made(name);
    write(&files.certificate, &certificate);
    write(&files.key, &key);
    files
}

/// A certificate as it stands in a saved state: what is in it is read again.
fn saved(n: u32, files: CertificateFiles) -> (Fingerprint, Arc<Certificate>) {
    let mut fingerprint = [0; 32];
    fingerprint[..4].copy_from_slice(&n.to_be_bytes());
    let certificate = Certificate {
        names: Names::default(),
        key: KeyKind::Rsa,
        not_after: 0,
        default: n == 0,
        named: false,
        place: Place::default(),
        files: Some(PackedFiles::from(&files)),
    };
    (Fingerprint(fingerprint), certificate.into())
}

/// A proxy that has stopped, and whose saved state has a listener with these certificates; where that listens.
fn stopped_with(config: Config, files: impl FnOnce(&Path) -> Vec<CertificateFiles>) -> (Proxy, SocketAddr) {
    let mut proxy = config.root("saved_state = \"state\"").start();
    assert!(proxy.ctl(&["state", "save"]).status.success());
    stop(&mut proxy);
    let path = proxy.folder().join("state");
    let mut state: State = store::load(&path).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let listener =
        Listener { protocol: ListenerProtocol::Https, tls: Some(Box::default()), ..Listener::http(address) };
    state.listeners.insert(address, listener);
    let files = files(proxy.folder());
    state.certificates.insert(address, (0..).zip(files).map(|(n, files)| saved(n, files)).collect());
    store::save(&path, &state).unwrap();
    (proxy, address)
}

fn start_with(config: Config, names: &[&str]) -> (Proxy, SocketAddr) {
    let (mut proxy, address) =
        stopped_with(config, |folder| names.iter().map(|name| write_pair(folder, name)).collect());
    proxy.start_again();
    (proxy, address)
}

fn stop(proxy: &mut Proxy) {
    proxy.terminate();
    proxy.wait(Duration::from_secs(10));
}

fn request(proxy: &Proxy, request: Request) -> Response {
    let mut stream = UnixStream::connect(proxy.socket()).unwrap();
    wire::write_message(&mut stream, &Envelope::new(1, request), limits::MAX_REQUEST_FRAME).unwrap();
    let answer: Option<Envelope<Response>> =
        wire::read_message(&mut stream, &mut Decoder::new(limits::MAX_FRAME)).unwrap();
    answer.unwrap().body
}

#[track_caller]
fn certificates(proxy: &Proxy, which: Option<&str>) -> Vec<CertificateInfo> {
    match request(proxy, Request::Certificates { which: which.map(str::to_owned) }) {
        Response::Certificates(infos) => infos,
        other => panic!("{other:?}"),
    }
}

fn names(proxy: &Proxy) -> Vec<String> {
    let mut names: Vec<String> = certificates(proxy, None).into_iter().flat_map(|it| it.names).collect();
    names.sort();
    names
}

#[track_caller]
fn changed(response: Response) -> Changed {
    match response {
        Response::Changed(changed) => changed,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn add(proxy: &Proxy, address: SocketAddr, name: &str, replaces: Option<&str>) -> Changed {
    let (chain, key) = made(name);
    changed(request(
        proxy,
        Request::AddCertificate {
            address,
            chain: Pem(chain),
            key: Pem(key),
            files: None,
            names: Vec::new(),
            default: false,
            replaces: replaces.map(str::to_owned),
        },
    ))
}

/// The vault of a process.
fn vault(proxy: &Proxy, process: u32) -> PathBuf {
    let folder = PathBuf::from(format!("/proc/{process}/fd"));
    let vault = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).find(|path| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains("kakehi-vault"))
    });
    vault.unwrap_or_else(|| panic!("no vault\n{}", proxy.log()))
}

/// The ticket keys in the vault of a process, as bytes: how many there are, and each.
fn ticket_keys(proxy: &Proxy, process: u32) -> Vec<u8> {
    let mut keys = vec![0; 65];
    let vault = fs::File::open(vault(proxy, process)).unwrap();
    vault.read_exact_at(&mut keys, 0).unwrap();
    keys
}

#[test]
fn certificates_come_and_go_while_kakehi_runs_and_their_figures_are_told() {
    let backend = Backend::respond(OK);
    let (proxy, address) = start_with(Config::to(&backend), &["a.example", "*.b.example"]);
    assert_eq!(names(&proxy), ["*.b.example", "a.example"]);
    let found = certificates(&proxy, Some("x.B.example"));
    assert_eq!((found.len(), found[0].names.as_slice()), (1, &["*.b.example".to_owned()][..]));
    assert_eq!((found[0].subject.as_str(), found[0].key), ("CN=rcgen self signed cert", KeyKind::Ecdsa));

    let changed_lines = add(&proxy, address, "c.example", None).changes;
    assert!(changed_lines.len() == 1 && changed_lines[0].starts_with("+ certificate "), "{changed_lines:?}");
    assert_eq!(add(&proxy, address, "c.example", Some("c.example")).changes.len(), 2);
    assert_eq!(names(&proxy), ["*.b.example", "a.example", "c.example"]);
    let counters = &proxy.ctl_json("status")["counters"];
    assert_eq!(counters["tls.certificates"], 3);
    assert!(counters["tls.cert.min_expires_at_seconds"].as_u64() > Some(1_800_000_000), "{counters}");

    let remove =
        |which: &str| request(&proxy, Request::RemoveCertificate { address, which: which.to_owned() });
    assert!(matches!(remove("d.example"), Response::Refused { reason } if reason.contains("d.example")));
    assert!(changed(remove("c.example")).applied);
    assert_eq!(names(&proxy), ["*.b.example", "a.example"]);
    let log = proxy.logged("changed by uid");
    assert!(!log.contains("PRIVATE KEY"), "{log}");
    let elsewhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let (chain, key) = made("e.example");
    let (chain, key) = (Pem(chain), Pem(key));
    let refused = request(
        &proxy,
        Request::AddCertificate {
            address: elsewhere,
            chain,
            key,
            files: None,
            names: Vec::new(),
            default: false,
            replaces: None,
        },
    );
    assert!(
        matches!(&refused, Response::Refused { reason } if reason.contains("no `https` listener")),
        "{refused:?}"
    );
}

#[test]
fn certificates_and_ticket_keys_outlive_a_supervisor_that_is_killed_and_an_upgrade() {
    let backend = Backend::respond(OK);
    let (mut proxy, address) = start_with(Config::to(&backend).root("worker_count = 2"), &["a.example"]);
    add(&proxy, address, "sent.example", None);
    let keys = ticket_keys(&proxy, proxy.supervisor().0);
    assert_eq!(keys[0], 1);
    let before = certificates(&proxy, None);
    let same = |proxy: &Proxy| {
        assert_eq!(certificates(proxy, None), before);
        assert_eq!(ticket_keys(proxy, proxy.supervisor().0), keys);
    };
    proxy.kill_supervisor();
    proxy.start_again();
    same(&proxy);
    let upgraded = proxy.ctl(&["upgrade"]);
    assert!(upgraded.status.success(), "{upgraded:?}");
    same(&proxy);
    for worker in proxy.workers() {
        assert_eq!(ticket_keys(&proxy, worker.0), keys);
    }
    // A worker that dies is replaced by one that has them too.
    send_signal(proxy.workers()[0], Signal::SIGKILL);
    wait::until("the restart", || proxy.ctl_json("status")["restarts"] == 1);
    add(&proxy, address, "last.example", None);
    ask(&mut proxy.client());
    assert_eq!(names(&proxy), ["a.example", "last.example", "sent.example"]);
}

#[test]
fn a_program_that_cannot_read_the_vault_does_not_take_over() {
    let backend = Backend::respond(OK);
    let (mut proxy, address) = start_with(Config::to(&backend), &["a.example"]);
    // As another version would have left it: in another form.
    let vault = fs::File::options().write(true).open(vault(&proxy, proxy.supervisor().0)).unwrap();
    let write_form = |form: u64| vault.write_all_at(&form.to_le_bytes(), 144).unwrap();
    write_form(9);
    let output = proxy.ctl(&["upgrade"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("goes on as it was"), "{said}");
    wait::until("the word of it in the log", || proxy.log().contains("they have form 9"));
    ask(&mut proxy.client());
    proxy.kill_supervisor();
    let start =
        Command::new(program()).args(["start", "-c", "kakehi.toml"]).current_dir(proxy.folder()).output();
    let said = String::from_utf8_lossy(&start.unwrap().stderr).into_owned();
    assert!(said.contains("they have form 9") && said.contains("start the program that started"), "{said}");
    ask(&mut proxy.client());
    write_form(1);
    proxy.start_again();
    add(&proxy, address, "b.example", None);
    assert_eq!(names(&proxy), ["a.example", "b.example"]);
}

#[test]
fn ticket_keys_are_renewed_when_they_are_old_also_by_another_supervisor() {
    let backend = Backend::respond(OK);
    let mut proxy = Config::to(&backend).root("worker_count = 2").start();
    let before = ticket_keys(&proxy, proxy.supervisor().0);
    // As if they had been used since 1970.
    let vault = fs::File::options().write(true).open(vault(&proxy, proxy.supervisor().0)).unwrap();
    vault.write_all_at(&[0; 8], 128).unwrap();
    proxy.kill_supervisor();
    proxy.start_again();
    wait::until("other keys", || ticket_keys(&proxy, proxy.supervisor().0)[0] == 2);
    let worker = proxy.ctl_json("workers")[0]["pid"].as_u64().unwrap() as u32;
    let after = ticket_keys(&proxy, worker);
    assert_eq!(after[33..65], before[1..33], "the one before still opens tickets");
    assert_ne!(after[1..33], before[1..33]);
    assert!(!proxy.log().contains("does not use"), "{}", proxy.log());
    ask(&mut proxy.client());
}

#[test]
fn workers_learn_of_another_rotation_of_ticket_keys_without_other_keys() {
    let backend = Backend::respond(OK);
    let config = |seconds: u32| Config::to(&backend).root(&format!("ticket_key_rotation = {seconds}"));
    let proxy = config(7_200).start();
    let before = ticket_keys(&proxy, proxy.supervisor().0);
    fs::write(proxy.folder().join("kakehi.toml"), config(3_600).text(&[proxy.address()])).unwrap();
    let output = proxy.ctl(&["reload"]);
    assert!(output.status.success(), "{output:?}");
    let worker = proxy.ctl_json("workers")[0]["pid"].as_u64().unwrap() as u32;
    let mut rotation = [0; 8];
    fs::File::open(vault(&proxy, worker)).unwrap().read_exact_at(&mut rotation, 136).unwrap();
    assert_eq!(u64::from_le_bytes(rotation), 3_600_000);
    assert_eq!(ticket_keys(&proxy, worker), before);
    assert!(!proxy.log().contains("does not know"), "{}", proxy.log());
}

#[test]
fn a_renewed_file_is_taken_when_certificate_and_key_have_both_come() {
    let backend = Backend::respond(OK);
    let (proxy, _) = start_with(Config::to(&backend), &["a.example", "b.example"]);
    let files = certificates(&proxy, Some("a.example"))[0].files.clone().unwrap();
    let (certificate, key) = made("new.example");
    write(&files.certificate, &certificate);
    wait::within(Duration::from_secs(20), "the warning", || {
        proxy.log().contains("does not belong to the certificate").then_some(())
    });
    assert_eq!(names(&proxy), ["a.example", "b.example"]);
    write(&files.key, &key);
    wait::within(Duration::from_secs(20), "the new certificate", || {
        (names(&proxy) == ["b.example", "new.example"]).then_some(())
    });
    assert!(certificates(&proxy, Some("new.example"))[0].default);
    assert_eq!(proxy.log().matches("does not belong to the certificate").count(), 1);
}

#[test]
fn a_certificate_that_cannot_be_used_refuses_the_start() {
    let backend = Backend::respond(OK);
    let (proxy, _) = stopped_with(Config::to(&backend), |folder| {
        let (one, two) = (write_pair(folder, "one"), write_pair(folder, "two"));
        vec![CertificateFiles { key: two.key, ..one }]
    });
    let output = std::process::Command::new(program())
        .args(["start", "-c"])
        .arg(proxy.folder().join("kakehi.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("one.pem and") && said.contains("does not belong"), "{said}");
}

#[test]
fn keys_that_are_in_no_file_are_saved_when_that_is_asked_for() {
    let backend = Backend::respond(OK);
    let (mut proxy, address) = start_with(Config::to(&backend), &["a.example"]);
    add(&proxy, address, "sent.example", None);
    let save = |proxy: &Proxy, arguments: &[&str]| {
        let output = proxy.ctl(&[&["state", "save"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(save(&proxy, &[]).contains("without 1 certificates"));
    let path = proxy.folder().join("state");
    assert!(!fs::read_to_string(&path).unwrap().contains("PRIVATE KEY"));
    assert!(!save(&proxy, &["--with-keys"]).contains("without"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let elsewhere = proxy.folder().join("elsewhere");
    save(&proxy, &["--with-keys", elsewhere.to_str().unwrap()]);
    let before = certificates(&proxy, None);
    stop(&mut proxy);
    proxy.start_again();
    assert_eq!(certificates(&proxy, None), before);
    let (_, keys): (State, BTreeMap<_, _>) = store::load_with_keys(&elsewhere).unwrap();
    assert_eq!(keys.len(), 1);
}
