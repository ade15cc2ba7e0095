//! Requests, responses and their headers.

use bytes::Bytes;
use http::Method;
use http::header::HeaderMap;
use portcullis_plugin::{self as sdk, Exchange, HeadMut, RequestMut};
use rhai::{Dynamic, ImmutableString};

use super::Api;
use crate::call::{self, CallId, Outcome, charge};
use crate::value;
use crate::verdict;

/// Which request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Client,
    Outgoing,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    call: CallId,
    side: Side,
}

/// The response.
#[derive(Debug, Clone, Copy)]
pub(super) struct Response(pub(super) CallId);

/// The headers of a request or of the response.
#[derive(Debug, Clone, Copy)]
struct Headers {
    call: CallId,
    of: Of,
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Request(Side),
    Response,
}

pub(super) fn register(api: &mut Api<'_>) {
    request(api);
    request_body(api);
    response(api);
    headers(api);
}

fn request(api: &mut Api<'_>) {
    api.on::<Request>();
    api.property(
        "method: string",
        "The method.",
        r#"if ctx.request.method == "TRACE" { return deny(405, "my_policy.no_trace"); }"#,
        |request: &mut Request| request.read(|head| Ok(head.method().as_str().into())),
    );
    api.writable(|request: &mut Request, method: &str| {
        let method =
            Method::from_bytes(method.as_bytes()).map_err(|_| format!("`{method}` is not a method"))?;
        request.change(|mut head| Ok(head.set_method(method)?))
    });
    api.property(
        "path: string",
        "The path, normalised. Changing it changes what goes upstream; the route stays.",
        r#"ctx.request.path = "/v2" + ctx.request.path;"#,
        |request: &mut Request| request.read(|head| Ok(head.path().into())),
    );
    api.writable(|request: &mut Request, path: &str| {
        charge(path.len())?;
        request.change(|mut head| Ok(head.set_path(path)?))
    });
    api.property(
        "query_string: string | ()",
        "The query without its question mark.",
        r#"ctx.request.query_string = "a=1";"#,
        |request: &mut Request| request.read(|head| Ok(value::text_or_unit(head.query()))),
    );
    api.writable(|request: &mut Request, query: Dynamic| {
        let query = if query.is_unit() { None } else { Some(value::text(query)?) };
        charge(query.as_ref().map_or(0, |query| query.len()))?;
        request.change(|mut head| Ok(head.set_query(query.as_deref())?))
    });
    api.property(
        "host: string",
        "The host that was asked for, lower case, without port.",
        r#"if ctx.request.host != "gateway.test" { throw "wrong"; }"#,
        |request: &mut Request| request.read(|head| Ok(head.host().into())),
    );
    api.property(
        "headers: Headers",
        "The headers.",
        r#"ctx.request.headers["x-client"] = ctx.client.address;"#,
        |request: &mut Request| Headers { call: request.call, of: Of::Request(request.side) },
    );
    api.handle::<Request, Headers>();
    api.function(
        "query(name: string) -> string | ()",
        "The first query parameter of this name, decoded.",
        r#"if ctx.request.query("page") != "2" { throw "wrong"; }"#,
        |request: &mut Request, name: &str| {
            request.read(|head| {
                charge(head.query().map_or(0, str::len))?;
                Ok(value::text_or_unit(head.query_param(name).as_deref()))
            })
        },
    );
    api.function(
        "cookie(name: string) -> string | ()",
        "A cookie's value.",
        r#"if ctx.request.cookie("session") == () { return deny(401, "my_policy.no_session"); }"#,
        |request: &mut Request, name: &str| request.read(|head| Ok(value::text_or_unit(head.cookie(name)))),
    );
}

fn request_body(api: &mut Api<'_>) {
    api.property(
        "body: string | ()",
        "The whole body as UTF-8 text, from `on_request_body` on, and to be changed there. A map or an array is written as JSON.",
        r##"ctx.request.body = #{ wrapped: ctx.request.body };"##,
        |request: &mut Request| call::exchange(request.call, |exchange| body_text(exchange.request_body())),
    );
    api.writable(|request: &mut Request, body: Dynamic| {
        let (_, bytes) = verdict::content(body)?;
        call::exchange(request.call, |exchange| exchange.set_request_body(bytes).map_err(failed))
    });
    api.function(
        "json() -> map | array | string | int | float | bool | ()",
        "The whole body, read as JSON, from `on_request_body` on.",
        r#"if ctx.request.json().items[0] != 1 { throw "wrong"; }"#,
        |request: &mut Request| {
            let text = call::exchange(request.call, |exchange| Ok(exchange.request_body().cloned()))?;
            body_json(text)
        },
    );
}

