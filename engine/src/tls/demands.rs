//! What is spoken with the clients of a name, and what they have to show, as frontends say it: all that a handshake can go by
//! is the name that is asked for.
//!
//! Promises: whatever frontends lead on from a name, nobody gets there who has shown less than any of them asks for.
//! Frontends that contradict each other are refused, wherever they come from.

use std::collections::BTreeMap;

use kakehi_ctl::state::{ClientAuth, FrontendTls, Tls, TlsVersion};

use super::{certificates::parent_of, names::normal};

/// What is asked of the clients of a name.
#[derive(Clone, Copy, PartialEq)]
pub(crate) struct Demands<'a> {
    pub(super) versions: &'a [TlsVersion],
    pub(super) client_auth: Option<&'a ClientAuth>,
}

/// Frontends that cannot all be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Two for one name say different things.
    #[error("frontends for `{name}` say different things of {what}; a handshake knows the name only")]
    Differ {
        /// The name.
        name: String,
        /// Of what.
        what: &'static str,
    },
    /// One asks less than what is above it.
    #[error(
        "a frontend for `{name}` asks other client certificates than {above}, from which requests could get there"
    )]
    Other {
        /// The name.
        name: String,
        /// Than what.
        above: String,
    },
    /// One wants connections that another has decrypted.
    #[error(
        "`{name}` cannot be passed on as it is and be decrypted as well, nor be passed on to two clusters"
    )]
    PassedOn {
        /// The name.
        name: String,
    },
    /// Two want the connections of the same clients.
    #[error(
        "the frontends for `{name}` of the clusters `{}` and `{}` both take clients that offer `{protocol}` (`alpn`)",
        clusters[0],
        clusters[1]
    )]
    Protocol {
        /// The name.
        name: String,
        /// The protocol that both have.
        protocol: String,
        /// The clusters that they lead to; it may be one, with other limits.
        clusters: Box<[String; 2]>,
    },
}

impl Contradiction {
    /// The name that it is about.
    pub fn name(&self) -> &str {
        match self {
            Contradiction::Differ { name, .. }
            | Contradiction::Other { name, .. }
            | Contradiction::PassedOn { name }
            | Contradiction::Protocol { name, .. } => name,
        }
    }
}

/// What one name says by itself.
#[derive(Default)]
struct Own<'a> {
    versions: Option<&'a Vec<TlsVersion>>,
    client_auth: Option<&'a ClientAuth>,
}

/// What is asked of the clients of each name of which a frontend says something.
///
/// # Errors
/// See [`Contradiction`].
pub(crate) fn by_name<'a>(
    tls: &'a Tls,
    frontends: impl IntoIterator<Item = (&'a str, &'a FrontendTls)>,
) -> Result<BTreeMap<String, Demands<'a>>, Contradiction> {
    let mut said: BTreeMap<String, Own<'a>> = BTreeMap::new();
    for (name, own) in frontends {
        if own.versions.is_none() && own.client_auth.is_none() {
            continue;
        }
        let name = normal(name);
        let differ = |what| Contradiction::Differ { name: name.clone(), what };
        let known = said.entry(name.clone()).or_default();
        if let Some(versions) = &own.versions
            && known.versions.replace(versions).is_some_and(|known| known != versions)
        {
            return Err(differ("`tls_versions`"));
        }
        if let Some(client_auth) = &own.client_auth
            && known.client_auth.replace(client_auth).is_some_and(|known| known != client_auth)
        {
            return Err(differ("client certificates"));
        }
    }
    let mut demands = BTreeMap::new();
    for (name, own) in &said {
        // What has no path under its own name falls to all names below its parent: so does what is asked for.
        let parent = parent_of(name).filter(|_| !name.starts_with("*."));
        let above = parent.and_then(|parent| said.get_key_value(&format!("*.{parent}")));
        let other = |above: &str| Contradiction::Other { name: name.clone(), above: above.to_owned() };
        let inherited = above.and_then(|(_, above)| above.client_auth);
        if let (Some(own), Some(inherited), Some((above, _))) = (own.client_auth, inherited, above)
            && own != inherited
        {
            return Err(other(&format!("one for `{above}`")));
        }
        if let (Some(own), Some(of_listener)) = (own.client_auth, &tls.client_auth)
            && of_listener.required
            && !own.required
        {
            return Err(other("its listener"));
        }
        let versions = own.versions.or(above.and_then(|(_, above)| above.versions)).unwrap_or(&tls.versions);
        let client_auth = own.client_auth.or(inherited).or(tls.client_auth.as_ref());
        demands.insert(name.clone(), Demands { versions, client_auth });
    }
    Ok(demands)
}

#[cfg(test)]
mod tests {
    use kakehi_ctl::state::Material;

    use super::*;

    fn auth(ca: &str, required: bool) -> Option<ClientAuth> {
        let ca = Material { path: ca.into(), ..Material::default() };
        Some(ClientAuth { ca, required, ..ClientAuth::default() })
    }

    fn frontend(versions: Option<TlsVersion>, client_auth: Option<ClientAuth>) -> FrontendTls {
        FrontendTls { versions: versions.map(|version| vec![version]), client_auth, hsts: None }
    }

    #[test]
    fn what_frontends_of_a_name_say_is_put_together_and_inherited_from_the_names_above() {
        let tls = Tls { client_auth: auth("listener", false), ..Tls::default() };
        let (all, one, other) =
            (frontend(None, auth("ca", true)), frontend(Some(TlsVersion::V13), None), FrontendTls::default());
        let frontends =
            [("*.a.example", &all), ("www.A.example.", &one), ("b.example", &one), ("c.example", &other)];
        let demands = by_name(&tls, frontends).unwrap();
        let names: Vec<_> = demands.keys().map(String::as_str).collect();
        assert_eq!(names, ["*.a.example", "b.example", "www.a.example"]);
        let www = demands["www.a.example"];
        assert_eq!((www.versions, www.client_auth), (&[TlsVersion::V13][..], all.client_auth.as_ref()));
        assert_eq!(demands["b.example"].client_auth, tls.client_auth.as_ref());
        assert_eq!(demands["*.a.example"].versions, tls.versions);
    }

    #[test]
    fn frontends_that_contradict_each_other_are_refused() {
        let open = Tls::default();
        let strict = Tls { client_auth: auth("ca", true), ..Tls::default() };
        let required = frontend(None, auth("ca", true));
        let optional = frontend(None, auth("ca", false));
        let (old, new) = (frontend(Some(TlsVersion::V12), None), frontend(Some(TlsVersion::V13), None));
        for (tls, frontends) in [
            (&open, vec![("a.example", &required), ("A.example.", &optional)]),
            (&open, vec![("a.example", &old), ("a.example", &new)]),
            (&open, vec![("*.example", &required), ("a.example", &optional)]),
            (&strict, vec![("a.example", &optional)]),
        ] {
            assert!(by_name(tls, frontends).is_err());
        }
        for (tls, frontends) in [
            (&open, vec![("a.example", &required), ("a.example", &old), ("b.example", &optional)]),
            (&open, vec![("*.example", &required), ("a.example", &required), ("a.example", &old)]),
            (&strict, vec![("a.example", &required)]),
        ] {
            assert!(by_name(tls, frontends).is_ok());
        }
    }
}
