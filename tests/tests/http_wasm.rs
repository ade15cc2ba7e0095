//! Handlers made for Traefik, in a running gateway: the guest is made with the public SDK for Rust, see
//! `tests/guests/http_wasm`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use portcullis_tests::tools::guest;
use portcullis_tests::{Answer, Gateway, Http, Origin, Raw, Setup, repository, request, run_in, until};
use serde_json::{Value, json};

const HANDLER: &str = "http_wasm_handler";

/// A gateway with the handler before an origin; `options` are more of its table.
fn with(options: &str) -> Option<(Origin, Gateway)> {
    let module = guest(HANDLER)?;
    let origin = Origin::start();
    let config = format!(
        "
plugins:
  - access_log: {{ target: access.log }}
  - wasm: {{ file: handler.wasm, {options} }}
"
    );
    let gateway = Setup::new(&config).file("handler.wasm", module).before(&origin).start();
    Some((origin, gateway))
}

fn do_it(gateway: &Gateway, act: &str, path: &str) -> Answer {
    gateway.ask(&request("GET", path).header("x-do", act))
}

fn post(gateway: &Gateway, act: &str, body: &str) -> Answer {
    gateway.ask(&request("POST", "/a").header("x-do", act).body(body))
}

#[test]
fn what_a_handler_changes_is_what_origin_and_client_see() {
    let Some((origin, gateway)) = with("config: buffer, cpu: 50ms") else { return };
    let sent = request("GET", "/a").header("x-do", "rewrite").header("x-gone", "1").header("x-set", "old");
    let seen = gateway.ask(&sent).json();
    assert_eq!(
        (&seen["method"], &seen["path"], &seen["query"]),
        (&"PUT".into(), &"/changed".into(), &"by=guest".into())
    );
    let headers = &seen["headers"];
    assert_eq!((&headers["x-list"], &headers["x-set"]), (&"a, b".into(), &"new".into()));
    assert_eq!((&headers["x-gone"], &headers["x-found"]), (&Value::Null, &"PUT /changed?by=guest".into()));
    let answer = do_it(&gateway, "response", "/header/x-kind/plain");
    assert_eq!((answer.status, answer.header("x-kind")), (202, None));
    assert_eq!(answer.header("x-found"), Some("200 41 false"));
    let before = origin.served();
    let refused = do_it(&gateway, "refuse", "/refused");
    assert_eq!(
        (refused.status, refused.header("x-by"), refused.text().as_str()),
        (429, Some("guest"), "too many")
    );
    assert_eq!(
        (gateway.logged_path("/refused")["reason"].as_str(), origin.served()),
        (Some("wasm.local_response"), before)
    );
    let early = do_it(&gateway, "early", "/header/x-kind/plain");
    assert_eq!(early.header("x-early"), Some("set"));
}

#[test]
fn a_handler_is_told_of_an_upstream_that_fails() {
    let Some((_origin, gateway)) = with("config: buffer, cpu: 50ms") else { return };
    let answer = do_it(&gateway, "response", "/close");
    assert_eq!((answer.status, answer.header("x-found")), (202, Some("502 41 true")));
}

#[test]
fn bodies_are_replaced_both_ways() {
    let Some((_origin, gateway)) = with("config: buffer, cpu: 50ms, body_limit: 64KiB") else { return };
    assert_eq!(post(&gateway, "nothing", "as it is").json()["body"], "as it is");
    assert_eq!(post(&gateway, "read", "hello").json()["headers"]["x-found"], "hello");
    assert_eq!(post(&gateway, "upper", "hello").json()["body"], "HELLO");
    assert_eq!(do_it(&gateway, "replace", "/a").json()["body"], "instead");
    let refused = post(&gateway, "judge-body", "bad thing");
    assert_eq!((refused.status, refused.text().as_str()), (422, "no such body"));
    assert_eq!(post(&gateway, "judge-body", "good thing").json()["body"], "good thing");
    let answer = do_it(&gateway, "upper-back", "/body/hello");
    assert_eq!((answer.text().as_str(), answer.header("x-found")), ("HELLO", Some("5")));
    assert_eq!(answer.header("content-length"), Some("5"));
    assert_eq!(do_it(&gateway, "replace-back", "/big/1000").text(), "instead");
    assert_eq!(do_it(&gateway, "read-back", "/status/204").status, 204);
    // A body that nobody asks for streams past, however long it is.
    let long = "x".repeat(300_000);
    assert_eq!(gateway.ask(&request("POST", "/echo").body(long.as_str())).body.len(), long.len());
    assert_eq!(post(&gateway, "read", &long).status, 413);
    assert_eq!(do_it(&gateway, "upper-back", "/big/300000").status, 502);
}

