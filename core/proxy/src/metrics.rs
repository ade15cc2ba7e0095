//! What the data plane counts.
//!
//! Every worker counts in a row of its own, so that counting costs no traffic between cores; rows
//! are added up when somebody asks. Counters belong to names (route, plugin instance, upstream) and
//! outlive generations.

mod budgets;
mod store;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use portcullis_plugin::{ErrorKind, HookName, InstanceCounters, Tally, Verdict};

pub use budgets::{BudgetMetrics, SHARES};
pub use store::{StoreMetrics, StoreOperation};

use crate::body::Budget;
use crate::grpc::{CODES, Code};
use crate::upstream::{Circuit, Learned, P95, Slots};

thread_local! {
    static ROW: Cell<usize> = const { Cell::new(0) };
}

/// Rows of counters: one per worker, and one for every other thread together.
#[derive(Debug, Clone, Copy)]
struct Rows(usize);

/// Makes the current thread count in the row of worker `index`.
pub(crate) fn count_as_worker(index: usize) {
    ROW.set(index + 1);
}

/// Whether the calling thread is a worker.
pub(crate) fn is_worker() -> bool {
    ROW.get() > 0
}

/// Upper bounds of latency buckets, seconds; Prometheus' `le`.
pub const BUCKETS: [f64; 22] = [
    0.000_001, 0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// A counter with a row per worker.
#[derive(Debug)]
pub struct Counter(Box<[Padded<AtomicU64>]>);

/// Two cache lines, so that neighbours do not share one (prefetching works in pairs).
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

impl Counter {
    fn new(rows: Rows) -> Self {
        Counter((0..rows.0).map(|_| Padded::default()).collect())
    }

    /// One more; returns how many this worker had counted.
    pub fn increment(&self) -> u64 {
        self.add(1)
    }

    /// `count` more; returns how many this worker had counted.
    pub fn add(&self, count: u64) -> u64 {
        self.0.get(ROW.get()).map_or(0, |row| row.0.fetch_add(count, Relaxed))
    }

    /// One less, for gauges. Rows may wrap; their sum does not.
    pub fn decrement(&self) {
        self.add(u64::MAX);
    }

    /// The sum of all rows.
    pub fn value(&self) -> u64 {
        self.0.iter().fold(0, |sum, row| sum.wrapping_add(row.0.load(Relaxed)))
    }
}

impl Tally for Counter {
    fn add(&self, count: u64) {
        Counter::add(self, count);
    }

    fn value(&self) -> u64 {
        Counter::value(self)
    }
}

/// A latency histogram with a row per worker.
#[derive(Debug)]
pub struct Histogram(Box<[Row]>);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Row {
    buckets: [AtomicU64; BUCKETS.len() + 1],
    nanos: AtomicU64,
}

/// A histogram's sum over all workers.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramValue {
    /// Observations per bucket, not cumulated; the last is beyond every bound.
    pub buckets: [u64; BUCKETS.len() + 1],
    /// Sum of all observations, seconds.
    pub sum: f64,
}

impl Histogram {
    fn new(rows: Rows) -> Self {
        Histogram((0..rows.0).map(|_| Row::default()).collect())
    }

    /// Adds an observation.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BUCKETS.partition_point(|bound| *bound < seconds);
        if let Some(row) = self.0.get(ROW.get()) {
            row.buckets[bucket].fetch_add(1, Relaxed);
            row.nanos.fetch_add(duration.as_nanos() as u64, Relaxed);
        }
    }

    /// The sum of all rows.
    pub fn value(&self) -> HistogramValue {
        let mut value = HistogramValue { buckets: [0; BUCKETS.len() + 1], sum: 0.0 };
        for row in &self.0 {
            for (sum, bucket) in value.buckets.iter_mut().zip(&row.buckets) {
                *sum += bucket.load(Relaxed);
            }
            value.sum += row.nanos.load(Relaxed) as f64 / 1e9;
        }
        value
    }
}

/// What is counted per route.
#[derive(Debug)]
pub struct RouteMetrics {
    /// Responses by status class, 1xx to 5xx; the first is what ended without a response.
    pub responses: [Counter; 6],
    /// From the request's head to the end of the response.
    pub duration: Histogram,
}

