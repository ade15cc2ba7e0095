//! Instances of a guest, and the one way in which a hook of theirs is called: the exchange is lent
//! for the call and comes back on every way out of it.

use std::sync::{Arc, Mutex};

use portcullis_plugin::{
    BuildContext, Counter, Decision, ErrorKind, Exchange, Gauge, HookName, PluginError, Reply, Size, Slot,
    Span, Used,
};
use wasmtime::component::{ComponentExportIndex, ComponentNamedList, Instance, Lift, Lower, TypedFunc};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};

use crate::bindings::types;
use crate::engine::{MAX_STACK, Permit};
use crate::host::{About, Breach, Host, Pace, final_status, header, one_line};
use crate::load::Prepared;

/// Instances that wait for their next exchange, per shelf: as many as a busy thread has exchanges
/// between two hooks of one guest.
const MAX_IDLE: usize = 64;

/// Shelves of waiting instances: each thread has its own as long as there are not more threads.
const SHELVES: usize = 16;

/// Longest reason code that a guest may give.
const MAX_REASON: usize = 64;

/// A module with its limits, from which instances are made.
pub(crate) struct Guest {
    pub(crate) about: Arc<About>,
    /// Ticks per call.
    pub(crate) cpu: u32,
    /// Exchanges per instance.
    pub(crate) uses: u32,
    pub(crate) prepared: Vec<Prepared>,
    /// The last hook of an exchange; then the instance is let go.
    pub(crate) last: HookName,
    pub(crate) slot: Slot<Stage>,
    pub(crate) idle: Idle<Live>,
    pub(crate) counts: Counts,
}

/// What is counted.
pub(crate) struct Counts {
    pub(crate) fresh: Counter,
    pub(crate) reused: Counter,
    exhausted: Counter,
    lives: Arc<Lives>,
}

/// How many instances there were, and are.
pub(crate) struct Lives {
    made: Counter,
    ended: Counter,
    alive: Gauge,
}

impl Lives {
    pub(crate) fn new(context: &mut BuildContext<'_>) -> Arc<Self> {
        let help =
            "instances made and ended, those that only judged a configuration included; the others are alive";
        let instances = context.counters("instances", help, ["event"]);
        let help = "instances that are alive, by the generation that loaded their module";
        Arc::new(Lives {
            made: instances.with(["made"]),
            ended: instances.with(["ended"]),
            alive: context.gauge("live_instances", help),
        })
    }

    /// An instance begins, and ends with what this gives.
    pub(crate) fn begin(self: &Arc<Self>) -> Life {
        self.made.increment();
        self.alive.add(1);
        Life(self.clone())
    }
}

impl Counts {
    pub(crate) fn new(context: &mut BuildContext<'_>) -> Self {
        let help = "instances taken for an exchange, by whether they were made for it or had served before";
        let starts = context.counters("starts", help, ["instance"]);
        Counts {
            lives: Lives::new(context),
            fresh: starts.with(["fresh"]),
            reused: starts.with(["reused"]),
            exhausted: context
                .counter("pool_exhausted", "times that there was no room for one more instance"),
        }
    }

    /// An instance begins, and ends with what this gives.
    pub(crate) fn life(&self) -> Life {
        self.lives.begin()
    }

    /// A refusal and no error, since `on_error: allow` must not let pass what a flood brings.
    pub(crate) fn exhausted(&self, about: &About) -> Decision {
        self.exhausted.increment();
        about.engines.remark_full(&about.name);
        let status = http::StatusCode::SERVICE_UNAVAILABLE;
        Decision::Respond(Box::new(Reply::deny(status, "wasm.pool_exhausted")))
    }
}

/// Where a guest stands in an exchange that has more hooks to come.
pub(crate) enum Stage {
    /// Its instance waits for the next hook.
    Resident(Live),
    /// It failed or was cancelled: it runs no more for this exchange.
    Lost,
}

