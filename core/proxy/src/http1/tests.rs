//! Requests as they are read: whole, byte by byte, pipelined, and mangled. The verdicts on heads and chunk lines
//! themselves are tabled in `tests/verdicts.rs`; what clients see of a connection is in `core/proxy/tests/http1.rs`.

mod verdicts;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Method;
use http::header::HeaderMap;
use http::uri::PathAndQuery;
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, duplex};
use tokio::time::timeout;

use super::chunked::{Chunked, Progress};
use super::head::{Framing, HeadJudge, HeadVerdict, Wishes};
use super::outbox::Outbox;
use super::wire::{Shared, Wire};
use super::*;
use crate::body::{ClientBody, Incoming, RequestBody, UploadFailure};
use crate::linger::{Linger, Stream};
use crate::pace::Pace;
use crate::reply::Fault;
use crate::upstream::{Http1, RequestHead};

pub(super) const GOOD: &str = "GET /a HTTP/1.1\r\nHost: a.example\r\n\r\n";
const BAD: &str = "GET /b HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx";

impl Default for Limits {
    fn default() -> Self {
        Limits { max_head_bytes: 64 * 1024, max_headers: 100, max_request_line: 16 * 1024 }
    }
}

/// A client that has sent these segments, and takes so many bytes of an answer at once.
pub(super) struct Script {
    segments: VecDeque<Vec<u8>>,
    takes: usize,
    taken: Vec<u8>,
}

impl Script {
    pub(super) fn new(segments: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Script { segments: segments.into_iter().collect(), takes: usize::MAX, taken: Vec::new() }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut segment) = self.segments.pop_front() else { return Poll::Pending };
        let rest = segment.split_off(segment.len().min(out.remaining()));
        out.put_slice(&segment);
        if !rest.is_empty() {
            self.segments.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(self.takes);
        self.taken.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| &slice[..]).collect::<Vec<_>>().concat();
        self.as_mut().poll_write(cx, &bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Stream for Script {
    fn spoil(&self) {}
}

/// A line for each request of a stream: what its head said, its body and trailers, or why it was refused.
fn requests(begin: &[u8], client: Script) -> Vec<String> {
    let io = Linger::new(Box::new(client) as Box<dyn Stream>, Pace::new(Duration::from_secs(60), None));
    let wire = Shared::new(Wire::new(io, BytesMut::from(begin), Limits::default()));
    let mut cx = Context::from_waker(Waker::noop());
    let mut seen = Vec::new();
    loop {
        let head = wire.lock().poll_head(&mut cx);
        let mut line = match head {
            Poll::Ready(Some(Ok(head))) => {
                let target = head.target.map(|target| target.to_string()).unwrap_or_default();
                let at = head.authority.map(|authority| format!("{authority} ")).unwrap_or_default();
                format!("{} {at}{target} {:?} {:?}", head.method, head.headers, wire.lock().wishes())
            }
            Poll::Ready(Some(Err(refusal))) => {
                seen.push(refusal.reason.to_owned());
                return seen;
            }
            Poll::Ready(None) => panic!("the client is still there"),
            Poll::Pending => return seen,
        };
        let body = Body::of(&wire).map_or(Some("-".into()), |mut body| read(&mut body, &mut cx));
        let broke_off = body.is_none();
        line.push_str(&body.unwrap_or_default());
        seen.push(line);
        if broke_off || !wire.lock().is_body_read() {
            return seen;
        }
    }
}

/// What there is of a body; none if it has ended badly, or not at all.
fn read(body: &mut Body, cx: &mut Context<'_>) -> Option<String> {
    let mut text = String::from(" ");
    loop {
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => text.push_str(&String::from_utf8_lossy(&data)),
                Err(frame) => text.push_str(&format!("{:?}", frame.into_trailers())),
            },
            Poll::Ready(None) => return Some(text),
            Poll::Ready(Some(Err(Fault::Screened(refusal)))) => return Some(text + refusal.reason),
            Poll::Ready(Some(Err(_))) | Poll::Pending => return None,
        }
    }
}

/// Reads `bytes` in every way they may arrive, and demands the same of all.
fn seen(bytes: &[u8]) -> Vec<String> {
    let bytewise = bytes.iter().map(|byte| vec![*byte]);
    let (begin, rest) = bytes.split_at(bytes.len() / 2);
    let expected = requests(b"", Script::new([bytes.to_vec()]));
    for seen in [
        requests(b"", Script::new(bytewise)),
        requests(begin, Script::new([rest.to_vec()])),
        requests(bytes, Script::new([])),
    ] {
        let differing = seen.iter().zip(&expected).find(|(seen, expected)| seen != expected);
        // Of several things that are wrong with a head, the first that arrives is told.
        let is_same = differing
            .is_none_or(|(seen, expected)| [seen, expected].iter().all(|line| line.starts_with("http.")));
        assert!(is_same && seen.len() == expected.len(), "{seen:#?} and {expected:#?}");
    }
    expected
}

