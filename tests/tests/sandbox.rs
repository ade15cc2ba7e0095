//! What policies cannot do: each attempt ends within its budget, the client gets a 500 that says
//! nothing, the access log says why, and every other request goes on meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use portcullis_tests::tools::guest;
use portcullis_tests::{Answer, Gateway, Http, Setup, request, until};
use serde_json::json;

/// What an attempt may take: its budget is milliseconds, in an unoptimised build on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// A policy that behaves badly behind the listener `bad`. There is one worker for both listeners, so that
/// whatever it holds up is held up.
fn with(plugin: &str, name: &str, content: &[u8]) -> Gateway {
    let config = format!(
        "
plugins: [{{ access_log: {{ target: access.log }} }}]
listeners:
  - {{ name: good, bind: 127.0.0.1:0 }}
  - {{ name: bad, bind: 127.0.0.2:0, plugins: [{plugin}] }}
routes: [{{ respond: {{ status: 200, body: fine }} }}]
"
    );
    Setup::new(&config).file(name, content).start()
}

/// A request to the policy.
fn bad(gateway: &Gateway, told: &str) -> Answer {
    Http::connect(gateway.listener("bad")).unwrap().ask(&request("GET", "/bad").header("x-do", told)).unwrap()
}

/// Ends the other client with whatever ends this one, a failure included.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Asks for trouble while another client is served; returns the reason in the access log.
fn trouble(gateway: &Gateway, told: &str) -> String {
    let done = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    std::thread::scope(|threads| {
        let _over = Over(&done);
        threads.spawn(|| {
            let mut http = Http::connect(gateway.address()).unwrap();
            while !done.load(Ordering::SeqCst) {
                let start = Instant::now();
                assert_eq!(http.ask(&request("GET", "/good")).unwrap().text(), "fine");
                assert!(start.elapsed() < SOON, "held up for {:?}", start.elapsed());
                served.fetch_add(1, Ordering::SeqCst);
            }
        });
        let start = Instant::now();
        let answers: Vec<_> = (0..5).map(|_| bad(gateway, told)).collect();
        let took = start.elapsed();
        until("the other client to be served", || served.load(Ordering::SeqCst) >= 5);
        for answer in answers {
            assert_eq!(answer.status, 500);
            assert!(!answer.text().contains("plugin."), "{}", answer.text());
        }
        assert!(took < SOON, "{took:?}");
    });
    let line = gateway.logged_path("/bad");
    assert_eq!((&line["status"], &line["hook"]), (&json!(500), &json!("on_request")));
    line["reason"].as_str().unwrap().to_owned()
}

fn script(body: &str) -> Gateway {
    let script = format!("fn deeper(n) {{ deeper(n + 1) + 1 }}\nfn on_request(ctx) {{ {body} }}\n");
    with("{ name: bad, rhai: { file: bad.rhai } }", "bad.rhai", script.as_bytes())
}

#[test]
fn scripts_end_within_their_budgets() {
    for body in [
        "loop { }",
        "let x = []; loop { x.push(1); }",
        "let s = \"x\"; loop { s += s; }",
        "deeper(0);",
        "let m = #{}; let n = 0; loop { m[`${n}`] = n; n += 1; }",
        "try { loop { } } catch { loop { } }",
        "let s = \"a\"; s.pad(1_000_000, \"a\"); loop { regex_is_match(\"(a+)+$\", s); }",
    ] {
        let gateway = script(body);
        assert_eq!(trouble(&gateway, ""), "plugin.budget", "{body}");
        assert_eq!(gateway.metric("portcullis_plugin_errors_total", &["error=\"budget\""]), 5.0);
        assert!(gateway.log().contains("bad.rhai:"), "{body}: {}", gateway.log());
    }
}

#[test]
fn a_script_that_fails_is_a_trap() {
    for body in ["throw 1;", "let a = [1]; a[7];", "1 / 0;"] {
        assert_eq!(trouble(&script(body), ""), "plugin.trap", "{body}");
    }
}

#[test]
fn a_script_cannot_reach_what_it_was_not_given() {
    for content in [
        "import \"../secret\" as s; fn on_request(ctx) { }",
        "import \"/etc/passwd\" as s; fn on_request(ctx) { }",
        "fn on_request(ctx) { eval(\"1\"); }",
    ] {
        let config = "plugins: [{ rhai: { file: bad.rhai } }]\nroutes: [{ respond: { status: 204 } }]\n";
        let ended = Setup::new(config).file("bad.rhai", content).try_start().err();
        let ended = ended.unwrap_or_else(|| panic!("it started: {content}"));
        assert_eq!(ended.status.code(), Some(2));
        assert!(ended.err.contains("bad.rhai:1:"), "{}", ended.err);
    }
}

fn module() -> Option<Gateway> {
    let module = guest("conformance")?;
    let plugin = "{ name: bad, wasm: { file: bad.wasm, cpu: 3ms, config: { greeting: hello } } }";
    Some(with(plugin, "bad.wasm", &module))
}

#[test]
fn modules_end_within_their_budgets() {
    for (told, reason) in [
        ("spin", "plugin.budget"),
        ("bomb", "plugin.budget"),
        ("recurse", "plugin.budget"),
        ("huge_header", "plugin.trap"),
        ("fail", "plugin.trap"),
        ("own_failure", "plugin.failed"),
    ] {
        let Some(gateway) = module() else { return };
        assert_eq!(trouble(&gateway, told), reason, "{told}");
    }
}

#[test]
fn a_chattering_module_is_cut_short() {
    let Some(module) = guest("hostile") else { return };
    let plugin = "{ name: bad, wasm: { file: bad.wasm, config: { on_request: chatter } } }";
    let gateway = with(plugin, "bad.wasm", &module);
    bad(&gateway, "");
    gateway.logged_path("/bad");
    assert!(gateway.log().len() < 256 << 10, "{} bytes of log", gateway.log().len());
}

#[test]
fn a_module_that_was_taken_apart_leaves_nothing_to_the_next_exchange() {
    let Some(module) = guest("hostile") else { return };
    let plugin = "{ name: bad, wasm: { file: bad.wasm, config: { on_response: count } } }";
    let gateway = with(plugin, "bad.wasm", &module);
    let count = || bad(&gateway, "").header("x-count").map(str::to_owned);
    let first = count();
    assert!(first.is_some());
    assert_eq!((count(), count()), (first.clone(), first));
}

#[test]
fn memory_stays_bounded_however_often_a_policy_asks_for_more() {
    let gateway = script("let s = \"x\"; loop { s += s; }");
    let mut http = Http::connect(gateway.listener("bad")).unwrap();
    let mut ask = |times: usize| {
        for _ in 0..times {
            assert_eq!(http.ask(&request("GET", "/bad")).unwrap().status, 500);
        }
    };
    ask(50);
    let warm = gateway.memory();
    ask(300);
    let grown = gateway.memory().saturating_sub(warm);
    // Each attempt takes up to a MiB before it ends: one in twenty that leaks would be more than this.
    assert!(grown < 15 << 10, "{grown} KiB more than after the warm-up");
}