/// An instance, or the place for one.
pub(crate) struct Live {
    store: Store<Host>,
    instance: Option<Instance>,
    /// If it serves more than once, its functions that were called already: looking one up compares
    /// its types.
    known: Option<Box<Known>>,
    /// Index of its [`Prepared`].
    lane: usize,
    uses_left: u32,
    // After the store: the place is free when its memory is.
    permit: Permit,
    _life: Life,
}

/// Counts the end of an instance.
pub(crate) struct Life(Arc<Lives>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.ended.increment();
        self.0.alive.add(-1);
    }
}

/// Why a guest gave no verdict.
enum Failure {
    /// There is no room for one more instance.
    Exhausted,
    Plugin(PluginError),
}

/// Functions of an instance, by hook.
type Known = [Option<TypedFunc<(), Answer<types::Verdict>>>; HookName::ALL.len()];

/// What every hook returns: its verdict, or how the policy itself failed.
type Answer<T> = (Result<T, String>,);

impl Guest {
    /// Runs one hook for one exchange.
    pub(crate) async fn run(&self, hook: HookName, exchange: &mut Exchange) -> Result<Decision, PluginError> {
        let live = match exchange.take_slot(self.slot) {
            Some(Stage::Resident(live)) => Some(live),
            Some(Stage::Lost) => {
                exchange.set_slot(self.slot, Stage::Lost);
                return Ok(Decision::Continue);
            }
            None => self.seat(),
        };
        let Some(live) = live else { return Ok(self.exhausted()) };
        let mut loan = Loan { home: exchange, guest: self, live: Some(live) };
        let answer = loan.call(hook).await;
        match answer {
            Ok(verdict) => {
                loan.settle(hook);
                verdict
            }
            Err(Failure::Exhausted) => Ok(self.exhausted()),
            Err(Failure::Plugin(error)) => Err(error),
        }
    }

    /// Whether the guest exports a hook.
    pub(crate) fn exports(&self, hook: HookName) -> bool {
        self.prepared.first().is_some_and(|prepared| prepared.exports.hook(hook).is_some())
    }

    /// Lets the instance of an exchange go, if one waits.
    pub(crate) fn release(&self, exchange: &mut Exchange) {
        if let Some(Stage::Resident(live)) = exchange.take_slot(self.slot) {
            self.give_back(live);
        }
    }

    /// Judges a connection. Holds the worker, so it has to be quick: `budget` ticks.
    pub(crate) async fn admit(
        &self,
        connection: types::Connection,
        budget: u32,
    ) -> Result<types::Admission, PluginError> {
        let Some(mut live) = self.seat() else {
            return Ok(self.turn_away());
        };
        live.store.data_mut().begin(budget, Pace::Hold);
        let index = self.export(&live, HookName::OnConnection);
        let answer: Result<Answer<_>, _> = self.invoke(&mut live, index, (connection,)).await;
        live.store.data_mut().log_printed();
        match answer {
            Ok((verdict,)) => {
                self.give_back(live);
                verdict.map_err(failed)
            }
            Err(error) if error.is::<PoolConcurrencyLimitError>() => Ok(self.turn_away()),
            Err(error) => Err(self.failure(HookName::OnConnection.as_str(), &live, &error)),
        }
    }

    /// Lets a new instance judge the configuration, within `budget` ticks; it is thrown away.
    pub(crate) async fn configure(&self, budget: u32) -> Result<Result<(), String>, PluginError> {
        let Some(mut live) = self.new_place() else {
            return Err(PluginError::failed("no room for one more instance"));
        };
        live.store.data_mut().begin(budget, Pace::Hold);
        let configure = self.prepared.get(live.lane).and_then(|prepared| prepared.exports.configure);
        let outcome = match configure {
            Some(index) => {
                self.invoke::<_, Answer<()>>(&mut live, Some(index), ()).await.map(|(verdict,)| verdict)
            }
            None => self.instantiated(&mut live).await.map(|_| Ok(())),
        };
        let outcome = match outcome {
            Ok(verdict) => self.check_types(&mut live).map(|()| verdict),
            Err(error) => Err(error),
        };
        live.store.data_mut().log_printed();
        outcome.map_err(|error| self.failure("configure", &live, &error))
    }

