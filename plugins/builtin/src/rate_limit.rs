//! `rate_limit`: bounds how often something may be asked for, per client or whatever else tells requests apart.
//!
//! ```yaml
//! - rate_limit:
//!     limits:
//!       - { name: second, key: client, token_bucket: { rate: 10/s, burst: 20 } }
//!       - { name: hour, key: [principal, route], token_bucket: { rate: 1000/h } }
//! ```
//!
//! A request has to be within all limits of an instance, and counts towards all of them or, if it is refused,
//! towards none. Counting is exact over all workers. It goes on after a reload, also with another rate or burst;
//! another `key` begins anew, and the reload says so. A limit is known by its `name` and that of the instance.
//!
//! At most `max_keys` keys are counted, each apart, and one is forgotten only when it has all its tokens again. Where
//! there is no room, further keys share buckets until there is: a flood of keys is limited as a whole, and who was
//! limited before stays so. The room is shared out in 128 parts by a secret hash, so that single keys may meet a full
//! one a little earlier.
//!
//! A refusal says when to come back (`Retry-After`), and how the limits stand, in `RateLimit` and `RateLimit-Policy`
//! as in draft-ietf-httpapi-ratelimit-headers-10: `q` is the burst, `w` the seconds in which it comes back, `r` what
//! is left of it, `t` the seconds until there is more.
//!
//! Reasons: `rate_limit.exceeded` (429).

mod key;

use std::fmt::Write;
use std::num::NonZeroU32;
use std::time::Duration;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use portcullis_plugin::{
    BuildContext, BuildError, Counter, Exchange, Hook, HookName, Limit, MAX_TAKES, Needs, Plugin, PluginType,
    Rate, Rates, Reply, Slot, Take, TokenBucket,
};
use schemars::JsonSchema;
use serde::Deserialize;
use smallvec::SmallVec;

use self::key::{Key, KeyConfig};

const EXCEEDED: &str = "rate_limit.exceeded";

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// How many keys may be counted: below, the parts of the table would hold next to nothing; above, it is a
/// mistake, or 750 MB.
const MAX_KEYS: std::ops::RangeInclusive<usize> = 1024..=10_000_000;

/// Counts requests.
pub(crate) struct RateLimit {
    rates: Rates,
    limits: Box<[Counted]>,
    announce: Announce,
    /// The limits as clients are told of them.
    policy: HeaderValue,
    standings: Slot<Takes>,
    overflows: Counter,
}

/// A limit, what it counts by, and its refusals.
#[derive(Debug)]
struct Counted {
    name: String,
    key: Key,
    limit: Limit,
    refusals: Counter,
}

/// A token of each limit.
type Takes = SmallVec<[Take; MAX_TAKES]>;

/// How often what may be asked for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The limits, at most eight; a request has to be within all of them.
    limits: Vec<LimitConfig>,
    /// Bits of an IPv6 address that tell clients apart: a subscriber has a whole network. Default: `64`.
    #[serde(default = "default_prefix")]
    ipv6_prefix: u8,
    /// When clients are told how the limits stand: if they are `refused`, `always`, or `never`.
    /// `Retry-After` tells those that are refused in any case. Default: `refused`.
    #[serde(default)]
    announce: Announce,
    /// Keys that are counted apart, all limits together, 1024 to 10000000; up to 75 bytes of memory each.
    /// Default: `1000000`.
    #[serde(default = "default_keys")]
    max_keys: usize,
}

/// A limit.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LimitConfig {
    /// Tells limits apart, also for clients. Default, if there is only one: `default`.
    name: Option<String>,
    /// What is counted apart: `client`, the address, as a trusted proxy may have told it; `principal`;
    /// `route`; `{ header: x-tenant }`, all values; or a list of them, for their combinations. Requests
    /// that lack it are counted together.
    key: KeyConfig,
    /// A bucket of tokens for each key. A request takes one; they come back at a rate.
    token_bucket: TokenBucketConfig,
}

/// A bucket of tokens.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TokenBucketConfig {
    /// How fast tokens come back, e.g. `10/s`, `100/min`, `1000/h`, `5000/d`.
    rate: Rate,
    /// How many it holds: requests that may come at once. Default: what `rate` counts, e.g. 10.
    burst: Option<NonZeroU32>,
}

/// When clients are told how the limits stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Announce {
    /// When they are refused.
    #[default]
    Refused,
    /// With every response.
    Always,
    /// Never.
    Never,
}

fn default_prefix() -> u8 {
    64
}

fn default_keys() -> usize {
    1_000_000
}

impl RateLimit {
    /// The decision: whether the request is within all limits, and how they stand now.
    fn judge(&self, exchange: &Exchange) -> (bool, Takes) {
        let ask = |counted: &Counted| self.rates.ask(&counted.limit, counted.key.of(exchange));
        let mut takes: Takes = self.limits.iter().map(ask).collect();
        let is_within = self.rates.take(&mut takes);
        (is_within, takes)
    }

    fn count(&self, takes: &Takes) {
        for (counted, take) in self.limits.iter().zip(takes) {
            if take.is_refused() {
                counted.refusals.increment();
            }
            if take.has_overflowed() {
                self.overflows.increment();
            }
        }
    }

    fn refusal(&self, takes: &Takes) -> Reply {
        let waits = takes.iter().filter(|take| take.is_refused()).filter_map(|take| take.standing().more_in);
        let wait = waits.max().unwrap_or_default();
        let reply =
            Reply::deny(StatusCode::TOO_MANY_REQUESTS, EXCEEDED).header(RETRY_AFTER, seconds(wait).into());
        if self.announce == Announce::Never {
            return reply;
        }
        reply.header(RATE_LIMIT_POLICY, self.policy.clone()).header(RATE_LIMIT, self.standing(takes))
    }

