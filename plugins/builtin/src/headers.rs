//! `headers`: sets, adds, renames and removes headers of requests and responses.
//!
//! ```yaml
//! - headers:
//!     request:
//!       set: { x-user: "{principal}", x-tenant: "{capture.tenant}" }
//!       remove: [x-debug]
//!     response:
//!       set: { strict-transport-security: max-age=31536000 }
//!       rename: { x-powered-by: x-stack }
//! ```
//!
//! Values are templates, see [`crate::template`]. A `set` whose value can't be had (nobody is logged
//! in, the fact is missing, a line end in it) removes the header, so that what the client sent under
//! that name never passes for the gateway's word; an `add` adds nothing then. `set` runs first, then
//! `add`, `rename` and `remove`; one header can stand in one of them only.

use std::collections::BTreeMap;

use http::header::HeaderName;
use portcullis_plugin::{
    BuildContext, BuildError, Exchange, HeadMut, Hook, HookName, Needs, Plugin, PluginType,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::names::{header_name, refuse_framing, refuse_host};
use crate::template::Template;

/// Changes headers.
#[derive(Debug)]
pub(crate) struct Headers {
    request: Option<Operations>,
    response: Option<Operations>,
}

/// Changes to the headers of requests and responses.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// What is changed of the request, before it goes upstream.
    request: Option<OperationsConfig>,
    /// What is changed of the response, whoever made it.
    response: Option<OperationsConfig>,
}

/// Changes to the headers of one message.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct OperationsConfig {
    /// Headers that get this one value, e.g. `x-user: "{principal}"`. Without a value the header is
    /// removed. Default: none.
    set: BTreeMap<String, String>,
    /// Values that are added to what is there. Default: none.
    add: BTreeMap<String, String>,
    /// Headers that get another name, in place of what had it. Default: none.
    rename: BTreeMap<String, String>,
    /// Headers that are removed with all their values. Default: none.
    remove: Vec<String>,
}

#[derive(Debug, Default)]
struct Operations {
    set: Vec<(HeaderName, Template)>,
    add: Vec<(HeaderName, Template)>,
    rename: Vec<(HeaderName, HeaderName)>,
    remove: Vec<HeaderName>,
}

/// Which headers are changed; the values are rendered from the exchange, which `head` borrows from.
#[derive(Clone, Copy)]
enum Side {
    Request,
    Response,
}

impl Operations {
    fn build(at: &str, config: OperationsConfig) -> Result<Self, BuildError> {
        let mut used = Names::default();
        let mut operations = Operations::default();
        for (name, value) in config.set {
            let at = format!("{at}.set.{name}");
            operations.set.push((used.take(&at, &name)?, Template::parse(&at, &value)?));
        }
        for (name, value) in config.add {
            let at = format!("{at}.add.{name}");
            let name = used.take(&at, &name)?;
            refuse_host(&at, &name)?;
            operations.add.push((name, Template::parse(&at, &value)?));
        }
        for (from, to) in config.rename {
            let at = format!("{at}.rename.{from}");
            let (from, to) = (used.take(&at, &from)?, used.take(&at, &to)?);
            refuse_host(&at, &from)?;
            refuse_host(&at, &to)?;
            operations.rename.push((from, to));
        }
        for (index, name) in config.remove.into_iter().enumerate() {
            let at = format!("{at}.remove[{index}]");
            let name = used.take(&at, &name)?;
            refuse_host(&at, &name)?;
            operations.remove.push(name);
        }
        Ok(operations)
    }

    fn apply(&self, side: Side, exchange: &mut Exchange) {
        for (name, template) in &self.set {
            let value = template.render(exchange);
            let Some(mut head) = head(side, exchange) else { return };
            match value {
                Some(value) => head.set(name.clone(), value),
                None => head.remove(name),
            }
        }
        for (name, template) in &self.add {
            let value = template.render(exchange);
            if let (Some(mut head), Some(value)) = (head(side, exchange), value) {
                head.append(name.clone(), value);
            }
        }
        let Some(mut head) = head(side, exchange) else { return };
        self.rename.iter().for_each(|(from, to)| head.rename(from, to));
        self.remove.iter().for_each(|name| head.remove(name));
    }
}

fn head(side: Side, exchange: &mut Exchange) -> Option<HeadMut<'_>> {
    match side {
        Side::Request => Some(exchange.request_mut().headers),
        Side::Response => exchange.response_mut().map(|response| response.headers),
    }
}

/// The headers that operations name, each once.
#[derive(Default)]
struct Names(Vec<HeaderName>);

impl Names {
    fn take(&mut self, at: &str, name: &str) -> Result<HeaderName, BuildError> {
        let name = header_name(at, name)?;
        refuse_framing(at, &name)?;
        if self.0.contains(&name) {
            return Err(BuildError::at(at, format!("`{name}` is named twice"))
                .help("`set` replaces all values of a header, so one operation is enough"));
        }
        self.0.push(name.clone());
        Ok(name)
    }
}

