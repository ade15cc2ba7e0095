//! What a plugin may take, at most: each limit of a plugin's table, and what the contract bounds for all of
//! them. Seen from outside: as the answer, and as the reason in the access log.

use portcullis_tests::tools::guest;
use portcullis_tests::{Answer, Gateway, Origin, Setup, request, until};
use serde_json::{Value, json};

fn with(plugins: &str, files: &[(&str, &[u8])]) -> (Origin, Gateway) {
    let origin = Origin::start();
    let config = format!("plugins:\n  - access_log: {{ target: access.log }}\n{plugins}");
    let setup = files.iter().fold(Setup::new(&config), |setup, (name, content)| setup.file(name, content));
    let gateway = setup.before(&origin).start();
    (origin, gateway)
}

/// The status and the reason in the access log.
fn told(gateway: &Gateway, path: &str) -> (Value, Value) {
    let line = gateway.logged_path(path);
    (line["status"].clone(), line["reason"].clone())
}

fn post(gateway: &Gateway, path: &str, media_type: &str, body: &[u8]) -> Answer {
    gateway.ask(&request("POST", path).header("content-type", media_type).body(body))
}

#[test]
fn an_exchange_holds_so_many_headers_and_facts() {
    let script = r##"
fn on_request(ctx) {
    switch ctx.request.path {
        "/names/within" => for n in 0..200 { ctx.request.headers[`x-${n}`] = "1"; }
        "/names/beyond" => for n in 0..300 { ctx.request.headers[`x-${n}`] = "1"; }
        "/facts/within" => for n in 0..60 { ctx.facts[`f${n}`] = n; }
        "/facts/beyond" => for n in 0..70 { ctx.facts[`f${n}`] = n; }
    }
}
fn on_response(ctx) {
    if ctx.request.path == "/response/beyond" {
        for n in 0..300 { ctx.response.headers[`x-${n}`] = "1"; }
    }
}
"##;
    let (origin, gateway) = with(
        "  - { name: hoarder, rhai: { file: h.rhai, limits: { time: 5s } } }\n",
        &[("h.rhai", script.as_bytes())],
    );
    assert_eq!(gateway.get("/names/within").status, 200);
    assert_eq!(gateway.get("/facts/within").status, 200);
    for (path, what) in [
        ("/names/beyond", "allowed number of headers"),
        ("/facts/beyond", "allowed number of facts"),
        ("/response/beyond", "allowed number of headers"),
    ] {
        assert_eq!(gateway.get(path).status, 500, "{path}");
        assert_eq!(told(&gateway, path), (json!(500), json!("plugin.budget")), "{path}");
        until("the execution log to say what", || gateway.log().contains(what));
    }
    assert_eq!(gateway.metric("portcullis_plugin_errors_total", &["hoarder", "error=\"budget\""]), 3.0);
    // The third was stopped on its way back.
    assert_eq!(origin.served(), 3);
}

#[test]
fn a_plugin_that_waits_is_not_waited_for_longer_than_its_timeout() {
    let (authz, origin) = (Origin::named("authz"), Origin::start());
    // The instance's own timeout, and the plugin's.
    for (plugin, reason) in [
        ("ext_authz: { upstream: authz, path: /hold, timeout: 1h }, timeout: 100ms", "plugin.timeout"),
        ("ext_authz: { upstream: authz, path: /hold, timeout: 100ms }, timeout: 1h", "plugin.failed"),
    ] {
        for (on_error, status) in [("deny", 500), ("allow", 200)] {
            let gateway = asking(&format!("{{ {plugin}, on_error: {on_error} }}"), &origin, &authz);
            assert_eq!(gateway.get("/x").status, status, "{plugin} {on_error}");
            let expected = if on_error == "deny" { json!(reason) } else { Value::Null };
            assert_eq!(told(&gateway, "/x"), (json!(status), expected));
        }
    }
    authz.release();
}

