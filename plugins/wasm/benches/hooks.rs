//! What the hooks of a Wasm policy cost per exchange: `cargo bench -p portcullis-wasm`, with a part of a
//! row's name at the end for that row alone.
//!
//! Modules of `tests/guests/build` and of the gateway's benchmark are measured if they are there.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool")]

use portcullis_plugin::{PluginTester, TestedPlugin};
use portcullis_wasm::Module;
use serde_json::{Value, json};

#[path = "../../benches/cost.rs"]
mod cost;
#[path = "../src/tests/handmade.rs"]
mod handmade;

const EXCHANGE: &str = "portcullis:policy/exchange@0.1.0";

fn main() {
    let columns = ["fresh, us", "reuse, us", "fresh, cold", "reuse, cold", "fresh, faults"];
    println!("{:<26}{}", "", columns.map(|column| format!("{column:>15}")).concat());
    for (name, module) in [("no-op", noop()), ("read 1 header", read()), ("set 1 header", set())] {
        report(name, &module, &json!({}));
    }
    let blocked = json!({ "prefixes": ["/internal", "/admin"] });
    for (name, file, config) in [
        ("block-path", "block_path", blocked),
        ("bench-policy", "bench_policy", json!({ "key": "open-sesame" })),
    ] {
        let path = format!("{}/../../target/guests/{file}.wasm", env!("CARGO_MANIFEST_DIR"));
        match std::fs::read(path) {
            Ok(module) => {
                report(name, &module, &config);
                report(&format!("{name}, component"), &component(&module), &config);
            }
            Err(_) => {
                println!("{name} is left out: run tests/guests/build, tests/wasm-cargo tests/bench/guest")
            }
        }
    }
}

/// Measures what is named on the command line, or everything.
fn report(name: &str, module: &[u8], config: &Value) {
    let mut wanted = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    if wanted.peek().is_some() && !wanted.any(|wanted| name.contains(&wanted)) {
        return;
    }
    let [fresh, reuse] = [json!("fresh"), json!({ "reuse": 1_000_000 })]
        .map(|isolation| cost::measure(&build(module, config, &isolation)));
    let times = [fresh.micros, reuse.micros, fresh.cold_micros, reuse.cold_micros];
    let times = times.map(|micros| format!("{micros:>15.2}"));
    println!("{name:<26}{}{:>15.1}", times.concat(), fresh.faults);
}

/// The same as a component, whose instances begin unconfigured.
fn component(module: &[u8]) -> Vec<u8> {
    let encoder = wit_component::ComponentEncoder::default().module(module);
    encoder.and_then(|mut encoder| encoder.encode()).unwrap()
}

fn build(module: &[u8], config: &Value, isolation: &Value) -> TestedPlugin {
    let table = json!({ "file": "guest.wasm", "config": config, "isolation": isolation });
    PluginTester::new().file("guest.wasm", module.to_vec()).build::<Module>(table).unwrap()
}

fn noop() -> Vec<u8> {
    handmade::module(&["on-request"], &handmade::hook("on-request", ""))
}

fn read() -> Vec<u8> {
    let import = format!(r#"(import "{EXCHANGE}" "header" (func $header (param i32 i32 i32 i32)))"#);
    let call = "(call $header (i32.const 0) (i32.const 512) (i32.const 9) (i32.const 2048))";
    let body = [r#"(data (i32.const 512) "x-api-key")"#, &handmade::hook("on-request", call)].concat();
    handmade::importing(&import, &["on-request"], &body)
}

fn set() -> Vec<u8> {
    let import = format!(r#"(import "{EXCHANGE}" "set-header" (func $set (param i32 i32 i32 i32 i32 i32)))"#);
    let call = "(call $set (i32.const 0) (i32.const 512) (i32.const 8) (i32.const 520) (i32.const 4) (i32.const 2048))";
    let body = [r#"(data (i32.const 512) "x-markedblue")"#, &handmade::hook("on-request", call)].concat();
    handmade::importing(&import, &["on-request"], &body)
}
