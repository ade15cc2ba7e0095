//! Which lines of scripts run while their tests do.
//!
//! The interpreter does not tell where it is, so each line that begins a statement is made to say so: the text that is
//! compiled has a call before it, on the same line, and what the call costs is not charged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use portcullis_plugin::Coverage;
use rhai::{AST, ASTNode, Engine, Expr, Position, Stmt, StmtBlock};

use crate::call;
use crate::load::Source;

/// The function that lines call.
const RAN: &str = "line_ran";

/// Operations of such a call: the statement, the call and its argument.
const COST: u64 = 3;

/// The lines of all files of a script.
pub(crate) struct Lines {
    coverage: Arc<Coverage>,
    counters: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
}

impl Lines {
    /// Has `engine` count the lines that run.
    pub(crate) fn new(coverage: Arc<Coverage>, engine: &mut Engine) -> Self {
        let counters: Arc<Mutex<Vec<Arc<AtomicU64>>>> = Arc::default();
        let lines = Lines { coverage, counters: counters.clone() };
        engine.register_fn(RAN, move |at: i64| {
            call::forgive(COST);
            let counters = counters.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(counter) = usize::try_from(at).ok().and_then(|at| counters.get(at)) {
                counter.fetch_add(1, Relaxed);
            }
        });
        lines
    }

    /// The text of a file in which every line says that it runs.
    pub(crate) fn marked(&self, ast: &AST, source: &Source) -> String {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let starts = starts(ast, &source.text);
        let mut text = String::with_capacity(source.text.len() + starts.len() * 16);
        for (line, number) in source.text.split_inclusive('\n').zip(1_u32..) {
            let Some(before) = starts.get(&number).and_then(|column| line.get(..byte_of(line, *column)))
            else {
                text.push_str(line);
                continue;
            };
            text.push_str(&format!("{before}{RAN}({});", counters.len()));
            text.push_str(line.get(before.len()..).unwrap_or_default());
            counters.push(self.coverage.line(&source.path, number));
        }
        text
    }
}

/// Where in each line the first statement of a function begins, in characters from 1.
fn starts(ast: &AST, text: &str) -> BTreeMap<u32, usize> {
    let lines: Vec<&str> = text.lines().collect();
    let mut starts = BTreeMap::new();
    let mut note = |stmt: &Stmt| {
        let Some((line, column)) = start(stmt, &lines) else { return };
        let first = starts.entry(line).or_insert(column);
        *first = column.min(*first);
    };
    ast.clone_functions_only().walk(&mut |nodes: &[ASTNode<'_>]| {
        match nodes.last() {
            // Statements that stand in no other are those of a function.
            Some(ASTNode::Stmt(stmt)) => {
                if nodes.len() == 1 {
                    note(stmt);
                }
                blocks(stmt).iter().filter(|block| is_braced(block, &lines)).for_each(|block| {
                    block.statements().iter().for_each(&mut note);
                });
            }
            Some(ASTNode::Expr(Expr::Stmt(block))) if is_braced(block, &lines) => {
                block.statements().iter().for_each(&mut note);
            }
            _ => {}
        }
        true
    });
    starts
}

fn blocks(stmt: &Stmt) -> Vec<&StmtBlock> {
    match stmt {
        Stmt::If(flow, _) | Stmt::While(flow, _) | Stmt::Do(flow, ..) | Stmt::TryCatch(flow, _) => {
            vec![&flow.body, &flow.branch]
        }
        Stmt::For(parts, _) => vec![&parts.2.body],
        Stmt::Block(block) => vec![block],
        _ => Vec::new(),
    }
}

/// Whether a block has braces: an `else if` is one without, and so may be what follows `=>`.
fn is_braced(block: &StmtBlock, lines: &[&str]) -> bool {
    at(block.position(), lines).is_some_and(|(line, column)| rest(lines, line, column).starts_with('{'))
}

/// Where a statement begins.
fn start(stmt: &Stmt, lines: &[&str]) -> Option<(u32, usize)> {
    let position = match stmt {
        Stmt::Noop(_) => return None,
        Stmt::Assignment(parts) => parts.1.lhs.start_position(),
        stmt => stmt.position(),
    };
    let (line, mut column) = at(position, lines)?;
    let before = lines.get(line as usize - 1)?.get(..byte_of(lines[line as usize - 1], column))?;
    // What is declared, and what is called in a name space, is told by its name.
    for word in ["let", "const"] {
        if let Some(earlier) = before.trim_end().strip_suffix(word) {
            column = earlier.chars().count() + 1;
        }
    }
    if before.trim_end().ends_with("::") {
        let name = before.trim_end_matches(|char: char| char.is_alphanumeric() || "_: ".contains(char));
        column = name.chars().count() + 1;
        column += before.chars().skip(column - 1).take_while(|char| char.is_whitespace()).count();
    }
    Some((line, column))
}

fn at(position: Position, lines: &[&str]) -> Option<(u32, usize)> {
    let (line, column) = (position.line()?, position.position()?);
    lines.get(line.checked_sub(1)?)?;
    Some((u32::try_from(line).ok()?, column.max(1)))
}

fn rest<'l>(lines: &[&'l str], line: u32, column: usize) -> &'l str {
    let line = lines.get(line as usize - 1).copied().unwrap_or_default();
    line.get(byte_of(line, column)..).unwrap_or_default()
}

/// The byte at which a column begins that counts characters from 1.
fn byte_of(line: &str, column: usize) -> usize {
    line.char_indices().nth(column - 1).map_or(line.len(), |(at, _)| at)
}
