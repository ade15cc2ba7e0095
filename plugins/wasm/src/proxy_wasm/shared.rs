//! What the VMs of a process share: data and queues under the id of a VM, whichever plugin and thread
//! it belongs to. It outlives reloads.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::abi::Status;

/// Bytes of keys, values and items under one id. What is beyond is refused: forgetting what others
/// rely on would be worse.
const MAX_BYTES: usize = 16 << 20;

/// Keys under one id, queues of it, and items that wait in one queue.
const MAX_KEYS: usize = 10_000;
const MAX_QUEUES: usize = 100;
const MAX_ITEMS: usize = 10_000;

/// Everything that is shared.
#[derive(Default)]
pub(crate) struct Shared(Mutex<State>);

#[derive(Default)]
struct State {
    spaces: HashMap<Box<str>, Space>,
    queues: Vec<Queue>,
}

/// What is kept under one id.
#[derive(Default)]
struct Space {
    data: HashMap<Box<[u8]>, Datum>,
    bytes: usize,
    queues: usize,
}

struct Datum {
    value: Bytes,
    /// Another one after every change; never zero, which means "whatever it is".
    cas: u32,
}

struct Queue {
    vm_id: Box<str>,
    name: Box<[u8]>,
    items: VecDeque<Bytes>,
    /// How many items there have ever been.
    enqueued: u64,
    waiting: Vec<Waker>,
}

impl Shared {
    /// A value and its number for [`set`](Self::set).
    pub(super) fn get(&self, vm_id: &str, key: &[u8]) -> Result<(Bytes, u32), Status> {
        let state = self.state();
        let datum = state.spaces.get(vm_id).and_then(|space| space.data.get(key)).ok_or(Status::NotFound)?;
        Ok((datum.value.clone(), datum.cas))
    }

    /// Sets a value; if `cas` is not zero, only if the value is still the one of that number.
    pub(super) fn set(&self, vm_id: &str, key: &[u8], value: &[u8], cas: u32) -> Result<(), Status> {
        let mut state = self.state();
        let space = state.space(vm_id);
        let known = space.data.get(key).map(|datum| (datum.cas, key.len() + datum.value.len()));
        let (number, freed) = known.unwrap_or_default();
        if cas != 0 && cas != number {
            return Err(Status::CasMismatch);
        }
        let bytes = (space.bytes - freed).saturating_add(key.len()).saturating_add(value.len());
        if bytes > MAX_BYTES || known.is_none() && space.data.len() >= MAX_KEYS {
            return Err(Status::InternalFailure);
        }
        space.bytes = bytes;
        let datum = Datum { value: Bytes::copy_from_slice(value), cas: number.wrapping_add(1).max(1) };
        space.data.insert(key.into(), datum);
        Ok(())
    }

    /// The queue of this name, made unless there is one.
    pub(super) fn register(&self, vm_id: &str, name: &[u8]) -> Result<u32, Status> {
        let mut state = self.state();
        if let Some(known) = state.find(vm_id, name) {
            return Ok(known);
        }
        let space = state.space(vm_id);
        if space.queues >= MAX_QUEUES {
            return Err(Status::InternalFailure);
        }
        space.queues += 1;
        let (items, waiting) = (VecDeque::new(), Vec::new());
        state.queues.push(Queue { vm_id: vm_id.into(), name: name.into(), items, enqueued: 0, waiting });
        Ok(state.queues.len() as u32)
    }

    /// The queue of this name, if there is one.
    pub(super) fn resolve(&self, vm_id: &str, name: &[u8]) -> Result<u32, Status> {
        self.state().find(vm_id, name).ok_or(Status::NotFound)
    }

