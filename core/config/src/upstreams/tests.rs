use std::path::Path;

use super::*;
use crate::resilience::HedgeAfter;

/// The first upstream, or the first error with its line.
fn read(text: &str) -> Result<Upstream, String> {
    match crate::parse(Path::new("x.yaml"), text, &|_| None) {
        Ok(loaded) => Ok(loaded.config.upstreams[0].clone()),
        Err(errors) => {
            let error = &errors.0[0];
            Err(format!("{}: {}", error.span.unwrap_or_default().line, error.message))
        }
    }
}

/// The settings of the one upstream.
fn configuration(settings: &str) -> String {
    let is_found = settings.starts_with("endpoints") || settings.starts_with("dns");
    let endpoints = if is_found { "" } else { "endpoints: [http://a:1], " };
    format!(
        "listeners: [{{ bind: 0.0.0.0:80 }}]\nupstreams: {{ api: {{ {endpoints}{settings} }} }}\nroutes: [{{ upstream: api }}]\n"
    )
}

#[test]
fn an_upstream_says_how_it_balances_and_what_happens_when_it_fails() {
    let read = |settings: &str| read(&configuration(settings)).unwrap();
    assert_eq!(read("balance: least_request").balance, Balance::LeastRequest);
    assert_eq!(read("balance: { hash: { by: client } }").balance, Balance::Hash(HashBy::Client));
    let by = read("balance: { hash: { by: { cookie: s } } }").balance;
    assert_eq!(by, Balance::Hash(HashBy::Cookie("s".to_owned())));
    assert!(matches!(read("balance: { sticky: { cookie: s } }").balance, Balance::Sticky(_)));
    assert_eq!(read("protocol: http2").protocol, HttpVersion::Http2);
    assert_eq!(read("protocol: http2, health: { grpc: \"\" }").health.unwrap().grpc.as_deref(), Some(""));
    assert_eq!(read("retries: 3").retries.attempts, 3);
    let retries = read("retries: { on: [connect, 503], budget: { share: 5% } }").retries;
    assert_eq!((retries.attempts, retries.on), (1, vec![RetryOn::Connect, RetryOn::Status(503)]));
    assert_eq!((retries.budget.share, retries.budget.min), (Percent(5), 10));
    assert_eq!(read("hedge: { after: 2s }").hedge.unwrap().after, HedgeAfter::Time(seconds(2)));
    assert_eq!(read("hedge: { after: p95 }").hedge.unwrap().after, HedgeAfter::P95);
    assert_eq!(read("adaptive: {}").adaptive.unwrap().tolerance.get(), 2);
    assert_eq!(read("breaker: { error_rate: 20% }").breaker.unwrap().error_rate, Percent(20));
    assert_eq!(read("max_requests: 2, max_pending: 7").max_pending, 7);
    assert_eq!(read("eject: off").eject.max_ejected, Percent(0));
    assert_eq!(read("health: { path: /healthz }").health.unwrap().unhealthy.get(), 3);
}

#[test]
fn mistakes_in_an_upstream_are_told_where_they_are() {
    let wrong = |settings: &str| read(&configuration(settings)).unwrap_err();
    for (settings, expected) in [
        ("balance: fastest", "2: upstreams.api.balance: expected `round_robin`, `least_request`, `random`"),
        ("balance: { hash: { by: ip } }", "2: upstreams.api.balance.hash.by: expected `client`, `principal`"),
        (
            "balance: { sticky: { cookie: \"a b\" } }",
            "2: upstreams.api.balance.sticky.cookie: expected a cookie name",
        ),
        ("retries: { on: [200] }", "2: upstreams.api.retries.on[0]: expected `connect`, `timeout`, `broken`"),
        ("retries: { budget: { share: 20 } }", "2: upstreams.api.retries.budget.share: "),
        ("retries: { atempts: 2 }", "2: unknown key `atempts` in `retries`"),
        ("eject: { max_ejected: 101% }", "2: upstreams.api.eject.max_ejected: expected a share"),
        ("eject: { time: 0s }", "2: upstreams.api.eject.time: must be longer than zero"),
        ("health: { interval: 0s }", "2: upstreams.api.health.interval: must be longer than zero"),
        ("hedge: { after: p99 }", "2: upstreams.api.hedge.after: expected a duration such as `10s`"),
        ("hedge: {}", "2: missing key `after` in `hedge`"),
        ("breaker: { probes: 0 }", "2: upstreams.api.breaker.probes: expected a whole number, 1 or more"),
        (
            "max_pending: 3",
            "2: upstreams.api.max_pending: nothing waits without `max_requests` or `adaptive`",
        ),
        (
            "deadline: { tell: content-length }",
            "2: upstreams.api.deadline.tell: `content-length` has a meaning already",
        ),
        ("deadline: {}", "2: upstreams.api.deadline: expected `read`, `tell` or both"),
        (
            "protocol: auto, proxy_protocol: v1",
            "2: upstreams.api.proxy_protocol: clients share the connections of HTTP/2",
        ),
        ("protocol: http3", "2: upstreams.api.protocol: "),
        ("health: { grpc: \"a b\" }", "2: upstreams.api.health.grpc: expected the name of a gRPC service"),
        (
            "health: { grpc: a, path: /b }",
            "2: upstreams.api.health.grpc: a check asks for a path or for a gRPC service",
        ),
        ("dns: { srv: \"_http._tcp.a b\" }", "2: upstreams.api.dns.srv: expected a host name"),
        ("dns: { host: a, min_ttl: 0s }", "2: upstreams.api.dns.min_ttl: must be longer than zero"),
        ("proxy_protocol: v3", "2: upstreams.api.proxy_protocol: "),
        ("max_requests: 0", "2: upstreams.api.max_requests: expected a whole number, 1 or more"),
    ] {
        assert!(wrong(settings).starts_with(expected), "{settings}: {}", wrong(settings));
    }
    assert_eq!(
        wrong("endpoints: [http://a:1, http://b:1, http://a:1]"),
        "2: upstreams.api.endpoints[2]: this endpoint stands here twice"
    );
}
