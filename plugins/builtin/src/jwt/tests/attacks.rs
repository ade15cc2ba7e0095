//! Tokens that somebody would like to be taken.

use super::*;

fn rsa_plugin() -> TestedPlugin {
    build(table(json!(["RS256"]), json!([{ "jwk": rsa_jwk(&RSA, "k") }])))
}

#[test]
fn none_is_no_algorithm_however_it_is_written() {
    for plugin in [rsa_plugin(), build(hs256_table())] {
        for name in ["none", "None", "NONE", "nOnE", ""] {
            let header = json!({ "alg": name }).to_string();
            let token = signed(&header, &claims(json!({})), |_| Vec::new());
            assert_eq!(refusal(&plugin, &mut with(&token)), refused("algorithm"), "{name}");
        }
    }
}

#[test]
fn a_public_key_is_no_shared_one() {
    let modulus = rsa_jwk(&RSA, "k").to_string();
    for secret in [RSA.public_key().as_ref(), modulus.as_bytes()] {
        for kid in ["", r#","kid":"k""#] {
            let header = format!(r#"{{"alg":"HS256"{kid}}}"#);
            let token = signed(&header, &claims(json!({})), |message| shared(secret, message));
            assert_eq!(refusal(&rsa_plugin(), &mut with(&token)), refused("algorithm"));
        }
    }
    // A key that says what it is for is for nothing else, though its type would do.
    let mut only_pss = rsa_jwk(&RSA, "k");
    only_pss["alg"] = json!("PS256");
    let plugin = build(table(json!(["RS256", "PS256"]), json!([{ "jwk": only_pss }])));
    assert_eq!(refusal(&plugin, &mut with(&rs256(&RSA, "k", json!({})))), refused("unknown_key"));
}

#[test]
fn keys_that_a_token_brings_along_are_not_looked_at() {
    let (own, plugin) = (new_rsa(), rsa_plugin());
    let jwk = rsa_jwk(&own, "k");
    for more in [
        json!({ "jwk": jwk }),
        json!({ "jku": "http://192.0.2.1/keys", "kid": "k" }),
        json!({ "x5u": "http://192.0.2.1/chain", "x5c": ["MIIB"] }),
    ] {
        let mut header = json!({ "alg": "RS256" });
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let token = signed(&header.to_string(), &claims(json!({})), |message| {
            rsa_with(&own, &RSA_PKCS1_SHA256, message)
        });
        assert_eq!(refusal(&plugin, &mut with(&token)), refused("signature"), "{more}");
    }
}

#[test]
fn an_id_of_a_key_is_a_name_and_nothing_else() {
    let plugin = rsa_plugin();
    for kid in ["../../etc/passwd", "k' OR '1'='1", "", "K", "k\0", "\n"] {
        assert_eq!(
            refusal(&plugin, &mut with(&rs256(&RSA, kid, json!({})))),
            refused("unknown_key"),
            "{kid:?}"
        );
    }
    let long = |length| refusal(&plugin, &mut with(&rs256(&RSA, &"k".repeat(length), json!({}))));
    assert_eq!((long(256), long(257)), (refused("unknown_key"), refused("malformed")));
    let token = signed(r#"{"alg":"RS256","kid":["k"]}"#, &claims(json!({})), |_| vec![1]);
    assert_eq!(refusal(&plugin, &mut with(&token)), refused("malformed"));
}

#[test]
fn another_issuers_key_is_not_ones_own() {
    let other = new_rsa();
    let mut table = table(json!(["RS256"]), json!([{ "jwk": rsa_jwk(&RSA, "k") }]));
    let mut second = table["issuers"][0].clone();
    second["issuer"] = json!("other");
    second["keys"] = json!([{ "jwk": rsa_jwk(&other, "k") }]);
    table["issuers"].as_array_mut().unwrap().push(second);
    let plugin = build(table);
    let token = |key: &RsaKeyPair, issuer: &str| rs256(key, "k", json!({ "iss": issuer }));
    assert_eq!(refusal(&plugin, &mut with(&token(&other, "other"))), None);
    assert_eq!(refusal(&plugin, &mut with(&token(&other, "https://login.test"))), refused("signature"));
    assert_eq!(refusal(&plugin, &mut with(&token(&RSA, "other"))), refused("signature"));
}

#[test]
fn what_could_be_read_in_two_ways_is_no_token() {
    let plugin = build(hs256_table());
    let sign =
        |header: &str, payload: &str| signed(header, payload, |message| shared(SECRET.as_bytes(), message));
    let (header, payload) = (r#"{"alg":"HS256"}"#, claims(json!({})));
    let good = sign(header, &payload);
    assert_eq!(refusal(&plugin, &mut with(&good)), None);
    let twice = payload.replacen('{', r#"{"sub":"root","#, 1);
    let deep = claims(json!({ "x": (0..16).fold(json!(1), |inner, _| json!([inner])) }));
    let mut bad = vec![
        sign(r#"{"alg":"HS256","alg":"none"}"#, &payload),
        sign(r#"{"alg":"HS256","\u0061lg":"none"}"#, &payload),
        sign(header, &twice),
        sign(header, &deep),
        sign(r#"{"alg":"HS256","crit":["exp"]}"#, &payload),
        sign(r#"{"alg":"HS256","crit":[]}"#, &payload),
        sign(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &payload),
        sign(r#"{"alg":5}"#, &payload),
        sign(r#"{"alg":"HS256","typ":5}"#, &payload),
        sign("{}", &payload),
        sign("[]", &payload),
        sign(header, "[]"),
        sign(header, "{"),
        sign(header, &format!("{payload} {{}}")),
        format!("{good}."),
        format!("{good}.x"),
        format!(".{good}"),
        format!("{good}="),
        format!("{good}\u{e9}"),
        good.replacen('.', "=.", 1),
        format!("{}+{}", &good[..30], &good[31..]),
        format!("{} {}", &good[..30], &good[30..]),
    ];
    let (message, signature) = good.rsplit_once('.').unwrap();
    bad.extend([
        message.to_owned(),
        format!("{message}.{}", &signature[..signature.len() - 2]),
        "..".to_owned(),
    ]);
    // The last character of 32 bytes has two bits to spare.
    let last = signature.chars().last().unwrap();
    let other = (last as u8 + 1) as char;
    bad.push(format!("{message}.{}{other}", &signature[..signature.len() - 1]));
    for token in bad {
        let header = HeaderValue::from_bytes(format!("Bearer {token}").as_bytes()).unwrap();
        let exchange = ExchangeBuilder::get("/");
        let mut exchange = exchange
            .with(move |parts| _ = parts.request.core_headers().insert("authorization", header))
            .build();
        let (status, reason) = refusal(&plugin, &mut exchange).unwrap_or_else(|| panic!("{token} was taken"));
        assert!(status == 401 && ["jwt.malformed", "jwt.signature"].contains(&&*reason), "{token}: {reason}");
    }
}

#[test]
fn a_token_is_as_long_as_allowed_and_no_longer() {
    let mut table = hs256_table();
    let token = hs256(json!({}));
    table["max_token"] = json!(format!("{}B", token.len()));
    assert_eq!(refusal(&build(table.clone()), &mut with(&token)), None);
    table["max_token"] = json!(format!("{}B", token.len() - 1));
    assert_eq!(refusal(&build(table), &mut with(&token)), refused("malformed"));
    let dots = ".".repeat(60_000);
    assert_eq!(refusal(&build(hs256_table()), &mut with(&dots)), refused("malformed"));
}

#[test]
fn a_token_without_a_key_id_is_tried_with_a_few_keys_only() {
    let others: Vec<_> = (0..3)
        .map(|n| ec_jwk(&EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), "P-256").tap(n))
        .collect();
    let own = ec_jwk(&P256, "P-256").tap(9);
    let token = signed(r#"{"alg":"ES256"}"#, &claims(json!({})), |message| {
        P256.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    });
    let plugin = |keys: Vec<Value>| build(table(json!(["ES256"]), json!([{ "jwk": { "keys": keys } }])));
    let third = [&others[..2], std::slice::from_ref(&own)].concat();
    assert_eq!(refusal(&plugin(third), &mut with(&token)), None);
    let fourth = [&others[..], &[own]].concat();
    assert_eq!(refusal(&plugin(fourth), &mut with(&token)), refused("signature"));
}

/// Gives a key an id.
trait Tap {
    fn tap(self, kid: usize) -> Self;
}

impl Tap for Value {
    fn tap(mut self, kid: usize) -> Self {
        self["kid"] = json!(kid.to_string());
        self
    }
}