    fn check_types(&self, live: &mut Live) -> wasmtime::Result<()> {
        let Some(instance) = live.instance else { return Ok(()) };
        for hook in HookName::ALL {
            let Some(index) = &self.export(live, hook) else { continue };
            let store = &mut live.store;
            match hook {
                HookName::OnConnection => {
                    instance
                        .get_typed_func::<(types::Connection,), Answer<types::Admission>>(store, index)?;
                }
                HookName::OnLog => {
                    instance.get_typed_func::<(), Answer<()>>(store, index)?;
                }
                _ => {
                    instance.get_typed_func::<(), Answer<types::Verdict>>(store, index)?;
                }
            }
        }
        Ok(())
    }

    /// An instance that waited, or the place for a new one.
    fn seat(&self) -> Option<Live> {
        if let Some(live) = self.idle.take() {
            self.counts.reused.increment();
            return Some(live);
        }
        let live = self.new_place()?;
        self.counts.fresh.increment();
        Some(live)
    }

    /// The place for a new instance.
    fn new_place(&self) -> Option<Live> {
        let mut lanes = self.prepared.iter().enumerate();
        lanes.find_map(|(lane, prepared)| Some(self.place(lane, prepared, prepared.lane.permit()?)))
    }

    fn place(&self, lane: usize, prepared: &Prepared, permit: Permit) -> Live {
        let mut store = Store::new(&prepared.lane.engine, Host::new(self.about.clone()));
        store.limiter(|host| host);
        store.epoch_deadline_callback(|mut context| context.data_mut().tick());
        store.set_hostcall_fuel(self.about.transfer);
        Live {
            store,
            instance: None,
            known: (self.uses > 1).then(Box::default),
            lane,
            uses_left: self.uses,
            permit,
            _life: self.counts.life(),
        }
    }

    /// Keeps an instance for its next exchange if it may have one.
    fn give_back(&self, mut live: Live) {
        live.uses_left = live.uses_left.saturating_sub(1);
        if live.uses_left > 0 && live.permit.may_idle() {
            self.idle.put(live);
        }
    }

    fn exhausted(&self) -> Decision {
        self.counts.exhausted(&self.about)
    }

    /// The same for a connection, which gets no answer.
    fn turn_away(&self) -> types::Admission {
        self.counts.exhausted.increment();
        self.about.engines.remark_full(&self.about.name);
        types::Admission::Drop
    }

    fn export(&self, live: &Live, hook: HookName) -> Option<ComponentExportIndex> {
        self.prepared.get(live.lane)?.exports.hook(hook).copied()
    }

    async fn instantiated(&self, live: &mut Live) -> wasmtime::Result<Instance> {
        if let Some(instance) = live.instance {
            return Ok(instance);
        }
        let prepared = self.prepared.get(live.lane).ok_or_else(|| wasmtime::Error::msg("no such lane"))?;
        live.store.set_epoch_deadline(1);
        let instance = prepared.pre.instantiate_async(&mut live.store).await?;
        live.instance = Some(instance);
        Ok(instance)
    }

    /// Calls a hook that judges the exchange.
    async fn judge(
        &self,
        live: &mut Live,
        hook: HookName,
        index: Option<ComponentExportIndex>,
    ) -> wasmtime::Result<Answer<types::Verdict>> {
        let known = live.known.as_ref().and_then(|known| known[hook as usize]);
        let function = match known {
            Some(known) => known,
            None => {
                let instance = self.instantiated(live).await?;
                function(live, instance, index)?
            }
        };
        if let Some(known) = &mut live.known {
            known[hook as usize] = Some(function);
        }
        live.store.set_epoch_deadline(1);
        function.call_async(&mut live.store, ()).await
    }

