use portcullis_plugin::{Content, Decision, ExchangeBuilder, PluginTester, TestedPlugin};
use serde_json::{Value, json};

use super::*;
use crate::origins::MAX_ORIGIN;

const APP: &str = "https://app.example.com";

fn build(table: Value) -> TestedPlugin {
    PluginTester::new().build::<Cors>(table).unwrap()
}

fn preflight(plugin: &TestedPlugin, origin: &str, headers: &[(&str, &str)]) -> Reply {
    let builder = ExchangeBuilder::request(Method::OPTIONS, "/")
        .header("origin", origin)
        .header("access-control-request-method", "DELETE");
    let mut exchange = headers.iter().fold(builder, |it, (name, value)| it.header(name, value)).build();
    match plugin.on_request(&mut exchange).unwrap() {
        Decision::Respond(reply) => *reply,
        other => panic!("a preflight is answered: {other:?}"),
    }
}

/// The CORS headers and `Vary` of a response to a request from `origin`, sorted.
fn marked(plugin: &TestedPlugin, origin: Option<&str>, upstream: &[(&'static str, &str)]) -> Vec<String> {
    let builder = ExchangeBuilder::get("/").response(200, upstream, "");
    let builder = origin.into_iter().fold(builder, |it, origin| it.header("origin", origin));
    let mut exchange = builder.build();
    assert!(matches!(plugin.on_request(&mut exchange), Ok(Decision::Continue)));
    assert!(matches!(plugin.on_response(&mut exchange), Ok(Decision::Continue)));
    let headers = exchange.response().unwrap().headers();
    let mut lines: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    lines.sort();
    lines
}

fn allowed(plugin: &TestedPlugin, origin: &str) -> bool {
    marked(plugin, Some(origin), &[]).iter().any(|line| line.starts_with("access-control-allow-origin"))
}

#[test]
fn a_preflight_is_told_what_is_allowed() {
    let plugin = build(json!({
        "origins": [APP], "methods": ["GET", "DELETE"], "headers": ["x-a", "x-b"], "credentials": true,
        "max_age": "10m", "private_network": true,
    }));
    let reply = preflight(&plugin, APP, &[("access-control-request-private-network", "true")]);
    assert_eq!((reply.status.as_u16(), &reply.reason), (204, &None));
    assert_eq!(reply.content, Content::Bytes("".into()));
    for (name, value) in [
        ("access-control-allow-origin", APP),
        ("access-control-allow-methods", "GET, DELETE"),
        ("access-control-allow-headers", "x-a, x-b"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
        ("access-control-allow-private-network", "true"),
    ] {
        assert_eq!(reply.headers[name], value, "{name}");
    }
    let vary = reply.headers[VARY].to_str().unwrap();
    for name in ["Origin", "Request-Method", "Request-Headers", "Request-Private-Network"] {
        assert!(vary.contains(name), "{vary}");
    }
    assert!(!preflight(&plugin, APP, &[]).headers.contains_key(ALLOW_PRIVATE_NETWORK));
}

#[test]
fn any_gives_what_is_asked_for() {
    let plugin = build(json!({"origins": ["*"], "methods": "any", "headers": "any"}));
    let reply = preflight(&plugin, APP, &[("access-control-request-headers", "x-one,x-two")]);
    assert_eq!(reply.headers[ACCESS_CONTROL_ALLOW_METHODS], "DELETE");
    assert_eq!(reply.headers[ACCESS_CONTROL_ALLOW_HEADERS], "x-one,x-two");
    assert_eq!(reply.headers[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
}

#[test]
fn another_origins_preflight_gets_nothing_or_a_refusal() {
    let reply = preflight(&build(json!({"origins": [APP]})), "https://evil.example", &[]);
    assert_eq!(reply.status, 204);
    assert_eq!(reply.headers.keys().collect::<Vec<_>>(), [VARY]);
    let reply = preflight(&build(json!({"origins": [APP], "reject": true})), "https://evil.example", &[]);
    assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (403, Some(ORIGIN_NOT_ALLOWED)));
    assert!(reply.headers.contains_key(VARY));
}

#[test]
fn an_options_request_that_is_no_preflight_goes_on() {
    let plugin = build(json!({"origins": [APP]}));
    let mut exchange = ExchangeBuilder::request(Method::OPTIONS, "/").header("origin", APP).build();
    assert!(matches!(plugin.on_request(&mut exchange), Ok(Decision::Continue)));
}

#[test]
fn a_preflights_own_answer_is_left_as_it_is() {
    let plugin = build(json!({"origins": [APP]}));
    let mut exchange = ExchangeBuilder::request(Method::OPTIONS, "/")
        .header("origin", APP)
        .header("access-control-request-method", "GET")
        .response(204, &[("access-control-allow-methods", "GET")], "")
        .build();
    plugin.on_response(&mut exchange).unwrap();
    assert!(exchange.response().unwrap().headers().contains_key(ACCESS_CONTROL_ALLOW_METHODS));
}

#[test]
fn responses_say_what_is_allowed_and_on_what_that_depends() {
    let plugin = build(json!({"origins": [APP], "credentials": true, "expose_headers": ["x-a", "x-b"]}));
    let full = [
        "access-control-allow-credentials: true",
        "access-control-allow-origin: https://app.example.com",
        "access-control-expose-headers: x-a, x-b",
        "vary: Origin",
    ];
    assert_eq!(marked(&plugin, Some(APP), &[]), full);
    assert_eq!(marked(&plugin, Some("https://evil.example"), &[]), ["vary: Origin"]);
    assert_eq!(marked(&plugin, None, &[]), ["vary: Origin"]);
    assert_eq!(
        marked(&plugin, None, &[("vary", "accept, origin")]),
        ["vary: accept, origin"],
        "what is said is not repeated"
    );
    assert_eq!(marked(&plugin, None, &[("vary", "accept")]), ["vary: Origin", "vary: accept"]);
    assert_eq!(
        marked(&plugin, None, &[("access-control-allow-origin", "*"), ("access-control-max-age", "1")]),
        ["vary: Origin"],
        "the upstream's word is replaced"
    );
}

#[test]
fn all_origins_get_the_same_answer() {
    let plugin = build(json!({"origins": ["*"]}));
    assert_eq!(marked(&plugin, Some(APP), &[]), ["access-control-allow-origin: *"]);
    assert_eq!(marked(&plugin, None, &[]), ["access-control-allow-origin: *"]);
}

#[test]
fn origins_match_whole() {
    let plugin = build(json!({"origins": [
        "https://App.example.com", "https://*.example.org", "https://*.example.net:8443", r"/https://pr-[0-9]+\.example\.dev/",
    ]}));
    for origin in [
        APP,
        "https://a.example.org",
        "https://a.b.example.org",
        "https://a.example.net:8443",
        "https://pr-7.example.dev",
    ] {
        assert!(allowed(&plugin, origin), "{origin}");
    }
    for origin in [
        "https://app.example.com.evil.test",
        "http://app.example.com",
        "https://app.example.com:444",
        "https://example.org",
        "https://.example.org",
        "https://evil.test/.example.org",
        "https://evil.test:1@a.example.org",
        "https://aexample.org",
        "https://a.example.net",
        "https://pr-7.example.dev.evil.test",
        "xhttps://pr-7.example.dev",
        "https://pr-7xexample.dev",
        "null",
        "",
    ] {
        assert!(!allowed(&plugin, origin), "{origin}");
    }
}

#[test]
fn an_origin_that_no_browser_has_is_not_searched() {
    let plugin = build(json!({"origins": [r"/https://[a-z.]+/"]}));
    let origin = |length: usize| format!("https://{}", "a".repeat(length - "https://".len()));
    assert!(allowed(&plugin, &origin(MAX_ORIGIN)) && !allowed(&plugin, &origin(MAX_ORIGIN + 1)));
}

#[test]
fn what_browsers_or_attackers_would_make_of_it_is_refused_at_build() {
    let error = |table| PluginTester::new().build::<Cors>(table).err().unwrap();
    let both = error(json!({"origins": [APP, "*"], "credentials": true}));
    assert_eq!(both.path, "origins[1]");
    for wrong in ["example.com", "https://a.example/", "https://", "https://a.*.example", "https://*", "/(/"]
    {
        assert_eq!(error(json!({"origins": [APP, wrong]})).path, "origins[1]", "{wrong}");
    }
    assert_eq!(error(json!({"origins": []})).path, "origins");
    assert_eq!(error(json!({"origins": [APP], "headers": ["a", "b c"]})).path, "headers[1]");
    assert_eq!(error(json!({"origins": [APP], "methods": ["GET", "P T"]})).path, "methods[1]");
}

#[test]
fn what_looks_wrong_is_remarked_on() {
    for (origin, credentials, remark) in [
        ("null", false, "sandboxed"),
        ("http://a.example", true, "plain-http"),
        ("https://a.example:443", false, "never matches"),
        ("/.*/", false, "any origin"),
        (r"/https://.+/", false, "any origin"),
        (r"/https://a.example\.com/", false, "unescaped dot"),
    ] {
        let mut tester = PluginTester::new();
        tester.build::<Cors>(json!({"origins": [origin], "credentials": credentials})).unwrap();
        let warnings = tester.warnings();
        assert!(warnings.len() == 1 && warnings[0].message.contains(remark), "{origin}: {warnings:?}");
        assert_eq!(warnings[0].path, "origins[0]");
    }
}
