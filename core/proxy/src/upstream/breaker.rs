//! The circuit breaker: an upstream whose requests fail gets none for a while, so that clients are
//! told at once and the upstream can recover.
//!
//! It judges requests as their clients see them, after retries. While the circuit is closed, that costs
//! a look at the state and a count; the clock is read when a request ends.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Upstream;
use super::endpoint::{millis, now};
use super::window::Window;

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

/// When the circuit opens, and how it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// Percent of the requests that must fail.
    pub error_rate: u8,
    /// Requests that there must have been.
    pub min_requests: u32,
    /// In which time.
    pub window: Duration,
    /// Whether responses with status 500 to 599 are failures, too.
    pub server_errors: bool,
    /// How long the circuit stays open.
    pub time: Duration,
    /// Requests that then try whether the upstream is back; when all go well the circuit closes.
    pub probes: u32,
}

/// The state of an upstream's circuit. It belongs to the upstream's name, as its counters do.
#[derive(Debug, Default)]
pub struct Circuit {
    state: AtomicU8,
    /// When an open one is half open; milliseconds of [`now`].
    until: AtomicU64,
    /// Probes under way.
    probing: AtomicU32,
    /// Probes that went well.
    passed: AtomicU32,
    window: Window,
}

/// How a circuit is, for people and machines that ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitState {
    /// Requests are sent.
    Closed,
    /// A few are, to see whether the upstream is back.
    HalfOpen,
    /// None is.
    Open,
}

/// A request that the breaker lets pass, until it is dropped.
pub(crate) struct Passage<'u> {
    upstream: &'u Upstream,
    breaker: &'u Breaker,
    is_probe: bool,
}

/// What became of a request, as far as the upstream is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    ServerError,
    /// There was no response.
    Failed,
    /// It is told at the end of the response.
    Later,
    /// It tells nothing of the upstream.
    Unknown,
}

impl CircuitState {
    /// Its name in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            CircuitState::Closed => "closed",
            CircuitState::HalfOpen => "half_open",
            CircuitState::Open => "open",
        }
    }
}

impl Circuit {
    /// How it is.
    pub fn state(&self) -> CircuitState {
        match self.state.load(Relaxed) {
            OPEN => CircuitState::Open,
            HALF_OPEN => CircuitState::HalfOpen,
            _ => CircuitState::Closed,
        }
    }

    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Relaxed, Relaxed).is_ok()
    }
}

impl Upstream {
    /// Whether a request may be sent: none without a breaker. The error says for how long it is useless
    /// to ask again.
    pub(crate) fn pass(&self) -> Result<Option<Passage<'_>>, Duration> {
        let Some(breaker) = &self.breaker else { return Ok(None) };
        let circuit = &self.metrics.circuit;
        let passage = |is_probe| Ok(Some(Passage { upstream: self, breaker, is_probe }));
        if circuit.state() == CircuitState::Closed {
            return passage(false);
        }
        let left = circuit.until.load(Relaxed).saturating_sub(now());
        if left == 0 && circuit.change(OPEN, HALF_OPEN) {
            circuit.passed.store(0, Relaxed);
            tracing::info!(upstream = &*self.name, "circuit is half open");
        }
        if circuit.state() == CircuitState::HalfOpen {
            let more = |probing| (probing < breaker.probes).then(|| probing + 1);
            if circuit.probing.fetch_update(Relaxed, Relaxed, more).is_ok() {
                return passage(true);
            }
        }
        self.metrics.circuit_refusals.increment();
        Err(Duration::from_millis(left))
    }

    /// Learns what became of a request that had passed, at its end.
    pub(super) fn judge_late(&self, verdict: Verdict) {
        if let Some(breaker) = &self.breaker {
            Passage { upstream: self, breaker, is_probe: false }.judge(verdict);
        }
    }

    fn open_circuit(&self, breaker: &Breaker, from: u8) {
        let circuit = &self.metrics.circuit;
        circuit.until.store(now().saturating_add(millis(breaker.time)), Relaxed);
        if circuit.change(from, OPEN) {
            self.metrics.circuit_opens.increment();
            tracing::warn!(upstream = &*self.name, ms = millis(breaker.time), "circuit is open");
        }
    }
}

