//! Counters of a plugin's own, shown on the gateway's metrics page.
//!
//! A plugin asks for its counters while it is built and keeps the handles; a hook that counts then adds
//! to a number and looks nothing up. Values belong to kind and instance name and survive reloads.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Combinations of label values that one instance may have, all its counters together: a page with
/// thousands of lines per plugin serves nobody, and values may come from clients.
pub const MAX_SERIES: usize = 100;

/// Bytes of a label value; the rest is cut off.
const MAX_VALUE: usize = 64;

/// What every label says for the combinations beyond [`MAX_SERIES`].
const OTHER: &str = "other";

/// Where a counter's value is kept: the gateway has a row per worker, so that cores do not wait for
/// each other.
pub trait Tally: Send + Sync {
    /// Adds `count`.
    fn add(&self, count: u64);

    /// The sum of what was added.
    fn value(&self) -> u64;
}

/// One row for all threads, for tests.
impl Tally for AtomicU64 {
    fn add(&self, count: u64) {
        self.fetch_add(count, Relaxed);
    }

    fn value(&self) -> u64 {
        self.load(Relaxed)
    }
}

/// A number that only grows.
#[derive(Clone)]
pub struct Counter(Arc<dyn Tally>);

impl Counter {
    /// Counts one.
    pub fn increment(&self) {
        self.0.add(1);
    }

    /// Counts `count` at once.
    pub fn add(&self, count: u64) {
        self.0.add(count);
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counter({})", self.0.value())
    }
}

/// A number that rises and falls with what one generation's instance has. It is shown as long as anybody holds it, so that
/// what outlives its generation is seen.
#[derive(Debug, Clone)]
pub struct Gauge(Arc<AtomicI64>);

impl Gauge {
    /// Adds `by`, which may be less than zero.
    pub fn add(&self, by: i64) {
        self.0.fetch_add(by, Relaxed);
    }
}

/// A counter per combination of `N` label values.
#[derive(Debug, Clone)]
pub struct Counters<const N: usize> {
    instance: Arc<InstanceCounters>,
    name: &'static str,
}

impl<const N: usize> Counters<N> {
    /// The counter of one combination, which is shown from now on. Looked up under a lock: what hooks
    /// count is taken once, while the plugin is built. Beyond [`MAX_SERIES`] combinations the counter
    /// is that of all others together.
    pub fn with(&self, values: [&str; N]) -> Counter {
        self.instance.counter(self.name, &values)
    }
}

/// All counters of one plugin instance; kept by the gateway, in step with the instance's name.
pub struct InstanceCounters {
    make: Box<dyn Fn() -> Arc<dyn Tally> + Send + Sync>,
    families: Mutex<Vec<Family>>,
    gauges: Mutex<Vec<Shown>>,
    overflow: Arc<dyn Tally>,
}

/// A gauge as long as somebody holds it.
struct Shown {
    name: &'static str,
    help: &'static str,
    generation: u64,
    value: Weak<AtomicI64>,
}

struct Family {
    name: &'static str,
    help: &'static str,
    labels: Box<[&'static str]>,
    series: Vec<Series>,
    other: Option<Arc<dyn Tally>>,
}

struct Series {
    values: Box<[Box<str>]>,
    tally: Arc<dyn Tally>,
}

/// What one counter of an instance has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterReading {
    /// The counter's name, without kind and `_total`.
    pub name: &'static str,
    /// What it counts, one line.
    pub help: &'static str,
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, Box<str>)>,
    /// How much was counted.
    pub value: u64,
}

/// What one gauge of an instance stands at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GaugeReading {
    /// The gauge's name, without kind.
    pub name: &'static str,
    /// What it measures, one line.
    pub help: &'static str,
    /// The generation that it belongs to.
    pub generation: u64,
    /// Where it stands.
    pub value: i64,
}

impl InstanceCounters {
    /// Counters whose values are kept in what `make` makes.
    pub fn new(make: impl Fn() -> Arc<dyn Tally> + Send + Sync + 'static) -> Self {
        let overflow = make();
        InstanceCounters {
            make: Box::new(make),
            families: Mutex::default(),
            gauges: Mutex::default(),
            overflow,
        }
    }

