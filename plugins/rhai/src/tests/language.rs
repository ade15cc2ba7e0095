//! What scripts can do.

use http::StatusCode;
use portcullis_plugin::{
    Admission, BodyWish, ChangeKind, Content, Decision, ErrorKind, Exchange, ExchangeBuilder, HookName,
    PluginTester,
};
use serde_json::json;

use super::{build, build_from, build_with, complete};
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
fn connections_are_accepted_or_dropped_and_a_failing_script_drops() {
    let script = r#"fn on_connection(conn) {
        if conn.address == "192.0.2.9" { return drop(); }
        if conn.address == "192.0.2.10" { throw "broken"; }
    }"#;
    let plugin = build(script);
    assert_eq!(plugin.on_connection("192.0.2.1"), Admission::Accept);
    assert_eq!(plugin.on_connection("192.0.2.9"), Admission::Drop);
    assert_eq!(plugin.on_connection("192.0.2.10"), Admission::Drop);
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
fn every_example_of_the_reference_runs() {
    for entry in host::entries() {
        let hook = match entry.on {
            Some("Response") => HookName::OnResponseBody,
            Some("Conn") => HookName::OnConnection,
            _ => HookName::OnRequestBody,
        };
        let parameter = if hook == HookName::OnConnection { "conn" } else { "ctx" };
        let plugin = build(&format!("fn {hook}({parameter}) {{ {} }}", entry.example));
        if let Err(error) = plugin.call(hook, &mut complete()) {
            panic!("{}: {error}", entry.signature);
        }
    }
}

#[test]
fn definitions_and_reference_have_everything_that_is_registered() {
    let engine = crate::engine::new(&crate::Limits::default(), "x".into());
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
    let standard =
        ["to_string", "to_debug", "print", "debug", "to_json", "==", "!=", "replace", "panic_in_the_host"];
    for signature in engine.gen_fn_signatures(false) {
        let name = signature.split('(').next().unwrap().trim_start_matches("get$").trim_start_matches("set$");
        let documented = entries.iter().any(|entry| entry.name() == name) || name.starts_with("index$");
        assert!(documented || standard.contains(&name), "{signature} is not documented");
    }
}
