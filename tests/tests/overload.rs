//! More requests than an upstream, or the gateway, can take: those that are let through are answered as
//! if there were no others, and the rest is refused at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portcullis_tests::{Gateway, Http, Origin, PATIENCE, Setup, until};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A gateway before this origin.
fn before(origin: &Origin, settings: &str) -> Gateway {
    let config = format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]\nupstreams: {{ origin: {{ endpoints: [\"http://{}\"], {settings} }} }}\n",
        origin.address()
    );
    Setup::new(&config).start()
}

fn counted(gateway: &Gateway, name: &str) -> f64 {
    gateway.metric(&format!("portcullis_upstream_{name}"), &[])
}

/// A client whose request is held.
fn hold(gateway: &Gateway) -> Http {
    let mut client = gateway.connect();
    client.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    client
}

#[test]
fn an_upstream_that_fails_gets_a_rest_and_comes_back() {
    let origin = Origin::start();
    let breaker = "breaker: { min_requests: 4, time: 1h, probes: 2 }";
    let gateway = before(&origin, breaker);
    for _ in 0..4 {
        assert_eq!(gateway.get("/status/500").status, 500);
    }
    let refused = gateway.get("/refused");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!(refused.status == 503 && (3500..=3600).contains(&wait), "{refused:?}");
    assert_eq!(gateway.logged_path("/refused")["reason"], "upstream.circuit_open");
    assert_eq!(origin.served(), 4, "nothing was sent");
    assert_eq!(
        (counted(&gateway, "circuit"), gateway.status()["upstreams"][0]["circuit"].clone()),
        (2.0, json!("open"))
    );
    assert_eq!(
        (counted(&gateway, "circuit_opens_total"), counted(&gateway, "circuit_refusals_total")),
        (1.0, 1.0)
    );
    // A reload changes when it ends, not that it is open: until then nothing is sent.
    gateway.replace("gateway.yaml", "time: 1h", "time: 50ms");
    gateway.wait_generation(2);
    assert_eq!(gateway.get("/").status, 503);
}

#[test]
fn a_circuit_closes_when_requests_go_well_again() {
    let origin = Origin::start();
    let gateway = before(&origin, "breaker: { min_requests: 4, time: 50ms, probes: 2 }");
    for _ in 0..4 {
        gateway.get("/status/500");
    }
    until("the circuit to close", || {
        gateway.get("/").status == 200 && gateway.status()["upstreams"][0]["circuit"] == "closed"
    });
    for event in ["circuit is open", "circuit is half open", "circuit is closed"] {
        until("the log to say so", || gateway.log().contains(event));
    }
}

#[test]
fn requests_wait_for_others_to_end_as_many_as_may_and_as_long() {
    let origin = Origin::start();
    let gateway = before(&origin, "max_requests: 1, max_pending: 2, timeouts: { pending: 1h }");
    let (mut first, mut second) = (hold(&gateway), hold(&gateway));
    until("one to be held and one to wait", || origin.held() == 1 && counted(&gateway, "pending") == 1.0);
    let gone = hold(&gateway);
    until("two to wait", || counted(&gateway, "pending") == 2.0);
    let refused = gateway.get("/refused");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(gateway.logged_path("/refused")["reason"], "upstream.overloaded");
    drop(gone);
    until("one to wait", || counted(&gateway, "pending") == 1.0);
    gateway.replace("gateway.yaml", "pending: 1h", "pending: 50ms");
    gateway.wait_generation(2);
    let refused = gateway.get("/waits");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(gateway.logged_path("/waits")["reason"], "upstream.pending_timeout");
    assert_eq!((origin.held(), counted(&gateway, "pending_timeouts_total")), (1, 1.0));
    origin.release();
    assert!([&mut first, &mut second].iter_mut().all(|client| client.answer("GET").unwrap().status == 200));
    until("nothing to be under way", || {
        counted(&gateway, "pending") == 0.0 && counted(&gateway, "in_flight") == 0.0
    });
    assert_eq!(gateway.get("/").status, 200);
}

#[test]
fn no_more_exchanges_are_under_way_than_allowed() {
    let origin = Origin::start();
    let config = "plugins: [{ access_log: { target: access.log } }]\nlimits: { exchanges: 2 }\n";
    let gateway = Setup::new(config).before(&origin).start();
    let mut held = [hold(&gateway), hold(&gateway)];
    until("the requests to be held", || origin.held() == 2);
    let refused = gateway.get("/refused");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(gateway.logged_path("/refused")["reason"], "gateway.overloaded");
    assert_eq!(gateway.metric("portcullis_exchanges_refused_total", &[]), 1.0);
    origin.release();
    assert!(held.iter_mut().all(|client| client.answer("GET").unwrap().status == 200));
    until("room for more", || gateway.get("/").status == 200);
}

/// What clients got that ask so often, whatever becomes of those before.
struct Asked {
    /// How long the answers took.
    answered: Vec<Duration>,
    refused: usize,
}

impl Asked {
    fn open_loop(gateway: &Gateway, every: Duration, times: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = gateway.address();
        runtime.block_on(async {
            let (begin, mut asking) = (Instant::now(), JoinSet::new());
            for number in 0..times {
                tokio::time::sleep_until((begin + every * number).into()).await;
                asking.spawn(ask(address));
            }
            let mut asked = Asked { answered: Vec::new(), refused: 0 };
            for (status, took) in asking.join_all().await {
                match status {
                    200 => asked.answered.push(took),
                    503 => asked.refused += 1,
                    other => panic!("{other}"),
                }
            }
            asked.answered.sort();
            asked
        })
    }

    /// The time within which 99 of 100 answers came.
    fn p99(&self) -> Duration {
        self.answered[(self.answered.len() - 1) * 99 / 100]
    }
}

async fn ask(address: SocketAddr) -> (u16, Duration) {
    let begin = Instant::now();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /work/50 HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(status != 503 || answer.to_ascii_lowercase().contains("\r\nretry-after: 1\r\n"), "{answer}");
    (status, begin.elapsed())
}

/// The origin works on four requests at a time, for 50 ms each: 80 a second. It gets three times as many.
#[test]
fn an_overloaded_upstream_answers_those_that_are_let_through_nearly_as_fast_as_ever() {
    const EVERY: Duration = Duration::from_micros(4_167);
    const TIMES: u32 = 720;
    let origin = Origin::start();
    let gateway = before(&origin, "adaptive: { min: 4 }");
    let unloaded = Asked::open_loop(&gateway, EVERY * 6, 40);
    assert_eq!(unloaded.refused, 0);
    let asked = Asked::open_loop(&gateway, EVERY, TIMES);
    assert!(asked.p99() < Duration::from_secs(1), "p99 {:?}, unloaded {:?}", asked.p99(), unloaded.p99());
    assert!(asked.answered.len() > 120, "it still does most of what it can: {}", asked.answered.len());
    assert_eq!(asked.refused as f64, counted(&gateway, "overloads_total"));
    assert!(gateway.status()["upstreams"][0]["limit"].as_u64() < Some(40), "{}", gateway.status());

    let unprotected = before(&origin, "max_idle: 64");
    let collapsed = Asked::open_loop(&unprotected, EVERY, TIMES);
    assert_eq!(collapsed.refused, 0);
    assert!(collapsed.p99() > Duration::from_secs(3), "p99 {:?}: not overloaded at all", collapsed.p99());
}
