//! What attempts tell of endpoints: ejection, return, and how many requests are under way.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use http::StatusCode;

use super::balance::{Chosen, Role};
use super::endpoint::{Term, now};
use super::slots::Slot;
use super::{AttemptFailure, Endpoint, Upstream, Verdict};

/// When requests show that an endpoint fails.
#[derive(Debug, Clone, Copy)]
pub struct Ejection {
    /// Failures in a row after which it gets no requests.
    pub failures: u32,
    /// Whether responses with status 500 to 599, and outcomes of gRPC that stand for them, are failures, too.
    pub server_errors: bool,
    /// Percent of an endpoint's requests within a window that must fail; none if their share does not matter.
    pub error_rate: Option<u8>,
    /// How many times longer than at the others they must take; none if that does not matter.
    pub latency_factor: Option<u32>,
    /// The time over which both are judged.
    pub window: Duration,
    /// Requests that the endpoint must have had in that time.
    pub min_requests: u32,
    /// For how long, times the ejections in a row.
    pub time: Duration,
    /// The longest time.
    pub max_time: Duration,
    /// Percent of the endpoints that may be ejected together.
    pub max_ejected: u8,
}

/// A request that is under way to an endpoint, until it is dropped or its connection takes over.
pub(super) struct Running<'u> {
    upstream: &'u Upstream,
    endpoint: &'u Endpoint,
}

impl Default for Ejection {
    fn default() -> Self {
        Ejection {
            failures: 5,
            server_errors: false,
            error_rate: None,
            latency_factor: None,
            window: Duration::from_secs(10),
            min_requests: 50,
            time: Duration::from_secs(10),
            max_time: Duration::from_secs(300),
            max_ejected: 50,
        }
    }
}

impl Upstream {
    /// Learns from a response, whose head came after so long.
    pub(crate) fn answered(&self, by: Chosen<'_>, status: StatusCode, took: Duration) {
        // An error comes sooner than what was asked for.
        if !status.is_server_error() {
            self.learn(took);
            self.learn_p95(took);
        }
        self.judge(by, status, took);
    }

    /// Learns from the head of a response, if what came of it is told at its end. An endpoint that was out is back
    /// with the head, because a stream may never end.
    pub(crate) fn began_to_answer(&self, by: Chosen<'_>, took: Duration) {
        self.learn(took);
        self.learn_p95(took);
        self.is_back(by);
    }

    /// Learns how a call of gRPC ended whose head came after so long.
    pub(super) fn call_ended(&self, endpoint: &Arc<Endpoint>, status: StatusCode, took: Duration) {
        self.judge(Chosen { endpoint, index: 0, role: Role::Ordinary }, status, took);
        let failed = status.is_server_error();
        self.judge_late(if failed { Verdict::ServerError } else { Verdict::Good });
    }

    fn judge(&self, by: Chosen<'_>, status: StatusCode, took: Duration) {
        if status.is_server_error() && self.ejection.server_errors {
            return self.has_failed(by, "server_error");
        }
        self.watch(by, false, took);
        by.endpoint.succeeded();
        self.is_back(by);
    }

    fn is_back(&self, by: Chosen<'_>) {
        if by.role != Role::Ordinary && by.endpoint.restore(now(), self.slow_start) {
            tracing::info!(upstream = &*self.name, endpoint = &*by.endpoint.authority, "endpoint is back");
        }
    }

    /// Learns from an attempt without a response, which ended after so long.
    pub(crate) fn failed(&self, at: Chosen<'_>, failure: AttemptFailure, took: Duration) {
        let why = match failure {
            AttemptFailure::Unreachable => "unreachable",
            AttemptFailure::ConnectTimeout => "connect_timeout",
            AttemptFailure::Tls => "tls",
            AttemptFailure::ResponseTimeout => "response_timeout",
            AttemptFailure::Failed => "broken",
            // These say nothing of the endpoint, or have been judged as a response.
            AttemptFailure::Status(_)
            | AttemptFailure::OutOfTime
            | AttemptFailure::Deadline
            | AttemptFailure::SlowUpload
            | AttemptFailure::NoUpgrade
            | AttemptFailure::Overloaded
            | AttemptFailure::PendingTimeout => return,
        };
        if matches!(failure, AttemptFailure::ResponseTimeout | AttemptFailure::Failed) {
            self.metrics.failures.increment();
        }
        if failure == AttemptFailure::ResponseTimeout {
            self.learn(took);
        }
        self.has_failed(at, why);
    }

