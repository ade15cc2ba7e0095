//! `jwt`: knows callers by a signed token that somebody else has issued.
//!
//! ```yaml
//! - jwt:
//!     issuers:
//!       - issuer: https://login.example.com/
//!         audience: [orders]
//!         algorithms: [RS256, PS256]
//!         keys: [{ discovery: { upstream: login } }]
//!         typ: [at+jwt]
//!         require: { azp: web }
//!         roles: realm_access.roles
//!       - issuer: partner
//!         audience: [orders]
//!         algorithms: [HS256]
//!         keys: [{ secret: env:PARTNER_SECRET }]
//!     from: [bearer, { cookie: session }]
//! ```
//!
//! A token is a JWT (RFC 7519) in the compact form. Its `iss` says which issuer's rules it is judged by, and nothing more, until
//! its signature holds. It is signed with one of that issuer's `algorithms` and one of its keys that is of the type; what else
//! the header says of keys (`jwk`, `jku`, `x5u`, `x5c`) is not read. A header with `crit`, a name twice in an object, base64
//! that could be written otherwise: such a token is none. `exp` must be there; `nbf` and `iat` must not lie ahead.
//!
//! The token makes the request's principal: `id` from `sub`, `issuer` from `iss`, `scopes` from `scope`, roles from the claim
//! that `roles` names, and all its claims. The places of `from` are emptied before the request goes on, unless `forward` says
//! otherwise. A request without a token is refused unless `optional` lets it pass; one with a token that does not hold is
//! refused always, with a challenge (RFC 6750, 3) that tells no more than that.
//!
//! A token whose `cnf` binds it to a client certificate (RFC 8705, 3.1) holds with that certificate alone; one that is bound to
//! anything else is refused, since nothing shows that its bearer may use it.
//!
//! Keys that are fetched are kept beyond reloads, and fetched anew before they are out of date. A token with a key that is not
//! among them waits for one fetch, which all wait for together; there is one per `window` at most, so that invented keys do not
//! make many. Where it cannot be known in time whether a key is an issuer's, the answer is 503 with `Retry-After`, not 401.
//! `portcullis jwt why` tells how a token is judged.
//!
//! Reasons: `jwt.missing`, `jwt.malformed`, `jwt.unknown_issuer`, `jwt.algorithm`, `jwt.unknown_key`, `jwt.signature`,
//! `jwt.expired`, `jwt.not_yet`, `jwt.audience`, `jwt.claim`, `jwt.binding` (401), `jwt.keys_unavailable` (503).

mod issuer;
mod keys;
mod remote;
mod token;
mod why;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use moka::sync::Cache;
use portcullis_plugin::{
    BuildContext, BuildError, Clock, Counter, Decision, Exchange, Gauge, Hook, HookName, Needs, Plugin,
    PluginError, PluginType, Principal, Reply, Size,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use self::issuer::{Issuer, IssuerConfig};
use self::keys::KeySet;
use self::remote::{Fetches, Found, Keep, Remote, Unkept};
use self::token::{Token, Wrong};
pub use self::why::{ASKING, Finding, Outcome, Report, Why};
use crate::credentials::{Place, PlaceConfig, Unclear};

/// Issuers of one instance.
const MAX_ISSUERS: usize = 64;

/// What `max_token` may be at most: a head of a request holds no more.
const MAX_TOKEN: usize = 64 << 10;

/// Tokens that are remembered as verified.
const REMEMBERED: u64 = 100_000;

/// Knows callers by their tokens.
pub(crate) struct Jwt {
    issuers: Box<[Known]>,
    places: Box<[Place]>,
    max_token: usize,
    optional: bool,
    forward: bool,
    verified: Cache<[u8; 32], Arc<Verified>>,
    clock: Clock,
    counts: Counts,
}

/// An issuer, and the keys of it that are fetched.
struct Known {
    issuer: Issuer,
    remote: Option<Arc<Remote>>,
}

/// What is remembered of a token.
struct Verified {
    principal: Principal,
    issuer: usize,
    /// The set that its key was in; none if it is the configuration's own.
    set: Option<u64>,
    /// From when to when it holds, in seconds since 1970.
    validity: (f64, f64),
    binding: Option<Binding>,
}

/// What a token's bearer must show beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Binding {
    /// The client certificate with this hash (RFC 8705, 3.1).
    Certificate(String),
    /// Something that nobody here asks for.
    Other,
}

