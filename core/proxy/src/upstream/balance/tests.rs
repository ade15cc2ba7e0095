use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::metrics::Metrics;
use crate::upstream::{AttemptFailure, Ejection};

/// An upstream of these weights and priorities, under a rule.
fn upstream(rule: Balance, places: &[(u32, u16)]) -> Upstream {
    let metrics = Metrics::new(1);
    let endpoint = |at: usize| Arc::new(Endpoint::new(&format!("10.0.0.{at}:80"), &metrics).unwrap());
    let endpoints: Vec<_> = (0..places.len()).map(endpoint).collect();
    let places = places.iter().map(|(weight, priority)| Place { weight: *weight, priority: *priority });
    Upstream {
        balancer: Balancer::new(rule, &endpoints, places.collect(), 50),
        ..Upstream::new("api", endpoints, metrics.upstream("api"))
    }
}

/// How often each endpoint was chosen.
fn shares(upstream: &Upstream, choices: usize) -> Vec<usize> {
    let mut counts = vec![0; upstream.endpoints.len()];
    (0..choices).for_each(|_| counts[upstream.choose(Wish::Any).index] += 1);
    counts
}

#[track_caller]
fn assert_near(shares: &[usize], wanted: &[usize]) {
    let near = |(share, wanted): (&usize, &usize)| share.abs_diff(*wanted) <= 30 + wanted / 10;
    assert!(shares.iter().zip(wanted).all(near), "{shares:?}, not {wanted:?}");
}

fn check(upstream: &Upstream, index: usize, healthy: bool) {
    upstream.check_said(&upstream.endpoints[index], healthy);
}

