//! What attempts tell of endpoints: ejection, return, and how many requests are under way.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::StatusCode;

use super::balance::{Chosen, Role};
use super::endpoint::{Term, now};
use super::{AttemptFailure, Endpoint, Upstream};

/// When requests show that an endpoint fails.
#[derive(Debug, Clone, Copy)]
pub struct Ejection {
    /// Failures in a row after which it gets no requests.
    pub failures: u32,
    /// Whether responses with status 500 to 599 are failures, too.
    pub server_errors: bool,
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
            time: Duration::from_secs(10),
            max_time: Duration::from_secs(300),
            max_ejected: 50,
        }
    }
}

impl Upstream {
    /// Learns from a response.
    pub(crate) fn answered(&self, by: Chosen<'_>, status: StatusCode) {
        if status.is_server_error() && self.ejection.server_errors {
            return self.has_failed(by, "server_error");
        }
        by.endpoint.succeeded();
        if by.role != Role::Ordinary && by.endpoint.restore(now(), self.slow_start) {
            tracing::info!(upstream = &*self.name, endpoint = &*by.endpoint.authority, "endpoint is back");
        }
    }

    /// Learns from an attempt without a response.
    pub(crate) fn failed(&self, at: Chosen<'_>, failure: AttemptFailure) {
        let why = match failure {
            AttemptFailure::Unreachable => "unreachable",
            AttemptFailure::ConnectTimeout => "connect_timeout",
            AttemptFailure::Tls => "tls",
            AttemptFailure::ResponseTimeout => "response_timeout",
            AttemptFailure::Failed => "broken",
            // These say nothing of the endpoint, or have been judged as a response.
            AttemptFailure::Status(_) | AttemptFailure::OutOfTime | AttemptFailure::Overloaded => return,
        };
        if matches!(failure, AttemptFailure::ResponseTimeout | AttemptFailure::Failed) {
            self.metrics.failures.increment();
        }
        self.has_failed(at, why);
    }

    fn has_failed(&self, at: Chosen<'_>, why: &'static str) {
        let ejection = &self.ejection;
        let is_due = match at.role {
            Role::Probe => true,
            // When all are out, failures tell nothing new of those that are.
            Role::Ordinary | Role::LastResort if at.endpoint.is_ejected() => false,
            Role::Ordinary | Role::LastResort => at.endpoint.failed() >= ejection.failures,
        };
        if !is_due {
            return;
        }
        // Counting and ejecting are one step, or two workers together would eject too many.
        let counting = self.metrics.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.endpoints.iter().filter(|other| other.id != at.endpoint.id && other.is_ejected());
        let allowed = self.endpoints.len() * usize::from(ejection.max_ejected) / 100;
        if others.count() >= allowed || (at.role != Role::Probe && at.endpoint.is_ejected()) {
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

    /// Counts a request that begins; none if there are as many as allowed.
    pub(super) fn begin<'u>(&'u self, endpoint: &'u Endpoint) -> Option<Running<'u>> {
        if let Some(most) = self.max_requests
            && self.metrics.limited.fetch_add(1, Relaxed) >= most
        {
            self.metrics.limited.fetch_sub(1, Relaxed);
            self.metrics.overloads.increment();
            return None;
        }
        self.metrics.in_flight.increment();
        endpoint.in_flight.increment();
        Some(Running { upstream: self, endpoint })
    }

    /// A request that [began](Self::begin) has ended.
    pub(super) fn end(&self, endpoint: &Endpoint) {
        if self.max_requests.is_some() {
            self.metrics.limited.fetch_sub(1, Relaxed);
        }
        self.metrics.in_flight.decrement();
        endpoint.in_flight.decrement();
    }

    /// What the gateway's own checks say of an endpoint; true if they said otherwise before.
    pub fn check_said(&self, endpoint: &Endpoint, healthy: bool) -> bool {
        endpoint.set_healthy(healthy, self.slow_start)
    }
}

impl Running<'_> {
    /// Leaves it to somebody else to say when the request has ended.
    pub(super) fn hand_over(self) {
        std::mem::forget(self);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.upstream.end(self.endpoint);
    }
}
