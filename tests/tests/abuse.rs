//! Clients that attack: slowly, in great numbers, or with frames that cost more than they are worth. Each attack is
//! made here, over real sockets, and has an end that is counted; meanwhile others are served.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portcullis_tests::tools::{Authority, has};
use portcullis_tests::{Frame, Gateway, Http, Http2, Origin, PATIENCE, Setup, request, until};
use serde_json::json;

/// A gateway whose listener has these limits, before an origin.
fn limited(limits: &str, more: &str) -> (Origin, Gateway) {
    let origin = Origin::start();
    let log =
        if more.contains("plugins:") { "" } else { "plugins: [{ access_log: { target: access.log } }]\n" };
    let config =
        format!("{log}listeners: [{{ name: main, bind: 127.0.0.1:0, limits: {{ {limits} }} }}]\n{more}");
    let gateway = Setup::new(&config).before(&origin).start();
    (origin, gateway)
}

fn given_up(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("portcullis_clients_given_up_total", &[&format!("reason=\"{reason}\"")])
}

fn refused(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric("portcullis_connections_refused_total", &[&format!("reason=\"{reason}\"")])
}

/// Sends `beginning`, then a byte now and then, until there is an answer or, after `most` bytes, none.
fn drip(gateway: &Gateway, beginning: &str, most: usize) -> String {
    let mut stream = TcpStream::connect(gateway.address()).unwrap();
    // It is also the pause between two bytes.
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    stream.write_all(beginning.as_bytes()).unwrap();
    let mut answer = [0; 1024];
    for _ in 0..most {
        // The answer may have come, and the connection gone.
        let _ = stream.write_all(b"x");
        if let Ok(read) = stream.read(&mut answer) {
            return String::from_utf8_lossy(&answer[..read]).into_owned();
        }
    }
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let read = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[test]
fn a_head_that_trickles_is_a_408() {
    let (_origin, gateway) = limited("header_timeout: 300ms", "");
    let answer = drip(&gateway, "GET /slow HTTP/1.1\r\nhost: g\r\nx-long: ", 10_000);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(given_up(&gateway, "header_timeout"), 1.0);
}

#[test]
fn a_body_that_trickles_is_a_408_unless_that_is_allowed() {
    let begin = |length: usize, kind: &str| {
        format!("POST /drips HTTP/1.1\r\nhost: g\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n")
    };
    let (_origin, gateway) = limited("body_timeout: 300ms", "");
    let answer = drip(&gateway, &begin(5000, "text/plain"), 5000);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(gateway.logged_path("/drips")["reason"], "body.timeout");
    assert_eq!(given_up(&gateway, "body_timeout"), 1.0);
    // Messages come when there is something to say, but not over HTTP/1.
    let answer = drip(&gateway, &begin(5000, "application/grpc+proto"), 5000);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let (_origin, tolerant) = limited("body_timeout: 300ms, min_rate: off", "");
    let answer = drip(&tolerant, &begin(50, "text/plain"), 50);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Begins a `POST /drips` of this type on stream 1.
fn begin_post(client: &mut Http2, kind: &str) {
    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/drips"),
        (":authority", "g"),
        ("te", "trailers"),
    ];
    let fields = head.into_iter().chain([("content-type", kind)]);
    let fields: Vec<_> = fields.map(|(name, value)| (name.into(), value.into())).collect();
    client.fields(1, false, &fields);
}

#[test]
fn a_body_that_trickles_over_http2_is_a_408_whatever_it_calls_itself() {
    let (_origin, gateway) = limited("body_timeout: 300ms, min_rate: 64KiB/s", "");
    for (turn, kind) in [(1.0, "text/plain"), (2.0, "application/grpc")] {
        let mut client = Http2::open(gateway.address());
        begin_post(&mut client, kind);
        until("the client to be given up", || {
            client.write(Http2::DATA, 0, 1, b"x").unwrap();
            given_up(&gateway, "body_timeout") == turn
        });
        // The status of gRPC is the other's head.
        assert_eq!(client.read_until(Http2::HEADERS).1, 1);
    }
    let is_told = |line: &serde_json::Value| line["path"] == "/drips" && line["grpc_status"].is_string();
    assert_eq!(gateway.logged("the call", is_told)["reason"], "body.timeout");
}

#[test]
fn a_call_may_trickle_to_an_upstream_that_takes_calls() {
    const BYTES: usize = 200;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("\"http://{}\"", listener.local_addr().unwrap());
    let upstream = format!("upstreams: {{ origin: {{ endpoints: [{endpoint}], protocol: http2 }} }}\n");
    let (_origin, gateway) = limited("body_timeout: 300ms, min_rate: 64KiB/s", &upstream);
    std::thread::scope(|scope| {
        // It keeps its connection to the end.
        let _server = scope.spawn(|| {
            let mut server = Http2::accept(&listener, &[]);
            let (stream, mut arrived) = (server.request(), 0);
            while arrived < BYTES {
                arrived += server.read_until(Http2::DATA).2.len();
            }
            server.respond(stream, &[("grpc-status", "0")], true);
            server
        });
        let mut client = Http2::open(gateway.address());
        begin_post(&mut client, "application/grpc");
        let (begin, mut sent) = (Instant::now(), 0);
        until("all to be sent", || {
            sent += 1;
            client.data(1, b"x", sent == BYTES);
            sent == BYTES
        });
        assert!(begin.elapsed() > Duration::from_millis(900));
        // 200 by itself in the static table (RFC 7541, appendix A).
        assert_eq!(client.read_until(Http2::HEADERS).2.first(), Some(&0x88));
    });
    assert_eq!(given_up(&gateway, "body_timeout"), 0.0);
}

#[test]
fn a_head_that_does_not_end_in_time_ends_its_connection_whatever_else_goes_on() {
    // In a frame that does not end, byte by byte, and in one that ends without the head, before silence.
    for trickles in [true, false] {
        let (origin, gateway) = limited("header_timeout: 300ms", "");
        let mut client = Http2::open(gateway.address());
        client.get(1, "/hold", &[]);
        until("a stream to be under way", || origin.held() == 1);
        if trickles {
            client.write_raw(&[0, 0x40, 0, Http2::HEADERS, 5, 0, 0, 0, 3]).unwrap();
            until("the client to be given up", || {
                client.write_raw(&[0]).unwrap();
                given_up(&gateway, "header_timeout") == 1.0
            });
        } else {
            let Frame(kind, flags, stream, payload) = Frame::beginning(3, &[]);
            client.write(kind, flags, stream, &payload).unwrap();
        }
        assert_eq!(client.end(), Http2::ENHANCE_YOUR_CALM);
        assert_eq!(given_up(&gateway, "header_timeout"), 1.0);
        origin.release();
    }
}

#[test]
fn heads_in_pieces_that_end_in_time_are_served() {
    let (_origin, gateway) = limited("header_timeout: 300ms", "");
    let mut client = Http2::open(gateway.address());
    let (begin, mut stream) = (Instant::now(), 1);
    until("more than the time for one", || {
        let Frame(kind, flags, _, payload) = Frame::beginning(stream, &[]);
        client.write(kind, flags, stream, &payload).unwrap();
        client.write(Http2::CONTINUATION, 4, stream, &[&[0, 1][..], b"a", &[1], b"b"].concat()).unwrap();
        let (_, answered, head) = client.read_until(Http2::HEADERS);
        assert_eq!((answered, head.first()), (stream, Some(&0x88)));
        stream += 2;
        begin.elapsed() > Duration::from_millis(700)
    });
    assert_eq!(given_up(&gateway, "header_timeout"), 0.0);
}

#[test]
fn silent_connections_make_room_again() {
    const PLACES: usize = 50;
    let (_origin, gateway) =
        limited(&format!("connections: {PLACES}, header_timeout: 500ms, idle_timeout: 500ms"), "");
    let mut used = gateway.connect();
    assert_eq!(used.ask(&request("GET", "/")).unwrap().status, 200);
    let mut silent: Vec<Http> = (1..PLACES).map(|_| gateway.connect()).collect();
    until("all places to be taken", || gateway.connect().is_closed());
    assert!(refused(&gateway, "connections") >= 1.0);
    assert!(used.is_closed() && silent.iter_mut().all(Http::is_closed));
    assert_eq!(given_up(&gateway, "idle_timeout"), 1.0);
    assert!(given_up(&gateway, "header_timeout") >= (PLACES - 1) as f64);
    until("a place to be free", || gateway.connect().ask(&request("GET", "/")).is_ok());
}

/// A client of the machine that is another one by its address.
fn client(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, number).into()
}

