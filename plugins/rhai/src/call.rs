//! One call of a script: the exchange is lent to the calling thread, and what the call uses is
//! counted.
//!
//! A hook runs from beginning to end on one thread, so the state of a call is thread-local: nothing is
//! shared, nothing is locked, unless the script may [wait](crate::waiting). Handles such as `ctx` hold only the number of their call; used in another
//! one, they answer with an error.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portcullis_plugin::{Exchange, thread_time};
use rhai::{Dynamic, EvalAltResult, Position};

use crate::limits::{LOG_LINES, Limits};
use crate::waiting::Desk;

/// What a host function returns.
pub(crate) type Outcome<T> = Result<T, Box<EvalAltResult>>;

/// Operations before the first look at the clock: most policies end before it.
const FIRST_LOOK: u64 = 64;

/// Operations between two looks at the clock, while operations are quick.
const CLOCK_EVERY: u64 = 16;

/// A stretch of operations that took longer than this is followed by a look after every single one.
const SLOW: Duration = Duration::from_micros(20);

/// Bytes that a host function copies or compares at the price of one operation.
const BYTES_PER_OPERATION: usize = 64;

thread_local! {
    static LENT: RefCell<Option<(CallId, Lent)>> = const { RefCell::new(None) };
    static METER: Meter = const { Meter::new() };
    static NEXT_CALL: Cell<u64> = Cell::new(first_call_of_this_thread());
}

/// Where the exchange of a call is.
enum Lent {
    /// With this thread.
    Here(Exchange),
    /// Where the hook that waits for this thread can take it back.
    Desk(Arc<Desk>),
}

/// Which call a handle belongs to, unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallId(u64);

fn first_call_of_this_thread() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    // Calls of a thread would have to run for centuries to reach the next thread's numbers.
    THREADS.fetch_add(1, Ordering::Relaxed) << 44
}

/// Runs `body` with the exchange in the thread's cell. It is back in `exchange` afterwards, also when
/// `body` panics.
pub(crate) fn with_lent<T>(exchange: &mut Exchange, limits: &Limits, body: impl FnOnce(CallId) -> T) -> T {
    let call = next_call();
    metered(limits, || {
        let lent = exchange.lend();
        LENT.set(Some((call, Lent::Here(lent))));
        let _restore = Restore(exchange);
        body(call)
    })
}

/// Runs `body` with the exchange on `desk`, where it stays.
pub(crate) fn with_desk<T>(desk: Arc<Desk>, limits: &Limits, body: impl FnOnce(CallId) -> T) -> T {
    let call = next_call();
    metered(limits, || {
        LENT.set(Some((call, Lent::Desk(desk))));
        let _leave = Leave;
        body(call)
    })
}

fn next_call() -> CallId {
    CallId(NEXT_CALL.replace(NEXT_CALL.get() + 1))
}

struct Restore<'a>(&'a mut Exchange);

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        if let Some((_, Lent::Here(lent))) = LENT.take() {
            self.0.restore(lent);
        }
    }
}

struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        LENT.set(None);
    }
}

/// Lets a host function at the exchange of `call`.
pub(crate) fn exchange<T>(call: CallId, work: impl FnOnce(&mut Exchange) -> Outcome<T>) -> Outcome<T> {
    LENT.with(|lent| match lent.try_borrow_mut().as_deref_mut() {
        Ok(Some((current, Lent::Here(exchange)))) if *current == call => work(exchange),
        Ok(Some((current, Lent::Desk(desk)))) if *current == call => desk.exchange(work),
        _ => Err("the exchange is over for this call: a handle can't be kept".into()),
    })
}

/// Has the worker do `work`, and waits for it.
pub(crate) fn wait<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Outcome<T> {
    let desk = LENT.with(|lent| match lent.try_borrow().as_deref() {
        Ok(Some((_, Lent::Desk(desk)))) => Some(desk.clone()),
        _ => None,
    });
    match desk {
        Some(desk) => desk.wait(work),
        None => Err("only hooks of a request can wait: not `on_connection`, and nothing at load".into()),
    }
}

/// Calls to upstreams that this call of a hook has made.
pub(crate) fn calls() -> u32 {
    METER.with(|meter| meter.calls.get())
}

/// Notes how many they are by now.
pub(crate) fn note_calls(calls: u32) {
    METER.with(|meter| meter.calls.set(calls));
}

/// Runs `body` under `limits`.
pub(crate) fn metered<T>(limits: &Limits, body: impl FnOnce() -> T) -> T {
    METER.with(|meter| meter.start(limits));
    let _stop = Stop;
    body()
}

struct Stop;

impl Drop for Stop {
    fn drop(&mut self) {
        METER.with(Meter::stop);
    }
}

/// Counts one operation; answers with the limit that is reached, if one is.
pub(crate) fn tick() -> Option<Dynamic> {
    METER.with(|meter| {
        let used = meter.used.get() + 1;
        meter.used.set(used);
        if used < meter.look_at.get() { None } else { meter.look().map(Dynamic::from) }
    })
}

/// Counts the copying or comparing of `bytes`, before it is done.
pub(crate) fn charge(bytes: usize) -> Outcome<()> {
    charge_operations(bytes / BYTES_PER_OPERATION)
}

