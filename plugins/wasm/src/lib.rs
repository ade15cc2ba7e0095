//! Wasm modules as plugins.
//!
//! ```yaml
//! - wasm:
//!     file: block-path.wasm
//!     config: { prefixes: [/internal] }
//!     memory: 16MiB
//!     cpu: 5ms
//! ```
//!
//! A module is a component, or a core module with a component type in it, of the WIT package
//! `portcullis:policy`. It runs in a sandbox: a fresh instance per exchange by default, memory and
//! CPU bounded, and no power that the host functions do not give. How it is loaded is told in
//! `load.rs`, with what an instance begins in `snapshot.rs`, how it is called in `instance.rs`, what it
//! can reach in `host.rs`.

mod artifact;
mod bindings;
mod engine;
mod host;
mod instance;
mod load;
mod scaffold;
mod snapshot;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use portcullis_plugin::{
    Admission, BodyWish, BuildContext, BuildError, Connection, ErrorKind, Exchange, Hook, HookFuture,
    HookName, Needs, Plugin, PluginError, PluginType, Size, Span, block_on, thread_time,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::engine::{Engines, MAX_MEMORY};
use crate::host::About;
use crate::instance::{Counts, Guest, Idle};

pub use scaffold::scaffold;

/// CPU, in ticks, that a guest may take to judge its configuration at load.
const CONFIGURE_TICKS: u32 = 1000;

/// Whole ticks that a guest may hold the worker for at `on_connection`, which cannot wait.
const CONNECTION_TICKS: u32 = 1;

/// CPU for the start of an instance from which on a fresh one per exchange is worth a remark.
const SLOW_START: Duration = Duration::from_millis(1);

/// What a guest may hand over in one call beyond a body: headers, JSON, log lines.
const TRANSFER: usize = 256 << 10;

/// Longest CPU budget per hook call.
const MAX_CPU: Span = Span::seconds(1);

/// A policy compiled to Wasm.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The module, a .wasm file.
    file: String,
    /// The policy's own configuration.
    #[serde(default)]
    config: Map<String, Value>,
    /// Memory per instance, at most 256MiB.
    #[serde(default = "memory")]
    #[schemars(extend("default" = "16MiB"))]
    memory: Size,
    /// CPU per call of a hook, at most 1s; counted by the millisecond.
    #[serde(default = "cpu")]
    #[schemars(extend("default" = "5ms"))]
    cpu: Span,
    /// Whether every exchange gets an instance of its own.
    ///
    /// All modules together have 1000 instances at once, and 200 more that start slower. What finds no
    /// room is refused with 503 `wasm.pool_exhausted`, or dropped as a connection, whatever `on_error`
    /// says: a policy that a flood of requests could switch off would protect nothing.
    #[serde(default)]
    isolation: Isolation,
    /// The only content of the file that is accepted, `sha256:` and 64 hex digits.
    #[serde(default)]
    digest: Option<String>,
    /// Longest body that `on_request_body` and `on_response_body` get.
    #[serde(default = "body_limit")]
    #[schemars(extend("default" = "1MiB"))]
    body_limit: Size,
}

/// How exchanges are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Isolation {
    /// An instance per exchange: nothing leaks from one client to the next.
    #[default]
    Fresh,
    /// An instance serves so many exchanges, one after the other, and what it keeps in its memory
    /// goes from one to the next.
    Reuse(NonZeroU32),
}

fn memory() -> Size {
    Size::mib(16)
}

fn cpu() -> Span {
    Span::millis(5)
}

fn body_limit() -> Size {
    Size::mib(1)
}

/// A loaded module.
pub struct Module {
    guest: Guest,
    needs: Needs,
}

impl PluginType for Module {
    const KIND: &'static str = "wasm";
    const SUMMARY: &'static str = "runs a policy compiled to WebAssembly in a sandbox";
    const EXAMPLE: &'static str = "- wasm:\n    file: policies/block-path.wasm\n    config: { prefixes: [/internal] }\n    memory: 16MiB\n    cpu: 5ms\n";

    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        let cpu = check_limits(&config)?;
        let source = context.file("file", &config.file)?;
        check_digest(config.digest.as_deref(), &source.bytes)?;
        let engines = context.shared_by_kind(Engines::new);
        let engines = Result::as_ref(&engines)
            .map_err(|error| BuildError::at("", format!("no engine for Wasm can be had: {error:#}")))?;
        let prepared = load::load(engines, &source.bytes, context.artifacts())?;
        let hooks: Vec<_> = prepared.first().map(|first| first.exports.hooks().collect()).unwrap_or_default();
        let needs = needs(&hooks, config.body_limit);
        let mut guest = Guest {
            about: Arc::new(About {
                name: context.name().clone(),
                config: Value::Object(config.config.clone()).to_string(),
                memory: config.memory.0,
                transfer: TRANSFER + config.body_limit.0,
                engines: engines.clone(),
            }),
            cpu,
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
        judge(&guest, &config.config)?;
        begin_configured(&mut guest, &source.bytes);
        remark(&guest, &hooks, &config.memory, &config.body_limit, context);
        Ok(Module { guest, needs })
    }
}

/// Judges memory and CPU; the latter in ticks.
fn check_limits(config: &Config) -> Result<u32, BuildError> {
    if config.memory > MAX_MEMORY {
        return Err(BuildError::at("memory", format!("more than {MAX_MEMORY}")));
    }
    let ticks = config.cpu.0.as_millis();
    if config.cpu > MAX_CPU || ticks == 0 || config.cpu != Span::millis(ticks as u64) {
        return Err(BuildError::at("cpu", format!("not 1ms to {MAX_CPU}, by the millisecond")));
    }
    Ok(ticks as u32)
}

fn check_digest(pin: Option<&str>, bytes: &[u8]) -> Result<(), BuildError> {
    let Some(pin) = pin else { return Ok(()) };
    let Some(hex) = pin.strip_prefix("sha256:").filter(|hex| hex.len() == 64) else {
        return Err(BuildError::at("digest", "not `sha256:` and 64 hex digits"));
    };
    let actual = load::sha256(bytes);
    if !hex.eq_ignore_ascii_case(&actual) {
        let help = format!("the file's digest is `sha256:{actual}`");
        return Err(BuildError::at("digest", "the file is not the one that is pinned").help(help));
    }
    Ok(())
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
fn refusal(message: &str, config: &Map<String, Value>) -> BuildError {
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
    let took = thread_time().saturating_sub(start);
    if started.is_ok() && took > SLOW_START {
        let took = took.as_micros() as f64 / 1000.0;
        let message =
            format!("a fresh instance takes {took:.1}ms to start; consider `isolation: {{ reuse: 100 }}`");
        context.warn("isolation", message);
    }
}

impl Module {
    /// Most calls are over before the first tick: those answer at once, the others are waited for.
    fn call<'a>(&'a self, hook: HookName, exchange: &'a mut Exchange) -> Hook<'a> {
        let mut future: HookFuture<'a> = Box::pin(self.guest.run(hook, exchange));
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(verdict) => Hook::Ready(verdict),
            Poll::Pending => Hook::Wait(future),
        }
    }
}

impl Plugin for Module {
    fn needs(&self) -> Needs {
        self.needs
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

#[cfg(test)]
mod tests;
