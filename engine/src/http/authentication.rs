//! Basic authentication (RFC 7617): users with hashes of their passwords.
//!
//! SHA-256 is computed at once. Whoever is not let in by it where there are slow hashes is an [`Attempt`], which the caller has
//! computed elsewhere.
//!
//! Promises: who is not known takes as long as who is; no password and no digest is in any message.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
    hmac,
};
use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use kakehi_ctl::state::{AuthorizedHash, PasswordHash, is_token};
use rustc_hash::FxHashMap;
use zeroize::Zeroizing;

use super::slow_hash::{Blocks, NoMemory, Parameters, SlowHash};

/// What a 401 says where nothing is configured (RFC 9110 section 11.6.1: it must say something).
pub(crate) const CHALLENGE: &str = "Basic realm=\"restricted\"";

/// Clients send it with `=` at the end, and some without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// SHA-256 of a password.
type Digest = [u8; 32];

/// Slow hashes that are computed for whoever has fewer. A file with more kinds of them than these is told by time who has which.
const MOST_DECOYS: usize = 4;

/// Users, and how they are asked for.
#[derive(Debug, Clone)]
pub struct Users {
    by_name: FxHashMap<Box<[u8]>, User>,
    challenge: Rc<str>,
    /// Of each kind of slow hash as many as the user with most of them has.
    decoys: Vec<Arc<SlowHash>>,
}

/// One may have several passwords.
#[derive(Debug, Clone, Default)]
struct User {
    quick: Vec<Digest>,
    slow: Vec<Arc<SlowHash>>,
}

/// What credentials are.
#[derive(Debug)]
pub(crate) enum Judged {
    /// Those of a user.
    Right,
    /// None.
    Wrong,
    /// To be told by slow hashes.
    Slow(Attempt),
}

/// Credentials that are held against slow hashes.
pub(crate) struct Attempt {
    user: Box<[u8]>,
    password: Zeroizing<Vec<u8>>,
    /// Those of the user, and decoys, which let nobody in.
    hashes: Vec<(Arc<SlowHash>, bool)>,
}

/// An [`Attempt`], as nobody can make it who does not know the key of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AttemptId([u8; 32]);

impl Users {
    /// Those of a configuration, which has checked them; `None` if nothing is said of them.
    pub fn compile(users: &[AuthorizedHash], challenge: Option<&str>) -> Option<Rc<Users>> {
        if users.is_empty() && challenge.is_none() {
            return None;
        }
        let mut by_name: FxHashMap<Box<[u8]>, User> = FxHashMap::default();
        // One that is none is nobody.
        for (name, hash) in users.iter().filter_map(|user| user.parse().ok()) {
            let user = by_name.entry(name.as_bytes().into()).or_default();
            match hash {
                PasswordHash::Sha256(digest) => user.quick.push(digest),
                slow => user.slow.extend(SlowHash::new(slow).map(Arc::new)),
            }
        }
        let decoys = decoys(by_name.values());
        let challenge = challenge.map_or_else(|| CHALLENGE.into(), written);
        Some(Rc::new(Users { by_name, challenge, decoys }))
    }

    /// What a 401 says.
    pub fn challenge(&self) -> &Rc<str> {
        &self.challenge
    }

