//! A generation: everything that shapes behaviour, resolved and immutable.
//!
//! The control plane builds one from the files on disk and hands it to every worker; a request
//! takes the current one at its beginning and keeps it to its end. Nothing here is looked up by
//! name while traffic flows.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use portcullis_plugin::RouteMeta;
use rustls::ServerConfig;

use crate::admit::Gate;
use crate::body::Budget;
use crate::chain::Chain;
use crate::metrics::RouteMetrics;
use crate::mirror::Mirror;
use crate::record::{Names, RecordPlan};
use crate::routes::RouteTable;
use crate::socket::Address;
use crate::split::Split;
use crate::upstream::Upstream;

/// Everything that a request needs to know.
pub struct Generation {
    /// Counts up from 1 with every accepted reload.
    pub number: u64,
    /// Content hash of all inputs.
    pub version: Arc<str>,
    /// Listeners by name, in the order of the configuration.
    pub listeners: Vec<Arc<Listener>>,
    /// Finds a route's index.
    pub table: RouteTable,
    /// Routes in the order of the configuration.
    pub routes: Vec<Route>,
    /// What is counted of requests that no route wanted.
    pub unrouted: Arc<RouteMetrics>,
    /// Proxies whose word on the client's address is taken.
    pub trusted_proxies: Vec<IpNet>,
    /// Exchanges under way at most, at each worker.
    pub max_exchanges: u64,
    /// Request body bytes at most; none for no limit.
    pub max_body: Option<u64>,
    /// Budget of whole bodies, shared by all generations.
    pub budget: Arc<Budget>,
    /// What is remembered of exchanges.
    pub records: RecordPlan,
    /// What records call its parts.
    pub names: Arc<Names>,
}

/// How connections are accepted at some addresses.
pub struct Listener {
    /// Its name.
    pub name: Arc<str>,
    /// Where it listens.
    pub bind: Vec<Address>,
    /// Permissions of its Unix sockets' files.
    pub socket_mode: u32,
    /// Proxies that say first whose connection they pass on ([PROXY protocol](crate::proxy_protocol)), and
    /// from which alone connections are taken then.
    pub proxies: Option<Arc<[IpNet]>>,
    /// How it terminates TLS; none for plain text.
    pub tls: Option<Arc<ServerConfig>>,
    /// A hash of what a connection has to be to be served: those that began on other terms end.
    pub terms: u64,
    /// Answers everything with a redirect to HTTPS.
    pub redirect_https: Option<RedirectHttps>,
    /// Bounds per connection.
    pub limits: ListenerLimits,
    /// Bounds per client.
    pub client_limits: ClientLimits,
    /// Where its connections are counted, and those of the listener before it at these addresses.
    pub gate: Arc<Gate>,
    /// The chain for what is refused before a route is chosen: the gateway's list, then this
    /// listener's; its `on_connection` hooks judge connections.
    pub chain: Arc<Chain>,
    /// The chain of each route for requests that come through this listener, in the order of
    /// [`Generation::routes`].
    pub route_chains: Vec<Arc<Chain>>,
}

/// A redirect to the same URL over HTTPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedirectHttps {
    /// Port to put into the URL; none for 443.
    pub port: Option<u16>,
    /// 301, 302, 307 or 308.
    pub status: StatusCode,
}

/// Bounds per listener and connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Connections at once, over all workers.
    pub connections: usize,
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// Headers of a request.
    pub header_count: usize,
    /// From a head's first byte to its end.
    pub header_timeout: Duration,
    /// Between two pieces of a request's body.
    pub body_timeout: Duration,
    /// For which a client may take nothing of a response.
    pub write_timeout: Duration,
    /// Bytes a second that make up for the time for which a client was waited for.
    pub min_rate: Option<NonZeroU64>,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// Without a word, after which the system asks whether the client is there.
    pub keepalive: Option<Duration>,
    /// Streams of an HTTP/2 connection at once.
    pub http2_streams: u32,
}

/// Bounds per client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClientLimits {
    /// Connections at once, over all workers.
    pub connections: Option<u32>,
    /// TLS handshakes that may begin.
    pub handshakes: Option<Rate>,
}

/// So many in a time, and as many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In which time.
    pub per: Duration,
}

