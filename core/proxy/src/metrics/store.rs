//! What is counted of the store that plugins share.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use portcullis_plugin::StoreError;

use super::{Counter, Histogram, Rows};

/// What a store can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOperation {
    /// For a value.
    Get,
    /// To set one.
    Set,
    /// To set one in the place of another.
    CompareAndSet,
    /// To remove one.
    Delete,
    /// To add to a counter.
    Add,
}

impl StoreOperation {
    /// Every operation with its label.
    pub const ALL: [(StoreOperation, &'static str); 5] = [
        (StoreOperation::Get, "get"),
        (StoreOperation::Set, "set"),
        (StoreOperation::CompareAndSet, "compare_and_set"),
        (StoreOperation::Delete, "delete"),
        (StoreOperation::Add, "add"),
    ];
}

/// What may come of it: nothing went wrong, or an error of the store's.
const RESULTS: [Option<StoreError>; 6] = [
    None,
    Some(StoreError::Unavailable),
    Some(StoreError::Timeout),
    Some(StoreError::Failed),
    Some(StoreError::Full),
    Some(StoreError::NotANumber),
];

/// What is counted of the store.
#[derive(Debug)]
pub struct StoreMetrics {
    requests: [[Counter; RESULTS.len()]; StoreOperation::ALL.len()],
    /// How long operations took.
    pub duration: Histogram,
    /// Whether the store of the running generation can be reached.
    up: Mutex<Arc<AtomicBool>>,
}

impl StoreMetrics {
    pub(super) fn new(rows: Rows) -> Self {
        StoreMetrics {
            requests: std::array::from_fn(|_| std::array::from_fn(|_| Counter::new(rows))),
            duration: Histogram::new(rows),
            up: Mutex::default(),
        }
    }

    /// Counts an operation.
    pub fn count(&self, operation: StoreOperation, error: Option<StoreError>, took: Duration) {
        if let Some(at) = RESULTS.iter().position(|result| *result == error) {
            self.requests[operation as usize][at].increment();
        }
        self.duration.observe(took);
    }

    /// Operations with what came of them, and how many there were of each.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        let label = |result: &Option<StoreError>| result.map_or("ok", StoreError::as_str);
        StoreOperation::ALL.iter().zip(&self.requests).flat_map(move |((_, operation), counters)| {
            let counted = RESULTS.iter().zip(counters);
            counted.map(move |(result, counter)| (*operation, label(result), counter.value()))
        })
    }

    /// Shows from now on whether another store can be reached.
    pub fn follow(&self, up: Arc<AtomicBool>) {
        *self.up.lock().unwrap_or_else(PoisonError::into_inner) = up;
    }

    /// Whether the store can be reached.
    pub fn is_up(&self) -> bool {
        self.up.lock().unwrap_or_else(PoisonError::into_inner).load(Relaxed)
    }
}
