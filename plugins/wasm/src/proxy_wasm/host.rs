//! What the host functions of one VM work on: its contexts, the exchange lent to it, its budgets.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderMap;
use portcullis_plugin::{Exchange, Reply, thread_time};
use wasmtime::{Memory, ResourceLimiter, Result, TypedFunc, UpdateDeadline, bail};

use super::About;
use super::abi::{Status, Way};
use super::calls::{Answer, Outgoing};
use crate::engine::{MAX_TABLE_ELEMENTS, TICK, WATCH};
use crate::host::{Breach, LOG_LINE, LOG_LINES, one_line};
use crate::memory::CoreHost;
use crate::wasi::Line;

/// The plugin's own context; those of exchanges have the numbers after it.
pub(super) const ROOT: u32 = 1;

/// Calls of one VM that have no answer yet.
const MAX_CALLS: usize = 1000;

/// Properties that a guest may set per context, and bytes of all of them.
const MAX_PROPERTIES: usize = 64;
const MAX_PROPERTY_BYTES: usize = 64 << 10;

/// Exchanges whose end a guest has put off.
pub(super) const MAX_DEFERRED: usize = 1000;

/// The least time between two ticks: each is a call on every worker.
const MIN_TICK: Duration = Duration::from_millis(10);

pub(super) struct Host {
    pub(super) about: Arc<About>,
    /// The guest's memory and its allocator, from its start on.
    pub(super) memory: Option<Memory>,
    pub(super) allocate: Option<TypedFunc<u32, u32>>,
    pub(super) contexts: HashMap<u32, Context>,
    pub(super) last_context: u32,
    /// Whose callback runs, and whom the guest has made the one that it means.
    pub(super) called: u32,
    pub(super) effective: u32,
    /// Of the context that is called: lent for the call.
    pub(super) exchange: Option<Exchange>,
    pub(super) body: Option<Body>,
    pub(super) trailers: Option<(Way, HeaderMap)>,
    /// The answer that is being told.
    pub(super) answer: Option<Answer>,
    /// Whether it is the VM's configuration that is read, not the plugin's.
    pub(super) starts_vm: bool,
    pub(super) last_call: u32,
    /// Who made the calls that have no answer yet.
    pub(super) calls: HashMap<u32, u32>,
    /// Calls to be sent when the guest has returned.
    pub(super) outbox: Vec<Outgoing>,
    /// gRPC streams that the guest still writes to.
    pub(super) streams: HashMap<u32, Outgoing>,
    /// Contexts that the guest is done with, to be logged and deleted.
    pub(super) done: Vec<u32>,
    pub(super) tick: Option<Duration>,
    /// How often it was set: a timer of before stops.
    pub(super) tick_changes: u32,
    /// Queues that the guest wants to hear of, and has not been connected to.
    pub(super) queues: Vec<u32>,
    pub(super) breach: Option<Breach>,
    /// The last line that the guest logged in this call.
    pub(super) last_words: Option<String>,
    /// Milliseconds that a call may take.
    pub(super) budget: u32,
    begun: Instant,
    /// What the thread had run for when the call was first seen to take long.
    suspected: Option<Duration>,
    pub(super) used_memory: usize,
    lines: u32,
    line: Line,
}

/// What is known of one context.
#[derive(Default)]
pub(super) struct Context {
    /// Ways that the guest wants to go on, after it paused them.
    pub(super) resumed: [bool; 2],
    pub(super) reply: Option<Box<Reply>>,
    pub(super) closed: bool,
    /// The exchange is over, and the guest is not done with it; what was known of it then.
    pub(super) is_deferred: bool,
    pub(super) kept: Option<Box<Exchange>>,
    /// Calls without an answer.
    pub(super) pending: usize,
    /// Answers that could not be told yet.
    pub(super) inbox: VecDeque<(u32, Answer)>,
    /// Who waits for something to happen to it.
    pub(super) waker: Option<Waker>,
    pub(super) properties: HashMap<Box<[u8]>, Bytes>,
    /// When its exchange began, in nanoseconds since 1970.
    pub(super) begun: u64,
}

