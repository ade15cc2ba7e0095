use std::time::Duration;

use http::HeaderName;
use portcullis_plugin::{Decision, ExchangeBuilder, Instance, PluginTester, Secret, TestedPlugin};
use serde_json::{Map, Value, json};

use super::*;

const SECRET: &str = "thirty-two bytes that nobody knows";

fn hash_key() -> HashKey {
    HashKey::new(&Secret::new(SECRET.as_bytes())).unwrap()
}

/// A key for `id`, and its line.
fn key(id: &str, expires: Option<&str>) -> (String, Value) {
    let metadata = Map::from_iter([("plan".to_owned(), "gold".into())]);
    let (roles, scopes) = (vec!["reader".to_owned()], vec!["orders:read".to_owned()]);
    let made = NewKey::make(&hash_key(), id, roles, scopes, expires.map(str::to_owned), metadata).unwrap();
    (made.key, serde_json::from_str(&made.line).unwrap())
}

fn tester() -> PluginTester {
    let tester = PluginTester::new().secret("KEY", SECRET);
    // 2026-01-01
    tester.set_time(Duration::from_secs(1_767_225_600));
    tester
}

fn build(mut table: Value) -> TestedPlugin {
    table["hash_key"] = "env:KEY".into();
    tester().build::<ApiKey>(table).unwrap()
}

/// The status and reason of a refusal; none if it goes on.
fn refusal(plugin: &TestedPlugin, exchange: &mut Exchange) -> Option<(u16, String)> {
    match plugin.on_request(exchange).unwrap() {
        Decision::Continue => None,
        Decision::Respond(reply) => {
            assert!(reply.headers.contains_key("www-authenticate"));
            Some((reply.status.as_u16(), reply.reason.as_deref().unwrap_or_default().to_owned()))
        }
        Decision::Drop => panic!("a request is answered"),
    }
}

fn refused(reason: &str) -> Option<(u16, String)> {
    Some((401, format!("api_key.{reason}")))
}

#[test]
fn a_key_makes_the_principal_and_goes_no_further_wherever_it_stands() {
    let (key, line) = key("ann", None);
    let from = json!(["bearer", { "header": "x-api-key" }, { "query": "api key" }, { "cookie": "k" }]);
    let plugin = build(json!({ "from": from, "keys": [line] }));
    for (target, name, value, left) in [
        ("/a?x=1", "authorization", format!("bearer  {key}"), "/a?x=1"),
        ("/a", "x-api-key", format!(" {key} "), "/a"),
        (&*format!("/a?api+key={key}&x=1&%61pi%20key="), "x-other", "1".to_owned(), ""),
        (&*format!("/a?api+key={key}&x=1"), "x-other", "1".to_owned(), "/a?x=1"),
        ("/a", "cookie", format!("a=1; k={key};b=2"), "/a"),
    ] {
        let mut exchange = ExchangeBuilder::get(target).header(name, &value).build();
        if left.is_empty() {
            assert_eq!(refusal(&plugin, &mut exchange), refused("malformed"));
            continue;
        }
        assert_eq!(refusal(&plugin, &mut exchange), None, "{name}");
        let principal = exchange.principal().unwrap();
        assert_eq!(
            (&*principal.id, &*principal.roles[0], &*principal.scopes[0]),
            ("ann", "reader", "orders:read")
        );
        assert_eq!(principal.claims["plan"], "gold");
        let request = exchange.request();
        assert_eq!(request.target().as_str(), left);
        assert_eq!(
            request.headers().get("cookie").map(|it| it.to_str().unwrap()),
            (name == "cookie").then_some("a=1; b=2")
        );
        assert!(
            !request.headers().contains_key("authorization") && !request.headers().contains_key("x-api-key")
        );
    }
}

#[test]
fn what_holds_no_key_that_holds_is_refused() {
    let (good, line) = key("ann", Some("2026-01-01T00:00:01Z"));
    let (old, old_line) = key("bob", Some("2026-01-01T00:00:00Z"));
    let (other, _) = key("eve", None);
    let plugin = build(json!({ "from": ["bearer", { "header": "x-api-key" }], "keys": [line, old_line] }));
    let get = |headers: &[(&str, &str)]| {
        let exchange =
            headers.iter().fold(ExchangeBuilder::get("/"), |it, (name, value)| it.header(name, value));
        refusal(&plugin, &mut exchange.build())
    };
    let shorter = &good[..good.len() - 1];
    let long = "x".repeat(MAX_KEY + 1);
    for (headers, reason) in [
        (&[][..], "missing"),
        (&[("x-api-key", "")], "missing"),
        (&[("authorization", "Basic YTpi")], "missing"),
        (&[("authorization", &*good)], "missing"),
        (&[("x-api-key", &*other)], "unknown"),
        (&[("x-api-key", shorter)], "unknown"),
        (&[("x-api-key", &*good.to_uppercase())], "unknown"),
        (&[("x-api-key", &*long)], "unknown"),
        (&[("x-api-key", &*old)], "expired"),
        (&[("x-api-key", &*good), ("x-api-key", &*other)], "malformed"),
        // The first place is judged, whatever stands in the others.
        (&[("authorization", &*format!("Bearer {other}")), ("x-api-key", &*good)], "unknown"),
    ] {
        assert_eq!(get(headers), refused(reason), "{headers:?}");
    }
    assert_eq!(get(&[("x-api-key", &good)]), None);
}

