//! The attempts of a request: when one is worth another, how long they may take, how many there may be.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::{Response, StatusCode};
use smallvec::SmallVec;
use tokio::time::sleep;

use super::balance::{Chosen, Role, Wish, of};
use super::slots::Slot;
use super::{AttemptFailure, Upstream, UpstreamBody};
use crate::grpc::{Call, Code};
use crate::metrics::UpstreamMetrics;

/// Times that a request is sent once more because a connection was closed, or would take it no more, just when it was
/// used again. They are no retries, because the endpoint did not fail, and are over with the time for all attempts.
const MAX_STALE: u32 = 3;

/// The longest pause before an attempt, as a multiple of the first.
const MAX_PAUSE: u32 = 10;

/// When there is another attempt.
#[derive(Debug, Clone)]
pub struct Retries {
    /// Attempts after the first.
    pub attempts: u32,
    /// How long one attempt may take to the response's head, beside the upstream's timeouts.
    pub per_try: Option<Duration>,
    /// How long all attempts together may take to the response's head, beside the time for all of the request.
    pub total: Option<Duration>,
    /// The longest pause before the first retry; later ones have longer.
    pub backoff: Duration,
    /// After no connection.
    pub on_connect: bool,
    /// After no response in time.
    pub on_timeout: bool,
    /// After a connection that broke, or brought what is not HTTP.
    pub on_broken: bool,
    /// After responses with one of these status codes.
    pub on_status: Vec<StatusCode>,
    /// Percent of the requests under way that may be retries.
    pub share: u8,
    /// Retries that may be under way however few requests there are.
    pub min: u32,
}

/// How long an attempt may take, and what it is when it takes longer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TryLimit {
    pub(crate) length: Duration,
    pub(crate) failure: AttemptFailure,
}

/// On what terms an attempt is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) limit: Option<TryLimit>,
    /// Over a connection that has served nobody yet.
    pub(crate) fresh: bool,
}

/// The attempts of one request.
pub(crate) struct Tries<'u> {
    upstream: &'u Upstream,
    pub(crate) wish: Wish,
    /// Where the attempt that is next, or under way, goes.
    pub(crate) chosen: Chosen<'u>,
    /// Counts from 1.
    pub(crate) number: u32,
    /// When the first began, and the one that is under way.
    start: Instant,
    began: Instant,
    /// Time for all of them, and what it is when it is over.
    total: Option<(Duration, AttemptFailure)>,
    stale: u32,
    /// Before the attempt that is next.
    pause: Option<Duration>,
    /// Whether the attempt repeats one to the same endpoint whose connection was of no use any more.
    fresh: bool,
    /// Endpoints that failed.
    tried: SmallVec<[u32; 4]>,
    /// The retry that is under way, if the attempt is one.
    retrying: Option<Retrying<'u>>,
}

/// A retry under way, counted against the budget until it is dropped.
pub(crate) struct Retrying<'u>(&'u UpstreamMetrics);

impl Default for Retries {
    fn default() -> Self {
        Retries {
            attempts: 1,
            per_try: None,
            total: None,
            backoff: Duration::from_millis(25),
            on_connect: true,
            on_timeout: true,
            on_broken: true,
            on_status: Vec::new(),
            share: 20,
            min: 10,
        }
    }
}

