//! Upstreams: where requests are sent, by which rule, and what happens when an endpoint fails.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{Certificate, Status, TlsVersion, at_least_one, seconds};
use crate::resilience::{Adaptive, Breaker, Deadline, Hedge};
use crate::values::{
    Address, Duration, HeaderName, HostName, Percent, RequestTarget, is_token, positive, some_positive,
};

/// A group of endpoints that serve the same.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, extend("oneOf" = [{ "required": ["endpoints"] }, { "required": ["dns"] }]))]
pub struct Upstream {
    /// Its key in `upstreams`.
    #[schemars(skip)]
    pub name: String,
    /// Where it is served: at least one. Default: where `dns` says.
    #[schemars(length(min = 1), default)]
    pub endpoints: Vec<Endpoint>,
    /// What the endpoints speak: `http1`, `http2` (without TLS without asking first), or `auto`: what each
    /// chooses in its TLS handshake. Over HTTP/2 a WebSocket needs an endpoint that takes an extended `CONNECT`, or, with
    /// TLS, speaks HTTP/1.1 as well. Default `http1`.
    #[schemars(default)]
    pub protocol: HttpVersion,
    /// Where it is served, as DNS has it, asked for again and again. Default: where `endpoints` say.
    pub dns: Option<Dns>,
    /// TLS to endpoints of `https`. Default: the system's authorities, no certificate of the gateway's own.
    pub tls: Option<UpstreamTls>,
    /// Tell endpoints first whose connection they get, in this version of the PROXY protocol. Connections are not
    /// shared between clients then. Default: no.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// How an endpoint is chosen: `round_robin`, `least_request` (the less busy of two drawn by lot), `random`,
    /// `{ hash: { by: client } }` or `{ sticky: { cookie: name } }`. Default `round_robin`.
    #[schemars(default)]
    pub balance: Balance,
    /// Share of a priority's endpoints that must be healthy; with fewer, the next priority serves too. Default `50%`.
    #[schemars(default = "default_min_healthy")]
    pub min_healthy: Percent,
    /// How long an endpoint that comes back gets less than its share, a tenth at first. Default: its share at once.
    /// Clients that have its `sticky` cookie come back at once. Example: `30s`.
    pub slow_start: Option<Duration>,
    /// When requests show that an endpoint fails: for how long it gets none, or `off`. Default: on.
    #[schemars(schema_with = "crate::schema::eject", default)]
    pub eject: Eject,
    /// Checks that the gateway makes itself, independent of requests. Default: none.
    pub health: Option<Health>,
    /// When requests show that the upstream as a whole fails: for a while none is sent, and all are answered with
    /// 503 at once. Default: never.
    pub breaker: Option<Breaker>,
    /// Requests under way at a time, over all workers; more wait or are answered with 503. Default: no limit.
    /// Example: `500`.
    pub max_requests: Option<NonZeroU32>,
    /// Let no more requests wait for their response's headers than the upstream keeps up with, as its own answers show,
    /// and not more than `max_requests`. Default: no such limit. Example: `{}`.
    pub adaptive: Option<Adaptive>,
    /// Requests that may wait for others to end, for as long as `timeouts.pending` says; more are answered with 503.
    /// Default `0`. Example: `100`.
    #[schemars(default)]
    pub max_pending: u32,
    /// How long the gateway waits for the upstream.
    #[schemars(default)]
    pub timeouts: Timeouts,
    /// Idle HTTP/1 connections kept by each worker to each endpoint. Default `64`.
    #[schemars(default = "default_max_idle")]
    pub max_idle: u32,
    /// Age at which a connection gets no more requests, whether HTTP/1 or HTTP/2; those that are under way end. Up to a tenth
    /// less, by lot. Default: no limit. Example: `10m`.
    pub max_connection_age: Option<Duration>,
    /// Time without a word after which the system asks over TCP whether an endpoint is still there, for as long again
    /// before the connection counts as broken. Default: never. Example: `30s`.
    pub tcp_keepalive: Option<Duration>,
    /// Further attempts after a failed one, where repeating is safe: how many, or a table. Default `1`.
    #[schemars(schema_with = "crate::schema::retries", default)]
    pub retries: Retries,
    /// Make another attempt beside one that takes long, elsewhere: of requests that may be repeated, within the budget
    /// of retries. Default: no. Example: `{ after: p95 }`.
    pub hedge: Option<Hedge>,
    /// Headers that tell how long a request may take. Default: none.
    pub deadline: Option<Deadline>,
    /// The `Host` header that is sent: `preserve` the client's, the `endpoint`'s, or this name. Default `preserve`.
    #[schemars(with = "String", default)]
    pub host: HostHeader,
}

