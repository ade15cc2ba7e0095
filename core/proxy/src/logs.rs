//! Exchanges that have ended and wait for their `on_log`.

use std::cell::RefCell;
use std::collections::VecDeque;

use portcullis_plugin::{Exchange, HookName};
use tokio::sync::Notify;

use crate::live::Scope;

/// Ended exchanges that may wait per worker; more are counted and forgotten.
const MAX_WAITING: usize = 16_384;
/// Exchanges logged before other tasks of the worker get their turn.
const BATCH: usize = 32;

/// A worker's queue. Filling it is all that a destructor does; hooks run in a task of their own.
#[derive(Default)]
pub(crate) struct LogQueue {
    waiting: RefCell<VecDeque<Ended>>,
    filled: Notify,
}

/// An exchange that has ended, with the chain that saw it.
pub(crate) struct Ended {
    pub(crate) exchange: Exchange,
    pub(crate) scope: Scope,
    pub(crate) entered: u16,
}

impl LogQueue {
    /// Queues an exchange; false if the queue is full.
    pub(crate) fn push(&self, ended: Ended) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= MAX_WAITING {
            return false;
        }
        waiting.push_back(ended);
        if waiting.len() == 1 {
            self.filled.notify_one();
        }
        true
    }

    pub(crate) async fn drain_forever(&self) {
        loop {
            self.filled.notified().await;
            self.drain().await;
        }
    }

    /// Runs `on_log` for everything that waits.
    pub(crate) async fn drain(&self) {
        let mut run = 0;
        loop {
            let Some(mut ended) = self.waiting.borrow_mut().pop_front() else { return };
            let chain = ended.scope.chain();
            chain.backward(HookName::OnLog, &mut ended.exchange, ended.entered, u16::MAX).await;
            run += 1;
            if run % BATCH == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}
