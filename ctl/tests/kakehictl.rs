//! The program `kakehictl` against a supervisor that this file plays.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail with it")]

use std::{
    io::{Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    thread::{self, JoinHandle},
};

use kakehi_ctl::{
    limits,
    order::{
        CertificateInfo, Changed, Envelope, Pem, Phase, Request, Response, Status, WorkerInfo, WorkerState,
    },
    state::{CertificateFiles, KeyKind},
    wire::{self, Decoder},
};

#[path = "kakehictl/edits.rs"]
mod edits;
use tempfile::TempDir;

/// A folder with a command socket in it, on which `play` answers one connection.
struct Stage {
    folder: TempDir,
    supervisor: Option<JoinHandle<()>>,
}

impl Stage {
    fn new(play: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("ctl.sock")).unwrap();
        let supervisor = thread::spawn(move || play(listener.accept().unwrap().0));
        Stage { folder, supervisor: Some(supervisor) }
    }

    /// A supervisor that expects `request` and gives `response`.
    fn answering(request: Request, response: Response) -> Self {
        Self::answering_all(vec![(request, response)])
    }

    /// The same for one connection after the other.
    fn answering_all(dialogue: Vec<(Request, Response)>) -> Self {
        Self::answering_in(tempfile::tempdir().unwrap(), dialogue)
    }

    fn answering_in(folder: TempDir, dialogue: Vec<(Request, Response)>) -> Self {
        let listener = UnixListener::bind(folder.path().join("ctl.sock")).unwrap();
        let play = move || {
            for (request, response) in dialogue {
                let (mut stream, question) = loop {
                    let mut stream = listener.accept().unwrap().0;
                    let mut decoder = Decoder::new(limits::MAX_REQUEST_FRAME);
                    let question = wire::read_message::<Request>(&mut stream, &mut decoder).unwrap().unwrap();
                    let Request::Hello(_) = question.body else { break (stream, question) };
                    // As a supervisor from before there was a greeting.
                    let refused =
                        Response::Refused { reason: "a control message is not understood".to_owned() };
                    wire::write_message(&mut stream, &Envelope::new(0, refused), limits::MAX_FRAME).unwrap();
                };
                assert_eq!(question.body, request);
                let answer = Envelope::new(question.id, response);
                wire::write_message(&mut stream, &answer, limits::MAX_FRAME).unwrap();
            }
        };
        Stage { folder, supervisor: Some(thread::spawn(play)) }
    }

    /// A file of the folder with this text.
    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("ctl.sock")
    }

    /// Runs `kakehictl -s SOCKET arguments` and waits for the supervisor's part to end.
    fn run(self, arguments: &[&str]) -> (i32, String, String) {
        self.run_with(arguments, "")
    }

    /// The same with `input` on standard input.
    fn run_with(mut self, arguments: &[&str], input: &str) -> (i32, String, String) {
        let socket = self.socket();
        let mut child = Command::new(env!("CARGO_BIN_EXE_kakehictl"))
            .args(["-s", socket.to_str().unwrap()])
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // Whoever does not read it may have ended already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let outcome = outcome(child.wait_with_output().unwrap());
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.join().unwrap();
        }
        outcome
    }
}

/// Exit code, stdout and stderr of `kakehictl`.
fn kakehictl(arguments: &[&str], variable: Option<&Path>) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kakehictl"));
    command.args(arguments).env_remove("KAKEHI_SOCKET");
    if let Some(socket) = variable {
        command.env("KAKEHI_SOCKET", socket);
    }
    outcome(command.output().unwrap())
}

