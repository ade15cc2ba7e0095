//! Keys that are fetched: at most one fetch at a time and one per window, whoever asks for whatever key.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::header::{ACCEPT, HOST, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use jsonwebtoken::Algorithm;
use moka::sync::Cache;
use portcullis_plugin::{BuildContext, BuildError, Clock, Counter, Outbound, OutboundLimits, Span, Tasks};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;

use super::keys::{KeySet, Origin};
use crate::strict;

/// Bytes of an answer: a set of 64 keys of 8192 bits takes half of it.
const MAX_ANSWER: usize = 256 << 10;

/// How deep an issuer's metadata may be nested.
const MAX_DEPTH: usize = 16;

/// Requests of one issuer that wait for its keys; who comes after them is told to come again.
const MAX_WAITING: usize = 1024;

/// Ids of keys that are known to be none.
const MAX_ABSENT: u64 = 10_000;

/// The part of `refresh` after which keys are fetched anew, while the old ones are still good.
const AHEAD: f64 = 0.8;

/// Where keys are fetched, and how often.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoteConfig {
    /// The upstream that is asked, by name; its TLS, addresses and health hold for this too.
    upstream: String,
    /// The path there. Default: for `discovery` the issuer's and `/.well-known/openid-configuration`, else
    /// `/.well-known/jwks.json`.
    path: Option<String>,
    /// For `discovery`: the upstream for a key set that is on another host than the issuer. Default: none, which refuses
    /// such sets.
    keys_upstream: Option<String>,
    /// How long to wait for an answer. Default: `2s`.
    #[serde(default = "default_timeout")]
    timeout: Span,
    /// How long keys are good; after four fifths of it they are fetched anew. Default: `10m`.
    #[serde(default = "default_refresh")]
    refresh: Span,
    /// For how long beyond that they are used if they cannot be fetched. Default: `1h`.
    #[serde(default = "default_stale")]
    stale: Span,
    /// The time from one fetch to the next, whatever it is for. Default: `5s`.
    #[serde(default = "default_window")]
    window: Span,
    /// How long a request with an unknown key waits for the window to pass; one that would wait longer is told to come
    /// again (503). Default: `1s`.
    #[serde(default = "default_wait")]
    wait: Span,
    /// How long a key that is not in a set fetched since is taken for absent. Default: `1m`.
    #[serde(default = "default_absent")]
    absent: Span,
}

fn default_timeout() -> Span {
    Span::seconds(2)
}

fn default_refresh() -> Span {
    Span::seconds(600)
}

fn default_stale() -> Span {
    Span::seconds(3600)
}

fn default_window() -> Span {
    Span::seconds(5)
}

fn default_wait() -> Span {
    Span::seconds(1)
}

fn default_absent() -> Span {
    Span::seconds(60)
}

/// What is kept of an issuer's keys, beyond reloads.
struct Kept {
    state: Mutex<State>,
    /// Told whenever a fetch ends.
    ended: Notify,
    waiting: AtomicUsize,
    absent: Cache<[u8; 32], ()>,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    /// When the last fetch began.
    began: Option<Duration>,
    is_fetching: bool,
    /// When the last fetch began that failed, if none has succeeded since.
    failed: Option<Duration>,
    fetches: u64,
}

#[derive(Clone)]
struct Current {
    keys: Arc<KeySet>,
    /// When the fetch that brought it began.
    began: Duration,
    number: u64,
}

/// What is kept for all issuers of an instance, by what is fetched from where.
#[derive(Default)]
pub(super) struct Keep(Mutex<HashMap<String, Arc<Kept>>>);

