//! Why bytes were refused: every verdict, in one table.

/// A refusal: the status to answer with, a stable reason code, and one line that contains nothing the client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The HTTP status of the answer.
    pub(crate) status: u16,
    /// The stable reason code, `http.<what>`.
    pub(crate) reason: &'static str,
    /// What is wrong, in fixed words.
    pub(crate) detail: &'static str,
}

impl Refusal {
    const fn bad(reason: &'static str, detail: &'static str) -> Refusal {
        Refusal { status: 400, reason, detail }
    }

    const fn with(status: u16, reason: &'static str, detail: &'static str) -> Refusal {
        Refusal { status, reason, detail }
    }
}

// Lines.
pub(super) const BARE_LF: Refusal = Refusal::bad("http.bare_lf", "a line ends in LF without CR");
pub(super) const BARE_CR: Refusal = Refusal::bad("http.bare_cr", "CR without LF");
pub(super) const BLANK_LINES: Refusal =
    Refusal::bad("http.blank_lines", "more than one blank line before the request");

// The request line.
pub(super) const REQUEST_LINE: Refusal =
    Refusal::bad("http.request_line", "the request line is not method, target and version");
pub(super) const METHOD: Refusal = Refusal::bad("http.method", "the method is not a token");
pub(crate) const TARGET: Refusal = Refusal::bad("http.target", "the request target is malformed");
pub(super) const TARGET_BYTES: Refusal =
    Refusal::bad("http.target_bytes", "the request target contains bytes that a URI does not allow");
pub(super) const FRAGMENT: Refusal = Refusal::bad("http.fragment", "the request target contains a fragment");
pub(super) const VERSION: Refusal =
    Refusal::with(505, "http.version", "only HTTP/1.0 and HTTP/1.1 are spoken in this form");
pub(super) const REQUEST_LINE_TOO_LONG: Refusal =
    Refusal::with(414, "http.request_line_too_long", "the request line is too long");

// The head as a whole.
pub(super) const HEAD_TOO_LARGE: Refusal =
    Refusal::with(431, "http.head_too_large", "the request head is too large");
pub(super) const TOO_MANY_HEADERS: Refusal =
    Refusal::with(431, "http.too_many_headers", "the request head has too many header fields");
pub(super) const HEADER_TIMEOUT: Refusal =
    Refusal::with(408, "http.header_timeout", "the request head did not arrive in time");
pub(crate) const MALFORMED: Refusal =
    Refusal::bad("http.malformed", "the request is what HTTP/2 calls malformed");

// Header fields.
pub(super) const OBS_FOLD: Refusal = Refusal::bad("http.obs_fold", "a header line begins with whitespace");
pub(super) const HEADER_NAME: Refusal = Refusal::bad("http.header_name", "a header name is not a token");
pub(super) const HEADER_NAME_TOO_LONG: Refusal =
    Refusal::with(431, "http.header_name_too_long", "a header name is too long");
pub(crate) const FRAMING_NAME: Refusal =
    Refusal::bad("http.framing_name", "a header is called like one of the framing but for an underscore");
pub(super) const HEADER_COLON: Refusal =
    Refusal::bad("http.header_colon", "a header name is followed by whitespace instead of a colon");
pub(crate) const HEADER_VALUE: Refusal =
    Refusal::bad("http.header_value", "a header value contains control bytes");
pub(crate) const HOST_MISSING: Refusal = Refusal::bad("http.host_missing", "the Host header is missing");
pub(crate) const HOST_REPEATED: Refusal = Refusal::bad("http.host_repeated", "more than one Host header");
pub(crate) const HOST_INVALID: Refusal =
    Refusal::bad("http.host_invalid", "the Host header is not a host name or address with an optional port");
pub(crate) const HOST_MISMATCH: Refusal =
    Refusal::bad("http.host_mismatch", "the Host header and the request target name different hosts");
pub(crate) const EXPECTATION: Refusal =
    Refusal::with(417, "http.expectation", "the only expectation that can be met is 100-continue");
pub(super) const UPGRADE_DATA: Refusal =
    Refusal::bad("http.upgrade_data", "data of another protocol before the upgrade to it");

// Framing.
pub(super) const LENGTH_AND_ENCODING: Refusal =
    Refusal::bad("http.length_and_encoding", "both Content-Length and Transfer-Encoding");
pub(crate) const LENGTH_REPEATED: Refusal =
    Refusal::bad("http.length_repeated", "more than one Content-Length");
pub(crate) const LENGTH_INVALID: Refusal =
    Refusal::bad("http.length_invalid", "Content-Length is not a plain decimal number in range");
pub(super) const ENCODING_INVALID: Refusal =
    Refusal::bad("http.encoding_invalid", "Transfer-Encoding is not exactly chunked");
pub(super) const ENCODING_UNKNOWN: Refusal =
    Refusal::with(501, "http.encoding_unknown", "the only transfer coding spoken is chunked");
pub(super) const ENCODING_VERSION: Refusal =
    Refusal::bad("http.encoding_version", "Transfer-Encoding in an HTTP/1.0 request");
pub(super) const CONNECT_BODY: Refusal = Refusal::bad("http.connect_body", "a CONNECT request has no body");

// Chunked bodies.
pub(super) const CHUNK_SIZE: Refusal =
    Refusal::bad("http.chunk_size", "a chunk size is not 1 to 16 hexadecimal digits alone");
pub(super) const CHUNK_EXTENSION: Refusal =
    Refusal::bad("http.chunk_extension", "a chunk extension is too long or contains control bytes");
pub(super) const CHUNK_END: Refusal = Refusal::bad("http.chunk_end", "chunk data is not followed by CRLF");
pub(super) const TRAILER_TOO_LARGE: Refusal =
    Refusal::with(431, "http.trailer_too_large", "the trailer section is too large");
pub(crate) const TRAILER_FORBIDDEN: Refusal =
    Refusal::bad("http.trailer_forbidden", "a trailer field that belongs in the head");
