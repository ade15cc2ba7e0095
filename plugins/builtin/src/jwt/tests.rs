mod attacks;
mod rotation;
mod vectors;

use std::sync::LazyLock;
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair, RsaPublicKeyComponents,
};
use portcullis_plugin::{ExchangeBuilder, PluginTester, TestedPlugin, TlsSession};
use serde_json::json;

use super::*;

/// 2026-01-01.
const NOW: u64 = 1_767_225_600;

const SECRET: &str = "a secret of more than thirty-two bytes";

static RSA: LazyLock<RsaKeyPair> = LazyLock::new(new_rsa);
static P256: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
static P384: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap());
static ED: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::generate().unwrap());

fn new_rsa() -> RsaKeyPair {
    RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap()
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn rsa_jwk(key: &RsaKeyPair, kid: &str) -> Value {
    let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(key.public_key());
    json!({ "kty": "RSA", "kid": kid, "use": "sig", "n": encoded(n), "e": encoded(e) })
}

fn ec_jwk(key: &EcdsaKeyPair, curve: &str) -> Value {
    let point = &key.public_key().as_ref()[1..];
    let (x, y) = point.split_at(point.len() / 2);
    json!({ "kty": "EC", "crv": curve, "x": encoded(x), "y": encoded(y) })
}

fn ed_jwk(key: &Ed25519KeyPair) -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "x": encoded(key.public_key()) })
}

/// A token of these parts.
fn signed(header: &str, payload: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encoded(header), encoded(payload));
    let signature = encoded(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn rsa_with(key: &RsaKeyPair, padding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(padding, &SystemRandom::new(), message, &mut signature).unwrap();
    signature
}

fn shared(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

/// A token of the issuer that all tests have, with claims changed; `null` takes one out.
fn claims(changes: Value) -> String {
    let mut claims = json!({
        "iss": "https://login.test", "sub": "ann", "aud": "orders", "exp": NOW + 300, "iat": NOW - 10,
        "scope": "read write", "realm": { "roles": ["clerk"] },
    });
    let all = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => _ = all.remove(name),
            value => _ = all.insert(name.clone(), value.clone()),
        }
    }
    claims.to_string()
}

fn hs256(changes: Value) -> String {
    signed(r#"{"alg":"HS256","typ":"at+jwt"}"#, &claims(changes), |message| {
        shared(SECRET.as_bytes(), message)
    })
}

fn rs256(key: &RsaKeyPair, kid: &str, changes: Value) -> String {
    let header = json!({ "alg": "RS256", "kid": kid }).to_string();
    signed(&header, &claims(changes), |message| rsa_with(key, &RSA_PKCS1_SHA256, message))
}

fn tester() -> PluginTester {
    let tester = PluginTester::new().secret("SECRET", SECRET);
    tester.set_time(Duration::from_secs(NOW));
    tester
}

/// A table with one issuer.
fn table(algorithms: Value, keys: Value) -> Value {
    json!({ "issuers": [{
        "issuer": "https://login.test", "audience": ["orders"], "algorithms": algorithms, "keys": keys,
        "roles": "realm.roles",
    }] })
}

fn hs256_table() -> Value {
    table(json!(["HS256"]), json!([{ "secret": "env:SECRET" }]))
}

fn build(table: Value) -> TestedPlugin {
    tester().build::<Jwt>(table).unwrap()
}

fn with(token: &str) -> Exchange {
    ExchangeBuilder::get("/").header("authorization", &format!("Bearer {token}")).build()
}

/// The status and reason of a refusal; none if it goes on.
fn refusal(plugin: &TestedPlugin, exchange: &mut Exchange) -> Option<(u16, String)> {
    match plugin.on_request(exchange).unwrap() {
        Decision::Continue => None,
        Decision::Respond(reply) => {
            let challenged = reply.headers.contains_key("www-authenticate");
            assert_eq!(challenged, reply.status == 401);
            Some((reply.status.as_u16(), reply.reason.as_deref().unwrap_or_default().to_owned()))
        }
        Decision::Drop => panic!("a request is answered"),
    }
}

fn refused(reason: &str) -> Option<(u16, String)> {
    Some((401, format!("jwt.{reason}")))
}

