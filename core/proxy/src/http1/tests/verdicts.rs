//! Tables of heads and chunked bodies with their verdicts.

use super::*;

fn limits() -> Limits {
    Limits { max_head_bytes: 400, max_headers: 5, max_request_line: 100 }
}

fn judge_head(head: &[u8], limits: &Limits) -> Result<Option<HeadVerdict>, Refusal> {
    HeadJudge::default().advance(head, limits)
}

/// The reason for refusing `head`, `"ok"`, or `"more"`; the same however it is cut into pieces.
fn verdict(head: &[u8]) -> &'static str {
    let word = |verdict: Result<Option<HeadVerdict>, Refusal>| match verdict {
        Ok(Some(_)) => "ok",
        Ok(None) => "more",
        Err(refusal) => refusal.reason,
    };
    let at_once = word(judge_head(head, &limits()));
    let mut judge = HeadJudge::default();
    let bytewise = (1..=head.len())
        .map(|len| word(judge.advance(&head[..len], &limits())))
        .find(|&word| word != "more")
        .unwrap_or("more");
    assert_eq!(at_once, bytewise, "{}", String::from_utf8_lossy(head));
    at_once
}

fn check(cases: &[(&str, &str)]) {
    for (head, expected) in cases {
        assert_eq!(verdict(head.as_bytes()), *expected, "{head:?}");
    }
}

/// The verdict on fields behind a good request line and Host.
fn fields(fields: &[u8]) -> &'static str {
    verdict(&[b"POST / HTTP/1.1\r\nHost: a\r\n", fields, b"\r\n\r\n"].concat())
}

fn check_fields(cases: &[(&str, &str)]) {
    for (case, expected) in cases {
        assert_eq!(fields(case.as_bytes()), *expected, "{case:?}");
    }
}

#[test]
fn request_lines() {
    let line = |line: &str| verdict(&[line.as_bytes(), b"\r\nHost: a\r\n\r\n"].concat());
    for (case, expected) in [
        ("GET / HTTP/1.1", "ok"),
        ("GET / HTTP/1.0", "ok"),
        ("PURGE!#$ / HTTP/1.1", "ok"),
        ("OPTIONS * HTTP/1.1", "ok"),
        ("GET /%zz?a=b&c=[1]|{}\\^ HTTP/1.1", "ok"),
        ("GET * HTTP/1.1", "http.target"),
        ("GET /", "http.request_line"),
        ("GET", "http.request_line"),
        ("GET  / HTTP/1.1", "http.request_line"),
        ("GET /  HTTP/1.1", "http.request_line"),
        ("GET / HTTP/1.1 ", "http.request_line"),
        ("GET /a b HTTP/1.1", "http.request_line"),
        ("GET\t/ HTTP/1.1", "http.request_line"),
        ("GET /\tHTTP/1.1", "http.request_line"),
        (" GET / HTTP/1.1", "http.method"),
        ("G(T / HTTP/1.1", "http.method"),
        ("G\0T / HTTP/1.1", "http.method"),
        ("GET / http/1.1", "http.request_line"),
        ("GET / HTTP/1.10", "http.request_line"),
        ("GET / HTTP/1", "http.request_line"),
        ("GET / HTTP/+.1", "http.request_line"),
        ("GET / HTTP/1.2", "http.version"),
        ("GET / HTTP/0.9", "http.version"),
        ("PRI * HTTP/2.0", "http.version"),
        ("GET /a#b HTTP/1.1", "http.fragment"),
        ("GET /\u{e9} HTTP/1.1", "http.target_bytes"),
        ("GET /\0 HTTP/1.1", "http.target_bytes"),
        ("GET /\x7f HTTP/1.1", "http.target_bytes"),
        ("GET /<a> HTTP/1.1", "http.target_bytes"),
        ("GET a HTTP/1.1", "http.target"),
        ("GET a:80 HTTP/1.1", "http.target"),
        ("GET ftp://a/ HTTP/1.1", "http.target"),
        ("GET http:/a HTTP/1.1", "http.target"),
        ("GET http:/// HTTP/1.1", "http.target"),
        ("GET http://u@a/ HTTP/1.1", "http.target"),
        ("GET /\r HTTP/1.1", "http.bare_cr"),
        ("GET / HTTP/1.1\r", "http.bare_cr"),
        ("\r\nGET / HTTP/1.1", "ok"),
        ("\r\n\r\nGET / HTTP/1.1", "http.blank_lines"),
        ("\nGET / HTTP/1.1", "http.bare_lf"),
        ("GET / HTTP/1.1\nA: b", "http.bare_lf"),
    ] {
        assert_eq!(line(case), expected, "{case:?}");
    }
}