/// One server of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub address: EndpointAddress,
    /// Share of the requests, relative to the other endpoints. Default `1`.
    pub weight: NonZeroU32,
    /// 0 serves first, the next when too few of the former are healthy. Default `0`.
    pub priority: u8,
    /// Where it is. Default: in no zone.
    pub zone: Option<String>,
}

/// What endpoints speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HttpVersion {
    /// HTTP/1.1 (RFC 9112).
    #[default]
    Http1,
    /// HTTP/2 (RFC 9113), which gRPC needs; without TLS without asking first.
    Http2,
    /// What an endpoint chooses in its TLS handshake (RFC 7301); without TLS HTTP/1.1.
    Auto,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// At a TCP port.
    Tcp {
        /// With TLS or without.
        scheme: Scheme,
        /// Host name or IP address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// At a Unix socket.
    Unix(PathBuf),
}

/// Plain HTTP, or over TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// Plain text.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

/// Endpoints from DNS. What it answers last stays while it answers nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dns {
    /// Host name of which every address (A and AAAA records) is an endpoint. Default: what `srv` says. Example: `api.internal`.
    pub host: Option<HostName>,
    /// Port of these endpoints. Default: `80`, or `443` for `https`.
    pub port: Option<NonZeroU16>,
    /// Name of SRV records (RFC 2782), which tell ports, weights and priorities too; instead of `host`. Default: none.
    /// Example: `_http._tcp.api.internal`.
    pub srv: Option<HostName>,
    /// `http`, or `https` for TLS. Default `http`.
    pub scheme: Scheme,
    /// The records' time to live says when they are asked for again, but not before this. Default `1s`.
    #[serde(deserialize_with = "positive")]
    pub min_ttl: Duration,
    /// Records are asked for again after this, whatever their time to live. Default `5m`.
    #[serde(deserialize_with = "positive")]
    pub max_ttl: Duration,
    /// How long an answer may take, at the start too: until then, or an answer, the gateway is not ready. Default `2s`.
    #[serde(deserialize_with = "positive")]
    pub timeout: Duration,
    /// Address of the DNS server. Default: the system's (`/etc/resolv.conf`). Example: `10.0.0.53:53`.
    pub resolver: Option<Address>,
}

/// TLS to an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// PEM file with the authorities that its certificates are from, relative to this file. Default: the system's.
    /// Example: `tls/internal-ca.pem`.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The name that its certificates are for. Default: each endpoint's host. Example: `api.example.com`.
    #[serde(default)]
    pub server_name: Option<HostName>,
    /// The certificate that the gateway shows to servers that ask for one. Default: none.
    #[serde(default)]
    pub certificate: Option<Certificate>,
    /// Lowest version: `"1.2"` or `"1.3"`. Default `"1.2"`.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// `false` believes any server whatever it shows, for tests. Default `true`.
    #[serde(default = "yes")]
    pub verify: bool,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// In turns, as often as the weights say.
    #[default]
    RoundRobin,
    /// The one with fewer requests under way, of two drawn by lot.
    LeastRequest,
    /// By lot.
    Random,
    /// Always the same for the same value, as far as it is healthy and not much busier than the others.
    Hash(HashBy),
    /// The one that a cookie names.
    Sticky(Sticky),
}

/// What of a request is hashed. Requests without it are spread by lot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// The client's address.
    Client,
    /// Who is calling, as an authentication plugin found out.
    Principal,
    /// A header.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
}

