//! Configuration files into typed values that remember where they stand.
//!
//! [`load`] reads YAML into a tree of [`Node`]s, of which every value and key knows its place; the tree is read
//! into [`Config`], and what is wrong comes back as [`Diagnostics`], all of it at once. This crate knows no
//! plugin: a plugin's table stays a [`Node`], which whoever builds the plugin reads with [`Node::reader`].

mod blank;
mod ceiling;
mod check;
mod config;
mod de;
mod diagnostics;
mod error;
mod forms;
mod interpolate;
mod listen;
mod load;
mod node;
mod on_error;
mod rates;
mod read;
mod reader;
mod reload;
mod resilience;
mod schema;
mod store;
mod suite;
mod traffic;
mod upstreams;
mod values;
mod yaml;

pub use ceiling::{CacheCeiling, Ceiling, HttpCeiling};
pub use config::{
    Action, Admin, AdminOptions, Alpn, Certificate, ChainEntry, ClientAuth, ClientAuthMode, Config, Http2,
    InstanceOptions, Limits, Listener, Log, LogFormat, LogLevel, Match, Mode, PluginEntry, Policies,
    Predicate, Proxies, Records, RecordsFile, Redirect, RedirectHttps, RedirectStatus, Respond, Rewrite,
    Route, SideFile, Status, Tls, TlsPolicy, TlsVersion,
};
pub use de::NodeDeserializer;
pub use diagnostics::{Diagnostic, Diagnostics, Severity, Source, Span};
pub use error::{NodeError, Raised, nearest};
pub use listen::{FileMode, ListenAddress, ListenerLimits};
pub use load::{Loaded, load, parse, parse_partly, parse_side_file, parse_table, read_text};
pub use node::{Key, Node, Scalar, Value, join};
pub use on_error::{Meanwhile, OnError, Quarantine};
pub use rates::{MinRate, Rate};
pub use read::INSTANCE_OPTIONS;
pub use reader::Reader;
pub use reload::{Reload, Replay, TestGate};
pub use resilience::{Adaptive, Breaker, Deadline, Hedge, HedgeAfter};
pub use schema::schema;
pub use store::{Redis, RedisUrl, SecretName, Store, StoreFile, StoreRedis, Trust};
pub use suite::{
    Answer, Asked, Budget, Case, Expect, Given, GivenPrincipal, LoadedSuite, SUITE_ENDING, Sent, Step, Suite,
    Verdict, parse_suite, suite_schema,
};
pub use traffic::{Arm, Mirror, Split, SplitBy, Target, When};
pub use upstreams::{
    Balance, Dns, Eject, Endpoint, EndpointAddress, HashBy, Health, HostHeader, HttpVersion, ProxyProtocol,
    Retries, RetryBudget, RetryOn, Scheme, Sticky, Timeouts, Upstream, UpstreamTls,
};
pub use values::{
    Address, ByteSize, Duration, HeaderName, HostName, HostPattern, Method, Moment, Network, PathPrefix,
    PathTemplate, Pattern, Percent, Protocol, RequestTarget, SizeLimit,
};
