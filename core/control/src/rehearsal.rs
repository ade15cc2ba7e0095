//! A gateway for itself: a configuration is run as it is, but on sockets in a directory of its own, for requests that are
//! made up, before upstreams that answer what they are told. Nobody outside sees anything of it.

mod props;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portcullis_config::{
    Config, Diagnostic, Diagnostics, Endpoint, EndpointAddress, HttpVersion, ListenAddress, Network, Proxies,
};
use portcullis_plugin::{Instance, Keyspace};
use portcullis_proxy::DataPlane;
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::record::Record;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::build::{Built, build_from};
use crate::control::dry_services;
use crate::host::Services;
use crate::inputs::Files;
use crate::policies::Alone;
use crate::registry::Registry;
use crate::reload::apply;
use crate::state::StateStore;
use crate::store::Stores;

pub(crate) use props::{PROPS, Props, REGISTRATION, Seen};

/// An answer has so long: longer than any timeout that a configuration is likely to have.
const PATIENCE: Duration = Duration::from_secs(60);

/// A record is there when the answer is, or a moment later.
const RECORD: Duration = Duration::from_secs(5);

/// Where there was no answer either, there may have been no request: the connection was refused.
const NO_REQUEST: Duration = Duration::from_millis(250);

/// How long what is given in a store stays there.
const KEPT: Duration = Duration::from_secs(365 * 86_400);

/// A request that is made up.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The listener that it comes through, by its name; none for the first.
    pub listener: Option<String>,
    /// The client's address.
    pub client: IpAddr,
    /// The request: path and query, headers with `host`, body.
    pub request: Request<Bytes>,
}

/// What became of it.
#[derive(Debug)]
pub struct Told {
    /// What the client got; none if the connection was closed.
    pub answer: Option<Response<Bytes>>,
    /// What upstreams got, by their names.
    pub sent: Vec<(String, Request<Bytes>)>,
    /// The record.
    pub record: Record,
}

/// Why nothing is told of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Untold {
    /// There was none: the connection was refused before.
    Refused,
    /// It could not be made, or nobody answered in time.
    Failed(String),
}

/// What an upstream does.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// It answers so.
    Is(Response<Bytes>),
    /// It closes the connection.
    Fails,
}

/// Where a configuration is built that nobody outside is to see.
#[derive(Clone)]
pub(crate) struct Stage {
    /// The directory of the sockets that stand for listeners and upstreams.
    pub(crate) sockets: PathBuf,
    pub(crate) play: Play,
}

/// What is run there, if it is not just what a file says.
#[derive(Clone, Default)]
pub(crate) struct Play {
    /// A policy that is run alone.
    pub(crate) alone: Option<Arc<Alone>>,
    /// What is given beside requests, for a plugin in front of all others; none if nothing ever is.
    pub(crate) props: Option<Arc<Props>>,
}

impl Play {
    fn put_into(&self, state: &StateStore) {
        if let Some(props) = &self.props {
            props.put_into(state);
        }
    }
}

/// A configuration that is run by itself.
pub struct Rehearsal {
    config: PathBuf,
    services: Services,
    files: Files,
    built: Built,
    plane: DataPlane,
    scene: Arc<Scene>,
    /// The upstreams; they end with this value.
    _upstreams: JoinSet<()>,
    stage: TempDir,
}

/// What upstreams do and see.
#[derive(Default)]
struct Scene {
    answers: Mutex<BTreeMap<String, Answer>>,
    sent: Mutex<Vec<(String, Request<Bytes>)>>,
}

/// Where a listener or an upstream is.
fn socket(stage: &Path, kind: char, number: usize) -> PathBuf {
    stage.join(format!("{kind}{number}"))
}

