//! Upstreams: named sets of endpoints, and the ways to them.

mod connection;
mod http1;
mod outbound;
mod pool;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::header::HeaderValue;

use crate::metrics::UpstreamMetrics;

pub(crate) use connection::{AttemptError, AttemptFailure, UpstreamBody, send};
pub(crate) use http1::RequestHead;
pub use outbound::UpstreamClient;
pub(crate) use pool::{ReapGuard, reap_idle};

/// A named set of endpoints.
#[derive(Debug)]
pub struct Upstream {
    /// Its name.
    pub name: Arc<str>,
    /// Its endpoints, at least one.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The order in which endpoints take turns: indices, as often as their weights say.
    pub turns: Vec<u16>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Idle connections kept per worker and endpoint.
    pub max_idle: usize,
    /// Attempts after the first, for what is safe to repeat.
    pub retries: u32,
    /// The `Host` sent.
    pub host: HostHeader,
    /// What is counted.
    pub metrics: Arc<UpstreamMetrics>,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection.
    pub connect: Duration,
    /// From the request's end of sending its head to the response's head.
    pub response: Duration,
    /// A pooled connection unused.
    pub idle: Duration,
    /// Between two chunks of a response's body.
    pub body: Duration,
}

/// The `Host` that the upstream sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostHeader {
    /// The one that the client sent.
    Preserve,
    /// The endpoint's.
    Endpoint,
    /// This one.
    Name(HeaderValue),
}

/// An address of an upstream.
#[derive(Debug)]
pub struct Endpoint {
    /// Identity of its connections: unique in the process, kept across reloads while address and
    /// transport settings stay.
    pub id: u32,
    /// `host:port`.
    pub authority: Arc<str>,
    /// The same as a header's value.
    pub host: HeaderValue,
}

impl Endpoint {
    /// The endpoint `host:port`, with a new identity.
    pub fn new(authority: &str) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let host = HeaderValue::try_from(authority).map_err(|_| format!("`{authority}` is not a host"))?;
        Ok(Endpoint { id: NEXT.fetch_add(1, Relaxed), authority: authority.into(), host })
    }
}

impl Upstream {
    /// The order of turns for these weights (smooth weighted round robin): every endpoint gets its
    /// share, spread evenly. A weight of 0 takes no turn.
    pub fn turns(weights: &[u32]) -> Vec<u16> {
        let total: i64 = weights.iter().map(|weight| i64::from(*weight)).sum();
        let mut credit = vec![0_i64; weights.len()];
        let mut turns = Vec::new();
        for _ in 0..total {
            for (credit, weight) in credit.iter_mut().zip(weights) {
                *credit += i64::from(*weight);
            }
            let Some(best) = (0..credit.len()).rev().max_by_key(|at| credit[*at]) else { break };
            credit[best] -= total;
            turns.push(best as u16);
        }
        turns
    }

    /// The endpoint whose turn it is on this worker, and not `avoid` if there is another. Counts
    /// the attempt: the count is the turn.
    pub(crate) fn next(&self, avoid: Option<u32>) -> &Arc<Endpoint> {
        let turn = self.metrics.attempts.increment() as usize;
        let candidates = (0..self.turns.len()).map(|skip| {
            let at = (turn + skip) % self.turns.len();
            &self.endpoints[usize::from(self.turns[at])]
        });
        let mut first = None;
        for endpoint in candidates {
            if Some(endpoint.id) != avoid {
                return endpoint;
            }
            first = first.or(Some(endpoint));
        }
        first.unwrap_or(&self.endpoints[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_weights_and_are_spread() {
        assert_eq!(Upstream::turns(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(Upstream::turns(&[1, 1]), [0, 1]);
        assert_eq!(Upstream::turns(&[0, 2]), [1, 1]);
    }
}
