//! Exchanges that have ended and wait for their `on_log`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use futures_util::FutureExt;
use portcullis_plugin::{Exchange, HookName};
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::body::Held;
use crate::chain::guarded;
use crate::live::Scope;
use crate::worker::Worker;

/// Ended exchanges that may wait per worker; more are counted and forgotten.
const MAX_WAITING: usize = 16_384;

/// A worker's queue. Filling it is all that a destructor does; hooks run in a task of their own.
#[derive(Default)]
pub(crate) struct LogQueue {
    waiting: RefCell<VecDeque<Ended>>,
    filled: Notify,
    closing: Cell<bool>,
}

/// An exchange that has ended, with the chain that saw it.
pub(crate) struct Ended {
    pub(crate) worker: Rc<Worker>,
    pub(crate) exchange: Exchange,
    pub(crate) scope: Scope,
    pub(crate) entered: u16,
    /// The bodies are still there for `on_log`, so their shares of the budget are, too.
    pub(crate) _held: SmallVec<[Held; 2]>,
}

impl Ended {
    async fn log(&mut self) {
        let chain = self.scope.chain();
        chain.backward(HookName::OnLog, &mut self.exchange, self.entered, u16::MAX).await;
        self.remember();
    }

    fn remember(&mut self) {
        if !self.exchange.is_hollow()
            && let Some(outcome) = self.exchange.core().outcome.take()
        {
            self.scope.remember(&self.worker, &mut self.exchange, *outcome);
        }
    }
}

impl LogQueue {
    /// Queues an exchange. If the queue is full, it is remembered all the same; its `on_log` is counted as dropped.
    pub(crate) fn push(&self, mut ended: Ended) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= MAX_WAITING {
            ended.worker.metrics.logs_dropped.increment();
            return ended.remember();
        }
        waiting.push_back(ended);
        if waiting.len() == 1 {
            self.filled.notify_one();
        }
    }

    /// Runs `on_log` for what is queued until the queue is [closed](Self::close) and empty.
    pub(crate) async fn run(&self) {
        loop {
            self.drain().await;
            if self.closing.get() {
                return;
            }
            self.filled.notified().await;
        }
    }

    /// Lets [`run`](Self::run) end once nothing waits any more.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.filled.notify_one();
    }

    /// Turn by turn, so that other tasks of the worker get theirs. A turn leaves none of those that waited when it began:
    /// with fewer a turn than exchanges end between two of them, a busy worker would fall behind until it forgets them.
    async fn drain(&self) {
        loop {
            let turn = self.waiting.borrow().len();
            if turn == 0 {
                return;
            }
            for _ in 0..turn {
                self.log_next().await;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn log_next(&self) {
        let Some(mut ended) = self.waiting.borrow_mut().pop_front() else { return };
        // A plugin that loses the exchange loses this one's log, not the worker's.
        if AssertUnwindSafe(ended.log()).catch_unwind().await.is_err() {
            tracing::error!("logging an exchange failed");
        }
        // State that plugins left in the exchange is dropped here; its panics are its own.
        if let Err(error) = guarded(|| drop(ended)) {
            tracing::error!(%error, "dropping an exchange failed");
        }
    }
}
