//! Every error of a typed value, though serde stops at the first.
//!
//! A reader is used for one attempt after the other. What was wrong is left out of the next attempt, and a missing
//! key is made up, until nothing new is found. An error of a value that has such a gap in it is not shown: it may be
//! about the gap.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::ptr;

use serde::de::DeserializeOwned;

use crate::de::NodeDeserializer;
use crate::diagnostics::Span;
use crate::error::{NodeError, nearest};
use crate::node::{Key, Node, Value, join};

/// Gaps in one value. Nobody reads more errors than that, and each costs an attempt.
const MOST_GAPS: usize = 100;

/// Reads a typed value out of a node and remembers where it failed.
#[derive(Debug)]
pub struct Reader<'n> {
    root: &'n Node,
    path: String,
    /// Whether a value with gaps is of use.
    partly: bool,
    /// Why the attempt under way fails.
    failure: RefCell<Option<Failure>>,
    left_out: HashMap<*const Node, Gap>,
    /// Tables and the keys that they lack.
    made_up: Vec<(*const Node, &'static str)>,
    errors: Vec<NodeError>,
}

/// Why a value is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gap {
    /// Nobody knows its key.
    UnknownKey,
    /// It is not what its key stands for.
    Wrong,
}

/// The error of an attempt, and what it is about. Nodes are told apart by where they are in memory.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: NodeError,
    pub(crate) node: *const Node,
    pub(crate) fault: Fault,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The node is not what it should be.
    Wrong,
    /// It has a key, the one with this value, that nobody knows.
    UnknownKey(*const Node),
    /// It lacks a key.
    MissingKey(&'static str),
    /// No value could be made up for a key that it lacks.
    NotMadeUp,
}

impl Node {
    /// Reads a typed value; `path` is this node's own path in its file. The errors are all that can be found.
    pub fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Vec<NodeError>> {
        match self.read_partly(path) {
            (Some(value), errors) if errors.is_empty() => Ok(value),
            (_, errors) => Err(errors),
        }
    }

    /// All errors, and the value without what is wrong in it, where that leaves one.
    pub(crate) fn read_partly<T: DeserializeOwned>(&self, path: &str) -> (Option<T>, Vec<NodeError>) {
        let mut reader = Reader { partly: true, ..self.reader(path) };
        loop {
            match T::deserialize(reader.deserializer()) {
                Ok(value) => return (Some(value).filter(|_| reader.keeps_places()), reader.errors),
                Err(error) if reader.note(&error) => {}
                Err(_) => return (None, reader.errors),
            }
        }
    }

    /// For callers that must hand a deserialiser on, possibly erased:
    ///
    /// ```
    /// # use std::{collections::BTreeMap, path::Path};
    /// # type Erased<'d> = dyn erased_serde::Deserializer<'d>;
    /// let text = "max_age: soon\nretries: many";
    /// let (_, node) = portcullis_config::parse_table(Path::new("x.yaml"), text, &|_| None).unwrap();
    /// let mut reader = node.reader("plugins[0].cors");
    /// let attempt = |reader: &portcullis_config::Reader<'_>| {
    ///     let mut erased = <Erased<'_>>::erase(reader.deserializer());
    ///     erased_serde::deserialize::<BTreeMap<String, u32>>(&mut erased)
    /// };
    /// while reader.note(attempt(&reader).unwrap_err()) {}
    /// let errors: Vec<_> = reader.into_errors().iter().map(ToString::to_string).collect();
    /// assert_eq!(
    ///     errors,
    ///     [
    ///         "plugins[0].cors.max_age: expected a whole number, 0 or more, found string `soon`",
    ///         "plugins[0].cors.retries: expected a whole number, 0 or more, found string `many`",
    ///     ]
    /// );
    /// ```
    pub fn reader(&self, path: &str) -> Reader<'_> {
        Reader {
            root: self,
            path: path.to_owned(),
            partly: false,
            failure: RefCell::new(None),
            left_out: HashMap::new(),
            made_up: Vec::new(),
            errors: Vec::new(),
        }
    }
}

