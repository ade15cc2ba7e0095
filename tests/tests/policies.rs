//! Policies at work in a running gateway: scripts and modules at every hook, and the built-in ones.

use portcullis_tests::tools::guest;
use portcullis_tests::{Gateway, Origin, Setup, request, until};
use serde_json::{Value, json};

fn with(plugins: &str, files: &[(&str, &[u8])]) -> (Origin, Gateway) {
    let origin = Origin::start();
    let config =
        format!("plugins:\n  - access_log: {{ target: access.log, facts: [seen, logged] }}\n{plugins}");
    let setup = files.iter().fold(Setup::new(&config), |setup, (name, content)| setup.file(name, content));
    let gateway = setup.before(&origin).start();
    (origin, gateway)
}

const EVERY_HOOK: &str = r##"
fn on_connection(conn) {
    if conn.listener != "main" { return drop(); }
}
fn on_request(ctx) {
    ctx.request.headers["x-on-request"] = ctx.request.query("q");
    ctx.request.headers.remove("x-secret");
    ctx.request.path = "/changed" + ctx.request.path;
    ctx.facts["seen"] = [ctx.request.method, ctx.client.address, ctx.route.name, ctx.request.cookie("session")];
}
fn on_request_body(ctx) {
    ctx.request.body = ctx.request.body.to_upper();
}
fn on_upstream(ctx) {
    ctx.outgoing.headers["x-on-upstream"] = `${ctx.attempt.number} ${ctx.attempt.upstream}`;
}
fn on_response(ctx) {
    ctx.response.headers["x-on-response"] = `${ctx.response.status}`;
}
fn on_response_body(ctx) {
    ctx.response.body = #{ wrapped: ctx.response.json() };
}
fn on_log(ctx) {
    ctx.facts["logged"] = `${ctx.outcome.status} ${ctx.outcome.end}`;
}
"##;

#[test]
fn a_script_runs_at_every_hook() {
    let (_origin, gateway) =
        with("  - rhai: { file: every.rhai }\n", &[("every.rhai", EVERY_HOOK.as_bytes())]);
    let sent =
        request("POST", "/x?q=a%20b").header("x-secret", "1").header("cookie", "session=s1").body("hello");
    let answer = gateway.ask(&sent);
    assert_eq!(answer.header("x-on-response"), Some("200"));
    let seen = &answer.json()["wrapped"];
    assert_eq!((&seen["path"], &seen["body"]), (&json!("/changed/x"), &json!("HELLO")));
    assert_eq!(seen["headers"]["x-on-request"], "a b");
    assert_eq!(seen["headers"]["x-on-upstream"], "1 origin");
    assert_eq!(seen["headers"]["x-secret"], Value::Null);
    let line = gateway.logged_path("/x");
    assert_eq!(
        line["facts"],
        json!({ "seen": ["POST", "127.0.0.1", "all", "s1"], "logged": "200 complete" })
    );
    let hooks = |hook: &str| {
        let label = format!("hook=\"{hook}\"");
        gateway.metric("portcullis_plugin_hook_duration_seconds_count", &["plugin=\"rhai\"", &label])
    };
    until("the last hook to be counted", || hooks("on_log") == 1.0);
    for hook in
        ["on_connection", "on_request", "on_request_body", "on_upstream", "on_response", "on_response_body"]
    {
        assert!(hooks(hook) >= 1.0, "{hook}");
    }
}

