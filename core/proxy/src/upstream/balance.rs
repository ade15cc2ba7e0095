//! Which endpoint a request goes to.
//!
//! While all is well the answer is one look into a table of turns and one look at the endpoint found
//! there. Only when there is something to say against that endpoint is the clock read, and another one
//! drawn from those that take requests, each as likely as its weight says.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue, SET_COOKIE};
use portcullis_plugin::Exchange;

use super::endpoint::{Openness, WHOLE_SHARE, now};
use super::{Endpoint, Upstream};

/// Bits of a hash that decide: parts enough for a hundred endpoints to get their share within a tenth,
/// few enough to be worked out at load.
const BUCKET_BITS: u32 = 14;
/// How much busier than the average an endpoint may be before a hash goes past it, in quarters.
const BOUND_QUARTERS: u64 = 5;

/// The rule, and the tables that it works with.
#[derive(Debug)]
pub struct Balancer {
    rule: Balance,
    places: Vec<Place>,
    /// The order in which the endpoints of the first priority take turns, as often as their weights say.
    turns: Vec<u16>,
    /// The priority that serves first; none if all have the same.
    first_of_several: Option<u16>,
    /// By a part of a hash, the endpoint of the first priority that wins its rendezvous while all are
    /// well; empty where nothing is hashed.
    homes: Vec<u16>,
    /// The weights of the first priority together.
    weight: u64,
    /// Percent of a priority's endpoints that must be open, or the next priority serves too.
    min_healthy: usize,
    /// What makes lots of one upstream and process differ from those of another.
    seed: u64,
}

/// How an endpoint is chosen.
#[derive(Debug)]
pub enum Balance {
    /// In turns.
    RoundRobin,
    /// The less busy of two drawn by lot.
    LeastRequest,
    /// By lot.
    Random,
    /// The same for the same value.
    Hash(HashBy),
    /// The one that a cookie names.
    Sticky(Sticky),
}

/// What of a request is hashed.
#[derive(Debug)]
pub enum HashBy {
    /// The client's address.
    Client,
    /// Who is calling.
    Principal,
    /// A header.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
}

/// A cookie that names an endpoint.
#[derive(Debug)]
pub struct Sticky {
    cookie: String,
    /// By endpoint.
    marks: Vec<Mark>,
}

/// How an endpoint is named in a cookie.
#[derive(Debug)]
struct Mark {
    value: String,
    /// `Set-Cookie` over plain HTTP and over TLS.
    plain: HeaderValue,
    secure: HeaderValue,
}

/// An endpoint's place in its upstream.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Share of the requests, relative to the others.
    pub weight: u32,
    /// The least serves first.
    pub priority: u16,
}

/// What a request says about where it wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Any,
    Hash(u64),
    /// To the endpoint of this index.
    Endpoint(usize),
}

/// An endpoint that was chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen<'u> {
    pub(crate) endpoint: &'u Arc<Endpoint>,
    pub(crate) index: usize,
    pub(crate) role: Role,
}

/// What a request is to the endpoint that it goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Ordinary,
    /// It shows whether the endpoint is back.
    Probe,
    /// There was no other.
    LastResort,
}

/// A choice under way among the endpoints that take requests now.
struct Choice<'u> {
    upstream: &'u Upstream,
    now: u64,
    /// The last priority that serves.
    last: u16,
    avoid: &'u [u32],
}

impl HashBy {
    /// The hash for a request that its plugins have seen; none if it lacks what is hashed.
    pub(crate) fn hash(&self, exchange: &Exchange) -> Option<u64> {
        let request = exchange.request();
        match self {
            HashBy::Client => Some(hash_of_address(exchange.client())),
            HashBy::Principal => exchange.principal().map(|caller| hash_of(caller.id.as_bytes())),
            HashBy::Header(name) => request.headers().get(name).map(|value| hash_of(value.as_bytes())),
            HashBy::Cookie(name) => request.cookie(name).map(|value| hash_of(value.as_bytes())),
        }
    }
}

