//! Callers known by tokens, whose issuer changes its keys while the gateway serves.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use portcullis_tests::tools::{Authority, has, tool};
use portcullis_tests::{Answer, Gateway, Oidc, Origin, Peer, Setup, repository, request, run_in, until};
use tempfile::TempDir;

const WHO: &str = r#"
fn on_request(ctx) {
    let who = ctx.principal;
    if who == () { return; }
    ctx.facts.who = `${who.id} ${who.issuer} ${who.scopes} ${who.claims.aud}`;
    if ctx.request.method != "GET" && !("write" in who.scopes) { return deny(403, "orders.read_only"); }
}
"#;

/// A gateway that takes the provider's tokens; `more` stands beside its keys' upstream.
fn start(provider: &Oidc, origin: &Origin, more: &str) -> Gateway {
    let config = format!(
        "
upstreams:
  origin: {{ endpoints: [\"http://${{ORIGIN}}\"] }}
  login: {{ endpoints: [\"{issuer}\"] }}
plugins:
  - access_log: {{ target: access.log, facts: [who] }}
  - jwt:
      issuers:
        - issuer: {issuer}
          audience: [orders]
          algorithms: [RS256]
          typ: [at+jwt]
          keys: [{{ discovery: {{ upstream: login{more} }} }}]
  - rhai: {{ file: who.rhai }}
routes: [{{ name: all, upstream: origin }}]
",
        issuer = provider.issuer()
    );
    Setup::new(&config).file("who.rhai", WHO).before(origin).start()
}

fn with(gateway: &Gateway, method: &str, target: &str, token: &str) -> Answer {
    gateway.ask(&request(method, target).header("authorization", &format!("Bearer {token}")))
}

#[test]
fn a_providers_tokens_say_who_calls_to_policies_and_logs_and_to_nobody_behind() {
    let Some(provider) = Oidc::start() else { return };
    let origin = Origin::start();
    let gateway = start(&provider, &origin, "");
    let token = provider.token("read");
    let answer = with(&gateway, "GET", "/orders", &token);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().contains(&token), "{}", answer.text());
    let line = gateway.logged_path("/orders");
    assert_eq!(line["facts"]["who"], format!("shop {} [\"read\"] orders", provider.issuer()));
    assert_eq!(with(&gateway, "POST", "/read", &token).status, 403);
    assert_eq!(with(&gateway, "POST", "/write", &provider.token("write")).status, 200);
    assert!(gateway.access_log().iter().all(|line| !line.to_string().contains(&token)));
    assert!(!gateway.log().contains(&token));
    assert_eq!(provider.fetches(), 1);
    assert_eq!(gateway.metric("portcullis_plugin_jwt_fetches_total", &["outcome=\"ok\""]), 1.0);
    assert!(gateway.metric("portcullis_plugin_jwt_keys_fetched", &[]) > 1.7e9);
}

#[test]
fn what_is_no_token_of_the_providers_is_refused_and_told_nothing_more() {
    let Some(provider) = Oidc::start() else { return };
    let origin = Origin::start();
    let gateway = start(&provider, &origin, "");
    let token = provider.token("read");
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (_, payload) = message.split_once('.').unwrap();
    // {"alg":"none"} and {"alg":"HS256"}
    let none = format!("eyJhbGciOiJub25lIn0.{payload}.");
    let shared = format!("eyJhbGciOiJIUzI1NiJ9.{payload}.{signature}");
    let first = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{message}.{first}{}", &signature[1..]);
    for (path, token, reason) in [
        ("/malformed", "x", "malformed"),
        ("/none", &*none, "algorithm"),
        ("/shared", &*shared, "algorithm"),
        ("/forged", &*forged, "signature"),
    ] {
        let answer = with(&gateway, "GET", path, token);
        assert_eq!(
            (answer.status, answer.header("www-authenticate")),
            (401, Some("Bearer error=\"invalid_token\""))
        );
        let line = gateway.logged_path(path);
        assert_eq!(line["reason"], format!("jwt.{reason}"));
        assert!(!answer.text().contains(reason), "{}", answer.text());
    }
    let answer = gateway.get("/missing");
    assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(origin.served(), 0);
}

#[test]
fn a_provider_changes_its_keys_and_no_token_of_its_is_refused() {
    let Some(provider) = Oidc::start() else { return };
    let origin = Origin::start();
    let gateway = start(&provider, &origin, ", window: 50ms");
    let first = provider.token("read");
    assert_eq!(with(&gateway, "GET", "/", &first).status, 200);
    for round in 1..=5 {
        provider.rotate(false);
        let token = provider.token("read");
        assert_eq!(with(&gateway, "GET", "/new", &token).status, 200, "round {round}");
        assert_eq!(with(&gateway, "GET", "/first", &first).status, 200, "round {round}");
    }
    assert_eq!(provider.fetches(), 6);
    // A key that is gone is gone for what was verified with it, too.
    provider.rotate(true);
    assert_eq!(with(&gateway, "GET", "/last", &provider.token("read")).status, 200);
    assert_eq!(with(&gateway, "GET", "/gone", &first).status, 401);
    assert_eq!(gateway.logged_path("/gone")["reason"], "jwt.unknown_key");
}

#[test]
fn many_clients_at_once_wait_for_one_fetch_and_a_reload_for_none() {
    let Some(provider) = Oidc::start() else { return };
    let origin = Origin::start();
    let gateway = start(&provider, &origin, ", window: 1m, refresh: 1h");
    let token = provider.token("read");
    std::thread::scope(|scope| {
        let ask = || with(&gateway, "GET", "/", &token).status;
        let clients: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
        assert!(clients.into_iter().all(|client| client.join().unwrap() == 200));
    });
    assert_eq!(provider.fetches(), 1);
    let generation = gateway.generation();
    gateway.replace("gateway.yaml", "audience: [orders]", "audience: [orders, shop]");
    gateway.wait_generation(generation + 1);
    assert_eq!(with(&gateway, "GET", "/", &token).status, 200);
    // Invented keys: each might be a new one, and none is asked about before the window has passed.
    let (_, rest) = token.split_once('.').unwrap();
    for header in [
        "eyJhbGciOiJSUzI1NiIsInR5cCI6ImF0K2p3dCIsImtpZCI6ImEifQ",
        "eyJhbGciOiJSUzI1NiIsInR5cCI6ImF0K2p3dCIsImtpZCI6ImIifQ",
    ] {
        let answer = with(&gateway, "GET", "/invented", &format!("{header}.{rest}"));
        assert!(answer.status == 503 && answer.header("retry-after").is_some(), "{}", answer.status);
    }
    assert_eq!(provider.fetches(), 1);
}

#[test]
fn keys_in_a_file_are_replaced_while_the_gateway_serves() {
    let Some(provider) = Oidc::start() else { return };
    let origin = Origin::start();
    let keys = || {
        portcullis_tests::Http::connect(provider.address())
            .unwrap()
            .ask(&request("GET", "/jwks"))
            .unwrap()
            .text()
    };
    let config = format!(
        "plugins: [{{ jwt: {{ issuers: [{{ issuer: \"{}\", audience: [orders], algorithms: [RS256], keys: [{{ file: keys.json }}] }}] }} }}]\n",
        provider.issuer()
    );
    let gateway = Setup::new(&config).file("keys.json", keys()).before(&origin).start();
    let old = provider.token("read");
    provider.rotate(true);
    let new = provider.token("read");
    let status = |token: &str| with(&gateway, "GET", "/", token).status;
    assert_eq!((status(&old), status(&new)), (200, 401));
    gateway.edit("keys.json", keys());
    until("the new keys to hold", || status(&new) == 200);
    assert_eq!(status(&old), 401);
    gateway.edit("keys.json", "{");
    assert!(gateway.wait_refused().contains("keys.json"));
    assert_eq!(status(&new), 200);
}

#[test]
fn why_tells_check_by_check_and_shows_no_signature() {
    let Some(provider) = Oidc::start() else { return };
    let dir = TempDir::new().unwrap();
    let token = provider.token("read");
    let keys =
        portcullis_tests::Http::connect(provider.address()).unwrap().ask(&request("GET", "/jwks")).unwrap();
    fs::write(dir.path().join("keys.json"), keys.text()).unwrap();
    let config = format!(
        "listeners: [{{ bind: 127.0.0.1:0 }}]
upstreams: {{ login: {{ endpoints: [\"http://127.0.0.1:9\"] }} }}
routes: [{{ respond: {{}} }}]
plugins:
  - jwt: {{ issuers: [{{ issuer: \"{0}\", audience: [orders], algorithms: [RS256], keys: [{{ url: {{ upstream: login }} }}] }}] }}
  - name: strict
    jwt: {{ issuers: [{{ issuer: \"{0}\", audience: [shop], algorithms: [ES256], require: {{ azp: web }}, keys: [{{ url: {{ upstream: login }} }}] }}] }}
",
        provider.issuer()
    );
    fs::write(dir.path().join("gateway.yaml"), config).unwrap();
    let why = |options: &[&str]| {
        let ended = run_in(dir.path(), &[&["jwt", "why", &token], options].concat());
        let signature = token.rsplit_once('.').unwrap().1;
        assert!(
            !ended.out.contains(signature) && !ended.err.contains(signature),
            "{}{}",
            ended.out,
            ended.err
        );
        ended
    };
    let alone = why(&[]);
    assert!(
        alone.status.success()
            && alone.out.contains("\"sub\":\"shop\"")
            && alone.out.contains("open    signature"),
        "{}",
        alone.out
    );
    let asked = why(&["--config", "gateway.yaml", "--keys", "keys.json"]);
    assert!(asked.status.success(), "{}{}", asked.out, asked.err);
    let (first, second) = asked.out.split_once("strict:\n").unwrap();
    assert!(first.contains("  ok      signature\n") && !first.contains("failed"), "{first}");
    for failed in [
        "failed  alg: ",
        "(jwt.algorithm)",
        "failed  aud: ",
        "(jwt.audience)",
        "failed  required claims: there is no `azp`",
    ] {
        assert!(second.contains(failed), "{failed}: {second}");
    }
    let malformed = run_in(dir.path(), &["jwt", "why", "a.b"]);
    assert!(malformed.status.code() == Some(1) && malformed.out.contains("this has 2"), "{}", malformed.out);
    assert!(run_in(dir.path(), &["jwt", "why", "a.b", "--keys", "gateway.yaml"]).err.contains("--keys"));
}

#[test]
fn a_bound_token_is_taken_from_who_has_the_certificate() {
    if !has(&["openssl", "curl"]) {
        return;
    }
    let origin = Origin::start();
    let setup = Setup::new(
        "
listeners:
  - bind: 127.0.0.1:0
    tls:
      certificates: [{ cert: tls/gateway.pem, key: tls/gateway.key }]
      client_auth: { ca: tls/ca.pem, mode: optional }
plugins:
  - access_log: { target: access.log }
  - jwt: { issuers: [{ issuer: me, audience: [], algorithms: [HS256], keys: [{ secret: env:SECRET }] }] }
",
    );
    let authority = Authority::new(&setup.dir().join("tls"));
    for name in ["gateway", "ann", "bob"] {
        authority.issue(name);
    }
    let secret = "a secret of more than thirty-two bytes";
    let tls = setup.dir().join("tls");
    let shell = |script: &str| {
        let script = format!(
            "set -eu; b64() {{ openssl base64 -A | tr '+/' '-_' | tr -d =; }}; cd '{}'; {script}",
            tls.display()
        );
        tool("sh", &["-c", &script])
    };
    let token = shell(&format!(
        r#"hash=$(openssl x509 -in ann.pem -outform der | openssl dgst -sha256 -binary | b64)
head=$(printf '{{"alg":"HS256"}}' | b64)
body=$(printf '{{"iss":"me","sub":"ann","exp":4102444800,"cnf":{{"x5t#S256":"%s"}}}}' "$hash" | b64)
printf '%s.%s.%s' "$head" "$body" "$(printf '%s' "$head.$body" | openssl dgst -sha256 -hmac '{secret}' -binary | b64)""#
    ));
    let gateway = setup.variable("SECRET", secret).before(&origin).start();
    let status = |certificate: &str| {
        let certificate = match certificate {
            "" => String::new(),
            name => format!("--cert {name}.pem --key {name}.key"),
        };
        shell(&format!(
            "curl -s -o /dev/null -w '%{{http_code}}' --cacert ca.pem --resolve gateway:{port}:127.0.0.1 {certificate} -H 'authorization: Bearer {token}' https://gateway:{port}/",
            port = gateway.address().port()
        ))
    };
    assert_eq!((&*status("ann"), &*status("bob"), &*status("")), ("200", "401", "401"));
    let refused = || gateway.access_log().iter().filter(|line| line["reason"] == "jwt.binding").count();
    until("both refusals to be logged", || refused() == 2);
}

#[test]
fn an_issuers_answer_is_waited_for_and_read_up_to_a_bound() {
    let (origin, issuer) = (Origin::start(), Peer::default());
    let config = format!(
        "
upstreams:
  origin: {{ endpoints: [\"http://${{ORIGIN}}\"] }}
  login: {{ endpoints: [\"http://{}\"], retries: 0 }}
plugins:
  - access_log: {{ target: access.log }}
  - jwt:
      issuers:
        - issuer: me
          audience: []
          algorithms: [EdDSA]
          keys: [{{ url: {{ upstream: login, window: 1ms, timeout: 500ms }} }}]
routes: [{{ upstream: origin }}]
",
        issuer.address()
    );
    let gateway = Setup::new(&config).before(&origin).start();
    // {"alg":"EdDSA","kid":"a"} and {"iss":"me"}; each time with another key.
    let token = |kid: &str| format!("eyJhbGciOiJFZERTQSIsImtpZCI6{kid}.eyJpc3MiOiJtZSJ9.AAAA");
    let keys = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"b","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
    let answered = |kid: &str, length: usize| {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| with(&gateway, "GET", "/", &token(kid)).status);
            let (raw, _) = issuer.accept();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            // It may be gone before it has all of it.
            let _ =
                raw.stream().write_all(format!("{head}{keys}{}", " ".repeat(length - keys.len())).as_bytes());
            let status = asked.join().unwrap();
            drop(raw.stream().shutdown(std::net::Shutdown::Both));
            status
        })
    };
    assert_eq!((answered("ImEifQ", 256 << 10), answered("ImMifQ", (256 << 10) + 1)), (401, 503));
    // Now it says nothing.
    let began = Instant::now();
    assert_eq!(with(&gateway, "GET", "/", &token("ImQifQ")).status, 503);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(20), "{took:?}");
}

/// The example in `config` is what this page's reader starts from.
#[test]
fn the_example_loads() {
    let ended = run_in(&repository().join("config"), &["check", "jwt.yaml"]);
    assert!(ended.status.success(), "{}", ended.err);
}
