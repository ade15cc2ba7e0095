//! The value types of the configuration that are so much in a time.

use std::borrow::Cow;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::values::{ByteSize, Text, TextVisitor, expected, split_unit, text_types};

/// A least speed: `256B/s`, `1KiB/s`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate(pub Option<NonZeroU64>);

/// So many in a second, minute or hour: `20/s`, `100/min`, `1000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In which time.
    pub per: Duration,
}

impl Text for MinRate {
    const EXPECTED: &'static str = "a speed such as `256B/s`, or `off`";

    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_suffix("/s") {
            Some(size) if split_unit(size).is_some() => {
                let bytes = NonZeroU64::new(<ByteSize as Text>::parse(size)?.0);
                Ok(Self(Some(bytes.ok_or("a speed of nothing: write `off`")?)))
            }
            None if text == "off" => Ok(Self(None)),
            _ => Err(expected::<Self>(text)),
        }
    }
}

/// What a rate may be counted in.
const PERIODS: [(&str, Duration); 3] =
    [("s", Duration::from_secs(1)), ("min", Duration::from_secs(60)), ("h", Duration::from_secs(3_600))];

impl Text for Rate {
    const EXPECTED: &'static str = "a rate such as `20/s` or `100/min`";

    fn parse(text: &str) -> Result<Self, String> {
        let (count, unit) = text.split_once('/').ok_or_else(|| expected::<Self>(text))?;
        let count = count.parse().map_err(|_| expected::<Self>(text))?;
        let per = PERIODS.iter().find(|(known, _)| *known == unit).map(|(_, per)| *per);
        Ok(Self { count, per: per.ok_or_else(|| expected::<Self>(text))? })
    }
}

impl fmt::Display for MinRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{}/s", ByteSize(bytes.get())),
            None => f.write_str("off"),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = PERIODS.iter().find(|(_, per)| *per == self.per).map_or("", |(unit, _)| unit);
        write!(f, "{}/{unit}", self.count)
    }
}

text_types! {
    MinRate Some("^([0-9]+(B|[kK]B|MB|GB|KiB|MiB|GiB)/s|off)$");
    Rate Some("^[0-9]+/(s|min|h)$");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason<T: Text + fmt::Debug>(text: &str) -> String {
        T::parse(text).unwrap_err()
    }

    fn shown<T: Text + fmt::Display>(text: &str) -> String {
        T::parse(text).unwrap().to_string()
    }

    #[test]
    fn speeds_and_rates_name_their_time() {
        assert_eq!(MinRate::parse("256B/s").unwrap().0.map(NonZeroU64::get), Some(256));
        assert_eq!((shown::<MinRate>("1024B/s"), shown::<MinRate>("off")), ("1KiB/s".into(), "off".into()));
        assert_eq!(reason::<MinRate>("0B/s"), "a speed of nothing: write `off`");
        assert_eq!(
            reason::<MinRate>("256B"),
            "expected a speed such as `256B/s`, or `off`, found string `256B`"
        );
        assert_eq!((shown::<Rate>("20/s"), shown::<Rate>("100/min")), ("20/s".into(), "100/min".into()));
        for wrong in ["20", "0/s", "-1/s", "20/day", "/s"] {
            assert!(reason::<Rate>(wrong).starts_with("expected a rate"), "{wrong}");
        }
    }
}
