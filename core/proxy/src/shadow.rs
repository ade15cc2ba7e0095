//! Plugins whose verdicts do not hold: in shadow, and for a part of the clients.
//!
//! A plugin in shadow handles an exchange of its own, which is brought to how things stand before each of its hooks and
//! then gets what the plugin itself has changed of it so far. What it answers and changes is recorded with the real
//! exchange and counted; nothing of it happens. Whole bodies that it wants are copied as they pass, and where it has to
//! wait, nobody waits with it.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use portcullis_plugin::{
    Admission, BodyFilter, BodyWish, Change, ChangeKind, Connection, Cursor, Decision, Exchange, Filtered,
    Hook, HookName, Needs, Note, Part, Parts, Plugin, PluginError, Principal, RequestId, Slot, Used, Verdict,
};
use serde_json::Value;

use crate::body::{Budget, Held};
use crate::chain::{called, guarded, overflowed, verdict, waited};
use crate::metrics::ShadowMetrics;
use crate::reply::Fault;

/// A plugin that runs for a part of the clients only.
pub struct Partial {
    /// The plugin.
    pub plugin: Arc<dyn Plugin>,
    /// Which clients.
    pub share: Share,
}

/// So many of a hundred clients: always the same ones of a plugin, and others of another.
#[derive(Debug, Clone)]
pub struct Share {
    /// How many.
    pub percent: u8,
    /// Name of the plugin.
    pub plugin: Arc<str>,
}

impl Share {
    pub(crate) fn has(&self, client: IpAddr) -> bool {
        let lot = || BuildHasherDefault::<DefaultHasher>::default().hash_one((&self.plugin, client)) % 100;
        self.percent >= 100 || lot() < u64::from(self.percent)
    }
}

/// A plugin in shadow.
pub struct Shadow(Arc<Shaded>);

struct Shaded {
    plugin: Arc<dyn Plugin>,
    needs: Needs,
    options: ShadowOptions,
    view: Slot<Arc<Mutex<View>>>,
}

/// How a plugin is in shadow.
pub struct ShadowOptions {
    /// For which clients.
    pub share: Share,
    /// Whether its own failures would be passed over.
    pub allows_errors: bool,
    /// How long one wait of it may take.
    pub timeout: Duration,
    /// What the bodies that it copies are held within.
    pub budget: Arc<Budget>,
    /// What is counted.
    pub metrics: Arc<ShadowMetrics>,
}

impl Plugin for Partial {
    fn needs(&self) -> Needs {
        self.plugin.needs()
    }

    fn budget(&self) -> Used {
        self.plugin.budget()
    }

    fn on_connection(&self, connection: &Connection) -> Result<Admission, PluginError> {
        match self.share.has(connection.peer.ip().to_canonical()) {
            true => self.plugin.on_connection(connection),
            false => Ok(Admission::Accept),
        }
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if self.is_for(exchange) { self.plugin.on_request(exchange) } else { Hook::CONTINUE }
    }

    fn wants_request_body(&self, exchange: &Exchange) -> bool {
        self.is_for(exchange) && self.plugin.wants_request_body(exchange)
    }

    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if self.is_for(exchange) { self.plugin.on_request_body(exchange) } else { Hook::CONTINUE }
    }

    fn request_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        if self.is_for(exchange) { self.plugin.request_body_filter(exchange) } else { None }
    }

    fn on_upstream<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if self.is_for(exchange) { self.plugin.on_upstream(exchange) } else { Hook::CONTINUE }
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if self.is_for(exchange) { self.plugin.on_response(exchange) } else { Hook::CONTINUE }
    }

    fn wants_response_body(&self, exchange: &Exchange) -> bool {
        self.is_for(exchange) && self.plugin.wants_response_body(exchange)
    }

    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if self.is_for(exchange) { self.plugin.on_response_body(exchange) } else { Hook::CONTINUE }
    }

    fn response_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        if self.is_for(exchange) { self.plugin.response_body_filter(exchange) } else { None }
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if self.is_for(exchange) { self.plugin.on_log(exchange) } else { Hook::CONTINUE }
    }
}

impl Partial {
    fn is_for(&self, exchange: &Exchange) -> bool {
        self.share.has(exchange.client())
    }
}

