//! Ways to an endpoint and to the gateway: TLS, mutual TLS, Unix sockets, the PROXY protocol; with nginx and
//! HAProxy at the other end.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on ends, and says why")]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use portcullis_tests::tools::{Authority, attempt, has, tool};
use portcullis_tests::{Answer, Gateway, Http, Origin, PATIENCE, Setup, nobody, request, until, wait_for};
use serde_json::json;
use tempfile::TempDir;

/// A server that is not ours. It ends with this value.
struct Peer {
    child: Child,
    dir: TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("error.log"));
            eprintln!("--- the peer's log\n{}---", log.unwrap_or_default());
        }
    }
}

impl Peer {
    fn start(program: &str, arguments: &[&str], dir: TempDir) -> Self {
        let mut command = Command::new(program);
        let silent = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Peer { child: silent.spawn().unwrap(), dir }
    }
}

/// nginx with these servers; `DIR` stands for its directory.
fn nginx(servers: &str, dir: TempDir) -> Peer {
    let at = dir.path().to_str().unwrap().to_owned();
    let config = format!(
        "daemon off; master_process off; pid DIR/pid; error_log DIR/error.log info;\nevents {{}}\n\
         http {{ access_log off; client_body_temp_path DIR/body; proxy_temp_path DIR/proxy;\n\
         fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;\n{servers} }}\n"
    );
    let file = dir.path().join("nginx.conf");
    fs::write(&file, config.replace("DIR", &at)).unwrap();
    Peer::start("nginx", &["-e", "stderr", "-c", file.to_str().unwrap()], dir)
}

/// Waits until somebody listens there.
fn listening(address: SocketAddr) {
    until("the peer to listen", || TcpStream::connect(address).is_ok());
}

/// An authority with certificates for these names, in a directory of its own.
fn authority(names: &[&str]) -> (TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path());
    names.iter().for_each(|name| authority.issue(name));
    (dir, authority)
}

/// What nginx does not do unasked.
const MODERN: &str = "ssl_protocols TLSv1.2 TLSv1.3;";

/// nginx that speaks TLS as `api.test`, with what else its server says.
fn tls_server(settings: &str, dir: TempDir) -> (SocketAddr, Peer) {
    let address = nobody();
    let peer = nginx(
        &format!(
            "server {{ listen {address} ssl; ssl_certificate DIR/api.test.pem; ssl_certificate_key DIR/api.test.key;\n\
             {settings} location / {{ return 200 \"$ssl_protocol $ssl_server_name $ssl_client_s_dn\"; }} }}"
        ),
        dir,
    );
    listening(address);
    (address, peer)
}

/// A gateway before an endpoint.
fn before(endpoint: &str, settings: &str) -> Gateway {
    configured(endpoint, settings).start()
}

