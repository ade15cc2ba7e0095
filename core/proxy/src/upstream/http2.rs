//! HTTP/2 towards an endpoint: a connection for many requests, each on a stream of its own.
//!
//! The [connection](connection::Connection) is driven by a task of its own, a stream by whoever waits for
//! its response or its body, as an HTTP/1 connection is: with that the upload goes on too. A stream asks
//! for room only for what it has at hand, so that one whose client is slow takes no room from others.

mod connection;
mod tunnel;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::http1::{Broken, MAX_HEAD, MAX_HEADERS, RequestHead};
use crate::body::RequestBody;
use crate::http1::allowed_trailers;
use crate::tunnel::WEBSOCKET;

use self::connection::Place;
pub(super) use self::connection::{place, place_for_tunnel};
use self::tunnel::{Handshake, Tunnel};

/// What is asked room for at once, so that large bodies take turns.
const SLICE: usize = 64 * 1024;
/// Of a body that was sent, what is kept until there is an answer: an endpoint may say that it has not looked at it.
const KEPT: usize = 64 * 1024;
/// Pieces of a body up to this length leave together, so that a client can't make a frame of each of its bytes.
const SMALL: usize = 1024;
/// What is gathered of them before it is sent.
const GATHERED: usize = 16 * 1024;

/// A request and its response.
pub(super) struct Stream {
    place: Place,
    upload: Upload,
    download: Download,
    /// What else is to be spoken, if the endpoint agrees.
    handshake: Option<Handshake>,
    /// Bytes of interim responses (1xx) to the request.
    interim: usize,
    is_head_request: bool,
}

/// The request on its way out.
struct Upload {
    body: RequestBody,
    /// Of the body, and not sent yet.
    chunk: Bytes,
    /// None once all was sent, or no more can be.
    out: Option<SendStream<Bytes>>,
    /// The whole body, if it can be had twice.
    copy: Option<RequestBody>,
    /// What was sent of another; none if that was too much.
    sent: Option<Vec<u8>>,
    trailers: Option<HeaderMap>,
    /// Nothing more comes from the body.
    ended: bool,
}

enum Download {
    Head(ResponseFuture),
    Body {
        incoming: RecvStream,
        /// What is to come, if that was said.
        left: Option<u64>,
    },
    /// It is no HTTP any more.
    Tunnel(Tunnel),
    /// It is not asked for, or could not be.
    None(Option<Broken>),
}

impl Stream {
    /// A stream that is not opened yet.
    pub(super) fn new(place: Place) -> Self {
        let upload = Upload {
            body: RequestBody::Empty,
            chunk: Bytes::new(),
            out: None,
            copy: None,
            sent: None,
            trailers: None,
            ended: false,
        };
        let download = Download::None(None);
        Stream { place, upload, download, handshake: None, interim: 0, is_head_request: false }
    }

    /// Takes a request; what fails is told when the head of the response is asked for.
    pub(super) fn start(&mut self, head: &RequestHead<'_>, body: RequestBody) {
        self.is_head_request = head.method == Method::HEAD;
        let ends = body.is_end_stream() && head.upgrade.is_none();
        let sent = request(self.place.scheme(), head, &body)
            .and_then(|request| self.place.sender.send_request(request, ends).map_err(Broken::Http2));
        self.upload.copy = body.copy();
        self.upload.sent = self.upload.copy.is_none().then(Vec::new);
        self.upload.body = body;
        self.download = match sent {
            Ok((response, out)) => {
                match head.upgrade {
                    Some(_) => self.handshake = Handshake::new(head.headers, out),
                    None if ends => {}
                    None => {
                        self.place.uploads(out.stream_id().as_u32());
                        self.upload.out = Some(out);
                    }
                }
                Download::Head(response)
            }
            Err(broken) => Download::None(Some(broken)),
        };
    }

    /// Whether the connection had served before.
    pub(super) fn is_reused(&self) -> bool {
        self.place.is_reused
    }

