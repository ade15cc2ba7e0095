//! A connection to an endpoint with what belongs to it: its clock, its upstream, its place in the
//! pool; and the attempts that are made over it.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::http1::{Broken, Http1, RequestHead};
use super::judge::Running;
use super::retry::{Terms, TryLimit};
use super::slots::Slot;
use super::transport::{ConnectError, Transport, is_of_tls};
use super::{Endpoint, Upstream, http2, pool};
use crate::body::{RequestBody, UploadState};
use crate::grpc::{Call, Code};
use crate::proxy_protocol::Addresses;
use crate::reply::Fault;
use crate::timer::LazyTimer;

/// A connection, in use by one exchange or idle in the pool.
pub(crate) struct Conn {
    http: Http,
    timer: LazyTimer,
    upstream: Arc<Upstream>,
    endpoint: Arc<Endpoint>,
    /// Whose requests alone go over it, if the endpoint was told.
    client: Option<Addresses>,
    idle_since: Instant,
    /// When it is too old for another request.
    expires: Option<Instant>,
    reused: bool,
    /// Whether it has a request under way that is counted.
    counted: bool,
    /// A call of gRPC that has not told its outcome yet, and how long its head took.
    call: Option<(Call, Duration)>,
}

/// What the connection speaks.
enum Http {
    One(Http1<Transport>),
    /// One of its streams.
    Two(http2::Stream),
}

/// Why an attempt gave no response.
pub(crate) struct AttemptError {
    pub(crate) kind: AttemptFailure,
    /// The request's body, if none of the request was sent.
    pub(crate) unsent: Option<RequestBody>,
    /// Whether it failed on a connection that had served before, and may just have been closed.
    pub(crate) reused: bool,
}

impl AttemptError {
    /// Of a response after which another attempt may help.
    pub(crate) fn of(response: &Response<UpstreamBody>) -> Self {
        AttemptError { kind: AttemptFailure::Status(response.status()), unsent: None, reused: false }
    }
}

/// In which way an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptFailure {
    Unreachable,
    ConnectTimeout,
    /// TLS found fault with one of both sides.
    Tls,
    ResponseTimeout,
    Failed,
    /// The endpoint does not switch protocols, in no way that is known of it.
    NoUpgrade,
    /// A response, but one after which another attempt may help.
    Status(StatusCode),
    /// The time for all attempts together is over.
    OutOfTime,
    /// The time that the request itself gave is over.
    Deadline,
    /// The time is over, and the client was waited for.
    SlowUpload,
    /// The upstream has as many requests as it may have, and as many wait.
    Overloaded,
    /// The upstream has had as many requests as it may have for too long.
    PendingTimeout,
}

/// Sends a request to an endpoint, over an idle connection if a live one is there and will do.
pub(crate) async fn send(
    upstream: &Arc<Upstream>,
    endpoint: &Arc<Endpoint>,
    head: RequestHead<'_>,
    body: RequestBody,
    terms: Terms,
    slot: Slot<'_>,
) -> Result<Response<UpstreamBody>, AttemptError> {
    let Terms { limit, fresh } = terms;
    let upload = limit.and_then(|_| body.upload());
    let mut body = Some(body);
    let failure = {
        // Pinned, because two copies of it would be large.
        let running = Running::begin(slot, endpoint);
        let sending = pin!(send_counted(upstream, endpoint, head, &mut body, running, fresh));
        let Some(TryLimit { length, failure }) = limit else { return sending.await };
        match timeout(length, sending).await {
            Ok(sent) => return sent,
            Err(_) if upload.is_some_and(|upload| upload.waits_for_client()) => AttemptFailure::SlowUpload,
            Err(_) => failure,
        }
    };
    // The body is still here if there was no connection yet.
    Err(AttemptError { kind: failure, unsent: body, reused: false })
}