#[test]
fn a_client_has_no_more_connections_than_its_budget_over_all_workers() {
    let (_origin, gateway) =
        limited("connections_per_client: 3", "workers: 2\ntrusted_proxies: [127.0.0.9]\n");
    let from = |number| Http::connect_from(client(number), gateway.address()).unwrap();
    let ask = |http: &mut Http| http.ask(&request("GET", "/")).map(|answer| answer.status);
    let mut open: Vec<Http> = (0..3).map(|_| from(2)).collect();
    assert!(open.iter_mut().all(|http| ask(http).is_ok_and(|status| status == 200)));
    for _ in 0..50 {
        assert!(from(2).is_closed());
    }
    assert_eq!(refused(&gateway, "connections_per_client"), 50.0);
    let told = || gateway.log().matches("connections refused").count();
    until("a line to tell of it", || told() > 0);
    assert_eq!(told(), 1, "a line for all of them: {}", gateway.log());
    // Another client is not concerned, nor is a proxy, who connects for many.
    assert_eq!(ask(&mut from(3)).unwrap(), 200);
    let mut proxied: Vec<Http> = (0..10).map(|_| from(9)).collect();
    assert!(proxied.iter_mut().all(|http| ask(http).is_ok_and(|status| status == 200)));
    drop(open);
    until("its places to be free", || {
        let mut again: Vec<Http> = (0..3).map(|_| from(2)).collect();
        again.iter_mut().all(|http| ask(http).is_ok()) && from(2).is_closed()
    });
}

