//! Connections, and the places of requests on them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong};
use http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{SetOnce, watch};
use tokio::time::{Instant, timeout};

use super::tunnel::is_handshake;
use crate::http2::walk::{DATA, END_STREAM, HEADERS, Walk};
use crate::timer::LazyTimer;
use crate::upstream::connection::{Conn, dial};
use crate::upstream::http1::{Broken, MAX_HEAD};
use crate::upstream::transport::ConnectError;
use crate::upstream::{AttemptFailure, Endpoint, Protocol, RequestHead, Upstream};

/// Requests on a connection at a time, whatever the endpoint allows; more open another.
const MAX_STREAMS: usize = 100;
/// What an endpoint may send of one response before it must wait until that is taken.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same of all responses of a connection: those that nobody takes must not keep others from theirs.
const CONNECTION_WINDOW: u32 = (MAX_STREAMS as u32 + 1) * STREAM_WINDOW;
/// What small pieces of responses that nobody takes may cost, at 256 bytes each less its length: as much as windows
/// of all requests full of pieces of 50 bytes. Beyond, the connection ends with all of them.
const SMALL_PIECES: usize = 64 * 1024 * 1024;
/// Stands for the number of requests that an endpoint allows until its settings tell that.
const UNTOLD: usize = usize::MAX - 1;
/// For how long an endpoint that owes answers may say nothing at all before its connection has to show that it works.
const SILENCE: Duration = Duration::from_millis(500);
/// For how long it may be silent while there are tunnels on it, of which nobody can tell whether anything is owed.
const TUNNEL_SILENCE: Duration = Duration::from_secs(10);
/// How long it may take to show that.
const PING_PATIENCE: Duration = Duration::from_secs(5);

/// What requests and the task of a connection know in common.
#[derive(Default)]
struct Link {
    /// Requests that have a place.
    places: AtomicUsize,
    /// Those of them that have become tunnels.
    tunnels: AtomicUsize,
    /// Requests that ever had one.
    served: AtomicU64,
    /// Bytes that the socket took.
    written: AtomicU64,
    /// Bytes that came from it.
    heard: AtomicU64,
    /// Requests with bodies that have a place, so that others need not look among them.
    uploads: AtomicUsize,
    /// Their streams, and whether the response has come whole. The library does not know that any more when the stream or
    /// the connection ended before the upload did.
    answered: Mutex<BTreeMap<u32, bool>>,
    /// The silence in which requests were given up last.
    silence: Mutex<Option<Silence>>,
    /// That was too long: the connection has to show that it works.
    is_doubted: AtomicBool,
    /// Whether the endpoint takes an extended `CONNECT`, once its settings say so; none if they never came.
    takes_connect: SetOnce<Option<bool>>,
    /// Milliseconds without a request after which it is closed.
    idle: AtomicU64,
    task: AtomicWaker,
    is_secure: bool,
}