/// Whose tokens are taken, and where they stand.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Who issues tokens, up to 64.
    issuers: Vec<IssuerConfig>,
    /// Where a token may stand, first things first: `bearer`, for `Authorization: Bearer` (RFC 6750); `{ header: x-token }`;
    /// `{ query: access_token }`; `{ cookie: session }`. Default: `[bearer]`.
    #[serde(default = "default_places")]
    from: Vec<PlaceConfig>,
    /// The longest token, up to `64KiB`. Default: `8KiB`.
    #[serde(default = "default_max_token")]
    max_token: Size,
    /// Whether requests without a token pass, without a principal. Default: `false`.
    #[serde(default)]
    optional: bool,
    /// Whether the token goes on to the upstream. Default: `false`.
    #[serde(default)]
    forward: bool,
}

fn default_places() -> Vec<PlaceConfig> {
    vec![PlaceConfig::Bearer]
}

fn default_max_token() -> Size {
    Size(8 << 10)
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Missing,
    Malformed,
    UnknownIssuer,
    Algorithm,
    UnknownKey,
    Signature,
    Expired,
    NotYet,
    Audience,
    Claim,
    Binding,
    KeysUnavailable,
}

impl Refusal {
    const ALL: [Refusal; 12] = [
        Refusal::Missing,
        Refusal::Malformed,
        Refusal::UnknownIssuer,
        Refusal::Algorithm,
        Refusal::UnknownKey,
        Refusal::Signature,
        Refusal::Expired,
        Refusal::NotYet,
        Refusal::Audience,
        Refusal::Claim,
        Refusal::Binding,
        Refusal::KeysUnavailable,
    ];

    fn reason(self) -> &'static str {
        match self {
            Refusal::Missing => "jwt.missing",
            Refusal::Malformed => "jwt.malformed",
            Refusal::UnknownIssuer => "jwt.unknown_issuer",
            Refusal::Algorithm => "jwt.algorithm",
            Refusal::UnknownKey => "jwt.unknown_key",
            Refusal::Signature => "jwt.signature",
            Refusal::Expired => "jwt.expired",
            Refusal::NotYet => "jwt.not_yet",
            Refusal::Audience => "jwt.audience",
            Refusal::Claim => "jwt.claim",
            Refusal::Binding => "jwt.binding",
            Refusal::KeysUnavailable => "jwt.keys_unavailable",
        }
    }
}

impl From<Unclear> for Wrong {
    fn from(_: Unclear) -> Self {
        Wrong::new(Refusal::Malformed, "two tokens stand in one place")
    }
}

/// Requests by what became of them, and the age of keys.
struct Counts {
    verified: Counter,
    remembered: Counter,
    anonymous: Counter,
    /// In the order of [`Refusal::ALL`].
    refused: [Counter; Refusal::ALL.len()],
    oldest: Gauge,
    /// What the gauge shows.
    shown: AtomicI64,
}

/// What is to be done about a token.
enum Judged {
    Holds(Arc<Verified>),
    /// Its key has to be asked for first.
    AskKeys(usize),
}

impl Binding {
    fn of(token: &Token<'_>) -> Option<Self> {
        let confirmation = token.claims.get("cnf")?;
        let hash = confirmation.get("x5t#S256").and_then(Value::as_str);
        let is_alone = confirmation.as_object().is_some_and(|members| members.len() == 1);
        Some(match hash.filter(|_| is_alone) {
            Some(hash) => Binding::Certificate(hash.to_owned()),
            None => Binding::Other,
        })
    }

    /// Whether the client has shown what it must.
    fn check(&self, exchange: &Exchange) -> Result<(), Wrong> {
        let wrong = |why: &str| Err(Wrong::new(Refusal::Binding, why));
        let Binding::Certificate(hash) = self else {
            return wrong("it is bound to something that is not asked for here");
        };
        let session = exchange.connection().tls.as_ref();
        match session.and_then(|session| session.client_chain.first()) {
            None => wrong("it is bound to a client certificate, and there is none"),
            Some(leaf) if URL_SAFE_NO_PAD.encode(digest(&SHA256, leaf)) == *hash => Ok(()),
            Some(_) => wrong("it is bound to another client certificate"),
        }
    }
}

