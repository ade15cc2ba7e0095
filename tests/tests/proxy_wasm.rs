//! Filters made for Envoy, in a running gateway: the guest is made with the public SDK for Rust, see
//! `tests/guests/proxy_wasm`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use portcullis_tests::tools::{grpc, guest};
use portcullis_tests::{Answer, Gateway, Http, Origin, Setup, here, repository, request, run_in, until};
use serde_json::Value;

const FILTER: &str = "proxy_wasm_guest";

/// A gateway with the filter before an origin, which it may also call as `api`; `options` are more of its table.
fn with(options: &str, rest: &str) -> Option<(Origin, Gateway)> {
    let module = guest(FILTER)?;
    let origin = Origin::start();
    let config = format!(
        "
plugins:
  - access_log: {{ target: access.log }}
  - wasm: {{ file: filter.wasm, proxy_wasm: {{ upstreams: {{ api: origin }} }}, {options} }}
{rest}"
    );
    let gateway = Setup::new(&config).file("filter.wasm", module).before(&origin).start();
    Some((origin, gateway))
}

fn do_it(gateway: &Gateway, act: &str, path: &str) -> Answer {
    gateway.ask(&request("GET", path).header("x-do", act))
}

/// What the filter finds, as the origin sees it.
#[track_caller]
fn found(gateway: &Gateway, act: &str) -> String {
    do_it(gateway, act, "/found").json()["headers"]["x-found"].as_str().unwrap().to_owned()
}

#[test]
fn what_a_filter_changes_is_what_origin_and_client_see() {
    let Some((_origin, gateway)) = with("cpu: 50ms", "") else { return };
    let sent = request("GET", "/a").header("x-do", "headers").header("x-gone", "1").header("x-set", "old");
    let seen = gateway.ask(&sent).json();
    assert_eq!(
        (&seen["method"], &seen["path"], &seen["query"]),
        (&"PUT".into(), &"/changed".into(), &"by=guest".into())
    );
    let headers = &seen["headers"];
    assert_eq!((&headers["x-list"], &headers["x-set"]), (&"a, b".into(), &"new".into()));
    assert_eq!((&headers["x-gone"], &headers["host"]), (&Value::Null, &"changed.test".into()));
    assert_eq!(headers["x-found"], "a,b changed.test true");
    let answer = do_it(&gateway, "response", "/header/x-kind/plain");
    assert_eq!((answer.status, answer.header("x-was"), answer.header("x-kind")), (202, Some("200"), None));
    let refused = do_it(&gateway, "refuse", "/refused");
    assert_eq!(
        (refused.status, refused.header("x-by"), refused.text().as_str()),
        (429, Some("guest"), "too many")
    );
    assert_eq!(gateway.logged_path("/refused")["reason"], "wasm.local_response");
    let replaced = do_it(&gateway, "replace", "/a");
    assert_eq!((replaced.status, replaced.text().as_str()), (418, "short and stout"));
}

#[test]
fn a_paused_request_waits_for_the_answer_of_a_call() {
    let Some((_origin, gateway)) = with("cpu: 50ms", "") else { return };
    assert!(found(&gateway, "call /body/hello").starts_with("200  hello "));
    let refused = do_it(&gateway, "call /status/403", "/a");
    assert_eq!((refused.status, refused.header("x-by")), (403, Some("call")));
    assert_eq!(found(&gateway, "call-slowly /hold"), "504  upstream request timeout 3");
    assert_eq!(found(&gateway, "stranger"), "BadArgument");
}

#[test]
fn a_request_that_nobody_resumes_ends_with_the_plugins_timeout() {
    let module = guest(FILTER);
    let Some(module) = module else { return };
    let origin = Origin::start();
    let config = "
plugins:
  - access_log: { target: access.log }
  - { timeout: 100ms, wasm: { file: filter.wasm, cpu: 50ms } }
";
    let gateway = Setup::new(config).file("filter.wasm", module).before(&origin).start();
    assert_eq!(do_it(&gateway, "hang", "/hang").status, 500);
    assert_eq!(gateway.logged_path("/hang")["reason"], "plugin.timeout");
    assert_eq!(do_it(&gateway, "nothing", "/a").status, 200);
}

