//! What keeps the trouble of an upstream from its clients, beyond the choice of its endpoints: breakers, adaptive
//! limits, hedging, deadlines.

use std::fmt;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::de::{self, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::{at_least_one, seconds};
use crate::values::{Duration, HeaderName, Percent, positive};

/// The circuit breaker: when it opens, and how it closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Share of the requests within the window that must fail, after all retries. Default `50%`.
    pub error_rate: Percent,
    /// Requests that there must have been in the window. Default `20`.
    pub min_requests: NonZeroU32,
    /// The time over which requests are counted; then they are counted anew. Default `10s`.
    #[serde(deserialize_with = "positive")]
    pub window: Duration,
    /// Whether responses with status 500 to 599 are failures, too, and calls of gRPC that end with what stands for them, as
    /// for `eject`. Default `true`.
    pub server_errors: bool,
    /// For how long no request is sent. Default `5s`.
    #[serde(deserialize_with = "positive")]
    pub time: Duration,
    /// Requests at a time that then try whether the upstream is back; when so many have gone well, all are sent
    /// again. Default `3`.
    pub probes: NonZeroU32,
}

/// A limit that adapts to what the upstream keeps up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Adaptive {
    /// The lowest limit, with which it begins, too. Default `10`.
    pub min: NonZeroU32,
    /// How many times as long as with little to do the upstream may take on average. Default `2`.
    pub tolerance: NonZeroU32,
}

/// Another attempt beside one that takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hedge {
    /// How long the first attempt has: a time, or `p95`, what 95 of 100 requests to the upstream take at most.
    #[schemars(schema_with = "crate::schema::hedge_after")]
    pub after: HedgeAfter,
}

/// How long a first attempt has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    /// This time.
    Time(Duration),
    /// As long as 95 of 100 requests take at most.
    P95,
}

/// Headers that tell how long a request may take. The name says the form: `grpc-timeout` has gRPC's, one that ends in
/// `-ms` is a number of milliseconds, any other a number of seconds or a time such as `250ms`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Deadline {
    /// What `trusted_proxies` say; it can make `retries.timeout` shorter, not longer. From others it is removed.
    /// Default: none. Example: `x-request-timeout`.
    pub read: Option<HeaderName>,
    /// What the upstream is told: the time that is left when an attempt begins, if there is a limit. Default: none.
    /// Example: `x-request-timeout`.
    pub tell: Option<HeaderName>,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            error_rate: Percent(50),
            min_requests: at_least_one(20),
            window: seconds(10),
            server_errors: true,
            time: seconds(5),
            probes: at_least_one(3),
        }
    }
}

impl Default for Adaptive {
    fn default() -> Self {
        Self { min: at_least_one(10), tolerance: at_least_one(2) }
    }
}

impl<'de> Deserialize<'de> for HedgeAfter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(HedgeAfterVisitor)
    }
}

struct HedgeAfterVisitor;

impl Visitor<'_> for HedgeAfterVisitor {
    type Value = HedgeAfter;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as `50ms`, or `p95`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<HedgeAfter, E> {
        if text == "p95" {
            return Ok(HedgeAfter::P95);
        }
        positive(text.into_deserializer()).map(HedgeAfter::Time)
    }
}
