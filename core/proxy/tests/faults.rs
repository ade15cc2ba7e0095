//! Plugins with faults of the worst kind: what they break is theirs alone, and the worker goes on.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use http::StatusCode;
use portcullis_plugin::{BodyWish, Decision, End, Exchange, Hook, HookName, Needs, Plugin, Reply};
use portcullis_proxy::body::Budget;
use portcullis_proxy::chain::OnError;
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::shadow::{Shadow, ShadowOptions, Share};
use portcullis_proxy::upstream::Endpoint;
use support::*;
use tokio::sync::oneshot;

fn post(gateway: &Gateway, length: usize) -> String {
    let body = "b".repeat(length);
    gateway.raw(&format!(
        "POST /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
}

/// Waits for the end of every exchange.
fn wait_until_over(gateway: &Gateway) {
    let begin = Instant::now();
    while gateway.metrics.exchanges_open.value() > 0 || gateway.metrics.connections_open.value() > 0 {
        assert!(begin.elapsed() < PATIENCE, "an exchange never ends");
        std::thread::yield_now();
    }
}

#[test]
fn a_filter_that_can_not_be_made_follows_on_error() {
    let faulty = || Probe {
        needs: Needs::default().request_body(BodyWish::Stream),
        filter: Some(|| panic!("a bug")),
        ..Probe::default()
    };
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin()).plugin(faulty()).plugin(ends).start();
    assert_eq!(status(&post(&gateway, 5)), 500);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2.as_deref(), Some("p0 plugin.panic"));
    // On the way back there is nothing left but to break off.
    let needs = Needs::default().response_body(BodyWish::Stream);
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin()).plugin(Probe { needs, ..faulty() }).plugin(ends).start();
    assert!(!gateway.get("/api/x").contains("GET /api/x"));
    let (end, _, decider) = ended.recv_timeout(PATIENCE).unwrap();
    assert_eq!((end, decider.as_deref()), (End::Refused, Some("p0 plugin.panic")));

    let mut allowing = Setup::to(origin()).plugin(faulty());
    allowing.plugins[0].1 = OnError::Allow;
    let answer = post(&allowing.start(), 5);
    assert!(status(&answer) == 200 && answer.contains("bbbbb"), "{answer}");
}

/// State of a plugin that can't be dropped.
struct Undroppable;

impl Drop for Undroppable {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("a bug");
        }
    }
}

/// Leaves such state in some exchanges.
fn leaving() -> Probe {
    Probe {
        needs: Needs::hooks([HookName::OnRequest]),
        on_request: Some(|exchange| {
            if exchange.request().path() == "/api/faulty" {
                exchange.core().slots.push((u32::MAX, Box::new(Undroppable)));
            }
            Ok(Decision::Continue)
        }),
        ..Probe::default()
    }
}

#[test]
fn state_that_panics_when_dropped_harms_no_other_exchange() {
    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin()).plugin(ends).plugin(leaving()).start();
    for _ in 0..3 {
        assert_eq!(status(&gateway.get("/api/faulty")), 200);
        assert_eq!(status(&gateway.get("/api/fine")), 200);
    }
    for _ in 0..6 {
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap().0, End::Complete);
    }
}

#[test]
fn without_a_log_it_ends_its_connection_at_most() {
    let gateway = Setup::to(origin()).plugin(leaving()).start();
    for _ in 0..3 {
        gateway.get("/api/faulty");
        wait_until_over(&gateway);
        assert_eq!(status(&gateway.get("/api/fine")), 200);
    }
}

/// Takes the exchange at a hook, and never gives it back.
struct Thief {
    at: HookName,
}

impl Thief {
    fn take<'a>(&self, at: HookName, exchange: &mut Exchange) -> Hook<'a> {
        if self.at != at || !exchange.request().path().ends_with("taken") {
            return Hook::CONTINUE;
        }
        let taken = exchange.lend();
        Hook::Wait(Box::pin(async move {
            let _taken = taken;
            std::future::pending().await
        }))
    }
}

impl Plugin for Thief {
    fn needs(&self) -> Needs {
        Needs::hooks([self.at])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.take(HookName::OnRequest, exchange)
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.take(HookName::OnLog, exchange)
    }
}

#[test]
fn an_exchange_that_a_plugin_lost_is_counted_as_over() {
    let (ends, ended) = Ends::new();
    let mut setup = Setup::to(origin()).plugin(Thief { at: HookName::OnRequest }).plugin(ends);
    setup.plugin_timeout = 6 * PATIENCE;
    let gateway = setup.start();
    let mut stream = gateway.connect();
    stream.write_all(b"GET /api/taken HTTP/1.1\r\nHost: g\r\n\r\n").unwrap();
    while gateway.metrics.exchanges_open.value() == 0 {
        std::thread::yield_now();
    }
    // The client leaves during the wait.
    drop(stream);
    wait_until_over(&gateway);
    assert_eq!(status(&gateway.get("/api/fine")), 200);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().0, End::Complete);
}