/// Counts work worth `operations`, before it is done.
pub(crate) fn charge_operations(operations: usize) -> Outcome<()> {
    METER.with(|meter| {
        meter.used.set(meter.used.get().saturating_add(operations as u64));
        if meter.used.get() <= meter.limit.get() {
            return Ok(());
        }
        Err(Box::new(EvalAltResult::ErrorTerminated(OPERATIONS.into(), Position::NONE)))
    })
}

/// Takes back what was counted of work that is not the script's.
pub(crate) fn forgive(operations: u64) {
    METER.with(|meter| meter.used.set(meter.used.get().saturating_sub(operations)));
}

/// Operations that the last call of this thread used.
pub(crate) fn used() -> u64 {
    METER.with(|meter| meter.used.get())
}

/// Whether the call may log another line.
pub(crate) fn may_log() -> bool {
    METER.with(|meter| {
        let left = meter.lines.get();
        meter.lines.set(left.saturating_sub(1));
        left > 0
    })
}

/// The token of a call that ran out of operations.
pub(crate) const OPERATIONS: &str = "operations";
/// The token of a call that ran out of time.
pub(crate) const TIME: &str = "time";

/// Counts what a call uses.
struct Meter {
    used: Cell<u64>,
    limit: Cell<u64>,
    /// Count at which the limits are looked at again.
    look_at: Cell<u64>,
    time: Cell<Duration>,
    /// Set at the first look, so that a short call never reads a clock: when to look at the
    /// thread's own clock, and where that stood at the beginning.
    deadline: Cell<Option<(Instant, Duration)>>,
    looked: Cell<Option<Instant>>,
    lines: Cell<u32>,
    calls: Cell<u32>,
}

impl Meter {
    const fn new() -> Self {
        Meter {
            used: Cell::new(0),
            limit: Cell::new(u64::MAX),
            look_at: Cell::new(u64::MAX),
            time: Cell::new(Duration::ZERO),
            deadline: Cell::new(None),
            looked: Cell::new(None),
            lines: Cell::new(0),
            calls: Cell::new(0),
        }
    }

    fn start(&self, limits: &Limits) {
        self.used.set(0);
        self.limit.set(limits.operations);
        self.look_at.set(FIRST_LOOK.min(limits.operations.saturating_add(1)));
        self.time.set(limits.time.0);
        self.deadline.set(None);
        self.looked.set(None);
        self.lines.set(LOG_LINES);
        self.calls.set(0);
    }

    /// Outside of calls, engines compile without limits of this kind.
    fn stop(&self) {
        self.limit.set(u64::MAX);
        self.look_at.set(u64::MAX);
    }

    #[cold]
    fn look(&self) -> Option<&'static str> {
        if self.used.get() > self.limit.get() {
            return Some(OPERATIONS);
        }
        let now = Instant::now();
        let (deadline, begun) = self.deadline.get().unwrap_or_else(|| (now + self.time.get(), thread_time()));
        self.deadline.set(Some((deadline, begun)));
        if now > deadline {
            // On a busy machine the thread may not have run all that while.
            match self.time.get().checked_sub(thread_time().saturating_sub(begun)) {
                Some(left) if !left.is_zero() => self.deadline.set(Some((now + left, begun))),
                _ => return Some(TIME),
            }
        }
        let slow = self.looked.replace(Some(now)).is_some_and(|before| now - before > SLOW);
        let pause = if slow { 1 } else { CLOCK_EVERY };
        self.look_at.set((self.used.get() + pause).min(self.limit.get().saturating_add(1)));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_plugin::ExchangeBuilder;

    #[test]
    fn the_exchange_is_reached_by_its_own_call_only_and_comes_back() {
        let mut exchange = ExchangeBuilder::get("/a").build();
        let limits = Limits::default();
        let path = |call| super::exchange(call, |exchange| Ok(exchange.request().path().to_owned()));
        let kept = with_lent(&mut exchange, &limits, |call| {
            assert_eq!(path(call).unwrap(), "/a");
            call
        });
        assert!(path(kept).unwrap_err().to_string().contains("over"));
        with_lent(&mut exchange, &limits, |_| assert!(path(kept).is_err()));
        assert_eq!(exchange.request().path(), "/a");
    }

    #[test]
    fn the_exchange_comes_back_after_a_panic() {
        let mut exchange = ExchangeBuilder::get("/a").build();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            with_lent(&mut exchange, &Limits::default(), |call| {
                super::exchange::<()>(call, |_| panic!("within a host function"))
            })
        }));
        assert!(panicked.is_err() && !exchange.is_hollow());
    }

    #[test]
    fn operations_are_counted_exactly() {
        let limits = Limits { operations: 100, ..Limits::default() };
        metered(&limits, || {
            assert!((0..100).all(|_| tick().is_none()));
            assert!(tick().is_some());
        });
        metered(&limits, || {
            assert!(charge(99 * BYTES_PER_OPERATION).is_ok() && tick().is_none() && tick().is_some());
        });
        metered(&limits, || assert!(charge_operations(101).is_err()));
        assert!((0..1000).all(|_| tick().is_none()), "nothing is counted outside of a call");
    }
}
