//! How a response is read (RFC 9112): leniently where that is harmless, never where two readers
//! could disagree on its end.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE,
};
use http::{Response, StatusCode};
use http_body::Frame;
use httparse::{EMPTY_HEADER, ParserConfig};
use memchr::{memchr, memchr_iter};

use super::Broken;
use crate::hops::is_hop_by_hop;
use crate::http1::is_forbidden_trailer;

/// Headers of a response at most.
pub(in crate::upstream) const MAX_HEADERS: usize = 256;
/// A chunk's size with its extensions at most.
const MAX_CHUNK_LINE: usize = 1024;
/// Bytes of a trailer section at most, and fields.
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_FIELDS: usize = 64;

/// Where a head ends, its final blank line included. `searched` remembers how far the search came.
pub(super) fn head_end(bytes: &[u8], searched: &mut usize) -> Option<usize> {
    let begin = *searched;
    for at in memchr_iter(b'\n', bytes.get(begin..)?) {
        let next = begin + at + 1;
        match bytes.get(next..)? {
            [b'\n', ..] => return Some(next + 1),
            [b'\r', b'\n', ..] => return Some(next + 2),
            // Too short to tell: this line's end is to be looked at again.
            [] | [b'\r'] => {
                *searched = next - 1;
                return None;
            }
            _ => {}
        }
    }
    *searched = bytes.len();
    None
}

/// A complete head: the response, less what concerns only its connection, but with the `Upgrade` of a 101; how its body
/// ends; and whether the connection may be used again.
pub(super) fn read_head(
    bytes: &Bytes,
    is_head_request: bool,
) -> Result<(Response<()>, Decoder, bool), Broken> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    match ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields) {
        // Both must mean the same end, or what follows would be read as something else.
        Ok(httparse::Status::Complete(end)) if end == bytes.len() => {}
        Ok(_) => return Err(Broken::Malformed("the head is incomplete")),
        Err(httparse::Error::TooManyHeaders) => return Err(Broken::Malformed("too many headers")),
        Err(_) => return Err(Broken::Malformed("the head can't be parsed")),
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Broken::Malformed("the status is not one"))?;
    let is_http_11 = parsed.version == Some(1);
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    let mut framing = Framing::default();
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Broken::Malformed("a header can't be read"));
        };
        framing.note(&name, &value).map_err(Broken::Malformed)?;
        if name != CONTENT_LENGTH && !is_hop_by_hop(&name, &value) {
            headers.append(name, value);
        }
    }
    for name in &framing.named {
        headers.remove(name);
    }
    if let Some(protocol) = framing.protocol().filter(|_| status == StatusCode::SWITCHING_PROTOCOLS) {
        headers.insert(UPGRADE, protocol);
    }
    // However it was said, it is sent on once, and not where it must not be (RFC 9110, 8.6).
    if let Some(length) =
        framing.length.filter(|_| !status.is_informational() && status != StatusCode::NO_CONTENT)
    {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let decoder = framing.decoder(status, is_http_11, is_head_request).map_err(Broken::Malformed)?;
    let keeps = if is_http_11 { !framing.close } else { framing.keep_alive && !framing.close };
    let keep_alive = keeps && !matches!(decoder, Decoder::UntilClose);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok((response, decoder, keep_alive))
}

/// What the headers say of the body's end and of the connection.
#[derive(Default)]
struct Framing {
    length: Option<u64>,
    /// Whether the body is chunked and nothing else, if a coding is named.
    chunked: Option<bool>,
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    /// What `Upgrade` says.
    protocols: Vec<HeaderValue>,
    /// Headers that `Connection` names.
    named: Vec<HeaderName>,
}

impl Framing {
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), &'static str> {
        if *name == CONTENT_LENGTH {
            let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let length = digits.and_then(|text| text.parse().ok());
            let length = length.ok_or("its Content-Length is not a number")?;
            // Repeating the same is harmless (RFC 9110, 8.6).
            if *self.length.get_or_insert(length) != length {
                return Err("its Content-Length lines differ");
            }
        } else if *name == TRANSFER_ENCODING {
            let chunked = self.chunked.is_none() && value.as_bytes().eq_ignore_ascii_case(b"chunked");
            self.chunked = Some(chunked);
        } else if *name == CONNECTION {
            for option in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                match option {
                    _ if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                    _ if option.eq_ignore_ascii_case(b"close") => self.close = true,
                    _ if option.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
                    _ => self.named.extend(HeaderName::from_bytes(option)),
                }
            }
        } else if *name == UPGRADE {
            self.protocols.push(value.clone());
        }
        Ok(())
    }

    /// The one protocol that is to be spoken from here on.
    fn protocol(&mut self) -> Option<HeaderValue> {
        let protocol = self.protocols.pop()?;
        (self.upgrade && self.protocols.is_empty()).then_some(protocol)
    }

    /// RFC 9112, 6.3, without its leniency: framing that two readers could take differently is
    /// refused.
    fn decoder(
        &self,
        status: StatusCode,
        is_http_11: bool,
        is_head_request: bool,
    ) -> Result<Decoder, &'static str> {
        let decoder = match (self.chunked, self.length) {
            (None, Some(0)) => Decoder::End,
            (None, Some(length)) => Decoder::Length(length),
            (None, None) => Decoder::UntilClose,
            (Some(_), Some(_)) => return Err("it has both Content-Length and Transfer-Encoding"),
            (Some(true), None) if is_http_11 => Decoder::Chunked(Chunked::Size),
            (Some(_), None) => return Err("its Transfer-Encoding is not `chunked`"),
        };
        let has_none = is_head_request
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        Ok(if has_none { Decoder::End } else { decoder })
    }
}

