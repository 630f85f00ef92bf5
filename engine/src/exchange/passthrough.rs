//! Where connections lead that are passed on as they are: by the name that a client of TLS asks for, and the protocols that it
//! offers (ALPN). No sockets here.

use std::{collections::BTreeMap, net::IpAddr, rc::Rc};

use crate::{
    http::Asked,
    quota::Guard,
    tls::{Contradiction, NameMap, OfferedProtocols},
    upstream::Cluster,
};

/// Where connections of a listener lead that are passed on.
#[derive(Default)]
pub(crate) struct Passthrough {
    /// By the name that a TLS client asks for; `None`: it is terminated here, whatever there is for names of that kind.
    names: NameMap<Option<Passages>>,
    /// All others.
    any: Passages,
}

/// Where connections lead that ask for one name, or for none of those that there are.
#[derive(Default)]
struct Passages {
    /// Those of clients that offer this protocol.
    by_protocol: BTreeMap<Box<[u8]>, Passage>,
    /// All others.
    others: Option<Passage>,
}

/// Where a connection is passed on to.
#[derive(Clone)]
pub(crate) struct Passage {
    pub(crate) cluster: Rc<Cluster>,
    /// How much its frontend takes from whom, where that is limited.
    pub(crate) guard: Option<Rc<Guard>>,
}

/// A connection that is passed on: nothing is known but whose it is.
pub(crate) struct Nameless(pub(crate) Option<IpAddr>);

impl Asked for Nameless {
    fn client(&self) -> Option<IpAddr> {
        self.0
    }
}

impl Passages {
    /// Of several protocols that there are the one that the client names first.
    fn choose(&self, offered: &OfferedProtocols) -> Option<&Passage> {
        let chosen = match self.by_protocol.is_empty() {
            true => None,
            false => offered.iter().find_map(|protocol| self.by_protocol.get(protocol)),
        };
        chosen.or(self.others.as_ref())
    }
}

impl Passthrough {
    /// Passes connections for `hostname`, or all others (`*`), on: those of clients that offer one of `alpn`, or, where that is empty, those
    /// that no protocol leads elsewhere.
    ///
    /// # Errors
    /// When another frontend wants the same connections.
    pub(crate) fn add(
        &mut self,
        hostname: &str,
        alpn: &[String],
        passage: Passage,
    ) -> Result<(), Contradiction> {
        let name = || hostname.to_owned();
        let passages = match hostname {
            "*" => &mut self.any,
            name => self.names.entry(name).or_default().get_or_insert_default(),
        };
        if alpn.is_empty() {
            return match passages.others.replace(passage.clone()) {
                Some(before) if !Rc::ptr_eq(&before.cluster, &passage.cluster) => {
                    Err(Contradiction::PassedOn { name: name() })
                }
                _ => Ok(()),
            };
        }
        for protocol in alpn {
            let before = passages.by_protocol.insert(protocol.as_bytes().into(), passage.clone());
            let same = |it: &Passage| Rc::ptr_eq(&it.cluster, &passage.cluster) && it.guard == passage.guard;
            if let Some(before) = before.filter(|before| !same(before)) {
                let clusters = [before, passage].map(|it| it.cluster.name.clone());
                let (name, protocol, clusters) = (name(), protocol.clone(), Box::new(clusters));
                return Err(Contradiction::Protocol { name, protocol, clusters });
            }
        }
        Ok(())
    }

    /// Connections for `host` are terminated here.
    ///
    /// # Errors
    /// When some of them are passed on.
    pub(crate) fn terminate(&mut self, host: &str) -> Result<(), Contradiction> {
        match self.names.insert(host, None) {
            Some(Some(_)) => Err(Contradiction::PassedOn { name: host.to_owned() }),
            _ => Ok(()),
        }
    }

    /// Where the connection of a client leads that asks for `name`, in lower case, and offers these protocols. `None`: it is not passed on.
    pub(crate) fn find(&self, name: Option<&str>, offered: &OfferedProtocols) -> Option<&Passage> {
        let by_name = name.map(|name| self.names.find_all(name));
        for passages in by_name.into_iter().flatten().flatten() {
            // Also where nothing is passed on that offers this: it is terminated.
            let passage = passages.as_ref()?.choose(offered);
            if passage.is_some() {
                return passage;
            }
        }
        self.any.choose(offered)
    }

