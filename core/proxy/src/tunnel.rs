//! Connections that stop speaking HTTP: what clients ask for, and the bytes both ways once an upstream has agreed.
//!
//! Over HTTP/1 a client asks with `Upgrade` (RFC 9110, 7.8), over HTTP/2 with an extended `CONNECT` (RFC 8441), which
//! becomes the same request here: routes and plugins see one handshake, whatever upstreams get. Every hook up to
//! the upstream's 101 runs as for any other request. What follows is no HTTP, and no plugin sees it.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use aws_lc_rs::{digest, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BytesMut};
use http::header::{CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{Method, StatusCode};
use hyper::ext::Protocol;
use portcullis_plugin::End;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use crate::client::Client;
use crate::live::Live;
use crate::timer::LazyTimer;
use crate::upstream::Switched;

/// The protocol that means nothing without its upgrade.
pub(crate) const WEBSOCKET: &str = "websocket";
/// What a WebSocket server adds to the key before it digests it (RFC 6455, 1.3).
const WEBSOCKET_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// What is read at once.
const PIECE: usize = 16 * 1024;

/// What a client wants to speak instead of HTTP.
#[derive(Debug)]
pub(crate) struct Upgrade {
    /// The name of the protocol, in lower case.
    pub(crate) protocol: HeaderValue,
    /// Over HTTP/2: what the upstream answers to the key that was made for it.
    accept: Option<HeaderValue>,
}

impl Upgrade {
    /// What the headers of an HTTP/1 request ask for whose `Connection` names `Upgrade`. A client that offers a choice
    /// is taken for one that asks for nothing.
    pub(crate) fn over_http1(headers: &HeaderMap) -> Option<Box<Self>> {
        let mut values = headers.get_all(UPGRADE).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let is_one =
            !value.is_empty() && !value.as_bytes().iter().any(|byte| matches!(byte, b',' | b' ' | b'\t'));
        let protocol = HeaderValue::from_bytes(&value.as_bytes().to_ascii_lowercase()).ok()?;
        is_one.then(|| Box::new(Upgrade { protocol, accept: None }))
    }

    /// What an HTTP/2 request asks for, which becomes the HTTP/1 handshake for the same. Only of WebSockets is known how.
    pub(crate) fn over_http2(head: &mut Parts) -> Option<Box<Self>> {
        if head.method != Method::CONNECT {
            return None;
        }
        let protocol = head.extensions.get::<Protocol>()?.as_str();
        if !protocol.eq_ignore_ascii_case(WEBSOCKET) {
            return None;
        }
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).ok()?;
        let key = HeaderValue::try_from(STANDARD.encode(nonce)).ok()?;
        let accept = Some(accept_of(&key)?);
        head.method = Method::GET;
        head.headers.insert(SEC_WEBSOCKET_KEY, key);
        Some(Box::new(Upgrade { protocol: HeaderValue::from_static(WEBSOCKET), accept }))
    }

    /// Whether the client asked over HTTP/2, where any 2xx means that it may go on.
    pub(crate) fn is_over_http2(&self) -> bool {
        self.accept.is_some()
    }

    /// Whether a request for it is of no use as an ordinary one.
    pub(crate) fn is_needed(&self) -> bool {
        self.protocol == WEBSOCKET
    }

    /// Whether the upstream's agreement is one. Over HTTP/1 the client has made the key, and judges the answer to it.
    pub(crate) fn is_met(&self, agreed: &HeaderMap) -> bool {
        self.accept.is_none() || agreed.get(SEC_WEBSOCKET_ACCEPT) == self.accept.as_ref()
    }

    /// Tells the client of the agreement: returns the status.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) -> StatusCode {
        if self.is_over_http2() {
            headers.remove(SEC_WEBSOCKET_ACCEPT);
            return StatusCode::OK;
        }
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
        StatusCode::SWITCHING_PROTOCOLS
    }
}

/// RFC 6455, 4.2.2.
pub(crate) fn accept_of(key: &HeaderValue) -> Option<HeaderValue> {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(WEBSOCKET_SUFFIX);
    HeaderValue::try_from(STANDARD.encode(sha1.finish())).ok()
}

/// An open tunnel. Its end, or its drop, is the end of the exchange.
pub(crate) struct Tunnel {
    live: Box<Live>,
    upstream: Switched,
    up: Way,
    down: Way,
    /// Runs while nothing passes.
    clock: LazyTimer,
    /// The client has not taken all that it was given.
    is_unread: bool,
}

impl Tunnel {
    pub(crate) fn new(live: Box<Live>, upstream: Switched) -> Self {
        live.client().worker.metrics.tunnels_open.increment();
        let mut clock = LazyTimer::new();
        clock.start(upstream.patience());
        Tunnel { live, upstream, up: Way::default(), down: Way::default(), clock, is_unread: false }
    }

    /// The client's connection, and which of its streams this is.
    pub(crate) fn stream(&self) -> (Rc<Client>, u64) {
        self.live.stream()
    }

