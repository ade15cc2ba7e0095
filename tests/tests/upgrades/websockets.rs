//! WebSockets of clients and servers that others wrote.

use super::*;

/// A WebSocket server of Python's.
pub(super) struct Echo {
    process: Child,
    pub(super) address: SocketAddr,
}

impl Echo {
    pub(super) fn start() -> Self {
        Echo::serving(&[])
    }

    /// With a certificate and its key.
    fn serving(certificate: &[&str]) -> Self {
        let mut python = Command::new(PYTHON);
        python.arg(script()).arg("serve").args(certificate);
        Echo::of(python)
    }

    /// Behind Node's HTTP/2 server, which takes handshakes in this way.
    fn behind_http2(&self, way: &str, certificate: &[&str]) -> Self {
        let mut node = Command::new("node");
        let port = self.address.port().to_string();
        node.arg(repository().join("tests/peers/http2.js")).args([&port, way]).args(certificate);
        Echo::of(node)
    }

    /// A server that tells its port first.
    fn of(mut server: Command) -> Self {
        let mut process = server.stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Echo { process, address: format!("127.0.0.1:{}", port.trim()).parse().unwrap() }
    }

    fn signal(&self, name: &str) {
        tool("kill", &[&format!("-{name}"), &self.process.id().to_string()]);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It may have been ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn script() -> PathBuf {
    repository().join("tests/peers/websocket.py")
}

#[test]
fn websockets_of_a_real_client_reach_a_real_server() {
    if !has_module("websockets") {
        return;
    }
    let server = Echo::start();
    let gateway = gateway(server.address, "", "");
    let url = format!("ws://{}/chat", gateway.address());
    let seen: Value =
        serde_json::from_str(&tool(PYTHON, &[script().to_str().unwrap(), "talk", &url])).unwrap();
    assert_eq!(seen, conversation());
    until_closed(&gateway);
}

#[test]
fn websockets_pass_through_tls_on_both_sides() {
    if !has_module("websockets") || !has(&["openssl"]) {
        return;
    }
    let config = "
listeners:
  - name: main
    bind: 127.0.0.1:0
    tls: { certificates: [{ cert: tls/one.test.pem, key: tls/one.test.key }] }
upstreams:
  origin:
    endpoints: [\"https://127.0.0.1:${PORT}\"]
    tls: { ca: tls/ca.pem, server_name: two.test }
routes: [{ upgrades: [websocket], upstream: origin }]
";
    let setup = Setup::new(config);
    let authority = Authority::new(&setup.dir().join("tls"));
    ["one.test", "two.test"].iter().for_each(|name| authority.issue(name));
    let server = Echo::serving(&[&authority.file("two.test.pem"), &authority.file("two.test.key")]);
    let gateway = setup.variable("PORT", server.address.port()).start();
    let url = format!("wss://one.test:{}/chat", gateway.address().port());
    let ca = format!("SSL_CERT_FILE={}", authority.ca());
    let seen = tool("env", &[&ca, PYTHON, script().to_str().unwrap(), "talk", &url]);
    assert_eq!(serde_json::from_str::<Value>(&seen).unwrap(), conversation());
    until_closed(&gateway);
}

/// What a conversation comes to that goes well.
fn conversation() -> Value {
    json!({
        "echo": "hello", "large": true, "many": true, "pong": true, "closed": 1000, "closed_by_server": [4001, "bye"],
    })
}

/// What a WebSocket client of Python's saw through a gateway.
fn talk(gateway: &Gateway) -> Value {
    let url = format!("ws://{}/chat", gateway.address());
    serde_json::from_str(&tool(PYTHON, &[script().to_str().unwrap(), "talk", &url])).unwrap()
}

#[test]
fn websockets_share_an_http2_connection_with_requests_where_the_server_takes_them_so() {
    if !has_module("websockets") || !has(&["node"]) {
        return;
    }
    let echo = Echo::start();
    let server = echo.behind_http2("connect", &[]);
    let gateway = gateway(server.address, "protocol: http2", "");
    assert_eq!(talk(&gateway), conversation());
    assert_eq!(gateway.get("/").text(), "HTTP/2.0");
    let at = gateway.address();
    run(async {
        let Got::Tunnel(_, mut stream) = connect(at, "/two", Some("websocket")).await else {
            panic!("refused")
        };
        assert_eq!(open(&gateway), (1.0, 1.0));
        stream.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'H', b'i']).await.unwrap();
        let mut echoed = [0; 4];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"\x81\x02Hi");
    });
    until_closed(&gateway);
    // A server that says no.
    assert!(asked(&gateway, "/refused", "websocket").head().starts_with("HTTP/1.1 403 "));
    assert_eq!(gateway.metric("portcullis_upstream_shared_connects_total", &[]), 1.0);
    // Other protocols have no such form.
    assert!(asked(&gateway, "/other", "other/2").head().starts_with("HTTP/1.1 502 "));
    assert_eq!(gateway.logged_path("/other")["reason"], "upstream.no_upgrade");
    // A server that ends takes its tunnels with it.
    let mut client = asked(&gateway, "/killed", "websocket");
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    drop(server);
    assert_eq!(client.rest(), b"");
    until_closed(&gateway);
}

