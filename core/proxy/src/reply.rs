//! What the gateway itself answers: the one place for its status codes, reasons and problem documents.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use portcullis_plugin::path::PathError;
use portcullis_plugin::{Content, Reply, RequestId};

use crate::http1::Refusal;

/// On whose side a fault lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Upstream,
    Gateway,
}

/// Why the gateway itself refuses an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// HTTP/1 that was refused as it was read.
    Screened(Refusal),
    /// A path that can't be normalised.
    Path(PathError),
    /// A target that is neither origin-form nor absolute-form.
    Target,
    /// More headers than allowed.
    TooManyHeaders,
    /// Longer headers than allowed.
    HeadTooLarge,
    /// TRACE would show the client what the gateway adds; CONNECT would make it a tunnel.
    MethodUnsupported,
    /// No route wants it.
    NotFound,
    /// Only the method kept routes from wanting it; the value of `Allow`.
    MethodNotAllowed(HeaderValue),
    /// The route does not let its clients switch to this protocol.
    Upgrade,
    /// The request's body is longer than allowed.
    BodyTooLarge,
    /// All whole bodies together are at their limit.
    BodyBudget,
    /// The client failed within its request's body.
    ClientBody,
    /// The client stopped within its request's body.
    BodyTimeout,
    /// A rewrite gave no valid path.
    Rewrite,
    /// A plugin left a `Host` that names no host.
    PluginHost,
    /// A whole response body is longer than a plugin can take.
    ResponseTooLarge,
    /// Nobody has said yet where the upstream is.
    NoEndpoints,
    /// No connection to the upstream.
    Unreachable,
    /// No connection to the upstream in time.
    ConnectTimeout,
    /// TLS found fault with the upstream, or the upstream with ours.
    UpstreamTls,
    /// No response from the upstream in time.
    ResponseTimeout,
    /// The upstream did not end what it was asked for in the time for all of it.
    OutOfTime,
    /// The upstream's connection failed, or what came was not HTTP.
    UpstreamFailed,
    /// No response from the upstream in the time that the request gave.
    Deadline,
    /// The upstream speaks HTTP/2, and switches to no other protocol.
    NoUpgrade,
    /// The upstream did not agree to an upgrade, with a status that would tell so to the client.
    NotSwitched,
    /// The upstream has as many requests as it may have.
    Overloaded,
    /// The same for longer than a request may wait.
    PendingTimeout,
    /// The upstream fails, and gets no requests for so long.
    CircuitOpen(Duration),
    /// The gateway has as many requests as it may have.
    TooManyExchanges,
}

