//! Chains of plugin instances, and how a hook is run along one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use http::{HeaderMap, StatusCode};
use portcullis_plugin::{
    Admission, BodyFilter, BodyWish, Connection, Cursor, Decider, Decision, ErrorKind, Exchange, Filtered,
    Hook, HookFuture, HookName, Needs, Note, Parts, Plugin, PluginError, Reason, Reply, Used, Verdict,
};

use crate::metrics::PluginMetrics;
use crate::quarantine::{Admitted, Quarantine};

/// Bytes that a record holds of a failure's text.
const MAX_ERROR: usize = 512;

/// What follows a plugin's own failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The exchange is refused with 500.
    #[default]
    Deny,
    /// The exchange goes on as if the plugin had agreed.
    Allow,
}

/// A plugin as configured at one place.
pub struct Instance {
    /// Its name: the kind's unless the configuration gives one.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: &'static str,
    /// Content hash of its table and files.
    pub version: Arc<str>,
    /// The plugin.
    pub plugin: Arc<dyn Plugin>,
    /// What it wants.
    pub needs: Needs,
    /// What follows its failures.
    pub on_error: OnError,
    /// What becomes of it when it keeps failing.
    pub quarantine: Option<Quarantine>,
    /// What one call of it may use up, if it is a sandbox.
    pub budget: Used,
    /// How long one wait of it may take.
    pub timeout: Duration,
    /// Whether nothing that it decides holds.
    pub in_shadow: bool,
    /// What is counted.
    pub metrics: Arc<PluginMetrics>,
    /// Tells it from every other in the process: see [`Instance::serial`].
    pub serial: u64,
}

/// Plugin instances in the order of the configuration, with the list per hook.
#[derive(Default)]
pub struct Chain {
    instances: Box<[Arc<Instance>]>,
    hooks: [Box<[u16]>; HookName::ALL.len()],
}

/// What a hook's run along a chain came to.
#[derive(Debug)]
pub enum Flow {
    /// Every plugin agreed.
    Continue,
    /// One answered.
    Reply(Box<Reply>),
    /// One dropped the connection.
    Drop,
}

impl Chain {
    /// A chain of these instances, at most 65,535.
    pub fn new(instances: Vec<Arc<Instance>>) -> Self {
        let hooks = HookName::ALL.map(|hook| {
            let wanted = instances.iter().enumerate().filter(|(_, instance)| instance.needs.wants(hook));
            wanted.filter_map(|(at, _)| u16::try_from(at).ok()).collect()
        });
        Chain { instances: instances.into(), hooks }
    }

    /// The instances in order.
    pub fn instances(&self) -> &[Arc<Instance>] {
        &self.instances
    }

    /// Whether any plugin wants `hook`.
    pub(crate) fn wants(&self, hook: HookName) -> bool {
        !self.hooks[hook as usize].is_empty()
    }

    /// Whether the body of a response may become another.
    pub(crate) fn may_alter_responses(&self) -> bool {
        self.wanting(HookName::OnResponseBody).any(|(_, instance)| !instance.in_shadow)
    }

    /// The number of plugins, for an exchange that all of them were asked about.
    pub(crate) fn len(&self) -> u16 {
        self.instances.len() as u16
    }

    /// Asks the plugins about a connection.
    pub(crate) fn on_connection(&self, connection: &Connection) -> Admission {
        for (_, instance) in self.wanting(HookName::OnConnection) {
            if instance.admission(connection) == Admission::Drop {
                instance.metrics.drops.increment();
                return Admission::Drop;
            }
        }
        Admission::Accept
    }

    /// Runs a hook in the order of the configuration. The second value is how many plugins were
    /// entered: those up to and including the one that answered, or all.
    pub async fn forward(&self, hook: HookName, exchange: &mut Exchange) -> (Flow, u16) {
        for at in &self.hooks[hook as usize] {
            match self.call(*at, hook, exchange).await {
                Flow::Continue => {}
                flow => return (flow, at + 1),
            }
        }
        (Flow::Continue, self.len())
    }

    /// Runs a hook in reverse, for plugins among the first `entered` and for response-only ones.
    /// `below` continues a run outward from a plugin that replaced the response. Returns the flow
    /// and the index of the plugin that interrupted the run.
    pub(crate) async fn backward(
        &self,
        hook: HookName,
        exchange: &mut Exchange,
        entered: u16,
        below: u16,
    ) -> (Flow, u16) {
        for (at, instance) in self.wanting(hook).rev() {
            if at >= below || !instance.is_entered(at, entered) {
                continue;
            }
            match self.call(at, hook, exchange).await {
                Flow::Continue => {}
                flow => return (flow, at),
            }
        }
        (Flow::Continue, 0)
    }

