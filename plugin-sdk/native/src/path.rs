//! Path normalisation, done once, before anything looks at the path.
//!
//! Routes, plugins and the upstream must all see the same path, so equivalent spellings become one, and what servers
//! are known to read differently is refused rather than guessed at:
//!
//! * Percent-encoding must be two hexadecimal digits (RFC 3986 section 2.1); digits are upper-cased (6.2.2.1), encoded
//!   unreserved bytes are decoded (6.2.2.2). Other encoded bytes stay encoded.
//! * Printable bytes that section 3.3 does not allow in a path (`"<>[]^{|}` and the backtick) are percent-encoded.
//! * Empty segments are dropped, so that duplicate slashes become one; this goes beyond the RFC, but file servers do it.
//! * `.` and `..` segments are removed (5.2.4) after both steps, so also when written as `%2e`. A `..` above the root is
//!   refused: nobody sends it by accident.
//! * Encoded slashes and all backslashes are refused, because some servers take them for separators; so are control
//!   bytes, encoded or not, and literal bytes from 0x80 on.
//! * A semicolon is percent-encoded. Servlet containers cut `;parameters` off before they look at a path, so that
//!   `/admin;x` would lead around a route for `/admin`; encoded it is part of a name for everybody. `..;x` and `.;x` are
//!   refused, however written: nobody sends them by accident.
//!
//! The result is in normal form: normalising it again returns it borrowed. The asterisk of `OPTIONS *` is no path.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// Why a path was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// It does not begin with a slash.
    Relative,
    /// A percent sign without two hexadecimal digits.
    Encoding,
    /// A control byte, encoded or not.
    Control,
    /// A literal byte that cannot stand in a path: a blank, `?`, `#`, or beyond ASCII.
    Byte,
    /// An encoded slash.
    EncodedSlash,
    /// A backslash, encoded or not.
    Backslash,
    /// A `..` that leads above the root.
    AboveRoot,
    /// A `.` or `..` with parameters.
    DotParameters,
}

impl PathError {
    /// The stable reason code, `path.<what>`.
    pub fn reason(self) -> &'static str {
        match self {
            PathError::Relative => "path.relative",
            PathError::Encoding => "path.encoding",
            PathError::Control => "path.control",
            PathError::Byte => "path.byte",
            PathError::EncodedSlash => "path.encoded_slash",
            PathError::Backslash => "path.backslash",
            PathError::AboveRoot => "path.above_root",
            PathError::DotParameters => "path.dot_parameters",
        }
    }

    /// What is wrong, in fixed words.
    pub fn detail(self) -> &'static str {
        match self {
            PathError::Relative => "the path does not begin with a slash",
            PathError::Encoding => "a percent sign is not followed by two hexadecimal digits",
            PathError::Control => "the path contains a control byte",
            PathError::Byte => "the path contains a byte that must be percent-encoded",
            PathError::EncodedSlash => "the path contains an encoded slash",
            PathError::Backslash => "the path contains a backslash",
            PathError::AboveRoot => "the path leads above the root",
            PathError::DotParameters => "a dot segment of the path has parameters",
        }
    }
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail())
    }
}

impl Error for PathError {}

/// The normal form of the path part of a request target, without its query. Borrowed, after one scan, if it already is
/// in normal form.
pub fn normalise(raw_path: &str) -> Result<Cow<'_, str>, PathError> {
    if !raw_path.starts_with('/') {
        return Err(PathError::Relative);
    }
    if is_normal(raw_path.as_bytes())? {
        return Ok(Cow::Borrowed(raw_path));
    }
    rebuild(raw_path).map(Cow::Owned)
}

/// Whether a query can be sent as it is: printable ASCII without `#`. That is more than RFC 3986
/// allows (section 3.4), because clients send brackets and quotes unencoded.
pub fn is_query(query: &str) -> bool {
    query.bytes().all(|byte| matches!(byte, b'!'..=b'~') && byte != b'#')
}

/// Whether the path needs no change. Refuses what is refused wherever it stands.
fn is_normal(path: &[u8]) -> Result<bool, PathError> {
    let mut normal = true;
    let mut rest = path;
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        match class(byte) {
            Class::Plain => {}
            Class::Slash => normal &= !begins_with_removable(behind),
            Class::Excluded => normal = false,
            Class::Percent => {
                let (decoded, behind) = decode(behind)?;
                rest = behind;
                normal &= !is_unreserved(decoded) && !has_lower_case(path, rest.len());
            }
            Class::Refused(error) => return Err(error),
        }
    }
    Ok(normal)
}

