//! Instances of a guest, and calls of them, which may wait for a body from one hook to another.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use portcullis_plugin::{Decision, Exchange, PluginError, Slot, Used};
use wasmtime::{Instance, InstancePre, PoolConcurrencyLimitError, Store, TypedFunc, WasmParams, WasmResults};

use super::abi::{HANDLE_REQUEST, HANDLE_RESPONSE};
use super::host::{Cell, Host};
use super::imports::linker;
use crate::engine::{Lane, Permit};
use crate::host::{About, Pace};
use crate::instance::{Counts, Idle, Life, failure};
use crate::wasi::{Exit, flush};
use crate::{Way, artifact};

/// Ticks that an instance may take to start. It is the same for every exchange, of which it sees nothing.
const START_TICKS: u32 = 1000;

/// A module with its limits, from which instances are made.
pub(super) struct Guest {
    pub(super) about: Arc<About>,
    pub(super) body_limit: usize,
    /// Ticks per call.
    pub(super) cpu: u32,
    /// Exchanges per instance.
    pub(super) uses: u32,
    pub(super) prepared: Vec<Prepared>,
    pub(super) slot: Slot<Stage>,
    pub(super) idle: Idle<Live>,
    pub(super) counts: Counts,
}

/// A module, ready to be instantiated on one lane.
pub(super) struct Prepared {
    lane: Arc<Lane>,
    pre: InstancePre<Host>,
}

impl Prepared {
    /// The module on a lane, and the names of what it imports that nobody knows.
    pub(super) fn new(
        lane: &Arc<Lane>,
        compiled: &artifact::Compiled,
    ) -> wasmtime::Result<(Self, Vec<String>)> {
        let module = compiled.load_core(&lane.engine)?;
        let (linker, unknown) = linker(&lane.engine, &module)?;
        Ok((Prepared { lane: lane.clone(), pre: linker.instantiate_pre(&module)? }, unknown))
    }

    /// The right to one instance here, unless all are taken.
    pub(super) fn permit(&self) -> Option<Permit> {
        self.lane.permit()
    }
}

/// Where a guest stands in an exchange.
pub(super) enum Stage {
    /// A call waits for a body.
    Waits(Call),
    /// It has let the request pass, and waits for the response; what it has written is to replace the request's body.
    Passed { live: Live, context: u32, body: Option<bytes::Bytes> },
    /// Its part is done; what it has written is to replace the response's body.
    Done { body: Option<bytes::Bytes> },
    /// It failed or was cancelled: it runs no more for this exchange.
    Lost,
}

/// An instance.
pub(super) struct Live {
    pub(super) store: Store<Host>,
    handle_request: TypedFunc<(), u64>,
    handle_response: TypedFunc<(u32, u32), ()>,
    /// What the guest has enabled at its start.
    features: u32,
    uses_left: u32,
    // After the store: the place is free when its memory is.
    permit: Permit,
    _life: Life,
}

/// An instance, or the place for one.
pub(super) enum Seat {
    Live(Live),
    Place(usize, Permit),
}

/// What a guest is asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    Request,
    Response { context: u32, is_error: bool },
}

impl Ask {
    pub(super) fn way(self) -> Way {
        match self {
            Ask::Request => Way::Request,
            Ask::Response { .. } => Way::Response,
        }
    }
}

/// How a call ended.
pub(super) enum Ended {
    /// With the instance, and what it returned.
    Answer(Live, u64),
    /// There was no room for one more instance.
    Exhausted,
    Failed(PluginError),
}

/// A call on its way. It owns its instance, so that it can wait from one hook to another.
pub(super) struct Call {
    future: Pin<Box<dyn Future<Output = Ended> + Send>>,
    cell: Arc<Cell>,
    pub(super) ask: Ask,
}

/// How far a call has come.
pub(super) enum Progress {
    Ended(Ended),
    /// It waits for the body of a message.
    Waits(Call),
}

impl Guest {
    /// An instance that waited, or the place for a new one.
    pub(super) fn seat(&self) -> Option<Seat> {
        if let Some(live) = self.idle.take() {
            self.counts.reused.increment();
            return Some(Seat::Live(live));
        }
        let mut lanes = self.prepared.iter().enumerate();
        let seat = lanes.find_map(|(at, prepared)| Some(Seat::Place(at, prepared.lane.permit()?)))?;
        self.counts.fresh.increment();
        Some(seat)
    }

    /// Keeps an instance for its next exchange if it may have one.
    pub(super) fn give_back(&self, mut live: Live) {
        live.uses_left = live.uses_left.saturating_sub(1);
        if live.uses_left > 0 && live.permit.may_idle() {
            self.idle.put(live);
        }
    }

    pub(super) fn exhausted(&self) -> Decision {
        self.counts.exhausted(&self.about)
    }

    /// A call that has yet to be run.
    pub(super) fn call(self: &Arc<Self>, seat: Seat, ask: Ask) -> Call {
        let cell = Arc::new(Cell::default());
        let future = Box::pin(self.clone().answer(seat, ask, cell.clone()));
        Call { future, cell, ask }
    }

