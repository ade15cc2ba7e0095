//! Clients and origins that do not behave.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderValue;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::client::conn::http2::SendRequest;
use portcullis_plugin::{BodyWish, Decision, End, HookName, Needs};
use support::*;

#[test]
fn a_client_can_not_name_away_what_plugins_set() {
    let identify = Probe {
        needs: Needs::hooks([HookName::OnRequest]),
        on_request: Some(|exchange| {
            let (name, value) = header("x-user");
            exchange.request_mut().headers.set(name, value);
            Ok(Decision::Continue)
        }),
        ..Probe::default()
    };
    let gateway = Setup::to(origin()).plugin(identify).start();
    let answer = gateway.raw("GET /api/x HTTP/1.1\r\nHost: g\r\nConnection: close, x-user, host\r\n\r\n");
    assert!(answer.contains("x-user: yes\n") && answer.contains("host: g\n"), "{answer}");
}

#[test]
fn an_upstream_hook_changes_nothing_by_being_there() {
    let sent = |hook: bool| {
        let mut setup = Setup::to(origin());
        setup.rewrite_host = Some(HeaderValue::from_static("internal.example"));
        if hook {
            let needs = Needs::hooks([HookName::OnUpstream]);
            setup = setup.plugin(Probe { needs, ..Probe::default() });
        }
        let gateway = setup.start();
        let answer = gateway.raw(
            "GET /api/x HTTP/1.1\r\nHost: front.example\r\nForwarded: for=1.1.1.1\r\nX_Forwarded_For: 1.1.1.1\r\n\
             X-Forwarded-For: 1.1.1.1\r\nConnection: close\r\n\r\n",
        );
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<String> = body.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let lines = sent(false);
    assert_eq!(lines, sent(true));
    assert!(lines.contains(&"host: internal.example".to_owned()), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("1.1.1.1")), "{lines:?}");
}

#[test]
fn empty_responses_keep_the_upstream_connection() {
    let gateway = Setup::to(origin()).start();
    for _ in 0..5 {
        assert_eq!(status(&gateway.get("/api/empty")), 200);
    }
    assert_eq!(gateway.metrics.upstream("origin").connects.value(), 1);
}

#[test]
fn a_body_of_unknown_length_goes_along_with_any_method() {
    let gateway = Setup::to(origin()).start();
    let request = "GET /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let answer = gateway.raw(request);
    assert!(answer.contains("transfer-encoding: chunked\n"), "{answer}");
}

#[test]
fn a_trickle_does_not_hold_the_body_budget() {
    let whole = Needs::default().request_body(BodyWish::Whole { limit: 10_000 });
    let mut setup = Setup::to(origin()).plugin(Probe { needs: whole, ..Probe::default() });
    setup.limits.body_timeout = Duration::from_millis(150);
    let gateway = setup.start();
    let mut stream = gateway.connect();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    stream.write_all(b"POST /api/x HTTP/1.1\r\nHost: g\r\nContent-Length: 5000\r\n\r\n").unwrap();
    let begin = Instant::now();
    let mut answer = [0; 1024];
    let read = loop {
        assert!(begin.elapsed() < PATIENCE, "never refused");
        // One byte per read timeout, well within the time between two pieces.
        let _ = stream.write_all(b"x");
        if let Ok(read) = stream.read(&mut answer) {
            break read;
        }
    };
    assert_eq!(status(&String::from_utf8_lossy(&answer[..read])), 408);
}

#[test]
fn what_a_drain_cuts_off_is_logged() {
    let (ends, ended) = Ends::new();
    let mut gateway = Setup::to(silent_origin()).plugin(ends).start();
    let mut stream = gateway.connect();
    stream.write_all(b"GET /api/x HTTP/1.1\r\nHost: g\r\n\r\n").unwrap();
    while gateway.metrics.exchanges_open.value() == 0 {
        std::thread::yield_now();
    }
    let plane = gateway.plane.take().unwrap();
    assert_eq!(gateway.runtime.block_on(plane.drain(Duration::from_millis(100))), 1);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().0, End::ClientGone);
}

#[test]
fn a_renamed_listener_keeps_its_connections() {
    let mut setup = Setup::to(origin());
    let gateway = setup.start_kept();
    let mut stream = gateway.connect();
    let mut ask = || {
        stream.write_all(b"HEAD /api/x HTTP/1.1\r\nHost: g\r\n\r\n").unwrap();
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).unwrap();
        status(&String::from_utf8_lossy(&buffer[..read]))
    };
    assert_eq!(ask(), 200);
    setup.listener_name = "renamed";
    gateway.swap(&setup, 2);
    assert_eq!(ask(), 200);
}

