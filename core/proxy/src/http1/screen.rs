//! Judges HTTP/1 bytes before hyper sees them.
//!
//! hyper drops or repairs what a strict gateway must refuse, and answers what it cannot parse by itself, without
//! request id, log or reason. So [`Screen`] stands between the client's stream and hyper: the bytes of a request head
//! go on only when the whole head has been judged, lines of a chunked body only as far as they are good, and bodies of
//! known length pass untouched, straight into hyper's own buffer.
//!
//! A refused head is still an exchange: in its place hyper gets one canned request, and the service, which counts the
//! requests of its connection, finds the [`Refusal`] under that count ([`Handle::take_refusal`]) and answers it by the
//! common path. Nothing behind a refusal is read any more; the connection ends with that answer. A refusal inside a
//! body is an error of that body, which carries the refusal ([`Refusal::in_error`], [`Handle::body_refusal`]).
//!
//! The screen also keeps the clocks of a client that is expected to send a head: `header_timeout` and `idle_timeout`.
//! Both stand still while a request is [served](Handle::serve). There is one timer per connection; it is moved when it
//! fires too early or when the start of a head shortens the wait, so that an ordinary request costs no timer operation.

mod chunked;
mod head;
mod judge;
mod refusal;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

pub(crate) use self::chunked::is_forbidden_trailer;
pub use self::head::{Framing, HeadVerdict, judge_head};
pub(crate) use self::head::{same_authority, split_authority};
use self::judge::{Judge, Stop};
pub use self::refusal::Refusal;
pub(crate) use self::refusal::TRAILER_FORBIDDEN;

/// What hyper reads instead of a refused head.
const CANNED_HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: refused.invalid\r\nconnection: close\r\n\r\n";

/// What a client may send, and how long it may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest head, with its final blank line. hyper's `max_buf_size` must not be smaller.
    pub max_head_bytes: usize,
    /// Most header fields of a head, and of a trailer section. hyper's `max_headers` must not be smaller.
    pub max_headers: usize,
    /// Longest request line, without its CRLF. URI parsers end at 65534 bytes.
    pub max_request_line: usize,
    /// From the first byte of a head to its end, and from the accepted connection to the end of its first head.
    pub header_timeout: Duration,
    /// From the end of an exchange to the first byte of the next head.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_head_bytes: 64 * 1024,
            max_headers: 100,
            max_request_line: 16 * 1024,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
        }
    }
}

/// A client's stream whose read side is judged. For one thread; writes pass through.
pub struct Screen<T> {
    io: T,
    limits: Limits,
    shared: Rc<Shared>,
    judge: Judge,
    /// Bytes read but not handed over: `cleared` good ones, then those whose judgement needs more.
    held: BytesMut,
    cleared: usize,
    /// Whether bytes in `held` behind the cleared ones have yet to be judged.
    unjudged: bool,
    /// The refusal of a body, until it has been returned as an error.
    failure: Option<Refusal>,
    /// A clock ran out between two requests: the client has gone, as far as hyper knows.
    ended: bool,
    wait: Wait,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What the client is waited for, and since when.
struct Wait {
    since: Instant,
    heads: u64,
    head_begun: bool,
}

/// What the service knows of, and tells to, its connection's [`Screen`].
#[derive(Clone)]
pub struct Handle(Rc<Shared>);

struct Shared {
    head_refusal: Cell<Option<(u64, Refusal)>>,
    body_refusal: Cell<Option<(u64, Refusal)>>,
    tunnel: Cell<bool>,
    served: Cell<u64>,
    serving: Cell<u64>,
    /// Something happened that the idle clock counts from.
    active: Cell<bool>,
    /// Whom to wake when serving ends or a tunnel begins.
    reader: Cell<Option<Waker>>,
}

impl Handle {
    /// The refusal that stands behind the canned request number `ordinal`, counted from 0 on this connection.
    pub fn take_refusal(&self, ordinal: u64) -> Option<Refusal> {
        let (_, refusal) = self.0.head_refusal.get().filter(|(refused, _)| *refused == ordinal)?;
        self.0.head_refusal.set(None);
        Some(refusal)
    }

