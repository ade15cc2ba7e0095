//! `access_log`: one line for every exchange.
//!
//! ```yaml
//! - access_log:
//!     target: /var/log/portcullis/access.log
//!     headers: [x-tenant]
//!     facts: [json_schema]
//! ```
//!
//! `format: json` writes one object per line. Fields that have no value are left out:
//!
//! | field | is |
//! |---|---|
//! | `time` | when the exchange ended, RFC 3339, UTC, milliseconds |
//! | `id` | the request id |
//! | `client`, `peer` | the client's address, and the one that connected with its port |
//! | `listener`, `route` | their names |
//! | `scheme`, `host`, `method`, `path`, `version` | what was asked for; `query` only when wanted |
//! | `status`, `end` | the status sent, and `complete`, `client_gone`, `upstream_failed` or `refused` |
//! | `duration_ms`, `upstream_ms` | to the end; from the first attempt to the upstream's head |
//! | `grpc_status` | how a call of gRPC ended, such as `UNAVAILABLE` |
//! | `request_bytes`, `response_bytes` | of the bodies |
//! | `upstream`, `endpoint`, `attempts` | where it went, and at which attempt |
//! | `principal` | the id of who called |
//! | `decided_by`, `hook`, `reason` | who answered in place of the upstream, where and why |
//! | `user_agent`, `headers`, `facts` | as sent, as listed, as left by plugins |
//!
//! `format: text` writes `time client "method path version" status response_bytes duration_ms id
//! decided_by reason`, `-` for what has no value. Strings are escaped as in JSON, reasons kept to one
//! word, so that no client can write a line of its own.
//!
//! A line that the target can't take at once is dropped and counted: logging never holds traffic up.

use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Version;
use http::header::{
    AUTHORIZATION, COOKIE, HeaderName, HeaderValue, PROXY_AUTHORIZATION, SET_COOKIE, USER_AGENT,
};
use portcullis_plugin::{
    BuildContext, BuildError, Decision, Exchange, Hook, HookName, LogSink, Needs, Plugin, PluginError,
    PluginType,
};
use schemars::JsonSchema;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use crate::names::header_names;

/// The longest line buffer a thread keeps; one huge line must not stay forever.
const KEPT_BUFFER: usize = 64 << 10;

/// Writes access logs.
pub(crate) struct AccessLog {
    sink: Arc<dyn LogSink>,
    format: Format,
    query: bool,
    headers: Vec<HeaderName>,
    facts: Vec<String>,
}

/// Where lines go, and what stands in them.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// `stdout`, `stderr`, or a file's path. Default: `stdout`.
    target: String,
    /// What a line looks like. Default: `json`.
    format: Format,
    /// Whether the query is logged; it may hold secrets. Default: `false`.
    query: bool,
    /// Request headers that are logged; credentials and cookies are refused. For `json` only.
    /// Default: none.
    headers: Vec<String>,
    /// Facts of plugins that are logged. For `json` only. Default: none.
    facts: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            target: "stdout".to_owned(),
            format: Format::default(),
            query: false,
            headers: Vec::new(),
            facts: Vec::new(),
        }
    }
}

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// An object.
    #[default]
    Json,
    /// Words in a fixed order.
    Text,
}

impl AccessLog {
    /// The line for an exchange that ended at `now`, with its line end.
    fn line(&self, exchange: &Exchange, now: Time, line: &mut Vec<u8>) -> Result<(), PluginError> {
        let written = match self.format {
            Format::Json => self.json(exchange, now, line),
            Format::Text => text(exchange, now, self.query, line),
        };
        written.map_err(|error| PluginError::failed(format!("the line could not be written: {error}")))?;
        line.push(b'\n');
        Ok(())
    }

