//! Plugins that keep failing: they are not called for a while, tried one request at a time, and come back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]

use portcullis_tests::tools::guest;
use portcullis_tests::{Gateway, Http, Origin, Setup, nobody, request, run, until, wait_for};
use serde_json::{Value, json};

/// Fails when it is told to, and marks what it has seen.
const MOODY: &str = r#"
fn on_request(ctx) {
    if ctx.request.headers["x-do"] == "fail" { throw "as told"; }
    if ctx.request.headers["x-do"] == "deny" { return deny(418, "moody.denied"); }
}
fn on_response(ctx) {
    if ctx.request.headers["x-do"] == "fail_late" { throw "as told"; }
    ctx.response.headers["x-seen"] = "1";
}
"#;

/// A plugin before one route, and another route without it.
fn with(plugin: &str, name: &str, content: &[u8]) -> Gateway {
    let config = format!(
        "
plugins: [{{ request_id: {{ trust: true }} }}, {{ access_log: {{ target: access.log }} }}]
routes:
  - {{ name: other, match: {{ path: /other }}, respond: {{ status: 204 }} }}
  - {{ name: moody, match: {{ prefix: / }}, respond: {{ status: 200, body: fine }}, plugins: [{plugin}] }}
"
    );
    Setup::new(&config).file(name, content).start()
}

fn script(on_error: &str) -> Gateway {
    with(
        &format!("{{ name: moody, on_error: {on_error}, rhai: {{ file: moody.rhai }} }}"),
        "moody.rhai",
        MOODY.as_bytes(),
    )
}

fn told(gateway: &Gateway, what: &str) -> u16 {
    gateway.ask(&request("GET", "/x").header("x-do", what)).status
}

fn is_out(gateway: &Gateway) -> bool {
    gateway.metric("portcullis_plugin_quarantined", &["moody"]) == 1.0
}

fn counted(gateway: &Gateway, name: &str) -> f64 {
    gateway.metric(&format!("portcullis_plugin_{name}_total"), &["moody"])
}

/// How the plugin is, by `/status`.
fn state(gateway: &Gateway) -> Value {
    let status = gateway.status();
    let plugins = status["plugins"].as_array().unwrap();
    plugins.iter().find(|plugin| plugin["kind"] == "rhai").unwrap()["quarantine"]["state"].clone()
}

#[test]
fn a_plugin_that_keeps_failing_is_not_called_until_tries_go_well() {
    let gateway = script("{ quarantine: { failures: 3, within: 1h, first: 300ms } }");
    assert_eq!((told(&gateway, "fail"), told(&gateway, "fail")), (500, 500));
    // What it refuses is no failure.
    assert!((0..5).all(|_| told(&gateway, "deny") == 418));
    assert_eq!((state(&gateway), told(&gateway, "")), (json!("well"), 200));
    assert_eq!(told(&gateway, "fail"), 500);
    let named = request("GET", "/named").header("x-request-id", "one");
    assert_eq!(gateway.ask(&named).status, 503);
    assert!(is_out(&gateway) && state(&gateway) == "resting");
    assert_eq!(gateway.get("/other").status, 204);
    let line = gateway.logged_path("/named");
    assert_eq!(line["reason"], "plugin.quarantined");
    assert!(line["decided_by"].as_str().unwrap().ends_with("moody"), "{line}");
    let record = wait_for("the record", || {
        let answer = gateway.admin("GET", "/records/one");
        (answer.status == 200).then(|| answer.json())
    });
    let steps = record["steps"].as_array().unwrap();
    assert!(
        steps.iter().any(|step| step["verdict"] == "quarantined" && step["reason"] == "plugin.quarantined"),
        "{record}"
    );
    let summary = run(&["status", "--admin", &gateway.admin_at().to_string()]).out;
    assert!(summary.contains("moody.rhai, in quarantine"), "{summary}");

    let mut http = gateway.connect();
    until("the plugin to be back", || {
        let answer = http.ask(&request("GET", "/y")).unwrap();
        answer.status == 200 && !is_out(&gateway)
    });
    assert_eq!(http.ask(&request("GET", "/y")).unwrap().header("x-seen"), Some("1"));
    assert!(counted(&gateway, "quarantines") == 1.0 && counted(&gateway, "quarantine_skips") >= 1.0);
    until("the log to tell", || gateway.log().contains("plugin back from quarantine"));
    assert_eq!(gateway.log().matches("\"plugin quarantined\"").count(), 1, "{}", gateway.log());
}