impl Jwt {
    /// The token of a request.
    fn find<'e>(&self, exchange: &'e Exchange) -> Result<Option<std::borrow::Cow<'e, str>>, Wrong> {
        let request = exchange.request();
        let found = self.places.iter().find_map(|place| place.find(request).transpose());
        Ok(found.transpose()?)
    }

    /// The decision about a token, with the keys that are at hand.
    fn judge(&self, text: &str, id: &[u8; 32], asked: Duration) -> Result<Judged, Wrong> {
        if text.len() <= self.max_token
            && let Some(verified) = self.remembered(id)?
        {
            self.counts.remembered.increment();
            return Ok(Judged::Holds(verified));
        }
        let token = Token::read(text, self.max_token)?;
        let (number, known) = self.issuer(&token)?;
        let algorithm = known.issuer.algorithm(&token)?;
        let Some(remote) = known.remote.as_ref().filter(|_| !known.issuer.keys.has(token.kid(), algorithm))
        else {
            return self.verify(token, number, &known.issuer.keys, None, id).map(Judged::Holds);
        };
        match remote.find(token.kid(), algorithm, asked) {
            Found::Keys(keys, set) => self.verify(token, number, &keys, Some(set), id).map(Judged::Holds),
            Found::Absent => Err(unknown_key(&token)),
            Found::Unknown(_) | Found::Wait(_) => Ok(Judged::AskKeys(number)),
        }
    }

    /// The same, once its keys are known; the error is when to come again, if that is why.
    async fn judge_later(
        &self,
        text: &str,
        id: &[u8; 32],
        asked: Duration,
        number: usize,
    ) -> Result<Arc<Verified>, (Wrong, Option<Duration>)> {
        let plain = |wrong| (wrong, None);
        let token = Token::read(text, self.max_token).map_err(plain)?;
        let known = &self.issuers[number];
        let algorithm = known.issuer.algorithm(&token).map_err(plain)?;
        let Some(remote) = &known.remote else { return Err(plain(unknown_key(&token))) };
        match remote.wait(token.kid(), algorithm, asked).await {
            Ok(Some((keys, set))) => self.verify(token, number, &keys, Some(set), id).map_err(plain),
            Ok(None) => Err(plain(unknown_key(&token))),
            Err(later) => {
                let why =
                    "the issuer's keys are not at hand, and it can't be known whether this is one of them";
                Err((Wrong::new(Refusal::KeysUnavailable, why), Some(later)))
            }
        }
    }

    /// The issuer that a token says it is from.
    fn issuer(&self, token: &Token<'_>) -> Result<(usize, &Known), Wrong> {
        let name = token.issuer();
        let found =
            self.issuers.iter().enumerate().find(|(_, known)| Some(known.issuer.name.as_str()) == name);
        found.ok_or_else(|| match name {
            Some(name) => {
                let name: String = name.escape_debug().take(128).collect();
                Wrong::new(Refusal::UnknownIssuer, format!("nobody here is `{name}`"))
            }
            None => Wrong::new(Refusal::UnknownIssuer, "it has no `iss`"),
        })
    }

    fn verify(
        &self,
        token: Token<'_>,
        number: usize,
        keys: &KeySet,
        set: Option<u64>,
        id: &[u8; 32],
    ) -> Result<Arc<Verified>, Wrong> {
        let issuer = &self.issuers[number].issuer;
        keys.verify(&token, issuer.algorithm(&token)?)?;
        issuer.check(&token, issuer::seconds(self.clock.wall()))?;
        let (validity, binding) = (issuer.validity(&token)?, Binding::of(&token));
        let principal = issuer.principal(token)?;
        let verified = Arc::new(Verified { principal, issuer: number, set, validity, binding });
        self.verified.insert(*id, verified.clone());
        Ok(verified)
    }

    /// What is remembered of a token, if it holds still: by the time, and by the keys that there are now.
    fn remembered(&self, id: &[u8; 32]) -> Result<Option<Arc<Verified>>, Wrong> {
        let Some(verified) = self.verified.get(id) else { return Ok(None) };
        let now = issuer::seconds(self.clock.wall());
        let (begin, end) = verified.validity;
        if now >= end {
            self.verified.invalidate(id);
            return Err(Wrong::new(Refusal::Expired, "it has ended"));
        }
        let remote = self.issuers[verified.issuer].remote.as_ref();
        let same_keys = verified.set.is_none() || remote.and_then(Remote::number) == verified.set;
        Ok(Some(verified).filter(|_| same_keys && begin <= now))
    }

    /// Lets a request go on, with its principal if it has one.
    fn pass(&self, exchange: &mut Exchange, verified: Option<&Verified>) -> Result<Decision, PluginError> {
        match verified {
            Some(verified) => {
                if let Some(Err(wrong)) = verified.binding.as_ref().map(|binding| binding.check(exchange)) {
                    return Ok(self.refuse(exchange, &wrong, None));
                }
                self.counts.verified.increment();
                exchange.set_principal(verified.principal.clone());
            }
            None => self.counts.anonymous.increment(),
        }
        if !self.forward {
            self.places.iter().try_for_each(|place| place.clear(exchange))?;
        }
        Ok(Decision::Continue)
    }

    fn refuse(&self, exchange: &mut Exchange, wrong: &Wrong, later: Option<Duration>) -> Decision {
        let Wrong { refusal, why } = wrong;
        self.counts.refused[*refusal as usize].increment();
        exchange.rests_on(why);
        let reply = match refusal {
            Refusal::KeysUnavailable => {
                let seconds = later.unwrap_or_default().as_millis().div_ceil(1000).max(1) as u64;
                Reply::deny(StatusCode::SERVICE_UNAVAILABLE, refusal.reason())
                    .header(RETRY_AFTER, HeaderValue::from(seconds))
            }
            // RFC 6750, 3.1: who has shown nothing is told of no error.
            Refusal::Missing => challenge(*refusal, "Bearer"),
            _ => challenge(*refusal, "Bearer error=\"invalid_token\""),
        };
        Decision::Respond(Box::new(reply))
    }

    /// Brings the metric of the keys' age up to date.
    fn show_age(&self) {
        let remotes = self.issuers.iter().filter_map(|known| known.remote.as_ref());
        let oldest = remotes.map(|remote| remote.fetched_at()).min().unwrap_or_default();
        self.counts.oldest.add(oldest - self.counts.shown.swap(oldest, Relaxed));
    }
}