/// The exchange that a plugin in shadow handles, and what it has made of it.
#[derive(Default)]
struct View {
    /// None before the first hook, while a call waits, and once the plugin has lost it.
    exchange: Option<Exchange>,
    /// There has been one: there is no second for the same request.
    has_begun: bool,
    edits: Vec<Edit>,
    /// What is still to be recorded: it was seen where the real exchange is not at hand.
    unrecorded: Vec<Said>,
    /// It would have ended the exchange, of which there is no more to see then.
    is_over: bool,
}

/// What one call came to.
struct Said {
    hook: HookName,
    start: Instant,
    took: Duration,
    verdict: Verdict,
    note: Note,
    changes: Vec<Change>,
}

/// Something that the plugin has changed, with what it has now.
struct Edit {
    change: Change,
    now: Changed,
}

enum Changed {
    Headers(Vec<HeaderValue>),
    Method(Method),
    Target(PathAndQuery),
    Status(StatusCode),
    Body(Bytes),
    Trailers(Box<HeaderMap>),
    Principal(Option<Box<Principal>>),
    Fact(Value),
    Id(RequestId),
}

/// A call that has returned.
type Returned = (Exchange, Result<Decision, PluginError>);

impl Shadow {
    /// The plugin in shadow.
    pub fn new(plugin: Arc<dyn Plugin>, options: ShadowOptions) -> Self {
        let needs = plugin.needs();
        Shadow(Arc::new(Shaded { plugin, needs, options, view: Slot::new() }))
    }

    /// Lets the plugin see a hook, if it wants to.
    fn look(&self, hook: HookName, real: &mut Exchange) -> Hook<'static> {
        let Shadow(shaded) = self;
        if !shaded.options.share.has(real.client()) {
            return Hook::CONTINUE;
        }
        // Who was not asked on the way in is not asked on the way out.
        let is_entered = hook == HookName::OnRequest || shaded.needs.is_on_every_response();
        if !is_entered && real.slot(shaded.view).is_none() {
            return Hook::CONTINUE;
        }
        let shared = shaded.view_of(real);
        if shaded.needs.wants(hook) {
            shaded.bring(&shared, real);
            shaded.ask(&shared, hook);
        }
        let cursor = real.core_ref().cursor;
        for said in std::mem::take(&mut lock(&shared).unrecorded) {
            said.record(cursor, real.core());
        }
        Hook::CONTINUE
    }

    /// What sees a body as it passes, if the plugin wants to.
    fn beside(&self, hook: HookName, wish: BodyWish, real: &Exchange) -> Option<Box<dyn BodyFilter>> {
        let Shadow(shaded) = self;
        let shared = real.slot(shaded.view)?.clone();
        shaded.bring(&shared, real);
        let view = lock(&shared);
        let exchange = view.exchange.as_ref().filter(|_| !view.is_over)?;
        let plugin = &shaded.plugin;
        let asked = guarded(|| match (wish, hook) {
            (BodyWish::None, _) => None,
            (BodyWish::Whole { limit }, HookName::OnRequestBody) if plugin.wants_request_body(exchange) => {
                Some(Beside::Whole(limit))
            }
            (BodyWish::Whole { limit }, HookName::OnResponseBody) if plugin.wants_response_body(exchange) => {
                Some(Beside::Whole(limit))
            }
            (_, HookName::OnRequestBody) => plugin.request_body_filter(exchange).map(Beside::Stream),
            _ => plugin.response_body_filter(exchange).map(Beside::Stream),
        });
        drop(view);
        let (shaded, start) = (shaded.clone(), Instant::now());
        match asked {
            Ok(None) => None,
            Ok(Some(Beside::Whole(limit))) => {
                let held = shaded.options.budget.hold();
                Some(Box::new(Copy { shaded, shared, hook, limit, held, gathered: Some(BytesMut::new()) }))
            }
            Ok(Some(Beside::Stream(filter))) => {
                Some(Box::new(Spectator { shaded, shared, hook, start, filter: Some(filter) }))
            }
            Err(panic) => {
                let mut view = lock(&shared);
                let left = view.exchange.take().map(|exchange| (exchange, Note::default()));
                shaded.settle(&mut view, hook, start, Err(panic), Vec::new(), left);
                None
            }
        }
    }
}

/// How a plugin wants to see a body.
enum Beside {
    Whole(usize),
    Stream(Box<dyn BodyFilter>),
}

impl Shaded {
    fn view_of(&self, real: &mut Exchange) -> Arc<Mutex<View>> {
        if let Some(view) = real.slot(self.view) {
            return view.clone();
        }
        self.options.metrics.exchanges.increment();
        let view: Arc<Mutex<View>> = Arc::default();
        real.set_slot(self.view, view.clone());
        view
    }

