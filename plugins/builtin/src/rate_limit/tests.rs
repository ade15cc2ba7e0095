use std::time::Duration;

use portcullis_plugin::{Decision, ExchangeBuilder, PluginTester, Principal, TestedPlugin};
use serde_json::{Value, json};

use super::*;

/// A plugin with one limit.
fn build(key: Value, bucket: Value) -> TestedPlugin {
    let table = json!({ "limits": [{ "key": key, "token_bucket": bucket }] });
    PluginTester::new().build::<RateLimit>(table).unwrap()
}

fn ask(plugin: &TestedPlugin, request: ExchangeBuilder) -> Option<Reply> {
    match plugin.on_request(&mut request.build()).unwrap() {
        Decision::Continue => None,
        Decision::Respond(reply) => Some(*reply),
        Decision::Drop => panic!("a request is answered"),
    }
}

fn get() -> ExchangeBuilder {
    ExchangeBuilder::get("/")
}

fn header(reply: &Reply, name: &str) -> String {
    reply.headers.get(name).map_or("none".to_owned(), |value| value.to_str().unwrap().to_owned())
}

/// Whether both requests are counted in one bucket.
fn together(key: Value, one: ExchangeBuilder, other: ExchangeBuilder) -> bool {
    let plugin = build(key, json!({ "rate": "1/h" }));
    assert!(ask(&plugin, one).is_none());
    ask(&plugin, other).is_some()
}

#[test]
fn beyond_the_burst_a_request_is_a_429_that_says_when_to_come_back() {
    let mut tester = PluginTester::new();
    let limits = json!([
        { "name": "short", "key": "client", "token_bucket": { "rate": "1/s", "burst": 2 } },
        { "name": "long", "key": "client", "token_bucket": { "rate": "10/h" } },
    ]);
    let plugin = tester.build::<RateLimit>(json!({ "limits": limits })).unwrap();
    tester.set_time(Duration::from_secs(1000));
    assert!(ask(&plugin, get()).is_none() && ask(&plugin, get()).is_none());
    let reply = ask(&plugin, get()).unwrap();
    assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (429, Some(EXCEEDED)));
    assert_eq!(header(&reply, "retry-after"), "1");
    assert_eq!(header(&reply, "ratelimit-policy"), "\"short\";q=2;w=2, \"long\";q=10;w=3600");
    assert_eq!(header(&reply, "ratelimit"), "\"short\";r=0;t=1, \"long\";r=8;t=360");
    let refused = |limit| tester.counted("refused", &[limit]);
    assert_eq!((refused("short"), refused("long")), (Some(1), Some(0)));
    tester.set_time(Duration::from_millis(1_000_999));
    assert!(ask(&plugin, get()).is_some());
    tester.set_time(Duration::from_secs(1001));
    assert!(ask(&plugin, get()).is_none());
}

#[test]
fn the_burst_is_what_the_rate_counts_unless_it_is_given() {
    for (bucket, burst) in [(json!({ "rate": "7/min" }), 7), (json!({ "rate": "7/min", "burst": 3 }), 3)] {
        let plugin = build(json!("client"), bucket);
        assert_eq!((0..20).filter(|_| ask(&plugin, get()).is_none()).count(), burst);
    }
}

#[test]
fn a_client_is_an_address_or_an_ipv6_network() {
    let from = |peer: &str| get().peer(peer);
    assert!(!together(json!("client"), from("192.0.2.1"), from("192.0.2.2")));
    assert!(together(json!("client"), from("192.0.2.1"), from("::ffff:192.0.2.1")));
    assert!(together(json!("client"), from("2001:db8::1"), from("2001:db8::ffff:0:0:1")));
    assert!(!together(json!("client"), from("2001:db8::1"), from("2001:db8:0:1::1")));
    for (prefix, address, same) in [
        (56, "2001:db8:0:ff::1", true),
        (56, "2001:db8:0:100::1", false),
        (128, "2001:db8::2", false),
        (1, "4::", true),
    ] {
        let limits = json!([{ "key": "client", "token_bucket": { "rate": "1/h" } }]);
        let table = json!({ "limits": limits, "ipv6_prefix": prefix });
        let plugin = PluginTester::new().build::<RateLimit>(table).unwrap();
        assert!(ask(&plugin, from("2001:db8::1")).is_none());
        assert_eq!(ask(&plugin, from(address)).is_some(), same, "{prefix}");
    }
}

#[test]
fn requests_are_counted_by_header_principal_and_route() {
    let tenant = |value| get().header("x-tenant", value);
    let by_tenant = || json!({ "header": "x-tenant" });
    assert!(
        together(by_tenant(), tenant("a"), tenant("a")) && !together(by_tenant(), tenant("a"), tenant("b"))
    );
    assert!(together(by_tenant(), get(), get()), "those without it are counted together");
    assert!(!together(by_tenant(), tenant("a"), tenant("a").header("x-tenant", "b")));
    assert!(!together(by_tenant(), tenant("ab"), tenant("a").header("x-tenant", "b")));

    let caller = |issuer: &str, id: &str| {
        get().principal(Principal { id: id.into(), issuer: issuer.into(), ..Principal::default() })
    };
    let principal = || json!("principal");
    assert!(together(principal(), caller("i", "a"), caller("i", "a")));
    assert!(!together(principal(), caller("i", "a"), caller("i", "b")));
    assert!(!together(principal(), caller("i", "a"), caller("j", "a")));
    assert!(!together(principal(), caller("i", "a"), get()));
    assert!(together(principal(), get().peer("192.0.2.1"), get().peer("192.0.2.2")));

    let on = |route| get().route(route, &[]);
    assert!(together(json!("route"), on("a"), on("a")) && !together(json!("route"), on("a"), on("b")));
}

