//! The state of limits: for each key that owes something, when it will owe nothing any more.
//!
//! Shared by all workers, in shards with a lock each, and bounded. What owes nothing is forgotten when
//! there is need for room, anything else never: an attacker is not forgotten for a flood of other keys.
//! Where a shard is full, further keys share a bucket, so that they are not let pass uncounted either.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use smallvec::SmallVec;

use super::bucket::{Kept, nanos};
use super::{Identity, MAX_TAKES, Take};
use crate::clock::Clock;

/// Locks among which keys are shared out: far more than workers, so that these rarely meet, and so many
/// that a look at all keys of a full shard is short.
const SHARDS: usize = 128;

/// Keys for which a shard has room until more than half of them owe something.
const FIRST_ROOM: usize = 32;

/// Keys that are looked at, on the average, for each new one that meets a full shard.
const LOOKED_AT: usize = 64;

/// The state of all limits of one plugin instance; it outlives reloads.
pub struct RateTable {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// The limits of generations that are still there.
    limits: Mutex<Vec<Weak<Identity>>>,
}

/// A part of the keys. On cache lines of its own, for the sake of its neighbours.
#[repr(align(64))]
struct Shard {
    /// The buckets of keys, and those that new keys share.
    buckets: HashMap<u64, Kept, BuildHasherDefault<AsIs>>,
    room: usize,
    /// New keys that found no room since all were looked at.
    turned_away: usize,
}

/// Keys are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only whole numbers come, and nothing breaks if anything else does.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }
}

impl Default for RateTable {
    fn default() -> Self {
        let shard = || Shard { buckets: HashMap::default(), room: FIRST_ROOM, turned_away: 0 };
        RateTable {
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
            hasher: RandomState::new(),
            limits: Mutex::default(),
        }
    }
}

impl std::fmt::Debug for RateTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateTable").field("keys", &self.keys()).finish_non_exhaustive()
    }
}

impl RateTable {
    /// Keys that are kept at the moment.
    pub fn keys(&self) -> usize {
        (0..SHARDS).map(|at| self.shard(at).buckets.len()).sum()
    }

    pub(super) fn hash(&self, key: &impl Hash) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Notes a limit for as long as somebody has it. Whether one of its name is there already, and none
    /// that is the same.
    pub(super) fn enter(&self, limit: &Arc<Identity>) -> bool {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.retain(|limit| limit.strong_count() > 0);
        let of_its_name: SmallVec<[u64; MAX_TAKES]> = limits
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|known| known.name == limit.name)
            .map(|known| known.id)
            .collect();
        limits.push(Arc::downgrade(limit));
        !of_its_name.is_empty() && !of_its_name.contains(&limit.id)
    }

    pub(super) fn take(&self, takes: &mut [Take], max_keys: usize, clock: &Clock) -> bool {
        let most = (max_keys / SHARDS).max(1);
        let mut held = self.lock(takes);
        // Read under the locks, time never goes back for a shard.
        let now = nanos(clock.now());
        let mut all = true;
        for take in takes.iter_mut() {
            let shard = shard_of(&mut held, take.key);
            shard.find(take, most, now);
            all &= !take.refused;
        }
        for take in takes.iter_mut() {
            let shard = shard_of(&mut held, take.key);
            match all {
                true => shard.spend(take, now),
                false => shard.leave(take),
            }
        }
        all
    }

    /// Locks what is needed. Everybody does it in the same order, so nobody waits for each other.
    fn lock(&self, takes: &[Take]) -> Held<'_> {
        let mut shards: SmallVec<[usize; MAX_TAKES]> = takes.iter().map(|take| place(take.key)).collect();
        shards.sort_unstable();
        shards.dedup();
        shards.into_iter().map(|at| (at, self.shard(at))).collect()
    }

    fn shard(&self, at: usize) -> MutexGuard<'_, Shard> {
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The shards that a call has locked, with their places.
type Held<'t> = SmallVec<[(usize, MutexGuard<'t, Shard>); MAX_TAKES]>;

/// The map of a shard goes by the lowest and the highest bits, so the shard goes by others.
fn place(key: u64) -> usize {
    (key >> 32) as usize % SHARDS
}

fn shard_of<'h>(held: &'h mut Held<'_>, key: u64) -> &'h mut Shard {
    let found = held.iter_mut().find(|(at, _)| *at == place(key));
    found.map(|(_, shard)| &mut **shard).expect("the shard of every key is locked")
}

impl Shard {
    /// Looks how the bucket of a key stands, or that of all new keys if there is no room.
    fn find(&mut self, take: &mut Take, most: usize, now: u64) {
        let kept = match self.buckets.get_mut(&take.key) {
            Some(kept) => kept,
            None => {
                take.overflowed = !self.has_room(most, now);
                self.buckets.entry(take.slot()).or_insert(take.bucket.keep(0, now))
            }
        };
        take.missing = take.bucket.missing(*kept, now);
        take.refused = take.bucket.less_one(take.missing).is_none();
        // As it is by now, so that no look for room takes it away before the call is over.
        *kept = take.bucket.keep(take.missing, now);
    }

    /// Takes the token.
    fn spend(&mut self, take: &mut Take, now: u64) {
        if let Some(missing) = take.bucket.less_one(take.missing) {
            take.missing = missing;
            self.buckets.insert(take.slot(), take.bucket.keep(missing, now));
        }
    }

    /// Takes nothing, and remembers nobody who owes nothing.
    fn leave(&mut self, take: &Take) {
        if take.missing == 0 {
            self.buckets.remove(&take.slot());
        }
    }

    /// Whether a new key may be kept. Before a shard takes more room it forgets who owes nothing. At its
    /// bound it does so only now and then, because a look at all keys must not be had for each new one.
    fn has_room(&mut self, most: usize, now: u64) -> bool {
        let room = self.room.min(most);
        if self.buckets.len() < room {
            return true;
        }
        self.turned_away += 1;
        if room < most || self.turned_away * LOOKED_AT >= self.buckets.len() {
            self.turned_away = 0;
            self.buckets.retain(|_, kept| kept.full_at >= now);
            self.room = if self.buckets.len() > room / 2 { (room * 2).min(most) } else { room };
        }
        self.buckets.len() < self.room
    }
}

impl Take {
    /// Where its bucket is kept.
    fn slot(&self) -> u64 {
        if self.overflowed { self.limit } else { self.key }
    }
}
