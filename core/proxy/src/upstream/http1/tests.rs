use std::future::poll_fn;

use http::Method;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn start(
    http: &mut Http1<DuplexStream>,
    method: Method,
    headers: &[(&'static str, &'static str)],
    body: &'static str,
) {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
    let target = PathAndQuery::from_static("/a?b");
    let told = [(HeaderName::from_static("x-told"), HeaderValue::from_static("1"))];
    let (headers, told) = (&headers, &told);
    let head = RequestHead { method: &method, target: &target, headers, told, client: None, upgrade: None };
    http.start(&head, RequestBody::Whole(Bytes::from_static(body.as_bytes())));
}

/// What came of a response: status, headers in order, body, trailers; or why it broke.
async fn outcome(http: &mut Http1<DuplexStream>) -> Result<String, String> {
    let head = poll_fn(|cx| http.poll_head(cx)).await.map_err(|broken| broken.to_string())?;
    let mut text = head.status().as_str().to_owned();
    for (name, value) in head.headers() {
        text += &format!(" {name}={}", String::from_utf8_lossy(value.as_bytes()));
    }
    let mut body = String::new();
    let mut trailers = String::new();
    while let Some(frame) = poll_fn(|cx| http.poll_body(cx)).await {
        match frame.map_err(|broken| broken.to_string())?.into_data() {
            Ok(data) => body += &String::from_utf8_lossy(&data),
            Err(frame) => trailers = format!(" + {:?}", frame.into_trailers().unwrap_or_default()),
        }
    }
    Ok(format!("{text} [{body}]{trailers}"))
}

async fn is_idle(http: &mut Http1<DuplexStream>) -> bool {
    poll_fn(|cx| Poll::Ready(http.poll_is_idle(cx))).await
}

/// What a response comes to, and whether its connection may be used again: given at once, and byte
/// by byte.
async fn read(method: Method, response: &str) -> (Result<String, String>, bool) {
    let mut results = Vec::new();
    for step in [response.len(), if response.len() < 1000 { 1 } else { 1000 }] {
        // A buffer of one byte makes every read a read of one byte.
        let (ours, mut theirs) = duplex(step);
        let mut http = Http1::new(ours);
        start(&mut http, method.clone(), &[], "");
        let serve = async {
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                seen.push(theirs.read_u8().await.unwrap());
            }
            // The gateway may have given up within.
            let _ = theirs.write_all(response.as_bytes()).await;
            if response.contains("until-close") || response.contains("cut-off") {
                let _ = theirs.shutdown().await;
            }
        };
        let (outcome, ()) = tokio::join!(
            async {
                let outcome = outcome(&mut http).await;
                let idle = is_idle(&mut http).await;
                drop(http);
                (outcome, idle)
            },
            serve
        );
        results.push(outcome);
    }
    let shown: String = response.chars().take(90).collect();
    assert_eq!(results[0], results[1], "{shown:?} at once and byte by byte");
    results.swap_remove(0)
}

#[tokio::test]
async fn bodies_end_where_they_say() {
    let cases = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "200 content-length=5 [hello]", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "200 content-length=0 []", true),
        ("HTTP/1.1 204 \r\ncontent-length: 5\r\n\r\n", "204 []", true),
        ("HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n", "304 etag=x []", true),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n01\r\n!\r\n0\r\n\r\n",
            "200 [hello!]",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-sum: 1\r\nhost: evil\r\n\r\n",
            "200 [a] + {\"x-sum\": \"1\"}",
            true,
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "200 content-length=2 [ok]",
            true,
        ),
        ("HTTP/1.1 200 OK\ncontent-length: 2\n\nok", "200 content-length=2 [ok]", true),
        ("HTTP/1.1 200 OK\r\nx: until-close\r\n\r\nall of it", "200 x=until-close [all of it]", false),
        (
            "HTTP/1.1 200 OK\r\nconnection: x-own, Close\r\nx-own: 1\r\ncontent-length: 2\r\n\r\nok",
            "200 content-length=2 [ok]",
            false,
        ),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", "200 content-length=2 [ok]", false),
        (
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
            "200 content-length=2 [ok]",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
            "200 content-length=2 [ok]",
            true,
        ),
    ];
    for (response, expected, reusable) in cases {
        assert_eq!(read(Method::GET, response).await, (Ok(expected.to_owned()), reusable), "{response:?}");
    }
}

#[tokio::test]
async fn a_head_request_has_no_body_whatever_the_head_says() {
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
    assert_eq!(read(Method::HEAD, response).await, (Ok("200 content-length=5 []".to_owned()), true));
    let response = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(read(Method::HEAD, response).await, (Ok("200 []".to_owned()), true));
}

