//! What stops being HTTP: WebSockets and other upgrades over HTTP/1, and extended CONNECT over HTTP/2.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod websockets;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis_tests::tools::{Authority, PYTHON, has, has_module, tool};
use portcullis_tests::{Gateway, Http2, Origin, PATIENCE, Peer, Raw, Setup, repository, request, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::websockets::Echo;

/// The key and the answer to it in RFC 6455, 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A gateway with routes that allow WebSockets and another protocol, one that allows nothing, and one without upstream.
fn gateway(upstream: SocketAddr, settings: &str, more: &str) -> Gateway {
    let plugins =
        if more.contains("plugins:") { "" } else { "plugins: [{ access_log: { target: access.log } }]\n" };
    let config = format!(
        "{plugins}{more}
upstreams: {{ peer: {{ endpoints: [\"http://{upstream}\"], {settings} }} }}
routes:
  - {{ name: all, upgrades: [websocket, other/2], upstream: peer }}
  - {{ name: closed, match: {{ prefix: /closed }}, upstream: peer }}
  - {{ name: fixed, match: {{ prefix: /fixed }}, respond: {{ status: 200 }} }}
"
    );
    let scripts = [
        ("refuse.rhai", "fn on_response(ctx) { deny(403, \"no.tunnels\") }\n"),
        ("remove.rhai", "fn on_request(ctx) { ctx.request.headers.remove(\"upgrade\"); }\n"),
        (
            "stamp.rhai",
            "fn on_response(ctx) { ctx.response.headers[\"x-stamp\"] = \"\" + ctx.response.status; }\n",
        ),
    ];
    let setup = Setup::new(&config);
    scripts.iter().fold(setup, |setup, (name, text)| setup.file(name, text)).start()
}

/// The next connection, on which the upstream has agreed to what was asked for.
fn agree(peer: &Peer, protocol: &str) -> (Raw, String) {
    let (mut raw, head) = peer.accept();
    raw.write(agreement(protocol));
    (raw, head)
}

fn agreement(protocol: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nSec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    )
}

/// A client's request to speak another protocol.
fn asking(path: &str, protocol: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: g\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// A client that has asked.
fn asked(gateway: &Gateway, path: &str, protocol: &str) -> Raw {
    let mut client = Raw::connect(gateway.address());
    client.write(asking(path, protocol));
    client
}

/// Both ends of a tunnel.
fn tunnel(gateway: &Gateway, peer: &Peer, path: &str) -> (Raw, Raw) {
    let mut client = asked(gateway, path, "websocket");
    let (server, _) = agree(peer, "websocket");
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    (client, server)
}

fn open(gateway: &Gateway) -> (f64, f64) {
    let metric = |name| gateway.metric(name, &[]);
    (metric("portcullis_tunnels_open"), metric("portcullis_upstream_in_flight"))
}

fn until_closed(gateway: &Gateway) {
    until("the tunnel to be closed", || open(gateway) == (0.0, 0.0));
}

#[test]
fn bytes_pass_both_ways_once_the_upstream_has_agreed() {
    let peer = Peer::default();
    let gateway = gateway(peer.address(), "", "");
    for (path, protocol) in [("/one", "WebSocket"), ("/two", "other/2")] {
        let mut client = asked(&gateway, path, protocol);
        let (mut server, head) = peer.accept();
        let upgrade = format!("\r\nconnection: upgrade\r\nupgrade: {}\r\n", protocol.to_lowercase());
        assert!(head.contains(&upgrade) && head.contains("\r\nx-forwarded-for: "), "{head}");
        assert_eq!((head.matches("upgrade:").count(), head.matches("connection:").count()), (1, 1), "{head}");
        // What the upstream says at once is not lost.
        server.write(agreement(protocol) + "welcome");
        let head = client.head().to_lowercase();
        assert!(
            head.starts_with("http/1.1 101 switching protocols\r\n") && head.contains(&upgrade),
            "{head}"
        );
        assert!(head.contains(&ACCEPT.to_lowercase()) && !head.contains("content-length"), "{head}");
        client.expect(b"welcome");
        assert_eq!(open(&gateway), (1.0, 1.0));
        client.write("ping\r\n\r\n");
        server.expect(b"ping\r\n\r\n");
        // A side that has said everything still hears the other.
        client.finish();
        assert_eq!(server.rest(), b"");
        server.write("the last word");
        drop(server);
        assert_eq!(client.rest(), b"the last word");
        let line = gateway.logged_path(path);
        let counted = ["status", "request_bytes", "response_bytes", "end"].map(|name| line[name].clone());
        assert_eq!(counted, [json!(101), json!(8), json!(20), json!("complete")]);
        until_closed(&gateway);
    }
}

#[test]
fn a_route_says_what_clients_may_switch_to() {
    let origin = Origin::start();
    let gateway = gateway(origin.address(), "", "");
    for (path, protocol) in [("/closed/ws", "websocket"), ("/closed/ws2", "WebSocket")] {
        let mut client = asked(&gateway, path, protocol);
        assert!(client.head().starts_with("HTTP/1.1 403 "));
        let line = gateway.logged_path(path);
        assert_eq!((&line["reason"], &line["decided_by"]), (&json!("route.upgrade"), &json!("core.routes")));
    }
    assert_eq!(origin.served(), 0);
    // Others are ordinary requests, and nobody is told of the wish.
    for (path, protocol) in
        [("/closed/x", "other/2"), ("/x", "other/3"), ("/x", "h2c"), ("/x", "other/2, websocket")]
    {
        let ask =
            request("GET", path).header("connection", "Upgrade, HTTP2-Settings").header("upgrade", protocol);
        let seen = gateway.ask(&ask.header("http2-settings", "AAMAAABk")).json();
        let headers = seen["headers"].as_object().unwrap();
        assert!(!headers.keys().any(|name| name.contains("upgrade") || name.contains("settings")), "{seen}");
        assert!(!headers.contains_key("connection"), "{seen}");
    }
    // Nor is the setting when `Connection` does not name it.
    let seen = gateway.ask(&request("GET", "/x").header("http2-settings", "AAMAAABk")).json();
    assert_eq!(seen["headers"]["http2-settings"], Value::Null);
}

#[test]
fn what_is_no_proper_wish_is_an_ordinary_request() {
    let origin = Origin::start();
    let gateway = gateway(origin.address(), "", "");
    let connection = "Connection: Upgrade\r\n";
    let upgrade = "Upgrade: other/2\r\n";
    for request in [
        // Nothing but a header.
        format!("GET / HTTP/1.1\r\nHost: g\r\n{upgrade}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: g\r\nConnection: upgrades\r\n{upgrade}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: g\r\n{connection}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: g\r\n{connection}{upgrade}{upgrade}\r\n"),
        format!("GET / HTTP/1.0\r\n{connection}{upgrade}\r\n"),
        // With a body nobody knows where the other protocol would begin.
        format!("POST / HTTP/1.1\r\nHost: g\r\n{connection}{upgrade}Content-Length: 4\r\n\r\nbody"),
        format!(
            "POST / HTTP/1.1\r\nHost: g\r\n{connection}{upgrade}Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
        ),
        // A name that comes along is removed like others.
        "GET / HTTP/1.1\r\nHost: g\r\nConnection: upgrade, x-user\r\nX-User: eve\r\n\r\n".into(),
    ] {
        let mut client = gateway.connect();
        client.write(request.as_bytes()).unwrap();
        let answer = client.answer("GET").unwrap();
        assert_eq!(answer.status, 200, "{request}");
        let headers = answer.json()["headers"].clone();
        assert!(
            [&headers["upgrade"], &headers["connection"], &headers["x-user"]]
                .iter()
                .all(|value| value.is_null()),
            "{request}: {headers}"
        );
    }
}

#[test]
fn nothing_passes_before_the_upstream_has_agreed() {
    let peer = Peer::default();
    let gateway = gateway(peer.address(), "", "");
    let mut client = Raw::connect(gateway.address());
    client.write(asking("/at-once", "websocket") + "smuggled");
    let answer = String::from_utf8(client.rest()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("connection: close"), "{answer}");
    gateway.logged("the refusal", |line| line["reason"] == "http.upgrade_data");
    assert!(peer.is_alone());

    let mut client = asked(&gateway, "/impatient", "websocket");
    let (mut server, _) = peer.accept();
    client.write("smuggled");
    let answer = String::from_utf8(client.rest()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("connection: close"), "{answer}");
    assert_eq!(server.rest(), b"");
    assert_eq!(gateway.logged_path("/impatient")["end"], "client_gone");
    until_closed(&gateway);
}

#[test]
fn an_upstream_may_say_no_and_the_connection_goes_on() {
    let peer = Peer::default();
    let gateway = gateway(peer.address(), "", "");
    let mut client = asked(&gateway, "/no", "websocket");
    let (mut server, _) = peer.accept();
    server.write("HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nno");
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 426 ") && !head.to_lowercase().contains("upgrade:"), "{head}");
    client.expect(b"no");
    client.write("GET /next HTTP/1.1\r\nHost: g\r\n\r\n");
    let head = server.head();
    assert!(head.starts_with("GET /next ") && !head.to_lowercase().contains("upgrade"), "{head}");
    server.write("HTTP/1.1 204 No Content\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 204 "));
}

#[test]
fn an_agreement_to_something_else_is_a_502() {
    let peer = Peer::default();
    let gateway = gateway(peer.address(), "retries: 0", "");
    let begin = "HTTP/1.1 101 Switching Protocols\r\n";
    for agreement in [
        "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "Connection: Upgrade\r\n\r\n",
        "Upgrade: websocket\r\n\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
    ] {
        let mut client = asked(&gateway, "/wrong", "websocket");
        let (mut server, _) = peer.accept();
        server.write(format!("{begin}{agreement}"));
        assert!(client.head().starts_with("HTTP/1.1 502 "), "{agreement}");
        assert_eq!(server.rest(), b"");
    }
    // And one that nobody asked for.
    let mut client = Raw::connect(gateway.address());
    client.write("GET /unasked HTTP/1.1\r\nHost: g\r\n\r\n");
    let _server = agree(&peer, "websocket");
    assert!(client.head().starts_with("HTTP/1.1 502 "));
    assert_eq!(gateway.logged_path("/unasked")["reason"], "upstream.failed");
    until_closed(&gateway);
}

#[test]
fn plugins_judge_the_handshake_and_the_agreement() {
    let peer = Peer::default();
    let log = "{ access_log: { target: access.log } }";
    let stamping =
        gateway(peer.address(), "", &format!("plugins: [{log}, {{ rhai: {{ file: stamp.rhai }} }}]"));
    let mut client = asked(&stamping, "/", "websocket");
    let _server = agree(&peer, "websocket");
    assert!(client.head().contains("x-stamp: 101\r\n"));

    let refusing =
        gateway(peer.address(), "", &format!("plugins: [{log}, {{ rhai: {{ file: refuse.rhai }} }}]"));
    let mut client = asked(&refusing, "/late", "websocket");
    let (mut server, _) = agree(&peer, "websocket");
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 403 ") && !head.to_lowercase().contains("upgrade"), "{head}");
    assert_eq!(server.rest(), b"");
    assert_eq!(refusing.logged_path("/late")["reason"], "no.tunnels");
    until_closed(&refusing);

    // The wish is a header like any other: without it there is none.
    let removing =
        gateway(peer.address(), "", &format!("plugins: [{log}, {{ rhai: {{ file: remove.rhai }} }}]"));
    assert!(asked(&removing, "/", "websocket").head().starts_with("HTTP/1.1 403 "));
    let mut client = asked(&removing, "/", "other/2");
    let (mut server, head) = peer.accept();
    assert!(!head.contains("upgrade"), "{head}");
    server.write("HTTP/1.1 204 No Content\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 204 "));

    // A plugin that wants bodies whole gets none of a tunnel's, and does not hold it up.
    let whole = "mask: { patterns: [email] }";
    let whole = gateway(peer.address(), "", &format!("plugins: [{log}, {{ {whole} }}]"));
    let (mut client, mut server) = tunnel(&whole, &peer, "/");
    server.write("ann@example.com");
    client.expect(b"ann@example.com");
}

#[test]
fn a_tunnel_through_which_nothing_passes_is_closed() {
    let peer = Peer::default();
    let gateway = gateway(peer.address(), "timeouts: { tunnel: 200ms }", "");
    let (mut client, mut server) = tunnel(&gateway, &peer, "/idle");
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(600) {
        client.write("x");
        server.expect(b"x");
    }
    assert_eq!((client.rest(), server.rest()), (Vec::new(), Vec::new()));
    let line = gateway.logged_path("/idle");
    assert_eq!((&line["reason"], &line["end"]), (&json!("tunnel.idle"), &json!("refused")));
    until_closed(&gateway);
}

#[test]
fn a_side_that_goes_takes_the_tunnel_with_it() {
    let peer = Peer::default();
    let gateway = gateway(peer.address(), "", "");
    let (client, mut server) = tunnel(&gateway, &peer, "/client");
    drop(client);
    assert_eq!(server.rest(), b"");
    drop(server);
    until_closed(&gateway);
    let (mut client, server) = tunnel(&gateway, &peer, "/server");
    // What nobody has read turns its end into a reset.
    client.write("x");
    until("the byte to arrive", || server.stream().peek(&mut [0]).unwrap() == 1);
    drop(server);
    assert_eq!(client.rest(), b"");
    assert_eq!(gateway.logged_path("/server")["end"], "upstream_failed");
    until_closed(&gateway);
}

#[test]
fn a_side_that_reads_nothing_is_not_written_to_without_end() {
    let peer = Peer::default();
    let gateway = gateway(peer.address(), "", "");
    let (client, mut server) = tunnel(&gateway, &peer, "/");
    let before = gateway.memory();
    let mut stream = client.stream();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let (piece, mut written) = (vec![7; 1 << 20], 0);
    while let Ok(length) = stream.write(&piece) {
        written += length;
        assert!(written < 64 << 20, "written without end");
    }
    assert!(gateway.memory() < before + 1024, "{} KiB, before {before}", gateway.memory());
    client.finish();
    assert_eq!(server.rest().len(), written);
}

#[test]
fn a_tunnel_outlives_reloads_and_ends_with_the_drain() {
    let peer = Peer::default();
    let gateway = gateway(peer.address(), "", "drain: 300ms");
    let (mut client, mut server) = tunnel(&gateway, &peer, "/one");
    gateway.replace("gateway.yaml", "upgrades: [websocket, other/2], ", "");
    gateway.wait_generation(2);
    client.write("still there");
    server.expect(b"still there");
    // Who asks now is told no.
    assert!(asked(&gateway, "/", "websocket").head().starts_with("HTTP/1.1 403 "));
    gateway.signal("TERM");
    server.write("last words");
    client.expect(b"last words");
    assert_eq!((client.rest(), server.rest()), (Vec::new(), Vec::new()));
    assert_eq!(gateway.logged_path("/one")["response_bytes"], 10);
    assert!(gateway.wait().status.success());
}

#[test]
fn a_tunnel_over_http2_ends_with_the_drain_too() {
    if !has_module("websockets") {
        return;
    }
    let server = Echo::start();
    let gateway = gateway(server.address, "", "drain: 300ms");
    let at = gateway.address();
    run(async {
        let Got::Tunnel(_, mut stream) = connect(at, "/two", Some("websocket")).await else {
            panic!("refused")
        };
        gateway.signal("TERM");
        let mut rest = Vec::new();
        // In whichever way the connection ends.
        let _ = stream.read_to_end(&mut rest).await;
        assert_eq!(rest, b"");
    });
    assert_eq!(gateway.logged_path("/two")["status"], 200);
    assert!(gateway.wait().status.success());
}

/// What a client got that asked over HTTP/2.
enum Got {
    Answer(u16),
    Tunnel(http::HeaderMap, TokioIo<hyper::upgrade::Upgraded>),
}

/// Asks over HTTP/2 for a WebSocket, or for what else `protocol` says.
async fn connect(gateway: SocketAddr, path: &str, protocol: Option<&'static str>) -> Got {
    let stream = tokio::net::TcpStream::connect(gateway).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "the runtime is the test's, and ends with it")]
    let connection = tokio::spawn(connection);
    // With the answer to this the server has said what it allows.
    let first = http::Request::get("http://g/fixed").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(first).await.unwrap().status(), 200);
    let mut request = http::Request::builder().method(Method::CONNECT).uri(match protocol {
        Some(_) => format!("http://g{path}"),
        None => "g:443".into(),
    });
    if let Some(protocol) = protocol {
        request = request.extension(Protocol::from_static(protocol)).header("sec-websocket-version", "13");
    }
    let response = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    if status != 200 {
        let body = Limited::new(response.into_body(), 1 << 20);
        #[allow(clippy::disallowed_methods, reason = "limited")]
        let body = body.collect().await;
        assert!(body.is_ok());
        connection.abort();
        return Got::Answer(status);
    }
    let headers = response.headers().clone();
    Got::Tunnel(headers, TokioIo::new(hyper::upgrade::on(response).await.unwrap()))
}

/// Runs a client to its end.
fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, client).await.unwrap() })
}