impl Sticky {
    /// A cookie with a value for each endpoint; none if they can't be sent as a header.
    pub fn new(cookie: &str, values: Vec<String>) -> Option<Self> {
        let mark = |value: String| {
            let plain = format!("{cookie}={value}; Path=/; HttpOnly; SameSite=Lax");
            let secure = HeaderValue::try_from(format!("{plain}; Secure")).ok()?;
            Some(Mark { value, plain: HeaderValue::try_from(plain).ok()?, secure })
        };
        let marks = values.into_iter().map(mark).collect::<Option<_>>()?;
        Some(Sticky { cookie: cookie.to_owned(), marks })
    }
}

impl Balancer {
    /// `rule` over `endpoints` at these places, of which `min_healthy` percent must be open or the next
    /// priority serves too.
    pub fn new(rule: Balance, endpoints: &[Arc<Endpoint>], places: Vec<Place>, min_healthy: u8) -> Self {
        let first = places.iter().map(|place| place.priority).min().unwrap_or_default();
        let weight = |place: &Place| if place.priority == first { place.weight } else { 0 };
        let weights: Vec<_> = places.iter().map(weight).collect();
        let turns = turns(&weights);
        let homes = match rule {
            Balance::Hash(_) => homes(endpoints, &weights),
            _ => Vec::new(),
        };
        let weight = weights.iter().copied().map(u64::from).sum();
        let first_of_several = places.iter().any(|place| place.priority != first).then_some(first);
        let seed = mixed(std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ()));
        let min_healthy = min_healthy.into();
        Balancer { rule, places, turns, homes, weight, first_of_several, min_healthy, seed }
    }

    fn place(&self, index: usize) -> Place {
        self.places.get(index).copied().unwrap_or(Place { weight: 0, priority: 0 })
    }

    /// The endpoint at a point of the order of turns.
    fn turn(&self, position: u64) -> usize {
        let length = self.turns.len().max(1) as u64;
        self.turns.get((position % length) as usize).copied().unwrap_or_default().into()
    }

    /// The next one from there on that is not `first`.
    fn turn_of_another(&self, position: u64, first: usize) -> Option<usize> {
        let mut others = (0..self.turns.len() as u64).map(|skip| self.turn(position.wrapping_add(skip)));
        others.find(|other| *other != first)
    }
}

impl Upstream {
    /// What a request says about where it wants to go. Its plugins have seen it.
    pub(crate) fn wish(&self, exchange: &Exchange) -> Wish {
        match &self.balancer.rule {
            Balance::RoundRobin | Balance::LeastRequest | Balance::Random => Wish::Any,
            Balance::Hash(by) => by.hash(exchange).map_or(Wish::Any, Wish::Hash),
            Balance::Sticky(Sticky { cookie, marks }) => {
                let named = exchange.request().cookie(cookie);
                let index = named.and_then(|named| marks.iter().position(|mark| mark.value == named));
                index.map_or(Wish::Any, Wish::Endpoint)
            }
        }
    }

    /// The same of a request that has neither client nor exchange.
    pub(crate) fn wish_of(&self, headers: &HeaderMap) -> Wish {
        let Balance::Hash(HashBy::Header(name)) = &self.balancer.rule else { return Wish::Any };
        headers.get(name).map_or(Wish::Any, |value| Wish::Hash(hash_of(value.as_bytes())))
    }

    /// Makes the client's next requests go where this one went.
    pub(crate) fn stick(&self, wish: Wish, chosen: usize, is_secure: bool, headers: &mut HeaderMap) {
        let Balance::Sticky(sticky) = &self.balancer.rule else { return };
        let Some(mark) = sticky.marks.get(chosen).filter(|_| wish != Wish::Endpoint(chosen)) else { return };
        headers.append(SET_COOKIE, if is_secure { &mark.secure } else { &mark.plain }.clone());
    }

