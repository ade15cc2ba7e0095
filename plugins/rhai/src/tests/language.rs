//! What scripts can do.

use std::sync::{Arc, Mutex};

use http::StatusCode;
use portcullis_plugin::{
    Admission, BodyWish, ChangeKind, Content, Decision, ErrorKind, Exchange, ExchangeBuilder, HookName,
    PluginTester,
};
use serde_json::json;

use super::{build, build_from, build_granted, build_with, complete};
use crate::host::{self, Kind};

fn run(script: &str, hook: HookName, exchange: &mut Exchange) -> Decision {
    build(script).call(hook, exchange).unwrap()
}

#[test]
fn a_script_is_called_for_the_hooks_it_has_and_no_others() {
    let script = "fn on_request(ctx) { } fn on_response_body(ctx) { } fn helper(a, b) { a + b }";
    let needs = build_with(script, json!({ "body_limit": "2KiB" })).unwrap().plugin().needs();
    let wanted: Vec<_> = HookName::ALL.into_iter().filter(|hook| needs.wants(*hook)).collect();
    assert_eq!(wanted, [HookName::OnRequest, HookName::OnResponseBody]);
    assert_eq!((needs.request_body, needs.response_body), (BodyWish::None, BodyWish::Whole { limit: 2048 }));
}

#[test]
fn requests_are_read_and_changed_through_the_journal() {
    let mut exchange = complete();
    let decision = run(
        r#"fn on_request(ctx) {
            let request = ctx.request;
            if request.headers["X-A"] != "1" || request.query("q") != "a b" { throw "reading"; }
            request.headers["x-b"] = `${request.method} ${request.host} ${ctx.client.address}`;
            request.headers["x-n"] = 7;
            request.headers["accept"] = ();
            request.headers.append("via", "1.1 gateway");
            request.method = "POST";
            request.path = "/v2" + request.path;
            request.query_string = ();
            ctx.facts["seen"] = #{ count: 1 };
        }"#,
        HookName::OnRequest,
        &mut exchange,
    );
    assert!(matches!(decision, Decision::Continue));
    let request = exchange.request();
    assert_eq!((request.method().as_str(), request.target().as_str()), ("POST", "/v2/users/42"));
    assert_eq!(request.headers()["x-b"], "GET gateway.test 192.0.2.1");
    assert!(request.headers()["x-n"] == "7" && !request.headers().contains_key("accept"));
    assert_eq!(exchange.fact("seen"), Some(&json!({ "count": 1 })));
    assert!(exchange.core().changes.iter().any(|change| change.kind == ChangeKind::Path));
}

