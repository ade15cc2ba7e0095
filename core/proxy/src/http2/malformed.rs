//! Requests that HTTP/2 calls malformed (RFC 9113, 8.1.1). The library resets their streams and tells nobody. Here such a
//! reset is kept back, and the request is refused as any other is: by an exchange, with a reason, a log line and a record.
//!
//! The library does not say on which stream a request came. But it judges heads in the order in which they come, and in
//! the turn of the connection in which they do: each becomes a request, or its stream is reset. So who was reset and became
//! no request is known when the turn ends. A client that does not take what is written to it is reset as the library
//! wants it.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, response};

use super::walk::{END_HEADERS, END_STREAM, HEADERS, PROTOCOL_ERROR, RST_STREAM, frame};
use crate::body::{Incoming, ResponseBody};
use crate::client::Client;
use crate::exchange::{Dropped, serve};
use crate::http1::{MALFORMED, Refusal};

/// A frame that every client takes (RFC 9113, 6.5.2). Fields that make a head longer are left out.
const MAX_BLOCK: usize = 16_384;
const NO_ERROR: u32 = 0;
/// Where there is no body that could tell it.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The heads of one turn of a connection, and what is said of them beside the library.
#[derive(Default)]
pub(super) struct Heads {
    /// Those of which is not known yet what became.
    open: RefCell<Vec<Head>>,
    /// Refusals that are decided on; as many at most as the library bears resets.
    refusals: RefCell<Vec<Refusing>>,
    /// Whole frames that are to be written between those of the library.
    pub(super) frames: RefCell<BytesMut>,
}

/// An exchange that refuses: the frames that say so.
type Refusing = Pin<Box<dyn Future<Output = Vec<u8>>>>;

struct Head {
    stream: u32,
    /// Of those that have none nothing but the head can be wrong.
    has_body: bool,
    is_reset: bool,
}

impl Heads {
    /// A head has come, whole.
    pub(super) fn came(&self, stream: u32, has_body: bool) {
        self.open.borrow_mut().push(Head { stream, has_body, is_reset: false });
    }

    /// The next head has become a request. One whose stream was reset in the same turn may have, for its body; whether
    /// that is so.
    pub(super) fn became_request(&self) -> bool {
        let mut open = self.open.borrow_mut();
        let first = |is_it: fn(&Head) -> bool| open.iter().position(is_it);
        let Some(at) = first(|head| !head.is_reset).or_else(|| first(|head| head.has_body)) else {
            return false;
        };
        let Head { stream, is_reset, .. } = open.remove(at);
        if is_reset {
            self.frames.borrow_mut().extend_from_slice(&reset(stream, PROTOCOL_ERROR));
        }
        is_reset
    }

    /// The library answers by itself.
    pub(super) fn answered(&self, stream: u32) {
        self.open.borrow_mut().retain(|head| head.stream != stream);
    }

    pub(super) fn has_open(&self) -> bool {
        !self.open.borrow().is_empty()
    }

    pub(super) fn is_open(&self, stream: u32) -> bool {
        self.open.borrow().iter().any(|head| head.stream == stream)
    }

    /// The library resets this stream, and the client is not told yet.
    pub(super) fn keep_back(&self, stream: u32) {
        if let Some(head) = self.open.borrow_mut().iter_mut().find(|head| head.stream == stream) {
            head.is_reset = true;
        }
    }

    /// Ends a turn: refuses what was malformed. Whether there is something to be written now.
    pub(super) fn settle(&self, client: &Rc<Client>, cx: &mut Context<'_>) -> bool {
        let mut refusals = self.refusals.borrow_mut();
        for head in self.open.borrow_mut().drain(..).filter(|head| head.is_reset) {
            refusals.push(Box::pin(refuse(head.stream, client.clone())));
        }
        let before = refusals.len();
        refusals.retain_mut(|refusal| match refusal.as_mut().poll(cx) {
            Poll::Ready(frames) => {
                self.frames.borrow_mut().extend_from_slice(&frames);
                false
            }
            Poll::Pending => true,
        });
        refusals.len() < before
    }
}

/// What a client gets whose request is malformed.
async fn refuse(stream: u32, client: Rc<Client>) -> Vec<u8> {
    let Refusal { reason, detail, .. } = MALFORMED;
    tracing::debug!(peer = %client.connection.peer, reason, detail, "head refused");
    match serve(&client, Err(MALFORMED), Incoming::Empty).await {
        // Of the request more may be on its way (RFC 9113, 8.1).
        Ok(response) => [answer(stream, response), reset(stream, NO_ERROR)].concat(),
        Err(Dropped) => reset(stream, PROTOCOL_ERROR),
    }
}

/// A response's head as all of an answer: a body would take of the room that the library reckons with. What stands in it
/// changes no table of HPACK's, of which the library knows one side.
fn answer(stream: u32, response: Response<ResponseBody>) -> Vec<u8> {
    let (response::Parts { status, mut headers, .. }, body) = response.into_parts();
    headers.remove(CONTENT_TYPE);
    if let Ok(id) = HeaderValue::try_from(body.omit().to_string()) {
        headers.entry(X_REQUEST_ID).or_insert(id);
    }
    // `:status`, of which the static table has the name.
    let mut block = vec![0x08];
    push_literal(&mut block, status.as_str().as_bytes());
    for (name, value) in &headers {
        let before = block.len();
        block.push(0);
        push_literal(&mut block, name.as_str().as_bytes());
        push_literal(&mut block, value.as_bytes());
        if block.len() > MAX_BLOCK {
            block.truncate(before);
        }
    }
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block)
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// A string without Huffman coding (RFC 7541, 5.2).
pub(super) fn push_literal(block: &mut Vec<u8>, text: &[u8]) {
    match text.len().checked_sub(127) {
        None => block.push(text.len() as u8),
        Some(mut rest) => {
            block.push(127);
            while rest >= 128 {
                block.push(rest as u8 | 128);
                rest >>= 7;
            }
            block.push(rest as u8);
        }
    }
    block.extend_from_slice(text);
}