    /// Why the body of request number `ordinal` failed, if the screen refused it.
    pub fn body_refusal(&self, ordinal: u64) -> Option<Refusal> {
        self.0.body_refusal.get().filter(|(refused, _)| *refused == ordinal).map(|(_, refusal)| refusal)
    }

    /// To be taken once for each request when it reaches the service, and dropped when its exchange has ended. Until
    /// then no clock runs, and bytes behind a request that asked to switch protocols stay unjudged.
    pub fn serve(&self) -> Serving {
        self.0.serving.set(self.0.serving.get() + 1);
        Serving(self.0.clone())
    }

    /// The protocol is switched: what follows the current request's body passes unjudged. To be called before the 101
    /// or the 2xx to a `CONNECT` is returned.
    pub fn tunnel(&self) {
        self.0.tunnel.set(true);
        self.0.wake();
    }
}

/// A request being served; see [`Handle::serve`].
pub struct Serving(Rc<Shared>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.set(self.0.serving.get().saturating_sub(1));
        self.0.served.set(self.0.served.get() + 1);
        self.0.active.set(true);
        self.0.wake();
    }
}

impl Shared {
    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn park(&self, cx: &Context<'_>) {
        let reader = self.reader.take().filter(|reader| reader.will_wake(cx.waker()));
        self.reader.set(Some(reader.unwrap_or_else(|| cx.waker().clone())));
    }
}

impl<T> Screen<T> {
    /// Screens a stream from its first byte on; the header clock starts now.
    pub fn new(io: T, limits: Limits) -> (Screen<T>, Handle) {
        Screen::with_prefix(io, &[], limits)
    }

    /// The same for a stream of which `prefix` has already been read.
    pub fn with_prefix(io: T, prefix: &[u8], limits: Limits) -> (Screen<T>, Handle) {
        let shared = Rc::new(Shared {
            head_refusal: Cell::new(None),
            body_refusal: Cell::new(None),
            tunnel: Cell::new(false),
            served: Cell::new(0),
            serving: Cell::new(0),
            active: Cell::new(false),
            reader: Cell::new(None),
        });
        let handle = Handle(shared.clone());
        let screen = Screen {
            io,
            limits,
            shared,
            judge: Judge::new(),
            held: BytesMut::from(prefix),
            cleared: 0,
            unjudged: !prefix.is_empty(),
            failure: None,
            ended: false,
            wait: Wait { since: Instant::now(), heads: 0, head_begun: false },
            timer: None,
        };
        (screen, handle)
    }

    /// The stream below, to linger on after a refusal. Bytes held by the screen are lost.
    pub fn into_inner(self) -> T {
        self.io
    }

    /// Moves up to `out`'s room of cleared bytes there.
    fn hand_over(&mut self, out: &mut ReadBuf<'_>) {
        let count = self.cleared.min(out.remaining());
        if let Some(bytes) = self.held.get(..count) {
            out.put_slice(bytes);
            self.held.advance(count);
        }
        self.cleared -= count;
        if self.held.is_empty() {
            // Idle connections keep no buffer.
            self.held = BytesMut::new();
        }
    }

    /// Learns what the service has decided about a switch of protocols.
    fn settle(&mut self) {
        let settled = if self.shared.tunnel.get() {
            self.judge.tunnel()
        } else {
            self.shared.served.get() >= self.judge.heads() && self.judge.resume()
        };
        self.unjudged |= settled && !self.held.is_empty();
    }

    fn judge_held(&mut self) {
        self.unjudged = false;
        let (cleared, stop) = self.judge.advance(&self.held, &self.limits);
        self.cleared = cleared;
        if let Some(stop) = stop {
            self.stop(stop);
        }
    }