/// A cookie that names the endpoint of a client, in a form that tells nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sticky {
    /// Name of the cookie. Example: `route`.
    #[serde(deserialize_with = "cookie_name")]
    pub cookie: String,
    /// Secret text from which the cookie's values are made; the same for several gateways. Default: random at each
    /// start, after which clients may change their endpoint once. Example: `${STICKY_KEY}`.
    #[serde(default)]
    pub key: Option<String>,
}

/// When requests show that an endpoint fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Eject {
    /// Failures in a row after which it gets no requests. Default `5`.
    pub failures: NonZeroU32,
    /// Whether responses with status 500 to 599 are failures, too, and calls of gRPC that end with what stands for them:
    /// `UNAVAILABLE`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS`, and `DEADLINE_EXCEEDED` if the client set no time. Default `false`.
    pub server_errors: bool,
    /// For how long it gets none, times the ejections in a row. After it one request tries whether the endpoint is back.
    /// Default `10s`.
    #[serde(deserialize_with = "positive")]
    pub time: Duration,
    /// The longest time for which it gets none. Default `5m`, or `time` if that is longer.
    #[serde(deserialize_with = "positive")]
    pub max_time: Duration,
    /// Share of an endpoint's requests within the window that must fail, in a row or not. Default: not judged. Example:
    /// `20%`.
    pub error_rate: Option<Percent>,
    /// How many times longer than at the other endpoints its requests must take on average, to the response's
    /// headers. Default: not judged. Example: `4`.
    pub latency_factor: Option<NonZeroU32>,
    /// The time over which `error_rate` and `latency_factor` are judged. Default `10s`.
    #[serde(deserialize_with = "positive")]
    pub window: Duration,
    /// Requests that an endpoint must have had in that time to be judged by them. Default `50`.
    pub min_requests: NonZeroU32,
    /// Share of the endpoints that may be ejected together: of two or more one at least, but `0%` ejects none. Those that
    /// checks call unhealthy count as ejected. Default `50%`.
    pub max_ejected: Percent,
}

/// Checks that the gateway makes itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Health {
    /// Path to get, with a query or without. Default: none, a check only connects, or asks as `grpc` says. Example:
    /// `/healthz`.
    pub path: Option<RequestTarget>,
    /// Service to ask for with gRPC's health checking protocol, in place of a path; empty for the server as a whole.
    /// Default: none. Example: `shop.v1.Orders`.
    #[schemars(with = "Option<String>")]
    #[serde(deserialize_with = "grpc_service")]
    pub grpc: Option<String>,
    /// The `Host` that is asked for. Default: the upstream's `host` if that is a name, else the endpoint's.
    pub host: Option<HostName>,
    /// Headers that are sent. Default: none. Example: `{ x-probe: gateway }`.
    pub headers: BTreeMap<HeaderName, String>,
    /// The port that is asked, at the endpoint's host and in the same way, TLS included. Default: the endpoint's.
    pub port: Option<NonZeroU16>,
    /// Status codes that are healthy, any of them. Default: 200 to 299.
    pub status: Vec<Status>,
    /// Time between two checks of an endpoint. Default `5s`.
    #[serde(deserialize_with = "positive")]
    pub interval: Duration,
    /// How long a check may take. Default `2s`.
    #[serde(deserialize_with = "positive")]
    pub timeout: Duration,
    /// Checks in a row that must succeed until an unhealthy endpoint is healthy. Default `2`.
    pub healthy: NonZeroU32,
    /// Checks in a row that must fail until a healthy endpoint is unhealthy. Default `3`.
    pub unhealthy: NonZeroU32,
}

