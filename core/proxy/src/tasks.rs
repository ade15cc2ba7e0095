//! What plugins have going on beside requests.

use std::time::Duration;

use portcullis_plugin::{Task, Tasks};

use crate::metrics::is_worker;

/// Runs tasks of plugins on the worker whose hook begins them.
#[derive(Debug, Clone, Copy)]
pub struct WorkerTasks;

impl Tasks for WorkerTasks {
    fn spawn(&self, task: Task) {
        // Elsewhere there is no runtime that would have it, nor anybody who could have asked in a hook.
        if is_worker() {
            tokio::task::spawn_local(task);
        }
    }

    fn sleep(&self, time: Duration) -> Task {
        Box::pin(tokio::time::sleep(time))
    }
}
