//! Quantities with their unit in the value: `64KiB`, `5ms`.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// A number of bytes: `512`, `64KiB`, `1MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub usize);

/// A time span: `500us`, `5ms`, `1s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(pub Duration);

impl Size {
    /// So many KiB.
    pub const fn kib(count: usize) -> Self {
        Size(count * 1024)
    }

    fn parse(text: &str) -> Option<Self> {
        let (count, unit) = number_and_unit(text)?;
        let factor = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        usize::try_from(count).ok()?.checked_mul(factor).map(Size)
    }
}

impl Period {
    fn parse(text: &str) -> Option<Self> {
        let (count, unit) = number_and_unit(text)?;
        match unit {
            "us" => Some(Period(Duration::from_micros(count))),
            "ms" => Some(Period(Duration::from_millis(count))),
            "s" => Some(Period(Duration::from_secs(count))),
            _ => None,
        }
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(end);
    Some((count.parse().ok()?, unit.trim_start()))
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a size such as `64KiB`")
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<Size, E> {
                usize::try_from(count).map(Size).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Size, E> {
                usize::try_from(count).map(Size).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                Size::parse(text).ok_or_else(|| {
                    E::custom(format!("`{text}` is not a size such as `512`, `64KiB` or `1MiB`"))
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        Period::parse(&text).ok_or_else(|| {
            de::Error::custom(format!("`{text}` is not a time span such as `500us`, `5ms` or `1s`"))
        })
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "pattern": "^[0-9]+ ?(B|KiB|MiB|GiB)?$", "minimum": 0 })
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[0-9]+ ?(us|ms|s)$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn sizes_and_periods_carry_their_unit() {
        for (value, size) in
            [(json!("64KiB"), 65536), (json!("1 MiB"), 1 << 20), (json!(7), 7), (json!("7"), 7)]
        {
            assert_eq!(from_value::<Size>(value).unwrap(), Size(size));
        }
        assert_eq!(from_value::<Period>(json!("500us")).unwrap(), Period(Duration::from_micros(500)));
        for wrong in
            [json!("64KB"), json!("KiB"), json!(-1), json!("99999999999999999999"), json!("9999999999999GiB")]
        {
            assert!(from_value::<Size>(wrong).is_err());
        }
        assert!(from_value::<Period>(json!("5")).unwrap_err().to_string().contains("5ms"));
    }
}
