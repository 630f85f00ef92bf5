//! Every limit and deadline of kakehi: its name, its default, its range.
//!
//! A limit that a file can set has a key of the same name (the configuration reference lists them);
//! a limit that cannot be set says why. Times are in milliseconds, sizes in bytes.

/// Connections that one worker serves at a time (`max_connections`); more wait in the accept queue.
pub const MAX_CONNECTIONS: u32 = 10_000;
/// Descriptors of a connection that is served: the client's and the backend's. Cannot be set: that is what is.
pub const DESCRIPTORS_PER_CONNECTION: u64 = 2;
/// Descriptors of a worker beside its connections and listeners. Cannot be set: that is what is.
pub const DESCRIPTORS_BASE: u64 = 128;
/// Listeners for which a worker makes room at a time, so that a few more do not make another limit of connections. Not a key.
pub const LISTENERS_AT_A_TIME: u64 = 4;
/// Length of a listener's accept queue, which the kernel lowers to `net.core.somaxconn`. Cannot be set: that is what is.
pub const ACCEPT_QUEUE: u16 = 65_535;

/// Deadline for a complete request head, from its first byte (or from accept) (`request_timeout`).
pub const REQUEST_TIMEOUT_MS: u64 = 10_000;
/// How long a client connection may stay idle between requests, or refuse to take bytes (`front_timeout`).
pub const FRONT_TIMEOUT_MS: u64 = 60_000;
/// How long a backend may stay silent: until its response head, and between pieces of its body (`back_timeout`).
pub const BACK_TIMEOUT_MS: u64 = 30_000;
/// Deadline of one connection attempt to a backend (`connect_timeout`).
pub const CONNECT_TIMEOUT_MS: u64 = 3_000;
/// Slack of a body before its minimum rate counts (`body_timeout`): a body that stands still this long is cut.
pub const BODY_TIMEOUT_MS: u64 = 30_000;
/// Slowest body that is put up with, in bytes per second, after `body_timeout` of slack (`body_min_rate`; 0 = any).
pub const BODY_MIN_RATE: u32 = 240;
/// Slowest response, in bytes per second, after `back_timeout` of slack for the backend and `front_timeout` for the client
/// (`response_min_rate`; 0 = any).
pub const RESPONSE_MIN_RATE: u32 = 0;
/// Deadline of a whole response, from the end of the request head (`max_response_time`; 0 = none).
pub const MAX_RESPONSE_TIME_MS: u64 = 0;
/// How long a tunnel (an accepted `Upgrade`) may stay silent in both directions (`tunnel_timeout`).
pub const TUNNEL_TIMEOUT_MS: u64 = 3_600_000;
/// How long kakehi waits for the backend's `100 Continue` before it answers itself (`continue_timeout`).
pub const CONTINUE_TIMEOUT_MS: u64 = 1_000;
/// How long an idle upstream connection stays in the pool (`upstream_idle_timeout`).
pub const UPSTREAM_IDLE_TIMEOUT_MS: u64 = 60_000;
/// Backends that are tried for one request (`max_connection_attempts`).
pub const MAX_CONNECTION_ATTEMPTS: u8 = 5;
/// Body that is kept to be sent again (`retry_body_size`, bytes).
pub const RETRY_BODY_SIZE: u32 = 16 << 10;
/// Requests that may be sent again (`retry_budget`, percent).
pub const RETRY_BUDGET: u16 = 20;
/// Failures after which a backend is passed over (`passive.consecutive_failures`).
pub const CONSECUTIVE_FAILURES: u32 = 5;
/// Which time `passive.failure_ratio` looks at (`passive.window`).
pub const PASSIVE_WINDOW_MS: u64 = 10_000;
/// How long a backend is passed over at first (`passive.ejection_time`), and at most.
pub const EJECTION_TIME_MS: u64 = 30_000;
/// The longest.
pub const MAX_EJECTION_TIME_MS: u64 = 300_000;
/// Share of the primaries that is passed over at most (`passive.max_ejection_percent`).
pub const MAX_EJECTION_PERCENT: u8 = 50;
/// How long a request waits for a backend that has no room (`queue_timeout`).
pub const QUEUE_TIMEOUT_MS: u64 = 1_000;
/// With fewer backends than these a cluster has no shards (`shard_min_backends`).
pub const SHARD_MIN_BACKENDS: u16 = 8;
/// Share of the load of a backend (`weight`).
pub const BACKEND_WEIGHT: u8 = 100;
/// Between two probes of a backend (`health_check.interval`).
pub const HEALTH_INTERVAL_MS: u64 = 10_000;
/// Deadline of a probe (`health_check.timeout`).
pub const HEALTH_TIMEOUT_MS: u64 = 5_000;
/// Probes in a row that make another verdict (`health_check.healthy_threshold`, `health_check.unhealthy_threshold`).
pub const HEALTH_THRESHOLD: u32 = 3;
/// Probes that are under way at a time; others wait. Not a key: each takes a descriptor of the supervisor.
pub const PROBES_AT_A_TIME: usize = 512;
/// Pace of the probes of a backend of which nothing is known yet, where `health_check.interval` is longer. Not a key: it ends with the
/// first verdict.
pub const FIRST_PROBES_INTERVAL_MS: u64 = 1_000;
/// Largest head of the answer to a probe, with interim ones (bytes). Not a key: what answers probes has small ones.
pub const PROBE_HEAD: usize = 4_096;
/// So much of a body is read for `health_check.body_contains` (bytes). Not a key.
pub const PROBE_BODY: usize = 64 << 10;
/// Memory of a hash of argon2id (KiB). Not a key: a worker computes one at a time, and has this much for it.
pub const ARGON2_MEMORY_KIB: u32 = 256 << 10;
/// Passes of a hash of argon2id. Not a key.
pub const ARGON2_PASSES: u32 = 16;
/// Lanes of a hash of argon2id, which are computed one after the other. Not a key.
pub const ARGON2_LANES: u32 = 16;
/// Memory times passes of a hash of argon2id (KiB): about a second. Not a key: nobody waits for longer than
/// [`PASSWORD_TIMEOUT_MS`].
pub const ARGON2_WORK_KIB: u32 = 1 << 20;
/// Cost of a hash of bcrypt: with the highest, it takes about a second. Not a key.
pub const BCRYPT_COST: std::ops::RangeInclusive<u32> = 4..=14;
/// How long a request waits until its password is checked, where that takes long. Not a key.
pub const PASSWORD_TIMEOUT_MS: u64 = 5_000;
/// Passwords that wait in a worker to be checked, where that takes long. Not a key: more would wait too long.
pub const PASSWORDS_WAITING: usize = 32;
/// Those of them that one client (of IPv6, one network of 64 bits) may have. Not a key.
pub const PASSWORDS_WAITING_PER_CLIENT: usize = 4;
/// How long a password that was right need not be computed again. Not a key.
pub const PASSWORD_REMEMBERED_MS: u64 = 60_000;
/// Passwords that a worker remembers so. Not a key.
pub const PASSWORDS_REMEMBERED: usize = 4_096;
/// Idle upstream connections that one worker keeps per backend (`upstream_max_idle`).
pub const UPSTREAM_MAX_IDLE: u32 = 1_024;
/// How long a closing connection is read and thrown away so that the peer gets the last answer whole.
/// Not a key: it bounds a courtesy, not a service.
pub const LINGER_TIMEOUT_MS: u64 = 2_000;
/// How long a request body that is still coming when its request was answered is read and thrown away
/// (`lingering_time`).
pub const LINGERING_TIME_MS: u64 = 30_000;
/// How long such a body may stand still (`lingering_timeout`).
pub const LINGERING_TIMEOUT_MS: u64 = 5_000;
/// How long a tunnel goes on whose listener or backend was removed, and a worker's old process after an upgrade
/// (`drain_timeout`).
pub const DRAIN_TIMEOUT_MS: u64 = 30_000;
/// Default of `rebalance_interval` (ms).
pub const REBALANCE_INTERVAL_MS: u64 = 10_000;
/// Default of `rebalance_threshold` (percent).
pub const REBALANCE_THRESHOLD: u16 = 50;
/// Most workers.
pub const MAX_WORKERS: u32 = 1_024;
/// Longest path of `command_socket` (bytes): the 107 that a unix socket may have, less what the names of the workers'
/// adoption sockets add.
pub const MAX_SOCKET_PATH: usize = 95;
/// Longest path of any other unix socket (bytes; `sun_path`).
pub const MAX_UNIX_PATH: usize = 107;
/// How long an idle connection waits, at a stop or when its listener was removed, for a request that is on its way
/// (`stop_idle_grace`; 0 = not at all).
pub const STOP_IDLE_GRACE_MS: u64 = 500;
/// What is in flight when a stop is asked for has this long to finish (`graceful_timeout`).
pub const GRACEFUL_TIMEOUT_MS: u64 = 30_000;