/// A gateway with a plugin that asks `authz`.
fn asking(plugin: &str, origin: &Origin, authz: &Origin) -> Gateway {
    let config = format!(
        "
plugins: [{{ access_log: {{ target: access.log }} }}, {plugin}]
upstreams:
  origin: {{ endpoints: [\"http://${{ORIGIN}}\"] }}
  authz: {{ endpoints: [\"http://${{AUTHZ}}\"] }}
"
    );
    Setup::new(&config).before(origin).variable("AUTHZ", authz.address()).start()
}

#[test]
fn an_endless_answer_of_an_external_service_is_its_failure() {
    let (authz, origin) = (Origin::named("authz"), Origin::start());
    for (path, status, reason) in
        [("/big/900000", 200, Value::Null), ("/big/1200000", 500, json!("plugin.failed"))]
    {
        let gateway = asking(
            &format!("{{ ext_authz: {{ upstream: authz, path: {path}, timeout: 30s }}, timeout: 30s }}"),
            &origin,
            &authz,
        );
        assert_eq!(gateway.get("/x").status, status, "{path}");
        assert_eq!(told(&gateway, "/x"), (json!(status), reason));
    }
    assert_eq!(origin.served(), 1);
}

#[test]
fn a_script_writes_so_many_lines_about_a_request() {
    let script = b"fn on_request(ctx) { for i in 0..100 { log(`counted ${i}`); } }";
    let (_origin, gateway) = with("  - rhai: { file: l.rhai }\n", &[("l.rhai", script)]);
    assert_eq!(gateway.get("/").status, 200);
    until("the last line", || gateway.log().contains("counted 15"));
    // What comes later was written later.
    assert_eq!(gateway.get("/").status, 200);
    until("the next request's", || gateway.log().matches("counted 15").count() == 2);
    assert_eq!(gateway.log().matches("counted ").count(), 32);
}

#[test]
fn an_answer_that_is_kept_is_asked_for_again_after_its_time() {
    let (authz, origin) = (Origin::named("authz"), Origin::start());
    let asked_in = |ttl: &str| {
        let cache = format!("cache: {{ ttl: {ttl}, key: [authorization] }}");
        asking(&format!("{{ ext_authz: {{ upstream: authz, {cache} }} }}"), &origin, &authz)
    };
    let long = asked_in("1h");
    assert!((0..5).all(|_| long.get("/x").status == 200));
    assert_eq!(authz.served(), 1);
    let short = asked_in("100ms");
    until("the answer to be too old", || {
        assert_eq!(short.get("/x").status, 200);
        authz.served() >= 3
    });
}

#[test]
fn a_connection_from_a_wrong_address_is_closed_unread() {
    let config = "
plugins: [{ access_log: { target: access.log } }]
listeners:
  - { name: main, bind: 127.0.0.1:0, plugins: [{ ip_filter: { allow: [127.0.0.1], at: connection } }] }
  - { name: closed, bind: 127.0.0.2:0, plugins: [{ ip_filter: { deny: [127.0.0.1], at: connection } }] }
";
    let origin = Origin::start();
    let gateway = Setup::new(config).before(&origin).start();
    assert_eq!(gateway.get("/").status, 200);
    let mut http = portcullis_tests::Http::connect(gateway.listener("closed")).expect("a connection");
    // What is sent may meet a socket that is closed already.
    let _ = http.write(b"GET /refused HTTP/1.1\r\nhost: g\r\n\r\n");
    assert!(http.answer("GET").is_err());
    until("the refusal to be counted", || gateway.metric("portcullis_connections_refused_total", &[]) == 1.0);
    assert_eq!(gateway.metric("portcullis_plugin_drops_total", &[]), 1.0);
    assert_eq!(origin.served(), 1);
}

/// A body in one line, with a secret over every boundary of the origin's chunks.
fn with_secrets(length: usize) -> (String, String) {
    let mut body = "x".repeat(length);
    let secret = " tok_0123456789abcdef ";
    for boundary in (16 << 10..length).step_by(16 << 10) {
        body.replace_range(boundary - 8..boundary - 8 + secret.len(), secret);
    }
    let masked = body.replace(secret, " *** ");
    (body, masked)
}

#[test]
fn a_body_is_masked_as_it_passes_however_it_is_cut() {
    let (_origin, gateway) =
        with("  - mask: { mode: stream, patterns: [\"/tok_[a-z0-9]{16}/\"], replace: \"***\" }\n", &[]);
    let (body, masked) = with_secrets(1 << 20);
    let answer = post(&gateway, "/echo", "text/plain", body.as_bytes());
    assert!(answer.status == 200 && masked.matches("***").count() == 63);
    assert!(answer.text() == masked, "{} secrets left", answer.text().matches("tok_").count());
    // What is no text passes as it is.
    assert!(post(&gateway, "/echo", "image/png", body.as_bytes()).text() == body);
}

#[test]
fn a_match_is_found_whole_up_to_its_configured_length() {
    let secret = format!("tok_{}", "a".repeat(3000));
    let body = format!("{}{secret}{}", "x".repeat((16 << 10) - 1000), "x".repeat(16 << 10));
    let masked_with = |max_match: &str| {
        let plugin = format!(
            "  - mask: {{ mode: stream, patterns: [\"/tok_a{{3000}}/\"], max_match: {max_match} }}\n"
        );
        let (_origin, gateway) = with(&plugin, &[]);
        post(&gateway, "/echo", "text/plain", body.as_bytes()).text()
    };
    assert!(masked_with("4KiB") == body.replace(&secret, "***"));
    // Cut by the boundary of two chunks, of which too little is held back.
    assert!(masked_with("64B") == body);
}

#[test]
fn a_body_that_is_masked_whole_has_a_limit() {
    let (_origin, gateway) = with("  - mask: { fields: [password], limit: 64KiB }\n", &[]);
    let document =
        |length: usize| format!("{{\"password\":\"s3cret\",\"filler\":\"{}\"}}", "f".repeat(length));
    let masked = post(&gateway, "/echo", "application/json", document(60_000).as_bytes());
    assert_eq!((masked.status, &masked.json()["password"]), (200, &json!("***")));
    assert_eq!(masked.body.len(), document(60_000).len() - 3);
    let refused = post(&gateway, "/long/echo", "application/json", document(70_000).as_bytes());
    assert!(refused.status == 502 && !refused.text().contains("s3cret"));
    assert_eq!(told(&gateway, "/long/echo"), (json!(502), json!("upstream.body_too_large")));
}

#[test]
fn bodies_are_bounded_both_ways() {
    let (_origin, gateway) = with("  - body_limit: { request: 1KiB, response: 64KiB }\n", &[]);
    let (within, beyond) = ([b'b'; 1024], [b'b'; 1025]);
    assert_eq!(post(&gateway, "/said", "text/plain", &within).status, 200);
    assert_eq!(post(&gateway, "/said/beyond", "text/plain", &beyond).status, 413);
    assert_eq!(told(&gateway, "/said/beyond"), (json!(413), json!("body_limit.too_large")));
    let mut http = gateway.connect();
    let chunk = format!("400\r\n{}\r\n", "c".repeat(1024));
    let head = "POST /unsaid HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n";
    assert!(http.write(format!("{head}{chunk}{chunk}").as_bytes()).is_ok());
    assert_eq!(http.answer("POST").map(|answer| answer.status).ok(), Some(413));
    // A response that says its length is refused before it begins, another one breaks off.
    assert_eq!(gateway.get("/big/60000").body.len(), 60_000);
    assert!(gateway.connect().ask(&request("GET", "/big/70000")).is_err());
    assert_eq!(gateway.logged_path("/big/70000")["reason"], "body_limit.response_too_large");
    let (_origin, gateway) = with("  - body_limit: { response: 4B }\n", &[]);
    assert_eq!((gateway.get("/body/four").status, gateway.get("/body/fives").status), (200, 502));
}

#[test]
fn a_document_is_bounded_in_length_and_depth() {
    let (_origin, gateway) = with("  - json_schema: { schema: {}, limit: 1KiB, max_depth: 3 }\n", &[]);
    let judge = |path: &str, body: &str| {
        post(&gateway, path, "application/json", body.as_bytes());
        told(&gateway, path)
    };
    let long = |length: usize| format!("\"{}\"", "s".repeat(length - 2));
    assert_eq!(judge("/long/within", &long(1024)), (json!(200), Value::Null));
    assert_eq!(judge("/long/beyond", &long(1025)), (json!(413), json!("body.too_large")));
    assert_eq!(judge("/deep/within", "[[[1]]]"), (json!(200), Value::Null));
    assert_eq!(judge("/deep/beyond", "[[[[1]]]]"), (json!(400), json!("json_schema.too_deep")));
}

#[test]
fn a_signature_bounds_the_body_and_its_own_life() {
    let plugin =
        "  - sign: { algorithm: hmac-sha256, key: \"file:key\", digest: true, limit: 1KiB, expires: 60s }\n";
    let (_origin, gateway) = with(plugin, &[("key", b"c2l4dGVlbiBieXRlcyBhbmQgc2l4dGVlbiBtb3JlIDE=")]);
    let seen = post(&gateway, "/within", "text/plain", &[b'b'; 1024]).json();
    let input = seen["headers"]["signature-input"].as_str().unwrap_or_default().to_owned();
    let parameter = |name: &str| {
        let rest = input.split_once(&format!(";{name}="))?.1;
        rest.split(';').next()?.parse::<u64>().ok()
    };
    assert!(parameter("created").is_some(), "{input}");
    assert_eq!(parameter("expires"), parameter("created").map(|created| created + 60));
    assert_eq!(post(&gateway, "/beyond", "text/plain", &[b'b'; 1025]).status, 413);
}

#[test]
fn a_preflight_holds_for_its_time() {
    let (_origin, gateway) = with("  - cors: { origins: [\"https://app.test\"], max_age: 90s }\n", &[]);
    let preflight = request("OPTIONS", "/")
        .header("origin", "https://app.test")
        .header("access-control-request-method", "GET");
    assert_eq!(gateway.ask(&preflight).header("access-control-max-age"), Some("90"));
}

/// What a script does, to a harmless degree or, with `?beyond=`, beyond its limit.
const SCRIPT_LIMITS: [(&str, &str, &str); 6] = [
    ("operations", "1000", "let sum = 0; for n in 0..(if more { 5000 } else { 50 }) { sum += n; }"),
    ("depth", "4", "down(if more { 8 } else { 1 });"),
    ("string", "64B", "let s = \"s\"; s.pad(if more { 65 } else { 60 }, \"s\");"),
    ("array", "8", "let a = []; for n in 0..(if more { 9 } else { 7 }) { a.push(n); }"),
    (
        "map",
        "8",
        "let m = #{}; for n in 0..(if more { 9 } else { 7 }) { let one = #{}; one[`k${n}`] = n; m += one; }",
    ),
    ("time", "50ms", "if more { loop { let x = 1; } }"),
];

#[test]
fn every_limit_of_a_script_bites() {
    let mut setup_files = Vec::new();
    let mut routes = String::new();
    for (limit, value, does) in SCRIPT_LIMITS {
        let script = format!(
            "fn down(n) {{ if n > 0 {{ down(n - 1); }} }}\nfn on_request(ctx) {{ let more = ctx.request.query(\"beyond\") != (); {does} }}\n"
        );
        // Whatever is not meant to bite is far away.
        let others = match limit {
            "operations" => "time: 30s",
            "time" => "operations: 1000000000",
            _ => "operations: 100000, time: 30s",
        };
        routes += &format!(
            "  - {{ match: {{ path: /{limit} }}, respond: {{ status: 204 }}, plugins: [{{ rhai: {{ file: {limit}.rhai, limits: {{ {limit}: {value}, {others} }} }} }}] }}\n"
        );
        setup_files.push((format!("{limit}.rhai"), script));
    }
    let config =
        format!("plugins: [{{ access_log: {{ target: access.log, query: true }} }}]\nroutes:\n{routes}");
    let gateway =
        setup_files.iter().fold(Setup::new(&config), |setup, (name, text)| setup.file(name, text)).start();
    for (limit, ..) in SCRIPT_LIMITS {
        assert_eq!(gateway.get(&format!("/{limit}")).status, 204, "{limit}");
        assert_eq!(gateway.get(&format!("/{limit}?beyond=1")).status, 500, "{limit}");
        let path = format!("/{limit}");
        let line = gateway.logged(limit, |line| line["path"] == path && line["status"] == 500);
        assert_eq!(line["reason"], "plugin.budget", "{line}");
        until("the limit in the execution log", || {
            gateway.log().contains(&format!("{limit}.rhai"))
                && gateway.log().contains(&format!("limits.{limit}"))
        });
    }
}

#[test]
fn a_script_gets_bodies_up_to_its_limit() {
    let script = "fn on_request_body(ctx) { }\nfn on_response_body(ctx) { }\n";
    let (_origin, gateway) =
        with("  - rhai: { file: b.rhai, body_limit: 64KiB }\n", &[("b.rhai", script.as_bytes())]);
    bodies_end_at_64_kib(&gateway);
}

#[test]
fn a_module_gets_bodies_up_to_its_limit() {
    let Some(module) = guest("hostile") else { return };
    let (_origin, gateway) =
        with("  - wasm: { file: m.wasm, body_limit: 64KiB, cpu: 100ms }\n", &[("m.wasm", &module)]);
    bodies_end_at_64_kib(&gateway);
}

fn bodies_end_at_64_kib(gateway: &Gateway) {
    assert_eq!(post(gateway, "/within", "text/plain", &[b'b'; 64 << 10]).status, 200);
    assert_eq!(post(gateway, "/beyond", "text/plain", &[b'b'; (64 << 10) + 1]).status, 413);
    assert_eq!(told(gateway, "/beyond"), (json!(413), json!("body.too_large")));
    assert_eq!((gateway.get("/big/65536").status, gateway.get("/big/65537").status), (200, 502));
    assert_eq!(told(gateway, "/big/65537"), (json!(502), json!("upstream.body_too_large")));
}

#[test]
fn the_memory_and_the_time_of_a_module_are_what_its_configuration_says() {
    let Some(module) = guest("hostile") else { return };
    for (act, limits) in [("bomb", "memory: 4MiB, cpu: 1s"), ("spin", "memory: 16MiB, cpu: 20ms")] {
        let plugin = format!("  - wasm: {{ file: m.wasm, {limits}, config: {{ on_request: {act} }} }}\n");
        let (_origin, gateway) = with(&plugin, &[("m.wasm", &module)]);
        assert_eq!(gateway.get("/x").status, 500, "{act}");
        assert_eq!(told(&gateway, "/x"), (json!(500), json!("plugin.budget")), "{act}");
        let what = if act == "bomb" { "more than 4MiB of memory" } else { "used up its 20ms of CPU" };
        until("the limit in the execution log", || gateway.log().contains(what));
    }
}

#[test]
fn an_instance_serves_as_many_exchanges_as_allowed() {
    let Some(module) = guest("hostile") else { return };
    // The connection is the first that it serves.
    let plugin = "  - wasm: { file: m.wasm, isolation: { reuse: 3 }, config: { on_response: count } }\n";
    let (_origin, gateway) = with(plugin, &[("m.wasm", &module)]);
    let mut http = gateway.connect();
    let mut count = |path: &str| {
        let answer = http.ask(&request("GET", path)).expect("an answer");
        // Its last hook is over before the next exchange asks for it.
        gateway.logged_path(path);
        answer.header("x-count").and_then(|count| count.parse::<u32>().ok())
    };
    let (first, second, third) = (count("/1"), count("/2"), count("/3"));
    assert!(first.is_some() && second > first && third == first, "{first:?} {second:?} {third:?}");
}