/// The body that a callback may read and change.
pub(super) struct Body {
    pub(super) way: Way,
    pub(super) bytes: Bytes,
    pub(super) changed: bool,
}

impl Host {
    pub(super) fn new(about: Arc<About>) -> Self {
        Host {
            about,
            memory: None,
            allocate: None,
            contexts: HashMap::new(),
            last_context: 0,
            called: 0,
            effective: 0,
            exchange: None,
            body: None,
            trailers: None,
            answer: None,
            starts_vm: false,
            last_call: 0,
            calls: HashMap::new(),
            outbox: Vec::new(),
            streams: HashMap::new(),
            done: Vec::new(),
            tick: None,
            tick_changes: 0,
            queues: Vec::new(),
            breach: None,
            last_words: None,
            budget: 0,
            begun: Instant::now(),
            suspected: None,
            used_memory: 0,
            lines: 0,
            line: Line::default(),
        }
    }

    /// Begins a call for `context` that may take `budget` milliseconds.
    pub(super) fn begin(&mut self, context: u32, budget: u32) {
        (self.called, self.effective) = (context, context);
        (self.budget, self.lines, self.suspected) = (budget, 0, None);
        (self.breach, self.last_words) = (None, None);
        self.begun = Instant::now();
        let ticker = &self.about.engines.ticker;
        ticker.stir();
        if budget < WATCH {
            ticker.hurry();
        }
    }

    /// The guest is looked at: it goes on, or has used up its budget. What the machine took for other
    /// threads is not counted, except before the first look that finds it over its time.
    pub(super) fn look(&mut self) -> Result<UpdateDeadline> {
        let ticker = &self.about.engines.ticker;
        ticker.stir();
        let budget = self.budget * TICK;
        if self.begun.elapsed() >= budget {
            ticker.hurry();
            let ran = thread_time();
            let since = *self.suspected.get_or_insert(ran);
            if ran - since >= TICK {
                self.breach = Some(Breach::Cpu);
                bail!("CPU budget");
            }
        }
        Ok(UpdateDeadline::Continue(1))
    }

    /// The number of a new context.
    pub(super) fn new_context(&mut self) -> u32 {
        // Numbers may be used again after four billion exchanges, if those are gone.
        loop {
            self.last_context = self.last_context.wrapping_add(1).max(ROOT);
            if !self.contexts.contains_key(&self.last_context) {
                let begun =
                    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
                self.contexts.insert(self.last_context, Context { begun, ..Context::default() });
                return self.last_context;
            }
        }
    }

    /// The context that the guest means.
    pub(super) fn context(&mut self) -> Result<&mut Context, Status> {
        self.contexts.get_mut(&self.effective).ok_or(Status::BadArgument)
    }

    /// The context of an exchange that the guest means.
    pub(super) fn stream(&mut self) -> Result<&mut Context, Status> {
        if self.effective == ROOT { Err(Status::BadArgument) } else { self.context() }
    }

    /// The exchange that the guest means, if it is here.
    pub(super) fn exchange(&mut self) -> Result<&mut Exchange, Status> {
        if self.effective == self.called
            && let Some(exchange) = &mut self.exchange
        {
            return Ok(exchange);
        }
        let kept = self.contexts.get_mut(&self.effective).and_then(|context| context.kept.as_deref_mut());
        kept.ok_or(Status::BadArgument)
    }

    /// Something happened to the context that the guest means.
    pub(super) fn wake(&mut self) {
        if self.effective != self.called
            && let Some(waker) = self.context().ok().and_then(|context| context.waker.take())
        {
            waker.wake();
        }
    }

