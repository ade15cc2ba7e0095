//! gRPC through the gateway, with the client and the server of gRPC for Python.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use portcullis_tests::tools::{Authority, attempt, grpc, has};
use portcullis_tests::{Gateway, Origin, Setup, here, run, until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A program of `tests/grpc` with its standard input and output.
struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Python {
    fn start(python: &Path, script: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(python)
            .arg(here().join("grpc").join(script))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Python { child, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended");
        line
    }

    /// What came of a case.
    fn run(&mut self, case: &str) -> Value {
        writeln!(self.input, "{case}").unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server, a gateway before it, and a client of the gateway.
struct Chain {
    client: Python,
    gateway: Gateway,
    server: Python,
    _certificates: TempDir,
}

/// With these settings of the upstream; none without Python's gRPC. With TLS, on both sides, the endpoint chooses its
/// protocol in the handshake.
fn chain(tls: bool, settings: &str, more: &str) -> Option<Chain> {
    let python = grpc()?;
    let certificates = tempfile::tempdir().unwrap();
    let authority = tls.then(|| Authority::new(certificates.path()));
    let file = |name: &str| certificates.path().join(name).to_str().unwrap().to_owned();
    let (cert, key, ca) = (file("one.test.pem"), file("one.test.key"), file("ca.pem"));
    authority.iter().for_each(|authority| authority.issue("one.test"));
    let pair = [cert.as_str(), key.as_str()];
    let mut server = Python::start(&python, "server.py", if tls { &pair } else { &[] });
    let port: u16 = server.line().trim().parse().unwrap();
    let (listener, way) = match tls {
        true => (
            format!("tls: {{ certificates: [{{ cert: {cert}, key: {key} }}] }}"),
            format!(
                "endpoints: [\"https://127.0.0.1:{port}\"], protocol: auto, tls: {{ ca: {ca}, server_name: one.test }}"
            ),
        ),
        false => (String::new(), format!("endpoints: [\"http://127.0.0.1:{port}\"], protocol: http2")),
    };
    let config = format!(
        "
plugins: [{{ access_log: {{ target: access.log }} }}]
limits: {{ body: 64MiB }}
listeners: [{{ name: main, bind: 127.0.0.1:0, {listener} }}]
upstreams: {{ origin: {{ {way}, {settings} }} }}
{more}"
    );
    let gateway = Setup::new(&config).file("whole.rhai", "fn on_response_body(ctx) { }\n").start();
    let address = gateway.address().to_string();
    let arguments = [address.as_str(), ca.as_str()];
    let client = Python::start(&python, "client.py", if tls { &arguments } else { &arguments[..1] });
    Some(Chain { client, gateway, server, _certificates: certificates })
}

#[test]
fn calls_of_every_kind_pass_with_and_without_tls() {
    for tls in [false, true] {
        if tls && !has(&["openssl"]) {
            return;
        }
        let Some(mut chain) = chain(tls, "", "") else { return };
        let unary = chain.client.run("unary");
        assert_eq!(unary["answer"], "hello");
        assert_eq!(unary["initial"]["x-seen"], "7");
        assert_eq!(unary["trailing"]["x-after"], "trailing");
        assert_eq!(chain.client.run("split"), json!({ "heard": ["a", "b", "c"] }));
        assert_eq!(chain.client.run("join"), json!({ "answer": "abc" }));
        assert_eq!(chain.client.run("bidi"), json!({ "heard": ["0", "1", "2", "3", "4"] }));
        assert_eq!(chain.client.run("large"), json!({ "same": true }));
        assert_eq!(chain.gateway.metric("portcullis_upstream_shared_connects_total", &[]), 1.0);
    }
}

#[test]
fn errors_pass_as_the_server_tells_them() {
    let Some(mut chain) = chain(false, "", "") else { return };
    let failed = chain.client.run("fail");
    assert_eq!(failed["code"], "FAILED_PRECONDITION");
    assert_eq!(failed["details"], "not now: 100 % sure");
    assert_eq!(chain.client.run("unknown")["code"], "UNIMPLEMENTED");
    assert_eq!(chain.gateway.logged_path("/test.Test/Fail")["status"], 200);
}

#[test]
fn how_calls_end_is_logged_and_counted() {
    let routes = "
routes:
  - { match: { path: '/status.S/429' }, respond: { status: 429 } }
  - { upstream: origin }
";
    let Some(mut chain) = chain(false, "", routes) else { return };
    let counted = |chain: &Chain, code: &str| {
        chain.gateway.metric("portcullis_grpc_responses_total", &[&format!("code=\"{code}\"")])
    };
    assert_eq!(chain.client.run("split"), json!({ "heard": ["a", "b", "c"] }));
    assert_eq!(chain.gateway.logged_path("/test.Test/Split")["grpc_status"], "OK");
    assert_eq!(chain.client.run("unknown")["code"], "UNIMPLEMENTED");
    assert_eq!(chain.gateway.logged_path("/test.Test/Unknown")["grpc_status"], "UNIMPLEMENTED");
    for case in ["DATA_LOSS", "DATA_LOSS late"] {
        assert_eq!(chain.client.run(case)["code"], "DATA_LOSS");
    }
    let line = chain.gateway.logged_path("/test.Test/End");
    assert_eq!((&line["status"], &line["grpc_status"]), (&json!(200), &json!("DATA_LOSS")));
    assert_eq!(["OK", "UNIMPLEMENTED", "DATA_LOSS"].map(|code| counted(&chain, code)), [1.0, 1.0, 2.0]);
    let explained =
        run(&["explain", line["id"].as_str().unwrap(), "--admin", &chain.gateway.admin_at().to_string()]);
    assert!(explained.out.contains("200, gRPC DATA_LOSS, complete"), "{}{}", explained.out, explained.err);
    // What the gateway says itself is no answer of the upstream's.
    assert_eq!(chain.client.run("/status.S/429")["code"], "RESOURCE_EXHAUSTED");
    assert_eq!(chain.gateway.logged_path("/status.S/429")["grpc_status"], "RESOURCE_EXHAUSTED");
    assert_eq!(counted(&chain, "RESOURCE_EXHAUSTED"), 0.0);
}

#[test]
fn calls_that_the_server_fails_eject_it_wherever_it_says_so() {
    for late in ["", " late"] {
        let settings =
            "eject: { failures: 3, server_errors: true, max_ejected: 100%, time: 10m }, retries: 0";
        let Some(mut chain) = chain(false, settings, "") else { return };
        let ejections = |chain: &Chain| chain.gateway.metric("portcullis_endpoint_ejections_total", &[]);
        // What the client did wrong, or what ends well in between, makes them no row.
        for code in
            ["UNAVAILABLE", "INTERNAL", "NOT_FOUND", "UNKNOWN", "DATA_LOSS", "unary", "DEADLINE_EXCEEDED"]
        {
            let case = if code == "unary" { code.to_owned() } else { format!("{code}{late}") };
            chain.client.run(&case);
        }
        assert_eq!(ejections(&chain), 0.0, "{late}");
        for code in ["UNAVAILABLE", "INTERNAL"] {
            assert_eq!(chain.client.run(&format!("{code}{late}"))["code"], code);
        }
        until("the endpoint to be ejected", || ejections(&chain) == 1.0);
        // It was the only one, and is asked all the same.
        assert_eq!(chain.client.run("unary")["answer"], "hello");
    }
}

#[test]
fn calls_that_the_server_fails_open_the_circuit_wherever_it_says_so() {
    for late in ["", " late"] {
        let settings = "breaker: { min_requests: 3, error_rate: 100%, time: 10m }, eject: off, retries: 0";
        let Some(mut chain) = chain(false, settings, "") else { return };
        for _ in 0..3 {
            assert_eq!(chain.client.run(&format!("UNAVAILABLE{late}"))["details"], "as asked for");
        }
        until("the circuit to be open", || {
            chain.gateway.metric("portcullis_upstream_circuit_opens_total", &[]) == 1.0
        });
        assert_ne!(chain.client.run("unary")["details"], "as asked for");
    }
}

#[test]
fn a_call_that_is_cancelled_ends_at_the_server() {
    let Some(mut chain) = chain(false, "", "") else { return };
    assert_eq!(chain.client.run("cancel"), json!({ "first": "first", "cancelled": "1" }));
    assert_eq!(chain.gateway.logged_path("/test.Test/Tick")["end"], "client_gone");
}

#[test]
fn a_time_limit_reaches_the_server() {
    let Some(mut chain) = chain(false, "", "") else { return };
    let told = chain.client.run("unary")["trailing"]["x-time"].as_str().unwrap().parse::<f64>().unwrap();
    assert!((5.0..10.0).contains(&told), "{told}");
    assert_eq!(chain.client.run("deadline")["code"], "DEADLINE_EXCEEDED");
    assert_eq!(chain.client.run("silent")["code"], "DEADLINE_EXCEEDED");
}

#[test]
fn a_call_whose_time_is_over_within_its_response_is_told_so() {
    let Some(mut chain) = chain(false, "timeouts: { total: 300ms }", "") else { return };
    let told = chain.client.run("silent for long");
    assert_eq!((&told["first"], &told["code"]), (&json!("first"), &json!("DEADLINE_EXCEEDED")));
    let line = chain.gateway.logged_path("/test.Test/Tick");
    assert_eq!(
        (&line["end"], &line["grpc_status"]),
        (&json!("upstream_failed"), &json!("DEADLINE_EXCEEDED"))
    );
}

#[test]
fn a_time_limit_holds_though_the_upstream_ignores_it() {
    if !has(&["nghttp"]) {
        return;
    }
    let origin = Origin::start();
    let config = "
plugins: [{ access_log: { target: access.log } }]
upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"], protocol: http2 } }
";
    let gateway = Setup::new(config).before(&origin).start();
    let call = |path: &str| {
        let url = format!("http://{}{path}", gateway.address());
        let headers =
            ["-H", ":method: POST", "-H", "content-type: application/grpc", "-H", "grpc-timeout: 200m"];
        attempt("nghttp", &[&["-v", &url], headers.as_slice()].concat()).out
    };
    let told = call("/hold");
    assert!(told.contains(":status: 200") && told.contains("grpc-status: 4"), "{told}");
    let line = gateway.logged_path("/hold");
    assert_eq!((&line["status"], &line["reason"]), (&json!(504), &json!("upstream.deadline")));
    // What has begun can say so at its end.
    let told = call("/stall");
    assert!(told.contains(":status: 200") && told.contains("grpc-status: 4"), "{told}");
    assert_eq!(gateway.logged_path("/stall")["end"], "upstream_failed");
}

#[test]
fn refusals_are_told_as_grpc_has_them() {
    let routes = "
routes:
  - { match: { path: '/denied.D/**' }, upstream: origin, plugins: [{ ip_filter: { deny: [127.0.0.1] } }] }
  - { match: { path: '/status.S/401' }, respond: { status: 401 } }
  - { match: { path: '/status.S/429' }, respond: { status: 429, headers: { retry-after: \"7\" } } }
  - { match: { path: '/status.S/503' }, respond: { status: 503, body: busy } }
  - { match: { path: '/test.Test/**' }, upstream: origin }
";
    let Some(mut chain) = chain(false, "retries: 0", routes) else { return };
    let denied = chain.client.run("/denied.D/Call");
    assert_eq!(denied["code"], "PERMISSION_DENIED");
    let line = chain.gateway.logged_path("/denied.D/Call");
    assert_eq!((&line["status"], &line["decided_by"]), (&json!(403), &json!("route-0/ip_filter")), "{line}");
    let details = denied["details"].as_str().unwrap();
    assert_eq!(details, format!("Forbidden, request {}", line["id"].as_str().unwrap()), "{line}");
    assert_eq!(chain.client.run("/status.S/401")["code"], "UNAUTHENTICATED");
    let limited = chain.client.run("/status.S/429");
    assert_eq!(
        (&limited["code"], &limited["trailing"]["retry-after"]),
        (&json!("RESOURCE_EXHAUSTED"), &json!("7")),
        "{limited}"
    );
    assert_eq!(chain.client.run("/status.S/503")["code"], "UNAVAILABLE");
    assert_eq!(chain.client.run("/nowhere.N/Call")["code"], "UNIMPLEMENTED");
    assert_eq!(chain.gateway.logged_path("/nowhere.N/Call")["reason"], "route.not_found");
    chain.server.child.kill().unwrap();
    chain.server.child.wait().unwrap();
    assert_eq!(chain.client.run("unary")["code"], "UNAVAILABLE");
    let line = chain.gateway.logged_path("/test.Test/Unary");
    assert_eq!((&line["status"], &line["reason"]), (&json!(502), &json!("upstream.unreachable")));
}

#[test]
fn the_outcome_survives_a_plugin_that_takes_the_response_whole() {
    let more = "
routes:
  - upstream: origin
    plugins: [{ rhai: { file: whole.rhai } }]
";
    let Some(mut chain) = chain(false, "", more) else { return };
    let unary = chain.client.run("unary");
    assert_eq!(
        (&unary["answer"], &unary["trailing"]["x-after"]),
        (&json!("hello"), &json!("trailing")),
        "{unary}"
    );
}

#[test]
fn health_is_asked_for_as_grpc_has_it() {
    let health = "health: { grpc: shop.Orders, interval: 50ms, healthy: 1, unhealthy: 1 }";
    let Some(mut chain) = chain(false, health, "") else { return };
    let state = |chain: &Chain, state: &str| {
        chain.gateway.wait_status(state, |status| status["upstreams"][0]["endpoints"][0]["state"] == state);
    };
    // The server knows no such service yet.
    state(&chain, "unhealthy");
    until("the log to say why", || chain.gateway.log().contains("gRPC status 5"));
    assert_eq!(chain.client.run("serving")["answer"], "");
    state(&chain, "healthy");
    assert_eq!(chain.client.run("not serving")["answer"], "");
    state(&chain, "unhealthy");
    until("the log to say why", || chain.gateway.log().contains("it says that it does not serve"));
    // The server as a whole serves.
    chain.gateway.replace("gateway.yaml", "grpc: shop.Orders", "grpc: \"\"");
    state(&chain, "healthy");
}
