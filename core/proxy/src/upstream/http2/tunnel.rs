//! A stream that is no HTTP any more, because the endpoint has agreed to an extended `CONNECT` (RFC 8441). For the
//! rest of the gateway that is an HTTP/1 handshake; here is the one place that knows better.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;
use http::header::{
    CONTENT_LENGTH, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::response::Parts;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::SLICE;
use crate::tunnel::{WEBSOCKET, accept_of};
use crate::upstream::RequestHead;

/// Whether a handshake can be made so: only of WebSockets is known how, and only one that sent a key can be answered.
pub(super) fn is_handshake(head: &RequestHead<'_>) -> bool {
    head.upgrade.is_some_and(|protocol| protocol == WEBSOCKET) && head.headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// A handshake that the endpoint has not answered yet.
pub(super) struct Handshake {
    /// The answer to the key, which the endpoint is not told.
    accept: HeaderValue,
    out: SendStream<Bytes>,
}

impl Handshake {
    pub(super) fn new(headers: &HeaderMap, out: SendStream<Bytes>) -> Option<Self> {
        Some(Handshake { accept: accept_of(headers.get(SEC_WEBSOCKET_KEY)?)?, out })
    }

    /// The endpoint has agreed: the head becomes that of HTTP/1 for the same.
    pub(super) fn agreed(self, head: &mut Parts, incoming: RecvStream) -> Tunnel {
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.headers.remove(CONTENT_LENGTH);
        head.headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
        head.headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        Tunnel { out: self.out, incoming, read: Bytes::new() }
    }

    /// It has not: there is nothing to be sent to it.
    pub(super) fn refused(mut self) {
        // It may have ended the stream already.
        let _ = self.out.send_data(Bytes::new(), true);
    }
}

/// Both ways of an open tunnel.
pub(super) struct Tunnel {
    out: SendStream<Bytes>,
    incoming: RecvStream,
    /// Received, and not read yet.
    read: Bytes,
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.read.is_empty() {
            match ready!(this.incoming.poll_data(cx)) {
                Some(Ok(data)) => this.read = data,
                Some(Err(error)) if error.reason() != Some(Reason::NO_ERROR) => {
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                Some(Err(_)) | None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.read.len().min(buf.remaining());
        buf.put_slice(&this.read.split_to(length));
        Poll::Ready(this.incoming.flow_control().release_capacity(length).map_err(io::Error::other))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let out = &mut self.out;
        out.reserve_capacity(buf.len().min(SLICE));
        let room = match out.capacity() {
            0 => match ready!(out.poll_capacity(cx)) {
                Some(room) => room.map_err(io::Error::other)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
            room => room,
        };
        let (slice, _) = buf.split_at(room.min(buf.len()));
        out.send_data(Bytes::copy_from_slice(slice), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(slice.len()))
    }

    /// The connection's task writes what it has.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.out.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
