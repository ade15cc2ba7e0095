//! HTTP/2 towards clients: hyper speaks it; here is what it leaves to its user. A client's frames are counted before
//! they are understood ([`frames`]), every stream is known ([`streams`]), so that one that is not read is ended, and what
//! the library would silently reset is refused ([`malformed`]).

mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod malformed;
mod streams;
pub(crate) mod walk;

use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::{Either, Empty};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use portcullis_plugin::End;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::frames::Counted;
use self::malformed::Heads;
pub(crate) use self::streams::Streams;
use crate::body::{Incoming, ResponseBody};
use crate::client::{Client, Control, Opened};
use crate::exchange::{Dropped, serve};
use crate::generation::ListenerLimits;
use crate::linger::Linger;
use crate::metrics::GivenUp;
use crate::pace::Pace;
use crate::timer::LazyTimer;

/// The first bytes of every HTTP/2 connection (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What a client may send on one stream before it must wait.
const STREAM_WINDOW: u32 = 64 * 1024;
/// The same on all streams of a connection, however many there may be: what is held of uploads that nobody takes.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// What is held of a stream's response while the client takes nothing: so much, and a piece more.
const SEND_BUFFER: usize = 64 * 1024;
/// Requests that wait to be begun and are taken back already (CVE-2023-44487).
const PENDING_RESETS: usize = 20;
/// Streams of a connection that are reset because what came on them was wrong (CVE-2025-8671), or because they are
/// too many.
const LOCAL_RESETS: usize = 200;
/// How often a connection looks at its clocks, at the least and at the most.
const MIN_LOOK: Duration = Duration::from_millis(50);
const MAX_LOOK: Duration = Duration::from_secs(5);
/// How long a client may take to agree that a connection without streams ends.
const PARTING: Duration = Duration::from_secs(2);

/// Serves a connection to its end.
pub(crate) async fn serve_connection(
    opened: Opened,
    client: Rc<Client>,
    limits: ListenerLimits,
    control: &Control,
) {
    let Some(streams) = &client.streams else { return };
    let give_up = |why| client.worker.metrics.give_up(why);
    let mut builder = hyper::server::conn::http2::Builder::new(StreamExecutor(client.clone()));
    // A head that is too long gets our refusal, one that is far too long gets hyper's.
    let head_bytes = limits.header_bytes.saturating_mul(4);
    builder
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(STREAM_WINDOW)
        .enable_connect_protocol()
        // Streams whose uploads stall must not keep others from theirs.
        .initial_connection_window_size(connection_window(limits.http2_streams));
    let heads = Rc::new(Heads::default());
    let service = {
        let (client, heads) = (client.clone(), heads.clone());
        service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
            if heads.became_request() {
                client.worker.metrics.give_up(GivenUp::Http2);
            }
            let is_connect = request.method() == Method::CONNECT;
            let upgraded = is_connect.then(|| hyper::upgrade::on(&mut request));
            let (head, body) = request.into_parts();
            let served = serve(&client, Ok(head.into()), Incoming::Http2(body));
            // The library moves what serves a stream several times, so that is to be small.
            Box::pin(async move {
                let response = served.await?;
                Ok::<_, Dropped>(match upgraded {
                    Some(upgraded) => switch(response, upgraded),
                    None => response.map(Either::Left),
                })
            })
        })
    };
    let io = Linger::new(opened.stream, Pace::new(limits.write_timeout, limits.min_rate));
    let io = Prefixed { prefix: opened.read.freeze(), io };
    let io = Counted::new(io, client.clone(), heads.clone(), limits.header_timeout);
    let mut running = pin!(builder.serve_connection(TokioIo::new(io), service));
    let look = limits.idle_timeout.min(limits.write_timeout).clamp(MIN_LOOK, MAX_LOOK);
    let mut clock = LazyTimer::new();
    clock.start(look);
    let mut draining: Option<Instant> = None;
    let ended = poll_fn(|cx| {
        let mut drain = draining.is_none() && control.is_draining(cx);
        while clock.poll_expired(cx).is_ready() {
            clock.start(look);
            (0..streams.cut_unread(limits.write_timeout)).for_each(|_| give_up(GivenUp::Write));
            // The client acknowledges the end, or does not.
            let parted = draining.is_some_and(|since| since.elapsed() >= PARTING);
            if parted && streams.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if draining.is_none() && streams.are_idle(limits.idle_timeout) {
                give_up(GivenUp::Idle);
                drain = true;
            }
        }
        if drain {
            draining = Some(Instant::now());
            running.as_mut().graceful_shutdown();
        }
        loop {
            let polled = running.as_mut().poll(cx);
            let has_answers = heads.settle(&client, cx);
            if polled.is_ready() || !has_answers {
                return polled;
            }
        }
    });
    if let Err(error) = ended.await {
        tracing::debug!(peer = %client.connection.peer, %error, cause = error.source(), "HTTP/2 connection failed");
        match blamed(&error) {
            Some(GivenUp::Http2) => client.give_up(GivenUp::Http2),
            Some(why) => give_up(why),
            None => {}
        }
    }
}

/// What the client did, if it is to blame.
fn blamed(error: &hyper::Error) -> Option<GivenUp> {
    let cause = error.source()?;
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return (error.kind() == io::ErrorKind::TimedOut).then_some(GivenUp::Write);
    }
    let error = cause.downcast_ref::<h2::Error>()?;
    (error.is_library() && error.is_go_away()).then_some(GivenUp::Http2)
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
    let (client, stream) = tunnel.stream();
    let served = client.clone();
    let task = tokio::task::spawn_local(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut io = TokioIo::new(upgraded);
        let end = poll_fn(|cx| tunnel.poll(&mut io, cx)).await;
        if let (End::UpstreamFailed, Some(streams)) = (end, &served.streams) {
            streams.spoil(stream);
        }
    });
    if let Some(streams) = &client.streams {
        streams.serve_on_by(stream, task.abort_handle());
    }
    Response::from_parts(head, Either::Right(Empty::new()))
}

fn connection_window(streams: u32) -> u32 {
    (streams.saturating_add(1)).saturating_mul(STREAM_WINDOW).min(CONNECTION_WINDOW)
}

/// Runs streams on the worker's own thread.
#[derive(Clone)]
struct StreamExecutor(Rc<Client>);

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for StreamExecutor {
    /// Called as soon as the service has begun the request.
    fn execute(&self, future: F) {
        let task = tokio::task::spawn_local(future);
        if let Some(streams) = &self.0.streams {
            streams.serve_by(task.abort_handle());
        }
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
