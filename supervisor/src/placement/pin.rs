//! Where workers run: what cores the host has, and how workers are spread over them.
//!
//! A worker moves to another core as it is, with all that it has in flight: its process gets another affinity.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use kakehi_ctl::order::{Core, Interface, Response, Topology, WorkerInfo, WorkerOutcome};
use tokio::sync::oneshot;

use crate::{
    fleet::{process::cpu_time_ms, worker::Worker},
    host::cores,
    supervisor::Supervisor,
};

/// How long the load of workers is measured.
const MEASURED: Duration = Duration::from_millis(500);

/// Why a worker was not moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// There is no such worker.
    #[error("there is no worker {0}; `kakehictl workers` lists them")]
    NoWorker(u32),
    /// There is no such core, or it is not for kakehi.
    #[error("kakehi may not use core {core}; those that it may are {allowed}")]
    NotAllowed {
        /// Which one.
        core: u16,
        /// In words.
        allowed: String,
    },
    /// Nothing is left.
    #[error("no core is left that kakehi may use and that is as wished")]
    NoCore,
    /// The kernel refused.
    #[error("worker {id} cannot be tied to core {core}: {error}")]
    System {
        /// Which worker.
        id: u32,
        /// Which core.
        core: u16,
        /// What it said.
        error: io::Error,
    },
}

/// How workers shall be spread.
#[derive(Debug, Default)]
pub(crate) struct Wish {
    /// One of the cores that share a physical one is enough.
    pub(crate) no_smt: bool,
    /// Only cores of this NUMA node.
    pub(crate) numa: Option<u32>,
    /// Leave cores alone that serve the interrupts of network cards.
    pub(crate) reserve_for_irq: bool,
}

impl Supervisor {
    /// Tells what cores the host has, where the workers are, and how busy each is: which shows only over a while, so that
    /// the answer comes later, and nobody waits for it but who asked.
    pub(crate) fn tell_topology(&self, answer: oneshot::Sender<Response>) {
        let mut workers: Vec<WorkerInfo> = self.workers.iter().map(Worker::info).collect();
        let since = Instant::now();
        tokio::spawn(async move {
            tokio::time::sleep(MEASURED).await;
            let time_ms = since.elapsed().as_millis().max(1) as u64;
            for worker in &mut workers {
                let now = cpu_time_ms(worker.pid).map(|(user, system)| user + system);
                let before = worker.cpu_user_ms + worker.cpu_system_ms;
                worker.load_percent = now.map(|now| now.saturating_sub(before) * 100 / time_ms);
            }
            let (cores, interfaces) = read(Path::new("/"));
            // Whoever asked may have left; that is nobody's loss.
            let _ = answer.send(Response::Topology(Topology { cores, interfaces, workers }));
        });
    }

    /// Ties a worker to a core.
    ///
    /// # Errors
    /// See [`Refused`]; it stays where it is.
    pub(crate) async fn pin(
        &mut self,
        worker: u32,
        core: u16,
        by: &str,
    ) -> Result<Vec<WorkerOutcome>, Refused> {
        if worker as usize >= self.count() {
            return Err(Refused::NoWorker(worker));
        }
        let outcome = self.tie(worker, core, by)?;
        self.note_placement().await;
        Ok(vec![outcome])
    }

    /// Spreads all workers over the cores, as wished.
    ///
    /// # Errors
    /// See [`Refused`]; workers before the one that it names have moved.
    pub(crate) async fn pin_auto(&mut self, wish: &Wish, by: &str) -> Result<Vec<WorkerOutcome>, Refused> {
        let chosen = choose(&read(Path::new("/")).0, wish);
        if chosen.is_empty() {
            return Err(Refused::NoCore);
        }
        let places = (0..self.count() as u32).zip(chosen.iter().cycle());
        let outcomes = places.map(|(worker, core)| self.tie(worker, *core, by)).collect();
        self.note_placement().await;
        outcomes
    }

    /// Has the workers run where the settings say; what could not be done comes back.
    pub(crate) async fn pin_as_configured(&mut self, by: &str) -> Vec<String> {
        let wanted = self.state.settings.worker_cores.clone();
        let mut failed = Vec::new();
        if wanted.is_empty() {
            return failed;
        }
        for (id, core) in (0..self.count() as u32).zip(wanted) {
            let present = self.worker(id).and_then(|worker| worker.core());
            if present != Some(u32::from(core))
                && let Err(refused) = self.tie(id, core, by)
            {
                failed.push(refused.to_string());
            }
        }
        self.note_placement().await;
        failed
    }

    fn tie(&mut self, id: u32, core: u16, by: &str) -> Result<WorkerOutcome, Refused> {
        let allowed = cores::allowed();
        if !allowed.contains(&usize::from(core)) {
            let allowed = allowed.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
            return Err(Refused::NotAllowed { core, allowed });
        }
        let worker = self.worker(id).ok_or(Refused::NoWorker(id))?;
        worker.pin(usize::from(core)).map_err(|error| Refused::System { id, core, error })?;
        tracing::info!(worker = id, "runs on core {core}, for {by}");
        // Those before it in the list must be in it too.
        let listed = self.state.settings.worker_cores.len();
        let present = self.workers.iter().map(|worker| worker.core().and_then(|it| u16::try_from(it).ok()));
        let cores = present.map_while(|core| core).take(listed.max(id as usize + 1)).collect();
        self.state.settings.worker_cores = cores;
        self.steer();
        Ok(WorkerOutcome { id, outcome: format!("runs on core {core}") })
    }
}

