//! Copies of requests for another upstream. Nobody waits for them, and their answers are thrown away.
//!
//! A copy says what the first attempt of its request says: the hooks of the way in have run, those of `on_upstream`
//! too. Its body is whole: one that streams is gathered while it passes, and there is a copy only if all of it passed
//! and it was not too long. Trailers are not copied.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};
use http::header::{HOST, HeaderValue};
use http_body::{Body, Frame};
use portcullis_plugin::Request;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::attempt::{addresses, verdict_of};
use crate::body::{BodyError, Held, RequestBody};
use crate::grpc::Call;
use crate::live::Live;
use crate::metrics::MirrorMetrics;
use crate::proxy_protocol::Addresses;
use crate::upstream::{HostHeader, RequestHead, Tries, Upstream, Verdict, Wish, portion, send};

/// Bytes of an answer that are read so that its connection can be used again; with more, it is closed.
const MAX_ANSWER: u64 = 1024 * 1024;

/// Where copies of a route's requests go.
#[derive(Debug)]
pub struct Mirror {
    /// The upstream that gets them.
    pub upstream: Arc<Upstream>,
    /// Percent of the requests.
    pub share: u8,
    /// Bytes of a body that is copied.
    pub max_body: usize,
    /// Copies under way at a time, over all workers.
    pub max_requests: u32,
    /// What is counted.
    pub metrics: Arc<MirrorMetrics>,
}

/// A copy that waits for what the first attempt says.
pub(crate) struct Mirrored {
    mirror: Arc<Mirror>,
    /// The mirror's upstream as it was then: a wish may name one of its endpoints.
    upstream: Arc<Upstream>,
    wish: Wish,
    /// The `Host` for an upstream that gets the client's.
    host: Option<HeaderValue>,
    client: Addresses,
    body: Copied,
    under_way: UnderWay,
}

enum Copied {
    Whole(Bytes, Held),
    /// Comes when it has passed.
    Streaming(oneshot::Receiver<(Bytes, Held)>),
}

/// A copy's place under the limit.
struct UnderWay(Arc<MirrorMetrics>);

/// A body that is gathered as it passes.
pub(crate) struct Tee {
    gathered: BytesMut,
    room: usize,
    held: Option<Held>,
    /// None once it has passed whole, or is too long.
    copy: Option<oneshot::Sender<(Bytes, Held)>>,
    metrics: Arc<MirrorMetrics>,
}

impl Mirror {
    /// A copy of a request, if this one is to be copied and there is room for it.
    pub(crate) fn copy(
        self: &Arc<Self>,
        live: &mut Live,
        host: Option<&HeaderValue>,
        body: &mut RequestBody,
    ) -> Option<Box<Mirrored>> {
        let metrics = &self.metrics;
        if self.share < 100 && portion(live.client().worker.lot(), 100) >= u64::from(self.share) {
            return None;
        }
        if body.size_hint().lower() > self.max_body as u64 {
            metrics.too_long.increment();
            return None;
        }
        let upstream = Arc::clone(&self.upstream.current());
        if upstream.endpoints.is_empty() {
            metrics.nowhere.increment();
            return None;
        }
        let Some(under_way) = UnderWay::begin(metrics, self.max_requests) else {
            metrics.busy.increment();
            return None;
        };
        let held = live.scope().generation.budget.hold();
        let body = match body {
            RequestBody::Empty => Copied::Whole(Bytes::new(), held),
            RequestBody::Whole(bytes) => copied_whole(bytes, held, metrics)?,
            // A copy goes without trailers.
            RequestBody::Trailed(trailed) => copied_whole(&trailed.0, held, metrics)?,
            RequestBody::Stream(upload) => {
                let (sender, receiver) = oneshot::channel();
                upload.tee(Tee {
                    gathered: BytesMut::new(),
                    room: self.max_body,
                    held: Some(held),
                    copy: Some(sender),
                    metrics: metrics.clone(),
                });
                Copied::Streaming(receiver)
            }
        };
        let host = host.or_else(|| live.request().headers().get(HOST)).cloned();
        let wish = upstream.wish(live.exchange());
        let client = addresses(live);
        Some(Box::new(Mirrored { mirror: self.clone(), upstream, wish, host, client, body, under_way }))
    }
}

/// A copy of a whole body, if there is room for it.
fn copied_whole(bytes: &Bytes, mut held: Held, metrics: &MirrorMetrics) -> Option<Copied> {
    if held.grow(bytes.len() as u64).is_err() {
        metrics.busy.increment();
        return None;
    }
    Some(Copied::Whole(bytes.clone(), held))
}