/// What is counted per plugin instance.
#[derive(Debug)]
pub struct PluginMetrics {
    /// Its kind.
    pub kind: &'static str,
    /// Time spent, per hook, in the order of [`HookName::ALL`].
    pub hooks: [Histogram; HookName::ALL.len()],
    /// Answers it gave in place of the upstream.
    pub responses: Counter,
    /// Connections and exchanges it dropped.
    pub drops: Counter,
    /// Failures, by [`ErrorKind`] in the order of [`PluginMetrics::ERRORS`].
    pub errors: [Counter; 5],
    /// Times that it was put into quarantine.
    pub quarantines: Counter,
    /// Calls that were not made because it was in quarantine.
    pub quarantined: Counter,
    /// How much of its budgets its calls used.
    pub budgets: BudgetMetrics,
    /// What it counts itself.
    pub own: Arc<InstanceCounters>,
    /// What it would have done, in shadow.
    pub shadow: Arc<ShadowMetrics>,
}

/// What is counted of a plugin in shadow.
#[derive(Debug)]
pub struct ShadowMetrics {
    /// Exchanges that it saw.
    pub exchanges: Counter,
    /// What it answered, in the order of [`ShadowMetrics::VERDICTS`].
    pub verdicts: [Counter; ShadowMetrics::VERDICTS.len()],
    refused: Mutex<WouldRefuse>,
}

/// What a plugin in shadow would have refused.
#[derive(Debug, Clone, Default)]
pub struct WouldRefuse {
    /// By reason and route; what is beyond their number has neither.
    pub reasons: BTreeMap<(String, String), u64>,
    /// By client; what is beyond their number is none's.
    pub clients: BTreeMap<Option<IpAddr>, u64>,
}

/// Pairs of reason and route that are told apart per plugin in shadow, and clients.
const MAX_SHADOW_REASONS: usize = 256;
const MAX_SHADOW_CLIENTS: usize = 4096;

impl ShadowMetrics {
    /// What a plugin in shadow may come to.
    pub const VERDICTS: [&'static str; 5] = ["continue", "change", "respond", "drop", "error"];

    fn new(rows: Rows) -> Self {
        ShadowMetrics {
            exchanges: Counter::new(rows),
            verdicts: std::array::from_fn(|_| Counter::new(rows)),
            refused: Mutex::default(),
        }
    }

    /// Whether there was anything to see.
    pub fn has_seen(&self) -> bool {
        self.verdicts.iter().any(|count| count.value() > 0)
    }

    /// What it would have refused so far.
    pub fn refused(&self) -> WouldRefuse {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn count(&self, verdict: Verdict, changed: bool) {
        let [goes_on, change, respond, drop, error] = &self.verdicts;
        match verdict {
            Verdict::Continue | Verdict::Filter if changed => change,
            Verdict::Continue | Verdict::Filter | Verdict::Quarantined => goes_on,
            Verdict::Respond => respond,
            Verdict::Drop => drop,
            Verdict::Error(_) => error,
        }
        .increment();
    }

    pub(crate) fn refuse(&self, reason: &str, route: &str, client: IpAddr) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let WouldRefuse { reasons, clients } = &mut *refused;
        count_up(reasons, (reason.to_owned(), route.to_owned()), MAX_SHADOW_REASONS);
        count_up(clients, Some(client), MAX_SHADOW_CLIENTS);
    }
}

/// One more under `key`, or under the default where there are as many as there may be.
fn count_up<K: Ord + Default>(counts: &mut BTreeMap<K, u64>, key: K, most: usize) {
    let is_room = counts.len() < most || counts.contains_key(&key);
    *counts.entry(if is_room { key } else { K::default() }).or_default() += 1;
}

impl UpstreamMetrics {
    pub(crate) fn count_call(&self, code: Code) {
        let calls = self.calls.get_or_init(|| std::array::from_fn(|_| Counter::new(self.rows)));
        if let Some(counter) = calls.get(code.index()) {
            counter.increment();
        }
    }

    /// How calls of gRPC ended, by the names of the codes that there were.
    pub fn calls(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counters = self.calls.get().into_iter().flatten();
        let counted = CODES.into_iter().zip(counters.map(Counter::value));
        counted.filter(|(_, count)| *count > 0)
    }