#[test]
fn a_pooled_connection_follows_the_running_generation() {
    let mut setup = Setup::to(origin());
    setup.response_timeout = 6 * PATIENCE;
    let gateway = setup.start_kept();
    assert_eq!(status(&gateway.get("/api/x")), 200);
    setup.response_timeout = Duration::from_millis(100);
    gateway.swap(&setup, 2);
    // Under the old timeout the client's patience would end first.
    assert_eq!(status(&gateway.get("/api/hang")), 504);
}

/// The preface and an empty SETTINGS frame (RFC 9113, 3.4 and 6.5).
const HTTP2_BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[test]
fn a_mute_http2_client_loses_its_connection() {
    let mut setup = Setup::to(origin());
    setup.limits.idle_timeout = Duration::from_millis(100);
    let gateway = setup.start();
    let mut stream = gateway.connect();
    stream.write_all(HTTP2_BEGIN).unwrap();
    let mut told = Vec::new();
    stream.read_to_end(&mut told).unwrap();
    while gateway.metrics.connections_open.value() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn an_http2_stream_that_is_not_read_is_given_up_and_no_other() {
    let (ends, ended) = Ends::new();
    let mut setup = Setup::to(origin()).plugin(ends);
    setup.limits.write_timeout = Duration::from_millis(200);
    let gateway = setup.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let mut builder = hyper::client::conn::http2::Builder::new(executor);
        builder.initial_stream_window_size(10_000);
        let (mut send, connection) = builder.handshake(io).await.unwrap();
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async move {
                tokio::task::spawn_local(connection);
                let get = |path| http::Request::get(path).body(String::new()).unwrap();
                let unread = send.send_request(get("http://g/api/big")).await.unwrap();
                // The body is never read, so its window stays shut.
                assert_eq!(ended.recv_timeout(PATIENCE).unwrap().0, End::ClientGone);
                let other = send.send_request(get("http://g/api/x")).await.unwrap();
                assert_eq!(other.status(), 200);
                let mut unread = unread.into_body();
                let broken = loop {
                    match unread.frame().await {
                        Some(Ok(_)) => {}
                        ended => break ended,
                    }
                };
                assert!(broken.is_some_and(|ended| ended.is_err()), "the stream looks complete");
            })
            .await;
    });
}

/// Runs `talk` over an HTTP/2 connection to the gateway.
fn over_http2<F: Future>(gateway: &Gateway, talk: impl FnOnce(SendRequest<Body>) -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (send, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        tokio::task::spawn_local(connection);
        talk(send).await
    })
}

#[test]
fn a_busy_http2_connection_is_not_idle() {
    let mut setup = Setup::to(origin());
    setup.limits.idle_timeout = Duration::from_millis(300);
    let gateway = setup.start();
    over_http2(&gateway, async |mut send| {
        let begin = Instant::now();
        // Requests that come and go between two looks, for several times the idle timeout.
        while begin.elapsed() < Duration::from_millis(1500) {
            let request =
                http::Request::get("http://g/api/empty").body(StreamBody::new(Frames::default())).unwrap();
            assert_eq!(send.send_request(request).await.unwrap().status(), 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(gateway.metrics.connections.value(), 1);
}

#[test]
fn a_trailer_can_not_say_what_a_header_must_not() {
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin()).plugin(ends).start();
    // The origin streams back what it gets, so its answer ends as the upload does.
    let arrives = |name: &'static str| {
        over_http2(&gateway, async |mut send| {
            let (name, value) = header(name);
            let trailers = http::HeaderMap::from_iter([(name, value)]);
            let frames = [Frame::data(Bytes::from_static(b"x")), Frame::trailers(trailers)].map(Ok);
            let body = StreamBody::new(Frames(frames.into()));
            let request = http::Request::post("http://g/api/x").body(body).unwrap();
            // The refusal may come before the answer's head, as a reply or a reset, or within its body.
            let Ok(answer) = send.send_request(request).await else { return false };
            if answer.status() != 200 {
                return false;
            }
            let mut answer = answer.into_body();
            loop {
                match answer.frame().await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => return false,
                    None => return true,
                }
            }
        })
    };
    assert!(arrives("x-checksum"));
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2, None);
    assert!(!arrives("x-forwarded-for"));
    let decider = ended.recv_timeout(PATIENCE).unwrap().2;
    assert_eq!(decider.as_deref(), Some("core.http http.trailer_forbidden"));
}

type Body = StreamBody<Frames>;

/// Frames of a body, one after the other.
#[derive(Default)]
struct Frames(VecDeque<Result<Frame<Bytes>, Infallible>>);

impl Stream for Frames {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.pop_front())
    }
}
