//! Metrics that guests define. Counters are shown as the plugin's; of the others the gateway's page has no
//! kind, so guests have them for themselves.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use portcullis_plugin::{BuildContext, Counter, Counters, MAX_SERIES};

use super::abi::Status;

/// The metrics of one plugin, in all its VMs together.
pub(super) struct Metrics {
    counters: Counters<1>,
    table: Arc<Table>,
}

/// What outlives reloads.
#[derive(Default)]
pub(super) struct Table(Mutex<Vec<Metric>>);

struct Metric {
    kind: Kind,
    name: Box<str>,
    value: AtomicU64,
    /// Where a counter is shown.
    shown: Option<Counter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Metrics {
    pub(super) fn new(context: &mut BuildContext<'_>) -> Self {
        let help = "what a module for proxy-wasm counts, by the name that it gives";
        Metrics {
            counters: context.counters("guest", help, ["metric"]),
            table: context.shared(Table::default),
        }
    }

    /// The number of a metric, which is made unless it is known.
    pub(super) fn define(&self, kind: u32, name: &str) -> Result<u32, Status> {
        let kind = match kind {
            0 => Kind::Counter,
            1 => Kind::Gauge,
            2 => Kind::Histogram,
            _ => return Err(Status::BadArgument),
        };
        let mut metrics = self.table.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = metrics.iter().position(|metric| metric.kind == kind && &*metric.name == name) {
            return Ok(known as u32);
        }
        if metrics.len() >= MAX_SERIES {
            return Err(Status::InternalFailure);
        }
        let shown = (kind == Kind::Counter).then(|| self.counters.with([name]));
        metrics.push(Metric { kind, name: name.into(), value: AtomicU64::new(0), shown });
        Ok(metrics.len() as u32 - 1)
    }

    /// Adds to a metric.
    pub(super) fn increment(&self, number: u32, delta: i64) -> Result<(), Status> {
        self.with(number, |metric| match (metric.kind, u64::try_from(delta)) {
            (Kind::Counter, Ok(delta)) => {
                metric.count(delta);
                Ok(())
            }
            (Kind::Gauge, _) => {
                metric.value.fetch_add(delta as u64, Relaxed);
                Ok(())
            }
            _ => Err(Status::BadArgument),
        })
    }

    /// Sets a gauge, adds to a counter, observes for a histogram.
    pub(super) fn record(&self, number: u32, value: u64) -> Result<(), Status> {
        self.with(number, |metric| {
            match metric.kind {
                Kind::Counter => metric.count(value),
                Kind::Gauge | Kind::Histogram => metric.value.store(value, Relaxed),
            }
            Ok(())
        })
    }

    /// The value of a metric; a histogram's is what was observed last.
    pub(super) fn get(&self, number: u32) -> Result<u64, Status> {
        self.with(number, |metric| Ok(metric.value.load(Relaxed)))
    }

    fn with<T>(&self, number: u32, act: impl FnOnce(&Metric) -> Result<T, Status>) -> Result<T, Status> {
        let metrics = self.table.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(metrics.get(number as usize).ok_or(Status::NotFound)?)
    }
}

impl Metric {
    fn count(&self, delta: u64) {
        self.value.fetch_add(delta, Relaxed);
        if let Some(shown) = &self.shown {
            shown.add(delta);
        }
    }
}

#[cfg(test)]
mod tests {
    use portcullis_plugin::{Instance, PluginTester};

    use super::*;

    fn metrics(tester: &mut PluginTester) -> Metrics {
        let instance = Instance { kind: "wasm", name: "m".into(), state_schema: 0 };
        Metrics::new(&mut BuildContext::new(instance, tester))
    }

    #[test]
    fn metrics_are_kept_by_kind_and_name_and_counters_are_shown() {
        let mut tester = PluginTester::new();
        let first = metrics(&mut tester);
        let [counter, gauge, histogram] = [0, 1, 2].map(|kind| first.define(kind, "hits").unwrap());
        assert_eq!(first.define(3, "hits"), Err(Status::BadArgument));
        assert!(first.increment(counter, 2).is_ok() && first.record(counter, 3).is_ok());
        assert!(first.record(gauge, 10).is_ok() && first.increment(gauge, -3).is_ok());
        assert!(first.record(histogram, 7).is_ok());
        assert_eq!(first.increment(counter, -1), Err(Status::BadArgument));
        assert_eq!(first.increment(histogram, 1), Err(Status::BadArgument));
        // As after a reload.
        let second = metrics(&mut tester);
        assert_eq!(second.define(0, "hits"), Ok(counter));
        assert_eq!([counter, gauge, histogram].map(|number| second.get(number)), [Ok(5), Ok(7), Ok(7)]);
        assert_eq!(second.get(100), Err(Status::NotFound));
        assert_eq!(tester.counted("guest", &["hits"]), Some(5));
    }

    #[test]
    fn a_plugin_defines_as_many_metrics_as_it_may_show() {
        let metrics = metrics(&mut PluginTester::new());
        for number in 0..MAX_SERIES {
            assert_eq!(metrics.define(1, &number.to_string()), Ok(number as u32));
        }
        assert_eq!(metrics.define(1, "one too many"), Err(Status::InternalFailure));
    }
}
