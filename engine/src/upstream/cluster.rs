//! A cluster and its endpoints, compiled: they live on through changes, with all that is known of them.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::{Rc, Weak},
};

use kakehi_ctl::order::{BackendLoad, ClosedSessions};
use kakehi_ctl::state::{self, BackendMode, ClusterLimits, ClusterMode, InitialVerdict, Passive, Retries};

use super::{
    affinity::{Affinity, AffinityRules, Session, opaque},
    balance::Balance,
    connect::ConnectSettings,
    ejection::Answers,
    endpoint::{Endpoint, Place},
    hashing::hash,
    load::{InFlight, Load},
    names::Name,
    pool::Pooling,
    queue::Queue,
    window::Window,
};
use crate::{
    http::{Asked, Templates, Users},
    quota::{Caps, Guard},
    ring::Share,
    tls::{Connector, Context, TlsError},
};

/// Of which time the requests count of which some may be sent again (ms).
const BUDGET_WINDOW_MS: u64 = 10_000;

/// A backend's place in a cluster.
pub(super) struct Member {
    pub(super) backend: Rc<Endpoint>,
    pub(super) weight: u8,
    pub(super) backup: bool,
    /// The most connections in use, on all workers; 0 = no limit.
    pub(super) max_connections: u32,
    /// Where their share matters that are failures.
    pub(super) answers: Option<Rc<Answers>>,
    /// What the operator says of it.
    pub(super) mode: BackendMode,
    /// The hash of its value in the cookie of sticky sessions.
    pub(super) session: u64,
    /// That value, where the cluster has such sessions.
    cookie: Option<Box<str>>,
}

impl Member {
    /// Whether it is neither a backup nor of weight 0.
    pub(super) fn is_primary(&self) -> bool {
        self.weight > 0 && !self.backup
    }
}

/// The backends of a cluster at one time: immutable, and swapped whole.
pub struct Endpoints {
    pub(super) members: Vec<Member>,
    pub(super) balance: Balance,
    /// Requests that wait until one of them has room, where any may.
    pub(super) queue: Option<Rc<Queue>>,
    pub(super) queue_timeout_ms: u64,
    max_requests: u32,
    /// When requests are sent again, where that is not as it would be without keys.
    pub(super) retries: Option<Rc<Retries>>,
    /// Requests, and those of them that were sent again, where any are.
    pub(super) repetitions: Option<Rc<Window>>,
    pub(super) passive: Passive,
    rules: AffinityRules,
    /// How much may come from whom, where that is limited.
    limits: Option<Rc<Limits>>,
    /// Responses of kakehi's own to its requests, if it has some.
    templates: Option<Rc<Templates>>,
    /// Who may use it where a frontend asks, if it says so.
    users: Option<Rc<Users>>,
    /// It takes nothing.
    maintenance: Option<Maintenance>,
    pub(super) settings: ConnectSettings,
    /// There are probes.
    probed: bool,
    /// The cluster consists of others now.
    pub(super) outdated: Cell<bool>,
}

/// Why a cluster cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The path of a unix socket is too long.
    #[error("{0}")]
    Address(#[from] io::Error),
    /// TLS to its backends cannot be set up.
    #[error("`backend_tls`: {0}")]
    Tls(#[from] TlsError),
}

/// A cluster, compiled. It lives as long as its name is configured; what it consists of may change.
pub struct Cluster {
    /// Its name in the configuration.
    pub name: String,
    /// Of the buffers that backends send into.
    pub(super) share: Share,
    pub(super) members: RefCell<Rc<Endpoints>>,
    /// Those that are no members any more, as long as somebody uses them.
    gone: RefCell<Vec<Gone>>,
    /// What it has in flight.
    load: Rc<Load>,
}

/// What clients are told of a cluster that takes nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Maintenance {
    /// `Retry-After`, in seconds; 0 = without.
    pub(crate) retry_after: u32,
}

/// How much a cluster takes from whom.
pub(crate) struct Limits {
    /// What it says of requests.
    pub(crate) guard: Option<Guard>,
    configured: ClusterLimits,
}

/// An endpoint that is no member any more.
struct Gone {
    endpoint: Weak<Endpoint>,
    /// Connections to it are made as then.
    as_now: bool,
}

/// A request or connection that counts at its cluster, as long as this lives.
pub struct Admitted(Option<Rc<Load>>);

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(load) = &self.0 {
            let here = load.here();
            load.set(InFlight { connections: here.connections.saturating_sub(1), ..here });
        }
    }
}

