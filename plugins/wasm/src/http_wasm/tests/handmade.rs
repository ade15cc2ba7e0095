//! Each host function with right and wrong arguments, and modules that are not what they should be.

use super::*;

/// A module that imports every host function; `request` is what its `handle_request` does and returns.
fn module(request: &str, more: &str) -> Vec<u8> {
    let functions = [
        ("enable_features", "i32", "(result i32)"),
        ("get_config", "i32 i32", "(result i32)"),
        ("log", "i32 i32 i32", ""),
        ("log_enabled", "i32", "(result i32)"),
        ("get_method", "i32 i32", "(result i32)"),
        ("set_method", "i32 i32", ""),
        ("get_uri", "i32 i32", "(result i32)"),
        ("set_uri", "i32 i32", ""),
        ("get_protocol_version", "i32 i32", "(result i32)"),
        ("get_source_addr", "i32 i32", "(result i32)"),
        ("get_header_names", "i32 i32 i32", "(result i64)"),
        ("get_header_values", "i32 i32 i32 i32 i32", "(result i64)"),
        ("set_header_value", "i32 i32 i32 i32 i32", ""),
        ("add_header_value", "i32 i32 i32 i32 i32", ""),
        ("remove_header", "i32 i32 i32", ""),
        ("read_body", "i32 i32 i32", "(result i64)"),
        ("write_body", "i32 i32 i32", ""),
        ("get_status_code", "", "(result i32)"),
        ("set_status_code", "i32", ""),
    ];
    let imports = functions.map(|(name, parameters, result)| {
        format!(r#"(import "http_handler" "{name}" (func ${name} (param {parameters}) {result}))"#)
    });
    let wat = format!(
        r#"(module {}
            (memory (export "memory") 2)
            (data (i32.const 0) "x-name") (data (i32.const 16) "value") (data (i32.const 32) "bad name")
            (data (i32.const 48) "/to?a=b") (data (i32.const 64) "PUT") (data (i32.const 80) "\ff\fe")
            (data (i32.const 96) "/a b") (data (i32.const 112) "a\nb") (data (i32.const 128) "TRACE")
            (func (export "handle_request") (result i64) (local $n i64) {request})
            {more})"#,
        imports.concat()
    );
    wat::parse_str(wat).unwrap()
}

const PASSES: &str = r#"(func (export "handle_response") (param i32 i32))"#;
const NEXT: &str = "(i64.const 1)";

fn plugin(module: Vec<u8>) -> TestedPlugin {
    build(&mut PluginTester::new().file("m.wasm", module), json!({ "config": "twelve bytes" })).unwrap()
}

fn exchange() -> Exchange {
    let builder = ExchangeBuilder::get("/a?b=c").header("x-name", "one").header("x-name", "two");
    builder.peer("192.0.2.1").build()
}

/// What a function answers: the low half and the high half of it.
#[track_caller]
fn answer(call: &str) -> (u32, u32) {
    // Its own answer tells it, byte by byte.
    let code = format!(
        "(local.set $n {call}) (i64.store (i32.const 1000) (local.get $n))
         (call $write_body (i32.const 1) (i32.const 1000) (i32.const 8)) (i64.const 0)"
    );
    let (_, _, body, _) = reply(plugin(module(&code, PASSES)).on_request(&mut exchange()));
    let number = u64::from_le_bytes(body[..].try_into().unwrap());
    (number as u32, (number >> 32) as u32)
}

/// A call with such arguments.
fn call(name: &str, arguments: &[i64]) -> String {
    let arguments: String = arguments.iter().map(|number| format!(" (i32.const {number})")).collect();
    format!("(call ${name}{arguments})")
}

/// What a function that fills a buffer at 500 has left there.
#[track_caller]
fn text(name: &str, arguments: &[i64], length: usize) -> String {
    let call = call(name, arguments);
    let code = format!(
        "(drop {call}) (call $write_body (i32.const 1) (i32.const 500) (i32.const {length})) (i64.const 0)"
    );
    let (_, _, body, _) = reply(plugin(module(&code, PASSES)).on_request(&mut exchange()));
    String::from_utf8(body.to_vec()).unwrap()
}

