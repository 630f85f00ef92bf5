//! How many requests may come in a time: one bucket per key, in the table of the ledger.

use std::net::IpAddr;

use kakehi_ctl::state::{RateKey, RateLimit};

use super::{host_ns, name};
use crate::{
    http::{Asked, Networks},
    ledger::{Capacity, Key, Ledger},
    observe::{Counter, Counters},
};

/// The rate limits of one place, in their order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rates(Vec<Rate>);

#[derive(Debug, PartialEq, Eq)]
struct Rate {
    /// Of the limit, in the table.
    name: u64,
    key: RateKey,
    capacity: Capacity,
    status: u16,
    exempt: Networks,
    dry_run: bool,
}

/// A request is more than a limit lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Status of the answer.
    pub(crate) status: u16,
    /// When there is room again, in seconds.
    pub(crate) retry_after: u32,
}

impl Rates {
    /// Those of a place; `None` if there are none. Of two that count by the same key each has buckets of its own.
    pub(super) fn new(place: &str, limits: &[RateLimit]) -> Option<Rates> {
        let rate = |(at, limit): (usize, &RateLimit)| {
            let same = limits[..at].iter().filter(|other| other.key == limit.key).count();
            let key = limit.key.to_string();
            let interval = (limit.per_ms.saturating_mul(1_000_000) / u64::from(limit.rate.max(1))).max(1);
            let burst = u64::from(limit.burst.unwrap_or(limit.rate));
            Rate {
                name: name(&[place, &key, &same.to_string()]),
                key: limit.key.clone(),
                // Half of an interval more, so that who is a little late now and then gets the whole rate.
                capacity: Capacity {
                    interval,
                    tolerance: interval.saturating_mul(burst).saturating_add(interval / 2),
                },
                status: limit.status,
                exempt: Networks::new(&limit.exempt),
                dry_run: limit.dry_run,
            }
        };
        let rates: Vec<_> = limits.iter().enumerate().map(rate).collect();
        (!rates.is_empty()).then_some(Rates(rates))
    }

    /// How long the limits of a state may have something to remember, told to the table.
    pub(crate) fn expect(limits: &[RateLimit], table: &Ledger) {
        for rate in Rates::new("", limits).iter().flat_map(|rates| &rates.0) {
            table.expect(rate.capacity);
        }
    }

    /// What each would say of a request, without counting it.
    pub(crate) fn look(&self, asked: &impl Asked, table: &Ledger) -> Vec<Seen> {
        let now = host_ns();
        let seen = |rate: &Rate| {
            let Capacity { interval, tolerance } = rate.capacity;
            let level = table.level(rate.bucket(asked, table), rate.capacity, now);
            let wait = level.saturating_sub(tolerance);
            Seen {
                key: rate.key.to_string(),
                used: level.div_ceil(interval),
                most: tolerance / interval + 1,
                dry_run: rate.dry_run,
                refused: (wait > 0).then(|| rate.refused(wait)),
            }
        };
        self.0.iter().filter(|rate| !rate.exempts(asked)).map(seen).collect()
    }

    /// Counts a request; those limits that stand before one that refuses keep what they have counted.
    ///
    /// # Errors
    /// When one of them refuses it.
    pub(crate) fn judge(
        &self,
        asked: &impl Asked,
        table: &Ledger,
        counters: &Counters,
    ) -> Result<(), Refused> {
        let now = host_ns();
        for rate in &self.0 {
            if rate.exempts(asked) {
                continue;
            }
            let Err(wait) = table.fill(rate.bucket(asked, table), rate.capacity, now) else { continue };
            if rate.dry_run {
                counters.count(Counter::RateDryRuns);
                continue;
            }
            return Err(rate.refused(wait));
        }
        Ok(())
    }
}

/// What a limit says of a request that is not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// What it counts by.
    pub(crate) key: String,
    /// Requests for which there is no room at present.
    pub(crate) used: u64,
    /// Of so many.
    pub(crate) most: u64,
    /// It refuses nobody.
    pub(crate) dry_run: bool,
    /// It would refuse this one.
    pub(crate) refused: Option<Refused>,
}

impl Rate {
    /// Whether the client is one that is not limited.
    fn exempts(&self, asked: &impl Asked) -> bool {
        asked.client().is_some_and(|client| self.exempt.contains(client))
    }

    /// What counts a request.
    fn bucket(&self, asked: &impl Asked, table: &Ledger) -> Key {
        let named = match &self.key {
            RateKey::Header(name) => asked.field(name),
            RateKey::Cookie(name) => asked.cookie(name),
            RateKey::Route => Some(&b""[..]),
            RateKey::Source => None,
        };
        match named {
            Some(value) if self.key == RateKey::Route => table.key(self.name, &[b"=", value]),
            Some(value) => table.chosen_key(self.name, &[b"=", value]),
            None => table.key(self.name, &[b"@", source(asked.client()).bytes()]),
        }
    }

    /// The answer where there is room in so long only (ns).
    fn refused(&self, wait: u64) -> Refused {
        let seconds = u32::try_from(wait.div_ceil(1_000_000_000)).unwrap_or(u32::MAX);
        Refused { status: self.status, retry_after: seconds.max(1) }
    }
}

/// What is one source: an address of IPv4, and of IPv6 what one subscriber has, a /64.
pub(super) struct SourceBytes {
    bytes: [u8; 9],
    length: usize,
}

