//! Plugins that keep failing are not called for a while.
//!
//! An instance whose own failures come too fast is out: requests are refused, or pass it by. After a rest one request
//! at a time tries it; when a few in a row went well it is back, and a failed one makes the rest twice as long. Its
//! refusals are not failures.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portcullis_plugin::{Exchange, Slot};

use crate::shadow::Share;

/// Requests in a row that have to go well before a plugin is back.
const PROBES: u32 = 3;

/// When a plugin is out, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuarantineTerms {
    /// Failures after which it is out.
    pub failures: u32,
    /// In which time.
    pub within: Duration,
    /// The first rest.
    pub first: Duration,
    /// The longest rest.
    pub longest: Duration,
}

/// The quarantine of a plugin instance.
#[derive(Clone)]
pub struct Quarantine {
    terms: QuarantineTerms,
    /// The clients that the plugin runs for; others never meet its quarantine.
    share: Option<Share>,
    ward: Arc<Ward>,
}

/// How an instance is; outlives what it is used with.
pub struct Ward {
    name: Arc<str>,
    /// From when on somebody may try it, in nanoseconds since `origin`; [`WELL`] if it is called as ever.
    opens: AtomicU64,
    origin: Instant,
    course: Mutex<Course>,
    probe: Slot<Probe>,
}

/// What `Ward::opens` is as long as nothing is wrong.
const WELL: u64 = 0;

/// What has happened so far.
#[derive(Default)]
struct Course {
    /// Failures since the window began, while it is well.
    failures: u32,
    window: Option<Instant>,
    is_out: bool,
    /// The last rest.
    rest: Duration,
    back_since: Option<Instant>,
    /// Number of the last probe: what earlier ones come to is too late.
    turn: u64,
    successes: u32,
}

/// What a failure led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    /// It is out for so long.
    Out(Duration),
    /// It stays out for so long.
    Still(Duration),
}

/// How a plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It is called.
    Well,
    /// It is not called, for so long at least.
    Resting(Duration),
    /// Requests try it.
    Probing,
}

/// Whether a plugin is called.
pub(crate) enum Admitted {
    /// As ever.
    Yes,
    /// To see whether it fails.
    Try(Probe),
    /// It is out.
    No,
}

/// One request's try. Counts as gone well if it was answered and never failed.
pub(crate) struct Probe {
    ward: Arc<Ward>,
    turn: u64,
    answered: bool,
}

impl Quarantine {
    /// The quarantine of the instance of this name, on these terms; `before` is how one of the same version was.
    pub fn new(
        name: Arc<str>,
        terms: QuarantineTerms,
        share: Option<Share>,
        before: Option<&Quarantine>,
    ) -> Self {
        let ward = before.map(|before| before.ward.clone());
        Quarantine { terms, share, ward: ward.unwrap_or_else(|| Arc::new(Ward::new(name))) }
    }

    /// How the plugin is.
    pub fn health(&self) -> Health {
        match self.ward.opens.load(Relaxed) {
            WELL => Health::Well,
            opens => match opens.checked_sub(self.ward.nanos(Instant::now())) {
                None | Some(0) => Health::Probing,
                Some(left) => Health::Resting(Duration::from_nanos(left)),
            },
        }
    }

    /// Whether the plugin is called for this exchange; that it is to try it is written into the exchange.
    pub(crate) fn admits(&self, exchange: &mut Exchange) -> bool {
        if self.is_well() {
            return true;
        }
        let tries = exchange.slot(self.ward.probe).is_some_and(|probe| probe.is_current());
        match if tries { Admitted::Yes } else { self.ask(exchange.client()) } {
            Admitted::Yes => true,
            Admitted::Try(probe) => {
                exchange.set_slot(self.ward.probe, probe);
                true
            }
            Admitted::No => false,
        }
    }

    /// Whether the plugin is called for what has no exchange.
    pub(crate) fn admits_client(&self, client: IpAddr) -> Admitted {
        if self.is_well() { Admitted::Yes } else { self.ask(client) }
    }

