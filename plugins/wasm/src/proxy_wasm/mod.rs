//! Modules made for proxy-wasm, the ABI of Envoy's filters, unchanged.
//!
//! Each worker has one VM of a plugin, made when its first request comes, with a context per exchange. Calls are
//! synchronous: a guest of this ABI can't yield, so its CPU is bounded tightly (`cpu`). A VM whose guest traps is
//! thrown away with its contexts; the exchanges of the others get new ones in the next VM.
//!
//! A guest that pauses an exchange has the hook wait. Calls that it makes are sent by tasks of the worker, which
//! put the answer into the context's inbox; the hook that waits, or else the next one, tells it to the guest.

mod abi;
mod calls;
mod host;
mod imports;
mod maps;
mod memory;
mod metrics;
mod properties;
mod seat;
mod shared;
mod stream;
mod vm;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::StatusCode;
use portcullis_plugin::{
    BodyFilter, BodyWish, BuildContext, BuildError, Decision, Exchange, Hook, HookName, Needs, Outbound,
    Plugin, PluginError, Reply, Slot, Used,
};
use schemars::JsonSchema;
use serde::Deserialize;

use self::abi::{VERSIONS, Way};
use self::metrics::Metrics;
use self::seat::{Machine, Mark};
use self::vm::{Phase, Vm};
use crate::engine::{Engines, TICK};
use crate::instance::Lives;
use crate::{Config, Isolation, artifact, load};

pub(crate) use self::abi::version;
pub(crate) use self::shared::Shared;

/// CPU per callback, in milliseconds, unless the configuration says otherwise: what holds a worker must be quick.
const CPU: u32 = 1;

/// What only modules for proxy-wasm have.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// Which of the module's root contexts it is, for modules that have several.
    #[serde(default)]
    root_id: String,
    /// Under which name data and queues are shared with other modules; the plugin's name by default.
    #[serde(default)]
    vm_id: Option<String>,
    /// What the module gets as the configuration of its VM.
    #[serde(default)]
    vm_config: String,
    /// Upstreams that the module may call, by the names of clusters that it knows them by.
    #[serde(default)]
    upstreams: BTreeMap<String, String>,
    /// Whether the module gets bodies whole, so that it may pause also at the end of one. Otherwise they stream past
    /// it, unless it pauses at the headers; what it holds back of one is at most `body_limit`.
    #[serde(default)]
    whole_bodies: bool,
}

/// What is the same for all VMs of a plugin.
pub(crate) struct About {
    name: Arc<str>,
    root_id: String,
    vm_id: Box<str>,
    vm_config: Bytes,
    config: Bytes,
    /// Bytes of memory of a VM.
    memory: usize,
    /// Milliseconds per callback.
    cpu: u32,
    body_limit: usize,
    upstreams: Vec<(Box<str>, Arc<dyn Outbound>)>,
    metrics: Metrics,
    lives: Arc<Lives>,
    /// Held, since without its ticker nothing interrupts a guest.
    engines: Arc<Engines>,
}

impl About {
    fn shared(&self) -> &Shared {
        &self.engines.shared
    }

    /// The upstream behind the name of a cluster, if the module may call it.
    fn upstream(&self, cluster: &[u8]) -> Option<Arc<dyn Outbound>> {
        let found = self.upstreams.iter().find(|(name, _)| name.as_bytes() == cluster);
        if found.is_none() {
            let (plugin, cluster) = (&*self.name, String::from_utf8_lossy(cluster));
            tracing::warn!(plugin, %cluster, "the module calls a cluster that `proxy_wasm.upstreams` does not name");
        }
        found.map(|(_, upstream)| upstream.clone())
    }
}

/// A loaded module.
pub(crate) struct Filter {
    machine: Arc<Machine>,
    needs: Needs,
    slot: Slot<Arc<Place>>,
    whole_bodies: bool,
    exports_body: [bool; 2],
}

/// Where the context of an exchange is, in a slot of the exchange and with the filters of its bodies.
struct Place {
    /// The VM's number; zero for none.
    vm: AtomicU64,
    context: AtomicU32,
    /// Its own callback failed: the guest runs no more for this exchange.
    lost: AtomicBool,
    /// The guest waits for the body.
    waits_for_body: [AtomicBool; 2],
    machine: Weak<Machine>,
}

