//! The limits of listeners and of the process, as clients run into them. What an upstream can do is in
//! `upstreams.rs`, what plugins may do in `budgets.rs`; `bounds.rs` knows which test belongs to which limit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portcullis_tests::tools::{Authority, has};
use portcullis_tests::{Gateway, Http, Http2, Origin, PATIENCE, Setup, request, until};
use serde_json::{Value, json};

/// A gateway whose listener has these limits, before an origin.
fn limited(limits: &str, more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let log =
        if more.contains("plugins:") { "" } else { "plugins: [{ access_log: { target: access.log } }]\n" };
    let config =
        format!("{log}listeners: [{{ name: main, bind: 127.0.0.1:0, limits: {{ {limits} }} }}]\n{more}");
    let gateway =
        Setup::new(&config).file("whole.rhai", "fn on_request_body(ctx) { }\n").before(&origin).start();
    (origin, gateway)
}

/// A chain that wants request bodies whole.
const WHOLE: &str = "plugins: [{ access_log: { target: access.log } }, { rhai: { file: whole.rhai } }]\n";

/// The status and the reason in the access log.
fn told(gateway: &Gateway, path: &str) -> (Value, Value) {
    let line = gateway.logged_path(path);
    (line["status"].clone(), line["reason"].clone())
}

#[test]
fn a_kept_connection_without_requests_is_closed() {
    let (_origin, gateway) = limited("idle_timeout: 150ms", "");
    let mut http = gateway.connect();
    assert_eq!(http.ask(&request("GET", "/")).unwrap().status, 200);
    assert!(http.is_closed());
}

#[test]
fn a_silent_client_is_closed_before_its_first_byte() {
    let (_origin, gateway) = limited("header_timeout: 150ms", "");
    assert!(gateway.connect().is_closed());
}

#[test]
fn a_handshake_that_does_not_come_is_not_waited_for() {
    if !has(&["openssl"]) {
        return;
    }
    let config = "
listeners:
  - name: main
    bind: 127.0.0.1:0
    limits: { header_timeout: 150ms }
    tls: { certificates: [{ cert: tls/one.test.pem, key: tls/one.test.key }] }
routes: [{ respond: { status: 204 } }]
";
    let setup = Setup::new(config);
    Authority::new(&setup.dir().join("tls")).issue("one.test");
    let gateway = setup.start();
    assert!(gateway.connect().is_closed());
    until("it to be counted", || gateway.metric("portcullis_tls_handshake_failures_total", &[]) == 1.0);
}

#[test]
fn a_body_that_stops_is_a_408() {
    let (_origin, gateway) = limited("body_timeout: 150ms", "");
    let mut http = gateway.connect();
    http.write(b"POST /stops HTTP/1.1\r\nhost: g\r\ncontent-length: 10\r\n\r\nhello").unwrap();
    assert_eq!(http.answer("POST").unwrap().status, 408);
    assert_eq!(told(&gateway, "/stops"), (json!(408), json!("body.timeout")));
}

#[test]
fn a_body_that_stops_over_http2_ends_its_stream_and_no_other() {
    let (_origin, gateway) = limited("body_timeout: 150ms", "");
    let mut client = Http2::open(gateway.address());
    client.post(1, "/stops");
    client.write(Http2::DATA, 0, 1, b"hello").unwrap();
    assert_eq!(told(&gateway, "/stops"), (json!(408), json!("body.timeout")));
    client.get(3, "/goes-on", &[]);
    assert_eq!(gateway.logged_path("/goes-on")["status"], 200);
}

#[test]
fn a_trickle_of_a_body_that_is_held_in_memory_is_a_408() {
    let (_origin, gateway) = limited("body_timeout: 200ms", WHOLE);
    let mut client = Slow::connect(gateway.address());
    client.0.write_all(b"POST /drips HTTP/1.1\r\nhost: g\r\ncontent-length: 5000\r\n\r\n").unwrap();
    // Each byte comes well within the time between two pieces.
    let answer = client.drip();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(told(&gateway, "/drips"), (json!(408), json!("body.timeout")));
}

