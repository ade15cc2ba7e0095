//! Upstreams that fail: what a client notices of it, which should be nothing where repeating is safe.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portcullis_tests::{Answer, Gateway, Load, Origin, Peer, Setup, nobody, request, server, until};
use serde_json::{Value, json};

/// A gateway before these endpoints.
fn before(endpoints: &[SocketAddr], settings: &str) -> Gateway {
    let urls: Vec<_> = endpoints.iter().map(|address| format!("\"http://{address}\"")).collect();
    with(&format!("endpoints: [{}], {settings}", urls.join(", ")))
}

fn with(upstream: &str) -> Gateway {
    let config = format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]\nupstreams: {{ origin: {{ {upstream} }} }}\n"
    );
    Setup::new(&config).start()
}

fn metric(gateway: &Gateway, name: &str, endpoint: SocketAddr) -> f64 {
    gateway.metric(&format!("portcullis_endpoint_{name}"), &[&format!("endpoint=\"{endpoint}\"")])
}

fn counted(gateway: &Gateway, name: &str) -> f64 {
    gateway.metric(&format!("portcullis_upstream_{name}"), &[])
}

fn is_healthy(gateway: &Gateway, endpoint: SocketAddr) -> bool {
    metric(gateway, "healthy", endpoint) == 1.0
}

fn served_by(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200);
    answer.json()["origin"].clone()
}

#[test]
fn a_server_that_is_killed_and_started_again_under_load_costs_no_request() {
    let (steady, address) = (server("steady", nobody()), nobody());
    let mut other = Some(server("other", address));
    let settings = "eject: { failures: 2, time: 100ms }, slow_start: 300ms";
    let gateway = before(&[steady.address(), address], settings);
    Load::during(gateway.address(), |load| {
        for _ in 0..2 {
            load.go_on();
            drop(other.take());
            until("the endpoint to be ejected", || !is_healthy(&gateway, address));
            load.go_on();
            other = Some(server("other", address));
            until("the endpoint to be back", || is_healthy(&gateway, address));
        }
        load.go_on();
    });
    assert!(metric(&gateway, "ejections_total", address) >= 2.0);
    assert_eq!(metric(&gateway, "ejections_total", steady.address()), 0.0);
    assert_eq!(counted(&gateway, "retry_budget_exhausted_total"), 0.0);
    until("the log to say so", || {
        let log = gateway.log();
        log.contains("endpoint ejected") && log.contains("endpoint is back")
    });
}

#[test]
fn a_server_that_is_stopped_costs_no_request() {
    let (steady, other) = (server("steady", nobody()), server("other", nobody()));
    let settings = "eject: { failures: 2, time: 100ms }, timeouts: { response: 1s }";
    let gateway = before(&[steady.address(), other.address()], settings);
    Load::during(gateway.address(), |load| {
        load.go_on();
        other.signal("STOP");
        until("the endpoint to be ejected", || !is_healthy(&gateway, other.address()));
        load.go_on();
        other.signal("CONT");
        until("the endpoint to be back", || is_healthy(&gateway, other.address()));
        load.go_on();
    });
}

#[test]
fn failures_in_a_row_eject_an_endpoint_and_a_reload_does_not_bring_it_back() {
    let (origin, dead) = (Origin::start(), nobody());
    let gateway = before(&[origin.address(), dead], "eject: { failures: 3, time: 10m }");
    for _ in 0..20 {
        assert_eq!(gateway.get("/").status, 200);
    }
    assert_eq!(
        (counted(&gateway, "connect_failures_total"), metric(&gateway, "ejections_total", dead)),
        (3.0, 1.0)
    );
    let state = |status: &Value| status["upstreams"][0]["endpoints"][1]["state"].clone();
    assert_eq!(state(&gateway.status()), "ejected");
    gateway.replace("gateway.yaml", "failures: 3", "failures: 4");
    assert_eq!(state(&gateway.wait_generation(2)), "ejected");
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!(counted(&gateway, "connect_failures_total"), 3.0);
}

