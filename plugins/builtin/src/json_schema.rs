//! `json_schema`: lets only those request bodies pass that fit a JSON Schema.
//!
//! ```yaml
//! - json_schema:
//!     file: schemas/order.json
//!     unknown_fields: refuse
//! ```
//!
//! What is read is what is validated: a body with a repeated key, which two parsers may read in two
//! ways, is refused, and so is one nested deeper than `max_depth`. Formats (`date-time`, `email`) are
//! checked, references to other documents are refused, and patterns are of linear time, so that no
//! body can make one slow (no look-around, no back-references). An empty body passes unless
//! `required` says otherwise.
//!
//! The client learns nothing but the status. The fact `json_schema` tells the log where the body
//! failed: `{"at": "/items/0/id", "keyword": "type"}`.
//!
//! Reasons: `json_schema.media_type` (415), `json_schema.malformed` (400), `json_schema.duplicate_key`
//! (400), `json_schema.too_deep` (400), `json_schema.invalid` (422). Counted as
//! `portcullis_plugin_json_schema_refusals_total{reason}`.

mod closed;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use portcullis_plugin::{
    BodyWish, BuildContext, BuildError, Counter, Decision, Exchange, Hook, Needs, Offload, Plugin,
    PluginType, Reply, Size, SourceFile, SourcePosition,
};
use regex::RegexBuilder;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::media::{MediaTypes, is_encoded, media_type};
use crate::strict;

const MEDIA_TYPE: &str = "json_schema.media_type";
const MALFORMED: &str = "json_schema.malformed";
const DUPLICATE_KEY: &str = "json_schema.duplicate_key";
const TOO_DEEP: &str = "json_schema.too_deep";
const INVALID: &str = "json_schema.invalid";

/// Every reason, for counting.
const REASONS: [&str; 5] = [MEDIA_TYPE, MALFORMED, DUPLICATE_KEY, TOO_DEEP, INVALID];

/// Name of the fact that tells where a body failed.
const FACT: &str = "json_schema";

/// Bodies beyond this are judged apart from the worker. Measured per KiB: 17 us for rows of five fields
/// with a format and a pattern each, 34 us for small objects against a choice of five.
const AT_ONCE: usize = 8 << 10;

/// A pattern beyond this, compiled, as the regex crate counts: its time is linear in the text, but times
/// its own size. One of nested counted repeats took two seconds for 4 KiB.
const LARGE_PATTERN: usize = 64 << 10;

/// The longest path put into the fact; it holds keys that the client chose.
const MAX_PATH: usize = 256;

/// The deepest nesting that may be configured: parser and validator recurse, and the parser's own
/// bound is 127.
const MAX_DEPTH: usize = 100;

/// Validates request bodies.
pub(crate) struct JsonSchemaCheck {
    check: Arc<Check>,
    media_types: MediaTypes,
    limit: usize,
    required: bool,
    at_once: usize,
    offload: Offload,
    refusals: [(&'static str, Counter); REASONS.len()],
}

/// What a body is held against.
struct Check {
    validator: Validator,
    max_depth: usize,
}

/// What a request body has to look like.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The schema itself. Either this or `file`.
    schema: Option<Value>,
    /// A file with the schema as JSON; it is watched.
    file: Option<String>,
    /// The largest body, e.g. `64KiB`; a larger one gets a 413. Default: `1MiB`.
    #[serde(default = "default_limit")]
    limit: Size,
    /// How deep arrays and objects may be nested, 1 to 100. Default: 64.
    #[serde(default = "default_depth")]
    max_depth: usize,
    /// Whether an empty body is refused, as malformed. Default: `false`.
    #[serde(default)]
    required: bool,
    /// Whether objects may have fields that the schema does not name. `refuse` closes every object
    /// whose schema has `properties` and says nothing of its own about other fields; it needs draft
    /// 2019-09 or later. Default: `allow`.
    #[serde(default)]
    unknown_fields: UnknownFields,
    /// Media types that pass, e.g. `application/json`, `+json`. Default: these two.
    #[serde(default = "default_types")]
    content_types: Vec<String>,
}

/// What becomes of fields that the schema does not name.
#[derive(Clone, Copy, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum UnknownFields {
    /// They pass, as JSON Schema has it.
    #[default]
    Allow,
    /// They make the body invalid.
    Refuse,
}

fn default_limit() -> Size {
    Size::mib(1)
}

fn default_depth() -> usize {
    64
}