#[test]
fn bodies_are_read_and_replaced() {
    let mut exchange = complete();
    run(
        "fn on_request_body(ctx) { let body = ctx.request.json(); body.items.push(3); ctx.request.body = body; }",
        HookName::OnRequestBody,
        &mut exchange,
    );
    assert_eq!(exchange.request_body().unwrap(), r#"{"items":[1,2,3]}"#);
    run(
        r#"fn on_response_body(ctx) { ctx.response.body = "[" + ctx.response.body + "]"; ctx.response.status = 201; }"#,
        HookName::OnResponseBody,
        &mut exchange,
    );
    assert_eq!(exchange.response_body().unwrap(), r#"[{"secret":1}]"#);
    assert_eq!(exchange.response().unwrap().status(), StatusCode::CREATED);
}

#[test]
fn attempts_are_changed_without_touching_the_request() {
    let mut exchange = complete();
    let script = r#"fn on_upstream(ctx) { ctx.outgoing.headers["x-to"] = ctx.attempt.endpoint; }"#;
    run(script, HookName::OnUpstream, &mut exchange);
    assert_eq!(exchange.outgoing().unwrap().headers()["x-to"], "10.0.0.1:80");
    assert!(!exchange.request().headers().contains_key("x-to"));
}

#[test]
fn verdicts_become_replies() {
    let verdict = |result: &str| {
        run(&format!("fn on_request(ctx) {{ {result} }}"), HookName::OnRequest, &mut complete())
    };
    let Decision::Respond(reply) = verdict(r#"return deny(403, "x.y");"#) else { panic!() };
    assert_eq!(
        (reply.status.as_u16(), reply.reason.as_deref(), &reply.content),
        (403, Some("x.y"), &Content::Problem)
    );
    let Decision::Respond(reply) = verdict(r#"redirect("/login")"#) else { panic!() };
    assert_eq!((reply.status.as_u16(), reply.headers["location"].as_bytes()), (303, &b"/login"[..]));
    let Decision::Respond(reply) =
        verdict(r##"respond(#{ status: 418, headers: #{ "x-k": ["a", 1] }, body: [1] })"##)
    else {
        panic!()
    };
    assert_eq!(reply.headers.get_all("x-k").iter().collect::<Vec<_>>(), ["a", "1"]);
    assert_eq!(
        (reply.headers["content-type"].as_bytes(), reply.content),
        (&b"application/json"[..], Content::Bytes("[1]".into()))
    );
    assert!(matches!(verdict("return drop();"), Decision::Drop));
    let error = build("fn on_request(ctx) { 42 }").on_request(&mut complete()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Trap);
    assert!(error.message().contains("deny(..)") && error.message().contains("`int`"), "{error}");
}

#[test]
fn what_is_absent_is_unit() {
    let script = r#"fn on_request(ctx) {
        for absent in [ctx.principal, ctx.response, ctx.outgoing, ctx.route, ctx.attempt, ctx.outcome, ctx.decider,
            ctx.client.tls, ctx.request.body, ctx.request.query("a"), ctx.request.cookie("a"),
            ctx.request.headers["x-none"], ctx.facts["none"], config.none] {
            if absent != () { throw "present"; }
        }
        ctx.principal = #{ id: "bob", roles: ["user"] };
        if !ctx.principal.has_role("user") || ctx.principal.has_role("admin") { throw "roles"; }
    }"#;
    let mut exchange = ExchangeBuilder::get("/").build();
    run(script, HookName::OnRequest, &mut exchange);
    assert_eq!(exchange.principal().unwrap().id, "bob");
}

#[test]
fn connections_are_accepted_or_dropped_and_a_failing_script_says_so() {
    let script = r#"fn on_connection(conn) {
        if conn.address == "192.0.2.9" { return drop(); }
        if conn.address == "192.0.2.10" { throw "broken"; }
        if conn.address == "192.0.2.11" { return deny(403, "x.y"); }
        if conn.address == "192.0.2.12" { return 7; }
        if conn.address == "192.0.2.13" { panic_in_the_host(); }
    }"#;
    let plugin = build(script);
    assert_eq!(plugin.on_connection("192.0.2.1").unwrap(), Admission::Accept);
    assert_eq!(plugin.on_connection("192.0.2.9").unwrap(), Admission::Drop);
    for (peer, kind, message) in [
        ("192.0.2.10", ErrorKind::Trap, "policies/x.rhai:3:43: broken"),
        ("192.0.2.11", ErrorKind::Trap, "policies/x.rhai:1:1: on_connection: there is nobody to answer to"),
        ("192.0.2.12", ErrorKind::Trap, "policies/x.rhai:1:1: on_connection: a hook returns nothing"),
        (
            "192.0.2.13",
            ErrorKind::Panic,
            "policies/x.rhai:1:1: on_connection: a function of the host panicked",
        ),
    ] {
        let error = plugin.on_connection(peer).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().starts_with(message), "{error}");
    }
}

#[test]
fn constants_are_seen_by_all_functions_with_the_values_of_the_config() {
    let script = r#"
        const LIMIT = config.limits.high + 1;
        const NAMES = ["a", config.name];
        fn limit() { LIMIT }
        fn nth(at) { NAMES[at] }
        fn on_request(ctx) {
            let deep = config.limits.high;
            let key = "name";
            if limit() != 11 || deep != 10 || nth(1) != "b" || config[key] != "b" { throw `${limit()} ${nth(1)}`; }
            if !["x", "b"].some(|name| name == config.name) { throw "some"; }
        }"#;
    let plugin = build_with(script, json!({ "config": { "name": "b", "limits": { "high": 10 } } })).unwrap();
    plugin.on_request(&mut complete()).unwrap();
}

#[test]
fn imports_come_from_the_scripts_own_directory() {
    let script = r#"
        import "lib/auth" as auth;
        fn on_request(ctx) { if !auth::is_admin(ctx) { return deny(403, "x.y"); } auth::fail(); }"#;
    let auth = r#"
        import "lib/roles" as roles;
        const NEEDED = [config.role];
        fn is_admin(ctx) { roles::has(ctx, NEEDED) }
        fn fail() {
            throw "on purpose";
        }"#;
    let roles = "fn has(ctx, wanted) { for role in wanted { if ctx.principal.has_role(role) { return true; } } false }";
    let files = || PluginTester::new().file("policies/x.rhai", script).file("policies/lib/roles.rhai", roles);
    let plugin =
        build_from(files().file("policies/lib/auth.rhai", auth), json!({ "config": { "role": "admin" } }));
    let error = plugin.unwrap().on_request(&mut complete()).unwrap_err();
    assert_eq!(error.message(), "policies/lib/auth.rhai:6:13: on purpose");

    let broken = build_from(files().file("policies/lib/auth.rhai", "fn x( {"), json!({})).err().unwrap();
    assert_eq!(broken.position.unwrap().file.to_str(), Some("policies/lib/auth.rhai"));
    let circle = files().file("policies/lib/auth.rhai", r#"import "lib/auth" as me;"#);
    assert!(build_from(circle, json!({})).err().unwrap().message.contains("imports itself"));
    assert!(build_from(files(), json!({})).err().unwrap().message.contains("no file"));

    let many = |count: usize| {
        let import = |at: usize| format!("import \"lib/l{at}\" as l{at};\n");
        let script = (0..count).map(import).collect::<String>() + "fn on_request(ctx) { }";
        let file =
            |tester: PluginTester, at: usize| tester.file(&format!("policies/lib/l{at}.rhai"), "fn f() { }");
        let tester = (0..count).fold(PluginTester::new().file("policies/x.rhai", script), file);
        build_from(tester, json!({}))
    };
    assert!(many(32).is_ok());
    assert!(many(33).err().unwrap().message.contains("more than 32 imports"));
}

#[test]
fn faults_are_found_at_load_with_their_place() {
    for (script, line, column, part) in [
        ("fn on_request(ctx) {\n  let x = ;\n}", 2, 11, "expect"),
        ("fn on_request(ctx) {\n  nobody\n}", 2, 3, "nobody"),
        ("const A = 1;\n  fn on_requests(ctx) { }", 2, 3, "`on_requests` is not a hook"),
        ("fn on_request(ctx, more) { }", 1, 1, "one parameter"),
        ("let count = 0;\nfn on_request(ctx) { }", 1, 1, "gone"),
        ("fn on_request(ctx) { }\nthrow \"not with this config\";", 2, 1, "not with this config"),
        ("fn on_request(ctx) { }\nloop { }", 2, 6, "limits.operations"),
        ("fn on_request(ctx) {\n  import \"x\" as x;\n}", 2, 3, "top of a script"),
    ] {
        let error = build_with(script, json!({})).err().unwrap();
        let place = error.position.as_ref().unwrap();
        assert!(error.message.contains(part), "{script}: {error}");
        assert_eq!(
            (place.line, place.column, place.file.to_str()),
            (line, column, Some("policies/x.rhai")),
            "{error}"
        );
    }
    let error = build_with("fn on_reqest(ctx) { }", json!({})).err().unwrap();
    assert!(error.help.unwrap().contains("on_request"));
    assert!(build_with("fn helper() { }", json!({})).err().unwrap().message.contains("no hook"));
}

#[test]
fn runtime_errors_name_their_place() {
    let error = build("fn on_request(ctx) {\n  helper(ctx);\n}\nfn helper(ctx) {\n  ctx.request.heders\n}")
        .on_request(&mut complete())
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Trap);
    assert!(error.message().starts_with("policies/x.rhai:5:15: "), "{error}");
    assert!(error.message().contains("heders"), "{error}");
}

#[test]
fn a_budget_that_is_used_up_is_told_with_the_hook_that_did() {
    let helpers = "fn a(x) {\n  b(x)\n}\nfn b(x) { a(x) }\n";
    for (body, message) in [
        ("loop { }", "used up its 10000 operations (limits.operations)"),
        ("let s = \"x\"; loop { s += s; }", "too large (limits.string)"),
        ("a(1);", "functions call each other more than 16 deep (limits.depth)"),
    ] {
        let plugin = build(&format!("{helpers}  fn on_request(ctx) {{\n  {body}\n}}"));
        let error = plugin.on_request(&mut complete()).unwrap_err();
        assert_eq!(error.message(), format!("policies/x.rhai:5:3: on_request: {message}"));
    }
}

#[test]
fn calls_of_functions_that_nobody_offers_are_refused_at_load() {
    for (body, column, message, help) in [
        ("foo(1);", 3, "there is no function `foo`", None),
        (
            "1; if false { dney(403, \"x.y\"); }",
            17,
            "there is no function `dney`",
            Some("did you mean `deny`?"),
        ),
        ("ctx.request.jsno();", 15, "there is no function `jsno`", Some("did you mean `json`?")),
        ("[1].map(|x| twise(x));", 15, "there is no function `twise`", Some("did you mean `twice`?")),
        ("twice(1, 2);", 3, "no function `twice` takes 2 arguments", Some("it takes 1")),
        ("lib::hlep(1);", 8, "there is no function `lib::hlep`", Some("did you mean `lib::help`?")),
        ("lib::help();", 8, "no function `lib::help` takes 0 arguments", Some("it takes 1")),
    ] {
        let script =
            format!("import \"lib\" as lib;\nfn twice(x) {{ 2 * x }}\nfn on_request(ctx) {{\n  {body}\n}}");
        let files = PluginTester::new().file("policies/x.rhai", script);
        let error = build_from(files.file("policies/lib.rhai", "fn help(x) { x }"), json!({})).err().unwrap();
        let place = error.position.as_ref().unwrap();
        assert_eq!((&*error.message, error.help.as_deref()), (message, help), "{body}");
        assert_eq!((place.line, place.column), (4, column), "{body}");
    }
    let files = PluginTester::new().file("policies/x.rhai", "import \"lib\" as lib; fn on_request(ctx) { }");
    let error =
        build_from(files.file("policies/lib.rhai", "\n fn help(x) { hlep(x) }"), json!({})).err().unwrap();
    let place = error.position.unwrap();
    assert_eq!((place.file.to_str(), place.line, place.column), (Some("policies/lib.rhai"), 2, 15));
}

/// What only shows when it runs is not judged before.
#[test]
fn calls_that_may_be_right_are_not_refused() {
    let script = r##"
        import "lib" as lib;
        fn twice(x) { 2 * x }
        fn int.half() { this / 2 }
        fn on_request(ctx) {
            let held = #{ once: |x| x };
            held.thrice = |x| 3 * x;
            held["named"] = Fn("twice");
            let text = "a,b";
            let list = [3, 1, 2];
            list.sort();
            if list.map(|x| x + 1).filter(|x| x > 2).reduce(|sum, x| sum + x, 0) != 7 { throw "arrays"; }
            if text.split(",").len() != 2 || text.to_upper() != "A,B" || !text.contains("a") { throw "strings"; }
            if held.once(1) + held.thrice(1) + held.named(1) != 6 { throw "functions in maps"; }
            if 8.half() != 4 || Fn("twice").call(2) != 4 || call(Fn("twice"), 2) != 4 { throw "functions"; }
            if is_def_fn("nowhere", 1) { nowhere(1); }
            if is_def_var("nothing") || type_of(1) != "i64" && type_of(1) != "int" { throw "the language"; }
            if 1 in list && (1..3).contains(1) && min(1, 2) == 1 && 2.0.floor() == 2.0 && held.keys().len() == 3 {
                lib::run(|x| x);
            }
            print(list); debug(held.len());
        }"##;
    let files = PluginTester::new().file("policies/x.rhai", script);
    // A library may call what the script that imports it has.
    let lib = "fn run(f) { f.call(1); twice(1) }";
    let built = build_from(files.file("policies/lib.rhai", lib), json!({}));
    built.unwrap().on_request(&mut complete()).unwrap();
}

#[test]
fn what_a_script_says_stays_one_line() {
    let plugin = build(
        r#"fn on_request(ctx) {
            let forged = "hi\n2026-01-01T00:00:00Z  INFO portcullis: all is well\r\x1b[2J\u202e";
            log(forged);
            log("warn", forged);
            print(forged);
            throw forged;
        }"#,
    );
    let (written, error) = collect_log(|| plugin.on_request(&mut complete()).unwrap_err());
    let escaped = r"hi\n2026-01-01T00:00:00Z  INFO portcullis: all is well\r\u{1b}[2J\u{202e}";
    assert_eq!((written.lines().count(), written.matches(escaped).count()), (3, 3), "{written}");
    assert!(error.message().ends_with(escaped), "{error}");
}

/// What is logged while `work` is done, and its result.
pub(super) fn collect_log<T>(work: impl FnOnce() -> T) -> (String, T) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let writer = {
        let lines = lines.clone();
        move || Lines(lines.clone())
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(writer)
        .finish();
    let result = tracing::subscriber::with_default(subscriber, work);
    let written = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    (written, result)
}

#[derive(Clone)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn every_example_of_the_reference_runs() {
    for entry in host::entries() {
        let hook = match entry.on {
            Some("Response") => HookName::OnResponseBody,
            Some("Conn") => HookName::OnConnection,
            _ => HookName::OnRequestBody,
        };
        let parameter = if hook == HookName::OnConnection { "conn" } else { "ctx" };
        let plugin = build_granted(&format!("fn {hook}({parameter}) {{ {} }}", entry.example));
        if let Err(error) = plugin.call(hook, &mut complete()) {
            panic!("{}: {error}", entry.signature);
        }
    }
}