    /// Passes on what there is, until both sides have ended, one has failed, or nothing has passed for too long.
    pub(crate) fn poll<C>(&mut self, client: &mut C, cx: &mut Context<'_>) -> Poll<End>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let before = (self.up.passed, self.down.passed);
        let up = self.up.poll(client, self.upstream.io(), cx);
        let down = self.down.poll(self.upstream.io(), client, cx);
        self.account(before);
        let end = match (up, down) {
            (Poll::Ready(Err(Broken::From)), _) | (_, Poll::Ready(Err(Broken::To))) => End::ClientGone,
            (Poll::Ready(Err(Broken::To)), _) | (_, Poll::Ready(Err(Broken::From))) => End::UpstreamFailed,
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => End::Complete,
            _ => {
                ready!(self.clock.poll_expired(cx));
                self.live.decided_by_core("core.tunnel", Some("tunnel.idle"));
                End::Refused
            }
        };
        self.live.end(end);
        Poll::Ready(end)
    }

    /// Counts what has passed since.
    fn account(&mut self, before: (u64, u64)) {
        if before != (self.up.passed, self.down.passed) {
            self.live.request_bytes = self.up.passed;
            self.live.sent(self.down.passed - before.1);
            self.clock.start(self.upstream.patience());
        }
        let is_unread = !self.down.held.is_empty();
        let was_unread = std::mem::replace(&mut self.is_unread, is_unread);
        // A client that takes what comes, but not as fast, is not one that takes nothing.
        if is_unread != was_unread || is_unread && before.1 != self.down.passed {
            self.live.waits_for_client(is_unread);
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.live.client().worker.metrics.tunnels_open.decrement();
    }
}

/// One way through a tunnel.
#[derive(Default)]
struct Way {
    /// Read, and not written yet.
    held: BytesMut,
    /// Nothing more comes.
    has_ended: bool,
    /// That has been told to the other side.
    is_done: bool,
    /// Bytes written.
    passed: u64,
}

/// Which side of a way failed.
enum Broken {
    From,
    To,
}

impl Way {
    /// Passes on what comes, and in the end the end. Nothing is read before all that was read is written.
    fn poll<R, W>(&mut self, from: &mut R, to: &mut W, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while !self.is_done {
            while !self.held.is_empty() {
                match ready!(Pin::new(&mut *to).poll_write(cx, &self.held)) {
                    Ok(0) | Err(_) => return Poll::Ready(Err(Broken::To)),
                    Ok(written) => {
                        self.held.advance(written);
                        self.passed += written as u64;
                    }
                }
            }
            if self.has_ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Broken::To)?;
                self.is_done = true;
                break;
            }
            self.held.reserve(PIECE);
            match pin!(from.read_buf(&mut self.held)).poll(cx) {
                Poll::Ready(Ok(read)) => self.has_ended = read == 0,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::From)),
                Poll::Pending => {
                    // One that is silent holds no buffer.
                    self.held = BytesMut::new();
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Broken::To)?;
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    fn asked(values: &[&'static str]) -> Option<HeaderValue> {
        let values = values.iter().map(|value| (UPGRADE, HeaderValue::from_static(value)));
        Upgrade::over_http1(&values.collect()).map(|upgrade| upgrade.protocol)
    }

    #[test]
    fn one_protocol_is_asked_for_or_none() {
        assert_eq!(asked(&["WebSocket"]).unwrap(), "websocket");
        assert_eq!(asked(&["proto/2"]).unwrap(), "proto/2");
        for wrong in [&[][..], &[""], &["websocket, h2c"], &["websocket", "websocket"], &["web socket"]] {
            assert_eq!(asked(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_handshake_over_http2_becomes_the_one_over_http1() {
        let request = |protocol| {
            let request = http::Request::connect("http://a/chat").extension(Protocol::from_static(protocol));
            request.body(()).unwrap().into_parts().0
        };
        let mut head = request("websocket");
        let upgrade = Upgrade::over_http2(&mut head).unwrap();
        assert_eq!((&head.method, upgrade.is_over_http2()), (&Method::GET, true));
        let mut agreed = HeaderMap::new();
        assert!(!upgrade.is_met(&agreed));
        agreed.insert(SEC_WEBSOCKET_ACCEPT, accept_of(&head.headers[SEC_WEBSOCKET_KEY]).unwrap());
        assert!(upgrade.is_met(&agreed));
        assert_eq!((upgrade.tell(&mut agreed), agreed.len()), (StatusCode::OK, 0));
        let mut other = request("connect-udp");
        assert!(Upgrade::over_http2(&mut other).is_none() && other.method == Method::CONNECT);
    }

    #[test]
    fn the_answer_to_a_key_is_the_one_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_of(&key).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn no_more_is_read_than_can_be_written_and_silence_holds_no_buffer() {
        let ((mut sender, mut from), (mut to, mut receiver)) = (duplex(8 * PIECE), duplex(10));
        sender.write_all(&[7; 4 * PIECE]).await.unwrap();
        let mut way = Way::default();
        let first = poll_fn(|cx| Poll::Ready(way.poll(&mut from, &mut to, cx).is_pending())).await;
        assert!(
            first && way.passed == 10 && way.held.len() == PIECE - 10,
            "{} {}",
            way.passed,
            way.held.len()
        );
        let mut received = vec![0; 4 * PIECE];
        let reading = async { receiver.read_exact(&mut received).await.unwrap() };
        let passing = poll_fn(|cx| {
            let pending = way.poll(&mut from, &mut to, cx).is_pending();
            if pending && way.passed == 4 * PIECE as u64 { Poll::Ready(()) } else { Poll::Pending }
        });
        tokio::join!(reading, passing);
        assert_eq!((way.held.capacity(), received), (0, vec![7; 4 * PIECE]));
        drop(sender);
        assert!(poll_fn(|cx| way.poll(&mut from, &mut to, cx)).await.is_ok());
        assert_eq!(receiver.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
