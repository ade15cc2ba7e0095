use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::units::Rate;

const SECOND: u64 = 1_000_000_000;

/// Limits with a clock that the test sets.
struct World {
    rates: Rates,
    nanos: Arc<AtomicU64>,
}

impl World {
    fn new(max_keys: usize) -> Self {
        let nanos = Arc::new(AtomicU64::new(1000 * SECOND));
        World { rates: Rates::new(Arc::default(), Clock::set_by(nanos.clone()), max_keys), nanos }
    }

    fn at(&self, seconds: f64) -> &Self {
        self.nanos.store(((1000.0 + seconds) * SECOND as f64).round() as u64, Relaxed);
        self
    }

    fn limit(&self, name: &str, bucket: TokenBucket) -> Limit {
        self.rates.limit(name, "key", bucket).0
    }

    fn takes(&self, asked: &[(&Limit, &str)]) -> Vec<Take> {
        let mut takes: Vec<Take> = asked.iter().map(|(limit, key)| self.rates.ask(limit, key)).collect();
        let all = self.rates.take(&mut takes);
        assert_eq!(all, takes.iter().all(|take| !take.is_refused()));
        takes
    }

    fn take(&self, limit: &Limit, key: &str) -> bool {
        !self.takes(&[(limit, key)])[0].is_refused()
    }

    /// How many of so many are let pass.
    fn passed(&self, limit: &Limit, key: &str, tries: usize) -> usize {
        (0..tries).filter(|_| self.take(limit, key)).count()
    }
}

fn bucket(count: u32, seconds: u64, burst: u32) -> TokenBucket {
    let count = NonZeroU32::new(count).unwrap();
    let rate = Rate { count, per: Duration::from_secs(seconds) };
    TokenBucket::new(rate, NonZeroU32::new(burst).unwrap()).unwrap()
}

#[test]
fn a_bucket_gives_what_it_holds_and_then_what_comes_back() {
    let world = World::new(1000);
    let limit = world.limit("a", bucket(10, 1, 20));
    assert_eq!(world.passed(&limit, "x", 100), 20);
    assert_eq!(world.at(0.099).passed(&limit, "x", 100), 0);
    assert_eq!(world.at(0.1).passed(&limit, "x", 100), 1);
    assert_eq!(world.at(0.55).passed(&limit, "x", 100), 4);
    assert_eq!(world.at(60.0).passed(&limit, "x", 100), 20, "no more than that is saved up");
    assert_eq!(world.passed(&limit, "y", 100), 20, "each key has its own");
}

#[test]
fn a_token_comes_back_rather_late_than_early() {
    let world = World::new(1000);
    let limit = world.limit("a", bucket(3, 1, 1));
    assert!(world.take(&limit, "x"));
    for (nanos, comes) in
        [(333_333_333, false), (333_333_334, true), (666_666_667, false), (666_666_668, true)]
    {
        world.nanos.store(1000 * SECOND + nanos, Relaxed);
        assert_eq!(world.take(&limit, "x"), comes, "{nanos}");
    }
}

#[test]
fn a_bucket_tells_how_it_stands() {
    let world = World::new(1000);
    let limit = world.limit("a", bucket(1, 10, 3));
    let stands = |seconds| {
        let take = world.at(seconds).takes(&[(&limit, "x")])[0];
        (take.is_refused(), take.standing().left, take.standing().more_in.unwrap().as_secs_f64())
    };
    assert_eq!(stands(0.0), (false, 2, 10.0));
    assert_eq!(stands(4.0), (false, 1, 6.0));
    assert_eq!(stands(4.0), (false, 0, 6.0));
    assert_eq!(stands(7.5), (true, 0, 2.5));
    assert_eq!(stands(10.0), (false, 0, 10.0));
    let full = bucket(1, 10, 3).standing(0);
    assert_eq!(full, Standing { left: 3, more_in: None });
}

#[test]
fn a_bucket_is_filled_in_ten_years_or_is_none() {
    let of = |count, burst| {
        let rate = Rate { count: NonZeroU32::new(count).unwrap(), per: Duration::from_secs(86_400) };
        TokenBucket::new(rate, NonZeroU32::new(burst).unwrap())
    };
    assert_eq!(of(1, 3650).unwrap().fills_in(), Duration::from_secs(3650 * 86_400));
    assert!(of(1, 3651).is_none() && of(1, u32::MAX).is_none());
    assert_eq!(of(u32::MAX, u32::MAX).unwrap().burst(), u64::from(u32::MAX));
}

