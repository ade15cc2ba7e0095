//! What an attempt may cost its client and its upstream: how long all of it may take, what becomes of connections that
//! were closed, and whom failures are counted against.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portcullis_tests::{Gateway, Http, Http2, Origin, Peer, Raw, Setup, nobody, request, server, until};
use serde_json::{Value, json};

/// A gateway before these endpoints.
fn before(endpoints: &[SocketAddr], settings: &str) -> Gateway {
    routed(endpoints, settings, "").start()
}

/// The same with settings of the route, and a plugin that wants the body of `/whole` whole.
fn routed(endpoints: &[SocketAddr], settings: &str, route: &str) -> Setup {
    let urls: Vec<_> = endpoints.iter().map(|address| format!("\"http://{address}\"")).collect();
    let config = format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]
upstreams: {{ origin: {{ endpoints: [{}], {settings} }} }}
routes:
  - {{ name: whole, match: {{ prefix: /whole }}, upstream: origin, plugins: [{{ rhai: {{ file: whole.rhai }} }}] }}
  - {{ name: all, upstream: origin, {route} }}
",
        urls.join(", ")
    );
    Setup::new(&config).file("whole.rhai", "fn on_response_body(ctx) { }")
}

fn counted(gateway: &Gateway, name: &str) -> f64 {
    gateway.metric(&format!("portcullis_upstream_{name}"), &[])
}

fn ejections(gateway: &Gateway) -> f64 {
    gateway.metric("portcullis_endpoint_ejections_total", &[])
}

/// The status, the reason and the end in the access log.
fn told(gateway: &Gateway, path: &str) -> (Value, Value, Value) {
    let line = gateway.logged_path(path);
    (line["status"].clone(), line["reason"].clone(), line["end"].clone())
}

/// A client whose request is under way.
fn begin(gateway: &Gateway, path: &str) -> Http {
    let mut client = gateway.connect();
    client.write(format!("GET {path} HTTP/1.1\r\nhost: g\r\n\r\n").as_bytes()).unwrap();
    client
}

#[test]
fn a_request_has_its_time_to_the_end_of_its_response() {
    let origin = Origin::start();
    let begin = Instant::now();
    let gateway = before(&[origin.address()], "timeouts: { total: 150ms }, retries: 0");
    assert_eq!(gateway.get("/hold").status, 504);
    assert_eq!(told(&gateway, "/hold"), (json!(504), json!("upstream.response_timeout"), json!("complete")));
    assert!(gateway.connect().ask(&request("GET", "/stall")).is_err());
    assert_eq!(told(&gateway, "/stall"), (json!(200), json!("upstream.timeout"), json!("upstream_failed")));
    assert_eq!(gateway.get("/whole/stall").status, 504);
    assert_eq!(told(&gateway, "/whole/stall"), (json!(504), json!("upstream.timeout"), json!("complete")));
    assert!(begin.elapsed() < Duration::from_secs(25), "no other timeout is as short");
    let seen = gateway.get("/").json();
    assert!(seen["headers"]["grpc-timeout"].is_null(), "only calls of gRPC tell it: {seen}");
}

#[test]
fn a_route_has_a_time_of_its_own() {
    let origin = Origin::start();
    let gateway =
        routed(&[origin.address()], "timeouts: { total: 10m }, retries: 0", "timeout: 150ms").start();
    let ask = |path: &str| gateway.connect().ask(&request("GET", path)).map(|answer| answer.status);
    assert_eq!(ask("/hold").unwrap(), 504);
    assert!(ask("/stall").is_err());
    gateway.replace("gateway.yaml", "total: 10m", "total: 150ms");
    gateway.replace("gateway.yaml", "timeout: 150ms", "timeout: 10m");
    gateway.wait_generation(2);
    let mut patient = begin(&gateway, "/hold");
    assert_eq!(ask("/whole/hold").unwrap(), 504);
    origin.release();
    assert_eq!(patient.answer("GET").unwrap().status, 200);
}

#[test]
fn attempts_after_the_first_get_what_is_left_of_the_time() {
    let origin = Origin::start();
    let settings = "timeouts: { total: 450ms }, retries: { attempts: 200, per_try_timeout: 100ms }";
    let gateway = before(&[origin.address()], settings);
    assert_eq!(gateway.get("/hold").status, 504);
    let attempts = counted(&gateway, "attempts_total");
    assert!((2.0..=5.0).contains(&attempts), "{attempts} attempts of 100 ms in 450 ms");
}

