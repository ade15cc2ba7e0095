//! What the hooks of a policy cost, measured for the benchmarks of scripts and modules alike: CPU time of the
//! thread, kernel included, and page faults. What only an exchange costs is left out.

use std::hint::black_box;

use portcullis_plugin::{Decision, Exchange, ExchangeBuilder, Hook, HookName, TestedPlugin, thread_time};

/// Exchanges that are made before their hooks are timed together.
const BATCH: usize = 64;

/// Batches before the first and between the first and the last that count.
const WARM_UP: usize = 20;
const BATCHES: usize = 300;

/// Bytes that go through the caches between two calls, where calls are measured cold.
const OTHER_WORK: usize = 4 << 20;

/// Per exchange.
pub(crate) struct Cost {
    pub(crate) micros: f64,
    /// When the caches hold something else, as they do between two requests.
    pub(crate) cold_micros: f64,
    pub(crate) faults: f64,
}

/// The cost of `on_request` and `on_response` of one exchange.
pub(crate) fn measure(policy: &TestedPlugin) -> Cost {
    let (micros, faults) = warm(policy);
    Cost { micros, cold_micros: cold(policy), faults }
}

fn run(policy: &TestedPlugin, exchange: &mut Exchange) {
    let policy = policy.plugin();
    judge(policy.on_request(exchange));
    if policy.needs().wants(HookName::OnResponse) {
        judge(policy.on_response(exchange));
    }
}

/// None of the policies waits, and the exchange is to their liking.
fn judge(hook: Hook<'_>) {
    assert!(matches!(black_box(hook), Hook::Ready(Ok(Decision::Continue))));
}

fn warm(policy: &TestedPlugin) -> (f64, f64) {
    let (mut times, mut faulted) = (Vec::with_capacity(BATCHES), 0);
    for batch in 0..WARM_UP + BATCHES {
        let mut exchanges: Vec<_> = std::iter::repeat_with(exchange).take(BATCH).collect();
        let (start, faults) = (thread_time(), thread_faults());
        for exchange in &mut exchanges {
            run(policy, exchange);
        }
        if batch >= WARM_UP {
            times.push(thread_time() - start);
            faulted += thread_faults() - faults;
        }
    }
    times.sort();
    (times[BATCHES / 2].as_secs_f64() * 1e6 / BATCH as f64, faulted as f64 / (BATCH * BATCHES) as f64)
}

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
    timed(&mut || run(policy, &mut exchanges.next().unwrap())) - clock
}

fn exchange() -> Exchange {
    let headers = [("user-agent", "curl/8.5.0"), ("accept", "*/*"), ("x-api-key", "open-sesame")];
    let request = ExchangeBuilder::get("/users/42?page=7");
    let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    request.response(200, &[("content-type", "application/json")], "").build()
}

/// Page faults of this thread that needed no disk.
fn thread_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    // After the name, which may hold anything: state, five ids, tty, flags, faults.
    let numbers = stat.rsplit_once(')').map(|(_, numbers)| numbers.split_whitespace());
    numbers.and_then(|mut numbers| numbers.nth(7)?.parse().ok()).unwrap_or_default()
}
