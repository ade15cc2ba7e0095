//! Masks text as it passes, with a tail held back so that no match is cut in two.

use std::sync::Arc;

use bytes::Bytes;
use portcullis_plugin::{BodyFilter, Filtered, PluginError};

use super::Rules;

/// Bytes kept of what has passed, so that a word boundary at the tail's start is told right.
const CONTEXT: usize = 4;

/// Filters one body.
pub(super) struct Filter {
    rules: Arc<Rules>,
    max_match: usize,
    /// A little of what has passed, then what has not.
    held: Vec<u8>,
    /// How much of `held` has passed.
    passed: usize,
}

impl Filter {
    /// A filter that finds matches of at most `max_match` bytes wherever the chunks are cut.
    pub(super) fn new(rules: Arc<Rules>, max_match: usize) -> Self {
        Filter { rules, max_match, held: Vec::new(), passed: 0 }
    }

    /// Lets pass what can't be the beginning of a match any more: everything before `settled`, and
    /// the whole of a match that begins there.
    fn pass(&mut self, settled: usize) -> Bytes {
        let mut out = Vec::with_capacity(settled.saturating_sub(self.passed));
        let mut from = self.passed;
        let begun = self.rules.patterns.matches(&self.held, from).take_while(|found| found.start < settled);
        for found in begun {
            out.extend_from_slice(&self.held[from..found.start]);
            out.extend_from_slice(self.rules.replace.as_bytes());
            from = found.end;
        }
        let settled = settled.max(from);
        out.extend_from_slice(&self.held[from..settled]);
        let forget = settled.saturating_sub(CONTEXT);
        self.held.drain(..forget);
        self.passed = settled - forget;
        Bytes::from(out)
    }
}

impl BodyFilter for Filter {
    fn chunk(&mut self, chunk: Bytes) -> Result<Filtered, PluginError> {
        self.held.extend_from_slice(&chunk);
        // A match that begins within the last `max_match` bytes may go on in the next chunk, unless
        // its line has ended.
        let line_end = self.held.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let settled = line_end.max(self.held.len().saturating_sub(self.max_match)).max(self.passed);
        Ok(Filtered::Pass(self.pass(settled)))
    }

    fn end(&mut self) -> Result<Filtered, PluginError> {
        Ok(Filtered::Pass(self.pass(self.held.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::patterns::Patterns;
    use super::*;

    fn filter(patterns: &[&str], max_match: usize) -> Filter {
        let patterns: Vec<String> = patterns.iter().map(|&text| text.to_owned()).collect();
        let patterns = Patterns::parse("patterns", &patterns).unwrap();
        Filter::new(Arc::new(Rules { fields: Vec::new(), patterns, replace: "*".to_owned() }), max_match)
    }

    fn passed(filtered: Result<Filtered, PluginError>) -> Bytes {
        match filtered.unwrap() {
            Filtered::Pass(chunk) => chunk,
            Filtered::Refuse(_) => panic!("nothing is refused"),
        }
    }

    fn run(mut filter: Filter, chunks: impl Iterator<Item = Bytes>) -> Vec<u8> {
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend(passed(filter.chunk(chunk)));
        }
        out.extend(passed(filter.end()));
        out
    }

    #[test]
    fn wherever_the_chunks_are_cut_the_outcome_is_the_same() {
        let text = "card 4111 1111 1111 1111 and 94111111111111111, mail a.b@mail.example.com\n\
                    x4111111111111111 4111111111111111\nlast 078-05-1120";
        let whole = "card * and 94111111111111111, mail *\nx4111111111111111 *\nlast *";
        for size in 1..text.len() {
            let chunks = text.as_bytes().chunks(size).map(Bytes::copy_from_slice);
            let out = run(filter(&["card", "email", "us_ssn"], 64), chunks);
            assert_eq!(String::from_utf8(out).unwrap(), whole, "chunks of {size}");
        }
    }

    #[test]
    fn a_finished_line_passes_at_once_and_an_unfinished_one_is_held_back_to_the_bound() {
        let mut filter = filter(&["email"], 64);
        assert_eq!(passed(filter.chunk(Bytes::from_static(b"data: 1\n\nda"))), "data: 1\n\n");
        assert_eq!(passed(filter.chunk(Bytes::from_static(b"ta: 2\n"))), "data: 2\n");
        let mut through = 0;
        for _ in 0..1000 {
            through += passed(filter.chunk(Bytes::from_static(&[b'x'; 100]))).len();
            assert!(filter.held.len() <= 64 + CONTEXT, "{}", filter.held.len());
        }
        assert_eq!(through + passed(filter.end()).len(), 100_000);
    }
}
