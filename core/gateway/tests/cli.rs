//! The program as its users start it.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use support::{get, post, signal};

fn portcullis(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    support::command(Path::new(env!("CARGO_BIN_EXE_portcullis")), arguments)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// A directory with a configuration in it.
fn with_config(text: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.yaml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn help_lists_every_command_and_how_to_begin() {
    let output = portcullis(&["--help"]);
    let text = stdout(&output);
    assert!(output.status.success());
    for word in
        ["run", "check", "schema", "plugins", "new", "status", "completions", "quickstart", "Exit codes"]
    {
        assert!(text.contains(word), "{word} is missing:\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn an_unknown_command_is_bad_usage() {
    let output = portcullis(&["chek"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("check"), "{}", stderr(&output));
}

#[test]
fn check_shows_all_errors_with_their_places() {
    let (_dir, path) = with_config(
        "\
listeners:
  - bind: 127.0.0.1:0
plugins:
  - cros: { origins: ['*'] }
  - rhai: { file: missing.rhai }
routes:
  - upstrem: api
",
    );
    for command in ["check", "run"] {
        let output = portcullis(&[command, &path]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(text.contains(&format!("{path}:4:5")) && text.contains("`cors`"), "{text}");
        assert!(text.contains(&format!("{path}:5:")) && text.contains("missing.rhai"), "{text}");
        assert!(text.contains(&format!("{path}:7:5")) && text.contains("upstrem"), "{text}");
    }
}

#[test]
fn a_helper_among_the_policies_is_shown_its_place() {
    let (dir, path) = with_config(
        "listeners: [{ bind: 127.0.0.1:0 }]\npolicies: { dir: . }\nroutes: [{ respond: { status: 204 } }]\n",
    );
    fs::write(dir.path().join("10-a.rhai"), "import \"lib\" as lib;\nfn on_request(ctx) { lib::f() }\n")
        .unwrap();
    fs::write(dir.path().join("lib.rhai"), "fn f() { }\n").unwrap();
    let text = stderr(&portcullis(&["check", &path]));
    assert!(
        text.contains("has no hook") && text.contains("put it into a subdirectory and import it"),
        "{text}"
    );

    fs::create_dir(dir.path().join("lib")).unwrap();
    fs::rename(dir.path().join("lib.rhai"), dir.path().join("lib/lib.rhai")).unwrap();
    let policy = "import \"lib/lib\" as lib;\nfn on_request(ctx) { lib::f() }\n";
    fs::write(dir.path().join("10-a.rhai"), policy).unwrap();
    let output = portcullis(&["check", &path]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn a_broken_pattern_is_told_in_one_line() {
    let (_dir, path) = with_config(
        "listeners: [{ bind: 127.0.0.1:0 }]\nplugins: [{ cors: { origins: ['/(a/'] } }, { mask: { patterns: ['/(a/'] } }]\n",
    );
    let text = stderr(&portcullis(&["check", &path]));
    assert_eq!(text.matches("not a regular expression: unclosed group\n").count(), 2, "{text}");
}

#[test]
fn check_shows_a_scripts_error_in_the_script() {
    let (dir, path) = with_config(
        "listeners: [{ bind: 127.0.0.1:0 }]\nplugins: [{ rhai: { file: bad.rhai } }]\nroutes: [{ respond: { status: 204 } }]\n",
    );
    fs::write(dir.path().join("bad.rhai"), "fn on_request(ctx) {\n    let x = ;\n}\n").unwrap();
    let output = portcullis(&["check", &path]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("bad.rhai:2:13"), "{}", stderr(&output));
    let json: Value = serde_json::from_slice(&portcullis(&["check", "--json", &path]).stdout).unwrap();
    assert_eq!(json["ok"], false);
    assert_eq!(json["findings"][0]["span"]["line"], 2);
}

#[test]
fn check_of_a_missing_file_names_it() {
    let output = portcullis(&["check", "/nonexistent/gateway.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/nonexistent/gateway.yaml"), "{}", stderr(&output));
}

#[test]
fn the_configuration_is_found_in_the_environment_and_the_working_directory() {
    let (dir, path) =
        with_config("listeners: [{ bind: 127.0.0.1:0 }]\nroutes: [{ respond: { status: 204 } }]\n");
    let by_variable = command(&["check"]).env("PORTCULLIS_CONFIG", &path).current_dir("/").output().unwrap();
    assert!(
        stdout(&by_variable).starts_with(&format!("{path}: ok (1 listener, 1 route")),
        "{}",
        stderr(&by_variable)
    );
    fs::rename(&path, dir.path().join("portcullis.yaml")).unwrap();
    let by_place = command(&["check"]).current_dir(dir.path()).output().unwrap();
    assert!(stdout(&by_place).starts_with("portcullis.yaml: ok"), "{}", stderr(&by_place));
}

#[test]
fn the_shipped_configurations_are_right() {
    let quickstart = repository().join("config/quickstart.yaml");
    let output = portcullis(&["check", quickstart.to_str().unwrap()]);
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));

    let dir = tempfile::tempdir().unwrap();
    let proxy = dir.path().join("reverse-proxy.yaml");
    let text = fs::read_to_string(repository().join("config/reverse-proxy.yaml")).unwrap();
    fs::write(&proxy, text.replace("/var/log/portcullis/", "")).unwrap();
    fs::create_dir_all(dir.path().join("policies")).unwrap();
    for name in ["api.example.com", "shop.example.com"] {
        certificate(&dir.path().join("tls"), name);
    }
    let output = portcullis(&["check", proxy.to_str().unwrap()]);
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    assert!(stdout(&output).contains("2 listeners"), "{}", stdout(&output));
}

/// A self-signed certificate for `name`; any will do, it is only loaded.
fn certificate(dir: &Path, name: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(format!("{name}.pem")), include_str!("tls/cert.pem")).unwrap();
    fs::write(dir.join(format!("{name}.key")), include_str!("tls/key.pem")).unwrap();
}

#[test]
fn the_systemd_unit_starts_this_program() {
    let unit = fs::read_to_string(repository().join("config/portcullis.service")).unwrap();
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let (program, arguments) = start.split_once(' ').unwrap();
    assert!(program.ends_with("/portcullis") && arguments.starts_with("run "), "{start}");
    assert!(unit.contains("Type=notify") && unit.contains("CAP_NET_BIND_SERVICE"));
}

#[test]
fn the_systemd_sockets_are_those_of_the_shipped_configuration() {
    let read = |file: &str| fs::read_to_string(repository().join("config").join(file)).unwrap();
    let unit = read("portcullis.socket");
    let sockets: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    let config = read("reverse-proxy.yaml");
    let lists = config.lines().filter_map(|line| line.trim().strip_prefix("bind: "));
    let bound: Vec<String> =
        lists.flat_map(|list| serde_json::from_str::<Vec<String>>(list).unwrap()).collect();
    assert!(!sockets.is_empty() && sockets == bound, "{sockets:?} {bound:?}");
    // What they are handed to is named like them.
    assert!(repository().join("config/portcullis.service").is_file());
}

#[test]
fn the_schema_is_json_and_knows_every_plugin() {
    let output = portcullis(&["schema"]);
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    for kind in kinds() {
        assert!(stdout(&output).contains(&format!("\"{kind}\"")), "{kind}");
    }
}

#[test]
fn every_plugin_is_listed_and_shown() {
    let kinds = kinds();
    for kind in ["access_log", "cors", "headers", "rhai", "wasm"] {
        assert!(kinds.iter().any(|known| known == kind), "{kind} is not in {kinds:?}");
    }
    for kind in kinds {
        let text = stdout(&portcullis(&["plugins", &kind]));
        assert!(text.starts_with(&format!("{kind}: ")) && text.contains("Options:"), "{text}");
        assert!(text.contains("Example:") && text.contains(&format!("- {kind}")), "{text}");
    }
    let output = portcullis(&["plugins", "cros"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("did you mean `cors`?"), "{}", stderr(&output));
}

fn kinds() -> Vec<String> {
    let list = stdout(&portcullis(&["plugins"]));
    list.lines()
        .take_while(|line| !line.is_empty())
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

#[test]
fn a_new_script_works_as_it_is() {
    let (dir, path) = with_config(
        "listeners: [{ bind: 127.0.0.1:0 }]\nplugins: [{ rhai: { file: my-rule.rhai } }]\nroutes: [{ respond: { status: 204 } }]\n",
    );
    let output = portcullis(&["new", "script", "my-rule", "--dir", dir.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains("my-rule.rhai"), "{}", stdout(&output));
    assert!(portcullis(&["check", &path]).status.success());
    let tested = portcullis(&["test", "--config", &path]);
    assert!(stdout(&tested).contains("3 passed, 0 failed"), "{}", stdout(&tested));
    let again = portcullis(&["new", "script", "my-rule", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("left as it is"), "{}", stderr(&again));
}

#[test]
fn a_new_module_is_a_crate() {
    let dir = tempfile::tempdir().unwrap();
    let output = portcullis(&["new", "wasm", "block-path", "--dir", dir.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let manifest = fs::read_to_string(dir.path().join("block-path/Cargo.toml")).unwrap();
    assert!(manifest.contains("block-path"), "{manifest}");
    assert!(
        dir.path().join("block-path/src/lib.rs").is_file()
            && dir.path().join("block-path/build.sh").is_file()
    );
}

#[test]
fn a_new_module_may_be_in_other_languages() {
    let dir = tempfile::tempdir().unwrap();
    let new = |name: &str, language: &str| {
        portcullis(&["new", "wasm", name, "--lang", language, "--dir", dir.path().to_str().unwrap()])
    };
    for (language, source) in
        [("c", "policy.c"), ("javascript", "policy.js"), ("python", "policy.py"), ("zig", "policy.zig")]
    {
        let output = new(language, language);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(dir.path().join(language).join(source).is_file());
        assert!(dir.path().join(language).join("wit/world.wit").is_file());
    }
    assert!(dir.path().join("c/sdk/policy.h").is_file());
    let unknown = new("x", "cobol");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("javascript"), "{}", stderr(&unknown));
}

#[test]
fn completions_complete() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&portcullis(&["completions", shell])).contains("portcullis"), "{shell}");
    }
}

/// A gateway that runs, and ends with the test.
struct Running {
    child: Child,
    gateway: String,
    admin: String,
}

impl Running {
    /// Starts the gateway with its addresses left to the system, and waits for its log to name them.
    fn start(config: &str) -> Self {
        let mut child =
            command(&["run", config]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut admin = None;
        let gateway = loop {
            let line = log.next().expect("the gateway ended before it listened");
            let Ok(event) = serde_json::from_str::<Value>(&line) else { panic!("not JSON: {line}") };
            let address = event["address"].as_str().map(str::to_owned);
            match event["message"].as_str() {
                Some("admin interface") => admin = address,
                Some("listening") => break address.unwrap(),
                _ => {}
            }
        };
        // Whoever does not read on would block the log's own thread, and nothing else; this reads on.
        std::thread::spawn(move || log.for_each(drop));
        Running { child, gateway, admin: admin.unwrap() }
    }

    fn status(&self) -> Output {
        portcullis(&["status", "--json", "--admin", &self.admin])
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SERVING: &str = "\
listeners: [{ bind: 127.0.0.1:0 }]
admin: { bind: 127.0.0.1:0 }
log: { format: json }
state_dir: state
pid_file: gateway.pid
plugins: [{ rhai: { file: answer.rhai } }]
routes: [{ respond: { status: 200, body: upstream } }]
";

fn serving() -> (TempDir, String, Running) {
    let (dir, path) = with_config(SERVING);
    script(&dir, "first");
    let running = Running::start(&path);
    (dir, path, running)
}

fn script(dir: &TempDir, text: &str) {
    let script = format!("fn on_request(ctx) {{ return respond(200, \"{text}\"); }}\n");
    fs::write(dir.path().join("answer.rhai"), script).unwrap();
}

#[test]
fn a_gateway_serves_reloads_refuses_and_drains() {
    let (dir, path, mut running) = serving();
    assert!(get(&running.gateway, "/").ends_with("first"));
    assert!(get(&running.admin, "/readyz").contains("ready: generation 1"));
    let pid = fs::read_to_string(dir.path().join("gateway.pid")).unwrap();
    assert_eq!(pid.trim(), running.child.id().to_string());

    let second = portcullis(&["run", &path]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("which is running"), "{}", stderr(&second));

    script(&dir, "second");
    assert!(post(&running.admin, "/reload").starts_with("HTTP/1.1 200"));
    assert!(get(&running.gateway, "/").ends_with("second"));

    fs::write(dir.path().join("answer.rhai"), "fn on_request(ctx) {\n    let x = ;\n}\n").unwrap();
    let refused = post(&running.admin, "/reload");
    assert!(refused.starts_with("HTTP/1.1 422") && refused.contains("answer.rhai:2:13"), "{refused}");
    assert!(get(&running.gateway, "/").ends_with("second"));
    assert!(get(&running.admin, "/readyz").contains("answer.rhai:2:13"));
    let status = running.status();
    assert_eq!(status.status.code(), Some(1));
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert!(status["last_error"]["text"].as_str().unwrap().contains("answer.rhai:2:13"), "{status}");
    assert!(get(&running.admin, "/metrics").contains("portcullis_reload_refused 1"));

    script(&dir, "third");
    assert!(post(&running.admin, "/reload").starts_with("HTTP/1.1 200"));
    assert!(get(&running.gateway, "/").ends_with("third"));
    assert!(running.status().status.success());

    signal(&running.child, "TERM");
    assert!(running.child.wait().unwrap().success());
    assert!(!dir.path().join("gateway.pid").exists());
}

#[test]
fn a_hangup_reloads_and_the_service_manager_hears_of_it() {
    let (dir, path) = with_config(SERVING);
    let socket_path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&socket_path).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let told = || {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    script(&dir, "first");
    let mut child = command(&["run", &path])
        .env("NOTIFY_SOCKET", &socket_path)
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let first = told();
    assert!(first.starts_with("READY=1\nSTATUS=generation 1, 1 routes"), "{first}");
    signal(&child, "HUP");
    // What a check of the files has to tell may come first.
    while !told().starts_with("RELOADING=1\nMONOTONIC_USEC=") {}
    while !told().starts_with("READY=1") {}
    signal(&child, "INT");
    assert!(told().starts_with("STOPPING=1"));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_start_with_a_broken_script_fails_and_shows_it() {
    let (dir, path) = with_config(SERVING);
    fs::write(dir.path().join("answer.rhai"), "fn on_request(ctx) {\n    let x = ;\n}\n").unwrap();
    let output = portcullis(&["run", &path]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("answer.rhai:2:13"), "{}", stderr(&output));
    assert!(!dir.path().join("gateway.pid").exists());
}

#[test]
fn a_taken_admin_address_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (dir, path) = with_config(
        &SERVING.replace("admin: { bind: 127.0.0.1:0 }", &format!("admin: {{ bind: '{address}' }}")),
    );
    script(&dir, "never");
    let output = portcullis(&["run", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("can't listen at {address}")), "{}", stderr(&output));
}
