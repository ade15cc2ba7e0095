//! Host and path patterns, and which of them make no sense.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

use portcullis_plugin::path::normalise;

/// A host that a route wants, in lower case, without port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This host.
    Exact(String),
    /// Every host with at least one more label before this suffix: `example.com` for `*.example.com`.
    Wildcard(String),
}

/// A path that a route wants, in [normal form](portcullis_plugin::path).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// Every path, and the asterisk of `OPTIONS *`.
    Any,
    /// This path, to the byte.
    Exact(String),
    /// Paths that begin with these whole segments: `/static` takes `/static` and `/static/x`, but not `/staticx`.
    Prefix(String),
    /// Paths that fit a template.
    Template(Template),
}

/// A path with placeholders; see [`PathPattern::template`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Template(Vec<Segment>);

/// One segment of a template.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Segment {
    /// These bytes.
    Literal(Box<str>),
    /// `{name}`: any one segment that is not empty.
    Parameter(Box<str>),
    /// `{name**}` or `**`, at the end only: any number of segments, even none.
    Rest(Option<Box<str>>),
}

/// Why a pattern was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PatternError {
    /// A host that is empty, or contains something that a host name, or address in brackets, does not.
    Host,
    /// A star anywhere but as the whole first label, or with no label behind it.
    Wildcard,
    /// A path that is not in normal form. Holds the form to write instead, if there is one.
    NotNormal(Option<String>),
    /// Braces or stars that are not a whole segment of the form `{name}`, `{name**}` or `**`.
    Placeholder,
    /// A name that occurs twice.
    RepeatedName(Box<str>),
    /// A rest that something follows.
    RestNotLast,
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PatternError::Host => f.write_str("a host is a name or address, without port"),
            PatternError::Wildcard => f.write_str("a wildcard host is written `*.example.com`"),
            PatternError::NotNormal(Some(normal)) => write!(f, "the path must be written `{normal}`"),
            PatternError::NotNormal(None) => f.write_str("no request has such a path"),
            PatternError::Placeholder => {
                f.write_str("a placeholder is a whole segment: `{name}`, or at the end `{name**}` or `**`")
            }
            PatternError::RepeatedName(name) => write!(f, "the name `{name}` occurs twice"),
            PatternError::RestNotLast => f.write_str("nothing can follow the rest of a path"),
        }
    }
}

impl Error for PatternError {}

impl HostPattern {
    /// Reads `example.com`, `[::1]` or `*.example.com`, in any case.
    pub fn parse(pattern: &str) -> Result<HostPattern, PatternError> {
        let lower = pattern.to_ascii_lowercase();
        let host = match lower.strip_prefix("*.") {
            Some(suffix) => HostPattern::Wildcard(suffix.to_owned()),
            None => HostPattern::Exact(lower),
        };
        host.check()?;
        Ok(host)
    }

    /// Whether any request can have such a host.
    pub(super) fn check(&self) -> Result<(), PatternError> {
        let (HostPattern::Exact(host) | HostPattern::Wildcard(host)) = self;
        let is_address =
            host.starts_with('[') && host.ends_with(']') && matches!(self, HostPattern::Exact(_));
        let in_host = |byte: u8| match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => true,
            b'[' | b']' | b':' => is_address,
            _ => false,
        };
        if host.contains('*') || (host.is_empty() && matches!(self, HostPattern::Wildcard(_))) {
            return Err(PatternError::Wildcard);
        }
        // Look-ups ignore a dot at the end.
        if host.is_empty() || host.ends_with('.') || !host.bytes().all(in_host) {
            return Err(PatternError::Host);
        }
        Ok(())
    }
}

impl PathPattern {
    /// Reads a template: `/users/{id}/files/{path**}`, `/assets/**`. A rest may be empty, also without the slash before
    /// it: `/assets/**` takes `/assets`, `/assets/` and `/assets/a/b`.
    pub fn template(template: &str) -> Result<PathPattern, PatternError> {
        let segments = template.strip_prefix('/').ok_or(PatternError::NotNormal(None))?;
        let segments = segments.split('/').map(parse_segment).collect::<Result<Vec<_>, _>>()?;
        let pattern = PathPattern::Template(Template(segments));
        pattern.check()?;
        Ok(pattern)
    }

    /// The names of what the pattern captures, in order.
    pub fn capture_names(&self) -> Vec<Box<str>> {
        match self {
            PathPattern::Template(template) => template.names().cloned().collect(),
            PathPattern::Any | PathPattern::Exact(_) | PathPattern::Prefix(_) => Vec::new(),
        }
    }

    /// Whether any request can have such a path.
    pub(super) fn check(&self) -> Result<(), PatternError> {
        match self {
            PathPattern::Any => Ok(()),
            PathPattern::Exact(path) | PathPattern::Prefix(path) => check_normal(path),
            PathPattern::Template(template) => template.check(),
        }
    }
}

impl Template {
    /// The segments, of which only the last one can be a rest.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    fn names(&self) -> impl Iterator<Item = &Box<str>> {
        self.0.iter().filter_map(|segment| match segment {
            Segment::Parameter(name) | Segment::Rest(Some(name)) => Some(name),
            Segment::Literal(_) | Segment::Rest(None) => None,
        })
    }

    fn check(&self) -> Result<(), PatternError> {
        let last = self.0.len().saturating_sub(1);
        let is_rest = |segment: &Segment| matches!(segment, Segment::Rest(_));
        if self.0.iter().take(last).any(is_rest) {
            return Err(PatternError::RestNotLast);
        }
        for (position, name) in self.names().enumerate() {
            if self.names().take(position).any(|earlier| earlier == name) {
                return Err(PatternError::RepeatedName(name.clone()));
            }
        }
        // A placeholder stands for any segment that a normal path may have; so does the letter put in its place.
        let path = self.0.iter().fold(String::new(), |path, segment| match segment {
            Segment::Literal(literal) => path + "/" + literal,
            Segment::Parameter(_) | Segment::Rest(_) => path + "/x",
        });
        match normalise(&path) {
            Ok(Cow::Borrowed(_)) => Ok(()),
            _ => Err(PatternError::NotNormal(None)),
        }
    }
}

fn parse_segment(segment: &str) -> Result<Segment, PatternError> {
    if segment == "**" {
        return Ok(Segment::Rest(None));
    }
    let Some(inner) = segment.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) else {
        let has_marks = segment.contains(['{', '}']) || segment.contains("**");
        return if has_marks { Err(PatternError::Placeholder) } else { Ok(Segment::Literal(segment.into())) };
    };
    let name = inner.strip_suffix("**").unwrap_or(inner);
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match is_name {
        true if name.len() < inner.len() => Ok(Segment::Rest(Some(name.into()))),
        true => Ok(Segment::Parameter(name.into())),
        false => Err(PatternError::Placeholder),
    }
}

fn check_normal(path: &str) -> Result<(), PatternError> {
    match normalise(path) {
        Ok(Cow::Borrowed(_)) => Ok(()),
        Ok(Cow::Owned(normal)) => Err(PatternError::NotNormal(Some(normal))),
        Err(_) => Err(PatternError::NotNormal(None)),
    }
}
