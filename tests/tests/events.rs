//! Responses that go on for long, event by event.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::{Duration, Instant};

use portcullis_tests::{Gateway, Http2, Peer, Raw, Setup};

/// A gateway whose upstream has these settings.
fn before(peer: &Peer, settings: &str) -> Gateway {
    let address = peer.address();
    let config = format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]\nupstreams: {{ origin: {{ endpoints: [\"http://{address}\"], {settings} }} }}\n"
    );
    Setup::new(&config).start()
}

/// The head of a response of which nobody knows when it ends.
const EVENTS: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n";

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

#[test]
fn events_arrive_one_by_one() {
    let peer = Peer::default();
    let gateway = before(&peer, "");
    let events: [&[u8]; 3] = [b"data: 1\n\n", b": alive\n\n", b"id: 3\ndata: three\n\n"];
    for encoding in ["", "Content-Encoding: gzip\r\n"] {
        let mut client = Raw::connect(gateway.address());
        client.write("GET /one HTTP/1.1\r\nHost: g\r\nAccept-Encoding: gzip\r\n\r\n");
        let (mut server, _) = peer.accept();
        server.write(format!("{EVENTS}{encoding}\r\n"));
        let head = client.head().to_lowercase();
        assert!(head.contains("text/event-stream") && head.contains(&encoding.to_lowercase()), "{head}");
        let mut other = Http2::open(gateway.address());
        other.get(1, "/two", &[]);
        let (mut second, _) = peer.accept();
        second.write(format!("{EVENTS}{encoding}\r\n"));
        other.read_until(Http2::HEADERS);
        // The next is sent when this one has arrived, so nothing waits for what comes behind it.
        for event in events {
            server.write(chunk(event));
            client.expect(&chunk(event));
            second.write(chunk(event));
            assert_eq!(other.read_until(Http2::DATA).2, event);
        }
    }
}

#[test]
fn a_comment_keeps_a_stream_alive_and_silence_ends_it() {
    let peer = Peer::default();
    let gateway = before(&peer, "timeouts: { body: 200ms }");
    let mut client = Raw::connect(gateway.address());
    client.write("GET /events HTTP/1.1\r\nHost: g\r\n\r\n");
    let (mut server, _) = peer.accept();
    server.write(format!("{EVENTS}\r\n"));
    client.head();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(700) {
        server.write(chunk(b":\n\n"));
        client.expect(&chunk(b":\n\n"));
    }
    let rest = client.rest();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it looks complete");
    assert_eq!(gateway.logged_path("/events")["end"], "upstream_failed");
}
