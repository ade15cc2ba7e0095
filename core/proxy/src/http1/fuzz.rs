//! What has to hold for whatever bytes come: properties, for fuzzers (`tests/fuzz`), for property tests, and for the
//! inputs that fuzzers have found. Each of these functions panics if its property does not hold.

#![allow(clippy::panic, reason = "that is how a property fails")]

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Version};
use portcullis_plugin::Request;
use portcullis_plugin::path::normalise;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunked::{Chunked, Progress};
use super::wire::{Shared, Wire};
use super::{Body, Framing, Limits, split_authority};
use crate::body::{ClientBody, Incoming, RequestBody};
use crate::generation::ListenerLimits;
use crate::head::understand;
use crate::hops::is_hop_by_hop;
use crate::linger::{Linger, Stream};
use crate::upstream::{Http1, RequestHead};

/// Of every request that is accepted of a client's bytes, the upstream gets exactly one request, which reads as it was
/// understood, in the one way in which it can be read.
pub fn request(client: &[u8]) {
    within_runtime(|| {
        let io: Box<dyn Stream> = Box::new(Memory::new(client, usize::MAX));
        let wire = Shared::new(Wire::new(Linger::new(io, HOUR), BytesMut::new(), limits()));
        while let Some((request, sent)) = forward(&wire) {
            assert_eq!(read_strictly(&sent.concat()).head, described(&request));
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

/// A response is read in one way however it arrives, and its head has nothing in it that concerns its connection or
/// contradicts its framing.
pub fn response(upstream: &[u8]) {
    within_runtime(|| {
        for method in [Method::GET, Method::HEAD] {
            let (at_once, bytewise) =
                (received(upstream, usize::MAX, &method), received(upstream, 1, &method));
            assert_eq!(at_once, bytewise);
        }
    });
}

/// Longer than anything here takes.
const HOUR: Duration = Duration::from_secs(3600);

fn limits() -> Limits {
    Limits { max_head_bytes: 16 << 10, max_headers: 100, max_request_line: 16 << 10 }
}

fn listener_limits() -> ListenerLimits {
    ListenerLimits {
        connections: 1,
        header_bytes: 16 << 10,
        header_count: 100,
        header_timeout: HOUR,
        body_timeout: HOUR,
        write_timeout: HOUR,
        idle_timeout: HOUR,
        http2_streams: 1,
    }
}

/// Timers want one.
fn within_runtime(act: impl FnOnce()) {
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
    let body = Body::of(wire)
        .map(|body| RequestBody::stream(ClientBody::new(Incoming::Http1(body), HOUR), Vec::new(), None).0);
    let sink = Memory::new(&[], usize::MAX);
    let sent = sink.written.clone();
    let mut upstream = Http1::new(Silent(sink));
    let head = RequestHead {
        method: request.method(),
        target: request.target(),
        headers: request.headers(),
        told: &[],
        client: None,
        upgrade: None,
    };
    upstream.start(&head, body.unwrap_or(RequestBody::Empty));
    // Once all is written, the response is waited for, which never comes.
    let is_whole = upstream.poll_head(&mut cx).is_pending() && wire.lock().is_body_read();
    let sent = std::mem::take(&mut *sent.lock().unwrap_or_else(PoisonError::into_inner));
    is_whole.then_some((request, sent))
}

/// A request as whoever reads it strictly reads it.
struct Seen {
    head: Vec<String>,
}

/// The lines of a request's head but for its framing, sorted behind the first.
fn described(request: &Request) -> Vec<String> {
    let first = format!("{} {} HTTP/1.1", request.method(), request.target());
    let kept = request.headers().iter().filter(|(name, value)| {
        !matches!(name.as_str(), "content-length" | "expect") && !is_hop_by_hop(name, value)
    });
    let fields = kept.map(|(name, value)| format!("{name}: {}", value.as_bytes().escape_ascii()));
    sorted(first, fields.collect())
}

fn sorted(first: String, mut fields: Vec<String>) -> Vec<String> {
    fields.sort();
    [vec![first], fields].concat()
}

/// Reads one request (RFC 9112) without any tolerance, and without anything of the gateway's own reading.
fn read_strictly(bytes: &[u8]) -> Seen {
    let text = bytes.escape_ascii().to_string();
    let mut rest = bytes;
    let first = line(&mut rest);
    let words: Vec<&[u8]> = first.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = words[..] else { panic!("not a request line: {text}") };
    assert!(!method.is_empty() && method.iter().all(u8::is_ascii_graphic), "{text}");
    assert!(target.starts_with(b"/") || (target == b"*" && method == b"OPTIONS"), "{text}");
    assert!(target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#'), "{text}");
    let (mut fields, mut length, mut is_chunked, mut hosts) = (Vec::new(), None, false, 0);
    loop {
        let field = line(&mut rest);
        if field.is_empty() {
            break;
        }
        let (name, value) = split_field(field);
        match name {
            b"content-length" => {
                assert!(length.is_none() && value.iter().all(u8::is_ascii_digit), "{text}");
                length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse::<usize>().ok());
                assert!(length.is_some(), "{text}");
                continue;
            }
            b"transfer-encoding" => {
                assert!(!is_chunked && value == b"chunked", "{text}");
                is_chunked = true;
                continue;
            }
            b"host" => {
                hosts += 1;
                assert!(hosts == 1 && split_authority(value).is_some(), "{text}");
            }
            b"te" => assert_eq!(value, b"trailers", "{text}"),
            b"connection" | b"expect" | b"keep-alive" | b"upgrade" | b"proxy-connection" => panic!("{text}"),
            _ => {}
        }
        fields.push(format!("{}: {}", name.escape_ascii(), value.escape_ascii()));
    }
    assert!(length.is_none() || !is_chunked, "{text}");
    rest.advance(length.unwrap_or(0));
    while is_chunked {
        let size = line(&mut rest);
        let size = std::str::from_utf8(size).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let Some(size) = size else { panic!("not a chunk: {text}") };
        if size > 0 {
            rest.advance(size);
            assert!(line(&mut rest).is_empty(), "{text}");
            continue;
        }
        while let field @ [_, ..] = line(&mut rest) {
            split_field(field);
        }
        break;
    }
    assert!(rest.is_empty(), "more than one request: {text}");
    Seen { head: sorted(String::from_utf8_lossy(first).into_owned(), fields) }
}

/// The next line, which ends in CRLF and has no other CR or LF.
fn line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else { panic!("no line") };
    let (line, behind) = rest.split_at(end);
    assert!(!line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{}", line.escape_ascii());
    *rest = &behind[2..];
    line
}

fn split_field(field: &[u8]) -> (&[u8], &[u8]) {
    let colon = field.iter().position(|byte| *byte == b':');
    let Some((name, value)) = colon.and_then(|at| field.split_at_checked(at)) else { panic!("no field") };
    let is_name = |byte: &u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
    assert!(!name.is_empty() && name.iter().all(is_name), "{}", field.escape_ascii());
    let value = value.strip_prefix(b": ").unwrap_or_default();
    let is_padded = value.trim_ascii().len() < value.len();
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    assert!(!is_padded && !value.iter().any(is_control), "{}", field.escape_ascii());
    (name, value)
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

/// What is made of a response that arrives in steps: its head, its body, how it ended.
fn received(upstream: &[u8], step: usize, method: &Method) -> Option<(String, Vec<u8>, String)> {
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
    assert!(head.headers().get_all(http::header::CONTENT_LENGTH).iter().count() < 2, "{head:?}");
    assert!(!head.status().is_informational() && head.version() == Version::HTTP_11, "{head:?}");
    let (mut body, mut trailers) = (Vec::new(), None);
    let end = loop {
        match http.poll_body(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => body.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            Poll::Ready(None) => break "end".to_owned(),
            Poll::Ready(Some(Err(broken))) => break broken.to_string(),
            Poll::Pending => panic!("the stream has ended"),
        }
    };
    Some((format!("{head:?}"), body, format!("{end} {trailers:?}")))
}

/// A peer that has sent this, in steps, and takes everything.
struct Memory {
    sent: Bytes,
    step: usize,
    /// Write by write, shared with who looks at it; by way of a lock because a client's stream may change threads.
    written: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Memory {
    fn new(sent: &[u8], step: usize) -> Self {
        Memory { sent: Bytes::copy_from_slice(sent), step, written: Arc::default() }
    }
}

impl AsyncRead for Memory {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
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

/// An upstream that takes a request and never answers.
struct Silent(Memory);

impl AsyncRead for Silent {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Silent {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

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

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn requests_reach_the_upstream_as_one_request_each(stream in streams()) {
            request(&stream);
        }

        #[test]
        fn chunked_bodies_are_read_in_one_way(pieces in vec(select(PIECES), 0..12)) {
            chunked(pieces.concat().as_bytes());
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
            let io: Box<dyn Stream> = Box::new(Memory::new(&stream, usize::MAX));
            let wire = Shared::new(Wire::new(Linger::new(io, HOUR), BytesMut::new(), limits()));
            let (_, sent) = forward(&wire).unwrap();
            let longest = sent.iter().map(Vec::len).max().unwrap();
            assert!(sent.len() < 10 && longest < 17 * 1024, "{} writes of up to {longest}", sent.len());
            assert!(sent.concat().ends_with(b"1\r\nx\r\n0\r\n\r\n"));
        });
    }

    #[test]
    fn the_strict_reader_is_strict() {
        let reads =
            |bytes: &'static str| std::panic::catch_unwind(|| read_strictly(bytes.as_bytes())).is_ok();
        assert!(reads("GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert!(reads("POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab"));
        assert!(reads("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n"));
        for bad in [
            "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nx: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nx : a\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\nab",
            "GET /#a HTTP/1.1\r\n\r\n",
        ] {
            assert!(!reads(bad), "{bad:?}");
        }
    }
}
