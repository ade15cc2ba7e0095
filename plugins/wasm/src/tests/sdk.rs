//! Guests made with the SDK, from where `tests/guests/build` leaves them. Without them these tests
//! say so and pass, unless `PORTCULLIS_REQUIRE_GUESTS=1` is set.

use portcullis_plugin::{Principal, TlsSession};

use super::*;

/// Builds an instance of a guest, if it is there.
fn guest(name: &str, more: Value) -> Option<Result<TestedPlugin, BuildError>> {
    Some(build(bytes(name)?, more))
}

fn bytes(name: &str) -> Option<Vec<u8>> {
    let path = format!("{}/../../target/guests/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
    match std::fs::read(&path) {
        Ok(module) => Some(module),
        Err(error) if std::env::var_os("PORTCULLIS_REQUIRE_GUESTS").is_some() => panic!("{path}: {error}"),
        Err(_) => {
            println!("left out: there is no {name}.wasm; run tests/guests/build");
            None
        }
    }
}

fn hostile(config: Value) -> Option<TestedPlugin> {
    Some(
        guest("hostile", json!({ "config": config, "memory": "4MiB", "grants": { "clock": true } }))?
            .unwrap(),
    )
}

#[test]
fn the_example_that_blocks_blocks() {
    let Some(built) = guest("block_path", json!({ "config": { "prefixes": ["/internal", "/admin"] } }))
    else {
        return;
    };
    let policy = built.unwrap();
    assert_eq!(policy.plugin().needs(), Needs::hooks([HookName::OnRequest]));
    let verdict = |path: &str| policy.on_request(&mut ExchangeBuilder::get(path).build()).unwrap();
    let Decision::Respond(reply) = verdict("/admin/users") else { panic!("not refused") };
    assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (403, Some("block_path.prefix")));
    // By whole segments: what only begins alike is something else.
    assert!(matches!(verdict("/admin"), Decision::Respond(_)));
    assert!(matches!(verdict("/administration"), Decision::Continue));
    assert!(matches!(verdict("/public"), Decision::Continue));
}

#[test]
fn the_example_that_stamps_stamps() {
    let Some(built) =
        guest("stamp_response", json!({ "config": { "header": "x-took" }, "grants": { "clock": true } }))
    else {
        return;
    };
    let policy = built.unwrap();
    let mut exchange = ExchangeBuilder::get("/").response(200, &[("x-took", "old")], "").build();
    assert!(policy.on_request(&mut exchange).is_ok() && policy.on_response(&mut exchange).is_ok());
    let took = exchange.response().unwrap().header(&http::HeaderName::from_static("x-took")).unwrap();
    assert!(took.ends_with(" ms"), "{took}");
}

#[test]
fn a_policy_made_with_the_sdk_fits_what_stays_in_memory() {
    for name in ["block_path", "stamp_response"] {
        let Some(module) = bytes(name) else { return };
        let memory =
            wasmparser::Parser::new(0).parse_all(&module).find_map(|payload| match payload.unwrap() {
                wasmparser::Payload::MemorySection(memories) => memories.into_iter().next(),
                _ => None,
            });
        // The first allocation takes a page of 64 KiB more.
        let pages = memory.unwrap().unwrap().initial + 1;
        assert!(pages << 16 <= crate::engine::KEPT_MEMORY as u64, "{name} begins with {pages} pages");
    }
}

#[test]
fn a_configuration_is_judged_at_load() {
    let error = |config: Value| Some(guest("block_path", json!({ "config": config }))?.err().unwrap());
    let Some(missing) = error(json!({})) else { return };
    assert!(missing.path == "config" && missing.message.contains("missing field `prefixes`"), "{missing}");
    let refused = error(json!({ "prefixes": ["admin"] })).unwrap();
    assert_eq!(refused.to_string(), "config.prefixes[0]: does not begin with a slash");
    let unknown = error(json!({ "prefixes": ["/a"], "prefix": 1 })).unwrap();
    assert_eq!(unknown.to_string(), "config.prefix: unknown field `prefix`, expected `prefixes`");
}

#[test]
fn what_a_guest_does_wrong_is_told_and_the_exchange_comes_back() {
    let cases = [
        ("spin", ErrorKind::Budget, "on_request used up its 5ms of CPU"),
        ("bomb", ErrorKind::Budget, "on_request asked for more than 4MiB of memory"),
        ("recurse", ErrorKind::Budget, "on_request recursed beyond its 512KiB of stack"),
        ("huge_header", ErrorKind::Trap, "on_request trapped: "),
        ("panic", ErrorKind::Trap, "the guest lost its head"),
        ("fail", ErrorKind::Failed, "not today"),
    ];
    for (act, kind, message) in cases {
        let Some(policy) = hostile(json!({ "on_request": act })) else { return };
        let mut exchange = exchange();
        let error = policy.on_request(&mut exchange).unwrap_err();
        assert!(error.kind() == kind && error.message().contains(message), "{act}: {error}");
        assert_whole(&exchange);
        // `fail` is an answer like any other: its instance goes on.
        assert!(policy.call(HookName::OnLog, &mut exchange).is_ok());
        assert_eq!(exchange.fact("logged").is_some(), kind == ErrorKind::Failed, "{act}");
    }
}

