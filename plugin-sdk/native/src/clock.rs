//! The clock that budgets of CPU are counted by.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// How long the calling thread has run, user and kernel time. Unlike the time on the wall it stands
/// still while a busy machine runs other threads.
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
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
