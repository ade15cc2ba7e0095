//! Policies made for `portcullis:policy`: components, or core modules with a component type in them.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use portcullis_plugin::{
    Admission, BodyWish, BuildContext, BuildError, Capabilities, Connection, ErrorKind, Exchange, Hook,
    HookFuture, HookName, Needs, Plugin, PluginError, Size, Used, block_on, thread_time,
};
use serde_json::{Map, Value};

use crate::engine::{Engines, TICK};
use crate::host::About;
use crate::instance::{Counts, Guest, Idle};
use crate::{Config, Isolation, bindings, host, load};

/// Ticks per call of a hook, unless the configuration says otherwise.
pub(crate) const CPU: u32 = 5;

/// CPU, in ticks, that a guest may take to judge its configuration at load.
const CONFIGURE_TICKS: u32 = 1000;

/// Whole ticks that a guest may hold the worker for at `on_connection`, which cannot wait.
const CONNECTION_TICKS: u32 = 1;

/// CPU for the start of an instance from which on a fresh one per exchange is worth a remark.
const SLOW_START: Duration = Duration::from_millis(1);

/// What a guest may hand over in one call beyond a body: headers, JSON, log lines.
const TRANSFER: usize = 256 << 10;

/// A loaded policy.
pub(crate) struct Policy {
    pub(crate) guest: Guest,
    needs: Needs,
}

impl Policy {
    pub(crate) fn build(
        config: &Config,
        bytes: &[u8],
        engines: &Arc<Engines>,
        context: &mut BuildContext<'_>,
    ) -> Result<Self, BuildError> {
        let Value::Object(table) = &config.config else {
            return Err(BuildError::at("config", "not a table, which is what a policy gets"));
        };
        let prepared = load::load(engines, bytes, context.artifacts())?;
        let hooks: Vec<_> = prepared.first().map(|first| first.exports.hooks().collect()).unwrap_or_default();
        let needs = needs(&hooks, config.body_limit);
        let mut guest = Guest {
            about: Arc::new(About {
                name: context.name().clone(),
                config: config.config.to_string(),
                memory: config.memory.0,
                transfer: TRANSFER + config.body_limit.0,
                capabilities: Capabilities::build(&config.grants, context)?,
                engines: engines.clone(),
            }),
            cpu: crate::check_cpu(config)?.unwrap_or(CPU),
            uses: match config.isolation {
                Isolation::Fresh => 1,
                Isolation::Reuse(uses) => uses.get(),
            },
            prepared,
            last: HookName::ALL.into_iter().rfind(|hook| needs.wants(*hook)).unwrap_or(HookName::OnLog),
            slot: context.slot(),
            idle: Idle::default(),
            counts: Counts::new(context),
        };
        judge(&guest, table)?;
        begin_configured(&mut guest, bytes);
        remark(&guest, &hooks, &config.memory, &config.body_limit, context);
        Ok(Policy { guest, needs })
    }
}

fn needs(hooks: &[HookName], body_limit: Size) -> Needs {
    let whole = BodyWish::Whole { limit: body_limit.0 };
    let mut needs = Needs::hooks(hooks.iter().copied());
    if needs.wants(HookName::OnRequestBody) {
        needs = needs.request_body(whole);
    }
    if needs.wants(HookName::OnResponseBody) {
        needs = needs.response_body(whole);
    }
    // There may be more attempts, for which the instance is kept; it is let go when one succeeded.
    if hooks.last() == Some(&HookName::OnUpstream) {
        needs = needs.and(HookName::OnResponse);
    }
    needs
}

/// Lets the guest judge its configuration.
fn judge(guest: &Guest, config: &Map<String, Value>) -> Result<(), BuildError> {
    match block_on(guest.configure(CONFIGURE_TICKS)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(message)) => Err(refusal(&message, config)),
        Err(error) if error.kind() == ErrorKind::Budget && error.message().contains("memory") => {
            Err(BuildError::at("memory", error.message()).help("grant it more, or make it need less"))
        }
        Err(error) => Err(BuildError::at("file", error.message())),
    }
}

