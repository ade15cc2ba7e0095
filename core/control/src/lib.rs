//! The control plane: files on disk become a generation, and the generation is put into effect.
//!
//! [`Control`] watches everything that a generation was built from. On a change it builds a whole
//! new generation off the data plane and swaps it in at once; on any error the old one stays, and
//! [`Status`] says why until a reload succeeds. What was accepted is kept ([`LastGood`]) for a start
//! that finds broken inputs. [`check`] does the same without running anything, [`Rehearsal`] without anybody to see it.

mod artifacts;
mod build;
mod control;
mod dns;
mod gate;
mod health;
mod host;
mod inputs;
mod last_good;
mod offload;
mod policies;
mod private;
mod registry;
mod rehearsal;
mod reload;
mod replay;
mod resolver;
mod state;
mod status;
mod store;
mod suite;
#[cfg(test)]
mod testing;
mod trust;
mod watch;

pub use build::listen_address;
pub use control::{CheckSummary, Control, Options, check};
pub use last_good::LastGood;
pub use registry::Registry;
pub use rehearsal::{Asked, Rehearsal, Told, Untold};
pub use reload::{ReloadOutcome, Trigger};
pub use replay::{Ending, Flip, Replayed, replay, samples};
pub use status::{
    AddressStatus, CircuitStatus, DnsStatus, Endpoints, LastError, LimitStatus, ListenerStatus, PluginStatus,
    QuarantineStatus, ReloadCounts, Status, UpstreamStatus, utc,
};
pub use suite::{CaseRun, Mismatch, RunOn, SuiteRun, Tester};
pub use watch::Watch;