impl Place {
    fn of(machine: &Arc<Machine>) -> Self {
        Place {
            vm: AtomicU64::new(0),
            context: AtomicU32::new(0),
            lost: AtomicBool::new(false),
            waits_for_body: Default::default(),
            machine: Arc::downgrade(machine),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The end of an exchange is not told if too many end at once, and its context would stay.
        if self.vm.load(Relaxed) != 0
            && let Some(machine) = self.machine.upgrade()
        {
            machine.abandon(Mark(self.vm.load(Relaxed)), self.context.load(Relaxed));
        }
    }
}

/// What a step of a hook came to.
enum Step {
    Done(Decision),
    Paused,
}

/// What the guest is to be asked in a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    /// Something happened to an exchange that it has paused.
    Again,
}

impl Filter {
    pub(crate) fn build(
        config: &Config,
        version: &str,
        bytes: &[u8],
        engines: &Arc<Engines>,
        context: &mut BuildContext<'_>,
    ) -> Result<Self, BuildError> {
        if !VERSIONS.contains(&version) {
            let message = format!("a module for proxy-wasm {version}, which is not known here");
            let help = format!("build it for one of {}", VERSIONS.join(", "));
            return Err(BuildError::at("file", message).help(help));
        }
        if let Isolation::Reuse(_) = config.isolation {
            let message = "a module for proxy-wasm has one VM per worker, which serves all exchanges of it";
            return Err(BuildError::at("isolation", message));
        }
        let Some(lane) = engines.lanes.last() else { return Err(BuildError::at("", "no engine for Wasm")) };
        let unfit = |error: wasmtime::Error| {
            BuildError::at("file", format!("not a module that can run here: {error:#}"))
        };
        // Beyond the pool: these VMs are few and live long.
        let compiled = artifact::compile_core(engines, &load::sha256(bytes), context.artifacts(), bytes);
        let module = compiled.and_then(|compiled| compiled.load_core(&lane.engine)).map_err(unfit)?;
        let (linker, unknown) = imports::linker(&lane.engine, &module).map_err(unfit)?;
        let module = linker.instantiate_pre(&module).map_err(unfit)?;
        if !unknown.is_empty() {
            let unknown = unknown.join("`, `");
            let message = format!("imports what proxy-wasm does not have, so calls of it fail: `{unknown}`");
            context.warn("file", message);
        }
        let about = Arc::new(about(config, engines, context)?);
        let exports = |name: &str| module.module().get_export(name).is_some();
        let exports_body = [exports("proxy_on_request_body"), exports("proxy_on_response_body")];
        let trailers = [exports("proxy_on_request_trailers"), exports("proxy_on_response_trailers")];
        let hears = |way: Way| exports_body[way as usize] || trailers[way as usize];
        let whole = BodyWish::Whole { limit: config.body_limit.0 };
        // Every exchange has a context, which is made at its first hook and deleted at its last.
        let mut needs = Needs::hooks([HookName::OnRequest, HookName::OnLog]);
        if exports("proxy_on_response_headers") {
            needs = needs.and(HookName::OnResponse);
        }
        if hears(Way::Request) {
            needs = needs.request_body(whole);
        }
        if hears(Way::Response) {
            needs = needs.response_body(whole);
        }
        let machine = Machine::new(about, module, context.tasks());
        machine.prove().map_err(|failure| BuildError::at(failure.at, failure.error.message()))?;
        let whole_bodies = config.proxy_wasm.whole_bodies;
        Ok(Filter { machine, needs, slot: context.slot(), whole_bodies, exports_body })
    }

    /// Asks the guest about a message. Most answers are there at once; an exchange that is paused waits.
    fn ask<'a>(&'a self, phase: Phase, exchange: &'a mut Exchange) -> Hook<'a> {
        // Another plugin may have wanted a body whole that is none.
        if matches!(phase, Phase::Body(..)) && !has_body(phase.way(), exchange) {
            return Hook::CONTINUE;
        }
        let place = self.place(exchange);
        if let Some(rest) = self.machine.rest() {
            return Hook::Wait(Box::pin(async move {
                rest.await;
                match self.step(phase, Turn::First, &place, exchange)? {
                    Step::Done(decision) => Ok(decision),
                    Step::Paused => self.wait(phase, &place, exchange).await,
                }
            }));
        }
        match self.step(phase, Turn::First, &place, exchange) {
            Ok(Step::Done(decision)) => Hook::from(decision),
            Ok(Step::Paused) => Hook::Wait(Box::pin(async move { self.wait(phase, &place, exchange).await })),
            Err(error) => Hook::Ready(Err(error)),
        }
    }

