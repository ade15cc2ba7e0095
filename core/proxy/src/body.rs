//! Bodies on their way through: counted, bounded, filtered.

mod filters;
mod incoming;

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use portcullis_plugin::{End, RequestId};

use self::filters::Filters;
pub(crate) use self::filters::{FilterRefusal, pass_whole};
pub(crate) use self::incoming::{ClientBody, Incoming};
pub use crate::budget::Budget;
pub(crate) use crate::budget::Held;
use crate::chain::Filter;
use crate::grpc::{self, Code};
use crate::http1::{TRAILER_FORBIDDEN, allowed_trailers, has_forbidden};
use crate::live::Live;
use crate::mirror::Tee;
use crate::reply::Fault;
use crate::tunnel::Tunnel;
use crate::upstream::UpstreamBody;

/// Reads a whole body of at most `limit` bytes; `too_large` is the fault of a longer one.
/// What follows it is the second value.
pub(crate) async fn whole<B>(
    body: &mut B,
    limit: u64,
    held: &mut Held,
    too_large: Fault,
) -> Result<(Bytes, Option<Box<HeaderMap>>), Fault>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Fault>,
{
    if body.size_hint().lower() > limit {
        return Err(too_large);
    }
    let mut first = Bytes::new();
    let mut buffer = BytesMut::new();
    let (mut length, mut trailers) = (0_u64, None);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
        let chunk = match frame.map_err(Into::into)?.into_data() {
            Ok(chunk) => chunk,
            Err(frame) => {
                trailers = frame.into_trailers().ok().map(Box::new);
                continue;
            }
        };
        length += chunk.len() as u64;
        if length > limit {
            return Err(too_large);
        }
        held.grow(chunk.len() as u64)?;
        // A body of one chunk, the common case, is not copied.
        if first.is_empty() && buffer.is_empty() {
            first = chunk;
        } else {
            if buffer.is_empty() {
                buffer.extend_from_slice(&std::mem::take(&mut first));
            }
            buffer.extend_from_slice(&chunk);
        }
    }
    Ok((if buffer.is_empty() { first } else { buffer.freeze() }, trailers))
}

/// Bytes of a whole body that are handed to the client's connection at once: what it has taken
/// counts as sent, and gives its share of the budget back. An HTTP/2 connection is handed no more of any
/// body, because it keeps what a stream is not given room for.
const SLICE: usize = 32 * 1024;

/// What an upload came to, for the exchange to see: the body itself is with the upstream's connection.
#[derive(Default)]
pub(crate) struct UploadState {
    pub(crate) bytes: AtomicU64,
    /// Whether it was read to its end.
    ended: AtomicBool,
    /// Whether it waits for the client.
    starving: AtomicBool,
    failure: Mutex<Option<UploadFailure>>,
}

/// Why an upload broke off.
pub(crate) enum UploadFailure {
    Fault(Fault),
    Refused(FilterRefusal),
}

impl UploadState {
    fn fail(&self, failure: UploadFailure) -> BodyError {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        BodyError("the request's body broke off")
    }

    /// Whether an upstream that is silent may be waiting for more of the upload, of which `seen`
    /// bytes had passed when last asked.
    pub(crate) fn goes_on(&self, seen: &mut u64) -> bool {
        let before = std::mem::replace(seen, self.bytes.load(Relaxed));
        self.waits_for_client() || !self.ended.load(Relaxed) && *seen != before
    }

    /// Whether it can't go on before the client does.
    pub(crate) fn waits_for_client(&self) -> bool {
        !self.ended.load(Relaxed) && self.starving.load(Relaxed)
    }

