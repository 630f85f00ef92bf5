//! The keys of `[clusters.ID]` and of what stands in it: frontends, backends, health checks.

use super::{
    Effect, Key,
    Kind::{
        AnyText, BackendSocket, Bool, Choice, Integer, Path, Response, Table, TableOrFalse, Tables, TextMap,
    },
    Level,
    Support::{NotYet, Own, Yes},
    affecting, key,
    tls::{BACKEND_TLS, FRONTEND_TLS},
};
use crate::state::{
    Admission, Backend, Balancing, Cluster, ClusterLimits, Frontend, FrontendLimits, HeaderEdit, HealthCheck,
    Passive, Predicate, Predicates, ProbeHeader, RateLimit, Redirect, Retries, Rewrite, Sources, Split,
    SplitPart,
};

/// `[clusters.ID]`.
pub(in crate::config) static CLUSTER: Level = Level {
    what: "a cluster",
    groups: &[
        Cluster::REQUIRED,
        Cluster::OWN,
        Balancing::OWN,
        Admission::OWN,
        Retries::OWN,
        Retries::INHERITED,
        ClusterLimits::OWN,
        ANSWERS,
        &[
            RATE_LIMITS,
            key("frontends", Tables(&FRONTEND), "[]", Yes, "Which requests it gets."),
            key("backends", Tables(&BACKEND), "[]", Yes, "The servers that answer them."),
            key(
                "http2",
                Bool,
                "false",
                NotYet,
                "Speak HTTP/2 to the backends; until it is honoured, HTTP/1.1.",
            ),
            key(
                "backend_tls",
                Table(&BACKEND_TLS),
                "",
                Own,
                "The backends are reached by TLS; an empty table is enough. Clusters of `http` only.",
            ),
            key(
                "passive",
                TableOrFalse(&PASSIVE),
                "",
                Own,
                "When a backend is passed over because of how it answers; `false`: never. Without it the defaults of its keys hold.",
            ),
            key(
                "health_check",
                Table(&HEALTH_CHECK),
                "",
                Yes,
                "Asks each backend regularly whether it is well; an empty table is enough.",
            ),
            key("udp", Table(&UDP), "", NotYet, "What only clusters of UDP have."),
        ],
    ],
};

/// The older key for one of `answers`.
pub(super) const fn answer(name: &'static str) -> Key {
    key(name, Path, "", Yes, "File with the response of this status: another name of that in `answers`.")
}

const ANSWERS: &[Key] = &affecting(
    Effect::Backends,
    [
        key(
            "answers",
            TextMap,
            "",
            Yes,
            "Whole responses in the place of kakehi's own, by status: each a text, or `file://` and a path. They go before those of the listener.",
        ),
        answer("answer_503"),
    ],
);

/// `[[clusters.ID.frontends]]`.
pub(in crate::config) static FRONTEND: Level = Level { what: "a frontend", groups: &FRONTEND_GROUPS };

const FRONTEND_GROUPS: [&[Key]; 9] = [
    Frontend::REQUIRED,
    Frontend::OWN,
    Sources::OWN,
    FrontendLimits::OWN,
    Predicates::OWN,
    FRONTEND_RULE,
    Rewrite::OWN,
    Split::OWN,
    FRONTEND_TLS,
];

/// The keys that the example shows in a frontend of a listener without TLS.
#[cfg(test)]
pub(in crate::config) static PLAIN_FRONTEND: Level =
    Level { what: "a frontend", groups: FRONTEND_GROUPS.split_at(8).0 };

/// What a frontend says but of TLS.
pub(in crate::config) const FRONTEND_RULE: &[Key] = &affecting(
    Effect::Routes,
    [
        key("path", AnyText, "\"\"", Yes, "Which paths, as `path_type` says; without the query."),
        key(
            "path_type",
            Choice(&["PREFIX", "EQUALS", "REGEX"]),
            "\"PREFIX\"",
            Yes,
            "How `path` is compared; a regular expression must match the whole path.",
        ),
        key(
            "redirect",
            Choice(Redirect::WORDS),
            "\"forward\"",
            Yes,
            "`forward` to a backend; redirect with 301 (`permanent`), 302 (`found`), 307 (`temporary_redirect`) or 308 (`permanent_redirect`); refuse with 401 (`unauthorized`); or close the connection without an answer (`silent_close`).",
        ),
        key(
            "header_predicates",
            Tables(&PREDICATE),
            "[]",
            Yes,
            "What fields of the request must be, 64 at most; all must hold. Of rules for the same host, path and method, those that ask for more go first.",
        ),
        key(
            "query_predicates",
            Tables(&PREDICATE),
            "[]",
            Own,
            "The same of parameters of the query, decoded once.",
        ),
        key("cookie_predicates", Tables(&PREDICATE), "[]", Own, "The same of cookies."),
        key("tags", TextMap, "", NotYet, "Words that are copied to the access log."),
        key(
            "redirect_template",
            Response,
            "",
            Yes,
            "The whole response of a redirect: a text, or `file://` and a path. It goes before `answers`.",
        ),
        key(
            "headers",
            Tables(&HEADER),
            "[]",
            Yes,
            "Fields to add, replace or remove, 64 at most: first all that go, then those that come, in their order.",
        ),
        key(
            "split",
            Tables(&SPLIT),
            "[]",
            Own,
            "Clusters among which requests are divided by weight, in the place of the one that the frontend stands in; 64 at most.",
        ),
        RATE_LIMITS,
    ],
);

