//! What one call of a plugin's hook costs. `cargo bench -p portcullis-plugins`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use divan::{Bencher, black_box};
use portcullis_plugin::{
    BuildContext, Decision, Exchange, ExchangeBuilder, Hook, Instance, PluginTester, Rate, Secret,
    TestedPlugin, TokenBucket,
};
use portcullis_plugins::{BUILTIN, HashKey, NewKey};
use serde_json::{Value, json};

fn main() {
    divan::main();
}

fn build(kind: &str, tester: PluginTester, table: Value) -> TestedPlugin {
    let registration = BUILTIN.iter().find(|known| known.kind == kind).unwrap();
    let mut tester = tester;
    tester.build_registered(registration, table).unwrap()
}

/// The verdict of a hook that never waits.
fn decision(hook: Hook<'_>) -> Decision {
    match hook {
        Hook::Ready(decision) => decision.unwrap(),
        Hook::Wait(_) => unreachable!("none of these plugins waits"),
    }
}

#[divan::bench]
fn headers_on_request(bencher: Bencher<'_, '_>) {
    let table = json!({ "request": { "set": { "x-team": "payments" }, "remove": ["x-debug"] } });
    let plugin = build("headers", PluginTester::new(), table);
    let exchange = || ExchangeBuilder::get("/").header("x-debug", "1").header("accept", "*/*").build();
    bencher.with_inputs(exchange).bench_local_refs(|exchange| decision(plugin.plugin().on_request(exchange)));
}

#[divan::bench]
fn headers_on_response(bencher: Bencher<'_, '_>) {
    let set = json!({ "x-content-type-options": "nosniff", "strict-transport-security": "max-age=31536000" });
    let plugin = build("headers", PluginTester::new(), json!({ "response": { "set": set } }));
    let exchange = || ExchangeBuilder::get("/").response(200, &[("content-type", "text/plain")], "").build();
    bencher
        .with_inputs(exchange)
        .bench_local_refs(|exchange| decision(plugin.plugin().on_response(exchange)));
}

#[divan::bench(args = [1, 100_000])]
fn ip_filter_with_ranges(bencher: Bencher<'_, '_>, count: u32) {
    let mut list = String::new();
    for n in 0..count {
        // Every second /24 from 11.0.0.0 upwards, so that no two ranges become one.
        writeln!(list, "{}/24", Ipv4Addr::from(0x0b00_0000 + n * 0x200)).unwrap();
    }
    let tester = PluginTester::new().file("blocked.txt", list);
    let plugin = build("ip_filter", tester, json!({ "files": { "deny": ["blocked.txt"] } }));
    let clients = ["192.0.2.1", "11.0.1.1", "12.0.1.1"];
    let mut exchanges = clients.map(|client| ExchangeBuilder::get("/").peer(client).build());
    let mut turns = (0..clients.len()).cycle();
    bencher.bench_local(|| {
        let exchange = &mut exchanges[turns.next().unwrap()];
        let decision = decision(plugin.plugin().on_request(black_box(exchange)));
        assert!(matches!(decision, Decision::Continue));
    });
}

#[divan::bench(args = [1, 10_000])]
fn api_key_among(bencher: Bencher<'_, '_>, count: u32) {
    const SECRET: &str = "a secret of more than thirty-two bytes";
    let hash_key = HashKey::new(&Secret::new(SECRET.as_bytes())).unwrap();
    let (mut keys, mut lines) = (Vec::new(), String::new());
    for n in 0..count {
        let roles = vec!["reader".to_owned()];
        let NewKey { key, line } =
            NewKey::make(&hash_key, &format!("user-{n}"), roles, Vec::new(), None, serde_json::Map::new())
                .unwrap();
        keys.push(key);
        writeln!(lines, "{line}").unwrap();
    }
    let tester = PluginTester::new().secret("KEY", SECRET).file("keys.jsonl", lines);
    let plugin = build("api_key", tester, json!({ "hash_key": "env:KEY", "files": ["keys.jsonl"] }));
    let mut turns = keys.iter().cycle();
    bencher
        .with_inputs(|| ExchangeBuilder::get("/").header("x-api-key", turns.next().unwrap()).build())
        .bench_local_refs(|exchange| passes(&plugin, exchange));
}

