//! Requests that are recorded, and other configurations that are tried on them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use portcullis_tests::{Gateway, Origin, Setup, request, run_in, wait_for};
use serde_json::Value;

const RECORDING: &str = "
replay: { file: replay.jsonl, percent: 100%, max_body: 10B }
plugins: [{ name: guard, rhai: { file: guard.rhai } }]
";

/// Refuses what is below a path, and reads bodies.
fn guard(path: &str) -> String {
    format!(
        "fn on_request(ctx) {{ if ctx.request.path.starts_with(\"{path}\") {{ return deny(403, \"guard.path\"); }} }}\n\
         fn on_request_body(ctx) {{ if ctx.request.body == \"bad\" {{ return deny(400, \"guard.body\"); }} }}\n"
    )
}

/// What is recorded, once it is so many.
fn recorded(gateway: &Gateway, count: usize) -> Vec<Value> {
    wait_for("the requests to be recorded", || {
        let text = fs::read_to_string(gateway.dir().join("replay.jsonl")).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (lines.len() == count).then_some(lines)
    })
}

fn recording(config: &str, origin: &Origin) -> Gateway {
    Setup::new(config).file("guard.rhai", guard("/admin")).before(origin).start()
}

#[test]
fn what_is_recorded_is_bounded_and_redacted() {
    let origin = Origin::start();
    let gateway = recording(RECORDING, &origin);
    let secret = request("POST", "/a?x=1&token=s3cret")
        .header("authorization", "Bearer s3cret")
        .header("x-open", "seen");
    assert_eq!(gateway.ask(&secret.body("short")).status, 200);
    assert_eq!(gateway.ask(&request("POST", "/b").body("longer than ten bytes")).status, 200);
    assert_eq!(gateway.get("/admin").status, 403);
    let lines = recorded(&gateway, 3);
    let first = lines[0].to_string();
    assert!(!first.contains("s3cret") && first.contains("[\"authorization\",\"redacted\"]"), "{first}");
    assert!(first.contains("[\"x-open\",\"seen\"]"), "{first}");
    assert_eq!(
        (&lines[0]["target"], &lines[0]["body"], &lines[0]["upstream"][1]),
        (&"/a?x=1&token=redacted".into(), &"short".into(), &200.into())
    );
    assert_eq!((&lines[1]["body"], &lines[1]["body_bytes"]), (&Value::Null, &21.into()));
    assert_eq!(lines[2]["decided_by"], serde_json::json!(["guard", "guard.path"]));
    let mode = fs::metadata(gateway.dir().join("replay.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);

    // Nobody by lot.
    gateway.replace("gateway.yaml", "100%", "0%");
    gateway.wait_generation(2);
    gateway.get("/c");
    gateway.replace("gateway.yaml", "0%", "100%");
    gateway.wait_generation(3);
    gateway.get("/d");
    assert_eq!(recorded(&gateway, 4)[3]["target"], "/d");
}

#[test]
fn what_ends_in_another_way_is_listed() {
    let origin = Origin::start();
    let gateway = recording(RECORDING, &origin);
    for path in ["/a", "/admin/1", "/b?token=1", "/open"] {
        gateway.get(path);
    }
    gateway.ask(&request("POST", "/body").body("bad"));
    recorded(&gateway, 5);
    let candidate =
        fs::read_to_string(gateway.dir().join("gateway.yaml")).unwrap().replace("guard.rhai", "next.rhai");
    gateway.edit("candidate.yaml", candidate.replace("${ORIGIN}", "127.0.0.1:9"));
    gateway.edit(
        "so-far.yaml",
        fs::read_to_string(gateway.dir().join("gateway.yaml")).unwrap().replace("${ORIGIN}", "127.0.0.1:9"),
    );
    gateway.edit("next.rhai", guard("/b"));
    let replay = |more: &[&str]| {
        let arguments =
            [&["replay", "--against", "candidate.yaml", "--config", "so-far.yaml"], more].concat();
        run_in(gateway.dir(), &arguments)
    };
    let said = replay(&[]);
    assert_eq!(said.status.code(), Some(1), "{}", said.err);
    let lines: Vec<_> = said.out.lines().collect();
    assert!(lines.len() == 6 && lines[5] == "5 requests, 3 end in another way", "{}", said.out);
    assert!(
        lines[1].contains("GET /admin/1") && lines[1].contains("403 by guard (guard.path)  200"),
        "{}",
        said.out
    );
    assert!(lines[2].contains("GET /b ") && !said.out.contains("token"), "{}", said.out);
    // What is read whole there is judged there too.
    assert!(
        lines[3].contains("POST /body") && lines[3].contains("400 by guard (guard.body)"),
        "{}",
        said.out
    );
    let json: Value = serde_json::from_str(&replay(&["--json", "replay.jsonl"]).out).unwrap();
    assert_eq!((&json["requests"], &json["flips"][0]["after"]["status"]), (&5.into(), &200.into()));

    gateway.edit("next.rhai", guard("/admin"));
    let said = replay(&[]);
    assert!(said.status.success(), "{}{}", said.out, said.err);
    assert_eq!(said.out, "5 requests, 0 end in another way\n");
    assert!(replay(&["none.jsonl"]).err.contains("none.jsonl` can't be read"));
}

#[test]
fn a_reload_that_changes_too_much_is_refused() {
    let origin = Origin::start();
    let gateway = recording(&format!("{RECORDING}reload: {{ max_flips: 1 }}\n"), &origin);
    for path in ["/a/1", "/a/2", "/b"] {
        assert_eq!(gateway.get(path).status, 200);
    }
    recorded(&gateway, 3);
    gateway.edit("guard.rhai", guard("/a"));
    let why = gateway.wait_refused();
    for part in [
        "gateway.yaml:",
        "2 of 3 recorded requests end in another way, more than 1",
        "GET /a/1 at",
        "403 by guard (guard.path) in place of 200",
        "portcullis replay",
    ] {
        assert!(why.contains(part), "`{part}` is not in {why}");
    }
    assert_eq!(gateway.get("/a/1").status, 200);
    recorded(&gateway, 4);
    gateway.edit("guard.rhai", guard("/b"));
    gateway.wait_status("one flip", |status| status["last_error"].is_null());
    assert_eq!(gateway.get("/b").status, 403);
}

#[test]
fn recorded_requests_that_cannot_be_read_let_no_reload_pass() {
    let origin = Origin::start();
    let gateway = recording(&format!("{RECORDING}reload: {{ max_flips: 1 }}\n"), &origin);
    assert_eq!(gateway.get("/a").status, 200);
    recorded(&gateway, 1);
    std::fs::write(gateway.dir().join("replay.jsonl"), [0xff, 0xfe]).unwrap();
    gateway.edit("guard.rhai", guard("/a"));
    let why = gateway.wait_refused();
    assert!(why.contains("replay.jsonl` can't be read"), "{why}");
    assert_eq!(gateway.get("/a").status, 200);
}