#[test]
fn an_ejected_endpoint_is_tried_again_after_its_time() {
    let (origin, dead) = (Origin::start(), nobody());
    let gateway = before(&[origin.address(), dead], "eject: { failures: 1, time: 50ms }");
    until("two ejections", || {
        gateway.get("/").status == 200 && metric(&gateway, "ejections_total", dead) >= 2.0
    });
    let late = server("late", dead);
    until("the endpoint to be back", || gateway.get("/").status == 200 && is_healthy(&gateway, dead));
    drop(late);
}

#[test]
fn nothing_is_ejected_where_that_is_off_and_one_of_one_never_is() {
    let (origin, dead) = (Origin::start(), nobody());
    let off = before(&[origin.address(), dead], "eject: off");
    let alone = before(&[dead], "eject: { failures: 1 }, retries: 0");
    for _ in 0..20 {
        assert_eq!((off.get("/").status, alone.get("/").status), (200, 502));
    }
    assert!(counted(&off, "connect_failures_total") >= 10.0);
    assert_eq!(counted(&alone, "connect_failures_total"), 20.0);
}

#[test]
fn responses_that_are_errors_eject_only_where_that_is_said() {
    for (settings, ejections) in
        [("eject: { failures: 2 }", 0.0), ("eject: { failures: 2, server_errors: true }", 1.0)]
    {
        let (one, other) = (Origin::start(), Origin::start());
        let gateway = before(&[one.address(), other.address()], settings);
        for _ in 0..10 {
            assert_eq!(gateway.get("/status/500").status, 500);
        }
        assert_eq!(gateway.metric("portcullis_endpoint_ejections_total", &[]), ejections);
    }
}

#[test]
fn no_more_requests_are_under_way_than_allowed() {
    let origin = Origin::start();
    let gateway = before(&[origin.address()], "max_requests: 2");
    let mut clients = [gateway.connect(), gateway.connect()];
    for client in &mut clients {
        client.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    }
    until("the requests to be held", || origin.held() == 2);
    assert_eq!((counted(&gateway, "in_flight"), metric(&gateway, "in_flight", origin.address())), (2.0, 2.0));
    let refused = gateway.get("/third");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(gateway.logged_path("/third")["reason"], "upstream.overloaded");
    origin.release();
    assert!(clients.iter_mut().all(|client| client.answer("GET").unwrap().status == 200));
    assert_eq!((gateway.get("/").status, counted(&gateway, "overloads_total")), (200, 1.0));
    until("nothing to be under way", || counted(&gateway, "in_flight") == 0.0);
}

#[test]
fn a_request_is_under_way_until_its_response_has_ended_or_its_client_is_gone() {
    let origin = Origin::start();
    let gateway = before(&[origin.address()], "max_requests: 1");
    let mut client = gateway.connect();
    client.write(b"GET /stall HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the response to begin", || counted(&gateway, "duration_seconds_count") == 1.0);
    assert_eq!(gateway.get("/").status, 503);
    drop(client);
    until("the request to end", || counted(&gateway, "in_flight") == 0.0);
    assert_eq!((gateway.get("/").status, metric(&gateway, "in_flight", origin.address())), (200, 0.0));
}

#[test]
fn retries_have_a_budget() {
    let (origin, dead) = (Origin::start(), nobody());
    let run = |budget: &str| {
        let settings = format!("eject: off, retries: {{ budget: {budget} }}");
        let gateway = before(&[origin.address(), dead], &settings);
        let failed = (0..10).filter(|_| gateway.get("/").status == 502).count();
        (failed, counted(&gateway, "retries_total"), counted(&gateway, "retry_budget_exhausted_total"))
    };
    assert_eq!(run("{ share: 0%, min: 0 }"), (5, 0.0, 5.0));
    let (failed, retries, refused) = run("{ share: 0%, min: 1 }");
    assert!((failed, refused) == (0, 0.0) && retries >= 5.0, "{retries}");
}

