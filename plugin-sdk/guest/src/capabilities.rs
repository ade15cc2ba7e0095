//! What a policy may use beside its exchange, if `grants` of its instance says so. What was not granted is an error that
//! names the grant to add.

use std::time::Duration;

use crate::bindings::portcullis::policy::{cache, clock, http, metrics, random, rate_limit, secrets, store};
use crate::{Error, Header, Result};

pub use http::Response as CallAnswer;
pub use rate_limit::Taken;

/// A request that the policy makes itself.
#[derive(Debug, Clone)]
pub struct Call(http::Request);

impl Call {
    /// With this method, to this path and query.
    pub fn new(method: &str, target: &str) -> Self {
        Call(http::Request {
            method: method.into(),
            target: target.into(),
            headers: Vec::new(),
            secret_headers: Vec::new(),
            body: Vec::new(),
        })
    }

    /// The same with one header more.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.0.headers.push(Header { name: name.into(), value: value.into() });
        self
    }

    /// The same with a header that a secret is the value of, behind a scheme such as `"Bearer "`. Takes the grant
    /// `secrets`.
    #[must_use]
    pub fn secret_header(mut self, name: &str, scheme: &str, secret: &str) -> Self {
        let header = http::SecretHeader { name: name.into(), scheme: scheme.into(), secret: secret.into() };
        self.0.secret_headers.push(header);
        self
    }

    /// The same with a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.0.body = body.into();
        self
    }
}

impl CallAnswer {
    /// A header's first value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(&header.value).ok()
    }
}

/// Sends a request to an upstream of the gateway's configuration and waits for the whole answer; the gateway's other
/// requests go on meanwhile. Takes the grant `http`. Not in `on_connection`, which can't wait.
pub fn call(upstream: &str, call: Call) -> Result<CallAnswer> {
    http::send(upstream, &call.0).map_err(Error::new)
}

/// What the policy's cache holds under a key. Takes the grant `cache`.
pub fn cached(key: &str) -> Result<Option<Vec<u8>>> {
    cache::get(key).map_err(Error::new)
}

/// Keeps a value in the policy's cache, which all its instances share. Takes the grant `cache`.
pub fn keep(key: &str, value: &[u8], lifetime: Duration) -> Result<()> {
    cache::set(key, value, millis(lifetime)).map_err(Error::new)
}

/// What the policy's part of the gateway's store holds under a key. Takes the grant `store`, like the other functions of
/// the store, which may wait as [`call`] does.
pub fn stored(key: &str) -> Result<Option<Vec<u8>>> {
    store::get(key).map_err(Error::new)
}

/// Sets a value in the store, whether there was one or not.
pub fn store(key: &str, value: &[u8], lifetime: Duration) -> Result<()> {
    store::set(key, value, millis(lifetime)).map_err(Error::new)
}

/// Sets a value in the store if the present one is `expected`, where none means that there is none. Whether it did.
pub fn store_replace(key: &str, expected: Option<&[u8]>, value: &[u8], lifetime: Duration) -> Result<bool> {
    store::replace(key, expected, value, millis(lifetime)).map_err(Error::new)
}

/// Removes a value from the store. Whether there was one.
pub fn store_delete(key: &str) -> Result<bool> {
    store::delete(key).map_err(Error::new)
}

/// Adds to a counter of the store, and says what it comes to. One that is not there begins at zero and lives for
/// `lifetime`; adding to it does not prolong that.
pub fn store_add(key: &str, by: i64, lifetime: Duration) -> Result<i64> {
    store::add(key, by, millis(lifetime)).map_err(Error::new)
}

/// Takes a token of the bucket that `key` has under a limit. Takes the grant `rate_limit`.
pub fn take(limit: &str, key: &str) -> Result<Taken> {
    rate_limit::take(limit, key).map_err(Error::new)
}

/// Adds to a counter; `label` tells several of one name apart, and is empty for most. Takes the grant `metrics`.
pub fn count(name: &str, label: &str, count: u32) -> Result<()> {
    metrics::count(name, label, count).map_err(Error::new)
}

/// Milliseconds since 1970-01-01T00:00:00Z. Takes the grant `clock`.
pub fn now() -> Result<u64> {
    clock::now().map_err(Error::new)
}

/// Random bytes that nobody can guess, at most 1024. Takes the grant `random`.
pub fn random(count: u32) -> Result<Vec<u8>> {
    random::bytes(count).map_err(Error::new)
}

/// HMAC-SHA256 of `data` with a secret. Takes the grant `secrets`.
pub fn hmac_sha256(secret: &str, data: &[u8]) -> Result<Vec<u8>> {
    secrets::hmac_sha256(secret, data).map_err(Error::new)
}

/// Whether `candidate` is a secret, in a time that does not tell how much of it is right. Takes the grant `secrets`.
pub fn is_secret(secret: &str, candidate: &[u8]) -> Result<bool> {
    secrets::equals(secret, candidate).map_err(Error::new)
}

fn millis(lifetime: Duration) -> u64 {
    u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)
}
