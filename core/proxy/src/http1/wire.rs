//! The socket of a connection, with what was read from it and what is to be written to it.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::Version;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::chunked::{Chunked, Progress, take};
use super::head::{Framing, HeadJudge, HeadVerdict, Wishes};
use super::outbox::Outbox;
use super::refusal::UPGRADE_DATA;
use super::{Limits, Refusal};
use crate::head::Head;
use crate::linger::{Linger, Stream};
use crate::reply::Fault;
use crate::tunnel::Upgrade;

/// What is read at once in the beginning: a usual message.
pub(crate) const MIN_READ: usize = 8 * 1024;
/// What is read at once from who keeps filling the buffer.
const MAX_READ: usize = 256 * 1024;

/// What tells a client to send its body (RFC 9110, 15.2.1).
const GO_AHEAD: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A wire, as a connection's loop and the body of its current request share it. Both are of one task, so the lock is
/// free whenever it is asked for; it is there because bodies of requests that plugins make may change threads, and
/// those of clients are of the same type.
#[derive(Clone)]
pub(super) struct Shared(Arc<Mutex<Wire>>);

impl Shared {
    pub(super) fn new(wire: Wire) -> Self {
        Shared(Arc::new(Mutex::new(wire)))
    }

    /// Nothing foreign may be polled before the guard is dropped.
    pub(super) fn lock(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream, what was read, and what is to be written.
pub(super) struct Wire {
    io: Linger<Box<dyn Stream>>,
    limits: Limits,
    /// Read, and not handed out yet.
    inbox: BytesMut,
    /// How much of a body to read at once.
    read_size: usize,
    judge: HeadJudge,
    /// Of the client whose request was read last.
    wishes: Wishes,
    decoder: Decoder,
    /// The exchange may still ask for the body.
    is_body_held: bool,
    /// The client waits to be told that its body is wanted.
    awaits_go_ahead: bool,
    /// The client wants to speak something else, and has to wait for the answer.
    asks_upgrade: bool,
    /// The response has begun.
    answers: bool,
    pub(super) out: Outbox,
}

/// What reads a request's body.
enum Decoder {
    /// It was read to its end.
    End,
    /// So many bytes are left.
    Length(u64),
    Chunked(Box<Chunked>),
    /// It broke off, or was refused.
    Failed,
}

impl Wire {
    /// A connection of which `read` was read already.
    pub(super) fn new(io: Linger<Box<dyn Stream>>, read: BytesMut, limits: Limits) -> Self {
        Wire {
            io,
            limits,
            inbox: read,
            read_size: MIN_READ,
            judge: HeadJudge::default(),
            wishes: Wishes::default(),
            decoder: Decoder::End,
            is_body_held: false,
            awaits_go_ahead: false,
            asks_upgrade: false,
            answers: false,
            out: Outbox::default(),
        }
    }

    /// Reads the next head; none if the client has gone.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Head, Refusal>>> {
        loop {
            match self.judge.advance(&self.inbox, &self.limits) {
                Ok(Some(verdict)) => return Poll::Ready(Some(self.take_head(verdict))),
                Ok(None) => {}
                Err(refusal) => return Poll::Ready(Some(Err(refusal))),
            }
            match ready!(poll_read_some(&mut self.io, &mut self.inbox, cx)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(None),
            }
        }
    }

    fn take_head(&mut self, verdict: HeadVerdict) -> Result<Head, Refusal> {
        let bytes = match self.inbox.len() == verdict.len {
            true => std::mem::take(&mut self.inbox),
            false => self.inbox.split_to(verdict.len),
        };
        let judge = std::mem::take(&mut self.judge);
        self.wishes = judge.wishes();
        let mut head = judge.take_apart(&bytes.freeze())?;
        self.decoder = match verdict.framing {
            Framing::Empty => Decoder::End,
            Framing::Length(length) => Decoder::Length(length),
            Framing::Chunked => Decoder::Chunked(Box::new(Chunked::new())),
        };
        self.awaits_go_ahead =
            self.wishes.go_ahead && head.version == Version::HTTP_11 && !self.is_body_read();
        self.answers = false;
        // A request with a body, or of HTTP/1.0, is taken for an ordinary one.
        if self.wishes.upgrade && head.version == Version::HTTP_11 && self.is_body_read() {
            head.upgrade = Upgrade::over_http1(&head.headers);
        }
        self.asks_upgrade = head.upgrade.is_some();
        if self.speaks_early() { Err(UPGRADE_DATA) } else { Ok(head) }
    }

    /// What the client wishes of its connection.
    pub(super) fn wishes(&self) -> Wishes {
        self.wishes
    }

    /// Whether a head has begun to arrive; the blank line tolerated before one is none.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(&self.inbox[..], b"" | b"\r" | b"\r\n")
    }

