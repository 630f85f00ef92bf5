//! A kakehi of our own: its configuration, its processes, and what `kakehictl` says about them.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{explain, tls, wait_for};

/// How long a start, a replacement or a stop may take.
const LIFE_DEADLINE: Duration = Duration::from_secs(30);

/// Workers of the kakehi under test.
pub(crate) const WORKERS: usize = 2;

/// Where the two programs are.
pub(crate) struct Programs {
    pub(crate) kakehi: PathBuf,
    pub(crate) kakehictl: PathBuf,
}

/// One line of `kakehictl workers --json`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Worker {
    pub(crate) id: u64,
    pub(crate) pid: i32,
    pub(crate) state: String,
    pub(crate) level: u64,
}

/// A running kakehi; whatever is left of it ends when this is dropped.
pub(crate) struct Proxy<'a> {
    pub(crate) address: SocketAddr,
    /// Where it speaks TLS.
    pub(crate) tls_address: SocketAddr,
    programs: &'a Programs,
    supervisor: Child,
    folder: tempfile::TempDir,
    seen: Vec<i32>,
    level: Option<u8>,
}

impl<'a> Proxy<'a> {
    /// Starts kakehi in front of `backend` and waits until all its workers run.
    ///
    /// `level` is the forced io_uring level; `None` leaves the choice to kakehi.
    pub(crate) fn start(
        programs: &'a Programs,
        backend: SocketAddr,
        level: Option<u8>,
    ) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(explain("making a folder"))?;
        let (address, tls_address) = (free_address()?, free_address()?);
        let certificate = tls::issue(folder.path())?;
        let file = folder.path().join("kakehi.toml");
        let config = config(folder.path(), [address, tls_address], &certificate, backend);
        fs::write(&file, config).map_err(explain("writing the config"))?;
        let supervisor = launch(programs, folder.path(), level)?;
        let mut proxy = Proxy { address, tls_address, programs, supervisor, folder, seen: Vec::new(), level };
        if let Err(error) = proxy.running_workers() {
            return Err(format!("{error}\n{}", proxy.log()));
        }
        Ok(proxy)
    }

    /// Where its files are, the certificate among them.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All workers, once each of them runs.
    pub(crate) fn running_workers(&mut self) -> Result<Vec<Worker>, String> {
        self.workers_when("all workers to run", |workers| {
            workers.len() == WORKERS && workers.iter().all(|worker| worker.state == "running")
        })
    }

    /// All workers, once `good` holds for them.
    pub(crate) fn workers_when(
        &mut self,
        what: &str,
        good: impl Fn(&[Worker]) -> bool,
    ) -> Result<Vec<Worker>, String> {
        let mut last = "nothing yet".to_owned();
        let found = wait_for(LIFE_DEADLINE, what, || {
            if let Ok(Some(status)) = self.supervisor.try_wait() {
                return Some(Err(format!("waiting for {what}: kakehi ended with {status}")));
            }
            match self.workers() {
                Ok(workers) if good(&workers) => Some(Ok(workers)),
                Ok(workers) => {
                    last = format!("{workers:?}");
                    None
                }
                Err(error) => {
                    last = error;
                    None
                }
            }
        });
        found.map_err(|error| format!("{error}; last: {last}"))?
    }

    /// What `kakehictl workers --json` says now.
    pub(crate) fn workers(&mut self) -> Result<Vec<Worker>, String> {
        let output = Command::new(&self.programs.kakehictl)
            .arg("-s")
            .arg(self.folder.path().join("kakehi.sock"))
            .args(["workers", "--json"])
            .stdin(Stdio::null())
            .output()
            .map_err(explain("running kakehictl"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(format!("kakehictl ended with {}: {text}", output.status));
        }
        let list: Value =
            serde_json::from_slice(&output.stdout).map_err(explain("reading kakehictl's JSON"))?;
        let list = list.as_array().ok_or("kakehictl workers --json printed no array")?;
        let workers: Vec<Worker> = list.iter().map(worker).collect::<Result<_, _>>()?;
        for worker in &workers {
            // 0 stands for no process, while one that died has no successor yet.
            if worker.pid != 0 && !self.seen.contains(&worker.pid) {
                self.seen.push(worker.pid);
            }
        }
        Ok(workers)
    }

    /// Runs `kakehictl`.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> Result<(), String> {
        let output = Command::new(&self.programs.kakehictl)
            .arg("-s")
            .arg(self.folder.path().join("kakehi.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(explain("running kakehictl"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("kakehictl {arguments:?}: {said}")) }
    }

    /// Kills the supervisor, and starts another in its place.
    pub(crate) fn replace_supervisor(&mut self) -> Result<(), String> {
        self.supervisor.kill().map_err(explain("killing the supervisor"))?;
        self.supervisor.wait().map_err(explain("waiting for its end"))?;
        self.supervisor = launch(self.programs, self.folder.path(), self.level)?;
        self.running_workers().map(drop)
    }

    /// Ends one worker without asking it.
    pub(crate) fn kill_worker(&self, worker: &Worker) -> Result<(), String> {
        kill(Pid::from_raw(worker.pid), Signal::SIGKILL).map_err(explain("killing a worker"))
    }

    /// Asks for a graceful stop, as an init system does.
    pub(crate) fn terminate(&self) -> Result<(), String> {
        kill(self.supervisor_pid(), Signal::SIGTERM).map_err(explain("signalling the supervisor"))
    }

    /// Waits until the listening address refuses or the supervisor says that its workers stop, at most
    /// `deadline`; an early return by the deadline is no error, the stop may be quick or lazy.
    pub(crate) fn wait_until_stopping(&mut self, deadline: Duration) {
        let _ = wait_for(deadline, "the stop to begin", || {
            let refused = TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_err();
            let stopping =
                self.workers().map_or(true, |workers| workers.iter().any(|w| w.state == "stopping"));
            (refused || stopping).then_some(())
        });
    }

    /// Waits until the supervisor and all workers that were ever seen are gone.
    pub(crate) fn wait_for_end(&mut self) -> Result<ExitStatus, String> {
        let status = wait_for(LIFE_DEADLINE, "kakehi to end", || self.supervisor.try_wait().transpose())?
            .map_err(explain("waiting for kakehi"))?;
        let seen = self.seen.clone();
        wait_for(LIFE_DEADLINE, "the workers to end", || seen.iter().all(|pid| is_gone(*pid)).then_some(()))?;
        Ok(status)
    }

    /// The last lines of what kakehi logged.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(40);
        lines[from..].iter().map(|line| format!("  | {line}\n")).collect()
    }

    fn supervisor_pid(&self) -> Pid {
        Pid::from_raw(self.supervisor.id().cast_signed())
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        // A worker outlives its supervisor by design, so each is ended by its number.
        if !matches!(self.supervisor.try_wait(), Ok(Some(_))) {
            let _ = self.workers();
            let _ = self.supervisor.kill();
            let _ = self.supervisor.wait();
            for pid in &self.seen {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
    }
}

/// Starts kakehi on the file in `folder`.
fn launch(programs: &Programs, folder: &Path, level: Option<u8>) -> Result<Child, String> {
    let log = File::options().create(true).append(true).open(folder.join("log"));
    let log = log.map_err(explain("opening the log"))?;
    let errors = log.try_clone().map_err(explain("cloning the log"))?;
    let mut command = Command::new(&programs.kakehi);
    let file = folder.join("kakehi.toml");
    command.arg("start").arg("-c").arg(file).stdin(Stdio::null()).stdout(log).stderr(errors);
    match level {
        Some(level) => command.env("KAKEHI_IO_URING_LEVEL", level.to_string()),
        None => command.env_remove("KAKEHI_IO_URING_LEVEL"),
    };
    command.spawn().map_err(explain(&format!("starting {}", programs.kakehi.display())))
}

fn is_gone(pid: i32) -> bool {
    matches!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH))
}

fn worker(value: &Value) -> Result<Worker, String> {
    let number = |key: &str| value[key].as_u64().ok_or_else(|| format!("no `{key}` in {value}"));
    let state = value["state"].as_str().ok_or_else(|| format!("no `state` in {value}"))?.to_owned();
    let pid = i32::try_from(number("pid")?).map_err(explain("reading a pid"))?;
    Ok(Worker { id: number("id")?, pid, state, level: number("io_uring_level")? })
}

fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(explain("finding a free port"))?;
    listener.local_addr().map_err(explain("finding a free port"))
}

fn config(
    folder: &Path,
    [address, tls_address]: [SocketAddr; 2],
    certificate: &str,
    backend: SocketAddr,
) -> String {
    format!(
        r#"command_socket = "{}/kakehi.sock"
worker_count = {WORKERS}

[[listeners]]
address = "{address}"
protocol = "http"

[[listeners]]
address = "{tls_address}"
protocol = "https"
{certificate}

[clusters.guest]
protocol = "http"
frontends = [{{ address = "{address}", hostname = "*" }}, {{ address = "{tls_address}", hostname = "*" }}]
backends = [{{ address = "{backend}" }}]
"#,
        folder.display()
    )
}