    /// How the limits stand, e.g. `"default";r=0;t=3`.
    fn standing(&self, takes: &Takes) -> HeaderValue {
        let mut text = String::new();
        for (counted, take) in self.limits.iter().zip(takes) {
            let standing = take.standing();
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a string can't fail.
            let _ = write!(text, "{separator}\"{}\";r={}", counted.name, standing.left);
            if let Some(more_in) = standing.more_in {
                let _ = write!(text, ";t={}", seconds(more_in));
            }
        }
        header_value(text)
    }
}

/// Whole seconds, rather too many than too few.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// A value made of names that were judged and numbers.
fn header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// A limit's name. It becomes a string of a structured field (RFC 9651, 3.3.3) as it is.
fn name(at: &str, limit: &LimitConfig, is_only: bool) -> Result<String, BuildError> {
    let name = match &limit.name {
        Some(name) => name.clone(),
        None if is_only => "default".to_owned(),
        None => {
            return Err(BuildError::at(at, "a limit without a name beside others")
                .help("tell them apart: `- { name: ..., key: ... }`"));
        }
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./: ".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(is_plain) {
        return Err(BuildError::at(format!("{at}.name"), format!("`{name}` is not a name for a limit"))
            .help("a name is 1 to 64 letters, digits, blanks and `-_./:`"));
    }
    Ok(name)
}

impl TokenBucketConfig {
    fn bucket(&self, at: &str) -> Result<TokenBucket, BuildError> {
        TokenBucket::new(self.rate, self.burst.unwrap_or(self.rate.count)).ok_or_else(|| {
            BuildError::at(format!("{at}.burst"), "it would take more than ten years until so many come back")
        })
    }
}

impl PluginType for RateLimit {
    const KIND: &'static str = "rate_limit";
    const SUMMARY: &'static str = "bounds the rate of requests per client, principal, route or header";
    const EXAMPLE: &'static str = "\
- rate_limit:
    limits:
      - { name: second, key: client, token_bucket: { rate: 10/s, burst: 20 } }
      - { name: hour, key: [principal, route], token_bucket: { rate: 1000/h } }
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Config { limits, ipv6_prefix, announce, max_keys } = config;
        if limits.is_empty() || limits.len() > MAX_TAKES {
            return Err(BuildError::at("limits", format!("there are one to {MAX_TAKES} limits")));
        }
        if !(1..=128).contains(&ipv6_prefix) {
            return Err(BuildError::at("ipv6_prefix", "a prefix has 1 to 128 bits"));
        }
        if !MAX_KEYS.contains(&max_keys) {
            let (least, most) = (MAX_KEYS.start(), MAX_KEYS.end());
            return Err(BuildError::at("max_keys", format!("so many keys are {least} to {most}")));
        }
        let rates = context.rates(max_keys);
        let refusals = context.counters("refused", "requests that a limit refused, by limit", ["limit"]);
        let mut counted: Vec<Counted> = Vec::with_capacity(limits.len());
        let mut policy = String::new();
        for (index, config) in limits.iter().enumerate() {
            let at = format!("limits[{index}]");
            let name = name(&at, config, limits.len() == 1)?;
            if counted.iter().any(|other| other.name == name) {
                return Err(BuildError::at(format!("{at}.name"), format!("a second limit `{name}`")));
            }
            let key = Key::new(&format!("{at}.key"), &config.key, ipv6_prefix)?;
            let bucket = config.token_bucket.bucket(&format!("{at}.token_bucket"))?;
            let (limit, begins_anew) = rates.limit(&name, &key.to_string(), bucket);
            if begins_anew {
                let message = format!("limit `{name}` counts by something else now, so it begins anew");
                context.notice(&format!("{at}.key"), message);
            }
            let separator = if policy.is_empty() { "" } else { ", " };
            let window = seconds(bucket.fills_in());
            let _ = write!(policy, "{separator}\"{name}\";q={};w={window}", bucket.burst());
            let refusals = refusals.with([&name]);
            counted.push(Counted { name, key, limit, refusals });
        }
        let help = "tokens of buckets that new keys share, because `max_keys` were counted";
        Ok(RateLimit {
            rates,
            limits: counted.into(),
            announce,
            policy: header_value(policy),
            standings: context.slot(),
            overflows: context.counter("overflow", help),
        })
    }
}

impl Plugin for RateLimit {
    fn needs(&self) -> Needs {
        let needs = Needs::hooks([HookName::OnRequest]);
        if self.announce == Announce::Always { needs.and(HookName::OnResponse) } else { needs }
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let (is_within, takes) = self.judge(exchange);
        self.count(&takes);
        if !is_within {
            let mut limits = self.limits.iter().zip(&takes);
            if let Some((limit, _)) = limits.find(|(_, take)| take.is_refused()) {
                exchange.rests_on(&limit.name);
            }
            return Hook::respond(self.refusal(&takes));
        }
        if self.announce == Announce::Always {
            exchange.set_slot(self.standings, takes);
        }
        Hook::CONTINUE
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if let Some(takes) = exchange.take_slot(self.standings)
            && let Some(mut response) = exchange.response_mut()
        {
            // Beside those of other instances, and of the upstream.
            response.headers.append(RATE_LIMIT_POLICY, self.policy.clone());
            response.headers.append(RATE_LIMIT, self.standing(&takes));
        }
        Hook::CONTINUE
    }
}

#[cfg(test)]
mod tests;