    fn json(&self, exchange: &Exchange, now: Time, line: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let mut writer = serde_json::Serializer::new(line);
        let mut fields = Fields(writer.serialize_map(None)?);
        let (request, connection) = (exchange.request(), exchange.connection());
        fields.display("time", now)?;
        fields.display("id", exchange.id())?;
        fields.display("client", exchange.client())?;
        fields.display("peer", connection.peer)?;
        fields.put("listener", &*connection.listener)?;
        fields.option("route", exchange.route())?;
        fields.put("scheme", exchange.scheme())?;
        fields.put("host", request.host())?;
        fields.put("method", request.method().as_str())?;
        fields.put("path", exchange.original_target().path())?;
        fields.option("query", exchange.original_target().query().filter(|_| self.query))?;
        fields.put("version", version(request.version()))?;
        if let Some(outcome) = exchange.outcome() {
            fields.option("status", outcome.status.map(|status| status.as_u16()))?;
            fields.put("end", outcome.end.as_str())?;
            fields.put("duration_ms", millis(outcome.duration))?;
            fields.option("upstream_ms", outcome.upstream_duration.map(millis))?;
            fields.option("grpc_status", outcome.grpc_status)?;
            fields.put("request_bytes", outcome.request_bytes)?;
            fields.put("response_bytes", outcome.response_bytes)?;
        }
        if let Some(attempt) = exchange.attempt() {
            fields.put("upstream", &*attempt.upstream)?;
            fields.put("endpoint", &*attempt.endpoint)?;
            fields.put("attempts", attempt.number)?;
        }
        fields.option("principal", exchange.principal().map(|principal| principal.id.as_str()))?;
        if let Some(decider) = exchange.decider() {
            fields.put("decided_by", &*decider.by)?;
            fields.option("hook", decider.hook.map(HookName::as_str))?;
            fields.option("reason", decider.reason.as_deref())?;
        }
        fields.option("user_agent", request.headers().get(USER_AGENT).map(Lossy))?;
        if !self.headers.is_empty() {
            fields.put("headers", Headers(&self.headers, exchange))?;
        }
        if !self.facts.is_empty() {
            fields.put("facts", Facts(&self.facts, exchange))?;
        }
        fields.0.end()
    }
}

/// The fields of a line.
struct Fields<M>(M);

impl<M: SerializeMap> Fields<M> {
    fn put(&mut self, name: &'static str, value: impl Serialize) -> Result<(), M::Error> {
        self.0.serialize_entry(name, &value)
    }

    fn option(&mut self, name: &'static str, value: Option<impl Serialize>) -> Result<(), M::Error> {
        value.map_or(Ok(()), |value| self.put(name, value))
    }

    fn display(&mut self, name: &'static str, value: impl fmt::Display) -> Result<(), M::Error> {
        self.put(name, Displayed(value))
    }
}

/// Serialised as it is displayed, without a string in between.
struct Displayed<T>(T);

impl<T: fmt::Display> Serialize for Displayed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A header's value as text; bytes that are not UTF-8 are replaced.
struct Lossy<'a>(&'a HeaderValue);

impl Serialize for Lossy<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(self.0.as_bytes()))
    }
}

/// The listed headers that the request has.
struct Headers<'a>(&'a [HeaderName], &'a Exchange);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let headers = self.1.request().headers();
        serializer
            .collect_map(self.0.iter().filter_map(|name| Some((name.as_str(), Lossy(headers.get(name)?)))))
    }
}

/// The listed facts that are known.
struct Facts<'a>(&'a [String], &'a Exchange);

impl Serialize for Facts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter_map(|name| Some((name, self.1.fact(name)?))))
    }
}

fn text(exchange: &Exchange, now: Time, query: bool, line: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let request = exchange.request();
    let target = exchange.original_target();
    let (path, question) = (target.path(), target.query().filter(|_| query));
    let (mark, question) = question.map_or(("", ""), |question| ("?", question));
    let method = request.method();
    let asked = format_args!("{method} {path}{mark}{question} {}", version(request.version()));
    let outcome = exchange.outcome();
    let decider = exchange.decider();
    // Writing to a vector does not fail.
    let _ = write!(line, "{now} {} ", exchange.client());
    serde_json::to_writer(&mut *line, &Displayed(asked))?;
    let _ = write!(
        line,
        " {} {} {} {} {} {}",
        Dash(outcome.and_then(|outcome| outcome.status).map(|status| status.as_u16())),
        Dash(outcome.map(|outcome| outcome.response_bytes)),
        Dash(outcome.map(|outcome| millis(outcome.duration))),
        exchange.id(),
        Dash(decider.map(|decider| Word(&decider.by))),
        Dash(decider.and_then(|decider| decider.reason.as_deref()).map(Word)),
    );
    Ok(())
}

