//! The life of a request, from its head to the response that carries it away.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, SET_COOKIE, UPGRADE};
use http::{Method, Response, StatusCode, Version};
use http_body::Body;
use portcullis_plugin::{Content, End, HookName, Reply};

use crate::attempt::attempt;
use crate::body::{
    ClientBody, Incoming, RequestBody, ResponseBody, Source, judge_trailers, pass_whole, whole,
};
use crate::chain::Flow;
use crate::client::Client;
use crate::forwarded::{client_address, remove_claims};
use crate::generation::{Action, Rewrite, Route};
use crate::grpc::{self, Code};
use crate::head::{Head, understand, unreadable, with_path};
use crate::hops::strip_hop_by_hop;
use crate::http1::{HOST_MISSING, Refusal};
use crate::live::Live;
use crate::pace::Pace;
use crate::reply::{Fault, render};
use crate::routes::Found;
use crate::sample;
use crate::split::Choice;
use crate::tunnel::Upgrade;
use crate::upstream::{Upstream, UpstreamBody};
use portcullis_plugin::path::normalise;

/// The exchange ended without an answer: the connection is to be closed.
#[derive(Debug)]
pub(crate) struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("dropped")
    }
}

impl std::error::Error for Dropped {}

/// What is to be sent to the client, before the response hooks have seen it.
pub(crate) enum Answer {
    Upstream(Response<UpstreamBody>),
    Reply(Box<Reply>),
    Fault(Fault),
    Drop,
}

impl From<Fault> for Answer {
    fn from(fault: Fault) -> Self {
        Answer::Fault(fault)
    }
}

/// Serves one request, which may be no more than the refusal of its head. Dropping the future, as
/// connections do when the client goes away, ends the exchange like any other end.
pub(crate) fn serve(
    client: &Rc<Client>,
    head: Result<Head, Refusal>,
    body: Incoming,
) -> impl Future<Output = Result<Response<ResponseBody>, Dropped>> + use<> {
    // Every connection has room for this future, so it begins where the head has been understood.
    let begun = begin(client, head, !body.is_end_stream());
    async move {
        let (mut live, fault) = begun.ok_or(Dropped)?;
        let answer = match fault {
            Some(fault) => Answer::Fault(fault),
            None => answer(&mut live, body).await,
        };
        respond(live, answer).await
    }
}

/// The exchange, and what is wrong with its head; none if its listener is gone, and with it
/// everything that says how to answer.
fn begin(
    client: &Rc<Client>,
    head: Result<Head, Refusal>,
    has_body: bool,
) -> Option<(Box<Live>, Option<Fault>)> {
    let generation = client.worker.generation();
    let listener = client.listener(&generation)?;
    let serving = client.begin();
    let mut upgrade = None;
    let (request, fault) = match head {
        Ok(mut head) => {
            upgrade = head.upgrade.take();
            understand(head, &generation.listeners[listener].limits)
        }
        Err(refusal) => {
            let version = if client.streams.is_some() { Version::HTTP_2 } else { Version::HTTP_11 };
            (unreadable(version), Some(refusal.into()))
        }
    };
    let mut live = Live::new(serving, generation, listener, request);
    if let Some(Upgrade { protocol, .. }) = upgrade.as_deref() {
        live.parts().request.core_headers().insert(UPGRADE, protocol.clone());
    }
    live.upgrade = upgrade;
    live.parts().has_request_body = has_body;
    identify_client(&mut live);
    if fault.is_none() && live.is_one_too_many() {
        live.client().worker.metrics.exchanges_refused.increment();
        return Some((live, Some(Fault::TooManyExchanges)));
    }
    if fault.is_none() {
        sample::take(&mut live);
    }
    Some((live, fault))
}

/// From the request's head to what the client is to get.
async fn answer(live: &mut Live, body: Incoming) -> Answer {
    let routed = route(live);
    if let Some(answer) = forward(live, HookName::OnRequest).await {
        return answer;
    }
    if let Err(fault) = routed {
        return fault.into();
    }
    if let Some(redirect) = redirect_https(live) {
        return redirect;
    }
    match receive(live, body).await {
        Ok(body) => act(live, body).await,
        Err(answer) => answer,
    }
}

