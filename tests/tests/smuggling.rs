//! Nothing is smuggled: every case of `tests/corpus` is refused for the reason that stands there, or reaches the origin
//! as it stands there, read by a strict reader of our own and by servers that others wrote.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};

use portcullis_tests::corpus::{Case, Expected, Field, Seen, Sent, cases, latin1};
use portcullis_tests::tools::{has, tool};
use portcullis_tests::{
    Answer, Foreign, Frame, Gateway, Http, Http2, Origin, Peer, Recorder, Setup, request, until, wait_for,
};

/// Limits that cases can reach, and an id by which what an origin saw is found in the access log.
const CONFIG: &str = "
plugins: [{ request_id: {} }, { access_log: { target: access.log } }]
listeners: [{ name: main, bind: 127.0.0.1:0, limits: { header_bytes: 4KiB, header_count: 20 } }]
upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"] } }
";

/// What the gateway says itself in every request.
const OWN: [&str; 5] =
    ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-request-id"];

fn gateway(origin: SocketAddr) -> Gateway {
    Setup::new(CONFIG).variable("ORIGIN", origin).start()
}

/// The cases of one protocol.
fn over(is_http2: bool) -> Vec<Case> {
    let cases: Vec<_> =
        cases().into_iter().filter(|case| matches!(case.sent, Sent::Frames { .. }) == is_http2).collect();
    assert!(cases.len() > 40, "only {} cases", cases.len());
    cases
}

/// Tries every case, and fails in the end with those that failed.
fn each(cases: &[Case], mut test: impl FnMut(&Case)) {
    let failed = cases.iter().filter(|case| catch_unwind(AssertUnwindSafe(|| test(case))).is_err());
    let failed: Vec<_> = failed.map(|case| &case.title).collect();
    assert!(failed.is_empty(), "{} of {} cases failed: {failed:#?}", failed.len(), cases.len());
}

/// Without what the gateway says itself.
fn without_own(mut seen: Seen) -> Seen {
    seen.headers.retain(|(name, _)| !OWN.contains(&name.as_str()));
    seen
}

/// The requests of a case that an origin gets; `ORIGIN` in their fields is its address.
fn forwarded(case: &Case, origin: SocketAddr) -> Vec<Seen> {
    let seen = case.expected.iter().filter_map(|expected| {
        let Expected::Forwarded(mut seen) = expected.clone() else { return None };
        for (_, value) in &mut seen.headers {
            *value = value.replace("ORIGIN", &origin.to_string());
        }
        Some(seen)
    });
    seen.collect()
}

/// Sends a case of HTTP/1, and reads as many answers as are expected; the connection is gone after a refusal of what
/// was read.
fn send(gateway: &Gateway, bytes: &[u8], expected: &[Expected]) -> Vec<Answer> {
    let mut http = gateway.connect();
    http.write(bytes).unwrap();
    let answers = expected.iter().map(|expected| {
        let method = if let Expected::Forwarded(seen) = expected { &seen.method } else { "GET" };
        http.answer(method).unwrap()
    });
    let answers: Vec<_> = answers.collect();
    if let Some(Expected::Refused(_, reason)) = expected.last() {
        let is_read = !reason.starts_with("http.") || reason == "http.method_unsupported";
        // What follows a CONNECT may be meant for its tunnel.
        let goes_on = is_read && !bytes.starts_with(b"CONNECT ");
        assert!(goes_on || http.is_closed());
    }
    answers
}

/// What is known of a case after it was sent: for each refusal its id and reason.
#[derive(Default)]
struct Record {
    refused: Vec<(String, u16, String, String)>,
    seen: Vec<(Seen, String)>,
}

impl Record {
    fn refused(&mut self, case: &Case, status: u16, reason: &str, answer: &Answer) {
        assert_eq!(answer.status, status, "{}: {}", case.title, answer.text());
        let id = answer
            .header("x-request-id")
            .map_or_else(|| answer.json()["request_id"].as_str().unwrap().to_owned(), str::to_owned);
        self.refused.push((id, status, reason.to_owned(), case.title.clone()));
    }

