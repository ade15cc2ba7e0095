use std::task::{Context, Poll, Waker};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use http::Method;
use portcullis_plugin::{ExchangeBuilder, PluginTester, Principal, TestedPlugin};
use serde_json::{Value, json};

use super::*;

/// The keys of RFC 9421, B.1.4 and B.1.5.
const ED25519: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF\n\
    -----END PRIVATE KEY-----\n";
const SHARED: &str =
    "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";

fn tester() -> PluginTester {
    PluginTester::new().secret("ED25519", ED25519).secret("SHARED", SHARED)
}

/// The request of RFC 9421, B.2.
fn request() -> ExchangeBuilder {
    ExchangeBuilder::request(Method::POST, "/foo?param=Value&Pet=dog")
        .header("host", "example.com")
        .header("date", "Tue, 20 Apr 2021 02:07:55 GMT")
        .header("content-type", "application/json")
        .header("content-length", "18")
        .body("{\"hello\": \"world\"}")
}

/// A plugin to sign with directly, as `sign` is private to the registration's `dyn Plugin`.
fn build(table: Value) -> Sign {
    let config = serde_json::from_value(table).unwrap();
    let mut host = tester();
    let instance = portcullis_plugin::Instance { kind: "sign", name: "sign".into(), state_schema: 0 };
    Sign::build(config, &mut BuildContext::new(instance, &mut host)).unwrap()
}

fn sign(table: Value, request: ExchangeBuilder) -> Signed {
    let moment = Moment { created: 1618884473, nonce: None };
    build(table).sign(request.build().request(), &moment).unwrap()
}

#[test]
fn rfc_9421_b_2_5_hmac() {
    let signed = sign(
        json!({
            "algorithm": "hmac-sha256", "key": "env:SHARED", "key_id": "test-shared-secret",
            "label": "sig-b25", "components": ["date", "@authority", "content-type"],
        }),
        request(),
    );
    assert_eq!(
        signed.input,
        "sig-b25=(\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\""
    );
    assert_eq!(signed.signature, "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:");
}

#[test]
fn rfc_9421_b_2_6_ed25519() {
    let components = ["date", "@method", "@path", "@authority", "content-type", "content-length"];
    let table = json!({
        "algorithm": "ed25519", "key": "env:ED25519", "key_id": "test-key-ed25519",
        "label": "sig-b26", "components": components,
    });
    let plugin = build(table.clone());
    let exchange = request().build();
    let moment = Moment { created: 1618884473, nonce: None };
    let components: Vec<_> = plugin.components.iter().collect();
    let parameters = plugin.signature_params(&components, &moment);
    assert_eq!(
        plugin.base(exchange.request(), &components, &parameters).unwrap(),
        "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\
         \"@method\": POST\n\
         \"@path\": /foo\n\
         \"@authority\": example.com\n\
         \"content-type\": application/json\n\
         \"content-length\": 18\n\
         \"@signature-params\": (\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \
         \"content-length\");created=1618884473;keyid=\"test-key-ed25519\""
    );
    assert_eq!(
        sign(table, request()).signature,
        "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:"
    );
}

#[test]
fn ecdsa_signatures_verify() {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let der = pair.to_pkcs8v1().unwrap();
    let pem =
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----", STANDARD.encode(der.as_ref()));
    let secret = portcullis_plugin::Secret::new(pem.into_bytes());
    let key = Key::parse(Algorithm::EcdsaP256Sha256, KeyEncoding::Raw, &secret).unwrap();
    let signature = key.sign(b"text").unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pair.public_key().as_ref());
    public.verify(b"text", &signature).unwrap();
}

#[test]
fn derived_components_are_normalised() {
    let plugin = build(json!({"algorithm": "hmac-sha256", "key": "env:SHARED"}));
    let exchange = ExchangeBuilder::get("/a%2Fb")
        .header("host", "Example.COM:443")
        .header("x-many", " a ")
        .header("x-many", "b")
        .build();
    for (component, value) in [
        ("@authority", "example.com"),
        ("@query", "?"),
        ("@target-uri", "https://example.com/a%2Fb"),
        ("@request-target", "/a%2Fb"),
        ("@scheme", "https"),
        ("x-many", "a, b"),
    ] {
        let component = Component::parse("c", component).unwrap();
        assert_eq!(plugin.value(&component, exchange.request()).unwrap(), value, "{component:?}");
    }
}

fn headers(plugin: &TestedPlugin, exchange: &mut Exchange) -> (String, String) {
    assert!(matches!(plugin.call(HookName::OnUpstream, exchange), Ok(Decision::Continue)));
    let outgoing = exchange.outgoing().unwrap();
    let text = |name| outgoing.header(name).unwrap_or_default().to_owned();
    (text(&SIGNATURE_INPUT), text(&CONTENT_DIGEST))
}

