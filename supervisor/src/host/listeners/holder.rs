//! Who listens at an address: the kernel's table of sockets, and the processes that have them.

use std::{
    fmt,
    fs::{self, File},
    io::{self, BufReader},
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// A process that listens.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) pid: u32,
    pub(crate) name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}, {}", self.pid, self.name)
    }
}

/// Who listens there.
pub(super) fn find_holder(address: SocketAddr) -> Option<Holder> {
    let pid = holder(&listening(address).ok()?)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder { pid, name: name.trim().to_owned() })
}

/// The process that has any of these sockets. Only root sees those of other users' processes.
pub(super) fn holder(sockets: &[u64]) -> Option<u32> {
    if sockets.is_empty() {
        return None;
    }
    holders(sockets).next()
}

/// The processes that have any of these sockets, as far as they are to be seen: looked for one after the other.
pub(crate) fn holders(sockets: &[u64]) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let sockets = sockets.to_vec();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(move |pid| holds(*pid, &sockets))
}

/// Whether a process has any of these sockets.
pub(crate) fn holds(pid: u32, sockets: &[u64]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let is_one = |target: &Path| {
        let inode = target.to_str().and_then(|it| it.strip_prefix("socket:[")?.strip_suffix(']'));
        inode.and_then(|it| it.parse().ok()).is_some_and(|inode| sockets.contains(&inode))
    };
    descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| is_one(&target)))
}

/// The inodes of the sockets that listen on `address`, or on one that contains it or is contained.
pub(super) fn listening(address: SocketAddr) -> io::Result<Vec<u64>> {
    let table = File::open(if address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" })?;
    listening_in(BufReader::new(table), address)
}

/// The same in the text of `/proc/net/tcp` or `tcp6`. Those that listen come first: connections, which may be many, are not
/// read.
fn listening_in(table: impl io::BufRead, address: SocketAddr) -> io::Result<Vec<u64>> {
    let mut inodes = Vec::new();
    for line in table.lines().skip(1) {
        let line = line?;
        let mut columns = line.split_whitespace().skip(1);
        let (local, state, inode) = (columns.next(), columns.nth(1), columns.nth(5));
        if state != Some("0A") {
            break;
        }
        let overlaps = local.and_then(|local| local.split_once(':')).is_some_and(|(ip, port)| {
            let same_port = u16::from_str_radix(port, 16).is_ok_and(|port| port == address.port());
            let same_ip =
                |ip: IpAddr| ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
            same_port && parse_ip(ip).is_some_and(same_ip)
        });
        inodes.extend(inode.filter(|_| overlaps).and_then(|inode| inode.parse::<u64>().ok()));
    }
    Ok(inodes)
}

/// The kernel prints an address as words of 32 bits, each in the byte order of the host.
fn parse_ip(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for n in 0..4 {
                bytes[n * 4..n * 4 + 4].copy_from_slice(&word(n * 8)?);
            }
            Some(IpAddr::from(bytes))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_of_sockets_is_understood() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1\n\
             1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 23 1\n\
             2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 33 1\n\
             3: 0100007F:1F90 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
             4: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 44 1\n";
        let listening = |address: &str| listening_in(table.as_bytes(), address.parse().unwrap()).unwrap();
        if cfg!(target_endian = "little") {
            assert_eq!(listening("127.0.0.1:8080"), [22, 23]);
            assert_eq!(listening("127.0.0.2:8080"), [23]);
            assert_eq!(listening("0.0.0.0:8080"), [22, 23]);
            assert_eq!(parse_ip("00000000000000000000000001000000"), Some("::1".parse().unwrap()));
        }
        assert_eq!(listening("10.0.0.1:80"), [33]);
        assert!(listening("0.0.0.0:81").is_empty());
        // Behind a connection there is none that listens.
        assert!(listening("127.0.0.1:8081").is_empty());
    }
}
