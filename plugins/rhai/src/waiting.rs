//! Calls that may have to wait.
//!
//! The interpreter can't be suspended, so a script that may wait runs on a thread of its own, which stands still
//! meanwhile. What it waits for is done where the hook was called: the hook's future polls it, over that worker's
//! connections. The exchange lies on a [`Desk`] between the two, from which the hook takes it back when the call is
//! over, also when nobody waits for the script any more.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use portcullis_plugin::{Exchange, Offload, Offloaded, PluginError};
use rhai::{EvalAltResult, Position};

use crate::call::Outcome;

/// Something that a script waits for.
type Errand = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a script on its thread and the hook that waits for it share.
pub(crate) struct Desk {
    /// None once the call is over.
    exchange: Mutex<Option<Exchange>>,
    errands: Mutex<Errands>,
}

#[derive(Default)]
struct Errands {
    next: Option<Errand>,
    /// Of the hook, which waits for the next.
    waker: Option<Waker>,
    is_over: bool,
}

impl Desk {
    /// Lets a host function at the exchange. The hook waits for it where it gives up at that moment, but for no more of
    /// the script.
    pub(crate) fn exchange<T>(&self, work: impl FnOnce(&mut Exchange) -> Outcome<T>) -> Outcome<T> {
        lock(&self.exchange).as_mut().map_or_else(|| Err(given_up()), work)
    }

    /// Has the hook's worker do `work`, and waits for it.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Outcome<T> {
        let (tell, told) = sync_channel(1);
        let errand: Errand = Box::pin(async move { drop(tell.send(work.await)) });
        let waker = {
            let mut errands = lock(&self.errands);
            if errands.is_over {
                return Err(given_up());
            }
            errands.next = Some(errand);
            errands.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        // It ends without an answer when the hook does.
        told.recv().map_err(|_| given_up())
    }

    fn next(&self, waker: &Waker) -> Option<Errand> {
        let mut errands = lock(&self.errands);
        errands.waker = Some(waker.clone());
        errands.next.take()
    }

    /// Nothing is waited for any more; answers with the exchange. A script that learns of it finds none.
    fn close(&self) -> Option<Exchange> {
        let exchange = lock(&self.exchange).take();
        let next = {
            let mut errands = lock(&self.errands);
            errands.is_over = true;
            errands.next.take()
        };
        drop(next);
        exchange
    }
}

/// What a script ends with whose call is over. It can't catch this.
fn given_up() -> Box<EvalAltResult> {
    Box::new(EvalAltResult::ErrorTerminated("the call was given up".into(), Position::NONE))
}

/// The wait for a script on its thread. The exchange is back when this is dropped, whatever became of the script.
pub(crate) struct Waiting<'a, T> {
    exchange: &'a mut Exchange,
    desk: Arc<Desk>,
    script: Offloaded<T>,
    errand: Option<Errand>,
}

impl<'a, T: Send + 'static> Waiting<'a, T> {
    /// Runs `script` on one of `threads`.
    pub(crate) fn new(
        exchange: &'a mut Exchange,
        threads: &Offload,
        script: impl FnOnce(Arc<Desk>) -> T + Send + 'static,
    ) -> Self {
        let desk = Arc::new(Desk { exchange: Mutex::new(Some(exchange.lend())), errands: Mutex::default() });
        let its_own = desk.clone();
        Waiting { exchange, desk, script: threads.run(move || script(its_own)), errand: None }
    }
}

impl<T> Future for Waiting<'_, T> {
    type Output = Result<T, PluginError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            if let Some(errand) = &mut this.errand {
                // The script stands still until this is done.
                ready!(errand.as_mut().poll(context));
            }
            this.errand = this.desk.next(context.waker());
            if this.errand.is_none() {
                return Pin::new(&mut this.script).poll(context);
            }
        }
    }
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        if let Some(exchange) = self.desk.close() {
            self.exchange.restore(exchange);
        }
        self.errand = None;
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use portcullis_plugin::{CpuPool, ExchangeBuilder, Job, block_on};

    use super::*;

    /// A thread for every job.
    struct Threads;

    impl CpuPool for Threads {
        fn submit(&self, job: Job) -> Result<(), Job> {
            thread::spawn(|| job.run());
            Ok(())
        }
    }

    fn threads() -> Offload {
        Offload::new(Arc::new(Threads))
    }

    fn path(desk: &Desk) -> Outcome<String> {
        desk.exchange(|exchange| Ok(exchange.request().path().to_owned()))
    }

    #[test]
    fn what_a_script_waits_for_is_done_where_the_hook_is() {
        let mut exchange = ExchangeBuilder::get("/a").build();
        let here = thread::current().id();
        let script = move |desk: Arc<Desk>| {
            let ids = [(); 2].map(|()| desk.wait(async { thread::current().id() }).unwrap());
            (ids, thread::current().id(), path(&desk).unwrap())
        };
        let (ids, there, seen) = block_on(Waiting::new(&mut exchange, &threads(), script)).unwrap();
        assert!(ids == [here, here] && there != here && seen == "/a");
        assert_eq!(exchange.request().path(), "/a");
    }

    #[test]
    fn a_script_that_nobody_waits_for_any_more_gets_neither_answer_nor_exchange() {
        let mut exchange = ExchangeBuilder::get("/a").build();
        let (tell, told) = channel();
        let script = move |desk: Arc<Desk>| {
            let answer = desk.wait(std::future::pending::<()>()).map_err(|error| error.to_string());
            let again = desk.wait(async {}).map_err(|error| error.to_string());
            tell.send((answer, again, path(&desk).map_err(|error| error.to_string()))).unwrap();
        };
        let mut waiting = Waiting::new(&mut exchange, &threads(), script);
        // Until the script has begun to wait.
        while waiting.errand.is_none() {
            assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(Waker::noop())).is_pending());
            thread::yield_now();
        }
        drop(waiting);
        assert_eq!(exchange.request().path(), "/a");
        let (answer, again, path) = told.recv().unwrap();
        for ended in [answer, again, path.map(drop)] {
            assert_eq!(ended.unwrap_err(), "Script terminated");
        }
    }

    #[test]
    fn the_exchange_comes_back_from_a_script_that_panics() {
        let mut exchange = ExchangeBuilder::get("/a").build();
        let script = |desk: Arc<Desk>| drop(desk.exchange::<()>(|_| panic!("within a host function")));
        assert!(block_on(Waiting::new(&mut exchange, &threads(), script)).is_err());
        assert_eq!(exchange.request().path(), "/a");
    }
}
