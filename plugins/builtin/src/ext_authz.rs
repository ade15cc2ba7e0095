//! `ext_authz`: asks an HTTP service whether a request may pass.
//!
//! ```yaml
//! - ext_authz:
//!     upstream: authz
//!     path: /check
//!     timeout: 250ms
//!     headers: [authorization, cookie]
//!     copy_to_request: [x-user]
//!     copy_to_client: [www-authenticate, location]
//!     cache: { ttl: 10s, key: [authorization, cookie, "@method", "@host", "@path", "@query"] }
//! ```
//!
//! The service gets a GET for `path` without a body, with the listed request headers and
//! `x-forwarded-method`, `x-forwarded-uri`, `x-forwarded-host`, `x-forwarded-proto`,
//! `x-forwarded-for`, which tell the request as it is by then, after rewrites. Its answer decides: 2xx
//! lets the request pass, 3xx and 4xx refuse it with that status. Anything else, and no answer in
//! time, is the plugin's failure and follows `on_error`.
//!
//! Headers of `copy_to_request` are taken off the client's request first, so that the upstream never
//! takes a client's word for the service's.
//!
//! Answers are kept for `cache.ttl` if a cache is configured, refusals too, failures never. Whatever
//! the service looks at has to be in the cache's key; what is sent to it and not in the key is
//! remarked on at load.
//!
//! Reasons: `ext_authz.denied` (the service's status).

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Response, StatusCode};
use portcullis_plugin::{
    BuildContext, BuildError, Cache, Counter, Decision, Exchange, Hook, HookName, Needs, Outbound,
    OutboundLimits, Plugin, PluginError, PluginType, Reply, Span,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::{header_name, header_names, refuse_framing, refuse_host};

const DENIED: &str = "ext_authz.denied";

/// The service's answer is its status and headers; a body is read and dropped.
const MAX_ANSWER: usize = 1 << 20;

/// Decisions kept at most.
const CACHE_ENTRIES: u64 = 100_000;

const FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Asks a service.
pub(crate) struct ExtAuthz {
    upstream: Arc<dyn Outbound>,
    path: PathAndQuery,
    limits: OutboundLimits,
    headers: Vec<HeaderName>,
    copy_to_request: Vec<HeaderName>,
    copy_to_client: Vec<HeaderName>,
    cache: Option<Kept>,
    counts: Counts,
}

/// Which service is asked, what it is told, and what becomes of its answer.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The service's upstream, by name.
    upstream: String,
    /// Path, and query if need be, that is asked for. Default: `/`.
    #[serde(default = "default_path")]
    path: String,
    /// How long to wait for the whole answer, e.g. `250ms`. Default: `1s`.
    #[serde(default = "default_timeout")]
    timeout: Span,
    /// Request headers that the service gets. Default: `[authorization]`.
    #[serde(default = "default_headers")]
    headers: Vec<String>,
    /// Headers of an answer that lets pass, for the request; the client's own are always removed.
    /// Default: none.
    #[serde(default)]
    copy_to_request: Vec<String>,
    /// Headers of an answer that refuses, for the client. Default: `[www-authenticate]`.
    #[serde(default = "default_to_client")]
    copy_to_client: Vec<String>,
    /// Keeps answers. Default: every request is asked about.
    cache: Option<CacheConfig>,
}

/// How answers are kept.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CacheConfig {
    /// How long an answer holds, e.g. `10s`.
    ttl: Span,
    /// What makes two requests the same: header names, `@method`, `@host`, `@path`, `@query`,
    /// `@client`.
    key: Vec<String>,
}

fn default_path() -> String {
    "/".to_owned()
}

fn default_timeout() -> Span {
    Span::seconds(1)
}

fn default_headers() -> Vec<String> {
    vec!["authorization".to_owned()]
}

fn default_to_client() -> Vec<String> {
    vec!["www-authenticate".to_owned()]
}

/// What the service decided; kept in the cache as it stands here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Answer {
    /// None: the request may pass.
    refusal: Option<u16>,
    /// For the request or the client, as the case may be.
    headers: Vec<(String, Vec<u8>)>,
}

impl ExtAuthz {
    async fn ask(&self, question: http::Request<Bytes>) -> Result<Answer, PluginError> {
        let response = self.upstream.send(question, self.limits).await;
        self.judge(&response.map_err(|error| PluginError::failed(format!("the service failed: {error}")))?)
    }

