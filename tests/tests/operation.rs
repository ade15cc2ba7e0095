//! The gateway as operators meet it: start, signals, service manager, admin interface, command line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use portcullis_tests::tools::{Authority, has};
use portcullis_tests::{Http, Origin, PATIENCE, Setup, request, run, run_in, until, wait_for};
use serde_json::{Value, json};

const ANSWERING: &str = "routes: [{ respond: { status: 204 } }]\n";

#[test]
fn a_drain_lets_running_requests_end_and_takes_no_new_ones() {
    let origin = Origin::start();
    let gateway = Setup::new("pid_file: gateway.pid\n").before(&origin).start();
    let (address, admin) = (gateway.address(), gateway.admin_at());
    let pid_file = gateway.dir().join("gateway.pid");
    assert_eq!(fs::read_to_string(&pid_file).unwrap().trim(), gateway.pid().to_string());
    let mut running = gateway.connect();
    running.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the request to be held", || origin.held() == 1);
    gateway.signal("TERM");
    until("the listener to be closed", || Http::connect(address).is_err());
    let readiness = gateway.admin("GET", "/readyz");
    assert_eq!((readiness.status, readiness.text().starts_with("draining")), (503, true));
    origin.release();
    assert_eq!(running.answer("GET").unwrap().status, 200);
    let ended = gateway.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert!(!pid_file.exists() && Http::connect(admin).is_err());
}

#[test]
fn a_drain_ends_at_its_time() {
    let origin = Origin::start();
    let gateway = Setup::new("drain: 100ms\n").before(&origin).start();
    let mut running = gateway.connect();
    running.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the request to be held", || origin.held() == 1);
    gateway.signal("TERM");
    let ended = gateway.wait();
    assert!(ended.status.success() && ended.err.contains("\"cut_off\":1"), "{ended:?}");
    assert!(running.answer("GET").is_err());
    origin.release();
}

#[test]
fn a_client_that_is_silent_after_its_handshake_does_not_hold_up_the_end() {
    if !has(&["openssl"]) {
        return;
    }
    let config = "
drain: 1h
listeners:
  - name: main
    bind: 127.0.0.1:0
    limits: { header_timeout: 1h }
    tls: { certificates: [{ cert: tls/one.test.pem, key: tls/one.test.key }] }
routes: [{ respond: { status: 204 } }]
";
    let setup = Setup::new(config);
    Authority::new(&setup.dir().join("tls")).issue("one.test");
    let gateway = setup.start();
    let mut client = Command::new("openssl")
        .args(["s_client", "-connect", &gateway.address().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("Verify return code")), "no handshake");
    gateway.signal("TERM");
    assert!(gateway.wait().status.success());
    client.kill().unwrap();
    client.wait().unwrap();
}

#[test]
fn a_second_signal_ends_at_once() {
    let origin = Origin::start();
    let gateway = Setup::new("drain: 1h\n").before(&origin).start();
    let mut running = gateway.connect();
    running.write(b"GET /hold HTTP/1.1\r\nhost: g\r\n\r\n").unwrap();
    until("the request to be held", || origin.held() == 1);
    gateway.signal("INT");
    until("the drain to begin", || gateway.log().contains("draining"));
    gateway.signal("INT");
    assert!(gateway.wait().status.success());
    origin.release();
}

#[test]
fn a_pid_file_of_a_running_process_is_respected() {
    let setup = Setup::new(&format!("pid_file: gateway.pid\n{ANSWERING}")).file("gateway.pid", "1\n");
    let ended = setup.try_start().err().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.err.contains("names process 1, which is running"), "{}", ended.err);
}

#[test]
fn the_service_manager_is_told_of_start_reload_and_stop() {
    let setup = Setup::new(ANSWERING);
    let path = setup.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 1024];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let gateway = setup.variable("NOTIFY_SOCKET", path.display()).start();
    assert!(told().starts_with("READY=1\nSTATUS=generation 1"));
    gateway.signal("HUP");
    let reloading = told();
    let microseconds = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(
        reloading.starts_with("RELOADING=1\n") && microseconds.parse::<u64>().unwrap() > 0,
        "{reloading}"
    );
    while !told().starts_with("READY=1") {}
    gateway.signal("TERM");
    while !told().starts_with("STOPPING=1") {}
    assert!(gateway.wait().status.success());
}

