//! One request with its response, as plugins hold it.

use std::any::Any;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use serde_json::Value;
use smallvec::SmallVec;

use crate::build::Slot;
use crate::connection::Connection;
use crate::hook::{HookName, PluginError};
use crate::journal::{Change, ChangeKind, Cursor, Decider, Journal, Note, Part, Step, Used, Verdict};
use crate::message::{HeadMut, Request, RequestMut, Response, ResponseMut};
use crate::principal::Principal;

/// Bytes of a rule's name.
const MAX_RULE: usize = 256;

/// Facts that an exchange may hold.
const MAX_FACTS: usize = 64;

/// One request with its response: a thin handle on a box, `Send` and without ties to a connection,
/// a pool or a worker. A sandbox takes the box out with [`lend`](Self::lend) for the time of a call
/// and gives it back with [`restore`](Self::restore) on every way out.
///
/// Everything is read directly and changed through mutators that journal which plugin changed what
/// (names, never values).
pub struct Exchange(Option<Box<Parts>>);

/// The insides, for the gateway's core only: what it writes here is in no journal.
#[derive(Debug)]
pub struct Parts {
    /// Identifies the exchange in logs, records and refusals.
    pub id: RequestId,
    /// When its head was there.
    pub began: Instant,
    /// The connection it came on.
    pub connection: Arc<Connection>,
    /// The client's address: the peer's, or what a trusted proxy said.
    pub client: IpAddr,
    /// The request.
    pub request: Request,
    /// Its body, if a plugin wanted it whole.
    pub request_body: Option<Bytes>,
    /// What followed that body.
    pub request_trailers: Option<Box<HeaderMap>>,
    /// Whether the request has a body at all, however it is read.
    pub has_request_body: bool,
    /// The request of the current attempt, while `on_upstream` runs.
    pub outgoing: Option<Request>,
    /// The current or last attempt.
    pub attempt: Option<Attempt>,
    /// The response, from `on_response` on.
    pub response: Option<Response>,
    /// Its body, if a plugin wanted it whole.
    pub response_body: Option<Bytes>,
    /// What followed that body.
    pub response_trailers: Option<Box<HeaderMap>>,
    /// Whether the response has a body at all, however it is read.
    pub has_response_body: bool,
    /// The route, once chosen.
    pub route: Option<Arc<RouteMeta>>,
    /// The target on which the route was chosen; captures are ranges of its path.
    pub matched: PathAndQuery,
    /// The route's captures, in the order of its names.
    pub captures: SmallVec<[(u32, u32); 4]>,
    /// Who is calling, if a plugin established it.
    pub principal: Option<Box<Principal>>,
    /// Facts shared along the chain.
    pub facts: Vec<(Box<str>, Value)>,
    /// State of plugins, by slot.
    pub slots: SmallVec<[(u32, Box<dyn Any + Send>); 2]>,
    /// Who is being called, for the journal.
    pub cursor: Cursor,
    /// What was run.
    pub steps: SmallVec<[Step; 24]>,
    /// What there is to say of some of it.
    pub notes: Vec<Note>,
    /// The rule that the plugin being called has named.
    pub rule: Option<Box<str>>,
    /// What the plugin being called has used up, if it is counted.
    pub used: Option<Used>,
    /// What was changed.
    pub changes: Vec<Change>,
    /// Changes beyond what the journal holds.
    pub changes_unlisted: u32,
    /// A bound that a mutator hit since the core last looked.
    pub overflow: Option<&'static str>,
    /// Who answered or refused, if it was not the upstream.
    pub decider: Option<Box<Decider>>,
    /// How it ended, for `on_log`.
    pub outcome: Option<Box<Outcome>>,
}

impl Parts {
    /// An exchange at its beginning.
    pub fn new(id: RequestId, connection: Arc<Connection>, request: Request) -> Box<Self> {
        Box::new(Parts {
            id,
            began: Instant::now(),
            client: connection.peer.ip().to_canonical(),
            connection,
            matched: request.target.clone(),
            request,
            request_body: None,
            request_trailers: None,
            has_request_body: false,
            outgoing: None,
            attempt: None,
            response: None,
            response_body: None,
            response_trailers: None,
            has_response_body: false,
            route: None,
            captures: SmallVec::new(),
            principal: None,
            facts: Vec::new(),
            slots: SmallVec::new(),
            cursor: Cursor::default(),
            steps: SmallVec::new(),
            notes: Vec::new(),
            rule: None,
            used: None,
            changes: Vec::new(),
            changes_unlisted: 0,
            overflow: None,
            decider: None,
            outcome: None,
        })
    }
}

