//! Traffic that is split between upstreams, and copied to another one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use portcullis_tests::{Answer, Gateway, Http2, Origin, Setup, nobody, request, until};

/// A gateway before the upstreams `api` and `next`, with this in its route.
fn split(api: SocketAddr, next: SocketAddr, plugins: &str, upstream: &str) -> Gateway {
    let config = format!(
        "trusted_proxies: [127.0.0.1]\nplugins: [{{ access_log: {{ target: access.log }} }}{plugins}]\nupstreams:\n  api: {{ endpoints: [\"http://{api}\"] }}\n  next: {{ endpoints: [\"http://{next}\"] }}\nroutes: [{{ name: all, upstream: {upstream} }}]\n"
    );
    let caller = "fn on_request(ctx) { let id = ctx.request.headers[\"x-id\"]; if id != () { ctx.principal = #{ id: id, roles: [ctx.request.headers[\"x-role\"] ?? \"user\"] }; } }";
    Setup::new(&config).file("caller.rhai", caller).start()
}

const CALLER: &str = ", { rhai: { file: caller.rhai } }";

fn served_by(answer: &Answer) -> String {
    assert_eq!(answer.status, 200);
    answer.json()["origin"].as_str().unwrap().to_owned()
}

/// How many of these requests each origin served; each is told its number.
fn spread(
    gateway: &Gateway,
    count: usize,
    header: impl Fn(usize) -> (&'static str, String),
) -> BTreeMap<String, usize> {
    let mut client = gateway.connect();
    let mut spread = BTreeMap::new();
    for at in 0..count {
        let (name, value) = header(at);
        let answer = client.ask(&request("GET", "/").header(name, &value)).unwrap();
        *spread.entry(served_by(&answer)).or_default() += 1;
    }
    spread
}

/// Six standard deviations: of a thousand million runs, one or two would be further off by chance.
#[track_caller]
fn assert_share(found: usize, of: usize, share: f64) {
    let (expected, deviation) = (of as f64 * share, (of as f64 * share * (1.0 - share)).sqrt());
    assert!((found as f64 - expected).abs() < 6.0 * deviation, "{found} of {of}, not {share}");
}

#[test]
fn requests_are_spread_as_the_weights_say() {
    let (api, next) = (Origin::named("api"), Origin::named("next"));
    let arms = "{ split: [{ upstream: next, weight: 10 }, { upstream: api, weight: 90 }] }";
    let gateway = split(api.address(), next.address(), "", arms);
    let spread = spread(&gateway, 3000, |_| ("x-a", "1".to_owned()));
    assert_share(spread["next"], 3000, 0.1);
    assert_eq!(spread["next"] + spread["api"], 3000);
    let logged = |name: &str| gateway.access_log().iter().filter(|line| line["upstream"] == name).count();
    until("all to be logged", || logged("next") == spread["next"] && logged("api") == spread["api"]);
    let counted =
        |name: &str| gateway.metric("portcullis_upstream_attempts_total", &[&format!("upstream=\"{name}\"")]);
    assert_eq!((counted("next"), counted("api")), (spread["next"] as f64, spread["api"] as f64));
}

#[test]
fn requests_that_fit_a_condition_go_where_it_says() {
    let (api, next) = (Origin::named("api"), Origin::named("next"));
    let arms = "{ split: [{ upstream: next, when: { headers: { x-canary: \"1\" } } }, { upstream: next, when: { principals: [ann] } }, { upstream: next, when: { roles: [tester] } }, { upstream: api }] }";
    let gateway = split(api.address(), next.address(), CALLER, arms);
    let ask = |headers: &[(&str, &str)]| {
        let asked =
            headers.iter().fold(request("GET", "/"), |asked, (name, value)| asked.header(name, value));
        served_by(&gateway.ask(&asked))
    };
    assert_eq!([ask(&[]), ask(&[("x-canary", "1")]), ask(&[("x-canary", "0")])], ["api", "next", "api"]);
    assert_eq!([ask(&[("x-id", "ann")]), ask(&[("x-id", "ben")])], ["next", "api"]);
    assert_eq!(ask(&[("x-id", "ben"), ("x-role", "tester")]), "next");
}

#[test]
fn a_client_a_principal_or_a_header_stays_where_it_is() {
    let (api, next) = (Origin::named("api"), Origin::named("next"));
    let header = |by: &str, at: usize| match by {
        "client" => ("x-forwarded-for", format!("10.0.{}.{}", at / 200, at % 200)),
        "principal" => ("x-id", format!("user-{at}")),
        _ => ("x-tenant", format!("tenant-{at}")),
    };
    for by in ["client", "principal", "{ header: x-tenant }"] {
        let arms = format!(
            "{{ by: {by}, split: [{{ upstream: next, weight: 1 }}, {{ upstream: api, weight: 3 }}] }}"
        );
        let gateway = split(api.address(), next.address(), CALLER, &arms);
        let all = spread(&gateway, 1000, |at| header(by, at));
        assert_share(all["next"], 1000, 0.25);
        for at in 0..10 {
            assert_eq!(spread(&gateway, 10, |_| header(by, at)).len(), 1, "{by} {at}");
        }
        // Another gateway finds the same, and one whose share has grown has moved nobody back.
        let ask =
            |gateway: &Gateway, at: usize| spread(gateway, 1, |_| header(by, at)).into_keys().next().unwrap();
        let before: Vec<_> = (0..50).map(|at| ask(&gateway, at)).collect();
        let other = split(api.address(), next.address(), CALLER, &arms);
        assert!((0..50).all(|at| ask(&other, at) == before[at]), "{by}");
        other.replace("gateway.yaml", "weight: 1 }", "weight: 3 }");
        other.wait_generation(2);
        let after: Vec<_> = (0..50).map(|at| ask(&other, at)).collect();
        assert!((0..50).all(|at| before[at] == "api" || after[at] == "next"), "{by}");
    }
}

#[test]
fn a_cookie_of_the_gateway_keeps_a_client_where_it_is() {
    let (api, next) = (Origin::named("api"), Origin::named("next"));
    let arms = "{ by: { sticky: { cookie: canary } }, split: [{ upstream: next, weight: 50 }, { upstream: api, weight: 50 }] }";
    let gateway = split(api.address(), next.address(), "", arms);
    let mut homes = BTreeMap::new();
    for _ in 0..64 {
        let first = gateway.get("/");
        let said = first.header("set-cookie").unwrap().to_owned();
        let (cookie, attributes) = said.split_once(';').unwrap();
        assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Lax");
        let again = gateway.ask(&request("GET", "/").header("cookie", cookie));
        assert_eq!((served_by(&again), again.header("set-cookie")), (served_by(&first), None));
        homes.insert(cookie.to_owned(), served_by(&first));
    }
    assert_eq!(homes.values().collect::<std::collections::BTreeSet<_>>().len(), 2);
    gateway.replace("gateway.yaml", "upstream: next, weight: 50", "upstream: next, weight: 150");
    gateway.wait_generation(2);
    for (cookie, home) in homes.iter().filter(|(_, home)| *home == "next") {
        assert_eq!(served_by(&gateway.ask(&request("GET", "/").header("cookie", cookie))), *home);
    }
}

/// A server that keeps what it is sent, and answers nothing before it is told.
struct Shadow {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    gate: Arc<Mutex<()>>,
}

impl Shadow {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, gate) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<()>>::default());
        let (kept, closed) = (requests.clone(), gate.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (kept, closed) = (kept.clone(), closed.clone());
                std::thread::spawn(move || keep(stream, &kept, &closed));
            }
        });
        Shadow { address, requests, gate }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn wait(&self, count: usize) -> Vec<String> {
        until("copies", || self.requests().len() >= count);
        self.requests()
    }
}