    async fn invoke<P, R>(
        &self,
        live: &mut Live,
        index: Option<ComponentExportIndex>,
        parameters: P,
    ) -> wasmtime::Result<R>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let instance = self.instantiated(live).await?;
        let function = function(live, instance, index)?;
        live.store.set_epoch_deadline(1);
        function.call_async(&mut live.store, parameters).await
    }

    fn failure(&self, at: &str, live: &Live, error: &wasmtime::Error) -> PluginError {
        failure(live.store.data(), at, error)
    }
}

/// What an error of the engine says about the guest.
pub(crate) fn failure(host: &Host, at: &str, error: &wasmtime::Error) -> PluginError {
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

/// What a trap says: why, where, and the guest's last words.
pub(crate) fn trapped(at: &str, error: &wasmtime::Error, words: Option<&str>) -> PluginError {
    let trap = error.downcast_ref::<Trap>();
    let cause = trap.map_or_else(|| error.root_cause().to_string(), ToString::to_string);
    let cause = one_line(cause.trim_start_matches("wasm trap: "));
    let place = error.downcast_ref::<WasmBacktrace>().and_then(culprit);
    let place = place.map(|place| format!(" in {place}")).unwrap_or_default();
    let words = words.map(|words| format!(", after saying: {words}")).unwrap_or_default();
    PluginError::new(ErrorKind::Trap, format!("{at} trapped: {cause}{place}{words}"))
}

fn function<P, R>(
    live: &mut Live,
    instance: Instance,
    index: Option<ComponentExportIndex>,
) -> wasmtime::Result<TypedFunc<P, R>>
where
    P: ComponentNamedList + Lower,
    R: ComponentNamedList + Lift,
{
    let index = index.ok_or_else(|| wasmtime::Error::msg("no such export"))?;
    instance.get_typed_func(&mut live.store, index)
}

/// An exchange lent to an instance. However this ends, the exchange is back home afterwards: after
/// [`settle`](Loan::settle) with the instance kept or let go, else (a trap, a budget, a panic of the
/// host, the future dropped midway) without the instance, which is gone.
struct Loan<'a> {
    home: &'a mut Exchange,
    guest: &'a Guest,
    live: Option<Live>,
}

impl Loan<'_> {
    async fn call(&mut self, hook: HookName) -> Result<Result<Decision, PluginError>, Failure> {
        let Some(live) = &mut self.live else { return Err(Failure::Exhausted) };
        let guest = self.guest;
        let host = live.store.data_mut();
        host.begin(guest.cpu, Pace::Yield);
        host.exchange = Some(self.home.lend());
        let index = guest.export(live, hook);
        let verdict = match hook {
            HookName::OnLog => {
                let answer: wasmtime::Result<Answer<()>> = guest.invoke(live, index, ()).await;
                answer.map(|(result,)| result.map(|()| types::Verdict::Continue))
            }
            _ => guest.judge(live, hook, index).await.map(|(result,)| result),
        };
        live.store.data_mut().log_printed();
        match verdict {
            Ok(verdict) => Ok(verdict.and_then(decision).map_err(failed)),
            Err(error) if error.is::<PoolConcurrencyLimitError>() => Err(Failure::Exhausted),
            Err(error) => Err(Failure::Plugin(guest.failure(hook.as_str(), live, &error))),
        }
    }

    /// The call returned: the instance waits for the exchange's next hook, unless this was the last.
    fn settle(mut self, hook: HookName) {
        let Some(mut live) = self.live.take() else { return };
        bring_home(self.home, &mut live);
        if hook < self.guest.last && !upgraded(self.home, hook) {
            self.home.set_slot(self.guest.slot, Stage::Resident(live));
        } else {
            self.guest.give_back(live);
        }
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if let Some(mut live) = self.live.take() {
            bring_home(self.home, &mut live);
            self.home.set_slot(self.guest.slot, Stage::Lost);
        }
    }
}

