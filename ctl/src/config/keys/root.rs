//! The keys of the root and of `[metrics]`.

use super::{
    Key,
    Kind::{
        AnyText, Bool, Choice, Integer, Integers, NamedTables, Path, PowerOfTwo, Seconds, Socket, Table,
        Tables, Text,
    },
    Level,
    Support::{NoUse, NotYet, Own, Yes},
    cluster::CLUSTER,
    key,
    listener::{LISTENER, LISTENER_DEFAULTS},
};

/// Everything that stands before the first table.
pub(in crate::config) static ROOT: Level =
    Level { what: "the root", groups: &[PROCESS, LISTENER_DEFAULTS, NOT_HONOURED, TABLES] };

/// `[metrics]`.
pub(in crate::config) static METRICS: Level = Level {
    what: "`metrics`",
    groups: &[&[
        key("address", Text, "", NotYet, "StatsD server that the metrics are pushed to, `ip:port`."),
        key("tagged_metrics", Bool, "false", NotYet, "Add tags in the style of InfluxDB."),
        key("prefix", AnyText, "\"sozu\"", NotYet, "First part of each metric's name."),
        key(
            "detail",
            Choice(&["process", "frontend", "cluster", "backend"]),
            "\"cluster\"",
            NotYet,
            "How fine the metrics are.",
        ),
    ]],
};

const PROCESS: &[Key] = &[
    key("command_socket", Socket, "\"./kakehi.sock\"", Yes, "Unix socket on which `kakehictl` is answered."),
    key("pid_file_path", Path, "", Yes, "File that holds the supervisor's process id while it runs."),
    key(
        "worker_count",
        Integer(1, 1024),
        "",
        Yes,
        "Number of workers. Without it: one per core that kakehi may use.",
    ),
    key(
        "worker_cores",
        Integers,
        "",
        Own,
        "Cores of the workers, in their order, instead of those that `handle_process_affinity` picks; workers beyond the list are treated as without it. `kakehictl pin` shows and changes it.",
    ),
    key(
        "steering",
        Choice(&["hash", "cpu"]),
        "\"hash\"",
        Own,
        "Which worker gets a new connection: by a hash of its addresses, or (`cpu`) the worker on the core that received it, which pays when each core has a receive queue of the network card.",
    ),
    key(
        "rebalance",
        Choice(&["manual", "auto"]),
        "\"manual\"",
        Own,
        "`auto`: every `rebalance_interval`, move idle connections from the busiest worker to the idlest when they differ by more than `rebalance_threshold`.",
    ),
    key(
        "rebalance_interval",
        Seconds,
        "10",
        Own,
        "With `rebalance = \"auto\"`: how often it is looked whether workers are too unequally busy, in seconds.",
    ),
    key(
        "rebalance_threshold",
        Integer(1, 1000),
        "50",
        Own,
        "With `rebalance = \"auto\"`: by how much of the average the busiest and the idlest worker may differ in CPU time, in percent.",
    ),
    key(
        "user",
        Text,
        "",
        Own,
        "User that the workers become when they have their sockets and their ring (only root can do that). The supervisor stays what it is.",
    ),
    key("group", Text, "", Own, "Group that the workers become; by default that of `user`."),
    key("worker_automatic_restart", Bool, "true", Yes, "Replace a worker that dies."),
    key("handle_process_affinity", Bool, "true", Yes, "Pin each worker to a core of its own."),
    key(
        "worker_timeout",
        Seconds,
        "10",
        NotYet,
        "How long the supervisor waits for a worker's answer, in seconds.",
    ),
    key(
        "max_connections",
        Integer(1, 1_000_000),
        "10000",
        Yes,
        "Connections that one worker serves at a time; more wait in the kernel's queue.",
    ),
    key(
        "activate_listeners",
        Bool,
        "true",
        Yes,
        "Accept connections from the start; with `false` no listener accepts.",
    ),
    key(
        "log_level",
        Text,
        "\"info\"",
        Yes,
        "What is logged: `error`, `warn`, `info`, `debug`, or directives per module (`warn,kakehi_engine=debug`).",
    ),
    key(
        "graceful_timeout",
        Seconds,
        "30",
        Own,
        "At a stop, how long what is in flight may take to finish, in seconds.",
    ),
    key(
        "drain_timeout",
        Seconds,
        "30",
        Own,
        "How long a tunnel (WebSocket) goes on whose listener or backend was removed, and what of a worker's old process cannot move at an upgrade, in seconds.",
    ),
    key(
        "orphan_timeout",
        Seconds,
        "",
        Own,
        "How long a worker goes on serving whose supervisor has died, if no `kakehi start` takes it over, in seconds; then it stops gracefully. Without it: for ever.",
    ),
    key(
        "io_uring_level",
        Integer(0, 4),
        "",
        Own,
        "Use at most this rung of the ladder of kernel features (0 = what Linux 5.10 has, 4 = all). Without it: the best that the kernel has.",
    ),
    key(
        "buffer_count",
        PowerOfTwo(16, 32_768),
        "2048",
        Own,
        "Receive buffers of one worker, of 16 KiB each; a power of two.",
    ),
    key(
        "upstream_max_idle",
        Integer(0, 1_000_000),
        "1024",
        Own,
        "Idle connections to one backend that one worker keeps for later requests; 0 = none.",
    ),
    key(
        "upstream_idle_timeout",
        Seconds,
        "60",
        Own,
        "How long such a connection is kept, in seconds. Choose less than the backend's own idle timeout.",
    ),
];