/// Ends with the connection.
fn keep(stream: TcpStream, kept: &Mutex<Vec<String>>, closed: &Mutex<()>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut text = String::new();
        while !text.ends_with("\r\n\r\n") {
            if stream.read_line(&mut text).is_ok_and(|length| length > 0) {
                continue;
            }
            return;
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        stream.read_exact(&mut body).unwrap();
        kept.lock().unwrap().push(text + &String::from_utf8(body).unwrap());
        drop(closed.lock().unwrap());
        if stream.get_mut().write_all(b"HTTP/1.1 500 Shadow\r\ncontent-length: 2\r\n\r\nno").is_err() {
            return;
        }
    }
}

/// A gateway that sends copies to a shadow.
fn mirrored(origin: &Origin, shadow: SocketAddr, mirror: &str, more: &str) -> Gateway {
    let config = format!(
        "{more}\nupstreams:\n  origin: {{ endpoints: [\"http://{}\"], host: endpoint }}\n  shadow: {{ endpoints: [\"http://{shadow}\"] }}\nroutes: [{{ name: all, match: {{ prefix: /a }}, rewrite: {{ strip_prefix: /a }}, upstream: origin, mirror: {{ upstream: shadow, {mirror} }} }}]\n",
        origin.address()
    );
    let mark = "fn on_upstream(ctx) { ctx.outgoing.headers[\"x-mark\"] = \"1\"; }";
    Setup::new(&config).file("mark.rhai", mark).file("whole.rhai", "fn on_request_body(ctx) { }").start()
}

