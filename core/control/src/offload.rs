//! The threads for what plugins may not do on a worker: long computations, and scripts that stand still.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use portcullis_plugin::{CpuPool, Job};

/// Jobs that wait, per thread: most take a millisecond or less, so this is a quarter of a second of them.
/// Where the longest bodies, at 100 ms, fill it, hooks give up waiting before their turn comes.
const QUEUE_PER_THREAD: usize = 256;

/// Most threads: enough to keep half of a large machine's cores busy without being many.
const MAX_THREADS: usize = 8;

/// Scripts that wait for a thread, per thread.
const SCRIPTS_PER_THREAD: usize = 4;

/// Threads that start when there is work for them and end with this.
pub(crate) struct Pool {
    name: &'static str,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Most jobs that wait.
    room: usize,
    /// Most threads.
    limit: usize,
    threads: usize,
    idle: usize,
    /// Jobs that threads are at.
    running: usize,
    ended: bool,
}

impl State {
    /// A job for which a thread is free, or about to start, takes none of the room.
    fn is_full(&self) -> bool {
        self.jobs.len() + self.running >= self.room.saturating_add(self.limit)
    }
}

impl Pool {
    /// Half as many threads as there are cores: the workers are to have the others.
    pub(crate) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = (cores / 2).clamp(1, MAX_THREADS);
        Pool::with("offload", threads, threads * QUEUE_PER_THREAD)
    }

    /// For scripts; it takes none before it is [resized](Self::resize).
    pub(crate) fn for_scripts() -> Self {
        Pool::with("script", 0, 0)
    }

    /// So many threads, with room for `room` jobs before them.
    pub(crate) fn with(name: &'static str, limit: usize, room: usize) -> Self {
        let state = State { limit, room, ..State::default() };
        Pool { name, shared: Arc::new(Shared { state: Mutex::new(state), work: Condvar::new() }) }
    }

    /// So many threads for scripts. Those that are too many end with what they run.
    pub(crate) fn resize(&self, threads: u32) {
        let threads = usize::try_from(threads).unwrap_or(usize::MAX);
        let mut state = self.shared.state();
        (state.limit, state.room) = (threads, threads.saturating_mul(SCRIPTS_PER_THREAD));
        drop(state);
        self.shared.work.notify_all();
    }
}

impl CpuPool for Pool {
    fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = self.shared.state();
        if state.is_full() {
            // Clients that have gone must not keep others out.
            state.jobs.retain(|job| job.is_wanted());
        }
        if state.is_full() {
            return Err(job);
        }
        state.jobs.push_back(job);
        if state.jobs.len() <= state.idle || state.threads >= state.limit {
            drop(state);
            self.shared.work.notify_one();
            return Ok(());
        }
        let shared = self.shared.clone();
        match thread::Builder::new().name(self.name.into()).spawn(move || shared.run()) {
            Ok(_) => state.threads += 1,
            Err(error) if state.threads == 0 => {
                tracing::error!(%error, pool = self.name, "no thread can be started");
                return state.jobs.pop_back().map_or(Ok(()), Err);
            }
            // One of the others will come to it.
            Err(_) => {}
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.ended = true;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        self.shared.work.notify_all();
        drop(jobs);
    }
}

impl Shared {
    fn run(&self) {
        while let Some(job) = self.next() {
            // A job catches what its work does; this is for the destruction of what it leaves.
            let _ = catch_unwind(AssertUnwindSafe(|| job.run()));
            self.state().running -= 1;
        }
    }

    /// The next job, as soon as there is one; none at the end.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if state.threads > state.limit {
                state.threads -= 1;
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                state.running += 1;
                return Some(job);
            }
            if state.ended {
                return None;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::task::{Context, Poll, Waker};

    use portcullis_plugin::{ErrorKind, Offload, block_on};

    use super::*;

    /// Work that has begun, and goes on when told.
    fn held(offload: &Offload) -> (portcullis_plugin::Offloaded<String>, Sender<()>) {
        let (begun, begins) = channel();
        let (go, told): (_, Receiver<()>) = channel();
        let wait = offload.run(move || {
            begun.send(()).unwrap();
            told.recv().unwrap();
            thread::current().name().unwrap_or_default().to_owned()
        });
        begins.recv().unwrap();
        (wait, go)
    }

    #[test]
    fn the_queue_is_bounded_and_what_waits_is_done_in_turn() {
        let offload = Offload::new(Arc::new(Pool::with("offload", 1, 2)));
        let (first, go) = held(&offload);
        let waiting = [offload.run(|| 1), offload.run(|| 2)];
        let refused = pin!(offload.run(|| 3)).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(refused, Poll::Ready(Err(error)) if error.kind() == ErrorKind::Budget));
        go.send(()).unwrap();
        assert_eq!(block_on(first).unwrap(), "offload");
        assert_eq!(waiting.map(|wait| block_on(wait).unwrap()), [1, 2]);
        assert_eq!(block_on(offload.run(|| 3)).unwrap(), 3);
    }

    #[test]
    fn work_that_nobody_waits_for_keeps_no_other_out() {
        let offload = Offload::new(Arc::new(Pool::with("offload", 1, 2)));
        let (first, go) = held(&offload);
        drop([offload.run(|| 1), offload.run(|| 2)]);
        let wanted = offload.run(|| 3);
        go.send(()).unwrap();
        block_on(first).unwrap();
        assert_eq!(block_on(wanted).unwrap(), 3);
    }

    #[test]
    fn as_many_run_at_once_as_there_are_threads() {
        let offload = Offload::new(Arc::new(Pool::with("offload", 2, 2)));
        let (first, second) = (held(&offload), held(&offload));
        for (wait, go) in [second, first] {
            go.send(()).unwrap();
            block_on(wait).unwrap();
        }
    }

    #[test]
    fn a_pool_that_shrinks_ends_the_threads_that_are_too_many() {
        let pool = Arc::new(Pool::for_scripts());
        let offload = Offload::new(pool.clone());
        let refused = pin!(offload.run(|| 1)).poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(refused, Poll::Ready(Err(error)) if error.kind() == ErrorKind::Budget));
        pool.resize(2);
        let (first, second) = (held(&offload), held(&offload));
        pool.resize(1);
        for (wait, go) in [second, first] {
            go.send(()).unwrap();
            assert_eq!(block_on(wait).unwrap(), "script");
        }
        assert_eq!(block_on(offload.run(|| 1)).unwrap(), 1);
        assert_eq!(pool.shared.state().threads, 1);
    }

    #[test]
    fn a_panic_costs_no_thread() {
        let offload = Offload::new(Arc::new(Pool::with("offload", 1, 2)));
        for _ in 0..3 {
            assert_eq!(block_on(offload.run(|| panic!("told to"))).unwrap_err().kind(), ErrorKind::Panic);
        }
        assert_eq!(block_on(offload.run(|| 1)).unwrap(), 1);
    }

    #[test]
    fn the_end_of_the_pool_ends_every_wait() {
        let pool = Arc::new(Pool::with("offload", 1, 2));
        let offload = Offload::new(pool.clone());
        let (running, go) = held(&offload);
        let waiting = offload.run(|| 1);
        drop((offload, pool));
        assert_eq!(block_on(waiting).unwrap_err().kind(), ErrorKind::Failed);
        go.send(()).unwrap();
        assert!(block_on(running).is_ok());
    }
}