#[test]
fn a_flood_of_log_lines_ends_at_the_bound() {
    let Some(policy) = hostile(json!({ "on_request": "chatter" })) else { return };
    let verdict = policy.on_request(&mut exchange());
    // Ten thousand long lines either fit the budget of CPU or they do not; none of it harms.
    assert!(verdict.is_ok() || verdict.is_err_and(|error| error.kind() == ErrorKind::Budget));
}

#[test]
fn a_guest_answers_and_drops() {
    let Some(policy) = hostile(json!({ "on_request": "respond", "on_response": "drop" })) else { return };
    let mut exchange = ExchangeBuilder::get("/").response(200, &[], "").build();
    let Ok(Decision::Respond(reply)) = policy.on_request(&mut exchange) else { panic!("no reply") };
    assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (200, None));
    assert_eq!(reply.content, portcullis_plugin::Content::Bytes("hello".into()));
    assert_eq!(reply.headers["x-by"], "hostile");
    assert!(matches!(policy.on_response(&mut exchange), Ok(Decision::Drop)));
}

#[test]
fn a_guest_sees_and_changes_what_the_contract_lets_it() {
    let Some(policy) = hostile(json!({ "on_request": "tour" })) else { return };
    let mut exchange = ExchangeBuilder::get("/users/42?q=a%20b")
        .header("x-test", "hi")
        .header("cookie", "session=s3")
        .route("users", &[("id", "42")])
        .principal(Principal { id: "ann".into(), ..Principal::default() })
        .tls(TlsSession { version: "TLSv1.3", ..TlsSession::default() })
        .build();
    exchange.set_fact("before", 7.into());
    policy.on_request(&mut exchange).unwrap();
    let seen = exchange.fact("seen").unwrap();
    let expected = json!({
        "id": format!("{:032x}", 1), "client": "192.0.2.1", "scheme": "https", "listener": "test",
        "peer": "192.0.2.1:40000", "route": "users", "capture": "42",
        "original_target": "/users/42?q=a%20b", "method": "GET", "path": "/users/42",
        "query": "q=a%20b", "query_param": "a b", "host": "gateway.test", "cookie": "s3",
        "header": "hi", "headers": 3, "body": null, "principal": "ann", "attempt": null,
        "status": null, "outcome": null, "now": true, "fact": 7,
    });
    assert_eq!(*seen, expected);
    assert_eq!(exchange.fact("refused"), Some(&json!(3)));
    assert_eq!(exchange.principal().map(|it| (it.id.as_str(), it.roles.len())), Some(("guest", 1)));
    let request = exchange.request();
    assert_eq!((request.method().as_str(), request.target().as_str()), ("PUT", "/elsewhere?a=b"));
    let set: Vec<_> = request.headers().get_all("x-set").iter().collect();
    assert!(set == ["1", "2"] && !request.headers().contains_key("x-test"));
}

#[test]
fn a_guest_replaces_bodies_and_stamps_attempts() {
    let Some(policy) = hostile(json!({})) else { return };
    let mut exchange =
        ExchangeBuilder::get("/").body("abc").attempt("u", "h:1").response(200, &[], "def").build();
    for hook in [HookName::OnRequestBody, HookName::OnUpstream, HookName::OnResponseBody] {
        assert!(matches!(policy.call(hook, &mut exchange), Ok(Decision::Continue)), "{hook}");
    }
    assert_eq!(exchange.request_body().unwrap(), "ABC");
    assert_eq!(exchange.response_body().unwrap(), "<def>");
    assert_eq!(exchange.outgoing().unwrap().headers()["x-attempt"], "1");
    assert!(!exchange.request().headers().contains_key("x-attempt"));
}

#[test]
fn a_fresh_guest_remembers_within_an_exchange_and_a_reused_one_beyond() {
    let count = |isolation: Value| {
        let policy =
            guest("hostile", json!({ "config": { "do": "count" }, "isolation": isolation }))?.unwrap();
        Some([0; 2].map(|_| {
            let mut exchange = ExchangeBuilder::get("/").build();
            policy.on_request(&mut exchange).unwrap();
            policy.call(HookName::OnLog, &mut exchange).unwrap();
            exchange.request().header(&http::HeaderName::from_static("x-count")).unwrap().to_owned()
        }))
    };
    let Some(fresh) = count(json!("fresh")) else { return };
    assert_eq!(fresh, ["2", "2"]);
    assert_eq!(count(json!({ "reuse": 10 })).unwrap(), ["2", "4"]);
}

#[test]
fn a_guest_judges_connections() {
    let Some(policy) = hostile(json!({ "on_connection": "count" })) else { return };
    assert_eq!(policy.on_connection("192.0.2.1").unwrap(), Admission::Accept);
    assert_eq!(policy.on_connection("203.0.113.1").unwrap(), Admission::Drop);
    let spins = hostile(json!({ "on_connection": "spin" })).unwrap().on_connection("192.0.2.1");
    assert_eq!(spins.unwrap_err().kind(), ErrorKind::Budget);
}
