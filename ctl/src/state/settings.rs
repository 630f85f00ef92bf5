//! What applies to the whole process.

use std::{net::SocketAddr, path::PathBuf};

use super::{Admin, DnsOnEmpty, FileMode};
use crate::{
    keys::{Effect, Key, keyed, words},
    limits,
};

words! {
    /// Which worker gets a new connection.
    pub enum Steering {
        /// By a hash of its addresses.
        Hash = "hash",
        /// The one on the core that received it.
        Cpu = "cpu",
    }
}

keyed! {
    /// What applies to the whole process.
    pub struct Settings;
    own {
        /// Unix socket on which `kakehictl` is answered. The next supervisor finds what this one leaves by its path.
        "command_socket" => command_socket: PathBuf = PathBuf::from("./kakehi.sock"), Socket, Yes, Restart;
        /// File that holds the supervisor's process id while it runs.
        "pid_file_path" => pid_file_path: Option<PathBuf> = None, Path, Yes, Live;
        /// Number of workers. Without it: one per core that kakehi may use.
        "worker_count" => worker_count: Option<u16> = None, Integer(1, 1024), Yes, Placement;
        /// Cores of the workers, in their order, instead of those that `handle_process_affinity` picks; workers
        /// beyond the list are treated as without it. `kakehictl pin` shows and changes it.
        "worker_cores" => worker_cores: Vec<u16> = Vec::new(), Integers, Own, Placement;
        /// Which worker gets a new connection: by a hash of its addresses, or (`cpu`) the worker on the core that
        /// received it, which pays when each core has a receive queue of the network card.
        "steering" => steering: Steering = Steering::Hash, Choice(Steering::WORDS), Own, Live;
        /// `auto`: every `rebalance_interval`, move idle connections from the busiest worker to the idlest when they
        /// differ by more than `rebalance_threshold`.
        "rebalance" => rebalance_auto: bool = false, Choice(&["manual", "auto"]), Own, Live;
        /// With `rebalance = "auto"`: how often it is looked whether workers are too unequally busy, in seconds.
        "rebalance_interval" => rebalance_interval_ms: u64 = limits::REBALANCE_INTERVAL_MS, Seconds, Own, Live;
        /// With `rebalance = "auto"`: by how much of the average the busiest and the idlest worker may differ in CPU
        /// time, in percent.
        "rebalance_threshold" => rebalance_threshold: u16 = limits::REBALANCE_THRESHOLD, Integer(1, 1000), Own, Live;
        /// User that the workers become when they have their sockets and their ring (only root can do that). The
        /// supervisor stays what it is.
        "user" => user: Option<String> = None, Text, Own, Workers;
        /// Group that the workers become; by default that of `user`.
        "group" => group: Option<String> = None, Text, Own, Workers;
        /// Replace a worker that dies.
        "worker_automatic_restart" => worker_automatic_restart: bool = true, Bool, Yes, Live;
        /// Pin each worker to a core of its own.
        "handle_process_affinity" => pin_workers: bool = true, Bool, Yes, Workers;
        /// How long the supervisor waits for a worker's answer to an order, in seconds. A worker that does not answer
        /// is told to finish what it has, and replaced; a change goes on with the others.
        "worker_timeout" => worker_timeout_ms: u64 = limits::WORKER_TIMEOUT_MS, Seconds, Yes, Live;
        /// Connections that one worker serves at a time; more wait in the kernel's queue.
        "max_connections" => max_connections: u32 = limits::MAX_CONNECTIONS, Integer(1, 1_000_000), Yes, Live;
        /// Beyond `max_connections` close the hundredth of the connections of the worker that is idle longest, to make room for new
        /// ones. Without it those wait.
        "evict_on_queue_full" => evict_on_queue_full: bool = false, Bool, Yes, Live;
        /// When what a worker has to do waits longer than this for 200 ms, in seconds, new connections stay in the kernel and the
        /// first requests of connections are answered with 503, until it waits no more; 0 = never.
        "overload_delay" => overload_delay_ms: u64 = limits::OVERLOAD_DELAY_MS, SecondsOrZero, Own, Live;
        /// Connections that one client may have at a cluster, on all workers together; beyond: 429. 0 = no limit.
        "max_connections_per_ip" => per_ip: u32 = 0, Integer(0, u32::MAX as u64), Yes, Live;
        /// The same of the clients of a network; both have to admit.
        "max_connections_per_subnet" => per_subnet: u32 = 0, Integer(0, u32::MAX as u64), Yes, Live;
        /// How many bits of an IPv4 address make its network for `max_connections_per_subnet`.
        "subnet_ipv4_prefix" => subnet_ipv4_prefix: u8 = 32, Integer(0, 32), Yes, Live;
        /// How many bits of an IPv6 address do.
        "subnet_ipv6_prefix" => subnet_ipv6_prefix: u8 = 128, Integer(0, 128), Yes, Live;
        /// `Retry-After` of answers 429 beyond these limits, in seconds; 0 = without.
        "retry_after" => retry_after: u32 = limits::RETRY_AFTER, Integer(0, u32::MAX as u64), Yes, Live;
        /// Longest credentials of basic authentication, decoded (bytes); longer ones are wrong.
        "basic_auth_max_credential_bytes" => max_credential_bytes: u32 = 4_096, Integer(0, u32::MAX as u64), Yes, Live;
        /// Clients, and other keys of limits, of which is known at a time how much came from them, on all workers together; each
        /// takes 64 bytes. Beyond, those are forgotten first that came last the longest ago.
        "table_size" => table_size: u32 = limits::TABLE_SIZE, Integer(1_024, 1 << 24), Own, Restart;
        /// TLS handshakes with clients under way at a time, in all workers together, each of which has an even share;
        /// a client address has a quarter of it at most. More wait in line, under `handshake_timeout`. 0 = any
        /// number.
        "max_handshakes" => max_handshakes: u32 = limits::MAX_HANDSHAKES, Integer(0, 1_000_000), Own, Live;
        /// What is logged: `error`, `warn`, `info`, `debug`, or directives per module (`warn,kakehi_engine=debug`).
        "log_level" => log_level: String = "info".to_owned(), Text, Yes, Live;
        /// At a stop, how long what is in flight may take to finish, in seconds.
        "graceful_timeout" => graceful_timeout_ms: u64 = limits::GRACEFUL_TIMEOUT_MS, Seconds, Own, Live;
        /// How long an idle connection waits, at a stop or when its listener was removed, for a request that is on
        /// its way, in seconds; 0 = not at all.
        "stop_idle_grace" => stop_idle_grace_ms: u64 = limits::STOP_IDLE_GRACE_MS, SecondsOrZero, Own, Live;
        /// How long a tunnel (WebSocket) goes on whose listener or backend was removed, and what of a worker's old
        /// process cannot move at an upgrade, in seconds.
        "drain_timeout" => drain_timeout_ms: u64 = limits::DRAIN_TIMEOUT_MS, Seconds, Own, Live;
        /// How long a worker goes on serving whose supervisor has died, if no `kakehi start` takes it over, in
        /// seconds; then it stops gracefully. Without it: for ever.
        "orphan_timeout" => orphan_timeout_ms: Option<u64> = None, Seconds, Own, Live;
        /// How long a worker may leave the supervisor's pings unanswered before it is killed and replaced, in
        /// seconds; 0 = for ever.
        "worker_liveness" => worker_liveness_ms: u64 = limits::WORKER_LIVENESS_MS, SecondsOrZero, Own, Live;
        /// Use at most this rung of the ladder of kernel features (0 = what Linux 5.10 has, 4 = all). Without it: the
        /// best that the kernel has.
        "io_uring_level" => io_uring_level: Option<u8> = None, Integer(0, 4), Own, Workers;
        /// Receive buffers of one worker, of 17 KiB each; a power of two.
        "buffer_count" => buffer_count: u16 = limits::BUFFER_COUNT, PowerOfTwo(16, 32_768), Own, Workers;
        /// Memory that large bodies may take in one worker besides the arena (bytes); beyond it they move in arena
        /// buffers.
        "body_memory" => body_memory: u64 = limits::BODY_MEMORY, Integer(0, 1 << 40), Own, Live;
        /// Room of a pipe that large bodies, tunnels and connections that are passed on are spliced through (bytes). The kernel makes a power of
        /// two of pages of it, and may give an ordinary user less.
        "splice_pipe_capacity_bytes" => pipe_capacity: u32 = limits::PIPE_CAPACITY, Integer(4_096, limits::PIPE_CAPACITY as u64), Yes, Live;
        /// Idle connections to one backend that one worker keeps for later requests; 0 = none.
        "upstream_max_idle" => upstream_max_idle: u32 = limits::UPSTREAM_MAX_IDLE, Integer(0, 1_000_000), Own, Live;
        /// How long such a connection is kept, in seconds. Choose less than the backend's own idle timeout.
        "upstream_idle_timeout" => upstream_idle_timeout_ms: u64 = limits::UPSTREAM_IDLE_TIMEOUT_MS, Seconds, Own, Live;
        /// Look at the files of certificates, and take them anew when they have changed.
        "certificate_watch" => certificate_watch: bool = true, Bool, Own, Live;
        /// With `certificate_watch`: how often the files are looked at, in seconds.
        "certificate_watch_interval" => certificate_watch_interval_ms: u64 = limits::CERTIFICATE_WATCH_INTERVAL_MS, Seconds, Own, Live;
        /// How long a key that encrypts session tickets is used before there is a new one, in seconds. The one before
        /// still opens tickets.
        "ticket_key_rotation" => ticket_key_rotation_ms: u64 = limits::TICKET_KEY_ROTATION_MS, Seconds, Own, Live;
        /// Numbers of users that may use the command socket, besides root and the user that kakehi runs as. Without
        /// it only these may open it.
        "command_allowed_uids" => command_allowed_uids: Vec<u32> = Vec::new(), Integers, Yes, Live;
        /// Permissions of the file of the command socket: who may try to connect. Whoever does must still be root, the user that kakehi runs
        /// as, or one of `command_allowed_uids`. Without it: `0600`, and with `command_allowed_uids` `0666`.
        "command_socket_mode" => command_socket_mode: Option<FileMode> = None, Mode, Yes, Live;
        /// State file that is loaded at the start, if it is there. Where this file has changed since, only what is by hand counts of it.
        "saved_state" => saved_state: Option<PathBuf> = None, Path, Yes, Live;
        /// Save the state to `saved_state` after each change.
        "automatic_state_save" => automatic_state_save: bool = false, Bool, Yes, Live;
        /// Servers of the DNS that are asked for the names of backends, `ip` or `ip:port`. Without it: as the system does, with `/etc/hosts`
        /// and the servers and search domains of `/etc/resolv.conf`.
        "resolvers" => resolvers: Vec<SocketAddr> = Vec::new(), Resolvers, Own, Live;
        /// An answer of the DNS is good for so long at least, whatever it says, in seconds.
        "dns_min_ttl" => dns_min_ttl_ms: u64 = limits::DNS_MIN_TTL_MS, Seconds, Own, Live;
        /// And for so long at most, in seconds.
        "dns_max_ttl" => dns_max_ttl_ms: u64 = limits::DNS_MAX_TTL_MS, Seconds, Own, Live;
        /// When the DNS says that a name of a backend has no address any more: `keep` the last ones, or `drop` them.
        "dns_on_empty" => dns_on_empty: DnsOnEmpty = DnsOnEmpty::Keep, Choice(DnsOnEmpty::WORDS), Own, Live;
    }
    beside {
        /// Where kakehi tells over HTTP how it is: the table `admin`.
        admin: Admin = Admin::default();
    }
}

