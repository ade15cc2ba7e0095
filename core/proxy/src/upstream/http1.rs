//! HTTP/1.1 towards an endpoint: one connection, one request at a time, no task of its own.
//!
//! Whoever waits for the response, or for its body, polls the connection, and with that the upload
//! goes on too. The request's head is written straight from the exchange, so an attempt copies no
//! header map; what is read is handed out in the buffer it was read into.

mod request;
mod response;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{HeaderMap, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::unconstrained;

pub(crate) use self::request::RequestHead;
use self::request::write_head;
pub(super) use self::response::MAX_HEADERS;
use self::response::{Decoder, Progress, head_end, read_head};
use crate::body::RequestBody;
use crate::http1::{Framing, MIN_READ, poll_fill, poll_read_some};

/// Bytes of a response's head at most.
pub(super) const MAX_HEAD: usize = 256 * 1024;
/// A buffer for request heads that is kept between requests.
const KEPT_TEXT: usize = 4 * 1024;
/// Pieces of a body up to this length leave together, so that a client can't make a packet of each of its bytes.
const SMALL: usize = 1024;
/// What is gathered of them before it is written.
const GATHERED: usize = 16 * 1024;

/// Why a connection is of no use any more.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The request's body broke off, which its exchange knows more of.
    Upload,
    /// The other side ended the connection where it must not.
    Closed,
    Io(io::Error),
    /// What came is not HTTP, or not unambiguous.
    Malformed(&'static str),
    /// The other side, or the library, ended an HTTP/2 stream or connection.
    Http2(h2::Error),
    /// The request names no host that could be sent.
    Host,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Upload => f.write_str("the request's body broke off"),
            Broken::Closed => f.write_str("connection closed before the end of the response"),
            Broken::Io(error) => error.fmt(f),
            Broken::Malformed(what) => write!(f, "malformed response: {what}"),
            Broken::Http2(error) => error.fmt(f),
            Broken::Host => f.write_str("the request's host can't be sent"),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Broken::Io(error)
    }
}

/// A connection that speaks HTTP/1.1.
pub(crate) struct Http1<S> {
    io: S,
    /// Read, and not handed out yet.
    inbox: BytesMut,
    /// Where the search for the end of a head goes on.
    searched: usize,
    /// How much to read at once.
    read_size: usize,
    upload: Upload,
    download: Download,
    /// Bytes of interim responses (1xx) to the request.
    interim: usize,
    is_head_request: bool,
    /// What was asked to be spoken from here on.
    upgrade: Option<HeaderValue>,
    keep_alive: bool,
}

/// The request on its way out.
struct Upload {
    /// Head, chunk sizes, small chunks, trailers; the first `text_sent` bytes are gone.
    text: Vec<u8>,
    text_sent: usize,
    /// Of the body, to be written after the text.
    chunk: Bytes,
    /// Of the body, as they stand at the end of the text.
    trailers: Option<HeaderMap>,
    body: RequestBody,
    framing: Framing,
    /// Nothing more comes from the body.
    ended: bool,
    /// Whether the endpoint takes no more; it may still answer.
    cut: bool,
    /// Bytes that the endpoint's connection took.
    sent: u64,
}