    /// Adds an item to a queue, and wakes whoever waits for one.
    pub(super) fn enqueue(&self, queue: u32, item: &[u8]) -> Result<(), Status> {
        let mut guard = self.state();
        let state = &mut *guard;
        let queue = queue_mut(&mut state.queues, queue)?;
        let space = state.spaces.entry(queue.vm_id.clone()).or_default();
        let bytes = space.bytes.saturating_add(item.len());
        if bytes > MAX_BYTES || queue.items.len() >= MAX_ITEMS {
            return Err(Status::InternalFailure);
        }
        space.bytes = bytes;
        queue.items.push_back(Bytes::copy_from_slice(item));
        queue.enqueued += 1;
        let waiting = std::mem::take(&mut queue.waiting);
        drop(guard);
        waiting.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Takes the first item of a queue.
    pub(super) fn dequeue(&self, queue: u32) -> Result<Bytes, Status> {
        let mut guard = self.state();
        let state = &mut *guard;
        let queue = queue_mut(&mut state.queues, queue)?;
        let item = queue.items.pop_front().ok_or(Status::Empty)?;
        state.spaces.entry(queue.vm_id.clone()).or_default().bytes -= item.len();
        Ok(item)
    }

    /// How many items a queue has ever had; ready once they are more than `seen`.
    pub(super) fn poll_more(&self, queue: u32, seen: u64, context: &mut Context<'_>) -> Poll<u64> {
        let mut state = self.state();
        let Ok(queue) = queue_mut(&mut state.queues, queue) else { return Poll::Pending };
        if queue.enqueued > seen {
            return Poll::Ready(queue.enqueued);
        }
        if !queue.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            queue.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Wakes whoever waits for an item of a queue, to look whether it is still of use.
    pub(super) fn wake(&self, queue: u32) {
        let waiting =
            queue_mut(&mut self.state().queues, queue).map(|queue| std::mem::take(&mut queue.waiting));
        waiting.unwrap_or_default().into_iter().for_each(Waker::wake);
    }

    /// How many items a queue has ever had.
    pub(super) fn enqueued(&self, queue: u32) -> u64 {
        queue_mut(&mut self.state().queues, queue).map_or(0, |queue| queue.enqueued)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn space(&mut self, vm_id: &str) -> &mut Space {
        self.spaces.entry(vm_id.into()).or_default()
    }

    fn find(&self, vm_id: &str, name: &[u8]) -> Option<u32> {
        let at = self.queues.iter().position(|queue| &*queue.vm_id == vm_id && &*queue.name == name)?;
        Some(at as u32 + 1)
    }
}

/// Queues are numbered from one.
fn queue_mut(queues: &mut [Queue], number: u32) -> Result<&mut Queue, Status> {
    let at = (number as usize).checked_sub(1).ok_or(Status::NotFound)?;
    queues.get_mut(at).ok_or(Status::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_replaced_only_by_who_has_seen_it() {
        let shared = Shared::default();
        assert_eq!(shared.get("vm", b"k"), Err(Status::NotFound));
        shared.set("vm", b"k", b"1", 0).unwrap();
        let (value, cas) = shared.get("vm", b"k").unwrap();
        assert_eq!(value, "1");
        shared.set("vm", b"k", b"2", cas).unwrap();
        assert_eq!(shared.set("vm", b"k", b"3", cas), Err(Status::CasMismatch));
        assert_eq!(shared.set("vm", b"new", b"3", 7), Err(Status::CasMismatch));
        assert_eq!(shared.get("vm", b"k").unwrap().0, "2");
        assert_eq!(shared.get("other", b"k"), Err(Status::NotFound));
    }

    #[test]
    fn what_is_shared_is_bounded() {
        let shared = Shared::default();
        let half = vec![0; MAX_BYTES / 2];
        shared.set("vm", b"a", &half, 0).unwrap();
        assert_eq!(shared.set("vm", b"b", &half, 0), Err(Status::InternalFailure));
        shared.set("vm", b"a", b"", 0).unwrap();
        shared.set("vm", b"b", &half, 0).unwrap();
        for key in 0..MAX_KEYS - 2 {
            shared.set("vm", &key.to_le_bytes(), b"", 0).unwrap();
        }
        assert_eq!(shared.set("vm", b"one too many", b"", 0), Err(Status::InternalFailure));
        assert!(shared.set("vm", b"a", b"known", 0).is_ok() && shared.set("other", b"a", b"", 0).is_ok());
    }

    #[test]
    fn queues_give_items_in_order_and_are_bounded() {
        let shared = Shared::default();
        assert_eq!(shared.resolve("vm", b"q"), Err(Status::NotFound));
        let queue = shared.register("vm", b"q").unwrap();
        assert_eq!((shared.register("vm", b"q"), shared.resolve("vm", b"q")), (Ok(queue), Ok(queue)));
        for item in 0..MAX_ITEMS as u32 {
            shared.enqueue(queue, &item.to_le_bytes()).unwrap();
        }
        assert_eq!(shared.enqueue(queue, b"more"), Err(Status::InternalFailure));
        for item in 0..MAX_ITEMS as u32 {
            assert_eq!(shared.dequeue(queue).unwrap(), item.to_le_bytes()[..]);
        }
        assert_eq!(
            (shared.dequeue(queue), shared.dequeue(queue + 1)),
            (Err(Status::Empty), Err(Status::NotFound))
        );
        assert_eq!(shared.enqueue(0, b""), Err(Status::NotFound));
        for name in 1..MAX_QUEUES {
            shared.register("vm", &name.to_le_bytes()).unwrap();
        }
        assert_eq!(shared.register("vm", b"one too many"), Err(Status::InternalFailure));
    }
}
