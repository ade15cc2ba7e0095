//! Media types that a configuration lists.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use portcullis_plugin::BuildError;

/// A set of media types: exact (`application/json`), a whole type (`text/*`), or a structured syntax
/// suffix (`+json`, RFC 6838, 4.2.8).
#[derive(Debug)]
pub(crate) struct MediaTypes(Vec<Pattern>);

#[derive(Debug)]
enum Pattern {
    Exact(String),
    Type(String),
    Suffix(String),
}

impl MediaTypes {
    /// Parses the list; `at` is its path.
    pub(crate) fn parse(at: &str, types: &[String]) -> Result<Self, BuildError> {
        let parse = |(index, text): (usize, &String)| {
            let text = text.to_ascii_lowercase();
            let plain = |text: &str| !text.is_empty() && !text.contains(['*', ';', ' ', '/']);
            match text.split_once('/') {
                Some((kind, "*")) if plain(kind) => Ok(Pattern::Type(kind.to_owned())),
                Some((kind, subtype)) if plain(kind) && plain(subtype) && !kind.starts_with('+') => {
                    Ok(Pattern::Exact(text))
                }
                None if text.starts_with('+') && plain(&text) => Ok(Pattern::Suffix(text)),
                _ => Err(BuildError::at(format!("{at}[{index}]"), format!("`{text}` is not a media type"))
                    .help("write e.g. `application/json`, `text/*` or `+json`")),
            }
        };
        types.iter().enumerate().map(parse).collect::<Result<_, _>>().map(MediaTypes)
    }

    /// Whether a media type without its parameters is in the set.
    pub(crate) fn contains(&self, media_type: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Exact(exact) => media_type.eq_ignore_ascii_case(exact),
            Pattern::Type(kind) => {
                media_type.split_once('/').is_some_and(|(found, _)| found.eq_ignore_ascii_case(kind))
            }
            Pattern::Suffix(suffix) => ends_with_ignore_case(media_type, suffix),
        })
    }
}

/// The message's media type without parameters; none if it is absent, repeated or not text.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    value.to_str().ok()?.split(';').next().map(str::trim)
}

/// Whether a media type is JSON by name.
pub(crate) fn is_json(media_type: &str) -> bool {
    media_type.eq_ignore_ascii_case("application/json")
        || media_type.eq_ignore_ascii_case("text/json")
        || ends_with_ignore_case(media_type, "+json")
}

/// Whether the body is compressed or otherwise coded (RFC 9110, 8.4).
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn ends_with_ignore_case(text: &str, end: &str) -> bool {
    let (text, end) = (text.as_bytes(), end.as_bytes());
    text.len() > end.len() && text[text.len() - end.len()..].eq_ignore_ascii_case(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_match_exactly_by_type_or_by_suffix() {
        let types = ["application/json", "text/*", "+xml"].map(str::to_owned);
        let types = MediaTypes::parse("t", &types).unwrap();
        for yes in ["application/json", "Application/JSON", "text/plain", "application/atom+xml"] {
            assert!(types.contains(yes), "{yes}");
        }
        for no in ["application/json5", "textual/plain", "+xml", "application/xml", ""] {
            assert!(!types.contains(no), "{no}");
        }
        for wrong in ["", "json", "*/*", "a/b; c=d", "+a/b", "a/b/c"] {
            let error = MediaTypes::parse("t", &["a/b".into(), wrong.into()]).unwrap_err();
            assert_eq!(error.path, "t[1]", "{wrong}");
        }
    }

    #[test]
    fn a_message_has_one_media_type_or_none() {
        let headers = |values: &[&'static str]| {
            values.iter().map(|value| (CONTENT_TYPE, http::HeaderValue::from_static(value))).collect()
        };
        let map: HeaderMap = headers(&["application/json; charset=utf-8"]);
        assert_eq!(media_type(&map), Some("application/json"));
        let twice: HeaderMap = headers(&["application/json", "text/plain"]);
        assert_eq!(media_type(&twice), None);
        assert!(is_json("application/problem+JSON") && !is_json("application/jsonp"));
    }
}
