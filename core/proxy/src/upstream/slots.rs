//! How many requests may be under way to an upstream, and the queue of those that wait for one to end.
//!
//! Whoever ends gives what becomes free to those that wait longest, and wakes them alone: nobody who comes later can
//! take it in between.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::timeout;

use super::{Adaptive, AttemptFailure, Upstream};

/// A request under way, as [`Slots::taken`] counts.
const REQUEST: u64 = 1;
/// One whose response has not begun.
const UNANSWERED: u64 = 1 << 32;

/// Requests under way where they are limited: one number for all workers, so that the limits are exact.
#[derive(Debug, Default)]
pub struct Slots {
    /// In its lower half requests to the end of their responses, in its upper half to the beginning.
    taken: AtomicU64,
    /// As many as are in the queue.
    pending: AtomicU32,
    queue: Mutex<Queue>,
}

/// How many requests may wait for others to end, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Requests that wait at a time.
    pub most: u32,
    /// How long one waits.
    pub timeout: Duration,
}

/// Requests that wait, in the order in which they came.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    limits: Limits,
    waker: Waker,
}

/// What bounds the requests of an upstream in one generation.
#[derive(Debug, Clone, Copy)]
struct Limits {
    max_requests: Option<u32>,
    adaptive: Option<Adaptive>,
}

/// Leave for one request to be under way, until it is dropped or [used](Slot::hand_over).
pub(crate) struct Slot<'u>(&'u Upstream);

/// The wait of a request for its slot.
struct Waiting<'u> {
    upstream: &'u Upstream,
    /// Its place in the queue; none once it has had its turn.
    ticket: Option<u64>,
}

impl Slots {
    /// Requests that wait.
    pub fn pending(&self) -> u32 {
        self.pending.load(SeqCst)
    }

    /// Requests whose responses have not begun, where that is what is limited.
    pub(super) fn unanswered(&self) -> u32 {
        (self.taken.load(SeqCst) / UNANSWERED) as u32
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Upstream {
    /// How many requests may be under way now; none for no limit.
    pub fn limit(&self) -> Option<u32> {
        let learned = self.adaptive.as_ref().map(|adaptive| self.metrics.learned.limit(adaptive));
        learned.into_iter().chain(self.max_requests).min()
    }

    fn limits(&self) -> Limits {
        Limits { max_requests: self.max_requests, adaptive: self.adaptive }
    }

    fn is_limited(&self) -> bool {
        self.max_requests.is_some() || self.adaptive.is_some()
    }

    /// Leave for a request if there is any, and nobody waits for it.
    pub(crate) fn slot_now(&self) -> Option<Slot<'_>> {
        let is_free = !self.is_limited() || self.metrics.slots.pending() == 0 && self.take(&self.limits());
        is_free.then(|| Slot(self))
    }

    /// Leave for a request when enough others have ended, if that takes no longer than `left` and the queue allows.
    pub(crate) async fn slot_later(&self, left: Option<Duration>) -> Result<Slot<'_>, AttemptFailure> {
        let Some(waiting) = self.queue_up() else {
            self.metrics.overloads.increment();
            return Err(AttemptFailure::Overloaded);
        };
        let longest = self.pending.timeout;
        timeout(left.map_or(longest, |left| left.min(longest)), waiting).await.map_err(|_| {
            self.metrics.pending_timeouts.increment();
            AttemptFailure::PendingTimeout
        })
    }

    /// A place in the queue; none if as many wait as may, and it is nobody's turn.
    fn queue_up(&self) -> Option<Waiting<'_>> {
        let slots = &self.metrics.slots;
        let mut queue = slots.queue();
        let ticket = queue.next;
        queue.next += 1;
        queue.waiting.insert(ticket, Waiter { limits: self.limits(), waker: Waker::noop().clone() });
        // Whoever frees a slot after the look at what is free sees that somebody waits.
        slots.pending.store(queue.waiting.len() as u32, SeqCst);
        let admitted = self.admit_from(&mut queue);
        let is_one_too_many =
            queue.waiting.len() > self.pending.most as usize && queue.waiting.remove(&ticket).is_some();
        slots.pending.store(queue.waiting.len() as u32, SeqCst);
        drop(queue);
        admitted.into_iter().for_each(Waker::wake);
        (!is_one_too_many).then(|| Waiting { upstream: self, ticket: Some(ticket) })
    }

    /// Gives what is free to those that wait longest.
    pub(super) fn admit(&self) {
        let slots = &self.metrics.slots;
        if slots.pending() == 0 {
            return;
        }
        let mut queue = slots.queue();
        let admitted = self.admit_from(&mut queue);
        slots.pending.store(queue.waiting.len() as u32, SeqCst);
        // What wakes others may want the queue itself.
        drop(queue);
        admitted.into_iter().for_each(Waker::wake);
    }

    fn admit_from(&self, queue: &mut Queue) -> SmallVec<[Waker; 1]> {
        let mut admitted = SmallVec::new();
        while let Some(first) = queue.waiting.first_entry().filter(|first| self.take(&first.get().limits)) {
            admitted.push(first.remove().waker);
        }
        admitted
    }

    /// Takes a slot if that is within the limits.
    fn take(&self, limits: &Limits) -> bool {
        let most = limits.max_requests.unwrap_or(u32::MAX).into();
        let (most_unanswered, share) = match &limits.adaptive {
            Some(adaptive) => (self.metrics.learned.limit(adaptive).into(), REQUEST + UNANSWERED),
            None => (u64::MAX, REQUEST),
        };
        let more = |taken| {
            let has_room = taken % UNANSWERED < most && taken / UNANSWERED < most_unanswered;
            has_room.then_some(taken + share)
        };
        self.metrics.slots.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// The response of a request has begun, or never will: what it needs from here on, an adaptive limit does not see.
    pub(super) fn begin_response(&self) {
        if self.adaptive.is_some() {
            self.give_back(UNANSWERED);
        }
    }

    pub(super) fn give_slot_back(&self) {
        if self.is_limited() {
            self.give_back(REQUEST);
        }
    }

    fn give_back(&self, share: u64) {
        self.metrics.slots.taken.fetch_sub(share, SeqCst);
        self.admit();
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
        self.0.begin_response();
        self.0.give_slot_back();
    }
}

