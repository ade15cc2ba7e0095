//! Calls that guests make to upstreams: what is sent, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use portcullis_plugin::{Outbound, OutboundError, OutboundLimits, Trailers};

use super::abi::{Status, headers};

/// The longest that a call may take; also what no time at all means.
const MAX_TIME: Duration = Duration::from_secs(60);

/// gRPC's `UNAVAILABLE` and `DEADLINE_EXCEEDED`, for calls without an answer.
const UNAVAILABLE: u32 = 14;
const DEADLINE_EXCEEDED: u32 = 4;
const UNKNOWN: u32 = 2;

/// A call on its way out.
pub(super) struct Outgoing {
    pub(super) call: u32,
    pub(super) kind: Kind,
    pub(super) upstream: Arc<dyn Outbound>,
    pub(super) request: Request<Bytes>,
    pub(super) limits: OutboundLimits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    /// One message, one answer.
    Grpc,
    /// Any number of either.
    GrpcStream,
}

/// What came of a call.
pub(super) struct Answer {
    pub(super) kind: Kind,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: HeaderMap,
    /// HTTP's, or gRPC's.
    pub(super) status: u32,
    pub(super) message: String,
}

impl Answer {
    pub(super) fn of(kind: Kind, result: Result<Response<Bytes>, OutboundError>) -> Self {
        let response = match result {
            Ok(response) => response,
            Err(error) => return Answer::failed(kind, error),
        };
        let (mut head, body) = response.into_parts();
        let trailers = head.extensions.remove::<Trailers>().map(|Trailers(trailers)| trailers);
        let trailers = trailers.unwrap_or_default();
        let (status, message) = match kind {
            Kind::Http => (head.status.as_u16().into(), String::new()),
            Kind::Grpc | Kind::GrpcStream => grpc_status(&head.headers, &trailers),
        };
        // Headers have their status among them, as everywhere in this ABI; see `maps.rs`.
        Answer { kind, headers: head.headers, body, trailers, status, message }
    }

