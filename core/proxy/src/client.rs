//! A client's connection: from the accepted socket to the last exchange on it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{Method, Response};
use http_body_util::{Either, Empty};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use portcullis_plugin::{Admission, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::body::{Incoming, ResponseBody};
use crate::exchange::{Dropped, serve};
use crate::forwarded::ForwardedBy;
use crate::generation::ListenerLimits;
use crate::http1::{read_some, serve_connection};
use crate::linger::{Linger, Stream};
use crate::proxy_protocol::{self, Addresses, Header};
use crate::timer::LazyTimer;
use crate::tls;
use crate::worker::{Worker, WorkerGeneration};

/// The first bytes of every HTTP/2 connection (RFC 9113, 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a client may send on one HTTP/2 stream before it must wait.
const STREAM_WINDOW: u32 = 256 * 1024;
/// How often an HTTP/2 connection looks at its clocks, at the least and at the most.
const MIN_LOOK: Duration = Duration::from_millis(50);
const MAX_LOOK: Duration = Duration::from_secs(5);
/// How long a client that is connected may take to begin while the worker drains: what it has sent may
/// still be on its way through the kernel.
pub(crate) const BEGIN: Duration = Duration::from_millis(250);
/// How long an HTTP/2 client may take to agree that a connection without streams ends.
const PARTING: Duration = Duration::from_secs(2);

/// What the exchanges of a connection share.
pub(crate) struct Client {
    pub(crate) worker: Rc<Worker>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) forwarded_by: ForwardedBy,
    /// The listener's index, and the generation that it is valid in.
    listener: Cell<(u64, Option<usize>)>,
    /// The address that the listener is configured with.
    bound: SocketAddr,
    /// Of HTTP/2; with HTTP/1 the connection itself sees what its client does.
    streams: Option<Streams>,
}

/// What is known of a connection's streams.
struct Streams {
    begun: Cell<u64>,
    open: Cell<u32>,
    last_active: Cell<Instant>,
    /// Since when responses wait for the client to take more of them.
    unread: RefCell<BTreeMap<u64, Instant>>,
}

impl Client {
    /// The index of this connection's listener in `generation`; none if it is no longer configured.
    pub(crate) fn listener(&self, generation: &WorkerGeneration) -> Option<usize> {
        let (number, found) = self.listener.get();
        if number == generation.number {
            return found;
        }
        let found = generation.listener_at(self.bound);
        self.listener.set((generation.number, found));
        found
    }

    /// A request of this connection; it is being served until the return value is dropped.
    pub(crate) fn begin(self: &Rc<Self>) -> Serving {
        Serving { stream: self.streams.as_ref().map_or(0, Streams::begin), client: self.clone() }
    }
}

impl Streams {
    fn new() -> Self {
        Streams {
            begun: Cell::new(0),
            open: Cell::new(0),
            last_active: Cell::new(Instant::now()),
            unread: RefCell::default(),
        }
    }

    fn begin(&self) -> u64 {
        self.open.set(self.open.get() + 1);
        self.begun.replace(self.begun.get() + 1)
    }

    fn end(&self, stream: u64) {
        self.open.set(self.open.get() - 1);
        self.unread.borrow_mut().remove(&stream);
        self.last_active.set(Instant::now());
    }

    /// Whether nothing has happened for so long.
    fn are_idle(&self, limit: Duration) -> bool {
        self.open.get() == 0 && self.last_active.get().elapsed() >= limit
    }

    /// Whether a response has waited for so long to be taken.
    fn are_unread(&self, limit: Duration) -> bool {
        self.unread.borrow().values().any(|since| since.elapsed() >= limit)
    }
}

/// A request of a connection, being served.
pub(crate) struct Serving {
    stream: u64,
    pub(crate) client: Rc<Client>,
}

impl Serving {
    /// The response waits for the client to take what it was given, or no longer. Of HTTP/1 the
    /// socket tells.
    pub(crate) fn waits_for_client(&self, waits: bool) {
        let Some(streams) = &self.client.streams else { return };
        let mut unread = streams.unread.borrow_mut();
        match waits {
            true => unread.insert(self.stream, Instant::now()),
            false => unread.remove(&self.stream),
        };
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(streams) = &self.client.streams {
            streams.end(self.stream);
        }
    }
}