/// Whether an empty, `.` or `..` segment may begin here, parameters or not. An empty one at the end is the trailing
/// slash, which stays.
fn begins_with_removable(segment: &[u8]) -> bool {
    let name = segment.strip_prefix(b".").map(|rest| rest.strip_prefix(b".").unwrap_or(rest));
    match name {
        None => segment.starts_with(b"/"),
        Some(after) => matches!(after, [] | [b'/' | b';', ..] | [b'%', b'3', b'b' | b'B', ..]),
    }
}

/// Whether the encoded byte that ends `left` bytes before the path's end has a lower-case digit.
fn has_lower_case(path: &[u8], left: usize) -> bool {
    let end = path.len() - left;
    path.get(end - 2..end).is_some_and(|digits| digits.iter().any(u8::is_ascii_lowercase))
}

fn rebuild(path: &str) -> Result<String, PathError> {
    let mut normal = String::with_capacity(path.len() + 1);
    let mut trailing_slash = false;
    for segment in path.split('/').skip(1) {
        let start = normal.len();
        normal.push('/');
        push_segment(&mut normal, segment.as_bytes())?;
        let removed = match normal.get(start..) {
            Some("/" | "/.") => start,
            Some("/..") => {
                let parent = normal.get(..start).and_then(|before| before.rfind('/'));
                parent.ok_or(PathError::AboveRoot)?
            }
            Some(dots) if dots.starts_with("/.%3B") || dots.starts_with("/..%3B") => {
                return Err(PathError::DotParameters);
            }
            _ => normal.len(),
        };
        trailing_slash = removed < normal.len();
        normal.truncate(removed);
    }
    if trailing_slash {
        normal.push('/');
    }
    Ok(normal)
}

fn push_segment(normal: &mut String, mut segment: &[u8]) -> Result<(), PathError> {
    while let Some((&byte, behind)) = segment.split_first() {
        segment = behind;
        match class(byte) {
            Class::Percent => {
                let (decoded, behind) = decode(behind)?;
                segment = behind;
                if is_unreserved(decoded) {
                    normal.push(char::from(decoded));
                } else {
                    push_encoded(normal, decoded);
                }
            }
            Class::Excluded => push_encoded(normal, byte),
            Class::Plain | Class::Slash => normal.push(char::from(byte)),
            Class::Refused(error) => return Err(error),
        }
    }
    Ok(())
}

fn push_encoded(normal: &mut String, byte: u8) {
    let digit = |value: u8| char::from(if value < 10 { b'0' + value } else { b'A' + value - 10 });
    normal.extend(['%', digit(byte >> 4), digit(byte & 15)]);
}

/// The byte encoded by the two digits at the start of `digits`, and what follows them.
fn decode(digits: &[u8]) -> Result<(u8, &[u8]), PathError> {
    let [high, low, behind @ ..] = digits else { return Err(PathError::Encoding) };
    let value =
        |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8).ok_or(PathError::Encoding);
    match value(*high)? << 4 | value(*low)? {
        b'/' => Err(PathError::EncodedSlash),
        b'\\' => Err(PathError::Backslash),
        control if control.is_ascii_control() => Err(PathError::Control),
        decoded => Ok((decoded, behind)),
    }
}

enum Class {
    Plain,
    Slash,
    Percent,
    /// Printable, but to be encoded in a path.
    Excluded,
    Refused(PathError),
}

