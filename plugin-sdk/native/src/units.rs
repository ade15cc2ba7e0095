//! Sizes, times and rates as a plugin's table writes them: digits, then a unit.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A number of bytes: `512B`, `64KiB`, `1MiB`, `2GiB`, or decimal `1kB`, `1MB`, `1GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// A length of time: `500us`, `250ms`, `10s`, `5m`, `1h`, `7d`; at most ten years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// So many in a time: `10/s`, `100/min`, `1000/h`, `5000/d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In which time.
    pub per: Duration,
}

/// A unit's names, the one to write first, and how many of the smallest unit it is.
type Unit = (&'static [&'static str], u64);

/// Largest first, so that the first that divides a value is the one to show it in; decimal ones are
/// read only.
const SIZES: [Unit; 4] = [(&["GiB"], 1 << 30), (&["MiB"], 1 << 20), (&["KiB"], 1 << 10), (&["B"], 1)];
const DECIMAL: [Unit; 3] = [(&["GB"], 1_000_000_000), (&["MB"], 1_000_000), (&["kB", "KB"], 1000)];

/// In microseconds.
const TIMES: [Unit; 6] = [
    (&["d"], 86_400_000_000),
    (&["h"], 3_600_000_000),
    (&["m"], 60_000_000),
    (&["s"], 1_000_000),
    (&["ms"], 1000),
    (&["us"], 1),
];

/// What a rate may be counted in, in seconds.
const PERIODS: [(&str, u64); 4] = [("s", 1), ("min", 60), ("h", 3600), ("d", 86_400)];

/// Beyond this nothing is meant as a bound, and timers need not fear an overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(3650 * 86_400);

impl Size {
    /// So many KiB.
    pub const fn kib(count: usize) -> Self {
        Size(count << 10)
    }

    /// So many MiB.
    pub const fn mib(count: usize) -> Self {
        Size(count << 20)
    }
}

impl Span {
    /// So many seconds.
    pub const fn seconds(count: u64) -> Self {
        Span(Duration::from_secs(count))
    }

    /// So many milliseconds.
    pub const fn millis(count: u64) -> Self {
        Span(Duration::from_millis(count))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0 as u64, &SIZES)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX), &TIMES)
    }
}

/// Writes a value in the largest unit that it is a multiple of.
fn show(f: &mut fmt::Formatter<'_>, value: u64, units: &[Unit]) -> fmt::Result {
    let fits = |(_, factor): &&Unit| value >= *factor && value.is_multiple_of(*factor);
    match units.iter().find(fits).or(units.last()) {
        Some(([name, ..], factor)) => write!(f, "{}{name}", value / factor),
        _ => Ok(()),
    }
}

/// A type written as digits and a unit.
trait Quantity: Sized {
    /// Name in a schema.
    const NAME: &'static str;
    /// What it is, with an example.
    const EXPECTED: &'static str;
    /// As a regular expression.
    const PATTERN: &'static str;

    fn parse(text: &str) -> Option<Self>;
}

impl Quantity for Size {
    const NAME: &'static str = "Size";
    const EXPECTED: &'static str = "a size such as `512B`, `64KiB` or `1MiB`";
    const PATTERN: &'static str = "^[0-9]+(B|KiB|MiB|GiB|kB|KB|MB|GB)$";

    fn parse(text: &str) -> Option<Self> {
        let bytes = multiple(text, SIZES.iter().chain(&DECIMAL))?;
        usize::try_from(bytes).ok().map(Size)
    }
}

impl Quantity for Span {
    const NAME: &'static str = "Span";
    const EXPECTED: &'static str = "a duration such as `250ms`, `10s` or `5m`";
    const PATTERN: &'static str = "^[0-9]+(us|ms|s|m|h|d)$";

    fn parse(text: &str) -> Option<Self> {
        let length = Duration::from_micros(multiple(text, TIMES.iter())?);
        (length <= LONGEST).then_some(Span(length))
    }
}

impl Quantity for Rate {
    const NAME: &'static str = "Rate";
    const EXPECTED: &'static str = "a rate such as `10/s` or `100/min`";
    const PATTERN: &'static str = "^[0-9]+/(s|min|h|d)$";

    fn parse(text: &str) -> Option<Self> {
        let (count, unit) = text.split_once('/')?;
        let (_, seconds) = PERIODS.iter().find(|(known, _)| *known == unit)?;
        let is_plain = count.bytes().all(|byte| byte.is_ascii_digit());
        let count = is_plain.then(|| count.parse().ok())??;
        Some(Rate { count, per: Duration::from_secs(*seconds) })
    }
}

