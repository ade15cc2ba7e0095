//! The data plane with real sockets: generations made by hand, origins and clients on loopback.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]
#![expect(clippy::disallowed_methods, reason = "bodies of a test are small")]

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use portcullis_plugin::{
    BodyFilter, BodyWish, Decision, End, Exchange, Filtered, Hook, HookName, Needs, Plugin, PluginError,
    Reply,
};
use portcullis_proxy::chain::OnError;
use portcullis_proxy::generation::ListenerLimits;
use support::*;

#[test]
fn a_request_goes_through_and_connections_are_reused() {
    let gateway = Setup::to(origin()).start();
    let mut stream = gateway.connect();
    for turn in 0..50 {
        let request =
            format!("GET /api/{turn}?q=1 HTTP/1.1\r\nHost: Gateway.Test\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut seen = String::new();
        while !seen.contains(&format!("/api/{turn}?q=1")) || !seen.contains("x-forwarded-proto: http\n") {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "closed after {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        assert!(seen.contains("x-connection: 1\r\n"), "{seen}");
        assert!(
            seen.contains("host: gateway.test\n") && seen.contains("x-forwarded-for: 127.0.0.1\n"),
            "{seen}"
        );
    }
    assert_eq!(gateway.metrics.upstream("origin").connects.value(), 1);
}

#[test]
fn bodies_stream_both_ways() {
    let gateway = Setup::to(origin()).start();
    let body = "x".repeat(300_000);
    let with_length = format!(
        "POST /api/echo HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = gateway.raw(&with_length);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&body), "{}", &answer[..300]);
    let chunked = "POST /api/echo HTTP/1.1\r\nHost: g\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let answer = gateway.raw(chunked);
    assert!(answer.contains("3\r\nabc\r\n0\r\n\r\n"), "{answer}");
}

#[test]
fn the_gateways_own_refusals_are_problem_documents() {
    let gateway = Setup::to(origin()).start();
    let cases = [
        ("GET /nowhere HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n", 404),
        ("DELETE /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n", 405),
        ("GET /api/%2e%2e%2fx HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n", 400),
        ("GET /api/x HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET /api/x HTTP/1.1\nHost: g\n\n", 400),
        ("POST /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 99999999\r\n\r\n", 413),
        (
            "POST /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
            400,
        ),
    ];
    for (request, expected) in cases {
        let answer = gateway.raw(request);
        assert_eq!(status(&answer), expected, "{request:?} {answer}");
        assert!(answer.contains("application/problem+json") && answer.contains("\"request_id\""), "{answer}");
    }
    assert!(
        gateway
            .raw("DELETE /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
            .contains("allow: GET, HEAD, POST")
    );
}

#[test]
fn a_head_request_keeps_the_length_and_the_connection() {
    let gateway = Setup::to(origin()).start();
    let answer = gateway.raw(
        "HEAD /api/a HTTP/1.1\r\nHost: g\r\n\r\nHEAD /nowhere HTTP/1.1\r\nHost: g\r\n\r\nGET /api/b HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n",
    );
    let lengths: Vec<_> = answer.lines().filter(|line| line.starts_with("content-length")).collect();
    assert_eq!(
        (answer.matches("HTTP/1.1 200").count(), answer.matches("HTTP/1.1 404").count(), lengths.len()),
        (2, 1, 3)
    );
    assert!(!lengths.contains(&"content-length: 0"), "{answer}");
}

#[test]
fn response_hooks_run_in_reverse_and_headers_land_on_refusals() {
    let stamp = |hook| Probe {
        needs: Needs::hooks([HookName::OnResponse]),
        on_response: Some(hook),
        ..Probe::default()
    };
    let deny = Probe {
        needs: Needs::hooks([HookName::OnRequest]),
        on_request: Some(|exchange| {
            let refuse = exchange.request().path().ends_with("secret");
            Ok(match refuse {
                true => Decision::Respond(Box::new(Reply::deny(StatusCode::FORBIDDEN, "test.secret"))),
                false => Decision::Continue,
            })
        }),
        ..Probe::default()
    };
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin())
        .plugin(stamp(|exchange| {
            let seen = exchange.response().unwrap().headers().contains_key("x-inner");
            assert!(seen, "inner plugins come first");
            let (name, value) = header("x-outer");
            exchange.response_mut().unwrap().headers.set(name, value);
            Ok(Decision::Continue)
        }))
        .plugin(stamp(|exchange| {
            let (name, value) = header("x-inner");
            exchange.response_mut().unwrap().headers.set(name, value);
            Ok(Decision::Continue)
        }))
        .plugin(deny)
        .plugin(ends)
        .start();
    for (path, code) in [("/api/secret", 403), ("/api/open", 200), ("/nowhere", 404)] {
        let answer = gateway.get(path);
        assert_eq!(status(&answer), code);
        assert!(answer.contains("x-outer: yes") && answer.contains("x-inner: yes"), "{answer}");
    }
    let (end, code, decider) = ended.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        (end, code.map(|code| code.as_u16()), decider.as_deref()),
        (End::Complete, Some(403), Some("p2 test.secret"))
    );
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2, None);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2.as_deref(), Some("core.routes route.not_found"));
}

