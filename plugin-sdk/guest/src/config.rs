//! Where a configuration is wrong: the gateway hands it over as JSON that its author never sees, so
//! its places are told as the paths of keys.

use std::fmt::Write;

/// What the gateway shows for a configuration that does not have the policy's shape: the path of the
/// key and what is wrong with it, `rules[2].name: invalid type: ..`.
pub(crate) fn fault(json: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    match path(json.get(..error.column()).unwrap_or_default()) {
        path if path.is_empty() => message.to_owned(),
        path => format!("{path}: {message}"),
    }
}

/// Something that is open where the text ends.
enum Open<'a> {
    List { index: usize },
    Table { key: &'a str, key_follows: bool },
}

/// The path of what was read last, in JSON that is cut off.
fn path(json: &str) -> String {
    let mut open = Vec::new();
    let mut rest = json;
    while let Some(byte) = rest.bytes().next() {
        rest = rest.get(1..).unwrap_or_default();
        match (byte, open.last_mut()) {
            (b'{', _) => open.push(Open::Table { key: "", key_follows: true }),
            (b'[', _) => open.push(Open::List { index: 0 }),
            (b'}' | b']', _) => drop(open.pop()),
            (b',', Some(Open::List { index })) => *index += 1,
            (b',', Some(Open::Table { key_follows, .. })) => *key_follows = true,
            (b'"', inside) => {
                let (text, after) = string(rest);
                rest = after;
                if let Some(Open::Table { key, key_follows: key_follows @ true }) = inside {
                    (*key, *key_follows) = (text, false);
                }
            }
            _ => {}
        }
    }
    let mut path = String::new();
    for step in &open {
        let _ = match step {
            Open::List { index } => write!(path, "[{index}]"),
            Open::Table { key: "", .. } => Ok(()),
            Open::Table { key, .. } if path.is_empty() => write!(path, "{key}"),
            Open::Table { key, .. } => write!(path, ".{key}"),
        };
    }
    path
}

/// What stands before the quote that ends a string, and what stands behind it.
fn string(text: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.and_then(|end| Some((text.get(..end)?, text.get(end + 1..)?))).unwrap_or((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read into")]
    struct Config {
        prefixes: Vec<String>,
        #[serde(default)]
        rules: Vec<Rule>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read into")]
    struct Rule {
        name: String,
        limit: Option<u8>,
    }

    #[test]
    fn a_fault_is_told_with_the_path_of_its_key() {
        for (json, expected) in [
            (
                r#"{"prefixes":[],"prefix":1}"#,
                "prefix: unknown field `prefix`, expected `prefixes` or `rules`",
            ),
            (r#"{"prefixes":["a",{}]}"#, "prefixes[1]: invalid type: map, expected a string"),
            (r#"{"prefixes":7}"#, "prefixes: invalid type: integer `7`, expected a sequence"),
            (r#"{}"#, "missing field `prefixes`"),
            (
                r#"{"prefixes":["a,\"]}"],"rules":[{"name":"x"},{"name":"y","limit":300}]}"#,
                "rules[1].limit: invalid value: integer `300`, expected u8",
            ),
            (r#"{"prefixes":[],"rules":[{"limit":1}]}"#, "rules[0]: missing field `name`"),
            (
                r#"{"prefixes":[],"rules":[{"name":"x","nmae":2}]}"#,
                "rules[0].nmae: unknown field `nmae`, expected `name` or `limit`",
            ),
        ] {
            let error = serde_json::from_str::<Config>(json).unwrap_err();
            assert_eq!(fault(json, &error), expected, "{json}");
        }
    }
}
