//! The proxy under test: its processes, its file, and what an operator does to it.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use crate::{
    authority::{Authority, CERTIFICATE, KEY},
    stream::NAME,
};

/// A step that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The file's `worker_timeout`, in seconds: short, as a run waits for it again and again.
const WORKER_TIMEOUT_S: u64 = 2;
/// How long a worker is stopped that is to answer in time all the same.
const STOPPED: Duration = Duration::from_millis(500);

/// What stands in its file whatever else changes.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    /// In clear text, and over TLS.
    pub(crate) listen: [SocketAddr; 2],
    pub(crate) backend: SocketAddr,
    pub(crate) workers: u32,
    /// How long a ticket key is used (s).
    pub(crate) ticket_key_rotation: u32,
    pub(crate) leaving: Leaving,
    /// Requests and connections count against limits that are never reached; older programs do not know them.
    pub(crate) counts: bool,
}

/// How a process leaves.
#[derive(Clone, Copy)]
pub(crate) enum Leaving {
    Soon,
    /// With time for all that clients sent while it was stopped, also on a busy machine, and for idle connections to get the
    /// request whose answer says that they close.
    Patiently,
}

impl Leaving {
    fn settings(self) -> &'static str {
        match self {
            Leaving::Soon => "drain_timeout = 5",
            Leaving::Patiently => "drain_timeout = 20\nstop_idle_grace = 10\nconnect_timeout = 15",
        }
    }
}

/// A running kakehi.
pub(crate) struct Proxy {
    child: Child,
    programs: PathBuf,
    folder: PathBuf,
    setup: Setup,
    /// How often the file was written.
    versions: u32,
}

impl Proxy {
    /// Starts the programs in `programs`, with its files in `folder`, where its certificate is.
    ///
    /// # Errors
    /// When it does not come up.
    pub(crate) async fn start(programs: &Path, folder: &Path, setup: Setup) -> io::Result<Proxy> {
        let (programs, folder) = (programs.to_owned(), folder.to_owned());
        write_file(&folder, setup, 0)?;
        let child = launch(&programs, &folder)?;
        let mut proxy = Proxy { child, programs, folder, setup, versions: 0 };
        proxy.wait_until_ready().await?;
        Ok(proxy)
    }