    /// Compares what the origin saw with the case.
    fn seen(&mut self, case: &Case, origin: &Recorder) {
        let seen = origin.take();
        let shown: Vec<_> = seen.iter().cloned().map(without_own).collect();
        assert_eq!(shown, forwarded(case, origin.address()), "{}", case.title);
        self.seen.extend(seen.into_iter().map(|seen| (seen, case.title.clone())));
    }

    /// Compares it all with what the gateway believes: its access log.
    fn compare(&self, gateway: &Gateway) {
        let id_of = |seen: &Seen| {
            let id = seen.headers.iter().find(|(name, _)| name == "x-request-id");
            id.map(|(_, id)| id.clone()).unwrap()
        };
        let log = wait_for("every exchange to be logged", || {
            let lines = gateway.access_log().into_iter();
            let log: BTreeMap<_, _> =
                lines.map(|line| (line["id"].as_str().unwrap().to_owned(), line)).collect();
            let refused = self.refused.iter().all(|(id, ..)| log.contains_key(id));
            (refused && self.seen.iter().all(|(seen, _)| log.contains_key(&id_of(seen)))).then_some(log)
        });
        for (_, _, reason, title) in &self.refused {
            let alike = self.refused.iter().filter(|(_, _, other, _)| other == reason).count();
            let counted = gateway.metric("portcullis_refusals_total", &[&format!("reason=\"{reason}\"")]);
            assert_eq!(counted, alike as f64, "{title}");
        }
        for (id, status, reason, title) in &self.refused {
            let line = &log[id];
            assert_eq!(
                (line["status"].as_u64(), line["reason"].as_str()),
                (Some(u64::from(*status)), Some(reason.as_str())),
                "{title}"
            );
        }
        for (seen, title) in &self.seen {
            let line = &log[&id_of(seen)];
            let path = seen.target.split('?').next().unwrap();
            assert_eq!(
                (line["method"].as_str(), line["path"].as_str()),
                (Some(&*seen.method), Some(path)),
                "{title}"
            );
            assert_eq!(
                (line["request_bytes"].as_u64(), line["status"].as_u64()),
                (Some(seen.body.chars().count() as u64), Some(200)),
                "{title}"
            );
        }
    }
}

#[test]
fn http1_is_refused_or_forwarded_as_the_corpus_says() {
    let origin = Recorder::start();
    let gateway = gateway(origin.address());
    let mut record = Record::default();
    each(&over(false), |case| {
        origin.take();
        let Sent::Bytes(bytes) = &case.sent else { return };
        let answers = send(&gateway, bytes, &case.expected);
        for (expected, answer) in case.expected.iter().zip(&answers) {
            match expected {
                Expected::Refused(status, reason) => record.refused(case, *status, reason, answer),
                _ => assert_eq!(answer.status, 200, "{}", case.title),
            }
        }
        record.seen(case, &origin);
    });
    record.compare(&gateway);
}

/// Sends a case of HTTP/2; how it ended.
fn send_frames(
    gateway: &Gateway,
    head: &[Field],
    data: Option<&[u8]>,
    trailers: &[Field],
) -> Result<Answer, Expected> {
    let mut client = Http2::open(gateway.address());
    client.fields(1, data.is_none() && trailers.is_empty(), head);
    // The connection may be at its end already.
    if let Some(data) = data {
        let _ = client.write(Http2::DATA, u8::from(trailers.is_empty()), 1, data);
    }
    if !trailers.is_empty() {
        client.fields(1, true, trailers);
    }
    outcome(&mut client)
}

