//! The keys of `[[listeners]]` but those of TLS.

use super::{
    Key,
    Kind::{Address, Bool, Choice, Integer, Networks, Path, Seconds, SecondsOrZero, Text, TextMap},
    Level,
    Support::{NotYet, Own, Partly, Yes},
    key,
    tls::TLS,
};
use crate::limits;

/// `[[listeners]]`.
pub(in crate::config) static LISTENER: Level =
    Level { what: "a listener", groups: &[LISTENER_ONLY, LISTENER_DEFAULTS, ANSWERS, TLS, H2, UDP] };

/// As [`crate::state::proxy_peers`] has them.
const PROXY_PEERS: &str = "[\"127.0.0.0/8\", \"10.0.0.0/8\", \"172.16.0.0/12\", \"192.168.0.0/16\", \"169.254.0.0/16\", \"100.64.0.0/10\", \"::1/128\", \"fc00::/7\", \"fe80::/10\"]";

pub(in crate::config) const LISTENER_ONLY: &[Key] = &[
    key("address", Address, "", Yes, "Where it listens; required."),
    key("active", Bool, "true", Own, "It accepts connections; otherwise it is only configured."),
    key(
        "protocol",
        Choice(&["http", "https", "tcp", "udp"]),
        "",
        Partly("a listener of `udp` is skipped, with its frontends"),
        "What it speaks; required. `https` terminates TLS and speaks HTTP within; `tcp` passes connections on as they are.",
    ),
    key(
        "public_address",
        Address,
        "",
        Yes,
        "The address that clients see where that is another one (NAT); told to backends.",
    ),
    key("send_x_real_ip", Bool, "false", Yes, "Add `X-Real-IP`, the client's address."),
    key("elide_x_real_ip", Bool, "false", Yes, "Drop the `X-Real-IP` that a client sent."),
    key(
        "expect_proxy",
        Bool,
        "false",
        Yes,
        "Each connection begins with a PROXY protocol header (version 1 or 2), which names the client.",
    ),
    key(
        "proxy_protocol_from",
        Networks,
        PROXY_PEERS,
        Own,
        "With `expect_proxy`: networks whose peers may send that header; connections of others are closed. Takes the place of the default.",
    ),
    key("sticky_name", Text, "\"SOZUBALANCEID\"", NotYet, "Name of the cookie of sticky sessions."),
    key(
        "sozu_id_header",
        Text,
        "\"Sozu-Id\"",
        NotYet,
        "Name of the request id's field; kakehi sends `X-Request-Id`.",
    ),
];

/// What a listener may set and the root sets for all listeners.
pub(in crate::config) const LISTENER_DEFAULTS: &[Key] = &[
    key(
        "front_timeout",
        Seconds,
        "60",
        Yes,
        "How long a client connection may stay idle, or take no bytes, in seconds.",
    ),
    key("back_timeout", Seconds, "30", Yes, "How long a backend may stay silent, in seconds."),
    key("connect_timeout", Seconds, "3", Yes, "Deadline of one connection attempt to a backend, in seconds."),
    key("request_timeout", Seconds, "10", Yes, "Deadline of a complete request head, in seconds."),
    key(
        "body_timeout",
        Seconds,
        "30",
        Own,
        "How long a request body may stand still before `body_min_rate` counts, in seconds.",
    ),
    key(
        "body_min_rate",
        Integer(0, u32::MAX as u64),
        "240",
        Own,
        "Slowest request body, in bytes per second; 0 = any.",
    ),
    key(
        "response_min_rate",
        Integer(0, u32::MAX as u64),
        "0",
        Own,
        "Slowest response, in bytes per second, of a backend that was silent for `back_timeout` in all, or to a client that took nothing for `front_timeout` in all; 0 = any.",
    ),
    key("max_response_time", SecondsOrZero, "0", Own, "Deadline of a whole response, in seconds; 0 = none."),
    key(
        "lingering_time",
        Seconds,
        "30",
        Own,
        "How long a request body that is still coming when its request was answered is read and thrown away, in seconds.",
    ),
    key("lingering_timeout", Seconds, "5", Own, "How long such a body may stand still, in seconds."),
    key(
        "abort_on_close",
        Bool,
        "false",
        Own,
        "A client that closes its sending side is gone: its exchange ends at once. Without it such a client gets its answer.",
    ),
    key(
        "tunnel_timeout",
        Seconds,
        "3600",
        Own,
        "How long an upgraded connection (WebSocket) may stay silent, in seconds.",
    ),
    key(
        "continue_timeout",
        Seconds,
        "1",
        Own,
        "How long the backend's `100 Continue` is waited for, in seconds.",
    ),
    key(
        "max_head_size",
        Integer(512, limits::MAX_HEAD_SIZE_CEILING as u64),
        "16384",
        Own,
        "Largest request head (bytes); beyond: 431.",
    ),
    key(
        "max_head_fields",
        Integer(1, limits::MAX_HEAD_FIELDS_CEILING as u64),
        "128",
        Own,
        "Most fields of a head; beyond: 431.",
    ),
    key(
        "max_target_size",
        Integer(64, limits::MAX_HEAD_SIZE_CEILING as u64),
        "8192",
        Own,
        "Longest request target (bytes); beyond: 414.",
    ),
    key(
        "max_response_head_size",
        Integer(512, limits::MAX_HEAD_SIZE_CEILING as u64),
        "32768",
        Own,
        "Largest response head of a backend (bytes); beyond: 502.",
    ),
    key(
        "max_body_size",
        Integer(0, i64::MAX as u64),
        "0",
        Own,
        "Largest request body (bytes), 0 = no limit; beyond: 413.",
    ),
    key("x_forwarded_for", Bool, "true", Own, "Add the client's address to `X-Forwarded-For`."),
    key("x_forwarded_proto", Bool, "true", Own, "Add `X-Forwarded-Proto`."),
    key(
        "x_forwarded_port",
        Bool,
        "true",
        Own,
        "Add `X-Forwarded-Port`, the port that the client connected to.",
    ),
    key(
        "x_forwarded_host",
        Bool,
        "true",
        Own,
        "Add `X-Forwarded-Host`, the authority that the client asked for.",
    ),
    key("forwarded", Bool, "true", Own, "Add the client to `Forwarded` (RFC 7239)."),
    key("via", Bool, "true", Own, "Add kakehi to `Via` (RFC 9110)."),
    key("x_request_id", Bool, "true", Own, "Add `X-Request-Id`."),
    key(
        "trusted_peers",
        Networks,
        "[]",
        Own,
        "Networks whose peers may send these fields themselves; from all others they are dropped.",
    ),
    key(
        "underscores_in_headers",
        Bool,
        "false",
        Own,
        "Pass on request fields with `_` in their names. They are dropped otherwise, because many backends cannot tell `A_B` from `A-B`.",
    ),
];

