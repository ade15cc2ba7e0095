//! A connection to an endpoint with what belongs to it: its clock, its upstream, its place in the
//! pool; and the attempts that are made over it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http1::{Broken, Http1, RequestHead};
use super::{Endpoint, Upstream, pool};
use crate::body::RequestBody;
use crate::reply::Fault;
use crate::timer::LazyTimer;

/// A connection, in use by one exchange or idle in the pool.
pub(crate) struct Conn {
    http: Http1<TcpStream>,
    timer: LazyTimer,
    upstream: Arc<Upstream>,
    endpoint: u32,
    idle_since: Instant,
    reused: bool,
}

/// Why an attempt gave no response.
pub(crate) struct AttemptError {
    pub(crate) kind: AttemptFailure,
    /// The request's body, if none of the request was sent.
    pub(crate) unsent: Option<RequestBody>,
    /// Whether it failed on a connection that had served before, and may just have been closed.
    pub(crate) reused: bool,
}

/// In which way an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptFailure {
    Unreachable,
    ConnectTimeout,
    ResponseTimeout,
    Failed,
}

/// Sends a request to an endpoint, over an idle connection if a live one is there.
pub(crate) async fn send(
    upstream: &Arc<Upstream>,
    endpoint: &Endpoint,
    head: RequestHead<'_>,
    mut body: RequestBody,
) -> Result<Response<UpstreamBody>, AttemptError> {
    while let Some(mut conn) = poll_fn(|cx| Poll::Ready(pool::check_out(endpoint.id, cx))).await {
        // A connection outlives reloads, the settings it was opened under must not.
        if !Arc::ptr_eq(&conn.upstream, upstream) {
            conn.upstream = upstream.clone();
        }
        match conn.exchange(head, body).await {
            // It was closed while it lay idle; nothing was sent.
            Err(AttemptError { unsent: Some(unsent), .. }) => body = unsent,
            result => return result,
        }
    }
    match Conn::open(upstream, endpoint).await {
        Ok(conn) => conn.exchange(head, body).await,
        Err(kind) => Err(AttemptError { kind, unsent: Some(body), reused: false }),
    }
}

impl Conn {
    async fn open(upstream: &Arc<Upstream>, endpoint: &Endpoint) -> Result<Box<Self>, AttemptFailure> {
        let connected = timeout(upstream.timeouts.connect, TcpStream::connect(&*endpoint.authority)).await;
        let failure = match connected {
            Ok(Ok(stream)) => {
                upstream.metrics.connects.increment();
                return Ok(Self::new(stream, upstream, endpoint));
            }
            Ok(Err(error)) => {
                tracing::debug!(upstream = &*upstream.name, endpoint = &*endpoint.authority, %error, "connect failed");
                AttemptFailure::Unreachable
            }
            Err(_) => AttemptFailure::ConnectTimeout,
        };
        upstream.metrics.connect_failures.increment();
        Err(failure)
    }

    fn new(stream: TcpStream, upstream: &Arc<Upstream>, endpoint: &Endpoint) -> Box<Self> {
        // Fails only on a dead socket, which the first use will notice.
        let _ = stream.set_nodelay(true);
        Box::new(Conn {
            http: Http1::new(stream),
            timer: LazyTimer::new(),
            upstream: upstream.clone(),
            endpoint: endpoint.id,
            idle_since: Instant::now(),
            reused: false,
        })
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
            Some(Ok(head)) => Ok(head.map(|()| UpstreamBody::new(self))),
            Some(Err(error)) => {
                tracing::debug!(upstream = &*self.upstream.name, %error, reused, "attempt failed");
                let unsent = match error {
                    Broken::Upload => None,
                    _ => self.http.take_unsent(),
                };
                Err(AttemptError { kind: AttemptFailure::Failed, unsent, reused })
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
        self.endpoint
    }

    pub(super) fn max_idle(&self) -> usize {
        self.upstream.max_idle
    }

    pub(super) fn idle_too_long(&self) -> bool {
        self.idle_since.elapsed() >= self.upstream.timeouts.idle
    }

    /// Puts the connection into the pool if it is fit for another request.
    fn recycle(mut self: Box<Self>) {
        // Whether it is still open is seen when it is taken out again.
        if self.http.is_idle() {
            self.http.rest();
            self.idle_since = Instant::now();
            self.reused = true;
            pool::check_in(self);
        }
    }
}

/// A response's body with the connection that it comes from.
pub(crate) struct UpstreamBody {
    /// None once the body has ended and the connection went back to the pool.
    conn: Option<Box<Conn>>,
    waiting: bool,
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
    fn new(conn: Box<Conn>) -> Self {
        UpstreamBody { conn: Some(conn), waiting: false }
    }

    /// Gives the connection back if the response has no body, or skips what is left of it.
    pub(crate) fn release(mut self) {
        self.recycle_if_ended();
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let Some(conn) = &mut self.conn else { return Poll::Ready(None) };
        let failed = match conn.http.poll_body(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.waiting = false;
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
                }
                std::task::ready!(conn.timer.poll_expired(cx));
                Broken::Closed
            }
        };
        tracing::debug!(upstream = &*conn.upstream.name, error = %failed, "response broke off");
        self.conn = None;
        Poll::Ready(Some(Err(UpstreamBodyError)))
    }

    fn recycle_if_ended(&mut self) {
        if let Some(conn) = self.conn.take_if(|conn| conn.http.is_end()) {
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