/// A client that sends a byte now and then.
struct Slow(TcpStream);

impl Slow {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        // It is also the pause between two bytes.
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Slow(stream)
    }

    /// Sends until there is an answer.
    fn drip(&mut self) -> String {
        let (begin, mut answer) = (Instant::now(), [0; 1024]);
        loop {
            assert!(begin.elapsed() < PATIENCE, "never answered");
            // The answer may have come, and the connection gone.
            let _ = self.0.write_all(b"x");
            if let Ok(read) = self.0.read(&mut answer) {
                return String::from_utf8_lossy(&answer[..read]).into_owned();
            }
        }
    }
}

#[test]
fn a_client_that_takes_nothing_is_given_up() {
    let (_origin, gateway) = limited("write_timeout: 150ms", "");
    let mut http = gateway.connect();
    // More than the buffers of both ends hold.
    http.write(b"GET /big/100000000 HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    let line = gateway.logged_path("/big/100000000");
    assert_eq!((&line["end"], &line["status"]), (&json!("client_gone"), &json!(200)));
    assert!(line["response_bytes"].as_u64() < Some(100_000_000), "{line}");
    until("it to be counted", || {
        gateway.metric("portcullis_clients_given_up_total", &["reason=\"write_timeout\""]) == 1.0
    });
    until("the connection to be closed", || gateway.metric("portcullis_connections_open", &[]) == 0.0);
}

#[test]
fn an_http2_upload_that_nobody_takes_ends_at_its_window() {
    let origin = Origin::start();
    // The plugin waits before anything of the body is read.
    let config = "plugins: [{ ext_authz: { upstream: origin, path: /hold, timeout: 1h }, timeout: 1h }]\n";
    let gateway = Setup::new(config).before(&origin).start();
    let mut client = Http2::open(gateway.address());
    client.post(1, "/upload");
    until("the plugin to wait", || origin.held() == 1);
    let piece = [b'p'; 16 << 10];
    for _ in 0..4 {
        client.write(Http2::DATA, 0, 1, &piece).unwrap();
    }
    // An acknowledgement tells that all of it was taken, and none refused.
    client.write(Http2::PING, 0, 0, b"all here").unwrap();
    let (_, _, echoed) = client.read_until(Http2::PING);
    assert_eq!(echoed, b"all here");
    client.write(Http2::DATA, 0, 1, &piece).unwrap();
    assert_eq!(client.reset(), (1, Http2::FLOW_CONTROL_ERROR));
    origin.release();
}

#[test]
fn http2_uploads_that_nobody_takes_hold_so_much_of_a_connection_and_no_more() {
    let origin = Origin::start();
    let config = "
plugins: [{ ext_authz: { upstream: origin, path: /hold, timeout: 1h }, timeout: 1h }]
listeners: [{ name: main, bind: 127.0.0.1:0, http2: { max_streams: 500 } }]
";
    let gateway = Setup::new(config).before(&origin).start();
    let mut client = Http2::open(gateway.address());
    let streams: Vec<u32> = (0..150).map(|at| 2 * at + 1).collect();
    streams.iter().for_each(|stream| client.post(*stream, "/upload"));
    until("the plugin to wait", || origin.held() == streams.len());
    let before = gateway.memory();
    let (stream_window, connection_window, piece) = (64 << 10, 8 << 20, [b'p'; 16 << 10]);
    let (full, others) = streams.split_at(connection_window / stream_window);
    for stream in full {
        (0..stream_window / piece.len()).for_each(|_| client.data(*stream, &piece, false));
    }
    client.write(Http2::PING, 0, 0, b"all here").unwrap();
    client.read_until(Http2::PING);
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB");
    client.data(others[0], &piece, false);
    let (_, _, payload) = client.read_until(Http2::GOAWAY);
    assert_eq!(payload[4..8], Http2::FLOW_CONTROL_ERROR.to_be_bytes());
    origin.release();
}

#[test]
fn an_idle_http2_connection_is_told_to_end() {
    let (_origin, gateway) = limited("idle_timeout: 150ms", "");
    let mut client = Http2::open(gateway.address());
    client.get(1, "/", &[]);
    client.read_until(Http2::GOAWAY);
}

#[test]
fn limits_of_heads_hold_over_http2() {
    let (origin, gateway) = limited("header_bytes: 1KiB, header_count: 10", "");
    let mut client = Http2::open(gateway.address());
    let (long, short) = ("v".repeat(1100), "v".repeat(600));
    client.get(1, "/long", &[("x-long", &long)]);
    assert_eq!(told(&gateway, "/long"), (json!(431), json!("http.head_too_large")));
    client.get(3, "/many", &[("x-a", "1"); 11]);
    assert_eq!(told(&gateway, "/many"), (json!(431), json!("http.too_many_headers")));
    client.get(5, "/within", &[("x-long", &short), ("x-a", "1")]);
    assert_eq!(told(&gateway, "/within"), (json!(200), Value::Null));
    assert_eq!(origin.served(), 1);
}

#[test]
fn whole_bodies_share_a_budget() {
    let (_origin, gateway) = limited("", &format!("limits: {{ whole_bodies: 64KiB }}\n{WHOLE}"));
    let mut holder = gateway.connect();
    let held = vec![b'h'; 50_000];
    holder.write(b"POST /held HTTP/1.1\r\nhost: g\r\ncontent-length: 50001\r\n\r\n").unwrap();
    holder.write(&held).unwrap();
    until("the bytes to be held", || gateway.metric("portcullis_whole_bodies_bytes", &[]) == 50_000.0);
    let post = |path: &str, length| gateway.ask(&request("POST", path).body(vec![b'b'; length]));
    let refused = post("/refused", 20_000);
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(told(&gateway, "/refused"), (json!(503), json!("body.budget")));
    assert_eq!(post("/fits", 5_000).status, 200);
    holder.write(b"h").unwrap();
    assert_eq!(holder.answer("POST").unwrap().status, 200);
    until("the share to be given back", || post("/again", 60_000).status == 200);
}

#[test]
fn whole_bodies_in_small_chunks_share_the_budget_by_what_they_hold() {
    let (_origin, gateway) = limited("", &format!("limits: {{ whole_bodies: 4KiB }}\n{WHOLE}"));
    let held = || gateway.metric("portcullis_whole_bodies_bytes", &[]);
    let chunks = |count| "1\r\nx\r\n".repeat(count);
    let mut holder = gateway.connect();
    holder.write(b"POST /held HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    holder.write(chunks(4000).as_bytes()).unwrap();
    until("the bytes to be held", || held() == 4000.0);
    let refused = gateway.ask(&request("POST", "/refused").body(vec![b'b'; 100]));
    assert_eq!(refused.status, 503);
    holder.write(chunks(97).as_bytes()).unwrap();
    assert_eq!(holder.answer("POST").unwrap().status, 503);
    assert_eq!(told(&gateway, "/held"), (json!(503), json!("body.budget")));
    until("the share to be given back", || held() == 0.0);
}

#[test]
fn whole_responses_share_the_budget_too() {
    let plugins = "plugins: [{ access_log: { target: access.log } }, { mask: { patterns: [email] } }]\n";
    let (_origin, gateway) = limited("", &format!("limits: {{ whole_bodies: 64KiB }}\n{plugins}"));
    assert_eq!((gateway.get("/big/60000").status, gateway.get("/big/70000").status), (200, 503));
    assert_eq!(told(&gateway, "/big/70000"), (json!(503), json!("body.budget")));
    assert_eq!(gateway.get("/big/60000").status, 200);
}

/// Connections that a listener may have in the tests of their number.
const CONNECTIONS: usize = 50;

#[test]
fn connections_that_come_and_go_are_counted_right_over_all_workers() {
    let (_origin, gateway) = limited(&format!("connections: {CONNECTIONS}"), "workers: 2\n");
    let made = Arc::new(AtomicUsize::new(0));
    let address = gateway.address();
    let visitors = (0..4).map(|visitor| {
        let made = made.clone();
        std::thread::spawn(move || {
            for turn in 0..100 {
                let Ok(mut http) = Http::connect(address) else { continue };
                made.fetch_add(1, Ordering::SeqCst);
                // Some ask, some begin to, some say nothing. One that is refused may not get that far.
                let _ = match (visitor + turn) % 3 {
                    0 => http.ask(&request("GET", "/")).map(drop),
                    1 => http.write(b"GET / HTTP/1.1\r\nhost:"),
                    _ => Ok(()),
                };
            }
        })
    });
    visitors.collect::<Vec<_>>().into_iter().for_each(|visitor| visitor.join().unwrap());
    until("all to be gone", || gateway.metric("portcullis_connections_open", &[]) == 0.0);
    let seen = || {
        gateway.metric("portcullis_connections_total", &[])
            + gateway.metric("portcullis_connections_refused_total", &[])
    };
    until("all to be counted", || seen() == made.load(Ordering::SeqCst) as f64);
    // Every place is free again, and there is none more.
    let mut open: Vec<_> = (0..CONNECTIONS).map(|_| gateway.connect()).collect();
    assert!(
        open.iter_mut().all(|http| http.ask(&request("GET", "/")).is_ok_and(|answer| answer.status == 200))
    );
    assert!(gateway.connect().is_closed());
}

#[test]
fn a_log_that_nobody_reads_holds_up_the_end_for_a_short_while_only() {
    let config = "
plugins: [{ access_log: { target: stdout, headers: [x-long] } }]
listeners: [{ name: main, bind: 127.0.0.1:0, limits: { header_bytes: 64KiB } }]
routes: [{ respond: { status: 204 } }]
";
    let (reader, writer) = std::io::pipe().unwrap();
    let gateway = Setup::new(config).stdout(writer).start();
    // More than a pipe holds.
    let sent = request("GET", "/").header("x-long", &"l".repeat(60 << 10));
    (0..5).for_each(|_| assert_eq!(gateway.ask(&sent).status, 204));
    let begin = Instant::now();
    gateway.signal("TERM");
    assert!(gateway.wait().status.success());
    // It waited for who might read yet.
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    drop(reader);
}

#[test]
fn a_log_that_nobody_reads_drops_lines_and_holds_up_nothing() {
    const REQUESTS: usize = 200;
    let config = "
plugins: [{ access_log: { target: stdout, headers: [x-long] } }]
listeners: [{ name: main, bind: 127.0.0.1:0, limits: { header_bytes: 64KiB } }]
routes: [{ respond: { status: 204 } }]
";
    let (reader, writer) = std::io::pipe().unwrap();
    let gateway = Setup::new(config).stdout(writer).start();
    // Together more than the queue holds.
    let sent = request("GET", "/").header("x-long", &"l".repeat(60 << 10));
    let mut http = gateway.connect();
    for _ in 0..REQUESTS {
        assert_eq!(http.ask(&sent).unwrap().status, 204);
    }
    let logged = || gateway.metric("portcullis_plugin_hook_duration_seconds_count", &["hook=\"on_log\""]);
    until("every line to be written or dropped", || logged() == REQUESTS as f64);
    let dropped = gateway.metric("portcullis_log_dropped_total", &["stdout"]) as usize;
    assert!((30..120).contains(&dropped), "{dropped} lines dropped");
    // Once somebody reads, the rest is there.
    let read = Arc::new(AtomicUsize::new(0));
    let counting = read.clone();
    std::thread::spawn(move || {
        let lines = BufReader::new(reader).lines().map_while(Result::ok);
        lines.for_each(|_| _ = counting.fetch_add(1, Ordering::SeqCst));
    });
    until("the rest to be read", || read.load(Ordering::SeqCst) == REQUESTS - dropped);
    http.ask(&sent).unwrap();
    until("the next line", || read.load(Ordering::SeqCst) == REQUESTS - dropped + 1);
}
