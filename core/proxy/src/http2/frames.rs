//! What a client's frames ask for, counted as they come in, below the library that understands them.
//!
//! The library bounds what it holds in memory; it does not bound what a client may make it do for nothing. So every
//! frame that is no request and no part of a body is paid for, with what requests, responses and time bring in. A client
//! that does not respect that is told so, and heard no more; so is one that begins a head and does not end it in time.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::PREFACE;
use super::malformed::Heads;
use super::walk::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Head, PROTOCOL_ERROR, RST_STREAM, Walk, frame,
};
use crate::client::Client;
use crate::metrics::GivenUp;
use crate::timer::LazyTimer;

/// Frames that a client may send before it has asked for anything, or after it was silent for long.
const MAX_AHEAD: u64 = 1000;
/// Frames that come along with a request, or with a part of a response: window updates, pings that measure, an end.
const PER_USE: u64 = 10;
/// Frames a second that keep a connection alive which does nothing else.
const PER_SECOND: u64 = 10;
/// Requests that a client may take back, even if it takes back all. Beyond, it must let half of them be.
const MAX_RESETS: u64 = 200;
/// Frames that are read before other connections get their turn.
const TURN: u32 = 512;
const GOAWAY: u8 = 7;
const FLOW_CONTROL_ERROR: u32 = 3;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Whether a frame is one that a body is made of.
fn is_part_of_body(frame: Head) -> bool {
    frame.kind == DATA && (frame.length > 0 || frame.flags & END_STREAM != 0)
}

/// What a client may still send.
struct Allowance {
    frames: u64,
    counted_since: Instant,
    requests: u64,
    resets: u64,
    /// The last stream that the client has begun.
    last: u32,
}

impl Allowance {
    fn new() -> Self {
        Allowance { frames: MAX_AHEAD, counted_since: Instant::now(), requests: 0, resets: 0, last: 0 }
    }

    fn receive(&mut self, frame: Head) -> Result<(), GivenUp> {
        match frame.kind {
            HEADERS if frame.stream > self.last => {
                self.last = frame.stream;
                self.requests += 1;
                self.frames += PER_USE;
                return Ok(());
            }
            _ if is_part_of_body(frame) => return Ok(()),
            RST_STREAM => {
                self.resets += 1;
                if self.resets > MAX_RESETS && self.resets > self.requests / 2 {
                    return Err(GivenUp::Resets);
                }
            }
            _ => {}
        }
        if self.frames == 0 {
            self.frames = (self.counted_since.elapsed().as_secs() * PER_SECOND).min(MAX_AHEAD);
            self.counted_since = Instant::now();
        }
        self.frames = self.frames.checked_sub(1).ok_or(GivenUp::Frames)?;
        Ok(())
    }

    /// Whether it tells that what the client sent was wrong.
    fn send(&mut self, frame: Head) -> bool {
        if frame.kind == DATA {
            self.frames += PER_USE;
        }
        frame.kind == RST_STREAM && [PROTOCOL_ERROR, FLOW_CONTROL_ERROR].contains(&frame.code)
    }
}

/// The head of a request, or trailers, that a client has begun: all frames of it, and nothing in between (RFC 9113, 4.3).
struct Block {
    /// Its last frame so far.
    frame: Option<Head>,
    is_open: bool,
    limit: Duration,
    timer: LazyTimer,
}

impl Block {
    fn new(limit: Duration) -> Self {
        Block { frame: None, is_open: false, limit, timer: LazyTimer::new() }
    }

    fn receive(&mut self, frame: Head) {
        self.frame = [HEADERS, CONTINUATION].contains(&frame.kind).then_some(frame);
        self.is_open &= frame.kind == CONTINUATION;
    }

    /// All that came has been received, but for so many bytes of the last frame.
    fn wait(&mut self, left: usize) {
        let goes_on = self.frame.is_some_and(|frame| left > 0 || frame.flags & END_HEADERS == 0);
        if goes_on && !self.is_open {
            self.timer.start(self.limit);
        }
        self.is_open = goes_on;
    }

    /// Ready once its end was waited for too long.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_open { self.timer.poll_expired(cx) } else { Poll::Pending }
    }
}