/// How the answer to the first stream of a connection ended: in a body, a reset, or the connection's end. Of an answer
/// with a body the status stands in that, where it matters.
fn outcome(client: &mut Http2) -> Result<Answer, Expected> {
    loop {
        let frame = client.read_frame().unwrap();
        if let Some(answer) = frame.plain_answer() {
            assert_eq!(
                client.read().unwrap(),
                (Http2::RST_STREAM, 1, vec![0; 4]),
                "of the rest nothing is wanted"
            );
            return Ok(answer);
        }
        let Frame(kind, _, _, payload) = frame;
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match kind {
            Http2::DATA if !payload.is_empty() => {
                let mut answer =
                    Answer { status: 200, headers: Vec::new(), body: payload, trailers: Vec::new() };
                if answer.body.starts_with(b"{\"type\"") {
                    answer.status = answer.json()["status"].as_u64().unwrap().try_into().unwrap();
                }
                return Ok(answer);
            }
            Http2::RST_STREAM => return Err(Expected::Reset(code(0))),
            Http2::GOAWAY => return Err(Expected::Goaway(code(4))),
            _ => {}
        }
    }
}

#[test]
fn http2_is_refused_or_forwarded_as_the_corpus_says() {
    let origin = Recorder::start();
    let gateway = gateway(origin.address());
    let mut record = Record::default();
    let mut malformed = 0;
    each(&over(true), |case| {
        origin.take();
        let Sent::Frames { head, data, trailers } = &case.sent else { return };
        match (send_frames(&gateway, head, data.as_deref(), trailers), &case.expected[..]) {
            (Ok(answer), [Expected::Refused(status, reason)]) => {
                record.refused(case, *status, reason, &answer);
            }
            (Ok(answer), [Expected::Forwarded(_)]) => assert_eq!(answer.body, b"ok", "{}", case.title),
            (outcome, expected) => {
                let outcome = outcome.map(|answer| answer.text());
                let is_expected = match (&outcome, expected) {
                    (Err(Expected::Reset(code)), [Expected::Reset(expected)]) => code == expected,
                    (Err(Expected::Goaway(code)), [Expected::Goaway(expected)]) => code == expected,
                    _ => false,
                };
                assert!(is_expected, "{}: {outcome:?}", case.title);
                malformed += 1;
            }
        }
        record.seen(case, &origin);
    });
    record.compare(&gateway);
    // What could not be answered is counted, and the log says that there was such a thing.
    let counted = || gateway.metric("portcullis_clients_given_up_total", &["reason=\"http2_error\""]);
    until("what was malformed to be counted", || counted() >= f64::from(malformed));
    assert!(gateway.log().contains("HTTP/2 connections ended for what came on them"));
}

/// A `GET` of HTTP/2, which this field makes malformed, and a request that is well.
const MALFORMED: [&[u8]; 2] = [b"te", b"gzip"];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    Frame(kind, flags, stream, payload.to_vec()).bytes()
}

/// A head in literals; with these flags, of which END_STREAM is 1 and END_HEADERS 4.
fn head(stream: u32, flags: u8, method: &str, field: [&[u8]; 2]) -> Vec<u8> {
    let usual = [[":method", method], [":scheme", "http"], [":authority", "a"], [":path", "/"]];
    let fields = usual.map(|field| field.map(str::as_bytes)).into_iter().chain([field]);
    let literal = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
    let block = fields.flat_map(|[name, value]| [vec![0], literal(name), literal(value)].concat());
    frame(Http2::HEADERS, flags, stream, &block.collect::<Vec<u8>>())
}

/// What becomes of so many streams: a head alone, a reset, or nothing of both but a body or its end.
fn outcomes(client: &mut Http2, streams: usize) -> BTreeMap<u32, Result<Option<Answer>, u32>> {
    let mut outcomes = BTreeMap::new();
    while outcomes.len() < streams {
        let frame = client.read_frame().unwrap();
        let answer = frame.plain_answer();
        match frame {
            Frame(Http2::HEADERS, _, stream, _) if answer.is_some() => {
                _ = outcomes.insert(stream, Ok(answer))
            }
            Frame(Http2::RST_STREAM, _, stream, code) => {
                let code = u32::from_be_bytes(code.try_into().unwrap());
                // Behind an answer it says that no more is wanted.
                let before = outcomes.entry(stream).or_insert(Err(code));
                assert!(code == 0 || *before == Err(code), "{before:?}");
            }
            Frame(Http2::DATA, flags, stream, _) if flags & 1 != 0 => _ = outcomes.insert(stream, Ok(None)),
            _ => {}
        }
    }
    outcomes
}

