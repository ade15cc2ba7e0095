//! Paths that rules are about, written as those of routes.

use std::collections::BTreeSet;

use portcullis_plugin::BuildError;
use portcullis_plugin::path::normalise;

/// A path, segment by segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    segments: Box<[Segment]>,
    /// Whether more segments may follow.
    goes_on: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    /// Any one segment that is not empty.
    Named(Box<str>),
}

impl Pattern {
    /// A path as it is written; `at` is the path of the setting.
    pub(super) fn parse(at: &str, text: &str) -> Result<Self, BuildError> {
        let wrong = |what: &str| {
            BuildError::at(at, format!("`{text}` is not a path of a rule: {what}"))
                .help("write `/users/{id}`, or `/users/**` for all below")
        };
        let path = text.strip_prefix('/').ok_or_else(|| wrong("it does not begin with `/`"))?;
        let (path, goes_on) = match path.strip_suffix("**") {
            Some("") => return Ok(Pattern { segments: Box::default(), goes_on: true }),
            Some(path) => {
                let path = path.strip_suffix('/');
                (path.ok_or_else(|| wrong("`**` is a whole segment, the last"))?, true)
            }
            None => (path, false),
        };
        let mut names = BTreeSet::new();
        let segment = |segment: &str| match segment.strip_prefix('{').and_then(|it| it.strip_suffix('}')) {
            Some(name) if name.is_empty() || name.contains(['{', '}', '*']) => {
                Err(wrong("a placeholder is a whole segment with a name, `{id}`"))
            }
            Some(name) if !names.insert(name.to_owned()) => Err(wrong("a name occurs twice")),
            Some(name) => Ok(Segment::Named(name.into())),
            None if segment.contains(['{', '}', '*']) => {
                Err(wrong("a placeholder is a whole segment, `{id}`, and `**` stands at the end"))
            }
            None => Ok(Segment::Literal(segment.into())),
        };
        let segments: Box<[Segment]> = path.split('/').map(segment).collect::<Result<_, _>>()?;
        // No request has another form, so the rule would never be asked.
        let literal = segments.iter().map(|segment| match segment {
            Segment::Literal(literal) => &**literal,
            Segment::Named(_) => "x",
        });
        let written = format!("/{}", literal.collect::<Vec<_>>().join("/"));
        match normalise(&written) {
            Ok(normal) if normal == written => Ok(Pattern { segments, goes_on }),
            Ok(normal) => Err(wrong(&format!("requests come as `{normal}`"))),
            Err(error) => Err(wrong(error.detail())),
        }
    }

    pub(super) fn fits(&self, path: &str) -> bool {
        self.matched(path).is_some()
    }

    /// What stands at a placeholder, percent-encoded as it came.
    pub(super) fn capture<'p>(&self, name: &str, path: &'p str) -> Option<&'p str> {
        let mut pairs = self.matched(path)?.zip(&self.segments);
        pairs.find_map(|(found, segment)| (*segment == Segment::Named(name.into())).then_some(found))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.segments.iter().any(|segment| *segment == Segment::Named(name.into()))
    }

    fn matched<'p>(&self, path: &'p str) -> Option<impl Iterator<Item = &'p str>> {
        let found = path.strip_prefix('/')?.split('/');
        let mut rest = found.clone();
        for segment in &self.segments {
            let found = rest.next()?;
            match segment {
                Segment::Literal(literal) if found != &**literal => return None,
                Segment::Named(_) if found.is_empty() => return None,
                _ => {}
            }
        }
        (self.goes_on || rest.next().is_none()).then_some(found)
    }

    /// Whether every path that fits the other fits this one.
    pub(super) fn covers(&self, other: &Pattern) -> bool {
        let is_longer = self.segments.len() > other.segments.len();
        if is_longer || !self.goes_on && (other.goes_on || self.segments.len() != other.segments.len()) {
            return false;
        }
        self.segments.iter().zip(&other.segments).all(|(own, other)| match (own, other) {
            (Segment::Named(_), Segment::Named(_)) => true,
            (Segment::Named(_), Segment::Literal(literal)) => !literal.is_empty(),
            (own, other) => own == other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse("path", text).unwrap()
    }

    #[test]
    fn a_path_fits_segment_by_segment() {
        for (text, fitting, others) in [
            ("/", &["/"][..], &["/a", "//"][..]),
            ("/a/b", &["/a/b"], &["/a", "/a/b/", "/a/b/c", "/A/b"]),
            ("/a/{id}", &["/a/1", "/a/%2F"], &["/a/", "/a", "/a/1/2"]),
            ("/a/**", &["/a", "/a/", "/a/b/c"], &["/", "/ab"]),
            ("/a/{id}/**", &["/a/1", "/a/1/x/y"], &["/a", "/a/"]),
            ("/**", &["/", "/a/b"], &["*"]),
        ] {
            let pattern = pattern(text);
            fitting.iter().for_each(|path| assert!(pattern.fits(path), "{text} {path}"));
            others.iter().for_each(|path| assert!(!pattern.fits(path), "{text} {path}"));
        }
        let users = pattern("/users/{user}/{what}");
        assert_eq!(users.capture("user", "/users/ann/x"), Some("ann"));
        assert_eq!(
            (users.capture("other", "/users/ann/x"), users.capture("user", "/users/ann")),
            (None, None)
        );
    }

    #[test]
    fn a_path_covers_what_it_takes_all_of() {
        for (text, other, covers) in [
            ("/a", "/a", true),
            ("/a", "/b", false),
            ("/{x}", "/a", true),
            ("/{x}", "/{y}", true),
            ("/a", "/{x}", false),
            ("/{x}", "/", false),
            ("/a/**", "/a", true),
            ("/a/**", "/a/{x}/**", true),
            ("/a/{x}", "/a/**", false),
            ("/**", "/a/b", true),
            ("/a/**", "/**", false),
        ] {
            assert_eq!(pattern(text).covers(&pattern(other)), covers, "{text} {other}");
        }
    }

    #[test]
    fn what_no_request_has_is_refused() {
        for text in
            ["a", "/a**", "/**/a", "/{}", "/{a", "/a{b}", "/{a}/{a}", "/a//b", "/a/../b", "/a b", "/%41"]
        {
            assert!(Pattern::parse("path", text).is_err(), "{text}");
        }
    }
}
