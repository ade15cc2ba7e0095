//! What callers may do by their roles, in a running gateway, and how that is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use portcullis_tests::{Origin, Setup, keys, request, run_in, wait_for};

const SECRET: &str = "a secret of more than thirty-two bytes";

const CONFIG: &str = r#"
plugins:
  - access_log: { target: access.log }
  - api_key: { hash_key: env:HASH_KEY, from: [{ header: x-api-key }], anonymous: true, files: [keys.jsonl] }
  - rbac:
      roles:
        reader: { permissions: ["orders:read"] }
        editor: { inherits: [reader], permissions: ["orders:write"] }
      files: [roles.jsonl]
      rules:
        - { name: health, path: /health, allow: anyone }
        - { name: read, methods: [GET], path: "/orders/**", allow: [{ permissions: ["orders:read"] }] }
        - { name: write, path: "/orders/**", allow: [{ permissions: ["orders:write"] }] }
        - { name: own, path: "/users/{user}", allow: [{ where: ["path.user == principal.id"] }] }
"#;

#[test]
fn callers_may_what_their_roles_permit_and_the_record_says_what_they_lack() {
    let (ann, first) = keys::key(SECRET, &["--id", "ann", "--role", "reader"]);
    let (zoe, second) = keys::key(SECRET, &["--id", "zoe"]);
    let origin = Origin::start();
    let setup = Setup::new(CONFIG).file("keys.jsonl", format!("{first}\n{second}\n"));
    let gateway =
        setup.file("roles.jsonl", "# none yet\n").variable("HASH_KEY", SECRET).before(&origin).start();
    let ask =
        |method: &str, path: &str, key: &str| gateway.ask(&request(method, path).header("x-api-key", key));
    for (method, path, key, status) in [
        ("GET", "/health", "", 200),
        ("GET", "/orders/7", "", 403),
        ("GET", "/orders/7", &ann, 200),
        ("POST", "/orders", &ann, 403),
        // One spelling of a path is what rules see.
        ("POST", "/health/../orders", &ann, 403),
        ("GET", "/orders/7", &zoe, 403),
        ("GET", "/users/zoe", &zoe, 200),
        ("GET", "/users/%7Aoe", &zoe, 200),
        ("GET", "/users/ann", &zoe, 403),
        ("GET", "/elsewhere", &ann, 403),
    ] {
        assert_eq!(ask(method, path, key).status, status, "{method} {path}");
    }
    let refused = ask("DELETE", "/orders/7", &ann).json();
    let record = wait_for("the record", || {
        let answer = gateway.admin("GET", &format!("/records/{}", refused["request_id"].as_str().unwrap()));
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!(record["decided_by"]["reason"], "rbac.denied");
    assert_eq!(record["decided_by"]["rule"], "write: needs permission orders:write");
    assert_eq!(gateway.logged_path("/elsewhere")["reason"], "rbac.no_rule");
    let decided =
        |rule: &str| gateway.metric("portcullis_plugin_rbac_decisions_total", &[rule, "verdict=\"denied\""]);
    assert_eq!(decided("rule=\"write\""), 3.0);

    gateway.edit("roles.jsonl", "{\"id\": \"zoe\", \"roles\": [\"editor\"]}\n");
    gateway.wait_generation(2);
    assert_eq!((ask("GET", "/orders/7", &zoe).status, ask("DELETE", "/orders/7", &zoe).status), (200, 200));
}

#[test]
fn a_rule_that_nothing_comes_to_is_remarked_on() {
    let config = "
listeners: [{ bind: 127.0.0.1:0 }]
plugins:
  - rbac:
      rules:
        - { name: all, path: /a/**, allow: anyone }
        - { name: never, methods: [POST], path: /a/b, allow: nobody }
routes: [{ respond: { status: 204 } }]
";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("gateway.yaml"), config).unwrap();
    let checked = run_in(dir.path(), &["check", "gateway.yaml"]);
    assert!(checked.status.success(), "{}", checked.err);
    let said = format!("{}{}", checked.out, checked.err);
    assert!(said.contains("all that fit it fit `all` before") && said.contains("gateway.yaml:7:"), "{said}");
}
