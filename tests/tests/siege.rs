//! What takes long to see of hostile and of often replaced policies: how long others wait beside attacks, and that nothing
//! is left behind by reloads.
//!
//! In the suite each runs for a moment. `tests/soak` lets them run for as long as they were meant to, optimised; only then
//! times and memory are judged.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on ends, and these report"
)]

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use portcullis_tests::tools::guest;
use portcullis_tests::{Gateway, Http, Origin, Setup, Stop, Timetable, request, until, wait_until};

/// How many seconds, if it is to be long.
const VARIABLE: &str = "PORTCULLIS_SOAK";

fn seconds() -> Option<u64> {
    std::env::var(VARIABLE).ok().map(|seconds| seconds.parse().unwrap())
}

/// How much of what it could serve the gateway is asked beside the attacks.
const BASE_LOAD: f64 = 0.3;
const ATTACK_EVERY: Duration = Duration::from_millis(100);
/// By how much others may wait longer for attacks, and how much longer once the attackers are in quarantine.
const LONGER: Duration = Duration::from_millis(3);
const AS_BEFORE: f64 = 1.2;
/// What memory may grow by, in KiB.
const GROWTH: u64 = 4096;
/// Failures until a policy is put into quarantine.
const FAILURES: usize = 5;

/// What scripts and modules do, each on the way in.
const SCRIPTS: [&str; 5] = [
    "loop { }",
    "let s = \"x\"; loop { s += s; }",
    "let a = []; loop { a = [a, a]; }",
    "loop { try { throw 1; } catch { } }",
    "for n in 0..5000 { regex_is_match(`a${n}`, \"a\"); }",
];
const MODULES: [&str; 5] = ["spin", "bomb", "recurse", "panic", "chatter"];

/// The attackers on listeners of their own, since modules of this kind judge connections too.
fn besieged(on_error: &str, module: &[u8], origin: &Origin) -> Gateway {
    let mut listeners = String::new();
    let mut attacker = |number: usize, plugin: String| {
        writeln!(
            listeners,
            "  - {{ name: a{number}, bind: 127.0.0.{}:0, plugins: [{{ on_error: {on_error}, {plugin} }}] }}",
            number + 2
        )
        .unwrap();
    };
    for number in 0..SCRIPTS.len() {
        attacker(number, format!("rhai: {{ file: s{number}.rhai }}"));
    }
    for (number, act) in MODULES.iter().enumerate() {
        let plugin = format!("wasm: {{ file: m.wasm, config: {{ on_request: {act} }} }}");
        attacker(SCRIPTS.len() + number, plugin);
    }
    let config = format!(
        "
workers: 1
listeners:
  - {{ name: main, bind: 127.0.0.1:0 }}
{listeners}upstreams: {{ origin: {{ endpoints: [\"http://${{ORIGIN}}\"] }} }}
routes: [{{ match: {{ prefix: / }}, upstream: origin }}]
"
    );
    let setup = SCRIPTS.iter().enumerate().fold(Setup::new(&config), |setup, (number, does)| {
        setup.file(&format!("s{number}.rhai"), format!("fn on_request(ctx) {{ {does} }}\n"))
    });
    setup.file("m.wasm", module).before(origin).start()
}

/// Attacks one policy after the other, by a timetable; what each attack ends in, none if the connection was not taken.
fn attack(gateway: &Gateway, stop: &AtomicBool) -> Vec<Option<u16>> {
    let mut verdicts = Vec::new();
    let mut due = Instant::now();
    for number in (0..SCRIPTS.len() + MODULES.len()).cycle() {
        wait_until(due);
        if stop.load(SeqCst) {
            break;
        }
        let answer = Http::connect(gateway.listener(&format!("a{number}")))
            .and_then(|mut http| http.ask(&request("GET", "/")));
        verdicts.push(answer.ok().map(|answer| answer.status));
        due += ATTACK_EVERY;
    }
    verdicts
}

/// How long 99 of 100 took at the most.
fn p99(took: &[Duration]) -> Duration {
    took[took.len() * 99 / 100]
}

/// The timetable with attacks beside it: how long its requests took, and what the attacks ended in.
fn beside_attacks(
    gateway: &Gateway,
    timetable: &Timetable,
    time: Duration,
) -> (Vec<Duration>, Vec<Option<u16>>) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| attack(gateway, &over));
        let took = {
            let _stop = Stop(&over);
            timetable.run(gateway.address(), time)
        };
        (took, attacker.join().unwrap())
    })
}

#[test]
fn others_hardly_wait_longer_beside_hostile_policies() {
    let Some(module) = guest("hostile") else { return };
    let time = Duration::from_secs(seconds().unwrap_or(2));
    let origin = Origin::start();
    let gateway = besieged("deny", &module, &origin);
    let timetable = Timetable::with_share(gateway.address(), BASE_LOAD, time.min(Duration::from_secs(3)));
    let idle = timetable.run(gateway.address(), time);
    let (warm, (attacked, verdicts)) = (gateway.memory(), beside_attacks(&gateway, &timetable, time));
    let end = gateway.memory();
    assert!(verdicts.iter().all(|status| *status == Some(500)), "{verdicts:?}");
    drop(gateway);

    let quarantine = format!("{{ quarantine: {{ failures: {FAILURES}, within: 1h, first: 1h }} }}");
    let gateway = besieged(&quarantine, &module, &origin);
    let attackers = (SCRIPTS.len() + MODULES.len()) as f64;
    let are_out = || gateway.metric("portcullis_plugin_quarantined", &[]) == attackers;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| attack(&gateway, &over));
        let _stop = Stop(&over);
        until("every attacker to be in quarantine", are_out);
    });
    let (resting, verdicts) = beside_attacks(&gateway, &timetable, time);
    // A module in quarantine does not judge connections either, so none is taken.
    assert!(verdicts.iter().all(|status| matches!(status, None | Some(503))), "{verdicts:?}");

    println!(
        "{:.0} requests a second, p99 {:?}; beside {} attacks {:?}, with the attackers in quarantine {:?}; \
         memory {warm} KiB, after the attacks {end} KiB",
        timetable.rate(),
        p99(&idle),
        verdicts.len(),
        p99(&attacked),
        p99(&resting),
    );
    if seconds().is_some() {
        assert!(end <= warm + GROWTH, "memory grew from {warm} to {end} KiB");
        assert!(p99(&attacked) <= p99(&idle) + LONGER);
        assert!(p99(&resting) <= p99(&idle).mul_f64(AS_BEFORE));
    }
}

