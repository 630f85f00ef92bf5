//! Files as they come: everything that is wrong is told at once, also of this host; large files take little memory.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::harness::{Backend, Config, Pki, Proxy, free_port, program, send_signal, wait};

fn check(file: &Path, more: &[&str]) -> Output {
    Command::new(program()).arg("check").arg("-c").arg(file).args(more).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn check_and_start_tell_all_errors_of_a_file_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kakehi.toml");
    fs::write(
        &file,
        "worker_cuont = 2\n[[listeners]]\naddress = \"[::ffff:127.0.0.1]:1\"\nprotocol = \"http\"\n\
         front_timeout = \"soon\"\n[clusters.a]\nprotocol = \"http\"\nbackends = [{ address = \"localhost:0\" }]\n",
    )
    .unwrap();
    let starting = ["start", "-c"].map(str::to_owned);
    let start = Command::new(program()).args(starting).arg(&file).output().unwrap();
    for output in [check(&file, &[]), start] {
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let place = |place: &str| format!("{}:{place}: ", file.display());
        let begins: Vec<&str> = text.lines().filter(|line| line.starts_with(&place("")[..20])).collect();
        assert_eq!(begins.len(), 4, "{text}");
        for (line, at) in begins.iter().zip(["1:1", "3:11", "5:17", "8:25"]) {
            assert!(line.starts_with(&place(at)), "{line}");
        }
        assert!(text.contains("\n1 | worker_cuont = 2\n  | ^^^^^^^^^^^^\n"), "{text}");
        assert!(text.ends_with(&format!("kakehi: {}: 4 errors\n", file.display())), "{text}");
    }
}

