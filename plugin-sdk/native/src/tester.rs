//! Runs a plugin without a gateway.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};
use serde_json::Value;

use crate::build::{
    ArtifactStore, BuildContext, BuildError, BuildHost, BuildWarning, Cache, Instance, SourceFile, StateKey,
};
use crate::clock::Clock;
use crate::connection::{Admission, Connection, TlsSession};
use crate::coverage::Coverage;
use crate::exchange::{End, Exchange, Outcome, Parts, RequestId, RouteMeta};
use crate::hook::{Decision, Hook, HookFuture, HookName, PluginError};
use crate::journal::Cursor;
use crate::log::LogSink;
use crate::message::{Request, Response};
use crate::metrics::InstanceCounters;
use crate::offload::{CpuPool, Job};
use crate::outbound::{Outbound, OutboundError, OutboundFuture, OutboundLimits};
use crate::plugin::{BuildFailure, Plugin, PluginType, Registration};
use crate::principal::Principal;
use crate::rate::RateTable;
use crate::secret::{Secret, SecretRef};
use crate::store::{MemoryStore, Store};
use crate::tasks::{Task, Tasks};

/// Bytes of the store.
const STORE: usize = 8 << 20;

type Answer = dyn Fn(&http::Request<Bytes>) -> Result<http::Response<Bytes>, OutboundError> + Send + Sync;

/// Builds a plugin from a table and runs its hooks on exchanges of the test's making.
///
/// ```
/// # use portcullis_plugin::*;
/// # struct Teapot;
/// # #[derive(serde::Deserialize, schemars::JsonSchema)] struct Table {}
/// # impl Plugin for Teapot {
/// #     fn needs(&self) -> Needs { Needs::hooks([HookName::OnRequest]) }
/// #     fn on_request<'a>(&'a self, _: &'a mut Exchange) -> Hook<'a> {
/// #         Hook::respond(Reply::deny(http::StatusCode::IM_A_TEAPOT, "teapot.short"))
/// #     }
/// # }
/// # impl PluginType for Teapot {
/// #     const KIND: &'static str = "teapot"; const SUMMARY: &'static str = ""; const EXAMPLE: &'static str = "";
/// #     type Config = Table;
/// #     fn build(_: Table, _: &mut BuildContext<'_>) -> Result<Self, BuildError> { Ok(Teapot) }
/// # }
/// let teapot = PluginTester::new().build::<Teapot>(serde_json::json!({})).unwrap();
/// let mut exchange = ExchangeBuilder::get("/coffee").build();
/// let Ok(Decision::Respond(reply)) = teapot.on_request(&mut exchange) else { panic!() };
/// assert_eq!(reply.status, 418);
/// ```
#[derive(Default)]
pub struct PluginTester {
    files: HashMap<String, Bytes>,
    secrets: HashMap<String, Bytes>,
    upstreams: HashMap<String, Arc<dyn Outbound>>,
    state: HashMap<StateKey, Arc<dyn Any + Send + Sync>>,
    caches: HashMap<StateKey, Arc<MemoryCache>>,
    rates: HashMap<StateKey, Arc<RateTable>>,
    store: Option<Arc<dyn Store>>,
    nanos: Arc<AtomicU64>,
    coverage: Option<Arc<Coverage>>,
    lines: Arc<Lines>,
    counters: HashMap<Arc<str>, Arc<InstanceCounters>>,
    cpu: Arc<TestPool>,
    lacks_threads: bool,
    tasks: Option<Arc<TestTasks>>,
    warnings: Vec<BuildWarning>,
}

impl PluginTester {
    /// A tester without files, secrets and upstreams.
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers a file.
    #[must_use]
    pub fn file(mut self, path: &str, content: impl Into<Bytes>) -> Self {
        self.files.insert(path.to_owned(), content.into());
        self
    }

    /// Offers a secret, by name of variable or file.
    #[must_use]
    pub fn secret(mut self, name: &str, secret: impl Into<Bytes>) -> Self {
        self.secrets.insert(name.to_owned(), secret.into());
        self
    }

    /// Offers an upstream that answers with what `answer` returns.
    #[must_use]
    pub fn upstream(
        mut self,
        name: &str,
        answer: impl Fn(&http::Request<Bytes>) -> Result<http::Response<Bytes>, OutboundError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.upstreams.insert(name.to_owned(), Arc::new(FakeUpstream(Box::new(answer))));
        self
    }

