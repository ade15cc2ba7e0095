//! The head of a request as the gateway understands it, whatever the HTTP version.
//!
//! HTTP/1 bytes have been judged as they were read; what HTTP/2 can bring that
//! an HTTP/1 upstream would read otherwise is judged here, for both alike.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Version};
use portcullis_plugin::Request;
use portcullis_plugin::path::{is_query, normalise};

use crate::generation::ListenerLimits;
use crate::hops::strip_hop_by_hop;
use crate::http1::{
    FRAMING_NAME, HEADER_VALUE, HOST_INVALID, HOST_MISMATCH, HOST_MISSING, HOST_REPEATED, LENGTH_INVALID,
    LENGTH_REPEATED, Refusal, TARGET, decimal, expect, is_like_framing, same_authority, split_authority,
};
use crate::reply::Fault;
use crate::tunnel::Upgrade;

/// What HTTP/2 counts per header beside name and value (RFC 9113, 6.5.2).
const HEADER_OVERHEAD: usize = 32;

/// A head as it was read.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) version: Version,
    pub(crate) target: Option<PathAndQuery>,
    pub(crate) authority: Option<Authority>,
    pub(crate) scheme: Option<Scheme>,
    pub(crate) headers: HeaderMap,
    /// What the client wants to speak from here on.
    pub(crate) upgrade: Option<Box<Upgrade>>,
}

impl From<http::request::Parts> for Head {
    fn from(mut parts: http::request::Parts) -> Self {
        let upgrade = Upgrade::over_http2(&mut parts);
        let http::request::Parts { method, uri, version, headers, .. } = parts;
        let uri = uri.into_parts();
        Head {
            method,
            version,
            target: uri.path_and_query,
            authority: uri.authority,
            scheme: uri.scheme,
            headers,
            upgrade,
        }
    }
}

/// Turns a head as it was read into ours: no hop-by-hop headers, a normalised path, one lower-case `Host`.
/// What is wrong with it is the second value; the head is complete enough for logs then, no more.
pub(crate) fn understand(head: Head, limits: &ListenerLimits) -> (Request, Option<Fault>) {
    let Head { method, version, target, authority, scheme, mut headers, .. } = head;
    let mut fault = oversized(&headers, version, limits);
    if matches!(method, Method::TRACE | Method::CONNECT) {
        fault = fault.or(Some(Fault::MethodUnsupported));
    }
    if version >= Version::HTTP_2 {
        fault = fault.or_else(|| unsound(target.as_ref(), &headers).err().map(Fault::from));
    }
    // Before any plugin writes a header that the client could have named as one of its connection's.
    strip_hop_by_hop(&mut headers);
    let target = target.ok_or(Fault::Target);
    let target = target.and_then(|target| normalised(target, &method)).unwrap_or_else(|error| {
        fault.get_or_insert(error);
        PathAndQuery::from_static("/")
    });
    let scheme = scheme.as_ref().map(Scheme::as_str);
    if let Err(refusal) = settle_host(&mut headers, authority.as_ref(), scheme, version) {
        fault.get_or_insert(refusal.into());
    }
    join_cookies(&mut headers);
    (Request::new(method, target, version, headers), fault)
}

/// A head that could not be read: nothing of what it said is known.
pub(crate) fn unreadable(version: Version) -> Request {
    // A token that no method has.
    let method = Method::from_bytes(b"-").unwrap_or_default();
    Request::new(method, PathAndQuery::from_static("/"), version, HeaderMap::new())
}

fn oversized(headers: &HeaderMap, version: Version, limits: &ListenerLimits) -> Option<Fault> {
    if headers.len() > limits.header_count {
        return Some(Fault::TooManyHeaders);
    }
    if version < Version::HTTP_2 {
        return None;
    }
    let bytes: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_OVERHEAD).sum();
    (bytes > limits.header_bytes).then_some(Fault::HeadTooLarge)
}

/// What the HTTP/2 library lets pass, and an HTTP/1 head is refused for as it is read. Of the rest that RFC 9113 calls
/// malformed (8.1.1, 8.2, 8.3) the library resets the stream.
fn unsound(target: Option<&PathAndQuery>, headers: &HeaderMap) -> Result<(), Refusal> {
    if !target.is_none_or(|target| target.as_str().starts_with(['/', '*'])) {
        return Err(TARGET);
    }
    if headers.keys().any(|name| is_like_framing(name.as_str().as_bytes())) {
        return Err(FRAMING_NAME);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        decimal(length.as_bytes()).ok_or(LENGTH_INVALID)?;
    }
    if lengths.next().is_some() {
        return Err(LENGTH_REPEATED);
    }
    headers.get_all(EXPECT).iter().try_for_each(|value| expect(value.as_bytes()))?;
    // A reader of HTTP/1 would not see the whitespace that plugins see.
    let is_padded = |value: &HeaderValue| value.as_bytes().trim_ascii().len() < value.len();
    if headers.values().any(is_padded) { Err(HEADER_VALUE) } else { Ok(()) }
}

