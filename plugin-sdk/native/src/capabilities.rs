//! What scripts and modules may use beside their exchange, under the same names and bounds in both: built from
//! [`Grants`], asked by the runtimes. What was not granted is denied with the grant that would allow it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::{constant_time, digest, hmac, rand};
use bytes::Bytes;
use http::Request;

use crate::build::{BuildContext, BuildError, Cache};
use crate::clock::Clock;
use crate::grants::{CacheGrant, Grants, HttpGrant, LimitGrant};
use crate::metrics::Counters;
use crate::outbound::{Outbound, OutboundFuture, OutboundLimits};
use crate::rate::{Limit, Rates, TokenBucket};
use crate::secret::Secret;
use crate::store::Keyspace;
use crate::units::{Size, Span};

/// Bytes of a key of a cache or a limit.
pub const MAX_KEY: usize = 1024;
/// Bytes of a value in a cache.
pub const MAX_VALUE: usize = 64 << 10;
/// Random bytes at once.
pub const MAX_RANDOM: usize = 1024;
/// Bytes of the body of a call that a policy makes.
pub const MAX_SENT: usize = 1 << 20;
/// Keys that the limits of a policy tell apart, all together.
const MAX_KEYS: usize = 100_000;

const MAX_TIMEOUT: Span = Span::seconds(30);
const MAX_CALLS: u32 = 64;
const MAX_ANSWER: Size = Size::mib(4);
const MAX_ENTRIES: u32 = 1_000_000;
const MAX_COUNTERS: usize = 32;

/// Why a capability could not be used: for the author of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied(String);

impl Denied {
    /// For this reason: lower case, no full stop.
    pub fn new(reason: impl Into<String>) -> Self {
        Denied(reason.into())
    }

    fn ungranted(name: &str, grant: &str) -> Self {
        Denied(format!("`{name}` is not granted to this policy: add `grants: {{ {grant} }}` to its options"))
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Denied {}

/// What one policy may use.
#[derive(Default)]
pub struct Capabilities {
    http: Option<Http>,
    cache: Option<PolicyCache>,
    store: Option<Keyspace>,
    limits: Option<Limits>,
    counts: Option<Counts>,
    clock: Option<Clock>,
    has_random: bool,
    secrets: BTreeMap<Box<str>, Secret>,
}

impl Capabilities {
    /// Makes what `grants` says ready for use. Paths in errors begin with `grants`.
    pub fn build(grants: &Grants, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if let Some(ceiling) = context.ceiling() {
            ceiling.check(grants)?;
        }
        let mut secrets = BTreeMap::new();
        for (name, secret) in &grants.secrets {
            let secret = context.secret(&format!("grants.secrets.{name}"), secret)?;
            secrets.insert(name.as_str().into(), secret);
        }
        Ok(Capabilities {
            http: grants.http.as_ref().map(|grant| Http::build(grant, context)).transpose()?,
            cache: grants.cache.as_ref().map(|grant| PolicyCache::build(grant, context)).transpose()?,
            store: grants.store.then(|| context.store()),
            limits: Limits::build(&grants.rate_limit, context)?,
            counts: Counts::build(&grants.metrics, context)?,
            clock: grants.clock.then(|| context.clock()),
            has_random: grants.random,
            secrets,
        })
    }

    /// Whether something is granted that a hook may have to wait for.
    pub fn may_wait(&self) -> bool {
        self.http.is_some() || self.store.is_some()
    }

    /// Calls to upstreams.
    pub fn http(&self) -> Result<&Http, Denied> {
        self.http.as_ref().ok_or_else(|| Denied::ungranted("http", "http: { upstreams: [..] }"))
    }

    /// The policy's cache.
    pub fn cache(&self) -> Result<&PolicyCache, Denied> {
        self.cache.as_ref().ok_or_else(|| Denied::ungranted("cache", "cache: {}"))
    }

    /// The policy's part of the gateway's store.
    pub fn store(&self) -> Result<&Keyspace, Denied> {
        self.store.as_ref().ok_or_else(|| Denied::ungranted("store", "store: true"))
    }

    /// The policy's limits.
    pub fn limits(&self) -> Result<&Limits, Denied> {
        let denied = || Denied::ungranted("rate_limit", "rate_limit: { NAME: { rate: 10/s } }");
        self.limits.as_ref().ok_or_else(denied)
    }

    /// The policy's counters.
    pub fn counts(&self) -> Result<&Counts, Denied> {
        self.counts.as_ref().ok_or_else(|| Denied::ungranted("metrics", "metrics: [NAME]"))
    }

    /// The time.
    pub fn now(&self) -> Result<SystemTime, Denied> {
        let clock = self.clock.as_ref().ok_or_else(|| Denied::ungranted("clock", "clock: true"))?;
        Ok(clock.wall())
    }

    /// Random bytes that nobody can guess, at most [`MAX_RANDOM`].
    pub fn random(&self, count: usize) -> Result<Vec<u8>, Denied> {
        if !self.has_random {
            return Err(Denied::ungranted("random", "random: true"));
        }
        if count > MAX_RANDOM {
            return Err(Denied::new(format!("more than {MAX_RANDOM} random bytes at once")));
        }
        let mut bytes = vec![0; count];
        rand::fill(&mut bytes).map_err(|_| Denied::new("the system has no random bytes"))?;
        Ok(bytes)
    }

    /// HMAC-SHA256 of `data` with the secret of this name.
    pub fn hmac_sha256(&self, secret: &str, data: &[u8]) -> Result<[u8; 32], Denied> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret(secret)?.expose());
        let mut code = [0; 32];
        code.copy_from_slice(hmac::sign(&key, data).as_ref());
        Ok(code)
    }

