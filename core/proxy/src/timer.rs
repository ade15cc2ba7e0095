//! A timer that costs nothing while deadlines only move on.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::task::unconstrained;
use tokio::time::{Duration, Instant, Sleep, sleep_until};

/// One timer for a sequence of waits, such as those of a connection that is used again and again.
/// It is re-armed only when it fires early or when a deadline is nearer than the armed one, so that
/// an ordinary request touches the runtime's timers not at all.
pub(crate) struct LazyTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// Since when the last wait has gone on; none before the first.
    pub(crate) begun: Option<Instant>,
    /// None before the first wait.
    deadline: Option<Instant>,
    /// Whom the armed timer wakes.
    waker: Option<Waker>,
}

impl LazyTimer {
    pub(crate) fn new() -> Self {
        LazyTimer { sleep: None, begun: None, deadline: None, waker: None }
    }

    /// Begins a wait of at most `limit`.
    pub(crate) fn start(&mut self, limit: Duration) {
        self.start_from(Instant::now(), limit);
    }

    /// The same for a wait that began earlier.
    pub(crate) fn start_from(&mut self, begin: Instant, limit: Duration) {
        let deadline = begin + limit;
        (self.begun, self.deadline) = (Some(begin), Some(deadline));
        match &mut self.sleep {
            Some(sleep) if deadline < sleep.deadline() => sleep.as_mut().reset(deadline),
            _ => {}
        }
    }

    /// Ready once the wait has taken too long.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let is_armed = self.sleep.as_ref().is_some_and(|sleep| !sleep.is_elapsed());
        if is_armed && self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // A task that has done much is told to wait by everything it polls; time passes all the same.
        while pin!(unconstrained(sleep.as_mut())).poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn fires_at_the_last_deadline_also_when_it_moved() {
        let mut timer = LazyTimer::new();
        let begin = Instant::now();
        timer.start(Duration::from_secs(1));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll_expired(cx).is_pending())).await);
        timer.start(Duration::from_secs(5));
        poll_fn(|cx| timer.poll_expired(cx)).await;
        assert_eq!(begin.elapsed().as_secs(), 5);
        timer.start(Duration::from_secs(10));
        assert!(poll_fn(|cx| Poll::Ready(timer.poll_expired(cx).is_pending())).await);
        timer.start(Duration::from_secs(2));
        poll_fn(|cx| timer.poll_expired(cx)).await;
        assert_eq!(begin.elapsed().as_secs(), 7);
    }
}
