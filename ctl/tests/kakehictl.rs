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
    order::{Envelope, Request, Response, Status, WorkerInfo, WorkerState},
    wire::{self, Decoder},
};
use tempfile::TempDir;

/// A folder with a control socket in it, on which `play` answers one connection.
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
        Self::new(move |mut stream| {
            let mut decoder = Decoder::new(limits::MAX_REQUEST_FRAME);
            let question = wire::read_message::<Request>(&mut stream, &mut decoder).unwrap().unwrap();
            assert_eq!(question.body, request);
            wire::write_message(&mut stream, &Envelope::new(question.id, response), limits::MAX_FRAME)
                .unwrap();
        })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("ctl.sock")
    }

    /// Runs `kakehictl -s SOCKET arguments` and waits for the supervisor's part to end.
    fn run(mut self, arguments: &[&str]) -> (i32, String, String) {
        let socket = self.socket();
        let outcome = kakehictl(&[&["-s", socket.to_str().unwrap()], arguments].concat(), None);
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
    let Output { status, stdout, stderr } = command.output().unwrap();
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
        connections: 12,
        requests: 99,
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
        (&["status"], "Name its control socket with -s SOCKET"),
        (&["-s", "x", "dance"], "unrecognized subcommand 'dance'"),
        (&["-s", "x", "-c", "y", "status"], "cannot be used with"),
        (&["-s", "x"], "Usage: kakehictl"),
        (&["-c", "/nowhere.toml", "status"], "/nowhere.toml: the configuration cannot be read"),
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