/// The value of digits and one of `units`; none if it does not fit 64 bits.
fn multiple<'a>(text: &str, mut units: impl Iterator<Item = &'a Unit>) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, name) = text.split_at(digits);
    let (_, factor) = units.find(|(names, _)| names.contains(&name))?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

struct Reader<Q>(PhantomData<Q>);

impl<Q: Quantity> Visitor<'_> for Reader<Q> {
    type Value = Q;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Q::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Q, E> {
        Q::parse(text).ok_or_else(|| E::custom(format!("`{text}` is not {}", Q::EXPECTED)))
    }
}

fn schema<Q: Quantity>() -> Schema {
    json_schema!({ "type": "string", "pattern": Q::PATTERN })
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Reader(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Reader(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Reader(PhantomData))
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        Self::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema::<Self>()
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        Self::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema::<Self>()
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        Self::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema::<Self>()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn a_size_is_digits_and_a_unit_of_bytes() {
        for (text, bytes) in [
            ("0B", 0),
            ("10B", 10),
            ("64KiB", 64 << 10),
            ("1MiB", 1 << 20),
            ("2GiB", 2 << 30),
            ("2kB", 2000),
            ("2KB", 2000),
            ("3MB", 3_000_000),
        ] {
            assert_eq!(from_value::<Size>(text.into()).unwrap(), Size(bytes), "{text}");
        }
    }

    #[test]
    fn a_span_is_digits_and_a_unit_of_time() {
        for (text, micros) in [
            ("500us", 500),
            ("250ms", 250_000),
            ("10s", 10_000_000),
            ("5m", 300_000_000),
            ("1d", 86_400_000_000),
        ] {
            assert_eq!(
                from_value::<Span>(text.into()).unwrap(),
                Span(Duration::from_micros(micros)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_rate_is_digits_and_a_time() {
        for (text, count, seconds) in
            [("10/s", 10, 1), ("100/min", 100, 60), ("7/h", 7, 3600), ("1/d", 1, 86_400)]
        {
            let rate = Rate { count: NonZeroU32::new(count).unwrap(), per: Duration::from_secs(seconds) };
            assert_eq!(from_value::<Rate>(text.into()).unwrap(), rate, "{text}");
        }
        for wrong in ["", "10", "/s", "0/s", "+1/s", "-1/s", "1.5/s", "10/m", "10 / s", "99999999999/s"] {
            assert!(from_value::<Rate>(wrong.into()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_an_example() {
        for wrong in [
            "",
            "1",
            "MiB",
            "1 MiB",
            " 1MiB",
            "-1B",
            "1.5MiB",
            "1mib",
            "99999999999GiB",
            "99999999999999999999B",
        ] {
            let error = from_value::<Size>(wrong.into()).unwrap_err().to_string();
            assert_eq!(error, format!("`{wrong}` is not a size such as `512B`, `64KiB` or `1MiB`"));
        }
        for wrong in ["", "5", "5M", "s", "1.5s", "3651d", "99999999999999d"] {
            assert!(from_value::<Span>(wrong.into()).is_err(), "{wrong}");
        }
        let error = from_value::<Size>(json!(64)).unwrap_err().to_string();
        assert!(error.ends_with("expected a size such as `512B`, `64KiB` or `1MiB`"), "{error}");
    }

    #[test]
    fn the_schema_accepts_what_is_shown() {
        for shown in [Size(1500).to_string(), Size::kib(64).to_string(), Size(0).to_string()] {
            assert_eq!(from_value::<Size>(shown.clone().into()).unwrap().to_string(), shown);
        }
        assert_eq!((Size::mib(16).to_string(), Size(1500).to_string()), ("16MiB".into(), "1500B".into()));
        for (span, shown) in
            [(Span::millis(5), "5ms"), (Span::seconds(60), "1m"), (Span(Duration::ZERO), "0us")]
        {
            assert_eq!(span.to_string(), shown);
            assert_eq!(from_value::<Span>(shown.into()).unwrap(), span);
        }
        let pattern = |schema: Value| schema["pattern"].as_str().map(str::to_owned);
        assert_eq!(pattern(schema::<Size>().to_value()).as_deref(), Some(Size::PATTERN));
    }
}
