//! An adaptive limit of the requests under way: so many that the upstream answers nearly as fast as
//! when it has little to do. Beyond that, requests would only wait in the upstream's own queues.
//!
//! The gradient of time decides, as in Netflix's and Envoy's limiters. What the upstream needs when it
//! is not overloaded is learned from its own answers, and learned anew from time to time; if it seems
//! to be overloaded then, with so few requests under way for a moment that it can't be.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Upstream;
use super::endpoint::{millis, now};
use super::window::Window;

/// How often the limit is thought over: long enough for some answers, short beside a client's patience.
const STEP: Duration = Duration::from_millis(100);
/// Answers that are needed for that; a mean of fewer tells of their neighbours in the queue.
const MIN_ANSWERS: u32 = 10;
/// How often it is learned anew what the upstream needs.
const LEARN: Duration = Duration::from_secs(30);
/// Percent of what it needed before, up to which it counts as not overloaded then.
const UNLOADED: u64 = 125;
/// The part of the limit that is left meanwhile, if it counts as overloaded.
const DRAINED: u32 = 4;
/// How long that may take. Then it is given up: the upstream does not answer what it has.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest limit; `max_requests` sets a smaller one.
const LARGEST: f64 = 1_000_000.0;

/// How the limit adapts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adaptive {
    /// The smallest limit, and the first.
    pub min: u32,
    /// How many times what it needs with little to do the upstream may take on average.
    pub tolerance: u32,
}

/// What was learned of an upstream. It belongs to its name, as its counters do.
#[derive(Debug, Default)]
pub struct Learned {
    /// The limit; 0 before anything was learned.
    limit: AtomicU32,
    /// When learning anew is to be given up; milliseconds of [`now`], 0 at other times.
    until: AtomicU64,
    window: Window,
    learner: Mutex<Learner>,
}

#[derive(Debug, Default)]
struct Learner {
    limit: f64,
    /// Microseconds that the upstream needs with little to do; 0 if that is unknown.
    unloaded: u64,
    /// When that was learned; milliseconds of [`now`].
    since: u64,
    /// When learning anew is to be given up.
    until: u64,
    phase: Phase,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Phase {
    #[default]
    Steady,
    /// Waits for requests to end, with the limit drained.
    Drain,
    /// Sees how long the upstream takes now.
    Measure,
}

impl Learned {
    /// The limit now. While all wait for answers there is none to end that, so time does.
    pub(super) fn limit(&self, adaptive: &Adaptive) -> u32 {
        match self.until.load(Relaxed) {
            0 => {}
            until if now() < until => {}
            _ => self.give_up(now()),
        }
        self.limit.load(Relaxed).max(adaptive.min)
    }

    fn give_up(&self, now: u64) {
        let mut learner = self.learner();
        if learner.is_late(now) {
            learner.give_up(now);
            self.publish(&learner, learner.limit as u32);
        }
    }

    fn learner(&self) -> MutexGuard<'_, Learner> {
        self.learner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, learner: &Learner, limit: u32) {
        self.limit.store(limit, Relaxed);
        self.until.store(if learner.phase == Phase::Steady { 0 } else { learner.until }, Relaxed);
    }
}

impl Upstream {
    /// Learns from an attempt, answered or timed out.
    pub(super) fn learn(&self, took: Duration) {
        let Some(adaptive) = &self.adaptive else { return };
        let (learned, now) = (&self.metrics.learned, now());
        let seen = learned.window.turn(now, STEP, MIN_ANSWERS);
        learned.window.count(false, took);
        let Some(mean) = seen.and_then(|seen| seen.mean()) else { return };
        let mut learner = learned.learner();
        let most = self.max_requests.map_or(LARGEST, f64::from);
        let limit = learner.step(adaptive, most, mean, self.metrics.slots.unanswered(), now);
        learned.publish(&learner, limit);
        drop(learner);
        // There may be room for several more.
        self.admit();
    }
}

