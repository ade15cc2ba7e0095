//! A file from disk, or a text, to a checked configuration.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::config::{Config, SideFile};
use crate::diagnostics::{Diagnostic, Diagnostics, Source, Span};
use crate::error::NodeError;
use crate::node::Node;
use crate::yaml::{self, Env};
use crate::{check, read};

/// A larger file is a mistake; ten thousand routes fit into it.
const MAX_BYTES: u64 = 8 << 20;

/// A configuration file, read and checked.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// The file itself.
    pub source: Source,
    /// The same as a tree with places, for errors that are found later.
    pub root: Node,
    /// What its relative paths are relative to.
    pub dir: PathBuf,
    /// What is odd about it, though it works.
    pub warnings: Diagnostics,
}

/// Reads and checks a configuration file, with the process's environment.
pub fn load(path: &Path) -> Result<Loaded, Diagnostics> {
    parse(path, &read_text(path)?, &|name| std::env::var(name).ok())
}

/// Checks the text of a configuration file.
pub fn parse(path: &Path, text: &str, env: &Env<'_>) -> Result<Loaded, Diagnostics> {
    let (loaded, errors) = parse_partly(path, text, env)?;
    if errors.is_empty() { Ok(loaded) } else { Err(errors) }
}

/// As much of a configuration as can be read, and all errors in it: for whoever has more to judge and wants
/// everything said at once. An error if the text is no configuration at all.
pub fn parse_partly(path: &Path, text: &str, env: &Env<'_>) -> Result<(Loaded, Diagnostics), Diagnostics> {
    let source = source(path, text);
    let (root, unreadable) =
        yaml::parse_partly(&source.text, env).map_err(|errors| shown(errors, &source))?;
    if root.is_null() {
        let empty = Diagnostic::error(path, "the file is empty");
        return Err(empty.with_help("begin with `listeners: [{ bind: 0.0.0.0:8080 }]`").into());
    }
    let mut errors = Vec::new();
    let config = read::config(&root, &mut errors);
    let (found, mut warnings) = check::check(&config, &root);
    if !errors.is_empty() || !unreadable.is_empty() {
        // What seems odd may be so only because something was not read.
        warnings.clear();
    }
    errors.extend(found);
    let mut errors = diagnostics(errors, &source);
    errors.0.extend(shown(unreadable, &source).0);
    errors.sort();
    let warnings = diagnostics(warnings, &source).0.into_iter().map(Diagnostic::into_warning);
    let warnings = Diagnostics(warnings.collect());
    Ok((Loaded { config, root, dir: directory(path), warnings, source }, errors))
}

/// Reads any YAML table, with the same limits, environment and errors as a configuration file. An empty text is
/// an empty table.
pub fn parse_table(path: &Path, text: &str, env: &Env<'_>) -> Result<(Source, Node), Diagnostics> {
    let (source, root) = tree(path, text, env)?;
    if root.is_null() {
        let table = root.empty_table();
        return Ok((source, table));
    }
    if root.entries().is_none() {
        let error = NodeError::new(root.span, "", format!("expected a table, found {}", root.describe()));
        return Err(error.diagnostic(&source).into());
    }
    Ok((source, root))
}

/// Reads the file beside a policy: instance options and `config`.
pub fn parse_side_file(path: &Path, text: &str, env: &Env<'_>) -> Result<(Source, SideFile), Diagnostics> {
    let (source, root) = parse_table(path, text, env)?;
    let mut errors = Vec::new();
    let side = read::side_file(&root, &mut errors);
    if errors.is_empty() { Ok((source, side)) } else { Err(diagnostics(errors, &source)) }
}

impl Loaded {
    /// A path of the configuration, relative to its file.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.dir.join(path)
    }

    /// An error found later about the value at `path`, such as `routes[2].plugins[0].cors.origins`.
    pub fn error(&self, path: &str, message: impl Into<String>) -> Diagnostic {
        let message = self.root.redact(message.into());
        NodeError::new(self.root.locate(path), path, message).diagnostic(&self.source)
    }
}

fn tree(path: &Path, text: &str, env: &Env<'_>) -> Result<(Source, Node), Diagnostics> {
    let source = source(path, text);
    match yaml::parse(&source.text, env) {
        Ok(root) => Ok((source, root)),
        Err(errors) => Err(shown(errors, &source)),
    }
}

/// A byte order mark is not part of the text, and would shift the first line's columns.
fn source(path: &Path, text: &str) -> Source {
    Source::new(path, text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn shown(errors: Vec<yaml::YamlError>, source: &Source) -> Diagnostics {
    let diagnostic = |error: yaml::YamlError| {
        let diagnostic = source.error(error.span, error.message);
        Diagnostic { help: error.help, ..diagnostic }
    };
    let mut diagnostics = Diagnostics(errors.into_iter().map(diagnostic).collect());
    diagnostics.sort();
    diagnostics
}

fn diagnostics(errors: Vec<NodeError>, source: &Source) -> Diagnostics {
    let mut diagnostics = Diagnostics(errors.into_iter().map(|error| error.diagnostic(source)).collect());
    diagnostics.sort();
    diagnostics
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Reads a text file of bounded size.
pub fn read_text(path: &Path) -> Result<String, Diagnostics> {
    let bytes = read_bytes(path).map_err(|error| Diagnostic::error(path, cannot_read(&error)))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(
            Diagnostic::error(path, format!("the file is larger than {} MiB", MAX_BYTES >> 20)).into()
        );
    }
    String::from_utf8(bytes).map_err(|error| not_utf8(path, &error).into())
}

fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn cannot_read(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "no permission to read this file".to_owned(),
        io::ErrorKind::IsADirectory => "this is a directory, not a file".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

fn not_utf8(path: &Path, error: &std::string::FromUtf8Error) -> Diagnostic {
    let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
    let text = String::from_utf8_lossy(valid);
    let line = text.rsplit('\n').next().unwrap_or_default();
    let span = Span {
        line: u32::try_from(text.matches('\n').count()).unwrap_or(u32::MAX).saturating_add(1),
        column: u32::try_from(line.chars().count()).unwrap_or(u32::MAX).saturating_add(1),
        offset: text.len(),
        len: 0,
    };
    let diagnostic = Diagnostic::error(path, "not UTF-8 text");
    Diagnostic { span: Some(span), help: Some("save the file as UTF-8".to_owned()), ..diagnostic }
}

#[cfg(test)]
mod tests;
