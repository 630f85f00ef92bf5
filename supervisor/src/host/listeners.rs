//! The listening sockets: one per worker and listener, opened here once and kept until kakehi stops.
//!
//! Each worker accepts on a socket of its own (`SO_REUSEPORT`; the kernel spreads connections over them) and the
//! supervisor keeps a copy, so connections that wait in the queue of a worker that died are served by its
//! replacement. `SO_REUSEPORT` also lets any second program of the same user bind the same address and take
//! a share of the connections, silently; so each address is first bound without it, which fails if anybody listens. Whether
//! that is somebody else, or sockets of ours at an address that contains this one, the kernel's table of sockets tells.

mod alone;
mod holder;

use std::{
    collections::HashSet,
    fs::File,
    io,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    time::Duration,
};

use kakehi_ctl::{
    limits,
    order::ListenerSocket,
    state::{Binding, InterfaceName},
};
use nix::errno::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::time::Instant;

use self::holder::{find_holder, holder, listening};
pub(crate) use self::{
    alone::open_alone,
    holder::{Holder, holders, holds},
};
use crate::{host::interface, sys};

/// The sockets of a process that was killed go a little after it (its ring is torn down in the background): so
/// long is a taken address tried again when no process is found that holds it.
const RELEASE_PATIENCE: Duration = Duration::from_millis(250);
/// Pause between two tries.
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

/// The sockets of one worker.
pub(crate) type Sockets = Vec<(ListenerSocket, OwnedFd)>;

/// Whose sockets at an address are no obstacle.
pub(crate) enum Beside {
    /// Nobody's.
    Nobody,
    /// Those of processes of this user that are to end.
    WhoLeaves,
    /// Those of this kakehi.
    Ours(Ours),
}

/// The listening sockets of this kakehi.
#[derive(Default)]
pub(crate) struct Ours {
    /// Their inodes.
    sockets: HashSet<u64>,
    /// The supervisor and its workers. These may have further ones, of listeners that have just gone.
    processes: Vec<u32>,
}