impl Learner {
    /// The limit for the next step, after one in which an answer took `mean` microseconds and `running`
    /// requests are under way.
    fn step(&mut self, adaptive: &Adaptive, most: f64, mean: u64, running: u32, now: u64) -> u32 {
        let least = f64::from(adaptive.min);
        self.limit = self.limit.clamp(least, most.max(least));
        let mean = mean.max(1);
        match self.phase {
            _ if self.is_late(now) => self.give_up(now),
            Phase::Steady if self.unloaded == 0 => self.learned(mean, now),
            Phase::Steady if now.saturating_sub(self.since) >= millis(LEARN) => {
                if mean * 100 <= self.unloaded * UNLOADED {
                    self.learned(mean, now);
                } else {
                    (self.until, self.phase) = (now.saturating_add(millis(PATIENCE)), Phase::Drain);
                }
            }
            Phase::Steady => self.unloaded = self.unloaded.min(mean),
            Phase::Drain if running <= self.drained(adaptive) => self.phase = Phase::Measure,
            Phase::Drain => {}
            Phase::Measure => self.learned(mean, now),
        }
        if self.phase != Phase::Steady {
            return self.drained(adaptive);
        }
        let tolerated = (self.unloaded * u64::from(adaptive.tolerance)) as f64;
        let gradient = (tolerated / mean as f64).clamp(0.5, 1.0);
        // A limit that nobody comes near is not raised: it would say nothing.
        let is_used = f64::from(running) * 2.0 >= self.limit;
        let room = if is_used { self.limit.sqrt() } else { 0.0 };
        self.limit = (self.limit * gradient + room).clamp(least, most.max(least));
        self.limit as u32
    }

    fn learned(&mut self, mean: u64, now: u64) {
        (self.unloaded, self.since, self.phase) = (mean, now, Phase::Steady);
    }

    fn is_late(&self, now: u64) -> bool {
        self.phase != Phase::Steady && now >= self.until
    }

    /// Goes on with what is known.
    fn give_up(&mut self, now: u64) {
        (self.since, self.phase) = (now, Phase::Steady);
    }

