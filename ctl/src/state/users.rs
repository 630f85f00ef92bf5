//! Users of basic authentication, as a configuration names them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A user with the digest of its password. It is shown without.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuthorizedHash(pub String);

impl AuthorizedHash {
    /// The name, and the SHA-256 of the password.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(&self) -> Result<(&str, [u8; 32]), &'static str> {
        let (user, hash) =
            self.0.rsplit_once(':').ok_or("a user is written as `name:` and the SHA-256 of its password")?;
        if user.is_empty() || user.contains(':') || user.bytes().any(|byte| byte.is_ascii_control()) {
            return Err("the name of a user has neither a colon nor control characters");
        }
        if hash.starts_with('$') {
            return Err("argon2id and bcrypt are not supported yet: write the SHA-256 of the password");
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let mut digest = [0; 32];
        if hash.len() != 2 * digest.len() {
            return Err("behind the colon stand the 64 hexadecimal digits of a SHA-256");
        }
        for (byte, pair) in digest.iter_mut().zip(hash.as_bytes().chunks_exact(2)) {
            let [Some(high), Some(low)] = [pair[0], pair[1]].map(digit) else {
                return Err("behind the colon stand the 64 hexadecimal digits of a SHA-256");
            };
            *byte = high << 4 | low;
        }
        Ok((user, digest))
    }

    /// The same without the digest.
    #[must_use]
    pub fn masked(&self) -> AuthorizedHash {
        let user = self.0.rsplit_once(':').map_or("", |(user, _)| user);
        AuthorizedHash(format!("{user}:***"))
    }
}

impl fmt::Debug for AuthorizedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.masked().0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<(String, [u8; 32]), &'static str> {
        AuthorizedHash(text.to_owned()).parse().map(|(user, digest)| (user.to_owned(), digest))
    }

    #[test]
    fn a_user_is_a_name_and_a_digest() {
        let digest = "0aFf".repeat(16);
        let (user, bytes) = parse(&format!("a b:{digest}")).unwrap();
        assert_eq!((user.as_str(), &bytes[..4]), ("a b", &[0x0a, 0xff, 0x0a, 0xff][..]));
        for text in [
            String::new(),
            "name".to_owned(),
            digest.clone(),
            format!(":{digest}"),
            format!("a:b:{digest}"),
            format!("a\n:{digest}"),
            format!("a:{digest}0"),
            format!("a:{}", "g".repeat(64)),
            format!("a:{}", "\u{e9}".repeat(32)),
            "a:$2b$12$abcdefghijklmnopqrstuv".to_owned(),
        ] {
            assert!(parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_digest_is_shown() {
        let hash = AuthorizedHash(format!("ann:{}", "a".repeat(64)));
        assert_eq!((format!("{hash:?}").as_str(), hash.masked().0.as_str()), ("\"ann:***\"", "ann:***"));
    }
}