#[test]
fn behind_a_proxy_the_budget_is_that_of_the_client_it_names() {
    let listener = "name: main, bind: 127.0.0.1:0, proxy_protocol: { from: [127.0.0.1] }";
    let config = format!(
        "listeners: [{{ {listener}, limits: {{ connections_per_client: 2 }} }}]\nroutes: [{{ respond: {{ status: 204 }} }}]\n"
    );
    let gateway = Setup::new(&config).start();
    let ask = |number: u8| {
        let mut http = gateway.connect();
        http.write(format!("PROXY TCP4 192.0.2.{number} 192.0.2.9 1000 80\r\n").as_bytes()).unwrap();
        // One that is refused may not take it any more.
        http.ask(&request("GET", "/")).ok().map(|answer| (answer.status, http))
    };
    let open = [ask(1), ask(1), ask(2)];
    assert!(open.iter().all(|asked| asked.as_ref().is_some_and(|(status, _)| *status == 204)));
    assert!(ask(1).is_none() && ask(2).is_some());
    assert_eq!(refused(&gateway, "connections_per_client"), 1.0);
}

#[test]
fn a_client_begins_no_more_tls_handshakes_than_its_budget() {
    if !has(&["openssl", "curl"]) {
        return;
    }
    let config = "
listeners:
  - name: main
    bind: 127.0.0.1:0
    limits: { handshakes_per_client: 3/h }
    tls: { certificates: [{ cert: tls/one.test.pem, key: tls/one.test.key }] }
  - name: plain
    bind: 127.0.0.5:0
    limits: { handshakes_per_client: 1/h }
workers: 2
routes: [{ respond: { status: 204 } }]
";
    let setup = Setup::new(config);
    Authority::new(&setup.dir().join("tls")).issue("one.test");
    let gateway = setup.start();
    let ask = |number: u8| {
        let url = format!("https://{}/", gateway.address());
        let from = client(number).to_string();
        let asked = Command::new("curl")
            .args(["-sk", "--max-time", "60", "--interface", &from, "-o", "/dev/null", "-w", "%{http_code}"])
            .arg(url)
            .output();
        String::from_utf8(asked.unwrap().stdout).unwrap()
    };
    assert_eq!([ask(2), ask(2), ask(2), ask(2), ask(3)], ["204", "204", "204", "000", "204"]);
    assert_eq!(refused(&gateway, "handshakes_per_client"), 1.0);
    // It was refused before TLS.
    assert_eq!(gateway.metric("portcullis_tls_handshake_failures_total", &[]), 0.0);
    for _ in 0..3 {
        let mut plain = Http::connect(gateway.listener("plain")).unwrap();
        assert_eq!(plain.ask(&request("GET", "/")).unwrap().status, 204);
    }
}

