//! `cors`: lets web pages of other origins use the API (Fetch standard, "CORS protocol").
//!
//! ```yaml
//! - cors:
//!     origins: [https://app.example.com, "https://*.example.org"]
//!     methods: [GET, POST, DELETE]
//!     headers: [content-type, authorization]
//!     credentials: true
//!     max_age: 10m
//! ```
//!
//! An origin in `origins` is exact, `*` for all, has `*.` for any subdomain (not the domain itself),
//! or is a regular expression between slashes that has to match the whole origin.
//!
//! A preflight is answered here and never reaches what stands behind: 204, with what is allowed, or
//! without if the origin is not (`reject: true` makes that a 403). Any other request goes on, whatever
//! its origin: it is the browser that keeps the page from reading the answer. What the upstream says
//! of CORS itself is replaced. `Vary` names every request header on which the answer depends, also
//! where nothing is allowed, so that no cache hands one origin's answer to another.
//!
//! Put it before authentication: a preflight carries no credentials, and a 401 without CORS headers
//! can't be read by the page that gets it.
//!
//! Reasons: `cors.origin_not_allowed` (403).

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName, HeaderValue,
    ORIGIN, VARY,
};
use http::{Method, StatusCode};
use portcullis_plugin::{
    BuildContext, BuildError, Exchange, Hook, HookName, Needs, Plugin, PluginType, Reply, Request,
    ResponseMut, Span,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::names::{header_names, joined};
use crate::origins::{OriginRule, allows, remark};

const ORIGIN_NOT_ALLOWED: &str = "cors.origin_not_allowed";

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const ANY: HeaderValue = HeaderValue::from_static("*");

/// Speaks CORS for the upstream.
#[derive(Debug)]
pub(crate) struct Cors {
    origins: Origins,
    methods: Allowed,
    headers: Allowed,
    expose_headers: Option<HeaderValue>,
    credentials: bool,
    max_age: Option<HeaderValue>,
    private_network: bool,
    reject: bool,
    preflight_vary: HeaderValue,
}

/// Which pages may use the API, and how.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Origins that may: exact (`https://app.example.com`), any subdomain (`https://*.example.com`), a
    /// regular expression for the whole origin (`/https:\/\/pr-[0-9]+\.example\.com/`), or `*`.
    origins: Vec<String>,
    /// Methods that may be used, or `any`. Default: `[GET, HEAD, POST]`.
    #[serde(default = "default_methods")]
    methods: Names,
    /// Request headers that may be sent, or `any`. Default: only those that need no permission.
    #[serde(default)]
    headers: Names,
    /// Response headers that pages may read beyond the harmless ones. Default: none.
    #[serde(default)]
    expose_headers: Vec<String>,
    /// Whether cookies and client credentials may be sent along. Default: `false`.
    #[serde(default)]
    credentials: bool,
    /// How long a browser may keep the answer to a preflight, e.g. `10m`. Default: the browser's, 5s.
    max_age: Option<Span>,
    /// Whether public pages may call, though this server is in a private network. Default: `false`.
    #[serde(default)]
    private_network: bool,
    /// Whether preflights of other origins get a 403 instead of a 204 that allows nothing.
    /// Default: `false`.
    #[serde(default)]
    reject: bool,
}

/// Names, or whatever is asked for.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected `any` or a list of names")]
enum Names {
    /// `any`.
    Any(AnyWord),
    /// These.
    List(Vec<String>),
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum AnyWord {
    /// Whatever is asked for.
    Any,
}

impl Default for Names {
    fn default() -> Self {
        Names::List(Vec::new())
    }
}

fn default_methods() -> Names {
    Names::List(["GET", "HEAD", "POST"].map(str::to_owned).to_vec())
}

#[derive(Debug)]
enum Allowed {
    /// What the preflight asks for.
    Asked,
    These(HeaderValue),
    Nothing,
}

#[derive(Debug)]
enum Origins {
    All,
    Some(Vec<OriginRule>),
}

impl Cors {
    /// The decision: what `Access-Control-Allow-Origin` says to this origin.
    fn allow_origin(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        match &self.origins {
            Origins::All => Some(ANY),
            Origins::Some(rules) => origin.filter(|origin| allows(rules, origin)).cloned(),
        }
    }

    fn preflight(&self, request: &Request) -> Reply {
        let headers = request.headers();
        let allow_origin = self.allow_origin(headers.get(ORIGIN));
        if allow_origin.is_none() && self.reject {
            let reply = Reply::deny(StatusCode::FORBIDDEN, ORIGIN_NOT_ALLOWED);
            return reply.header(VARY, self.preflight_vary.clone());
        }
        let mut reply = Reply::new(StatusCode::NO_CONTENT).header(VARY, self.preflight_vary.clone());
        if let Some(origin) = allow_origin {
            reply.headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            self.permit(headers, &mut reply.headers);
        }
        reply
    }

    fn permit(&self, asked: &HeaderMap, reply: &mut HeaderMap) {
        let mut insert =
            |name, value: Option<&HeaderValue>| value.map(|value| reply.insert(name, value.clone()));
        let methods = self.methods.answer(asked, &ACCESS_CONTROL_REQUEST_METHOD);
        insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        let headers = self.headers.answer(asked, &ACCESS_CONTROL_REQUEST_HEADERS);
        insert(ACCESS_CONTROL_ALLOW_HEADERS, headers);
        insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, self.credentials.then_some(&TRUE));
        insert(ACCESS_CONTROL_MAX_AGE, self.max_age.as_ref());
        let private = asked.get(REQUEST_PRIVATE_NETWORK).is_some_and(|asked| asked == "true");
        insert(ALLOW_PRIVATE_NETWORK, (private && self.private_network).then_some(&TRUE));
    }

