//! What a request costs between the sockets: judging its head, its path's normal form, the route look-up,
//! and a chain of plugins. `cargo bench -p portcullis-proxy`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use divan::{Bencher, black_box};
use http::{HeaderMap, Method};
use portcullis_plugin::path::normalise;
use portcullis_plugin::{Exchange, ExchangeBuilder, Hook, HookName, Needs, Plugin};
use portcullis_proxy::chain::{Chain, Flow, Instance, OnError};
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::routes::{Found, HostPattern, PathPattern, RouteMatch, RouteTable};

fn main() {
    divan::main();
}

#[divan::bench(args = ["/api/v1/orders/4711", "/api//v1/%7Eann/./orders/../x%20y"])]
fn normal_form_of_a_path(path: &str) -> usize {
    normalise(black_box(path)).unwrap().len()
}

#[divan::bench(args = [10, 10_000])]
fn finding_one_of_routes(bencher: Bencher<'_, '_>, count: usize) {
    let route = |n: usize| RouteMatch {
        hosts: vec![HostPattern::parse("shop.example.com").unwrap()],
        path: PathPattern::template(&format!("/api/service-{n}/orders/{{id}}")).unwrap(),
        methods: vec![Method::GET],
        headers: Vec::new(),
        query: Vec::new(),
    };
    let table = RouteTable::new((0..count).map(route).collect()).unwrap();
    let path = format!("/api/service-{}/orders/4711", count / 2);
    let headers = HeaderMap::new();
    bencher.bench(|| {
        let found = table.find("shop.example.com", black_box(&path), &Method::GET, None, &headers);
        assert!(matches!(found, Found::Route { .. }));
    });
}

/// The hooks do next to nothing, so that what is measured is the chain.
#[divan::bench(args = [1, 6])]
fn chain_of_plugins(bencher: Bencher<'_, '_>, length: usize) {
    let metrics = Metrics::new(1);
    let instance = |_| {
        Arc::new(Instance {
            name: "agree".into(),
            kind: "agree",
            version: "1".into(),
            plugin: Arc::new(Agree),
            needs: Agree.needs(),
            on_error: OnError::Deny,
            quarantine: None,
            budget: portcullis_plugin::Used::default(),
            timeout: Duration::from_secs(1),
            in_shadow: false,
            metrics: metrics.plugin("agree", "agree"),
            serial: Instance::serial(),
        })
    };
    let chain = Chain::new((0..length).map(instance).collect());
    let mut exchange = ExchangeBuilder::get("/").build();
    bencher.bench_local(|| {
        let (flow, entered) = ready(chain.forward(HookName::OnRequest, &mut exchange));
        assert!(matches!(flow, Flow::Continue));
        // An exchange has this list to itself; this one is used again and again.
        exchange.core().steps.clear();
        entered
    });
}

struct Agree;

impl Plugin for Agree {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnRequest])
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        black_box(exchange.request().host().len());
        Hook::CONTINUE
    }
}

/// The outcome of what never waits.
fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("none of these plugins waits"),
    }
}
