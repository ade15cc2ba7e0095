//! What is remembered of requests: that it is true, that it says enough, that it does not say too much.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;

use portcullis_tests::tools::guest;
use portcullis_tests::{
    Answer, Gateway, Origin, Output, Setup, program, request, run, run_in, until, wait_for,
};
use serde_json::{Value, json};

const SCRIPT: &str = r#"// Refuses what is not its own.
fn on_request(ctx) {
    if ctx.request.path == "/secret" {
        return deny(403, "policy.secret");
    }
    if ctx.request.path == "/ruled" {
        ctx.rests_on("rule 7");
        return drop();
    }
    if ctx.request.path == "/broken" { throw "as told"; }
    ctx.request.headers["x-token"] = "hush-hush";
}
"#;

fn explain(gateway: &Gateway, arguments: &[&str]) -> Output {
    let admin = gateway.admin_at().to_string();
    run(&[&["explain", "--admin", &admin], arguments].concat())
}

/// The id that a refused client is told.
fn id(answer: &Answer) -> String {
    answer.json()["request_id"].as_str().unwrap().to_owned()
}

fn record(gateway: &Gateway, id: &str) -> Value {
    wait_for("the record", || {
        let answer = gateway.admin("GET", &format!("/records/{id}"));
        (answer.status == 200).then(|| answer.json())
    })
}