#[test]
fn what_goes_out_is_signed_with_all_parameters_in_place_of_the_clients_signature() {
    let plugin = tester()
        .build::<Sign>(json!({
            "algorithm": "hmac-sha256", "key": "env:SHARED", "key_id": "k", "expires": "60s", "nonce": true,
            "state_algorithm": true, "digest": true, "if_present": ["content-type", "x-absent"],
        }))
        .unwrap();
    assert!(matches!(plugin.plugin().needs().request_body, BodyWish::Whole { .. }));
    let mut exchange = request()
        .header("signature", "sig=:AAAA:")
        .principal(Principal::default())
        .attempt("api", "192.0.2.1:443")
        .build();
    let (input, digest) = headers(&plugin, &mut exchange);
    let names = "(\"@method\" \"@authority\" \"@path\" \"@query\" \"content-digest\" \"content-type\")";
    assert!(input.starts_with(&format!("sig={names};created=")), "{input}");
    assert!(input.contains(";expires=") && input.contains(";nonce=\""), "{input}");
    assert!(input.ends_with(";keyid=\"k\";alg=\"hmac-sha256\""), "{input}");
    // The sha-256 of RFC 9530, B.1, for the same content.
    assert_eq!(digest, "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:");
    let signatures = exchange.outgoing().unwrap().headers().get_all(SIGNATURE);
    assert_eq!(signatures.iter().count(), 1);
    assert!(!exchange.request().headers().contains_key(SIGNATURE_INPUT), "only the attempt is changed");
}

#[test]
fn a_long_body_is_hashed_elsewhere_while_the_thread_goes_on() {
    let mut tester = tester().holding_offloaded();
    let table = json!({"algorithm": "hmac-sha256", "key": "env:SHARED", "digest": true});
    let plugin = tester.build::<Sign>(table).unwrap();
    let attempt = |length: usize| request().body("x".repeat(length)).attempt("api", "192.0.2.1:443").build();
    let mut long = attempt(AT_ONCE + 1);
    let Hook::Wait(mut wait) = plugin.plugin().on_upstream(&mut long) else { panic!("it did not wait") };
    let mut context = Context::from_waker(Waker::noop());
    assert!(wait.as_mut().poll(&mut context).is_pending());
    let mut other = attempt(AT_ONCE);
    assert!(matches!(plugin.plugin().on_upstream(&mut other), Hook::Ready(Ok(Decision::Continue))));
    assert_eq!(tester.run_offloaded(), 1);
    assert!(matches!(wait.as_mut().poll(&mut context), Poll::Ready(Ok(Decision::Continue))));
    drop(wait);
    let digest = long.outgoing().unwrap().header(&CONTENT_DIGEST).map(str::to_owned);
    assert_eq!(digest, Some(content_digest("x".repeat(AT_ONCE + 1).as_bytes())));
}

#[test]
fn a_missing_component_is_a_failure() {
    let plugin = tester()
        .build::<Sign>(json!({"algorithm": "hmac-sha256", "key": "env:SHARED", "components": ["x-absent"]}))
        .unwrap();
    let mut exchange = request().attempt("api", "192.0.2.1:443").build();
    let error = plugin.call(HookName::OnUpstream, &mut exchange).unwrap_err();
    assert_eq!(error.message(), "the request has no `x-absent` to sign");
}

#[test]
fn what_cannot_sign_is_refused_at_build() {
    let error = |table: Value| tester().secret("SHORT", "c2hvcnQ=").build::<Sign>(table).err().unwrap();
    let with = |key: &str, value: Value| {
        let mut table = json!({"algorithm": "hmac-sha256", "key": "env:SHARED"});
        table[key] = value;
        table
    };
    for (table, path) in [
        (with("key", "env:NONE".into()), "key"),
        (with("key", "env:SHORT".into()), "key"),
        (with("key", "env:ED25519".into()), "key"),
        (with("algorithm", "ed25519".into()), "key"),
        (with("components", json!(["@method", "@status"])), "components[1]"),
        (with("components", json!([])), "components"),
        (with("components", json!(["date", "Date"])), "components[1]"),
        (with("if_present", json!(["signature"])), "if_present[0]"),
        (with("label", "Sig".into()), "label"),
        (with("key_id", "a\"b".into()), "key_id"),
    ] {
        let error = error(table);
        assert_eq!(error.path, path, "{error}");
        assert!(!error.to_string().contains("c2hvcnQ"), "{error}");
    }
}

#[test]
fn signing_the_length_is_remarked_on() {
    let mut tester = tester();
    tester
        .build::<Sign>(
            json!({"algorithm": "hmac-sha256", "key": "env:SHARED", "components": ["content-length"]}),
        )
        .unwrap();
    assert_eq!(tester.warnings()[0].path, "components[0]");
}