    /// Requests sent.
    pub fn attempts(&self) -> u64 {
        self.firsts.value() + self.repeats.value()
    }
}

impl PluginMetrics {
    /// The kinds of failure and their label.
    pub const ERRORS: [(ErrorKind, &'static str); 5] = [
        (ErrorKind::Failed, "failed"),
        (ErrorKind::Timeout, "timeout"),
        (ErrorKind::Budget, "budget"),
        (ErrorKind::Trap, "trap"),
        (ErrorKind::Panic, "panic"),
    ];

    pub(crate) fn error(&self, kind: ErrorKind) {
        let at = Self::ERRORS.iter().position(|(known, _)| *known == kind).unwrap_or_default();
        self.errors[at].increment();
    }
}

/// What is counted per upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    /// First attempts; the worker's count is the turn.
    pub(crate) firsts: Counter,
    /// Attempts after the first, on whatever ground.
    pub(crate) repeats: Counter,
    /// Connections opened.
    pub connects: Counter,
    /// Those of them that speak HTTP/2.
    pub http2_connects: Counter,
    /// Connections that could not be opened.
    pub connect_failures: Counter,
    /// Answers of DNS about its endpoints.
    pub lookups: Counter,
    /// Questions about them that DNS did not answer, or in part, or with nothing.
    pub lookup_failures: Counter,
    /// Attempts that failed after a connection was there, timeouts and responses that broke off included.
    pub failures: Counter,
    /// Attempts that met a connection which was closed already, and were made once more over another.
    pub stale: Counter,
    /// Attempts after the first.
    pub retries: Counter,
    /// Attempts that were not made because too many retries were under way.
    pub retries_refused: Counter,
    /// Attempts beside one that took long.
    pub hedges: Counter,
    /// Those of them that were answered first.
    pub hedges_won: Counter,
    /// Requests refused because too many were under way, and as many waited as may.
    pub overloads: Counter,
    /// Requests refused because they had waited too long for others to end.
    pub pending_timeouts: Counter,
    /// Requests refused because the circuit was open.
    pub circuit_refusals: Counter,
    /// Times that the circuit opened.
    pub circuit_opens: Counter,
    /// Requests under way, to the end of their responses.
    pub in_flight: Counter,
    /// Retries under way, to the heads of their responses.
    pub(crate) retrying: AtomicU64,
    /// Requests under way where they are limited, and those that wait.
    pub slots: Slots,
    /// How many requests under way an adaptive limit allows.
    pub learned: Learned,
    /// The time within which all but a twentieth of the requests are answered.
    pub(crate) p95: P95,
    /// Whether requests are sent at all.
    pub circuit: Circuit,
    /// Held while an endpoint is ejected, which is a matter of how many others are.
    pub(crate) ejecting: Mutex<()>,
    /// From the attempt to the response's head.
    pub duration: Histogram,
    /// How calls of gRPC ended, by code; none before the first, because few upstreams have any.
    calls: OnceLock<[Counter; CODES.len()]>,
    rows: Rows,
}

/// Why a client's connection was closed as soon as it was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The listener has as many as it may have.
    Listener,
    /// Its client has as many as one may have.
    Client,
    /// Its client has begun as many TLS handshakes as one may.
    Handshakes,
    /// A plugin dropped it.
    Plugin,
}

impl Refused {
    /// Every reason with its label.
    pub const ALL: [(Refused, &'static str); 4] = [
        (Refused::Listener, "connections"),
        (Refused::Client, "connections_per_client"),
        (Refused::Handshakes, "handshakes_per_client"),
        (Refused::Plugin, "plugin"),
    ];
}

/// Why the gateway gave a client up, or a stream of its.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// The TLS handshake took too long.
    Handshake,
    /// A head took too long.
    Header,
    /// A body stopped, or came too slowly.
    Body,
    /// A response was not taken, or too slowly.
    Write,
    /// There was no request for too long.
    Idle,
    /// More HTTP/2 frames than the requests call for.
    Frames,
    /// More HTTP/2 requests were reset than served.
    Resets,
    /// Broken HTTP/2, or more of something than its library bears.
    Http2,
}