    /// The endpoint for a first attempt. Counts it: the worker's count is the turn.
    pub(crate) fn choose(&self, wish: Wish) -> Chosen<'_> {
        self.choose_at(self.metrics.firsts.increment(), wish, &[])
    }

    /// The endpoint for an attempt after some at `avoid`, elsewhere if there is another. It takes no turn
    /// but a lot: if first and second attempts took turns, they could go to the same endpoints for ever.
    pub(crate) fn choose_again(&self, wish: Wish, avoid: &[u32]) -> Chosen<'_> {
        let number = self.metrics.repeats.increment();
        self.choose_at(mixed(!self.balancer.seed ^ number), wish, avoid)
    }

    /// A lot for what has this number, other than those that choose endpoints.
    pub(super) fn lot(&self, number: u64) -> u64 {
        mixed(self.balancer.seed.rotate_left(32) ^ number)
    }

    fn choose_at(&self, turn: u64, wish: Wish, avoid: &[u32]) -> Chosen<'_> {
        let balancer = &self.balancer;
        let lot = |salt: u64| mixed(balancer.seed ^ turn.wrapping_mul(2).wrapping_add(salt));
        let (position, second) = match (&balancer.rule, wish) {
            (_, Wish::Hash(hash)) => match self.home(hash, avoid) {
                Some(home) => return self.chosen(home, Role::Ordinary),
                None => return self.choose_with_care(turn, None, wish, avoid),
            },
            (_, Wish::Endpoint(_)) => return self.choose_with_care(turn, None, wish, avoid),
            (Balance::RoundRobin | Balance::Sticky(_), _) => (turn, None),
            (Balance::LeastRequest, _) => (lot(0), Some(lot(1))),
            (Balance::Random | Balance::Hash(_), _) => (lot(0), None),
        };
        let is_plain = |index: usize| {
            self.endpoints.get(index).is_some_and(|found| found.is_plain() && !avoid.contains(&found.id))
        };
        let first = balancer.turn(position);
        let other = second.and_then(|second| balancer.turn_of_another(second, first));
        let chosen = match other {
            None => is_plain(first).then_some(first),
            Some(other) => (is_plain(first) && is_plain(other)).then(|| self.less_busy(first, other)),
        };
        match chosen.filter(|_| self.first_priority_serves()) {
            Some(index) => self.chosen(index, Role::Ordinary),
            None => self.choose_with_care(position, second, wish, avoid),
        }
    }

    /// Where a hash goes if there is nothing to say against it.
    fn home(&self, hash: u64, avoid: &[u32]) -> Option<usize> {
        let home = usize::from(*self.balancer.homes.get(bucket(hash) as usize)?);
        let endpoint =
            self.endpoints.get(home).filter(|found| found.is_plain() && !avoid.contains(&found.id))?;
        let has_room = endpoint.in_flight.value() < self.room(home, self.balancer.weight);
        (has_room && self.first_priority_serves()).then_some(home)
    }

    /// How many requests an endpoint may have under way of all, where the others have so much weight with
    /// it: its share and a quarter more, rounded up.
    fn room(&self, index: usize, whole: u64) -> u64 {
        let running = self.metrics.in_flight.value() + 1;
        let weight = u64::from(self.balancer.place(index).weight);
        (running * BOUND_QUARTERS * weight).div_ceil(4 * whole.max(1))
    }

    /// Whether what the turns say is to be done: they know the first priority alone.
    fn first_priority_serves(&self) -> bool {
        let Some(first) = self.balancer.first_of_several else { return true };
        let mut places = self.endpoints.iter().zip(&self.balancer.places);
        places.all(|(endpoint, place)| place.priority != first || endpoint.is_plain())
    }

    /// Chooses where there is something to say against an endpoint, or more to think of than turns.
    fn choose_with_care(&self, position: u64, second: Option<u64>, wish: Wish, avoid: &[u32]) -> Chosen<'_> {
        let now = now();
        // A probe that somebody else takes is closed from then on, so this ends.
        for _ in 0..=self.endpoints.len() {
            let Some(choice) = Choice::new(self, now, avoid) else { break };
            let Some(index) = choice.index(position, second, wish) else { break };
            match self.endpoints.get(index).map(|endpoint| (endpoint, endpoint.openness(now))) {
                Some((endpoint, Openness::Probe)) if endpoint.claim_probe(now) => {
                    return self.chosen(index, Role::Probe);
                }
                Some((_, Openness::Open)) => return self.chosen(index, Role::Ordinary),
                _ => {}
            }
        }
        self.last_resort(position, avoid)
    }

    /// When no endpoint takes requests all of them do, for what is known may be wrong; a failed attempt
    /// is better made again anywhere else than where it failed.
    fn last_resort(&self, position: u64, avoid: &[u32]) -> Chosen<'_> {
        let length = self.endpoints.len().max(1);
        let begin = (position % length as u64) as usize;
        let mut others = (0..length).map(|skip| (begin + skip) % length);
        let is_other = |at: &usize| self.endpoints.get(*at).is_some_and(|found| !avoid.contains(&found.id));
        self.chosen(others.find(is_other).unwrap_or(begin), Role::LastResort)
    }

    pub(super) fn chosen(&self, index: usize, role: Role) -> Chosen<'_> {
        // Indices are places in this very list, which is never empty.
        let endpoint = self.endpoints.get(index).unwrap_or(&self.endpoints[0]);
        Chosen { endpoint, index, role }
    }

    /// Of two endpoints the one with fewer requests for its weight; the first if they are alike.
    fn less_busy(&self, first: usize, second: usize) -> usize {
        let load = |of: usize, other: usize| {
            let running = self.endpoints.get(of).map_or(0, |endpoint| endpoint.in_flight.value());
            running.saturating_mul(self.balancer.place(other).weight.into())
        };
        if load(second, first) < load(first, second) { second } else { first }
    }
}