fn default_types() -> Vec<String> {
    ["application/json", "+json"].map(str::to_owned).to_vec()
}

/// Why a body does not pass.
#[derive(Debug, PartialEq)]
struct Refusal {
    status: StatusCode,
    reason: &'static str,
    /// Where the body failed, and at which keyword.
    detail: Option<Value>,
}

impl Refusal {
    fn new(status: StatusCode, reason: &'static str) -> Self {
        Refusal { status, reason, detail: None }
    }
}

impl From<strict::Fault> for Refusal {
    fn from(fault: strict::Fault) -> Self {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            match fault {
                strict::Fault::Malformed => MALFORMED,
                strict::Fault::DuplicateKey => DUPLICATE_KEY,
                strict::Fault::TooDeep => TOO_DEEP,
            },
        )
    }
}

impl From<ValidationError<'_>> for Refusal {
    fn from(error: ValidationError<'_>) -> Self {
        let path = error.instance_path().as_str();
        let end = path.floor_char_boundary(MAX_PATH.min(path.len()));
        let detail = json!({"at": path.get(..end), "keyword": error.kind().keyword()});
        Refusal { status: StatusCode::UNPROCESSABLE_ENTITY, reason: INVALID, detail: Some(detail) }
    }
}

impl Check {
    /// The decision about a body.
    fn judge(&self, body: &[u8]) -> Result<(), Refusal> {
        let value = strict::parse(body, self.max_depth)?;
        Ok(self.validator.validate(&value)?)
    }
}

impl JsonSchemaCheck {
    /// The decision about what surrounds a body: whether there is one to judge.
    fn screen(&self, headers: &HeaderMap, body: &[u8]) -> Result<bool, Refusal> {
        if body.is_empty() {
            let refusal = Refusal::new(StatusCode::BAD_REQUEST, MALFORMED);
            return if self.required { Err(refusal) } else { Ok(false) };
        }
        let known = media_type(headers).is_some_and(|found| self.media_types.contains(found));
        if !known || is_encoded(headers) {
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, MEDIA_TYPE));
        }
        Ok(true)
    }

    fn verdict(&self, judged: Result<(), Refusal>, exchange: &mut Exchange) -> Decision {
        let Err(refusal) = judged else { return Decision::Continue };
        let counter = self.refusals.iter().find(|(reason, _)| *reason == refusal.reason);
        counter.iter().for_each(|(_, counter)| counter.increment());
        if let Some(detail) = refusal.detail {
            exchange.rests_on(&detail.to_string());
            exchange.set_fact(FACT, detail);
        }
        Decision::Respond(Box::new(Reply::deny(refusal.status, refusal.reason)))
    }
}

impl PluginType for JsonSchemaCheck {
    const KIND: &'static str = "json_schema";
    const SUMMARY: &'static str = "lets only those request bodies pass that fit a JSON Schema";
    const EXAMPLE: &'static str = "\
- json_schema:
    file: schemas/order.json
    unknown_fields: refuse
    limit: 64KiB
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if !(1..=MAX_DEPTH).contains(&config.max_depth) {
            return Err(BuildError::at("max_depth", format!("must be 1 to {MAX_DEPTH}")));
        }
        let source = Source::read(&config, context)?;
        let schema = source.schema()?;
        let schema = match config.unknown_fields {
            UnknownFields::Allow => schema,
            UnknownFields::Refuse => closed_schema(schema)?,
        };
        let validator = compile(&schema).map_err(|error| source.locate(&error))?;
        let refusals = context.counters("refusals", "bodies refused, by reason", ["reason"]);
        Ok(JsonSchemaCheck {
            check: Arc::new(Check { validator, max_depth: config.max_depth }),
            media_types: MediaTypes::parse("content_types", &config.content_types)?,
            limit: config.limit.0,
            required: config.required,
            at_once: if has_large_pattern(&schema) { 0 } else { AT_ONCE },
            offload: context.offload(),
            refusals: REASONS.map(|reason| (reason, refusals.with([reason]))),
        })
    }
}

impl Plugin for JsonSchemaCheck {
    fn needs(&self) -> Needs {
        Needs::default().request_body(BodyWish::Whole { limit: self.limit })
    }

    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let body: Bytes = exchange.request_body().cloned().unwrap_or_default();
        let judged = match self.screen(exchange.request().headers(), &body) {
            Ok(true) if body.len() > self.at_once => {
                return Hook::Wait(Box::pin(async move {
                    let check = self.check.clone();
                    let judged = self.offload.run(move || check.judge(&body)).await?;
                    Ok(self.verdict(judged, exchange))
                }));
            }
            Ok(true) => self.check.judge(&body),
            Ok(false) => Ok(()),
            Err(refusal) => Err(refusal),
        };
        Hook::from(self.verdict(judged, exchange))
    }
}

