//! The listening sockets: one per worker and address, opened here once and kept until kakehi stops.
//!
//! Each worker accepts on a socket of its own (`SO_REUSEPORT`; the kernel spreads connections over them) and the
//! supervisor keeps a copy, so connections that wait in the queue of a worker that died are served by its
//! replacement. `SO_REUSEPORT` also lets any second program of the same user bind the same address and take
//! a share of the connections, silently; so each address is first bound without it, which fails if anybody listens.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use kakehi_ctl::{limits, order::ListenerSocket};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::time::Instant;

/// The sockets of a process that was killed go a little after it (its ring is torn down in the background): so
/// long is a taken address tried again when no process is found that holds it.
const RELEASE_PATIENCE: Duration = Duration::from_millis(250);
/// Pause between two tries.
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

/// The sockets of one worker.
pub(crate) type Sockets = Vec<(ListenerSocket, OwnedFd)>;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Somebody else listens there.
    #[error(
        "{address} is already taken{}; stop that program or change `address`",
        holder.as_ref().map(|it| format!(" (by {it})")).unwrap_or_default()
    )]
    Taken {
        /// The address.
        address: SocketAddr,
        /// By whom, if that is to be found.
        holder: Option<Holder>,
    },
    /// The init system's socket is for one process alone.
    #[error(
        "the socket for {address} that the init system passes on cannot be shared by several workers: put \
         `ReusePort=yes` into the socket unit"
    )]
    NotShared {
        /// The address.
        address: SocketAddr,
    },
    /// A port below `net.ipv4.ip_unprivileged_port_start`.
    #[error(
        "listening on {address} needs CAP_NET_BIND_SERVICE: start as root, grant it (`setcap \
         cap_net_bind_service=+ep`, systemd: `AmbientCapabilities=CAP_NET_BIND_SERVICE`), or change `address`"
    )]
    NotPermitted {
        /// The address.
        address: SocketAddr,
    },
    /// No interface has the address.
    #[error("{address} is not an address of this host; change `address`")]
    NotHere {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {error}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Opens `workers` sockets for each address; one set per worker. The first worker gets those that are `passed` on. With
/// `beside_others`, processes of this user that are to end may have the addresses as well.
///
/// # Errors
/// See [`Error`]; nothing stays open then.
pub(crate) async fn open(
    addresses: &[SocketAddr],
    workers: usize,
    passed: Vec<(SocketAddr, OwnedFd)>,
    beside_others: bool,
) -> Result<Vec<Sockets>, Error> {
    let is_passed = |address: &SocketAddr| passed.iter().any(|(passed, _)| passed == address);
    // All addresses are tried before any is opened: one may contain another (0.0.0.0 and 127.0.0.1).
    for address in addresses.iter().filter(|address| !beside_others && !is_passed(address)) {
        check_free(*address).await?;
    }
    let mut sets: Vec<Sockets> = Vec::with_capacity(workers);
    for rank in 0..workers as u32 {
        let missing: Vec<SocketAddr> =
            addresses.iter().filter(|address| rank > 0 || !is_passed(address)).copied().collect();
        let opened = open_more(&missing, |_| rank);
        sets.push(opened.map_err(|error| match error {
            Error::Taken { address, .. } if is_passed(&address) => Error::NotShared { address },
            error => error,
        })?);
    }
    for (address, socket) in passed {
        match sets.first_mut().filter(|_| addresses.contains(&address)) {
            Some(first) => first.push((ListenerSocket { address, rank: 0 }, socket)),
            None => {
                tracing::warn!("the init system passes {address} on, which no listener is configured for")
            }
        }
    }
    Ok(sets)
}

/// Opens one socket for each address, beside those of ours that are there already; `rank` says which one it is.
///
/// # Errors
/// See [`Error`]; nothing stays open then.
pub(crate) fn open_more(
    addresses: &[SocketAddr],
    rank: impl Fn(SocketAddr) -> u32,
) -> Result<Sockets, Error> {
    addresses
        .iter()
        .map(|address| Ok((ListenerSocket { address: *address, rank: rank(*address) }, open_one(*address)?)))
        .collect()
}

/// Has each socket listen that does not any more. Who listens already, goes on, with all that is in its queue.
pub(crate) fn listen_again(sockets: &Sockets) {
    for (which, socket) in sockets {
        if let Err(error) = net::listen(socket, limits::ACCEPT_QUEUE.into()) {
            tracing::error!("the socket of {} does not listen: {error}", which.address);
        }
    }
}

/// Whether the address could be listened on now, by a program that shares it with nobody.
///
/// # Errors
/// See [`Error`].
pub(crate) fn try_bind(address: SocketAddr) -> Result<(), Error> {
    // Closed at once: an address that was bound but never listened on leaves nothing behind.
    let bound = socket(address).and_then(|socket| Ok(net::bind(socket, &address)?));
    bound.map_err(|error| explain(address, error))
}

async fn check_free(address: SocketAddr) -> Result<(), Error> {
    let give_up = Instant::now() + RELEASE_PATIENCE;
    loop {
        // Closed at once: an address that was bound but never listened on leaves nothing behind.
        let error = match socket(address).and_then(|socket| Ok(net::bind(socket, &address)?)) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        if !taken || find_holder(address).is_some() || Instant::now() >= give_up {
            return Err(explain(address, error));
        }
        tokio::time::sleep(RELEASE_PAUSE).await;
    }
}

fn open_one(address: SocketAddr) -> Result<OwnedFd, Error> {
    let open = || {
        let socket = socket(address)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        // Accepted connections inherit it, which saves a system call each.
        sockopt::set_tcp_nodelay(&socket, true)?;
        net::bind(&socket, &address)?;
        net::listen(&socket, limits::ACCEPT_QUEUE.into())?;
        Ok(socket)
    };
    open().map_err(|error| explain(address, error))
}

fn socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // `[::]` means IPv6 only, whatever net.ipv6.bindv6only says; IPv4 is a listener of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

fn explain(address: SocketAddr, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::Taken { address, holder: find_holder(address) },
        io::ErrorKind::PermissionDenied => Error::NotPermitted { address },
        io::ErrorKind::AddrNotAvailable => Error::NotHere { address },
        _ => Error::Other { address, error },
    }
}

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

