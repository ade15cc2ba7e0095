//! Keys, each good for the algorithms of its own type alone, and the forms in which they are published.

use aws_lc_rs::rsa::PublicKey;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RsaPublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use portcullis_plugin::Secret;
use serde_json::{Map, Value};

use super::Refusal;
use super::token::{ALGORITHMS, Token, Wrong};
use crate::strict;

/// Keys of one set.
pub(super) const MAX_KEYS: usize = 64;

/// Keys that are tried for a token that names none: each costs up to 150 us, and all of it is the worker's time.
const MAX_TRIES: usize = 3;

/// Bits of an RSA key (RFC 7518, 3.3), and what more of would only cost time.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// How deep the objects of a key set may be nested.
const MAX_DEPTH: usize = 8;

/// What a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Shared, of so many bytes.
    Shared(usize),
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Kind {
    /// Whether keys of this type are for the algorithm. A shared one is at least as long as the hash (RFC 7518, 3.2).
    fn is_for(self, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::HS256 => matches!(self, Kind::Shared(32..)),
            Algorithm::HS384 => matches!(self, Kind::Shared(48..)),
            Algorithm::HS512 => matches!(self, Kind::Shared(64..)),
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => self == Kind::Rsa,
            Algorithm::ES256 => self == Kind::P256,
            Algorithm::ES384 => self == Kind::P384,
            Algorithm::EdDSA => self == Kind::Ed25519,
            _ => false,
        }
    }
}

/// A key that signatures are verified with.
#[derive(Debug)]
pub(super) struct Key {
    kid: Option<String>,
    kind: Kind,
    /// The one that it says it is for.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// The keys of one source.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

/// Where a set comes from, which decides what may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The configuration: nothing secret.
    Config,
    /// A file, which may hold shared keys.
    File,
    /// Somebody else's answer: what is not understood is passed over (RFC 7517, 5), shared keys are too.
    Remote,
}

impl Key {
    /// Whether a token with this header may be verified with it.
    fn fits(&self, kid: Option<&str>, algorithm: Algorithm) -> bool {
        let named = kid.is_none() || self.kid.is_none() || self.kid.as_deref() == kid;
        named && self.is_for(algorithm)
    }

    fn is_for(&self, algorithm: Algorithm) -> bool {
        self.kind.is_for(algorithm) && self.algorithm.is_none_or(|only| only == algorithm)
    }

    /// A shared key.
    pub(super) fn shared(secret: &Secret) -> Self {
        let bytes = secret.expose();
        Key {
            kid: None,
            kind: Kind::Shared(bytes.len()),
            algorithm: None,
            key: DecodingKey::from_secret(bytes),
        }
    }

    fn rsa(n: &[u8], e: &[u8]) -> Result<(Kind, DecodingKey), String> {
        let leading = n.first().map_or(0, |first| first.leading_zeros() as usize);
        let bits = (n.len() * 8).saturating_sub(leading);
        if leading == 8 || !RSA_BITS.contains(&bits) {
            let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
            return Err(format!("an RSA key of {bits} bits is not used, {least} to {most} are"));
        }
        if !matches!(e, [1, 0, 1] | [3 | 17]) {
            return Err("the exponent of an RSA key is 65537, 17 or 3".to_owned());
        }
        Ok((Kind::Rsa, DecodingKey::from_rsa_raw_components(n, e)))
    }