impl Retries {
    /// A pause before the attempt of this number, by lot: what failed at the same time is not to come back so.
    fn pause(&self, number: u32, lot: u64) -> Duration {
        let steps = 2_u32.saturating_pow(number.saturating_sub(1)).saturating_sub(1).min(MAX_PAUSE);
        let longest = u64::try_from(self.backoff.saturating_mul(steps).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(of(lot, longest))
    }

    /// Whether another attempt may help after this failure.
    pub(crate) fn follow(&self, failure: AttemptFailure) -> bool {
        match failure {
            AttemptFailure::Unreachable | AttemptFailure::ConnectTimeout | AttemptFailure::Tls => {
                self.on_connect
            }
            AttemptFailure::ResponseTimeout => self.on_timeout,
            AttemptFailure::Failed => self.on_broken,
            AttemptFailure::Status(_) => true,
            AttemptFailure::OutOfTime
            | AttemptFailure::Deadline
            | AttemptFailure::SlowUpload
            | AttemptFailure::NoUpgrade
            | AttemptFailure::Overloaded
            | AttemptFailure::PendingTimeout => false,
        }
    }
}

impl<'u> Tries<'u> {
    /// Begins with the endpoint for the first attempt. All of the request has the time `total`; the request itself
    /// may have asked for less.
    pub(crate) fn begin(
        upstream: &'u Upstream,
        wish: Wish,
        total: Option<Duration>,
        asked: Option<Duration>,
    ) -> Self {
        let now = Instant::now();
        let total = upstream.retries.total.into_iter().chain(total).min();
        let total = match asked.filter(|asked| total.is_none_or(|total| *asked < total)) {
            Some(asked) => Some((asked, AttemptFailure::Deadline)),
            None => total.map(|total| (total, AttemptFailure::OutOfTime)),
        };
        let chosen = upstream.choose(wish);
        let (start, began) = (now, now);
        Tries {
            upstream,
            wish,
            chosen,
            number: 1,
            start,
            began,
            total,
            stale: 0,
            pause: None,
            fresh: false,
            tried: SmallVec::new(),
            retrying: None,
        }
    }

    /// What is left of the time for all attempts.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.total.map(|(total, _)| total.saturating_sub(self.start.elapsed()))
    }

    /// On what terms an attempt is made that begins now.
    pub(crate) fn terms(&self) -> Terms {
        Terms { limit: self.limit(), fresh: self.fresh }
    }

    /// The attempt begins only now: the endpoint is not to blame for what took time before.
    pub(crate) fn starts(&mut self) {
        self.began = Instant::now();
    }

    fn limit(&self) -> Option<TryLimit> {
        let per_try = self.upstream.retries.per_try;
        let per_try = per_try.map(|length| TryLimit { length, failure: AttemptFailure::ResponseTimeout });
        let left = self.total.zip(self.left()).map(|((total, failure), length)| TryLimit {
            length,
            // An endpoint that has most of the time is to blame, unless the request gave too little.
            failure: match failure {
                AttemptFailure::OutOfTime if length > total / 2 => AttemptFailure::ResponseTimeout,
                failure => failure,
            },
        });
        per_try.into_iter().chain(left).min_by_key(|limit| limit.length)
    }

