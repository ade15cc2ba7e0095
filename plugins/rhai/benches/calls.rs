//! What the hooks of a script cost per exchange: `cargo bench -p portcullis-rhai`.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool")]

use portcullis_plugin::{PluginTester, TestedPlugin};
use portcullis_rhai::Script;
use serde_json::json;

#[path = "../../benches/cost.rs"]
mod cost;

/// The policy of the gateway's benchmark.
const POLICY: &str = include_str!("../../../tests/bench/contestants/policy.rhai");

/// Longer than the stretch in which no clock is read.
const LOOP: &str = "fn on_request(ctx) { let sum = 0; for n in 0..100 { sum += n * 3; } }";

fn main() {
    println!("{:<26}{:>15}{:>15}{:>15}", "", "us", "us, cold", "faults");
    for (name, script) in [
        ("no-op", "fn on_request(ctx) {}"),
        ("read 1 header", r#"fn on_request(ctx) { let key = ctx.request.headers["x-api-key"]; }"#),
        ("set 1 header", r#"fn on_request(ctx) { ctx.request.headers["x-marked"] = "blue"; }"#),
        ("a loop", LOOP),
        ("bench-policy", POLICY),
    ] {
        let cost = cost::measure(&build(script));
        println!("{name:<26}{:>15.2}{:>15.2}{:>15.1}", cost.micros, cost.cold_micros, cost.faults);
    }
}

fn build(script: &str) -> TestedPlugin {
    let table = json!({ "file": "policy.rhai", "config": { "key": "open-sesame" } });
    PluginTester::new().file("policy.rhai", script.to_owned()).build::<Script>(table).unwrap()
}