    /// If a plugin needs this request's body whole: how long it may be for all that do, in bytes.
    pub(crate) fn whole_request(&self, exchange: &Exchange) -> Option<usize> {
        let wishes = self.wanting(HookName::OnRequestBody).map(|(_, instance)| instance);
        let limits = wishes.filter_map(|instance| match instance.needs.request_body {
            BodyWish::Whole { limit } => {
                let wants = guarded(|| instance.plugin.wants_request_body(exchange));
                // A plugin that can't tell may need it; its hook will fail again and be judged.
                wants.unwrap_or(true).then_some(limit)
            }
            BodyWish::None | BodyWish::Stream => None,
        });
        limits.min()
    }

    /// The same for the response's body, for plugins that were entered.
    pub(crate) fn whole_response(&self, exchange: &Exchange, entered: u16) -> Option<usize> {
        let wishes =
            self.wanting(HookName::OnResponseBody).filter(|(at, instance)| instance.is_entered(*at, entered));
        let limits = wishes.filter_map(|(_, instance)| match instance.needs.response_body {
            BodyWish::Whole { limit } => {
                let wants = guarded(|| instance.plugin.wants_response_body(exchange));
                wants.unwrap_or(true).then_some(limit)
            }
            BodyWish::None | BodyWish::Stream => None,
        });
        limits.min()
    }

    /// The instances that want `hook`, with their index.
    fn wanting(&self, hook: HookName) -> impl DoubleEndedIterator<Item = (u16, &Arc<Instance>)> {
        self.hooks[hook as usize].iter().map(|at| (*at, &self.instances[usize::from(*at)]))
    }

    /// The filters for a streamed request body, in the order of the configuration.
    pub(crate) fn request_filters(&self, exchange: &mut Exchange) -> Vec<Filter> {
        let hook = HookName::OnRequestBody;
        let whole = exchange.request_body().is_some();
        let streams = self.wanting(hook).filter(|(_, instance)| filters(instance.needs.request_body, whole));
        streams
            .filter_map(|(at, instance)| Filter::new(instance, Cursor { plugin: at, hook }, exchange))
            .collect()
    }

    /// The filters for a streamed response body, in reverse, for plugins that were entered; for one that `is_empty`, of
    /// those in shadow.
    pub(crate) fn response_filters(
        &self,
        exchange: &mut Exchange,
        entered: u16,
        is_empty: bool,
    ) -> Vec<Filter> {
        let hook = HookName::OnResponseBody;
        let whole = exchange.response_body().is_some();
        let streams = self.wanting(hook).rev().filter(|(at, instance)| {
            let wants = filters(instance.needs.response_body, whole) && (!is_empty || instance.in_shadow);
            wants && instance.is_entered(*at, entered)
        });
        streams
            .filter_map(|(at, instance)| Filter::new(instance, Cursor { plugin: at, hook }, exchange))
            .collect()
    }

    async fn call(&self, at: u16, hook: HookName, exchange: &mut Exchange) -> Flow {
        let instance = &*self.instances[usize::from(at)];
        exchange.core().cursor = Cursor { plugin: at, hook };
        if instance.quarantine.as_ref().is_some_and(|quarantine| !quarantine.admits(exchange)) {
            return instance.passed_over(Cursor { plugin: at, hook }, exchange);
        }
        let start = Instant::now();
        let answer = match instance.start(hook, exchange) {
            Ok(Hook::Ready(result)) => result,
            Ok(Hook::Wait(future)) => waited(future, instance.timeout).await,
            Err(panic) => Err(panic),
        };
        instance.settle(Cursor { plugin: at, hook }, exchange, answer, start)
    }
}

