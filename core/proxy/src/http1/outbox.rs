//! What is to be written to a client: text of our own, and between it the pieces of bodies, as they came.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

/// Pieces of bodies up to this length are copied behind the text: that is cheaper than another slice.
const COPIED: usize = 2 * 1024;
/// What is gathered before it is written, but for the last piece.
const GATHERED: usize = 64 * 1024;
/// Pieces that are written at once.
const PIECES: usize = 8;

thread_local! {
    /// A buffer for whoever writes next: few connections write at a time, and most write everything at once.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What is to be written, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// The first `sent` bytes are gone.
    text: Vec<u8>,
    sent: usize,
    /// Pieces, each with the place in the text that it stands before.
    pieces: VecDeque<(usize, Bytes)>,
    /// Bytes in `pieces`.
    held: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.text.len() && self.pieces.is_empty()
    }

    /// Whether more should be gathered before it is written.
    pub(super) fn has_room(&self) -> bool {
        self.text.len() + self.held < GATHERED && self.pieces.len() < PIECES
    }

    #[cfg(test)]
    pub(super) fn text_capacity(&self) -> usize {
        self.text.capacity()
    }

    /// To write text to.
    pub(super) fn text(&mut self) -> &mut Vec<u8> {
        if self.text.capacity() == 0 {
            self.text = SPARE.take();
        }
        &mut self.text
    }

    /// Puts a piece behind what is there.
    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.len() <= COPIED {
            self.text().extend_from_slice(&piece);
        } else {
            self.held += piece.len();
            self.pieces.push_back((self.text.len(), piece));
        }
    }

    /// Writes until nothing is left.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let written = match self.pieces.is_empty() {
                true => {
                    let text = self.text.get(self.sent..).unwrap_or_default();
                    ready!(Pin::new(&mut *io).poll_write(cx, text))?
                }
                false => {
                    let mut slices = [IoSlice::new(&[]); 2 * PIECES + 1];
                    let count = self.slices(&mut slices);
                    let slices = slices.get(..count).unwrap_or_default();
                    ready!(Pin::new(&mut *io).poll_write_vectored(cx, slices))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            if self.is_empty() {
                self.rest();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What is to be written, as far as `slices` go; how many they are.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut from, mut count) = (self.sent, 0);
        let mut add = |bytes: &'a [u8]| {
            if let (false, Some(slice)) = (bytes.is_empty(), slices.get_mut(count)) {
                *slice = IoSlice::new(bytes);
                count += 1;
            }
        };
        for (at, piece) in &self.pieces {
            add(self.text.get(from..*at).unwrap_or_default());
            add(piece);
            from = *at;
        }
        add(self.text.get(from..).unwrap_or_default());
        count
    }

    /// Forgets what was written.
    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let text_end = self.pieces.front().map_or(self.text.len(), |(at, _)| *at);
            let of_text = written.min(text_end.saturating_sub(self.sent));
            self.sent += of_text;
            written -= of_text;
            let Some((_, piece)) = self.pieces.front_mut() else { return };
            let of_piece = written.min(piece.len());
            piece.advance(of_piece);
            self.held -= of_piece;
            written -= of_piece;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    /// An idle connection holds no buffer.
    fn rest(&mut self) {
        self.sent = 0;
        self.pieces = VecDeque::new();
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        SPARE.set(text);
    }
}
