//! The benchmark runs, ends well, and leaves nothing behind. How fast anybody is, is no matter here.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use portcullis_tests::tools::has;
use portcullis_tests::{program, until};
use serde_json::Value;

/// What the smallest comparison needs.
const TOOLS: [&str; 4] = ["nginx", "wrk", "openssl", "taskset"];

/// The benchmark, which `cargo test` builds like all examples, among whose files it is.
fn bench(dir: &Path, arguments: &[&str]) -> Command {
    let bench = program().with_file_name("examples/bench");
    assert!(bench.is_file(), "{} is not there: `cargo build --example bench`", bench.display());
    let mut command = Command::new(bench);
    command.args(arguments).arg("--binary").arg(program()).arg("--json").arg(dir.join("results.json"));
    // By this directory its processes are known.
    command.env("TMPDIR", dir).stdin(Stdio::null());
    command
}

/// Debian has nginx where only root looks for programs.
fn has_tools() -> bool {
    let nginx = ["/usr/sbin/nginx", "/usr/bin/nginx"].iter().any(|nginx| Path::new(nginx).is_file());
    let tools = if nginx { &TOOLS[1..] } else { &TOOLS[..] };
    has(tools)
}

fn path() -> String {
    format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Processes whose command line or environment names the directory.
fn processes_of(dir: &Path) -> Vec<PathBuf> {
    let name = dir.to_str().unwrap().as_bytes();
    let entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let named = entries.filter(|entry| {
        ["cmdline", "environ"].iter().any(|file| {
            let text = fs::read(entry.join(file)).unwrap_or_default();
            text.windows(name.len()).any(|part| part == name)
        })
    });
    named.collect()
}

#[test]
fn a_comparison_ends_with_a_table_and_figures() {
    if !has_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--quick", "--only", "plain", "--contestants", "portcullis,nginx"];
    let output = bench(dir.path(), &arguments).env("PATH", path()).output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{out}{err}");
    for row in ["| contestant ", "| portcullis ", "| nginx "] {
        assert!(out.contains(row), "no {row} in {out}");
    }
    let nginx = out.lines().find(|line| line.starts_with("| nginx ")).unwrap();
    assert_eq!(nginx.matches(" (1.00) |").count(), 4, "throughput, latencies and memory in {out}");

    let figures: Value = serde_json::from_slice(&fs::read(dir.path().join("results.json")).unwrap()).unwrap();
    let workloads = figures["workloads"].as_array().unwrap();
    assert_eq!((workloads.len(), &workloads[0]["name"]), (1, &Value::from("plain")));
    let contestants = workloads[0]["contestants"].as_object().unwrap();
    assert_eq!(contestants.keys().collect::<Vec<_>>(), ["portcullis", "nginx"]);
    for (name, metrics) in contestants {
        for metric in ["requests_per_second", "p50_us", "p99_us", "cpu_us_per_request", "memory_mib"] {
            let median = metrics[metric]["median"].as_f64().unwrap_or_default();
            assert!(median > 0.0, "{name}: {metric} is {median}");
            assert!(metrics[metric]["to_nginx"].as_f64().unwrap() > 0.0);
        }
        let [p50, p99] = ["p50_us", "p99_us"].map(|metric| metrics[metric]["median"].as_f64().unwrap());
        assert!(p50 <= p99, "{name}: {p50} {p99}");
    }
    assert_eq!(contestants["nginx"]["cpu_us_per_request"]["to_nginx"], 1.0);
    assert_eq!(processes_of(dir.path()), Vec::<PathBuf>::new());
}

#[test]
fn an_interrupted_benchmark_ends_what_it_started() {
    if !has_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--only", "plain", "--contestants", "portcullis", "--seconds", "60"];
    let mut command = bench(dir.path(), &arguments);
    let mut bench = command.env("PATH", path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let starts = |program: &str| {
        let ours = processes_of(dir.path()).into_iter();
        ours.filter_map(|entry| fs::read_link(entry.join("exe")).ok()).any(|exe| exe.ends_with(program))
    };
    until("the gateway and its load", || starts("portcullis") && starts("wrk"));
    let interrupted = Command::new("sh").args(["-c", "kill -INT $0", &bench.id().to_string()]).status();
    assert!(interrupted.unwrap().success());
    assert_eq!(bench.wait().unwrap().code(), Some(130));
    until("all its processes to end", || processes_of(dir.path()).is_empty());
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn what_is_not_known_is_refused_with_what_is() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, says) in [
        (["--only", "fast"], "`fast` is unknown; there are plain, "),
        (["--contestants", "us"], "`us` is unknown; there are portcullis, "),
        (["--rounds", "0"], "`0` is not a positive number"),
        (["--faster", "1"], "unknown option --faster"),
    ] {
        let output = bench(dir.path(), &arguments).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && err.contains(says), "{err}");
    }
}
