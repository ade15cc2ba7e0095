//! The attempts of a request: which endpoint, what it is told, and whether there is another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use portcullis_plugin::{Attempt, HookName, Request};

use crate::body::{RequestBody, UploadFailure};
use crate::exchange::{Answer, forward};
use crate::forwarded::Told;
use crate::grpc;
use crate::http1::split_authority;
use crate::live::Live;
use crate::mirror::Mirrored;
use crate::proxy_protocol::Addresses;
use crate::reply::Fault;
use crate::tunnel::Upgrade;
use crate::upstream::{
    AttemptError, AttemptFailure, Endpoint, HostHeader, RequestHead, Upstream, UpstreamBody, send,
};

/// Attempts on connections that turned out to be closed, for requests that may be repeated; they do
/// not count as retries, because the endpoint did not fail.
const MAX_STALE: u32 = 3;

/// Sends the request upstream, again where that is safe, until there is a response or no more hope.
pub(crate) async fn attempt(
    live: &mut Live,
    upstream: &Arc<Upstream>,
    host: Option<&HeaderValue>,
    body: RequestBody,
    mut copy: Option<Box<Mirrored>>,
) -> Answer {
    if let Err(fault) = judge_plugins(live) {
        return fault.into();
    }
    let current = upstream.current();
    let upstream = &*current;
    if upstream.endpoints.is_empty() {
        return Fault::NoEndpoints.into();
    }
    let start = Instant::now();
    let retries = &upstream.retries;
    let wish = upstream.wish(live.exchange());
    let patience = grpc::time_limit(live.request());
    live.end_after(patience);
    let (mut number, mut stale, mut avoid) = (1, 0, None);
    let mut body = Some(body);
    // The retry that is under way, if this attempt is one.
    let mut retrying = None;
    loop {
        let chosen = upstream.choose(wish, avoid);
        let endpoint = chosen.endpoint;
        let mut told = told(live, upstream, endpoint, host);
        told.extend(patience.and_then(|patience| grpc::told(patience.saturating_sub(start.elapsed()))));
        let client = endpoint.is_told_clients().then(|| addresses(live));
        let parts = live.parts();
        let (name, address) = (upstream.name.clone(), endpoint.authority.clone());
        parts.attempt = Some(Attempt { number, upstream: name, endpoint: address });
        let sending = body.take().unwrap_or(RequestBody::Empty);
        let repeated = sending.copy();
        let (sent, is_idempotent) = if live.scope().chain().wants(HookName::OnUpstream) {
            // Only hooks that may change it make a copy necessary.
            live.parts().outgoing = Some(outgoing(live.request(), told));
            if let Some(answer) = forward(live, HookName::OnUpstream).await {
                return answer;
            }
            let Some(outgoing) = live.parts().outgoing.take() else { return Fault::UpstreamFailed.into() };
            if let Err(fault) = judge_host(outgoing.headers()) {
                return fault.into();
            }
            if let Some(copy) = copy.take() {
                copy.send(outgoing.clone());
            }
            let head = head(&outgoing, &[], client.as_ref(), live.upgrade.as_deref());
            // What is sent decides, not what the client asked for: a plugin may have changed the method.
            let sent = send(upstream, endpoint, head, sending, retries.limit(start, patience)).await;
            (sent, head.method.is_idempotent())
        } else {
            if let Some(copy) = copy.take() {
                copy.send(outgoing(live.request(), told.clone()));
            }
            let head = head(live.request(), &told, client.as_ref(), live.upgrade.as_deref());
            let sent = send(upstream, endpoint, head, sending, retries.limit(start, patience)).await;
            (sent, head.method.is_idempotent())
        };
        let again = repeated.filter(|_| is_idempotent);
        let (AttemptError { kind, unsent, reused }, response) = match sent {
            Ok(mut response) => {
                upstream.answered(chosen, response.status());
                let is_secure = live.exchange().scheme() == "https";
                upstream.stick(wish, chosen.index, is_secure, response.headers_mut());
                if !retries.on_status.contains(&response.status()) {
                    return answered(live, upstream, start, response);
                }
                (AttemptError::of(&response), Some(response))
            }
            Err(error) => {
                if let Some(answer) = failed_upload(live) {
                    return answer;
                }
                (error, None)
            }
        };
        body = unsent.or(again);
        if body.is_some() && reused && kind == AttemptFailure::Failed && stale < MAX_STALE {
            stale += 1;
            upstream.metrics.failures.increment();
            continue;
        }
        upstream.failed(chosen, kind);
        let is_worth_it = body.is_some() && number <= retries.attempts && retries.follow(kind);
        let has_time = retries.total(patience).is_none_or(|total| start.elapsed() < total);
        drop(retrying.take());
        retrying = if is_worth_it && has_time { upstream.retry() } else { None };
        if retrying.is_none() {
            return match response {
                Some(response) => answered(live, upstream, start, response),
                None => fault_of(kind).into(),
            };
        }
        if let Some(response) = response {
            response.into_body().release();
        }
        number += 1;
        avoid = Some(endpoint.id);
    }
}

