//! Reads a request head, line by line as its bytes arrive (RFC 9112 sections 2, 3, 5 and 6).
//!
//! Nothing is repaired. Where the RFC lets a recipient choose between tolerating and refusing, this refuses, because
//! what two parsers tolerate differently is what request smuggling is made of. Judging notes where everything stands,
//! so that an accepted head is taken apart without being parsed again, and its values are slices of what was read.

use std::net::Ipv6Addr;
use std::ops::Range;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version};
use memchr::{memchr, memchr_iter, memrchr};

use super::refusal::*;
use super::{Limits, Refusal};
use crate::head::Head;

/// Longest target that a `Uri` holds, whatever the limits say.
const MAX_TARGET: usize = 65_534;

/// Longest field name; far above any name in use, and below the 64 KiB that a `HeaderName` holds.
const MAX_NAME: usize = 1024;

/// Room for the fields of a usual head.
const USUAL_FIELDS: usize = 16;

/// How the body behind a head is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body.
    Empty,
    /// As many bytes as `Content-Length` says.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// What is known of an accepted head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadVerdict {
    /// Bytes of the head, with its final blank line and a blank line before it.
    pub(super) len: usize,
    /// How the body is delimited.
    pub(super) framing: Framing,
}

/// A head under judgement: what its complete lines said, and where the next line begins.
#[derive(Debug, Default)]
pub(super) struct HeadJudge {
    /// Start of the first line not judged yet.
    line: usize,
    /// Bytes already searched for the end of that line.
    searched: usize,
    blank: bool,
    request: Option<RequestLine>,
    fields: Vec<Field>,
    host: Option<Range<usize>>,
    length: Option<u64>,
    chunked: bool,
    wishes: Wishes,
}

/// What the client says of its connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wishes {
    /// `Connection: close`.
    pub(super) close: bool,
    /// `Connection: keep-alive`.
    pub(super) keep_alive: bool,
    /// `Expect: 100-continue`.
    pub(super) go_ahead: bool,
    /// `TE: trailers`.
    pub(super) trailers: bool,
    /// `Connection: upgrade`.
    pub(super) upgrade: bool,
}

impl Wishes {
    /// What a `Connection` header says.
    fn note(&mut self, options: &[u8]) {
        for option in options.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            match option.len() {
                5 => self.close |= option.eq_ignore_ascii_case(b"close"),
                7 => self.upgrade |= option.eq_ignore_ascii_case(b"upgrade"),
                10 => self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive"),
                _ => {}
            }
        }
    }
}

/// Where a field stands in the head.
#[derive(Debug)]
struct Field {
    name: Range<usize>,
    value: Range<usize>,
}

#[derive(Debug)]
struct RequestLine {
    is_1_1: bool,
    method: Range<usize>,
    target: Range<usize>,
    /// The authority of an absolute-form or authority-form target.
    authority: Option<Authority>,
}

#[derive(Debug)]
struct Authority {
    /// Where it stands, in the head.
    range: Range<usize>,
    /// The port meant when none is written; none for `CONNECT`, which must write one.
    default_port: Option<u16>,
}

impl HeadJudge {
    /// Goes on judging. `head` is all that has arrived since the start of the head.
    pub(super) fn advance(&mut self, head: &[u8], limits: &Limits) -> Result<Option<HeadVerdict>, Refusal> {
        let begin = self.searched;
        for found in memchr_iter(b'\n', head.get(begin..).unwrap_or_default()) {
            let start = self.line;
            let end = begin + found;
            if end >= limits.max_head_bytes {
                return Err(self.too_large());
            }
            self.line = end + 1;
            let line = head.get(start..end).unwrap_or_default();
            let line = line.strip_suffix(b"\r").ok_or(BARE_LF)?;
            if self.request.is_none() {
                self.first_line(start, line, limits)?;
            } else if line.is_empty() {
                return self.verdict(head).map(Some);
            } else {
                self.field(start, line, limits)?;
            }
        }
        self.searched = head.len();
        self.open_line(head, limits)?;
        Ok(None)
    }

    /// What the client wishes of its connection.
    pub(super) fn wishes(&self) -> Wishes {
        self.wishes
    }

