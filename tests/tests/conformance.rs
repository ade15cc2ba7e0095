//! One suite of behaviours, run against one policy written three times: as a native plugin, as a script, as
//! a Wasm module (`conformance/`). What holds for one kind holds for all.
//!
//! The gateway runs inside the test's process, because the native plugin is not part of the program.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that cannot go on ends, and says where")]

#[path = "../conformance/native.rs"]
mod native;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use portcullis_control::{Control, Options, Registry};
use portcullis_plugin::{LogSink, LogSinks, Registration};
use portcullis_proxy::DataPlane;
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::record::Record;
use portcullis_tests::tools::guest;
use portcullis_tests::{Answer, Http, Http2, Origin, Request, here, request, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

const KINDS: &[Registration] = &[
    Registration::of::<portcullis_rhai::Script>(),
    Registration::of::<portcullis_wasm::Module>(),
    Registration::of::<native::Conformance>(),
];

#[test]
fn a_native_plugin_conforms() {
    suite("conformance: { greeting: hello }", None);
}

#[test]
fn a_script_conforms() {
    let script = fs::read(here().join("conformance/policy.rhai")).unwrap();
    suite("rhai: { file: policy, config: { greeting: hello }, limits: { time: 1s } }", Some(script));
}

#[test]
fn a_module_conforms() {
    let Some(module) = guest("conformance") else { return };
    suite("wasm: { file: policy, config: { greeting: hello }, cpu: 1s }", Some(module));
}

fn suite(plugin: &str, file: Option<Vec<u8>>) {
    let strict = Running::start(&format!("{{ name: policy, {plugin} }}"), file.as_deref());
    for (behaviour, holds) in BEHAVIOURS {
        // Shown if it does not.
        println!("{behaviour}");
        holds(&strict);
    }
    println!("its failure is passed over where on_error allows");
    let lenient = Running::start(&format!("{{ name: policy, on_error: allow, {plugin} }}"), file.as_deref());
    assert_eq!(lenient.told("fail").status, 200);
}

type Behaviour = (&'static str, fn(&Running));

const BEHAVIOURS: &[Behaviour] = &[
    ("it lets pass what it has nothing to say about", |running| {
        let answer = running.told("nothing");
        assert_eq!((answer.status, &answer.json()["path"]), (200, &json!("/users/7")));
        assert_eq!(running.logged()["decided_by"], Value::Null);
    }),
    ("it denies with a reason that only the log sees", |running| {
        let answer = running.told("deny");
        assert_eq!((answer.status, answer.header("content-type")), (403, Some("application/problem+json")));
        assert!(!answer.text().contains("conformance"), "{}", answer.text());
        let line = running.logged();
        assert_eq!(
            (&line["decided_by"], &line["hook"], &line["reason"]),
            (&json!("policy"), &json!("on_request"), &json!("conformance.denied"))
        );
        assert_eq!(line["upstream"], Value::Null);
    }),
    ("its verdict is recorded with the rule that it names", |running| {
        running.told("deny");
        let record = running.record();
        let decision = record.decided_by.unwrap();
        assert_eq!((&*decision.by, decision.reason.as_deref()), ("policy", Some("conformance.denied")));
        assert!(decision.rule.unwrap().starts_with("the first rule"));
        let steps: Vec<_> =
            record.steps.iter().map(|step| (&*step.plugin, &*step.hook, &*step.verdict)).collect();
        let expected = [("policy", "on_request", "respond"), ("policy", "on_log", "continue")];
        assert!(expected.iter().all(|step| steps.contains(step)), "{steps:?}");
    }),
    ("its changes are recorded by name", |running| {
        running.told("greet");
        let record = running.record();
        let step =
            record.steps.iter().find(|step| step.plugin == "policy" && step.hook == "on_request").unwrap();
        assert_eq!(
            (&*step.changed, &*step.verdict),
            (&["request header x-greeting".to_owned()][..], "continue")
        );
    }),
    ("it logs after its own refusal", |running| {
        running.told("deny");
        assert_eq!(running.logged()["facts"]["logged"], "403");
    }),
    ("it sees how a call of gRPC ended", |running| {
        running.call("deny");
        assert_eq!(running.logged()["facts"]["grpc"], "PERMISSION_DENIED");
    }),
    ("it answers itself", |running| {
        let answer = running.told("respond");
        assert_eq!(
            (answer.status, answer.header("x-made"), answer.text()),
            (201, Some("here"), "made".to_owned())
        );
        assert!(answer.header("content-type").unwrap().starts_with("text/plain"));
    }),
    ("it drops the connection", |running| {
        assert!(running.ask(&telling("drop")).is_err());
        assert_eq!(running.logged()["reason"], "dropped");
    }),
    ("its failure is a 500, and the next request is served", |running| {
        assert_eq!(running.told("fail").status, 500);
        let line = running.logged();
        let reason = line["reason"].as_str().unwrap();
        assert!(
            line["decided_by"] == "policy" && ["plugin.panic", "plugin.trap"].contains(&reason),
            "{line}"
        );
        assert_eq!(running.told("nothing").status, 200);
    }),
    ("it sets a request header from its configuration", |running| {
        assert_eq!(running.told("greet").json()["headers"]["x-greeting"], "hello");
    }),
    ("it removes a request header", |running| {
        let answer = running.ask(&telling("remove").header("x-secret", "1")).unwrap();
        assert_eq!(answer.json()["headers"]["x-secret"], Value::Null);
    }),
    ("it changes path and query, and the route stays", |running| {
        let seen = running.told("rewrite").json();
        assert_eq!((&seen["path"], &seen["query"]), (&json!("/rewritten"), &json!("by=policy")));
        let line = running.logged();
        assert_eq!((&line["path"], &line["route"]), (&json!("/users/7"), &json!("user")));
    }),
    ("it reads method, path, host, query, cookie, capture, route and client", |running| {
        let sent = request("PUT", "/users/7?q=a%20b").header("x-do", "read").header("host", "API.test:80");
        running.ask(&sent.header("cookie", "a=1; session=s1").body("")).unwrap();
        let expected = json!({
            "method": "PUT", "path": "/users/7", "host": "api.test", "query": "a b", "cookie": "s1", "capture": "7",
            "route": "user", "client": "127.0.0.1",
        });
        assert_eq!(running.logged()["facts"]["seen"], expected);
    }),
    ("what is missing reads as nothing", |running| {
        running.told("read");
        let seen = running.logged()["facts"]["seen"].clone();
        assert_eq!((&seen["query"], &seen["cookie"]), (&Value::Null, &Value::Null));
    }),
    ("the principal it sets is seen by a later plugin and in the log", |running| {
        assert_eq!(running.told("identify").json()["headers"]["x-user"], "ann");
        assert_eq!(running.logged()["principal"], "ann");
    }),
    ("it reads and changes the whole request body", |running| {
        let seen = running.ask(&telling("upper").body("hello")).unwrap().json();
        assert_eq!((&seen["body"], &seen["headers"]["content-length"]), (&json!("HELLO"), &json!("5")));
    }),
    ("it changes what goes upstream", |running| {
        assert_eq!(running.told("attempt").json()["headers"]["x-attempt"], "1");
    }),
    ("it changes status and headers of the response", |running| {
        let answer = running.told("stamp");
        assert_eq!((answer.status, answer.header("x-stamp")), (202, Some("200")));
        assert_eq!(running.logged()["facts"]["logged"], "202");
    }),
    ("it replaces the response", |running| {
        let answer = running.told("replace");
        assert_eq!((answer.status, answer.header("content-type")), (451, Some("application/problem+json")));
        let line = running.logged();
        assert_eq!((&line["hook"], &line["reason"]), (&json!("on_response"), &json!("conformance.replaced")));
    }),
    ("it reads and changes the whole response body", |running| {
        let answer = running.ask(&request("GET", "/body/hello").header("x-do", "wrap")).unwrap();
        assert_eq!((answer.text(), answer.header("content-length")), ("<hello>".to_owned(), Some("7")));
    }),
    ("its longest body is refused beyond its limit", |running| {
        assert_eq!(running.ask(&telling("upper").body(vec![b'a'; (1 << 20) + 1])).unwrap().status, 413);
    }),
];

fn telling(what: &str) -> Request {
    request("POST", "/users/7").header("x-do", what)
}

/// A gateway in this process.
struct Running {
    address: SocketAddr,
    lines: Arc<Lines>,
    /// Number of the last request, which it carries in a header.
    turn: AtomicUsize,
    _runtime: tokio::runtime::Runtime,
    _control: Control,
    plane: Arc<DataPlane>,
    _origin: Origin,
    _dir: TempDir,
}

impl Running {
    fn start(plugin: &str, file: Option<&[u8]>) -> Self {
        // An error means that it is there already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let origin = Origin::start();
        let config = format!(
            "
listeners: [{{ name: main, bind: 127.0.0.1:0 }}]
plugins:
  - access_log: {{ target: memory, facts: [seen, logged, grpc], headers: [x-turn] }}
  - {plugin}
  - headers: {{ request: {{ set: {{ x-user: \"{{principal}}\" }} }} }}
upstreams: {{ origin: {{ endpoints: [\"http://{}\"] }} }}
routes:
  - {{ name: user, match: {{ path: \"/users/{{id}}\" }}, upstream: origin }}
  - {{ name: rest, upstream: origin }}
",
            origin.address()
        );
        fs::write(dir.path().join("gateway.yaml"), config).unwrap();
        if let Some(content) = file {
            fs::write(dir.path().join("policy"), content).unwrap();
        }
        let lines = Arc::new(Lines::default());
        let metrics = Arc::new(Metrics::new(1));
        let plane = Arc::new(DataPlane::new(1, metrics.clone(), Vec::new()).unwrap());
        let options = Options {
            config: dir.path().join("gateway.yaml"),
            state_dir: None,
            last_good: None,
            fall_back: false,
            variables: BTreeMap::new(),
            log_sinks: Arc::new(Sinks(lines.clone())),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let registry = Registry::new(&[portcullis_plugins::BUILTIN, KINDS]);
        let control = runtime.block_on(Control::start(options, registry, plane.clone(), metrics));
        let control = control.unwrap_or_else(|errors| panic!("{}", errors.render(false)));
        let address = plane.addresses()[0].1.to_string().parse().unwrap();
        Running {
            address,
            turn: AtomicUsize::new(0),
            lines,
            _runtime: runtime,
            _control: control,
            plane,
            _origin: origin,
            _dir: dir,
        }
    }

    fn ask(&self, request: &Request) -> std::io::Result<Answer> {
        let turn = self.turn.fetch_add(1, Ordering::SeqCst) + 1;
        Http::connect(self.address)?.ask(&request.clone().header("x-turn", &turn.to_string()))
    }

    fn told(&self, what: &str) -> Answer {
        self.ask(&telling(what).body("")).unwrap()
    }

    /// The same of a call of gRPC.
    fn call(&self, what: &str) {
        let turn = self.turn.fetch_add(1, Ordering::SeqCst) + 1;
        let mut client = Http2::open(self.address);
        let call = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "g"),
            (":path", "/users/7"),
            ("content-type", "application/grpc"),
            ("x-do", what),
            ("x-turn", &turn.to_string()),
        ];
        client.fields(1, true, &call.map(|(name, value)| (name.into(), value.into())));
        client.read_until(Http2::HEADERS);
    }

    /// The access log's line about the last request.
    fn logged(&self) -> Value {
        let turn = self.turn.load(Ordering::SeqCst).to_string();
        let is_it = |line: &&Value| line["headers"]["x-turn"] == turn;
        wait_for("the access log", || self.lines.0.lock().unwrap().iter().find(is_it).cloned())
    }

    /// The record of the last request.
    fn record(&self) -> Record {
        let id = self.logged()["id"].as_str().unwrap().to_owned();
        wait_for("the record", || self.plane.records().find(&id))
    }
}

#[derive(Default)]
struct Lines(Mutex<Vec<Value>>);

impl LogSink for Lines {
    fn write(&self, line: &[u8]) {
        self.0.lock().unwrap().push(serde_json::from_slice(line).unwrap());
    }
}

struct Sinks(Arc<Lines>);

impl LogSinks for Sinks {
    fn open(&self, _: &str) -> Result<Arc<dyn LogSink>, String> {
        Ok(self.0.clone())
    }
}