fn outcome(output: Output) -> (i32, String, String) {
    let Output { status, stdout, stderr } = output;
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn workers() -> Vec<WorkerInfo> {
    let worker = WorkerInfo {
        load_percent: None,
        id: 0,
        pid: 4242,
        core: Some(0),
        state: WorkerState::Running,
        connections: 12,
        requests: 1_234_567,
        cpu_user_ms: 1_250,
        cpu_system_ms: 20_000,
        io_uring_level: 4,
        io_uring_features: vec!["defer_taskrun".to_owned()],
        ring_enters: 50_000,
        ring_sqes: 2_500_000,
        ring_cqes: 2_600_000,
        ring_no_buffers: 0,
        ring_overflows: 0,
        ring_bulk: 0,
    };
    let other =
        WorkerInfo { id: 1, pid: 7, core: None, state: WorkerState::Dead, requests: 3, ..worker.clone() };
    vec![worker, other]
}

fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        pid: 4000,
        uptime_s: 3_661,
        listeners: vec!["127.0.0.1:8080".parse().unwrap()],
        clusters: 1,
        frontends: 2,
        backends: 3,
        by_hand: 2,
        connections: 12,
        requests: 99,
        save_failed: None,
        record_failed: None,
        admin: None,
        phase: Phase::Running,
        generation: 7,
        restarts: 0,
        counters: [("http.requests".to_owned(), 99)].into(),
        workers: workers(),
    }
}

const WORKERS_TEXT: &str = "\
WORKER   PID  CORE  STATE    CONNECTIONS  REQUESTS  CPU USER  CPU SYSTEM  IO_URING
     0  4242     0  running           12   1234567     1.25s      20.00s  level 4
     1     7     -  dead              12         3     1.25s      20.00s  level 4
";

#[test]
fn workers_are_shown_in_aligned_columns() {
    let (code, stdout, stderr) =
        Stage::answering(Request::Workers, Response::Workers(workers())).run(&["workers"]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, WORKERS_TEXT, ""));
}

