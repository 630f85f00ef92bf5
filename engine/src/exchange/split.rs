//! Clusters among which a rule divides its requests.

use std::{
    hash::{Hash, Hasher},
    rc::Rc,
};

use kakehi_ctl::state::{self, RateKey};

use crate::{
    http::Asked,
    upstream::{Cluster, split_point, split_point_of_client},
};

/// The clusters, each with its share.
pub(crate) struct Split {
    /// Those without a share are left out.
    parts: Box<[Part]>,
    key: Option<RateKey>,
}

struct Part {
    /// The sum of the weights up to this one.
    until: u64,
    cluster: Rc<Cluster>,
}

impl Split {
    /// That of a configuration, which has checked it; `None` if no cluster is there.
    pub(crate) fn compile<'c>(
        split: &state::Split,
        find: impl Fn(&str) -> Option<&'c Rc<Cluster>>,
    ) -> Option<Rc<Split>> {
        let mut until = 0;
        let mut parts = Vec::with_capacity(split.parts.len());
        for part in split.parts.iter().filter(|part| part.weight > 0) {
            if let Some(cluster) = find(&part.cluster) {
                until += u64::from(part.weight);
                parts.push(Part { until, cluster: Rc::clone(cluster) });
            }
        }
        (!parts.is_empty()).then(|| Rc::new(Split { parts: parts.into(), key: split.key.clone() }))
    }

    /// The cluster of a request; `random` is asked where nothing keeps it at one.
    pub(crate) fn choose(&self, asked: &impl Asked, random: impl FnOnce() -> u64) -> &Rc<Cluster> {
        let named = match &self.key {
            None | Some(RateKey::Route) => return self.at(random()),
            Some(RateKey::Header(name)) => asked.field(name),
            Some(RateKey::Cookie(name)) => asked.cookie(name),
            Some(RateKey::Source) => None,
        };
        self.at(named.map_or_else(|| split_point_of_client(asked.client()), split_point))
    }

    /// The cluster at a point of all that there are.
    fn at(&self, point: u64) -> &Rc<Cluster> {
        // It has a part.
        let all = self.parts[self.parts.len() - 1].until;
        // Below the sum, which has 32 bits at most.
        let place = ((u128::from(point) * u128::from(all)) >> 64) as u64;
        let at = self.parts.partition_point(|part| part.until <= place);
        &self.parts[at].cluster
    }

    /// Each cluster with its weight.
    pub(crate) fn shares(&self) -> impl Iterator<Item = (u64, &Rc<Cluster>)> {
        let before = std::iter::once(0).chain(self.parts.iter().map(|part| part.until));
        self.parts.iter().zip(before).map(|(part, before)| (part.until - before, &part.cluster))
    }

    /// Whether it sends requests to `cluster`.
    pub(crate) fn names(&self, cluster: &Rc<Cluster>) -> bool {
        self.parts.iter().any(|part| Rc::ptr_eq(&part.cluster, cluster))
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Part) -> bool {
        self.until == other.until && Rc::ptr_eq(&self.cluster, &other.cluster)
    }
}

impl PartialEq for Split {
    fn eq(&self, other: &Split) -> bool {
        self.key == other.key && self.parts == other.parts
    }
}

impl Hash for Split {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
        self.parts.iter().for_each(|part| (part.until, Rc::as_ptr(&part.cluster)).hash(state));
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use kakehi_ctl::state::SplitPart;

    use super::*;

