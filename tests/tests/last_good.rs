//! What was accepted serves on: data inputs apply over broken policy inputs, and a start with broken inputs
//! can serve those that were good last.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use portcullis_tests::tools::{Authority, attempt, has};
use portcullis_tests::{Gateway, Setup, repository, run, run_in, until};
use serde_json::{Value, json};

const ONE_SCRIPT: &str =
    "plugins: [{ rhai: { file: answer.rhai } }]\nroutes: [{ respond: { status: 404 } }]\n";

const SERVE_LAST_GOOD: [&str; 3] = ["run", "--last-good", "gateway.yaml"];

const BROKEN_SCRIPT: &str = "fn on_request(ctx) {\n    let x = ;\n}\n";
const BROKEN_CONFIG: &str = "listeners: [{ bind: 127.0.0.1:0 }\nroutes:\n";

fn saying(text: &str) -> String {
    format!("fn on_request(ctx) {{ return respond(200, \"{text}\"); }}\n")
}

/// A gateway that has run once and has ended.
fn ran_once() -> Setup {
    Setup::new(ONE_SCRIPT).file("answer.rhai", saying("good")).start().stop()
}

/// The one set that is kept in a state directory.
fn kept(state_dir: &Path) -> PathBuf {
    let entries: Vec<_> = fs::read_dir(state_dir.join("last-good")).unwrap().collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].as_ref().unwrap().path()
}

/// A gateway with a certificate, a script, and an authority for further certificates.
struct Secured {
    gateway: Gateway,
    authority: Authority,
}

impl Secured {
    fn start() -> Self {
        let config = "
listeners:
  - { name: main, bind: 127.0.0.1:0 }
  - { name: tls, bind: 127.0.0.2:0, tls: { certificates: [{ cert: live.pem, key: live.key }] } }
plugins: [{ rhai: { file: answer.rhai } }]
routes: [{ respond: { status: 404 } }]
";
        let setup = Setup::new(config).file("answer.rhai", saying("good"));
        let authority = Authority::new(&setup.dir().join("ca"));
        let names = ["first.test", "second.test", "third.test"];
        names.iter().for_each(|name| authority.issue(name));
        for ending in ["pem", "key"] {
            let from = authority.file(&format!("first.test.{ending}"));
            fs::copy(from, setup.dir().join(format!("live.{ending}"))).unwrap();
        }
        Secured { gateway: setup.start(), authority }
    }

    fn renew(&self, name: &str) {
        for ending in ["key", "pem"] {
            let content = fs::read(self.authority.file(&format!("{name}.{ending}"))).unwrap();
            self.gateway.edit(&format!("live.{ending}"), content);
        }
    }

    fn shows(&self, name: &str) -> bool {
        shows(self.gateway.listener("tls"), name)
    }
}

fn shows(address: SocketAddr, name: &str) -> bool {
    attempt("openssl", &["s_client", "-connect", &address.to_string()]).out.contains(&format!("CN = {name}"))
}

fn drift(status: &Value) -> Vec<String> {
    let files = status["drift"].as_array().unwrap().iter();
    files.map(|file| file.as_str().unwrap().rsplit('/').next().unwrap().to_owned()).collect()
}

#[test]
fn a_renewed_certificate_applies_while_a_script_or_the_configuration_is_broken() {
    if !has(&["openssl"]) {
        return;
    }
    let secured = Secured::start();
    let gateway = &secured.gateway;
    assert!(secured.shows("first.test"));

    gateway.edit("answer.rhai", BROKEN_SCRIPT);
    gateway.wait_refused();
    assert_eq!(gateway.generation(), 1, "what nobody changed is not built again");
    secured.renew("second.test");
    until("the second certificate", || secured.shows("second.test"));
    assert_eq!(gateway.get("/").text(), "good");
    let status = gateway.wait_status("the certificate to be no drift", |status| drift(status).len() == 1);
    assert_eq!(drift(&status), ["answer.rhai"]);
    assert!(status["last_error"]["text"].as_str().unwrap().contains("answer.rhai:2:13"), "{status}");
    assert!(status["generation"].as_u64() > Some(1) && status["last_good"].is_null(), "{status}");

    let config = fs::read_to_string(gateway.dir().join("gateway.yaml")).unwrap();
    gateway.edit("gateway.yaml", BROKEN_CONFIG);
    gateway.wait_status("the broken configuration", |status| drift(status).len() == 2);
    secured.renew("third.test");
    until("the third certificate", || secured.shows("third.test"));
    assert_eq!(gateway.get("/").text(), "good");

    gateway.edit("gateway.yaml", config);
    gateway.edit("answer.rhai", saying("mended"));
    gateway.wait_status("the mended files", |status| status["last_error"].is_null());
    assert_eq!((gateway.get("/").text(), secured.shows("third.test")), ("mended".to_owned(), true));
}

