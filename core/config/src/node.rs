//! A configuration file as a tree in which every value and every key knows where it stands.

use std::fmt;

use crate::diagnostics::Span;

/// A value of a configuration file and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where the value stands; for a table or list, where it begins.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// The shapes of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A word, a number, a text, nothing.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A table, in file order, without repeated keys.
    Table(Vec<(Key, Node)>),
    /// Nothing that could be known, because a variable in it is not set. That is an error already.
    Unset,
}

/// A key of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key as text, whatever it looks like (`200` and `"200"` are the same key).
    pub text: String,
    /// Where it stands.
    pub span: Span,
}

/// A scalar as it was written, with the environment filled in.
#[derive(Clone, PartialEq)]
pub struct Scalar {
    pub(crate) text: String,
    /// Unquoted: `8080` is a number, `"8080"` is a text.
    pub(crate) plain: bool,
    /// Where variables were filled in.
    pub(crate) env: Option<Box<Interpolated>>,
}

#[derive(Clone, PartialEq)]
pub(crate) struct Interpolated {
    /// The text as it stands in the file.
    pub(crate) source: String,
    /// The references and the values that came from the environment, defaults not among them.
    pub(crate) values: Vec<(String, String)>,
}

/// What a scalar means by YAML's core schema (1.2.2, section 10.3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meaning<'n> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'n str),
}

impl Node {
    /// The entries, if this is a table.
    pub fn entries(&self) -> Option<&[(Key, Node)]> {
        match &self.value {
            Value::Table(entries) => Some(entries),
            _ => None,
        }
    }

    /// The items, if this is a list.
    pub fn items(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The text, if this is a scalar that is not null.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) if scalar.meaning() != Meaning::Null => Some(&scalar.text),
            _ => None,
        }
    }

    /// Whether there is nothing here: `key:` without a value, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.meaning() == Meaning::Null)
    }

    /// Whether `null` or `~` is written out, which is as good as leaving the key away. A key with nothing after
    /// it is not: where `tls:` has lost its content, nobody meant plain text.
    pub fn is_absent(&self) -> bool {
        self.is_null() && matches!(&self.value, Value::Scalar(scalar) if !scalar.text.is_empty())
    }

    /// The entry of a table, by key.
    pub fn entry(&self, key: &str) -> Option<&(Key, Node)> {
        self.entries()?.iter().find(|(found, _)| found.text == key)
    }

    /// The value of a table, by key.
    pub fn child(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, value)| value)
    }

    /// The value at `rules[2].cidr` below this node.
    pub(crate) fn at(&self, path: &str) -> Option<&Node> {
        steps(path).try_fold(self, |node, step| match step {
            Step::Key(name) => node.child(name),
            Step::Index(index) => node.items()?.get(index),
        })
    }

    /// What it consists of.
    pub(crate) fn children(&self) -> Box<dyn Iterator<Item = &Node> + '_> {
        match &self.value {
            Value::List(items) => Box::new(items.iter()),
            Value::Table(entries) => Box::new(entries.iter().map(|(_, value)| value)),
            Value::Scalar(_) | Value::Unset => Box::new(std::iter::empty()),
        }
    }

    /// Whether anything in it is unknown.
    pub(crate) fn has_unset(&self) -> bool {
        self.value == Value::Unset || self.children().any(Node::has_unset)
    }

    /// An empty table at this node's place, for what may be written as a bare word.
    pub fn empty_table(&self) -> Node {
        Node { span: self.span, value: Value::Table(Vec::new()) }
    }

    /// The place of `rules[2].cidr` below this node, or of the longest part of it that exists.
    pub fn locate(&self, path: &str) -> Span {
        let mut node = self;
        let mut place = self.span;
        for step in steps(path) {
            let (span, next) = match (&node.value, step) {
                (Value::Table(entries), Step::Key(name)) => {
                    match entries.iter().find(|(key, _)| key.text == name) {
                        Some((key, value)) => (if value.is_null() { key.span } else { value.span }, value),
                        None => break,
                    }
                }
                (Value::List(items), Step::Index(index)) => match items.get(index) {
                    Some(item) => (item.span, item),
                    None => break,
                },
                _ => break,
            };
            place = span;
            node = next;
        }
        place
    }

    /// The same value without places.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(scalar) => match scalar.meaning() {
                Meaning::Null => serde_json::Value::Null,
                Meaning::Bool(value) => value.into(),
                Meaning::Unsigned(value) => value.into(),
                Meaning::Signed(value) => value.into(),
                Meaning::Float(value) => value.into(),
                Meaning::Text(text) => text.into(),
            },
            Value::List(items) => items.iter().map(Node::to_json).collect(),
            Value::Table(entries) => {
                entries.iter().map(|(key, value)| (key.text.clone(), value.to_json())).collect()
            }
            Value::Unset => serde_json::Value::Null,
        }
    }

    /// A message about this node in which values from the environment stand as `${NAME}` again.
    pub fn redact(&self, message: String) -> String {
        match &self.value {
            Value::Scalar(scalar) => scalar.redact(message),
            _ => self.children().fold(message, |message, child| child.redact(message)),
        }
    }

    /// How an error message calls this value; never a value from the environment.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::List(_) => "a list".to_owned(),
            Value::Table(_) => "a table".to_owned(),
            Value::Unset => "a variable that is not set".to_owned(),
            Value::Scalar(scalar) if scalar.is_secret() => "a value from the environment".to_owned(),
            Value::Scalar(scalar) => match scalar.meaning() {
                Meaning::Null => "nothing".to_owned(),
                Meaning::Bool(value) => format!("`{value}`"),
                Meaning::Unsigned(_) | Meaning::Signed(_) | Meaning::Float(_) => {
                    format!("number {}", scalar.text.trim())
                }
                Meaning::Text(text) => format!("string `{}`", shortened(text)),
            },
        }
    }
}

