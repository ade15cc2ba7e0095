//! What the SDK's guest does, see `tests/guests/proxy_wasm`. Without it these tests say so and pass, unless
//! `PORTCULLIS_REQUIRE_GUESTS=1` is set.

use std::time::Duration;

use portcullis_plugin::{Filtered, OutboundError, TlsSession, Trailers};

use super::*;

fn module() -> Option<Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guests/proxy_wasm_guest.wasm");
    match std::fs::read(path) {
        Ok(module) => Some(module),
        Err(error) if std::env::var_os("PORTCULLIS_REQUIRE_GUESTS").is_some() => panic!("{path}: {error}"),
        Err(_) => {
            println!("left out: there is no {path}; run tests/wasm-cargo tests/guests/proxy_wasm");
            None
        }
    }
}

fn tester() -> Option<PluginTester> {
    let answer = |request: &http::Request<Bytes>| {
        let response = |status: u16, body: String| {
            let mut response = http::Response::builder().status(status).header("x-kind", "plain");
            if request.uri().path().starts_with("/a.B") {
                let trailers = http::HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    http::HeaderValue::from_static(if status == 200 { "0" } else { "7" }),
                )]);
                response = response.extension(Trailers(trailers));
            }
            Ok(response.body(Bytes::from(body)).unwrap())
        };
        let host = request.headers().get("host").map_or("", |host| host.to_str().unwrap());
        match request.uri().path() {
            "/ok" => response(200, format!("{} {host} {:?}", request.method(), request.body())),
            "/no" => response(403, "go away".into()),
            "/a.B/C" => response(200, String::from_utf8(request.body().to_vec()).unwrap()),
            "/late" => Err(OutboundError::Timeout),
            path => response(200, path.into()),
        }
    };
    Some(PluginTester::new().file("m.wasm", module()?).upstream("backend", answer))
}

fn options(more: Value) -> Value {
    let mut options = json!({ "proxy_wasm": { "upstreams": { "api": "backend" } }, "cpu": "100ms" });
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    options
}

/// A plugin that calls the upstream `api`, and its exchanges.
fn guest(more: Value) -> Option<(TestedPlugin, PluginTester)> {
    let mut tester = tester()?;
    let plugin = build_in(&mut tester, options(more)).unwrap();
    Some((plugin, tester))
}

fn doing(act: &str) -> ExchangeBuilder {
    ExchangeBuilder::get("/path?q=1").header("x-do", act).header("x-gone", "1").header("x-set", "old")
}

/// What the guest finds in the request's hook.
#[track_caller]
fn found(plugin: &TestedPlugin, act: &str) -> String {
    let mut exchange = doing(act).build();
    continues(plugin.on_request(&mut exchange));
    header(&exchange, "x-found").unwrap_or("nothing").into()
}

#[test]
fn a_module_for_proxy_wasm_is_told_by_what_it_exports() {
    let Some((plugin, tester)) = guest(json!({})) else { return };
    let needs = plugin.plugin().needs();
    assert!(needs.wants(HookName::OnRequest) && needs.wants(HookName::OnLog));
    assert!(needs.wants(HookName::OnResponse) && !needs.wants(HookName::OnUpstream));
    assert!(tester.warnings().is_empty(), "{:?}", tester.warnings());
}

#[test]
fn headers_are_read_and_changed() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let mut exchange = doing("headers").body("some").build();
    continues(plugin.on_request(&mut exchange));
    assert_eq!(header(&exchange, "x-found"), Some("a,b changed.test false"));
    assert_eq!((header(&exchange, "x-set"), header(&exchange, "x-gone")), (Some("new"), None));
    let request = exchange.request();
    assert_eq!((request.target().as_str(), request.method().as_str()), ("/changed?by=guest", "PUT"));
    assert_eq!((request.host(), request.headers().get_all("x-list").iter().count()), ("changed.test", 2));
    let mut exchange = doing("all-headers").build();
    continues(plugin.on_request(&mut exchange));
    assert_eq!(header(&exchange, "x-gone"), None);
    let new: Vec<_> =
        exchange.request().headers().get_all("x-new").iter().map(|new| new.as_bytes()).collect();
    assert_eq!((new, exchange.request().host()), (vec![&b"1"[..], b"2"], "gateway.test"));
}