/// Who the client is; what it says of that itself goes no further.
fn identify_client(live: &mut Live) {
    let peer = live.client().connection.peer.ip();
    let (exchange, scope) = live.split();
    let trusted = &scope.generation.trusted_proxies;
    let parts = exchange.core();
    parts.client = client_address(peer, parts.request.headers(), trusted);
    remove_claims(peer, trusted, parts.request.core_headers());
}

/// Chooses the route, which fixes the chain. A listener that only redirects has none.
fn route(live: &mut Live) -> Result<(), Fault> {
    let (exchange, scope) = live.split();
    if scope.listener().redirect_https.is_some() {
        return Ok(());
    }
    let generation = scope.generation.clone();
    let request = exchange.request();
    let found = generation.table.find(
        request.host(),
        request.path(),
        request.method(),
        request.query(),
        request.headers(),
    );
    match found {
        Found::Route { index, captures } => {
            live.take_route(index);
            let parts = live.parts();
            parts.route = generation.meta(index).cloned();
            parts.captures = captures;
            Ok(())
        }
        Found::MethodNotAllowed { allow } => {
            let allow = allow.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            let allow = HeaderValue::try_from(allow).unwrap_or(HeaderValue::from_static(""));
            Err(Fault::MethodNotAllowed(allow))
        }
        Found::NotFound => Err(Fault::NotFound),
    }
}

/// Runs a hook of the request's way in; an answer ends the way.
pub(crate) async fn forward(live: &mut Live, hook: HookName) -> Option<Answer> {
    let (exchange, scope) = live.split();
    let (flow, entered) = scope.chain().forward(hook, exchange).await;
    if hook == HookName::OnRequest {
        live.entered = entered;
    }
    match flow {
        Flow::Continue => None,
        Flow::Reply(reply) => Some(Answer::Reply(reply)),
        Flow::Drop => Some(Answer::Drop),
    }
}

fn redirect_https(live: &mut Live) -> Option<Answer> {
    let (exchange, scope) = live.split();
    let redirect = scope.listener().redirect_https?;
    let port = redirect.port.filter(|port| *port != 443).map_or(String::new(), |port| format!(":{port}"));
    let (host, target) = (exchange.request().host(), exchange.request().target().as_str());
    // The asterisk is no path.
    let target = if target == "*" { "/" } else { target };
    let location = HeaderValue::try_from(format!("https://{host}{port}{target}"));
    live.decided_by_core("core.redirect_https", None);
    Some(match location {
        Ok(location) if !live.exchange().request().host().is_empty() => {
            Answer::Reply(Box::new(Reply::redirect(redirect.status, location)))
        }
        _ => Fault::from(HOST_MISSING).into(),
    })
}

/// Takes the request's body: none, whole if a plugin wants it so, else as it streams.
async fn receive(live: &mut Live, body: Incoming) -> Result<RequestBody, Answer> {
    let limit = live.scope().generation.max_body;
    let limits = live.scope().listener().limits;
    let (exchange, scope) = live.split();
    let wish = scope.chain().whole_request(exchange);
    // A stream of messages may pause; what is held in memory meanwhile may not, nor what only says that it is one.
    let may_pause = wish.is_none()
        && !body.is_end_stream()
        && grpc::is_call(exchange.request())
        && scope.route().is_some_and(Route::takes_calls);
    let pace = Pace::new(limits.body_timeout, limits.min_rate.filter(|_| !may_pause));
    let mut body = ClientBody::new(body, pace);
    if limit.is_some_and(|limit| body.size_hint().lower() > limit) {
        return Err(Fault::BodyTooLarge.into());
    }
    let Some(wish) = wish else {
        let (exchange, scope) = live.split();
        let filters = scope.chain().request_filters(exchange);
        if body.is_end_stream() && filters.iter().all(|filter| filter.instance.in_shadow) {
            // Who only watches has nothing to say.
            let _ = pass_whole(Bytes::new(), &mut HeaderMap::new(), filters);
            return Ok(RequestBody::Empty);
        }
        let (body, state) = RequestBody::stream(body, filters, limit);
        live.upload = Some(state);
        return Ok(body);
    };
    let mut held = live.scope().generation.budget.hold();
    let limit = limit.unwrap_or(u64::MAX).min(wish as u64);
    let read = whole(&mut body, limit, &mut held, Fault::BodyTooLarge).await;
    live.held.push(held);
    live.request_bytes = body.received();
    let (read, trailers) = read?;
    if let Some(trailers) = &trailers {
        judge_trailers(trailers)?;
    }
    sample::take_body(live, &read);
    live.parts().request_body = Some(read);
    live.parts().request_trailers = trailers;
    if let Some(answer) = forward(live, HookName::OnRequestBody).await {
        return Err(answer);
    }
    let read = live.exchange().request_body().cloned().unwrap_or_default();
    let trailers = live.parts().request_trailers.take();
    let (exchange, scope) = live.split();
    let filters = scope.chain().request_filters(exchange);
    let mut trailers = trailers.map_or_else(HeaderMap::new, |trailers| *trailers);
    match pass_whole(read, &mut trailers, filters) {
        Ok(passed) => Ok(RequestBody::whole(passed, trailers)),
        Err(refusal) => {
            live.refused_by(&refusal);
            Err(Answer::Reply(refusal.reply))
        }
    }
}