struct Sleeper;

impl Plugin for Sleeper {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let lent = exchange.lend();
        let restore = Restore { exchange, lent: Some(lent) };
        Hook::Wait(Box::pin(async move {
            let _restore = restore;
            std::future::pending().await
        }))
    }
}

/// What a sandbox does: holds the exchange during a call, gives it back on every way out.
struct Restore<'a> {
    exchange: &'a mut Exchange,
    lent: Option<Exchange>,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        self.exchange.restore(self.lent.take().unwrap());
    }
}

#[test]
fn failures_of_plugins_follow_on_error_and_stay_theirs() {
    let panicking = || Probe {
        needs: Needs::hooks([HookName::OnRequest]),
        on_request: Some(|exchange| match exchange.request().path() {
            "/api/panic" => panic!("a bug"),
            "/api/fail" => Err(PluginError::failed("no luck")),
            _ => Ok(Decision::Continue),
        }),
        ..Probe::default()
    };
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin()).plugin(panicking()).plugin(ends).start();
    assert_eq!(status(&gateway.get("/api/panic")), 500);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2.as_deref(), Some("p0 plugin.panic"));
    assert_eq!(status(&gateway.get("/api/fail")), 500);
    assert_eq!(status(&gateway.get("/api/fine")), 200);
    let mut allowing = Setup::to(origin()).plugin(panicking());
    allowing.plugins[0].1 = OnError::Allow;
    assert_eq!(status(&allowing.start().get("/api/panic")), 200);
}

#[test]
fn a_wait_ends_at_its_timeout_with_the_exchange_restored() {
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin()).plugin(Sleeper).plugin(ends).start();
    assert_eq!(status(&gateway.get("/api/x")), 500);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2.as_deref(), Some("p0 plugin.timeout"));
}

#[test]
fn a_client_that_leaves_during_a_wait_or_an_upload_ends_its_exchange() {
    let (ends, ended) = Ends::new();
    let mut setup = Setup::to(origin()).plugin(Sleeper).plugin(ends);
    setup.limits.header_count = 20;
    let gateway = setup.start();
    let mut stream = gateway.connect();
    stream.write_all(b"GET /api/x HTTP/1.1\r\nHost: g\r\n\r\n").unwrap();
    // The exchange is under way once it is counted.
    while gateway.metrics.exchanges_open.value() == 0 {
        std::thread::yield_now();
    }
    drop(stream);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().0, End::ClientGone);

    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin()).plugin(ends).start();
    let mut stream = gateway.connect();
    stream.write_all(b"POST /api/x HTTP/1.1\r\nHost: g\r\nContent-Length: 1000\r\n\r\nabc").unwrap();
    let mut answer = [0; 1024];
    // The origin streams back what it gets, so the upload has begun.
    assert!(stream.read(&mut answer).unwrap() > 0);
    drop(stream);
    let (end, ..) = ended.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(end, End::ClientGone | End::UpstreamFailed), "{end:?}");
    while gateway.metrics.exchanges_open.value() > 0 {
        std::thread::yield_now();
    }
}

struct Upper;

impl BodyFilter for Upper {
    fn chunk(&mut self, chunk: Bytes) -> Result<Filtered, PluginError> {
        if chunk.windows(3).any(|window| window == b"bad") {
            return Ok(Filtered::Refuse(Box::new(Reply::deny(StatusCode::UNPROCESSABLE_ENTITY, "test.bad"))));
        }
        Ok(Filtered::Pass(chunk.to_ascii_uppercase().into()))
    }

