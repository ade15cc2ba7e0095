//! State that outlives reloads: what plugins share from one generation to the next.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::Expiry;
use portcullis_plugin::{Cache, RateTable, StateKey};

/// How long state is kept that nobody uses: editors delete and recreate files, and people undo.
const KEPT_UNUSED: Duration = Duration::from_secs(10 * 60);

/// Everything that plugins keep, by kind, instance name and layout.
#[derive(Default)]
pub(crate) struct StateStore {
    shared: Mutex<HashMap<StateKey, Held<dyn Any + Send + Sync>>>,
    caches: Mutex<HashMap<StateKey, Held<BoundedCache>>>,
    rates: Mutex<HashMap<StateKey, Held<RateTable>>>,
}

struct Held<T: ?Sized> {
    state: Arc<T>,
    unused_since: Option<Instant>,
}

impl StateStore {
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
        let held = caches
            .entry(key)
            .or_insert_with(|| Held { state: Arc::new(BoundedCache::new(entries)), unused_since: None });
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

/// A cache with a lifetime per entry.
struct BoundedCache {
    entries: u64,
    cache: moka::sync::Cache<Box<str>, Entry>,
}

#[derive(Clone)]
struct Entry {
    value: Bytes,
    expires: Instant,
}

struct EntryLifetime;

impl Expiry<Box<str>, Entry> for EntryLifetime {
    fn expire_after_create(&self, _: &Box<str>, entry: &Entry, now: Instant) -> Option<Duration> {
        Some(entry.expires.saturating_duration_since(now))
    }

    fn expire_after_update(
        &self,
        _: &Box<str>,
        entry: &Entry,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.expires.saturating_duration_since(now))
    }
}

impl BoundedCache {
    fn new(entries: u64) -> Self {
        let cache = moka::sync::Cache::builder().max_capacity(entries).expire_after(EntryLifetime).build();
        BoundedCache { entries, cache }
    }

    fn resized(&self, entries: u64) -> Self {
        let other = BoundedCache::new(entries);
        for (key, entry) in &self.cache {
            other.cache.insert(key.as_ref().clone(), entry);
        }
        other
    }
}

impl Cache for BoundedCache {
    fn get(&self, key: &str) -> Option<Bytes> {
        let entry = self.cache.get(key)?;
        (entry.expires > Instant::now()).then_some(entry.value)
    }

    fn insert(&self, key: &str, value: Bytes, lifetime: Duration) {
        // A lifetime beyond what the clock can express is as good as a year.
        let now = Instant::now();
        let expires = now.checked_add(lifetime).unwrap_or(now + Duration::from_secs(365 * 86_400));
        self.cache.insert(key.into(), Entry { value, expires });
    }
}

#[cfg(test)]
mod tests {
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
        let cache = BoundedCache::new(10);
        cache.insert("over", Bytes::new(), Duration::ZERO);
        cache.insert("for ever", Bytes::new(), Duration::MAX);
        assert!(cache.get("over").is_none() && cache.get("for ever").is_some());
    }

    #[test]
    fn a_cache_is_bounded() {
        let cache = BoundedCache::new(10);
        for number in 0..1000 {
            cache.insert(&number.to_string(), Bytes::new(), Duration::from_secs(60));
        }
        cache.cache.run_pending_tasks();
        assert!(cache.cache.entry_count() <= 10);
    }
}
