//! What was seen of late: counts that begin anew after a while.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::endpoint::millis;

/// Counts of a length of time. Whoever counts across its end may be counted on either side of it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Window {
    /// Milliseconds of [`now`](super::endpoint::now).
    begin: AtomicU64,
    requests: AtomicU32,
    failures: AtomicU32,
    /// Time that those took which did not fail.
    micros: AtomicU64,
}

/// What a window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) requests: u32,
    pub(super) failures: u32,
    micros: u64,
}

impl Window {
    /// Begins anew once the window is over and holds `least` requests; then it returns what it held.
    /// Of several who come together one does so.
    pub(super) fn turn(&self, now: u64, length: Duration, least: u32) -> Option<Seen> {
        let begin = self.begin.load(Relaxed);
        let is_over = now.saturating_sub(begin) >= millis(length) && self.requests.load(Relaxed) >= least;
        let is_mine = is_over && self.begin.compare_exchange(begin, now, Relaxed, Relaxed).is_ok();
        is_mine.then(|| self.clear())
    }

    /// Counts a request; returns what the window holds with it.
    pub(super) fn count(&self, failed: bool, took: Duration) -> Seen {
        let micros = if failed { 0 } else { u64::try_from(took.as_micros()).unwrap_or(u64::MAX) };
        Seen {
            requests: self.requests.fetch_add(1, Relaxed).saturating_add(1),
            failures: self.failures.fetch_add(failed.into(), Relaxed).saturating_add(failed.into()),
            micros: self.micros.fetch_add(micros, Relaxed).saturating_add(micros),
        }
    }

    /// Forgets what was counted, and returns it.
    pub(super) fn clear(&self) -> Seen {
        Seen {
            requests: self.requests.swap(0, Relaxed),
            failures: self.failures.swap(0, Relaxed),
            micros: self.micros.swap(0, Relaxed),
        }
    }
}

impl Seen {
    /// Whether so many percent of at least `least` requests failed.
    pub(super) fn fails(&self, percent: u8, least: u32) -> bool {
        self.requests >= least
            && u64::from(self.failures) * 100 >= u64::from(self.requests) * u64::from(percent)
    }

    /// Microseconds that a request took which did not fail; none if all did.
    pub(super) fn mean(&self) -> Option<u64> {
        self.micros.checked_div(self.requests.saturating_sub(self.failures).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_begins_anew_when_it_is_over_and_says_what_it_held() {
        let (window, second) = (Window::default(), Duration::from_secs(1));
        assert_eq!(window.turn(5000, second, 0).unwrap().mean(), None);
        let took = Duration::from_millis(10);
        for _ in 0..3 {
            window.count(false, took);
        }
        let seen = window.count(true, Duration::from_secs(9));
        assert!(seen.fails(25, 4) && !seen.fails(26, 4) && !seen.fails(25, 5));
        assert_eq!(window.turn(5999, second, 0), None);
        assert_eq!(window.turn(6000, second, 5), None, "it waits for more requests");
        let seen = window.turn(6000, second, 4).unwrap();
        assert_eq!((seen.requests, seen.failures, seen.mean()), (4, 1, Some(10_000)));
        assert_eq!(window.turn(6000, second, 0), None);
        assert_eq!(window.count(false, took).requests, 1);
    }
}