/// Makes an attack over HTTP/2, of which the gateway must have enough, and be as well as before. What counted it, and
/// how many turns it bore.
#[track_caller]
fn flood(most: u32, attack: impl FnMut(u32) -> Vec<Frame>) -> (&'static str, u32) {
    let (_origin, gateway) = limited("", "");
    let (code, turns) = Http2::open(gateway.address()).flood(most, attack);
    assert_eq!(code, Http2::ENHANCE_YOUR_CALM);
    until("the connection to be closed", || gateway.metric("portcullis_connections_open", &[]) == 0.0);
    assert_eq!(gateway.get("/").status, 200);
    let reasons = ["http2_frames", "http2_resets", "http2_error"];
    let counted: Vec<_> = reasons.into_iter().filter(|reason| given_up(&gateway, reason) > 0.0).collect();
    // A malformed stream is counted too, and does not end the connection.
    assert!(counted.len() == 1 || counted == ["http2_frames", "http2_error"], "{counted:?}");
    (counted[0], turns)
}

#[test]
fn streams_taken_back_as_they_begin_end_the_connection() {
    let attack = |turn: u32| (0..50).flat_map(|at| request_and_reset(100 * turn + 2 * at + 1)).collect();
    let (counted, turns) = flood(10_000, attack);
    assert!(["http2_error", "http2_resets"].contains(&counted) && turns < 1000, "{counted} {turns}");
}

fn request_and_reset(stream: u32) -> [Frame; 2] {
    [Frame::get(stream, "/"), Frame::reset(stream)]
}

#[test]
fn streams_taken_back_one_by_one_end_the_connection() {
    let (origin, gateway) = limited("", "");
    let mut stream = 1;
    let attack = |turn: u32| {
        // The one before is being served when it is taken back.
        let before = stream;
        stream += 2;
        until("the stream to be served, or none any more", || {
            turn == 0 || origin.served() as u32 >= turn || given_up(&gateway, "http2_resets") > 0.0
        });
        match turn {
            0 => vec![Frame::get(before + 2, "/hold")],
            _ => vec![Frame::reset(before), Frame::get(before + 2, "/hold")],
        }
    };
    let (code, turns) = Http2::open(gateway.address()).flood(1000, attack);
    assert_eq!(code, Http2::ENHANCE_YOUR_CALM);
    assert!((200..210).contains(&turns), "{turns}");
    assert_eq!(given_up(&gateway, "http2_resets"), 1.0);
    // What was taken back is given up at the upstream too.
    until("nothing to be under way", || gateway.metric("portcullis_upstream_in_flight", &[]) == 0.0);
}

#[test]
fn streams_that_the_client_has_reset_by_the_gateway_end_the_connection() {
    // More room than a stream can have is an error of the stream (CVE-2025-8671).
    let attack = |turn: u32| {
        let stream = 2 * turn + 1;
        let all = i32::MAX.to_be_bytes().to_vec();
        vec![Frame::get(stream, "/hold"), Frame(Http2::WINDOW_UPDATE, 0, stream, all)]
    };
    let (counted, turns) = flood(100_000, attack);
    assert!(counted == "http2_error" && turns < 50_000, "{counted} {turns}");
}

