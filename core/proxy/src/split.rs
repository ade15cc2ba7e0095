//! Which of several upstreams a request goes to: the one whose condition it fits, else one by its share.
//!
//! Shares lie side by side in the order of the configuration, and a request falls on a point of them: a lot, or a hash
//! of what it says. So a client stays where it is without anything being kept, several gateways agree, and where a
//! share grows only what it grows by moves.

use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use portcullis_plugin::Exchange;

use crate::routes::Predicate;
use crate::upstream::{HashBy, Upstream, portion};

/// Several upstreams, of which each request goes to one.
#[derive(Debug)]
pub struct Split {
    conditions: Vec<(Condition, Arc<Upstream>)>,
    /// Where each share ends.
    shares: Vec<(u64, Arc<Upstream>)>,
    by: SplitBy,
}

/// What a request must be; what is empty is not looked at.
#[derive(Debug)]
pub struct Condition {
    /// All of these headers.
    pub headers: Vec<(HeaderName, Predicate)>,
    /// The id of who calls is one of these.
    pub principals: Vec<String>,
    /// Who calls has one of these roles.
    pub roles: Vec<String>,
}

/// Where a request falls among the shares.
#[derive(Debug)]
pub enum SplitBy {
    /// Anywhere.
    Lot,
    /// Always at the same point for the same value.
    Hash(HashBy),
    /// At the point that a cookie of this name keeps.
    Sticky(String),
}

/// What became of a request.
pub(crate) struct Choice<'s> {
    pub(crate) upstream: &'s Arc<Upstream>,
    /// The cookie that keeps the client there from now on.
    pub(crate) cookie: Option<HeaderValue>,
}

impl Split {
    /// Upstreams with their conditions and with their shares; none if no share is more than zero.
    pub fn new(
        conditions: Vec<(Condition, Arc<Upstream>)>,
        shares: Vec<(u32, Arc<Upstream>)>,
        by: SplitBy,
    ) -> Option<Self> {
        let mut end = 0;
        let shares = shares.into_iter().filter(|(share, _)| *share > 0);
        let shares: Vec<_> = shares
            .map(|(share, upstream)| {
                end += u64::from(share);
                (end, upstream)
            })
            .collect();
        (!shares.is_empty()).then_some(Split { conditions, shares, by })
    }

    /// All that a request may go to.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        let fitting = self.conditions.iter().map(|(_, upstream)| upstream);
        fitting.chain(self.shares.iter().map(|(_, upstream)| upstream))
    }

    /// Chooses for a request that its plugins have seen.
    pub(crate) fn choose(&self, exchange: &Exchange, lot: impl FnOnce() -> u64) -> Choice<'_> {
        let fits = |(condition, _): &&(Condition, _)| condition.fits(exchange);
        if let Some((_, upstream)) = self.conditions.iter().find(fits) {
            return Choice { upstream, cookie: None };
        }
        let (point, cookie) = match &self.by {
            SplitBy::Lot => (lot(), None),
            SplitBy::Hash(by) => (by.hash(exchange).unwrap_or_else(lot), None),
            SplitBy::Sticky(name) => match exchange.request().cookie(name).and_then(parse) {
                Some(point) => (point, None),
                None => {
                    let point = lot();
                    (point, cookie(name, point, exchange.scheme() == "https"))
                }
            },
        };
        Choice { upstream: self.at(point), cookie }
    }

    /// The upstream whose share a point lies in.
    fn at(&self, point: u64) -> &Arc<Upstream> {
        let whole = self.shares.last().map_or(0, |(end, _)| *end);
        let position = portion(point, whole);
        let found = self.shares.partition_point(|(end, _)| *end <= position);
        // There is a share, and no position beyond the last.
        let (_, upstream) = self.shares.get(found).unwrap_or(&self.shares[0]);
        upstream
    }
}

impl Condition {
    fn fits(&self, exchange: &Exchange) -> bool {
        let headers = exchange.request().headers();
        let principal = exchange.principal();
        let is_any = |wanted: &[String], found: &dyn Fn(&String) -> bool| {
            wanted.is_empty() || wanted.iter().any(found)
        };
        self.headers.iter().all(|(name, predicate)| predicate.accepts_header(name, headers))
            && is_any(&self.principals, &|id| principal.is_some_and(|caller| caller.id == *id))
            && is_any(&self.roles, &|role| principal.is_some_and(|caller| caller.roles.contains(role)))
    }
}

