//! Tests of policies: how they are run, what they say, and that a reload has to pass them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use portcullis_tests::tools::guest;
use portcullis_tests::{Gateway, Origin, Output, Setup, program, repository, request, run_in, until};
use serde_json::Value;
use tempfile::TempDir;

/// Lets in who has a key and leaves what it knows of him.
const GUARD: &str = r#"fn on_request(ctx) {
    if ctx.request.headers["x-key"] != config.key {
        return deny(401, "guard.key");
    }
    ctx.request.headers["x-caller"] = ctx.principal?.id ?? "nobody";
    ctx.request.path = "/v2" + ctx.request.path;
    ctx.facts["guarded"] = true;
}
fn on_response(ctx) {
    ctx.response.headers["x-guarded"] = "yes";
}
"#;

/// A directory with these files.
fn site(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

/// What `portcullis test` says of a policy with these tests.
fn tested(policy: &str, tests: &str) -> Output {
    let site = site(&[("guard.rhai", policy), ("guard.test.yaml", tests)]);
    run_in(site.path(), &["test", "guard.test.yaml"])
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
}

#[test]
fn everything_that_can_be_expected_passes_where_it_is_so() {
    let tests = r#"
options: { config: { key: k } }
given: { facts: { before: [1, 2] } }
cases:
  - name: refuses
    request: { method: POST, path: /a?x=1, body: { a: 1 } }
    expect:
      verdict: respond
      status: 401
      reason: guard.key
      by: guard
      headers: { content-type: application/problem+json, x-other: { present: false }, x-guarded: { regex: "^y" } }
      upstreams: { origin: { times: 0 } }
  - name: lets in
    given:
      principal: { id: alice, roles: [admin] }
      facts: { more: true }
      upstreams: { origin: { status: 201, headers: { x-from: origin }, body: { made: 1 } } }
    request: { method: PUT, path: /a?x=1, headers: { x-key: k }, body: text, client: 203.0.113.9 }
    expect:
      verdict: continue
      status: 201
      headers: { x-from: origin, x-guarded: "yes", content-type: application/json }
      body: { made: 1 }
      upstreams:
        origin: { times: 1, method: PUT, path: /v2/a?x=1, headers: { x-caller: alice, x-forwarded-for: { regex: 203.0.113.9 } }, body: text }
      facts: { guarded: true, before: [1, 2], more: true }
      principal: alice
      budget: { operations: 1000 }
  - name: tells of an upstream that fails
    given: { upstreams: { origin: { fails: true } } }
    request: { headers: { x-key: k } }
    expect: { status: 502, by: core.upstream }
"#;
    let said = tested(GUARD, tests);
    assert!(said.status.success(), "{}{}", said.out, said.err);
    assert_says(
        &said.out,
        &["guard.test.yaml (", "ok    refuses (", "ok    lets in (", "3 passed, 0 failed, in "],
    );
}

#[test]
fn what_is_not_as_expected_is_shown_beside_what_is() {
    let tests = r#"
options: { config: { key: k } }
cases:
  - name: wrong in all
    request: { headers: { x-key: k } }
    given: { upstreams: { origin: { body: "one\ntwo\nthree\n" } } }
    expect:
      verdict: respond
      status: 403
      reason: guard.other
      headers: { x-guarded: "no", x-none: { present: true } }
      body: "one\n2\nthree\n"
      upstreams: { origin: { path: /a, times: 2 } }
      facts: { guarded: false }
      budget: { operations: 1 }
  - name: right
    expect: { status: 401 }
"#;
    let said = tested(GUARD, tests);
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    assert_says(
        &said.out,
        &[
            "FAIL  wrong in all",
            "ok    right",
            "verdict at guard.test.yaml:8\n          expected  respond\n          got       continue\n",
            "status at guard.test.yaml:9\n          expected  403\n          got       200\n",
            "reason at ",
            "headers.x-guarded at ",
            "expected  any value\n          got       none",
            "-2\n          +two\n",
            "upstreams.origin.path at ",
            "upstreams.origin.times at ",
            "facts.guarded at ",
            "expected  at most 1 operations",
            "of guard in on_request",
            // How it came to it.
            "guard (rhai ",
            "changed request header x-caller, request path",
            "1 passed, 1 failed",
        ],
    );
    assert!(!said.out.contains("core.given"), "{}", said.out);
}

/// Counts in a limit, which a plugin of a policy alone cannot.
const LIMITED: &str = "
listeners: [{ name: main, bind: 127.0.0.1:8080 }]
upstreams: { api: { endpoints: ['https://api.invalid'] }, authz: { endpoints: ['http://authz.invalid'] } }
plugins:
  - rate_limit: { limits: [{ key: client, token_bucket: { rate: 2/min, burst: 2 } }] }
routes:
  - { name: open, match: { prefix: /open }, upstream: api }
  - { name: asked, upstream: api, plugins: [{ ext_authz: { upstream: authz } }] }
";

#[test]
fn a_whole_configuration_is_tested_with_its_routes_and_upstreams() {
    let tests = "
cases:
  - name: a route without questions
    request: { path: /open/x }
    expect: { status: 200, upstreams: { api: { path: /open/x }, authz: { times: 0 } } }
  - name: the one who is asked lets in
    request: { path: /x }
    expect: { status: 200, upstreams: { authz: { times: 1 }, api: { times: 1 } } }
  - name: the one who is asked does not
    given: { upstreams: { authz: { status: 403 } } }
    request: { path: /x }
    expect: { status: 403, by: asked/ext_authz, upstreams: { api: { times: 0 } } }
";
    let site = site(&[("gw.yaml", LIMITED), ("gw.test.yaml", tests)]);
    let said = run_in(site.path(), &["test", "gw.test.yaml"]);
    assert!(said.status.success(), "{}{}", said.out, said.err);
    assert_says(&said.out, &["3 passed, 0 failed"]);
}

#[test]
fn steps_share_state_and_move_the_clock_and_cases_share_nothing() {
    let tests = "
cases:
  - name: a limit that fills up again
    steps:
      - { times: 2, request: { path: /open }, expect: { status: 200 } }
      - { request: { path: /open }, expect: { status: 429, reason: rate_limit.exceeded } }
      - { request: { path: /open, client: 198.51.100.1 }, expect: { status: 200 } }
      - { after: 29s, request: { path: /open }, expect: { status: 429 } }
      - { after: 1s, request: { path: /open }, expect: { status: 200 } }
      - { after: 1h, times: 2, request: { path: /open }, expect: { status: 200 } }
  - name: another case begins anew
    steps: [{ times: 2, request: { path: /open }, expect: { status: 200 } }]
";
    let site = site(&[("gw.yaml", LIMITED), ("gw.test.yaml", tests)]);
    let said = run_in(site.path(), &["test", "gw.test.yaml"]);
    assert!(said.status.success(), "{}{}", said.out, said.err);
}

#[test]
fn a_step_that_fails_is_named_and_is_the_last() {
    let tests = "
cases:
  - name: three
    steps:
      - { times: 2, request: { path: /open }, expect: { status: 200 } }
      - { request: { path: /open }, expect: { status: 200 } }
      - { request: { path: /open }, expect: { status: 500 } }
";
    let site = site(&[("gw.yaml", LIMITED), ("gw.test.yaml", tests)]);
    let said = run_in(site.path(), &["test", "gw.test.yaml"]);
    assert_eq!(said.status.code(), Some(1));
    assert_says(&said.out, &["status at gw.test.yaml:6", "expected  200", "got       429"]);
    assert!(!said.out.contains("500"), "{}", said.out);
}

#[test]
fn policies_that_drop_are_seen_to_at_every_hook() {
    let dropper = "fn on_connection(conn) { if conn.address == \"203.0.113.9\" { return drop(); } }\n\
                   fn on_request(ctx) { if ctx.request.path == \"/drop\" { return drop(); } }\n";
    let tests = "
cases:
  - { name: a connection, request: { client: 203.0.113.9 }, expect: { verdict: drop } }
  - { name: a request, request: { path: /drop }, expect: { verdict: drop, by: guard } }
  - { name: neither, expect: { verdict: continue } }
";
    let said = tested(dropper, tests);
    assert!(said.status.success(), "{}{}", said.out, said.err);
}

#[test]
fn a_module_is_tested_like_a_script() {
    let Some(module) = guest("block_path") else { return };
    let tests = "
options: { config: { prefixes: [/internal] } }
cases:
  - { name: refuses, request: { path: /internal/x }, expect: { status: 403, by: block } }
  - { name: lets pass, request: { path: /public }, expect: { verdict: continue } }
  - { name: lets another pass, request: { path: /public/2 }, expect: { verdict: continue } }
";
    let site = site(&[("50-block.test.yaml", tests)]);
    fs::write(site.path().join("50-block.wasm"), module).unwrap();
    let said = run_in(site.path(), &["test", "."]);
    assert!(said.status.success(), "{}{}", said.out, said.err);
}

#[test]
fn a_policy_in_shadow_is_tested_as_if_it_decided() {
    let files = [
        ("guard.rhai", GUARD),
        ("guard.yaml", "mode: shadow\nconfig: { key: k }\n"),
        ("guard.test.yaml", "cases: [{ name: refuses, expect: { status: 401 } }]\n"),
    ];
    let site = site(&files);
    let said = run_in(site.path(), &["test", "guard.test.yaml"]);
    assert!(said.status.success(), "{}{}", said.out, said.err);
}

#[test]
fn files_that_are_wrong_say_where() {
    let cases = [
        ("cases: [{ name: a, expect: { stauts: 1 } }]", vec!["guard.test.yaml:1:", "did you mean `status`?"]),
        ("cases: []", vec!["expected at least one case"]),
        ("policy: none.rhai\ncases: [{ name: a, expect: {} }]", vec!["none.rhai` does not exist"]),
        (
            "options: { limits: { operations: 0 } }\ncases: [{ name: a, expect: {} }]",
            vec!["guard.test.yaml:1:", "operations"],
        ),
        ("options: { name: x }\ncases: [{ name: a, expect: {} }]", vec!["rename the file"]),
    ];
    for (tests, parts) in cases {
        let said = tested(GUARD, tests);
        assert_eq!(said.status.code(), Some(2), "{tests}: {}{}", said.out, said.err);
        assert_says(&said.out, &parts);
        assert_says(&said.out, &["0 passed, 0 failed, 1 could not be run"]);
    }
    let site = site(&[("alone.test.yaml", "cases: [{ name: a, expect: {} }]")]);
    let said = run_in(site.path(), &["test"]);
    assert_says(&said.out, &["there is nothing beside it to be tested", "`.rhai` or `.wasm` or `.yaml`"]);
    let said = run_in(Path::new("/"), &["test", "/nothing/here"]);
    assert_eq!(said.status.code(), Some(2));
    assert_says(&said.err, &["there is no `/nothing/here`"]);
}

#[test]
fn what_cannot_be_asked_is_a_failure_that_says_why() {
    let tests = "
options: { config: { key: k } }
cases:
  - { name: no listener, request: { listener: other }, expect: {} }
  - { name: no header, request: { headers: { x-a: \"a\\nb\" } }, expect: {} }
";
    let said = tested(GUARD, tests);
    assert_eq!(said.status.code(), Some(1), "{}", said.out);
    assert_says(&said.out, &["there is no listener `other`; there is main", "`x-a` cannot have this value"]);
    let tests =
        "cases: [{ name: a, given: { upstreams: { other: {} } }, request: { path: /open }, expect: {} }]\n";
    let site = site(&[("gw.yaml", LIMITED), ("gw.test.yaml", tests)]);
    let said = run_in(site.path(), &["test", "gw.test.yaml"]);
    assert_says(&said.out, &["there is no upstream `other`; there is `api`, `authz`"]);
}

#[test]
fn reports_are_written_for_build_servers_and_editors() {
    let tests = "
options: { config: { key: k } }
cases:
  - { name: refuses, expect: { status: 401 } }
  - { name: fails, expect: { status: 200 } }
";
    let site = site(&[("guard.rhai", GUARD), ("guard.test.yaml", tests)]);
    let said =
        run_in(site.path(), &["test", ".", "--junit", "junit.xml", "--lcov", "lcov.info", "--coverage"]);
    assert_eq!(said.status.code(), Some(1));
    let junit = fs::read_to_string(site.path().join("junit.xml")).unwrap();
    assert_says(
        &junit,
        &[
            "<testsuite name=\"./guard.test.yaml\" tests=\"2\"",
            "failures=\"1\"",
            "testcase name=\"fails\"",
            "expected 200, got 401",
        ],
    );
    // Lines 5 to 7 are for who has the key.
    assert_says(&said.out, &["lines of scripts that ran", "50.0 %  3 of 6", "guard.rhai, not 5-7"]);
    let lcov = fs::read_to_string(site.path().join("lcov.info")).unwrap();
    assert_says(&lcov, &["guard.rhai\nDA:2,2\nDA:3,2\nDA:5,0\n", "LF:6\nLH:3\nend_of_record\n"]);
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_watch_runs_the_tests_again_when_something_changes() {
    let tests = "options: { config: { key: k } }\ncases: [{ name: refuses, expect: { status: 401 } }]\n";
    let site = site(&[("guard.rhai", GUARD), ("guard.test.yaml", tests)]);
    let mut command = Command::new(program());
    command.args(["test", "--watch", "."]).current_dir(site.path()).env("NO_COLOR", "1");
    let mut running = Running(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let mut until_line = |part: &str| {
        let found = lines.find(|line| line.as_ref().unwrap().contains(part));
        assert!(found.is_some(), "it ended before it said `{part}`");
    };
    until_line("1 passed, 0 failed");
    fs::write(site.path().join("guard.rhai"), GUARD.replace("401", "403")).unwrap();
    until_line("0 passed, 1 failed");
    fs::write(site.path().join("guard.rhai"), GUARD).unwrap();
    until_line("1 passed, 0 failed");
    fs::write(site.path().join("other.test.yaml"), tests.replace("options", "policy: guard.rhai\noptions"))
        .unwrap();
    until_line("2 passed, 0 failed");
}

#[test]
fn every_shipped_script_has_tests_that_run_all_of_its_lines() {
    let scripts = repository().join("scripts");
    for entry in fs::read_dir(&scripts).unwrap() {
        let path = entry.unwrap().path();
        let is_script = path.extension().is_some_and(|ending| ending == "rhai");
        assert!(!is_script || path.with_extension("test.yaml").is_file(), "{} has no tests", path.display());
    }
    let said = run_in(&repository(), &["test", "scripts", "--coverage"]);
    assert!(said.status.success(), "{}{}", said.out, said.err);
    let covered = said.out.lines().filter(|line| line.contains(" %  "));
    let missed: Vec<_> = covered.filter(|line| !line.contains("100.0 %")).collect();
    assert!(missed.is_empty(), "{missed:#?}");
}

const ONE_POLICY: &str = "policies: { dir: policies }\nroutes: [{ respond: { status: 204 } }]\n";

const DENIES: &str = "fn on_request(ctx) { return deny(403, \"test.denied\"); }\n";

const EXPECTS_403: &str = "cases:\n  - name: it denies\n    expect: { status: 403 }\n";

fn guarded(config: &str) -> Setup {
    Setup::new(config).file("policies/10-deny.rhai", DENIES).file("policies/10-deny.test.yaml", EXPECTS_403)
}

#[test]
fn a_reload_whose_policy_fails_its_tests_is_refused_and_the_old_one_serves() {
    let gateway = guarded(ONE_POLICY).start();
    assert_eq!(gateway.get("/").status, 403);
    gateway.edit("policies/10-deny.rhai", DENIES.replace("403", "418"));
    let why = gateway.wait_refused();
    assert_says(&why, &["10-deny.test.yaml:3:23", "the test `it denies` fails", "expected 403, got 418"]);
    assert_eq!((gateway.get("/").status, gateway.generation()), (403, 1));
    assert_says(&gateway.admin("GET", "/readyz").text(), &["the test `it denies` fails"]);
    assert_eq!(gateway.metric("portcullis_reload_refused", &[]), 1.0);
    until("the refusal in the log", || gateway.log().contains("the test `it denies` fails"));

    // Who changes his mind changes both.
    gateway.edit("policies/10-deny.test.yaml", EXPECTS_403.replace("403", "418"));
    gateway.wait_status("the other status", |status| status["last_error"].is_null());
    assert_eq!(gateway.get("/").status, 418);
}

#[test]
fn a_module_of_any_kind_that_fails_its_tests_is_refused_and_the_old_one_serves() {
    // It lets everything pass.
    let idle = r#"(module (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1")))"#;
    let bare =
        "cases: [{ name: refuses, request: { headers: { x-do: refuse } }, expect: { status: 429 } }]\n";
    let deny = "options: { config: { greeting: hello } }\n\
        cases: [{ name: refuses, request: { headers: { x-do: deny } }, expect: { status: 403 } }]\n";
    for (name, act, status, tests) in [
        ("conformance", "deny", 403, deny),
        ("http_wasm_handler", "refuse", 429, bare),
        ("proxy_wasm_guest", "refuse", 429, bare),
    ] {
        let Some(module) = guest(name) else { return };
        let setup = Setup::new(ONE_POLICY)
            .file("policies/10-it.wasm", module)
            .file("policies/10-it.test.yaml", tests);
        let setup = if name == "conformance" {
            setup.file("policies/10-it.yaml", "config: { greeting: hello }\n")
        } else {
            setup
        };
        let gateway = setup.start();
        let asked = || gateway.ask(&request("GET", "/").header("x-do", act)).status;
        assert_eq!(asked(), status, "{name}");
        gateway.edit("policies/10-it.wasm", wat::parse_str(idle).unwrap());
        assert_says(&gateway.wait_refused(), &["10-it.test.yaml", "the test `refuses` fails"]);
        assert_eq!((asked(), gateway.generation()), (status, 1), "{name}");
    }
}

#[test]
fn tests_that_are_dropped_in_hold_for_what_runs() {
    let gateway = Setup::new(ONE_POLICY).file("policies/10-deny.rhai", DENIES).start();
    gateway.edit("policies/10-deny.test.yaml", EXPECTS_403.replace("403", "200"));
    assert_says(&gateway.wait_refused(), &["expected 200, got 403"]);
    gateway.remove("policies/10-deny.test.yaml");
    gateway.wait_status("what runs", |status| status["last_error"].is_null());
    assert_eq!(gateway.generation(), 1);
}

#[test]
fn data_applies_while_a_policy_fails_its_tests() {
    let config = "
policies: { dir: policies }
plugins: [{ ip_filter: { files: { deny: [denied.txt] }, default: allow } }]
routes: [{ respond: { status: 204 } }]
";
    let gateway = guarded(config).file("denied.txt", "203.0.113.9\n").start();
    assert_eq!(gateway.get("/").status, 403);
    gateway.edit("policies/10-deny.rhai", DENIES.replace("403", "418"));
    gateway.wait_refused();
    let id = |gateway: &Gateway| gateway.status()["generation"].as_u64();
    let before = id(&gateway);
    gateway.edit("denied.txt", "127.0.0.1\n");
    gateway.wait_status("the list", |status| status["generation"].as_u64() > before);
    assert!(!gateway.status()["last_error"].is_null());
    let answer = gateway.get("/");
    assert_eq!(answer.status, 403);
    let record = gateway.admin("GET", "/records?last=1").json();
    assert_eq!(record[0]["decided_by"]["by"], "ip_filter", "{record}");
}

#[test]
fn tests_of_the_whole_configuration_gate_it_too() {
    let tests = "cases:\n  - name: it answers\n    expect: { status: 204, by: core.respond }\n";
    let gateway =
        guarded("routes: [{ respond: { status: 204 } }]\n").file("gateway.test.yaml", tests).start();
    gateway.replace("gateway.yaml", "204", "205");
    assert_says(&gateway.wait_refused(), &["gateway.test.yaml:3:", "expected 204, got 205"]);
    assert_eq!(gateway.get("/").status, 204);
}

#[test]
fn a_start_with_failing_tests_fails_or_serves_what_was_good_last() {
    let setup = guarded(ONE_POLICY).start().stop();
    let setup = setup.file("policies/10-deny.rhai", DENIES.replace("403", "418"));
    let dir = setup.dir().to_owned();
    let gateway = setup.arguments(&["run", "--last-good", "gateway.yaml"]).start();
    assert_eq!(gateway.get("/").status, 403);
    assert_says(&gateway.admin("GET", "/readyz").text(), &["the test `it denies` fails"]);
    let checked = run_in(&dir, &["check", "gateway.yaml"]);
    assert_eq!(checked.status.code(), Some(2));
    assert_says(&checked.err, &["the test `it denies` fails: cases[0].expect.status: expected 403, got 418"]);
    let setup = gateway.stop().arguments(&["run", "gateway.yaml"]);
    let ended = setup.try_start().err().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert_says(&ended.err, &["the test `it denies` fails"]);
}

#[test]
fn tests_may_warn_or_stay_silent() {
    let failing = EXPECTS_403.replace("403", "200");
    let config = format!("{ONE_POLICY}reload: {{ tests: warn }}\n");
    let gateway = guarded(&config).file("policies/10-deny.test.yaml", failing).start();
    assert_eq!(gateway.get("/").status, 403);
    assert_says(&gateway.status()["warnings"].to_string(), &["the test `it denies` fails"]);
    gateway.replace("gateway.yaml", "warn", "off");
    let status = gateway.wait_status("no warning", |status| status["generation"] == 2);
    assert_eq!(status["warnings"], Value::Array(Vec::new()));
}

#[test]
fn tests_have_a_time_to_end_in() {
    let config = format!("{ONE_POLICY}reload: {{ timeout: 1ms }}\n");
    let ended = guarded(&config).try_start().err().unwrap();
    assert_says(
        &ended.err,
        &["gateway.yaml:", "the policies' tests take longer than 1ms", "portcullis test"],
    );
}

#[test]
fn what_tests_log_is_not_in_the_gateways_log() {
    let noisy =
        "fn on_request(ctx) { log(\"warn\", \"said by a test\"); return deny(403, \"test.denied\"); }\n";
    let gateway = guarded(ONE_POLICY).file("policies/10-deny.rhai", noisy).start();
    assert!(!gateway.log().contains("said by a test"), "{}", gateway.log());
    gateway.get("/");
    until("what a request says", || gateway.log().contains("said by a test"));
}

#[test]
fn the_schema_of_tests_can_be_had() {
    let schema: Value = serde_json::from_str(&run_in(Path::new("/"), &["schema", "--tests"]).out).unwrap();
    assert_eq!(schema["title"], "Portcullis policy tests");
    assert!(schema["$defs"]["Expect"]["properties"]["budget"].is_object());
}

#[test]
fn requests_under_way_do_not_notice_that_policies_are_tested() {
    let origin = Origin::start();
    let gateway = guarded("policies: { dir: policies }\n")
        .file("policies/10-deny.rhai", "fn on_log(ctx) {}\n")
        .file("policies/10-deny.test.yaml", EXPECTS_403.replace("403", "200"))
        .before(&origin)
        .start();
    let mut http = gateway.connect();
    assert_eq!(http.ask(&request("GET", "/")).unwrap().status, 200);
    gateway.edit("policies/10-deny.rhai", DENIES);
    gateway.wait_refused();
    assert_eq!(http.ask(&request("GET", "/")).unwrap().status, 200);
    // What was made up has reached nobody.
    assert_eq!(origin.served(), 2);
}

#[test]
fn every_example_of_the_page_passes() {
    let page = fs::read_to_string(repository().join("docs/testing.md")).unwrap();
    let blocks = page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    // The first line of each says which file it is.
    let named = blocks.filter_map(|(language, text)| {
        let name = text.lines().next()?.trim_start_matches(['#', '/', ' ']).to_owned();
        (language == "rhai" || language == "yaml").then(|| (name, text.to_owned()))
    });
    let files: Vec<_> = named.collect();
    assert_eq!(files.len(), 5);
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let site = site(&files);
    let said = run_in(site.path(), &["test", "."]);
    assert!(said.status.success(), "{}{}", said.out, said.err);
    assert_says(&said.out, &["3 passed, 0 failed"]);
}

#[test]
fn a_policy_finds_what_is_given_in_the_store_and_the_time_that_is_given() {
    let policy = r#"fn on_request(ctx) {
        if store_get("banned") != () { return deny(403, "guard.banned"); }
        if store_add("seen", 1, 60) > 2 { store_set("banned", "yes", 60); }
        ctx.request.headers["x-now"] = `${now_ms()}`;
    }"#;
    let tests = r#"
options: { grants: { store: true, clock: true } }
cases:
  - name: who is banned
    given: { store: { guard: { banned: "by hand" } } }
    expect: { status: 403 }
  - name: who is not yet
    given: { time: "2026-01-31T00:00:00Z", store: { guard: { seen: "1" } } }
    steps:
      - { expect: { upstreams: { origin: { headers: { x-now: "1769817600000" } } } } }
      - { after: 1s, expect: { upstreams: { origin: { headers: { x-now: "1769817601000" } } } } }
      - { expect: { status: 403 } }
      - { after: 1h, expect: { status: 200 } }
  - name: nobody of that name
    given: { store: { other: { a: b } } }
    expect: {}
"#;
    let said = tested(policy, tests);
    assert_eq!(said.status.code(), Some(1), "{}{}", said.out, said.err);
    assert_says(&said.out, &["2 passed, 1 failed", "there is no plugin `other`"]);
}
