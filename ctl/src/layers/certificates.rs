//! Certificates that are by hand. A mark stands under the fingerprint that the certificate has, or had when it was removed; whose
//! it is over a renewal, its file tells ([`same_entry`]): what was removed by hand does not come back when its file is renewed.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use super::{ByHand, InFile};
use crate::{
    change::{Change, ChangeError},
    state::{Certificate, Fingerprint, ListenerCertificates, State},
};

/// Whether two certificates of a listener are one entry, before and after it was renewed: they come from the same file.
fn same_entry(one: &Certificate, other: &Certificate) -> bool {
    match (&one.files, &other.files) {
        (Some(one), Some(other)) => one.certificate() == other.certificate(),
        _ => false,
    }
}

/// What is said of `said`, with the content of `content`. The names that are in a certificate are not known where others were said.
fn with_content_of(said: &Certificate, content: &Certificate) -> Arc<Certificate> {
    let names = if said.named || content.named { &said.names } else { &content.names };
    let names = names.clone();
    Arc::new(Certificate { names, named: said.named, default: said.default, ..content.clone() })
}

/// What of `certificates` is the entry of the file that `base` or `present` was: itself, or what its file holds now.
fn entry_in<'a>(
    certificates: Option<&'a ListenerCertificates>,
    fingerprint: &Fingerprint,
    base: &InFile<Arc<Certificate>>,
    present: Option<&Arc<Certificate>>,
) -> Option<(Fingerprint, &'a Arc<Certificate>)> {
    let certificates = certificates?;
    if let Some(it) = certificates.get(fingerprint) {
        return Some((*fingerprint, it));
    }
    let known = base.as_ref().or(present)?;
    let found = certificates.iter().find(|(_, it)| same_entry(it, known));
    found.map(|(fingerprint, it)| (*fingerprint, it))
}

impl ByHand {
    /// Forgets the mark of a certificate that is as in the file, which one of the same file may have become by hand.
    pub(super) fn settle_certificate(
        &mut self,
        state: &State,
        address: SocketAddr,
        fingerprint: &Fingerprint,
    ) {
        let marks = self.certificates.entry(address).or_default();
        let removed = marks.iter().find_map(|(removed, base)| {
            let base = base.as_ref().filter(|_| state.certificate(address, removed).is_none())?;
            let comes = |(it, mark): (&Fingerprint, &InFile<_>)| {
                let present = state.certificate(address, it).filter(|_| *mark == InFile::Nothing)?;
                same_entry(present, base).then(|| (*it, with_content_of(base, present)))
            };
            Some((*removed, marks.iter().find_map(comes)?))
        });
        let settle = |marks: &mut BTreeMap<_, InFile<_>>, it: &Fingerprint| {
            if marks.get(it).is_some_and(|base| base.as_ref() == state.certificate(address, it)) {
                marks.remove(it);
            }
        };
        settle(marks, fingerprint);
        if let Some((removed, (comes, base))) = removed {
            marks.remove(&removed);
            marks.insert(comes, InFile::This(base));
            settle(marks, &comes);
        }
    }
}

impl State {
    /// As [`State::apply`], where it follows from files other than that of the configuration: whose the entries are does not
    /// change. A certificate that comes as another goes is whose that was.
    ///
    /// # Errors
    /// See [`ChangeError`]; changes before the one that fails are made.
    pub(super) fn apply_renewed(&mut self, changes: &[Change]) -> Result<(), ChangeError> {
        for change in changes {
            self.apply(change)?;
        }
        for change in changes {
            let Change::RemoveCertificate { address, fingerprint } = change else { continue };
            let Some(marks) = self.by_hand.certificates.get_mut(address) else { continue };
            let renewed = changes.iter().find_map(|change| match change {
                Change::SetCertificate { address: there, fingerprint, certificate } if there == address => {
                    Some((*fingerprint, certificate))
                }
                _ => None,
            });
            if let (Some(base), Some((renewed, certificate))) = (marks.remove(fingerprint), renewed) {
                let base = base.as_ref().map(|base| with_content_of(base, certificate));
                marks.entry(renewed).or_insert(InFile::of(base));
            }
        }
        self.by_hand.tidy();
        Ok(())
    }

