//! The policy of the conformance suite: does what the header `x-do` says. `guest` and `policy.rhai` do the
//! same in the same order, for the other kinds.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use portcullis_plugin::{
    BodyWish, BuildContext, BuildError, Decision, Exchange, Hook, HookName, Needs, Plugin, PluginError,
    PluginType, Principal, Reply,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

/// A plugin like any built-in one, that only this suite registers.
pub(crate) struct Conformance(Config);

/// The table of the plugin.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// What `greet` says.
    greeting: String,
}

impl PluginType for Conformance {
    const KIND: &'static str = "conformance";
    const SUMMARY: &'static str = "does what the request says";
    const EXAMPLE: &'static str = "- conformance: { greeting: hello }";

    type Config = Config;

    fn build(config: Config, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        Ok(Conformance(config))
    }
}

fn told(exchange: &Exchange) -> &str {
    exchange.request().header(&HeaderName::from_static("x-do")).unwrap_or_default()
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap()
}

fn respond(reply: Reply) -> Decision {
    Decision::Respond(Box::new(reply))
}

impl Conformance {
    fn request(&self, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        match told(exchange) {
            "deny" => {
                exchange.rests_on("the first rule");
                return Ok(respond(Reply::deny(StatusCode::FORBIDDEN, "conformance.denied")));
            }
            "respond" => {
                let reply =
                    Reply::new(StatusCode::CREATED).header(HeaderName::from_static("x-made"), value("here"));
                return Ok(respond(reply.body("text/plain; charset=utf-8", "made")));
            }
            "drop" => return Ok(Decision::Drop),
            "fail" => panic!("as told"),
            "greet" => {
                exchange
                    .request_mut()
                    .headers
                    .set(HeaderName::from_static("x-greeting"), value(&self.0.greeting));
            }
            "remove" => exchange.request_mut().headers.remove(&HeaderName::from_static("x-secret")),
            "rewrite" => {
                let mut request = exchange.request_mut();
                request.set_path("/rewritten").map_err(PluginError::failed)?;
                request.set_query(Some("by=policy")).map_err(PluginError::failed)?;
            }
            "identify" => exchange.set_principal(Principal {
                id: "ann".into(),
                roles: vec!["admin".into()],
                ..Principal::default()
            }),
            "read" => {
                let seen = seen(exchange);
                exchange.set_fact("seen", seen);
            }
            _ => {}
        }
        Ok(Decision::Continue)
    }

    fn response(&self, exchange: &mut Exchange) -> Decision {
        match told(exchange) {
            "stamp" => {
                let status = exchange.response().map_or(0, |response| response.status().as_u16());
                if let Some(mut response) = exchange.response_mut() {
                    response.headers.set(HeaderName::from_static("x-stamp"), status.into());
                    response.set_status(StatusCode::ACCEPTED);
                }
                Decision::Continue
            }
            "replace" => {
                respond(Reply::deny(StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS, "conformance.replaced"))
            }
            _ => Decision::Continue,
        }
    }
}

fn seen(exchange: &Exchange) -> Value {
    let request = exchange.request();
    json!({
        "method": request.method().as_str(),
        "path": request.path(),
        "host": request.host(),
        "query": request.query_param("q"),
        "cookie": request.cookie("session"),
        "capture": exchange.capture("id"),
        "route": exchange.route(),
        "client": exchange.client().to_string(),
    })
}

impl Plugin for Conformance {
    fn needs(&self) -> Needs {
        let whole = BodyWish::Whole { limit: 1 << 20 };
        use HookName::*;
        Needs::hooks([OnRequest, OnUpstream, OnResponse, OnLog]).request_body(whole).response_body(whole)
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.request(exchange).into()
    }

    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if told(exchange) == "upper" {
            let upper = exchange.request_body().map(|body| body.to_ascii_uppercase()).unwrap_or_default();
            return exchange.set_request_body(upper.into()).map(|()| Decision::Continue).into();
        }
        Hook::CONTINUE
    }

    fn on_upstream<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let number = exchange.attempt().map_or(0, |attempt| attempt.number);
        if told(exchange) == "attempt"
            && let Some(mut outgoing) = exchange.outgoing_mut()
        {
            outgoing.headers.set(HeaderName::from_static("x-attempt"), number.into());
        }
        Hook::CONTINUE
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.response(exchange).into()
    }

    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if told(exchange) == "wrap" {
            let body = exchange.response_body().cloned().unwrap_or_default();
            let wrapped = Bytes::from([b"<".as_slice(), &body, b">"].concat());
            return exchange.set_response_body(wrapped).map(|()| Decision::Continue).into();
        }
        Hook::CONTINUE
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let status = exchange.outcome().and_then(|outcome| outcome.status);
        let status = status.map_or_else(|| "none".to_owned(), |status| status.as_str().to_owned());
        exchange.set_fact("logged", status.into());
        if let Some(code) = exchange.outcome().and_then(|outcome| outcome.grpc_status) {
            exchange.set_fact("grpc", code.into());
        }
        Hook::CONTINUE
    }
}
