//! The store that is this process's memory.
//!
//! Shared by all workers, in shards with a lock each, and bounded. Nothing is forgotten before its lifetime is
//! over: where there is no room a new value is refused, so that nobody gets rid of a ban or a counter by a flood.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::ready;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::{Store, StoreError, StoreFuture, counted};
use crate::clock::Clock;

/// Bytes of a store unless it is said: some hundred thousand bans or sessions.
const SIZE: usize = 64 << 20;

/// Locks among which keys are shared out: more than workers, so that these rarely meet.
const SHARDS: usize = 32;

/// What a value costs besides key and content: its places in two maps, and its allocations.
const OVERHEAD: usize = 200;

/// Values whose lifetime is over that one write removes at least, if there are so many: more than it adds.
const SWEPT: usize = 16;

/// Values by key, in memory.
pub struct MemoryStore {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    clock: Clock,
}

/// A part of the values. On cache lines of its own, for the sake of its neighbours.
#[repr(align(64))]
struct Shard {
    entries: HashMap<Arc<str>, Entry>,
    /// Keys by the end of their lifetime.
    ends: BTreeSet<(Duration, Arc<str>)>,
    size: usize,
    limit: usize,
}

struct Entry {
    value: Bytes,
    end: Duration,
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::new(SIZE, Clock::default())
    }
}

impl MemoryStore {
    /// A store of `size` bytes, which keys are shared out among evenly.
    pub fn new(size: usize, clock: Clock) -> Self {
        let shard =
            || Shard { entries: HashMap::new(), ends: BTreeSet::new(), size: 0, limit: size / SHARDS };
        MemoryStore {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            hasher: RandomState::new(),
            clock,
        }
    }

    /// How many values there are, with those whose lifetime is over but that are not removed yet.
    pub fn entries(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).entries.len()).sum()
    }

    /// Does something with the shard of a key, at a time.
    fn with<T: Send + 'static>(
        &self,
        key: &str,
        act: impl FnOnce(&mut Shard, Duration) -> Result<T, StoreError>,
    ) -> StoreFuture<'_, T> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        let result = match self.shards.get(index) {
            // The clock is read under the lock, so that time never goes back for a key.
            Some(shard) => act(&mut lock(shard), self.clock.now()),
            None => Err(StoreError::Failed),
        };
        Box::pin(ready(result))
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shard {
    fn live(&self, key: &str, now: Duration) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| entry.end > now)
    }

    /// Keeps a value in the place of the one before it, if there is room.
    fn put(&mut self, key: &str, value: Bytes, end: Duration, now: Duration) -> Result<(), StoreError> {
        let before = self.entries.get(key).map_or(0, |entry| cost(key, &entry.value));
        let cost = cost(key, &value);
        self.sweep(now, cost.saturating_sub(before));
        if self.size - self.entries.get(key).map_or(0, |_| before) + cost > self.limit {
            return Err(StoreError::Full);
        }
        self.remove(key);
        let key: Arc<str> = key.into();
        // A slice of something larger would keep all of that.
        let value = Bytes::copy_from_slice(&value);
        self.ends.insert((end, key.clone()));
        self.entries.insert(key, Entry { value, end });
        self.size += cost;
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Option<Entry> {
        let (key, entry) = self.entries.remove_entry(key)?;
        self.size -= cost(&key, &entry.value);
        self.ends.remove(&(entry.end, key));
        Some(entry)
    }

    /// Removes values whose lifetime is over: a few, and as many as there must be for `room`.
    fn sweep(&mut self, now: Duration, room: usize) {
        let mut swept = 0;
        while let Some((end, key)) = self.ends.first()
            && *end <= now
            && (swept < SWEPT || self.size + room > self.limit)
        {
            let key = key.clone();
            self.remove(&key);
            swept += 1;
        }
    }
}

fn cost(key: &str, value: &Bytes) -> usize {
    key.len() + value.len() + OVERHEAD
}