    /// Of an HTTP call what Envoy makes up: filters take an answer without headers for a fault of their own.
    fn failed(kind: Kind, error: OutboundError) -> Self {
        let is_late = error == OutboundError::Timeout;
        let (status, body) = match (kind, is_late) {
            (Kind::Http, true) => (504, "upstream request timeout"),
            (Kind::Http, false) => (503, "upstream connect error"),
            (_, true) => (DEADLINE_EXCEEDED, ""),
            _ => (UNAVAILABLE, ""),
        };
        let (mut headers, trailers) = (HeaderMap::new(), HeaderMap::new());
        if kind == Kind::Http {
            headers.insert(CONTENT_LENGTH, body.len().into());
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        Answer {
            kind,
            headers,
            body: Bytes::from_static(body.as_bytes()),
            trailers,
            status,
            message: error.to_string(),
        }
    }

    /// The messages of a gRPC answer; none if it is none.
    pub(super) fn messages(&mut self) -> Option<Vec<Bytes>> {
        let mut messages = Vec::new();
        while !self.body.is_empty() {
            let head: [u8; 5] = self.body.get(..5)?.try_into().ok()?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            // The first byte says whether it is compressed, which nobody has offered to understand.
            if head[0] != 0 || self.body.len() - 5 < length {
                return None;
            }
            let mut message = self.body.split_to(5 + length);
            messages.push(message.split_off(5));
        }
        Some(messages)
    }
}

fn grpc_status(headers: &HeaderMap, trailers: &HeaderMap) -> (u32, String) {
    let field = |name| trailers.get(name).or_else(|| headers.get(name)).and_then(|value| value.to_str().ok());
    let status = field("grpc-status").and_then(|status| status.parse().ok()).unwrap_or(UNKNOWN);
    (status, field("grpc-message").unwrap_or_default().to_owned())
}

/// The limits of a call, of a time in milliseconds.
pub(super) fn limits(millis: u32, max_body: usize) -> OutboundLimits {
    let time = Duration::from_millis(millis.into());
    let timeout = if time.is_zero() { MAX_TIME } else { time.min(MAX_TIME) };
    OutboundLimits { timeout, max_body }
}

/// The request of an HTTP call, from its pairs.
pub(super) fn http_request(pairs: &[(&[u8], &[u8])], body: &[u8]) -> Result<Request<Bytes>, Status> {
    let pseudo = |wanted: &[u8]| {
        let found = pairs.iter().find(|(name, _)| *name == wanted).ok_or(Status::BadArgument)?;
        Ok::<_, Status>(found.1)
    };
    let mut request = Request::new(Bytes::copy_from_slice(body));
    *request.method_mut() = Method::from_bytes(pseudo(b":method")?).map_err(|_| Status::BadArgument)?;
    *request.uri_mut() = path(pseudo(b":path")?)?;
    let host = HeaderValue::from_bytes(pseudo(b":authority")?).map_err(|_| Status::BadArgument)?;
    *request.headers_mut() = headers(pairs)?;
    request.headers_mut().insert(HOST, host);
    Ok(request)
}

fn path(path: &[u8]) -> Result<http::Uri, Status> {
    let path = path.starts_with(b"/").then_some(path).ok_or(Status::BadArgument)?;
    http::Uri::try_from(path).map_err(|_| Status::BadArgument)
}

/// The request of a gRPC call, without a message yet.
pub(super) fn grpc_request(
    service: &[u8],
    method: &[u8],
    metadata: &[(&[u8], &[u8])],
) -> Result<Request<Bytes>, Status> {
    let mut request = Request::new(Bytes::new());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path(&[b"/", service, b"/", method].concat())?;
    *request.headers_mut() = headers(metadata)?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request
        .headers_mut()
        .insert(HeaderName::from_static("grpc-accept-encoding"), HeaderValue::from_static("identity"));
    Ok(request)
}

/// Adds a message to the body of a gRPC call.
pub(super) fn add_message(request: &mut Request<Bytes>, message: &[u8]) {
    let before = std::mem::take(request.body_mut());
    let mut body = BytesMut::with_capacity(before.len() + 5 + message.len());
    body.put(before);
    body.put_u8(0);
    body.put_u32(message.len() as u32);
    body.put_slice(message);
    *request.body_mut() = body.freeze();
}

/// The name of the cluster that a gRPC call is for: the text itself, or in a message `GrpcService` of Envoy's
/// with `envoy_grpc { cluster_name }`, each field 1 with a length, which is what SDKs for C++ write.
pub(super) fn cluster(service: &[u8]) -> &[u8] {
    fn field(message: &[u8]) -> Option<&[u8]> {
        let [0x0a, length, rest @ ..] = message else { return None };
        // One byte of a length is enough for every name.
        (*length < 0x80).then(|| rest.get(..usize::from(*length)))?
    }
    field(service).and_then(field).unwrap_or(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &'static [u8]) -> Answer {
        Answer::of(Kind::Grpc, Ok(Response::new(Bytes::from_static(body))))
    }

    #[test]
    fn messages_of_grpc_are_read_as_they_are_written() {
        let mut request = grpc_request(b"a.B", b"C", &[(b"x-a", b"1")]).unwrap();
        add_message(&mut request, b"one");
        add_message(&mut request, b"");
        assert_eq!((request.uri().path(), request.headers()["x-a"].as_bytes()), ("/a.B/C", &b"1"[..]));
        assert_eq!(request.body(), &b"\0\0\0\0\x03one\0\0\0\0\0"[..]);
        assert_eq!(answer(b"\0\0\0\0\x03one\0\0\0\0\0").messages().unwrap(), ["one", ""]);
    }

    #[test]
    fn lies_in_messages_of_grpc_are_no_messages() {
        for wrong in [&b"\0\0\0\0\x04one"[..], b"\x01\0\0\0\x03one", b"\0\0\0", b"\0\xff\xff\xff\xffone"] {
            assert!(answer(wrong).messages().is_none(), "{wrong:?}");
        }
        assert_eq!((answer(b"").status, answer(b"").message.as_str()), (UNKNOWN, ""));
    }

    #[test]
    fn a_cluster_is_named_or_wrapped() {
        assert_eq!(cluster(b"auth"), b"auth");
        assert_eq!(cluster(b"\x0a\x06\x0a\x04auth"), b"auth");
        assert_eq!(cluster(b"\x0a\x06\x0a\x7fauth"), b"\x0a\x06\x0a\x7fauth");
    }

    #[test]
    fn a_call_has_a_method_a_path_and_a_host_and_ends_in_time() {
        let all: [(&[u8], &[u8]); 4] =
            [(b":method", b"PUT"), (b":path", b"/a?b"), (b":authority", b"h"), (b"x", b"1")];
        let request = http_request(&all, b"body").unwrap();
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::PUT, "/a?b"));
        assert_eq!(
            (&request.headers()[HOST], &request.headers()["x"], request.headers().len()),
            (&HeaderValue::from_static("h"), &HeaderValue::from_static("1"), 2)
        );
        for missing in 0..3 {
            let mut pairs = all.to_vec();
            pairs.remove(missing);
            assert_eq!(http_request(&pairs, b"").unwrap_err(), Status::BadArgument);
        }
        let time = |millis| limits(millis, 0).timeout;
        assert_eq!((time(0), time(10), time(u32::MAX)), (MAX_TIME, Duration::from_millis(10), MAX_TIME));
    }
}
