//! What a call of a script may use up.

use portcullis_plugin::{BuildError, Size, Span};
use schemars::JsonSchema;
use serde::Deserialize;

/// Nesting of expressions and blocks within one function. Together with [`MAX_DEPTH`] it bounds the
/// native stack that a script can use; a test runs the deepest script on a 2 MiB stack.
pub(crate) const EXPRESSION_DEPTH: usize = 48;

/// The deepest recursion that a configuration may allow.
pub(crate) const MAX_DEPTH: usize = 32;

/// Most elements in an array or a map that a configuration may allow. Elements of elements count, so
/// this bounds nesting too, and with it the stack that destroying a value takes.
pub(crate) const MAX_ELEMENTS: usize = 2048;

/// Variables that are alive at once.
pub(crate) const VARIABLES: usize = 256;

/// Lines that a call may log; further ones are dropped.
pub(crate) const LOG_LINES: u32 = 16;

/// Bytes of a logged line; the rest is cut off.
pub(crate) const LOG_LINE: usize = 1024;

/// What one call of a hook may use up. At the limit the call ends with an error, and `on_error` of
/// the plugin says what becomes of the request.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Operations: steps of the interpreter, and the bytes that the host's functions work on. The
    /// default is worth at most half a millisecond.
    pub operations: u64,
    /// Functions that call each other, 32 at most.
    pub depth: usize,
    /// Length of a string. Default: `1MiB`.
    pub string: Size,
    /// Elements of an array, with those of arrays within it, 2048 at most.
    pub array: usize,
    /// Properties of a map, with those of maps within it, 2048 at most. One that grows by
    /// `map[key] = value` is bounded by `operations`.
    pub map: usize,
    /// Time that the call runs. Default: `10ms`.
    pub time: Span,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            operations: 10_000,
            depth: 16,
            string: Size::kib(1024),
            array: MAX_ELEMENTS,
            map: MAX_ELEMENTS,
            // A net below `operations` for single operations that are slow, wide enough that a
            // preempted worker does not fall into it.
            time: Span::millis(10),
        }
    }
}

impl Limits {
    /// Refuses limits under which the sandbox would not hold.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let within = |name: &str, value: usize, most: usize| match value {
            0 => Err(BuildError::at(format!("limits.{name}"), "zero would leave nothing to work with")),
            value if value > most => Err(BuildError::at(format!("limits.{name}"), format!("at most {most}"))),
            _ => Ok(()),
        };
        within("operations", usize::try_from(self.operations).unwrap_or(usize::MAX), usize::MAX)?;
        within("depth", self.depth, MAX_DEPTH)?;
        within("string", self.string.0, usize::MAX)?;
        within("array", self.array, MAX_ELEMENTS)?;
        within("map", self.map, MAX_ELEMENTS)?;
        within("time", usize::from(!self.time.0.is_zero()), 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn limits_that_would_not_protect_are_refused_by_name() {
        assert!(Limits::default().check().is_ok());
        for (table, path) in [
            (json!({ "depth": 33 }), "limits.depth"),
            (json!({ "array": 5000 }), "limits.array"),
            (json!({ "operations": 0 }), "limits.operations"),
            (json!({ "time": "0ms" }), "limits.time"),
        ] {
            let limits: Limits = from_value(table).unwrap();
            assert_eq!(limits.check().unwrap_err().path, path);
        }
    }
}
