//! A number by which something is multiplied: exact to a thousandth, so that what is written is what was read.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use toml::Value as Toml;

use crate::{
    config::Value,
    keys::{Field, Kind},
};

/// A factor, in thousandths; 0 = off. As a number in the state of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Factor(u32);

impl Factor {
    /// What the factor is about does not matter.
    pub const OFF: Factor = Factor(0);

    /// Whether the factor matters.
    #[must_use]
    pub fn is_on(self) -> bool {
        self.0 > 0
    }

    /// The factor as a number.
    #[must_use]
    pub fn get(self) -> f64 {
        f64::from(self.0) / 1_000.0
    }

    /// The nearest factor.
    fn of(number: f64) -> Option<Factor> {
        let thousandths = (number * 1_000.0).round();
        (0.0..=f64::from(u32::MAX)).contains(&thousandths).then_some(Factor(thousandths as u32))
    }
}

impl Serialize for Factor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 % 1_000 {
            0 => serializer.serialize_u32(self.0 / 1_000),
            _ => serializer.serialize_f64(self.get()),
        }
    }
}

impl<'de> Deserialize<'de> for Factor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = f64::deserialize(deserializer)?;
        Factor::of(number).ok_or_else(|| de::Error::custom("a factor is not negative, and below 4294967"))
    }
}

impl Field for Factor {
    fn read(value: &Value, kind: Kind, folder: &Path) -> Option<Self> {
        u32::read(value, kind, folder).map(Factor)
    }

    fn write(&self, _: Kind) -> Option<Toml> {
        Some(match self.0 % 1_000 {
            0 => Toml::from(i64::from(self.0 / 1_000)),
            _ => Toml::Float(self.get()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_also_of_a_program_that_knew_whole_numbers_only() {
        for (text, number) in [("0", 0.0), ("3", 3.0), ("1.5", 1.5), ("2.125", 2.125)] {
            let factor: Factor = serde_json::from_str(text).unwrap();
            assert_eq!((factor.get(), serde_json::to_string(&factor).unwrap().as_str()), (number, text));
        }
        assert!(serde_json::from_str::<Factor>("-1").is_err());
        assert!(serde_json::from_str::<Factor>("1e30").is_err());
    }
}
