//! Starts a proxy on its core and stops it again, with everything that it started.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::accounting::{self, Stat};
use crate::generator::tls::Tls;
use crate::generator::{Bound, Generator, Load};
use crate::{Attempt, BenchError, cores};

const READY_WITHIN: Duration = Duration::from_secs(15);
const STOPPED_WITHIN: Duration = Duration::from_secs(5);
/// How much of a proxy's output an error shows (bytes).
const LOG_SHOWN: usize = 4_000;

/// What to run.
#[derive(Debug)]
pub struct Program {
    /// Name of the proxy, for messages.
    pub name: String,
    /// Program and arguments.
    pub command: Command,
    /// Where it will listen.
    pub listen: SocketAddr,
    /// How clients speak TLS with it; absent if they speak without.
    pub tls: Option<Tls>,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Program {
    /// The command as one would type it, without the folder of the program.
    #[must_use]
    pub fn command_line(&self) -> String {
        let program = Path::new(self.command.get_program()).file_name().unwrap_or_default();
        let words = std::iter::once(program).chain(self.command.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// A proxy that runs; dropping it stops it and all its descendants.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    listen: SocketAddr,
    tls: Option<Tls>,
    started: Instant,
}

impl Process {
    /// Starts `program` on `core`.
    ///
    /// # Errors
    /// If the core is not allowed, or the program cannot be run.
    pub fn start(mut program: Program, core: usize) -> Result<Self, BenchError> {
        let log = File::create(&program.log).attempt(|| format!("cannot write {}", program.log.display()))?;
        let copy = log.try_clone().attempt(|| "cannot share a log file".into())?;
        program.command.stdin(Stdio::null()).stdout(log).stderr(copy);
        // A child inherits the cores of the thread that starts it, so a thread of that core starts it.
        let spawn = || {
            cores::pin_this_thread(core)?;
            let started = Instant::now();
            let child = program.command.spawn().attempt(|| format!("cannot run {}", program.name))?;
            Ok::<_, BenchError>((child, started))
        };
        let (child, started) = std::thread::scope(|scope| scope.spawn(spawn).join())
            .map_err(|_| BenchError::Program("the thread that starts a proxy died".into()))??;
        let Program { name, log, listen, tls, .. } = program;
        Ok(Self { child, name, log, listen, tls, started })
    }

    /// The process that was started; others may descend from it.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a request is answered through the proxy; says how long that took since its start.
    ///
    /// # Errors
    /// [`BenchError::NotReady`] with the end of its output.
    pub fn wait_until_ready(&mut self) -> Result<Duration, BenchError> {
        let load = Load::on(self.listen);
        while self.started.elapsed() < READY_WITHIN {
            if std::net::TcpStream::connect(self.listen).is_ok() {
                let answered = Generator::with(load, self.tls.clone())?.drive(Bound::Requests(1));
                if answered.is_ok_and(|tally| tally.requests > 0 && tally.faults.total() == 0) {
                    return Ok(self.started.elapsed());
                }
            }
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                break;
            }
            pause(Duration::from_micros(500));
        }
        Err(BenchError::NotReady {
            peer: self.name.clone(),
            seconds: READY_WITHIN.as_secs(),
            log: tail(&self.log),
        })
    }

    fn stop(&mut self) {
        // Workers may outlive their parent, by design or because it crashed: remember who they are.
        let tree = accounting::tree(self.id()).unwrap_or_default();
        let family: Vec<(u32, Stat)> =
            tree.into_iter().filter_map(|pid| Some((pid, Stat::of(pid).ok()?))).collect();
        send(self.id(), Signal::SIGTERM);
        if self.ends_within(STOPPED_WITHIN, &family) {
            return;
        }
        for (pid, _) in family.iter().filter(|member| lives(member)) {
            send(*pid, Signal::SIGKILL);
        }
        self.ends_within(STOPPED_WITHIN, &family);
    }

    /// Waits for the end of the process and its family; false if it did not come in time.
    fn ends_within(&mut self, limit: Duration, family: &[(u32, Stat)]) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let ended = self.child.try_wait().is_ok_and(|status| status.is_some());
            if ended && !family.iter().any(lives) {
                return true;
            }
            pause(Duration::from_millis(2));
        }
        false
    }
}

/// Whether a process still runs, and is not another that got its pid.
fn lives((pid, stat): &(u32, Stat)) -> bool {
    Stat::of(*pid).is_ok_and(|now| now.started == stat.started && !now.ended)
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A process that is already gone is what a stop wants.
fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// The end of what a proxy wrote.
fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_SHOWN)..]).into_owned()
}

/// A port that was free a moment ago.
///
/// # Errors
/// If none can be had.
pub fn free_address() -> Result<SocketAddr, BenchError> {
    let bound = std::net::TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    bound.attempt(|| "no free port".into())
}

/// Lets time pass while another process works.
#[allow(
    clippy::disallowed_methods,
    reason = "a benchmark has nothing to await here, and no worker runs in it"
)]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(script: &str, log: &Path) -> Program {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let listen = free_address().unwrap();
        Program { name: "sh".into(), command, listen, tls: None, log: log.join("log") }
    }

    fn first_core() -> usize {
        cores::allowed().unwrap()[0]
    }

    #[test]
    fn what_a_proxy_started_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start(program("sleep 60 & sleep 60; true", dir.path()), first_core()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut family = Vec::new();
        while family.len() < 3 {
            assert!(Instant::now() < deadline);
            family = accounting::tree(process.id()).unwrap();
        }
        drop(process);
        // An orphan may still wait for init to collect it; it must not run.
        for pid in family {
            assert!(Stat::of(pid).map_or(true, |stat| stat.ended));
        }
    }

    #[test]
    fn a_proxy_that_ends_at_once_is_reported_with_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let mut process =
            Process::start(program("echo no such key; exit 1", dir.path()), first_core()).unwrap();
        let error = process.wait_until_ready().unwrap_err();
        assert!(error.to_string().contains("no such key"), "{error}");
    }
}