#[test]
fn what_fits_is_written_and_its_length_told_in_any_case() {
    for (name, kind, expected) in [
        ("get_config", &[][..], "twelve bytes"),
        ("get_method", &[], "GET"),
        ("get_uri", &[], "/a?b=c"),
        ("get_protocol_version", &[], "HTTP/1.1"),
        ("get_source_addr", &[], "192.0.2.1:40000"),
        ("get_header_names", &[0], "host\0x-name\0"),
        ("get_header_values", &[0, 0, 6], "one\0two\0"),
    ] {
        let length = expected.len() as i64;
        let with = |to: i64, limit: i64| [kind, &[to, limit]].concat();
        assert_eq!(text(name, &with(500, length), expected.len()), expected, "{name}");
        let nothing = "\0".repeat(expected.len());
        assert_eq!(text(name, &with(500, length - 1), expected.len()), nothing, "{name}");
        // A pointer that is not used may be any.
        for arguments in [with(500, length), with(500, 0), with(-1, 0)] {
            let call = call(name, &arguments);
            let call = if kind.is_empty() { format!("(i64.extend_i32_u {call})") } else { call };
            let count = if kind.is_empty() { 0 } else { 2 };
            assert_eq!(answer(&call), (length as u32, count), "{name} {arguments:?}");
        }
    }
}

#[test]
fn what_is_absent_is_no_values_and_no_trap() {
    for (arguments, expected) in [
        (&[0, 16, 5, 500, 100][..], (0, 0)),
        // Of the answer that is not begun, and of trailers without their feature.
        (&[1, 0, 6, 500, 100], (0, 0)),
        (&[2, 0, 6, 500, 100], (0, 0)),
        (&[3, 0, 6, 500, 100], (0, 0)),
    ] {
        assert_eq!(answer(&call("get_header_values", arguments)), expected, "{arguments:?}");
    }
    assert_eq!(answer(&call("get_header_names", &[3, 500, 100])), (0, 0));
    // A body that is none has ended.
    assert_eq!(answer(&call("read_body", &[0, 500, 100])), (0, 1));
    assert_eq!(answer(&call("read_body", &[1, 500, 100])), (0, 1));
}

#[test]
fn features_levels_and_status_have_numbers() {
    let answer =
        |name: &str, arguments: &[i64]| answer(&format!("(i64.extend_i32_u {})", call(name, arguments))).0;
    assert_eq!((answer("enable_features", &[2]), answer("enable_features", &[-1])), (2, 7));
    assert_eq!((answer("log_enabled", &[3]), answer("log_enabled", &[-2])), (0, 0));
    assert_eq!(answer("get_status_code", &[]), 200);
}

#[test]
fn a_guest_logs_at_its_levels() {
    let code: String = [-1, 0, 1, 2, 3].map(|level| call("log", &[level, 16, 5])).concat();
    let plugin = plugin(module(&[&code, NEXT].concat(), PASSES));
    let said = crate::tests::logged(|| continues(plugin.on_request(&mut exchange())));
    // The lowest level is not shown, and the one above all others is none.
    assert_eq!(said.matches("value").count(), 3, "{said}");
    for level in ["INFO", "WARN", "ERROR"] {
        assert!(said.contains(level), "{said}");
    }
}

#[test]
fn what_can_not_be_done_traps_and_changes_nothing() {
    const FAR: i64 = 0x7fff_0000;
    for (name, arguments, says) in [
        ("get_config", &[FAR, 100][..], "beyond the memory"),
        ("log", &[0, FAR, 1], "beyond the memory"),
        ("log", &[0, 100, -1], "beyond the memory"),
        ("get_method", &[FAR, 100], "beyond the memory"),
        ("set_method", &[FAR, 1], "beyond the memory"),
        ("set_method", &[0, 0], "method"),
        ("set_method", &[80, 2], "method"),
        ("set_method", &[128, 5], "not forwarded"),
        ("set_uri", &[FAR, 1], "beyond the memory"),
        ("set_uri", &[96, 4], ""),
        ("set_uri", &[80, 2], ""),
        ("get_header_names", &[4, 500, 100], "no such kind"),
        ("get_header_names", &[0, FAR, 100], "beyond the memory"),
        ("get_header_values", &[9, 0, 6, 500, 100], "no such kind"),
        ("get_header_values", &[0, 0, 0, 500, 100], "header name"),
        ("get_header_values", &[0, FAR, 6, 500, 100], "beyond the memory"),
        ("set_header_value", &[4, 0, 6, 16, 5], "no such kind"),
        ("set_header_value", &[0, 32, 8, 16, 5], "header name"),
        ("set_header_value", &[0, 0, 6, 112, 3], "characters that no header may have"),
        ("set_header_value", &[0, 0, 6, FAR, 5], "beyond the memory"),
        ("set_header_value", &[2, 0, 6, 16, 5], "feature `trailers`"),
        ("add_header_value", &[3, 0, 6, 16, 5], "feature `trailers`"),
        ("add_header_value", &[0, 0, 6, 0, 70000], "longer than 65536 bytes"),
        ("remove_header", &[4, 0, 6], "no such kind"),
        ("remove_header", &[0, 0, 0], "header name"),
        ("read_body", &[2, 500, 100], "no such kind"),
        ("read_body", &[0, 500, 0], "no room at all"),
        ("write_body", &[2, 16, 5], "no such kind"),
        ("write_body", &[1, FAR, 5], "beyond the memory"),
        ("set_status_code", &[199], "200 to 599"),
        ("set_status_code", &[600], "200 to 599"),
        ("set_status_code", &[70000], "not a status"),
    ] {
        let returns = name.starts_with("get") || name == "read_body";
        let call = call(name, arguments);
        let code = if returns { format!("(drop {call}) {NEXT}") } else { format!("{call} {NEXT}") };
        let mut exchange = exchange();
        let error = plugin(module(&code, PASSES)).on_request(&mut exchange).unwrap_err();
        assert!(error.kind() == ErrorKind::Trap && error.message().contains(says), "{name}: {error}");
        assert!(exchange.core().changes.is_empty() && !exchange.is_hollow(), "{name}");
    }
}