#[test]
fn a_clock_that_goes_back_gives_nobody_more_and_has_nobody_wait_for_long() {
    let world = World::new(1000);
    let limit = world.limit("a", bucket(1, 1, 5));
    assert_eq!(world.at(100.0).passed(&limit, "x", 10), 5);
    assert_eq!(world.at(0.0).passed(&limit, "x", 10), 0);
    assert_eq!(world.at(1.0).passed(&limit, "x", 10), 1);
    assert_eq!(world.at(-900.0).passed(&limit, "x", 10), 0);
}

#[test]
fn all_tokens_are_taken_or_none() {
    let world = World::new(1000);
    let (wide, narrow) = (world.limit("wide", bucket(1, 3600, 5)), world.limit("narrow", bucket(1, 3600, 1)));
    assert!(!world.takes(&[(&wide, "x"), (&narrow, "a")])[0].is_refused());
    for _ in 0..10 {
        let takes = world.takes(&[(&wide, "x"), (&narrow, "a")]);
        assert_eq!((takes[0].is_refused(), takes[1].is_refused()), (false, true));
        assert_eq!(takes[0].standing().left, 4, "who is refused by one owes none");
    }
    assert_eq!(world.passed(&wide, "x", 10), 4);
    assert!(world.takes(&[(&wide, "x"), (&narrow, "b")])[0].is_refused());
    assert!(world.take(&narrow, "b"));
}

#[test]
fn who_owes_nothing_is_not_remembered_for_being_refused_elsewhere() {
    let world = World::new(1 << 20);
    let (one, other) = (world.limit("one", bucket(1, 3600, 1)), world.limit("other", bucket(1, 3600, 1)));
    assert!(world.take(&one, "x"));
    (0..100).for_each(|key| assert!(world.takes(&[(&one, "x"), (&other, &key.to_string())])[0].is_refused()));
    assert_eq!(world.rates.table.keys(), 1);
}

#[test]
fn another_rate_goes_on_with_what_is_owed_and_another_key_begins_anew() {
    let world = World::new(1000);
    let limit = |key: &str, bucket| world.rates.limit("a", key, bucket);
    let (first, anew) = limit("client", bucket(1, 3600, 3));
    assert!(!anew);
    assert_eq!(world.passed(&first, "x", 10), 3);
    let (wider, anew) = limit("client", bucket(1, 3600, 5));
    assert!(!anew);
    assert_eq!(world.passed(&wider, "x", 10), 2);
    let (slower, _) = limit("client", bucket(1, 86_400, 7));
    assert_eq!(world.passed(&slower, "x", 10), 2, "five are owed, whatever the rate");
    // Nobody waits longer than the bucket takes now.
    let (faster, _) = limit("client", bucket(1, 1, 2));
    assert_eq!(world.passed(&faster, "x", 10), 0);
    assert_eq!(world.at(1.0).passed(&faster, "x", 10), 1);

    let (other, anew) = limit("header", bucket(1, 3600, 3));
    assert!(anew);
    assert_eq!(world.passed(&other, "x", 10), 3);
    assert!(!limit("header", bucket(1, 3600, 4)).1, "it is there already");
    drop((first, wider, slower, faster, other));
    assert!(!limit("route", bucket(1, 3600, 4)).1, "nobody counts under that name");
}