#[test]
fn a_guest_answers_for_itself() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let (status, reason, body, headers) = refusal(plugin.on_request(&mut doing("refuse").build()));
    assert_eq!((status, reason.as_str(), &body[..]), (429, "wasm.local_response", &b"too many"[..]));
    assert_eq!(headers["x-by"], "guest");
    assert!(matches!(plugin.on_request(&mut doing("close").build()), Ok(Decision::Drop)));
    let mut exchange = doing("replace").response(200, &[], "").build();
    continues(plugin.on_request(&mut exchange));
    assert_eq!(refusal(plugin.on_response(&mut exchange)).0, 418);
}

#[test]
fn responses_are_read_and_changed() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let mut exchange = doing("response").response(200, &[("x-kind", "plain")], "").build();
    continues(plugin.on_request(&mut exchange));
    continues(plugin.on_response(&mut exchange));
    let response = exchange.response().unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["x-was"].as_bytes()), (202, &b"200"[..]));
    assert!(!response.headers().contains_key("x-kind"));
}

#[test]
fn a_paused_request_goes_on_with_the_answer_of_a_call() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    assert_eq!(found(&plugin, "call /ok"), "200 plain POST api.test b\"asked\" 2");
    let (status, _, body, headers) = refusal(plugin.on_request(&mut doing("call /no").build()));
    assert_eq!(
        (status, &body[..], &headers["x-by"]),
        (403, &b"go away"[..], &http::HeaderValue::from_static("call"))
    );
    // Nothing came of it, which is told as Envoy does.
    assert_eq!(found(&plugin, "call /late"), "504  upstream request timeout 3");
    // What no path is, and whom nobody has granted, is told at once.
    assert_eq!(found(&plugin, "call nowhere"), "BadArgument");
    assert_eq!(found(&plugin, "stranger"), "BadArgument");
}

#[test]
fn grpc_calls_are_framed_and_their_status_is_what_trailers_say() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    assert_eq!(found(&plugin, "grpc hello"), "0 hello");
}

#[test]
fn a_request_paused_at_its_headers_has_its_body_gathered() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let mut exchange = doing("gather").body("whole").build();
    continues(plugin.on_request(&mut exchange));
    assert!(plugin.plugin().wants_request_body(&exchange));
    continues(plugin.call(HookName::OnRequestBody, &mut exchange));
    assert_eq!(header(&exchange, "x-found"), Some("5 bytes in 1 calls"));
    assert_eq!(exchange.request_body().unwrap(), "WHOLE");
    let mut exchange = doing("gather-response").response(200, &[], "whole").build();
    continues(plugin.on_request(&mut exchange));
    assert!(!plugin.plugin().wants_request_body(&exchange));
    continues(plugin.on_response(&mut exchange));
    assert!(plugin.plugin().wants_response_body(&exchange));
    continues(plugin.call(HookName::OnResponseBody, &mut exchange));
    assert_eq!(exchange.response_body().unwrap(), "WHOLE");
    assert_eq!(exchange.response().unwrap().headers()["x-length"], "5");
}

