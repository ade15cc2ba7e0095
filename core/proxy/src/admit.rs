//! Who may connect: the budgets of a listener and of each of its clients, over all workers.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::generation::{ClientLimits, Listener, Rate};
use crate::metrics::{GivenUp, Padded, Refused};

/// Between two log lines about refused connections of a listener, or about those that were ended.
const QUIET: Duration = Duration::from_secs(10);
/// Locks among which the clients are shared out, so that workers rarely meet.
const SHARDS: usize = 16;
/// Places in which handshakes are counted, twice each.
const CELLS: usize = 1 << 15;

/// A listener's door. It outlives generations.
pub struct Gate {
    open: Padded<AtomicUsize>,
    clients: Clients,
    /// Made when it is needed first.
    handshakes: OnceLock<Handshakes>,
    since: Instant,
    refused: Told,
    ended: Told,
}

/// What befalls connections, of which the log tells now and then.
#[derive(Default)]
struct Told {
    /// In milliseconds since the door was made; 0 before the first line.
    at: AtomicU64,
    untold: AtomicU64,
}

impl Told {
    /// One more; if no line was written just now, how many the next one is about.
    fn count(&self, since: Instant) -> Option<u64> {
        self.untold.fetch_add(1, Relaxed);
        let now = (since.elapsed().as_millis() as u64).max(1);
        let told_at = self.at.load(Relaxed);
        let is_quiet = told_at != 0 && now - told_at.min(now) < QUIET.as_millis() as u64;
        if is_quiet || self.at.compare_exchange(told_at, now, Relaxed, Relaxed).is_err() {
            return None;
        }
        Some(self.untold.swap(0, Relaxed))
    }
}

/// What budgets count as one client: an IPv4 address, or the IPv6 network that a subscriber has for himself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Address {
    V4(u32),
    /// The first 64 bits.
    V6(u64),
}

impl Address {
    fn of(peer: IpAddr) -> Self {
        match peer.to_canonical() {
            IpAddr::V4(address) => Address::V4(address.to_bits()),
            IpAddr::V6(address) => Address::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Gate {
            open: Padded::default(),
            clients: Clients::default(),
            handshakes: OnceLock::new(),
            since: Instant::now(),
            refused: Told::default(),
            ended: Told::default(),
        }
    }
}

impl Gate {
    /// A place for a connection, until it is dropped.
    pub(crate) fn admit(self: &Arc<Self>, limit: usize) -> Result<Place, Refused> {
        let place = Place { gate: self.clone(), client: None };
        match self.open.0.fetch_add(1, Relaxed) < limit {
            true => Ok(place),
            false => Err(Refused::Listener),
        }
    }

    fn may_begin_handshake(&self, client: Address, rate: Rate) -> bool {
        let handshakes = self.handshakes.get_or_init(Handshakes::new);
        handshakes.take(client, rate, self.since.elapsed())
    }

    /// Says that a connection was refused, or leaves it for the next line if one was written just now.
    pub(crate) fn tell(&self, listener: &str, peer: IpAddr, why: Refused) {
        let Some(refused) = self.refused.count(self.since) else { return };
        let (_, limit) = Refused::ALL[why as usize];
        tracing::warn!(listener, %peer, limit, refused, "connections refused");
    }

