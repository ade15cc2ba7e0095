//! Judges the lines of a chunked body (RFC 9112 section 7.1) byte by byte; chunk data is only counted.

use super::head::field_line;
use super::refusal::*;
use super::{Limits, Refusal};

/// One chunk's extensions. Nobody uses them; what is longer is an attack on parsers.
const MAX_EXTENSION: usize = 256;

/// All extensions of one body, below the 16 KiB at which hyper would end the body with an error of its own.
const MAX_EXTENSIONS: usize = 8 * 1024;

/// The whole trailer section, below hyper's own 16 KiB for the same reason.
const MAX_TRAILERS: usize = 8 * 1024;

/// A chunked body under judgement. Bytes may be passed on as soon as they are judged: a reader that has seen only a
/// good part of a bad line has seen nothing it could act on.
#[derive(Debug)]
pub(super) struct ChunkedJudge {
    state: State,
    /// Bytes of extensions so far.
    extensions: usize,
    /// Trailer bytes so far.
    trailers: usize,
    trailer_fields: usize,
    /// The trailer line that is arriving; bounded by `MAX_TRAILERS`.
    line: Vec<u8>,
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

/// How far a judgement came.
pub(super) struct Progress {
    /// Bytes judged good.
    pub(super) passed: usize,
    /// Whether the body is complete, or why it is refused at the byte behind those.
    pub(super) end: Result<bool, Refusal>,
}

impl ChunkedJudge {
    pub(super) fn new() -> ChunkedJudge {
        ChunkedJudge { state: State::START, extensions: 0, trailers: 0, trailer_fields: 0, line: Vec::new() }
    }

    pub(super) fn advance(&mut self, bytes: &[u8], limits: &Limits) -> Progress {
        let mut passed = 0;
        while let Some((&byte, rest)) = bytes.get(passed..).and_then(<[u8]>::split_first) {
            if let State::Data { left } = self.state {
                let taken = left.min(rest.len() as u64 + 1);
                passed += taken as usize;
                self.state = if taken == left { State::DataCr } else { State::Data { left: left - taken } };
                continue;
            }
            match self.line_byte(byte, limits) {
                Ok(false) => passed += 1,
                Ok(true) => return Progress { passed: passed + 1, end: Ok(true) },
                Err(refusal) => return Progress { passed, end: Err(refusal) },
            }
        }
        Progress { passed, end: Ok(false) }
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
            // Said at once and not at the end of the line, because hyper ends the body at such a CR.
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
        let (name, _) = field_line(line)?;
        if is_forbidden_trailer(name) {
            return Err(TRAILER_FORBIDDEN);
        }
        self.line.clear();
        Ok(false)
    }
}

/// Whether a field of this name must not stand in a trailer section.
pub(crate) fn is_forbidden_trailer(name: &[u8]) -> bool {
    const FORWARDED: &[u8] = b"x-forwarded-";
    FORBIDDEN_TRAILERS.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden.as_bytes()))
        || name.get(..FORWARDED.len()).is_some_and(|start| start.eq_ignore_ascii_case(FORWARDED))
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

/// Fields that frame, route, authenticate or describe the message, which RFC 9110 section 6.5.1 keeps out of trailers.
const FORBIDDEN_TRAILERS: &[&str] = &[
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "max-forwards",
    "origin",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-real-ip",
];
