//! Replies that a plugin makes itself.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::{Method, StatusCode};

/// A short stable code that says why, e.g. `jwt.expired`: lower case, `<plugin>.<what>`.
pub type Reason = Cow<'static, str>;

/// What a reply carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A problem document (RFC 9457) that the gateway writes from the status, with the request id
    /// and nothing else, so that a refusal gives nothing away.
    Problem,
    /// Exactly these bytes, possibly none.
    Bytes(Bytes),
}

/// An answer made by a plugin instead of the upstream.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status of the answer.
    pub status: StatusCode,
    /// Why, for refusals; a reply that refuses nothing has none.
    pub reason: Option<Reason>,
    /// Headers; framing headers (Content-Length, Transfer-Encoding, Connection) are the gateway's.
    pub headers: HeaderMap,
    /// The body.
    pub content: Content,
}

impl Reply {
    /// A refusal: a problem document with this status, recorded under `reason`.
    pub fn deny(status: StatusCode, reason: impl Into<Reason>) -> Self {
        Reply { status, reason: Some(reason.into()), headers: HeaderMap::new(), content: Content::Problem }
    }

    /// A reply that is no refusal, e.g. a CORS preflight's.
    pub fn new(status: StatusCode) -> Self {
        Reply { status, reason: None, headers: HeaderMap::new(), content: Content::Bytes(Bytes::new()) }
    }

    /// A redirect to `location`: 303 or whatever `status` says.
    pub fn redirect(status: StatusCode, location: HeaderValue) -> Self {
        Reply::new(status).header(LOCATION, location)
    }

    /// The same with one header set.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The same with a body and its media type.
    #[must_use]
    pub fn body(mut self, media_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        self.content = Content::Bytes(body.into());
        self
    }

    /// Whether a body may follow at all (RFC 9110, 6.4.1).
    pub fn may_have_body(status: StatusCode, request_method: &Method) -> bool {
        !(status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || request_method == Method::HEAD)
    }
}