#[test]
fn as_many_attempts_are_made_as_is_said() {
    let (origin, dead, gone) = (Origin::start(), nobody(), nobody());
    for (retries, failed) in [("retries: { attempts: 2 }", 0), ("retries: { attempts: 0 }", 8)] {
        let gateway = before(&[origin.address(), dead, gone], &format!("eject: off, {retries}"));
        assert_eq!((0..12).filter(|_| gateway.get("/").status == 502).count(), failed);
    }
}

#[test]
fn retries_wait_unless_another_endpoint_can_be_tried_at_once() {
    let origin = Origin::start();
    let settings = "retries: { attempts: 5, on: [503], backoff: 200ms }, eject: off";
    let gateway = before(&[origin.address()], settings);
    let begin = Instant::now();
    assert_eq!(gateway.get("/status/503").status, 503);
    // Lots of up to 6.2 s together.
    assert!(begin.elapsed() > Duration::from_millis(100));
    assert_eq!(counted(&gateway, "attempts_total"), 6.0);
    let settings = "retries: { attempts: 2, backoff: 1h }, eject: off";
    let gateway = before(&[origin.address(), nobody(), nobody()], settings);
    assert!((0..6).all(|_| gateway.get("/").status == 200));
    assert!(counted(&gateway, "retries_total") > 0.0);
}

#[test]
fn an_attempt_and_all_attempts_have_their_time() {
    let run = |retries: &str| {
        let origin = Origin::start();
        let gateway = before(&[origin.address()], &format!("retries: {{ {retries} }}"));
        let begin = Instant::now();
        assert_eq!(gateway.get("/hold").status, 504);
        assert!(begin.elapsed() < Duration::from_secs(20), "the response's own timeout is 30 s");
        (gateway.logged_path("/hold")["reason"].clone(), counted(&gateway, "attempts_total"))
    };
    assert_eq!(run("attempts: 2, per_try_timeout: 100ms"), (json!("upstream.response_timeout"), 3.0));
    assert_eq!(run("attempts: 200, timeout: 200ms"), (json!("upstream.response_timeout"), 1.0));
    let (_, attempts) = run("attempts: 200, per_try_timeout: 100ms, timeout: 450ms");
    assert!((2.0..=5.0).contains(&attempts), "{attempts} attempts of 100 ms in 450 ms");
}

#[test]
fn attempts_follow_the_failures_that_are_named() {
    let run = |on: &str, method: &str, path: &str| {
        let (origin, other) = (Origin::start(), Origin::start());
        let response = if path == "/hold" { "100ms" } else { "10m" };
        let settings = format!("retries: {{ attempts: 1, on: {on} }}, timeouts: {{ response: {response} }}");
        let gateway = before(&[origin.address(), other.address()], &settings);
        let status = gateway.ask(&request(method, path)).status;
        (status, origin.served() + other.served())
    };
    assert_eq!(run("[503]", "GET", "/status/503"), (503, 2));
    assert_eq!(run("[502]", "GET", "/status/503"), (503, 1));
    assert_eq!(run("[503]", "POST", "/status/503"), (503, 1));
    assert_eq!(run("[broken]", "GET", "/close"), (502, 2));
    assert_eq!(run("[connect, timeout]", "GET", "/close"), (502, 1));
    assert_eq!(run("[timeout]", "GET", "/hold"), (504, 2));
    assert_eq!(run("[broken]", "GET", "/hold"), (504, 1));
    let dead = [nobody(), nobody()];
    for (on, failures) in [("[connect]", 2.0), ("[timeout]", 1.0)] {
        let gateway = before(&dead, &format!("retries: {{ on: {on} }}"));
        assert_eq!((gateway.get("/").status, counted(&gateway, "connect_failures_total")), (502, failures));
    }
}

#[test]
fn an_endpoint_that_fails_often_is_ejected_though_not_in_a_row() {
    let (one, other) = (Origin::start(), Origin::start());
    let eject = "eject: { failures: 1000, server_errors: true, error_rate: 30%, min_requests: 10 }";
    let gateway = before(&[one.address(), other.address()], eject);
    let ejections = || gateway.metric("portcullis_endpoint_ejections_total", &[]);
    // Two of four requests to each endpoint fail, and never more than two in a row.
    for path in ["/", "/", "/status/500", "/status/500"].iter().cycle().take(80) {
        assert!([200, 500].contains(&gateway.get(path).status));
    }
    assert_eq!(ejections(), 1.0);
    until("the log to say why", || gateway.log().contains("\"why\":\"error_rate\""));
}

