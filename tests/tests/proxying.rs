//! What passes through the gateway, as plain clients see it. Clients with TLS and HTTP/2 are in
//! `protocols.rs`.

use std::fs;

use portcullis_tests::{Gateway, Http, Origin, Setup, nobody, request, until};
use serde_json::{Value, json};

fn forwarding(config: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let gateway = Setup::new(config).before(&origin).start();
    (origin, gateway)
}

#[test]
fn a_request_reaches_the_origin_as_it_was_sent() {
    let (_origin, gateway) = forwarding("");
    let sent = request("PUT", "/a%20b/c?x=1&y=%26").header("x-test", "1").header("x-test", "2").body("hello");
    let seen = gateway.ask(&sent).json();
    assert_eq!(seen["method"], "PUT");
    assert_eq!((&seen["path"], &seen["query"]), (&json!("/a%20b/c"), &json!("x=1&y=%26")));
    assert_eq!(seen["headers"]["x-test"], "1, 2");
    assert_eq!(seen["headers"]["host"], "gateway.test");
    assert_eq!((&seen["body"], &seen["headers"]["content-length"]), (&json!("hello"), &json!("5")));
}

#[test]
fn a_connection_is_kept_for_many_requests() {
    let (origin, gateway) = forwarding("");
    let mut http = gateway.connect();
    for turn in 1..=20 {
        let path = format!("/{turn}");
        assert_eq!(http.ask(&request("GET", &path)).unwrap().json()["path"], path);
    }
    assert_eq!(origin.served(), 20);
    assert_eq!(gateway.metric("portcullis_upstream_connects_total", &[]), 1.0);
}