/// Where rate limits stand.
pub(super) const RATE_LIMITS: Key = key(
    "rate_limits",
    Tables(&RATE_LIMIT),
    "[]",
    Own,
    "How many requests may come in a time. Those of the listener are judged first, then those of the frontend, then those of the cluster; the first that refuses ends it.",
);

/// `rate_limits = [{ ... }]`.
pub(in crate::config) static RATE_LIMIT: Level =
    Level { what: "a rate limit", groups: &[RateLimit::REQUIRED, RateLimit::OWN] };

/// `[[clusters.ID.frontends.header_predicates]]`, and the same of queries and cookies.
pub(in crate::config) static PREDICATE: Level =
    Level { what: "a predicate", groups: &[Predicate::REQUIRED, Predicate::OWN] };

/// `[[clusters.ID.frontends.headers]]`.
pub(in crate::config) static HEADER: Level =
    Level { what: "a header edit", groups: &[HeaderEdit::REQUIRED, HeaderEdit::OWN] };

/// `[[clusters.ID.frontends.split]]`.
pub(in crate::config) static SPLIT: Level =
    Level { what: "a cluster of `split`", groups: &[SplitPart::REQUIRED] };

/// `[[clusters.ID.backends]]`.
pub(in crate::config) static BACKEND: Level =
    Level { what: "a backend", groups: &[Backend::REQUIRED, UNIX_PATH, Backend::OWN] };

const UNIX_PATH: &[Key] = &affecting(
    Effect::Backends,
    [key(
        "unix_path",
        BackendSocket,
        "",
        Yes,
        "The unix socket on which it listens: an absolute path, or `@name` for one without a file, which only new workers reach where it is the first one (`reload --workers`). Its `address` is but its name then, where it has no `backend_id`.",
    )],
);

/// `[clusters.ID.passive]`.
pub(in crate::config) static PASSIVE: Level = Level { what: "`passive`", groups: &[Passive::OWN] };

/// `[clusters.ID.health_check]`.
pub(in crate::config) static HEALTH_CHECK: Level = Level {
    what: "a health check",
    groups: &[
        HealthCheck::OWN,
        &[
            key(
                "tls",
                Table(&BACKEND_TLS),
                "",
                Own,
                "Probes are made by TLS, with the keys of `backend_tls`. Without it: as requests are.",
            ),
            key("headers", Tables(&PROBE_HEADER), "[]", Yes, "Fields of the request, 32 at most."),
        ],
    ],
};

/// `[[clusters.ID.health_check.headers]]`.
pub(in crate::config) static PROBE_HEADER: Level =
    Level { what: "a field of a health check", groups: &[ProbeHeader::REQUIRED] };

/// `[clusters.ID.udp]`.
pub(in crate::config) static UDP: Level = Level {
    what: "`udp`",
    groups: &[&[
        key(
            "affinity_key",
            Choice(&["SOURCE_IP", "SOURCE_IP_PORT"]),
            "\"SOURCE_IP\"",
            NotYet,
            "What makes a flow.",
        ),
        key("responses", Integer(0, U32), "0", NotYet, "A flow ends after so many answers; 0 = never."),
        key("requests", Integer(0, U32), "0", NotYet, "A flow ends after so many requests; 0 = never."),
        key("send_proxy_protocol", Bool, "false", NotYet, "Begin each flow with a PROXY protocol header."),
        key("proxy_protocol_every_datagram", Bool, "false", NotYet, "Put that header in every datagram."),
        key("health", Table(&UDP_HEALTH), "", NotYet, "Asks each backend regularly whether it is well."),
    ]],
};

/// `[clusters.ID.udp.health]`.
pub(in crate::config) static UDP_HEALTH: Level = Level {
    what: "`udp.health`",
    groups: &[&[
        key("mode", Choice(&["TCP_PROBE", "UDP_PROBE", "HEALTH_OFF"]), "", NotYet, "How it is asked."),
        key("tcp_port", Integer(0, 65_535), "", NotYet, "Port of a TCP probe."),
        key("rise", Integer(0, U32), "2", NotYet, "Good answers after which a backend is used again."),
        key("fall", Integer(0, U32), "3", NotYet, "Bad answers after which a backend is not used."),
        key("fail_open", Bool, "true", NotYet, "Use all backends when none is well."),
        key("udp_probe_payload", AnyText, "", NotYet, "What a UDP probe sends."),
        key("probe_interval_seconds", Integer(0, U32), "5", NotYet, "Between two questions (s)."),
        key("probe_timeout_seconds", Integer(0, U32), "2", NotYet, "Deadline of the answer (s)."),
    ]],
};

const U32: u64 = u32::MAX as u64;
