//! What is known of a key, and how a new one is made.

use std::time::SystemTime;

use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis_plugin::{BuildError, Principal, Secret, SourceFile, SourcePosition};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How a hash begins.
const PREFIX: &str = "hmac-sha256:";

/// How a key begins, for whoever searches for keys that were left lying about.
const MARK: &str = "pck_";

/// Random bytes of a key.
const RANDOM: usize = 32;

/// The shortest secret: as long as the hash (RFC 2104, 3).
const MIN_SECRET: usize = 32;

pub(super) type Digest = [u8; 32];

/// A key as it is kept.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyConfig {
    /// Its hash, `hmac-sha256:` and 43 characters, as `portcullis key new` prints it.
    hash: String,
    /// Whose key it is.
    id: String,
    /// Roles of whoever has it. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    /// Scopes that it grants. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scopes: Vec<String>,
    /// When it ends to hold, e.g. `2031-01-31T00:00:00Z` (RFC 3339). Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    /// What else is known, which policies see as claims. Default: nothing.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    metadata: Map<String, Value>,
}

/// A key as it is looked up.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) digest: Digest,
    pub(super) principal: Principal,
    pub(super) expires: Option<SystemTime>,
}

impl KeyConfig {
    /// The error names the field.
    pub(super) fn known(self, issuer: &str) -> Result<Known, (&'static str, String)> {
        let hash = self.hash.strip_prefix(PREFIX).and_then(|hash| URL_SAFE_NO_PAD.decode(hash).ok());
        let digest = hash.and_then(|hash| Digest::try_from(hash).ok()).ok_or_else(|| {
            let message = format!(
                "a hash is `{PREFIX}` and 43 characters of base64url; `portcullis key new` prints one"
            );
            ("hash", message)
        })?;
        if self.id.is_empty() {
            return Err(("id", "whose key it is must be said".to_owned()));
        }
        let expires = self.expires.as_deref().map(humantime::parse_rfc3339).transpose();
        let expires =
            expires.map_err(|_| ("expires", "a moment is written `2031-01-31T00:00:00Z`".to_owned()))?;
        let principal = Principal {
            id: self.id,
            issuer: issuer.to_owned(),
            roles: self.roles,
            scopes: self.scopes,
            claims: self.metadata,
        };
        Ok(Known { digest, principal, expires })
    }
}

/// The keys of a file, one a line.
pub(super) fn read(at: &str, file: &SourceFile, issuer: &str) -> Result<Vec<Known>, BuildError> {
    let text = file.text().map_err(|message| BuildError::at(at, message))?;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with('#')
    });
    let key = |(number, line): (usize, &str)| {
        let error = |column: usize, message: String| {
            let position = SourcePosition {
                file: file.path.clone(),
                text: text.into(),
                line: number + 1,
                column: column.max(1),
            };
            let help = "a line is as `portcullis key new` prints it: {\"hash\": \"hmac-sha256:..\", \"id\": \"ann\"}";
            BuildError::at(at, message).help(help).within(position)
        };
        let config: KeyConfig = serde_json::from_str(line).map_err(|wrong| {
            let message = wrong.to_string();
            let end = message.rfind(" at line ").unwrap_or(message.len());
            error(wrong.column(), message[..end].to_owned())
        })?;
        config.known(issuer).map_err(|(field, message)| {
            let column = line.find(&format!("\"{field}\"")).map_or(1, |at| line[..at].chars().count() + 1);
            error(column, format!("{field}: {message}"))
        })
    };
    lines.map(key).collect()
}

/// What keys are hashed under.
pub struct HashKey(hmac::Key);

impl HashKey {
    /// From a secret.
    ///
    /// # Errors
    ///
    /// If it is shorter than 32 bytes.
    pub fn new(secret: &Secret) -> Result<Self, String> {
        match secret.expose().len() {
            MIN_SECRET.. => Ok(HashKey(hmac::Key::new(hmac::HMAC_SHA256, secret.expose()))),
            length => Err(format!("a secret of {length} bytes is too short, {MIN_SECRET} are the least")),
        }
    }

    pub(super) fn digest(&self, key: &str) -> Digest {
        let mut digest = Digest::default();
        digest.copy_from_slice(hmac::sign(&self.0, key.as_bytes()).as_ref());
        digest
    }
}

/// A key that was just made. It is printed once and kept nowhere.
pub struct NewKey {
    /// The key, for whoever will use it.
    pub key: String,
    /// What the gateway keeps of it, one line of JSON.
    pub line: String,
}

impl NewKey {
    /// A random key for `id`.
    ///
    /// # Errors
    ///
    /// If `expires` is no moment (RFC 3339), or there are no random numbers.
    pub fn make(
        hash_key: &HashKey,
        id: &str,
        roles: Vec<String>,
        scopes: Vec<String>,
        expires: Option<String>,
        metadata: Map<String, Value>,
    ) -> Result<Self, String> {
        let mut random = [0; RANDOM];
        rand::fill(&mut random).map_err(|_| "no random numbers")?;
        let key = format!("{MARK}{}", URL_SAFE_NO_PAD.encode(random));
        let hash = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(hash_key.digest(&key)));
        let config = KeyConfig { hash, id: id.to_owned(), roles, scopes, expires, metadata };
        let line = serde_json::to_string(&config).map_err(|error| error.to_string())?;
        config.known("").map_err(|(field, message)| format!("{field}: {message}"))?;
        Ok(NewKey { key, line })
    }
}