#[test]
fn a_token_makes_the_principal_and_goes_no_further() {
    let plugin = build(hs256_table());
    // The second time it is remembered.
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let value = format!("{scheme} {}", hs256(json!({})));
        let mut exchange = ExchangeBuilder::get("/").header("authorization", &value).build();
        assert_eq!(refusal(&plugin, &mut exchange), None);
        let principal = exchange.principal().unwrap();
        assert_eq!((&*principal.id, &*principal.issuer), ("ann", "https://login.test"));
        assert_eq!(
            (&principal.roles[..], &principal.scopes[..]),
            (&["clerk".into()][..], &["read".into(), "write".into()][..])
        );
        assert_eq!(principal.claims["aud"], "orders");
        assert!(!exchange.request().headers().contains_key("authorization"));
    }
    let scopes = hs256(json!({ "scope": ["a b", "c"] }));
    let mut exchange = with(&scopes);
    assert_eq!(refusal(&plugin, &mut exchange), None);
    assert_eq!(exchange.principal().unwrap().scopes, ["a b", "c"]);
}

#[test]
fn a_token_may_stand_elsewhere_and_go_on_if_the_table_says_so() {
    let mut table = hs256_table();
    table["from"] = json!([{ "header": "x-token" }, { "cookie": "session" }]);
    let (plugin, token) = (build(table.clone()), hs256(json!({})));
    let mut exchange = ExchangeBuilder::get("/").header("cookie", &format!("a=1; session={token}")).build();
    assert_eq!(refusal(&plugin, &mut exchange), None);
    assert_eq!(exchange.request().headers()["cookie"], "a=1");
    assert_eq!(refusal(&plugin, &mut with(&token)), refused("missing"));
    table["forward"] = json!(true);
    let mut exchange = ExchangeBuilder::get("/").header("x-token", &token).build();
    assert_eq!(refusal(&build(table), &mut exchange), None);
    assert_eq!(exchange.request().headers()["x-token"], token.as_str());
}

#[test]
fn who_brings_no_token_passes_only_if_that_is_optional_and_who_brings_a_bad_one_never() {
    let mut table = hs256_table();
    let bare = || ExchangeBuilder::get("/").build();
    let plugin = build(table.clone());
    let Ok(Decision::Respond(reply)) = plugin.on_request(&mut bare()) else { panic!() };
    assert_eq!(
        (reply.status.as_u16(), &reply.headers["www-authenticate"]),
        (401, &HeaderValue::from_static("Bearer"))
    );
    let Ok(Decision::Respond(reply)) = plugin.on_request(&mut with("a.b.c")) else { panic!() };
    assert_eq!(reply.headers["www-authenticate"], "Bearer error=\"invalid_token\"");
    table["optional"] = json!(true);
    let plugin = build(table);
    let mut exchange = bare();
    assert_eq!(refusal(&plugin, &mut exchange), None);
    assert!(exchange.principal().is_none());
    assert_eq!(refusal(&plugin, &mut with("a.b.c")), refused("malformed"));
    let two =
        ExchangeBuilder::get("/").header("authorization", "Bearer a").header("authorization", "Bearer b");
    assert_eq!(refusal(&plugin, &mut two.build()), refused("malformed"));
}

#[test]
fn every_algorithm_verifies_with_a_key_of_its_type() {
    let (rsa, p256, p384, ed) =
        (rsa_jwk(&RSA, "k"), ec_jwk(&P256, "P-256"), ec_jwk(&P384, "P-384"), ed_jwk(&ED));
    type Sign = fn(&[u8]) -> Vec<u8>;
    let cases: [(&str, &Value, Sign); 5] = [
        ("RS256", &rsa, |message| rsa_with(&RSA, &RSA_PKCS1_SHA256, message)),
        ("PS256", &rsa, |message| rsa_with(&RSA, &RSA_PSS_SHA256, message)),
        ("ES256", &p256, |message| P256.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()),
        ("ES384", &p384, |message| P384.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()),
        ("EdDSA", &ed, |message| ED.sign(message).as_ref().to_vec()),
    ];
    for (name, jwk, sign) in cases {
        let plugin = build(table(json!([name]), json!([{ "jwk": jwk }])));
        let token = signed(&json!({ "alg": name }).to_string(), &claims(json!({})), sign);
        assert_eq!(refusal(&plugin, &mut with(&token)), None, "{name}");
        let changed = signed(&json!({ "alg": name }).to_string(), &claims(json!({ "sub": "bob" })), |_| {
            sign(b"something else")
        });
        assert_eq!(refusal(&plugin, &mut with(&changed)), refused("signature"), "{name}");
    }
}

