//! `csrf`: refuses requests that a page of another site has a browser send.
//!
//! ```yaml
//! - csrf:
//!     trusted: [https://app.example.com]
//!     cookies: [session]
//!     token: { key: env:CSRF_KEY, bind: { cookie: session } }
//! ```
//!
//! Browsers send a user's cookies along with whatever any page asks of the API. `GET`, `HEAD` and `OPTIONS` pass, for they
//! should change nothing; so does what no browser sends. Of all else, WebSocket handshakes among it, browsers say where it comes
//! from: `Sec-Fetch-Site` (Fetch Metadata) has to be `same-origin` or `none`; of a browser that does not send it, `Origin` has
//! to be of the host that is asked, and of its scheme if that is `https`. Pages of origins in `trusted`, written as for `cors`,
//! may ask as well.
//!
//! With `cookies`, only requests that carry one of these are judged: what has no cookie can't misuse one. Name the cookies by
//! which users are known. Without it all requests are judged, logins among them.
//!
//! `token` asks for more, for browsers that say nothing and for pages of the same site that are not to be trusted: a cookie
//! that the gateway sets with the response to a `GET` of a browser that has none, and the same value in a header, which pages
//! of other origins can neither read nor set. The value is signed (HMAC-SHA256, RFC 2104), and bound to a session where `bind`
//! says by what, so that nobody gets past with a token of his own.
//!
//! Reasons: `csrf.cross_site`, `csrf.no_origin`, `csrf.token_missing`, `csrf.token_invalid` (403).

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{CACHE_CONTROL, HOST, HeaderName, HeaderValue, ORIGIN, SET_COOKIE, UPGRADE};
use http::{Method, StatusCode};
use portcullis_plugin::{
    BuildContext, BuildError, Counter, Exchange, Hook, HookName, Needs, Plugin, PluginError, PluginType,
    Reply, Request, SecretRef,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::names::header_name;
use crate::origins::{OriginRule, allows, is_https, remark};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The shortest secret: as long as the hash (RFC 2104, 3).
const MIN_SECRET: usize = 32;

/// Random bytes of a token.
const RANDOM: usize = 16;

/// Bytes of a token's signature.
const SIGNATURE: usize = 32;

/// Refuses what other sites have browsers send.
pub(crate) struct Csrf {
    trusted: Box<[OriginRule]>,
    cookies: Box<[String]>,
    without_origin: Missing,
    token: Option<Token>,
    /// In the order of [`Refusal::ALL`].
    refused: [Counter; 4],
}

/// Who may ask, and what for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Origins whose pages may ask though they are not the API's own: exact (`https://app.example.com`), any subdomain
    /// (`https://*.example.com`), or a regular expression for the whole origin between slashes. Default: none.
    #[serde(default)]
    trusted: Vec<String>,
    /// Cookies by which users are known: requests without any of them pass. Default: none, and all are judged.
    #[serde(default)]
    cookies: Vec<String>,
    /// What becomes of requests that say nothing of where they come from, as programs that are no browsers send them: `allow`
    /// or `deny`. Default: `allow`.
    #[serde(default)]
    without_origin: Missing,
    /// A token that requests have to carry besides. Default: none.
    token: Option<TokenConfig>,
}

/// What becomes of requests of which nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Missing {
    /// They pass.
    #[default]
    Allow,
    /// They are refused.
    Deny,
}

/// A token that pages read from a cookie and send in a header.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TokenConfig {
    /// The secret by which tokens are signed, at least 32 bytes.
    key: SecretRef,
    /// The cookie's name. With the prefix `__Host-` browsers take it over TLS alone, and from this host alone.
    /// Default: `__Host-csrf`.
    #[serde(default = "default_cookie")]
    cookie: String,
    /// The header in which pages send it. Default: `x-csrf-token`.
    #[serde(default = "default_header")]
    header: String,
    /// What a token belongs to: `principal`, or `{ cookie: session }`. Default: nothing, any token of the gateway will do.
    bind: Option<BindConfig>,
}

fn default_cookie() -> String {
    "__Host-csrf".to_owned()
}

fn default_header() -> String {
    "x-csrf-token".to_owned()
}

/// What a token belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum BindConfig {
    /// Who calls, as a plugin before this one has found out.
    Principal,
    /// The value of a cookie.
    Cookie(String),
}

struct Token {
    key: hmac::Key,
    cookie: String,
    header: HeaderName,
    bind: Option<BindConfig>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    CrossSite,
    NoOrigin,
    TokenMissing,
    TokenInvalid,
}