#[test]
fn malformed_requests_of_http2_are_refused_beside_others_that_are_served() {
    let origin = Recorder::start();
    let config = "
plugins:
  - request_id: {}
  - access_log: { target: access.log }
  - headers: { response: { set: { x-set: by-a-plugin } } }
upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"] } }
";
    let gateway = Setup::new(config).variable("ORIGIN", origin.address()).start();
    let mut client = Http2::open(gateway.address());
    let well = [&b"x-a"[..], b"b"];
    // All at once: within one turn of the connection it has to be known who is who.
    let together = [
        head(1, 5, "GET", MALFORMED),
        head(3, 5, "GET", well),
        head(5, 4, "POST", [b"content-length", b"3"]),
        frame(Http2::DATA, 1, 5, b"longer"),
        head(7, 5, "GET", MALFORMED),
        head(9, 5, "GET", well),
    ];
    client.write_raw(&together.concat()).unwrap();
    let found = outcomes(&mut client, 5);
    for stream in [1, 7] {
        let Ok(Some(answer)) = &found[&stream] else { panic!("{found:?}") };
        assert_eq!((answer.status, answer.header("x-set")), (400, Some("by-a-plugin")));
        let id = answer.header("x-request-id").unwrap();
        let record = wait_for("the record", || {
            let record = gateway.admin("GET", &format!("/records/{id}"));
            (record.status == 200).then(|| record.json())
        });
        assert_eq!(record["decided_by"]["reason"], "http.malformed", "{record}");
        assert_eq!(record["decided_by"]["by"], "core.http", "{record}");
    }
    assert_eq!((&found[&3], &found[&9], &found[&5]), (&Ok(None), &Ok(None), &Err(1)));
    // Of one that goes on to send its body no more is wanted, and nothing else suffers.
    client.write_raw(&head(11, 4, "POST", MALFORMED)).unwrap();
    let answered = answer_on(&mut client, 11);
    assert_eq!(answered.status, 400);
    for _ in 0..10 {
        client.write(Http2::DATA, 0, 11, &[b'x'; 4096]).unwrap();
    }
    client.write_raw(&head(13, 5, "GET", well)).unwrap();
    assert_eq!(outcomes(&mut client, 2)[&13], Ok(None));
    // A head in pieces is one, wherever they end.
    let whole = head(15, 5, "GET", MALFORMED);
    for piece in whole.chunks(7) {
        client.write_raw(piece).unwrap();
        client.write_raw(&[]).unwrap();
    }
    assert_eq!(answer_on(&mut client, 15).status, 400);
    let logged = || {
        let lines = gateway.access_log();
        lines.iter().filter(|line| line["reason"] == "http.malformed").cloned().collect::<Vec<_>>()
    };
    until("all to be logged", || logged().len() == 4);
    let line = &logged()[0];
    assert_eq!((&line["status"], &line["end"]), (&400.into(), &"complete".into()), "{line}");
    assert_eq!(gateway.metric("portcullis_refusals_total", &["reason=\"http.malformed\""]), 4.0);
    // The one whose body was wrong.
    assert_eq!(gateway.metric("portcullis_clients_given_up_total", &["reason=\"http2_error\""]), 1.0);
}

/// The head that is all of a stream's answer.
fn answer_on(client: &mut Http2, stream: u32) -> Answer {
    loop {
        let frame = client.read_frame().unwrap();
        if let Some(answer) = frame.plain_answer().filter(|_| frame.2 == stream) {
            return answer;
        }
    }
}

