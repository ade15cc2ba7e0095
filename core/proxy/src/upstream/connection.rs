//! One HTTP/1.1 connection to an endpoint, driven by the task that uses it.
//!
//! hyper splits a client connection into a handle that sends requests and a driver that does the
//! reading and writing. Instead of spawning the driver, whoever waits for the response or its body
//! polls the driver beside it: no second task, no wake-up between the two.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Endpoint, Upstream, pool};
use crate::body::RequestBody;
use crate::reply::Fault;
use crate::timer::LazyTimer;

/// Header bytes of an upstream's response at most.
const MAX_RESPONSE_HEAD: usize = 256 * 1024;
/// Headers of an upstream's response at most.
const MAX_RESPONSE_HEADERS: usize = 256;

/// A connection, in use by one exchange or idle in the pool.
pub(crate) struct Conn {
    sender: SendRequest<RequestBody>,
    driver: Driver,
    timer: LazyTimer,
    upstream: Arc<Upstream>,
    endpoint: u32,
    idle_since: Instant,
    reused: bool,
}

/// Why an attempt gave no response.
pub(crate) struct AttemptError {
    pub(crate) kind: AttemptFailure,
    /// The request, if none of it was sent.
    pub(crate) unsent: Option<Request<RequestBody>>,
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
    mut request: Request<RequestBody>,
) -> Result<Response<UpstreamBody>, AttemptError> {
    while let Some(mut conn) = poll_fn(|cx| Poll::Ready(pool::check_out(endpoint.id, cx))).await {
        // A connection outlives reloads, the settings it was opened under must not.
        if !Arc::ptr_eq(&conn.upstream, upstream) {
            conn.upstream = upstream.clone();
        }
        match conn.exchange(request).await {
            // It was closed while it lay idle; nothing was sent.
            Err(AttemptError { unsent: Some(unsent), .. }) => request = unsent,
            result => return result,
        }
    }
    match Conn::open(upstream, endpoint).await {
        Ok(conn) => conn.exchange(request).await,
        Err(kind) => Err(AttemptError { kind, unsent: Some(request), reused: false }),
    }
}

impl Conn {
    async fn open(upstream: &Arc<Upstream>, endpoint: &Endpoint) -> Result<Box<Self>, AttemptFailure> {
        let connected = timeout(upstream.timeouts.connect, TcpStream::connect(&*endpoint.authority)).await;
        let failure = match connected {
            Ok(Ok(stream)) => match Self::handshake(stream, upstream, endpoint).await {
                Ok(conn) => {
                    upstream.metrics.connects.increment();
                    return Ok(conn);
                }
                Err(_) => AttemptFailure::Failed,
            },
            Ok(Err(error)) => {
                tracing::debug!(upstream = &*upstream.name, endpoint = &*endpoint.authority, %error, "connect failed");
                AttemptFailure::Unreachable
            }
            Err(_) => AttemptFailure::ConnectTimeout,
        };
        upstream.metrics.connect_failures.increment();
        Err(failure)
    }

    async fn handshake(
        stream: TcpStream,
        upstream: &Arc<Upstream>,
        endpoint: &Endpoint,
    ) -> hyper::Result<Box<Self>> {
        // Fails only on a dead socket, which the first use will notice.
        let _ = stream.set_nodelay(true);
        let mut builder = Builder::new();
        builder.max_headers(MAX_RESPONSE_HEADERS).max_buf_size(MAX_RESPONSE_HEAD);
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await?;
        Ok(Box::new(Conn {
            sender,
            driver: Driver::Running(driver),
            timer: LazyTimer::new(),
            upstream: upstream.clone(),
            endpoint: endpoint.id,
            idle_since: Instant::now(),
            reused: false,
        }))
    }

