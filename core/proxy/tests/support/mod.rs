//! Gateways, origins and plugins for the suites of the data plane.

#![allow(dead_code, unreachable_pub, reason = "each suite uses its part")]
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use portcullis_plugin::{
    BodyFilter, Decision, End, Exchange, Hook, HookName, Needs, Plugin, PluginError, RouteMeta,
};
use portcullis_proxy::body::Budget;
use portcullis_proxy::chain::{Chain, Instance, OnError};
use portcullis_proxy::generation::{
    Action, ClientLimits, Generation, Listener, ListenerLimits, Rewrite, Route,
};
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::record::{Names, RecordPlan};
use portcullis_proxy::routes::{PathPattern, RouteMatch, RouteTable};
use portcullis_proxy::upstream::{Endpoint, Hedge, Timeouts, Upstream};
use portcullis_proxy::{DataPlane, Gate};

/// A free port of this machine.
pub const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub const PATIENCE: Duration = Duration::from_secs(10);

pub struct Gateway {
    pub plane: Option<DataPlane>,
    pub runtime: tokio::runtime::Runtime,
    pub metrics: Arc<Metrics>,
    pub address: SocketAddr,
}

pub struct Setup {
    pub listener_name: &'static str,
    /// Kept by every generation of this setup, as an unchanged endpoint is.
    pub endpoint: Arc<Endpoint>,
    pub response_timeout: Duration,
    /// Of every plugin's waits.
    pub plugin_timeout: Duration,
    pub plugins: Vec<(Arc<dyn Plugin>, OnError)>,
    pub limits: ListenerLimits,
    pub gate: Arc<Gate>,
    pub max_body: Option<u64>,
    pub budget: u64,
    /// The host that the route names to the upstream.
    pub rewrite_host: Option<HeaderValue>,
    /// Another endpoint, for an attempt beside the first after this time.
    pub hedge: Option<(Arc<Endpoint>, Duration)>,
}

impl Setup {
    pub fn to(upstream: SocketAddr) -> Self {
        let limits = ListenerLimits {
            connections: 100,
            header_bytes: 8192,
            header_count: 50,
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(5),
            write_timeout: Duration::from_secs(5),
            min_rate: std::num::NonZeroU64::new(256),
            idle_timeout: Duration::from_secs(60),
            keepalive: None,
            http2_streams: 100,
        };
        let response_timeout = Duration::from_secs(5);
        Setup {
            listener_name: "public",
            endpoint: Arc::new(Endpoint::new(&upstream.to_string(), &Metrics::new(1)).unwrap()),
            response_timeout,
            plugin_timeout: Duration::from_millis(200),
            plugins: Vec::new(),
            limits,
            gate: Arc::default(),
            max_body: Some(1 << 20),
            budget: 1 << 20,
            rewrite_host: None,
            hedge: None,
        }
    }

    pub fn plugin(mut self, plugin: impl Plugin + 'static) -> Self {
        self.plugins.push((Arc::new(plugin), OnError::Deny));
        self
    }