#[test]
fn fields_for_which_a_head_alone_has_no_room_are_left_out() {
    let long = "v".repeat(9000);
    let config = format!(
        "plugins: [{{ headers: {{ response: {{ set: {{ x-one: {long}, x-other: {long}, x-set: by-a-plugin }} }} }} }}]\n\
         routes: [{{ respond: {{ status: 204 }} }}]\n"
    );
    let gateway = Setup::new(&config).start();
    let mut client = Http2::open(gateway.address());
    client.write_raw(&head(1, 5, "GET", MALFORMED)).unwrap();
    let Frame(_, flags, _, block) = loop {
        let frame = client.read_frame().unwrap();
        if frame.0 == Http2::HEADERS {
            break frame;
        }
    };
    let count = |name: &[u8]| block.windows(name.len()).filter(|part| *part == name).count();
    assert_eq!((flags, count(b"x-set"), count(b"x-request-id")), (5, 1, 1));
    assert_eq!(count(b"x-one") + count(b"x-other"), 1, "{} bytes", block.len());
}

#[test]
fn clients_that_others_wrote_show_what_becomes_of_a_malformed_request() {
    if !has(&["curl", "nghttp"]) {
        return;
    }
    let gateway = Setup::new("routes: [{ respond: { status: 204 } }]\n").start();
    let url = format!("http://{}/", gateway.address());
    let curl = ["-sS", "--http2-prior-knowledge", "-i", "-H", "content-length: 5", &url];
    let said = tool("curl", &curl);
    assert!(said.starts_with("HTTP/2 400") && said.contains("x-request-id: "), "{said}");
    let said = tool("nghttp", &["-v", "-H", "te: gzip", &url]);
    assert!(said.contains(":status: 400") && said.contains("x-request-id: "), "{said}");
    let said = tool("nghttp", &["-v", "-H", "te: gzip", "-d", "/proc/self/exe", &url]);
    assert!(said.contains(":status: 400"), "{said}");
}

/// Sends every case by way of a gateway to this origin, each followed by a request that has to be answered as itself
/// over the same connection of the upstream; compares what the origin saw, as far as it tells.
fn compare_with(name: &str, origin: &Foreign, told: impl Fn(&Seen) -> Seen) {
    let gateway = gateway(origin.address());
    let (mut at, mut requests, mut connections) = (0, 0, BTreeSet::new());
    each(&cases(), |case| {
        at += 1;
        let (expected, is_unlike) =
            (forwarded(case, origin.address()), case.unlike.iter().any(|unlike| unlike == name));
        let answers = match &case.sent {
            Sent::Bytes(bytes) => send(&gateway, bytes, &case.expected).iter().map(Answer::text).collect(),
            Sent::Frames { head, data, trailers } => {
                let ended = send_frames(&gateway, head, data.as_deref(), trailers);
                vec![ended.map_or_else(|ended| format!("{ended:?}"), |answer| latin1(&answer.body))]
            }
        };
        for (expected, answer) in case.expected.iter().zip(&answers) {
            // Nobody but the origin answers with the target.
            if let Expected::Forwarded(Seen { method, target, .. }) = expected
                && !is_unlike
            {
                assert_eq!(answer, if method == "HEAD" { "" } else { target }, "{}", case.title);
            }
        }
        let marker = format!("/marker/{at}");
        let mut http = Http::connect(gateway.address()).unwrap();
        let answer = http.ask(&request("GET", &marker)).unwrap();
        assert_eq!((answer.status, answer.text()), (200, marker.clone()), "behind {}", case.title);
        let mut seen = Vec::new();
        until("the origin to tell of it", || {
            for logged in origin.take() {
                requests += 1;
                connections.insert(logged.connection);
                seen.push(logged.seen);
            }
            seen.last().is_some_and(|seen| seen.target == marker)
        });
        seen.pop();
        if is_unlike {
            assert!(seen.len() <= expected.len(), "{}: {seen:?}", case.title);
        } else {
            let shown: Vec<_> = seen.into_iter().map(|seen| told(&without_own(seen))).collect();
            assert_eq!(shown, expected.iter().map(&told).collect::<Vec<_>>(), "{}", case.title);
        }
    });
    // Connections are kept, or there would be nothing to confuse.
    assert!(connections.len() * 3 < requests, "{} connections for {requests} requests", connections.len());
}