    /// Whether the request was read to its end.
    pub(super) fn is_body_read(&self) -> bool {
        matches!(self.decoder, Decoder::End)
    }

    /// Whether the exchange may still ask for its request's body.
    pub(super) fn is_body_held(&self) -> bool {
        self.is_body_held && !matches!(self.decoder, Decoder::Failed)
    }

    /// Skips what is left of the request's body if it is at hand; false if it is not, or somebody holds it still.
    pub(super) fn skip_body(&mut self, cx: &mut Context<'_>) -> bool {
        if self.is_body_held {
            return self.is_body_read();
        }
        let mut may_read = !self.awaits_go_ahead;
        loop {
            match self.next_of_body() {
                Ok(Next::Frame(_)) => {}
                Ok(Next::End) => return true,
                // Once: a client that has more to send is not worth waiting for.
                Ok(Next::More) if std::mem::replace(&mut may_read, false) => {
                    if !matches!(self.poll_fill(cx), Poll::Ready(Ok(1..))) {
                        return false;
                    }
                }
                Ok(Next::More) | Err(_) => return false,
            }
        }
    }

    /// The response begins: a client that waited to be told to go on gets that instead.
    pub(super) fn begin_answer(&mut self) -> &mut Vec<u8> {
        self.answers = true;
        self.awaits_go_ahead = false;
        self.out.text()
    }

    /// Writes all there is to be written.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.out.poll_write(&mut self.io, cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Whether the client has gone while it has nothing to say. What it says nevertheless is its next request.
    pub(super) fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.is_body_read() || !self.inbox.is_empty() {
            return false;
        }
        matches!(poll_read_some(&mut self.io, &mut self.inbox, cx), Poll::Ready(Ok(0) | Err(_)))
    }

    /// Whether the client speaks something else before it was told that it may.
    pub(super) fn speaks_early(&self) -> bool {
        self.asks_upgrade && !self.inbox.is_empty()
    }

    /// Gives up what an idle connection does not need.
    pub(super) fn rest(&mut self) {
        self.read_size = MIN_READ;
        if self.inbox.is_empty() {
            self.inbox = BytesMut::new();
        }
    }

    /// Ends the connection, when the client has seen everything that was written.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Makes sure that what was written does not look like all of a response.
    pub(super) fn spoil(&self) {
        self.io.get_ref().spoil();
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        loop {
            match self.next_of_body() {
                Ok(Next::Frame(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(Next::End) => return Poll::Ready(None),
                Ok(Next::More) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault))),
            }
            if std::mem::take(&mut self.awaits_go_ahead) {
                self.out.text().extend_from_slice(GO_AHEAD);
            }
            // Once the response has begun, it is written by who sends it.
            let owes_go_ahead = !self.answers && !self.out.is_empty();
            let has_failed = owes_go_ahead && matches!(self.poll_flush(cx), Poll::Ready(Err(_)));
            if has_failed || !matches!(ready!(self.poll_fill(cx)), Ok(1..)) {
                self.decoder = Decoder::Failed;
            }
        }
    }

    /// What was read of the body, and not handed out yet.
    fn next_of_body(&mut self) -> Result<Next, Fault> {
        match &mut self.decoder {
            Decoder::End => Ok(Next::End),
            Decoder::Failed => Err(Fault::ClientBody),
            _ if self.inbox.is_empty() => Ok(Next::More),
            Decoder::Length(left) => {
                let data = take(&mut self.inbox, left);
                if *left == 0 {
                    self.decoder = Decoder::End;
                }
                Ok(Next::Frame(Frame::data(data)))
            }
            Decoder::Chunked(chunked) => match chunked.advance(&mut self.inbox, &self.limits) {
                Ok(Progress::Data(data)) => Ok(Next::Frame(Frame::data(data))),
                Ok(Progress::More) => Ok(Next::More),
                Ok(Progress::End(trailers)) => {
                    self.decoder = Decoder::End;
                    Ok(if trailers.is_empty() { Next::End } else { Next::Frame(Frame::trailers(trailers)) })
                }
                Err(refusal) => {
                    self.decoder = Decoder::Failed;
                    Err(refusal.into())
                }
            },
        }
    }

    fn body_size(&self) -> SizeHint {
        match self.decoder {
            Decoder::End => SizeHint::with_exact(0),
            Decoder::Length(left) => SizeHint::with_exact(left),
            Decoder::Chunked(_) | Decoder::Failed => SizeHint::default(),
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_fill(&mut self.io, &mut self.inbox, &mut self.read_size, cx)
    }
}

