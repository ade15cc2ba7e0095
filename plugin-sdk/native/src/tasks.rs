//! What a plugin has going on beside the hooks of requests.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// Something that goes on by itself.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs tasks on the worker that asks. A task outlives the hook that began it and ends at the latest
/// with its worker; what must end with its plugin holds that weakly.
pub trait Tasks: Send + Sync {
    /// Runs `task` on the calling worker, and nowhere else. Nobody waits for it.
    fn spawn(&self, task: Task);

    /// Passes when `time` has passed.
    fn sleep(&self, time: Duration) -> Task;
}
