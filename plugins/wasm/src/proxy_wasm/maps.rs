//! Maps of headers as guests see them: method, path, host, scheme and status are among them under names that
//! begin with a colon, and `host` is another name of `:authority`, as in Envoy.

use std::collections::HashSet;

use http::header::HOST;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use portcullis_plugin::Exchange;

use super::abi::{Map, Status, Way, header, write_pairs};
use super::calls::{Answer, Kind};
use super::host::Host;

const AUTHORITY: &[u8] = b":authority";
const METHOD: &[u8] = b":method";
const PATH: &[u8] = b":path";
const SCHEME: &[u8] = b":scheme";
const STATUS: &[u8] = b":status";

/// A name and its value.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// What is done to a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Add,
    Replace,
}

/// The number of headers in a map.
pub(super) fn count(exchange: &Exchange, way: Way) -> u32 {
    let count = match way {
        Way::Request => exchange.request().headers().len() + 3 + usize::from(!has_host(exchange)),
        Way::Response => exchange.response().map_or(0, |response| response.headers().len() + 1),
    };
    count as u32
}

fn has_host(exchange: &Exchange) -> bool {
    exchange.request().headers().contains_key(HOST)
}

/// A whole map; empty if there is none at this time.
pub(super) fn pairs(host: &mut Host, map: Map) -> Vec<u8> {
    present_pairs(host, map).unwrap_or_default()
}

