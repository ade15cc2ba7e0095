//! The life of a connection: heads are read, answered and followed by others until either side ends it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Response, StatusCode, Version, response};
use http_body::{Body as _, Frame};
use portcullis_plugin::End;
use tokio::time::Instant;

use super::framing::Framing;
use super::head::Wishes;
use super::response::{Manner, write_head};
use super::wire::{Shared, Wire};
use super::{Body, Limits, Refusal, refusal};
use crate::body::{BodyError, Incoming, ResponseBody};
use crate::client::{BEGIN, Client, Control, Opened};
use crate::exchange::serve;
use crate::generation::ListenerLimits;
use crate::head::Head;
use crate::linger::Linger;
use crate::metrics::GivenUp;
use crate::pace::Pace;
use crate::timer::LazyTimer;
use crate::tunnel::Tunnel;

/// Serves a connection to its end.
pub(crate) async fn serve_connection(
    opened: Opened,
    client: Rc<Client>,
    limits: &ListenerLimits,
    control: &Control,
) {
    let io = Linger::new(opened.stream, Pace::new(limits.write_timeout, limits.min_rate));
    let wire = Wire::new(io, opened.read, Limits::of(limits));
    let connection = Connection { wire: Shared::new(wire), client, limits, is_draining: Cell::new(false) };
    let mut running = pin!(connection.run(opened.accepted));
    let ended = poll_fn(|cx| {
        if control.is_draining(cx) {
            connection.is_draining.set(true);
        }
        running.as_mut().poll(cx)
    });
    ended.await;
    let gave_up = connection.wire.lock().gave_up();
    if gave_up {
        connection.give_up(GivenUp::Write);
    }
}

struct Connection<'a> {
    wire: Shared,
    client: Rc<Client>,
    limits: &'a ListenerLimits,
    is_draining: Cell<bool>,
}

/// What becomes of the connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Next,
    /// It was the last.
    Close,
    /// The client has gone, or must not take what it has for the whole response.
    Abandon,
}

/// What is remembered of a request while it is served.
struct Asked {
    is_1_1: bool,
    is_head: bool,
    is_refused: bool,
    is_connect: bool,
    wishes: Wishes,
}