fn configured(endpoint: &str, settings: &str) -> Setup {
    Setup::new(&format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]\nupstreams: {{ origin: {{ endpoints: [\"{endpoint}\"], retries: 0, {settings} }} }}\n"
    ))
}

/// Refused with 502 because of TLS; returns why, as the log has it.
fn refused_by_tls(gateway: &Gateway) -> String {
    let path = "/refused";
    assert_eq!(gateway.get(path).status, 502);
    assert_eq!(gateway.logged_path(path)["reason"], "upstream.tls");
    let endpoint = &gateway.status()["upstreams"][0]["endpoints"][0];
    let why = endpoint["last_error"].as_str().unwrap().to_owned();
    until("it to be told", || gateway.log().contains("TLS to an endpoint failed"));
    why
}

#[test]
fn an_endpoint_shows_a_certificate_for_its_name() {
    if !has(&["nginx", "openssl"]) {
        return;
    }
    let (dir, authority) = authority(&["api.test"]);
    let (ca, (address, _peer)) = (authority.ca(), tls_server(MODERN, dir));
    let url = format!("https://{address}");
    let gateway = before(&url, &format!("tls: {{ ca: \"{ca}\", server_name: api.test }}"));
    let mut client = gateway.connect();
    for _ in 0..3 {
        let answer = client.ask(&request("GET", "/")).unwrap();
        assert_eq!((answer.status, &*answer.text()), (200, "TLSv1.3 api.test "));
    }
    assert_eq!(gateway.metric("portcullis_upstream_connects_total", &[]), 1.0);
    assert!(gateway.status()["upstreams"][0]["endpoints"][0]["last_error"].is_null());
    // The same endpoint by its address, which its certificate is not for; with nobody's authority; as another.
    for (settings, why) in [
        (format!("tls: {{ ca: \"{ca}\" }}"), "NotValidForName"),
        ("tls: { server_name: api.test }".to_owned(), "UnknownIssuer"),
        (format!("tls: {{ ca: \"{ca}\", server_name: other.test }}"), "not valid for name"),
    ] {
        let said = refused_by_tls(&before(&url, &settings));
        assert!(said.contains(why) || said.contains("not valid for name"), "{settings}: {said}");
    }
}

#[test]
fn an_endpoint_that_may_choose_and_chooses_http1_gets_that() {
    if !has(&["nginx", "openssl"]) {
        return;
    }
    let (dir, authority) = authority(&["api.test"]);
    let (ca, (address, _peer)) = (authority.ca(), tls_server(MODERN, dir));
    let url = format!("https://{address}");
    let tls = format!("tls: {{ ca: \"{ca}\", server_name: api.test }}");
    let gateway = before(&url, &format!("protocol: auto, {tls}"));
    let mut client = gateway.connect();
    for _ in 0..3 {
        assert_eq!(client.ask(&request("GET", "/")).unwrap().status, 200);
    }
    // It was asked once, and its answer kept, as the connection was.
    assert_eq!(gateway.metric("portcullis_upstream_connects_total", &[]), 1.0);
    assert_eq!(gateway.metric("portcullis_upstream_shared_connects_total", &[]), 0.0);
    refused_by_tls(&before(&url, &format!("protocol: http2, {tls}")));
}

#[test]
fn the_certificate_of_an_endpoint_expires() {
    if !has(&["nginx", "openssl"]) {
        return;
    }
    let (dir, authority) = authority(&["api.test"]);
    let file = |ending: &str| authority.file(&format!("api.test.{ending}"));
    let (csr, pem, ext, ca, key) =
        (file("csr"), file("pem"), file("ext"), authority.ca(), authority.file("ca.key"));
    let by = ["-CA", &ca, "-CAkey", &key, "-CAcreateserial", "-extfile", &ext];
    tool("openssl", &[["x509", "-req", "-in", &csr, "-out", &pem, "-days", "-1"].as_slice(), &by].concat());
    let (address, _peer) = tls_server("", dir);
    let settings = format!("tls: {{ ca: \"{ca}\", server_name: api.test }}");
    let why = refused_by_tls(&before(&format!("https://{address}"), &settings));
    assert!(why.to_lowercase().contains("expired"), "{why}");
}

#[test]
fn a_version_below_the_lowest_is_refused() {
    if !has(&["nginx", "openssl"]) {
        return;
    }
    let (dir, authority) = authority(&["api.test"]);
    let (ca, (address, _peer)) = (authority.ca(), tls_server("ssl_protocols TLSv1.2;", dir));
    let url = format!("https://{address}");
    let with = |more: &str| before(&url, &format!("tls: {{ ca: \"{ca}\", server_name: api.test{more} }}"));
    assert!(with("").get("/").text().starts_with("TLSv1.2"));
    assert!(refused_by_tls(&with(", min_version: \"1.3\"")).contains("alert"));
}

#[test]
fn the_gateway_shows_its_certificate_and_a_renewed_one_after_a_reload() {
    if !has(&["nginx", "openssl"]) {
        return;
    }
    let (dir, authority) = authority(&["api.test", "gateway.test", "renewed.test"]);
    let (ca, read) = (authority.ca(), |name: &str| fs::read(authority.file(name)).unwrap());
    let (cert, key) = (read("gateway.test.pem"), read("gateway.test.key"));
    let (new_cert, new_key) = (read("renewed.test.pem"), read("renewed.test.key"));
    let settings = format!("{MODERN} ssl_client_certificate DIR/ca.pem; ssl_verify_client on;");
    let (address, _peer) = tls_server(&settings, dir);
    let url = format!("https://{address}");
    let tls = format!(
        "tls: {{ ca: \"{ca}\", server_name: api.test, certificate: {{ cert: own.pem, key: own.key }} }}"
    );
    let gateway = configured(&url, &tls).file("own.pem", cert).file("own.key", key).start();
    assert_eq!(gateway.get("/").text(), "TLSv1.3 api.test CN=gateway.test");
    gateway.edit("own.key", new_key);
    gateway.edit("own.pem", new_cert);
    until("the renewed certificate", || gateway.get("/").text().ends_with("CN=renewed.test"));
    let without = before(&url, &format!("tls: {{ ca: \"{ca}\", server_name: api.test }}"));
    assert_eq!(without.get("/").status, 400, "nginx wants a certificate, and says so in HTTP");
    // A broken one keeps what runs.
    gateway.edit("own.pem", "nonsense");
    assert!(gateway.wait_refused().contains("gateway.yaml"), "told where it is named");
    assert!(gateway.get("/").text().ends_with("CN=renewed.test"));
}

#[test]
fn a_server_that_wants_a_certificate_says_so_after_the_handshake() {
    if !has(&["openssl"]) {
        return;
    }
    let (dir, authority) = authority(&["api.test"]);
    let file = |name: &str| fs::read(authority.file(name)).unwrap();
    let server = Setup::new(
        "listeners: [{ name: main, bind: 127.0.0.1:0, tls: { certificates: [{ cert: a.pem, key: a.key }], client_auth: { mode: required, ca: ca.pem } } }]\nroutes: [{ respond: {} }]\n",
    );
    let server = server.file("a.pem", file("api.test.pem")).file("a.key", file("api.test.key"));
    let server = server.file("ca.pem", file("ca.pem")).start();
    let settings = format!("tls: {{ ca: \"{}\", server_name: api.test }}", authority.ca());
    let gateway = before(&format!("https://{}", server.address()), &settings);
    assert!(refused_by_tls(&gateway).contains("CertificateRequired"), "{}", gateway.log());
    drop(dir);
}

#[test]
fn who_believes_anybody_is_told_so() {
    if !has(&["nginx", "openssl"]) {
        return;
    }
    let (dir, _authority) = authority(&["api.test"]);
    let (address, _peer) = tls_server("", dir);
    let gateway = before(&format!("https://{address}"), "tls: { verify: false }");
    assert_eq!(gateway.get("/").status, 200);
    let warnings = gateway.status()["warnings"].to_string();
    assert!(warnings.contains("any server is believed to be the right one"), "{warnings}");
    assert!(gateway.log().contains("any server is believed to be the right one"), "{}", gateway.log());
}

#[test]
fn long_bodies_and_health_checks_go_over_tls() {
    if !has(&["openssl"]) {
        return;
    }
    let (_dir, authority) = authority(&["api.test"]);
    let file = |name: &str| fs::read(authority.file(name)).unwrap();
    let origin = Origin::start();
    let server = Setup::new(
        "listeners: [{ name: main, bind: 127.0.0.1:0, tls: { certificates: [{ cert: a.pem, key: a.key }] } }]\n",
    );
    let server = server.file("a.pem", file("api.test.pem")).file("a.key", file("api.test.key"));
    let server = server.before(&origin).start();
    let settings = format!(
        "health: {{ path: /, interval: 20ms }}, tls: {{ ca: \"{}\", server_name: api.test }}",
        authority.ca()
    );
    let gateway = before(&format!("https://{}", server.address()), &settings);
    let body: Vec<u8> = (0..5_000_000_u32).map(|at| (at % 251) as u8).collect();
    let mut client = gateway.connect();
    for _ in 0..2 {
        let answer = client.ask(&request("POST", "/echo").body(body.clone())).unwrap();
        assert!(answer.status == 200 && answer.body == body, "{} {}", answer.status, answer.body.len());
    }
    let served = origin.served();
    until("checks", || origin.served() > served + 2);
    assert_eq!(gateway.metric("portcullis_endpoint_healthy", &[]), 1.0);
}

#[test]
fn a_name_is_looked_up_for_many_connections_at_once() {
    let origin = Origin::start();
    let port = origin.address().port();
    let gateway = before(&format!("http://localhost:{port}"), "max_idle: 0");
    for _ in 0..3 {
        assert_eq!(gateway.get("/").status, 200);
    }
    assert_eq!(gateway.metric("portcullis_upstream_connects_total", &[]), 3.0);
    let resolved = gateway.status()["upstreams"][0]["endpoints"][0]["resolved"].to_string();
    assert!(resolved.contains(&format!("\"127.0.0.1:{port}\"")), "{resolved}");
}

#[test]
fn an_endpoint_may_be_a_unix_socket() {
    if !has(&["nginx"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("app.sock");
    let url = format!("unix:{}", socket.display());
    let server =
        "server { listen unix:DIR/app.sock; location / { return 200 \"$http_host $request_body\"; } }";
    let gateway = before(&url, "host: endpoint, health: { interval: 20ms }");
    assert_eq!(gateway.get("/early").status, 502);
    assert_eq!(gateway.logged_path("/early")["reason"], "upstream.unreachable");
    let _peer = nginx(server, dir);
    until("an answer", || gateway.get("/").status == 200);
    assert_eq!(gateway.get("/").text(), "localhost ");
    assert_eq!(gateway.status()["upstreams"][0]["endpoints"][0]["address"], url);
    assert!(Path::new(&socket).exists());
}

/// nginx that says whose connection it was told it has.
fn told(listen: &str, dir: TempDir) -> (SocketAddr, Peer) {
    let address = nobody();
    let server = format!(
        "server {{ listen {address} proxy_protocol {listen}; location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_port $connection\"; }} }}"
    );
    let peer = nginx(&server, dir);
    listening(address);
    (address, peer)
}

/// The words of an answer.
fn words(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200);
    answer.text().split(' ').map(str::to_owned).collect()
}

#[test]
fn an_endpoint_is_told_whose_connection_it_gets_and_gets_no_other_clients_requests_over_it() {
    if !has(&["nginx"]) {
        return;
    }
    for version in ["v1", "v2"] {
        let (address, _peer) = told("", tempfile::tempdir().unwrap());
        let settings =
            format!("proxy_protocol: {version}, max_idle: 2, health: {{ path: /, interval: 20ms }}");
        let gateway = before(&format!("http://{address}"), &settings);
        let (mut one, mut other) = (gateway.connect(), gateway.connect());
        let port = gateway.address().port().to_string();
        let ask = |client: &mut Http| words(&client.ask(&request("GET", "/")).unwrap());
        let (first, second) = (ask(&mut one), ask(&mut other));
        assert_eq!((&*first[0], &first[2], &second[2]), ("127.0.0.1", &port, &port));
        assert_eq!(first[1], one.local().port().to_string());
        assert_eq!(second[1], other.local().port().to_string());
        assert_ne!(first[3], second[3]);
        // Each goes on over its own.
        assert_eq!((ask(&mut one), ask(&mut other)), (first, second));
        assert_eq!(gateway.metric("portcullis_upstream_connects_total", &[]), 2.0);
        // Those of clients that are gone make room.
        let mut third = gateway.connect();
        let latest = ask(&mut third);
        assert_eq!(ask(&mut third), latest);
        assert_eq!(gateway.metric("portcullis_endpoint_healthy", &[]), 1.0);
    }
}

#[test]
fn the_client_behind_a_trusted_proxy_is_whom_an_endpoint_is_told_of() {
    if !has(&["nginx"]) {
        return;
    }
    let (address, _peer) = told("", tempfile::tempdir().unwrap());
    let config = format!(
        "trusted_proxies: [127.0.0.0/8]\nupstreams: {{ origin: {{ endpoints: [\"http://{address}\"], proxy_protocol: v2 }} }}\n"
    );
    let gateway = Setup::new(&config).start();
    let answer = gateway.ask(&request("GET", "/").header("x-forwarded-for", "192.0.2.9"));
    assert_eq!(words(&answer)[0], "192.0.2.9");
}

#[test]
fn the_proxy_header_comes_before_tls() {
    if !has(&["nginx", "openssl"]) {
        return;
    }
    let (dir, authority) = authority(&["api.test"]);
    let ca = authority.ca();
    let listen = "ssl; ssl_certificate DIR/api.test.pem; ssl_certificate_key DIR/api.test.key";
    let (address, _peer) = told(listen, dir);
    let settings = format!("proxy_protocol: v2, tls: {{ ca: \"{ca}\", server_name: api.test }}");
    let gateway = before(&format!("https://{address}"), &settings);
    assert_eq!(words(&gateway.get("/"))[0], "127.0.0.1");
}

/// A gateway whose listener takes connections from these proxies.
fn behind(proxies: &str, settings: &str, origin: &Origin) -> Gateway {
    let config = format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}, {{ ip_filter: {{ deny: [192.0.2.66] }} }}]\nlisteners: [{{ name: main, bind: 127.0.0.1:0, proxy_protocol: {{ from: [{proxies}] }}, {settings} }}]\n"
    );
    Setup::new(&config).before(origin).start()
}

/// Sends a header and a request at once; returns everything that comes back.
fn say(gateway: &Gateway, header: &[u8]) -> String {
    let mut stream = TcpStream::connect(gateway.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = b"GET /said HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\r\n";
    stream.write_all(&[header, request].concat()).unwrap();
    let mut answer = Vec::new();
    // A connection that is refused may be reset.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn failures(gateway: &Gateway) -> f64 {
    gateway.metric("portcullis_proxy_protocol_failures_total", &[])
}

#[test]
fn a_proxy_says_whose_connection_it_passes_on() {
    if !has(&["haproxy", "curl"]) {
        return;
    }
    let origin = Origin::start();
    for send in ["send-proxy", "send-proxy-v2"] {
        let gateway = behind("127.0.0.0/8", "", &origin);
        let (address, dir) = (nobody(), tempfile::tempdir().unwrap());
        let file = dir.path().join("haproxy.cfg");
        let config = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\nlisten l\n bind {address}\n server g {} {send}\n",
            gateway.address()
        );
        fs::write(&file, config).unwrap();
        let _peer = Peer::start("haproxy", &["-db", "-f", file.to_str().unwrap()], dir);
        listening(address);
        let url = format!("http://{address}/through");
        let answer = tool("curl", &["-s", "--interface", "127.0.0.9", &url]);
        assert!(answer.contains("\"x-forwarded-for\":\"127.0.0.9\""), "{answer}");
        assert_eq!(gateway.logged_path("/through")["client"], "127.0.0.9");
    }
}

#[test]
fn the_client_that_a_proxy_names_is_the_peer_for_plugins_and_logs() {
    let origin = Origin::start();
    let gateway = behind("127.0.0.1", "", &origin);
    let answer = say(&gateway, b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("192.0.2.7"), "{answer}");
    let line = gateway.logged_path("/said");
    assert_eq!((&line["client"], &line["peer"]), (&json!("192.0.2.7"), &json!("192.0.2.7:4711")));
    // A plugin refuses the client, not the proxy.
    let refused = say(&gateway, b"PROXY TCP4 192.0.2.66 198.51.100.1 4711 443\r\n");
    assert!(!refused.starts_with("HTTP/1.1 200 "), "{refused}");
    // The proxy's own connections are its own.
    for own in [b"PROXY UNKNOWN\r\n".as_slice(), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        assert!(say(&gateway, own).contains("\"x-forwarded-for\":\"127.0.0.1\""));
    }
    assert_eq!(failures(&gateway), 0.0);
}

#[test]
fn a_listener_behind_proxies_takes_nobody_else_and_nothing_without_a_header() {
    let origin = Origin::start();
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n".as_slice();
    let elsewhere = behind("10.0.0.0/8", "", &origin);
    assert_eq!(say(&elsewhere, header), "");
    assert_eq!(failures(&elsewhere), 1.0);
    let gateway = behind("127.0.0.1", "", &origin);
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107));
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x10\x01".to_vec();
    binary.extend([0; 4097]);
    for (count, wrong) in
        [b"".as_slice(), b"PROXY TCP4 nonsense\r\n", long.as_bytes(), &binary].iter().enumerate()
    {
        assert_eq!(say(&gateway, wrong), "", "{}", String::from_utf8_lossy(wrong));
        assert_eq!(failures(&gateway), (count + 1) as f64);
    }
    assert!(say(&gateway, header).starts_with("HTTP/1.1 200 "));
    assert_eq!(origin.served(), 1);
}