    /// The counters under a name, made unless there are; see [`BuildContext::counters`](crate::BuildContext::counters).
    pub fn family<const N: usize>(
        self: Arc<Self>,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Counters<N> {
        debug_assert!(is_name(name) && labels.iter().all(|label| is_name(label) && *label != "plugin"));
        let mut families = self.families();
        if !families.iter().any(|family| family.name == name) {
            families.push(Family { name, help, labels: labels.into(), series: Vec::new(), other: None });
        }
        drop(families);
        Counters { instance: self, name }
    }

    fn counter(&self, name: &str, values: &[&str]) -> Counter {
        let cut = |value: &&str| value.get(..value.floor_char_boundary(MAX_VALUE)).unwrap_or_default().into();
        let values: Box<[Box<str>]> = values.iter().map(cut).collect();
        let mut families = self.families();
        let all: usize = families.iter().map(|family| family.series.len()).sum();
        let Some(family) = families.iter_mut().find(|family| family.name == name) else {
            return Counter((self.make)());
        };
        if let Some(known) = family.series.iter().find(|series| series.values == values) {
            return Counter(known.tally.clone());
        }
        if all >= MAX_SERIES {
            self.overflow.add(1);
            return Counter(family.other.get_or_insert_with(&self.make).clone());
        }
        let tally = (self.make)();
        family.series.push(Series { values, tally: tally.clone() });
        Counter(tally)
    }

    /// Every counter of the instance as it stands.
    pub fn read(&self) -> Vec<CounterReading> {
        self.families().iter().flat_map(Family::read).collect()
    }

    /// A gauge of a generation, at zero; see [`BuildContext::gauge`](crate::BuildContext::gauge).
    pub fn gauge(&self, name: &'static str, help: &'static str, generation: u64) -> Gauge {
        debug_assert!(is_name(name));
        let value = Arc::new(AtomicI64::new(0));
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.retain(|gauge| gauge.value.strong_count() > 0);
        gauges.push(Shown { name, help, generation, value: Arc::downgrade(&value) });
        Gauge(value)
    }

    /// Every gauge of the instance that is still held, as it stands.
    pub fn read_gauges(&self) -> Vec<GaugeReading> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        let reading = |gauge: &Shown| {
            let value = gauge.value.upgrade()?.load(Relaxed);
            let Shown { name, help, generation, .. } = *gauge;
            Some(GaugeReading { name, help, generation, value })
        };
        gauges.iter().filter_map(reading).collect()
    }

    /// How often a combination was asked for beyond the bound.
    pub fn overflow(&self) -> u64 {
        self.overflow.value()
    }

    fn families(&self) -> MutexGuard<'_, Vec<Family>> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Family {
    fn read(&self) -> Vec<CounterReading> {
        let reading = |labels: Vec<(&'static str, Box<str>)>, tally: &Arc<dyn Tally>| CounterReading {
            name: self.name,
            help: self.help,
            labels,
            value: tally.value(),
        };
        let labelled = |series: &Series| {
            let labels = self.labels.iter().copied().zip(series.values.iter().cloned()).collect();
            reading(labels, &series.tally)
        };
        let other = |tally: &Arc<dyn Tally>| {
            reading(self.labels.iter().map(|label| (*label, OTHER.into())).collect(), tally)
        };
        self.series.iter().map(labelled).chain(self.other.as_ref().map(other)).collect()
    }
}

impl fmt::Debug for InstanceCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.read()).finish()
    }
}

/// Whether a name may stand in a metric's: lower case, as everywhere.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Arc<InstanceCounters> {
        Arc::new(InstanceCounters::new(|| Arc::new(AtomicU64::new(0))))
    }

    fn values(instance: &InstanceCounters) -> Vec<(String, u64)> {
        let shown = |reading: CounterReading| {
            let labels: Vec<_> =
                reading.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            (format!("{} {}", reading.name, labels.join(" ")), reading.value)
        };
        instance.read().into_iter().map(shown).collect()
    }

    #[test]
    fn a_counter_is_one_per_combination_and_kept_by_name() {
        let instance = instance();
        for _ in 0..2 {
            let counters = instance.clone().family("answers", "answers given", ["outcome"]);
            counters.with(["allow"]).increment();
            counters.with(["deny"]).add(2);
        }
        instance.clone().family("plain", "without labels", []).with([]);
        assert_eq!(
            values(&instance),
            [("answers outcome=allow".into(), 2), ("answers outcome=deny".into(), 4), ("plain ".into(), 0)]
        );
    }

    #[test]
    fn combinations_are_bounded_and_what_is_beyond_is_counted_together() {
        let instance = instance();
        let counters = instance.clone().family("requests", "by client", ["client"]);
        for client in 0..MAX_SERIES + 20 {
            counters.with([&client.to_string()]).increment();
        }
        counters.with(["0"]).increment();
        let values = values(&instance);
        assert_eq!(values.len(), MAX_SERIES + 1);
        assert_eq!((values[0].1, values.last()), (2, Some(&("requests client=other".into(), 20))));
        assert_eq!(instance.overflow(), 20);
        let second = instance.clone().family("others", "no room is left for it", ["client"]);
        second.with(["0"]).increment();
        assert_eq!(values.len() + 1, instance.read().len());
    }

    #[test]
    fn a_gauge_is_shown_as_long_as_somebody_holds_it() {
        let instance = instance();
        let shown = || instance.read_gauges().iter().map(|it| (it.generation, it.value)).collect::<Vec<_>>();
        let old = instance.gauge("alive", "what is alive", 1);
        let held = old.clone();
        held.add(2);
        let _new = instance.gauge("alive", "what is alive", 2);
        drop(old);
        assert_eq!(shown(), [(1, 2), (2, 0)]);
        held.add(-2);
        drop(held);
        assert_eq!(shown(), [(2, 0)]);
    }

    #[test]
    fn a_long_value_is_cut() {
        let instance = instance();
        instance.clone().family("requests", "by client", ["client"]).with([&"é".repeat(100)]);
        let reading = instance.read();
        assert_eq!(&*reading[0].labels[0].1, "é".repeat(32));
    }
}
