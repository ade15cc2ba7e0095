//! Rhai scripts as plugins.
//!
//! A script's functions are its hooks: `fn on_request(ctx) { .. }` runs when a request's head is
//! read. [`Script`] is a plugin type like any other. At load a script is parsed, its imports are read
//! and its constants evaluated ([`load`]); a request then only calls a compiled function with a fresh
//! scope. During the call the exchange lies in a cell of the calling thread ([`call`]), through which
//! the host's functions ([`host`]) reach it, and every operation is counted against the script's
//! [`limits`]. A script that is granted what it may have to wait for runs on another thread ([`waiting`]).

mod call;
mod callees;
mod coverage;
mod docs;
mod engine;
mod error;
mod host;
mod limits;
mod load;
mod script;
mod value;
mod verdict;
mod waiting;

pub use docs::{definitions, reference};
pub use limits::Limits;
pub use script::{Script, Table};

/// A script to start from: what `portcullis new script` writes.
pub const SCAFFOLD: &str = include_str!("scaffold.rhai");

/// Its tests.
pub const SCAFFOLD_TESTS: &str = include_str!("scaffold.test.yaml");

#[cfg(test)]
mod tests;
