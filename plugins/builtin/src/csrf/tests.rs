use portcullis_plugin::{Decision, ExchangeBuilder, PluginTester, Principal, TestedPlugin, TlsSession};
use serde_json::{Value, json};

use super::*;

const KEY: &str = "sixteen bytes and sixteen more 1";

fn build(table: Value) -> TestedPlugin {
    PluginTester::new().secret("KEY", KEY).build::<Csrf>(table).unwrap()
}

/// Why a request is refused, if it is.
fn refused(plugin: &TestedPlugin, request: ExchangeBuilder) -> Option<String> {
    match plugin.on_request(&mut request.build()).unwrap() {
        Decision::Continue => None,
        Decision::Respond(reply) => {
            assert_eq!(reply.status, 403);
            reply.reason.map(|reason| reason.into_owned())
        }
        other => panic!("{other:?}"),
    }
}

/// A request to `api.example.com` with these headers.
fn asks(method: Method, headers: &[(&str, &str)]) -> ExchangeBuilder {
    let request = ExchangeBuilder::request(method, "/a").header("host", "api.example.com");
    headers.iter().fold(request, |request, (name, value)| request.header(name, value))
}

#[test]
fn what_a_page_of_another_site_sends_is_refused() {
    let plugin = build(json!({"trusted": ["https://app.example.com", "https://*.partner.example"]}));
    for (headers, reason) in [
        (&[("sec-fetch-site", "same-origin")][..], None),
        (&[("sec-fetch-site", "none")], None),
        (&[("sec-fetch-site", "cross-site")], Some("csrf.cross_site")),
        (&[("sec-fetch-site", "same-site")], Some("csrf.cross_site")),
        (&[("sec-fetch-site", "SAME-ORIGIN")], Some("csrf.cross_site")),
        (&[("sec-fetch-site", "")], Some("csrf.cross_site")),
        (&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")], Some("csrf.cross_site")),
        // What the browser says counts before what it says of the origin.
        (&[("sec-fetch-site", "cross-site"), ("origin", "https://api.example.com")], Some("csrf.cross_site")),
        (&[("sec-fetch-site", "same-site"), ("origin", "https://app.example.com")], None),
        (&[("sec-fetch-site", "cross-site"), ("origin", "https://eu.partner.example")], None),
        (&[("origin", "https://app.example.com")], None),
        (
            &[("origin", "https://app.example.com"), ("origin", "https://evil.example")],
            Some("csrf.cross_site"),
        ),
        (&[("origin", "https://evil.example")], Some("csrf.cross_site")),
        (&[("origin", "null")], Some("csrf.cross_site")),
        (&[("origin", "https://api.example.com")], None),
        (&[("origin", "http://api.example.com")], None),
        (&[("origin", "https://api.example.com:443")], None),
        (&[("origin", "https://api.example.com:8443")], Some("csrf.cross_site")),
        (&[("origin", "https://api.example.com.evil.example")], Some("csrf.cross_site")),
        (&[("origin", "ftp://api.example.com")], Some("csrf.cross_site")),
        (&[], None),
    ] {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let found = refused(&plugin, asks(method, headers));
            assert_eq!(found.as_deref(), reason, "{headers:?}");
        }
    }
}

#[test]
fn over_tls_a_page_without_it_is_another() {
    let plugin = build(json!({}));
    let from = |scheme: &str| asks(Method::POST, &[("origin", &format!("{scheme}://api.example.com"))]);
    assert_eq!(refused(&plugin, from("http").tls(TlsSession::default())).as_deref(), Some("csrf.cross_site"));
    assert_eq!(refused(&plugin, from("https").tls(TlsSession::default())), None);
    let proxied = from("http").header("x-forwarded-proto", "https");
    assert_eq!(refused(&plugin, proxied).as_deref(), Some("csrf.cross_site"));
}

#[test]
fn what_changes_nothing_passes_and_a_handshake_does_not() {
    let plugin = build(json!({}));
    let evil = [("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")];
    for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
        assert_eq!(refused(&plugin, asks(method, &evil)), None);
    }
    let handshake = asks(Method::GET, &evil).header("upgrade", "websocket");
    assert_eq!(refused(&plugin, handshake).as_deref(), Some("csrf.cross_site"));
}

#[test]
fn what_carries_no_cookie_of_a_user_passes() {
    let plugin = build(json!({"cookies": ["sid", "auth"]}));
    let evil = ("sec-fetch-site", "cross-site");
    assert_eq!(refused(&plugin, asks(Method::POST, &[evil])), None);
    assert_eq!(refused(&plugin, asks(Method::POST, &[evil, ("cookie", "theme=dark")])), None);
    let with = refused(&plugin, asks(Method::POST, &[evil, ("cookie", "theme=dark; auth=1")]));
    assert_eq!(with.as_deref(), Some("csrf.cross_site"));
}