#[test]
fn a_client_that_sends_slowly_takes_its_own_time_and_no_endpoint_is_blamed() {
    for settings in
        ["timeouts: { total: 200ms }", "retries: { timeout: 200ms }", "retries: { per_try_timeout: 200ms }"]
    {
        let (one, other) = (Origin::start(), Origin::start());
        let gateway = before(
            &[one.address(), other.address()],
            &format!("{settings}, eject: {{ failures: 1 }}, breaker: {{ min_requests: 1 }}"),
        );
        let mut client = gateway.connect();
        client.write(b"POST /slow HTTP/1.1\r\nhost: g\r\ncontent-length: 10\r\n\r\n12345").unwrap();
        assert_eq!(client.answer("POST").unwrap().status, 408);
        assert_eq!(told(&gateway, "/slow"), (json!(408), json!("body.timeout"), json!("complete")));
        assert_eq!((ejections(&gateway), counted(&gateway, "circuit")), (0.0, 0.0), "{settings}");
        assert_eq!(gateway.metric("portcullis_clients_given_up_total", &["body"]), 1.0);
        // An endpoint that has all of the request is.
        assert_eq!(gateway.ask(&request("POST", "/hold").body("x")).status, 504);
        assert_eq!((ejections(&gateway), counted(&gateway, "circuit")), (1.0, 2.0), "{settings}");
    }
}

#[test]
fn an_endpoint_is_told_what_is_left_after_a_wait_for_others() {
    let origin = Origin::start();
    let config = format!(
        "trusted_proxies: [127.0.0.1]
upstreams:
  origin:
    endpoints: [\"http://{}\"]
    deadline: {{ read: x-request-timeout, tell: x-left-ms }}
    max_requests: 1
    max_pending: 1
    timeouts: {{ pending: 10m }}
",
        origin.address()
    );
    let gateway = Setup::new(&config).start();
    let mut first = begin(&gateway, "/hold");
    until("the request to be held", || origin.held() == 1);
    let mut second = gateway.connect();
    second.write(b"GET / HTTP/1.1\r\nhost: g\r\nx-request-timeout: 60s\r\n\r\n").unwrap();
    until("the other to wait", || counted(&gateway, "pending") == 1.0);
    let waiting = Instant::now();
    until("some time to pass", || waiting.elapsed() >= Duration::from_millis(50));
    let waited = waiting.elapsed().as_millis() as u64;
    origin.release();
    assert_eq!(first.answer("GET").unwrap().status, 200);
    let seen = second.answer("GET").unwrap().json();
    let left: u64 = seen["headers"]["x-left-ms"].as_str().unwrap().parse().unwrap();
    assert!(left <= 60_000 - waited, "{left} ms, after {waited}");
}

#[test]
fn a_call_of_grpc_is_told_what_is_left_of_both_times() {
    let origin = Origin::start();
    let gateway = before(&[origin.address()], "timeouts: { total: 10m }");
    let mut client = Http2::open(gateway.address());
    let mut told = |stream, asked: &[(&str, &str)]| {
        let head = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "g")];
        let call = [("content-type", "application/grpc"), ("te", "trailers")];
        let fields = [&head, &call[..], asked].concat();
        let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        client.fields(stream, true, &fields);
        let seen: Value = serde_json::from_slice(&client.read_until(Http2::DATA).2).unwrap();
        let told = seen["headers"]["grpc-timeout"].as_str().unwrap().strip_suffix('m').map(str::to_owned);
        told.unwrap().parse::<u64>().unwrap()
    };
    assert!((1..=50_000).contains(&told(1, &[("grpc-timeout", "50S")])));
    assert!((50_001..=600_000).contains(&told(3, &[])));
    assert!((50_001..=600_000).contains(&told(5, &[("grpc-timeout", "1H")])));
}

