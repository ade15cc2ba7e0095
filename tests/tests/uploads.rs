//! What comes beside and behind an upload: answers that do not wait for its end, and trailers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::net::TcpListener;

use portcullis_tests::{Gateway, Http, Http2, Origin, Setup, until};
use serde_json::{Value, json};

/// A request whose answer is read later.
fn begin(gateway: &Gateway, head: &str) -> Http {
    let mut client = gateway.connect();
    client.write(head.as_bytes()).unwrap();
    client
}

#[test]
fn an_answer_that_comes_whole_during_an_upload_arrives_whatever_becomes_of_the_connection() {
    const NO_ERROR: u32 = 0;
    let config = "
plugins: [{ access_log: { target: access.log } }]
upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"], protocol: http2, retries: 0 } }
";
    let head = "POST /early HTTP/1.1\r\nhost: g\r\ncontent-length: 1000000\r\n\r\nhalf";
    let answer = |respond: fn(&mut Http2, u32), ends: fn(&mut Http2, u32)| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gateway = Setup::new(config).variable("ORIGIN", listener.local_addr().unwrap()).start();
        let mut client = begin(&gateway, head);
        let mut server = Http2::accept(&listener, &[]);
        let stream = server.request();
        server.read_until(Http2::DATA);
        respond(&mut server, stream);
        ends(&mut server, stream);
        drop(server);
        let answer = client.answer("POST").map(|answer| (answer.status, answer.text()));
        answer.unwrap_or_else(|error| panic!("{error}: {}", gateway.logged_path("/early")))
    };
    let head_alone: fn(&mut Http2, u32) = |server, stream| server.respond(stream, &[], true);
    let of_a_length = |server: &mut Http2, stream| {
        server.respond(stream, &[("content-length", "4")], false);
        server.data(stream, b"full", true);
    };
    let of_no_length = |server: &mut Http2, stream| {
        server.respond(stream, &[], false);
        server.data(stream, b"fu", false);
        server.data(stream, b"ll", true);
    };
    let with_trailers = |server: &mut Http2, stream| {
        server.respond(stream, &[], false);
        server.data(stream, b"full", false);
        server.fields(stream, true, &[(b"x-sum".to_vec(), b"7".to_vec())]);
    };
    for (respond, text) in
        [(head_alone, ""), (of_a_length, "full"), (of_no_length, "full"), (with_trailers, "full")]
    {
        for ends in [
            (|_, _| {}) as fn(&mut Http2, u32),
            |server, stream| server.write_reset(stream, NO_ERROR),
            |server, stream| server.go_away(stream),
        ] {
            assert_eq!(answer(respond, ends), (200, text.to_owned()));
        }
    }
}

#[test]
fn trailers_follow_a_body_that_a_plugin_has_read_whole() {
    let origin = Origin::start();
    let config = "
plugins: [{ access_log: { target: access.log } }, { rhai: { file: whole.rhai } }]
upstreams: { origin: { endpoints: [\"http://${ORIGIN}\"], protocol: \"${PROTOCOL}\" } }
";
    let script = "fn on_request_body(ctx) { ctx.request.body += \"!\"; }\n";
    for protocol in ["http1", "http2"] {
        let setup = Setup::new(config).file("whole.rhai", script);
        let gateway = setup.variable("ORIGIN", origin.address()).variable("PROTOCOL", protocol).start();
        let post = |trailers: &str| {
            let head = "POST /up HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n";
            begin(&gateway, &format!("{head}{trailers}\r\n")).answer("POST").unwrap()
        };
        let seen = post("x-sum: 7\r\n").json();
        assert_eq!((&seen["body"], &seen["trailers"]), (&json!("body!"), &json!({ "x-sum": "7" })));
        let seen = post("").json();
        assert_eq!((&seen["body"], &seen["trailers"]), (&json!("body!"), &Value::Null));
        assert_eq!(post("authorization: x\r\n").status, 400);
        until("the refusal to be logged", || {
            gateway.access_log().iter().any(|line| line["reason"] == "http.trailer_forbidden")
        });
    }
}
