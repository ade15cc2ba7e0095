//! What a reload has to pass, and what is recorded for that.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::seconds;
use crate::values::{ByteSize, Duration, HeaderName, Percent, positive};

/// What a reload, and the start, has to pass before it applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Reload {
    /// What becomes of a reload whose policies fail their own tests: the `.test.yaml` beside a script, a module or this
    /// file. `enforce` refuses it, `warn` only says so, `off` runs none. Default `enforce`.
    pub tests: TestGate,
    /// How many of the requests that were recorded (`replay`) may end in another way than with what runs; with more the
    /// reload is refused. Default: any number, nobody looks. Example: `0`.
    pub max_flips: Option<u32>,
    /// How long the tests of a reload may take together, and so long what was recorded; then they have failed.
    /// Default `30s`.
    #[serde(deserialize_with = "positive")]
    pub timeout: Duration,
}

/// Requests that are recorded as they came, for `portcullis replay` and `reload.max_flips`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// The file, relative to this one. Whoever may read it reads what clients send. Example: `replay.jsonl`.
    pub file: PathBuf,
    /// How many requests, by lot. Default `1%`.
    #[serde(default = "one_percent")]
    pub percent: Percent,
    /// Size of the file together with the one before it (`.1`); the oldest requests go first. Default `64MiB`.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: ByteSize,
    /// Longest body that is recorded, of those that a plugin has read whole. Default `64KiB`.
    #[serde(default = "default_max_body")]
    pub max_body: ByteSize,
    /// Headers whose values are not recorded. Default
    /// `[authorization, proxy-authorization, cookie, x-api-key, x-auth-token]`.
    #[serde(default = "default_redact")]
    pub redact: Vec<HeaderName>,
    /// Parameters of the query whose values are not recorded. Default
    /// `[access_token, api_key, apikey, code, key, password, secret, sig, signature, token]`.
    #[serde(default = "default_redact_query")]
    pub redact_query: Vec<String>,
}

fn one_percent() -> Percent {
    Percent(1)
}

fn default_max_bytes() -> ByteSize {
    ByteSize(64 << 20)
}

fn default_max_body() -> ByteSize {
    ByteSize(64 << 10)
}

fn default_redact() -> Vec<HeaderName> {
    let names = ["authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token"];
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

fn default_redact_query() -> Vec<String> {
    ["access_token", "api_key", "apikey", "code", "key", "password", "secret", "sig", "signature", "token"]
        .map(str::to_owned)
        .to_vec()
}

/// What failing tests do to a reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TestGate {
    /// It is refused.
    #[default]
    Enforce,
    /// They are told as warnings.
    Warn,
    /// Nobody runs them.
    Off,
}

impl Default for Reload {
    fn default() -> Self {
        Self { tests: TestGate::Enforce, max_flips: None, timeout: seconds(30) }
    }
}
