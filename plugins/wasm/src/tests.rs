//! Guests written by hand, for what must hold whatever a guest does. Guests made with the SDK are
//! in `tests/sdk.rs`.

mod handmade;
mod sdk;
mod state;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use portcullis_plugin::{
    BodyWish, Decision, ErrorKind, Exchange, ExchangeBuilder, Hook, HookFuture, HookName, Instance, Needs,
    PluginError, PluginTester, TestedPlugin,
};
use serde_json::{Value, json};

use self::handmade::{hook, module};
use super::*;
use crate::policy::refusal;

const SPIN: &str = "(loop $again (br $again))";
/// Some 100 million turns: longer than a tick, much shorter than a second.
const LINGER: &str = "(local $n i32) (loop $again
    (local.set $n (i32.add (local.get $n) (i32.const 1)))
    (br_if $again (i32.lt_u (local.get $n) (i32.const 100000000))))";
const BOMB: &str = "(loop $again (drop (memory.grow (i32.const 16))) (br $again))";
const TRAP: &str = "unreachable";
/// Counts its calls, and refuses the second one.
const ONCE: &str = "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (if (i32.gt_u (global.get $calls) (i32.const 1)) (then unreachable))";

fn request_guest(code: &str) -> Vec<u8> {
    module(&["on-request", "on-log"], &[hook("on-request", code), hook("on-log", "")].concat())
}

fn table(more: Value) -> Value {
    let mut table = json!({ "file": "guest.wasm" });
    table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    table
}

fn build(module: Vec<u8>, more: Value) -> Result<TestedPlugin, BuildError> {
    PluginTester::new().file("guest.wasm", module).build::<Module>(table(more))
}

fn exchange() -> Exchange {
    ExchangeBuilder::get("/a?b=c").header("x-kept", "yes").build()
}

#[track_caller]
fn assert_whole(exchange: &Exchange) {
    assert!(!exchange.is_hollow());
    assert_eq!((exchange.request().target().as_str(), exchange.request().headers().len()), ("/a?b=c", 2));
}

fn poll(hook: &mut HookFuture<'_>) -> Poll<Result<Decision, PluginError>> {
    hook.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn a_short_call_answers_at_once() {
    let guest = build(request_guest(""), json!({})).unwrap();
    let mut exchange = exchange();
    // One call in some thousands is interrupted by chance.
    let at_once = (0..5).filter(|_| {
        let hook = guest.plugin().on_request(&mut exchange);
        matches!(hook, Hook::Ready(Ok(Decision::Continue)))
    });
    assert!(at_once.count() >= 3);
    assert_whole(&exchange);
}

#[test]
fn every_way_out_of_a_call_brings_the_exchange_back() {
    let recurse = "(func $deep (result i32) (i32.add (call $deep) (call $deep)))";
    let cases = [
        (request_guest(TRAP), ErrorKind::Trap, "on_request trapped: wasm `unreachable`"),
        (request_guest(SPIN), ErrorKind::Budget, "on_request used up its 5ms of CPU"),
        (request_guest(BOMB), ErrorKind::Budget, "on_request asked for more than 16MiB of memory"),
        (
            module(&["on-request"], &[recurse, &hook("on-request", "(drop (call $deep))")].concat()),
            ErrorKind::Budget,
            "on_request recursed beyond its 512KiB of stack",
        ),
        // A pointer beyond the memory, on which lifting the answer fails in the host.
        (
            module(
                &["on-request"],
                r#"(func (export "portcullis:policy/on-request@0.1.0#on-request") (result i32) (i32.const -8))"#,
            ),
            ErrorKind::Trap,
            "on_request trapped: ",
        ),
    ];
    for (module, kind, message) in cases {
        let guest = build(module, json!({})).unwrap();
        let mut exchange = exchange();
        let error = guest.on_request(&mut exchange).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().starts_with(message), "{error}");
        assert_whole(&exchange);
        // The instance is gone, and no other takes its place for this exchange.
        assert!(matches!(guest.on_request(&mut exchange), Ok(Decision::Continue)));
        assert!(matches!(guest.call(HookName::OnLog, &mut exchange), Ok(Decision::Continue)));
        assert_whole(&exchange);
    }
}

#[test]
fn a_call_that_is_cancelled_midway_brings_the_exchange_back_and_frees_its_place() {
    let mut tester = PluginTester::new().file("guest.wasm", request_guest(SPIN));
    scarce_engines(&mut tester, 1, 0);
    let guest = tester.build::<Module>(table(json!({ "cpu": "1s" }))).unwrap();
    for _ in 0..3 {
        let mut exchange = exchange();
        let Hook::Wait(mut future) = guest.plugin().on_request(&mut exchange) else {
            panic!("a guest that spins was not interrupted")
        };
        assert!(poll(&mut future).is_pending() && poll(&mut future).is_pending());
        drop(future);
        assert_whole(&exchange);
        assert!(matches!(guest.call(HookName::OnLog, &mut exchange), Ok(Decision::Continue)));
    }
}

