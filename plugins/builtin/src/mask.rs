//! `mask`: blanks out what must not leave, in response bodies.
//!
//! ```yaml
//! - mask:
//!     fields: [password, user.ssn, "items[].token"]
//!     patterns: [card, email]
//!     replace: "***"
//! ```
//!
//! A name in `fields` is a JSON field at any depth; a path with dots or brackets begins at the top,
//! where `[]` is every element of an array and `*` every field of an object. Names compare without
//! case. Patterns are built-in names or regular expressions between slashes; in JSON they search
//! strings, keys and numbers, elsewhere the text. What matches becomes `replace`. Everything else of
//! a body stays byte for byte as it was.
//!
//! `mode: whole` waits for the body, up to `limit`; a longer one is refused with 502. `mode: stream`
//! lets the body pass line by line and knows patterns only: a match never reaches over a line end,
//! of an unfinished line the last `max_match` bytes are held back, and of a match longer than that
//! only a part may be masked.
//!
//! A compressed body can't be read, so the upstream is asked for an uncompressed one, and one that
//! comes compressed all the same is refused. Ranges are not asked for either: a part of a body may
//! end within what is to be masked.
//!
//! Reasons: `mask.encoded` (502), `mask.malformed` (502, JSON by name only).

mod json;
mod patterns;
mod stream;

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT_ENCODING, ACCEPT_RANGES, HeaderMap, HeaderName, HeaderValue, IF_RANGE, RANGE};
use portcullis_plugin::{
    BodyFilter, BodyWish, BuildContext, BuildError, Decision, Exchange, Hook, HookName, Needs, Offload,
    Plugin, PluginError, PluginType, Reply, Size,
};
use schemars::JsonSchema;
use serde::Deserialize;

use self::json::{Broken, FieldRule};
use self::patterns::Patterns;
use crate::media::{MediaTypes, is_encoded, is_json, media_type};

const ENCODED: &str = "mask.encoded";
const MALFORMED: &str = "mask.malformed";

/// Checksums of the body as it was (RFC 9530, RFC 3230), which the masked body does not have.
const CHECKSUMS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Bodies beyond this are masked apart from the worker. Measured per KiB of JSON: 10 us for fields alone,
/// 16 us for fields and all named patterns, 50 us for an array of small numbers; of text 2 us, and 40 us
/// where it almost is account numbers.
const AT_ONCE: usize = 8 << 10;

/// The longest that `max_match` may be. For every chunk so much is searched again, at up to
/// 40 us per KiB.
const MAX_MATCH: Size = Size::kib(16);

/// Masks response bodies.
#[derive(Debug)]
pub(crate) struct Mask {
    rules: Arc<Rules>,
    media_types: MediaTypes,
    mode: Mode,
    limit: usize,
    max_match: usize,
    offload: Offload,
}

/// What is masked, and by what.
#[derive(Debug)]
struct Rules {
    fields: Vec<FieldRule>,
    patterns: Patterns,
    replace: String,
}

/// What must not leave.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// JSON fields: a name for any depth (`password`), or a path from the top (`user.ssn`,
    /// `items[].token`, `accounts.*.iban`). For `mode: whole` only. Default: none.
    #[serde(default)]
    fields: Vec<String>,
    /// Patterns: `card` (payment card, checksum verified), `email`, `iban` (checksum verified), `jwt`,
    /// `us_ssn`, or a regular expression between slashes, `/tok_[a-z0-9]{16}/`. Default: none.
    #[serde(default)]
    patterns: Vec<String>,
    /// What stands in place of what is masked. Default: `***`.
    #[serde(default = "default_replace")]
    replace: String,
    /// Media types of bodies that are masked; a response without a media type always is. Default:
    /// `[application/json, +json, text/*]`, for `mode: stream` `[text/*]`.
    media_types: Option<Vec<String>>,
    /// Whether the whole body is awaited, or masked as it passes. Default: `whole`.
    #[serde(default)]
    mode: Mode,
    /// The longest body that is awaited, e.g. `4MiB`. Default: `1MiB`.
    #[serde(default = "default_limit")]
    limit: Size,
    /// The longest match that `mode: stream` is sure to find, 64B to 16KiB. Default: `4KiB`.
    #[serde(default = "default_max_match")]
    max_match: Size,
}