    fn end(&mut self) -> Result<Filtered, PluginError> {
        Ok(Filtered::Pass(Bytes::from_static(b"!")))
    }
}

#[test]
fn streamed_bodies_are_filtered_and_refused() {
    let needs = Needs::default().request_body(BodyWish::Stream);
    let upper = || Probe { needs, filter: Some(|| Box::new(Upper)), ..Probe::default() };
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin()).plugin(upper()).plugin(ends).start();
    let post = |body: &str| {
        gateway.raw(&format!(
            "POST /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let answer = post("hello");
    assert!(answer.contains("HELLO") && answer.contains('!'), "{answer}");
    ended.recv_timeout(PATIENCE).unwrap();
    assert_eq!(status(&post("bad")), 422);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2.as_deref(), Some("p0 test.bad"));
}

#[test]
fn whole_bodies_can_be_changed_on_both_ways() {
    let on_body: HookFn = |exchange| {
        match exchange.response_body().cloned() {
            Some(body) => exchange.set_response_body([&body[..], b" out"].concat().into())?,
            None => {
                let body = exchange.request_body().cloned().unwrap();
                exchange.set_request_body([&body[..], b" in"].concat().into())?;
            }
        }
        Ok(Decision::Continue)
    };
    let whole = BodyWish::Whole { limit: 100 };
    let needs = Needs::default().request_body(whole).response_body(whole);
    let gateway =
        Setup::to(origin()).plugin(Probe { needs, on_body: Some(on_body), ..Probe::default() }).start();
    let answer =
        gateway.raw("POST /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi");
    assert!(answer.contains("content-length: 9\r\n") && answer.ends_with("hi in out"), "{answer}");
    let long = "y".repeat(101);
    let answer = gateway.raw(&format!(
        "POST /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 101\r\n\r\n{long}"
    ));
    assert_eq!(status(&answer), 413);
    let declining = Probe { needs, on_body: Some(on_body), declines_bodies: true, ..Probe::default() };
    let request =
        format!("POST /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 101\r\n\r\n{long}");
    let answer = Setup::to(origin()).plugin(declining).start().raw(&request);
    assert_eq!(
        status(&answer),
        502,
        "the request's body streams past, the response's is wanted and too long"
    );
}

#[test]
fn an_upstream_that_closes_idle_connections_costs_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let counter = served.clone();
    std::thread::spawn(move || {
        // Answers one request per connection as if it would keep it, then closes.
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                seen.push(byte[0]);
            }
            if seen.is_empty() {
                continue;
            }
            counter.fetch_add(1, SeqCst);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    });
    let gateway = Setup::to(address).start();
    for turn in 1..=20 {
        let answer = gateway.get("/api/x");
        assert_eq!(status(&answer), 200, "{answer}");
        assert_eq!(served.load(SeqCst), turn);
    }
}

#[test]
fn an_unreachable_upstream_is_a_502_and_a_silent_one_is_not_waited_for_forever() {
    // Whoever has a port without listening keeps it from others.
    let closed = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    closed.bind(&ANY.into()).unwrap();
    let address = closed.local_addr().unwrap().as_socket().unwrap();
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(address).plugin(ends).start();
    assert_eq!(status(&gateway.get("/api/x")), 502);
    assert_eq!(
        ended.recv_timeout(PATIENCE).unwrap().2.as_deref(),
        Some("core.upstream upstream.unreachable")
    );
    assert_eq!(gateway.metrics.upstream("origin").retries.value(), 1);
}

#[test]
fn a_silent_upstream_is_a_504_but_not_while_the_client_still_sends() {
    let mut setup = Setup::to(silent_origin());
    setup.response_timeout = Duration::from_millis(100);
    setup.limits.body_timeout = Duration::from_millis(400);
    let (ends, ended) = Ends::new();
    let gateway = setup.plugin(ends).start();
    assert_eq!(status(&gateway.get("/api/x")), 504);
    assert_eq!(
        ended.recv_timeout(PATIENCE).unwrap().2.as_deref(),
        Some("core.upstream upstream.response_timeout")
    );
    let whole = "POST /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(status(&gateway.raw(whole)), 504);
    ended.recv_timeout(PATIENCE).unwrap();
    // The client stops within its body: that is the client's fault, though the upstream waits longer too.
    let part = "POST /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: 9\r\n\r\nabc";
    assert_eq!(status(&gateway.raw(part)), 408);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2.as_deref(), Some("core.body body.timeout"));
}