/// What plugins made of the request; what of it can't be wrong by its type was judged as they wrote it.
fn judge_plugins(live: &Live) -> Result<(), Fault> {
    if live.scope().chain().len() == 0 { Ok(()) } else { judge_host(live.request().headers()) }
}

/// The host chooses the site at the upstream, so a plugin's is judged like a client's.
fn judge_host(headers: &HeaderMap) -> Result<(), Fault> {
    let mut hosts = headers.get_all(HOST).iter();
    let is_sound = hosts.next().is_none_or(|host| split_authority(host.as_bytes()).is_some());
    if is_sound && hosts.next().is_none() { Ok(()) } else { Err(Fault::PluginHost) }
}

fn answered(
    live: &mut Live,
    upstream: &Upstream,
    start: Instant,
    response: Response<UpstreamBody>,
) -> Answer {
    let duration = start.elapsed();
    live.upstream_duration = Some(duration);
    upstream.metrics.duration.observe(duration);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && !live.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_met(response.headers()))
    {
        return Fault::UpstreamFailed.into();
    }
    Answer::Upstream(response)
}

fn fault_of(kind: AttemptFailure) -> Fault {
    match kind {
        AttemptFailure::Unreachable => Fault::Unreachable,
        AttemptFailure::ConnectTimeout => Fault::ConnectTimeout,
        AttemptFailure::Tls => Fault::UpstreamTls,
        AttemptFailure::ResponseTimeout | AttemptFailure::OutOfTime => Fault::ResponseTimeout,
        AttemptFailure::Failed | AttemptFailure::Status(_) => Fault::UpstreamFailed,
        AttemptFailure::Overloaded => Fault::Overloaded,
    }
}

/// Whether the attempt failed because the upload did, on the client's side or in a filter.
fn failed_upload(live: &mut Live) -> Option<Answer> {
    match live.upload.as_ref()?.take_failure()? {
        UploadFailure::Fault(fault) => Some(fault.into()),
        UploadFailure::Refused(refusal) => {
            live.refused_by(&refusal);
            Some(Answer::Reply(refusal.reply))
        }
    }
}

/// What the gateway says itself in a request to this endpoint.
fn told(live: &Live, upstream: &Upstream, endpoint: &Endpoint, host: Option<&HeaderValue>) -> Told {
    let (client, headers) = (live.client(), live.request().headers());
    let trusted = &live.scope().generation.trusted_proxies;
    let mut told = Told::new();
    client.forwarded_by.tell(client.connection.peer.ip(), trusted, headers, &mut told);
    let host = host.or(match &upstream.host {
        // HTTP/1.0 clients need not send one, HTTP/1.1 servers need one.
        HostHeader::Preserve => (!headers.contains_key(HOST)).then_some(&endpoint.host),
        HostHeader::Endpoint => Some(&endpoint.host),
        HostHeader::Name(name) => Some(name),
    });
    told.extend(host.map(|host| (HOST, host.clone())));
    told
}

/// The request of one attempt for hooks to look at and change.
fn outgoing(request: &Request, told: Told) -> Request {
    let (method, target, version, mut headers) = request.clone().into_parts();
    headers.remove(CONTENT_LENGTH);
    headers.remove(EXPECT);
    for (name, value) in told {
        headers.insert(name, value);
    }
    Request::new(method, target, version, headers)
}

fn head<'a>(
    request: &'a Request,
    told: &'a [(HeaderName, HeaderValue)],
    client: Option<&'a Addresses>,
    upgrade: Option<&'a Upgrade>,
) -> RequestHead<'a> {
    let (method, target, headers) = (request.method(), request.target(), request.headers());
    let upgrade = upgrade.filter(|_| headers.contains_key(UPGRADE)).map(|upgrade| &upgrade.protocol);
    RequestHead { method, target, headers, told, client, upgrade }
}

/// Both ends of the client's connection. Behind a trusted proxy the client's port is not known.
pub(crate) fn addresses(live: &mut Live) -> Addresses {
    let client = live.exchange().client();
    let connection = &live.client().connection;
    let is_peer = connection.peer.ip().to_canonical() == client;
    let source = if is_peer { connection.peer } else { SocketAddr::new(client, 0) };
    Addresses { source, destination: connection.local }
}
