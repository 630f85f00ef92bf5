//! Hashes by which the same key finds the same backend: on every worker, after every restart, with every version.
//!
//! A key is the XXH64 of its bytes, with seed 0; so is what a backend goes by, its name. Which backend a key prefers is decided by
//! XXH64 over both, 8 bytes each in little-endian order. Whoever changes any of this sends most clients of every site that hashes to
//! another backend.

use twox_hash::XxHash64;

/// The hash of these bytes.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// Where a key stands among all that a split divides: XXH64 with seed 1, which tells nothing of [`hash`].
pub(super) fn point(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(1, bytes)
}

/// How `key` and `backend` go together.
fn hash_pair(key: u64, backend: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&key.to_le_bytes());
    bytes[8..].copy_from_slice(&backend.to_le_bytes());
    hash(&bytes)
}

/// How much `key` prefers a backend of this `weight` (rendezvous hashing with the logarithmic method): the highest score of all has
/// it. A backend that comes, goes, or changes its weight changes no other score. Of weight 0: 0, which is below all others.
pub(super) fn score(key: u64, backend: u64, weight: u64) -> f64 {
    // In the open interval (0, 1).
    let uniform = ((hash_pair(key, backend) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    // Not that of the standard library, which may differ from host to host.
    weight as f64 / -libm::log(uniform)
}

/// A share of 0 to 99 that a key has at a backend, for what begins with a part of the keys.
pub(super) fn percentile(key: u64, backend: u64) -> u64 {
    hash_pair(!key, backend) % 100
}

/// Primes; the larger a table for its backends, the closer are their shares to their weights.
const TABLE_SIZES: [usize; 4] = [4_099, 16_411, 65_537, 262_147];

/// A table of Maglev: which backend has which part of the keys.
#[derive(Debug, Default)]
pub(super) struct Maglev {
    /// Places of backends.
    entries: Box<[u32]>,
}

impl Maglev {
    /// Of backends with a hash of their name, and a weight, each with its place. Those of weight 0 have no part.
    pub(super) fn new(backends: impl Iterator<Item = (u32, u64, u64)>) -> Maglev {
        struct Filler {
            place: u32,
            at: usize,
            skip: usize,
            weight: u64,
            credit: u64,
        }
        let mut backends: Vec<_> = backends.filter(|(_, _, weight)| *weight > 0).collect();
        // Not in the order in which they are configured.
        backends.sort_unstable_by_key(|(_, name, _)| *name);
        let wanted = backends.len() * 128;
        let size = TABLE_SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(TABLE_SIZES[3]);
        let heaviest = backends.iter().map(|(_, _, weight)| *weight).max().unwrap_or(0);
        let mut fillers: Vec<Filler> = backends
            .iter()
            .map(|&(place, name, weight)| Filler {
                place,
                at: (hash_pair(1, name) % size as u64) as usize,
                skip: (hash_pair(2, name) % (size as u64 - 1) + 1) as usize,
                weight,
                credit: 0,
            })
            .collect();
        const FREE: u32 = u32::MAX;
        let mut entries = vec![FREE; if fillers.is_empty() { 0 } else { size }].into_boxed_slice();
        let mut free = entries.len();
        while free > 0 {
            for filler in &mut fillers {
                // In turns, by weight.
                filler.credit += filler.weight;
                if filler.credit < heaviest {
                    continue;
                }
                filler.credit -= heaviest;
                while entries[filler.at] != FREE {
                    filler.at = (filler.at + filler.skip) % size;
                }
                entries[filler.at] = filler.place;
                free -= 1;
                if free == 0 {
                    break;
                }
            }
        }
        Maglev { entries }
    }

    /// The backends in the order in which `key` prefers them, each maybe many times.
    pub(super) fn order(&self, key: u64) -> impl Iterator<Item = u32> {
        let size = self.entries.len();
        let start = if size == 0 { 0 } else { (key % size as u64) as usize };
        // Who has a part besides is told by another step for each key: the keys of a backend that is gone are spread over all.
        let step = if size < 2 { 1 } else { (hash_pair(3, key) % (size as u64 - 1) + 1) as usize };
        (0..size).map(move |number| self.entries[(start + number * step) % size])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u64 = 100_000;

    fn name(number: u64) -> u64 {
        hash(format!("10.0.0.{number}:80").as_bytes())
    }

    fn key(number: u64) -> u64 {
        hash(&number.to_le_bytes())
    }

    fn rendezvous(key: u64, backends: &[(u64, u64)]) -> u64 {
        let score = |it: &&(u64, u64)| score(key, it.0, it.1);
        backends.iter().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap().0
    }

    /// These numbers are a contract: they hold for every version and every host.
    #[test]
    fn hashes_and_choices_are_what_they_were() {
        assert_eq!(hash(b""), 0xef46_db37_51d8_e999);
        assert_eq!(hash(b"192.0.2.1"), 0xb745_e360_0a22_1c61);
        let backends: Vec<_> = (0..5).map(|number| (name(number), 100)).collect();
        let chosen = |key| backends.iter().position(|it| it.0 == rendezvous(key, &backends)).unwrap();
        let chosen: Vec<_> = (0..16).map(|number| chosen(key(number))).collect();
        assert_eq!(chosen, [4, 2, 4, 2, 4, 2, 4, 4, 2, 0, 3, 4, 0, 2, 4, 2]);
        let table = Maglev::new(backends.iter().zip(0..).map(|(it, place)| (place, it.0, it.1)));
        let chosen: Vec<_> = (0..16).map(|number| table.order(key(number)).next().unwrap()).collect();
        assert_eq!(chosen, [1, 3, 0, 0, 4, 0, 3, 3, 2, 1, 2, 0, 3, 3, 0, 0]);
    }

    #[test]
    fn shares_follow_the_weights() {
        let backends: Vec<_> = [300, 100, 200, 400].iter().zip(0..).map(|(w, n)| (name(n), *w)).collect();
        let table = Maglev::new(backends.iter().zip(0..).map(|(it, place)| (place, it.0, it.1)));
        let mut shares = [[0_u64; 4]; 2];
        for number in 0..KEYS {
            let preferred = rendezvous(key(number), &backends);
            shares[0][backends.iter().position(|it| it.0 == preferred).unwrap()] += 1;
            shares[1][table.order(key(number)).next().unwrap() as usize] += 1;
        }
        for shares in shares {
            for (share, (_, weight)) in shares.iter().zip(&backends) {
                let expected = KEYS * weight / 1_000;
                assert!(share.abs_diff(expected) < KEYS / 100, "{shares:?}");
            }
        }
    }

    #[test]
    fn a_backend_that_goes_takes_with_it_its_own_keys_and_few_others() {
        for count in [2_u64, 3, 5, 10, 40, 200] {
            let all: Vec<_> = (0..count).map(|number| (name(number), 100)).collect();
            let left: Vec<_> = all[1..].to_vec();
            let table = |backends: &[(u64, u64)], first: u32| {
                Maglev::new(backends.iter().zip(first..).map(|(it, place)| (place, it.0, it.1)))
            };
            let (before, after) = (table(&all, 0), table(&left, 1));
            let (mut moved, mut to_first) = (0, vec![0; count as usize]);
            for number in 0..KEYS / 10 {
                let key = key(number);
                let (old, new) = (rendezvous(key, &all), rendezvous(key, &left));
                assert!(old == new || old == all[0].0, "a key of another backend has moved");
                let was = before.order(key).next().unwrap();
                moved += u64::from(was != after.order(key).next().unwrap());
                // The same where it cannot be used for a while.
                if was == 0 {
                    to_first[before.order(key).find(|place| *place != 0).unwrap() as usize] += 1;
                }
            }
            let most = (KEYS / 10) * (100 + 3 * count) / (100 * count);
            assert!(moved <= most, "{moved} of {} with {count}", KEYS / 10);
            assert!(to_first[1..].iter().all(|it| *it > 0) || count > 10, "{to_first:?}");
        }
    }

    #[test]
    fn what_has_no_weight_or_is_not_there_gets_nothing() {
        assert_eq!(Maglev::new([].into_iter()).order(7).next(), None);
        assert_eq!(Maglev::new([(0, 1, 0)].into_iter()).order(7).next(), None);
        let table = Maglev::new([(0, 1, 0), (1, 2, 1)].into_iter());
        assert!((0..100).all(|key| table.order(key).next() == Some(1)));
        assert!(score(1, 2, 0) < score(1, 3, 1));
    }
}