#[test]
fn failures_that_are_far_apart_put_nothing_into_quarantine() {
    let gateway = script("{ quarantine: { failures: 2, within: 1ms, first: 1h } }");
    for _ in 0..5 {
        assert_eq!(told(&gateway, "fail"), 500);
        gateway.status();
    }
    assert_eq!((is_out(&gateway), counted(&gateway, "errors")), (false, 5.0));
}

#[test]
fn each_failed_try_makes_the_rest_longer_up_to_the_longest() {
    let gateway = script("{ quarantine: { failures: 1, first: 20ms, longest: 60ms } }");
    let mut http = gateway.connect();
    until("five rests", || {
        http.ask(&request("GET", "/x").header("x-do", "fail")).unwrap();
        gateway.log().matches("plugin stays in quarantine").count() >= 4
    });
    let log = gateway.log();
    let rests = log.lines().filter_map(|line| line.split_once("\"rest_ms\":")?.1.split([',', '}']).next());
    assert_eq!(rests.take(5).collect::<Vec<_>>(), ["20", "40", "60", "60", "60"], "{log}");
    assert_eq!(counted(&gateway, "quarantines"), 1.0);
}

#[test]
fn what_fails_at_a_later_hook_is_not_back_because_an_earlier_one_went_well() {
    let gateway = script("{ quarantine: { failures: 1, first: 20ms, longest: 20ms } }");
    let mut http = gateway.connect();
    until("some tries", || {
        let status = http.ask(&request("GET", "/x").header("x-do", "fail_late")).unwrap().status;
        assert!([500, 503].contains(&status), "{status}");
        gateway.log().matches("plugin stays in quarantine").count() >= 5
    });
    assert!(!gateway.log().contains("plugin back from quarantine"), "{}", gateway.log());
}

#[test]
fn with_allow_requests_pass_it_by_meanwhile() {
    let gateway = script("{ quarantine: { failures: 2, first: 1h, meanwhile: allow } }");
    assert_eq!((told(&gateway, "fail"), told(&gateway, "fail")), (200, 200));
    // It would refuse this one, and mark that one.
    assert_eq!(told(&gateway, "deny"), 200);
    assert!(is_out(&gateway) && gateway.get("/y").header("x-seen").is_none());
}

#[test]
fn quarantine_outlives_reloads_and_ends_with_another_version() {
    let gateway = script("{ quarantine: { failures: 1, first: 1h } }");
    assert_eq!((told(&gateway, "fail"), told(&gateway, "")), (500, 503));
    gateway.replace("gateway.yaml", "status: 204", "status: 205");
    gateway.wait_generation(2);
    assert!(told(&gateway, "") == 503 && is_out(&gateway));
    // Other terms, the same plugin.
    gateway.replace("gateway.yaml", "first: 1h", "first: 2h");
    gateway.wait_generation(3);
    assert!(told(&gateway, "") == 503 && is_out(&gateway));
    gateway.edit("moody.rhai", "fn on_request(ctx) { }");
    gateway.wait_generation(4);
    assert!(told(&gateway, "") == 200 && !is_out(&gateway));
}

#[test]
fn whom_a_plugin_does_not_run_for_never_meets_its_quarantine() {
    let gateway = with(
        "{ name: moody, percent: 50%, on_error: { quarantine: { failures: 1, first: 1h } }, rhai: { file: moody.rhai } }",
        "moody.rhai",
        MOODY.as_bytes(),
    );
    let asked = |client: u8, what: &str| {
        let source = std::net::Ipv4Addr::new(127, 0, 9, client).into();
        let mut http = Http::connect_from(source, gateway.address()).unwrap();
        http.ask(&request("GET", "/x").header("x-do", what)).unwrap().status
    };
    let judged: Vec<bool> = (1..=20).map(|client| asked(client, "deny") == 418).collect();
    assert!(judged.contains(&true) && judged.contains(&false));
    let (one, judged_one) = (1..=20).zip(&judged).find(|(_, judged)| **judged).unwrap();
    assert_eq!((asked(one, "fail"), *judged_one), (500, true));
    let after: Vec<bool> = (1..=20).map(|client| asked(client, "") == 503).collect();
    assert_eq!(after, judged);
}