/// Puts sockets in `stage` in the place of everything by which a configuration meets the world.
pub(crate) fn isolate(config: &mut Config, stage: &Path) {
    for (number, listener) in config.listeners.iter_mut().enumerate() {
        listener.bind = vec![ListenAddress::Unix(socket(stage, 'l', number))];
        // The client's address is said in front of the request.
        listener.proxy_protocol =
            Some(Proxies { from: vec![Network(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())] });
        listener.tls = None;
    }
    for (number, upstream) in config.upstreams.iter_mut().enumerate() {
        let address = EndpointAddress::Unix(socket(stage, 'u', number));
        upstream.endpoints = vec![Endpoint { address, weight: NonZeroU32::MIN, priority: 0, zone: None }];
        (upstream.dns, upstream.tls, upstream.health, upstream.proxy_protocol) = (None, None, None, None);
        upstream.protocol = HttpVersion::Http1;
    }
    config.records = portcullis_config::Records { refused: 1, passed: 1, file: None };
    config.replay = None;
    config.workers = None;
}

impl Rehearsal {
    /// Builds a configuration and everything it names, with state of its own. The errors are all there are.
    pub async fn start(
        config: &Path,
        registry: &Registry,
        variables: BTreeMap<String, String>,
    ) -> Result<Self, Diagnostics> {
        let services = dry_services(registry, variables, Arc::new(Metrics::new(1)));
        Rehearsal::of(config, Play::default(), services, &mut Files::default()).await
    }

    /// The same with services and files of somebody else's making, perhaps of a policy alone. After an error the files
    /// tell what was read.
    pub(crate) async fn of(
        config: &Path,
        play: Play,
        mut services: Services,
        files: &mut Files,
    ) -> Result<Self, Diagnostics> {
        let failed = |what: &str, error: &dyn fmt::Display| {
            Diagnostics::from(Diagnostic::error(config, format!("{what}: {error}")))
        };
        let stage = tempfile::tempdir().map_err(|error| failed("no directory for sockets", &error))?;
        play.put_into(&services.state);
        services.stage = Some(Stage { sockets: stage.path().to_owned(), play });
        let built = build_from(config, &services, files)?;
        let plane =
            DataPlane::unheard(services.metrics.clone()).map_err(|error| failed("no worker", &error))?;
        let (scene, mut upstreams) = (Arc::new(Scene::default()), JoinSet::new());
        for (number, upstream) in built.loaded.config.upstreams.iter().enumerate() {
            let listener = UnixListener::bind(socket(stage.path(), 'u', number));
            let listener = listener.map_err(|error| failed("an upstream's socket", &error))?;
            upstreams.spawn(act(scene.clone(), upstream.name.clone(), listener));
        }
        apply(&plane, &services, &built).await?;
        let (config, files) = (config.to_owned(), std::mem::take(files));
        Ok(Rehearsal { config, services, files, built, plane, scene, _upstreams: upstreams, stage })
    }

    /// Begins anew: nothing is left of what requests before have left behind.
    pub(crate) async fn renew(&mut self) -> Result<(), Diagnostics> {
        self.services.state = self.services.state.renewed();
        self.services.stores =
            Stores::rehearsed(self.services.metrics.store.clone(), self.services.clock.clone());
        if let Some(stage) = &self.services.stage {
            stage.play.put_into(&self.services.state);
        }
        self.built = build_from(&self.config, &self.services, &mut self.files)?;
        lock(&self.scene.answers).clear();
        apply(&self.plane, &self.services, &self.built).await
    }

    /// What is odd about the configuration, though it works.
    pub fn warnings(&self) -> &Diagnostics {
        &self.built.warnings
    }

    /// The listener of this name, if it has one.
    pub(crate) fn listener(&self, name: &str) -> Option<String> {
        let mut listeners = self.built.loaded.config.listeners.iter();
        listeners.find(|listener| listener.name == name).map(|listener| listener.name.clone())
    }