    /// Where connections lead whose first message nobody has to read.
    pub(crate) fn unread(&self) -> Option<&Passage> {
        self.any.others.as_ref()
    }

    /// Whether the name makes a difference.
    pub(crate) fn goes_by_name(&self) -> bool {
        !self.names.is_empty()
    }

    /// Whether the first message of a client makes a difference.
    pub(crate) fn goes_by_hello(&self) -> bool {
        self.goes_by_name() || !self.any.by_protocol.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use kakehi_ctl::state;

    use super::*;

    /// A passage to a new cluster of this name.
    fn to(name: &str) -> Passage {
        let cluster = Cluster::new(name, &state::Cluster::default(), None).unwrap();
        Passage { cluster: Rc::new(cluster), guard: None }
    }

    fn alpn(words: &str) -> Vec<String> {
        words.split_whitespace().map(str::to_owned).collect()
    }

    fn found<'a>(all: &'a Passthrough, name: Option<&str>, offered: &str) -> Option<&'a str> {
        let offered = OfferedProtocols::new(offered.split_whitespace().map(str::as_bytes));
        all.find(name, &offered).map(|it| it.cluster.name.as_str())
    }

    #[test]
    fn protocols_go_before_all_others_of_a_name_and_the_client_chooses_among_several() {
        let mut all = Passthrough::default();
        for (hostname, protocols, name) in [
            ("a.test", "", "rest of a"),
            ("a.test", "h2 h3", "h2 of a"),
            ("A.test.", "http/1.1", "h1 of a"),
            ("b.test", "h2", "h2 of b"),
            ("*.test", "acme-tls/1", "acme of all"),
            ("*", "imap", "imap"),
            ("*", "", "rest"),
        ] {
            all.add(hostname, &alpn(protocols), to(name)).unwrap();
        }
        for (name, offered, expected) in [
            (Some("a.test"), "", "rest of a"),
            (Some("a.test"), "x H2", "rest of a"),
            (Some("a.test"), "http/1.1 h2", "h1 of a"),
            (Some("a.test"), "x h3 http/1.1", "h2 of a"),
            (Some("a.test"), "acme-tls/1", "rest of a"),
            (Some("b.test"), "h2 acme-tls/1", "h2 of b"),
            (Some("b.test"), "acme-tls/1", "acme of all"),
            (Some("b.test"), "", "rest"),
            (Some("b.test"), "imap", "imap"),
            (Some("c.d.test"), "h2", "rest"),
            (None, "h2", "rest"),
            (None, "h2 imap", "imap"),
        ] {
            assert_eq!(found(&all, name, offered), Some(expected), "{name:?} {offered}");
        }
        assert!(all.goes_by_name() && all.unread().is_some());
    }

    #[test]
    fn a_name_that_is_terminated_is_not_passed_on_whatever_is_offered() {
        let mut all = Passthrough::default();
        all.add("*.test", &alpn("h2"), to("through")).unwrap();
        all.terminate("www.test").unwrap();
        assert_eq!(found(&all, Some("www.test"), "h2"), None);
        assert_eq!(found(&all, Some("x.test"), "h2"), Some("through"));
        assert_eq!(found(&all, Some("x.test"), "http/1.1"), None);
        assert_eq!(
            all.terminate("*.test"),
            Err(Contradiction::PassedOn { name: "*.test".to_owned() }),
            "also of one protocol only"
        );
    }

    #[test]
    fn two_clusters_cannot_have_the_same_protocol_of_a_name() {
        let mut all = Passthrough::default();
        let one = to("one");
        all.add("a.test", &alpn("h2 h3"), one.clone()).unwrap();
        all.add("a.test", &alpn("h3 h4"), one.clone()).unwrap();
        all.add("b.test", &alpn("h2"), to("two")).unwrap();
        all.add("*.test", &alpn("h2"), to("two")).unwrap();
        let error = all.add("A.test", &alpn("h5 h4"), to("two")).unwrap_err().to_string();
        assert_eq!(
            error,
            "the frontends for `A.test` of the clusters `one` and `two` both take clients that offer `h4` (`alpn`)"
        );
        all.add("*", &alpn("h2"), one).unwrap();
        assert!(all.goes_by_hello() && all.unread().is_none());
        assert!(all.add("*", &alpn("h2"), to("two")).is_err());
    }
}
