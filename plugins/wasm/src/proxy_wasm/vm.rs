//! A VM: one instance of a module with the contexts of all exchanges of its thread.

use std::sync::Arc;
use std::time::Instant;

use portcullis_plugin::{ErrorKind, Exchange, PluginError, Size, Span, Used};
use wasmtime::{Instance, InstancePre, Store, Trap, TypedFunc, WasmParams, WasmResults};

use super::abi::Way;
use super::calls::{Answer, Kind};
use super::host::{Body, Context, Host, MAX_DEFERRED, ROOT};
use super::maps;
use super::{About, has_body};
use crate::engine::MAX_STACK;
use crate::host::Breach;
use crate::instance::{Life, trapped};
use crate::wasi::{Exit, flush};

/// CPU, in milliseconds, that a module may take to start and to read its configuration.
const START_BUDGET: u32 = 1000;

pub(super) struct Vm {
    store: Store<Host>,
    exports: Exports,
    /// Whether it has served anything.
    pub(super) proven: bool,
    _life: Life,
}

/// Why a VM did not start.
pub(super) struct StartFailure {
    /// The setting that is to blame.
    pub(super) at: &'static str,
    pub(super) error: PluginError,
}

/// Where a guest is asked about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Headers(Way),
    /// What is there of a body, and whether that is all.
    Body(Way, bool),
    Trailers(Way),
}

impl Phase {
    pub(super) fn way(self) -> Way {
        let (Phase::Headers(way) | Phase::Body(way, _) | Phase::Trailers(way)) = self;
        way
    }

    fn name(self) -> &'static str {
        match (self, self.way()) {
            (Phase::Headers(_), Way::Request) => "proxy_on_request_headers",
            (Phase::Body(..), Way::Request) => "proxy_on_request_body",
            (Phase::Trailers(_), Way::Request) => "proxy_on_request_trailers",
            (Phase::Headers(_), Way::Response) => "proxy_on_response_headers",
            (Phase::Body(..), Way::Response) => "proxy_on_response_body",
            (Phase::Trailers(_), Way::Response) => "proxy_on_response_trailers",
        }
    }
}

type Function<P, R> = Option<TypedFunc<P, R>>;

/// The callbacks of a guest, each of which it may lack.
struct Exports {
    context_create: Function<(u32, u32), ()>,
    done: Function<u32, u32>,
    log: Function<u32, ()>,
    delete: Function<u32, ()>,
    vm_start: Function<(u32, u32), u32>,
    configure: Function<(u32, u32), u32>,
    tick: Function<u32, ()>,
    queue_ready: Function<(u32, u32), ()>,
    headers: [Option<Headers>; 2],
    body: [Function<(u32, u32, u32), u32>; 2],
    trailers: [Function<(u32, u32), u32>; 2],
    http_call_response: Function<(u32, u32, u32, u32, u32), ()>,
    grpc_initial_metadata: Function<(u32, u32, u32), ()>,
    grpc_receive: Function<(u32, u32, u32), ()>,
    grpc_trailing_metadata: Function<(u32, u32, u32), ()>,
    grpc_close: Function<(u32, u32, u32), ()>,
}

/// 0.1.0 does not tell whether a body follows.
#[derive(Clone)]
enum Headers {
    Counted(TypedFunc<(u32, u32), u32>),
    CountedAndEnded(TypedFunc<(u32, u32, u32), u32>),
}

impl Vm {
    /// A VM that has accepted its configuration.
    pub(super) fn start(about: &Arc<About>, module: &InstancePre<Host>) -> Result<Self, StartFailure> {
        let mut store = Store::new(module.module().engine(), Host::new(about.clone()));
        store.limiter(|host| host);
        store.epoch_deadline_callback(|mut context| context.data_mut().look());
        begin(&mut store, 0, START_BUDGET);
        let linked = module.instantiate(&mut store).and_then(|instance| {
            let exports = Exports::of(&mut store, &instance)?;
            prepare(&mut store, &instance)?;
            Ok(exports)
        });
        let exports = linked.map_err(|error| StartFailure {
            at: "file",
            error: failure(store.data(), "the module's start", &error),
        })?;
        let mut vm = Vm { store, exports, proven: false, _life: about.lives.begin() };
        vm.configure(about)?;
        Ok(vm)
    }