#[test]
fn a_long_call_yields_every_tick_and_ends_well() {
    let guest = build(request_guest(LINGER), json!({ "cpu": "1s" })).unwrap();
    let mut exchange = exchange();
    let Hook::Wait(mut future) = guest.plugin().on_request(&mut exchange) else {
        panic!("a long call was not interrupted")
    };
    let mut yields = 1;
    let verdict = loop {
        match poll(&mut future) {
            Poll::Pending => yields += 1,
            Poll::Ready(verdict) => break verdict,
        }
    };
    drop(future);
    assert!(matches!(verdict, Ok(Decision::Continue)) && yields > 2, "{yields} {verdict:?}");
    assert_whole(&exchange);
}

#[test]
fn an_instance_stays_with_its_exchange_until_the_last_hook() {
    let hooks = [hook("on-request", ONCE), hook("on-log", ONCE)].concat();
    let guest = build(module(&["on-request", "on-log"], &hooks), json!({})).unwrap();
    let (mut first, mut second) = (exchange(), exchange());
    assert!(guest.on_request(&mut first).is_ok() && guest.on_request(&mut second).is_ok());
    // The second call in the same instance traps: it is the same one that ran on_request.
    assert_eq!(guest.call(HookName::OnLog, &mut first).unwrap_err().kind(), ErrorKind::Trap);
}

#[test]
fn reuse_hands_an_instance_to_so_many_exchanges() {
    let hooks = hook("on-request", ONCE);
    let fresh = build(module(&["on-request"], &hooks), json!({ "isolation": "fresh" })).unwrap();
    let mut tester = PluginTester::new().file("guest.wasm", module(&["on-request"], &hooks));
    let reused = tester.build::<Module>(table(json!({ "isolation": { "reuse": 2 } }))).unwrap();
    let verdicts = |guest: &TestedPlugin| [0; 4].map(|_| guest.on_request(&mut exchange()).is_ok());
    assert_eq!(verdicts(&fresh), [true; 4]);
    // What trapped is not used again; the next one starts anew.
    assert_eq!(verdicts(&reused), [true, false, true, false]);
    let starts = |instance| tester.counted("starts", &[instance]);
    assert_eq!((starts("fresh"), starts("reused")), (Some(2), Some(2)));
}

#[test]
fn a_refusal_carries_status_and_reason() {
    let answer = r#"(data (i32.const 1028) "\01\00\00\00\93\01\00\00\00\08\00\00\05\00\00\00") (data (i32.const 2048) "a.b-c")"#;
    let guest =
        build(module(&["on-request"], &[answer, &hook("on-request", "")].concat()), json!({})).unwrap();
    let Ok(Decision::Respond(reply)) = guest.on_request(&mut exchange()) else { panic!("no refusal") };
    assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (403, Some("a.b-c")));
}

#[test]
fn what_no_gateway_can_do_is_the_guests_failure() {
    let denial = |status: &str, length: &str| {
        format!(r#"(data (i32.const 1028) "\01\00\00\00{status}\00\00\00\08\00\00{length}\00\00\00")"#)
    };
    for (status, length, message) in [(r"\c8\00", r"\05", "400 to 599"), (r"\93\01", r"\00", "a reason is")] {
        let body = [denial(status, length), hook("on-request", "")].concat();
        let guest = build(module(&["on-request"], &body), json!({})).unwrap();
        let mut exchange = exchange();
        let error = guest.on_request(&mut exchange).unwrap_err();
        assert!(error.kind() == ErrorKind::Failed && error.message().contains(message), "{error}");
        assert_whole(&exchange);
    }
}

#[test]
fn an_instance_kept_for_more_attempts_is_let_go_with_the_response() {
    let mut tester =
        PluginTester::new().file("guest.wasm", module(&["on-upstream"], &hook("on-upstream", "")));
    scarce_engines(&mut tester, 1, 0);
    let guest = tester.build::<Module>(table(json!({}))).unwrap();
    let mut first = ExchangeBuilder::get("/").attempt("u", "h:1").response(200, &[], "").build();
    assert!(matches!(guest.call(HookName::OnUpstream, &mut first), Ok(Decision::Continue)));
    let full = guest.call(HookName::OnUpstream, &mut ExchangeBuilder::get("/").attempt("u", "h:1").build());
    let Ok(Decision::Respond(reply)) = full else { panic!("there was room") };
    assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (503, Some("wasm.pool_exhausted")));
    assert!(matches!(guest.on_response(&mut first), Ok(Decision::Continue)));
    let again = guest.call(HookName::OnUpstream, &mut ExchangeBuilder::get("/").attempt("u", "h:1").build());
    assert!(matches!(again, Ok(Decision::Continue)));
}