    /// The accepted head, taken apart. `head` are the bytes that were judged.
    pub(super) fn take_apart(self, head: &Bytes) -> Result<Head, Refusal> {
        let line = self.request.ok_or(REQUEST_LINE)?;
        let mut headers = HeaderMap::with_capacity(self.fields.len());
        for Field { name, value } in self.fields {
            let name = HeaderName::from_bytes(head.get(name).unwrap_or_default()).map_err(|_| HEADER_NAME)?;
            let value = HeaderValue::from_maybe_shared(head.slice(value)).map_err(|_| HEADER_VALUE)?;
            headers.append(name, value);
        }
        let method = Method::from_bytes(head.get(line.method).unwrap_or_default()).map_err(|_| METHOD)?;
        let version = if line.is_1_1 { Version::HTTP_11 } else { Version::HTTP_10 };
        let ends_with_authority =
            line.authority.is_some_and(|authority| authority.range.end == line.target.end);
        let (target, authority, scheme) = (head.slice(line.target), None, None);
        if target.first() == Some(&b'/') {
            let target = PathAndQuery::from_maybe_shared(target).map_err(|_| TARGET)?;
            let target = Some(target);
            return Ok(Head { method, version, target, authority, scheme, headers, upgrade: None });
        }
        let uri = Uri::from_maybe_shared(target).map_err(|_| TARGET)?.into_parts();
        let (mut target, authority, scheme) = (uri.path_and_query, uri.authority, uri.scheme);
        // The server as a whole (RFC 9112, 3.2.4).
        if ends_with_authority && method == Method::OPTIONS {
            target = Some(PathAndQuery::from_static("*"));
        }
        Ok(Head { method, version, target, authority, scheme, headers, upgrade: None })
    }

    /// What can be said of a line whose end has not arrived.
    fn open_line(&self, head: &[u8], limits: &Limits) -> Result<(), Refusal> {
        if head.len() >= limits.max_head_bytes {
            return Err(self.too_large());
        }
        if self.request.is_some() {
            return Ok(());
        }
        let line = head.get(self.line..).unwrap_or_default();
        // A client that speaks another protocol (TLS, say) would never send a line end.
        if line.first().is_some_and(|&first| first != b'\r' && !is_token_byte(first)) {
            return Err(METHOD);
        }
        if line.len() > limits.max_request_line + 1 {
            return Err(REQUEST_LINE_TOO_LONG);
        }
        Ok(())
    }

    fn too_large(&self) -> Refusal {
        if self.request.is_some() { HEAD_TOO_LARGE } else { REQUEST_LINE_TOO_LONG }
    }

    /// The request line, or the one blank line tolerated before it (RFC 9112 section 2.2).
    fn first_line(&mut self, start: usize, line: &[u8], limits: &Limits) -> Result<(), Refusal> {
        if line.is_empty() {
            return if std::mem::replace(&mut self.blank, true) { Err(BLANK_LINES) } else { Ok(()) };
        }
        if line.len() > limits.max_request_line {
            return Err(REQUEST_LINE_TOO_LONG);
        }
        self.request = Some(request_line(start, line)?);
        Ok(())
    }

    fn field(&mut self, start: usize, line: &[u8], limits: &Limits) -> Result<(), Refusal> {
        if self.fields.len() == limits.max_headers {
            return Err(TOO_MANY_HEADERS);
        }
        let (name, value) = field_line(line)?;
        let field = Field { name: start..start + name, value: start + value.start..start + value.end };
        let (name, value) = (line.get(..name).unwrap_or_default(), line.get(value).unwrap_or_default());
        match name.len() {
            2 if name.eq_ignore_ascii_case(b"te") => {
                self.wishes.trailers |= has_option(value, b"trailers");
            }
            4 if name.eq_ignore_ascii_case(b"host") => self.host(&field, value)?,
            6 if name.eq_ignore_ascii_case(b"expect") => {
                expect(value)?;
                self.wishes.go_ahead = true;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => self.wishes.note(value),
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value)?,
            14 | 17 if is_like_framing(name) => return Err(FRAMING_NAME),
            _ => {}
        }
        if self.fields.is_empty() {
            self.fields.reserve(USUAL_FIELDS.min(limits.max_headers));
        }
        self.fields.push(field);
        Ok(())
    }

