//! The VMs of a plugin: one per thread, made when it is needed, and again after its guest has trapped.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use portcullis_plugin::{PluginError, Task, Tasks};
use thread_local::ThreadLocal;
use wasmtime::InstancePre;

use super::abi::Way;
use super::calls::{Answer, Outgoing};
use super::host::{Host, ROOT};
use super::vm::{StartFailure, Vm};
use super::{About, Place};

/// How long requests wait for the next VM after one that trapped before it had served anything: at first, and at
/// most. One that has served is replaced at once, since it is some exchange that makes it trap, not each.
const FIRST_REST: Duration = Duration::from_millis(10);
const MAX_REST: Duration = Duration::from_secs(1);

/// A module with its VMs.
pub(super) struct Machine {
    about: Arc<About>,
    module: InstancePre<Host>,
    tasks: Arc<dyn Tasks>,
    seats: ThreadLocal<Mutex<Seat>>,
    /// What judged the configuration at load serves the first thread that needs one.
    spare: Mutex<Option<Vm>>,
    /// Contexts of the thread whose exchanges are gone without a word. Beside the seat, which may be taken then.
    abandoned: ThreadLocal<Mutex<Vec<(Mark, u32)>>>,
    me: Weak<Machine>,
}

/// A thread's place for a VM.
#[derive(Default)]
struct Seat {
    vm: Option<Vm>,
    mark: Mark,
    /// VMs in a row that trapped before they had served anything.
    failures: u32,
    not_before: Option<Instant>,
    /// Of the timer that runs.
    ticks: Option<(Mark, u32)>,
    /// Queues that are listened to.
    queues: Vec<u32>,
}

/// The number of a VM, unique in the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark(pub(super) u64);

impl Machine {
    pub(super) fn new(about: Arc<About>, module: InstancePre<Host>, tasks: Arc<dyn Tasks>) -> Arc<Self> {
        Arc::new_cyclic(|me| Machine {
            about,
            module,
            tasks,
            seats: ThreadLocal::new(),
            spare: Mutex::default(),
            abandoned: ThreadLocal::new(),
            me: me.clone(),
        })
    }

    /// Starts the first VM, which judges the configuration.
    pub(super) fn prove(&self) -> Result<(), StartFailure> {
        let vm = Vm::start(&self.about, &self.module)?;
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(vm);
        Ok(())
    }

    pub(super) fn about(&self) -> &About {
        &self.about
    }

    /// Does something with this thread's VM for the exchange whose context is at `place`. If the guest fails, the VM
    /// is gone, and of its exchanges only this one is lost.
    pub(super) fn enter<T>(
        &self,
        place: &Place,
        act: impl FnOnce(&mut Vm, Mark) -> Result<T, PluginError>,
    ) -> Result<T, PluginError> {
        let mut seat = self.seat()?;
        let seat = &mut *seat;
        let result = self.vm(seat).and_then(|(vm, mark)| act(vm, mark));
        if result.is_err() {
            place.lost.store(true, Relaxed);
        }
        self.leave(seat, result)
    }

    /// The same for nobody in particular, if the VM is still the one of that number.
    fn visit(&self, mark: Mark, act: impl FnOnce(&mut Vm) -> Result<(), PluginError>) {
        let Ok(mut seat) = self.seat() else { return };
        let seat = &mut *seat;
        let Some(vm) = seat.vm.as_mut().filter(|_| seat.mark == mark) else { return };
        let result = act(vm);
        if let Err(error) = self.leave(seat, result) {
            let plugin = &*self.about.name;
            tracing::warn!(plugin, failure = error.kind().reason(), error = error.message(), "plugin failed");
        }
    }

