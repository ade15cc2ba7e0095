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

    /// The sink for a file that has, with the one before it (`.1`), at most so many bytes. Default: one without a bound.
    fn open_bounded(&self, path: &str, most: u64) -> Result<Arc<dyn LogSink>, String> {
        let _ = most;
        self.open(path)
    }
}