fn response(api: &mut Api<'_>) {
    api.on::<Response>();
    api.property(
        "status: int",
        "The status.",
        "if ctx.response.status == 404 { ctx.response.status = 410; }",
        |response: &mut Response| response.read(|head| Ok(i64::from(head.status().as_u16()))),
    );
    api.writable(|response: &mut Response, status: i64| {
        let status = verdict::code(status)?;
        call::exchange(response.0, |exchange| {
            exchange.response_mut().ok_or("there is no response")?.set_status(status);
            Ok(())
        })
    });
    api.property(
        "headers: Headers",
        "The headers.",
        r#"ctx.response.headers["cache-control"] = "no-store";"#,
        |response: &mut Response| Headers { call: response.0, of: Of::Response },
    );
    api.handle::<Response, Headers>();
    api.property(
        "body: string | ()",
        "The whole body as UTF-8 text, from `on_response_body` on, and to be changed there. A map or an array is written as JSON.",
        r#"ctx.response.body = ctx.response.body + "\n";"#,
        |response: &mut Response| call::exchange(response.0, |exchange| body_text(exchange.response_body())),
    );
    api.writable(|response: &mut Response, body: Dynamic| {
        let (_, bytes) = verdict::content(body)?;
        call::exchange(response.0, |exchange| exchange.set_response_body(bytes).map_err(failed))
    });
    api.function(
        "json() -> map | array | string | int | float | bool | ()",
        "The whole body, read as JSON, from `on_response_body` on.",
        "let answer = ctx.response.json(); answer.remove(\"secret\"); ctx.response.body = answer;",
        |response: &mut Response| {
            let text = call::exchange(response.0, |exchange| Ok(exchange.response_body().cloned()))?;
            body_json(text)
        },
    );
}

fn headers(api: &mut Api<'_>) {
    api.on::<Headers>();
    api.index(
        "[name: string] -> string | ()",
        "A header's first value, in any case of its name; `()` if it is absent or not visible ASCII. Set it to a text, or to `()` to remove it.",
        r#"if ctx.request.headers["X-Tenant"] == () { ctx.request.headers["x-tenant"] = "none"; }"#,
        |headers: &mut Headers, name: &str| headers.get(name),
    );
    // A function for the common type is found at once, one for all types is looked for last.
    api.writable_index(|headers: &mut Headers, name: &str, value: &str| headers.set_text(name, value));
    api.writable_index(|headers: &mut Headers, name: &str, value: Dynamic| headers.set(name, value));
    api.function(
        "append(name: string, value: string)",
        "Adds a value to a header.",
        r#"ctx.request.headers.append("via", "1.1 gateway");"#,
        |headers: &mut Headers, name: &str, value: &str| {
            let (name, value) = (verdict::header_name(name)?, verdict::header_value(value)?);
            headers.change(|mut head| head.append(name, value))
        },
    );
    api.function(
        "remove(name: string)",
        "Removes a header with all its values.",
        r#"ctx.request.headers.remove("x-internal");"#,
        |headers: &mut Headers, name: &str| {
            let name = verdict::header_name(name)?;
            headers.change(|mut head| head.remove(&name))
        },
    );
    api.function(
        "contains(name: string) -> bool",
        "Whether there is such a header; this is also what `in` asks.",
        r#"if !("accept" in ctx.request.headers) { log("no accept header"); }"#,
        |headers: &mut Headers, name: &str| {
            let name = verdict::header_name(name)?;
            headers.read(|map| Ok(map.contains_key(&name)))
        },
    );
    api.function(
        "all(name: string) -> array",
        "All values of a header that are visible ASCII.",
        r#"for value in ctx.request.headers.all("accept") { log(value); }"#,
        |headers: &mut Headers, name: &str| {
            let name = verdict::header_name(name)?;
            headers.read(|map| {
                let values = map.get_all(&name).into_iter().filter_map(|value| value.to_str().ok());
                Ok(Dynamic::from_array(values.map(Into::into).collect()))
            })
        },
    );
    api.function(
        "names() -> array",
        "The names of all headers, lower case, each once.",
        "for name in ctx.request.headers.names() { if name.starts_with(\"x-internal-\") { ctx.request.headers.remove(name); } }",
        |headers: &mut Headers| {
            headers.read(|map| {
                call::charge_operations(map.keys_len())?;
                Ok(Dynamic::from_array(map.keys().map(|name| name.as_str().into()).collect()))
            })
        },
    );
}