    /// Whether `candidate` is the secret of this name, in a time that does not tell how much of it is right.
    pub fn is_secret(&self, secret: &str, candidate: &[u8]) -> Result<bool, Denied> {
        let digest = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
        let (secret, candidate) = (digest(self.secret(secret)?.expose()), digest(candidate));
        Ok(constant_time::verify_slices_are_equal(secret.as_ref(), candidate.as_ref()).is_ok())
    }

    /// The secret of this name: for a header of a call, not for the policy.
    pub fn secret(&self, name: &str) -> Result<&Secret, Denied> {
        self.secrets.get(name).ok_or_else(|| match self.secrets.is_empty() {
            true => Denied::ungranted("secrets", "secrets: { NAME: env:VARIABLE }"),
            false => unknown("secret", name, self.secrets.keys()),
        })
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Capabilities")
    }
}

/// Calls to upstreams of the configuration.
pub struct Http {
    ways: BTreeMap<Box<str>, Arc<dyn Outbound>>,
    limits: OutboundLimits,
    calls: u32,
    /// In shadow, where calls are not made.
    is_off: bool,
}

impl Http {
    fn build(grant: &HttpGrant, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if grant.upstreams.is_empty() {
            return Err(BuildError::at("grants.http.upstreams", "no upstream, so nothing is granted"));
        }
        if grant.timeout > MAX_TIMEOUT || grant.timeout.0.is_zero() {
            return Err(BuildError::at(
                "grants.http.timeout",
                format!("not above 0 and at most {MAX_TIMEOUT}"),
            ));
        }
        if grant.calls.get() > MAX_CALLS {
            return Err(BuildError::at("grants.http.calls", format!("more than {MAX_CALLS}")));
        }
        if grant.max_body > MAX_ANSWER {
            return Err(BuildError::at("grants.http.max_body", format!("more than {MAX_ANSWER}")));
        }
        let mut ways = BTreeMap::new();
        for (at, name) in grant.upstreams.iter().enumerate() {
            let way = context.upstream(&format!("grants.http.upstreams[{at}]"), name)?;
            ways.insert(name.as_str().into(), way);
        }
        let limits = OutboundLimits { timeout: grant.timeout.0, max_body: grant.max_body.0 };
        let is_off = context.is_shadow() && !grant.shadow;
        Ok(Http { ways, limits, calls: grant.calls.get(), is_off })
    }

