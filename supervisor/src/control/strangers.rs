//! Those who knock at the command socket and may not use it: what the log says of them, and how it calls others.

use std::time::Duration;

use tokio::{net::UnixStream, time::Instant};

/// Of those who may not use the socket the log tells once in this time.
const STRANGERS_PAUSE: Duration = Duration::from_secs(1);

/// Those who may not use the socket. They may knock as often as they like, and the log is not theirs to fill.
#[derive(Default)]
pub(super) struct Strangers {
    told: Option<Instant>,
    untold: u64,
}

impl Strangers {
    /// One more of them.
    pub(super) fn note(&mut self, who: &str) {
        if self.told.is_some_and(|told| told.elapsed() < STRANGERS_PAUSE) {
            self.untold += 1;
            return;
        }
        self.told = Some(Instant::now());
        match std::mem::take(&mut self.untold) {
            0 => tracing::warn!("{who} may not use the command socket"),
            others => tracing::warn!("{who} may not use the command socket, nor {others} that came before"),
        }
    }
}

/// Who it is, as the kernel knows it.
pub(super) fn describe_peer(stream: &UnixStream) -> String {
    match stream.peer_cred() {
        Ok(peer) => format!("uid {}, pid {}", peer.uid(), peer.pid().map_or(0, |pid| pid)),
        Err(_) => "unknown".to_owned(),
    }
}