    /// Offers this store instead of an empty one in memory.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Notes there which lines of scripts run.
    #[must_use]
    pub fn covering(mut self, coverage: Arc<Coverage>) -> Self {
        self.coverage = Some(coverage);
        self
    }

    /// Sets the clock of plugins, which goes by the machine's until then, and stands still from then on.
    pub fn set_time(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.store(nanos.max(1), Ordering::Relaxed);
    }

    /// Keeps offloaded work until [`run_offloaded`](Self::run_offloaded), instead of doing it at once.
    #[must_use]
    pub fn holding_offloaded(self) -> Self {
        self.cpu.holds.store(true, Ordering::Relaxed);
        self
    }

    /// Has no thread left for scripts that may wait.
    #[must_use]
    pub fn without_script_threads(mut self) -> Self {
        self.lacks_threads = true;
        self
    }

    /// Does the offloaded work that was kept; how many pieces it was.
    pub fn run_offloaded(&self) -> usize {
        let held = self.cpu.held.lock().map(|mut held| std::mem::take(&mut *held)).unwrap_or_default();
        held.into_iter().map(|job| job.run()).count()
    }

    /// Lets what plugins have going on beside requests go on, once; how much of it is left. Sleeps are over when the
    /// clock that was [set](Self::set_time) says so.
    pub fn run_tasks(&mut self) -> usize {
        self.test_tasks().run()
    }

    fn test_tasks(&mut self) -> Arc<TestTasks> {
        let nanos = &self.nanos;
        self.tasks
            .get_or_insert_with(|| Arc::new(TestTasks { clock: nanos.clone(), running: Mutex::default() }))
            .clone()
    }

    /// Builds an instance of `T`, by way of its registration; errors as a user would get them.
    pub fn build<T: PluginType>(&mut self, table: Value) -> Result<TestedPlugin, BuildError> {
        self.build_registered(&Registration::of::<T>(), table)
    }

    /// Builds an instance of a registered kind.
    pub fn build_registered(
        &mut self,
        kind: &Registration,
        table: Value,
    ) -> Result<TestedPlugin, BuildError> {
        let instance = Instance { kind: kind.kind, name: kind.kind.into(), state_schema: kind.state_schema };
        let mut context = BuildContext::new(instance, self);
        let mut table = <dyn erased_serde::Deserializer<'_>>::erase(table);
        match (kind.build)(&mut table, &mut context) {
            Ok(plugin) => Ok(TestedPlugin { plugin, tasks: self.test_tasks() }),
            Err(BuildFailure::Config(error)) => Err(BuildError::at("", error.to_string())),
            Err(BuildFailure::Build(error)) => Err(error),
        }
    }

    /// Remarks made while building.
    pub fn warnings(&self) -> &[BuildWarning] {
        &self.warnings
    }

    /// What was counted under a name with these label values; none if there is no such counter.
    pub fn counted(&self, name: &str, values: &[&str]) -> Option<u64> {
        let readings = self.counters.values().flat_map(|instance| instance.read());
        let is =
            |labels: &[(&str, Box<str>)]| labels.iter().map(|(_, value)| &**value).eq(values.iter().copied());
        readings
            .filter(|reading| reading.name == name && is(&reading.labels))
            .map(|reading| reading.value)
            .next()
    }

    /// Lines written to log sinks, whatever their target.
    pub fn logged(&self) -> Vec<String> {
        self.lines.0.lock().map(|lines| lines.clone()).unwrap_or_default()
    }
}

impl BuildHost for PluginTester {
    fn file(&mut self, path: &str) -> Result<SourceFile, String> {
        let bytes = self.files.get(path).cloned().ok_or_else(|| format!("there is no file `{path}`"))?;
        Ok(SourceFile { path: path.into(), bytes })
    }

    fn secret(&mut self, secret: &SecretRef) -> Result<Secret, String> {
        let (SecretRef::Env(name) | SecretRef::File(name)) = secret;
        let found = self.secrets.get(name).ok_or_else(|| format!("there is no secret `{name}`"))?;
        Ok(Secret::new(found.to_vec()))
    }