impl Mirrored {
    /// Sends it, with this head, by a task of its own.
    pub(crate) fn send(self: Box<Self>, head: Request) {
        tokio::task::spawn_local(self.run(head));
    }

    async fn run(self: Box<Self>, head: Request) {
        let Mirrored { mirror, upstream, wish, host, client, body, under_way } = *self;
        let (bytes, _held) = match body {
            Copied::Whole(bytes, held) => (bytes, held),
            Copied::Streaming(passed) => match passed.await {
                Ok(passed) => passed,
                // The tee has counted why.
                Err(_) => return,
            },
        };
        let upstream = &upstream;
        // A copy waits for nothing, and an upstream that needs a rest gets none.
        let (Ok(passage), Some(slot)) = (upstream.pass(), upstream.slot_now()) else {
            mirror.metrics.busy.increment();
            return;
        };
        mirror.metrics.sent.increment();
        let mut tries = Tries::begin(upstream, wish, upstream.timeouts.total, None);
        let endpoint = tries.chosen.endpoint;
        let (method, target, version, mut headers) = head.into_parts();
        headers.insert(
            HOST,
            match (&upstream.host, host) {
                (HostHeader::Name(name), _) => name.clone(),
                (HostHeader::Preserve, Some(host)) => host,
                (HostHeader::Preserve, None) | (HostHeader::Endpoint, _) => endpoint.host.clone(),
            },
        );
        let head = Request::new(method, target, version, headers);
        let client = endpoint.is_told_clients().then_some(&client);
        let (method, target, headers) = (head.method(), head.target(), head.headers());
        let sending = RequestHead { method, target, headers, told: &[], client, upgrade: None };
        let call = Call::of(&head);
        let mut result =
            send(upstream, endpoint, sending, RequestBody::Whole(bytes), tries.terms(), slot).await;
        if let Ok(response) = &mut result {
            tries.learn(call, response);
        }
        if let Some(passage) = passage {
            passage.judge(result.as_ref().map_or(Verdict::Failed, |response| verdict_of(call, response)));
        }
        match result {
            Ok(response) => {
                let mut left = MAX_ANSWER;
                let mut answer = response.into_body();
                let reading = std::future::poll_fn(|cx| {
                    while let Some(Ok(frame)) = std::task::ready!(answer.poll_frame(cx)) {
                        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                        match left.checked_sub(length) {
                            Some(rest) => left = rest,
                            None => break,
                        }
                    }
                    std::task::Poll::Ready(())
                });
                // Whatever is left of it then goes with its connection.
                let _ = timeout(upstream.timeouts.body, reading).await;
            }
            // It is not made again.
            Err(error) => _ = tries.again(error.kind, error.reused, false),
        }
        drop(under_way);
    }
}

impl UnderWay {
    fn begin(metrics: &Arc<MirrorMetrics>, most: u32) -> Option<Self> {
        let under_way = UnderWay(metrics.clone());
        (metrics.under_way.fetch_add(1, Relaxed) < most).then_some(under_way)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

impl Tee {
    /// Sees what passes; `ended` if it is the last.
    pub(crate) fn see(&mut self, frame: &Option<Result<Frame<Bytes>, BodyError>>, ended: bool) {
        if self.copy.is_none() {
            return;
        }
        match frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.gather(data);
                }
            }
            // It broke off, which the copy learns when this is dropped.
            Some(Err(_)) => return,
            None => {}
        }
        if ended || frame.is_none() {
            let gathered = std::mem::take(&mut self.gathered).freeze();
            if let (Some(copy), Some(held)) = (self.copy.take(), self.held.take()) {
                // Without a receiver nothing was sent that this is the body of.
                let _ = copy.send((gathered, held));
            }
        }
    }

    fn gather(&mut self, data: &Bytes) {
        let skipped = if self.gathered.len() + data.len() > self.room {
            &self.metrics.too_long
        } else if self.held.as_mut().is_some_and(|held| held.grow(data.len() as u64).is_ok()) {
            return self.gathered.extend_from_slice(data);
        } else {
            &self.metrics.busy
        };
        skipped.increment();
        (self.copy, self.held, self.gathered) = (None, None, BytesMut::new());
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        if self.copy.is_some() {
            self.metrics.broken_off.increment();
        }
    }
}