impl Parts {
    /// Writes a call down; returns its number.
    pub fn step(&mut self, cursor: Cursor, verdict: Verdict, start: Instant, took: Duration) -> usize {
        let at = micros(start.saturating_duration_since(self.began));
        self.steps.push(Step { cursor, verdict, at, micros: micros(took), is_shadow: false });
        self.steps.len() - 1
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// The request id: 128 random bits, or what a trusted client sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RequestId {
    /// Made by the gateway; written as 32 hex digits.
    Bits(u128),
    /// Taken over by a plugin.
    Text(Box<str>),
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestId::Bits(bits) => write!(f, "{bits:032x}"),
            RequestId::Text(text) => f.write_str(text),
        }
    }
}

/// What is constant of a route.
#[derive(Debug, Default)]
pub struct RouteMeta {
    /// Its name.
    pub name: Box<str>,
    /// Names of its captures.
    pub captures: Box<[Box<str>]>,
}

/// One attempt to reach the upstream.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// Address of the endpoint, `host:port`.
    pub endpoint: Arc<str>,
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The response was sent whole.
    Complete,
    /// The client went away first.
    ClientGone,
    /// The upstream failed within the response's body.
    UpstreamFailed,
    /// A plugin ended it within a body, or dropped it; or a tunnel was idle for too long.
    Refused,
}

impl End {
    /// The name in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            End::Complete => "complete",
            End::ClientGone => "client_gone",
            End::UpstreamFailed => "upstream_failed",
            End::Refused => "refused",
        }
    }
}

/// What is known at the end.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Status sent; none if nothing was.
    pub status: Option<StatusCode>,
    /// Request body bytes read from the client.
    pub request_bytes: u64,
    /// Response body bytes handed to the client's connection.
    pub response_bytes: u64,
    /// From the request's head to the end.
    pub duration: Duration,
    /// From the first attempt to the upstream's response head; none if there was none.
    pub upstream_duration: Option<Duration>,
    /// How a call of gRPC ended, as the client was told: the name of the code, such as `UNAVAILABLE`.
    pub grpc_status: Option<&'static str>,
}

macro_rules! journal {
    ($parts:expr, $part:expr) => {
        Journal {
            changes: &mut $parts.changes,
            unlisted: &mut $parts.changes_unlisted,
            overflow: &mut $parts.overflow,
            cursor: $parts.cursor,
            part: $part,
        }
    };
}

impl Exchange {
    /// A handle on `parts`.
    pub fn new(parts: Box<Parts>) -> Self {
        Exchange(Some(parts))
    }

    /// The request id.
    pub fn id(&self) -> &RequestId {
        &self.parts().id
    }

