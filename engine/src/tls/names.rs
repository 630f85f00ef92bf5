//! Something for each of some names, exact ones and all names below one.

use std::collections::{HashMap, hash_map::Entry};

use super::certificates::parent_of;

/// What there is for names. Names are in lower case; `*.name` is any one label below a name.
pub(crate) struct NameMap<T> {
    entries: HashMap<Box<str>, T>,
}

impl<T> Default for NameMap<T> {
    fn default() -> NameMap<T> {
        NameMap { entries: HashMap::new() }
    }
}

impl<T> NameMap<T> {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// `name` is exact or `*.name`, in any spelling. What was there before comes back.
    pub(crate) fn insert(&mut self, name: &str, value: T) -> Option<T> {
        self.entries.insert(normal(name).into(), value)
    }

    /// What there is for a host, which is in lower case: an exact name goes before all names below its parent.
    pub(crate) fn find(&self, host: &str) -> Option<&T> {
        if self.entries.is_empty() {
            return None;
        }
        self.entries.get(host).or_else(|| self.below_parent(host))
    }

    /// All that there is for it: of the exact name, and of all names below its parent.
    pub(crate) fn find_all(&self, host: &str) -> [Option<&T>; 2] {
        if self.entries.is_empty() {
            return [None, None];
        }
        [self.entries.get(host), self.below_parent(host)]
    }

    fn below_parent(&self, host: &str) -> Option<&T> {
        self.entries.get(format!("*.{}", parent_of(host)?).as_str())
    }

    /// What there is for `name`, in any spelling, which may be nothing yet.
    pub(crate) fn entry(&mut self, name: &str) -> Entry<'_, Box<str>, T> {
        self.entries.entry(normal(name).into())
    }
}

/// A name in the spelling in which it is asked for (RFC 6066 section 3): lower case, without the dot of the root.
pub(super) fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_name_goes_first_and_a_star_is_one_label() {
        let mut names = NameMap::default();
        names.insert("*.Example.org", 1);
        names.insert("a.example.org", 2);
        assert_eq!(names.find("a.example.org"), Some(&2));
        assert_eq!(names.find("b.example.org"), Some(&1));
        for host in ["example.org", "a.b.example.org", ".example.org", "org", ""] {
            assert_eq!(names.find(host), None, "{host}");
        }
        assert_eq!(names.find_all("a.example.org"), [Some(&2), Some(&1)]);
        assert_eq!(names.find_all("org"), [None, None]);
        assert_eq!(names.insert("A.example.org.", 3), Some(2), "the dot of the root makes no other name");
    }
}
