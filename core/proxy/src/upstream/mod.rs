//! Upstreams: named sets of endpoints, and the ways to them.

mod adaptive;
mod balance;
mod breaker;
mod connection;
pub(crate) mod deadline;
mod endpoint;
mod hedge;
mod http1;
mod http2;
mod judge;
mod outbound;
mod pool;
mod retry;
mod slots;
mod tls;
mod transport;
mod window;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::header::HeaderValue;

use crate::metrics::UpstreamMetrics;

pub use adaptive::{Adaptive, Learned};
pub use balance::{Balance, Balancer, HashBy, Place, Sticky};
pub(crate) use balance::{Wish, of as portion};
pub(crate) use breaker::Verdict;
pub use breaker::{Breaker, Circuit, CircuitState};
pub(crate) use connection::{AttemptError, AttemptFailure, Switched, UpstreamBody, send};
pub use deadline::Deadline;
pub use endpoint::{Endpoint, EndpointState};
pub use hedge::{Hedge, P95};
#[cfg(any(test, fuzzing))]
pub(crate) use http1::Http1;
pub(crate) use http1::RequestHead;
pub use judge::Ejection;
pub use outbound::UpstreamClient;
pub(crate) use pool::{ReapGuard, reap_idle};
pub use retry::Retries;
pub(crate) use retry::Tries;
pub use slots::{Pending, Slots};
pub use tls::{ClientTls, client_config};
pub use transport::{Address, ConnectError, Tls, Transport, Way};

/// A named set of endpoints.
#[derive(Debug)]
pub struct Upstream {
    /// Its name.
    pub name: Arc<str>,
    /// Its endpoints. None only while those that are looked for were not found yet; then it gets no requests.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// What they speak.
    pub protocol: Protocol,
    /// Which of them a request goes to.
    pub balancer: Balancer,
    /// How long one that comes back gets less than its share.
    pub slow_start: Duration,
    /// When requests show that one fails.
    pub ejection: Ejection,
    /// When the whole upstream gets a rest.
    pub breaker: Option<Breaker>,
    /// Requests under way at a time.
    pub max_requests: Option<u32>,
    /// The same, as far as the upstream keeps up.
    pub adaptive: Option<Adaptive>,
    /// Those that wait for others to end.
    pub pending: Pending,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Idle connections kept per worker and endpoint.
    pub max_idle: usize,
    /// The age at which a connection gets no more requests.
    pub max_age: Option<Duration>,
    /// Without a word, after which the system asks whether an endpoint is there.
    pub keepalive: Option<Duration>,
    /// Attempts after the first, for what is safe to repeat.
    pub retries: Retries,
    /// When another attempt is made beside the first.
    pub hedge: Option<Hedge>,
    /// Headers that tell how long a request may take.
    pub deadline: Option<Box<Deadline>>,
    /// The `Host` sent.
    pub host: HostHeader,
    /// What is counted.
    pub metrics: Arc<UpstreamMetrics>,
    /// The same with the endpoints that were found last, if they are looked for.
    pub successor: Option<Successor>,
}

/// What an upstream has become while its generation runs. It has no successor itself: who asks for it asks
/// the first one.
#[derive(Debug, Default)]
pub struct Successor(ArcSwapOption<Upstream>);

/// An upstream as it is now.
pub enum Current<'u> {
    /// As it was built.
    First(&'u Arc<Upstream>),
    /// As it has become.
    Later(Arc<Upstream>),
}

impl Deref for Current<'_> {
    type Target = Arc<Upstream>;

    fn deref(&self) -> &Arc<Upstream> {
        match self {
            Current::First(upstream) => upstream,
            Current::Later(upstream) => upstream,
        }
    }
}

/// What endpoints speak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2; without TLS without asking first (RFC 9113, 3.3).
    Http2,
    /// What each chooses in its TLS handshake; without TLS HTTP/1.1.
    Auto,
}

impl Protocol {
    /// Its name in the configuration, status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http1 => "http1",
            Protocol::Http2 => "http2",
            Protocol::Auto => "auto",
        }
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection.
    pub connect: Duration,
    /// From the request's end of sending its head to the response's head.
    pub response: Duration,
    /// From the first attempt to the end of the response.
    pub total: Option<Duration>,
    /// A pooled connection unused.
    pub idle: Duration,
    /// Between two chunks of a response's body.
    pub body: Duration,
    /// For which nothing may pass through a tunnel.
    pub tunnel: Duration,
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

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(2),
            response: Duration::from_secs(30),
            total: None,
            idle: Duration::from_secs(60),
            body: Duration::from_secs(60),
            tunnel: Duration::from_secs(300),
        }
    }
}

impl Upstream {
    /// Whether calls of gRPC can get to an endpoint.
    pub(crate) fn takes_calls(self: &Arc<Self>) -> bool {
        let current = self.current();
        current.endpoints.iter().any(|endpoint| current.may_speak_http2(endpoint))
    }

    /// Whether an endpoint speaks HTTP/2, or is to be asked.
    fn may_speak_http2(&self, endpoint: &Endpoint) -> bool {
        match self.protocol {
            Protocol::Http1 => false,
            Protocol::Http2 => true,
            Protocol::Auto => endpoint.is_secure() && !endpoint.chose_http1(),
        }
    }

    /// An upstream of these endpoints that take turns, with the defaults for everything else.
    pub fn new(name: &str, endpoints: Vec<Arc<Endpoint>>, metrics: Arc<UpstreamMetrics>) -> Self {
        let places = endpoints.iter().map(|_| Place { weight: 1, priority: 0 }).collect();
        Upstream {
            name: name.into(),
            balancer: Balancer::new(Balance::RoundRobin, &endpoints, places, 50),
            endpoints,
            protocol: Protocol::Http1,
            slow_start: Duration::ZERO,
            ejection: Ejection::default(),
            breaker: None,
            max_requests: None,
            adaptive: None,
            pending: Pending { most: 0, timeout: Duration::from_secs(1) },
            timeouts: Timeouts::default(),
            max_idle: 64,
            max_age: None,
            keepalive: None,
            retries: Retries::default(),
            hedge: None,
            deadline: None,
            host: HostHeader::Preserve,
            metrics,
            successor: None,
        }
    }

    /// For how long a new connection takes requests: up to a tenth less than is said, so that those that are opened together do
    /// not end together.
    fn lifetime(&self) -> Option<Duration> {
        let age = self.max_age?;
        let tenth = u64::try_from(age.as_nanos() / 10).unwrap_or(u64::MAX);
        Some(
            age.saturating_sub(Duration::from_nanos(portion(self.lot(self.metrics.connects.value()), tenth))),
        )
    }

    /// The upstream as it is now.
    pub fn current(self: &Arc<Self>) -> Current<'_> {
        let later = self.successor.as_ref().and_then(|Successor(later)| later.load_full());
        later.map_or(Current::First(self), Current::Later)
    }

    /// Puts another one in its place, for requests that begin from now on. One whose endpoints are not looked
    /// for keeps its place.
    pub fn succeed(&self, later: Upstream) {
        if let Some(Successor(slot)) = &self.successor {
            slot.store(Some(Arc::new(later)));
        }
    }
}
