//! Errors of scripts, with the place in the file first.

use std::path::Path;
use std::sync::Arc;

use portcullis_plugin::{BuildError, ErrorKind, PluginError, SourcePosition};
use rhai::{EvalAltResult, ParseError, ParseErrorType, Position};

use crate::call::TIME;
use crate::limits::Limits;
use crate::value;

/// An error within a script, taken apart.
pub(crate) struct Fault {
    /// The imported file it is in; none for the script itself.
    file: Option<String>,
    position: Position,
    kind: ErrorKind,
    message: String,
}

impl Fault {
    /// Finds the innermost error, which is where it happened.
    pub(crate) fn new(error: EvalAltResult, limits: &Limits) -> Self {
        let mut fault =
            Fault { file: None, position: Position::NONE, kind: ErrorKind::Trap, message: String::new() };
        fault.descend(error, limits);
        fault
    }

    fn descend(&mut self, error: EvalAltResult, limits: &Limits) {
        match error {
            EvalAltResult::ErrorInFunctionCall(_, source, inner, position) => {
                // The place of the call stands in where the inner error has none.
                self.position = position;
                self.file = Some(source).filter(|source| !source.is_empty()).or(self.file.take());
                self.descend(*inner, limits);
            }
            EvalAltResult::ErrorInModule(_, inner, _) => self.descend(*inner, limits),
            mut error => {
                let position = error.take_position();
                if !position.is_none() {
                    self.position = position;
                }
                (self.kind, self.message) = judge(&error, limits);
            }
        }
    }

    /// The failure of a hook of `script`.
    pub(crate) fn into_plugin_error(self, script: &str) -> PluginError {
        let file = self.file.as_deref().unwrap_or(script);
        let message = match (self.position.line(), self.position.position()) {
            (Some(line), column) => format!("{file}:{line}:{}: {}", column.unwrap_or(1), self.message),
            _ => format!("{file}: {}", self.message),
        };
        PluginError::new(self.kind, message)
    }

    /// The failure of loading `file`.
    pub(crate) fn into_build_error(self, file: &Path, text: &Arc<str>) -> BuildError {
        located(&self.message, file, text, self.position)
    }
}

/// What went wrong, and whether it was a limit.
fn judge(error: &EvalAltResult, limits: &Limits) -> (ErrorKind, String) {
    use EvalAltResult::*;
    match error {
        ErrorTerminated(token, _)
            if token.as_immutable_string_ref().is_ok_and(|token| token.as_str() == TIME) =>
        {
            (ErrorKind::Budget, format!("took longer than {:?} (limits.time)", limits.time.0))
        }
        ErrorTerminated(..) | ErrorTooManyOperations(_) => {
            (ErrorKind::Budget, format!("used up its {} operations (limits.operations)", limits.operations))
        }
        ErrorStackOverflow(_) => (
            ErrorKind::Budget,
            format!("functions call each other more than {} deep (limits.depth)", limits.depth),
        ),
        ErrorDataTooLarge(what, _) => (ErrorKind::Budget, format!("too large (limits.{})", limit_of(what))),
        ErrorTooManyVariables(_) => (ErrorKind::Budget, "too many variables".into()),
        ErrorTooManyModules(_) => (ErrorKind::Budget, "too many imports".into()),
        // A thrown value may hold anything, only text is printed.
        ErrorRuntime(thrown, _) => match thrown.as_immutable_string_ref() {
            Ok(text) => (ErrorKind::Trap, text.to_string()),
            Err(_) => (ErrorKind::Trap, format!("threw a value of type `{}`", value::type_name(thrown))),
        },
        error => (ErrorKind::Trap, uncapitalised(&error.to_string())),
    }
}

fn limit_of(what: &str) -> &'static str {
    match what {
        what if what.contains("string") => "string",
        what if what.contains("map") => "map",
        _ => "array",
    }
}

/// An error of the parser.
pub(crate) fn parse_error(error: &ParseError, file: &Path, text: &Arc<str>) -> BuildError {
    let ParseError(kind, position) = error;
    let found = located(&uncapitalised(&kind.to_string()), file, text, *position);
    match **kind {
        ParseErrorType::VariableUndefined(_) => found.help(
            "a function sees its parameters, its own variables, `config`, and the constants of its file",
        ),
        _ => found,
    }
}

/// An error at a place in a script.
pub(crate) fn located(message: &str, file: &Path, text: &Arc<str>, position: Position) -> BuildError {
    BuildError::at("file", message).within(SourcePosition {
        file: file.to_owned(),
        text: text.clone(),
        line: position.line().unwrap_or(1),
        column: position.position().unwrap_or(1).max(1),
    })
}

/// Messages of the interpreter begin with a capital, ours do not.
fn uncapitalised(message: &str) -> String {
    let mut chars = message.chars();
    let first = chars.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(chars).collect()
}
