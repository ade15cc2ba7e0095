//! Connections, and the places of requests on them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong};
use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use crate::timer::LazyTimer;
use crate::upstream::connection::{Conn, dial};
use crate::upstream::http1::{Broken, MAX_HEAD};
use crate::upstream::transport::ConnectError;
use crate::upstream::{AttemptFailure, Endpoint, Protocol, Upstream};

/// Requests on a connection at a time, whatever the endpoint allows; more open another.
const MAX_STREAMS: usize = 100;
/// What an endpoint may send of one response before it must wait until that is taken.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same of all responses of a connection: those that nobody takes must not keep others from theirs.
const CONNECTION_WINDOW: u32 = (MAX_STREAMS as u32 + 1) * STREAM_WINDOW;
/// How long a connection on which an answer did not come in time may take to show that it works.
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// What requests and the task of a connection know in common.
#[derive(Default)]
struct Link {
    /// Requests that have a place.
    places: AtomicUsize,
    /// Requests that ever had one.
    served: AtomicU64,
    /// Bytes that the socket took.
    written: AtomicU64,
    /// An answer did not come in time: the connection has to show that it works.
    is_doubted: AtomicBool,
    /// Milliseconds without a request after which it is closed.
    idle: AtomicU64,
    task: AtomicWaker,
    is_secure: bool,
}

/// What became of a connection that was to be opened.
enum Opening {
    Waits,
    Failed(AttemptFailure),
    Open(SendRequest<Bytes>, Arc<Link>),
    /// It turned out to be one of HTTP/1.
    Http1,
    /// It takes no more requests.
    Over,
}

thread_local! {
    /// The worker's connections by endpoint. Of one that has ended the channel is closed.
    static CONNECTIONS: RefCell<BTreeMap<u32, Vec<watch::Receiver<Opening>>>> = RefCell::default();
}

/// Connections that are opened for one request, of which others may take the places.
const MAX_OPENED: u32 = 3;

/// A request's place on a connection, until it is dropped.
pub(in crate::upstream) struct Place {
    pub(super) sender: SendRequest<Bytes>,
    /// Whether the connection had served before.
    pub(super) is_reused: bool,
    link: Arc<Link>,
    /// What the socket had taken when the place was.
    written: u64,
}

/// A place for a request, on a new connection if those that are there have none; none if the endpoint chose HTTP/1.
pub(in crate::upstream) async fn place(
    upstream: &Arc<Upstream>,
    endpoint: &Arc<Endpoint>,
) -> Result<Option<Place>, AttemptFailure> {
    let mut opened = 0;
    loop {
        let mut opening = match look(endpoint.id) {
            Look::Place(place) => {
                place.link.idle.store(millis(upstream.timeouts.idle), Relaxed);
                return Ok(Some(place));
            }
            Look::Opening(opening) => opening,
            // They come without room for a request.
            Look::Nothing if opened == MAX_OPENED => return Err(AttemptFailure::Failed),
            Look::Nothing => {
                opened += 1;
                open(upstream, endpoint)
            }
        };
        match opening.wait_for(|opening| !matches!(opening, Opening::Waits)).await.as_deref() {
            Ok(Opening::Failed(failure)) => return Err(*failure),
            Ok(Opening::Http1) => return Ok(None),
            // If others were faster, there may be no place left.
            Ok(_) | Err(_) => {}
        }
        // It has ended before it could be used, and the next may do so too.
        if opening.is_closed() {
            return Err(AttemptFailure::Failed);
        }
    }
}

/// What an endpoint's connections have for a request.
enum Look {
    Place(Place),
    Opening(watch::Receiver<Opening>),
    Nothing,
}

fn look(endpoint: u32) -> Look {
    CONNECTIONS.with_borrow_mut(|all| {
        let Some(connections) = all.get_mut(&endpoint) else { return Look::Nothing };
        connections.retain(|opening| !opening.is_closed());
        let mut found = Look::Nothing;
        for opening in connections.iter() {
            match &*opening.borrow() {
                Opening::Waits => found = Look::Opening(opening.clone()),
                Opening::Open(sender, link) => {
                    if let Some(place) = Place::take(sender, link) {
                        return Look::Place(place);
                    }
                }
                Opening::Failed(_) | Opening::Http1 | Opening::Over => {}
            }
        }
        found
    })
}

/// Begins to open a connection. It does not end with the request that asked for it, because others may
/// wait for it too.
fn open(upstream: &Arc<Upstream>, endpoint: &Arc<Endpoint>) -> watch::Receiver<Opening> {
    let (told, opening) = watch::channel(Opening::Waits);
    CONNECTIONS.with_borrow_mut(|all| all.entry(endpoint.id).or_default().push(opening.clone()));
    let (upstream, endpoint) = (upstream.clone(), endpoint.clone());
    let task = async move {
        match dial(&upstream, &endpoint, None).await {
            Ok(io) if io.is_http2(upstream.protocol) => {
                upstream.metrics.http2_connects.increment();
                let (name, idle) = (upstream.name.clone(), upstream.timeouts.idle);
                // A connection lives long, the upstream of a generation must not.
                drop(upstream);
                if let Err(error) = run(io, &told, idle, endpoint.is_secure()).await {
                    tracing::debug!(upstream = &*name, endpoint = &*endpoint.authority, %error, "connection ended");
                }
            }
            Ok(io) if upstream.protocol == Protocol::Auto => {
                endpoint.choose_http1(true);
                Conn::keep(io, &upstream, &endpoint);
                told.send_replace(Opening::Http1);
            }
            Ok(_) => {
                let error = io::Error::other("it does not speak HTTP/2");
                upstream.note(&endpoint, &ConnectError::Tls(error));
                told.send_replace(Opening::Failed(AttemptFailure::Tls));
            }
            Err(failure) => {
                told.send_replace(Opening::Failed(failure));
            }
        }
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "plugins send from the control thread too; the connection's end is the task's"
    )]
    tokio::spawn(task);
    opening
}

