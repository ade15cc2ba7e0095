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
//! CPU bounded, and no power that the host functions do not give. What it is as a plugin is in `policy.rs`, how it
//! is loaded in `load.rs`, with what an instance begins in `snapshot.rs`, how it is called in `instance.rs`, what
//! it can reach in `host.rs`, `capabilities.rs` and `wasi2.rs`. Modules made for proxy-wasm are told by what they
//! export, and run as `proxy_wasm` says; those made for http-wasm by what they import and export, and run as
//! `http_wasm` says.

mod artifact;
mod bindings;
mod capabilities;
mod engine;
mod host;
mod http_wasm;
mod instance;
mod load;
mod memory;
mod policy;
mod proxy_wasm;
mod scaffold;
mod snapshot;
mod wasi;
mod wasi2;

use std::num::NonZeroU32;

use portcullis_plugin::{
    Admission, BodyFilter, BuildContext, BuildError, Connection, Exchange, Grants, Hook, Needs, Plugin,
    PluginError, PluginType, Size, Span, Used,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::engine::{Engines, MAX_MEMORY};
use crate::http_wasm::Handler;
use crate::policy::Policy;
use crate::proxy_wasm::{Filter, Options};

pub use scaffold::{Language, scaffold};

/// Longest CPU budget per hook call.
const MAX_CPU: Span = Span::seconds(1);

/// A policy compiled to Wasm.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The module, a .wasm file.
    file: String,
    /// The policy's own configuration. A module for proxy-wasm or http-wasm gets a table as JSON, and may have plain
    /// text too.
    #[serde(default = "config")]
    #[schemars(extend("type" = ["object", "string"]))]
    config: Value,
    /// Memory per instance, at most 256MiB.
    #[serde(default = "memory")]
    #[schemars(extend("default" = "16MiB"))]
    memory: Size,
    /// CPU per call of a hook, at most 1s; counted by the millisecond. Modules for proxy-wasm, which hold their
    /// worker while they run, have 1ms unless this says more.
    #[serde(default)]
    #[schemars(extend("default" = "5ms"))]
    cpu: Option<Span>,
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
    /// What the policy may use beside its exchange. Default: nothing.
    #[serde(default)]
    grants: Grants,
    /// What only modules for proxy-wasm have, the ABI of Envoy's filters; docs/proxy-wasm.md tells how they run.
    #[serde(default)]
    proxy_wasm: Options,
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

fn config() -> Value {
    Map::new().into()
}

fn body_limit() -> Size {
    Size::mib(1)
}

/// What a module that is no policy of ours gets as its configuration.
fn text(config: &Config) -> Result<String, BuildError> {
    match &config.config {
        Value::String(text) => Ok(text.clone()),
        Value::Object(table) if table.is_empty() => Ok(String::new()),
        Value::Object(_) => Ok(config.config.to_string()),
        _ => Err(BuildError::at("config", "neither a table nor text")),
    }
}

/// One of the two ways that an exchange's messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Request,
    Response,
}

/// A loaded module, of whichever kind its file says.
pub struct Module(Box<dyn Plugin>);

impl PluginType for Module {
    const KIND: &'static str = "wasm";
    const SUMMARY: &'static str = "runs a policy compiled to WebAssembly in a sandbox";
    const EXAMPLE: &'static str = "- wasm:\n    file: policies/block-path.wasm\n    config: { prefixes: [/internal] }\n    memory: 16MiB\n    cpu: 5ms\n";

    type Config = Config;

    fn build(config: Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        check_memory(&config)?;
        check_cpu(&config)?;
        let source = context.file("file", &config.file)?;
        check_digest(config.digest.as_deref(), &source.bytes)?;
        let engines = context.shared_by_kind(Engines::new);
        let engines = Result::as_ref(&engines)
            .map_err(|error| BuildError::at("", format!("no engine for Wasm can be had: {error:#}")))?;
        let bytes = &source.bytes;
        let foreign = proxy_wasm::version(bytes).is_some() || http_wasm::is_handler(bytes);
        if foreign && config.grants != Grants::default() {
            let help = "what a module for proxy-wasm may call stands in `proxy_wasm`";
            return Err(BuildError::at("grants", "a module for proxy-wasm or http-wasm has none").help(help));
        }
        Ok(Module(match proxy_wasm::version(bytes) {
            Some(version) => Box::new(Filter::build(&config, &version, bytes, engines, context)?),
            None if http_wasm::is_handler(bytes) => {
                Box::new(Handler::build(&config, bytes, engines, context)?)
            }
            None => Box::new(Policy::build(&config, bytes, engines, context)?),
        }))
    }
}

fn check_memory(config: &Config) -> Result<(), BuildError> {
    if config.memory > MAX_MEMORY {
        return Err(BuildError::at("memory", format!("more than {MAX_MEMORY}")));
    }
    Ok(())
}

/// CPU per call in ticks, if the configuration says it.
fn check_cpu(config: &Config) -> Result<Option<u32>, BuildError> {
    let Some(cpu) = config.cpu else { return Ok(None) };
    let ticks = cpu.0.as_millis();
    if cpu > MAX_CPU || ticks == 0 || cpu != Span::millis(ticks as u64) {
        return Err(BuildError::at("cpu", format!("not 1ms to {MAX_CPU}, by the millisecond")));
    }
    Ok(Some(ticks as u32))
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

impl Plugin for Module {
    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn budget(&self) -> Used {
        self.0.budget()
    }

    fn on_connection(&self, connection: &Connection) -> Result<Admission, PluginError> {
        self.0.on_connection(connection)
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.0.on_request(exchange)
    }

    fn wants_request_body(&self, exchange: &Exchange) -> bool {
        self.0.wants_request_body(exchange)
    }

    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.0.on_request_body(exchange)
    }

    fn request_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        self.0.request_body_filter(exchange)
    }

    fn on_upstream<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.0.on_upstream(exchange)
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.0.on_response(exchange)
    }

    fn wants_response_body(&self, exchange: &Exchange) -> bool {
        self.0.wants_response_body(exchange)
    }

    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.0.on_response_body(exchange)
    }

    fn response_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        self.0.response_body_filter(exchange)
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.0.on_log(exchange)
    }
}

#[cfg(test)]
mod tests;