#[test]
fn a_reload_answers_with_all_errors_and_logs_each_in_one_line() {
    let backend = Backend::respond("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::to(&backend);
    let file = proxy.folder().join("kakehi.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("worker_cuont = 1\nfront_timeout = \"soon\"\n{good}")).unwrap();
    let text = said(&proxy.ctl(&["reload"]));
    for expected in [
        "kakehi.toml:1:1: unknown key",
        "1 | worker_cuont",
        "^^^^^^",
        "kakehi.toml:2:17: ",
        "nothing was changed",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    send_signal(proxy.supervisor(), Signal::SIGHUP);
    wait::until("both errors are in the log", || {
        let log = proxy.log();
        let has = |place: &str| log.lines().any(|line| line.contains("SIGHUP: ") && line.contains(place));
        has("kakehi.toml:1:1: unknown key") && has("kakehi.toml:2:17: ") && has("nothing was changed")
    });
    assert!(!proxy.log().contains("^^^"), "{}", proxy.log());
}

/// A file whose frontends are wrong in a way that only those who compile them find, each with its place and what is said of it.
fn uncompilable(address: &str) -> (String, Vec<(String, &'static str)>) {
    let frontends = [
        ("hostname = \"/(/.x\"", "\"/(/", "the regular expression `(` is refused: unclosed group"),
        ("hostname = \"a\", path = \"/[\", path_type = \"REGEX\"", "\"/[\"", "unclosed character class"),
        (
            "hostname = \"b\", header_predicates = [{ name = \"x\", value = \"1\" }, { name = \"y\", match = \"regex\", value = \"+\" }]",
            "\"+\"",
            "the regular expression `+` is refused",
        ),
        (
            "hostname = \"*.c\", redirect = \"found\", rewrite_host = \"$HOST[2].d\"",
            "\"$HOST",
            "`$HOST[2]` is no part of the hostname",
        ),
        ("hostname = \"d\", rewrite_path = \"/$PATH[7]\"", "\"/$PATH", "`$PATH[7]` is no part of the path"),
        ("hostname = \"e\", path = \"/x/../y\"", "\"/x/..", "can match no request"),
        ("hostname = \"f\", path = \"/%40\"", "{", "lead to different places; the other one stands in line "),
    ];
    let mut text = format!("[[listeners]]\naddress = \"{address}\"\nprotocol = \"http\"\n");
    let mut expected = Vec::new();
    for (number, (keys, at, said)) in frontends.into_iter().enumerate() {
        // The names of the clusters come in another order than the lines.
        let name = ["q", "b", "z", "a", "c", "y", "d"][number];
        let line = format!("frontends = [{{ address = \"{address}\", {keys} }}]");
        text += &format!("[clusters.{name}]\nprotocol = \"http\"\n{line}\n");
        let place = format!("{}:{}: ", text.lines().count(), line.find(at).unwrap() + 1);
        expected.push((place, said));
    }
    text += &format!(
        "[clusters.A]\nprotocol = \"http\"\nfrontends = [{{ address = \"{address}\", hostname = \"f.\", path = \"/@\" }}]\n"
    );
    (text, expected)
}

#[test]
fn what_only_compiling_finds_is_told_with_its_place_all_at_once_by_check_start_and_reload() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kakehi.toml");
    let (text, expected) = uncompilable("127.0.0.1:1");
    fs::write(&file, format!("command_socket = \"k.sock\"\n{text}worker_cuont = 1\n")).unwrap();
    // Beside what is wrong with the text.
    let text = said(&check(&file, &[]));
    assert!(text.contains("unknown key `worker_cuont`") && text.ends_with(": 8 errors\n"), "{text}");
    let (text, _) = uncompilable("127.0.0.1:1");
    fs::write(&file, format!("command_socket = \"k.sock\"\n{text}")).unwrap();
    let start = Command::new(program()).args(["start", "-c"]).arg(&file).output().unwrap();
    for output in [check(&file, &[]), start] {
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.ends_with(": 7 errors\n"), "{text}");
        let mut lines = text.lines().filter(|line| line.starts_with(&*file.to_string_lossy()));
        for (place, words) in &expected {
            let (row, column) = place.split_once(':').unwrap();
            // The line of the command socket comes first.
            let place = format!("{}:{}:{column}", file.display(), row.parse::<usize>().unwrap() + 1);
            let line = lines.next().unwrap();
            assert!(line.starts_with(&place) && line.contains(words), "{line}, not {place} {words}");
        }
        assert!(text.contains("\n   |") && text.contains("^^^^^^"), "{text}");
    }

    let backend = Backend::respond("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::to(&backend);
    let (text, expected) = uncompilable(&proxy.address().to_string());
    let file = proxy.folder().join("kakehi.toml");
    let root = fs::read_to_string(&file).unwrap();
    let root: String =
        root.lines().take_while(|line| !line.starts_with('[')).map(|it| format!("{it}\n")).collect();
    fs::write(&file, format!("{root}{text}")).unwrap();
    let before = root.lines().count();
    let text = said(&proxy.ctl(&["reload"]));
    for (place, words) in &expected {
        let (row, column) = place.split_once(':').unwrap();
        let place = format!("kakehi.toml:{}:{column}", row.parse::<usize>().unwrap() + before);
        let line =
            text.lines().find(|line| line.contains(&place)).unwrap_or_else(|| panic!("{place}: {text}"));
        assert!(line.contains(words), "{line}, not {words}");
    }
    assert!(text.contains("nothing was changed") && text.contains("^^^^^^"), "{text}");
    send_signal(proxy.supervisor(), Signal::SIGHUP);
    wait::until("all of them are in the log", || {
        let log = proxy.log();
        let found =
            |(_, words): &(String, &str)| log.lines().any(|it| it.contains("SIGHUP: ") && it.contains(words));
        expected.iter().all(found) && log.contains("nothing was changed")
    });
}

#[test]
fn two_rules_for_the_same_requests_are_told_once_however_many_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kakehi.toml");
    let mut text = "[[listeners]]\naddress = \"127.0.0.1:1\"\nprotocol = \"http\"\n".to_owned();
    for number in 0..3_000 {
        text += &format!(
            "[clusters.c{number}]\nprotocol = \"http\"\nfrontends = [{{ address = \"127.0.0.1:1\", hostname = \"a\" }}]\n"
        );
    }
    fs::write(&file, text).unwrap();
    let text = said(&check(&file, &[]));
    assert!(text.ends_with(": 2999 errors\n"), "{text}");
}

#[test]
fn check_here_tells_what_this_host_lacks_and_plain_check_does_not_ask() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kakehi.toml");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_address = taken.local_addr().unwrap();
    fs::write(folder.path().join("plain"), "").unwrap();
    let listener = |address: &str| format!("[[listeners]]\naddress = \"{address}\"\nprotocol = \"http\"\n");
    let bad = format!(
        "command_socket = \"missing/kakehi.sock\"\npid_file_path = \"plain/kakehi.pid\"\n\
         saved_state = \"also/missing/state.json\"\nuser = \"nobody-of-this-name\"\nworker_cores = [0, 60000]\n{}{}",
        listener(&taken_address.to_string()),
        listener("192.0.2.1:8080"),
    );
    fs::write(&file, &bad).unwrap();
    let plain = check(&file, &[]);
    assert!(plain.status.success(), "{}", said(&plain));
    let here = check(&file, &["--here"]);
    let text = said(&here);
    assert_eq!(here.status.code(), Some(1), "{text}");
    for expected in [
        "`command_socket`: the folder ",
        "missing; make it",
        "`pid_file_path`: ",
        "plain is no folder",
        "`saved_state`: the folder ",
        "there is no user `nobody-of-this-name`",
        "core 60000 is none that this process may use",
        "192.0.2.1:8080 is not an address of this host",
        &format!("{taken_address} is already taken (by pid {}", std::process::id()),
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    fs::write(&file, listener(&format!("127.0.0.1:{}", free_port()))).unwrap();
    let good = check(&file, &["--here"]);
    assert!(good.status.success(), "{}", said(&good));
}

