//! Plugins in shadow, for a part of the clients, and for a time: what happens is what happens without them, and what
//! would have happened is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::time::{Duration, SystemTime};

use portcullis_tests::tools::{guest, tool};
use portcullis_tests::{
    Answer, Gateway, Http, Origin, PATIENCE, Request, Setup, request, run, until, wait_for,
};
use serde_json::{Value, json};

/// Does all that a script can do to an exchange.
const MEDDLER: &str = r##"
fn on_request(ctx) {
    ctx.request.headers["x-meddled"] = "1";
    ctx.request.path = "/elsewhere";
    ctx.request.query_string = "meddled=1";
    ctx.principal = #{ id: "nobody" };
    ctx.facts["meddled"] = true;
    if ctx.request.headers["x-do"] == "deny" { return deny(403, "meddler.denied"); }
    if ctx.request.headers["x-do"] == "drop" { return drop(); }
    if ctx.request.headers["x-do"] == "fail" { throw "as told"; }
}
fn on_request_body(ctx) { ctx.request.body = "meddled"; }
fn on_upstream(ctx) {
    if ctx.request.headers["x-meddled"] == "1" { ctx.outgoing.headers["x-out"] = "1"; }
}
fn on_response(ctx) {
    if ctx.request.headers["x-meddled"] != "1" { throw "it does not see what it has changed"; }
    ctx.response.headers["x-meddled"] = "1";
    ctx.response.status = 418;
}
fn on_response_body(ctx) {
    if ctx.response.status != 418 { throw "it does not see the status that it has set"; }
    ctx.response.body = "meddled";
}
"##;

const WATCHED: &str = "
plugins:
  - request_id: { trust: true }
  - access_log: { target: access.log, facts: [meddled] }
";

/// The id under which a request is remembered.
fn named(request: Request, id: &str) -> Request {
    request.header("x-request-id", id)
}

fn record(gateway: &Gateway, id: &str) -> Value {
    wait_for("the record", || {
        let answer = gateway.admin("GET", &format!("/records/{id}"));
        (answer.status == 200).then(|| answer.json())
    })
}

/// The steps of a plugin: hook, verdict, reason.
fn steps(record: &Value, plugin: &str) -> Vec<(String, String, Option<String>)> {
    let steps = record["steps"].as_array().unwrap().iter().filter(|step| step["plugin"] == plugin);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    steps
        .map(|step| (text(&step["hook"]).unwrap(), text(&step["verdict"]).unwrap(), text(&step["reason"])))
        .collect()
}

fn verdicts(gateway: &Gateway, plugin: &str, verdict: &str) -> f64 {
    let labels = [format!("plugin=\"{plugin}\""), format!("verdict=\"{verdict}\"")];
    gateway.metric("portcullis_shadow_verdicts_total", &labels.each_ref().map(String::as_str))
}

