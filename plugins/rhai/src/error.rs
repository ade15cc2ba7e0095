//! Errors of scripts, with the place in the file first.

use std::path::Path;
use std::sync::Arc;

use portcullis_plugin::{BuildError, ErrorKind, HookName, PluginError, SourcePosition};
use rhai::{EvalAltResult, ParseError, ParseErrorType, Position};

use crate::call::TIME;
use crate::limits::{LOG_LINE, Limits};
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
        fault.descend(error, None, limits);
        fault
    }

    /// Goes into an error that arose in `file`. The place of a call stands in where what is within it
    /// has none.
    fn descend(&mut self, error: EvalAltResult, file: Option<String>, limits: &Limits) {
        match error {
            EvalAltResult::ErrorInFunctionCall(_, source, inner, position) => {
                self.locate(&file, position);
                self.descend(*inner, Some(source).filter(|source| !source.is_empty()).or(file), limits);
            }
            EvalAltResult::ErrorInModule(_, inner, _) => self.descend(*inner, file, limits),
            mut error => {
                self.locate(&file, error.take_position());
                (self.kind, self.message) = judge(&error, limits);
            }
        }
    }

    fn locate(&mut self, file: &Option<String>, position: Position) {
        if !position.is_none() {
            (self.file, self.position) = (file.clone(), position);
        }
    }

    /// The failure of `hook`, which stands at `start` of `script`. The interpreter does not say where a
    /// budget was used up; then the hook stands in.
    pub(crate) fn into_plugin_error(self, script: &str, hook: HookName, start: Position) -> PluginError {
        if self.position.is_none() {
            return failure(self.kind, script, hook, start, &self.message);
        }
        let place = place(self.file.as_deref().unwrap_or(script), self.position);
        PluginError::new(self.kind, format!("{place}: {}", one_line(&self.message)))
    }

    /// The failure of loading `file`.
    pub(crate) fn into_build_error(self, file: &Path, text: &Arc<str>) -> BuildError {
        located(&self.message, file, text, self.position)
    }
}

/// The failure of a hook as a whole.
pub(crate) fn failure(
    kind: ErrorKind,
    script: &str,
    hook: HookName,
    start: Position,
    message: &str,
) -> PluginError {
    PluginError::new(kind, format!("{}: {hook}: {}", place(script, start), one_line(message)))
}

/// A place as messages begin with it.
pub(crate) fn place(file: &str, position: Position) -> String {
    match (position.line(), position.position()) {
        (Some(line), column) => format!("{file}:{line}:{}", column.unwrap_or(1)),
        _ => file.to_owned(),
    }
}

/// What a script says as it is logged: bounded, and with nothing in it that begins another line or
/// speaks to a terminal, since it may be a client's text.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(LOG_LINE));
    for char in text.get(..text.floor_char_boundary(LOG_LINE)).unwrap_or_default().chars() {
        match char {
            // Separators of lines and paragraphs, and what turns the direction of writing.
            '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => line.extend(char.escape_unicode()),
            char if char.is_control() => line.extend(char.escape_default()),
            char => line.push(char),
        }
    }
    line
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
