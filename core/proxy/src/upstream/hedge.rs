//! Hedging: another attempt beside one that takes long, so that one slow endpoint costs little time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Upstream;

/// Steps of the estimate: small enough to stand still among ordinary requests, large enough to follow in
/// some hundred of them. A twentieth of all being above it, the ones balance the others.
const STEP: u64 = 400;
const UP: u64 = 19;

/// When another attempt is made beside the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedge {
    /// After this time.
    After(Duration),
    /// When it takes longer than 95 of 100 requests do.
    P95,
}

/// The time within which all but a twentieth of the requests are answered, in microseconds, as far as
/// can be told without keeping any of them; 0 before the first.
#[derive(Debug, Default)]
pub struct P95(AtomicU64);

impl P95 {
    /// Two who learn at once may do so as if one had: that is as good.
    fn learn(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let estimate = self.0.load(Relaxed);
        let next = match estimate {
            0 => micros,
            _ if micros > estimate => estimate + (estimate * UP / STEP).max(UP),
            _ => estimate.saturating_sub((estimate / STEP).max(1)),
        };
        self.0.store(next.max(1), Relaxed);
    }

    fn value(&self) -> Option<Duration> {
        Some(self.0.load(Relaxed)).filter(|micros| *micros > 0).map(Duration::from_micros)
    }
}

impl Upstream {
    /// How long the first attempt has; none if that is not known yet.
    pub(crate) fn hedge_after(&self, hedge: &Hedge) -> Option<Duration> {
        match hedge {
            Hedge::After(length) => Some(*length),
            Hedge::P95 => self.metrics.p95.value(),
        }
    }

    pub(super) fn learn_p95(&self, took: Duration) {
        if self.hedge == Some(Hedge::P95) {
            self.metrics.p95.learn(took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_what_all_but_a_twentieth_take() {
        let p95 = P95::default();
        assert_eq!(p95.value(), None);
        let run = |slowest: u64| {
            // In an order without one: multiples of a number that has no factor in common with 1000.
            (0..20_000_u64).for_each(|at| p95.learn(Duration::from_micros(at * 617 % 1000 * slowest / 1000)));
            p95.value().unwrap().as_micros() as u64
        };
        for slowest in [100_000, 1_000_000, 10_000] {
            let estimate = run(slowest);
            assert!(estimate.abs_diff(slowest * 95 / 100) < slowest / 10, "{estimate} of {slowest}");
        }
    }
}
