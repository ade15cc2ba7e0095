//! What modules may use beside their exchange: capabilities that were granted, and WASI, which gives no power. From
//! outside, with real upstreams.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]

use portcullis_tests::tools::guest;
use portcullis_tests::{Answer, Gateway, Origin, Setup, request, until};
use serde_json::{Value, json};

/// A module before `origin` with these options, and an access log.
fn start(name: &str, options: &str) -> Option<(Origin, Gateway)> {
    let module = guest(name)?;
    let origin = Origin::start();
    let plugins = format!(
        "workers: 1\nplugins:\n  - access_log: {{ target: access.log, facts: [seen] }}\n  - wasm: {{ file: m.wasm, cpu: 1s, {options} }}\n"
    );
    let gateway = Setup::new(&plugins)
        .file("m.wasm", module)
        .variable("PORTCULLIS_TEST_KEY", "hunter2")
        .before(&origin)
        .start();
    Some((origin, gateway))
}

/// What reached the origin under this name.
fn sent(answer: &Answer, header: &str) -> String {
    let text = answer.text();
    // `hostile` puts brackets around every body.
    let seen = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(&text);
    let seen: Value = serde_json::from_str(seen).unwrap_or_else(|error| panic!("{error} in {text}"));
    seen["headers"][header].as_str().unwrap_or_default().to_owned()
}

const ALL: &str = "grants: { http: { upstreams: [origin] }, cache: {}, store: true, rate_limit: { login: { rate: 5/min } }, metrics: [seen], clock: true, random: true, secrets: { signing: env:PORTCULLIS_TEST_KEY } }";

#[test]
fn a_module_uses_what_it_was_granted() {
    let Some((origin, gateway)) = start("hostile", &format!("config: {{ on_request: use }}, {ALL}")) else {
        return;
    };
    assert_eq!(gateway.get("/all").status, 200);
    let expected = json!({
        "http": "200", "cache_set": "()", "cache": "Some([49])", "store": "()", "store_replace": "true", "stored": "Some([50])", "store_add": "2", "store_delete": "true",
        "rate_limit": "(true, 4)", "metrics": "()",
        "clock": "true", "random": "16", "secrets": "(250, 32)", "is_secret": "true", "secret_header": "true",
        "unknown_secret": "no secret `other` is granted to this policy; there is `signing`",
    });
    assert_eq!(gateway.logged_path("/all")["facts"]["seen"], expected);
    // The request itself, and the policy's own.
    assert_eq!(origin.served(), 3);
    assert_eq!(gateway.metric("portcullis_plugin_wasm_counted_total", &["name=\"seen\""]), 2.0);
    assert!(!gateway.log().contains("hunter2"));
}

#[test]
fn what_was_not_granted_is_denied_with_the_grant_to_add() {
    let Some((_origin, gateway)) = start("hostile", "config: { on_request: use }") else { return };
    assert_eq!(gateway.get("/none").status, 200);
    let line = gateway.logged_path("/none");
    for (name, grant) in [
        ("http", "http: { upstreams: [..] }"),
        ("cache_set", "cache: {}"),
        ("cache", "cache: {}"),
        ("store", "store: true"),
        ("store_replace", "store: true"),
        ("stored", "store: true"),
        ("store_add", "store: true"),
        ("store_delete", "store: true"),
        ("rate_limit", "rate_limit: { NAME: { rate: 10/s } }"),
        ("metrics", "metrics: [NAME]"),
        ("clock", "clock: true"),
        ("random", "random: true"),
        ("secrets", "secrets: { NAME: env:VARIABLE }"),
        ("is_secret", "secrets: { NAME: env:VARIABLE }"),
        ("secret_header", "http: { upstreams: [..] }"),
    ] {
        let told = line["facts"]["seen"][name].as_str().unwrap();
        assert!(told.contains(&format!("add `grants: {{ {grant}")), "{name}: {told}");
    }
}

