//! What scripts can't do: each attempt ends within its budget, and the exchange comes back whole.

use std::time::{Duration, Instant};

use portcullis_plugin::{ErrorKind, PluginError, PluginTester};
use serde_json::{Value, json};

use super::{build, build_from, build_with, complete};
use crate::limits::{EXPRESSION_DEPTH, MAX_DEPTH, MAX_ELEMENTS};

/// What a call may take here at most: this is unoptimised code on a busy machine, and far below what
/// the scripts would take without limits.
const PATIENCE: Duration = Duration::from_secs(5);

fn failure_with(script: &str, limits: Value) -> PluginError {
    let plugin = build_with(script, json!({ "limits": limits })).unwrap();
    let mut exchange = complete();
    let start = Instant::now();
    let Err(error) = plugin.on_request(&mut exchange) else { panic!("{script}: no error") };
    assert!(start.elapsed() < PATIENCE, "{script}: {:?}", start.elapsed());
    assert!(!exchange.is_hollow() && exchange.request().path() == "/users/42", "{script}");
    error
}

/// Fails with operations and time to spare, so that the limit meant is the one that bites.
fn failure(body: &str) -> PluginError {
    failure_with(&format!("fn on_request(ctx) {{ {body} }}"), json!({ "operations": 50_000, "time": "4s" }))
}

fn assert_budget(error: &PluginError, part: &str) {
    assert_eq!(error.kind(), ErrorKind::Budget, "{error}");
    assert!(error.message().contains(part), "{error}");
}

#[test]
fn endless_loops_end_by_operations() {
    for body in [
        "loop { }",
        "while true { let x = 1; }",
        "for x in 0..1_000_000_000 { let y = x; }",
        "loop { ctx.request.headers[\"x-a\"]; }",
        "loop { try { throw 1; } catch { } }",
        "try { loop { } } catch { loop { } }",
        "loop { [1, 2, 3].map(|x| x + 1); }",
        "loop { json_parse(`[1]`); }",
    ] {
        assert_budget(&failure(body), "limits.operations");
    }
}

#[test]
fn the_clock_ends_what_is_slow_for_its_operations() {
    let script = r#"fn on_request(ctx) { let s = "x"; s.pad(500_000, "é"); loop { s.to_upper(); } }"#;
    let error = failure_with(script, json!({ "time": "2ms" }));
    assert_budget(&error, "limits.time");
}

