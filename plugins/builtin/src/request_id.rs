//! `request_id`: tells the upstream and the client the request id, and takes one over from clients
//! that are trusted to send it.
//!
//! ```yaml
//! - request_id:
//!     trust: true
//! ```
//!
//! An id is taken over if it came exactly once and has 1 to 128 visible ASCII characters; otherwise
//! the gateway's own stays. Stands first in the chain, so that whatever runs later sees the one id.

use http::header::{HeaderName, HeaderValue};
use portcullis_plugin::{BuildContext, BuildError, Exchange, Hook, HookName, Needs, Plugin, PluginType};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::names::{header_name, refuse_framing, refuse_host};

/// Carries the request id in both directions.
#[derive(Debug)]
pub(crate) struct TrustedRequestId {
    header: HeaderName,
    trust: bool,
}

/// The request id in a header.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The header that carries the id. Default: `x-request-id`.
    header: String,
    /// Whether an id that the client sends is taken over. Only for clients that are proxies of your
    /// own: anybody else could make two requests look like one. Default: `false`.
    trust: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { header: "x-request-id".to_owned(), trust: false }
    }
}

impl TrustedRequestId {
    /// The id to take over, if there is one.
    fn offered<'a>(&self, exchange: &'a Exchange) -> Option<&'a HeaderValue> {
        let mut values = exchange.request().headers().get_all(&self.header).iter();
        values.next().filter(|_| self.trust && values.next().is_none())
    }
}

impl PluginType for TrustedRequestId {
    const KIND: &'static str = "request_id";
    const SUMMARY: &'static str =
        "passes the request id to upstream and client, takes it over from trusted clients";
    const EXAMPLE: &'static str = "\
- request_id:
    header: x-request-id
    trust: true
";
    type Config = Config;

    fn build(config: Config, _: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let header = header_name("header", &config.header)?;
        refuse_framing("header", &header)?;
        refuse_host("header", &header)?;
        Ok(TrustedRequestId { header, trust: config.trust })
    }
}

impl Plugin for TrustedRequestId {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest, HookName::OnResponse]).on_every_response()
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let offered = self.offered(exchange).cloned();
        let taken = offered.and_then(|id| exchange.set_id(id.to_str().ok()?).ok());
        if taken.is_none() {
            let id = exchange.id_header();
            exchange.request_mut().headers.set(self.header.clone(), id);
        }
        Hook::CONTINUE
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let id = exchange.id_header();
        if let Some(mut response) = exchange.response_mut() {
            response.headers.set(self.header.clone(), id);
        }
        Hook::CONTINUE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_plugin::{ExchangeBuilder, PluginTester};
    use serde_json::{Value, json};

    const OWN: &str = "00000000000000000000000000000001";

    /// The ids that upstream and client get.
    fn ids(table: Value, sent: &[&str]) -> (String, String) {
        let plugin = PluginTester::new().build::<TrustedRequestId>(table).unwrap();
        let request = sent.iter().fold(ExchangeBuilder::get("/"), |it, id| it.header("x-request-id", id));
        let mut exchange = request.response(200, &[("x-request-id", "upstream's")], "").build();
        plugin.on_request(&mut exchange).unwrap();
        plugin.on_response(&mut exchange).unwrap();
        let name = HeaderName::from_static("x-request-id");
        let upstream = exchange.request().header(&name).unwrap().to_owned();
        (upstream, exchange.response().unwrap().header(&name).unwrap().to_owned())
    }

    #[test]
    fn a_clients_id_is_taken_over_only_when_trusted_and_valid() {
        assert_eq!(ids(json!({"trust": true}), &["abc-1"]), ("abc-1".into(), "abc-1".into()));
        let long = "x".repeat(129);
        for (trust, sent) in [
            (false, vec!["abc-1"]),
            (true, vec![]),
            (true, vec!["a b"]),
            (true, vec![""]),
            (true, vec!["a", "b"]),
            (true, vec![long.as_str()]),
        ] {
            assert_eq!(ids(json!({"trust": trust}), &sent), (OWN.into(), OWN.into()), "{sent:?}");
        }
    }

    #[test]
    fn a_header_that_frames_messages_is_refused() {
        for header in ["content-length", "host", "a b"] {
            let error =
                PluginTester::new().build::<TrustedRequestId>(json!({"header": header})).err().unwrap();
            assert_eq!(error.path, "header");
        }
    }
}