/// Does what the route says.
async fn act(live: &mut Live, body: RequestBody) -> Answer {
    let generation = live.scope().generation.clone();
    let route = live.scope().route_index().and_then(|index| generation.routes.get(index));
    let Some(route) = route else { return Fault::NotFound.into() };
    match &route.action {
        Action::Respond { status, headers, body } => {
            live.decided_by_core("core.respond", None);
            let content = Content::Bytes(body.clone());
            Answer::Reply(Box::new(Reply {
                status: *status,
                reason: None,
                headers: headers.clone(),
                content,
            }))
        }
        Action::Redirect { status, to } => {
            live.decided_by_core("core.redirect", None);
            match HeaderValue::try_from(to.render(live.exchange())) {
                Ok(to) => Answer::Reply(Box::new(Reply::redirect(*status, to))),
                Err(_) => Fault::Rewrite.into(),
            }
        }
        Action::Upstream(upstream) => pass_on(live, route, upstream, body).await,
        Action::Split(split) => {
            let worker = live.client().worker.clone();
            let Choice { upstream, cookie } = split.choose(live.exchange(), || worker.lot());
            let mut answer = pass_on(live, route, upstream, body).await;
            if let (Answer::Upstream(response), Some(cookie)) = (&mut answer, cookie) {
                response.headers_mut().append(SET_COOKIE, cookie);
            }
            answer
        }
    }
}

/// Sends the request to the upstream that was chosen, and a copy to where the route says.
async fn pass_on(live: &mut Live, route: &Route, upstream: &Arc<Upstream>, mut body: RequestBody) -> Answer {
    if let Err(fault) = grant_upgrade(live, route).and_then(|()| apply(&route.rewrite, live)) {
        return fault.into();
    }
    let host = route.rewrite.host.as_ref();
    // Of a tunnel there is no copy.
    let mirror = route.mirror.as_ref().filter(|_| live.upgrade.is_none());
    let copy = mirror.and_then(|mirror| mirror.copy(live, host, &mut body));
    attempt(live, upstream, host, body, copy).await
}

/// The route says what a client may switch to, and a plugin may have taken the wish away. Where it is not granted, the
/// request is an ordinary one (RFC 9110, 7.8), unless that would be of no use.
fn grant_upgrade(live: &mut Live, route: &Route) -> Result<(), Fault> {
    let Some(wanted) = &live.upgrade else { return Ok(()) };
    if route.upgrades.contains(&wanted.protocol) && live.request().headers().contains_key(UPGRADE) {
        return Ok(());
    }
    if wanted.is_needed() {
        return Err(Fault::Upgrade);
    }
    live.upgrade = None;
    live.parts().request.core_headers().remove(UPGRADE);
    Ok(())
}

