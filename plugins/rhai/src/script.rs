//! The plugin type: a script with its configuration.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use http::StatusCode;
use portcullis_plugin::{
    Admission, BodyWish, BuildContext, BuildError, Capabilities, Connection, Counter, Decision, ErrorKind,
    Exchange, Grants, Hook, HookName, Needs, Offload, Plugin, PluginError, PluginType, Reply, Size, Used,
};
use rhai::{Dynamic, Position};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::call;
use crate::error::{self, Fault};
use crate::host::{Conn, Context};
use crate::limits::Limits;
use crate::load::{self, Program};
use crate::verdict::{Placed, decision};
use crate::waiting::Waiting;

/// A Rhai script as a plugin.
///
/// ```yaml
/// - rhai:
///     file: scripts/require-header.rhai
///     config: { prefix: /admin, header: x-admin-key, value: open-sesame }
/// ```
pub struct Script {
    policy: Arc<Policy>,
    needs: Needs,
    /// None if nothing is granted that it could wait for: it runs where it is called.
    waits: Option<Waits>,
}

/// What a call needs, wherever it runs.
struct Policy {
    program: Program,
    limits: Limits,
}

/// How a script runs that may wait.
struct Waits {
    threads: Offload,
    exhausted: Counter,
}

/// The table of a script.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The script, relative to the configuration.
    file: String,
    /// Anything the script wants to be told; it reads it as the constant `config`.
    #[serde(default)]
    config: Map<String, Value>,
    /// What it may use beside its exchange. Default: nothing.
    #[serde(default)]
    grants: Grants,
    /// What one call of a hook may use up.
    #[serde(default)]
    limits: Limits,
    /// Largest body for `on_request_body` and `on_response_body`; a longer one is refused. Default:
    /// `1MiB`.
    #[serde(default = "body_limit")]
    body_limit: Size,
}

fn body_limit() -> Size {
    Size::kib(1024)
}

impl PluginType for Script {
    const KIND: &'static str = "rhai";
    const SUMMARY: &'static str = "a policy of your own, written in Rhai";
    const EXAMPLE: &'static str = "- rhai: { file: scripts/hello.rhai }";

    type Config = Table;

    fn build(table: Table, context: &mut BuildContext<'_>) -> Result<Self, BuildError> {
        table.limits.check()?;
        let granted = Arc::new(Capabilities::build(&table.grants, context)?);
        let program = load::load(&table.file, &table.config, &table.limits, &granted, context)?;
        let needs = program.hooks.iter().fold(Needs::default(), |needs, (hook, _)| match hook {
            HookName::OnRequestBody => needs.request_body(BodyWish::Whole { limit: table.body_limit.0 }),
            HookName::OnResponseBody => needs.response_body(BodyWish::Whole { limit: table.body_limit.0 }),
            hook => needs.and(*hook),
        });
        let waits = granted.may_wait().then(|| Waits {
            threads: context.script_threads(),
            exhausted: context
                .counter("pool_exhausted", "times that no thread was left for a script that may wait"),
        });
        Ok(Script { policy: Arc::new(Policy { program, limits: table.limits }), needs, waits })
    }
}

impl Script {
    fn hook<'a>(&'a self, hook: HookName, exchange: &'a mut Exchange) -> Hook<'a> {
        if let Some(waits) = &self.waits {
            return Hook::Wait(Box::pin(self.elsewhere(waits, hook, exchange)));
        }
        let policy = &self.policy;
        let result = policy.guarded(hook, || {
            call::with_lent(exchange, &policy.limits, |call| policy.call(hook, Dynamic::from(Context(call))))
        });
        Hook::Ready(policy.settle(exchange, result, call::used()))
    }

