//! What scripts may do beside their exchange: granted and not, up to their bounds, and without holding up others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]

use portcullis_tests::{Answer, Gateway, Http, Origin, Setup, request, run_in, until};
use serde_json::json;

/// Does what a header tells it.
const POLICY: &str = r##"
fn on_request(ctx) {
    let told = ctx.request.headers["x-do"];
    let said = if told == "call" { http_get("idp", ctx.request.path).status }
        else if told == "tunnel" { http_send("idp", #{ method: "CONNECT" }).status }
        else if told == "trace" { http_send("idp", #{ method: "TRACE" }).status }
        else if told == "calls" { for n in 0..5 { http_get("idp", "/x"); } }
        else if told == "cache" { cache_set("a", "kept", 60); cache_get("a") }
        else if told == "cache many" {
            let kept = 0;
            for n in 0..100 { cache_set(`${n}`, "kept", 60); }
            for n in 0..100 { if cache_get(`${n}`) != () { kept += 1; } }
            kept < 50
        }
        else if told == "cache large" { let s = "x"; s.pad(70000, "x"); cache_set("a", s, 60); }
        else if told == "store" { store_add("n", 1, 60) }
        else if told == "limit" { rate_limit("login", ctx.client.address).allowed }
        else if told == "count" { count("logins", "ok"); }
        else if told == "labels" { for n in 0..150 { count("logins", `label ${n}`); } }
        else if told == "now" { now() > 1700000000 }
        else if told == "random" { random_hex(4).len() }
        else if told == "secret" { hmac_sha256_hex(secret("signing"), "text") };
    return respond(200, `${said}`);
}
"##;

const GRANTS: &str = "{ http: { upstreams: [idp], timeout: 20s, calls: 4 }, cache: { entries: 100 }, store: true, \
    rate_limit: { login: { rate: 1/h } }, metrics: [logins], clock: true, random: true, \
    secrets: { signing: env:SIGNING } }";

const SECRET: &str = "hunter2-and-more";

const UPSTREAMS: &str = "
upstreams:
  origin: { endpoints: [\"http://${ORIGIN}\"] }
  idp: { endpoints: [\"http://${IDP}\"] }
";

/// A gateway with the policy and these options of it.
fn with(options: &str, config: &str, idp: &Origin) -> (Origin, Gateway) {
    let origin = Origin::start();
    let config = format!(
        "{config}\nplugins:\n  - access_log: {{ target: access.log }}\n  - {{ name: policy, {options} }}\n{UPSTREAMS}"
    );
    let setup = Setup::new(&config).file("policy.rhai", POLICY).variable("IDP", idp.address());
    let gateway = setup.variable("SIGNING", SECRET).before(&origin).start();
    (origin, gateway)
}

fn granted(config: &str, idp: &Origin) -> (Origin, Gateway) {
    with(&format!("rhai: {{ file: policy.rhai, grants: {GRANTS}, limits: {{ time: 5s }} }}"), config, idp)
}

fn told(gateway: &Gateway, what: &str) -> Answer {
    gateway.ask(&request("GET", "/x").header("x-do", what))
}

/// Sends a request and does not wait for its answer.
fn asks(gateway: &Gateway, target: &str) -> Http {
    let mut client = gateway.connect();
    let head = format!("GET {target} HTTP/1.1\r\nhost: gateway.test\r\nx-do: call\r\n\r\n");
    client.write(head.as_bytes()).unwrap();
    client
}

#[test]
fn what_is_granted_works() {
    let idp = Origin::named("idp");
    let (_origin, gateway) = granted("", &idp);
    for (what, said) in [
        ("call", "200"),
        ("cache", "kept"),
        ("store", "1"),
        ("store", "2"),
        ("limit", "true"),
        ("limit", "false"),
        ("count", ""),
        ("now", "true"),
        ("random", "8"),
    ] {
        assert_eq!(told(&gateway, what).text(), said, "{what}");
    }
    assert_eq!(idp.served(), 1);
    let counted = ["plugin=\"policy\"", "name=\"logins\"", "label=\"ok\""];
    assert_eq!(gateway.metric("portcullis_plugin_rhai_counted_total", &counted), 1.0);
}

#[test]
fn what_is_not_granted_is_refused_with_the_grant_in_the_log() {
    let (_origin, gateway) = with("rhai: { file: policy.rhai }", "", &Origin::start());
    for (what, grant) in [
        ("call", "http: { upstreams: [..] }"),
        ("cache", "cache: {}"),
        ("store", "store: true"),
        ("limit", "rate_limit: { NAME: { rate: 10/s } }"),
        ("count", "metrics: [NAME]"),
        ("now", "clock: true"),
        ("random", "random: true"),
        ("secret", "secrets: { NAME: env:VARIABLE }"),
    ] {
        let answer = told(&gateway, what);
        assert_eq!(answer.status, 500, "{what}: {}", answer.text());
        assert!(!answer.text().contains("grant"), "{}", answer.text());
        let line = format!("add `grants: {{ {grant} }}`");
        until(&line, || gateway.log().contains(&line));
    }
}

#[test]
fn bounds_bite() {
    let idp = Origin::named("idp");
    let (_origin, gateway) = granted("", &idp);
    for (what, error) in [
        ("calls", "more than 4 calls in one call of a hook (`grants.http.calls`)"),
        ("cache large", "a value of more than 64KiB in the cache"),
        ("tunnel", "no answer from `idp`: CONNECT and TRACE are not sent"),
        ("trace", "no answer from `idp`: CONNECT and TRACE are not sent"),
    ] {
        assert_eq!(told(&gateway, what).status, 500);
        until(error, || gateway.log().contains(error));
    }
    assert_eq!(idp.served(), 4);
    assert_eq!(told(&gateway, "labels").status, 200);
    let page = gateway.admin("GET", "/metrics").text();
    let series = page.lines().filter(|line| line.starts_with("portcullis_plugin_rhai_counted_total{"));
    assert!((100..=101).contains(&series.count()), "{page}");
}

#[test]
fn each_number_of_a_grant_bites() {
    let idp = Origin::named("idp");
    let http = "{ upstreams: [idp], timeout: 200ms, calls: 5, max_body: 100B }";
    let limit = "{ login: { rate: 1/h, burst: 2 } }";
    let grants = format!("{{ http: {http}, cache: {{ entries: 10 }}, rate_limit: {limit} }}");
    let (_origin, gateway) = with(&format!("rhai: {{ file: policy.rhai, grants: {grants} }}"), "", &idp);
    let body = format!("/body/{}", "x".repeat(101));
    for (target, error) in [
        ("/hold", "no answer from `idp`: no answer in time"),
        (&*body, "no answer from `idp`: the answer is larger than allowed"),
    ] {
        assert_eq!(asks(&gateway, target).answer("GET").unwrap().status, 500);
        until(error, || gateway.log().contains(error));
    }
    assert_eq!(asks(&gateway, &body[..106]).answer("GET").unwrap().text(), "200");
    let limited: Vec<_> = (0..3).map(|_| told(&gateway, "limit").text()).collect();
    assert_eq!(limited, ["true", "true", "false"]);
    assert_eq!(told(&gateway, "cache many").text(), "true");
}

#[test]
fn a_call_that_stalls_holds_up_no_other_request_of_its_worker() {
    let idp = Origin::named("idp");
    let (_origin, gateway) = granted("workers: 1", &idp);
    let mut stalled = asks(&gateway, "/hold");
    until("the call is made", || idp.held() == 1);
    for what in ["call", "cache", "store", "now"].repeat(5) {
        assert_eq!(told(&gateway, what).status, 200);
    }
    assert_eq!(idp.held(), 1);
    idp.release();
    assert_eq!(stalled.answer("GET").unwrap().text(), "200");
}

#[test]
fn so_many_scripts_wait_and_no_more() {
    let idp = Origin::named("idp");
    let (_origin, gateway) = granted("workers: 1\nlimits: { waiting_scripts: 1 }", &idp);
    let mut clients: Vec<_> = (0..8).map(|_| asks(&gateway, "/hold")).collect();
    // One runs, four queue.
    let exhausted = || gateway.metric("portcullis_plugin_rhai_pool_exhausted_total", &[]);
    until("the others are refused", || exhausted() == 3.0 && idp.held() == 1);
    idp.release();
    let answers: Vec<_> = clients.iter_mut().map(|client| client.answer("GET").unwrap()).collect();
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 5);
    let refused = answers.iter().filter(|answer| answer.status == 503).count();
    assert_eq!((refused, exhausted()), (3, 3.0));
    gateway.logged("a refusal", |line| {
        line["reason"] == "rhai.pool_exhausted" && line["decided_by"] == "policy"
    });
}

#[test]
fn a_script_that_waits_too_long_gives_its_thread_back() {
    let idp = Origin::named("idp");
    let options = format!("timeout: 100ms, rhai: {{ file: policy.rhai, grants: {GRANTS} }}");
    let (_origin, gateway) = with(&options, "workers: 1\nlimits: { waiting_scripts: 1 }", &idp);
    assert_eq!(asks(&gateway, "/hold").answer("GET").unwrap().status, 500);
    let line = gateway.logged_path("/hold");
    assert_eq!((&line["reason"], &line["decided_by"]), (&json!("plugin.timeout"), &json!("policy")));
    assert_eq!(told(&gateway, "call").text(), "200");
}

#[test]
fn a_client_that_leaves_ends_what_its_script_waits_for() {
    let idp = Origin::named("idp");
    let (_origin, gateway) = granted("workers: 1\nlimits: { waiting_scripts: 1 }", &idp);
    let client = asks(&gateway, "/hold");
    until("the call is made", || idp.held() == 1);
    drop(client);
    until("the call is given up", || idp.connections() == 0);
    assert_eq!(told(&gateway, "call").text(), "200");
    assert_eq!(gateway.logged_path("/hold")["path"], "/hold");
}

#[test]
fn in_shadow_calls_are_made_where_that_is_granted() {
    for (grant, calls) in [("{ upstreams: [idp] }", 0), ("{ upstreams: [idp], shadow: true }", 1)] {
        let idp = Origin::named("idp");
        let options =
            format!("mode: shadow, rhai: {{ file: policy.rhai, grants: {{ http: {grant}, cache: {{}} }} }}");
        let (origin, gateway) = with(&options, "", &idp);
        assert_eq!(told(&gateway, "call").json()["path"], "/x");
        let verdict = if calls == 0 { "error" } else { "respond" };
        let labels = [&*format!("verdict=\"{verdict}\""), "plugin=\"policy\""];
        until("its verdict is counted", || {
            gateway.metric("portcullis_shadow_verdicts_total", &labels) == 1.0
        });
        assert_eq!((idp.served(), origin.served()), (calls, 1));
    }
}

#[test]
fn a_secret_is_nowhere_to_be_read() {
    let script = r##"
fn on_request(ctx) {
    let key = secret("signing");
    print(key); debug(key); log("warn", `${key}`);
    ctx.facts["key"] = key.to_string();
    ctx.request.headers["x-key"] = `${key}`;
    try { ctx.facts["json"] = json_stringify(#{ key: key }); } catch (error) { log(`${error}`); }
    let sent = http_send("idp", #{ headers: #{ authorization: "Bearer " + key } });
    if json_parse(sent.body).headers.authorization.len() != 23 { throw "not sent"; }
    throw key;
}
"##;
    let (idp, origin) = (Origin::named("idp"), Origin::start());
    let options = format!("rhai: {{ file: leak.rhai, grants: {GRANTS} }}");
    let config = format!(
        "log: {{ level: debug, format: json }}\nplugins:\n  - access_log: {{ target: access.log, facts: [key, json] }}\n  - {{ name: policy, {options} }}\n{UPSTREAMS}"
    );
    let setup = Setup::new(&config).file("leak.rhai", script).variable("IDP", idp.address());
    let gateway = setup.variable("SIGNING", SECRET).before(&origin).start();
    let answer = gateway.get("/leak");
    assert_eq!((answer.status, idp.served()), (500, 1));
    let line = gateway.logged_path("/leak");
    assert_eq!(line["facts"]["key"], "<secret>");
    let id = answer.header("x-request-id").unwrap_or_default().to_owned();
    let mut pages = vec![gateway.log(), line.to_string(), answer.text(), id];
    for page in ["/status", "/metrics", "/records"] {
        pages.push(gateway.admin("GET", page).text());
    }
    for page in &pages {
        assert!(!page.contains(SECRET), "{page}");
    }
    assert!(pages[0].contains("<secret>"));
}

#[test]
fn a_file_of_the_policy_directory_grants_no_more_than_the_ceiling() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    write("policies/10-who.rhai", "fn on_request(ctx) { }");
    let config = |grants: &str| {
        format!(
            "listeners: [{{ bind: 127.0.0.1:0 }}]\npolicies: {{ dir: policies{grants} }}\n\
             upstreams: {{ idp: {{ endpoints: [\"http://127.0.0.1:1\"] }} }}\nroutes: [{{ respond: {{ status: 204 }} }}]\n"
        )
    };
    let checked = |grants: &str, granted: &str| {
        write("gateway.yaml", &config(grants));
        write("policies/10-who.yaml", &format!("grants: {granted}\n"));
        let ended = run_in(dir.path(), &["check", "gateway.yaml"]);
        (ended.status.success(), ended.err)
    };
    for (granted, path, place) in [
        ("{ http: { upstreams: [idp] } }", "http", "10-who.yaml:1"),
        ("{ store: true }", "store", "10-who.yaml:1:18"),
        ("{ secrets: { key: env:PATH } }", "secrets", "10-who.yaml:1"),
        ("{ cache: { entries: 10001 } }", "cache.entries", "10-who.yaml:1:29"),
    ] {
        let (accepted, said) = checked("", granted);
        assert!(!accepted && said.contains(&format!("`policies.grants.{path}")), "{said}");
        assert!(said.contains(place), "{said}");
    }
    let inside = "{ cache: { entries: 10 }, rate_limit: { a: { rate: 1/s } }, metrics: [n], clock: true, random: true }";
    let (accepted, said) = checked("", inside);
    assert!(accepted, "{said}");
    let outside = "{ http: { upstreams: [idp], calls: 2 }, store: true, secrets: { key: env:PATH } }";
    let allowed = ", grants: { http: { upstreams: [idp], calls: 2 }, store: true, secrets: [env:PATH] }";
    let (accepted, said) = checked(allowed, outside);
    assert!(accepted, "{said}");
    let (accepted, said) = checked(", grants: { clock: false }", "{ clock: true }");
    assert!(!accepted && said.contains("`policies.grants.clock`"), "{said}");
    let (accepted, said) =
        checked(", grants: { http: { upstreams: [idp], timeout: 100ms } }", "{ http: { upstreams: [idp] } }");
    assert!(!accepted && said.contains("`policies.grants.http.timeout`"), "{said}");
}
