//! `api_key`: knows callers by a key that they send.
//!
//! ```yaml
//! - api_key:
//!     hash_key: env:API_KEY_HASH_KEY
//!     from: [bearer, { header: x-api-key }]
//!     keys:
//!       - hash: hmac-sha256:YstGVsybwF2d0FylsVSFTqQ1xYXbWtUVgytgeV_xc4o
//!         id: ann
//!         roles: [reader]
//!         scopes: ["orders:read"]
//!         expires: 2031-01-31T00:00:00Z
//!         metadata: { plan: gold }
//!     files: [keys.jsonl]
//! ```
//!
//! Keys are kept as hashes alone, HMAC-SHA256 (RFC 2104) under a secret that stands elsewhere: whoever reads the
//! configuration can neither use a key nor try out guesses. `portcullis key new` makes a key and the line to keep of it; that
//! line is an entry of `keys` as well as of a file, which has one a line (JSON, `#` begins a comment) and is watched.
//! Several keys may have the same `id`, so that one can be replaced while the other still holds.
//!
//! The first place of `from` that has a key is judged. What was judged makes the request's principal, with `metadata` as its
//! claims, and all places are emptied before the request goes on, unless `forward` says otherwise. A request without a key is
//! refused unless `anonymous` lets it pass; one with a key that is wrong, or with two in one place, is refused always.
//!
//! Reasons: `api_key.missing`, `api_key.malformed`, `api_key.unknown`, `api_key.expired` (401).

mod known;

use std::collections::HashMap;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::StatusCode;
use http::header::{HeaderValue, WWW_AUTHENTICATE};
use portcullis_plugin::{
    BuildContext, BuildError, Clock, Counter, Exchange, Hook, HookName, Needs, Plugin, PluginError,
    PluginType, Reply, SecretRef,
};
use schemars::JsonSchema;
use serde::Deserialize;

use self::known::{Digest, KeyConfig, Known};
pub use self::known::{HashKey, NewKey};
use crate::credentials::{Place, PlaceConfig, Unclear};

/// Longer texts are no keys, and not worth a hash.
const MAX_KEY: usize = 512;

/// Knows callers by their keys.
pub(crate) struct ApiKey {
    hash_key: HashKey,
    places: Box<[Place]>,
    /// By the first bytes of their hashes.
    known: HashMap<[u8; 8], Vec<Known>>,
    clock: Clock,
    anonymous: bool,
    forward: bool,
    challenge: HeaderValue,
    counts: Counts,
}

/// Where keys are looked for, and which there are.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The secret under which keys are hashed, at least 32 bytes.
    hash_key: SecretRef,
    /// Where a key may stand, first things first: `bearer`, for `Authorization: Bearer`; `{ header: x-api-key }`; `{ query:
    /// api_key }`; `{ cookie: key }`. Default: `[{ header: x-api-key }]`.
    #[serde(default = "default_places")]
    from: Vec<PlaceConfig>,
    /// The keys. Default: none.
    #[serde(default)]
    keys: Vec<KeyConfig>,
    /// Files of further keys. Default: none.
    #[serde(default)]
    files: Vec<String>,
    /// Whether requests without a key pass, without a principal. Default: `false`.
    #[serde(default)]
    anonymous: bool,
    /// Whether the key goes on to the upstream. Default: `false`.
    #[serde(default)]
    forward: bool,
}

fn default_places() -> Vec<PlaceConfig> {
    vec![PlaceConfig::Header("x-api-key".to_owned())]
}

/// Requests by what became of them.
struct Counts {
    accepted: Counter,
    anonymous: Counter,
    /// In the order of [`Refusal::ALL`].
    refused: [Counter; 4],
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Missing,
    Malformed,
    Unknown,
    Expired,
}

impl Refusal {
    const ALL: [Refusal; 4] = [Refusal::Missing, Refusal::Malformed, Refusal::Unknown, Refusal::Expired];

    fn reason(self) -> &'static str {
        match self {
            Refusal::Missing => "api_key.missing",
            Refusal::Malformed => "api_key.malformed",
            Refusal::Unknown => "api_key.unknown",
            Refusal::Expired => "api_key.expired",
        }
    }
}

impl From<Unclear> for Refusal {
    fn from(_: Unclear) -> Self {
        Refusal::Malformed
    }
}

impl ApiKey {
    /// The decision: who calls, nobody if that is allowed.
    fn judge(&self, exchange: &Exchange) -> Result<Option<&Known>, (Refusal, Option<&Known>)> {
        let request = exchange.request();
        let found = self.places.iter().find_map(|place| place.find(request).transpose());
        let Some(key) = found.transpose().map_err(|unclear| (unclear.into(), None))? else {
            return if self.anonymous { Ok(None) } else { Err((Refusal::Missing, None)) };
        };
        let known = self.look_up(&key).ok_or((Refusal::Unknown, None))?;
        match known.expires {
            Some(expires) if expires <= self.clock.wall() => Err((Refusal::Expired, Some(known))),
            _ => Ok(Some(known)),
        }
    }

