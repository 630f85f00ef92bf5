//! Users of basic authentication, as a configuration names them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{PasswordHash, State};

/// A user with the hash of its password. It is shown without.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuthorizedHash(pub String);

impl AuthorizedHash {
    /// The name, and what the password is held against.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(&self) -> Result<(&str, PasswordHash), &'static str> {
        let (user, hash) =
            self.0.rsplit_once(':').ok_or("a user is written as `name:` and the hash of its password")?;
        if user.is_empty() || user.contains(':') || user.bytes().any(|byte| byte.is_ascii_control()) {
            return Err("the name of a user has neither a colon nor control characters");
        }
        Ok((user, PasswordHash::parse(hash)?))
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

    #[test]
    fn a_user_is_a_name_and_a_hash() {
        let digest = "0aFf".repeat(16);
        let parse =
            |text: &str| AuthorizedHash(text.to_owned()).parse().map(|(user, hash)| (user.to_owned(), hash));
        let (user, hash) = parse(&format!("a b:{digest}")).unwrap();
        assert!(user == "a b" && matches!(hash, PasswordHash::Sha256([0x0a, 0xff, 0x0a, 0xff, ..])));
        let (user, hash) = parse("$a:$2b$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.").unwrap();
        assert!(user == "$a" && matches!(hash, PasswordHash::Bcrypt(_)));
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
