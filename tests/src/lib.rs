//! Harness of the suites in `tests/`, which drive the gateway from outside.
//!
//! A [`Setup`] is a configuration with its files; started, it is a [`Gateway`]: the real program, in a
//! process of its own, with ports that the system chose. Behind it stands an [`Origin`], in front of it
//! an [`Http`] connection or one of the [`tools`] that users have. Nothing here waits for a time to pass:
//! [`until`] polls for a condition and fails after [`PATIENCE`].

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on ends, and says why")]

mod client;
pub mod corpus;
mod dns;
mod gateway;
mod http2;
pub mod keys;
mod load;
mod oidc;
mod origin;
mod origins;
mod peer;
mod recorder;
mod redis;
pub mod reference;
mod server;
pub mod tools;
mod wait;

use std::path::{Path, PathBuf};

pub use client::{Answer, Http, Request, request};
pub use dns::{Dns, Record};
pub use gateway::{Ended, Gateway, Output, Setup, program, run, run_in};
pub use http2::{Frame, Http2};
pub use load::{Load, Stop, Timetable};
pub use oidc::Oidc;
pub use origin::Origin;
pub use origins::{Foreign, Logged};
pub use peer::{Peer, Raw};
pub use recorder::Recorder;
pub use redis::Redis;
pub use server::{nobody, server};
pub use wait::{PATIENCE, until, wait_for, wait_until};

/// The root of the checkout.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The crate's own directory, with the cases in it.
pub fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