impl Connection<'_> {
    async fn run(&self, accepted: Instant) {
        let mut clock = LazyTimer::new();
        clock.start_from(accepted, self.limits.header_timeout);
        let mut is_first = true;
        loop {
            match self.exchange(&mut clock, is_first).await {
                After::Next => self.wire.lock().rest(),
                After::Close => break,
                After::Abandon => return,
            }
            is_first = false;
        }
        // Fails on a dead socket only.
        let _ = poll_fn(|cx| self.wire.lock().poll_shutdown(cx)).await;
    }

    /// Waits for a request and has it answered, unless the client goes away meanwhile.
    async fn exchange(&self, clock: &mut LazyTimer, is_first: bool) -> After {
        let asked;
        let served = {
            let mut exchange = pin!(match self.next_head(clock, is_first).await {
                Some(head) => {
                    asked = self.look_at(&head);
                    serve(&self.client, head, self.body(&asked))
                }
                None => return After::Close,
            });
            let served = poll_fn(|cx| match exchange.as_mut().poll(cx) {
                Poll::Ready(served) => Poll::Ready(Some(served)),
                Poll::Pending => {
                    let mut wire = self.wire.lock();
                    let is_over = wire.is_gone(cx) || wire.speaks_early();
                    if is_over { Poll::Ready(None) } else { Poll::Pending }
                }
            });
            served.await
        };
        match served {
            Some(Ok(response)) => self.answer(response, &asked).await,
            None if self.wire.lock().speaks_early() => Box::pin(self.refuse(refusal::UPGRADE_DATA)).await,
            Some(Err(_)) | None => After::Abandon,
        }
    }

    /// Answers what was wrong with a request after all.
    async fn refuse(&self, refusal: Refusal) -> After {
        let head = Err(refusal);
        let asked = self.look_at(&head);
        match serve(&self.client, head, Incoming::Empty).await {
            Ok(response) => self.answer(response, &asked).await,
            Err(_) => After::Abandon,
        }
    }

    /// The next head; none if the client has gone, or if nothing more is expected of it. The first head is waited for
    /// since the connection was accepted, others are given time for themselves once they have begun.
    async fn next_head(&self, clock: &mut LazyTimer, is_first: bool) -> Option<Result<Head, Refusal>> {
        let (mut is_idle, mut has_begun, mut is_pressed) = (false, false, false);
        poll_fn(|cx| {
            let mut wire = self.wire.lock();
            if let Poll::Ready(head) = wire.poll_head(cx) {
                return Poll::Ready(head);
            }
            if !is_first && !has_begun {
                has_begun = wire.has_begun();
                if has_begun {
                    clock.start(self.limits.header_timeout);
                } else if !std::mem::replace(&mut is_idle, true) {
                    clock.start(self.limits.idle_timeout);
                }
            }
            // Its next request may be on its way; after a TLS handshake nothing has been heard of it yet.
            let is_silent = self.is_draining.get() && !wire.has_begun();
            if is_silent && !std::mem::replace(&mut is_pressed, true) {
                clock.start(BEGIN);
            }
            ready!(clock.poll_expired(cx));
            let is_header = is_first || has_begun;
            if !self.is_draining.get() {
                self.give_up(if is_header { GivenUp::Header } else { GivenUp::Idle });
            }
            Poll::Ready(wire.has_begun().then_some(Err(refusal::HEADER_TIMEOUT)))
        })
        .await
    }

    fn give_up(&self, why: GivenUp) {
        self.client.worker.metrics.give_up(why);
    }

    fn look_at(&self, head: &Result<Head, Refusal>) -> Asked {
        match head {
            Ok(Head { method, version, .. }) => Asked {
                is_1_1: *version == Version::HTTP_11,
                is_head: *method == Method::HEAD,
                is_connect: *method == Method::CONNECT,
                is_refused: false,
                wishes: self.wire.lock().wishes(),
            },
            Err(Refusal { reason, detail, .. }) => {
                tracing::debug!(peer = %self.client.connection.peer, reason, detail, "head refused");
                Asked {
                    is_1_1: true,
                    is_head: false,
                    is_connect: false,
                    is_refused: true,
                    wishes: Wishes::default(),
                }
            }
        }
    }

    fn body(&self, asked: &Asked) -> Incoming {
        match Body::of(&self.wire) {
            Some(body) if !asked.is_refused => Incoming::Http1(body),
            _ => Incoming::Empty,
        }
    }

    /// Sends a response.
    async fn answer(&self, response: Response<ResponseBody>, asked: &Asked) -> After {
        let (head, body) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return match body.into_tunnel() {
                Ok(tunnel) => Box::pin(self.switch(&head, tunnel)).await,
                Err(_) => After::Abandon,
            };
        }
        let framing = Framing::of_response(asked.is_head, asked.is_1_1, head.status, &body.size_hint());
        let keeps = self.wants_next(asked, framing) && self.can_end_request().await;
        let manner = Manner { is_1_1: asked.is_1_1, keeps };
        write_head(&head, framing, manner, self.wire.lock().begin_answer());
        drop(head);
        let has_none = framing == Framing::None || body.is_end_stream();
        let mut sending = Sending {
            wire: &self.wire,
            body: (!has_none).then_some(body),
            framing,
            takes_trailers: asked.wishes.trailers,
            has_failed: false,
        };
        if has_none {
            sending.end(None);
        }
        match poll_fn(|cx| sending.poll(cx)).await {
            false => After::Abandon,
            true if keeps && self.has_ended_request().await => After::Next,
            true => After::Close,
        }
    }

    /// Tells the client that it may speak something else, and lets it do so to the end.
    async fn switch(&self, head: &response::Parts, mut tunnel: Tunnel) -> After {
        let manner = Manner { is_1_1: true, keeps: true };
        write_head(head, Framing::None, manner, self.wire.lock().begin_answer());
        if poll_fn(|cx| self.wire.lock().poll_flush(cx)).await.is_err() {
            return After::Abandon;
        }
        // There is no request any more, and with it no body that would want the lock.
        let end = poll_fn(|cx| tunnel.poll(&mut *self.wire.lock(), cx)).await;
        if end == End::UpstreamFailed {
            self.wire.lock().spoil();
        }
        After::Abandon
    }

    /// Whether the client wants another request served, and gets it.
    fn wants_next(&self, asked: &Asked, framing: Framing) -> bool {
        let Wishes { close, keep_alive, .. } = asked.wishes;
        let wants = if asked.is_1_1 { !close } else { keep_alive && !close };
        // What a client sends behind a CONNECT may be meant for its tunnel (RFC 9931).
        let ends = asked.is_refused || asked.is_connect;
        wants && !ends && framing != Framing::UntilClose && !self.is_draining.get()
    }

    /// Whether another request can follow this one, as far as can be told before it is answered.
    async fn can_end_request(&self) -> bool {
        let is_open = self.wire.lock().is_body_held();
        is_open || self.has_ended_request().await
    }

    /// Whether another request can follow this one, of whose body only that is skipped which is at hand.
    async fn has_ended_request(&self) -> bool {
        let is_read = self.wire.lock().is_body_read();
        is_read || poll_fn(|cx| Poll::Ready(self.wire.lock().skip_body(cx))).await
    }
}

