//! What has to hold for whatever bytes come: properties, for fuzzers (`tests/fuzz`), for property tests, and for the
//! inputs that fuzzers have found. Each of these functions panics if its property does not hold.

#![allow(clippy::panic, reason = "that is how a property fails")]

pub(crate) mod strict;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, Method, Response, Version};
use portcullis_plugin::Request;
use portcullis_plugin::path::normalise;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::strict::described;
use super::chunked::{Chunked, Progress};
use super::response::{Manner, write_head};
use super::wire::{Shared, Wire};
use super::{Body, Framing, Limits};
use crate::body::{ClientBody, Incoming, RequestBody};
use crate::generation::ListenerLimits;
use crate::head::understand;
use crate::hops::is_hop_by_hop;
use crate::linger::{Linger, Stream};
use crate::pace::Pace;
use crate::upstream::{Http1, RequestHead};

/// Of every request that is accepted of a client's bytes, the upstream gets exactly one request, which reads as it was
/// understood, in the one way in which it can be read.
pub fn request(client: &[u8]) {
    within_runtime(|| {
        let wire = wire(client);
        while let Some((request, sent)) = forward(&wire) {
            assert_eq!(strict::request(&sent.concat()).head, described(&request));
            let path = request.path();
            assert!(path == "*" || normalise(path).is_ok_and(|again| again == path), "{path}");
        }
    });
}

/// A chunked body is read in one way however it arrives, and in the same way after the gateway wrote it.
pub fn chunked(body: &[u8]) {
    let (at_once, bytewise) = (dechunked(&[body]), dechunked(&body.chunks(1).collect::<Vec<_>>()));
    assert_eq!(at_once, bytewise);
    let Some((data, trailers)) = at_once else { return };
    let (mut framing, mut written) = (Framing::Chunked { begun: false }, Vec::new());
    if !data.is_empty() {
        framing.begin_chunk(data.len(), &mut written);
        written.extend_from_slice(&data);
    }
    framing.end(Some(&trailers), &mut written);
    assert_eq!(dechunked(&[&written]), Some((data, trailers)));
}

/// A response is read in one way however it arrives, its head has nothing in it that concerns its connection or
/// contradicts its framing, and the client gets one response, which reads as it was understood.
pub fn response(upstream: &[u8]) {
    within_runtime(|| {
        for method in [Method::GET, Method::HEAD] {
            let (at_once, bytewise) =
                (received(upstream, usize::MAX, &method), received(upstream, 1, &method));
            assert_eq!(at_once, bytewise);
            if let Some(received) = at_once {
                passed_on(&received, method == Method::HEAD);
            }
        }
    });
}

/// Longer than anything here takes.
const HOUR: Duration = Duration::from_secs(3600);

fn limits() -> Limits {
    Limits { max_head_bytes: 16 << 10, max_headers: 100, max_request_line: 16 << 10 }
}

pub(crate) fn listener_limits() -> ListenerLimits {
    ListenerLimits {
        connections: 1,
        header_bytes: 16 << 10,
        header_count: 100,
        header_timeout: HOUR,
        body_timeout: HOUR,
        write_timeout: HOUR,
        min_rate: None,
        idle_timeout: HOUR,
        keepalive: None,
        http2_streams: 1,
    }
}

/// Timers want one.
pub(crate) fn within_runtime(act: impl FnOnce()) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => panic!("no runtime: {error}"),
        };
    }
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        act();
    });
}

/// The next request of a client, and what the upstream gets of it, write by write; none if there is none, or if it is
/// refused.
fn forward(wire: &Shared) -> Option<(Request, Vec<Vec<u8>>)> {
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Some(Ok(head))) = wire.lock().poll_head(&mut cx) else { return None };
    let (request, fault) = understand(head, &listener_limits());
    if fault.is_some() {
        return None;
    }
    let body = Body::of(wire).map(|body| {
        RequestBody::stream(ClientBody::new(Incoming::Http1(body), Pace::new(HOUR, None)), Vec::new(), None).0
    });
    let sent = sent(&request, body.unwrap_or(RequestBody::Empty))?;
    wire.lock().is_body_read().then_some((request, sent))
}

/// A connection to a client that has sent this.
fn wire(client: &[u8]) -> Shared {
    let io: Box<dyn Stream> = Box::new(Memory::new(client, usize::MAX));
    Shared::new(Wire::new(Linger::new(io, Pace::new(HOUR, None)), BytesMut::new(), limits()))
}