/// `-` for what has no value.
struct Dash<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Dash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// Text that stays one word: a script may make a reason of whatever the client sent.
struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let splits = |character: char| character.is_whitespace() || character.is_control();
        self.0.chars().try_for_each(|character| f.write_char(if splits(character) { '_' } else { character }))
    }
}

/// Milliseconds with microseconds as their fraction.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "-",
    }
}

/// A time since 1970, displayed by RFC 3339 in UTC with milliseconds.
#[derive(Debug, Clone, Copy)]
struct Time(Duration);

impl Time {
    fn now() -> Self {
        Time(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(UNIX_EPOCH + self.0).fmt(f)
    }
}

impl PluginType for AccessLog {
    const KIND: &'static str = "access_log";
    const SUMMARY: &'static str = "writes one line for every exchange";
    const EXAMPLE: &'static str = "\
- access_log:
    target: stdout
    headers: [x-tenant]
    facts: [json_schema]
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let headers = header_names("headers", &config.headers)?;
        const SECRET: [HeaderName; 4] = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, SET_COOKIE];
        if let Some(index) = headers.iter().position(|name| SECRET.contains(name)) {
            let message = format!("`{}` holds credentials, which no log may hold", headers[index]);
            return Err(BuildError::at(format!("headers[{index}]"), message));
        }
        if config.format == Format::Text && !(headers.is_empty() && config.facts.is_empty()) {
            context.warn("format", "`text` has no place for `headers` and `facts`");
        }
        Ok(AccessLog {
            sink: context.log_sink("target", &config.target)?,
            format: config.format,
            query: config.query,
            headers,
            facts: config.facts,
        })
    }
}