/// Sends the request over a connection, of which the body is taken once there is one.
async fn send_counted(
    upstream: &Arc<Upstream>,
    endpoint: &Arc<Endpoint>,
    head: RequestHead<'_>,
    body: &mut Option<RequestBody>,
    running: Running<'_>,
    fresh: bool,
) -> Result<Response<UpstreamBody>, AttemptError> {
    if upstream.may_speak_http2(endpoint) {
        // Boxed, so that what waits for HTTP/1 stays small.
        if let Some(result) = Box::pin(send_http2(upstream, endpoint, head, body)).await {
            return result.map(|response| response.map(|body| body.counted(running)));
        }
    }
    // Others need not know, and share their connections.
    let client = head.client.filter(|_| endpoint.is_told_clients());
    while !fresh
        && let Some(mut conn) = poll_fn(|cx| Poll::Ready(pool::check_out(endpoint.id, client, cx))).await
    {
        // A connection outlives reloads, the settings it was opened under must not.
        if !Arc::ptr_eq(&conn.upstream, upstream) {
            conn.upstream = upstream.clone();
        }
        match conn.exchange(head, body.take().unwrap_or(RequestBody::Empty)).await {
            // It was closed while it lay idle; nothing was sent.
            Err(AttemptError { unsent: Some(unsent), .. }) => *body = Some(unsent),
            result => return result.map(|response| response.map(|body| body.counted(running))),
        }
    }
    // One that works over HTTP/2 need not do so over HTTP/1 as well.
    let only_http1 = head.upgrade.is_some() && upstream.may_speak_http2(endpoint);
    match Box::pin(dial(upstream, endpoint, client, only_http1)).await {
        Ok(transport) if transport.is_http2(upstream.protocol) => {
            // It has changed its mind since it was asked last.
            endpoint.choose_http1(false);
            Err(AttemptError { kind: AttemptFailure::Failed, unsent: body.take(), reused: true })
        }
        Ok(transport) => {
            let conn = Conn::new(Http::One(Http1::new(transport)), upstream, endpoint, client);
            match conn.exchange(head, body.take().unwrap_or(RequestBody::Empty)).await {
                Ok(response) => Ok(response.map(|body| body.counted(running))),
                Err(AttemptError { kind: AttemptFailure::Failed, .. }) if only_http1 => Err(no_upgrade()),
                Err(error) => Err(error),
            }
        }
        Err(AttemptFailure::Tls) if only_http1 => Err(no_upgrade()),
        Err(kind) => Err(AttemptError { kind, unsent: body.take(), reused: false }),
    }
}

fn no_upgrade() -> AttemptError {
    AttemptError { kind: AttemptFailure::NoUpgrade, unsent: None, reused: false }
}

/// The same over HTTP/2; none if the endpoint chooses HTTP/1, or is to choose it for another protocol.
async fn send_http2(
    upstream: &Arc<Upstream>,
    endpoint: &Arc<Endpoint>,
    head: RequestHead<'_>,
    body: &mut Option<RequestBody>,
) -> Option<Result<Response<UpstreamBody>, AttemptError>> {
    let placed = match head.upgrade {
        None => http2::place(upstream, endpoint).await,
        Some(_) => http2::place_for_tunnel(upstream, endpoint, &head).await,
    };
    match placed {
        Ok(Some(place)) => {
            let conn = Conn::new(Http::Two(http2::Stream::new(place)), upstream, endpoint, None);
            Some(conn.exchange(head, body.take().unwrap_or(RequestBody::Empty)).await)
        }
        Ok(None) if endpoint.is_secure() => None,
        Ok(None) => Some(Err(no_upgrade())),
        Err(kind) => Some(Err(AttemptError { kind, unsent: body.take(), reused: false })),
    }
}

/// Opens a connection to an endpoint, for the requests of this client alone if the endpoint is told, and for HTTP/1
/// alone if it is to speak that in spite of what was configured.
pub(super) async fn dial(
    upstream: &Upstream,
    endpoint: &Endpoint,
    client: Option<&Addresses>,
    only_http1: bool,
) -> Result<Transport, AttemptFailure> {
    let connected = match only_http1 {
        true => upstream.connect_http1(endpoint, client).await,
        false => upstream.connect(endpoint, client).await,
    };
    let failure = match connected {
        Ok(transport) => {
            upstream.metrics.connects.increment();
            return Ok(transport);
        }
        Err(ConnectError::Unreachable(_)) => AttemptFailure::Unreachable,
        Err(ConnectError::Timeout) => AttemptFailure::ConnectTimeout,
        Err(ConnectError::Tls(_)) => AttemptFailure::Tls,
    };
    upstream.metrics.connect_failures.increment();
    Err(failure)
}

impl Conn {
    fn new(
        http: Http,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
        client: Option<&Addresses>,
    ) -> Box<Self> {
        // A connection that is shared knows its own end.
        let (reused, lifetime) = match &http {
            Http::One(_) => (false, upstream.lifetime()),
            Http::Two(stream) => (stream.is_reused(), None),
        };
        let expires = lifetime.map(|length| Instant::now() + length);
        Box::new(Conn {
            http,
            timer: LazyTimer::new(),
            upstream: upstream.clone(),
            endpoint: endpoint.clone(),
            client: client.copied(),
            idle_since: Instant::now(),
            expires,
            reused,
            counted: false,
            call: None,
        })
    }

    /// A new connection for whoever needs one next.
    pub(super) fn keep(transport: Transport, upstream: &Arc<Upstream>, endpoint: &Arc<Endpoint>) {
        pool::check_in(Self::new(Http::One(Http1::new(transport)), upstream, endpoint, None));
    }

