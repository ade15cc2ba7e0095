//! `body_limit`: bounds the size of bodies.
//!
//! ```yaml
//! - body_limit:
//!     request: 1MiB
//!     response: 64MiB
//! ```
//!
//! A message that announces its length is judged by that, before anything of it is read or sent. Any
//! other is counted as it passes; past the limit the exchange ends, by a reply if no response has
//! begun, else by a reset.
//!
//! Reasons: `body_limit.too_large` (413), `body_limit.response_too_large` (502).

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderMap};
use portcullis_plugin::{
    BodyFilter, BodyWish, BuildContext, BuildError, Exchange, Filtered, Hook, HookName, Needs, Plugin,
    PluginError, PluginType, Reply, Size,
};
use schemars::JsonSchema;
use serde::Deserialize;

const TOO_LARGE: &str = "body_limit.too_large";
const RESPONSE_TOO_LARGE: &str = "body_limit.response_too_large";

/// Bounds bodies.
#[derive(Debug)]
pub(crate) struct BodyLimit {
    request: Option<u64>,
    response: Option<u64>,
}

/// How large bodies may be.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The largest request body, e.g. `1MiB`. Default: no limit.
    request: Option<Size>,
    /// The largest response body, e.g. `64MiB`. Default: no limit.
    response: Option<Size>,
}

/// What a message's head says about its body.
#[derive(Debug, PartialEq)]
enum Length {
    Within,
    Beyond,
    Unknown,
}

fn judge(headers: &HeaderMap, limit: u64) -> Length {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let announced = match (lengths.next(), lengths.next()) {
        (Some(length), None) => length.to_str().ok().and_then(|length| length.parse::<u64>().ok()),
        _ => None,
    };
    match announced {
        Some(length) if length > limit => Length::Beyond,
        Some(_) => Length::Within,
        None => Length::Unknown,
    }
}

fn request_refusal() -> Reply {
    Reply::deny(StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE)
}

fn response_refusal() -> Reply {
    Reply::deny(StatusCode::BAD_GATEWAY, RESPONSE_TOO_LARGE)
}

/// Counts what passes.
struct Counter {
    left: u64,
    refusal: fn() -> Reply,
}

impl BodyFilter for Counter {
    fn chunk(&mut self, chunk: Bytes) -> Result<Filtered, PluginError> {
        match self.left.checked_sub(chunk.len() as u64) {
            Some(left) => {
                self.left = left;
                Ok(Filtered::Pass(chunk))
            }
            None => Ok(Filtered::Refuse(Box::new((self.refusal)()))),
        }
    }
}

fn counter(headers: &HeaderMap, limit: Option<u64>, refusal: fn() -> Reply) -> Option<Box<dyn BodyFilter>> {
    let left = limit?;
    // The framing holds an announced length to its word.
    (judge(headers, left) != Length::Within).then(|| Box::new(Counter { left, refusal }) as _)
}

impl PluginType for BodyLimit {
    const KIND: &'static str = "body_limit";
    const SUMMARY: &'static str = "bounds the size of request and response bodies";
    const EXAMPLE: &'static str = "\
- body_limit:
    request: 1MiB
    response: 64MiB
";
    type Config = Config;

    fn build(config: Config, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if config.request.is_none() && config.response.is_none() {
            return Err(BuildError::at("", "no limit is set").help("give `request`, e.g. `request: 1MiB`"));
        }
        Ok(BodyLimit {
            request: config.request.map(|size| size.0 as u64),
            response: config.response.map(|size| size.0 as u64),
        })
    }
}