#[test]
fn what_clients_and_upstreams_see_is_as_without_it() {
    const GUESTS: [&str; 3] = ["conformance", "http_wasm_handler", "proxy_wasm_guest"];
    let modules = GUESTS.map(|name| (format!("{name}.wasm"), guest(name)));
    if modules.iter().any(|(_, module)| module.is_none()) {
        return;
    }
    let origin = Origin::start();
    let shadows = "
  - { name: meddler, mode: shadow, rhai: { file: meddler.rhai } }
  - { name: masked, mode: shadow, mask: { fields: [password] } }
  - { name: checked, mode: shadow, json_schema: { file: schema.json } }
  - { name: small, mode: shadow, body_limit: { request: 3B } }
  - { name: few, mode: shadow, rate_limit: { limits: [{ key: client, token_bucket: { rate: 1/h, burst: 1 } }] } }
  - { name: nobody, mode: shadow, ip_filter: { deny: [127.0.0.0/8] } }
  - { name: marked, mode: shadow, headers: { response: { set: { x-marked: \"1\" }, remove: [content-type] } } }
  - { name: component, mode: shadow, wasm: { file: conformance.wasm, cpu: 50ms, config: { greeting: hello } } }
  - { name: handler, mode: shadow, wasm: { file: http_wasm_handler.wasm, cpu: 50ms, config: buffer } }
  - { name: filter, mode: shadow, wasm: { file: proxy_wasm_guest.wasm, cpu: 50ms, config: nothing } }
";
    let start = |plugins: &str| {
        let setup = Setup::new(&format!("{WATCHED}{plugins}"));
        let setup = setup.file("meddler.rhai", MEDDLER).file("schema.json", "{}");
        let modules = modules.iter().filter_map(|(name, module)| Some((name, module.as_ref()?)));
        modules.fold(setup, |setup, (name, module)| setup.file(name, module)).before(&origin).start()
    };
    let (with, without) = (start(shadows), start(""));
    let get = |path: &str| request("GET", path);
    let asked = [
        get("/a?b=c"),
        get("/status/404"),
        get("/big/100000"),
        get("/trailers"),
        get("/json"),
        request("HEAD", "/a"),
        request("POST", "/echo").body("a body that is longer than what small allows"),
        get("/a").header("x-do", "deny"),
        get("/a").header("x-do", "drop"),
        get("/a").header("x-do", "fail"),
        get("/a").header("x-do", "headers"),
        get("/a").header("x-do", "rewrite"),
        get("/a").header("x-do", "refuse"),
        get("/a").header("x-do", "response"),
        get("/body/hello").header("x-do", "shout-back"),
        request("POST", "/echo").header("x-do", "shout").body("quiet"),
        request("POST", "/echo").header("x-do", "gather").body("quiet"),
    ];
    let seen = |gateway: &Gateway, asked: &Request, id: &str| -> Answer {
        let mut answer = gateway.connect().ask(&named(asked.clone(), id)).unwrap();
        answer.headers.retain(|(name, _)| name != "date");
        answer
    };
    for (at, asked) in asked.iter().enumerate() {
        let id = format!("turn-{at}");
        assert_eq!(seen(&with, asked, &id), seen(&without, asked, &id), "{asked:?}");
        let line = with.logged("the line", |line| line["id"] == *id);
        let other = without.logged("the line", |line| line["id"] == *id);
        for key in ["status", "path", "principal", "facts", "decided_by", "upstream"] {
            assert_eq!(line[key], other[key], "{key} of {asked:?}");
        }
    }
    assert!(verdicts(&with, "meddler", "change") > 10.0 && verdicts(&with, "meddler", "error") == 1.0);
    assert_eq!((verdicts(&with, "meddler", "respond"), verdicts(&with, "meddler", "drop")), (1.0, 1.0));
    assert_eq!((verdicts(&with, "few", "respond"), verdicts(&with, "nobody", "respond")), (16.0, 17.0));
    assert_eq!(verdicts(&with, "small", "respond"), 3.0);
    assert!(verdicts(&with, "masked", "change") > 0.0 && verdicts(&with, "marked", "change") > 0.0);
    // Over HTTP/2 too.
    for act in ["nothing", "headers", "refuse", "shout-back", "deny", "drop"] {
        let seen = |gateway: &Gateway| {
            let url = format!("http://{}/body/hello", gateway.address());
            let act = format!("x-do: {act}");
            let options =
                ["-sS", "-i", "--http2-prior-knowledge", "-H", "x-request-id: two", "-H", &act, &url];
            let answer = tool("curl", &options);
            let lines = answer.lines().filter(|line| !line.starts_with("date:"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(seen(&with), seen(&without), "{act}");
    }
    for name in ["component", "handler", "filter"] {
        assert!(verdicts(&with, name, "change") + verdicts(&with, name, "respond") > 0.0, "{name}");
    }
}

#[test]
fn what_would_have_been_is_recorded_and_summed_up() {
    let origin = Origin::start();
    let plugins = "  - { name: meddler, mode: shadow, rhai: { file: meddler.rhai } }\n";
    let gateway =
        Setup::new(&format!("{WATCHED}{plugins}")).file("meddler.rhai", MEDDLER).before(&origin).start();
    let ask = |request: Request, id: &str| gateway.connect().ask(&named(request, id)).unwrap().status;
    assert_eq!(ask(request("POST", "/echo").body("x"), "whole"), 200);
    let whole = record(&gateway, "whole");
    let hooks: Vec<_> =
        steps(&whole, "meddler").into_iter().map(|(hook, verdict, _)| (hook, verdict)).collect();
    for hook in ["on_request", "on_request_body", "on_upstream", "on_response", "on_response_body"] {
        assert!(hooks.contains(&(hook.into(), "continue".into())), "{hook}: {whole:#}");
    }
    let of = |hook: &str| {
        let mut steps = whole["steps"].as_array().unwrap().iter();
        steps.find(|step| step["plugin"] == "meddler" && step["hook"] == hook).unwrap().clone()
    };
    assert_eq!((&of("on_response")["shadow"], &whole["decided_by"]), (&json!(true), &Value::Null));
    assert_eq!(of("on_response")["changed"], json!(["response header x-meddled", "response status"]));
    assert_eq!(of("on_request_body")["changed"], json!(["request body"]));
    assert_eq!(of("on_upstream")["changed"], json!(["outgoing header x-out"]));

    for turn in 0..3 {
        assert_eq!(ask(request("GET", "/a").header("x-do", "deny"), &format!("denied-{turn}")), 200);
    }
    let denied = record(&gateway, "denied-0");
    assert_eq!(
        steps(&denied, "meddler"),
        [("on_request".into(), "respond".into(), Some("meddler.denied".into()))]
    );
    let rule = denied["steps"].as_array().unwrap().iter().find_map(|step| step["rule"].as_str()).unwrap();
    assert!(rule.starts_with("meddler.rhai:8:"), "{denied:#}");
    let admin = gateway.admin_at().to_string();
    let told = run(&["shadow", "--admin", &admin]);
    for said in [
        "meddler (rhai): 4 requests, would have refused 3 (75.0 %)",
        "3  meddler.denied on all",
        "3  of 127.0.0.1",
    ] {
        assert!(told.out.contains(said), "{said}: {}", told.out);
    }
    let told = run(&["explain", "--admin", &admin, "denied-0"]);
    assert!(told.out.contains("respond (shadow)"), "{}", told.out);
    // They passed, and are listed for what would have become of them.
    let told = run(&["explain", "--admin", &admin]);
    assert!(told.out.contains("meddler.denied of meddler (shadow)"), "{}", told.out);
}

#[test]
fn a_body_is_copied_and_never_held_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = format!(
        "{WATCHED}  - {{ name: meddler, mode: shadow, rhai: {{ file: meddler.rhai, body_limit: 8B }} }}
upstreams: {{ origin: {{ endpoints: [\"http://{}\"] }} }}
",
        listener.local_addr().unwrap()
    );
    let gateway = Setup::new(&config).file("meddler.rhai", MEDDLER).start();
    let mut http = gateway.connect();
    http.write(b"POST / HTTP/1.1\r\nhost: g\r\nx-request-id: slow\r\ncontent-length: 6\r\n\r\nabc").unwrap();
    let (upstream, _) = listener.accept().unwrap();
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    let read = |end: &[u8]| {
        let mut all = Vec::new();
        while !all.ends_with(end) {
            let mut more = [0; 1024];
            let count = (&upstream).read(&mut more).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&more[..count]);
        }
    };
    // The first half is there before the client has sent the second.
    read(b"\r\n\r\nabc");
    http.write(b"def").unwrap();
    read(b"def");
    (&upstream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
    assert_eq!(http.answer("POST").unwrap().text(), "ok");
    let bodies = |id: &str, hook: &str| {
        steps(&record(&gateway, id), "meddler")
            .into_iter()
            .find(|step| step.0 == hook)
            .map(|step| (step.1, step.2))
    };
    assert_eq!(bodies("slow", "on_request_body"), Some(("continue".into(), None)));

    http.write(b"POST / HTTP/1.1\r\nhost: g\r\nx-request-id: long\r\ncontent-length: 9\r\n\r\nmore than")
        .unwrap();
    read(b"more than");
    (&upstream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
    assert_eq!(http.answer("POST").unwrap().text(), "ok");
    assert_eq!(bodies("long", "on_request_body"), Some(("respond".into(), Some("body.too_large".into()))));
}

#[test]
fn nobody_waits_for_what_it_waits_for() {
    let (origin, authz) = (Origin::start(), Origin::start());
    let config = format!(
        "
plugins:
  - request_id: {{ trust: true }}
  - {{ name: asked, mode: shadow, timeout: 1h, ext_authz: {{ upstream: authz, path: /hold, timeout: 1h }} }}
upstreams:
  origin: {{ endpoints: [\"http://{}\"] }}
  authz: {{ endpoints: [\"http://{}\"] }}
",
        origin.address(),
        authz.address()
    );
    let gateway = Setup::new(&config).start();
    assert_eq!(gateway.ask(&named(request("GET", "/a"), "one")).status, 200);
    until("the question to be held", || authz.held() == 1);
    assert_eq!(steps(&record(&gateway, "one"), "asked"), []);
    authz.release();
    until("the answer to be counted", || gateway.admin("GET", "/shadow").json() != json!([]));
    assert_eq!(verdicts(&gateway, "asked", "continue"), 1.0);
}

#[test]
fn a_module_in_shadow_is_seen_like_a_script() {
    let Some(module) = guest("block_path") else { return };
    let origin = Origin::start();
    let plugins =
        "  - { name: module, mode: shadow, wasm: { file: block.wasm, config: { prefixes: [/secret] } } }\n";
    let gateway =
        Setup::new(&format!("{WATCHED}{plugins}")).file("block.wasm", module).before(&origin).start();
    assert_eq!(gateway.ask(&named(request("GET", "/secret/x"), "one")).status, 200);
    let seen = steps(&record(&gateway, "one"), "module");
    assert!(seen.iter().any(|(hook, verdict, _)| hook == "on_request" && verdict == "respond"), "{seen:?}");
    assert_eq!(verdicts(&gateway, "module", "respond"), 1.0);
}

#[test]
fn it_sees_what_it_would_see_in_its_place() {
    let origin = Origin::start();
    let plugins = "
  - { name: outer, ip_filter: { deny: [127.0.7.1] } }
  - { name: meddler, mode: shadow, rhai: { file: meddler.rhai } }
  - { name: marked, mode: shadow, headers: { response: { set: { x-marked: \"1\" } } } }
";
    let gateway =
        Setup::new(&format!("{WATCHED}{plugins}")).file("meddler.rhai", MEDDLER).before(&origin).start();
    let source = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 1));
    let mut http = Http::connect_from(source, gateway.address()).unwrap();
    assert_eq!(http.ask(&named(request("GET", "/a"), "refused")).unwrap().status, 403);
    let refused = record(&gateway, "refused");
    // A plugin further in is not asked about it, and one of responses alone is.
    assert_eq!(steps(&refused, "meddler"), []);
    assert_eq!(steps(&refused, "marked"), [("on_response".into(), "continue".into(), None)]);
}

#[test]
fn a_policy_of_the_directory_is_put_into_shadow_by_the_file_beside_it() {
    let config = "policies: { dir: policies }\nroutes: [{ respond: { status: 204 } }]\n";
    let deny = "fn on_request(ctx) { return deny(403, \"policy.no\"); }";
    let gateway = Setup::new(config)
        .file("policies/10-no.rhai", deny)
        .file("policies/10-no.yaml", "mode: shadow\npercent: 100%\n")
        .start();
    assert_eq!(gateway.get("/").status, 204);
    assert_eq!(verdicts(&gateway, "no", "respond"), 1.0);
    gateway.edit("policies/10-no.yaml", "mode: enforce\n");
    gateway.wait_generation(2);
    assert_eq!(gateway.get("/").status, 403);
}

#[test]
fn a_connection_in_shadow_is_let_in() {
    let config = "
plugins: [{ name: nobody, mode: shadow, ip_filter: { at: connection, deny: [127.0.0.0/8] } }]
routes: [{ respond: { status: 204 } }]
";
    let gateway = Setup::new(config).start();
    assert_eq!(gateway.get("/").status, 204);
    assert_eq!(verdicts(&gateway, "nobody", "drop"), 1.0);
}

#[test]
fn a_percentage_is_one_of_clients() {
    let config = "
plugins:
  - { name: hard, percent: 30%, ip_filter: { deny: [127.0.0.0/8] } }
  - { name: soft, percent: 60%, mode: shadow, ip_filter: { deny: [127.0.0.0/8] } }
routes: [{ respond: { status: 204 } }]
";
    let gateway = Setup::new(config).start();
    let asked = |client: u8| {
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 7, client));
        Http::connect_from(source, gateway.address()).unwrap().ask(&request("GET", "/")).unwrap().status
    };
    let first: Vec<u16> = (1..=200).map(asked).collect();
    let refused = first.iter().filter(|status| **status == 403).count();
    assert!((35..85).contains(&refused), "{refused} of 200");
    assert_eq!((1..=200).map(asked).collect::<Vec<_>>(), first);
    let soft = verdicts(&gateway, "soft", "respond") / 2.0;
    // Of those that the first let through.
    assert!((55.0..115.0).contains(&soft), "{soft} of 200");
}

#[test]
fn a_mode_ends_when_it_is_said_to() {
    let soon = SystemTime::now() + Duration::from_secs(3);
    let soon = humantime::format_rfc3339_millis(soon);
    let config = format!(
        "
plugins:
  - {{ name: shadow, mode: shadow, until: \"{soon}\", ip_filter: {{ deny: [127.0.7.1] }} }}
  - {{ name: off, mode: off, until: \"{soon}\", ip_filter: {{ deny: [127.0.7.2] }} }}
  - {{ name: on, until: \"{soon}\", ip_filter: {{ deny: [127.0.7.3] }} }}
  - {{ name: past, mode: off, until: \"2020-01-01T00:00:00Z\", ip_filter: {{ deny: [127.0.7.4] }} }}
routes: [{{ respond: {{ status: 204 }} }}]
"
    );
    let gateway = Setup::new(&config).start();
    let asked = |client: u8| {
        let source = IpAddr::V4(Ipv4Addr::new(127, 0, 7, client));
        Http::connect_from(source, gateway.address()).unwrap().ask(&request("GET", "/")).unwrap().status
    };
    let all = || [1, 2, 3, 4].map(asked);
    assert_eq!(all(), [204, 204, 403, 403]);
    let modes = |status: &Value| {
        status["plugins"].as_array().unwrap().iter().map(|plugin| plugin["mode"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(modes(&gateway.status()), ["shadow", "off", "enforce", "enforce"]);
    gateway.wait_generation(2);
    assert_eq!(all(), [403, 403, 204, 403]);
    assert_eq!(modes(&gateway.status()), ["enforce", "enforce", "off", "enforce"]);
    assert!(gateway.log().contains("\"trigger\":\"time\""), "{}", gateway.log());
}

#[test]
fn what_is_off_is_checked_all_the_same() {
    let config =
        "plugins: [{ mode: off, ip_filter: { deny: [nonsense] } }]\nroutes: [{ respond: { status: 204 } }]\n";
    let ended = Setup::new(config).try_start().err().unwrap();
    assert!(ended.status.code() == Some(2) && ended.err.contains("nonsense"), "{}", ended.err);
}