    pub fn generation(&self, number: u64, metrics: &Arc<Metrics>, bind: SocketAddr) -> Arc<Generation> {
        let instances = self.plugins.iter().enumerate().map(|(at, (plugin, on_error))| {
            let name = format!("p{at}");
            Arc::new(Instance {
                metrics: metrics.plugin(&name, "test"),
                name: name.into(),
                kind: "test",
                version: "1".into(),
                needs: plugin.needs(),
                plugin: plugin.clone(),
                on_error: *on_error,
                quarantine: None,
                budget: portcullis_plugin::Used::default(),
                timeout: self.plugin_timeout,
                in_shadow: false,
                serial: Instance::serial(),
            })
        });
        let chain = Arc::new(Chain::new(instances.collect()));
        let mut endpoints = vec![self.endpoint.clone()];
        endpoints.extend(self.hedge.iter().map(|(other, _)| other.clone()));
        let upstream = Upstream {
            hedge: self.hedge.as_ref().map(|(_, after)| Hedge::After(*after)),
            timeouts: Timeouts {
                total: None,
                connect: Duration::from_secs(2),
                response: self.response_timeout,
                idle: Duration::from_secs(30),
                body: Duration::from_secs(5),
                tunnel: Duration::from_secs(5),
            },
            max_idle: 8,
            ..Upstream::new("origin", endpoints, metrics.upstream("origin"))
        };
        let table = RouteTable::new(vec![RouteMatch {
            hosts: Vec::new(),
            path: PathPattern::template("/api/{rest**}").unwrap(),
            methods: vec![http::Method::GET, http::Method::POST, http::Method::HEAD],
            headers: Vec::new(),
            query: Vec::new(),
        }]);
        let route = Route {
            timeout: None,
            meta: Arc::new(RouteMeta { name: "api".into(), captures: ["rest".into()].into() }),
            upgrades: vec![HeaderValue::from_static("websocket")],
            rewrite: Rewrite { host: self.rewrite_host.clone(), ..Rewrite::default() },
            action: Action::Upstream(Arc::new(upstream)),
            mirror: None,
            metrics: metrics.route("api"),
        };
        let listener = Listener {
            name: self.listener_name.into(),
            bind: vec![bind.into()],
            socket_mode: 0,
            proxies: None,
            tls: None,
            redirect_https: None,
            limits: self.limits,
            client_limits: ClientLimits::default(),
            gate: self.gate.clone(),
            chain: chain.clone(),
            terms: 0,
            route_chains: vec![chain],
        };
        let listeners = vec![Arc::new(listener)];
        Arc::new(Generation {
            number,
            names: Names::new(number, &listeners),
            records: RecordPlan { refused: 16, passed: 16, ..RecordPlan::default() },
            version: "test".into(),
            listeners,
            table: table.unwrap(),
            routes: vec![route],
            unrouted: metrics.route(""),
            trusted_proxies: Vec::new(),
            max_exchanges: u64::MAX,
            max_body: self.max_body,
            budget: Budget::new(self.budget),
        })
    }

    pub fn start(mut self) -> Gateway {
        self.start_kept()
    }

    /// Starts a gateway; the setup can be changed and [swapped](Gateway::swap) in.
    pub fn start_kept(&mut self) -> Gateway {
        let metrics = Arc::new(Metrics::new(1));
        let plane = DataPlane::new(1, metrics.clone(), Vec::new()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bound = plane.bind(&[ANY.into()]).unwrap();
        runtime.block_on(plane.swap(self.generation(1, &metrics, ANY), bound));
        let address = plane.addresses()[0].1.to_string().parse().unwrap();
        Gateway { plane: Some(plane), runtime, metrics, address }
    }
}

impl Gateway {
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends raw bytes on a fresh connection and reads until the gateway closes it.
    pub fn raw(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub fn get(&self, path: &str) -> String {
        self.raw(&format!("GET {path} HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\n\r\n"))
    }

    pub fn swap(&self, setup: &Setup, number: u64) {
        let plane = self.plane.as_ref().unwrap();
        let bound = plane.bind(&[ANY.into()]).unwrap();
        self.runtime.block_on(plane.swap(setup.generation(number, &self.metrics, ANY), bound));
    }

    pub fn drain(&mut self) -> usize {
        let plane = self.plane.take().unwrap();
        self.runtime.block_on(plane.drain(PATIENCE))
    }
}

/// An origin that answers with what it saw; `X-Connection` counts its connections.
pub fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let local = tokio::task::LocalSet::new();
            local
                .run_until(async {
                    let mut connections = 0;
                    while let Ok((stream, _)) = listener.accept().await {
                        connections += 1;
                        let service = hyper::service::service_fn(move |request| echo(request, connections));
                        let io = hyper_util::rt::TokioIo::new(stream);
                        tokio::task::spawn_local(async move {
                            // Clients that go away are part of the tests.
                            let _ = hyper::server::conn::http1::Builder::new()
                                .serve_connection(io, service)
                                .await;
                        });
                    }
                })
                .await;
        });
    });
    address
}