#[test]
fn a_request_that_takes_long_is_sent_elsewhere_too() {
    let (one, other) = (Origin::named("one"), Origin::named("other"));
    let gateway = before(&[one.address(), other.address()], "hedge: { after: 20ms }");
    let ask = |method: &str| {
        let mut client = gateway.connect();
        client
            .write(format!("{method} /hold HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n").as_bytes())
            .unwrap();
        client
    };
    let mut posted = ask("POST");
    until("one request to be held", || one.held() + other.held() == 1);
    let mut got = ask("GET");
    until("two more requests to be held", || one.held() + other.held() == 3);
    assert_eq!(counted(&gateway, "hedges_total"), 1.0, "what may not be repeated is not");
    let (slow, quick, name) = if one.held() == 1 { (&other, &one, "one") } else { (&one, &other, "other") };
    assert_eq!((slow.held(), quick.held()), (2, 1));
    quick.release();
    assert_eq!(served_by(&got.answer("GET").unwrap()), name);
    until("the other's connection to be closed", || slow.connections() == 1);
    slow.release();
    assert_eq!(posted.answer("POST").unwrap().status, 200);
    until("nothing to be under way", || counted(&gateway, "in_flight") == 0.0);
    assert_eq!((counted(&gateway, "hedges_total"), one.served() + other.served()), (1.0, 3));
}

#[test]
fn an_error_of_a_second_attempt_does_not_win() {
    let peers = [Peer::default(), Peer::default()];
    let gateway = before(&[peers[0].address(), peers[1].address()], "hedge: { after: 20ms }, retries: 0");
    let mut client = gateway.connect();
    client.write(b"GET / HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    let (arrive, arrived) = std::sync::mpsc::channel();
    for peer in peers {
        let arrive = arrive.clone();
        std::thread::spawn(move || arrive.send(peer.accept().0).unwrap());
    }
    let (mut first, mut second) = (arrived.recv().unwrap(), arrived.recv().unwrap());
    second.write("HTTP/1.1 500 Error\r\ncontent-length: 0\r\n\r\n");
    until("the error to be taken", || counted(&gateway, "in_flight") == 1.0);
    first.write("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst");
    assert_eq!(client.answer("GET").unwrap().text(), "first");
    assert_eq!((counted(&gateway, "hedges_total"), counted(&gateway, "hedges_won_total")), (1.0, 0.0));
}

#[test]
fn an_endpoint_that_always_loses_is_ejected_for_being_slow() {
    let (slow, quick) = (Origin::start(), Origin::start());
    quick.release();
    let settings = "hedge: { after: 50ms }, eject: { latency_factor: 2, min_requests: 3, window: 1s }";
    let gateway = before(&[slow.address(), quick.address()], settings);
    until("the slow one to be ejected", || {
        assert_eq!(gateway.get("/hold").status, 200);
        metric(&gateway, "ejections_total", slow.address()) > 0.0
    });
    until("the log to say why", || gateway.log().contains("\"why\":\"slow\""));
}

#[test]
fn attempts_beside_the_first_are_within_the_budget_of_retries() {
    let (one, other) = (Origin::start(), Origin::start());
    let settings = "hedge: { after: 1ms }, retries: { budget: { share: 0%, min: 0 } }";
    let gateway = before(&[one.address(), other.address()], settings);
    let mut client = gateway.connect();
    client.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the budget to be asked", || counted(&gateway, "retry_budget_exhausted_total") == 1.0);
    until("the request to be held", || one.held() + other.held() > 0);
    assert_eq!((one.held() + other.held(), counted(&gateway, "hedges_total")), (1, 0.0));
}

#[test]
fn a_server_that_is_stopped_is_hardly_noticed_where_requests_are_hedged() {
    for after in ["100ms", "p95"] {
        let (steady, other) = (server("steady", nobody()), server("other", nobody()));
        let settings = format!("hedge: {{ after: {after} }}, eject: off");
        let gateway = before(&[steady.address(), other.address()], &settings);
        assert!((0..20).all(|_| gateway.get("/").status == 200));
        other.signal("STOP");
        let begin = Instant::now();
        assert!((0..10).all(|_| gateway.get("/").status == 200));
        assert!(begin.elapsed() < Duration::from_secs(20), "a response's own timeout is 30 s");
        assert!(counted(&gateway, "hedges_won_total") >= 3.0, "{after}");
        other.signal("CONT");
    }
}

/// A gateway that believes its clients, or does not, what they say of their time.
fn telling(trusted: &str, endpoints: &[SocketAddr], settings: &str) -> Gateway {
    let urls: Vec<_> = endpoints.iter().map(|address| format!("\"http://{address}\"")).collect();
    let config = format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]
trusted_proxies: [{trusted}]
upstreams:
  origin:
    endpoints: [{}]
    deadline: {{ read: x-request-timeout, tell: x-left-ms }}
    {settings}
",
        urls.join(", ")
    );
    Setup::new(&config).start()
}