    /// Makes the plugin's own context and lets it judge its configuration.
    fn configure(&mut self, about: &Arc<About>) -> Result<(), StartFailure> {
        self.store.data_mut().last_context = ROOT;
        self.store.data_mut().contexts.insert(ROOT, Context::default());
        let blame = |at| move |error| StartFailure { at, error };
        let create = self.exports.context_create.clone();
        self.started("proxy_on_context_create", create, (ROOT, 0)).map_err(blame("file"))?;
        self.store.data_mut().starts_vm = true;
        let at = if about.vm_config.is_empty() { "file" } else { "proxy_wasm.vm_config" };
        let start = self.exports.vm_start.clone();
        let accepted = self.started("proxy_on_vm_start", start, (ROOT, about.vm_config.len() as u32));
        self.judged("proxy_on_vm_start", accepted).map_err(blame(at))?;
        self.store.data_mut().starts_vm = false;
        let configure = self.exports.configure.clone();
        let accepted = self.started("proxy_on_configure", configure, (ROOT, about.config.len() as u32));
        self.judged("proxy_on_configure", accepted).map_err(blame("config"))
    }

    fn started<P: WasmParams, R: WasmResults>(
        &mut self,
        name: &str,
        function: Function<P, R>,
        parameters: P,
    ) -> Result<Option<R>, PluginError> {
        self.call_within(START_BUDGET, ROOT, name, function, parameters)
    }

    /// No is an error; to have no opinion is a yes.
    fn judged(&self, name: &str, accepted: Result<Option<u32>, PluginError>) -> Result<(), PluginError> {
        if accepted? != Some(0) {
            return Ok(());
        }
        let words = self.store.data().last_words.as_deref();
        let words = words.map(|words| format!(", after saying: {words}")).unwrap_or_default();
        Err(PluginError::failed(format!("the module's {name} says no{words}")))
    }

    fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        context: u32,
        name: &str,
        function: Function<P, R>,
        parameters: P,
    ) -> Result<Option<R>, PluginError> {
        let budget = self.store.data().about.cpu;
        self.call_within(budget, context, name, function, parameters)
    }

    fn call_within<P: WasmParams, R: WasmResults>(
        &mut self,
        budget: u32,
        context: u32,
        name: &str,
        function: Function<P, R>,
        parameters: P,
    ) -> Result<Option<R>, PluginError> {
        let Some(function) = function else { return Ok(None) };
        begin(&mut self.store, context, budget);
        let result = function.call(&mut self.store, parameters);
        flush(self.store.data_mut());
        result.map(Some).map_err(|error| failure(self.store.data(), name, &error))
    }

    pub(super) fn host(&mut self) -> &mut Host {
        self.store.data_mut()
    }

    /// Lends an exchange for what `act` does. However that ends, the exchange is back home afterwards.
    pub(super) fn with<T>(&mut self, exchange: &mut Exchange, act: impl FnOnce(&mut Vm) -> T) -> T {
        struct Loan<'a>(&'a mut Vm, &'a mut Exchange, Instant);
        impl Drop for Loan<'_> {
            fn drop(&mut self) {
                let memory = self.0.host().used_memory as u64;
                // Nothing in a call waits, so what it takes is CPU, unless the machine is busy with others.
                let cpu_micros = self.2.elapsed().as_micros() as u64;
                if let Some(exchange) = self.0.host().exchange.take() {
                    self.1.restore(exchange);
                    self.1.set_used(Used { memory, cpu_micros, ..Used::default() });
                }
            }
        }
        self.host().exchange = Some(exchange.lend());
        let loan = Loan(self, exchange, Instant::now());
        act(loan.0)
    }

    /// A new context for an exchange.
    pub(super) fn create(&mut self) -> Result<u32, PluginError> {
        let id = self.host().new_context();
        let create = self.exports.context_create.clone();
        self.call(id, "proxy_on_context_create", create, (id, ROOT))?;
        Ok(id)
    }

    /// Asks the guest about a message; whether it may go on.
    pub(super) fn ask(&mut self, id: u32, phase: Phase) -> Result<bool, PluginError> {
        let way = phase.way();
        let (name, at) = (phase.name(), way as usize);
        if let Some(context) = self.host().contexts.get_mut(&id) {
            context.resumed[at] = false;
        }
        let action = match phase {
            Phase::Headers(_) => {
                let exchange = self.host().exchange.as_ref();
                let count = exchange.map_or(0, |exchange| maps::count(exchange, way));
                let has_body = exchange.is_some_and(|exchange| has_body(way, exchange));
                match self.exports.headers[at].clone() {
                    Some(Headers::Counted(function)) => self.call(id, name, Some(function), (id, count)),
                    Some(Headers::CountedAndEnded(function)) => {
                        self.call(id, name, Some(function), (id, count, u32::from(!has_body)))
                    }
                    None => Ok(None),
                }
            }
            Phase::Body(_, ended) => {
                let size = self.host().body.as_ref().map_or(0, |body| body.bytes.len()) as u32;
                let function = self.exports.body[at].clone();
                self.call(id, name, function, (id, size, ended.into()))
            }
            Phase::Trailers(_) => {
                let count = self.host().trailers.as_ref().map_or(0, |(_, trailers)| trailers.len()) as u32;
                let function = self.exports.trailers[at].clone();
                self.call(id, name, function, (id, count))
            }
        };
        // Of the words that 0.1.0 had besides, two means to go on as well; whatever else there is means to wait.
        let goes_on = matches!(action?, None | Some(0 | 2));
        let resumed = self.host().contexts.get(&id).is_some_and(|context| context.resumed[at]);
        Ok(goes_on || resumed)
    }

    /// The body that a callback may read and change from now on.
    pub(super) fn put_body(&mut self, way: Way, bytes: bytes::Bytes) {
        self.host().body = Some(Body { way, bytes, changed: false });
    }

    /// That body as the guest left it.
    pub(super) fn take_body(&mut self) -> Option<Body> {
        self.host().body.take()
    }

    /// Tells the guest what came of a call, unless it no longer waits for it. By Envoy's custom the plugin's own context is
    /// named as the one that hears of it, whoever has called; SDKs know whose call it was, and say whom they mean then. Until
    /// they do it is whoever has called.
    pub(super) fn tell(&mut self, id: u32, call: u32, mut answer: Answer) -> Result<(), PluginError> {
        if !self.host().forget_call(call) {
            return Ok(());
        }
        match answer.kind {
            Kind::Http => {
                // Its status is among them.
                let headers = answer.headers.len() as u32 + 1;
                let (body, trailers) = (answer.body.len() as u32, answer.trailers.len() as u32);
                let function = self.exports.http_call_response.clone();
                let parameters = (ROOT, call, headers, body, trailers);
                self.host().answer = Some(answer);
                self.call(id, "proxy_on_http_call_response", function, parameters)?;
            }
            Kind::Grpc | Kind::GrpcStream => {
                let messages = answer.messages();
                if messages.is_none() {
                    (answer.status, answer.message) = (13, "the answer is no gRPC".into());
                }
                let (initial, trailing) = (answer.headers.len() as u32, answer.trailers.len() as u32);
                let (kind, status) = (answer.kind, answer.status);
                self.host().answer = Some(answer);
                if kind == Kind::GrpcStream && initial > 0 {
                    let function = self.exports.grpc_initial_metadata.clone();
                    self.call(id, "proxy_on_grpc_receive_initial_metadata", function, (ROOT, call, initial))?;
                }
                let messages = messages.unwrap_or_default();
                let received = !messages.is_empty();
                // A call that fails has no message, whatever was sent before it failed.
                for message in messages.into_iter().filter(|_| kind == Kind::GrpcStream || status == 0) {
                    let size = message.len() as u32;
                    if let Some(answer) = &mut self.host().answer {
                        answer.body = message;
                    }
                    let function = self.exports.grpc_receive.clone();
                    self.call(id, "proxy_on_grpc_receive", function, (ROOT, call, size))?;
                }
                if kind == Kind::GrpcStream && trailing > 0 {
                    let function = self.exports.grpc_trailing_metadata.clone();
                    self.call(
                        id,
                        "proxy_on_grpc_receive_trailing_metadata",
                        function,
                        (ROOT, call, trailing),
                    )?;
                }
                if kind == Kind::GrpcStream || status != 0 || !received {
                    let function = self.exports.grpc_close.clone();
                    self.call(id, "proxy_on_grpc_close", function, (ROOT, call, status))?;
                }
            }
        }
        self.host().answer = None;
        Ok(())
    }

    pub(super) fn tick(&mut self) -> Result<(), PluginError> {
        let function = self.exports.tick.clone();
        self.call(ROOT, "proxy_on_tick", function, ROOT).map(drop)
    }

    pub(super) fn queue_ready(&mut self, queue: u32) -> Result<(), PluginError> {
        let function = self.exports.queue_ready.clone();
        self.call(ROOT, "proxy_on_queue_ready", function, (ROOT, queue)).map(drop)
    }

    /// The exchange of a context is over. A guest that is not done with it gets what is known of it later.
    pub(super) fn finish(&mut self, id: u32, exchange: &mut Exchange) -> Result<(), PluginError> {
        let function = self.exports.done.clone();
        let done = self.with(exchange, |vm| vm.call(id, "proxy_on_done", function, id))? != Some(0);
        let host = self.host();
        if !done && host.contexts.values().filter(|context| context.is_deferred).count() < MAX_DEFERRED {
            if let Some(context) = host.contexts.get_mut(&id) {
                (context.is_deferred, context.kept) = (true, Some(Box::new(exchange.copy())));
            }
            return Ok(());
        }
        self.with(exchange, |vm| vm.delete(id))
    }

    /// Logs and deletes the contexts that the guest has said to be done with since.
    pub(super) fn finish_deferred(&mut self) -> Result<(), PluginError> {
        while let Some(id) = self.host().done.pop() {
            let kept = self.host().contexts.get_mut(&id).and_then(|context| context.kept.take());
            if let Some(mut exchange) = kept {
                self.with(&mut exchange, |vm| vm.delete(id))?;
            }
        }
        Ok(())
    }

    /// Has a context logged and deleted.
    pub(super) fn delete(&mut self, id: u32) -> Result<(), PluginError> {
        let (log, delete) = (self.exports.log.clone(), self.exports.delete.clone());
        self.call(id, "proxy_on_log", log, id)?;
        self.call(id, "proxy_on_delete", delete, id)?;
        self.host().remove_context(id);
        Ok(())
    }

    /// The exchange of a context is gone, and nothing is known of its end.
    pub(super) fn abandon(&mut self, id: u32) -> Result<(), PluginError> {
        if !self.host().contexts.contains_key(&id) {
            return Ok(());
        }
        while let Some((call, answer)) =
            self.host().contexts.get_mut(&id).and_then(|context| context.inbox.pop_front())
        {
            self.tell(id, call, answer)?;
        }
        let (done, log, delete) =
            (self.exports.done.clone(), self.exports.log.clone(), self.exports.delete.clone());
        self.call(id, "proxy_on_done", done, id)?;
        self.call(id, "proxy_on_log", log, id)?;
        self.call(id, "proxy_on_delete", delete, id)?;
        self.host().remove_context(id);
        Ok(())
    }

    /// The plugin goes away.
    pub(super) fn end(&mut self) -> Result<(), PluginError> {
        let (done, delete) = (self.exports.done.clone(), self.exports.delete.clone());
        self.call(ROOT, "proxy_on_done", done, ROOT)?;
        self.call(ROOT, "proxy_on_delete", delete, ROOT).map(drop)
    }
}

