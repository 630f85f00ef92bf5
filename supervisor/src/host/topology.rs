//! Which cores the host has, and which of them network cards interrupt.

use std::{collections::BTreeSet, fs, path::Path};

use kakehi_ctl::order::{Core, Interface};

use super::cores;

/// Reads the cores and interfaces of the host whose `/sys` and `/proc` are under `root`. What cannot be read is left out.
pub(crate) fn read(root: &Path) -> (Vec<Core>, Vec<Interface>) {
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
