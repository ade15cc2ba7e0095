//! The plugin type: a script with its configuration.

use std::panic::{AssertUnwindSafe, catch_unwind};

use portcullis_plugin::{
    Admission, BodyWish, BuildContext, BuildError, Connection, Decision, ErrorKind, Exchange, Hook, HookName,
    Needs, Plugin, PluginError, PluginType, Size, Used,
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

/// A Rhai script as a plugin.
///
/// ```yaml
/// - rhai:
///     file: scripts/require-header.rhai
///     config: { prefix: /admin, header: x-admin-key, value: open-sesame }
/// ```
pub struct Script {
    program: Program,
    needs: Needs,
    limits: Limits,
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
        let program = load::load(&table.file, &table.config, &table.limits, context)?;
        let needs = program.hooks.iter().fold(Needs::default(), |needs, (hook, _)| match hook {
            HookName::OnRequestBody => needs.request_body(BodyWish::Whole { limit: table.body_limit.0 }),
            HookName::OnResponseBody => needs.response_body(BodyWish::Whole { limit: table.body_limit.0 }),
            hook => needs.and(*hook),
        });
        Ok(Script { program, needs, limits: table.limits })
    }
}

impl Script {
    fn hook(&self, hook: HookName, exchange: &mut Exchange) -> Hook<'_> {
        let result = catch_unwind(AssertUnwindSafe(|| {
            call::with_lent(exchange, &self.limits, |call| self.call(hook, Dynamic::from(Context(call))))
        }));
        exchange.set_used(Used { operations: call::used(), ..Used::default() });
        let result = result.unwrap_or_else(|_| Err(self.panicked(hook)));
        Hook::Ready(result.map(|(decision, place)| {
            if let Some((file, position)) = place {
                let place = error::place(file.as_deref().unwrap_or(&self.program.file), position);
                let named = exchange.rule().map(|rule| format!("{rule} ({place})"));
                exchange.rests_on(&named.unwrap_or(place));
            }
            decision
        }))
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
        Used { operations: self.limits.operations, ..Used::default() }
    }

    fn on_connection(&self, connection: &Connection) -> Result<Admission, PluginError> {
        let conn = Dynamic::from(Conn(connection.clone()));
        let result = catch_unwind(AssertUnwindSafe(|| {
            call::metered(&self.limits, || self.call(HookName::OnConnection, conn))
        }));
        match result.unwrap_or_else(|_| Err(self.panicked(HookName::OnConnection)))?.0 {
            Decision::Continue => Ok(Admission::Accept),
            Decision::Drop => Ok(Admission::Drop),
            Decision::Respond(_) => Err(self.fault(
                ErrorKind::Trap,
                HookName::OnConnection,
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