    fn host(&mut self, field: &Field, value: &[u8]) -> Result<(), Refusal> {
        if self.host.is_some() {
            return Err(HOST_REPEATED);
        }
        split_authority(value).ok_or(HOST_INVALID)?;
        self.host = Some(field.value.clone());
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.chunked {
            return Err(LENGTH_AND_ENCODING);
        }
        // A list (`5, 5`) is a repetition too.
        if self.length.is_some() || memchr(b',', value).is_some() {
            return Err(LENGTH_REPEATED);
        }
        self.length = Some(decimal(value).ok_or(LENGTH_INVALID)?);
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.length.is_some() {
            return Err(LENGTH_AND_ENCODING);
        }
        if self.chunked {
            return Err(ENCODING_INVALID);
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(other_encoding(value));
        }
        self.chunked = true;
        Ok(())
    }

    /// What only the whole head can tell.
    fn verdict(&self, head: &[u8]) -> Result<HeadVerdict, Refusal> {
        let request = self.request.as_ref().ok_or(REQUEST_LINE)?;
        if self.chunked && !request.is_1_1 {
            return Err(ENCODING_VERSION);
        }
        let host = match &self.host {
            Some(host) => head.get(host.clone()),
            None if request.is_1_1 => return Err(HOST_MISSING),
            None => None,
        };
        if let (Some(authority), Some(host)) = (&request.authority, host) {
            let target = head.get(authority.range.clone()).unwrap_or_default();
            if !same_authority(target, host, authority.default_port) {
                return Err(HOST_MISMATCH);
            }
        }
        let framing = match (self.chunked, self.length) {
            (true, _) => Framing::Chunked,
            (false, None | Some(0)) => Framing::Empty,
            (false, Some(length)) => Framing::Length(length),
        };
        if head.get(request.method.clone()) == Some(b"CONNECT") && framing != Framing::Empty {
            return Err(CONNECT_BODY);
        }
        Ok(HeadVerdict { len: self.line, framing })
    }
}

/// Whether a name is the same as one of the framing to whatever turns headers into variables (RFC 3875, 4.1.18).
pub(crate) fn is_like_framing(name: &[u8]) -> bool {
    let likes: [&[u8]; 2] = [b"content_length", b"transfer_encoding"];
    likes.iter().any(|like| name.eq_ignore_ascii_case(like))
}

/// Whether a list names this option.
pub(crate) fn has_option(list: &[u8], option: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|named| named.trim_ascii().eq_ignore_ascii_case(option))
}

/// Judges a field line without its CRLF: where its name ends, and where its value stands without the whitespace around
/// it.
pub(super) fn field_line(line: &[u8]) -> Result<(usize, Range<usize>), Refusal> {
    let colon = line.iter().position(|&byte| !is_token_byte(byte));
    let (name, rest) = line.split_at(colon.unwrap_or(line.len()));
    let Some((b':', value)) = rest.split_first() else {
        return Err(broken_name(name, rest));
    };
    if name.is_empty() {
        return Err(HEADER_NAME);
    }
    if name.len() > MAX_NAME {
        return Err(HEADER_NAME_TOO_LONG);
    }
    // A fold instead of a search, because it compiles to vector code.
    let broken = value.iter().fold(false, |broken, &byte| broken | is_control(byte));
    if broken {
        return Err(if memchr(b'\r', value).is_some() { BARE_CR } else { HEADER_VALUE });
    }
    let value = value.trim_ascii_start();
    let start = line.len() - value.len();
    Ok((name.len(), start..start + value.trim_ascii_end().len()))
}

fn broken_name(name: &[u8], rest: &[u8]) -> Refusal {
    match (name, rest.first()) {
        ([], Some(b' ' | b'\t')) => OBS_FOLD,
        (_, Some(b' ' | b'\t')) => HEADER_COLON,
        (_, Some(b'\r')) => BARE_CR,
        _ => HEADER_NAME,
    }
}

