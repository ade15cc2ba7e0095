//! The attempts of a request: which endpoint, what it is told, and whether there is another.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use http::{Response, StatusCode};
use portcullis_plugin::{Attempt, HookName, Request};
use tokio::time::timeout;

use crate::body::{RequestBody, UploadFailure};
use crate::exchange::{Answer, forward};
use crate::forwarded::{Told, is_trusted};
use crate::grpc::{self, Call, Code};
use crate::http1::split_authority;
use crate::live::Live;
use crate::mirror::Mirrored;
use crate::proxy_protocol::Addresses;
use crate::reply::Fault;
use crate::tunnel::Upgrade;
use crate::upstream::{
    AttemptError, AttemptFailure, Deadline, Endpoint, Hedge, HostHeader, RequestHead, Tries, Upstream,
    UpstreamBody, Verdict, deadline, send,
};

/// Sends the request upstream, unless its circuit is open.
pub(crate) async fn attempt(
    live: &mut Live,
    upstream: &Arc<Upstream>,
    host: Option<&HeaderValue>,
    body: RequestBody,
    copy: Option<Box<Mirrored>>,
) -> Answer {
    if let Err(fault) = judge_plugins(live) {
        return fault.into();
    }
    let current = upstream.current();
    let upstream = &*current;
    if upstream.endpoints.is_empty() {
        return Fault::NoEndpoints.into();
    }
    let passage = match upstream.pass() {
        Ok(passage) => passage,
        Err(wait) => return Fault::CircuitOpen(wait).into(),
    };
    let answer = try_all(live, upstream, host, body, copy).await;
    if let Some(passage) = passage {
        passage.judge(verdict(Call::of(live.request()), &answer));
    }
    answer
}

/// What the answer tells of the upstream.
fn verdict(call: Option<Call>, answer: &Answer) -> Verdict {
    match answer {
        Answer::Upstream(response) => verdict_of(call, response),
        Answer::Fault(
            Fault::Unreachable
            | Fault::ConnectTimeout
            | Fault::UpstreamTls
            | Fault::ResponseTimeout
            | Fault::OutOfTime
            | Fault::UpstreamFailed,
        ) => Verdict::Failed,
        _ => Verdict::Unknown,
    }
}

/// What a response tells of the upstream.
pub(crate) fn verdict_of(call: Option<Call>, response: &Response<UpstreamBody>) -> Verdict {
    if response.body().is_open_call() {
        return Verdict::Later;
    }
    let outcome = call.and_then(|call| Some(call.status(Code::of(response.headers())?)));
    let failed = outcome.unwrap_or(response.status()).is_server_error();
    if failed { Verdict::ServerError } else { Verdict::Good }
}

