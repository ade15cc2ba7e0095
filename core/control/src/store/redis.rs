//! The store that is Redis or Valkey, for several gateways.
//!
//! One connection carries everything (of a cluster one per node), kept by a task on the store's thread. While there is
//! none, operations are refused at once: nobody waits for a store that is known to be away. That it is away is learned
//! from an operation that fails or takes too long, or from a ping each second.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use portcullis_config::{Redis, RedisUrl};
use portcullis_plugin::{Secret, Store, StoreError, StoreFuture};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo, RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind, TlsCertificates,
    TlsMode, cmd,
};
use tokio::runtime::Handle;
use tokio::sync::Notify;

/// How long connecting may take, with TLS and the questions to sentinels or nodes.
const CONNECT: Duration = Duration::from_secs(5);

/// Between two pings of a connection that nothing is wrong with.
const PING: Duration = Duration::from_secs(1);

/// Between two attempts to connect, at first; each that fails makes it twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest time between two attempts: for so long the store may be back unnoticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Sets a value if the present one is as expected. `EVAL` sends it each time: after a failover no server knows it.
const COMPARE_AND_SET: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
    redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1";

/// Adds to a counter, whose lifetime begins with the first addition. It is read as text: numbers of Lua are inexact.
const ADD: &str = "redis.call('INCRBY', KEYS[1], ARGV[1]) \
    if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return redis.call('GET', KEYS[1])";

/// Which Redis, with what it takes to get in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisPlan {
    pub(crate) redis: Redis,
    pub(crate) password: Option<Secret>,
    /// PEM.
    pub(crate) authorities: Option<Bytes>,
}