#[test]
fn a_module_that_waits_for_an_upstream_holds_no_worker() {
    let options = "config: { on_request: ask }, grants: { http: { upstreams: [origin], timeout: 30s } }";
    let Some((origin, gateway)) = start("hostile", options) else { return };
    let mut waits = gateway.connect();
    waits.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the policy's call to be held", || origin.held() == 1);
    // More requests than there are workers go past meanwhile.
    for _ in 0..8 {
        let answer = gateway.get("/seen");
        assert!(sent(&answer, "x-answered").starts_with("200 "), "{}", answer.text());
    }
    assert_eq!(origin.held(), 1);
    // Whose client goes while it waits leaves nothing behind.
    drop(waits);
    until("the instance to be gone", || {
        let instances = |event: &str| gateway.metric("portcullis_plugin_wasm_instances_total", &[event]);
        instances("event=\"made\"") == instances("event=\"ended\"")
    });
    origin.release();
    until("nothing to be open", || gateway.metric("portcullis_exchanges_open", &[]) == 0.0);
}

#[test]
fn floods_of_capabilities_end_at_their_bounds() {
    let options = "config: { on_request: calls }, grants: { http: { upstreams: [origin], calls: 3 } }";
    let Some((origin, gateway)) = start("hostile", options) else { return };
    assert_eq!(sent(&gateway.get("/seen"), "x-calls"), "3");
    assert_eq!(origin.served(), 4);
    let options = "config: { on_request: label }, grants: { metrics: [seen] }";
    let (_origin, gateway) = start("hostile", options).unwrap();
    assert_eq!(gateway.get("/seen").status, 200);
    let counted = gateway.admin("GET", "/metrics").text();
    let rows =
        counted.lines().filter(|line| line.starts_with("portcullis_plugin_wasm_counted_total{")).count();
    assert!(rows <= 101, "{rows}");
    let options = "config: { on_request: hoard }, grants: { cache: { entries: 10 } }";
    let (_origin, gateway) = start("hostile", options).unwrap();
    let before = gateway.memory();
    for _ in 0..20 {
        let kept: u32 = sent(&gateway.get("/seen"), "x-kept").parse().unwrap();
        assert!(kept < 150, "{kept}");
    }
    // Six thousand values of 4 KiB were kept, ten at a time.
    assert!(gateway.memory() < before + (12 << 10), "{before} {}", gateway.memory());
}

#[test]
fn each_number_of_a_grant_bites() {
    let http = "{ upstreams: [origin], timeout: 200ms, max_body: 100B }";
    let options = format!("config: {{ on_request: ask }}, grants: {{ http: {http} }}");
    let Some((_origin, gateway)) = start("hostile", &options) else { return };
    let body = format!("/body/{}", "x".repeat(101));
    for (target, error) in [
        ("/hold", "no answer from `origin`: no answer in time"),
        (&*body, "no answer from `origin`: the answer is larger than allowed"),
    ] {
        assert_eq!(gateway.get(target).status, 500);
        until(error, || gateway.log().contains(error));
    }
    let options =
        "config: { on_request: exhaust }, grants: { rate_limit: { login: { rate: 1/h, burst: 2 } } }";
    let (_origin, gateway) = start("hostile", options).unwrap();
    let taken = || sent(&gateway.get("/seen"), "x-taken");
    assert_eq!((taken(), taken()), ("2".into(), "0".into()));
}

#[test]
fn what_can_not_wait_says_so() {
    let options = "config: { on_connection: ask }, grants: { http: { upstreams: [origin] }, store: true }";
    let Some((origin, gateway)) = start("hostile", options) else { return };
    assert_eq!(gateway.get("/seen").status, 200);
    for name in ["http", "store"] {
        let said = format!("`{name}` may have to wait, which `on_connection` and `configure` can't");
        until(&said, || gateway.log().contains(&said));
    }
    assert_eq!(origin.served(), 1);
}

