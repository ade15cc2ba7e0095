//! The errors of reading a node: as serde raises them, and as a file's author gets them.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use crate::diagnostics::{Diagnostic, Source, Span};
use crate::node::{Key, Node, last_name, shortened};

/// Why a node does not hold what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeError {
    /// The offending value; for an unknown key that key, for a missing one the table that lacks it.
    pub span: Span,
    /// The path of that value, such as `routes[2].match.path`.
    pub path: String,
    /// What was expected and what was found: lowercase, no full stop, without the path.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The message names the place by itself.
    self_contained: bool,
}

/// A serde error before its place is known. Once recorded it goes on as plain [`Raised::Message`].
#[derive(Debug)]
pub enum Raised {
    /// Any text.
    Message(String),
    /// The wrong kind of value.
    Expected {
        /// What stands there.
        found: String,
        /// What should stand there.
        expected: String,
    },
    /// A key that the type does not have.
    UnknownField(String, &'static [&'static str]),
    /// A word that is none of the allowed ones.
    UnknownVariant(String, &'static [&'static str]),
    /// A key that the type needs.
    MissingField(&'static str),
}

impl NodeError {
    /// An error at a place.
    pub fn new(span: Span, path: &str, message: impl Into<String>) -> Self {
        Self { span, path: path.to_owned(), message: message.into(), help: None, self_contained: false }
    }

    /// The same error, with advice.
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// The same error, whose message already says which value it is about.
    pub(crate) fn self_contained(self) -> Self {
        Self { self_contained: true, ..self }
    }

    /// An unknown key of the table at `path`, with the nearest of the known ones.
    pub(crate) fn unknown_key<'k>(
        key: &Key,
        path: &str,
        known: impl Iterator<Item = &'k str> + Clone,
    ) -> Self {
        let message = match path {
            "" => format!("unknown key `{}`", shortened(&key.text)),
            path => format!("unknown key `{}` in `{}`", shortened(&key.text), last_name(path)),
        };
        let error = Self::new(key.span, path, message).self_contained();
        match suggestion(&key.text, known, "known keys") {
            Some(help) => error.with_help(help),
            None => error,
        }
    }

    /// A key that the table at `path` lacks.
    pub(crate) fn missing_key(span: Span, path: &str, key: &str) -> Self {
        let message = match path {
            "" => format!("missing key `{key}`"),
            path => format!("missing key `{key}` in `{}`", last_name(path)),
        };
        Self::new(span, path, message).self_contained()
    }

    /// The error as a finding about a file.
    pub fn diagnostic(self, source: &Source) -> Diagnostic {
        let diagnostic = source.error(self.span, self.to_string());
        Diagnostic { help: self.help, ..diagnostic }
    }
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.self_contained && !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for NodeError {}

/// The candidate that was probably meant, if any is near enough.
pub fn nearest<'k>(word: &str, candidates: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Whether one of a table's keys was probably meant to be `key`.
pub(crate) fn is_misspelt(key: &str, table: &Node) -> bool {
    let mut keys = table.entries().unwrap_or_default().iter().map(|(found, _)| found.text.as_str());
    keys.any(|found| found != key && nearest(found, [key].into_iter()).is_some())
}

/// Advice for an unknown word: the nearest known one, else all of them, unless there are too many to read.
pub(crate) fn suggestion<'k>(
    word: &str,
    known: impl Iterator<Item = &'k str> + Clone,
    what: &str,
) -> Option<String> {
    const READABLE: usize = 16;
    // Two letters or a number are no slip of others: `h3` is not meant to be `h2`, nor `1.1` to be `1.2`.
    let is_word = word.chars().count() > 2 && word.contains(char::is_alphabetic);
    if let Some(near) = nearest(word, known.clone()).filter(|_| is_word) {
        return Some(format!("did you mean `{near}`?"));
    }
    let all: Vec<_> = known.map(|known| format!("`{known}`")).collect();
    (!all.is_empty() && all.len() <= READABLE).then(|| format!("{what}: {}", all.join(", ")))
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(message) => f.write_str(message),
            Self::Expected { found, expected } => write!(f, "expected {expected}, found {found}"),
            Self::UnknownField(key, _) => write!(f, "unknown key `{key}`"),
            Self::UnknownVariant(word, _) => write!(f, "unknown value `{word}`"),
            Self::MissingField(key) => write!(f, "missing key `{key}`"),
        }
    }
}

impl std::error::Error for Raised {}

impl de::Error for Raised {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Message(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::Expected { found: found_words(found), expected: expected_words(&expected.to_string()) }
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn invalid_length(len: usize, expected: &dyn Expected) -> Self {
        Self::Message(format!("expected {}, found {len} items", expected_words(&expected.to_string())))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::UnknownVariant(variant.to_owned(), expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::UnknownField(field.to_owned(), expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::MissingField(field)
    }
}

fn found_words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("number {value}"),
        Unexpected::Signed(value) => format!("number {value}"),
        Unexpected::Float(value) => format!("number {value}"),
        Unexpected::Str(text) => format!("string `{}`", shortened(text)),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        Unexpected::UnitVariant => "a bare word".to_owned(),
        other => other.to_string(),
    }
}

/// The words of the file's author for what Rust's types are called.
fn expected_words(expected: &str) -> String {
    let words = match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "`true` or `false`",
        "a sequence" => "a list",
        "a map" => "a table",
        "unit" => "nothing",
        "a nonzero u16" => "a whole number from 1 to 65535",
        other if other.starts_with("a nonzero ") => "a whole number, 1 or more",
        other if other.starts_with("struct variant ") || other.starts_with("struct ") => "a table",
        other if other.starts_with("a tuple of size ") => {
            return other.replace("a tuple of size", "a list of length");
        }
        other if other.starts_with("tuple ") => "a list",
        other if other.starts_with("enum ") => "one of the known words",
        other => other,
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["origins", "methods", "max_age"];
        assert_eq!(nearest("orgins", known.iter().copied()), Some("origins"));
        assert_eq!(nearest("maxage", known.iter().copied()), Some("max_age"));
        assert_eq!(nearest("timeout", known.iter().copied()), None);
        assert_eq!(nearest("x", known.iter().copied()), None);
    }
}
