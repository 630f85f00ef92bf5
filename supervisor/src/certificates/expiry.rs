//! Which certificates expire soon, or have, and which revocation lists are out of date: for whoever watches the figures, and in the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kakehi_ctl::state::State;
use kakehi_engine::tls::Vault;
use tokio::time::Instant;

use super::keeper::Keeper;
use super::{
    content,
    files::Source,
    materials,
    verify::{SOON_S, now},
};

/// How often it is told.
const PERIOD: Duration = Duration::from_secs(86_400);
/// Certificates that are named; of others only the number.
const NAMED: usize = 20;

/// The figures of the certificates, by their names.
pub(crate) fn figures(state: &State) -> BTreeMap<String, u64> {
    let certificates = || state.certificates.values().flat_map(|it| it.values());
    let number = certificates().count() as u64;
    let soonest = certificates().map(|it| u64::try_from(it.not_after).unwrap_or(0)).min();
    let figures = [
        ("tls.certificates", Some(number)),
        // None at all where there is no certificate: 0 would be the year 1970.
        ("tls.cert.min_expires_at_seconds", soonest),
    ];
    figures.into_iter().filter_map(|(name, figure)| Some((name.to_owned(), figure?))).collect()
}

/// One line for each certificate that has expired at `now` or will soon, the first to expire first.
fn expiring(state: &State, now: i64) -> Vec<String> {
    let all = state.certificates.iter().flat_map(|(address, certificates)| {
        certificates.iter().map(move |(fingerprint, it)| (it.not_after, address, fingerprint, it))
    });
    let mut soon: Vec<_> = all.filter(|(not_after, ..)| *not_after < now + SOON_S).collect();
    soon.sort_by_key(|(not_after, address, fingerprint, _)| (*not_after, *address, *fingerprint));
    let mut lines: Vec<String> = soon
        .iter()
        .take(NAMED)
        .map(|(not_after, address, fingerprint, certificate)| {
            let when = match not_after - now {
                left @ 1.. => format!("expires in {} days", left / 86_400),
                ago => format!("has expired {} days ago", -ago / 86_400),
            };
            let file = certificate
                .files
                .as_ref()
                .map_or_else(|| fingerprint.to_string(), |files| files.certificate().display().to_string());
            format!("certificate {file} for {} on {address} {when}", certificate.names)
        })
        .collect();
    if soon.len() > NAMED {
        lines.push(format!("{} more certificates expire within 14 days or have", soon.len() - NAMED));
    }
    lines
}

/// One line for each revocation list of `state` that is out of date at `now`.
pub(super) fn stale_crls(state: &State, vault: &Vault, now: i64) -> BTreeSet<String> {
    let crls = materials::listed(state).into_iter().filter_map(|(source, places)| match source {
        Source::Crls(path) => Some((path, *places.first()?)),
        _ => None,
    });
    let warnings = crls.flat_map(|(path, place)| {
        // What cannot be read has been told elsewhere.
        let found = vault.read(place).ok().and_then(|text| content::check_crls(&text, now).ok());
        let line = move |it| format!("{}: {it}", path.display());
        found.into_iter().flatten().map(line)
    });
    warnings.collect()
}

impl Keeper {
    /// When it is told next which certificates expire.
    pub(crate) fn expiry_due(&self, state: &State) -> Option<Instant> {
        (!state.certificates.is_empty()).then_some(self.expiry_due)
    }

    /// Tells which certificates expire.
    pub(crate) fn tell_expiry(&mut self, state: &State) {
        self.expiry_due = Instant::now() + PERIOD;
        let crls = stale_crls(state, self.vault(), now());
        for line in expiring(state, now()).into_iter().chain(crls) {
            tracing::warn!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use kakehi_ctl::state::{Certificate, Fingerprint, KeyKind, Place};

    use super::*;

    #[test]
    fn what_expires_first_is_told_first_and_what_expires_late_is_not() {
        let mut state = State::default();
        assert_eq!(figures(&state).into_iter().collect::<Vec<_>>(), [("tls.certificates".to_owned(), 0)]);
        let now = 1_700_000_000;
        for (n, not_after) in [(1, now + 86_400 * 13 + 5), (2, now - 86_400 * 2), (3, now + 86_400 * 15)] {
            let certificate = Certificate {
                names: [format!("{n}.example")].into_iter().collect(),
                key: KeyKind::Ecdsa,
                not_after,
                default: false,
                named: false,
                place: Place::default(),
                files: None,
            };
            let certificates = state.certificates.entry(([127, 0, 0, 1], 443).into()).or_default();
            certificates.insert(Fingerprint([n; 32]), certificate.into());
        }
        let figures = figures(&state);
        assert_eq!(figures["tls.certificates"], 3);
        assert_eq!(figures["tls.cert.min_expires_at_seconds"], now as u64 - 86_400 * 2);
        let lines = expiring(&state, now);
        assert!(lines.len() == 2, "{lines:?}");
        assert!(lines[0].ends_with("for 2.example on 127.0.0.1:443 has expired 2 days ago"), "{lines:?}");
        assert!(lines[1].ends_with("expires in 13 days"), "{lines:?}");
    }
}