/// Reloads in the suite, and by hand.
const FEW: u32 = 30;
const MANY: u32 = 10_000;
/// Editions of a module that follow each other, so that not each one is compiled anew.
const EDITIONS: u32 = 5;
/// From one request to the next.
const PAUSE: Duration = Duration::from_millis(2);

/// Modules of each interface, with what their tables say besides.
const KINDS: [(&str, &str); 3] = [
    ("conformance", "isolation: { reuse: 3 }, config: { greeting: hello }"),
    ("http_wasm_handler", "isolation: { reuse: 3 }"),
    ("proxy_wasm_guest", "cpu: 50ms"),
];

/// The same code in another file: there is a custom section of another length behind it.
fn edition(module: &[u8], number: u32) -> Vec<u8> {
    let length = (number % EDITIONS) as u8 + 1;
    [module, &[0, 2 + length, 1, b'x'], &vec![length; usize::from(length)]].concat()
}

#[test]
fn no_instance_of_a_module_is_left_behind_by_reloads_under_load() {
    let Some(modules) = KINDS.iter().map(|(name, _)| guest(name)).collect::<Option<Vec<_>>>() else { return };
    let reloads = if seconds().is_some() { MANY } else { FEW };
    let plugin = |(name, options): &(&str, &str)| {
        format!("{{ name: {name}, wasm: {{ file: {name}.wasm, {options} }} }}")
    };
    let plugins = KINDS.each_ref().map(plugin).join(", ");
    let config = format!(
        "
listeners: [{{ bind: 127.0.0.1:0 }}]
upstreams: {{ origin: {{ endpoints: [\"http://${{ORIGIN}}\"] }} }}
routes: [{{ match: {{ prefix: / }}, upstream: origin, plugins: [{plugins}] }}]
"
    );
    let origin = Origin::start();
    let setup = KINDS.iter().zip(&modules);
    let setup = setup
        .fold(Setup::new(&config), |setup, ((name, _), module)| setup.file(&format!("{name}.wasm"), module));
    let gateway = setup.before(&origin).start();
    let instances = |event: &str| {
        gateway.metric("portcullis_plugin_wasm_instances_total", &[&format!("event=\"{event}\"")])
    };
    let (over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut warm = None;
    std::thread::scope(|threads| {
        let _stop = Stop(&over);
        threads.spawn(|| {
            let mut http = gateway.connect();
            while !over.load(SeqCst) {
                // A load that leaves room for reloads.
                let next = Instant::now() + PAUSE;
                assert_eq!(http.ask(&request("GET", "/")).unwrap().status, 200);
                asked.fetch_add(1, SeqCst);
                wait_until(next);
            }
        });
        for turn in 1..=reloads {
            let kind = turn as usize % KINDS.len();
            gateway.edit(&format!("{}.wasm", KINDS[kind].0), edition(&modules[kind], turn));
            // The watcher may have been quicker.
            assert_eq!(gateway.admin("POST", "/reload").status, 200);
            let before = asked.load(SeqCst);
            until("a request", || asked.load(SeqCst) > before);
            if turn == reloads / 10 {
                warm = Some(gateway.memory());
            }
        }
    });
    let (warm, end) = (warm.unwrap(), gateway.memory());
    println!(
        "{reloads} reloads under {} requests: {} instances made; memory {warm} KiB, at the end {end} KiB",
        asked.load(SeqCst),
        instances("made"),
    );
    assert!(gateway.generation() > u64::from(reloads), "{}", gateway.generation());
    assert!(instances("made") > f64::from(reloads));
    if seconds().is_some() {
        assert!(end <= warm + GROWTH, "memory grew from {warm} to {end} KiB");
    }
    // Of all generations only the last of each module has instances, and none once it is gone.
    let alive = || {
        let page = gateway.admin("GET", "/metrics").text();
        page.lines().filter(|line| line.starts_with("portcullis_plugin_wasm_live_instances{")).count()
    };
    until("the generations before to be gone", || alive() == KINDS.len());
    gateway.replace("gateway.yaml", &plugins, "");
    until("every instance to end", || instances("made") == instances("ended") && alive() == 0);
}
