//! The store that plugins share: this process's memory, a file, or Redis.
//!
//! A store lives as long as a generation uses it, and goes on over reloads that say the same of it. What waits for
//! a disk or a network does so on a thread of the store's own, within a time limit, so that it can be waited for
//! anywhere, and no caller waits for longer.

mod file;
mod redis;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use portcullis_config::SecretName;
use portcullis_plugin::{BuildHost, Clock, MemoryStore, SecretRef, Store, StoreError, StoreFuture};
use portcullis_proxy::metrics::{StoreMetrics, StoreOperation};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use self::file::FileStore;
use self::redis::{RedisPlan, RedisStore};
use crate::inputs::absolute;

/// Operations under way in a store that is not memory; more are refused at once. At a millisecond each that is four
/// million a second, so it is reached only where the store has stopped.
const MAX_UNDER_WAY: usize = 4096;

/// What a configuration says of its store.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum StorePlan {
    /// Memory.
    Memory,
    /// A file, and how long it may take.
    File(PathBuf, Duration),
    /// Redis, and how long it may take.
    Redis(Box<RedisPlan>, Duration),
}

/// The stores of a process: the one in memory, and the one that a generation was built with last.
pub(crate) struct Stores {
    memory: Arc<OpenStore>,
    latest: Mutex<Option<(StorePlan, Weak<OpenStore>)>>,
    metrics: Arc<StoreMetrics>,
    /// Whether nothing but memory is ever opened.
    isolated: bool,
}

/// Bytes of a store for requests that are made up.
const REHEARSED: usize = 1 << 20;

impl Stores {
    /// Stores that are opened when a configuration asks for them.
    pub(crate) fn new(metrics: Arc<StoreMetrics>) -> Self {
        Self::before(MemoryStore::default(), metrics)
    }

    fn before(memory: MemoryStore, metrics: Arc<StoreMetrics>) -> Self {
        let memory = OpenStore {
            store: Arc::new(memory),
            metrics: metrics.clone(),
            up: Arc::new(AtomicBool::new(true)),
            thread: None,
        };
        Stores { memory: Arc::new(memory), latest: Mutex::default(), metrics, isolated: false }
    }

    /// For builds that nobody is to see: whatever a configuration says, an empty store in memory.
    pub(crate) fn isolated(metrics: Arc<StoreMetrics>) -> Self {
        Stores { isolated: true, ..Stores::new(metrics) }
    }

    /// The same by a clock that a test sets.
    pub(crate) fn rehearsed(metrics: Arc<StoreMetrics>, clock: Clock) -> Self {
        Stores { isolated: true, ..Stores::before(MemoryStore::new(REHEARSED, clock), metrics) }
    }

    /// The one in memory.
    pub(crate) fn memory(&self) -> Arc<OpenStore> {
        self.memory.clone()
    }

    /// The store of a plan: the one that is open, else a new one, which connects in the background.
    pub(crate) fn open(&self, plan: &StorePlan) -> Result<Arc<OpenStore>, String> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if self.isolated || *plan == StorePlan::Memory {
            return Ok(self.memory.clone());
        }
        if let Some((known, store)) = &*latest
            && known == plan
            && let Some(store) = store.upgrade()
        {
            return Ok(store);
        }
        let store = Arc::new(OpenStore::open(plan, self.metrics.clone())?);
        *latest = Some((plan.clone(), Arc::downgrade(&store)));
        Ok(store)
    }
}

/// A store in use.
pub(crate) struct OpenStore {
    store: Arc<dyn Store>,
    metrics: Arc<StoreMetrics>,
    /// Whether it can be reached.
    pub(crate) up: Arc<AtomicBool>,
    /// Where its waits pass; none if it has none.
    thread: Option<StoreThread>,
}

/// A thread with a runtime, on which one store's waits pass. It ends with this.
struct StoreThread {
    runtime: Handle,
    under_way: Arc<AtomicUsize>,
    timeout: Duration,
    _end: oneshot::Sender<()>,
}

impl OpenStore {
    fn open(plan: &StorePlan, metrics: Arc<StoreMetrics>) -> Result<Self, String> {
        let up = Arc::new(AtomicBool::new(false));
        let (store, thread): (Arc<dyn Store>, _) = match plan {
            StorePlan::Memory => return Err("memory needs no opening".to_owned()),
            StorePlan::File(path, timeout) => {
                (Arc::new(FileStore::open(path, file::LIMIT, up.clone())?), StoreThread::start(*timeout)?)
            }
            StorePlan::Redis(plan, timeout) => {
                let thread = StoreThread::start(*timeout)?;
                (Arc::new(RedisStore::connect(plan, *timeout, up.clone(), &thread.runtime)), thread)
            }
        };
        Ok(OpenStore { store, metrics, up, thread: Some(thread) })
    }