#[test]
fn bodies_stream_past_a_filter_or_are_gathered_for_it() {
    let Some((_origin, gateway)) = with("cpu: 50ms", "") else { return };
    let post = |act: &str, body: &str| gateway.ask(&request("POST", "/a").header("x-do", act).body(body));
    let seen = post("gather", "whole").json();
    assert_eq!((&seen["body"], &seen["headers"]["x-found"]), (&"WHOLE".into(), &"5 bytes in 1 calls".into()));
    assert_eq!(post("shout", "streams").json()["body"], "STREAMS");
    assert_eq!(post("hold", "held").json()["body"], "<held>");
    let refused = post("refuse-body", "any");
    assert_eq!((refused.status, refused.text().as_str()), (422, "no such body"));
    // Longer than `body_limit`, which bounds only what is held back.
    let long = "x".repeat(3 << 20);
    let echoed = gateway.ask(&request("POST", "/echo").header("x-do", "shout").body(long.as_str()));
    assert!(echoed.text().bytes().all(|byte| byte == b'X') && echoed.text().len() == long.len());
    assert_eq!(post("hold", &long).status, 413);
    assert_eq!(do_it(&gateway, "shout-back", "/body/hello").text(), "HELLO");
    let gathered = do_it(&gateway, "gather-response", "/body/hello");
    assert_eq!((gathered.text().as_str(), gathered.header("x-length")), ("HELLO", Some("5")));
    assert!(do_it(&gateway, "shout-back", "/big/300000").text().len() == 300_000);
}

#[test]
fn a_trap_hurts_only_its_own_request_also_under_load() {
    let Some((_origin, gateway)) = with("cpu: 50ms", "") else { return };
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = gateway.connect();
                    let ask =
                        |_| client.ask(&request("GET", "/a").header("x-do", "call /body/x")).unwrap().status;
                    (0..100).map(ask).filter(|status| *status != 200).count()
                })
            })
            .collect();
        let mut client = Http::connect(gateway.address()).unwrap();
        for act in ["trap", "trap-response"].into_iter().cycle().take(40) {
            assert_eq!(client.ask(&request("GET", "/bad").header("x-do", act)).unwrap().status, 500);
        }
        let lost: usize = others.into_iter().map(|other| other.join().unwrap()).sum();
        assert_eq!(lost, 0);
    });
    assert_eq!(gateway.logged_path("/bad")["reason"], "plugin.trap");
}

#[test]
fn a_filter_that_spins_loses_its_request_and_nothing_else() {
    let Some((_origin, gateway)) = with("cpu: 1ms", "") else { return };
    assert_eq!(do_it(&gateway, "spin", "/spin").status, 500);
    assert_eq!(gateway.logged_path("/spin")["reason"], "plugin.budget");
    until("a request to be served again", || do_it(&gateway, "nothing", "/a").status == 200);
}

#[test]
fn the_root_context_has_ticks_and_calls_of_its_own() {
    let Some((_origin, gateway)) = with("cpu: 50ms, config: tick", "") else { return };
    until("some ticks", || found(&gateway, "shared ticks").parse().is_ok_and(|ticks: u32| ticks > 2));
    let Some((_origin, gateway)) = with("cpu: 50ms, config: fetch", "") else { return };
    until("the fetched document", || found(&gateway, "shared fetched").contains("/fetched"));
}