#[test]
fn a_module_runs_at_every_hook() {
    let Some(module) = guest("hostile") else { return };
    let (_origin, gateway) = with(
        "  - wasm: { file: m.wasm, config: { on_request: tour, on_response: count } }\n",
        &[("m.wasm", &module)],
    );
    let sent =
        request("POST", "/x?q=a%20b").header("x-test", "1").header("cookie", "session=s1").body("hello");
    let answer = gateway.ask(&sent);
    let text = answer.text();
    let seen: Value =
        serde_json::from_str(text.strip_prefix('<').unwrap().strip_suffix('>').unwrap()).unwrap();
    assert_eq!(
        (&seen["method"], &seen["path"], &seen["query"]),
        (&json!("PUT"), &json!("/elsewhere"), &json!("a=b"))
    );
    assert_eq!((&seen["body"], &seen["headers"]["x-set"]), (&json!("HELLO"), &json!("1, 2")));
    assert_eq!(seen["headers"]["x-test"], Value::Null);
    let line = gateway.logged_path("/x");
    let facts = &line["facts"]["seen"];
    assert_eq!(
        (&facts["query_param"], &facts["cookie"], &facts["route"]),
        (&json!("a b"), &json!("s1"), &json!("all"))
    );
    assert_eq!(line["principal"], "guest");
    assert!(line["facts"]["logged"].as_u64() > Some(1), "one instance for all hooks of an exchange: {line}");
}