    /// The plugin has answered.
    pub(crate) fn answered(&self, exchange: &mut Exchange) {
        if !self.is_well()
            && let Some(probe) = exchange.slot_mut(self.ward.probe)
        {
            probe.answered = true;
        }
    }

    /// The plugin has failed; at the try of this number, if it was one. Whether it is out from now on.
    pub(crate) fn failed(&self, turn: Option<u64>) -> bool {
        let plugin = &*self.ward.name;
        match self.ward.failed(&self.terms, turn, Instant::now()) {
            Change::None => false,
            Change::Out(rest) => {
                tracing::warn!(plugin, rest_ms = rest.as_millis() as u64, "plugin quarantined");
                true
            }
            Change::Still(rest) => {
                tracing::warn!(plugin, rest_ms = rest.as_millis() as u64, "plugin stays in quarantine");
                false
            }
        }
    }

    /// The number of an exchange's try, if it is one.
    pub(crate) fn turn(&self, exchange: &Exchange) -> Option<u64> {
        exchange.slot(self.ward.probe).map(|probe| probe.turn)
    }

    fn is_well(&self) -> bool {
        self.ward.opens.load(Relaxed) == WELL
    }

    #[cold]
    fn ask(&self, client: IpAddr) -> Admitted {
        // Whom the plugin passes by anyway tries nothing.
        if self.share.as_ref().is_some_and(|share| !share.has(client)) {
            return Admitted::Yes;
        }
        match self.ward.turn(&self.terms, Instant::now()) {
            Some(turn) => Admitted::Try(Probe { ward: self.ward.clone(), turn, answered: false }),
            None => Admitted::No,
        }
    }
}

impl Ward {
    fn new(name: Arc<str>) -> Self {
        let (opens, course) = (AtomicU64::new(WELL), Mutex::default());
        Ward { name, opens, origin: Instant::now(), course, probe: Slot::new() }
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A time as `opens` has it.
    fn nanos(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.origin).as_nanos() as u64).max(WELL + 1)
    }

    /// The number of a try, if one may begin now. The next may when it has ended, or takes too long.
    fn turn(&self, terms: &QuarantineTerms, now: Instant) -> Option<u64> {
        // Without the lock: a flood must not queue for it.
        if self.nanos(now) < self.opens.load(Relaxed) {
            return None;
        }
        let mut course = self.course();
        if self.nanos(now) < self.opens.load(Relaxed) {
            return None;
        }
        course.turn += 1;
        if course.is_out {
            self.opens.store(self.nanos(now + terms.first), Relaxed);
        }
        Some(course.turn)
    }

    fn failed(&self, terms: &QuarantineTerms, turn: Option<u64>, now: Instant) -> Change {
        let mut course = self.course();
        if course.is_out {
            // What began before it was out says nothing about how it is now.
            return match turn == Some(course.turn) {
                true => Change::Still(self.rest(&mut course, terms, now)),
                false => Change::None,
            };
        }
        if course.window.is_none_or(|began| now.saturating_duration_since(began) > terms.within) {
            (course.window, course.failures) = (Some(now), 0);
        }
        course.failures += 1;
        if course.failures < terms.failures {
            return Change::None;
        }
        // One that was well for longer than it had rested begins anew.
        if course.back_since.is_none_or(|since| now.saturating_duration_since(since) > course.rest) {
            course.rest = Duration::ZERO;
        }
        course.is_out = true;
        Change::Out(self.rest(&mut course, terms, now))
    }

    fn rest(&self, course: &mut Course, terms: &QuarantineTerms, now: Instant) -> Duration {
        course.rest = (course.rest * 2).clamp(terms.first, terms.longest.max(terms.first));
        course.successes = 0;
        // No try of before counts any more.
        course.turn += 1;
        self.opens.store(self.nanos(now + course.rest), Relaxed);
        course.rest
    }

    /// A try is over; whether the plugin is back with it.
    fn tried(&self, turn: u64, went_well: bool, now: Instant) -> bool {
        let mut course = self.course();
        if !course.is_out || course.turn != turn {
            return false;
        }
        course.successes += u32::from(went_well);
        if course.successes < PROBES {
            self.opens.store(self.nanos(now), Relaxed);
            return false;
        }
        (course.is_out, course.failures, course.window, course.back_since) = (false, 0, None, Some(now));
        self.opens.store(WELL, Relaxed);
        true
    }
}