pub(in crate::config) const ANSWERS: &[Key] = &[
    key("answers", TextMap, "", NotYet, "Own answers, by status code: a text, or `file://` and a path."),
    key("answer_301", Path, "", NotYet, "File of the answer 301."),
    key("answer_400", Path, "", NotYet, "File of the answer 400."),
    key("answer_401", Path, "", NotYet, "File of the answer 401."),
    key("answer_404", Path, "", NotYet, "File of the answer 404."),
    key("answer_408", Path, "", NotYet, "File of the answer 408."),
    key("answer_413", Path, "", NotYet, "File of the answer 413."),
    key("answer_421", Path, "", NotYet, "File of the answer 421."),
    key("answer_429", Path, "", NotYet, "File of the answer 429."),
    key("answer_502", Path, "", NotYet, "File of the answer 502."),
    key("answer_503", Path, "", NotYet, "File of the answer 503."),
    key("answer_504", Path, "", NotYet, "File of the answer 504."),
    key("answer_507", Path, "", NotYet, "File of the answer 507."),
];

pub(in crate::config) const H2: &[Key] = &[
    key("h2_max_rst_stream_per_window", Integer(0, U32), "100", NotYet, "Resets of one second."),
    key("h2_max_ping_per_window", Integer(0, U32), "100", NotYet, "Pings of one second."),
    key("h2_max_settings_per_window", Integer(0, U32), "50", NotYet, "Settings frames of one second."),
    key("h2_max_empty_data_per_window", Integer(0, U32), "100", NotYet, "Empty data frames of one second."),
    key(
        "h2_max_window_update_stream0_per_window",
        Integer(0, U32),
        "100",
        NotYet,
        "Window updates of one second.",
    ),
    key("h2_max_continuation_frames", Integer(0, U32), "20", NotYet, "Continuation frames of one head."),
    key("h2_max_glitch_count", Integer(0, U32), "100", NotYet, "Small offences of one second."),
    key("h2_max_rst_stream_lifetime", Integer(0, u64::MAX), "10000", NotYet, "Resets of one connection."),
    key(
        "h2_max_rst_stream_abusive_lifetime",
        Integer(0, u64::MAX),
        "50",
        NotYet,
        "Resets before a response, of one connection.",
    ),
    key(
        "h2_max_rst_stream_emitted_lifetime",
        Integer(0, u64::MAX),
        "500",
        NotYet,
        "Resets that kakehi sends on one connection.",
    ),
    key(
        "h2_initial_connection_window",
        Integer(0, U32),
        "1048576",
        NotYet,
        "Receive window of a connection (bytes).",
    ),
    key("h2_max_concurrent_streams", Integer(0, U32), "100", NotYet, "Streams of one connection at a time."),
    key(
        "h2_stream_shrink_ratio",
        Integer(0, U32),
        "2",
        NotYet,
        "When the places of ended streams are given back.",
    ),
    key(
        "h2_max_header_list_size",
        Integer(0, U32),
        "65536",
        NotYet,
        "Largest head (bytes, as RFC 9113 counts them).",
    ),
    key("h2_max_header_table_size", Integer(0, U32), "65536", NotYet, "Largest HPACK table (bytes)."),
    key("h2_max_header_fields", Integer(0, U32), "128", NotYet, "Most fields of a head."),
    key("h2_stream_idle_timeout_seconds", Integer(0, U32), "", NotYet, "Silent stream (s)."),
    key(
        "h2_graceful_shutdown_deadline_seconds",
        Integer(0, U32),
        "5",
        NotYet,
        "How long open streams may take at a stop (s).",
    ),
];

pub(in crate::config) const UDP: &[Key] = &[
    key("max_rx_datagram_size", Integer(0, U32), "1500", NotYet, "UDP: largest datagram (bytes)."),
    key("max_flows", Integer(0, U32), "0", NotYet, "UDP: flows at a time; 0 = by the limit of open files."),
];

const U32: u64 = u32::MAX as u64;