fn present_pairs(host: &mut Host, map: Map) -> Result<Vec<u8>, Status> {
    let owned;
    let (pseudo, headers): (&[Pair<'_>], &HeaderMap) = match map {
        Map::RequestHeaders => {
            let exchange = host.exchange()?;
            let request = exchange.request();
            let authority = request.headers().get(HOST).map_or(&b""[..], |host| host.as_bytes());
            owned = [
                (AUTHORITY, authority),
                (PATH, request.target().as_str().as_bytes()),
                (METHOD, request.method().as_str().as_bytes()),
                (SCHEME, exchange.scheme().as_bytes()),
            ];
            (&owned, request.headers())
        }
        Map::ResponseHeaders => {
            let response = host.exchange()?.response().ok_or(Status::BadArgument)?;
            let status = response.status();
            return Ok(with_status(status.as_str(), response.headers()));
        }
        Map::CallHeaders => {
            let answer = host.answer.as_ref().ok_or(Status::BadArgument)?;
            if has_status(answer) {
                return Ok(with_status(&answer.status.to_string(), &answer.headers));
            }
            (&[], &answer.headers)
        }
        _ => (&[], other(host, map)?),
    };
    let plain = headers.iter().filter(|(name, _)| map != Map::RequestHeaders || **name != HOST);
    let plain = plain.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    Ok(write_pairs(pseudo.iter().copied().chain(plain)))
}

/// Metadata of gRPC has none among it.
fn has_status(answer: &Answer) -> bool {
    answer.kind == Kind::Http
}

fn with_status(status: &str, headers: &HeaderMap) -> Vec<u8> {
    let plain = headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    write_pairs(std::iter::once((STATUS, status.as_bytes())).chain(plain))
}

/// A value; several of one name are joined with commas, as they may be (RFC 9110, 5.3).
/// In a map that there is not at this time, nothing is found.
pub(super) fn value(host: &mut Host, map: Map, name: &[u8]) -> Result<Vec<u8>, Status> {
    present_value(host, map, name).map_err(|_| Status::NotFound)
}

fn present_value(host: &mut Host, map: Map, name: &[u8]) -> Result<Vec<u8>, Status> {
    let headers = match map {
        Map::RequestHeaders => {
            let exchange = host.exchange()?;
            let request = exchange.request();
            match name {
                PATH => return Ok(request.target().as_str().into()),
                METHOD => return Ok(request.method().as_str().into()),
                SCHEME => return Ok(exchange.scheme().into()),
                AUTHORITY => return joined(request.headers(), b"host"),
                _ => request.headers(),
            }
        }
        Map::ResponseHeaders => {
            let response = host.exchange()?.response().ok_or(Status::BadArgument)?;
            if name == STATUS {
                return Ok(response.status().as_str().into());
            }
            response.headers()
        }
        Map::CallHeaders => {
            let answer = host.answer.as_ref().ok_or(Status::BadArgument)?;
            if name == STATUS && has_status(answer) {
                return Ok(answer.status.to_string().into());
            }
            &answer.headers
        }
        _ => other(host, map)?,
    };
    joined(headers, name)
}

fn joined(headers: &HeaderMap, name: &[u8]) -> Result<Vec<u8>, Status> {
    let name = HeaderName::from_bytes(name).map_err(|_| Status::NotFound)?;
    let mut values = headers.get_all(name).into_iter().map(|value| value.as_bytes());
    let mut joined = values.next().ok_or(Status::NotFound)?.to_vec();
    for value in values {
        joined.push(b',');
        joined.extend_from_slice(value);
    }
    Ok(joined)
}

/// Trailers, which are there while they are being told.
fn other(host: &mut Host, map: Map) -> Result<&HeaderMap, Status> {
    match map {
        Map::CallTrailers => Ok(&host.answer.as_ref().ok_or(Status::BadArgument)?.trailers),
        Map::RequestTrailers => trailers(host, Way::Request).map(|trailers| &*trailers),
        Map::ResponseTrailers => trailers(host, Way::Response).map(|trailers| &*trailers),
        _ => Err(Status::BadArgument),
    }
}

fn trailers(host: &mut Host, way: Way) -> Result<&mut HeaderMap, Status> {
    match &mut host.trailers {
        Some((told, trailers)) if *told == way => Ok(trailers),
        _ => Err(Status::BadArgument),
    }
}

/// Sets or adds a header.
pub(super) fn set(
    host: &mut Host,
    map: Map,
    name: &[u8],
    value: &[u8],
    change: Change,
) -> Result<(), Status> {
    match map {
        Map::RequestHeaders if name.starts_with(b":") => set_pseudo(host.exchange()?, name, value),
        Map::RequestHeaders => {
            let (name, value) = header(name, value)?;
            let mut headers = host.exchange()?.request_mut().headers;
            // There is one host, however often a guest adds one.
            match change {
                Change::Add if name != HOST => headers.append(name, value),
                _ => headers.set(name, value),
            }
            Ok(())
        }
        Map::ResponseHeaders => {
            let mut response = host.exchange()?.response_mut().ok_or(Status::BadArgument)?;
            if name == STATUS {
                response.set_status(status(value)?);
                return Ok(());
            }
            let (name, value) = header(name, value)?;
            match change {
                Change::Add => response.headers.append(name, value),
                Change::Replace => response.headers.set(name, value),
            }
            Ok(())
        }
        Map::RequestTrailers | Map::ResponseTrailers => {
            let way = if map == Map::RequestTrailers { Way::Request } else { Way::Response };
            let (name, value) = header(name, value)?;
            let trailers = trailers(host, way)?;
            if trailers.len() >= MAX_TRAILERS {
                return Err(Status::InternalFailure);
            }
            match change {
                Change::Add => drop(trailers.append(name, value)),
                Change::Replace => drop(trailers.insert(name, value)),
            }
            Ok(())
        }
        Map::CallHeaders | Map::CallTrailers => Err(Status::BadArgument),
    }
}

/// Fields that a guest may have in a trailer section.
const MAX_TRAILERS: usize = 64;

fn set_pseudo(exchange: &mut Exchange, name: &[u8], value: &[u8]) -> Result<(), Status> {
    let mut request = exchange.request_mut();
    let changed = match name {
        METHOD => request.set_method(Method::from_bytes(value).map_err(|_| Status::BadArgument)?),
        PATH => {
            let target = str::from_utf8(value).map_err(|_| Status::BadArgument)?;
            let (path, query) =
                target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
            request.set_path(path).and_then(|()| request.set_query(query))
        }
        AUTHORITY => {
            let (name, value) = header(b"host", value)?;
            request.headers.set(name, value);
            Ok(())
        }
        // That of the client's connection, whatever a guest says.
        SCHEME => Ok(()),
        _ => Err(""),
    };
    changed.map_err(|_| Status::BadArgument)
}

/// A final status.
pub(super) fn status(value: &[u8]) -> Result<StatusCode, Status> {
    let status = StatusCode::from_bytes(value).ok().filter(|status| (200..600).contains(&status.as_u16()));
    status.ok_or(Status::BadArgument)
}

/// Removes a header.
pub(super) fn remove(host: &mut Host, map: Map, name: &[u8]) -> Result<(), Status> {
    let Ok(name) = HeaderName::from_bytes(name) else {
        // No map has it; what begins with a colon is always there.
        return if name.starts_with(b":") { Err(Status::BadArgument) } else { Ok(()) };
    };
    match map {
        Map::RequestHeaders if name == HOST => return Err(Status::BadArgument),
        Map::RequestHeaders => host.exchange()?.request_mut().headers.remove(&name),
        Map::ResponseHeaders => {
            host.exchange()?.response_mut().ok_or(Status::BadArgument)?.headers.remove(&name);
        }
        Map::RequestTrailers => drop(trailers(host, Way::Request)?.remove(name)),
        Map::ResponseTrailers => drop(trailers(host, Way::Response)?.remove(name)),
        Map::CallHeaders | Map::CallTrailers => return Err(Status::BadArgument),
    }
    Ok(())
}

/// Sets all of a map: what is not among `pairs` goes.
pub(super) fn replace(host: &mut Host, map: Map, pairs: &[Pair<'_>]) -> Result<(), Status> {
    let names = match map {
        Map::RequestHeaders => names(host.exchange()?.request().headers()),
        Map::ResponseHeaders => names(host.exchange()?.response().ok_or(Status::BadArgument)?.headers()),
        Map::CallHeaders | Map::CallTrailers => return Err(Status::BadArgument),
        _ => names(other(host, map)?),
    };
    for name in names {
        if map != Map::RequestHeaders || name != HOST {
            remove(host, map, name.as_str().as_bytes())?;
        }
    }
    let mut seen = HashSet::new();
    for (name, value) in pairs {
        let change = if seen.insert(*name) { Change::Replace } else { Change::Add };
        set(host, map, name, value, change)?;
    }
    Ok(())
}

fn names(headers: &HeaderMap) -> Vec<HeaderName> {
    headers.keys().cloned().collect()
}
