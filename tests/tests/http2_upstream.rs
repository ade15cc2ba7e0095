//! Endpoints that speak HTTP/2: many requests on a connection, and what becomes of them when a stream or the
//! connection ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use portcullis_tests::tools::{Authority, has};
use portcullis_tests::{Frame, Gateway, Http, Http2, Origin, Setup, nobody, request, server, until};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

const CONNECTS: &str = "portcullis_upstream_shared_connects_total";

/// A gateway whose upstream speaks HTTP/2 and has these settings.
fn before(origin: SocketAddr, settings: &str) -> Gateway {
    let config = format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]\nupstreams: {{ origin: {{ endpoints: [\"http://{origin}\"], protocol: http2, {settings} }} }}\n"
    );
    Setup::new(&config).start()
}

/// A server by hand, and a gateway before it.
fn by_hand(settings: &str) -> (TcpListener, Gateway) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = before(listener.local_addr().unwrap(), settings);
    (listener, gateway)
}

/// A request whose answer is read later.
fn begin(gateway: &Gateway, head: &str) -> Http {
    let mut client = gateway.connect();
    client.write(head.as_bytes()).unwrap();
    client
}

#[test]
fn requests_share_a_connection() {
    let origin = Origin::start();
    let gateway = before(origin.address(), "");
    let mut clients: Vec<_> =
        (0..30).map(|_| begin(&gateway, "GET /hold HTTP/1.1\r\nhost: g\r\n\r\n")).collect();
    until("the requests to be held", || origin.held() == 30);
    assert_eq!(origin.connections(), 1);
    origin.release();
    for client in &mut clients {
        let seen = client.answer("GET").unwrap().json();
        assert_eq!((&seen["version"], &seen["path"]), (&json!("HTTP/2.0"), &json!("/hold")));
    }
    assert_eq!(gateway.metric(CONNECTS, &[]), 1.0);
    assert_eq!(gateway.status()["upstreams"][0]["protocol"], "http2");
}

#[test]
fn a_server_as_a_whole_is_asked_over_http2_too() {
    let origin = Origin::start();
    let gateway = before(origin.address(), "");
    for target in ["*", "http://g"] {
        let seen = gateway.ask(&request("OPTIONS", target).header("host", "g")).json();
        let told = ["method", "path", "version"].map(|name| seen[name].clone());
        assert_eq!(told, [json!("OPTIONS"), json!("*"), json!("HTTP/2.0")], "{target}: {seen}");
    }
}

#[test]
fn requests_beyond_a_connection_open_another() {
    let origin = Origin::start();
    let gateway = before(origin.address(), "");
    let _clients: Vec<_> =
        (0..101).map(|_| begin(&gateway, "GET /hold HTTP/1.1\r\nhost: g\r\n\r\n")).collect();
    until("the requests to be held", || origin.held() == 101);
    assert_eq!(origin.connections(), 2);
    origin.release();

    // An endpoint may take fewer.
    const MAX_CONCURRENT_STREAMS: u16 = 3;
    let (listener, gateway) = by_hand("");
    let mut first = begin(&gateway, "GET /first HTTP/1.1\r\nhost: g\r\n\r\n");
    let mut one = Http2::accept(&listener, &[(MAX_CONCURRENT_STREAMS, 1)]);
    let stream = one.request();
    // The answer to a ping shows that the settings have arrived.
    one.write(Http2::PING, 0, 0, &[0; 8]).unwrap();
    one.read_until(Http2::PING);
    let mut second = begin(&gateway, "GET /second HTTP/1.1\r\nhost: g\r\n\r\n");
    let mut two = Http2::accept(&listener, &[]);
    let other = two.request();
    one.respond(stream, &[("x-on", "one")], true);
    two.respond(other, &[("x-on", "two")], true);
    assert_eq!(first.answer("GET").unwrap().header("x-on"), Some("one"));
    assert_eq!(second.answer("GET").unwrap().header("x-on"), Some("two"));
}

#[test]
fn what_the_endpoint_has_not_looked_at_is_repeated() {
    let (listener, gateway) = by_hand("retries: 0");
    let post = "POST /once HTTP/1.1\r\nhost: g\r\ncontent-length: 4\r\n\r\nbody";
    let mut server = {
        let mut warm = begin(&gateway, "GET / HTTP/1.1\r\nhost: g\r\n\r\n");
        let mut server = Http2::accept(&listener, &[]);
        let stream = server.request();
        server.respond(stream, &[], true);
        assert_eq!(warm.answer("GET").unwrap().status, 200);
        server
    };
    // A stream that is refused, then one beyond the last that the endpoint serves.
    let mut client = begin(&gateway, post);
    let refused = server.request();
    server.read_until(Http2::DATA);
    server.write_reset(refused, Http2::REFUSED_STREAM);
    let beyond = server.request();
    assert!(beyond > refused);
    server.go_away(refused);
    let mut fresh = Http2::accept(&listener, &[]);
    let stream = fresh.request();
    let (_, _, body) = fresh.read_until(Http2::DATA);
    assert_eq!(body, b"body");
    fresh.respond(stream, &[("x-served", "1")], true);
    assert_eq!(client.answer("POST").unwrap().header("x-served"), Some("1"));
    assert_eq!(gateway.logged_path("/once")["status"], 200);
    // More than is kept can't be sent again.
    let long = "x".repeat(65_536);
    let head = format!("POST /long HTTP/1.1\r\nhost: g\r\ncontent-length: {}\r\n\r\n{long}", long.len() + 1);
    let mut client = begin(&gateway, &head);
    let refused = fresh.request();
    let mut arrived = 0;
    fresh.window_update(0, 1 << 20).unwrap();
    fresh.window_update(refused, 1 << 20).unwrap();
    while arrived < long.len() {
        arrived += fresh.read_until(Http2::DATA).2.len();
    }
    client.write(b"y").unwrap();
    fresh.read_until(Http2::DATA);
    fresh.write_reset(refused, Http2::REFUSED_STREAM);
    assert_eq!(client.answer("POST").unwrap().status, 502);
}

#[test]
fn what_the_endpoint_may_have_done_is_not_repeated() {
    let (listener, gateway) = by_hand("");
    let mut client = begin(&gateway, "POST /once HTTP/1.1\r\nhost: g\r\ncontent-length: 4\r\n\r\nbody");
    let mut server = Http2::accept(&listener, &[]);
    let stream = server.request();
    server.read_until(Http2::DATA);
    const INTERNAL_ERROR: u32 = 2;
    server.write_reset(stream, INTERNAL_ERROR);
    assert_eq!(client.answer("POST").unwrap().status, 502);
    assert_eq!(gateway.logged_path("/once")["reason"], "upstream.failed");
    // The connection goes on.
    let mut next = begin(&gateway, "GET /next HTTP/1.1\r\nhost: g\r\n\r\n");
    let stream = server.request();
    server.respond(stream, &[], true);
    assert_eq!(next.answer("GET").unwrap().status, 200);
}

#[test]
fn a_client_that_leaves_ends_its_stream_and_no_other() {
    let (listener, gateway) = by_hand("");
    let mut stays = begin(&gateway, "GET /stays HTTP/1.1\r\nhost: g\r\n\r\n");
    let mut server = Http2::accept(&listener, &[]);
    let first = server.request();
    let leaves = begin(&gateway, "GET /leaves HTTP/1.1\r\nhost: g\r\n\r\n");
    let second = server.request();
    drop(leaves);
    assert_eq!(server.reset(), (second, Http2::CANCEL));
    server.respond(first, &[], false);
    server.data(first, b"still here", true);
    assert_eq!(stays.answer("GET").unwrap().text(), "still here");
    assert_eq!(gateway.logged_path("/leaves")["end"], "client_gone");
}

#[test]
fn transfers_that_stall_do_not_stall_others() {
    let origin = Origin::start();
    let gateway = before(origin.address(), "");
    let half =
        format!("POST /slow HTTP/1.1\r\nhost: g\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(50_000));
    let _uploads: Vec<_> = (0..50).map(|_| begin(&gateway, &half)).collect();
    let large = request("POST", "/echo").body(vec![b'y'; 3 << 20]);
    assert_eq!(gateway.ask(&large).body.len(), 3 << 20);
    // Nobody reads these, beyond what fits into the sockets.
    let unread = "GET /big/8000000 HTTP/1.1\r\nhost: g\r\n\r\n";
    let _downloads: Vec<_> = (0..40).map(|_| begin(&gateway, unread)).collect();
    until("the responses to be under way", || gateway.metric("portcullis_upstream_in_flight", &[]) >= 90.0);
    assert_eq!(gateway.ask(&large).body.len(), 3 << 20);
    assert_eq!(origin.connections(), 1);
}

#[test]
fn a_response_that_nobody_takes_ends_at_its_window() {
    let (listener, gateway) = by_hand("");
    let _unread = begin(&gateway, "GET /unread HTTP/1.1\r\nhost: g\r\n\r\n");
    let mut server = Http2::accept(&listener, &[]);
    let stream = server.request();
    server.respond(stream, &[], false);
    // More than the sockets behind it hold, though less than the connection has room for.
    for _ in 0..1024 {
        server.data(stream, &[b'x'; 16 << 10], false);
    }
    assert_eq!(server.reset(), (stream, Http2::FLOW_CONTROL_ERROR));
}

#[test]
fn small_pieces_that_nobody_takes_are_bounded_and_do_not_end_the_connection_of_others() {
    let (listener, gateway) = by_hand("");
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut client = Http2::open_with(gateway.address(), &[(INITIAL_WINDOW_SIZE, 0)]);
    (0..3).for_each(|at| client.get(2 * at + 1, "/unread", &[]));
    let mut server = Http2::accept(&listener, &[]);
    let streams = [(); 3].map(|()| server.request());
    streams.iter().for_each(|stream| server.respond(*stream, &[], false));
    let piece = |at: usize| Frame(Http2::DATA, 0, streams[at % 3], b"x".to_vec());
    (0..60_000).map(piece).for_each(|Frame(kind, flags, stream, data)| {
        server.write(kind, flags, stream, &data).unwrap();
    });
    let mut other = begin(&gateway, "GET /other HTTP/1.1\r\nhost: g\r\n\r\n");
    let stream = server.request();
    server.respond(stream, &[], true);
    assert_eq!(other.answer("GET").unwrap().status, 200);
    let (code, thousands) = server.flood(300, |_| (0..1000).map(piece).collect());
    assert_eq!(code, Http2::ENHANCE_YOUR_CALM);
    assert!(thousands > 150, "{thousands}");
}

#[test]
fn small_pieces_of_an_upload_leave_together() {
    let (listener, gateway) = by_hand("");
    let mut client = Http2::open(gateway.address());
    client.post(1, "/pieces");
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut server = Http2::accept(&listener, &[(INITIAL_WINDOW_SIZE, 0)]);
    let stream = server.request();
    is_understood(&mut server);
    (0..1000).for_each(|_| client.data(1, b"x", false));
    is_understood(&mut client);
    server.window_update(stream, 1 << 20).unwrap();
    let (mut frames, mut bytes) = (0, 0);
    while bytes < 1000 {
        bytes += server.read_until(Http2::DATA).2.len();
        frames += 1;
    }
    assert!(frames <= 3, "{frames}");
}

/// A server over TLS that tells its settings with its first words, before the client has said anything.
fn hasty(listener: TcpListener, config: rustls::ServerConfig) -> thread::JoinHandle<()> {
    let config = Arc::new(config);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut tls = rustls::ServerConnection::new(config.clone()).unwrap();
            // SETTINGS: MAX_CONCURRENT_STREAMS is 0.
            tls.writer().write_all(&[0, 0, 6, Http2::SETTINGS, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0]).unwrap();
            let mut stream = stream.unwrap();
            // It lives as long as its client wants it to.
            thread::spawn(move || while tls.complete_io(&mut stream).is_ok_and(|(read, _)| read > 0) {});
        }
    })
}