#[test]
fn a_body_is_read_in_pieces_to_its_end() {
    let pieces = "(local.set $n (call $read_body (i32.const 0) (i32.const 500) (i32.const 4)))
         (if (i64.ne (local.get $n) (i64.const 4)) (then unreachable))
         (local.set $n (call $read_body (i32.const 0) (i32.const 504) (i32.const 4)))
         (if (i64.ne (local.get $n) (i64.const 0x100000002)) (then unreachable))
         (local.set $n (call $read_body (i32.const 0) (i32.const 506) (i32.const 4)))
         (if (i64.ne (local.get $n) (i64.const 0x100000000)) (then unreachable))
         (call $write_body (i32.const 1) (i32.const 500) (i32.const 6)) (i64.const 0)";
    let plugin = plugin(module(pieces, PASSES));
    let mut exchange = ExchangeBuilder::get("/").body("abcdef").build();
    let (status, reason, body, _) = reply(plugin.on_request(&mut exchange));
    assert_eq!((status, reason, &*body), (200, None, &b"abcdef"[..]));
}

#[test]
fn what_is_handed_on_comes_with_the_response() {
    // The context is 7; the answer to 7 and no error is to remove a header.
    let response = r#"(func (export "handle_response") (param i32 i32)
        (if (i32.and (i32.eq (local.get 0) (i32.const 7)) (i32.eqz (local.get 1)))
            (then (call $remove_header (i32.const 1) (i32.const 0) (i32.const 6)))
            (else (call $set_status_code (i32.const 599)))))"#;
    let plugin = plugin(module("(i64.const 0x700000001)", response));
    let mut exchange = ExchangeBuilder::get("/").response(200, &[("x-name", "1")], "").build();
    continues(plugin.on_request(&mut exchange));
    continues(plugin.on_response(&mut exchange));
    assert!(exchange.response().unwrap().headers().is_empty());
    let decider = |by: &str| portcullis_plugin::Decider { by: by.into(), hook: None, reason: None };
    for (by, status) in [(UPSTREAM, 599), ("core.http", 200)] {
        let mut exchange = ExchangeBuilder::get("/").response(200, &[], "").build();
        exchange.core().decider = Some(Box::new(decider(by)));
        continues(plugin.on_request(&mut exchange));
        continues(plugin.on_response(&mut exchange));
        assert_eq!(exchange.response().unwrap().status(), status, "{by}");
    }
}

#[test]
fn an_answer_has_as_many_headers_as_a_message_may_have() {
    let code = "(loop $again (call $add_header_value (i32.const 1) (i32.const 0) (i32.const 6) (i32.const 16) (i32.const 5)) (br $again)) (i64.const 1)";
    let error = plugin(module(code, PASSES)).on_request(&mut exchange()).unwrap_err();
    assert!(error.message().contains("more than 256 headers of a response"), "{error}");
}

