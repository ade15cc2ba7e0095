//! Where shared state is kept, and whose code is trusted.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::schema;
use crate::values::{Duration, Text, TextVisitor, expected, is_host_name, text_types};

/// Where plugins keep what several requests share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// In the process.
    #[default]
    Memory,
    /// In a file.
    File(StoreFile),
    /// In Redis or Valkey.
    Redis(Box<StoreRedis>),
}

/// A file, with how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFile {
    /// The file, relative to the configuration.
    pub path: PathBuf,
    /// How long one operation may take.
    pub timeout: Duration,
}

/// A Redis, with how long it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRedis {
    /// Where it is.
    pub redis: Redis,
    /// How long one operation may take.
    pub timeout: Duration,
}

/// The table of a store that is not memory: its form in the schema.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "`read.rs` reads it key by key")]
pub(crate) struct StoreTable {
    /// A file, relative to this one, in a directory that exists; made when it is needed. What it holds survives crashes
    /// and restarts. Default: none, it is `redis` then. Example: `/var/lib/portcullis/store.redb`.
    file: Option<PathBuf>,
    /// Redis or Valkey: the URL of one server, or a table. Default: none, it is `file` then. Example: `redis://127.0.0.1:6379`.
    #[schemars(schema_with = "schema::redis", default)]
    redis: Option<Redis>,
    /// How long one operation may take; then the plugin that asked has an error. Default `250ms`.
    #[schemars(default)]
    timeout: Option<Duration>,
}

/// A Redis or Valkey, version 6 or later.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// The server; of a cluster some of its nodes, with `sentinel` the sentinels. `rediss://` is TLS. Example:
    /// `[rediss://cache.internal:6379/0]`.
    #[schemars(length(min = 1))]
    pub urls: Vec<RedisUrl>,
    /// The servers are a cluster. Default `false`.
    #[serde(default)]
    pub cluster: bool,
    /// The URLs are sentinels', and this is the name by which they know the primary. Default: there are none. Example:
    /// `main`.
    #[serde(default)]
    pub sentinel: Option<String>,
    /// Name of the user. Default: Redis' default user. Example: `portcullis`.
    #[serde(default)]
    pub username: Option<String>,
    /// The password, named: `env:NAME` or `file:PATH`. Sentinels are asked without one. Default: none. Example:
    /// `env:REDIS_PASSWORD`.
    #[serde(default)]
    pub password: Option<SecretName>,
    /// PEM file with the authorities that `rediss://` servers' certificates must be of, relative to this file. Default: the
    /// system's. Example: `tls/redis-ca.pem`.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// What every key begins with. Gateways with the same prefix share state. Default `portcullis/`.
    #[serde(default = "prefix")]
    pub prefix: String,
}

fn prefix() -> String {
    "portcullis/".to_owned()
}

impl Redis {
    /// One server, with everything else at its default.
    pub(crate) fn at(url: RedisUrl) -> Self {
        Redis {
            urls: vec![url],
            cluster: false,
            sentinel: None,
            username: None,
            password: None,
            ca: None,
            prefix: prefix(),
        }
    }
}

/// Where a Redis is: `redis://HOST[:PORT][/DB]`, or `rediss://` for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisUrl {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Number of the database.
    pub database: u16,
}

const REDIS_PORT: u16 = 6379;

impl Text for RedisUrl {
    const EXPECTED: &'static str = "a URL such as `redis://127.0.0.1:6379` or `rediss://cache.internal`";

    fn parse(text: &str) -> Result<Self, String> {
        // It may hold a password, so it is not repeated.
        if text.contains('@') {
            return Err("the user and the password stand in `username` and `password`".to_owned());
        }
        let (tls, rest) = match text.split_once("://") {
            Some(("redis", rest)) => (false, rest),
            Some(("rediss", rest)) => (true, rest),
            _ => return Err(expected::<Self>(text)),
        };
        let wrong = || expected::<Self>(text);
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = if database.is_empty() { 0 } else { database.parse().map_err(|_| wrong())? };
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':').or(port.is_empty().then_some(""))),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, Some("")),
            },
        };
        let port = match port.ok_or_else(wrong)? {
            "" => REDIS_PORT,
            port => port.parse().map_err(|_| wrong())?,
        };
        let is_host = is_host_name(host) || host.parse::<std::net::Ipv6Addr>().is_ok();
        if is_host && port > 0 {
            Ok(RedisUrl { tls, host: host.to_ascii_lowercase(), port, database })
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port)?,
            false => write!(f, "{scheme}://{}:{}", self.host, self.port)?,
        }
        if self.database > 0 { write!(f, "/{}", self.database) } else { Ok(()) }
    }
}

/// Where a secret comes from: `env:NAME` or `file:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretName(String);

impl Text for SecretName {
    const EXPECTED: &'static str = "the place of a secret, `env:NAME` or `file:PATH`";

    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("env" | "file", name)) if !name.is_empty() => Ok(SecretName(text.to_owned())),
            // The text may be the secret itself, so it is not repeated.
            _ => Err("a secret is named, not written here: use `env:NAME` or `file:PATH`".to_owned()),
        }
    }
}

impl SecretName {
    /// The text as it stands, checked.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_types! {
    RedisUrl Some("^rediss?://");
    SecretName Some("^(env|file):.+$");
}

/// Whose code runs. With this, scripts and modules run only if one of these keys has signed them: minisign's signature of
/// `x.wasm` stands in `x.wasm.minisig`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    /// Public keys as minisign writes them; one is enough of them. Example:
    /// `[RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3]`.
    #[schemars(length(min = 1))]
    pub keys: Vec<String>,
    /// The kinds of plugins whose files must be signed. Default: all that run files. Example: `[wasm]`.
    #[serde(default)]
    pub kinds: Option<Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_has_a_host_and_the_usual_port() {
        for (text, shown) in [
            ("redis://127.0.0.1", "redis://127.0.0.1:6379"),
            ("rediss://Cache.internal:1/2", "rediss://cache.internal:1/2"),
            ("redis://[::1]:7000", "redis://[::1]:7000"),
            ("redis://[::1]/", "redis://[::1]:6379"),
        ] {
            assert_eq!(RedisUrl::parse(text).map(|url| url.to_string()), Ok(shown.to_owned()));
        }
        for wrong in ["cache:6379", "http://cache", "redis://", "redis://a:0", "redis://a:b", "redis://a/x"] {
            assert!(RedisUrl::parse(wrong).unwrap_err().starts_with("expected a URL"), "{wrong}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        let error = RedisUrl::parse("redis://:hunter2@cache").unwrap_err();
        assert!(error.contains("`password`") && !error.contains("hunter2"));
        assert!(!SecretName::parse("hunter2").unwrap_err().contains("hunter2"));
    }
}