#[test]
fn who_says_nothing_can_be_refused() {
    let plugin = build(json!({"without_origin": "deny"}));
    assert_eq!(refused(&plugin, asks(Method::POST, &[])).as_deref(), Some("csrf.no_origin"));
    assert_eq!(refused(&plugin, asks(Method::POST, &[("sec-fetch-site", "none")])), None);
}

/// The cookie that a response to this request sets.
fn given(plugin: &TestedPlugin, request: ExchangeBuilder) -> Option<String> {
    let mut exchange = request.response(200, &[], "").build();
    plugin.on_response(&mut exchange).unwrap();
    let cookie = exchange.response().unwrap().headers().get(SET_COOKIE)?;
    Some(cookie.to_str().unwrap().to_owned())
}

#[test]
fn a_token_is_given_once_and_asked_for() {
    let plugin = build(json!({"token": {"key": "env:KEY", "bind": {"cookie": "sid"}}}));
    let cookie = given(&plugin, asks(Method::GET, &[("cookie", "sid=1")])).unwrap();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; SameSite=Strict; Secure");
    let (_, token) = pair.split_once('=').unwrap();
    let carrying = |session: &str, kept: &str, sent: Option<&str>| {
        let request = asks(Method::POST, &[("cookie", &format!("sid={session}; __Host-csrf={kept}"))]);
        let request = sent.into_iter().fold(request, |request, sent| request.header("x-csrf-token", sent));
        refused(&plugin, request)
    };
    assert_eq!(carrying("1", token, Some(token)), None);
    assert_eq!(carrying("1", token, None).as_deref(), Some("csrf.token_missing"));
    let other = given(&plugin, asks(Method::GET, &[("cookie", "sid=1")])).unwrap();
    let other = &other[pair.find('=').unwrap() + 1..pair.len()];
    assert_ne!(token, other);
    for (session, kept, sent) in
        [("2", token, token), ("1", token, other), ("1", "AAAA", "AAAA"), ("1", "", "")]
    {
        assert_eq!(
            carrying(session, kept, Some(sent)).as_deref(),
            Some("csrf.token_invalid"),
            "{kept} {sent}"
        );
    }
    let twice = format!("sid=1; __Host-csrf={token}; __Host-csrf={token}");
    let twice = asks(Method::POST, &[("cookie", &twice), ("x-csrf-token", token)]);
    assert_eq!(refused(&plugin, twice).as_deref(), Some("csrf.token_missing"));
    // Who has one of this session gets no other; who has one of another does.
    assert_eq!(given(&plugin, asks(Method::GET, &[("cookie", &format!("sid=1; {pair}"))])), None);
    assert!(given(&plugin, asks(Method::GET, &[("cookie", &format!("sid=2; {pair}"))])).is_some());
    assert_eq!(given(&plugin, asks(Method::POST, &[])), None);
}

#[test]
fn a_token_belongs_to_who_calls() {
    let plugin = build(json!({"token": {"key": "env:KEY", "cookie": "csrf", "bind": "principal"}}));
    let of = |id: &str| Principal { id: id.into(), ..Principal::default() };
    let cookie = given(&plugin, asks(Method::GET, &[]).principal(of("ann"))).unwrap();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; SameSite=Strict");
    let asked = |id: &str| {
        let request = asks(Method::POST, &[("cookie", pair), ("x-csrf-token", &pair["csrf=".len()..])]);
        refused(&plugin, request.principal(of(id)))
    };
    assert_eq!((asked("ann"), asked("bob").as_deref()), (None, Some("csrf.token_invalid")));
}

#[test]
fn what_cannot_be_is_refused_where_it_stands() {
    for (table, path) in [
        (json!({"trusted": ["example.com"]}), "trusted[0]"),
        (json!({"token": {"key": "env:SHORT"}}), "token.key"),
        (json!({"token": {"key": "env:KEY", "cookie": "a=b"}}), "token.cookie"),
        (json!({"token": {"key": "env:KEY", "header": "a b"}}), "token.header"),
    ] {
        let mut tester = PluginTester::new().secret("KEY", KEY).secret("SHORT", "short");
        assert_eq!(tester.build::<Csrf>(table).err().map(|error| error.path).as_deref(), Some(path));
    }
}

#[test]
fn refusals_are_counted() {
    let mut tester = PluginTester::new();
    let plugin = tester.build::<Csrf>(json!({})).unwrap();
    refused(&plugin, asks(Method::POST, &[("sec-fetch-site", "cross-site")]));
    assert_eq!(tester.counted("refused", &["csrf.cross_site"]), Some(1));
}
