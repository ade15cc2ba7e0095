//! The store that is a file: crash-safe, for one machine.
//!
//! One thread does everything, in transactions: all that waits at a time is one of them, and is answered when it is
//! on disk (`fsync`). So what a plugin was told has happened survives a crash, and many changes share one sync. Other
//! processes may use the same file, such as this one's successor in an upgrade.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use portcullis_plugin::{Store, StoreError, StoreFuture, counted};
use redb::{ConcurrencyMode, Database, ReadableTable, Table, TableDefinition};
use tokio::sync::oneshot;

/// Values with the end of their lifetime, in milliseconds since 1970, by key.
const VALUES: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("values");

/// Keys by the end of their lifetime.
const ENDS: TableDefinition<(u64, &str), ()> = TableDefinition::new("ends");

/// The sum of what the values cost.
const SIZE: TableDefinition<(), u64> = TableDefinition::new("size");

/// Bytes of all values at most. Beyond it new values are refused; none is forgotten before its time.
pub(super) const LIMIT: u64 = 1 << 30;

/// What a value costs besides key and content: two entries in trees.
const OVERHEAD: u64 = 100;

/// Operations of one transaction at most: as many as may take a few milliseconds together.
const BATCH: usize = 256;

/// Values whose lifetime is over that one transaction removes at most, beside as many as it adds.
const SWEPT: usize = 64;

/// Between two looks for them while nobody asks for anything.
const SWEEP: Duration = Duration::from_secs(10);

/// Between two attempts to open the file.
const RETRY: Duration = Duration::from_secs(1);

/// Memory for pages of the file.
const CACHE: usize = 16 << 20;

/// Does something with the values, and then tells how it went once that is on disk.
type Job = Box<dyn FnOnce(&mut Values<'_>) -> Reply + Send>;
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Values by key, in a file.
pub(crate) struct FileStore {
    jobs: SyncSender<Job>,
}

impl FileStore {
    /// A store of `limit` bytes in the file at `path`, which a thread opens. `up` says whether it could.
    pub(crate) fn open(path: &Path, limit: u64, up: Arc<AtomicBool>) -> Result<Self, String> {
        let (jobs, queue) = sync_channel(super::MAX_UNDER_WAY);
        let path = path.to_owned();
        let live = move || live(&path, limit, &queue, &up);
        thread::Builder::new()
            .name("store-file".into())
            .spawn(live)
            .map_err(|error| format!("the store's thread can't be started: {error}"))?;
        Ok(FileStore { jobs })
    }

    fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Values<'_>) -> Result<T, Refusal> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let (answer, wait) = oneshot::channel();
        let job: Job = Box::new(move |values| {
            let result = values.run(act);
            // Whoever asked may have stopped waiting.
            Box::new(move |committed| drop(answer.send(committed.and(result))))
        });
        let queued = self.jobs.try_send(job).is_ok();
        Box::pin(async move {
            if !queued {
                return Err(StoreError::Unavailable);
            }
            wait.await.unwrap_or(Err(StoreError::Unavailable))
        })
    }
}

/// The life of the thread: it has the file open, or tries to.
fn live(path: &Path, limit: u64, queue: &Receiver<Job>, up: &AtomicBool) {
    let mut told = String::new();
    loop {
        // The library may panic at a file that something else has changed.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let database = open(path)?;
            tracing::info!(path = %path.display(), "the store is open");
            told.clear();
            up.store(true, Relaxed);
            serve(&database, limit, queue)
        }));
        up.store(false, Relaxed);
        let error = match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the file is damaged".to_owned(),
        };
        if told != error {
            tracing::error!(path = %path.display(), error, "the store can't be used");
            told = error;
        }
        // Who asks meanwhile is told at once: what is dropped has no answer.
        let until = std::time::Instant::now() + RETRY;
        loop {
            match queue.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
                Ok(job) => drop(job),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

fn open(path: &Path) -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE).set_concurrency_mode(ConcurrencyMode::MultiWriter);
    let database = builder.create(path)?;
    let transaction = database.begin_write()?;
    transaction.open_table(VALUES)?;
    transaction.open_table(ENDS)?;
    transaction.open_table(SIZE)?;
    transaction.commit()?;
    Ok(database)
}

/// Does what is asked until nobody can ask any more.
fn serve(database: &Database, limit: u64, queue: &Receiver<Job>) -> Result<(), redb::Error> {
    loop {
        let mut jobs = Vec::new();
        match queue.recv_timeout(SWEEP) {
            Ok(job) => jobs.push(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        jobs.extend(queue.try_iter().take(BATCH - 1));
        transact(database, limit, jobs)?;
    }
}

/// One transaction. After an error of the file nothing of it has happened, and all are told so.
fn transact(database: &Database, limit: u64, jobs: Vec<Job>) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    let (mut replies, mut outcome) = (Vec::with_capacity(jobs.len()), Ok(()));
    let changed = {
        let mut values = Values {
            values: transaction.open_table(VALUES)?,
            ends: transaction.open_table(ENDS)?,
            size: transaction.open_table(SIZE)?,
            now: now(),
            limit,
            changed: false,
            broken: None,
        };
        let room = jobs.len() + SWEPT;
        replies.extend(jobs.into_iter().map(|job| job(&mut values)));
        if let Err(error) = values.sweep(room) {
            values.broken.get_or_insert(error);
        }
        if let Some(error) = values.broken {
            outcome = Err(redb::Error::from(error));
        }
        values.changed
    };
    if outcome.is_ok() {
        outcome = match changed {
            true => transaction.commit().map_err(redb::Error::from),
            false => transaction.abort().map_err(redb::Error::from),
        };
    }
    let committed = outcome.as_ref().map(drop).map_err(|_| StoreError::Failed);
    replies.into_iter().for_each(|reply| reply(committed));
    outcome
}

/// The file's content in a transaction.
struct Values<'t> {
    values: Table<'t, &'static str, (u64, &'static [u8])>,
    ends: Table<'t, (u64, &'static str), ()>,
    size: Table<'t, (), u64>,
    now: u64,
    limit: u64,
    changed: bool,
    broken: Option<redb::StorageError>,
}

