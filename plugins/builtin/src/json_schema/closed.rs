//! Closes the objects of a schema: fields that it does not name become invalid.
//!
//! A schema that describes a value is closed if it names `properties`, itself or by way of what it
//! applies to the same value (`allOf`, `$ref` and the like), and says nothing of its own about other
//! fields. The parts applied to the same value stay open, or each would refuse the fields of the
//! others; `unevaluatedProperties` at the top of them sees what all of them name. References are followed
//! by JSON Pointer (`#/$defs/order`), not by anchor.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Keywords whose schemas are for the same value, in lists, maps, or alone.
const SAME_LISTS: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const SAME_MAPS: [&str; 1] = ["dependentSchemas"];
const SAME_SINGLE: [&str; 3] = ["if", "then", "else"];

/// Keywords whose schemas are for values within.
const INNER_LISTS: [&str; 1] = ["prefixItems"];
const INNER_MAPS: [&str; 2] = ["properties", "patternProperties"];
const INNER_SINGLE: [&str; 3] = ["items", "additionalItems", "additionalProperties"];

/// Schemas kept for reference.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// Closes `schema`, which describes a whole document.
pub(super) fn close(schema: &mut Value) {
    let root = schema.clone();
    visit(schema, &root, Position::Value);
}

/// What a schema is applied to.
#[derive(Clone, Copy, PartialEq)]
enum Position {
    /// A value: its object can be closed here.
    Value,
    /// The same value as the schema around it, which is where that object is closed.
    Same,
}

fn visit(schema: &mut Value, root: &Value, position: Position) {
    let Value::Object(schema) = schema else { return };
    let own_word = ["additionalProperties", "unevaluatedProperties"];
    let open = !own_word.iter().any(|word| schema.contains_key(*word));
    if position == Position::Value && open && names_properties(schema, root, &mut HashSet::new()) {
        let alone = !same_value(schema).any(|_| true) && !schema.contains_key("$ref");
        let word = if alone { "additionalProperties" } else { "unevaluatedProperties" };
        schema.insert(word.to_owned(), Value::Bool(false));
    }
    for (keyword, inner) in schema.iter_mut() {
        let keyword = keyword.as_str();
        let inner_position = match () {
            () if SAME_LISTS.contains(&keyword) || SAME_MAPS.contains(&keyword) => Position::Same,
            () if SAME_SINGLE.contains(&keyword) || DEFINITIONS.contains(&keyword) => Position::Same,
            () if INNER_LISTS.contains(&keyword) || INNER_MAPS.contains(&keyword) => Position::Value,
            () if INNER_SINGLE.contains(&keyword) => Position::Value,
            () => continue,
        };
        match inner {
            Value::Array(list) => list.iter_mut().for_each(|schema| visit(schema, root, inner_position)),
            Value::Object(map) if is_map(keyword) => {
                map.values_mut().for_each(|schema| visit(schema, root, inner_position));
            }
            schema => visit(schema, root, inner_position),
        }
    }
}

/// Whether a keyword's object maps names to schemas, rather than being one.
fn is_map(keyword: &str) -> bool {
    SAME_MAPS.contains(&keyword) || INNER_MAPS.contains(&keyword) || DEFINITIONS.contains(&keyword)
}

/// Whether a schema names `properties`, itself or in what it applies to the same value; a reference
/// in `seen` has been followed already.
fn names_properties<'a>(
    schema: &'a Map<String, Value>,
    root: &'a Value,
    seen: &mut HashSet<&'a str>,
) -> bool {
    schema.contains_key("properties")
        || same_value(schema).any(|part| names_properties(part, root, seen))
        || referenced(schema, root)
            .is_some_and(|(pointer, target)| seen.insert(pointer) && names_properties(target, root, seen))
}

/// The schemas that `schema` applies to the same value, references aside.
fn same_value(schema: &Map<String, Value>) -> impl Iterator<Item = &Map<String, Value>> {
    let lists = SAME_LISTS.iter().filter_map(|keyword| schema.get(*keyword)?.as_array()).flatten();
    let maps = SAME_MAPS.iter().filter_map(|keyword| schema.get(*keyword)?.as_object()).flat_map(Map::values);
    let single = SAME_SINGLE.iter().filter_map(|keyword| schema.get(*keyword));
    lists.chain(maps).chain(single).filter_map(Value::as_object)
}

/// What `$ref` points to within the document, by JSON Pointer, and that pointer.
fn referenced<'a>(
    schema: &'a Map<String, Value>,
    root: &'a Value,
) -> Option<(&'a str, &'a Map<String, Value>)> {
    let pointer = schema.get("$ref")?.as_str()?.strip_prefix('#')?;
    Some((pointer, root.pointer(pointer)?.as_object()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn valid(schema: &Value, value: Value) -> bool {
        let mut schema = schema.clone();
        close(&mut schema);
        jsonschema::options().offline().build(&schema).unwrap().is_valid(&value)
    }

    #[test]
    fn parts_of_one_object_know_each_others_fields() {
        let schema = json!({
            "allOf": [{"properties": {"a": {}}}, {"$ref": "#/$defs/b"}],
            "$defs": {"b": {"properties": {"b": {"properties": {"c": {}}}}}},
        });
        assert!(valid(&schema, json!({"a": 1, "b": {"c": 1}})));
        assert!(!valid(&schema, json!({"a": 1, "x": 1})));
        assert!(!valid(&schema, json!({"b": {"c": 1, "x": 1}})), "definitions are closed within");
    }

    #[test]
    fn recursion_is_closed_at_every_level() {
        let schema = json!({"properties": {"next": {"$ref": "#"}, "n": {}}});
        assert!(valid(&schema, json!({"next": {"next": {"n": 1}}})));
        assert!(!valid(&schema, json!({"next": {"next": {"x": 1}}})));
    }

    #[test]
    fn what_names_no_fields_or_speaks_for_itself_stays_as_it_is() {
        assert!(valid(&json!({"type": "object"}), json!({"x": 1})));
        assert!(valid(&json!({"properties": {}, "additionalProperties": true}), json!({"x": 1})));
        let patterns = json!({"properties": {"a": {}}, "patternProperties": {"^x-": {}}});
        assert!(valid(&patterns, json!({"x-1": 1})) && !valid(&patterns, json!({"y": 1})));
    }

    #[test]
    fn a_property_may_have_a_keywords_name() {
        let schema = json!({"properties": {"properties": {"type": "object"}, "items": {"type": "string"}}});
        assert!(valid(&schema, json!({"properties": {"x": 1}, "items": "a"})));
        assert!(!valid(&schema, json!({"allOf": 1})));
    }

    #[test]
    fn a_cycle_of_references_ends() {
        let mut schema =
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}});
        close(&mut schema);
        assert_eq!(schema.get("unevaluatedProperties"), None);
    }
}