/// What passes of two chunks and the end.
fn passed(filter: &mut dyn BodyFilter) -> [String; 3] {
    let mut filtered = ["one", "two"].map(|chunk| filter.chunk(chunk.into())).into_iter().collect::<Vec<_>>();
    filtered.push(filter.end());
    let text = filtered.into_iter().map(|filtered| match filtered {
        Ok(Filtered::Pass(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
        Ok(Filtered::Refuse(reply)) => {
            format!("{} {}", reply.status.as_u16(), reply.reason.unwrap_or_default())
        }
        Err(error) => error.message().into(),
    });
    text.collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn bodies_stream_past_a_guest_that_does_not_pause() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let filtered = |act: &str| {
        let mut exchange = doing(act).body("x").build();
        continues(plugin.on_request(&mut exchange));
        assert!(!plugin.plugin().wants_request_body(&exchange));
        passed(&mut *plugin.plugin().request_body_filter(&exchange).unwrap())
    };
    assert_eq!(filtered("nothing"), ["one", "two", ""]);
    assert_eq!(filtered("shout"), ["ONE", "TWO", ""]);
    assert_eq!(filtered("hold"), ["", "", "<onetwo>"]);
    assert_eq!(filtered("refuse-body")[0], "422 wasm.local_response");
    assert!(filtered("ask-at-end")[2].contains("set `proxy_wasm.whole_bodies`"));
    let mut exchange = doing("shout-back").response(200, &[], "x").build();
    continues(plugin.on_request(&mut exchange));
    continues(plugin.on_response(&mut exchange));
    let mut filter = plugin.plugin().response_body_filter(&exchange).unwrap();
    assert_eq!(passed(&mut *filter), ["ONE", "TWO", ""]);
    // Of what has no body there is nothing to filter.
    let mut exchange = doing("shout").build();
    continues(plugin.on_request(&mut exchange));
    assert!(plugin.plugin().request_body_filter(&exchange).is_none());
    continues(plugin.call(HookName::OnRequestBody, &mut exchange));
}

#[test]
fn what_a_guest_holds_back_is_bounded() {
    let Some((plugin, _)) = guest(json!({ "body_limit": "4B" })) else { return };
    let mut exchange = doing("hold").body("x").build();
    continues(plugin.on_request(&mut exchange));
    let mut filter = plugin.plugin().request_body_filter(&exchange).unwrap();
    assert_eq!(passed(&mut *filter)[1], "413 wasm.request_held");
    let mut exchange = doing("hold-back").response(200, &[], "x").build();
    continues(plugin.on_request(&mut exchange));
    let mut filter = plugin.plugin().response_body_filter(&exchange).unwrap();
    assert_eq!(passed(&mut *filter)[1], "502 wasm.response_held");
    // It can't make more of a body than that either.
    let mut exchange = doing("hold").body("abc").build();
    continues(plugin.on_request(&mut exchange));
    let mut filter = plugin.plugin().request_body_filter(&exchange).unwrap();
    assert!(filter.chunk("abc".into()).is_ok());
    assert!(filter.end().unwrap_err().message().contains("trapped"));
}

#[test]
fn with_whole_bodies_a_guest_may_pause_at_the_end_of_one() {
    let more = json!({ "proxy_wasm": { "whole_bodies": true, "upstreams": { "api": "backend" } } });
    let Some((plugin, _)) = guest(more) else { return };
    let mut exchange = doing("ask-at-end").body("x").build();
    continues(plugin.on_request(&mut exchange));
    assert!(plugin.plugin().wants_request_body(&exchange));
    continues(plugin.call(HookName::OnRequestBody, &mut exchange));
    assert_eq!(header(&exchange, "x-found"), Some("200 plain GET api.test b\"\" 2"));
}

#[test]
fn trailers_are_told_behind_a_body() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let mut exchange = doing("trailers").body("x").response(200, &[], "x").build();
    continues(plugin.on_request(&mut exchange));
    let mut filter = plugin.plugin().request_body_filter(&exchange).unwrap();
    assert!(matches!(filter.chunk("one".into()), Ok(Filtered::Pass(chunk)) if chunk == "one"));
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-told", "before".parse().unwrap());
    filter.trailers(&mut trailers).unwrap();
    assert_eq!(
        (&trailers["x-told"], &trailers["x-more"]),
        (&"BEFORE".parse().unwrap(), &"1".parse().unwrap())
    );
    assert!(matches!(filter.end(), Ok(Filtered::Pass(rest)) if rest.is_empty()));
    let mut trailers = http::HeaderMap::new();
    plugin.plugin().response_body_filter(&exchange).unwrap().trailers(&mut trailers).unwrap();
    assert_eq!(trailers["x-more"], "2");
}

#[test]
fn configuration_reaches_the_guest_and_a_no_is_a_located_error() {
    let Some(mut tester) = tester() else { return };
    let plugin = build_in(&mut tester, options(json!({ "config": "refuse-body" }))).unwrap();
    let mut exchange = ExchangeBuilder::get("/").body("x").build();
    continues(plugin.on_request(&mut exchange));
    let mut filter = plugin.plugin().request_body_filter(&exchange).unwrap();
    assert!(matches!(filter.chunk("one".into()), Ok(Filtered::Refuse(_))));
    let error = build_in(&mut tester, options(json!({ "config": "refuse" }))).err().unwrap();
    assert_eq!(error.path, "config");
    assert!(
        error.message.ends_with("proxy_on_configure says no, after saying: no such thing as refuse"),
        "{error}"
    );
    let refuse = json!({ "proxy_wasm": { "vm_config": "refuse" } });
    let error = build_in(&mut tester, refuse).err().unwrap();
    assert_eq!(
        (error.path.as_str(), error.message.as_str()),
        ("proxy_wasm.vm_config", "the module's proxy_on_vm_start says no")
    );
    let unknown = json!({ "proxy_wasm": { "upstreams": { "api": "nobody" } } });
    let error = build_in(&mut tester, unknown).err().unwrap();
    assert_eq!(error.path, "proxy_wasm.upstreams.api");
    assert!(build_in(&mut tester, json!({ "config": [1] })).is_err());
}

#[test]
fn data_is_shared_and_replaced_only_by_who_has_seen_it() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    assert_eq!(found(&plugin, "count"), "0 CasMismatch");
    assert_eq!(found(&plugin, "count"), "1 CasMismatch");
    assert_eq!(found(&plugin, "shared count"), "2");
}