/// A token that was seen before.
#[divan::bench]
fn jwt_remembered(bencher: Bencher<'_, '_>) {
    let (plugin, token) = jwt();
    let exchange = || ExchangeBuilder::get("/").header("authorization", &format!("Bearer {token}")).build();
    assert!(matches!(decision(plugin.plugin().on_request(&mut exchange())), Decision::Continue));
    bencher.with_inputs(exchange).bench_local_refs(|exchange| passes(&plugin, exchange));
}

fn jwt() -> (TestedPlugin, String) {
    const SECRET: &str = "a secret of more than thirty-two bytes";
    let claims = json!({
        "iss": "https://login.example.com/", "sub": "5f8f8c44-b37c-4a1c-8f0e-7f1f2a1b9d10", "aud": ["orders"],
        "exp": 4_102_444_800_u64, "iat": 1_767_225_600_u64, "jti": "0b1d6b1c-2d5d-4fd4-9d0a-2f8a3d0f5a11",
        "azp": "web", "scope": "orders:read orders:write profile",
        "realm_access": { "roles": ["clerk", "reader"] },
    });
    let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let message = format!(
        "{}.{}",
        encoded(br#"{"alg":"HS256","typ":"at+jwt"}"#),
        encoded(claims.to_string().as_bytes())
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    let token = format!("{message}.{}", encoded(hmac::sign(&key, message.as_bytes()).as_ref()));
    let table = json!({ "issuers": [{
        "issuer": "https://login.example.com/", "audience": ["orders"], "algorithms": ["HS256"],
        "keys": [{ "secret": "env:KEY" }], "roles": "realm_access.roles",
    }] });
    (build("jwt", PluginTester::new().secret("KEY", SECRET), table), token)
}

/// A rate that refuses nobody here.
const RATE: u32 = 1_000_000_000;

fn passes(plugin: &TestedPlugin, exchange: &mut Exchange) {
    let decision = decision(plugin.plugin().on_request(black_box(exchange)));
    assert!(matches!(decision, Decision::Continue));
}

#[divan::bench(args = [1, 10_000])]
fn rate_limit_of_clients(bencher: Bencher<'_, '_>, clients: u32) {
    let bucket = json!({ "rate": format!("{RATE}/s") });
    let limits = json!([{ "key": "client", "token_bucket": bucket }]);
    let plugin = build("rate_limit", PluginTester::new(), json!({ "limits": limits }));
    let from =
        |client| ExchangeBuilder::get("/").peer(&Ipv4Addr::from(0x0b00_0000 + client).to_string()).build();
    let mut exchanges: Vec<_> = (0..clients).map(from).collect();
    let mut turns = (0..exchanges.len()).cycle();
    bencher.bench_local(|| passes(&plugin, &mut exchanges[turns.next().unwrap()]));
}

#[divan::bench]
fn rate_limit_of_client_and_of_header_and_route(bencher: Bencher<'_, '_>) {
    let bucket = json!({ "rate": format!("{RATE}/s") });
    let limits = json!([
        { "name": "client", "key": "client", "token_bucket": bucket },
        { "name": "tenant", "key": [{ "header": "x-tenant" }, "route"], "token_bucket": bucket },
    ]);
    let plugin = build("rate_limit", PluginTester::new(), json!({ "limits": limits }));
    let mut exchange = ExchangeBuilder::get("/").header("x-tenant", "acme").route("orders", &[]).build();
    bencher.bench_local(|| passes(&plugin, &mut exchange));
}

#[divan::bench(args = [1, 1_000_000])]
fn rate_state_of_keys(bencher: Bencher<'_, '_>, keys: u32) {
    let instance = Instance { kind: "rate_limit", name: "rate_limit".into(), state_schema: 0 };
    let mut tester = PluginTester::new();
    let rates = BuildContext::new(instance, &mut tester).rates(2_000_000);
    let (count, burst) = (NonZeroU32::new(1000).unwrap(), NonZeroU32::new(1_000_000).unwrap());
    let rate = Rate { count, per: Duration::from_secs(1) };
    let (limit, _) = rates.limit("all", "number", TokenBucket::new(rate, burst).unwrap());
    let take = |key: u32| rates.take(&mut [rates.ask(&limit, key)]);
    (0..keys).for_each(|key| assert!(take(key)));
    // So far apart that none is in a cache by chance.
    let mut key = 0_u32;
    bencher.bench_local(|| {
        key = key.wrapping_add(7919) % keys;
        take(black_box(key))
    });
}