    fn shared(
        &mut self,
        key: StateKey,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync> {
        self.state.entry(key).or_insert_with(make).clone()
    }

    fn cache(&mut self, key: StateKey, _entries: u64) -> Arc<dyn Cache> {
        self.caches.entry(key).or_default().clone()
    }

    fn rates(&mut self, key: StateKey) -> Arc<RateTable> {
        self.rates.entry(key).or_default().clone()
    }

    fn store(&mut self) -> Arc<dyn Store> {
        let clock = self.clock();
        self.store.get_or_insert_with(|| Arc::new(MemoryStore::new(STORE, clock))).clone()
    }

    fn clock(&self) -> Clock {
        Clock::set_by(self.nanos.clone())
    }

    fn coverage(&self) -> Option<Arc<Coverage>> {
        self.coverage.clone()
    }

    fn upstream(&mut self, name: &str) -> Option<Arc<dyn Outbound>> {
        self.upstreams.get(name).cloned()
    }

    fn upstream_names(&self) -> Vec<String> {
        self.upstreams.keys().cloned().collect()
    }

    fn artifacts(&self) -> Option<Arc<dyn ArtifactStore>> {
        None
    }

    fn log_sink(&mut self, _target: &str) -> Result<Arc<dyn LogSink>, String> {
        Ok(self.lines.clone())
    }

    fn counters(&mut self, instance: &Instance) -> Arc<InstanceCounters> {
        let make = || Arc::new(InstanceCounters::new(|| Arc::new(AtomicU64::new(0))));
        self.counters.entry(instance.name.clone()).or_insert_with(make).clone()
    }

    fn generation(&self) -> u64 {
        1
    }

    fn cpu_pool(&mut self) -> Arc<dyn CpuPool> {
        self.cpu.clone()
    }

    fn script_threads(&mut self) -> Arc<dyn CpuPool> {
        Arc::new(ThreadEach { refuses: self.lacks_threads })
    }

    fn tasks(&mut self) -> Arc<dyn Tasks> {
        self.test_tasks()
    }

    fn warn(&mut self, warning: BuildWarning) {
        self.warnings.push(warning);
    }
}

#[derive(Default)]
struct MemoryCache(Mutex<HashMap<String, Bytes>>);

impl Cache for MemoryCache {
    fn get(&self, key: &str) -> Option<Bytes> {
        self.0.lock().ok()?.get(key).cloned()
    }

    fn insert(&self, key: &str, value: Bytes, _lifetime: Duration) {
        if let Ok(mut entries) = self.0.lock() {
            entries.insert(key.to_owned(), value);
        }
    }
}

/// Does work at once, unless it keeps it until told.
#[derive(Default)]
struct TestPool {
    holds: AtomicBool,
    held: Mutex<Vec<Job>>,
}

impl CpuPool for TestPool {
    fn submit(&self, job: Job) -> Result<(), Job> {
        if !self.holds.load(Ordering::Relaxed) {
            job.run();
        } else if let Ok(mut held) = self.held.lock() {
            held.push(job);
        }
        Ok(())
    }
}

/// Does each piece of work on a thread of its own.
struct ThreadEach {
    refuses: bool,
}

impl CpuPool for ThreadEach {
    fn submit(&self, job: Job) -> Result<(), Job> {
        if self.refuses {
            return Err(job);
        }
        std::thread::spawn(|| job.run());
        Ok(())
    }
}

/// Runs tasks when told, or while a hook waits.
struct TestTasks {
    clock: Arc<AtomicU64>,
    running: Mutex<Vec<Task>>,
}

impl TestTasks {
    fn run(&self) -> usize {
        // A task may begin others.
        let tasks = self.running.lock().map(|mut running| std::mem::take(&mut *running)).unwrap_or_default();
        let mut context = Context::from_waker(Waker::noop());
        let left = tasks
            .into_iter()
            .filter_map(|mut task| task.as_mut().poll(&mut context).is_pending().then_some(task));
        let left: Vec<_> = left.collect();
        self.running
            .lock()
            .map(|mut running| {
                running.extend(left);
                running.len()
            })
            .unwrap_or_default()
    }
}

impl Tasks for TestTasks {
    fn spawn(&self, task: Task) {
        if let Ok(mut running) = self.running.lock() {
            running.push(task);
        }
    }