/// Sends the request, again where that is safe, until there is a response or no more hope.
async fn try_all(
    live: &mut Live,
    upstream: &Arc<Upstream>,
    host: Option<&HeaderValue>,
    mut body: RequestBody,
    mut copy: Option<Box<Mirrored>>,
) -> Answer {
    let (call, patience) = (Call::of(live.request()), grpc::time_limit(live.request()));
    let total = live.scope().route().and_then(|route| route.timeout).or(upstream.timeouts.total);
    let asked_for = patience.map(|patience| (patience, Fault::Deadline));
    let allowed = total.map(|total| (total, Fault::OutOfTime));
    live.end_after(asked_for.into_iter().chain(allowed).min_by_key(|(length, _)| *length));
    let asked = asked(live, upstream).into_iter().chain(patience).min();
    let mut tries = Tries::begin(upstream, upstream.wish(live.exchange()), total, asked);
    loop {
        let repeated = body.copy();
        let sent = match &upstream.hedge {
            Some(hedge) if repeated.is_some() && tries.number == 1 && live.upgrade.is_none() => {
                Box::pin(hedged(live, upstream, hedge, &mut tries, host, body, &mut copy)).await
            }
            _ => once(live, upstream, &mut tries, host, body, &mut copy).await,
        };
        let Sent { result, is_idempotent } = match sent {
            Ok(sent) => sent,
            Err(answer) => return answer,
        };
        let (AttemptError { kind, unsent, reused }, response) = match result {
            Ok(mut response) => {
                live.upstream_duration = Some(tries.learn(call, &mut response));
                let is_secure = live.exchange().scheme() == "https";
                upstream.stick(tries.wish, tries.chosen.index, is_secure, response.headers_mut());
                if !upstream.retries.on_status.contains(&response.status()) {
                    return answered(live, response);
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
        let again = unsent.or(repeated.filter(|_| is_idempotent));
        body = match (tries.again(kind, reused, again.is_some()), again) {
            (true, Some(again)) => again,
            _ => {
                return match response {
                    Some(response) => answered(live, response),
                    None => fault_of(kind).into(),
                };
            }
        };
        if let Some(response) = response {
            response.into_body().release();
        }
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

fn answered(live: &Live, response: Response<UpstreamBody>) -> Answer {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && !live.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_met(response.headers()))
    {
        return Fault::UpstreamFailed.into();
    }
    Answer::Upstream(response)
}

/// What became of an attempt.
struct Sent {
    result: Result<Response<UpstreamBody>, AttemptError>,
    /// Of what was sent: a plugin may have changed the method.
    is_idempotent: bool,
}

/// Makes one attempt. The error is what a plugin answers instead.
async fn once(
    live: &mut Live,
    upstream: &Arc<Upstream>,
    tries: &mut Tries<'_>,
    host: Option<&HeaderValue>,
    body: RequestBody,
    copy: &mut Option<Box<Mirrored>>,
) -> Result<Sent, Answer> {
    let endpoint = tries.chosen.endpoint;
    note(live, upstream, tries.number, endpoint);
    // First of all, because what is told of the time that is left must be true after a wait.
    let slot = match tries.slot().await {
        Ok(slot) => slot,
        Err(kind) => {
            let unsent = Some(body);
            let result = Err(AttemptError { kind, unsent, reused: false });
            return Ok(Sent { result, is_idempotent: false });
        }
    };
    // Only hooks that may change it make a copy necessary.
    let outgoing = match live.scope().chain().wants(HookName::OnUpstream) {
        true => {
            let prepared = prepare(live, upstream, endpoint, host, tries.left()).await?;
            tries.starts();
            Some(prepared)
        }
        false => None,
    };
    let told = match &outgoing {
        Some(_) => Told::new(),
        None => told(live, upstream, endpoint, host, tries.left()),
    };
    if let Some(copy) = copy.take() {
        copy.send(match &outgoing {
            Some(outgoing) => Request::clone(outgoing),
            None => self::outgoing(live.request(), told.clone()),
        });
    }
    let client = endpoint.is_told_clients().then(|| addresses(live));
    let request = outgoing.as_deref().unwrap_or(live.request());
    let head = head(request, &told, client.as_ref(), live.upgrade.as_deref());
    let result = send(upstream, endpoint, head, body, tries.terms(), slot).await;
    Ok(Sent { result, is_idempotent: head.method.is_idempotent() })
}

/// Makes an attempt, and another one beside it elsewhere if that takes long and is safe: the first
/// response is taken, and the connection of the other closed.
async fn hedged(
    live: &mut Live,
    upstream: &Arc<Upstream>,
    hedge: &Hedge,
    tries: &mut Tries<'_>,
    host: Option<&HeaderValue>,
    body: RequestBody,
    copy: &mut Option<Box<Mirrored>>,
) -> Result<Sent, Answer> {
    let (Some(after), Some(same)) = (upstream.hedge_after(hedge), body.copy()) else {
        return once(live, upstream, tries, host, body, copy).await;
    };
    let first = tries.chosen;
    note(live, upstream, tries.number, first.endpoint);
    let slot = match tries.slot().await {
        Ok(slot) => slot,
        Err(kind) => {
            let result = Err(AttemptError { kind, unsent: Some(body), reused: false });
            return Ok(Sent { result, is_idempotent: false });
        }
    };
    let request = prepare(live, upstream, first.endpoint, host, tries.left()).await?;
    tries.starts();
    if let Some(copy) = copy.take() {
        copy.send(Request::clone(&request));
    }
    let is_idempotent = request.method().is_idempotent();
    let sent = |result| Sent { result, is_idempotent };
    let client = first.endpoint.is_told_clients().then(|| addresses(live));
    let first_head = head(&request, &[], client.as_ref(), None);
    let sending = send(upstream, first.endpoint, first_head, body, tries.terms(), slot);
    let mut sending = pin!(sending);
    let leave = match timeout(after, &mut sending).await {
        Ok(result) => return Ok(sent(result)),
        Err(_) if is_idempotent => tries.hedge(),
        Err(_) => None,
    };
    let Some((second, slot, _counted)) = leave else { return Ok(sent(sending.await)) };
    note(live, upstream, tries.number, second.endpoint);
    let decider = live.parts().decider.take();
    let prepared = tokio::select! {
        biased;
        result = &mut sending => Err(result),
        prepared = prepare(live, upstream, second.endpoint, host, tries.left()) => Ok(prepared),
    };
    let request = match prepared {
        Ok(Ok(request)) => request,
        // The first was faster than the hooks of the second, or they want no second.
        unprepared => {
            (live.parts().outgoing, live.parts().decider) = (None, decider);
            note(live, upstream, tries.number, first.endpoint);
            return Ok(sent(match unprepared {
                Err(result) => result,
                Ok(_) => sending.await,
            }));
        }
    };
    upstream.metrics.hedges.increment();
    let began = Instant::now();
    let client = second.endpoint.is_told_clients().then(|| addresses(live));
    let second_head = head(&request, &[], client.as_ref(), None);
    let hedging = send(upstream, second.endpoint, second_head, same, tries.terms(), slot);
    let mut hedging = pin!(hedging);
    let (result, is_second) = tokio::select! {
        biased;
        result = &mut sending => (result, false),
        result = &mut hedging => (result, true),
    };
    let result = match (result, is_second) {
        (Err(error), false) => {
            // One that had served before may just have been closed.
            if !error.reused {
                tries.lost(first, Some(error.kind));
            }
            tries.go_on(second, began);
            hedging.await
        }
        (Err(error), true) => {
            if !error.reused {
                upstream.failed(second, error.kind, began.elapsed());
            }
            sending.await
        }
        // An error comes sooner than what was asked for, and wins nothing.
        (Ok(response), true) if response.status().is_server_error() => {
            upstream.answered(second, response.status(), began.elapsed());
            response.into_body().release();
            sending.await
        }
        (answered, true) => {
            tries.lost(first, None);
            tries.go_on(second, began);
            upstream.metrics.hedges_won.increment();
            answered
        }
        (answered, false) => answered,
    };
    note(live, upstream, tries.number, tries.chosen.endpoint);
    Ok(sent(result))
}

/// Tells plugins and the log which attempt this is.
fn note(live: &mut Live, upstream: &Upstream, number: u32, endpoint: &Endpoint) {
    let (upstream, endpoint) = (upstream.name.clone(), endpoint.authority.clone());
    live.parts().attempt = Some(Attempt { number, upstream, endpoint });
}

fn fault_of(kind: AttemptFailure) -> Fault {
    match kind {
        AttemptFailure::Unreachable => Fault::Unreachable,
        AttemptFailure::ConnectTimeout => Fault::ConnectTimeout,
        AttemptFailure::Tls => Fault::UpstreamTls,
        AttemptFailure::ResponseTimeout => Fault::ResponseTimeout,
        AttemptFailure::OutOfTime => Fault::OutOfTime,
        AttemptFailure::Failed | AttemptFailure::Status(_) => Fault::UpstreamFailed,
        AttemptFailure::Deadline => Fault::Deadline,
        AttemptFailure::SlowUpload => Fault::BodyTimeout,
        AttemptFailure::NoUpgrade => Fault::NoUpgrade,
        AttemptFailure::Overloaded => Fault::Overloaded,
        AttemptFailure::PendingTimeout => Fault::PendingTimeout,
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

/// How long a trusted proxy says that the request may take. What others say of it goes no further.
fn asked(live: &mut Live, upstream: &Upstream) -> Option<Duration> {
    let Deadline { read, tell } = upstream.deadline.as_deref()?;
    let peer = live.client().connection.peer.ip().to_canonical();
    let is_trusted = is_trusted(peer, &live.scope().generation.trusted_proxies);
    if is_trusted {
        let name = read.as_ref()?;
        return deadline::read(name, live.request().headers().get(name)?);
    }
    let headers = live.parts().request.core_headers();
    for name in read.iter().chain(tell) {
        headers.remove(name);
    }
    None
}

/// What the gateway says itself in a request to this endpoint.
fn told(
    live: &Live,
    upstream: &Upstream,
    endpoint: &Endpoint,
    host: Option<&HeaderValue>,
    left: Option<Duration>,
) -> Told {
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
    let tell = upstream.deadline.as_ref().and_then(|deadline| deadline.tell.as_ref());
    told.extend(tell.zip(left).map(|(name, left)| (name.clone(), deadline::tell(name, left))));
    let is_told = live.deadline.is_some() && grpc::is_call(live.request());
    told.extend(left.filter(|_| is_told).map(grpc::told));
    told
}

/// The request of one attempt, as the hooks that may change it leave it.
async fn prepare(
    live: &mut Live,
    upstream: &Upstream,
    endpoint: &Endpoint,
    host: Option<&HeaderValue>,
    left: Option<Duration>,
) -> Result<Box<Request>, Answer> {
    let told = told(live, upstream, endpoint, host, left);
    let request = outgoing(live.request(), told);
    if !live.scope().chain().wants(HookName::OnUpstream) {
        return Ok(Box::new(request));
    }
    live.parts().outgoing = Some(request);
    if let Some(answer) = forward(live, HookName::OnUpstream).await {
        return Err(answer);
    }
    let request = live.parts().outgoing.take().ok_or(Answer::Fault(Fault::UpstreamFailed))?;
    judge_host(request.headers())?;
    // Boxed, because the futures of those who wait meanwhile are to be small.
    Ok(Box::new(request))
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