#[test]
fn what_a_guest_enqueues_its_root_context_is_told() {
    let Some((plugin, mut tester)) = guest(json!({ "config": "queue" })) else { return };
    found(&plugin, "nothing");
    tester.run_tasks();
    found(&plugin, "enqueue wasm");
    tester.run_tasks();
    assert_eq!(found(&plugin, "shared worked"), "item");
}

#[test]
fn ticks_come_in_their_time() {
    let Some((plugin, mut tester)) = guest(json!({ "config": "tick" })) else { return };
    tester.set_time(Duration::from_secs(1));
    assert_eq!(found(&plugin, "shared ticks"), "");
    for tick in 1..4_u64 {
        tester.run_tasks();
        tester.set_time(Duration::from_millis(1000 + 25 * tick));
        tester.run_tasks();
        assert_eq!(found(&plugin, "shared ticks"), tick.to_string());
    }
}

#[test]
fn a_call_of_the_root_context_is_sent_with_the_first_request() {
    let Some((plugin, mut tester)) = guest(json!({ "config": "fetch" })) else { return };
    assert_eq!((found(&plugin, "shared fetched"), tester.run_tasks()), (String::new(), 0));
    assert_eq!(found(&plugin, "shared fetched"), "/fetched");
}

#[test]
fn metrics_foreign_functions_time_and_logs_answer() {
    let Some((plugin, tester)) = guest(json!({})) else { return };
    assert_eq!((found(&plugin, "metrics"), found(&plugin, "foreign")), ("7".into(), "NotFound".into()));
    assert_eq!((found(&plugin, "time"), tester.counted("guest", &["hits"])), ("true".into(), Some(2)));
    let said = crate::tests::logged(|| drop(found(&plugin, "log it")));
    assert!(said.contains("WARN") && said.contains("said it") && said.contains("plugin=\"wasm\""), "{said}");
}

#[test]
fn properties_have_the_names_that_envoy_gives_them() {
    let Some((plugin, _)) = guest(json!({ "proxy_wasm": { "root_id": "r", "vm_id": "v" } })) else { return };
    let session =
        TlsSession { version: "TLSv1.3", server_name: Some("sni.test".into()), client_chain: vec![] };
    let find = |name: &str| {
        let act = format!("property {name}");
        let builder = doing(&act).tls(session.clone()).route("users", &[]).attempt("backend", "10.0.0.1:80");
        let mut exchange = builder.header("user-agent", "curl").body("12345").build();
        continues(plugin.on_request(&mut exchange));
        header(&exchange, "x-found").unwrap().to_owned()
    };
    for (name, value) in [
        ("request.path", "/path?q=1"),
        ("request.url_path", "/path"),
        ("request.query", "q=1"),
        ("request.host", "gateway.test"),
        ("request.scheme", "https"),
        ("request.method", "GET"),
        ("request.headers.x-set", "old"),
        ("request.useragent", "curl"),
        ("request.id", "00000000000000000000000000000001"),
        ("request.protocol", "HTTP/1.1"),
        ("request.size", "5"),
        ("request.referer", "none"),
        ("source.address", "192.0.2.1:40000"),
        ("source.port", "40000"),
        ("destination.address", "192.0.2.2:80"),
        ("destination.port", "80"),
        ("connection.mtls", "[0]"),
        ("connection.tls_version", "TLSv1.3"),
        ("connection.requested_server_name", "sni.test"),
        ("upstream.address", "10.0.0.1:80"),
        ("upstream.port", "80"),
        ("cluster_name", "backend"),
        ("route_name", "users"),
        ("plugin_name", "wasm"),
        ("plugin_root_id", "r"),
        ("plugin_vm_id", "v"),
        ("listener_direction", "1"),
        ("response.code", "none"),
        ("nothing.such", "none"),
    ] {
        let found = find(name);
        let is_number = found.starts_with('[') && value.bytes().all(|byte| byte.is_ascii_digit());
        let found = if is_number { number(&found) } else { found };
        assert_eq!(found, value, "{name}");
    }
    assert!(find("request.time").len() > 15 && find("connection.id") != "none");
    assert_eq!(found(&plugin, "own-property"), "own");
}

