//! Endpoints from DNS: found, found elsewhere, and kept while nothing is found.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portcullis_tests::{Dns, Gateway, Origin, Record, Setup, nobody, request, until};
use serde_json::{Value, json};

/// A gateway whose upstream is what this server says.
fn asking(dns: &Dns, table: &str, settings: &str) -> Gateway {
    configured(dns, table, settings).start()
}

fn configured(dns: &Dns, table: &str, settings: &str) -> Setup {
    let at = dns.address();
    Setup::new(&format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]\nupstreams:\n  origin:\n    dns: {{ {table}, resolver: \"{at}\" }}\n{settings}"
    ))
}

fn loopback(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

fn address(last: u8) -> Record {
    Record::Address(loopback(last).into())
}

/// Origins at one port of several loopback addresses, by the last byte of these.
fn origins(lasts: &[u8]) -> (u16, Vec<Origin>) {
    let started = (0..100).find_map(|_| {
        let port = nobody().port();
        let at = |last: &u8| {
            Origin::at(&format!("origin-{last}"), (IpAddr::from(loopback(*last)), port).into()).ok()
        };
        Some((port, lasts.iter().map(at).collect::<Option<_>>()?))
    });
    started.expect("a port that is free everywhere")
}

fn endpoints(gateway: &Gateway) -> Vec<String> {
    let status = gateway.status();
    let endpoints = status["upstreams"][0]["endpoints"].as_array().unwrap();
    endpoints.iter().map(|endpoint| endpoint["address"].as_str().unwrap().to_owned()).collect()
}

fn dns_of(gateway: &Gateway) -> Value {
    gateway.status()["upstreams"][0]["dns"].clone()
}

fn lookups(gateway: &Gateway, what: &str) -> f64 {
    gateway.metric(&format!("portcullis_upstream_{what}_total"), &[])
}

/// The origins that answer so many requests.
fn answering(gateway: &Gateway, requests: usize) -> BTreeSet<String> {
    let name = |_| gateway.get("/").json()["origin"].as_str().unwrap().to_owned();
    (0..requests).map(name).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn every_address_of_a_name_is_an_endpoint() {
    let dns = Dns::start();
    let (port, _origins) = origins(&[2, 3]);
    dns.say("api.test", 60, vec![address(3), address(2)]);
    let gateway = asking(&dns, &format!("host: api.test, port: {port}"), "    host: endpoint");
    assert_eq!(answering(&gateway, 6), set(&["origin-2", "origin-3"]));
    assert_eq!(endpoints(&gateway), [format!("127.0.0.2:{port}"), format!("127.0.0.3:{port}")]);
    assert_eq!(gateway.get("/").json()["headers"]["host"], format!("api.test:{port}"));
    assert_eq!(dns_of(&gateway), json!({ "name": "api.test", "ttl_ms": 60_000, "last_error": null }));
}

#[test]
fn a_change_takes_effect_without_a_reload_and_costs_no_request() {
    let dns = Dns::start();
    let (port, origins) = origins(&[2, 3]);
    dns.say("api.test", 0, vec![address(2)]);
    let table = format!("host: api.test, port: {port}, min_ttl: 50ms");
    let gateway = asking(&dns, &table, "    health: { interval: 50ms }");
    assert_eq!(answering(&gateway, 3), set(&["origin-2"]));
    let mut held = gateway.connect();
    held.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the request to be held", || origins[0].held() == 1);
    dns.say("api.test", 0, vec![address(2), address(3)]);
    until("both to answer", || answering(&gateway, 4) == set(&["origin-2", "origin-3"]));
    // What stays is the same: the request under way is counted on it, and its connections are used.
    let in_flight =
        gateway.metric("portcullis_endpoint_in_flight", &[&format!("endpoint=\"127.0.0.2:{port}\"")]);
    assert_eq!((in_flight, gateway.generation()), (1.0, 1));
    dns.say("api.test", 0, vec![address(3)]);
    until("the first to be gone", || endpoints(&gateway) == [format!("127.0.0.3:{port}")]);
    assert_eq!(answering(&gateway, 4), set(&["origin-3"]));
    origins[0].release();
    let answer = held.answer("GET").unwrap();
    assert_eq!((answer.status, &answer.json()["origin"]), (200, &json!("origin-2")));
}

#[test]
fn the_last_good_answer_stays_while_there_is_no_other() {
    let dns = Dns::start();
    let (port, _origins) = origins(&[2]);
    dns.say("api.test", 0, vec![address(2)]);
    let table = format!("host: api.test, port: {port}, min_ttl: 20ms, timeout: 100ms");
    let gateway = asking(&dns, &table, "");
    let error = || dns_of(&gateway)["last_error"].as_str().unwrap_or_default().to_owned();
    let troubles: [(&str, &dyn Fn(bool)); 4] = [
        ("the answer is empty", &|on| dns.say("api.test", 0, if on { vec![] } else { vec![address(2)] })),
        ("the answer is empty", &|on| {
            if on { dns.forget("api.test") } else { dns.say("api.test", 0, vec![address(2)]) }
        }),
        ("ServerFailure", &|on| dns.fail(on)),
        ("no answer in", &|on| dns.mute(on)),
    ];
    for (why, trouble) in troubles {
        let before = lookups(&gateway, "lookup_failures");
        trouble(true);
        until(&format!("`{why}`"), || error().contains(why));
        assert_eq!(answering(&gateway, 2), set(&["origin-2"]));
        assert!(lookups(&gateway, "lookup_failures") > before);
        trouble(false);
        until("the error to be over", || error().is_empty());
    }
    assert!(gateway.log().contains("endpoints not found in DNS"));
}

#[test]
fn a_family_that_cannot_be_asked_for_keeps_its_addresses() {
    let dns = Dns::start();
    let (v4, v6) = (IpAddr::from(loopback(2)), IpAddr::from(Ipv6Addr::LOCALHOST));
    dns.say("api.test", 3600, vec![address(2), Record::Address(v6)]);
    let gateway = asking(&dns, "host: api.test, port: 81, min_ttl: 20ms, max_ttl: 30ms", "");
    let error = || dns_of(&gateway)["last_error"].as_str().unwrap_or_default().to_owned();
    assert_eq!(endpoints(&gateway), ["127.0.0.2:81", "[::1]:81"]);
    dns.conceal("api.test", v6, true);
    dns.say("api.test", 3600, vec![address(3)]);
    until("the other family to change", || endpoints(&gateway)[0] == "127.0.0.3:81");
    assert_eq!(endpoints(&gateway), ["127.0.0.3:81", "[::1]:81"]);
    assert!(error().contains("ServerFailure"));
    dns.conceal("api.test", v6, false);
    until("the first family to change", || endpoints(&gateway) == ["127.0.0.3:81"]);
    assert_eq!(error(), "");
    dns.conceal("api.test", v4, true);
    dns.say("api.test", 3600, vec![Record::Address(v6)]);
    until("the first family to be back", || endpoints(&gateway) == ["127.0.0.3:81", "[::1]:81"]);
}

#[test]
fn what_is_known_in_part_is_asked_for_again_soon() {
    let dns = Dns::start();
    let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
    dns.say("api.test", 3600, vec![address(2), Record::Address(v6)]);
    dns.conceal("api.test", v6, true);
    let gateway = asking(&dns, "host: api.test, port: 81, min_ttl: 20ms, max_ttl: 1h", "");
    assert_eq!(endpoints(&gateway), ["127.0.0.2:81"]);
    dns.conceal("api.test", v6, false);
    until("the rest", || endpoints(&gateway) == ["127.0.0.2:81", "[::1]:81"]);
}

#[test]
fn a_service_whose_host_cannot_be_asked_for_keeps_its_addresses() {
    let dns = Dns::start();
    let name = "_http._tcp.api.test";
    let service = |port, target: &str| Record::Service(10, 10, port, target.to_owned());
    dns.say(name, 3600, vec![service(81, "a.test"), service(82, "b.test")]);
    dns.say("a.test", 3600, vec![address(2)]);
    dns.say("b.test", 3600, vec![address(3)]);
    let gateway = asking(&dns, &format!("srv: {name}, min_ttl: 20ms, max_ttl: 30ms"), "");
    assert_eq!(endpoints(&gateway), ["127.0.0.2:81", "127.0.0.3:82"]);
    dns.conceal("b.test", loopback(3).into(), true);
    dns.conceal("b.test", Ipv6Addr::LOCALHOST.into(), true);
    dns.say(name, 3600, vec![service(91, "a.test"), service(92, "b.test")]);
    until("the ports to change", || endpoints(&gateway) == ["127.0.0.2:91", "127.0.0.3:92"]);
    assert!(dns_of(&gateway)["last_error"].as_str().unwrap().contains("ServerFailure"));
    dns.say(name, 3600, vec![service(91, "a.test")]);
    until("the service to be gone", || endpoints(&gateway) == ["127.0.0.2:91"]);
}

#[test]
fn the_gateway_starts_without_an_answer_and_serves_once_there_is_one() {
    let dns = Dns::start();
    let (port, _origins) = origins(&[2]);
    let table = format!("host: api.test, port: {port}, min_ttl: 20ms, timeout: 100ms");
    dns.mute(true);
    let gateway = asking(&dns, &table, "");
    let refused = gateway.get("/early");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(gateway.logged_path("/early")["reason"], "upstream.no_endpoints");
    dns.say("api.test", 0, vec![address(2)]);
    dns.mute(false);
    until("an endpoint", || gateway.get("/").status == 200);
}

#[test]
fn records_hold_between_the_shortest_and_the_longest_time() {
    let dns = Dns::start();
    let (port, _origins) = origins(&[2]);
    for name in ["long.test", "short.test"] {
        dns.say(name, if name == "long.test" { 86_400 } else { 0 }, vec![address(2)]);
    }
    let at = |name: &str, times: &str| asking(&dns, &format!("host: {name}, port: {port}, {times}"), "");
    let long = at("long.test", "min_ttl: 10ms, max_ttl: 50ms");
    let short = at("short.test", "min_ttl: 1h, max_ttl: 1h");
    let asked = dns.asked("long.test");
    until("the name to be asked for again", || dns.asked("long.test") >= asked + 6);
    // Both families, once.
    assert_eq!(dns.asked("short.test"), 2);
    assert_eq!((&dns_of(&long)["ttl_ms"], &dns_of(&short)["ttl_ms"]), (&json!(50), &json!(3_600_000)));
}

#[test]
fn services_say_ports_weights_and_priorities() {
    let dns = Dns::start();
    let (one, other, spare) = (Origin::named("one"), Origin::named("other"), Origin::named("spare"));
    let service = |priority, weight, origin: &Origin, target: &str| {
        Record::Service(priority, weight, origin.address().port(), target.to_owned())
    };
    let name = "_http._tcp.api.test";
    let services = vec![
        service(20, 10, &spare, "c.test"),
        service(10, 10, &one, "a.test"),
        service(10, 30, &other, "b.test"),
        service(10, 30, &other, "unknown.test"),
    ];
    dns.say(name, 60, services);
    for target in ["a.test", "b.test", "c.test"] {
        dns.say(target, 30, vec![address(1)]);
    }
    let gateway = asking(&dns, &format!("srv: {name}"), "    host: endpoint");
    for _ in 0..8 {
        assert_eq!(gateway.get("/").status, 200);
    }
    assert_eq!((one.served(), other.served(), spare.served()), (2, 6, 0));
    assert_eq!(dns_of(&gateway)["ttl_ms"], 30_000);
    let host = gateway.get("/").json()["headers"]["host"].as_str().unwrap().to_owned();
    assert!(host.starts_with("a.test:") || host.starts_with("b.test:"), "{host}");
}

#[test]
fn an_answer_too_long_for_a_datagram_is_taken_over_tcp_up_to_a_bound() {
    let dns = Dns::start();
    let (port, _origins) = origins(&[2]);
    let many = |count: u32| (0..count).map(|at| Record::Address(Ipv4Addr::from(0x7f00_0002 + at).into()));
    dns.say("api.test", 0, many(300).collect());
    let gateway = asking(&dns, &format!("host: api.test, port: {port}, min_ttl: 1h, max_ttl: 1h"), "");
    let found = endpoints(&gateway);
    assert_eq!((found.len(), &*found[0], dns.over_tcp()), (256, &*format!("127.0.0.2:{port}"), 1));
}

#[test]
fn a_reload_asks_for_nothing_that_is_known() {
    let dns = Dns::start();
    let (port, _origins) = origins(&[2]);
    dns.say("api.test", 3600, vec![address(2)]);
    let gateway = asking(&dns, &format!("host: api.test, port: {port}, max_ttl: 1h"), "    retries: 1");
    assert_eq!(gateway.get("/").status, 200);
    gateway.replace("gateway.yaml", "retries: 1", "retries: 2");
    gateway.wait_generation(2);
    assert_eq!(gateway.ask(&request("GET", "/")).status, 200);
    assert_eq!(dns.asked("api.test"), 2);
    assert_eq!(gateway.metric("portcullis_upstream_connects_total", &[]), 1.0);
    dns.say("other.test", 3600, vec![address(2)]);
    gateway.replace("gateway.yaml", "api.test", "other.test");
    gateway.wait_generation(3);
    assert_eq!((gateway.get("/").status, dns.asked("other.test")), (200, 2));
}

#[test]
fn copies_go_to_endpoints_that_were_found() {
    let (dns, origin) = (Dns::start(), Origin::start());
    let (port, shadows) = origins(&[2]);
    dns.mute(true);
    let table = format!(
        "host: api.test, port: {port}, min_ttl: 20ms, timeout: 100ms, resolver: \"{}\"",
        dns.address()
    );
    let gateway = Setup::new(&format!(
        "upstreams:\n  origin: {{ endpoints: [\"http://{}\"] }}\n  shadow: {{ dns: {{ {table} }} }}\nroutes: [{{ upstream: origin, mirror: {{ upstream: shadow }} }}]\n",
        origin.address()
    ));
    let gateway = gateway.start();
    assert_eq!(gateway.get("/").status, 200);
    let skipped = gateway.metric("portcullis_mirror_skipped_total", &["reason=\"no_endpoints\""]);
    assert_eq!(skipped, 1.0);
    dns.say("api.test", 0, vec![address(2)]);
    dns.mute(false);
    until("a copy", || gateway.get("/").status == 200 && shadows[0].served() > 0);
}