    /// Sends `request` to the upstream of this name; `made` counts the calls that this call of a hook has made before,
    /// and is one more afterwards.
    pub fn send(
        &self,
        upstream: &str,
        request: Request<Bytes>,
        made: &mut u32,
    ) -> Result<OutboundFuture<'_>, Denied> {
        let way = self.ways.get(upstream).ok_or_else(|| unknown("upstream", upstream, self.ways.keys()))?;
        if self.is_off {
            return Err(Denied::new("in shadow no calls are made, unless `grants.http.shadow` is true"));
        }
        if *made >= self.calls {
            let calls = self.calls;
            return Err(Denied::new(format!(
                "more than {calls} calls in one call of a hook (`grants.http.calls`)"
            )));
        }
        if request.body().len() > MAX_SENT {
            return Err(Denied::new(format!("a body of more than {}", Size(MAX_SENT))));
        }
        *made += 1;
        Ok(way.send(request, self.limits))
    }
}

/// A policy's cache.
pub struct PolicyCache(Arc<dyn Cache>);

impl PolicyCache {
    fn build(grant: &CacheGrant, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if grant.entries.get() > MAX_ENTRIES {
            return Err(BuildError::at("grants.cache.entries", format!("more than {MAX_ENTRIES}")));
        }
        Ok(PolicyCache(context.cache(grant.entries.get().into())))
    }

    /// What was kept under `key` and has not expired.
    pub fn get(&self, key: &str) -> Result<Option<Bytes>, Denied> {
        check_key(key)?;
        Ok(self.0.get(key))
    }

    /// Keeps `value` under `key` for `lifetime`.
    pub fn set(&self, key: &str, value: Bytes, lifetime: Duration) -> Result<(), Denied> {
        check_key(key)?;
        if value.len() > MAX_VALUE {
            return Err(Denied::new(format!("a value of more than {} in the cache", Size(MAX_VALUE))));
        }
        self.0.insert(key, value, lifetime);
        Ok(())
    }
}

/// A policy's limits.
pub struct Limits {
    rates: Rates,
    limits: BTreeMap<Box<str>, Limit>,
}

/// How a limit stands after it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether there was a token.
    pub is_allowed: bool,
    /// Tokens that are left.
    pub left: u64,
    /// The time until there is one more; none if all are there.
    pub more_in: Option<Duration>,
}

impl Limits {
    fn build(
        grants: &BTreeMap<String, LimitGrant>,
        context: &mut BuildContext<'_>,
    ) -> Result<Option<Self>, BuildError> {
        if grants.is_empty() {
            return Ok(None);
        }
        let rates = context.rates(MAX_KEYS);
        let mut limits = BTreeMap::new();
        for (name, grant) in grants {
            let burst = grant.burst.unwrap_or(grant.rate.count);
            let at = || format!("grants.rate_limit.{name}");
            let bucket = TokenBucket::new(grant.rate, burst)
                .ok_or_else(|| BuildError::at(at(), "it would take more than ten years to fill up"))?;
            let (limit, _) = rates.limit(name, "policy", bucket);
            limits.insert(name.as_str().into(), limit);
        }
        Ok(Some(Limits { rates, limits }))
    }

    /// Takes a token of the bucket that `key` has under the limit of this name.
    pub fn take(&self, limit: &str, key: &str) -> Result<Taken, Denied> {
        check_key(key)?;
        let limit = self.limits.get(limit).ok_or_else(|| unknown("limit", limit, self.limits.keys()))?;
        let mut takes = [self.rates.ask(limit, key)];
        let is_allowed = self.rates.take(&mut takes);
        let [take] = takes;
        let standing = take.standing();
        Ok(Taken { is_allowed, left: standing.left, more_in: standing.more_in })
    }
}

/// A policy's counters.
pub struct Counts {
    names: Vec<String>,
    counters: Counters<2>,
}

impl Counts {
    fn build(names: &[String], context: &mut BuildContext<'_>) -> Result<Option<Self>, BuildError> {
        if names.is_empty() {
            return Ok(None);
        }
        if names.len() > MAX_COUNTERS {
            return Err(BuildError::at("grants.metrics", format!("more than {MAX_COUNTERS} names")));
        }
        let help = "what the policy counts, by the names that it was granted";
        let counters = context.counters("counted", help, ["name", "label"]);
        Ok(Some(Counts { names: names.to_vec(), counters }))
    }

