//! Sizes and times as the configuration writes them: a number with its unit.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error};

/// Bytes, e.g. `16MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) usize);

/// Time in whole milliseconds, e.g. `5ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Millis(pub(crate) u32);

const SIZES: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const TIMES: [(&str, u64); 2] = [("ms", 1), ("s", 1000)];

impl Size {
    pub(crate) const fn mib(count: usize) -> Self {
        Size(count << 20)
    }
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim_end(), factor)))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let bytes = parse(&text, &SIZES).and_then(|bytes| usize::try_from(bytes).ok());
        bytes.map(Size).ok_or_else(|| D::Error::custom(format!("`{text}` is not a size such as `16MiB`")))
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let millis = parse(&text, &TIMES).and_then(|millis| u32::try_from(millis).ok());
        millis.map(Millis).ok_or_else(|| D::Error::custom(format!("`{text}` is not a time such as `5ms`")))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as u64;
        let (unit, factor) = SIZES
            .iter()
            .find(|(_, factor)| bytes >= *factor && bytes.is_multiple_of(*factor))
            .unwrap_or(&SIZES[3]);
        write!(f, "{}{unit}", bytes / factor)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+ ?(B|KiB|MiB|GiB)$" })
    }
}

impl JsonSchema for Millis {
    fn schema_name() -> Cow<'static, str> {
        "Millis".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+ ?(ms|s)$" })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value};

    use super::*;

    #[test]
    fn units_are_read_and_written() {
        for (text, bytes) in [("16MiB", 16 << 20), ("64 KiB", 64 << 10), ("10B", 10)] {
            assert_eq!(from_value::<Size>(Value::from(text)).unwrap(), Size(bytes));
        }
        assert_eq!((Size::mib(16).to_string(), Size(1500).to_string()), ("16MiB".into(), "1500B".into()));
        assert_eq!(from_value::<Millis>(Value::from("2s")).unwrap(), Millis(2000));
    }

    #[test]
    fn a_number_without_unit_is_refused() {
        for text in ["16", "MiB", "-1MiB", "1.5MiB", "99999999999999999999GiB", "20000000000GiB"] {
            assert!(from_value::<Size>(Value::from(text)).is_err(), "{text}");
        }
        assert!(from_value::<Millis>(Value::from("5us")).is_err());
    }
}