    /// The decision about a response of the service.
    fn judge(&self, response: &Response<Bytes>) -> Result<Answer, PluginError> {
        let status = response.status();
        let copied = match status.as_u16() {
            200..=299 => &self.copy_to_request,
            300..=499 if status != StatusCode::NOT_MODIFIED => &self.copy_to_client,
            _ => return Err(PluginError::failed(format!("the service answered with {}", status.as_u16()))),
        };
        let values = |name: &HeaderName| {
            let values = response.headers().get_all(name).iter();
            values.map(|value| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect::<Vec<_>>()
        };
        let refusal = (!status.is_success()).then_some(status.as_u16());
        Ok(Answer { refusal, headers: copied.iter().flat_map(values).collect() })
    }

    fn question(&self, exchange: &Exchange) -> Result<http::Request<Bytes>, PluginError> {
        let mut question = http::Request::new(Bytes::new());
        *question.uri_mut() = self.path.clone().into();
        let request = exchange.request();
        let headers = question.headers_mut();
        for name in &self.headers {
            for value in request.headers().get_all(name) {
                headers.append(name, value.clone());
            }
        }
        let value = |text: &str| {
            HeaderValue::try_from(text)
                .map_err(|_| PluginError::failed("the request does not fit into headers"))
        };
        headers.insert(FORWARDED_METHOD, value(request.method().as_str())?);
        headers.insert(FORWARDED_URI, value(request.target().as_str())?);
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(exchange.scheme()));
        headers.insert(FORWARDED_FOR, value(&exchange.client().to_string())?);
        if let Some(host) = request.headers().get(HOST) {
            headers.insert(FORWARDED_HOST, host.clone());
        }
        Ok(question)
    }
}

/// How requests were judged, and by whom.
#[derive(Debug)]
struct Counts {
    asked: Outcomes,
    kept: Outcomes,
    failed: Counter,
}

/// Verdicts of one source.
#[derive(Debug)]
struct Outcomes {
    allow: Counter,
    deny: Counter,
}

impl Counts {
    fn new(context: &mut BuildContext<'_>) -> Self {
        let help = "requests judged, by outcome and by whether the service was asked or an answer was kept";
        let verdicts = context.counters("verdicts", help, ["outcome", "source"]);
        let of = |source| Outcomes {
            allow: verdicts.with(["allow", source]),
            deny: verdicts.with(["deny", source]),
        };
        Counts { asked: of("service"), kept: of("cache"), failed: verdicts.with(["error", "service"]) }
    }
}

impl Outcomes {
    fn count(&self, answer: &Answer) {
        match answer.refusal {
            None => self.allow.increment(),
            Some(_) => self.deny.increment(),
        }
    }
}

impl Answer {
    fn follow(self, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        let headers = self.headers.into_iter().filter_map(|(name, value)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::from_maybe_shared(Bytes::from(value)).ok()?))
        });
        let Some(status) = self.refusal else {
            let mut request = exchange.request_mut();
            headers.for_each(|(name, value)| request.headers.append(name, value));
            return Ok(Decision::Continue);
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
        let mut reply = Reply::deny(status, DENIED);
        headers.for_each(|(name, value)| _ = reply.headers.append(name, value));
        Ok(Decision::Respond(Box::new(reply)))
    }
}

/// Answers that are kept.
struct Kept {
    cache: Arc<dyn Cache>,
    ttl: Duration,
    key: Vec<KeyPart>,
}

/// A part of what tells requests apart.
#[derive(Debug, PartialEq)]
enum KeyPart {
    Method,
    Host,
    Path,
    Query,
    Client,
    Header(HeaderName),
}

impl Kept {
    /// A hash, so that no credential stands in a cache, and with lengths, so that no two requests
    /// can be shifted into each other.
    fn key(&self, exchange: &Exchange) -> String {
        let request = exchange.request();
        let mut hash = Context::new(&SHA256);
        let mut add = |value: Option<&[u8]>| {
            hash.update(&value.map_or(u64::MAX, |value| value.len() as u64).to_le_bytes());
            hash.update(value.unwrap_or_default());
        };
        for part in &self.key {
            match part {
                KeyPart::Method => add(Some(request.method().as_str().as_bytes())),
                KeyPart::Host => add(request.headers().get(HOST).map(HeaderValue::as_bytes)),
                KeyPart::Path => add(Some(request.path().as_bytes())),
                KeyPart::Query => add(request.query().map(str::as_bytes)),
                KeyPart::Client => add(Some(exchange.client().to_string().as_bytes())),
                KeyPart::Header(name) => {
                    request.headers().get_all(name).iter().for_each(|value| add(Some(value.as_bytes())));
                    add(None);
                }
            }
        }
        STANDARD_NO_PAD.encode(hash.finish())
    }

    fn find(&self, key: &str) -> Option<Answer> {
        serde_json::from_slice(&self.cache.get(key)?).ok()
    }

