//! How much may come from whom: `allow`, `deny`, `rate_limits`, and the limits of frontends and clusters.

use super::{
    super::{
        error::Quoted,
        read::{Section, Values},
    },
    Builder,
};
use crate::state::{ClusterLimits, FrontendLimits, RateKey, RateLimit, Sources};

/// The most rate limits of one place: each request is held against all of them.
const MOST_RATES: usize = 16;

impl Builder<'_, '_> {
    /// From whom a listener or frontend takes requests.
    pub(super) fn sources(&mut self, section: &Section) -> Sources {
        let mut sources = Sources::default();
        sources.read_keys(section, section, self.folder);
        sources
    }

    /// The rate limits of a place that knows requests, or only connections.
    pub(super) fn rates(&mut self, section: &Section, knows_requests: bool) -> Vec<RateLimit> {
        let tables = section.tables("rate_limits");
        if tables.len() > MOST_RATES {
            let reason = format!("there can be {MOST_RATES} rate limits in one place");
            self.findings.unfit(section.offset_of("rate_limits"), reason);
        }
        let mut rates = Vec::with_capacity(tables.len());
        for table in tables {
            if table.entry("rate").is_none() {
                if !table.says("rate") {
                    self.missing(table, "rate");
                }
                continue;
            }
            let mut rate = RateLimit::default();
            rate.read_keys(table, table, self.folder);
            rate.rate = table.integer("rate").and_then(|it| u32::try_from(it).ok()).unwrap_or(1);
            if let (false, RateKey::Header(_) | RateKey::Cookie(_)) = (knows_requests, &rate.key) {
                let key = rate.key.to_string();
                let text = format!(
                    "{} counts by source where connections are passed on, which have neither fields nor cookies",
                    Quoted(&key)
                );
                self.findings.warn(table.offset_of("key"), text);
            }
            rates.push(rate);
        }
        rates
    }

    /// Those of a frontend; `None` if there are none.
    pub(super) fn frontend_limits(
        &mut self,
        section: &Section,
        knows_requests: bool,
    ) -> Option<Box<FrontendLimits>> {
        let mut limits = FrontendLimits::default();
        limits.read_keys(section, section, self.folder);
        limits.sources = self.sources(section);
        limits.rates = self.rates(section, knows_requests);
        (limits != FrontendLimits::default()).then(|| Box::new(limits))
    }

    /// Those of a cluster; `None` if there are none.
    pub(super) fn cluster_limits(
        &mut self,
        section: &Section,
        knows_requests: bool,
    ) -> Option<Box<ClusterLimits>> {
        let mut limits = ClusterLimits::default();
        limits.read_keys(section, section, self.folder);
        limits.rates = self.rates(section, knows_requests);
        if !knows_requests && limits.max_body_size.take().is_some() {
            let text = "`max_body_size` has no effect in a cluster of `tcp`, which knows no requests";
            self.findings.warn(section.offset_of("max_body_size"), text);
        }
        (limits != ClusterLimits::default()).then(|| Box::new(limits))
    }
}