    /// Learns from a response that broke off behind its head.
    pub(super) fn broke_off(&self, endpoint: &Arc<Endpoint>) {
        self.metrics.failures.increment();
        self.has_failed(Chosen { endpoint, index: 0, role: Role::Ordinary }, "broke_off");
    }

    /// Learns from an attempt that somebody stopped waiting for: it takes at least so long.
    pub(crate) fn given_up(&self, at: Chosen<'_>, took: Duration) {
        self.learn(took);
        self.learn_p95(took);
        self.watch(at, false, took);
    }

    fn has_failed(&self, at: Chosen<'_>, why: &'static str) {
        let ejection = &self.ejection;
        let is_due = match at.role {
            Role::Probe => true,
            // When all are out, failures tell nothing new of those that are.
            Role::Ordinary | Role::LastResort if at.endpoint.is_ejected() => false,
            Role::Ordinary | Role::LastResort => at.endpoint.failed() >= ejection.failures,
        };
        if is_due { self.eject(at, why) } else { self.watch(at, true, Duration::ZERO) }
    }

    /// Judges by what the endpoint's requests of late have in common.
    fn watch(&self, at: Chosen<'_>, failed: bool, took: Duration) {
        let (ejection, endpoint) = (&self.ejection, at.endpoint);
        let is_judged = ejection.error_rate.is_some() || ejection.latency_factor.is_some();
        if !is_judged || endpoint.is_ejected() {
            return;
        }
        let least = ejection.min_requests;
        let seen = endpoint.window.turn(now(), ejection.window, 0).filter(|seen| seen.requests >= least);
        if let Some(mean) = seen.and_then(|seen| seen.mean()) {
            endpoint.set_mean(mean);
            if ejection.latency_factor.is_some_and(|factor| self.is_slower(endpoint, mean, factor)) {
                return self.eject(at, "slow");
            }
        }
        let seen = endpoint.window.count(failed, took);
        if failed && ejection.error_rate.is_some_and(|rate| seen.fails(rate, least)) {
            self.eject(at, "error_rate");
        }
    }

    /// Whether `mean` is more than `factor` times what requests take at the others.
    fn is_slower(&self, endpoint: &Endpoint, mean: u64, factor: u32) -> bool {
        let others = self.endpoints.iter().filter(|other| other.id != endpoint.id && !other.is_ejected());
        let (count, sum) = others
            .filter_map(|other| other.mean())
            .fold((0, 0), |(count, sum), mean| (count + 1, u64::saturating_add(sum, mean)));
        count > 0 && mean.saturating_mul(count) > sum.saturating_mul(factor.into())
    }

    fn eject(&self, at: Chosen<'_>, why: &'static str) {
        let ejection = &self.ejection;
        // Counting and ejecting are one step, or two workers together would eject too many.
        let counting = self.metrics.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.endpoints.iter().filter(|other| other.id != at.endpoint.id && other.is_out());
        let share = self.endpoints.len() * usize::from(ejection.max_ejected);
        // Of a few, a small share is one of them, but the last one is not.
        let least = usize::from(share > 0 && self.endpoints.len() > 1);
        let allowed = (share / 100).max(least);
        // One that was tried in vain is out already.
        let is_one_more = at.role != Role::Probe;
        if allowed == 0 || is_one_more && (at.endpoint.is_ejected() || others.count() >= allowed) {
            return;
        }
        let term = Term { base: ejection.time, longest: ejection.max_time };
        let length = at.endpoint.eject(now(), term);
        drop(counting);
        tracing::warn!(
            upstream = &*self.name,
            endpoint = &*at.endpoint.authority,
            why,
            ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
            "endpoint ejected"
        );
    }

    /// A request that [began](Running::begin) has ended.
    pub(super) fn end(&self, endpoint: &Endpoint) {
        self.give_slot_back();
        self.metrics.in_flight.decrement();
        endpoint.in_flight.decrement();
    }

    /// What the gateway's own checks say of an endpoint; true if they said otherwise before.
    pub fn check_said(&self, endpoint: &Endpoint, healthy: bool) -> bool {
        endpoint.set_healthy(healthy, self.slow_start)
    }
}

impl<'u> Running<'u> {
    /// Counts a request that begins.
    pub(super) fn begin(slot: Slot<'u>, endpoint: &'u Endpoint) -> Self {
        let upstream = slot.hand_over();
        upstream.metrics.in_flight.increment();
        endpoint.in_flight.increment();
        Running { upstream, endpoint }
    }

    /// The response has begun: whoever has it says when the request has ended.
    pub(super) fn hand_over(self) {
        self.upstream.begin_response();
        std::mem::forget(self);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.upstream.begin_response();
        self.upstream.end(self.endpoint);
    }
}