    fn sleep(&self, time: Duration) -> Task {
        let clock = Clock::set_by(self.clock.clone());
        let end = clock.now() + time;
        Box::pin(std::future::poll_fn(move |context| {
            if clock.now() >= end {
                return Poll::Ready(());
            }
            // Nobody tells when the time is over.
            context.waker().wake_by_ref();
            Poll::Pending
        }))
    }
}

#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl LogSink for Lines {
    fn write(&self, line: &[u8]) {
        if let Ok(mut lines) = self.0.lock() {
            lines.push(String::from_utf8_lossy(line).into_owned());
        }
    }
}

struct FakeUpstream(Box<Answer>);

impl Outbound for FakeUpstream {
    fn send(&self, request: http::Request<Bytes>, _limits: OutboundLimits) -> OutboundFuture<'_> {
        Box::pin(async move { (self.0)(&request) })
    }
}

/// A plugin under test.
pub struct TestedPlugin {
    plugin: Arc<dyn Plugin>,
    tasks: Arc<TestTasks>,
}

impl TestedPlugin {
    /// The plugin itself.
    pub fn plugin(&self) -> &Arc<dyn Plugin> {
        &self.plugin
    }

    /// Calls `on_connection` for a client at `peer`.
    pub fn on_connection(&self, peer: &str) -> Result<Admission, PluginError> {
        let exchange = ExchangeBuilder::get("/").peer(peer).build();
        self.plugin.on_connection(exchange.connection())
    }

    /// Calls `on_request`.
    pub fn on_request(&self, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        self.call(HookName::OnRequest, exchange)
    }

    /// Calls `on_response`.
    pub fn on_response(&self, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        self.call(HookName::OnResponse, exchange)
    }

    /// Calls a hook and waits for its verdict.
    pub fn call(&self, hook: HookName, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        exchange.core().cursor = Cursor { plugin: 0, hook };
        let answer = match hook {
            HookName::OnConnection => match self.plugin.on_connection(exchange.connection()) {
                Ok(Admission::Accept) => Hook::CONTINUE,
                Ok(Admission::Drop) => Hook::from(Decision::Drop),
                Err(error) => Hook::Ready(Err(error)),
            },
            HookName::OnRequest => self.plugin.on_request(exchange),
            HookName::OnRequestBody => self.plugin.on_request_body(exchange),
            HookName::OnUpstream => self.plugin.on_upstream(exchange),
            HookName::OnResponse => self.plugin.on_response(exchange),
            HookName::OnResponseBody => self.plugin.on_response_body(exchange),
            HookName::OnLog => self.plugin.on_log(exchange),
        };
        match answer {
            Hook::Ready(result) => result,
            Hook::Wait(future) => self.wait(future),
        }
    }
}

impl TestedPlugin {
    /// Waits for a verdict. Tasks go on meanwhile, since it may be them that it waits for.
    fn wait(&self, mut future: HookFuture<'_>) -> Result<Decision, PluginError> {
        let mut next = std::future::poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Pending if self.tasks.run() > 0 => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => future.as_mut().poll(context),
            ready => ready,
        });
        block_on(&mut next)
    }
}

/// Waits for a future on the current thread, without timers or I/O of its own.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

type PartsChange = Box<dyn FnOnce(&mut Parts)>;

/// Makes an exchange for a test. Bad literals panic, as tests should.
pub struct ExchangeBuilder {
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
    connection: Connection,
    parts: Vec<PartsChange>,
}

#[expect(clippy::expect_used, reason = "literals of tests")]
impl ExchangeBuilder {
    /// A GET request from 192.0.2.1 to `gateway.test`.
    pub fn get(target: &str) -> Self {
        Self::request(Method::GET, target)
    }

