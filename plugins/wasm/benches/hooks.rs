//! What a hook of a Wasm policy costs: `cargo bench -p portcullis-wasm`, with a part of a
//! row's name at the end for that row alone.
//!
//! Per call: CPU time of the thread, kernel included, and page faults. What only an exchange costs is
//! left out. Modules of `tests/guests/build` are measured if they are there.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool")]

use std::hint::black_box;

use portcullis_plugin::{Exchange, ExchangeBuilder, PluginTester, TestedPlugin, thread_time};
use portcullis_wasm::Module;
use serde_json::{Value, json};

#[path = "../src/tests/handmade.rs"]
mod handmade;

/// Exchanges that are made before their hooks are timed together.
const BATCH: usize = 64;

/// Batches before the first and between the first and the last that count.
const WARM_UP: usize = 20;
const BATCHES: usize = 300;

/// Bytes that go through the caches between two calls, where calls are measured cold.
const OTHER_WORK: usize = 4 << 20;

const EXCHANGE: &str = "portcullis:policy/exchange@0.1.0";

fn main() {
    let columns = ["fresh, us", "reuse, us", "fresh, cold", "reuse, cold", "fresh, faults"];
    println!("{:<26}{}", "", columns.map(|column| format!("{column:>15}")).concat());
    for (name, module) in [("no-op", noop()), ("read 1 header", read()), ("set 1 header", set())] {
        report(name, &module, &json!({}));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/guests/block_path.wasm");
    let Ok(module) = std::fs::read(path) else {
        println!("block-path is left out: run tests/guests/build");
        return;
    };
    let config = json!({ "prefixes": ["/internal", "/admin"] });
    report("block-path", &module, &config);
    report("block-path, component", &component(&module), &config);
}

/// Measures what is named on the command line, or everything.
fn report(name: &str, module: &[u8], config: &Value) {
    let mut wanted = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    if wanted.peek().is_some() && !wanted.any(|wanted| name.contains(&wanted)) {
        return;
    }
    let [fresh, reuse] = [json!("fresh"), json!({ "reuse": 1_000_000 })].map(|isolation| {
        let policy = build(module, config, &isolation);
        (measure(&policy), cold(&policy))
    });
    let times = [fresh.0.micros, reuse.0.micros, fresh.1, reuse.1].map(|micros| format!("{micros:>15.2}"));
    println!("{name:<26}{}{:>15.1}", times.concat(), fresh.0.faults);
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

/// Per call of `on_request`.
struct Cost {
    micros: f64,
    faults: f64,
}

fn measure(policy: &TestedPlugin) -> Cost {
    let (mut times, mut faulted) = (Vec::with_capacity(BATCHES), 0);
    for batch in 0..WARM_UP + BATCHES {
        let mut exchanges: Vec<_> = std::iter::repeat_with(exchange).take(BATCH).collect();
        let (start, faults) = (thread_time(), thread_faults());
        for exchange in &mut exchanges {
            black_box(policy.on_request(exchange).unwrap());
        }
        if batch >= WARM_UP {
            times.push(thread_time() - start);
            faulted += thread_faults() - faults;
        }
    }
    times.sort();
    Cost {
        micros: times[BATCHES / 2].as_secs_f64() * 1e6 / BATCH as f64,
        faults: faulted as f64 / (BATCH * BATCHES) as f64,
    }
}

/// Microseconds of a call when the caches hold something else, as they do between two requests.
fn cold(policy: &TestedPlugin) -> f64 {
    let mut other = vec![0_u8; OTHER_WORK];
    let mut timed = |work: &mut dyn FnMut()| {
        let mut times: Vec<_> = std::iter::repeat_with(|| {
            other.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
            let start = thread_time();
            work();
            thread_time() - start
        })
        .take(BATCHES)
        .collect();
        times.sort();
        times[BATCHES / 2].as_secs_f64() * 1e6
    };
    let clock = timed(&mut || ());
    let mut exchanges = std::iter::repeat_with(exchange).take(BATCHES).collect::<Vec<_>>().into_iter();
    timed(&mut || drop(black_box(policy.on_request(&mut exchanges.next().unwrap()).unwrap()))) - clock
}

fn exchange() -> Exchange {
    let headers = [("user-agent", "curl/8.5.0"), ("accept", "*/*"), ("x-tenant", "blue")];
    let request = ExchangeBuilder::get("/users/42?page=7");
    headers.into_iter().fold(request, |request, (name, value)| request.header(name, value)).build()
}

/// Page faults of this thread that needed no disk.
fn thread_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    // After the name, which may hold anything: state, five ids, tty, flags, faults.
    let numbers = stat.rsplit_once(')').map(|(_, numbers)| numbers.split_whitespace());
    numbers.and_then(|mut numbers| numbers.nth(7)?.parse().ok()).unwrap_or_default()
}

fn noop() -> Vec<u8> {
    handmade::module(&["on-request"], &handmade::hook("on-request", ""))
}

fn read() -> Vec<u8> {
    let import = format!(r#"(import "{EXCHANGE}" "header" (func $header (param i32 i32 i32 i32)))"#);
    let call = "(call $header (i32.const 0) (i32.const 512) (i32.const 8) (i32.const 2048))";
    let body = [r#"(data (i32.const 512) "x-tenant")"#, &handmade::hook("on-request", call)].concat();
    handmade::importing(&import, &["on-request"], &body)
}

fn set() -> Vec<u8> {
    let import = format!(r#"(import "{EXCHANGE}" "set-header" (func $set (param i32 i32 i32 i32 i32 i32)))"#);
    let call = "(call $set (i32.const 0) (i32.const 512) (i32.const 8) (i32.const 520) (i32.const 4) (i32.const 2048))";
    let body = [r#"(data (i32.const 512) "x-markedblue")"#, &handmade::hook("on-request", call)].concat();
    handmade::importing(&import, &["on-request"], &body)
}