    /// Brings the view to how things stand, with what the plugin has changed. One that a call waits with stays.
    fn bring(&self, shared: &Mutex<View>, real: &Exchange) {
        let mut view = lock(shared);
        let from = real.core_ref();
        if !std::mem::replace(&mut view.has_begun, true) {
            let parts = Parts::new(from.id.clone(), from.connection.clone(), from.request.clone());
            view.exchange = Some(Exchange::new(parts));
        }
        let View { exchange: Some(exchange), edits, .. } = &mut *view else { return };
        let to = exchange.core();
        (to.began, to.client, to.cursor) = (from.began, from.client, from.cursor);
        (to.id, to.matched) = (from.id.clone(), from.matched.clone());
        (to.request, to.outgoing, to.response) =
            (from.request.clone(), from.outgoing.clone(), from.response.clone());
        (to.route, to.captures) = (from.route.clone(), from.captures.clone());
        (to.principal, to.facts) = (from.principal.clone(), from.facts.clone());
        to.has_request_body = from.has_request_body;
        to.has_response_body = from.has_response_body;
        (to.attempt, to.decider, to.outcome) =
            (from.attempt.clone(), from.decider.clone(), from.outcome.clone());
        edits.iter().for_each(|edit| edit.apply(to));
    }

    /// Calls the plugin. Where it waits, the call goes on by itself, and until it has returned there are no others.
    fn ask(self: &Arc<Self>, shared: &Arc<Mutex<View>>, hook: HookName) {
        let mut view = lock(shared);
        if view.is_over && hook != HookName::OnLog {
            return;
        }
        let Some(mut exchange) = view.exchange.take() else { return };
        exchange.core().cursor.hook = hook;
        let (plugin, timeout, start) = (self.plugin.clone(), self.options.timeout, Instant::now());
        let mut call: Pin<Box<dyn Future<Output = Returned> + Send>> = Box::pin(async move {
            let answer = match guarded(|| called(&*plugin, hook, &mut exchange)) {
                Ok(Hook::Ready(answer)) => answer,
                Ok(Hook::Wait(wait)) => waited(wait, timeout).await,
                Err(panic) => Err(panic),
            };
            (exchange, answer)
        });
        match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(returned) => self.returned(&mut view, hook, start, returned),
            Poll::Pending => {
                drop(view);
                let (shaded, shared) = (self.clone(), shared.clone());
                tokio::task::spawn_local(async move {
                    let returned = call.await;
                    shaded.returned(&mut lock(&shared), hook, start, returned);
                });
            }
        }
    }

    fn returned(&self, view: &mut View, hook: HookName, start: Instant, (mut exchange, answer): Returned) {
        // A plugin that lost the exchange has failed, and sees no more of it.
        if exchange.is_hollow() {
            return self.settle(view, hook, start, answer, Vec::new(), None);
        }
        let parts = exchange.core();
        let answer = match parts.overflow.take() {
            Some(what) => Err(overflowed(what)),
            None => answer,
        };
        let changes = std::mem::take(&mut parts.changes);
        for change in &changes {
            view.edits.retain(|edit| (edit.change.part, &edit.change.kind) != (change.part, &change.kind));
            view.edits.extend(Edit::of(change, parts));
        }
        let note =
            Note { rule: parts.rule.take(), used: parts.used.take().unwrap_or_default(), ..Note::default() };
        self.settle(view, hook, start, answer, changes, Some((exchange, note)));
    }

    /// Counts what a call came to, and notes it for the record.
    fn settle(
        &self,
        view: &mut View,
        hook: HookName,
        start: Instant,
        answer: Result<Decision, PluginError>,
        changes: Vec<Change>,
        left: Option<(Exchange, Note)>,
    ) {
        let (exchange, note) =
            left.map_or((None, Note::default()), |(exchange, note)| (Some(exchange), note));
        let (verdict, reason, error) = verdict(&answer);
        self.options.metrics.count(verdict, !changes.is_empty());
        if hook != HookName::OnLog && verdict != Verdict::Continue {
            let is_passed_over = matches!(verdict, Verdict::Error(_)) && self.options.allows_errors;
            view.is_over |= !is_passed_over;
            if let (false, Some(exchange)) = (is_passed_over, &exchange) {
                let route = exchange.route().unwrap_or_default();
                self.options.metrics.refuse(reason.as_deref().unwrap_or_default(), route, exchange.client());
            }
        }
        view.exchange = exchange;
        let note = Note { reason, error, ..note };
        view.unrecorded.push(Said { hook, start, took: start.elapsed(), verdict, note, changes });
    }
}