impl<'u> Future for Waiting<'u> {
    type Output = Slot<'u>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Slot<'u>> {
        if let Some(ticket) = self.ticket
            && let Some(waiter) = self.upstream.metrics.slots.queue().waiting.get_mut(&ticket)
        {
            waiter.waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        self.ticket = None;
        Poll::Ready(Slot(self.upstream))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let slots = &self.upstream.metrics.slots;
        let mut queue = slots.queue();
        let given_up = queue.waiting.remove(&ticket);
        slots.pending.store(queue.waiting.len() as u32, SeqCst);
        drop(queue);
        match given_up {
            // Those behind it may have had to wait for it alone.
            Some(_) => self.upstream.admit(),
            // It was its turn, and it goes away.
            None => drop(Slot(self.upstream)),
        }
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
        let mut newcomer = Box::pin(upstream.slot_later(None));
        assert!(polled(&mut newcomer).is_none() && polled(&mut third).is_none());
        let second = second.await.ok();
        assert!(second.is_some());
        drop(third);
        drop(second);
        drop(newcomer.await.ok());
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
        let slots = &upstream.metrics.slots;
        assert_eq!((slots.pending(), slots.taken.load(SeqCst), slots.queue().waiting.len()), (0, 0, 0));
    }

    #[test]
    fn one_that_ends_wakes_one_that_waits() {
        struct Woken(AtomicU32);

        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, SeqCst);
            }
        }

        let upstream = upstream(10);
        let held = upstream.slot_now();
        let woken = Arc::new(Woken(0.into()));
        let waker = Waker::from(woken.clone());
        let mut waiting: Vec<_> = (0..10).map(|_| upstream.queue_up().unwrap()).collect();
        let mut poll = |at: usize| match Pin::new(&mut waiting[at]).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(slot) => Some(slot),
            Poll::Pending => None,
        };
        assert!((0..10).all(|at| poll(at).is_none()));
        drop(held);
        assert_eq!(woken.0.load(SeqCst), 1);
        let slot = poll(0);
        assert!(slot.is_some() && (1..10).all(|at| poll(at).is_none()));
    }

    #[test]
    fn limits_that_rise_let_as_many_go_as_there_is_room_for() {
        let wider = Upstream { max_requests: Some(3), ..upstream(10) };
        let _held = wider.slot_now();
        let narrow = Upstream { max_requests: Some(1), ..upstream(10) };
        let narrow = Upstream { metrics: wider.metrics.clone(), ..narrow };
        let first = narrow.queue_up().unwrap();
        let others = [wider.queue_up().unwrap(), wider.queue_up().unwrap(), wider.queue_up().unwrap()];
        assert_eq!(wider.metrics.slots.pending(), 4, "nobody passes the first");
        assert!(wider.slot_now().is_none());
        drop(first);
        assert_eq!(wider.metrics.slots.pending(), 1);
        drop(others);
        assert_eq!(wider.metrics.slots.taken.load(SeqCst), 1);
    }

    #[test]
    fn an_adaptive_limit_counts_requests_until_their_responses_begin() {
        let adaptive = Some(Adaptive { min: 1, tolerance: 2 });
        let upstream = Upstream { adaptive, max_requests: Some(2), ..upstream(0) };
        let streaming = upstream.slot_now().unwrap().hand_over();
        assert!(upstream.slot_now().is_none());
        streaming.begin_response();
        let other = upstream.slot_now().unwrap().hand_over();
        other.begin_response();
        assert!(upstream.slot_now().is_none(), "to the end they count as well");
        [streaming, other].iter().for_each(|ended| ended.give_slot_back());
        drop(upstream.slot_now());
        assert_eq!(upstream.metrics.slots.taken.load(SeqCst), 0);
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