/// Where the schema stands.
enum Source {
    Inline(Value),
    File(SourceFile),
}

impl Source {
    fn read(config: &Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        match (&config.schema, &config.file) {
            (Some(schema), None) => Ok(Source::Inline(schema.clone())),
            (None, Some(path)) => context.file("file", path).map(Source::File),
            (Some(_), Some(_)) => Err(BuildError::at("file", "`schema` and `file` exclude each other")),
            (None, None) => Err(BuildError::at("", "there is no schema").help("give `schema` or `file`")),
        }
    }

    fn schema(&self) -> Result<Value, BuildError> {
        match self {
            Source::Inline(schema) => Ok(schema.clone()),
            Source::File(file) => serde_json::from_slice(&file.bytes).map_err(|error| {
                BuildError::at("file", "the schema is not valid JSON").within(SourcePosition {
                    file: file.path.clone(),
                    text: String::from_utf8_lossy(&file.bytes).into(),
                    line: error.line().max(1),
                    column: error.column().max(1),
                })
            }),
        }
    }

    /// Names the part of the schema that is wrong.
    fn locate(&self, error: &ValidationError<'_>) -> BuildError {
        let place = error.instance_path().as_str();
        match self {
            Source::Inline(_) => BuildError::at(dotted("schema", place), format!("not a schema: {error}")),
            Source::File(file) => {
                let place = if place.is_empty() { "/" } else { place };
                let file = file.path.display();
                BuildError::at("file", format!("not a schema: {error} (at `{place}` in `{file}`)"))
            }
        }
        .help(
            "a schema stands alone, without references to other documents; its patterns have no look-around",
        )
    }
}

fn compile(schema: &Value) -> Result<Validator, ValidationError<'static>> {
    jsonschema::options()
        .offline()
        .should_validate_formats(true)
        .with_pattern_options(PatternOptions::regex())
        .build(schema)
}

/// Whether a pattern anywhere in a schema is large, or written in a way that can't be told here.
fn has_large_pattern(schema: &Value) -> bool {
    let large = |pattern: &str| RegexBuilder::new(pattern).size_limit(LARGE_PATTERN).build().is_err();
    match schema {
        Value::Array(schemas) => schemas.iter().any(has_large_pattern),
        Value::Object(schema) => schema.iter().any(|(keyword, value)| match (keyword.as_str(), value) {
            ("pattern", Value::String(pattern)) => large(pattern),
            ("patternProperties", Value::Object(patterns)) => {
                patterns.iter().any(|(pattern, schema)| large(pattern) || has_large_pattern(schema))
            }
            (_, inner) => has_large_pattern(inner),
        }),
        _ => false,
    }
}

fn closed_schema(mut schema: Value) -> Result<Value, BuildError> {
    let draft = Draft::default().detect(&schema);
    if !matches!(draft, Draft::Draft201909 | Draft::Draft202012) {
        return Err(BuildError::at("unknown_fields", "`refuse` needs a schema of draft 2019-09 or later")
            .help("set `$schema` to `https://json-schema.org/draft/2020-12/schema`"));
    }
    closed::close(&mut schema);
    Ok(schema)
}