    /// Runs an operation, and counts it.
    fn run<T: Send + 'static>(
        &self,
        operation: StoreOperation,
        ask: impl FnOnce(&dyn Store) -> StoreFuture<'_, T> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        Box::pin(async move {
            let begun = Instant::now();
            let result = match &self.thread {
                None => ask(&*self.store).await,
                Some(thread) => thread.run(self.store.clone(), ask).await,
            };
            self.metrics.count(operation, result.as_ref().err().copied(), begun.elapsed());
            result
        })
    }
}

impl StoreThread {
    fn start(timeout: Duration) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the store's thread can't be started: {error}");
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let live = move || drop(runtime.block_on(ended));
        thread::Builder::new().name("store".into()).spawn(live).map_err(failed)?;
        Ok(StoreThread { runtime: handle, under_way: Arc::default(), timeout, _end: end })
    }

    async fn run<T: Send + 'static>(
        &self,
        store: Arc<dyn Store>,
        ask: impl FnOnce(&dyn Store) -> StoreFuture<'_, T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = Place::take(&self.under_way).ok_or(StoreError::Unavailable)?;
        let timeout = self.timeout;
        let answer = self.runtime.spawn(async move {
            let _place = place;
            tokio::time::timeout(timeout, ask(&*store)).await.unwrap_or(Err(StoreError::Timeout))
        });
        // A store that is closed has no answer any more.
        answer.await.unwrap_or(Err(StoreError::Unavailable))
    }
}

/// One of the operations that may be under way.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(under_way: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Place(under_way.clone());
        (under_way.fetch_add(1, Relaxed) < MAX_UNDER_WAY).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Store for OpenStore {
    fn get(&self, key: String) -> StoreFuture<'_, Option<Bytes>> {
        self.run(StoreOperation::Get, |store| store.get(key))
    }

    fn set(&self, key: String, value: Bytes, lifetime: Duration) -> StoreFuture<'_, ()> {
        self.run(StoreOperation::Set, move |store| store.set(key, value, lifetime))
    }

    fn compare_and_set(
        &self,
        key: String,
        expected: Option<Bytes>,
        value: Bytes,
        lifetime: Duration,
    ) -> StoreFuture<'_, bool> {
        self.run(StoreOperation::CompareAndSet, move |store| {
            store.compare_and_set(key, expected, value, lifetime)
        })
    }

    fn delete(&self, key: String) -> StoreFuture<'_, bool> {
        self.run(StoreOperation::Delete, |store| store.delete(key))
    }

    fn add(&self, key: String, by: i64, lifetime: Duration) -> StoreFuture<'_, i64> {
        self.run(StoreOperation::Add, move |store| store.add(key, by, lifetime))
    }
}

/// The plan of a configuration; what it names is read through `host`. Errors come with the setting's path.
pub(crate) fn plan(
    config: &portcullis_config::Store,
    dir: &Path,
    host: &mut dyn BuildHost,
) -> Result<StorePlan, (&'static str, String)> {
    match config {
        portcullis_config::Store::Memory => Ok(StorePlan::Memory),
        portcullis_config::Store::File(file) => {
            let path = absolute(dir, &file.path);
            match path.parent() {
                Some(parent) if parent.is_dir() => Ok(StorePlan::File(path, file.timeout.0)),
                _ => Err(("store.file", format!("there is no directory for `{}`", path.display()))),
            }
        }
        portcullis_config::Store::Redis(store) => {
            let redis = store.redis.clone();
            let mut secret = |name: &SecretName| {
                let name = SecretRef::try_from(name.as_str().to_owned())?;
                host.secret(&name)
            };
            let password = redis.password.as_ref().map(&mut secret).transpose();
            let password = password.map_err(|message| ("store.redis.password", message))?;
            let authorities =
                redis.ca.as_ref().map(|path| host.data_file(&path.to_string_lossy())).transpose();
            let authorities =
                authorities.map_err(|message| ("store.redis.ca", message))?.map(|file| file.bytes);
            let plan = RedisPlan { redis, password, authorities };
            plan.check().map_err(|message| ("store.redis", message))?;
            Ok(StorePlan::Redis(Box::new(plan), store.timeout.0))
        }
    }
}

#[cfg(test)]
mod tests;
