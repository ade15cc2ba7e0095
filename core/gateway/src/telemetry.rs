//! The execution log: what the gateway itself does, apart from the access log of what passes through it.
//!
//! Written to standard error as text or JSON; the level comes from the configuration, or from
//! `PORTCULLIS_LOG` in the form of `tracing`'s directives (`debug`, `info,portcullis::reload=debug`).

use std::io::{self, Write};
use std::sync::Arc;

use portcullis_config::{Log, LogFormat, LogLevel};
use portcullis_plugin::LogSink;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::say;
use crate::sinks::{Sink, Sinks};

/// Overrides the level.
pub(crate) const VARIABLE: &str = "PORTCULLIS_LOG";

/// Starts the execution log, for the life of the process.
pub(crate) fn start(log: Log, sinks: &Sinks) -> Result<(), String> {
    let sink = sinks.execution().map_err(|error| format!("the execution log can't be started: {error}"))?;
    let directives = std::env::var(VARIABLE).ok();
    let filter = filter(log.level, directives.as_deref())?;
    let text = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(say::remark_color())
        .with_writer(Lines(sink));
    let started = match log.format {
        LogFormat::Text => text.finish().try_init(),
        LogFormat::Json => {
            text.json().flatten_event(true).with_current_span(false).with_span_list(false).finish().try_init()
        }
    };
    started.map_err(|error| format!("the execution log can't be started: {error}"))
}

/// The configured level for the gateway itself; libraries speak only when something is wrong.
fn filter(level: LogLevel, directives: Option<&str>) -> Result<EnvFilter, String> {
    let own = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let others = if level == LogLevel::Error { "error" } else { "warn" };
    let directives = match directives {
        Some(directives) if !directives.trim().is_empty() => directives.to_owned(),
        _ => format!("{others},portcullis={own}"),
    };
    EnvFilter::try_new(&directives)
        .map_err(|error| format!("{VARIABLE} `{directives}` is not understood: {error}"))
}

/// Hands each formatted event to the sink as one line.
struct Lines(Arc<Sink>);

struct Line<'a>(&'a Sink);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_applies_to_the_gateway_and_libraries_stay_quiet() {
        let filter = filter(LogLevel::Debug, None).unwrap().to_string();
        assert!(filter.contains("portcullis=debug") && filter.contains("warn"), "{filter}");
    }

    #[test]
    fn the_environment_wins_unless_it_is_empty() {
        assert_eq!(filter(LogLevel::Info, Some("trace")).unwrap().to_string(), "trace");
        assert!(filter(LogLevel::Info, Some(" ")).unwrap().to_string().contains("portcullis=info"));
    }

    #[test]
    fn nonsense_in_the_environment_is_named() {
        let error = filter(LogLevel::Info, Some("portcullis=loud")).unwrap_err();
        assert!(error.starts_with("PORTCULLIS_LOG `portcullis=loud` is not understood"), "{error}");
    }
}