impl SourceBytes {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// That of a client; all whose address is not known are one.
pub(super) fn source(client: Option<IpAddr>) -> SourceBytes {
    let mut source = SourceBytes { bytes: [0; 9], length: 1 };
    match client.map(|client| client.to_canonical()) {
        None => {}
        Some(IpAddr::V4(address)) => {
            (source.bytes[0], source.length) = (4, 5);
            source.bytes[1..5].copy_from_slice(&address.octets());
        }
        Some(IpAddr::V6(address)) => {
            (source.bytes[0], source.length) = (6, 9);
            source.bytes[1..9].copy_from_slice(&address.octets()[..8]);
        }
    }
    source
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request(&'static str, Option<&'static [u8]>);

    impl Asked for Request {
        fn client(&self) -> Option<IpAddr> {
            self.0.parse().ok()
        }

        fn path(&self) -> &[u8] {
            b"/"
        }

        fn field(&self, _: &str) -> Option<&[u8]> {
            self.1
        }

        fn cookie(&self, _: &str) -> Option<&[u8]> {
            None
        }
    }

    fn limit(key: &str, burst: u32) -> RateLimit {
        RateLimit { key: key.parse().unwrap(), burst: Some(burst), per_ms: 3_600_000, ..RateLimit::default() }
    }

    /// How many of ten requests each of `requests` gets through.
    fn through(limits: &[RateLimit], requests: &[Request]) -> Vec<usize> {
        let (supervisor, _file) = Ledger::create(c"test", 1024).unwrap();
        let counters = Counters::create(c"test").unwrap().0;
        let rates = Rates::new("here", limits).unwrap();
        let admitted =
            |request| (0..10).filter(|_| rates.judge(request, &supervisor, &counters).is_ok()).count();
        requests.iter().map(admitted).collect()
    }

    #[test]
    fn each_key_has_a_bucket_of_its_own() {
        let clients = || [Request("192.0.2.1", None), Request("192.0.2.2", None), Request("192.0.2.1", None)];
        assert_eq!(through(&[limit("source", 3)], &clients()), [4, 4, 0]);
        assert_eq!(through(&[limit("route", 3)], &clients()), [4, 0, 0]);
        let six = [
            Request("2001:db8::1", None),
            Request("2001:db8::ffff:1", None),
            Request("2001:db8:0:1::1", None),
        ];
        assert_eq!(through(&[limit("source", 3)], &six), [4, 0, 4]);
        let mapped = [Request("::ffff:192.0.2.1", None), Request("192.0.2.1", None), Request("", None)];
        assert_eq!(through(&[limit("source", 3)], &mapped), [4, 0, 4]);
        let users = [
            Request("192.0.2.1", Some(b"a")),
            Request("192.0.2.1", Some(b"b")),
            Request("192.0.2.9", Some(b"a")),
        ];
        assert_eq!(through(&[limit("header:x-user", 3)], &users), [4, 4, 0]);
        // Without the field it counts by its source, whatever values others send.
        let forged = [Request("192.0.2.1", None), Request("192.0.2.1", Some(b"@\x04\xc0\x00\x02\x01"))];
        assert_eq!(through(&[limit("header:x-user", 3)], &forged), [4, 4]);
    }

    #[test]
    fn the_first_that_refuses_ends_it_and_those_before_have_counted() {
        let one = || [Request("192.0.2.1", None)];
        assert_eq!(through(&[limit("source", 5), limit("route", 1)], &one()), [2]);
        let (supervisor, _file) = Ledger::create(c"test", 1024).unwrap();
        let counters = Counters::create(c"test").unwrap().0;
        let rates = Rates::new("here", &[limit("source", 3), limit("route", 1)]).unwrap();
        let refused = (0..6).filter_map(|_| rates.judge(&one()[0], &supervisor, &counters).err()).count();
        assert_eq!(refused, 4);
        // The first limit is used up by then, too.
        let alone = Rates::new("here", &[limit("source", 3)]).unwrap();
        assert!(alone.judge(&one()[0], &supervisor, &counters).is_err());
    }

    #[test]
    fn whoever_is_exempt_is_not_counted_and_a_dry_run_refuses_nobody() {
        let exempt = RateLimit { exempt: vec!["192.0.2.0/24".parse().unwrap()], ..limit("route", 0) };
        let clients = [Request("192.0.2.1", None), Request("198.51.100.1", None)];
        assert_eq!(through(&[exempt], &clients), [10, 1]);
        let dry = RateLimit { dry_run: true, ..limit("route", 0) };
        assert_eq!(through(&[dry], &[Request("192.0.2.1", None)]), [10]);
    }

    #[test]
    fn a_rate_is_that_of_its_period() {
        let rates = Rates::new("here", &[RateLimit { rate: 100, ..RateLimit::default() }]).unwrap();
        let Capacity { interval, tolerance } = rates.0[0].capacity;
        assert_eq!((interval, tolerance), (10_000_000, 1_005_000_000));
        let huge = RateLimit { rate: 1, per_ms: u64::MAX, burst: Some(u32::MAX), ..RateLimit::default() };
        assert_eq!(Rates::new("here", &[huge]).unwrap().0[0].capacity.tolerance, u64::MAX);
    }
}
