//! HTTP/1 on the client side (RFC 9112): one connection, one request at a time, no task of its own.
//!
//! [`serve_connection`] is the loop: it reads a head, lets the exchange answer it, writes the answer, and does so again.
//! Its [`Wire`](wire::Wire), which is the socket with what was read and what is to be written, is shared with the body
//! of the request at hand, because that is polled from within the exchange: by a plugin that wants it whole, or by the
//! upload to the upstream, perhaps while the answer is being written. Nothing foreign is polled while the wire is
//! locked.
//!
//! Whatever is wrong with a head or a chunk line is a [`Refusal`]. A refused head is an exchange like any other, with
//! id, log and metrics, that begins with its fault; a refusal within a body is that body's fault. Nothing behind a
//! refusal is read, and the connection ends with the answer.

mod chunked;
mod connection;
mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod head;
mod outbox;
mod refusal;
mod response;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use self::chunked::{allowed_trailers, has_forbidden, is_forbidden_trailer};
pub(crate) use self::connection::serve_connection;
pub(crate) use self::framing::{Framing, write_field, write_number};
pub(crate) use self::head::{decimal, expect, has_option, is_like_framing, same_authority, split_authority};
#[cfg(test)]
pub(crate) use self::refusal::EXPECTATION;
pub(crate) use self::refusal::{
    FRAMING_NAME, HEADER_VALUE, HOST_INVALID, HOST_MISMATCH, HOST_MISSING, HOST_REPEATED, LENGTH_INVALID,
    LENGTH_REPEATED, MALFORMED, Refusal, TARGET, TRAILER_FORBIDDEN,
};
pub(crate) use self::wire::{Body, MIN_READ, poll_fill, poll_read_some, read_some};

/// What a client may send.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Longest head, with its final blank line.
    max_head_bytes: usize,
    /// Most header fields of a head, and of a trailer section.
    max_headers: usize,
    /// Longest request line, without its CRLF.
    max_request_line: usize,
}
