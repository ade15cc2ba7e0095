//! How often something may happen: limits, and the state in which they are counted.
//!
//! [`Rates`] is what a plugin gets from [`BuildContext::rates`](crate::BuildContext::rates). It makes a
//! [`Limit`] of each of its limits while it is built; a hook asks for a token of each with
//! [`ask`](Rates::ask) and gets all of them or none with [`take`](Rates::take). Taking never waits and
//! allocates nothing unless a key is new.
//!
//! A key is kept as a hash with a secret that nobody outside can guess, together with the limit's identity. So
//! one table serves all limits of an instance, and a limit whose key changes begins anew by itself.

mod bucket;
mod table;

use std::hash::Hash;
use std::sync::Arc;

pub use self::bucket::{Standing, TokenBucket};
pub use self::table::RateTable;
use crate::clock::Clock;

/// Limits that may be asked at once: as many as locks are held together.
pub const MAX_TAKES: usize = 8;

/// The limits of one plugin instance, with their state.
#[derive(Debug, Clone)]
pub struct Rates {
    table: Arc<RateTable>,
    clock: Clock,
    max_keys: usize,
}

/// A limit, and what it is known by in the state.
#[derive(Debug)]
pub struct Limit {
    identity: Arc<Identity>,
    bucket: TokenBucket,
}

/// What makes a limit the same after a reload.
#[derive(Debug)]
pub(crate) struct Identity {
    name: Box<str>,
    id: u64,
}

/// A token of one bucket that is asked for, and how that bucket stands once it was.
#[derive(Debug, Clone, Copy)]
pub struct Take {
    bucket: TokenBucket,
    limit: u64,
    key: u64,
    /// Nanoseconds until the bucket is full.
    missing: u64,
    refused: bool,
    overflowed: bool,
}

impl Rates {
    /// The limits of one instance; of `max_keys` keys each may have a bucket of its own.
    pub(crate) fn new(table: Arc<RateTable>, clock: Clock, max_keys: usize) -> Self {
        Rates { table, clock, max_keys }
    }

    /// A limit. What was counted under the same `name` and `key` goes on, whatever the bucket; `key`
    /// is what tells its buckets apart, in words. The second value says that the running generation
    /// counts under this name by something else, so that counting begins anew.
    pub fn limit(&self, name: &str, key: &str, bucket: TokenBucket) -> (Limit, bool) {
        let id = self.table.hash(&(name, "token_bucket", key));
        let identity = Arc::new(Identity { name: name.into(), id });
        let begins_anew = self.table.enter(&identity);
        (Limit { identity, bucket }, begins_anew)
    }

    /// Asks a limit for a token of the bucket of `key`.
    pub fn ask(&self, limit: &Limit, key: impl Hash) -> Take {
        let limit_id = limit.identity.id;
        Take {
            bucket: limit.bucket,
            limit: limit_id,
            key: self.table.hash(&(limit_id, key)),
            missing: 0,
            refused: false,
            overflowed: false,
        }
    }

    /// Takes all tokens, or none if a bucket is empty, and says which. At most [`MAX_TAKES`], each of
    /// another limit.
    pub fn take(&self, takes: &mut [Take]) -> bool {
        self.table.take(takes, self.max_keys, &self.clock)
    }
}

impl Take {
    /// Whether this bucket was empty.
    pub fn is_refused(&self) -> bool {
        self.refused
    }

    /// Whether the table was full, so that the token was one of the bucket that new keys share.
    pub fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// How the bucket stands.
    pub fn standing(&self) -> Standing {
        self.bucket.standing(self.missing)
    }
}

#[cfg(test)]
mod tests;
