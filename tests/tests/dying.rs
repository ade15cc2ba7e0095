//! Servers that are killed, started again, stopped, slowed and whose connections are reset while clients ask without a
//! pause, whatever is spoken with them: HTTP/1 and HTTP/2, in plain text and in TLS, gRPC. Each is a process of its own.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on ends, and this one reports"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use portcullis_tests::tools::{Authority, grpc, has};
use portcullis_tests::{Gateway, Load, Setup, Stop, here, nobody, request, server, until, wait_until};
use serde_json::Value;
use tempfile::TempDir;

/// How long the gateway waits for a response, and what a request may take that has to wait for two of them, on a machine
/// that does something else too.
const RESPONSE: &str = "1s";
const LONGEST: Duration = Duration::from_secs(4);
/// Failures in a row after which an endpoint is asked no more.
const FAILURES: usize = 2;

/// A server that a test can stop, and that is killed when it is dropped.
trait Mortal: Sync {
    fn signal(&self, name: &str);
}

impl Mortal for Gateway {
    fn signal(&self, name: &str) {
        Gateway::signal(self, name);
    }
}

/// One that others wrote.
struct Foreign {
    child: Child,
    _dir: TempDir,
}

impl Mortal for Foreign {
    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until somebody listens there.
fn listening(server: impl Mortal + 'static, address: SocketAddr) -> Box<dyn Mortal> {
    until("the server to listen", || TcpStream::connect(address).is_ok());
    Box::new(server)
}

/// nginx in one process, with TLS and these protocols.
fn nginx(address: SocketAddr, protocols: &str, authority: &Authority) -> Box<dyn Mortal> {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {at}/t;"));
    let config = format!(
        "daemon off; master_process off; pid {at}/pid;
events {{}}
http {{
  access_log off; keepalive_requests 1000000; {}
  server {{
    listen {address} ssl {protocols} reuseport;
    ssl_certificate {}; ssl_certificate_key {};
    location / {{ return 200 nginx; }}
  }}
}}
",
        temporary.concat(),
        authority.file("one.test.pem"),
        authority.file("one.test.key"),
    );
    fs::write(dir.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(dir.path().join("nginx.conf")).stdin(Stdio::null());
    listening(Foreign { child: command.spawn().unwrap(), _dir: dir }, address)
}

/// Has a server run a fifth of the time while clients go on.
fn slow(victim: &dyn Mortal, go_on: &dyn Fn()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                for (signal, millis) in [("STOP", 40), ("CONT", 10)] {
                    victim.signal(signal);
                    wait_until(Instant::now() + Duration::from_millis(millis));
                }
            }
        });
        go_on();
        go_on();
    });
}

/// Kills a server, starts it again, twice; then slows it, stops it and lets it go on, and at last kills it with requests
/// that it has not read, which has the system reset its connections; each time until the gateway has noticed.
fn harm(
    gateway: &Gateway,
    address: SocketAddr,
    start: &dyn Fn(SocketAddr) -> Box<dyn Mortal>,
    go_on: &dyn Fn(),
) {
    let metric = |name| gateway.metric(name, &[&format!("endpoint=\"{address}\"")]);
    let is_healthy = || metric("portcullis_endpoint_healthy") == 1.0;
    for _ in 0..2 {
        let victim = start(address);
        until("the endpoint to be there", is_healthy);
        go_on();
        drop(victim);
        until("the endpoint to be ejected", || !is_healthy());
        go_on();
    }
    let victim = start(address);
    until("the endpoint to be back", is_healthy);
    go_on();
    slow(&*victim, go_on);
    until("the endpoint to be as before", is_healthy);
    victim.signal("STOP");
    until("the endpoint to be ejected", || !is_healthy());
    go_on();
    victim.signal("CONT");
    until("the endpoint to be back", is_healthy);
    go_on();
    victim.signal("STOP");
    until("requests to wait there", || metric("portcullis_endpoint_in_flight") > 0.0);
    drop(victim);
    until("the endpoint to be ejected", || !is_healthy());
    go_on();
    let _victim = start(address);
    until("the endpoint to be back", is_healthy);
    go_on();
}

/// So often is a server harmed there.
const HARMS: usize = 5;

/// Requests that are not repeated, one after the other.
#[derive(Default)]
struct Posts {
    stop: AtomicBool,
    asked: AtomicUsize,
    failed: AtomicUsize,
}

impl Posts {
    fn run(&self, gateway: &Gateway) {
        let mut client = gateway.connect();
        while !self.stop.load(SeqCst) {
            let begin = Instant::now();
            self.asked.fetch_add(1, SeqCst);
            let status = client.ask(&request("POST", "/").body("once")).unwrap().status;
            assert!([200, 502, 504].contains(&status), "{status}");
            assert!(begin.elapsed() < LONGEST, "{status} after {:?}", begin.elapsed());
            self.failed.fetch_add((status != 200).into(), SeqCst);
        }
    }
}