    /// Waits until the guest has decided.
    async fn wait(
        &self,
        phase: Phase,
        place: &Place,
        exchange: &mut Exchange,
    ) -> Result<Decision, PluginError> {
        loop {
            poll_fn(|context| self.machine.poll_change(place, phase.way(), context)).await;
            if let Some(rest) = self.machine.rest() {
                rest.await;
            }
            if let Step::Done(decision) = self.step(phase, Turn::Again, place, exchange)? {
                return Ok(decision);
            }
        }
    }

    fn place(&self, exchange: &mut Exchange) -> Arc<Place> {
        if let Some(place) = exchange.slot(self.slot) {
            return place.clone();
        }
        let place = Arc::new(Place::of(&self.machine));
        exchange.set_slot(self.slot, place.clone());
        place
    }

    fn step(
        &self,
        phase: Phase,
        turn: Turn,
        place: &Place,
        exchange: &mut Exchange,
    ) -> Result<Step, PluginError> {
        if place.lost.load(Relaxed) {
            return Ok(Step::Done(Decision::Continue));
        }
        self.machine.enter(place, |vm, mark| {
            let way = phase.way();
            let whole = match (phase, way) {
                (Phase::Body(..), Way::Request) => exchange.request_body().cloned(),
                (Phase::Body(..), Way::Response) => exchange.response_body().cloned(),
                _ => None,
            };
            if let Some(whole) = whole {
                vm.put_body(way, whole);
            }
            let goes_on = vm.with(exchange, |vm| turn_of(vm, mark, place, phase, turn));
            let body = vm.take_body();
            let (id, goes_on) = goes_on?;
            if let Some(body) = body.filter(|body| body.changed) {
                match way {
                    Way::Request => exchange.set_request_body(body.bytes)?,
                    Way::Response => exchange.set_response_body(body.bytes)?,
                }
            }
            Ok(self.settle(vm, id, phase, place, exchange, goes_on))
        })
    }

    /// What follows a callback.
    fn settle(
        &self,
        vm: &mut Vm,
        id: u32,
        phase: Phase,
        place: &Place,
        exchange: &Exchange,
        goes_on: bool,
    ) -> Step {
        if let Some(decision) = decided(vm, id) {
            return Step::Done(decision);
        }
        if goes_on {
            return Step::Done(Decision::Continue);
        }
        let way = phase.way();
        let has_body = has_body(way, exchange);
        let is_alone = vm.host().contexts.get(&id).is_some_and(|context| context.pending == 0);
        // It waits for nothing but the body, which is gathered for it then.
        if matches!(phase, Phase::Headers(_)) && has_body && is_alone && self.exports_body[way as usize] {
            place.waits_for_body[way as usize].store(true, Relaxed);
            return Step::Done(Decision::Continue);
        }
        Step::Paused
    }

    fn wants(&self, way: Way, exchange: &Exchange) -> bool {
        let Some(place) = exchange.slot(self.slot) else { return false };
        let waits = &place.waits_for_body[way as usize];
        has_body(way, exchange) && (self.whole_bodies || waits.load(Relaxed)) && !place.lost.load(Relaxed)
    }

    fn filter(&self, way: Way, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        let place = exchange.slot(self.slot)?.clone();
        if !has_body(way, exchange) || place.lost.load(Relaxed) {
            return None;
        }
        Some(Box::new(stream::Stream::new(self.machine.clone(), place, way, exchange.copy())))
    }
}

fn has_body(way: Way, exchange: &Exchange) -> bool {
    match way {
        Way::Request => exchange.has_request_body(),
        Way::Response => exchange.has_response_body(),
    }
}

/// Tells the guest what came for it, and asks it, unless it has only to be told. The context, and whether the message
/// may go on.
fn turn_of(
    vm: &mut Vm,
    mark: Mark,
    place: &Place,
    phase: Phase,
    turn: Turn,
) -> Result<(u32, bool), PluginError> {
    let (id, is_new) = context(vm, mark, place)?;
    deliver(vm, id)?;
    // An answer to a call may have settled it.
    if vm.host().contexts.get(&id).is_some_and(|context| context.closed || context.reply.is_some()) {
        return Ok((id, false));
    }
    // Whoever was paused in a VM that is no more is asked again.
    if turn == Turn::First || is_new {
        return Ok((id, vm.ask(id, phase)?));
    }
    let resumed = vm.host().contexts.get(&id).is_some_and(|context| context.resumed[phase.way() as usize]);
    Ok((id, resumed))
}