#[test]
fn memory_has_a_bound() {
    for (body, part) in [
        (r#"let s = "x"; loop { s += s; }"#, "limits.string"),
        (r#"let s = "x"; loop { s = s + s; }"#, "limits.string"),
        (r#"let s = "x"; loop { s = `${s}${s}`; }"#, "limits.string"),
        (r#"let s = "x"; s.pad(1_000_000_000, "x");"#, "limits.string"),
        (r#"let s = "x"; s.pad(900_000, "x"); s.replace("x", s);"#, "limits.operations"),
        (r#"let s = "x"; s.pad(900_000, "x"); s.split("");"#, "limits.array"),
        ("let a = []; loop { a.push(1); }", "limits.array"),
        ("let a = [1]; loop { a += a; }", "limits.array"),
        ("let a = []; a.pad(1_000_000_000, 0);", "limits.array"),
        ("let a = []; loop { a = [a, a]; }", "limits.array"),
        (r##"let m = #{}; let i = 0; loop { m[`k${i}`] = i; i += 1; }"##, "limits."),
        (r##"let m = #{}; loop { m = #{ a: m, b: m }; }"##, "limits.map"),
        (r#"let s = "x"; s.pad(900_000, "x"); json_parse(s);"#, "limits.operations"),
        (r#"let s = "x"; s.pad(900_000, "x"); sha256_hex(s);"#, "limits.operations"),
        (r#"let s = "x"; s.pad(900_000, "x"); regex_is_match("y", s);"#, "limits.operations"),
    ] {
        assert_budget(&failure(body), part);
    }
}

#[test]
fn variables_have_a_bound() {
    let variables = |count: usize| (0..count).map(|at| format!("let x{at} = 1;")).collect::<String>();
    let within = build(&format!("fn on_request(ctx) {{ {} }}", variables(200)));
    assert!(within.on_request(&mut complete()).is_ok());
    assert_budget(&failure(&variables(300)), "too many variables");
}

#[test]
fn every_limit_bites_where_it_was_set() {
    for (limits, body, part) in [
        (json!({ "operations": 100, "time": "4s" }), "for i in 0..100 { let x = i; }", "100 operations"),
        (json!({ "depth": 2, "time": "4s" }), "f(f(1)); g(1);", "more than 2 deep"),
        (json!({ "string": "8B", "time": "4s" }), r#"let s = "12345678"; s += "9";"#, "limits.string"),
        (json!({ "array": 2, "time": "4s" }), "let a = [1]; a.push(2); a.push(3);", "limits.array"),
        (
            json!({ "map": 1, "time": "4s" }),
            "let m = #{ a: 1 }; m.b = 2; let n = m;  n.mixin(#{ c: 3 });",
            "limits.map",
        ),
        (json!({ "operations": 1_000_000_000, "time": "1ms" }), "loop { let x = 1; }", "longer than 1ms"),
    ] {
        let functions = "fn f(x) { x } fn g(x) { h(x) } fn h(x) { f(x) }";
        assert_budget(&failure_with(&format!("{functions} fn on_request(ctx) {{ {body} }}"), limits), part);
    }
}

#[test]
fn recursion_ends_at_its_depth_on_a_small_stack() {
    on_a_small_stack(|| {
        let limits = json!({ "depth": MAX_DEPTH, "time": "4s" });
        for functions in [
            "fn f(x) { f(x) }",
            "fn f(x) { g(x) } fn g(x) { f(x) }",
            "fn f(x) { [x].map(|y| f(y)) }",
            "fn f(x) { x.f() } ",
            "fn f(x) { `${f(x)}` }",
        ] {
            let script = format!("{functions} fn on_request(ctx) {{ f(1) }}");
            let error = failure_with(&script, limits.clone());
            assert!(matches!(error.kind(), ErrorKind::Budget | ErrorKind::Trap), "{error}");
        }
        let script = "fn f(x) { f(x) } fn on_request(ctx) { f(1) }";
        assert_budget(&failure_with(script, limits), "limits.depth");
    });
}

/// The deepest stack a script can reach: at every level of recursion expressions as deep as the parser
/// takes them.
#[test]
fn deep_expressions_and_recursion_together_fit_a_small_stack() {
    on_a_small_stack(|| {
        for (open, close) in [
            ("[", "]"),
            ("#{ a: ", "}"),
            ("1 + (", ")"),
            ("-(", ")"),
            ("id(", ")"),
            ("[1].contains(", ")"),
            ("if true { ", " } else { 1 }"),
            ("switch 1 { 1 => ", ", _ => 0 }"),
            ("{ let y = ", "; y }"),
            ("`${", "}`"),
            ("[1][", "]"),
            ("ctx.request.headers[", "]"),
            ("true && ", ""),
        ] {
            let script = |depth: usize| {
                let expression = format!("{}f(ctx){}", open.repeat(depth), close.repeat(depth));
                format!("fn id(x) {{ x }} fn f(ctx) {{ {expression} }} fn on_request(ctx) {{ f(ctx) }}")
            };
            let table = json!({ "limits": { "depth": MAX_DEPTH, "time": "4s" } });
            let deepest = (1..=EXPRESSION_DEPTH + 1)
                .rev()
                .find(|depth| build_with(&script(*depth), table.clone()).is_ok())
                .unwrap();
            assert!((5..=EXPRESSION_DEPTH).contains(&deepest), "{open}: {deepest}");
            assert_budget(&failure_with(&script(deepest), table["limits"].clone()), "limits.depth");
        }
    });
}

#[test]
fn expressions_without_end_are_refused_at_load() {
    on_a_small_stack(|| {
        for expression in [
            vec!["1"; 10_000].join(" + ctx.id + "),
            format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000)),
            format!("{}1", "-".repeat(10_000)),
            format!("{}1{}", "(".repeat(10_000), ")".repeat(10_000)),
            format!("{}1{}", "{".repeat(10_000), "}".repeat(10_000)),
            format!("ctx{}", ".a".repeat(10_000)),
            format!("ctx{}", "[0]".repeat(10_000)),
            format!("ctx{}", ".f()".repeat(10_000)),
            "if ctx { } else ".repeat(10_000) + "{ }",
            "!".repeat(10_000) + "true",
        ] {
            let error =
                build_with(&format!("fn on_request(ctx) {{ {expression} }}"), json!({})).err().unwrap();
            assert!(error.position.is_some(), "{error}");
        }
    });
}

#[test]
fn nested_values_are_made_used_and_destroyed_on_a_small_stack() {
    on_a_small_stack(|| {
        // An array in a map in an array: as deep as both limits together allow.
        let levels = 6;
        let grow = format!("a = {}a{};", "[#{ a: ".repeat(levels), "}]".repeat(levels));
        let times = MAX_ELEMENTS / levels - 1;
        let limits =
            json!({ "array": MAX_ELEMENTS, "map": MAX_ELEMENTS, "operations": 10_000_000, "time": "4s" });
        let run = |after: &str| {
            let script =
                format!("fn on_request(ctx) {{ let a = []; for i in 0..{times} {{ {grow} }} {after} }}");
            let plugin = build_with(&script, json!({ "limits": limits.clone() })).unwrap();
            plugin.on_request(&mut complete()).map(|_| ())
        };
        for after in [
            "",
            "let b = a; b = 1;",
            "let n = a.len();",
            "let b = [0]; b[0] = a; b = 1;",
            "let b = a; b.clear();",
        ] {
            run(after).unwrap_or_else(|error| panic!("{after} {error}"));
        }
        for after in [
            "a.to_string();",
            "a.to_debug();",
            "print(a);",
            "debug(a);",
            "`${a}`;",
            "a == a;",
            "a != a;",
            "[a].contains(a);",
            "[a].index_of(a);",
            "[a, a].dedup();",
            "json_stringify(a);",
            "a[0].to_json();",
            "ctx.facts[\"a\"] = a;",
            "respond(200, a);",
            "switch a { 1 => 2 }",
            "throw a;",
            "return a;",
            "try { throw a; } catch (e) { print(e); }",
        ] {
            // Some of them answer, some refuse; none overflows the stack.
            let _ = run(after);
        }
    });
}

#[test]
fn forbidden_things_are_refused_at_load() {
    for (script, part) in [
        (r#"fn on_request(ctx) { eval("1") }"#, "eval"),
        (r#"fn f(x) { x } fn on_request(ctx) { curry(f, 1) }"#, "curry"),
        (r#"import "../secrets" as s; fn on_request(ctx) { }"#, "own directory"),
        (r#"import "/etc/passwd" as s; fn on_request(ctx) { }"#, "own directory"),
        (r#"import "./../x" as s; fn on_request(ctx) { }"#, "own directory"),
        (r#"const P = "x"; import P as s; fn on_request(ctx) { }"#, "literally"),
    ] {
        let error = build_with(script, json!({})).err().unwrap();
        assert!(error.message.contains(part), "{error}");
        assert!(error.position.is_some());
    }
    let many = (0..40).map(|at| format!("import \"m{at}\" as m{at};")).collect::<String>();
    let tester = (0..40)
        .fold(PluginTester::new(), |tester, at| tester.file(&format!("policies/m{at}.rhai"), "fn f() { 1 }"));
    let error =
        build_from(tester.file("policies/x.rhai", many + "fn on_request(ctx) { }"), json!({})).err().unwrap();
    assert!(error.message.contains("imports"), "{error}");
}

#[test]
fn there_is_no_sleep_and_no_file() {
    for call in ["sleep(1)", "open_file(\"/etc/passwd\")", "timestamp()", "exit()"] {
        let error = build_with(&format!("fn on_request(ctx) {{ {call}; }}"), json!({})).err().unwrap();
        assert!(error.message.starts_with("there is no function"), "{error}");
    }
    // Nor does a name that is made while running get there.
    for name in ["sleep", "timestamp", "eval"] {
        assert_eq!(failure(&format!("Fn(`${{\"{name}\"}}`).call(1);")).kind(), ErrorKind::Trap);
    }
}

#[test]
fn handles_cannot_be_kept() {
    for keep in [r#"ctx.facts["kept"] = ctx;"#, r#"ctx.facts["kept"] = [ctx.request];"#] {
        let error = failure(keep);
        assert_eq!(error.kind(), ErrorKind::Trap);
        assert!(error.message().contains("JSON"), "{error}");
    }
    // Nor does anything else outlive a call: a variable of the next one has no value yet.
    let plugin = build(
        r#"fn on_request(ctx) { if ctx.facts["n"] == () { let kept = 1; } if is_def_var("kept") { throw "kept"; } }"#,
    );
    let mut exchange = complete();
    plugin.on_request(&mut exchange).unwrap();
    plugin.on_request(&mut exchange).unwrap();
}

#[test]
fn a_panic_of_the_host_is_an_error_like_others() {
    let plugin = build("fn on_request(ctx) { ctx.request.headers[\"x-b\"] = \"1\"; panic_in_the_host(); }");
    let mut exchange = complete();
    for _ in 0..2 {
        let error = plugin.on_request(&mut exchange).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Panic);
        assert_eq!(exchange.request().headers()["x-b"], "1");
    }
}

#[test]
fn logs_are_bounded_and_constants_stay_constant() {
    build("fn on_request(ctx) { for i in 0..100 { log(`line ${i}`); print(i); debug(i); } }")
        .on_request(&mut complete())
        .unwrap();
    let plugin = build_with(
        "const LIST = [1]; fn on_request(ctx) { let list = LIST; list.push(2); ctx.facts[\"n\"] = LIST.len(); }",
        json!({}),
    )
    .unwrap();
    for _ in 0..2 {
        let mut exchange = complete();
        plugin.on_request(&mut exchange).unwrap();
        assert_eq!(exchange.fact("n"), Some(&json!(1)));
    }
}

/// Runs on a stack as small as that of any thread that calls scripts; an overflow would abort the tests.
fn on_a_small_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(test).unwrap();
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