pub async fn echo(
    request: http::Request<hyper::body::Incoming>,
    connection: usize,
) -> Result<
    http::Response<http_body_util::Either<hyper::body::Incoming, http_body_util::Full<Bytes>>>,
    Infallible,
> {
    use http_body_util::{Either, Full};
    let (head, body) = request.into_parts();
    let mut seen = format!("{} {}\n", head.method, head.uri);
    for (name, value) in &head.headers {
        seen.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
    }
    let response = http::Response::builder().header("x-connection", connection);
    if head.uri.path().ends_with("hang") {
        std::future::pending::<()>().await;
    }
    if head.uri.path().ends_with("empty") {
        seen.clear();
    }
    if head.uri.path().ends_with("big") {
        seen = "big ".repeat(500_000);
    }
    Ok(match head.method {
        http::Method::POST => response.body(Either::Left(body)).unwrap(),
        _ => response.body(Either::Right(Full::from(seen))).unwrap(),
    })
}

pub fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status in {answer:?}"))
}

/// Records the end of every exchange.
pub struct Ends(Mutex<mpsc::Sender<Ended>>);

/// How it ended, the status sent, who decided and why.
pub type Ended = (End, Option<StatusCode>, Option<String>);

impl Ends {
    pub fn new() -> (Self, mpsc::Receiver<Ended>) {
        let (sender, receiver) = mpsc::channel();
        (Ends(Mutex::new(sender)), receiver)
    }
}

impl Plugin for Ends {
    fn needs(&self) -> Needs {
        Needs::hooks([HookName::OnLog])
    }

    fn on_log<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        let outcome = exchange.outcome().unwrap();
        let decider = exchange
            .decider()
            .map(|decider| format!("{} {}", decider.by, decider.reason.as_deref().unwrap_or_default()));
        self.0.lock().unwrap().send((outcome.end, outcome.status, decider)).unwrap();
        Hook::CONTINUE
    }
}

pub type HookFn = fn(&mut Exchange) -> Result<Decision, PluginError>;

/// A test plugin made of closures.
#[derive(Default)]
pub struct Probe {
    pub needs: Needs,
    pub on_request: Option<HookFn>,
    pub on_response: Option<HookFn>,
    pub on_upstream: Option<HookFn>,
    pub on_body: Option<HookFn>,
    pub filter: Option<fn() -> Box<dyn BodyFilter>>,
    pub declines_bodies: bool,
}

impl Plugin for Probe {
    fn needs(&self) -> Needs {
        self.needs
    }

    fn on_request<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.on_request.map_or(Hook::CONTINUE, |hook| hook(exchange).into())
    }

    fn on_upstream<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.on_upstream.map_or(Hook::CONTINUE, |hook| hook(exchange).into())
    }

    fn on_response<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.on_response.map_or(Hook::CONTINUE, |hook| hook(exchange).into())
    }

    fn on_request_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.on_body.map_or(Hook::CONTINUE, |hook| hook(exchange).into())
    }

    fn on_response_body<'a>(&'a self, exchange: &'a mut Exchange) -> Hook<'a> {
        self.on_body.map_or(Hook::CONTINUE, |hook| hook(exchange).into())
    }

    fn wants_request_body(&self, _: &Exchange) -> bool {
        !self.declines_bodies
    }

    fn request_body_filter(&self, _: &Exchange) -> Option<Box<dyn BodyFilter>> {
        self.filter.map(|filter| filter())
    }

    fn response_body_filter(&self, _: &Exchange) -> Option<Box<dyn BodyFilter>> {
        self.filter.map(|filter| filter())
    }
}

pub fn header(name: &'static str) -> (http::HeaderName, http::HeaderValue) {
    (http::HeaderName::from_static(name), http::HeaderValue::from_static("yes"))
}

/// An origin that accepts everything and never answers.
pub fn silent_origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let held: Vec<_> = listener
            .incoming()
            .flatten()
            .map(|mut stream| {
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
                })
            })
            .collect();
        drop(held);
    });
    address
}