    fn keep(&self, key: &str, answer: &Answer) {
        if let Ok(answer) = serde_json::to_vec(answer) {
            self.cache.insert(key, answer.into(), self.ttl);
        }
    }
}

impl KeyPart {
    fn parse(at: &str, text: &str) -> Result<Self, BuildError> {
        Ok(match text {
            "@method" => KeyPart::Method,
            "@host" => KeyPart::Host,
            "@path" => KeyPart::Path,
            "@query" => KeyPart::Query,
            "@client" => KeyPart::Client,
            name if name.starts_with('@') => {
                return Err(BuildError::at(at, format!("`{name}` is not a part of a request"))
                    .help("there are `@method`, `@host`, `@path`, `@query`, `@client` and header names"));
            }
            name => KeyPart::Header(header_name(at, name)?),
        })
    }
}

impl PluginType for ExtAuthz {
    const KIND: &'static str = "ext_authz";
    const SUMMARY: &'static str = "asks an HTTP service whether a request may pass";
    const EXAMPLE: &'static str = "\
- ext_authz:
    upstream: authz
    path: /check
    timeout: 250ms
    headers: [authorization, cookie]
    copy_to_request: [x-user]
    cache: { ttl: 10s, key: [authorization, cookie, '@method', '@host', '@path', '@query'] }
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let path = PathAndQuery::try_from(config.path.as_str()).ok().filter(|_| config.path.starts_with('/'));
        let headers = header_names("headers", &config.headers)?;
        for (index, name) in headers.iter().enumerate() {
            refuse_framing(&format!("headers[{index}]"), name)?;
        }
        let copied = |at: &str, names: &[String]| {
            let names = header_names(at, names)?;
            for (index, name) in names.iter().enumerate() {
                let at = format!("{at}[{index}]");
                refuse_framing(&at, name)?;
                refuse_host(&at, name)?;
            }
            Ok(names)
        };
        if config.timeout.0.is_zero() {
            return Err(BuildError::at("timeout", "no answer comes within no time"));
        }
        Ok(ExtAuthz {
            upstream: context.upstream("upstream", &config.upstream)?,
            path: path.ok_or_else(|| {
                BuildError::at("path", format!("`{}` is not a path; it begins with `/`", config.path))
            })?,
            limits: OutboundLimits { timeout: config.timeout.0, max_body: MAX_ANSWER },
            copy_to_request: copied("copy_to_request", &config.copy_to_request)?,
            copy_to_client: copied("copy_to_client", &config.copy_to_client)?,
            cache: config.cache.map(|cache| kept(cache, &headers, context)).transpose()?,
            headers,
            counts: Counts::new(context),
        })
    }
}

fn kept(
    config: CacheConfig,
    sent: &[HeaderName],
    context: &mut BuildContext<'_>,
) -> Result<Kept, BuildError> {
    let part = |(index, text): (usize, &String)| KeyPart::parse(&format!("cache.key[{index}]"), text);
    let key = config.key.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?;
    if key.is_empty() {
        return Err(BuildError::at("cache.key", "all requests would share one answer"));
    }
    if config.ttl.0.is_zero() {
        return Err(BuildError::at("cache.ttl", "nothing is kept for no time").help("leave `cache` out"));
    }
    let derived = [
        (KeyPart::Method, "@method"),
        (KeyPart::Host, "@host"),
        (KeyPart::Path, "@path"),
        (KeyPart::Query, "@query"),
    ];
    let headers = sent.iter().map(|name| (KeyPart::Header(name.clone()), name.as_str()));
    for (part, name) in headers.chain(derived) {
        if !key.contains(&part) {
            context.warn(
                "cache.key",
                format!("the service is told `{name}`, but answers are shared across its values"),
            );
        }
    }
    Ok(Kept { cache: context.cache(CACHE_ENTRIES), ttl: config.ttl.0, key })
}

