//! Endpoints from DNS: looked for before an upstream takes requests, and again when the records' time to
//! live has passed. The last good answer stays until there is another.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use portcullis_config::Dns;
use portcullis_proxy::upstream::{Successor, Upstream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep_until, timeout};

use crate::build::{BuiltUpstream, Recipe};
use crate::resolver::{Addresses, Answer, Resolver, Service};

/// Endpoints of an upstream at most; of more, those with the lowest addresses are taken, and the others left out.
const MOST_ENDPOINTS: usize = 256;
/// Every endpoint is as often in the order of turns as its weight says.
const LARGEST_WEIGHT: u32 = 1000;

/// An upstream whose endpoints come from DNS.
pub(crate) struct Discovered {
    dns: Dns,
    recipe: Recipe,
    upstream: Arc<Upstream>,
    state: Mutex<State>,
}

/// What is known.
#[derive(Debug, Clone, Default)]
struct State {
    /// The last good answer.
    found: Vec<Found>,
    ttl: Duration,
    /// When it is to be asked for again; none before the first time.
    due: Option<Instant>,
    /// Why there is no newer one.
    error: Option<String>,
}

/// An endpoint as DNS has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found {
    /// 0 serves first.
    pub(crate) priority: u8,
    pub(crate) address: SocketAddr,
    /// The name that was asked for its address.
    pub(crate) host: String,
    pub(crate) weight: u32,
}

/// What came of asking.
struct Lookup {
    found: Vec<Found>,
    ttl: Duration,
    /// Why a part of it is what was found before: it could not be asked for.
    trouble: Option<String>,
}

/// The lookups of the running generation. They end with this value.
#[derive(Default)]
pub(crate) struct Lookups {
    tasks: JoinSet<()>,
    upstreams: Vec<(Arc<Discovered>, AbortHandle)>,
    changed: Arc<Notify>,
}

impl Lookups {
    /// Looks for the endpoints of these upstreams from now on. Those that are the same as before are not disturbed.
    pub(crate) fn follow(&mut self, built: &[BuiltUpstream]) {
        let mut before = std::mem::take(&mut self.upstreams);
        for discovered in built.iter().filter_map(|built| built.discovered.as_ref()) {
            match before.iter().position(|(known, _)| Arc::ptr_eq(known, discovered)) {
                Some(at) => self.upstreams.push(before.swap_remove(at)),
                None => {
                    let task = self.tasks.spawn(discovered.clone().run(self.changed.clone()));
                    self.upstreams.push((discovered.clone(), task));
                }
            }
        }
        before.iter().for_each(|(_, task)| task.abort());
        while self.tasks.try_join_next().is_some() {}
    }

    /// Waits until an upstream has other endpoints.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Looks for endpoints of upstreams for the first time. Takes as long as the slowest answer may take.
pub(crate) async fn find(built: &[BuiltUpstream]) {
    let discovered = built.iter().filter_map(|built| built.discovered.as_ref());
    join_all(discovered.filter(|discovered| discovered.state().due.is_none()).map(|new| new.look())).await;
}

impl Discovered {
    /// An upstream with what was found when its records were looked for `before`, if they are the same ones. Looks
    /// for nothing yet.
    pub(crate) fn new(dns: &Dns, recipe: Recipe, before: Option<&BuiltUpstream>) -> Result<Self, String> {
        let same = before.and_then(|before| before.discovered.as_ref()).filter(|same| same.dns == *dns);
        let state = same.map_or_else(State::default, |same| same.state().clone());
        let running = before.map(|before| before.upstream.current());
        let upstream = recipe.upstream_of(&state.found, running.as_ref().map(|running| &***running))?;
        let upstream = Arc::new(Upstream { successor: Some(Successor::default()), ..upstream });
        Ok(Discovered { dns: dns.clone(), recipe, upstream, state: Mutex::new(state) })
    }

    /// The upstream, which changes with the answers.
    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// What it was that is looked for.
    pub(crate) fn name(&self) -> &str {
        self.dns.host.as_ref().or(self.dns.srv.as_ref()).map_or("", |name| name.as_str())
    }