/// Deadline of a TLS handshake, from accept (`handshake_timeout`).
pub const HANDSHAKE_TIMEOUT_MS: u64 = 10_000;
/// TLS handshakes with clients that are under way at a time in all workers together, each of which has an even share
/// (`max_handshakes`; 0 = any number); more wait in line. One that has begun takes some 20 kB.
pub const MAX_HANDSHAKES: u32 = 8_192;
/// Largest ClientHello, with the headers of its records: with a hybrid key share it has about 1,800 bytes. Where TLS is terminated it is
/// no key.
pub const MAX_CLIENT_HELLO: usize = 16_384;
/// Most that `sni_preread_max_bytes` can be: as much as a message of a handshake that rustls reads.
pub const MAX_CLIENT_HELLO_CEILING: usize = 65_536;
/// How long the ClientHello of a connection that is passed on by its name may take to arrive.
pub const SNI_PREREAD_TIMEOUT_MS: u64 = 5_000;
/// Tickets that a client of TLS 1.3 gets after a full handshake (`send_tls13_tickets`).
pub const TLS_TICKETS: u8 = 2;
/// How long clients remember `Strict-Transport-Security` (`max_age` of `hsts`, s): a year.
pub const HSTS_MAX_AGE: u32 = 31_536_000;
/// How long the supervisor uses a ticket key before it makes a new one; the one before still opens tickets
/// (`ticket_key_rotation`).
pub const TICKET_KEY_ROTATION_MS: u64 = 6 * 3_600_000;
/// How often the files of certificates are looked at (`certificate_watch_interval`).
pub const CERTIFICATE_WATCH_INTERVAL_MS: u64 = 5_000;
/// Certificates that a worker keeps ready to sign with; others are read from the vault when a client asks for them. Not a key.
pub const READY_CERTIFICATES: usize = 1_024;

