//! State that outlives reloads: what plugins share from one generation to the next.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::Expiry;
use portcullis_plugin::{Cache, Clock, RateTable, StateKey};

/// How long state is kept that nobody uses: editors delete and recreate files, and people undo.
const KEPT_UNUSED: Duration = Duration::from_secs(10 * 60);

/// Everything that plugins keep, by kind, instance name and layout.
#[derive(Default)]
pub(crate) struct StateStore {
    shared: Mutex<HashMap<StateKey, Held<dyn Any + Send + Sync>>>,
    caches: Mutex<HashMap<StateKey, Held<BoundedCache>>>,
    rates: Mutex<HashMap<StateKey, Held<RateTable>>>,
    clock: Clock,
}

struct Held<T: ?Sized> {
    state: Arc<T>,
    unused_since: Option<Instant>,
}

impl StateStore {
    /// A store by this clock that holds nothing.
    pub(crate) fn with(clock: Clock) -> Self {
        StateStore { clock, ..StateStore::default() }
    }

    /// One that holds nothing of any instance; what a kind has for all of them, such as an engine, is the same.
    pub(crate) fn renewed(&self) -> Self {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let of_kinds = shared.iter().filter(|(key, _)| key.name.is_empty());
        let of_kinds = of_kinds.map(|(key, held)| {
            (key.clone(), Held { state: held.state.clone(), unused_since: held.unused_since })
        });
        StateStore { shared: Mutex::new(of_kinds.collect()), ..StateStore::with(self.clock.clone()) }
    }

    /// What is kept under `key`, else what `make` makes.
    pub(crate) fn shared(
        &self,
        key: StateKey,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let held = shared.entry(key).or_insert_with(|| Held { state: make(), unused_since: None });
        held.unused_since = None;
        held.state.clone()
    }

    /// The cache under `key`. One of another size takes over what the old one held.
    pub(crate) fn cache(&self, key: StateKey, entries: u64) -> Arc<dyn Cache> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let held = caches.entry(key).or_insert_with(|| Held {
            state: Arc::new(BoundedCache::new(entries, self.clock.clone())),
            unused_since: None,
        });
        if held.state.entries != entries {
            held.state = Arc::new(held.state.resized(entries));
        }
        held.unused_since = None;
        held.state.clone()
    }

    /// The state of limits under `key`.
    pub(crate) fn rates(&self, key: StateKey) -> Arc<RateTable> {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let held = rates.entry(key).or_insert_with(|| Held { state: Arc::default(), unused_since: None });
        held.unused_since = None;
        held.state.clone()
    }

    /// Lets go of what has been unused for long.
    pub(crate) fn sweep(&self, now: Instant) {
        sweep(&self.shared, now);
        sweep(&self.caches, now);
        sweep(&self.rates, now);
    }
}

fn sweep<T: ?Sized>(held: &Mutex<HashMap<StateKey, Held<T>>>, now: Instant) {
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    held.retain(|_, held| {
        // Under the lock nobody can take another handle, so one means: only the store's.
        if Arc::strong_count(&held.state) > 1 {
            held.unused_since = None;
            return true;
        }
        let since = *held.unused_since.get_or_insert(now);
        now.saturating_duration_since(since) < KEPT_UNUSED
    });
}

/// A lifetime beyond what a clock can express is as good as this.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// A cache with a lifetime per entry.
struct BoundedCache {
    entries: u64,
    cache: moka::sync::Cache<Box<str>, Entry>,
    clock: Clock,
}

#[derive(Clone)]
struct Entry {
    value: Bytes,
    lifetime: Duration,
    /// By the clock, which a test may set; the machine's own only makes room.
    expires: Duration,
}

struct EntryLifetime;

impl Expiry<Box<str>, Entry> for EntryLifetime {
    fn expire_after_create(&self, _: &Box<str>, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.lifetime)
    }

    fn expire_after_update(
        &self,
        _: &Box<str>,
        entry: &Entry,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.lifetime)
    }
}

impl BoundedCache {
    fn new(entries: u64, clock: Clock) -> Self {
        let cache = moka::sync::Cache::builder().max_capacity(entries).expire_after(EntryLifetime).build();
        BoundedCache { entries, cache, clock }
    }

    fn resized(&self, entries: u64) -> Self {
        let other = BoundedCache::new(entries, self.clock.clone());
        for (key, entry) in &self.cache {
            other.cache.insert(key.as_ref().clone(), entry);
        }
        other
    }
}

impl Cache for BoundedCache {
    fn get(&self, key: &str) -> Option<Bytes> {
        let entry = self.cache.get(key)?;
        (entry.expires > self.clock.now()).then_some(entry.value)
    }

