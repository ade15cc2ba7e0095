//! Values that several exchanges, and where the gateway's store is Redis several gateways, share.
//!
//! A [`Store`] is what keeps them, the gateway's one; a [`Keyspace`] is the part of it that one plugin instance
//! sees, from [`BuildContext::store`](crate::BuildContext::store). Every operation is about one key and atomic,
//! every value has a lifetime, and every refusal is an error that says why: what a plugin can't ask it should deny.

mod memory;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use self::memory::MemoryStore;
use crate::build::Instance;

/// Bytes of a key at most, as a plugin says it.
pub const MAX_STORE_KEY: usize = 1 << 10;

/// Bytes of a value at most.
pub const MAX_STORE_VALUE: usize = 64 << 10;

/// Longest lifetime of a value: what should stay for longer belongs into a file or a database.
pub const MAX_STORE_LIFETIME: Duration = Duration::from_secs(10 * 366 * 86_400);

/// Shortest lifetime, which is what stores can tell apart.
const MIN_LIFETIME: Duration = Duration::from_millis(1);

/// The wait for a store.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What keeps values by key. Keys and values are within the bounds above: whoever implements this need not look.
///
/// A wait ends within the store's own time limit, on whatever thread it is polled.
pub trait Store: Send + Sync {
    /// The value of a key; none if there is none or its lifetime is over.
    fn get(&self, key: String) -> StoreFuture<'_, Option<Bytes>>;

    /// Sets a value, whether there was one or not.
    fn set(&self, key: String, value: Bytes, lifetime: Duration) -> StoreFuture<'_, ()>;

    /// Sets a value if the present one is `expected`, where none means that there is none. Whether it did.
    fn compare_and_set(
        &self,
        key: String,
        expected: Option<Bytes>,
        value: Bytes,
        lifetime: Duration,
    ) -> StoreFuture<'_, bool>;

    /// Removes a value. Whether there was one.
    fn delete(&self, key: String) -> StoreFuture<'_, bool>;

    /// Adds to a counter, and says what it comes to. One that is not there begins at zero and lives for
    /// `lifetime`; adding to it does not prolong that. Its value is its decimal digits.
    fn add(&self, key: String, by: i64, lifetime: Duration) -> StoreFuture<'_, i64>;
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// It can't be reached at the moment. Nothing was changed, unless it went away in the middle of it.
    Unavailable,
    /// It did not answer in time. The change may have been made.
    Timeout,
    /// It answered with an error, which is in the log.
    Failed,
    /// It has no room for another value. What it holds stays.
    Full,
    /// The key is empty or longer than [`MAX_STORE_KEY`].
    Key,
    /// The value is larger than [`MAX_STORE_VALUE`].
    TooLarge,
    /// The lifetime is shorter than a millisecond or longer than [`MAX_STORE_LIFETIME`].
    Lifetime,
    /// The value that should be added to is no number, or the sum is none of 64 bits.
    NotANumber,
}

impl StoreError {
    /// A word for it in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            StoreError::Unavailable => "unavailable",
            StoreError::Timeout => "timeout",
            StoreError::Failed => "failed",
            StoreError::Full => "full",
            StoreError::Key => "key",
            StoreError::TooLarge => "too_large",
            StoreError::Lifetime => "lifetime",
            StoreError::NotANumber => "not_a_number",
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Unavailable => f.write_str("the store can't be reached"),
            StoreError::Timeout => f.write_str("the store did not answer in time"),
            StoreError::Failed => f.write_str("the store answered with an error"),
            StoreError::Full => f.write_str("the store is full"),
            StoreError::Key => write!(f, "a key of the store has 1 to {MAX_STORE_KEY} bytes"),
            StoreError::TooLarge => write!(f, "a value in the store has at most {MAX_STORE_VALUE} bytes"),
            StoreError::Lifetime => f.write_str("a value in the store lives for 1 ms to 10 years"),
            StoreError::NotANumber => {
                f.write_str("the value in the store is no number, or would be too large")
            }
        }
    }
}

impl std::error::Error for StoreError {}

/// The part of the store that one instance sees. What one in shadow does, none in force ever sees.
#[derive(Clone)]
pub struct Keyspace {
    store: Arc<dyn Store>,
    prefix: Arc<str>,
}

impl Keyspace {
    pub fn new(store: Arc<dyn Store>, instance: &Instance, in_shadow: bool) -> Self {
        let shadow = if in_shadow { "shadow/" } else { "" };
        // A name is whatever a configuration says: no two instances may come to the same prefix.
        let name = instance.name.replace('%', "%25").replace('/', "%2F");
        Keyspace { store, prefix: format!("{shadow}{}/{name}/", instance.kind).into() }
    }

