//! What the SDK's guest does, see `tests/guests/http_wasm`. Without it these tests say so and pass, unless
//! `PORTCULLIS_REQUIRE_GUESTS=1` is set.

use super::*;

fn tester() -> Option<PluginTester> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guests/http_wasm_handler.wasm");
    match std::fs::read(path) {
        Ok(module) => Some(PluginTester::new().file("m.wasm", module)),
        Err(error) if std::env::var_os("PORTCULLIS_REQUIRE_GUESTS").is_some() => panic!("{path}: {error}"),
        Err(_) => {
            println!("left out: there is no {path}; run tests/wasm-cargo tests/guests/http_wasm");
            None
        }
    }
}

/// A plugin whose guest has all features, and its exchanges.
fn guest(more: Value) -> Option<(TestedPlugin, PluginTester)> {
    let mut tester = tester()?;
    let mut table = json!({ "config": "buffer", "cpu": "100ms" });
    table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let plugin = build(&mut tester, table).unwrap();
    Some((plugin, tester))
}

fn doing(act: &str) -> ExchangeBuilder {
    ExchangeBuilder::get("/path?q=1").header("x-do", act).header("x-list", "1").header("x-list", "2")
}

#[test]
fn a_request_is_read_and_changed() {
    let Some((plugin, tester)) = guest(json!({})) else { return };
    assert!(tester.warnings().is_empty(), "{:?}", tester.warnings());
    let mut exchange = doing("rewrite").header("x-gone", "1").header("x-set", "old").build();
    continues(plugin.on_request(&mut exchange));
    assert_eq!(found(&exchange), Some("PUT /changed?by=guest"));
    let headers = exchange.request().headers();
    let list: Vec<_> = headers.get_all("x-list").iter().collect();
    assert_eq!(list, ["1", "2", "a", "b"]);
    assert_eq!(headers["x-set"], "new");
    assert!(!headers.contains_key("x-gone"));
    let mut exchange = doing("facts").peer("2001:db8::1").build();
    continues(plugin.on_request(&mut exchange));
    assert_eq!(found(&exchange), Some("[2001:db8::1] HTTP/1.1 2 2 buffer"));
}

#[test]
fn an_answer_of_the_guests_is_one() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let mut exchange = doing("refuse").response(429, &[], "").build();
    let (status, reason, body, headers) = reply(plugin.on_request(&mut exchange));
    assert_eq!((status, reason.as_deref(), &*body), (429, Some("wasm.local_response"), &b"too many"[..]));
    assert_eq!(headers["x-by"], "guest");
    // Nobody asks it about the response to that.
    continues(plugin.on_response(&mut exchange));
    assert!(found_back(&exchange).is_none());
}

#[test]
fn a_body_is_waited_for_only_if_the_guest_asks_for_it() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    for (act, body, expected, sees) in [
        ("nothing", "hello", None, None),
        ("read", "hello", None, Some("hello")),
        ("upper", "hello", Some("HELLO"), None),
        ("replace", "hello", Some("instead"), None),
    ] {
        let mut exchange = doing(act).body(body).build();
        let held = exchange.core().request_body.take();
        continues(plugin.on_request(&mut exchange));
        assert!(!exchange.is_hollow());
        let wanted = plugin.plugin().wants_request_body(&exchange);
        assert_eq!(wanted, expected.is_some() || sees.is_some(), "{act}");
        exchange.core().request_body = held;
        continues(plugin.call(HookName::OnRequestBody, &mut exchange));
        assert_eq!(exchange.request_body().unwrap(), expected.unwrap_or(body), "{act}");
        assert_eq!(found(&exchange), sees, "{act}");
        assert!(!plugin.plugin().wants_request_body(&exchange));
    }
    // A request without a body has an empty one, at once; and may be given one.
    let mut exchange = doing("read").build();
    continues(plugin.on_request(&mut exchange));
    assert_eq!(found(&exchange), Some(""));
    // It may refuse what it has read.
    let mut exchange = doing("judge-body").body("bad thing").build();
    let held = exchange.core().request_body.take();
    continues(plugin.on_request(&mut exchange));
    exchange.core().request_body = held;
    let (status, _, body, _) = reply(plugin.call(HookName::OnRequestBody, &mut exchange));
    assert_eq!((status, &*body), (422, &b"no such body"[..]));
}