/// Lets instances begin where `configure` ends, if that is possible.
fn begin_configured(guest: &mut Guest, bytes: &[u8]) {
    match load::configured(&guest.about, bytes, CONFIGURE_TICKS) {
        Ok(prepared) => guest.prepared = prepared,
        Err(reason) => {
            let plugin = &*guest.about.name;
            tracing::debug!(plugin, %reason, "every instance of this module reads its configuration anew");
        }
    }
}

/// A guest's word on its configuration; the path of a key in front of it says where it is wrong.
pub(crate) fn refusal(message: &str, config: &Map<String, Value>) -> BuildError {
    match message.split_once(": ") {
        Some((path, message)) if holds(config, path) => BuildError::at(format!("config.{path}"), message),
        _ => BuildError::at("config", message),
    }
}

/// Whether there is something at a path such as `rules[2].name`.
fn holds(config: &Map<String, Value>, path: &str) -> bool {
    let mut steps = path.split(['.', '[']);
    let first = steps.next().and_then(|key| config.get(key));
    let found = steps.try_fold(first, |value, step| {
        let value = value?;
        Some(match step.strip_suffix(']') {
            Some(index) => index.parse::<usize>().ok().and_then(|index| value.get(index)),
            None => value.get(step),
        })
    });
    found.flatten().is_some()
}

fn remark(guest: &Guest, hooks: &[HookName], memory: &Size, body: &Size, context: &mut BuildContext<'_>) {
    let bodies = [HookName::OnRequestBody, HookName::OnResponseBody].iter().any(|hook| hooks.contains(hook));
    if bodies && body >= memory {
        context.warn("body_limit", format!("a body of {body} does not fit into {memory} of memory"));
    }
    if guest.uses > 1 {
        return;
    }
    // The second start, since the first one pays for what is done once.
    let start = thread_time();
    let started = block_on(guest.configure(CONFIGURE_TICKS));
    if started.is_ok() {
        remark_start(thread_time().saturating_sub(start), context);
    }
}

/// Says so if an instance that every exchange has for itself takes long to start.
pub(crate) fn remark_start(took: Duration, context: &mut BuildContext<'_>) {
    if took > SLOW_START {
        let took = took.as_micros() as f64 / 1000.0;
        let message =
            format!("a fresh instance takes {took:.1}ms to start; consider `isolation: {{ reuse: 100 }}`");
        context.warn("isolation", message);
    }
}

impl Policy {
    /// Most calls are over before the first tick: those answer at once, the others are waited for.
    fn call<'a>(&'a self, hook: HookName, exchange: &'a mut Exchange) -> Hook<'a> {
        let mut future: HookFuture<'a> = Box::pin(self.guest.run(hook, exchange));
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(verdict) => Hook::Ready(verdict),
            Poll::Pending => Hook::Wait(future),
        }
    }
}

impl Plugin for Policy {
    fn needs(&self) -> Needs {
        self.needs
    }

    fn budget(&self) -> Used {
        let cpu = TICK * self.guest.cpu;
        Used { cpu_micros: cpu.as_micros() as u64, memory: self.guest.about.memory as u64, ..Used::default() }
    }

    fn on_connection(&self, connection: &Connection) -> Result<Admission, PluginError> {
        // Nothing in it waits: a guest that is interrupted goes on at once until its ticks are used up.
        let verdict = block_on(self.guest.admit(host::connection(connection), CONNECTION_TICKS))?;
        Ok(match verdict {
            bindings::types::Admission::Accept => Admission::Accept,
            bindings::types::Admission::Drop => Admission::Drop,
        })
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.call(HookName::OnRequest, exchange)
    }

    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.call(HookName::OnRequestBody, exchange)
    }

    fn on_upstream<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.call(HookName::OnUpstream, exchange)
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        if self.guest.exports(HookName::OnResponse) {
            return self.call(HookName::OnResponse, exchange);
        }
        self.guest.release(exchange);
        Hook::CONTINUE
    }

    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.call(HookName::OnResponseBody, exchange)
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.call(HookName::OnLog, exchange)
    }
}