#[test]
fn a_refusal_does_not_wait_for_the_end() {
    check(&[
        ("", "more"),
        ("\r", "more"),
        ("\r\n", "more"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r", "more"),
        ("\x16\x03\x01\x02", "http.method"),
        ("GET / HTTP/1.1\n", "http.bare_lf"),
        ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n", "http.obs_fold"),
        ("PRI * HTTP/2.0\r\n", "http.version"),
    ]);
}

#[test]
fn lines_and_fields() {
    check_fields(&[
        ("A: b", "ok"),
        ("A:", "ok"),
        ("A:\t b\tc \t", "ok"),
        ("A!#$%&'*+-.^_`|~9: b", "ok"),
        ("A: \u{e9}", "ok"),
        ("A: b\nC: d", "http.bare_lf"),
        ("A: b\n", "http.bare_lf"),
        ("A: b\rC: d", "http.bare_cr"),
        ("A\r: b", "http.bare_cr"),
        ("A: b\r\r\nC: d", "http.bare_cr"),
        ("A: b\r\n c", "http.obs_fold"),
        ("A: b\r\n\tc", "http.obs_fold"),
        (" A: b", "http.obs_fold"),
        ("A : b", "http.header_colon"),
        ("A\t: b", "http.header_colon"),
        ("A b: c", "http.header_colon"),
        (": b", "http.header_name"),
        ("A", "http.header_name"),
        ("A(: b", "http.header_name"),
        ("\u{e9}: b", "http.header_name"),
        ("A\0: b", "http.header_name"),
        ("A: \0", "http.header_value"),
        ("A: b\x0bc", "http.header_value"),
        ("A: \x7f", "http.header_value"),
        ("A: \x1b[0m", "http.header_value"),
    ]);
    assert_eq!(fields(b"A: \x80\xff"), "ok");
}

#[test]
fn hosts() {
    check(&[
        ("GET / HTTP/1.1\r\n\r\n", "http.host_missing"),
        ("GET / HTTP/1.0\r\n\r\n", "ok"),
        ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", "http.host_repeated"),
        ("GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n", "http.host_repeated"),
        ("GET http://a.b/ HTTP/1.1\r\n\r\n", "http.host_missing"),
        ("GET http://a.b/ HTTP/1.1\r\nHost:  A.B \r\n\r\n", "ok"),
        ("GET http://A.b:80/ HTTP/1.1\r\nHost:a.B\r\n\r\n", "ok"),
        ("GET HTTPS://a.b HTTP/1.1\r\nHost: a.b:443\r\n\r\n", "ok"),
        ("GET http://a.b?c HTTP/1.1\r\nHost: a.b\r\n\r\n", "ok"),
        ("GET https://a.b/ HTTP/1.1\r\nHost: a.b:80\r\n\r\n", "http.host_mismatch"),
        ("GET http://a.b/ HTTP/1.1\r\nHost: a.c\r\n\r\n", "http.host_mismatch"),
        ("GET http://a.b/ HTTP/1.0\r\nHost: a.c\r\n\r\n", "http.host_mismatch"),
        ("\r\nGET http://a.b/ HTTP/1.1\r\nX: y\r\nHost: a.b\r\n\r\n", "ok"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", "ok"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", "ok"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:444\r\n\r\n", "http.host_mismatch"),
        ("CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", "http.target"),
        ("CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", "http.target"),
    ]);
    for host in
        ["a.example", "a.example.", "a.example:8080", "127.0.0.1", "[::1]", "[::1]:80", "a_b-c~.", "a:65535"]
    {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(verdict(head.as_bytes()), "ok", "{host}");
    }
    for host in [
        "",
        "a b",
        "a,b",
        "a/b",
        "u@a",
        "a:",
        "a:x",
        "a:65536",
        "a:000080",
        "a:80:80",
        ":80",
        "[::1",
        "[]",
        "[::1]x",
        "[1.2.3.4]",
        "[fe80::1%25eth0]",
        "a%2eb",
        "\u{e9}",
        "a?",
        "::1",
        ".",
        ".a",
        "a..b",
        "a..",
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(verdict(head.as_bytes()), "http.host_invalid", "{host}");
    }
}

#[test]
fn framing() {
    check_fields(&[
        ("Content-Length: 0", "ok"),
        ("Content-Length: 005", "ok"),
        ("Content-Length: 9223372036854775807", "ok"),
        ("Content-Length: 9223372036854775808", "http.length_invalid"),
        ("Content-Length: 99999999999999999999999", "http.length_invalid"),
        ("Content-Length:", "http.length_invalid"),
        ("Content-Length: +5", "http.length_invalid"),
        ("Content-Length: -5", "http.length_invalid"),
        ("Content-Length: 0x5", "http.length_invalid"),
        ("Content-Length: 5 5", "http.length_invalid"),
        ("Content-Length: 5\r\nContent-Length: 5", "http.length_repeated"),
        ("Content-Length: 5\r\nCONTENT-LENGTH: 6", "http.length_repeated"),
        ("Content-Length: 5, 5", "http.length_repeated"),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", "http.length_and_encoding"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", "http.length_and_encoding"),
        ("Transfer-Encoding: gzip\r\nContent-Length: 5", "http.encoding_unknown"),
        ("Transfer-Encoding: chunked", "ok"),
        ("transfer-encoding:CHUNKED\t", "ok"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "http.encoding_invalid"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip", "http.encoding_invalid"),
        ("Transfer-Encoding: chunked, chunked", "http.encoding_invalid"),
        ("Transfer-Encoding: chunked, gzip", "http.encoding_invalid"),
        ("Transfer-Encoding: chunked,", "http.encoding_invalid"),
        ("Transfer-Encoding: ,chunked", "http.encoding_invalid"),
        ("Transfer-Encoding: chunked;a=b", "http.encoding_invalid"),
        ("Transfer-Encoding: \"chunked\"", "http.encoding_invalid"),
        ("Transfer-Encoding:", "http.encoding_invalid"),
        ("Transfer-Encoding: \x0bchunked", "http.header_value"),
        ("Transfer-Encoding: gzip, chunked", "http.encoding_unknown"),
        ("Transfer-Encoding: identity", "http.encoding_unknown"),
        ("Transfer-Encoding: xchunked", "http.encoding_unknown"),
        ("Transfer_Encoding: chunked", "http.framing_name"),
        ("CONTENT_LENGTH: 5", "http.framing_name"),
        ("Content_Lengths: 5", "ok"),
        ("Expect: 100-Continue", "ok"),
        ("Expect: 200-ok", "http.expectation"),
        ("Expect: 100-continue, x", "http.expectation"),
    ]);
    check(&[
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "http.encoding_version"),
        ("POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\n", "ok"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 0\r\n\r\n", "ok"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 1\r\n\r\n", "http.connect_body"),
    ]);
}

#[test]
fn accepted_heads_are_described() {
    let described = |head: &str| judge_head(head.as_bytes(), &limits()).unwrap().unwrap();
    let head = "\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n";
    assert_eq!(
        described(&format!("{head}1234567GET")),
        HeadVerdict { len: head.len(), framing: Framing::Length(7) }
    );
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(described(chunked), HeadVerdict { len: chunked.len(), framing: Framing::Chunked });
    let old = "GET / HTTP/1.0\r\nUpgrade: x\r\n\r\n";
    assert_eq!(described(old), HeadVerdict { len: old.len(), framing: Framing::Empty });
}

#[test]
fn sizes_are_bounded_to_the_byte() {
    let line = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(len - 14));
    assert_eq!(verdict(line(100).as_bytes()), "ok");
    assert_eq!(verdict(line(101).as_bytes()), "http.request_line_too_long");
    assert_eq!(verdict(format!("GET /{}", "a".repeat(100)).as_bytes()), "http.request_line_too_long");

    let head = |len: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(len - 32));
    assert_eq!(head(400).len(), 400);
    assert_eq!(verdict(head(400).as_bytes()), "ok");
    assert_eq!(verdict(head(401).as_bytes()), "http.head_too_large");
    assert_eq!(
        verdict(format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(400)).as_bytes()),
        "http.head_too_large"
    );

    assert_eq!(fields(b"A: 1\r\nB: 2\r\nC: 3\r\nD: 4"), "ok");
    assert_eq!(fields(b"A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\nE: 5"), "http.too_many_headers");
}