    /// Whether the value of an `Authorization` names a user with its password. Longer credentials than `longest` (bytes, decoded) are
    /// wrong.
    pub(crate) fn judge(&self, authorization: &[u8], longest: usize) -> Judged {
        let Some((scheme, encoded)) = authorization.split_at_checked("Basic ".len()) else {
            return Judged::Wrong;
        };
        let encoded = encoded.trim_ascii();
        if !scheme.eq_ignore_ascii_case(b"Basic ") || encoded.len() > longest.div_ceil(3) * 4 {
            return Judged::Wrong;
        }
        let Ok(credentials) = BASE64.decode(encoded).map(Zeroizing::new) else { return Judged::Wrong };
        let colon = memchr::memchr(b':', &credentials).filter(|_| credentials.len() <= longest);
        let Some(colon) = colon else { return Judged::Wrong };
        let (name, password) = (&credentials[..colon], &credentials[colon + 1..]);
        let digest = digest(&SHA256, password);
        let known = self.by_name.get(name);
        // Compared with something in any case.
        let quick = known.map_or(&[][..], |user| &user.quick);
        let digests = if quick.is_empty() { &[[0; 32]][..] } else { quick };
        let fits = |it: &&Digest| verify_slices_are_equal(*it, digest.as_ref()).is_ok();
        // All of them, whichever fits.
        if digests.iter().filter(fits).count() > 0 && !quick.is_empty() {
            return Judged::Right;
        }
        if self.decoys.is_empty() {
            return Judged::Wrong;
        }
        let own = known.map_or(&[][..], |user| &user.slow);
        let hashes = self.hashes(own);
        Judged::Slow(Attempt { user: name.into(), password: Zeroizing::new(password.into()), hashes })
    }

    /// A user's hashes, and decoys in the place of those that it does not have.
    fn hashes(&self, own: &[Arc<SlowHash>]) -> Vec<(Arc<SlowHash>, bool)> {
        let mut decoys: Vec<&Arc<SlowHash>> = self.decoys.iter().collect();
        for hash in own {
            if let Some(place) = decoys.iter().position(|decoy| decoy.parameters() == hash.parameters()) {
                decoys.remove(place);
            }
        }
        let own = own.iter().map(|hash| (Arc::clone(hash), true));
        own.chain(decoys.into_iter().map(|decoy| (Arc::clone(decoy), false))).collect()
    }
}

/// See [`Users::decoys`]; those that take longest, where there are many.
fn decoys<'a>(users: impl Iterator<Item = &'a User>) -> Vec<Arc<SlowHash>> {
    let mut most: BTreeMap<Parameters, Vec<&Arc<SlowHash>>> = BTreeMap::new();
    for user in users {
        let mut own: BTreeMap<Parameters, Vec<&Arc<SlowHash>>> = BTreeMap::new();
        user.slow.iter().for_each(|hash| own.entry(hash.parameters()).or_default().push(hash));
        for (parameters, hashes) in own {
            let known = most.entry(parameters).or_default();
            if hashes.len() > known.len() {
                *known = hashes;
            }
        }
    }
    let mut most: Vec<_> = most.into_iter().collect();
    most.sort_by_key(|(parameters, _)| std::cmp::Reverse(parameters.work()));
    let hashes = most.into_iter().flat_map(|(_, hashes)| hashes);
    hashes.take(MOST_DECOYS).map(|hash| Arc::new(hash.decoy())).collect()
}

impl Attempt {
    /// Whether these are a user's credentials. Takes long.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn compute(&self, blocks: &mut Blocks) -> Result<bool, NoMemory> {
        for (hash, is_own) in &self.hashes {
            if hash.matches(&self.password, blocks)? && *is_own {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What it is: the user, the password, and all hashes.
    pub(crate) fn id(&self, key: &hmac::Key) -> AttemptId {
        let mut context = hmac::Context::with_key(key);
        for part in [&self.user[..], &self.password] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        for (hash, is_own) in &self.hashes {
            context.update(&[u8::from(*is_own)]);
            hash.identify(&mut context);
        }
        let mut id = [0; 32];
        id.copy_from_slice(context.sign().as_ref());
        AttemptId(id)
    }
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.hashes.iter().map(|(hash, _)| hash)).finish()
    }
}