impl Said {
    fn record(self, cursor: Cursor, parts: &mut Parts) {
        let Said { hook, start, took, verdict, note, changes } = self;
        let cursor = Cursor { hook, ..cursor };
        let step = parts.step(cursor, verdict, start, took);
        parts.steps[step].is_shadow = true;
        parts.notes.push(Note { step, ..note });
        parts.changes.extend(changes.into_iter().map(|change| Change { cursor, ..change }));
    }
}

impl Edit {
    /// What a change has come to; of an attempt's request there is no more to see after its hook.
    fn of(change: &Change, parts: &Parts) -> Option<Self> {
        let headers = match change.part {
            Part::Request | Part::Context => parts.request.headers(),
            Part::Response => parts.response.as_ref()?.headers(),
            Part::Outgoing => return None,
        };
        let now = match &change.kind {
            ChangeKind::Header(name) => Changed::Headers(headers.get_all(name).iter().cloned().collect()),
            ChangeKind::Method => Changed::Method(parts.request.method().clone()),
            ChangeKind::Path | ChangeKind::Query => Changed::Target(parts.request.target().clone()),
            ChangeKind::Status => Changed::Status(parts.response.as_ref()?.status()),
            ChangeKind::Body if change.part == Part::Request => Changed::Body(parts.request_body.clone()?),
            ChangeKind::Body => Changed::Body(parts.response_body.clone()?),
            ChangeKind::Trailers if change.part == Part::Request => {
                Changed::Trailers(parts.request_trailers.clone()?)
            }
            ChangeKind::Trailers => Changed::Trailers(parts.response_trailers.clone()?),
            ChangeKind::Principal => Changed::Principal(parts.principal.clone()),
            ChangeKind::Fact(name) => {
                let mut facts = parts.facts.iter();
                Changed::Fact(facts.find(|(known, _)| known == name)?.1.clone())
            }
            ChangeKind::Id => Changed::Id(parts.id.clone()),
        };
        Some(Edit { change: change.clone(), now })
    }

    fn apply(&self, parts: &mut Parts) {
        let is_request = self.change.part == Part::Request;
        match (&self.change.kind, &self.now) {
            (ChangeKind::Header(name), Changed::Headers(values)) => {
                let headers = match (&mut parts.response, is_request) {
                    (_, true) => parts.request.core_headers(),
                    (Some(response), false) => response.core_headers(),
                    (None, false) => return,
                };
                headers.remove(name);
                values.iter().for_each(|value| _ = headers.append(name.clone(), value.clone()));
            }
            (_, Changed::Method(method)) => parts.request.replace_method(method.clone()),
            (_, Changed::Target(target)) => parts.request.replace_target(target.clone()),
            (_, Changed::Status(status)) => {
                if let Some(response) = &mut parts.response {
                    response.replace_status(*status);
                }
            }
            (_, Changed::Body(body)) if is_request => parts.request_body = Some(body.clone()),
            (_, Changed::Body(body)) => parts.response_body = Some(body.clone()),
            (_, Changed::Trailers(trailers)) if is_request => parts.request_trailers = Some(trailers.clone()),
            (_, Changed::Trailers(trailers)) => parts.response_trailers = Some(trailers.clone()),
            (_, Changed::Principal(principal)) => parts.principal.clone_from(principal),
            (ChangeKind::Fact(name), Changed::Fact(value)) => {
                parts.facts.retain(|(known, _)| known != name);
                parts.facts.push((name.clone(), value.clone()));
            }
            (_, Changed::Id(id)) => parts.id.clone_from(id),
            (_, Changed::Headers(_) | Changed::Fact(_)) => {}
        }
    }
}

impl Plugin for Shadow {
    /// More than the plugin's own: there is a view from the beginning, and what is seen late is recorded at the end.
    fn needs(&self) -> Needs {
        let needs = self.0.needs;
        let stream = |wish| if wish == BodyWish::None { BodyWish::None } else { BodyWish::Stream };
        let all =
            [HookName::OnRequest, HookName::OnResponse, HookName::OnLog].into_iter().fold(needs, Needs::and);
        all.request_body(stream(needs.request_body))
            .response_body(stream(needs.response_body))
            .on_every_response()
    }