#[test]
fn beyond_the_pool_there_is_a_bounded_number_of_places() {
    let mut tester = PluginTester::new().file("guest.wasm", request_guest(""));
    scarce_engines(&mut tester, 1, 2);
    let guest = tester.build::<Module>(table(json!({}))).unwrap();
    let mut exchanges = [(); 4].map(|()| exchange());
    let verdicts = exchanges.each_mut().map(|exchange| guest.on_request(exchange).unwrap());
    let refused = verdicts.map(|verdict| matches!(verdict, Decision::Respond(_)));
    assert_eq!(refused, [false, false, false, true]);
    // An exchange that goes away frees its place, whether or not its last hook ran.
    drop(exchanges);
    assert!(matches!(guest.on_request(&mut exchange()), Ok(Decision::Continue)));
}

#[test]
fn that_the_pool_is_exhausted_is_said_once_for_a_flood() {
    let parameters = "i32 ".repeat(14);
    let connection = format!(
        r#"(func (export "portcullis:policy/on-connection@0.1.0#on-connection") (param {parameters}) (result i32) (i32.const 1024))"#
    );
    let hooks = [connection, hook("on-request", ""), hook("on-log", "")].concat();
    let module = module(&["on-connection", "on-request", "on-log"], &hooks);
    let mut tester = PluginTester::new().file("guest.wasm", module);
    scarce_engines(&mut tester, 1, 0);
    let guest = tester.build::<Module>(table(json!({}))).unwrap();
    assert_eq!(guest.on_connection("192.0.2.1").unwrap(), Admission::Accept);
    let mut held = exchange();
    guest.on_request(&mut held).unwrap();
    let written = logged(|| {
        assert_eq!(guest.on_connection("192.0.2.1").unwrap(), Admission::Drop);
        for _ in 0..3 {
            assert!(matches!(guest.on_request(&mut exchange()), Ok(Decision::Respond(_))));
        }
    });
    assert_eq!(written.lines().count(), 1, "{written}");
    assert!(written.contains("WARN") && written.contains("wasm.pool_exhausted"), "{written}");
    assert_eq!(tester.counted("pool_exhausted", &[]), Some(4));
}

#[test]
fn what_a_guest_says_of_a_key_is_told_at_that_key() {
    let config = json!({ "rules": [{ "name": "a" }], "prefix": 1 });
    let config = config.as_object().unwrap();
    for (message, path, rest) in [
        ("prefix: unknown field `prefix`", "config.prefix", "unknown field `prefix`"),
        ("rules[0].name: too short", "config.rules[0].name", "too short"),
        ("rules[1].name: too short", "config", "rules[1].name: too short"),
        ("nothing: there", "config", "nothing: there"),
        ("missing field `x`", "config", "missing field `x`"),
    ] {
        let error = refusal(message, config);
        assert_eq!((&*error.path, &*error.message), (path, rest));
    }
}

#[test]
fn an_upgraded_exchange_holds_no_instance() {
    let hooks = [hook("on-response", ""), hook("on-log", "")].concat();
    let mut tester = PluginTester::new().file("guest.wasm", module(&["on-response", "on-log"], &hooks));
    scarce_engines(&mut tester, 1, 0);
    let guest = tester.build::<Module>(table(json!({}))).unwrap();
    let mut upgrade = ExchangeBuilder::get("/").response(101, &[], "").build();
    assert!(guest.on_response(&mut upgrade).is_ok());
    let mut other = ExchangeBuilder::get("/").response(200, &[], "").build();
    assert!(matches!(guest.on_response(&mut other), Ok(Decision::Continue)));
}

#[test]
fn on_connection_judges_at_once_and_a_guest_that_holds_the_worker_fails() {
    let parameters = "i32 ".repeat(14);
    let verdict = |code: &str| {
        let function = format!(
            r#"(func (export "portcullis:policy/on-connection@0.1.0#on-connection") (param {parameters}) (result i32) {code})"#
        );
        build(module(&["on-connection"], &function), json!({})).unwrap().on_connection("192.0.2.9")
    };
    assert_eq!(verdict("(i32.const 1024)").unwrap(), Admission::Accept);
    let drop = "(i32.store8 (i32.const 1028) (i32.const 1)) (i32.const 1024)";
    assert_eq!(verdict(drop).unwrap(), Admission::Drop);
    let spins = verdict("(loop $again (br $again)) (i32.const 1024)").unwrap_err();
    assert_eq!(spins.kind(), ErrorKind::Budget);
    assert_eq!(spins.message(), "on_connection used up its 1ms of CPU");
    // There is no exchange yet: asking for its id is a trap.
    let asks = verdict("(call $id (i32.const 0)) (i32.const 1024)").unwrap_err();
    assert_eq!(asks.kind(), ErrorKind::Trap);
    assert!(asks.message().contains("no exchange"), "{asks}");
}