enum Download {
    Head,
    Body(Decoder),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Http1<S> {
    pub(crate) fn new(io: S) -> Self {
        Http1 {
            io,
            inbox: BytesMut::new(),
            searched: 0,
            read_size: MIN_READ,
            upload: Upload::none(),
            download: Download::Body(Decoder::End),
            interim: 0,
            is_head_request: false,
            upgrade: None,
            keep_alive: true,
        }
    }

    /// Takes a request; nothing is written before the connection is polled.
    pub(crate) fn start(&mut self, head: &RequestHead<'_>, body: RequestBody) {
        let upload = &mut self.upload;
        upload.framing = Framing::of_request(head.method, &body.size_hint());
        write_head(head, upload.framing, &mut upload.text);
        upload.ended = matches!(upload.framing, Framing::None | Framing::Length(0));
        (upload.body, upload.cut, upload.sent) = (body, false, 0);
        self.is_head_request = head.method == http::Method::HEAD;
        self.upgrade = head.upgrade.cloned();
        self.download = Download::Head;
        self.interim = 0;
    }

    /// The request's body as it was given, if nothing of the request was written.
    pub(super) fn take_unsent(&mut self) -> Option<RequestBody> {
        (self.upload.sent == 0).then(|| {
            self.upload.cut();
            std::mem::replace(&mut self.upload.body, RequestBody::Empty)
        })
    }

    /// Writes the request and reads until the response's head is there.
    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Broken>> {
        if let Poll::Ready(Err(broken)) = self.poll_upload(cx) {
            return Poll::Ready(Err(broken));
        }
        if self.upload.cut && self.upload.sent == 0 {
            return Poll::Ready(Err(Broken::Closed));
        }
        loop {
            match head_end(&self.inbox, &mut self.searched) {
                Some(end) if end <= MAX_HEAD => {
                    let bytes = self.inbox.split_to(end).freeze();
                    self.searched = 0;
                    let (head, decoder, keep_alive) = read_head(&bytes, self.is_head_request)?;
                    if head.status() == StatusCode::SWITCHING_PROTOCOLS {
                        return Poll::Ready(self.switch(head));
                    }
                    if head.status().is_informational() {
                        // Nobody may be kept busy with them for ever.
                        self.interim += end;
                        if self.interim > MAX_HEAD {
                            return Poll::Ready(Err(Broken::Malformed("too many interim responses")));
                        }
                        continue;
                    }
                    self.download = Download::Body(decoder);
                    self.keep_alive &= keep_alive;
                    return Poll::Ready(Ok(head));
                }
                None if self.inbox.len() <= MAX_HEAD => {}
                _ => return Poll::Ready(Err(Broken::Malformed("the head is too long"))),
            }
            if ready!(poll_read_some(&mut self.io, &mut self.inbox, cx))? == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
        }
    }

    /// Takes a 101 for what it says if that was asked for. There is no other request on this connection then.
    fn switch(&mut self, head: Response<()>) -> Result<Response<()>, Broken> {
        let is_asked = match (&self.upgrade, head.headers().get(UPGRADE)) {
            (Some(asked), Some(agreed)) => agreed.as_bytes().eq_ignore_ascii_case(asked.as_bytes()),
            _ => false,
        };
        if !is_asked || !self.upload.is_done() {
            return Err(Broken::Malformed("it switches protocols unasked"));
        }
        self.keep_alive = false;
        self.download = Download::Body(Decoder::End);
        Ok(head)
    }

    /// The next of the response's body; none at its end.
    pub(crate) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            let Download::Body(decoder) = &mut self.download else { return Poll::Ready(None) };
            match decoder.advance(&mut self.inbox) {
                Ok(Progress::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Progress::End) => return Poll::Ready(None),
                Ok(Progress::More) => {}
                Err(what) => return Poll::Ready(Some(Err(Broken::Malformed(what)))),
            }
            let until_close = matches!(decoder, Decoder::UntilClose);
            if let Poll::Ready(Err(broken)) = self.poll_upload(cx) {
                return Poll::Ready(Some(Err(broken)));
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if until_close => self.download = Download::Body(Decoder::End),
                Ok(0) => return Poll::Ready(Some(Err(Broken::Closed))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// Whether the response was read to its end.
    pub(super) fn is_end(&self) -> bool {
        matches!(self.download, Download::Body(Decoder::End))
    }

    /// What is still to come of the response's body.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match &self.download {
            Download::Body(Decoder::End) => SizeHint::with_exact(0),
            Download::Body(Decoder::Length(left)) => SizeHint::with_exact(*left),
            _ => SizeHint::default(),
        }
    }

    /// Whether the connection could take another request when it was last looked at.
    pub(crate) fn is_idle(&self) -> bool {
        let is_done = self.is_end() && self.upload.is_done() && !self.upload.cut;
        is_done && self.keep_alive && self.inbox.is_empty()
    }

    /// Whether the connection can take another request, as far as can be told without writing.
    pub(super) fn poll_is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_idle() {
            return false;
        }
        // Whatever comes now, its end too, nobody asked for.
        let mut byte = [0; 1];
        let mut probe = ReadBuf::new(&mut byte);
        // A task that has done much would be told to wait without a look at the socket.
        pin!(unconstrained(poll_fn(|cx| Pin::new(&mut self.io).poll_read(cx, &mut probe))))
            .poll(cx)
            .is_pending()
    }

