//! Clients that ask without a pause while something happens to the gateway.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use crate::{Http, request, until};

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
        assert_eq!(load.failed.load(SeqCst), 0, "of {asked} requests");
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