    fn drained(&self, adaptive: &Adaptive) -> u32 {
        (self.limit as u32 / DRAINED).max(adaptive.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAPTIVE: Adaptive = Adaptive { min: 4, tolerance: 2 };
    const NEEDS: u64 = 10_000;

    /// A server that works on `at_once` requests and lets the others wait, under as many as it may have.
    fn run(learner: &mut Learner, at_once: u32, needs: u64, steps: u64, from: u64) -> (u32, u64) {
        let (mut limit, mut mean) = (learner.limit as u32, 0);
        for at in 0..steps {
            limit = limit.max(ADAPTIVE.min);
            mean = needs * u64::from(limit).max(at_once.into()) / u64::from(at_once);
            limit = learner.step(&ADAPTIVE, 500.0, mean, limit, from + at * 100);
        }
        (limit, mean)
    }

    #[test]
    fn a_limit_settles_where_the_upstream_takes_as_much_longer_as_is_tolerated() {
        let mut learner = Learner::default();
        let (limit, mean) = run(&mut learner, 50, NEEDS, 200, 0);
        assert!((100..150).contains(&limit) && mean < 3 * NEEDS, "{limit} {mean}");
        // Half of it fails.
        let (limit, mean) = run(&mut learner, 25, NEEDS, 50, 20_000);
        assert!((50..90).contains(&limit) && mean < 4 * NEEDS, "{limit} {mean}");
        // It grows to what is allowed while all is well, and no further.
        assert_eq!(run(&mut learner, 1000, NEEDS, 200, 25_000).0, 500);
    }

    #[test]
    fn a_limit_that_nobody_uses_stays() {
        let mut learner = Learner::default();
        for at in 0..100 {
            assert_eq!(learner.step(&ADAPTIVE, 500.0, NEEDS, 1, at * 100), 4);
        }
    }

    #[test]
    fn what_an_upstream_needs_is_learned_anew_with_few_requests_under_way() {
        let mut learner = Learner::default();
        run(&mut learner, 50, NEEDS, 250, 0);
        // From now on everything takes three times as long: less is let through, until it is known.
        let (limit, _) = run(&mut learner, 50, 3 * NEEDS, 20, 25_000);
        assert!(limit < 40, "{limit}");
        let (limit, _) = run(&mut learner, 50, 3 * NEEDS, 100, 30_000);
        assert_eq!(learner.unloaded, 3 * NEEDS);
        assert!(limit > 90, "{limit}");
    }

    #[test]
    fn errors_teach_nothing_of_what_requests_take() {
        use crate::upstream::balance::Role;
        use crate::upstream::{AttemptFailure, Endpoint, Hedge};
        use http::StatusCode;
        let metrics = crate::metrics::Metrics::new(1);
        let endpoint = std::sync::Arc::new(Endpoint::new("a:1", &metrics).unwrap());
        let upstream = Upstream {
            adaptive: Some(ADAPTIVE),
            hedge: Some(Hedge::P95),
            ..Upstream::new("api", vec![endpoint], metrics.upstream("api"))
        };
        let answered = |status| upstream.answered(upstream.chosen(0, Role::Ordinary), status, STEP);
        let learned = || {
            let counted = upstream.metrics.learned.window.count(false, Duration::ZERO);
            (counted.requests - 1, upstream.hedge_after(&Hedge::P95))
        };
        answered(StatusCode::BAD_GATEWAY);
        assert_eq!(learned(), (0, None));
        answered(StatusCode::NOT_FOUND);
        assert_eq!(learned(), (2, Some(STEP)), "the look counts as well");
        upstream.failed(upstream.chosen(0, Role::Ordinary), AttemptFailure::Unreachable, STEP);
        assert_eq!(learned().0, 3, "who is not there says nothing");
        upstream.failed(upstream.chosen(0, Role::Ordinary), AttemptFailure::ResponseTimeout, STEP);
        assert_eq!(learned().0, 5, "who is silent has taken as long at least");
    }

    /// One that has just begun to learn anew.
    fn draining(at: u64) -> Learner {
        let mut learner = Learner { limit: 100.0, unloaded: NEEDS, ..Learner::default() };
        assert_eq!(learner.step(&ADAPTIVE, 500.0, 9 * NEEDS, 400, at), 25, "drained");
        learner
    }

    #[test]
    fn learning_is_given_up_where_requests_do_not_end() {
        let mut learner = draining(40_000);
        assert_eq!(learner.step(&ADAPTIVE, 500.0, 9 * NEEDS, 400, 41_999), 25);
        learner.step(&ADAPTIVE, 500.0, 9 * NEEDS, 400, 42_000);
        assert_eq!((learner.phase, learner.unloaded), (Phase::Steady, NEEDS));
        assert!(learner.limit < 100.0);
    }

    #[test]
    fn learning_is_given_up_where_nothing_is_answered() {
        let learned = Learned::default();
        let learner = draining(40_000);
        learned.publish(&learner, 25);
        *learned.learner() = learner;
        learned.give_up(41_999);
        assert_eq!(learned.limit.load(Relaxed), 25);
        learned.give_up(42_000);
        assert_eq!((learned.limit.load(Relaxed), learned.until.load(Relaxed)), (100, 0));
        // Whoever asks for the limit gives it up.
        learned.publish(&draining(u64::MAX / 2), 25);
        assert_eq!(learned.limit(&ADAPTIVE), 25);
        let learner = draining(30_000);
        learned.limit.store(25, Relaxed);
        learned.until.store(1, Relaxed);
        *learned.learner() = Learner { until: 1, ..learner };
        std::iter::repeat_with(now).find(|now| *now > 1);
        assert_eq!(learned.limit(&ADAPTIVE), 100);
    }
}
