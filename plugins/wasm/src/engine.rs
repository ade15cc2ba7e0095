//! The engines on which modules run, one set per process, and the clock that interrupts guests.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use portcullis_plugin::Size;
use wasmtime::{
    Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    Result,
};

use crate::proxy_wasm::Shared;

/// How often a guest that takes long is interrupted: it yields to the worker's other exchanges, and
/// its CPU time is counted in this unit.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// Ticks between two looks while no guest takes longer than one: a thread that wakes every millisecond
/// costs a CPU up to 3 % of its time (25 us each time, on a virtual machine).
pub(crate) const WATCH: u32 = 4;

/// Looks at every tick after a guest took long or had a budget of less than [`WATCH`]: for a second, so that the next
/// of an attack is interrupted early.
const HASTE: u32 = 1000;

/// Largest memory that a module may be granted; the pool reserves as much address space per slot anyway.
pub(crate) const MAX_MEMORY: Size = Size::mib(256);

/// Elements that a table may have: function tables of large guests have some thousands.
pub(crate) const MAX_TABLE_ELEMENTS: usize = 20_000;

/// What a guest may recurse on. The fiber has as much again for host functions.
pub(crate) const MAX_STACK: Size = Size(512 << 10);

/// Memory of an instance that is rewritten for the next one. Giving pages back and faulting them in
/// again takes three times as long, so a guest of the SDK, with its stack of 128 KiB, fits.
pub(crate) const KEPT_MEMORY: usize = 256 << 10;

/// Instances alive at once in the pool: a thousand exchanges that are between two hooks.
const POOLED: u32 = 1000;

/// Instances alive at once beyond the pool, which cost a memory mapping each.
const OVERFLOW: u32 = 200;

/// Looks without a call after which the ticker sleeps, so that an idle gateway wakes no CPU.
const QUIET: u32 = 100;

/// How often it is said that all instances are taken.
const REMINDER: Duration = Duration::from_secs(10);

/// The engines of this process, in the order in which instances are taken from them.
pub(crate) struct Engines {
    pub(crate) lanes: Vec<Arc<Lane>>,
    /// Interrupts guests; stops with this.
    pub(crate) ticker: Arc<Ticker>,
    /// When it was last said that all instances are taken.
    remarked: Mutex<Option<Instant>>,
    /// What modules for proxy-wasm share.
    pub(crate) shared: Shared,
}

/// One engine with a bound on the instances alive in it.
pub(crate) struct Lane {
    pub(crate) engine: Engine,
    free: AtomicU32,
    /// With so many left, none is kept for later.
    scarce: u32,
}

impl Engines {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Self::with(POOLED, OVERFLOW)
    }

    /// Engines for so many instances.
    pub(crate) fn with(pooled: u32, overflow: u32) -> Result<Arc<Self>> {
        let lanes = match Engine::new(&config(pool(pooled))) {
            Ok(engine) => {
                let spare = Engine::new(&config(InstanceAllocationStrategy::OnDemand))?;
                vec![Lane::new(engine, pooled), Lane::new(spare, overflow)]
            }
            // No address space for the pool, as under `ulimit -v`: then none for 4 GiB per memory either.
            Err(error) => {
                tracing::warn!(%error, "no pool for Wasm instances can be reserved, each will be mapped on its own");
                let mut frugal = config(InstanceAllocationStrategy::OnDemand);
                frugal.memory_reservation(0).memory_guard_size(64 << 10);
                vec![Lane::new(Engine::new(&frugal)?, pooled)]
            }
        };
        let ticker = Ticker::start(lanes.iter().map(|lane| lane.engine.weak()).collect())?;
        Ok(Arc::new(Engines { lanes, ticker, remarked: Mutex::default(), shared: Shared::default() }))
    }

    /// Says, but not for every exchange of a flood, that there was no room for one more instance.
    pub(crate) fn remark_full(&self, plugin: &str) {
        let Ok(mut remarked) = self.remarked.lock() else { return };
        if remarked.is_none_or(|remarked| remarked.elapsed() >= REMINDER) {
            *remarked = Some(Instant::now());
            drop(remarked);
            tracing::warn!(plugin, reason = "wasm.pool_exhausted", "no room for one more Wasm instance");
        }
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        self.ticker.stop();
    }
}