impl PluginType for Headers {
    const KIND: &'static str = "headers";
    const SUMMARY: &'static str = "sets, adds, renames and removes headers of requests and responses";
    const EXAMPLE: &'static str = "\
- headers:
    request:
      set: { x-user: \"{principal}\", x-request-id: \"{request_id}\" }
      remove: [x-debug]
    response:
      set: { x-content-type-options: nosniff }
      rename: { x-powered-by: x-stack }
";
    type Config = Config;

    fn build(config: Config, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        if config.request.is_none() && config.response.is_none() {
            return Err(BuildError::at("", "nothing to do").help("give `request` or `response`"));
        }
        let build = |at, config: Option<_>| config.map(|config| Operations::build(at, config)).transpose();
        Ok(Headers {
            request: build("request", config.request)?,
            response: build("response", config.response)?,
        })
    }
}

impl Plugin for Headers {
    fn needs(&self) -> Needs {
        let request = self.request.as_ref().map(|_| HookName::OnRequest);
        let response = self.response.as_ref().map(|_| HookName::OnResponse);
        Needs::hooks(request.into_iter().chain(response)).on_every_response()
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if let Some(operations) = &self.request {
            operations.apply(Side::Request, exchange);
        }
        Hook::CONTINUE
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if let Some(operations) = &self.response {
            operations.apply(Side::Response, exchange);
        }
        Hook::CONTINUE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_plugin::{ExchangeBuilder, PluginTester, Principal, TestedPlugin};
    use serde_json::{Value, json};

    fn build(table: Value) -> Result<TestedPlugin, BuildError> {
        PluginTester::new().build::<Headers>(table)
    }

    fn values<'a>(headers: &'a http::HeaderMap, name: &str) -> Vec<&'a str> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn every_operation_does_its_part_on_both_sides() {
        let operations = json!({
            "set": {"x-set": "{header.x-from}"}, "add": {"x-add": "2"},
            "rename": {"x-from": "x-to"}, "remove": ["x-gone"],
        });
        let plugin = build(json!({"request": operations, "response": operations})).unwrap();
        let builder = ExchangeBuilder::get("/").response(
            200,
            &[("x-set", "old"), ("x-add", "1"), ("x-from", "b"), ("x-gone", "c")],
            "",
        );
        let builder = [("x-set", "old"), ("x-add", "1"), ("x-from", "b"), ("x-gone", "c"), ("x-to", "old")]
            .iter()
            .fold(builder, |builder, (name, value)| builder.header(name, value));
        let mut exchange = builder.build();
        plugin.on_response(&mut exchange).unwrap();
        plugin.on_request(&mut exchange).unwrap();
        for headers in [exchange.request().headers(), exchange.response().unwrap().headers()] {
            assert_eq!(values(headers, "x-set"), ["b"]);
            assert_eq!(values(headers, "x-add"), ["1", "2"]);
            assert_eq!((values(headers, "x-from"), values(headers, "x-to")), (vec![], vec!["b"]));
            assert!(!headers.contains_key("x-gone"));
        }
    }

    #[test]
    fn a_clients_claim_never_outlives_a_missing_value() {
        let plugin = build(json!({"request": {"set": {"x-user": "{principal}"}}})).unwrap();
        let mut exchange = ExchangeBuilder::get("/").header("x-user", "root").build();
        plugin.on_request(&mut exchange).unwrap();
        assert!(values(exchange.request().headers(), "x-user").is_empty());

        let principal = Principal { id: "a\r\nx-admin: 1".into(), ..Principal::default() };
        let mut exchange = ExchangeBuilder::get("/").header("x-user", "root").principal(principal).build();
        plugin.on_request(&mut exchange).unwrap();
        assert!(values(exchange.request().headers(), "x-user").is_empty());
        assert!(!exchange.request().headers().contains_key("x-admin"));
    }

    #[test]
    fn what_cannot_be_is_refused_where_it_stands() {
        for (table, path) in [
            (json!({}), ""),
            (json!({"request": {"set": {"bad name": "1"}}}), "request.set.bad name"),
            (json!({"request": {"set": {"x": "{nobody}"}}}), "request.set.x"),
            (json!({"request": {"set": {"Transfer-Encoding": "chunked"}}}), "request.set.Transfer-Encoding"),
            (json!({"response": {"remove": ["x", "content-length"]}}), "response.remove[1]"),
            (json!({"response": {"add": {"keep-alive": "1"}}}), "response.add.keep-alive"),
            (json!({"request": {"remove": ["host"]}}), "request.remove[0]"),
            (json!({"request": {"rename": {"x-host": "host"}}}), "request.rename.x-host"),
            (json!({"request": {"set": {"x": "1"}, "remove": ["X"]}}), "request.remove[0]"),
        ] {
            assert_eq!(build(table).err().map(|error| error.path).as_deref(), Some(path));
        }
    }

    #[test]
    fn only_the_named_sides_are_hooked() {
        let plugin = build(json!({"response": {"remove": ["server"]}})).unwrap();
        assert!(plugin.plugin().needs().is_on_every_response());
    }
}
