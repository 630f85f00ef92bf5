//! What one place, a listener, a frontend or a cluster, says of how much may come from whom.

use std::net::IpAddr;

use kakehi_ctl::state::{ClusterLimits, Frontend, Listener, PathRule, RateLimit, Sources};

use super::Rates;
use crate::http::Networks;

/// What one place says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    /// Its name, among all places.
    place: String,
    allow: Networks,
    deny: Networks,
    pub(crate) rates: Option<Rates>,
    /// Largest request body (bytes), 0 = no limit; `None`: as elsewhere.
    pub(crate) max_body_size: Option<u64>,
}

impl Guard {
    fn new(
        place: String,
        sources: &Sources,
        rates: &[RateLimit],
        max_body_size: Option<u64>,
    ) -> Option<Guard> {
        let (allow, deny) = (Networks::new(&sources.allow), Networks::new(&sources.deny));
        let rates = Rates::new(&place, rates);
        let says = !allow.is_empty() || !deny.is_empty() || rates.is_some() || max_body_size.is_some();
        says.then_some(Guard { place, allow, deny, rates, max_body_size })
    }

    /// What a listener says; `None`: nothing.
    pub(crate) fn of_listener(listener: &Listener) -> Option<Guard> {
        Guard::new(format!("listener\0{}", listener.address), &listener.sources, &listener.rates, None)
    }

    /// What a frontend of a cluster says; `None`: nothing.
    pub(crate) fn of_frontend(frontend: &Frontend) -> Option<Guard> {
        let limits = frontend.limits.as_deref()?;
        let (kind, path) = match &frontend.path {
            PathRule::Prefix(path) => ("prefix", path),
            PathRule::Equals(path) => ("equals", path),
            PathRule::Regex(path) => ("regex", path),
        };
        let host = frontend.hostname.to_ascii_lowercase();
        let method = frontend.method.as_deref().unwrap_or_default();
        let place = format!("frontend\0{}\0{host}\0{kind}\0{path}\0{method}", frontend.address);
        Guard::new(place, &limits.sources, &limits.rates, limits.max_body_size)
    }

    /// What the cluster of this name says; `None`: nothing but of connections.
    pub(crate) fn of_cluster(name: &str, limits: &ClusterLimits) -> Option<Guard> {
        Guard::new(format!("cluster\0{name}"), &Sources::default(), &limits.rates, limits.max_body_size)
    }

    /// Whether somebody is served here. Whose address is not known is not one of those who are allowed.
    pub(crate) fn admits(&self, client: Option<IpAddr>) -> bool {
        let is_in = |networks: &Networks| client.is_some_and(|client| networks.contains(client));
        !is_in(&self.deny) && (self.allow.is_empty() || is_in(&self.allow))
    }

    /// What kind of place it is: `listener`, `frontend` or `cluster`.
    pub(crate) fn kind(&self) -> &str {
        self.place.split('\0').next().unwrap_or_default()
    }

    /// Whether it lets only some be served.
    pub(crate) fn has_sources(&self) -> bool {
        !self.allow.is_empty() || !self.deny.is_empty()
    }
}
