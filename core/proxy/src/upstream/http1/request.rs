//! How a request is written (RFC 9112).

use http::Method;
use http::header::{CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http_body::SizeHint;

use crate::hops::is_hop_by_hop;
use crate::http1::{write_chunk_size, write_field, write_number};

/// Room for what is not headers: request line, framing, the final line.
const LINES: usize = 160;
/// Room for one header; a guess that saves growing step by step.
const HEADER: usize = 48;

/// A request's head as an attempt sends it.
#[derive(Clone, Copy)]
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'a Method,
    pub(crate) target: &'a PathAndQuery,
    pub(crate) headers: &'a HeaderMap,
    /// What the gateway says itself, in place of headers of the same name.
    pub(crate) told: &'a [(HeaderName, HeaderValue)],
}

/// How the body's end is told. It follows from the body alone, whatever the headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body, and none expected.
    Empty,
    /// So many bytes are left.
    Length(u64),
    Chunked {
        begun: bool,
    },
}

impl Framing {
    pub(super) fn of(method: &Method, size: &SizeHint) -> Self {
        match size.exact() {
            // Where a body means something, its absence is said (RFC 9110, 8.6).
            Some(0) if !matches!(*method, Method::POST | Method::PUT | Method::PATCH) => Framing::Empty,
            Some(length) => Framing::Length(length),
            None => Framing::Chunked { begun: false },
        }
    }

    /// What stands before a chunk of the body; none if the body is longer than was said.
    pub(super) fn begin_chunk(&mut self, length: usize, text: &mut Vec<u8>) -> Option<()> {
        match self {
            Framing::Empty => return None,
            Framing::Length(left) => *left = left.checked_sub(length as u64)?,
            Framing::Chunked { begun } => {
                if std::mem::replace(begun, true) {
                    text.extend_from_slice(b"\r\n");
                }
                write_chunk_size(length, text);
            }
        }
        Some(())
    }

    /// What stands behind the last chunk.
    pub(super) fn end(&self, trailers: Option<&HeaderMap>, text: &mut Vec<u8>) {
        let Framing::Chunked { begun } = *self else { return };
        text.extend_from_slice(if begun { b"\r\n0\r\n" } else { b"0\r\n" });
        for (name, value) in trailers.into_iter().flatten() {
            write_field(name, value, text);
        }
        text.extend_from_slice(b"\r\n");
    }
}

/// Writes a request's head: what concerns only the client's connection, or contradicts the framing,
/// stays behind, whoever set it.
pub(super) fn write_head(head: &RequestHead<'_>, framing: Framing, text: &mut Vec<u8>) {
    text.reserve(LINES + head.target.as_str().len() + HEADER * (head.headers.len() + head.told.len()));
    text.extend_from_slice(head.method.as_str().as_bytes());
    text.push(b' ');
    text.extend_from_slice(head.target.as_str().as_bytes());
    text.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in head.headers {
        if !is_kept_back(name, value) && !head.told.iter().any(|(told, _)| told == name) {
            write_field(name, value, text);
        }
    }
    for (name, value) in head.told {
        write_field(name, value, text);
    }
    match framing {
        Framing::Empty => {}
        Framing::Length(length) => {
            text.extend_from_slice(b"content-length: ");
            write_number(length, text);
            text.extend_from_slice(b"\r\n");
        }
        Framing::Chunked { .. } => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    text.extend_from_slice(b"\r\n");
}

fn is_kept_back(name: &HeaderName, value: &HeaderValue) -> bool {
    // The client has been told to go on, if it expected that.
    *name == CONTENT_LENGTH || *name == EXPECT || is_hop_by_hop(name, value)
}