#[test]
fn what_the_types_of_a_head_could_not_hold_is_refused_whatever_the_limits() {
    let limits = Limits { max_head_bytes: 1 << 20, max_request_line: 1 << 20, ..Limits::default() };
    let verdict = |head: String| judge_head(head.as_bytes(), &limits).map(|verdict| verdict.is_some());
    let target = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(len - 1));
    assert_eq!(verdict(target(65_534)), Ok(true));
    assert_eq!(verdict(target(65_535)), Err(refusal::REQUEST_LINE_TOO_LONG));
    let name = |len: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}: b\r\n\r\n", "a".repeat(len));
    assert_eq!(verdict(name(1024)), Ok(true));
    assert_eq!(verdict(name(1025)), Err(refusal::HEADER_NAME_TOO_LONG));
}

#[test]
fn statuses_follow_the_rfc() {
    let status = |head: &str| judge_head(head.as_bytes(), &limits()).unwrap_err().status;
    assert_eq!(status("GET / HTTP/3.0\r\n"), 505);
    assert_eq!(status(&"A".repeat(200)), 414);
    assert_eq!(status("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n"), 501);
    assert_eq!(status("POST / HTTP/1.1\r\nExpect: x\r\n"), 417);
    assert_eq!(status(&format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(400))), 431);
}