#[test]
fn definitions_and_reference_have_everything_that_is_registered() {
    let engine = crate::engine::new(&crate::Limits::default(), "x".into(), &Arc::default());
    let (definitions, reference) = (crate::definitions(), crate::reference());
    let entries = host::entries();
    for entry in &entries {
        assert!(reference.contains(&format!("### `{}`", entry.signature)), "{}", entry.signature);
        let declared = match entry.kind {
            Kind::Function => format!("fn {}(", entry.name()),
            Kind::Property { .. } => format!("fn get {}(", entry.name()),
            Kind::Index { .. } => format!("fn get_index(this: {}", entry.on.unwrap()),
        };
        assert!(definitions.contains(&declared), "{declared}");
    }
    // What replaces a function of the standard library is documented there.
    let standard = [
        "+",
        "to_string",
        "to_debug",
        "print",
        "debug",
        "to_json",
        "==",
        "!=",
        "replace",
        "panic_in_the_host",
    ];
    for signature in engine.gen_fn_signatures(false) {
        let name = signature.split('(').next().unwrap().trim_start_matches("get$").trim_start_matches("set$");
        let documented = entries.iter().any(|entry| entry.name() == name) || name.starts_with("index$");
        assert!(documented || standard.contains(&name), "{signature} is not documented");
    }
}
