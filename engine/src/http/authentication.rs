//! Basic authentication (RFC 7617): users with the SHA-256 of their passwords.
//!
//! Promises: who is not known takes as long as who is; no password and no digest is in any message.

use std::rc::Rc;

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use kakehi_ctl::state::{AuthorizedHash, is_token};
use rustc_hash::FxHashMap;

/// What a 401 says where nothing is configured (RFC 9110 section 11.6.1: it must say something).
pub(crate) const CHALLENGE: &str = "Basic realm=\"restricted\"";

/// Clients send it with `=` at the end, and some without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// SHA-256 of a password.
type Digest = [u8; 32];

/// Users, and how they are asked for.
#[derive(Debug, Clone)]
pub struct Users {
    /// One may have several passwords.
    by_name: FxHashMap<Box<[u8]>, Vec<Digest>>,
    challenge: Rc<str>,
}

impl Users {
    /// Those of a configuration, which has checked them; `None` if nothing is said of them.
    pub fn compile(users: &[AuthorizedHash], challenge: Option<&str>) -> Option<Rc<Users>> {
        if users.is_empty() && challenge.is_none() {
            return None;
        }
        let mut by_name: FxHashMap<Box<[u8]>, Vec<Digest>> = FxHashMap::default();
        // One that is none is nobody.
        for (name, digest) in users.iter().filter_map(|user| user.parse().ok()) {
            by_name.entry(name.as_bytes().into()).or_default().push(digest);
        }
        Some(Rc::new(Users { by_name, challenge: challenge.map_or_else(|| CHALLENGE.into(), written) }))
    }

    /// What a 401 says.
    pub fn challenge(&self) -> &Rc<str> {
        &self.challenge
    }

    /// Whether the value of an `Authorization` names a user with its password. Longer credentials than `longest` (bytes, decoded) are
    /// wrong.
    pub fn admit(&self, authorization: &[u8], longest: usize) -> bool {
        let Some((scheme, encoded)) = authorization.split_at_checked("Basic ".len()) else { return false };
        let encoded = encoded.trim_ascii();
        if !scheme.eq_ignore_ascii_case(b"Basic ") || encoded.len() > longest.div_ceil(3) * 4 {
            return false;
        }
        let Ok(credentials) = BASE64.decode(encoded) else { return false };
        let colon = memchr::memchr(b':', &credentials).filter(|_| credentials.len() <= longest);
        let Some(colon) = colon else { return false };
        let digest = digest(&SHA256, &credentials[colon + 1..]);
        let known = self.by_name.get(&credentials[..colon]);
        // Compared with something in any case.
        let digests = known.map_or(&[[0; 32]][..], Vec::as_slice);
        let fits = |it: &&Digest| verify_slices_are_equal(*it, digest.as_ref()).is_ok();
        // All of them, whichever fits.
        digests.iter().filter(fits).count() > 0 && known.is_some()
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
mod tests {
    use super::*;

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
        let admit = |value: &[u8]| users.admit(value, 4_096);
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
            assert_eq!(users.admit(&value, longest), admitted, "{longest}");
        }
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