fn normalised(target: PathAndQuery, method: &Method) -> Result<PathAndQuery, Fault> {
    // The server as a whole (RFC 9110, 7.1), which is no path.
    if target.as_str() == "*" && *method == Method::OPTIONS {
        return Ok(target);
    }
    if !target.query().is_none_or(is_query) {
        return Err(Fault::Target);
    }
    match normalise(target.path()).map_err(Fault::Path)? {
        // Without a path, the slash stands in the library's answer alone (RFC 9110, 4.2.3).
        Cow::Borrowed(path) if !target.as_str().starts_with('/') => {
            with_path(path, &target).ok_or(Fault::Target)
        }
        Cow::Borrowed(_) => Ok(target),
        Cow::Owned(path) => with_path(&path, &target).ok_or(Fault::Target),
    }
}

/// Another path with the query as it was.
pub(crate) fn with_path(path: &str, target: &PathAndQuery) -> Option<PathAndQuery> {
    let text = match target.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    PathAndQuery::from_maybe_shared(Bytes::from(text)).ok()
}

/// Makes `Host` the one place that names the host, in lower case.
fn settle_host(
    headers: &mut HeaderMap,
    authority: Option<&Authority>,
    scheme: Option<&str>,
    version: Version,
) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return Err(HOST_REPEATED);
    }
    let default_port = match scheme {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    };
    let named = match (authority, host) {
        (Some(authority), Some(host))
            if !same_authority(authority.as_str().as_bytes(), host.as_bytes(), default_port) =>
        {
            return Err(HOST_MISMATCH);
        }
        (_, Some(host)) => host.as_bytes(),
        (Some(authority), None) => authority.as_str().as_bytes(),
        (None, None) if version >= Version::HTTP_11 => return Err(HOST_MISSING),
        (None, None) => return Ok(()),
    };
    // In an HTTP/1 head it has been judged.
    if version >= Version::HTTP_2 {
        split_authority(named).ok_or(HOST_INVALID)?;
    }
    if host.is_none() || named.iter().any(u8::is_ascii_uppercase) {
        let host = HeaderValue::from_bytes(&named.to_ascii_lowercase()).map_err(|_| HOST_INVALID)?;
        headers.insert(HOST, host);
    }
    Ok(())
}