impl Request {
    pub(super) fn new(call: CallId, side: Side) -> Self {
        Request { call, side }
    }

    fn read(&self, read: impl FnOnce(&sdk::Request) -> Outcome<Dynamic>) -> Outcome<Dynamic> {
        call::exchange(self.call, |exchange| read(self.side.head(exchange)?))
    }

    fn change(&self, change: impl FnOnce(RequestMut<'_>) -> Outcome<()>) -> Outcome<()> {
        call::exchange(self.call, |exchange| change(self.side.head_mut(exchange)?))
    }
}

impl Side {
    fn head(self, exchange: &Exchange) -> Outcome<&sdk::Request> {
        match self {
            Side::Client => Ok(exchange.request()),
            Side::Outgoing => exchange.outgoing().ok_or_else(|| NO_OUTGOING.into()),
        }
    }

    fn head_mut(self, exchange: &mut Exchange) -> Outcome<RequestMut<'_>> {
        match self {
            Side::Client => Ok(exchange.request_mut()),
            Side::Outgoing => exchange.outgoing_mut().ok_or_else(|| NO_OUTGOING.into()),
        }
    }
}

const NO_OUTGOING: &str = "there is an outgoing request in on_upstream only";
const NO_RESPONSE: &str = "there is no response yet";

impl Response {
    fn read<T>(&self, read: impl FnOnce(&sdk::Response) -> Outcome<T>) -> Outcome<T> {
        call::exchange(self.0, |exchange| read(exchange.response().ok_or(NO_RESPONSE)?))
    }
}

impl Headers {
    fn get(&self, name: &str) -> Outcome<Dynamic> {
        self.read(|map| match map.get(name) {
            Some(value) => Ok(value::text_or_unit(value.to_str().ok())),
            None => verdict::header_name(name).map(|_| Dynamic::UNIT),
        })
    }

    fn set(&self, name: &str, value: Dynamic) -> Outcome<()> {
        if value.is_unit() {
            let name = verdict::header_name(name)?;
            return self.change(|mut head| head.remove(&name));
        }
        self.set_text(name, &value::text(value)?)
    }

    fn set_text(&self, name: &str, value: &str) -> Outcome<()> {
        let (name, value) = (verdict::header_name(name)?, verdict::header_value(value)?);
        self.change(|mut head| head.set(name, value))
    }

    fn read<T>(&self, read: impl FnOnce(&HeaderMap) -> Outcome<T>) -> Outcome<T> {
        call::exchange(self.call, |exchange| match self.of {
            Of::Request(side) => read(side.head(exchange)?.headers()),
            Of::Response => read(exchange.response().ok_or(NO_RESPONSE)?.headers()),
        })
    }

    fn change(&self, change: impl FnOnce(HeadMut<'_>)) -> Outcome<()> {
        call::exchange(self.call, |exchange| {
            change(match self.of {
                Of::Request(side) => side.head_mut(exchange)?.headers,
                Of::Response => exchange.response_mut().ok_or(NO_RESPONSE)?.headers,
            });
            Ok(())
        })
    }
}

fn body_text(body: Option<&Bytes>) -> Outcome<Dynamic> {
    let Some(body) = body else { return Ok(Dynamic::UNIT) };
    Ok(ImmutableString::from(utf8(body)?).into())
}

fn body_json(body: Option<Bytes>) -> Outcome<Dynamic> {
    let Some(body) = body else { return Ok(Dynamic::UNIT) };
    value::parse(utf8(&body)?)
}

fn utf8(body: &Bytes) -> Outcome<&str> {
    charge(body.len())?;
    std::str::from_utf8(body).map_err(|_| "the body is not UTF-8 text".into())
}

fn failed(error: sdk::PluginError) -> Box<rhai::EvalAltResult> {
    error.message().into()
}