/// Largest request head: request line and fields with their line ends (`max_head_size`).
pub const MAX_HEAD_SIZE: u32 = 16_384;
/// Highest value that `max_head_size` takes.
pub const MAX_HEAD_SIZE_CEILING: u32 = 262_144;
/// Most fields of a head or trailer section (`max_head_fields`).
pub const MAX_HEAD_FIELDS: u16 = 128;
/// Highest value that `max_head_fields` takes: the size of the parser's table.
pub const MAX_HEAD_FIELDS_CEILING: u16 = 256;
/// Longest request target (`max_target_size`).
pub const MAX_TARGET_SIZE: u32 = 8_192;
/// Largest response head of a backend (`max_response_head_size`).
pub const MAX_RESPONSE_HEAD_SIZE: u32 = 32_768;
/// Largest request body, 0 = no limit (`max_body_size`).
pub const MAX_BODY_SIZE: u64 = 0;
/// Largest trailer section. Not a key: nobody sends more.
pub const MAX_TRAILER_SIZE: usize = 8_192;
/// Longest chunk-size line with its extensions, which are dropped. Not a key: nobody sends more.
pub const MAX_CHUNK_LINE: usize = 1_024;
/// Empty lines that are skipped before a request line (RFC 9112 section 2.2).
pub const MAX_LEADING_EMPTY_LINES: usize = 4;
/// Longest request line that a line of the log shows (bytes). Not a key.
pub const MAX_LOGGED_REQUEST_LINE: usize = 256;
/// Between two lines of the log that say why responses of a backend were refused. Not a key.
pub const LOG_INTERVAL_MS: u64 = 1_000;

/// Longest `hostname` of a frontend. Not a key: longer names cannot exist (RFC 1035), regular expressions can.
pub const MAX_HOSTNAME_RULE: usize = 4_096;
/// Time that `rate` of a limit is of (`per`).
pub const RATE_LIMIT_PERIOD_MS: u64 = 1_000;
/// Status of what a rate limit refuses (`status`).
pub const RATE_LIMIT_STATUS: u16 = 429;
/// `Retry-After` of what a cap of connections refuses (`retry_after`), in seconds.
pub const RETRY_AFTER: u32 = 60;
/// Keys of limits that are known at a time (`table_size`).
pub const TABLE_SIZE: u32 = 65_536;
/// How long what a worker has to do may wait until it is overloaded (`overload_delay`).
pub const OVERLOAD_DELAY_MS: u64 = 50;
/// How long that has to go on. Not a key.
pub const OVERLOAD_TIME_MS: u64 = 200;

/// Memory that one compiled regular expression may take. Not a key.
pub const MAX_REGEX_SIZE: usize = 1 << 20;

/// Shortest time that an answer of the DNS is good for (`dns_min_ttl`).
pub const DNS_MIN_TTL_MS: u64 = 1_000;
/// Longest time that an answer of the DNS is good for (`dns_max_ttl`).
pub const DNS_MAX_TTL_MS: u64 = 60_000;
/// Deadline of all that is asked of the DNS for one name. Not a key.
pub const DNS_TIMEOUT_MS: u64 = 5_000;
/// When a name that could not be resolved is asked for again at the latest. Not a key.
pub const DNS_RETRY_MS: u64 = 10_000;
/// Addresses of a name that are used. Not a key.
pub const ADDRESSES_PER_NAME: usize = 64;
/// Names that are asked for at a time. Not a key.
pub const NAMES_AT_A_TIME: usize = 32;
/// So long a start or a change waits for the addresses of names that are new. Not a key: what comes later is used later.
pub const NAMES_PATIENCE_MS: u64 = 500;