    /// The names of its upstreams.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &str> {
        self.built.loaded.config.upstreams.iter().map(|upstream| upstream.name.as_str())
    }

    /// Has an upstream answer so from now on; unless told otherwise it answers 200 without a body.
    pub(crate) fn answer(&self, upstream: &str, answer: Answer) {
        lock(&self.scene.answers).insert(upstream.to_owned(), answer);
    }

    /// Keeps a value in the part of the store that an instance has.
    pub(crate) async fn keep(&self, instance: &str, key: &str, value: Bytes) -> Result<(), String> {
        let mut plugins = self.built.plugins.iter().map(|plugin| &plugin.instance);
        let found = plugins.find(|found| *found.name == *instance);
        let found = found.ok_or_else(|| format!("there is no plugin `{instance}`"))?;
        let registration = self.services.registry.find(found.kind);
        let instance = Instance {
            kind: found.kind,
            name: found.name.clone(),
            state_schema: registration.map_or(0, |registration| registration.state_schema),
        };
        let part = Keyspace::new(self.services.stores.memory(), &instance, found.in_shadow);
        part.set(key, value, KEPT).await.map_err(|error| error.to_string())
    }

    /// The files that it was built from.
    pub(crate) fn into_files(self) -> Files {
        self.files
    }

    /// Sends a request through the gateway.
    pub async fn ask(&self, asked: &Asked) -> Result<Told, Untold> {
        let listeners = &self.built.loaded.config.listeners;
        let at = match &asked.listener {
            None => 0,
            Some(name) => listeners.iter().position(|listener| listener.name == *name).ok_or_else(|| {
                let known: Vec<_> = listeners.iter().map(|listener| listener.name.as_str()).collect();
                Untold::Failed(format!("there is no listener `{name}`; there is {}", known.join(", ")))
            })?,
        };
        lock(&self.scene.sent).clear();
        let before = self.plane.records().kept();
        let socket = socket(self.stage.path(), 'l', at);
        let answer = tokio::time::timeout(PATIENCE, exchange(&socket, asked)).await;
        let answer =
            answer.map_err(|_| Untold::Failed(format!("no answer within {} s", PATIENCE.as_secs())))?;
        let patience = if answer.is_ok() { RECORD } else { NO_REQUEST };
        let record = self.record_after(before, patience).await.ok_or(Untold::Refused)?;
        let sent = std::mem::take(&mut *lock(&self.scene.sent));
        Ok(Told { answer: answer.ok(), sent, record })
    }

    /// The next record after so many.
    async fn record_after(&self, before: (usize, usize), patience: Duration) -> Option<Record> {
        let (records, since) = (self.plane.records(), Instant::now());
        let mut looks = 0;
        while records.kept() == before {
            if since.elapsed() > patience {
                return None;
            }
            looks += 1;
            // Mostly it is there at once, and a timer has no finer grain than a millisecond.
            if looks < 50 {
                tokio::task::yield_now().await
            } else {
                tokio::time::sleep(Duration::from_millis(1)).await
            }
        }
        let is_refused = records.kept().0 != before.0;
        records.latest(is_refused, 1, |_| true).pop()
    }
}

impl fmt::Display for Untold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Untold::Refused => f.write_str("the connection was refused before there was a request"),
            Untold::Failed(why) => f.write_str(why),
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request on a connection of its own, and its answer.
async fn exchange(
    socket: &Path,
    asked: &Asked,
) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
    let mut stream = UnixStream::connect(socket).await?;
    let preamble = match asked.client {
        IpAddr::V4(client) => format!("PROXY TCP4 {client} 127.0.0.1 40000 80\r\n"),
        IpAddr::V6(client) => format!("PROXY TCP6 {client} ::1 40000 80\r\n"),
    };
    stream.write_all(preamble.as_bytes()).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let answer = sender.send_request(asked.request.clone().map(Full::new)).await?;
    let (head, body) = answer.into_parts();
    Ok(Response::from_parts(head, whole(body).await?))
}

#[expect(
    clippy::disallowed_methods,
    reason = "it is what was made up for this run, with what plugins make of it"
)]
async fn whole(body: Incoming) -> Result<Bytes, hyper::Error> {
    Ok(body.collect().await?.to_bytes())
}

/// Plays an upstream.
async fn act(scene: Arc<Scene>, name: String, listener: UnixListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (scene, name) = (scene.clone(), name.clone());
        let answer = service_fn(move |request: Request<Incoming>| {
            let (scene, name) = (scene.clone(), name.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = whole(body).await.unwrap_or_default();
                lock(&scene.sent).push((name.clone(), Request::from_parts(head, body)));
                match lock(&scene.answers).get(&name) {
                    None => Ok(Response::default()),
                    Some(Answer::Is(answer)) => Ok(answer.clone().map(Full::new)),
                    Some(Answer::Fails) => Err(io::Error::other("as told")),
                }
            }
        });
        connections
            .spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}