fn skipped(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("portcullis_mirror_skipped_total", &[&format!("reason=\"{reason}\"")])
}

#[test]
fn a_copy_says_what_the_request_says_and_nobody_waits_for_it() {
    let (origin, shadow) = (Origin::start(), Shadow::start());
    let gateway = mirrored(&origin, shadow.address, "", "plugins: [{ rhai: { file: mark.rhai } }]");
    let closed = shadow.gate.lock().unwrap();
    let answer = gateway.ask(&request("POST", "/a/b?c=d").header("x-a", "1").body("text"));
    assert_eq!((answer.status, answer.json()["path"].as_str()), (200, Some("/b")));
    let copy = shadow.wait(1).remove(0);
    assert!(copy.starts_with("POST /b?c=d HTTP/1.1\r\n") && copy.ends_with("\r\n\r\ntext"), "{copy}");
    for line in
        ["host: gateway.test", "x-a: 1", "x-mark: 1", "x-forwarded-for: 127.0.0.1", "content-length: 4"]
    {
        assert!(copy.lines().any(|found| found == line), "{line}: {copy}");
    }
    assert_eq!(gateway.metric("portcullis_mirrors_in_flight", &[]), 1.0);
    drop(closed);
    until("the copy to be answered", || gateway.metric("portcullis_mirrors_in_flight", &[]) == 0.0);
    // Its connection is used again.
    assert_eq!(gateway.get("/a").status, 200);
    shadow.wait(2);
    assert_eq!(gateway.metric("portcullis_upstream_connects_total", &["upstream=\"shadow\""]), 1.0);
    assert_eq!(gateway.metric("portcullis_mirrored_total", &["route=\"all\""]), 2.0);
}