/// A client's stream whose frames are counted.
pub(super) struct Counted<S> {
    io: S,
    client: Rc<Client>,
    heads: Rc<Heads>,
    reading: Walk,
    writing: Walk,
    /// What is written is a head, in several frames.
    is_in_head: bool,
    allowance: Allowance,
    block: Block,
    /// The first frame of the head that is being read.
    beginning: Option<Head>,
    /// Frames read since others had their turn.
    turn: u32,
    /// The client is heard no more.
    is_parting: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Counted<S> {
    /// Of a stream that begins with the preface, which is no frame. A head may take so long.
    pub(super) fn new(io: S, client: Rc<Client>, heads: Rc<Heads>, header_timeout: Duration) -> Self {
        Counted {
            io,
            client,
            heads,
            reading: Walk::behind(PREFACE.len()),
            writing: Walk::default(),
            is_in_head: false,
            allowance: Allowance::new(),
            block: Block::new(header_timeout),
            beginning: None,
            turn: 0,
            is_parting: false,
        }
    }

    /// Tells the client why, if it takes that at once and nothing else is half said.
    fn part(&mut self, cx: &mut Context<'_>, why: GivenUp) {
        self.is_parting = true;
        self.client.give_up(why);
        tracing::debug!(peer = %self.client.connection.peer, ?why, "HTTP/2 client is heard no more");
        if self.may_interject() {
            let payload = [self.allowance.last.to_be_bytes(), ENHANCE_YOUR_CALM.to_be_bytes()];
            let mut frames = self.heads.frames.borrow_mut();
            frames.extend_from_slice(&frame(GOAWAY, 0, 0, payload.as_flattened()));
            let _ = Pin::new(&mut self.io).poll_write(cx, &frames);
        }
    }

    /// Whether the library has nothing half said.
    fn may_interject(&self) -> bool {
        self.writing.is_between_frames() && !self.is_in_head
    }

    /// Writes what is said beside the library.
    fn poll_interject(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut frames = self.heads.frames.borrow_mut();
        while !frames.is_empty() && self.writing.is_between_frames() && !self.is_in_head {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &frames))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => frames.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Where in what the library is about to write the reset of a request begins that may be malformed.
    fn find_refusal(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        if !self.heads.has_open() {
            return None;
        }
        let (mut ahead, mut rest) = (self.writing.clone(), bytes);
        while let Some(frame) = ahead.next(&mut rest) {
            let is_open = self.heads.is_open(frame.stream);
            if is_open && (frame.kind, frame.code) == (RST_STREAM, PROTOCOL_ERROR) {
                let end = bytes.len() - rest.len();
                return Some((end.checked_sub(Head::LENGTH + Head::CODE)?, frame.stream));
            }
            if frame.kind == HEADERS {
                self.heads.answered(frame.stream);
            }
        }
        None
    }

    fn sent(&mut self, bytes: &[u8]) {
        let Counted { writing, is_in_head, allowance, client, .. } = self;
        writing.pass(bytes, |frame| {
            if [HEADERS, CONTINUATION].contains(&frame.kind) {
                *is_in_head = frame.flags & END_HEADERS == 0;
            }
            if allowance.send(frame) {
                client.worker.metrics.give_up(GivenUp::Http2);
                tracing::debug!(peer = %client.connection.peer, ?frame, "HTTP/2 stream is malformed");
            }
        });
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.is_parting {
            return Pin::new(&mut this.io).poll_shutdown(cx);
        }
        if this.turn >= TURN {
            this.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buf) else {
            this.turn = 0;
            ready!(this.block.poll_overdue(cx));
            this.part(cx, GivenUp::Header);
            return Pin::new(&mut this.io).poll_shutdown(cx);
        };
        read?;
        let mut verdict = Ok(());
        let Counted { heads, reading, allowance, block, beginning, turn, .. } = this;
        reading.pass(&buf.filled()[before..], |frame| {
            *turn += 1;
            // A frame behind a head that goes on in none ends it.
            if frame.kind != CONTINUATION
                && let Some(head) = beginning.take()
            {
                heads.came(head.stream, head.flags & END_STREAM == 0);
            }
            if frame.kind == HEADERS && frame.stream > allowance.last {
                *beginning = Some(frame);
            }
            block.receive(frame);
            verdict = verdict.and_then(|()| allowance.receive(frame));
        });
        block.wait(reading.left);
        if let Some(head) = beginning.take_if(|_| !block.is_open) {
            heads.came(head.stream, head.flags & END_STREAM == 0);
        }
        let Err(why) = verdict else { return Poll::Ready(Ok(())) };
        buf.set_filled(before);
        this.part(cx, why);
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_parting {
            return Poll::Ready(Ok(buf.len()));
        }
        ready!(self.poll_interject(cx))?;
        let buf = match self.find_refusal(buf) {
            Some((0, stream)) => {
                self.heads.keep_back(stream);
                return Poll::Ready(Ok(Head::LENGTH + Head::CODE));
            }
            Some((at, _)) => &buf[..at],
            None => buf,
        };
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.sent(buf.get(..written).unwrap_or(buf));
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_parting {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        // Where something may have to be taken out, one after the other.
        if self.heads.has_open() {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            return self.poll_write(cx, first);
        }
        ready!(self.poll_interject(cx))?;
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let (sent, _) = buf.split_at(left.min(buf.len()));
            left -= sent.len();
            self.sent(sent);
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_parting {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_interject(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The property of [`fuzz::frames`](super::fuzz::frames).
#[cfg(any(test, fuzzing))]
pub(super) fn check(bytes: &[u8]) {
    let mut expected = Vec::new();
    let mut rest = bytes;
    while let [l0, l1, l2, kind, flags, s0, s1, s2, s3, behind @ ..] = rest {
        let length = u32::from_be_bytes([0, *l0, *l1, *l2]);
        let stream = u32::from_be_bytes([*s0 & 0x7f, *s1, *s2, *s3]);
        let code = match (*kind, length, behind) {
            (RST_STREAM, 4, [c0, c1, c2, c3, ..]) => u32::from_be_bytes([*c0, *c1, *c2, *c3]),
            (RST_STREAM, 4, _) => break,
            _ => 0,
        };
        expected.push((length, *kind, *flags, stream, code));
        rest = behind.get(length as usize..).unwrap_or_default();
    }
    for piece in [1, 5, bytes.len().max(1)] {
        let (mut walk, mut allowance) = (Walk::default(), Allowance::new());
        let (mut found, mut idle, mut verdict) = (Vec::new(), 0, Ok(()));
        let begin = Instant::now();
        for piece in bytes.chunks(piece) {
            walk.pass(piece, |head| {
                let code = if (head.kind, head.length) == (RST_STREAM, 4) { head.code } else { 0 };
                found.push((head.length, head.kind, head.flags, head.stream, code));
                let requests = allowance.requests;
                verdict = verdict.and_then(|()| allowance.receive(head));
                idle += u64::from(allowance.requests == requests && !is_part_of_body(head));
                let bearable = MAX_AHEAD + PER_USE * allowance.requests;
                let bearable = bearable + PER_SECOND * begin.elapsed().as_secs();
                match verdict {
                    Ok(()) => assert!(idle <= bearable, "{idle} are borne"),
                    Err(why) => {
                        assert!(idle > MAX_AHEAD || allowance.resets > MAX_RESETS, "{why:?} after {idle}")
                    }
                }
            });
        }
        assert_eq!(found, expected, "by {piece}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, stream: u32) -> Head {
        Head { length: 4, kind, flags: 0, stream, code: 0 }
    }

    #[test]
    fn heads_are_found_in_any_pieces() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for (kind, length) in [(4, 0), (1, 300), (3, 4), (0, 16_384), (6, 8), (3, 5), (8, 4)] {
            let length = u32::to_be_bytes(length);
            bytes.extend([&length[1..], &[kind, 0, 0x80, 0, 0, kind]].concat());
            bytes.resize(bytes.len() + u32::from_be_bytes(length) as usize, 0xff);
        }
        for piece in [1, 2, 8, 9, 10, 100, 16_000, bytes.len()] {
            let mut walk = Walk::behind(PREFACE.len());
            let mut found = Vec::new();
            for piece in bytes.chunks(piece) {
                walk.pass(piece, |head| {
                    found.push((head.kind, head.length, head.stream));
                    assert!((head.kind, head.length) != (RST_STREAM, 4) || head.code == u32::MAX);
                });
            }
            let expected =
                [(4, 0, 4), (1, 300, 1), (3, 4, 3), (0, 16_384, 0), (6, 8, 6), (3, 5, 3), (8, 4, 8)];
            assert_eq!(found, expected, "by {piece}");
            assert!(walk.is_between_frames());
        }
    }

    #[test]
    fn frames_for_nothing_are_bounded_and_use_brings_more() {
        const PING: u8 = 6;
        let mut allowance = Allowance::new();
        for stream in 0..100 {
            assert!(allowance.receive(frame(HEADERS, stream * 2 + 1)).is_ok());
            allowance.send(frame(DATA, stream));
        }
        let pings = (0..).take_while(|_| allowance.receive(frame(PING, 0)).is_ok()).count() as u64;
        assert_eq!(pings, MAX_AHEAD + 200 * PER_USE);
        allowance.counted_since -= Duration::from_secs(5);
        let pings = (0..).take_while(|_| allowance.receive(frame(PING, 0)).is_ok()).count() as u64;
        assert_eq!(pings, 5 * PER_SECOND);
        // The trailers of a stream are no request.
        assert_eq!(allowance.receive(frame(HEADERS, 1)), Err(GivenUp::Frames));
    }

    #[test]
    fn half_of_the_requests_may_be_taken_back_or_a_few() {
        let mut allowance = Allowance::new();
        let mut stream = 1;
        let mut reset = |allowance: &mut Allowance, every: u32| {
            for turn in 0..10_000 {
                stream += 2;
                assert!(allowance.receive(frame(HEADERS, stream)).is_ok());
                if turn % every == 0 && allowance.receive(frame(RST_STREAM, stream)).is_err() {
                    return turn;
                }
            }
            10_000
        };
        assert_eq!(reset(&mut allowance, 3), 10_000);
        assert_eq!(reset(&mut Allowance::new(), 1), MAX_RESETS as u32);
    }
}