#[test]
fn keys_are_read_from_pem_and_from_files() {
    use aws_lc_rs::encoding::AsDer;
    let pem = |label: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    let public = RSA.public_key();
    let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = public.as_der().unwrap();
    let spki = pem("PUBLIC KEY", spki.as_ref());
    let pkcs1 = pem("RSA PUBLIC KEY", public.as_ref());
    let set = json!({ "keys": [{ "kty": "unheard-of" }, rsa_jwk(&RSA, "k")] }).to_string();
    let token = rs256(&RSA, "k", json!({}));
    for keys in [json!([{ "pem": spki }]), json!([{ "pem": pkcs1 }])] {
        assert_eq!(refusal(&build(table(json!(["RS256"]), keys)), &mut with(&token)), None);
    }
    for content in [spki, set] {
        let mut tester = tester().file("keys", content);
        let plugin = tester.build::<Jwt>(table(json!(["RS256"]), json!([{ "file": "keys" }]))).unwrap();
        assert_eq!(refusal(&plugin, &mut with(&token)), None);
    }
    let ec: aws_lc_rs::encoding::PublicKeyX509Der<'_> = P256.public_key().as_der().unwrap();
    let keys = json!([{ "pem": pem("PUBLIC KEY", ec.as_ref()) }]);
    let token = signed(r#"{"alg":"ES256"}"#, &claims(json!({})), |message| {
        P256.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    });
    assert_eq!(refusal(&build(table(json!(["ES256"]), keys)), &mut with(&token)), None);
}

#[test]
fn claims_hold_by_time_audience_and_what_is_required() {
    let mut table = hs256_table();
    table["issuers"][0]["typ"] = json!(["application/at+jwt"]);
    table["issuers"][0]["require"] = json!({ "realm.roles": null, "azp": "web" });
    let plugin = build(table);
    let token = |changes: Value| {
        let mut all = json!({ "azp": "web" });
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        hs256(all)
    };
    for (changes, expected) in [
        (json!({}), None),
        (json!({ "aud": ["shop", "orders"] }), None),
        (json!({ "aud": ["shop"] }), refused("audience")),
        (json!({ "aud": ["orders", 1] }), refused("audience")),
        (json!({ "aud": null }), refused("audience")),
        (json!({ "exp": NOW - 29 }), None),
        (json!({ "exp": NOW - 31 }), refused("expired")),
        (json!({ "exp": null }), refused("claim")),
        (json!({ "exp": "2030" }), refused("claim")),
        (json!({ "exp": 1e300 }), refused("claim")),
        (json!({ "exp": -1 }), refused("claim")),
        (json!({ "nbf": NOW + 29 }), None),
        (json!({ "nbf": NOW + 31 }), refused("not_yet")),
        (json!({ "iat": NOW + 31 }), refused("not_yet")),
        (json!({ "azp": "other" }), refused("claim")),
        (json!({ "azp": null }), refused("claim")),
        (json!({ "realm": { "roles": null } }), refused("claim")),
        (json!({ "sub": null }), refused("claim")),
        (json!({ "sub": "" }), refused("claim")),
        (json!({ "iss": "https://login.test/" }), refused("unknown_issuer")),
        (json!({ "iss": null }), refused("unknown_issuer")),
    ] {
        assert_eq!(refusal(&plugin, &mut with(&token(changes.clone()))), expected, "{changes}");
    }
    let untyped = signed(r#"{"alg":"HS256"}"#, &claims(json!({ "azp": "web" })), |message| {
        shared(SECRET.as_bytes(), message)
    });
    assert_eq!(refusal(&plugin, &mut with(&untyped)), refused("claim"));
}

#[test]
fn a_remembered_token_ends_when_it_says_so() {
    let mut tester = tester();
    let plugin = tester.build::<Jwt>(hs256_table()).unwrap();
    let token = hs256(json!({}));
    for _ in 0..3 {
        assert_eq!(refusal(&plugin, &mut with(&token)), None);
    }
    assert_eq!((tester.counted("verified", &[]), tester.counted("remembered", &[])), (Some(3), Some(2)));
    tester.set_time(Duration::from_secs(NOW + 331));
    for _ in 0..2 {
        assert_eq!(refusal(&plugin, &mut with(&token)), refused("expired"));
    }
    assert_eq!(tester.counted("refused", &["jwt.expired"]), Some(2));
}

#[test]
fn a_bound_token_holds_with_its_certificate_alone() {
    let plugin = build(hs256_table());
    let hash = encoded(digest(&SHA256, b"certificate"));
    let token = hs256(json!({ "cnf": { "x5t#S256": hash } }));
    let over = |leaf: &'static [u8]| {
        let session = TlsSession { client_chain: vec![leaf.into()], ..TlsSession::default() };
        let header = format!("Bearer {token}");
        ExchangeBuilder::get("/").header("authorization", &header).tls(session).build()
    };
    assert_eq!(refusal(&plugin, &mut over(b"certificate")), None);
    assert_eq!(refusal(&plugin, &mut over(b"another")), refused("binding"));
    assert_eq!(refusal(&plugin, &mut with(&token)), refused("binding"));
    for other in [json!({ "jkt": "x" }), json!({ "x5t#S256": hash, "jkt": "x" }), json!({}), json!("x")] {
        let token = hs256(json!({ "cnf": other }));
        assert_eq!(refusal(&plugin, &mut with(&token)), refused("binding"), "{other}");
    }
}