impl Ours {
    /// These sockets, and those that these processes are about to close.
    pub(crate) fn new<'a>(sockets: impl Iterator<Item = &'a OwnedFd>, processes: Vec<u32>) -> Ours {
        let inode =
            |socket: &OwnedFd| File::from(socket.try_clone().ok()?).metadata().ok().map(|it| it.ino());
        Ours { sockets: sockets.filter_map(inode).collect(), processes }
    }
}

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Somebody else listens there.
    #[error(
        "{address} is already taken{}; {}",
        holder.as_ref().map(|it| format!(" (by {it})")).unwrap_or_default(),
        way_out(holder.as_ref())
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
    /// No interface has the name.
    #[error("there is no interface `{interface}` on this host for {address}; change `interface`")]
    NoInterface {
        /// The address.
        address: SocketAddr,
        /// The name.
        interface: InterfaceName,
    },
    /// The kernel, or what confines kakehi, does not let it bind to an interface.
    #[error(
        "binding {address} to the interface `{interface}` is refused: grant CAP_NET_RAW, or leave out `interface`"
    )]
    NotOnInterface {
        /// The address.
        address: SocketAddr,
        /// The interface.
        interface: InterfaceName,
    },
    /// Anything else.
    #[error("cannot listen on {binding}: {error}")]
    Other {
        /// Where.
        binding: Binding,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Opens `workers` sockets for each of `bindings`; one set per worker. The first worker gets those that are `passed` on.
///
/// # Errors
/// See [`Error`]; nothing stays open then.
pub(crate) async fn open(
    bindings: &[Binding],
    workers: usize,
    passed: Vec<(Binding, OwnedFd)>,
    beside: Beside,
) -> Result<Vec<Sockets>, Error> {
    let is_passed = |binding: &Binding| passed.iter().any(|(passed, _)| passed == binding);
    // All addresses are tried before any is opened: one may contain another (0.0.0.0 and 127.0.0.1).
    let ours = match beside {
        Beside::Nobody => Some(Ours::default()),
        Beside::Ours(ours) => Some(ours),
        Beside::WhoLeaves => None,
    };
    if let Some(ours) = ours {
        for binding in bindings.iter().filter(|binding| !is_passed(binding)) {
            check_free(*binding, &ours).await?;
        }
    }
    let mut sets: Vec<Sockets> = Vec::with_capacity(workers);
    for rank in 0..workers as u32 {
        let missing: Vec<Binding> =
            bindings.iter().filter(|binding| rank > 0 || !is_passed(binding)).copied().collect();
        match open_more(&missing, |_| rank) {
            Ok(opened) => sets.push(opened),
            Err(Error::Taken { address, .. }) if passed.iter().any(|(it, _)| it.address == address) => {
                return Err(Error::NotShared { address });
            }
            Err(error) => return Err(error.with_holder().await),
        }
    }
    for (binding, socket) in passed {
        match sets.first_mut().filter(|_| bindings.contains(&binding)) {
            Some(first) => first.push((ListenerSocket::new(binding, 0), socket)),
            None => {
                tracing::warn!("the init system passes {binding} on, which no listener is configured for")
            }
        }
    }
    Ok(sets)
}

/// Opens one socket for each of `bindings`, beside those of ours that are there already; `rank` says which one it is.
///
/// # Errors
/// See [`Error`]; nothing stays open then. [`Error::with_holder`] finds out who has an address.
pub(crate) fn open_more(bindings: &[Binding], rank: impl Fn(&Binding) -> u32) -> Result<Sockets, Error> {
    let open = |binding: &Binding| Ok((ListenerSocket::new(*binding, rank(binding)), open_one(*binding)?));
    bindings.iter().map(open).collect()
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
pub(crate) fn try_bind(binding: Binding) -> Result<(), Error> {
    bind_alone(binding).map_err(|error| match error {
        Error::Taken { address, .. } => Error::Taken { address, holder: find_holder(address) },
        error => error,
    })
}

/// What can be done where an address is taken.
fn way_out(holder: Option<&Holder>) -> &'static str {
    if holder.is_some_and(|it| it.pid == std::process::id()) {
        "that is this kakehi: have its listener or `admin.address` leave it first, by a change before this one"
    } else {
        "stop that program or change `address`"
    }
}

impl Error {
    /// Which address it is about.
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Error::Taken { address, .. }
            | Error::NotShared { address }
            | Error::NotPermitted { address }
            | Error::NotHere { address }
            | Error::NoInterface { address, .. }
            | Error::NotOnInterface { address, .. }
            | Error::Other { binding: Binding { address, .. }, .. } => *address,
        }
    }

    /// The same, with whoever has the address. What the kernel tells of that may be much, and is read on another thread.
    pub(crate) async fn with_holder(self) -> Error {
        match self {
            Error::Taken { address, holder: None } => {
                Error::Taken { address, holder: beside(move || find_holder(address)).await }
            }
            error => error,
        }
    }
}

/// Has something read on another thread.
async fn beside<T: Default + Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> T {
    // It cannot fail but by a panic, which ends the program.
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// Binds a socket that shares with nobody, and closes it: one that was never listened on leaves nothing behind.
fn bind_alone(binding: Binding) -> Result<(), Error> {
    let socket = socket(binding)?;
    net::bind(socket, &binding.address).map_err(|error| explain(binding, error.into()))
}

async fn check_free(binding: Binding, ours: &Ours) -> Result<(), Error> {
    let address = binding.address;
    let give_up = Instant::now() + RELEASE_PATIENCE;
    loop {
        let error = match bind_alone(binding) {
            Ok(()) => return Ok(()),
            Err(error @ Error::Taken { .. }) => error,
            Err(error) => return Err(error),
        };
        let there = beside(move || listening(address).unwrap_or_default()).await;
        let others: Vec<u64> = there.iter().filter(|it| !ours.sockets.contains(it)).copied().collect();
        if others.is_empty() && !there.is_empty() {
            return Ok(());
        }
        let is_late = Instant::now() >= give_up;
        match beside(move || holder(&others)).await {
            // A worker is about to close it.
            Some(pid) if ours.processes.contains(&pid) && is_late => return Ok(()),
            Some(pid) if ours.processes.contains(&pid) => {}
            None if !is_late => {}
            _ => return Err(error.with_holder().await),
        }
        tokio::time::sleep(RELEASE_PAUSE).await;
    }
}

/// Has the kernel drop every further SYN to a socket, so that the client's next one, a second later, finds another socket
/// that listens there: one that is closed resets the handshakes that it has begun. What comes behind a SYN goes on.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub(crate) fn turn_away(socket: &OwnedFd) -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    sys::attach_filter(
        socket,
        &[
            // The flags of the TCP header, of which SYN without ACK.
            instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 13),
            instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0x12),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0x02),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ],
    )
}