/// Who listens there. Only root sees the sockets of other users' processes.
fn find_holder(address: SocketAddr) -> Option<Holder> {
    let table =
        fs::read_to_string(if address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" }).ok()?;
    let inode = listening_inode(&table, address)?;
    let wanted = format!("socket:[{inode}]");
    let holds = |pid: &u32| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        descriptors.flatten().any(|entry| {
            fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        })
    };
    let pid = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(holds)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Holder { pid, name: name.trim().to_owned() })
}

/// The inode of a socket that listens on `address`, or on one that contains it or is contained, in the text
/// of `/proc/net/tcp` or `tcp6`.
fn listening_inode(table: &str, address: SocketAddr) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (columns.get(1)?, columns.get(3)?, columns.get(9)?);
        let (ip, port) = local.split_once(':')?;
        let ip = parse_ip(ip)?;
        let same_ip = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
        let listens = *state == "0A" && u16::from_str_radix(port, 16).ok()? == address.port() && same_ip;
        if listens { inode.parse().ok() } else { None }
    })
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
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A port that nobody listens on.
    fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn each_worker_has_a_socket_of_its_own_for_each_address() {
        let addresses = [free_address(), free_address()];
        let sets = open(&addresses, 3, Vec::new(), false).await.unwrap();
        assert_eq!(sets.len(), 3);
        for set in &sets {
            assert_eq!(set.iter().map(|(which, _)| which.address).collect::<Vec<_>>(), addresses);
        }
        TcpStream::connect(addresses[1]).unwrap();
    }

    #[tokio::test]
    async fn an_address_that_somebody_else_listens_on_is_refused_and_the_holder_named() {
        let other = open_one(free_address()).unwrap();
        let address = SocketAddr::try_from(net::getsockname(&other).unwrap()).unwrap();
        let message = open(&[address], 1, Vec::new(), false).await.unwrap_err().to_string();
        let me = std::process::id();
        assert!(message.starts_with(&format!("{address} is already taken (by pid {me}, ")), "{message}");
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_refused() {
        let error = open(&["192.0.2.1:80".parse().unwrap()], 1, Vec::new(), false).await.unwrap_err();
        assert!(matches!(error, Error::NotHere { .. } | Error::NotPermitted { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_address_inside_another_is_no_conflict_within_one_configuration() {
        let inner = free_address();
        let outer = SocketAddr::from(([0, 0, 0, 0], inner.port()));
        open(&[outer, inner], 2, Vec::new(), false).await.unwrap();
    }

    #[test]
    fn the_kernels_table_of_sockets_is_understood() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
             1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1\n\
             2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 33 1\n";
        if cfg!(target_endian = "little") {
            assert_eq!(listening_inode(table, "127.0.0.1:8080".parse().unwrap()), Some(22));
            assert_eq!(listening_inode(table, "127.0.0.2:8080".parse().unwrap()), None);
            assert_eq!(parse_ip("00000000000000000000000001000000"), Some("::1".parse().unwrap()));
        }
        assert_eq!(listening_inode(table, "10.0.0.1:80".parse().unwrap()), Some(33));
        assert_eq!(listening_inode(table, "0.0.0.0:81".parse().unwrap()), None);
    }
}
