//! What a password is held against: SHA-256, argon2id or bcrypt, as `htpasswd` and `argon2` write them.
//!
//! Promises: what was read can be computed within the limits of `limits.rs`; no message has a digest.

use base64::{
    Engine as _,
    alphabet::{Alphabet, BCRYPT, STANDARD},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::Fingerprint;
use crate::limits;

/// What the password of a user is held against. It has no text, so that none is shown.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordHash {
    /// SHA-256 of the password.
    Sha256([u8; 32]),
    /// Argon2id, version 19 (RFC 9106).
    Argon2id(Argon2id),
    /// bcrypt.
    Bcrypt(Bcrypt),
}

/// A hash of argon2id.
#[derive(Clone, PartialEq, Eq)]
pub struct Argon2id {
    /// Memory (KiB), at least 8 for each lane.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
    /// The salt.
    pub salt: Box<[u8]>,
    /// The digest.
    pub digest: Box<[u8]>,
}

/// A hash of bcrypt.
#[derive(Clone, PartialEq, Eq)]
pub struct Bcrypt {
    /// Binary logarithm of the number of rounds.
    pub cost: u32,
    /// The salt.
    pub salt: [u8; 16],
    /// The digest.
    pub digest: [u8; 23],
}

impl PasswordHash {
    /// Reads 64 hexadecimal digits, `$argon2id$v=19$m=M,t=T,p=P$SALT$DIGEST` or `$2b$COST$SALTDIGEST`.
    ///
    /// # Errors
    /// Why it is none that can be computed.
    pub(super) fn parse(text: &str) -> Result<PasswordHash, &'static str> {
        let Some(text) = text.strip_prefix('$') else {
            return match text.parse::<Fingerprint>() {
                Ok(Fingerprint(digest)) => Ok(PasswordHash::Sha256(digest)),
                Err(_) => Err("behind the colon stand the 64 hexadecimal digits of a SHA-256"),
            };
        };
        let parts: Vec<&str> = text.split('$').collect();
        match parts[..] {
            ["argon2id", "v=19", parameters, salt, digest] => argon2id(parameters, salt, digest),
            ["argon2id", version, _, _, _] if version.starts_with("v=") => {
                Err("of argon2id only version 19 is computed (`v=19`)")
            }
            ["argon2id", ..] => Err("a hash of argon2id is `$argon2id$v=19$m=M,t=T,p=P$SALT$DIGEST`"),
            ["argon2i" | "argon2d", ..] => Err("of argon2 only argon2id is computed"),
            ["2a" | "2b" | "2y", cost, rest] => bcrypt(cost, rest),
            ["2a" | "2b" | "2y", ..] => {
                Err("a hash of bcrypt is `$2b$`, the cost, `$` and 53 characters of salt and digest")
            }
            _ => Err(
                "of the hashes that begin with `$`, argon2id (`$argon2id$`) and bcrypt (`$2b$`) are computed",
            ),
        }
    }
}

fn argon2id(parameters: &str, salt: &str, digest: &str) -> Result<PasswordHash, &'static str> {
    const PARAMETERS: &str = "the parameters of argon2id are written `m=M,t=T,p=P`";
    let mut numbers = [None; 3];
    for parameter in parameters.split(',') {
        let (name, number) = parameter.split_once('=').ok_or(PARAMETERS)?;
        let place = ["m", "t", "p"].iter().position(|known| *known == name).ok_or(PARAMETERS)?;
        if number.starts_with('+')
            || numbers[place].replace(number.parse().map_err(|_| PARAMETERS)?).is_some()
        {
            return Err(PARAMETERS);
        }
    }
    let [Some(memory_kib), Some(passes), Some(lanes)] = numbers else { return Err(PARAMETERS) };
    if !(1..=limits::ARGON2_LANES).contains(&lanes) {
        return Err("argon2id has 1 to 16 lanes (`p`)");
    }
    if memory_kib > limits::ARGON2_MEMORY_KIB || memory_kib < 8 * lanes {
        return Err("argon2id has at most 262144 KiB of memory (`m`), and at least 8 for each lane");
    }
    // Numbers of that size have no product that is too large.
    if !(1..=limits::ARGON2_PASSES).contains(&passes) || memory_kib * passes > limits::ARGON2_WORK_KIB {
        return Err("argon2id makes 1 to 16 passes (`t`), over 1048576 KiB at most in all (`m` times `t`)");
    }
    let (salt, digest) = (decode(&STANDARD, salt), decode(&STANDARD, digest));
    let salt = salt.filter(|salt| (8..=64).contains(&salt.len()));
    let digest = digest.filter(|digest| (16..=64).contains(&digest.len()));
    let (Some(salt), Some(digest)) = (salt, digest) else {
        return Err("argon2id has a salt of 8 to 64 bytes and a digest of 16 to 64, in Base64 without `=`");
    };
    Ok(PasswordHash::Argon2id(Argon2id {
        memory_kib,
        passes,
        lanes,
        salt: salt.into(),
        digest: digest.into(),
    }))
}

