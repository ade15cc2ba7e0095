//! How many requests may be under way to an upstream, and the queue of those that wait for one to end.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::{AttemptFailure, Upstream};

/// Requests under way where they are limited: one number for all workers, so that the limit is exact.
#[derive(Debug, Default)]
pub struct Slots {
    taken: AtomicU32,
    pending: AtomicU32,
    /// Wakes whoever waits longest.
    freed: Notify,
}

/// How many requests may wait for others to end, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Requests that wait at a time.
    pub most: u32,
    /// How long one waits.
    pub timeout: Duration,
}

/// Leave for one request to be under way, until it is dropped or [used](Slot::begin).
pub(crate) struct Slot<'u>(&'u Upstream);

/// A request that waits, until it is dropped.
struct Waiting<'u>(&'u Slots);

impl Slots {
    /// Requests that wait.
    pub fn pending(&self) -> u32 {
        self.pending.load(SeqCst)
    }

    /// Requests under way, where they are limited.
    pub(super) fn taken(&self) -> u32 {
        self.taken.load(SeqCst)
    }

    fn take(&self, most: u32) -> bool {
        let more = |taken| (taken < most).then(|| taken + 1);
        self.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    fn give_back(&self) {
        self.taken.fetch_sub(1, SeqCst);
        self.wake();
    }

    /// There may be room for one that waits.
    pub(super) fn wake(&self) {
        if self.pending() > 0 {
            self.freed.notify_one();
        }
    }

    /// A place in the queue, if it has one.
    fn wait(&self, most: u32) -> Option<Waiting<'_>> {
        let more = |pending| (pending < most).then(|| pending + 1);
        self.pending.fetch_update(SeqCst, SeqCst, more).ok().map(|_| Waiting(self))
    }
}

impl Upstream {
    /// How many requests may be under way now; none for no limit.
    pub fn limit(&self) -> Option<u32> {
        let learned = self.adaptive.as_ref().map(|adaptive| self.metrics.learned.limit(adaptive));
        learned.into_iter().chain(self.max_requests).min()
    }

    fn is_limited(&self) -> bool {
        self.max_requests.is_some() || self.adaptive.is_some()
    }

    /// Leave for a request if there is any, and nobody waits for it.
    pub(crate) fn slot_now(&self) -> Option<Slot<'_>> {
        let Some(most) = self.limit() else { return Some(Slot(self)) };
        let slots = &self.metrics.slots;
        (slots.pending() == 0 && slots.take(most)).then(|| Slot(self))
    }

    /// Leave for a request when enough others have ended, if that takes no longer than `left` and the queue allows.
    pub(crate) async fn slot_later(&self, left: Option<Duration>) -> Result<Slot<'_>, AttemptFailure> {
        let (slots, pending) = (&self.metrics.slots, self.pending);
        let Some(_waiting) = slots.wait(pending.most) else {
            self.metrics.overloads.increment();
            return Err(AttemptFailure::Overloaded);
        };
        let freed = async {
            loop {
                // Stands in the queue before it looks, or it could miss what is freed in between.
                let mut freed = pin!(slots.freed.notified());
                freed.as_mut().enable();
                if self.limit().is_none_or(|most| slots.take(most)) {
                    return Slot(self);
                }
                freed.await;
            }
        };
        timeout(left.map_or(pending.timeout, |left| left.min(pending.timeout)), freed).await.map_err(|_| {
            self.metrics.pending_timeouts.increment();
            AttemptFailure::PendingTimeout
        })
    }

    pub(super) fn give_slot_back(&self) {
        if self.is_limited() {
            self.metrics.slots.give_back();
        }
    }
}

impl<'u> Slot<'u> {
    /// Leaves it to the request to give the slot back.
    pub(super) fn hand_over(self) -> &'u Upstream {
        let upstream = self.0;
        std::mem::forget(self);
        upstream
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.give_slot_back();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::upstream::Endpoint;

    fn upstream(most: u32) -> Upstream {
        let metrics = Metrics::new(1);
        let endpoint = Arc::new(Endpoint::new("a:1", &metrics).unwrap());
        Upstream {
            max_requests: Some(1),
            pending: Pending { most, timeout: Duration::from_secs(1) },
            ..Upstream::new("api", vec![endpoint], metrics.upstream("api"))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_go_in_their_order_and_before_newcomers() {
        let upstream = upstream(2);
        let first = upstream.slot_now();
        let (mut second, mut third) =
            (Box::pin(upstream.slot_later(None)), Box::pin(upstream.slot_later(None)));
        assert!(polled(&mut second).is_none() && polled(&mut third).is_none());
        assert!(
            matches!(upstream.slot_later(None).await, Err(AttemptFailure::Overloaded)),
            "the queue has two places"
        );
        drop(first);
        assert!(upstream.slot_now().is_none(), "the slot is for one that waits");
        assert!(polled(&mut third).is_none());
        let second = second.await.ok();
        assert!(second.is_some());
        drop(third);
        drop(second);
        assert!(upstream.slot_now().is_some(), "nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_time_and_one_that_is_given_up_takes_nothing_with_it() {
        let upstream = upstream(2);
        let held = upstream.slot_now();
        assert!(matches!(upstream.slot_later(None).await, Err(AttemptFailure::PendingTimeout)));
        let (mut given_up, mut patient) =
            (Box::pin(upstream.slot_later(None)), Box::pin(upstream.slot_later(None)));
        assert!(polled(&mut given_up).is_none() && polled(&mut patient).is_none());
        drop(held);
        // It was its turn, and it goes away.
        drop(given_up);
        assert!(patient.await.is_ok());
        assert_eq!((upstream.metrics.slots.pending(), upstream.metrics.slots.taken()), (0, 0));
    }

    /// Polls once.
    fn polled<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
