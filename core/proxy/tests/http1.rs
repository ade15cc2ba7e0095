//! HTTP/1 as clients see it: go-aheads, versions, framing, and what ends a connection.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::Duration;

use portcullis_plugin::{BodyWish, End, Needs};
use support::*;

/// An origin that answers each request with what stands in the table for its path, and closes the connection if
/// that is to end there. It counts what it was asked.
struct Canned {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    /// Lets one request for `/api/gate` be answered.
    gate: mpsc::Sender<()>,
}

const TABLE: &[(&str, &str)] = &[
    ("/api/plain", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain"),
    ("/api/gate", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngate"),
    ("/api/dated", "HTTP/1.1 200 OK\r\nDate: then\r\nContent-Length: 0\r\n\r\n"),
    ("/api/none", "HTTP/1.1 204 No Content\r\n\r\n"),
    ("/api/unchanged", "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
    ("/api/chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"),
    (
        "/api/trailers",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n",
    ),
    ("/api/broken", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n7\r\nbro"),
    ("/api/short", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"),
];

impl Canned {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (gate, opened) = mpsc::channel();
        let counter = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &counter, &opened);
            }
        });
        Canned { address, asked, gate }
    }
}

/// One connection at a time, which is how one client's requests come.
fn serve(mut stream: TcpStream, asked: &AtomicUsize, opened: &mpsc::Receiver<()>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        let path = line.split(' ').nth(1).unwrap().to_owned();
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        asked.fetch_add(1, SeqCst);
        if path == "/api/gate" {
            opened.recv().unwrap();
        }
        let (_, answer) = TABLE.iter().find(|(known, _)| *known == path).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        if ["/api/broken", "/api/short"].contains(&&*path) {
            return;
        }
    }
}

/// Sends, and reads until the connection ends, or until what came ends like this.
fn talk(stream: &mut TcpStream, sent: &str, until: &str) -> String {
    stream.write_all(sent.as_bytes()).unwrap();
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    while !seen.ends_with(until) || until.is_empty() {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => seen.push_str(&String::from_utf8_lossy(&buffer[..read])),
            Err(error) => panic!("{error} behind {seen:?}"),
        }
    }
    seen
}

fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

fn get(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: g\r\n{more}\r\n")
}

