//! Starts one worker process: fork and exec of this very program, with its descriptors in known places.
//!
//! `/proc/self/exe` is the file that runs, even after an upgrade has replaced it on disk, so a replacement is
//! always of the same version as the supervisor. The worker inherits standard output and error and the
//! descriptors of [`crate::worker_main`]; everything else of the supervisor is close-on-exec. It gets a
//! process group of its own, so that Ctrl-C in a terminal reaches the supervisor only, and no
//! parent-death signal: it goes on serving when the supervisor is killed.

use std::{
    ffi::CStr,
    fs::File,
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use command_fds::{CommandFdExt as _, FdMapping};
use kakehi_ctl::state::Settings;
use kakehi_engine::{tls::Vault, worker::DescriptorKind};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::{
    fleet::{
        adoption_file::{self, AdoptionFile},
        handle::Handle,
        process::Block,
        record::ProcessRecord,
    },
    host::{init_system, listeners::Sockets},
    scm, worker_main,
};

/// A worker that does not take its listeners for so long is given up (its start will time out).
const PASS_TIMEOUT: Duration = Duration::from_secs(2);

/// A process that was started.
pub(crate) struct Launched {
    /// The process.
    pub(crate) pid: u32,
    pub(crate) handle: Handle,
    /// The supervisor's end of the order channel, not blocking.
    pub(crate) orders: UnixStream,
    /// The supervisor's end of the channel over which listening sockets go.
    pub(crate) descriptors: OwnedFd,
    /// What the process hands over comes out here: for the one that takes its place.
    pub(crate) inheritance: OwnedFd,
    /// Of the socket over which another supervisor takes it over.
    pub(crate) adoption: AdoptionFile,
}

/// What the processes of all workers start from.
#[derive(Clone)]
pub(crate) struct Provisions {
    /// What to serve: the JSON text of a `State`.
    pub(crate) state: Arc<Vec<u8>>,
    /// Where the certificates lie that it names.
    pub(crate) vault: Arc<Vault>,
    /// Where all workers count together.
    pub(crate) ledger: Option<Arc<OwnedFd>>,
    /// What probes found of backends, where that is not what a worker assumes: the JSON text of an array of `Verdict`. Empty: nothing.
    pub(crate) verdicts: Arc<Vec<u8>>,
    /// What the DNS says of names of backends: the JSON text of an array of `NameAnswer`. Empty: nothing.
    pub(crate) names: Arc<Vec<u8>>,
}

/// What every process of a worker starts from.
#[derive(Clone, Copy)]
pub(crate) struct Start<'a> {
    /// Number of the worker.
    pub(crate) id: u32,
    pub(crate) core: Option<usize>,
    pub(crate) provisions: &'a Provisions,
    pub(crate) sockets: &'a Sockets,
    /// The adoption socket gets its place beside it.
    pub(crate) command_socket: &'a Path,
    /// Where processes counted that have ended.
    pub(crate) ended: &'a Block,
    /// Another program than the one that runs.
    pub(crate) program: Option<&'a Path>,
    /// Those of its state.
    pub(crate) settings: &'a Settings,
}

/// Starts process number `launch` of a worker, which counts in `counters`, and takes over the connections that come out
/// of `predecessor`.
///
/// # Errors
/// When the kernel refuses a process, a descriptor or memory. A worker that dies at once is no error here.
pub(crate) fn launch(
    start: &Start<'_>,
    launch: u64,
    counters: &Block,
    predecessor: Option<&OwnedFd>,
) -> io::Result<Launched> {
    let Start { id, core, provisions, sockets, .. } = *start;
    let (orders, their_orders) = scm::streams()?;
    let (descriptors, their_descriptors) = scm::pair()?;
    let (inheritance, successor) = scm::pair()?;
    let (their_adoption, mut adoption) = adoption_file::listen(start.command_socket, id)?;
    let place = |parent_fd, child_fd| FdMapping { parent_fd, child_fd };

    let mut command = Command::new(start.program.unwrap_or(Path::new("/proc/self/exe")));
    command.arg0("kakehi").arg("worker").arg("--id").arg(id.to_string());
    command.arg("--launch").arg(launch.to_string());
    if let Some(core) = core {
        command.arg("--core").arg(core.to_string());
    }
    if predecessor.is_some() {
        command.arg("--inherits");
    }
    command.stdin(Stdio::null()).process_group(0);
    for variable in init_system::VARIABLES {
        command.env_remove(variable);
    }
    command.env("GLIBC_TUNABLES", tunables(std::env::var("GLIBC_TUNABLES").ok()));
    let mut places = vec![
        place(their_orders.into(), worker_main::ORDERS),
        place(their_descriptors, worker_main::DESCRIPTORS),
        place(counters.memory.try_clone()?, worker_main::COUNTERS),
        place(sealed(c"kakehi-state", &provisions.state)?, worker_main::STATE),
        place(successor, worker_main::SUCCESSOR),
        place(their_adoption, worker_main::ADOPTION),
        place(start.ended.memory.try_clone()?, worker_main::ENDED),
        place(provisions.vault.for_reading()?, worker_main::VAULT),
    ];
    if let Some(ledger) = &provisions.ledger {
        places.push(place(ledger.try_clone()?, worker_main::LEDGER));
    }
    if !provisions.verdicts.is_empty() {
        places.push(place(sealed(c"kakehi-verdicts", &provisions.verdicts)?, worker_main::VERDICTS));
    }
    if !provisions.names.is_empty() {
        places.push(place(sealed(c"kakehi-names", &provisions.names)?, worker_main::NAMES));
    }
    if let Some(predecessor) = predecessor {
        places.push(place(predecessor.try_clone()?, worker_main::PREDECESSOR));
    }
    command.fd_mappings(places).map_err(io::Error::other)?;
    // Nobody else waits for our children: the handle alone reaps it.
    let pid = command.spawn().inspect_err(|_| adoption.remove())?.id();
    let handle = Handle::of_process(pid)?;
    match ProcessRecord::of((id, launch, pid), &counters.memory, &start.ended.memory, &*provisions.vault) {
        Ok(record) => {
            let program = start.program.is_none().then(worker_main::this_program);
            adoption.note(record.with(program, start.settings).counting_in(provisions.ledger.as_deref()));
        }
        // It has died already, which is seen and told.
        Err(error) => tracing::debug!(worker = id, %error, "there is no record of it"),
    }
    // Our copies of its descriptors: with them open we would not see it close its own.
    drop(command);

    let labelled = labelled(sockets);
    match scm::send_some(&descriptors, &labelled, Duration::ZERO) {
        Ok(sent) if sent == labelled.len() => {}
        // It makes room when it runs.
        Ok(sent) => send_beside(id, &descriptors, &labelled[sent..])?,
        Err(error) => tracing::warn!(worker = id, "{error}"),
    }
    Ok(Launched { pid, handle, orders, descriptors, inheritance, adoption })
}

