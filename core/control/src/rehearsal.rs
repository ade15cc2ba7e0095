//! A gateway for itself: a configuration is run as it is, but on sockets in a directory of its own, for requests that are
//! made up, before upstreams that answer what they are told. Nobody outside sees anything of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
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
use portcullis_proxy::DataPlane;
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::record::Record;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::build::{Built, build};
use crate::control::dry_services;
use crate::registry::Registry;
use crate::reload::apply;

/// An answer has so long: longer than any timeout that a configuration is likely to have.
const PATIENCE: Duration = Duration::from_secs(60);

/// A record is there when the answer is, or a moment later.
const RECORD: Duration = Duration::from_secs(5);

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

/// A configuration that is run by itself.
pub struct Rehearsal {
    built: Built,
    plane: DataPlane,
    stage: TempDir,
    scene: Arc<Scene>,
    /// The upstreams; they end with this value.
    _upstreams: JoinSet<()>,
}

/// What upstreams do and see.
#[derive(Default)]
struct Scene {
    answers: Mutex<BTreeMap<String, Response<Bytes>>>,
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
    config.workers = None;
}

impl Rehearsal {
    /// Builds a configuration and everything it names, with state of its own. The errors are all there are.
    pub async fn start(
        config: &Path,
        registry: &Registry,
        variables: BTreeMap<String, String>,
    ) -> Result<Self, Diagnostics> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Diagnostics::from(Diagnostic::error(config, format!("{what}: {error}")))
        };
        let stage = tempfile::tempdir().map_err(|error| failed("no directory for sockets", &error))?;
        let metrics = Arc::new(Metrics::new(1));
        let mut services = dry_services(registry, variables, metrics.clone());
        services.stage = Some(stage.path().to_owned());
        let built = build(config, &services, None, None).map_err(|failed| failed.findings)?;
        let plane = DataPlane::new(1, metrics, Vec::new()).map_err(|error| failed("no worker", &error))?;
        let (scene, mut upstreams) = (Arc::new(Scene::default()), JoinSet::new());
        for (number, upstream) in built.loaded.config.upstreams.iter().enumerate() {
            let listener = UnixListener::bind(socket(stage.path(), 'u', number));
            let listener = listener.map_err(|error| failed("an upstream's socket", &error))?;
            upstreams.spawn(play(scene.clone(), upstream.name.clone(), listener));
        }
        apply(&plane, &services, &built).await?;
        Ok(Rehearsal { built, plane, stage, scene, _upstreams: upstreams })
    }

    /// What is odd about the configuration, though it works.
    pub fn warnings(&self) -> &Diagnostics {
        &self.built.warnings
    }

    /// Has an upstream answer so from now on; unless told otherwise it answers 200 without a body.
    pub fn answer(&self, upstream: &str, answer: Response<Bytes>) {
        lock(&self.scene.answers).insert(upstream.to_owned(), answer);
    }

    /// Sends a request through the gateway.
    pub async fn ask(&self, asked: &Asked) -> Result<Told, String> {
        let listeners = &self.built.loaded.config.listeners;
        let at = match &asked.listener {
            None => 0,
            Some(name) => listeners.iter().position(|listener| listener.name == *name).ok_or_else(|| {
                let known: Vec<_> = listeners.iter().map(|listener| listener.name.as_str()).collect();
                format!("there is no listener `{name}`; there is {}", known.join(", "))
            })?,
        };
        lock(&self.scene.sent).clear();
        let records = self.plane.records();
        let latest = || {
            let both = [true, false].map(|refused| records.latest(refused, 1, |_| true));
            both.into_iter().flatten().map(|record| (record.id.clone(), record)).collect::<BTreeMap<_, _>>()
        };
        let before = latest();
        let socket = socket(self.stage.path(), 'l', at);
        let answer = tokio::time::timeout(PATIENCE, exchange(&socket, asked)).await;
        let answer = answer.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
        let since = Instant::now();
        let record = loop {
            let new = latest().into_iter().find(|(id, _)| !before.contains_key(id));
            match new {
                Some((_, record)) => break record,
                None if since.elapsed() > RECORD => {
                    return Err("the connection was refused before there was a request".to_owned());
                }
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        let sent = std::mem::take(&mut *lock(&self.scene.sent));
        Ok(Told { answer: answer.ok(), sent, record })
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
async fn play(scene: Arc<Scene>, name: String, listener: UnixListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (scene, name) = (scene.clone(), name.clone());
        let answer = service_fn(move |request: Request<Incoming>| {
            let (scene, name) = (scene.clone(), name.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = whole(body).await.unwrap_or_default();
                lock(&scene.sent).push((name.clone(), Request::from_parts(head, body)));
                let answer = lock(&scene.answers).get(&name).cloned().unwrap_or_default();
                Ok::<_, Infallible>(answer.map(Full::new))
            }
        });
        connections
            .spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}