#[test]
fn trailers_are_read_and_added_both_ways() {
    let Some((_origin, gateway)) = with("config: buffer, cpu: 50ms") else { return };
    let mut client = gateway.connect();
    let head = "POST /up HTTP/1.1\r\nhost: g\r\nx-do: trailers\r\ntransfer-encoding: chunked\r\n\r\n";
    client.write(format!("{head}3\r\nabc\r\n0\r\nx-told: 7\r\n\r\n").as_bytes()).unwrap();
    let seen = client.answer("POST").unwrap().json();
    assert_eq!((&seen["body"], &seen["headers"]["x-found"]), (&json!("abc"), &json!("7,")));
    assert_eq!(seen["trailers"], json!({ "x-told": "7", "x-more": "1" }));
    let asked = request("GET", "/trailers").header("x-do", "nothing").header("te", "trailers");
    let plain = gateway.ask(&asked);
    assert_eq!(plain.trailers, [("x-checksum".into(), "abc".into())]);
    // The body of the request is what the guest's additions need.
    let asked = request("POST", "/trailers").header("x-do", "trailers").header("te", "trailers").body("x");
    let mut answer = gateway.ask(&asked);
    answer.trailers.sort();
    assert_eq!(answer.header("x-found"), Some("abc,"));
    assert_eq!(answer.trailers, [("x-checksum".into(), "abc".into()), ("x-more".into(), "2".into())]);
}

#[test]
fn a_trap_hurts_only_its_own_request_also_under_load() {
    let Some((_origin, gateway)) = with("config: buffer, cpu: 50ms, isolation: { reuse: 1000 }") else {
        return;
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = gateway.connect();
                    let sent = request("POST", "/a").header("x-do", "upper").body("x");
                    (0..100).filter(|_| client.ask(&sent).unwrap().json()["body"] != "X").count()
                })
            })
            .collect();
        let mut client = Http::connect(gateway.address()).unwrap();
        for act in ["trap", "trap-response"].into_iter().cycle().take(40) {
            assert_eq!(client.ask(&request("GET", "/bad").header("x-do", act)).unwrap().status, 500);
        }
        let wrong: usize = others.into_iter().map(|other| other.join().unwrap()).sum();
        assert_eq!(wrong, 0);
    });
    assert_eq!(gateway.logged_path("/bad")["reason"], "plugin.trap");
}

#[test]
fn a_handler_that_spins_loses_its_request_and_holds_up_no_other() {
    let Some((_origin, gateway)) = with("config: buffer, cpu: 300ms") else { return };
    for act in ["spin", "spin-response"] {
        std::thread::scope(|scope| {
            let spinning = scope.spawn(|| do_it(&gateway, act, "/spin").status);
            // It yields, so that others of its worker go on meanwhile.
            let mut client = gateway.connect();
            let mut served = 0;
            while !spinning.is_finished() {
                assert_eq!(client.ask(&request("GET", "/a")).unwrap().status, 200);
                served += 1;
            }
            assert_eq!(spinning.join().unwrap(), 500);
            assert!(served > 1, "{served}");
        });
        assert_eq!(gateway.logged_path("/spin")["reason"], "plugin.budget");
    }
    assert_eq!(do_it(&gateway, "bomb", "/a").status, 500);
}