/// Further attempts after a failed one: of requests that may be repeated (RFC 9110, 9.2.2), or were not sent yet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    /// Attempts after the first. Default `1`.
    pub attempts: u8,
    /// How long one attempt may take to the response's headers, beside the `timeouts`. Default: no
    /// further limit.
    #[serde(deserialize_with = "some_positive")]
    pub per_try_timeout: Option<Duration>,
    /// How long all attempts together may take to the response's headers. Default: no limit but `timeouts.total`.
    #[serde(deserialize_with = "some_positive")]
    pub timeout: Option<Duration>,
    /// About how long to wait before another attempt: a lot up to this before the first, up to three times as long before
    /// the second, up to ten times from the fourth on. Nobody waits where nothing was sent and there is an endpoint that
    /// was not tried. `0s` for no wait. Default `25ms`.
    pub backoff: Duration,
    /// After which failures: `connect` (no connection), `timeout` (no response in time), `broken` (the connection
    /// broke, or what came was not HTTP), and status codes. Default `[connect, timeout, broken]`.
    pub on: Vec<RetryOn>,
    /// Bounds the retries of all requests together, so that they cannot multiply an outage.
    pub budget: RetryBudget,
}

/// A failure after which there is another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    /// No connection, or not in time.
    Connect,
    /// No response in time.
    Timeout,
    /// The connection broke, or what came was not HTTP.
    Broken,
    /// A response with this status.
    Status(u16),
}

/// How many retries may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryBudget {
    /// Share of the upstream's requests under way that may be retries. Default `20%`.
    pub share: Percent,
    /// Retries that may be under way however few requests there are. Default `10`.
    pub min: u32,
}

/// How long the gateway waits for an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Time to open a connection, with its TLS handshake. Default `2s`.
    #[serde(deserialize_with = "positive")]
    pub connect: Duration,
    /// Time from the end of the request to the response's headers. Default `30s`.
    #[serde(deserialize_with = "positive")]
    pub response: Duration,
    /// Time for all of a request that the plugins have let pass: its body, every attempt, and the response to its end,
    /// which breaks off then. A route's `timeout` is in its place. It does not bind what has become a WebSocket or
    /// another upgraded connection. Default: no limit. Example: `15s`.
    #[serde(deserialize_with = "some_positive")]
    pub total: Option<Duration>,
    /// Time to wait for other requests to end, where their number is limited. Default `1s`.
    #[serde(deserialize_with = "positive")]
    pub pending: Duration,
    /// Time after which an unused connection is closed. Default `1m`.
    #[serde(deserialize_with = "positive")]
    pub idle: Duration,
    /// The longest pause between two pieces of a body. Default `1m`.
    #[serde(deserialize_with = "positive")]
    pub body: Duration,
    /// Time for which nothing may pass through a WebSocket or another upgraded connection. Default `5m`.
    #[serde(deserialize_with = "positive")]
    pub tunnel: Duration,
}

/// The `Host` header sent to an upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostHeader {
    /// The client's.
    #[default]
    Preserve,
    /// The endpoint's.
    Endpoint,
    /// This one.
    Name(String),
}

impl Upstream {
    /// An upstream of which nothing is known but its name.
    pub(crate) fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            endpoints: Vec::new(),
            protocol: HttpVersion::default(),
            dns: None,
            tls: None,
            proxy_protocol: None,
            balance: Balance::default(),
            min_healthy: default_min_healthy(),
            slow_start: None,
            eject: Eject::default(),
            health: None,
            breaker: None,
            max_requests: None,
            adaptive: None,
            max_pending: 0,
            timeouts: Timeouts::default(),
            max_idle: default_max_idle(),
            max_connection_age: None,
            tcp_keepalive: None,
            retries: Retries::default(),
            hedge: None,
            deadline: None,
            host: HostHeader::default(),
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            host: None,
            port: None,
            srv: None,
            scheme: Scheme::default(),
            min_ttl: seconds(1),
            max_ttl: seconds(300),
            timeout: seconds(2),
            resolver: None,
        }
    }
}