#[test]
fn a_key_of_several_parts_is_their_combination() {
    let request = |peer, tenant| get().peer(peer).header("x-tenant", tenant);
    let key = || json!(["client", { "header": "x-tenant" }]);
    assert!(together(key(), request("192.0.2.1", "a"), request("192.0.2.1", "a")));
    assert!(!together(key(), request("192.0.2.1", "a"), request("192.0.2.1", "b")));
    assert!(!together(key(), request("192.0.2.1", "a"), request("192.0.2.2", "a")));
}

#[test]
fn every_response_tells_how_the_limits_stand_if_that_is_wished() {
    let told = |announce: &str| {
        let limits = json!([{ "key": "client", "token_bucket": { "rate": "1/min", "burst": 2 } }]);
        let table = json!({ "limits": limits, "announce": announce });
        let plugin = PluginTester::new().build::<RateLimit>(table).unwrap();
        let mut exchange = get().response(200, &[("ratelimit", "\"upstream\";r=1")], "").build();
        plugin.on_request(&mut exchange).unwrap();
        if plugin.plugin().needs().wants(HookName::OnResponse) {
            plugin.on_response(&mut exchange).unwrap();
        }
        let values = exchange.response().unwrap().headers().get_all(RATE_LIMIT);
        let passed = values.iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join(", ");
        assert!(ask(&plugin, get()).is_none());
        let refused = ask(&plugin, get()).unwrap();
        assert_eq!(header(&refused, "retry-after"), "60");
        (passed, header(&refused, "ratelimit"))
    };
    let own = "\"upstream\";r=1";
    let refused = "\"default\";r=0;t=60".to_owned();
    assert_eq!(told("always"), (format!("{own}, \"default\";r=1;t=60"), refused.clone()));
    assert_eq!(told("refused"), (own.to_owned(), refused));
    assert_eq!(told("never"), (own.to_owned(), "none".to_owned()));
}

#[test]
fn a_rebuilt_instance_counts_on_and_says_when_it_does_not() {
    let mut tester = PluginTester::new();
    let table = |key: &str, burst: u32| json!({ "limits": [{ "key": key, "token_bucket": { "rate": "1/h", "burst": burst } }] });
    let first = tester.build::<RateLimit>(table("client", 1)).unwrap();
    assert!(ask(&first, get()).is_none() && ask(&first, get()).is_some());
    let second = tester.build::<RateLimit>(table("client", 2)).unwrap();
    assert!(ask(&second, get()).is_none() && ask(&second, get()).is_some());
    assert_eq!(tester.warnings(), []);
    let third = tester.build::<RateLimit>(table("route", 1)).unwrap();
    assert!(ask(&third, get()).is_none());
    let [notice] = tester.warnings() else { panic!("{:?}", tester.warnings()) };
    assert_eq!((notice.path.as_str(), notice.message.contains("begins anew")), ("limits[0].key", true));
}

#[test]
fn a_full_table_is_counted() {
    let mut tester = PluginTester::new();
    let limits = json!([{ "key": { "header": "x-key" }, "token_bucket": { "rate": "1/h" } }]);
    let plugin = tester.build::<RateLimit>(json!({ "limits": limits, "max_keys": 1024 })).unwrap();
    let passed =
        (0..5000).filter(|key| ask(&plugin, get().header("x-key", &key.to_string())).is_none()).count();
    assert!(passed <= 1024 + 128, "{passed}");
    assert_eq!(tester.counted("overflow", &[]), Some(5000 - 1024));
}

#[test]
fn what_is_wrong_is_named_where_it_stands() {
    let error = |table| PluginTester::new().build::<RateLimit>(table).err().unwrap();
    let limit = || json!({ "key": "client", "token_bucket": { "rate": "1/s" } });
    let named = |name: &str| json!({ "name": name, "key": "client", "token_bucket": { "rate": "1/s" } });
    let keyed = |key: Value| json!({ "limits": [{ "key": key, "token_bucket": { "rate": "1/s" } }] });
    for (table, path) in [
        (json!({ "limits": [] }), "limits"),
        (json!({ "limits": vec![limit(); 9] }), "limits"),
        (json!({ "limits": [limit(), limit()] }), "limits[0]"),
        (json!({ "limits": [named("a"), named("a")] }), "limits[1].name"),
        (json!({ "limits": [named("a\"b")] }), "limits[0].name"),
        (json!({ "limits": [named("")] }), "limits[0].name"),
        (json!({ "limits": [limit()], "ipv6_prefix": 0 }), "ipv6_prefix"),
        (json!({ "limits": [limit()], "ipv6_prefix": 129 }), "ipv6_prefix"),
        (json!({ "limits": [limit()], "max_keys": 1023 }), "max_keys"),
        (json!({ "limits": [limit()], "max_keys": 10_000_001 }), "max_keys"),
        (keyed(json!([])), "limits[0].key"),
        (keyed(json!({ "header": "a b" })), "limits[0].key"),
        (
            json!({ "limits": [{ "key": "client", "token_bucket": { "rate": "1/d", "burst": 4000 } }] }),
            "limits[0].token_bucket.burst",
        ),
    ] {
        assert_eq!(error(table.clone()).path, path, "{table}");
    }
    for key in [json!("address"), json!(["client", "x"]), json!({ "cookie": "a" }), json!(7)] {
        assert_eq!(error(keyed(key)).path, "", "told by the reader of the table");
    }
}