    fn elliptic(kind: Kind, point: &[u8]) -> Result<(Kind, DecodingKey), String> {
        let parsed = match kind {
            Kind::P256 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point),
            Kind::P384 => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point),
            _ => ParsedPublicKey::new(&ED25519, point),
        };
        parsed.map_err(|_| "its point is not on the curve".to_owned())?;
        let key = match kind {
            Kind::Ed25519 => DecodingKey::from_ed_der(point),
            _ => DecodingKey::from_ec_der(point),
        };
        Ok((kind, key))
    }

    /// One key of a set (RFC 7517, 4); none if it is not one that signatures are verified with.
    pub(super) fn from_jwk(jwk: &Map<String, Value>, origin: Origin) -> Result<Option<Self>, String> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| {
            let part = text(name).ok_or_else(|| format!("it has no `{name}`"))?;
            URL_SAFE_NO_PAD.decode(part).map_err(|_| format!("its `{name}` is not base64url"))
        };
        let verifies = |operation: &Value| operation == "verify";
        let may = |operations: &Value| operations.as_array().is_some_and(|all| all.iter().any(verifies));
        if text("use").is_some_and(|usage| usage != "sig") || jwk.get("key_ops").is_some_and(|all| !may(all))
        {
            return Ok(None);
        }
        if jwk.contains_key("d") && origin != Origin::Remote {
            return Err("it is a private key; who verifies has no use for that".to_owned());
        }
        let algorithm = match text("alg") {
            None => None,
            Some(name) => match ALGORITHMS.iter().find(|(known, _)| *known == name) {
                Some((_, algorithm)) => Some(*algorithm),
                None => return Ok(None),
            },
        };
        let (kind, key) = match (text("kty"), text("crv")) {
            (Some("RSA"), _) => Self::rsa(&bytes("n")?, &bytes("e")?)?,
            (Some("EC"), Some("P-256")) => {
                Self::elliptic(Kind::P256, &point(&bytes("x")?, &bytes("y")?, 32)?)?
            }
            (Some("EC"), Some("P-384")) => {
                Self::elliptic(Kind::P384, &point(&bytes("x")?, &bytes("y")?, 48)?)?
            }
            (Some("OKP"), Some("Ed25519")) => Self::elliptic(Kind::Ed25519, &bytes("x")?)?,
            (Some("oct"), _) if origin == Origin::File => {
                let secret = bytes("k")?;
                (Kind::Shared(secret.len()), DecodingKey::from_secret(&secret))
            }
            (Some("oct"), _) if origin == Origin::Config => {
                return Err(
                    "a shared key does not stand in the configuration; `secret: env:NAME` does".to_owned()
                );
            }
            _ => return Ok(None),
        };
        let kid = text("kid").map(str::to_owned);
        let key = Key { kid, kind, algorithm, key };
        match algorithm {
            Some(algorithm) if !kind.is_for(algorithm) => {
                Err(format!("a key of this type is not for {algorithm:?}"))
            }
            _ => Ok(Some(key)),
        }
    }

    fn from_spki(der: &[u8]) -> Result<Self, String> {
        let (kind, key) = spki(der).ok_or("it is no public key (RFC 5280, 4.1)")??;
        Ok(Key { kid: None, kind, algorithm: None, key })
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, String> {
        let (kind, key) = pkcs1(der)?;
        Ok(Key { kid: None, kind, algorithm: None, key })
    }
}

/// A point as it is written out in full (SEC 1, 2.3.3).
fn point(x: &[u8], y: &[u8], length: usize) -> Result<Vec<u8>, String> {
    if x.len() != length || y.len() != length {
        return Err(format!("coordinates on its curve have {length} bytes"));
    }
    Ok([&[4], x, y].concat())
}

fn pkcs1(der: &[u8]) -> Result<(Kind, DecodingKey), String> {
    let key = PublicKey::from_der(der).map_err(|_| "it is no RSA key")?;
    let RsaPublicKeyComponents { n, e } = RsaPublicKeyComponents::<Vec<u8>>::from(&key);
    Key::rsa(&n, &e)
}

/// A SubjectPublicKeyInfo; none if it is not well-formed.
fn spki(der: &[u8]) -> Option<Result<(Kind, DecodingKey), String>> {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
    const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
    const ON_P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    const ON_P384: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x22];
    const ED: &[u8] = &[0x2b, 0x65, 0x70];
    let (whole, rest) = element(0x30, der)?;
    let (algorithm, after) = element(0x30, whole)?;
    let (id, parameters) = element(6, algorithm)?;
    let (bits, end) = element(3, after)?;
    let (0, key) = bits.split_first().map(|(unused, key)| (*unused, key))? else { return None };
    if !rest.is_empty() || !end.is_empty() {
        return None;
    }
    Some(match (id, parameters) {
        (RSA, _) => pkcs1(key),
        (EC, ON_P256) if key.len() == 65 => Key::elliptic(Kind::P256, key),
        (EC, ON_P384) if key.len() == 97 => Key::elliptic(Kind::P384, key),
        (ED, []) => Key::elliptic(Kind::Ed25519, key),
        _ => Err("keys are RSA, P-256, P-384 or Ed25519".to_owned()),
    })
}

/// The content of the element of DER that `der` begins with, which has this tag, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = der.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match *length {
        short @ ..=0x7f => (usize::from(short), rest),
        0x81 => rest.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        0x82 => {
            rest.split_first_chunk().map(|(length, rest)| (usize::from(u16::from_be_bytes(*length)), rest))?
        }
        _ => return None,
    };
    (*first == tag).then_some(())?;
    rest.split_at_checked(length)
}