impl Instance {
    /// The next serial.
    pub fn serial() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Relaxed)
    }

    /// Asks the plugin about a connection.
    fn admission(&self, connection: &Connection) -> Admission {
        let failed = match self.on_error {
            OnError::Deny => Admission::Drop,
            OnError::Allow => Admission::Accept,
        };
        let client = connection.peer.ip().to_canonical();
        let probe = match self.quarantine.as_ref().map(|quarantine| quarantine.admits_client(client)) {
            None | Some(Admitted::Yes) => None,
            Some(Admitted::Try(probe)) => Some(probe),
            Some(Admitted::No) => {
                self.metrics.quarantined.increment();
                return failed;
            }
        };
        let start = Instant::now();
        let admission = guarded(|| self.plugin.on_connection(connection)).and_then(|admission| admission);
        self.metrics.hooks[HookName::OnConnection as usize].observe(start.elapsed());
        match admission {
            Ok(admission) => {
                if let Some(probe) = probe {
                    probe.answered();
                }
                admission
            }
            Err(error) => {
                self.failed(HookName::OnConnection, &error, None, probe.map(|probe| probe.turn()));
                failed
            }
        }
    }

    /// The plugin is out, and not called: records it, and what follows.
    #[cold]
    fn passed_over(&self, cursor: Cursor, exchange: &mut Exchange) -> Flow {
        self.metrics.quarantined.increment();
        let parts = exchange.core();
        // What was answered for its sake already is not replaced once more.
        let has_decided = parts.decider.as_ref().is_some_and(|decider| decider.by == self.name);
        let note = Note { step: parts.steps.len(), reason: Some(QUARANTINED), ..Note::default() };
        parts.notes.push(note);
        parts.step(cursor, Verdict::Quarantined, Instant::now(), Duration::ZERO);
        if cursor.hook == HookName::OnLog || self.on_error == OnError::Allow || has_decided {
            return Flow::Continue;
        }
        self.decides(cursor.hook, exchange, Some(QUARANTINED));
        Flow::Reply(Box::new(quarantined()))
    }

    /// Whether response hooks run for the instance at this index: it was asked on the way in, or it
    /// is never asked there.
    fn is_entered(&self, at: u16, entered: u16) -> bool {
        at < entered || self.needs.is_on_every_response()
    }

    /// Calls the hook; a panic is the plugin's error.
    fn start<'a>(&'a self, hook: HookName, exchange: &'a mut Exchange) -> Result<Hook<'a>, PluginError> {
        let plugin = &*self.plugin;
        guarded(move || match hook {
            HookName::OnRequestBody if self.needs.request_body == BodyWish::Stream => Hook::CONTINUE,
            HookName::OnResponseBody if self.needs.response_body == BodyWish::Stream => Hook::CONTINUE,
            hook => called(plugin, hook, exchange),
        })
    }

    /// Records what the plugin answered and turns it into what follows.
    fn settle(
        &self,
        cursor: Cursor,
        exchange: &mut Exchange,
        answer: Result<Decision, PluginError>,
        start: Instant,
    ) -> Flow {
        let elapsed = start.elapsed();
        let hook = cursor.hook;
        self.metrics.hooks[hook as usize].observe(elapsed);
        let parts = exchange.core();
        let answer = match (answer, parts.overflow.take()) {
            (Ok(_), Some(what)) => Err(overflowed(what)),
            (answer, _) => answer,
        };
        if let Some(used) = &parts.used {
            self.metrics.budgets.observe(used, &self.budget);
        }
        // What is in shadow tells of itself.
        if !self.in_shadow {
            record(parts, cursor, &answer, start, elapsed);
        }
        if let (Ok(_), Some(quarantine)) = (&answer, &self.quarantine) {
            quarantine.answered(exchange);
        }
        match answer {
            Ok(Decision::Continue) => Flow::Continue,
            Ok(_) if hook == HookName::OnLog => Flow::Continue,
            Ok(Decision::Respond(reply)) => {
                self.metrics.responses.increment();
                self.decides(hook, exchange, reply.reason.clone());
                Flow::Reply(reply)
            }
            Ok(Decision::Drop) => {
                self.metrics.drops.increment();
                self.decides(hook, exchange, Some(DROPPED));
                Flow::Drop
            }
            Err(error) => {
                let turn = self.quarantine.as_ref().and_then(|quarantine| quarantine.turn(exchange));
                self.failed(hook, &error, Some(exchange), turn);
                if hook == HookName::OnLog || self.on_error == OnError::Allow {
                    return Flow::Continue;
                }
                let reason = error.kind().reason();
                self.decides(hook, exchange, Some(reason.into()));
                Flow::Reply(Box::new(Reply::deny(StatusCode::INTERNAL_SERVER_ERROR, reason)))
            }
        }
    }

    fn decides(&self, hook: HookName, exchange: &mut Exchange, reason: Option<Reason>) {
        let decider = Decider { by: self.name.clone(), hook: Some(hook), reason };
        exchange.core().decider = Some(Box::new(decider));
    }

    /// Tells of a failure; `turn` is the number of the exchange's try of a plugin in quarantine, if it is one.
    fn failed(&self, hook: HookName, error: &PluginError, exchange: Option<&Exchange>, turn: Option<u64>) {
        self.metrics.error(error.kind());
        tracing::warn!(
            plugin = &*self.name,
            kind = self.kind,
            hook = hook.as_str(),
            failure = error.kind().reason(),
            on_error = if self.on_error == OnError::Deny { "deny" } else { "allow" },
            request_id = exchange.map(|exchange| exchange.id().to_string()),
            error = error.message(),
            "plugin failed"
        );
        if self.quarantine.as_ref().is_some_and(|quarantine| quarantine.failed(turn)) {
            self.metrics.quarantines.increment();
        }
    }
}