#[test]
fn a_proxy_has_the_time_of_a_head_for_its_header() {
    let origin = Origin::start();
    let gateway = behind("127.0.0.1", "limits: { header_timeout: 100ms }", &origin);
    let mut slow = Http::connect(gateway.address()).unwrap();
    slow.write(b"PROXY TCP4 192.0.2.7").unwrap();
    assert!(slow.is_closed());
    assert_eq!(failures(&gateway), 1.0);
}

#[test]
fn tls_begins_behind_the_header() {
    if !has(&["curl", "openssl"]) {
        return;
    }
    let (_dir, authority) = authority(&["api.test"]);
    let file = |name: &str| fs::read(authority.file(name)).unwrap();
    let gateway = Setup::new(
        "listeners: [{ name: main, bind: 127.0.0.1:0, proxy_protocol: { from: [127.0.0.1] }, tls: { certificates: [{ cert: a.pem, key: a.key }] } }]\nroutes: [{ respond: { body: behind } }]\n",
    );
    let gateway = gateway.file("a.pem", file("api.test.pem")).file("a.key", file("api.test.key")).start();
    let (port, ca) = (gateway.address().port(), authority.ca());
    let (resolve, url) = (format!("api.test:{port}:127.0.0.1"), format!("https://api.test:{port}/"));
    let ask = |more: &[&str]| {
        attempt("curl", &[["-s", "--cacert", &ca, "--resolve", &resolve, &url].as_slice(), more].concat())
    };
    wait_for("an answer", || (ask(&["--haproxy-protocol"]).out == "behind").then_some(()));
    assert!(!ask(&[]).status.success());
}