#[test]
fn a_handler_that_waits_for_a_body_holds_nothing_up_and_is_let_go_with_its_client() {
    let Some((_origin, gateway)) = with("config: buffer, cpu: 50ms") else { return };
    let mut raw = Raw::connect(gateway.address());
    raw.write("POST /a HTTP/1.1\r\nhost: g\r\nx-do: read\r\ncontent-length: 5\r\n\r\nhe");
    let alive = || {
        let instances = |event: &str| {
            let label = format!("event=\"{event}\"");
            gateway.metric("portcullis_plugin_wasm_instances_total", &[&label])
        };
        instances("made") - instances("ended")
    };
    until("the guest to wait", || alive() == 1.0);
    assert_eq!(do_it(&gateway, "served", "/a").json()["headers"]["x-found"], "1");
    drop(raw);
    until("its instance to be gone", || alive() == 0.0);
}

#[test]
fn a_handler_in_shadow_sees_everything_and_changes_nothing() {
    let Some(module) = guest(HANDLER) else { return };
    let origin = Origin::start();
    let config = "
plugins:
  - access_log: { target: access.log }
  - { mode: shadow, wasm: { file: handler.wasm, config: buffer, cpu: 50ms } }
";
    let gateway = Setup::new(config).file("handler.wasm", module).before(&origin).start();
    for act in ["refuse", "trap", "rewrite"] {
        let answer = do_it(&gateway, act, "/a");
        assert_eq!((answer.status, &answer.json()["path"]), (200, &"/a".into()), "{act}");
    }
    for act in ["upper", "judge-body", "read"] {
        let answer = post(&gateway, act, "bad");
        assert_eq!((answer.status, &answer.json()["body"]), (200, &"bad".into()), "{act}");
    }
    for act in ["upper-back", "replace-back"] {
        assert_eq!(do_it(&gateway, act, "/body/quiet").text(), "quiet", "{act}");
    }
    until("what would have been to be counted", || {
        gateway.metric("portcullis_shadow_verdicts_total", &["verdict=\"respond\""]) == 2.0
    });
}

#[test]
fn what_a_handler_does_is_in_the_record_by_name() {
    let Some((_origin, gateway)) = with("config: buffer, cpu: 50ms") else { return };
    let answer = post(&gateway, "upper", "secret words");
    assert_eq!(answer.json()["body"], "SECRET WORDS");
    assert_eq!(do_it(&gateway, "refuse", "/a").status, 429);
    let records = |of: &str| gateway.admin("GET", of).text();
    until("the record of the refusal", || records("/records").contains("wasm.local_response"));
    until("the record of the change", || records("/records?passed=true").contains("request body"));
    assert!(!records("/records?passed=true").to_lowercase().contains("secret"));
}

#[test]
fn a_handler_that_refuses_its_configuration_is_shown_where_it_stands() {
    let Some(module) = guest(HANDLER) else { return };
    let config = "listeners: [{ bind: 127.0.0.1:0 }]
plugins:
  - wasm: { file: handler.wasm, config: refuse }
routes: [{ respond: { status: 204 } }]
";
    let setup = Setup::new("").file("handler.wasm", &module).file("check.yaml", config);
    let checked = run_in(setup.dir(), &["check", "check.yaml"]);
    assert!(!checked.status.success());
    assert!(
        checked.err.contains("check.yaml:3:") && checked.err.contains("the module's start trapped"),
        "{}",
        checked.err
    );
}

#[test]
fn the_example_of_the_page_loads_and_serves() {
    let Some(module) = guest(HANDLER) else { return };
    let page = std::fs::read_to_string(repository().join("docs/http-wasm.md")).unwrap();
    let (_, block) = page.split_once("```yaml\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let origin = Origin::start();
    let block = block.replace("http://127.0.0.1:8080", &format!("http://{}", origin.address()));
    let config = format!("listeners: [{{ bind: 127.0.0.1:0 }}]\n{block}");
    let gateway = Setup::new(&config).file("traefik-plugin.wasm", module).start();
    assert_eq!(
        do_it(&gateway, "facts", "/a").json()["headers"]["x-found"],
        "127.0.0.1 HTTP/1.1 1 0 {\"header\":\"x-team\"}"
    );
}
