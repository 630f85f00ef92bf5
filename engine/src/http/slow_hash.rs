//! Hashes of passwords that take long on purpose: argon2id and bcrypt.
//!
//! Promises: how long a comparison takes follows from the parameters of a hash, not from the password and not from the digest; at most
//! one hash's memory is in use per [`Blocks`]; no digest is shown.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use kakehi_ctl::state::{Argon2id, Bcrypt, PasswordHash};
use zeroize::Zeroizing;

/// Longest password that bcrypt heeds (bytes), with the zero at its end.
const BCRYPT_KEY: usize = 72;
/// Blocks (of 1 KiB) that there is room for at least. What is as large, glibc maps by itself, and does not change for it from which
/// size on it does so (32 MiB at most), which would hold for the whole worker.
const LEAST_ROOM: usize = (32 << 10) + 1;

/// A hash of argon2id or bcrypt.
pub(crate) enum SlowHash {
    Argon2id(Argon2<'static>, Argon2id),
    Bcrypt(Bcrypt),
}

/// What makes a hash slow: two that are alike take the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Parameters {
    Argon2id { memory_kib: u32, passes: u32, lanes: u32, salt: usize, digest: usize },
    Bcrypt { cost: u32 },
}

/// There is no memory for a hash of argon2id.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoMemory;

impl SlowHash {
    /// `None` if it is none of these.
    pub(crate) fn new(hash: PasswordHash) -> Option<SlowHash> {
        match hash {
            PasswordHash::Sha256(_) => None,
            PasswordHash::Argon2id(hash) => {
                let Argon2id { memory_kib, passes, lanes, digest, .. } = &hash;
                let parameters = Params::new(*memory_kib, *passes, *lanes, Some(digest.len())).ok()?;
                Some(SlowHash::Argon2id(Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters), hash))
            }
            PasswordHash::Bcrypt(hash) => Some(SlowHash::Bcrypt(hash)),
        }
    }

    /// One that takes the same time, and is nobody's.
    pub(crate) fn decoy(&self) -> SlowHash {
        match self {
            SlowHash::Argon2id(argon2, hash) => {
                let salt = vec![0; hash.salt.len()].into();
                let digest = vec![0; hash.digest.len()].into();
                SlowHash::Argon2id(argon2.clone(), Argon2id { salt, digest, ..hash.clone() })
            }
            SlowHash::Bcrypt(hash) => {
                SlowHash::Bcrypt(Bcrypt { cost: hash.cost, salt: [0; 16], digest: [0; 23] })
            }
        }
    }

    pub(crate) fn parameters(&self) -> Parameters {
        match self {
            SlowHash::Argon2id(_, hash) => Parameters::Argon2id {
                memory_kib: hash.memory_kib,
                passes: hash.passes,
                lanes: hash.lanes,
                salt: hash.salt.len(),
                digest: hash.digest.len(),
            },
            SlowHash::Bcrypt(hash) => Parameters::Bcrypt { cost: hash.cost },
        }
    }

    /// Whether a password has this hash. Takes long.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn matches(&self, password: &[u8], blocks: &mut Blocks) -> Result<bool, NoMemory> {
        match self {
            SlowHash::Argon2id(argon2, hash) => {
                let blocks = blocks.room(argon2.params().block_count())?;
                let mut digest = Zeroizing::new(vec![0; hash.digest.len()]);
                let computed = argon2.hash_password_into_with_memory(
                    password,
                    &hash.salt,
                    digest.as_mut_slice(),
                    blocks,
                );
                // Salts and digests have the lengths that it takes.
                Ok(computed.is_ok() && verify_slices_are_equal(&digest, &hash.digest).is_ok())
            }
            SlowHash::Bcrypt(hash) => {
                let mut key = Zeroizing::new([0; BCRYPT_KEY]);
                let length = password.len().min(BCRYPT_KEY);
                key[..length].copy_from_slice(&password[..length]);
                let computed = bcrypt::bcrypt(hash.cost, hash.salt, &key[..BCRYPT_KEY.min(length + 1)]);
                let is_equal = verify_slices_are_equal(&computed[..hash.digest.len()], &hash.digest).is_ok();
                // A zero ends a password: `x`, and `x` twice with a zero between, are the same key.
                Ok(is_equal && !password.contains(&0))
            }
        }
    }

    /// Adds everything that it is to `context`.
    pub(crate) fn identify(&self, context: &mut hmac::Context) {
        let (kind, salt, digest): (_, &[u8], &[u8]) = match self {
            SlowHash::Argon2id(_, hash) => {
                ([1, hash.memory_kib, hash.passes, hash.lanes], &hash.salt, &hash.digest)
            }
            SlowHash::Bcrypt(hash) => ([2, hash.cost, 0, 0], &hash.salt, &hash.digest),
        };
        kind.iter().for_each(|number| context.update(&number.to_le_bytes()));
        for part in [salt, digest] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
    }
}

impl fmt::Debug for SlowHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parameters().fmt(f)
    }
}