/// The way to connect.
enum Door {
    Server(Box<Client>),
    Sentinels(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

/// A connection; its clones share it.
#[derive(Clone)]
enum Link {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl RedisPlan {
    /// Finds what can be wrong with it without connecting.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.door(PING).map(drop).map_err(|error| error.to_string())
    }

    fn door(&self, timeout: Duration) -> RedisResult<Door> {
        let urls = &self.redis.urls;
        let infos: RedisResult<Vec<ConnectionInfo>> = urls.iter().map(|url| self.info(url)).collect();
        let mut infos = infos?;
        let is_tls = urls.iter().any(|url| url.tls);
        let certificates = TlsCertificates {
            client_tls: None,
            root_cert: self.authorities.as_ref().map(|authorities| authorities.to_vec()),
        };
        if self.redis.cluster {
            let mut builder = ClusterClient::builder(infos)
                .connection_timeout(CONNECT)
                .response_timeout(timeout)
                .retries(1);
            if is_tls {
                builder = builder.tls(TlsMode::Secure).certs(certificates);
            }
            return builder.build().map(|client| Door::Cluster(Box::new(client)));
        }
        let Some(name) = &self.redis.sentinel else {
            let info = infos.pop().ok_or((ErrorKind::InvalidClientConfig, "there is no server"))?;
            let client = if is_tls { Client::build_with_tls(info, certificates) } else { Client::open(info) };
            return client.map(|client| Door::Server(Box::new(client)));
        };
        let sentinels: Vec<ConnectionAddr> = infos.iter().map(|info| info.addr().clone()).collect();
        let mut builder = SentinelClientBuilder::new(sentinels, name, SentinelServerType::Master)?;
        if is_tls {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
        if let Some(username) = &self.redis.username {
            builder = builder.set_client_to_redis_username(username);
        }
        if let Some(password) = self.password()? {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(url) = urls.first() {
            builder = builder.set_client_to_redis_db(url.database.into());
        }
        builder.build().map(|client| Door::Sentinels(Box::new(client)))
    }

    fn info(&self, url: &RedisUrl) -> RedisResult<ConnectionInfo> {
        let (host, port) = (url.host.clone(), url.port);
        let address = match url.tls {
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            false => ConnectionAddr::Tcp(host, port),
        };
        let mut settings = RedisConnectionInfo::default().set_db(url.database.into());
        if let Some(username) = &self.redis.username {
            settings = settings.set_username(username);
        }
        if let Some(password) = self.password()? {
            settings = settings.set_password(password);
        }
        Ok(address.into_connection_info()?.set_redis_settings(settings))
    }

    fn password(&self) -> RedisResult<Option<&str>> {
        let wrong = |_| (ErrorKind::InvalidClientConfig, "the password is not UTF-8 text");
        let password = self.password.as_ref().map(|password| std::str::from_utf8(password.expose()));
        Ok(password.transpose().map_err(wrong)?)
    }
}

impl Door {
    async fn open(&mut self, timeout: Duration) -> RedisResult<Link> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(timeout));
        let mut link = match self {
            Door::Server(client) => {
                Link::Server(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Door::Sentinels(client) => Link::Server(client.get_async_connection_with_config(&config).await?),
            Door::Cluster(client) => Link::Cluster(client.get_async_connection().await?),
        };
        link.ping().await?;
        Ok(link)
    }
}

impl Link {
    async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match self {
            Link::Server(connection) => command.query_async(connection).await,
            Link::Cluster(connection) => command.query_async(connection).await,
        }
    }

    /// Whether it, or every primary of a cluster, answers.
    async fn ping(&mut self) -> RedisResult<()> {
        let ping = cmd("PING");
        match self {
            Link::Server(connection) => connection.req_packed_command(&ping).await.map(drop),
            Link::Cluster(connection) => connection.req_packed_command(&ping).await.map(drop),
        }
    }
}

/// Values by key, in Redis.
pub(crate) struct RedisStore {
    shared: Arc<Shared>,
    prefix: String,
}

struct Shared {
    link: Mutex<Option<Link>>,
    up: Arc<AtomicBool>,
    doubts: Notify,
    /// Whether the connection is of no use, though it may answer.
    is_lost: AtomicBool,
    /// Whether an error that the store answered with was told since the last success.
    told: AtomicBool,
}

impl RedisStore {
    /// A store that connects in the background; `up` says whether it is connected.
    pub(crate) fn connect(
        plan: &RedisPlan,
        timeout: Duration,
        up: Arc<AtomicBool>,
        runtime: &Handle,
    ) -> Self {
        let shared = Arc::new(Shared {
            link: Mutex::default(),
            up,
            doubts: Notify::new(),
            is_lost: AtomicBool::new(false),
            told: AtomicBool::new(false),
        });
        runtime.spawn(stay_connected(plan.clone(), timeout, Arc::downgrade(&shared)));
        RedisStore { shared, prefix: plan.redis.prefix.clone() }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn ask<T: FromRedisValue>(&self, command: Cmd) -> Result<T, StoreError> {
        let Some(mut link) = self.shared.link() else { return Err(StoreError::Unavailable) };
        // Whoever gives up waiting has learned something about the connection too.
        let mut doubt = Doubt(Some(&self.shared));
        let result = link.ask(&command).await;
        match &result {
            Ok(_) => self.shared.told.store(false, Relaxed),
            Err(error) => self.shared.judge(error),
        }
        let reason = result.as_ref().err().map(reason);
        if !matches!(reason, Some(StoreError::Unavailable | StoreError::Timeout)) {
            doubt.0 = None;
        }
        result.map_err(|error| self::reason(&error))
    }
}

/// Has the connection looked at when it is dropped.
struct Doubt<'s>(Option<&'s Shared>);

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.doubts.notify_one();
        }
    }
}

impl Shared {
    fn link(&self) -> Option<Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, link: Option<Link>) {
        self.is_lost.store(false, Relaxed);
        self.up.store(link.is_some(), Relaxed);
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = link;
    }

    /// Tells of an error what users should know, and whether the connection is lost with it.
    fn judge(&self, error: &RedisError) {
        if error.is_connection_dropped() || error.kind() == ErrorKind::Server(ServerErrorKind::ReadOnly) {
            self.is_lost.store(true, Relaxed);
        }
        if reason(error) == StoreError::Failed && !self.told.swap(true, Relaxed) {
            tracing::error!(%error, "the store answers with an error");
        }
    }
}

