use super::*;

#[test]
fn names_are_forgotten_when_nobody_uses_them() {
    let metrics = Metrics::new(1);
    let kept = metrics.route("kept");
    kept.duration.observe(Duration::from_millis(1));
    drop((
        metrics.route("gone"),
        metrics.plugin("gone", "cors"),
        metrics.upstream("gone"),
        metrics.mirror("gone"),
    ));
    metrics.forget_unused();
    assert_eq!(metrics.routes().iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["kept"]);
    assert!(metrics.plugins().is_empty() && metrics.upstreams().is_empty() && metrics.mirrors().is_empty());
    assert_eq!(metrics.route("kept").duration.value().buckets.iter().sum::<u64>(), 1);
}

#[test]
fn what_would_be_refused_is_told_apart_up_to_a_number() {
    let metrics = Metrics::new(1).plugin("p", "k");
    for turn in 0..2 * MAX_SHADOW_CLIENTS {
        let client = std::net::Ipv4Addr::from_bits(turn as u32).into();
        metrics.shadow.refuse(&format!("r{}", turn % (2 * MAX_SHADOW_REASONS)), "route", client);
    }
    let WouldRefuse { reasons, clients } = metrics.shadow.refused();
    assert_eq!((reasons.len(), clients.len()), (MAX_SHADOW_REASONS + 1, MAX_SHADOW_CLIENTS + 1));
    assert_eq!(reasons.values().sum::<u64>(), 2 * MAX_SHADOW_CLIENTS as u64);
    assert_eq!(clients[&None], MAX_SHADOW_CLIENTS as u64);
}

#[test]
fn rows_add_up_and_gauges_fall() {
    let metrics = Metrics::new(2);
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let metrics = &metrics;
            scope.spawn(move || {
                count_as_worker(worker);
                metrics.connections.add(5);
                metrics.connections_open.decrement();
            });
        }
    });
    metrics.connections_open.add(3);
    assert_eq!((metrics.connections.value(), metrics.connections_open.value()), (10, 1));
}

#[test]
fn every_reason_has_the_counter_of_its_label() {
    let metrics = Metrics::new(1);
    for (at, (why, _)) in Refused::ALL.iter().enumerate() {
        metrics.refuse(*why);
        assert_eq!(metrics.connections_refused[at].value(), 1, "{why:?}");
    }
    for (at, (why, _)) in GivenUp::ALL.iter().enumerate() {
        metrics.give_up(*why);
        assert_eq!(metrics.given_up[at].value(), 1, "{why:?}");
    }
}

#[test]
fn a_bucket_holds_what_is_at_most_its_bound() {
    let metrics = Metrics::new(1).route("r");
    metrics.duration.observe(Duration::from_millis(1));
    metrics.duration.observe(Duration::from_secs(60));
    let value = metrics.duration.value();
    let at = BUCKETS.iter().position(|bound| *bound == 0.001).unwrap();
    assert_eq!((value.buckets[at], value.buckets[BUCKETS.len()]), (1, 1));
    assert!((value.sum - 60.001).abs() < 1e-6);
}

#[test]
fn counters_of_a_name_are_kept() {
    let metrics = Metrics::new(1);
    metrics.upstream("a").connects.increment();
    assert_eq!(metrics.upstream("a").connects.value(), 1);
    assert_eq!(metrics.upstreams().len(), 1);
    metrics.plugin("p", "a").drops.increment();
    assert_eq!(metrics.plugin("p", "a").drops.value(), 1);
    assert_eq!((metrics.plugin("p", "b").drops.value(), metrics.plugin("p", "b").kind), (0, "b"));
}