#[test]
fn a_response_is_read_and_changed() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let respond = |act: &str| {
        let mut exchange = doing(act).response(200, &[("x-kind", "plain")], "hello").build();
        let held = exchange.core().response_body.take();
        continues(plugin.on_request(&mut exchange));
        continues(plugin.on_response(&mut exchange));
        let wanted = plugin.plugin().wants_response_body(&exchange);
        exchange.core().response_body = held;
        continues(plugin.call(HookName::OnResponseBody, &mut exchange));
        assert!(!exchange.is_hollow() && !plugin.plugin().wants_response_body(&exchange));
        (exchange, wanted)
    };
    let (exchange, wanted) = respond("response");
    assert_eq!((found_back(&exchange), wanted), (Some("200 41 false"), false));
    let response = exchange.response().unwrap();
    assert!(response.status() == 202 && !response.headers().contains_key("x-kind"));
    let (exchange, wanted) = respond("read-back");
    assert_eq!((found_back(&exchange), wanted), (Some("hello"), true));
    let (exchange, wanted) = respond("upper-back");
    assert_eq!((&**exchange.response_body().unwrap(), wanted), (&b"HELLO"[..], true));
    let (exchange, wanted) = respond("replace-back");
    assert_eq!((&**exchange.response_body().unwrap(), wanted), (&b"instead"[..], true));
    // What is said before there is a response is said of the one that comes.
    let (exchange, _) = respond("early");
    let headers = exchange.response().unwrap().headers();
    let kinds: Vec<_> = headers.get_all("x-kind").iter().collect();
    assert_eq!(headers["x-early"], "set");
    assert_eq!(kinds, ["plain", "added"]);
}

#[test]
fn what_another_response_replaces_gets_nothing_that_was_written_for_the_first() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let mut exchange = doing("replace-back").response(200, &[], "hello").build();
    continues(plugin.on_request(&mut exchange));
    continues(plugin.on_response(&mut exchange));
    assert!(plugin.plugin().wants_response_body(&exchange));
    continues(plugin.on_response(&mut exchange));
    assert!(!plugin.plugin().wants_response_body(&exchange));
}

#[test]
fn who_waits_for_a_body_that_nobody_sends_any_more_is_let_go() {
    let Some((plugin, tester)) = guest(json!({})) else { return };
    let mut exchange = doing("read").body("x").response(403, &[], "").build();
    exchange.core().request_body = None;
    continues(plugin.on_request(&mut exchange));
    continues(plugin.on_response(&mut exchange));
    assert!(found_back(&exchange).is_none() && !plugin.plugin().wants_response_body(&exchange));
    assert_eq!(tester.counted("instances", &["made"]), tester.counted("instances", &["ended"]));
    // Nor does one stay behind with an exchange that ends.
    let mut exchange = doing("read").body("x").build();
    exchange.core().request_body = None;
    continues(plugin.on_request(&mut exchange));
    drop(exchange);
    assert_eq!(tester.counted("instances", &["made"]), tester.counted("instances", &["ended"]));
}

#[test]
fn trailers_are_told_with_the_body() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let told = |name: &'static str, value: &'static str| {
        let pair = (http::HeaderName::from_static(name), http::HeaderValue::from_static(value));
        Some(Box::new(http::HeaderMap::from_iter([pair])))
    };
    let mut exchange = doing("trailers").body("x").response(200, &[], "y").build();
    let (request, response) = (exchange.core().request_body.take(), exchange.core().response_body.take());
    continues(plugin.on_request(&mut exchange));
    exchange.core().request_body = request;
    exchange.core().request_trailers = told("x-told", "to");
    continues(plugin.call(HookName::OnRequestBody, &mut exchange));
    assert_eq!(found(&exchange), Some("to,"));
    assert_eq!(exchange.request_trailers().unwrap()["x-more"], "1");
    continues(plugin.on_response(&mut exchange));
    exchange.core().response_body = response;
    exchange.core().response_trailers = told("x-checksum", "fro");
    continues(plugin.call(HookName::OnResponseBody, &mut exchange));
    assert_eq!(found_back(&exchange), Some("fro,"));
    assert_eq!(exchange.response_trailers().unwrap()["x-more"], "2");
}