impl Endpoints {
    /// None.
    fn none() -> Endpoints {
        Endpoints {
            members: Vec::new(),
            balance: Balance::default(),
            queue: None,
            queue_timeout_ms: 0,
            max_requests: 0,
            retries: None,
            repetitions: None,
            passive: Passive::default(),
            rules: AffinityRules::default(),
            limits: None,
            templates: None,
            users: None,
            maintenance: None,
            settings: ConnectSettings::default(),
            probed: false,
            outdated: Cell::new(false),
        }
    }

    /// Those of `cluster`, which has this `name`; backends that are `present` already are taken over with all that is known of them.
    ///
    /// Without `tls` it is only checked what can be without the vault.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn new(
        name: &str,
        cluster: &state::Cluster,
        present: Option<&Cluster>,
        tls: Option<&Context>,
    ) -> Result<Endpoints, ClusterError> {
        let gone: Vec<Rc<Endpoint>> = present.map(Cluster::gone_as_now).unwrap_or_default();
        let present = present.map(|cluster| Rc::clone(&cluster.members.borrow()));
        let before = present.clone();
        // Idle connections that were made otherwise are of no use.
        let present = present.filter(|present| {
            present.settings.configured == cluster.tls && present.settings.send_proxy == cluster.send_proxy
        });
        let balancing = cluster.balancing.as_deref().cloned().unwrap_or_default();
        // Not where all are new.
        let starts_slowly = balancing.slow_start_ms > 0
            && present.as_ref().is_some_and(|present| !present.members.is_empty());
        let admission = cluster.admission.as_deref();
        let queue_size = admission.map_or(0, |admission| admission.queue_size);
        // Whoever waits goes on waiting.
        let waiting = present.as_ref().and_then(|present| present.queue.as_ref());
        let queue = (queue_size > 0).then(|| match waiting.filter(|queue| queue.size() == queue_size) {
            Some(queue) => Rc::clone(queue),
            None => Rc::new(Queue::new(name, queue_size)),
        });
        let passive = cluster.passive.as_deref().cloned().unwrap_or_default();
        let same_window = |present: &&Rc<Endpoints>| present.passive.window_ms == passive.window_ms;
        let with_answers = present.as_ref().filter(same_window);
        let retries = cluster.retries.as_deref().cloned().map(Rc::new);
        let counted = present.as_ref().and_then(|present| present.repetitions.as_ref());
        let repeats = retries.as_ref().is_some_and(|retries| !retries.on.is_empty());
        let repetitions = repeats.then(|| match counted {
            Some(counted) => Rc::clone(counted),
            None => Rc::new(Window::new(BUDGET_WINDOW_MS, Name::repetitions(name))),
        });
        let initially_down =
            cluster.health.as_ref().is_some_and(|check| check.initial == InitialVerdict::Down);
        let members: Vec<Member> = cluster
            .backends
            .iter()
            .filter_map(|configured| Some((configured, Place::of(configured)?)))
            .map(|(configured, place)| {
                let place = place?;
                let same = |it: &&Member| it.backend.id == configured.id && place.is_of(&it.backend);
                let known = present.as_ref().and_then(|present| present.members.iter().find(same));
                // What it has still counts, and would not in another one of the same name.
                let came_back = || {
                    let same = |it: &&Rc<Endpoint>| {
                        it.id == configured.id && place.is_of(it) && it.load.is_in_place()
                    };
                    gone.iter().filter(|_| present.is_some()).find(same).map(Rc::clone)
                };
                let backend = match known.map(|known| Rc::clone(&known.backend)).or_else(came_back) {
                    Some(known) => known,
                    None => {
                        // However it was reached: what probes say of it holds.
                        let known = before.as_ref().and_then(|before| before.members.iter().find(same));
                        let down = match known {
                            Some(known) => cluster.health.is_some() && known.backend.verdicts.is_probe_down(),
                            None => initially_down,
                        };
                        let new = Rc::new(Endpoint::new(name, &configured.id, place, down));
                        if starts_slowly {
                            new.start.begin();
                        }
                        new
                    }
                };
                let value = || match &configured.sticky_id {
                    Some(id) => id.clone(),
                    None => opaque(name, &configured.id).into_boxed_str(),
                };
                let cookie = balancing.sticky_session.then(value);
                let session = cookie.as_ref().map_or(0, |value| hash(value.as_bytes()));
                let state::Backend { weight, backup, mode, max_connections, .. } = *configured;
                backend.wait_in(queue.as_ref());
                let is_it = |it: &&Member| Rc::ptr_eq(&it.backend, &backend);
                let answers = (passive.failure_ratio > 0).then(|| {
                    let known = with_answers.and_then(|present| present.members.iter().find(is_it));
                    match known.and_then(|known| known.answers.as_ref()) {
                        Some(answers) => Rc::clone(answers),
                        None => Rc::new(Answers::new(name, &configured.id, &passive)),
                    }
                });
                Ok(Member { backend, weight, backup, max_connections, answers, mode, session, cookie })
            })
            .collect::<io::Result<_>>()?;
        let balance = Balance::new(&balancing, passive.enabled, &members);
        let rules = AffinityRules::new(&balancing, Balance::hashes(&balancing));
        let connector = match (&cluster.tls, tls) {
            (Some(configured), Some(context)) => Some(Connector::compile(context, configured)?),
            _ => None,
        };
        let settings =
            ConnectSettings { configured: cluster.tls.clone(), connector, send_proxy: cluster.send_proxy };
        let queue_timeout_ms = admission.map_or(0, |admission| admission.queue_timeout_ms);
        let max_requests = admission.map_or(0, |admission| admission.max_requests);
        let probed = cluster.health.is_some();
        let limits = cluster.limits.as_deref().map(|configured| {
            Rc::new(Limits { guard: Guard::of_cluster(name, configured), configured: configured.clone() })
        });
        let templates = Templates::compile(&cluster.answers);
        let users = Users::compile(&cluster.users, cluster.www_authenticate.as_deref());
        let maintenance = (cluster.mode == ClusterMode::Maintain)
            .then(|| Maintenance { retry_after: cluster.maintenance_retry_after.unwrap_or(0) });
        Ok(Endpoints {
            members,
            balance,
            queue,
            queue_timeout_ms,
            max_requests,
            retries,
            repetitions,
            passive,
            rules,
            limits,
            templates,
            users,
            maintenance,
            settings,
            probed,
            outdated: Cell::new(false),
        })
    }
}

