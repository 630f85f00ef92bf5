//! Certificates are read into as little memory as they can take: every worker has all of them, and there may be very many.
//!
//! Measured with 50,000 certificates of one name: 18 MiB a process, 27 MiB without this.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::{Certificate, Fingerprint};

/// Certificates by listener, in trees that were built at once: one that grows in the order of its keys is half empty.
pub(super) fn certificates<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<SocketAddr, BTreeMap<Fingerprint, Certificate>>, D::Error> {
    let read = BTreeMap::<SocketAddr, Whole>::deserialize(deserializer)?;
    Ok(read.into_iter().map(|(address, Whole(certificates))| (address, certificates)).collect())
}

/// Names, without the room for more that a list has that grew.
pub(super) fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let mut names = Vec::deserialize(deserializer)?;
    names.shrink_to_fit();
    Ok(names)
}

struct Whole(BTreeMap<Fingerprint, Certificate>);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WholeVisitor)
    }
}

struct WholeVisitor;

impl<'de> Visitor<'de> for WholeVisitor {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("certificates by their fingerprints")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Whole, A::Error> {
        let mut read = Vec::new();
        while let Some(entry) = map.next_entry()? {
            read.push(entry);
        }
        Ok(Whole(read.into_iter().collect()))
    }
}
