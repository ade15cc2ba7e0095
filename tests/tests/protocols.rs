//! TLS and HTTP/2, with the clients that people use: curl, nghttp, openssl.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use portcullis_tests::tools::{Authority, attempt, has, tool};
use portcullis_tests::{Gateway, Http2, Origin, Setup, request};
use serde_json::Value;

/// What curl prints after an answer's body.
const SUMMARY: &str = "\\n%{http_version} %{http_code} %{ssl_verify_result}";

/// A gateway with TLS for two names, certificates made for it, and an origin.
struct Secured {
    gateway: Gateway,
    authority: Authority,
    _origin: Origin,
}

impl Secured {
    /// `tls` is what follows the certificates in the listener's TLS table.
    fn start(tls: &str) -> Self {
        let config = format!(
            "
listeners:
  - name: main
    bind: 127.0.0.1:0
    tls: {{ certificates: [{{ cert: tls/one.test.pem, key: tls/one.test.key }}, {{ cert: tls/two.test.pem, key: tls/two.test.key }}], {tls} }}
"
        );
        let origin = Origin::start();
        let setup = Setup::new(&config).before(&origin);
        let authority = Authority::new(&setup.dir().join("tls"));
        ["one.test", "two.test", "client"].iter().for_each(|name| authority.issue(name));
        Secured { gateway: setup.start(), authority, _origin: origin }
    }

    fn url(&self, host: &str) -> (String, String) {
        let port = self.gateway.address().port();
        (format!("https://{host}:{port}/x"), format!("{host}:{port}:127.0.0.1"))
    }

    /// Asks with curl; the last line is what [`SUMMARY`] says.
    fn curl(&self, host: &str, options: &[&str]) -> portcullis_tests::Output {
        let ((url, resolve), ca) = (self.url(host), self.authority.ca());
        let base = ["-sS", "--cacert", &ca, "--resolve", &resolve, "-w", SUMMARY, &url];
        attempt("curl", &[options, &base].concat())
    }

    /// What `openssl s_client` says of the handshake.
    fn handshake(&self, options: &[&str]) -> portcullis_tests::Output {
        let address = self.gateway.address().to_string();
        attempt("openssl", &[["s_client", "-connect", &address].as_slice(), options].concat())
    }
}

#[test]
fn the_certificate_is_chosen_by_name_and_curl_trusts_it() {
    if !has(&["curl", "openssl"]) {
        return;
    }
    let secured = Secured::start("");
    for host in ["one.test", "two.test"] {
        let answer = secured.curl(host, &[]);
        assert!(answer.out.ends_with("\n2 200 0"), "{answer:?}");
        let seen: Value = serde_json::from_str(answer.out.lines().next().unwrap()).unwrap();
        assert_eq!(seen["headers"]["x-forwarded-proto"], "https");
    }
    let unknown = secured.handshake(&["-servername", "unknown.test"]);
    assert!(unknown.out.contains("CN = one.test"), "the first is the default: {}", unknown.out);
}

#[test]
fn the_protocol_is_negotiated() {
    if !has(&["curl", "openssl"]) {
        return;
    }
    let secured = Secured::start("");
    assert!(secured.curl("one.test", &["--http1.1"]).out.ends_with("\n1.1 200 0"));
    assert!(secured.curl("one.test", &["--http2"]).out.ends_with("\n2 200 0"));
    let only_old = Secured::start("alpn: [http/1.1]");
    assert!(only_old.curl("one.test", &["--http2"]).out.ends_with("\n1.1 200 0"));
}

#[test]
fn the_lowest_version_of_tls_is_what_the_configuration_says() {
    if !has(&["curl", "openssl"]) {
        return;
    }
    let usual = Secured::start("");
    assert!(usual.curl("one.test", &["--tlsv1.2", "--tls-max", "1.2"]).status.success());
    assert!(!usual.curl("one.test", &["--tlsv1.0", "--tls-max", "1.1"]).status.success());
    let strict = Secured::start("min_version: \"1.3\"");
    assert!(!strict.curl("one.test", &["--tlsv1.2", "--tls-max", "1.2"]).status.success());
    assert!(strict.curl("one.test", &[]).status.success());
    assert!(strict.gateway.metric("portcullis_tls_handshake_failures_total", &[]) >= 1.0);
}

#[test]
fn client_certificates_are_asked_for_as_configured() {
    if !has(&["curl", "openssl"]) {
        return;
    }
    let required = Secured::start("client_auth: { mode: required, ca: tls/ca.pem }");
    let (cert, key) = (required.authority.file("client.pem"), required.authority.file("client.key"));
    assert!(!required.curl("one.test", &[]).status.success());
    assert!(required.curl("one.test", &["--cert", &cert, "--key", &key]).out.ends_with(" 200 0"));

    let optional = Secured::start("client_auth: { mode: optional, ca: tls/ca.pem }");
    assert!(optional.curl("one.test", &[]).out.ends_with(" 200 0"));
    // A certificate of another authority's is refused even where none is needed.
    assert!(!optional.curl("one.test", &["--cert", &cert, "--key", &key]).status.success());
}

#[test]
fn plain_text_is_redirected_to_https() {
    let config = "
listeners: [{ name: main, bind: 127.0.0.1:0, redirect_https: { port: 8443 } }]
routes: [{ respond: { status: 204 } }]
";
    let gateway = Setup::new(config).start();
    let answer = gateway.ask(&request("GET", "/a?b=c").header("host", "shop.test:8080"));
    assert_eq!((answer.status, answer.header("location")), (308, Some("https://shop.test:8443/a?b=c")));
}

#[test]
fn http2_without_tls_is_taken_by_curl_and_nghttp() {
    if !has(&["curl", "nghttp"]) {
        return;
    }
    let origin = Origin::start();
    let gateway = Setup::new("").before(&origin).start();
    let url = format!("http://{}/two?a=b", gateway.address());
    let seen = tool("curl", &["-sS", "--http2-prior-knowledge", "-d", "hello", &url]);
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(
        (&seen["path"], &seen["body"], &seen["version"]),
        (&"/two".into(), &"hello".into(), &"HTTP/1.1".into())
    );
    assert_eq!(seen["headers"]["host"], gateway.address().to_string());
    let told = tool("nghttp", &["-v", &url]);
    assert!(told.contains(":status: 200") && told.contains("\"path\":\"/two\""), "{told}");
    let trailers =
        tool("nghttp", &["-v", "-H", "te: trailers", &format!("http://{}/trailers", gateway.address())]);
    assert!(trailers.contains("x-checksum: abc"), "{trailers}");
}

#[test]
fn many_streams_at_once_over_tls_are_served() {
    if !has(&["h2load", "openssl"]) {
        return;
    }
    let secured = Secured::start("");
    let url = format!("https://{}/load", secured.gateway.address());
    let report = tool("h2load", &["-n", "500", "-c", "4", "-m", "20", &url]);
    assert!(report.contains("500 succeeded, 0 failed, 0 errored"), "{report}");
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    let origin = Origin::start();
    let config = "listeners: [{ name: main, bind: 127.0.0.1:0, http2: { max_streams: 2 } }]\n";
    let gateway = Setup::new(config).before(&origin).start();
    let mut client = Http2::open(gateway.address());
    for stream in [1, 3, 5] {
        client.get(stream, "/hold", &[]);
    }
    assert_eq!(client.reset(), (5, Http2::REFUSED_STREAM));
    origin.release();
}