/// How a worker asks a connection to end.
#[derive(Default)]
pub(crate) struct Control {
    drain: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Control {
    /// Lets what runs end, and takes nothing new.
    pub(crate) fn drain(&self) {
        self.drain.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Whether that was asked; if not, `cx` is woken when it is.
    pub(crate) fn is_draining(&self, cx: &Context<'_>) -> bool {
        let waker = self.waker.take().filter(|waker| waker.will_wake(cx.waker()));
        self.waker.set(Some(waker.unwrap_or_else(|| cx.waker().clone())));
        self.drain.get()
    }
}

/// Serves a connection from its first byte to its last.
pub(crate) async fn accept(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    peer: SocketAddr,
    bound: SocketAddr,
    control: &Control,
) {
    let accepted = tokio::time::Instant::now();
    // Fails only on a dead socket, which the first read will notice.
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr().unwrap_or(peer);
    let mut ends = Addresses { source: peer, destination: local };
    if let Some((proxies, limit)) = proxies(&worker, bound) {
        // Boxed, as what is rare or short is, so that what waits the longest is small.
        let told = Box::pin(told_ends(&mut stream, ends, &proxies, limit));
        match unless_draining(control, told).await {
            None => return,
            Some(Ok(told)) => ends = told,
            Some(Err(error)) => {
                worker.metrics.proxy_protocol_failures.increment();
                return tracing::debug!(%peer, %error, "refused for its PROXY header");
            }
        }
    }
    let Addresses { source: peer, destination: local } = ends;
    let generation = worker.generation();
    let Some(listener) = generation.listener_at(bound).map(|at| &generation.listeners[at]) else { return };
    let mut connection = Connection { listener: listener.name.clone(), peer, local, tls: None };
    if listener.chain.on_connection(&connection) == Admission::Drop {
        worker.metrics.connections_refused.increment();
        return;
    }
    let (limits, tls) = (listener.limits, listener.tls.clone());
    // A connection lives long, a generation must not.
    drop(generation);
    let opened = match tls {
        None => unless_draining(control, sniff(stream, accepted, &limits)).await,
        Some(tls) => {
            let opened = Box::pin(handshake(&worker, stream, tls, &mut connection, &limits));
            unless_draining(control, opened).await
        }
    };
    let Some(Some(opened)) = opened else { return };
    if opened.is_http2 {
        Box::pin(http2_connection(opened, worker, connection, bound, limits, control)).await;
    } else {
        serve_connection(opened, client(worker, connection, bound, None), limits, control).await;
    }
}

/// From whom alone a listener takes connections, if they have to say whose these are, and how long that
/// may take.
fn proxies(worker: &Worker, bound: SocketAddr) -> Option<(Arc<[IpNet]>, Duration)> {
    let generation = worker.generation();
    let listener = generation.listeners.get(generation.listener_at(bound)?)?;
    Some((listener.proxies.clone()?, listener.limits.header_timeout))
}

/// The ends of the connection that a proxy passes on. Only these proxies are asked, and nobody else is
/// let in: whoever could say whose connection it is could be anybody.
async fn told_ends(
    stream: &mut TcpStream,
    ends: Addresses,
    proxies: &[IpNet],
    limit: Duration,
) -> io::Result<Addresses> {
    let peer = ends.source.ip().to_canonical();
    if !proxies.iter().any(|network| network.contains(&peer)) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    match timeout(limit, proxy_protocol::read(stream)).await.map_err(io::Error::from)?? {
        Header::Client(told) => Ok(told),
        Header::Own => Ok(ends),
    }
}

/// A connection of which is known what it speaks.
pub(crate) struct Opened {
    pub(crate) stream: Box<dyn Stream>,
    /// What was read of it so far.
    pub(crate) read: BytesMut,
    /// Since when the first request is waited for.
    pub(crate) accepted: tokio::time::Instant,
    is_http2: bool,
}

async fn handshake(
    worker: &Worker,
    stream: TcpStream,
    tls: Arc<rustls::ServerConfig>,
    connection: &mut Connection,
    limits: &ListenerLimits,
) -> Option<Opened> {
    let accepting = TlsAcceptor::from(tls).accept(stream);
    let stream = match timeout(limits.header_timeout, accepting).await {
        Ok(Ok(stream)) => stream,
        failed => {
            worker.metrics.handshake_failures.increment();
            if let Ok(Err(error)) = failed {
                tracing::debug!(peer = %connection.peer, %error, "TLS handshake failed");
            }
            return None;
        }
    };
    let session = stream.get_ref().1;
    connection.tls = Some(tls::session(session));
    let is_http2 = session.alpn_protocol() == Some(b"h2");
    // The handshake had its own time.
    let accepted = tokio::time::Instant::now();
    Some(Opened { stream: Box::new(stream), read: BytesMut::new(), accepted, is_http2 })
}

/// Without TLS, the first bytes tell whether the client speaks HTTP/2.
async fn sniff(
    mut stream: TcpStream,
    accepted: tokio::time::Instant,
    limits: &ListenerLimits,
) -> Option<Opened> {
    let read = timeout(limits.header_timeout, read_begin(&mut stream)).await.ok()??;
    let is_http2 = read.starts_with(HTTP2_PREFACE);
    Some(Opened { stream: Box::new(stream), read, accepted, is_http2 })
}

/// Waits for a client to begin; while the worker drains, not much longer.
async fn unless_draining<F: Future>(control: &Control, begin: F) -> Option<F::Output> {
    let mut begin = pin!(begin);
    let mut clock = LazyTimer::new();
    let mut draining = false;
    poll_fn(|cx| {
        if let Poll::Ready(begun) = begin.as_mut().poll(cx) {
            return Poll::Ready(Some(begun));
        }
        if !control.is_draining(cx) {
            return Poll::Pending;
        }
        if !std::mem::replace(&mut draining, true) {
            clock.start(BEGIN);
        }
        clock.poll_expired(cx).map(|()| None)
    })
    .await
}

/// Reads until the bytes are, or can't be, HTTP/2's preface; none if the client went away first.
async fn read_begin(stream: &mut TcpStream) -> Option<BytesMut> {
    let mut read = BytesMut::new();
    while read.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&read) {
        match read_some(stream, &mut read).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
    Some(read)
}

async fn http2_connection(
    opened: Opened,
    worker: Rc<Worker>,
    connection: Connection,
    bound: SocketAddr,
    limits: ListenerLimits,
    control: &Control,
) {
    let client = client(worker, connection, bound, Some(Streams::new()));
    let Some(streams) = &client.streams else { return };
    let mut builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
    // A head that is too long gets our refusal, one that is far too long gets hyper's.
    let head_bytes = limits.header_bytes.saturating_mul(4);
    builder
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .enable_connect_protocol()
        // Streams whose uploads stall must not keep others from theirs.
        .initial_connection_window_size(connection_window(limits.http2_streams));
    let service = {
        let client = client.clone();
        service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            let is_connect = request.method() == Method::CONNECT;
            let upgraded = is_connect.then(|| hyper::upgrade::on(&mut request));
            let (head, body) = request.into_parts();
            let served = serve(&client, Ok(head.into()), Incoming::Http2(body));
            async move {
                let response = served.await?;
                Ok::<_, Dropped>(match upgraded {
                    Some(upgraded) => switch(response, upgraded),
                    None => response.map(Either::Left),
                })
            }
        })
    };
    let io = Linger::new(opened.stream, limits.write_timeout);
    let stream = Prefixed { prefix: opened.read.freeze(), io };
    let mut running = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let look = limits.idle_timeout.min(limits.write_timeout).clamp(MIN_LOOK, MAX_LOOK);
    let mut clock = LazyTimer::new();
    clock.start(look);
    let mut draining: Option<Instant> = None;
    let ended = poll_fn(|cx| {
        let mut drain = draining.is_none() && control.is_draining(cx);
        while clock.poll_expired(cx).is_ready() {
            clock.start(look);
            if streams.are_unread(limits.write_timeout) {
                return Poll::Ready(Ok(()));
            }
            // The client acknowledges the end, or does not.
            let parted = draining.is_some_and(|since| since.elapsed() >= PARTING);
            if parted && streams.open.get() == 0 {
                return Poll::Ready(Ok(()));
            }
            drain |= draining.is_none() && streams.are_idle(limits.idle_timeout);
        }
        if drain {
            draining = Some(Instant::now());
            running.as_mut().graceful_shutdown();
        }
        running.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        tracing::trace!(%error, "connection ended");
    }
}

/// The answer to a `CONNECT`. A tunnel begins once the client's stream is one, and ends with it.
fn switch(
    response: Response<ResponseBody>,
    upgraded: OnUpgrade,
) -> Response<Either<ResponseBody, Empty<Bytes>>> {
    let (head, body) = response.into_parts();
    let mut tunnel = match body.into_tunnel() {
        Ok(tunnel) => tunnel,
        Err(body) => return Response::from_parts(head, Either::Left(body)),
    };
    tokio::task::spawn_local(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut stream = TokioIo::new(upgraded);
        poll_fn(|cx| tunnel.poll(&mut stream, cx)).await;
    });
    Response::from_parts(head, Either::Right(Empty::new()))
}

fn connection_window(streams: u32) -> u32 {
    // RFC 9113, 6.9.1: a window is at most 2^31-1.
    (streams + 1).saturating_mul(STREAM_WINDOW).min(i32::MAX as u32)
}

fn client(
    worker: Rc<Worker>,
    connection: Connection,
    bound: SocketAddr,
    streams: Option<Streams>,
) -> Rc<Client> {
    Rc::new(Client {
        worker,
        forwarded_by: ForwardedBy::new(connection.peer.ip(), connection.tls.is_some()),
        connection: Arc::new(connection),
        listener: Cell::new((0, None)),
        bound,
        streams,
    })
}

/// Runs HTTP/2 streams on the worker's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

/// A stream of which the beginning has been read already.
struct Prefixed<T> {
    prefix: Bytes,
    io: T,
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let length = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Prefixed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<'a, F: Future>(
        _: impl Fn(Rc<Worker>, TcpStream, SocketAddr, SocketAddr, &'a Control) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_waits_is_small() {
        let size = size(accept);
        assert!(size < 4096, "{size} bytes");
    }
}