/// What reads a response's body.
#[derive(Debug)]
pub(super) enum Decoder {
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    End,
}

/// Where in a chunked body the reader stands.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chunked {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

/// What came of looking at what was read.
pub(super) enum Progress {
    Frame(Frame<Bytes>),
    /// More has to be read first.
    More,
    End,
}

impl Decoder {
    /// The next of the body in what was read.
    pub(super) fn advance(&mut self, inbox: &mut BytesMut) -> Result<Progress, &'static str> {
        loop {
            match self {
                Decoder::End => return Ok(Progress::End),
                _ if inbox.is_empty() => return Ok(Progress::More),
                Decoder::UntilClose => return Ok(Progress::data(inbox.split().freeze())),
                Decoder::Length(left) => {
                    let data = take(inbox, left);
                    if *left == 0 {
                        *self = Decoder::End;
                    }
                    return Ok(Progress::data(data));
                }
                Decoder::Chunked(state) => match state {
                    Chunked::Size => {
                        let Some(size) = chunk_size(inbox)? else { return Ok(Progress::More) };
                        *state = if size == 0 { Chunked::Trailers } else { Chunked::Data(size) };
                    }
                    Chunked::Data(left) => {
                        let data = take(inbox, left);
                        if *left == 0 {
                            *state = Chunked::DataEnd;
                        }
                        return Ok(Progress::data(data));
                    }
                    Chunked::DataEnd => {
                        if inbox.len() < 2 {
                            return Ok(Progress::More);
                        }
                        if !inbox.starts_with(b"\r\n") {
                            return Err("a chunk does not end where it says");
                        }
                        inbox.advance(2);
                        *state = Chunked::Size;
                    }
                    Chunked::Trailers => {
                        let Some(trailers) = trailers(inbox)? else { return Ok(Progress::More) };
                        *self = Decoder::End;
                        if !trailers.is_empty() {
                            return Ok(Progress::Frame(Frame::trailers(trailers)));
                        }
                    }
                },
            }
        }
    }
}

impl Progress {
    fn data(bytes: Bytes) -> Self {
        Progress::Frame(Frame::data(bytes))
    }
}

/// At most `left` bytes, which are counted off.
fn take(inbox: &mut BytesMut, left: &mut u64) -> Bytes {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(inbox.len());
    *left -= count as u64;
    inbox.split_to(count).freeze()
}

/// Reads the line before a chunk; none if it is not complete yet. Extensions mean nothing to us.
fn chunk_size(inbox: &mut BytesMut) -> Result<Option<u64>, &'static str> {
    let end = match memchr(b'\n', inbox) {
        Some(end) if end <= MAX_CHUNK_LINE => end,
        None if inbox.len() <= MAX_CHUNK_LINE => return Ok(None),
        _ => return Err("the line of a chunk is too long"),
    };
    let line = inbox.split_to(end + 1);
    let content = line.strip_suffix(b"\r\n").filter(|content| memchr(b'\r', content).is_none());
    let digits = content.ok_or("the line of a chunk does not end in CRLF")?;
    let digits = memchr(b';', digits).map_or(digits, |at| digits.split_at(at).0).trim_ascii_end();
    if digits.is_empty() || digits.len() > 16 {
        return Err("the size of a chunk is not one");
    }
    let size = digits.iter().try_fold(0_u64, |size, byte| {
        char::from(*byte).to_digit(16).map(|digit| size << 4 | u64::from(digit))
    });
    size.map(Some).ok_or("the size of a chunk is not one")
}

/// Reads the trailer section; none if it is not complete yet. What must not stand there is left out.
fn trailers(inbox: &mut BytesMut) -> Result<Option<HeaderMap>, &'static str> {
    if inbox.starts_with(b"\r\n") {
        inbox.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let end = match head_end(inbox, &mut 0) {
        Some(end) if end <= MAX_TRAILERS => end,
        None if inbox.len() <= MAX_TRAILERS => return Ok(None),
        _ => return Err("the trailers are too long"),
    };
    let mut fields = [EMPTY_HEADER; MAX_TRAILER_FIELDS];
    let bytes = inbox.split_to(end);
    let parsed = httparse::parse_headers(&bytes, &mut fields);
    let Ok(httparse::Status::Complete((end, fields))) = parsed else {
        return Err("the trailers can't be parsed");
    };
    // Both must mean the same end, or what follows would be read as something else.
    if end != bytes.len() {
        return Err("the trailers do not end where they should");
    }
    let allowed = fields.iter().filter(|field| !is_forbidden_trailer(field.name.as_bytes()));
    let read = allowed.map(|field| {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(field.value).ok()?))
    });
    let mut trailers = HeaderMap::new();
    for field in read {
        let (name, value) = field.ok_or("a trailer can't be read")?;
        trailers.append(name, value);
    }
    Ok(Some(trailers))
}
