//! Policies that attack the gateway that runs them, of both kinds: every attempt ends in the verdict that is declared
//! here, and the next request to another route is served. Beside them, the gateway under a stream of such attempts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use portcullis_tests::tools::guest;
use portcullis_tests::{Answer, Gateway, Http, Origin, Setup, Stop, request, until};
use serde_json::{Value, json};

/// What an attempt may take: its budget is milliseconds, in an unoptimised build on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// What an attempt ends in: the status, and the reason in the access log.
type Verdict = (u16, Option<&'static str>);

const BUDGET: Verdict = (500, Some("plugin.budget"));
const TRAP: Verdict = (500, Some("plugin.trap"));
const FAILED: Verdict = (500, Some("plugin.failed"));
/// It harms nobody but itself.
const SERVED: Verdict = (200, None);

/// What a script does at which hook, and what comes of it.
const SCRIPTS: &[(&str, &str, &str, Verdict)] = &[
    ("loop-request", "on_request", "loop { }", BUDGET),
    ("loop-request-body", "on_request_body", "loop { }", BUDGET),
    ("loop-upstream", "on_upstream", "loop { }", BUDGET),
    ("loop-response", "on_response", "loop { }", BUDGET),
    ("loop-response-body", "on_response_body", "loop { }", BUDGET),
    ("loop-log", "on_log", "loop { }", SERVED),
    ("throw-request", "on_request", "throw 1;", TRAP),
    ("throw-request-body", "on_request_body", "throw 1;", TRAP),
    ("throw-upstream", "on_upstream", "throw 1;", TRAP),
    ("throw-response", "on_response", "throw 1;", TRAP),
    ("throw-response-body", "on_response_body", "throw 1;", TRAP),
    ("throw-log", "on_log", "throw 1;", SERVED),
    ("text-bomb", "on_response", "let s = \"x\"; loop { s += s; }", BUDGET),
    ("text-bomb-in-vain", "on_request", "loop { let s = \"x\"; s.pad(1_000_000, \"x\"); }", BUDGET),
    ("array-bomb", "on_upstream", "let a = []; loop { a.push(0); }", BUDGET),
    ("array-nesting", "on_request", "let a = []; loop { a = [a, a]; }", BUDGET),
    ("map-nesting", "on_request", "let m = #{}; loop { m = #{ a: m, b: m }; }", BUDGET),
    (
        "document-nesting",
        "on_request",
        "let s = \"\"; s.pad(9_000, \"[\"); if json_parse(s) != () { throw 1; }",
        TRAP,
    ),
    ("recursion", "on_response", "again(0);", BUDGET),
    ("recursion-in-turns", "on_request", "ping(0);", BUDGET),
    ("caught-errors", "on_request", "loop { try { throw 1; } catch { } }", BUDGET),
    ("caught-overruns", "on_response", "loop { try { loop { } } catch { } }", BUDGET),
    ("expression-bomb", "on_request", "regex_is_match(\"((((a{100}){100}){100}){100})\", \"a\");", TRAP),
    ("expression-flood", "on_request", "for n in 0..5000 { regex_is_match(`a${n}`, \"a\"); }", BUDGET),
    ("header-flood", "on_request", "for n in 0..300 { ctx.request.headers[`x-${n}`] = \"1\"; }", BUDGET),
    ("outgoing-flood", "on_upstream", "for n in 0..300 { ctx.outgoing.headers[`x-${n}`] = \"1\"; }", BUDGET),
    ("log-flood", "on_request", "for n in 0..500 { log(`line ${n}`); }", SERVED),
    ("reason-flood", "on_request", "let s = \"x\"; s.pad(100_000, \"x\"); return deny(403, s);", TRAP),
    ("overflow", "on_request", "let n = 9_223_372_036_854_775_807; n += 1;", TRAP),
    ("kept-handle", "on_response", "ctx.outgoing.headers[\"x\"] = \"1\";", TRAP),
    ("no-status", "on_request", "return deny(99, \"x\");", TRAP),
];

/// What a module does at which hook, and what comes of it.
const MODULES: &[(&str, &str, &str, Verdict)] = &[
    ("m-spin-request", "on_request", "spin", BUDGET),
    ("m-spin-request-body", "on_request_body", "spin", BUDGET),
    ("m-spin-upstream", "on_upstream", "spin", BUDGET),
    ("m-spin-response", "on_response", "spin", BUDGET),
    ("m-spin-response-body", "on_response_body", "spin", BUDGET),
    ("m-spin-log", "on_log", "spin", SERVED),
    ("m-trap-request", "on_request", "panic", TRAP),
    ("m-trap-request-body", "on_request_body", "panic", TRAP),
    ("m-trap-upstream", "on_upstream", "panic", TRAP),
    ("m-trap-response", "on_response", "panic", TRAP),
    ("m-trap-response-body", "on_response_body", "panic", TRAP),
    ("m-trap-log", "on_log", "panic", SERVED),
    ("m-bomb", "on_response", "bomb", BUDGET),
    ("m-recursion", "on_upstream", "recurse", BUDGET),
    ("m-huge-header", "on_response", "huge_header", TRAP),
    ("m-failure", "on_response_body", "fail", FAILED),
    ("m-log-flood", "on_response", "chatter", BUDGET),
];

fn route(name: &str, plugin: &str) -> String {
    format!("  - {{ name: {name}, match: {{ path: /{name} }}, upstream: origin, plugins: [{plugin}] }}\n")
}

/// All of these before one origin, with one worker, so that what holds it up holds all up.
fn gateway(listeners: &str, routes: &str, files: &[(String, Vec<u8>)], origin: &Origin) -> Gateway {
    let config = format!(
        "
workers: 1
listeners:
  - {{ name: main, bind: 127.0.0.1:0 }}
{listeners}plugins: [{{ access_log: {{ target: access.log }} }}]
upstreams: {{ origin: {{ endpoints: [\"http://${{ORIGIN}}\"] }} }}
routes:
  - {{ name: good, match: {{ path: /good }}, respond: {{ status: 200, body: fine }} }}
{routes}"
    );
    let setup = files.iter().fold(Setup::new(&config), |setup, (name, content)| setup.file(name, content));
    setup.before(origin).start()
}

/// Holds what comes of each case, twice, against what is declared.
fn hold(gateway: &Gateway, cases: &[(&str, &str, &str, Verdict)], at: impl Fn(&str) -> SocketAddr) {
    let mut wrong = Vec::new();
    for (name, _, _, (status, reason)) in cases {
        for _ in 0..2 {
            let begin = Instant::now();
            let attempt =
                request("POST", &format!("/{name}")).header("content-type", "text/plain").body("body");
            let answered = Http::connect(at(name)).unwrap().ask(&attempt).unwrap();
            let took = begin.elapsed();
            let good = gateway.get("/good");
            assert!(good.status == 200 && took < SOON, "{name}: {took:?}, then {}", good.status);
            let line = gateway.logged_path(&format!("/{name}"));
            let found = (answered.status, line["reason"].clone());
            if found != (*status, reason.map_or(Value::Null, |reason| json!(reason))) {
                wrong.push(format!("{name}: {found:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", gateway.log());
}

#[test]
fn every_hostile_script_ends_in_its_verdict() {
    let functions =
        "fn again(n) { again(n + 1) + 1 }\nfn ping(n) { pong(n) + 1 }\nfn pong(n) { ping(n) + 1 }\n";
    let (mut routes, mut files) = (String::new(), Vec::new());
    for (name, hook, does, _) in SCRIPTS {
        routes += &route(name, &format!("{{ rhai: {{ file: {name}.rhai }} }}"));
        files
            .push((format!("{name}.rhai"), format!("{functions}fn {hook}(ctx) {{ {does} }}\n").into_bytes()));
    }
    let origin = Origin::start();
    let gateway = gateway("", &routes, &files, &origin);
    hold(&gateway, SCRIPTS, |_| gateway.address());
}

#[test]
fn every_hostile_module_ends_in_its_verdict() {
    let Some(module) = guest("hostile") else { return };
    // It judges connections too, which no plugin of a route does.
    let listener = |(at, (name, hook, does, _)): (usize, &(&str, &str, &str, Verdict))| {
        let plugin = format!("{{ wasm: {{ file: m.wasm, cpu: 5ms, config: {{ {hook}: {does} }} }} }}");
        format!("  - {{ name: {name}, bind: 127.0.0.{}:0, plugins: [{plugin}] }}\n", at + 2)
    };
    let listeners: String = MODULES.iter().enumerate().map(listener).collect();
    let origin = Origin::start();
    let routes = "  - { match: { prefix: / }, upstream: origin }\n";
    let gateway = gateway(&listeners, routes, &[("m.wasm".into(), module)], &origin);
    hold(&gateway, MODULES, |name| gateway.listener(name));
}

#[test]
fn a_hostile_judge_of_connections_costs_its_own_connections_only() {
    let Some(module) = guest("hostile") else { return };
    let plugins = [
        "rhai: { file: c.rhai }",
        "rhai: { file: t.rhai }",
        "wasm: { file: m.wasm, config: { on_connection: spin } }",
        "wasm: { file: m.wasm, config: { on_connection: panic } }",
    ];
    let listener = |(at, plugin): (usize, &&str)| {
        format!("  - {{ name: l{at}, bind: 127.0.0.{}:0, plugins: [{{ {plugin} }}] }}\n", at + 2)
    };
    let listeners: String = plugins.iter().enumerate().map(listener).collect();
    let config = format!(
        "workers: 1\nlisteners:\n  - {{ name: main, bind: 127.0.0.1:0 }}\n{listeners}routes: [{{ respond: {{ status: 204 }} }}]\n"
    );
    let gateway = Setup::new(&config)
        .file("c.rhai", "fn on_connection(conn) { loop { } }")
        .file("t.rhai", "fn on_connection(conn) { throw 1; }")
        .file("m.wasm", module)
        .start();
    for (at, plugin) in plugins.iter().enumerate() {
        let asked = Http::connect(gateway.listener(&format!("l{at}")))
            .and_then(|mut http| http.ask(&request("GET", "/")).map_err(std::io::Error::other));
        assert!(asked.is_err(), "{plugin}");
        assert_eq!(gateway.get("/").status, 204, "{plugin}");
    }
}

/// How often a policy is attacked.
const ATTACK_EVERY: Duration = Duration::from_millis(100);

#[test]
fn under_a_stream_of_attacks_others_are_served_and_the_policies_are_put_into_quarantine() {
    let Some(module) = guest("conformance") else { return };
    let quarantine = "on_error: { quarantine: { failures: 5, within: 1m, first: 1h } }";
    let routes = route(
        "spins",
        &format!("{{ {quarantine}, wasm: {{ file: m.wasm, cpu: 100ms, config: {{ greeting: hello }} }} }}"),
    ) + &route("bombs", &format!("{{ {quarantine}, rhai: {{ file: b.rhai }} }}"));
    let bomb = b"fn on_request(ctx) { let s = \"x\"; loop { s += s; } }".to_vec();
    let origin = Origin::start();
    let gateway = gateway("", &routes, &[("m.wasm".into(), module), ("b.rhai".into(), bomb)], &origin);
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let attacked = |path: &str| -> Answer { gateway.ask(&request("GET", path).header("x-do", "spin")) };
    std::thread::scope(|threads| {
        let _stop = Stop(&over);
        threads.spawn(|| {
            let mut http = gateway.connect();
            while !over.load(SeqCst) {
                let begin = Instant::now();
                assert_eq!(http.ask(&request("GET", "/good")).unwrap().text(), "fine");
                assert!(begin.elapsed() < SOON, "held up for {:?}", begin.elapsed());
                served.fetch_add(1, SeqCst);
            }
        });
        let begin = Instant::now();
        for turn in 0..40_u32 {
            let expected = if turn < 5 { 500 } else { 503 };
            assert_eq!(
                (attacked("/spins").status, attacked("/bombs").status),
                (expected, expected),
                "{turn}"
            );
            until("the next turn", || begin.elapsed() >= ATTACK_EVERY * turn);
        }
    });
    assert!(served.load(SeqCst) > 40, "{}", served.load(SeqCst));
    for plugin in ["spins/wasm", "bombs/rhai"] {
        let label = format!("plugin=\"{plugin}\"");
        assert_eq!(gateway.metric("portcullis_plugin_quarantined", &[&label]), 1.0, "{plugin}");
        assert_eq!(gateway.metric("portcullis_plugin_quarantines_total", &[&label]), 1.0, "{plugin}");
        // Not called any more.
        assert_eq!(gateway.metric("portcullis_plugin_errors_total", &[&label]), 5.0, "{plugin}");
    }
    let warm = gateway.memory();
    (0..500).for_each(|_| assert_eq!(attacked("/spins").status, 503));
    let grown = gateway.memory().saturating_sub(warm);
    assert!(grown < 8 << 10, "{grown} KiB more");
}