fn class(byte: u8) -> Class {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => Class::Plain,
        b'/' => Class::Slash,
        b'%' => Class::Percent,
        b'\\' => Class::Refused(PathError::Backslash),
        b'"' | b';' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => Class::Excluded,
        b' ' | b'?' | b'#' | 0x80.. => Class::Refused(PathError::Byte),
        control if control.is_ascii_control() => Class::Refused(PathError::Control),
        _ => Class::Plain,
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_paths_are_borrowed() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a/b.c/.well-known/..a/a../...",
            "/a%3Bv=1/b:c@d!$&'()*+,=~_-",
            "/%20/%3B/%25/%C3%A9/%FF",
            "/%252e%252e/",
        ] {
            assert!(matches!(normalise(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
        }
    }

    #[test]
    fn equivalent_spellings_become_one() {
        for (raw, normal) in [
            ("/%61%2D%5f%7E%2e%41", "/a-_~.A"),
            ("/%c3%a9%3a", "/%C3%A9%3A"),
            ("/%c3%A9/x", "/%C3%A9/x"),
            ("/%C3%A9%3a/x", "/%C3%A9%3A/x"),
            ("//", "/"),
            ("//a///b//", "/a/b/"),
            ("/.", "/"),
            ("/./", "/"),
            ("/a/.", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../", "/a/"),
            ("/a/b/../c", "/a/c"),
            ("/a/../b/../c", "/c"),
            ("/a//../b", "/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/%2e/b", "/a/b"),
            ("/a;x/..a;y/../b", "/a%3Bx/b"),
            ("/protected;x", "/protected%3Bx"),
            ("/{a}|[b]", "/%7Ba%7D%7C%5Bb%5D"),
            ("/%61%25%32%65", "/a%252e"),
        ] {
            assert_eq!(normalise(raw).as_deref(), Ok(normal), "{raw}");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for (raw, error) in [
            ("", PathError::Relative),
            ("a", PathError::Relative),
            ("*", PathError::Relative),
            ("/%", PathError::Encoding),
            ("/%4", PathError::Encoding),
            ("/%4/", PathError::Encoding),
            ("/%zz", PathError::Encoding),
            ("/%u0041", PathError::Encoding),
            ("/%00", PathError::Control),
            ("/%1f", PathError::Control),
            ("/%7F", PathError::Control),
            ("/\0", PathError::Control),
            ("/\t", PathError::Control),
            ("/\x7f", PathError::Control),
            ("/a b", PathError::Byte),
            ("/a?b", PathError::Byte),
            ("/a#b", PathError::Byte),
            ("/\u{e9}", PathError::Byte),
            ("/a%2fb", PathError::EncodedSlash),
            ("/a%2Fb", PathError::EncodedSlash),
            ("/a\\b", PathError::Backslash),
            ("/a%5cb", PathError::Backslash),
            ("/..", PathError::AboveRoot),
            ("/../a", PathError::AboveRoot),
            ("/%2e%2e/a", PathError::AboveRoot),
            ("/a/../..", PathError::AboveRoot),
            ("//../a", PathError::AboveRoot),
            ("/./../a", PathError::AboveRoot),
            ("/a/..;/b", PathError::DotParameters),
            ("/a/%2e.;x=y", PathError::DotParameters),
            ("/.;/", PathError::DotParameters),
            ("/a/..%3b", PathError::DotParameters),
        ] {
            assert_eq!(normalise(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn normalising_twice_changes_nothing_more() {
        const PIECES: [&str; 20] = [
            "/", "/", "//", ".", "..", "/../", "/./", "%2e", "%2E", "a", "B", "%41", "%c3", "%25", ";x", "{",
            "~", "%7e", "%3b", "2e",
        ];
        let mut state = 1u64;
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut raw = String::from("/");
            for _ in 0..8 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                raw.push_str(PIECES[(state >> 33) as usize % PIECES.len()]);
            }
            let Ok(normal) = normalise(&raw) else { continue };
            accepted += 1;
            assert!(
                matches!(normalise(&normal), Ok(Cow::Borrowed(same)) if same == normal),
                "{raw} {normal}"
            );
            let removable = |segment: &str| matches!(segment, "." | "..");
            assert!(!normal.contains("//") && !normal.split('/').any(removable), "{raw} {normal}");
        }
        assert!(accepted > 5_000);
    }

    #[test]
    fn a_query_is_what_can_stand_behind_a_path() {
        assert!(["", "a=b&c=[\"{}\"]?/%zz", "!~"].into_iter().all(is_query));
        for wrong in ["a b", "a#b", "\u{e9}", "a\r", "\x7f", "\0"] {
            assert!(!is_query(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn every_error_has_its_own_reason() {
        assert_eq!(PathError::AboveRoot.reason(), "path.above_root");
        assert_eq!(PathError::EncodedSlash.to_string(), "the path contains an encoded slash");
    }
}