#[test]
fn frames_that_ask_for_nothing_end_the_connection() {
    let ping = Frame(Http2::PING, 0, 0, vec![7; 8]);
    let settings = Frame(Http2::SETTINGS, 0, 0, [0, 4, 0, 1, 0, 0].repeat(2));
    let priority = Frame(Http2::PRIORITY, 0, 5, vec![0, 0, 0, 3, 9]);
    let window = Frame(Http2::WINDOW_UPDATE, 0, 0, vec![0, 0, 0, 1]);
    let unknown = Frame(0x42, 0, 0, Vec::new());
    for frame in [ping, settings, priority, window, unknown] {
        let (counted, turns) = flood(1_000_000, |_| vec![frame.clone()]);
        assert_eq!(counted, "http2_frames", "{frame:?}");
        assert!(turns >= 900, "{frame:?} after {turns}");
    }
}

#[test]
fn empty_frames_of_a_stream_end_the_connection() {
    let empty = |kind: u8, flags: u8| {
        move |turn: u32| match turn {
            0 => vec![Frame(Http2::HEADERS, 4, 1, post())],
            _ => vec![Frame(kind, flags, 1, Vec::new())],
        }
    };
    flood(1_000_000, empty(Http2::DATA, 0));
    // Trailers, again and again.
    flood(1_000_000, empty(Http2::HEADERS, 4));
}

/// The head of a `POST /` over http.
fn post() -> Vec<u8> {
    [&[0x83, 0x86, 0x84, 0x01, 1][..], b"g"].concat()
}

#[test]
fn a_head_without_an_end_ends_the_connection() {
    for payload in [Vec::new(), [&[0, 1][..], b"a", &[1], b"b"].concat()] {
        let attack = |turn: u32| match turn {
            0 => vec![Frame::beginning(1, &[])],
            _ => vec![Frame(Http2::CONTINUATION, 0, 1, payload.clone())],
        };
        let (counted, turns) = flood(100_000, attack);
        assert_eq!(counted, "http2_error", "after {turns}");
    }
}

#[test]
fn a_small_head_that_unpacks_to_a_large_one_ends_the_connection() {
    let (_origin, gateway) = limited("", "");
    // A field of 4000 bytes for the table, then 16,000 times one byte that stands for it.
    let long = [&[0x40, 1][..], b"x", &[0x7f, 0xa1, 0x1e], &[b'v'; 4000]].concat();
    let bomb = vec![0xbe; 16_000];
    let before = gateway.memory();
    let attack = |turn: u32| {
        let stream = 2 * turn + 1;
        vec![Frame::beginning(stream, &long), Frame(Http2::CONTINUATION, 4, stream, bomb.clone())]
    };
    let (code, _) = Http2::open(gateway.address()).flood(1000, attack);
    assert_eq!(code, Http2::ENHANCE_YOUR_CALM);
    until("it to be counted", || given_up(&gateway, "http2_error") == 1.0);
    let grown = gateway.memory().saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB");
}

#[test]
fn many_small_pieces_of_a_body_that_nobody_reads_end_the_connection() {
    let origin = Origin::start();
    // The plugin waits before anything of the body is read.
    let config = "plugins: [{ ext_authz: { upstream: origin, path: /hold, timeout: 1h }, timeout: 1h }]\n";
    let gateway = Setup::new(config).before(&origin).start();
    let attack = |turn: u32| match turn {
        0 => vec![Frame(Http2::HEADERS, 4, 1, post())],
        _ => vec![Frame(Http2::DATA, 0, 1, b"x".to_vec()); 100],
    };
    let (code, _) = Http2::open(gateway.address()).flood(2000, attack);
    assert_eq!(code, Http2::ENHANCE_YOUR_CALM);
    until("it to be counted", || given_up(&gateway, "http2_error") == 1.0);
    origin.release();
}

#[test]
fn a_response_that_is_not_read_ends_its_stream_and_no_other() {
    let (_origin, gateway) = limited("write_timeout: 200ms", "");
    // Without room for anything in a stream.
    let mut client = Http2::open_with(gateway.address(), &[(4, 0)]);
    client.get(1, "/big/100000", &[]);
    client.get(3, "/hold", &[]);
    assert_eq!(client.reset(), (1, Http2::CANCEL));
    assert_eq!(given_up(&gateway, "write_timeout"), 1.0);
    let line = gateway.logged_path("/big/100000");
    assert_eq!((&line["end"], &line["status"]), (&json!("client_gone"), &json!(200)));
    client.get(5, "/status/204", &[]);
    let answered = |line: &serde_json::Value| line["path"] == "/status/204" && line["end"] == "complete";
    gateway.logged("the other stream", answered);
}

