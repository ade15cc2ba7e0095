//! The contract between the gateway and its plugins, whatever they are written in.
//!
//! A plugin is a [`Plugin`]: it says once, at load, what it [`Needs`], and is then called at those
//! [hooks](HookName) with the [`Exchange`], one request with its response. It answers with a
//! [`Decision`], at once if it can ([`Hook::Ready`]) or after a wait ([`Hook::Wait`]).
//! A built-in plugin is a [`PluginType`] listed as a [`Registration`]; the script and Wasm runtimes
//! are plugin types like any other. [`PluginTester`] runs a plugin without a gateway.
//!
//! This crate knows no executor, no HTTP implementation and no configuration format.

mod body;
mod build;
mod capabilities;
mod ceiling;
mod clock;
mod connection;
mod coverage;
mod exchange;
mod grants;
mod hook;
mod journal;
mod log;
mod message;
mod metrics;
mod offload;
mod outbound;
pub mod path;
mod plugin;
mod principal;
mod rate;
mod reply;
mod secret;
mod store;
mod tasks;
mod tester;
mod units;

pub use body::{BodyFilter, Filtered};
pub use build::{
    ArtifactStore, BuildContext, BuildError, BuildHost, BuildWarning, Cache, Instance, Slot, SourceFile,
    SourcePosition, StateKey,
};
pub use capabilities::{
    Capabilities, Counts, Denied, Http, Limits, MAX_KEY, MAX_RANDOM, MAX_SENT, MAX_VALUE, PolicyCache, Taken,
};
pub use ceiling::Ceiling;
pub use clock::{Clock, thread_time};
pub use connection::{Admission, Connection, TlsSession};
pub use coverage::Coverage;
pub use exchange::{Attempt, End, Exchange, Outcome, Parts, RequestId, RouteMeta};
pub use grants::{CacheGrant, Grants, HttpGrant, LimitGrant};
pub use hook::{BodyWish, Decision, ErrorKind, Hook, HookFuture, HookName, Needs, PluginError};
pub use journal::{Change, ChangeKind, Cursor, Decider, Note, Part, Step, Used, Verdict};
pub use log::{LogSink, LogSinks};
pub use message::{HeadMut, Request, RequestMut, Response, ResponseMut};
pub use metrics::{
    Counter, CounterReading, Counters, Gauge, GaugeReading, InstanceCounters, MAX_SERIES, Tally,
};
pub use offload::{CpuPool, Job, Offload, Offloaded, Work};
pub use outbound::{Outbound, OutboundError, OutboundFuture, OutboundLimits, Trailers};
pub use plugin::{Build, BuildFailure, Plugin, PluginType, Registration};
pub use principal::Principal;
pub use rate::{Limit, MAX_TAKES, RateTable, Rates, Standing, Take, TokenBucket};
pub use reply::{Content, Reason, Reply};
pub use secret::{Secret, SecretRef};
pub use store::{
    Keyspace, MAX_STORE_KEY, MAX_STORE_LIFETIME, MAX_STORE_VALUE, MemoryStore, Store, StoreError,
    StoreFuture, counted,
};
pub use tasks::{Task, Tasks};
pub use tester::{ExchangeBuilder, PluginTester, TestedPlugin, block_on};
pub use units::{Rate, Size, Span};