    async fn wait_until_ready(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.runs().await {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("kakehi has ended: {status}\n{}", self.log())));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("kakehi does not answer\n{}", self.log())));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Whether the start is over: `status` is answered before that, too.
    async fn runs(&self) -> bool {
        let Ok(status) = self.ctl(&["status", "--json"]).await else { return false };
        let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        status["phase"] != "starting"
    }

    /// Runs `kakehictl`; what it prints.
    ///
    /// # Errors
    /// What it says when it fails.
    pub(crate) async fn ctl(&self, arguments: &[&str]) -> io::Result<String> {
        let mut command = Command::new(self.programs.join("kakehictl"));
        command.arg("-s").arg(self.folder.join("kakehi.sock")).args(arguments);
        // Clients go on meanwhile.
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(io::Error::other(format!("kakehictl {}: {}", arguments.join(" "), said.trim())))
        }
    }

    async fn workers(&self) -> io::Result<Vec<serde_json::Value>> {
        Ok(serde_json::from_str(&self.ctl(&["workers", "--json"]).await?)?)
    }

    /// Process ids of the workers.
    ///
    /// # Errors
    /// When kakehi does not tell.
    pub(crate) async fn worker_pids(&self) -> io::Result<Vec<i32>> {
        let workers = self.workers().await?;
        Ok(workers.iter().filter_map(|it| i32::try_from(it["pid"].as_i64()?).ok()).collect())
    }

    /// Writes another file and has it read.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) async fn reload(&mut self) -> io::Result<()> {
        self.versions += 1;
        write_file(&self.folder, self.setup, self.versions)?;
        self.ctl(&["reload"]).await.map(drop)
    }

    /// Puts another certificate that `authority` issues into the place of the one there is.
    ///
    /// # Errors
    /// When it is refused.
    pub(crate) async fn replace_certificate(&self, authority: &Authority) -> io::Result<()> {
        authority.issue(&self.folder)?;
        let [certificate, key] = [CERTIFICATE, KEY].map(|name| self.folder.join(name).display().to_string());
        let listen = self.setup.listen[1].to_string();
        let arguments =
            ["certificate", "replace", &listen, NAME, "--certificate", &certificate, "--key", &key];
        self.ctl(&arguments).await.map(drop)
    }

    /// Kills a worker; its process id.
    ///
    /// # Errors
    /// When it cannot be found.
    pub(crate) async fn kill_worker(&self, place: usize, note: impl FnOnce()) -> io::Result<i32> {
        let pids = self.worker_pids().await?;
        let pid = pids[place % pids.len()];
        note();
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        Ok(pid)
    }

    /// Puts other programs into the place of its own, as a package does, and goes over to them; then reloads.
    ///
    /// # Errors
    /// When they are refused, or a process of the older ones stays.
    pub(crate) async fn go_over_to(&mut self, newer: &Path) -> io::Result<()> {
        install(newer, &self.programs)?;
        self.ctl(&["upgrade"]).await?;
        let deadline = Instant::now() + PATIENCE;
        // Those that leave have a program whose file is not there any more.
        let is_older = |pid: &u32| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|program| program.to_string_lossy().ends_with(" (deleted)"))
        };
        while self.processes().iter().any(is_older) {
            if Instant::now() > deadline {
                return Err(io::Error::other("a process of the older programs stays"));
            }
            sleep(Duration::from_millis(50)).await;
        }
        self.reload().await
    }

    /// Stops a worker, begins a change, and continues the worker, which then answers.
    ///
    /// # Errors
    /// When the change is refused, or the worker was replaced.
    pub(crate) async fn change_beside_a_stopped_worker(&mut self, n: u32) -> io::Result<()> {
        let worker = self.stop_worker(n).await?;
        let continued = async {
            sleep(STOPPED).await;
            Ok(kill(worker, Signal::SIGCONT)?)
        };
        if n.is_multiple_of(2) {
            let weight = format!("weight={}", 50 + n % 7);
            let edit = ["backend", "patch", "main", "one", &weight];
            tokio::try_join!(self.ctl(&edit), continued)?;
        } else {
            tokio::try_join!(self.reload(), continued)?;
        }
        match self.worker_pids().await?.contains(&worker.as_raw()) {
            true => Ok(()),
            false => Err(io::Error::other(
                "a worker was replaced that had been stopped for less than `worker_timeout`",
            )),
        }
    }

    /// Stops a worker and makes a change, which goes on with the others; continues it when it has been replaced.
    ///
    /// # Errors
    /// When the change is refused, or the worker is not replaced.
    pub(crate) async fn change_without_a_stuck_worker(&mut self, n: u32) -> io::Result<()> {
        let worker = self.stop_worker(n).await?;
        self.reload().await?;
        self.wait_for_workers(self.setup.workers as usize, worker.as_raw()).await?;
        Ok(kill(worker, Signal::SIGCONT)?)
    }

    async fn stop_worker(&self, place: u32) -> io::Result<Pid> {
        let pids = self.worker_pids().await?;
        let worker = Pid::from_raw(pids[place as usize % pids.len()]);
        kill(worker, Signal::SIGSTOP)?;
        Ok(worker)
    }

    /// Waits until `count` workers run, and `pid` is none of them.
    ///
    /// # Errors
    /// When that does not come to be in time.
    pub(crate) async fn wait_for_workers(&self, count: usize, pid: i32) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let workers = self.workers().await?;
            let running = |worker: &serde_json::Value| worker["state"] == "running" && worker["pid"] != pid;
            if workers.len() == count && workers.iter().all(running) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("no worker in the place of the one that was killed"));
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills the supervisor, and starts another after a while.
    ///
    /// # Errors
    /// When that does not come up.
    pub(crate) async fn kill_supervisor(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        sleep(Duration::from_millis(300)).await;
        self.child = launch(&self.programs, &self.folder)?;
        self.wait_until_ready().await
    }

    /// All processes of it: the supervisor, and whatever runs as a worker of this folder's.
    /// What backends have in flight, as `kakehictl backends` says.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub(crate) async fn in_flight(&self) -> io::Result<u64> {
        let text = self.ctl(&["backends", "--json"]).await?;
        let said: serde_json::Value = serde_json::from_str(&text).map_err(io::Error::other)?;
        let backends = said["backends"].as_array().ok_or(io::ErrorKind::InvalidData)?;
        Ok(backends.iter().filter_map(|backend| backend["in_flight"].as_u64()).sum())
    }

    pub(crate) fn processes(&self) -> Vec<u32> {
        let marked = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let mark = format!("KAKEHI_ENDURANCE={}", self.folder.display());
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(marked).collect()
    }

    /// Resident memory of all processes (kB).
    pub(crate) fn memory_kb(&self) -> u64 {
        let of = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
        };
        self.processes().iter().filter_map(of).sum()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Stops it; what its log says that is worth knowing.
    ///
    /// # Errors
    /// When it does not stop.
    pub(crate) async fn stop(mut self) -> io::Result<Vec<String>> {
        self.ctl(&["stop", "--now"]).await?;
        self.child.wait()?;
        let log = self.log();
        let worth = |line: &&str| line.contains("ERROR") || line.contains("panicked");
        Ok(log.lines().filter(worth).map(str::to_owned).collect())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Puts the programs of a folder into the place of those of another, in one step each.
///
/// # Errors
/// When they are not there, or cannot be written.
pub(crate) fn install(from: &Path, to: &Path) -> io::Result<()> {
    for name in ["kakehi", "kakehictl"] {
        let fresh = to.join(format!("{name}.new"));
        fs::copy(from.join(name), &fresh)?;
        fs::rename(fresh, to.join(name))?;
    }
    Ok(())
}

fn launch(programs: &Path, folder: &Path) -> io::Result<Child> {
    let log = fs::File::options().create(true).append(true).open(folder.join("log"))?;
    Command::new(programs.join("kakehi"))
        .arg("start")
        .arg("-c")
        .arg(folder.join("kakehi.toml"))
        .env("KAKEHI_ENDURANCE", folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// The file in its version of this number: clusters, frontends, weights and deadlines differ from that before.
fn write_file(
    folder: &Path,
    Setup { listen: [listen, secure], backend, workers, ticket_key_rotation, leaving, counts }: Setup,
    version: u32,
) -> io::Result<()> {
    let (odd, weight) = (version % 2 == 1, 100 + version % 3);
    let extra = if odd {
        format!(
            "[clusters.extra{version}]\nprotocol = \"http\"\nfrontends = [{{ address = \"{listen}\", hostname = \
             \"extra{version}.test\" }}]\nbackends = [{{ address = \"{backend}\" }}]\n"
        )
    } else {
        String::new()
    };
    let (limits, places) = match counts {
        true => (
            "max_requests = 100000\nmax_connections_per_ip = 100000\n\
             rate_limits = [{ key = \"source\", rate = 1000000 }]\nload_balancing = \"LEAST_LOADED\"\n",
            ", max_connections = 100000",
        ),
        false => ("", ""),
    };
    let text = format!(
        "command_socket = \"kakehi.sock\"\nworker_count = {workers}\nhandle_process_affinity = false\n\
         {leaving}\nworker_timeout = {WORKER_TIMEOUT_S}\nticket_key_rotation = {ticket_key_rotation}\n\n\
         [[listeners]]\naddress = \"{listen}\"\nprotocol = \"http\"\nfront_timeout = {front}\n\n\
         [[listeners]]\naddress = \"{secure}\"\nprotocol = \"https\"\nfront_timeout = {front}\n\
         certificate = \"{CERTIFICATE}\"\nkey = \"{KEY}\"\n\n\
         [clusters.main]\nprotocol = \"http\"\n{limits}frontends = [{{ address = \"{listen}\", hostname = \"*\" }}, \
         {{ address = \"{secure}\", hostname = \"*\" }}]\n\
         backends = [{{ address = \"{backend}\", backend_id = \"one\", weight = {weight}{places} }}]\n{extra}",
        front = 60 + version % 2,
        leaving = leaving.settings(),
    );
    fs::write(folder.join("kakehi.toml"), text)
}