#[tokio::test]
async fn what_two_readers_could_take_differently_is_refused() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(MAX_HEAD));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(257));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let line = format!("{chunked}1;{}\r\na\r\n0\r\n\r\n", "x".repeat(2000));
    let trailers = format!("{chunked}0\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let cases = [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
            "its Content-Length lines differ",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok", "its Content-Length is not a number"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok", "its Content-Length is not a number"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "its Content-Length is not a number",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "it has both Content-Length and Transfer-Encoding",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "its Transfer-Encoding is not `chunked`",
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n", "its Transfer-Encoding is not `chunked`"),
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "its Transfer-Encoding is not `chunked`"),
        ("HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n", "the head can't be parsed"),
        ("HTTP/1.1 200 OK\r\nx : a\r\n\r\n", "the head can't be parsed"),
        ("HTTP/1.1 099 No\r\n\r\n", "the status is not one"),
        ("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", "it switches protocols unasked"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "the head can't be parsed"),
        (&long, "the head is too long"),
        (&many, "too many headers"),
        (&format!("{chunked}g\r\n"), "the size of a chunk is not one"),
        (&format!("{chunked}\r\n"), "the size of a chunk is not one"),
        (&format!("{chunked}-1\r\n"), "the size of a chunk is not one"),
        (&format!("{chunked}11111111111111111\r\n"), "the size of a chunk is not one"),
        (&format!("{chunked}1\na\r\n0\r\n\r\n"), "the line of a chunk does not end in CRLF"),
        (&format!("{chunked}1\r\nab\r\n0\r\n\r\n"), "a chunk does not end where it says"),
        (&line, "the line of a chunk is too long"),
        (&trailers, "the trailers are too long"),
        (&format!("{chunked}0\r\n{}\r\n", "x: y\r\n".repeat(65)), "the trailers can't be parsed"),
    ];
    for (response, expected) in cases {
        let shown = response.chars().take(90).collect::<String>();
        let expected = Err(format!("malformed response: {expected}"));
        assert_eq!(read(Method::GET, response).await, (expected, false), "{shown:?}");
    }
}

#[tokio::test]
async fn interim_responses_are_bounded() {
    let flood = "HTTP/1.1 102 Processing\r\n\r\n".repeat(MAX_HEAD / 25);
    let expected = Err("malformed response: too many interim responses".to_owned());
    assert_eq!(read(Method::GET, &flood).await, (expected, false));
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_never_complete() {
    for response in [
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut-off",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\ncut-off",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\ncut-off\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n7\r\ncut-off\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nx: cut-off\r\n",
    ] {
        let expected = Err("connection closed before the end of the response".to_owned());
        assert_eq!(read(Method::GET, response).await, (expected, false), "{response:?}");
    }
}

#[tokio::test]
async fn the_request_says_what_it_is_and_nothing_of_the_clients_connection() {
    type Fields = &'static [(&'static str, &'static str)];
    let cases: [(Method, Fields, &str, &str); 4] = [
        (
            Method::GET,
            &[
                ("host", "a"),
                ("x-told", "client"),
                ("connection", "close"),
                ("te", "gzip"),
                ("content-length", "7"),
            ],
            "",
            "GET /a?b HTTP/1.1\r\nhost: a\r\nx-told: 1\r\n\r\n",
        ),
        (
            Method::GET,
            &[("te", "trailers"), ("upgrade", "x")],
            "",
            "GET /a?b HTTP/1.1\r\nte: trailers\r\nx-told: 1\r\n\r\n",
        ),
        (
            Method::POST,
            &[("transfer-encoding", "chunked"), ("expect", "100-continue")],
            "",
            "POST /a?b HTTP/1.1\r\nx-told: 1\r\ncontent-length: 0\r\n\r\n",
        ),
        (Method::DELETE, &[], "body", "DELETE /a?b HTTP/1.1\r\nx-told: 1\r\ncontent-length: 4\r\n\r\nbody"),
    ];
    for (method, headers, body, expected) in cases {
        let (ours, mut theirs) = duplex(1024);
        let mut http = Http1::new(ours);
        start(&mut http, method, headers, body);
        let serve = async {
            let mut seen = vec![0; expected.len()];
            theirs.read_exact(&mut seen).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&seen), expected);
            theirs.write_all(b"HTTP/1.1 204 No\r\n\r\n").await.unwrap();
        };
        let (outcome, ()) = tokio::join!(outcome(&mut http), serve);
        assert_eq!(outcome.as_deref(), Ok("204 []"));
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_an_upload_is_still_heard() {
    let (ours, mut theirs) = duplex(64);
    let mut http = Http1::new(ours);
    let body: &'static str = Box::leak("x".repeat(1000).into_boxed_str());
    start(&mut http, Method::POST, &[], body);
    let serve = async {
        theirs.read_exact(&mut [0; 100]).await.unwrap();
        theirs.write_all(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        drop(theirs);
    };
    let (outcome, ()) = tokio::join!(outcome(&mut http), serve);
    assert_eq!(outcome.as_deref(), Ok("413 content-length=0 []"));
    assert!(!is_idle(&mut http).await && http.take_unsent().is_none());
}

#[tokio::test]
async fn what_was_not_sent_is_given_back() {
    let (ours, theirs) = duplex(64);
    drop(theirs);
    let mut http = Http1::new(ours);
    start(&mut http, Method::POST, &[], "body");
    assert!(poll_fn(|cx| http.poll_head(cx)).await.is_err());
    assert!(matches!(http.take_unsent(), Some(RequestBody::Whole(body)) if body == "body"));
}

#[tokio::test]
async fn an_idle_connection_that_says_something_or_ends_is_of_no_use() {
    let response = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for farewell in [&b"HTTP/1.1 408 Timeout\r\n\r\n"[..], b""] {
        let (ours, mut theirs) = duplex(1024);
        let mut http = Http1::new(ours);
        start(&mut http, Method::GET, &[], "");
        theirs.write_all(response.as_bytes()).await.unwrap();
        assert!(outcome(&mut http).await.is_ok() && is_idle(&mut http).await);
        theirs.write_all(farewell).await.unwrap();
        drop(theirs);
        assert!(!is_idle(&mut http).await);
    }
}