impl Cluster {
    /// A cluster of the state.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn new(name: &str, cluster: &state::Cluster, tls: Option<&Context>) -> Result<Cluster, ClusterError> {
        Ok(Cluster::of(name, Endpoints::new(name, cluster, None, tls)?))
    }

    /// One without endpoints, for a cluster of the state that is only checked: there may be very many, with many backends.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub fn checked(name: &str, cluster: &state::Cluster) -> Result<Cluster, ClusterError> {
        Endpoints::new(name, cluster, None, None)?;
        Ok(Cluster::of(name, Endpoints::none()))
    }

    fn of(name: &str, members: Endpoints) -> Cluster {
        let members = RefCell::new(Rc::new(members));
        let load = Rc::new(Load::named(Name::cluster(name)));
        let gone = RefCell::default();
        Cluster { name: name.to_owned(), share: Share::of(name), members, gone, load }
    }

    /// How much it takes from whom, where it says so.
    pub(crate) fn limits(&self) -> Option<Rc<Limits>> {
        self.members.borrow().limits.as_ref().map(Rc::clone)
    }

    /// Who may use it where a frontend asks, if it says so.
    pub(crate) fn users(&self) -> Option<Rc<Users>> {
        self.members.borrow().users.as_ref().map(Rc::clone)
    }

    /// What clients are told, if it takes nothing.
    pub(crate) fn maintenance(&self) -> Option<Maintenance> {
        self.members.borrow().maintenance
    }

    /// Whether it has responses of kakehi's own to its requests.
    pub(crate) fn has_templates(&self) -> bool {
        self.members.borrow().templates.is_some()
    }

    /// Responses of kakehi's own to its requests, if it has some.
    pub(crate) fn templates(&self) -> Option<Rc<Templates>> {
        self.members.borrow().templates.as_ref().map(Rc::clone)
    }

    /// How many connections one client may have here, if that is limited.
    pub(crate) fn caps(&self, pooling: &Pooling) -> Option<Caps> {
        let members = self.members.borrow();
        pooling.caps.get().of(members.limits.as_ref().map(|limits| &limits.configured))
    }

    /// Counts a request or connection, as long as what it gives lives; `None` when there are `max_requests` on all workers.
    pub fn admit(&self, pooling: &Pooling) -> Option<Admitted> {
        let most = self.members.borrow().max_requests;
        if most == 0 {
            return Some(Admitted(None));
        }
        let ledger = pooling.ledger.as_ref();
        self.load.slot(ledger);
        let here = self.load.here();
        self.load.set(InFlight { connections: here.connections + 1, ..here });
        let admitted = Admitted(Some(Rc::clone(&self.load)));
        self.load.fits(most, ledger).then_some(admitted)
    }

    /// Whether nobody could answer, whatever is asked.
    pub(crate) fn is_without_backends(&self) -> bool {
        self.members.borrow().members.is_empty()
    }

    /// Requests and connections in flight, and the most that may be; those that wait for room, and the most that may. Of all workers;
    /// what is not limited is left out.
    pub(crate) fn fill(&self, pooling: &Pooling) -> [Option<(u64, u32)>; 2] {
        let members = self.members.borrow();
        let ledger = pooling.ledger.as_ref();
        let in_flight = || self.load.everywhere(ledger).connections.into();
        let admitted = (members.max_requests > 0).then(|| (in_flight(), members.max_requests));
        let queue = members.queue.as_ref();
        [admitted, queue.map(|queue| (queue.length_everywhere(pooling).into(), queue.size()))]
    }

    /// From now on it consists of `members`. Backends that are not among them finish the requests that they have;
    /// their idle connections are closed.
    pub fn replace(&self, members: Endpoints, pooling: &Pooling) {
        let before = self.members.replace(Rc::new(members));
        before.outdated.set(true);
        let now = self.members.borrow();
        self.note_gone(&before, &now);
        if let Some(queue) = &before.queue {
            // Whoever waits looks at what there is now.
            queue.call();
        }
        for Member { backend, mode, .. } in &before.members {
            match now.members.iter().find(|member| Rc::ptr_eq(&member.backend, backend)) {
                None => backend.retire(pooling),
                // It comes back.
                Some(member) if *mode != BackendMode::Ready && member.mode == BackendMode::Ready => {
                    backend.start.begin();
                }
                Some(_) => {}
            }
        }
        for Member { backend, mode, .. } in &now.members {
            if backend.retired.replace(false) {
                backend.start.begin();
            }
            if backend.verdicts.set_mode(*mode) {
                backend.idle.borrow_mut().clear(pooling);
            }
            if !now.probed {
                // Nobody would say that it is well again.
                backend.set_probe(true);
            }
        }
    }

    /// Keeps those of `before` in mind that are not members `now`.
    fn note_gone(&self, before: &Endpoints, now: &Endpoints) {
        let is_member =
            |endpoint: &Rc<Endpoint>| now.members.iter().any(|it| Rc::ptr_eq(&it.backend, endpoint));
        let is_other = before.settings.configured != now.settings.configured
            || before.settings.send_proxy != now.settings.send_proxy;
        let mut gone = self.gone.borrow_mut();
        gone.iter_mut().for_each(|gone| gone.as_now &= !is_other);
        let went = before.members.iter().map(|member| &member.backend).filter(|it| !is_member(it));
        gone.extend(went.map(|it| Gone { endpoint: Rc::downgrade(it), as_now: !is_other }));
        gone.retain(|gone| gone.endpoint.upgrade().is_some_and(|it| !is_member(&it)));
    }

    /// Those that are no members any more, and would be connected to as members are.
    fn gone_as_now(&self) -> Vec<Rc<Endpoint>> {
        self.gone
            .borrow()
            .iter()
            .filter(|gone| gone.as_now)
            .filter_map(|gone| gone.endpoint.upgrade())
            .collect()
    }

    /// What probes say of the backend of this name, if there is one.
    pub fn set_probe(&self, id: &str, up: bool) {
        if let Some(endpoint) = self.endpoint(id) {
            endpoint.set_probe(up);
        }
    }

    /// The backend of this name.
    pub fn endpoint(&self, id: &str) -> Option<Rc<Endpoint>> {
        let members = self.members.borrow();
        members.members.iter().find(|member| member.backend.id == id).map(|member| Rc::clone(&member.backend))
    }

    /// What the backend of this name has to do.
    pub fn load_of(&self, id: &str, pooling: &Pooling) -> Option<BackendLoad> {
        let heeds_ejections = self.members.borrow().passive.enabled;
        self.endpoint(id).map(|endpoint| endpoint.load(pooling, heeds_ejections))
    }

    /// Closes the sessions of the backend of this name, or of all backends. What has become tunnels learns of it when it is woken.
    pub fn close_sessions(&self, id: Option<&str>, pooling: &Pooling) -> ClosedSessions {
        let members = Rc::clone(&self.members.borrow());
        let gone: Vec<_> = self.gone.borrow().iter().filter_map(|gone| gone.endpoint.upgrade()).collect();
        let all = members.members.iter().map(|it| &it.backend).chain(&gone);
        let chosen = all.filter(|endpoint| id.is_none_or(|id| endpoint.is_of(id)));
        chosen
            .map(|endpoint| endpoint.close_sessions(pooling))
            .fold(ClosedSessions::default(), ClosedSessions::plus)
    }

    /// It is configured no more: all its backends go; see [`Cluster::replace`].
    pub fn retire(&self, pooling: &Pooling) {
        self.replace(Endpoints::none(), pooling);
    }

    /// What `request` says of the backend that it belongs to; `sticky_name` is the name of the cookie of sticky sessions.
    pub fn affinity(&self, request: &impl Asked, sticky_name: &str) -> Affinity {
        let members = self.members.borrow();
        if members.rules.is_empty() { Affinity::default() } else { members.rules.read(request, sticky_name) }
    }

    /// Whether it has sticky sessions: their cookie is for nobody else.
    pub fn has_sessions(&self) -> bool {
        self.members.borrow().rules.has_sessions()
    }

    /// The `Set-Cookie` line of a response of `endpoint` to a request with this affinity, if it needs one.
    pub fn session_line(
        &self,
        endpoint: &Rc<Endpoint>,
        affinity: Affinity,
        sticky_name: &str,
        secure: bool,
    ) -> Option<String> {
        let wanted = match affinity.session {
            Session::None => return None,
            Session::New => None,
            Session::With(value) => Some(value.get()),
        };
        let members = self.members.borrow();
        let member = members.members.iter().find(|member| Rc::ptr_eq(&member.backend, endpoint))?;
        let value = member.cookie.as_deref().filter(|_| wanted != Some(member.session))?;
        Some(members.rules.set_cookie(sticky_name, value, secure))
    }

    /// Throws away idle connections that are closed or too old.
    pub fn trim(&self, pooling: &Pooling) {
        for Member { backend, .. } in &self.members.borrow().members {
            backend.idle.borrow_mut().trim(pooling);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(addresses: &[&str]) -> Result<Cluster, ClusterError> {
        let backends = addresses.iter().enumerate().map(|(n, address)| state::Backend {
            id: format!("b{n}"),
            address: address.parse().unwrap(),
            weight: 100,
            ..state::Backend::default()
        });
        Cluster::new(
            "web",
            &state::Cluster { backends: backends.collect(), ..state::Cluster::default() },
            None,
        )
    }

    #[test]
    fn backends_are_compiled_in_the_order_of_the_state() {
        let cluster = cluster(&["127.0.0.1:80", "[::1]:81", "unix:/run/app.sock"]).unwrap();
        assert_eq!(cluster.name, "web");
        let members = cluster.members.borrow();
        let backends = || members.members.iter().map(|member| &member.backend);
        let ids: Vec<_> = backends().map(|backend| backend.id.as_str()).collect();
        assert_eq!(ids, ["b0", "b1", "b2"]);
        let addresses: Vec<_> = backends().map(|backend| &backend.address).collect();
        assert_eq!(addresses[0].as_socket(), "127.0.0.1:80".parse().ok());
        assert_eq!(addresses[1].as_socket(), "[::1]:81".parse().ok());
        assert_eq!(addresses[2].as_pathname(), Some("/run/app.sock".as_ref()));
    }

    #[test]
    fn a_cluster_may_be_without_backends() {
        assert!(cluster(&[]).unwrap().members.borrow().members.is_empty());
    }

    #[test]
    fn a_backend_that_stays_is_the_same_one_with_another_weight() {
        let present = cluster(&["127.0.0.1:80", "127.0.0.1:81"]).unwrap();
        let backend = |id: &str, address: &str, weight| state::Backend {
            id: id.to_owned(),
            address: address.parse().unwrap(),
            weight,
            ..state::Backend::default()
        };
        // The second keeps its name and moves: that is another one.
        let backends = vec![backend("b0", "127.0.0.1:80", 7), backend("b1", "127.0.0.1:82", 100)];
        let wanted = state::Cluster { backends, ..state::Cluster::default() };
        let members = Endpoints::new("web", &wanted, Some(&present), None).unwrap();
        let before = present.members.borrow();
        assert!(Rc::ptr_eq(&members.members[0].backend, &before.members[0].backend));
        assert_eq!(members.members[0].weight, 7);
        assert!(!Rc::ptr_eq(&members.members[1].backend, &before.members[1].backend));
    }

    #[test]
    fn a_socket_path_that_the_kernel_cannot_take_is_an_error() {
        let backend = state::Backend {
            id: "long".to_owned(),
            address: state::BackendAddress::Unix(format!("/{}", "x".repeat(200)).into()),
            weight: 100,
            ..state::Backend::default()
        };
        let configured = state::Cluster { backends: vec![backend], ..state::Cluster::default() };
        assert!(Cluster::new("web", &configured, None).is_err());
    }
}
