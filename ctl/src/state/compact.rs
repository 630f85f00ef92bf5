//! What is known of certificates takes as little memory as it can: every process has all of it, and there may be very many.

use std::{
    collections::BTreeMap, ffi::OsStr, fmt, net::SocketAddr, os::unix::ffi::OsStrExt as _, path::Path,
    sync::Arc,
};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};

use super::{Certificate, CertificateFiles, ListenerCertificates, State};

/// Names of hosts: text without ends of lines.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Names(Box<str>);

impl Names {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split_terminator('\n')
    }

    /// One after the other, and by what each is found again.
    pub fn positions(&self) -> impl Iterator<Item = (u32, &str)> {
        self.iter().scan(0, |next, name| {
            let position = *next;
            // Less than 4 GiB, as a certificate is.
            *next += name.len() as u32 + 1;
            Some((position, name))
        })
    }

    /// The one at a position of [`Names::positions`].
    pub fn at(&self, position: u32) -> &str {
        let rest = self.0.get(position as usize..).unwrap_or_default();
        rest.split_once('\n').map_or(rest, |(name, _)| name)
    }

    /// As a list.
    pub fn to_vec(&self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }
}

/// With commas between them.
impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comma = |position| if position == 0 { "" } else { ", " };
        self.positions().try_for_each(|(position, name)| write!(f, "{}{name}", comma(position)))
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<const N: usize> From<[&str; N]> for Names {
    fn from(names: [&str; N]) -> Names {
        names.into_iter().collect()
    }
}

impl<const N: usize> PartialEq<[&str; N]> for Names {
    fn eq(&self, names: &[&str; N]) -> bool {
        self.iter().eq(names.iter().copied())
    }
}

/// What has an end of line in it is left out: no host has such a name.
impl<T: AsRef<str>> FromIterator<T> for Names {
    fn from_iter<I: IntoIterator<Item = T>>(names: I) -> Names {
        let mut text = String::new();
        for name in names {
            let name = name.as_ref();
            if !name.contains('\n') {
                text.extend([name, "\n"]);
            }
        }
        Names(text.into())
    }
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<String>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// The files of a certificate. Of all but the first, only that is kept in which they differ from it.
///
/// Their paths are separated by a zero, which no path has; behind it stands in one byte how much is as in the first.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PackedFiles(Box<[u8]>);

impl From<&CertificateFiles> for PackedFiles {
    fn from(CertificateFiles { certificate, chain, key }: &CertificateFiles) -> PackedFiles {
        let first = certificate.as_os_str().as_bytes();
        let mut bytes = first.to_vec();
        for path in chain.iter().chain([key]) {
            let path = path.as_os_str().as_bytes();
            let same = first.iter().zip(path).take(u8::MAX.into()).take_while(|(a, b)| a == b).count();
            bytes.extend([0, same as u8]);
            bytes.extend_from_slice(&path[same..]);
        }
        PackedFiles(bytes.into())
    }
}

impl PackedFiles {
    /// The certificate itself, with or without its chain.
    pub fn certificate(&self) -> &Path {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        Path::new(OsStr::from_bytes(&self.0[..end]))
    }

    /// All of them.
    pub fn unpack(&self) -> CertificateFiles {
        let certificate = self.certificate();
        let first = certificate.as_os_str().as_bytes();
        let mut rest = &self.0[first.len()..];
        let mut others = Vec::new();
        while let [_, same, after @ ..] = rest {
            let end = after.iter().position(|byte| *byte == 0).unwrap_or(after.len());
            let path = [first.get(..usize::from(*same)).unwrap_or(first), &after[..end]].concat();
            others.push(Box::<Path>::from(Path::new(OsStr::from_bytes(&path))));
            rest = &after[end..];
        }
        // The key is the last one.
        let key = others.pop().unwrap_or_else(|| certificate.into());
        CertificateFiles { certificate: certificate.into(), chain: others.pop(), key }
    }
}

impl fmt::Debug for PackedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.unpack().fmt(f)
    }
}

impl Serialize for PackedFiles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.unpack().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PackedFiles {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(PackedFiles::from(&CertificateFiles::deserialize(deserializer)?))
    }
}

impl State {
    /// A copy that shares nothing with it.
    #[must_use]
    pub fn detached(&self) -> State {
        let mut copy = self.clone();
        for certificates in copy.certificates.values_mut() {
            let detached =
                certificates.iter().map(|(it, shared)| (*it, Arc::new(Certificate::clone(shared))));
            *certificates = detached.collect();
        }
        copy
    }
}

/// Certificates by listener, in trees that were built at once: one that grows in the order of its keys is half empty.
pub(super) fn certificates<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<SocketAddr, ListenerCertificates>, D::Error> {
    let read = BTreeMap::<SocketAddr, Whole>::deserialize(deserializer)?;
    Ok(read.into_iter().map(|(address, Whole(certificates))| (address, certificates)).collect())
}

struct Whole(ListenerCertificates);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(WholeVisitor)
    }
}

struct WholeVisitor;

impl<'de> Visitor<'de> for WholeVisitor {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("certificates by their fingerprints")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Whole, A::Error> {
        let mut read = Vec::new();
        while let Some(entry) = map.next_entry()? {
            read.push(entry);
        }
        Ok(Whole(read.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_where_they_were_and_none_has_an_end_of_line() {
        let names: Names = ["a.example", "b\nc.example", "*.example", "a.example"].into_iter().collect();
        assert_eq!(names.to_vec(), ["a.example", "*.example", "a.example"]);
        assert_eq!(names.to_string(), "a.example, *.example, a.example");
        assert!(names.positions().all(|(position, name)| names.at(position) == name));
        assert_eq!(names.at(99), "");
        let none = Names::default();
        assert_eq!((none.iter().count(), none.to_string(), none.at(0)), (0, String::new(), ""));
        for names in [names, none] {
            let json = serde_json::to_string(&names).unwrap();
            assert_eq!(serde_json::from_str::<Names>(&json).unwrap(), names, "{json}");
        }
    }

    #[test]
    fn files_are_unpacked_as_they_were() {
        let long = format!("/{}/certificate.pem", "x".repeat(300));
        let path = |text: &str| Box::from(Path::new(text));
        for (certificate, chain, key) in [
            ("/etc/a.pem", None, "/etc/a.key"),
            ("/etc/a.pem", Some("/etc/chain.pem"), "/etc/keys/a.key"),
            ("/etc/a.pem", None, "/etc/a.pem"),
            ("/etc/a.pem", Some("/etc/a"), "b"),
            ("a", Some(""), ""),
            ("", None, "/a"),
            (&long, Some(&long), "/x"),
            ("/x", Some(&long), &long),
        ] {
            let files =
                CertificateFiles { certificate: path(certificate), chain: chain.map(path), key: path(key) };
            let packed = PackedFiles::from(&files);
            assert_eq!(packed.certificate(), Path::new(certificate));
            assert_eq!(packed.unpack(), files);
            let json = serde_json::to_string(&packed).unwrap();
            assert_eq!(json, serde_json::to_string(&files).unwrap());
            assert_eq!(serde_json::from_str::<PackedFiles>(&json).unwrap(), packed);
        }
        let files =
            CertificateFiles { certificate: path("/etc/a.pem"), chain: None, key: path("/etc/a.key") };
        assert_eq!(PackedFiles::from(&files).0.len(), 10 + 2 + 3);
    }
}