/// The timers that run on connections to or from a port, as the system has them: kind and hundredths of a second left.
fn timers(side: usize, port: u16) -> Vec<(u32, u64)> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let port = format!(":{port:04X}");
    // Established ones.
    let ours = fields.filter(|fields| fields[side].ends_with(&port) && fields[3] == "01");
    let timer = |fields: Vec<&str>| {
        let (kind, left) = fields[5].split_once(':').unwrap();
        (u32::from_str_radix(kind, 16).unwrap(), u64::from_str_radix(left, 16).unwrap())
    };
    ours.map(timer).collect()
}

#[test]
fn the_system_asks_who_says_nothing_whether_it_is_there_where_that_is_wanted() {
    const LOCAL: usize = 1;
    const REMOTE: usize = 2;
    const KEEPALIVE: u32 = 2;
    let run = |limits: &str, settings: &str| {
        let origin = Origin::start();
        let config = format!(
            "
listeners: [{{ name: main, bind: 127.0.0.1:0, limits: {{ {limits} }} }}]
upstreams: {{ origin: {{ endpoints: [\"http://{}\"], {settings} }} }}
",
            origin.address()
        );
        let gateway = Setup::new(&config).start();
        let mut client = gateway.connect();
        assert_eq!(client.ask(&request("GET", "/")).unwrap().status, 200);
        // What was just sent has a timer of its own until it is acknowledged.
        let idle = |side, port| {
            wait_for("a silent connection", || {
                let timers = timers(side, port);
                (!timers.is_empty() && timers.iter().all(|(kind, _)| matches!(*kind, 0 | KEEPALIVE)))
                    .then_some(timers)
            })
        };
        (idle(LOCAL, gateway.address().port()), idle(REMOTE, origin.address().port()))
    };
    let is_off = |timers: &[(u32, u64)]| timers.iter().all(|timer| timer.0 == 0);
    let is_within = |timers: &[(u32, u64)], seconds: u64| {
        timers.iter().all(|timer| timer.0 == KEEPALIVE && (seconds * 50..=seconds * 100).contains(&timer.1))
    };
    let (clients, upstream) = run("", "");
    assert!(is_off(&clients) && is_off(&upstream), "{clients:?} {upstream:?}");
    let (clients, upstream) = run("tcp_keepalive: 1000s", "tcp_keepalive: 2000s");
    assert!(is_within(&clients, 1000) && is_within(&upstream, 2000), "{clients:?} {upstream:?}");
}