    /// A request from 192.0.2.1 to `gateway.test`.
    pub fn request(method: Method, target: &str) -> Self {
        let connection = Connection {
            listener: "test".into(),
            peer: "192.0.2.1:40000".parse().expect("an address"),
            local: "192.0.2.2:80".parse().expect("an address"),
            tls: None,
        };
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("gateway.test"))]);
        let target = target.parse().expect("a path and query");
        ExchangeBuilder { method, target, headers, connection, parts: Vec::new() }
    }

    /// Adds a request header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().expect("a header name");
        let value = value.parse().expect("a header value");
        if name == HOST {
            self.headers.insert(name, value);
        } else {
            self.headers.append(name, value);
        }
        self
    }

    /// The peer's address, without port.
    #[must_use]
    pub fn peer(mut self, address: &str) -> Self {
        self.connection.peer.set_ip(address.parse().expect("an address"));
        self
    }

    /// Over TLS.
    #[must_use]
    pub fn tls(mut self, session: TlsSession) -> Self {
        self.connection.tls = Some(session);
        self
    }

    /// Who is calling.
    #[must_use]
    pub fn principal(self, principal: Principal) -> Self {
        self.with(move |parts| parts.principal = Some(Box::new(principal)))
    }

    /// The whole request body.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        self.with(move |parts| {
            parts.has_request_body = !body.is_empty();
            parts.request_body = Some(body);
        })
    }

    /// The route, with captures as names and values that occur in the path.
    #[must_use]
    pub fn route(self, name: &str, captures: &[(&str, &str)]) -> Self {
        let name = name.into();
        let captures: Vec<(Box<str>, String)> =
            captures.iter().map(|(name, value)| ((*name).into(), (*value).to_owned())).collect();
        self.with(move |parts| {
            for (_, value) in &captures {
                let at = parts.matched.path().find(value.as_str()).expect("the capture occurs in the path");
                parts.captures.push((at as u32, (at + value.len()) as u32));
            }
            let captures = captures.into_iter().map(|(name, _)| name).collect();
            parts.route = Some(Arc::new(RouteMeta { name, captures }));
        })
    }

    /// The response, with its whole body.
    #[must_use]
    pub fn response(self, status: u16, headers: &[(&'static str, &str)], body: impl Into<Bytes>) -> Self {
        let status = StatusCode::from_u16(status).expect("a status");
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a header value")))
            .collect();
        let body = body.into();
        self.with(move |parts| {
            parts.response = Some(Response::new(status, headers));
            parts.has_response_body = !body.is_empty();
            parts.response_body = Some(body);
        })
    }

    /// An attempt is about to be sent to `endpoint`.
    #[must_use]
    pub fn attempt(self, upstream: &str, endpoint: &str) -> Self {
        let (upstream, endpoint) = (upstream.into(), endpoint.into());
        self.with(move |parts| {
            parts.outgoing = Some(parts.request.clone());
            parts.attempt = Some(crate::exchange::Attempt { number: 1, upstream, endpoint });
        })
    }

    /// The exchange is over, with this status after a millisecond.
    #[must_use]
    pub fn ended(self, status: u16) -> Self {
        self.with(move |parts| {
            parts.outcome = Some(Box::new(Outcome {
                end: End::Complete,
                status: StatusCode::from_u16(status).ok(),
                request_bytes: 0,
                response_bytes: 0,
                duration: Duration::from_millis(1),
                upstream_duration: None,
                grpc_status: None,
            }));
        })
    }

    /// Anything else.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Parts) + 'static) -> Self {
        self.parts.push(Box::new(change));
        self
    }

    /// The exchange, with request id 1.
    pub fn build(self) -> Exchange {
        let request = Request::new(self.method, self.target, Version::HTTP_11, self.headers);
        let mut parts = Parts::new(RequestId::Bits(1), Arc::new(self.connection), request);
        for change in self.parts {
            change(&mut parts);
        }
        Exchange::new(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_state_is_made_once_and_kept() {
        let mut tester = PluginTester::new();
        let mut shared = |value: u32| {
            let instance = Instance { kind: "k", name: "n".into(), state_schema: 1 };
            BuildContext::new(instance, &mut tester).shared(|| value)
        };
        assert_eq!((*shared(1), *shared(2)), (1, 1));
    }

    #[test]
    fn an_exchange_has_what_the_test_gave_it() {
        let exchange =
            ExchangeBuilder::get("/users/42?x=1").route("users", &[("id", "42")]).peer("2001:db8::1").build();
        assert_eq!((exchange.route(), exchange.capture("id")), (Some("users"), Some("42")));
        assert_eq!(
            (exchange.client().to_string(), exchange.request().host()),
            ("2001:db8::1".into(), "gateway.test")
        );
    }
}