#[test]
fn nginx_sees_what_the_gateway_sent() {
    if !has(&["nginx"]) {
        return;
    }
    // What has a variable there.
    let is_variable = |name: &str| {
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    let expected = cases().into_iter().flat_map(|case| case.expected);
    let names = expected.flat_map(|expected| match expected {
        Expected::Forwarded(seen) => seen.headers,
        _ => Vec::new(),
    });
    let names: BTreeSet<String> = names.map(|(name, _)| name).filter(|name| is_variable(name)).collect();
    let origin = Foreign::nginx(&names.into_iter().collect::<Vec<_>>());
    // Of fields of one name it tells the first, of empty ones and of trailers nothing.
    compare_with("nginx", &origin, |seen| {
        let mut told = Seen { trailers: Vec::new(), ..seen.clone() };
        told.headers.retain(|(name, value)| is_variable(name) && !value.is_empty());
        told.headers.dedup_by(|(later, _), (first, _)| later == first);
        told
    });
}

#[test]
fn node_sees_what_the_gateway_sent() {
    if has(&["node"]) {
        compare_with("node", &Foreign::node(), Seen::clone);
    }
}

#[test]
fn python_sees_what_the_gateway_sent() {
    if has(&["python3"]) {
        compare_with("python", &Foreign::python(), Seen::clone);
    }
}

#[test]
fn a_host_that_a_plugin_left_is_judged_like_a_clients() {
    const HOOKS: [&str; 2] = ["on_request", "on_upstream"];
    for hook in HOOKS {
        let origin = Recorder::start();
        let config = "
plugins: [{ access_log: { target: access.log } }, { rhai: { file: host.rhai } }]
upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"] } }
";
        let part = if hook == "on_request" { "request" } else { "outgoing" };
        let script = format!(
            "fn {hook}(ctx) {{ let host = ctx.request.query(\"host\"); \
             if host != () {{ ctx.{part}.headers[\"host\"] = host; }} }}\n"
        );
        let setup = Setup::new(config).file("host.rhai", script).variable("ORIGIN", origin.address());
        let gateway = setup.start();
        for host in ["", "b%20c", "u%40b", "b%2Fc", "b,c"] {
            let path = format!("/{hook}?host={host}");
            assert_eq!(gateway.get(&path).status, 500, "{path}");
        }
        let line = gateway.logged_path(&format!("/{hook}"));
        assert_eq!(
            (&line["reason"], &line["decided_by"]),
            (&"exchange.host".into(), &"core.exchange".into())
        );
        assert!(origin.take().is_empty());
        assert_eq!(gateway.get("/?host=B.c:80").status, 200);
        let seen = without_own(origin.take().remove(0));
        assert_eq!(seen.headers, [("host".to_owned(), "B.c:80".to_owned())]);
    }
}

#[test]
fn no_spelling_of_a_path_leads_around_its_route() {
    const BEFORE: [&str; 9] =
        ["/", "//", "/./", "/a/../", "/%2e/", "/a/%2E%2e/", "/a//..//", "/a;b/../", "http://gateway.test/"];
    const NAMES: [&str; 7] =
        ["admin", "%61dmin", "adm%69n", "%61%64%6D%69%6e", "admin%00", "admin\\", "./admin"];
    const BEHIND: [&str; 10] =
        ["", "/", "/x", "//x", "/./x", "/../admin/x", "%2fx", "?x", "/..;/x", "/x/..%5c.."];
    let origin = Recorder::start();
    let config = "
upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"] } }
routes:
  - { name: admin, match: { prefix: /admin }, respond: { status: 403 } }
  - { name: all, upstream: origin }
";
    let gateway = Setup::new(config).variable("ORIGIN", origin.address()).start();
    let mut http = gateway.connect();
    for before in BEFORE {
        for name in NAMES {
            for behind in BEHIND {
                let spelling = format!("{before}{name}{behind}");
                let status = http.ask(&request("GET", &spelling)).unwrap().status;
                assert!([400, 403].contains(&status), "{spelling}: {status} {:?}", origin.take());
            }
        }
    }
    assert_eq!(http.ask(&request("GET", "/admin/../x")).unwrap().status, 200);
}

#[test]
fn a_client_gets_a_head_or_a_body_as_it_asked_whatever_a_plugin_made_of_the_method() {
    let origin = Origin::start();
    let config = "
plugins: [{ access_log: { target: access.log } }, { rhai: { file: method.rhai } }]
upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"] } }
";
    let script = "fn on_request(ctx) { let method = ctx.request.query(\"as\"); \
                  if method != () { ctx.request.method = method; } }\n";
    let setup = Setup::new(config).file("method.rhai", script).variable("ORIGIN", origin.address());
    let gateway = setup.start();
    let mut http = gateway.connect();
    for (asked, sent) in [("HEAD", "GET"), ("GET", "HEAD")] {
        let path = format!("/{asked}/big/100");
        let answer = http.ask(&request(asked, &format!("{path}?as={sent}"))).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, ""), "{asked} as {sent}");
        // What a body left on the connection would be read as this answer.
        assert_eq!(http.ask(&request("GET", "/big/5")).unwrap().body.len(), 5);
        let line = gateway.logged_path(&path);
        assert_eq!((&line["end"], &line["response_bytes"]), (&"complete".into(), &0.into()), "{line}");
    }
    let mut client = Http2::open(gateway.address());
    let field = |name: &str, value: &str| (name.into(), value.into());
    let head = [(":method", "HEAD"), (":scheme", "http"), (":authority", "a"), (":path", "/big/100?as=GET")];
    client.fields(1, true, &head.map(|(name, value)| field(name, value)));
    client.read_until(Http2::HEADERS);
    client.get(3, "/big/5", &[]);
    assert_eq!(client.read_until(Http2::DATA).1, 3);
}