impl Refusal {
    const ALL: [Refusal; 4] =
        [Refusal::CrossSite, Refusal::NoOrigin, Refusal::TokenMissing, Refusal::TokenInvalid];

    fn reason(self) -> &'static str {
        match self {
            Refusal::CrossSite => "csrf.cross_site",
            Refusal::NoOrigin => "csrf.no_origin",
            Refusal::TokenMissing => "csrf.token_missing",
            Refusal::TokenInvalid => "csrf.token_invalid",
        }
    }
}

/// Where a request comes from, as its browser says.
enum Source {
    Own,
    Other,
    Unknown,
}

impl Csrf {
    /// The decision.
    fn judge(&self, exchange: &Exchange) -> Result<(), Refusal> {
        let request = exchange.request();
        if is_safe(request) || !self.concerns(request) {
            return Ok(());
        }
        match source(exchange) {
            Source::Own => {}
            Source::Other if self.is_trusted(request) => {}
            Source::Other => return Err(Refusal::CrossSite),
            Source::Unknown if self.without_origin == Missing::Deny => return Err(Refusal::NoOrigin),
            Source::Unknown => {}
        }
        match &self.token {
            Some(token) => token.judge(exchange),
            None => Ok(()),
        }
    }

    fn concerns(&self, request: &Request) -> bool {
        self.cookies.is_empty() || self.cookies.iter().any(|name| request.cookie(name).is_some())
    }

    fn is_trusted(&self, request: &Request) -> bool {
        let mut origins = request.headers().get_all(ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (Some(origin), None) => allows(&self.trusted, origin),
            _ => false,
        }
    }
}

/// Whether a request is to change nothing (RFC 9110, 9.2.1). A handshake of another protocol opens a way for whatever
/// comes after it.
fn is_safe(request: &Request) -> bool {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    is_safe && !request.headers().contains_key(UPGRADE)
}

fn source(exchange: &Exchange) -> Source {
    let headers = exchange.request().headers();
    let mut sites = headers.get_all(SEC_FETCH_SITE).iter();
    match (sites.next().map(HeaderValue::as_bytes), sites.next()) {
        (Some(b"same-origin" | b"none"), None) => return Source::Own,
        (None, _) => {}
        _ => return Source::Other,
    }
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => Source::Unknown,
        (Some(origin), None) if is_own(origin, exchange) => Source::Own,
        _ => Source::Other,
    }
}

/// Whether an origin is that of the host that is asked. Where TLS ends before a proxy that does not say so, the
/// schemes differ.
fn is_own(origin: &HeaderValue, exchange: &Exchange) -> bool {
    let host = exchange.request().header(&HOST);
    let (Ok(origin), Some(host)) = (origin.to_str(), host) else { return false };
    let (scheme, authority) = match origin.split_once("://") {
        Some(("https", authority)) => ("https", authority),
        Some(("http", authority)) if !is_https(exchange) => ("http", authority),
        _ => return false,
    };
    // A browser leaves a scheme's own port out of both; another client may not.
    let bare = |authority: &str| {
        let port = if scheme == "https" { ":443" } else { ":80" };
        authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase()
    };
    bare(authority) == bare(host)
}

impl Token {
    fn build(config: TokenConfig, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let secret = context.secret("token.key", &config.key)?;
        if secret.expose().len() < MIN_SECRET {
            let message = format!("the secret is shorter than {MIN_SECRET} bytes");
            return Err(BuildError::at("token.key", message).help("make one with `openssl rand -base64 32`"));
        }
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if config.cookie.is_empty() || !config.cookie.bytes().all(is_token) {
            let message = format!("`{}` is not a name of a cookie", config.cookie);
            return Err(BuildError::at("token.cookie", message));
        }
        let header = header_name("token.header", &config.header)?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
        Ok(Token { key, cookie: config.cookie, header, bind: config.bind })
    }

    fn judge(&self, exchange: &Exchange) -> Result<(), Refusal> {
        let request = exchange.request();
        let mut sent = request.headers().get_all(&self.header).iter();
        let (Some(sent), None) = (sent.next(), sent.next()) else { return Err(Refusal::TokenMissing) };
        let mut kept = request.cookies(&self.cookie);
        let (Some(kept), None) = (kept.next(), kept.next()) else { return Err(Refusal::TokenMissing) };
        let is_same = verify_slices_are_equal(sent.as_bytes(), kept.as_bytes()).is_ok();
        match is_same && self.is_valid(kept, exchange) {
            true => Ok(()),
            false => Err(Refusal::TokenInvalid),
        }
    }

