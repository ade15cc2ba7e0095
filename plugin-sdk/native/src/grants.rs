//! What the configuration grants a script or a module, beside its exchange: the table `grants` of an instance.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::secret::SecretRef;
use crate::units::{Rate, Size, Span};

/// What a policy may use. What is not named is denied, and says so when it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Grants {
    /// HTTP calls to upstreams of the configuration. Default: none.
    pub http: Option<HttpGrant>,
    /// A cache of the policy's own, which outlives reloads. Default: none.
    pub cache: Option<CacheGrant>,
    /// Whether it may use its part of the gateway's store. Default: `false`.
    pub store: bool,
    /// Limits of the policy's own, by name: how often something may happen, for each key that the policy tells.
    /// Default: none.
    pub rate_limit: BTreeMap<String, LimitGrant>,
    /// Names of what the policy counts, for the metrics page. Default: none.
    pub metrics: Vec<String>,
    /// Whether it may ask for the time. Default: `false`.
    pub clock: bool,
    /// Whether it may ask for random bytes. Default: `false`.
    pub random: bool,
    /// Secrets by the names that the policy knows them by. It can sign and compare with them, not read them.
    /// Default: none.
    pub secrets: BTreeMap<String, SecretRef>,
}

/// Bounds of a policy's HTTP calls.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpGrant {
    /// The upstreams that may be called.
    pub upstreams: Vec<String>,
    /// How long one call may take, at most 30s.
    #[serde(default = "HttpGrant::timeout")]
    #[schemars(extend("default" = "1s"))]
    pub timeout: Span,
    /// Calls that one call of a hook may make, at most 64.
    #[serde(default = "HttpGrant::calls")]
    pub calls: NonZeroU32,
    /// Longest body of an answer, at most 4MiB.
    #[serde(default = "HttpGrant::max_body")]
    #[schemars(extend("default" = "64KiB"))]
    pub max_body: Size,
    /// Whether calls are made also while the policy is in shadow, where they fail otherwise. Default: `false`.
    #[serde(default)]
    pub shadow: bool,
}

/// Bounds of a policy's cache.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheGrant {
    /// How many entries it holds, at most 1000000; what is used least goes first.
    pub entries: NonZeroU32,
}

/// How often something may happen, for each key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitGrant {
    /// How fast tokens come back, e.g. `10/s`, `100/min`.
    pub rate: Rate,
    /// How many there are at the most: what may happen at once. Default: what `rate` counts, e.g. 10.
    #[serde(default)]
    pub burst: Option<NonZeroU32>,
}

impl HttpGrant {
    fn timeout() -> Span {
        Span::seconds(1)
    }

    fn calls() -> NonZeroU32 {
        const { NonZeroU32::new(4).unwrap() }
    }

    fn max_body() -> Size {
        Size::kib(64)
    }
}

impl Default for CacheGrant {
    fn default() -> Self {
        CacheGrant { entries: const { NonZeroU32::new(10_000).unwrap() } }
    }
}
