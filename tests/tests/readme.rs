//! What README.md promises. Every block marked `sh` is run, as a newcomer would run it, in a copy of what a
//! checkout has; the blocks of other languages are put where the text around them says. A block that no test
//! here knows fails [`every_block_is_known`], so that none is added without one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use portcullis_tests::tools::{guest, has, tool};
use portcullis_tests::{Http, Output, Setup, nobody, program, repository, request, run_in, until};
use serde_json::Value;
use tempfile::TempDir;

/// How each block of the README begins, with its language, in their order.
const BLOCKS: &[(&str, &str)] = &[
    ("sh", "cargo run --release\n"),
    ("sh", "curl -i http://127.0.0.1:8080/anything\n"),
    ("sh", "sed -i 's/Hello/Good morning/' scripts/hello.rhai\n"),
    ("sh", "echo 'fn on_request(ctx) {' >> scripts/hello.rhai\n"),
    // This is what runs these tests.
    ("sh", "./tests/run\n"),
    ("sh", "portcullis new script my-rule\n"),
    ("rhai", "fn on_request(ctx) {\n"),
    ("yaml", "on_error: deny\n"),
    ("sh", "portcullis new wasm block-path\n"),
    ("yaml", "listeners:\n"),
];

/// The README's blocks with their languages.
fn blocks() -> Vec<(String, String)> {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    let inside = text.split("```").skip(1).step_by(2).filter_map(|part| part.split_once('\n'));
    inside.map(|(language, block)| (language.to_owned(), block.to_owned())).collect()
}

/// The block that begins so.
#[track_caller]
fn block(begins: &str) -> String {
    let found = blocks().into_iter().find(|(_, block)| block.starts_with(begins));
    found.unwrap_or_else(|| panic!("README.md has no block that begins with {begins:?}")).1
}

/// The command within a sentence that begins so.
#[track_caller]
fn code(begins: &str) -> String {
    let text = fs::read_to_string(repository().join("README.md")).unwrap();
    let found = text.split('`').find(|code| code.starts_with(begins)).map(str::to_owned);
    found.unwrap_or_else(|| panic!("README.md has no command that begins with {begins:?}"))
}

#[test]
fn every_block_is_known() {
    for (language, block) in blocks() {
        let known = BLOCKS.iter().any(|(of, begins)| *of == language && block.starts_with(begins));
        assert!(known, "no test runs this block of README.md:\n{block}");
    }
}

/// A copy of what the README needs of a checkout, with the quickstart running in it.
struct Checkout {
    dir: TempDir,
    gateway: u16,
    admin: u16,
    running: Child,
}