#[test]
fn what_a_filter_shares_and_counts_outlives_a_reload() {
    let Some((_origin, gateway)) = with("cpu: 50ms, config: first", "") else { return };
    assert_eq!(found(&gateway, "count"), "0 CasMismatch");
    found(&gateway, "metrics");
    gateway.replace("gateway.yaml", "config: first", "config: second");
    gateway.wait_generation(2);
    assert_eq!(found(&gateway, "count"), "1 CasMismatch");
    found(&gateway, "metrics");
    until("the counter of the filter", || {
        gateway.metric("portcullis_plugin_wasm_guest_total", &["metric=\"hits\""]) == 4.0
    });
    let line = gateway.ask(&request("GET", "/logged")).status;
    assert_eq!(line, 200);
    until("the log's callback", || found(&gateway, "shared logged").starts_with('/'));
}

#[test]
fn a_filter_that_refuses_its_configuration_is_shown_where_it_stands() {
    let Some(module) = guest(FILTER) else { return };
    let config = "listeners: [{ bind: 127.0.0.1:0 }]
plugins:
  - wasm: { file: filter.wasm, config: refuse }
routes: [{ respond: { status: 204 } }]
";
    let setup = Setup::new("").file("filter.wasm", &module).file("check.yaml", config);
    let checked = run_in(setup.dir(), &["check", "check.yaml"]);
    assert!(!checked.status.success());
    assert!(
        checked.err.contains("check.yaml:3:") && checked.err.contains("no such thing as refuse"),
        "{}",
        checked.err
    );
}

