//! Limits of rates, as clients run into them: exact over all workers, kept over reloads, not to be got round.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::{Duration, Instant};

use portcullis_tests::{Answer, Gateway, Origin, Request, Setup, request, until};
use serde_json::json;

/// A gateway with these limits and workers, before an origin.
fn limited(workers: usize, table: &str, more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let config = format!(
        "workers: {workers}
plugins:
  - access_log: {{ target: access.log }}
  - rhai: {{ file: caller.rhai }}
  - rate_limit: {table}
{more}"
    );
    let caller = "fn on_request(ctx) { let id = ctx.request.headers[\"x-id\"]; if id != () { ctx.principal = #{ id: id }; } }";
    let gateway = Setup::new(&config).file("caller.rhai", caller).before(&origin).start();
    (origin, gateway)
}

/// A table with one limit.
fn one(key: &str, bucket: &str) -> String {
    format!("{{ limits: [{{ key: {key}, token_bucket: {{ {bucket} }} }}] }}")
}

/// How many of so many requests are let pass; the others are a 429.
fn passed(gateway: &Gateway, tries: usize, request: &Request) -> usize {
    let statuses = (0..tries).map(|_| gateway.ask(request).status);
    let passed =
        statuses.inspect(|status| assert!([200, 429].contains(status))).filter(|status| *status == 200);
    passed.count()
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.header(name).unwrap_or_default()
}

#[test]
fn beyond_the_burst_clients_are_told_when_to_come_back() {
    let (origin, gateway) = limited(1, &one("client", "rate: 60/h, burst: 3"), "");
    assert_eq!(passed(&gateway, 3, &request("GET", "/")), 3);
    let answer = gateway.get("/beyond");
    assert_eq!((answer.status, header(&answer, "content-type")), (429, "application/problem+json"));
    assert_eq!(header(&answer, "ratelimit-policy"), "\"default\";q=3;w=180");
    let wait: u64 = header(&answer, "retry-after").parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(header(&answer, "ratelimit"), format!("\"default\";r=0;t={wait}"));
    assert_eq!(gateway.logged_path("/beyond")["reason"], "rate_limit.exceeded");
    assert_eq!(gateway.metric("portcullis_plugin_rate_limit_refused_total", &["limit=\"default\""]), 1.0);
    assert_eq!(origin.served(), 3);
}

#[test]
fn tokens_come_back_at_their_rate() {
    let (_origin, gateway) = limited(1, &one("client", "rate: 2/s, burst: 1"), "");
    let begin = Instant::now();
    assert_eq!(gateway.get("/").status, 200);
    until("a token", || gateway.get("/").status == 200);
    assert!(begin.elapsed() >= Duration::from_millis(500), "after {:?}", begin.elapsed());
}