/// How reading `body` ended, and how many bytes of data there were before; the same at once and bytewise.
fn chunked(body: &[u8]) -> (&'static str, usize) {
    let (mut at_once, mut bytewise) = (Chunked::new(), Chunked::new());
    let read = advance(&mut at_once, body);
    let mut seen = ("more", 0);
    for byte in body {
        let (word, data) = advance(&mut bytewise, &[*byte]);
        seen = (word, seen.1 + data);
        if word != "more" {
            break;
        }
    }
    assert_eq!(read, seen, "{}", String::from_utf8_lossy(body));
    read
}

fn advance(chunked: &mut Chunked, bytes: &[u8]) -> (&'static str, usize) {
    let mut inbox = BytesMut::from(bytes);
    let mut data = 0;
    loop {
        match chunked.advance(&mut inbox, &limits()) {
            Ok(Progress::Data(more)) => data += more.len(),
            Ok(Progress::More) => return ("more", data),
            Ok(Progress::End(_)) => return ("end", data),
            Err(refusal) => return (refusal.reason, data),
        }
    }
}

#[test]
fn chunked_bodies() {
    let extension = |len: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(len));
    let extensions = |chunks: usize| format!("1;{}\r\na\r\n", "x".repeat(256)).repeat(chunks) + "0\r\n\r\n";
    let trailers = |fields: usize| format!("0\r\n{}\r\n", "A: b\r\n".repeat(fields));
    let long_trailer = |len: usize| format!("0\r\nA:{}\r\n\r\n", "x".repeat(len - 6));
    for (body, expected) in [
        ("0\r\n\r\n", "end"),
        ("000\r\n\r\n", "end"),
        ("5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n", "end"),
        ("5\r\nhel", "more"),
        ("5;a=\"b c\"\r\nhello\r\n0;x\r\nDigest: y\r\n\r\n", "end"),
        ("FFFFFFFFFFFFFFFF\r\nx", "more"),
        ("00000000000000001\r\nx", "http.chunk_size"),
        ("10000000000000000\r\n", "http.chunk_size"),
        ("\r\n", "http.chunk_size"),
        (";a\r\n", "http.chunk_size"),
        ("g\r\n", "http.chunk_size"),
        ("0x5\r\nhello", "http.chunk_size"),
        ("+5\r\nhello", "http.chunk_size"),
        (" 5\r\nhello", "http.chunk_size"),
        ("5 \r\nhello", "http.chunk_size"),
        ("5\t;a\r\nhello", "http.chunk_size"),
        ("5\nhello", "http.bare_lf"),
        ("\nhello", "http.chunk_size"),
        ("5\rhello", "http.bare_cr"),
        ("5;a\nhello", "http.bare_lf"),
        ("5;a\rb\r\nhello", "http.bare_cr"),
        ("5;\0\r\nhello", "http.chunk_extension"),
        ("5;\u{e9}\r\nhello", "http.chunk_extension"),
        (&extension(256), "end"),
        (&extension(257), "http.chunk_extension"),
        (&extensions(32), "end"),
        (&extensions(33), "http.chunk_extension"),
        ("5\r\nhello\n", "http.chunk_end"),
        ("5\r\nhello0\r\n", "http.chunk_end"),
        ("5\r\nhello\r0", "http.chunk_end"),
        ("0\r\nA: b\n\r\n", "http.bare_lf"),
        ("0\r\n\n", "http.bare_lf"),
        ("0\r\nA: b\rc\r\n\r\n", "http.bare_cr"),
        ("0\r\n\rA: b\r\n\r\n", "http.bare_cr"),
        ("0\r\n A: b\r\n\r\n", "http.obs_fold"),
        ("0\r\nA : b\r\n\r\n", "http.header_colon"),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", "http.header_colon"),
        ("0\r\nContent-Length: 5\r\n\r\n", "http.trailer_forbidden"),
        ("0\r\ntransfer-ENCODING: chunked\r\n\r\n", "http.trailer_forbidden"),
        ("0\r\nHost: a\r\n\r\n", "http.trailer_forbidden"),
        ("0\r\nX_Forwarded_For: a\r\n\r\n", "http.trailer_forbidden"),
        ("0\r\nX-Real-IP: a\r\n\r\n", "http.trailer_forbidden"),
        ("0\r\nContent_Length: 5\r\n\r\n", "http.trailer_forbidden"),
        (&trailers(5), "end"),
        (&trailers(6), "http.trailer_too_large"),
        (&long_trailer(8 * 1024), "end"),
        (&long_trailer(8 * 1024 + 1), "http.trailer_too_large"),
    ] {
        assert_eq!(chunked(body.as_bytes()).0, expected, "{body:?}");
    }
}