#[test]
fn only_exported_hooks_are_asked_for() {
    let needs = |exports: &[&str]| {
        let hooks: String = exports.iter().map(|name| hook(name, "")).collect();
        build(module(exports, &hooks), json!({ "body_limit": "10KiB" })).unwrap().plugin().needs()
    };
    assert_eq!(needs(&["on-response"]), Needs::hooks([HookName::OnResponse]));
    let body = BodyWish::Whole { limit: 10 << 10 };
    assert_eq!(needs(&["on-request-body", "on-log"]), Needs::hooks([HookName::OnLog]).request_body(body));
}

#[test]
fn what_is_no_policy_is_refused_with_what_it_is() {
    let component = |wat: &str| wat::parse_str(wat).unwrap();
    let cases = [
        (b"#!/bin/sh".to_vec(), "not WebAssembly: begins with `#!/b`", "begins with `\\0asm`"),
        (Vec::new(), "the file is empty", ""),
        (component("(module)"), "a core module without component type", "portcullis-guest SDK"),
        (component("(component)"), "exports no hook, but nothing", "on-request@0.1.0"),
        (
            component(
                r#"(component (import "wasi:cli/environment@0.2.0" (instance)) (import "my:own/thing" (instance)))"#,
            ),
            "imports what no policy can have: `my:own/thing`",
            "portcullis-guest SDK",
        ),
        (
            component(r#"(component (import "wasi:http/outgoing-handler@0.2.0" (instance)))"#),
            "imports what no policy can have: `wasi:http/outgoing-handler@0.2.0`",
            "by way of `portcullis:policy/http@0.1.0`",
        ),
        (
            component(r#"(component (import "portcullis:policy/host@0.2.0" (instance)))"#),
            "`portcullis:policy/host@0.2.0`",
            "offers portcullis:policy@0.1.0",
        ),
    ];
    for (module, message, help) in cases {
        let error = build(module, json!({})).err().unwrap();
        assert!(error.path == "file" && error.message.contains(message), "{error}");
        assert!(error.help.clone().unwrap_or_default().contains(help), "{error:?}");
    }
}

#[test]
fn limits_and_pins_are_judged_at_load() {
    let path = |module: Vec<u8>, more: Value| build(module, more).err().map(|error| error.path);
    let good = request_guest("");
    let pin = format!("sha256:{}", load::sha256(&good));
    assert_eq!(path(good.clone(), json!({ "digest": pin })), None);
    assert_eq!(
        path(good.clone(), json!({ "digest": format!("sha256:{}", "0".repeat(64)) })),
        Some("digest".into())
    );
    assert_eq!(path(good.clone(), json!({ "digest": "abc" })), Some("digest".into()));
    assert_eq!(path(good.clone(), json!({ "memory": "1GiB" })), Some("memory".into()));
    assert_eq!(path(good.clone(), json!({ "cpu": "0ms" })), Some("cpu".into()));
    assert_eq!(path(good.clone(), json!({ "cpu": "1500us" })), Some("cpu".into()));
    // Its memory of 64 KiB does not fit.
    assert_eq!(path(good.clone(), json!({ "memory": "32KiB" })), Some("memory".into()));
    assert!(build(good, json!({ "memroy": "16MiB" })).err().unwrap().message.contains("memroy"));
}

#[test]
fn what_a_call_allocates_is_one_small_future() {
    let mut tester = PluginTester::new().file("guest.wasm", request_guest(""));
    let instance = Instance { kind: Module::KIND, name: Module::KIND.into(), state_schema: 0 };
    let config: Config = serde_json::from_value(table(json!({}))).unwrap();
    let mut context = BuildContext::new(instance, &mut tester);
    let engines = context.shared_by_kind(Engines::new);
    let engines = Result::as_ref(&engines).unwrap();
    let policy = Policy::build(&config, &request_guest(""), engines, &mut context).unwrap();
    let size = size_of_val(&policy.guest.run(HookName::OnRequest, &mut exchange()));
    assert!(size <= 1536, "{size}");
}

/// Engines with few places for the instances that `tester` will build.
fn scarce_engines(tester: &mut PluginTester, pooled: u32, overflow: u32) {
    let instance = Instance { kind: Module::KIND, name: "".into(), state_schema: Module::STATE_SCHEMA };
    BuildContext::new(instance, tester).shared_by_kind(|| Engines::with(pooled, overflow));
}

/// What is logged meanwhile, as text.
pub(crate) fn logged(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
}