#[test]
fn a_flood_of_keys_neither_forgets_an_attacker_nor_passes_uncounted() {
    const MAX: usize = 1280;
    let world = World::new(MAX);
    let limit = world.limit("a", bucket(1, 3600, 2));
    assert_eq!(world.passed(&limit, "attacker", 10), 2);
    let (mut passed, mut shared) = (0, 0);
    for key in 0..100_000 {
        let take = world.takes(&[(&limit, &key.to_string())])[0];
        passed += usize::from(!take.is_refused());
        shared += usize::from(take.has_overflowed());
    }
    // Each that is kept is let pass once, and what the others share is two tokens for each shard.
    let kept = world.rates.table.keys();
    assert!(kept <= MAX + 128, "{kept}");
    assert_eq!(shared, 100_001 - (kept - 128));
    assert_eq!(passed, kept - 129 + 2 * 128);
    assert!(!world.take(&limit, "attacker"));
    assert!(world.take(&limit, "0"), "who was known has his own bucket");

    // Once the time has come there is room again.
    world.at(7200.0);
    let overflowed = |key: usize| world.takes(&[(&limit, &format!("later {key}"))])[0].has_overflowed();
    let turned_away = (0..MAX / 2).filter(|key| overflowed(*key)).count();
    assert!(turned_away <= 128, "{turned_away}");
}

#[test]
fn what_owes_nothing_takes_no_room() {
    let world = World::new(1 << 20);
    let limit = world.limit("a", bucket(1, 1, 1));
    for second in 0..200 {
        world.at(f64::from(second) * 2.0);
        assert!((0..1000).all(|key| world.take(&limit, &format!("{second} {key}"))));
    }
    let kept = world.rates.table.keys();
    assert!(kept < 10_000, "{kept} keys are kept for the last 1000");
}

#[test]
fn workers_take_no_more_together() {
    let world = World::new(1000);
    let (one, other) =
        (world.limit("one", bucket(1, 3600, 1000)), world.limit("other", bucket(1, 3600, 700)));
    let (passed, tries) = (AtomicUsize::new(0), 1000);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (world, passed, limits) = (&world, &passed, [(&one, "x"), (&other, "y")]);
            scope.spawn(move || {
                // In either order, which must not have two wait for each other.
                let order = if thread % 2 == 0 { limits } else { [limits[1], limits[0]] };
                let taken = (0..tries).filter(|_| world.takes(&order).iter().all(|take| !take.is_refused()));
                passed.fetch_add(taken.count(), Relaxed);
            });
        }
    });
    assert_eq!(passed.load(Relaxed), 700);
    assert_eq!(world.passed(&one, "x", 1000), 300);
}

#[test]
fn a_million_keys_take_less_than_150_mib() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let world = World::new(1_100_000);
    let limit = world.limit("a", bucket(1, 3600, 2));
    let before = resident();
    for key in 0..1_000_000_u32 {
        let mut take = [world.rates.ask(&limit, key)];
        assert!(world.rates.take(&mut take));
    }
    let taken = resident() - before;
    assert_eq!(world.rates.table.keys(), 1_000_000);
    assert!(taken < 150 << 20, "{taken} bytes");
    // What the docs say.
    assert!(taken < 75 * 1_000_000, "{taken} bytes");
}

/// A time and a burst, and when requests come, as pauses in milliseconds.
fn traffic() -> impl Strategy<Value = (u32, u32, Vec<u64>)> {
    (1..50_u32, 1..20_u32, vec(prop_oneof![3 => Just(0_u64), 2 => 0..200_u64, 1 => 0..5000_u64], 1..300))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_no_time_more_passes_than_the_burst_and_what_comes_back((rate, burst, pauses) in traffic()) {
        let world = World::new(1000);
        let limit = world.limit("a", bucket(rate, 1, burst));
        let (mut now, mut passed) = (0_u64, Vec::new());
        for pause in pauses {
            now += pause;
            if world.at(now as f64 / 1000.0).take(&limit, "x") {
                passed.push(now);
            }
        }
        for (first, from) in passed.iter().enumerate() {
            for (last, to) in passed.iter().enumerate().skip(first) {
                let allowed = u64::from(burst) * 1000 + (to - from) * u64::from(rate);
                prop_assert!((last - first + 1) as u64 * 1000 <= allowed, "{from}..{to}");
            }
        }
    }

    #[test]
    fn who_keeps_to_the_rate_is_never_refused(count in 1..1000_u32, burst in 1..5_u32) {
        let world = World::new(1000);
        let limit = world.limit("a", bucket(count, 60, burst));
        for turn in 0..200_u64 {
            world.nanos.store(SECOND + turn * (60 * SECOND).div_ceil(count.into()), Relaxed);
            prop_assert!(world.take(&limit, "x"));
        }
    }
}
