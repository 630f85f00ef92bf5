//! The keys of `[[listeners]]` but those of TLS.

use super::{
    Effect, Key,
    Kind::{Integer, TextMap},
    Level,
    Support::{NotYet, Yes},
    affecting,
    cluster::{RATE_LIMITS, answer},
    key,
    tls::TLS,
};
use crate::state::{Forwarding, Listener, Sizes, Sources, Timeouts, Tls};

/// `[[listeners]]`.
pub(in crate::config) static LISTENER: Level = Level { what: "a listener", groups: &LISTENER_GROUPS };

/// Those of a listener without TLS come first.
const LISTENER_GROUPS: [&[Key]; 14] = [
    Listener::REQUIRED,
    Listener::OWN,
    Sources::OWN,
    &[RATE_LIMITS],
    Forwarding::OWN,
    Timeouts::INHERITED,
    Listener::INHERITED,
    Sizes::INHERITED,
    Forwarding::INHERITED,
    ANSWERS,
    UDP,
    TLS,
    Tls::OWN,
    H2,
];

/// The keys that the example shows in a listener without TLS.
#[cfg(test)]
pub(in crate::config) static PLAIN_LISTENER: Level =
    Level { what: "a listener", groups: LISTENER_GROUPS.split_at(11).0 };

const ANSWERS: &[Key] = &affecting(
    Effect::Requests,
    [
        key(
            "answers",
            TextMap,
            "",
            Yes,
            "Whole responses in the place of kakehi's own, by status: each a text, or `file://` and a path.",
        ),
        answer("answer_301"),
        answer("answer_400"),
        answer("answer_401"),
        answer("answer_404"),
        answer("answer_408"),
        answer("answer_413"),
        answer("answer_421"),
        answer("answer_429"),
        answer("answer_502"),
        answer("answer_503"),
        answer("answer_504"),
        answer("answer_507"),
    ],
);

pub(in crate::config) const H2: &[Key] = &[
    key("h2_max_rst_stream_per_window", Integer(0, U32), "2000", NotYet, "Resets of one second."),
    key("h2_max_ping_per_window", Integer(0, U32), "2000", NotYet, "Pings of one second."),
    key("h2_max_settings_per_window", Integer(0, U32), "1000", NotYet, "Settings frames of one second."),
    key("h2_max_empty_data_per_window", Integer(0, U32), "2000", NotYet, "Empty data frames of one second."),
    key(
        "h2_max_window_update_stream0_per_window",
        Integer(0, U32),
        "2000",
        NotYet,
        "Window updates of one second.",
    ),
    key("h2_max_continuation_frames", Integer(0, U32), "20", NotYet, "Continuation frames of one head."),
    key("h2_max_glitch_count", Integer(0, U32), "2000", NotYet, "Small offences of one second."),
    key("h2_max_rst_stream_lifetime", Integer(0, u64::MAX), "200000", NotYet, "Resets of one connection."),
    key(
        "h2_max_rst_stream_abusive_lifetime",
        Integer(0, u64::MAX),
        "1000",
        NotYet,
        "Resets before a response, of one connection.",
    ),
    key(
        "h2_max_rst_stream_emitted_lifetime",
        Integer(0, u64::MAX),
        "10000",
        NotYet,
        "Resets that kakehi sends on one connection.",
    ),
    key(
        "h2_initial_connection_window",
        Integer(0, U32),
        "16777216",
        NotYet,
        "Receive window of a connection (bytes).",
    ),
    key(
        "h2_stream_refusal_percent",
        Integer(0, U32),
        "50",
        NotYet,
        "Share of `h2_max_rst_stream_abusive_lifetime` from which on new streams are refused, in percent; 0 and 100 or more = never.",
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