/// Whether a plugin with this wish may filter a body: one that it would have had whole streams past it otherwise.
fn filters(wish: BodyWish, whole: bool) -> bool {
    match wish {
        BodyWish::None => false,
        BodyWish::Stream => true,
        BodyWish::Whole { .. } => !whole,
    }
}

/// Why there was no answer, where a plugin says no more than that.
const DROPPED: Reason = Reason::Borrowed("dropped");

/// Why there was no answer of a plugin that is out.
const QUARANTINED: Reason = Reason::Borrowed("plugin.quarantined");

/// What is answered in its place.
fn quarantined() -> Reply {
    Reply::deny(StatusCode::SERVICE_UNAVAILABLE, QUARANTINED)
}

/// Writes down that a plugin was called and what it answered; a word more where there is more to say.
fn record(
    parts: &mut Parts,
    cursor: Cursor,
    answer: &Result<Decision, PluginError>,
    start: Instant,
    elapsed: Duration,
) {
    let (verdict, reason, error) = verdict(answer);
    let (rule, used) = (parts.rule.take(), parts.used.take());
    if verdict != Verdict::Continue || used.is_some() {
        parts.notes.push(Note {
            step: parts.steps.len(),
            reason,
            rule,
            error,
            used: used.unwrap_or_default(),
        });
    }
    parts.step(cursor, verdict, start, elapsed);
}

/// What an answer is called, why, and what failed.
pub(crate) fn verdict(answer: &Result<Decision, PluginError>) -> (Verdict, Option<Reason>, Option<Box<str>>) {
    match answer {
        Ok(Decision::Continue) => (Verdict::Continue, None, None),
        Ok(Decision::Respond(reply)) => (Verdict::Respond, reply.reason.clone(), None),
        Ok(Decision::Drop) => (Verdict::Drop, Some(DROPPED), None),
        Err(error) => (
            Verdict::Error(error.kind()),
            Some(error.kind().reason().into()),
            Some(shortened(error.message())),
        ),
    }
}

/// A plugin has set more than it may of something.
pub(crate) fn overflowed(what: &str) -> PluginError {
    PluginError::new(ErrorKind::Budget, format!("set more than the allowed number of {what}s"))
}

fn shortened(text: &str) -> Box<str> {
    text.get(..text.floor_char_boundary(MAX_ERROR)).unwrap_or_default().into()
}

/// Calls a plugin's hook.
pub(crate) fn called<'a>(plugin: &'a dyn Plugin, hook: HookName, exchange: &'a mut Exchange) -> Hook<'a> {
    match hook {
        HookName::OnConnection => Hook::CONTINUE,
        HookName::OnRequest => plugin.on_request(exchange),
        HookName::OnRequestBody => plugin.on_request_body(exchange),
        HookName::OnUpstream => plugin.on_upstream(exchange),
        HookName::OnResponse => plugin.on_response(exchange),
        HookName::OnResponseBody => plugin.on_response_body(exchange),
        HookName::OnLog => plugin.on_log(exchange),
    }
}

/// Waits for a hook, at most for so long.
pub(crate) async fn waited(future: HookFuture<'_>, timeout: Duration) -> Result<Decision, PluginError> {
    let guarded = AssertUnwindSafe(future).catch_unwind();
    match tokio::time::timeout(timeout, guarded).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(PluginError::new(ErrorKind::Panic, panic_text(&*panic))),
        Err(_) => Err(PluginError::new(ErrorKind::Timeout, format!("no verdict within {timeout:?}"))),
    }
}

