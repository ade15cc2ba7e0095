//! An endpoint and how it is. What is known of it belongs to its identity: it outlives generations,
//! as its connections do, and is read by every worker without a lock.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::HeaderValue;

use super::balance::hash_of;
use super::transport::{Address, Resolved, Way};
use super::window::Window;
use crate::metrics::{Counter, Metrics};

/// Requests showed that it fails; it gets none until one of them shows that it is back.
const EJECTED: u8 = 1;
/// The gateway's own checks fail.
const UNHEALTHY: u8 = 2;
/// It came back a short while ago, and gets less than its share.
const SLOW: u8 = 4;

/// A request that tries whether an ejected endpoint is back has this long before another one may:
/// it could end without a word on the endpoint, when its client goes away.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// A whole share, as [`Endpoint::share`] counts.
pub(super) const WHOLE_SHARE: u64 = 256;
/// The share that slow start begins with.
const FIRST_SHARE: u64 = WHOLE_SHARE / 10;

/// An address of an upstream.
#[derive(Debug)]
pub struct Endpoint {
    /// Identity of its connections: unique in the process, kept across reloads while address and
    /// transport settings stay.
    pub id: u32,
    /// Its name: `host:port`, or `unix:/path`.
    pub authority: Arc<str>,
    /// The `Host` by which it goes itself.
    pub host: HeaderValue,
    /// How it is reached.
    pub(super) way: Way,
    /// What its address stood for when that was a name.
    pub(super) resolved: Resolved,
    /// Its name as a number for [hashing](super::Balance::Hash).
    pub(super) hash: u64,
    /// Zero for one that is as it should be.
    flags: AtomicU8,
    /// Failures in a row.
    failures: AtomicU32,
    /// Ejections in a row.
    in_a_row: AtomicU32,
    /// When the next request may try whether it is back; milliseconds of [`now`].
    until: AtomicU64,
    /// When it came back.
    since: AtomicU64,
    ejections: AtomicU64,
    /// Whether it chose HTTP/1 when it could choose.
    chose_http1: AtomicBool,
    /// Why the last connection to it was of no use.
    trouble: Mutex<Option<Arc<str>>>,
    /// Requests under way.
    pub(super) in_flight: Counter,
    /// How its requests went of late, where that matters.
    pub(super) window: Window,
    /// Microseconds that its requests took on average in the window before; 0 if that is unknown.
    mean: AtomicU64,
}

/// How an endpoint is, for people and machines that ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointState {
    /// It gets its share.
    Healthy,
    /// It came back a short while ago, and gets less than its share.
    SlowStart,
    /// Requests showed that it fails.
    Ejected,
    /// The gateway's own checks fail.
    Unhealthy,
}

/// Whether an endpoint takes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Openness {
    Open,
    /// One, which shows whether it is back.
    Probe,
    Closed,
}

/// For how long an endpoint that fails is ejected: `base`, times the ejections in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    pub(super) base: Duration,
    pub(super) longest: Duration,
}

/// Milliseconds of a clock that begins with its first use. Only what went wrong asks for it.
pub(super) fn now() -> u64 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    millis(BEGIN.elapsed())
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl EndpointState {
    /// Its name in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            EndpointState::Healthy => "healthy",
            EndpointState::SlowStart => "slow_start",
            EndpointState::Ejected => "ejected",
            EndpointState::Unhealthy => "unhealthy",
        }
    }

    /// Whether it gets requests.
    pub fn is_healthy(self) -> bool {
        matches!(self, EndpointState::Healthy | EndpointState::SlowStart)
    }
}

impl Endpoint {
    /// The endpoint `host:port` over plain TCP, with a new identity.
    pub fn new(authority: &str, metrics: &Metrics) -> Result<Self, String> {
        Endpoint::by(Address::of(authority).into(), authority, authority, metrics)
    }