impl GivenUp {
    /// Every reason with its label.
    pub const ALL: [(GivenUp, &'static str); 8] = [
        (GivenUp::Handshake, "handshake_timeout"),
        (GivenUp::Header, "header_timeout"),
        (GivenUp::Body, "body_timeout"),
        (GivenUp::Write, "write_timeout"),
        (GivenUp::Idle, "idle_timeout"),
        (GivenUp::Frames, "http2_frames"),
        (GivenUp::Resets, "http2_resets"),
        (GivenUp::Http2, "http2_error"),
    ];
}

/// What is counted of the copies of a route's requests.
#[derive(Debug)]
pub struct MirrorMetrics {
    /// Copies sent.
    pub sent: Counter,
    /// Requests not copied because too many copies were under way, or too many bodies held in memory.
    pub busy: Counter,
    /// Requests not copied because their bodies are too long.
    pub too_long: Counter,
    /// Requests not copied because nobody had said yet where the upstream is.
    pub nowhere: Counter,
    /// Requests not copied because their bodies broke off, or were not sent to their end.
    pub broken_off: Counter,
    /// Copies under way: one number for all workers, so that the limit is exact.
    pub(crate) under_way: AtomicU32,
}

impl MirrorMetrics {
    /// Copies under way.
    pub fn under_way(&self) -> u32 {
        self.under_way.load(Relaxed)
    }
}

/// All counters of the process.
#[derive(Debug)]
pub struct Metrics {
    rows: Rows,
    /// Client connections accepted.
    pub connections: Counter,
    /// Client connections open now.
    pub connections_open: Counter,
    /// Client connections closed at once, in the order of [`Refused::ALL`].
    pub connections_refused: [Counter; Refused::ALL.len()],
    /// Clients given up, in the order of [`GivenUp::ALL`].
    pub given_up: [Counter; GivenUp::ALL.len()],
    /// Connections that did not begin with the PROXY header that their listener wants, or came from
    /// elsewhere than it takes them from.
    pub proxy_protocol_failures: Counter,
    /// TLS handshakes that failed.
    pub handshake_failures: Counter,
    /// Exchanges that are under way.
    pub exchanges_open: Counter,
    /// Exchanges refused because too many were under way.
    pub exchanges_refused: Counter,
    /// Those of them that have become tunnels.
    pub tunnels_open: Counter,
    /// Exchanges whose `on_log` could not run because the queue was full.
    pub logs_dropped: Counter,
    /// What the gateway itself answered, by reason.
    refusals: Named<&'static str, Counter>,
    /// Whole bodies held in memory now; each configuration sets the limit.
    pub whole_bodies: Arc<Budget>,
    /// The store that plugins share.
    pub store: Arc<StoreMetrics>,
    routes: Named<Box<str>, RouteMetrics>,
    plugins: Named<(Box<str>, &'static str), PluginMetrics>,
    upstreams: Named<Box<str>, UpstreamMetrics>,
    mirrors: Named<Box<str>, MirrorMetrics>,
}

impl Metrics {
    /// Counters for this many workers.
    pub fn new(workers: usize) -> Self {
        let rows = Rows(workers + 1);
        let counter = || Counter::new(rows);
        Metrics {
            rows,
            connections: counter(),
            connections_open: counter(),
            connections_refused: std::array::from_fn(|_| counter()),
            given_up: std::array::from_fn(|_| counter()),
            proxy_protocol_failures: counter(),
            handshake_failures: counter(),
            exchanges_open: counter(),
            exchanges_refused: counter(),
            tunnels_open: counter(),
            logs_dropped: counter(),
            refusals: Mutex::default(),
            whole_bodies: Budget::new(0),
            store: Arc::new(StoreMetrics::new(rows)),
            routes: Mutex::default(),
            plugins: Mutex::default(),
            upstreams: Mutex::default(),
            mirrors: Mutex::default(),
        }
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.rows.0 - 1
    }

    pub(crate) fn refuse(&self, why: Refused) {
        self.connections_refused[why as usize].increment();
    }

    pub(crate) fn give_up(&self, why: GivenUp) {
        self.given_up[why as usize].increment();
    }

    /// The counter of what is refused for this reason, of which there are as many as the code names.
    pub(crate) fn refusal(&self, reason: &'static str) -> Arc<Counter> {
        named(&self.refusals, reason, || Counter::new(self.rows))
    }

    /// Refusals so far, by reason.
    pub fn refusals(&self) -> Vec<(&'static str, Arc<Counter>)> {
        listed(&self.refusals)
    }

    /// The counters of a route; those of requests without a route are under an empty name.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        let rows = self.rows;
        named(&self.routes, name.into(), || RouteMetrics {
            responses: std::array::from_fn(|_| Counter::new(rows)),
            duration: Histogram::new(rows),
        })
    }