/// Cores for workers, in the order in which they are to be used: first one of each physical core.
fn choose(cores: &[Core], wish: &Wish) -> Vec<u16> {
    let fits = |core: &&Core| {
        core.allowed
            && wish.numa.is_none_or(|node| core.node == node)
            && !(wish.reserve_for_irq && core.serves_interrupts)
    };
    let fitting: Vec<&Core> = cores.iter().filter(fits).collect();
    let mut physical = BTreeSet::new();
    let (first, second): (Vec<&Core>, Vec<&Core>) =
        fitting.into_iter().partition(|core| physical.insert(core.siblings.first().copied()));
    let second = if wish.no_smt { Vec::new() } else { second };
    first.into_iter().chain(second).filter_map(|core| u16::try_from(core.id).ok()).collect()
}

/// Reads the cores and interfaces of the host whose `/sys` and `/proc` are under `root`. What cannot be read is left out.
fn read(root: &Path) -> (Vec<Core>, Vec<Interface>) {
    let allowed = cores::allowed();
    let system = root.join("sys/devices/system");
    let list = |path: &Path| fs::read_to_string(path).map(|text| parse_list(&text)).unwrap_or_default();
    let nodes: Vec<(u32, Vec<u32>)> = list(&system.join("node/online"))
        .into_iter()
        .map(|node| (node, list(&system.join(format!("node/node{node}/cpulist")))))
        .collect();
    let interfaces = interfaces(root);
    let cores = list(&system.join("cpu/online")).into_iter().map(|id| {
        let siblings = list(&system.join(format!("cpu/cpu{id}/topology/thread_siblings_list")));
        Core {
            id,
            allowed: allowed.contains(&(id as usize)),
            siblings: if siblings.is_empty() { vec![id] } else { siblings },
            node: nodes.iter().find(|(_, cores)| cores.contains(&id)).map_or(0, |(node, _)| *node),
            serves_interrupts: interfaces.iter().any(|interface| interface.cores.contains(&id)),
        }
    });
    (cores.collect(), interfaces)
}

fn interfaces(root: &Path) -> Vec<Interface> {
    let Ok(entries) = fs::read_dir(root.join("sys/class/net")) else { return Vec::new() };
    let mut interfaces = Vec::new();
    for entry in entries.flatten() {
        let device = entry.path().join("device");
        // Interrupts belong to the PCI device, which may be the parent (virtio).
        let folders = [device.join("msi_irqs"), device.join("../msi_irqs")];
        let Some(interrupts) = folders.iter().find_map(|folder| fs::read_dir(folder).ok()) else { continue };
        let mut cores = BTreeSet::new();
        for interrupt in interrupts.flatten() {
            let number = interrupt.file_name().to_string_lossy().into_owned();
            let affinity = root.join(format!("proc/irq/{number}/effective_affinity_list"));
            cores.extend(fs::read_to_string(affinity).map(|text| parse_list(&text)).unwrap_or_default());
        }
        let node = fs::read_to_string(device.join("numa_node")).ok();
        interfaces.push(Interface {
            name: entry.file_name().to_string_lossy().into_owned(),
            // -1: the host has one node only, or does not say.
            node: node.and_then(|text| text.trim().parse().ok()),
            cores: cores.into_iter().collect(),
        });
    }
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    interfaces
}

/// `0-3,8` as the kernel writes it. What is not understood is left out.
fn parse_list(text: &str) -> Vec<u32> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some(first..=last.min(first.saturating_add(65_535)))
    };
    text.trim().split(',').filter_map(part).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_read() {
        assert_eq!(parse_list("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_list("\n"), Vec::<u32>::new());
        assert_eq!(parse_list("x,2"), [2]);
    }

    /// Two nodes of two physical cores each, with two threads: 0 and 4 are one, 1 and 5, 2 and 6, 3 and 7.
    fn host() -> Vec<Core> {
        let core = |id: u32| Core {
            id,
            allowed: id != 7,
            siblings: vec![id % 4, id % 4 + 4],
            node: (id % 4) / 2,
            serves_interrupts: id == 0,
        };
        (0..8).map(core).collect()
    }

    #[test]
    fn physical_cores_come_first() {
        assert_eq!(choose(&host(), &Wish::default()), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(choose(&host(), &Wish { no_smt: true, ..Wish::default() }), [0, 1, 2, 3]);
        assert_eq!(choose(&host(), &Wish { numa: Some(1), ..Wish::default() }), [2, 3, 6]);
        let reserved = Wish { reserve_for_irq: true, no_smt: true, numa: Some(0) };
        assert_eq!(choose(&host(), &reserved), [1, 4]);
        assert!(choose(&host(), &Wish { numa: Some(9), ..Wish::default() }).is_empty());
    }

    #[test]
    fn the_host_is_read() {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("sys/devices/system/cpu/online", "0-1\n"),
            ("sys/devices/system/node/online", "0\n"),
            ("sys/devices/system/node/node0/cpulist", "0-1\n"),
            ("sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0-1\n"),
            ("sys/devices/system/cpu/cpu1/topology/thread_siblings_list", "0-1\n"),
            ("sys/class/net/lo/operstate", "unknown\n"),
            ("sys/class/net/eth0/device/numa_node", "-1\n"),
            ("sys/class/net/eth0/device/msi_irqs/30", "msix\n"),
            ("proc/irq/30/effective_affinity_list", "1\n"),
        ] {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let (cores, interfaces) = read(root.path());
        assert_eq!(interfaces, [Interface { name: "eth0".to_owned(), node: None, cores: vec![1] }]);
        let seen: Vec<_> =
            cores.iter().map(|it| (it.id, &it.siblings[..], it.node, it.serves_interrupts)).collect();
        assert_eq!(seen, [(0, &[0, 1][..], 0, false), (1, &[0, 1], 0, true)]);
        assert!(!read(Path::new("/")).0.is_empty());
    }
}
