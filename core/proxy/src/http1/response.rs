//! How a response is written (RFC 9112).

use std::cell::RefCell;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{CONTENT_LENGTH, DATE};
use http::{Method, StatusCode, response};
use portcullis_plugin::Reply;

use super::framing::{Framing, write_field, write_number};

/// Room for what is not headers: status line, date, framing, the final line.
const LINES: usize = 160;
/// Room for one header; a guess that saves growing step by step.
const HEADER: usize = 48;

/// What the client sees of its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// Speaks HTTP/1.1, and not 1.0.
    pub(super) is_1_1: bool,
    /// The connection goes on after this response.
    pub(super) keeps: bool,
}

/// Writes a response's head. `head` has no hop-by-hop headers any more.
pub(super) fn write_head(head: &response::Parts, framing: Framing, manner: Manner, text: &mut Vec<u8>) {
    text.reserve(LINES + HEADER * head.headers.len());
    write_status(head.status, manner.is_1_1, text);
    let mut is_dated = false;
    for (name, value) in &head.headers {
        is_dated |= *name == DATE;
        if *name != CONTENT_LENGTH || keeps_length(framing, head.status) {
            write_field(name, value, text);
        }
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
    match manner {
        Manner { is_1_1: true, keeps: false } => text.extend_from_slice(b"connection: close\r\n"),
        Manner { is_1_1: false, keeps: true } => text.extend_from_slice(b"connection: keep-alive\r\n"),
        _ => {}
    }
    if !is_dated {
        write_date(text);
    }
    text.extend_from_slice(b"\r\n");
}

/// Whether the length in the headers is sent: that of a body which only a HEAD request kept from being sent.
fn keeps_length(framing: Framing, status: StatusCode) -> bool {
    framing == Framing::None && Reply::may_have_body(status, &Method::GET)
}

fn write_status(status: StatusCode, is_1_1: bool, text: &mut Vec<u8>) {
    text.extend_from_slice(if is_1_1 { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
    text.extend_from_slice(status.as_str().as_bytes());
    text.push(b' ');
    text.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    text.extend_from_slice(b"\r\n");
}

/// Writes the current date (RFC 9110, 6.6.1), which each thread formats once a second.
fn write_date(text: &mut Vec<u8>) {
    thread_local! {
        static LINE: RefCell<(u64, Vec<u8>)> = const { RefCell::new((0, Vec::new())) };
    }
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LINE.with_borrow_mut(|(written, line)| {
        if *written != second || line.is_empty() {
            line.clear();
            // Writing to memory does not fail.
            let _ = write!(line, "date: {}\r\n", httpdate::HttpDate::from(now));
            *written = second;
        }
        text.extend_from_slice(line);
    });
}