impl Probe {
    /// Its number.
    pub(crate) fn turn(&self) -> u64 {
        self.turn
    }

    /// The plugin has answered.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }

    fn is_current(&self) -> bool {
        self.ward.course().turn == self.turn
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if self.ward.tried(self.turn, self.answered, Instant::now()) {
            tracing::info!(plugin = &*self.ward.name, "plugin back from quarantine");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: QuarantineTerms = QuarantineTerms {
        failures: 3,
        within: Duration::from_secs(10),
        first: Duration::from_secs(1),
        longest: Duration::from_secs(3),
    };

    /// A ward, the time, and shorthand for both.
    struct Case(Ward, Instant);

    impl Case {
        fn new() -> Self {
            Case(Ward::new("p".into()), Instant::now())
        }

        fn after(&mut self, seconds: f64) -> &mut Self {
            self.1 += Duration::from_secs_f64(seconds);
            self
        }

        fn fail(&self, turn: Option<u64>) -> Change {
            self.0.failed(&TERMS, turn, self.1)
        }

        fn turn(&self) -> Option<u64> {
            self.0.turn(&TERMS, self.1)
        }

        fn out() -> Self {
            let case = Case::new();
            assert_eq!([(); 3].map(|()| case.fail(None)).last(), Some(&out(1)));
            case
        }

        fn recover(&self) {
            for _ in 0..PROBES {
                self.0.tried(self.turn().unwrap(), true, self.1);
            }
            assert_eq!(self.0.opens.load(Relaxed), WELL);
        }
    }

    fn out(seconds: u64) -> Change {
        Change::Out(Duration::from_secs(seconds))
    }

    #[test]
    fn so_many_failures_in_a_time_and_not_fewer_put_it_out() {
        let mut case = Case::new();
        assert_eq!((case.fail(None), case.fail(None)), (Change::None, Change::None));
        case.after(10.5);
        assert_eq!((case.fail(None), case.fail(None)), (Change::None, Change::None));
        assert_eq!(case.0.opens.load(Relaxed), WELL);
        assert_eq!(case.fail(None), out(1));
        assert_eq!(case.turn(), None);
        assert_eq!(case.fail(None), Change::None, "it began before it was out");
    }

    #[test]
    fn one_at_a_time_tries_it_and_a_few_bring_it_back() {
        let mut case = Case::out();
        assert_eq!(case.after(0.9).turn(), None);
        for _ in 0..PROBES {
            let turn = case.after(0.2).turn().unwrap();
            assert_eq!(case.turn(), None);
            assert!(case.0.opens.load(Relaxed) != WELL);
            case.0.tried(turn, true, case.1);
        }
        assert_eq!(case.0.opens.load(Relaxed), WELL);
    }

    #[test]
    fn a_try_that_takes_long_or_says_nothing_holds_up_no_other() {
        let mut case = Case::out();
        let stuck = case.after(1.0).turn().unwrap();
        let next = case.after(1.0).turn().unwrap();
        assert_eq!(case.fail(Some(stuck)), Change::None, "it was given up");
        assert!(!case.0.tried(next, false, case.1) && case.0.course().successes == 0);
        assert!(case.turn().is_some());
    }

    #[test]
    fn a_rest_is_twice_as_long_after_each_failed_try_up_to_the_longest() {
        let mut case = Case::out();
        for expected in [2, 3, 3] {
            let turn = case.after(3.0).turn().unwrap();
            assert_eq!(case.fail(Some(turn)), Change::Still(Duration::from_secs(expected)));
        }
    }

    #[test]
    fn one_that_fails_again_soon_rests_longer_and_one_that_was_well_does_not() {
        let mut case = Case::out();
        case.after(1.0).recover();
        assert_eq!([(); 3].map(|()| case.fail(None))[2], out(2));
        case.after(2.0).recover();
        case.after(2.5);
        assert_eq!([(); 3].map(|()| case.fail(None))[2], out(1));
    }
}