/// Why something was not done.
enum Refusal {
    Store(StoreError),
    File(redb::StorageError),
}

impl From<redb::StorageError> for Refusal {
    fn from(error: redb::StorageError) -> Self {
        Refusal::File(error)
    }
}

impl Values<'_> {
    fn run<T>(&mut self, act: impl FnOnce(&mut Self) -> Result<T, Refusal>) -> Result<T, StoreError> {
        act(self).map_err(|refusal| match refusal {
            Refusal::Store(error) => error,
            Refusal::File(error) => {
                self.broken = Some(error);
                StoreError::Failed
            }
        })
    }

    /// A value with the end of its lifetime, if that is not over.
    fn live(&self, key: &str) -> Result<Option<(u64, Bytes)>, redb::StorageError> {
        let found = self.values.get(key)?;
        let found = found.map(|found| (found.value().0, Bytes::copy_from_slice(found.value().1)));
        Ok(found.filter(|(end, _)| *end > self.now))
    }

    /// Keeps a value in the place of the one before it, if there is room.
    fn put(&mut self, key: &str, value: &[u8], end: u64) -> Result<(), Refusal> {
        let before = self.values.get(key)?.map(|found| cost(key, found.value().1)).unwrap_or_default();
        let size = self.size()?;
        if size.saturating_sub(before) + cost(key, value) > self.limit {
            return Err(Refusal::Store(StoreError::Full));
        }
        self.remove(key)?;
        self.values.insert(key, (end, value))?;
        self.ends.insert((end, key), ())?;
        self.resize(size.saturating_sub(before) + cost(key, value))?;
        Ok(())
    }

    /// Removes a value, and says when its lifetime would have ended.
    fn remove(&mut self, key: &str) -> Result<Option<u64>, redb::StorageError> {
        let removed = self.values.remove(key)?.map(|found| (found.value().0, cost(key, found.value().1)));
        let Some((end, cost)) = removed else { return Ok(None) };
        self.ends.remove((end, key))?;
        let size = self.size()?;
        self.resize(size.saturating_sub(cost))?;
        Ok(Some(end))
    }

    /// Removes up to so many values whose lifetime is over.
    fn sweep(&mut self, most: usize) -> Result<(), redb::StorageError> {
        let mut over = Vec::new();
        for entry in self.ends.range(..=(self.now, ""))?.take(most) {
            over.push(entry?.0.value().1.to_owned());
        }
        over.iter().try_for_each(|key| self.remove(key).map(drop))
    }

    fn size(&self) -> Result<u64, redb::StorageError> {
        Ok(self.size.get(())?.map_or(0, |size| size.value()))
    }

    fn resize(&mut self, size: u64) -> Result<(), redb::StorageError> {
        self.changed = true;
        self.size.insert((), size).map(drop)
    }

    fn end(&self, lifetime: Duration) -> u64 {
        self.now.saturating_add(millis(lifetime))
    }
}

fn cost(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + OVERHEAD
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(millis).unwrap_or_default()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Store for FileStore {
    fn get(&self, key: String) -> StoreFuture<'_, Option<Bytes>> {
        self.ask(move |values| Ok(values.live(&key)?.map(|(_, value)| value)))
    }

    fn set(&self, key: String, value: Bytes, lifetime: Duration) -> StoreFuture<'_, ()> {
        self.ask(move |values| values.put(&key, &value, values.end(lifetime)))
    }

    fn compare_and_set(
        &self,
        key: String,
        expected: Option<Bytes>,
        value: Bytes,
        lifetime: Duration,
    ) -> StoreFuture<'_, bool> {
        self.ask(move |values| {
            if values.live(&key)?.map(|(_, value)| value) != expected {
                return Ok(false);
            }
            values.put(&key, &value, values.end(lifetime))?;
            Ok(true)
        })
    }

    fn delete(&self, key: String) -> StoreFuture<'_, bool> {
        self.ask(move |values| Ok(values.remove(&key)?.is_some_and(|end| end > values.now)))
    }

    fn add(&self, key: String, by: i64, lifetime: Duration) -> StoreFuture<'_, i64> {
        self.ask(move |values| {
            let (end, before) = match values.live(&key)? {
                None => (values.end(lifetime), None),
                Some((end, value)) => (end, Some(value)),
            };
            let count = counted(before.as_deref(), by).map_err(Refusal::Store)?;
            values.put(&key, count.to_string().as_bytes(), end)?;
            Ok(count)
        })
    }
}
