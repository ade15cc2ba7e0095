//! What the program says to the person who started it.
//!
//! The one place that writes to the terminal directly: results of commands to standard output, remarks and
//! errors to standard error. What happens to the running gateway goes to the execution log instead. A reader
//! that went away (`portcullis schema | head`) is no error.

use std::io::{self, IsTerminal, Write};

/// Writes a result to standard output, ending in a newline.
pub(crate) fn result(text: &str) {
    write(io::stdout().lock(), text);
}

/// Writes a remark or an error to standard error, ending in a newline.
pub(crate) fn remark(text: &str) {
    write(io::stderr().lock(), text);
}

/// Whether remarks may be coloured. Nobody who set `NO_COLOR` wants any: see no-color.org.
pub(crate) fn remark_color() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stderr().is_terminal() && !unwanted
}

/// The same of results.
pub(crate) fn result_color() -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !unwanted
}

fn write(mut to: impl Write, text: &str) {
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let _ =
        to.write_all(text.as_bytes()).and_then(|()| to.write_all(end.as_bytes())).and_then(|()| to.flush());
}