impl Parameters {
    /// How long it takes beside others (some microseconds).
    pub(crate) fn work(self) -> u64 {
        match self {
            Parameters::Argon2id { memory_kib, passes, .. } => u64::from(memory_kib) * u64::from(passes),
            // A round is that of some 64 KiB of argon2id.
            Parameters::Bcrypt { cost } => 64_u64.checked_shl(cost).unwrap_or(u64::MAX),
        }
    }
}

/// Memory in which hashes of argon2id are computed, one after the other. It stays until it is released.
#[derive(Default)]
pub(crate) struct Blocks(Vec<Block>);

impl Blocks {
    /// None of it is in use.
    pub(crate) fn is_released(&self) -> bool {
        self.0.capacity() == 0
    }

    /// Gives it back.
    pub(crate) fn release(&mut self) {
        self.0 = Vec::new();
    }

    fn room(&mut self, count: usize) -> Result<&mut [Block], NoMemory> {
        if self.0.capacity() < count {
            // Never both.
            self.release();
            self.0.try_reserve_exact(count.max(LEAST_ROOM)).map_err(|_| NoMemory)?;
        }
        if self.0.len() < count {
            self.0.resize_with(count, Block::new);
        }
        Ok(&mut self.0[..count])
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use kakehi_ctl::state::AuthorizedHash;

    use super::*;

    /// `secret`, by the `argon2` of the reference: 8 KiB and one pass; 64 KiB, two passes and two lanes.
    pub(crate) const ARGON2ID: &str =
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$vk+JgWgZGbXHtEqPQPhzXbD+QxxkJR5Fq2AXLhDyYaY";
    pub(crate) const ARGON2ID_LANES: &str =
        "$argon2id$v=19$m=64,t=2,p=2$c29tZXNhbHRzb21lc2FsdA$vGWrn6I/PGlluEBRcxBfMjJk/9ti0CC0ig+MNGAsI8Q";
    /// `secret`, by `crypt`.
    pub(crate) const BCRYPT: &str = "$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";

    pub(crate) fn slow(hash: &str) -> SlowHash {
        let user = AuthorizedHash(format!("x:{hash}"));
        SlowHash::new(user.parse().unwrap().1).unwrap()
    }

    fn matches(hash: &str, password: &[u8]) -> bool {
        slow(hash).matches(password, &mut Blocks::default()).unwrap()
    }

    #[test]
    fn a_password_has_the_hash_that_other_programs_have_made_of_it() {
        for hash in [ARGON2ID, ARGON2ID_LANES, BCRYPT] {
            assert!(matches(hash, b"secret"), "{hash}");
            for wrong in ["", "Secret", "secret ", "secre", "secret\0", "secret\0secret"] {
                assert!(!matches(hash, wrong.as_bytes()), "{hash} {wrong:?}");
            }
        }
        // Of jBCrypt: nothing, a letter, the alphabet.
        for (hash, password) in [
            ("$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.", ""),
            ("$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe", "a"),
            ("$2a$08$aTsUwsyowQuzRrDqFflhgekJ8d9/7Z3GV3UcgvzQW3J5zMyrTvlz.", "abcdefghijklmnopqrstuvwxyz"),
        ] {
            assert!(matches(hash, password.as_bytes()), "{password}");
            assert!(!matches(hash, b"b"));
        }
        // A zero would make these the same.
        assert!(!matches("$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe", b"a\0a"));
        assert!(!matches("$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.", b"\0"));
    }

    #[test]
    fn bcrypt_heeds_72_bytes() {
        // Of 72 times `x`.
        let hash = "$2y$04$abcdefghijklmnopqrstuubzadhGtS2zEF.gu0yd0opP6cVzb.e0i";
        for (length, expected) in [(71, false), (72, true), (73, true), (4_096, true)] {
            assert_eq!(matches(hash, &vec![b'x'; length]), expected, "{length}");
        }
    }

    #[test]
    fn a_decoy_takes_as_long_and_is_another() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"test");
        let identity = |hash: &SlowHash| {
            let mut context = hmac::Context::with_key(&key);
            hash.identify(&mut context);
            context.sign().as_ref().to_vec()
        };
        for hash in [ARGON2ID, ARGON2ID_LANES, BCRYPT].map(slow) {
            let decoy = hash.decoy();
            assert_eq!(decoy.parameters(), hash.parameters());
            assert_ne!(identity(&decoy), identity(&hash));
            assert!(!decoy.matches(b"secret", &mut Blocks::default()).unwrap());
            assert!(!format!("{hash:?}").contains('$'), "{hash:?}");
        }
        assert_eq!(identity(&slow(BCRYPT)), identity(&slow(BCRYPT)));
    }

    #[test]
    fn the_memory_is_that_of_the_largest_hash_until_it_is_released() {
        let mut blocks = Blocks::default();
        assert!(blocks.is_released());
        for (count, capacity) in [(8, LEAST_ROOM), (64, LEAST_ROOM), (40_000, 40_000), (8, 40_000)] {
            assert_eq!(blocks.room(count).unwrap().len(), count);
            assert_eq!(blocks.0.capacity(), capacity);
        }
        assert_eq!(blocks.room(usize::MAX).err(), Some(NoMemory));
        assert!(blocks.room(8).is_ok());
        blocks.release();
        assert!(blocks.is_released());
    }
}
