//! Calls that plugins make themselves, over the worker's own connections.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{Method, Request, Response};
use portcullis_plugin::{Outbound, OutboundError, OutboundFuture, OutboundLimits, Trailers};
use tokio::time::{Instant, timeout_at};

use super::{
    AttemptError, AttemptFailure, HostHeader, RequestHead, Tries, Upstream, UpstreamBody, Verdict, send,
};
use crate::body::{Budget, RequestBody, whole};
use crate::reply::Fault;

/// The way to an upstream for plugins.
#[derive(Debug, Clone)]
pub struct UpstreamClient {
    upstream: Arc<Upstream>,
    budget: Arc<Budget>,
}

impl UpstreamClient {
    /// Calls go to `upstream`; answers count against `budget` while they are read.
    pub fn new(upstream: Arc<Upstream>, budget: Arc<Budget>) -> Self {
        UpstreamClient { upstream, budget }
    }

    async fn call(
        &self,
        request: Request<Bytes>,
        limits: OutboundLimits,
    ) -> Result<Response<Bytes>, OutboundError> {
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(OutboundError::Method);
        }
        let current = self.upstream.current();
        let upstream = &*current;
        if upstream.endpoints.is_empty() {
            return Err(OutboundError::Unreachable);
        }
        let Ok(passage) = upstream.pass() else { return Err(OutboundError::Unreachable) };
        let end = Instant::now() + limits.timeout;
        let answered = try_all(upstream, request, limits.timeout).await;
        if let Some(passage) = passage {
            passage.judge(match &answered {
                Ok(response) if response.status().is_server_error() => Verdict::ServerError,
                Ok(_) => Verdict::Good,
                Err(AttemptFailure::Overloaded | AttemptFailure::PendingTimeout) => Verdict::Unknown,
                Err(_) => Verdict::Failed,
            });
        }
        let (head, mut body) = answered.map_err(error_of)?.into_parts();
        let mut held = self.budget.hold();
        let reading = whole(&mut body, limits.max_body as u64, &mut held, Fault::ResponseTooLarge);
        let read = timeout_at(end, reading).await.map_err(|_| OutboundError::Timeout)?;
        let (body, trailers) = read.map_err(|fault| match fault {
            Fault::ResponseTooLarge => OutboundError::TooLarge,
            _ => OutboundError::Failed,
        })?;
        let mut response = Response::from_parts(head, body);
        if let Some(trailers) = trailers {
            response.extensions_mut().insert(Trailers(*trailers));
        }
        Ok(response)
    }
}

/// Sends the request, again where that is safe, as a client's is. An endpoint that lets the caller wait for all of
/// its time has failed, so the attempts themselves end with that time.
async fn try_all(
    upstream: &Arc<Upstream>,
    request: Request<Bytes>,
    time: Duration,
) -> Result<Response<UpstreamBody>, AttemptFailure> {
    let (head, body) = request.into_parts();
    let root = PathAndQuery::from_static("/");
    let target = head.uri.path_and_query().unwrap_or(&root);
    let is_idempotent = head.method.is_idempotent();
    let total = upstream.timeouts.total.map_or(time, |total| total.min(time));
    let mut tries = Tries::begin(upstream, upstream.wish_of(&head.headers), Some(total), None);
    loop {
        let endpoint = tries.chosen.endpoint;
        let host = (!head.headers.contains_key(HOST)).then(|| match &upstream.host {
            HostHeader::Name(name) => (HOST, name.clone()),
            HostHeader::Preserve | HostHeader::Endpoint => (HOST, endpoint.host.clone()),
        });
        let told = host.as_slice();
        let sending = RequestHead {
            method: &head.method,
            target,
            headers: &head.headers,
            told,
            client: None,
            upgrade: None,
        };
        let (slot, terms) = (tries.slot().await?, tries.terms());
        match send(upstream, endpoint, sending, RequestBody::Whole(body.clone()), terms, slot).await {
            Ok(response) => {
                let status = response.status();
                tries.answered(status);
                let is_asked_again = upstream.retries.on_status.contains(&status);
                if !(is_asked_again && tries.again(AttemptFailure::Status(status), false, is_idempotent)) {
                    return Ok(response);
                }
                response.into_body().release();
            }
            Err(AttemptError { kind, unsent, reused }) => {
                if !tries.again(kind, reused, is_idempotent || unsent.is_some()) {
                    return Err(kind);
                }
            }
        }
    }
}

fn error_of(failure: AttemptFailure) -> OutboundError {
    match failure {
        AttemptFailure::Unreachable | AttemptFailure::Tls => OutboundError::Unreachable,
        AttemptFailure::ConnectTimeout
        | AttemptFailure::ResponseTimeout
        | AttemptFailure::OutOfTime
        | AttemptFailure::Deadline => OutboundError::Timeout,
        AttemptFailure::Failed
        | AttemptFailure::NoUpgrade
        | AttemptFailure::Status(_)
        | AttemptFailure::SlowUpload
        | AttemptFailure::Overloaded
        | AttemptFailure::PendingTimeout => OutboundError::Failed,
    }
}

impl Outbound for UpstreamClient {
    fn send(&self, request: Request<Bytes>, limits: OutboundLimits) -> OutboundFuture<'_> {
        Box::pin(self.call(request, limits))
    }
}