#[test]
fn a_deadline_goes_from_hop_to_hop() {
    let origin = Origin::start();
    let left = |gateway: &Gateway, asked: &str| {
        let asked = request("GET", "/").header("x-request-timeout", asked).header("x-left-ms", "forged");
        let seen = gateway.ask(&asked).json();
        let left = seen["headers"]["x-left-ms"].as_str().map(str::to_owned);
        (left, seen["headers"]["x-request-timeout"].is_string())
    };
    let believing = telling("127.0.0.1", &[origin.address()], "retries: { timeout: 20s }");
    let millis = |asked: &str| left(&believing, asked).0.unwrap().parse::<u64>().unwrap();
    assert!((1..=15_000).contains(&millis("15")));
    assert!((15_001..=20_000).contains(&millis("60")), "a request gets no more than is configured");
    let doubting = telling("", &[origin.address()], "");
    assert_eq!(left(&doubting, "15"), (None, false), "what a client says goes no further");
}

#[test]
fn a_request_is_given_up_when_its_deadline_is_over_and_no_endpoint_is_blamed() {
    let (origin, other) = (Origin::start(), Origin::start());
    let settings = "eject: { failures: 1 }\n    retries: { attempts: 200 }";
    let gateway = telling("127.0.0.1", &[origin.address(), other.address()], settings);
    let begin = Instant::now();
    let asked = request("GET", "/hold").header("x-request-timeout", "100ms");
    assert_eq!(gateway.ask(&asked).status, 504);
    assert!(begin.elapsed() < Duration::from_secs(20), "the response's own timeout is 30 s");
    assert_eq!(gateway.logged_path("/hold")["reason"], "upstream.deadline");
    assert_eq!(gateway.metric("portcullis_endpoint_ejections_total", &[]), 0.0);
    assert_eq!(counted(&gateway, "attempts_total"), 1.0);
}

#[test]
fn an_endpoint_that_hangs_for_all_of_the_time_is_ejected() {
    let (origin, other) = (Origin::start(), Origin::start());
    let settings = "eject: { failures: 1 }, retries: { attempts: 0, timeout: 100ms }";
    let gateway = before(&[origin.address(), other.address()], settings);
    assert_eq!(gateway.get("/hold").status, 504);
    assert_eq!(gateway.metric("portcullis_endpoint_ejections_total", &[]), 1.0);
}