    fn insert(&self, key: &str, value: Bytes, lifetime: Duration) {
        let lifetime = lifetime.min(YEAR);
        let expires = self.clock.now() + lifetime;
        self.cache.insert(key.into(), Entry { value, lifetime, expires });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    fn key(name: &str) -> StateKey {
        StateKey { kind: "limit", name: name.into(), schema: 1 }
    }

    fn counter(store: &StateStore, key: StateKey) -> Arc<Mutex<u32>> {
        let state = store.shared(key, &mut || Arc::new(Mutex::new(0_u32)));
        state.downcast().unwrap()
    }

    #[test]
    fn state_is_one_per_key() {
        let store = StateStore::default();
        *counter(&store, key("a")).lock().unwrap() += 1;
        assert_eq!(*counter(&store, key("a")).lock().unwrap(), 1);
        assert_eq!(*counter(&store, key("b")).lock().unwrap(), 0);
        assert_eq!(*counter(&store, StateKey { schema: 2, ..key("a") }).lock().unwrap(), 0);
    }

    #[test]
    fn state_is_held_ten_minutes_after_its_last_use() {
        let store = StateStore::default();
        let start = Instant::now();
        let used = counter(&store, key("a"));
        *used.lock().unwrap() = 7;
        store.sweep(start + KEPT_UNUSED * 2);
        drop(used);
        store.sweep(start + KEPT_UNUSED * 3);
        store.sweep(start + KEPT_UNUSED * 4 - Duration::from_secs(1));
        assert_eq!(*counter(&store, key("a")).lock().unwrap(), 7);
        store.sweep(start + KEPT_UNUSED * 5);
        store.sweep(start + KEPT_UNUSED * 6);
        assert_eq!(*counter(&store, key("a")).lock().unwrap(), 0);
    }

    #[test]
    fn limits_are_counted_on_after_a_reload_and_held_as_long() {
        let (store, start) = (StateStore::default(), Instant::now());
        let table = store.rates(key("a"));
        assert!(Arc::ptr_eq(&table, &store.rates(key("a"))) && !Arc::ptr_eq(&table, &store.rates(key("b"))));
        store.sweep(start);
        let kept = Arc::downgrade(&table);
        drop(table);
        store.sweep(start + KEPT_UNUSED);
        assert!(kept.upgrade().is_some());
        store.sweep(start + KEPT_UNUSED * 2);
        assert!(kept.upgrade().is_none());
    }

    #[test]
    fn a_cache_keeps_its_entries_through_a_change_of_size() {
        let store = StateStore::default();
        store.cache(key("a"), 10).insert("k", Bytes::from_static(b"v"), Duration::from_secs(60));
        assert_eq!(store.cache(key("a"), 10).get("k").as_deref(), Some(&b"v"[..]));
        assert_eq!(store.cache(key("a"), 20).get("k").as_deref(), Some(&b"v"[..]));
        assert!(store.cache(key("b"), 10).get("k").is_none());
    }

    #[test]
    fn an_entry_lives_as_long_as_was_said() {
        let cache = BoundedCache::new(10, Clock::default());
        cache.insert("over", Bytes::new(), Duration::ZERO);
        cache.insert("for ever", Bytes::new(), Duration::MAX);
        assert!(cache.get("over").is_none() && cache.get("for ever").is_some());
    }

    #[test]
    fn an_entry_expires_by_the_clock_that_a_test_sets() {
        let nanos = Arc::new(AtomicU64::new(1));
        let store = StateStore::with(Clock::set_by(nanos.clone()));
        let cache = store.cache(key("a"), 10);
        cache.insert("k", Bytes::from_static(b"v"), Duration::from_secs(60));
        assert!(cache.get("k").is_some());
        nanos.store(61_000_000_000, Relaxed);
        assert!(cache.get("k").is_none());
    }

    #[test]
    fn renewed_state_is_that_of_kinds_alone() {
        let store = StateStore::default();
        for name in ["", "a"] {
            *counter(&store, key(name)).lock().unwrap() = 7;
        }
        let renewed = store.renewed();
        assert_eq!(*counter(&renewed, key("")).lock().unwrap(), 7);
        assert_eq!(*counter(&renewed, key("a")).lock().unwrap(), 0);
    }

    #[test]
    fn a_cache_is_bounded() {
        let cache = BoundedCache::new(10, Clock::default());
        for number in 0..1000 {
            cache.insert(&number.to_string(), Bytes::new(), Duration::from_secs(60));
        }
        cache.cache.run_pending_tasks();
        assert!(cache.cache.entry_count() <= 10);
    }
}
