//! The clocks: the one that budgets of CPU are counted by, and the one that plugins reckon with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// How long the calling thread has run, user and kernel time. Unlike the time on the wall it stands
/// still while a busy machine runs other threads.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The time that plugins reckon with: it never goes back, and tells nothing but how much has passed. It
/// is the machine's, unless a test has set another.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<AtomicU64>>);

impl Clock {
    /// A clock that a test sets, in nanoseconds; at zero it goes by the machine.
    pub fn set_by(nanos: Arc<AtomicU64>) -> Self {
        Clock(Some(nanos))
    }

    /// The time since a moment that stays the same while the machine runs.
    pub fn now(&self) -> Duration {
        match self.0.as_ref().map(|nanos| nanos.load(Relaxed)) {
            None | Some(0) => {
                let time = clock_gettime(ClockId::Monotonic);
                Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
            }
            Some(nanos) => Duration::from_nanos(nanos),
        }
    }

    /// The time of day. A clock that a test sets counts from 1970.
    pub fn wall(&self) -> SystemTime {
        match self.0.as_ref().map(|nanos| nanos.load(Relaxed)) {
            None | Some(0) => SystemTime::now(),
            Some(nanos) => SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_that_waits_does_not_age() {
        let (began, start) = (thread_time(), Instant::now());
        while thread_time() == began {
            std::hint::black_box(0);
        }
        std::thread::park_timeout(Duration::from_millis(20));
        let (ran, passed) = (thread_time() - began, start.elapsed());
        assert!(!ran.is_zero() && ran < passed, "{ran:?} of {passed:?}");
    }
}
