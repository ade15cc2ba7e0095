//! Callers known by keys: made by `portcullis key new`, replaced while the gateway serves, and never seen behind it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use portcullis_tests::{Gateway, Origin, Setup, keys, request, run_in, until};

const SECRET: &str = "a secret of more than thirty-two bytes";

/// A new key under that secret, and its line.
fn key(options: &[&str]) -> (String, String) {
    keys::key(SECRET, options)
}

const CONFIG: &str = r#"
plugins:
  - access_log: { target: access.log, facts: [who] }
  - api_key: { hash_key: env:HASH_KEY, from: [bearer, { header: x-api-key }, { query: key }], files: [keys.jsonl] }
  - rhai: { file: who.rhai }
"#;

const WHO: &str = r#"
fn on_request(ctx) {
    let who = ctx.principal;
    ctx.facts.who = `${who.id} ${who.roles} ${who.scopes} ${who.claims.plan}`;
    if "writer" in who.roles { return; }
    if ctx.request.method != "GET" { return deny(403, "orders.read_only"); }
}
"#;

fn start(lines: &str, origin: &Origin) -> Gateway {
    let setup =
        Setup::new(CONFIG).file("keys.jsonl", lines).file("who.rhai", WHO).variable("HASH_KEY", SECRET);
    setup.before(origin).start()
}

#[test]
fn a_key_says_who_calls_to_policies_and_logs_and_to_nobody_behind() {
    let options = [
        "--id",
        "ann",
        "--role",
        "reader",
        "--scope",
        "orders:read",
        "--metadata",
        "plan=gold",
        "--expires",
        "2999-01-01T00:00:00Z",
    ];
    let (key, line) = key(&options);
    let origin = Origin::start();
    let gateway = start(&line, &origin);
    let bearer = format!("Bearer {key}");
    for (target, header) in [
        ("/orders", ("authorization", &*bearer)),
        ("/orders", ("x-api-key", &*key)),
        (&*format!("/orders?key={key}"), ("x-other", "1")),
    ] {
        let answer = gateway.ask(&request("GET", target).header(header.0, header.1));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(!answer.text().contains(&key), "{}", answer.text());
        assert_eq!(answer.json()["query"], serde_json::Value::Null);
    }
    assert_eq!(gateway.ask(&request("POST", "/orders").header("x-api-key", &key)).status, 403);
    until("lines", || gateway.access_log().len() == 4);
    for line in gateway.access_log() {
        assert_eq!(line["facts"]["who"], r#"ann ["reader"] ["orders:read"] gold"#);
        assert!(!line.to_string().contains(&key), "{line}");
    }
    assert!(!gateway.log().contains(&key));
    assert_eq!(gateway.metric("portcullis_plugin_api_key_accepted_total", &[]), 4.0);
}

#[test]
fn who_has_no_key_that_holds_is_told_nothing_but_to_bring_one() {
    let (good, line) = key(&["--id", "ann"]);
    let (old, old_line) = key(&["--id", "ann", "--expires", "2001-01-01T00:00:00Z"]);
    let origin = Origin::start();
    let gateway = start(&format!("{line}\n{old_line}\n"), &origin);
    let mut bodies = Vec::new();
    for (path, sent, reason) in
        [("/missing", "", "missing"), ("/unknown", "pck_guess", "unknown"), ("/expired", &*old, "expired")]
    {
        let answer = gateway.ask(&request("GET", path).header("x-api-key", sent));
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
        assert_eq!(gateway.logged_path(path)["reason"], format!("api_key.{reason}"));
        let labels = [&*format!("reason=\"api_key.{reason}\"")];
        assert_eq!(gateway.metric("portcullis_plugin_api_key_refused_total", &labels), 1.0);
        let mut body = answer.json();
        body.as_object_mut().unwrap().remove("request_id");
        bodies.push(body);
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    // Both places have one, and each could be what somebody else believes.
    let two = request("GET", "/two").header("x-api-key", &good).header("x-api-key", "pck_guess");
    assert_eq!(gateway.ask(&two).status, 401);
    assert_eq!(origin.served(), 0);
}

#[test]
fn a_key_is_replaced_while_the_gateway_serves() {
    let ((old, old_line), (new, new_line)) = (key(&["--id", "ann"]), key(&["--id", "ann"]));
    let origin = Origin::start();
    let gateway = start(&old_line, &origin);
    let status = |key: &str| gateway.ask(&request("GET", "/").header("x-api-key", key)).status;
    assert_eq!((status(&old), status(&new)), (200, 401));
    gateway.edit("keys.jsonl", format!("{old_line}\n{new_line}\n"));
    until("the new key to hold", || status(&new) == 200);
    assert_eq!(status(&old), 200);
    // A file that can't be read changes nothing.
    gateway.edit("keys.jsonl", format!("{new_line}\n{{"));
    let refusal = gateway.wait_refused();
    assert!(refusal.contains("keys.jsonl") && !refusal.contains(&new), "{refusal}");
    assert_eq!((status(&old), status(&new)), (200, 200));
    gateway.edit("keys.jsonl", format!("{new_line}\n"));
    until("the old key to be gone", || status(&old) == 401);
    assert_eq!(status(&new), 200);
}

#[test]
fn key_new_says_what_it_lacks() {
    let run = |options: &[&str]| {
        let ended = run_in(std::path::Path::new("/"), &[&["key", "new"], options].concat());
        assert!(!ended.status.success() && ended.out.is_empty());
        ended.err
    };
    for (options, error) in [
        (&["--id", "ann"][..], "--hash-key"),
        (&["--id", "ann", "--hash-key", "hunter2"], "use `env:NAME` or `file:path`"),
        (&["--id", "ann", "--hash-key", "env:NO_SUCH_VARIABLE"], "`NO_SUCH_VARIABLE` is not set"),
        (&["--id", "ann", "--hash-key", "file:/dev/null"], "too short"),
    ] {
        let told = run(options);
        assert!(told.contains(error) && !told.contains("hunter2"), "{told}");
    }
}