#[test]
fn responses_that_wait_for_a_client_hold_little_memory() {
    const STREAMS: u32 = 100;
    let (origin, gateway) = limited("write_timeout: 1s", "");
    let before = gateway.memory();
    // There is room for all of it in the streams, but nothing is read from the socket (CVE-2019-9517).
    let mut client = Http2::open_with(gateway.address(), &[(4, i32::MAX as u32)]);
    client.write(Http2::WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes()).unwrap();
    for stream in 0..STREAMS {
        client.get(2 * stream + 1, "/big/50000000", &[]);
    }
    let mut most = 0;
    until("the client to be given up", || {
        most = most.max(gateway.memory().saturating_sub(before));
        given_up(&gateway, "write_timeout") > 0.0
    });
    assert_eq!(origin.served() as u32, STREAMS);
    assert!(most < 40 << 10, "{most} KiB");
    until("the connection to be closed", || gateway.metric("portcullis_connections_open", &[]) == 0.0);
}

#[test]
fn a_client_that_works_hard_is_not_taken_for_an_attacker() {
    if !has(&["h2load"]) {
        return;
    }
    let (_origin, gateway) = limited("", "");
    // Small windows make for many updates of them.
    for (path, count, windows) in [("/", "2000", "16"), ("/big/3000000", "20", "14")] {
        let url = format!("http://{}{path}", gateway.address());
        let load = Command::new("h2load")
            .args(["-n", count, "-c", "2", "-m", "50", "-w", windows, "-W", windows, &url])
            .output();
        let report = String::from_utf8(load.unwrap().stdout).unwrap();
        assert!(report.contains(&format!("{count} succeeded, 0 failed, 0 errored")), "{report}");
    }
    assert_eq!(gateway.metric("portcullis_clients_given_up_total", &[]), 0.0);
}

/// Attacks with slowhttptest, with a hundred connections; meanwhile others are served.
fn slowhttptest(gateway: &Gateway, target: &str, mode: &[&str]) {
    let connections = || gateway.metric("portcullis_connections_total", &[]);
    let before = connections();
    let url = format!("http://{}{target}", gateway.address());
    let mut attack = Command::new("slowhttptest")
        .args(mode)
        .args(["-c", "100", "-r", "100", "-l", "8", "-u", &url])
        .current_dir(gateway.dir())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the attack to be under way", || connections() >= before + 50.0);
    loop {
        let begin = Instant::now();
        assert_eq!(gateway.get("/others").status, 200);
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?} during {mode:?}");
        if attack.try_wait().unwrap().is_some() {
            break;
        }
    }
    until("the attackers to be gone", || gateway.metric("portcullis_connections_open", &[]) == 0.0);
}

#[test]
fn others_are_served_while_slowhttptest_attacks() {
    if !has(&["slowhttptest"]) {
        return;
    }
    let (_origin, gateway) =
        limited("header_timeout: 2s, body_timeout: 2s, write_timeout: 2s, idle_timeout: 2s", "");
    let seen = |reason: &str| given_up(&gateway, reason);
    slowhttptest(&gateway, "/", &["-H", "-i", "1", "-x", "24"]);
    assert!(seen("header_timeout") >= 100.0, "slow heads");
    slowhttptest(&gateway, "/", &["-B", "-i", "1", "-s", "8192", "-x", "10"]);
    assert!(seen("body_timeout") >= 100.0, "slow bodies");
    let slow_read = ["-X", "-w", "10", "-y", "20", "-n", "1", "-z", "32", "-k", "1"];
    slowhttptest(&gateway, "/big/20000000", &slow_read);
    assert!(seen("write_timeout") >= 100.0, "slow reading");
    slowhttptest(&gateway, "/", &["-R", "-a", "10", "-b", "3000"]);
}
