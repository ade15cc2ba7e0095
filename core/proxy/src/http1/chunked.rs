//! Reads a chunked body (RFC 9112 section 7.1): its lines byte by byte, its data as it was read.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::head::{field_line, is_like_framing};
use super::refusal::*;
use super::{Limits, Refusal};
use crate::forwarded::is_claim;

/// One chunk's extensions. Nobody uses them; what is longer is an attack on parsers.
const MAX_EXTENSION: usize = 256;

/// All extensions of one body.
const MAX_EXTENSIONS: usize = 8 * 1024;

/// The whole trailer section.
const MAX_TRAILERS: usize = 8 * 1024;

/// A chunked body that is arriving.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    /// Bytes of extensions so far.
    extensions: usize,
    /// Trailer bytes so far.
    trailers: usize,
    trailer_fields: usize,
    /// The trailer line that is arriving; bounded by `MAX_TRAILERS`.
    line: Vec<u8>,
    fields: HeaderMap,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size { digits: u8, size: u64 },
    Extension { size: u64, len: usize },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer,
}

/// What came of looking at what was read.
#[derive(Debug)]
pub(super) enum Progress {
    Data(Bytes),
    /// More has to be read first.
    More,
    /// The end, with its trailers.
    End(HeaderMap),
}

impl Chunked {
    pub(super) fn new() -> Self {
        Chunked {
            state: State::START,
            extensions: 0,
            trailers: 0,
            trailer_fields: 0,
            line: Vec::new(),
            fields: HeaderMap::new(),
        }
    }

    /// Takes the next of the body from what was read.
    pub(super) fn advance(&mut self, inbox: &mut BytesMut, limits: &Limits) -> Result<Progress, Refusal> {
        while !inbox.is_empty() {
            if let State::Data { left } = &mut self.state {
                let data = take(inbox, left);
                if *left == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Progress::Data(data));
            }
            if self.lines(inbox, limits)? {
                return Ok(Progress::End(std::mem::take(&mut self.fields)));
            }
        }
        Ok(Progress::More)
    }

    /// Takes what is not chunk data; true if the body is complete.
    fn lines(&mut self, inbox: &mut BytesMut, limits: &Limits) -> Result<bool, Refusal> {
        let (mut taken, mut is_complete) = (0, false);
        for byte in inbox.iter() {
            if is_complete || matches!(self.state, State::Data { .. }) {
                break;
            }
            is_complete = self.line_byte(*byte, limits)?;
            taken += 1;
        }
        inbox.advance(taken);
        Ok(is_complete)
    }

    /// Judges one byte that is not chunk data; true if it was the last one of the body.
    fn line_byte(&mut self, byte: u8, limits: &Limits) -> Result<bool, Refusal> {
        self.state = match self.state {
            State::Size { digits, size } => size_byte(byte, digits, size)?,
            State::Extension { size, len } => self.extension_byte(byte, size, len)?,
            State::SizeLf { .. } if byte != b'\n' => return Err(BARE_CR),
            State::SizeLf { size: 0 } => State::Trailer,
            State::SizeLf { size } => State::Data { left: size },
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => State::START,
            State::DataCr | State::DataLf | State::Data { .. } => return Err(CHUNK_END),
            State::Trailer => return self.trailer_byte(byte, limits),
        };
        Ok(false)
    }

    fn extension_byte(&mut self, byte: u8, size: u64, len: usize) -> Result<State, Refusal> {
        match byte {
            b'\r' => return Ok(State::SizeLf { size }),
            b'\n' => return Err(BARE_LF),
            b'\t' | b' '..=b'~' => {}
            _ => return Err(CHUNK_EXTENSION),
        }
        self.extensions += 1;
        if len >= MAX_EXTENSION || self.extensions > MAX_EXTENSIONS {
            return Err(CHUNK_EXTENSION);
        }
        Ok(State::Extension { size, len: len + 1 })
    }

    fn trailer_byte(&mut self, byte: u8, limits: &Limits) -> Result<bool, Refusal> {
        self.trailers += 1;
        if self.trailers > MAX_TRAILERS {
            return Err(TRAILER_TOO_LARGE);
        }
        if byte != b'\n' {
            // Said at once: other readers end the body at such a CR.
            if self.line.last() == Some(&b'\r') {
                return Err(BARE_CR);
            }
            self.line.push(byte);
            return Ok(false);
        }
        let line = self.line.strip_suffix(b"\r").ok_or(BARE_LF)?;
        if line.is_empty() {
            return Ok(true);
        }
        self.trailer_fields += 1;
        if self.trailer_fields > limits.max_headers {
            return Err(TRAILER_TOO_LARGE);
        }
        let (name, value) = field_line(line)?;
        let (name, value) = (line.get(..name).unwrap_or_default(), line.get(value).unwrap_or_default());
        if is_forbidden_trailer(name) {
            return Err(TRAILER_FORBIDDEN);
        }
        let name = HeaderName::from_bytes(name).map_err(|_| HEADER_NAME)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| HEADER_VALUE)?;
        self.fields.append(name, value);
        self.line.clear();
        Ok(false)
    }
}

/// At most `left` bytes, which are counted off.
pub(super) fn take(inbox: &mut BytesMut, left: &mut u64) -> Bytes {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(inbox.len());
    *left -= count as u64;
    inbox.split_to(count).freeze()
}

/// Whether a field of this name must not stand in a trailer section.
pub(crate) fn is_forbidden_trailer(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    let is_claim = str::from_utf8(&name).is_ok_and(is_claim);
    is_claim
        || is_like_framing(&name)
        || FORBIDDEN_TRAILERS.iter().any(|forbidden| name == forbidden.as_bytes())
}

/// Whether any of these must not stand in trailers.
pub(crate) fn has_forbidden(trailers: &HeaderMap) -> bool {
    trailers.keys().any(|name| is_forbidden_trailer(name.as_str().as_bytes()))
}

/// Trailers without what must not stand there.
pub(crate) fn allowed_trailers(mut trailers: HeaderMap) -> HeaderMap {
    let is_forbidden = |name: &&HeaderName| is_forbidden_trailer(name.as_str().as_bytes());
    let forbidden: Vec<_> = trailers.keys().filter(is_forbidden).cloned().collect();
    for name in forbidden {
        trailers.remove(name);
    }
    trailers
}

impl State {
    const START: State = State::Size { digits: 0, size: 0 };
}

fn size_byte(byte: u8, digits: u8, size: u64) -> Result<State, Refusal> {
    match (byte, char::from(byte).to_digit(16)) {
        // Sixteen digits fill a u64 exactly.
        (_, Some(digit)) if digits < 16 => {
            Ok(State::Size { digits: digits + 1, size: size << 4 | u64::from(digit) })
        }
        (b';', _) if digits > 0 => Ok(State::Extension { size, len: 0 }),
        (b'\r', _) if digits > 0 => Ok(State::SizeLf { size }),
        (b'\n', _) if digits > 0 => Err(BARE_LF),
        _ => Err(CHUNK_SIZE),
    }
}

/// Fields that frame, route, authenticate, modify or describe the message, which RFC 9110 section 6.5.1 keeps out of
/// trailers.
const FORBIDDEN_TRAILERS: &[&str] = &[
    "age",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "expires",
    "host",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "retry-after",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "warning",
    "www-authenticate",
];
