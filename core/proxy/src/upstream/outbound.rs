//! Calls that plugins make themselves, over the worker's own connections.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{Request, Response};
use portcullis_plugin::{Outbound, OutboundError, OutboundFuture, OutboundLimits};

use super::{AttemptFailure, HostHeader, RequestHead, Upstream, Wish, send};
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
        let (mut head, body) = request.into_parts();
        let current = self.upstream.current();
        let upstream = &*current;
        if upstream.endpoints.is_empty() {
            return Err(OutboundError::Unreachable);
        }
        let chosen = upstream.choose(Wish::Any, None);
        let endpoint = chosen.endpoint;
        if !head.headers.contains_key(HOST) {
            let host = match &upstream.host {
                HostHeader::Name(name) => name.clone(),
                HostHeader::Preserve | HostHeader::Endpoint => endpoint.host.clone(),
            };
            head.headers.insert(HOST, host);
        }
        let root = PathAndQuery::from_static("/");
        let target = head.uri.path_and_query().unwrap_or(&root);
        let (method, headers) = (&head.method, &head.headers);
        let sending = RequestHead { method, target, headers, told: &[], client: None, upgrade: None };
        let start = Instant::now();
        let sent = send(upstream, endpoint, sending, RequestBody::Whole(body), None).await;
        let response = sent.map_err(|error| {
            upstream.failed(chosen, error.kind);
            match error.kind {
                AttemptFailure::Unreachable | AttemptFailure::Tls => OutboundError::Unreachable,
                AttemptFailure::ConnectTimeout
                | AttemptFailure::ResponseTimeout
                | AttemptFailure::OutOfTime => OutboundError::Timeout,
                AttemptFailure::Failed | AttemptFailure::Status(_) | AttemptFailure::Overloaded => {
                    OutboundError::Failed
                }
            }
        })?;
        upstream.metrics.duration.observe(start.elapsed());
        upstream.answered(chosen, response.status());
        let (head, mut body) = response.into_parts();
        let mut held = self.budget.hold();
        let read = whole(&mut body, limits.max_body as u64, &mut held, Fault::ResponseTooLarge).await;
        let body = read.map_err(|fault| match fault {
            Fault::ResponseTooLarge => OutboundError::TooLarge,
            _ => OutboundError::Failed,
        })?;
        Ok(Response::from_parts(head, body.0))
    }
}

impl Outbound for UpstreamClient {
    fn send(&self, request: Request<Bytes>, limits: OutboundLimits) -> OutboundFuture<'_> {
        Box::pin(async move {
            let call = tokio::time::timeout(limits.timeout, self.call(request, limits));
            call.await.unwrap_or(Err(OutboundError::Timeout))
        })
    }
}