fn apply(rewrite: &Rewrite, live: &mut Live) -> Result<(), Fault> {
    let Rewrite { path, strip_prefix, add_prefix, .. } = rewrite;
    if path.is_none() && strip_prefix.is_none() && add_prefix.is_none() {
        return Ok(());
    }
    let exchange = live.exchange();
    // The server as a whole is nowhere else.
    if exchange.request().path() == "*" {
        return Ok(());
    }
    let mut text = match path {
        Some(template) => template.render(exchange),
        None => exchange.request().path().to_owned(),
    };
    if let Some(rest) =
        strip_prefix.as_ref().and_then(|prefix| text.strip_prefix(prefix.trim_end_matches('/')))
        && (rest.is_empty() || rest.starts_with('/'))
    {
        text = if rest.is_empty() { "/".to_owned() } else { rest.to_owned() };
    }
    if let Some(prefix) = add_prefix {
        text.insert_str(0, prefix.trim_end_matches('/'));
    }
    // A capture may hold `..` only in encoded forms, which are refused; what plugins wrote is judged here.
    let text = normalise(&text).map_err(|_| Fault::Rewrite)?;
    let target = with_path(&text, exchange.request().target()).ok_or(Fault::Rewrite)?;
    exchange.core().request.replace_target(target);
    Ok(())
}

/// From what the client is to get to what its connection sends, by way of the response hooks.
async fn respond(mut live: Box<Live>, answer: Answer) -> Result<Response<ResponseBody>, Dropped> {
    let mut source = match answer {
        Answer::Upstream(response) => take(&mut live, response),
        Answer::Reply(reply) => put(&mut live, *reply),
        Answer::Fault(fault) => put_fault(&mut live, &fault),
        Answer::Drop => return drop_connection(&mut live),
    };
    let mut below = u16::MAX;
    loop {
        match outward(&mut live, HookName::OnResponse, &mut below).await {
            Flow::Continue => {}
            Flow::Reply(reply) => {
                source = put(&mut live, *reply);
                continue;
            }
            Flow::Drop => return drop_connection(&mut live),
        }
        // What follows is no body.
        if matches!(source, Source::Switched(_)) {
            break;
        }
        let entered = live.entered;
        let (exchange, scope) = live.split();
        let Some(limit) = scope.chain().whole_response(exchange, entered) else { break };
        if let Err(fault) = gather(&mut live, &mut source, limit).await {
            source = put_fault(&mut live, &fault);
            below = u16::MAX;
            continue;
        }
        match outward(&mut live, HookName::OnResponseBody, &mut below).await {
            Flow::Continue => {
                source = Source::Whole(live.parts().response_body.clone().unwrap_or_default());
                break;
            }
            // Plugins further out have seen the head that is now gone; they see the new one.
            Flow::Reply(reply) => source = put(&mut live, *reply),
            Flow::Drop => return drop_connection(&mut live),
        }
    }
    if is_promise(&mut live, &source) {
        source = put_fault(&mut live, &Fault::NotSwitched);
    }
    Ok(finish(live, source))
}

/// Whether the client would take the response for the agreement to an upgrade, and there is none.
fn is_promise(live: &mut Live, source: &Source) -> bool {
    let is_over_http2 = live.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_over_http2());
    let status =
        live.parts().response.as_ref().map_or(StatusCode::BAD_GATEWAY, portcullis_plugin::Response::status);
    match status {
        StatusCode::SWITCHING_PROTOCOLS => !matches!(source, Source::Switched(_)),
        status => is_over_http2 && status.is_success(),
    }
}

fn drop_connection(live: &mut Live) -> Result<Response<ResponseBody>, Dropped> {
    live.end(End::Refused);
    Err(Dropped)
}

/// Runs a hook of the response's way out. After an answer the run goes on outward of who gave it.
async fn outward(live: &mut Live, hook: HookName, below: &mut u16) -> Flow {
    let entered = live.entered;
    let (exchange, scope) = live.split();
    let (flow, at) = scope.chain().backward(hook, exchange, entered, *below).await;
    if !matches!(flow, Flow::Continue) {
        *below = at;
    }
    flow
}

/// Takes the upstream's response over.
fn take(live: &mut Live, response: Response<UpstreamBody>) -> Source {
    live.is_reply = false;
    let (head, body) = response.into_parts();
    live.respond(portcullis_plugin::Response::new(head.status, head.headers));
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        return Source::Switched(body);
    }
    // An empty body is dropped without a look, and the upstream's connection would go with it.
    if !live.is_head && Reply::may_have_body(head.status, &Method::GET) && !body.is_end_stream() {
        live.parts().has_response_body = true;
        return Source::Upstream(body);
    }
    body.release();
    Source::Empty
}