/// The exchange's context in this VM, and whether it was made now.
fn context(vm: &mut Vm, mark: Mark, place: &Place) -> Result<(u32, bool), PluginError> {
    let id = place.context.load(Relaxed);
    if place.vm.load(Relaxed) == mark.0 && vm.host().contexts.contains_key(&id) {
        return Ok((id, false));
    }
    let id = vm.create()?;
    place.context.store(id, Relaxed);
    place.vm.store(mark.0, Relaxed);
    Ok((id, true))
}

/// Tells the guest the answers that wait in the context's inbox.
fn deliver(vm: &mut Vm, id: u32) -> Result<(), PluginError> {
    while let Some((call, answer)) =
        vm.host().contexts.get_mut(&id).and_then(|context| context.inbox.pop_front())
    {
        vm.tell(id, call, answer)?;
    }
    Ok(())
}

/// What the guest has decided for a context, if anything.
fn decided(vm: &mut Vm, id: u32) -> Option<Decision> {
    let context = vm.host().contexts.get_mut(&id)?;
    if std::mem::take(&mut context.closed) {
        return Some(Decision::Drop);
    }
    context.reply.take().map(Decision::Respond)
}

fn about(
    config: &Config,
    engines: &Arc<Engines>,
    context: &mut BuildContext<'_>,
) -> Result<About, BuildError> {
    let options = &config.proxy_wasm;
    let text = crate::text(config)?;
    let upstreams = options.upstreams.iter().map(|(cluster, upstream)| {
        let found = context.upstream(&format!("proxy_wasm.upstreams.{cluster}"), upstream)?;
        Ok((cluster.as_str().into(), found))
    });
    let upstreams = upstreams.collect::<Result<_, BuildError>>()?;
    Ok(About {
        name: context.name().clone(),
        root_id: options.root_id.clone(),
        vm_id: options.vm_id.as_deref().unwrap_or(context.name()).into(),
        vm_config: options.vm_config.clone().into(),
        config: text.into(),
        memory: config.memory.0,
        cpu: crate::check_cpu(config)?.unwrap_or(CPU),
        body_limit: config.body_limit.0,
        upstreams,
        metrics: Metrics::new(context),
        lives: Lives::new(context),
        engines: engines.clone(),
    })
}

/// More of a body than the configuration lets a guest hold back.
fn too_large(way: Way) -> Reply {
    match way {
        Way::Request => Reply::deny(StatusCode::PAYLOAD_TOO_LARGE, "wasm.request_held"),
        Way::Response => Reply::deny(StatusCode::BAD_GATEWAY, "wasm.response_held"),
    }
}

impl Plugin for Filter {
    fn needs(&self) -> Needs {
        self.needs
    }

    fn budget(&self) -> Used {
        let about = self.machine.about();
        let cpu = TICK * about.cpu;
        Used { cpu_micros: cpu.as_micros() as u64, memory: about.memory as u64, ..Used::default() }
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.ask(Phase::Headers(Way::Request), exchange)
    }

    fn wants_request_body(&self, exchange: &Exchange) -> bool {
        self.wants(Way::Request, exchange)
    }

    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.ask(Phase::Body(Way::Request, true), exchange)
    }

    fn request_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        self.filter(Way::Request, exchange)
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.ask(Phase::Headers(Way::Response), exchange)
    }

    fn wants_response_body(&self, exchange: &Exchange) -> bool {
        self.wants(Way::Response, exchange)
    }

    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.ask(Phase::Body(Way::Response, true), exchange)
    }

    fn response_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        self.filter(Way::Response, exchange)
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let Some(place) = exchange.slot(self.slot).cloned() else { return Hook::CONTINUE };
        if place.lost.load(Relaxed) {
            return Hook::CONTINUE;
        }
        let logged = self.machine.enter(&place, |vm, mark| {
            let id = vm.with(exchange, |vm| {
                let (id, _) = context(vm, mark, &place)?;
                deliver(vm, id)?;
                Ok(id)
            });
            place.vm.store(0, Relaxed);
            vm.finish(id?, exchange)
        });
        Hook::Ready(logged.map(|()| Decision::Continue))
    }
}

#[cfg(test)]
mod tests;