#[test]
fn a_websocket_over_http2_is_one_over_http1_for_the_upstream() {
    if !has_module("websockets") {
        return;
    }
    let server = Echo::start();
    let gateway = gateway(server.address, "", "");
    let at = gateway.address();
    run(async {
        let Got::Tunnel(headers, mut stream) = connect(at, "/two", Some("websocket")).await else {
            panic!("refused")
        };
        assert!(
            !headers.contains_key("sec-websocket-accept") && !headers.contains_key("upgrade"),
            "{headers:?}"
        );
        assert_eq!(open(&gateway), (1.0, 1.0));
        // A masked text (RFC 6455, 5.7), and what comes back is not masked.
        stream.write_all(&[0x81, 0x85, 0, 0, 0, 0, b'H', b'e', b'l', b'l', b'o']).await.unwrap();
        let mut echo = [0; 7];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"\x81\x05Hello");
        // A close with 1000, which the server repeats before it ends the connection.
        stream.write_all(&[0x88, 0x82, 0, 0, 0, 0, 3, 0xe8]).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x88\x02\x03\xe8");
        stream.shutdown().await.unwrap();
        let line = gateway.logged_path("/two");
        let counted = ["method", "status", "request_bytes", "response_bytes"].map(|name| line[name].clone());
        assert_eq!(counted, [json!("GET"), json!(200), json!(19), json!(11)]);
        // Gone without a word.
        let Got::Tunnel(_, stream) = connect(at, "/gone", Some("websocket")).await else { panic!("refused") };
        drop(stream);
    });
    until_closed(&gateway);
}

