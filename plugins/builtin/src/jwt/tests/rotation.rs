//! Keys that are fetched, and come and go.

use std::sync::Mutex;

use bytes::Bytes;
use portcullis_plugin::OutboundError;

use super::*;

/// An issuer that can be reached.
#[derive(Default)]
struct Provider {
    /// What it answers with, by path; without an answer it is away.
    answers: Mutex<std::collections::HashMap<String, Value>>,
    asked: Mutex<Vec<(String, String)>>,
}

impl Provider {
    fn publish(&self, path: &str, answer: Value) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    fn go_away(&self) {
        self.answers.lock().unwrap().clear();
    }

    fn keys(&self, keys: &[Value]) {
        self.publish("/keys", json!({ "keys": keys }));
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn world() -> (PluginTester, Arc<Provider>) {
    let provider = Arc::new(Provider::default());
    let ask = |name: &'static str, provider: Arc<Provider>| {
        move |request: &http::Request<Bytes>| {
            let path = request.uri().path().to_owned();
            let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
            provider.asked.lock().unwrap().push((name.to_owned(), host.unwrap_or_default()));
            let answers = provider.answers.lock().unwrap();
            let answer = answers.get(&path).ok_or(OutboundError::Unreachable)?;
            Ok(http::Response::new(Bytes::from(answer.to_string())))
        }
    };
    let tester = tester().upstream("login", ask("login", provider.clone()));
    (tester.upstream("elsewhere", ask("elsewhere", provider.clone())), provider)
}

fn url() -> Value {
    table(json!(["RS256"]), json!([{ "url": { "upstream": "login", "path": "/keys" } }]))
}

fn at(tester: &PluginTester, seconds: u64) {
    tester.set_time(Duration::from_secs(NOW + seconds));
}

fn unavailable() -> Option<(u16, String)> {
    Some((503, "jwt.keys_unavailable".to_owned()))
}

#[test]
fn keys_are_fetched_once_and_outlive_a_reload() {
    let (mut tester, provider) = world();
    provider.keys(&[rsa_jwk(&RSA, "a")]);
    for _ in 0..3 {
        let plugin = tester.build::<Jwt>(url()).unwrap();
        assert_eq!(refusal(&plugin, &mut with(&rs256(&RSA, "a", json!({})))), None);
    }
    assert_eq!((provider.asked(), tester.counted("fetches", &["ok"])), (1, Some(1)));
    // Another place has other keys.
    let mut other = url();
    other["issuers"][0]["keys"][0]["url"]["upstream"] = json!("elsewhere");
    let plugin = tester.build::<Jwt>(other).unwrap();
    assert_eq!(refusal(&plugin, &mut with(&rs256(&RSA, "a", json!({})))), None);
    assert_eq!(provider.asked(), 2);
}

#[test]
fn a_new_keys_tokens_wait_for_it_and_are_taken() {
    let (mut tester, provider) = world();
    provider.keys(&[rsa_jwk(&RSA, "a")]);
    let plugin = tester.build::<Jwt>(url()).unwrap();
    assert_eq!(refusal(&plugin, &mut with(&rs256(&RSA, "a", json!({})))), None);
    let new = new_rsa();
    provider.keys(&[rsa_jwk(&new, "b")]);
    at(&tester, 6);
    assert_eq!(refusal(&plugin, &mut with(&rs256(&new, "b", json!({})))), None);
    // The old one is gone, and what was remembered of it too.
    at(&tester, 12);
    assert_eq!(refusal(&plugin, &mut with(&rs256(&RSA, "a", json!({})))), refused("unknown_key"));
    assert_eq!(provider.asked(), 3);
}

#[test]
fn invented_keys_cause_one_fetch_per_window_and_are_not_told_from_new_ones_meanwhile() {
    let (mut tester, provider) = world();
    provider.keys(&[rsa_jwk(&RSA, "a")]);
    let plugin = tester.build::<Jwt>(url()).unwrap();
    assert_eq!(refusal(&plugin, &mut with(&rs256(&RSA, "a", json!({})))), None);
    at(&tester, 6);
    let junk = |n: usize| {
        signed(&json!({ "alg": "RS256", "kid": n.to_string() }).to_string(), &claims(json!({})), |_| vec![0])
    };
    assert_eq!(refusal(&plugin, &mut with(&junk(0))), refused("unknown_key"));
    assert_eq!(provider.asked(), 2);
    // Time stands still at first, so that the fetch is as young as they are; then they come later.
    for n in 1..5_000 {
        assert_eq!(refusal(&plugin, &mut with(&junk(n))), refused("unknown_key"));
    }
    at(&tester, 7);
    for n in 5_000..10_000 {
        assert_eq!(refusal(&plugin, &mut with(&junk(n))), unavailable());
    }
    // One that was looked for is known to be none.
    assert_eq!(refusal(&plugin, &mut with(&junk(0))), refused("unknown_key"));
    let new = new_rsa();
    provider.keys(&[rsa_jwk(&RSA, "a"), rsa_jwk(&new, "b")]);
    assert_eq!(provider.asked(), 2);
    let Ok(Decision::Respond(reply)) = plugin.on_request(&mut with(&rs256(&new, "b", json!({})))) else {
        panic!()
    };
    assert_eq!((reply.status.as_u16(), &reply.headers["retry-after"]), (503, &HeaderValue::from_static("4")));
    at(&tester, 11);
    assert_eq!(refusal(&plugin, &mut with(&rs256(&new, "b", json!({})))), None);
    assert_eq!(provider.asked(), 3);
}

#[test]
fn who_comes_shortly_before_the_window_passes_waits_for_it() {
    let (mut tester, provider) = world();
    provider.keys(&[rsa_jwk(&RSA, "a")]);
    let plugin = tester.build::<Jwt>(url()).unwrap();
    assert_eq!(refusal(&plugin, &mut with(&rs256(&RSA, "a", json!({})))), None);
    let new = new_rsa();
    provider.keys(&[rsa_jwk(&new, "b")]);
    tester.set_time(Duration::from_millis(NOW * 1000 + 4500));
    let token = rs256(&new, "b", json!({}));
    let mut exchange = with(&token);
    let Hook::Wait(mut waiting) = plugin.plugin().on_request(&mut exchange) else { panic!() };
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    assert_eq!(provider.asked(), 1);
    at(&tester, 5);
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    assert_eq!(tester.run_tasks(), 0);
    assert!(matches!(waiting.as_mut().poll(&mut context), std::task::Poll::Ready(Ok(Decision::Continue))));
    assert_eq!(provider.asked(), 2);
}

#[test]
fn requests_wait_for_one_fetch_together_and_not_too_many() {
    let (mut tester, provider) = world();
    provider.keys(&[rsa_jwk(&RSA, "a")]);
    let plugin = tester.build::<Jwt>(url()).unwrap();
    let token = rs256(&RSA, "a", json!({}));
    let mut exchanges: Vec<_> = (0..1025).map(|_| with(&token)).collect();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut waiting: Vec<_> = exchanges
        .iter_mut()
        .map(|exchange| {
            let Hook::Wait(mut waiting) = plugin.plugin().on_request(exchange) else { panic!() };
            let now = waiting.as_mut().poll(&mut context);
            (waiting, now)
        })
        .collect();
    let (_, last) = waiting.pop().unwrap();
    let std::task::Poll::Ready(Ok(Decision::Respond(reply))) = last else { panic!() };
    assert_eq!(reply.status, 503);
    assert_eq!(tester.run_tasks(), 0);
    for (mut waiting, first) in waiting {
        assert!(first.is_pending());
        assert!(matches!(
            waiting.as_mut().poll(&mut context),
            std::task::Poll::Ready(Ok(Decision::Continue))
        ));
    }
    assert_eq!(provider.asked(), 1);
}

#[test]
fn keys_are_fetched_ahead_and_used_for_a_while_when_they_cannot_be() {
    let (mut tester, provider) = world();
    provider.keys(&[rsa_jwk(&RSA, "a")]);
    let plugin = tester.build::<Jwt>(url()).unwrap();
    let ask = || refusal(&plugin, &mut with(&rs256(&RSA, "a", json!({ "exp": NOW + 10_000 }))));
    assert_eq!(ask(), None);
    at(&tester, 479);
    assert_eq!((ask(), tester.run_tasks(), provider.asked()), (None, 0, 1));
    at(&tester, 481);
    // Nobody waits for it.
    assert_eq!((ask(), tester.run_tasks(), provider.asked()), (None, 0, 2));
    provider.go_away();
    at(&tester, 481 + 600 + 3599);
    assert_eq!((ask(), tester.run_tasks(), provider.asked()), (None, 0, 3));
    assert_eq!(tester.counted("fetches", &["failed"]), Some(1));
    at(&tester, 481 + 600 + 3601);
    assert_eq!(ask(), unavailable());
    assert_eq!(provider.asked(), 3, "within the window");
    provider.keys(&[rsa_jwk(&RSA, "a")]);
    at(&tester, 481 + 600 + 3606);
    assert_eq!(ask(), None);
}

#[test]
fn an_issuer_that_is_away_or_answers_anything_else_makes_no_401() {
    let (mut tester, provider) = world();
    let plugin = tester.build::<Jwt>(url()).unwrap();
    let ask = || refusal(&plugin, &mut with(&rs256(&RSA, "a", json!({}))));
    assert_eq!(ask(), unavailable());
    let many: Vec<_> = (0..65).map(|n| rsa_jwk(&RSA, &n.to_string())).collect();
    for (number, answer) in
        [json!({ "keys": [] }), json!([]), json!({ "keys": many }), json!({ "keys": "x" })]
            .into_iter()
            .enumerate()
    {
        provider.publish("/keys", answer);
        at(&tester, 6 * (number as u64 + 1));
        assert_eq!(ask(), unavailable());
    }
    assert_eq!(tester.counted("fetches", &["failed"]), Some(5));
    // What a set holds beside keys for signatures is passed over, shared keys too.
    let shared = json!({ "kty": "oct", "kid": "a", "k": encoded(SECRET) });
    let broken = json!({ "kty": "RSA", "kid": "b", "n": "!", "e": "AQAB" });
    provider.keys(&[shared, broken, json!({ "kty": "RSA", "use": "enc" }), rsa_jwk(&RSA, "a")]);
    at(&tester, 60);
    assert_eq!(ask(), None);
}

#[test]
fn metadata_leads_to_keys_only_if_it_is_the_issuers_own() {
    let discovery = |more: Value| {
        let mut keys = json!({ "upstream": "login" });
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut table = table(json!(["RS256"]), json!([{ "discovery": keys }]));
        table["issuers"][0]["issuer"] = json!("https://login.test/realm/");
        table
    };
    let token = rs256(&RSA, "a", json!({ "iss": "https://login.test/realm/" }));
    for (issuer, keys, more, expected) in [
        ("https://login.test/realm/", "https://login.test/keys", json!({}), Some("login")),
        ("https://login.test/realm", "https://login.test/keys", json!({}), None),
        ("https://evil.test/", "https://login.test/keys", json!({}), None),
        ("https://login.test/realm/", "https://keys.test/keys", json!({}), None),
        ("https://login.test/realm/", "http://login.test/keys", json!({}), None),
        (
            "https://login.test/realm/",
            "https://keys.test/keys",
            json!({ "keys_upstream": "elsewhere" }),
            Some("elsewhere"),
        ),
    ] {
        let (mut tester, provider) = world();
        let metadata = json!({ "issuer": issuer, "jwks_uri": keys });
        provider.publish("/realm/.well-known/openid-configuration", metadata);
        provider.keys(&[rsa_jwk(&RSA, "a")]);
        let plugin = tester.build::<Jwt>(discovery(more)).unwrap();
        let came = refusal(&plugin, &mut with(&token));
        assert_eq!(came.is_none(), expected.is_some(), "{issuer} {keys} {came:?}");
        let asked = provider.asked.lock().unwrap().clone();
        assert_eq!(asked[0], ("login".to_owned(), "login.test".to_owned()));
        let host = keys.split('/').nth(2).unwrap().to_owned();
        assert_eq!(asked.get(1), expected.map(|upstream| (upstream.to_owned(), host)).as_ref());
    }
}

#[test]
fn a_key_that_was_looked_for_is_absent_for_its_time() {
    let (mut tester, provider) = world();
    provider.keys(&[rsa_jwk(&RSA, "a")]);
    let mut table = url();
    table["issuers"][0]["keys"][0]["url"]["absent"] = json!("100ms");
    let plugin = tester.build::<Jwt>(table).unwrap();
    let token = rs256(&RSA, "b", json!({}));
    assert_eq!(refusal(&plugin, &mut with(&token)), refused("unknown_key"));
    at(&tester, 1);
    assert_eq!(refusal(&plugin, &mut with(&token)), refused("unknown_key"));
    // The cache forgets by the machine's clock.
    let began = std::time::Instant::now();
    while refusal(&plugin, &mut with(&token)) != unavailable() {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    assert!(began.elapsed() < Duration::from_secs(20) && provider.asked() == 1);
}
