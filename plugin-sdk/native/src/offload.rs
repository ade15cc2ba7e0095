//! Work that takes longer than a worker may be held: run elsewhere, and waited for.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::hook::{ErrorKind, PluginError};

/// One piece of work for a [`CpuPool`].
pub trait Work: Send {
    /// Does it; never panics.
    fn run(self: Box<Self>);

    /// Whether somebody still waits for it.
    fn is_wanted(&self) -> bool;
}

/// Work, whatever its result is.
pub type Job = Box<dyn Work>;

/// Threads apart from the workers, with a bounded queue before them.
pub trait CpuPool: Send + Sync {
    /// Takes a job to run it as soon as a thread is free, or gives it back if the queue is full. A job
    /// that will never run is dropped.
    fn submit(&self, job: Job) -> Result<(), Job>;
}

/// The way to threads that may compute for milliseconds, which a worker may not: it serves other
/// requests meanwhile. Worth it from some 100 us on: the detour costs two
/// wake-ups of a thread.
#[derive(Clone)]
pub struct Offload(Arc<dyn CpuPool>);

impl Offload {
    /// Over these threads.
    pub fn new(pool: Arc<dyn CpuPool>) -> Self {
        Offload(pool)
    }

    /// Has `work` done elsewhere; the future is for [`Hook::Wait`](crate::Hook::Wait). It ends with
    /// the result, or with an error: a full queue is [`ErrorKind::Budget`], a panic
    /// [`ErrorKind::Panic`]. Work that has not begun when the future is dropped never does.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Offloaded<T> {
        let place = Arc::new(Place(Mutex::new(State::Queued(Box::new(work), None))));
        let ticket = Ticket(place.clone());
        if let Err(_refused) = self.0.submit(Box::new(ticket)) {
            place.end(Err(PluginError::new(ErrorKind::Budget, "too much other work waits for a thread")));
        }
        Offloaded(place)
    }
}

impl fmt::Debug for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Offload")
    }
}

/// The wait for offloaded work.
#[must_use = "work that nobody waits for is not done"]
pub struct Offloaded<T>(Arc<Place<T>>);

impl<T> Future for Offloaded<T> {
    type Output = Result<T, PluginError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.state();
        match &mut *state {
            State::Queued(_, waker) | State::Running(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            State::Done(_) | State::Over => match std::mem::replace(&mut *state, State::Over) {
                State::Done(result) => Poll::Ready(result),
                _ => Poll::Ready(Err(PluginError::failed("the work's result was taken already"))),
            },
        }
    }
}

impl<T> Drop for Offloaded<T> {
    fn drop(&mut self) {
        // With its work and what that holds, if it has not begun.
        let state = std::mem::replace(&mut *self.0.state(), State::Over);
        drop(state);
    }
}

/// Where work, then its result, lies.
struct Place<T>(Mutex<State<T>>);

type Task<T> = Box<dyn FnOnce() -> T + Send>;

enum State<T> {
    Queued(Task<T>, Option<Waker>),
    Running(Option<Waker>),
    Done(Result<T, PluginError>),
    /// Nobody waits any more.
    Over,
}

impl<T> Place<T> {
    fn run(&self) {
        let Some(work) = self.begin() else { return };
        let result = catch_unwind(AssertUnwindSafe(work));
        self.end(result.map_err(|panic| PluginError::new(ErrorKind::Panic, said(&*panic))));
    }

    fn begin(&self) -> Option<Task<T>> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Over) {
            State::Queued(work, waker) => {
                *state = State::Running(waker);
                Some(work)
            }
            other => {
                *state = other;
                None
            }
        }
    }

    /// Notes the result, unless nobody waits for it or there is one.
    fn end(&self, result: Result<T, PluginError>) {
        let mut state = self.state();
        let before = match &*state {
            State::Queued(..) | State::Running(_) => std::mem::replace(&mut *state, State::Done(result)),
            State::Done(_) | State::Over => return,
        };
        drop(state);
        if let State::Queued(_, Some(waker)) | State::Running(Some(waker)) = before {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job's hold on its place: one that is dropped without having run ends the wait too.
struct Ticket<T>(Arc<Place<T>>);

impl<T: Send> Work for Ticket<T> {
    fn run(self: Box<Self>) {
        self.0.run();
    }

    fn is_wanted(&self) -> bool {
        matches!(*self.0.state(), State::Queued(..))
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        self.0.end(Err(PluginError::failed("the work was given up")));
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    format!("offloaded work panicked: {}", text.unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::task::Wake;

    use super::*;
    use crate::tester::block_on;

    /// Keeps jobs until they are run; room for one.
    #[derive(Default)]
    struct Shelf(Mutex<Vec<Job>>);

    impl CpuPool for Shelf {
        fn submit(&self, job: Job) -> Result<(), Job> {
            let mut jobs = self.0.lock().unwrap();
            if !jobs.is_empty() {
                return Err(job);
            }
            jobs.push(job);
            Ok(())
        }
    }

    impl Shelf {
        fn run(&self) {
            let jobs = std::mem::take(&mut *self.0.lock().unwrap());
            jobs.into_iter().for_each(|job| job.run());
        }
    }

    fn shelf() -> (Arc<Shelf>, Offload) {
        let shelf = Arc::new(Shelf::default());
        (shelf.clone(), Offload::new(shelf))
    }

    #[derive(Default)]
    struct Wakes(AtomicU32);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[test]
    fn a_result_wakes_who_waits_for_it() {
        let (shelf, offload) = shelf();
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut wait = Box::pin(offload.run(|| 1 + 1));
        assert!(wait.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        shelf.run();
        assert_eq!(wakes.0.load(SeqCst), 1);
        assert_eq!(block_on(wait).unwrap(), 2);
    }

    #[test]
    fn a_full_queue_is_a_budget_error() {
        let (_shelf, offload) = shelf();
        let _waiting = offload.run(|| ());
        assert_eq!(block_on(offload.run(|| ())).unwrap_err().kind(), ErrorKind::Budget);
    }

    #[test]
    fn a_panic_is_an_error_and_stays_within() {
        let (shelf, offload) = shelf();
        let wait = offload.run(|| panic!("at the disco"));
        shelf.run();
        let error: PluginError = block_on(wait).unwrap_err();
        assert_eq!(
            (error.kind(), error.message()),
            (ErrorKind::Panic, "offloaded work panicked: at the disco")
        );
    }

    #[test]
    fn work_that_nobody_waits_for_any_more_is_let_go_at_once_and_not_done() {
        let (shelf, offload) = shelf();
        let body = Arc::new(());
        let held = body.clone();
        let wait = offload.run(move || drop(held));
        drop(wait);
        assert_eq!(Arc::strong_count(&body), 1, "what it holds is free before a thread comes by");
        shelf.run();
    }

    #[test]
    fn the_end_of_the_pool_ends_the_wait() {
        let (shelf, offload) = shelf();
        let wait = offload.run(|| ());
        shelf.0.lock().unwrap().clear();
        assert_eq!(block_on(wait).unwrap_err().kind(), ErrorKind::Failed);
    }
}