    /// The counters of a plugin instance; one of another kind under an old name begins anew.
    pub fn plugin(&self, name: &str, kind: &'static str) -> Arc<PluginMetrics> {
        let rows = self.rows;
        named(&self.plugins, (name.into(), kind), || PluginMetrics {
            kind,
            hooks: std::array::from_fn(|_| Histogram::new(rows)),
            responses: Counter::new(rows),
            drops: Counter::new(rows),
            errors: std::array::from_fn(|_| Counter::new(rows)),
            quarantines: Counter::new(rows),
            quarantined: Counter::new(rows),
            budgets: BudgetMetrics::new(rows),
            own: Arc::new(InstanceCounters::new(move || Arc::new(Counter::new(rows)))),
            shadow: Arc::new(ShadowMetrics::new(rows)),
        })
    }

    /// The counters of an upstream.
    pub fn upstream(&self, name: &str) -> Arc<UpstreamMetrics> {
        let rows = self.rows;
        named(&self.upstreams, name.into(), || UpstreamMetrics {
            firsts: Counter::new(rows),
            repeats: Counter::new(rows),
            connects: Counter::new(rows),
            http2_connects: Counter::new(rows),
            connect_failures: Counter::new(rows),
            lookups: Counter::new(rows),
            lookup_failures: Counter::new(rows),
            failures: Counter::new(rows),
            stale: Counter::new(rows),
            retries: Counter::new(rows),
            retries_refused: Counter::new(rows),
            hedges: Counter::new(rows),
            hedges_won: Counter::new(rows),
            overloads: Counter::new(rows),
            pending_timeouts: Counter::new(rows),
            circuit_refusals: Counter::new(rows),
            circuit_opens: Counter::new(rows),
            in_flight: Counter::new(rows),
            retrying: AtomicU64::new(0),
            slots: Slots::default(),
            learned: Learned::default(),
            p95: P95::default(),
            circuit: Circuit::default(),
            ejecting: Mutex::default(),
            duration: Histogram::new(rows),
            calls: OnceLock::new(),
            rows,
        })
    }

    /// The counters of the copies of a route's requests.
    pub fn mirror(&self, route: &str) -> Arc<MirrorMetrics> {
        let rows = self.rows;
        named(&self.mirrors, route.into(), || MirrorMetrics {
            sent: Counter::new(rows),
            busy: Counter::new(rows),
            too_long: Counter::new(rows),
            nowhere: Counter::new(rows),
            broken_off: Counter::new(rows),
            under_way: AtomicU32::new(0),
        })
    }

    /// Forgets what has a name that no generation uses any more. One that a build is about to use again stays.
    pub fn forget_unused(&self) {
        forget(&self.routes);
        forget(&self.plugins);
        forget(&self.upstreams);
        forget(&self.mirrors);
    }

    /// A counter that belongs to nobody yet.
    pub(crate) fn counter(&self) -> Counter {
        Counter::new(self.rows)
    }

    /// All routes seen so far, by name.
    pub fn routes(&self) -> Vec<(Box<str>, Arc<RouteMetrics>)> {
        listed(&self.routes)
    }

    /// All plugin instances seen so far, by name.
    pub fn plugins(&self) -> Vec<(Box<str>, Arc<PluginMetrics>)> {
        listed(&self.plugins).into_iter().map(|((name, _), counted)| (name, counted)).collect()
    }

    /// All routes with copies seen so far, by name.
    pub fn mirrors(&self) -> Vec<(Box<str>, Arc<MirrorMetrics>)> {
        listed(&self.mirrors)
    }

    /// All upstreams seen so far, by name.
    pub fn upstreams(&self) -> Vec<(Box<str>, Arc<UpstreamMetrics>)> {
        listed(&self.upstreams)
    }
}

type Named<K, T> = Mutex<BTreeMap<K, Arc<T>>>;

fn named<K: Ord, T>(known: &Named<K, T>, name: K, make: impl FnOnce() -> T) -> Arc<T> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.entry(name).or_insert_with(|| Arc::new(make())).clone()
}

fn listed<K: Clone, T>(known: &Named<K, T>) -> Vec<(K, Arc<T>)> {
    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn forget<K: Ord, T>(known: &Named<K, T>) {
    known.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, value| Arc::strong_count(value) > 1);
}

#[cfg(test)]
mod tests;