#[test]
fn checks_find_an_endpoint_that_says_it_is_unwell() {
    let address = nobody();
    let sick = Setup::new(&format!(
        "listeners: [{{ name: main, bind: \"{address}\" }}]\nroutes: [{{ respond: {{ status: 204 }} }}]\n"
    ));
    let (sick, well) = (sick.start(), Origin::start());
    let health = "health: { path: /status/204, status: [204], interval: 20ms, unhealthy: 2, healthy: 2 }";
    let gateway = before(&[well.address(), address], health);
    until("some checks", || well.served() >= 5);
    assert!(is_healthy(&gateway, address));
    sick.replace("gateway.yaml", "204", "503");
    until("the endpoint to be unhealthy", || !is_healthy(&gateway, address));
    let (asked, state) = (20, gateway.status()["upstreams"][0]["endpoints"][1]["state"].clone());
    assert_eq!(state, "unhealthy");
    assert!((0..asked).all(|_| gateway.get("/").status == 200), "none goes to the other");
    assert_eq!(gateway.metric("portcullis_endpoint_ejections_total", &[]), 0.0);
    sick.replace("gateway.yaml", "503", "204");
    until("the endpoint to be healthy", || is_healthy(&gateway, address));
    let statuses: BTreeSet<_> = (0..asked).map(|_| gateway.get("/").status).collect();
    assert_eq!(statuses, BTreeSet::from([200, 204]));
    for event in ["endpoint is unhealthy", "endpoint is healthy again"] {
        until("the log to say so once", || gateway.log().matches(event).count() == 1);
    }
}

#[test]
fn checks_that_connect_find_an_endpoint_that_is_not_there_before_a_request_does() {
    let (origin, dead) = (Origin::start(), nobody());
    let gateway = before(&[origin.address(), dead], "health: { interval: 20ms }");
    until("the endpoint to be unhealthy", || !is_healthy(&gateway, dead));
    assert!((0..10).all(|_| gateway.get("/").status == 200));
    assert_eq!(counted(&gateway, "connect_failures_total"), 0.0);
    gateway.replace("gateway.yaml", "health: { interval: 20ms }", "retries: 0, eject: off");
    gateway.wait_generation(2);
    until("nobody to say so any more", || is_healthy(&gateway, dead));
    assert!((0..2).any(|_| gateway.get("/").status == 502));
}

#[test]
fn a_check_has_its_time() {
    let (steady, other) = (server("steady", nobody()), server("other", nobody()));
    let health = "health: { path: /, interval: 20ms, timeout: 200ms, unhealthy: 2 }";
    let gateway = before(&[steady.address(), other.address()], health);
    other.signal("STOP");
    until("the endpoint to be unhealthy", || !is_healthy(&gateway, other.address()));
    until("the log to say why", || gateway.log().contains("no answer in 200ms"));
    assert!(is_healthy(&gateway, steady.address()));
    other.signal("CONT");
    until("the endpoint to be healthy", || is_healthy(&gateway, other.address()));
}

#[test]
fn a_check_asks_what_and_where_it_is_told_to() {
    for protocol in ["http1", "http2"] {
        let (origin, address) = (Origin::start(), nobody());
        let route = "match: { hosts: [probe.test], path: /ready, query: { deep: \"1\" }, headers: { x-probe: \"yes\" } }";
        let probe = Setup::new(&format!(
            "listeners: [{{ name: main, bind: \"{address}\" }}]\nroutes: [{{ {route}, respond: {{ status: 204 }} }}]\n"
        ))
        .start();
        let health = |query: &str| {
            let asked =
                format!("path: \"/ready?{query}\", host: probe.test, headers: {{ x-probe: \"yes\" }}");
            format!("{{ {asked}, port: {}, interval: 20ms, unhealthy: 1, healthy: 1 }}", address.port())
        };
        let settings = format!("protocol: {protocol}, health: {}", health("deep=0"));
        let gateway = before(&[origin.address()], &settings);
        until("the endpoint to be unhealthy", || !is_healthy(&gateway, origin.address()));
        until("the log to say why", || gateway.log().contains("status 404"));
        gateway.replace("gateway.yaml", "deep=0", "deep=1");
        until("the endpoint to be healthy", || is_healthy(&gateway, origin.address()));
        drop(probe);
        until("the endpoint to be unhealthy", || !is_healthy(&gateway, origin.address()));
        assert_eq!(origin.served(), 0);
    }
}