#[test]
fn turns_follow_weights_and_are_spread() {
    assert_eq!(turns(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(turns(&[1, 1]), [0, 1]);
    assert_eq!(turns(&[0, 2]), [1]);
    assert_eq!(turns(&[500, 1000]).len(), 3);
}

#[test]
fn the_turns_of_an_endpoint_that_is_out_go_to_the_others_as_their_weights_say() {
    let upstream = upstream(Balance::RoundRobin, &[(1, 0), (1, 0), (2, 0), (1, 0)]);
    assert_eq!(shares(&upstream, 1000), [200, 200, 400, 200]);
    check(&upstream, 0, false);
    assert_near(&shares(&upstream, 1000), &[0, 250, 500, 250]);
    check(&upstream, 0, true);
    assert_eq!(shares(&upstream, 1000), [200, 200, 400, 200]);
}

#[test]
fn lots_follow_weights() {
    let upstream = upstream(Balance::Random, &[(1, 0), (3, 0)]);
    assert_near(&shares(&upstream, 2000), &[500, 1500]);
    let order: Vec<_> = (0..64).map(|_| upstream.choose(Wish::Any).index).collect();
    assert_ne!(order[..4].repeat(16), order, "no order of turns");
    check(&upstream, 1, false);
    assert_eq!(shares(&upstream, 100), [100, 0]);
}

#[test]
fn the_less_busy_of_two_is_taken() {
    let upstream = upstream(Balance::LeastRequest, &[(1, 0), (1, 0), (2, 0)]);
    upstream.endpoints[0].in_flight.add(5);
    upstream.endpoints[1].in_flight.add(3);
    upstream.endpoints[2].in_flight.add(7);
    let counts = shares(&upstream, 1000);
    // The first is never the less busy one of two; 7 at weight 2 is less than 5 at weight 1, more than 3.
    assert!(counts[0] == 0 && counts[1] > 0 && counts[2] > 0, "{counts:?}");
    check(&upstream, 1, false);
    assert_eq!(shares(&upstream, 100), [0, 0, 100]);
    assert_eq!(shares(&self::upstream(Balance::LeastRequest, &[(1, 0)]), 3), [3]);
}

#[test]
fn idle_endpoints_under_least_request_share_alike() {
    let upstream = upstream(Balance::LeastRequest, &[(1, 0), (1, 0), (1, 0)]);
    assert_near(&shares(&upstream, 3000), &[1000, 1000, 1000]);
}

#[test]
fn what_is_hashed_is_taken_from_the_request() {
    use portcullis_plugin::{ExchangeBuilder, Principal};
    let exchange = |tenant: &str, cookie: &str, caller: &str| {
        let principal = Principal { id: caller.into(), ..Principal::default() };
        let builder = ExchangeBuilder::get("/").peer("10.0.0.9").principal(principal);
        builder.header("x-tenant", tenant).header("cookie", cookie).build()
    };
    let (one, other) = (exchange("a", "s=1", "ann"), exchange("b", "s=2", "bob"));
    let header = || HashBy::Header(HeaderName::from_static("x-tenant"));
    for by in [header(), HashBy::Cookie("s".into()), HashBy::Principal] {
        let upstream = upstream(Balance::Hash(by), &[(1, 0)]);
        assert!(matches!(upstream.wish(&one), Wish::Hash(_)));
        assert_ne!(upstream.wish(&one), upstream.wish(&other));
        assert_eq!(upstream.wish(&one), upstream.wish(&exchange("a", "x=0; s=1", "ann")));
        assert_eq!(upstream.wish(&ExchangeBuilder::get("/").build()), Wish::Any);
    }
    let by_client = upstream(Balance::Hash(HashBy::Client), &[(1, 0)]);
    assert_eq!(by_client.wish(&one), by_client.wish(&other));
    assert_ne!(by_client.wish(&one), by_client.wish(&ExchangeBuilder::get("/").peer("10.0.0.8").build()));
}

fn homes(upstream: &Upstream) -> BTreeMap<u64, usize> {
    (0..1000_u64).map(|key| (key, upstream.choose(Wish::Hash(mixed(key))).index)).collect()
}

#[test]
fn a_hash_keeps_its_endpoint_while_others_come_and_go() {
    let rule = || Balance::Hash(HashBy::Client);
    let upstream = upstream(rule(), &[(1, 0), (1, 0), (1, 0), (1, 0)]);
    let before = homes(&upstream);
    let count = |homes: &BTreeMap<u64, usize>, at| homes.values().filter(|home| **home == at).count();
    assert_near(&[0, 1, 2, 3].map(|at| count(&before, at)), &[250; 4]);
    check(&upstream, 2, false);
    let without = homes(&upstream);
    let moved = before.iter().filter(|(key, home)| **home != 2 && without[key] != **home).count();
    assert_eq!((moved, count(&without, 2)), (0, 0));
    check(&upstream, 2, true);
    assert_eq!(homes(&upstream), before);
    // One more endpoint takes its share, and nothing else moves.
    let wider = self::upstream(rule(), &[(1, 0), (1, 0), (1, 0), (1, 0), (1, 0)]);
    let moved: Vec<_> = homes(&wider).into_iter().filter(|(key, home)| before[key] != *home).collect();
    assert!(moved.iter().all(|(_, home)| *home == 4) && moved.len().abs_diff(200) < 60, "{}", moved.len());
}

#[test]
fn a_hash_goes_past_an_endpoint_that_is_much_busier_than_the_average() {
    let upstream = upstream(Balance::Hash(HashBy::Client), &[(1, 0), (1, 0), (1, 0), (1, 0)]);
    let (key, home) = homes(&upstream).into_iter().next().unwrap();
    let busy = |each: u64, at_home: u64| {
        for (index, endpoint) in upstream.endpoints.iter().enumerate() {
            let count = if index == home { at_home } else { each };
            endpoint.in_flight.add(count.wrapping_sub(endpoint.in_flight()));
        }
        let running = upstream.endpoints.iter().map(|endpoint| endpoint.in_flight()).sum::<u64>();
        upstream.metrics.in_flight.add(running.wrapping_sub(upstream.metrics.in_flight.value()));
        upstream.choose(Wish::Hash(mixed(key))).index
    };
    // With 39 or 40 under way and one to come, each may have 13.
    assert_eq!(busy(9, 12), home);
    assert_ne!(busy(9, 13), home);
    assert_eq!(busy(0, 0), home);
}

#[test]
fn the_next_priority_serves_when_too_few_of_the_first_are_healthy() {
    let upstream = upstream(Balance::RoundRobin, &[(1, 0), (1, 0), (1, 0), (1, 1)]);
    assert_eq!(shares(&upstream, 300), [100, 100, 100, 0]);
    check(&upstream, 0, false);
    assert_near(&shares(&upstream, 300), &[0, 150, 150, 0]);
    check(&upstream, 1, false);
    assert_near(&shares(&upstream, 300), &[0, 0, 150, 150]);
    check(&upstream, 2, false);
    assert_eq!(shares(&upstream, 300), [0, 0, 0, 300]);
    check(&upstream, 3, false);
    let all = shares(&upstream, 400);
    assert!(all.iter().all(|share| *share == 100), "when all are out, all are used: {all:?}");
    (0..4).for_each(|index| check(&upstream, index, true));
    assert_eq!(shares(&upstream, 300), [100, 100, 100, 0]);
}

#[test]
fn a_failed_attempt_is_made_again_elsewhere_wherever_that_is() {
    let upstream = upstream(Balance::RoundRobin, &[(1, 0), (1, 0)]);
    let first = upstream.endpoints[0].id;
    let again = || upstream.choose_again(Wish::Any, &[first]);
    assert!((0..10).all(|_| again().index == 1));
    check(&upstream, 1, false);
    assert!(
        (0..10).all(|_| again().index == 1),
        "better one of which checks say no than the one that failed"
    );
    let alone = self::upstream(Balance::RoundRobin, &[(1, 0)]);
    assert_eq!(alone.choose_again(Wish::Any, &[alone.endpoints[0].id]).index, 0);
}

#[test]
fn an_endpoint_that_comes_back_begins_slowly() {
    let mut upstream = upstream(Balance::RoundRobin, &[(1, 0), (1, 0)]);
    upstream.slow_start = Duration::from_secs(3600);
    check(&upstream, 0, false);
    check(&upstream, 0, true);
    assert_near(&shares(&upstream, 2000), &[100, 1900]);
    upstream.slow_start = Duration::ZERO;
    assert_eq!(shares(&upstream, 2000), [1000, 1000]);
}

fn fail(upstream: &Upstream, index: usize) {
    let chosen = upstream.chosen(index, Role::Ordinary);
    (0..upstream.ejection.failures)
        .for_each(|_| upstream.failed(chosen, AttemptFailure::Unreachable, Duration::ZERO));
}

#[test]
fn no_more_than_a_share_of_the_endpoints_is_ejected() {
    for (max_ejected, wanted) in [(0, 0), (50, 2), (74, 2), (75, 3), (100, 4)] {
        let mut upstream = upstream(Balance::RoundRobin, &[(1, 0); 4]);
        upstream.ejection.max_ejected = max_ejected;
        (0..4).for_each(|index| fail(&upstream, index));
        let ejected = upstream.endpoints.iter().filter(|endpoint| endpoint.is_ejected()).count();
        assert_eq!(ejected, wanted, "of four at {max_ejected} %");
    }
}

#[test]
fn endpoints_that_checks_call_unhealthy_count_as_ejected() {
    let mut upstream = upstream(Balance::RoundRobin, &[(1, 0); 4]);
    [0, 1].into_iter().for_each(|index| check(&upstream, index, false));
    fail(&upstream, 2);
    fail(&upstream, 3);
    assert_near(&shares(&upstream, 1000), &[0, 0, 500, 500]);
    upstream.ejection.max_ejected = 75;
    fail(&upstream, 2);
    fail(&upstream, 3);
    assert_eq!(shares(&upstream, 1000), [0, 0, 0, 1000]);
    check(&upstream, 0, true);
    fail(&upstream, 3);
    assert_eq!(shares(&upstream, 1000), [1000, 0, 0, 0]);
}

#[test]
fn a_success_in_between_begins_the_count_anew() {
    let upstream = upstream(Balance::RoundRobin, &[(1, 0), (1, 0)]);
    let chosen = upstream.chosen(0, Role::Ordinary);
    for _ in 0..10 {
        (1..upstream.ejection.failures)
            .for_each(|_| upstream.failed(chosen, AttemptFailure::Failed, Duration::ZERO));
        upstream.answered(chosen, http::StatusCode::OK, Duration::ZERO);
    }
    assert!(!upstream.endpoints[0].is_ejected());
    fail(&upstream, 0);
    assert!(upstream.endpoints[0].is_ejected());
    assert_eq!(shares(&upstream, 100), [0, 100]);
}

#[test]
fn server_errors_are_failures_only_where_that_is_said() {
    let mut upstream = upstream(Balance::RoundRobin, &[(1, 0), (1, 0)]);
    let error = |upstream: &Upstream| {
        let chosen = upstream.chosen(0, Role::Ordinary);
        (0..5).for_each(|_| upstream.answered(chosen, http::StatusCode::BAD_GATEWAY, Duration::ZERO));
        upstream.endpoints[0].is_ejected()
    };
    assert!(!error(&upstream));
    upstream.ejection.server_errors = true;
    assert!(error(&upstream));
}

#[test]
fn an_ejected_endpoint_comes_back_by_one_request_that_goes_well() {
    let mut upstream = upstream(Balance::RoundRobin, &[(1, 0), (1, 0)]);
    upstream.ejection = Ejection { time: Duration::ZERO, ..Ejection::default() };
    fail(&upstream, 0);
    let chosen: Vec<_> = (0..20).map(|_| upstream.choose(Wish::Any)).collect();
    let probes: Vec<_> = chosen.iter().filter(|chosen| chosen.index == 0).collect();
    assert_eq!(probes.len(), 1, "one request at a time");
    assert_eq!(probes[0].role, Role::Probe);
    upstream.failed(*probes[0], AttemptFailure::Unreachable, Duration::ZERO);
    assert_eq!(upstream.endpoints[0].ejections(), 2);
    let probe = loop {
        let chosen = upstream.choose(Wish::Any);
        if chosen.role == Role::Probe {
            break chosen;
        }
    };
    upstream.answered(probe, http::StatusCode::OK, Duration::ZERO);
    assert_eq!(shares(&upstream, 100), [50, 50]);
}

#[test]
fn a_cookie_names_an_endpoint_until_it_is_out() {
    let sticky = Sticky::new("route", vec!["a".into(), "b".into()]).unwrap();
    let upstream = upstream(Balance::Sticky(sticky), &[(1, 0), (1, 0)]);
    let wish = |cookie: &str| {
        let exchange = portcullis_plugin::ExchangeBuilder::get("/").header("cookie", cookie).build();
        upstream.wish(&exchange)
    };
    assert_eq!((wish("x=1; route=b"), wish("route=c")), (Wish::Endpoint(1), Wish::Any));
    assert!((0..10).all(|_| upstream.choose(Wish::Endpoint(1)).index == 1));
    let said = |chosen, is_secure| {
        let mut headers = HeaderMap::new();
        upstream.stick(Wish::Endpoint(1), chosen, is_secure, &mut headers);
        headers.get(SET_COOKIE).map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(said(1, false), None);
    assert_eq!(said(0, false).unwrap(), "route=a; Path=/; HttpOnly; SameSite=Lax");
    assert_eq!(said(0, true).unwrap(), "route=a; Path=/; HttpOnly; SameSite=Lax; Secure");
    check(&upstream, 1, false);
    assert!((0..10).all(|_| upstream.choose(Wish::Endpoint(1)).index == 0));
}

#[test]
fn second_attempts_take_no_turns() {
    let upstream = upstream(Balance::RoundRobin, &[(1, 0), (1, 0)]);
    let failing = upstream.endpoints[0].id;
    let mut firsts = [0, 0];
    for _ in 0..100 {
        let first = upstream.choose(Wish::Any);
        firsts[first.index] += 1;
        if first.endpoint.id == failing {
            assert_eq!(upstream.choose_again(Wish::Any, &[failing]).index, 1);
        }
    }
    assert_eq!(firsts, [50, 50], "or the failing one would have the first turn of every request");
}

#[test]
fn a_home_that_is_looked_up_is_the_one_that_is_worked_out() {
    let places = [(1, 0), (3, 0), (2, 0), (1, 1)];
    let upstream = upstream(Balance::Hash(HashBy::Client), &places);
    let choice = Choice::new(&upstream, now(), &[]).unwrap();
    for key in 0..2000 {
        let hash = mixed(key);
        let home = upstream.home(hash, &[]);
        assert!(home.is_some() && home == choice.by_hash(hash), "{key}");
    }
    assert_near(&shares_of_hashes(&upstream, 6000), &[1000, 3000, 2000, 0]);
    let upstream = self::upstream(Balance::Hash(HashBy::Client), &[(1, 0), (1, 0)]);
    check(&upstream, 1, false);
    let at_home = (0..2000).filter(|key| upstream.home(mixed(*key), &[]).is_some()).count();
    assert!((900..1100).contains(&at_home), "whose home is well looks it up: {at_home}");
}

fn shares_of_hashes(upstream: &Upstream, choices: u64) -> Vec<usize> {
    let mut counts = vec![0; upstream.endpoints.len()];
    (0..choices).for_each(|key| counts[upstream.choose(Wish::Hash(mixed(key))).index] += 1);
    counts
}

#[test]
fn a_hash_comes_back_slowly_to_an_endpoint_that_does() {
    let mut upstream = upstream(Balance::Hash(HashBy::Client), &[(1, 0), (1, 0)]);
    upstream.slow_start = Duration::from_secs(3600);
    let before = homes(&upstream);
    check(&upstream, 0, false);
    check(&upstream, 0, true);
    let slowly = homes(&upstream);
    let count = slowly.values().filter(|home| **home == 0).count();
    assert!((40..160).contains(&count), "a tenth against a whole, and not {count} of 1000");
    assert!(slowly.iter().all(|(key, home)| *home == before[key] || *home == 1), "nothing else moves");
}

/// Several requests of an endpoint of three, of which every third fails.
fn mixed_results(upstream: &Upstream, index: usize, took: Duration) {
    let chosen = upstream.chosen(index, Role::Ordinary);
    for at in 0..60 {
        match at % 3 {
            0 => upstream.failed(chosen, AttemptFailure::Failed, took),
            _ => upstream.answered(chosen, http::StatusCode::OK, took),
        }
    }
}

#[test]
fn an_endpoint_that_fails_often_is_ejected_though_not_in_a_row() {
    let ejected = |error_rate, min_requests| {
        let mut upstream = upstream(Balance::RoundRobin, &[(1, 0); 3]);
        upstream.ejection = Ejection { error_rate, min_requests, ..Ejection::default() };
        mixed_results(&upstream, 0, Duration::ZERO);
        upstream.endpoints[0].is_ejected()
    };
    assert!(!ejected(None, 1));
    assert!(ejected(Some(30), 50));
    assert!(!ejected(Some(40), 50), "a third fails");
    assert!(!ejected(Some(30), 61), "too few requests");
}

#[test]
fn an_endpoint_that_is_much_slower_than_the_others_is_ejected() {
    let ejected = |factor, slow: u64, min_requests| {
        let mut upstream = upstream(Balance::RoundRobin, &[(1, 0); 3]);
        let window = Duration::from_secs(3600);
        upstream.ejection =
            Ejection { latency_factor: Some(factor), min_requests, window, ..Ejection::default() };
        // Two windows, as long as they need be.
        for _ in 0..2 {
            for index in 0..3 {
                let took = Duration::from_millis(if index == 0 { slow } else { 10 });
                let chosen = upstream.chosen(index, Role::Ordinary);
                (0..60).for_each(|_| upstream.answered(chosen, http::StatusCode::OK, took));
            }
            upstream.ejection.window = Duration::ZERO;
            (0..3).for_each(|index| {
                let chosen = upstream.chosen(index, Role::Ordinary);
                upstream.answered(chosen, http::StatusCode::OK, Duration::from_millis(10));
            });
            upstream.ejection.window = window;
        }
        upstream.endpoints.iter().map(|endpoint| endpoint.is_ejected()).collect::<Vec<_>>()
    };
    assert_eq!(ejected(4, 50, 50), [true, false, false]);
    assert_eq!(ejected(6, 50, 50), [false; 3], "five times as slow");
    assert_eq!(ejected(4, 50, 70), [false; 3], "too few requests");
}
