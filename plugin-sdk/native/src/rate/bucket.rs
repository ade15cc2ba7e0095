//! The token bucket, kept as one time (the generic cell rate algorithm, ITU-T I.371): that at which it is
//! full again, and the rate by which that was reckoned. A bucket of which nothing is known is full, so
//! only keys that owe something are kept.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::units::{LONGEST, Rate};

/// A bucket that holds so many tokens and is refilled at a rate. Over any time it lets pass no more
/// than it holds, and what is refilled meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Nanoseconds in which a token comes back.
    interval: u64,
    /// Nanoseconds in which an empty bucket fills up.
    depth: u64,
}

/// A bucket as it is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// When it is full.
    pub(super) full_at: u64,
    /// Nanoseconds in which a token came back when that was reckoned.
    interval: u64,
}

/// How a bucket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Tokens in it.
    pub left: u64,
    /// The time until there is one more; none if it is full.
    pub more_in: Option<Duration>,
}

impl TokenBucket {
    /// A bucket of `burst` tokens; none if it would take more than ten years to fill.
    pub fn new(rate: Rate, burst: NonZeroU32) -> Option<Self> {
        // Rounded up: rather a little less than the rate than more.
        let interval = nanos(rate.per).div_ceil(rate.count.get().into());
        let depth = interval.checked_mul(burst.get().into())?;
        (depth <= nanos(LONGEST)).then_some(TokenBucket { interval, depth })
    }

    /// How many tokens it holds.
    pub fn burst(self) -> u64 {
        self.depth / self.interval
    }

    /// The time in which an empty one fills up.
    pub fn fills_in(self) -> Duration {
        Duration::from_nanos(self.depth)
    }

    /// A bucket from which so much is missing.
    pub(super) fn keep(self, missing: u64, now: u64) -> Kept {
        Kept { full_at: now + missing, interval: self.interval }
    }

    /// What is missing from a bucket. One that was kept under another rate lacks as many tokens as before,
    /// or all of them.
    pub(super) fn missing(self, kept: Kept, now: u64) -> u64 {
        let missing = kept.full_at.saturating_sub(now);
        if kept.interval == self.interval {
            return missing.min(self.depth);
        }
        let now_as_long = u128::from(missing) * u128::from(self.interval);
        let missing = now_as_long.div_ceil(u128::from(kept.interval));
        u64::try_from(missing).map_or(self.depth, |missing| missing.min(self.depth))
    }

    /// What is missing once a token is taken; none if there is none to take.
    pub(super) fn less_one(self, missing: u64) -> Option<u64> {
        Some(missing + self.interval).filter(|missing| *missing <= self.depth)
    }

    pub(super) fn standing(self, missing: u64) -> Standing {
        let more_in = missing.checked_sub(1).map(|missing| Duration::from_nanos(missing % self.interval + 1));
        Standing { left: (self.depth - missing) / self.interval, more_in }
    }
}

/// As a number of nanoseconds; longer than five centuries nothing here is.
pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
