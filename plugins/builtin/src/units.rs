//! Sizes and durations as a configuration writes them: a number with its unit.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

/// A number of bytes: `512B`, `64KiB`, `1MiB`, `2GiB`, or decimal `1KB`, `1MB`, `1GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("pattern" = "^[0-9]+(B|KiB|MiB|GiB|KB|MB|GB)$"))]
pub(crate) struct ByteSize(pub(crate) u64);

impl ByteSize {
    pub(crate) const MIB: ByteSize = ByteSize(1 << 20);

    /// As a length in memory.
    pub(crate) fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let unit = |unit: &str| {
            Some(match unit {
                "B" => 1,
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                "GiB" => 1 << 30,
                "KB" => 1_000,
                "MB" => 1_000_000,
                "GB" => 1_000_000_000,
                _ => return None,
            })
        };
        quantity(&text, unit)
            .map(ByteSize)
            .ok_or_else(|| format!("`{text}` is not a size; write e.g. `512B`, `64KiB` or `1MiB`"))
    }
}

/// A length of time: `250ms`, `10s`, `5m`, `1h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String", extend("pattern" = "^[0-9]+(ms|s|m|h|d)$"))]
pub(crate) struct Span(pub(crate) Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let unit = |unit: &str| {
            Some(match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return None,
            })
        };
        quantity(&text, unit)
            .map(|millis| Span(Duration::from_millis(millis)))
            .ok_or_else(|| format!("`{text}` is not a duration; write e.g. `250ms`, `10s` or `5m`"))
    }
}

/// Digits, then a unit, as a multiple of the smallest unit; none if it does not fit 64 bits.
fn quantity(text: &str, unit: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, name) = text.split_at(digits);
    number.parse::<u64>().ok()?.checked_mul(unit(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_have_a_number_and_a_unit() {
        let size = |text: &str| ByteSize::try_from(text.to_owned()).ok().map(|size| size.0);
        assert_eq!((size("1MiB"), size("10B"), size("2KB")), (Some(1 << 20), Some(10), Some(2000)));
        for wrong in ["", "1", "MiB", "1 MiB", "-1B", "1.5MiB", "1mib", "99999999999GiB"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
        let span = |text: &str| Span::try_from(text.to_owned()).ok().map(|span| span.0.as_millis());
        assert_eq!((span("250ms"), span("5m"), span("1d")), (Some(250), Some(300_000), Some(86_400_000)));
        assert_eq!((span("5"), span("5M"), span("")), (None, None, None));
    }
}