#[test]
fn without_the_features_the_response_is_out_of_reach() {
    let Some((plugin, _)) = guest(json!({ "config": "plain" })) else { return };
    for act in ["read-back", "replace-back", "trailers"] {
        let mut exchange = doing(act).body("x").response(200, &[], "hello").build();
        let verdict = plugin.on_request(&mut exchange);
        let error = verdict.and_then(|_| plugin.on_response(&mut exchange)).unwrap_err();
        assert!(error.kind() == ErrorKind::Trap && error.message().contains("feature"), "{error}");
    }
    // One may be enabled for an exchange, and is for that one only.
    for (act, goes_well) in [("late", true), ("read-back", false)] {
        let mut exchange = doing(act).response(200, &[], "hello").build();
        continues(plugin.on_request(&mut exchange));
        let verdict = plugin.on_response(&mut exchange);
        assert_eq!(verdict.is_ok(), goes_well, "{act}");
    }
    let mut exchange = doing("change-late").response(200, &[], "").build();
    continues(plugin.on_request(&mut exchange));
    let error = plugin.on_response(&mut exchange).unwrap_err();
    assert!(error.message().contains("can't be changed any more"), "{error}");
}

#[test]
fn an_exchange_has_an_instance_of_its_own_unless_some_share_one() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let served = |plugin: &TestedPlugin| {
        let mut exchange = doing("served").response(200, &[], "").build();
        continues(plugin.on_request(&mut exchange));
        continues(plugin.on_response(&mut exchange));
        found(&exchange).unwrap().to_owned()
    };
    assert_eq!([served(&plugin), served(&plugin)], ["1", "1"]);
    let Some((plugin, tester)) = guest(json!({ "isolation": { "reuse": 2 } })) else { return };
    assert_eq!([served(&plugin), served(&plugin), served(&plugin)], ["1", "2", "1"]);
    assert_eq!(tester.counted("starts", &["reused"]), Some(1));
    // One that is in use is nobody else's.
    let mut first = doing("served").build();
    continues(plugin.on_request(&mut first));
    assert_eq!(served(&plugin), "1");
}

#[test]
fn a_failure_hurts_its_own_exchange_only() {
    let Some((plugin, tester)) = guest(json!({ "cpu": "50ms", "isolation": { "reuse": 100 } })) else {
        return;
    };
    for (act, kind, says) in [
        ("trap", ErrorKind::Trap, "handle_request trapped"),
        ("spin", ErrorKind::Budget, "handle_request used up its 50ms of CPU"),
        ("bomb", ErrorKind::Budget, "handle_request asked for more than 16MiB of memory"),
        ("flood", ErrorKind::Budget, "wrote more than its `body_limit`"),
        ("trap-response", ErrorKind::Trap, "handle_response trapped"),
        ("spin-response", ErrorKind::Budget, "handle_response used up its 50ms of CPU"),
    ] {
        let mut other = doing("served").response(200, &[], "").build();
        continues(plugin.on_request(&mut other));
        let mut exchange = doing(act).response(200, &[], "x").build();
        let verdict = plugin.on_request(&mut exchange);
        let error = verdict.and_then(|_| plugin.on_response(&mut exchange)).unwrap_err();
        assert!(error.kind() == kind && error.message().contains(says), "{act}: {error}");
        // It is asked nothing more of that exchange, which is whole.
        continues(plugin.on_response(&mut exchange));
        assert_eq!(exchange.request().path(), "/path");
        continues(plugin.on_response(&mut other));
    }
    let ended = tester.counted("instances", &["ended"]);
    assert!(ended >= Some(6), "{ended:?}");
}

#[test]
fn a_guest_that_refuses_its_configuration_is_an_error_of_the_load() {
    let Some(mut tester) = tester() else { return };
    let error = build(&mut tester, json!({ "config": "refuse" })).err().unwrap();
    assert!(error.path == "file" && error.message.contains("the module's start trapped"), "{error}");
    assert_eq!(build(&mut tester, json!({ "config": [1] })).err().unwrap().path, "config");
}