fn begin(store: &mut Store<Host>, context: u32, budget: u32) {
    store.data_mut().begin(context, budget);
    store.set_epoch_deadline(1);
}

/// Finds memory and allocator, and lets the guest do what it does first.
fn prepare(store: &mut Store<Host>, instance: &Instance) -> wasmtime::Result<()> {
    let memory = instance.get_memory(&mut *store, "memory");
    store.data_mut().memory = Some(memory.ok_or_else(|| wasmtime::Error::msg("it exports no `memory`"))?);
    let allocate = match function(store, instance, "proxy_on_memory_allocate")? {
        Some(allocate) => Some(allocate),
        None => function(store, instance, "malloc")?,
    };
    store.data_mut().allocate = allocate;
    let begun = match function::<(), ()>(store, instance, "_initialize")? {
        Some(initialize) => initialize.call(&mut *store, ()).and_then(|()| {
            let main = instance.get_typed_func::<(u32, u32), u32>(&mut *store, "main");
            main.map_or(Ok(()), |main| main.call(&mut *store, (0, 0)).map(drop))
        }),
        None => match function::<(), ()>(store, instance, "_start")? {
            Some(start) => start.call(&mut *store, ()),
            None => Ok(()),
        },
    };
    match begun {
        // A program's `main` may end that way.
        Err(error) if matches!(error.downcast_ref(), Some(Exit(0))) => Ok(()),
        begun => begun,
    }
}

