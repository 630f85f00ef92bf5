//! The real program as a process of the test: started, looked into, and taken down with all its workers.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU16, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt as _, FdMapping};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::{Backend, Client, Config, End, Process, kakehictl, processes, send_signal, sys, wait};

/// Marks every process of one proxy, so that it can be found whoever its parent is.
const MARK: &str = "KAKEHI_TEST_FOLDER";

/// How long a start may take: the machine may be busy with other tests.
const START: Duration = Duration::from_secs(15);

/// How long the log may take to say that the start is complete, once somebody answers.
const START_SEEN: Duration = Duration::from_secs(3);

/// The program under test; `kakehictl` lies beside it. `KAKEHI_TEST_PROGRAMS` names another folder, where the one that
/// cargo built into cannot be read.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_kakehi"));
    PROGRAM.get_or_init(|| {
        std::env::var_os("KAKEHI_TEST_PROGRAMS")
            .map_or_else(built, |folder| PathBuf::from(folder).join("kakehi"))
    })
}

/// A port of the loopback address that nobody listens on now. Below the range from which the kernel
/// takes the ports of outgoing connections: such a port would be gone again before the proxy starts.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 11_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = (std::process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
    loop {
        let offset = u32::from(base) + u32::from(NEXT.fetch_add(1, Ordering::SeqCst));
        let port = FIRST + (offset % u32::from(COUNT)) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A running proxy.
pub(crate) struct Proxy {
    child: Child,
    folder: TempDir,
    addresses: Vec<SocketAddr>,
    config: Config,
}

impl Proxy {
    /// A proxy that sends everything to `backend`.
    #[track_caller]
    pub(crate) fn to(backend: &Backend) -> Proxy {
        Config::to(backend).start()
    }

    /// Starts the program and waits until every listener and the command socket answer.
    #[track_caller]
    pub(crate) fn start(config: Config) -> Proxy {
        for attempt in 0.. {
            let mut proxy = Proxy::spawn(&config);
            let deadline = Instant::now() + START;
            let failure = loop {
                if let Ok(Some(status)) = proxy.child.try_wait() {
                    break format!("kakehi ended at its start: {status}");
                }
                if proxy.listeners_answer() && UnixStream::connect(proxy.socket()).is_ok() {
                    proxy.wait_for_the_end_of_the_start();
                    return proxy;
                }
                if Instant::now() > deadline {
                    break format!("kakehi does not answer on {:?} after {START:?}", proxy.addresses);
                }
                wait::pace(Duration::from_millis(5));
            };
            // Somebody else may have taken the port between the choice and the start.
            let taken = proxy.log().to_lowercase().contains("in use");
            assert!(taken && attempt < 3, "{failure}\n{}\n{}", proxy.file(), proxy.log());
        }
        unreachable!("the loop returns or fails");
    }

    /// The first worker that is ready answers, while others are not yet: what is done to them then is done to a start. Where
    /// nobody reads the log, the wait ends by itself.
    fn wait_for_the_end_of_the_start(&self) {
        let give_up = Instant::now() + START_SEEN;
        while !self.log().contains("ready: ") && Instant::now() < give_up {
            wait::pace(Duration::from_millis(2));
        }
    }

    /// Starts the program with a configuration that it must not take; gives its status and what it printed.
    #[track_caller]
    pub(crate) fn start_failing(config: &Config) -> (ExitStatus, String) {
        let mut proxy = Proxy::spawn(config);
        let status = proxy.wait(START);
        (status, proxy.log())
    }

    /// Starts the program and waits for nothing.
    pub(crate) fn spawn(config: &Config) -> Proxy {
        let folder = tempfile::Builder::new().prefix("kakehi-test-").tempdir().expect("a folder");
        let ip = if config.ipv6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
        let addresses: Vec<SocketAddr> =
            (0..config.listener_count()).map(|_| SocketAddr::from((ip, free_port()))).collect();
        let passed = config.activated.iter().map(|socket| socket.local_addr().expect("its address"));
        let addresses: Vec<_> = passed.chain(addresses).take(config.listener_count()).collect();
        fs::write(folder.path().join("kakehi.toml"), config.text(&addresses)).expect("the file");
        let child = launch(config, folder.path());
        Proxy { child, folder, addresses, config: config.clone() }
    }

    /// Starts the program again in the same folder, after its supervisor has ended, and waits until it says
    /// that the start is complete.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.launch_again();
        let socket = self.socket();
        let child = &mut self.child;
        wait::within(START, "an answer of the new supervisor", || {
            assert_eq!(child.try_wait().expect("wait"), None, "it has ended");
            let status = kakehictl().arg("-s").arg(&socket).args(["status", "--json"]).output().ok()?;
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
            (status["phase"] == "running").then_some(())
        });
    }

    /// Starts the program again in the same folder, after its supervisor has ended, and waits for nothing.
    pub(crate) fn launch_again(&mut self) {
        self.child = launch(&self.config, self.folder.path());
    }

    /// Kills the supervisor alone.
    #[track_caller]
    pub(crate) fn kill_supervisor(&mut self) {
        send_signal(self.supervisor(), Signal::SIGKILL);
        self.wait(START);
    }

    /// Where the first listener is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where the listener with this number is, from 0.
    pub(crate) fn address_of(&self, listener: usize) -> SocketAddr {
        self.addresses[listener]
    }

    /// A new connection to the first listener.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// The folder of the file, the log and the command socket.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The command socket.
    pub(crate) fn socket(&self) -> PathBuf {
        // Where the test has named a whole path, that.
        self.folder.path().join(self.config.command_socket())
    }

    /// The supervisor.
    pub(crate) fn supervisor(&self) -> Process {
        Process(self.child.id())
    }

    /// The workers that run now.
    pub(crate) fn workers(&self) -> Vec<Process> {
        self.supervisor().children()
    }

    /// The only worker.
    #[track_caller]
    pub(crate) fn worker(&self) -> Process {
        let workers = self.workers();
        assert_eq!(workers.len(), 1, "workers: {workers:?}");
        workers[0]
    }

    /// Runs `kakehictl` on this proxy's socket.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Output {
        kakehictl().arg("-s").arg(self.socket()).args(arguments).output().expect("kakehictl")
    }

    /// What `kakehictl VERB --json` prints; fails where it fails.
    #[track_caller]
    pub(crate) fn ctl_json(&self, verb: &str) -> serde_json::Value {
        let output = self.ctl(&[verb, "--json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "kakehictl {verb} --json: {output:?}");
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("kakehictl {verb} --json: {error} in: {text}"))
    }

    /// Has it read another file than before.
    #[track_caller]
    pub(crate) fn reload(&self, config: &Config) {
        fs::write(self.folder().join("kakehi.toml"), config.text(&self.addresses)).expect("the file");
        let output = self.ctl(&["reload"]);
        assert!(output.status.success(), "{output:?}");
    }

    /// Asks for a stop.
    pub(crate) fn terminate(&self) {
        send_signal(self.supervisor(), Signal::SIGTERM);
    }

    /// A counter of all workers.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.ctl_json("status")["counters"][name].as_u64().unwrap_or(0)
    }

    /// Waits until a counter of all workers has this value.
    #[track_caller]
    pub(crate) fn wait_for_counter(&self, name: &str, value: u64) {
        let deadline = Instant::now() + wait::SOON;
        loop {
            let seen = self.counter(name);
            if seen == value {
                return;
            }
            assert!(Instant::now() < deadline, "{name} is {seen}, not {value}");
        }
    }

    /// Waits for the end of the supervisor.
    #[track_caller]
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        wait::within(limit, "the end of kakehi", || child.try_wait().expect("wait"))
    }

    /// All that it has printed so far; [`Proxy::logged`] waits for words of it.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits for `words` in the log, and gives all of it. A thread writes the log, so that it can come after the answer to
    /// whoever did what it tells.
    #[track_caller]
    pub(crate) fn logged(&self, words: &str) -> String {
        let deadline = Instant::now() + wait::SOON;
        loop {
            let log = self.log();
            if log.contains(words) {
                return log;
            }
            assert!(Instant::now() < deadline, "not in the log: {words}\n{log}");
            wait::pace(Duration::from_millis(5));
        }
    }

    fn listeners_answer(&self) -> bool {
        self.addresses.iter().enumerate().all(|(number, &address)| {
            if self.config.answers_http(number) { answers(address) } else { sys::listens(address) }
        })
    }

    fn file(&self) -> String {
        fs::read_to_string(self.folder.path().join("kakehi.toml")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- kakehi.toml ---\n{}--- log of kakehi ---\n{}", self.file(), self.log());
        }
        // Stopped first: a supervisor that runs would replace the workers that end.
        if matches!(self.child.try_wait(), Ok(None)) {
            send_signal(self.supervisor(), Signal::SIGSTOP);
            for worker in self.workers() {
                send_signal(worker, Signal::SIGKILL);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for orphan in processes::marked_with(self.folder.path()) {
            send_signal(orphan, Signal::SIGKILL);
        }
    }
}

/// Starts the program on the file in `folder`; it goes on with the log there.
fn launch(config: &Config, folder: &Path) -> Child {
    let program = config.program.clone().unwrap_or_else(|| program().to_owned());
    let log = File::options().create(true).append(true).open(folder.join("log")).expect("the log");
    let mut command = if let Some(socket) = &config.activated {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg("LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\"").arg(&program);
        let parent_fd = socket.try_clone().expect("the socket").into();
        shell.fd_mappings(vec![FdMapping { parent_fd, child_fd: 3 }]).expect("one descriptor");
        shell
    } else if config.in_container {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(&program);
        unshare
    } else if config.ulimits.is_empty() {
        Command::new(&program)
    } else {
        let limits: String = config.ulimits.iter().map(|limit| format!("ulimit {limit} && ")).collect();
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{limits}exec \"$0\" \"$@\"")).arg(&program);
        shell
    };
    command
        .arg("start")
        .arg("-c")
        .arg(folder.join("kakehi.toml"))
        .env(MARK, folder)
        .envs(config.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(match &config.log {
            Some(log) => log.try_clone().expect("the log twice").into(),
            None => Stdio::from(log.try_clone().expect("the log twice")),
        })
        .stderr(log);
    if !config.refused_calls.is_empty() {
        sys::refuse(&mut command, config.refused_calls);
    }
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

/// Whether a worker stands behind the address: a request without Host reaches no backend, but gets an answer.
fn answers(address: SocketAddr) -> bool {
    let Ok(mut client) = Client::try_connect(address) else {
        return false;
    };
    client.send("GET / HTTP/1.1\r\n\r\n");
    let (bytes, end) = client.patience(START).rest();
    !bytes.is_empty() && end != End::Deadline
}