    /// Sends the request and waits for the response's head.
    async fn exchange(
        mut self: Box<Self>,
        head: RequestHead<'_>,
        body: RequestBody,
    ) -> Result<Response<UpstreamBody>, AttemptError> {
        let reused = self.reused;
        let upload = body.upload();
        let (patience, mut seen) = (self.upstream.timeouts.response, 0);
        self.timer.start(patience);
        self.http.wait();
        self.http.start(&head, body);
        let received = poll_fn(|cx| {
            if let Poll::Ready(received) = self.http.poll_head(cx) {
                return Poll::Ready(Some(received));
            }
            while self.timer.poll_expired(cx).is_ready() {
                // The upstream owes nothing before it has the request.
                if !upload.as_ref().is_some_and(|upload| upload.goes_on(&mut seen)) {
                    return Poll::Ready(None);
                }
                self.timer.start(patience);
            }
            Poll::Pending
        });
        match received.await {
            Some(Ok(head)) => {
                if !reused {
                    self.endpoint.works();
                }
                Ok(head.map(|()| UpstreamBody { conn: Some(self), upload, seen, waiting: false }))
            }
            Some(Err(error)) => {
                tracing::debug!(upstream = &*self.upstream.name, %error, reused, "attempt failed");
                let (mut kind, mut unsent) = (AttemptFailure::Failed, None);
                match error {
                    Broken::Upload => {}
                    Broken::Io(error) if is_of_tls(&error) => {
                        kind = AttemptFailure::Tls;
                        self.upstream.note(&self.endpoint, &ConnectError::Tls(error));
                    }
                    error => unsent = self.http.take_unsent(&error),
                }
                Err(AttemptError { kind, unsent, reused })
            }
            None => Err(AttemptError { kind: AttemptFailure::ResponseTimeout, unsent: None, reused: false }),
        }
    }

    /// Whether the connection can take a request; looks at it once, so that a close by the other
    /// side is seen.
    pub(super) fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        self.http.poll_is_idle(cx)
    }

    pub(super) fn endpoint(&self) -> u32 {
        self.endpoint.id
    }

    /// Whether requests of this client may go over it.
    pub(super) fn is_for(&self, client: Option<&Addresses>) -> bool {
        self.client.as_ref() == client
    }

    pub(super) fn max_idle(&self) -> usize {
        self.upstream.max_idle
    }

    /// Whether it is not to be used again.
    pub(super) fn is_expired(&self) -> bool {
        self.expires.is_some_and(|end| end <= Instant::now()) || self.idle_too_long()
    }

    fn idle_too_long(&self) -> bool {
        self.idle_since.elapsed() >= self.upstream.timeouts.idle
    }

    /// A call of gRPC has told in trailers what came of it, or has ended without a word.
    fn end_call(&mut self, code: Option<Code>) {
        let Some((call, took)) = self.call.take() else { return };
        let code = code.unwrap_or(Code::UNKNOWN);
        self.upstream.metrics.count_call(code);
        self.upstream.call_ended(&self.endpoint, call.status(code), took);
    }

    /// Puts the connection into the pool if it is fit for another request.
    fn recycle(mut self: Box<Self>) {
        self.end_request();
        if self.http.rest() {
            self.idle_since = Instant::now();
            self.reused = true;
            pool::check_in(self);
        }
    }

    fn end_request(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.upstream.end(&self.endpoint);
        }
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if let (Http::Two(stream), Some(since)) = (&self.http, self.timer.begun) {
            stream.give_up(since);
        }
        self.end_request();
    }
}

impl Http {
    fn start(&mut self, head: &RequestHead<'_>, body: RequestBody) {
        match self {
            Http::One(http) => http.start(head, body),
            Http::Two(stream) => stream.start(head, body),
        }
    }