fn bcrypt(cost: &str, rest: &str) -> Result<PasswordHash, &'static str> {
    let is_written = cost.len() == 2 && cost.bytes().all(|byte| byte.is_ascii_digit());
    let cost = cost.parse().ok().filter(|cost| is_written && limits::BCRYPT_COST.contains(cost));
    let cost = cost.ok_or("the cost of bcrypt is 04 to 14")?;
    let (salt, digest) = rest.split_at_checked(22).unwrap_or_default();
    let (salt, digest) = (decode(&BCRYPT, salt), decode(&BCRYPT, digest));
    match (salt.and_then(|salt| salt.try_into().ok()), digest.and_then(|digest| digest.try_into().ok())) {
        (Some(salt), Some(digest)) => Ok(PasswordHash::Bcrypt(Bcrypt { cost, salt, digest })),
        _ => Err("bcrypt has 22 characters of salt and 31 of digest"),
    }
}

/// Base64 without `=`. Some tools leave bits in the last character of a salt that mean nothing.
fn decode(alphabet: &Alphabet, text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGON2ID: &str =
        "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    const BCRYPT: &str = "$2b$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.";

    fn error(text: &str) -> &'static str {
        PasswordHash::parse(text).err().unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn hashes_are_read_as_tools_write_them() {
        let Ok(PasswordHash::Argon2id(hash)) = PasswordHash::parse(ARGON2ID) else { panic!("no argon2id") };
        assert_eq!((hash.memory_kib, hash.passes, hash.lanes), (65_536, 3, 4));
        assert_eq!((&*hash.salt, &*hash.digest), (&b"somesalt"[..], &(0..32).collect::<Vec<u8>>()[..]));
        let swapped = ARGON2ID.replace("m=65536,t=3", "t=3,m=65536");
        assert!(PasswordHash::parse(&swapped).ok() == Some(PasswordHash::Argon2id(hash)));
        let Ok(PasswordHash::Bcrypt(hash)) = PasswordHash::parse(BCRYPT) else { panic!("no bcrypt") };
        // As in the vectors of jBCrypt.
        assert_eq!((hash.cost, hash.salt[..4].to_vec()), (6, vec![0x14, 0x4b, 0x3d, 0x69]));
        assert_eq!((hash.digest[0], hash.digest[22]), (0x55, 0xe0));
        for version in ["$2a$", "$2y$"] {
            let same = PasswordHash::parse(&BCRYPT.replace("$2b$", version));
            assert!(same.ok() == Some(PasswordHash::Bcrypt(hash.clone())), "{version}");
        }
        // With bits that mean nothing behind the salt.
        assert!(PasswordHash::parse(&BCRYPT.replace("cll.TV", "cllxTV")).is_ok());
        assert!(matches!(PasswordHash::parse(&"0f".repeat(32)), Ok(PasswordHash::Sha256([15, ..]))));
    }

    #[test]
    fn what_would_take_too_long_or_too_much_is_refused() {
        let with = |parameters: &str| ARGON2ID.replace("m=65536,t=3,p=4", parameters);
        for parameters in ["m=8,t=1,p=1", "m=262144,t=4,p=16", "m=128,t=16,p=16", "m=65536,t=16,p=1"] {
            assert!(PasswordHash::parse(&with(parameters)).is_ok(), "{parameters}");
        }
        for (parameters, names) in [
            ("m=262145,t=1,p=1", limits::ARGON2_MEMORY_KIB),
            ("m=7,t=1,p=1", limits::ARGON2_MEMORY_KIB),
            ("m=127,t=1,p=16", limits::ARGON2_MEMORY_KIB),
            ("m=4294967295,t=4294967295,p=4", limits::ARGON2_MEMORY_KIB),
            ("m=65536,t=0,p=1", limits::ARGON2_PASSES),
            ("m=65536,t=17,p=1", limits::ARGON2_PASSES),
            ("m=262144,t=5,p=1", limits::ARGON2_WORK_KIB),
            ("m=65536,t=1,p=0", limits::ARGON2_LANES),
            ("m=65536,t=1,p=17", limits::ARGON2_LANES),
            ("m=65536,t=1,p=4294967295", limits::ARGON2_LANES),
        ] {
            let error = error(&with(parameters));
            assert!(error.contains(&names.to_string()), "{parameters}: {error}");
        }
        for cost in ["00", "03", "15", "31", "99", "4", "004", "+6", "-6", "", "x6"] {
            let error = error(&BCRYPT.replace("$06$", &format!("${cost}$")));
            let (least, most) = (limits::BCRYPT_COST.start(), limits::BCRYPT_COST.end());
            assert!(error.contains(&format!("{least:02} to {most}")), "{cost}: {error}");
        }
        for cost in ["04", "14"] {
            assert!(PasswordHash::parse(&BCRYPT.replace("$06$", &format!("${cost}$"))).is_ok());
        }
    }

    #[test]
    fn what_is_no_such_hash_is_refused_and_not_shown() {
        let argon2id = |right: &str, wrong: &str| {
            assert!(ARGON2ID.contains(right), "{right}");
            ARGON2ID.replace(right, wrong)
        };
        for text in [
            argon2id("argon2id", "argon2i"),
            argon2id("argon2id", "argon2d"),
            argon2id("argon2id", "argon2x"),
            argon2id("v=19", "v=16"),
            argon2id("$v=19", ""),
            argon2id("v=19", "19"),
            argon2id("m=65536", "m=+65536"),
            argon2id("m=65536", "m=-1"),
            argon2id("m=65536", "m="),
            argon2id("m=65536,", ""),
            argon2id("m=65536", "m=65536,m=65536"),
            argon2id("p=4", "p=4,keyid=AAAA"),
            argon2id("p=4", "p=4,"),
            argon2id("m=65536,t=3,p=4", ""),
            argon2id("c29tZXNhbHQ", "c29tZXNhbA"),
            argon2id("c29tZXNhbHQ", "c29tZXNhbHQ="),
            argon2id("c29tZXNhbHQ", "c29tZX-hbHQ"),
            argon2id("c29tZXNhbHQ", ""),
            argon2id("c29tZXNhbHQ", &"A".repeat(88)),
            argon2id("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", "AAECAwQFBgcICQoLDA0O"),
            argon2id("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", ""),
            format!("{ARGON2ID}$"),
            format!("${ARGON2ID}"),
            BCRYPT.replace("$2b$", "$2x$"),
            BCRYPT.replace("$2b$", "$2$"),
            BCRYPT[..BCRYPT.len() - 1].to_owned(),
            format!("{BCRYPT}."),
            format!("{BCRYPT}$"),
            BCRYPT.replace("DCq7", "DC+7"),
            BCRYPT.replace("DCq7", "D\u{fc}7"),
            "$".to_owned(),
            "$2b$".to_owned(),
            "$argon2id$".to_owned(),
            "$6$salt$digest".to_owned(),
            "$apr1$salt$digest".to_owned(),
            String::new(),
            "0f".repeat(31),
        ] {
            let error = error(&text);
            assert!(!error.contains("AAEC") && !error.contains("7YPn"), "{error}");
        }
    }
}