/// When a body is masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// Once it is complete.
    #[default]
    Whole,
    /// As it passes.
    Stream,
}

fn default_replace() -> String {
    "***".to_owned()
}

fn default_limit() -> Size {
    Size::mib(1)
}

fn default_max_match() -> Size {
    Size::kib(4)
}

impl Mask {
    /// Whether a body with this head is masked.
    fn concerns(&self, headers: &HeaderMap) -> bool {
        media_type(headers).is_none_or(|found| self.media_types.contains(found))
    }
}

impl Rules {
    /// The decision: the masked body, if anything is to be masked.
    fn mask(&self, media_type: Option<&str>, body: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        match media_type {
            Some(media_type) if is_json(media_type) => json::mask(self, body),
            Some(_) => Ok(self.patterns.mask(body, &self.replace)),
            // It does not say what it is, so it is taken for what it looks like.
            None => json::mask(self, body).or_else(|_| Ok(self.patterns.mask(body, &self.replace))),
        }
    }
}

impl PluginType for Mask {
    const KIND: &'static str = "mask";
    const SUMMARY: &'static str = "blanks out JSON fields and patterns in response bodies";
    const EXAMPLE: &'static str = "\
- mask:
    fields: [password, user.ssn, 'items[].token']
    patterns: [card, email]
    replace: '***'
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if config.fields.is_empty() && config.patterns.is_empty() {
            return Err(BuildError::at("", "nothing is masked").help("give `fields` or `patterns`"));
        }
        if config.mode == Mode::Stream && !config.fields.is_empty() {
            return Err(BuildError::at("fields", "a field can't be found in a body that passes in pieces")
                .help("leave `mode: stream` out, or use `patterns`"));
        }
        if !(Size(64)..=MAX_MATCH).contains(&config.max_match) {
            return Err(BuildError::at("max_match", format!("must be 64B to {MAX_MATCH}")));
        }
        let default_types: &[&str] = match config.mode {
            Mode::Whole => &["application/json", "+json", "text/*"],
            Mode::Stream => &["text/*"],
        };
        let media_types = config
            .media_types
            .unwrap_or_else(|| default_types.iter().map(|text| (*text).to_owned()).collect());
        let field = |(index, text): (usize, &String)| FieldRule::parse(&format!("fields[{index}]"), text);
        let rules = Rules {
            fields: config.fields.iter().enumerate().map(field).collect::<Result<_, _>>()?,
            patterns: Patterns::parse("patterns", &config.patterns)?,
            replace: config.replace,
        };
        Ok(Mask {
            rules: Arc::new(rules),
            media_types: MediaTypes::parse("media_types", &media_types)?,
            mode: config.mode,
            limit: config.limit.0,
            max_match: config.max_match.0,
            offload: context.offload(),
        })
    }
}

impl Plugin for Mask {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest, HookName::OnResponse]).response_body(match self.mode {
            Mode::Whole => BodyWish::Whole { limit: self.limit },
            Mode::Stream => BodyWish::Stream,
        })
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let mut headers = exchange.request_mut().headers;
        // Without the header any coding would be welcome (RFC 9110, 12.5.3).
        headers.set(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.remove(&RANGE);
        headers.remove(&IF_RANGE);
        Hook::CONTINUE
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let Some(response) = exchange.response() else { return Hook::CONTINUE };
        if !self.concerns(response.headers()) {
            return Hook::CONTINUE;
        }
        if is_encoded(response.headers()) && Reply::may_have_body(response.status(), exchange.method()) {
            return Hook::respond(Reply::deny(StatusCode::BAD_GATEWAY, ENCODED));
        }
        if let Some(mut response) = exchange.response_mut() {
            response.headers.remove(&ACCEPT_RANGES);
            CHECKSUMS.iter().for_each(|name| response.headers.remove(name));
        }
        Hook::CONTINUE
    }

    fn wants_response_body(&self, exchange: &Exchange) -> bool {
        exchange.response().is_some_and(|response| self.concerns(response.headers()))
    }

    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let (Some(response), Some(body)) = (exchange.response(), exchange.response_body()) else {
            return Hook::CONTINUE;
        };
        if body.is_empty() || !self.concerns(response.headers()) {
            return Hook::CONTINUE;
        }
        let media_type = media_type(response.headers());
        if body.len() <= AT_ONCE {
            let masked = self.rules.mask(media_type, body);
            return Hook::from(follow(masked, exchange));
        }
        let (rules, body, media_type) = (self.rules.clone(), body.clone(), media_type.map(str::to_owned));
        Hook::Wait(Box::pin(async move {
            let masked = self.offload.run(move || rules.mask(media_type.as_deref(), &body)).await?;
            follow(masked, exchange)
        }))
    }

    fn response_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        let concerned = self.concerns(exchange.response()?.headers());
        concerned.then(|| Box::new(stream::Filter::new(self.rules.clone(), self.max_match)) as _)
    }
}