    fn take_unsent(&mut self, broken: &Broken) -> Option<RequestBody> {
        match self {
            Http::One(http) => http.take_unsent(),
            Http::Two(stream) => stream.take_unsent(broken),
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Broken>> {
        match self {
            Http::One(http) => http.poll_head(cx),
            Http::Two(stream) => stream.poll_head(cx),
        }
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self {
            Http::One(http) => http.poll_body(cx),
            Http::Two(stream) => stream.poll_body(cx),
        }
    }

    fn is_end(&self) -> bool {
        match self {
            Http::One(http) => http.is_end(),
            Http::Two(stream) => stream.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Http::One(http) => http.size_hint(),
            Http::Two(stream) => stream.size_hint(),
        }
    }

    /// From now on the endpoint is waited for.
    fn wait(&mut self) {
        if let Http::Two(stream) = self {
            stream.wait();
        }
    }

    /// Makes ready for another request, if the connection is fit for one and belongs to this one alone.
    fn rest(&mut self) -> bool {
        match self {
            // Whether it is still open is seen when it is taken out again.
            Http::One(http) if http.is_idle() => {
                http.rest();
                true
            }
            Http::One(_) | Http::Two(_) => false,
        }
    }

    fn poll_is_idle(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Http::One(http) => http.poll_is_idle(cx),
            Http::Two(_) => false,
        }
    }
}

/// The connection after a 101.
impl AsyncRead for Http {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Http::One(http) => Pin::new(http).poll_read(cx, buf),
            Http::Two(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Http {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Http::One(http) => Pin::new(http).poll_write(cx, buf),
            Http::Two(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Http::One(http) => Pin::new(http).poll_flush(cx),
            Http::Two(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Http::One(http) => Pin::new(http).poll_shutdown(cx),
            Http::Two(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A response's body with the connection that it comes from.
pub(crate) struct UpstreamBody {
    /// None once the body has ended and the connection went back to the pool.
    conn: Option<Box<Conn>>,
    /// What goes on of the request meanwhile, and how far it had come when last asked.
    upload: Option<Arc<UploadState>>,
    seen: u64,
    waiting: bool,
}

/// An endpoint's connection that speaks what the client asked for. Its request counts as under way.
pub(crate) struct Switched(Box<Conn>);

impl Switched {
    pub(crate) fn io(&mut self) -> &mut (impl AsyncRead + AsyncWrite + Unpin + use<>) {
        &mut self.0.http
    }

    /// How long nothing may pass.
    pub(crate) fn patience(&self) -> Duration {
        self.0.upstream.timeouts.tunnel
    }
}

/// The upstream failed within a body.
#[derive(Debug)]
pub(crate) struct UpstreamBodyError;

impl std::fmt::Display for UpstreamBodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the upstream failed within the response's body")
    }
}

impl std::error::Error for UpstreamBodyError {}

impl From<UpstreamBodyError> for Fault {
    fn from(_: UpstreamBodyError) -> Self {
        Fault::UpstreamFailed
    }
}

type FramePoll = Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>>;

impl UpstreamBody {
    /// The request counts as under way until this body ends.
    fn counted(mut self, running: Running<'_>) -> Self {
        if let Some(conn) = &mut self.conn {
            conn.counted = true;
            running.hand_over();
        }
        self
    }

    /// The response is to a call of gRPC, and its end tells what came of it.
    pub(super) fn awaits_outcome(&mut self, call: Call, took: Duration) {
        if let Some(conn) = &mut self.conn {
            conn.call = Some((call, took));
        }
    }

    /// Whether its end tells what came of it.
    pub(crate) fn is_open_call(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| conn.call.is_some())
    }

    /// Gives the connection back if the response has no body, or skips what is left of it.
    pub(crate) fn release(mut self) {
        self.recycle_if_ended();
    }

    /// The connection behind a 101.
    pub(crate) fn into_switched(self) -> Option<Switched> {
        self.conn.map(Switched)
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let Some(conn) = &mut self.conn else { return Poll::Ready(None) };
        let failed = match conn.http.poll_body(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.waiting = false;
                if let Some(trailers) = frame.trailers_ref() {
                    conn.end_call(Code::of(trailers));
                }
                self.recycle_if_ended();
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => {
                self.recycle_if_ended();
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => error,
            Poll::Pending => {
                if !std::mem::replace(&mut self.waiting, true) {
                    conn.timer.start(conn.upstream.timeouts.body);
                    conn.http.wait();
                }
                std::task::ready!(conn.timer.poll_expired(cx));
                // The upstream may have nothing to say before it has the request.
                while self.upload.as_ref().is_some_and(|upload| upload.goes_on(&mut self.seen)) {
                    conn.timer.start(conn.upstream.timeouts.body);
                    std::task::ready!(conn.timer.poll_expired(cx));
                }
                Broken::Closed
            }
        };
        tracing::debug!(upstream = &*conn.upstream.name, error = %failed, "response broke off");
        if !matches!(failed, Broken::Upload) {
            conn.upstream.broke_off(&conn.endpoint);
        }
        self.conn = None;
        Poll::Ready(Some(Err(UpstreamBodyError)))
    }

    fn recycle_if_ended(&mut self) {
        if let Some(mut conn) = self.conn.take_if(|conn| conn.http.is_end()) {
            conn.end_call(None);
            conn.recycle();
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> FramePoll {
        UpstreamBody::poll_frame(&mut self, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.conn.as_ref().is_none_or(|conn| conn.http.is_end())
    }

    fn size_hint(&self) -> SizeHint {
        self.conn.as_ref().map_or(SizeHint::with_exact(0), |conn| conn.http.size_hint())
    }
}
