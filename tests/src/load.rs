//! Clients that ask without a pause while something happens to the gateway.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::{Http, request, until, wait_until};

/// Such clients: each over one connection as long as it is kept, or over a new one each time.
#[derive(Debug, Default)]
pub struct Load {
    stop: AtomicBool,
    asked: AtomicUsize,
    failed: AtomicUsize,
}

/// Tells others to stop when it ends, however that comes: threads of a scope that a test panics in would go on.
#[derive(Debug)]
pub struct Stop<'s>(pub &'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

impl Load {
    /// Has them ask while `act` runs. None of their requests may fail; returns how many there were.
    #[track_caller]
    pub fn during(address: SocketAddr, act: impl FnOnce(&Load)) -> usize {
        let load = Load::default();
        std::thread::scope(|scope| {
            for keeps in [true, true, true, false, false] {
                let load = &load;
                scope.spawn(move || load.run(address, keeps));
            }
            let _stop = Stop(&load.stop);
            act(&load);
        });
        let asked = load.asked.load(SeqCst);
        let failed = load.failed.load(SeqCst);
        eprintln!("{failed} of {asked} requests failed, all of which may be repeated");
        assert_eq!(failed, 0, "of {asked} requests");
        asked
    }

    fn run(&self, address: SocketAddr, keeps: bool) {
        let mut kept = None;
        while !self.stop.load(SeqCst) {
            self.asked.fetch_add(1, SeqCst);
            let connection = kept.take().map_or_else(|| Http::connect(address), Ok);
            let asked = connection.and_then(|mut http| Ok((http.ask(&request("GET", "/"))?, http)));
            match asked {
                Ok((answer, http)) if answer.status == 200 => {
                    kept = Some(http).filter(|_| keeps && answer.header("connection") != Some("close"));
                }
                _ => _ = self.failed.fetch_add(1, SeqCst),
            }
        }
    }

    /// Waits for some more requests.
    #[track_caller]
    pub fn go_on(&self) {
        let from = self.asked.load(SeqCst);
        until("more requests", || self.asked.load(SeqCst) >= from + 100);
    }
}

/// Clients that ask at times which are settled beforehand, however long answers take: a gateway that is held up does not
/// get fewer requests for it.
#[derive(Debug)]
pub struct Timetable {
    /// Between two requests of a client.
    every: Duration,
}

impl Timetable {
    const CLIENTS: u32 = 4;

    /// A timetable with this share of the requests that its clients could make without a pause.
    pub fn with_share(address: SocketAddr, share: f64, trial: Duration) -> Self {
        let made = Timetable { every: Duration::ZERO }.run(address, trial).len();
        let every = trial.mul_f64(f64::from(Self::CLIENTS) / (made as f64 * share));
        Timetable { every }
    }

    /// Requests a second, of all clients.
    pub fn rate(&self) -> f64 {
        f64::from(Self::CLIENTS) / self.every.as_secs_f64()
    }

    /// Keeps to it for so long; how long each request took from the time at which it was due, the quickest first. All
    /// are to be answered with 200.
    pub fn run(&self, address: SocketAddr, time: Duration) -> Vec<Duration> {
        let begin = Instant::now();
        let mut took: Vec<_> = std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..Self::CLIENTS).map(|_| scope.spawn(|| self.client(address, begin, time))).collect();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        took.sort_unstable();
        took
    }

    fn client(&self, address: SocketAddr, begin: Instant, time: Duration) -> Vec<Duration> {
        let (mut http, asked) = (Http::connect(address).unwrap(), request("GET", "/"));
        let (mut took, mut due) = (Vec::new(), begin);
        while due < begin + time && Instant::now() < begin + 2 * time {
            wait_until(due);
            // Who waited for the last answer is late for its sake; who slept too long is not.
            let is_late = took.last().is_some_and(|last| *last > self.every);
            let from = if is_late { due } else { Instant::now() };
            assert_eq!(http.ask(&asked).unwrap().status, 200);
            took.push(from.elapsed());
            due = if self.every.is_zero() { Instant::now() } else { due + self.every };
        }
        took
    }
}