    /// The number of a new call by the context that the guest means.
    pub(super) fn new_call(&mut self) -> Result<u32, Status> {
        let context = self.effective;
        if self.calls.len() >= MAX_CALLS {
            return Err(Status::InternalFailure);
        }
        self.context()?.pending += 1;
        loop {
            self.last_call = self.last_call.wrapping_add(1);
            if !self.calls.contains_key(&self.last_call) {
                self.calls.insert(self.last_call, context);
                return Ok(self.last_call);
            }
        }
    }

    /// Nobody waits for a call any more. False if nobody did.
    pub(super) fn forget_call(&mut self, call: u32) -> bool {
        self.streams.remove(&call);
        let Some(context) = self.calls.remove(&call) else { return false };
        if let Some(context) = self.contexts.get_mut(&context) {
            context.pending = context.pending.saturating_sub(1);
        }
        true
    }

    pub(super) fn remove_context(&mut self, id: u32) {
        let Some(context) = self.contexts.remove(&id) else { return };
        if context.pending == 0 {
            return;
        }
        // Nobody ends a stream any more that was still written to.
        let calls = &mut self.calls;
        self.streams.retain(|call, _| calls.get(call) != Some(&id) || calls.remove(call).is_none());
        // SDKs keep what they know of a call until they are told what came of it, so the plugin's own context is.
        let left = self.calls.values_mut().filter(|by| **by == id).map(|by| *by = ROOT).count();
        if let Some(root) = self.contexts.get_mut(&ROOT) {
            root.pending += left;
        }
    }

    pub(super) fn set_tick(&mut self, millis: u32) {
        let period = Duration::from_millis(millis.into()).max(MIN_TICK);
        self.tick = (millis > 0).then_some(period);
        self.tick_changes = self.tick_changes.wrapping_add(1);
    }

    pub(super) fn set_property(&mut self, path: &[u8], value: &[u8]) -> Result<(), Status> {
        let properties = &mut self.context()?.properties;
        let others = properties.iter().filter(|(key, _)| &***key != path);
        let (count, sum) =
            others.fold((0, 0), |(count, sum), (key, value)| (count + 1, sum + key.len() + value.len()));
        if count >= MAX_PROPERTIES || sum.saturating_add(path.len() + value.len()) > MAX_PROPERTY_BYTES {
            return Err(Status::InternalFailure);
        }
        properties.insert(path.into(), Bytes::copy_from_slice(value));
        Ok(())
    }
}

impl CoreHost for Host {
    fn memory(&mut self) -> &mut Option<Memory> {
        &mut self.memory
    }

    fn line(&mut self) -> &mut Line {
        &mut self.line
    }

    fn log(&mut self, level: tracing::Level, message: &[u8]) {
        // What is cut off here would be cut off anyway, after a look at all of it.
        let message = message.get(..LOG_LINE).unwrap_or(message);
        let message = one_line(&String::from_utf8_lossy(message));
        self.lines = self.lines.saturating_add(1);
        if self.lines <= LOG_LINES {
            let (plugin, more) = (&*self.about.name, self.lines == LOG_LINES);
            let id = self.exchange.as_ref().map(|exchange| tracing::field::display(exchange.id()));
            match level {
                tracing::Level::TRACE => {
                    tracing::trace!(plugin, request_id = id, more_dropped = more, "{message}")
                }
                tracing::Level::DEBUG => {
                    tracing::debug!(plugin, request_id = id, more_dropped = more, "{message}")
                }
                tracing::Level::INFO => {
                    tracing::info!(plugin, request_id = id, more_dropped = more, "{message}")
                }
                tracing::Level::WARN => {
                    tracing::warn!(plugin, request_id = id, more_dropped = more, "{message}")
                }
                tracing::Level::ERROR => {
                    tracing::error!(plugin, request_id = id, more_dropped = more, "{message}")
                }
            }
        }
        self.last_words = Some(message);
    }
}

impl ResourceLimiter for Host {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let memory = self.used_memory.saturating_add(desired.saturating_sub(current));
        if memory > self.about.memory {
            self.breach = Some(Breach::Memory);
            bail!("memory budget");
        }
        self.used_memory = memory;
        Ok(true)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }
}
