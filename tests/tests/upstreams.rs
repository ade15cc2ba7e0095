//! What an upstream can do to the gateway, and within which bounds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use portcullis_tests::{Gateway, Origin, Setup, request, until};
use serde_json::{Value, json};

/// A gateway whose upstream has these settings.
fn before(origin: &Origin, settings: &str) -> Gateway {
    reaching(origin.address(), settings)
}

fn reaching(origin: SocketAddr, settings: &str) -> Gateway {
    let config = format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]\nupstreams: {{ origin: {{ endpoints: [\"http://{origin}\"], {settings} }} }}\n"
    );
    Setup::new(&config).start()
}

/// The status and the reason in the access log.
fn told(gateway: &Gateway, path: &str) -> (Value, Value) {
    let line = gateway.logged_path(path);
    (line["status"].clone(), line["reason"].clone())
}

#[test]
fn no_more_idle_connections_are_kept_than_allowed() {
    for (allowed, asked) in [(2, 6), (0, 2)] {
        let origin = Origin::start();
        let gateway = before(&origin, &format!("max_idle: {allowed}"));
        let mut clients: Vec<_> = (0..asked).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
        }
        until("the requests to be held", || origin.held() == asked);
        assert_eq!(origin.connections(), asked);
        origin.release();
        assert!(clients.iter_mut().all(|client| client.answer("GET").unwrap().status == 200));
        until("the surplus to be closed", || origin.connections() == allowed);
        assert_eq!(gateway.get("/").status, 200);
        let opened = asked + usize::from(allowed == 0);
        assert_eq!(gateway.metric("portcullis_upstream_connects_total", &[]), opened as f64);
    }
}

#[test]
fn an_unused_connection_is_closed() {
    let origin = Origin::start();
    let gateway = before(&origin, "timeouts: { idle: 100ms }");
    assert_eq!(gateway.get("/").status, 200);
    until("the connection to be closed", || origin.connections() == 0);
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(gateway.metric("portcullis_upstream_connects_total", &[]), 2.0);
}

#[test]
fn a_connection_gets_no_more_requests_beyond_its_age() {
    for protocol in ["http1", "http2"] {
        let origin = Origin::start();
        let gateway = before(&origin, &format!("protocol: {protocol}, max_connection_age: 300ms"));
        let connects = || gateway.metric("portcullis_upstream_connects_total", &[]);
        let mut client = gateway.connect();
        client.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
        until("the request to be held", || origin.held() == 1);
        assert_eq!(connects(), 1.0);
        // One for others is opened, and then another.
        until("more connections", || gateway.get("/").status == 200 && connects() >= 3.0);
        origin.release();
        assert_eq!(client.answer("GET").unwrap().status, 200);
        until("all to be closed", || origin.connections() == 0);
    }
}

#[test]
fn a_connection_that_does_not_come_about_is_a_504() {
    let full = Full::new();
    let gateway = reaching(full.address, "timeouts: { connect: 150ms }, retries: 0");
    assert_eq!(gateway.get("/full").status, 504);
    assert_eq!(told(&gateway, "/full"), (json!(504), json!("upstream.connect_timeout")));
    assert_eq!(gateway.metric("portcullis_upstream_connect_failures_total", &[]), 1.0);
}

/// A server whose queue of connections is full: the system answers no further one.
struct Full {
    address: SocketAddr,
    _server: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Full {
    fn new() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        let queued: Vec<_> = std::iter::from_fn(connect).take(20_000).collect();
        assert!(queued.len() < 20_000, "the queue has no end");
        Full { address, _server: server, _queued: queued }
    }
}

#[test]
fn a_response_that_stops_breaks_off() {
    let origin = Origin::start();
    let gateway = before(&origin, "timeouts: { body: 150ms }");
    assert!(gateway.connect().ask(&request("GET", "/stall")).is_err());
    assert_eq!(gateway.logged_path("/stall")["end"], "upstream_failed");
    origin.release();
    assert_eq!(gateway.get("/stall").text(), "halfhalf");
}

#[test]
fn what_may_be_repeated_is_repeated_so_often() {
    for (retries, attempts) in [(0, 1), (3, 4)] {
        let origin = Origin::start();
        let gateway = before(&origin, &format!("retries: {retries}"));
        assert_eq!((gateway.get("/close").status, origin.served()), (502, attempts));
        assert_eq!(told(&gateway, "/close"), (json!(502), json!("upstream.failed")));
        // A method that may have done something is not.
        assert_eq!(gateway.ask(&request("POST", "/close").body("x")).status, 502);
        assert_eq!(origin.served(), attempts + 1);
    }
}

#[test]
fn a_response_with_too_many_headers_is_a_502() {
    let origin = Origin::start();
    let gateway = before(&origin, "retries: 0");
    let within = gateway.get("/headers/200");
    assert_eq!((within.status, within.header("x-199")), (200, Some("1")));
    assert_eq!(gateway.get("/headers/300").status, 502);
    assert_eq!(told(&gateway, "/headers/300"), (json!(502), json!("upstream.failed")));
    assert_eq!(gateway.get("/body/fine").text(), "fine");
}

#[test]
fn a_response_with_too_long_a_head_is_a_502() {
    let origin = Origin::start();
    let gateway = before(&origin, "retries: 0");
    let within = gateway.get("/head/200000");
    assert_eq!((within.status, within.header("x-long").unwrap().len()), (200, 200_000));
    assert_eq!(gateway.get("/head/1048576").status, 502);
    assert_eq!(told(&gateway, "/head/1048576"), (json!(502), json!("upstream.failed")));
    assert_eq!(gateway.get("/body/fine").text(), "fine");
}