/// HTTP/2 may split a cookie line; HTTP/1 has one (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    // Most heads repeat nothing.
    if headers.keys_len() == headers.len() {
        return;
    }
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    // An empty one would leave a blank at the line's end.
    let crumbs = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).filter(|crumb| !crumb.is_empty());
    let crumbs: Vec<&[u8]> = crumbs.collect();
    // Header values joined by a header value are one.
    if let Ok(line) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, line);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn head(request: http::request::Builder) -> (Request, Option<Fault>) {
        let second = Duration::from_secs(1);
        let limits = ListenerLimits {
            connections: 1,
            header_bytes: 200,
            header_count: 4,
            header_timeout: second,
            body_timeout: second,
            write_timeout: second,
            min_rate: None,
            idle_timeout: second,
            keepalive: None,
            http2_streams: 1,
        };
        understand(request.body(()).unwrap().into_parts().0.into(), &limits)
    }

    fn get(uri: &str) -> http::request::Builder {
        http::Request::get(uri)
    }

    #[test]
    fn the_path_is_normalised_once_and_the_query_kept() {
        let (request, fault) = head(get("http://A.Example/a//b/../c?x=%20"));
        assert_eq!((request.target().as_str(), request.host(), fault), ("/a/c?x=%20", "a.example", None));
        assert!(matches!(head(get("http://a/..%2fx")).1, Some(Fault::Path(_))));
        let (request, fault) = head(get("http://a?x=1"));
        assert_eq!((request.target().as_str(), fault), ("/?x=1", None));
        assert_eq!(head(get("http://a/?\u{e9}")).1, Some(Fault::Target));
    }

    #[test]
    fn a_host_that_contradicts_the_target_or_is_none_is_refused() {
        for (request, expected) in [
            (get("http://a.example/").header(HOST, "b.example"), Some(HOST_MISMATCH)),
            (get("http://a.example/").header(HOST, "a.example:80"), None),
            (get("/"), Some(HOST_MISSING)),
            (get("/").header(HOST, "a").header(HOST, "a"), Some(HOST_REPEATED)),
            (get("/").header(HOST, "a b/../c").version(Version::HTTP_2), Some(HOST_INVALID)),
            (get("/").header(HOST, "public:80@internal").version(Version::HTTP_2), Some(HOST_INVALID)),
            (get("http://u@a.example/").version(Version::HTTP_2), Some(HOST_INVALID)),
        ] {
            let shown = format!("{request:?}");
            assert_eq!(head(request).1, expected.map(Fault::Screened), "{shown}");
        }
    }

    #[test]
    fn a_request_names_its_host_in_one_place_and_in_lower_case() {
        let named = |request: http::request::Builder| {
            let (request, fault) = head(request);
            assert_eq!((fault, request.headers().len()), (None, usize::from(!request.host().is_empty())));
            request.host().to_owned()
        };
        assert_eq!(named(get("http://a.example/").version(Version::HTTP_2)), "a.example");
        assert_eq!(named(get("http://A.example/").version(Version::HTTP_2)), "a.example");
        assert_eq!(named(get("/").header(HOST, "A.Example")), "a.example");
        assert_eq!(named(get("/").version(Version::HTTP_10)), "");
    }

    #[test]
    fn what_http2_lets_pass_is_judged_like_http1() {
        for (headers, expected) in [
            (&[("content-length", "5")][..], None),
            (&[("content-length", "5"), ("content-length", "5")], Some(LENGTH_REPEATED)),
            (&[("content-length", "")], Some(LENGTH_INVALID)),
            (&[("expect", "100-continue")], None),
            (&[("expect", "200-ok")], Some(crate::http1::EXPECTATION)),
            (&[("x-a", "b c")], None),
            (&[("x-a", " b")], Some(HEADER_VALUE)),
            (&[("x-a", "b\t")], Some(HEADER_VALUE)),
        ] {
            let request = get("http://a/").version(Version::HTTP_2);
            let request =
                headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            assert_eq!(head(request).1, expected.map(Fault::Screened), "{headers:?}");
        }
    }

    #[test]
    fn the_asterisk_is_a_target_of_options_alone() {
        let star = |method: Method| {
            let (request, fault) = head(http::Request::builder().method(method).uri("*").header(HOST, "a"));
            (request.target().as_str().to_owned(), fault)
        };
        assert_eq!(star(Method::OPTIONS), ("*".to_owned(), None));
        assert!(matches!(star(Method::GET), (path, Some(Fault::Path(_))) if path == "/"));
    }

    #[test]
    fn a_client_can_not_name_away_what_plugins_will_set() {
        let (request, _) =
            head(get("/").header(HOST, "a").header("connection", "x-user, host").header("x-user", "eve"));
        assert_eq!((request.host(), request.headers().len()), ("a", 1));
    }

    #[test]
    fn cookie_crumbs_become_one_line() {
        let (request, _) = head(get("/").header(HOST, "a").header(COOKIE, "a=1").header(COOKIE, "b=2"));
        assert_eq!(request.headers().get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn heads_are_bounded_and_methods_known() {
        let many = (0..5).fold(get("http://a/"), |request, at| request.header(format!("x-{at}"), 1));
        assert_eq!(head(many).1, Some(Fault::TooManyHeaders));
        let few = (0..4).fold(get("http://a/"), |request, at| request.header(format!("x-{at}"), 1));
        assert_eq!(head(few).1, None);
        // 32 are added for each, as HTTP/2 counts; a head of HTTP/1 was judged as it was read.
        let long = |version, length| {
            let request = get("http://a/").header(HOST, "a").header("x-long", "x".repeat(length));
            head(request.version(version)).1
        };
        assert_eq!(long(Version::HTTP_2, 200 - 2 * 32 - "hostax-long".len()), None);
        assert_eq!(long(Version::HTTP_2, 201 - 2 * 32 - "hostax-long".len()), Some(Fault::HeadTooLarge));
        assert_eq!(long(Version::HTTP_11, 300), None);
        assert_eq!(head(http::Request::trace("http://a/")).1, Some(Fault::MethodUnsupported));
        assert_eq!(head(http::Request::connect("a.example:443")).1, Some(Fault::MethodUnsupported));
        assert_eq!(unreadable(Version::HTTP_11).method().as_str(), "-");
    }
}