impl Plugin for BodyLimit {
    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        if self.request.is_some() {
            needs = needs.and(HookName::OnRequest).request_body(BodyWish::Stream);
        }
        if self.response.is_some() {
            needs = needs.and(HookName::OnResponse).response_body(BodyWish::Stream);
        }
        needs
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        match self.request {
            Some(limit) if judge(exchange.request().headers(), limit) == Length::Beyond => {
                Hook::respond(request_refusal())
            }
            _ => Hook::CONTINUE,
        }
    }

    fn request_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        counter(exchange.request().headers(), self.request, request_refusal)
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let (Some(limit), Some(response)) = (self.response, exchange.response()) else {
            return Hook::CONTINUE;
        };
        // A HEAD's or a 304's length is that of a body which does not follow; a reply that the gateway
        // made is not the upstream's fault.
        let body = exchange.decider().is_none() && Reply::may_have_body(response.status(), exchange.method());
        if body && judge(response.headers(), limit) == Length::Beyond {
            return Hook::respond(response_refusal());
        }
        Hook::CONTINUE
    }

    fn response_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        match exchange.decider() {
            None => counter(exchange.response()?.headers(), self.response, response_refusal),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;
    use portcullis_plugin::{Decision, ExchangeBuilder, PluginTester, TestedPlugin};
    use serde_json::{Value, json};

    fn build(table: Value) -> TestedPlugin {
        PluginTester::new().build::<BodyLimit>(table).unwrap()
    }

    fn post(headers: &[(&str, &str)]) -> Exchange {
        let request = ExchangeBuilder::request(Method::POST, "/");
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).build()
    }

    #[test]
    fn an_announced_length_is_judged_at_once_and_then_costs_nothing() {
        let plugin = build(json!({"request": "10B"}));
        let Ok(Decision::Respond(reply)) = plugin.on_request(&mut post(&[("content-length", "11")])) else {
            panic!()
        };
        assert_eq!((reply.status.as_u16(), reply.reason.as_deref()), (413, Some(TOO_LARGE)));
        let mut exchange = post(&[("content-length", "10")]);
        assert!(matches!(plugin.on_request(&mut exchange), Ok(Decision::Continue)));
        assert!(plugin.plugin().request_body_filter(&exchange).is_none());
    }

    #[test]
    fn an_unannounced_body_is_counted_to_the_byte() {
        let plugin = build(json!({"request": "10B"}));
        for headers in
            [vec![], vec![("content-length", "1"), ("content-length", "2")], vec![("content-length", "x")]]
        {
            let mut filter = plugin.plugin().request_body_filter(&post(&headers)).unwrap();
            assert!(
                matches!(filter.chunk(Bytes::from_static(b"12345")), Ok(Filtered::Pass(chunk)) if chunk.len() == 5)
            );
            assert!(matches!(filter.chunk(Bytes::from_static(b"67890")), Ok(Filtered::Pass(_))));
            let Ok(Filtered::Refuse(reply)) = filter.chunk(Bytes::from_static(b"1")) else { panic!() };
            assert_eq!(reply.status, 413);
        }
    }

    #[test]
    fn responses_are_bounded_too() {
        let plugin = build(json!({"response": "10B"}));
        assert!(plugin.plugin().needs().is_on_every_response());
        let respond = |method, status, length: &str| {
            let mut exchange = ExchangeBuilder::request(method, "/")
                .response(status, &[("content-length", length)], "")
                .build();
            matches!(plugin.on_response(&mut exchange), Ok(Decision::Respond(reply)) if reply.status == 502)
        };
        assert!(respond(Method::GET, 200, "11") && !respond(Method::GET, 200, "10"));
        assert!(!respond(Method::HEAD, 200, "11") && !respond(Method::GET, 304, "11"));
        let chunked = ExchangeBuilder::get("/").response(200, &[], "").build();
        let mut filter = plugin.plugin().response_body_filter(&chunked).unwrap();
        assert!(matches!(filter.chunk(Bytes::from_static(b"12345678901")), Ok(Filtered::Refuse(_))));
    }

    #[test]
    fn a_table_without_a_limit_is_refused() {
        assert!(PluginTester::new().build::<BodyLimit>(json!({})).is_err());
        let error = PluginTester::new().build::<BodyLimit>(json!({"request": "1 MB"})).err().unwrap();
        assert!(error.message.contains("64KiB"), "{error}");
    }
}