    /// Runs a hook on a thread on which it may wait.
    async fn elsewhere(
        &self,
        waits: &Waits,
        hook: HookName,
        exchange: &mut Exchange,
    ) -> Result<Decision, PluginError> {
        let policy = self.policy.clone();
        let script = move |desk| {
            let result = policy.guarded(hook, || {
                call::with_desk(desk, &policy.limits, |call| policy.call(hook, Dynamic::from(Context(call))))
            });
            (result, call::used())
        };
        match Waiting::new(exchange, &waits.threads, script).await {
            Ok((result, used)) => self.policy.settle(exchange, result, used),
            // A refusal and no error, since `on_error: allow` must not let pass what a flood brings.
            Err(error) if error.kind() == ErrorKind::Budget => {
                waits.exhausted.increment();
                let reply = Reply::deny(StatusCode::SERVICE_UNAVAILABLE, "rhai.pool_exhausted");
                Ok(Decision::Respond(Box::new(reply)))
            }
            Err(error) => Err(error),
        }
    }
}

impl Policy {
    /// Calls the script; a panic of the host's functions is its error.
    fn guarded(
        &self,
        hook: HookName,
        call: impl FnOnce() -> Result<Placed, PluginError>,
    ) -> Result<Placed, PluginError> {
        catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(self.panicked(hook)))
    }

    /// Notes with the exchange what a call came to.
    fn settle(
        &self,
        exchange: &mut Exchange,
        result: Result<Placed, PluginError>,
        operations: u64,
    ) -> Result<Decision, PluginError> {
        exchange.set_used(Used { operations, ..Used::default() });
        let (decision, place) = result?;
        if let Some((file, position)) = place {
            let place = error::place(file.as_deref().unwrap_or(&self.program.file), position);
            let named = exchange.rule().map(|rule| format!("{rule} ({place})"));
            exchange.rests_on(&named.unwrap_or(place));
        }
        Ok(decision)
    }

    /// What a hook decided, and where.
    fn call(&self, hook: HookName, argument: Dynamic) -> Result<Placed, PluginError> {
        let Program { file, .. } = &self.program;
        self.program
            .call(hook.as_str(), argument)
            .map_err(|error| Fault::new(*error, &self.limits).into_plugin_error(file, hook, self.start(hook)))
            .and_then(|result| {
                decision(result).map_err(|message| self.fault(ErrorKind::Trap, hook, &message))
            })
    }

    fn panicked(&self, hook: HookName) -> PluginError {
        self.fault(ErrorKind::Panic, hook, "a function of the host panicked")
    }

    /// A failure that has no place within the hook.
    fn fault(&self, kind: ErrorKind, hook: HookName, message: &str) -> PluginError {
        error::failure(kind, &self.program.file, hook, self.start(hook), message)
    }

    /// Where the hook's function stands.
    fn start(&self, hook: HookName) -> Position {
        let mut hooks = self.program.hooks.iter();
        hooks.find(|(known, _)| *known == hook).map_or(Position::NONE, |(_, position)| *position)
    }
}

impl Plugin for Script {
    fn needs(&self) -> Needs {
        self.needs
    }

    fn budget(&self) -> Used {
        Used { operations: self.policy.limits.operations, ..Used::default() }
    }

    fn on_connection(&self, connection: &Connection) -> Result<Admission, PluginError> {
        let conn = Dynamic::from(Conn(connection.clone()));
        let (policy, hook) = (&self.policy, HookName::OnConnection);
        let result = policy.guarded(hook, || call::metered(&policy.limits, || policy.call(hook, conn)));
        match result?.0 {
            Decision::Continue => Ok(Admission::Accept),
            Decision::Drop => Ok(Admission::Drop),
            Decision::Respond(_) => Err(policy.fault(
                ErrorKind::Trap,
                hook,
                "there is nobody to answer to yet: return drop(), or nothing to accept",
            )),
        }
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(HookName::OnRequest, exchange)
    }

    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(HookName::OnRequestBody, exchange)
    }

    fn on_upstream<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(HookName::OnUpstream, exchange)
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(HookName::OnResponse, exchange)
    }

    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(HookName::OnResponseBody, exchange)
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.hook(HookName::OnLog, exchange)
    }
}