impl Plugin for ExtAuthz {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let key = self.cache.as_ref().map(|kept| kept.key(exchange));
        let question = self.question(exchange);
        let mut request = exchange.request_mut();
        self.copy_to_request.iter().for_each(|name| request.headers.remove(name));
        let known = self.cache.as_ref().zip(key.as_deref()).and_then(|(kept, key)| kept.find(key));
        match (known, question) {
            (Some(answer), _) => {
                self.counts.kept.count(&answer);
                Hook::Ready(answer.follow(exchange))
            }
            (None, Err(error)) => Hook::Ready(Err(error)),
            (None, Ok(question)) => Hook::Wait(Box::pin(async move {
                let answer = self.ask(question).await.inspect_err(|_| self.counts.failed.increment())?;
                self.counts.asked.count(&answer);
                if let Some((kept, key)) = self.cache.as_ref().zip(key) {
                    kept.keep(&key, &answer);
                }
                answer.follow(exchange)
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use portcullis_plugin::{ExchangeBuilder, OutboundError, PluginTester, TestedPlugin};
    use serde_json::{Value, json};

    type Asked = Arc<Mutex<Vec<http::Request<Bytes>>>>;

    /// A plugin whose service answers with `status` and `headers`, and what it was asked.
    fn build(table: Value, status: u16, headers: &'static [(&str, &str)]) -> (TestedPlugin, Asked) {
        let asked = Asked::default();
        let log = asked.clone();
        let mut tester = PluginTester::new().upstream("authz", move |request| {
            log.lock().unwrap().push(request.clone());
            let response = headers
                .iter()
                .fold(Response::builder().status(status), |it, (name, value)| it.header(*name, *value));
            Ok(response.body(Bytes::new()).unwrap())
        });
        (tester.build::<ExtAuthz>(table).unwrap(), asked)
    }

    fn get() -> ExchangeBuilder {
        ExchangeBuilder::get("/a?b=c").header("authorization", "Bearer 1").header("x-user", "root")
    }

    #[test]
    fn the_service_is_told_what_is_listed_and_what_is_asked_for() {
        let table = json!({"upstream": "authz", "path": "/check?v=1"});
        let (plugin, asked) = build(table, 200, &[]);
        plugin.on_request(&mut get().build()).unwrap();
        let asked = asked.lock().unwrap();
        let question = &asked[0];
        assert_eq!((question.method().as_str(), question.uri().to_string().as_str()), ("GET", "/check?v=1"));
        let mut headers: Vec<_> = question
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        headers.sort();
        assert_eq!(
            headers,
            [
                "authorization: Bearer 1",
                "x-forwarded-for: 192.0.2.1",
                "x-forwarded-host: gateway.test",
                "x-forwarded-method: GET",
                "x-forwarded-proto: http",
                "x-forwarded-uri: /a?b=c",
            ]
        );
    }

    #[test]
    fn what_is_copied_to_the_request_is_the_services_word_or_nobodys() {
        let table = json!({"upstream": "authz", "copy_to_request": ["x-user", "x-role"]});
        let (plugin, _) = build(
            table.clone(),
            204,
            &[("x-user", "ada"), ("x-other", "1"), ("x-role", "a"), ("x-role", "b")],
        );
        let mut exchange = get().build();
        assert!(matches!(plugin.on_request(&mut exchange), Ok(Decision::Continue)));
        let headers = exchange.request().headers();
        assert_eq!(headers.get_all("x-user").iter().collect::<Vec<_>>(), ["ada"]);
        assert_eq!(headers.get_all("x-role").iter().count(), 2);
        assert!(!headers.contains_key("x-other"));

        let (plugin, _) = build(table, 200, &[]);
        let mut exchange = get().build();
        plugin.on_request(&mut exchange).unwrap();
        assert!(!exchange.request().headers().contains_key("x-user"));
    }

    #[test]
    fn a_refusal_goes_to_the_client_with_its_status_and_the_listed_headers() {
        let (plugin, _) =
            build(json!({"upstream": "authz"}), 401, &[("www-authenticate", "Bearer"), ("x-secret", "1")]);
        let Ok(Decision::Respond(reply)) = plugin.on_request(&mut get().build()) else { panic!() };
        assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (401, Some(DENIED)));
        assert_eq!(reply.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["www-authenticate"]);
        let (plugin, _) = build(
            json!({"upstream": "authz", "copy_to_client": ["location"]}),
            302,
            &[("location", "/login")],
        );
        let Ok(Decision::Respond(reply)) = plugin.on_request(&mut get().build()) else { panic!() };
        assert_eq!(
            (reply.status.as_u16(), &reply.headers["location"]),
            (302, &HeaderValue::from_static("/login"))
        );
    }

    #[test]
    fn an_unclear_answer_or_none_is_a_failure_and_spares_the_clients_headers_neither() {
        for status in [500, 503, 304] {
            let table = json!({"upstream": "authz", "copy_to_request": ["x-user"]});
            let (plugin, _) = build(table, status, &[]);
            let mut exchange = get().build();
            assert!(plugin.on_request(&mut exchange).is_err(), "{status}");
            assert!(!exchange.request().headers().contains_key("x-user"));
        }
        let mut tester = PluginTester::new().upstream("authz", |_| Err(OutboundError::Timeout));
        let plugin = tester.build::<ExtAuthz>(json!({"upstream": "authz"})).unwrap();
        let error = plugin.on_request(&mut get().build()).unwrap_err();
        assert_eq!(error.message(), "the service failed: no answer in time");
    }

    fn cached() -> Value {
        json!({"upstream": "authz", "copy_to_request": ["x-user"], "cache": {
            "ttl": "10s", "key": ["authorization", "@method", "@host", "@path", "@query"],
        }})
    }

    #[test]
    fn an_answer_is_kept_and_found_without_a_wait() {
        let (plugin, asked) = build(cached(), 200, &[("x-user", "ada")]);
        plugin.on_request(&mut get().build()).unwrap();
        let mut exchange = get().build();
        let hook = plugin.plugin().on_request(&mut exchange);
        assert!(matches!(hook, Hook::Ready(Ok(Decision::Continue))));
        drop(hook);
        assert_eq!(exchange.request().headers()["x-user"], "ada");
        assert_eq!(asked.lock().unwrap().len(), 1);
        for other in [
            ExchangeBuilder::get("/a?b=c").header("authorization", "Bearer 2"),
            ExchangeBuilder::get("/a?b=c"),
            get().header("authorization", "Bearer 1"),
            ExchangeBuilder::get("/a").header("authorization", "Bearer 1"),
            ExchangeBuilder::get("/a?b=c").header("authorization", "Bearer 1").header("host", "other.test"),
        ] {
            assert!(matches!(plugin.plugin().on_request(&mut other.build()), Hook::Wait(_)));
        }
    }

    #[test]
    fn verdicts_are_counted_by_outcome_and_source() {
        let mut tester = PluginTester::new().upstream("authz", |request| {
            let status = match request.headers().get("authorization").map(HeaderValue::as_bytes) {
                Some(b"good") => 200,
                Some(_) => 403,
                None => 500,
            };
            Ok(Response::builder().status(status).body(Bytes::new()).unwrap())
        });
        let plugin = tester.build::<ExtAuthz>(cached()).unwrap();
        for credential in ["good", "good", "good", "bad", "bad"] {
            let request = ExchangeBuilder::get("/").header("authorization", credential);
            plugin.on_request(&mut request.build()).unwrap();
        }
        assert!(plugin.on_request(&mut ExchangeBuilder::get("/").build()).is_err());
        let counted = |outcome, source| tester.counted("verdicts", &[outcome, source]);
        assert_eq!((counted("allow", "service"), counted("allow", "cache")), (Some(1), Some(2)));
        assert_eq!((counted("deny", "service"), counted("deny", "cache")), (Some(1), Some(1)));
        assert_eq!(counted("error", "service"), Some(1));
    }

    #[test]
    fn refusals_are_kept_and_failures_are_not() {
        let (plugin, asked) = build(cached(), 403, &[]);
        for _ in 0..2 {
            assert!(matches!(plugin.on_request(&mut get().build()), Ok(Decision::Respond(_))));
        }
        assert_eq!(asked.lock().unwrap().len(), 1);
        let (plugin, asked) = build(cached(), 500, &[]);
        for _ in 0..2 {
            assert!(plugin.on_request(&mut get().build()).is_err());
        }
        assert_eq!(asked.lock().unwrap().len(), 2);
    }

    #[test]
    fn what_cannot_be_asked_is_refused_at_build_and_what_is_risky_remarked_on() {
        let mut tester = PluginTester::new().upstream("authz", |_| Err(OutboundError::Failed));
        let mut error = |table: Value| tester.build::<ExtAuthz>(table).err().unwrap().path;
        assert_eq!(error(json!({"upstream": "other"})), "upstream");
        assert_eq!(error(json!({"upstream": "authz", "path": "check"})), "path");
        assert_eq!(error(json!({"upstream": "authz", "timeout": "0s"})), "timeout");
        assert_eq!(error(json!({"upstream": "authz", "headers": ["content-length"]})), "headers[0]");
        assert_eq!(error(json!({"upstream": "authz", "copy_to_request": ["a", "te"]})), "copy_to_request[1]");
        assert_eq!(error(json!({"upstream": "authz", "cache": {"ttl": "1s", "key": []}})), "cache.key");
        assert_eq!(
            error(json!({"upstream": "authz", "cache": {"ttl": "1s", "key": ["a", "@b"]}})),
            "cache.key[1]"
        );
        let key = ["@method", "@host", "@path", "@query"];
        tester.build::<ExtAuthz>(json!({"upstream": "authz", "cache": {"ttl": "1s", "key": key}})).unwrap();
        assert!(tester.warnings().len() == 1 && tester.warnings()[0].message.contains("authorization"));
    }
}