impl<'u> Choice<'u> {
    /// None if no endpoint is open.
    fn new(upstream: &'u Upstream, now: u64, avoid: &'u [u32]) -> Option<Self> {
        let mut choice = Choice { upstream, now, last: u16::MAX, avoid };
        choice.last = choice.last_priority()?;
        Some(choice)
    }

    /// The first priority at which enough endpoints are open, or the last of all.
    fn last_priority(&self) -> Option<u16> {
        let places = &self.upstream.balancer.places;
        let mut next = places.iter().map(|place| place.priority).min();
        let (mut any, mut last) = (false, 0);
        while let Some(priority) = next {
            let (mut all, mut open) = (0, 0);
            for (index, _) in places.iter().enumerate().filter(|(_, place)| place.priority == priority) {
                all += 1;
                open += usize::from(self.is_open(index));
            }
            any |= open > 0;
            last = priority;
            if open > 0 && open * 100 >= self.upstream.balancer.min_healthy * all {
                break;
            }
            next = places.iter().map(|place| place.priority).filter(|other| *other > priority).min();
        }
        any.then_some(last)
    }

    fn is_open(&self, index: usize) -> bool {
        let endpoint = self.upstream.endpoints.get(index);
        endpoint.is_some_and(|endpoint| endpoint.openness(self.now) != Openness::Closed)
    }

    fn admits(&self, index: usize) -> bool {
        let place = self.upstream.balancer.place(index);
        let is_avoided =
            self.upstream.endpoints.get(index).is_none_or(|found| self.avoid.contains(&found.id));
        place.priority <= self.last && !is_avoided && self.is_open(index)
    }

    fn index(&self, position: u64, second: Option<u64>, wish: Wish) -> Option<usize> {
        match wish {
            Wish::Hash(hash) => self.by_hash(hash),
            Wish::Endpoint(index) if self.admits(index) => Some(index),
            Wish::Any | Wish::Endpoint(_) => {
                let first = self.by_turn(position)?;
                let other = second.and_then(|second| self.draw(second, |index| index != first));
                Some(other.map_or(first, |other| self.upstream.less_busy(first, other)))
            }
        }
    }

    /// Whose turn it is, or a lot among the others. One that starts slowly lets most turns pass.
    fn by_turn(&self, position: u64) -> Option<usize> {
        let index = self.upstream.balancer.turn(position);
        let lot = spread(position);
        if self.upstream.balancer.place(index).priority < self.last || !self.admits(index) {
            return self.draw(lot, |_| true);
        }
        let is_taken = of(mixed(position), WHOLE_SHARE) < self.share(index);
        if is_taken { Some(index) } else { self.draw(lot, |other| other != index).or(Some(index)) }
    }

    fn share(&self, index: usize) -> u64 {
        let slow_start = self.upstream.slow_start;
        self.upstream.endpoints.get(index).map_or(0, |endpoint| endpoint.share(self.now, slow_start))
    }