#[test]
fn a_taken_admin_port_fails_the_start_and_says_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = format!("admin: {{ bind: {} }}\n{ANSWERING}", taken.local_addr().unwrap());
    let ended = Setup::new(&config).try_start().err().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        ended.err.contains("the admin interface can't listen at") && ended.err.contains("set `admin"),
        "{}",
        ended.err
    );
}

#[test]
fn the_admin_interface_answers_probes_and_refuses_web_pages() {
    let gateway = Setup::new(ANSWERING).start();
    assert_eq!(gateway.admin("GET", "/healthz").text(), "ok\n");
    assert_eq!(gateway.admin("GET", "/readyz").text(), "ready: generation 1\n");
    assert_eq!(gateway.admin("GET", "/nothing").status, 404);
    let wrong = gateway.admin("POST", "/metrics");
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("GET")));
    let ask = |asked| Http::connect(gateway.admin_at()).unwrap().ask(&asked).unwrap().status;
    assert_eq!(ask(request("GET", "/status").header("host", "rebound.example")), 421);
    let own = gateway.admin_at().to_string();
    assert_eq!(
        ask(request("POST", "/reload").header("host", &own).header("origin", "http://evil.example")),
        403
    );
}

#[test]
fn the_status_tells_what_runs() {
    let origin = Origin::start();
    let config =
        "plugins: [request_id, { name: greet, rhai: { file: greet.rhai } }]\npolicies: { dir: policies }\n";
    let gateway = Setup::new(config)
        .file("greet.rhai", "fn on_log(ctx) { }")
        .file("policies/10-more.rhai", "fn on_log(ctx) { }")
        .before(&origin)
        .start();
    let status = gateway.status();
    assert_eq!(
        (&status["generation"], &status["routes"], &status["last_error"]),
        (&json!(1), &json!(1), &Value::Null)
    );
    assert_eq!(status["listeners"][0]["addresses"][0]["actual"], gateway.address().to_string());
    assert_eq!(status["upstreams"][0]["endpoints"][0]["address"], origin.address().to_string());
    let plugins: Vec<_> = status["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| (p["name"].clone(), p["kind"].clone()))
        .collect();
    assert_eq!(
        plugins,
        [("request_id", "request_id"), ("greet", "rhai"), ("more", "rhai")]
            .map(|(name, kind)| (json!(name), json!(kind)))
    );
    assert!(status["plugins"][2]["file"].as_str().unwrap().ends_with("10-more.rhai"));
    assert!(status["drift"].as_array().unwrap().is_empty());
}

#[test]
fn the_metrics_page_is_well_formed_and_counts() {
    let origin = Origin::start();
    let gateway = Setup::new("plugins: [{ rhai: { file: a.rhai } }]\n")
        .file(
            "a.rhai",
            "fn on_request(ctx) { if ctx.request.path == \"/no\" { return deny(403, \"a.no\"); } }",
        )
        .before(&origin)
        .start();
    (0..3).for_each(|_| assert_eq!(gateway.get("/").status, 200));
    assert_eq!(gateway.get("/no").status, 403);
    let counted = |class| gateway.metric("portcullis_responses_total", &["route=\"all\"", class]);
    until("all to be counted", || counted("class=\"4xx\"") == 1.0);
    assert_eq!(counted("class=\"2xx\""), 3.0);
    assert_eq!(gateway.metric("portcullis_plugin_responses_total", &["plugin=\"rhai\""]), 1.0);
    assert_eq!(gateway.metric("portcullis_upstream_attempts_total", &["upstream=\"origin\""]), 3.0);
    let page = gateway.admin("GET", "/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_well_formed(&page.text());
}

/// Every sample belongs to a family with help and type, buckets only grow, and the last is the count.
fn assert_well_formed(page: &str) {
    let mut typed = BTreeSet::new();
    let mut bucket: Option<(String, f64)> = None;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.split(' ');
            let (what, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(matches!(what, "HELP" | "TYPE") && words.next().is_some(), "{line}");
            if what == "TYPE" {
                assert!(typed.insert(name.to_owned()), "twice: {line}");
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        let name = series.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        assert!(typed.contains(name) || family.is_some_and(|family| typed.contains(family)), "{line}");
        if let Some((labels, _)) = series.split_once("le=\"") {
            let grows = bucket.as_ref().is_none_or(|(known, below)| known != labels || value >= *below);
            assert!(grows, "a bucket shrinks: {line}");
            bucket = Some((labels.to_owned(), value));
        } else if name.ends_with("_count") {
            assert_eq!(bucket.take().map(|(_, last)| last), Some(value), "{line}");
        }
    }
    assert!(typed.len() > 15, "{typed:?}");
}

#[test]
fn the_status_command_asks_a_running_gateway() {
    let gateway =
        Setup::new("plugins: [{ rhai: { file: a.rhai } }]\nroutes: [{ respond: { status: 204 } }]\n")
            .file("a.rhai", "fn on_log(ctx) { }")
            .start();
    let admin = gateway.admin_at().to_string();
    let good = run(&["status", "--admin", &admin]);
    assert!(good.status.success() && good.out.starts_with("generation  1 "), "{good:?}");
    gateway.edit("a.rhai", "fn on_log(ctx) {");
    gateway.wait_refused();
    let refused = run(&["status", "--admin", &admin]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.out.contains("was refused") && refused.out.contains("a.rhai:1:"), "{}", refused.out);
    gateway.signal("TERM");
    gateway.wait();
    let gone = run(&["status", "--admin", &admin]);
    assert!(gone.status.code() == Some(1) && gone.err.contains("is the gateway running?"), "{gone:?}");
}

#[test]
fn access_log_files_are_opened_anew_at_a_hangup() {
    let gateway = Setup::new(
        "plugins: [{ access_log: { target: access.log } }]\nroutes: [{ respond: { status: 204 } }]\n",
    )
    .start();
    gateway.get("/before");
    gateway.logged_path("/before");
    fs::rename(gateway.dir().join("access.log"), gateway.dir().join("access.log.1")).unwrap();
    gateway.signal("HUP");
    gateway.wait_status("the signal to be seen", |status| status["reloads"]["unchanged"] == 1);
    gateway.get("/after");
    gateway.logged_path("/after");
    let rotated = fs::read_to_string(gateway.dir().join("access.log.1")).unwrap();
    assert!(rotated.contains("/before") && !rotated.contains("/after"), "{rotated}");
}

#[test]
fn an_access_log_on_standard_output_is_one_json_object_a_line() {
    let gateway = Setup::new("plugins: [access_log]\nroutes: [{ respond: { status: 204 } }]\n").start();
    gateway.get("/a");
    gateway.get("/b%0Anew%22line");
    let lines: Vec<Value> = wait_for("two lines", || {
        let lines: Vec<_> =
            gateway.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines.len() == 2).then_some(lines)
    });
    assert_eq!(lines[0]["path"], "/a");
}

#[test]
fn kinds_schema_and_completions_are_printed() {
    let list = run(&["plugins"]);
    for kind in ["access_log", "cors", "headers", "rhai", "wasm"] {
        assert!(list.out.lines().any(|line| line.starts_with(kind)), "{kind}: {}", list.out);
    }
    let schema: Value = serde_json::from_str(&run(&["schema"]).out).unwrap();
    assert!(schema["properties"]["routes"].is_object());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell]).out.contains("portcullis"), "{shell}");
    }
    let help = run(&["--help"]);
    assert!(help.status.success() && help.out.contains("Begin with:"), "{}", help.out);
    let unknown = run(&["runn"]);
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn a_new_script_works_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let made = run_in(dir.path(), &["new", "script", "my-rule"]);
    assert!(made.status.success(), "{made:?}");
    let script = fs::read_to_string(dir.path().join("my-rule.rhai")).unwrap();
    let origin = Origin::start();
    let gateway = Setup::new("policies: { dir: policies }\n")
        .file("policies/50-my-rule.rhai", script)
        .before(&origin)
        .start();
    assert_eq!(gateway.get("/").status, 200);
}