/// A response on its way.
struct Sending<'a> {
    wire: &'a Shared,
    /// None once everything was taken from it: with it the exchange ends.
    body: Option<ResponseBody>,
    framing: Framing,
    takes_trailers: bool,
    /// The body broke off. What was sent must not look complete.
    has_failed: bool,
}

impl Sending<'_> {
    /// Sends on; ready with whether the client has got the response whole.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            let is_starving = self.gather(cx).is_pending();
            let flushed = self.wire.lock().poll_flush(cx);
            if ready!(flushed).is_err() || self.has_failed {
                return Poll::Ready(false);
            }
            if self.body.is_none() {
                return Poll::Ready(true);
            }
            if is_starving {
                let is_gone = self.wire.lock().is_gone(cx);
                return if is_gone { Poll::Ready(false) } else { Poll::Pending };
            }
        }
    }

    /// Takes from the body what is there, up to what is written at once; pending if it has no more for now.
    fn gather(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(body) = &mut self.body {
            let has_room = self.wire.lock().out.has_room();
            if !has_room {
                break;
            }
            let frame = ready!(Pin::new(body).poll_frame(cx));
            self.take(frame);
        }
        Poll::Ready(())
    }

    fn take(&mut self, frame: Option<Result<Frame<Bytes>, BodyError>>) {
        match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => self.push(data),
            Some(Ok(Err(frame))) => self.end(frame.into_trailers().ok().as_ref()),
            Some(Err(_)) => self.fail(),
            None => self.end(None),
        }
    }

    fn push(&mut self, data: Bytes) {
        // An empty chunk would be the last.
        if !data.is_empty() {
            let mut wire = self.wire.lock();
            match self.framing.begin_chunk(data.len(), wire.out.text()) {
                Some(()) => {
                    wire.out.push(data);
                    self.framing.end_chunk(wire.out.text());
                }
                None => self.has_failed = true,
            }
        }
        if self.has_failed {
            self.fail();
        } else if self.body.as_ref().is_some_and(ResponseBody::is_end_stream) {
            self.end(None);
        }
    }

    fn end(&mut self, trailers: Option<&http::HeaderMap>) {
        let trailers = trailers.filter(|_| self.takes_trailers);
        let ended = self.framing.end(trailers, self.wire.lock().out.text());
        self.has_failed |= ended.is_none();
        self.body = None;
    }

    fn fail(&mut self) {
        if self.framing == Framing::UntilClose {
            self.wire.lock().spoil();
        }
        self.has_failed = true;
        self.body = None;
    }
}

impl Limits {
    fn of(limits: &ListenerLimits) -> Self {
        Limits {
            max_head_bytes: limits.header_bytes,
            max_headers: limits.header_count,
            max_request_line: limits.header_bytes,
        }
    }
}