impl Keep {
    /// What is kept for these, and nothing else any more.
    fn only(&self, names: &[String], absent: &[Duration]) -> Vec<Arc<Kept>> {
        let mut kept = lock(&self.0);
        kept.retain(|name, _| names.contains(name));
        let make = |absent: Duration| {
            let absent = Cache::builder().max_capacity(MAX_ABSENT).time_to_live(absent).build();
            let (state, ended, waiting) = (Mutex::default(), Notify::new(), AtomicUsize::new(0));
            Arc::new(Kept { state, ended, waiting, absent })
        };
        let pairs = names.iter().zip(absent);
        pairs
            .map(|(name, absent)| kept.entry(name.clone()).or_insert_with(|| make(*absent)).clone())
            .collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fetches of an instance, by what came of them.
#[derive(Clone)]
pub(super) struct Fetches {
    pub(super) ok: Counter,
    pub(super) failed: Counter,
}

/// The keys of one issuer that are fetched.
pub(super) struct Remote {
    kept: Arc<Kept>,
    place: Place,
    limits: OutboundLimits,
    refresh: Duration,
    stale: Duration,
    window: Duration,
    wait: Duration,
    clock: Clock,
    tasks: Arc<dyn Tasks>,
    fetches: Fetches,
    /// When the keys at hand came, in seconds since 1970; 0 if there are none.
    fetched_at: AtomicI64,
}

/// Where keys are.
struct Place {
    issuer: String,
    upstream: Arc<dyn Outbound>,
    host: Option<HeaderValue>,
    path: PathAndQuery,
    /// If `path` leads to metadata: the issuer's scheme and host, and the way to sets elsewhere.
    discovery: Option<(String, Option<Arc<dyn Outbound>>)>,
}

/// What is known of a key at the moment.
pub(super) enum Found {
    /// Those that it is among, and their number.
    Keys(Arc<KeySet>, u64),
    /// It is in no set that was fetched since it was asked for.
    Absent,
    /// Nobody knows; it may be asked again after so long.
    Unknown(Duration),
    /// A fetch is on its way, or will be after so long.
    Wait(Option<Duration>),
}

/// One of an instance's remotes before they are put together.
pub(super) struct Unkept {
    remote: Remote,
    name: String,
    absent: Duration,
}

impl Unkept {
    pub(super) fn new(
        at: &str,
        issuer: &str,
        config: RemoteConfig,
        is_discovery: bool,
        fetches: Fetches,
        context: &mut BuildContext<'_>,
    ) -> Result<Self, BuildError> {
        let name = format!(
            "{issuer}\n{is_discovery}\n{}\n{:?}\n{:?}",
            config.upstream, config.path, config.keys_upstream
        );
        let upstream = context.upstream(&format!("{at}.upstream"), &config.upstream)?;
        let url =
            issuer.parse::<Uri>().ok().filter(|url| url.scheme().is_some() && url.authority().is_some());
        let authority = url.as_ref().and_then(Uri::authority);
        let host = authority.and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
        let discovery = match (is_discovery, &url, &config.keys_upstream) {
            (true, Some(url), elsewhere) => {
                let elsewhere = elsewhere.as_deref();
                let elsewhere = elsewhere
                    .map(|name| context.upstream(&format!("{at}.keys_upstream"), name))
                    .transpose()?;
                Some((origin(url), elsewhere))
            }
            (true, None, _) => {
                return Err(BuildError::at(
                    at,
                    format!("the issuer `{issuer}` is no URL, whose metadata there could be"),
                ));
            }
            (false, _, None) => None,
            (false, ..) => {
                return Err(BuildError::at(format!("{at}.keys_upstream"), "it is for `discovery` alone"));
            }
        };
        let path = config.path.unwrap_or_else(|| match &url {
            Some(url) if is_discovery => {
                format!("{}/.well-known/openid-configuration", url.path().trim_end_matches('/'))
            }
            _ => "/.well-known/jwks.json".to_owned(),
        });
        let path = PathAndQuery::try_from(path.as_str()).ok().filter(|_| path.starts_with('/')).ok_or_else(
            || BuildError::at(format!("{at}.path"), format!("`{path}` is not a path; it begins with `/`")),
        )?;
        for (field, span) in
            [("timeout", config.timeout), ("refresh", config.refresh), ("window", config.window)]
        {
            if span.0.is_zero() {
                return Err(BuildError::at(format!("{at}.{field}"), "it must be longer than nothing"));
            }
        }
        if config.window > config.refresh {
            return Err(BuildError::at(format!("{at}.window"), "it is longer than `refresh`"));
        }
        let remote = Remote {
            kept: Keep::default().only(&["".to_owned()], &[config.absent.0]).remove(0),
            // A set is at a host of its own, which the upstream knows.
            place: Place {
                issuer: issuer.to_owned(),
                upstream,
                host: host.filter(|_| is_discovery),
                path,
                discovery,
            },
            limits: OutboundLimits { timeout: config.timeout.0, max_body: MAX_ANSWER },
            refresh: config.refresh.0,
            stale: config.stale.0,
            window: config.window.0,
            wait: config.wait.0,
            clock: context.clock(),
            tasks: context.tasks(),
            fetches,
            fetched_at: AtomicI64::new(0),
        };
        Ok(Unkept { remote, name, absent: config.absent.0 })
    }

    /// Gives them the keys that were fetched before a reload.
    pub(super) fn keep(all: Vec<Self>, keep: &Keep) -> Vec<Arc<Remote>> {
        let names: Vec<_> = all.iter().map(|one| one.name.clone()).collect();
        let absent: Vec<_> = all.iter().map(|one| one.absent).collect();
        let kept = keep.only(&names, &absent);
        all.into_iter().zip(kept).map(|(one, kept)| Arc::new(Remote { kept, ..one.remote })).collect()
    }
}

/// Scheme and host of a URL (RFC 6454, 4).
fn origin(url: &Uri) -> String {
    let authority = url.authority().map(|authority| authority.as_str()).unwrap_or_default();
    format!("{}://{authority}", url.scheme_str().unwrap_or_default()).to_ascii_lowercase()
}

impl Remote {
    /// The keys for a token that came at `asked` with this in its header; begins a fetch if one is due.
    pub(super) fn find(self: &Arc<Self>, kid: Option<&str>, algorithm: Algorithm, asked: Duration) -> Found {
        let now = self.clock.now();
        let mut state = lock(&self.kept.state);
        let age = state.current.as_ref().map(|current| now.saturating_sub(current.began));
        let usable =
            state.current.clone().filter(|_| age.is_some_and(|age| age <= self.refresh + self.stale));
        let next = state.began.map_or(Duration::ZERO, |began| (began + self.window).saturating_sub(now));
        if let Some(current) = usable {
            if age.is_some_and(|age| age >= self.refresh.mul_f64(AHEAD))
                && next.is_zero()
                && !state.is_fetching
            {
                self.begin(&mut state, now);
            }
            if current.keys.has(kid, algorithm) {
                return Found::Keys(current.keys, current.number);
            }
            let id = absent_id(kid, algorithm);
            if current.began >= asked {
                self.kept.absent.insert(id, ());
                return Found::Absent;
            }
            if self.kept.absent.contains_key(&id) {
                return Found::Absent;
            }
        }
        if state.failed.is_some_and(|began| began >= asked) {
            return Found::Unknown(next);
        }
        if state.is_fetching {
            return Found::Wait(None);
        }
        match next {
            Duration::ZERO => {
                self.begin(&mut state, now);
                Found::Wait(None)
            }
            soon if soon <= self.wait => Found::Wait(Some(soon)),
            late => Found::Unknown(late),
        }
    }

    /// The same, once it is known; the error is when to ask again.
    pub(super) async fn wait(
        self: &Arc<Self>,
        kid: Option<&str>,
        algorithm: Algorithm,
        asked: Duration,
    ) -> Result<Option<(Arc<KeySet>, u64)>, Duration> {
        let waiting = Waiting(&self.kept.waiting);
        if self.kept.waiting.fetch_add(1, Relaxed) >= MAX_WAITING {
            return Err(Duration::from_secs(1));
        }
        loop {
            let mut ended = pin!(self.kept.ended.notified());
            // From here on nothing that ends is missed.
            ended.as_mut().enable();
            match self.find(kid, algorithm, asked) {
                Found::Keys(keys, number) => {
                    drop(waiting);
                    return Ok(Some((keys, number)));
                }
                Found::Absent => return Ok(None),
                Found::Unknown(later) => return Err(later),
                Found::Wait(None) => ended.await,
                Found::Wait(Some(soon)) => {
                    let mut sleep = self.tasks.sleep(soon);
                    std::future::poll_fn(|context| match ended.as_mut().poll(context) {
                        Poll::Ready(()) => Poll::Ready(()),
                        Poll::Pending => sleep.as_mut().poll(context),
                    })
                    .await;
                }
            }
        }
    }

    /// The number of the set at hand, if keys of it may still be used.
    pub(super) fn number(self: &Arc<Self>) -> Option<u64> {
        let now = self.clock.now();
        let mut state = lock(&self.kept.state);
        let current = state.current.as_ref()?;
        let (age, number) = (now.saturating_sub(current.began), current.number);
        let is_due = state.began.is_none_or(|began| began + self.window <= now) && !state.is_fetching;
        if age >= self.refresh.mul_f64(AHEAD) && is_due {
            self.begin(&mut state, now);
        }
        (age <= self.refresh + self.stale).then_some(number)
    }

    /// When the keys at hand came, in seconds since 1970.
    pub(super) fn fetched_at(&self) -> i64 {
        self.fetched_at.load(Relaxed)
    }

    fn begin(self: &Arc<Self>, state: &mut State, now: Duration) {
        state.is_fetching = true;
        state.began = Some(now);
        let flight = Flight { remote: self.clone(), began: now, keys: None };
        self.tasks.spawn(Box::pin(flight.run()));
    }

    async fn fetch(&self) -> Option<KeySet> {
        let place = &self.place;
        let answer = self.get(&place.upstream, place.path.clone(), place.host.clone()).await?;
        let Some((origin, elsewhere)) = &place.discovery else {
            return KeySet::read(&answer, Origin::Remote).ok();
        };
        let Ok(Value::Object(metadata)) = strict::parse(&answer, MAX_DEPTH) else { return None };
        // OpenID Connect Discovery 1.0, 4.3: whoever else answers must not be taken for the issuer.
        if metadata.get("issuer")?.as_str()? != place.issuer {
            return None;
        }
        let url: Uri = metadata.get("jwks_uri")?.as_str()?.parse().ok()?;
        let upstream = match self::origin(&url) == *origin {
            true => &place.upstream,
            false => elsewhere.as_ref()?,
        };
        let host = HeaderValue::try_from(url.authority()?.as_str()).ok();
        let answer = self.get(upstream, url.path_and_query()?.clone(), host).await?;
        KeySet::read(&answer, Origin::Remote).ok()
    }

    async fn get(
        &self,
        upstream: &Arc<dyn Outbound>,
        path: PathAndQuery,
        host: Option<HeaderValue>,
    ) -> Option<Bytes> {
        let mut request = http::Request::new(Bytes::new());
        *request.uri_mut() = path.into();
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(host) = host {
            request.headers_mut().insert(HOST, host);
        }
        let response = upstream.send(request, self.limits).await.ok()?;
        (response.status() == http::StatusCode::OK).then(|| response.into_body())
    }
}

/// A fetch on its way. It may end at any time, with its worker; who waits is told in any case.
struct Flight {
    remote: Arc<Remote>,
    began: Duration,
    keys: Option<KeySet>,
}

impl Flight {
    async fn run(mut self) {
        self.keys = self.remote.fetch().await.filter(|keys| keys.len() > 0);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let Remote { kept, fetches, clock, fetched_at, .. } = &*self.remote;
        {
            let mut state = lock(&kept.state);
            state.is_fetching = false;
            match self.keys.take() {
                Some(keys) => {
                    fetches.ok.increment();
                    state.fetches += 1;
                    let number = state.fetches;
                    state.current = Some(Current { keys: Arc::new(keys), began: self.began, number });
                    state.failed = None;
                    fetched_at.store(super::issuer::seconds(clock.wall()) as i64, Relaxed);
                }
                None => {
                    fetches.failed.increment();
                    state.failed = Some(self.began);
                }
            }
        }
        kept.ended.notify_waiters();
    }
}

/// One of those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A hash, so that a long id takes no room.
fn absent_id(kid: Option<&str>, algorithm: Algorithm) -> [u8; 32] {
    let text = format!("{algorithm:?}\n{}", kid.unwrap_or_default());
    let mut id = [0; 32];
    id.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    id
}
