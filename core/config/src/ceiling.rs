//! What policies of the policy directory may be granted by the files beside them.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::at_least_one;
use crate::values::{ByteSize, Duration};

/// The most that `grants` in a file of options may say; more is an error. What reaches outside or uses secrets has to be
/// named here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ceiling {
    /// Calls to upstreams. Default: none.
    pub http: Option<HttpCeiling>,
    /// Caches of the policies' own. Default: of 10000 entries each.
    pub cache: CacheCeiling,
    /// Whether they may use the gateway's store. Default `false`.
    pub store: bool,
    /// Whether they may have limits of their own. Default `true`.
    pub rate_limit: bool,
    /// Whether they may have counters of their own. Default `true`.
    pub metrics: bool,
    /// Whether they may ask for the time. Default `true`.
    pub clock: bool,
    /// Whether they may ask for random bytes. Default `true`.
    pub random: bool,
    /// Secrets that they may use. Default: none. Example: `[env:SIGNING_KEY]`.
    pub secrets: Vec<String>,
}

/// Bounds of calls that policies make.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpCeiling {
    /// The upstreams that may be called. Example: `[idp]`.
    pub upstreams: Vec<String>,
    /// How long one call may take. Default `1s`.
    #[serde(default = "HttpCeiling::timeout")]
    pub timeout: Duration,
    /// Calls that one call of a hook may make. Default `4`.
    #[serde(default = "HttpCeiling::calls")]
    pub calls: NonZeroU32,
    /// Longest body of an answer. Default `64KiB`.
    #[serde(default = "HttpCeiling::max_body")]
    pub max_body: ByteSize,
}

/// Bounds of caches.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheCeiling {
    /// Entries of each at most; 0 for no caches. Default `10000`.
    pub entries: u32,
}

impl HttpCeiling {
    fn timeout() -> Duration {
        Duration(std::time::Duration::from_secs(1))
    }

    fn calls() -> NonZeroU32 {
        at_least_one(4)
    }

    fn max_body() -> ByteSize {
        ByteSize(64 << 10)
    }
}

impl Default for CacheCeiling {
    fn default() -> Self {
        Self { entries: 10_000 }
    }
}

impl Default for Ceiling {
    fn default() -> Self {
        Self {
            http: None,
            cache: CacheCeiling::default(),
            store: false,
            rate_limit: true,
            metrics: true,
            clock: true,
            random: true,
            secrets: Vec::new(),
        }
    }
}
