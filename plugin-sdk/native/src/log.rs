//! Sinks for log lines that must never block traffic.

use std::sync::Arc;

/// Takes whole lines. `write` returns at once: what the sink can't take is dropped and counted.
pub trait LogSink: Send + Sync {
    /// Takes `line`, which ends with a line end.
    fn write(&self, line: &[u8]);
}

/// Where log files and standard output are opened; the same target is opened once for all.
pub trait LogSinks: Send + Sync {
    /// The sink for `target`: `stdout`, `stderr`, or a file's path.
    fn open(&self, target: &str) -> Result<Arc<dyn LogSink>, String>;
}
