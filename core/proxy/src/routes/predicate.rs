//! What a route may demand of a header or a query parameter.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};
use regex::Regex;

/// A demand on a value.
#[derive(Debug, Clone)]
pub enum Predicate {
    /// One of the values is this.
    Equals(String),
    /// There is a value (true), or there is none (false).
    Present(bool),
    /// The regex matches somewhere in one of the values; anchor it to match all of it.
    Regex(Regex),
}

impl Predicate {
    pub(crate) fn accepts_header(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(name).iter();
        match self {
            Predicate::Equals(wanted) => values.any(|value| value.as_bytes() == wanted.as_bytes()),
            Predicate::Present(wanted) => values.next().is_some() == *wanted,
            Predicate::Regex(regex) => values
                .any(|value| std::str::from_utf8(value.as_bytes()).is_ok_and(|text| regex.is_match(text))),
        }
    }
}

/// Whether the parameter `name` of the query is as wanted. Names and values are compared as forms mean them: `%XX`
/// decoded, `+` a blank.
pub(super) fn query_accepts(query: Option<&str>, name: &str, predicate: &Predicate) -> bool {
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| decoded(key).eq(name.bytes())).map(|(_, value)| value);
    match predicate {
        Predicate::Equals(wanted) => values.any(|value| decoded(value).eq(wanted.bytes())),
        Predicate::Present(wanted) => values.next().is_some() == *wanted,
        Predicate::Regex(regex) => {
            values.any(|value| decoded_text(value).is_some_and(|value| regex.is_match(&value)))
        }
    }
}

fn decoded_text(value: &str) -> Option<Cow<'_, str>> {
    if !value.contains(['%', '+']) {
        return Some(Cow::Borrowed(value));
    }
    String::from_utf8(decoded(value).collect()).ok().map(Cow::Owned)
}

/// The bytes that `text` encodes; a percent sign without two digits stands for itself.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&byte, behind) = rest.split_first()?;
        rest = behind;
        match (byte, behind) {
            (b'+', _) => Some(b' '),
            (b'%', [high, low, behind @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return Some(byte) };
                rest = behind;
                Some((high << 4 | low) as u8)
            }
            _ => Some(byte),
        }
    })
}