const TABLES: &[Key] = &[
    key("listeners", Tables(&LISTENER), "", Yes, "Addresses that accept connections."),
    key(
        "clusters",
        NamedTables(&CLUSTER),
        "",
        Yes,
        "Groups of backends, with the frontends that lead to them; the name is the cluster's id.",
    ),
    key("metrics", Table(&METRICS), "", NotYet, "Where the metrics go."),
];

const BUFFERS: &str = "kakehi lends buffers from an arena; see `buffer_count`";

const NOT_HONOURED: &[Key] = &[
    key(
        "command_buffer_size",
        Integer(0, u64::MAX),
        "1000000",
        NoUse("control messages are bounded by kakehi itself"),
        "First size of a control channel's buffer (bytes).",
    ),
    key(
        "max_command_buffer_size",
        Integer(0, u64::MAX),
        "2000000",
        NoUse("control messages are bounded by kakehi itself"),
        "Largest control message (bytes).",
    ),
    key(
        "ctl_command_timeout",
        Integer(0, u64::MAX),
        "1000",
        NoUse("`kakehictl` has the option `--timeout`"),
        "How long the command line waits for an answer (ms).",
    ),
    key(
        "command_allowed_uids",
        Integers,
        "",
        Yes,
        "Numbers of users that may use the control socket, besides root and the user that kakehi runs as. Without it only these may open it.",
    ),
    key(
        "saved_state",
        Path,
        "",
        Yes,
        "State file that is loaded at the start, if it is there and this file has not changed since it was saved.",
    ),
    key("automatic_state_save", Bool, "false", Yes, "Save the state to `saved_state` after each change."),
    key("min_buffers", Integer(0, u64::MAX), "1", NoUse(BUFFERS), "Buffers at start."),
    key("max_buffers", Integer(0, u64::MAX), "1000", NoUse(BUFFERS), "Most buffers."),
    key(
        "buffer_size",
        Integer(0, u64::MAX),
        "16393",
        NoUse("a buffer of the arena always has 16 KiB"),
        "Size of a buffer (bytes).",
    ),
    key(
        "slab_entries_per_connection",
        Integer(2, 32),
        "4",
        NoUse("sessions do not live in a slab of fixed size"),
        "Size of the session table per connection.",
    ),
    key(
        "splice_pipe_capacity_bytes",
        Integer(0, u64::MAX),
        "",
        NotYet,
        "Pipe of a spliced TCP session (bytes).",
    ),
    key(
        "accept_queue_timeout",
        Integer(0, u32::MAX as u64),
        "60",
        NoUse("what is not accepted yet waits in the kernel"),
        "Oldest connection that is still taken from the accept queue (s).",
    ),
    key(
        "evict_on_queue_full",
        Bool,
        "false",
        NotYet,
        "Close the most idle connections when there are too many.",
    ),
    key(
        "zombie_check_interval",
        Integer(0, u32::MAX as u64),
        "1800",
        NoUse("every connection has deadlines of its own"),
        "How often stuck sessions are looked for (s).",
    ),
    key(
        "max_connections_per_ip",
        Integer(0, u64::MAX),
        "0",
        NotYet,
        "Connections of one source address to one cluster; 0 = no limit.",
    ),
    key(
        "retry_after",
        Integer(0, u32::MAX as u64),
        "60",
        NotYet,
        "`Retry-After` of an answer 429 (s); 0 = without.",
    ),
    key(
        "basic_auth_max_credential_bytes",
        Integer(0, u64::MAX),
        "4096",
        NotYet,
        "Longest credentials of basic authentication (bytes).",
    ),
    key("log_target", Text, "\"stdout\"", NotYet, "Where the log goes; until it is honoured, stdout."),
    key("log_colored", Bool, "false", NotYet, "Colour the log."),
    key("access_logs_target", Text, "", NotYet, "Where the access log goes."),
    key("access_logs_format", Choice(&["ascii", "protobuf"]), "\"ascii\"", NotYet, "Form of the access log."),
    key("access_logs_colored", Bool, "", NotYet, "Colour the access log."),
    key("audit_logs_target", Path, "", NotYet, "File of the audit log."),
    key("audit_logs_json_target", Path, "", NotYet, "File of the audit log as JSON."),
    key("disable_cluster_metrics", Bool, "false", NotYet, "Count for the whole process only."),
];
