//! The plugins that change a body as it passes.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use portcullis_plugin::{Cursor, Reply};

use crate::chain::{Filter, Instance};

/// The filters of a body, in the order in which chunks pass them.
#[derive(Default)]
pub(super) struct Filters {
    filters: Vec<Filter>,
    ended: bool,
}

/// A filter refused.
pub(crate) struct FilterRefusal {
    pub(crate) instance: Arc<Instance>,
    pub(crate) cursor: Cursor,
    pub(crate) reply: Box<Reply>,
}

impl Filters {
    pub(super) fn new(filters: Vec<Filter>) -> Self {
        Filters { filters, ended: false }
    }

    /// Whether what passes may come out as something else, or later. Those in shadow only watch.
    pub(super) fn may_alter(&self) -> bool {
        !self.filters.iter().all(|filter| filter.instance.in_shadow)
    }

    /// Passes a chunk. Who only watches must not be a reason to ask for an end that is known: with the `last` chunk
    /// it is told of it.
    pub(super) fn chunk(&mut self, chunk: Bytes, last: bool) -> Result<Bytes, FilterRefusal> {
        let passed = self.filters.iter_mut().try_fold(chunk, |chunk, filter| {
            if chunk.is_empty() { Ok(chunk) } else { pass(filter, Some(chunk)) }
        })?;
        if last && !self.may_alter() {
            self.end()?;
        }
        Ok(passed)
    }

    /// What follows the body, as the filters leave it.
    pub(super) fn trailers(&mut self, trailers: &mut HeaderMap) -> Result<(), FilterRefusal> {
        self.filters
            .iter_mut()
            .try_for_each(|filter| filter.trailers(trailers).map_err(|reply| refusal(filter, reply)))
    }

    /// What the filters still hold; what one gives at its end passes those after it.
    pub(super) fn end(&mut self) -> Result<Bytes, FilterRefusal> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(Bytes::new());
        }
        self.filters.iter_mut().try_fold(Bytes::new(), |carried, filter| {
            let passed = if carried.is_empty() { carried } else { pass(filter, Some(carried))? };
            let rest = pass(filter, None)?;
            Ok(match (passed.is_empty(), rest.is_empty()) {
                (_, true) => passed,
                (true, _) => rest,
                _ => [passed, rest].concat().into(),
            })
        })
    }
}

/// Passes a whole body, and what follows it, through filters that would also take it in chunks.
pub(crate) fn pass_whole(
    body: Bytes,
    trailers: &mut HeaderMap,
    filters: Vec<Filter>,
) -> Result<Bytes, FilterRefusal> {
    let mut filters = Filters::new(filters);
    let passed = filters.chunk(body, false)?;
    if !trailers.is_empty() {
        filters.trailers(trailers)?;
    }
    let rest = filters.end()?;
    Ok(if rest.is_empty() { passed } else { [passed, rest].concat().into() })
}

fn pass(filter: &mut Filter, chunk: Option<Bytes>) -> Result<Bytes, FilterRefusal> {
    filter.pass(chunk).map_err(|reply| refusal(filter, reply))
}

fn refusal(filter: &Filter, reply: Box<Reply>) -> FilterRefusal {
    FilterRefusal { instance: filter.instance.clone(), cursor: filter.cursor, reply }
}