    fn on_connection(&self, connection: &Connection) -> Result<Admission, PluginError> {
        let Shaded { plugin, options, .. } = &*self.0;
        if options.share.has(connection.peer.ip().to_canonical()) {
            let verdict = match guarded(|| plugin.on_connection(connection)).and_then(|admission| admission) {
                Ok(Admission::Accept) => Verdict::Continue,
                Ok(Admission::Drop) => Verdict::Drop,
                Err(error) => Verdict::Error(error.kind()),
            };
            options.metrics.count(verdict, false);
        }
        Ok(Admission::Accept)
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.look(HookName::OnRequest, exchange)
    }

    fn request_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        self.beside(HookName::OnRequestBody, self.0.needs.request_body, exchange)
    }

    fn on_upstream<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.look(HookName::OnUpstream, exchange)
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.look(HookName::OnResponse, exchange)
    }

    fn response_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        self.beside(HookName::OnResponseBody, self.0.needs.response_body, exchange)
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.look(HookName::OnLog, exchange)
    }
}

/// Gathers a copy of a body that a plugin in shadow wants whole.
struct Copy {
    shaded: Arc<Shaded>,
    shared: Arc<Mutex<View>>,
    hook: HookName,
    limit: usize,
    held: Held,
    /// None once it would have been refused.
    gathered: Option<BytesMut>,
}

impl BodyFilter for Copy {
    fn chunk(&mut self, chunk: Bytes) -> Result<Filtered, PluginError> {
        if let Some(gathered) = &mut self.gathered {
            let fits = gathered.len() + chunk.len() <= self.limit;
            let fault = match (fits, self.held.grow(chunk.len() as u64)) {
                (true, Ok(())) => None,
                (true, Err(fault)) => Some(fault),
                (false, _) if self.hook == HookName::OnRequestBody => Some(Fault::BodyTooLarge),
                (false, _) => Some(Fault::ResponseTooLarge),
            };
            match fault {
                None => gathered.extend_from_slice(&chunk),
                Some(fault) => {
                    self.gathered = None;
                    let refusal = Decision::Respond(Box::new(fault.reply()));
                    let mut view = lock(&self.shared);
                    if let Some(exchange) = view.exchange.take() {
                        let left = Some((exchange, Note::default()));
                        self.shaded.settle(
                            &mut view,
                            self.hook,
                            Instant::now(),
                            Ok(refusal),
                            Vec::new(),
                            left,
                        );
                    }
                }
            }
        }
        Ok(Filtered::Pass(chunk))
    }

    fn end(&mut self) -> Result<Filtered, PluginError> {
        if let Some(gathered) = self.gathered.take() {
            if let Some(exchange) = &mut lock(&self.shared).exchange {
                let (body, parts) = (Some(gathered.freeze()), exchange.core());
                match self.hook {
                    HookName::OnRequestBody => parts.request_body = body,
                    _ => parts.response_body = body,
                }
            }
            self.shaded.ask(&self.shared, self.hook);
        }
        Ok(Filtered::Pass(Bytes::new()))
    }
}

/// Shows a body to the filter of a plugin in shadow.
struct Spectator {
    shaded: Arc<Shaded>,
    shared: Arc<Mutex<View>>,
    hook: HookName,
    start: Instant,
    /// None once it has refused or failed.
    filter: Option<Box<dyn BodyFilter>>,
}

impl Spectator {
    fn show(&mut self, show: impl FnOnce(&mut dyn BodyFilter) -> Result<Filtered, PluginError>) {
        let Some(filter) = &mut self.filter else { return };
        let answer = match guarded(|| show(&mut **filter)).and_then(|answer| answer) {
            Ok(Filtered::Pass(_)) => return,
            Ok(Filtered::Refuse(reply)) => Ok(Decision::Respond(reply)),
            Err(error) => Err(error),
        };
        self.filter = None;
        let mut view = lock(&self.shared);
        let left = view.exchange.take().map(|exchange| (exchange, Note::default()));
        self.shaded.settle(&mut view, self.hook, self.start, answer, Vec::new(), left);
    }
}

impl BodyFilter for Spectator {
    fn chunk(&mut self, chunk: Bytes) -> Result<Filtered, PluginError> {
        let shown = chunk.clone();
        self.show(|filter| filter.chunk(shown));
        Ok(Filtered::Pass(chunk))
    }

    fn end(&mut self) -> Result<Filtered, PluginError> {
        self.show(|filter| filter.end());
        Ok(Filtered::Pass(Bytes::new()))
    }
}

fn lock(view: &Mutex<View>) -> MutexGuard<'_, View> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}