    fn look_up(&self, key: &str) -> Option<&Known> {
        if key.len() > MAX_KEY {
            return None;
        }
        let digest = self.hash_key.digest(key);
        let is_it = |known: &&Known| verify_slices_are_equal(&known.digest, &digest).is_ok();
        self.known.get(&index(&digest))?.iter().find(is_it)
    }

    fn add(&mut self, at: &str, known: Known) -> Result<(), BuildError> {
        let alike = self.known.entry(index(&known.digest)).or_default();
        if alike.iter().any(|other| other.digest == known.digest) {
            return Err(BuildError::at(at, format!("the key of `{}` is there already", known.principal.id)));
        }
        alike.push(known);
        Ok(())
    }

    fn clear(&self, exchange: &mut Exchange) -> Result<(), PluginError> {
        match self.forward {
            true => Ok(()),
            false => self.places.iter().try_for_each(|place| place.clear(exchange)),
        }
    }
}

fn index(digest: &Digest) -> [u8; 8] {
    let mut index = [0; 8];
    index.copy_from_slice(&digest[..8]);
    index
}

impl PluginType for ApiKey {
    const KIND: &'static str = "api_key";
    const SUMMARY: &'static str = "knows callers by a key that they send";
    const EXAMPLE: &'static str = "\
- api_key:
    hash_key: env:API_KEY_HASH_KEY
    from: [bearer, { header: x-api-key }]
    keys:
      - hash: hmac-sha256:YstGVsybwF2d0FylsVSFTqQ1xYXbWtUVgytgeV_xc4o
        id: ann
        roles: [reader]
        scopes: ['orders:read']
        expires: 2031-01-31T00:00:00Z
        metadata: { plan: gold }
    files: [keys.jsonl]
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let Config { hash_key, from, keys, files, anonymous, forward } = config;
        let secret = context.secret("hash_key", &hash_key)?;
        let hash_key = HashKey::new(&secret).map_err(|message| {
            BuildError::at("hash_key", message).help("make one with `openssl rand -base64 32`")
        })?;
        if from.is_empty() {
            return Err(BuildError::at("from", "a key has to stand somewhere"));
        }
        let places = Place::list(from)?;
        if keys.is_empty() && files.is_empty() {
            return Err(
                BuildError::at("", "there are no keys").help("`portcullis key new --id ann` makes one")
            );
        }
        let challenge = if places.contains(&Place::Bearer) { "Bearer" } else { "ApiKey" };
        let refused = context.counters("refused", "requests refused, by reason", ["reason"]);
        let counts = Counts {
            accepted: context.counter("accepted", "requests with a key that holds"),
            anonymous: context.counter("anonymous", "requests without a key that passed"),
            refused: Refusal::ALL.map(|refusal| refused.with([refusal.reason()])),
        };
        let mut plugin = ApiKey {
            hash_key,
            places,
            known: HashMap::new(),
            clock: context.clock(),
            anonymous,
            forward,
            challenge: HeaderValue::from_static(challenge),
            counts,
        };
        let issuer = context.name().clone();
        for (number, key) in keys.into_iter().enumerate() {
            let at = format!("keys[{number}]");
            let known = key
                .known(&issuer)
                .map_err(|(field, message)| BuildError::at(format!("{at}.{field}"), message))?;
            plugin.add(&at, known)?;
        }
        for (number, path) in files.iter().enumerate() {
            let at = format!("files[{number}]");
            let file = context.data_file(&at, path)?;
            for known in known::read(&at, &file, &issuer)? {
                plugin.add(&at, known)?;
            }
        }
        Ok(plugin)
    }
}

impl Plugin for ApiKey {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let principal = match self.judge(exchange) {
            Ok(known) => known.map(|known| known.principal.clone()),
            Err((refusal, known)) => {
                self.counts.refused[refusal as usize].increment();
                if let Some(known) = known {
                    exchange.rests_on(&known.principal.id);
                }
                let reply = Reply::deny(StatusCode::UNAUTHORIZED, refusal.reason());
                return Hook::respond(reply.header(WWW_AUTHENTICATE, self.challenge.clone()));
            }
        };
        match principal {
            Some(principal) => {
                self.counts.accepted.increment();
                exchange.set_principal(principal);
            }
            None => self.counts.anonymous.increment(),
        }
        match self.clear(exchange) {
            Ok(()) => Hook::CONTINUE,
            Err(error) => Err(error).into(),
        }
    }
}

#[cfg(test)]
mod tests;
