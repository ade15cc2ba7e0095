//! Who issues tokens, and what is asked of theirs.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, AlgorithmFamily};
use portcullis_plugin::{BuildContext, BuildError, Principal, SecretRef, Span};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Refusal;
use super::keys::{Key, KeySet, MAX_KEYS, Origin};
use super::remote::RemoteConfig;
use super::token::{ALGORITHMS, Token, Wrong};
use crate::claims::{claim, texts};

/// Moments beyond this are no dates: the year 9999.
const MAX_DATE: f64 = 253_402_300_800.0;

/// An issuer, and what is asked of its tokens.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct IssuerConfig {
    /// Its name, exactly as tokens have it in `iss`; with `discovery` a URL.
    issuer: String,
    /// For whom tokens must be: one of these stands in `aud`. An empty list takes tokens that are for anybody.
    audience: Vec<String>,
    /// What tokens may be signed with, all of one type: `HS256`, `HS384`, `HS512`; `RS256`, `RS384`, `RS512`, `PS256`, `PS384`,
    /// `PS512`; `ES256`, `ES384`; `EdDSA`.
    algorithms: Vec<String>,
    /// Where the keys are: `{ pem: .. }`; `{ jwk: .. }`, a JWK or a set of them; `{ file: keys.json }`, of either, watched;
    /// `{ secret: env:NAME }`, shared; `{ url: { upstream: login, path: /jwks } }`, a set that is fetched, by default from
    /// `/.well-known/jwks.json`; `{ discovery: { upstream: login } }`, a set where the issuer's metadata says. The last two may
    /// have `timeout` (`2s`), `refresh` (`10m`: how long keys are good), `stale` (`1h`: how long beyond that if they cannot be
    /// fetched), `window` (`5s`: the time between fetches), `wait` (`1s`: how long a request with an unknown key waits for the
    /// window to pass), `absent` (`1m`: how long a key that was looked for in vain counts as none); `discovery` also
    /// `keys_upstream`, for a set on another host than the issuer.
    keys: Vec<KeyConfig>,
    /// What `typ` of the header may be, e.g. `[at+jwt]` (RFC 9068). Default: anything.
    #[serde(default)]
    typ: Vec<String>,
    /// By how much the issuer's clock may be off. Default: `30s`.
    #[serde(default = "default_leeway")]
    leeway: Span,
    /// Claims that must be there, with their values; `null` stands for any. Default: none.
    #[serde(default)]
    require: Map<String, Value>,
    /// The claim that says who calls. Default: `sub`.
    #[serde(default = "default_id")]
    id: String,
    /// The claim that holds roles, e.g. `realm_access.roles`. Default: none.
    roles: Option<String>,
    /// The claim that holds scopes. Default: `scope`.
    #[serde(default = "default_scopes")]
    scopes: String,
}

/// A source of keys.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum KeyConfig {
    /// Public keys as PEM.
    Pem(String),
    /// A JWK, or a set of them (RFC 7517).
    Jwk(Map<String, Value>),
    /// A file of PEM, a JWK or a set of them; it is watched.
    File(String),
    /// A shared key, as it is: 32 bytes at least for `HS256`, 48 for `HS384`, 64 for `HS512`.
    Secret(SecretRef),
    /// A set that is fetched from a path of an upstream.
    Url(RemoteConfig),
    /// A set that is fetched from where the issuer's metadata says (OpenID Connect Discovery 1.0).
    Discovery(RemoteConfig),
}

fn default_leeway() -> Span {
    Span::seconds(30)
}

fn default_id() -> String {
    "sub".to_owned()
}

fn default_scopes() -> String {
    "scope".to_owned()
}

/// An issuer as tokens are judged by it.
#[derive(Debug)]
pub(super) struct Issuer {
    pub(super) name: String,
    pub(super) keys: KeySet,
    audience: Vec<String>,
    algorithms: Vec<Algorithm>,
    typ: Vec<String>,
    leeway: Duration,
    require: Map<String, Value>,
    id: String,
    roles: Option<String>,
    scopes: String,
}

/// Where an issuer's keys are fetched, if they are.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    pub(super) config: RemoteConfig,
    pub(super) is_discovery: bool,
}