#[test]
fn a_broken_certificate_beside_a_broken_script_changes_nothing_and_both_are_told() {
    if !has(&["openssl"]) {
        return;
    }
    let secured = Secured::start();
    let gateway = &secured.gateway;
    // A configuration that cannot be read hides what it names: the error is found over the one that runs.
    let config = fs::read_to_string(gateway.dir().join("gateway.yaml")).unwrap();
    gateway.edit("gateway.yaml", BROKEN_CONFIG);
    gateway.wait_refused();
    gateway.edit("live.pem", "rubbish");
    gateway.wait_status("both errors", |status| {
        let text = status["last_error"]["text"].as_str().unwrap();
        text.contains("certificates[0]") && text.contains("gateway.yaml:")
    });
    assert_eq!((gateway.generation(), secured.shows("first.test")), (1, true));

    secured.renew("second.test");
    until("the good certificate", || secured.shows("second.test"));
    gateway.edit("gateway.yaml", config);
    gateway.wait_status("the configuration of before", |status| status["last_error"].is_null());
}

#[test]
fn a_list_applies_while_a_script_is_broken() {
    let config = "
plugins: [{ ip_filter: { files: { deny: [denied.txt] } } }, { rhai: { file: answer.rhai } }]
routes: [{ respond: { status: 404 } }]
";
    let gateway =
        Setup::new(config).file("denied.txt", "192.0.2.1\n").file("answer.rhai", saying("good")).start();
    gateway.edit("answer.rhai", BROKEN_SCRIPT);
    gateway.wait_refused();
    assert_eq!(gateway.get("/").status, 200);
    gateway.edit("denied.txt", "127.0.0.0/8\n");
    until("the list to apply", || gateway.get("/").status == 403);
    assert!(!gateway.status()["last_error"].is_null());
}

#[test]
fn a_start_with_a_broken_script_fails_or_serves_what_was_good_until_it_is_mended() {
    let setup = ran_once().file("answer.rhai", BROKEN_SCRIPT);
    let dir = setup.dir().to_owned();
    let kept_bytes = fs::read(kept(&dir.join("state"))).unwrap();
    let without = run_in(&dir, &["run", "gateway.yaml"]);
    assert_eq!(without.status.code(), Some(2));
    assert!(without.err.contains("answer.rhai:2:13"), "{}", without.err);

    let gateway = setup.arguments(&SERVE_LAST_GOOD).start();
    assert_eq!(gateway.get("/").text(), "good");
    until("the log to tell", || {
        let log = gateway.log();
        log.contains("serving the last good inputs of 2") && log.contains("answer.rhai:2:13")
    });
    let ready = gateway.admin("GET", "/readyz");
    assert_eq!(ready.status, 200);
    for said in ["serving the last good inputs of 2", "answer.rhai:2:13"] {
        assert!(ready.text().contains(said), "{}", ready.text());
    }
    let status = gateway.status();
    assert!(status["last_good"].as_u64() > Some(1_700_000_000), "{status}");
    assert_eq!(
        (&status["last_error"]["trigger"], drift(&status)),
        (&json!("start"), vec!["answer.rhai".into()])
    );
    let said = run(&["status", "--admin", &gateway.admin_at().to_string()]);
    assert_eq!(said.status.code(), Some(1));
    for expected in
        ["the last good inputs of 2", "the start ", "answer.rhai:2:13", "answer.rhai is not what runs"]
    {
        assert!(said.out.contains(expected), "{expected}: {}", said.out);
    }
    assert_eq!(fs::read(kept(&dir.join("state"))).unwrap(), kept_bytes, "what is served is not kept anew");

    gateway.edit("answer.rhai", saying("mended"));
    let status = gateway.wait_status("the mended script", |status| status["last_error"].is_null());
    assert!(status["last_good"].is_null(), "{status}");
    assert_eq!(gateway.get("/").text(), "mended");
    assert_eq!(gateway.admin("GET", "/readyz").text(), "ready: generation 2\n");
    // What runs now is what a later start falls back on.
    gateway.edit("answer.rhai", BROKEN_SCRIPT);
    gateway.wait_refused();
    let again = gateway.stop().arguments(&SERVE_LAST_GOOD).start();
    assert_eq!(again.get("/").text(), "mended");
    again.edit("answer.rhai", saying("mended"));
    again.wait_status("what was good", |status| status["last_good"].is_null() && drift(status).is_empty());
}