    /// Adds to the counter of this name; `label` tells several of one name apart, and is empty for most.
    pub fn add(&self, name: &str, label: &str, count: NonZeroU32) -> Result<(), Denied> {
        if !self.names.iter().any(|known| known == name) {
            return Err(unknown("counter", name, self.names.iter()));
        }
        self.counters.with([name, label]).add(count.get().into());
        Ok(())
    }
}

fn check_key(key: &str) -> Result<(), Denied> {
    match key.len() <= MAX_KEY {
        true => Ok(()),
        false => Err(Denied::new(format!("a key of more than {MAX_KEY} bytes"))),
    }
}

/// Says what there is instead of what was asked for.
fn unknown<N: AsRef<str>>(what: &str, name: &str, known: impl Iterator<Item = N>) -> Denied {
    let known: Vec<String> = known.map(|name| format!("`{}`", name.as_ref())).collect();
    let name: String = name.chars().take(64).collect();
    Denied(format!("no {what} `{name}` is granted to this policy; there is {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::build::Instance;
    use crate::tester::{PluginTester, block_on};

    fn build(tester: &mut PluginTester, grants: serde_json::Value) -> Result<Capabilities, BuildError> {
        let grants: Grants = serde_json::from_value(grants).unwrap();
        let instance = Instance { kind: "policy", name: "p".into(), state_schema: 1 };
        Capabilities::build(&grants, &mut BuildContext::new(instance, tester))
    }

    fn request() -> Request<Bytes> {
        Request::new(Bytes::new())
    }

    #[test]
    fn what_is_not_granted_is_denied_with_the_grant_that_would_allow_it() {
        let none = build(&mut PluginTester::new(), json!({})).unwrap();
        let denied = |denied: Option<Denied>, grant: &str| {
            let text = denied.unwrap().to_string();
            assert!(text.contains(&format!("`grants: {{ {grant}")), "{text}");
        };
        denied(none.http().err(), "http: { upstreams: [..] }");
        denied(none.cache().err(), "cache: {}");
        denied(none.store().err(), "store: true");
        denied(none.limits().err(), "rate_limit: { NAME: { rate: 10/s } }");
        denied(none.counts().err(), "metrics: [NAME]");
        denied(none.now().err(), "clock: true");
        denied(none.random(1).err(), "random: true");
        denied(none.hmac_sha256("key", b"").err(), "secrets: { NAME: env:VARIABLE }");
        assert!(!none.may_wait());
    }

    #[test]
    fn calls_go_to_upstreams_that_are_named_and_no_more_often_than_granted() {
        let mut tester = PluginTester::new().upstream("idp", |request: &Request<Bytes>| {
            assert_eq!(request.uri().path(), "/");
            Ok(http::Response::new(Bytes::from_static(b"yes")))
        });
        let granted = build(&mut tester, json!({ "http": { "upstreams": ["idp"], "calls": 2 } })).unwrap();
        let (http, mut made) = (granted.http().unwrap(), 0);
        assert!(granted.may_wait());
        for _ in 0..2 {
            let answer = block_on(http.send("idp", request(), &mut made).unwrap()).unwrap();
            assert_eq!(answer.body(), "yes");
        }
        let denied = |upstream: &str, request, made: &mut u32| {
            http.send(upstream, request, made).err().unwrap().to_string()
        };
        assert!(denied("idp", request(), &mut made).contains("more than 2 calls"));
        assert!(denied("other", request(), &mut 0).contains("no upstream `other`"));
        let large = Request::new(Bytes::from(vec![0; MAX_SENT + 1]));
        assert!(denied("idp", large, &mut 0).contains("more than 1MiB"));
        let error = build(&mut tester, json!({ "http": { "upstreams": ["idp", "typo"] } })).unwrap_err();
        assert_eq!(error.path, "grants.http.upstreams[1]");
    }

    #[test]
    fn bounds_of_grants_are_checked() {
        for (grants, path) in [
            (json!({ "http": { "upstreams": [] } }), "grants.http.upstreams"),
            (json!({ "http": { "upstreams": ["u"], "timeout": "31s" } }), "grants.http.timeout"),
            (json!({ "http": { "upstreams": ["u"], "timeout": "0s" } }), "grants.http.timeout"),
            (json!({ "http": { "upstreams": ["u"], "calls": 65 } }), "grants.http.calls"),
            (json!({ "http": { "upstreams": ["u"], "max_body": "5MiB" } }), "grants.http.max_body"),
            (json!({ "cache": { "entries": 1_000_001 } }), "grants.cache.entries"),
            (json!({ "rate_limit": { "slow": { "rate": "1/d", "burst": 4000 } } }), "grants.rate_limit.slow"),
            (json!({ "metrics": vec!["x"; MAX_COUNTERS + 1] }), "grants.metrics"),
        ] {
            assert_eq!(build(&mut PluginTester::new(), grants).unwrap_err().path, path);
        }
    }

    #[test]
    fn a_cache_keeps_what_is_small_enough() {
        let granted = build(&mut PluginTester::new(), json!({ "cache": {} })).unwrap();
        let (cache, minute) = (granted.cache().unwrap(), Duration::from_secs(60));
        cache.set("a", Bytes::from_static(b"1"), minute).unwrap();
        assert_eq!(cache.get("a").unwrap().as_deref(), Some(&b"1"[..]));
        assert_eq!(cache.get("b"), Ok(None));
        let denied = |result: Result<(), Denied>| result.unwrap_err().to_string();
        assert!(denied(cache.set("a", vec![0; MAX_VALUE + 1].into(), minute)).contains("more than 64KiB"));
        assert!(denied(cache.set(&"k".repeat(MAX_KEY + 1), Bytes::new(), minute)).contains("1024 bytes"));
    }

    #[test]
    fn a_limit_is_counted_by_key_and_comes_back() {
        let mut tester = PluginTester::new();
        tester.set_time(Duration::from_secs(1000));
        let granted = build(&mut tester, json!({ "rate_limit": { "login": { "rate": "2/min" } } })).unwrap();
        let take = |key: &str| granted.limits().unwrap().take("login", key).unwrap();
        assert_eq!((take("ann").is_allowed, take("ann").left), (true, 0));
        let refused = take("ann");
        assert!(!refused.is_allowed && refused.more_in <= Some(Duration::from_secs(30)), "{refused:?}");
        assert!(take("bob").is_allowed);
        tester.set_time(Duration::from_secs(1030));
        assert!(take("ann").is_allowed);
        assert!(granted.limits().unwrap().take("logout", "ann").is_err());
    }

    #[test]
    fn counters_are_those_that_were_granted() {
        let mut tester = PluginTester::new();
        let granted = build(&mut tester, json!({ "metrics": ["logins"] })).unwrap();
        let one = NonZeroU32::MIN;
        granted.counts().unwrap().add("logins", "ok", one).unwrap();
        assert_eq!(tester.counted("counted", &["logins", "ok"]), Some(1));
        assert!(granted.counts().unwrap().add("logouts", "", one).is_err());
    }

    #[test]
    fn time_is_the_clocks_and_random_bytes_are_bounded() {
        let mut tester = PluginTester::new();
        tester.set_time(Duration::from_secs(1_000_000));
        let granted = build(&mut tester, json!({ "clock": true, "random": true })).unwrap();
        assert_eq!(granted.now().unwrap(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
        assert_ne!(granted.random(16).unwrap(), granted.random(16).unwrap());
        assert!(granted.random(MAX_RANDOM + 1).is_err());
    }

    #[test]
    fn a_secret_signs_and_compares_and_is_not_shown() {
        let mut tester = PluginTester::new().secret("KEY", "hunter2");
        let granted = build(&mut tester, json!({ "secrets": { "signing": "env:KEY" } })).unwrap();
        // As `printf text | openssl dgst -sha256 -hmac hunter2` says.
        let code = granted.hmac_sha256("signing", b"text").unwrap();
        let code: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(code, "faef784162d35f91eca46b3fc1dc0b2c65b91115ada3d166a0a3b99411feac17");
        let is_secret = |candidate: &[u8]| granted.is_secret("signing", candidate).unwrap();
        assert!(is_secret(b"hunter2") && !is_secret(b"hunter3") && !is_secret(b""));
        let unknown = granted.hmac_sha256("other", b"").unwrap_err().to_string();
        assert!(unknown.contains("there is `signing`"), "{unknown}");
        assert!(!format!("{granted:?} {unknown}").contains("hunter2"));
    }
}