impl Scalar {
    pub(crate) fn meaning(&self) -> Meaning<'_> {
        if self.plain { resolve(&self.text) } else { Meaning::Text(&self.text) }
    }

    /// The meaning where a number or a switch is asked for: there `"${PORT}"` may be quoted, because a flow
    /// table (`{ port: "${PORT}" }`) leaves no other way to write it.
    pub(crate) fn typed_meaning(&self) -> Meaning<'_> {
        if self.env.is_some() { resolve(&self.text) } else { self.meaning() }
    }

    fn is_secret(&self) -> bool {
        self.env.as_ref().is_some_and(|env| !env.values.is_empty())
    }

    fn redact(&self, message: String) -> String {
        let Some(env) = self.env.as_ref().filter(|env| !env.values.is_empty()) else { return message };
        let whole = (env.source.as_str(), self.text.as_str());
        let parts = env.values.iter().map(|(source, value)| (source.as_str(), value.as_str()));
        std::iter::once(whole)
            .chain(parts)
            .fold(message, |message, (source, value)| hide(&message, value, source))
    }
}

/// Replaces a value in a message, and every quoted part of it that the message may have cut out.
fn hide(message: &str, value: &str, source: &str) -> String {
    // One or two characters are no secret, and replacing them would garble the message.
    const SHORTEST: usize = 3;
    if value.len() < SHORTEST {
        return message.to_owned();
    }
    let escaped = value.escape_debug().to_string();
    let message = message.replace(value, source).replace(&escaped, source);
    let mut quoted = false;
    let parts = message.split('`').map(|part| {
        let cut = part.strip_suffix("...").unwrap_or(part);
        let is_part = quoted && cut.len() >= SHORTEST && value.contains(cut);
        quoted = !quoted;
        if is_part { source } else { part }
    });
    parts.collect::<Vec<_>>().join("`")
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.env.as_ref().map_or(&self.text, |env| &env.source);
        if self.plain { write!(f, "{shown}") } else { write!(f, "{shown:?}") }
    }
}

/// A key as a path writes it: `.name`, or `["a.b"]` where a dot or bracket would mislead.
pub fn join(path: &str, key: &str) -> String {
    let simple = !key.is_empty() && !key.contains(['.', '[', ']', '"', '`']);
    match (simple, path.is_empty()) {
        (true, true) => key.to_owned(),
        (true, false) => format!("{path}.{key}"),
        (false, _) => format!("{path}[\"{key}\"]"),
    }
}

/// The named end of a path, with its indices: `routes[2]` of `routes[2]`, `cors` of `plugins[0].cors`.
pub(crate) fn last_name(path: &str) -> &str {
    let quoted = path.ends_with("\"]");
    if quoted { path } else { path.rsplit_once('.').map_or(path, |(_, name)| name) }
}

/// Whether a text that may hold user input is short enough for a message; long ones lose their end.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

enum Step<'p> {
    Key(&'p str),
    Index(usize),
}

/// The steps of `a.b[2]["c.d"].e`; stops at the first thing that is no step.
fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (key, after) = quoted.split_once("\"]")?;
            rest = after;
            return Some(Step::Key(key));
        }
        if let Some(index) = rest.strip_prefix('[') {
            let (index, after) = index.split_once(']')?;
            rest = after;
            return index.parse().ok().map(Step::Index);
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        rest = after;
        Some(Step::Key(key))
    })
}