#[test]
fn limits_of_heads_and_connections_bite() {
    let mut setup = Setup::to(origin());
    setup.limits = ListenerLimits { connections: 2, header_count: 5, header_bytes: 1000, ..setup.limits };
    let gateway = setup.start();
    let many = "X-A: 1\r\n".repeat(6);
    assert_eq!(status(&gateway.raw(&format!("GET /api/x HTTP/1.1\r\nHost: g\r\n{many}\r\n"))), 431);
    let long = "a".repeat(1000);
    assert_eq!(status(&gateway.raw(&format!("GET /api/x HTTP/1.1\r\nHost: g\r\nX-A: {long}\r\n\r\n"))), 431);
    while gateway.metrics.connections_open.value() > 0 {
        std::thread::yield_now();
    }
    let (_one, _two) = (gateway.connect(), gateway.connect());
    while gateway.metrics.connections_open.value() < 2 {
        std::thread::yield_now();
    }
    let mut third = gateway.connect();
    assert_eq!(third.read(&mut [0]).unwrap_or(0), 0, "the third connection is closed at once");
}

#[test]
fn a_drain_lets_the_running_request_end_and_closes_idle_connections() {
    let mut gateway = Setup::to(origin()).start();
    let mut idle = gateway.connect();
    idle.write_all(b"GET /api/x HTTP/1.1\r\nHost: g\r\n\r\n").unwrap();
    let mut buffer = [0; 4096];
    assert!(idle.read(&mut buffer).unwrap() > 0);
    let mut upload = gateway.connect();
    upload.write_all(b"POST /api/x HTTP/1.1\r\nHost: g\r\nContent-Length: 6\r\n\r\nabc").unwrap();
    assert!(upload.read(&mut buffer).unwrap() > 0);
    let address = gateway.address;
    let client = std::thread::spawn(move || {
        // The listener is closed first, then the upload goes on and must still be answered.
        while TcpStream::connect(address).is_ok() {
            std::thread::yield_now();
        }
        upload.write_all(b"def").unwrap();
        let mut rest = Vec::new();
        upload.read_to_end(&mut rest).unwrap();
        String::from_utf8_lossy(&rest).into_owned()
    });
    assert_eq!(gateway.drain(), 0);
    assert!(client.join().unwrap().ends_with("def"));
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
}

#[test]
fn silent_connections_do_not_hold_up_a_drain() {
    let mut gateway = Setup::to(origin()).start();
    let silent = gateway.connect();
    while gateway.metrics.connections_open.value() == 0 {
        std::thread::yield_now();
    }
    let begin = Instant::now();
    assert_eq!(gateway.drain(), 0);
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    drop(silent);
}

#[test]
fn connections_that_wait_in_the_queue_at_a_drain_are_still_served() {
    let mut gateway = Setup::to(origin()).start();
    let mut clients: Vec<_> = (0..50).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.write_all(b"GET /api/x HTTP/1.1\r\nHost: g\r\n\r\n").unwrap();
    }
    let readers = clients.into_iter().map(|mut client| {
        std::thread::spawn(move || {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            answer.starts_with(b"HTTP/1.1 200")
        })
    });
    let readers: Vec<_> = readers.collect();
    assert_eq!(gateway.drain(), 0);
    assert!(readers.into_iter().all(|reader| reader.join().unwrap()));
}

#[test]
fn http2_without_tls_is_recognised() {
    let gateway = Setup::to(origin()).start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut send, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
        let driving = tokio::task::LocalSet::new();
        driving
            .run_until(async move {
                tokio::task::spawn_local(connection);
                let request = http::Request::get("http://Gateway.Test/api/h2").body(String::new()).unwrap();
                let response = send.send_request(request).await.unwrap();
                assert_eq!((response.status(), response.version()), (StatusCode::OK, http::Version::HTTP_2));
                let body = http_body_util::BodyExt::collect(http_body_util::Limited::new(
                    response.into_body(),
                    9999,
                ));
                let body = body.await.unwrap().to_bytes();
                assert!(String::from_utf8_lossy(&body).contains("host: gateway.test\n"), "{body:?}");
            })
            .await;
    });
}
