//! The keys of `[[listeners]]` and of `hsts`.

use super::{
    Key,
    Kind::{Address, Bool, Choice, Integer, Networks, Path, Seconds, Table, Text, TextMap, Texts},
    Level,
    Support::{NotYet, Own, Partly, Yes},
    key,
};
use crate::limits;

/// `[[listeners]]`.
pub(in crate::config) static LISTENER: Level =
    Level { what: "a listener", groups: &[LISTENER_ONLY, LISTENER_DEFAULTS, ANSWERS, TLS, H2, UDP] };

/// `hsts`, of a listener or of a frontend.
pub(in crate::config) static HSTS: Level = Level {
    what: "`hsts`",
    groups: &[&[
        key("enabled", Bool, "", NotYet, "Whether the field is sent; required."),
        key("max_age", Integer(0, u32::MAX as u64), "31536000", NotYet, "`max-age` (s)."),
        key("include_subdomains", Bool, "false", NotYet, "`includeSubDomains`."),
        key("preload", Bool, "false", NotYet, "`preload`."),
        key("force_replace_backend", Bool, "false", NotYet, "Replace what the backend sends."),
    ]],
};

const LISTENER_ONLY: &[Key] = &[
    key("address", Address, "", Yes, "Where it listens; required."),
    key("active", Bool, "true", Own, "It accepts connections; otherwise it is only configured."),
    key(
        "protocol",
        Choice(&["http", "https", "tcp", "udp"]),
        "",
        Partly("a listener of another protocol than `http` is skipped, with its frontends"),
        "What it speaks; required.",
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
        Partly("a listener with `true` is skipped, with its frontends"),
        "Each connection begins with a PROXY protocol header.",
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
pub(super) const LISTENER_DEFAULTS: &[Key] = &[
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
];

const ANSWERS: &[Key] = &[
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

const TLS: &[Key] = &[
    key("tls_versions", Texts, "[\"TLS_V12\", \"TLS_V13\"]", NotYet, "Versions of TLS."),
    key("cipher_list", Texts, "", NotYet, "Cipher suites of TLS."),
    key("cipher_suites", Texts, "", NotYet, "Cipher suites of TLS, under an older name."),
    key("groups_list", Texts, "", NotYet, "Groups of the key exchange."),
    key("certificate", Path, "", NotYet, "Certificate (PEM) of the frontends that name none."),
    key("certificate_chain", Path, "", NotYet, "Its chain (PEM)."),
    key("key", Path, "", NotYet, "Its private key (PEM)."),
    key("send_tls13_tickets", Integer(0, u64::MAX), "4", NotYet, "Session tickets per handshake."),
    key(
        "alpn_protocols",
        Texts,
        "[\"h2\", \"http/1.1\"]",
        NotYet,
        "Protocols that are offered in the handshake.",
    ),
    key("disable_http11", Bool, "false", NotYet, "Speak HTTP/2 only."),
    key(
        "strict_sni_binding",
        Bool,
        "true",
        NotYet,
        "Refuse requests for another name than the handshake's (421).",
    ),
    key("hsts", Table(&HSTS), "", NotYet, "`Strict-Transport-Security`."),
];

const H2: &[Key] = &[
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

const UDP: &[Key] = &[
    key("max_rx_datagram_size", Integer(0, U32), "1500", NotYet, "UDP: largest datagram (bytes)."),
    key("max_flows", Integer(0, U32), "0", NotYet, "UDP: flows at a time; 0 = by the limit of open files."),
];

const U32: u64 = u32::MAX as u64;