#[test]
fn an_exchange_that_a_plugin_lost_in_its_time_ends_its_connection_only() {
    for at in [HookName::OnRequest, HookName::OnLog] {
        let (ends, ended) = Ends::new();
        let gateway = Setup::to(origin()).plugin(ends).plugin(Thief { at }).start();
        gateway.get("/api/taken");
        wait_until_over(&gateway);
        assert_eq!(status(&gateway.get("/api/fine")), 200, "{at:?}");
        let logged = ended.recv_timeout(PATIENCE);
        assert_eq!(logged.map(|(end, ..)| end), Ok(End::Complete), "{at:?}");
    }
}

/// Keeps each exchange in its `on_log` until it is let go.
struct Held(Mutex<mpsc::Receiver<oneshot::Receiver<()>>>);

impl Plugin for Held {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnLog])
    }

    fn on_log<'a>(&'a self, _: &'a mut Exchange) -> Hook<'a> {
        let Ok(until) = self.0.lock().unwrap().try_recv() else { return Hook::CONTINUE };
        Hook::Wait(Box::pin(async move {
            // Whoever lets go by dropping lets go too.
            let _ = until.await;
            Ok(Decision::Continue)
        }))
    }
}

#[test]
fn a_body_counts_against_the_budget_until_it_is_logged() {
    let (sender, receiver) = mpsc::channel();
    let needs = Needs::default().request_body(BodyWish::Whole { limit: 1000 });
    let whole = Probe { needs, ..Probe::default() };
    let mut setup = Setup::to(origin()).plugin(whole).plugin(Held(Mutex::new(receiver)));
    setup.budget = 1000;
    setup.plugin_timeout = 6 * PATIENCE;
    let gateway = setup.start();
    let (release, until) = oneshot::channel();
    sender.send(until).unwrap();
    assert_eq!(status(&post(&gateway, 900)), 200);
    wait_until_over(&gateway);
    // The answer is out, the body is not gone.
    assert_eq!(status(&post(&gateway, 900)), 503);
    release.send(()).unwrap();
    let begin = Instant::now();
    while status(&post(&gateway, 900)) != 200 {
        assert!(begin.elapsed() < PATIENCE, "the share was never given back");
    }
}

#[test]
fn an_exchange_that_stays_in_its_log_holds_up_the_end_for_a_short_while_only() {
    let (sender, receiver) = mpsc::channel();
    let mut setup = Setup::to(origin()).plugin(Held(Mutex::new(receiver)));
    setup.plugin_timeout = 6 * PATIENCE;
    let mut gateway = setup.start();
    let (_release, until) = oneshot::channel();
    sender.send(until).unwrap();
    assert_eq!(status(&gateway.get("/nowhere")), 404);
    // Its workers end, after five seconds for the log.
    let begin = Instant::now();
    assert_eq!(gateway.drain(), 0);
    assert!((4..30).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
}

/// Exchanges that may wait for their log, and some more.
const WAITING: usize = 16_384;
const MORE: usize = 100;

#[test]
fn exchanges_beyond_the_log_queue_are_counted_and_forgotten() {
    let (sender, receiver) = mpsc::channel();
    let (ends, ended) = Ends::new();
    let mut setup = Setup::to(origin()).plugin(ends).plugin(Held(Mutex::new(receiver)));
    setup.plugin_timeout = 6 * PATIENCE;
    let gateway = setup.start();
    let (release, until) = oneshot::channel();
    sender.send(until).unwrap();
    // The first is in its log, and all others wait behind it.
    assert_eq!(status(&gateway.get("/nowhere")), 404);
    let mut stream = gateway.connect();
    let mut writing = stream.try_clone().unwrap();
    let asking = std::thread::spawn(move || {
        let last = "GET /nowhere HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n";
        let requests = "GET /nowhere HTTP/1.1\r\nHost: g\r\n\r\n".repeat(WAITING + MORE - 1) + last;
        writing.write_all(requests.as_bytes()).unwrap();
    });
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    asking.join().unwrap();
    assert_eq!(answers.matches("HTTP/1.1 404").count(), WAITING + MORE);
    wait_until_over(&gateway);
    assert_eq!(gateway.metrics.logs_dropped.value(), MORE as u64);
    release.send(()).unwrap();
    for _ in 0..=WAITING {
        ended.recv_timeout(PATIENCE).unwrap();
    }
    assert!(ended.try_recv().is_err());
}

#[test]
fn a_hook_that_panics_in_its_wait_is_its_own_failure() {
    struct Waits;

    impl Plugin for Waits {
        fn needs(&self) -> Needs {
            Needs::hooks([HookName::OnRequest])
        }

        fn on_request<'a>(&'a self, _: &'a mut Exchange) -> Hook<'a> {
            Hook::Wait(Box::pin(async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                panic!("a bug");
            }))
        }
    }

    let (ends, ended) = Ends::new();
    let gateway = Setup::to(origin()).plugin(Waits).plugin(ends).start();
    assert_eq!(status(&gateway.get("/api/x")), 500);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().2.as_deref(), Some("p0 plugin.panic"));
}