    /// Leave for the attempt to be under way, when it is time for it.
    pub(crate) async fn slot(&mut self) -> Result<Slot<'u>, AttemptFailure> {
        if let Some(pause) = self.pause.take() {
            Box::pin(sleep(pause)).await;
            self.starts();
        }
        if let Some(slot) = self.upstream.slot_now() {
            return Ok(slot);
        }
        // Boxed, because few wait.
        let slot = Box::pin(self.upstream.slot_later(self.left())).await;
        self.starts();
        slot
    }

    /// The endpoint of the next attempt: one that was not tried yet, or when all were, not the last one.
    fn move_on(&mut self) {
        if self.tried.len() + 1 >= self.upstream.endpoints.len() {
            self.tried.clear();
        }
        self.tried.push(self.chosen.endpoint.id);
        self.fresh = false;
        self.chosen = self.upstream.choose_again(self.wish, &self.tried);
    }

    /// Another endpoint for an attempt beside the one that is under way, with leave for it; none if the
    /// budget of retries is used up, or there is no other endpoint or no slot.
    pub(crate) fn hedge(&self) -> Option<(Chosen<'u>, Slot<'u>, Retrying<'u>)> {
        let upstream = self.upstream;
        if upstream.endpoints.len() < 2 {
            return None;
        }
        let other = upstream.choose_again(self.wish, &[self.chosen.endpoint.id]);
        // What is known to fail would be quick to say so, and its word would count.
        if other.role != Role::Ordinary {
            return None;
        }
        let slot = upstream.slot_now()?;
        let counted = upstream.retry()?;
        Some((other, slot, counted))
    }

    /// The attempt under way failed, or was given up: then it took at least so long.
    pub(crate) fn lost(&self, at: Chosen<'_>, failure: Option<AttemptFailure>) {
        let took = self.began.elapsed();
        match failure {
            Some(failure) => self.upstream.failed(at, failure, took),
            None => self.upstream.given_up(at, took),
        }
    }

    /// From now on another attempt, which began then, is the one.
    pub(crate) fn go_on(&mut self, with: Chosen<'u>, began: Instant) {
        (self.chosen, self.began) = (with, began);
    }

    /// Learns from the response to a request that may be a call of gRPC; returns how long it all took.
    pub(crate) fn learn(&self, call: Option<Call>, response: &mut Response<UpstreamBody>) -> Duration {
        match call {
            None => self.answered(response.status()),
            Some(call) => self.call_answered(call, response),
        }
    }

    /// Learns from the status of the response; returns how long it all took.
    pub(crate) fn answered(&self, status: StatusCode) -> Duration {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began);
        self.upstream.metrics.duration.observe(took);
        self.upstream.answered(self.chosen, status, took);
        now.saturating_duration_since(self.start)
    }

    /// Learns from the response to a call of gRPC, whose outcome is in its head only if that is all of it.
    fn call_answered(&self, call: Call, response: &mut Response<UpstreamBody>) -> Duration {
        let now = Instant::now();
        let took = now.saturating_duration_since(self.began);
        let metrics = &self.upstream.metrics;
        metrics.duration.observe(took);
        match Code::of(response.headers()) {
            Some(code) => {
                metrics.count_call(code);
                self.upstream.answered(self.chosen, call.status(code), took);
            }
            None if response.status() == StatusCode::OK => {
                self.upstream.began_to_answer(self.chosen, took);
                response.body_mut().awaits_outcome(call, took);
            }
            None => self.upstream.answered(self.chosen, response.status(), took),
        }
        now.saturating_duration_since(self.start)
    }

    /// Whether there is another attempt after this failure; if so its endpoint is chosen. `may_repeat`
    /// says whether that is safe, `reused` whether the connection had served before.
    pub(crate) fn again(&mut self, failure: AttemptFailure, reused: bool, may_repeat: bool) -> bool {
        let (upstream, began) = (self.upstream, std::mem::replace(&mut self.began, Instant::now()));
        let has_time = self.left().is_none_or(|left| !left.is_zero());
        let is_stale = reused && failure == AttemptFailure::Failed;
        if may_repeat && is_stale && has_time && self.stale < MAX_STALE {
            self.stale += 1;
            // To the same endpoint, and over none of the connections that may have been closed with that one.
            self.fresh = true;
            upstream.metrics.stale.increment();
            upstream.metrics.repeats.increment();
            return true;
        }
        upstream.failed(self.chosen, failure, self.began.saturating_duration_since(began));
        let is_worth_it =
            may_repeat && self.number <= upstream.retries.attempts && upstream.retries.follow(failure);
        self.retrying = None;
        if !is_worth_it || !has_time {
            return false;
        }
        let pause = self.pause_after(failure);
        // Whoever would only wait for the end is told now.
        if pause.zip(self.left()).is_none_or(|(pause, left)| pause < left) {
            self.retrying = upstream.retry();
        }
        if self.retrying.is_none() {
            return false;
        }
        self.pause = pause;
        self.number += 1;
        self.move_on();
        true
    }

    /// The pause before the next attempt; none if nothing was sent and an endpoint is left that was not tried.
    fn pause_after(&self, failure: AttemptFailure) -> Option<Duration> {
        let is_unsent = matches!(
            failure,
            AttemptFailure::Unreachable | AttemptFailure::ConnectTimeout | AttemptFailure::Tls
        );
        if is_unsent && (self.number as usize) < self.upstream.endpoints.len() {
            return None;
        }
        let upstream = self.upstream;
        let pause = upstream.retries.pause(self.number + 1, upstream.lot(upstream.metrics.repeats.value()));
        Some(pause).filter(|pause| !pause.is_zero())
    }
}

impl Upstream {
    /// Leave for another attempt, if the budget of retries has any left. Counts both.
    pub(crate) fn retry(&self) -> Option<Retrying<'_>> {
        let metrics = &*self.metrics;
        let by_share = metrics.in_flight.value().saturating_mul(self.retries.share.into()) / 100;
        let most = by_share.max(self.retries.min.into());
        let more = |retrying| (retrying < most).then(|| retrying + 1);
        if metrics.retrying.fetch_update(Relaxed, Relaxed, more).is_err() {
            metrics.retries_refused.increment();
            return None;
        }
        metrics.retries.increment();
        Some(Retrying(metrics))
    }
}