#[test]
fn policies_that_came_and_went_since_do_not_matter() {
    let gateway = Setup::new("policies: { dir: policies }\nroutes: [{ respond: { status: 404 } }]\n")
        .file("policies/10-answer.rhai", "import \"lib/text\" as text; fn on_request(ctx) { return respond(config.status, text::said()); }")
        .file("policies/10-answer.yaml", "config: { status: 418 }\n")
        .file("policies/lib/text.rhai", "fn said() { \"good\" }")
        .start();
    assert_eq!((gateway.get("/").status, gateway.get("/").text()), (418, "good".to_owned()));
    let setup = gateway.stop();
    fs::rename(setup.dir().join("policies"), setup.dir().join("away")).unwrap();
    let gateway = setup.arguments(&SERVE_LAST_GOOD).start();
    assert_eq!((gateway.get("/").status, gateway.get("/").text()), (418, "good".to_owned()));
    assert!(gateway.status()["warnings"].as_array().unwrap().is_empty(), "{}", gateway.status());
    fs::rename(gateway.dir().join("away"), gateway.dir().join("policies")).unwrap();
    gateway.wait_status("the directory to be back", |status| status["last_good"].is_null());
}

#[test]
fn a_renewed_certificate_applies_over_the_last_good_inputs() {
    if !has(&["openssl"]) {
        return;
    }
    let Secured { gateway, authority } = Secured::start();
    let setup = gateway.stop().file("answer.rhai", BROKEN_SCRIPT);
    let live = |name: &str, dir: &Path| {
        for ending in ["key", "pem"] {
            fs::copy(authority.file(&format!("{name}.{ending}")), dir.join(format!("live.{ending}")))
                .unwrap();
        }
    };
    live("second.test", setup.dir());
    let gateway = setup.arguments(&SERVE_LAST_GOOD).start();
    let address = gateway.listener("tls");
    assert!(shows(address, "second.test"));
    live("third.test", gateway.dir());
    until("the third certificate", || shows(address, "third.test"));
    let status = gateway.status();
    assert!(status["last_good"].is_u64() && !status["last_error"].is_null(), "{status}");
}

#[test]
fn a_configuration_that_cannot_be_read_is_replaced_by_the_last_good_one() {
    // Where the state is must be known without the configuration.
    let setup = Setup::new(ONE_SCRIPT).file("answer.rhai", saying("good"));
    let state = setup.dir().join("managed");
    let gateway = setup.variable("STATE_DIRECTORY", state.display()).start();
    assert!(kept(&state).is_file() && !gateway.dir().join("state/last-good").exists());
    gateway.edit("gateway.yaml", BROKEN_CONFIG);
    gateway.wait_refused();
    let gateway = gateway.stop().arguments(&SERVE_LAST_GOOD).start();
    assert_eq!(gateway.get("/").text(), "good");
    assert_eq!(drift(&gateway.status()), ["gateway.yaml"]);
    assert!(gateway.admin("GET", "/readyz").text().contains("gateway.yaml:"));
}

#[test]
fn without_a_good_set_the_start_fails_and_says_so() {
    let never = Setup::new(ONE_SCRIPT).file("answer.rhai", BROKEN_SCRIPT).arguments(&SERVE_LAST_GOOD);
    let ended = never.try_start().err().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    for said in ["answer.rhai:2:13", "no good inputs are kept at `", "has not run yet"] {
        assert!(ended.err.contains(said), "{said}: {}", ended.err);
    }
}

