//! Which form of the metrics is wanted, and whether it may be compressed (RFC 9110 section 12.5).

use hyper::{
    HeaderMap,
    header::{ACCEPT, ACCEPT_ENCODING, AsHeaderName},
};

use crate::metrics::Format;

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Variant {
    pub(super) format: Format,
    pub(super) gzip: bool,
}

impl Variant {
    /// How many there are.
    pub(super) const COUNT: usize = 4;

    /// Which of them it is.
    pub(super) fn index(self) -> usize {
        usize::from(self.format == Format::OpenMetrics) * 2 + usize::from(self.gzip)
    }

    /// The best for these fields; text that is not compressed where they say nothing, or nothing that there is.
    pub(super) fn wanted(fields: &HeaderMap) -> Variant {
        Variant { format: format(fields), gzip: gzip(fields) }
    }
}

/// How much something is wanted, in thousandths.
type Quality = u16;

/// How well a range fits: by a star, by a type, by its name, by its name and parameters.
type Precision = u8;

/// The items of a list, each with its parameters.
fn items(fields: &HeaderMap, name: impl AsHeaderName) -> Vec<(String, Vec<(String, String)>)> {
    let mut all = Vec::new();
    for line in fields.get_all(name).iter().filter_map(|it| it.to_str().ok()) {
        for item in line.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let Some(value) = parts.next().filter(|value| !value.is_empty()) else { continue };
            let parameters = parts.filter_map(|part| {
                let (name, value) = part.split_once('=')?;
                let value = value.trim().trim_matches('"');
                Some((name.trim().to_ascii_lowercase(), value.to_ascii_lowercase()))
            });
            all.push((value.to_ascii_lowercase(), parameters.collect()));
        }
    }
    all
}

/// The weight of an item; one that is none counts as 0.
fn quality(parameters: &[(String, String)]) -> Quality {
    let Some((_, text)) = parameters.iter().find(|(name, _)| name == "q") else { return 1_000 };
    let number = text.parse::<f32>().ok().filter(|it| (0.0..=1.0).contains(it));
    // The range was checked.
    number.map_or(0, |it| (it * 1_000.0).round() as Quality)
}

/// How much a format is wanted, and by what.
fn of_format(
    accepted: &[(String, Vec<(String, String)>)],
    media_type: (&str, &str),
    version: &str,
) -> (Quality, Precision) {
    let (kind, name) = media_type;
    let mut best: Option<(Precision, Quality)> = None;
    for (range, parameters) in accepted {
        let versions = || parameters.iter().filter(|(name, _)| name == "version");
        let precision = match range.split_once('/') {
            Some(("*", "*")) => 0,
            Some((of, "*")) if of == kind => 1,
            Some(it) if it == (kind, name) => match versions().next() {
                Some((_, wanted)) if wanted == version => 3,
                Some(_) => continue,
                None => 2,
            },
            _ => continue,
        };
        let quality = quality(parameters);
        if best.is_none_or(|(before, of)| (precision, quality) > (before, of)) {
            best = Some((precision, quality));
        }
    }
    best.map_or((0, 0), |(precision, quality)| (quality, precision))
}

fn format(fields: &HeaderMap) -> Format {
    let accepted = items(fields, ACCEPT);
    let (text, _) = of_format(&accepted, ("text", "plain"), "0.0.4");
    let (open, precision) = of_format(&accepted, ("application", "openmetrics-text"), "1.0.0");
    // Where both are as welcome, whoever names the newer one knows it.
    let is_named = precision >= 2;
    if open > text || (open == text && open > 0 && is_named) {
        Format::OpenMetrics
    } else {
        Format::Prometheus
    }
}

fn gzip(fields: &HeaderMap) -> bool {
    let accepted = items(fields, ACCEPT_ENCODING);
    let of = |names: &[&str]| {
        accepted.iter().find(|(name, _)| names.contains(&name.as_str())).map(|(_, it)| quality(it))
    };
    let gzip = of(&["gzip", "x-gzip"]).or_else(|| of(&["*"])).unwrap_or(0);
    gzip > 0 && of(&["identity"]).is_none_or(|identity| gzip >= identity)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn wanted(accept: &str, encoding: &str) -> Variant {
        let mut fields = HeaderMap::new();
        fields.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
        fields.insert(ACCEPT_ENCODING, HeaderValue::from_str(encoding).unwrap());
        Variant::wanted(&fields)
    }

    #[test]
    fn the_format_is_the_one_that_is_wanted_most() {
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/html, */*;q=0.8", Format::Prometheus),
            ("application/*", Format::OpenMetrics),
            ("text/plain", Format::Prometheus),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text; version=1.0.0", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8", Format::OpenMetrics),
            // Of a version that there is not.
            ("application/openmetrics-text; version=0.0.1", Format::Prometheus),
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.6",
                Format::Prometheus,
            ),
            (
                "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5",
                Format::OpenMetrics,
            ),
            ("text/plain, application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text;q=0, */*", Format::Prometheus),
            ("application/openmetrics-text;q=0.2, */*;q=0.9", Format::Prometheus),
            ("application/openmetrics-text;q=x, text/plain;q=0.1", Format::Prometheus),
            ("application/openmetrics-text;q=7", Format::Prometheus),
            // As Prometheus 3 asks.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            ("image/png, ;;, ,=", Format::Prometheus),
        ] {
            assert_eq!(wanted(accept, "").format, format, "{accept}");
        }
    }

    #[test]
    fn gzip_is_used_where_it_is_wanted() {
        for (encoding, gzip) in [
            ("", false),
            ("identity", false),
            ("gzip", true),
            ("GZIP", true),
            ("x-gzip", true),
            ("br, gzip;q=0.1", true),
            ("gzip;q=0", false),
            ("gzip;q=0.5, identity", false),
            ("gzip, identity;q=0.5", true),
            ("*", true),
            ("*;q=0", false),
            ("gzip;q=0, *", false),
            ("deflate, br", false),
            ("gzip;q=nonsense", false),
        ] {
            assert_eq!(wanted("*/*", encoding).gzip, gzip, "{encoding}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        let mut fields = HeaderMap::new();
        fields.append(ACCEPT, HeaderValue::from_static("text/plain;q=0.1"));
        fields.append(ACCEPT, HeaderValue::from_static("application/openmetrics-text"));
        assert_eq!(Variant::wanted(&fields).format, Format::OpenMetrics);
        assert_eq!(Variant::wanted(&HeaderMap::new()).index(), 0);
    }
}
