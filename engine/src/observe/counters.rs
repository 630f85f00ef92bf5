//! The registry of counters: each is declared once, with its name and meaning.

use std::{
    ffi::CStr,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    rc::Rc,
    sync::atomic::AtomicU64,
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    io::Errno,
};

use super::{sys::SharedWords, word};
use crate::http::Reason;

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $kind:ident;)+) => {
        /// A counter of a worker. Its place in the shared block is its place in this list, so new ones go last.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Counter { $($(#[doc = $doc])+ $variant,)+ }

        impl Counter {
            /// All of them, in the order of the block.
            pub const ALL: &[Counter] = &[$(Counter::$variant,)+];

            /// The name under which it is shown.
            pub fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)+ }
            }

            /// A gauge goes up and down and starts from 0 in each process; a counter only goes up.
            pub fn is_gauge(self) -> bool {
                match self { $(Counter::$variant => counters!(@gauge $kind),)+ }
            }
        }
    };
    (@gauge counter) => { false };
    (@gauge gauge) => { true };
}

counters! {
    /// Open client connections.
    Connections = "client.connections", gauge;
    /// Client connections accepted.
    Accepted = "listener.accepted", counter;
    /// Times that accepting paused because `max_connections` were open.
    AcceptCapped = "listener.connection_capped", counter;
    /// Times that accepting paused because the process or the host had no file descriptor left.
    AcceptExhausted = "listener.descriptors_exhausted", counter;
    /// Requests answered, by a backend or by kakehi itself.
    Requests = "http.requests", counter;
    /// Answers of kakehi's own making.
    OwnAnswers = "http.own_answers", counter;
    /// Client connections that broke in the middle of an exchange.
    ClientAborts = "http.client_aborts", counter;
    /// Exchanges cut because the client took no bytes within `front_timeout`.
    ClientStalls = "http.client_stalls", counter;
    /// Responses cut because the backend broke off or stood still inside a body.
    BackendTruncations = "http.backend_truncations", counter;
    /// Idle client connections closed at `front_timeout`.
    IdleTimeouts = "http.idle_timeouts", counter;
    /// Tunnels opened.
    Tunnels = "tunnel.opened", counter;
    /// Open tunnels.
    TunnelsOpen = "tunnel.open", gauge;
    /// Tunnels closed at `tunnel_timeout`.
    TunnelTimeouts = "tunnel.timeouts", counter;
    /// Bytes received from clients.
    BytesIn = "bytes_in", counter;
    /// Bytes sent to clients.
    BytesOut = "bytes_out", counter;
    /// Upstream connections opened.
    UpstreamConnects = "upstream.connects", counter;
    /// Upstream connection attempts that failed.
    UpstreamConnectErrors = "upstream.connect_errors", counter;
    /// Requests that took an idle upstream connection from the pool.
    UpstreamReused = "upstream.reused", counter;
    /// Idle upstream connections.
    UpstreamIdle = "upstream.idle", gauge;
    /// Idle upstream connections thrown away: closed by the backend, sent bytes nobody asked for, or too old.
    UpstreamDiscarded = "upstream.discarded", counter;
    /// Requests sent again on another connection because the pooled one died under them.
    Retries = "upstream.retries", counter;
    /// `io_uring_enter` system calls.
    RingEnters = "ring.enters", counter;
    /// Submission queue entries.
    RingSqes = "ring.sqes", counter;
    /// Completion queue entries.
    RingCqes = "ring.cqes", counter;
    /// Receives that found no buffer.
    RingNoBuffers = "ring.no_buffers", counter;
    /// Times that the completion queue overflowed.
    RingOverflows = "ring.overflows", counter;
    /// Transfers that went over to large private buffers.
    RingBulk = "ring.bulk", counter;
    /// Client connections and tunnels given to the process that took this one's place.
    HandedOver = "client.handed_over", counter;
    /// Client connections and tunnels taken over from the process before.
    TakenOver = "client.taken_over", counter;
    /// Processes of the worker that died and were replaced.
    Restarts = "worker.restarts", counter;
    /// TLS handshakes with clients that were done.
    TlsHandshakes = "tls.handshakes", counter;
    /// Those of them that resumed a session.
    TlsResumed = "tls.resumed", counter;
    /// TLS handshakes that failed because the client went away.
    TlsGone = "tls.handshake.failed.gone", counter;
    /// TLS handshakes that took longer than `handshake_timeout`.
    TlsTimeout = "tls.handshake.failed.timeout", counter;
    /// TLS handshakes without a version, cipher suite, group or kind of key in common.
    TlsNoCommonParameters = "tls.handshake.failed.no_common_parameters", counter;
    /// TLS handshakes without an application protocol in common (ALPN).
    TlsNoCommonProtocol = "tls.handshake.failed.no_common_protocol", counter;
    /// TLS handshakes for a name that no certificate is served for.
    TlsUnknownName = "tls.handshake.failed.unknown_name", counter;
    /// TLS handshakes in which the client had no valid certificate.
    TlsClientCertificate = "tls.handshake.failed.client_certificate", counter;
    /// TLS handshakes that the client gave up with an alert: it does not accept the certificate, for example.
    TlsAlertReceived = "tls.handshake.failed.alert_received", counter;
    /// TLS handshakes that were none: garbage, clear text, messages that are not allowed.
    TlsMalformed = "tls.handshake.failed.malformed", counter;
    /// TLS handshakes with backends that failed.
    UpstreamTlsErrors = "upstream.tls_errors", counter;
    /// Connections that did not begin with a header of the PROXY protocol where one has to be.
    ProxyHeaderErrors = "proxy_protocol.errors", counter;
    /// Connections of peers that may not send a header of the PROXY protocol.
    ProxyPeersRefused = "proxy_protocol.refused", counter;
    /// Connections forwarded as they are, over TCP.
    TcpForwarded = "tcp.forwarded", counter;
    /// Processes of the worker that answered no ping for `worker_liveness`, and were killed.
    Unresponsive = "worker.unresponsive", counter;
    /// Times that accepting paused since a connection could not be accepted, for a reason of the network.
    AcceptErrors = "listener.accept_errors", counter;
    /// Received buffers whose content was moved out of the arena: it was scarce, or the peer that waits for it is slow.
    RingSpilled = "ring.buffers_spilled", counter;
    /// Private memory that bodies take (bytes).
    BodyMemory = "body_memory.in_use", gauge;
    /// Private buffers that `body_memory` did not allow.
    BodyMemoryRefused = "body_memory.refused", counter;
    /// Upstream connections that became those of one client, because NTLM or Negotiate authenticates the connection.
    UpstreamBound = "upstream.bound", counter;
    /// TLS handshakes that had to wait because `max_handshakes` were under way.
    TlsDeferred = "tls.handshakes_deferred", counter;
    /// Times that heavy work (a step of a handshake, a piece of a reload) had to wait for a later turn of the loop.
    RingDeferred = "ring.deferred", counter;
    /// Backends that were passed over because of how they answered.
    UpstreamEjections = "upstream.ejections", counter;
    /// Requests that would have been sent again, had `retry_budget` not been spent.
    RetryBudgetSpent = "upstream.retry_budget_spent", counter;
    /// Times that a backend was tried which probes call dead: in a panic, or as nothing else was left.
    ProbesOverruled = "upstream.probes_overruled", counter;
    /// Requests that a rate limit would have refused, were it not for `dry_run`.
    RateDryRuns = "limits.dry_run", counter;
    /// Connections closed as they came, because the listener takes none of their address (`allow`, `deny`).
    SourcesRefused = "listener.sources_refused", counter;
    /// Idle connections closed to make room for new ones (`evict_on_queue_full`).
    Evicted = "client.evicted", counter;
    /// Times that accepting paused because the worker had more to do than it can (`overload_delay`).
    AcceptOverloaded = "listener.overload_paused", counter;
    /// Credentials whose slow hashes (argon2id, bcrypt) were computed.
    AuthenticationComputed = "authentication.computed", counter;
    /// Requests let in since their credentials were right within the last 60 s, without computing them again.
    AuthenticationRemembered = "authentication.remembered", counter;
    /// Requests that wait until slow hashes are computed.
    AuthenticationWaiting = "authentication.waiting", gauge;
}