impl Checkout {
    /// Runs the first block: `cargo run --release`.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("core/gateway")).unwrap();
        fs::write(root.join("Cargo.toml"), "").unwrap();
        for part in ["config", "scripts"] {
            copy(&repository().join(part), &root.join(part));
        }
        fs::create_dir_all(root.join("config/policies")).unwrap();
        fs::create_dir_all(root.join("bin")).unwrap();
        symlink(program(), root.join("bin/portcullis")).unwrap();
        // Of cargo, only what runs the program stands for the program.
        let real = which("cargo");
        let cargo = format!(
            "#!/bin/sh\n[ \"$1\" = run ] || exec {} \"$@\"\nshift 2\n[ $# = 0 ] || shift\nexec portcullis \"$@\"\n",
            real.display()
        );
        fs::write(root.join("bin/cargo"), cargo).unwrap();
        fs::set_permissions(root.join("bin/cargo"), fs::Permissions::from_mode(0o755)).unwrap();
        // What it is a checkout of.
        for arguments in [["init", "-q"].as_slice(), &["add", "scripts"], &["commit", "-q", "-m", "scripts"]]
        {
            let author = ["-c", "user.name=test", "-c", "user.email=test@example.com"];
            tool("git", &[["-C", root.to_str().unwrap()].as_slice(), &author, arguments].concat());
        }
        let (gateway, admin) = (nobody().port(), nobody().port());
        let start = shell(root, gateway, admin, &format!("exec {}", block("cargo run --release\n")));
        let mut checkout = Checkout { dir, gateway, admin, running: spawn(start) };
        until("the quickstart to answer", || {
            assert!(checkout.running.try_wait().unwrap().is_none(), "the quickstart ended");
            Http::connect(([127, 0, 0, 1], gateway).into())
                .is_ok_and(|mut http| http.ask(&request("GET", "/")).is_ok())
        });
        checkout
    }

    /// Runs a block.
    fn run(&self, begins: &str) -> Output {
        let output = shell(self.dir.path(), self.gateway, self.admin, &block(begins)).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Output { status: output.status, out: text(output.stdout), err: text(output.stderr) }
    }

    fn get(&self, path: &str) -> (u16, String) {
        let answer =
            Http::connect(([127, 0, 0, 1], self.gateway).into()).unwrap().ask(&request("GET", path)).unwrap();
        (answer.status, answer.header("x-powered-by-policy").unwrap_or_default().to_owned())
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

/// A shell that runs a block, with the ports that are free here in place of the usual ones.
fn shell(root: &Path, gateway: u16, admin: u16, block: &str) -> Command {
    let ports =
        |text: &str| text.replace(":8080", &format!(":{gateway}")).replace(":9901", &format!(":{admin}"));
    let path = format!("{}:{}", root.join("bin").display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", &ports(block)]).current_dir(root).stdin(Stdio::null());
    shell.env("PATH", path).env("NO_COLOR", "1").env("XDG_STATE_HOME", root).env_remove("PORTCULLIS_CONFIG");
    shell.env("PORTCULLIS_PORT", gateway.to_string()).env("PORTCULLIS_ADMIN_PORT", admin.to_string());
    shell
}

fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn the_session_is_true() {
    if !has(&["curl"]) {
        return;
    }
    let checkout = Checkout::start();
    let answers = checkout.run("curl -i http://127.0.0.1:8080/anything\n").out;
    let codes: Vec<_> =
        answers.lines().filter(|line| line.starts_with("HTTP/1.1")).map(|line| &line[9..12]).collect();
    assert_eq!(codes, ["200", "401", "200"], "{answers}");
    assert!(answers.contains("x-powered-by-policy: Hello"), "{answers}");

    let edit = block("sed -i 's/Hello/Good morning/' scripts/hello.rhai\n");
    let (sed, curl) = edit.split_once('\n').unwrap();
    assert!(curl.contains("grep x-powered-by-policy"));
    let edited = shell(checkout.dir.path(), checkout.gateway, checkout.admin, sed).status().unwrap();
    assert!(edited.success());
    until("the edit to be seen", || checkout.get("/anything").1.starts_with("Good morning"));

    let broken = block("echo 'fn on_request(ctx) {' >> scripts/hello.rhai\n");
    let (echo, status) = broken.split_once('\n').unwrap();
    assert!(shell(checkout.dir.path(), checkout.gateway, checkout.admin, echo).status().unwrap().success());
    let told = || shell(checkout.dir.path(), checkout.gateway, checkout.admin, status).output().unwrap();
    until("the mistake to be refused", || told().status.code() == Some(1));
    let told = String::from_utf8(told().stdout).unwrap();
    assert!(told.contains("hello.rhai:") && told.contains("was refused"), "{told}");
    assert!(checkout.get("/anything").1.starts_with("Good morning"));

    let mend = code("git checkout ");
    assert!(shell(checkout.dir.path(), checkout.gateway, checkout.admin, &mend).status().unwrap().success());
    let sound = || shell(checkout.dir.path(), checkout.gateway, checkout.admin, status).status().unwrap();
    until("the mistake to be mended", || {
        sound().success() && checkout.get("/anything").1.starts_with("Hello")
    });
}

#[test]
fn what_is_to_be_installed_is_the_program() {
    let install = code("cargo install ");
    let path = install.split_once("--path ").unwrap().1;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let manifest = repository().join(path).join("Cargo.toml");
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"];
    let told = tool(&cargo, &[arguments.as_slice(), &[manifest.to_str().unwrap()]].concat());
    let metadata: Value = serde_json::from_str(&told).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package =
        packages.iter().find(|package| Path::new(package["manifest_path"].as_str().unwrap()) == manifest);
    let targets = package.unwrap()["targets"].as_array().unwrap();
    let is_program = |target: &Value| target["name"] == "portcullis" && target["kind"][0] == "bin";
    assert!(targets.iter().any(is_program), "`{install}` installs no program `portcullis`");
}

#[test]
fn a_taken_port_is_passed_over_and_told() {
    // Whoever has the port already serves the purpose too.
    let _taken = TcpListener::bind("127.0.0.1:8080");
    let dir = tempfile::tempdir().unwrap();
    let mut start = Command::new(program());
    start.arg("run").current_dir(dir.path()).env("XDG_STATE_HOME", dir.path()).env("TMPDIR", dir.path());
    start.env("PORTCULLIS_ADMIN_PORT", "0").env_remove("PORTCULLIS_PORT").env_remove("PORTCULLIS_CONFIG");
    let mut running =
        start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(running.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut after = |mark: &str| {
        let line = said.find(|line| line.contains(mark)).unwrap_or_else(|| panic!("it did not say `{mark}`"));
        let digits = line.split_once(mark).unwrap().1.chars().take_while(char::is_ascii_digit);
        digits.collect::<String>().parse::<u16>().unwrap()
    };
    let other = after("port 8080 is taken, using ");
    let serving = after("portcullis is running at http://127.0.0.1:");
    let answer = Http::connect(([127, 0, 0, 1], serving).into()).unwrap().ask(&request("GET", "/anything"));
    // Nothing reads on, so it is ended before it has more to say.
    let _ = running.kill();
    running.wait().unwrap();
    assert!(other > 8080 && serving == other, "{other} told, {serving} served");
    assert_eq!(answer.unwrap().status, 200);
}

#[test]
fn a_new_script_and_the_snippets_for_it_apply() {
    let checkout = Checkout::start();
    let made = checkout.run("portcullis new script my-rule\n");
    let scaffold = checkout.dir.path().join("my-rule.rhai");
    assert!(made.status.success() && scaffold.is_file(), "{made:?}");
    let policies = checkout.dir.path().join("config/policies");
    fs::write(policies.join("50-my-rule.yaml"), block("on_error: deny\n")).unwrap();
    fs::write(policies.join("50-my-rule.rhai"), block("fn on_request(ctx) {\n")).unwrap();
    until("the policy to apply", || checkout.get("/anything").0 == 400);
    fs::remove_file(policies.join("50-my-rule.rhai")).unwrap();
    until("the policy to be gone", || checkout.get("/anything").0 == 200);
}

#[test]
fn a_new_module_applies_without_a_restart() {
    // Whoever has built the guests can build this one.
    if guest("block_path").is_none() {
        return;
    }
    let checkout = Checkout::start();
    let root = checkout.dir.path();
    let steps = block("portcullis new wasm block-path\n");
    let (new, build) = steps.split_once('\n').unwrap();
    assert!(shell(root, 0, 0, new).status().unwrap().success());
    // What the guests are made of is built already; this is not about the time that takes. A copy, since a
    // guest has the same name.
    let built = repository().join("target/guests");
    tool("cp", &["-a", built.to_str().unwrap(), root.join("block-path/target").to_str().unwrap()]);
    assert_eq!(checkout.get("/internal/x").0, 200);
    let built = |offline| {
        let output = shell(root, 0, 0, build).env("CARGO_NET_OFFLINE", offline).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = Some(built("true")).filter(|(done, _)| *done).unwrap_or_else(|| built("false"));
    assert!(done, "{said}");
    until("the module to apply", || checkout.get("/internal/x").0 == 403);
    assert_eq!(checkout.get("/anything").0, 200);
}

#[test]
fn the_configuration_is_right() {
    let setup = Setup::new("").directory("policies");
    fs::write(setup.dir().join("gateway.yaml"), block("listeners:\n")).unwrap();
    let checked = run_in(setup.dir(), &["check", "gateway.yaml"]);
    assert!(checked.status.success() && checked.err.is_empty(), "{checked:?}");
}