#[test]
fn a_tunnel_over_http2_goes_on_while_its_client_reads_however_slowly() {
    const PATIENT: Duration = Duration::from_millis(400);
    if !has_module("websockets") {
        return;
    }
    let server = Echo::start();
    let listener =
        "listeners: [{ name: main, bind: 127.0.0.1:0, limits: { write_timeout: 400ms, min_rate: off } }]";
    let gateway = gateway(server.address, "", listener);
    // There is room for little at a time, so that the gateway always holds more than the client takes.
    let mut client = Http2::open_with(gateway.address(), &[(4, 8 << 10)]);
    let head = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "g"),
        (":path", "/"),
        ("sec-websocket-version", "13"),
    ];
    client.fields(1, false, &head.map(|(name, value)| (name.into(), value.into())));
    client.read_until(Http2::HEADERS);
    // A binary message of 200 KiB, which comes back (RFC 6455, 5.2).
    client.write(Http2::DATA, 0, 1, &[0x82, 0xff, 0, 0, 0, 0, 0, 3, 0x20, 0, 0, 0, 0, 0]).unwrap();
    let (piece, mut room) = ([7; 8 << 10], 60 << 10);
    for _ in 0..25 {
        while room < piece.len() {
            let (_, stream, more) = client.read_until(Http2::WINDOW_UPDATE);
            room += if stream == 1 { u32::from_be_bytes(more.try_into().unwrap()) as usize } else { 0 };
        }
        client.write(Http2::DATA, 0, 1, &piece).unwrap();
        room -= piece.len();
    }
    let begin = Instant::now();
    while begin.elapsed() < 3 * PATIENT {
        let (_, _, data) = client.read_until(Http2::DATA);
        let next = Instant::now() + PATIENT / 4;
        until("a moment to pass", || Instant::now() > next);
        [0, 1].into_iter().for_each(|stream| client.window_update(stream, data.len() as u32).unwrap());
    }
    // One that reads no more is given up.
    assert_eq!(client.reset(), (1, Http2::CANCEL));
    assert_eq!(gateway.metric("portcullis_clients_given_up_total", &["reason=\"write_timeout\""]), 1.0);
}

