//! What an instance begins with: what the module says or what `configure` left, and never what an
//! exchange before it did.

use super::handmade::importing;
use super::*;

const HOST: &str = "portcullis:policy/host@0.1.0";

/// Refuses, from within a hook.
const TELL: &str = "(return (i32.const 1280))";

/// What [`TELL`] answers: 403 `found`.
const FOUND: &str = r#"(data (i32.const 1284) "\01\00\00\00\93\01\00\00\00\09\00\00\05\00\00\00") (data (i32.const 2304) "found")"#;

/// Tells if the state is not that of the module, then changes all of it.
fn mark(tables: bool) -> String {
    let tell_if = |found: &str| format!("(if {found} (then {TELL}))");
    let mut code = [
        "(global.get $calls)",
        "(i32.ne (i32.load8_u (i32.const 3000)) (i32.const 115))",
        "(i32.load (i32.const 3100))",
        "(i32.load (i32.const 60000))",
        "(i32.ne (memory.size) (i32.const 1))",
        "(i32.eq (memory.grow (i32.const 1)) (i32.const -1))",
        "(i32.load (i32.const 100000))",
    ]
    .map(tell_if)
    .concat();
    code += "(global.set $calls (i32.const 1))";
    code += &[3000, 3100, 60000, 100_000]
        .map(|at| format!("(i32.store (i32.const {at}) (i32.const 42))"))
        .concat();
    if tables {
        code += &tell_if("(i32.eqz (ref.is_null (table.get $slots (i32.const 3))))");
        code += &tell_if("(i32.ne (table.size $slots) (i32.const 4))");
        code += "(table.set $slots (i32.const 3) (ref.func $nothing))
            (drop (table.grow $slots (ref.func $nothing) (i32.const 1)))";
    }
    code
}

fn configure(code: &str) -> String {
    format!(
        r#"(func (export "portcullis:policy/configuration@0.1.0#configure") (result i32) {code} (i32.const 1024))"#
    )
}

/// A guest whose every instance takes the same place of the pool.
fn one_place(module: Vec<u8>) -> TestedPlugin {
    let mut tester = PluginTester::new().file("guest.wasm", module);
    scarce_engines(&mut tester, 1, 0);
    tester.build::<Module>(table(json!({ "config": { "secret": "s" } }))).unwrap()
}

fn tells(guest: &TestedPlugin) -> [bool; 4] {
    [(); 4].map(|()| matches!(guest.on_request(&mut exchange()), Ok(Decision::Respond(_))))
}

#[test]
fn nothing_that_an_exchange_leaves_is_found_by_the_next() {
    let seed = r#"(data (i32.const 3000) "seed")"#;
    let tables = "(table $slots 4 100 funcref) (elem declare func $nothing) (func $nothing)";
    for end in ["", TRAP] {
        let hook = |tables| hook("on-request", &[&mark(tables), end].concat());
        let plain = [FOUND, seed, tables, &hook(true)].concat();
        assert_eq!(tells(&one_place(module(&["on-request"], &plain))), [false; 4]);
        let configured = [FOUND, seed, &hook(false), &configure("")].concat();
        assert_eq!(tells(&one_place(module(&["configuration", "on-request"], &configured))), [false; 4]);
    }
}

