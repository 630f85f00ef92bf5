//! Users of basic authentication, as a configuration names them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Fingerprint, State};

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
        match hash.parse::<Fingerprint>() {
            Ok(Fingerprint(digest)) => Ok((user, digest)),
            Err(_) => Err("behind the colon stand the 64 hexadecimal digits of a SHA-256"),
        }
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

impl State {
    /// Whether there are users of basic authentication.
    pub fn has_users(&self) -> bool {
        self.clusters.values().chain(self.by_hand.clusters()).any(|cluster| !cluster.users.is_empty())
    }

    /// The users of each cluster, of those that are by hand also as the file says.
    pub fn users(&self) -> Vec<Vec<AuthorizedHash>> {
        self.clusters.values().chain(self.by_hand.clusters()).map(|cluster| cluster.users.clone()).collect()
    }

    /// The same without the digests of passwords, to be shown.
    #[must_use]
    pub fn masked(mut self) -> State {
        for cluster in self.clusters.values_mut().chain(self.by_hand.clusters_mut()) {
            cluster.users.iter_mut().for_each(|user| *user = user.masked());
        }
        self
    }

    /// One that is [masked](State::masked), with these [users](State::users). Those that are others stay as they are.
    #[must_use]
    pub fn with_users(mut self, users: Vec<Vec<AuthorizedHash>>) -> State {
        let clusters = self.clusters.values_mut().chain(self.by_hand.clusters_mut());
        for (cluster, users) in clusters.zip(users) {
            if cluster.users.iter().eq(users.iter().map(AuthorizedHash::masked).collect::<Vec<_>>().iter()) {
                cluster.users = users;
            }
        }
        self
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
