//! Signatures that the standards print.

use super::*;
use crate::jwt::keys::Origin;
use crate::jwt::token::ALGORITHMS;

/// The modulus of RFC 7515, A.2.1.
const RFC7515_N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";

/// The claims of RFC 7515, A.1.1.
const RFC7515_CLAIMS: &str =
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";

/// The modulus of RFC 7520, 3.3.
const RFC7520_N: &str = "n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw";

/// The payload of RFC 7520, 4.
const RFC7520_PAYLOAD: &str = "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4";

/// A header, a payload and a signature, and the key that made it.
fn vectors() -> Vec<(&'static str, &'static str, &'static str, &'static str, Value)> {
    let rsa = |n: &str| json!({ "kty": "RSA", "n": n, "e": "AQAB" });
    vec![
        (
            "HS256",
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
            RFC7515_CLAIMS,
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
            json!({ "kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow" }),
        ),
        (
            "RS256",
            "eyJhbGciOiJSUzI1NiJ9",
            RFC7515_CLAIMS,
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
            rsa(RFC7515_N),
        ),
        (
            "ES256",
            "eyJhbGciOiJFUzI1NiJ9",
            RFC7515_CLAIMS,
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
            json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" }),
        ),
        (
            "EdDSA",
            "eyJhbGciOiJFZERTQSJ9",
            "RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
            json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" }),
        ),
        (
            "RS256",
            "eyJhbGciOiJSUzI1NiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9",
            RFC7520_PAYLOAD,
            "MRjdkly7_-oTPTS3AXP41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp83xuglII7PNDi84wnB-BDkoBwA78185hX-Es4JIwmDLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6x8wW1Kt9eRo4QPocSadnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI-ZnmKJ3F4uOZDnd6QZWJushZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg",
            rsa(RFC7520_N),
        ),
        (
            "PS384",
            "eyJhbGciOiJQUzM4NCIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9",
            RFC7520_PAYLOAD,
            "cu22eBqkYDKgIlTpzDXGvaFfz6WGoz7fUDcfT0kkOy42miAh2qyBzk1xEsnk2IpN6-tPid6VrklHkqsGqDqHCdP6O8TTB5dDDItllVo6_1OLPpcbUrhiUSMxbbXUvdvWXzg-UD8biiReQFlfz28zGWVsdiNAUf8ZnyPEgVFn442ZdNqiVJRmBqrYRXe8P_ijQ7p8Vdz0TTrxUeT3lm8d9shnr2lfJT8ImUjvAA2Xez2Mlp8cBE5awDzT0qI0n6uiP1aCN_2_jLAeQTlqRHtfa64QQSUmFAAjVKPbByi7xho0uTOcbH510a6GYmJUAfmWjwZ6oD4ifKo8DYM-X72Eaw",
            rsa(RFC7520_N),
        ),
        (
            "HS256",
            "eyJhbGciOiJIUzI1NiIsImtpZCI6IjAxOGMwYWU1LTRkOWItNDcxYi1iZmQ2LWVlZjMxNGJjNzAzNyJ9",
            RFC7520_PAYLOAD,
            "s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0",
            json!({ "kty": "oct", "k": "hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg" }),
        ),
    ]
}

#[test]
fn the_standards_examples_verify_and_nothing_near_them() {
    for (name, header, payload, signature, jwk) in vectors() {
        let keys = KeySet::from_object(jwk.as_object().unwrap(), Origin::File).unwrap();
        let algorithm = ALGORITHMS.iter().find(|(known, _)| *known == name).unwrap().1;
        let message = format!("{header}.{payload}");
        let verify = |message: &str, signature: &str, algorithm| {
            let (header, claims) = Default::default();
            keys.verify(&Token { header, algorithm: Some(algorithm), claims, message, signature }, algorithm)
        };
        assert_eq!(verify(&message, signature, algorithm), Ok(()), "{name} of {header}");
        let changed = format!("{header}.{}", payload.replacen('X', "Y", 1).replacen('e', "f", 1));
        assert_eq!(verify(&changed, signature, algorithm).unwrap_err().refusal, Refusal::Signature);
        let mut other = signature.to_owned();
        let first = if other.starts_with('A') { "B" } else { "A" };
        other.replace_range(..1, first);
        assert_eq!(verify(&message, &other, algorithm).unwrap_err().refusal, Refusal::Signature);
        for (_, wrong) in ALGORITHMS.iter().filter(|(other, _)| *other != name) {
            assert!(verify(&message, signature, *wrong).is_err(), "{name} as {wrong:?}");
        }
    }
}

#[test]
fn a_whole_token_of_the_standard_is_read_and_has_ended() {
    let (_, header, payload, signature, jwk) = vectors().swap_remove(2);
    let token = format!("{header}.{payload}.{signature}");
    let mut table = table(json!(["ES256"]), json!([{ "jwk": jwk }]));
    table["issuers"][0]["issuer"] = json!("joe");
    table["issuers"][0]["audience"] = json!([]);
    table["issuers"][0]["require"] = json!({ "http://example.com/is_root": true });
    table["issuers"][0]["id"] = json!("iss");
    let mut tester = tester();
    let plugin = tester.build::<Jwt>(table).unwrap();
    assert_eq!(refusal(&plugin, &mut with(&token)), refused("expired"));
    tester.set_time(Duration::from_secs(1_300_819_379));
    let mut exchange = with(&token);
    assert_eq!(refusal(&plugin, &mut exchange), None);
    assert_eq!(exchange.principal().unwrap().id, "joe");
}
