//! Filters in Envoy and here: what client and origin see of the same requests through the same guest is the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use portcullis_tests::tools::{envoy, guest};
use portcullis_tests::{Http, Origin, Request, Setup, repository, request, wait_for};
use serde_json::{Value, json};
use tempfile::TempDir;

const FILTER: &str = "proxy_wasm_guest";

/// A request that the guest is to do something with.
struct Case {
    act: &'static str,
    method: &'static str,
    path: &'static str,
    body: Option<&'static str>,
}

const fn get(act: &'static str, path: &'static str) -> Case {
    Case { act, method: "GET", path, body: None }
}

const fn post(act: &'static str, body: &'static str) -> Case {
    Case { act, method: "POST", path: "/up?x=1", body: Some(body) }
}

/// What is asked of both. Left out is what ends Envoy's VM, or never ends there: see docs/proxy-wasm.md.
const CASES: &[Case] = &[
    get("nothing", "/plain?a=b&c"),
    get("nothing", "/status/404"),
    get("nothing", "/status/204"),
    get("nothing", "/status/304"),
    get("nothing", "/big/100000"),
    Case { act: "nothing", method: "HEAD", path: "/body/hello", body: None },
    get("headers", "/a"),
    post("headers", "with a body"),
    get("all-headers", "/a"),
    get("refuse", "/a"),
    post("refuse", "never sent"),
    Case { act: "refuse", method: "HEAD", path: "/a", body: None },
    get("call /body/hello", "/a"),
    post("call /header/x-kind/plain", "waits"),
    get("call /status/403", "/a"),
    get("call /status/204", "/a"),
    get("call /big/20000", "/status/204"),
    get("call-slowly /hold", "/a"),
    get("stranger", "/a"),
    post("shout", "streams"),
    post("shout", ""),
    post("refuse-body", "any"),
    get("count", "/a"),
    get("count", "/a"),
    get("metrics", "/a"),
    get("time", "/a"),
    get("own-property", "/a"),
    get("shared nothing", "/a"),
    get("property request.path", "/a/b?c=d"),
    get("property request.url_path", "/a/b?c=d"),
    get("property request.query", "/a/b?c=d"),
    get("property request.query", "/a/b"),
    get("property request.host", "/a"),
    get("property request.scheme", "/a"),
    get("property request.method", "/a"),
    get("property request.protocol", "/a"),
    get("property request.referer", "/a"),
    get("property request.useragent", "/a"),
    get("property request.headers.x-set", "/a"),
    get("property request.headers.x-none", "/a"),
    get("property response.code", "/a"),
    get("property connection.mtls", "/a"),
    get("property connection.tls_version", "/a"),
    get("property listener_direction", "/a"),
    get("property plugin_name", "/a"),
    get("property plugin_root_id", "/a"),
    get("property plugin_vm_id", "/a"),
    get("property no.such.thing", "/a"),
    get("response", "/header/x-kind/plain"),
    get("response", "/status/500"),
    get("replace", "/body/original"),
    get("shout-back", "/body/hello"),
    get("shout-back", "/big/50000"),
];

/// Where the two differ, and why. Each of them is in docs/proxy-wasm.md.
const DIFFERENT: &[(&str, &str)] = &[
    ("GET /a headers", "A header that comes several times"),
    ("POST /up?x=1 headers", "A header that comes several times"),
    ("GET /a call /body/hello", "Answers of calls"),
    ("POST /up?x=1 call /header/x-kind/plain", "Answers of calls"),
    ("GET /a call /status/204", "Answers of calls"),
    ("GET /a property listener_direction", "`listener_direction`"),
    ("GET /a own-property", "A property that a module has set"),
];

/// Headers that a hop writes for itself: framing, and what each of the two tells of itself or of the client.
fn is_of_the_hop(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "date",
        "server",
        "via",
        "connection",
        "keep-alive",
        "content-length",
        "transfer-encoding",
        "x-request-id",
        "forwarded",
    ];
    NAMES.contains(&name) || name.starts_with("x-envoy-") || name.starts_with("x-forwarded-")
}

/// What came of a request, without what belongs to the hop.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    headers: BTreeMap<String, Vec<String>>,
    body: String,
}

fn ask(address: SocketAddr, request: &Request) -> Seen {
    let answer = Http::connect(address).unwrap().ask(request);
    let answer = answer.unwrap_or_else(|error| panic!("{address} {request:?}: {error}"));
    let mut headers = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in answer.headers.iter().filter(|(name, _)| !is_of_the_hop(name)) {
        headers.entry(name.clone()).or_default().push(value.clone());
    }
    Seen { status: answer.status, headers, body: body(&answer.text()) }
}

