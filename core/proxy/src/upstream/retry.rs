//! When an attempt is worth another, and how many there may be.

use std::time::{Duration, Instant};

use http::StatusCode;

use super::{AttemptFailure, Upstream};
use crate::metrics::UpstreamMetrics;

/// When there is another attempt.
#[derive(Debug, Clone)]
pub struct Retries {
    /// Attempts after the first.
    pub attempts: u32,
    /// How long one attempt may take to the response's head, beside the upstream's timeouts.
    pub per_try: Option<Duration>,
    /// How long all attempts together may take to the response's head.
    pub total: Option<Duration>,
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

/// A retry under way, counted against the budget until it is dropped.
pub(crate) struct Retrying<'u>(&'u UpstreamMetrics);

impl Default for Retries {
    fn default() -> Self {
        Retries {
            attempts: 1,
            per_try: None,
            total: None,
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
    /// Whether another attempt may help after this failure.
    pub(crate) fn follow(&self, failure: AttemptFailure) -> bool {
        match failure {
            AttemptFailure::Unreachable | AttemptFailure::ConnectTimeout | AttemptFailure::Tls => {
                self.on_connect
            }
            AttemptFailure::ResponseTimeout => self.on_timeout,
            AttemptFailure::Failed => self.on_broken,
            AttemptFailure::Status(_) => true,
            AttemptFailure::OutOfTime | AttemptFailure::Overloaded => false,
        }
    }

    /// How long all attempts together may take, for a client that waits so long.
    pub(crate) fn total(&self, patience: Option<Duration>) -> Option<Duration> {
        self.total.into_iter().chain(patience).min()
    }

    /// How long an attempt may take that begins now, when the first began at `start`.
    pub(crate) fn limit(&self, start: Instant, patience: Option<Duration>) -> Option<TryLimit> {
        let per_try =
            self.per_try.map(|length| TryLimit { length, failure: AttemptFailure::ResponseTimeout });
        let left = self.total(patience).map(|total| TryLimit {
            length: total.saturating_sub(start.elapsed()),
            failure: AttemptFailure::OutOfTime,
        });
        per_try.into_iter().chain(left).min_by_key(|limit| limit.length)
    }
}

impl Upstream {
    /// Leave for another attempt, if the budget of retries has any left. Counts both.
    pub(crate) fn retry(&self) -> Option<Retrying<'_>> {
        let metrics = &*self.metrics;
        let by_share = metrics.in_flight.value().saturating_mul(self.retries.share.into()) / 100;
        if metrics.retrying.value() >= by_share.max(self.retries.min.into()) {
            metrics.retries_refused.increment();
            return None;
        }
        metrics.retries.increment();
        metrics.retrying.increment();
        Some(Retrying(metrics))
    }
}

impl Drop for Retrying<'_> {
    fn drop(&mut self) {
        self.0.retrying.decrement();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::upstream::Endpoint;

    #[test]
    fn retries_are_a_share_of_what_is_under_way_or_the_minimum() {
        let metrics = Metrics::new(1);
        let endpoint = Arc::new(Endpoint::new("a:1", &metrics).unwrap());
        let upstream = Upstream {
            retries: Retries { share: 20, min: 2, ..Retries::default() },
            ..Upstream::new("api", vec![endpoint], metrics.upstream("api"))
        };
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
        let failure = |retries: Retries| retries.limit(Instant::now(), None).unwrap().failure;
        assert_eq!(failure(retries(1, 10)), AttemptFailure::ResponseTimeout);
        assert_eq!(failure(retries(10, 1)), AttemptFailure::OutOfTime);
        assert!(Retries::default().limit(Instant::now(), None).is_none());
    }
}
