//! Clusters among which a frontend divides its requests.

use super::RateKey;
use crate::keys::keyed;

/// Clusters of one split at most.
pub const MAX_SPLIT_PARTS: usize = 64;
/// The largest weight of one.
const MAX_SPLIT_WEIGHT: u32 = 1_000_000;

keyed! {
    /// One cluster of a split.
    #[derive(Eq, Hash)]
    pub struct SplitPart;
    required {
        /// Its name; required. It must be there, and of `http`.
        "cluster" => cluster: String = String::new(), ClusterName, Own, Routes;
        /// Its share, of the sum of all; required. 0 = nothing is sent there.
        "weight" => weight: u32 = 0, Integer(0, MAX_SPLIT_WEIGHT as u64), Own, Routes;
    }
}

keyed! {
    /// How a frontend divides its requests among clusters, in the place of the one that it stands in.
    #[derive(Eq, Hash)]
    pub struct Split;
    own {
        /// What keeps a client at one cluster of `split`: its address (`source`), a field (`header:NAME`) or a cookie (`cookie:NAME`); who has
        /// none of that name, by its address. Without it each request is sent by chance.
        "split_key" => key: Option<RateKey> = None, LimitKey, Own, Routes;
    }
    beside {
        /// The clusters, in their order.
        parts: Vec<SplitPart> = Vec::new();
    }
}

impl Split {
    /// Why requests cannot be divided so, with the key that is wrong; `None`: they can.
    pub fn unfit(&self) -> Option<(&'static str, &'static str)> {
        if self.parts.len() > MAX_SPLIT_PARTS {
            return Some(("split", "`split` has 64 clusters at most"));
        }
        if self.parts.iter().all(|part| part.weight == 0) {
            return Some(("split", "`split` needs a cluster whose `weight` is above 0"));
        }
        let twice = |(at, part): (usize, &SplitPart)| {
            self.parts[..at].iter().any(|before| before.cluster == part.cluster)
        };
        if self.parts.iter().enumerate().any(twice) {
            return Some(("split", "`split` names a cluster twice: give it the sum of the weights"));
        }
        (self.key == Some(RateKey::Route)).then_some((
            "split_key",
            "`split_key = \"route\"` is the same for all requests: one cluster would get them all",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_divided_is_told_with_its_key() {
        let split = |parts: &[(&str, u32)], key: Option<RateKey>| Split {
            key,
            parts: parts
                .iter()
                .map(|(name, weight)| SplitPart { cluster: (*name).to_owned(), weight: *weight })
                .collect(),
        };
        let key = |split: Split| split.unfit().map(|(key, _)| key);
        assert_eq!(key(split(&[("a", 0), ("b", 1)], Some(RateKey::Source))), None);
        assert_eq!(key(split(&[("a", 1)], None)), None);
        assert_eq!(key(split(&[], None)), Some("split"));
        assert_eq!(key(split(&[("a", 0), ("b", 0)], None)), Some("split"));
        assert_eq!(key(split(&[("a", 1), ("b", 1), ("a", 1)], None)), Some("split"));
        assert_eq!(key(split(&[("a", 1)], Some(RateKey::Route))), Some("split_key"));
        let many: Vec<_> = (0..65).map(|number| (number.to_string(), 1)).collect();
        let many: Vec<_> = many.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
        assert_eq!(key(split(&many, None)), Some("split"));
    }
}
