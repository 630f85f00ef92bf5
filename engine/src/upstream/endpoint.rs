//! An endpoint: a configured backend with what this worker knows of it.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
};

use kakehi_ctl::{
    order::{BackendLoad, ClosedSessions},
    state::{Backend, BackendAddress},
};
use socket2::SockAddr;

use super::{
    balance::{Health, Start},
    ejection,
    hashing::hash,
    load::Load,
    names::Name,
    pool::{IdlePool, Pooling},
    queue::Queue,
    verdicts::Verdicts,
};
use crate::{observe::LogLimit, tls::Failure};

/// A backend with what this worker knows of it. One of the same name and address stays the same through all changes.
pub struct Endpoint {
    /// Its name in the configuration.
    pub id: String,
    pub(super) address: SockAddr,
    /// The name that its certificate must have where the cluster says none: of one that was found by a name.
    pub(super) server_name: Option<Box<str>>,
    pub(super) health: Health,
    pub(super) verdicts: Verdicts,
    pub(super) load: Load,
    pub(super) start: Start,
    /// Of its name.
    pub(super) hash: u64,
    pub(super) idle: RefCell<IdlePool>,
    /// It is in the configuration no more: it finishes what it has, and keeps no idle connections.
    pub(super) retired: Cell<bool>,
    /// How often its sessions were closed by hand.
    pub(super) dismissals: Cell<u32>,
    /// Connections to it that are being made.
    pub(super) opening: Cell<u32>,
    /// Who waits for room in it.
    queue: RefCell<Option<Rc<Queue>>>,
    /// That a handshake with it has failed was said.
    tls_failed: Cell<bool>,
    /// Lines of the log about its responses.
    complaints: LogLimit,
}

/// Where a backend is.
pub(super) struct Place {
    pub(super) address: SockAddr,
    /// As [`Endpoint::server_name`].
    pub(super) server_name: Option<Box<str>>,
}

impl Place {
    /// That of a backend; `None`: it has a name, of which no address is known.
    pub(super) fn of(backend: &Backend) -> Option<io::Result<Place>> {
        let own = |address| Place { address, server_name: None };
        Some(match &backend.address {
            BackendAddress::Ip(address) => Ok(own(SockAddr::from(*address))),
            BackendAddress::Unix(path) => SockAddr::unix(BackendAddress::socket_path(path)).map(own),
            BackendAddress::Resolved(it) => {
                Ok(Place { address: SockAddr::from(it.address), server_name: Some(it.server_name.clone()) })
            }
            BackendAddress::Name(_) => return None,
        })
    }

    /// True if `endpoint` is there.
    pub(super) fn is_of(&self, endpoint: &Endpoint) -> bool {
        endpoint.address == self.address && endpoint.server_name == self.server_name
    }
}

impl Endpoint {
    /// True if the log may take a line about the backend; how many were left out since the last.
    pub fn admit_complaint(&self, now: u64) -> Option<u32> {
        self.complaints.admit(now)
    }

    /// The backend `id` of `cluster`; one that probes call dead, if `probe_down`.
    pub(super) fn new(
        cluster: &str,
        id: &str,
        Place { address, server_name }: Place,
        probe_down: bool,
    ) -> Endpoint {
        Endpoint {
            id: id.to_owned(),
            address,
            server_name,
            health: Health::default(),
            verdicts: Verdicts::with_probe_down(probe_down),
            load: Load::named(Name::backend(cluster, id)),
            start: Start::default(),
            hash: hash(id.as_bytes()),
            idle: RefCell::default(),
            retired: Cell::new(false),
            dismissals: Cell::new(0),
            opening: Cell::new(0),
            queue: RefCell::default(),
            tls_failed: Cell::new(false),
            complaints: LogLimit::default(),
        }
    }

    /// Whether it is the backend that is configured under this name, or one of its addresses.
    pub(super) fn is_of(&self, id: &str) -> bool {
        let of_name = self.server_name.as_ref().and_then(|_| self.address.as_socket());
        self.id == id || of_name.is_some_and(|it| self.id.strip_suffix(&format!("-{it}")) == Some(id))
    }

    /// From now on those in `queue` wait for room in it.
    pub(super) fn wait_in(&self, queue: Option<&Rc<Queue>>) {
        self.queue.replace(queue.map(Rc::clone));
    }

    /// It has room for one more than before.
    pub(super) fn on_room(&self) {
        if let Some(queue) = &*self.queue.borrow() {
            queue.call();
        }
    }

    /// Probes say that it is well, or not. One that comes back starts slowly.
    pub(super) fn set_probe(&self, up: bool) {
        if self.verdicts.set_probe(up) {
            self.start.begin();
        }
    }

    /// What it has to do.
    pub(super) fn load(&self, pooling: &Pooling, heeds_ejections: bool) -> BackendLoad {
        let (failures, failing_ms, down_ms) = self.health.seen(pooling.ring.now());
        let ejected = heeds_ejections
            .then(|| ejection::left(self, pooling.host_now(), pooling.ledger.as_ref()))
            .flatten();
        let passed_over_ms = down_ms.max(ejected.map_or(0, |(_, left)| left));
        let failing_ms = ejected.map_or(failing_ms, |(since, _)| since);
        let passed_over_for_ms = if passed_over_ms > 0 { failing_ms } else { 0 };
        let (connections, served) = (self.load.here().connections, self.load.served.get());
        let waiting = self.queue.borrow().as_ref().map_or(0, |queue| queue.length());
        let ejected = ejected.is_some();
        BackendLoad { connections, served, failures, passed_over_ms, ejected, waiting, passed_over_for_ms }
    }

    /// Closes its sessions: idle connections now, the others as those who have them find out ([`Lease::is_dismissed`](super::Lease)).
    pub(super) fn close_sessions(&self, pooling: &Pooling) -> ClosedSessions {
        self.dismissals.set(self.dismissals.get().wrapping_add(1));
        let idle = self.idle.borrow_mut().clear(pooling);
        let here = self.load.here();
        let tunnels = here.connections.saturating_sub(here.requests).into();
        ClosedSessions { idle, tunnels, ending: here.requests.into() }
    }

    pub(super) fn retire(&self, pooling: &Pooling) {
        self.retired.set(true);
        self.idle.borrow_mut().clear(pooling);
    }

    /// An operator has to see why a backend is not used; not with every request.
    pub(super) fn note_tls_failure(&self, failure: &Failure) {
        if self.tls_failed.replace(true) {
            tracing::debug!(backend = %self.id, "no TLS connection: {failure}");
        } else {
            tracing::warn!(backend = %self.id, "no TLS connection: {failure}");
        }
    }
}