/// What the origin saw, without what belongs to the hop; or another body as it is.
fn body(text: &str) -> String {
    let Ok(Value::Object(mut seen)) = serde_json::from_str(text) else { return text.to_owned() };
    if let Some(Value::Object(headers)) = seen.get_mut("headers") {
        headers.retain(|name, _| !is_of_the_hop(name));
    }
    serde_json::to_string_pretty(&seen).unwrap()
}

impl Case {
    fn request(&self) -> Request {
        let request = request(self.method, self.path)
            .header("host", "shop.test")
            .header("x-do", self.act)
            .header("x-gone", "1")
            .header("x-set", "old")
            .header("user-agent", "a test")
            .header("cookie", "a=1; b=2");
        match self.body {
            Some(body) => request.body(body),
            None => request,
        }
    }

    fn name(&self) -> String {
        format!("{} {} {}", self.method, self.path, self.act)
    }
}

/// Envoy with the filter before an origin. It ends with this value.
struct Envoy {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Envoy {
    fn start(program: &Path, module: &Path, origin: &Origin) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("envoy.json");
        fs::write(&config, configuration(module, origin.address()).to_string()).unwrap();
        let admin = dir.path().join("admin");
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(program)
            .args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning", "-c"])
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut envoy = Envoy { child, address: origin.address(), _dir: dir };
        envoy.address = wait_for("Envoy's listener", || {
            let ended = envoy.child.try_wait().unwrap();
            let said = || fs::read_to_string(config.with_file_name("log")).unwrap();
            assert!(ended.is_none(), "{}", said());
            let admin: SocketAddr = fs::read_to_string(&admin).ok()?.trim().parse().ok()?;
            let listeners = Http::connect(admin).ok()?.ask(&request("GET", "/listeners?format=json")).ok()?;
            let address = &listeners.json()["listener_statuses"][0]["local_address"]["socket_address"];
            Some(SocketAddr::from(([127, 0, 0, 1], u16::try_from(address["port_value"].as_u64()?).ok()?)))
        });
        envoy
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(module: &Path, origin: SocketAddr) -> Value {
    let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let cluster = |name: &str| {
        let endpoint = json!({ "endpoint": { "address": address(origin.port()) } });
        let assignment = json!({ "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] });
        json!({ "name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": assignment })
    };
    let text =
        |text: &str| json!({ "@type": "type.googleapis.com/google.protobuf.StringValue", "value": text });
    let wasm = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "config": {
            "name": "wasm",
            "configuration": text("nothing"),
            "vm_config": {
                "vm_id": "wasm",
                "runtime": "envoy.wasm.runtime.v8",
                "code": { "local": { "filename": module } },
            },
        },
    });
    let router = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        "suppress_envoy_headers": true,
    });
    let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "origin", "timeout": "30s" } }]);
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "generate_request_id": false,
        "server_header_transformation": "PASS_THROUGH",
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "http_filters": [
            { "name": "envoy.filters.http.wasm", "typed_config": wasm },
            { "name": "envoy.filters.http.router", "typed_config": router },
        ],
    });
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    json!({
        "admin": { "address": address(0) },
        "static_resources": {
            "listeners": [{ "name": "main", "traffic_direction": "INBOUND", "address": address(0), "filter_chains": [{ "filters": [filter] }] }],
            "clusters": [cluster("origin"), cluster("api")],
        },
    })
}

#[test]
fn the_same_filter_does_the_same_in_envoy_and_here() {
    let (Some(program), Some(module)) = (envoy(), guest(FILTER)) else { return };
    let origin = Origin::start();
    let file = repository().join(format!("target/guests/{FILTER}.wasm"));
    let envoy = Envoy::start(&program, &file, &origin);
    let config = "
plugins:
  - wasm: { file: filter.wasm, config: nothing, cpu: 50ms, proxy_wasm: { upstreams: { api: origin } } }
";
    let gateway = Setup::new(config).file("filter.wasm", module).before(&origin).start();
    let mut wrong = Vec::new();
    for case in CASES {
        let request = case.request();
        let (there, here) = (ask(envoy.address, &request), ask(gateway.address(), &request));
        let is_known = DIFFERENT.iter().any(|(name, _)| *name == case.name());
        if (there == here) == is_known {
            wrong.push(format!("== {}\nEnvoy: {there:#?}\nhere: {here:#?}", case.name()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}

#[test]
fn each_difference_from_envoy_is_in_the_page() {
    let page = fs::read_to_string(repository().join("docs/proxy-wasm.md")).unwrap().replace('\n', " ");
    for (case, why) in DIFFERENT {
        assert!(page.contains(why), "{case}: {why}");
    }
}