/// Before two such servers, of which one is harmed: no `GET` fails, and of what is not repeated no more than it takes to
/// notice, nor later than its timeout.
fn survives(scheme: &str, settings: &str, start: &dyn Fn(SocketAddr) -> Box<dyn Mortal>) {
    let (steady, mortal) = (nobody(), nobody());
    let _steady = start(steady);
    let config = format!(
        "upstreams:
  origin:
    endpoints: [\"{scheme}://{steady}\", \"{scheme}://{mortal}\"]
    eject: {{ failures: {FAILURES}, time: 100ms }}
    timeouts: {{ response: {RESPONSE}, connect: {RESPONSE} }}
    {settings}
"
    );
    let gateway = Setup::new(&config).start();
    let posts = Posts::default();
    let gets = std::thread::scope(|scope| {
        let _stop = Stop(&posts.stop);
        scope.spawn(|| posts.run(&gateway));
        Load::during(gateway.address(), |load| harm(&gateway, mortal, start, &|| load.go_on()))
    });
    let (asked, failed) = (posts.asked.load(SeqCst), posts.failed.load(SeqCst));
    println!("{settings}: of {gets} that may be repeated none failed, of {asked} others {failed}");
    // Those that were sent to a server that is gone or stopped, until it is asked no more; then one a time that asks
    // whether it is back.
    assert!(failed <= HARMS * (FAILURES + 8), "{failed} of {asked}");
    until("nothing to be under way", || gateway.metric("portcullis_upstream_in_flight", &[]) == 0.0);
}

#[test]
fn http1_and_http2_in_plain_text() {
    for protocol in ["http1", "http2"] {
        let settings = format!("protocol: {protocol}");
        survives("http", &settings, &|address| listening(server("plain", address), address));
    }
}

#[test]
fn tls_with_http1_and_http2() {
    if !has(&["nginx", "openssl"]) {
        return;
    }
    let certificates = tempfile::tempdir().unwrap();
    let authority = Authority::new(certificates.path());
    authority.issue("one.test");
    for (protocol, protocols) in [("http1", ""), ("http2", "http2"), ("auto", "http2")] {
        let tls = format!("tls: {{ ca: {}, server_name: one.test }}", authority.ca());
        survives("https", &format!("protocol: {protocol}\n    {tls}"), &|address| {
            nginx(address, protocols, &authority)
        });
    }
}

#[test]
fn calls() {
    let Some(python) = grpc() else { return };
    let start = |address: SocketAddr| {
        let mut command = Command::new(&python);
        command.arg(here().join("grpc/server.py")).arg(address.to_string());
        // It ends with its input, so it keeps that.
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        listening(Foreign { child, _dir: tempfile::tempdir().unwrap() }, address)
    };
    let (steady, mortal) = (nobody(), nobody());
    let _steady = start(steady);
    let config = format!(
        "upstreams:
  origin:
    endpoints: [\"http://{steady}\", \"http://{mortal}\"]
    protocol: http2
    eject: {{ failures: {FAILURES}, time: 100ms }}
    timeouts: {{ response: {RESPONSE}, connect: {RESPONSE} }}
"
    );
    let gateway = Setup::new(&config).start();
    let mut client = Command::new(&python)
        .arg(here().join("grpc/client.py"))
        .arg(gateway.address().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, output) = (client.stdin.take().unwrap(), BufReader::new(client.stdout.take().unwrap()));
    writeln!(input, "many").unwrap();
    let (stop, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut asked, mut failed, mut longest) = (0, 0, 0.0_f64);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            for line in output.lines() {
                let told: Value = serde_json::from_str(&line.unwrap()).unwrap();
                for (code, count) in told["codes"].as_object().unwrap() {
                    assert!(["OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"].contains(&code.as_str()), "{code}");
                    asked += count.as_u64().unwrap() as usize;
                    failed += if code == "OK" { 0 } else { count.as_u64().unwrap() as usize };
                }
                longest = longest.max(told["longest"].as_f64().unwrap());
                rounds.fetch_add(1, SeqCst);
                if stop.load(SeqCst) || writeln!(input, "many").is_err() {
                    break;
                }
            }
        });
        harm(&gateway, mortal, &start, &|| {
            let from = rounds.load(SeqCst);
            until("more calls", || rounds.load(SeqCst) >= from + 2);
        });
    });
    let _ = client.kill();
    let _ = client.wait();
    eprintln!("of {asked} calls {failed} failed, the longest took {longest:.1} s");
    assert!(failed <= HARMS * (FAILURES + 8), "{failed} of {asked}");
    assert!(longest < LONGEST.as_secs_f64(), "{longest} s");
}