/// Drives a connection from its preface to its end.
async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    told: &watch::Sender<Opening>,
    idle: Duration,
    is_secure: bool,
) -> Result<(), Broken> {
    let link = Arc::new(Link { idle: millis(idle).into(), is_secure, ..Link::default() });
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(MAX_HEAD as u32);
    let (sender, mut running) =
        builder.handshake(Counted { io, link: link.clone() }).await.map_err(Broken::Http2)?;
    let mut doubt = Doubt { pings: running.ping_pong(), is_asked: false, clock: LazyTimer::new() };
    let mut rest = Rest { served: None, clock: LazyTimer::new() };
    told.send_replace(Opening::Open(sender, link.clone()));
    poll_fn(|cx| {
        link.task.register(cx.waker());
        if doubt.poll(&link, cx).is_ready() {
            return Poll::Ready(Err(Broken::Closed));
        }
        if rest.poll(&link, cx).is_ready() {
            // With the last that could use it, it ends in order.
            told.send_replace(Opening::Over);
        }
        Pin::new(&mut running).poll(cx).map_err(Broken::Http2)
    })
    .await
}

/// Has a connection that is doubted show that it works.
struct Doubt {
    pings: Option<PingPong>,
    is_asked: bool,
    clock: LazyTimer,
}

impl Doubt {
    /// Ready when it did not.
    fn poll(&mut self, link: &Link, cx: &mut Context<'_>) -> Poll<()> {
        let Some(pings) = self.pings.as_mut().filter(|_| link.is_doubted.load(Relaxed)) else {
            return Poll::Pending;
        };
        if !std::mem::replace(&mut self.is_asked, true) {
            self.clock.start(PING_PATIENCE);
            if pings.send_ping(Ping::opaque()).is_err() {
                return Poll::Ready(());
            }
        }
        if let Poll::Ready(Ok(_)) = pings.poll_pong(cx) {
            self.is_asked = false;
            link.is_doubted.store(false, Relaxed);
            return Poll::Pending;
        }
        self.clock.poll_expired(cx)
    }
}

/// Sees when a connection has been idle for too long.
struct Rest {
    /// How many requests it had served when it became idle.
    served: Option<u64>,
    clock: LazyTimer,
}

impl Rest {
    fn poll(&mut self, link: &Link, cx: &mut Context<'_>) -> Poll<()> {
        if link.places.load(Relaxed) > 0 {
            self.served = None;
            return Poll::Pending;
        }
        let served = Some(link.served.load(Relaxed));
        if std::mem::replace(&mut self.served, served) != served {
            self.clock.start(Duration::from_millis(link.idle.load(Relaxed)));
        }
        self.clock.poll_expired(cx)
    }
}

impl Place {
    /// A place on a connection, if it has one left and nothing speaks against it.
    fn take(sender: &SendRequest<Bytes>, link: &Arc<Link>) -> Option<Self> {
        let mut sender = sender.clone();
        let most = sender.current_max_send_streams().min(MAX_STREAMS);
        // The endpoint may have said that it takes no more.
        let ready = sender.poll_ready(&mut Context::from_waker(Waker::noop()));
        let is_open = matches!(ready, Poll::Ready(Ok(())));
        if link.places.load(Relaxed) >= most || link.is_doubted.load(Relaxed) || !is_open {
            return None;
        }
        link.places.fetch_add(1, Relaxed);
        let is_reused = link.served.fetch_add(1, Relaxed) > 0;
        Some(Place { sender, is_reused, written: link.written.load(Relaxed), link: link.clone() })
    }

    /// The scheme of requests on it.
    pub(super) fn scheme(&self) -> Scheme {
        if self.link.is_secure { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// Whether the socket has taken nothing since the place was taken.
    pub(super) fn is_unwritten(&self) -> bool {
        self.link.written.load(Relaxed) == self.written
    }

    /// The connection has to show that it works before others use it.
    pub(super) fn doubt(&self) {
        self.link.is_doubted.store(true, Relaxed);
        self.link.task.wake();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.link.places.fetch_sub(1, Relaxed) == 1 {
            self.link.task.wake();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A socket that counts what it takes.
struct Counted<S> {
    io: S,
    link: Arc<Link>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> Counted<S> {
    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = written {
            self.link.written.fetch_add(written as u64, Relaxed);
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(written)
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