    /// Takes over a request id; longer than 128 bytes or not visible ASCII is refused.
    pub fn set_id(&mut self, id: &str) -> Result<(), &'static str> {
        if id.is_empty() || id.len() > 128 || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a request id is 1 to 128 visible ASCII characters");
        }
        let parts = self.parts_mut();
        parts.id = RequestId::Text(id.into());
        journal!(parts, Part::Context).note(|| ChangeKind::Id);
        Ok(())
    }

    /// The connection it came on.
    pub fn connection(&self) -> &Connection {
        &self.parts().connection
    }

    /// The client's address: the peer's, or what a trusted proxy said.
    pub fn client(&self) -> IpAddr {
        self.parts().client
    }

    /// `https` or `http`, as the client's connection has it.
    pub fn scheme(&self) -> &'static str {
        if self.parts().connection.tls.is_some() { "https" } else { "http" }
    }

    /// The request.
    pub fn request(&self) -> &Request {
        &self.parts().request
    }

    /// Changes the request.
    pub fn request_mut(&mut self) -> RequestMut<'_> {
        let parts = self.parts_mut();
        let headers =
            HeadMut { headers: &mut parts.request.headers, journal: journal!(parts, Part::Request) };
        RequestMut { method: &mut parts.request.method, target: &mut parts.request.target, headers }
    }

    /// The whole request body, if a plugin of the chain wanted it; from `on_request_body` on.
    pub fn request_body(&self) -> Option<&Bytes> {
        self.parts().request_body.as_ref()
    }

    /// Whether the request has a body, whether or not anybody holds it.
    pub fn has_request_body(&self) -> bool {
        self.parts().has_request_body
    }

    /// Replaces the whole request body; only within `on_request_body`.
    pub fn set_request_body(&mut self, body: Bytes) -> Result<(), PluginError> {
        let parts = self.parts_mut();
        if parts.cursor.hook != HookName::OnRequestBody || parts.request_body.is_none() {
            return Err(PluginError::failed("a request body can be replaced in on_request_body only"));
        }
        parts.request_body = Some(body);
        journal!(parts, Part::Request).note(|| ChangeKind::Body);
        Ok(())
    }

    /// What followed the whole request body, if anything did; from `on_request_body` on.
    pub fn request_trailers(&self) -> Option<&HeaderMap> {
        self.parts().request_trailers.as_deref()
    }

    /// Replaces what follows the whole request body; only within `on_request_body`. What may not stand in trailers is
    /// removed from them afterwards.
    pub fn set_request_trailers(&mut self, trailers: HeaderMap) -> Result<(), PluginError> {
        let parts = self.parts_mut();
        if parts.cursor.hook != HookName::OnRequestBody || parts.request_body.is_none() {
            return Err(PluginError::failed("a request's trailers can be replaced in on_request_body only"));
        }
        parts.request_trailers = Some(Box::new(trailers));
        journal!(parts, Part::Request).note(|| ChangeKind::Trailers);
        Ok(())
    }

    /// The current or last attempt.
    pub fn attempt(&self) -> Option<&Attempt> {
        self.parts().attempt.as_ref()
    }

    /// The attempt's request, within `on_upstream`.
    pub fn outgoing(&self) -> Option<&Request> {
        self.parts().outgoing.as_ref()
    }

    /// Changes the attempt's request, within `on_upstream`.
    pub fn outgoing_mut(&mut self) -> Option<RequestMut<'_>> {
        let parts = self.parts_mut();
        let outgoing = parts.outgoing.as_mut()?;
        let headers = HeadMut { headers: &mut outgoing.headers, journal: journal!(parts, Part::Outgoing) };
        Some(RequestMut { method: &mut outgoing.method, target: &mut outgoing.target, headers })
    }

    /// The response, from `on_response` on.
    pub fn response(&self) -> Option<&Response> {
        self.parts().response.as_ref()
    }

    /// Changes the response.
    pub fn response_mut(&mut self) -> Option<ResponseMut<'_>> {
        let parts = self.parts_mut();
        let response = parts.response.as_mut()?;
        let headers = HeadMut { headers: &mut response.headers, journal: journal!(parts, Part::Response) };
        Some(ResponseMut { status: &mut response.status, headers })
    }

    /// The whole response body, if a plugin of the chain wanted it; from `on_response_body` on.
    pub fn response_body(&self) -> Option<&Bytes> {
        self.parts().response_body.as_ref()
    }

    /// Whether the response has a body, whether or not anybody holds it; from `on_response` on.
    pub fn has_response_body(&self) -> bool {
        self.parts().has_response_body
    }

    /// Replaces the whole response body; only within `on_response_body`.
    pub fn set_response_body(&mut self, body: Bytes) -> Result<(), PluginError> {
        let parts = self.parts_mut();
        if parts.cursor.hook != HookName::OnResponseBody || parts.response_body.is_none() {
            return Err(PluginError::failed("a response body can be replaced in on_response_body only"));
        }
        parts.response_body = Some(body);
        journal!(parts, Part::Response).note(|| ChangeKind::Body);
        Ok(())
    }

    /// What followed the whole response body, if anything did; from `on_response_body` on.
    pub fn response_trailers(&self) -> Option<&HeaderMap> {
        self.parts().response_trailers.as_deref()
    }

    /// Replaces what follows the whole response body; only within `on_response_body`.
    pub fn set_response_trailers(&mut self, trailers: HeaderMap) -> Result<(), PluginError> {
        let parts = self.parts_mut();
        if parts.cursor.hook != HookName::OnResponseBody || parts.response_body.is_none() {
            return Err(PluginError::failed(
                "a response's trailers can be replaced in on_response_body only",
            ));
        }
        parts.response_trailers = Some(Box::new(trailers));
        journal!(parts, Part::Response).note(|| ChangeKind::Trailers);
        Ok(())
    }

    /// The route's name; none if the request was refused before one was chosen.
    pub fn route(&self) -> Option<&str> {
        self.parts().route.as_ref().map(|route| &*route.name)
    }

    /// A capture of the route's path template, percent-encoded as it came.
    pub fn capture(&self, name: &str) -> Option<&str> {
        let parts = self.parts();
        let at = parts.route.as_ref()?.captures.iter().position(|capture| &**capture == name)?;
        let (start, end) = *parts.captures.get(at)?;
        parts.matched.path().get(start as usize..end as usize)
    }

    /// All captures of the route's path template.
    pub fn captures(&self) -> impl Iterator<Item = (&str, &str)> {
        let names = self.parts().route.as_ref().map_or(&[][..], |route| &route.captures);
        names.iter().filter_map(|name| Some((&**name, self.capture(name)?)))
    }

    /// Path and query as they came, normalised, before any rewrite.
    pub fn original_target(&self) -> &PathAndQuery {
        &self.parts().matched
    }

    /// Who is calling, if a plugin established it.
    pub fn principal(&self) -> Option<&Principal> {
        self.parts().principal.as_deref()
    }

    /// Establishes who is calling.
    pub fn set_principal(&mut self, principal: Principal) {
        let parts = self.parts_mut();
        parts.principal = Some(Box::new(principal));
        journal!(parts, Part::Context).note(|| ChangeKind::Principal);
    }

    /// A fact that a plugin earlier in the chain left.
    pub fn fact(&self, name: &str) -> Option<&Value> {
        self.facts().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All facts.
    pub fn facts(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.parts().facts.iter().map(|(name, value)| (&**name, value))
    }

    /// Leaves a fact for later plugins and the access log.
    pub fn set_fact(&mut self, name: &str, value: Value) {
        let parts = self.parts_mut();
        match parts.facts.iter().position(|(known, _)| &**known == name) {
            Some(at) => parts.facts[at].1 = value,
            None if parts.facts.len() >= MAX_FACTS => return journal!(parts, Part::Context).overflow("fact"),
            None => parts.facts.push((name.into(), value)),
        }
        journal!(parts, Part::Context).note(|| ChangeKind::Fact(name.into()));
    }

    /// A plugin's state for this exchange.
    pub fn slot<T: Send + 'static>(&self, slot: Slot<T>) -> Option<&T> {
        self.parts().slots.iter().find(|(id, _)| *id == slot.id())?.1.downcast_ref()
    }

    /// A plugin's state for this exchange, to change it.
    pub fn slot_mut<T: Send + 'static>(&mut self, slot: Slot<T>) -> Option<&mut T> {
        self.parts_mut().slots.iter_mut().find(|(id, _)| *id == slot.id())?.1.downcast_mut()
    }

    /// Sets a plugin's state for this exchange, and returns what it was.
    pub fn set_slot<T: Send + 'static>(&mut self, slot: Slot<T>, value: T) -> Option<T> {
        if let Some(old) = self.slot_mut(slot) {
            return Some(std::mem::replace(old, value));
        }
        self.parts_mut().slots.push((slot.id(), Box::new(value)));
        None
    }

    /// Takes a plugin's state out.
    pub fn take_slot<T: Send + 'static>(&mut self, slot: Slot<T>) -> Option<T> {
        let slots = &mut self.parts_mut().slots;
        let at = slots.iter().position(|(id, _)| *id == slot.id())?;
        slots.swap_remove(at).1.downcast().ok().map(|value| *value)
    }

    /// Names the rule, or the line of source, that what the plugin is about to answer rests on, for records; what is
    /// longer than 256 bytes is cut off.
    pub fn rests_on(&mut self, rule: &str) {
        let rule = rule.get(..rule.floor_char_boundary(MAX_RULE)).unwrap_or_default();
        self.parts_mut().rule = Some(rule.into());
    }

    /// The rule that the plugin has named in this call.
    pub fn rule(&self) -> Option<&str> {
        self.parts().rule.as_deref()
    }

    /// Notes what a sandbox used up in the call that ends.
    pub fn set_used(&mut self, used: Used) {
        self.parts_mut().used = Some(used);
    }

    /// Who answered or refused, if it was not the upstream.
    pub fn decider(&self) -> Option<&Decider> {
        self.parts().decider.as_deref()
    }

    /// How it ended; within `on_log`.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.parts().outcome.as_deref()
    }

    /// A copy of what is known now, without bodies and plugins' state: for what has to look at the exchange while it is
    /// with somebody else. What is changed in it changes nothing.
    pub fn copy(&self) -> Exchange {
        let parts = self.parts();
        let mut copy = Parts::new(parts.id.clone(), parts.connection.clone(), parts.request.clone());
        copy.client = parts.client;
        copy.attempt.clone_from(&parts.attempt);
        copy.response.clone_from(&parts.response);
        copy.has_request_body = parts.has_request_body;
        copy.has_response_body = parts.has_response_body;
        copy.route.clone_from(&parts.route);
        copy.matched.clone_from(&parts.matched);
        copy.captures.clone_from(&parts.captures);
        copy.principal.clone_from(&parts.principal);
        copy.facts.clone_from(&parts.facts);
        copy.cursor = parts.cursor;
        copy.decider.clone_from(&parts.decider);
        copy.outcome.clone_from(&parts.outcome);
        Exchange::new(copy)
    }

    /// Moves the exchange out, for a sandbox to hold during a call. The handle that stays behind is
    /// hollow: only [`restore`](Self::restore) may follow.
    #[must_use = "dropping it loses the exchange"]
    pub fn lend(&mut self) -> Exchange {
        Exchange(self.0.take())
    }

    /// Puts back what [`lend`](Self::lend) took.
    pub fn restore(&mut self, lent: Exchange) {
        debug_assert!(self.0.is_none() && lent.0.is_some());
        *self = lent;
    }

    /// Whether the exchange is lent.
    pub fn is_hollow(&self) -> bool {
        self.0.is_none()
    }

    /// The insides, for the gateway's core only.
    #[doc(hidden)]
    pub fn core(&mut self) -> &mut Parts {
        self.parts_mut()
    }

    /// The insides, for the gateway's core only.
    #[doc(hidden)]
    pub fn core_ref(&self) -> &Parts {
        self.parts()
    }

    // A runtime that touches an exchange it has lent has a bug; the panic stays in its own hook call.
    #[expect(clippy::expect_used)]
    fn parts(&self) -> &Parts {
        self.0.as_deref().expect("the exchange is lent")
    }

    #[expect(clippy::expect_used)]
    fn parts_mut(&mut self) -> &mut Parts {
        self.0.as_deref_mut().expect("the exchange is lent")
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            // Headers and bodies may hold credentials.
            Some(parts) => {
                write!(f, "Exchange({} {} {})", parts.id, parts.request.method, parts.request.path())
            }
            None => f.write_str("Exchange(lent)"),
        }
    }
}