    fn is_valid(&self, token: &str, exchange: &Exchange) -> bool {
        let decoded = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        if decoded.len() != RANDOM + SIGNATURE {
            return false;
        }
        let (random, signature) = decoded.split_at(RANDOM);
        verify_slices_are_equal(&self.signature(random, exchange), signature).is_ok()
    }

    fn signature(&self, random: &[u8], exchange: &Exchange) -> [u8; SIGNATURE] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(random);
        match &self.bind {
            Some(BindConfig::Principal) => {
                let principal = exchange.principal();
                for part in principal.map(|it| [&*it.issuer, &*it.id]).into_iter().flatten() {
                    context.update(&(part.len() as u64).to_le_bytes());
                    context.update(part.as_bytes());
                }
            }
            Some(BindConfig::Cookie(name)) => {
                context.update(exchange.request().cookie(name).unwrap_or_default().as_bytes());
            }
            None => {}
        }
        let mut signature = [0; SIGNATURE];
        signature.copy_from_slice(context.sign().as_ref());
        signature
    }

    /// Gives a browser a token that has none, or one of another session.
    fn give(&self, exchange: &mut Exchange) -> Result<(), PluginError> {
        let request = exchange.request();
        let has_one = request.cookies(&self.cookie).any(|token| self.is_valid(token, exchange));
        if has_one || request.method() != Method::GET {
            return Ok(());
        }
        let mut token = [0; RANDOM + SIGNATURE];
        rand::fill(&mut token[..RANDOM]).map_err(|_| PluginError::failed("no random numbers"))?;
        let signature = self.signature(&token[..RANDOM], exchange);
        token[RANDOM..].copy_from_slice(&signature);
        let token = URL_SAFE_NO_PAD.encode(token);
        let secure = if self.cookie.starts_with("__") || is_https(exchange) { "; Secure" } else { "" };
        let cookie = format!("{}={token}; Path=/; SameSite=Strict{secure}", self.cookie);
        let cookie = HeaderValue::try_from(cookie).map_err(|_| PluginError::failed("not a cookie"))?;
        if let Some(mut response) = exchange.response_mut() {
            response.headers.append(SET_COOKIE, cookie);
            // A cache that keeps this response would hand one browser's token to others.
            response.headers.append(CACHE_CONTROL, HeaderValue::from_static("no-cache=\"set-cookie\""));
        }
        Ok(())
    }
}

impl PluginType for Csrf {
    const KIND: &'static str = "csrf";
    const SUMMARY: &'static str = "refuses requests that a page of another site has a browser send";
    const EXAMPLE: &'static str = "\
- csrf:
    trusted: [https://app.example.com]
    cookies: [session]
    token: { key: env:CSRF_KEY, bind: { cookie: session } }
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let rule = |(index, text): (usize, &String)| {
            let at = format!("trusted[{index}]");
            let rule = OriginRule::parse(&at, text)?;
            remark(&at, text, &rule, true, context);
            Ok(rule)
        };
        let trusted = config.trusted.iter().enumerate().map(rule).collect::<Result<_, BuildError>>()?;
        let token = config.token.map(|token| Token::build(token, context)).transpose()?;
        let refused = context.counters("refused", "requests refused, by reason", ["reason"]);
        Ok(Csrf {
            trusted,
            cookies: config.cookies.into(),
            without_origin: config.without_origin,
            token,
            refused: Refusal::ALL.map(|refusal| refused.with([refusal.reason()])),
        })
    }
}

impl Plugin for Csrf {
    fn needs(&self) -> Needs {
        let response = self.token.as_ref().map(|_| HookName::OnResponse);
        Needs::hooks([HookName::OnRequest].into_iter().chain(response))
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        match self.judge(exchange) {
            Ok(()) => Hook::CONTINUE,
            Err(refusal) => {
                self.refused[refusal as usize].increment();
                Hook::respond(Reply::deny(StatusCode::FORBIDDEN, refusal.reason()))
            }
        }
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        match self.token.as_ref().map_or(Ok(()), |token| token.give(exchange)) {
            Ok(()) => Hook::CONTINUE,
            Err(error) => Err(error).into(),
        }
    }
}

#[cfg(test)]
mod tests;