#[test]
fn what_an_origin_claims_in_trailers_goes_no_further() {
    const CLAIMS: [(&str, &str); 6] = [
        ("x-forwarded-for", "1"),
        ("x_real_ip", "1"),
        ("content-length", "9"),
        ("set-cookie", "a=b"),
        ("location", "/b"),
        ("x-sum", "7"),
    ];
    let sum = [("x-sum".to_owned(), "7".to_owned())];
    let asking = || "GET / HTTP/1.1\r\nhost: g\r\nte: trailers\r\n\r\n";
    let before = |address: SocketAddr, protocol: &str| {
        let config =
            "upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"], protocol: \"${PROTOCOL}\" } }\n";
        Setup::new(config).variable("ORIGIN", address).variable("PROTOCOL", protocol).start()
    };
    let lines: String = CLAIMS.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();

    let peer = Peer::default();
    let gateway = before(peer.address(), "http1");
    let mut client = gateway.connect();
    client.write(asking().as_bytes()).unwrap();
    let (mut server, _) = peer.accept();
    server.write(format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{lines}\r\n"));
    let answer = client.answer("GET").unwrap();
    assert_eq!((answer.text().as_str(), &*answer.trailers), ("ok", &sum[..]));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = before(listener.local_addr().unwrap(), "http2");
    let mut client = gateway.connect();
    client.write(asking().as_bytes()).unwrap();
    let mut server = Http2::accept(&listener, &[]);
    let stream = server.request();
    server.respond(stream, &[], false);
    server.data(stream, b"ok", false);
    server.fields(stream, true, &CLAIMS.map(|(name, value)| (name.into(), value.into())));
    let answer = client.answer("GET").unwrap();
    assert_eq!((answer.text().as_str(), &*answer.trailers), ("ok", &sum[..]));
}