impl Passage<'_> {
    /// Learns what became of the request.
    pub(crate) fn judge(self, verdict: Verdict) {
        let (upstream, breaker) = (self.upstream, self.breaker);
        let circuit = &upstream.metrics.circuit;
        let failed = match verdict {
            Verdict::Good => false,
            Verdict::ServerError => breaker.server_errors,
            Verdict::Failed => true,
            // A stream may never end, and the head shows that somebody is there.
            Verdict::Later if self.is_probe => false,
            Verdict::Later | Verdict::Unknown => return,
        };
        match (self.is_probe, circuit.state()) {
            (true, CircuitState::HalfOpen) if failed => upstream.open_circuit(breaker, HALF_OPEN),
            (true, CircuitState::HalfOpen) => {
                let passed = circuit.passed.fetch_add(1, Relaxed).saturating_add(1);
                if passed >= breaker.probes && circuit.change(HALF_OPEN, CLOSED) {
                    circuit.window.clear();
                    tracing::info!(upstream = &*upstream.name, "circuit is closed");
                }
            }
            (false, CircuitState::Closed) => {
                circuit.window.turn(now(), breaker.window, 0);
                let seen = circuit.window.count(failed, Duration::ZERO);
                if failed && seen.fails(breaker.error_rate, breaker.min_requests) {
                    upstream.open_circuit(breaker, CLOSED);
                }
            }
            // The circuit has changed meanwhile: what began before tells nothing new.
            _ => {}
        }
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.upstream.metrics.circuit.probing.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::upstream::Endpoint;

    const BREAKER: Breaker = Breaker {
        error_rate: 50,
        min_requests: 4,
        window: Duration::from_secs(3600),
        server_errors: true,
        time: Duration::from_secs(3600),
        probes: 2,
    };

    fn upstream(breaker: Breaker) -> Upstream {
        let metrics = Metrics::new(1);
        let endpoint = Arc::new(Endpoint::new("a:1", &metrics).unwrap());
        Upstream { breaker: Some(breaker), ..Upstream::new("api", vec![endpoint], metrics.upstream("api")) }
    }

    fn end(upstream: &Upstream, verdicts: &[Verdict]) -> CircuitState {
        for verdict in verdicts {
            upstream.pass().ok().flatten().unwrap().judge(*verdict);
        }
        upstream.metrics.circuit.state()
    }

    use Verdict::{Failed, Good, ServerError, Unknown};

    #[test]
    fn a_circuit_opens_when_enough_requests_fail_and_enough_were_made() {
        let upstream = upstream(BREAKER);
        assert_eq!(end(&upstream, &[Failed, ServerError, Failed]), CircuitState::Closed, "too few");
        assert_eq!(end(&upstream, &[Good, Good, Good, Good]), CircuitState::Closed, "too few failed");
        assert_eq!(end(&upstream, &[Unknown, Unknown]), CircuitState::Closed);
        assert_eq!(end(&upstream, &[Failed]), CircuitState::Open);
        let wait = upstream.pass().err().unwrap();
        assert!((3590..=3600).contains(&wait.as_secs()), "{wait:?}");
        let deaf = self::upstream(Breaker { server_errors: false, ..BREAKER });
        assert_eq!(end(&deaf, &[ServerError; 20]), CircuitState::Closed);
    }

    #[test]
    fn failures_of_another_window_are_forgotten() {
        let upstream = upstream(Breaker { window: Duration::ZERO, ..BREAKER });
        assert_eq!(end(&upstream, &[Failed; 20]), CircuitState::Closed);
    }

    #[test]
    fn a_few_requests_try_whether_the_upstream_is_back() {
        let upstream = upstream(Breaker { time: Duration::ZERO, ..BREAKER });
        let pass = || upstream.pass().ok().flatten();
        assert_eq!(end(&upstream, &[Failed; 4]), CircuitState::Open);
        let (first, second) = (pass().unwrap(), pass().unwrap());
        assert!(pass().is_none(), "two at a time");
        drop(second);
        let again = pass().unwrap();
        first.judge(Good);
        again.judge(Failed);
        assert_eq!(upstream.metrics.circuit.state(), CircuitState::Open);
        let (first, second) = (pass().unwrap(), pass().unwrap());
        first.judge(Good);
        assert_eq!(upstream.metrics.circuit.state(), CircuitState::HalfOpen);
        second.judge(Good);
        assert_eq!(upstream.metrics.circuit.state(), CircuitState::Closed);
        assert_eq!(end(&upstream, &[Failed; 3]), CircuitState::Closed, "it begins anew");
        assert_eq!(
            (upstream.metrics.circuit_opens.value(), upstream.metrics.circuit_refusals.value()),
            (2, 1)
        );
    }

    #[test]
    fn what_began_before_the_circuit_opened_changes_nothing() {
        let upstream = upstream(BREAKER);
        let before = upstream.pass().ok().flatten().unwrap();
        end(&upstream, &[Failed; 4]);
        before.judge(Good);
        assert_eq!(upstream.metrics.circuit.state(), CircuitState::Open);
    }
}
