//! Figures as a monitoring system reads them: a [`Snapshot`], taken in the supervisor's loop, that another thread writes as text.
//!
//! Promises: a snapshot is small and holds nothing that runs; the text follows its format whatever stands in names and help.

use std::{collections::BTreeMap, fmt::Write as _};

use kakehi_engine::observe::Counter;

/// A form of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus text exposition format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// Its media type.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All figures at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Snapshot {
    figures: BTreeMap<String, u64>,
}

impl Snapshot {
    /// These figures, by the names under which `kakehictl status` shows them.
    pub(crate) fn new(figures: BTreeMap<String, u64>) -> Snapshot {
        Snapshot { figures }
    }
}

/// Writes a snapshot to the end of `text`.
pub(crate) fn expose(snapshot: &Snapshot, format: Format, text: &mut Vec<u8>) {
    let mut written = String::new();
    for (name, value) in &snapshot.figures {
        let family = format!("kakehi_{}", name_of(name));
        let is_gauge = is_gauge(name);
        let (total, kind) = if is_gauge { ("", "gauge") } else { ("_total", "counter") };
        // Of a counter, OpenMetrics names the family, Prometheus the sample.
        let described = match format {
            Format::Prometheus => format!("{family}{total}"),
            Format::OpenMetrics => family.clone(),
        };
        let help = escaped(&format!("`{name}` of `kakehictl status`, all workers together."), format);
        // Writing to a string cannot fail.
        let _ = writeln!(
            written,
            "# HELP {described} {help}\n# TYPE {described} {kind}\n{family}{total} {value}"
        );
    }
    if format == Format::OpenMetrics {
        written.push_str("# EOF\n");
    }
    text.extend_from_slice(written.as_bytes());
}

fn is_gauge(name: &str) -> bool {
    GAUGES.contains(&name) || Counter::ALL.iter().any(|counter| counter.is_gauge() && counter.name() == name)
}

/// Gauges that no worker has.
const GAUGES: [&str; 1] = ["admin.clients"];

/// What a name of a metric may have.
fn name_of(text: &str) -> String {
    text.chars().map(|it| if it.is_ascii_alphanumeric() { it } else { '_' }).collect()
}

/// Text of a `# HELP` line.
fn escaped(text: &str, format: Format) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match (character, format) {
            ('\\', _) => escaped.push_str("\\\\"),
            ('\n', _) => escaped.push_str("\\n"),
            ('"', Format::OpenMetrics) => escaped.push_str("\\\""),
            (character, _) => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exposed(figures: &[(&str, u64)], format: Format) -> String {
        let snapshot =
            Snapshot::new(figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect());
        let mut text = Vec::new();
        expose(&snapshot, format, &mut text);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn each_format_names_a_counter_in_its_way_and_a_gauge_has_no_suffix() {
        let figures = [("client.connections", 3), ("http.requests", u64::MAX)];
        assert_eq!(
            exposed(&figures, Format::Prometheus),
            "# HELP kakehi_client_connections `client.connections` of `kakehictl status`, all workers together.\n\
             # TYPE kakehi_client_connections gauge\n\
             kakehi_client_connections 3\n\
             # HELP kakehi_http_requests_total `http.requests` of `kakehictl status`, all workers together.\n\
             # TYPE kakehi_http_requests_total counter\n\
             kakehi_http_requests_total 18446744073709551615\n"
        );
        let open = exposed(&figures, Format::OpenMetrics);
        assert!(
            open.contains("# TYPE kakehi_http_requests counter\nkakehi_http_requests_total 1844"),
            "{open}"
        );
        assert!(open.ends_with("\n# EOF\n"));
        assert_eq!(exposed(&[], Format::Prometheus), "");
    }

    #[test]
    fn nothing_in_a_name_breaks_a_line() {
        for format in [Format::Prometheus, Format::OpenMetrics] {
            let text = exposed(&[("a\n\"b\\ é", 1)], format);
            assert_eq!(text.lines().count(), if format == Format::OpenMetrics { 4 } else { 3 }, "{text}");
            assert!(text.contains("\nkakehi_a__b____total 1\n") && text.contains("a\\n"), "{text}");
        }
    }
}
