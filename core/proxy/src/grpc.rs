//! What gRPC asks of a gateway: refusals that its clients understand, and their time limits.
//!
//! gRPC is HTTP/2 that tells the outcome of a call in trailers, whatever the status code
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).

use std::fmt::Write;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use portcullis_plugin::{Request, RequestId};

use crate::upstream::deadline;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What every media type of gRPC begins with.
const MEDIA_TYPE: &[u8] = b"application/grpc";
/// Its milliseconds have as many.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The media type of a request that is gRPC's.
fn media_type(request: &Request) -> Option<&HeaderValue> {
    let value = request.headers().get(CONTENT_TYPE)?;
    let (begin, rest) = value.as_bytes().split_at_checked(MEDIA_TYPE.len())?;
    let is_grpc = begin.eq_ignore_ascii_case(MEDIA_TYPE) && matches!(rest, [] | [b'+' | b';' | b' ', ..]);
    is_grpc.then_some(value)
}

/// The codes by which calls end, by number (<https://github.com/grpc/grpc/blob/master/doc/statuscodes.md>).
pub(crate) const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code(u8);

impl Code {
    pub(crate) const UNKNOWN: Code = Code(2);

    /// What headers or trailers say; what is no code is `UNKNOWN`.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let said = headers.get(GRPC_STATUS)?.to_str().ok();
        let code = said.and_then(|said| said.parse().ok()).map(Code);
        Some(code.filter(|code| code.index() < CODES.len()).unwrap_or(Code::UNKNOWN))
    }

    pub(crate) fn index(self) -> usize {
        self.0.into()
    }

    pub(crate) fn name(self) -> &'static str {
        CODES.get(self.index()).copied().unwrap_or("UNKNOWN")
    }
}

/// A call, as far as it matters for what its outcome tells of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// The client has set a time, which may be too short.
    is_limited: bool,
}

impl Call {
    pub(crate) fn of(request: &Request) -> Option<Self> {
        is_call(request).then(|| Call { is_limited: request.headers().contains_key(GRPC_TIMEOUT) })
    }

    /// The status by which a server is judged, after Envoy's mapping; for what is the client's own doing any that is no
    /// server error.
    pub(crate) fn status(self, code: Code) -> StatusCode {
        match code.0 {
            0 => StatusCode::OK,
            4 if !self.is_limited => StatusCode::GATEWAY_TIMEOUT,
            2 | 13 | 15 => StatusCode::INTERNAL_SERVER_ERROR,
            14 => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Whether a request is a call, in which messages may come as they please.
pub(crate) fn is_call(request: &Request) -> bool {
    let can_call = request.version() == Version::HTTP_2 && *request.method() == Method::POST;
    can_call && media_type(request).is_some()
}

/// What a client of gRPC gets for a refusal with this status: a response of a head alone, which says all of it.
/// None if the client speaks no gRPC, or whoever refused did so.
pub(crate) fn refusal(
    request: &Request,
    status: StatusCode,
    headers: &HeaderMap,
    id: &RequestId,
) -> Option<HeaderMap> {
    let media_type = media_type(request)?;
    if !is_call(request) || status.is_success() || headers.contains_key(GRPC_STATUS) {
        return None;
    }
    let mut headers = headers.clone();
    headers.insert(CONTENT_TYPE, media_type.clone());
    headers.insert(GRPC_STATUS, HeaderValue::from(code(status)));
    let title = status.canonical_reason().unwrap_or("Refused");
    if let Ok(message) = HeaderValue::try_from(encoded(&format!("{title}, request {id}"))) {
        headers.insert(GRPC_MESSAGE, message);
    }
    Some(headers)
}

/// What follows a call's response whose rest does not come, for what has this status: a reset would not say why.
pub(crate) fn cut_off(request: &Request, status: StatusCode) -> Option<HeaderMap> {
    is_call(request).then(|| HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from(code(status)))]))
}

/// gRPC's code for a status: what its clients would make of it themselves
/// (<https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>), and where that is vague, the
/// code that stands for the status in google.rpc.Code.
fn code(status: StatusCode) -> u16 {
    match status.as_u16() {
        // CANCELLED
        499 => 1,
        // DEADLINE_EXCEEDED
        408 | 504 => 4,
        // PERMISSION_DENIED
        403 => 7,
        // RESOURCE_EXHAUSTED
        413 | 429 | 431 => 8,
        // UNIMPLEMENTED
        404 | 405 | 415 | 501 => 12,
        // INTERNAL
        400 | 500 => 13,
        // UNAVAILABLE
        502 | 503 => 14,
        // UNAUTHENTICATED
        401 | 407 => 16,
        // UNKNOWN
        _ => 2,
    }
}