#[test]
fn verdicts_of_scripts_become_answers() {
    let script = r##"
fn on_request(ctx) {
    switch ctx.request.path {
        "/deny" => return deny(403, "test.denied"),
        "/respond" => return respond(#{ status: 201, headers: #{ "x-made": "here" }, body: #{ id: 7 } }),
        "/redirect" => return redirect(302, "https://else.test/"),
        "/drop" => return drop(),
    }
}
"##;
    let (origin, gateway) =
        with("  - { name: judge, rhai: { file: v.rhai } }\n", &[("v.rhai", script.as_bytes())]);
    let denied = gateway.get("/deny");
    assert_eq!((denied.status, denied.text().contains("test.denied")), (403, false));
    let line = gateway.logged_path("/deny");
    assert_eq!(
        (&line["decided_by"], &line["hook"], &line["reason"]),
        (&json!("judge"), &json!("on_request"), &json!("test.denied"))
    );
    let made = gateway.get("/respond");
    assert_eq!((made.status, made.header("x-made"), made.json()), (201, Some("here"), json!({ "id": 7 })));
    assert_eq!(gateway.get("/redirect").header("location"), Some("https://else.test/"));
    assert!(gateway.connect().ask(&request("GET", "/drop")).is_err());
    assert_eq!(gateway.logged_path("/drop")["reason"], "dropped");
    assert_eq!(origin.served(), 0);
}

#[test]
fn plugins_run_in_order_and_responses_in_reverse_at_every_scope() {
    let mark = |name: &str| {
        format!(
            "fn on_request(ctx) {{ ctx.request.headers[\"x-way\"] = (ctx.request.headers[\"x-way\"] ?? \"\") + \"{name}\"; }}
             fn on_response(ctx) {{ ctx.response.headers[\"x-way\"] = (ctx.response.headers[\"x-way\"] ?? \"\") + \"{name}\"; }}"
        )
    };
    let config = "
plugins: [{ name: a, rhai: { file: a.rhai } }, policies, { name: c, rhai: { file: c.rhai } }]
policies: { dir: policies }
listeners: [{ name: main, bind: 127.0.0.1:0, plugins: [{ rhai: { file: d.rhai } }] }]
routes: [{ name: all, upstream: origin, plugins: [{ rhai: { file: e.rhai } }] }]
";
    let origin = Origin::start();
    let setup = ["a", "c", "d", "e"]
        .iter()
        .fold(Setup::new(config), |setup, name| setup.file(&format!("{name}.rhai"), mark(name)));
    let gateway = setup.file("policies/10-b.rhai", mark("b")).before(&origin).start();
    let answer = gateway.get("/");
    assert_eq!(answer.json()["headers"]["x-way"], "abcde");
    assert_eq!(answer.header("x-way"), Some("edcba"));
    let names: Vec<_> =
        gateway.status()["plugins"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
    assert_eq!(names, ["a", "b", "c", "main/rhai", "all/rhai"]);
}

#[test]
fn a_response_only_plugin_marks_refusals_too() {
    let (_origin, gateway) = with(
        "  - headers: { response: { set: { x-frame-options: DENY } } }\n  - ip_filter: { allow: [192.0.2.1] }\n",
        &[],
    );
    let refused = gateway.get("/");
    assert_eq!((refused.status, refused.header("x-frame-options")), (403, Some("DENY")));
    assert_eq!(gateway.logged_path("/")["reason"], "ip_filter.denied");
}

#[test]
fn a_plugins_own_failure_follows_on_error() {
    let script = "fn on_request(ctx) { throw \"no luck\"; }";
    for (on_error, status) in [("deny", 500), ("allow", 200)] {
        let plugin = format!("  - {{ rhai: {{ file: f.rhai }}, on_error: {on_error} }}\n");
        let (_origin, gateway) = with(&plugin, &[("f.rhai", script.as_bytes())]);
        assert_eq!(gateway.get("/f").status, status);
        until("the failure in the log", || gateway.log().contains("f.rhai:1:22: no luck"));
        assert_eq!(gateway.metric("portcullis_plugin_errors_total", &["error=\"trap\""]), 1.0);
    }
}

#[test]
fn cors_answers_preflights_and_marks_answers() {
    let (origin, gateway) = with("  - cors: { origins: [\"https://app.test\"], methods: [GET, PUT] }\n", &[]);
    let preflight = request("OPTIONS", "/")
        .header("origin", "https://app.test")
        .header("access-control-request-method", "PUT");
    let answer = gateway.ask(&preflight);
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (204, Some("https://app.test"))
    );
    assert_eq!(origin.served(), 0);
    let actual = gateway.ask(&request("GET", "/").header("origin", "https://app.test"));
    assert_eq!(actual.header("access-control-allow-origin"), Some("https://app.test"));
    assert!(actual.header("vary").unwrap().to_ascii_lowercase().contains("origin"));
    let other = gateway.ask(&request("GET", "/").header("origin", "https://evil.test"));
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, None));
}

#[test]
fn what_another_sites_page_sends_is_refused_and_a_token_is_asked_for() {
    let config = "
plugins:
  - access_log: { target: access.log }
  - csrf:
      trusted: [\"https://app.test\"]
      cookies: [sid]
      token: { key: env:KEY, cookie: csrf, bind: { cookie: sid } }
";
    let origin = Origin::start();
    let gateway = Setup::new(config).variable("KEY", "k".repeat(32)).before(&origin).start();
    let token = |session: &str| {
        let answer = gateway.ask(&request("GET", "/").header("cookie", &format!("sid={session}")));
        let cookie = answer.header("set-cookie").unwrap().strip_prefix("csrf=").unwrap();
        cookie.split(';').next().unwrap().to_owned()
    };
    let post = |path: &str, from: &str, token: Option<&str>| {
        let cookies = token.map_or("sid=1".to_owned(), |token| format!("sid=1; csrf={token}"));
        let sent = request("POST", path).header("origin", from).header("cookie", &cookies);
        let sent = token.into_iter().fold(sent, |sent, token| sent.header("x-csrf-token", token));
        let status = gateway.ask(&sent).status;
        (status, gateway.logged_path(path)["reason"].clone())
    };
    let (mine, other) = (token("1"), token("2"));
    let own = "http://gateway.test";
    assert_eq!(post("/0", "https://evil.test", Some(&mine)), (403, json!("csrf.cross_site")));
    assert_eq!(post("/1", "https://app.test", None), (403, json!("csrf.token_missing")));
    assert_eq!(post("/2", own, Some(&other)), (403, json!("csrf.token_invalid")));
    assert_eq!(post("/3", own, Some(&mine)), (200, Value::Null));
    assert_eq!(post("/4", "https://app.test", Some(&mine)), (200, Value::Null));
    // What misuses no cookie is not judged.
    assert_eq!(gateway.ask(&request("POST", "/").header("origin", "https://evil.test")).status, 200);
    let refused = |reason: &str| gateway.metric("portcullis_plugin_csrf_refused_total", &[reason]);
    assert_eq!(refused("reason=\"csrf.cross_site\""), 1.0);
}

#[test]
fn browsers_are_told_what_not_to_do_with_any_response() {
    let (_origin, gateway) = with("  - security_headers: { remove: [x-kind] }\n", &[]);
    for (path, status) in [("/header/x-kind/plain", 200), ("/header/x-frame-options/SAMEORIGIN", 200)] {
        let answer = gateway.get(path);
        assert_eq!((answer.status, answer.header("x-content-type-options")), (status, Some("nosniff")));
        assert_eq!((answer.header("x-kind"), answer.header("strict-transport-security")), (None, None));
        let frames = if path.ends_with("SAMEORIGIN") { "SAMEORIGIN" } else { "DENY" };
        assert_eq!(answer.header("x-frame-options"), Some(frames));
    }
    let config =
        "plugins: [security_headers]\nroutes: [{ match: { path: /here }, respond: { status: 204 } }]\n";
    let gateway = Setup::new(config).start();
    for (path, status) in [("/here", 204), ("/nowhere", 404)] {
        let answer = gateway.get(path);
        assert_eq!((answer.status, answer.header("referrer-policy")), (status, Some("no-referrer")));
    }
}

#[test]
fn bodies_are_limited_and_judged_by_schema() {
    let schema =
        json!({ "type": "object", "properties": { "id": { "type": "integer" } }, "required": ["id"] });
    let (_origin, gateway) = with(
        "  - body_limit: { request: 64B }\n  - json_schema: { file: order.json, unknown_fields: refuse }\n",
        &[("order.json", schema.to_string().as_bytes())],
    );
    let post = |path: &str, body: &str| {
        let sent = request("POST", path).header("content-type", "application/json").body(body);
        let status = gateway.ask(&sent).status;
        (status, gateway.logged_path(path)["reason"].clone())
    };
    assert_eq!(post("/good", r#"{"id":1}"#), (200, Value::Null));
    assert_eq!(post("/type", r#"{"id":"1"}"#), (422, json!("json_schema.invalid")));
    assert_eq!(post("/more", r#"{"id":1,"x":2}"#), (422, json!("json_schema.invalid")));
    assert_eq!(post("/twice", r#"{"id":1,"id":2}"#), (400, json!("json_schema.duplicate_key")));
    assert_eq!(post("/broken", "{"), (400, json!("json_schema.malformed")));
    assert_eq!(
        post("/long", &format!("{{\"id\":{}}}", "1".repeat(80))),
        (413, json!("body_limit.too_large"))
    );
    let refusals = |reason: &str| gateway.metric("portcullis_plugin_json_schema_refusals_total", &[reason]);
    assert_eq!(refusals("plugin=\"json_schema\",reason=\"json_schema.invalid\""), 2.0);
    // The counts are of the instance's name, so they outlive what it is made of.
    gateway.edit("order.json", schema.to_string() + " ");
    gateway.wait_generation(2);
    assert_eq!(post("/again", r#"{"id":"1"}"#).0, 422);
    assert_eq!(refusals("reason=\"json_schema.invalid\""), 3.0);
}

#[test]
fn a_body_that_takes_long_to_judge_is_judged_all_the_same() {
    let (origin, gateway) = with(
        "  - json_schema: { schema: { items: { type: integer } }, limit: 4MiB }\n  - mask: { fields: [password] }\n",
        &[],
    );
    let post = |path: &str, last: &str| {
        let body = format!("[{}{last}]", "1,".repeat(1 << 19));
        gateway.ask(&request("POST", path).header("content-type", "application/json").body(body)).status
    };
    assert_eq!((post("/good", "1"), origin.served()), (200, 1));
    assert_eq!((post("/bad", "\"1\""), origin.served()), (422, 1));
    assert_eq!(gateway.logged_path("/bad")["reason"], json!("json_schema.invalid"));
}

#[test]
fn secrets_are_masked_in_answers() {
    let (_origin, gateway) = with("  - mask: { fields: [password] }\n", &[]);
    assert_eq!(gateway.get("/json").json(), json!({ "user": "ann", "password": "***", "items": [1, 2] }));
}

#[test]
fn an_external_service_decides() {
    let (origin, authz) = (Origin::start(), Origin::named("authz"));
    let config = "
plugins:
  - access_log: { target: access.log }
  - ext_authz: { upstream: authz, path: \"${CHECK}\", timeout: 5s, copy_to_client: [x-why] }
upstreams:
  origin: { endpoints: [\"http://${ORIGIN}\"] }
  authz: { endpoints: [\"http://${AUTHZ}\"] }
";
    let start = |check: &str| {
        Setup::new(config).before(&origin).variable("AUTHZ", authz.address()).variable("CHECK", check).start()
    };
    assert_eq!(start("/allowed").get("/x").status, 200);
    let refusing = start("/status/401");
    assert_eq!(refusing.get("/x").status, 401);
    assert_eq!(refusing.logged_path("/x")["reason"], "ext_authz.denied");
    let verdict = ["outcome=\"deny\"", "source=\"service\""];
    assert_eq!(refusing.metric("portcullis_plugin_ext_authz_verdicts_total", &verdict), 1.0);
    assert_eq!(refusing.metric("portcullis_upstream_duration_seconds_count", &["upstream=\"authz\""]), 1.0);
    let failing = start("/status/500");
    assert_eq!(failing.get("/x").status, 500);
    assert_eq!((origin.served(), authz.served() >= 3), (1, true));
}

#[test]
fn outgoing_requests_are_signed_and_ids_passed_on() {
    let (_origin, gateway) = with(
        "  - request_id: { trust: true }\n  - sign: { algorithm: hmac-sha256, key: \"file:key\", key_id: k1, components: [\"@method\", \"@path\"] }\n",
        &[("key", b"c2l4dGVlbiBieXRlcyBhbmQgc2l4dGVlbiBtb3JlIDE=")],
    );
    let answer = gateway.ask(&request("GET", "/signed").header("x-request-id", "mine-1"));
    let seen = answer.json();
    assert!(seen["headers"]["signature-input"].as_str().unwrap().contains("keyid=\"k1\""), "{seen}");
    assert!(
        seen["headers"]["signature"].is_string() && seen["headers"]["x-request-id"] == "mine-1",
        "{seen}"
    );
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    assert_eq!(gateway.logged_path("/signed")["id"], "mine-1");
}

#[test]
fn an_upload_through_every_runtime_that_the_client_cuts_off_leaves_nothing_behind() {
    let Some(module) = guest("stamp_response") else { return };
    let script = "fn on_request(ctx) { ctx.facts[\"seen\"] = ctx.request.path; }\n\
                  fn on_response(ctx) { ctx.response.headers[\"x-script\"] = \"yes\"; }\n\
                  fn on_log(ctx) { ctx.facts[\"logged\"] = ctx.outcome.end; }\n";
    let plugins = "  - body_limit: { request: 1MiB }\n  - rhai: { file: watch.rhai }\n  - wasm: { file: stamp.wasm, config: { header: x-module }, grants: { clock: true } }\n";
    let (_origin, gateway) = with(plugins, &[("watch.rhai", script.as_bytes()), ("stamp.wasm", &module)]);
    const CUT: usize = 20;
    for turn in 0..CUT {
        let mut client = gateway.connect();
        let head = format!("POST /echo/{turn} HTTP/1.1\r\nhost: g\r\ncontent-length: 100000\r\n\r\n");
        client.write(head.as_bytes()).unwrap();
        client.write(&[b'x'; 5000]).unwrap();
        until("it to be under way", || gateway.metric("portcullis_exchanges_open", &[]) == 1.0);
        drop(client);
        let line = gateway.logged_path(&format!("/echo/{turn}"));
        assert_eq!(
            (&line["reason"], &line["facts"]["logged"]),
            (&json!("body.incomplete"), &line["end"]),
            "{line}"
        );
        assert_eq!(line["facts"]["seen"], json!(format!("/echo/{turn}")));
        until("it to be over", || gateway.metric("portcullis_exchanges_open", &[]) == 0.0);
    }
    let answer = gateway.ask(&request("POST", "/echo").body(vec![b'x'; 100_000]));
    assert_eq!((answer.status, answer.body.len(), answer.header("x-script")), (200, 100_000, Some("yes")));
    assert_eq!(gateway.metric("portcullis_plugin_errors_total", &[]), 0.0);
    assert_eq!(gateway.metric("portcullis_whole_bodies_bytes", &[]), 0.0);
}