#[test]
fn what_kakehi_itself_holds_is_not_taken_for_check_here() {
    let backend = Backend::respond("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let proxy = Config::to(&backend).root("worker_count = 2").start();
    let file = proxy.folder().join("kakehi.toml");
    let own = check(&file, &["--here"]);
    assert!(own.status.success(), "{}", said(&own));
    // With another command socket it is another kakehi's.
    let other = fs::read_to_string(&file).unwrap().replace("\"kakehi.sock\"", "\"other.sock\"");
    let other_file = proxy.folder().join("other.toml");
    fs::write(&other_file, other).unwrap();
    let other = check(&other_file, &["--here"]);
    let text = said(&other);
    assert!(text.contains(&format!("{} is ", proxy.address())), "{text}");
}

/// A file with so many clusters, each with a frontend and a backend.
fn large(folder: &Path, clusters: usize, listener: SocketAddr) -> std::path::PathBuf {
    let mut text =
        format!("worker_count = 1\n[[listeners]]\naddress = \"{listener}\"\nprotocol = \"http\"\n");
    for number in 0..clusters {
        let [_, a, b, c] = (number as u32).to_be_bytes();
        write!(
            text,
            "[clusters.cluster-{number:06}]\nprotocol = \"http\"\n\n\
             [[clusters.cluster-{number:06}.frontends]]\naddress = \"{listener}\"\nhostname = \"host-{number:06}.example.org\"\n\n\
             [[clusters.cluster-{number:06}.backends]]\naddress = \"10.{a}.{b}.{c}:8000\"\n\n"
        )
        .unwrap();
    }
    let file = folder.join("kakehi.toml");
    fs::write(&file, text).unwrap();
    file
}

fn answers(address: SocketAddr) -> bool {
    let Ok(mut client) = TcpStream::connect(address) else { return false };
    let mut answer = Vec::new();
    let asked = client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    asked.and_then(|()| client.read_to_end(&mut answer)).is_ok() && answer.starts_with(b"HTTP/1.1 404")
}

/// A tenth of those for which 200 MiB are promised, as a slow build reads it in some seconds; the program itself is in it.
const CLUSTERS: usize = 10_000;
const MOST_MEMORY_KB: u64 = 40 << 10;

#[test]
fn a_file_with_very_many_clusters_takes_little_memory_to_check_and_to_start() {
    let folder = tempfile::tempdir().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let file = large(folder.path(), CLUSTERS, address);
    for verb in ["check", "start"] {
        let mut command = Command::new(program());
        command.args([verb, "-c"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut peak = 0;
        wait::within(Duration::from_secs(120), "it has checked, or serves", || {
            let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
            let high = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let high = high.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap_or(0);
            peak = peak.max(high);
            let serves = verb == "start" && answers(address);
            (child.try_wait().unwrap().is_some() || serves).then_some(())
        });
        assert_eq!(child.try_wait().unwrap().is_some(), verb == "check");
        if verb == "start" {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        }
        assert!(child.wait().unwrap().success());
        assert!(peak > 5_000 && peak < MOST_MEMORY_KB, "{verb}: {peak} kB");
    }
}

#[test]
fn a_file_with_the_keys_and_the_shape_of_sozus_example_is_ok_with_the_warnings_that_one_expects() {
    let (folder, pki) = (tempfile::tempdir().unwrap(), Pki::new());
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ctl/tests/data/as-for-sozu.toml");
    let file = folder.path().join("config.toml");
    fs::copy(example, &file).unwrap();
    let missing = check(&file, &[]);
    assert!(missing.status.code() == Some(1) && said(&missing).contains("garden.pem"), "{}", said(&missing));
    let issued = pki.issue(&["garden.test"]);
    fs::copy(&issued.certificate, folder.path().join("garden.pem")).unwrap();
    fs::copy(&issued.key, folder.path().join("garden.key")).unwrap();
    let output = check(&file, &[]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("ok (4 listeners, 2 clusters, 6 frontends, 4 backends, 2 certificates)"), "{text}");
    let warnings: Vec<_> = text.lines().filter(|line| line.contains("warning: ")).collect();
    let expected =
        ["not honoured yet", "has no effect", "is made up", "cannot be read, and kakehi's own answer"];
    let counts = expected.map(|words| warnings.iter().filter(|line| line.contains(words)).count());
    assert_eq!(counts, [5, 8, 2, 2], "{text}");
    assert_eq!(warnings.len(), 17, "{text}");
}
