//! What is written down of an exchange while plugins handle it: which were asked, what each answered and changed.
//! Names, never values.

use std::fmt;
use std::sync::Arc;

use http::header::HeaderName;
use serde::{Deserialize, Serialize};

use crate::hook::{ErrorKind, HookName};
use crate::reply::Reason;

/// Changes that are journalled per exchange; further ones happen but are only counted.
pub(crate) const MAX_CHANGES: usize = 128;

/// A place in a chain: which plugin, at which hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Index in the exchange's chain.
    pub plugin: u16,
    /// The hook.
    pub hook: HookName,
}

impl Default for Cursor {
    fn default() -> Self {
        Cursor { plugin: u16::MAX, hook: HookName::OnRequest }
    }
}

/// What a plugin answered at a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// It answered.
    Respond,
    /// It closed the connection.
    Drop,
    /// It failed.
    Error(ErrorKind),
    /// It filters the body as it passes.
    Filter,
    /// It was not called: it has failed too often.
    Quarantined,
}

impl Verdict {
    /// The name in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Continue => "continue",
            Verdict::Respond => "respond",
            Verdict::Drop => "drop",
            Verdict::Error(ErrorKind::Timeout) => "timeout",
            Verdict::Error(_) => "error",
            Verdict::Filter => "filter",
            Verdict::Quarantined => "quarantined",
        }
    }
}

/// One hook call.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Which plugin, where.
    pub cursor: Cursor,
    /// What it answered.
    pub verdict: Verdict,
    /// When it began, in microseconds from the exchange's beginning.
    pub at: u32,
    /// How long it took, microseconds.
    pub micros: u32,
    /// Whether it is what would have been: nothing of it happened.
    pub is_shadow: bool,
}

/// What there is to say of a step that was more than a word: at most one per step, in their order.
#[derive(Debug, Clone, Default)]
pub struct Note {
    /// Which of the exchange's steps.
    pub step: usize,
    /// The reason code of a refusal or a failure.
    pub reason: Option<Reason>,
    /// The rule, or the line of source, that it rests on.
    pub rule: Option<Box<str>>,
    /// What failed.
    pub error: Option<Box<str>>,
    /// What was used up of the plugin's budget.
    pub used: Used,
}

/// What a call of a sandbox used up of what it may. What a sandbox does not count is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Used {
    /// Operations, as scripts count them.
    pub operations: u64,
    /// Processor time, microseconds.
    pub cpu_micros: u64,
    /// Memory at its end, bytes.
    pub memory: u64,
}

/// A part of the exchange that can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The client's request.
    Request,
    /// The attempt's request.
    Outgoing,
    /// The response.
    Response,
    /// What is known about the exchange.
    Context,
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// The header of this name.
    Header(HeaderName),
    /// The method.
    Method,
    /// The path.
    Path,
    /// The query.
    Query,
    /// The status.
    Status,
    /// The body.
    Body,
    /// What follows the body.
    Trailers,
    /// The principal.
    Principal,
    /// The fact of this name.
    Fact(Box<str>),
    /// The request id.
    Id,
}

/// One change, by name, never by value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Who changed it.
    pub cursor: Cursor,
    /// Where.
    pub part: Part,
    /// What.
    pub kind: ChangeKind,
}

/// Who answered or refused in place of the upstream.
#[derive(Debug, Clone)]
pub struct Decider {
    /// A plugin instance's name, or `core.<part>`.
    pub by: Arc<str>,
    /// At which hook; none for the core.
    pub hook: Option<HookName>,
    /// Why; none for a reply that refuses nothing.
    pub reason: Option<Reason>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Request => "request ",
            Part::Outgoing => "outgoing ",
            Part::Response => "response ",
            Part::Context => "",
        };
        f.write_str(part)?;
        match &self.kind {
            ChangeKind::Header(name) => write!(f, "header {name}"),
            ChangeKind::Method => f.write_str("method"),
            ChangeKind::Path => f.write_str("path"),
            ChangeKind::Query => f.write_str("query"),
            ChangeKind::Status => f.write_str("status"),
            ChangeKind::Body => f.write_str("body"),
            ChangeKind::Trailers => f.write_str("trailers"),
            ChangeKind::Principal => f.write_str("principal"),
            ChangeKind::Fact(name) => write!(f, "fact {name}"),
            ChangeKind::Id => f.write_str("request id"),
        }
    }
}

/// Writes what a plugin changes into the exchange's journal.
pub(crate) struct Journal<'a> {
    pub(crate) changes: &'a mut Vec<Change>,
    pub(crate) unlisted: &'a mut u32,
    pub(crate) overflow: &'a mut Option<&'static str>,
    pub(crate) cursor: Cursor,
    pub(crate) part: Part,
}

impl Journal<'_> {
    pub(crate) fn note(&mut self, kind: impl FnOnce() -> ChangeKind) {
        if self.changes.len() < MAX_CHANGES {
            self.changes.push(Change { cursor: self.cursor, part: self.part, kind: kind() });
        } else {
            *self.unlisted = self.unlisted.saturating_add(1);
        }
    }

    pub(crate) fn overflow(&mut self, what: &'static str) {
        self.overflow.get_or_insert(what);
    }
}