fn bring_home(home: &mut Exchange, live: &mut Live) {
    let host = live.store.data_mut();
    let (memory, cpu_micros) = (host.memory as u64, host.cpu().as_micros() as u64);
    if let Some(exchange) = host.exchange.take() {
        home.restore(exchange);
        home.set_used(Used { memory, cpu_micros, ..Used::default() });
    }
}

/// Whether what follows is no HTTP any more and may take hours, through which no instance is held.
fn upgraded(exchange: &Exchange, hook: HookName) -> bool {
    hook == HookName::OnResponse && exchange.response().is_some_and(|response| response.status() == 101)
}

/// How the policy itself failed, in its own words.
fn failed(message: String) -> PluginError {
    PluginError::failed(one_line(&message))
}

fn decision(verdict: types::Verdict) -> Result<Decision, String> {
    Ok(match verdict {
        types::Verdict::Continue => Decision::Continue,
        types::Verdict::Drop => Decision::Drop,
        types::Verdict::Deny(denial) => {
            let status = final_status(denial.status, 400)?;
            Decision::Respond(Box::new(Reply::deny(status, reason(denial.reason)?)))
        }
        types::Verdict::Respond(given) => {
            let mut reply = Reply::new(final_status(given.status, 200)?);
            reply.reason = given.reason.map(reason).transpose()?.map(Into::into);
            for types::Header { name, value } in given.headers {
                let (name, value) = header(&name, value)?;
                reply.headers.append(name, value);
            }
            reply.content = portcullis_plugin::Content::Bytes(given.body.into());
            Decision::Respond(Box::new(reply))
        }
    })
}

pub(crate) fn reason(reason: String) -> Result<String, String> {
    let code = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if reason.is_empty() || reason.len() > MAX_REASON || !reason.bytes().all(code) {
        return Err(format!("a reason is 1 to {MAX_REASON} of `a-z`, `0-9`, `.`, `_`, `-`"));
    }
    Ok(reason)
}

/// The innermost function that is not the standard library's way to a panic.
fn culprit(backtrace: &WasmBacktrace) -> Option<String> {
    const NOT: [&str; 6] = ["core::", "std::", "alloc::", "rust_", "__", "portcullis_guest::"];
    // A frame's own name is mangled; the backtrace's text is not: `  0:  0x1f2 - module!function`.
    let text = backtrace.to_string();
    let names = text.lines().filter_map(|line| line.split_once('!')).map(|(_, name)| name.trim());
    names
        .filter(|name| !name.starts_with("<wasm function"))
        .find(|name| !NOT.iter().any(|other| name.contains(other)))
        .map(Into::into)
}

/// Instances that wait for their next exchange. Sharded, so that workers do not wait for each other.
pub(crate) struct Idle<L>([Mutex<Vec<L>>; SHELVES]);

impl<L> Default for Idle<L> {
    fn default() -> Self {
        Idle(Default::default())
    }
}

impl<L> Idle<L> {
    pub(crate) fn take(&self) -> Option<L> {
        self.shelf()?.lock().ok()?.pop()
    }

    pub(crate) fn put(&self, live: L) {
        let Some(Ok(mut shelf)) = self.shelf().map(Mutex::lock) else { return };
        if shelf.len() < MAX_IDLE {
            shelf.push(live);
        }
    }

    fn shelf(&self) -> Option<&Mutex<Vec<L>>> {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed));
        self.0.get(OWN.with(|own| own % SHELVES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_a_short_code() {
        assert!(reason("a.b_c-1".into()).is_ok() && reason("r".repeat(MAX_REASON)).is_ok());
        for wrong in [String::new(), "A".into(), "a b".into(), "r".repeat(MAX_REASON + 1)] {
            assert!(reason(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