/// A message as it may stand in a header: percent-encoded, but for visible characters and the space.
fn encoded(message: &str) -> String {
    message.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'%' => text.push_str("%25"),
            b' '..=b'~' => text.push(char::from(byte)),
            // Writing to memory does not fail.
            _ => drop(write!(text, "%{byte:02X}")),
        }
        text
    })
}

/// How long a client of gRPC waits for the end of its call, if it says so. A day and more is no bound.
pub(crate) fn time_limit(request: &Request) -> Option<Duration> {
    if request.version() != Version::HTTP_2 {
        return None;
    }
    let limit = deadline::read(&GRPC_TIMEOUT, request.headers().get(GRPC_TIMEOUT)?)?;
    (is_call(request) && limit < DAY).then_some(limit)
}

/// What the endpoint is told of the time that is left.
pub(crate) fn told(left: Duration) -> (HeaderName, HeaderValue) {
    (GRPC_TIMEOUT, deadline::tell(&GRPC_TIMEOUT, left))
}

#[cfg(test)]
mod tests {
    use http::uri::PathAndQuery;

    use super::*;

    fn request(headers: &[(&'static str, &'static str)]) -> Request {
        let headers = headers
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        Request::new(Method::POST, PathAndQuery::from_static("/a.B/C"), Version::HTTP_2, headers)
    }

    #[test]
    fn a_refusal_is_told_to_clients_of_grpc_alone() {
        let id = RequestId::Text("7%é".into());
        let refused = |media_type| {
            refusal(&request(&[("content-type", media_type)]), StatusCode::FORBIDDEN, &HeaderMap::new(), &id)
        };
        let headers = refused("application/grpc+proto").unwrap();
        assert_eq!(headers["grpc-status"], "7");
        assert_eq!(headers["content-type"], "application/grpc+proto");
        assert_eq!(headers["grpc-message"], "Forbidden, request 7%25%C3%A9");
        assert!(refused("application/json").is_none() && refused("application/grpcs").is_none());
        let mut own = HeaderMap::new();
        own.insert("grpc-status", HeaderValue::from_static("9"));
        let grpc = request(&[("content-type", "application/grpc")]);
        assert!(refusal(&grpc, StatusCode::FORBIDDEN, &own, &id).is_none());
        assert!(refusal(&grpc, StatusCode::OK, &HeaderMap::new(), &id).is_none());
    }

    #[test]
    fn an_outcome_is_a_code_and_some_are_the_servers_fault() {
        let code = |said: &str| {
            let headers = [(GRPC_STATUS, HeaderValue::from_str(said).unwrap())];
            Code::of(&HeaderMap::from_iter(headers)).unwrap()
        };
        assert_eq!(Code::of(&HeaderMap::new()), None);
        assert_eq!((code("0").name(), code("16").name()), ("OK", "UNAUTHENTICATED"));
        for wrong in ["17", "-1", "", "256", "OK", "0 0"] {
            assert_eq!(code(wrong), Code::UNKNOWN, "{wrong}");
        }
        let faults = |is_limited| {
            let call = Call { is_limited };
            let faults = (0..17).filter(|code| call.status(Code(*code)).is_server_error());
            faults.collect::<Vec<_>>()
        };
        assert_eq!((faults(false), faults(true)), (vec![2, 4, 13, 14, 15], vec![2, 13, 14, 15]));
    }

    #[test]
    fn a_time_limit_is_read_of_calls_and_told() {
        let limit =
            |value| time_limit(&request(&[("content-type", "application/grpc"), ("grpc-timeout", value)]));
        assert_eq!(limit("250m"), Some(Duration::from_millis(250)));
        assert_eq!(limit("2M"), Some(Duration::from_secs(120)));
        let mut connect = request(&[("content-type", "application/grpc"), ("grpc-timeout", "1S")]);
        assert!(is_call(&connect));
        let (_, target, version, headers) = connect.into_parts();
        connect = Request::new(Method::CONNECT, target, version, headers);
        assert!(!is_call(&connect) && time_limit(&connect).is_none());
        for wrong in ["24H", "99999999H", "", "m", "1", "1s", "-1S", "123456789S", "1 S"] {
            assert_eq!(limit(wrong), None, "{wrong}");
        }
        assert_eq!(told(Duration::from_micros(1_500)).1, "1m");
    }
}