fn request_line(start: usize, line: &[u8]) -> Result<RequestLine, Refusal> {
    match usual_request_line(start, line) {
        Some(usual) => Ok(usual),
        None => any_request_line(start, line),
    }
}

/// A request line in origin-form, as nearly all are, in one pass.
fn usual_request_line(start: usize, line: &[u8]) -> Option<RequestLine> {
    let method = line.iter().position(|&byte| !is_token_byte(byte))?;
    let (target, version) =
        line.split_at_checked(method + 1)?.1.split_at_checked(line.len().checked_sub(method + 10)?)?;
    let is_1_1 = match version {
        b" HTTP/1.1" => true,
        b" HTTP/1.0" => false,
        _ => return None,
    };
    let is_usual = method > 0
        && line.get(method) == Some(&b' ')
        && target.first() == Some(&b'/')
        && target.len() <= MAX_TARGET
        && target.iter().all(|&byte| is_target_byte(byte))
        && line.get(..method) != Some(b"CONNECT");
    let target = start + method + 1..start + method + 1 + target.len();
    is_usual.then_some(RequestLine { is_1_1, method: start..start + method, target, authority: None })
}

fn any_request_line(start: usize, line: &[u8]) -> Result<RequestLine, Refusal> {
    if memchr(b'\r', line).is_some() {
        return Err(BARE_CR);
    }
    let first = memchr(b' ', line).ok_or(REQUEST_LINE)?;
    let last = memrchr(b' ', line).ok_or(REQUEST_LINE)?;
    let method = line.get(..first).unwrap_or_default();
    let target = line.get(first + 1..last).ok_or(REQUEST_LINE)?;
    if method.is_empty() || !method.iter().all(|&byte| is_token_byte(byte)) {
        return Err(METHOD);
    }
    let is_1_1 = match line.get(last + 1..).unwrap_or_default() {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(VERSION);
        }
        _ => return Err(REQUEST_LINE),
    };
    if target.is_empty() || memchr(b' ', target).is_some() {
        return Err(REQUEST_LINE);
    }
    if target.len() > MAX_TARGET {
        return Err(REQUEST_LINE_TOO_LONG);
    }
    if !target.iter().all(|&byte| is_target_byte(byte)) {
        return Err(if memchr(b'#', target).is_some() { FRAGMENT } else { TARGET_BYTES });
    }
    let mut authority = target_authority(method, target)?;
    let target_start = start + first + 1;
    if let Some(Authority { range, .. }) = &mut authority {
        *range = range.start + target_start..range.end + target_start;
    }
    let target = target_start..target_start + target.len();
    Ok(RequestLine { is_1_1, method: start..start + first, target, authority })
}

/// The forms of RFC 9112 section 3.2: the authority of the target, if it has one.
fn target_authority(method: &[u8], target: &[u8]) -> Result<Option<Authority>, Refusal> {
    if method == b"CONNECT" {
        return match split_authority(target) {
            Some((_, Some(_))) => Ok(Some(Authority { range: 0..target.len(), default_port: None })),
            _ => Err(TARGET),
        };
    }
    if target.first() == Some(&b'/') || (target == b"*" && method == b"OPTIONS") {
        return Ok(None);
    }
    let (start, default_port) = if starts_ignoring_case(target, b"http://") {
        (7, 80)
    } else if starts_ignoring_case(target, b"https://") {
        (8, 443)
    } else {
        return Err(TARGET);
    };
    let rest = target.get(start..).unwrap_or_default();
    let len = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    split_authority(rest.get(..len).unwrap_or_default()).ok_or(TARGET)?;
    Ok(Some(Authority { range: start..start + len, default_port: Some(default_port) }))
}