    pub(crate) fn take_failure(&self) -> Option<UploadFailure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A body that broke off; the cause is recorded with its exchange.
#[derive(Debug)]
pub struct BodyError(&'static str);

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for BodyError {}

/// A request's body on its way to the upstream.
pub(crate) enum RequestBody {
    Empty,
    Whole(Bytes),
    /// The same, and what follows it.
    Trailed(Box<(Bytes, Option<HeaderMap>)>),
    Stream(Box<Upload>),
}

/// Refuses fields that belong in the head, where the request would have been judged by them.
pub(crate) fn judge_trailers(trailers: &HeaderMap) -> Result<(), Fault> {
    if has_forbidden(trailers) { Err(Fault::Screened(TRAILER_FORBIDDEN)) } else { Ok(()) }
}

/// A request's body that streams through.
pub(crate) struct Upload {
    incoming: ClientBody,
    filters: Filters,
    remaining: u64,
    state: Arc<UploadState>,
    /// Has passed everything, and was not sent after all.
    ahead: Bytes,
    /// Trailers that wait for what the filters still held, or were not sent after all.
    trailers: Option<HeaderMap>,
    ended: bool,
    /// Gathers a copy of what passes.
    tee: Option<Box<Tee>>,
}

impl RequestBody {
    /// A whole body, and what follows it.
    pub(crate) fn whole(bytes: Bytes, trailers: HeaderMap) -> Self {
        let trailers = allowed_trailers(trailers);
        match trailers.is_empty() {
            true => RequestBody::Whole(bytes),
            false => RequestBody::Trailed(Box::new((bytes, Some(trailers)))),
        }
    }

    /// What becomes of an upload.
    pub(crate) fn upload(&self) -> Option<Arc<UploadState>> {
        match self {
            RequestBody::Stream(upload) => Some(upload.state.clone()),
            RequestBody::Empty | RequestBody::Whole(_) | RequestBody::Trailed(_) => None,
        }
    }

    /// What was taken of it waits for room: it is not the client who is waited for.
    pub(crate) fn waits_for_room(&mut self) {
        if let RequestBody::Stream(upload) = self {
            upload.state.starving.store(false, Relaxed);
            upload.incoming.pace.rests();
        }
    }

    /// The same once more; none of a body that can be read only once.
    pub(crate) fn copy(&self) -> Option<Self> {
        match self {
            RequestBody::Empty => Some(RequestBody::Empty),
            RequestBody::Whole(bytes) => Some(RequestBody::Whole(bytes.clone())),
            RequestBody::Trailed(trailed) => Some(RequestBody::Trailed(trailed.clone())),
            RequestBody::Stream(_) => None,
        }
    }

    /// The same before `chunk` and `trailers` were taken from it.
    pub(crate) fn put_back(mut self, chunk: Bytes, trailers: Option<HeaderMap>) -> Self {
        let rest = match &mut self {
            RequestBody::Stream(upload) => Some(&mut upload.trailers),
            RequestBody::Trailed(trailed) => Some(&mut trailed.1),
            RequestBody::Empty | RequestBody::Whole(_) => None,
        };
        if let Some(rest) = rest {
            *rest = trailers.or(rest.take());
        }
        match self {
            body if chunk.is_empty() => body,
            RequestBody::Empty | RequestBody::Whole(_) => RequestBody::Whole(chunk),
            RequestBody::Trailed(mut trailed) => {
                trailed.0 = chunk;
                RequestBody::Trailed(trailed)
            }
            RequestBody::Stream(mut upload) => {
                upload.ahead = chunk;
                RequestBody::Stream(upload)
            }
        }
    }

    /// The client's body, at most `limit` bytes of it, through `filters`.
    pub(crate) fn stream(
        incoming: ClientBody,
        filters: Vec<Filter>,
        limit: Option<u64>,
    ) -> (Self, Arc<UploadState>) {
        let state = Arc::new(UploadState::default());
        let upload = Upload {
            incoming,
            filters: Filters::new(filters),
            remaining: limit.unwrap_or(u64::MAX),
            state: state.clone(),
            ahead: Bytes::new(),
            trailers: None,
            ended: false,
            tee: None,
        };
        (RequestBody::Stream(Box::new(upload)), state)
    }
}

impl Upload {
    fn is_end(&self) -> bool {
        let has_nothing = self.ahead.is_empty() && self.trailers.is_none();
        has_nothing && !self.filters.may_alter() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.incoming.size_hint().exact() {
            // Only behind chunks can trailers be sent.
            Some(rest) if !self.filters.may_alter() && self.trailers.is_none() => {
                SizeHint::with_exact(rest + self.ahead.len() as u64)
            }
            _ => SizeHint::default(),
        }
    }

    /// Has everything copied that passes from now on.
    pub(crate) fn tee(&mut self, tee: Tee) {
        self.tee = Some(Box::new(tee));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.ahead.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.ahead)))));
        }
        let frame = ready!(self.poll_next(cx));
        let ended = self.is_end();
        if let Some(tee) = &mut self.tee {
            tee.see(&frame, ended);
        }
        Poll::Ready(frame)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        while !self.ended {
            let polled = Pin::new(&mut self.incoming).poll_frame(cx);
            self.state.starving.store(polled.is_pending(), Relaxed);
            let chunk = match ready!(polled) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => chunk,
                    Err(frame) => {
                        let mut trailers = frame.into_trailers().unwrap_or_default();
                        if let Err(fault) = judge_trailers(&trailers) {
                            self.ended = true;
                            return Poll::Ready(Some(Err(self.state.fail(UploadFailure::Fault(fault)))));
                        }
                        if let Err(refusal) = self.filters.trailers(&mut trailers) {
                            self.ended = true;
                            return Poll::Ready(Some(Err(self.state.fail(UploadFailure::Refused(refusal)))));
                        }
                        self.trailers = Some(allowed_trailers(trailers));
                        continue;
                    }
                },
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(self.state.fail(UploadFailure::Fault(error)))));
                }
                None => {
                    self.ended = true;
                    self.state.ended.store(true, Relaxed);
                    match self.filters.end() {
                        Ok(rest) if rest.is_empty() => break,
                        Ok(rest) => return Poll::Ready(Some(Ok(Frame::data(rest)))),
                        Err(refusal) => {
                            return Poll::Ready(Some(Err(self.state.fail(UploadFailure::Refused(refusal)))));
                        }
                    }
                }
            };
            self.state.bytes.fetch_add(chunk.len() as u64, Relaxed);
            // The end of a body whose length was said is not asked for.
            self.state.ended.store(self.incoming.is_end_stream(), Relaxed);
            self.remaining = match self.remaining.checked_sub(chunk.len() as u64) {
                Some(remaining) => remaining,
                None => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(self
                        .state
                        .fail(UploadFailure::Fault(Fault::BodyTooLarge)))));
                }
            };
            match self.filters.chunk(chunk, self.incoming.is_end_stream()) {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
                Err(refusal) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(self.state.fail(UploadFailure::Refused(refusal)))));
                }
            }
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            RequestBody::Empty => Poll::Ready(None),
            RequestBody::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            RequestBody::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            RequestBody::Trailed(trailed) => {
                let (bytes, trailers) = &mut **trailed;
                Poll::Ready(match bytes.is_empty() {
                    true => trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
                    false => Some(Ok(Frame::data(std::mem::take(bytes)))),
                })
            }
            RequestBody::Stream(upload) => upload.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Whole(bytes) => bytes.is_empty(),
            RequestBody::Trailed(trailed) => trailed.0.is_empty() && trailed.1.is_none(),
            RequestBody::Stream(upload) => upload.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            // Only behind chunks can trailers be sent.
            RequestBody::Trailed(_) => SizeHint::default(),
            RequestBody::Stream(upload) => upload.size_hint(),
        }
    }
}