/// A challenge as it is written; what has no scheme is a realm.
fn written(challenge: &str) -> Rc<str> {
    // RFC 9110 section 11.3: a scheme, and parameters.
    let has_scheme = match challenge.split_once(' ') {
        Some((scheme, rest)) => {
            let parameter = rest.trim_start().split_once('=');
            is_token(scheme) && parameter.is_some_and(|(name, _)| is_token(name.trim_end()))
        }
        None => ["basic", "digest", "bearer", "negotiate", "ntlm"]
            .iter()
            .any(|scheme| challenge.eq_ignore_ascii_case(scheme)),
    };
    if has_scheme {
        return challenge.into();
    }
    let escaped = challenge.replace('\\', "\\\\").replace('"', "\\\"");
    format!("Basic realm=\"{escaped}\"").into()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{
        super::slow_hash::tests::{ARGON2ID, ARGON2ID_LANES, BCRYPT},
        *,
    };

    fn hash(user: &str, password: &str) -> AuthorizedHash {
        let digest = digest(&SHA256, password.as_bytes());
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        AuthorizedHash(format!("{user}:{hex}"))
    }

    fn basic(credentials: &str) -> Vec<u8> {
        format!("Basic {}", BASE64.encode(credentials)).into_bytes()
    }

    #[test]
    fn who_names_a_user_with_its_password_is_admitted() {
        let users =
            [hash("ann", "a:b"), hash("ann", "second"), hash("bob", ""), AuthorizedHash("eve:***".into())];
        let users = Users::compile(&users, None).unwrap();
        let admit = |value: &[u8]| matches!(users.judge(value, 4_096), Judged::Right);
        for credentials in ["ann:a:b", "ann:second", "bob:"] {
            assert!(admit(&basic(credentials)), "{credentials}");
        }
        for credentials in
            ["ann:a", "ann:", "ann", "bob:a:b", "carl:a:b", "eve:", "eve:***", ":", "Ann:a:b", ""]
        {
            assert!(!admit(&basic(credentials)), "{credentials}");
        }
        let encoded = BASE64.encode("bob:");
        assert_eq!(encoded, "Ym9iOg==");
        for (value, admitted) in [
            ("Basic Ym9iOg==", true),
            ("BASIC  Ym9iOg== ", true),
            ("basic Ym9iOg", true),
            ("Basic Ym9iOg===", false),
            ("Basic", false),
            ("Basic ", false),
            ("BasicYm9iOg==", false),
            ("Bearer Ym9iOg==", false),
            ("Basic Ym9i Og==", false),
            ("Basic Ym9iOg==, Basic Ym9iOg==", false),
        ] {
            assert_eq!(admit(value.as_bytes()), admitted, "{value}");
        }
    }

    #[test]
    fn credentials_that_are_too_long_are_wrong() {
        let password = "x".repeat(96);
        let users = Users::compile(&[hash("ann", &password)], None).unwrap();
        let value = basic(&format!("ann:{password}"));
        for (longest, admitted) in [(100, true), (99, false), (98, false), (10, false), (0, false)] {
            assert_eq!(matches!(users.judge(&value, longest), Judged::Right), admitted, "{longest}");
        }
    }

    /// Credentials of `user` with `password` at a cluster with these users, where they are slow.
    pub(crate) fn attempt(users: &[&str], user: &str, password: &str) -> Option<Attempt> {
        let users: Vec<_> = users.iter().map(|user| AuthorizedHash((*user).into())).collect();
        match Users::compile(&users, None)?.judge(&basic(&format!("{user}:{password}")), 4_096) {
            Judged::Slow(attempt) => Some(attempt),
            Judged::Right | Judged::Wrong => None,
        }
    }

    /// One that is right, of `user`.
    pub(crate) fn right(user: &str) -> Attempt {
        attempt(&[&format!("{user}:{ARGON2ID}")], user, "secret").unwrap()
    }

    fn parameters(attempt: &Attempt) -> Vec<Parameters> {
        let mut all: Vec<_> = attempt.hashes.iter().map(|(hash, _)| hash.parameters()).collect();
        all.sort();
        all
    }

    #[test]
    fn slow_hashes_are_asked_behind_quick_ones() {
        let quick = hash("ann", "quick").0;
        let users =
            [&quick, &format!("ann:{ARGON2ID}"), &format!("bob:{BCRYPT}"), &format!("eve:{ARGON2ID_LANES}")];
        let users = users.map(String::as_str);
        let judged = |user: &str, password: &str| {
            attempt(&users, user, password).map(|it| it.compute(&mut Blocks::default()).unwrap())
        };
        assert_eq!(judged("ann", "quick"), None);
        for user in ["ann", "bob", "eve"] {
            assert_eq!(judged(user, "secret"), Some(true), "{user}");
            assert_eq!(judged(user, "wrong"), Some(false), "{user}");
        }
        for user in ["carl", "", "Ann", "***"] {
            assert_eq!(judged(user, "secret"), Some(false), "{user}");
        }
        assert!(attempt(&[&quick], "ann", "wrong").is_none(), "there is no slow one");
    }

    #[test]
    fn who_is_not_known_has_the_same_hashes_computed_as_who_is() {
        let quick = hash("sha", "quick").0;
        let twice = ARGON2ID.replace("c2FsdHNhbHQ", "c2FsdHNhbHU");
        let users = [
            quick,
            format!("ann:{ARGON2ID}"),
            format!("ann:{twice}"),
            format!("bob:{BCRYPT}"),
            format!("eve:{ARGON2ID}"),
        ];
        let users: Vec<_> = users.iter().map(String::as_str).collect();
        let of = |user: &str| parameters(&attempt(&users, user, "wrong").unwrap());
        let all = of("nobody");
        assert_eq!(all.len(), 3);
        for user in ["sha", "ann", "bob", "eve", "", "***"] {
            assert_eq!(of(user), all, "{user}");
        }
        // Of many kinds, those that take longest.
        let bcrypt = |cost: usize| BCRYPT.replace("$04$", &format!("${cost:02}$"));
        let users: Vec<_> = (4..14).map(|cost| format!("u{cost}:{}", bcrypt(cost))).collect();
        let users: Vec<_> = users.iter().map(String::as_str).collect();
        let unknown = parameters(&attempt(&users, "nobody", "wrong").unwrap());
        assert_eq!(unknown, [10, 11, 12, 13].map(|cost| Parameters::Bcrypt { cost }));
    }

    #[test]
    fn an_id_is_that_of_user_password_hash_and_process() {
        let (one, other) = ([1; 32], [2; 32]);
        let key = |bytes: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        let (ann, again) = (format!("ann:{ARGON2ID}"), format!("ann:{BCRYPT}"));
        let id = |users: &[&str], user: &str, password: &str| {
            attempt(users, user, password).unwrap().id(&key(&one))
        };
        let first = id(&[&ann], "ann", "secret");
        assert_eq!(first, id(&[&ann, &format!("bob:{ARGON2ID}")], "ann", "secret"));
        let salted = ann.replace("c2FsdHNhbHQ", "c2FsdHNhbHU");
        for another in [
            id(&[&ann], "ann", "secret2"),
            id(&[&ann], "anns", "ecret"),
            id(&[&ann], "bob", "secret"),
            id(&[&again], "ann", "secret"),
            id(&[&salted], "ann", "secret"),
            id(&[&ann, &again], "ann", "secret"),
            attempt(&[&ann], "ann", "secret").unwrap().id(&key(&other)),
        ] {
            assert_ne!(first, another);
        }
        let shown = format!("{:?}", attempt(&[&ann], "ann", "secret").unwrap());
        assert!(!shown.contains("secret") && !shown.contains("ann"), "{shown}");
    }

    #[test]
    fn a_challenge_without_a_scheme_is_a_realm() {
        let challenge = |text: &str| Users::compile(&[], Some(text)).unwrap().challenge().to_string();
        for whole in ["Basic realm=\"x\"", "Bearer  scope = a", "negotiate", "Basic"] {
            assert_eq!(challenge(whole), whole);
        }
        assert_eq!(challenge("Staff only"), "Basic realm=\"Staff only\"");
        assert_eq!(challenge("a \"b\" \\"), "Basic realm=\"a \\\"b\\\" \\\\\"");
        assert!(Users::compile(&[], None).is_none());
    }
}
