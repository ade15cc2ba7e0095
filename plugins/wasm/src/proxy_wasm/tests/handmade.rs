//! What no SDK does: old names, lies, imports that nobody knows, ends in every callback.

use super::*;
use std::time::Duration;

use crate::proxy_wasm::abi::Status;
use crate::proxy_wasm::host::MAX_DEFERRED;

/// A module of some version with one memory, an allocator and `body`.
fn module(version: &str, imports: &str, body: &str) -> Vec<u8> {
    let wat = format!(
        r#"(module {imports}
            (memory (export "memory") 2)
            (global $next (mut i32) (i32.const 65536))
            (func (export "malloc") (param i32) (result i32)
                (global.get $next) (global.set $next (i32.add (global.get $next) (local.get 0))))
            (func (export "proxy_abi_version_{version}"))
            {body})"#
    );
    wat::parse_str(wat).unwrap()
}

/// Of 0.2.1, which imports `name` with so many parameters and calls it, when the request comes, with `arguments`; what
/// it answers becomes the status of a refusal, above 400.
fn calling(name: &str, arguments: &str) -> Vec<u8> {
    let parameters = "i32 ".repeat(arguments.matches("const").count());
    let imports = format!(
        r#"(import "env" "{name}" (func $tried (param {parameters}) (result i32)))
        (import "env" "proxy_send_local_response" (func $answer (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#
    );
    module(
        "0_2_1",
        &imports,
        &format!(
            r#"(data (i32.const 16) "\ff\ff\ff\7f\ff\ff\ff\7f\ff\ff\ff\7f")
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $answer (i32.add (i32.const 400) (call $tried {arguments}))
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
            (i32.const 1))"#
        ),
    )
}

fn constants(numbers: &[i64]) -> String {
    numbers.iter().map(|number| format!("(i32.const {number}) ")).collect()
}

/// What a host function answers.
#[track_caller]
fn status(name: &str, arguments: &[i64]) -> u32 {
    let plugin = build(PluginTester::new(), calling(name, &constants(arguments)), json!({})).unwrap();
    let mut exchange = ExchangeBuilder::get("/").response(200, &[], "").build();
    let verdict = plugin.on_request(&mut exchange);
    assert!(!exchange.is_hollow());
    u32::from(refusal(verdict).0) - 400
}

const INVALID: u32 = Status::InvalidMemoryAccess as u32;
const BAD: u32 = Status::BadArgument as u32;
const ABSENT: u32 = Status::NotFound as u32;

#[test]
fn pointers_beyond_the_memory_are_refused_by_every_host_function() {
    const FAR: i64 = 0x7fff_0000;
    for (name, arguments) in [
        ("proxy_log", &[2, FAR, 10][..]),
        ("proxy_log", &[2, 100, -1]),
        ("proxy_get_log_level", &[FAR]),
        ("proxy_get_current_time_nanoseconds", &[FAR]),
        ("proxy_get_configuration", &[FAR, 0]),
        ("proxy_get_buffer_bytes", &[7, 0, 10, FAR, 0]),
        ("proxy_get_buffer_status", &[7, FAR, 0]),
        ("proxy_set_buffer_bytes", &[0, 0, 0, FAR, 10]),
        ("proxy_get_header_map_size", &[0, FAR]),
        ("proxy_get_header_map_pairs", &[0, FAR, 0]),
        ("proxy_set_header_map_pairs", &[0, FAR, 10]),
        ("proxy_get_header_map_value", &[0, FAR, 10, 0, 0]),
        ("proxy_add_header_map_value", &[0, 0, 1, FAR, 10]),
        ("proxy_replace_header_map_value", &[0, FAR, 1, 0, 10]),
        ("proxy_remove_header_map_value", &[0, FAR, 1]),
        ("proxy_get_status", &[FAR, 0, 0]),
        ("proxy_http_call", &[0, 0, 0, 0, 0, 0, 0, 0, 0, FAR]),
        ("proxy_http_call", &[FAR, 9, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("proxy_grpc_call", &[0, 0, 0, 0, 0, 0, 0, 0, FAR, 9, 0, 0]),
        ("proxy_grpc_stream", &[FAR, 9, 0, 0, 0, 0, 0, 0, 0]),
        ("proxy_grpc_send", &[1, FAR, 9, 1]),
        ("proxy_get_shared_data", &[FAR, 9, 0, 0, 0]),
        ("proxy_set_shared_data", &[0, 9, FAR, 9, 0]),
        ("proxy_register_shared_queue", &[FAR, 9, 0]),
        ("proxy_resolve_shared_queue", &[0, 0, FAR, 9, 0]),
        ("proxy_enqueue_shared_queue", &[1, FAR, 9]),
        ("proxy_define_metric", &[0, FAR, 9, 0]),
        ("proxy_get_property", &[FAR, 9, 0, 0]),
        ("proxy_set_property", &[0, 9, FAR, 9]),
        ("proxy_call_foreign_function", &[FAR, 9, 0, 0, 0, 0]),
        ("proxy_send_local_response", &[200, 0, 0, FAR, 9, 0, 0, -1]),
    ] {
        assert_eq!(status(name, arguments), INVALID, "{name} {arguments:?}");
    }
}

#[test]
fn arguments_that_mean_nothing_are_refused() {
    for (name, arguments, expected) in [
        ("proxy_log", &[9, 0, 0][..], BAD),
        ("proxy_get_buffer_bytes", &[0, 0, 9, 0, 0], ABSENT),
        ("proxy_get_buffer_bytes", &[7, 1, 9, 0, 0], BAD),
        ("proxy_get_buffer_bytes", &[99, 0, 9, 0, 0], BAD),
        ("proxy_set_buffer_bytes", &[7, 0, 0, 0, 0], ABSENT),
        ("proxy_set_buffer_bytes", &[99, 0, 0, 0, 0], BAD),
        ("proxy_get_header_map_pairs", &[99, 0, 0], BAD),
        // What claims two thousand million pairs, and a name that begins with a zero.
        ("proxy_set_header_map_pairs", &[0, 16, 12], BAD),
        ("proxy_add_header_map_value", &[0, 500, 1, 0, 0], BAD),
        ("proxy_add_header_map_value", &[6, 500, 1, 0, 0], BAD),
        ("proxy_continue_stream", &[2], Status::Unimplemented as u32),
        ("proxy_continue_stream", &[9], BAD),
        ("proxy_close_stream", &[9], BAD),
        ("proxy_send_local_response", &[99, 0, 0, 0, 0, 0, 0, -1], BAD),
        ("proxy_grpc_call", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Status::ParseFailure as u32),
        ("proxy_grpc_send", &[1, 0, 0, 1], ABSENT),
        ("proxy_grpc_cancel", &[1], ABSENT),
        ("proxy_grpc_close", &[1], ABSENT),
        ("proxy_dequeue_shared_queue", &[77, 0, 0], ABSENT),
        ("proxy_define_metric", &[9, 0, 0, 0], BAD),
        ("proxy_get_metric", &[5, 0], ABSENT),
        ("proxy_done", &[], ABSENT),
        ("proxy_set_effective_context", &[99], BAD),
        ("proxy_set_effective_context", &[1], 0),
        ("proxy_call_foreign_function", &[0, 0, 0, 0, 0, 0], ABSENT),
    ] {
        if name == "proxy_set_effective_context" && arguments == [1] {
            // From then on the root context is meant, which answers no request.
            let plugin = build(PluginTester::new(), calling(name, &constants(arguments)), json!({})).unwrap();
            let Hook::Wait(_) = plugin.plugin().on_request(&mut ExchangeBuilder::get("/").build()) else {
                panic!("the root context has answered a request")
            };
            continue;
        }
        assert_eq!(status(name, arguments), expected, "{name} {arguments:?}");
    }
}

/// A callback for the request's headers that does `code`.
fn on_request(code: &str) -> String {
    format!(
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {code} (i32.const 0))"#
    )
}

#[test]
fn the_first_version_has_names_of_its_own() {
    let imports = r#"
        (import "env" "proxy_get_configuration" (func $configuration (param i32 i32) (result i32)))
        (import "env" "proxy_continue_request" (func $go_on))
        (import "env" "proxy_continue_response" (func $go_back (result i32)))
        (import "env" "proxy_clear_route_cache" (func $clear))
        (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))"#;
    let body = r#"
        (func (export "_start"))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $configuration (i32.const 100) (i32.const 104)))
            (drop (call $log (i32.const 2) (i32.load (i32.const 100)) (i32.load (i32.const 104))))
            (i32.eq (i32.load (i32.const 104)) (i32.const 5)))
        (func (export "proxy_on_request_headers") (param i32 i32) (result i32)
            (call $clear) (call $go_on) (i32.const 1))
        (func (export "proxy_on_response_headers") (param i32 i32) (result i32)
            (drop (call $go_back)) (i32.const 1))"#;
    let module = module("0_1_0", imports, body);
    let mut tester = PluginTester::new().file("m.wasm", module);
    let said = crate::tests::logged(|| {
        let plugin = build_in(&mut tester, json!({ "config": "hello" })).unwrap();
        let mut exchange = ExchangeBuilder::get("/").response(200, &[], "").build();
        continues(plugin.on_request(&mut exchange));
        continues(plugin.on_response(&mut exchange));
    });
    assert!(said.contains("hello") && tester.warnings().is_empty(), "{said}");
    assert!(build_in(&mut tester, json!({ "config": "other" })).is_ok());
    assert_eq!(build_in(&mut tester, json!({ "config": "longer" })).err().unwrap().path, "config");
}