fn challenge(refusal: Refusal, challenge: &'static str) -> Reply {
    Reply::deny(StatusCode::UNAUTHORIZED, refusal.reason())
        .header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

fn unknown_key(token: &Token<'_>) -> Wrong {
    match token.kid() {
        Some(kid) => {
            Wrong::new(Refusal::UnknownKey, format!("the issuer has no key `{}`", kid.escape_debug()))
        }
        None => Wrong::new(Refusal::UnknownKey, "the issuer has no key for its algorithm"),
    }
}

/// What a token goes by, so that none is kept.
fn id(text: &str) -> [u8; 32] {
    let mut id = [0; 32];
    id.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    id
}

impl PluginType for Jwt {
    const KIND: &'static str = "jwt";
    const SUMMARY: &'static str = "knows callers by a signed token that somebody else has issued";
    const EXAMPLE: &'static str = "\
- jwt:
    issuers:
      - issuer: https://login.example.com/
        audience: [orders]
        algorithms: [RS256, PS256]
        keys: [{ discovery: { upstream: login } }]
        typ: [at+jwt]
        require: { azp: web }
        roles: realm_access.roles
      - issuer: partner
        audience: [orders]
        algorithms: [HS256]
        keys: [{ secret: env:PARTNER_SECRET }]
    from: [bearer, { cookie: session }]
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Config { issuers, from, max_token, optional, forward } = config;
        if issuers.is_empty() {
            return Err(BuildError::at("issuers", "whose tokens are taken must be said"));
        }
        if issuers.len() > MAX_ISSUERS {
            let message = format!("{} issuers are too many, {MAX_ISSUERS} are the most", issuers.len());
            return Err(BuildError::at("issuers", message));
        }
        if from.is_empty() {
            return Err(BuildError::at("from", "a token has to stand somewhere"));
        }
        if max_token.0 > MAX_TOKEN || max_token.0 == 0 {
            return Err(BuildError::at("max_token", "it is one byte at least and `64KiB` at most"));
        }
        let places = Place::list(from)?;
        let fetched = context.counters("fetches", "fetches of keys, by what came of them", ["outcome"]);
        let fetches = Fetches { ok: fetched.with(["ok"]), failed: fetched.with(["failed"]) };
        let (mut known, mut unkept) = (Vec::<Issuer>::new(), Vec::new());
        for (number, config) in issuers.into_iter().enumerate() {
            let at = format!("issuers[{number}]");
            let (issuer, fetched) = config.build(&at, context)?;
            if known.iter().any(|other| other.name == issuer.name) {
                return Err(BuildError::at(
                    format!("{at}.issuer"),
                    format!("`{}` is there already", issuer.name),
                ));
            }
            if let Some(fetched) = fetched {
                let at = format!("{at}.keys");
                let fetches = fetches.clone();
                let remote =
                    Unkept::new(&at, &issuer.name, fetched.config, fetched.is_discovery, fetches, context)?;
                unkept.push((number, remote));
            }
            known.push(issuer);
        }
        let keep = context.shared(Keep::default);
        let (numbers, unkept): (Vec<_>, Vec<_>) = unkept.into_iter().unzip();
        let mut remotes = numbers.into_iter().zip(Unkept::keep(unkept, &keep)).peekable();
        let issuers = known.into_iter().enumerate().map(|(number, issuer)| {
            let remote = remotes.next_if(|(of, _)| *of == number).map(|(_, remote)| remote);
            Known { issuer, remote }
        });
        let refused = context.counters("refused", "requests refused, by reason", ["reason"]);
        Ok(Jwt {
            issuers: issuers.collect(),
            places,
            max_token: max_token.0,
            optional,
            forward,
            verified: Cache::builder().max_capacity(REMEMBERED).build(),
            clock: context.clock(),
            counts: Counts {
                verified: context.counter("verified", "requests with a token that holds"),
                remembered: context.counter("remembered", "tokens that had been verified before"),
                anonymous: context.counter("anonymous", "requests without a token that passed"),
                refused: Refusal::ALL.map(|refusal| refused.with([refusal.reason()])),
                oldest: context
                    .gauge("keys_fetched", "when the oldest keys were fetched, in seconds since 1970"),
                shown: AtomicI64::new(0),
            },
        })
    }
}