    /// Ends the connection's read side: what is cleared still goes to hyper, then the canned head or the error.
    fn stop(&mut self, stop: Stop) {
        self.held.truncate(self.cleared);
        let ordinal = self.judge.heads();
        match stop {
            Stop::Head(refusal) => {
                self.shared.head_refusal.set(Some((ordinal, refusal)));
                self.held.extend_from_slice(CANNED_HEAD);
                self.cleared = self.held.len();
            }
            Stop::Body(refusal) => {
                self.shared.body_refusal.set(Some((ordinal.saturating_sub(1), refusal)));
                self.failure = Some(refusal);
            }
        }
    }

    /// Whether held bytes are the start of a head; the blank line tolerated before one is not.
    fn head_begun(&self) -> bool {
        !matches!(&self.held[..], b"" | b"\r" | b"\r\n")
    }

    /// How long the client may keep us waiting; none if the wait is not for a head.
    fn patience(&self) -> Option<Duration> {
        if self.shared.serving.get() > 0 || !self.judge.awaits_head() {
            return None;
        }
        let first = self.judge.heads() == 0;
        let begun = self.judge.in_head() && self.head_begun();
        Some(if first || begun { self.limits.header_timeout } else { self.limits.idle_timeout })
    }

    /// Completes when the client has kept us waiting for too long.
    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.serving.get() > 0 || !self.judge.in_head() {
            self.shared.park(cx);
        }
        let Some(patience) = self.patience() else { return Poll::Pending };
        self.restart_clock();
        let Some(deadline) = self.wait.since.checked_add(patience) else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            if timer.is_elapsed() {
                if Instant::now() >= deadline {
                    return Poll::Ready(());
                }
                timer.as_mut().reset(deadline);
            } else if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
        }
    }

    /// Counts from now if something has happened since the last look. The first head is always counted from the
    /// accepted connection.
    fn restart_clock(&mut self) {
        let (heads, head_begun) = (self.judge.heads(), self.head_begun());
        let changed = (heads, head_begun) != (self.wait.heads, self.wait.head_begun);
        if self.shared.active.take() | changed {
            let since = if heads == 0 { self.wait.since } else { Instant::now() };
            self.wait = Wait { since, heads, head_begun };
        }
    }

    fn run_out(&mut self) {
        if self.judge.in_head() && self.head_begun() {
            self.judge.stop();
            self.stop(Stop::Head(refusal::HEADER_TIMEOUT));
        } else {
            self.ended = true;
        }
    }

    /// While the service decides about a switch of protocols, no more than a head's worth is held back.
    fn is_full(&self) -> bool {
        !self.judge.in_head() && self.held.len() >= self.limits.max_head_bytes
    }
}

impl<T: AsyncRead + Unpin> Screen<T> {
    /// Reads once, through `out` in every case: what can pass at once stays there, the rest is taken back and held.
    /// Completes with false at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let start = out.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
        let (_, read) = out.filled().split_at(start);
        if read.is_empty() {
            return Poll::Ready(Ok(false));
        }
        if !self.held.is_empty() {
            self.held.extend_from_slice(read);
            self.unjudged = true;
            out.set_filled(start);
            return Poll::Ready(Ok(true));
        }
        let (cleared, stop) = self.judge.advance(read, &self.limits);
        let (_, rest) = read.split_at(cleared);
        if !rest.is_empty() && stop.is_none() {
            self.held.extend_from_slice(rest);
        }
        out.set_filled(start + cleared);
        if let Some(stop) = stop {
            self.stop(stop);
        }
        Poll::Ready(Ok(true))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Screen<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let start = out.filled().len();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.cleared > 0 {
                this.hand_over(out);
            }
            if out.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
            this.settle();
            if this.unjudged {
                this.judge_held();
                continue;
            }
            if let Some(refusal) = this.failure.take() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, refusal)));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            if this.judge.is_stopped() {
                // An end of stream would make hyper drop the answer, so the answer is what ends the connection.
                return Poll::Pending;
            }
            let filled = if this.is_full() { Poll::Pending } else { this.poll_fill(cx, out) };
            match filled {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(this.poll_clock(cx));
                    this.run_out();
                }
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> Screen<T> {
    /// The idle clock counts from the last byte written, so that a slow reader of the last answer is not idle.
    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.shared.active.set(true);
        }
        written
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Screen<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
