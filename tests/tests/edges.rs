//! What may depend on what, as `cargo metadata` has it. The list is the design; a new edge is a decision.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use portcullis_tests::{repository, tools::tool};
use serde_json::Value;

/// The only edges between crates of this workspace, tests of a crate included. `portcullis-tests`, on
/// which nothing may depend, may see everything.
const ALLOWED: [(&str, &[&str]); 9] = [
    (
        "portcullis",
        &[
            "portcullis-config",
            "portcullis-control",
            "portcullis-plugin",
            "portcullis-plugins",
            "portcullis-proxy",
            "portcullis-rhai",
            "portcullis-wasm",
        ],
    ),
    ("portcullis-control", &["portcullis-config", "portcullis-plugin", "portcullis-proxy"]),
    ("portcullis-proxy", &["portcullis-plugin"]),
    ("portcullis-plugins", &["portcullis-plugin"]),
    ("portcullis-wasm", &["portcullis-plugin"]),
    ("portcullis-rhai", &["portcullis-plugin"]),
    ("portcullis-config", &[]),
    ("portcullis-plugin", &[]),
    ("portcullis-guest", &[]),
];

/// Crates that only one crate of the workspace may name.
const OWNED: [(&str, &str); 8] = [
    ("wasmtime", "portcullis-wasm"),
    ("wit-component", "portcullis-wasm"),
    ("wit-bindgen", "portcullis-guest"),
    ("rhai", "portcullis-rhai"),
    ("notify", "portcullis-control"),
    ("tokio-rustls", "portcullis-proxy"),
    ("clap", "portcullis"),
    ("jsonschema", "portcullis-plugins"),
];

/// What the contract must not know: executors, HTTP implementations, TLS, formats of configurations.
const NOT_IN_THE_CONTRACT: [&str; 8] =
    ["tokio", "hyper", "hyper-util", "rustls", "serde-saphyr", "wasmtime", "rhai", "moka"];

/// Other crypto providers than `aws-lc-rs`.
const OTHER_CRYPTO: [&str; 4] = ["ring", "openssl", "openssl-sys", "native-tls"];

fn metadata() -> Value {
    let manifest = repository().join("Cargo.toml");
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"];
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    serde_json::from_str(&tool(&cargo, &[arguments.as_slice(), &[manifest.to_str().unwrap()]].concat()))
        .unwrap()
}

/// Each crate of the workspace, with what it names; optionally without what only its tests need.
fn dependencies(metadata: &Value, of_tests_too: bool) -> BTreeMap<String, BTreeSet<String>> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let named = packages.map(|package| {
        let all = package["dependencies"].as_array().unwrap().iter();
        let counted = all.filter(|dependency| of_tests_too || dependency["kind"] != "dev");
        (text(&package["name"]), counted.map(|dependency| text(&dependency["name"])).collect())
    });
    named.collect()
}

#[test]
fn only_the_designed_edges_exist() {
    let all = dependencies(&metadata(), true);
    let known: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).chain(["portcullis-tests"]).collect();
    assert_eq!(all.keys().map(String::as_str).collect::<BTreeSet<_>>(), known);
    for (name, allowed) in ALLOWED {
        let inside = all[name].iter().filter(|dependency| known.contains(dependency.as_str()));
        let foreign: Vec<_> = inside.filter(|dependency| !allowed.contains(&dependency.as_str())).collect();
        assert!(foreign.is_empty(), "{name} must not depend on {foreign:?}");
    }
}

#[test]
fn crates_with_a_single_user_have_no_other() {
    let all = dependencies(&metadata(), false);
    for (dependency, owner) in OWNED {
        let users: Vec<_> =
            all.iter().filter(|(_, named)| named.contains(dependency)).map(|(name, _)| name).collect();
        assert!(
            users.iter().all(|user| *user == owner),
            "{dependency} is for {owner} alone, and used by {users:?}"
        );
    }
}

#[test]
fn the_contract_knows_no_executor_no_http_implementation_and_no_format() {
    let tree = tree(&["-p", "portcullis-plugin"]);
    for name in NOT_IN_THE_CONTRACT {
        assert!(!tree.contains(name), "the contract depends on {name}");
    }
}

#[test]
fn there_is_one_crypto_provider() {
    let tree = tree(&["-p", "portcullis"]);
    assert!(tree.contains("aws-lc-rs"));
    for name in OTHER_CRYPTO {
        assert!(!tree.contains(name), "the gateway depends on {name}");
    }
}

#[test]
fn there_is_one_program() {
    let metadata = metadata();
    let targets = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|package| package["targets"].as_array().unwrap());
    let programs: Vec<_> =
        targets.filter(|target| target["kind"][0] == "bin").map(|target| &target["name"]).collect();
    assert_eq!(programs, ["portcullis"]);
}

/// The names of everything that is compiled into a crate, without what its tests need.
fn tree(of: &[&str]) -> BTreeSet<String> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let arguments = ["tree", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{lib}"];
    let output = Command::new(cargo).args(arguments).args(of).current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().map(|line| line.trim().replace('_', "-")).collect()
}
