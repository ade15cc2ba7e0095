//! Waiting for a condition.

use std::time::{Duration, Instant};

/// How long anything may take before it counts as lost: much longer than it ever takes, since an
/// unoptimised gateway on a busy machine is slow and a test that fails for want of time says nothing.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` holds.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Waits until `look` finds something.
#[track_caller]
#[allow(clippy::disallowed_methods, reason = "the one place that pauses, between two looks")]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Waits for a moment, as who keeps to a timetable does.
#[allow(clippy::disallowed_methods, reason = "nothing else than the time is waited for")]
pub fn wait_until(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}