/// What the upstream gets of a request, write by write; none if its body breaks off.
pub(crate) fn sent(request: &Request, body: RequestBody) -> Option<Vec<Vec<u8>>> {
    let io = Memory::open(&[]);
    let written = io.written.clone();
    let mut upstream = Http1::new(io);
    let head = RequestHead {
        method: request.method(),
        target: request.target(),
        headers: request.headers(),
        told: &[],
        client: None,
        upgrade: None,
    };
    upstream.start(&head, body);
    // Once all is written, the response is waited for, which never comes.
    let is_whole = upstream.poll_head(&mut Context::from_waker(Waker::noop())).is_pending();
    let written = std::mem::take(&mut *written.lock().unwrap_or_else(PoisonError::into_inner));
    is_whole.then_some(written)
}

/// Data and trailers of a chunked body that comes in these pieces; none if it is refused, or has no end.
fn dechunked(pieces: &[&[u8]]) -> Option<(Vec<u8>, HeaderMap)> {
    let (mut chunked, mut inbox, mut data) = (Chunked::new(), BytesMut::new(), Vec::new());
    for piece in pieces {
        inbox.extend_from_slice(piece);
        loop {
            match chunked.advance(&mut inbox, &limits()).ok()? {
                Progress::Data(more) => data.extend_from_slice(&more),
                Progress::More => break,
                Progress::End(trailers) => return Some((data, trailers)),
            }
        }
    }
    None
}

/// What is made of a response.
#[derive(Debug)]
struct Received {
    head: Response<()>,
    framing: Framing,
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// Why it is incomplete.
    broken: Option<String>,
}

impl PartialEq for Received {
    fn eq(&self, other: &Self) -> bool {
        let read = |received: &Self| {
            let Received { head, framing, pieces, trailers, broken } = received;
            (format!("{head:?}"), *framing, pieces.concat(), trailers.clone(), broken.clone())
        };
        read(self) == read(other)
    }
}

/// What is made of a response that arrives in steps; none if it has no head.
fn received(upstream: &[u8], step: usize, method: &Method) -> Option<Received> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut http = Http1::new(Memory::new(upstream, step));
    let target = http::uri::PathAndQuery::from_static("/");
    let head = RequestHead {
        method,
        target: &target,
        headers: &HeaderMap::new(),
        told: &[],
        client: None,
        upgrade: None,
    };
    http.start(&head, RequestBody::Empty);
    let Poll::Ready(Ok(head)) = http.poll_head(&mut cx) else { return None };
    assert!(!head.headers().iter().any(|(name, value)| is_hop_by_hop(name, value)), "{head:?}");
    assert!(head.headers().get_all(CONTENT_LENGTH).iter().count() < 2, "{head:?}");
    assert!(!head.status().is_informational() && head.version() == Version::HTTP_11, "{head:?}");
    let framing = Framing::of_response(*method == Method::HEAD, true, head.status(), &http.size_hint());
    let (mut pieces, mut trailers) = (Vec::new(), None);
    let broken = loop {
        match http.poll_body(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => pieces.push(data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            Poll::Ready(None) => break None,
            Poll::Ready(Some(Err(broken))) => break Some(broken.to_string()),
            Poll::Pending => panic!("the stream has ended"),
        }
    };
    Some(Received { head, framing, pieces, trailers, broken })
}