/// Has nothing to say to first attempts, and keeps second ones waiting or refuses them.
struct Second {
    seen: Mutex<mpsc::Sender<()>>,
    attempts: AtomicUsize,
    refuses: bool,
}

impl Plugin for Second {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnUpstream])
    }

    fn on_upstream<'a>(&'a self, _: &'a mut Exchange) -> Hook<'a> {
        if self.attempts.fetch_add(1, SeqCst) == 0 {
            return Hook::CONTINUE;
        }
        self.seen.lock().unwrap().send(()).unwrap();
        match self.refuses {
            true => Decision::Respond(Box::new(Reply::deny(StatusCode::FORBIDDEN, "test.second"))).into(),
            false => Hook::Wait(Box::pin(std::future::pending())),
        }
    }
}

#[test]
fn the_hooks_of_a_second_attempt_neither_hold_up_the_first_nor_answer_for_it() {
    for refuses in [false, true] {
        let origin = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = origin.local_addr().unwrap();
        let (seen, second) = mpsc::channel();
        let (ends, ended) = Ends::new();
        let mut setup = Setup::to(address).plugin(ends).plugin(Second {
            seen: Mutex::new(seen),
            attempts: AtomicUsize::new(0),
            refuses,
        });
        let other = Endpoint::new(&address.to_string(), &Metrics::new(1)).unwrap();
        setup.hedge = Some((Arc::new(other), Duration::from_millis(1)));
        setup.plugin_timeout = 6 * PATIENCE;
        let gateway = setup.start();
        let mut client = gateway.connect();
        client.write_all(b"GET /api/x HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n").unwrap();
        let (mut first, _) = origin.accept().unwrap();
        second.recv_timeout(PATIENCE).unwrap();
        first.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("first"), "{answer}");
        let ended = ended.recv_timeout(PATIENCE).unwrap();
        assert_eq!(ended, (End::Complete, Some(StatusCode::OK), None), "refuses: {refuses}");
        let counted = gateway.metrics.upstream("origin");
        assert_eq!((counted.hedges.value(), counted.in_flight.value()), (0, 0));
    }
}

/// Waits at `on_request` for as long as the test lives, and counts who asks it afterwards.
struct Waiting(Arc<AtomicUsize>);

impl Plugin for Waiting {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest, HookName::OnResponse, HookName::OnLog])
    }

    fn on_request<'a>(&'a self, _: &'a mut Exchange) -> Hook<'a> {
        Hook::Wait(Box::pin(std::future::pending()))
    }

    fn on_response<'a>(&'a self, _: &'a mut Exchange) -> Hook<'a> {
        self.0.fetch_add(1, SeqCst);
        Hook::CONTINUE
    }

    fn on_log<'a>(&'a self, _: &'a mut Exchange) -> Hook<'a> {
        self.0.fetch_add(1, SeqCst);
        Hook::CONTINUE
    }
}

#[test]
fn while_a_call_in_shadow_waits_there_is_no_other_of_that_exchange() {
    let calls = Arc::new(AtomicUsize::new(0));
    let options = ShadowOptions {
        share: Share { percent: 100, plugin: "waiting".into() },
        allows_errors: false,
        timeout: PATIENCE,
        budget: Budget::new(0),
        metrics: Metrics::new(1).plugin("waiting", "test").shadow.clone(),
    };
    let (ends, ended) = Ends::new();
    // The last to be told of the end is the one in front.
    let shadow = Shadow::new(Arc::new(Waiting(calls.clone())), options);
    let gateway = Setup::to(origin()).plugin(ends).plugin(shadow).start();
    assert_eq!(status(&gateway.get("/api/x")), 200);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap().0, End::Complete);
    assert_eq!(calls.load(SeqCst), 0);
}