impl Settings {
    /// The keys of the process, each with its name: `TABLE.KEY` where it stands in a table.
    pub fn keys() -> impl Iterator<Item = (String, &'static Key)> {
        let of_tables = Admin::OWN.iter().map(|key| (format!("admin.{}", key.name), key));
        Settings::OWN.iter().map(|key| (key.name.to_owned(), key)).chain(of_tables)
    }

    /// The permissions of the file of the command socket (bits of `chmod(2)`).
    pub fn command_socket_bits(&self) -> u32 {
        let usual = if self.command_allowed_uids.is_empty() { 0o600 } else { 0o666 };
        self.command_socket_mode.map_or(usual, FileMode::bits)
    }

    /// What can become of these settings without a new start: `wanted`, with what a start settles and with number and place of the
    /// workers as they are here.
    pub fn becoming(&self, wanted: &Settings) -> Settings {
        let mut settings = self.clone();
        settings.take_keys(wanted, Effect::Live);
        settings.take_keys(wanted, Effect::Workers);
        settings.admin.take_keys(&wanted.admin, Effect::Live);
        settings
    }

    /// Names of the keys in which `wanted` differs and whose change needs `effect`.
    pub fn differing(&self, wanted: &Settings, effect: Effect) -> Vec<&'static str> {
        let keys =
            self.keys_that_differ(wanted).into_iter().chain(self.admin.keys_that_differ(&wanted.admin));
        keys.filter(|key| key.effect == effect).map(|key| key.name).collect()
    }
}
