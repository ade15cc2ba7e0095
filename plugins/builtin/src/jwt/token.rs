//! Reads a token in the compact form (RFC 7515, 3.1), strictly: what could be read in two ways is no token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::Refusal;
use crate::strict;

/// How deep claims may be nested.
const MAX_DEPTH: usize = 16;

/// A longer key id is none that anybody published.
const MAX_KID: usize = 256;

/// Every algorithm there is (RFC 7518, 3.1; RFC 8037, 3.1), without `none`.
pub(super) const ALGORITHMS: [(&str, Algorithm); 12] = [
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// A token whose parts were read and of which nothing is proven.
#[derive(Debug)]
pub(super) struct Token<'t> {
    /// What stands in the header, for who explains it.
    pub(super) header: Map<String, Value>,
    /// None if this program knows no such algorithm, as `none`.
    pub(super) algorithm: Option<Algorithm>,
    pub(super) claims: Map<String, Value>,
    /// Header and payload as they were signed.
    pub(super) message: &'t str,
    pub(super) signature: &'t str,
}

/// Why something does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) refusal: Refusal,
    /// For whoever asks why; tells nothing of signature and keys.
    pub(super) why: String,
}

impl Wrong {
    pub(super) fn new(refusal: Refusal, why: impl Into<String>) -> Self {
        Wrong { refusal, why: why.into() }
    }
}

fn malformed(why: impl Into<String>) -> Wrong {
    Wrong::new(Refusal::Malformed, why)
}

impl<'t> Token<'t> {
    pub(super) fn read(text: &'t str, max_bytes: usize) -> Result<Self, Wrong> {
        if text.len() > max_bytes {
            return Err(malformed(format!(
                "it has {} bytes, more than the {max_bytes} of `max_token`",
                text.len()
            )));
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            let count = text.split('.').count();
            return Err(malformed(format!("a token has three parts, this has {count}")));
        };
        let message = &text[..header.len() + 1 + payload.len()];
        let header = object("the header", header)?;
        if URL_SAFE_NO_PAD.decode(signature).is_err() {
            return Err(malformed("the signature is not base64url"));
        }
        if header.contains_key("crit") {
            // RFC 7515, 4.1.11: what is not understood must be refused, and no extension is.
            return Err(malformed("the header has `crit`, and no extension is known"));
        }
        let Some(algorithm) = header.get("alg").and_then(Value::as_str) else {
            return Err(malformed("the header has no `alg`"));
        };
        let algorithm = ALGORITHMS.iter().find(|(name, _)| *name == algorithm).map(|(_, known)| *known);
        match header.get("kid") {
            None => {}
            Some(Value::String(kid)) if kid.len() <= MAX_KID => {}
            Some(Value::String(_)) => return Err(malformed("`kid` is longer than 256 bytes")),
            Some(_) => return Err(malformed("`kid` is not text")),
        }
        if header.get("typ").is_some_and(|typ| !typ.is_string()) {
            return Err(malformed("`typ` is not text"));
        }
        let claims = object("the payload", payload)?;
        Ok(Token { header, algorithm, claims, message, signature })
    }

    pub(super) fn kid(&self) -> Option<&str> {
        self.header.get("kid").and_then(Value::as_str)
    }

    /// Who says that they issued it, which is good for choosing whose keys to try and for nothing else.
    pub(super) fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }
}

/// One part of a token: base64url without padding and stray bits, of a JSON object without repeated names.
fn object(what: &str, part: &str) -> Result<Map<String, Value>, Wrong> {
    let text = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| malformed(format!("{what} is not base64url (RFC 7515, 2)")))?;
    match strict::parse(&text, MAX_DEPTH) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(malformed(format!("{what} is no object"))),
        Err(strict::Fault::Malformed) => Err(malformed(format!("{what} is not JSON"))),
        Err(strict::Fault::DuplicateKey) => Err(malformed(format!("{what} has a name twice"))),
        Err(strict::Fault::TooDeep) => Err(malformed(format!("{what} is nested too deep"))),
    }
}