    /// The certificates that are here and of which something is by hand.
    #[must_use]
    pub fn certificates_by_hand(&self) -> BTreeMap<SocketAddr, ListenerCertificates> {
        let of_listener = |(address, marks): (&SocketAddr, &BTreeMap<Fingerprint, _>)| {
            let present = |it: &Fingerprint| Some((*it, Arc::clone(self.certificate(*address, it)?)));
            (*address, marks.keys().filter_map(present).collect())
        };
        self.by_hand.certificates.iter().map(of_listener).collect()
    }

    /// Has what is by hand of certificates go on with what their files hold now, which were read again; `before`: as
    /// [`State::certificates_by_hand`] was until then.
    pub fn follow_files(&mut self, before: &BTreeMap<SocketAddr, ListenerCertificates>) {
        for (address, before) in before {
            let (Some(marks), Some(now)) =
                (self.by_hand.certificates.get_mut(address), self.certificates.get(address))
            else {
                continue;
            };
            for (fingerprint, before) in before.iter().filter(|(it, _)| !now.contains_key(it)) {
                let renewed = now.iter().find(|(_, it)| same_entry(it, before));
                if let (Some((renewed, certificate)), Some(base)) = (renewed, marks.remove(fingerprint)) {
                    let base = base.as_ref().map(|base| with_content_of(base, certificate));
                    marks.entry(*renewed).or_insert(InFile::of(base));
                }
            }
        }
    }

    /// As [`State::lay_by_hand_over`] for certificates, once those of the file have been read; those whose listener has no TLS any
    /// more go.
    pub fn lay_certificates_over(&self, file: &mut State) {
        for (address, marks) in &self.by_hand.certificates {
            let in_file = file.certificates.get(address).cloned();
            let mut certificates = in_file.clone().unwrap_or_default();
            let mut laid = BTreeMap::new();
            let entry = |(fingerprint, base): (&Fingerprint, &InFile<Arc<Certificate>>)| {
                let present = self.certificate(*address, fingerprint).cloned();
                let entry = entry_in(in_file.as_ref(), fingerprint, base, present.as_ref());
                (*fingerprint, base.clone(), present, entry.map(|(it, entry)| (it, Arc::clone(entry))))
            };
            let mut entries: Vec<_> = marks.iter().map(entry).collect();
            // What is said of the very certificate that the file has goes before what was said of one that it had.
            entries.sort_by_key(|(fingerprint, .., entry)| {
                entry.as_ref().is_some_and(|(it, _)| it == fingerprint)
            });
            for (fingerprint, base, present, entry) in entries {
                match (base, present, entry) {
                    (InFile::Nothing, Some(present), None) => {
                        certificates.insert(fingerprint, present);
                        laid.insert(fingerprint, InFile::Nothing);
                    }
                    (_, Some(present), Some((now, entry))) => {
                        let made =
                            if now == fingerprint { present } else { with_content_of(&present, &entry) };
                        certificates.insert(now, made);
                        laid.insert(now, InFile::This(entry));
                    }
                    (InFile::This(_), None, Some((now, entry))) => {
                        certificates.remove(&now);
                        laid.insert(now, InFile::This(entry));
                    }
                    (InFile::Nothing, None, _) | (InFile::This(_), _, None) => {}
                }
            }
            laid.retain(|fingerprint, it| it.as_ref() != certificates.get(fingerprint));
            file.certificates.insert(*address, certificates);
            file.by_hand.certificates.insert(*address, laid);
        }
        let listeners = &file.listeners;
        let terminates = |address: &SocketAddr| listeners.get(address).is_some_and(|it| it.tls.is_some());
        file.certificates.retain(|address, it| !it.is_empty() && terminates(address));
        file.by_hand.certificates.retain(|address, _| terminates(address));
        file.by_hand.tidy();
    }
}