/// Where a response's body comes from.
pub(crate) enum Source {
    Empty,
    Whole(Bytes),
    Upstream(UpstreamBody),
    /// None: the upstream speaks something else from here on.
    Switched(UpstreamBody),
}

impl Source {
    fn is_end(&self) -> bool {
        match self {
            Source::Empty => true,
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Upstream(body) => body.is_end_stream(),
            Source::Switched(_) => false,
        }
    }
}

/// A response's body on its way to the client. It carries the exchange: its end, or its drop, is
/// the exchange's end.
pub struct ResponseBody {
    source: Source,
    filters: Filters,
    /// What comes after the source's end: what the filters still held, and trailers.
    tail: VecDeque<Frame<Bytes>>,
    /// What comes before all that: the rest of what was too much at once.
    rest: Bytes,
    /// How much is handed over at once.
    piece: usize,
    source_ended: bool,
    live: Box<Live>,
}

impl ResponseBody {
    pub(crate) fn new(source: Source, filters: Vec<Filter>, mut live: Box<Live>) -> Self {
        let filters = Filters::new(filters);
        let piece = if live.client().streams.is_some() { SLICE } else { usize::MAX };
        let trailers = live.parts().response_trailers.take().filter(|_| matches!(source, Source::Whole(_)));
        let trailers = trailers.map(|trailers| allowed_trailers(*trailers));
        let tail =
            trailers.filter(|trailers| !trailers.is_empty()).map(Frame::trailers).into_iter().collect();
        let rest = Bytes::new();
        let mut body = ResponseBody { source, filters, tail, rest, piece, source_ended: false, live };
        // One that is empty from the start is dropped without being asked.
        if body.is_end_stream() {
            // Who only watches has nothing to say.
            let _ = body.filters.end();
            body.live.end(End::Complete);
        }
        body
    }