fn resolve(text: &str) -> Meaning<'_> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
        "true" | "True" | "TRUE" => return Meaning::Bool(true),
        "false" | "False" | "FALSE" => return Meaning::Bool(false),
        _ => {}
    }
    number(text).unwrap_or(Meaning::Text(text))
}

fn number(text: &str) -> Option<Meaning<'_>> {
    if let Some(hex) = text.strip_prefix("0x") {
        return radix(hex, 16);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return radix(octal, 8);
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        // A leading zero is an identifier or an octal mode in most minds, rarely a decimal number.
        if digits.len() > 1 && digits.starts_with('0') {
            return None;
        }
        if let Ok(value) = text.strip_prefix('+').unwrap_or(text).parse() {
            return Some(Meaning::Unsigned(value));
        }
        if let Ok(value) = text.parse() {
            return Some(Meaning::Signed(value));
        }
    }
    let float = digits.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    if !float || !digits.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|value: &f64| value.is_finite()).map(Meaning::Float)
}

fn radix(digits: &str, radix: u32) -> Option<Meaning<'_>> {
    let valid = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    valid.then(|| u64::from_str_radix(digits, radix).ok().map(Meaning::Unsigned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn node(text: &str) -> Node {
        yaml::parse(text, &|name| (name == "TOKEN").then(|| "s3cret".to_owned())).unwrap()
    }

    fn at(node: &Node, path: &str) -> (u32, u32) {
        let span = node.locate(path);
        (span.line, span.column)
    }

    #[test]
    fn plain_scalars_mean_what_the_core_schema_says() {
        for (text, meaning) in [
            ("null", Meaning::Null),
            ("", Meaning::Null),
            ("true", Meaning::Bool(true)),
            ("on", Meaning::Text("on")),
            ("8080", Meaning::Unsigned(8080)),
            ("-5", Meaning::Signed(-5)),
            ("0x1F", Meaning::Unsigned(31)),
            ("0644", Meaning::Text("0644")),
            ("1.5", Meaning::Float(1.5)),
            ("1e3", Meaning::Float(1000.0)),
            ("10.0.0.1", Meaning::Text("10.0.0.1")),
            ("1-2", Meaning::Text("1-2")),
            ("10s", Meaning::Text("10s")),
            (".", Meaning::Text(".")),
            ("-", Meaning::Text("-")),
            ("0x", Meaning::Text("0x")),
            ("1e999", Meaning::Text("1e999")),
        ] {
            assert_eq!(resolve(text), meaning, "{text}");
        }
    }

    #[test]
    fn paths_lead_to_places_and_the_longest_prefix_wins() {
        let node = node("rules:\n  - cidr: a\n  - { cidr: b }\n  - cidr:\nnames: { a.b: 1 }\n");
        assert_eq!(at(&node, "rules[1].cidr"), (3, 13));
        assert_eq!(at(&node, "rules[1].missing.deeper"), (3, 5));
        assert_eq!(at(&node, "rules[9].cidr"), (2, 3));
        assert_eq!(at(&node, "rules[2].cidr"), (4, 5));
        assert_eq!(at(&node, "names[\"a.b\"]"), (5, 15));
        assert_eq!(at(&node, ""), (1, 1));
        assert_eq!(at(&node, "[[..]"), (1, 1));
    }

    #[test]
    fn json_keeps_types_and_order() {
        let node = node("b: [1, -2, 1.5, true, ~, \"1\"]\na: { 200: ok }\n");
        assert_eq!(node.to_json().to_string(), r#"{"b":[1,-2,1.5,true,null,"1"],"a":{"200":"ok"}}"#);
    }

    #[test]
    fn values_from_the_environment_are_never_printed() {
        let node = node("a: [\"key ${TOKEN}\"]\n");
        assert!(!format!("{node:?}").contains("s3cret"));
        for (message, shown) in [
            ("bad `key s3cret`, s3cret", "bad `key ${TOKEN}`, ${TOKEN}"),
            ("unknown unit `cret`", "unknown unit `key ${TOKEN}`"),
            ("cut off: `key s3c...`", "cut off: `key ${TOKEN}`"),
            ("not a `list`, but `et`", "not a `list`, but `et`"),
        ] {
            assert_eq!(node.redact(message.to_owned()), shown);
        }
    }

    #[test]
    fn path_parts_are_quoted_only_where_needed() {
        assert_eq!(join("", "a"), "a");
        assert_eq!(join("a[0]", "b"), "a[0].b");
        assert_eq!(join("a", "b.c"), "a[\"b.c\"]");
        assert_eq!(last_name("routes[2].match"), "match");
    }
}