#[test]
fn over_http2_only_an_agreement_opens_a_tunnel() {
    let peer = Peer::default();
    let gateway = gateway(peer.address(), "retries: 0", "");
    let at = gateway.address();
    let answer = |path: &'static str, protocol| match run(connect(at, path, protocol)) {
        Got::Answer(status) => status,
        Got::Tunnel(..) => panic!("{path} became a tunnel"),
    };
    assert_eq!(answer("/closed", Some("websocket")), 403);
    assert_eq!(answer("/", Some("connect-udp")), 501);
    assert_eq!(answer("/", None), 501);
    assert_eq!(answer("/fixed/never", Some("websocket")), 502);
    assert_eq!(gateway.logged_path("/fixed/never")["reason"], "upstream.not_switched");
    for (said, expected) in [
        // The key is another one each time, so that this answer is wrong.
        (agreement("websocket"), 502),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into(), 502),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno".into(), 404),
    ] {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| answer("/x", Some("websocket")));
            let (mut server, head) = peer.accept();
            assert!(head.starts_with("get /x http/1.1\r\n") && !head.contains("protocol"), "{head}");
            assert_eq!(head.matches("\r\nsec-websocket-key: ").count(), 1, "{head}");
            server.write(&said);
            assert_eq!(asking.join().unwrap(), expected, "{said}");
        });
    }
    until_closed(&gateway);
}
