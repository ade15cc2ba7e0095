//! A client's connection: from the accepted socket to the last exchange on it.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use ipnet::IpNet;
use portcullis_plugin::{Admission, Connection};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::admit::Place;
use crate::forwarded::ForwardedBy;
use crate::generation::ListenerLimits;
use crate::http1::{self, read_some};
use crate::http2::{self, Streams};
use crate::linger::Stream;
use crate::metrics::{GivenUp, Refused};
use crate::proxy_protocol::{self, Addresses, Header};
use crate::socket::{Accepted, Address};
use crate::timer::LazyTimer;
use crate::tls;
use crate::worker::{Worker, WorkerGeneration};

/// How long a client that is connected may take to begin while the worker drains: what it has sent may
/// still be on its way through the kernel.
pub(crate) const BEGIN: Duration = Duration::from_millis(250);

/// What the exchanges of a connection share.
pub(crate) struct Client {
    pub(crate) worker: Rc<Worker>,
    pub(crate) connection: Arc<Connection>,
    pub(crate) forwarded_by: ForwardedBy,
    /// The listener's index, and the generation that it is valid in.
    listener: Cell<(u64, Option<usize>)>,
    /// The address that the listener is configured with.
    bound: Rc<Address>,
    /// Of HTTP/2; with HTTP/1 the connection itself sees what its client does.
    pub(crate) streams: Option<Streams>,
}

impl Client {
    /// The index of this connection's listener in `generation`; none if it is no longer configured.
    pub(crate) fn listener(&self, generation: &WorkerGeneration) -> Option<usize> {
        let (number, found) = self.listener.get();
        if number == generation.number {
            return found;
        }
        let found = generation.listener_at(&self.bound);
        self.listener.set((generation.number, found));
        found
    }

    /// The connection ends for what came on it.
    pub(crate) fn give_up(&self, why: GivenUp) {
        self.worker.metrics.give_up(why);
        let generation = self.worker.generation();
        if let Some(at) = self.listener(&generation) {
            let listener = &generation.listeners[at];
            listener.gate.tell_end(&listener.name, self.connection.peer.ip(), why);
        }
    }

    /// A request of this connection; it is being served until the return value is dropped.
    pub(crate) fn begin(self: &Rc<Self>) -> Serving {
        Serving { stream: self.streams.as_ref().map_or(0, Streams::begin), client: self.clone() }
    }
}

/// A request of a connection, being served.
pub(crate) struct Serving {
    stream: u64,
    pub(crate) client: Rc<Client>,
}

impl Serving {
    /// Which of the connection's streams it is; with HTTP/1 there is but one.
    pub(crate) fn stream(&self) -> u64 {
        self.stream
    }