/// Puts a reply in place of the upstream's response.
fn put(live: &mut Live, reply: Reply) -> Source {
    live.is_reply = true;
    live.parts().response_trailers = None;
    let (status, headers, body) = render(reply, live.exchange().id());
    live.respond(portcullis_plugin::Response::new(status, headers));
    live.parts().has_response_body = !body.is_empty();
    Source::Whole(body)
}

fn put_fault(live: &mut Live, fault: &Fault) -> Source {
    live.fail(fault);
    put(live, fault.reply())
}

/// Reads the response's body whole, for plugins that want it so.
async fn gather(live: &mut Live, source: &mut Source, limit: usize) -> Result<(), Fault> {
    let body = match std::mem::replace(source, Source::Empty) {
        Source::Empty | Source::Switched(_) => Bytes::new(),
        Source::Whole(body) => body,
        Source::Upstream(mut body) => {
            let mut held = live.scope().generation.budget.hold();
            let reading = whole(&mut body, limit as u64, &mut held, Fault::ResponseTooLarge);
            let read = match &mut live.deadline {
                None => reading.await,
                Some(deadline) => tokio::select! {
                    read = reading => read,
                    fault = poll_fn(|cx| deadline.poll_over(cx)) => Err(fault),
                },
            };
            live.held.push(held);
            let (read, trailers) = read?;
            live.parts().response_trailers = trailers;
            read
        }
    };
    live.parts().response_body = Some(body);
    Ok(())
}

/// Hands the response to the client's connection. Framing follows from the body alone, so that no header that a
/// plugin or an upstream set can contradict what is sent.
fn finish(mut live: Box<Live>, mut source: Source) -> Response<ResponseBody> {
    let (entered, is_head) = (live.entered, live.is_head);
    let (exchange, scope) = live.split();
    let chain = scope.chain();
    let keeps_head = chain.wants(HookName::OnLog);
    let filters = match source {
        Source::Switched(_) => Vec::new(),
        // Who only watches is shown what is not there, too.
        _ => chain.response_filters(exchange, entered, matches!(source, Source::Empty)),
    };
    let parts = exchange.core();
    let response = if keeps_head { parts.response.clone() } else { parts.response.take() };
    let (mut status, mut headers) = match response {
        Some(response) => response.into_parts(),
        None => (StatusCode::BAD_GATEWAY, HeaderMap::new()),
    };
    strip_hop_by_hop(&mut headers);
    match &source {
        // The length that a GET would have been answered with.
        Source::Empty if is_head && !chain.may_alter_responses() => {}
        Source::Whole(body) if is_head => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            source = Source::Empty;
        }
        _ => {
            headers.remove(CONTENT_LENGTH);
        }
    }
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(upgrade)) = (status, &live.upgrade) {
        status = upgrade.tell(&mut headers);
    } else if matches!(source, Source::Switched(_)) || !Reply::may_have_body(status, &Method::GET) {
        source = Source::Empty;
    }
    live.status = Some(status);
    let (status, headers, source) = as_told(&mut live, status, headers, source);
    if grpc::is_call(live.request()) {
        live.outcome = Code::of(&headers);
    }
    let mut response = Response::new(ResponseBody::new(source, filters, live));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The response as the client understands it: clients of gRPC look for a refusal in headers of their own. What was
/// decided is what is logged.
fn as_told(
    live: &mut Live,
    status: StatusCode,
    headers: HeaderMap,
    source: Source,
) -> (StatusCode, HeaderMap, Source) {
    // To an extended CONNECT, 200 would say that the tunnel is open.
    if !live.is_reply || live.upgrade.is_some() {
        return (status, headers, source);
    }
    let exchange = live.exchange();
    match grpc::refusal(exchange.request(), status, &headers, exchange.id()) {
        Some(headers) => (StatusCode::OK, headers, Source::Empty),
        None => (status, headers, source),
    }
}