/// A JSON Pointer (RFC 6901) as a path in the plugin's table.
fn dotted(root: &str, pointer: &str) -> String {
    pointer.split('/').skip(1).fold(root.to_owned(), |path, token| match token.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) => format!("{path}.{}", token.replace("~1", "/").replace("~0", "~")),
    })
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use http::Method;
    use portcullis_plugin::{Content, ExchangeBuilder, HookName, PluginTester};

    fn build(table: Value) -> Result<portcullis_plugin::TestedPlugin, BuildError> {
        PluginTester::new().build::<JsonSchemaCheck>(table)
    }

    /// Reason and fact of a body's refusal.
    fn judge(table: &Value, media_type: &str, body: &str) -> Option<(u16, String, Option<Value>)> {
        let plugin = build(table.clone()).unwrap();
        let mut exchange = ExchangeBuilder::request(Method::POST, "/")
            .header("content-type", media_type)
            .body(body.to_owned())
            .build();
        match plugin.call(HookName::OnRequestBody, &mut exchange).unwrap() {
            Decision::Continue => None,
            Decision::Respond(reply) => {
                assert_eq!(reply.content, Content::Problem, "the client learns nothing");
                let reason = reply.reason.unwrap().into_owned();
                Some((reply.status.as_u16(), reason, exchange.fact(FACT).cloned()))
            }
            Decision::Drop => panic!(),
        }
    }

    fn order() -> Value {
        json!({"schema": {
            "type": "object",
            "properties": {
                "id": {"type": "integer"},
                "mail": {"type": "string", "format": "email"},
                "items": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            },
            "required": ["id"],
        }})
    }

    #[test]
    fn a_fitting_body_passes_and_another_is_refused_with_its_place_for_the_log() {
        let table = order();
        assert_eq!(judge(&table, "application/json", r#"{"id": 1, "x": 2}"#), None);
        assert_eq!(judge(&table, "application/vnd.order+json; charset=utf-8", r#"{"id": 1}"#), None);
        let invalid = |at: &str, keyword: &str| {
            Some((422, INVALID.to_owned(), Some(json!({"at": at, "keyword": keyword}))))
        };
        assert_eq!(judge(&table, "application/json", r#"{"id": "1"}"#), invalid("/id", "type"));
        assert_eq!(judge(&table, "application/json", r#"{}"#), invalid("", "required"));
        assert_eq!(
            judge(&table, "application/json", r#"{"id": 1, "mail": "x"}"#),
            invalid("/mail", "format")
        );
    }

    #[test]
    fn a_long_body_is_judged_elsewhere_while_the_thread_goes_on() {
        let mut tester = PluginTester::new().holding_offloaded();
        let plugin = tester.build::<JsonSchemaCheck>(order()).unwrap();
        let post = |text: &str, length: usize| {
            let body = format!("{text}{}", " ".repeat(length - text.len()));
            let request =
                ExchangeBuilder::request(Method::POST, "/").header("content-type", "application/json");
            request.body(body).build()
        };
        let mut long = post(r#"{"id": "1"}"#, AT_ONCE + 1);
        let Hook::Wait(mut wait) = plugin.plugin().on_request_body(&mut long) else {
            panic!("it did not wait")
        };
        let mut context = Context::from_waker(Waker::noop());
        assert!(wait.as_mut().poll(&mut context).is_pending());
        let mut other = post(r#"{"id": 1}"#, AT_ONCE);
        let hook = plugin.plugin().on_request_body(&mut other);
        assert!(matches!(hook, Hook::Ready(Ok(Decision::Continue))));
        assert_eq!(tester.run_offloaded(), 1);
        let Poll::Ready(Ok(Decision::Respond(reply))) = wait.as_mut().poll(&mut context) else { panic!() };
        assert_eq!(reply.reason.as_deref(), Some(INVALID));
        drop(wait);
        assert_eq!(long.fact(FACT), Some(&json!({"at": "/id", "keyword": "type"})));
    }

    #[test]
    fn a_large_pattern_is_never_searched_for_on_the_worker() {
        let waits = |schema: Value| {
            let plugin = PluginTester::new().holding_offloaded();
            let plugin = { plugin }.build::<JsonSchemaCheck>(json!({ "schema": schema })).unwrap();
            let request =
                ExchangeBuilder::request(Method::POST, "/").header("content-type", "application/json");
            matches!(plugin.plugin().on_request_body(&mut request.body("{}").build()), Hook::Wait(_))
        };
        let (small, large) = ("^[A-Z]{3}-[0-9]{4}$", "^([a-z]{1,50}-?){1,200}$");
        assert!(!waits(json!({"items": {"pattern": small}, "patternProperties": {small: {}}})));
        assert!(waits(json!({"prefixItems": [{"pattern": large}]})));
        assert!(waits(json!({"properties": {"a": {"patternProperties": {large: {}}}}})));
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let mut tester = PluginTester::new();
        let plugin = tester.build::<JsonSchemaCheck>(order()).unwrap();
        for (body, times) in [("{", 1), (r#"{"id": "1"}"#, 2), (r#"{"id": 1}"#, 3)] {
            for _ in 0..times {
                let request = ExchangeBuilder::request(Method::POST, "/");
                let mut exchange = request.header("content-type", "application/json").body(body).build();
                plugin.call(HookName::OnRequestBody, &mut exchange).unwrap();
            }
        }
        let counts = REASONS.map(|reason| tester.counted("refusals", &[reason]).unwrap());
        assert_eq!(counts, [0, 1, 0, 0, 2]);
    }

    #[test]
    fn what_is_no_json_or_ambiguous_is_refused_before_it_is_validated() {
        let table = order();
        let reason = |media_type: &str, body: &str| {
            judge(&table, media_type, body).map(|(status, reason, _)| (status, reason))
        };
        for (media_type, body, status, expected) in [
            ("text/plain", r#"{"id": 1}"#, 415, MEDIA_TYPE),
            ("application/json", r#"{"id": 1"#, 400, MALFORMED),
            ("application/json", r#"{"id": 1} {}"#, 400, MALFORMED),
            ("application/json", r#"{"id": 1, "id": 2}"#, 400, DUPLICATE_KEY),
            ("application/json", r#"{"id": 1, "i\u0064": 2}"#, 400, DUPLICATE_KEY),
            ("application/json", &"[".repeat(1000), 400, TOO_DEEP),
        ] {
            assert_eq!(reason(media_type, body), Some((status, expected.to_owned())), "{body:.30}");
        }
    }

    #[test]
    fn a_compressed_body_is_not_guessed_at() {
        let plugin = build(order()).unwrap();
        let mut exchange = ExchangeBuilder::request(Method::POST, "/")
            .header("content-type", "application/json")
            .header("content-encoding", "gzip")
            .body(r#"{"id": 1}"#)
            .build();
        let Ok(Decision::Respond(reply)) = plugin.call(HookName::OnRequestBody, &mut exchange) else {
            panic!()
        };
        assert_eq!(reply.status, 415);
    }

    #[test]
    fn an_empty_body_passes_unless_one_is_required() {
        let mut table = order();
        assert_eq!(judge(&table, "application/json", ""), None);
        table["required"] = true.into();
        assert_eq!(
            judge(&table, "application/json", "").map(|refusal| refusal.1).as_deref(),
            Some(MALFORMED)
        );
    }

    #[test]
    fn unknown_fields_are_refused_at_every_depth_when_asked() {
        let mut table = order();
        let nested = r#"{"id": 1, "items": [{"n": 1, "m": 2}]}"#;
        assert_eq!(judge(&table, "application/json", nested), None);
        table["unknown_fields"] = "refuse".into();
        let (.., detail) = judge(&table, "application/json", nested).unwrap();
        assert_eq!(detail, Some(json!({"at": "/items/0", "keyword": "additionalProperties"})));
        assert_eq!(judge(&table, "application/json", r#"{"id": 1, "items": [{"n": 1}]}"#), None);
        table["schema"]["$schema"] = "http://json-schema.org/draft-07/schema#".into();
        assert_eq!(build(table).err().unwrap().path, "unknown_fields");
    }

    #[test]
    fn a_place_that_is_told_is_cut() {
        let table = json!({"schema": {"additionalProperties": {"type": "string"}}});
        let body = json!({ "k".repeat(1000): 1 }).to_string();
        let (.., detail) = judge(&table, "application/json", &body).unwrap();
        assert_eq!(detail.unwrap()["at"].as_str().unwrap().len(), MAX_PATH);
    }

    #[test]
    fn a_wrong_schema_is_refused_where_it_is_wrong() {
        let error = |table| build(table).err().unwrap();
        let wrong = error(json!({"schema": {"properties": {"a": {"type": "strin"}}}}));
        assert_eq!(wrong.path, "schema.properties.a.type", "{wrong}");
        assert_eq!(error(json!({})).path, "");
        assert_eq!(error(json!({"schema": {}, "max_depth": 0})).path, "max_depth");
        assert_eq!(error(json!({"schema": {}, "max_depth": 101})).path, "max_depth");
        assert!(build(json!({"schema": {"$ref": "https://example.com/schema.json"}})).is_err());
        assert!(build(json!({"schema": {"pattern": "(?=a)b"}})).is_err(), "look-around is not linear");
        let mut tester =
            PluginTester::new().file("s.json", "{\n  \"type\": ]").file("t.json", r#"{"type": 1}"#);
        let syntax = tester.build::<JsonSchemaCheck>(json!({"file": "s.json"})).err().unwrap();
        assert_eq!(syntax.to_string(), "s.json:2:11: the schema is not valid JSON");
        let content = tester.build::<JsonSchemaCheck>(json!({"file": "t.json"})).err().unwrap();
        assert!(content.path == "file" && content.message.contains("`/type` in `t.json`"), "{content}");
    }
}