    async fn answer(self: Arc<Self>, seat: Seat, ask: Ask, cell: Arc<Cell>) -> Ended {
        let mut live = match seat {
            Seat::Live(live) => live,
            Seat::Place(at, permit) => match self.start(at, permit).await {
                Ok(live) => live,
                Err(ended) => return ended,
            },
        };
        let features = live.features;
        let host = live.store.data_mut();
        host.base.begin(self.cpu, Pace::Yield);
        host.base.exchange = cell.take();
        if let Ask::Request = ask {
            host.begin_exchange(features);
        } else {
            host.begin_response();
        }
        host.cell = cell.clone();
        live.store.set_epoch_deadline(1);
        let (name, answer) = match ask {
            Ask::Request => (HANDLE_REQUEST, live.handle_request.call_async(&mut live.store, ()).await),
            Ask::Response { context, is_error } => {
                let call = live.handle_response.call_async(&mut live.store, (context, is_error.into()));
                (HANDLE_RESPONSE, call.await.map(|()| 0))
            }
        };
        let host = live.store.data_mut();
        flush(host);
        if let Some(mut exchange) = host.base.exchange.take() {
            let cpu_micros = host.base.cpu().as_micros() as u64;
            exchange.set_used(Used { memory: host.base.memory as u64, cpu_micros, ..Used::default() });
            cell.give(exchange);
        }
        match answer {
            Ok(answer) => Ended::Answer(live, answer),
            Err(error) => ended(host, name, &error),
        }
    }

    /// A new instance, which has done what it does first.
    pub(super) async fn start(&self, at: usize, permit: Permit) -> Result<Live, Ended> {
        let absent = || Ended::Failed(PluginError::failed("no such lane"));
        let Prepared { lane, pre } = self.prepared.get(at).ok_or_else(absent)?;
        let life = self.counts.life();
        let host = Host::new(self.about.clone(), Arc::default(), self.body_limit);
        let mut store = Store::new(&lane.engine, host);
        store.limiter(|host| &mut host.base);
        store.epoch_deadline_callback(|mut context| context.data_mut().base.tick());
        store.data_mut().base.begin(START_TICKS, Pace::Yield);
        store.set_epoch_deadline(1);
        match begin(&mut store, pre).await {
            Ok((handle_request, handle_response)) => Ok(Live {
                features: store.data().features,
                store,
                handle_request,
                handle_response,
                uses_left: self.uses,
                permit,
                _life: life,
            }),
            Err(error) => Err(ended(store.data(), "the module's start", &error)),
        }
    }
}

fn ended(host: &Host, at: &str, error: &wasmtime::Error) -> Ended {
    if error.is::<PoolConcurrencyLimitError>() {
        Ended::Exhausted
    } else {
        Ended::Failed(failure(&host.base, at, error))
    }
}

type Functions = (TypedFunc<(), u64>, TypedFunc<(u32, u32), ()>);

/// Makes an instance and lets it do what it does first.
async fn begin(store: &mut Store<Host>, pre: &InstancePre<Host>) -> wasmtime::Result<Functions> {
    let instance = pre.instantiate_async(&mut *store).await?;
    let functions =
        (function(store, &instance, HANDLE_REQUEST)?, function(store, &instance, HANDLE_RESPONSE)?);
    if instance.get_memory(&mut *store, "memory").is_none() {
        return Err(wasmtime::Error::msg("it exports no `memory`"));
    }
    for name in ["_initialize", "_start"] {
        if instance.get_func(&mut *store, name).is_none() {
            continue;
        }
        let first: TypedFunc<(), ()> = function(store, &instance, name)?;
        return match first.call_async(&mut *store, ()).await {
            // A program's `main` may end that way.
            Err(error) if matches!(error.downcast_ref(), Some(Exit(0))) => Ok(functions),
            begun => begun.map(|()| functions),
        };
    }
    Ok(functions)
}

fn function<P: WasmParams, R: WasmResults>(
    store: &mut Store<Host>,
    instance: &Instance,
    name: &str,
) -> wasmtime::Result<TypedFunc<P, R>> {
    let function = instance.get_func(&mut *store, name);
    let function = function.ok_or_else(|| wasmtime::Error::msg(format!("it exports no `{name}`")))?;
    function
        .typed(&*store)
        .map_err(|error| wasmtime::Error::msg(format!("its export `{name}` is another function: {error:#}")))
}

impl Call {
    /// Runs it until it ends, or waits for a body. However that ends, the exchange is back home afterwards; if it is
    /// by dropping this future, the guest is lost for it.
    pub(super) async fn run(self, slot: Slot<Stage>, home: &mut Exchange) -> Progress {
        self.cell.give(home.lend());
        let mut loan = Loan { home, slot, call: Some(self) };
        let ended = poll_fn(|context| loan.poll(context)).await;
        let call = loan.call.take();
        match (ended, call) {
            (None, Some(call)) => {
                loan.bring_home(&call.cell);
                Progress::Waits(call)
            }
            (Some(ended), Some(call)) => {
                loan.bring_home(&call.cell);
                Progress::Ended(ended)
            }
            (_, None) => Progress::Ended(Ended::Failed(PluginError::failed("the call is lost"))),
        }
    }
}

/// An exchange lent to a call.
struct Loan<'a> {
    home: &'a mut Exchange,
    slot: Slot<Stage>,
    call: Option<Call>,
}

impl Loan<'_> {
    /// None if the call waits for a body.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Ended>> {
        let Some(call) = &mut self.call else { return Poll::Ready(None) };
        match call.future.as_mut().poll(context) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if call.cell.waits_for().is_some() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn bring_home(&mut self, cell: &Cell) {
        if let Some(exchange) = cell.take() {
            self.home.restore(exchange);
        }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let Some(Call { future, cell, .. }) = self.call.take() else { return };
        // With the instance goes what has the exchange.
        drop(future);
        self.bring_home(&cell);
        self.home.set_slot(self.slot, Stage::Lost);
    }
}