impl Drop for Retrying<'_> {
    fn drop(&mut self) {
        self.0.retrying.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::upstream::Endpoint;

    fn upstream() -> Upstream {
        let metrics = Metrics::new(1);
        let endpoint = Arc::new(Endpoint::new("a:1", &metrics).unwrap());
        Upstream::new("api", vec![endpoint], metrics.upstream("api"))
    }

    #[test]
    fn retries_are_a_share_of_what_is_under_way_or_the_minimum() {
        let upstream =
            Upstream { retries: Retries { share: 20, min: 2, ..Retries::default() }, ..upstream() };
        let allowed = || std::iter::from_fn(|| upstream.retry()).take(50).collect::<Vec<_>>().len();
        assert_eq!(allowed(), 2);
        upstream.metrics.in_flight.add(40);
        assert_eq!(allowed(), 8);
        let held = upstream.retry();
        assert_eq!(allowed(), 7);
        drop(held);
        assert_eq!((allowed(), upstream.metrics.retries_refused.value()), (8, 4));
    }

    #[test]
    fn the_nearer_limit_holds_and_says_what_failed() {
        let retries = |per_try, total| Retries {
            per_try: Some(Duration::from_secs(per_try)),
            total: Some(Duration::from_secs(total)),
            ..Retries::default()
        };
        let upstream = |retries| Upstream { retries, ..upstream() };
        let limit = |upstream: &Upstream, spent, asked: Option<u64>| {
            let tries = Tries::begin(upstream, Wish::Any, None, asked.map(Duration::from_secs));
            let start = tries.start.checked_sub(Duration::from_secs(spent)).unwrap();
            let limit = Tries { start, ..tries }.limit();
            limit.map(|limit| (limit.length.as_secs_f64().round(), limit.failure))
        };
        let (short_try, short_total) = (upstream(retries(1, 10)), upstream(retries(10, 5)));
        use AttemptFailure::{Deadline, OutOfTime, ResponseTimeout};
        assert_eq!(limit(&short_try, 0, None), Some((1.0, ResponseTimeout)));
        assert_eq!(limit(&short_total, 0, None), Some((5.0, ResponseTimeout)), "the endpoint has all of it");
        assert_eq!(limit(&short_total, 2, None), Some((3.0, ResponseTimeout)), "or most");
        assert_eq!(limit(&short_total, 3, None), Some((2.0, OutOfTime)));
        assert_eq!(limit(&short_total, 6, None), Some((0.0, OutOfTime)));
        assert_eq!(limit(&short_total, 0, Some(2)), Some((2.0, Deadline)));
        assert_eq!(limit(&short_total, 0, Some(60)), Some((5.0, ResponseTimeout)), "a request gets no more");
        assert_eq!(limit(&upstream(Retries::default()), 0, None), None);
        assert_eq!(limit(&upstream(Retries::default()), 0, Some(3)), Some((3.0, Deadline)));
    }

    #[test]
    fn the_shorter_of_two_totals_holds() {
        let total = |retries: Option<u64>, whole: Option<u64>| {
            let retries = Retries { total: retries.map(Duration::from_secs), ..Retries::default() };
            let upstream = Upstream { retries, ..upstream() };
            let tries = Tries::begin(&upstream, Wish::Any, whole.map(Duration::from_secs), None);
            tries.left().map(|left| left.as_secs_f64().round())
        };
        assert_eq!([total(Some(2), Some(5)), total(Some(5), Some(2))], [Some(2.0), Some(2.0)]);
        assert_eq!(
            [total(None, Some(5)), total(Some(5), None), total(None, None)],
            [Some(5.0), Some(5.0), None]
        );
    }

    #[test]
    fn a_connection_that_was_closed_costs_one_more_attempt_over_a_new_one_and_no_retry() {
        let retries = Retries { attempts: 1, total: Some(Duration::from_secs(60)), ..Retries::default() };
        let upstream = Upstream { retries, ..upstream() };
        let mut tries = Tries::begin(&upstream, Wish::Any, None, None);
        let again = |tries: &mut Tries<'_>, reused| tries.again(AttemptFailure::Failed, reused, true);
        assert!(!tries.terms().fresh && again(&mut tries, true) && tries.terms().fresh);
        assert_eq!(
            (upstream.metrics.stale.value(), upstream.metrics.retries.value(), tries.number),
            (1, 0, 1)
        );
        assert!(again(&mut tries, false) && !tries.terms().fresh, "a new one that fails is a failure");
        assert_eq!(
            (upstream.metrics.stale.value(), upstream.metrics.retries.value(), tries.number),
            (1, 1, 2)
        );
        assert!(
            again(&mut tries, true) && again(&mut tries, true) && !again(&mut tries, true),
            "{MAX_STALE}"
        );
        let mut unsafe_to_repeat = Tries::begin(&upstream, Wish::Any, None, None);
        assert!(!unsafe_to_repeat.again(AttemptFailure::Failed, true, false));
        let late = Tries::begin(&upstream, Wish::Any, None, None);
        let start = late.start.checked_sub(Duration::from_secs(60)).unwrap();
        assert!(!again(&mut Tries { start, ..late }, true), "it has no more time than others");
    }

    #[test]
    fn pauses_are_lots_that_grow_up_to_ten_times_the_first() {
        let retries = Retries { backoff: Duration::from_millis(100), ..Retries::default() };
        let longest = |number| retries.pause(number, u64::MAX).as_secs_f64();
        let longest: Vec<_> = (1..8).map(|number| (longest(number) * 10.0).round()).collect();
        assert_eq!(longest, [0.0, 1.0, 3.0, 7.0, 10.0, 10.0, 10.0]);
        assert_eq!(retries.pause(2, u64::MAX / 2).as_millis(), 49);
        assert_eq!(retries.pause(u32::MAX, 0), Duration::ZERO);
        let upstream = upstream();
        let lots: std::collections::BTreeSet<_> = (0..100).map(|number| upstream.lot(number)).collect();
        assert_eq!(lots.len(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_waits_where_something_was_sent_or_all_endpoints_were_tried() {
        use AttemptFailure::{Failed, Status, Unreachable};
        let metrics = Metrics::new(1);
        let endpoint = |name| Arc::new(Endpoint::new(name, &metrics).unwrap());
        let backoff = Duration::from_secs(3600);
        let upstream = Upstream {
            retries: Retries { attempts: 3, backoff, ..Retries::default() },
            ..Upstream::new("api", vec![endpoint("a:1"), endpoint("b:1")], metrics.upstream("api"))
        };
        let begin = || Tries::begin(&upstream, Wish::Any, None, None);
        let mut tries = begin();
        assert!(tries.again(Unreachable, false, true) && tries.pause.is_none(), "the other endpoint");
        assert!(tries.again(Unreachable, false, true) && tries.pause.is_some(), "none is left");
        for sent in [Failed, Status(StatusCode::SERVICE_UNAVAILABLE)] {
            let mut tries = begin();
            assert!(tries.again(sent, false, true) && tries.pause.is_some(), "{sent:?}");
            let (pause, asked) = (tries.pause, tokio::time::Instant::now());
            assert!(tries.slot().await.is_ok() && asked.elapsed() >= pause.unwrap() && tries.pause.is_none());
        }
        let mut stale = begin();
        assert!(stale.again(Failed, true, true) && stale.pause.is_none());
        let short = Tries { total: Some((Duration::from_millis(1), AttemptFailure::OutOfTime)), ..begin() };
        let refused = upstream.metrics.retries_refused.value();
        assert!(!{ short }.again(Failed, false, true), "it would end before");
        assert_eq!(upstream.metrics.retries_refused.value(), refused);
    }

    #[test]
    fn a_hedge_goes_to_no_endpoint_that_is_known_to_fail() {
        let metrics = Metrics::new(1);
        let endpoint = |name| Arc::new(Endpoint::new(name, &metrics).unwrap());
        let upstream = Upstream::new("api", vec![endpoint("a:1"), endpoint("b:1")], metrics.upstream("api"));
        let tries = Tries::begin(&upstream, Wish::Any, None, None);
        let other = upstream.endpoints.iter().find(|other| other.id != tries.chosen.endpoint.id).unwrap();
        assert!(tries.hedge().is_some_and(|(chosen, ..)| chosen.endpoint.id == other.id));
        other.set_healthy(false, Duration::ZERO);
        assert!(tries.hedge().is_none());
    }
}