    /// Gives up what an idle connection does not need.
    pub(super) fn rest(&mut self) {
        self.inbox = BytesMut::new();
        self.read_size = MIN_READ;
        (self.upload.body, self.upload.trailers) = (RequestBody::Empty, None);
        if self.upload.text.capacity() > KEPT_TEXT {
            self.upload.text = Vec::new();
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_fill(&mut self.io, &mut self.inbox, &mut self.read_size, cx)
    }

    /// Goes on with the request. An endpoint that takes no more of it may have said why, so that
    /// is no error here.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.upload.is_done() {
            let starving = self.upload.poll_chunk(cx)?.is_pending();
            while self.upload.has_bytes() {
                match self.upload.poll_write(&mut self.io, cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0) | Err(_)) => self.upload.cut(),
                    Poll::Pending => {
                        self.upload.body.waits_for_room();
                        return Poll::Pending;
                    }
                }
            }
            if starving {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The connection after a 101: what was read behind that comes first.
impl<S: AsyncRead + Unpin> AsyncRead for Http1<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.inbox.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let length = self.inbox.len().min(buf.remaining());
        buf.put_slice(&self.inbox.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http1<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Upload {
    fn none() -> Self {
        Upload {
            text: Vec::new(),
            text_sent: 0,
            chunk: Bytes::new(),
            trailers: None,
            body: RequestBody::Empty,
            framing: Framing::None,
            ended: true,
            cut: false,
            sent: 0,
        }
    }

    fn has_bytes(&self) -> bool {
        !self.text.is_empty() || !self.chunk.is_empty()
    }

    fn is_done(&self) -> bool {
        self.ended && !self.has_bytes()
    }

    /// Nothing more can be written. The body is kept: it may not have been sent at all, and dropping
    /// it would tell the client to stop before it has its answer.
    fn cut(&mut self) {
        self.text.clear();
        self.text_sent = 0;
        let body = std::mem::replace(&mut self.body, RequestBody::Empty);
        self.body = body.put_back(std::mem::take(&mut self.chunk), self.trailers.take());
        (self.ended, self.cut) = (true, true);
    }

    /// Takes the body's next chunk, or small ones, if there is room; pending if the body has none for now.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.ended && self.chunk.is_empty() && self.text.len() < GATHERED {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) if chunk.is_empty() => {}
                    Ok(chunk) => {
                        self.framing.begin_chunk(chunk.len(), &mut self.text).ok_or(Broken::Upload)?;
                        // Of what may still be given back nothing is copied.
                        match self.sent > 0 && chunk.len() <= SMALL {
                            true => self.text.extend_from_slice(&chunk),
                            false => self.chunk = chunk,
                        }
                        self.ended = matches!(self.framing, Framing::Length(0));
                    }
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.framing.end(self.trailers.as_ref(), &mut self.text).ok_or(Broken::Upload)?;
                        self.ended = true;
                    }
                },
                Some(Err(_)) => return Poll::Ready(Err(Broken::Upload)),
                None => {
                    self.framing.end(None, &mut self.text).ok_or(Broken::Upload)?;
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let text = self.text.get(self.text_sent..).unwrap_or_default();
        let written = match (text.is_empty(), self.chunk.is_empty()) {
            (false, true) => ready!(Pin::new(io).poll_write(cx, text))?,
            (true, _) => ready!(Pin::new(io).poll_write(cx, &self.chunk))?,
            (false, false) => {
                let slices = [IoSlice::new(text), IoSlice::new(&self.chunk)];
                ready!(Pin::new(io).poll_write_vectored(cx, &slices))?
            }
        };
        let of_text = written.min(text.len());
        self.text_sent += of_text;
        if self.text_sent == self.text.len() {
            self.text.clear();
            self.text_sent = 0;
        }
        self.chunk.advance((written - of_text).min(self.chunk.len()));
        self.sent += written as u64;
        Poll::Ready(Ok(written))
    }
}