/// A client that takes trailers gets a response as it was received, or notices that it is incomplete.
fn passed_on(received: &Received, is_head: bool) {
    let (mut head, ()) = received.head.clone().into_parts();
    if !is_head {
        head.headers.remove(CONTENT_LENGTH);
    }
    let (mut framing, mut text) = (received.framing, Vec::new());
    write_head(&head, framing, Manner { is_1_1: true, keeps: true }, &mut text);
    for piece in &received.pieces {
        assert_eq!(framing.begin_chunk(piece.len(), &mut text), Some(()), "{received:?}");
        text.extend_from_slice(piece);
        framing.end_chunk(&mut text);
    }
    if received.broken.is_some() {
        assert!(!matches!(framing, Framing::None | Framing::Length(0)), "{received:?}");
        return;
    }
    assert_eq!(framing.end(received.trailers.as_ref(), &mut text), Some(()), "{received:?}");
    let seen = strict::response(&text, is_head);
    let fields = |headers: &HeaderMap| -> Vec<String> {
        let kept = headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH);
        kept.map(|(name, value)| strict::shown(name.as_str().as_bytes(), value.as_bytes())).collect()
    };
    let is_dated = head.headers.contains_key(DATE);
    let told = seen.head.iter().skip(1).filter(|line| is_dated || !line.starts_with("date: "));
    let expected = strict::sorted(String::new(), fields(&head.headers));
    assert!(told.eq(expected.iter().skip(1)), "{seen:?} of {received:?}");
    let trailers = received.trailers.as_ref().filter(|_| matches!(framing, Framing::Chunked { .. }));
    assert_eq!(
        (seen.body, seen.trailers),
        (received.pieces.concat(), trailers.map(fields).unwrap_or_default())
    );
}