#[test]
fn wasi_has_no_power_that_was_not_granted() {
    let Some((_origin, gateway)) = start("wasi", "memory: 4MiB") else { return };
    let got = |wish: &str| sent(&gateway.ask(&request("GET", "/seen").header("x-do", wish)), "x-got");
    assert_eq!(got("random"), got("random"));
    assert_eq!(got("clock"), "0 0");
    // No variables, no arguments, and 8 (`badf`): no directory.
    assert_eq!(got("world"), "0 0 0 8");
    for (wish, told) in [("sleep 10", "add `grants: { clock: true }`"), ("exit", "exit")] {
        assert_eq!(gateway.ask(&request("GET", "/seen").header("x-do", wish)).status, 500, "{wish}");
        until(told, || gateway.log().contains(told));
    }
}

#[test]
fn what_wasi_gives_is_bounded() {
    let Some((_origin, gateway)) = start("wasi", "memory: 4MiB, grants: { clock: true, random: true }")
    else {
        return;
    };
    for wish in ["much random", "many sleeps"] {
        assert_eq!(gateway.ask(&request("GET", "/seen").header("x-do", wish)).status, 500, "{wish}");
    }
    assert_eq!(gateway.get("/seen").status, 200);
}

#[test]
fn wasi_tells_the_time_and_gives_random_bytes_where_granted() {
    let Some((_origin, gateway)) = start("wasi", "grants: { clock: true, random: true }") else { return };
    let got = |wish: &str| sent(&gateway.ask(&request("GET", "/seen").header("x-do", wish)), "x-got");
    assert_ne!(got("random"), got("random"));
    let seconds: u64 = got("clock").strip_prefix("0 ").unwrap().parse().unwrap();
    assert!(seconds > 1_700_000_000, "{seconds}");
    assert_eq!(got("sleep 20"), "0 1");
}

#[test]
fn a_module_that_sleeps_holds_no_worker_and_ends_at_its_time_limit() {
    let Some((_origin, gateway)) = start("wasi", "grants: { clock: true }") else { return };
    let mut sleeps = gateway.connect();
    sleeps.write(b"GET /seen HTTP/1.1\r\nhost: g\r\nx-do: sleep 3600000\r\n\r\n").unwrap();
    until("it to be under way", || gateway.metric("portcullis_exchanges_open", &[]) == 1.0);
    for _ in 0..8 {
        assert_eq!(gateway.get("/seen").status, 200);
    }
    assert_eq!(gateway.metric("portcullis_exchanges_open", &[]), 1.0);
    assert_eq!(sleeps.answer("GET").unwrap().status, 500);
    until("its error to be counted", || {
        gateway.metric("portcullis_plugin_errors_total", &["error=\"timeout\""]) == 1.0
    });
}

#[test]
fn what_a_module_prints_is_logged_within_bounds() {
    let Some((_origin, gateway)) = start("wasi", "memory: 4MiB") else { return };
    let print = |lines: &str| gateway.ask(&request("GET", "/seen").header("x-do", lines));
    assert_eq!(print("print 1").status, 200);
    for line in ["line 0", "and more", "something is wrong"] {
        until(line, || gateway.log().contains(&format!("\"{line}\"")));
    }
    assert_eq!(print("print 5000").status, 200);
    until("it to be said that more was dropped", || gateway.log().contains("\"more_dropped\":true"));
    assert!(gateway.log().contains("\"line 7\"") && !gateway.log().contains("\"line 8\""));
}

#[test]
fn a_module_for_proxy_wasm_has_no_grants() {
    let Some(module) = guest("proxy_wasm_guest") else { return };
    let setup =
        Setup::new("plugins: [{ wasm: { file: m.wasm, grants: { clock: true } } }]\n").file("m.wasm", module);
    let ended = setup.before(&Origin::start()).try_start().err().unwrap();
    assert!(format!("{ended:?}").contains("a module for proxy-wasm or http-wasm has none"), "{ended:?}");
}
