//! Values of scripts and JSON.

use rhai::{Array, Dynamic, ImmutableString, Map};
use serde_json::Value;

use crate::call::{Outcome, charge, charge_operations};

/// Nesting beyond which a value is not converted, compared or printed; these functions recurse.
const MAX_NESTING: usize = 64;

/// Bytes of JSON that are read or written at the price of one operation.
const JSON_BYTES_PER_OPERATION: usize = 16;

/// The name of a value's type, as scripts and the reference have it.
pub(crate) fn type_name(value: &Dynamic) -> &'static str {
    match value.type_name() {
        "i64" => "int",
        "f64" => "float",
        // The host's types have the same names in Rust.
        full => full.rsplit("::").next().unwrap_or(full),
    }
}

/// Text that may be absent.
pub(crate) fn text_or_unit(text: Option<&str>) -> Dynamic {
    text.map_or(Dynamic::UNIT, Into::into)
}

/// A value as text: strings as they are, numbers and booleans written out.
pub(crate) fn text(value: Dynamic) -> Outcome<ImmutableString> {
    if value.is_string() {
        return Ok(value.into_immutable_string()?);
    }
    if value.is_int() || value.is_float() || value.is_bool() || value.is_char() {
        return Ok(value.to_string().into());
    }
    Err(format!("text is wanted, not a value of type `{}`", type_name(&value)).into())
}

/// Parses JSON (RFC 8259).
pub(crate) fn parse(json: &str) -> Outcome<Dynamic> {
    charge_operations(json.len() / JSON_BYTES_PER_OPERATION)?;
    let value: Value = serde_json::from_str(json)
        .map_err(|error| format!("not JSON: error in line {}, column {}", error.line(), error.column()))?;
    from_json(&value)
}

/// Writes a value as JSON.
pub(crate) fn stringify(value: &Dynamic) -> Outcome<String> {
    let value = to_json(value)?;
    serde_json::to_string(&value).map_err(|error| error.to_string().into())
}

/// An array or a map for a human reader.
pub(crate) fn print(value: &Dynamic) -> Outcome<ImmutableString> {
    stringify(value).map(ImmutableString::from)
}

/// JSON as a value: objects are maps, null is `()`.
pub(crate) fn from_json(value: &Value) -> Outcome<Dynamic> {
    charge_operations(1)?;
    Ok(match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(flag) => (*flag).into(),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => integer.into(),
            None => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(text) => {
            charge(text.len())?;
            text.as_str().into()
        }
        // Depth is bounded by the parser's.
        Value::Array(items) => Dynamic::from_array(items.iter().map(from_json).collect::<Outcome<_>>()?),
        Value::Object(members) => Dynamic::from_map(
            members
                .iter()
                .map(|(name, value)| Ok((name.as_str().into(), from_json(value)?)))
                .collect::<Outcome<_>>()?,
        ),
    })
}

/// A value as JSON.
pub(crate) fn to_json(value: &Dynamic) -> Outcome<Value> {
    nested_json(value, 0)
}

fn nested_json(value: &Dynamic, depth: usize) -> Outcome<Value> {
    check_nesting(depth)?;
    if let Ok(text) = value.as_immutable_string_ref() {
        charge_operations(1 + text.len() / JSON_BYTES_PER_OPERATION)?;
        return Ok(Value::from(text.as_str()));
    }
    if let Ok(items) = value.as_array_ref() {
        let items = items.iter().map(|item| nested_json(item, depth + 1));
        return items.collect::<Outcome<_>>().map(Value::Array);
    }
    if let Ok(members) = value.as_map_ref() {
        let members = members.iter().map(|(name, value)| {
            charge_operations(1 + name.len() / JSON_BYTES_PER_OPERATION)?;
            Ok((name.to_string(), nested_json(value, depth + 1)?))
        });
        return members.collect::<Outcome<_>>().map(Value::Object);
    }
    scalar_json(value)
}

