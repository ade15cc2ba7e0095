//! Policies in other languages: `portcullis new wasm --lang` writes each, its own `build.sh` builds it, and the gateway
//! runs it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]

use portcullis_tests::tools::{has, tool};
use portcullis_tests::{Origin, Setup, repository, request, run_in};

/// Builds what `new wasm --lang` writes and runs it with these options.
fn works(language: &str, needs: &[&str], options: &str) {
    if !has(needs) {
        return;
    }
    let origin = Origin::start();
    let setup = Setup::new(&format!(
        "plugins: [{{ wasm: {{ file: guarded/guarded.wasm, config: {{ greeting: hi }}, {options} }} }}]\n"
    ))
    .before(&origin);
    let made = run_in(setup.dir(), &["new", "wasm", "guarded", "--lang", language]);
    assert!(made.status.success(), "{}", made.err);
    // Toolchains are kept from one run to the next.
    let tools = format!("PORTCULLIS_TOOLS={}", repository().join("target/languages").display());
    let script = setup.dir().join("guarded/build.sh");
    tool("env", &[&tools, "sh", script.to_str().unwrap()]);
    let gateway = setup.start();
    for _ in 0..3 {
        let greeted = gateway.get("/echo");
        assert_eq!((greeted.status, &greeted.json()["headers"]["x-policy"]), (200, &"hi".into()));
        let refused = gateway.ask(&request("GET", "/echo").header("x-refuse", "yes"));
        assert_eq!(refused.status, 403);
    }
    gateway.replace("gateway.yaml", "greeting: hi", "greeting: 7");
    let refusal = gateway.wait_refused();
    assert!(refusal.contains("greeting"), "{refusal}");
}

#[test]
fn a_policy_in_c() {
    works("c", &["clang", "wasm-ld"], "memory: 1MiB, cpu: 50ms");
}

#[test]
fn a_policy_in_javascript() {
    works("javascript", &["npm", "node"], "cpu: 1s");
}

#[test]
fn a_policy_in_python() {
    works("python", &["python3"], "memory: 64MiB, cpu: 1s, isolation: { reuse: 100 }");
}
