//! Durations: a number of seconds, or a text with a unit (`"500ms"`, `"30s"`, `"5m"`, `"1h"`).

use toml::de::DeValue;

use super::{error::Quoted, read::type_name};
use crate::keys::MAX_SECONDS;

/// Milliseconds of each unit.
const UNITS: [(&str, f64); 4] = [("ms", 1.0), ("s", 1e3), ("m", 60e3), ("h", 3600e3)];

/// The shortest duration that a key takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Least {
    /// None at all: the key switches something off.
    Zero,
    /// More than none.
    Millisecond,
}

/// Milliseconds of a duration, or what was found. Zero only where `least` is.
pub(super) fn millis(value: &DeValue<'_>, least: Least) -> Result<u64, String> {
    let (written, millis) = match value {
        DeValue::String(text) => (&**text, with_unit(text)),
        other => {
            let (written, seconds) = number(other)?;
            (written, seconds.map(|seconds| seconds * 1000.0))
        }
    };
    if least == Least::Zero && millis == Some(0.0) {
        return Ok(0);
    }
    millis
        .filter(|millis| *millis > 0.0 && *millis <= MAX_SECONDS as f64 * 1000.0)
        // The range was checked, so that the conversion is exact; less than a millisecond counts as one.
        .map(|millis| (millis.round() as u64).max(1))
        .ok_or_else(|| match value {
            DeValue::String(_) => format!("the text {}", Quoted(written)),
            _ => Quoted(written).to_string(),
        })
}

/// A number, whole or with a fraction, as it is written and, where it can be read, its value; or what was found.
pub(super) fn number<'a>(value: &'a DeValue<'_>) -> Result<(&'a str, Option<f64>), String> {
    match value {
        DeValue::Integer(number) => {
            let whole = i64::from_str_radix(number.as_str(), number.radix()).ok();
            Ok((number.as_str(), whole.map(|whole| whole as f64)))
        }
        DeValue::Float(number) => Ok((number.as_str(), number.as_str().parse().ok())),
        other => Err(type_name(other).to_owned()),
    }
}

/// Milliseconds of a number, whole or with a fraction, and a unit that follows at once.
fn with_unit(text: &str) -> Option<f64> {
    let end = text.find(|character: char| character.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(end);
    let is_number = number.starts_with(|it: char| it.is_ascii_digit())
        && number.ends_with(|it: char| it.is_ascii_digit())
        && number.bytes().all(|it| it.is_ascii_digit() || it == b'.');
    let number: f64 = number.parse().ok().filter(|_| is_number)?;
    UNITS.into_iter().find_map(|(name, millis)| (name == unit).then_some(number * millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<u64> {
        millis(&DeValue::String(text.into()), Least::Zero).ok()
    }

    #[test]
    fn a_text_is_a_number_and_its_unit() {
        for (text, expected) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("0.25s", 250),
            ("1.5h", 5_400_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("0s", 0),
            ("0.1ms", 1),
            ("8760h", 31_536_000_000),
        ] {
            assert_eq!(of(text), Some(expected), "{text}");
        }
        for text in [
            "", "s", "ms", "30", "30 s", " 30s", "30s ", "-1s", "+1s", "1e3s", "30sec", "30S", "1d", "1h30m",
            ".5s", "5.s", "1.2.3s", "1_000s", "8761h", "infs", "nans", "\u{661}s",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
