//! What one call of a plugin's hook costs. `cargo bench -p portcullis-plugins`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::fmt::Write;
use std::net::Ipv4Addr;

use divan::{Bencher, black_box};
use portcullis_plugin::{Decision, ExchangeBuilder, Hook, PluginTester, TestedPlugin};
use portcullis_plugins::BUILTIN;
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
