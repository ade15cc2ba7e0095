//! How much of their budgets sandboxes use.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use portcullis_plugin::Used;

use super::{ROW, Rows};

/// Upper bounds of the buckets, as shares of a budget.
pub const SHARES: [f64; 8] = [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0];

/// What shares are summed up in.
const UNIT: f64 = 1e-6;

/// The shares of its budgets that the calls of an instance used.
#[derive(Debug)]
pub struct BudgetMetrics {
    rows: Rows,
    /// None before the first call of a sandbox: most plugins are none.
    kept: OnceLock<[Box<[Row]>; BudgetMetrics::BUDGETS.len()]>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Row {
    buckets: [AtomicU64; SHARES.len() + 1],
    sum: AtomicU64,
}

/// The calls by the share that they used of one budget.
#[derive(Debug, Clone, PartialEq)]
pub struct SharesUsed {
    /// Which budget.
    pub budget: &'static str,
    /// Calls per bucket, not cumulated; the last is beyond the budget.
    pub buckets: [u64; SHARES.len() + 1],
    /// Sum of all shares.
    pub sum: f64,
}

impl BudgetMetrics {
    /// The budgets, in the order in which [`Used`] has them.
    pub const BUDGETS: [&'static str; 3] = ["operations", "cpu", "memory"];

    pub(super) fn new(rows: Rows) -> Self {
        BudgetMetrics { rows, kept: OnceLock::new() }
    }

    /// Adds a call; what has no limit is left out.
    pub(crate) fn observe(&self, used: &Used, limits: &Used) {
        let kept = self
            .kept
            .get_or_init(|| std::array::from_fn(|_| (0..self.rows.0).map(|_| Row::default()).collect()));
        for ((rows, used), limit) in kept.iter().zip(each(used)).zip(each(limits)) {
            if let (Some(row), 1..) = (rows.get(ROW.get()), limit) {
                let share = used as f64 / limit as f64;
                let bucket = SHARES.partition_point(|bound| *bound < share);
                row.buckets[bucket].fetch_add(1, Relaxed);
                row.sum.fetch_add((share / UNIT).round() as u64, Relaxed);
            }
        }
    }

    /// The budgets of which something was used.
    pub fn value(&self) -> impl Iterator<Item = SharesUsed> {
        let budgets = self.kept.get().into_iter().flatten().zip(Self::BUDGETS);
        let all = budgets.map(|(rows, budget)| {
            let mut value = SharesUsed { budget, buckets: [0; SHARES.len() + 1], sum: 0.0 };
            for row in rows {
                for (sum, bucket) in value.buckets.iter_mut().zip(&row.buckets) {
                    *sum += bucket.load(Relaxed);
                }
                value.sum += row.sum.load(Relaxed) as f64 * UNIT;
            }
            value
        });
        all.filter(|value| value.buckets.iter().any(|count| *count > 0))
    }
}

fn each(used: &Used) -> [u64; BudgetMetrics::BUDGETS.len()] {
    [used.operations, used.cpu_micros, used.memory]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_the_share_that_they_used() {
        let metrics = BudgetMetrics::new(Rows(1));
        assert_eq!(metrics.value().count(), 0);
        let limits = Used { operations: 1000, ..Used::default() };
        for operations in [0, 10, 11, 1000, 1001] {
            metrics.observe(&Used { operations, memory: 5, ..Used::default() }, &limits);
        }
        let values: Vec<_> = metrics.value().collect();
        assert_eq!((values.len(), values[0].budget), (1, "operations"));
        assert_eq!(values[0].buckets, [2, 1, 0, 0, 0, 0, 0, 1, 1]);
        assert!((values[0].sum - 2.022).abs() < 1e-9, "{}", values[0].sum);
    }
}