#[test]
fn connections_without_room_are_opened_so_often_and_no_more() {
    if !has(&["openssl"]) {
        return;
    }
    let certificates = tempfile::tempdir().unwrap();
    let authority = Authority::new(certificates.path());
    authority.issue("one.test");
    let chain = CertificateDer::pem_file_iter(authority.file("one.test.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(authority.file("one.test.key")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.unwrap().with_no_client_auth();
    let mut config = config.with_single_cert(chain.map(Result::unwrap).collect(), key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_half_rtt_data = true;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    hasty(listener, config);
    let tls = format!("tls: {{ ca: {}, server_name: one.test }}", authority.ca());
    let gateway = Setup::new(&format!(
        "plugins: [{{ access_log: {{ target: access.log }} }}]\nupstreams: {{ origin: {{ endpoints: [\"https://{address}\"], protocol: http2, retries: 0, {tls} }} }}\n"
    ))
    .start();
    assert_eq!(gateway.get("/full").status, 502);
    assert_eq!(gateway.logged_path("/full")["reason"], "upstream.failed");
    assert_eq!(gateway.metric(CONNECTS, &[]), 3.0);
}

#[test]
fn uploads_of_a_client_that_nobody_takes_do_not_stall_its_others() {
    let origin = Origin::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = format!(
        "
upstreams:
  origin: {{ endpoints: [\"http://{}\"], protocol: http2 }}
  silent: {{ endpoints: [\"http://{}\"], protocol: http2 }}
routes:
  - {{ match: {{ path: /silent }}, upstream: silent }}
  - {{ upstream: origin }}
",
        origin.address(),
        listener.local_addr().unwrap()
    );
    let gateway = Setup::new(&config).start();
    let mut client = Http2::open(gateway.address());
    // As much as the gateway has room for on each stream.
    const WINDOW: usize = 64 << 10;
    let piece = [b'x'; 16 << 10];
    let streams = (0..99).map(|at| 2 * at + 1);
    streams.clone().for_each(|stream| client.post(stream, "/silent"));
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let _silent = Http2::accept(&listener, &[(INITIAL_WINDOW_SIZE, 0)]);
    for stream in streams {
        (0..WINDOW / piece.len()).for_each(|_| client.data(stream, &piece, false));
    }
    client.post(199, "/echo");
    client.data(199, &piece, true);
    assert_eq!(client.read_until(Http2::HEADERS).1, 199);
    assert_eq!(client.read_until(Http2::DATA).1, 199);
}

#[test]
fn trailers_pass_both_ways_whatever_both_sides_speak() {
    let origin = Origin::start();
    let gateway = before(origin.address(), "");
    let answer = gateway.ask(&request("GET", "/trailers").header("te", "trailers"));
    assert_eq!(
        (answer.text().as_str(), &*answer.trailers),
        ("body", &[("x-checksum".into(), "abc".into())][..])
    );
    let mut client = begin(
        &gateway,
        "POST /up HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 7\r\n\r\n",
    );
    let seen = client.answer("POST").unwrap().json();
    assert_eq!((&seen["body"], &seen["trailers"]), (&json!("body"), &json!({ "x-sum": "7" })));
}

#[test]
fn a_request_is_the_same_as_over_http1() {
    let origin = Origin::start();
    let two = before(origin.address(), "");
    let one = Setup::new("").before(&origin).start();
    let asked = request("POST", "/a?b=c")
        .header("x-own", "1")
        .header("connection", "x-hop")
        .header("x-hop", "2")
        .header("te", "trailers")
        .header("cookie", "a=1; b=2")
        .body("hello");
    let (mut over_one, mut over_two) = (one.ask(&asked).json(), two.ask(&asked).json());
    assert_eq!(over_two["headers"]["te"], "trailers");
    // Where the host stands is a matter of the version.
    assert_eq!(over_one["headers"]["host"], "gateway.test");
    over_one["headers"]["host"].take();
    over_two["headers"]["host"].take();
    over_one["version"] = json!("HTTP/2.0");
    assert_eq!(over_one, over_two);
}

#[test]
fn responses_are_judged_as_strictly_as_over_http1() {
    let many: Vec<_> = (0..300).map(|at| (format!("x-{at}"), "1".to_owned())).collect();
    let long = vec![("x-long".to_owned(), "v".repeat(300_000))];
    let one = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    for headers in [
        one("connection", "close"),
        one("transfer-encoding", "chunked"),
        one("content-length", "-1"),
        [one("content-length", "1"), one("content-length", "2")].concat(),
        one("X-Upper", "1"),
        many,
        long,
    ] {
        let (listener, gateway) = by_hand("retries: 0");
        let mut client = begin(&gateway, "GET /judged HTTP/1.1\r\nhost: g\r\n\r\n");
        let mut server = Http2::accept(&listener, &[]);
        let stream = server.request();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        server.respond_long(stream, &headers);
        let answer = client.answer("GET").unwrap();
        assert_eq!(answer.status, 502, "{:?}", headers.first());
        assert_eq!(gateway.logged_path("/judged")["reason"], "upstream.failed");
    }
}

#[test]
fn a_body_of_another_length_than_it_said_breaks_off() {
    for (length, body) in [("5", "1234"), ("3", "1234")] {
        let (listener, gateway) = by_hand("retries: 0");
        let mut client = begin(&gateway, "GET /short HTTP/1.1\r\nhost: g\r\n\r\n");
        let mut server = Http2::accept(&listener, &[]);
        let stream = server.request();
        server.respond(stream, &[("content-length", length)], false);
        server.data(stream, body.as_bytes(), true);
        assert!(client.answer("GET").map_or(true, |answer| answer.status == 502));
        assert_eq!(gateway.logged_path("/short")["end"], "upstream_failed");
    }
}

#[test]
fn interim_responses_are_bounded() {
    let (listener, gateway) = by_hand("retries: 0");
    let mut client = begin(&gateway, "GET /interim HTTP/1.1\r\nhost: g\r\n\r\n");
    let mut server = Http2::accept(&listener, &[]);
    let stream = server.request();
    // `:status: 103`, and a header of 1 KiB.
    let value = "v".repeat(1024);
    let sent = (0..1000).take_while(|_| server.interim(stream, &[("x-long", &value)]).is_ok()).count();
    assert!(sent > 200, "{sent}");
    assert_eq!(client.answer("GET").unwrap().status, 502);
}

#[test]
fn an_endpoint_that_is_silent_is_a_504_and_asked_whether_it_is_there() {
    let (listener, gateway) = by_hand("timeouts: { response: 600ms }, retries: 0, eject: off");
    let mut client = begin(&gateway, "GET / HTTP/1.1\r\nhost: g\r\n\r\n");
    let mut server = Http2::accept(&listener, &[]);
    let stream = server.request();
    server.respond(stream, &[], true);
    assert_eq!(client.answer("GET").unwrap().status, 200);
    is_understood(&mut server);
    let mut client = begin(&gateway, "GET /silent HTTP/1.1\r\nhost: g\r\n\r\n");
    let stream = server.request();
    assert_eq!(client.answer("GET").unwrap().status, 504);
    let (mut reset, mut ping) = (false, None);
    while !reset || ping.is_none() {
        match server.read().unwrap() {
            (Http2::RST_STREAM, of, _) => reset = of == stream,
            (Http2::PING, _, payload) => ping = Some(payload),
            _ => {}
        }
    }
    // Until it has answered, requests go over another connection.
    let mut client = begin(&gateway, "GET /other HTTP/1.1\r\nhost: g\r\n\r\n");
    let mut other = Http2::accept(&listener, &[]);
    let stream = other.request();
    other.respond(stream, &[], true);
    assert_eq!(client.answer("GET").unwrap().status, 200);
    // One that never does is given up.
    assert!(loop {
        if let Err(error) = server.read() {
            break error.kind() == std::io::ErrorKind::UnexpectedEof;
        }
    });
}

#[test]
fn a_connection_that_is_silent_gets_no_more_requests_however_short_their_time() {
    for settings in
        ["retries: { attempts: 0, per_try_timeout: 150ms }", "retries: { attempts: 0, timeout: 150ms }"]
    {
        let stopped = server("stopped", nobody());
        let gateway = before(stopped.address(), &format!("{settings}, eject: off"));
        assert_eq!(gateway.get("/").status, 200);
        stopped.signal("STOP");
        until("another connection", || {
            assert_eq!(gateway.get("/silent").status, 504);
            gateway.metric(CONNECTS, &[]) >= 2.0
        });
        stopped.signal("CONT");
        until("an answer", || gateway.get("/").status == 200);
    }
}

#[test]
fn a_silent_connection_is_found_out_by_calls_whose_time_is_short_too() {
    let stopped = server("stopped", nobody());
    let gateway = before(stopped.address(), "retries: 0, eject: off");
    assert_eq!(gateway.get("/").status, 200);
    stopped.signal("STOP");
    let mut client = Http2::open(gateway.address());
    let mut streams = (1..).step_by(2);
    until("another connection", || {
        let call = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "g"),
            (":path", "/a.B/C"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "150m"),
        ];
        let call = call.map(|(name, value)| (name.into(), value.into()));
        client.fields(streams.next().unwrap(), true, &call);
        client.read_until(Http2::HEADERS);
        gateway.metric(CONNECTS, &[]) >= 2.0
    });
    stopped.signal("CONT");
    until("an answer", || gateway.get("/").status == 200);
}

#[test]
fn an_endpoint_that_takes_nothing_of_an_upload_is_a_504_though_the_client_pauses() {
    let (listener, gateway) = by_hand("timeouts: { response: 300ms }, retries: 0");
    let mut client = Http2::open(gateway.address());
    client.post(1, "/paused");
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let mut server = Http2::accept(&listener, &[(INITIAL_WINDOW_SIZE, 0)]);
    server.request();
    is_understood(&mut server);
    client.data(1, b"x", false);
    client.read_until(Http2::HEADERS);
    assert_eq!(gateway.logged_path("/paused")["reason"], "upstream.response_timeout");
}

/// A gateway that waits for answers just as long as an endpoint may be silent; a server by hand that has begun an
/// answer, and the client that reads it.
fn impatient() -> (TcpListener, Gateway, Http2, u32, Http) {
    let (listener, gateway) = by_hand("retries: { attempts: 0, per_try_timeout: 700ms }, eject: off");
    let held = begin(&gateway, "GET /held HTTP/1.1\r\nhost: g\r\n\r\n");
    let mut server = Http2::accept(&listener, &[]);
    let stream = server.request();
    server.respond(stream, &[], false);
    (listener, gateway, server, stream, held)
}

/// The kind of the next frame that is no end of a stream.
fn next_frame(server: &mut Http2) -> (u8, u32, Vec<u8>) {
    loop {
        let frame = server.read().unwrap();
        if frame.0 != Http2::RST_STREAM {
            return frame;
        }
    }
}

/// Waits until the gateway has read and understood what was written to it.
fn is_understood(server: &mut Http2) {
    server.write(Http2::PING, 0, 0, b"and then").unwrap();
    loop {
        if let (Http2::PING, _, payload) = next_frame(server)
            && payload == b"and then"
        {
            return;
        }
    }
}

#[test]
fn a_connection_on_which_others_are_answered_is_not_doubted() {
    let (_listener, gateway, mut server, held, _client) = impatient();
    is_understood(&mut server);
    let mut slow = begin(&gateway, "GET /slow HTTP/1.1\r\nhost: g\r\n\r\n");
    server.request();
    server.data(held, b"x", false);
    assert_eq!(slow.answer("GET").unwrap().status, 504);
    let mut next = begin(&gateway, "GET /next HTTP/1.1\r\nhost: g\r\n\r\n");
    let (kind, stream, _) = next_frame(&mut server);
    assert_eq!(kind, Http2::HEADERS, "no ping");
    server.respond(stream, &[], true);
    assert_eq!(next.answer("GET").unwrap().status, 200);
}

#[test]
fn whatever_a_server_says_shows_that_its_connection_works_and_it_is_not_asked_twice_in_a_row() {
    let (_listener, gateway, mut server, held, mut client) = impatient();
    is_understood(&mut server);
    assert_eq!(gateway.get("/slow").status, 504);
    server.request();
    let (kind, _, asked) = next_frame(&mut server);
    assert_eq!(kind, Http2::PING);
    // Its answer is behind what others are sent.
    server.data(held, b"x", false);
    is_understood(&mut server);
    let mut next = begin(&gateway, "GET /next HTTP/1.1\r\nhost: g\r\n\r\n");
    let (kind, stream, _) = next_frame(&mut server);
    assert_eq!(kind, Http2::HEADERS);
    server.respond(stream, &[], true);
    assert_eq!(next.answer("GET").unwrap().status, 200);
    server.write(Http2::PING, 1, 0, &asked).unwrap();
    // From then on it says nothing else, and is not asked again, but gets no more requests.
    until("another connection", || {
        assert_eq!(gateway.get("/slow").status, 504);
        gateway.metric(CONNECTS, &[]) == 2.0
    });
    server.data(held, b"x", true);
    assert_eq!(client.answer("GET").unwrap().text(), "xx");
    let rest: Vec<_> = std::iter::from_fn(|| server.read().ok()).map(|(kind, ..)| kind).collect();
    assert!(rest.contains(&Http2::GOAWAY) && !rest.contains(&Http2::PING), "{rest:?}");
}

#[test]
fn timeouts_hold_as_over_http1() {
    let origin = Origin::start();
    let gateway = before(origin.address(), "timeouts: { body: 150ms, idle: 100ms }");
    assert!(gateway.connect().ask(&request("GET", "/stall")).is_err());
    assert_eq!(gateway.logged_path("/stall")["end"], "upstream_failed");
    until("the unused connection to be closed", || origin.connections() == 0);
    origin.release();
    assert_eq!(gateway.get("/stall").text(), "halfhalf");
    assert_eq!(gateway.metric(CONNECTS, &[]), 2.0);
    let gateway = before(nobody(), "retries: 0");
    assert_eq!(gateway.get("/nobody").status, 502);
    assert_eq!(gateway.logged_path("/nobody")["reason"], "upstream.unreachable");
}

#[test]
fn requests_are_counted_as_over_http1() {
    let origin = Origin::start();
    let gateway = before(origin.address(), "max_requests: 1");
    let _held = begin(&gateway, "GET /hold HTTP/1.1\r\nhost: g\r\n\r\n");
    until("the request to be held", || origin.held() == 1);
    assert_eq!(gateway.metric("portcullis_upstream_in_flight", &[]), 1.0);
    assert_eq!(gateway.get("/refused").status, 503);
    origin.release();
    until("the request to end", || gateway.metric("portcullis_upstream_in_flight", &[]) == 0.0);
    assert_eq!(gateway.get("/").status, 200);
}

#[test]
fn an_endpoint_that_speaks_http1_alone_is_a_502() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = before(listener.local_addr().unwrap(), "retries: 0");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        stream
    });
    assert_eq!(gateway.get("/old").status, 502);
    assert_eq!(gateway.logged_path("/old")["reason"], "upstream.failed");
    drop(server.join());
}

#[test]
fn a_reload_keeps_the_connection() {
    let origin = Origin::start();
    let gateway = before(origin.address(), "");
    assert_eq!(gateway.get("/").status, 200);
    gateway.replace("gateway.yaml", "protocol: http2", "protocol: http2, max_requests: 9");
    gateway.wait_generation(2);
    assert_eq!(gateway.get("/").status, 200);
    assert_eq!((origin.connections(), gateway.metric(CONNECTS, &[])), (1, 1.0));
}

#[test]
fn an_http2_endpoint_is_checked_over_http2() {
    let origin = Origin::start();
    let gateway = before(origin.address(), "health: { path: /status/503, interval: 50ms, unhealthy: 1 }");
    gateway.wait_status("an unhealthy endpoint", |status| {
        status["upstreams"][0]["endpoints"][0]["state"] == "unhealthy"
    });
    gateway.replace("gateway.yaml", "/status/503", "/fine");
    gateway.wait_status("a healthy endpoint", |status| {
        status["upstreams"][0]["endpoints"][0]["state"] == "healthy"
    });
}