/// Ends what [`turn_away`] has begun, if it has.
///
/// # Errors
/// Those of `setsockopt(2)`.
pub(crate) fn let_in(socket: &OwnedFd) -> io::Result<()> {
    sys::detach_filter(socket)
}

fn open_one(binding: Binding) -> Result<OwnedFd, Error> {
    let socket = socket(binding)?;
    let listen = || {
        sockopt::set_socket_reuseport(&socket, true)?;
        // Accepted connections inherit it, which saves a system call each.
        sockopt::set_tcp_nodelay(&socket, true)?;
        net::bind(&socket, &binding.address)?;
        net::listen(&socket, limits::ACCEPT_QUEUE.into())
    };
    match listen() {
        Ok(()) => Ok(socket),
        Err(error) => Err(explain(binding, error.into())),
    }
}

/// A socket that is to be bound so, and is on its interface already.
fn socket(binding: Binding) -> Result<OwnedFd, Error> {
    let Binding { address, interface } = binding;
    let socket = unbound(address).map_err(|error| explain(binding, error))?;
    let Some(interface) = interface else { return Ok(socket) };
    match interface::bind(&socket, interface) {
        Ok(()) => Ok(socket),
        Err(Errno::ENODEV) => Err(Error::NoInterface { address, interface }),
        Err(Errno::EPERM | Errno::EACCES) => Err(Error::NotOnInterface { address, interface }),
        Err(error) => Err(Error::Other { binding, error: error.into() }),
    }
}