/// A peer that has sent this, in steps, and takes everything.
pub(crate) struct Memory {
    sent: Bytes,
    step: usize,
    /// Nothing follows for now; else the stream ends there.
    stays: bool,
    /// Write by write, shared with who looks at it; by way of a lock because a client's stream may change threads.
    written: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Memory {
    fn new(sent: &[u8], step: usize) -> Self {
        Memory { sent: Bytes::copy_from_slice(sent), step, stays: false, written: Arc::default() }
    }

    /// One that has sent this, and stays.
    pub(crate) fn open(sent: &[u8]) -> Self {
        Memory { stays: true, ..Memory::new(sent, usize::MAX) }
    }
}

impl AsyncRead for Memory {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stays && self.sent.is_empty() {
            return Poll::Pending;
        }
        let count = self.sent.len().min(self.step).min(out.remaining());
        out.put_slice(&self.sent.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Memory {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(bytes.to_vec());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Stream for Memory {
    fn spoil(&self) {}
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use crate::fuzz::{downgrade, forwarded, frames};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    /// Every input that is kept for a target, whoever found it.
    fn replay(target: &str, property: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds").join(target);
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let count = files.map(|file| property(&fs::read(file).unwrap())).count();
        assert!(count > 3, "{count} inputs for {target}");
    }

    #[test]
    fn what_fuzzers_found_holds() {
        replay("request", request);
        replay("chunked", chunked);
        replay("response", response);
        replay("downgrade", downgrade);
        replay("frames", frames);
        replay("forwarded", forwarded);
    }

    /// What heads are made of, and mangled with.
    const PIECES: &[&str] = &[
        "GET ",
        "POST ",
        "OPTIONS ",
        "*",
        "/",
        "/a",
        "/../",
        "/%2e",
        "%2F",
        "?q=1",
        "http://a",
        "https://a:80",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        "\r\n",
        "\r\n\r\n",
        "\n",
        "\r",
        "Host: a\r\n",
        "Host: b\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: ",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding:",
        "Connection: x-a, te, host\r\n",
        "X-A: ",
        "X-A: 1\r\n",
        "TE: trailers\r\n",
        "Expect: 100-continue\r\n",
        "Cookie: a=1\r\n",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "0\r\nX-T: 1\r\n\r\n",
        "hello",
        ";x=y",
        ":",
        " ",
        "\t",
        "\0",
        ",",
        "\u{e9}",
        "5",
        "Upgrade: h2c\r\n",
    ];

    /// What paths over HTTP/2 are made of, and fields.
    const PATHS: &[&str] =
        &["a", "/", "//", "..", "%2e", "%2f", ";", "?", "#", "\\", "\"{}", "\u{e9}", " ", "\r", "*"];
    const FIELDS: &[&str] = &[
        "host:a\n",
        "host:b\n",
        "content-length:0\n",
        "content-length:5\n",
        "content_length:5\n",
        "transfer-encoding:chunked\n",
        "te:trailers\n",
        "te:gzip\n",
        "connection:x-a\n",
        "expect:100-continue\n",
        "cookie:a=1\n",
        "cookie:\n",
        "x-a:1\n",
        "x-a: 1\n",
        "x-a:b\rc\n",
        "X-B:1\n",
        "upgrade:h2c\n",
        "http2-settings:AAMAAABk\n",
    ];
    /// What is said of a request's origin, and where.
    const NAMES: &[&str] =
        &["x-forwarded-for", "x-forwarded-for", "forwarded", "x_forwarded_for", "x-real-ip", "host"];
    const NODES: &[&str] = &[
        "10.0.0.2",
        "10.0.0.3:80",
        "6.6.6.6",
        "1.2.3.4:5",
        "::1",
        "[fd00::1]",
        "[fd00::2]:8",
        "::ffff:10.0.0.4",
        "unknown",
        "",
        " ",
        "\u{a0}",
    ];

    /// A stream of requests, most of which are good but for something.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let usual = select(
            &[
                "GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n",
                "POST /a//b/../c HTTP/1.1\r\nHost: A.b:80\r\nContent-Length: 5\r\nX-A: \tb \r\n\r\nhello",
                "POST http://a/ HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te, x-a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
                "OPTIONS * HTTP/1.1\r\nHost: a\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n",
                "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            ][..],
        );
        let edit = (any::<prop::sample::Index>(), 0..3_usize, select(PIECES));
        (vec(usual, 1..4), vec(edit, 0..4)).prop_map(|(requests, edits)| {
            let mut stream = requests.concat().into_bytes();
            for (place, removed, piece) in edits {
                let place = place.index(stream.len());
                let end = (place + removed).min(stream.len());
                stream.splice(place..end, piece.bytes());
            }
            stream
        })
    }

    /// More cases if `PROPTEST_CASES` says so.
    fn config() -> ProptestConfig {
        let config = ProptestConfig::default();
        ProptestConfig { cases: config.cases.max(2000), failure_persistence: None, ..config }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn requests_reach_the_upstream_as_one_request_each(stream in streams()) {
            request(&stream);
        }

        #[test]
        fn chunked_bodies_are_read_in_one_way(pieces in vec(select(PIECES), 0..12)) {
            chunked(pieces.concat().as_bytes());
        }

        #[test]
        fn requests_over_http2_reach_the_upstream_as_one_request_each(
            kind in select(&[":method:GET\n", ":method:OPTIONS\n", ":method:CONNECT\n:protocol:websocket\n"][..]),
            path in vec(select(PATHS), 0..4),
            fields in vec(select(FIELDS), 0..6),
        ) {
            let lines = format!("{kind}:scheme:http\n:authority:a\n:path:/{}\n{}", path.concat(), fields.concat());
            downgrade(lines.as_bytes());
        }

        #[test]
        fn whoever_trusts_the_gateway_comes_to_the_same_client(
            lines in vec((select(NAMES), vec(select(NODES), 0..4)), 0..4),
        ) {
            let lines = lines.into_iter().map(|(name, nodes)| format!("{name}:{}\n", nodes.join(",")));
            forwarded(lines.collect::<String>().as_bytes());
        }

        #[test]
        fn frames_are_found_however_they_arrive(
            heads in vec((0..40_u32, 0..10_u8, any::<u8>(), 0..9_u32), 0..60),
            repeated in 1..40_usize,
        ) {
            let frame = |&(length, kind, flags, stream): &(u32, u8, u8, u32)| {
                [&length.to_be_bytes()[1..], &[kind, flags], &stream.to_be_bytes(), &vec![0; length as usize]].concat()
            };
            frames(&heads.iter().flat_map(frame).collect::<Vec<_>>().repeat(repeated));
        }

        #[test]
        fn responses_are_read_in_one_way(
            status in select(&["200 OK", "204 No", "304 Same", "100 Continue\r\n\r\nHTTP/1.1 200 OK", "101 Up"][..]),
            pieces in vec(select(PIECES), 0..10),
        ) {
            response(format!("HTTP/1.1 {status}\r\n{}", pieces.concat()).as_bytes());
        }
    }

    #[test]
    fn small_chunks_leave_together_and_no_more_of_them_than_is_gathered() {
        within_runtime(|| {
            let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            let stream = [&head[..], &b"1\r\nx\r\n".repeat(10_000), b"0\r\n\r\n"].concat();
            let (_, sent) = forward(&wire(&stream)).unwrap();
            let longest = sent.iter().map(Vec::len).max().unwrap();
            assert!(sent.len() < 10 && longest < 17 * 1024, "{} writes of up to {longest}", sent.len());
            assert!(sent.concat().ends_with(b"1\r\nx\r\n0\r\n\r\n"));
        });
    }
}