impl IssuerConfig {
    pub(super) fn build(
        self,
        at: &str,
        context: &mut BuildContext<'_>,
    ) -> Result<(Issuer, Option<Fetched>), BuildError> {
        let wrong = |field: &str, message: String| BuildError::at(format!("{at}.{field}"), message);
        if self.issuer.is_empty() {
            return Err(wrong("issuer", "who issues the tokens must be said".to_owned()));
        }
        let algorithms = algorithms(&self.algorithms).map_err(|(number, message)| {
            let known = ALGORITHMS.map(|(name, _)| name).join("`, `");
            wrong(&format!("algorithms{number}"), message).help(format!("there is `{known}`"))
        })?;
        if self.audience.is_empty() {
            context.warn(&format!("{at}.audience"), "tokens that are for somebody else are taken too");
        }
        if self.keys.is_empty() {
            return Err(wrong("keys", "without keys no token holds".to_owned()));
        }
        let (mut keys, mut remote) = (KeySet::default(), None);
        for (number, source) in self.keys.into_iter().enumerate() {
            let at = format!("{at}.keys[{number}]");
            let read = |name: &str, read: Result<KeySet, String>| {
                read.map_err(|message| BuildError::at(format!("{at}.{name}"), message))
            };
            match source {
                KeyConfig::Pem(pem) => keys.add(read("pem", KeySet::read(pem.as_bytes(), Origin::Config))?),
                KeyConfig::Jwk(jwk) => keys.add(read("jwk", KeySet::from_object(&jwk, Origin::Config))?),
                KeyConfig::File(path) => {
                    let file = context.data_file(&format!("{at}.file"), &path)?;
                    let set = KeySet::read(&file.bytes, Origin::File);
                    keys.add(read("file", set.map_err(|message| format!("`{path}`: {message}")))?);
                }
                KeyConfig::Secret(secret) => {
                    keys.push(Key::shared(&context.secret(&format!("{at}.secret"), &secret)?));
                }
                KeyConfig::Url(config) => {
                    set_once(&mut remote, Fetched { config, is_discovery: false }, &at)?
                }
                KeyConfig::Discovery(config) => {
                    set_once(&mut remote, Fetched { config, is_discovery: true }, &at)?;
                }
            }
        }
        if keys.len() > MAX_KEYS {
            return Err(wrong("keys", format!("{} keys are too many, {MAX_KEYS} are the most", keys.len())));
        }
        if remote.is_some() && algorithms[0].family() == AlgorithmFamily::Hmac {
            return Err(wrong("keys", "shared keys are not fetched".to_owned()));
        }
        if remote.is_none() && !keys.has_any_for(&algorithms) {
            let message = "no key is for one of the algorithms, by its type, its length or its own word";
            return Err(wrong("keys", message.to_owned()));
        }
        let issuer = Issuer {
            name: self.issuer,
            keys,
            audience: self.audience,
            algorithms,
            typ: self.typ.iter().map(|typ| media_type(typ).to_ascii_lowercase()).collect(),
            leeway: self.leeway.0,
            require: self.require,
            id: self.id,
            roles: self.roles,
            scopes: self.scopes,
        };
        Ok((issuer, remote))
    }
}

fn set_once(remote: &mut Option<Fetched>, fetched: Fetched, at: &str) -> Result<(), BuildError> {
    match remote.replace(fetched) {
        None => Ok(()),
        Some(_) => Err(BuildError::at(at, "an issuer's keys are fetched from one place")),
    }
}

/// The algorithms of a list, which are all of one family; the error has the place in the list.
fn algorithms(names: &[String]) -> Result<Vec<Algorithm>, (String, String)> {
    let mut found: Vec<Algorithm> = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let place = format!("[{number}]");
        let Some((_, algorithm)) = ALGORITHMS.iter().find(|(known, _)| known == name) else {
            return Err((place, format!("`{name}` is no algorithm that is taken")));
        };
        if let Some(first) = found.first()
            && first.family() != algorithm.family()
        {
            let message =
                format!("{first:?} and {algorithm:?} take keys of different types; an issuer has one");
            return Err((place, message));
        }
        found.push(*algorithm);
    }
    if found.is_empty() {
        return Err((String::new(), "what tokens may be signed with must be said".to_owned()));
    }
    Ok(found)
}

/// A media type without the `application/` that may be left out (RFC 7515, 4.1.9).
fn media_type(typ: &str) -> &str {
    match typ.split_at_checked("application/".len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application/") => rest,
        _ => typ,
    }
}

/// What may be said of a token once its signature holds: the name of what is checked, and the check.
pub(super) type Check = (&'static str, fn(&Issuer, &Token<'_>, f64) -> Result<(), Wrong>);

impl Issuer {
    /// What is checked beside the signature, in this order.
    pub(super) const CHECKS: [Check; 7] = [
        ("typ", Issuer::typ),
        ("aud", Issuer::audience),
        ("exp", |issuer, token, now| issuer.expires(token, now)),
        ("nbf", |issuer, token, now| issuer.begins(token, now, "nbf")),
        ("iat", |issuer, token, now| issuer.begins(token, now, "iat")),
        ("required claims", Issuer::required),
        ("who calls", |issuer, token, _| issuer.id(token).map(|_| ())),
    ];

    /// The algorithm of a token, if it is one of the issuer's.
    pub(super) fn algorithm(&self, token: &Token<'_>) -> Result<Algorithm, Wrong> {
        token.algorithm.filter(|algorithm| self.algorithms.contains(algorithm)).ok_or_else(|| {
            let said = token.header.get("alg").and_then(Value::as_str).unwrap_or_default();
            let allowed = &self.algorithms;
            Wrong::new(
                Refusal::Algorithm,
                format!("`{}` is not among {allowed:?}", said.escape_debug().take(32).collect::<String>()),
            )
        })
    }