    /// The response waits for the client to take what it was given, or no longer. Of HTTP/1 the
    /// socket tells.
    pub(crate) fn waits_for_client(&self, waits: bool) {
        if let Some(streams) = &self.client.streams {
            streams.waits_for_client(self.stream, waits);
        }
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
    stream: Accepted,
    peer: SocketAddr,
    bound: Rc<Address>,
    place: &mut Place,
    control: &Control,
) {
    // Boxed, as what is rare or short is, so that what waits the longest is small.
    let begun = Box::pin(begin(worker, stream, peer, bound, place, control)).await;
    let Some((opened, client, limits)) = begun else { return };
    if opened.is_http2 {
        Box::pin(http2::serve_connection(opened, client, limits, control)).await;
    } else {
        http1::serve_connection(opened, client, &limits, control).await;
    }
}

/// Lets the client in, if it may come in, and learns what it speaks.
async fn begin(
    worker: Rc<Worker>,
    mut stream: Accepted,
    peer: SocketAddr,
    bound: Rc<Address>,
    place: &mut Place,
    control: &Control,
) -> Option<(Opened, Rc<Client>, ListenerLimits)> {
    let accepted = tokio::time::Instant::now();
    stream.set_nodelay();
    let local = stream.local().unwrap_or(peer);
    let mut ends = Addresses { source: peer, destination: local };
    if let Some((proxies, limit)) = proxies(&worker, &bound) {
        let told = Box::pin(told_ends(&mut stream, ends, &proxies, limit));
        match unless_draining(control, told).await? {
            Ok(told) => ends = told,
            Err(error) => {
                worker.metrics.proxy_protocol_failures.increment();
                tracing::debug!(%peer, %error, "refused for its PROXY header");
                return None;
            }
        }
    }
    let Addresses { source: peer, destination: local } = ends;
    let generation = worker.generation();
    let listener = generation.listeners.get(generation.listener_at(&bound)?)?;
    if listener.proxies.is_some()
        && let Err(why) = place.take_for(peer.ip(), listener, &generation.trusted_proxies)
    {
        worker.refuse(&stream, peer.ip(), listener, why);
        return None;
    }
    let mut connection = Connection { listener: listener.name.clone(), peer, local, tls: None };
    if listener.chain.on_connection(&connection) == Admission::Drop {
        worker.metrics.refuse(Refused::Plugin);
        return None;
    }
    if let Some(after) = listener.limits.keepalive {
        stream.keep_alive(after);
    }
    let (limits, tls) = (listener.limits, listener.tls.clone());
    // A connection lives long, a generation must not.
    drop(generation);
    let opened = match tls {
        None => unless_draining(control, sniff(&worker, stream, accepted, &limits)).await??,
        Some(tls) => {
            let opened = Box::pin(handshake(&worker, stream, tls, &mut connection, &limits));
            unless_draining(control, opened).await??
        }
    };
    let streams = opened.is_http2.then(Streams::new);
    Some((opened, client(worker, connection, bound, streams), limits))
}

/// From whom alone a listener takes connections, if they have to say whose these are, and how long that
/// may take.
fn proxies(worker: &Worker, bound: &Address) -> Option<(Arc<[IpNet]>, Duration)> {
    let generation = worker.generation();
    let listener = generation.listeners.get(generation.listener_at(bound)?)?;
    Some((listener.proxies.clone()?, listener.limits.header_timeout))
}

/// The ends of the connection that a proxy passes on. Only these proxies are asked, and nobody else is
/// let in: whoever could say whose connection it is could be anybody.
async fn told_ends(
    stream: &mut Accepted,
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
    stream: Accepted,
    tls: Arc<rustls::ServerConfig>,
    connection: &mut Connection,
    limits: &ListenerLimits,
) -> Option<Opened> {
    let accepting = TlsAcceptor::from(tls).accept(stream);
    let stream = match timeout(limits.header_timeout, accepting).await {
        Ok(Ok(stream)) => stream,
        failed => {
            worker.metrics.handshake_failures.increment();
            match failed {
                Ok(Err(error)) => {
                    tracing::debug!(peer = %connection.peer, %error, "TLS handshake failed");
                }
                _ => worker.metrics.give_up(GivenUp::Handshake),
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
    worker: &Worker,
    mut stream: Accepted,
    accepted: tokio::time::Instant,
    limits: &ListenerLimits,
) -> Option<Opened> {
    let begun = timeout(limits.header_timeout, read_begin(&mut stream)).await;
    let read = begun.inspect_err(|_| worker.metrics.give_up(GivenUp::Header)).ok()??;
    let is_http2 = read.starts_with(http2::PREFACE);
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
async fn read_begin(stream: &mut Accepted) -> Option<BytesMut> {
    let mut read = BytesMut::new();
    while read.len() < http2::PREFACE.len() && http2::PREFACE.starts_with(&read) {
        match read_some(stream, &mut read).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
    Some(read)
}

fn client(
    worker: Rc<Worker>,
    connection: Connection,
    bound: Rc<Address>,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn size<'a, F: Future>(
        _: impl Fn(Rc<Worker>, Accepted, SocketAddr, Rc<Address>, &'a mut Place, &'a Control) -> F,
    ) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_waits_is_small() {
        let size = size(accept);
        assert!(size < 4096, "{size} bytes");
    }
}