    fn seat(&self) -> Result<MutexGuard<'_, Seat>, PluginError> {
        match self.seats.get_or_default().try_lock() {
            Ok(seat) => Ok(seat),
            // A host function panicked: what it left of the VM is no use.
            Err(TryLockError::Poisoned(poisoned)) => {
                self.seats.get_or_default().clear_poison();
                let mut seat = poisoned.into_inner();
                seat.vm = None;
                Ok(seat)
            }
            Err(TryLockError::WouldBlock) => {
                Err(PluginError::failed("the module is called from within itself"))
            }
        }
    }

    fn vm<'a>(&self, seat: &'a mut Seat) -> Result<(&'a mut Vm, Mark), PluginError> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        if seat.vm.is_none() {
            let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
            let started = spare.map_or_else(|| Vm::start(&self.about, &self.module), Ok);
            let vm = started.map_err(|failure| {
                seat.rest();
                failure.error
            })?;
            seat.vm = Some(vm);
            seat.mark = Mark(LAST.fetch_add(1, Relaxed) + 1);
        }
        let vm = seat.vm.as_mut().ok_or_else(|| PluginError::failed("no VM"))?;
        Ok((vm, seat.mark))
    }

    /// What follows every use of a VM: it is thrown away if its guest failed, else what it asked for is begun.
    fn leave<T>(&self, seat: &mut Seat, result: Result<T, PluginError>) -> Result<T, PluginError> {
        let Some(vm) = &mut seat.vm else { return result };
        let result = result.and_then(|value| {
            vm.finish_deferred()?;
            self.delete_abandoned(vm, seat.mark)?;
            Ok(value)
        });
        if let Err(error) = result {
            seat.fail();
            self.silence(seat);
            return Err(error);
        }
        vm.proven = true;
        (seat.failures, seat.not_before) = (0, None);
        let host = vm.host();
        for outgoing in std::mem::take(&mut host.outbox) {
            self.send(seat.mark, outgoing);
        }
        for queue in std::mem::take(&mut host.queues) {
            if !seat.queues.contains(&queue) {
                seat.queues.push(queue);
                self.listen(seat.mark, queue);
            }
        }
        let (tick, timer) = (host.tick, (seat.mark, host.tick_changes));
        if let Some(period) = tick.filter(|_| seat.ticks != Some(timer)) {
            seat.ticks = Some(timer);
            self.keep_ticking(timer, period);
        }
        result
    }

    /// The wait for the time from which on there may be another VM, if there is none now.
    pub(super) fn rest(&self) -> Option<Task> {
        let seat = self.seat().ok()?;
        let rest = seat.not_before?.checked_duration_since(Instant::now())?;
        seat.vm.is_none().then(|| self.tasks.sleep(rest))
    }

    fn send(&self, mark: Mark, outgoing: Outgoing) {
        let me = self.me.clone();
        self.tasks.spawn(Box::pin(async move {
            let Outgoing { call, kind, upstream, request, limits } = outgoing;
            let result = upstream.send(request, limits).await;
            if let Some(machine) = me.upgrade() {
                machine.answered(mark, call, Answer::of(kind, result));
            }
        }));
    }

    /// An answer came. Contexts of exchanges are told by the hook that waits, or else the next one.
    fn answered(&self, mark: Mark, call: u32, answer: Answer) {
        self.visit(mark, |vm| {
            let Some(id) = vm.host().calls.get(&call).copied() else { return Ok(()) };
            let Some(context) = vm.host().contexts.get_mut(&id) else { return Ok(()) };
            if let Some(mut exchange) = context.kept.take() {
                let told = vm.with(&mut exchange, |vm| vm.tell(id, call, answer));
                if let Some(context) = vm.host().contexts.get_mut(&id) {
                    context.kept = Some(exchange);
                }
                return told;
            }
            if id == ROOT {
                return vm.tell(id, call, answer);
            }
            context.inbox.push_back((call, answer));
            if let Some(waker) = context.waker.take() {
                waker.wake();
            }
            Ok(())
        });
    }

    /// Tells the guest of every item in a queue that it has registered.
    fn listen(&self, mark: Mark, queue: u32) {
        let (me, about) = (self.me.clone(), self.about.clone());
        let mut seen = about.shared().enqueued(queue);
        self.tasks.spawn(Box::pin(async move {
            loop {
                let more = poll_fn(|context| match me.upgrade().filter(|machine| machine.has(mark)) {
                    Some(machine) => {
                        about.shared().poll_more(queue, seen, context).map(|more| Some((machine, more)))
                    }
                    None => Poll::Ready(None),
                });
                let Some((machine, more)) = more.await else { return };
                for _ in seen..more {
                    machine.visit(mark, |vm| vm.queue_ready(queue));
                }
                seen = more;
            }
        }));
    }

    /// Ends what listens to queues for a VM that is gone.
    fn silence(&self, seat: &mut Seat) {
        for queue in std::mem::take(&mut seat.queues) {
            self.about.shared().wake(queue);
        }
    }

    /// An exchange is gone whose context was never told of its end.
    pub(super) fn abandon(&self, mark: Mark, context: u32) {
        let abandoned = self.abandoned.get_or_default();
        abandoned.lock().unwrap_or_else(PoisonError::into_inner).push((mark, context));
    }

    /// Deletes the contexts of such exchanges in this VM; those of VMs before it are gone.
    fn delete_abandoned(&self, vm: &mut Vm, mark: Mark) -> Result<(), PluginError> {
        let Some(abandoned) = self.abandoned.get() else { return Ok(()) };
        let abandoned = std::mem::take(&mut *abandoned.lock().unwrap_or_else(PoisonError::into_inner));
        let mut here = abandoned.into_iter().filter(|(of, _)| *of == mark);
        here.try_for_each(|(_, context)| vm.abandon(context))
    }

    fn keep_ticking(&self, timer: (Mark, u32), period: Duration) {
        let (me, tasks) = (self.me.clone(), self.tasks.clone());
        self.tasks.spawn(Box::pin(async move {
            loop {
                tasks.sleep(period).await;
                let Some(machine) = me.upgrade() else { return };
                let is_current =
                    machine.seat().is_ok_and(|seat| seat.ticks == Some(timer) && seat.mark == timer.0);
                let is_wanted = |vm: &mut Vm| vm.host().tick_changes == timer.1;
                if !is_current {
                    return;
                }
                let mut wanted = true;
                machine.visit(timer.0, |vm| {
                    wanted = is_wanted(vm);
                    if wanted { vm.tick() } else { Ok(()) }
                });
                if !wanted {
                    return;
                }
            }
        }));
    }

    fn has(&self, mark: Mark) -> bool {
        self.seat().is_ok_and(|seat| seat.vm.is_some() && seat.mark == mark)
    }

    /// Ready when something has happened to the context at `place`, or to its VM.
    pub(super) fn poll_change(&self, place: &Place, way: Way, context: &mut Context<'_>) -> Poll<()> {
        let Ok(mut seat) = self.seat() else { return Poll::Ready(()) };
        if seat.mark.0 != place.vm.load(Relaxed) {
            return Poll::Ready(());
        }
        let Some(vm) = &mut seat.vm else { return Poll::Ready(()) };
        let Some(paused) = vm.host().contexts.get_mut(&place.context.load(Relaxed)) else {
            return Poll::Ready(());
        };
        let is_changed = !paused.inbox.is_empty()
            || paused.reply.is_some()
            || paused.closed
            || paused.resumed[way as usize];
        if is_changed {
            return Poll::Ready(());
        }
        paused.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Seat {
    /// Throws the VM away. Whoever waits in it is to look for the next one.
    fn fail(&mut self) {
        let Some(mut vm) = self.vm.take() else { return };
        for context in vm.host().contexts.values_mut() {
            if let Some(waker) = context.waker.take() {
                waker.wake();
            }
        }
        if !vm.proven {
            self.rest();
        }
    }

    fn rest(&mut self) {
        let rest = FIRST_REST.saturating_mul(1 << self.failures.min(20)).min(MAX_REST);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + rest);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for seat in &mut self.seats {
            let seat = seat.get_mut().unwrap_or_else(PoisonError::into_inner);
            seat.queues.drain(..).for_each(|queue| self.about.shared().wake(queue));
        }
        let seats = self.seats.iter_mut().map(|seat| seat.get_mut().unwrap_or_else(PoisonError::into_inner));
        let spare = self.spare.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut();
        for vm in seats.filter_map(|seat| seat.vm.as_mut()).chain(spare) {
            if let Err(error) = vm.end() {
                tracing::debug!(
                    plugin = &*self.about.name,
                    error = error.message(),
                    "the module's end failed"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_up_to_a_bound() {
        let mut seat = Seat::default();
        let rests = [(); 20].map(|()| {
            let now = Instant::now();
            seat.rest();
            seat.not_before.unwrap() - now
        });
        assert!(rests[0] < 2 * FIRST_REST && rests[3] > 4 * FIRST_REST, "{rests:?}");
        assert!(rests[19] >= MAX_REST && rests[19] < MAX_REST + FIRST_REST, "{rests:?}");
    }
}