/// Calls into a plugin; a panic is the plugin's error and nobody else's.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, PluginError> {
    catch_unwind(AssertUnwindSafe(call))
        .map_err(|panic| PluginError::new(ErrorKind::Panic, panic_text(&*panic)))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("no message"))
}

/// A body filter with the instance it belongs to.
pub(crate) struct Filter {
    pub(crate) instance: Arc<Instance>,
    filter: Box<dyn BodyFilter>,
    pub(crate) cursor: Cursor,
    /// Number of the exchange's try of a plugin in quarantine.
    turn: Option<u64>,
}

/// In place of a filter whose making panicked: every chunk is that failure.
struct Broken;

impl BodyFilter for Broken {
    fn chunk(&mut self, _: bytes::Bytes) -> Result<Filtered, PluginError> {
        Err(PluginError::new(ErrorKind::Panic, "the filter could not be made"))
    }
}

/// In place of the filter of a plugin that is out.
struct Out;

impl BodyFilter for Out {
    fn chunk(&mut self, _: bytes::Bytes) -> Result<Filtered, PluginError> {
        Ok(Filtered::Refuse(Box::new(quarantined())))
    }

    fn end(&mut self) -> Result<Filtered, PluginError> {
        self.chunk(bytes::Bytes::new())
    }
}

impl Filter {
    /// The filter of a plugin that wants one for this exchange.
    fn new(instance: &Arc<Instance>, cursor: Cursor, exchange: &mut Exchange) -> Option<Self> {
        let quarantine = instance.quarantine.as_ref();
        if quarantine.is_some_and(|quarantine| !quarantine.admits(exchange)) {
            let filter: Box<dyn BodyFilter> = match instance.passed_over(cursor, exchange) {
                Flow::Continue => return None,
                Flow::Reply(_) | Flow::Drop => Box::new(Out),
            };
            return Some(Filter { instance: instance.clone(), filter, cursor, turn: None });
        }
        let turn = quarantine.and_then(|quarantine| {
            quarantine.answered(exchange);
            quarantine.turn(exchange)
        });
        let start = Instant::now();
        let filter = guarded(|| match cursor.hook {
            HookName::OnRequestBody => instance.plugin.request_body_filter(exchange),
            _ => instance.plugin.response_body_filter(exchange),
        });
        let filter = filter.unwrap_or_else(|_| Some(Box::new(Broken)))?;
        if !instance.in_shadow {
            exchange.core().step(cursor, Verdict::Filter, start, start.elapsed());
        }
        Some(Filter { instance: instance.clone(), filter, cursor, turn })
    }

    /// Shows the filter what follows the body. A failure follows `on_error`: they pass as they are, or the body is
    /// refused.
    pub(crate) fn trailers(&mut self, trailers: &mut HeaderMap) -> Result<(), Box<Reply>> {
        let filter = &mut self.filter;
        let Err(error) = guarded(|| filter.trailers(trailers)).and_then(|result| result) else {
            return Ok(());
        };
        self.failed(&error).map_or(Ok(()), Err)
    }

    /// What a failure leads to: a refusal, unless it is allowed.
    fn failed(&self, error: &PluginError) -> Option<Box<Reply>> {
        self.instance.failed(self.cursor.hook, error, None, self.turn);
        match self.instance.on_error {
            OnError::Allow => None,
            OnError::Deny => {
                Some(Box::new(Reply::deny(StatusCode::INTERNAL_SERVER_ERROR, error.kind().reason())))
            }
        }
    }

    /// Passes a chunk, or the body's end, through the filter. A failure follows `on_error`: the
    /// chunk passes unfiltered, or the body is refused.
    pub(crate) fn pass(&mut self, chunk: Option<bytes::Bytes>) -> Result<bytes::Bytes, Box<Reply>> {
        let original = chunk.clone().unwrap_or_default();
        let start = Instant::now();
        let filter = &mut self.filter;
        let result = guarded(|| match chunk {
            Some(chunk) => filter.chunk(chunk),
            None => filter.end(),
        });
        self.instance.metrics.hooks[self.cursor.hook as usize].observe(start.elapsed());
        match result.and_then(|result| result) {
            Ok(Filtered::Pass(bytes)) => Ok(bytes),
            Ok(Filtered::Refuse(reply)) => {
                self.instance.metrics.responses.increment();
                Err(reply)
            }
            Err(error) => self.failed(&error).map_or(Ok(original), Err),
        }
    }
}

#[cfg(test)]
mod tests;
