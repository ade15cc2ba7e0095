//! What a plugin is.

use std::sync::Arc;

use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::de::DeserializeOwned;

use crate::body::BodyFilter;
use crate::build::{BuildContext, BuildError};
use crate::connection::{Admission, Connection};
use crate::exchange::Exchange;
use crate::hook::{Hook, Needs, PluginError};
use crate::journal::Used;

/// A configured plugin instance. One value serves every worker at once, so what changes inside it
/// is synchronised or sits in a [slot](crate::Slot) of the exchange.
///
/// Every hook has a default that does nothing, and is called only if [`needs`](Self::needs) asked
/// for it. Hooks of one exchange never run at the same time.
pub trait Plugin: Send + Sync {
    /// What the plugin wants; read once, at load.
    fn needs(&self) -> Needs;

    /// What one call of a sandbox may use up, in the terms of what it [says](Exchange::set_used) that it used; read once,
    /// at load. What is 0 has no limit. Default: no limits.
    fn budget(&self) -> Used {
        Used::default()
    }

    /// A client connected. Runs before TLS, for plugins in a listener's list or the gateway's; it
    /// must not wait. Default: accept.
    fn on_connection(&self, connection: &Connection) -> Result<Admission, PluginError> {
        let _ = connection;
        Ok(Admission::Accept)
    }

    /// The request's head is read and the route chosen. May change the request, answer it or drop
    /// it. Runs in the order of the configuration.
    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let _ = exchange;
        Hook::CONTINUE
    }

    /// Whether this request's body is needed whole after all, for
    /// [`BodyWish::Whole`](crate::BodyWish::Whole); asked once the request hooks have run. If nobody
    /// needs it, it streams past. Default: yes.
    fn wants_request_body(&self, exchange: &Exchange) -> bool {
        let _ = exchange;
        true
    }

    /// The whole request body is in [`Exchange::request_body`]; nothing has been sent upstream.
    /// Runs for everybody with the wish as soon as one plugin of the chain needs the body.
    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let _ = exchange;
        Hook::CONTINUE
    }

    /// A filter for this request's body, for [`BodyWish::Stream`](crate::BodyWish::Stream), and for
    /// [`BodyWish::Whole`](crate::BodyWish::Whole) if nobody needed it whole; none to let it pass.
    fn request_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        let _ = exchange;
        None
    }

    /// An attempt is about to be sent: [`Exchange::attempt`] tells to where,
    /// [`Exchange::outgoing_mut`] changes what is sent, for this attempt only. May answer instead.
    fn on_upstream<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let _ = exchange;
        Hook::CONTINUE
    }

    /// The response's head is there. May change or replace it. Runs in reverse order, for every
    /// plugin that was entered.
    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let _ = exchange;
        Hook::CONTINUE
    }

    /// Whether this response's body is needed whole after all, for
    /// [`BodyWish::Whole`](crate::BodyWish::Whole); asked once the response hooks have run. If nobody
    /// needs it, it streams past. Default: yes.
    fn wants_response_body(&self, exchange: &Exchange) -> bool {
        let _ = exchange;
        true
    }

    /// The whole response body is in [`Exchange::response_body`]; nothing has been sent to the
    /// client. Runs for everybody with the wish as soon as one plugin of the chain needs the body.
    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let _ = exchange;
        Hook::CONTINUE
    }

    /// The same for this response's body.
    fn response_body_filter(&self, exchange: &Exchange) -> Option<Box<dyn BodyFilter>> {
        let _ = exchange;
        None
    }

    /// The exchange is over and [`Exchange::outcome`] is set. Observes; whatever it returns changes
    /// nothing, an error is counted.
    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let _ = exchange;
        Hook::CONTINUE
    }
}

/// A kind of plugin: how its instances are configured and built.
pub trait PluginType: Plugin + Sized + 'static {
    /// The key in the configuration, e.g. `cors`.
    const KIND: &'static str;
    /// One line for `portcullis plugins`, lower case, no full stop.
    const SUMMARY: &'static str;
    /// A configuration that works, YAML, one plugin entry beginning with `- `; it is loaded by a test.
    const EXAMPLE: &'static str;
    /// Version of the layout of the state kept with [`BuildContext::shared`]; another one starts afresh.
    const STATE_SCHEMA: u32 = 0;

    /// The plugin's own table; refuses unknown fields. Its docs become the reference.
    type Config: DeserializeOwned + JsonSchema;

    /// Makes an instance, judging everything that can be judged at load. Never touches the network.
    fn build(config: Self::Config, context: &mut BuildContext<'_>) -> Result<Self, BuildError>;
}

/// Why there is no plugin.
#[derive(Debug)]
pub enum BuildFailure {
    /// The table does not have the plugin's shape; the deserialiser that was passed in knows where.
    Config(erased_serde::Error),
    /// The table's content can't be.
    Build(BuildError),
}

/// Builds an instance from its table.
pub type Build = fn(
    &mut dyn erased_serde::Deserializer<'_>,
    &mut BuildContext<'_>,
) -> Result<Arc<dyn Plugin>, BuildFailure>;

/// One row of the list of plugin kinds.
#[derive(Debug, Clone, Copy)]
pub struct Registration {
    /// [`PluginType::KIND`].
    pub kind: &'static str,
    /// [`PluginType::SUMMARY`].
    pub summary: &'static str,
    /// [`PluginType::EXAMPLE`].
    pub example: &'static str,
    /// [`PluginType::STATE_SCHEMA`].
    pub state_schema: u32,
    /// Builds an instance.
    pub build: Build,
    /// JSON Schema (2020-12) of the plugin's table.
    pub schema: fn() -> Schema,
}

impl Registration {
    /// The row of plugin type `T`.
    pub const fn of<T: PluginType>() -> Self {
        Registration {
            kind: T::KIND,
            summary: T::SUMMARY,
            example: T::EXAMPLE,
            state_schema: T::STATE_SCHEMA,
            build: |table, context| {
                let config = erased_serde::deserialize::<T::Config>(table).map_err(BuildFailure::Config)?;
                T::build(config, context).map(|plugin| Arc::new(plugin) as _).map_err(BuildFailure::Build)
            },
            schema: || SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T::Config>(),
        }
    }
}
