//! Modules made for http-wasm, the ABI of Traefik's and Dapr's middleware, unchanged.
//!
//! An exchange has an instance of its own from `handle_request` to the end of `handle_response`. Calls are made on
//! fibers: a guest that takes long yields to the worker's other exchanges, and one that asks for a body waits for it
//! where it stands, while the exchange goes on to the hook that has the body. So a body is gathered only if a guest asks
//! for it, and the guest needs no other form than it has.

mod abi;
mod host;
mod imports;
mod instance;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use portcullis_plugin::{
    BodyWish, BuildContext, BuildError, Capabilities, Decision, Exchange, Hook, HookFuture, HookName, Needs,
    Plugin, PluginError, Used, block_on, thread_time,
};

pub(crate) use self::abi::is_handler;
use self::instance::{Ask, Call, Ended, Guest, Live, Prepared, Progress, Stage};
use crate::engine::{Engines, TICK};
use crate::host::About;
use crate::instance::{Counts, Idle};
use crate::policy::{CPU, remark_start};
use crate::{Config, Isolation, Way, artifact, load};

/// Who fails when an endpoint does.
const UPSTREAM: &str = "core.upstream";

/// A loaded module.
pub(crate) struct Handler {
    guest: Arc<Guest>,
    needs: Needs,
}

impl Handler {
    pub(crate) fn build(
        config: &Config,
        bytes: &[u8],
        engines: &Arc<Engines>,
        context: &mut BuildContext<'_>,
    ) -> Result<Self, BuildError> {
        let unfit = |error: wasmtime::Error| {
            BuildError::at("file", format!("not a module that can run here: {error:#}"))
        };
        let compiled = artifact::compile_core(engines, &load::sha256(bytes), context.artifacts(), bytes);
        let compiled = compiled.map_err(unfit)?;
        let prepared = engines.lanes.iter().map(|lane| Prepared::new(lane, &compiled));
        let (prepared, unknown): (Vec<_>, Vec<_>) =
            prepared.collect::<Result<Vec<_>, _>>().map_err(unfit)?.into_iter().unzip();
        if let Some(unknown) = unknown.first().filter(|unknown| !unknown.is_empty()) {
            let unknown = unknown.join("`, `");
            let message = format!("imports what http-wasm does not have, so calls of it trap: `{unknown}`");
            context.warn("file", message);
        }
        let about = About {
            name: context.name().clone(),
            config: crate::text(config)?,
            memory: config.memory.0,
            transfer: config.body_limit.0,
            capabilities: Capabilities::default(),
            engines: engines.clone(),
        };
        let guest = Guest {
            about: Arc::new(about),
            body_limit: config.body_limit.0,
            cpu: crate::check_cpu(config)?.unwrap_or(CPU),
            uses: match config.isolation {
                Isolation::Fresh => 1,
                Isolation::Reuse(uses) => uses.get(),
            },
            prepared,
            slot: context.slot(),
            idle: Idle::default(),
            counts: Counts::new(context),
        };
        prove(&guest, context)?;
        let whole = BodyWish::Whole { limit: config.body_limit.0 };
        let needs = Needs::hooks([HookName::OnRequest, HookName::OnResponse]);
        let needs = needs.request_body(whole).response_body(whole);
        Ok(Handler { guest: Arc::new(guest), needs })
    }