/// Two connections of the gateway that wait for their next request.
fn two_kept(gateway: &Gateway, peer: &Peer) -> [Raw; 2] {
    let mut clients = [begin(gateway, "/"), begin(gateway, "/")];
    let mut kept = [peer.accept().0, peer.accept().0];
    kept.iter_mut().for_each(|raw| raw.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
    assert!(clients.iter_mut().all(|client| client.answer("GET").unwrap().status == 200));
    kept
}

/// Whichever of them gets the next request ends with it. The other one stays open.
fn end_with_the_next_request(kept: [Raw; 2]) {
    for raw in kept {
        std::thread::spawn(move || raw.stream().read(&mut [0; 1024]).unwrap());
    }
}

#[test]
fn a_request_that_meets_a_closed_connection_is_sent_once_more_over_a_new_one() {
    let start = || {
        let peer = Peer::default();
        let gateway = before(&[peer.address()], "retries: 0");
        end_with_the_next_request(two_kept(&gateway, &peer));
        (peer, gateway)
    };
    let (peer, gateway) = start();
    let mut client = begin(&gateway, "/again");
    let (mut fresh, head) = peer.accept();
    assert!(head.starts_with("get /again "), "{head}");
    fresh.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    assert_eq!(client.answer("GET").unwrap().text(), "ok");
    let counts = ["stale_total", "retries_total", "failures_total"].map(|name| counted(&gateway, name));
    assert_eq!((counts, counted(&gateway, "attempts_total")), ([1.0, 0.0, 0.0], 4.0));

    // A new one that is closed too is a failure.
    let (peer, gateway) = start();
    let mut client = begin(&gateway, "/twice");
    drop(peer.accept());
    assert_eq!(client.answer("GET").unwrap().status, 502);
    assert_eq!((counted(&gateway, "stale_total"), counted(&gateway, "failures_total")), (1.0, 1.0));
}

/// Origins that end within a response, each in its way.
fn dies(peer: &Peer, said: &str) {
    let (mut raw, _) = peer.accept();
    raw.write(said);
    raw.finish();
}

#[test]
fn a_response_that_ends_before_its_body_never_looks_complete() {
    let peer = Peer::default();
    let gateway = before(&[peer.address()], "retries: 3");
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for said in ["HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", chunked] {
        // It has begun, so it is not asked for again, however safe that were.
        for (version, path) in [("1.1", "/new"), ("1.0", "/old")] {
            let mut client = Raw::connect(gateway.address());
            client.write(format!("GET {path} HTTP/{version}\r\nhost: g\r\n\r\n"));
            dies(&peer, said);
            let head = client.head().to_lowercase();
            assert!(head.starts_with(&format!("http/{version} 200")), "{head}");
            let mut rest = Vec::new();
            let ended = client.stream().read_to_end(&mut rest);
            assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
            let is_told = head.contains("content-length: 5") || head.contains("transfer-encoding: chunked");
            // Where nothing but the end of the connection tells the end of the body, that must not look orderly.
            assert!(is_told || ended.is_err(), "HTTP/{version}: {head}");
            let (_, _, end) = told(&gateway, path);
            assert_eq!(end, "upstream_failed");
        }
        let mut client = Http2::open(gateway.address());
        client.get(1, "/two", &[]);
        dies(&peer, said);
        assert_eq!(client.reset().0, 1);
    }
    assert!(peer.is_alone());
    assert_eq!((counted(&gateway, "retries_total"), counted(&gateway, "failures_total")), (0.0, 6.0));
}

#[test]
fn an_endpoint_whose_responses_break_off_is_ejected() {
    let (one, other) = (Origin::start(), Origin::start());
    let eject = "eject: { error_rate: 40%, min_requests: 8, failures: 100 }, retries: 0";
    let gateway = before(&[one.address(), other.address()], eject);
    for _ in 0..8 {
        assert!(gateway.connect().ask(&request("GET", "/break")).is_err());
    }
    assert_eq!(ejections(&gateway), 1.0);
}

#[test]
fn streams_that_go_on_take_no_part_of_an_adaptive_limit() {
    let origin = Origin::start();
    let gateway = before(&[origin.address()], "adaptive: { min: 2 }");
    let mut streams = Vec::new();
    for begun in 1..=5 {
        streams.push(begin(&gateway, "/stall"));
        until("the response to begin", || counted(&gateway, "duration_seconds_count") == f64::from(begun));
    }
    assert_eq!((gateway.get("/").status, counted(&gateway, "in_flight")), (200, 5.0));
    let held = [begin(&gateway, "/hold"), begin(&gateway, "/hold")];
    until("the requests to be held", || origin.held() == 2);
    assert_eq!(gateway.get("/").status, 503, "what waits for an answer does");
    origin.release();
    for mut client in held.into_iter().chain(streams.drain(..)) {
        assert_eq!(client.answer("GET").unwrap().status, 200);
    }
}

#[test]
fn copies_close_the_circuit_of_their_upstream_as_requests_do() {
    let (origin, shadow) = (Origin::start(), nobody());
    let config = format!(
        "upstreams:
  origin: {{ endpoints: [\"http://{}\"] }}
  shadow: {{ endpoints: [\"http://{shadow}\"], breaker: {{ min_requests: 2, time: 50ms, probes: 1 }} }}
routes: [{{ upstream: origin, mirror: {{ upstream: shadow }} }}]
",
        origin.address()
    );
    let gateway = Setup::new(&config).start();
    let circuit = || gateway.metric("portcullis_upstream_circuit", &["shadow"]);
    until("the circuit to open", || gateway.get("/").status == 200 && circuit() > 0.0);
    until("a copy to fail again", || {
        gateway.get("/");
        gateway.metric("portcullis_upstream_circuit_opens_total", &["shadow"]) >= 2.0
    });
    let _shadow = server("shadow", shadow);
    until("the circuit to close", || gateway.get("/").status == 200 && circuit() == 0.0);
}

#[test]
fn calls_of_plugins_that_run_out_of_time_count_against_endpoint_and_upstream() {
    let (one, other, origin) = (Origin::start(), Origin::start(), Origin::start());
    let config = format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}, {{ ext_authz: {{ upstream: authz, path: /hold, timeout: 100ms }}, timeout: 10m }}]
upstreams:
  origin: {{ endpoints: [\"http://{}\"] }}
  authz:
    endpoints: [\"http://{}\", \"http://{}\"]
    eject: {{ failures: 1, time: 10m }}
    breaker: {{ min_requests: 2, time: 10m }}
",
        origin.address(),
        one.address(),
        other.address()
    );
    let gateway = Setup::new(&config).start();
    assert_eq!((gateway.get("/first").status, ejections(&gateway)), (500, 1.0));
    assert_eq!(gateway.get("/second").status, 500);
    assert_eq!(gateway.metric("portcullis_upstream_circuit", &["authz"]), 2.0);
    assert_eq!((gateway.get("/third").status, one.served() + other.served(), origin.served()), (500, 2, 0));
}
