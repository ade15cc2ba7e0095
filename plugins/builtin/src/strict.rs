//! Reads JSON that has one meaning only: no repeated keys, no endless nesting.

use std::cell::Cell;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Why a body can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not JSON (RFC 8259).
    Malformed,
    /// An object has the same key twice.
    DuplicateKey,
    /// It is nested deeper than allowed.
    TooDeep,
}

/// Reads a document whose arrays and objects are nested at most `max_depth` deep.
pub(crate) fn parse(text: &[u8], max_depth: usize) -> Result<Value, Fault> {
    let fault = Cell::new(Fault::Malformed);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Strict { fault: &fault, left: max_depth }.deserialize(&mut reader);
    value.and_then(|value| reader.end().map(|()| value)).map_err(|_| fault.get())
}

/// Reads one value; an error that is not the reader's own is noted in `fault`.
#[derive(Clone, Copy)]
struct Strict<'a> {
    fault: &'a Cell<Fault>,
    left: usize,
}

impl Strict<'_> {
    fn inner<E: Error>(self) -> Result<Self, E> {
        match self.left.checked_sub(1) {
            Some(left) => Ok(Strict { left, ..self }),
            None => Err(self.fail(Fault::TooDeep)),
        }
    }

    fn fail<E: Error>(self, fault: Fault) -> E {
        self.fault.set(fault);
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(self.fail(Fault::DuplicateKey));
            }
            map.insert(key, entries.next_value_seed(inner)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_reads_is_what_any_other_reader_reads() {
        let text = r#"{"a": [1, -2, 3.5, 18446744073709551615, true, null, "\u00e9"], "b": {"a": {}}}"#;
        assert_eq!(parse(text.as_bytes(), 8), Ok(serde_json::from_str(text).unwrap()));
    }

    #[test]
    fn repeated_keys_are_found_in_one_object_only() {
        assert_eq!(parse(br#"[{"a": {"b": 1, "b": 2}}]"#, 8), Err(Fault::DuplicateKey));
        assert!(parse(br#"[{"a": 1}, {"a": {"a": 1}}]"#, 8).is_ok());
    }

    #[test]
    fn depth_is_bounded_to_the_level() {
        assert!(parse(b"[[[1]]]", 3).is_ok() && parse(b"1", 0).is_ok());
        assert_eq!(parse(b"[[[[1]]]]", 3), Err(Fault::TooDeep));
        assert_eq!(parse(br#"{"a": {"b": [[]]}}"#, 3), Err(Fault::TooDeep));
        let deepest = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(deepest(100).as_bytes(), 100).is_ok());
        for levels in [101, 128, 100_000] {
            assert_eq!(parse(deepest(levels).as_bytes(), 100), Err(Fault::TooDeep));
        }
    }

    #[test]
    fn broken_text_is_malformed() {
        for text in ["", "{", "[1,]", "{\"a\" 1}", "nul", "\"\\ud800\"", "1 2", "\u{feff}1", "01", "NaN"] {
            assert_eq!(parse(text.as_bytes(), 8), Err(Fault::Malformed), "{text}");
        }
        assert_eq!(parse(b"\"\xff\"", 8), Err(Fault::Malformed));
    }
}
