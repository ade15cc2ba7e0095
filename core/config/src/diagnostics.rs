//! What is wrong with a file, where, and how to mend it: shown like a compiler does, or served as JSON.
//!
//! A diagnostic owns the source line it points at, so it can be kept, sent and rendered long after the file
//! has changed.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Span {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// Byte offset of the first character.
    pub offset: usize,
    /// Length in bytes; 0 where only the beginning is known.
    pub len: usize,
}

/// A file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The path as the user gave it.
    pub path: PathBuf,
    /// The whole text.
    pub text: Arc<str>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file works, though hardly as meant.
    Warning,
}

/// One finding about one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong: lowercase, no full stop.
    pub message: String,
    /// The file it is about.
    pub file: PathBuf,
    /// Where in the file, if it is about a place.
    pub span: Option<Span>,
    /// What to do about it.
    pub help: Option<String>,
    /// The source line of `span`, as it stands in the file.
    pub excerpt: Option<String>,
}

/// Every finding of one load, in file order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Diagnostics(pub Vec<Diagnostic>);

/// Findings beyond this are counted, not shown: nobody reads them, and a broken generator can produce many.
const SHOWN: usize = 100;

/// Columns of source shown around a finding; longer lines are cut.
const WIDTH: usize = 120;

impl Source {
    /// A file and its text.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<Arc<str>>) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// An error at a place in this file.
    pub fn error(&self, span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            span: Some(span),
            excerpt: Some(line_around(&self.text, span.offset).to_owned()),
            ..Diagnostic::error(&self.path, message)
        }
    }

    /// An error at line and column (both from 1, column in characters) of this file; line 0 means "somewhere".
    pub fn error_at(&self, line: u32, column: u32, message: impl Into<String>) -> Diagnostic {
        match span_at(&self.text, line, column) {
            Some(span) => self.error(span, message),
            None => Diagnostic::error(&self.path, message),
        }
    }
}

impl Diagnostic {
    /// An error about a file as a whole.
    pub fn error(file: &Path, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            file: file.to_owned(),
            span: None,
            help: None,
            excerpt: None,
        }
    }

    /// The same finding, as a warning.
    pub fn into_warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    /// The same finding, with advice.
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// The finding as a compiler would print it, ending in a newline; with `color`, for a terminal.
    pub fn render(&self, color: bool) -> String {
        let paint = Paint { color };
        let mut out = String::new();
        let severity = match self.severity {
            Severity::Error => paint.red("error"),
            Severity::Warning => paint.yellow("warning"),
        };
        line(&mut out, format_args!("{severity}{}", paint.bold(&format!(": {}", printable(&self.message)))));
        let file = printable(&self.file.to_string_lossy());
        match (self.span, &self.excerpt) {
            (Some(span), Some(excerpt)) => self.render_excerpt(&mut out, &file, span, excerpt, paint),
            (Some(span), None) => {
                let place = format!("{file}:{}:{}", span.line, span.column);
                line(&mut out, format_args!("  {} {place}", paint.blue("-->")));
                self.render_help(&mut out, paint);
            }
            (None, _) => {
                line(&mut out, format_args!("  {} {file}", paint.blue("-->")));
                self.render_help(&mut out, paint);
            }
        }
        out
    }

    fn render_excerpt(&self, out: &mut String, file: &str, span: Span, excerpt: &str, paint: Paint) {
        let number = span.line.to_string();
        let pad = " ".repeat(number.len());
        let bar = paint.blue("|");
        let shown = Shown::new(excerpt, span);
        line(out, format_args!("{pad}{} {file}:{}:{}", paint.blue("-->"), span.line, span.column));
        line(out, format_args!("{pad} {bar}"));
        line(out, format_args!("{} {bar} {}", paint.blue(&number), shown.text));
        let help = self.help.as_deref().map(printable).unwrap_or_default();
        let mark = format!("{} {help}", "^".repeat(shown.marked));
        let mark = match self.severity {
            Severity::Error => paint.red(mark.trim_end()),
            Severity::Warning => paint.yellow(mark.trim_end()),
        };
        line(out, format_args!("{pad} {bar} {}{mark}", " ".repeat(shown.before)));
    }

    fn render_help(&self, out: &mut String, paint: Paint) {
        if let Some(help) = &self.help {
            line(out, format_args!("  {} {}", paint.blue("="), printable(help)));
        }
    }
}