/// A time in which an endpoint owed answers and said nothing.
#[derive(Clone, Copy)]
struct Silence {
    since: Instant,
    /// What had been heard before.
    heard: u64,
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
    /// What had been heard when the wait for the endpoint began.
    heard: u64,
    is_tunnel: bool,
    /// Its stream, if a body is sent on it.
    upload: Option<u32>,
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

/// The same for a handshake, if the endpoint takes an extended `CONNECT` for it (RFC 8441); else none, too.
pub(in crate::upstream) async fn place_for_tunnel(
    upstream: &Arc<Upstream>,
    endpoint: &Arc<Endpoint>,
    head: &RequestHead<'_>,
) -> Result<Option<Place>, AttemptFailure> {
    let Some(place) = place(upstream, endpoint).await? else { return Ok(None) };
    let settings = timeout(upstream.timeouts.connect, place.link.takes_connect.wait());
    match *settings.await.map_err(|_| AttemptFailure::ConnectTimeout)? {
        Some(takes) => Ok(Some(place).filter(|_| takes && is_handshake(head))),
        None => Err(AttemptFailure::Failed),
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
    CONNECTIONS.with_borrow_mut(|all| {
        sweep(all);
        all.entry(endpoint.id).or_default().push(opening.clone());
    });
    let (upstream, endpoint) = (upstream.clone(), endpoint.clone());
    let task = async move {
        match dial(&upstream, &endpoint, None, false).await {
            Ok(io) if io.is_http2(upstream.protocol) => {
                upstream.metrics.http2_connects.increment();
                let (name, idle) = (upstream.name.clone(), upstream.timeouts.idle);
                let lifetime = upstream.lifetime();
                // A connection lives long, the upstream of a generation must not.
                drop(upstream);
                if let Err(error) = run(io, &told, idle, lifetime, endpoint.is_secure()).await {
                    tracing::debug!(upstream = &*name, endpoint = &*endpoint.authority, %error, "connection ended");
                }
                told.send_replace(Opening::Over);
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

/// Forgets connections that have ended, and endpoints that have none: those of an endpoint that is gone are asked for no
/// more.
fn sweep(all: &mut BTreeMap<u32, Vec<watch::Receiver<Opening>>>) {
    all.retain(|_, connections| {
        connections.retain(|opening| !opening.is_closed());
        !connections.is_empty()
    });
}

/// Drives a connection from its preface to its end.
async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    told: &watch::Sender<Opening>,
    idle: Duration,
    lifetime: Option<Duration>,
    is_secure: bool,
) -> Result<(), Broken> {
    let link = Arc::new(Link { idle: millis(idle).into(), is_secure, ..Link::default() });
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(UNTOLD)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .data_frame_budget(SMALL_PIECES)
        .max_header_list_size(MAX_HEAD as u32);
    let (sender, mut running) = builder
        .handshake(Counted { io, link: link.clone(), reading: Walk::default(), has_failed: false })
        .await
        .map_err(Broken::Http2)?;
    let mut doubt = Doubt::of(running.ping_pong());
    let mut rest = Rest { served: None, clock: LazyTimer::new() };
    let mut age = LazyTimer::new();
    lifetime.into_iter().for_each(|length| age.start(length));
    told.send_replace(Opening::Open(sender, link.clone()));
    let ended = poll_fn(|cx| {
        link.task.register(cx.waker());
        // What there is to hear is heard before anything is judged by it.
        if let Poll::Ready(ended) = Pin::new(&mut running).poll(cx) {
            return Poll::Ready(ended.map_err(Broken::Http2));
        }
        if !link.takes_connect.initialized() && running.max_concurrent_send_streams() != UNTOLD {
            link.has_settings(&told.borrow());
        }
        let is_given_up = match doubt.poll(&link, cx) {
            Poll::Ready(Err(broken)) => return Poll::Ready(Err(broken)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        if is_given_up || rest.poll(&link, cx).is_ready() || age.poll_expired(cx).is_ready() {
            // With the last that could use it, it ends in order.
            told.send_replace(Opening::Over);
        }
        Poll::Pending
    });
    let ended = ended.await;
    // Nobody waits for them any more; a second word is not heard.
    let _ = link.takes_connect.set(None);
    ended
}

impl Link {
    /// The endpoint's settings have come.
    fn has_settings(&self, opening: &Opening) {
        if let Opening::Open(sender, _) = opening {
            let _ = self.takes_connect.set(Some(sender.is_extended_connect_protocol_enabled()));
        }
    }

    /// The endpoint has ended its side of a stream.
    fn has_answered(&self, stream: u32) {
        if self.uploads.load(Relaxed) > 0
            && let Some(answered) = self.answered().get_mut(&stream)
        {
            *answered = true;
        }
    }

    fn answered(&self) -> MutexGuard<'_, BTreeMap<u32, bool>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has been silent for too long when requests that waited since then are given up.
    fn is_silent(&self, heard: u64, since: Instant) -> bool {
        let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        let before = silence.filter(|silence| silence.heard == heard).map(|silence| silence.since);
        let since = before.map_or(since, |before| before.min(since));
        *silence = Some(Silence { since, heard });
        since.elapsed() >= SILENCE
    }
}

/// Has a connection that is doubted, or silent while there are tunnels on it, show that it works, by whatever it says.
struct Doubt {
    pings: Option<PingPong>,
    /// A ping has not been answered yet.
    is_asked: bool,
    /// What had been heard when it was asked, until it has said something.
    since: Option<u64>,
    /// What had been heard with the last answer to a ping.
    answered: Option<u64>,
    clock: LazyTimer,
    silence: TunnelSilence,
}

/// Sees when nothing has been heard for too long while there are tunnels.
struct TunnelSilence {
    heard: Option<u64>,
    clock: LazyTimer,
}

impl TunnelSilence {
    fn poll(&mut self, link: &Link, heard: u64, cx: &mut Context<'_>) -> Poll<()> {
        if link.tunnels.load(Relaxed) == 0 {
            self.heard = None;
            return Poll::Pending;
        }
        if self.heard.replace(heard) != Some(heard) {
            self.clock.start(TUNNEL_SILENCE);
        }
        self.clock.poll_expired(cx)
    }
}

impl Doubt {
    fn of(pings: Option<PingPong>) -> Self {
        let silence = TunnelSilence { heard: None, clock: LazyTimer::new() };
        Doubt { pings, is_asked: false, since: None, answered: None, clock: LazyTimer::new(), silence }
    }

    /// Ready when it does not, and when it does so again and again and answers nothing else: then it gets no more
    /// requests, because servers of gRPC take many pings for an attack.
    fn poll(&mut self, link: &Link, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        let heard = link.heard.load(Relaxed);
        if self.is_asked && pings.poll_pong(cx).is_ready() {
            (self.is_asked, self.answered) = (false, Some(heard));
        }
        if self.since.is_some_and(|since| since != heard) {
            self.since = None;
            link.is_doubted.store(false, Relaxed);
        }
        let is_silent = self.silence.poll(link, heard, cx).is_ready();
        if self.since.is_none() {
            match link.is_doubted.load(Relaxed) {
                true if self.answered == Some(heard) => {
                    link.is_doubted.store(false, Relaxed);
                    return Poll::Ready(Ok(()));
                }
                false if !is_silent => return Poll::Pending,
                _ => {}
            }
            self.since = Some(heard);
            self.clock.start(PING_PATIENCE);
            // One that was asked before and has not answered still is.
            self.is_asked |= pings.send_ping(Ping::opaque()).is_ok();
        }
        self.clock.poll_expired(cx).map(|()| Err(Broken::Closed))
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
        let (written, heard) = (link.written.load(Relaxed), link.heard.load(Relaxed));
        Some(Place { sender, is_reused, written, heard, is_tunnel: false, upload: None, link: link.clone() })
    }

    /// The scheme of requests on it.
    pub(super) fn scheme(&self) -> Scheme {
        if self.link.is_secure { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// Whether the socket has taken nothing since the place was taken.
    pub(super) fn is_unwritten(&self) -> bool {
        self.link.written.load(Relaxed) == self.written
    }

    /// The request has become a tunnel, and is one until the place is dropped.
    pub(super) fn opens_tunnel(&mut self) {
        self.is_tunnel = true;
        if self.link.tunnels.fetch_add(1, Relaxed) == 0 {
            self.link.task.wake();
        }
    }

    /// A body is sent on this stream.
    pub(super) fn uploads(&mut self, stream: u32) {
        self.upload = Some(stream);
        self.link.uploads.fetch_add(1, Relaxed);
        self.link.answered().insert(stream, false);
    }

    /// Whether the response to an upload has come whole, though its stream ended so: an endpoint that wants no more of the
    /// upload may say that behind its answer (RFC 9113, 8.1), or hang up.
    pub(super) fn is_whole(&self, error: &h2::Error) -> bool {
        let is_answered = |stream| self.link.answered().get(&stream) == Some(&true);
        !error.is_library() && self.upload.is_some_and(is_answered)
    }

    /// From now on the endpoint is waited for.
    pub(super) fn wait(&mut self) {
        self.heard = self.link.heard.load(Relaxed);
    }

    /// The endpoint was waited for since then, and is no longer. If it has said nothing for too long, the connection
    /// has to show that it works before others use it.
    pub(super) fn give_up(&self, since: Instant) {
        let is_quiet = self.link.heard.load(Relaxed) == self.heard;
        if is_quiet && self.link.is_silent(self.heard, since) {
            self.link.is_doubted.store(true, Relaxed);
            self.link.task.wake();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_tunnel {
            self.link.tunnels.fetch_sub(1, Relaxed);
        }
        if let Some(stream) = self.upload {
            self.link.uploads.fetch_sub(1, Relaxed);
            self.link.answered().remove(&stream);
        }
        if self.link.places.fetch_sub(1, Relaxed) == 1 {
            self.link.task.wake();
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A socket that counts what it takes and what comes from it, and sees which responses come whole.
struct Counted<S> {
    io: S,
    link: Arc<Link>,
    reading: Walk,
    /// It takes nothing any more. What came before that is read first, and then reading fails.
    has_failed: bool,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Counted { io, link, reading, has_failed } = &mut *self;
        let read = Pin::new(io).poll_read(cx, buf);
        if read.is_pending() && *has_failed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let new = &buf.filled()[before..];
        link.heard.fetch_add(new.len() as u64, Relaxed);
        reading.pass(new, |frame| {
            if [DATA, HEADERS].contains(&frame.kind) && frame.flags & END_STREAM != 0 {
                link.has_answered(frame.stream);
            }
        });
        read
    }
}

impl<S: AsyncWrite + Unpin> Counted<S> {
    /// What came of a write of so many bytes. One that failed is told by reading.
    fn wrote(
        &mut self,
        written: Poll<io::Result<usize>>,
        length: usize,
        cx: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        written.map(|written| {
            Ok(match written {
                Ok(written) => {
                    self.link.written.fetch_add(written as u64, Relaxed);
                    written
                }
                Err(_) => {
                    self.has_failed = true;
                    cx.waker().wake_by_ref();
                    length
                }
            })
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.wrote(written, buf.len(), cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.wrote(written, bufs.iter().map(|buf| buf.len()).sum(), cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx).map_ok(|()| 0);
        self.wrote(flushed, 0, cx).map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_have_ended_are_forgotten_with_endpoints_that_have_no_others() {
        let (held, open) = watch::channel(Opening::Waits);
        let ended = || watch::channel(Opening::Over).1;
        let mut all = BTreeMap::from([(1, vec![ended(), open, ended()]), (2, vec![ended()])]);
        sweep(&mut all);
        assert_eq!((all.len(), all[&1].len()), (1, 1));
        drop(held);
        sweep(&mut all);
        assert!(all.is_empty());
    }
}
