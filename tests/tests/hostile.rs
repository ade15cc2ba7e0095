//! Policies that attack the gateway that runs them, of every kind: every attempt ends in the verdict that is declared
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

/// A filter made for proxy-wasm whose allocator and one of whose callbacks do this.
fn filter(allocate: &str, callback: &str, does: &str) -> Vec<u8> {
    let code = match callback {
        "log" | "delete" => {
            format!("(func (export \"proxy_on_{callback}\") (param i32) (local $n i32) {does})")
        }
        "done" => {
            format!(
                "(func (export \"proxy_on_done\") (param i32) (result i32) (local $n i32) {does} (i32.const 1))"
            )
        }
        // The plugin's own context, which has none above it, is made at load.
        "context_create" => format!(
            "(func (export \"proxy_on_context_create\") (param i32 i32) (local $n i32) (if (local.get 1) (then {does})))"
        ),
        _ => format!(
            "(func (export \"proxy_on_{callback}\") (param i32 i32 i32) (result i32) (local $n i32) {does} (i32.const 0))"
        ),
    };
    let module = format!(
        r#"(module
            (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
            (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_set_buffer_bytes" (func $set_body (param i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_set_shared_data" (func $share (param i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_set_effective_context" (func $effective (param i32) (result i32)))
            (import "env" "proxy_http_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_send_local_response"
                (func $answer (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $sleep (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 32)
            (data (i32.const 0) "host") (data (i32.const 16) "x-flood") (data (i32.const 32) "origin")
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "proxy_on_memory_allocate") (param i32) (result i32) {allocate} (i32.const 65536))
            (func $recurse (param i32) (result i32) (i32.add (i32.const 1) (call $recurse (local.get 0))))
            {code})"#
    );
    wat::parse_str(module).unwrap()
}

/// Middleware made for http-wasm, one of whose functions does this.
fn middleware(function: &str, does: &str) -> Vec<u8> {
    let [request, response] = ["request", "response"].map(|other| if other == function { does } else { "" });
    let module = format!(
        r#"(module
            (import "http_handler" "enable_features" (func $features (param i32) (result i32)))
            (import "http_handler" "log" (func $log (param i32 i32 i32)))
            (import "http_handler" "add_header_value" (func $add (param i32 i32 i32 i32 i32)))
            (import "http_handler" "read_body" (func $read (param i32 i32 i32) (result i64)))
            (import "http_handler" "write_body" (func $write (param i32 i32 i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $sleep (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 32)
            (data (i32.const 16) "x-flood")
            (func $recurse (param i32) (result i32) (i32.add (i32.const 1) (call $recurse (local.get 0))))
            (func $begin (drop (call $features (i32.const 3)))) (start $begin)
            (func (export "handle_request") (result i64) (local $n i32) {request} (i64.const 1))
            (func (export "handle_response") (param i32 i32) (local $n i32) {response}))"#
    );
    wat::parse_str(module).unwrap()
}

/// Longer than any budget lasts.
const ENDLESS: u32 = u32::MAX;

/// So often.
fn times(count: u32, does: &str) -> String {
    format!(
        "(loop $again {does}
            (br_if $again (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const {count}))))"
    )
}

const SPIN: &str = "(loop $ever (br $ever))";
const SLEEP: &str =
    "(loop $ever (drop (call $sleep (i32.const 1024) (i32.const 2048) (i32.const 1) (i32.const 3072)))
    (br $ever))";
const RECURSE: &str = "(drop (call $recurse (i32.const 0)))";
const BOMB: &str =
    "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable";

#[test]
fn every_hostile_filter_for_envoy_ends_in_its_verdict() {
    const READ: &str =
        "(drop (call $get (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 48) (i32.const 52)))";
    const ADD: &str =
        "(drop (call $add (i32.const 0) (i32.const 16) (i32.const 7) (i32.const 0) (i32.const 4)))";
    const SAY: &str = "(drop (call $log (i32.const 2) (i32.const 0) (i32.const 2000000)))";
    const SHARE: &str = "(i32.store (i32.const 64) (local.get $n))
        (drop (call $share (i32.const 64) (i32.const 4) (i32.const 4096) (i32.const 1000000) (i32.const 0)))";
    const CALL: &str =
        "(drop (call $call (i32.const 32) (i32.const 6) (i32.const 0) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1000) (i32.const 48)))";
    const HUGE: &str = "(drop (call $answer (i32.const 200) (i32.const 0) (i32.const 0) (i32.const 4096)
        (i32.const 2000000) (i32.const 0) (i32.const 0) (i32.const -1)))";
    const ANSWERED: Verdict = (200, Some("wasm.local_response"));
    const STRANGER: &str = "(drop (call $effective (local.get $n)))";
    let within = |does: &str| filter("", "request_headers", does);
    let asked = |allocate: &str| filter(allocate, "request_headers", READ);
    let mut cases: Vec<(String, Vec<u8>, Verdict)> = Vec::new();
    for callback in ["context_create", "request_headers", "request_body", "response_headers", "response_body"]
    {
        cases.push((format!("e-spin-{callback}"), filter("", callback, SPIN), BUDGET));
        cases.push((format!("e-trap-{callback}"), filter("", callback, "unreachable"), TRAP));
    }
    for callback in ["done", "log", "delete"] {
        cases.push((format!("e-spin-{callback}"), filter("", callback, SPIN), SERVED));
        cases.push((format!("e-trap-{callback}"), filter("", callback, "unreachable"), SERVED));
    }
    let more = [
        ("sleep", within(SLEEP), BUDGET),
        ("bomb", within(BOMB), BUDGET),
        ("recursion", within(RECURSE), BUDGET),
        ("header-flood", within(&times(300, ADD)), BUDGET),
        ("log-flood", within(&times(ENDLESS, SAY)), BUDGET),
        ("share-flood", within(&times(ENDLESS, SHARE)), BUDGET),
        ("call-flood", within(&times(ENDLESS, CALL)), BUDGET),
        ("huge-answer", within(HUGE), ANSWERED),
        ("of-others", within(&times(1000, STRANGER)), SERVED),
        // What the gateway asks of the guest while the guest asks it.
        ("allocator-asks", asked(READ), BUDGET),
        ("allocator-spins", asked(SPIN), BUDGET),
        ("allocator-traps", asked("unreachable"), TRAP),
        ("allocator-answers", asked(HUGE), ANSWERED),
        ("allocator-bombs", asked(BOMB), BUDGET),
    ];
    cases.extend(more.map(|(name, module, verdict)| (format!("e-{name}"), module, verdict)));
    hold_filters(
        cases,
        "cpu: 5ms, memory: 8MiB, proxy_wasm: { whole_bodies: true, upstreams: { origin: origin } }",
    );
}

#[test]
fn every_hostile_middleware_for_traefik_ends_in_its_verdict() {
    let add = |kind: u8| {
        let add = format!(
            "(call $add (i32.const {kind}) (i32.const 16) (i32.const 7) (i32.const 16) (i32.const 7))"
        );
        times(300, &add)
    };
    let write = |kind: u8, often: u32| {
        times(often, &format!("(call $write (i32.const {kind}) (i32.const 0) (i32.const 2000000))"))
    };
    let say = times(ENDLESS, "(call $log (i32.const 0) (i32.const 0) (i32.const 2000000))");
    let mut cases: Vec<(String, Vec<u8>, Verdict)> = Vec::new();
    for function in ["request", "response"] {
        let kind = if function == "request" { 0 } else { 1 };
        let read = format!("(drop (call $read (i32.const {kind}) (i32.const 0) (i32.const 1)))");
        let read = times(ENDLESS, &read);
        for (name, does, verdict) in [
            ("spin", SPIN.to_owned(), BUDGET),
            ("trap", "unreachable".to_owned(), TRAP),
            ("sleep", SLEEP.to_owned(), BUDGET),
            ("bomb", BOMB.to_owned(), BUDGET),
            ("recursion", RECURSE.to_owned(), BUDGET),
            ("header-flood", add(kind), BUDGET),
            ("body-flood", write(kind, 100), BUDGET),
            ("log-flood", say.clone(), BUDGET),
            ("endless-reading", read, BUDGET),
        ] {
            cases.push((format!("t-{name}-{function}"), middleware(function, &does), verdict));
        }
    }
    hold_filters(cases, "cpu: 5ms, memory: 8MiB");
}

/// The same for modules that are made here, each on a route of its own.
fn hold_filters(cases: Vec<(String, Vec<u8>, Verdict)>, options: &str) {
    let (mut routes, mut files) = (String::new(), Vec::new());
    for (name, module, _) in &cases {
        routes += &route(name, &format!("{{ wasm: {{ file: {name}.wasm, {options} }} }}"));
        files.push((format!("{name}.wasm"), module.clone()));
    }
    let origin = Origin::start();
    let gateway = gateway("", &routes, &files, &origin);
    let declared: Vec<_> = cases.iter().map(|(name, _, verdict)| (&**name, "", "", *verdict)).collect();
    hold(&gateway, &declared, |_| gateway.address());
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