    /// Everything but the signature.
    pub(super) fn check(&self, token: &Token<'_>, now: f64) -> Result<(), Wrong> {
        Self::CHECKS.iter().try_for_each(|(_, check)| check(self, token, now))
    }

    fn typ(&self, token: &Token<'_>, _: f64) -> Result<(), Wrong> {
        if self.typ.is_empty() {
            return Ok(());
        }
        let typ = token.header.get("typ").and_then(Value::as_str);
        match typ.map(|typ| media_type(typ).to_ascii_lowercase()) {
            Some(typ) if self.typ.contains(&typ) => Ok(()),
            Some(typ) => Err(Wrong::new(Refusal::Claim, format!("`{typ}` is not among {:?}", self.typ))),
            None => Err(Wrong::new(
                Refusal::Claim,
                format!("there is none, and it must be one of {:?}", self.typ),
            )),
        }
    }

    fn audience(&self, token: &Token<'_>, _: f64) -> Result<(), Wrong> {
        if self.audience.is_empty() {
            return Ok(());
        }
        let is_meant =
            |value: &Value| value.as_str().is_some_and(|text| self.audience.iter().any(|one| one == text));
        let found = match token.claims.get("aud") {
            Some(Value::Array(all)) => all.iter().all(Value::is_string) && all.iter().any(is_meant),
            Some(one) => is_meant(one),
            None => return Err(Wrong::new(Refusal::Audience, "there is none")),
        };
        match found {
            true => Ok(()),
            false => Err(Wrong::new(Refusal::Audience, format!("it is for none of {:?}", self.audience))),
        }
    }

    fn expires(&self, token: &Token<'_>, now: f64) -> Result<(), Wrong> {
        let Some(end) = date(token, "exp")? else {
            return Err(Wrong::new(
                Refusal::Claim,
                "there is none, and a token that holds for ever is not taken",
            ));
        };
        match end + self.leeway.as_secs_f64() > now {
            true => Ok(()),
            false => Err(Wrong::new(Refusal::Expired, format!("it ended {} s ago", (now - end) as u64))),
        }
    }

    fn begins(&self, token: &Token<'_>, now: f64, name: &str) -> Result<(), Wrong> {
        match date(token, name)? {
            Some(begin) if begin - self.leeway.as_secs_f64() > now => {
                Err(Wrong::new(Refusal::NotYet, format!("it begins in {} s", (begin - now) as u64)))
            }
            _ => Ok(()),
        }
    }

    fn required(&self, token: &Token<'_>, _: f64) -> Result<(), Wrong> {
        for (name, value) in &self.require {
            match claim(&token.claims, name) {
                None | Some(Value::Null) => {
                    return Err(Wrong::new(Refusal::Claim, format!("there is no `{name}`")));
                }
                Some(found) if !value.is_null() && found != value => {
                    return Err(Wrong::new(Refusal::Claim, format!("`{name}` is not {value}")));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn id<'t>(&self, token: &'t Token<'_>) -> Result<&'t str, Wrong> {
        let id = claim(&token.claims, &self.id).and_then(Value::as_str).filter(|id| !id.is_empty());
        id.ok_or_else(|| Wrong::new(Refusal::Claim, format!("`{}` is no text", self.id)))
    }

    /// Who calls with a token that was checked.
    pub(super) fn principal(&self, token: Token<'_>) -> Result<Principal, Wrong> {
        let owned = |path: &str| texts(&token.claims, path).into_iter().map(str::to_owned).collect();
        Ok(Principal {
            id: self.id(&token)?.to_owned(),
            issuer: self.name.clone(),
            roles: self.roles.as_deref().map(owned).unwrap_or_default(),
            scopes: owned(&self.scopes),
            claims: token.claims,
        })
    }

    /// From when to when a token that was checked holds.
    pub(super) fn validity(&self, token: &Token<'_>) -> Result<(f64, f64), Wrong> {
        let leeway = self.leeway.as_secs_f64();
        let begin = date(token, "nbf")?.unwrap_or(0.0).max(date(token, "iat")?.unwrap_or(0.0));
        Ok((begin - leeway, date(token, "exp")?.unwrap_or(0.0) + leeway))
    }
}

/// A claim that is a moment, in seconds since 1970 (RFC 7519, 2).
fn date(token: &Token<'_>, name: &str) -> Result<Option<f64>, Wrong> {
    let Some(value) = token.claims.get(name) else { return Ok(None) };
    match value.as_f64() {
        Some(seconds) if (0.0..MAX_DATE).contains(&seconds) => Ok(Some(seconds)),
        _ => Err(Wrong::new(Refusal::Claim, format!("`{name}` is no date"))),
    }
}

/// A moment as tokens write it.
pub(super) fn seconds(now: SystemTime) -> f64 {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