impl Store for MemoryStore {
    fn get(&self, key: String) -> StoreFuture<'_, Option<Bytes>> {
        self.with(&key, |shard, now| Ok(shard.live(&key, now).map(|entry| entry.value.clone())))
    }

    fn set(&self, key: String, value: Bytes, lifetime: Duration) -> StoreFuture<'_, ()> {
        self.with(&key, |shard, now| shard.put(&key, value, now + lifetime, now))
    }

    fn compare_and_set(
        &self,
        key: String,
        expected: Option<Bytes>,
        value: Bytes,
        lifetime: Duration,
    ) -> StoreFuture<'_, bool> {
        self.with(&key, |shard, now| {
            if shard.live(&key, now).map(|entry| &entry.value) != expected.as_ref() {
                return Ok(false);
            }
            shard.put(&key, value, now + lifetime, now).map(|()| true)
        })
    }

    fn delete(&self, key: String) -> StoreFuture<'_, bool> {
        self.with(&key, |shard, now| Ok(shard.remove(&key).is_some_and(|entry| entry.end > now)))
    }

    fn add(&self, key: String, by: i64, lifetime: Duration) -> StoreFuture<'_, i64> {
        self.with(&key, |shard, now| {
            let before = shard.live(&key, now);
            let end = before.map_or(now + lifetime, |entry| entry.end);
            let count = counted(before.map(|entry| &*entry.value), by)?;
            shard.put(&key, count.to_string().into(), end, now).map(|()| count)
        })
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("entries", &self.entries()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;
    use crate::tester::block_on;

    const SECOND: Duration = Duration::from_secs(1);

    fn store(size: usize) -> (Arc<AtomicU64>, MemoryStore) {
        let nanos = Arc::new(AtomicU64::new(1));
        (nanos.clone(), MemoryStore::new(size, Clock::set_by(nanos)))
    }

    fn pass(nanos: &AtomicU64, time: Duration) {
        nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap(), Relaxed);
    }

    fn key() -> String {
        "k".to_owned()
    }

    #[test]
    fn a_value_lives_for_its_lifetime() {
        let (time, store) = store(SIZE);
        assert_eq!(block_on(store.get(key())), Ok(None));
        block_on(store.set(key(), "a".into(), SECOND)).unwrap();
        pass(&time, SECOND - Duration::from_nanos(1));
        assert_eq!(block_on(store.get(key())), Ok(Some("a".into())));
        pass(&time, Duration::from_nanos(1));
        assert_eq!(block_on(store.get(key())), Ok(None));
        assert_eq!(block_on(store.delete(key())), Ok(false));
    }

    #[test]
    fn a_value_is_set_only_over_the_expected_one() {
        let (time, store) = store(SIZE);
        let set = |expected: Option<&'static str>, value: &'static str| {
            block_on(store.compare_and_set(key(), expected.map(Bytes::from), value.into(), SECOND)).unwrap()
        };
        assert!(!set(Some(""), "a") && set(None, "a") && !set(None, "b") && !set(Some("b"), "c"));
        assert!(set(Some("a"), "b"));
        assert_eq!(block_on(store.get(key())), Ok(Some("b".into())));
        pass(&time, SECOND);
        assert!(!set(Some("b"), "c") && set(None, "c"));
        assert_eq!(block_on(store.delete(key())), Ok(true));
    }

    #[test]
    fn a_counter_ends_when_its_first_lifetime_does() {
        let (time, store) = store(SIZE);
        let add = |by| block_on(store.add(key(), by, SECOND));
        assert_eq!([add(2), add(3), add(-7)], [Ok(2), Ok(5), Ok(-2)]);
        assert_eq!(block_on(store.get(key())), Ok(Some("-2".into())));
        pass(&time, SECOND / 2);
        assert_eq!(add(1), Ok(-1));
        pass(&time, SECOND / 2);
        assert_eq!(add(1), Ok(1));
        assert_eq!(add(i64::MAX), Err(StoreError::NotANumber));
        for text in ["", "+1", "01", "-0", " 1", "1.0", "9223372036854775808", "x"] {
            block_on(store.set(key(), text.into(), SECOND)).unwrap();
            assert_eq!(add(1), Err(StoreError::NotANumber), "{text:?}");
        }
    }

    #[test]
    fn a_full_store_refuses_what_is_new_and_forgets_nothing() {
        let (time, store) = store(SHARDS * 10 * (OVERHEAD + 10));
        let keys: Vec<_> = (0..SHARDS * 100).map(|n| format!("key-{n:05}")).collect();
        let kept: Vec<_> =
            keys.iter().filter(|key| block_on(store.add((*key).clone(), 1, SECOND)).is_ok()).collect();
        assert_eq!(kept.len(), SHARDS * 10, "room for ten in each shard");
        assert_eq!(block_on(store.add(keys.last().unwrap().clone(), 1, SECOND)), Err(StoreError::Full));
        for key in &kept {
            assert_eq!(block_on(store.add((*key).clone(), 1, SECOND)), Ok(2));
        }
        pass(&time, SECOND);
        let others = (0..SHARDS * 100).map(|n| format!("new-{n:05}"));
        let again = others.filter(|key| block_on(store.add(key.clone(), 1, SECOND)).is_ok()).count();
        assert_eq!((again, store.entries()), (kept.len(), kept.len()));
    }

    #[test]
    fn what_is_over_goes_little_by_little() {
        let (time, store) = store(SIZE);
        for n in 0..SHARDS * SWEPT * 4 {
            block_on(store.set(format!("old-{n}"), "a".into(), SECOND)).unwrap();
        }
        pass(&time, SECOND);
        for n in 0..SHARDS * 64 {
            block_on(store.set(format!("new-{n}"), "a".into(), SECOND)).unwrap();
        }
        assert_eq!(store.entries(), SHARDS * 64);
    }

    #[test]
    fn no_count_is_lost_between_threads() {
        let store = MemoryStore::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000).try_for_each(|_| block_on(store.add(key(), 1, SECOND * 60)).map(drop))
                });
            }
        });
        assert_eq!(block_on(store.add(key(), 0, SECOND)), Ok(4000));
    }
}