    /// Goes on with the request and waits for the response's head.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Broken>> {
        if let Poll::Ready(Err(broken)) = self.upload.poll(cx) {
            return Poll::Ready(Err(broken));
        }
        let response = match &mut self.download {
            Download::Head(response) => response,
            Download::None(broken) => return Poll::Ready(Err(broken.take().unwrap_or(Broken::Closed))),
            Download::Body { .. } | Download::Tunnel(_) => return Poll::Ready(Err(Broken::Closed)),
        };
        while let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            let interim = interim.map_err(Broken::Http2)?;
            self.interim += size(interim.headers());
            if self.interim > MAX_HEAD {
                return Poll::Ready(Err(Broken::Malformed("too many interim responses")));
            }
        }
        let (mut head, incoming) = ready!(Pin::new(response).poll(cx)).map_err(Broken::Http2)?.into_parts();
        if head.headers.len() > MAX_HEADERS {
            return Poll::Ready(Err(Broken::Malformed("too many headers")));
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return Poll::Ready(Err(Broken::Malformed("it switches protocols, which HTTP/2 can't")));
        }
        if let Some(handshake) = self.handshake.take() {
            if head.status.is_success() {
                self.download = Download::Tunnel(handshake.agreed(&mut head, incoming));
                self.place.opens_tunnel();
                return Poll::Ready(Ok(Response::from_parts(head, ())));
            }
            handshake.refused();
        }
        let left = length(&mut head.headers, head.status).map_err(Broken::Malformed)?;
        let left = left.filter(|_| !self.is_head_request);
        self.download = Download::Body { incoming, left };
        (self.upload.copy, self.upload.sent) = (None, None);
        Poll::Ready(Ok(Response::from_parts(head, ())))
    }

    /// The next of the response's body; none at its end.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Poll::Ready(Err(broken)) = self.upload.poll(cx) {
            return Poll::Ready(Some(Err(broken)));
        }
        let Download::Body { incoming, left } = &mut self.download else { return Poll::Ready(None) };
        while let Some(data) = ready!(incoming.poll_data(cx)) {
            let data = match data {
                Err(error) if self.place.is_whole(&error) => return Poll::Ready(None),
                data => data.map_err(Broken::Http2)?,
            };
            // Whoever asks has room for it; what nobody asks for stays within the stream's window.
            incoming.flow_control().release_capacity(data.len()).map_err(Broken::Http2)?;
            *left = left.map(|left| left.saturating_sub(data.len() as u64));
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        let trailers = match ready!(incoming.poll_trailers(cx)) {
            Err(error) if self.place.is_whole(&error) => return Poll::Ready(None),
            trailers => trailers.map_err(Broken::Http2)?,
        };
        let Some(trailers) = trailers else { return Poll::Ready(None) };
        if trailers.len() > MAX_HEADERS {
            return Poll::Ready(Some(Err(Broken::Malformed("too many trailers"))));
        }
        let trailers = allowed_trailers(trailers);
        Poll::Ready((!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))))
    }

    /// Whether the response was read to its end.
    pub(super) fn is_end(&self) -> bool {
        matches!(&self.download, Download::Body { incoming, .. } if incoming.is_end_stream())
    }

    /// What is still to come of the response's body.
    pub(super) fn size_hint(&self) -> SizeHint {
        match &self.download {
            _ if self.is_end() => SizeHint::with_exact(0),
            Download::Body { left: Some(left), .. } => SizeHint::with_exact(*left),
            _ => SizeHint::default(),
        }
    }

    /// The request's body as it was given, if the endpoint has not looked at the request.
    pub(super) fn take_unsent(&mut self, broken: &Broken) -> Option<RequestBody> {
        let is_unseen = match broken {
            Broken::Http2(error) => is_refusal(error) || self.place.is_unwritten(),
            _ => false,
        };
        is_unseen.then(|| self.upload.take()).flatten()
    }

    /// From now on the endpoint is waited for.
    pub(super) fn wait(&mut self) {
        self.place.wait();
    }

    /// The response is waited for no longer, as it was since then.
    pub(super) fn give_up(&self, since: Instant) {
        if !self.is_end() {
            self.place.give_up(since);
        }
    }

    /// What it has become, if it is no HTTP any more.
    fn tunnel(&mut self) -> io::Result<Pin<&mut Tunnel>> {
        match &mut self.download {
            Download::Tunnel(tunnel) => Ok(Pin::new(tunnel)),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.tunnel()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.tunnel()?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tunnel()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tunnel()?.poll_shutdown(cx)
    }
}

