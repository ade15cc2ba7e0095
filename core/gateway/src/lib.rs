//! The portcullis gateway: command line, telemetry and admin.
//!
//! The only crate that sees everything: it hands the plugin kinds to the control plane, and the control plane
//! to the data plane. [`cli::main`] is the whole program; `run` is the life of a gateway.

mod admin;
pub mod cli;
mod demo;
mod kinds;
mod notify;
mod pid_file;
mod places;
mod process;
mod quickstart;
mod run;
mod say;
mod server;
mod sinks;
mod sockets;
mod telemetry;
mod upgrade;