#[test]
fn a_table_that_cannot_be_meant_is_refused() {
    let long = "x".repeat(31);
    let mut tester = tester()
        .secret("SHORT", long)
        .file("bad", "{")
        .upstream("login", |_| Err(portcullis_plugin::OutboundError::Failed));
    let mut path = |table: Value| tester.build::<Jwt>(table).err().unwrap().path;
    let keys = |keys: Value| table(json!(["RS256"]), keys);
    let rsa = || rsa_jwk(&RSA, "k");
    assert_eq!(path(json!({ "issuers": [] })), "issuers");
    assert_eq!(
        path(json!({ "issuers": vec![hs256_table()["issuers"][0].clone(); MAX_ISSUERS + 1] })),
        "issuers"
    );
    assert_eq!(path(json!({ "issuers": vec![hs256_table()["issuers"][0].clone(); 2] })), "issuers[1].issuer");
    let with = |name: &str, value: Value| {
        let mut table = hs256_table();
        table[name] = value;
        table
    };
    assert_eq!(path(with("from", json!([]))), "from");
    assert_eq!(path(with("max_token", json!("65KiB"))), "max_token");
    assert_eq!(path(with("max_token", json!("0B"))), "max_token");
    for (algorithms, place) in [
        (json!([]), "issuers[0].algorithms"),
        (json!(["none"]), "issuers[0].algorithms[0]"),
        (json!(["RS256", "HS256"]), "issuers[0].algorithms[1]"),
        (json!(["RS256", "ES256"]), "issuers[0].algorithms[1]"),
        (json!(["ES256"]), "issuers[0].keys"),
    ] {
        assert_eq!(path(table(algorithms.clone(), json!([{ "jwk": rsa() }]))), place, "{algorithms}");
    }
    assert_eq!(path(keys(json!([]))), "issuers[0].keys");
    assert_eq!(path(keys(json!([{ "pem": "x" }]))), "issuers[0].keys[0].pem");
    assert_eq!(path(keys(json!([{ "file": "bad" }]))), "issuers[0].keys[0].file");
    assert_eq!(path(keys(json!([{ "jwk": { "kty": "oct", "k": "x" } }]))), "issuers[0].keys[0].jwk");
    assert_eq!(path(keys(json!([{ "url": { "upstream": "other" } }]))), "issuers[0].keys.upstream");
    let url = json!({ "url": { "upstream": "login" } });
    assert_eq!(path(keys(json!([url, url]))), "issuers[0].keys[1]");
    assert_eq!(path(table(json!(["HS256"]), json!([url]))), "issuers[0].keys");
    for (field, value) in
        [("timeout", "0s"), ("refresh", "0s"), ("window", "0s"), ("window", "1h"), ("path", "x")]
    {
        let mut url = url.clone();
        url["url"][field] = json!(value);
        assert_eq!(path(keys(json!([url]))), format!("issuers[0].keys.{field}"));
    }
    let mut elsewhere = table(json!(["RS256"]), json!([{ "discovery": { "upstream": "login" } }]));
    elsewhere["issuers"][0]["issuer"] = json!("login");
    assert_eq!(path(elsewhere), "issuers[0].keys");
    // A shared key is as long as the hash at least.
    assert_eq!(path(table(json!(["HS256"]), json!([{ "secret": "env:SHORT" }]))), "issuers[0].keys");
    let mut private = rsa();
    private["d"] = json!("AQAB");
    assert_eq!(path(keys(json!([{ "jwk": private }]))), "issuers[0].keys[0].jwk");
    let mut small = rsa();
    small["n"] = json!(encoded([0xff; 128]));
    assert_eq!(path(keys(json!([{ "jwk": small }]))), "issuers[0].keys[0].jwk");
    let many = json!({ "keys": vec![rsa(); keys::MAX_KEYS + 1] });
    assert_eq!(path(keys(json!([{ "jwk": many }]))), "issuers[0].keys[0].jwk");
    let full = json!({ "jwk": { "keys": vec![rsa(); keys::MAX_KEYS] } });
    assert_eq!(path(keys(json!([full, { "jwk": rsa() }]))), "issuers[0].keys");
    let mut anybody = hs256_table();
    anybody["issuers"][0]["audience"] = json!([]);
    tester.build::<Jwt>(anybody).unwrap();
    assert!(tester.warnings()[0].path == "issuers[0].audience", "{:?}", tester.warnings());
}