#[test]
fn the_data_before_a_bad_chunk_line_is_good() {
    assert_eq!(chunked(b"5\r\nhello\r\n5 \r\n"), ("http.chunk_size", 5));
    assert_eq!(chunked(b"3\r\nabc\r\n0\r\nHost: a\r\n\r\n"), ("http.trailer_forbidden", 3));
    assert_eq!(chunked(b"0\r\n\r\nGET"), ("end", 0));
}

#[test]
fn sizes_of_chunks_are_hexadecimal_numbers() {
    for size in [1, 15, 16, 255, 256, 4096, 70_000] {
        for digits in [format!("{size:x}"), format!("{size:X}"), format!("{size:016x}")] {
            let chunk = [digits.as_bytes(), b"\r\n", &vec![b'd'; size], b"\r\nrest"].concat();
            let read = Chunked::new().advance(&mut BytesMut::from(&chunk[..]), &limits()).unwrap();
            assert!(matches!(read, Progress::Data(data) if data.len() == size), "{digits}");
        }
    }
}

#[test]
fn wishes_are_those_of_their_own_fields() {
    let wishes = |fields: &str| {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        let mut judge = HeadJudge::default();
        assert!(judge.advance(head.as_bytes(), &limits()).unwrap().is_some());
        judge.wishes()
    };
    let none = Wishes::default();
    // Fields whose names are as long.
    assert_eq!(
        wishes("Date: a b\r\nDN: trailers\r\nAccept: x\r\nUser-Agent: close, upgrade, keep-alive"),
        none
    );
    assert_eq!(wishes("If-Modified-By: 5, 5\r\nIf-Modified-Since: x"), none);
    assert_eq!(wishes("Connection: x, Close\r\nConnection: y"), Wishes { close: true, ..none });
    assert_eq!(wishes("Connection: keep-alive\r\nConnection: y"), Wishes { keep_alive: true, ..none });
    assert_eq!(wishes("Connection: Upgrade\r\nConnection: y"), Wishes { upgrade: true, ..none });
    assert_eq!(wishes("Connection: upgradf, clos, keep_alive"), none);
    assert_eq!(wishes("TE: gzip, Trailers\r\nTE: x"), Wishes { trailers: true, ..none });
    assert_eq!(wishes("Expect: 100-Continue"), Wishes { go_ahead: true, ..none });
}
