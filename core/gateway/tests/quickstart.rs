//! The quickstart, as someone meets it who just got the program and nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use support::{command, get, post, send, signal};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Quickstart {
    dir: TempDir,
    child: Child,
    gateway: String,
    admin: String,
    /// Where the program put its files.
    files: PathBuf,
}

/// Which ports a quickstart takes.
#[derive(Clone, Copy, PartialEq)]
enum Ports {
    /// The usual ones, or the next.
    Usual,
    /// Some that nobody else looks at, so that tests do not meet.
    Any,
}

impl Quickstart {
    /// Starts the program with no arguments, away from its checkout, and reads what it prints.
    fn start(ports: Ports) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("portcullis");
        let built = Path::new(env!("CARGO_BIN_EXE_portcullis"));
        fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).unwrap();
        let mut command = command(&program, &[]);
        if ports == Ports::Any {
            command.env("PORTCULLIS_PORT", "0").env("PORTCULLIS_ADMIN_PORT", "0");
        }
        let mut child = command
            .current_dir(dir.path())
            .env("TMPDIR", dir.path())
            .env("XDG_STATE_HOME", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut after = |mark: &str, end: char| {
            let line = lines.find(|line| line.contains(mark)).unwrap_or_else(|| panic!("no {mark}"));
            let rest = line.split_once(mark).unwrap().1;
            rest.split(end).next().unwrap().trim().to_owned()
        };
        let gateway = after("portcullis is running at http://", ',');
        let admin = after("curl -s http://", '/');
        let config = PathBuf::from(after("Watched: ", ','));
        std::thread::spawn(move || lines.for_each(drop));
        let files = config.ancestors().nth(2).unwrap().to_owned();
        Quickstart { dir, child, gateway, admin, files }
    }

    fn reload(&self) {
        // The watcher may have been first.
        assert!(post(&self.admin, "/reload").starts_with("HTTP/1.1 200"));
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_it_says_to_try_is_true() {
    let quickstart = Quickstart::start(Ports::Any);
    assert!(quickstart.files.starts_with(quickstart.dir.path()));
    let answer = get(&quickstart.gateway, "/anything");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-powered-by-policy: Hello"), "{answer}");
    let seen: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!((seen["path"].as_str(), seen["headers"]["x-greeting"].is_string()), (Some("/anything"), true));
    assert!(get(&quickstart.gateway, "/protected").starts_with("HTTP/1.1 401"));

    let script = quickstart.files.join("scripts/hello.rhai");
    let text = fs::read_to_string(&script).unwrap();
    fs::write(&script, text.replace("Hello", "Good morning")).unwrap();
    quickstart.reload();
    assert!(get(&quickstart.gateway, "/anything").contains("x-powered-by-policy: Good morning"));

    let policy = quickstart.files.join("config/policies/10-closed.rhai");
    fs::write(&policy, "fn on_request(ctx) { return deny(503, \"closed\"); }\n").unwrap();
    quickstart.reload();
    assert!(get(&quickstart.gateway, "/anything").starts_with("HTTP/1.1 503"));
    fs::remove_file(&policy).unwrap();
    quickstart.reload();
    assert!(get(&quickstart.gateway, "/anything").starts_with("HTTP/1.1 200"));
}

#[test]
fn its_files_go_with_it() {
    for stop in ["TERM", "INT"] {
        let mut quickstart = Quickstart::start(Ports::Any);
        assert!(quickstart.files.is_dir());
        signal(&quickstart.child, stop);
        assert!(quickstart.child.wait().unwrap().success());
        assert!(!quickstart.files.exists());
    }
}

#[test]
fn two_of_them_run_beside_each_other() {
    let (one, other) = (Quickstart::start(Ports::Usual), Quickstart::start(Ports::Usual));
    assert_ne!(one.gateway, other.gateway);
    assert!(
        get(&one.gateway, "/").starts_with("HTTP/1.1 200")
            && get(&other.gateway, "/").starts_with("HTTP/1.1 200")
    );
}

#[test]
fn the_first_signal_drains_and_the_second_ends_at_once() {
    let mut quickstart = Quickstart::start(Ports::Any);
    let _running = send(&quickstart.gateway, "GET", "/slow?ms=60000");
    until(|| get(&quickstart.admin, "/metrics").contains("portcullis_exchanges_open 1"));
    signal(&quickstart.child, "TERM");
    until(|| get(&quickstart.admin, "/readyz").starts_with("HTTP/1.1 503"));
    assert!(quickstart.child.try_wait().unwrap().is_none());
    signal(&quickstart.child, "TERM");
    let asked = Instant::now();
    assert!(quickstart.child.wait().unwrap().success());
    assert!(asked.elapsed() < PATIENCE);
}

/// Asks again until it is so; each question is a round trip, so this does not spin.
fn until(so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < PATIENCE, "it never was so");
    }
}
