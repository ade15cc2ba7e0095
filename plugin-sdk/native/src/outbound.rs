//! HTTP calls that a plugin makes itself, to an upstream named in the configuration.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};

/// Bounds of one call.
#[derive(Debug, Clone, Copy)]
pub struct OutboundLimits {
    /// From the start to the whole response.
    pub timeout: Duration,
    /// Response body bytes at most.
    pub max_body: usize,
}

/// Why a call gave no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboundError {
    /// No connection could be made.
    Unreachable,
    /// It took longer than the limit.
    Timeout,
    /// The connection failed, or what came was not HTTP.
    Failed,
    /// The response body was larger than the limit.
    TooLarge,
    /// The request asks for a tunnel or an echo, which is never sent on, for clients neither.
    Method,
}

impl fmt::Display for OutboundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OutboundError::Unreachable => "no endpoint could be reached",
            OutboundError::Timeout => "no answer in time",
            OutboundError::Failed => "the connection failed",
            OutboundError::TooLarge => "the answer is larger than allowed",
            OutboundError::Method => "CONNECT and TRACE are not sent",
        })
    }
}

impl std::error::Error for OutboundError {}

/// What followed a response's body, as an extension of the response; absent if nothing did.
#[derive(Debug, Clone)]
pub struct Trailers(pub HeaderMap);

/// The wait for a response.
pub type OutboundFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Response<Bytes>, OutboundError>> + Send + 'a>>;

/// A way to one upstream. The request's URI needs only path and query; the host is the upstream's
/// unless a Host header says otherwise.
pub trait Outbound: Send + Sync {
    /// Sends `request` over the calling worker's connections.
    fn send(&self, request: Request<Bytes>, limits: OutboundLimits) -> OutboundFuture<'_>;
}