impl Lane {
    fn new(engine: Engine, free: u32) -> Arc<Self> {
        Arc::new(Lane { engine, free: AtomicU32::new(free), scarce: free / 2 })
    }

    /// The right to one instance, unless all are taken.
    pub(crate) fn permit(self: &Arc<Self>) -> Option<Permit> {
        let take = |free: u32| free.checked_sub(1);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(Permit(self.clone()))
    }
}

/// The right to one instance of a lane.
pub(crate) struct Permit(Arc<Lane>);

impl Permit {
    /// Whether the instance may keep its place while nobody needs it.
    pub(crate) fn may_idle(&self) -> bool {
        self.0.free.load(Ordering::Relaxed) > self.0.scarce
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

fn config(strategy: InstanceAllocationStrategy) -> Config {
    let mut config = Config::new();
    config
        .allocation_strategy(strategy)
        // Guests of this ABI are synchronous; without support for concurrent ones a call is three times cheaper.
        .concurrency_support(false)
        .epoch_interruption(true)
        .max_wasm_stack(MAX_STACK.0)
        .async_stack_size(2 * MAX_STACK.0)
        .cranelift_opt_level(OptLevel::Speed);
    config
}

fn pool(instances: u32) -> InstanceAllocationStrategy {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        // A component made from one core module has three core instances, two tables and a memory.
        .total_core_instances(4 * instances)
        .total_tables(3 * instances)
        .total_memories(instances)
        .total_stacks(instances)
        .max_core_instances_per_component(16)
        .max_memories_per_component(4)
        .max_tables_per_component(8)
        .max_memory_size(MAX_MEMORY.0)
        .table_elements(MAX_TABLE_ELEMENTS)
        .table_keep_resident(8 << 10)
        .linear_memory_keep_resident(KEPT_MEMORY);
    // Linux tells since 6.7 which pages were written to. Before, a memory is rewritten from its begin.
    if PoolingAllocationConfig::is_pagemap_scan_available() {
        pool.pagemap_scan(Enabled::Yes);
    }
    InstanceAllocationStrategy::Pooling(pool)
}

/// Advances the epoch of all engines while guests are being called: every [`WATCH`] ticks, or every
/// one as long as there are guests that need it.
pub(crate) struct Ticker {
    stirred: AtomicBool,
    hurried: AtomicBool,
    /// Ticks between two looks.
    pace: AtomicU32,
    asleep: AtomicBool,
    stopped: AtomicBool,
    /// Looks so far, and who waits for the next one.
    looks: AtomicU64,
    resting: Mutex<Vec<Waker>>,
    thread: std::sync::OnceLock<Thread>,
}

impl Ticker {
    fn start(engines: Vec<EngineWeak>) -> Result<Arc<Self>> {
        let ticker = Arc::new(Ticker {
            stirred: AtomicBool::new(false),
            hurried: AtomicBool::new(false),
            pace: AtomicU32::new(WATCH),
            asleep: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            looks: AtomicU64::new(0),
            resting: Mutex::default(),
            thread: std::sync::OnceLock::new(),
        });
        let own = ticker.clone();
        let thread =
            std::thread::Builder::new().name("wasm-ticker".into()).spawn(move || own.run(&engines))?;
        ticker.thread.get_or_init(|| thread.thread().clone());
        Ok(ticker)
    }

    /// Says that a guest is running now. Must precede every call and follow every interruption.
    pub(crate) fn stir(&self) {
        if !self.stirred.load(Ordering::Relaxed) {
            self.stirred.store(true, Ordering::SeqCst);
        }
        if self.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Says that the guest which is running now has to be looked at every tick.
    pub(crate) fn hurry(&self) {
        if !self.hurried.load(Ordering::Relaxed) {
            self.hurried.store(true, Ordering::SeqCst);
        }
        if self.pace() > 1 {
            self.wake();
        }
    }

    /// Passes with the next look: who rests leaves the worker to others for as long as it ran itself.
    pub(crate) fn rest(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let (ticker, seen) = (self.clone(), self.looks.load(Ordering::SeqCst));
        poll_fn(move |context| {
            ticker.stir();
            let is_over = || ticker.looks.load(Ordering::SeqCst) != seen;
            if !is_over() {
                let mut resting = ticker.resting.lock().unwrap_or_else(PoisonError::into_inner);
                resting.push(context.waker().clone());
            }
            // Whoever looks now sees it among those who rest, or is seen here.
            if is_over() { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// Ticks between two looks.
    pub(crate) fn pace(&self) -> u32 {
        self.pace.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn run(&self, engines: &[EngineWeak]) {
        let (mut quiet, mut haste) = (0, 0);
        while !self.stopped.load(Ordering::SeqCst) {
            self.pause();
            engines.iter().filter_map(EngineWeak::upgrade).for_each(|engine| engine.increment_epoch());
            self.looks.fetch_add(1, Ordering::SeqCst);
            let resting = std::mem::take(&mut *self.resting.lock().unwrap_or_else(PoisonError::into_inner));
            resting.into_iter().for_each(Waker::wake);
            haste = if self.hurried.swap(false, Ordering::SeqCst) { HASTE } else { haste.saturating_sub(1) };
            self.pace.store(if haste > 0 { 1 } else { WATCH }, Ordering::SeqCst);
            quiet = if self.stirred.swap(false, Ordering::SeqCst) { 0 } else { quiet + 1 };
            if quiet >= QUIET {
                self.sleep();
                quiet = 0;
            }
        }
    }

    /// Waits for the next look; for one tick at least, also when somebody is in a hurry.
    fn pause(&self) {
        let start = Instant::now();
        // Who hurried before it could see the pace is seen here.
        if self.pace() > 1 && !self.hurried.load(Ordering::SeqCst) {
            std::thread::park_timeout(WATCH * TICK);
        }
        while let Some(rest) = TICK.checked_sub(start.elapsed()).filter(|rest| !rest.is_zero()) {
            std::thread::park_timeout(rest);
        }
    }

    fn sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        // Whoever stirred before it could see `asleep` is seen here.
        if self.stirred.load(Ordering::SeqCst) {
            self.asleep.store(false, Ordering::SeqCst);
        }
        while self.asleep.load(Ordering::SeqCst) && !self.stopped.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_bounded_and_a_permit_comes_back() {
        let engines = Engines::with(2, 1).unwrap();
        let lane = &engines.lanes[0];
        let held: Vec<_> = (0..2).filter_map(|_| lane.permit()).collect();
        assert_eq!((held.len(), lane.permit().is_none()), (2, true));
        drop(held);
        assert!(lane.permit().is_some());
    }

    #[test]
    fn the_ticker_sleeps_when_nothing_runs_and_wakes_for_a_call() {
        let engines = Engines::with(1, 1).unwrap();
        let ticker = &engines.ticker;
        while !ticker.asleep.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        ticker.stir();
        assert!(!ticker.asleep.load(Ordering::SeqCst));
        while !ticker.asleep.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_rest_ends_with_the_next_look() {
        let engines = Engines::with(1, 1).unwrap();
        let ticker = &engines.ticker;
        let (looks, rest) = (ticker.looks.load(Ordering::SeqCst), ticker.rest());
        portcullis_plugin::block_on(rest);
        assert!(ticker.looks.load(Ordering::SeqCst) > looks);
    }

    #[test]
    fn guests_are_looked_at_every_tick_only_while_one_needs_it() {
        let engines = Engines::with(1, 1).unwrap();
        let ticker = &engines.ticker;
        assert_eq!(ticker.pace(), WATCH);
        ticker.stir();
        ticker.hurry();
        while ticker.pace() > 1 {
            std::thread::yield_now();
        }
        while ticker.pace() == 1 {
            ticker.stir();
        }
        assert_eq!(ticker.pace(), WATCH);
    }

    #[test]
    fn code_compiled_for_the_pool_runs_beyond_it() {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let engines = Engines::with(1, 1).unwrap();
        let hash = |lane: &Arc<Lane>| {
            let mut hasher = DefaultHasher::new();
            lane.engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash(&engines.lanes[0]), hash(&engines.lanes[1]));
    }
}