#[test]
fn who_may_be_anonymous_may_not_be_wrong() {
    let (key, line) = key("ann", None);
    let plugin = build(json!({ "keys": [line], "anonymous": true, "forward": true }));
    let mut exchange = ExchangeBuilder::get("/").build();
    assert_eq!((refusal(&plugin, &mut exchange), exchange.principal()), (None, None));
    let mut exchange = ExchangeBuilder::get("/").header("x-api-key", "guess").build();
    assert_eq!(refusal(&plugin, &mut exchange), refused("unknown"));
    let mut exchange = ExchangeBuilder::get("/").header("x-api-key", &key).build();
    assert_eq!(refusal(&plugin, &mut exchange), None);
    assert_eq!(exchange.request().header(&HeaderName::from_static("x-api-key")), Some(&*key));
}

#[test]
fn keys_come_from_files_too_and_what_is_wrong_is_shown_there() {
    let (key, line) = key("ann", None);
    let table = || json!({ "hash_key": "env:KEY", "files": ["keys.jsonl"] });
    let build = |text: String| tester().file("keys.jsonl", text).build::<ApiKey>(table());
    let plugin = build(format!("# ours\n\n{line}\n")).unwrap();
    assert_eq!(refusal(&plugin, &mut ExchangeBuilder::get("/").header("x-api-key", &key).build()), None);
    for (text, error) in [
        (format!("{line}\n{line}\n"), "the key of `ann` is there already"),
        ("\n{\"hash\": \"x\", \"id\": \"a\"}".to_owned(), "keys.jsonl:2:2: hash: a hash is"),
        (format!("{}", json!({ "hash": line["hash"], "id": "" })), "whose key it is must be said"),
        (
            format!("{}", json!({ "hash": line["hash"], "id": "a", "expires": "soon" })),
            "expires: a moment is written",
        ),
        (format!("{}", json!({ "hash": line["hash"], "id": "a", "rolls": [] })), "unknown field `rolls`"),
        ("nothing".to_owned(), "keys.jsonl:1:"),
    ] {
        let told = build(text).err().unwrap().to_string();
        assert!(told.contains(error) && !told.contains(&key), "{told}");
    }
}

#[test]
fn a_table_that_cannot_be_meant_is_refused() {
    for (table, path, error) in [
        (json!({ "hash_key": "env:KEY" }), "", "there are no keys"),
        (json!({ "hash_key": "env:SHORT", "files": [] }), "hash_key", "a secret of 31 bytes is too short"),
        (json!({ "hash_key": "env:KEY", "from": [] }), "from", "a key has to stand somewhere"),
        (
            json!({ "hash_key": "env:KEY", "from": [{ "header": "a b" }] }),
            "from[0].header",
            "not a header name",
        ),
        (json!({ "hash_key": "env:KEY", "keys": [{ "hash": "x", "id": "a" }] }), "keys[0].hash", "a hash is"),
    ] {
        let mut tester = tester().secret("SHORT", "s".repeat(31));
        let told = tester.build::<ApiKey>(table).err().unwrap();
        assert!(told.path == path && told.message.contains(error), "{told}");
    }
}

#[test]
fn hashes_of_one_beginning_are_told_apart() {
    let config = Config {
        hash_key: SecretRef::Env("KEY".into()),
        from: default_places(),
        keys: vec![serde_json::from_value(key("ann", None).1).unwrap()],
        files: Vec::new(),
        anonymous: false,
        forward: false,
    };
    let mut host = tester();
    let instance = Instance { kind: "api_key", name: "api_key".into(), state_schema: 0 };
    let mut plugin = ApiKey::build(config, &mut BuildContext::new(instance, &mut host)).unwrap();
    let wanted = "pck_wanted";
    let digest = hash_key().digest(wanted);
    let mut near = digest;
    near[31] ^= 1;
    for (digest, id) in [(near, "near"), (digest, "wanted")] {
        let principal = portcullis_plugin::Principal { id: id.into(), ..Default::default() };
        plugin.add("", Known { digest, principal, expires: None }).unwrap();
    }
    assert_eq!(plugin.look_up(wanted).unwrap().principal.id, "wanted");
}