#[test]
fn checks_come_at_their_interval() {
    let (often, seldom) = (Origin::start(), Origin::start());
    let config = format!(
        "upstreams:
  often: {{ endpoints: [\"http://{}\"], health: {{ path: /, interval: 20ms }} }}
  seldom: {{ endpoints: [\"http://{}\"], health: {{ path: /, interval: 1h }} }}
routes: [{{ respond: {{}} }}]
",
        often.address(),
        seldom.address()
    );
    let _gateway = Setup::new(&config).start();
    until("some checks", || often.served() >= 10);
    assert_eq!(seldom.served(), 1);
}

#[test]
fn an_endpoint_of_the_next_priority_waits_until_it_is_needed() {
    let (first, second, dead) = (Origin::named("first"), Origin::named("second"), nobody());
    let run = |least: &str| {
        let gateway = with(&format!(
            "endpoints: [\"http://{}\", \"http://{dead}\", {{ url: \"http://{}\", priority: 1 }}], min_healthy: {least}, health: {{ interval: 20ms }}",
            first.address(),
            second.address()
        ));
        until("the endpoint to be unhealthy", || !is_healthy(&gateway, dead));
        let by: BTreeSet<_> = (0..20).map(|_| served_by(&gateway.get("/")).to_string()).collect();
        by.len()
    };
    assert_eq!((run("50%"), run("51%")), (1, 2));
}

#[test]
fn endpoints_of_the_own_zone_serve_first_and_the_others_when_they_fail() {
    let (far, address) = (server("far", nobody()), nobody());
    let mut near = Some(server("near", address));
    let config = format!(
        "
zone: ${{ZONE}}
upstreams:
  origin:
    endpoints: [{{ url: \"http://{}\", zone: b }}, {{ url: \"http://{address}\", zone: a }}]
    eject: {{ failures: 2, time: 100ms }}
",
        far.address()
    );
    let gateway = Setup::new(&config).variable("ZONE", "a").start();
    let serving = || (0..20).map(|_| gateway.get("/").text()).collect::<BTreeSet<_>>();
    let (only_near, only_far) = (BTreeSet::from(["near".to_owned()]), BTreeSet::from(["far".to_owned()]));
    assert_eq!(serving(), only_near);
    Load::during(gateway.address(), |load| {
        load.go_on();
        drop(near.take());
        until("the endpoint to be ejected", || !is_healthy(&gateway, address));
        load.go_on();
        near = Some(server("near", address));
        until("the endpoint to be back", || is_healthy(&gateway, address));
        load.go_on();
    });
    assert_eq!(serving(), only_near);
    gateway.replace("gateway.yaml", "zone: ${ZONE}", "zone: b");
    gateway.wait_generation(2);
    assert_eq!(serving(), only_far);
}

#[test]
fn other_zones_help_when_too_few_of_the_own_are_healthy_and_before_the_next_priority() {
    let (own, other, last) = (Origin::named("own"), Origin::named("other"), Origin::named("last"));
    let dead = nobody();
    let run = |least: &str| {
        let at = |address: SocketAddr, rest: &str| format!("{{ url: \"http://{address}\", {rest} }}");
        let endpoints = [
            at(other.address(), "zone: b"),
            at(last.address(), "zone: a, priority: 1"),
            at(own.address(), "zone: a"),
            at(dead, "zone: a"),
        ];
        let gateway = Setup::new(&format!(
            "zone: a\nupstreams: {{ origin: {{ endpoints: [{}], min_healthy: {least}, health: {{ interval: 20ms }} }} }}\n",
            endpoints.join(", ")
        ))
        .start();
        until("the endpoint to be unhealthy", || !is_healthy(&gateway, dead));
        (0..30).map(|_| served_by(&gateway.get("/")).to_string()).collect::<Vec<_>>()
    };
    let by = |asked: &[String]| asked.iter().cloned().collect::<BTreeSet<_>>();
    let names = |names: &[&str]| names.iter().map(|name| format!("\"{name}\"")).collect::<BTreeSet<_>>();
    assert_eq!(by(&run("50%")), names(&["own"]));
    assert_eq!(by(&run("51%")), names(&["own", "other"]));
}

#[test]
fn the_less_busy_endpoint_is_asked() {
    let (one, other) = (Origin::named("one"), Origin::named("other"));
    let gateway = before(&[one.address(), other.address()], "balance: least_request");
    let mut client = gateway.connect();
    client.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the request to be held", || one.held() + other.held() == 1);
    let idle = if one.held() == 1 { "other" } else { "one" };
    assert!((0..20).all(|_| served_by(&gateway.get("/")) == idle));
}

#[test]
fn lots_reach_every_endpoint() {
    let (one, other) = (Origin::named("one"), Origin::named("other"));
    let gateway = before(&[one.address(), other.address()], "balance: random");
    until("both to be asked", || gateway.get("/").status == 200 && one.served() > 0 && other.served() > 0);
}

#[test]
fn the_same_value_goes_to_the_same_endpoint() {
    let origins: Vec<_> = ["a", "b", "c"].map(Origin::named).into();
    let addresses: Vec<_> = origins.iter().map(Origin::address).collect();
    let gateway = before(&addresses, "balance: { hash: { by: { header: x-tenant } } }");
    let ask = |gateway: &Gateway, tenant: usize| {
        served_by(&gateway.ask(&request("GET", "/").header("x-tenant", &format!("t{tenant}")))).to_string()
    };
    let homes: BTreeMap<_, _> = (0..30).map(|tenant| (tenant, ask(&gateway, tenant))).collect();
    assert_eq!(homes.values().collect::<BTreeSet<_>>().len(), 3);
    assert!(homes.iter().all(|(tenant, home)| ask(&gateway, *tenant) == *home));
    let another = before(&addresses, "balance: { hash: { by: { header: x-tenant } } }");
    assert!(homes.iter().all(|(tenant, home)| ask(&another, *tenant) == *home), "gateways agree");
}

#[test]
fn a_cookie_keeps_a_client_where_it_is() {
    let (one, other) = (Origin::named("one"), Origin::named("other"));
    let addresses = [one.address(), other.address()];
    let gateway = before(&addresses, "balance: { sticky: { cookie: route } }");
    let first = gateway.get("/");
    let said = first.header("set-cookie").unwrap().to_owned();
    let (cookie, attributes) = said.split_once(';').unwrap();
    assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Lax");
    assert!(addresses.iter().all(|address| !said.contains(&address.port().to_string())), "{said}");
    let again = || gateway.ask(&request("GET", "/").header("cookie", cookie));
    let stays = || {
        let answer = again();
        served_by(&answer) == served_by(&first) && answer.header("set-cookie").is_none()
    };
    assert!((0..10).all(|_| stays()));
    gateway.replace("gateway.yaml", "cookie: route } }", "cookie: route } }, max_idle: 3");
    gateway.wait_generation(2);
    assert!((0..10).all(|_| stays()), "a reload changes nothing for it");
    let forged = gateway.ask(&request("GET", "/").header("cookie", "route=0"));
    assert!(forged.header("set-cookie").is_some());
    let keyed = "balance: { sticky: { cookie: route, key: s3cret-s3cret-s3cret } }";
    let cookies =
        [(); 2].map(|()| before(&addresses, keyed).get("/").header("set-cookie").unwrap().to_owned());
    assert_eq!(cookies[0], cookies[1], "the same from every gateway with this key");
}

#[test]
fn the_summary_shows_endpoints_that_are_out() {
    let (origin, dead) = (Origin::start(), nobody());
    let gateway = before(&[origin.address(), dead], "eject: { failures: 1, time: 10m }");
    assert!((0..2).all(|_| gateway.get("/").status == 200));
    let admin = gateway.admin_at().to_string();
    let output = portcullis_tests::run(&["status", "--admin", &admin]);
    assert!(output.out.contains(&format!("{}, {dead} (ejected)", origin.address())), "{}", output.out);
    let endpoint = &gateway.status()["upstreams"][0]["endpoints"][1];
    assert_eq!((&endpoint["in_flight"], &endpoint["ejections"]), (&json!(0), &json!(1)));
}
