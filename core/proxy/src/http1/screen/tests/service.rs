//! Together with hyper: refusals reach the service, and hyper accepts whatever the judge accepts.

use std::cell::RefCell;
use std::convert::Infallible;

use ::http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[derive(Clone, Copy, PartialEq)]
enum Sent {
    AndWaiting,
    AndClosed,
}

/// What the service saw of the requests in `stream`, one line each, and what the client got. A client that waits does
/// so until the server closes, so its stream must end in a refusal or a request to close.
fn serve(stream: &[u8], sent: Sent) -> (Vec<String>, String) {
    runtime().block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        client.write_all(stream).await.unwrap();
        if sent == Sent::AndClosed {
            client.shutdown().await.unwrap();
        }
        let (screen, handle) = Screen::new(server, Limits::default());
        let seen = RefCell::new(Vec::new());
        let count = Cell::new(0);
        let service = service_fn(|request: Request<Incoming>| {
            let ordinal = count.replace(count.get() + 1);
            let (seen, handle) = (&seen, &handle);
            async move {
                let _serving = handle.serve();
                let line = match handle.take_refusal(ordinal) {
                    Some(refusal) => refusal.reason.to_owned(),
                    None => outcome(request, handle, ordinal).await,
                };
                seen.borrow_mut().push(line);
                Ok::<_, Infallible>(Response::new(Empty::<&[u8]>::new()))
            }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(screen), service);
        let mut answer = String::new();
        let reading = async {
            client.read_to_string(&mut answer).await.unwrap();
        };
        let (served, ()) = tokio::join!(connection, reading);
        drop(served);
        (seen.into_inner(), answer)
    })
}

async fn outcome(request: Request<Incoming>, handle: &Handle, ordinal: u64) -> String {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => size += frame.data_ref().map_or(0, |data| data.len()),
            Err(error) => {
                let Some(refusal) = Refusal::in_error(&error) else { return format!("{path} {error:?}") };
                assert_eq!(handle.body_refusal(ordinal), Some(refusal));
                return format!("{path} {}", refusal.reason);
            }
        }
    }
    format!("{path} {size}")
}

#[test]
fn a_refused_head_reaches_the_service_behind_good_requests() {
    let (seen, answer) = serve([GOOD, BAD].concat().as_bytes(), Sent::AndWaiting);
    assert_eq!(seen, ["/a 0", "http.length_repeated"]);
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2);
    assert_eq!(answer.matches("connection: close").count(), 1);
}

#[test]
fn a_refused_chunk_reaches_the_service_as_a_body_error() {
    let head = "POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (seen, answer) = serve([GOOD, head, "5\r\nhello\r\n5\nworld"].concat().as_bytes(), Sent::AndWaiting);
    assert_eq!(seen, ["/a 0", "/c http.bare_lf"]);
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2);
}

#[test]
fn bodies_and_trailers_arrive_whole() {
    let stream = [
        "POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
        "5;x\r\nhello\r\n0000000000000006\r\n world\r\n0\r\nDigest: x\r\n\r\n",
        "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ];
    assert_eq!(serve(stream.concat().as_bytes(), Sent::AndWaiting).0, ["/length 5", "/chunks 11", "/last 0"]);
}

#[test]
fn hyper_accepts_every_byte_that_the_judge_accepts() {
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
            let end = "\r\nConnection: close\r\n\r\n";
            let head = [before.as_bytes(), &[byte], behind.as_bytes(), end.as_bytes()].concat();
            let accepted = judge_head(&head, &Limits::default()).is_ok();
            let (seen, _) = serve(&head, Sent::AndWaiting);
            assert_eq!(seen.len(), 1, "byte {byte:#x} behind {before:?}");
            assert_eq!(accepted, !seen[0].starts_with("http."), "byte {byte:#x} behind {before:?}");
        }
    }
}

#[test]
fn hyper_has_nothing_to_refuse_in_mangled_streams() {
    let (mut refused, mut accepted) = (0, 0);
    for stream in mangled_streams(3000) {
        let (seen, answer) = serve(&stream, Sent::AndClosed);
        for line in &seen {
            refused += usize::from(line.contains("http."));
            accepted += usize::from(!line.contains("http."));
            let own_error = line.contains("Error") && !line.contains("UnexpectedEof");
            assert!(!own_error, "{line} in {:?}", text(&stream));
        }
        assert!(!answer.contains("HTTP/1.1 4"), "{answer} to {:?}", text(&stream));
    }
    assert!(refused > 500 && accepted > 500, "{refused} {accepted}");
}
