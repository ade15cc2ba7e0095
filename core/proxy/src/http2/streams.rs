//! What is known of the streams of an HTTP/2 connection.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// The streams of a connection, by the order in which they began.
pub(crate) struct Streams {
    begun: Cell<u64>,
    open: RefCell<BTreeMap<u64, Stream>>,
    last_active: Cell<Instant>,
    /// The stream that has just become a tunnel: the library begins to send what it says by a task of its own.
    switched: Cell<Option<u64>>,
}

#[derive(Default)]
struct Stream {
    /// Since when the response waits for the client to take more of it.
    unread_since: Option<Instant>,
    task: Option<AbortHandle>,
    /// Of a tunnel, what sends its bytes, and would wait for the client longer than the tunnel lasts.
    sender: Option<AbortHandle>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        let last_active = Cell::new(Instant::now());
        Streams { begun: Cell::new(0), open: RefCell::default(), last_active, switched: Cell::new(None) }
    }

    pub(crate) fn begin(&self) -> u64 {
        let stream = self.begun.replace(self.begun.get() + 1);
        self.open.borrow_mut().insert(stream, Stream::default());
        stream
    }

    pub(crate) fn end(&self, stream: u64) {
        self.open.borrow_mut().remove(&stream);
        self.last_active.set(Instant::now());
    }

    /// The response of a stream waits for the client, or no longer.
    pub(crate) fn waits_for_client(&self, stream: u64, waits: bool) {
        if let Some(stream) = self.open.borrow_mut().get_mut(&stream) {
            stream.unread_since = waits.then(Instant::now);
        }
    }

    /// The stream that began last is served by this task, or the tunnel that did.
    pub(super) fn serve_by(&self, task: AbortHandle) {
        if let Some(switched) = self.switched.take() {
            if let Some(stream) = self.open.borrow_mut().get_mut(&switched) {
                stream.sender = Some(task);
            }
            return;
        }
        if let Some(mut last) = self.open.borrow_mut().last_entry() {
            last.get_mut().task.get_or_insert(task);
        }
    }

    /// A stream that has become a tunnel is served by this task.
    pub(super) fn serve_on_by(&self, id: u64, task: AbortHandle) {
        if let Some(stream) = self.open.borrow_mut().get_mut(&id) {
            stream.task = Some(task);
            self.switched.set(Some(id));
        }
    }

    /// Ends the stream of a tunnel so that its client does not take that for an orderly end.
    pub(super) fn spoil(&self, id: u64) {
        if let Some(sender) = self.open.borrow().get(&id).and_then(|stream| stream.sender.as_ref()) {
            sender.abort();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Whether nothing has happened for so long.
    pub(super) fn are_idle(&self, limit: Duration) -> bool {
        self.is_empty() && self.last_active.get().elapsed() >= limit
    }

    /// Ends the streams whose responses have waited for so long to be taken; returns how many. What a task holds of
    /// a stream goes with it, and the client is told by a reset.
    pub(super) fn cut_unread(&self, limit: Duration) -> usize {
        let mut cut = 0;
        for stream in self.open.borrow_mut().values_mut() {
            if stream.unread_since.is_some_and(|since| since.elapsed() >= limit) {
                stream.unread_since = None;
                stream.task.iter().chain(&stream.sender).for_each(AbortHandle::abort);
                cut += usize::from(stream.task.is_some());
            }
        }
        cut
    }
}