#[test]
fn a_client_that_asks_is_told_to_go_ahead_once_its_body_is_wanted() {
    let whole = Needs::default().request_body(BodyWish::Whole { limit: 100 });
    let gateway = Setup::to(origin()).plugin(Probe { needs: whole, ..Probe::default() }).start();
    let mut stream = gateway.connect();
    let head = "POST /api/x HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    for _ in 0..2 {
        assert_eq!(talk(&mut stream, head, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
        let answer = talk(&mut stream, "hello", "hello");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

#[test]
fn a_body_that_nobody_wants_is_not_asked_for() {
    let gateway = Setup::to(origin()).start();
    let head = "POST /nowhere HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    // The client may send it nevertheless, so nothing else can follow.
    let answer = gateway.raw(head);
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");
    // All of it is here: the connection goes on.
    let both = format!("{head}hello{}", get("/api/x", "Connection: close\r\n"));
    let answers = gateway.raw(&both);
    assert!(answers.contains("HTTP/1.1 200 OK") && !answers.contains("100 Continue"), "{answers}");
}

#[test]
fn an_old_client_is_not_told_to_go_ahead() {
    let gateway = Setup::to(origin()).start();
    let mut stream = gateway.connect();
    stream.write_all(b"POST /api/x HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").unwrap();
    // The body is asked for before it comes.
    while gateway.metrics.exchanges_open.value() == 0 {
        std::thread::yield_now();
    }
    let answer = talk(&mut stream, "hi", "");
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("hi"), "{answer}");
}

#[test]
fn a_body_that_is_left_ends_the_connection_and_one_that_is_here_does_not() {
    let gateway = Setup::to(origin()).start();
    let post = |length: usize, body: &str| {
        format!("POST /nowhere HTTP/1.1\r\nHost: g\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let next = get("/api/x", "Connection: close\r\n");
    let answers = gateway.raw(&(post(5, "hello") + &next));
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 2, "{answers}");
    let answer = gateway.raw(&post(500_000, "hello"));
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[test]
fn old_clients_keep_a_connection_only_if_they_ask() {
    let origin = Canned::start();
    let gateway = Setup::to(origin.address).start();
    let answer = gateway.raw("GET /api/plain HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nplain"), "{answer}");
    let kept = "GET /api/plain HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let answers = gateway.raw(&format!("{kept}GET /api/plain HTTP/1.0\r\n\r\n"));
    assert_eq!(answers.matches("plain").count(), 2, "{answers}");
    assert_eq!(answers.matches("connection: keep-alive").count(), 1, "{answers}");
}

#[test]
fn a_body_of_unknown_length_ends_with_an_old_clients_connection() {
    let origin = Canned::start();
    let gateway = Setup::to(origin.address).start();
    let answer = gateway.raw("GET /api/chunks HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "abcde");
    assert!(!head.contains("transfer-encoding") && !head.contains("content-length"), "{head}");
    assert!(!head.contains("connection: keep-alive"), "{head}");
}

#[test]
fn trailers_are_for_those_who_take_them() {
    let origin = Canned::start();
    let gateway = Setup::to(origin.address).start();
    let mut stream = gateway.connect();
    let plain = talk(&mut stream, &get("/api/trailers", ""), "0\r\n\r\n");
    assert!(plain.ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), "{plain}");
    let full = talk(&mut stream, &get("/api/trailers", "TE: trailers\r\n"), "x-sum: 6\r\n\r\n");
    assert!(full.ends_with("\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n"), "{full}");
}

#[test]
fn answers_without_a_body_say_no_length_and_keep_the_connection() {
    let origin = Canned::start();
    let gateway = Setup::to(origin.address).start();
    let mut stream = gateway.connect();
    for (path, status) in [("/api/none", "204 No Content"), ("/api/unchanged", "304 Not Modified")] {
        let answer = talk(&mut stream, &get(path, ""), "\r\n\r\n");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
        assert!(!answer.contains("content-length") && !answer.contains("transfer-encoding"), "{answer}");
    }
    let head = get("/api/plain", "").replace("GET", "HEAD");
    // The origin sends a body all the same, which makes its connection useless, and is not passed on.
    assert!(talk(&mut stream, &head, "\r\n\r\n").contains("content-length: 5\r\n"));
}

#[test]
fn answers_carry_a_date_and_the_origins_is_kept() {
    let origin = Canned::start();
    let gateway = Setup::to(origin.address).start();
    let dates = |answer: &str| {
        let lines = answer.lines().filter_map(|line| line.strip_prefix("date: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let own = dates(&gateway.get("/api/plain"));
    assert!(own.len() == 1 && own[0].ends_with(" GMT") && own[0].len() == 29, "{own:?}");
    assert_eq!(dates(&gateway.get("/api/dated")), ["then"]);
}

#[test]
fn a_request_is_not_begun_before_the_one_ahead_is_answered() {
    let origin = Canned::start();
    let gateway = Setup::to(origin.address).start();
    let mut stream = gateway.connect();
    let pipelined = get("/api/gate", "") + &get("/api/plain", "") + &get("/api/gate", "");
    stream.write_all(pipelined.as_bytes()).unwrap();
    for (answer, ahead) in [("gate", 1), ("plain", 2), ("gate", 3)] {
        while origin.asked.load(SeqCst) < ahead {
            std::thread::yield_now();
        }
        assert!(gateway.metrics.exchanges_open.value() <= 1);
        if answer == "gate" {
            assert_eq!(origin.asked.load(SeqCst), ahead);
            origin.gate.send(()).unwrap();
        }
    }
    let answers = talk(&mut stream, &get("/api/plain", "Connection: close\r\n"), "");
    let bodies: Vec<_> =
        answers.split("HTTP/1.1 ").filter_map(|answer| Some(answer.split_once("\r\n\r\n")?.1)).collect();
    assert_eq!(bodies, ["gate", "plain", "gate", "plain"]);
}

#[test]
fn a_response_that_breaks_off_does_not_look_complete() {
    let origin = Canned::start();
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin.address).plugin(ends).start();
    let answer = gateway.get("/api/broken");
    assert!(answer.ends_with("3\r\nabc\r\n3\r\nbro\r\n"), "{answer}");
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().0, End::UpstreamFailed);
    let answer = gateway.get("/api/short");
    assert!(answer.contains("content-length: 9\r\n") && answer.ends_with("\r\n\r\nshort"), "{answer}");
    // An old client would take any end for the right one.
    let mut stream = gateway.connect();
    stream.write_all(b"GET /api/broken HTTP/1.0\r\n\r\n").unwrap();
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_refusal_ends_the_connection_whatever_follows() {
    let origin = Canned::start();
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin.address).plugin(ends).start();
    let bad = "GET /api/plain HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    let answers = gateway.raw(&(get("/api/plain", "") + bad + &get("/api/plain", "")));
    assert_eq!((answers.matches("HTTP/1.1 200").count(), answers.matches("HTTP/1.1 400").count()), (1, 1));
    assert_eq!((answers.matches("connection: close").count(), origin.asked.load(SeqCst)), (1, 1));
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2, None);
    let decider = ended.recv_timeout(PATIENCE).unwrap().2;
    assert_eq!(decider.as_deref(), Some("core.http http.host_repeated"));
}

#[test]
fn a_bad_chunk_is_a_refusal_and_the_connections_last_request() {
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(silent_origin()).plugin(ends).start();
    let answer = gateway.raw(
        "POST /api/x HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4 \r\nabcd\r\n0\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("connection: close\r\n"), "{answer}");
    let decider = ended.recv_timeout(PATIENCE).unwrap().2;
    assert_eq!(decider.as_deref(), Some("core.http http.chunk_size"));
}

#[test]
fn while_draining_an_answer_says_that_it_is_the_last() {
    let origin = Canned::start();
    let mut gateway = Setup::to(origin.address).start();
    let mut stream = gateway.connect();
    stream.write_all(get("/api/gate", "").as_bytes()).unwrap();
    while origin.asked.load(SeqCst) == 0 {
        std::thread::yield_now();
    }
    let (address, gate) = (gateway.address, origin.gate.clone());
    let client = std::thread::spawn(move || {
        // Connections are told once the listener is closed.
        while TcpStream::connect(address).is_ok() {
            std::thread::yield_now();
        }
        gate.send(()).unwrap();
        talk(&mut stream, "", "")
    });
    assert_eq!(gateway.drain(), 0);
    let answer = client.join().unwrap();
    assert!(answer.contains("\r\nconnection: close\r\n") && answer.ends_with("gate"), "{answer}");
}

#[test]
fn a_first_head_is_waited_for_since_the_connection_was_accepted() {
    let mut setup = Setup::to(origin());
    setup.limits.header_timeout = Duration::from_millis(150);
    let gateway = setup.start();
    let mut stream = gateway.connect();
    assert!(talk(&mut stream, "GET /api/x HT", "").starts_with("HTTP/1.1 408"));
    // A later one has its own time, and a blank line is not its beginning.
    let mut stream = gateway.connect();
    talk(&mut stream, &get("/api/empty", ""), "\r\n\r\n");
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.write_all(b"\r\n").unwrap();
    assert!(stream.read(&mut [0]).is_err(), "the connection is kept beyond the header's time");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(talk(&mut stream, "GET /api/x HT", "").starts_with("HTTP/1.1 408"));
}

#[test]
fn large_answers_pass_whole_in_whatever_pieces() {
    let gateway = Setup::to(origin()).start();
    let answer = gateway.get("/api/big");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-length: 2000000") && body == "big ".repeat(500_000), "{head}");
    let mut stream = gateway.connect();
    for _ in 0..3 {
        let answer = talk(&mut stream, &get("/api/empty", ""), "\r\n\r\n");
        assert!(answer.contains("content-length: 0\r\n"), "{answer}");
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(is_closed(&mut stream));
}