impl Upload {
    /// Sends what is at hand and there is room for. An endpoint that takes no more may have said why, so
    /// that is no error here.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while self.out.is_some() {
            let starving = self.poll_chunk(cx)?.is_pending();
            ready!(self.poll_send(cx));
            if starving {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the body's next chunk, or small ones together; pending if the body has no more for now.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if !self.chunk.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut gathered = BytesMut::new();
        let mut polled = Poll::Ready(Ok(()));
        while !self.ended && self.chunk.len() <= SMALL && gathered.len() < GATHERED {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(chunk) if self.chunk.is_empty() => self.chunk = chunk,
                    Ok(chunk) => {
                        if gathered.is_empty() {
                            gathered.extend_from_slice(&self.chunk);
                        }
                        gathered.extend_from_slice(&chunk);
                    }
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.ended = true;
                    }
                },
                Poll::Ready(Some(Err(_))) => {
                    if let Some(mut out) = self.out.take() {
                        out.send_reset(Reason::CANCEL);
                    }
                    return Poll::Ready(Err(Broken::Upload));
                }
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => {
                    polled = Poll::Pending;
                    break;
                }
            }
        }
        if !gathered.is_empty() {
            self.chunk = gathered.freeze();
        }
        polled
    }

    /// Sends the chunk, and the end behind the last one.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(out) = self.out.as_mut().filter(|_| !self.chunk.is_empty()) {
            out.reserve_capacity(self.chunk.len().min(SLICE));
            let room = match out.capacity() {
                0 => match out.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(room))) => room,
                    Poll::Ready(Some(Err(_)) | None) => {
                        self.out = None;
                        break;
                    }
                    Poll::Pending => {
                        self.body.waits_for_room();
                        return Poll::Pending;
                    }
                },
                room => room,
            };
            let slice = self.chunk.split_to(room.min(self.chunk.len()));
            let is_last = self.chunk.is_empty() && self.trailers.is_none();
            let ends = is_last && (self.ended || self.body.is_end_stream());
            keep(&mut self.sent, &slice);
            if out.send_data(slice, ends).is_err() || ends {
                self.out = None;
            }
        }
        if let Some(mut out) = self.out.take_if(|_| self.ended) {
            // Whoever takes no more of it may have said why.
            let _ = match &self.trailers {
                Some(trailers) => out.send_trailers(trailers.clone()),
                None => out.send_data(Bytes::new(), true),
            };
        }
        Poll::Ready(())
    }

    fn take(&mut self) -> Option<RequestBody> {
        if self.copy.is_some() {
            return self.copy.take();
        }
        let mut sent = self.sent.take()?;
        sent.extend_from_slice(&std::mem::take(&mut self.chunk));
        let body = std::mem::replace(&mut self.body, RequestBody::Empty);
        Some(body.put_back(sent.into(), self.trailers.take()))
    }
}

/// Keeps what is sent, unless it is too much.
fn keep(sent: &mut Option<Vec<u8>>, slice: &[u8]) {
    let Some(kept) = sent else { return };
    if kept.len() + slice.len() > KEPT {
        *sent = None;
    } else {
        kept.extend_from_slice(slice);
    }
}

/// Whether the endpoint says that it has done nothing about the request (RFC 9113, 8.7).
fn is_refusal(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || is_refused)
}

/// A request's head: what concerns only the client's connection, or contradicts the framing, stays
/// behind, whoever set it. A handshake for another protocol becomes an extended `CONNECT` (RFC 8441, 5).
fn request(scheme: Scheme, head: &RequestHead<'_>, body: &RequestBody) -> Result<Request<()>, Broken> {
    let mut headers = HeaderMap::with_capacity(head.headers.len() + head.told.len());
    let mut authority = None;
    for (name, value) in head.fields() {
        if *name == HOST {
            authority = Authority::try_from(value.as_bytes()).ok();
        } else {
            headers.append(name.clone(), value.clone());
        }
    }
    let means_body = matches!(*head.method, Method::POST | Method::PUT | Method::PATCH);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || means_body) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let mut method = head.method.clone();
    if head.upgrade.is_some() {
        method = Method::CONNECT;
        headers.remove(SEC_WEBSOCKET_KEY);
    }
    let authority = authority.ok_or(Broken::Host)?;
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(head.target.clone());
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri.build().map_err(|_| Broken::Host)?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    if head.upgrade.is_some() {
        request.extensions_mut().insert(Protocol::from_static(WEBSOCKET));
    }
    Ok(request)
}

/// The length of a body as its headers say it, which are left with one at most. What differs, or is not a
/// number, has been refused.
fn length(headers: &mut HeaderMap, status: StatusCode) -> Result<Option<u64>, &'static str> {
    let Some(value) = headers.remove(CONTENT_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.parse().ok());
    let length: u64 = length.ok_or("its Content-Length is not a number")?;
    if status != StatusCode::NO_CONTENT {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(Some(length))
}

fn size(headers: &HeaderMap) -> usize {
    // What HTTP/2 counts beside name and value (RFC 9113, 6.5.2).
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum::<usize>() + 32
}

#[cfg(test)]
mod tests;