    fn mark(
        &self,
        allow_origin: Option<HeaderValue>,
        response: &mut ResponseMut<'_>,
        vary: Option<HeaderValue>,
    ) {
        let headers = &mut response.headers;
        for name in [
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_ALLOW_HEADERS,
            ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_EXPOSE_HEADERS,
            ACCESS_CONTROL_MAX_AGE,
            ALLOW_PRIVATE_NETWORK,
        ] {
            headers.remove(&name);
        }
        if let Some(vary) = vary {
            headers.append(VARY, vary);
        }
        let Some(origin) = allow_origin else { return };
        headers.set(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            headers.set(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if let Some(exposed) = &self.expose_headers {
            headers.set(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
    }

    /// `Vary: Origin`, if the answer depends on it and the response does not say so yet.
    fn vary(&self, response: &HeaderMap) -> Option<HeaderValue> {
        let said = |value: &HeaderValue| {
            value
                .as_bytes()
                .split(|byte| *byte == b',')
                .map(<[u8]>::trim_ascii)
                .any(|name| name == b"*" || name.eq_ignore_ascii_case(b"origin"))
        };
        let depends = matches!(self.origins, Origins::Some(_));
        (depends && !response.get_all(VARY).iter().any(said)).then_some(HeaderValue::from_static("Origin"))
    }
}

impl Allowed {
    fn build(at: &str, names: &Names) -> Result<Self, BuildError> {
        Ok(match names {
            Names::Any(AnyWord::Any) => Allowed::Asked,
            Names::List(names) if names.is_empty() => Allowed::Nothing,
            Names::List(names) => Allowed::These(joined(at, names)?),
        })
    }

    fn answer<'a>(&'a self, asked: &'a HeaderMap, by: &HeaderName) -> Option<&'a HeaderValue> {
        match self {
            Allowed::Asked => asked.get(by),
            Allowed::These(names) => Some(names),
            Allowed::Nothing => None,
        }
    }
}

/// A preflight (Fetch, "CORS-preflight request"): OPTIONS alone may be the API's own.
fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(ORIGIN)
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

impl PluginType for Cors {
    const KIND: &'static str = "cors";
    const SUMMARY: &'static str = "lets web pages of other origins use the API";
    const EXAMPLE: &'static str = "\
- cors:
    origins: [https://app.example.com, 'https://*.example.org']
    methods: [GET, POST, DELETE]
    headers: [content-type, authorization]
    expose_headers: [x-request-id]
    credentials: true
    max_age: 10m
";
    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let origins = origins(&config, context)?;
        if let Names::List(names) = &config.headers {
            header_names("headers", names)?;
        }
        header_names("expose_headers", &config.expose_headers)?;
        if let Names::List(methods) = &config.methods {
            for (index, method) in methods.iter().enumerate() {
                Method::from_bytes(method.as_bytes()).map_err(|_| {
                    BuildError::at(format!("methods[{index}]"), format!("`{method}` is not a method"))
                })?;
            }
        }
        let exposed = &config.expose_headers;
        let preflight_vary = match config.private_network {
            true => {
                "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                     Access-Control-Request-Private-Network"
            }
            false => "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
        };
        Ok(Cors {
            origins,
            methods: Allowed::build("methods", &config.methods)?,
            headers: Allowed::build("headers", &config.headers)?,
            expose_headers: (!exposed.is_empty()).then(|| joined("expose_headers", exposed)).transpose()?,
            credentials: config.credentials,
            max_age: config.max_age.map(|span| span.0.as_secs().into()),
            private_network: config.private_network,
            reject: config.reject,
            preflight_vary: HeaderValue::from_static(preflight_vary),
        })
    }
}

impl Plugin for Cors {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest, HookName::OnResponse]).on_every_response()
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        match is_preflight(exchange.request()) {
            true => Hook::respond(self.preflight(exchange.request())),
            false => Hook::CONTINUE,
        }
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        // A preflight's answer is this plugin's own and complete.
        if is_preflight(exchange.request()) {
            return Hook::CONTINUE;
        }
        let allow_origin = self.allow_origin(exchange.request().headers().get(ORIGIN));
        let vary = exchange.response().and_then(|response| self.vary(response.headers()));
        if let Some(mut response) = exchange.response_mut() {
            self.mark(allow_origin, &mut response, vary);
        }
        Hook::CONTINUE
    }
}

fn origins(config: &Config, context: &mut BuildContext<'_>) -> Result<Origins, BuildError> {
    if config.origins.is_empty() {
        return Err(BuildError::at("origins", "no origin is allowed").help("name one, or leave `cors` out"));
    }
    if let Some(index) = config.origins.iter().position(|origin| origin == "*") {
        let at = format!("origins[{index}]");
        if config.credentials {
            return Err(BuildError::at(at, "`*` and `credentials: true` exclude each other")
                .help("every page on the web could act for your users; name the origins"));
        }
        if config.origins.len() > 1 {
            context.warn(&at, "`*` allows all origins, the others in the list change nothing");
        }
        return Ok(Origins::All);
    }
    let rule = |(index, text): (usize, &String)| {
        let at = format!("origins[{index}]");
        let rule = OriginRule::parse(&at, text)?;
        remark(&at, text, &rule, config.credentials, context);
        Ok(rule)
    };
    config.origins.iter().enumerate().map(rule).collect::<Result<_, _>>().map(Origins::Some)
}

#[cfg(test)]
mod tests;