#[test]
fn a_tunnel_over_an_http2_connection_takes_no_more_than_its_window() {
    const ENABLE_CONNECT_PROTOCOL: u16 = 8;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = gateway(listener.local_addr().unwrap(), "protocol: http2", "");
    let mut client = asked(&gateway, "/", "websocket");
    let mut server = Http2::accept(&listener, &[(ENABLE_CONNECT_PROTOCOL, 1)]);
    let tunnel = server.request();
    server.respond(tunnel, &[], false);
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT), "{head}");
    let before = gateway.memory();
    let mut stream = client.stream();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let (piece, mut written, mut read) = (vec![7; 1 << 20], 0, 0);
    while let Ok(length) = stream.write(&piece) {
        written += length;
        assert!(written < 64 << 20, "written without end");
    }
    assert!(gateway.memory() < before + 1024, "{} KiB, before {before}", gateway.memory());
    client.finish();
    for room in [0, tunnel] {
        server.window_update(room, 1 << 30).unwrap();
    }
    // The end of one way is not that of the other.
    loop {
        match server.read_until(Http2::DATA).2.len() {
            0 => break,
            length => read += length,
        }
    }
    assert_eq!(read, written);
    server.data(tunnel, b"bye", true);
    assert_eq!(client.rest(), b"bye");
    until_closed(&gateway);
}

#[test]
fn a_tunnel_ends_when_the_server_behind_its_http2_connection_says_nothing_any_more() {
    if !has_module("websockets") || !has(&["node"]) {
        return;
    }
    let echo = Echo::start();
    let server = echo.behind_http2("connect", &[]);
    let gateway = gateway(server.address, "protocol: http2", "");
    let mut client = asked(&gateway, "/stopped", "websocket");
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    server.signal("STOP");
    let begin = Instant::now();
    assert_eq!(client.rest(), b"");
    server.signal("CONT");
    assert!(begin.elapsed() < Duration::from_secs(45), "a tunnel's own timeout is five minutes");
    assert_eq!(gateway.logged_path("/stopped")["end"], "upstream_failed");
    until_closed(&gateway);
}

#[test]
fn a_server_that_is_there_may_leave_a_tunnel_silent() {
    const ENABLE_CONNECT_PROTOCOL: u16 = 8;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = gateway(listener.local_addr().unwrap(), "protocol: http2", "");
    let mut client = asked(&gateway, "/silent", "websocket");
    let mut server = Http2::accept(&listener, &[(ENABLE_CONNECT_PROTOCOL, 1)]);
    let tunnel = server.request();
    server.respond(tunnel, &[], false);
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    for _ in 0..2 {
        let (_, _, asked) = server.read_until(Http2::PING);
        server.write(Http2::PING, 1, 0, &asked).unwrap();
    }
    server.data(tunnel, b"still there", false);
    client.expect(b"still there");
    // Nor does it keep others from the connection.
    let mut other = Raw::connect(gateway.address());
    other.write("GET / HTTP/1.1\r\nHost: g\r\n\r\n");
    let stream = server.request();
    server.respond(stream, &[], true);
    assert!(other.head().starts_with("HTTP/1.1 200 "));
}