#[test]
fn a_shadow_is_judged_by_how_its_calls_end() {
    // In a head that is all of the response, and behind one.
    for is_late in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = Origin::start();
        let gateway = Setup::new(&format!(
            "
upstreams:
  origin: {{ endpoints: [\"http://{}\"] }}
  shadow:
    endpoints: [\"http://{}\"]
    protocol: http2
    eject: {{ failures: 2, server_errors: true, time: 10m }}
    breaker: {{ min_requests: 2, error_rate: 100%, time: 10m }}
routes: [{{ upstream: origin, mirror: {{ upstream: shadow }} }}]
",
            origin.address(),
            listener.local_addr().unwrap()
        ))
        .start();
        let head = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "g")];
        let fields = head.into_iter().chain([("content-type", "application/grpc")]);
        let fields: Vec<_> = fields.map(|(name, value)| (name.into(), value.into())).collect();
        let mut client = Http2::open(gateway.address());
        let mut shadow = None;
        for turn in 0..2 {
            client.fields(2 * turn + 1, true, &fields);
            let shadow = shadow.get_or_insert_with(|| Http2::accept(&listener, &[]));
            let stream = shadow.request();
            const UNAVAILABLE: (&str, &str) = ("grpc-status", "14");
            if is_late {
                shadow.respond(stream, &[], false);
                shadow.fields(stream, true, &[(UNAVAILABLE.0.into(), UNAVAILABLE.1.into())]);
            } else {
                shadow.respond(stream, &[UNAVAILABLE], true);
            }
        }
        let opens = |labels: &[&str]| gateway.metric("portcullis_upstream_circuit_opens_total", labels);
        until("the shadow's circuit to be open", || opens(&["upstream=\"shadow\""]) == 1.0);
        assert_eq!(opens(&["upstream=\"origin\""]), 0.0);
    }
}

#[test]
fn a_body_that_streams_is_copied_up_to_its_limit() {
    let (origin, shadow) = (Origin::start(), Shadow::start());
    let gateway = mirrored(&origin, shadow.address, "body: 10B", "");
    let chunked = |chunks: &[&str]| {
        let mut client = gateway.connect();
        client.write(b"POST /a HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
        for chunk in chunks {
            client.write(format!("{:x}\r\n{chunk}\r\n", chunk.len()).as_bytes()).unwrap();
        }
        client.write(b"0\r\n\r\n").unwrap();
        let answer = client.answer("POST").unwrap();
        assert_eq!(answer.json()["body"], chunks.concat());
    };
    chunked(&["12345", "67890"]);
    let copy = shadow.wait(1).remove(0);
    assert!(copy.ends_with("\r\n\r\n1234567890") && copy.contains("content-length: 10\r\n"), "{copy}");
    chunked(&["12345", "678901"]);
    gateway.ask(&request("POST", "/a").body("12345678901"));
    assert_eq!(skipped(&gateway, "too_long"), 2.0);
    let mut gone = gateway.connect();
    gone.write(b"POST /a HTTP/1.1\r\nhost: g\r\ncontent-length: 10\r\n\r\n12345").unwrap();
    drop(gone);
    until("the upload to break off", || skipped(&gateway, "broken_off") == 1.0);
    gateway.ask(&request("POST", "/a").body("last"));
    assert!(shadow.wait(2)[1].ends_with("\r\n\r\nlast"));
    assert_eq!(shadow.requests().len(), 2);
}

#[test]
fn a_body_that_is_held_whole_is_copied_and_shares_the_memory_of_all() {
    let (origin, shadow) = (Origin::start(), Shadow::start());
    let whole = "limits: { whole_bodies: 15B }\nplugins: [{ rhai: { file: whole.rhai } }]";
    let gateway = mirrored(&origin, shadow.address, "", whole);
    let ask = |body: &str| assert_eq!(gateway.ask(&request("POST", "/a").body(body)).json()["body"], body);
    ask("1234567");
    assert!(shadow.wait(1)[0].ends_with("\r\n\r\n1234567"));
    // The request itself and its copy together would need more.
    ask("12345678");
    assert_eq!((skipped(&gateway, "busy"), shadow.requests().len()), (1.0, 1));
    let gateway = mirrored(&origin, shadow.address, "body: 5B", whole);
    gateway.ask(&request("POST", "/a").body("123456"));
    assert_eq!(skipped(&gateway, "too_long"), 1.0);
}

#[test]
fn a_shadow_that_is_behind_or_gone_costs_nothing() {
    let (origin, shadow) = (Origin::start(), Shadow::start());
    let gateway = mirrored(&origin, shadow.address, "max_requests: 2", "");
    let closed = shadow.gate.lock().unwrap();
    for _ in 0..5 {
        assert_eq!(gateway.get("/a").status, 200);
    }
    assert_eq!((shadow.wait(2).len(), skipped(&gateway, "busy")), (2, 3.0));
    drop(closed);
    until("the copies to be answered", || gateway.metric("portcullis_mirrors_in_flight", &[]) == 0.0);
    gateway.get("/a");
    shadow.wait(3);
    let gateway = mirrored(&origin, nobody(), "", "");
    for _ in 0..5 {
        assert_eq!(gateway.get("/a").status, 200);
    }
    until("the copies to fail", || {
        gateway.metric("portcullis_upstream_connect_failures_total", &["upstream=\"shadow\""]) == 5.0
    });
}

#[test]
fn a_share_of_the_requests_is_copied() {
    let (origin, shadow) = (Origin::start(), Shadow::start());
    let gateway = mirrored(&origin, shadow.address, "share: 20%, max_requests: 10000", "");
    let mut client = gateway.connect();
    for _ in 0..1000 {
        assert_eq!(client.ask(&request("GET", "/a")).unwrap().status, 200);
    }
    until("the copies to be answered", || gateway.metric("portcullis_mirrors_in_flight", &[]) == 0.0);
    assert_share(shadow.requests().len(), 1000, 0.2);
    assert_eq!(gateway.metric("portcullis_mirrored_total", &[]), shadow.requests().len() as f64);
}

#[test]
fn a_connection_is_used_again_after_an_answer_unless_that_is_too_long() {
    let (origin, shadow) = (Origin::start(), Origin::start());
    let gateway = mirrored(&origin, shadow.address(), "", "");
    let connects = |length: usize| {
        assert_eq!(gateway.get(&format!("/a/big/{length}")).body.len(), length);
        until("the copy to be sent", || gateway.metric("portcullis_mirrors_in_flight", &[]) == 0.0);
        gateway.metric("portcullis_upstream_connects_total", &["upstream=\"shadow\""])
    };
    assert_eq!([connects(1 << 20), connects(1 << 20), connects((1 << 20) + 1)], [1.0, 1.0, 1.0]);
    assert_eq!(connects(1), 2.0);
}
