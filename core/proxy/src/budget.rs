//! The budget of bodies that are held in memory whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::reply::Fault;

/// The process's budget of whole bodies: bytes held at once.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicU64,
    used: AtomicU64,
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Budget { limit: AtomicU64::new(bytes), used: AtomicU64::new(0) })
    }

    /// Another limit; what is held already stays.
    pub fn resize(&self, bytes: u64) {
        self.limit.store(bytes, Relaxed);
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        Held { budget: self.clone(), bytes: 0 }
    }
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Held {
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Fault> {
        if self.budget.used.fetch_add(bytes, Relaxed) + bytes > self.budget.limit.load(Relaxed) {
            self.budget.used.fetch_sub(bytes, Relaxed);
            return Err(Fault::BodyBudget);
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
    }
}