impl Diagnostics {
    /// Adds a finding.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether anything forbids using the file.
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Brings the findings of each file into the order of its text.
    pub fn sort(&mut self) {
        self.0.sort_by(|a, b| (&a.file, a.span).cmp(&(&b.file, b.span)));
    }

    /// All findings as a compiler would print them, separated by empty lines.
    pub fn render(&self, color: bool) -> String {
        let shown: Vec<_> = self.0.iter().take(SHOWN).map(|diagnostic| diagnostic.render(color)).collect();
        let mut out = shown.join("\n");
        if self.0.len() > SHOWN {
            line(&mut out, format_args!("\nand {} more", self.0.len() - SHOWN));
        }
        out
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

/// The part of a source line that is shown, and where its mark goes, in terminal columns.
struct Shown {
    text: String,
    before: usize,
    marked: usize,
}

impl Shown {
    fn new(excerpt: &str, span: Span) -> Self {
        let cells: Vec<(String, usize)> = excerpt.chars().map(cell).collect();
        let first = (span.column as usize).saturating_sub(1).min(cells.len());
        let last = (first + span_chars(excerpt, first, span.len)).min(cells.len());
        let (skip, keep) = window(&cells, first);
        let head = if skip > 0 { "..." } else { "" };
        let tail = if keep < cells.len() { "..." } else { "" };
        Self {
            text: joined(head, &cells[skip..keep], tail),
            before: head.len() + width(&cells[skip..first]),
            marked: width(&cells[first..last.clamp(first, keep.max(first))]).max(1),
        }
    }
}

/// The range of cells to show: all of them, or as many as fit around the mark.
fn window(cells: &[(String, usize)], first: usize) -> (usize, usize) {
    if width(cells) <= WIDTH {
        return (0, cells.len());
    }
    // A third of the width before the mark is context enough to recognise the line.
    let skip = skipped(&cells[..first], WIDTH / 3);
    (skip, skip + kept(&cells[skip..], WIDTH))
}

fn joined(head: &str, cells: &[(String, usize)], tail: &str) -> String {
    let text: String = cells.iter().map(|(text, _)| text.as_str()).collect();
    format!("{head}{text}{tail}").trim_end().to_owned()
}

/// How many of the first cells to leave out so that at most `limit` columns remain.
fn skipped(cells: &[(String, usize)], limit: usize) -> usize {
    cells.len() - cells.iter().rev().scan(0, within(limit)).count()
}

/// How many of the first cells fit into `limit` columns.
fn kept(cells: &[(String, usize)], limit: usize) -> usize {
    cells.iter().scan(0, within(limit)).count()
}

fn within(limit: usize) -> impl FnMut(&mut usize, &(String, usize)) -> Option<()> {
    move |total, (_, width)| {
        *total += width;
        (*total <= limit).then_some(())
    }
}

fn width(cells: &[(String, usize)]) -> usize {
    cells.iter().map(|(_, width)| width).sum()
}

/// How many characters of the line, from `first`, the span's bytes cover.
fn span_chars(excerpt: &str, first: usize, len: usize) -> usize {
    let mut bytes = 0;
    excerpt
        .chars()
        .skip(first)
        .take_while(|c| {
            let inside = bytes < len;
            bytes += c.len_utf8();
            inside
        })
        .count()
}

/// A character as a terminal should show it, and its columns. Control characters would move the cursor.
fn cell(c: char) -> (String, usize) {
    match c {
        '\t' => ("    ".to_owned(), 4),
        c if c.is_control() => ('\u{fffd}'.to_string(), 1),
        c => (c.to_string(), columns(c)),
    }
}

/// Columns of a character: an approximation of Unicode's East Asian Width and of combining marks.
fn columns(c: char) -> usize {
    match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200f | 0x20d0..=0x20ff | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn line_around(text: &str, offset: usize) -> &str {
    let offset = (0..=offset.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (before, after) = text.split_at(offset);
    let start = before.rfind(['\n', '\r']).map_or(0, |at| at + 1);
    let end = after.find(['\n', '\r']).map_or(text.len(), |at| offset + at);
    text.get(start..end).unwrap_or_default()
}

fn span_at(text: &str, line: u32, column: u32) -> Option<Span> {
    let index = (line as usize).checked_sub(1)?;
    let start: usize = text.split_inclusive('\n').take(index).map(str::len).sum();
    let rest = text.get(start..)?;
    let rest = rest.split(['\n', '\r']).next().unwrap_or_default();
    let column = column.max(1);
    let within = rest.char_indices().nth(column as usize - 1).map_or(rest.len(), |(at, _)| at);
    Some(Span { line, column, offset: start + within, len: 0 })
}

fn line(out: &mut String, text: fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{text}");
}

#[derive(Clone, Copy)]
struct Paint {
    color: bool,
}

impl Paint {
    fn red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn yellow(self, text: &str) -> String {
        self.with("1;33", text)
    }

    fn blue(self, text: &str) -> String {
        self.with("1;34", text)
    }

    fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, line: u32, column: u32, len: usize) -> String {
        let source = Source::new("x.rhai", text);
        let mut diagnostic = source.error_at(line, column, "bad");
        if let Some(span) = &mut diagnostic.span {
            span.len = len;
        }
        diagnostic.render(false)
    }

    #[test]
    fn a_script_error_looks_like_a_yaml_error() {
        let source = Source::new("deny.rhai", "fn on_request(ex) {\n    ex.hedaer(\"a\")\n}\n");
        let diagnostic = source.error_at(2, 8, "unknown method `hedaer`").with_help("did you mean `header`?");
        assert_eq!(
            diagnostic.render(false),
            "\
error: unknown method `hedaer`
 --> deny.rhai:2:8
  |
2 |     ex.hedaer(\"a\")
  |        ^ did you mean `header`?
"
        );
    }

    #[test]
    fn the_mark_stands_right_after_tabs_wide_characters_and_crlf() {
        let text = "a\r\n\t日本: x\r\n";
        assert_eq!(
            shown(text, 2, 6, 1),
            "error: bad\n --> x.rhai:2:6\n  |\n2 |     日本: x\n  |           ^\n"
        );
    }

    #[test]
    fn long_lines_are_cut_around_the_mark() {
        let text = format!("{}NEEDLE{}", "a".repeat(1000), "b".repeat(1000));
        let rendered = shown(&text, 1, 1001, 6);
        let lines: Vec<_> = rendered.lines().collect();
        assert!(lines[3].len() < WIDTH + 12, "{}", lines[3]);
        assert_eq!(lines[3].find("NEEDLE"), lines[4].find("^^^^^^"));
        assert!(lines[3].starts_with("1 | ...a") && lines[3].ends_with("b..."));
    }

    #[test]
    fn a_mark_longer_than_the_line_stays_on_it() {
        let rendered = shown("abc\ndef", 1, 2, 500);
        assert!(rendered.contains("1 | abc\n  |  ^^\n"), "{rendered}");
    }

    #[test]
    fn places_outside_the_text_do_no_harm() {
        for (line, column) in [(0, 0), (1, 99), (9, 1), (u32::MAX, u32::MAX)] {
            assert!(shown("ab", line, column, 3).starts_with("error: bad\n"));
        }
        assert!(shown("", 1, 1, 0).contains("x.rhai:1:1"));
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let source = Source::new("x", "a: \x1b[2J\n");
        assert!(!source.error_at(1, 4, "bad \x1b[2J").render(false).contains('\x1b'));
    }

    #[test]
    fn colour_only_adds_escapes() {
        let plain = Source::new("x", "abc").error_at(1, 1, "bad");
        let coloured = plain.render(true);
        assert!(coloured.starts_with("\x1b[1;31merror\x1b[0m"));
        let mut stripped = coloured;
        for code in ["\x1b[1;31m", "\x1b[1;34m", "\x1b[1m", "\x1b[0m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, plain.render(false));
    }

    #[test]
    fn too_many_findings_are_counted() {
        let many = Diagnostics(vec![Diagnostic::error(Path::new("x"), "bad"); SHOWN + 3]);
        assert!(many.render(false).ends_with("\nand 3 more\n"));
    }

    #[test]
    fn json_has_everything_the_text_has() {
        let json =
            serde_json::to_value(Source::new("x", "abc").error_at(1, 2, "bad").with_help("fix it")).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "severity": "error", "message": "bad", "file": "x", "help": "fix it", "excerpt": "abc",
                "span": { "line": 1, "column": 2, "offset": 1, "len": 0 },
            })
        );
    }
}