#[test]
fn a_filter_calls_a_server_of_grpc() {
    let (Some(module), Some(python)) = (guest(FILTER), grpc()) else { return };
    let mut server = Command::new(python)
        .arg(here().join("grpc/server.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut port = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let origin = Origin::start();
    let config = format!(
        "
upstreams:
  origin: {{ endpoints: [\"http://{}\"] }}
  calls: {{ endpoints: [\"http://127.0.0.1:{}\"], protocol: http2 }}
plugins:
  - wasm: {{ file: filter.wasm, cpu: 50ms, proxy_wasm: {{ upstreams: {{ grpc: calls }} }} }}
routes: [{{ upstream: origin }}]
",
        origin.address(),
        port.trim()
    );
    let gateway = Setup::new(&config).file("filter.wasm", module).start();
    assert_eq!(found(&gateway, "call-grpc Unary hello"), "0 hello");
    assert_eq!(found(&gateway, "call-grpc Fail hello"), "9");
    assert_eq!(found(&gateway, "call-grpc Nowhere hello"), "12");
    assert_eq!(found(&gateway, "stream-grpc Echo a b c"), "0 a,b,c");
    assert_eq!(found(&gateway, "stream-grpc Join a b c"), "0 abc");
    // The message is as it stands in the trailer.
    assert_eq!(found(&gateway, "stream-grpc Fail a"), "9  not now: 100 %25 sure");
    // It ends with its standard input.
    drop(server.stdin.take());
    server.wait().unwrap();
    assert_eq!(found(&gateway, "call-grpc Unary hello"), "14");
}

#[test]
fn a_filter_in_assemblyscript_runs_as_it_is() {
    let Some(module) = guest("proxy_wasm_assemblyscript") else { return };
    let origin = Origin::start();
    let config = "
plugins:
  - wasm:
      file: filter.wasm
      config: as it is
      cpu: 50ms
      proxy_wasm: { root_id: assemblyscript, upstreams: { api: origin } }
";
    let gateway = Setup::new(config).file("filter.wasm", module).before(&origin).start();
    let answer = do_it(&gateway, "nothing", "/a");
    assert_eq!(
        (answer.header("x-configured"), &answer.json()["headers"]["x-found"]),
        (Some("as it is"), &"no body".into())
    );
    assert_eq!(answer.header("x-called"), Some("nobody"));
    assert_eq!(do_it(&gateway, "call", "/a").header("x-called"), Some("called"));
    let refused = do_it(&gateway, "refuse", "/a");
    assert_eq!(
        (refused.status, refused.header("x-by"), refused.text().as_str()),
        (403, Some("assemblyscript"), "no")
    );
    do_it(&gateway, "log", "/a");
    until("its line", || gateway.log().contains("said in AssemblyScript"));
    assert!(gateway.metric("portcullis_plugin_wasm_guest_total", &["metric=\"as_requests\""]) >= 4.0);
}

#[test]
fn a_filter_in_go_runs_as_it_is() {
    let Some(module) = guest("proxy_wasm_go") else { return };
    let origin = Origin::start();
    let config = "
plugins:
  - access_log: { target: access.log }
  - wasm: { file: filter.wasm, config: hi, memory: 64MiB, cpu: 1s, proxy_wasm: { upstreams: { api: origin } } }
";
    let gateway = Setup::new(config).file("filter.wasm", module).before(&origin).start();
    for act in ["nothing", "garbage", "panic", "garbage", "nothing"] {
        let answer = do_it(&gateway, act, &format!("/{act}"));
        if act == "panic" {
            assert_eq!(answer.status, 500);
            assert_eq!(gateway.logged_path("/panic")["reason"], "plugin.trap");
        } else {
            assert_eq!((answer.status, answer.header("x-greeting")), (200, Some("hi")));
            assert_eq!(answer.json()["headers"]["x-greeting"], "hi");
        }
    }
    let called = |act: &str| do_it(&gateway, act, "/a").json()["headers"]["x-called"].clone();
    assert_eq!(called("call"), "of 1: 200 called");
    assert_eq!(called("call-slowly"), "of 1: 504 upstream request timeout");
    let refused = do_it(&gateway, "refuse", "/a");
    assert_eq!((refused.status, refused.header("x-by"), refused.text().as_str()), (403, Some("go"), "no"));
    assert_eq!(gateway.ask(&request("POST", "/a").body("quiet")).json()["body"], "QUIET");
    gateway.replace("gateway.yaml", "config: hi", "config: \"\"");
    let refusal = gateway.wait_refused();
    assert!(refusal.contains("after saying: no greeting"), "{refusal}");
}

#[test]
fn a_filter_in_shadow_sees_everything_and_changes_nothing() {
    let Some(module) = guest(FILTER) else { return };
    let origin = Origin::start();
    let config = "
plugins:
  - access_log: { target: access.log }
  - { mode: shadow, wasm: { file: filter.wasm, cpu: 50ms } }
";
    let gateway = Setup::new(config).file("filter.wasm", module).before(&origin).start();
    assert_eq!(do_it(&gateway, "refuse", "/a").status, 200);
    assert_eq!(do_it(&gateway, "trap", "/a").status, 200);
    for act in ["shout", "gather", "refuse-body"] {
        let answer = gateway.ask(&request("POST", "/a").header("x-do", act).body("quiet"));
        assert_eq!((answer.status, &answer.json()["body"]), (200, &"quiet".into()), "{act}");
    }
    assert_eq!(do_it(&gateway, "shout-back", "/body/quiet").text(), "quiet");
    until("what would have been to be counted", || {
        gateway.metric("portcullis_shadow_verdicts_total", &["verdict=\"respond\""]) >= 2.0
    });
}

#[test]
fn the_example_of_the_page_loads_and_serves() {
    let Some(module) = guest(FILTER) else { return };
    let page = std::fs::read_to_string(repository().join("docs/proxy-wasm.md")).unwrap();
    let (_, block) = page.split_once("```yaml\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let origin = Origin::start();
    let block = block.replace("http://127.0.0.1:8080", &format!("http://{}", origin.address()));
    let config = format!("listeners: [{{ bind: 127.0.0.1:0 }}]\n{block}");
    let gateway = Setup::new(&config).file("envoy-filter.wasm", module).start();
    assert_eq!(gateway.get("/a").status, 200);
    assert_eq!(found(&gateway, "property plugin_root_id"), "my_root");
}