fn parse(cookie: &str) -> Option<u64> {
    u64::from_str_radix(cookie, 16).ok()
}

/// It holds a number and nothing of the split, so that shares can change and clients stay.
fn cookie(name: &str, point: u64, is_secure: bool) -> Option<HeaderValue> {
    let secure = if is_secure { "; Secure" } else { "" };
    HeaderValue::try_from(format!("{name}={point:016x}; Path=/; HttpOnly; SameSite=Lax{secure}")).ok()
}

#[cfg(test)]
mod tests {
    use portcullis_plugin::{ExchangeBuilder, Principal};

    use super::*;
    use crate::metrics::Metrics;
    use crate::upstream::Endpoint;

    fn upstream(name: &str) -> Arc<Upstream> {
        let metrics = Metrics::new(1);
        let endpoint = Arc::new(Endpoint::new("a:1", &metrics).unwrap());
        Arc::new(Upstream::new(name, vec![endpoint], metrics.upstream(name)))
    }

    fn shares(of: &[(u32, &str)], by: SplitBy) -> Split {
        let shares = of.iter().map(|(share, name)| (*share, upstream(name))).collect();
        Split::new(Vec::new(), shares, by).unwrap()
    }

    #[test]
    fn points_fall_into_shares_by_their_size() {
        let split = shares(&[(5, "next"), (0, "none"), (95, "api")], SplitBy::Lot);
        let at = |percent: u64| split.at((u64::MAX / 100) * percent + 1).name.to_string();
        assert_eq!([at(0), at(4), at(6), at(99)], ["next", "next", "api", "api"]);
        assert_eq!((&*split.at(0).name, &*split.at(u64::MAX).name), ("next", "api"));
        assert!(Split::new(Vec::new(), vec![(0, upstream("a"))], SplitBy::Lot).is_none());
    }

    #[test]
    fn a_share_that_grows_keeps_what_it_has() {
        let small = shares(&[(5, "next"), (95, "api")], SplitBy::Lot);
        let large = shares(&[(20, "next"), (80, "api")], SplitBy::Lot);
        let points = (0..1000_u64).map(|at| (2 * at + 1) * (u64::MAX / 2000));
        let next = |split: &Split, point| &*split.at(point).name == "next";
        assert!(points.clone().filter(|point| next(&small, *point)).all(|point| next(&large, point)));
        assert_eq!(points.filter(|point| next(&large, *point)).count(), 200);
    }

    #[test]
    fn conditions_go_before_shares() {
        let condition = Condition {
            headers: vec![(HeaderName::from_static("x-canary"), Predicate::Present(true))],
            principals: Vec::new(),
            roles: vec!["tester".to_owned()],
        };
        let split = Split::new(
            vec![(condition, upstream("next"))],
            vec![(1, upstream("api"))],
            SplitBy::Hash(HashBy::Client),
        )
        .unwrap();
        let chosen = |exchange: &Exchange| split.choose(exchange, || 0).upstream.name.to_string();
        let mut exchange = ExchangeBuilder::get("/").header("x-canary", "1").build();
        assert_eq!(chosen(&exchange), "api", "nobody calls");
        let caller = |role: &str| Principal { roles: vec![role.to_owned()], ..Principal::default() };
        exchange.set_principal(caller("user"));
        assert_eq!(chosen(&exchange), "api");
        exchange.set_principal(caller("tester"));
        assert_eq!(chosen(&exchange), "next");
    }

    #[test]
    fn a_cookie_keeps_the_point_and_tells_nothing_else() {
        let split = shares(&[(1, "next"), (1, "api")], SplitBy::Sticky("v".to_owned()));
        let exchange = ExchangeBuilder::get("/").build();
        let choice = split.choose(&exchange, || u64::MAX);
        assert_eq!(&*choice.upstream.name, "api");
        assert_eq!(choice.cookie.unwrap(), "v=ffffffffffffffff; Path=/; HttpOnly; SameSite=Lax");
        let exchange = ExchangeBuilder::get("/").header("cookie", "v=ffffffffffffffff").build();
        let choice = split.choose(&exchange, || 0);
        assert_eq!((&*choice.upstream.name, choice.cookie), ("api", None));
        let exchange = ExchangeBuilder::get("/").header("cookie", "v=nonsense").build();
        let choice = split.choose(&exchange, || 0);
        assert_eq!((&*choice.upstream.name, choice.cookie.is_some()), ("next", true));
    }
}