fn listed(gateway: &Gateway, query: &str) -> Vec<Value> {
    let answer = gateway.admin("GET", &format!("/records?{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json().as_array().unwrap().clone()
}

#[test]
fn a_refusal_is_explained_down_to_the_line_of_the_script() {
    let origin = Origin::start();
    let plugins = "
plugins:
  - request_id: {}
  - rhai: { file: policy.rhai }
";
    let gateway = Setup::new(plugins).file("policy.rhai", SCRIPT).before(&origin).start();
    let refused = id(&gateway.get("/secret"));
    let record = record(&gateway, &refused);
    assert_eq!(
        (&record["decided_by"]["by"], &record["decided_by"]["hook"], &record["decided_by"]["reason"]),
        (&json!("rhai"), &json!("on_request"), &json!("policy.secret"))
    );
    assert_eq!(record["decided_by"]["rule"], "policy.rhai:4:16");
    assert_eq!(
        (&record["status"], &record["end"], &record["upstream"]),
        (&json!(403), &json!("complete"), &json!(null))
    );
    let steps: Vec<_> =
        record["steps"].as_array().unwrap().iter().map(|step| (&step["plugin"], &step["verdict"])).collect();
    assert!(steps.contains(&(&json!("request_id"), &json!("continue"))), "{steps:?}");
    assert!(steps.contains(&(&json!("rhai"), &json!("respond"))), "{steps:?}");

    let told = explain(&gateway, &[&refused]);
    assert!(told.status.success(), "{told:?}");
    for said in
        ["GET gateway.test/secret", "403, complete", "policy.secret", "policy.rhai:4:16", "respond", &refused]
    {
        assert!(told.out.contains(said), "{said}: {}", told.out);
    }
    let list = explain(&gateway, &["--reason", "policy.secret"]);
    assert!(list.out.lines().count() == 2 && list.out.contains(&refused), "{}", list.out);
    let json = explain(&gateway, &["--json", &refused]);
    assert_eq!(serde_json::from_str::<Value>(&json.out).unwrap(), record);
}

#[test]
fn what_nobody_remembers_is_said_so() {
    let gateway = Setup::new("routes: [{ respond: { status: 204 } }]\n").start();
    let told = explain(&gateway, &["0123"]);
    assert!(told.status.code() == Some(1) && told.err.contains("no request with the id `0123`"), "{told:?}");
    let told = explain(&gateway, &["a/b"]);
    assert!(told.status.code() == Some(2) && told.err.contains("is no request id"), "{told:?}");
    let told = explain(&gateway, &[]);
    assert_eq!(told.out, "none is remembered\n");
    assert_eq!(gateway.admin("GET", "/records?colour=red").status, 400);
    assert_eq!(gateway.admin("POST", "/records/1").status, 405);
}

#[test]
fn a_rule_that_is_named_a_failure_and_what_passed_are_told() {
    let origin = Origin::start();
    let config = "
plugins:
  - request_id: { trust: true }
  - { name: lenient, on_error: allow, rhai: { file: policy.rhai } }
  - headers: { response: { set: { x-served-by: gateway } } }
";
    let gateway = Setup::new(config).file("policy.rhai", SCRIPT).before(&origin).start();
    let asked =
        |path: &str, id: &str| gateway.connect().ask(&request("GET", path).header("x-request-id", id));
    assert!(asked("/ruled", "one").is_err());
    let dropped = record(&gateway, "one");
    assert_eq!((&dropped["status"], &dropped["end"]), (&json!(null), &json!("refused")));
    assert_eq!(dropped["decided_by"]["rule"], "rule 7 (policy.rhai:8:16)");

    assert_eq!(asked("/broken", "two").unwrap().status, 200);
    let broken = record(&gateway, "two");
    assert_eq!(broken["decided_by"], Value::Null);
    let failed = &broken["steps"].as_array().unwrap()[1];
    assert_eq!(
        (&failed["plugin"], &failed["verdict"], &failed["reason"]),
        (&json!("lenient"), &json!("error"), &json!("plugin.trap"))
    );
    assert!(failed["error"].as_str().unwrap().starts_with("policy.rhai:10:"), "{failed}");
    assert!(failed["used"]["operations"].as_u64().unwrap() > 0, "{failed}");

    assert_eq!(asked("/fine?token=hush-hush", "three").unwrap().status, 200);
    let passed = record(&gateway, "three");
    assert_eq!(passed["upstream"]["name"], "origin");
    let changed: Vec<_> =
        passed["steps"].as_array().unwrap().iter().map(|step| step["changed"].clone()).collect();
    assert!(changed.contains(&json!(["request header x-token"])), "{changed:?}");
    assert!(changed.contains(&json!(["response header x-served-by"])), "{changed:?}");
    assert!(!passed.to_string().contains("hush-hush"), "{passed}");
    let ids =
        |query: &str| listed(&gateway, query).iter().map(|record| record["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(""), ["two", "one"]);
    assert_eq!(ids("last=1"), ["two"]);
    assert_eq!(ids("by=lenient"), ["one"]);
    assert_eq!(ids("client=192.0.2.1"), [] as [&str; 0]);
    assert_eq!(ids("passed=true&route=all&client=127.0.0.1"), ["three"]);
}

#[test]
fn a_step_that_took_too_long_is_told_as_such() {
    let origin = Origin::start();
    let config = "
plugins:
  - request_id: { trust: true }
  - { name: slow, timeout: 100ms, ext_authz: { upstream: origin, path: /hold, timeout: 1h } }
";
    let gateway = Setup::new(config).before(&origin).start();
    let sent = request("GET", "/a").header("x-request-id", "late");
    assert_eq!(gateway.connect().ask(&sent).unwrap().status, 500);
    let record = record(&gateway, "late");
    assert_eq!(
        (&record["decided_by"]["by"], &record["decided_by"]["reason"]),
        (&json!("slow"), &json!("plugin.timeout"))
    );
    let steps = record["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["plugin"] == "slow").unwrap();
    assert_eq!((&step["verdict"], &step["reason"]), (&json!("timeout"), &json!("plugin.timeout")));
    assert!(step["micros"].as_u64().unwrap() >= 100_000, "{step}");
    let told = explain(&gateway, &["late"]).out;
    assert!(told.contains("plugin.timeout"), "{told}");
}

/// CPU, in microseconds, that the modules below may use.
const CPU: u64 = 5000;
/// In whole ones of these CPU is counted, and the first may have begun before the call.
const TICK: u64 = 1000;

#[test]
fn what_a_step_used_of_its_budget_is_told_whatever_runs_it() {
    let modules = [
        ("component", "conformance", "config: { greeting: hello }"),
        ("handler", "http_wasm_handler", "config: plain"),
        ("filter", "proxy_wasm_guest", "config: plain"),
    ];
    let origin = Origin::start();
    let mut plugins = "plugins:\n  - request_id: { trust: true }\n".to_owned();
    let mut files = Vec::new();
    for (name, file, options) in modules {
        let Some(module) = guest(file) else { return };
        plugins += &format!(
            "  - {{ name: {name}, on_error: allow, wasm: {{ file: {file}.wasm, cpu: {CPU}us, {options} }} }}\n"
        );
        files.push((format!("{file}.wasm"), module));
    }
    plugins += "  - { name: script, rhai: { file: policy.rhai } }\n";
    let setup = Setup::new(&plugins).file("policy.rhai", SCRIPT);
    let setup = files.iter().fold(setup, |setup, (file, module)| setup.file(file, module));
    let gateway = setup.before(&origin).start();
    let sent = request("GET", "/secret").header("x-request-id", "used").header("x-do", "spin");
    assert_eq!(gateway.connect().ask(&sent).unwrap().status, 403);
    let record = record(&gateway, "used");
    let step = |name: &str| {
        let steps = record["steps"].as_array().unwrap();
        steps.iter().find(|step| step["plugin"] == name && step["hook"] == "on_request").unwrap().clone()
    };
    for (name, ..) in modules {
        let step = step(name);
        assert_eq!((&step["verdict"], &step["reason"]), (&json!("error"), &json!("plugin.budget")));
        let used = |what: &str| step["used"][what].as_u64().unwrap();
        assert!(
            used("cpu_micros") >= CPU && used("cpu_micros") <= step["micros"].as_u64().unwrap() + TICK,
            "{step}"
        );
        assert!(used("memory") >= 64 << 10 && used("operations") == 0, "{step}");
    }
    let script = step("script");
    assert!(script["used"]["operations"].as_u64().unwrap() > 0, "{script}");
    assert_eq!((&script["used"]["cpu_micros"], &script["used"]["memory"]), (&json!(0), &json!(0)));
    let told = explain(&gateway, &["used"]).out;
    assert!(told.contains("plugin.budget") && told.contains("operations"), "{told}");
}

#[test]
fn no_more_are_remembered_than_the_configuration_says() {
    let config = "
records: { refused: 3, passed: 2 }
routes: [{ match: { path: /fine }, respond: { status: 204 } }]
";
    let gateway = Setup::new(config).start();
    let ask = |path: &str| gateway.get(path);
    let refused: Vec<_> = (0..5).map(|_| id(&ask("/nowhere"))).collect();
    (0..5).for_each(|_| assert_eq!(ask("/fine").status, 204));
    let latest = || listed(&gateway, "").iter().map(|record| record["id"].clone()).collect::<Vec<_>>();
    until("the last to be remembered", || listed(&gateway, "passed=true").len() == 2);
    assert_eq!(latest(), [&*refused[4], &*refused[3], &*refused[2]]);
    gateway.replace("gateway.yaml", "refused: 3, passed: 2", "refused: 1, passed: 0");
    gateway.wait_generation(2);
    let last = id(&ask("/nowhere"));
    assert_eq!(ask("/fine").status, 204);
    until("what is too much to be forgotten", || {
        latest() == [&*last] && listed(&gateway, "passed=true").is_empty()
    });
}

#[test]
fn every_refusal_names_one_who_decided() {
    let origin = Origin::start();
    let config = format!(
        "
records: {{ refused: 20000, file: {{ path: records.jsonl, passed: 100% }} }}
limits: {{ body: 1KiB }}
plugins:
  - request_id: {{}}
  - ip_filter: {{ deny: [10.6.6.6], default: allow }}
  - {{ name: script, rhai: {{ file: policy.rhai }} }}
upstreams:
  origin: {{ endpoints: [\"http://{}\"] }}
  nobody: {{ endpoints: [\"http://127.0.0.1:1\"], retries: {{ attempts: 1 }} }}
routes:
  - {{ match: {{ path: /fine }}, upstream: origin }}
  - {{ match: {{ path: /nobody }}, upstream: nobody }}
  - {{ match: {{ path: /secret }}, upstream: origin }}
  - {{ match: {{ path: /ruled }}, upstream: origin }}
  - {{ match: {{ path: /broken }}, upstream: origin }}
  - match: {{ path: /limited }}
    plugins: [{{ rate_limit: {{ limits: [{{ name: few, key: client, token_bucket: {{ rate: 1/h, burst: 3 }} }}] }} }}]
    upstream: origin
  - match: {{ path: /get, methods: [GET] }}
    upstream: origin
",
        origin.address()
    );
    const ALL: usize = 10_000;
    let gateway = Setup::new(&config).file("policy.rhai", SCRIPT).start();
    let address = gateway.address();
    let half = |_| std::thread::spawn(move || ask_all(address, ALL / 2));
    let seen: Vec<(String, u16)> =
        [0, 1].map(half).into_iter().flat_map(|half| half.join().unwrap()).collect();
    let file = gateway.dir().join("records.jsonl");
    let lines = || std::fs::read_to_string(&file).unwrap_or_default();
    until("all records", || lines().lines().count() >= ALL);
    let records: Vec<Value> = lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: BTreeSet<&str> = records.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!((records.len(), ids.len()), (ALL, ALL));

    assert_eq!((listed(&gateway, "").len(), listed(&gateway, "last=5000").len()), (20, 1000));

    let mut reasons = BTreeSet::new();
    for record in &records {
        let is_refusal = record["status"].as_u64().is_none_or(|status| status >= 400);
        let decision = &record["decided_by"];
        assert_eq!(is_refusal, decision["reason"].is_string(), "{record}");
        let deciding: Vec<_> = record["steps"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|step| {
                ["respond", "drop", "error", "timeout"].contains(&step["verdict"].as_str().unwrap())
            })
            .collect();
        let by = decision["by"].as_str().unwrap_or_default();
        match deciding[..] {
            [] => assert!(!is_refusal || by.starts_with("core."), "{record}"),
            [step] => assert_eq!(
                (&step["plugin"], &step["reason"]),
                (&decision["by"], &decision["reason"]),
                "{record}"
            ),
            _ => panic!("more than one decided: {record}"),
        }
        reasons.extend(decision["reason"].as_str());
    }
    let statuses = |status: u16| seen.iter().filter(|(_, told)| *told == status).count();
    let of = |status: u16| records.iter().filter(|record| record["status"] == status).count();
    for status in [200, 400, 403, 404, 405, 413, 429, 500, 502] {
        assert_eq!((statuses(status), statuses(status) > 0), (of(status), true), "{status}");
    }
    for reason in ["policy.secret", "plugin.trap", "rate_limit.exceeded", "dropped"] {
        assert!(reasons.contains(reason), "{reasons:?}");
    }
}

/// Asks so many of all kinds; what each was told, with 0 for nothing.
fn ask_all(address: SocketAddr, count: usize) -> Vec<(String, u16)> {
    let get = |path: &str| request("GET", path);
    let kinds = [
        get("/fine"),
        get("/secret"),
        get("/ruled"),
        get("/broken"),
        get("/nowhere"),
        get("/nobody"),
        get("/limited"),
        request("PUT", "/get"),
        get("/fine").header("transfer-encoding", "gzip, chunked, chunked"),
        request("POST", "/fine").body("x".repeat(2000)),
    ];
    let mut http = None;
    let told = (0..count).map(|at| {
        let kind = &kinds[at % kinds.len()];
        let mut connection = http.take().unwrap_or_else(|| portcullis_tests::Http::connect(address).unwrap());
        let answer = connection.ask(kind);
        if let Ok(answer) = &answer
            && answer.header("connection") != Some("close")
        {
            http = Some(connection);
        }
        (format!("{kind:?}"), answer.map_or(0, |answer| answer.status))
    });
    told.collect()
}

#[test]
fn a_file_has_what_was_refused_and_a_share_of_the_rest() {
    let config = "
records: { refused: 0, passed: 0, file: { path: records.jsonl } }
routes: [{ match: { path: /fine }, respond: { status: 204 } }]
";
    let gateway = Setup::new(config).start();
    let file = gateway.dir().join("records.jsonl");
    let paths = || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.map(|record| record["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for path in ["/fine", "/a", "/fine", "/b"] {
        gateway.get(path);
    }
    until("what was refused to be written", || paths() == ["/a", "/b"]);
    gateway.replace("gateway.yaml", "path: records.jsonl", "path: records.jsonl, passed: 50%");
    gateway.wait_generation(2);
    (0..200).for_each(|_| _ = gateway.get("/fine"));
    gateway.get("/c");
    until("the last to be written", || paths().last().is_some_and(|path| path == "/c"));
    let share = paths().len() - 3;
    assert!((50..150).contains(&share), "{share} of 200");
    assert!(listed(&gateway, "").is_empty() && listed(&gateway, "passed=true").is_empty());
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_with_its_place() {
    let setup = Setup::new(
        "records: { file: { path: /nowhere/records.jsonl } }\nroutes: [{ respond: { status: 204 } }]\n",
    );
    let file = setup.dir().join("gateway.yaml");
    std::fs::write(
        &file,
        "records: { file: { path: /nowhere/records.jsonl } }\nlisteners: [{ bind: 127.0.0.1:0 }]\n",
    )
    .unwrap();
    let output = Command::new(program()).arg("run").arg(&file).env("NO_COLOR", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(2) && said.contains("records.file.path") && said.contains(":1:26"),
        "{said}"
    );
}

#[test]
fn a_dry_run_tells_what_would_become_of_a_request() {
    // Nothing of what the configuration names is met: the port is taken, and nobody is behind the upstream.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = format!(
        "
listeners:
  - {{ name: public, bind: {taken} }}
  - {{ name: internal, bind: 127.0.0.1:1 }}
plugins:
  - rhai: {{ file: policy.rhai }}
  - {{ name: office, ip_filter: {{ deny: [192.0.2.0/24] }} }}
upstreams:
  api: {{ endpoints: [\"https://api.test:1\"], health: {{ path: /healthz }} }}
routes:
  - {{ name: orders, match: {{ hosts: [api.test], path: \"/orders/{{id}}\" }}, rewrite: {{ strip_prefix: /orders }}, upstream: api }}
",
        taken = taken.local_addr().unwrap()
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("gateway.yaml"), config).unwrap();
    std::fs::write(dir.path().join("policy.rhai"), SCRIPT).unwrap();
    let dry = |arguments: &[&str]| {
        run_in(dir.path(), &[&["explain", "-c", "gateway.yaml", "--dry-run"], arguments].concat())
    };
    let passed = dry(&["POST", "https://api.test/orders/7?x=1", "-H", "x-tenant: blue", "-d", "body"]);
    assert!(passed.status.success(), "{passed:?}");
    for said in [
        "answer      200",
        "route       orders",
        "to api: POST /7?x=1",
        "x-tenant: blue",
        "x-token: hush-hush",
    ] {
        assert!(passed.out.contains(said), "{said}: {}", passed.out);
    }
    let refused =
        dry(&["GET", "https://api.test/orders/7", "--client", "192.0.2.9", "--listener", "internal"]);
    for said in ["answer      403", "office (ip_filter", "client      192.0.2.9 at internal"] {
        assert!(refused.out.contains(said), "{said}: {}", refused.out);
    }
    assert!(!refused.out.contains("to api"), "{}", refused.out);
    assert!(
        dry(&["GET", "https://other.test/"]).out.contains("route.none")
            || dry(&["GET", "https://other.test/"]).out.contains("404")
    );
    let json = dry(&["GET", "/secret", "--json"]);
    let record: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(record["decided_by"]["rule"], "policy.rhai:4:16");

    let unknown = dry(&["GET", "/", "--listener", "public2"]);
    assert!(
        unknown.status.code() == Some(1) && unknown.err.contains("there is public, internal"),
        "{unknown:?}"
    );
    let wrong = dry(&["GET", "/", "-H", "nonsense"]);
    assert!(wrong.status.code() == Some(2) && wrong.err.contains("NAME: VALUE"), "{wrong:?}");
    std::fs::write(dir.path().join("policy.rhai"), "fn on_request(ctx) { let").unwrap();
    let broken = dry(&["GET", "/"]);
    assert!(broken.status.code() == Some(2) && broken.err.contains("policy.rhai:1"), "{broken:?}");
}
