//! Certificates as text. There is nothing secret in what is shown.

use std::{
    fmt::Write as _,
    time::{SystemTime, UNIX_EPOCH},
};

use kakehi_ctl::{order::CertificateInfo, state::KeyKind};
use time::OffsetDateTime;

use super::table;

/// Seconds of a day.
pub(crate) const DAY: i64 = 86_400;

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

/// One line per certificate; `now` in seconds since 1970.
pub(crate) fn certificates(certificates: &[CertificateInfo], now: i64) -> String {
    let mut rows = vec![["NAMES", "ADDRESS", "KEY", "EXPIRES", "FINGERPRINT"].map(str::to_owned)];
    rows.extend(certificates.iter().map(|it| {
        [
            names(it),
            it.address.to_string(),
            kind(it.key).to_owned(),
            format!("{} ({})", date(it.not_after), days_left(it.not_after, now)),
            it.fingerprint.to_string(),
        ]
    }));
    table(&rows)
}

/// All that there is to say of one.
pub(crate) fn certificate(it: &CertificateInfo, now: i64) -> String {
    let mut rows = vec![
        ("fingerprint", it.fingerprint.to_string()),
        ("names", names(it)),
        ("listener", it.address.to_string()),
        ("default", if it.default { "yes" } else { "no" }.to_owned()),
        ("subject", printable(&it.subject)),
        ("issuer", printable(&it.issuer)),
        ("serial", printable(&it.serial)),
        ("valid from", date(it.not_before)),
        ("expires", format!("{} ({})", date(it.not_after), days_left(it.not_after, now))),
        ("key", kind(it.key).to_owned()),
        ("chain", format!("{} more", it.chain_length)),
    ];
    match &it.files {
        None => rows.push(("files", "none: it came over the command socket".to_owned())),
        Some(files) => {
            rows.push(("file", printable(&files.certificate.to_string_lossy())));
            rows.extend(files.chain.iter().map(|chain| ("chain file", printable(&chain.to_string_lossy()))));
            rows.push(("key file", printable(&files.key.to_string_lossy())));
        }
    }
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<12}{value}");
    }
    text
}

fn names(certificate: &CertificateInfo) -> String {
    match certificate.names.is_empty() {
        true => "none".to_owned(),
        false => printable(&certificate.names.join(", ")),
    }
}

/// What stands in a certificate must not garble a terminal.
pub(crate) fn printable(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

fn kind(key: KeyKind) -> &'static str {
    match key {
        KeyKind::Ecdsa => "ecdsa",
        KeyKind::Ed25519 => "ed25519",
        KeyKind::Rsa => "rsa",
    }
}

/// Day and time (UTC) of a time in milliseconds since 1970, as in the log.
pub(super) fn time_of_day(millis: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000);
    time.map_or_else(
        |_| "-".to_owned(),
        |it| {
            let (hour, minute, second, millisecond) = it.to_hms_milli();
            format!("{}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z", it.date())
        },
    )
}

/// The day (UTC) of a time in seconds since 1970.
fn date(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_or_else(|_| "never".to_owned(), |it| it.date().to_string())
}

fn days_left(not_after: i64, now: i64) -> String {
    match not_after.saturating_sub(now) {
        left if left < 0 => "expired".to_owned(),
        left if left < DAY => "less than a day".to_owned(),
        left if left < 2 * DAY => "1 day".to_owned(),
        left => format!("{} days", left / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_when_it_expires() {
        let at = 1_772_323_200;
        assert_eq!(
            (date(0), date(at), date(i64::MAX)),
            ("1970-01-01".into(), "2026-03-01".into(), "never".into())
        );
        for (now, text) in [
            (at + 1, "expired"),
            (at, "less than a day"),
            (at - DAY, "1 day"),
            (at - 2 * DAY, "2 days"),
            (at - 90 * DAY - 1, "90 days"),
        ] {
            assert_eq!(days_left(at, now), text);
        }
    }

    #[test]
    fn what_stands_in_a_certificate_garbles_no_terminal() {
        assert_eq!(printable("CN=a\u{1b}[2J\nü"), "CN=a\\u{1b}[2J\\nü");
    }
}