    struct Of(Option<IpAddr>, Option<&'static str>);

    impl Asked for Of {
        fn client(&self) -> Option<IpAddr> {
            self.0
        }

        fn cookie(&self, name: &str) -> Option<&[u8]> {
            self.1.filter(|_| name == "user").map(str::as_bytes)
        }
    }

    fn clusters() -> Vec<Rc<Cluster>> {
        let cluster = |name: &str| Rc::new(Cluster::checked(name, &state::Cluster::default()).unwrap());
        ["a", "b", "c"].map(cluster).to_vec()
    }

    fn split(clusters: &[Rc<Cluster>], weights: &[(&str, u32)], key: Option<RateKey>) -> Rc<Split> {
        let part = |(name, weight): &(&str, u32)| SplitPart { cluster: (*name).to_owned(), weight: *weight };
        let split = state::Split { key, parts: weights.iter().map(part).collect() };
        Split::compile(&split, |name| clusters.iter().find(|it| &*it.name == name)).unwrap()
    }

    #[test]
    fn shares_are_by_weight_from_the_first_point_to_the_last() {
        let clusters = clusters();
        let split = split(&clusters, &[("a", 90), ("b", 0), ("c", 10)], None);
        let at = |point: u64| split.choose(&Of(None, None), || point).name.to_string();
        assert_eq!((at(0).as_str(), at(u64::MAX).as_str()), ("a", "c"));
        let tenth = u64::MAX / 10;
        assert_eq!((at(9 * tenth - 9).as_str(), at(9 * tenth + 9).as_str()), ("a", "c"));
        let shares: Vec<_> =
            split.shares().map(|(share, cluster)| (share, cluster.name.to_string())).collect();
        assert_eq!(shares, [(90, "a".to_owned()), (10, "c".to_owned())]);
    }

    #[test]
    fn a_key_stays_where_it_is_and_more_weight_takes_nobody_back() {
        let clusters = clusters();
        let key = || Some(RateKey::Source);
        let (few, more) = (
            split(&clusters, &[("a", 95), ("b", 5)], key()),
            split(&clusters, &[("a", 80), ("b", 20)], key()),
        );
        let (mut before, mut after) = (0, 0);
        for number in 0..20_000_u32 {
            let of = Of(Some(IpAddr::from(number.to_be_bytes())), None);
            let chance = || panic!("it has a key");
            let is_there = few.choose(&of, chance).name == clusters[1].name;
            let stays = more.choose(&of, chance).name == clusters[1].name;
            assert!(!is_there || stays, "{number}");
            before += u32::from(is_there);
            after += u32::from(stays);
        }
        assert!((900..1_100).contains(&before) && (3_800..4_200).contains(&after), "{before} {after}");
    }

    #[test]
    fn who_has_no_cookie_is_told_by_its_address() {
        let clusters = clusters();
        let by_cookie = split(&clusters, &[("a", 1), ("b", 1)], Some(RateKey::Cookie("user".to_owned())));
        let by_address = split(&clusters, &[("a", 1), ("b", 1)], Some(RateKey::Source));
        let chance = || panic!("it has a key");
        let mut seen = [0; 2];
        for number in 0..256_u32 {
            let address = Some(IpAddr::from(number.to_be_bytes()));
            let without = Of(address, None);
            assert!(Rc::ptr_eq(by_cookie.choose(&without, chance), by_address.choose(&without, chance)));
            let ann = by_cookie.choose(&Of(address, Some("ann")), chance);
            seen[usize::from(ann.name == clusters[0].name)] += 1;
        }
        assert!(seen.contains(&256), "whoever has the cookie goes one way: {seen:?}");
        // A contract: whoever changes the hash sends the clients of every site elsewhere.
        assert_eq!(split_point(b"ann"), 0xb535_4654_7385_48c7);
    }

    #[test]
    fn splits_are_the_same_that_do_the_same() {
        let clusters = clusters();
        let of = |weights: &[(&str, u32)], key| split(&clusters, weights, key);
        let one = of(&[("a", 1), ("b", 2)], None);
        assert!(one == of(&[("a", 1), ("b", 2), ("c", 0)], None));
        assert!(one != of(&[("a", 2), ("b", 1)], None) && one != of(&[("a", 1), ("c", 2)], None));
        assert!(one != of(&[("a", 1), ("b", 2)], Some(RateKey::Source)));
        assert!(one.names(&clusters[0]) && !one.names(&clusters[2]));
    }
}
