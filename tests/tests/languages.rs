//! Policies in other languages: `portcullis new wasm --lang` writes each, its own `build.sh` builds it, and the gateway
//! runs it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends, and says where")]
#![allow(clippy::print_stderr, reason = "the figures of docs/languages.md are read from this output")]

use std::fs;
use std::time::{Duration, Instant};

use portcullis_tests::tools::{has, tool};
use portcullis_tests::{Gateway, Origin, Setup, repository, request, run_in};

/// The configuration of a policy, another that it refuses, and what it says to that.
struct Config(&'static str, &'static str, &'static str);

const TABLE: Config = Config("{ greeting: hi }", "{ greeting: 7 }", "greeting");

/// Uses what `new wasm --lang` writes with these options, and says what it costs.
fn works(language: &str, needs: &[&str], Config(right, wrong, said): Config, options: &str) {
    let options = format!("config: {right}, {options}");
    let Some(setup) = built(language, needs, &options, None) else { return };
    let origin = Origin::start();
    let setup = setup.before(&origin);
    let began = Instant::now();
    let gateway = setup.start();
    let start = began.elapsed();
    for _ in 0..TIMES {
        let greeted = gateway.get("/seen");
        assert_eq!((greeted.status, &greeted.json()["headers"]["x-policy"]), (200, &"hi".into()));
        let refused = gateway.ask(&request("GET", "/seen").header("x-refuse", "yes"));
        assert_eq!(refused.status, 403);
    }
    tell(language, start, &gateway);
    gateway.replace("gateway.yaml", &format!("config: {right}"), &format!("config: {wrong}"));
    let refusal = gateway.wait_refused();
    assert!(refusal.contains(said), "{refusal}");
}

/// Requests that a policy passes, and refuses.
const TIMES: usize = 20;

/// Says what a policy costs that has judged requests.
fn tell(language: &str, start: Duration, gateway: &Gateway) {
    let taken = |what: &str| {
        let name = format!("portcullis_plugin_hook_duration_seconds_{what}");
        gateway.metric(&name, &["kind=\"wasm\"", "hook=\"on_request\""])
    };
    let micros = taken("sum") / taken("count") * 1e6;
    eprintln!("{language}: start {start:.1?}, {micros:.0} us a request");
}

/// A gateway with a policy as it was written, or with this source, and built; none if a tool is missing. The policy's
/// own tests pass.
fn built(language: &str, needs: &[&str], options: &str, source: Option<(&str, &str)>) -> Option<Setup> {
    if !has(needs) {
        return None;
    }
    let setup = Setup::new(&format!("plugins: [{{ wasm: {{ file: guarded/guarded.wasm, {options} }} }}]\n"));
    let made = run_in(setup.dir(), &["new", "wasm", "guarded", "--lang", language]);
    assert!(made.status.success(), "{}", made.err);
    let project = setup.dir().join("guarded");
    if let Some((file, source)) = source {
        fs::write(project.join(file), source).unwrap();
        fs::remove_file(project.join("guarded.test.yaml")).unwrap();
    }
    // Toolchains are kept from one run to the next.
    let tools = format!("PORTCULLIS_TOOLS={}", repository().join("target/languages").display());
    let began = Instant::now();
    tool("env", &[&tools, "sh", project.join("build.sh").to_str().unwrap()]);
    let size = fs::metadata(project.join("guarded.wasm")).unwrap().len() >> 10;
    eprintln!("{language}: {size} KiB, built in {:.1?}", began.elapsed());
    if source.is_none() {
        let tested = run_in(setup.dir(), &["test", "guarded/guarded.test.yaml"]);
        assert!(tested.out.contains("2 passed, 0 failed"), "{} {}", tested.out, tested.err);
    }
    Some(setup)
}

#[test]
fn a_policy_in_rust() {
    let Some(setup) = built("rust", &["cargo"], "config: { prefix: /secret }", None) else { return };
    let origin = Origin::start();
    let setup = setup.before(&origin);
    let began = Instant::now();
    let gateway = setup.start();
    let start = began.elapsed();
    for _ in 0..TIMES {
        assert_eq!((gateway.get("/secret/keys").status, gateway.get("/seen").status), (403, 200));
    }
    tell("rust", start, &gateway);
}

#[test]
fn a_policy_in_c() {
    works("c", &["clang", "wasm-ld"], TABLE, "memory: 1MiB, cpu: 50ms");
}

#[test]
fn a_policy_in_javascript() {
    works("javascript", &["npm", "node"], TABLE, "cpu: 1s, isolation: { reuse: 100 }");
}

#[test]
fn a_policy_in_python() {
    works("python", &["python3"], TABLE, "memory: 64MiB, cpu: 1s, isolation: { reuse: 100 }");
}

#[test]
fn a_policy_in_zig() {
    works("zig", &["python3"], TABLE, "memory: 1MiB, cpu: 50ms");
}

#[test]
fn a_policy_in_go() {
    works("go", &["python3"], TABLE, "memory: 64MiB, cpu: 1s, isolation: { reuse: 100 }");
}

#[test]
fn a_policy_in_assemblyscript() {
    let config = Config("hi", "\"\"", "config: not a greeting");
    works("assemblyscript", &["npm", "node"], config, "memory: 1MiB, cpu: 50ms");
}

/// Tries whatever a program on a machine may do, and says what came of it.
const CURIOUS: &str = r#"
import json, os, random, socket, sys, time
from wit_world import exports
from wit_world.imports import exchange
from wit_world.imports.exchange import Message
from wit_world.imports.types import Verdict, Verdict_Continue

class Configuration(exports.Configuration):
    def configure(self) -> None:
        pass

class OnRequest(exports.OnRequest):
    def on_request(self) -> Verdict:
        host, port = exchange.header(Message.REQUEST, "x-origin").decode().split(":")
        tries = {
            "read": lambda: open("/etc/passwd").read(),
            "write": lambda: open("left-behind", "w"),
            "list": lambda: os.listdir("/"),
            "connect": lambda: socket.create_connection((host, int(port)), 1),
            "listen": lambda: socket.create_server((host, 0)),
            "resolve": lambda: socket.getaddrinfo("localhost", 80),
            "environment": lambda: sorted(os.environ),
            "arguments": lambda: sys.argv,
            "time": time.time,
            "random": lambda: list(os.urandom(4)),
        }
        got = {}
        for name, act in tries.items():
            try:
                got[name] = repr(act())
            except Exception as error:
                got[name] = type(error).__name__
        exchange.set_header(Message.REQUEST, "x-got", json.dumps(got).encode())
        return Verdict_Continue()
"#;

#[test]
fn a_module_reaches_nothing_of_the_machine() {
    let options = "memory: 64MiB, cpu: 1s, isolation: { reuse: 100 }";
    let Some(setup) = built("python", &["python3"], options, Some(("policy.py", CURIOUS))) else { return };
    let origin = Origin::start();
    let gateway = setup.variable("SECRET_OF_THE_GATEWAY", "hunter2").before(&origin).start();
    let asked = request("GET", "/seen").header("x-origin", &origin.address().to_string());
    let sent = gateway.ask(&asked).json();
    let got: serde_json::Value = serde_json::from_str(sent["headers"]["x-got"].as_str().unwrap()).unwrap();
    for (what, failed) in
        [("read", true), ("write", true), ("list", true), ("connect", true), ("listen", true)]
    {
        let error = got[what].as_str().unwrap().ends_with("Error");
        assert_eq!(error, failed, "{what}: {got}");
    }
    assert!(!got.to_string().contains("SECRET_OF_THE_GATEWAY"), "{got}");
    assert_eq!((&got["time"], origin.served()), (&"0.0".into(), 1), "{got}");
    let again = gateway.ask(&asked).json();
    eprintln!("{got} {}", again["headers"]["x-got"]);
}
