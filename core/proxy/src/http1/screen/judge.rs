//! Follows the messages of one connection: head, body, head, ... and says how many bytes may pass.

use super::chunked::ChunkedJudge;
use super::head::{Framing, HeadJudge, HeadVerdict};
use super::{Limits, Refusal};

/// Where in the stream of messages the connection stands. It never looks at a byte twice, except at those of the line
/// in a head that is still arriving.
pub(super) struct Judge {
    state: State,
    heads: u64,
    /// The current request asks to switch protocols.
    switches: bool,
}

enum State {
    Head(HeadJudge),
    Length(u64),
    Chunked(ChunkedJudge),
    /// Behind a request that asks to switch protocols: what follows is either raw or the next head, and the service
    /// has yet to say which.
    Undecided,
    Tunnel,
    Stopped,
}

/// The judge will pass nothing more.
pub(super) enum Stop {
    Head(Refusal),
    Body(Refusal),
}

impl Judge {
    pub(super) fn new() -> Judge {
        Judge { state: State::Head(HeadJudge::default()), heads: 0, switches: false }
    }

    /// How many of `bytes` may pass. They begin where the bytes passed so far ended, so the start of a head comes
    /// again, with what has arrived since, until the head is complete.
    pub(super) fn advance(&mut self, bytes: &[u8], limits: &Limits) -> (usize, Option<Stop>) {
        let mut passed = 0;
        loop {
            let rest = bytes.get(passed..).unwrap_or_default();
            if rest.is_empty() {
                return (passed, None);
            }
            let stop = match &mut self.state {
                State::Head(head) => match head.advance(rest, limits) {
                    Ok(None) => return (passed, None),
                    Ok(Some(verdict)) => {
                        passed += verdict.len;
                        self.begin_body(verdict);
                        continue;
                    }
                    Err(refusal) => Stop::Head(refusal),
                },
                State::Length(left) => {
                    let taken = (*left).min(rest.len() as u64);
                    passed += taken as usize;
                    *left -= taken;
                    if *left == 0 {
                        self.end_message();
                    }
                    continue;
                }
                State::Chunked(body) => {
                    let progress = body.advance(rest, limits);
                    passed += progress.passed;
                    match progress.end {
                        Ok(false) => return (passed, None),
                        Ok(true) => {
                            self.end_message();
                            continue;
                        }
                        Err(refusal) => Stop::Body(refusal),
                    }
                }
                State::Undecided | State::Stopped => return (passed, None),
                State::Tunnel => return (bytes.len(), None),
            };
            self.state = State::Stopped;
            return (passed, Some(stop));
        }
    }

    /// Heads passed so far, which is also the ordinal of the next one.
    pub(super) fn heads(&self) -> u64 {
        self.heads
    }

    pub(super) fn in_head(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Whether it is the client's turn to begin or finish a head.
    pub(super) fn awaits_head(&self) -> bool {
        matches!(self.state, State::Head(_) | State::Undecided)
    }

    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    pub(super) fn stop(&mut self) {
        self.state = State::Stopped;
    }

    /// Passes everything from here on; not inside a body, and not after a refusal. True if that is new.
    pub(super) fn tunnel(&mut self) -> bool {
        let between = self.awaits_head();
        if between {
            self.state = State::Tunnel;
        }
        between
    }

    /// Judges the next head, the protocol having stayed what it was. True if that was open.
    pub(super) fn resume(&mut self) -> bool {
        let undecided = matches!(self.state, State::Undecided);
        if undecided {
            self.state = State::Head(HeadJudge::default());
        }
        undecided
    }

    fn begin_body(&mut self, verdict: HeadVerdict) {
        self.heads += 1;
        self.switches = verdict.switches;
        match verdict.framing {
            Framing::Empty => self.end_message(),
            Framing::Length(length) => self.state = State::Length(length),
            Framing::Chunked => self.state = State::Chunked(ChunkedJudge::new()),
        }
    }

    fn end_message(&mut self) {
        self.state = if self.switches { State::Undecided } else { State::Head(HeadJudge::default()) };
    }
}