#[test]
fn modules_and_built_in_plugins_are_put_into_quarantine_too() {
    let config = format!(
        "upstreams: {{ authz: {{ endpoints: [\"http://{}\"] }} }}\nroutes: [{{ respond: {{ status: 200 }}, plugins: [{{ name: moody, on_error: {{ quarantine: {{ failures: 2, first: 1h }} }}, ext_authz: {{ upstream: authz }} }}] }}]\n",
        nobody()
    );
    let native = Setup::new(&config).start();
    assert_eq!([(); 3].map(|()| native.get("/").status), [500, 500, 503]);
    assert!(is_out(&native));
    let Some(module) = guest("conformance") else { return };
    for what in ["spin", "bomb", "fail", "own_failure"] {
        let gateway = with(
            "{ name: moody, on_error: { quarantine: { failures: 2, first: 1h } }, wasm: { file: m.wasm, cpu: 3ms, config: { greeting: hello } } }",
            "m.wasm",
            &module,
        );
        assert_eq!([(); 3].map(|()| told(&gateway, what)), [500, 500, 503], "{what}");
        assert!(is_out(&gateway), "{what}");
    }
}

#[test]
fn the_use_of_budgets_is_counted_by_the_call() {
    let script = "fn on_request(ctx) { if ctx.request.path == \"/most\" { for n in 0..400 { let x = n; } } }";
    let gateway = with(
        "{ name: moody, rhai: { file: s.rhai, limits: { operations: 2000 } } }",
        "s.rhai",
        script.as_bytes(),
    );
    let within = |budget: &str, share: &str| {
        let (budget, share) = (format!("budget=\"{budget}\""), format!("le=\"{share}\""));
        gateway.metric("portcullis_plugin_budget_used_ratio_bucket", &["moody", &budget, &share])
    };
    assert_eq!(
        (gateway.get("/least").status, gateway.get("/least").status, gateway.get("/most").status),
        (200, 200, 200)
    );
    assert_eq!((within("operations", "0.05"), within("operations", "1")), (2.0, 3.0));
    assert!(within("operations", "0.25") == 2.0);
    for (name, options) in [
        ("conformance", "config: { greeting: hello }"),
        ("http_wasm_handler", "config: plain"),
        ("proxy_wasm_guest", "config: plain"),
    ] {
        let Some(module) = guest(name) else { return };
        let plugin =
            format!("{{ name: moody, wasm: {{ file: m.wasm, memory: 4MiB, cpu: 10ms, {options} }} }}");
        let modules = with(&plugin, "m.wasm", &module);
        assert_eq!((told(&modules, ""), told(&modules, "spin")), (200, 500), "{name}");
        let calls = |more: &[&str]| {
            let labels: Vec<&str> =
                ["moody", "budget=\"cpu\""].into_iter().chain(more.iter().copied()).collect();
            modules.metric("portcullis_plugin_budget_used_ratio_bucket", &labels)
        };
        // The one that spun is beyond its budget, and the only one.
        until("all calls to be counted", || calls(&["le=\"+Inf\""]) - calls(&["le=\"1\""]) == 1.0);
        let labels = ["moody", "budget=\"memory\""];
        let memory = modules.metric("portcullis_plugin_budget_used_ratio_sum", &labels);
        assert!(memory > 0.0, "{name} {memory}");
    }
}

#[test]
fn connections_are_refused_or_accepted_while_their_plugin_is_out() {
    for (meanwhile, serves) in [("deny", false), ("allow", true)] {
        let config = format!(
            "
listeners:
  - {{ name: main, bind: 127.0.0.1:0 }}
  - {{ name: judged, bind: 127.0.0.2:0, plugins: [{{ name: moody, on_error: {{ quarantine: {{ failures: 2, first: 1h, meanwhile: {meanwhile} }} }}, rhai: {{ file: c.rhai }} }}] }}
"
        );
        let origin = Origin::start();
        let setup = Setup::new(&config).file("c.rhai", "fn on_connection(conn) { throw \"never\"; }");
        let gateway = setup.before(&origin).start();
        let asked = || {
            let mut http = Http::connect(gateway.listener("judged")).ok()?;
            Some(http.ask(&request("GET", "/")).ok()?.status)
        };
        for _ in 0..4 {
            assert_eq!(asked(), serves.then_some(200), "{meanwhile}");
        }
        until("two calls and no more", || counted(&gateway, "quarantine_skips") == 2.0);
        assert_eq!(counted(&gateway, "errors"), 2.0);
        assert!(is_out(&gateway));
    }
}
