//! Keys and algorithms of signatures.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portcullis_plugin::{BuildError, Secret};
use schemars::JsonSchema;
use serde::Deserialize;

/// The shortest shared secret: as long as the hash (RFC 2104, 3).
const MIN_SECRET: usize = 32;

/// Signature algorithms, by their registered names (RFC 9421, 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Algorithm {
    /// A secret that both sides know.
    HmacSha256,
    /// EdDSA over Curve25519.
    Ed25519,
    /// ECDSA over P-256.
    EcdsaP256Sha256,
}

impl Algorithm {
    pub(super) fn name(self) -> &'static str {
        match self {
            Algorithm::HmacSha256 => "hmac-sha256",
            Algorithm::Ed25519 => "ed25519",
            Algorithm::EcdsaP256Sha256 => "ecdsa-p256-sha256",
        }
    }
}

/// How a shared secret is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyEncoding {
    /// In base64 (RFC 4648, 4).
    #[default]
    Base64,
    /// As it is.
    Raw,
}

/// A key, ready to sign.
pub(super) enum Key {
    Hmac(Box<hmac::Key>),
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
}

impl Key {
    /// Reads the key from its secret.
    pub(super) fn parse(
        algorithm: Algorithm,
        encoding: KeyEncoding,
        secret: &Secret,
    ) -> Result<Self, BuildError> {
        // The cause may quote the key, so it is left out.
        let wrong = |what: &str| {
            BuildError::at("key", format!("not a private key for `{}`: {what}", algorithm.name()))
                .help("write it as PKCS#8 in PEM, which begins with `-----BEGIN PRIVATE KEY-----`")
        };
        match algorithm {
            Algorithm::HmacSha256 => {
                let secret = shared_secret(encoding, secret)?;
                Ok(Key::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, &secret))))
            }
            Algorithm::Ed25519 => {
                let der = pem(secret).ok_or_else(|| wrong("no PEM"))?;
                Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
                    .map(Key::Ed25519)
                    .map_err(|_| wrong("another kind of key, or damaged"))
            }
            Algorithm::EcdsaP256Sha256 => {
                let der = pem(secret).ok_or_else(|| wrong("no PEM"))?;
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
                    .map(Key::Ecdsa)
                    .map_err(|_| wrong("another kind of key, or damaged"))
            }
        }
    }

    /// The signature of `text`.
    pub(super) fn sign(&self, text: &[u8]) -> Result<Vec<u8>, &'static str> {
        match self {
            Key::Hmac(key) => Ok(hmac::sign(key, text).as_ref().to_vec()),
            Key::Ed25519(pair) => Ok(pair.sign(text).as_ref().to_vec()),
            Key::Ecdsa(pair) => pair
                .sign(&SystemRandom::new(), text)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_| "the signature could not be made"),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[key]")
    }
}

fn shared_secret(encoding: KeyEncoding, secret: &Secret) -> Result<Vec<u8>, BuildError> {
    let secret = match encoding {
        KeyEncoding::Raw => secret.expose().to_vec(),
        KeyEncoding::Base64 => STANDARD.decode(secret.expose().trim_ascii()).map_err(|_| {
            BuildError::at("key", "the shared secret is not base64").help("or set `key_encoding: raw`")
        })?,
    };
    match secret.len() < MIN_SECRET {
        true => Err(BuildError::at("key", format!("the shared secret has less than {MIN_SECRET} bytes"))
            .help("make one with `openssl rand -base64 32`")),
        false => Ok(secret),
    }
}

/// What stands in the PEM block of a PKCS#8 private key (RFC 7468, 10).
fn pem(secret: &Secret) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(secret.expose()).ok()?;
    let (_, text) = text.split_once("-----BEGIN PRIVATE KEY-----")?;
    let (text, _) = text.split_once("-----END PRIVATE KEY-----")?;
    STANDARD.decode(text.split_ascii_whitespace().collect::<String>()).ok()
}
