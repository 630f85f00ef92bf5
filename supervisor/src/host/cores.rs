//! Which cores this process may really use: its affinity mask, and how many of them its control group pays for.
//!
//! The mask is already narrowed by the kernel to the `cpuset` of the control group. A quota of CPU time
//! (`docker run --cpus`, Kubernetes limits, `CPUQuota=`) does not show in the mask: a worker per core of the mask
//! would be throttled, so the quota, rounded up, limits the number of workers.

use std::{fs, io, num::NonZeroUsize, path::Path};

use kakehi_ctl::state::Settings;
use kakehi_engine::passwords::THREAD_NAME;
use rustix::{
    io::Errno,
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Cores of the affinity mask, in ascending order; never empty.
pub(crate) fn allowed() -> Vec<usize> {
    let Ok(mask) = sched_getaffinity(None) else { return vec![0] };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| mask.is_set(*core)).collect();
    if cores.is_empty() { vec![0] } else { cores }
}

/// The core of worker `id`, where workers are pinned.
pub(crate) fn of_worker(settings: &Settings, id: u32) -> Option<usize> {
    if let Some(core) = settings.worker_cores.get(id as usize) {
        return Some(usize::from(*core));
    }
    let allowed = allowed();
    settings.pin_workers.then(|| allowed[id as usize % allowed.len()])
}

/// The core that a process is tied to, if it is to one alone.
pub(crate) fn only_core(pid: u32) -> Option<usize> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let mask = sched_getaffinity(Some(pid)).ok()?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| mask.is_set(*core));
    let only = cores.next()?;
    // On a host with a single core every process is.
    (cores.next().is_none() && allowed().len() > 1).then_some(only)
}

/// Ties a worker, with all its threads but the one that computes hashes of passwords where nothing else runs, to one core.
///
/// # Errors
/// When the kernel refuses it for the first thread. Threads of the kernel that serve it (io_uring) may refuse.
pub(crate) fn pin(pid: u32, core: usize) -> io::Result<()> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let (Some(number), true) = (number, core < CpuSet::MAX_CPU) else { return Err(Errno::INVAL.into()) };
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(Some(number), &cores)?;
    let is_tied = |thread: &fs::DirEntry| {
        fs::read_to_string(thread.path().join("comm")).map_or(true, |name| name.trim_end() != THREAD_NAME)
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.flatten().filter(is_tied);
    for thread in threads.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)) {
        let _ = sched_setaffinity(Some(thread), &cores);
    }
    Ok(())
}

/// Workers when the file does not say: one per allowed core, but no more than the quota of the control group.
pub(crate) fn default_worker_count(allowed: &[usize]) -> usize {
    let quota = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|groups| quota(&groups, Path::new("/sys/fs/cgroup")))
        .map_or(usize::MAX, NonZeroUsize::get);
    allowed.len().min(quota).max(1)
}

/// The smallest quota on the way from the process's group to the root, in whole cores, rounded up.
///
/// `groups` is the text of `/proc/self/cgroup`, `root` where the hierarchies are mounted.
fn quota(groups: &str, root: &Path) -> Option<NonZeroUsize> {
    groups.lines().filter_map(|line| quota_of_hierarchy(line, root)).min()
}

/// `line` is `0::/path` (version 2) or `4:cpu,cpuacct:/path` (version 1).
fn quota_of_hierarchy(line: &str, root: &Path) -> Option<NonZeroUsize> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
    if controllers.is_empty() {
        return smallest_on_the_way(root, path, |folder| {
            whole_cores_v2(&fs::read_to_string(folder.join("cpu.max")).ok()?)
        });
    }
    if !controllers.split(',').any(|controller| controller == "cpu") {
        return None;
    }
    smallest_on_the_way(&root.join(controllers), path, |folder| {
        let read = |name| fs::read_to_string(folder.join(name)).ok();
        whole_cores(read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())
    })
}

/// In a container the path may name folders that only the host sees; those are passed over.
fn smallest_on_the_way(
    root: &Path,
    path: &str,
    quota_at: impl Fn(&Path) -> Option<NonZeroUsize>,
) -> Option<NonZeroUsize> {
    let leaf = root.join(path);
    leaf.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(quota_at).min()
}

/// The text of `cpu.max`: `max 100000` or `150000 100000`.
fn whole_cores_v2(text: &str) -> Option<NonZeroUsize> {
    let (quota, period) = text.trim().split_once(' ')?;
    whole_cores(quota, period)
}

/// Both in microseconds; `max` and `-1` mean no quota.
fn whole_cores(quota: &str, period: &str) -> Option<NonZeroUsize> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    if period == 0 {
        return None;
    }
    NonZeroUsize::new(usize::try_from(quota.div_ceil(period)).ok()?.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_rounded_up_to_whole_cores() {
        let cores = |text| whole_cores_v2(text).map(NonZeroUsize::get);
        assert_eq!(cores("max 100000\n"), None);
        assert_eq!(cores("150000 100000\n"), Some(2));
        assert_eq!(cores("200000 100000"), Some(2));
        assert_eq!(cores("1000 100000"), Some(1));
        assert_eq!(cores("0 100000"), Some(1));
        assert_eq!(cores("100000 0"), None);
        assert_eq!(cores("100000"), None);
        assert_eq!(cores(""), None);
        assert_eq!(whole_cores("-1", "100000"), None);
    }

    fn write(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn the_narrowest_group_on_the_way_to_the_root_decides() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "a/cpu.max", "300000 100000\n");
        write(root.path(), "a/b/cpu.max", "max 100000\n");
        assert_eq!(quota("0::/a/b\n", root.path()).map(NonZeroUsize::get), Some(3));
        write(root.path(), "a/b/cpu.max", "50000 100000\n");
        assert_eq!(quota("0::/a/b\n", root.path()).map(NonZeroUsize::get), Some(1));
        assert_eq!(quota("0::/\n", root.path()), None);
    }

    #[test]
    fn version_one_groups_count_too_and_other_controllers_do_not() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "cpu,cpuacct/x/cpu.cfs_quota_us", "250000\n");
        write(root.path(), "cpu,cpuacct/x/cpu.cfs_period_us", "100000\n");
        let groups = "5:memory:/x\n4:cpu,cpuacct:/x\n0::/unified\n";
        assert_eq!(quota(groups, root.path()).map(NonZeroUsize::get), Some(3));
        assert_eq!(quota("5:memory:/x\n", root.path()), None);
        assert_eq!(quota("nonsense", root.path()), None);
    }

    #[test]
    fn this_process_may_use_at_least_one_core() {
        let cores = allowed();
        assert!(!cores.is_empty() && cores.is_sorted());
        assert!((1..=cores.len()).contains(&default_worker_count(&cores)));
    }
}