#[test]
fn the_client_is_named_to_the_origin_and_a_client_cannot_name_itself() {
    let (_origin, gateway) = forwarding("");
    let forged =
        request("GET", "/").header("x-forwarded-for", "203.0.113.9").header("x-forwarded-proto", "https");
    let seen = gateway.ask(&forged).json();
    assert_eq!(seen["headers"]["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["headers"]["x-forwarded-proto"], "http");
}

#[test]
fn a_trusted_proxy_is_believed() {
    for network in ["127.0.0.0/8", "::ffff:127.0.0.0/104"] {
        let (_origin, gateway) = forwarding(&format!(
            "trusted_proxies: [\"{network}\"]
plugins: [{{ headers: {{ request: {{ set: {{ x-client: \"{{client}}\" }} }} }} }}]
"
        ));
        let seen = gateway.ask(&request("GET", "/").header("x-forwarded-for", "203.0.113.9")).json();
        assert_eq!(seen["headers"]["x-client"], "203.0.113.9", "{network}");
        assert_eq!(seen["headers"]["x-forwarded-for"], "203.0.113.9, 127.0.0.1", "{network}");
    }
}

#[test]
fn large_bodies_pass_both_ways() {
    let (_origin, gateway) = forwarding("limits: { body: 32MiB }\n");
    let large = vec![b'y'; 20 << 20];
    let seen = gateway.ask(&request("POST", "/").body(large)).json();
    assert_eq!(seen["body_bytes"], 20 << 20);
    let answer = gateway.get("/big/20000000");
    assert_eq!((answer.status, answer.body.len()), (200, 20_000_000));
}

#[test]
fn a_chunked_upload_and_its_trailers_arrive() {
    let (_origin, gateway) = forwarding("");
    let mut http = gateway.connect();
    http.write(
        b"POST /up HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
          3\r\nabc\r\n4\r\ndefg\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .unwrap();
    let seen = http.answer("POST").unwrap().json();
    assert_eq!((&seen["body"], &seen["trailers"]["x-sum"]), (&json!("abcdefg"), &json!("7")));
}

#[test]
fn trailers_of_a_response_arrive() {
    let (_origin, gateway) = forwarding("");
    let answer = gateway.ask(&request("GET", "/trailers").header("te", "trailers"));
    assert_eq!(answer.text(), "body");
    assert_eq!(answer.trailers, [("x-checksum".to_owned(), "abc".to_owned())]);
}

#[test]
fn a_head_request_gets_the_head_only() {
    let (_origin, gateway) = forwarding("");
    let mut http = gateway.connect();
    let head = http.ask(&request("HEAD", "/body/hello")).unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("5")));
    assert_eq!(http.ask(&request("GET", "/body/again")).unwrap().text(), "again");
}

#[test]
fn a_body_that_breaks_off_upstream_breaks_off_for_the_client() {
    let (_origin, gateway) = forwarding("plugins: [{ access_log: { target: access.log } }]\n");
    assert!(gateway.connect().ask(&request("GET", "/break")).is_err());
    assert_eq!(gateway.logged_path("/break")["end"], "upstream_failed");
    assert_eq!(gateway.get("/body/fine").text(), "fine");
}

#[test]
fn an_origin_that_is_away_is_a_502_with_a_problem_document() {
    let gateway = Setup::new(
        "plugins: [{ access_log: { target: access.log } }]\nupstreams: { origin: { endpoints: [\"http://${ORIGIN}\"] } }\n",
    )
    .variable("ORIGIN", nobody())
    .start();
    let answer = gateway.get("/x");
    assert_eq!((answer.status, answer.header("content-type")), (502, Some("application/problem+json")));
    let line = gateway.logged_path("/x");
    assert_eq!(answer.json()["request_id"], line["id"]);
    assert_eq!(
        (&line["decided_by"], &line["reason"]),
        (&json!("core.upstream"), &json!("upstream.unreachable"))
    );
}

#[test]
fn a_slow_origin_is_a_504() {
    let (origin, gateway) = forwarding(
        "upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"], timeouts: { response: 50ms }, retries: 0 } }\n",
    );
    assert_eq!(gateway.get("/hold").status, 504);
    origin.release();
}

#[test]
fn listeners_of_ipv6_and_of_two_workers_serve() {
    let (origin, gateway) = forwarding(
        "workers: 2\nlisteners: [{ name: four, bind: 127.0.0.1:0 }, { name: six, bind: \"[::1]:0\" }]\n",
    );
    let six = gateway.listener("six");
    assert!(six.is_ipv6());
    assert_eq!(Http::connect(six).unwrap().ask(&request("GET", "/")).unwrap().status, 200);
    // Connections are spread over the workers by the kernel; all of them are served, at the same time.
    let open: Vec<Http> = (0..32).map(|_| gateway.connect()).collect();
    for mut http in open {
        assert_eq!(http.ask(&request("GET", "/")).unwrap().status, 200);
    }
    assert_eq!(origin.served(), 33);
}

const ROUTES: &str = "
upstreams:
  origin: { endpoints: [\"http://${ORIGIN}\"] }
  other: { endpoints: [\"http://${OTHER}\"] }
routes:
  - { name: host, match: { hosts: [api.example.com, \"*.apps.example.com\"] }, upstream: other }
  - { name: user, match: { path: \"/users/{id}\", methods: [GET] }, rewrite: { path: \"/internal/{id}\" }, upstream: origin }
  - { name: make, match: { path: \"/users/{id}\", methods: [POST] }, upstream: other }
  - { name: files, match: { path: \"/files/{rest**}\" }, rewrite: { path: \"/f/{rest}\" }, upstream: origin }
  - { name: tenant, match: { prefix: /who, headers: { x-tenant: acme } }, upstream: other }
  - { name: beta, match: { prefix: /who, query: { beta: { present: true } } }, upstream: other }
  - { name: who, match: { prefix: /who }, upstream: origin }
  - { name: stripped, match: { prefix: /v1 }, rewrite: { strip_prefix: /v1, add_prefix: /api, host: internal.test }, upstream: origin }
  - { name: old, match: { prefix: /old }, redirect: { to: \"https://new.example.com{path}\", status: 301 } }
  - { name: fixed, match: { path: /health }, respond: { status: 200, headers: { x-fixed: \"yes\" }, json: { ok: true } } }
";

fn routing() -> (Gateway, Origin, Origin) {
    let (origin, other) = (Origin::named("origin"), Origin::named("other"));
    let gateway = Setup::new(ROUTES).before(&origin).variable("OTHER", other.address()).start();
    (gateway, origin, other)
}

#[test]
fn routes_choose_by_host_path_method_header_and_query() {
    let (gateway, _origin, _other) = routing();
    for (asked, served_by) in [
        (request("GET", "/users/7").header("host", "api.example.com"), "other"),
        (request("GET", "/users/7").header("host", "a.apps.example.com"), "other"),
        (request("GET", "/users/7").header("host", "apps.example.com"), "origin"),
        (request("GET", "/users/7"), "origin"),
        (request("POST", "/users/7").body(""), "other"),
        (request("GET", "/who/is"), "origin"),
        (request("GET", "/who/is").header("x-tenant", "acme"), "other"),
        (request("GET", "/who/is?beta=1"), "other"),
    ] {
        assert_eq!(gateway.ask(&asked).json()["origin"], served_by, "{asked:?}");
    }
}

#[test]
fn rewrites_change_what_goes_upstream() {
    let (gateway, _origin, _other) = routing();
    assert_eq!(gateway.get("/users/a%20b?q=1").json()["path"], "/internal/a%20b");
    assert_eq!(gateway.get("/users/7?q=1").json()["query"], "q=1");
    assert_eq!(gateway.get("/files/a/b/c").json()["path"], "/f/a/b/c");
    let stripped = gateway.get("/v1/things").json();
    assert_eq!(
        (&stripped["path"], &stripped["headers"]["host"]),
        (&json!("/api/things"), &json!("internal.test"))
    );
}

#[test]
fn redirects_and_fixed_answers_need_no_origin() {
    let (gateway, origin, other) = routing();
    let moved = gateway.get("/old/page");
    assert_eq!((moved.status, moved.header("location")), (301, Some("https://new.example.com/old/page")));
    let fixed = gateway.get("/health");
    assert_eq!((fixed.header("x-fixed"), &fixed.json()), (Some("yes"), &json!({ "ok": true })));
    assert_eq!((origin.served(), other.served()), (0, 0));
}

#[test]
fn what_no_route_wants_is_a_404_and_a_wrong_method_a_405() {
    let (gateway, _origin, _other) = routing();
    let missing = gateway.get("/nothing");
    assert_eq!((missing.status, &missing.json()["status"]), (404, &json!(404)));
    let method = gateway.ask(&request("DELETE", "/users/7"));
    assert_eq!(method.status, 405);
    assert!(["GET", "POST"].iter().all(|allowed| method.header("allow").unwrap().contains(allowed)));
}

#[test]
fn ambiguous_paths_are_refused_or_normalised_before_routing() {
    let (gateway, _origin, _other) = routing();
    assert_eq!(gateway.get("/nothing/../users/7").json()["path"], "/internal/7");
    assert_eq!(gateway.get("//users//7").json()["path"], "/internal/7");
    for path in ["/users/..%2f..%2fetc", "/users/%00", "/users/a%2Fb", "/users/a\\b"] {
        assert_eq!(gateway.get(path).status, 400, "{path}");
    }
}

#[test]
fn endpoints_are_taken_by_weight_and_a_dead_one_costs_no_request() {
    let (light, heavy) = (Origin::named("light"), Origin::named("heavy"));
    let config = "
upstreams:
  origin:
    endpoints: [\"http://${ORIGIN}\", { url: \"http://${HEAVY}\", weight: 3 }, { url: \"http://${DEAD}\", weight: 4 }]
";
    let setup =
        Setup::new(config).before(&light).variable("HEAVY", heavy.address()).variable("DEAD", nobody());
    let gateway = setup.start();
    for _ in 0..80 {
        assert_eq!(gateway.get("/").status, 200);
    }
    assert_eq!(light.served() + heavy.served(), 80);
    assert!(heavy.served() >= 2 * light.served(), "{} against {}", heavy.served(), light.served());
}

#[test]
fn limits_of_heads_and_bodies_bite_at_their_value() {
    let origin = Origin::start();
    let config = "
limits: { body: 1KiB }
plugins: [{ access_log: { target: access.log } }]
listeners: [{ name: main, bind: 127.0.0.1:0, limits: { header_bytes: 1KiB, header_count: 10 } }]
";
    let gateway = Setup::new(config).before(&origin).start();
    let with_header =
        |length| gateway.ask(&request("GET", "/head").header("x-long", &"a".repeat(length))).status;
    assert_eq!((with_header(900), with_header(1100)), (200, 431));
    let with_count =
        |count| (0..count).fold(request("GET", "/count"), |r, n| r.header(&format!("x-{n}"), "1"));
    assert_eq!((gateway.ask(&with_count(9)).status, gateway.ask(&with_count(10)).status), (200, 431));
    let with_body = |length| gateway.ask(&request("POST", "/body").body(vec![b'b'; length])).status;
    assert_eq!((with_body(1024), with_body(1025)), (200, 413));
    let reason = |path: &str, status: u16| {
        let line = gateway.logged(path, |line| line["path"] == path && line["status"] == status);
        (line["decided_by"].clone(), line["reason"].clone())
    };
    assert_eq!(reason("/body", 413), (json!("core.body"), json!("body.too_large")));
    assert_eq!(origin.served(), 3);
}

#[test]
fn a_body_whose_length_was_not_said_is_limited_too() {
    let (_origin, gateway) = forwarding("limits: { body: 1KiB }\n");
    let mut http = gateway.connect();
    let chunk = format!("400\r\n{}\r\n", "c".repeat(1024));
    http.write(
        format!("POST / HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n{chunk}{chunk}").as_bytes(),
    )
    .unwrap();
    assert_eq!(http.answer("POST").unwrap().status, 413);
}

#[test]
fn a_head_that_takes_too_long_is_a_408() {
    let config = "
plugins: [{ access_log: { target: access.log } }]
listeners: [{ name: main, bind: 127.0.0.1:0, limits: { header_timeout: 100ms } }]
routes: [{ respond: { status: 204 } }]
";
    let gateway = Setup::new(config).start();
    let mut http = gateway.connect();
    http.write(b"GET / HTTP/1.1\r\nhost: g\r\n").unwrap();
    assert_eq!(http.answer("GET").unwrap().status, 408);
    assert!(http.is_closed());
}

#[test]
fn connections_beyond_the_limit_are_closed_at_once() {
    let config = "
listeners: [{ name: main, bind: 127.0.0.1:0, limits: { connections: 3 } }]
routes: [{ respond: { status: 204 } }]
";
    let gateway = Setup::new(config).start();
    let mut open: Vec<Http> = (0..3).map(|_| gateway.connect()).collect();
    for http in &mut open {
        assert_eq!(http.ask(&request("GET", "/")).unwrap().status, 204);
    }
    assert!(gateway.connect().is_closed());
    drop(open);
    until("a place to be free", || gateway.connect().ask(&request("GET", "/")).is_ok());
    assert!(gateway.metric("portcullis_connections_refused_total", &[]) >= 1.0);
}

#[test]
fn smuggling_is_refused_with_an_id_a_reason_and_a_log_line() {
    let (origin, gateway) = forwarding("plugins: [{ access_log: { target: access.log } }]\n");
    for smuggled in [
        "POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: g\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        "GET / HTTP/1.1\nhost: g\n\n",
        "GET / HTTP/1.1\r\nhost: g\r\n folded: 1\r\n\r\n",
    ] {
        let mut http = gateway.connect();
        http.write(smuggled.as_bytes()).unwrap();
        let answer = http.answer("POST").unwrap();
        assert_eq!(answer.status, 400, "{smuggled:?}");
        let id = answer.json()["request_id"].clone();
        let line = gateway.logged("the refusal", |line| line["id"] == id);
        assert!(line["reason"].as_str().unwrap().starts_with("http."), "{line}");
        assert!(http.is_closed());
    }
    assert_eq!(origin.served(), 0);
}

#[test]
fn the_access_log_tells_one_line_per_request() {
    let (_origin, gateway) =
        forwarding("plugins: [{ access_log: { target: access.log, headers: [x-tenant] } }]\n");
    gateway.ask(&request("POST", "/logged?secret=1").header("x-tenant", "acme").body("12345"));
    let line = gateway.logged_path("/logged");
    for (field, value) in [
        ("method", json!("POST")),
        ("status", json!(200)),
        ("end", json!("complete")),
        ("client", json!("127.0.0.1")),
        ("listener", json!("main")),
        ("route", json!("all")),
        ("upstream", json!("origin")),
        ("request_bytes", json!(5)),
        ("headers", json!({ "x-tenant": "acme" })),
        ("query", Value::Null),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    let text = fs::read_to_string(gateway.dir().join("access.log")).unwrap();
    assert!(text.lines().count() == 1 && !text.contains("secret"), "{text}");
}