#[test]
fn status_shows_the_figures_and_the_workers() {
    let (code, stdout, _) = Stage::answering(Request::Status, Response::Status(status())).run(&["status"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("up          1h 1m 1s\nlisteners   127.0.0.1:8080\n"), "{stdout}");
    assert!(stdout.ends_with(WORKERS_TEXT), "{stdout}");
}

#[test]
fn json_is_an_array_of_workers_and_an_object_of_status() {
    let stage = Stage::answering(Request::Workers, Response::Workers(workers()));
    let (code, stdout, _) = stage.run(&["workers", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(code, 0);
    let expected = serde_json::json!({
        "id": 0, "pid": 4242, "core": 0, "state": "running", "connections": 12, "requests": 1_234_567,
        "cpu_user_ms": 1250, "cpu_system_ms": 20000, "io_uring_level": 4, "io_uring_features": ["defer_taskrun"],
        "ring_enters": 50_000, "ring_sqes": 2_500_000, "ring_cqes": 2_600_000,
        "ring_no_buffers": 0, "ring_overflows": 0, "ring_bulk": 0,
    });
    assert_eq!(shown[0], expected);
    assert_eq!(shown[1]["core"], serde_json::Value::Null);

    let stage = Stage::answering(Request::Status, Response::Status(status()));
    let (_, stdout, _) = stage.run(&["--json", "status"]);
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(shown["requests"], 99);
    assert_eq!(shown["workers"][0]["pid"], 4242);
    assert_eq!(shown["counters"]["http.requests"], 99);
}

#[test]
fn the_socket_is_found_by_the_configuration_and_by_the_environment() {
    let stage = Stage::answering(Request::Workers, Response::Workers(vec![]));
    let file = stage.folder.path().join("kakehi.toml");
    std::fs::write(&file, "command_socket = \"ctl.sock\"\n").unwrap();
    assert_eq!(kakehictl(&["-c", file.to_str().unwrap(), "workers"], Some(Path::new("/nowhere"))).0, 0);

    let stage = Stage::answering(Request::Workers, Response::Workers(vec![]));
    assert_eq!(kakehictl(&["workers"], Some(&stage.socket())).0, 0);
}

#[test]
fn a_refusal_is_exit_code_1() {
    for id in [0, 1] {
        let stage = Stage::new(move |mut stream| {
            let refusal = Response::Refused { reason: "because".to_owned() };
            wire::write_message(&mut stream, &Envelope::new(id, refusal), limits::MAX_FRAME).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let (code, stdout, stderr) = stage.run(&["status", "--json"]);
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (1, "", "kakehictl: kakehi refuses: because\n"));
    }
}

#[test]
fn an_answer_to_another_question_is_not_taken() {
    let stage = Stage::new(|mut stream| {
        for (id, response) in [(9, Response::Status(status())), (1, Response::Workers(vec![]))] {
            wire::write_message(&mut stream, &Envelope::new(id, response), limits::MAX_FRAME).unwrap();
        }
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let (code, stdout, _) = stage.run(&["workers", "--json"]);
    assert_eq!((code, stdout.as_str()), (0, "[]\n"));
}

#[test]
fn another_version_is_named() {
    let stage = Stage::new(|mut stream| {
        let text = br#"{"version":7,"id":1,"body":{"anything":[]}}"#;
        let mut frame = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(text);
        stream.write_all(&frame).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let (code, _, stderr) = stage.run(&["status"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("version 7") && stderr.contains("version 1"), "{stderr}");
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let cases: [(&[&str], &str); 5] = [
        (&["status"], "name the command socket with -s SOCKET"),
        (&["-s", "x", "dance"], "unrecognized subcommand 'dance'"),
        (&["-s", "x", "-c", "y", "status"], "cannot be used with"),
        (&["-s", "x"], "Usage: kakehictl"),
        (&["-c", "/nowhere.toml", "status"], "/nowhere.toml: No such file"),
    ];
    for (arguments, expected) in cases {
        let (code, stdout, stderr) = kakehictl(arguments, None);
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?} {stderr}");
        assert!(stderr.contains(expected), "{arguments:?} {stderr}");
    }
}

#[test]
fn kakehi_that_is_not_there_is_exit_code_3_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ctl.sock");
    let name = socket.to_str().unwrap();

    let (code, _, stderr) = kakehictl(&["-s", name, "status"], None);
    assert_eq!(code, 3);
    assert!(
        stderr
            .contains("is kakehi running? Start it with `kakehi start -c FILE`, or name the socket with -s"),
        "{stderr}"
    );

    let listener = UnixListener::bind(&socket).unwrap();
    let (code, _, stderr) = kakehictl(&["-s", name, "--timeout", "50", "status"], None);
    assert_eq!(code, 3);
    assert!(stderr.contains("within 50 ms"), "{stderr}");

    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o000)).unwrap();
    let (code, _, stderr) = kakehictl(&["-s", name, "--timeout", "50", "status"], None);
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    // The superuser is not kept out.
    assert!(code == 3 && (stderr.contains("is denied") || stderr.contains("within 50 ms")), "{stderr}");

    drop(listener);
    let (code, _, stderr) = kakehictl(&["-s", name, "status"], None);
    assert_eq!(code, 3);
    assert!(stderr.contains("kakehi has stopped"), "{stderr}");
}

#[test]
fn a_connection_that_ends_before_the_answer_is_exit_code_3() {
    let (code, _, stderr) = Stage::new(drop).run(&["status"]);
    assert_eq!(code, 3);
    assert!(stderr.contains("was closed without an answer"), "{stderr}");

    let garbage = Stage::new(|mut stream| {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let (code, _, stderr) = garbage.run(&["status"]);
    assert_eq!(code, 3);
    assert!(stderr.contains("is larger than"), "{stderr}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let stage = Stage::answering(Request::Workers, Response::Workers(vec![workers().remove(0); 20_000]));
    let mut child = Command::new(env!("CARGO_BIN_EXE_kakehictl"))
        .args(["-s", stage.socket().to_str().unwrap(), "workers"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).unwrap();
    drop(stdout);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!((status.code(), stderr.as_slice()), (Some(0), &b""[..]));
}

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const ISSUER: &str = "-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nSECRET\n-----END PRIVATE KEY-----\n";
const ADDRESS: &str = "127.0.0.1:8443";

fn changed() -> Response {
    Response::Changed(Changed {
        applied: true,
        changes: vec!["+ certificate 00 for a on 127.0.0.1:8443".to_owned()],
        at_next_start: vec![],
        with_new_workers: vec![],
        warnings: vec![],
        by_hand: vec!["+ cluster mine".to_owned()],
        workers: vec![],
    })
}

fn add(chain: &str, files: Option<CertificateFiles>, replaces: Option<&str>) -> Request {
    Request::AddCertificate {
        address: ADDRESS.parse().unwrap(),
        chain: Pem(chain.to_owned()),
        key: Pem(KEY.to_owned()),
        files,
        names: vec![],
        default: false,
        replaces: replaces.map(str::to_owned),
    }
}

/// A stage that expects `request` of the files in its folder.
fn stage_with_files(request: impl FnOnce(&dyn Fn(&str) -> PathBuf) -> Request) -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let request = request(&|name| folder.path().join(name));
    let stage = Stage::answering_in(folder, vec![(request, changed())]);
    stage.file("c.pem", &format!("{CERTIFICATE}{KEY}"));
    stage.file("i.pem", ISSUER);
    stage.file("k.pem", KEY);
    stage
}

#[test]
fn a_certificate_is_sent_with_the_paths_of_its_files() {
    let stage = stage_with_files(|path| {
        let files = CertificateFiles {
            certificate: path("c.pem").into(),
            chain: Some(path("i.pem").into()),
            key: path("k.pem").into(),
        };
        add(&format!("{CERTIFICATE}{ISSUER}"), Some(files), None)
    });
    let path = |name: &str| stage.folder.path().join(name).to_str().unwrap().to_owned();
    let (certificate, chain, key) = (path("c.pem"), path("i.pem"), path("k.pem"));
    let arguments =
        ["certificate", "add", ADDRESS, "--certificate", &certificate, "--chain", &chain, "--key", &key];
    let (code, stdout, stderr) = stage.run(&arguments);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.starts_with("+ certificate 00") && !stdout.contains("SECRET"), "{stdout}");

    let stage = stage_with_files(|_| {
        let Request::AddCertificate { address, chain, key, .. } = add(CERTIFICATE, None, None) else {
            unreachable!()
        };
        let names = vec!["a.example".to_owned(), "*.b.example".to_owned()];
        Request::AddCertificate {
            address,
            chain,
            key,
            files: None,
            names,
            default: true,
            replaces: Some("old".into()),
        }
    });
    let path = |name: &str| stage.folder.path().join(name).to_str().unwrap().to_owned();
    let (certificate, key) = (path("c.pem"), path("k.pem"));
    let arguments = [
        "certificate",
        "replace",
        ADDRESS,
        "old",
        "--certificate",
        &certificate,
        "--key",
        &key,
        "--no-watch",
        "--name",
        "A.example.",
        "--name",
        "*.b.example",
        "--default",
    ];
    assert_eq!(stage.run(&arguments).0, 0);
}

#[test]
fn a_certificate_may_come_from_standard_input_with_its_key() {
    let all = format!("{KEY}{CERTIFICATE}{ISSUER}");
    let chain = format!("{CERTIFICATE}{ISSUER}");
    let stage = Stage::answering(add(&chain, None, Some("a.example")), changed());
    let arguments = ["certificate", "replace", ADDRESS, "a.example", "--certificate", "-"];
    assert_eq!(stage.run_with(&arguments, &all).0, 0);

    let stage = stage_with_files(|_| add(CERTIFICATE, None, None));
    let certificate = stage.folder.path().join("c.pem").to_str().unwrap().to_owned();
    let arguments = ["certificate", "add", ADDRESS, "--certificate", &certificate, "--key", "-"];
    assert_eq!(stage.run_with(&arguments, KEY).0, 0);
}

#[test]
fn what_is_no_certificate_is_wrong_usage_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key) = (file("c.pem", CERTIFICATE), file("k.pem", KEY));
    let two = file("two.pem", &format!("{KEY}{KEY}"));
    let start = ["-s", "x", "certificate", "add", ADDRESS];
    let cases: [(&[&str], &str); 8] = [
        (&[], "--certificate <FILE>"),
        (&["--certificate", &certificate], "--key FILE is needed"),
        (&["--certificate", &key, "--key", &key], "has no certificate (PEM)"),
        (&["--certificate", &certificate, "--key", &certificate], "has no private key (PEM)"),
        (&["--certificate", &certificate, "--key", &two], "has several private keys"),
        (&["--certificate", "/nowhere.pem", "--key", &key], "/nowhere.pem: No such file"),
        (&["--certificate", "-", "--chain", "-"], "leave --chain out"),
        (
            &["--certificate", &certificate, "--key", &key, "--name", "a b"],
            "the name `a b` cannot be used: it has spaces",
        ),
    ];
    for (arguments, expected) in cases {
        let (code, stdout, stderr) = kakehictl(&[&start[..], arguments].concat(), None);
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?} {stderr}");
        assert!(stderr.contains(expected) && !stderr.contains("SECRET"), "{arguments:?} {stderr}");
    }
}

fn infos() -> Vec<CertificateInfo> {
    let info = CertificateInfo {
        address: ADDRESS.parse().unwrap(),
        fingerprint: "ab".repeat(32).parse().unwrap(),
        names: vec!["a.example".to_owned(), "*.a.example".to_owned()],
        subject: "CN=a.example".to_owned(),
        issuer: "CN=Some CA".to_owned(),
        serial: "01ff".to_owned(),
        not_before: 0,
        not_after: 32_503_680_000,
        key: KeyKind::Ecdsa,
        default: true,
        chain_length: 2,
        files: Some(CertificateFiles {
            certificate: Path::new("/c").into(),
            chain: None,
            key: Path::new("/k").into(),
        }),
    };
    let old = CertificateInfo {
        fingerprint: "cd".repeat(32).parse().unwrap(),
        names: vec!["b.example".to_owned()],
        not_after: 1_000_000_000,
        key: KeyKind::Rsa,
        files: None,
        ..info.clone()
    };
    vec![info, old]
}

#[test]
fn certificates_are_listed_by_their_expiry() {
    let stage = || Stage::answering(Request::Certificates { which: None }, Response::Certificates(infos()));
    let (code, stdout, _) = stage().run(&["certificate", "list"]);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!((code, lines.len()), (0, 3), "{stdout}");
    let columns: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(columns, ["NAMES", "ADDRESS", "KEY", "EXPIRES", "FINGERPRINT"]);
    assert!(
        lines[1].starts_with("b.example") && lines[1].contains("rsa    2001-09-09 (expired)"),
        "{stdout}"
    );
    assert!(lines[2].contains("a.example, *.a.example  127.0.0.1:8443  ecdsa  3000-01-01 ("), "{stdout}");
    assert!(lines[2].ends_with(&"ab".repeat(32)), "{stdout}");

    let (_, stdout, _) = stage().run(&["certificate", "list", "--expiring-within", "30"]);
    assert!(stdout.contains("b.example") && !stdout.contains("a.example,"), "{stdout}");
    let (_, stdout, _) = stage().run(&["certificate", "list", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&shown[0]["names"][0], &shown[1]["key"]), (&"b.example".into(), &"ecdsa".into()));
    let none = Stage::answering(Request::Certificates { which: None }, Response::Certificates(vec![]));
    assert_eq!(none.run(&["certificate", "list"]).1, "none\n");
}

#[test]
fn a_certificate_is_shown_and_removed_by_name_or_fingerprint() {
    let ask = || Request::Certificates { which: Some("a.example".to_owned()) };
    let one = infos().into_iter().take(1).collect();
    let (code, stdout, _) =
        Stage::answering(ask(), Response::Certificates(one)).run(&["certificate", "show", "a.example"]);
    assert_eq!(code, 0);
    for line in ["names       a.example, *.a.example\n", "issuer      CN=Some CA\n", "key file    /k\n"] {
        assert!(stdout.contains(line), "{stdout}");
    }
    let none = Stage::answering(ask(), Response::Certificates(vec![]));
    let (code, _, stderr) = none.run(&["certificate", "show", "a.example"]);
    assert!(
        code == 1 && stderr.contains("no certificate has the name or fingerprint `a.example`"),
        "{stderr}"
    );

    let which = "b.example".to_owned();
    let request = Request::RemoveCertificate { address: ADDRESS.parse().unwrap(), which };
    let stage = Stage::answering(request, changed());
    assert_eq!(stage.run(&["certificate", "remove", ADDRESS, "b.example"]).0, 0);
}