#[test]
fn trailers_are_bounded() {
    let code = "(drop (call $enable_features (i32.const 4)))
        (loop $again (call $add_header_value (i32.const 2) (i32.const 0) (i32.const 6) (i32.const 16) (i32.const 5)) (br $again)) (i64.const 1)";
    let plugin = plugin(module(code, PASSES));
    let mut exchange = ExchangeBuilder::get("/").body("x").build();
    let held = exchange.core().request_body.take();
    continues(plugin.on_request(&mut exchange));
    exchange.core().request_body = held;
    let error = plugin.call(HookName::OnRequestBody, &mut exchange).unwrap_err();
    assert!(error.message().contains("more than 64 trailers"), "{error}");
    assert_eq!(exchange.request_trailers().unwrap().len(), 64);
    // Where there is no body, nothing can follow it.
    let error = plugin.on_request(&mut ExchangeBuilder::get("/").build()).unwrap_err();
    assert!(error.message().contains("on_request_body only"), "{error}");
}

#[test]
fn a_module_that_can_not_run_is_a_located_error() {
    let handler = |more: &str| {
        let request = r#"(func (export "handle_request") (result i64) (i64.const 1))"#;
        wat::parse_str(format!("(module {more} {request} {PASSES})")).unwrap()
    };
    let memory = r#"(memory (export "memory") 1)"#;
    for (module, message) in [
        (handler(""), "it exports no `memory`"),
        (
            wat::parse_str(
                r#"(module (import "http_handler" "log_enabled" (func (param i32) (result i32))))"#,
            )
            .unwrap(),
            "it exports no `handle_request`",
        ),
        (
            wat::parse_str(format!(
                r#"(module {memory} (func (export "handle_request") (result i32) (i32.const 1)) {PASSES})"#
            ))
            .unwrap(),
            "its export `handle_request` is another function",
        ),
        (handler(r#"(import "http_handler" "log" (func (param i64)))"#), "http_handler::log"),
        (
            handler(&format!("{memory} (func $start unreachable) (start $start)")),
            "the module's start trapped",
        ),
        (
            handler(&format!(r#"{memory} (func (export "_start") (loop $again (br $again)))"#)),
            "used up its 1s of CPU",
        ),
    ] {
        let mut tester = PluginTester::new().file("m.wasm", module);
        let error = build(&mut tester, json!({})).err().unwrap();
        assert!(error.path == "file" && error.message.contains(message), "{error}");
    }
    let mut tester = PluginTester::new().file("m.wasm", handler(r#"(memory (export "memory") 300)"#));
    assert_eq!(build(&mut tester, json!({})).err().unwrap().path, "memory");
}

#[test]
fn a_program_may_end_with_its_main_and_unknown_imports_are_remarked_on() {
    let program = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "fd_prestat_get" (func (param i32 i32) (result i32)))
        (import "env" "from_the_future" (func $future))
        (memory (export "memory") 1)
        (func (export "_start") (call $exit (i32.const 0)))
        (func (export "handle_request") (result i64) (call $future) (i64.const 1))
        (func (export "handle_response") (param i32 i32)))"#;
    let mut tester = PluginTester::new().file("m.wasm", wat::parse_str(program).unwrap());
    let plugin = build(&mut tester, json!({})).unwrap();
    assert!(tester.warnings()[0].message.ends_with("`env.from_the_future`"), "{:?}", tester.warnings());
    let error = plugin.on_request(&mut exchange()).unwrap_err();
    assert!(error.message().contains("there is no `env.from_the_future`"), "{error}");
    let program = program.replace("(call $exit (i32.const 0))", "(call $exit (i32.const 1))");
    let mut tester = PluginTester::new().file("m.wasm", wat::parse_str(program).unwrap());
    assert!(build(&mut tester, json!({})).err().unwrap().message.contains("it exits with code 1"));
}

#[test]
fn without_room_for_an_instance_an_exchange_is_refused() {
    let plugin = plugin(module(NEXT, PASSES));
    let waiting: Vec<_> = (0..1300)
        .map_while(|_| {
            let mut exchange = exchange();
            matches!(plugin.on_request(&mut exchange), Ok(Decision::Continue)).then_some(exchange)
        })
        .collect();
    assert_eq!(waiting.len(), 1200);
    let Ok(Decision::Respond(refusal)) = plugin.on_request(&mut exchange()) else { panic!("there is room") };
    assert_eq!((refusal.status.as_u16(), refusal.reason.as_deref()), (503, Some("wasm.pool_exhausted")));
    drop(waiting);
    continues(plugin.on_request(&mut exchange()));
}