impl Default for Eject {
    fn default() -> Self {
        Self {
            failures: at_least_one(5),
            server_errors: false,
            time: seconds(10),
            max_time: seconds(300),
            error_rate: None,
            latency_factor: None,
            window: seconds(10),
            min_requests: at_least_one(50),
            max_ejected: Percent(50),
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            path: None,
            grpc: None,
            host: None,
            headers: BTreeMap::new(),
            port: None,
            status: Vec::new(),
            interval: seconds(5),
            timeout: seconds(2),
            healthy: at_least_one(2),
            unhealthy: at_least_one(3),
        }
    }
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 1,
            per_try_timeout: None,
            timeout: None,
            backoff: Duration(std::time::Duration::from_millis(25)),
            on: vec![RetryOn::Connect, RetryOn::Timeout, RetryOn::Broken],
            budget: RetryBudget::default(),
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { share: Percent(20), min: 10 }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: seconds(2),
            response: seconds(30),
            total: None,
            pending: seconds(1),
            idle: seconds(60),
            body: seconds(60),
            tunnel: seconds(300),
        }
    }
}

fn default_min_healthy() -> Percent {
    Percent(50)
}

fn yes() -> bool {
    true
}

fn default_max_idle() -> u32 {
    64
}

pub(crate) fn cookie_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if is_token(&name) { Ok(name) } else { Err(de::Error::custom("expected a cookie name such as `route`")) }
}

fn grpc_service<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_')) {
        return Ok(Some(name));
    }
    Err(de::Error::custom("expected the name of a gRPC service such as `shop.v1.Orders`"))
}

impl<'de> Deserialize<'de> for Balance {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BalanceVisitor)
    }
}

struct BalanceVisitor;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum BalanceTable {
    Hash(HashTable),
    Sticky(Sticky),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HashTable {
    by: HashBy,
}

impl<'de> Visitor<'de> for BalanceVisitor {
    type Value = Balance;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "`round_robin`, `least_request`, `random`, `{ hash: { by: client } }` or `{ sticky: { cookie: route } }`",
        )
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Balance, E> {
        match text {
            "round_robin" => Ok(Balance::RoundRobin),
            "least_request" => Ok(Balance::LeastRequest),
            "random" => Ok(Balance::Random),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Balance, A::Error> {
        Ok(match BalanceTable::deserialize(MapAccessDeserializer::new(map))? {
            BalanceTable::Hash(HashTable { by }) => Balance::Hash(by),
            BalanceTable::Sticky(sticky) => Balance::Sticky(sticky),
        })
    }
}

impl<'de> Deserialize<'de> for HashBy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HashByVisitor)
    }
}

struct HashByVisitor;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum HashByTable {
    Header(HeaderName),
    #[serde(deserialize_with = "cookie_name")]
    Cookie(String),
}

impl<'de> Visitor<'de> for HashByVisitor {
    type Value = HashBy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`client`, `principal`, `{ header: x-tenant }` or `{ cookie: session }`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<HashBy, E> {
        match text {
            "client" => Ok(HashBy::Client),
            "principal" => Ok(HashBy::Principal),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<HashBy, A::Error> {
        Ok(match HashByTable::deserialize(MapAccessDeserializer::new(map))? {
            HashByTable::Header(name) => HashBy::Header(name),
            HashByTable::Cookie(name) => HashBy::Cookie(name),
        })
    }
}

impl Serialize for RetryOn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Connect => serializer.serialize_str("connect"),
            Self::Timeout => serializer.serialize_str("timeout"),
            Self::Broken => serializer.serialize_str("broken"),
            Self::Status(code) => serializer.serialize_u16(*code),
        }
    }
}

impl<'de> Deserialize<'de> for RetryOn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RetryOnVisitor)
    }
}

struct RetryOnVisitor;

impl Visitor<'_> for RetryOnVisitor {
    type Value = RetryOn;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`connect`, `timeout`, `broken` or a status code from 400 to 599")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<RetryOn, E> {
        match text {
            "connect" => Ok(RetryOn::Connect),
            "timeout" => Ok(RetryOn::Timeout),
            "broken" => Ok(RetryOn::Broken),
            _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }

    fn visit_u64<E: de::Error>(self, code: u64) -> Result<RetryOn, E> {
        match u16::try_from(code) {
            Ok(code @ 400..600) => Ok(RetryOn::Status(code)),
            _ => Err(E::invalid_value(de::Unexpected::Unsigned(code), &self)),
        }
    }
}

#[cfg(test)]
mod tests;