fn starts_ignoring_case(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Host and port of an authority. Stricter than RFC 3986 section 3.2.2: no user information, no percent-encoding, no
/// sub-delimiters, no empty label and no empty port, none of which occur in names that resolve.
pub(crate) fn split_authority(authority: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let (host, rest) = match authority.strip_prefix(b"[") {
        Some(rest) => {
            let end = memchr(b']', rest)?;
            let address = std::str::from_utf8(rest.get(..end)?).ok()?;
            address.parse::<Ipv6Addr>().ok()?;
            authority.split_at(end + 2)
        }
        None => {
            let end = authority.iter().position(|&byte| !is_host_byte(byte)).unwrap_or(authority.len());
            authority.split_at(end)
        }
    };
    match rest {
        _ if host.is_empty() || has_empty_label(host) => None,
        [] => Some((host, None)),
        [b':', port @ ..] if port.len() <= 5 => Some((host, Some(u16::try_from(decimal(port)?).ok()?))),
        _ => None,
    }
}

/// Whether dots have nothing between them, or before them. A last dot ends a fully qualified name.
fn has_empty_label(host: &[u8]) -> bool {
    host.split(|&byte| byte == b'.').rev().skip(1).any(<[u8]>::is_empty)
}

/// Whether a target's authority and the Host header mean the same. A port that is the scheme's default may be left
/// out; behind `CONNECT` the Host header may leave out the port altogether.
pub(crate) fn same_authority(target: &[u8], host: &[u8], default_port: Option<u16>) -> bool {
    let (Some((target, target_port)), Some((host, host_port))) =
        (split_authority(target), split_authority(host))
    else {
        return false;
    };
    let same_port = match default_port {
        Some(default) => target_port.unwrap_or(default) == host_port.unwrap_or(default),
        None => host_port.is_none() || host_port == target_port,
    };
    same_port && target.eq_ignore_ascii_case(host)
}

/// Whether an expectation can be met.
pub(crate) fn expect(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"100-continue") { Ok(()) } else { Err(EXPECTATION) }
}

/// 501 for well-formed codings we do not speak (RFC 9112 section 6.1), 400 for everything that is not even that, or
/// that names `chunked` in another way than alone.
fn other_encoding(value: &[u8]) -> Refusal {
    let coding = |part: &[u8]| {
        let name = part.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii().to_owned();
        let is_token = !name.is_empty() && name.iter().all(|&byte| is_token_byte(byte));
        (is_token, name.eq_ignore_ascii_case(b"chunked"), memchr(b';', part).is_some())
    };
    let codings: Vec<_> = value.split(|&byte| byte == b',').map(coding).collect();
    let last = codings.len().saturating_sub(1);
    let malformed = codings.iter().enumerate().any(|(position, &(is_token, is_chunked, has_parameters))| {
        !is_token || (is_chunked && (position != last || has_parameters))
    });
    if malformed { ENCODING_INVALID } else { ENCODING_UNKNOWN }
}

/// A plain decimal number up to `i64::MAX`, which every peer can represent.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().try_fold(0u64, |number, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })?;
    (number <= i64::MAX as u64).then_some(number)
}

fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

fn is_token_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & TOKEN != 0
}

fn is_target_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & IN_TARGET != 0
}

fn is_host_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & IN_HOST != 0
}

const TOKEN: u8 = 1;
const IN_TARGET: u8 = 2;
const IN_HOST: u8 = 4;

static CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0u8;
    while byte < 128 {
        let mut class = 0;
        if byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
        {
            class |= TOKEN;
        }
        // Excluded are the delimiters that URI parsers never let through, so that none of them answers in our place.
        if byte.is_ascii_graphic() && !matches!(byte, b'#' | b'"' | b'<' | b'>' | b'`') {
            class |= IN_TARGET;
        }
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            class |= IN_HOST;
        }
        classes[byte as usize] = class;
        byte += 1;
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_way_accepts_nothing_that_the_long_way_refuses_or_reads_otherwise() {
        let mut taken = 0;
        for line in ["GET / HTTP/1.1", "POST /a?b=c HTTP/1.0", "CONNECT /a HTTP/1.1", "GET /  HTTP/1.1"] {
            for at in 0..line.len() {
                for byte in 0..=255 {
                    let mut changed = line.as_bytes().to_vec();
                    changed[at] = byte;
                    let Some(usual) = usual_request_line(7, &changed) else { continue };
                    let any = any_request_line(7, &changed).unwrap();
                    assert_eq!(format!("{usual:?}"), format!("{any:?}"));
                    taken += 1;
                }
            }
        }
        assert!(taken > 1000, "{taken}");
    }
}
