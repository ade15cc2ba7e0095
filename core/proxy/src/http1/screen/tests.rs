//! The stream as hyper reads it: whole, byte by byte, pipelined, behind a refusal, and after a timeout. The verdicts on
//! heads and chunk lines themselves are tabled in `tests/verdicts.rs`.

mod service;
mod verdicts;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Waker;

use super::*;

const GOOD: &str = "GET /a HTTP/1.1\r\nHost: a.example\r\n\r\n";
const BAD: &str = "GET /b HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx";

/// A client that has sent these segments and waits for an answer, or has gone.
struct Script {
    segments: VecDeque<Vec<u8>>,
    gone: bool,
}

impl Script {
    fn whole(bytes: &[u8]) -> Script {
        let segments = if bytes.is_empty() { VecDeque::new() } else { [bytes.to_vec()].into() };
        Script { segments, gone: false }
    }

    fn bytewise(bytes: &[u8]) -> Script {
        Script { segments: bytes.iter().map(|&byte| vec![byte]).collect(), gone: false }
    }

    fn then_gone(mut self) -> Script {
        self.gone = true;
        self
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.segments.pop_front() {
            Some(mut segment) => {
                let rest = segment.split_off(segment.len().min(out.remaining()));
                out.put_slice(&segment);
                if !rest.is_empty() {
                    self.segments.push_front(rest);
                }
                Poll::Ready(Ok(()))
            }
            None if self.gone => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

/// How a connection that was read for as long as it gave anything ended.
#[derive(Debug, PartialEq)]
enum End {
    Waiting,
    Eof,
    Error(Refusal),
}

/// Limits without clocks, for tests that stay outside a runtime.
fn patient() -> Limits {
    Limits { header_timeout: Duration::MAX, idle_timeout: Duration::MAX, ..Limits::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// Everything that hyper would read now, through a buffer of `room` bytes.
fn drain<T: AsyncRead + Unpin>(screen: &mut Screen<T>, room: usize) -> (Vec<u8>, End) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut seen = Vec::new();
    loop {
        let mut space = vec![0; room];
        let mut out = ReadBuf::new(&mut space);
        match Pin::new(&mut *screen).poll_read(&mut cx, &mut out) {
            Poll::Pending => return (seen, End::Waiting),
            Poll::Ready(Ok(())) if out.filled().is_empty() => return (seen, End::Eof),
            Poll::Ready(Ok(())) => seen.extend_from_slice(out.filled()),
            Poll::Ready(Err(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                return (seen, End::Error(Refusal::in_error(&error).unwrap()));
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `bytes` through a screen in every way they may arrive, and demands the same result of all.
fn screened(bytes: &[u8]) -> (String, End, Handle) {
    let read = |client: Script, prefix: &[u8], room| {
        let (mut screen, handle) = Screen::with_prefix(client, prefix, patient());
        let (seen, end) = drain(&mut screen, room);
        (text(&seen), end, handle)
    };
    let expected = read(Script::whole(bytes), b"", 8192);
    let half = bytes.len() / 2;
    let (start, rest) = bytes.split_at(half);
    for (seen, end, _) in [
        read(Script::whole(bytes), b"", 1),
        read(Script::whole(bytes), b"", 7),
        read(Script::bytewise(bytes), b"", 8192),
        read(Script::whole(rest), start, 8192),
        read(Script::whole(b""), bytes, 5),
    ] {
        assert_eq!((&seen, &end), (&expected.0, &expected.1));
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
fn mangled_streams_fare_the_same_however_they_arrive() {
    let refused = mangled_streams(3000).filter(|stream| {
        let (seen, end, _) = screened(stream);
        seen.ends_with(&text(CANNED_HEAD)) || end != End::Waiting
    });
    assert!(refused.count() > 500);
}

#[test]
fn good_messages_pass_unchanged() {
    let stream = [
        GOOD,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe\nlo",
        "\r\nPOST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "5;a=b\r\nhello\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nDigest: x\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        GOOD,
    ]
    .concat();
    let (seen, end, handle) = screened(stream.as_bytes());
    assert_eq!(seen, stream);
    assert_eq!(end, End::Waiting);
    assert_eq!(handle.take_refusal(0), None);
}

#[test]
fn an_incomplete_head_is_held_back() {
    let (seen, end, _) = screened(b"GET / HTTP/1.1\r\nHost: a\r\n\r");
    assert_eq!((seen.as_str(), end), ("", End::Waiting));
}

#[test]
fn a_refused_head_becomes_the_canned_one_and_nothing_follows() {
    let stream = [GOOD, GOOD, BAD, GOOD].concat();
    let (seen, end, handle) = screened(stream.as_bytes());
    assert_eq!(seen, [GOOD, GOOD, &text(CANNED_HEAD)].concat());
    assert_eq!(end, End::Waiting);
    assert_eq!(handle.take_refusal(1), None);
    assert_eq!(handle.take_refusal(2), Some(refusal::LENGTH_REPEATED));
    assert_eq!(handle.take_refusal(2), None);
}

#[test]
fn the_canned_head_would_pass_itself() {
    assert!(judge_head(CANNED_HEAD, &Limits::default()).unwrap().is_some());
}

#[test]
fn a_refused_chunk_line_is_an_error_of_that_body() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let stream = [GOOD, head, "5\r\nhello\r\n5 \r\nhello\r\n0\r\n\r\n"].concat();
    let (seen, end, handle) = screened(stream.as_bytes());
    assert_eq!(seen, [GOOD, head, "5\r\nhello\r\n5"].concat());
    assert_eq!(end, End::Error(refusal::CHUNK_SIZE));
    assert_eq!(handle.body_refusal(0), None);
    assert_eq!(handle.body_refusal(1), Some(refusal::CHUNK_SIZE));
    assert_eq!(handle.take_refusal(1), None);
}

#[test]
fn after_the_error_nothing_is_read() {
    let stream = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx";
    let (mut screen, _) = Screen::new(Script::whole(stream), patient());
    assert_eq!(drain(&mut screen, 100).1, End::Error(refusal::CHUNK_SIZE));
    screen.io.segments.push_back(GOOD.into());
    assert_eq!(drain(&mut screen, 100), (vec![], End::Waiting));
}

#[test]
fn the_end_of_the_stream_is_passed_on() {
    for stream in [GOOD, "", "GET / HT", "\r\n"] {
        let (mut screen, _) = Screen::new(Script::whole(stream.as_bytes()).then_gone(), patient());
        assert_eq!(drain(&mut screen, 100).1, End::Eof);
    }
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    let (mut screen, _) = Screen::new(Script::bytewise(GOOD.as_bytes()), patient());
    drain(&mut screen, 100);
    assert_eq!(screen.held.capacity(), 0);
}

#[test]
fn a_switch_of_protocols_waits_for_the_service() {
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    for head in [upgrade, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"] {
        for raw in ["\x16\x03\0\n", GOOD, BAD] {
            let stream = [head, raw].concat();
            let (mut screen, handle) = Screen::new(Script::whole(stream.as_bytes()), patient());
            let serving = handle.serve();
            assert_eq!(text(&drain(&mut screen, 1000).0), head);
            handle.tunnel();
            assert_eq!(text(&drain(&mut screen, 1000).0), raw);
            drop(serving);
            screen.io.segments.push_back(BAD.into());
            assert_eq!(text(&drain(&mut screen, 1000).0), BAD);
        }
    }
}

#[test]
fn a_declined_switch_leaves_the_next_head_under_judgement() {
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n";
    let stream = [upgrade, GOOD, BAD].concat();
    let (mut screen, handle) = Screen::new(Script::whole(stream.as_bytes()), patient());
    let serving = handle.serve();
    assert_eq!(text(&drain(&mut screen, 1000).0), upgrade);
    drop(serving);
    assert_eq!(text(&drain(&mut screen, 1000).0), [GOOD, &text(CANNED_HEAD)].concat());
    assert_eq!(handle.take_refusal(2), Some(refusal::LENGTH_REPEATED));
}

#[test]
fn what_is_held_back_before_a_switch_is_bounded() {
    let limits = Limits { max_head_bytes: 64, ..patient() };
    let mut client = Script::bytewise(&[b'x'; 1000]);
    client.segments.push_front(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".to_vec());
    let (mut screen, handle) = Screen::new(client, limits);
    let _serving = handle.serve();
    drain(&mut screen, 100);
    assert_eq!(screen.held.len(), 64);
    handle.tunnel();
    assert_eq!(drain(&mut screen, 100).0.len(), 1000);
}

/// Reads with real, short clocks; what is awaited is the event, however long it takes.
fn with_clocks(
    header_timeout: u64,
    idle_timeout: u64,
    client: Script,
    story: impl AsyncFnOnce(&mut Screen<Script>, Handle),
) {
    let limits = Limits {
        header_timeout: Duration::from_millis(header_timeout),
        idle_timeout: Duration::from_millis(idle_timeout),
        ..Limits::default()
    };
    runtime().block_on(async {
        let (mut screen, handle) = Screen::new(client, limits);
        story(&mut screen, handle).await;
    });
}

async fn read(screen: &mut Screen<Script>) -> String {
    let mut space = vec![0; 1000];
    let mut out = ReadBuf::new(&mut space);
    poll_fn(|cx| Pin::new(&mut *screen).poll_read(cx, &mut out)).await.unwrap();
    text(out.filled())
}

const NEVER: u64 = 1_000_000;

#[test]
fn a_slow_head_is_refused() {
    for (before, ordinal) in [("", 0), (GOOD, 1)] {
        let stream = [before, "GET / HT"].concat();
        with_clocks(20, NEVER, Script::whole(stream.as_bytes()), async |screen, handle| {
            if ordinal > 0 {
                assert_eq!(read(screen).await, before);
            }
            assert_eq!(read(screen).await, text(CANNED_HEAD));
            assert_eq!(handle.take_refusal(ordinal), Some(refusal::HEADER_TIMEOUT));
        });
    }
}

#[test]
fn a_silent_client_is_closed_without_an_answer() {
    for silence in ["", "\r\n"] {
        with_clocks(20, NEVER, Script::whole(silence.as_bytes()), async |screen, handle| {
            assert_eq!(read(screen).await, "");
            assert_eq!(handle.take_refusal(0), None);
        });
    }
}

#[test]
fn an_idle_client_is_closed_without_an_answer() {
    for stream in [GOOD.to_owned(), [GOOD, "\r\n"].concat()] {
        with_clocks(NEVER, 20, Script::whole(stream.as_bytes()), async |screen, handle| {
            assert_eq!(read(screen).await, GOOD);
            assert_eq!(read(screen).await, "");
            assert_eq!(handle.take_refusal(1), None);
        });
    }
}

#[test]
fn the_timer_follows_a_deadline_that_moves_away() {
    with_clocks(100, 200, Script::whole(b""), async |screen, _| {
        let mut cx = Context::from_waker(Waker::noop());
        let mut space = [0; 100];
        let mut out = ReadBuf::new(&mut space);
        assert!(Pin::new(&mut *screen).poll_read(&mut cx, &mut out).is_pending());
        screen.io.segments.push_back(GOOD.into());
        let served = Instant::now();
        assert_eq!(read(screen).await, GOOD);
        assert_eq!(read(screen).await, "");
        assert!(served.elapsed() >= Duration::from_millis(200));
    });
}

#[test]
fn no_clock_runs_while_a_request_is_served() {
    with_clocks(NEVER, 20, Script::whole(GOOD.as_bytes()), async |screen, handle| {
        assert_eq!(read(screen).await, GOOD);
        let serving = handle.serve();
        let release = async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            drop(serving);
            Instant::now()
        };
        // The end of the exchange alone wakes the reader, which then waits its full time.
        let ((seen, ended), released) = tokio::join!(async { (read(screen).await, Instant::now()) }, release);
        assert_eq!(seen, "");
        assert!(ended >= released + Duration::from_millis(20));
    });
}

#[test]
fn no_clock_runs_inside_a_body() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    with_clocks(NEVER, 0, Script::whole(head.as_bytes()), async |screen, _| {
        assert_eq!(read(screen).await, head);
        let mut cx = Context::from_waker(Waker::noop());
        let mut space = [0; 100];
        let mut out = ReadBuf::new(&mut space);
        assert!(Pin::new(&mut *screen).poll_read(&mut cx, &mut out).is_pending());
        assert!(screen.timer.is_none());
    });
}
