//! Templates by segment: one step down per segment of the path.

use std::collections::HashMap;

use super::pattern::{Segment, Template};
use super::{Candidates, Captures, count_visit};

/// A tree of segments. A look-up goes down each branch at most once, and only branches that fit, so it is bounded by
/// the depth of the tree and by how many templates overlap, not by how many there are.
#[derive(Debug, Default)]
pub(super) struct Tree {
    root: Node,
}

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, Node>,
    parameter: Option<Box<Node>>,
    /// Templates that end here.
    ends: Candidates,
    /// Templates that take whatever follows.
    rest: Candidates,
}

impl Tree {
    /// The place of a template.
    pub(super) fn template(&mut self, template: &Template) -> &mut Candidates {
        let mut node = &mut self.root;
        for segment in template.segments() {
            node = match segment {
                Segment::Literal(literal) => node.literals.entry(literal.clone()).or_default(),
                Segment::Parameter(_) => node.parameter.get_or_insert_default(),
                Segment::Rest(_) => return &mut node.rest,
            };
        }
        &mut node.ends
    }

    /// The place of a prefix of whole segments; a slash at its end makes no difference.
    pub(super) fn prefix(&mut self, prefix: &str) -> &mut Candidates {
        let mut node = &mut self.root;
        for segment in prefix.split('/').filter(|segment| !segment.is_empty()) {
            node = node.literals.entry(segment.into()).or_default();
        }
        &mut node.rest
    }

    pub(super) fn for_each(&mut self, act: &mut impl FnMut(&mut Candidates)) {
        self.root.for_each(act);
    }

    /// Shows the places that match `path`, by precedence, until `accept` takes one.
    pub(super) fn visit(&self, path: &str, accept: &mut impl FnMut(&[u32], &Captures) -> bool) -> bool {
        // `*`, the one target that is no path, has no segments.
        path.starts_with('/') && self.root.visit(path, Some(1), &mut Captures::new(), accept)
    }
}

impl Node {
    /// `start` is where the next segment starts, or none behind the last one.
    fn visit(
        &self,
        path: &str,
        start: Option<usize>,
        captures: &mut Captures,
        accept: &mut impl FnMut(&[u32], &Captures) -> bool,
    ) -> bool {
        count_visit();
        let taken = match start {
            Some(start) => self.descend(path, start, captures, accept),
            None => !self.ends.is_empty() && accept(&self.ends, captures),
        };
        if taken || self.rest.is_empty() {
            return taken;
        }
        captures.push((start.unwrap_or(path.len()) as u32, path.len() as u32));
        let taken = accept(&self.rest, captures);
        captures.pop();
        taken
    }

    fn descend(
        &self,
        path: &str,
        start: usize,
        captures: &mut Captures,
        accept: &mut impl FnMut(&[u32], &Captures) -> bool,
    ) -> bool {
        if self.literals.is_empty() && self.parameter.is_none() {
            return false;
        }
        let rest = path.get(start..).unwrap_or_default();
        let segment = rest.split('/').next().unwrap_or_default();
        let end = start + segment.len();
        let next = (end < path.len()).then_some(end + 1);
        if self.literals.get(segment).is_some_and(|child| child.visit(path, next, captures, accept)) {
            return true;
        }
        let Some(child) = self.parameter.as_ref().filter(|_| !segment.is_empty()) else { return false };
        captures.push((start as u32, end as u32));
        let taken = child.visit(path, next, captures, accept);
        captures.pop();
        taken
    }

    fn for_each(&mut self, act: &mut impl FnMut(&mut Candidates)) {
        act(&mut self.ends);
        act(&mut self.rest);
        self.literals.values_mut().for_each(|child| child.for_each(act));
        if let Some(child) = &mut self.parameter {
            child.for_each(act);
        }
    }
}