#[test]
fn a_reused_instance_is_found_as_the_exchange_before_left_it() {
    let body = [FOUND, r#"(data (i32.const 3000) "seed")"#, &hook("on-request", &mark(false))].concat();
    let guest = build(module(&["on-request"], &body), json!({ "isolation": { "reuse": 9 } })).unwrap();
    assert_eq!(tells(&guest), [false, true, true, true]);
}

/// A guest that keeps where its configuration lies, and tells if it begins knowing that.
fn keeper(imports: &str, more: &str) -> Vec<u8> {
    let imports = format!(r#"(import "{HOST}" "config" (func $config (param i32))) {imports}"#);
    let keep = "(call $config (i32.const 2000)) (drop (memory.grow (i32.const 1)))
        (i32.store (i32.const 70000) (i32.const 7)) (global.set $calls (i32.const 1))";
    let knows = "(i32.and (i32.eq (global.get $calls) (i32.const 1))
        (i32.eq (i32.load8_u (i32.load (i32.const 2000))) (i32.const 123)))";
    let tell = format!(
        "(if {knows} (then (if (i32.eq (i32.load (i32.const 70000)) (i32.const 7))
            (then (global.set $calls (i32.const 2)) (i32.store (i32.const 70000) (i32.const 8)) {TELL}))))"
    );
    let body = [FOUND, &configure(&[keep, more].concat()), &hook("on-request", &tell)].concat();
    importing(&imports, &["configuration", "on-request"], &body)
}

#[test]
fn a_fresh_instance_begins_where_configure_ends() {
    assert_eq!(tells(&one_place(keeper("", ""))), [true; 4]);
}

#[test]
fn what_would_differ_or_lies_elsewhere_is_done_by_each_instance() {
    let now = r#"(import "portcullis:policy/clock@0.1.0" "now" (func $now (param i32)))"#;
    let fixed_time = keeper(now, "(call $now (i32.const 3000))");
    let table = keeper("(table 1 funcref)", "(table.set (i32.const 0) (ref.null func))");
    assert_eq!(tells(&one_place(fixed_time)), [false; 4]);
    assert_eq!(tells(&one_place(table)), [false; 4]);
}

#[test]
fn what_configure_takes_counts_towards_the_memory_of_an_instance() {
    let grow = |more: &str| build(keeper("", ""), json!({ "memory": more }));
    assert!(grow("128KiB").is_ok());
    assert_eq!(grow("64KiB").err().unwrap().path, "memory");
    let grows = hook("on-request", "(drop (memory.grow (i32.const 1)))");
    let body = [&configure("(drop (memory.grow (i32.const 1)))"), &*grows].concat();
    let guest =
        build(module(&["configuration", "on-request"], &body), json!({ "memory": "128KiB" })).unwrap();
    assert_eq!(guest.on_request(&mut exchange()).unwrap_err().kind(), ErrorKind::Budget);
}

#[test]
fn a_slow_start_is_remarked_unless_it_is_done_once() {
    let slow = format!("(func $slow {LINGER})");
    let start = [&*slow, "(start $slow)", &hook("on-request", "")].concat();
    let configured = [&*slow, &configure("(call $slow)"), &hook("on-request", "")].concat();
    let remarks = |exports: &[&str], body: &str, isolation: Value| {
        let mut tester = PluginTester::new().file("guest.wasm", module(exports, body));
        tester.build::<Module>(table(json!({ "isolation": isolation }))).unwrap();
        tester.warnings().iter().filter(|warning| warning.path == "isolation").count()
    };
    assert_eq!(remarks(&["on-request"], &start, json!("fresh")), 1);
    assert_eq!(remarks(&["on-request"], &start, json!({ "reuse": 100 })), 0);
    // Every instance has a start function run, but only the first one `configure`.
    assert_eq!(remarks(&["configuration", "on-request"], &configured, json!("fresh")), 0);
}

#[test]
fn a_table_has_a_bound() {
    let with = |elements: usize| {
        let body = format!("(table {elements} funcref) {}", &*hook("on-request", ""));
        build(module(&["on-request"], &body), json!({}))?
            .on_request(&mut exchange())
            .map_err(|_| BuildError::at("", "runs"))
    };
    assert!(with(crate::engine::MAX_TABLE_ELEMENTS).is_ok());
    assert!(with(crate::engine::MAX_TABLE_ELEMENTS + 1).is_err());
}

#[test]
fn configure_is_not_waited_for_without_end() {
    let with = |code: &str| {
        let body = [&configure(code), &*hook("on-request", "")].concat();
        build(module(&["configuration", "on-request"], &body), json!({}))
    };
    assert!(with("").is_ok() && with(SPIN).is_err());
}