#[test]
fn websockets_take_http1_where_an_http2_server_offers_that_beside() {
    if !has_module("websockets") || !has(&["node", "openssl"]) {
        return;
    }
    let echo = Echo::start();
    for protocol in ["http2", "auto"] {
        let config = format!(
            "
upstreams:
  origin:
    endpoints: [\"https://127.0.0.1:${{PORT}}\"]
    protocol: {protocol}
    tls: {{ ca: tls/ca.pem, server_name: one.test }}
    eject: {{ failures: 1, max_ejected: 100% }}
routes: [{{ upgrades: [websocket], upstream: origin }}]
"
        );
        let setup = Setup::new(&config);
        let authority = Authority::new(&setup.dir().join("tls"));
        authority.issue("one.test");
        let certificate = [authority.file("one.test.pem"), authority.file("one.test.key")];
        let certificate = certificate.each_ref().map(String::as_str);
        let server = echo.behind_http2("http1", &certificate);
        let gateway = setup.variable("PORT", server.address.port()).start();
        assert_eq!(talk(&gateway), conversation());
        assert_eq!(gateway.get("/").text(), "HTTP/2.0");
        until_closed(&gateway);

        let alone = echo.behind_http2("http2", &certificate);
        let gateway = gateway.stop().variable("PORT", alone.address.port()).start();
        refused_without_blame(&gateway);
    }
}

/// The endpoint can't switch protocols, and is used as before.
fn refused_without_blame(gateway: &Gateway) {
    for _ in 0..3 {
        assert!(asked(gateway, "/never", "websocket").head().starts_with("HTTP/1.1 502 "));
    }
    // An answer brings an endpoint back that had been ejected.
    assert_eq!(gateway.metric("portcullis_endpoint_ejections_total", &[]), 0.0);
    assert_eq!(gateway.get("/").text(), "HTTP/2.0");
    let endpoint = &gateway.status()["upstreams"][0]["endpoints"][0];
    assert_eq!(
        (&endpoint["state"], &endpoint["last_error"]),
        (&json!("healthy"), &Value::Null),
        "{endpoint}"
    );
    assert_eq!(gateway.metric("portcullis_upstream_failures_total", &[]), 0.0);
    until_closed(gateway);
}

#[test]
fn a_server_of_http2_alone_that_takes_no_websockets_is_not_blamed() {
    if !has(&["node"]) {
        return;
    }
    let nowhere =
        Echo { process: Command::new("true").spawn().unwrap(), address: ([127, 0, 0, 1], 1).into() };
    let server = nowhere.behind_http2("none", &[]);
    let settings = "protocol: http2, eject: { failures: 1, max_ejected: 100% }, breaker: { min_requests: 1 }";
    let gateway = gateway(server.address, settings, "");
    refused_without_blame(&gateway);
    assert_eq!(gateway.logged_path("/never")["reason"], "upstream.no_upgrade");
    assert_eq!(gateway.metric("portcullis_upstream_circuit_opens_total", &[]), 0.0);
}

#[test]
fn a_server_that_is_killed_ends_its_tunnels() {
    if !has_module("websockets") {
        return;
    }
    let mut server = Echo::start();
    let gateway = gateway(server.address, "", "");
    let mut clients: Vec<_> = (0..20).map(|_| asked(&gateway, "/", "websocket")).collect();
    assert!(clients.iter_mut().all(|client| client.head().starts_with("HTTP/1.1 101 ")));
    assert_eq!(open(&gateway), (20.0, 20.0));
    server.process.kill().unwrap();
    assert!(clients.iter_mut().all(|client| client.rest().is_empty()));
    drop(clients);
    until_closed(&gateway);
}