impl<'n> Reader<'n> {
    /// The deserialiser of the whole node, for one attempt. Once an error was noted it never yields a value.
    pub fn deserializer(&self) -> NodeDeserializer<'_> {
        NodeDeserializer::new(self.root, self)
    }

    /// Takes in the error that an attempt with [`Reader::deserializer`] ended with; whether another attempt may find
    /// a further one. An error that did not pass a deserialiser (a check after the fact) is about the whole node.
    pub fn note(&mut self, error: impl fmt::Display) -> bool {
        let Failure { error, node, fault } = self.failed_with(&error.to_string());
        match fault {
            Fault::UnknownKey(value) => {
                self.errors.push(error);
                self.leave_out(value, Gap::UnknownKey)
            }
            Fault::MissingKey(key) => {
                if !self.accounts_for(node, key) {
                    self.errors.push(error);
                }
                self.make_up(node, key) || self.leave_out(node, Gap::Wrong)
            }
            Fault::Wrong => {
                if !self.find(node).is_some_and(|found| self.has_gaps(found.node)) {
                    self.errors.push(error);
                }
                self.leave_out(node, Gap::Wrong)
            }
            Fault::NotMadeUp => self.leave_out(node, Gap::Wrong),
        }
    }

    /// The errors noted.
    pub fn into_errors(self) -> Vec<NodeError> {
        self.errors
    }

    /// Notes why the attempt under way fails. Errors pass every deserialiser on their way out: the first is the
    /// innermost, and knows best.
    pub(crate) fn fail(&self, failure: Failure) {
        *self.failure.borrow_mut() = Some(failure);
    }

    /// Whether this is the error noted already, whatever type it has become meanwhile.
    pub(crate) fn knows(&self, text: &str) -> bool {
        self.failure.borrow().as_ref().is_some_and(|failure| failure.error.message == text)
    }

    /// Whether an attempt must do without a value.
    pub(crate) fn lacks(&self, node: &Node) -> bool {
        node.value == Value::Unset || self.left_out.contains_key(&ptr::from_ref(node))
    }

    /// The keys that a table has for this attempt though they are missing.
    pub(crate) fn made_up(&self, table: &Node) -> Vec<&'static str> {
        let of_table = self.made_up.iter().filter(|(of, _)| ptr::eq(*of, table));
        of_table.map(|(_, key)| *key).collect()
    }

    /// Whether a value that comes out of `node` must not be used: it is there only to find more errors.
    pub(crate) fn rehearses(&self, node: &Node) -> bool {
        ptr::eq(self.root, node) && !self.partly && self.has_gaps(node)
    }

    /// Where a node stands. Only errors pay for it, and nothing has to carry paths along.
    pub(crate) fn find(&self, node: *const Node) -> Option<Found<'n>> {
        find(self.root, node, &self.path)
    }

    fn failed_with(&mut self, text: &str) -> Failure {
        let known = self.failure.take().filter(|failure| failure.error.message == text);
        known.unwrap_or_else(|| Failure {
            error: NodeError::new(self.root.span, &self.path, self.root.redact(text.to_owned())),
            node: self.root,
            fault: Fault::Wrong,
        })
    }

    /// False if there is nothing left to read then.
    fn leave_out(&mut self, node: *const Node, gap: Gap) -> bool {
        !ptr::eq(node, self.root) && self.has_room() && self.left_out.insert(node, gap).is_none()
    }

    fn make_up(&mut self, table: *const Node, key: &'static str) -> bool {
        let new = self.has_room() && !self.made_up.contains(&(table, key));
        if new {
            self.made_up.push((table, key));
        }
        new
    }

    fn has_room(&self) -> bool {
        self.left_out.len() + self.made_up.len() < MOST_GAPS
    }

    /// Whether a key is missing only because its value was left out, or because it is misspelt.
    fn accounts_for(&self, table: *const Node, key: &str) -> bool {
        let entries = self.find(table).and_then(|found| found.node.entries()).unwrap_or_default();
        entries.iter().any(|(found, value)| match self.left_out.get(&ptr::from_ref(value)) {
            Some(Gap::UnknownKey) => nearest(&found.text, [key].into_iter()).is_some(),
            _ => found.text == key,
        })
    }

    fn has_gaps(&self, node: &Node) -> bool {
        node.value == Value::Unset
            || self.made_up.iter().any(|(table, _)| ptr::eq(*table, node))
            || node.children().any(|child| self.lacks(child) || self.has_gaps(child))
    }

    /// Whether the value that was read has nothing made up, and its lists' items stand where they stand in the file.
    fn keeps_places(&self) -> bool {
        self.made_up.is_empty() && !self.has_shifted(self.root)
    }

    fn has_shifted(&self, node: &Node) -> bool {
        let is_list = node.items().is_some();
        node.children().any(|child| (is_list && self.lacks(child)) || self.has_shifted(child))
    }
}

/// A node and where it stands.
pub(crate) struct Found<'n> {
    pub(crate) node: &'n Node,
    pub(crate) path: String,
    /// Its key, in a table.
    pub(crate) key: Option<Span>,
}

enum Step<'n> {
    Item(usize),
    Entry(&'n Key),
}

fn find<'n>(root: &'n Node, target: *const Node, path: &str) -> Option<Found<'n>> {
    let mut steps = Vec::new();
    let node = steps_to(root, target, &mut steps)?;
    let key = steps.first().and_then(|step| match step {
        Step::Entry(key) => Some(key.span),
        Step::Item(_) => None,
    });
    let path = steps.iter().rev().fold(path.to_owned(), |path, step| match step {
        Step::Item(index) => format!("{path}[{index}]"),
        Step::Entry(key) => join(&path, &key.text),
    });
    Some(Found { node, path, key })
}

/// Notes the way to a node, the last step first.
fn steps_to<'n>(node: &'n Node, target: *const Node, steps: &mut Vec<Step<'n>>) -> Option<&'n Node> {
    if ptr::eq(node, target) {
        return Some(node);
    }
    let (step, found) = match &node.value {
        Value::Scalar(_) | Value::Unset => return None,
        Value::List(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| Some((Step::Item(index), steps_to(item, target, steps)?)))?,
        Value::Table(entries) => entries
            .iter()
            .find_map(|(key, value)| Some((Step::Entry(key), steps_to(value, target, steps)?)))?,
    };
    steps.push(step);
    Some(found)
}

#[cfg(test)]
mod tests;