impl Fault {
    /// Whose fault it is, the status, and the stable reason.
    pub(crate) fn describe(&self) -> (Side, StatusCode, &'static str) {
        use Side::*;
        match self {
            Fault::Screened(refusal) => (
                Client,
                StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST),
                refusal.reason,
            ),
            Fault::Path(error) => (Client, StatusCode::BAD_REQUEST, error.reason()),
            Fault::Target => (Client, StatusCode::BAD_REQUEST, "http.target"),
            Fault::HeadTooLarge => {
                (Client, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http.head_too_large")
            }
            Fault::MethodUnsupported => (Client, StatusCode::NOT_IMPLEMENTED, "http.method_unsupported"),
            Fault::TooManyHeaders => {
                (Client, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http.too_many_headers")
            }
            Fault::NotFound => (Client, StatusCode::NOT_FOUND, "route.not_found"),
            Fault::MethodNotAllowed(_) => {
                (Client, StatusCode::METHOD_NOT_ALLOWED, "route.method_not_allowed")
            }
            Fault::Upgrade => (Client, StatusCode::FORBIDDEN, "route.upgrade"),
            Fault::BodyTooLarge => (Client, StatusCode::PAYLOAD_TOO_LARGE, "body.too_large"),
            Fault::BodyBudget => (Gateway, StatusCode::SERVICE_UNAVAILABLE, "body.budget"),
            Fault::ClientBody => (Client, StatusCode::BAD_REQUEST, "body.incomplete"),
            Fault::BodyTimeout => (Client, StatusCode::REQUEST_TIMEOUT, "body.timeout"),
            Fault::Rewrite => (Gateway, StatusCode::INTERNAL_SERVER_ERROR, "route.rewrite"),
            Fault::PluginHost => (Gateway, StatusCode::INTERNAL_SERVER_ERROR, "exchange.host"),
            Fault::ResponseTooLarge => (Upstream, StatusCode::BAD_GATEWAY, "upstream.body_too_large"),
            Fault::NoEndpoints => (Upstream, StatusCode::SERVICE_UNAVAILABLE, "upstream.no_endpoints"),
            Fault::Unreachable => (Upstream, StatusCode::BAD_GATEWAY, "upstream.unreachable"),
            Fault::ConnectTimeout => (Upstream, StatusCode::GATEWAY_TIMEOUT, "upstream.connect_timeout"),
            Fault::UpstreamTls => (Upstream, StatusCode::BAD_GATEWAY, "upstream.tls"),
            Fault::ResponseTimeout => (Upstream, StatusCode::GATEWAY_TIMEOUT, "upstream.response_timeout"),
            Fault::OutOfTime => (Upstream, StatusCode::GATEWAY_TIMEOUT, "upstream.timeout"),
            Fault::UpstreamFailed => (Upstream, StatusCode::BAD_GATEWAY, "upstream.failed"),
            Fault::Deadline => (Upstream, StatusCode::GATEWAY_TIMEOUT, "upstream.deadline"),
            Fault::NoUpgrade => (Upstream, StatusCode::BAD_GATEWAY, "upstream.no_upgrade"),
            Fault::NotSwitched => (Upstream, StatusCode::BAD_GATEWAY, "upstream.not_switched"),
            Fault::Overloaded => (Upstream, StatusCode::SERVICE_UNAVAILABLE, "upstream.overloaded"),
            Fault::PendingTimeout => (Upstream, StatusCode::SERVICE_UNAVAILABLE, "upstream.pending_timeout"),
            Fault::CircuitOpen(_) => (Upstream, StatusCode::SERVICE_UNAVAILABLE, "upstream.circuit_open"),
            Fault::TooManyExchanges => (Gateway, StatusCode::SERVICE_UNAVAILABLE, "gateway.overloaded"),
        }
    }

    /// Which part of the core decided, for the record.
    pub(crate) fn decider(&self) -> &'static str {
        let (side, _, reason) = self.describe();
        match reason.split_once('.') {
            Some(("http" | "path", _)) => "core.http",
            Some(("route", _)) => "core.routes",
            Some(("body", _)) => "core.body",
            _ if side == Side::Upstream => "core.upstream",
            _ => "core.exchange",
        }
    }

    /// The refusal to send.
    pub(crate) fn reply(&self) -> Reply {
        let (_, status, reason) = self.describe();
        let reply = Reply::deny(status, reason);
        match self {
            Fault::MethodNotAllowed(allow) => reply.header(ALLOW, allow.clone()),
            Fault::CircuitOpen(wait) => {
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                reply.header(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
            }
            Fault::BodyBudget
            | Fault::NoEndpoints
            | Fault::Overloaded
            | Fault::PendingTimeout
            | Fault::TooManyExchanges => reply.header(RETRY_AFTER, HeaderValue::from_static("1")),
            _ => reply,
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Fault::Screened(refusal)
    }
}

/// Status, headers and body of a reply. A problem document (RFC 9457) tells the client the status
/// and the request id, and nothing of why.
pub(crate) fn render(reply: Reply, id: &RequestId) -> (StatusCode, HeaderMap, Bytes) {
    let Reply { status, mut headers, content, .. } = reply;
    let body = match content {
        Content::Bytes(bytes) => bytes,
        Content::Problem => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
            headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
            problem(status, id)
        }
    };
    (status, headers, body)
}

fn problem(status: StatusCode, id: &RequestId) -> Bytes {
    let title = status.canonical_reason().unwrap_or("Refused");
    let code = status.as_u16();
    // An id taken over from a client is visible ASCII, in which two characters need escaping.
    let id = id.to_string().replace('\\', "\\\\").replace('"', "\\\"");
    Bytes::from(
        format!(r#"{{"type":"about:blank","title":"{title}","status":{code},"request_id":"{id}"}}"#) + "\n",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_document_is_json_whatever_the_id() {
        let id = RequestId::Text(r#"a"b\c"#.into());
        let (status, headers, body) = render(Fault::NotFound.reply(), &id);
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((status.as_u16(), json["status"].as_u64()), (404, Some(404)));
        assert_eq!(
            (json["request_id"].as_str(), json["title"].as_str()),
            (Some(r#"a"b\c"#), Some("Not Found"))
        );
        assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
        assert!(!String::from_utf8_lossy(&body).contains("route.not_found"));
    }

    #[test]
    fn every_fault_names_a_part_of_the_core() {
        assert_eq!(Fault::Unreachable.decider(), "core.upstream");
        assert_eq!(Fault::Target.decider(), "core.http");
        assert_eq!(Fault::ResponseTooLarge.decider(), "core.upstream");
    }
}