fn unbound(address: SocketAddr) -> io::Result<OwnedFd> {
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

fn explain(binding: Binding, error: io::Error) -> Error {
    let address = binding.address;
    match error.kind() {
        io::ErrorKind::AddrInUse => Error::Taken { address, holder: None },
        io::ErrorKind::PermissionDenied => Error::NotPermitted { address },
        io::ErrorKind::AddrNotAvailable => Error::NotHere { address },
        _ => Error::Other { binding, error },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, TcpListener, TcpStream};

    use super::*;

    /// A port that nobody listens on.
    fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn open_at(address: SocketAddr) -> OwnedFd {
        open_one(address.into()).unwrap()
    }

    #[tokio::test]
    async fn each_worker_has_a_socket_of_its_own_for_each_address() {
        let addresses = [free_address(), free_address()];
        let sets = open(&addresses.map(Binding::from), 3, Vec::new(), Beside::Nobody).await.unwrap();
        assert_eq!(sets.len(), 3);
        for set in &sets {
            assert_eq!(set.iter().map(|(which, _)| which.address).collect::<Vec<_>>(), addresses);
        }
        TcpStream::connect(addresses[1]).unwrap();
    }

    #[tokio::test]
    async fn an_address_that_somebody_else_listens_on_is_refused_and_the_holder_named() {
        let other = open_at(free_address());
        let address = SocketAddr::try_from(net::getsockname(&other).unwrap()).unwrap();
        let message = open(&[address.into()], 1, Vec::new(), Beside::Nobody).await.unwrap_err().to_string();
        let me = std::process::id();
        assert!(message.starts_with(&format!("{address} is already taken (by pid {me}, ")), "{message}");
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_refused() {
        let error = open(&[SocketAddr::from(([192, 0, 2, 1], 80)).into()], 1, Vec::new(), Beside::Nobody)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NotHere { .. } | Error::NotPermitted { .. }), "{error}");
    }

    #[tokio::test]
    async fn an_address_inside_another_is_no_conflict_within_one_configuration() {
        let inner = free_address();
        let outer = SocketAddr::from(([0, 0, 0, 0], inner.port()));
        open(&[outer.into(), inner.into()], 2, Vec::new(), Beside::Nobody).await.unwrap();
    }

    #[tokio::test]
    async fn our_own_sockets_at_an_address_that_contains_it_are_no_obstacle() {
        for (narrow, wide) in [("127.0.0.1:0", [0; 4].into()), ("[::1]:0", IpAddr::from([0_u16; 8]))] {
            let Ok(free) = TcpListener::bind(narrow) else { continue };
            let narrow = free.local_addr().unwrap();
            drop(free);
            let wide = SocketAddr::new(wide, narrow.port());
            for (first, second) in [(narrow, wide), (wide, narrow)] {
                let there = open_at(first);
                let taken = open(&[second.into()], 1, Vec::new(), Beside::Nobody).await;
                assert!(matches!(taken, Err(Error::Taken { .. })), "{first} then {second}");
                let ours = Beside::Ours(Ours::new([&there].into_iter(), Vec::new()));
                open(&[second.into()], 2, Vec::new(), ours).await.unwrap();
                // Another's beside it is one all the same.
                let _another = open_at(first);
                let ours = Beside::Ours(Ours::new([&there].into_iter(), Vec::new()));
                assert!(open(&[second.into()], 1, Vec::new(), ours).await.is_err());
            }
        }
    }

    #[tokio::test]
    async fn what_one_of_our_processes_is_about_to_close_is_waited_for_and_no_obstacle() {
        let left = open_at(free_address());
        let address = SocketAddr::try_from(net::getsockname(&left).unwrap()).unwrap();
        let ours = Ours::new([].into_iter(), vec![std::process::id()]);
        open(&[address.into()], 1, Vec::new(), Beside::Ours(ours)).await.unwrap();
    }

    #[tokio::test]
    async fn an_interface_that_is_not_there_is_named_and_one_that_is_takes_no_address_from_others() {
        let address = free_address();
        let on = |name: &str| Binding { address, interface: Some(name.parse().unwrap()) };
        let error = open(&[on("no-such-device")], 1, Vec::new(), Beside::Nobody).await.unwrap_err();
        assert!(matches!(error, Error::NoInterface { .. }), "{error}");
        assert!(matches!(try_bind(on("no-such-device")), Err(Error::NoInterface { .. })));
        let sets = open(&[on("lo")], 2, Vec::new(), Beside::Nobody).await.unwrap();
        let (which, socket) = &sets[1][0];
        assert_eq!((which.binding(), interface::of(socket).unwrap()), (on("lo"), on("lo").interface));
        assert_eq!(interface::of(&open_at(free_address())).unwrap(), None);
        TcpStream::connect(address).unwrap();
        // The same address on no interface is somebody else's.
        assert!(matches!(try_bind(on("lo")), Err(Error::Taken { .. })));
        assert!(matches!(try_bind(address.into()), Err(Error::Taken { .. })));
    }

    #[test]
    fn one_that_turned_clients_away_hears_them_again() {
        let socket = open_at(free_address());
        let address = SocketAddr::try_from(net::getsockname(&socket).unwrap()).unwrap();
        // Where there is no filter, too.
        let_in(&socket).unwrap();
        if let Err(error) = turn_away(&socket) {
            return eprintln!("SKIPPED: this kernel lets only root attach a filter: {error}");
        }
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(300));
        assert!(connect().is_err());
        let_in(&socket).unwrap();
        assert!(connect().is_ok());
    }

    #[test]
    fn a_client_that_is_turned_away_comes_to_the_other_socket() {
        let inner = open_at(free_address());
        let address = SocketAddr::try_from(net::getsockname(&inner).unwrap()).unwrap();
        let outer = TcpListener::from(open_at((IpAddr::from([0; 4]), address.port()).into()));
        outer.set_nonblocking(false).unwrap();
        if let Err(error) = turn_away(&inner) {
            // Some kernels let only root attach a filter; a reload goes on with a warning then.
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(!rustix::process::geteuid().is_root(), "{error}");
            let declared = std::env::var("KAKEHI_TESTS_WITHOUT").is_ok_and(|it| it.contains("root"));
            assert!(declared || std::env::var_os("CI").is_none(), "CI skips nothing: {error}");
            return eprintln!("SKIPPED: this kernel lets only root attach a filter");
        }
        let client = std::thread::spawn(move || TcpStream::connect(address));
        // Its first SYN is dropped; the next comes a second later.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let sent = std::time::Instant::now();
                while sent.elapsed() < Duration::from_millis(100) {
                    std::thread::yield_now();
                }
                drop(inner);
            });
        });
        assert!(outer.accept().unwrap().0.peer_addr().is_ok());
        client.join().unwrap().unwrap();
    }
}