/// A number that the guest took for a list of bytes.
fn number(bytes: &str) -> String {
    let bytes: Vec<u8> = serde_json::from_str(bytes).unwrap();
    i64::from_le_bytes(bytes.try_into().unwrap()).to_string()
}

#[test]
fn the_end_of_an_exchange_is_logged_and_may_be_put_off() {
    let Some((plugin, mut tester)) = guest(json!({})) else { return };
    let mut exchange = doing("nothing").response(204, &[], "").ended(204).build();
    continues(plugin.on_request(&mut exchange));
    continues(plugin.call(HookName::OnLog, &mut exchange));
    assert_eq!(found(&plugin, "shared logged"), "/path?q=1 204");
    let mut exchange = doing("later").response(200, &[], "").ended(200).build();
    continues(plugin.on_request(&mut exchange));
    continues(plugin.call(HookName::OnLog, &mut exchange));
    drop(exchange);
    assert_eq!(found(&plugin, "shared logged"), "/path?q=1 204");
    tester.run_tasks();
    assert_eq!(
        (found(&plugin, "shared later"), found(&plugin, "shared logged")),
        ("later".into(), "/path?q=1 200".into())
    );
}

#[test]
fn a_trap_hurts_only_its_own_exchange() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let mut other = doing("response").response(200, &[], "").build();
    continues(plugin.on_request(&mut other));
    let mut exchange = doing("trap").response(200, &[], "").build();
    let error = plugin.on_request(&mut exchange).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Trap);
    assert!(error.message().contains("proxy_on_request_headers trapped"), "{error}");
    // Its hooks are over; the other's go on in the next VM.
    continues(plugin.on_response(&mut exchange));
    continues(plugin.call(HookName::OnLog, &mut exchange));
    continues(plugin.on_response(&mut other));
    assert_eq!(found(&plugin, "shared nothing"), "");
}

#[test]
fn who_waits_in_a_vm_that_traps_is_asked_again_in_the_next() {
    let Some((plugin, mut tester)) = guest(json!({})) else { return };
    let mut waiting = doing("call /ok").build();
    let Hook::Wait(mut future) = plugin.plugin().on_request(&mut waiting) else { panic!("it does not wait") };
    plugin.on_request(&mut doing("trap").build()).unwrap_err();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    // Once for the call that is lost with its VM, once for the one that is made anew.
    let verdict = loop {
        if let std::task::Poll::Ready(verdict) = future.as_mut().poll(&mut context) {
            break verdict;
        }
        tester.run_tasks();
    };
    drop(future);
    continues(verdict);
    assert_eq!(header(&waiting, "x-found"), Some("200 plain POST api.test b\"asked\" 2"));
}

#[test]
fn time_and_memory_of_a_guest_are_bounded() {
    for (act, cpu, message) in
        [("spin", "2ms", "used up its 2ms of CPU"), ("bomb", "1s", "asked for more than 8MiB of memory")]
    {
        let Some((plugin, _)) = guest(json!({ "cpu": cpu, "memory": "8MiB" })) else { return };
        let mut exchange = doing(act).build();
        let error = plugin.on_request(&mut exchange).unwrap_err();
        assert!(error.kind() == ErrorKind::Budget && error.message().contains(message), "{error}");
        assert!(!exchange.is_hollow());
        assert_eq!(found(&plugin, "shared nothing"), "");
    }
}

#[test]
fn a_request_that_nobody_resumes_waits() {
    let Some((plugin, _)) = guest(json!({})) else { return };
    let mut exchange = doing("hang").build();
    let Hook::Wait(mut future) = plugin.plugin().on_request(&mut exchange) else {
        panic!("it does not wait")
    };
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(future.as_mut().poll(&mut context).is_pending());
    drop(future);
    assert!(!exchange.is_hollow());
    continues(plugin.call(HookName::OnLog, &mut exchange));
}
