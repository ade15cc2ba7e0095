//! What is known of a caller beside an id: claims, and where in them something stands.

use serde_json::{Map, Value};

/// A claim by its name, or by a path with dots as in `realm_access.roles`.
pub(crate) fn claim<'c>(claims: &'c Map<String, Value>, path: &str) -> Option<&'c Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    claim(claims.get(first)?.as_object()?, rest)
}

/// Texts of a claim: an array of them, or one text with spaces between (RFC 8693, 4.2).
pub(crate) fn texts<'c>(claims: &'c Map<String, Value>, path: &str) -> Vec<&'c str> {
    match claim(claims, path) {
        Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
        Some(Value::Array(texts)) => texts.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}