    /// Sends the request and waits for the response's head.
    async fn exchange(
        mut self: Box<Self>,
        request: Request<RequestBody>,
    ) -> Result<Response<UpstreamBody>, AttemptError> {
        let reused = self.reused;
        let upload = request.body().upload();
        let (patience, mut seen) = (self.upstream.timeouts.response, 0);
        self.timer.start(patience);
        let sent = {
            let mut response = pin!(self.sender.try_send_request(request));
            let (driver, timer) = (&mut self.driver, &mut self.timer);
            poll_fn(|cx| {
                driver.drive(cx);
                match response.as_mut().poll(cx) {
                    Poll::Ready(result) => return Poll::Ready(Some(result)),
                    Poll::Pending => {}
                }
                while timer.poll_expired(cx).is_ready() {
                    // The upstream owes nothing before it has the request.
                    if !upload.as_ref().is_some_and(|upload| upload.goes_on(&mut seen)) {
                        return Poll::Ready(None);
                    }
                    timer.start(patience);
                }
                Poll::Pending
            })
            .await
        };
        match sent {
            Some(Ok(response)) => {
                let (head, incoming) = response.into_parts();
                Ok(Response::from_parts(head, UpstreamBody::new(incoming, self)))
            }
            Some(Err(mut error)) => {
                let unsent = error.take_message();
                let error = error.into_error();
                tracing::debug!(upstream = &*self.upstream.name, %error, reused, "attempt failed");
                Err(AttemptError { kind: AttemptFailure::Failed, unsent, reused })
            }
            None => Err(AttemptError { kind: AttemptFailure::ResponseTimeout, unsent: None, reused: false }),
        }
    }

    /// Whether the connection can take a request; polls it once, so that a close by the other side
    /// is seen.
    pub(super) fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        self.driver.drive(cx);
        matches!(self.driver, Driver::Running(_)) && self.sender.is_ready()
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
    fn recycle(mut self: Box<Self>, cx: &mut Context<'_>) {
        if self.is_usable(cx) {
            self.idle_since = Instant::now();
            self.reused = true;
            pool::check_in(self);
        }
    }
}

/// What reads and writes a connection.
#[expect(clippy::large_enum_variant, reason = "it lies in the connection's own box")]
enum Driver {
    Running(Connection<TokioIo<TcpStream>, RequestBody>),
    /// The connection was closed in order.
    Closed,
    /// It broke, which hyper tells a body only if the fault was in reading.
    Broken,
}

impl Driver {
    /// Lets the driver read and write.
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Driver::Running(connection) = self
            && let Poll::Ready(ended) = Pin::new(connection).poll(cx)
        {
            *self = if ended.is_ok() { Driver::Closed } else { Driver::Broken };
        }
    }
}

/// A response's body with the connection that it comes from.
pub(crate) struct UpstreamBody {
    incoming: Incoming,
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
    fn new(incoming: Incoming, conn: Box<Conn>) -> Self {
        UpstreamBody { incoming, conn: Some(conn), waiting: false }
    }

    /// Gives the connection back if the response has no body, or skips what is left of it.
    pub(crate) async fn release(mut self) {
        poll_fn(|cx| {
            if self.incoming.is_end_stream() {
                self.recycle(cx);
            }
            Poll::Ready(())
        })
        .await;
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> FramePoll {
        if let ready @ Poll::Ready(_) = self.poll_incoming(cx) {
            return ready;
        }
        let Some(conn) = &mut self.conn else { return Poll::Pending };
        conn.driver.drive(cx);
        if let ready @ Poll::Ready(_) = self.poll_incoming(cx) {
            return ready;
        }
        let Some(conn) = &mut self.conn else { return Poll::Pending };
        if !std::mem::replace(&mut self.waiting, true) {
            conn.timer.start(conn.upstream.timeouts.body);
        }
        conn.timer.poll_expired(cx).map(|()| {
            self.conn = None;
            Some(Err(UpstreamBodyError))
        })
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        self.waiting = false;
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                if self.incoming.is_end_stream() {
                    self.recycle(cx);
                }
                Some(Ok(frame))
            }
            Some(Err(_)) => {
                self.conn = None;
                Some(Err(UpstreamBodyError))
            }
            // Without this a body of unknown length would end early and look complete.
            None if self.conn.as_ref().is_some_and(|conn| matches!(conn.driver, Driver::Broken)) => {
                self.conn = None;
                Some(Err(UpstreamBodyError))
            }
            None => {
                self.recycle(cx);
                None
            }
        })
    }

    fn recycle(&mut self, cx: &mut Context<'_>) {
        if let Some(conn) = self.conn.take() {
            conn.recycle(cx);
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
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