impl Plugin for Jwt {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let (asked, judged) = (self.clock.now(), self.find(exchange));
        let (text, id, judged) = match judged {
            Ok(Some(text)) => {
                let id = id(&text);
                let judged = self.judge(&text, &id, asked);
                // Only who waits takes the token along.
                let text = matches!(judged, Ok(Judged::AskKeys(_))).then(|| text.into_owned());
                (text, id, judged)
            }
            Ok(None) if self.optional => return self.pass(exchange, None).into(),
            Ok(None) => {
                let wrong = Wrong::new(Refusal::Missing, "there is no token");
                return self.refuse(exchange, &wrong, None).into();
            }
            Err(wrong) => return self.refuse(exchange, &wrong, None).into(),
        };
        match (judged, text) {
            (Ok(Judged::Holds(verified)), _) => self.pass(exchange, Some(&verified)).into(),
            (Err(wrong), _) => self.refuse(exchange, &wrong, None).into(),
            (Ok(Judged::AskKeys(number)), text) => Hook::Wait(Box::pin(async move {
                let text = text.unwrap_or_default();
                let judged = self.judge_later(&text, &id, asked, number).await;
                self.show_age();
                match judged {
                    Ok(verified) => self.pass(exchange, Some(&verified)),
                    Err((wrong, later)) => Ok(self.refuse(exchange, &wrong, later)),
                }
            })),
        }
    }
}

#[cfg(test)]
mod tests;