fn follow(masked: Result<Option<Vec<u8>>, Broken>, exchange: &mut Exchange) -> Result<Decision, PluginError> {
    match masked {
        Ok(None) => {}
        Ok(Some(body)) => exchange.set_response_body(Bytes::from(body))?,
        Err(Broken) => {
            return Ok(Decision::Respond(Box::new(Reply::deny(StatusCode::BAD_GATEWAY, MALFORMED))));
        }
    }
    Ok(Decision::Continue)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use portcullis_plugin::{Cursor, ExchangeBuilder, PluginTester, TestedPlugin};
    use serde_json::{Value, json};

    fn build(table: Value) -> TestedPlugin {
        PluginTester::new().build::<Mask>(table).unwrap()
    }

    /// The body that the client gets, or the reason why it gets none.
    fn masked(table: Value, headers: &[(&'static str, &str)], body: &str) -> Result<String, String> {
        let plugin = build(table);
        let mut exchange = ExchangeBuilder::get("/").response(200, headers, body.to_owned()).build();
        for hook in [HookName::OnResponse, HookName::OnResponseBody] {
            if let Decision::Respond(reply) = plugin.call(hook, &mut exchange).unwrap() {
                assert_eq!(reply.status, 502);
                return Err(reply.reason.unwrap().into_owned());
            }
        }
        Ok(String::from_utf8(exchange.response_body().unwrap().to_vec()).unwrap())
    }

    const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

    #[test]
    fn a_body_of_another_media_type_is_not_awaited() {
        let plugin = build(json!({ "fields": ["password"] }));
        let wants = |headers: &[(&'static str, &str)]| {
            let exchange = ExchangeBuilder::get("/").response(200, headers, "").build();
            plugin.plugin().wants_response_body(&exchange)
        };
        assert!(wants(JSON) && wants(&[]) && !wants(&[("content-type", "image/png")]));
    }

    #[test]
    fn fields_and_patterns_are_masked_and_the_rest_stays_byte_for_byte() {
        let table = json!({"fields": ["password", "user.ssn", "items[].token"], "patterns": ["email"]});
        let body = r#"{ "Password" : {"a": [1]}, "user": {"ssn": 1, "mail": "me: a@b.example"},
            "items": [{"token": "x", "n": 1.50}, {"token": null}], "ssn": 123456789012345678901234567890 }"#;
        assert_eq!(
            masked(table, JSON, body).unwrap(),
            r#"{ "Password" : "***", "user": {"ssn": "***", "mail": "me: ***"},
            "items": [{"token": "***", "n": 1.50}, {"token": "***"}], "ssn": 123456789012345678901234567890 }"#
        );
    }

    #[test]
    fn a_long_body_is_masked_elsewhere_while_the_thread_goes_on() {
        let mut tester = PluginTester::new().holding_offloaded();
        let plugin = tester.build::<Mask>(json!({"fields": ["a"]})).unwrap();
        let response = |length: usize| {
            let text = r#"{"a": 1}"#;
            let body = format!("{text}{}", " ".repeat(length - text.len()));
            let at = Cursor { plugin: 0, hook: HookName::OnResponseBody };
            ExchangeBuilder::get("/").response(200, JSON, body).with(move |parts| parts.cursor = at).build()
        };
        let mut long = response(AT_ONCE + 1);
        let Hook::Wait(mut wait) = plugin.plugin().on_response_body(&mut long) else {
            panic!("it did not wait")
        };
        let mut context = Context::from_waker(Waker::noop());
        assert!(wait.as_mut().poll(&mut context).is_pending());
        let mut other = response(AT_ONCE);
        assert!(matches!(plugin.plugin().on_response_body(&mut other), Hook::Ready(Ok(Decision::Continue))));
        assert_eq!(tester.run_offloaded(), 1);
        assert!(matches!(wait.as_mut().poll(&mut context), Poll::Ready(Ok(Decision::Continue))));
        drop(wait);
        for exchange in [long, other] {
            assert!(exchange.response_body().unwrap().starts_with(br#"{"a": "***"}"#));
        }
    }

    #[test]
    fn text_is_masked_by_pattern_and_other_media_not_at_all() {
        let table = json!({"patterns": ["card"], "replace": "[card]"});
        let body = "pay 4111 1111 1111 1111 now";
        assert_eq!(masked(table.clone(), &[("content-type", "text/html")], body).unwrap(), "pay [card] now");
        assert_eq!(masked(table.clone(), &[], body).unwrap(), "pay [card] now");
        assert_eq!(masked(table, &[("content-type", "image/png")], body).unwrap(), body);
    }

    #[test]
    fn what_cannot_be_read_does_not_leave() {
        let table = json!({"fields": ["a"]});
        let encoded = [("content-type", "application/json"), ("content-encoding", "gzip")];
        assert_eq!(masked(table.clone(), &encoded, "x"), Err(ENCODED.to_owned()));
        assert_eq!(masked(table.clone(), JSON, r#"{"a": "#), Err(MALFORMED.to_owned()));
        assert_eq!(masked(table, JSON, ""), Ok(String::new()));
    }

    #[test]
    fn the_upstream_is_asked_for_whole_plain_bodies() {
        let plugin = build(json!({"fields": ["a"]}));
        let mut exchange = ExchangeBuilder::get("/")
            .header("accept-encoding", "gzip, br")
            .header("range", "bytes=0-9")
            .response(200, &[("content-digest", "sha-256=:AA==:"), ("accept-ranges", "bytes")], "")
            .build();
        plugin.on_request(&mut exchange).unwrap();
        plugin.on_response(&mut exchange).unwrap();
        assert_eq!(exchange.request().header(&ACCEPT_ENCODING), Some("identity"));
        assert!(!exchange.request().headers().contains_key(RANGE));
        assert!(exchange.response().unwrap().headers().is_empty());
    }

    #[test]
    fn only_bodies_of_the_listed_types_are_filtered_as_they_pass() {
        let plugin = build(json!({"patterns": ["email"], "mode": "stream"}));
        assert_eq!(plugin.plugin().needs().response_body, BodyWish::Stream);
        let filter = |media_type| {
            let exchange =
                ExchangeBuilder::get("/").response(200, &[("content-type", media_type)], "").build();
            plugin.plugin().response_body_filter(&exchange).is_some()
        };
        assert!(filter("text/event-stream") && !filter("application/octet-stream"));
    }

    #[test]
    fn what_cannot_be_masked_is_refused_at_build() {
        for (table, path) in [
            (json!({}), ""),
            (json!({"fields": ["a"], "mode": "stream"}), "fields"),
            (json!({"fields": ["a", "b..c"]}), "fields[1]"),
            (json!({"patterns": ["email", "phone"]}), "patterns[1]"),
            (json!({"patterns": ["/(/"]}), "patterns[0]"),
            (json!({"patterns": ["/a*/"]}), "patterns[0]"),
            (json!({"patterns": [r"/(\pL{100}){100}/"]}), "patterns[0]"),
            (json!({"patterns": ["email"], "max_match": "1B"}), "max_match"),
            (json!({"patterns": ["email"], "max_match": "17KiB"}), "max_match"),
        ] {
            assert_eq!(PluginTester::new().build::<Mask>(table).err().unwrap().path, path);
        }
    }
}