    /// For how long the last answer holds, and why there is no newer one.
    pub(crate) fn outlook(&self) -> (Duration, Option<String>) {
        let state = self.state();
        (state.ttl, state.error.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>, changed: Arc<Notify>) {
        loop {
            let due = self.state().due;
            if let Some(due) = due {
                sleep_until(due.into()).await;
            }
            if self.look().await {
                changed.notify_one();
            }
        }
    }

    /// Asks once, and puts what was found into effect; true if it is something else than before.
    async fn look(&self) -> bool {
        let limit = self.dns.timeout.0;
        let answer = timeout(limit, self.ask()).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {limit:?}")));
        let (changed, trouble) = match answer.and_then(|lookup| self.apply(lookup)) {
            Ok(applied) => applied,
            Err(why) => (false, Some(why)),
        };
        let metrics = &self.upstream.metrics;
        let counter = if trouble.is_none() { &metrics.lookups } else { &metrics.lookup_failures };
        counter.increment();
        let mut state = self.state();
        let rest = if trouble.is_none() { state.ttl } else { self.dns.min_ttl.0 };
        state.due = Some(Instant::now() + rest);
        if let (Some(why), None) = (&trouble, &state.error) {
            let (upstream, name) = (&*self.upstream.name, self.name());
            tracing::warn!(upstream, name, %why, kept = state.found.len(), "endpoints not found in DNS");
        }
        state.error = trouble;
        changed
    }

    /// Puts an answer into effect; whether it is another than the last one, and the trouble with it.
    fn apply(&self, lookup: Lookup) -> Result<(bool, Option<String>), String> {
        let Lookup { mut found, ttl, trouble } = lookup;
        found.sort_unstable();
        found.dedup_by_key(|found| found.address);
        found.truncate(MOST_ENDPOINTS);
        if found.is_empty() {
            return Err(trouble.unwrap_or_else(|| "the answer is empty".to_owned()));
        }
        let mut state = self.state();
        let changed = state.found != found;
        if changed {
            let running = self.upstream.current();
            self.upstream.succeed(self.recipe.upstream_of(&found, Some(&running))?);
            let endpoints: Vec<_> = found.iter().map(|found| found.address.to_string()).collect();
            let (upstream, name) = (&*self.upstream.name, self.name());
            tracing::info!(upstream, name, ?endpoints, "endpoints found in DNS");
            state.found = found;
        }
        state.ttl = ttl.clamp(self.dns.min_ttl.0, self.dns.max_ttl.0);
        Ok((changed, trouble))
    }

    async fn ask(&self) -> Result<Lookup, String> {
        // The system's configuration may have changed.
        let resolver = self.dns.resolver.map_or_else(Resolver::of_system, |at| Ok(Resolver::at(at.0)))?;
        match (&self.dns.host, &self.dns.srv) {
            (Some(host), _) => {
                let port = self.dns.port.map_or(self.dns.scheme.port(), Into::into);
                self.addresses(&resolver, host.as_str(), port).await
            }
            (None, Some(name)) => self.services(&resolver, name.as_str()).await,
            (None, None) => Err("there is no name to ask for".to_owned()),
        }
    }

    /// The addresses of a host. A family that cannot be asked for keeps those it had.
    async fn addresses(&self, resolver: &Resolver, host: &str, port: u16) -> Result<Lookup, String> {
        let Addresses { mut records, ttl, unknown } = resolver.addresses(host, self.dns.timeout.0).await?;
        if let Some((family, _)) = &unknown {
            records.extend(self.known(host).into_iter().filter(|ip| family.has(*ip)));
        }
        Ok(Lookup { found: found(host, port, records), ttl, trouble: unknown.map(|(_, why)| why) })
    }

    /// The addresses of all services that have any. A service whose host cannot be asked for keeps those it had.
    async fn services(&self, resolver: &Resolver, name: &str) -> Result<Lookup, String> {
        let Answer { records: mut services, mut ttl } = resolver.services(name, self.dns.timeout.0).await?;
        services.truncate(MOST_ENDPOINTS);
        let (ranks, largest) = scale(&services);
        let ask = services.iter().map(|service| self.addresses(resolver, &service.target, service.port));
        let (mut all, mut trouble) = (Vec::new(), None);
        for (service, answer) in services.iter().zip(join_all(ask).await) {
            let answer = answer.unwrap_or_else(|why| {
                let known = found(&service.target, service.port, self.known(&service.target));
                Lookup { found: known, ttl, trouble: Some(why) }
            });
            let priority = ranks.iter().position(|rank| *rank == service.priority).unwrap_or_default();
            let priority = u8::try_from(priority).unwrap_or(u8::MAX);
            let weight = weight(service.weight, largest);
            // Where nothing was found there is nothing that holds.
            ttl = if answer.found.is_empty() { ttl } else { ttl.min(answer.ttl) };
            all.extend(answer.found.into_iter().map(|found| Found { priority, weight, ..found }));
            trouble = trouble.or(answer.trouble);
        }
        Ok(Lookup { found: all, ttl, trouble })
    }

    /// The addresses that a host had when it could be asked for.
    fn known(&self, host: &str) -> Vec<IpAddr> {
        let host = without_dot(host);
        let state = self.state();
        state.found.iter().filter(|found| found.host == host).map(|found| found.address.ip()).collect()
    }
}

/// These addresses of a host as endpoints.
fn found(host: &str, port: u16, records: Vec<IpAddr>) -> Vec<Found> {
    let host = without_dot(host);
    let found =
        |ip| Found { priority: 0, address: SocketAddr::new(ip, port), host: host.to_owned(), weight: 1 };
    records.into_iter().map(found).collect()
}

/// A name as it is written where names are whole anyway.
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

impl fmt::Debug for Discovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovered").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// The priorities in order, and the largest weight.
fn scale(services: &[Service]) -> (Vec<u16>, u16) {
    let ranks: BTreeSet<_> = services.iter().map(|service| service.priority).collect();
    let largest = services.iter().map(|service| service.weight).max();
    (ranks.into_iter().collect(), largest.unwrap_or_default())
}

/// A weight as an upstream has them. 0 is for a very small share.
fn weight(weight: u16, largest: u16) -> u32 {
    let (weight, largest) = (u32::from(weight), u32::from(largest));
    if largest <= LARGEST_WEIGHT { weight.max(1) } else { (weight * LARGEST_WEIGHT / largest).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(priority: u16, weight: u16) -> Service {
        Service { priority, weight, port: 80, target: "a.".to_owned() }
    }

    #[test]
    fn weights_keep_their_proportions_and_stay_small() {
        let services = [service(10, 60_000), service(20, 30_000), service(10, 0)];
        let (ranks, largest) = scale(&services);
        assert_eq!(ranks, [10, 20]);
        assert_eq!(services.map(|service| weight(service.weight, largest)), [1000, 500, 1]);
        assert_eq!([3, 1, 0].map(|small| weight(small, 3)), [3, 1, 1]);
    }
}