/// What is common to tests and logs: method and status as plain text.
impl Exchange {
    /// The request id as a header's value.
    pub fn id_header(&self) -> HeaderValue {
        HeaderValue::try_from(self.id().to_string()).unwrap_or(HeaderValue::from_static("-"))
    }

    /// The request's method.
    pub fn method(&self) -> &Method {
        self.request().method()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HeaderName;

    use crate::journal::MAX_CHANGES;
    use crate::tester::ExchangeBuilder;

    #[test]
    fn an_exchange_is_one_pointer_and_can_be_sent() {
        fn sendable<T: Send + 'static>() {}
        sendable::<Exchange>();
        assert_eq!(size_of::<Exchange>(), size_of::<usize>());
    }

    #[test]
    fn changes_are_journalled_by_name_up_to_a_bound() {
        let mut exchange = ExchangeBuilder::get("/a?x=1").build();
        exchange.core().cursor = Cursor { plugin: 3, hook: HookName::OnRequest };
        let mut request = exchange.request_mut();
        request.headers.set(HeaderName::from_static("x-a"), HeaderValue::from_static("secret"));
        request.set_path("/x/../b").unwrap();
        assert!(request.set_path("b").is_err() && request.set_path("/b?y").is_err());
        assert!(request.set_path("/b/..%2fc").is_err() && request.set_path("/../c").is_err());
        assert!(request.set_query(Some("a b")).is_err() && request.set_query(Some("\u{e9}")).is_err());
        assert!(request.set_method(Method::CONNECT).is_err());
        assert_eq!(exchange.request().target(), "/b?x=1");
        let parts = exchange.core();
        assert_eq!(parts.changes.len(), 2);
        assert_eq!(
            parts.changes[1],
            Change { cursor: parts.cursor, part: Part::Request, kind: ChangeKind::Path }
        );
        for _ in 0..MAX_CHANGES {
            exchange.request_mut().set_method(Method::POST).unwrap();
        }
        assert_eq!((exchange.core().changes.len(), exchange.core().changes_unlisted), (MAX_CHANGES, 2));
    }

    #[test]
    fn a_header_flood_ends_at_the_bound_and_is_noticed() {
        let mut exchange = ExchangeBuilder::get("/").build();
        for at in 0..2 * crate::message::MAX_HEADERS {
            let name = HeaderName::try_from(format!("x-{at}")).unwrap();
            exchange.request_mut().headers.set(name, HeaderValue::from_static("1"));
        }
        assert_eq!(exchange.request().headers().len(), crate::message::MAX_HEADERS);
        assert_eq!(exchange.core().overflow, Some("header"));
    }

    #[test]
    fn a_rule_has_a_name_of_bounded_length() {
        let mut exchange = ExchangeBuilder::get("/").build();
        exchange.rests_on(&"é".repeat(MAX_RULE));
        assert_eq!(exchange.rule().unwrap(), "é".repeat(MAX_RULE / 2));
    }

    #[test]
    fn facts_and_slots_are_found_again() {
        let (numbers, texts) = (Slot::<u32>::new(), Slot::<String>::new());
        let mut exchange = ExchangeBuilder::get("/").build();
        assert_eq!(exchange.set_slot(numbers, 1), None);
        assert_eq!(exchange.set_slot(numbers, 2), Some(1));
        exchange.set_slot(texts, "x".to_owned());
        assert_eq!(exchange.take_slot(numbers), Some(2));
        assert_eq!((exchange.slot(numbers), exchange.slot(texts).map(String::as_str)), (None, Some("x")));
        for at in 0..100 {
            exchange.set_fact(&format!("f{at}"), Value::from(at));
        }
        assert_eq!(exchange.fact("f3"), Some(&Value::from(3)));
        assert_eq!((exchange.facts().count(), exchange.core().overflow), (MAX_FACTS, Some("fact")));
    }

    #[test]
    fn a_copy_knows_as_much_and_changes_nothing() {
        let exchange = ExchangeBuilder::get("/a/1")
            .route("a", &[("id", "1")])
            .response(204, &[("x-a", "1")], "")
            .build();
        let mut copy = exchange.copy();
        copy.request_mut().set_path("/b").unwrap();
        assert_eq!(
            (copy.route(), copy.capture("id"), copy.response().unwrap().status().as_u16()),
            (Some("a"), Some("1"), 204)
        );
        assert_eq!((exchange.request().path(), exchange.core_ref().changes.len()), ("/a/1", 0));
        assert!(copy.response_body().is_none() && !copy.has_response_body());
    }

    #[test]
    fn a_lent_exchange_comes_back_whole() {
        let mut exchange = ExchangeBuilder::get("/a").build();
        let lent = exchange.lend();
        assert!(exchange.is_hollow() && format!("{exchange:?}").contains("lent"));
        exchange.restore(lent);
        assert_eq!(exchange.request().path(), "/a");
    }
}