impl KeySet {
    /// The keys of a text: PEM, one or several, or a JWK, or a set of them.
    pub(super) fn read(text: &[u8], origin: Origin) -> Result<Self, String> {
        match std::str::from_utf8(text) {
            Ok(pem) if pem.contains("-----BEGIN ") => Self::from_pem(pem),
            _ => Self::from_json(text, origin),
        }
    }

    fn from_json(text: &[u8], origin: Origin) -> Result<Self, String> {
        match strict::parse(text, MAX_DEPTH) {
            Ok(Value::Object(object)) => Self::from_object(&object, origin),
            Err(strict::Fault::DuplicateKey) => {
                Err("a name stands twice in an object of the key set".to_owned())
            }
            _ => Err("that is no key set (RFC 7517, 5) and no PEM".to_owned()),
        }
    }

    /// A JWK, or a set.
    pub(super) fn from_object(object: &Map<String, Value>, origin: Origin) -> Result<Self, String> {
        let Some(keys) = object.get("keys") else {
            let key = Key::from_jwk(object, origin)?;
            return key
                .map(|key| KeySet(vec![key]))
                .ok_or_else(|| "no signature is verified with that key".into());
        };
        let keys = keys.as_array().ok_or("`keys` is no list")?;
        if keys.len() > MAX_KEYS {
            return Err(format!("{} keys are too many, {MAX_KEYS} are the most", keys.len()));
        }
        let mut set = Vec::new();
        for (number, key) in keys.iter().enumerate() {
            let read = key.as_object().ok_or_else(|| "it is no object".to_owned());
            match read.and_then(|key| Key::from_jwk(key, origin)) {
                Ok(key) => set.extend(key),
                Err(_) if origin == Origin::Remote => {}
                Err(message) => return Err(format!("key {number}: {message}")),
            }
        }
        Ok(KeySet(set))
    }

    fn from_pem(text: &str) -> Result<Self, String> {
        let mut set = Vec::new();
        let mut rest = text;
        while let Some((_, begun)) = rest.split_once("-----BEGIN ") {
            let (label, body) = begun.split_once("-----").ok_or("a line of the PEM is cut off")?;
            let (body, after) =
                body.split_once(&format!("-----END {label}-----")).ok_or("the PEM does not end")?;
            rest = after;
            let base64: String = body.split_ascii_whitespace().collect();
            let der = STANDARD.decode(base64).map_err(|_| "the PEM is not base64")?;
            set.push(match label {
                "PUBLIC KEY" => Key::from_spki(&der)?,
                "RSA PUBLIC KEY" => Key::from_pkcs1(&der)?,
                label if label.contains("PRIVATE") => {
                    return Err("it is a private key; who verifies has no use for that".to_owned());
                }
                label => return Err(format!("a PEM of `{label}` is no public key")),
            });
        }
        match set.len() {
            ..=MAX_KEYS => Ok(KeySet(set)),
            many => Err(format!("{many} keys are too many, {MAX_KEYS} are the most")),
        }
    }

    pub(super) fn add(&mut self, other: KeySet) {
        self.0.extend(other.0);
    }

    pub(super) fn push(&mut self, key: Key) {
        self.0.push(key);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether any token could be verified, if it is of one of these algorithms.
    pub(super) fn has_any_for(&self, algorithms: &[Algorithm]) -> bool {
        self.0.iter().any(|key| algorithms.iter().any(|algorithm| key.is_for(*algorithm)))
    }

    /// Whether there is a key for a token with this header.
    pub(super) fn has(&self, kid: Option<&str>, algorithm: Algorithm) -> bool {
        self.0.iter().any(|key| key.fits(kid, algorithm))
    }

    /// Whether one of the keys made the token's signature, with this algorithm.
    pub(super) fn verify(&self, token: &Token<'_>, algorithm: Algorithm) -> Result<(), Wrong> {
        let mut fitting = self.0.iter().filter(|key| key.fits(token.kid(), algorithm)).peekable();
        if fitting.peek().is_none() {
            let named = token.kid().map(|kid| format!(" with the id `{}`", kid.escape_debug()));
            let why = format!("there is no key for {algorithm:?}{}", named.unwrap_or_default());
            return Err(Wrong::new(Refusal::UnknownKey, why));
        }
        let verifies = |key: &Key| {
            let verified =
                jsonwebtoken::crypto::verify(token.signature, token.message.as_bytes(), &key.key, algorithm);
            verified.unwrap_or(false)
        };
        match fitting.take(MAX_TRIES).any(verifies) {
            true => Ok(()),
            false => Err(Wrong::new(Refusal::Signature, "no key that fits has made the signature")),
        }
    }
}