fn scalar_json(value: &Dynamic) -> Outcome<Value> {
    charge_operations(1)?;
    if value.is_unit() {
        return Ok(Value::Null);
    }
    if let Ok(integer) = value.as_int() {
        return Ok(integer.into());
    }
    if let Ok(flag) = value.as_bool() {
        return Ok(flag.into());
    }
    if let Ok(char) = value.as_char() {
        return Ok(char.to_string().into());
    }
    if let Ok(number) = value.as_float() {
        return serde_json::Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| "JSON has no number for infinity or NaN".into());
    }
    Err(format!("a value of type `{}` can't be written as JSON", type_name(value)).into())
}

/// Whether two arrays hold the same.
pub(crate) fn same_array(left: &mut Array, right: Array) -> Outcome<bool> {
    arrays(left, &right, 0)
}

/// Whether two maps hold the same.
pub(crate) fn same_map(left: &mut Map, right: Map) -> Outcome<bool> {
    maps(left, &right, 0)
}

fn arrays(left: &Array, right: &Array, depth: usize) -> Outcome<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for (left, right) in left.iter().zip(right) {
        if !nested_same(left, right, depth + 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn maps(left: &Map, right: &Map, depth: usize) -> Outcome<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for ((name, left), (other, right)) in left.iter().zip(right) {
        if name != other || !nested_same(left, right, depth + 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn nested_same(left: &Dynamic, right: &Dynamic, depth: usize) -> Outcome<bool> {
    check_nesting(depth)?;
    charge_operations(1)?;
    if let (Ok(left), Ok(right)) = (left.as_array_ref(), right.as_array_ref()) {
        return arrays(&left, &right, depth);
    }
    if let (Ok(left), Ok(right)) = (left.as_map_ref(), right.as_map_ref()) {
        return maps(&left, &right, depth);
    }
    if let (Ok(left), Ok(right)) = (left.as_immutable_string_ref(), right.as_immutable_string_ref()) {
        charge(left.len())?;
        return Ok(*left == *right);
    }
    let number = |value: &Dynamic| value.as_float().or_else(|_| value.as_int().map(|integer| integer as f64));
    Ok(match (left.as_int(), right.as_int()) {
        (Ok(left), Ok(right)) => left == right,
        _ => match (number(left), number(right)) {
            (Ok(left), Ok(right)) => left == right,
            _ => {
                (left.is_unit() && right.is_unit())
                    || left.as_bool().is_ok_and(|left| right.as_bool() == Ok(left))
                    || left.as_char().is_ok_and(|left| right.as_char() == Ok(left))
            }
        },
    })
}

fn check_nesting(depth: usize) -> Outcome<()> {
    if depth < MAX_NESTING {
        return Ok(());
    }
    Err(format!("the value is nested more than {MAX_NESTING} levels deep").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_goes_there_and_back() {
        let value =
            json!({ "a": [1, -2.5, "x", true, null], "b": { "c": "é" }, "big": 9007199254740993_i64 });
        let back = to_json(&from_json(&value).unwrap()).unwrap();
        assert_eq!(back, value);
        assert_eq!(from_json(&json!(u64::MAX)).unwrap().type_name(), "f64");
        assert!(parse("[1,").unwrap_err().to_string().contains("line 1, column 3"));
        assert!(to_json(&f64::NAN.into()).is_err());
    }

    #[test]
    fn nesting_ends_in_an_error_instead_of_the_stack() {
        let deep = (0..1000).fold(Dynamic::UNIT, |inner, _| Dynamic::from_array(vec![inner]));
        assert!(to_json(&deep).unwrap_err().to_string().contains("nested"));
        assert!(nested_same(&deep, &deep.clone(), 0).is_err());
    }

    #[test]
    fn values_are_compared_by_content() {
        let value = |json| from_json(&json).unwrap();
        let same = |left: serde_json::Value, right| nested_same(&value(left), &value(right), 0).unwrap();
        assert!(same(json!([1, { "a": "x" }]), json!([1.0, { "a": "x" }])));
        for other in
            [json!([1]), json!([1, { "a": "y" }]), json!([1, { "b": "x" }]), json!("x"), json!([1, true])]
        {
            assert!(!same(json!([1, { "a": "x" }]), other));
        }
    }
}
