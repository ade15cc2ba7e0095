//! How a request is written (RFC 9112).

use http::Method;
use http::header::{CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::uri::PathAndQuery;

use crate::hops::is_hop_by_hop;
use crate::http1::{Framing, write_field, write_number};
use crate::proxy_protocol::Addresses;

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
    /// What to speak from here on.
    pub(crate) upgrade: Option<&'a HeaderValue>,
    /// Whose request it is, for an endpoint that is told so at the beginning of a connection.
    pub(crate) client: Option<&'a Addresses>,
}

impl<'a> RequestHead<'a> {
    /// The headers to send: what concerns only the client's connection, or contradicts the framing, stays
    /// behind, whoever set it.
    pub(in crate::upstream) fn fields(self) -> impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)> {
        let is_told = move |name| self.told.iter().any(|(told, _)| told == name);
        let passed =
            self.headers.iter().filter(move |(name, value)| !is_kept_back(name, value) && !is_told(*name));
        passed.chain(self.told.iter().map(|(name, value)| (name, value)))
    }
}

/// Writes a request's head.
pub(super) fn write_head(head: &RequestHead<'_>, framing: Framing, text: &mut Vec<u8>) {
    text.reserve(LINES + head.target.as_str().len() + HEADER * (head.headers.len() + head.told.len()));
    text.extend_from_slice(head.method.as_str().as_bytes());
    text.push(b' ');
    text.extend_from_slice(head.target.as_str().as_bytes());
    text.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in head.fields() {
        write_field(name, value, text);
    }
    if let Some(protocol) = head.upgrade {
        text.extend_from_slice(b"connection: upgrade\r\n");
        write_field(&UPGRADE, protocol, text);
    }
    match framing {
        Framing::None | Framing::UntilClose => {}
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
