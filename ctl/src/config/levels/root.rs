//! The keys of the root, of `[metrics]` and of `[admin]`.

use super::{
    Key,
    Kind::{AnyText, Bool, Choice, Integer, NamedTables, Path, Table, Tables, Text},
    Level,
    Support::{NoUse, NotYet, Own, Yes},
    cluster::CLUSTER,
    key,
    listener::LISTENER,
};
use crate::state::{Admin, Forwarding, Listener, Retries, Settings, Sizes, Timeouts};

/// Everything that stands before the first table.
pub(in crate::config) static ROOT: Level = Level { what: "the root", groups: &ROOT_GROUPS };

const ROOT_GROUPS: [&[Key]; 10] = [
    Settings::REQUIRED,
    Settings::OWN,
    PROCESS,
    Timeouts::INHERITED,
    Listener::INHERITED,
    Sizes::INHERITED,
    Forwarding::INHERITED,
    Retries::INHERITED,
    NOT_HONOURED,
    TABLES,
];

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

/// `[admin]`.
pub(in crate::config) static ADMIN: Level = Level { what: "`admin`", groups: &[Admin::OWN] };

const PROCESS: &[Key] = &[key(
    "activate_listeners",
    Bool,
    "true",
    Yes,
    "Accept connections from the start; with `false` no listener accepts.",
)];

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
    key("admin", Table(&ADMIN), "", Own, "Where kakehi tells over HTTP how it is, and whom."),
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
    key("min_buffers", Integer(0, u64::MAX), "1", NoUse(BUFFERS), "Buffers at start."),
    key("max_buffers", Integer(0, u64::MAX), "1000", NoUse(BUFFERS), "Most buffers."),
    key(
        "buffer_size",
        Integer(0, u64::MAX),
        "16393",
        NoUse("a buffer of the arena always has 17 KiB"),
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
        "accept_queue_timeout",
        Integer(0, u32::MAX as u64),
        "60",
        NoUse("what is not accepted yet waits in the kernel"),
        "Oldest connection that is still taken from the accept queue (s).",
    ),
    key(
        "zombie_check_interval",
        Integer(0, u32::MAX as u64),
        "1800",
        NoUse("every connection has deadlines of its own"),
        "How often stuck sessions are looked for (s).",
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