    /// The tunnel that this is in place of a body.
    #[expect(clippy::result_large_err, reason = "what is no tunnel goes on as it is, and need not be boxed")]
    pub(crate) fn into_tunnel(self) -> Result<Tunnel, Self> {
        match self.source {
            Source::Switched(body) => match body.into_switched() {
                Some(upstream) => Ok(Tunnel::new(self.live, upstream)),
                None => Err(ResponseBody { source: Source::Empty, ..self }),
            },
            source => Err(ResponseBody { source, ..self }),
        }
    }

    /// Ends the exchange with the response's head alone; returns its id.
    pub(crate) fn omit(mut self) -> RequestId {
        self.live.end(End::Complete);
        self.live.exchange().id().clone()
    }

    fn fail(&mut self, end: End, what: &'static str) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.source = Source::Empty;
        self.source_ended = true;
        self.live.end(end);
        Poll::Ready(Some(Err(BodyError(what))))
    }

    fn refuse(&mut self, refusal: FilterRefusal) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.live.refused_by(&refusal);
        self.fail(End::Refused, "a plugin refused the response's body")
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return self.deliver(rest);
        }
        while !self.source_ended {
            let frame = match &mut self.source {
                Source::Empty | Source::Switched(_) => None,
                Source::Whole(bytes) if bytes.is_empty() => None,
                Source::Whole(bytes) => Some(Ok(Frame::data(bytes.split_to(bytes.len().min(SLICE))))),
                Source::Upstream(body) => {
                    let over = self.live.deadline.as_mut().map(|deadline| deadline.poll_over(cx));
                    if let Some(Poll::Ready(fault)) = over {
                        self.live.fail(&fault);
                        let trailers = grpc::cut_off(self.live.request(), fault.describe().1);
                        let failed = self.fail(End::UpstreamFailed, "the time for the response is over");
                        let Some(trailers) = trailers else { return failed };
                        self.live.outcome = Code::of(&trailers);
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                    ready!(body.poll_frame(cx))
                }
            };
            let chunk = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => chunk,
                    Err(frame) => {
                        let mut trailers = frame.into_trailers().unwrap_or_default();
                        if let Err(refusal) = self.filters.trailers(&mut trailers) {
                            return self.refuse(refusal);
                        }
                        self.tail.push_back(Frame::trailers(allowed_trailers(trailers)));
                        continue;
                    }
                },
                Some(Err(_)) => {
                    return self.fail(End::UpstreamFailed, "the upstream failed within the response's body");
                }
                None => {
                    self.source_ended = true;
                    match self.filters.end() {
                        Ok(rest) if rest.is_empty() => break,
                        Ok(rest) => self.tail.push_front(Frame::data(rest)),
                        Err(refusal) => return self.refuse(refusal),
                    }
                    break;
                }
            };
            match self.filters.chunk(chunk, self.source.is_end()) {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => return self.deliver(chunk),
                Err(refusal) => return self.refuse(refusal),
            }
        }
        match self.tail.pop_front().map(Frame::into_data) {
            Some(Ok(data)) => self.deliver(data),
            Some(Err(trailers)) => {
                self.live.outcome = self.live.outcome.or(trailers.trailers_ref().and_then(Code::of));
                self.hand_over(trailers)
            }
            None => {
                self.live.end(End::Complete);
                Poll::Ready(None)
            }
        }
    }

    fn deliver(&mut self, mut data: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if data.len() > self.piece {
            self.rest = data.split_off(self.piece);
        }
        self.live.sent(data.len() as u64);
        self.hand_over(Frame::data(data))
    }

    fn hand_over(&mut self, frame: Frame<Bytes>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // One that says it has ended is dropped without being asked again.
        if self.is_end_stream() {
            self.live.end(End::Complete);
        }
        self.live.waits_for_client(true);
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.live.waits_for_client(false);
        self.poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        let source_ended = self.source.is_end();
        // Filters may hold something back until they are told of the end.
        self.rest.is_empty()
            && self.tail.is_empty()
            && (self.source_ended || (source_ended && !self.filters.may_alter()))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            _ if self.filters.may_alter() || !self.tail.is_empty() => SizeHint::default(),
            Source::Empty | Source::Switched(_) => SizeHint::with_exact(0),
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Upstream(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests;
