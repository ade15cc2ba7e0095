//! The store that plugins share, as it looks from outside when it goes away, and when the gateway does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::{Duration, Instant};

use portcullis_tests::tools::{Authority, has};
use portcullis_tests::{Gateway, Redis, Setup, until};

/// Answers with how often a path was asked for.
const COUNT: &str =
    r#"fn on_request(ctx) { return respond(200, `${store_add(ctx.request.path, 1, 600)}`); }"#;

/// A gateway that counts in a store.
fn counting(store: &str) -> Setup {
    let plugin = "plugins: [{ rhai: { file: count.rhai, grants: { store: true } } }]\n";
    Setup::new(&format!("store: {store}\n{plugin}routes: [{{ respond: {{}} }}]\n")).file("count.rhai", COUNT)
}

/// Waits until the store can be used; what has been counted then.
#[track_caller]
fn wait_counted(gateway: &Gateway, path: &str) -> u64 {
    let mut counted = None;
    until("the store", || {
        let answer = gateway.get(path);
        counted = (answer.status == 200).then(|| answer.text().parse().unwrap());
        counted.is_some()
    });
    counted.unwrap()
}

/// So many requests that are refused; how long they took.
#[track_caller]
fn refused(gateway: &Gateway, requests: u32) -> Duration {
    let begun = Instant::now();
    for _ in 0..requests {
        assert_eq!(gateway.get("/a").status, 500);
    }
    begun.elapsed()
}

fn up(gateway: &Gateway) -> f64 {
    gateway.metric("portcullis_store_up", &[])
}

#[test]
fn a_redis_that_is_killed_is_refused_at_once_and_used_again_when_it_is_back() {
    if !has(&["redis-server"]) {
        return;
    }
    let mut redis = Redis::start(&[]);
    let gateway =
        counting(&format!("{{ redis: \"redis://127.0.0.1:{}\", timeout: 10s }}", redis.port())).start();
    let counted = wait_counted(&gateway, "/a");
    assert_eq!(gateway.get("/a").text(), (counted + 1).to_string());
    assert_eq!(up(&gateway), 1.0);
    redis.kill();
    until("the loss to be known", || up(&gateway) == 0.0);
    assert!(
        refused(&gateway, 20) < Duration::from_secs(10),
        "nobody waits for a store that is known to be away"
    );
    assert!(
        gateway.metric("portcullis_store_requests_total", &["op=\"add\"", "result=\"unavailable\""]) >= 20.0
    );
    assert!(gateway.log().contains("the store can't be reached"));
    redis.restart();
    assert_eq!(wait_counted(&gateway, "/a"), 1, "this one had it in memory");
    until("the return to be shown", || up(&gateway) == 1.0);
    gateway.stop();
}

#[test]
fn a_redis_that_stands_still_holds_nobody_up_for_longer_than_its_time() {
    if !has(&["redis-server"]) {
        return;
    }
    let redis = Redis::start(&[]);
    let gateway =
        counting(&format!("{{ redis: \"redis://127.0.0.1:{}\", timeout: 1s }}", redis.port())).start();
    let counted = wait_counted(&gateway, "/a");
    redis.signal("STOP");
    refused(&gateway, 1);
    until("the loss to be known", || up(&gateway) == 0.0);
    assert!(refused(&gateway, 20) < Duration::from_secs(10), "each would take a second");
    redis.signal("CONT");
    assert!(wait_counted(&gateway, "/a") > counted);
    gateway.stop();
}

#[test]
fn a_redis_behind_tls_is_believed_by_its_certificate_and_believes_by_a_password() {
    if !has(&["redis-server", "openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) =
        (Authority::new(&dir.path().join("ours")), Authority::new(&dir.path().join("theirs")));
    ours.issue("localhost");
    let files = [ours.file("localhost.pem"), ours.file("localhost.key"), ours.ca()];
    let redis = Redis::start(&[
        "--port",
        "0",
        "--tls-port",
        "PORT",
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "correct-horse",
        "--tls-cert-file",
        &files[0],
        "--tls-key-file",
        &files[1],
        "--tls-ca-cert-file",
        &files[2],
    ]);
    let store = |ca: &str| {
        format!(
            "{{ redis: {{ urls: [\"rediss://localhost:{}\"], password: env:REDIS_PASSWORD, ca: \"{ca}\" }} }}",
            redis.port()
        )
    };
    let right = counting(&store(&ours.ca())).variable("REDIS_PASSWORD", "correct-horse").start();
    wait_counted(&right, "/a");
    right.stop();
    for (ca, password, why) in [
        (theirs.ca(), "correct-horse", "certificate"),
        (ours.ca(), "wrong-battery", "password authentication failed"),
    ] {
        let gateway = counting(&store(&ca)).variable("REDIS_PASSWORD", password).start();
        until("it to be told", || gateway.log().contains("the store can't be reached"));
        let log = gateway.log();
        assert!(log.to_lowercase().contains(&why.to_lowercase()), "{log}");
        assert!(!log.contains(password), "{log}");
        refused(&gateway, 1);
        gateway.stop();
    }
}

#[test]
fn a_file_keeps_what_was_answered_when_the_gateway_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("{{ file: \"{}\", timeout: 60s }}", dir.path().join("store.redb").display());
    let mut counted = 0;
    for _ in 0..3 {
        let gateway = counting(&store).start();
        let first = wait_counted(&gateway, "/a");
        assert_eq!(first, counted + 1);
        for _ in 0..5 {
            counted = gateway.get("/a").text().parse().unwrap();
        }
        assert_eq!(counted, first + 5);
        gateway.signal("KILL");
        gateway.wait();
    }
}

#[test]
fn a_store_goes_on_over_a_reload_and_over_an_upgrade() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("{{ file: \"{}\", timeout: 60s }}", dir.path().join("store.redb").display());
    for (store, survives_upgrade) in [("memory", false), (store.as_str(), true)] {
        let gateway = counting(store).start();
        let counted = wait_counted(&gateway, "/a");
        gateway.replace("count.rhai", "fn on_request", "// Changed.\nfn on_request");
        gateway.wait_generation(2);
        assert_eq!(wait_counted(&gateway, "/a"), counted + 1);
        gateway.upgrade();
        assert_eq!(wait_counted(&gateway, "/a"), if survives_upgrade { counted + 2 } else { 1 });
        gateway.stop();
    }
}

#[test]
fn another_store_is_used_from_the_reload_on() {
    let gateway = counting("memory").start();
    assert_eq!([(); 2].map(|()| wait_counted(&gateway, "/a")), [1, 2]);
    gateway.replace("gateway.yaml", "store: memory", "store: { file: store.redb, timeout: 60s }");
    gateway.wait_generation(2);
    assert_eq!(wait_counted(&gateway, "/a"), 1);
    gateway.replace("gateway.yaml", "store: { file: store.redb, timeout: 60s }", "store: memory");
    gateway.wait_generation(3);
    assert_eq!(wait_counted(&gateway, "/a"), 3, "memory is the process's");
    gateway.stop();
}