#[test]
fn a_damaged_set_is_refused_as_a_whole() {
    let setup = ran_once().file("answer.rhai", BROKEN_SCRIPT);
    let dir = setup.dir().to_owned();
    let file = kept(&dir.join("state"));
    let good = fs::read(&file).unwrap();
    let damages: [(&str, Vec<u8>); 3] = [
        ("a flipped bit", [&good[..good.len() - 1], &[good[good.len() - 1] ^ 1]].concat()),
        ("a missing end", good[..good.len() - 9].to_vec()),
        ("nothing", Vec::new()),
    ];
    // The script alone and the configuration too, which the process itself reads.
    for config in [fs::read_to_string(dir.join("gateway.yaml")).unwrap(), "routes: [".to_owned()] {
        fs::write(dir.join("gateway.yaml"), config).unwrap();
        for (what, damaged) in &damages {
            fs::write(&file, damaged).unwrap();
            let ended = attempt_in(&dir);
            assert_eq!(ended.0, Some(2), "{what}: {}", ended.1);
            assert!(ended.1.contains("cannot be used: "), "{what}: {}", ended.1);
        }
    }
}

/// How a start with the last good inputs ends, and its last words.
fn attempt_in(dir: &Path) -> (Option<i32>, String) {
    let program = portcullis_tests::program();
    let output = std::process::Command::new(program)
        .args(SERVE_LAST_GOOD)
        .current_dir(dir)
        .env("STATE_DIRECTORY", dir.join("state"))
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_set_that_others_can_change_is_not_served() {
    let setup = ran_once().file("answer.rhai", BROKEN_SCRIPT);
    let dir = setup.dir().to_owned();
    let file = kept(&dir.join("state"));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(file.parent().unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let ended = attempt_in(&dir);
    assert!(ended.0 == Some(2) && ended.1.contains("others can write it"), "{ended:?}");
}

#[test]
fn neither_keys_nor_secrets_nor_certificates_are_kept() {
    if !has(&["openssl"]) {
        return;
    }
    let secret = "dGhpcnR5LXR3byBieXRlcyBvZiBhIHNlY3JldCBrZXk=";
    let config = "
listeners: [{ name: main, bind: 127.0.0.1:0, tls: { certificates: [{ cert: tls/a.test.pem, key: tls/a.test.key }], client_auth: { ca: tls/ca.pem, mode: optional } } }]
plugins: [{ sign: { algorithm: hmac-sha256, key: 'file:signing.key' } }, { ip_filter: { files: { deny: [denied.txt] } } }, { rhai: { file: answer.rhai } }]
routes: [{ respond: { status: 404 } }]
";
    let setup = Setup::new(config)
        .file("signing.key", secret)
        .file("denied.txt", "192.0.2.1\n")
        .file("answer.rhai", saying("good"));
    let authority = Authority::new(&setup.dir().join("tls"));
    authority.issue("a.test");
    let setup = setup.start().stop();
    let bytes = fs::read(kept(&setup.dir().join("state"))).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("respond(200, \\\"good\\\")") || holds("respond(200, \"good\")"));
    assert!(holds("file:signing.key"));
    for kept_out in [secret, "PRIVATE KEY", "BEGIN CERTIFICATE", "192.0.2.1"] {
        assert!(!holds(kept_out), "{kept_out} is kept");
    }
}

#[test]
fn the_unit_serves_the_last_good_inputs() {
    let unit = fs::read_to_string(repository().join("config/portcullis.service")).unwrap();
    let line =
        unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/portcullis ")).unwrap();
    assert!(!unit.contains("ExecStartPre="), "a check before it would forbid what it is to survive");
    let setup = Setup::new("state_dir: ${STATE_DIRECTORY}\nplugins: [{ rhai: { file: answer.rhai } }, { access_log: { target: '${LOGS_DIRECTORY}/access.log' } }]\nroutes: [{ respond: { status: 404 } }]\n")
        .file("answer.rhai", saying("good"))
        .directory("lib")
        .directory("log");
    let dir = setup.dir().to_owned();
    let config = dir.join("gateway.yaml").display().to_string();
    let line = line.replace("/etc/portcullis/portcullis.yaml", &config);
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let gateway = setup
        .variable("STATE_DIRECTORY", dir.join("lib").display())
        .variable("LOGS_DIRECTORY", dir.join("log").display())
        .variable("CONFIGURATION_DIRECTORY", dir.display())
        .arguments(&arguments)
        .start();
    assert_eq!(gateway.get("/").text(), "good");
    let setup = gateway.stop().file("answer.rhai", BROKEN_SCRIPT);
    let gateway = setup.arguments(&arguments).start();
    assert_eq!(gateway.get("/").text(), "good");
    assert!(gateway.status()["last_good"].is_u64());
    assert!(dir.join("log/access.log").is_file());
}