#[test]
fn a_limit_is_exact_over_all_workers() {
    let (origin, gateway) = limited(2, &one("client", "rate: 1/h, burst: 100"), "");
    let passed: usize = std::thread::scope(|scope| {
        let ask = || {
            // Each connection is of some worker.
            let mut connections: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
            let asked = (0..10).flat_map(|_| {
                connections
                    .iter_mut()
                    .map(|http| http.ask(&request("GET", "/")).unwrap().status)
                    .collect::<Vec<_>>()
            });
            asked.filter(|status| *status == 200).count()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((passed, origin.served()), (100, 100));
}

#[test]
fn a_reload_keeps_what_was_counted_whatever_the_rate() {
    let (_origin, gateway) = limited(2, &one("client", "rate: 1/h, burst: 5"), "");
    assert_eq!(passed(&gateway, 10, &request("GET", "/")), 5);
    gateway.replace("gateway.yaml", "burst: 5", "burst: 7");
    let status = gateway.wait_generation(2);
    assert_eq!(passed(&gateway, 10, &request("GET", "/")), 2);
    assert_eq!(status["warnings"], json!([]));
    gateway.replace("gateway.yaml", "rate: 1/h", "rate: 1/d");
    gateway.wait_generation(3);
    assert_eq!(passed(&gateway, 10, &request("GET", "/")), 0);
}

#[test]
fn another_key_begins_anew_and_the_reload_says_so_once() {
    let (_origin, gateway) = limited(1, &one("client", "rate: 1/h, burst: 5"), "");
    assert_eq!(passed(&gateway, 10, &request("GET", "/")), 5);
    // What is refused changes nothing.
    gateway.replace("gateway.yaml", "key: client", "key: { header: 'no name' }");
    gateway.wait_refused();
    assert_eq!(passed(&gateway, 10, &request("GET", "/")), 0);
    gateway.replace("gateway.yaml", "{ header: 'no name' }", "route");
    let status = gateway.wait_status("generation 2", |status| status["generation"] == 2);
    let warnings = status["warnings"].to_string();
    assert!(warnings.contains("limit `default` counts by something else now"), "{warnings}");
    until("the log to say so", || gateway.log().contains("so it begins anew"));
    assert_eq!(passed(&gateway, 10, &request("GET", "/")), 5);
    gateway.replace("gateway.yaml", "- access_log:", "- request_id\n  - access_log:");
    assert_eq!(gateway.wait_generation(3)["warnings"], json!([]));
    assert_eq!(passed(&gateway, 10, &request("GET", "/")), 0);
}

#[test]
fn a_request_is_within_all_limits_or_counts_towards_none() {
    let limits = "{ limits: [
        { name: all, key: route, token_bucket: { rate: 1/h, burst: 4 } },
        { name: each, key: { header: x-tenant }, token_bucket: { rate: 1/h, burst: 1 } }] }";
    let (_origin, gateway) = limited(1, limits, "");
    let of = |tenant: &str| request("GET", "/").header("x-tenant", tenant);
    assert_eq!(passed(&gateway, 20, &of("a")), 1);
    assert_eq!(["b", "c", "d"].map(|tenant| passed(&gateway, 5, &of(tenant))), [1, 1, 1]);
    let answer = gateway.ask(&of("e"));
    let standing = header(&answer, "ratelimit");
    assert!(standing.starts_with("\"all\";r=0;t=") && standing.ends_with(", \"each\";r=1"), "{standing}");
    let refused = |limit| gateway.metric("portcullis_plugin_rate_limit_refused_total", &[limit]);
    assert_eq!((refused("limit=\"all\""), refused("limit=\"each\"")), (5.0, 31.0));
}

#[test]
fn who_is_known_is_limited_wherever_he_comes_from() {
    let (_origin, gateway) = limited(1, &one("principal", "rate: 1/h, burst: 2"), "");
    let by = |id: &str| request("GET", "/").header("x-id", id);
    assert_eq!((passed(&gateway, 5, &by("a")), passed(&gateway, 5, &by("b"))), (2, 2));
    assert_eq!(passed(&gateway, 5, &request("GET", "/")), 2, "nobody is somebody");
}

#[test]
fn behind_a_trusted_proxy_a_client_is_whom_it_names_and_else_nobody_can_choose() {
    let from = |client: &str| request("GET", "/").header("x-forwarded-for", client);
    let (_origin, gateway) =
        limited(1, &one("client", "rate: 1/h, burst: 2"), "trusted_proxies: [127.0.0.1]\n");
    for client in ["192.0.2.1", "192.0.2.2", "2001:db8::1"] {
        assert_eq!(passed(&gateway, 5, &from(client)), 2, "{client}");
    }
    assert_eq!(passed(&gateway, 5, &from("203.0.113.9, 192.0.2.1")), 0, "what stands before is the client's");
    assert_eq!(passed(&gateway, 5, &from("2001:db8::ffff:1")), 0, "a subscriber has a network");
    assert_eq!(passed(&gateway, 5, &from("2001:db8:0:1::1")), 2);

    let (_origin, gateway) = limited(1, &one("client", "rate: 1/h, burst: 2"), "");
    let passed = (0..5).map(|client| passed(&gateway, 1, &from(&format!("192.0.2.{client}")))).sum::<usize>();
    assert_eq!(passed, 2);
}

#[test]
fn a_flood_of_keys_forgets_nobody_and_is_limited_as_a_whole() {
    let table =
        "{ max_keys: 1024, limits: [{ key: { header: x-key }, token_bucket: { rate: 1/h, burst: 2 } }] }";
    let (_origin, gateway) = limited(2, table, "");
    let of = |key: &str| request("GET", "/").header("x-key", key);
    assert_eq!(passed(&gateway, 5, &of("attacker")), 2);
    let mut http = gateway.connect();
    let flood = (0..3000).map(|key| http.ask(&of(&key.to_string())).unwrap().status);
    let let_pass = flood.filter(|status| *status == 200).count();
    // Each of those there is room for, and two for each part of the table.
    assert!((900..=1024 + 2 * 128).contains(&let_pass), "{let_pass}");
    let shared = gateway.metric("portcullis_plugin_rate_limit_overflow_total", &[]);
    assert!(shared >= 3000.0 - 1024.0, "{shared}");
    assert_eq!(passed(&gateway, 5, &of("attacker")), 0);
    // Who is new has to share with the flood.
    assert_eq!(passed(&gateway, 5, &of("newcomer")), 0);
}