/// A route.
pub struct Route {
    /// Name and captures.
    pub meta: Arc<RouteMeta>,
    /// Protocols that clients may switch to, in lower case.
    pub upgrades: Vec<HeaderValue>,
    /// What is changed before the request goes on.
    pub rewrite: Rewrite,
    /// What is done with it.
    pub action: Action,
    /// How long all of a request may take that is sent upstream, in place of what the upstream says.
    pub timeout: Option<Duration>,
    /// Where copies go of what is sent upstream.
    pub mirror: Option<Arc<Mirror>>,
    /// What is counted.
    pub metrics: Arc<RouteMetrics>,
}

impl Route {
    /// Whether calls of gRPC can get anywhere by it, which is only over HTTP/2.
    pub(crate) fn takes_calls(&self) -> bool {
        match &self.action {
            Action::Upstream(upstream) => upstream.takes_calls(),
            Action::Split(split) => split.upstreams().all(Upstream::takes_calls),
            Action::Redirect { .. } | Action::Respond { .. } => false,
        }
    }
}

/// What a route does with a request that its chain let pass.
pub enum Action {
    /// Sends it upstream.
    Upstream(Arc<Upstream>),
    /// Sends it to one of several upstreams.
    Split(Split),
    /// Redirects; the target may use captures.
    Redirect {
        /// Status, 3xx.
        status: StatusCode,
        /// Value of `Location`.
        to: Template,
    },
    /// Answers with the same every time.
    Respond {
        /// Status.
        status: StatusCode,
        /// Headers, with the content type.
        headers: HeaderMap,
        /// Body.
        body: Bytes,
    },
}

/// Changes to path and host.
#[derive(Debug, Default)]
pub struct Rewrite {
    /// The whole path anew.
    pub path: Option<Template>,
    /// Cut off the front; whole segments.
    pub strip_prefix: Option<String>,
    /// Put in front.
    pub add_prefix: Option<String>,
    /// Another host.
    pub host: Option<HeaderValue>,
}

/// Text with places for parts of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(pub Vec<TemplatePart>);

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplatePart {
    /// As it stands.
    Text(String),
    /// The capture of this index.
    Capture(usize),
    /// The request's path.
    Path,
    /// The query with its question mark; nothing if there is none.
    Query,
    /// The host without port.
    Host,
}

impl Template {
    /// Parses text with `{name}` for captures, and `{path}`, `{query}`, `{host}`; `captures` are
    /// the route's names in order. An unknown name is the error.
    pub fn parse(text: &str, captures: &[impl AsRef<str>]) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            let (before, after) = rest.split_at(start);
            let Some((name, tail)) = after[1..].split_once('}') else {
                return Err(format!("`{{` without `}}` in `{text}`"));
            };
            if !before.is_empty() {
                parts.push(TemplatePart::Text(before.to_owned()));
            }
            parts.push(match captures.iter().position(|capture| capture.as_ref() == name) {
                Some(at) => TemplatePart::Capture(at),
                None => match name {
                    "path" => TemplatePart::Path,
                    "query" => TemplatePart::Query,
                    "host" => TemplatePart::Host,
                    _ => {
                        return Err(format!(
                            "`{{{name}}}` is neither a capture of the path nor path, query or host"
                        ));
                    }
                },
            });
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Text(rest.to_owned()));
        }
        Ok(Template(parts))
    }

    /// The text for an exchange.
    pub(crate) fn render(&self, exchange: &portcullis_plugin::Exchange) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                TemplatePart::Text(part) => text.push_str(part),
                TemplatePart::Capture(at) => text.push_str(capture(exchange, *at).unwrap_or_default()),
                TemplatePart::Path => text.push_str(exchange.request().path()),
                TemplatePart::Query => {
                    if let Some(query) = exchange.request().query() {
                        text.push('?');
                        text.push_str(query);
                    }
                }
                TemplatePart::Host => text.push_str(exchange.request().host()),
            }
        }
        text
    }
}

fn capture(exchange: &portcullis_plugin::Exchange, at: usize) -> Option<&str> {
    let parts = exchange.core_ref();
    let (start, end) = *parts.captures.get(at)?;
    parts.matched.path().get(start as usize..end as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_name_captures_and_parts_of_the_request() {
        let template = Template::parse("/v2/{id}{query}", &["id"]).unwrap();
        let exchange =
            portcullis_plugin::ExchangeBuilder::get("/users/42?x=1").route("users", &[("id", "42")]).build();
        assert_eq!(template.render(&exchange), "/v2/42?x=1");
        assert!(Template::parse("/{nope}", &["id"]).unwrap_err().contains("`{nope}`"));
        assert!(Template::parse("/{id", &["id"]).is_err());
    }
}
