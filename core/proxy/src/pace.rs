//! How long a client may keep the gateway waiting.

use std::num::NonZeroU64;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::timer::LazyTimer;

/// The pace of a client that sends or takes something. It may be waited for a while, and what it then sends or takes
/// makes up for that by its length: a trickle falls behind until the time is used up, a client that pauses does not.
pub(crate) struct Pace {
    patience: Duration,
    /// Bytes a second that make up for waiting. Without, any byte makes up for all of it.
    min_rate: Option<NonZeroU64>,
    /// For how long it was waited, as far as that is not made up for.
    behind: Duration,
    waits_since: Option<Instant>,
    timer: LazyTimer,
}

impl Pace {
    pub(crate) fn new(patience: Duration, min_rate: Option<NonZeroU64>) -> Self {
        Pace { patience, min_rate, behind: Duration::ZERO, waits_since: None, timer: LazyTimer::new() }
    }

    /// The client is waited for; ready once that was too long.
    pub(crate) fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waits_since.is_none() {
            let now = Instant::now();
            self.waits_since = Some(now);
            self.timer.start_from(now, self.patience.saturating_sub(self.behind));
        }
        self.timer.poll_expired(cx)
    }

    /// The client is not waited for, until it is again.
    pub(crate) fn rests(&mut self) {
        if let Some(since) = self.waits_since.take() {
            self.behind += since.elapsed();
        }
    }

    /// The client has sent or taken so many bytes. Costs nothing while it need not be waited for.
    pub(crate) fn went_on(&mut self, bytes: usize) {
        if self.waits_since.is_none() && self.behind.is_zero() {
            return;
        }
        let waited = self.waits_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.behind = match self.min_rate {
            Some(rate) => (self.behind + waited).saturating_sub(time_for(bytes, rate)),
            None => Duration::ZERO,
        };
    }
}

fn time_for(bytes: usize, rate: NonZeroU64) -> Duration {
    Duration::from_millis((bytes as u64).saturating_mul(1000) / rate)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// How long it takes until a client is given up that moves `bytes` every `pause` seconds.
    async fn endures(min_rate: u64, bytes: usize, pause: u64) -> Option<u64> {
        let begin = Instant::now();
        let mut pace = Pace::new(Duration::from_secs(30), NonZeroU64::new(min_rate));
        for _ in 0..1000 {
            let next = tokio::time::sleep(Duration::from_secs(pause));
            tokio::select! {
                biased;
                () = poll_fn(|cx| pace.poll_wait(cx)) => return Some(begin.elapsed().as_secs()),
                () = next => pace.went_on(bytes),
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_falls_behind_and_a_pause_is_made_up_for() {
        assert_eq!(endures(100, 10, 1).await, Some(33), "each second makes up for a tenth");
        assert_eq!(endures(100, 100, 1).await, None);
        assert_eq!(endures(100, 2900, 29).await, None);
        assert_eq!(endures(100, 1, 31).await, Some(30), "one wait alone is too long");
        assert_eq!(endures(0, 1, 29).await, None, "without a rate any byte will do");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_fast_before_allows_no_trickle() {
        let mut pace = Pace::new(Duration::from_secs(30), NonZeroU64::new(100));
        pace.went_on(1 << 30);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(40) {
            let pause = tokio::time::sleep(Duration::from_secs(10));
            tokio::select! {
                biased;
                () = poll_fn(|cx| pace.poll_wait(cx)) => break,
                () = pause => pace.went_on(1),
            }
        }
        assert_eq!(begin.elapsed().as_secs(), 30);
    }
}
