//! The data plane: accept, TLS, HTTP, exchange, chains, routes and upstreams.
//!
//! A socket is accepted by one of the [workers](DataPlane) and stays with it. [`client`] serves the
//! connection, [`exchange`] tells the life of each request on it. What a request needs to know is in
//! a [`Generation`](generation::Generation), which the control plane builds and swaps.

mod admit;
mod attempt;
pub mod body;
mod budget;
pub mod chain;
mod client;
mod exchange;
mod forwarded;
pub mod generation;
mod grpc;
mod head;
mod hops;
mod http1;
mod http2;
mod linger;
mod live;
mod logs;
pub mod metrics;
pub mod mirror;
mod pace;
pub mod proxy_protocol;
pub mod quarantine;
pub mod record;
mod reply;
pub mod routes;
pub mod sample;
pub mod shadow;
mod socket;
pub mod split;
mod tasks;
mod timer;
pub mod tls;
mod tunnel;
pub mod upstream;
mod worker;

pub use admit::Gate;
pub use socket::{Address, Listening};
pub use tasks::WorkerTasks;
pub use worker::{BindError, Bound, DataPlane, Sockets};

/// What has to hold for whatever bytes come: see `tests/fuzz`.
#[cfg(any(test, fuzzing))]
pub mod fuzz {
    pub use crate::forwarded::fuzz::forwarded;
    pub use crate::http1::fuzz::{chunked, request, response};
    pub use crate::http2::fuzz::{downgrade, frames};
}