    /// An endpoint of this name and `Host` that is reached so, with a new identity.
    pub fn by(way: Way, authority: &str, host: &str, metrics: &Metrics) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let host = HeaderValue::try_from(host).map_err(|_| format!("`{host}` is not a host"))?;
        Ok(Endpoint {
            id: NEXT.fetch_add(1, Relaxed),
            authority: authority.into(),
            host,
            way,
            resolved: Resolved::default(),
            hash: hash_of(authority.as_bytes()),
            flags: AtomicU8::new(0),
            failures: AtomicU32::new(0),
            in_a_row: AtomicU32::new(0),
            until: AtomicU64::new(0),
            since: AtomicU64::new(0),
            ejections: AtomicU64::new(0),
            chose_http1: AtomicBool::new(false),
            trouble: Mutex::default(),
            in_flight: metrics.counter(),
            window: Window::default(),
            mean: AtomicU64::new(0),
        })
    }

    /// The same server at another port, for whoever asks how it is; none of a Unix socket.
    pub fn at_port(&self, port: u16) -> Option<Self> {
        let address = match &self.way.address {
            Address::Socket(address) => Address::Socket(SocketAddr::new(address.ip(), port)),
            Address::Name(name) => Address::Name(format!("{}:{port}", name.rsplit_once(':')?.0).into()),
            Address::Unix(_) => return None,
        };
        let way = Way { address, ..self.way.clone() };
        Endpoint::by(way, &self.authority, self.host.to_str().ok()?, &Metrics::new(0)).ok()
    }

    /// Whether it is reached in just this way.
    pub fn is_reached_by(&self, way: &Way) -> bool {
        self.way == *way
    }

    /// Whether it is told whose connections it gets, which then are shared by no others.
    pub(crate) fn is_told_clients(&self) -> bool {
        self.way.proxy_protocol.is_some()
    }

    /// Whether it is reached over TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.way.tls.is_some()
    }

    pub(super) fn chose_http1(&self) -> bool {
        self.chose_http1.load(Relaxed)
    }

    pub(super) fn choose_http1(&self, chosen: bool) {
        self.chose_http1.store(chosen, Relaxed);
    }

    /// Why the last connection to it was of no use; none if it was.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes how the last connection to it went; true if the one before was of use.
    pub(super) fn has_trouble(&self, why: String) -> bool {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).replace(why.into()).is_none()
    }

    /// The last connection to it was of use.
    pub fn works(&self) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How it is.
    pub fn state(&self) -> EndpointState {
        match self.flags.load(Relaxed) {
            flags if flags & UNHEALTHY != 0 => EndpointState::Unhealthy,
            flags if flags & EJECTED != 0 => EndpointState::Ejected,
            flags if flags & SLOW != 0 => EndpointState::SlowStart,
            _ => EndpointState::Healthy,
        }
    }

    /// Whether the gateway's own checks have nothing against it.
    pub fn passes_checks(&self) -> bool {
        self.flags.load(Relaxed) & UNHEALTHY == 0
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.value()
    }

    /// How often it was ejected.
    pub fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// Whether there is nothing to say against it: the one question of a request when all is well.
    pub(super) fn is_plain(&self) -> bool {
        self.flags.load(Relaxed) == 0
    }

    /// Whether requests or checks say that it fails.
    pub(super) fn is_out(&self) -> bool {
        self.flags.load(Relaxed) & (EJECTED | UNHEALTHY) != 0
    }

    pub(super) fn is_ejected(&self) -> bool {
        self.flags.load(Relaxed) & EJECTED != 0
    }

    pub(super) fn openness(&self, now: u64) -> Openness {
        match self.flags.load(Relaxed) {
            flags if flags & UNHEALTHY != 0 => Openness::Closed,
            flags if flags & EJECTED == 0 => Openness::Open,
            _ if self.until.load(Relaxed) <= now => Openness::Probe,
            _ => Openness::Closed,
        }
    }

    /// Takes the right to be the one request that tries whether it is back.
    pub(super) fn claim_probe(&self, now: u64) -> bool {
        let until = self.until.load(Relaxed);
        let next = now.saturating_add(millis(PROBE_PAUSE));
        until <= now && self.until.compare_exchange(until, next, Relaxed, Relaxed).is_ok()
    }

    /// Its share of what its weight says, of [`WHOLE_SHARE`].
    pub(super) fn share(&self, now: u64, slow_start: Duration) -> u64 {
        if self.flags.load(Relaxed) & SLOW == 0 {
            return WHOLE_SHARE;
        }
        let passed = now.saturating_sub(self.since.load(Relaxed));
        let whole = millis(slow_start);
        if passed >= whole {
            self.flags.fetch_and(!SLOW, Relaxed);
            return WHOLE_SHARE;
        }
        (passed * WHOLE_SHARE / whole).max(FIRST_SHARE)
    }

    /// Microseconds that its requests took on average, if that is known.
    pub(super) fn mean(&self) -> Option<u64> {
        Some(self.mean.load(Relaxed)).filter(|mean| *mean > 0)
    }

    pub(super) fn set_mean(&self, micros: u64) {
        self.mean.store(micros, Relaxed);
    }

    /// A request went well; for most there is nothing to note.
    pub(super) fn succeeded(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// A request failed; returns how many did so in a row.
    pub(super) fn failed(&self) -> u32 {
        self.failures.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// Ejects it, or keeps it ejected; returns for how long. Ejections are in a row if it had not
    /// been back for as long as the longest.
    pub(super) fn eject(&self, now: u64, term: Term) -> Duration {
        let were = self.in_a_row.load(Relaxed);
        let last = self.until.load(Relaxed).max(self.since.load(Relaxed));
        let is_in_a_row = were > 0 && now.saturating_sub(last) < millis(term.longest);
        let times = if is_in_a_row { were.saturating_add(1) } else { 1 };
        let length = term.base.saturating_mul(times).min(term.longest);
        self.in_a_row.store(times, Relaxed);
        self.until.store(now.saturating_add(millis(length)), Relaxed);
        self.failures.store(0, Relaxed);
        // What was counted made the judgement, and is not to make another.
        self.window.clear();
        self.mean.store(0, Relaxed);
        self.ejections.fetch_add(1, Relaxed);
        self.flags.fetch_or(EJECTED, Relaxed);
        length
    }

    /// It is back; false if somebody else has noticed already.
    pub(super) fn restore(&self, now: u64, slow_start: Duration) -> bool {
        self.come_back(EJECTED, now, slow_start)
    }

    /// What the gateway's own checks say of it; false if they said so before.
    pub(super) fn set_healthy(&self, healthy: bool, slow_start: Duration) -> bool {
        if healthy {
            return self.come_back(UNHEALTHY, now(), slow_start);
        }
        self.flags.fetch_or(UNHEALTHY, Relaxed) & UNHEALTHY == 0
    }

    fn come_back(&self, from: u8, now: u64, slow_start: Duration) -> bool {
        if self.flags.load(Relaxed) & from == 0 {
            return false;
        }
        self.failures.store(0, Relaxed);
        self.since.store(now, Relaxed);
        if !slow_start.is_zero() {
            self.flags.fetch_or(SLOW, Relaxed);
        }
        self.flags.fetch_and(!from, Relaxed) & from != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Term = Term { base: Duration::from_secs(10), longest: Duration::from_secs(25) };

    fn endpoint() -> Endpoint {
        Endpoint::new("a:1", &Metrics::new(1)).unwrap()
    }

    #[test]
    fn ejections_in_a_row_grow_up_to_the_longest() {
        let endpoint = endpoint();
        assert_eq!(endpoint.eject(0, TERM).as_secs(), 10);
        assert_eq!(endpoint.eject(10_000, TERM).as_secs(), 20);
        assert_eq!(endpoint.eject(30_000, TERM).as_secs(), 25);
        assert!(endpoint.restore(60_000, Duration::ZERO));
        assert_eq!(endpoint.eject(60_000 + 25_000, TERM).as_secs(), 10, "it had been back for long");
        assert_eq!(endpoint.ejections(), 4);
    }

    #[test]
    fn one_request_at_a_time_tries_whether_it_is_back() {
        let endpoint = endpoint();
        endpoint.eject(0, TERM);
        assert_eq!(endpoint.openness(9_999), Openness::Closed);
        assert_eq!(endpoint.openness(10_000), Openness::Probe);
        assert!(endpoint.claim_probe(10_000));
        assert!(!endpoint.claim_probe(10_000));
        assert_eq!(endpoint.openness(10_999), Openness::Closed);
        assert!(endpoint.claim_probe(11_000), "the first one never said anything");
        assert!(endpoint.restore(11_500, Duration::ZERO));
        assert!(!endpoint.restore(11_500, Duration::ZERO));
        assert_eq!((endpoint.openness(11_500), endpoint.state()), (Openness::Open, EndpointState::Healthy));
    }

    #[test]
    fn a_share_grows_from_a_tenth_to_the_whole() {
        let endpoint = endpoint();
        let slow = Duration::from_secs(10);
        endpoint.eject(0, TERM);
        assert_eq!(endpoint.share(0, slow), WHOLE_SHARE);
        endpoint.restore(20_000, slow);
        assert_eq!(endpoint.state(), EndpointState::SlowStart);
        assert_eq!(endpoint.share(20_000, slow), FIRST_SHARE);
        assert_eq!(endpoint.share(25_000, slow), WHOLE_SHARE / 2);
        assert_eq!(endpoint.share(30_000, slow), WHOLE_SHARE);
        assert!(endpoint.is_plain());
    }

    #[test]
    fn checks_and_requests_judge_apart() {
        let endpoint = endpoint();
        endpoint.eject(0, TERM);
        assert!(endpoint.set_healthy(false, Duration::ZERO));
        assert!(!endpoint.set_healthy(false, Duration::ZERO));
        assert_eq!(endpoint.openness(u64::MAX), Openness::Closed);
        assert!(endpoint.set_healthy(true, Duration::ZERO));
        assert_eq!(endpoint.state(), EndpointState::Ejected);
    }
}
