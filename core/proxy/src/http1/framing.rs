//! How the end of a body is told (RFC 9112), to clients and to endpoints alike.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body::SizeHint;
use portcullis_plugin::Reply;

/// How the body's end is told. It follows from the body alone, whatever the headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// No body, whatever a length says, and none expected.
    None,
    /// So many bytes are left.
    Length(u64),
    Chunked {
        begun: bool,
    },
    /// For clients that know no better.
    UntilClose,
}

impl Framing {
    /// That of a request's body.
    pub(crate) fn of_request(method: &Method, size: &SizeHint) -> Self {
        match size.exact() {
            // Where a body means something, its absence is said (RFC 9110, 8.6).
            Some(0) if !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => Framing::None,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked { begun: false },
        }
    }

    /// That of a response's body.
    pub(crate) fn of_response(
        is_head_request: bool,
        is_1_1: bool,
        status: StatusCode,
        size: &SizeHint,
    ) -> Self {
        match size.exact() {
            _ if is_head_request || !Reply::may_have_body(status, &Method::GET) => Framing::None,
            Some(length) => Framing::Length(length),
            None if is_1_1 => Framing::Chunked { begun: false },
            None => Framing::UntilClose,
        }
    }

    /// What stands before a piece of the body; none if the body is longer than was said.
    pub(crate) fn begin_chunk(&mut self, length: usize, text: &mut Vec<u8>) -> Option<()> {
        match self {
            Framing::None => return None,
            Framing::Length(left) => *left = left.checked_sub(length as u64)?,
            Framing::Chunked { begun } => {
                if std::mem::replace(begun, true) {
                    text.extend_from_slice(b"\r\n");
                }
                write_chunk_size(length, text);
            }
            Framing::UntilClose => {}
        }
        Some(())
    }

    /// What stands behind a piece: sent with it, so that no client waits for it until the next.
    pub(crate) fn end_chunk(&mut self, text: &mut Vec<u8>) {
        if let Framing::Chunked { begun } = self
            && std::mem::take(begun)
        {
            text.extend_from_slice(b"\r\n");
        }
    }

    /// What stands behind the last piece; none if the body is shorter than was said.
    pub(crate) fn end(&self, trailers: Option<&HeaderMap>, text: &mut Vec<u8>) -> Option<()> {
        match *self {
            Framing::Length(1..) => return None,
            Framing::Chunked { begun } => {
                text.extend_from_slice(if begun { b"\r\n0\r\n" } else { b"0\r\n" });
                for (name, value) in trailers.into_iter().flatten() {
                    write_field(name, value, text);
                }
                text.extend_from_slice(b"\r\n");
            }
            Framing::None | Framing::Length(0) | Framing::UntilClose => {}
        }
        Some(())
    }
}

/// Writes a field line.
pub(crate) fn write_field(name: &HeaderName, value: &HeaderValue, text: &mut Vec<u8>) {
    text.extend_from_slice(name.as_str().as_bytes());
    text.extend_from_slice(b": ");
    text.extend_from_slice(value.as_bytes());
    text.extend_from_slice(b"\r\n");
}

/// Writes the line before a chunk.
fn write_chunk_size(length: usize, text: &mut Vec<u8>) {
    write_digits::<16>(length as u64, text);
    text.extend_from_slice(b"\r\n");
}

/// Writes a decimal number.
pub(crate) fn write_number(number: u64, text: &mut Vec<u8>) {
    write_digits::<10>(number, text);
}

/// Without the formatting machinery, which costs more than the rest of a small head.
fn write_digits<const BASE: u64>(mut number: u64, text: &mut Vec<u8>) {
    let begin = text.len();
    loop {
        text.push(b"0123456789abcdef".get((number % BASE) as usize).copied().unwrap_or_default());
        number /= BASE;
        if number == 0 {
            break;
        }
    }
    if let Some(digits) = text.get_mut(begin..) {
        digits.reverse();
    }
}