/// The connection as a tunnel has it. Nothing waits in either box then.
impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_finish(cx)
    }
}

/// What came of looking at what was read.
enum Next {
    Frame(Frame<Bytes>),
    /// More has to be read first.
    More,
    End,
}

/// The body of a connection's current request.
pub(crate) struct Body(Shared);

impl Body {
    /// The body of the request whose head was just read; none if it has none.
    pub(super) fn of(wire: &Shared) -> Option<Self> {
        let mut shared = wire.lock();
        shared.is_body_held = !shared.is_body_read();
        shared.is_body_held.then(|| Body(wire.clone()))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.0.lock().is_body_held = false;
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.0.lock().poll_body(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_body_read()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body_size()
    }
}

/// Reads once, straight to where it stays, more and more of it from who keeps filling the buffer; 0 at the end of the
/// stream.
pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
    io: &mut S,
    inbox: &mut BytesMut,
    read_size: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if inbox.capacity() - inbox.len() < *read_size / 2 {
        inbox.reserve(*read_size);
    }
    let room = inbox.capacity() - inbox.len();
    let read = ready!(pin!(io.read_buf(inbox)).poll(cx))?;
    if read == room {
        *read_size = (*read_size * 2).min(MAX_READ);
    }
    Poll::Ready(Ok(read))
}

/// Reads once what has come; 0 at the end of the stream. The buffer grows by that and no more, so that a connection
/// that waits holds none.
pub(crate) fn poll_read_some<S: AsyncRead + Unpin + ?Sized>(
    io: &mut S,
    inbox: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut scratch = [const { MaybeUninit::uninit() }; MIN_READ];
    let mut read = ReadBuf::uninit(&mut scratch);
    ready!(Pin::new(io).poll_read(cx, &mut read))?;
    match inbox.capacity() {
        0 => *inbox = BytesMut::from(read.filled()),
        _ => inbox.extend_from_slice(read.filled()),
    }
    Poll::Ready(Ok(read.filled().len()))
}

/// The same, for who can wait.
pub(crate) async fn read_some<S: AsyncRead + Unpin>(io: &mut S, inbox: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| poll_read_some(io, inbox, cx)).await
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::super::tests::{GOOD, Script};
    use super::*;

    fn wire(segments: Vec<Vec<u8>>) -> Wire {
        let client: Box<dyn Stream> = Box::new(Script::new(segments));
        Wire::new(Linger::new(client, std::time::Duration::MAX), BytesMut::new(), Limits::default())
    }

    #[test]
    fn an_idle_connection_holds_no_buffer() {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
        let mut wire = wire(vec![head.to_vec(), b"body".to_vec()]);
        let mut cx = Context::from_waker(Waker::noop());
        let head = wire.poll_head(&mut cx);
        assert!(matches!(head, Poll::Ready(Some(Ok(_)))));
        assert!(wire.skip_body(&mut cx));
        wire.begin_answer().extend_from_slice(b"HTTP/1.1 200 OK\r\n\r\n");
        assert!(wire.poll_flush(&mut cx).is_ready());
        wire.rest();
        assert_eq!((wire.inbox.capacity(), wire.out.text_capacity()), (0, 0));
        assert!(wire.poll_head(&mut cx).is_pending());
        assert_eq!(wire.inbox.capacity(), 0);
    }

    #[test]
    fn of_what_a_client_sends_while_it_should_wait_little_is_read() {
        let mut wire = wire(vec![GOOD.into(), vec![b'x'; 3 * MIN_READ]]);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(wire.poll_head(&mut cx).is_ready());
        for _ in 0..5 {
            assert!(!wire.is_gone(&mut cx));
            assert_eq!(wire.inbox.len(), MIN_READ);
        }
    }

    #[test]
    fn of_a_body_that_nobody_wants_no_more_is_skipped_than_is_at_hand() {
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30000\r\n\r\n";
        let mut wire = wire(vec![head.to_vec(), vec![b'x'; 30_000]]);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(wire.poll_head(&mut cx).is_ready());
        assert!(!wire.skip_body(&mut cx));
        assert!(matches!(wire.decoder, Decoder::Length(15_000..)));
    }
}