/// Size of a block (bytes): one page.
const BYTES: usize = 4096;
const WORDS: usize = BYTES / size_of::<u64>();
/// Where the answers by reason start in the block.
const REASONS_AT: usize = 128;
const _: () = assert!(Counter::ALL.len() <= REASONS_AT && REASONS_AT + Reason::ALL.len() <= WORDS);

/// The counters of one worker.
#[derive(Clone)]
pub struct Counters {
    words: Rc<SharedWords>,
}

impl Counters {
    /// A new block, all zero, and the descriptor by which another process maps it, and can write to it, but not shrink it.
    ///
    /// # Errors
    /// Those of `memfd_create`, `ftruncate`, `fcntl` and `mmap`.
    pub fn create(name: &CStr) -> std::io::Result<(Counters, OwnedFd)> {
        let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, BYTES as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Counters::map(&file)?, file))
    }

    /// The block behind a descriptor of [`Counters::create`].
    ///
    /// # Errors
    /// Those of `mmap`; `EINVAL` when `file` is no such block.
    pub fn map(file: &OwnedFd) -> std::io::Result<Counters> {
        Ok(Counters { words: Rc::new(SharedWords::map(file, WORDS)?) })
    }

    /// The block behind a descriptor that another process has handed over. Programs from before the pages were sealed hand over
    /// some that can be cut off under their reader: of such a one, a copy is counted on in.
    ///
    /// # Errors
    /// As for [`Counters::create`] and [`Counters::map`].
    pub fn adopt(file: OwnedFd) -> std::io::Result<(Counters, OwnedFd)> {
        match Counters::map(&file) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {}
            mapped => return Ok((mapped?, file)),
        }
        let mut page = [0; BYTES];
        let read = std::fs::File::from(file).read_at(&mut page, 0)?;
        let (_, copy) = Counters::create(c"kakehi-counters")?;
        let copy = std::fs::File::from(copy);
        copy.write_all_at(&page[..read], 0)?;
        let copy = OwnedFd::from(copy);
        Ok((Counters::map(&copy)?, copy))
    }

    /// Sets the gauges to 0: what a process does when it becomes the writer of the block.
    pub fn reset_gauges(&self) {
        for counter in Counter::ALL.iter().filter(|counter| counter.is_gauge()) {
            word::set(self.word(*counter), 0);
        }
    }

    /// Adds the counters, not the gauges, of a process that has ended.
    pub fn absorb(&self, ended: &Counters) {
        for counter in Counter::ALL.iter().filter(|counter| !counter.is_gauge()) {
            self.add(*counter, ended.get(*counter));
        }
        for reason in Reason::ALL {
            word::add(self.answers_word(*reason), ended.answers(*reason));
        }
    }

    /// The present value.
    pub fn get(&self, counter: Counter) -> u64 {
        word::get(self.word(counter))
    }

    /// Adds one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `amount`.
    pub fn add(&self, counter: Counter, amount: u64) {
        word::add(self.word(counter), amount);
    }

    /// Takes one off a gauge.
    pub fn uncount(&self, counter: Counter) {
        word::subtract(self.word(counter), 1);
    }

    /// Sets a gauge, or a counter that another part of the worker keeps.
    pub fn set(&self, counter: Counter, value: u64) {
        word::set(self.word(counter), value);
    }

    /// Counts an answer of kakehi's own by its reason.
    pub fn count_answer(&self, reason: Reason) {
        self.count(Counter::OwnAnswers);
        word::add(self.answers_word(reason), 1);
    }

    /// How often kakehi answered for this reason.
    pub fn answers(&self, reason: Reason) -> u64 {
        word::get(self.answers_word(reason))
    }

    fn word(&self, counter: Counter) -> &AtomicU64 {
        &self.words.words()[counter as usize]
    }

    fn answers_word(&self, reason: Reason) -> &AtomicU64 {
        &self.words.words()[REASONS_AT + reason.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_stands_in_the_manual() {
        let manual = include_str!("../../../docs/kakehictl.md");
        for counter in Counter::ALL {
            let kind = if counter.is_gauge() { "gauge" } else { "counter" };
            let row = format!("| `{}` | {kind} |", counter.name());
            assert!(manual.contains(&row), "{row}");
        }
    }

    #[test]
    fn a_successor_goes_on_where_its_predecessor_stopped_but_gauges_start_at_zero() {
        let (supervisor, file) = Counters::create(c"test").unwrap();
        let first = Counters::map(&file).unwrap();
        first.add(Counter::Requests, 3);
        first.count(Counter::Connections);
        drop(first);
        let second = Counters::map(&file).unwrap();
        second.reset_gauges();
        second.count(Counter::Requests);
        assert_eq!((supervisor.get(Counter::Requests), supervisor.get(Counter::Connections)), (4, 0));
    }

    #[test]
    fn a_worker_cannot_shrink_the_page_under_the_supervisor_nor_pass_it_one_that_can_be_shrunk() {
        let (supervisor, file) = Counters::create(c"test").unwrap();
        assert_eq!(ftruncate(&file, 0), Err(Errno::PERM));
        assert_eq!(supervisor.get(Counter::Requests), 0);
        let unsealed = memfd_create(c"test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&unsealed, BYTES as u64).unwrap();
        assert!(Counters::map(&unsealed).is_err());
        // What stands in it is copied, and no longer theirs.
        rustix::io::write(&unsealed, &7_u64.to_ne_bytes()).unwrap();
        let (adopted, memory) = Counters::adopt(unsealed.try_clone().unwrap()).unwrap();
        assert_eq!(adopted.get(Counter::ALL[0]), 7);
        assert!(Counters::map(&memory).is_ok());
        ftruncate(&unsealed, 0).unwrap();
        fcntl_add_seals(&unsealed, SealFlags::SHRINK).unwrap();
        assert!(Counters::map(&unsealed).is_err(), "too short");
        assert!(Counters::map(&std::fs::File::open("/dev/null").unwrap().into()).is_err());
    }
}