#[test]
fn a_module_links_whatever_functions_it_imports() {
    let imports = r#"
        (import "env" "proxy_from_the_future" (func $future (param i64 f64) (result i32)))
        (import "env" "emscripten_notify_memory_growth" (func $grown (param i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_unstable" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (import "wasi_unstable" "sched_yield" (func $yield (result i32)))
        (import "env" "proxy_send_local_response" (func $answer (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#;
    let check =
        |call: &str, expected: u32| format!("(if (i32.ne {call} (i32.const {expected})) (then unreachable))");
    let code = [
        check("(call $future (i64.const 1) (f64.const 1))", 12),
        "(call $grown (i32.const 0))".into(),
        // A line of two parts at 200: "said " and "so".
        check("(call $write (i32.const 2) (i32.const 200) (i32.const 2) (i32.const 300))", 0),
        check("(i32.load (i32.const 300))", 7),
        check("(call $write (i32.const 1) (i32.const 200) (i32.const 65) (i32.const 300))", 28),
        check("(call $write (i32.const 3) (i32.const 200) (i32.const 2) (i32.const 300))", 8),
        check("(call $write (i32.const 1) (i32.const 131068) (i32.const 2) (i32.const 300))", 21),
        check("(call $open (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 0))", 52),
        check("(call $prestat (i32.const 3) (i32.const 0))", 8),
        check("(call $environ (i32.const 300) (i32.const 304))", 0),
        check("(i32.load (i32.const 300))", 0),
        check("(call $random (i32.const 300) (i32.const 16))", 0),
        check("(i32.eqz (i32.or (i32.load (i32.const 300)) (i32.load (i32.const 304))))", 0),
        check("(call $random (i32.const 0) (i32.const 70000))", 28),
        check("(call $clock (i32.const 0) (i64.const 0) (i32.const 300))", 0),
        check("(i64.eqz (i64.load (i32.const 300)))", 0),
        check("(call $clock (i32.const 7) (i64.const 0) (i32.const 300))", 58),
        check("(call $yield)", 0),
        // A time, and a descriptor that is not open.
        check("(call $poll (i32.const 400) (i32.const 500) (i32.const 2) (i32.const 300))", 0),
        check("(i32.load (i32.const 300))", 2),
        check("(i32.load (i32.const 500))", 7),
        check("(i32.load (i32.const 508))", 0),
        check("(i32.load (i32.const 540))", 8 + (1 << 16)),
        check("(call $poll (i32.const 400) (i32.const 500) (i32.const 0) (i32.const 300))", 28),
        check("(call $poll (i32.const 400) (i32.const 500) (i32.const 65) (i32.const 300))", 28),
        check("(call $poll (i32.const 131070) (i32.const 500) (i32.const 1) (i32.const 300))", 21),
    ]
    .concat();
    let data = r#"(data (i32.const 200) "\e0\00\00\00\05\00\00\00\e5\00\00\00\02\00\00\00") (data (i32.const 224) "said so")
        (data (i32.const 400) "\07") (data (i32.const 456) "\01")"#;
    let module = module("0_2_0", imports, &[data, &on_request(&code)].concat());
    let mut tester = PluginTester::new().file("m.wasm", module);
    let plugin = build_in(&mut tester, json!({})).unwrap();
    assert!(tester.warnings()[0].message.ends_with("`env.proxy_from_the_future`"), "{:?}", tester.warnings());
    let said = crate::tests::logged(|| continues(plugin.on_request(&mut ExchangeBuilder::get("/").build())));
    assert!(said.contains("ERROR") && said.contains("said so"), "{said}");
}

#[test]
fn a_module_that_can_not_run_is_a_located_error() {
    let error = |module: Vec<u8>| build(PluginTester::new(), module, json!({})).err().unwrap();
    for (module, message) in [
        (module("0_3_0", "", ""), "a module for proxy-wasm 0.3.0, which is not known here"),
        (module("0_2_1", r#"(import "env" "proxy_log" (func (param i32)))"#, ""), "proxy_log"),
        (module("0_2_1", r#"(import "env" "table" (table 1 funcref))"#, ""), "env::table"),
        (
            module("0_2_1", "", r#"(func (export "proxy_on_done") (result i64) (i64.const 1))"#),
            "its export `proxy_on_done` is another function",
        ),
        (
            module("0_2_1", "", "(func $start unreachable) (start $start)"),
            "the module's start trapped: wasm `unreachable`",
        ),
        (
            module("0_2_1", "", r#"(func (export "_initialize") (loop $again (br $again)))"#),
            "used up its 1s of CPU",
        ),
        (
            module(
                "0_2_1",
                "",
                r#"(func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 0))"#,
            ),
            "proxy_on_vm_start says no",
        ),
        (
            wat::parse_str(r#"(module (func (export "proxy_abi_version_0_2_1")))"#).unwrap(),
            "it exports no `memory`",
        ),
    ] {
        let error = error(module);
        assert!(error.path == "file" && error.message.contains(message), "{error}");
    }
}

#[test]
fn a_trap_in_each_callback_is_an_error_of_its_own() {
    let ending = |name: &str, parameters: usize, result: &str| {
        let parameters = "i32 ".repeat(parameters);
        let body = format!(r#"(func (export "{name}") (param {parameters}) {result} unreachable)"#);
        build(PluginTester::new(), module("0_2_1", "", &body), json!({})).unwrap()
    };
    let result = "(result i32)";
    let hooks = [
        HookName::OnRequest,
        HookName::OnRequestBody,
        HookName::OnResponse,
        HookName::OnResponseBody,
        HookName::OnLog,
    ];
    for (name, parameters, result, fails) in [
        ("proxy_on_request_headers", 3, result, HookName::OnRequest),
        ("proxy_on_request_body", 3, result, HookName::OnRequestBody),
        ("proxy_on_response_headers", 3, result, HookName::OnResponse),
        ("proxy_on_response_body", 3, result, HookName::OnResponseBody),
        ("proxy_on_done", 1, result, HookName::OnLog),
        ("proxy_on_log", 1, "", HookName::OnLog),
        ("proxy_on_delete", 1, "", HookName::OnLog),
    ] {
        let plugin = ending(name, parameters, result);
        let mut exchange = ExchangeBuilder::get("/").body("x").response(200, &[], "x").build();
        for hook in hooks {
            let verdict = plugin.call(hook, &mut exchange);
            assert!(!exchange.is_hollow());
            if hook == fails {
                let error = verdict.unwrap_err();
                assert!(error.kind() == ErrorKind::Trap && error.message().starts_with(name), "{error}");
            } else {
                continues(verdict);
            }
        }
    }
}

#[test]
fn a_guest_that_recurses_or_grows_without_end_is_stopped() {
    for (code, message) in [
        ("(drop (call $deep (i32.const 0)))", "recursed beyond its 512KiB of stack"),
        (
            "(loop $again (drop (memory.grow (i32.const 16))) (br $again))",
            "asked for more than 16MiB of memory",
        ),
        ("(loop $again (br $again))", "used up its 1ms of CPU"),
    ] {
        let deep = "(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (call $deep (local.get 0))))";
        let plugin =
            build(PluginTester::new(), module("0_2_1", "", &[deep, &on_request(code)].concat()), json!({}))
                .unwrap();
        let error = plugin.on_request(&mut ExchangeBuilder::get("/").build()).unwrap_err();
        assert!(error.kind() == ErrorKind::Budget && error.message().contains(message), "{error}");
    }
}

#[test]
fn an_allocator_that_fails_or_lies_gives_nothing_away() {
    let allocator = |code: &str| {
        let wat = format!(
            r#"(module
                (import "env" "proxy_get_property" (func $get (param i32 i32 i32 i32) (result i32)))
                (memory (export "memory") 1)
                (data (i32.const 0) "plugin_name")
                (func (export "proxy_on_memory_allocate") (param i32) (result i32) {code})
                (func (export "proxy_abi_version_0_2_1"))
                (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                    (if (i32.ne (call $get (i32.const 0) (i32.const 11) (i32.const 100) (i32.const 104)) (i32.const 6))
                        (then unreachable))
                    (i32.const 0)))"#
        );
        let plugin = build(PluginTester::new(), wat::parse_str(wat).unwrap(), json!({})).unwrap();
        plugin.on_request(&mut ExchangeBuilder::get("/").build())
    };
    continues(allocator("(i32.const 0)"));
    continues(allocator("(i32.const -4)"));
    assert_eq!(allocator("unreachable").unwrap_err().kind(), ErrorKind::Trap);
    assert_eq!(allocator("(loop $again (br $again)) (i32.const 0)").unwrap_err().kind(), ErrorKind::Budget);
}

#[test]
fn a_vm_that_serves_nothing_rests_before_it_is_made_anew() {
    let plugin =
        build(PluginTester::new(), module("0_2_1", "", &on_request("unreachable")), json!({})).unwrap();
    let at_once = |plugin: &TestedPlugin| {
        matches!(plugin.plugin().on_request(&mut ExchangeBuilder::get("/").build()), Hook::Ready(_))
    };
    assert!(at_once(&plugin));
    assert!(!at_once(&plugin));
    assert_eq!(
        plugin.on_request(&mut ExchangeBuilder::get("/").build()).unwrap_err().kind(),
        ErrorKind::Trap
    );
    // One that has served is replaced at once.
    let code = r#"(if (i32.eq (local.get 1) (i32.const 5)) (then unreachable))"#;
    let plugin = build(PluginTester::new(), module("0_2_1", "", &on_request(code)), json!({})).unwrap();
    continues(plugin.on_request(&mut ExchangeBuilder::get("/").build()));
    assert!(plugin.on_request(&mut ExchangeBuilder::get("/").header("x-trap", "1").build()).is_err());
    assert!(at_once(&plugin));
}

#[test]
fn what_a_context_may_keep_and_a_vm_may_call_is_bounded() {
    let imports = r#"
        (import "env" "proxy_set_property" (func $set (param i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_http_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_send_local_response" (func $answer (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#;
    // How often it goes well, as the status above 400; calls by the hundred.
    let counting = |call: &str, by: u32| {
        let code = format!(
            r#"(local $n i32)
            (block $full (loop $again
                (i32.store (i32.const 400) (local.get $n))
                (br_if $full {call})
                (local.set $n (i32.add (local.get $n) (i32.const 1)))
                (br $again)))
            (drop (call $answer (i32.add (i32.const 400) (i32.div_u (local.get $n) (i32.const {by})))
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))"#
        );
        let pairs = abi::write_pairs(
            [(&b":method"[..], &b"GET"[..]), (b":path", b"/"), (b":authority", b"a")].into_iter(),
        );
        let escaped: String = pairs.iter().map(|byte| format!("\\{byte:02x}")).collect();
        let data = format!(r#"(data (i32.const 0) "api") (data (i32.const 1000) "{escaped}")"#);
        let call_module = module("0_2_1", imports, &[data, on_request(&code)].concat());
        let tester = PluginTester::new().upstream("u", |_| Err(portcullis_plugin::OutboundError::Failed));
        let options = json!({ "cpu": "500ms", "proxy_wasm": { "upstreams": { "api": "u" } } });
        let plugin = build(tester, call_module, options).unwrap();
        let size = pairs.len();
        (refusal(plugin.on_request(&mut ExchangeBuilder::get("/").build())).0 - 400, size)
    };
    assert_eq!(counting("(call $set (i32.const 400) (i32.const 4) (i32.const 0) (i32.const 1))", 1).0, 64);
    assert_eq!(counting("(call $set (i32.const 400) (i32.const 4) (i32.const 0) (i32.const 20000))", 1).0, 3);
    let size = counting("(i32.const 1)", 1).1;
    let call = format!(
        "(call $call (i32.const 0) (i32.const 3) (i32.const 1000) (i32.const {size}) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 100) (i32.const 500))"
    );
    assert_eq!(counting(&call, 100).0, 10);
}

#[test]
fn ends_that_are_put_off_are_bounded() {
    let imports = r#"
        (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_increment_metric" (func $add (param i32 i64) (result i32)))"#;
    let body = r#"(data (i32.const 0) "deleted")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $define (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 100))))
        (func (export "proxy_on_done") (param i32) (result i32) (i32.const 0))
        (func (export "proxy_on_delete") (param i32)
            (drop (call $add (i32.load (i32.const 100)) (i64.const 1))))"#;
    let mut tester = PluginTester::new().file("m.wasm", module("0_2_1", imports, body));
    let plugin = build_in(&mut tester, json!({})).unwrap();
    let deleted_of = |exchanges: usize| {
        for _ in 0..exchanges {
            let mut exchange = ExchangeBuilder::get("/").ended(200).build();
            continues(plugin.on_request(&mut exchange));
            continues(plugin.call(HookName::OnLog, &mut exchange));
        }
        tester.counted("guest", &["deleted"]).unwrap()
    };
    assert_eq!((deleted_of(MAX_DEFERRED), deleted_of(2)), (0, 2));
}

#[test]
fn ticks_are_not_nearer_than_their_bound() {
    let imports = r#"
        (import "env" "proxy_set_tick_period_milliseconds" (func $tick (param i32) (result i32)))
        (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))"#;
    let body = r#"(data (i32.const 0) "tick")
        (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.eqz (call $tick (i32.const 1))))
        (func (export "proxy_on_tick") (param i32) (drop (call $log (i32.const 2) (i32.const 0) (i32.const 4))))"#;
    let mut tester = PluginTester::new().file("m.wasm", module("0_2_1", imports, body));
    let plugin = build_in(&mut tester, json!({})).unwrap();
    tester.set_time(Duration::from_secs(1));
    continues(plugin.on_request(&mut ExchangeBuilder::get("/").build()));
    let mut ticks_at = |millis: u64| {
        tester.set_time(Duration::from_millis(millis));
        crate::tests::logged(|| assert!(tester.run_tasks() > 0)).matches("tick").count()
    };
    assert_eq!([1000, 1005, 1010].map(&mut ticks_at), [0, 0, 1]);
}

#[test]
fn trailers_of_a_guest_are_bounded() {
    let imports =
        r#"(import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))"#;
    let body = r#"(data (i32.const 0) "x")
        (func (export "proxy_on_request_trailers") (param i32 i32) (result i32)
            (loop $again (br_if $again (i32.eqz
                (call $add (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 1)))))
            (i32.const 0))"#;
    let plugin = build(PluginTester::new(), module("0_2_1", imports, body), json!({})).unwrap();
    let mut exchange = ExchangeBuilder::get("/").body("x").build();
    continues(plugin.on_request(&mut exchange));
    let mut trailers = http::HeaderMap::new();
    plugin.plugin().request_body_filter(&exchange).unwrap().trailers(&mut trailers).unwrap();
    assert_eq!(trailers.len(), 64);
}

#[test]
fn the_context_of_an_exchange_that_ends_without_a_word_is_logged_and_deleted() {
    let imports = r#"
        (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_increment_metric" (func $add (param i32 i64) (result i32)))"#;
    let body = r#"(data (i32.const 0) "deleted")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (i32.eqz (call $define (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 100))))
        (func (export "proxy_on_log") (param i32)
            (drop (call $add (i32.load (i32.const 100)) (i64.const 100))))
        (func (export "proxy_on_delete") (param i32)
            (drop (call $add (i32.load (i32.const 100)) (i64.const 1))))"#;
    let mut tester = PluginTester::new().file("m.wasm", module("0_2_1", imports, body));
    let plugin = build_in(&mut tester, json!({})).unwrap();
    for _ in 0..3 {
        continues(plugin.on_request(&mut ExchangeBuilder::get("/").build()));
    }
    assert_eq!(tester.counted("guest", &["deleted"]), Some(202));
    let mut exchange = ExchangeBuilder::get("/").ended(200).build();
    continues(plugin.on_request(&mut exchange));
    continues(plugin.call(HookName::OnLog, &mut exchange));
    drop(exchange);
    continues(plugin.on_request(&mut ExchangeBuilder::get("/").build()));
    assert_eq!(tester.counted("guest", &["deleted"]), Some(404));
}

#[test]
fn what_listens_to_a_queue_ends_with_its_vm() {
    let imports =
        r#"(import "env" "proxy_register_shared_queue" (func $register (param i32 i32 i32) (result i32)))"#;
    let body = r#"(data (i32.const 0) "work")
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
            (drop (call $register (i32.const 0) (i32.const 4) (i32.const 100)))
            (i32.eqz (call $register (i32.const 0) (i32.const 4) (i32.const 100))))"#;
    let trap = on_request("(if (i32.eq (local.get 1) (i32.const 5)) (then unreachable))");
    let mut tester = PluginTester::new().file("m.wasm", module("0_2_1", imports, &[body, &trap].concat()));
    let plugin = build_in(&mut tester, json!({})).unwrap();
    continues(plugin.on_request(&mut ExchangeBuilder::get("/").build()));
    assert_eq!(tester.run_tasks(), 1);
    assert!(plugin.on_request(&mut ExchangeBuilder::get("/").header("x-trap", "1").build()).is_err());
    assert_eq!(tester.run_tasks(), 0);
    continues(plugin.on_request(&mut ExchangeBuilder::get("/").build()));
    assert_eq!(tester.run_tasks(), 1);
    drop(plugin);
    assert_eq!(tester.run_tasks(), 0);
}

#[test]
fn a_vm_serves_all_exchanges_of_its_worker() {
    let error = build(PluginTester::new(), module("0_2_1", "", ""), json!({ "isolation": { "reuse": 3 } }));
    assert_eq!(error.err().unwrap().path, "isolation");
}