impl Plugin for AccessLog {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnLog])
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let mut line = LINE.take();
        line.clear();
        let written = self.line(exchange, Time::now(), &mut line);
        if written.is_ok() {
            self.sink.write(&line);
        }
        if line.capacity() <= KEPT_BUFFER {
            LINE.set(line);
        }
        Hook::Ready(written.map(|()| Decision::Continue))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, StatusCode};
    use portcullis_plugin::{Decider, End, ExchangeBuilder, Outcome, PluginTester, Principal};
    use serde_json::{Value, json};

    fn full() -> ExchangeBuilder {
        ExchangeBuilder::request(Method::POST, "/users/42?token=x")
            .route("users", &[("id", "42")])
            .header("user-agent", "curl \"8\"")
            .header("x-tenant", "acme")
            .principal(Principal { id: "ada".into(), ..Principal::default() })
            .attempt("api", "192.0.2.9:80")
            .with(|parts| {
                parts.facts.push(("score".into(), json!({"n": 7})));
                parts.facts.push(("private".into(), json!(1)));
                let (by, hook) = ("guard".into(), Some(HookName::OnResponse));
                parts.decider = Some(Box::new(Decider { by, hook, reason: Some("guard.no".into()) }));
                parts.outcome = Some(Box::new(Outcome {
                    end: End::Refused,
                    status: Some(StatusCode::FORBIDDEN),
                    request_bytes: 3,
                    response_bytes: 4,
                    duration: Duration::from_nanos(1_234_567),
                    upstream_duration: Some(Duration::from_micros(500)),
                    grpc_status: Some("UNAVAILABLE"),
                }));
            })
    }

    fn line(table: Value, exchange: ExchangeBuilder) -> String {
        let mut tester = PluginTester::new();
        let plugin = tester.build::<AccessLog>(table).unwrap();
        plugin.call(HookName::OnLog, &mut exchange.build()).unwrap();
        let lines = tester.logged();
        assert!(lines.len() == 1 && lines[0].ends_with('\n') && lines[0].trim_end().lines().count() == 1);
        lines.into_iter().next().unwrap()
    }

    #[test]
    fn a_line_is_one_object_with_all_that_is_known() {
        let table = json!({"headers": ["x-tenant", "x-absent"], "facts": ["score", "absent"], "query": true});
        let mut line: Value = serde_json::from_str(&line(table, full())).unwrap();
        let time = line.as_object_mut().unwrap().remove("time").unwrap();
        assert!(time.as_str().is_some_and(|time| time.len() == 24 && time.ends_with('Z')), "{time}");
        assert_eq!(
            line,
            json!({
                "id": "00000000000000000000000000000001",
                "client": "192.0.2.1", "peer": "192.0.2.1:40000", "listener": "test", "route": "users",
                "scheme": "http", "host": "gateway.test", "method": "POST", "path": "/users/42",
                "query": "token=x", "version": "HTTP/1.1", "status": 403, "end": "refused",
                "duration_ms": 1.234, "upstream_ms": 0.5, "request_bytes": 3, "response_bytes": 4,
                "grpc_status": "UNAVAILABLE",
                "upstream": "api", "endpoint": "192.0.2.9:80", "attempts": 1, "principal": "ada",
                "decided_by": "guard", "hook": "on_response", "reason": "guard.no",
                "user_agent": "curl \"8\"", "headers": {"x-tenant": "acme"}, "facts": {"score": {"n": 7}},
            })
        );
    }

    #[test]
    fn what_has_no_value_is_left_out_and_the_query_stays_private() {
        let line: Value =
            serde_json::from_str(&line(json!({}), ExchangeBuilder::get("/?token=x").ended(200))).unwrap();
        assert_eq!(line["status"], 200);
        for absent in ["query", "route", "principal", "reason", "upstream", "user_agent", "headers", "facts"]
        {
            assert_eq!(line.get(absent), None, "{absent}");
        }
        assert!(!line.to_string().contains("token"));
    }

    #[test]
    fn no_value_can_make_a_line_of_its_own() {
        let exchange = || {
            ExchangeBuilder::get("/").with(|parts| {
                parts.principal = Some(Box::new(Principal { id: "a\nb\"".into(), ..Principal::default() }));
            })
        };
        let object: Value = serde_json::from_str(&line(json!({}), exchange())).unwrap();
        assert_eq!(object["principal"], "a\nb\"");
        let decided = exchange().with(|parts| {
            let reason = Some("own\nline x".to_owned().into());
            parts.decider = Some(Box::new(Decider { by: "script".into(), hook: None, reason }));
        });
        assert!(line(json!({"format": "text"}), decided).ends_with(" script own_line_x\n"));
    }

    #[test]
    fn text_has_its_words_in_order() {
        let plain = line(json!({"format": "text"}), full());
        let (_, words) = plain.trim_end().split_once(' ').unwrap();
        let id = "00000000000000000000000000000001";
        assert_eq!(words, format!("192.0.2.1 \"POST /users/42 HTTP/1.1\" 403 4 1.234 {id} guard guard.no"));
        let plain = line(json!({"format": "text"}), ExchangeBuilder::get("/"));
        assert!(plain.ends_with(&format!(" \"GET / HTTP/1.1\" - - - {id} - -\n")), "{plain}");
    }

    #[test]
    fn time_is_told_by_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (1_618_884_473, "2021-04-20T02:07:53.007Z"),
            (4_107_542_399, "2100-02-28T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(Time(Duration::from_millis(seconds * 1000 + 7)).to_string(), text);
        }
    }

    #[test]
    fn credentials_are_refused_at_build() {
        for name in ["Authorization", "cookie", "set-cookie", "proxy-authorization"] {
            let error =
                PluginTester::new().build::<AccessLog>(json!({"headers": ["a", name]})).err().unwrap();
            assert_eq!(error.path, "headers[1]");
        }
        let mut tester = PluginTester::new();
        tester.build::<AccessLog>(json!({"format": "text", "facts": ["a"]})).unwrap();
        assert_eq!(tester.warnings().len(), 1);
    }
}
