//! What scripts may do beside their exchange, with and without the grants.

use std::time::Duration;

use http::StatusCode;
use portcullis_plugin::{Decision, ErrorKind, HookName, PluginTester};
use serde_json::{Value, json};

use super::language::collect_log;
use super::{build, build_from, build_granted, complete};

/// What a script that is granted everything notes as the fact `said`.
fn said(body: &str) -> Value {
    let plugin = build_granted(&format!("fn on_request(ctx) {{ ctx.facts[\"said\"] = {{ {body} }}; }}"));
    let mut exchange = complete();
    plugin.on_request(&mut exchange).unwrap();
    exchange.fact("said").cloned().unwrap_or_default()
}

/// What a script that is granted everything fails with.
fn failure(body: &str) -> String {
    let plugin = build_granted(&format!("fn on_request(ctx) {{ {body} }}"));
    plugin.on_request(&mut complete()).unwrap_err().to_string()
}

#[test]
fn what_is_not_granted_is_an_error_that_names_the_grant_and_the_line() {
    for (body, grant) in [
        (r#"http_get("idp", "/")"#, "http: { upstreams: [..] }"),
        (r#"cache_get("a")"#, "cache: {}"),
        (r#"cache_set("a", "b", 1)"#, "cache: {}"),
        (r#"store_get("a")"#, "store: true"),
        (r#"rate_limit("login", "a")"#, "rate_limit: {"),
        (r#"count("logins")"#, "metrics: [NAME]"),
        ("now()", "clock: true"),
        ("now_ms()", "clock: true"),
        ("random_hex(1)", "random: true"),
        ("random_int(1)", "random: true"),
        ("uuid()", "random: true"),
        (r#"secret("signing")"#, "secrets: {"),
    ] {
        let error = build(&format!("fn on_request(ctx) {{\n  {body};\n}}")).on_request(&mut complete());
        let error = error.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Trap);
        let message = error.message();
        assert!(message.contains(&format!("add `grants: {{ {grant}")), "{message}");
        assert!(message.starts_with("policies/x.rhai:2:3: "), "{message}");
    }
}

#[test]
fn calls_look_as_if_they_blocked() {
    let answer = said(
        r##"let answer = http_send("idp", #{
            method: "POST", target: "/introspect?a=b", headers: #{ "x-a": "1" }, body: #{ token: "t" },
        });
        #{ status: answer.status, a: answer.headers["x-a"], seen: json_parse(answer.body), path: ctx.request.path }"##,
    );
    assert_eq!(
        (&answer["status"], &answer["a"], &answer["path"]),
        (&json!(200), &json!("1"), &json!("/users/42"))
    );
    let headers = json!({ "content-type": "application/json", "x-a": "1" });
    let seen = json!({
        "method": "POST", "target": "/introspect?a=b", "headers": headers, "body": r#"{"token":"t"}"#,
    });
    assert_eq!(answer["seen"], seen);
    let verdict =
        r#"fn on_request(ctx) { if http_get("idp", "/").status == 200 { return deny(401, "x.y"); } }"#;
    let mut exchange = complete();
    let Decision::Respond(reply) = build_granted(verdict).on_request(&mut exchange).unwrap() else {
        panic!()
    };
    assert_eq!(reply.status, StatusCode::UNAUTHORIZED);
    assert!(exchange.rule().unwrap().starts_with("policies/x.rhai:1:"), "{:?}", exchange.rule());
}

#[test]
fn calls_that_go_wrong_are_errors_that_a_script_may_catch() {
    assert!(
        failure(r#"http_get("gone", "/");"#).contains("no answer from `gone`: no endpoint could be reached")
    );
    assert!(failure(r#"http_get("other", "/");"#).contains("no upstream `other`"));
    assert!(failure(r#"for n in 0..4 { http_get("idp", "/"); }"#).contains("more than 3 calls"));
    assert!(failure(r#"http_get("idp", "http://elsewhere/");"#).contains("a target is a path"));
    assert!(failure(r##"http_send("idp", #{ boddy: 1 });"##).contains("boddy"));
    let caught = r#"let at = "there"; try { http_get("gone", "/"); } catch { at = "gone"; } at"#;
    assert_eq!(said(caught), "gone");
}

#[test]
fn hooks_that_cannot_wait_say_so() {
    let plugin = build_granted(r#"fn on_connection(conn) { http_get("idp", "/"); }"#);
    let error = plugin.on_connection("192.0.2.1").unwrap_err();
    assert!(error.message().contains("not `on_connection`"), "{error}");
}

#[test]
fn operations_are_counted_and_limits_bite_on_a_thread_of_its_own_too() {
    let plugin = build_granted("fn on_request(ctx) { loop { } }");
    let error = plugin.on_request(&mut complete()).unwrap_err();
    assert!(error.message().contains("limits.operations"), "{error}");
    let plugin = build_granted("fn on_request(ctx) { panic_in_the_host(); }");
    let mut exchange = complete();
    assert_eq!(plugin.on_request(&mut exchange).unwrap_err().kind(), ErrorKind::Panic);
    assert_eq!(exchange.request().path(), "/users/42");
}

#[test]
fn a_cache_keeps_texts_for_all_hooks_of_the_policy() {
    assert_eq!(said(r#"cache_set("a", "é", 60); [cache_get("a"), cache_get("b")]"#), json!(["é", null]));
    assert!(failure(r#"cache_set("a", "b", -1);"#).contains("below zero"));
    assert!(failure(r#"let s = "x"; s.pad(70_000, "x"); cache_set("a", s, 1);"#).contains("64KiB"));
    assert!(failure(r#"let s = "x"; s.pad(2_000, "x"); cache_get(s);"#).contains("1024 bytes"));
}

#[test]
fn a_store_keeps_and_counts_for_all_exchanges() {
    let script = r#"store_set("a", "é", 60);
        [store_get("a"), store_get("b"), store_add("n", 2, 60), store_add("n", -3, 60), store_delete("a"), store_delete("a"),
            store_replace("c", (), "1", 60), store_replace("c", (), "2", 60), store_replace("c", "1", "3", 60), store_get("c")]"#;
    assert_eq!(said(script), json!(["é", null, 2, -1, true, false, true, false, true, "3"]));
    assert!(failure(r#"store_set("a", "b", 0);"#).contains("1 ms to 10 years"));
}

#[test]
fn limits_refuse_and_say_for_how_long() {
    let taken = said(r#"[rate_limit("login", "a"), rate_limit("login", "a"), rate_limit("login", "a")]"#);
    let allowed: Vec<_> = (0..3).map(|at| taken[at]["allowed"].as_bool().unwrap()).collect();
    assert_eq!(allowed, [true, true, false]);
    assert_eq!((&taken[0]["left"], &taken[0]["retry_after"]), (&json!(1), &json!(0)));
    assert!((1..=30).contains(&taken[2]["retry_after"].as_i64().unwrap()), "{taken}");
    assert!(failure(r#"rate_limit("logout", "a");"#).contains("there is `login`"));
}

#[test]
fn counters_time_and_random_numbers_are_as_granted() {
    let mut tester = PluginTester::new().file(
        "policies/x.rhai",
        r#"fn on_request(ctx) {
            count("logins"); count("logins", "ok");
            ctx.facts["said"] = [now(), now_ms(), random_int(1), random_hex(4).len(), uuid()];
        }"#,
    );
    tester.set_time(Duration::from_millis(1_700_000_000_500));
    let grants = json!({ "metrics": ["logins"], "clock": true, "random": true });
    let table = json!({ "file": "policies/x.rhai", "grants": grants, "limits": { "time": "4s" } });
    let plugin = tester.build::<crate::Script>(table).unwrap();
    let mut exchange = complete();
    plugin.on_request(&mut exchange).unwrap();
    let said = exchange.fact("said").unwrap();
    assert_eq!(said[0], 1_700_000_000);
    assert_eq!((&said[1], &said[2], &said[3]), (&json!(1_700_000_000_500_u64), &json!(0), &json!(8)));
    let uuid = said[4].as_str().unwrap();
    assert!(uuid.len() == 36 && uuid.as_bytes()[14] == b'4' && "89ab".contains(&uuid[19..20]), "{uuid}");
    for label in ["", "ok"] {
        assert_eq!(tester.counted("counted", &["logins", label]), Some(1));
    }
    assert!(failure("random_int(0);").contains("1 or more") && failure("random_hex(-1);").contains("1024"));
}

#[test]
fn a_secret_is_used_and_not_read() {
    let code = said(r#"hmac_sha256_hex(secret("signing"), "text")"#);
    assert_eq!(code, "faef784162d35f91eca46b3fc1dc0b2c65b91115ada3d166a0a3b99411feac17");
    let equal = r#"let key = secret("signing"); [constant_time_eq(key, "hunter2"), constant_time_eq(key, "x"), constant_time_eq(key, ())]"#;
    assert_eq!(said(equal), json!([true, false, false]));
    let sent = said(
        r##"let headers = #{ authorization: "Bearer " + secret("signing"), "x-key": secret("signing") };
        json_parse(http_send("idp", #{ headers: headers }).body).headers"##,
    );
    assert_eq!((&sent["authorization"], &sent["x-key"]), (&json!("Bearer hunter2"), &json!("hunter2")));
    assert!(failure(r#"secret("other");"#).contains("there is `signing`"));
}

#[test]
fn no_way_of_a_script_prints_a_secret() {
    let script = r##"fn on_request(ctx) {
        let key = secret("signing");
        print(key); debug(key); log(`${key}`);
        let caught = [key.to_string(), key.to_debug(), type_of(key)];
        for attempt in [
            |k, ctx| json_stringify(k), |k, ctx| json_stringify([k]), |k, ctx| { throw k; }, |k, ctx| k + "",
            |k, ctx| { ctx.facts["key"] = k; }, |k, ctx| { ctx.request.headers["x-key"] = k; }, |k, ctx| k[0],
            |k, ctx| base64_encode(k), |k, ctx| k.len(), |k, ctx| cache_set("key", k, 1), |k, ctx| k.name,
            |k, ctx| hmac_sha256_hex("a" + k, "b"), |k, ctx| print([k]),
        ] {
            try { caught.push(`${attempt.call(key, ctx)}`); } catch (error) { caught.push(`${error}`); }
        }
        ctx.facts["said"] = caught;
        throw key;
    }"##;
    let tester = PluginTester::new().file("policies/x.rhai", script).secret("KEY", "hunter2");
    let grants = json!({ "secrets": { "signing": "env:KEY" }, "cache": {} });
    let plugin = build_from(tester, json!({ "grants": grants })).unwrap();
    let mut exchange = complete();
    let (lines, error) = collect_log(|| plugin.on_request(&mut exchange).unwrap_err());
    let said = exchange.fact("said").unwrap_or_else(|| panic!("{error}"));
    assert!(said.as_array().unwrap().len() == 16 && lines.contains("<secret>"), "{said} {lines}");
    assert!(!format!("{said} {lines} {error} {exchange:?}").contains("hunter2"), "{said} {lines} {error}");
}

#[test]
fn a_flood_finds_no_thread_and_is_refused() {
    let tester = PluginTester::new()
        .file("policies/x.rhai", "fn on_request(ctx) { }")
        .upstream("idp", |_: &http::Request<bytes::Bytes>| unreachable!());
    let grants = json!({ "http": { "upstreams": ["idp"] } });
    let plugin = build_from(tester.without_script_threads(), json!({ "grants": grants })).unwrap();
    let mut exchange = complete();
    let Decision::Respond(reply) = plugin.call(HookName::OnRequest, &mut exchange).unwrap() else { panic!() };
    assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (503, Some("rhai.pool_exhausted")));
    assert_eq!(exchange.request().path(), "/users/42");
}