    /// One of those that are admitted and wanted, as likely as its weight and share say.
    fn draw(&self, lot: u64, wants: impl Fn(usize) -> bool) -> Option<usize> {
        let weights = || {
            let all = 0..self.upstream.endpoints.len();
            let wanted = all.filter(|index| wants(*index) && self.admits(*index));
            let weight = |index| u64::from(self.upstream.balancer.place(index).weight) * self.share(index);
            wanted.map(move |index| (index, weight(index)))
        };
        let mut rest = of(lot, weights().map(|(_, weight)| weight).sum());
        let mut last = None;
        for (index, weight) in weights() {
            last = Some(index);
            if rest < weight {
                break;
            }
            rest -= weight;
        }
        last
    }

    /// The best by rendezvous of the hash with each endpoint, so that only those requests move whose
    /// endpoint comes or goes; past those that are much busier than the average. One that starts slowly
    /// wins as often as its share says.
    fn by_hash(&self, hash: u64) -> Option<usize> {
        let upstream = self.upstream;
        let weight = |index: usize| u64::from(upstream.balancer.place(index).weight);
        let admitted = || upstream.endpoints.iter().enumerate().filter(|(index, _)| self.admits(*index));
        let whole: u64 = admitted().map(|(index, _)| weight(index)).sum();
        let (mut best, mut best_with_room) = (None, None);
        for (index, endpoint) in admitted() {
            let found = Some((score(bucket(hash), endpoint, weight(index) * self.share(index)), index));
            if found > best_with_room && endpoint.in_flight.value() < upstream.room(index, whole) {
                best_with_room = found;
            }
            if found > best {
                best = found;
            }
        }
        best_with_room.or(best).map(|(_, index)| index)
    }
}

/// The part of a hash that decides.
fn bucket(hash: u64) -> u64 {
    hash >> (u64::BITS - BUCKET_BITS)
}

/// The winner of each part of a hash, where none is out.
fn homes(endpoints: &[Arc<Endpoint>], weights: &[u32]) -> Vec<u16> {
    let winner = |bucket: u64| {
        let serving = endpoints.iter().zip(weights).enumerate().filter(|(_, (_, weight))| **weight > 0);
        let scored = serving.map(|(index, (endpoint, weight))| {
            (score(bucket, endpoint, u64::from(*weight) * WHOLE_SHARE), index)
        });
        let best = scored.fold(None, |best, found| if Some(found) > best { Some(found) } else { best });
        best.map_or(0, |(_, index)| index as u16)
    };
    (0..1 << BUCKET_BITS).map(winner).collect()
}

/// The order of turns for these weights (smooth weighted round robin): every endpoint gets its
/// share, spread evenly. A weight of 0 takes no turn.
fn turns(weights: &[u32]) -> Vec<u16> {
    let common = weights.iter().copied().fold(0, gcd).max(1);
    let weights: Vec<i64> = weights.iter().map(|weight| i64::from(weight / common)).collect();
    let total: i64 = weights.iter().sum();
    let mut credit = vec![0_i64; weights.len()];
    let mut turns = Vec::new();
    for _ in 0..total {
        for (credit, weight) in credit.iter_mut().zip(&weights) {
            *credit += weight;
        }
        let Some(best) = (0..credit.len()).rev().max_by_key(|at| credit[*at]) else { break };
        credit[best] -= total;
        turns.push(best as u16);
    }
    turns
}

fn gcd(one: u32, other: u32) -> u32 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// A hash that is the same in every process, so that several gateways agree (FNV-1a, then mixed).
pub(super) fn hash_of(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mixed(bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

fn hash_of_address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => hash_of(&address.octets()),
        IpAddr::V6(address) => hash_of(&address.octets()),
    }
}

/// Spreads every bit over all (the finish of SplitMix64).
fn mixed(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Successive numbers far from each other, and evenly over all: steps of the golden ratio.
fn spread(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A lot as a number below `limit`.
pub(crate) fn of(lot: u64, limit: u64) -> u64 {
    ((u128::from(lot) * u128::from(limit)) >> 64) as u64
}

/// The higher one wins a part of a hash, as often as the weights say (weighted rendezvous).
fn score(bucket: u64, endpoint: &Endpoint, weight: u64) -> f64 {
    let hash = mixed(mixed(bucket) ^ endpoint.hash);
    let fraction = (hash >> 11) as f64 / (1_u64 << 53) as f64;
    -(weight as f64) / fraction.max(f64::MIN_POSITIVE).ln()
}

#[cfg(test)]
mod tests;