/// Buffers in a worker's arena (`buffer_count`); a power of two.
pub const BUFFER_COUNT: u16 = 2_048;
/// Size of one arena buffer (bytes): a body of 16 KiB with its head, or a whole TLS record. Not a key: it is the unit of the
/// ring's provided buffers.
pub const BUFFER_SIZE: u32 = 17 * 1024;

/// Private memory that bodies may take in one worker (`body_memory`): beyond it large bodies move in arena buffers.
pub const BODY_MEMORY: u64 = 64 << 20;

/// Room of a pipe (bytes, `splice_pipe_capacity_bytes`), and its ceiling: the highest that `fs.pipe-max-size` lets an ordinary user have by
/// default.
pub const PIPE_CAPACITY: u32 = 1 << 20;

/// Largest configuration file (bytes). Not a key: what is larger is no configuration, or cannot be told to a worker either.
pub const MAX_CONFIG_FILE: u64 = 64 << 20;

/// The highest `order` of a frontend.
pub const MAX_ORDER: u64 = 1_000_000_000_000_000;

/// Clients of the admin address at a time (`admin.address`). Not a key: beyond it, who has done nothing for longest goes.
pub const ADMIN_CLIENTS: usize = 64;
/// So long a client of the admin address that is in the midst of something has to stand still before it goes for another. Not a key.
pub const ADMIN_EVICTION_MS: u64 = 1_000;
/// Length of its accept queue. Not a key.
pub const ADMIN_QUEUE: u16 = 128;
/// Deadline of a request head there, from its first byte or from accept. Not a key.
pub const ADMIN_HEAD_TIMEOUT_MS: u64 = 10_000;
/// Largest request head there (bytes). Not a key.
pub const ADMIN_HEAD: usize = 16 << 10;
/// How long a connection there may be idle between requests. Not a key.
pub const ADMIN_IDLE_TIMEOUT_MS: u64 = 60_000;
/// How long a client there may take no byte of its response. Not a key.
pub const ADMIN_STALL_TIMEOUT_MS: u64 = 30_000;
/// Deadline of a whole response there. Not a key.
pub const ADMIN_RESPONSE_TIMEOUT_MS: u64 = 120_000;
/// How long the supervisor may take to say how it is; beyond it, 503. Not a key.
pub const ADMIN_ANSWER_TIMEOUT_MS: u64 = 5_000;
/// Questions of the admin address that wait for the supervisor. Not a key: who asks more waits.
pub const ADMIN_QUESTIONS: usize = 4;
/// Metrics are written anew so often at most; who asks meanwhile shares the text. Not a key.
pub const ADMIN_RENDER_INTERVAL_MS: u64 = 100;
/// Different texts of metrics that are in memory at a time. Not a key: beyond it, who is slowest to take the oldest is cut.
pub const ADMIN_BODIES: usize = 16;
/// Room for what waits in the kernel to be taken by one client there (bytes). Not a key.
pub const ADMIN_SEND_BUFFER: usize = 128 << 10;
/// How long responses there may take to end when kakehi ends, or another program takes its place. Not a key.
pub const ADMIN_DRAIN_MS: u64 = 500;

/// Largest control frame, either way.
pub const MAX_FRAME: usize = 64 << 20;
/// Largest frame of a request that loads a state, for root and kakehi's own user.
pub const MAX_REQUEST_FRAME: usize = 64 << 20;
/// Largest frame of any other request.
pub const MAX_SMALL_REQUEST_FRAME: usize = 1 << 20;
/// Largest report of a worker (bytes). Not a key: what it says of itself is small.
pub const MAX_REPORT_FRAME: usize = 1 << 20;
/// While what a client has asked for takes time, it gets a sign of life so often (ms).
pub const WORKING_INTERVAL_MS: u64 = 1_000;
/// A client that gets no sign of life for so long gives up (ms).
pub const CLIENT_SILENCE_MS: u64 = 30_000;
/// A worker that is not ready this long after its start is stopped, and the start fails.
pub const WORKER_READY_TIMEOUT_MS: u64 = 10_000;
/// A worker that answers no ping for so long is killed and replaced (`worker_liveness`; 0 = never).
pub const WORKER_LIVENESS_MS: u64 = 10_000;
/// A worker that has not answered an order this long after it was given is given up and replaced (`worker_timeout`).
pub const WORKER_TIMEOUT_MS: u64 = 10_000;
/// First delay before a worker that died again is replaced (the first time it is replaced at once); doubles.
pub const RESTART_DELAY_MS: u64 = 100;
/// Longest delay before a worker that died is replaced.
pub const RESTART_DELAY_CEILING_MS: u64 = 10_000;