/// Sends copies of these on another thread. It takes no order for which others would have to be sent before it is ready.
fn send_beside(id: u32, channel: &OwnedFd, descriptors: &[(DescriptorKind, &OwnedFd)]) -> io::Result<()> {
    let channel = channel.try_clone()?;
    let copies = descriptors.iter().map(|(kind, descriptor)| Ok((*kind, descriptor.try_clone()?)));
    let copies = copies.collect::<io::Result<Vec<_>>>()?;
    tokio::task::spawn_blocking(move || {
        if let Err(error) = scm::send(&channel, &copies, PASS_TIMEOUT) {
            // It has died, or will be found not ready in time: either is seen, and told, by the supervisor.
            tracing::warn!(worker = id, "{error}");
        }
    });
    Ok(())
}

/// The sockets as [`scm`] sends them.
pub(crate) fn labelled(sockets: &Sockets) -> Vec<(DescriptorKind, &OwnedFd)> {
    sockets.iter().map(|(which, socket)| (DescriptorKind::Listener(*which), socket)).collect()
}

/// glibc's settings for a worker: those that the operator gave, and what suits one that takes and gives back memory in batches.
/// Another C library ignores them.
fn tunables(present: Option<String>) -> String {
    let present = present.filter(|present| !present.is_empty());
    let said = |name: &str| present.as_deref().is_some_and(|present| present.contains(name));
    let ours = TUNABLES.iter().filter(|(name, _)| !said(name));
    let ours = ours.map(|(name, value)| format!("glibc.malloc.{name}={value}"));
    present.clone().into_iter().chain(ours).collect::<Vec<_>>().join(":")
}

/// What glibc is told of its own memory.
const TUNABLES: [(&str, u32); 3] = [
    // Blocks of one size that are kept for the next taker: those of a thousand requests. By default it keeps 7 and the others take
    // the slow path (measured: 7 % of a worker's user time).
    ("tcache_count", 1_024),
    // From here on blocks of 128 KiB and more are mapped, and given back when they are freed; otherwise glibc raises that by itself.
    // Bytes that are kept at the end of the heap, and taken there at a time: by default it gives them back to the kernel and
    // takes them again with every batch of large responses (measured: as many calls as turns).
    ("trim_threshold", 4 << 20),
    ("top_pad", 256 << 10),
];

/// Memory with `content` that nobody can change any more.
fn sealed(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(content)?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn the_operators_own_settings_of_glibc_go_before() {
        let ours = tunables(None);
        assert!(ours.starts_with("glibc.malloc.tcache_count=1024:glibc.malloc.trim_threshold="), "{ours}");
        assert_eq!(tunables(Some(String::new())), ours);
        assert_eq!(tunables(Some("glibc.malloc.check=1".to_owned())), format!("glibc.malloc.check=1:{ours}"));
        let own = tunables(Some("glibc.malloc.tcache_count=0".to_owned()));
        assert!(own.starts_with("glibc.malloc.tcache_count=0:glibc.malloc.trim_threshold="), "{own}");
        assert!(!own.contains("1024"), "{own}");
    }

    #[test]
    fn sealed_memory_is_read_but_not_written() {
        let mut file = File::from(sealed(c"test", b"as it is").unwrap());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "as it is");
        assert!(file.write_all(b"more").is_err());
        assert!(file.set_len(0).is_err());
    }
}
