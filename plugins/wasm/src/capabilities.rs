//! What a guest may use beside its exchange, if it was granted: the same as scripts, under the same names.

use std::num::NonZeroU32;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, Request, Response, Uri};
use portcullis_plugin::{Capabilities, Keyspace, StoreError};
use wasmtime::Result;

use crate::bindings::{cache, clock, http as calls, metrics, random, rate_limit, secrets, store, types};
use crate::host::{Host, header};

/// What the guest gets, or for its author why not.
type Answer<T> = std::result::Result<T, String>;

/// Why what may wait can't be used where nothing can.
fn no_wait(name: &str) -> String {
    format!("`{name}` may have to wait, which `on_connection` and `configure` can't")
}

impl calls::Host for Host {
    async fn send(&mut self, upstream: String, given: calls::Request) -> Result<Answer<calls::Response>> {
        Ok(self.send(&upstream, given).await)
    }
}

impl Host {
    async fn send(&mut self, upstream: &str, given: calls::Request) -> Answer<calls::Response> {
        let about = self.about.clone();
        let http = about.capabilities.http().map_err(|denied| denied.to_string())?;
        if !self.can_wait() {
            return Err(no_wait("http"));
        }
        let call = http
            .send(upstream, request(given, &about.capabilities)?, &mut self.calls)
            .map_err(|denied| denied.to_string())?;
        let start = Instant::now();
        let answer = call.await;
        self.waited(start);
        answer.map(response).map_err(|error| format!("no answer from `{upstream}`: {error}"))
    }
}

impl Host {
    /// Asks the policy's part of the store.
    async fn ask<T, F>(&mut self, operation: impl FnOnce(Keyspace) -> F) -> Answer<T>
    where
        F: Future<Output = std::result::Result<T, StoreError>>,
    {
        let store = self.about.capabilities.store().map_err(|denied| denied.to_string())?.clone();
        if !self.can_wait() {
            return Err(no_wait("store"));
        }
        let start = Instant::now();
        let answer = operation(store).await;
        self.waited(start);
        answer.map_err(|error| error.to_string())
    }
}

fn request(given: calls::Request, granted: &Capabilities) -> Answer<Request<Bytes>> {
    let mut request = Request::new(Bytes::from(given.body));
    *request.method_mut() = Method::from_bytes(given.method.as_bytes()).map_err(|_| "not a method")?;
    let target = Uri::try_from(given.target).ok().filter(|target| target.path().starts_with('/'));
    *request.uri_mut() = target.ok_or("a target is a path that begins with `/`, and a query")?;
    for types::Header { name, value } in given.headers {
        let (name, value) = header(&name, value)?;
        request.headers_mut().append(name, value);
    }
    for calls::SecretHeader { name, scheme, secret } in given.secret_headers {
        let value = granted.secret(&secret).map_err(|denied| denied.to_string())?;
        let (name, mut value) = header(&name, [scheme.as_bytes(), value.expose()].concat())
            .map_err(|_| format!("the secret `{secret}` can't be the value of `{name}`"))?;
        value.set_sensitive(true);
        request.headers_mut().append(name, value);
    }
    Ok(request)
}

fn response(answer: Response<Bytes>) -> calls::Response {
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| types::Header {
        name: name.as_str().into(),
        value: value.as_bytes().into(),
    };
    calls::Response {
        status: answer.status().as_u16(),
        headers: answer.headers().iter().map(header).collect(),
        body: answer.body().to_vec(),
    }
}

impl cache::Host for Host {
    fn get(&mut self, key: String) -> Result<Answer<Option<Vec<u8>>>> {
        let found = self.about.capabilities.cache().and_then(|cache| cache.get(&key));
        Ok(found.map(|value| value.map(Vec::from)).map_err(|denied| denied.to_string()))
    }

    fn set(&mut self, key: String, value: Vec<u8>, lifetime: u64) -> Result<Answer<()>> {
        let cache = self.about.capabilities.cache();
        let set = cache.and_then(|cache| cache.set(&key, value.into(), Duration::from_millis(lifetime)));
        Ok(set.map_err(|denied| denied.to_string()))
    }
}

impl store::Host for Host {
    async fn get(&mut self, key: String) -> Result<Answer<Option<Vec<u8>>>> {
        let value = self.ask(|store| async move { store.get(&key).await }).await;
        Ok(value.map(|value| value.map(Vec::from)))
    }

    async fn set(&mut self, key: String, value: Vec<u8>, lifetime: u64) -> Result<Answer<()>> {
        let lifetime = Duration::from_millis(lifetime);
        Ok(self.ask(|store| async move { store.set(&key, value.into(), lifetime).await }).await)
    }

    async fn replace(
        &mut self,
        key: String,
        expected: Option<Vec<u8>>,
        value: Vec<u8>,
        lifetime: u64,
    ) -> Result<Answer<bool>> {
        let (expected, lifetime) = (expected.map(Bytes::from), Duration::from_millis(lifetime));
        let replaced = self
            .ask(|store| async move { store.compare_and_set(&key, expected, value.into(), lifetime).await });
        Ok(replaced.await)
    }

    async fn delete(&mut self, key: String) -> Result<Answer<bool>> {
        Ok(self.ask(|store| async move { store.delete(&key).await }).await)
    }

    async fn add(&mut self, key: String, by: i64, lifetime: u64) -> Result<Answer<i64>> {
        let lifetime = Duration::from_millis(lifetime);
        Ok(self.ask(|store| async move { store.add(&key, by, lifetime).await }).await)
    }
}

impl rate_limit::Host for Host {
    fn take(&mut self, limit: String, key: String) -> Result<Answer<rate_limit::Taken>> {
        let taken = self.about.capabilities.limits().and_then(|limits| limits.take(&limit, &key));
        let taken = taken.map(|taken| rate_limit::Taken {
            allowed: taken.is_allowed,
            left: taken.left,
            more_in: taken.more_in.map(|wait| wait.as_millis() as u64),
        });
        Ok(taken.map_err(|denied| denied.to_string()))
    }
}

impl metrics::Host for Host {
    fn count(&mut self, name: String, label: String, count: u32) -> Result<Answer<()>> {
        let counts = self.about.capabilities.counts();
        let added = counts.and_then(|counts| match NonZeroU32::new(count) {
            Some(count) => counts.add(&name, &label, count),
            None => Ok(()),
        });
        Ok(added.map_err(|denied| denied.to_string()))
    }
}

impl clock::Host for Host {
    fn now(&mut self) -> Result<Answer<u64>> {
        let now = self.about.capabilities.now().map_err(|denied| denied.to_string());
        Ok(now.map(|now| now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64))
    }
}

impl random::Host for Host {
    fn bytes(&mut self, count: u32) -> Result<Answer<Vec<u8>>> {
        Ok(self.about.capabilities.random(count as usize).map_err(|denied| denied.to_string()))
    }
}

impl secrets::Host for Host {
    fn hmac_sha256(&mut self, secret: String, data: Vec<u8>) -> Result<Answer<Vec<u8>>> {
        let code = self.about.capabilities.hmac_sha256(&secret, &data);
        Ok(code.map(Vec::from).map_err(|denied| denied.to_string()))
    }

    fn equals(&mut self, secret: String, candidate: Vec<u8>) -> Result<Answer<bool>> {
        let equal = self.about.capabilities.is_secret(&secret, &candidate);
        Ok(equal.map_err(|denied| denied.to_string()))
    }
}
