//! What a state of an earlier program does not say.

use crate::limits;

pub(super) fn yes() -> bool {
    true
}

pub(super) fn body_memory() -> u64 {
    limits::BODY_MEMORY
}

pub(super) fn certificate_watch_interval() -> u64 {
    limits::CERTIFICATE_WATCH_INTERVAL_MS
}

pub(super) fn stop_idle_grace() -> u64 {
    limits::STOP_IDLE_GRACE_MS
}

pub(super) fn worker_timeout() -> u64 {
    limits::WORKER_TIMEOUT_MS
}

pub(super) fn worker_liveness() -> u64 {
    limits::WORKER_LIVENESS_MS
}

pub(super) fn max_handshakes() -> u32 {
    limits::MAX_HANDSHAKES
}

pub(super) fn ticket_key_rotation() -> u64 {
    limits::TICKET_KEY_ROTATION_MS
}