    /// Most calls are over before the first tick: those answer at once, the others are waited for.
    fn hook<'a>(&self, future: impl Future<Output = Result<Decision, PluginError>> + Send + 'a) -> Hook<'a> {
        let mut future: HookFuture<'a> = Box::pin(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(verdict) => Hook::Ready(verdict),
            Poll::Pending => Hook::Wait(future),
        }
    }

    /// Runs a call on, and does what follows from where it stands then.
    async fn proceed(&self, call: Call, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        let (guest, ask) = (&self.guest, call.ask);
        let (stage, verdict) = match call.run(guest.slot, exchange).await {
            Progress::Waits(call) => (Stage::Waits(call), Ok(Decision::Continue)),
            Progress::Ended(Ended::Exhausted) => (Stage::Lost, Ok(guest.exhausted())),
            Progress::Ended(Ended::Failed(error)) => (Stage::Lost, Err(error)),
            Progress::Ended(Ended::Answer(live, answer)) => match ask {
                Ask::Request => self.requested(live, answer),
                Ask::Response { .. } => (self.responded(live), Ok(Decision::Continue)),
            },
        };
        exchange.set_slot(guest.slot, stage);
        verdict
    }

    /// `handle_request` has returned: the request passes, or the guest has answered it.
    fn requested(&self, mut live: Live, answer: u64) -> (Stage, Result<Decision, PluginError>) {
        let host = live.store.data_mut();
        if answer as u32 != 0 {
            let body = host.take_written(Way::Request);
            let context = (answer >> 32) as u32;
            return (Stage::Passed { live, context, body }, Ok(Decision::Continue));
        }
        let reply = host.take_reply();
        self.guest.give_back(live);
        (Stage::Done { body: None }, Ok(Decision::Respond(Box::new(reply))))
    }

    fn responded(&self, mut live: Live) -> Stage {
        let body = live.store.data_mut().take_written(Way::Response);
        self.guest.give_back(live);
        Stage::Done { body }
    }

    async fn request(&self, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        match self.guest.seat() {
            Some(seat) => self.proceed(self.guest.call(seat, Ask::Request), exchange).await,
            None => Ok(self.guest.exhausted()),
        }
    }

    async fn request_body(&self, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        let slot = self.guest.slot;
        if waits(exchange.slot(slot), Way::Request)
            && let Some(Stage::Waits(call)) = exchange.take_slot(slot)
        {
            let verdict = self.proceed(call, exchange).await?;
            if !matches!(verdict, Decision::Continue) {
                return Ok(verdict);
            }
        }
        if let Some(Stage::Passed { body, .. }) = exchange.slot_mut(slot)
            && let Some(body) = body.take()
        {
            exchange.set_request_body(body)?;
        }
        Ok(Decision::Continue)
    }

    async fn response(&self, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        let slot = self.guest.slot;
        match exchange.take_slot(slot) {
            Some(Stage::Passed { live, context, .. }) => {
                let is_error = exchange.decider().is_some_and(|decider| &*decider.by == UPSTREAM);
                let call = self.guest.call(instance::Seat::Live(live), Ask::Response { context, is_error });
                return self.proceed(call, exchange).await;
            }
            // Somebody else has answered while it waited for the request's body.
            Some(Stage::Waits(call)) if call.ask.way() == Way::Request => {
                exchange.set_slot(slot, Stage::Lost);
            }
            // What it has written was for another response.
            Some(Stage::Done { .. }) => {
                exchange.set_slot(slot, Stage::Done { body: None });
            }
            Some(stage) => {
                exchange.set_slot(slot, stage);
            }
            None => {}
        }
        Ok(Decision::Continue)
    }

    async fn response_body(&self, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        let slot = self.guest.slot;
        if waits(exchange.slot(slot), Way::Response)
            && let Some(Stage::Waits(call)) = exchange.take_slot(slot)
        {
            self.proceed(call, exchange).await?;
        }
        if let Some(Stage::Done { body }) = exchange.slot_mut(slot)
            && let Some(body) = body.take()
        {
            exchange.set_response_body(body)?;
        }
        Ok(Decision::Continue)
    }
}

/// Whether a call waits for the body of that message.
fn waits(stage: Option<&Stage>, way: Way) -> bool {
    matches!(stage, Some(Stage::Waits(call)) if call.ask.way() == way)
}

/// Starts instances, of which the first may refuse its configuration, and the second one tells how long that takes:
/// the first pays for what is done once.
fn prove(guest: &Guest, context: &mut BuildContext<'_>) -> Result<(), BuildError> {
    let mut took = Duration::ZERO;
    for _ in 0..2 {
        let start = thread_time();
        let place = guest.prepared.iter().enumerate().find_map(|(at, one)| Some((at, one.permit()?)));
        let Some((at, permit)) = place else { return Ok(()) };
        match block_on(guest.start(at, permit)) {
            Ok(_) | Err(Ended::Answer(..)) => {}
            Err(Ended::Exhausted) => return Ok(()),
            Err(Ended::Failed(error)) => {
                let at = if error.message().contains("of memory") { "memory" } else { "file" };
                return Err(BuildError::at(at, error.message()));
            }
        }
        took = thread_time().saturating_sub(start);
    }
    if guest.uses == 1 {
        remark_start(took, context);
    }
    Ok(())
}

impl Plugin for Handler {
    fn needs(&self) -> Needs {
        self.needs
    }

    fn budget(&self) -> Used {
        let cpu = TICK * self.guest.cpu;
        Used { cpu_micros: cpu.as_micros() as u64, memory: self.guest.about.memory as u64, ..Used::default() }
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(self.request(exchange))
    }

    fn wants_request_body(&self, exchange: &Exchange) -> bool {
        match exchange.slot(self.guest.slot) {
            Some(Stage::Passed { body, .. }) => body.is_some(),
            stage => waits(stage, Way::Request),
        }
    }

    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(self.request_body(exchange))
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(self.response(exchange))
    }

    fn wants_response_body(&self, exchange: &Exchange) -> bool {
        match exchange.slot(self.guest.slot) {
            Some(Stage::Done { body }) => body.is_some(),
            stage => waits(stage, Way::Response),
        }
    }

    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(self.response_body(exchange))
    }
}

#[cfg(test)]
mod tests;