fn function<P: WasmParams, R: WasmResults>(
    store: &mut Store<Host>,
    instance: &Instance,
    name: &str,
) -> wasmtime::Result<Function<P, R>> {
    let Some(function) = instance.get_func(&mut *store, name) else { return Ok(None) };
    let typed = function.typed(&*store);
    typed
        .map(Some)
        .map_err(|error| wasmtime::Error::msg(format!("its export `{name}` is another function: {error:#}")))
}

impl Exports {
    fn of(store: &mut Store<Host>, instance: &Instance) -> wasmtime::Result<Self> {
        macro_rules! find {
            ($name:literal) => {
                function(store, instance, $name)?
            };
        }
        let headers = ["proxy_on_request_headers", "proxy_on_response_headers"];
        let mut found = headers.into_iter().map(|name| headers_function(store, instance, name));
        let headers = [found.next().transpose()?.flatten(), found.next().transpose()?.flatten()];
        drop(found);
        Ok(Exports {
            context_create: find!("proxy_on_context_create"),
            done: find!("proxy_on_done"),
            log: find!("proxy_on_log"),
            delete: find!("proxy_on_delete"),
            vm_start: find!("proxy_on_vm_start"),
            configure: find!("proxy_on_configure"),
            tick: find!("proxy_on_tick"),
            queue_ready: find!("proxy_on_queue_ready"),
            headers,
            body: [find!("proxy_on_request_body"), find!("proxy_on_response_body")],
            trailers: [find!("proxy_on_request_trailers"), find!("proxy_on_response_trailers")],
            http_call_response: find!("proxy_on_http_call_response"),
            grpc_initial_metadata: find!("proxy_on_grpc_receive_initial_metadata"),
            grpc_receive: find!("proxy_on_grpc_receive"),
            grpc_trailing_metadata: find!("proxy_on_grpc_receive_trailing_metadata"),
            grpc_close: find!("proxy_on_grpc_close"),
        })
    }
}

fn headers_function(
    store: &mut Store<Host>,
    instance: &Instance,
    name: &str,
) -> wasmtime::Result<Option<Headers>> {
    let counted =
        instance.get_func(&mut *store, name).is_some_and(|function| function.ty(&*store).params().len() == 2);
    Ok(if counted {
        function(store, instance, name)?.map(Headers::Counted)
    } else {
        function(store, instance, name)?.map(Headers::CountedAndEnded)
    })
}

/// What an error of the engine says about the guest.
fn failure(host: &Host, at: &str, error: &wasmtime::Error) -> PluginError {
    let over = |what: String| PluginError::new(ErrorKind::Budget, format!("{at} {what}"));
    match (host.breach, error.downcast_ref::<Trap>()) {
        (Some(Breach::Cpu), _) => over(format!("used up its {} of CPU", Span::millis(host.budget.into()))),
        (Some(Breach::Body), _) => over("wrote more than its `body_limit`".to_owned()),
        (Some(Breach::Memory), _) => {
            over(format!("asked for more than {} of memory", Size(host.about.memory)))
        }
        (None, Some(Trap::StackOverflow)) => over(format!("recursed beyond its {MAX_STACK} of stack")),
        (None, _) => trapped(at, error, host.last_words.as_deref()),
    }
}