/// Streams of good messages with a few bytes changed, the same in every run.
fn mangled_streams(count: usize) -> impl Iterator<Item = Vec<u8>> {
    const BYTES: &[u8] = b"\r\n\r\n  :;,/\t\x00015aFx#%\"<\x80";
    let stream = [
        GOOD,
        "POST /l HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5;a=b\r\nhello\r\n1\r\na\r\n0\r\nDigest: x\r\n\r\n",
        "GET http://a/ HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        GOOD,
    ]
    .concat();
    let mut state = 1u64;
    let mut below = move |bound: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % bound
    };
    std::iter::repeat_with(move || {
        let mut bytes = stream.clone().into_bytes();
        for _ in 0..1 + below(2) {
            let place = below(bytes.len());
            match below(3) {
                0 => bytes[place] = BYTES[below(BYTES.len())],
                1 => bytes.insert(place, BYTES[below(BYTES.len())]),
                _ => drop(bytes.remove(place)),
            }
        }
        bytes
    })
    .take(count)
}

#[test]
fn only_options_of_a_name_alone_is_about_the_server() {
    for (line, target) in [
        ("OPTIONS http://a", "*"),
        ("OPTIONS http://a/", "/"),
        ("OPTIONS http://a?b", "/?b"),
        ("OPTIONS /", "/"),
        ("GET http://a", "/"),
    ] {
        let (method, at) = (&line[..line.find(' ').unwrap()], if line.contains("//") { "a " } else { "" });
        let seen = seen(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        assert!(seen[0].starts_with(&format!("{method} {at}{target} ")), "{line}: {seen:?}");
    }
}

#[test]
fn mangled_streams_fare_the_same_however_they_arrive() {
    let refused =
        mangled_streams(3000).filter(|stream| seen(stream).iter().any(|line| line.contains("http.")));
    assert!(refused.count() > 500);
}

#[test]
fn requests_are_read_as_they_were_sent() {
    let stream = [
        GOOD,
        "POST /l HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe\nlo",
        "\r\nPOST http://a/c?d HTTP/1.1\r\nHost: a\r\nTE: gzip, Trailers\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5;a=b\r\nhello\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nDigest: x\r\nB:\ty \r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: x, Keep-Alive\r\nA:\t b c \t\r\nA:\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close,x\r\nExpect: 100-Continue\r\n\r\n",
    ]
    .concat();
    let wishes = |close, keep_alive, go_ahead, trailers| {
        format!("{:?}", head::Wishes { close, keep_alive, go_ahead, trailers, ..Default::default() })
    };
    let none = wishes(false, false, false, false);
    assert_eq!(
        seen(stream.as_bytes()),
        [
            format!(r#"GET /a {{"host": "a.example"}} {none}-"#),
            format!("POST /l {{\"host\": \"a\", \"content-length\": \"5\"}} {none} he\nlo"),
            format!(
                r#"POST a /c?d {{"host": "a", "te": "gzip, Trailers", "transfer-encoding": "chunked"}} {} helloabcdefghijklmnopqrstuvwxyzOk({{"digest": "x", "b": "y"}})"#,
                wishes(false, false, false, true)
            ),
            format!(
                r#"GET / {{"connection": "x, Keep-Alive", "a": "b c", "a": ""}} {}-"#,
                wishes(false, true, false, false)
            ),
            format!(
                r#"OPTIONS * {{"host": "a", "connection": "close,x", "expect": "100-Continue"}} {}-"#,
                wishes(true, false, true, false)
            ),
        ]
    );
}

#[test]
fn nothing_behind_a_refusal_is_read() {
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let refused = seen([GOOD, GOOD, BAD, GOOD].concat().as_bytes());
    assert_eq!((refused.len(), refused[2].as_str()), (3, "http.length_repeated"));
    let refused = seen([GOOD, chunked, "5\r\nhello\r\n5 \r\nhello\r\n0\r\n\r\n", GOOD].concat().as_bytes());
    assert!(refused.len() == 2 && refused[1].ends_with(" hellohttp.chunk_size"), "{refused:?}");
}

#[test]
fn every_head_that_is_accepted_can_be_taken_apart() {
    for byte in 0..=255u8 {
        for (before, behind) in [
            ("GET /x", "y HTTP/1.1\r\nHost: a"),
            ("GET /?x", "y HTTP/1.1\r\nHost: a"),
            ("GET http://a/", "y HTTP/1.1\r\nHost: a"),
            ("GET http://a?", "y HTTP/1.1\r\nHost: a"),
            ("GE", "T / HTTP/1.1\r\nHost: a"),
            ("GET / HTTP/1.1\r\nHost: a", ""),
            ("GET / HTTP/1.1\r\nHost: a\r\nA", "B: c"),
            ("GET / HTTP/1.1\r\nHost: a\r\nA:", ""),
            ("GET / HTTP/1.1\r\nHost: a\r\nA: b", "c"),
        ] {
            let head = [before.as_bytes(), &[byte], behind.as_bytes(), b"\r\n\r\n"].concat();
            let mut judge = HeadJudge::default();
            if judge.advance(&head, &Limits::default()).is_ok() {
                let taken = judge.take_apart(&Bytes::from(head));
                assert!(taken.is_ok(), "byte {byte:#x} behind {before:?}");
            }
        }
    }
}

#[test]
fn what_is_gathered_is_written_in_order_however_little_is_taken() {
    let large = |byte: u8| Bytes::from(vec![byte; 5000]);
    for takes in [1, 7, 4999, 5001, 100_000] {
        let mut out = Outbox::default();
        out.text().extend_from_slice(b"head");
        out.push(Bytes::from_static(b" small "));
        out.push(large(b'a'));
        out.push(large(b'b'));
        out.text().extend_from_slice(b" between ");
        out.push(large(b'c'));
        out.text().extend_from_slice(b" end");
        let mut client = Script { takes, ..Script::new([]) };
        assert!(out.poll_write(&mut client, &mut Context::from_waker(Waker::noop())).is_ready());
        let [a, b, c] = [b'a', b'b', b'c'].map(large);
        let expected = [b"head small ", &a[..], &b[..], b" between ", &c[..], b" end"].concat();
        assert!(client.taken == expected && out.is_empty());
    }
}

#[test]
fn no_more_is_gathered_than_is_written_at_once() {
    for (length, expected) in [(16 * 1024, 4), (3 * 1024, 8)] {
        let (mut out, mut pushed) = (Outbox::default(), 0);
        while out.has_room() {
            out.push(Bytes::from(vec![b'x'; length]));
            pushed += 1;
        }
        assert_eq!(pushed, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_is_not_waited_for_while_there_is_no_room_for_what_it_has_sent() {
    let head = "POST /a HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    // Of a first piece nothing is copied, further ones gather.
    let client = Script::new([head.into(), b"1\r\nx\r\n1\r\ny\r\n".to_vec()]);
    let patience = Duration::from_secs(30);
    let io = Linger::new(Box::new(client) as Box<dyn Stream>, Pace::new(patience, None));
    let wire = Shared::new(Wire::new(io, BytesMut::new(), Limits::default()));
    assert!(poll_fn(|cx| wire.lock().poll_head(cx)).await.is_some_and(|head| head.is_ok()));
    let incoming = Incoming::Http1(Body::of(&wire).unwrap());
    let (body, upload) =
        RequestBody::stream(ClientBody::new(incoming, Pace::new(patience, None)), Vec::new(), None);
    let (ours, mut theirs) = duplex(1);
    let mut upstream = Http1::new(ours);
    let (method, target, headers) = (Method::POST, PathAndQuery::from_static("/a"), HeaderMap::new());
    let head = RequestHead {
        method: &method,
        target: &target,
        headers: &headers,
        told: &[],
        client: None,
        upgrade: None,
    };
    upstream.start(&head, body);
    for piece in [b"\nx", b"\ny"] {
        let mut sent = Vec::new();
        while !sent.ends_with(piece) {
            tokio::select! {
                _ = poll_fn(|cx| upstream.poll_head(cx)) => panic!("nobody has answered"),
                byte = theirs.read_u8() => sent.push(byte.unwrap()),
            }
        }
        if piece == b"\nx" {
            let head = timeout(2 * patience, poll_fn(|cx| upstream.poll_head(cx))).await;
            assert!(head.is_err() && !upload.waits_for_client() && upload.take_failure().is_none());
        }
    }
    // From now on the client is.
    let head = timeout(patience / 2, poll_fn(|cx| upstream.poll_head(cx))).await;
    assert!(head.is_err() && upload.waits_for_client());
    let head = timeout(patience, poll_fn(|cx| upstream.poll_head(cx))).await;
    assert!(head.is_ok_and(|head| head.is_err()));
    assert!(matches!(upload.take_failure(), Some(UploadFailure::Fault(Fault::BodyTimeout))));
}