    /// The value of a key; none if there is none or its lifetime is over.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.store.get(self.key(key)?).await
    }

    /// Sets a value, whether there was one or not.
    pub async fn set(&self, key: &str, value: Bytes, lifetime: Duration) -> Result<(), StoreError> {
        self.store.set(self.key(key)?, fits(value)?, lasts(lifetime)?).await
    }

    /// Sets a value if there is none. Whether it did.
    pub async fn set_if_absent(
        &self,
        key: &str,
        value: Bytes,
        lifetime: Duration,
    ) -> Result<bool, StoreError> {
        self.compare_and_set(key, None, value, lifetime).await
    }

    /// Sets a value if the present one is `expected`, where none means that there is none. Whether it did.
    pub async fn compare_and_set(
        &self,
        key: &str,
        expected: Option<Bytes>,
        value: Bytes,
        lifetime: Duration,
    ) -> Result<bool, StoreError> {
        let expected = expected.map(fits).transpose()?;
        self.store.compare_and_set(self.key(key)?, expected, fits(value)?, lasts(lifetime)?).await
    }

    /// Removes a value. Whether there was one.
    pub async fn delete(&self, key: &str) -> Result<bool, StoreError> {
        self.store.delete(self.key(key)?).await
    }

    /// Adds to a counter, and says what it comes to. One that is not there begins at zero and lives for
    /// `lifetime`; adding to it does not prolong that. [`get`](Self::get) has it as decimal digits.
    pub async fn add(&self, key: &str, by: i64, lifetime: Duration) -> Result<i64, StoreError> {
        self.store.add(self.key(key)?, by, lasts(lifetime)?).await
    }

    fn key(&self, key: &str) -> Result<String, StoreError> {
        match key.len() {
            1..=MAX_STORE_KEY => Ok(format!("{}{key}", self.prefix)),
            _ => Err(StoreError::Key),
        }
    }
}

/// What a counter comes to, for whoever implements [`Store::add`]. Its value is decimal digits as Redis writes them.
pub fn counted(value: Option<&[u8]>, by: i64) -> Result<i64, StoreError> {
    let number = |value: &[u8]| {
        let text = std::str::from_utf8(value).ok()?;
        text.parse().ok().filter(|number: &i64| number.to_string() == text)
    };
    value.map_or(Some(0), number).and_then(|number| number.checked_add(by)).ok_or(StoreError::NotANumber)
}

fn fits(value: Bytes) -> Result<Bytes, StoreError> {
    if value.len() <= MAX_STORE_VALUE { Ok(value) } else { Err(StoreError::TooLarge) }
}

fn lasts(lifetime: Duration) -> Result<Duration, StoreError> {
    if (MIN_LIFETIME..=MAX_STORE_LIFETIME).contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err(StoreError::Lifetime)
    }
}

impl fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyspace({})", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tester::block_on;

    const HOUR: Duration = Duration::from_secs(3600);

    fn keyspace(store: &Arc<MemoryStore>, kind: &'static str, name: &str, in_shadow: bool) -> Keyspace {
        let instance = Instance { kind, name: name.into(), state_schema: 1 };
        Keyspace::new(store.clone(), &instance, in_shadow)
    }

    #[test]
    fn nobody_sees_what_another_keeps() {
        let store = Arc::new(MemoryStore::default());
        let one = keyspace(&store, "ban", "a/b", false);
        block_on(one.set("c", "one".into(), HOUR)).unwrap();
        for other in [("ban", "a", "b/c"), ("ban", "a%2Fb", "c"), ("other", "a/b", "c"), ("ban", "c", "c")] {
            let (kind, name, key) = other;
            assert_eq!(block_on(keyspace(&store, kind, name, false).get(key)), Ok(None), "{other:?}");
        }
        assert_eq!(block_on(keyspace(&store, "ban", "a/b", true).get("c")), Ok(None), "one in shadow");
        assert_eq!(block_on(keyspace(&store, "ban", "a/b", false).get("c")), Ok(Some("one".into())));
    }

    #[test]
    fn what_is_out_of_bounds_reaches_no_store() {
        let space = keyspace(&Arc::new(MemoryStore::default()), "ban", "ban", false);
        let long = "k".repeat(MAX_STORE_KEY);
        assert_eq!(block_on(space.set(&long, "".into(), HOUR)), Ok(()));
        assert_eq!(block_on(space.get(&format!("{long}k"))), Err(StoreError::Key));
        assert_eq!(block_on(space.get("")), Err(StoreError::Key));
        let large = Bytes::from(vec![0; MAX_STORE_VALUE]);
        let larger = Bytes::from(vec![0; MAX_STORE_VALUE + 1]);
        assert_eq!(block_on(space.set("k", large, HOUR)), Ok(()));
        assert_eq!(block_on(space.set("k", larger.clone(), HOUR)), Err(StoreError::TooLarge));
        assert_eq!(block_on(space.set_if_absent("k", larger, HOUR)), Err(StoreError::TooLarge));
        for lifetime in [Duration::ZERO, MAX_STORE_LIFETIME + MIN_LIFETIME] {
            assert_eq!(block_on(space.set("k", "".into(), lifetime)), Err(StoreError::Lifetime));
            assert_eq!(block_on(space.add("n", 1, lifetime)), Err(StoreError::Lifetime));
        }
    }
}