/// What a plugin is told.
fn reason(error: &RedisError) -> StoreError {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};
    match error.kind() {
        _ if error.is_timeout() => StoreError::Timeout,
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => StoreError::Unavailable,
        ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain) => {
            StoreError::Unavailable
        }
        _ if error.code() == Some("OOM") => StoreError::Full,
        _ if is_about_number(error) => StoreError::NotANumber,
        _ => StoreError::Failed,
    }
}

fn is_about_number(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    detail.contains("not an integer") || detail.contains("would overflow")
}

/// Keeps a store connected as long as it is there.
async fn stay_connected(plan: RedisPlan, timeout: Duration, shared: Weak<Shared>) {
    let servers = plan.redis.urls.iter().map(RedisUrl::to_string).collect::<Vec<_>>().join(", ");
    let (mut pause, mut told) = (FIRST_PAUSE, String::new());
    let mut door = plan.door(timeout);
    while shared.strong_count() > 0 {
        let opened = match &mut door {
            Ok(door) => tokio::time::timeout(CONNECT, door.open(timeout)).await,
            Err(error) => Ok(Err(error.clone())),
        };
        let why = match opened {
            Ok(Ok(link)) => {
                tracing::info!(servers, "the store is connected");
                pause = FIRST_PAUSE;
                let why = watch(link, timeout, &shared).await;
                // An outage begins, whatever was told of the last one.
                told.clear();
                why
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        if told != why && shared.strong_count() > 0 {
            tracing::warn!(servers, error = why, "the store can't be reached");
            told = why;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Offers a connection until it fails, and says why it did.
async fn watch(mut link: Link, timeout: Duration, shared: &Weak<Shared>) -> String {
    let Some(alive) = shared.upgrade() else { return String::new() };
    alive.set(Some(link.clone()));
    drop(alive);
    loop {
        let Some(alive) = shared.upgrade() else { return String::new() };
        let _ = tokio::time::timeout(PING, alive.doubts.notified()).await;
        let answer = match alive.is_lost.load(Relaxed) {
            true => Err("the connection is lost".to_owned()),
            false => match tokio::time::timeout(timeout, link.ping()).await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err("it does not answer".to_owned()),
            },
        };
        if let Err(why) = answer {
            alive.set(None);
            return why;
        }
    }
}

impl Store for RedisStore {
    fn get(&self, key: String) -> StoreFuture<'_, Option<Bytes>> {
        let mut command = cmd("GET");
        command.arg(self.key(&key));
        Box::pin(async move {
            let value: Option<Vec<u8>> = self.ask(command).await?;
            Ok(value.map(Bytes::from))
        })
    }

    fn set(&self, key: String, value: Bytes, lifetime: Duration) -> StoreFuture<'_, ()> {
        let mut command = cmd("SET");
        command.arg(self.key(&key)).arg(&*value).arg("PX").arg(millis(lifetime));
        Box::pin(self.ask(command))
    }

    fn compare_and_set(
        &self,
        key: String,
        expected: Option<Bytes>,
        value: Bytes,
        lifetime: Duration,
    ) -> StoreFuture<'_, bool> {
        let (key, lifetime) = (self.key(&key), millis(lifetime));
        Box::pin(async move {
            let Some(expected) = expected else {
                let mut command = cmd("SET");
                command.arg(key).arg(&*value).arg("NX").arg("PX").arg(lifetime);
                let set: Option<String> = self.ask(command).await?;
                return Ok(set.is_some());
            };
            let mut command = cmd("EVAL");
            command.arg(COMPARE_AND_SET).arg(1).arg(key).arg(&*expected).arg(&*value).arg(lifetime);
            self.ask(command).await
        })
    }

    fn delete(&self, key: String) -> StoreFuture<'_, bool> {
        let mut command = cmd("DEL");
        command.arg(self.key(&key));
        Box::pin(self.ask(command))
    }

    fn add(&self, key: String, by: i64, lifetime: Duration) -> StoreFuture<'_, i64> {
        let mut command = cmd("EVAL");
        command.arg(ADD).arg(1).arg(self.key(&key)).arg(by).arg(millis(lifetime));
        Box::pin(self.ask(command))
    }
}

/// Redis' own unit; what is shorter has been refused.
fn millis(lifetime: Duration) -> u64 {
    u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX)
}
