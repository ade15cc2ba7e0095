//! Properties, by Envoy's names and in Envoy's encoding: text as it is, numbers and times (nanoseconds) as eight bytes,
//! booleans as one, maps as everywhere. What a guest has set itself goes first.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName, Version};
use portcullis_plugin::{Attempt, Exchange, Request};

use super::abi::{Status, write_pairs};
use super::host::Host;

/// `INBOUND`, among Envoy's directions of traffic.
const INBOUND: i64 = 1;

/// The value at a path, whose parts end with a zero.
pub(super) fn get(host: &mut Host, path: &[u8]) -> Result<Vec<u8>, Status> {
    if let Some(own) = host.context().ok().and_then(|context| context.properties.get(path)) {
        return Ok(own.to_vec());
    }
    let text = str::from_utf8(path).map_err(|_| Status::NotFound)?;
    let parts: Vec<_> = text.trim_end_matches('\0').split('\0').collect();
    let about = &host.about;
    let value = match *parts.as_slice() {
        ["plugin_name"] => Some(about.name.as_bytes().into()),
        ["plugin_root_id"] => Some(about.root_id.as_bytes().into()),
        ["plugin_vm_id"] => Some(about.vm_id.as_bytes().into()),
        ["listener_direction"] => Some(number(INBOUND)),
        ["request", "time"] => {
            let begun = host.context()?.begun;
            (begun > 0).then(|| number(begun as i64))
        }
        _ => of_exchange(host.exchange().map_err(|_| Status::NotFound)?, &parts),
    };
    value.ok_or(Status::NotFound)
}

fn of_exchange(exchange: &Exchange, path: &[&str]) -> Option<Vec<u8>> {
    let connection = exchange.connection();
    let tls = connection.tls.as_ref();
    let attempt = exchange.attempt();
    let address = |address: SocketAddr| Some(address.to_string().into_bytes());
    match path {
        ["request", name @ ..] => of_request(exchange, name),
        ["response", name @ ..] => of_response(exchange, name),
        ["source", "address"] => address(SocketAddr::new(exchange.client(), connection.peer.port())),
        ["source", "port"] => Some(number(connection.peer.port().into())),
        ["destination", "address"] => address(connection.local),
        ["destination", "port"] => Some(number(connection.local.port().into())),
        ["connection", "id"] => {
            let mut hasher = DefaultHasher::new();
            (connection.peer, connection.local).hash(&mut hasher);
            Some(hasher.finish().to_le_bytes().into())
        }
        ["connection", "mtls"] => Some(vec![tls.is_some_and(|tls| !tls.client_chain.is_empty()).into()]),
        ["connection", "tls_version"] => tls.map(|tls| tls.version.into()),
        ["connection", "requested_server_name"] => Some(tls?.server_name.as_ref()?.as_bytes().into()),
        ["upstream", "address"] => attempt.map(|attempt| attempt.endpoint.as_bytes().into()),
        ["upstream", "port"] => attempt.and_then(port).map(number),
        ["cluster_name"] => attempt.map(|attempt| attempt.upstream.as_bytes().into()),
        ["route_name"] => exchange.route().map(Into::into),
        _ => None,
    }
}

fn of_request(exchange: &Exchange, name: &[&str]) -> Option<Vec<u8>> {
    let request = exchange.request();
    let header = |name: HeaderName| value(request.headers(), &name);
    let size = || {
        let held = exchange.request_body().map(|body| body.len() as u64);
        let read = exchange.outcome().map(|outcome| outcome.request_bytes);
        held.or(read).or_else(|| said(request.headers())).unwrap_or(0)
    };
    match name {
        ["path"] => Some(request.target().as_str().into()),
        ["url_path"] => Some(request.path().into()),
        ["query"] => Some(request.query().unwrap_or_default().into()),
        ["host"] => header(HOST),
        ["scheme"] => Some(exchange.scheme().into()),
        ["method"] => Some(request.method().as_str().into()),
        ["referer"] => header(REFERER),
        ["useragent"] => header(USER_AGENT),
        ["id"] => Some(exchange.id().to_string().into()),
        ["protocol"] => Some(protocol(request).into()),
        ["headers"] => Some(map(request.headers())),
        ["headers", name] => header(HeaderName::try_from(*name).ok()?),
        ["duration"] => exchange.outcome().map(|outcome| time(outcome.duration)),
        ["size"] => Some(number(size() as i64)),
        ["total_size"] => Some(number((size() + bytes(request.headers())) as i64)),
        _ => None,
    }
}

fn of_response(exchange: &Exchange, name: &[&str]) -> Option<Vec<u8>> {
    let response = exchange.response()?;
    let size = || {
        let held = exchange.response_body().map(|body| body.len() as u64);
        let sent = exchange.outcome().map(|outcome| outcome.response_bytes);
        held.or(sent).or_else(|| said(response.headers())).unwrap_or(0)
    };
    match name {
        ["code"] => Some(number(response.status().as_u16().into())),
        ["code_details"] => Some(match exchange.decider().and_then(|decider| decider.reason.as_ref()) {
            Some(reason) => reason.as_bytes().into(),
            None => "via_upstream".into(),
        }),
        ["grpc_status"] => {
            let status = value(response.headers(), &HeaderName::from_static("grpc-status"))?;
            Some(number(str::from_utf8(&status).ok()?.parse().ok()?))
        }
        ["headers"] => Some(map(response.headers())),
        ["headers", name] => value(response.headers(), &HeaderName::try_from(*name).ok()?),
        ["size"] => Some(number(size() as i64)),
        ["total_size"] => Some(number((size() + bytes(response.headers())) as i64)),
        _ => None,
    }
}

fn number(number: i64) -> Vec<u8> {
    number.to_le_bytes().into()
}

fn time(time: Duration) -> Vec<u8> {
    number(time.as_nanos() as i64)
}

fn value(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    headers.get(name).map(|value| value.as_bytes().into())
}

fn map(headers: &HeaderMap) -> Vec<u8> {
    write_pairs(headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
}

fn bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64).sum()
}

/// The length of a body as its message says it.
fn said(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn port(attempt: &Attempt) -> Option<i64> {
    attempt.endpoint.rsplit_once(':')?.1.parse().ok()
}

fn protocol(request: &Request) -> &'static str {
    match request.version() {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}