    /// The same of a connection that was ended for what came on it.
    pub(crate) fn tell_end(&self, listener: &str, peer: IpAddr, why: GivenUp) {
        let Some(ended) = self.ended.count(self.since) else { return };
        let (_, reason) = GivenUp::ALL[why as usize];
        tracing::warn!(listener, %peer, reason, ended, "HTTP/2 connections ended for what came on them");
    }
}

/// A place of a connection.
pub(crate) struct Place {
    gate: Arc<Gate>,
    /// Under whose budget it is, if there is one.
    client: Option<Address>,
}

impl Place {
    /// Takes it out of a client's budget, as soon as is known who that is.
    pub(crate) fn take_for(
        &mut self,
        client: IpAddr,
        listener: &Listener,
        trusted: &[IpNet],
    ) -> Result<(), Refused> {
        let client = client.to_canonical();
        let ClientLimits { connections, handshakes } = listener.client_limits;
        let handshakes = handshakes.filter(|_| listener.tls.is_some());
        // Both are asked for it if a reload comes in between.
        let is_taken = self.client.is_some();
        if is_taken || connections.is_none() && handshakes.is_none() {
            return Ok(());
        }
        // A proxy connects for many.
        if trusted.iter().any(|network| network.contains(&client)) {
            return Ok(());
        }
        let client = Address::of(client);
        if let Some(limit) = connections {
            if !self.gate.clients.enter(client, limit) {
                return Err(Refused::Client);
            }
            self.client = Some(client);
        }
        match handshakes {
            Some(rate) if !self.gate.may_begin_handshake(client, rate) => Err(Refused::Handshakes),
            _ => Ok(()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.open.0.fetch_sub(1, Relaxed);
        if let Some(client) = self.client {
            self.gate.clients.leave(client);
        }
    }
}

/// How many connections each client has. Who has none is not in it.
#[derive(Default)]
struct Clients {
    shards: [Padded<Mutex<HashMap<Address, u32>>>; SHARDS],
    hasher: RandomState,
}

impl Clients {
    fn enter(&self, client: Address, limit: u32) -> bool {
        let mut shard = self.shard(client);
        let open = shard.entry(client).or_default();
        let may = *open < limit;
        *open += u32::from(may);
        may
    }

    fn leave(&self, client: Address) {
        let mut shard = self.shard(client);
        match shard.get_mut(&client) {
            Some(open) if *open > 1 => *open -= 1,
            _ => _ = shard.remove(&client),
        }
    }

    fn shard(&self, client: Address) -> MutexGuard<'_, HashMap<Address, u32>> {
        let at = self.hasher.hash_one(client) as usize % SHARDS;
        self.shards[at].0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When each client may begin its next TLS handshake: the time at which a bucket that leaks at its rate is empty.
/// A client is counted in two places that others may share, and refused where both are full. So the memory is bounded
/// whoever connects, and somebody is refused for another's sake only if he meets busy ones in both.
struct Handshakes {
    /// In nanoseconds since the gate was made.
    rows: [Box<[AtomicU64]>; 2],
    hashers: [RandomState; 2],
}

impl Handshakes {
    fn new() -> Self {
        let row = || (0..CELLS).map(|_| AtomicU64::new(0)).collect();
        Handshakes { rows: [row(), row()], hashers: [RandomState::new(), RandomState::new()] }
    }

    fn take(&self, client: Address, rate: Rate, now: Duration) -> bool {
        let (now, per) = (now.as_nanos() as u64, rate.per.as_nanos() as u64);
        let share = per / u64::from(rate.count.get());
        let mut may = false;
        for (row, hasher) in self.rows.iter().zip(&self.hashers) {
            let cell = &row[hasher.hash_one(client) as usize % CELLS];
            let taken = cell.fetch_update(Relaxed, Relaxed, |empty_at| {
                let empty_at = empty_at.max(now) + share;
                (empty_at <= now + per).then_some(empty_at)
            });
            may |= taken.is_ok();
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn address(text: &str) -> Address {
        Address::of(text.parse().unwrap())
    }

    #[test]
    fn a_client_is_an_address_or_the_network_of_a_subscriber() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
    }

    #[test]
    fn who_has_no_connection_is_not_remembered() {
        let clients = Clients::default();
        let (one, other) = (address("10.0.0.1"), address("10.0.0.2"));
        assert!(clients.enter(one, 2) && clients.enter(one, 2) && !clients.enter(one, 2));
        assert!(clients.enter(other, 2));
        clients.leave(one);
        assert!(clients.enter(one, 2) && !clients.enter(one, 2));
        (0..2).for_each(|_| clients.leave(one));
        clients.leave(other);
        assert!(clients.shards.iter().all(|shard| shard.0.lock().unwrap().is_empty()));
    }

    #[test]
    fn handshakes_are_counted_per_time_and_as_many_at_once() {
        let handshakes = Handshakes::new();
        let rate = Rate { count: NonZeroU32::new(10).unwrap(), per: Duration::from_secs(1) };
        let one = address("10.0.0.1");
        let taken = |client, now| {
            let now = Duration::from_millis(now);
            (0..100).filter(|_| handshakes.take(client, rate, now)).count()
        };
        assert_eq!(taken(one, 0), 10);
        assert_eq!((taken(one, 99), taken(one, 100), taken(one, 500)), (0, 1, 4));
        assert_eq!(taken(address("10.0.0.2"), 500), 10);
        assert_eq!(taken(one, 60_000), 10, "no more than that is saved up");
    }
}
