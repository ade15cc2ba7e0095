//! Heads of requests and responses, and the mutators through which plugins change them.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{COOKIE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version};

use crate::journal::{ChangeKind, Journal};
use crate::path::{PathError, is_query, normalise};

/// Headers that a message may have at most once plugins are done with it; well below what the map
/// can hold, well above what clients and servers accept.
pub(crate) const MAX_HEADERS: usize = 256;

/// A request's head. The path is normalised, and `Host` is present on every HTTP version.
#[derive(Debug, Clone)]
pub struct Request {
    pub(crate) method: Method,
    pub(crate) target: PathAndQuery,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
}

impl Request {
    /// A head; `target` is path and query.
    pub fn new(method: Method, target: PathAndQuery, version: Version, headers: HeaderMap) -> Self {
        Request { method, target, version, headers }
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Path and query as they go upstream.
    pub fn target(&self) -> &PathAndQuery {
        &self.target
    }

    /// The normalised path, still percent-encoded where it must be.
    pub fn path(&self) -> &str {
        self.target.path()
    }

    /// The query without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.target.query()
    }

    /// The first query parameter of this name, decoded (`application/x-www-form-urlencoded`).
    pub fn query_param(&self, name: &str) -> Option<Cow<'_, str>> {
        self.query_params(name).next()
    }

    /// All query parameters of this name, decoded.
    pub fn query_params<'r>(&'r self, name: &str) -> impl Iterator<Item = Cow<'r, str>> {
        let pairs = self.query().into_iter().flat_map(|query| query.split('&'));
        pairs.filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decode(key) == name).then(|| form_decode(value))
        })
    }

    /// The target with `instead` for the values of the query parameters that are chosen by name.
    pub fn target_without(&self, is_chosen: impl Fn(&str) -> bool, instead: &str) -> String {
        let Some(query) = self.query() else { return self.path().to_owned() };
        let shown = |pair: &str| match pair.split_once('=') {
            Some((name, _)) if is_chosen(&form_decode(name)) => format!("{name}={instead}"),
            _ => pair.to_owned(),
        };
        format!("{}?{}", self.path(), query.split('&').map(shown).collect::<Vec<_>>().join("&"))
    }

    /// Version that the client spoke.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The host that was asked for, lower case, without port; empty if there is none.
    pub fn host(&self) -> &str {
        let authority = self.header(&HOST).unwrap_or_default();
        // Colons stand in an IPv6 address too, which is bracketed.
        let end = if authority.starts_with('[') { authority.find(']').unwrap_or(0) } else { 0 };
        let port = authority.bytes().skip(end).position(|byte| byte == b':');
        port.and_then(|at| authority.get(..end + at)).unwrap_or(authority)
    }

    /// A header's first value; none if it is absent or not visible ASCII.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// All headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// A cookie's value (RFC 6265, 5.4).
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.cookies(name).next()
    }

    /// All values of cookies of this name: those of several paths may come together.
    pub fn cookies<'r>(&'r self, name: &str) -> impl Iterator<Item = &'r str> {
        let lines = self.headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        lines.flat_map(|line| line.split(';')).filter_map(move |pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then_some(value)
        })
    }

    /// Another target, for the gateway's core only: no journal knows of it.
    #[doc(hidden)]
    pub fn replace_target(&mut self, target: PathAndQuery) {
        self.target = target;
    }

    /// Another method, for the gateway's core only: no journal knows of it.
    #[doc(hidden)]
    pub fn replace_method(&mut self, method: Method) {
        self.method = method;
    }

    /// Its headers, for the gateway's core only: no journal knows of it.
    #[doc(hidden)]
    pub fn core_headers(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    /// Takes it apart.
    pub fn into_parts(self) -> (Method, PathAndQuery, Version, HeaderMap) {
        (self.method, self.target, self.version, self.headers)
    }
}

fn form_decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |at: usize| tail.get(at).and_then(|digit| (*digit as char).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
                continue;
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
        rest = tail;
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// A response's head.
#[derive(Debug, Clone)]
pub struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

impl Response {
    /// A head.
    pub fn new(status: StatusCode, headers: HeaderMap) -> Self {
        Response { status, headers }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Another status, for the gateway's core only: no journal knows of it.
    #[doc(hidden)]
    pub fn replace_status(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// Its headers, for the gateway's core only: no journal knows of it.
    #[doc(hidden)]
    pub fn core_headers(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    /// A header's first value; none if it is absent or not visible ASCII.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// All headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Takes it apart.
    pub fn into_parts(self) -> (StatusCode, HeaderMap) {
        (self.status, self.headers)
    }
}

/// Changes the headers of a message and journals what was changed.
///
/// Framing (`Content-Length`, `Transfer-Encoding`) and hop-by-hop headers are the gateway's: it
/// writes them after the last hook, whatever was set here.
pub struct HeadMut<'a> {
    pub(crate) headers: &'a mut HeaderMap,
    pub(crate) journal: Journal<'a>,
}

impl HeadMut<'_> {
    /// Sets a header to this one value.
    pub fn set(&mut self, name: HeaderName, value: HeaderValue) {
        if self.headers.len() >= MAX_HEADERS && !self.headers.contains_key(&name) {
            return self.journal.overflow("header");
        }
        self.journal.note(|| ChangeKind::Header(name.clone()));
        self.headers.insert(name, value);
    }

    /// Adds a value to a header.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        if self.headers.len() >= MAX_HEADERS {
            return self.journal.overflow("header");
        }
        self.journal.note(|| ChangeKind::Header(name.clone()));
        self.headers.append(name, value);
    }

    /// Removes a header with all its values.
    pub fn remove(&mut self, name: &HeaderName) {
        if self.headers.remove(name).is_some() {
            self.journal.note(|| ChangeKind::Header(name.clone()));
        }
    }

    /// Gives the values of `from` the name `to`, in place of what `to` had.
    pub fn rename(&mut self, from: &HeaderName, to: &HeaderName) {
        let values: Vec<_> = self.headers.get_all(from).iter().cloned().collect();
        if values.is_empty() || from == to {
            return;
        }
        self.remove(from);
        self.remove(to);
        for value in values {
            self.append(to.clone(), value);
        }
    }
}

/// Changes a request's head.
pub struct RequestMut<'a> {
    pub(crate) method: &'a mut Method,
    pub(crate) target: &'a mut PathAndQuery,
    /// Its headers.
    pub headers: HeadMut<'a>,
}

impl RequestMut<'_> {
    /// Another method; what the gateway does not forward for clients, it does not for plugins.
    pub fn set_method(&mut self, method: Method) -> Result<(), &'static str> {
        if matches!(method, Method::CONNECT | Method::TRACE) {
            return Err("CONNECT and TRACE are not forwarded");
        }
        self.headers.journal.note(|| ChangeKind::Method);
        *self.method = method;
        Ok(())
    }

    /// Another path, with the query as it was. The route stays as chosen. The path is brought into
    /// its [normal form](crate::path), and refused where a client's would be.
    pub fn set_path(&mut self, path: &str) -> Result<(), &'static str> {
        if path.contains(['?', '#']) {
            return Err("a path has neither query nor fragment");
        }
        let path = normalise(path).map_err(PathError::detail)?;
        self.set_target(join(&path, self.target.query()), ChangeKind::Path)
    }

    /// Another query, without question mark; none to remove it.
    pub fn set_query(&mut self, query: Option<&str>) -> Result<(), &'static str> {
        if !query.is_none_or(is_query) {
            return Err("a query has neither blanks nor `#`, and other characters percent-encoded");
        }
        self.set_target(join(self.target.path(), query), ChangeKind::Query)
    }

    /// Removes all query parameters of this name.
    pub fn remove_query_param(&mut self, name: &str) -> Result<(), &'static str> {
        let is_other = |pair: &&str| form_decode(pair.split_once('=').map_or(*pair, |(key, _)| key)) != name;
        let Some(query) = self.target.query() else { return Ok(()) };
        let others: Vec<&str> = query.split('&').filter(is_other).collect();
        if others.len() == query.split('&').count() {
            return Ok(());
        }
        let others = others.join("&");
        self.set_query(Some(&*others).filter(|others| !others.is_empty()))
    }

    /// Removes all cookies of this name.
    pub fn remove_cookie(&mut self, name: &str) {
        let is_it = |pair: &str| pair.trim().split_once('=').is_some_and(|(key, _)| key == name);
        let lines: Vec<_> = self.headers.headers.get_all(COOKIE).iter().cloned().collect();
        let has_it = |line: &HeaderValue| line.to_str().is_ok_and(|line| line.split(';').any(is_it));
        if !lines.iter().any(has_it) {
            return;
        }
        self.headers.remove(&COOKIE);
        for line in lines {
            let Ok(text) = line.to_str() else {
                self.headers.append(COOKIE, line);
                continue;
            };
            let others: Vec<&str> = text.split(';').filter(|pair| !is_it(pair)).map(str::trim).collect();
            if let Ok(others) = HeaderValue::try_from(others.join("; "))
                && !others.is_empty()
            {
                self.headers.append(COOKIE, others);
            }
        }
    }

    fn set_target(&mut self, target: Bytes, kind: ChangeKind) -> Result<(), &'static str> {
        *self.target = PathAndQuery::from_maybe_shared(target).map_err(|_| "not a valid path and query")?;
        self.headers.journal.note(|| kind);
        Ok(())
    }
}

fn join(path: &str, query: Option<&str>) -> Bytes {
    match query {
        Some(query) => Bytes::from(format!("{path}?{query}")),
        None => Bytes::copy_from_slice(path.as_bytes()),
    }
}

/// Changes a response's head.
pub struct ResponseMut<'a> {
    pub(crate) status: &'a mut StatusCode,
    /// Its headers.
    pub headers: HeadMut<'a>,
}

impl ResponseMut<'_> {
    /// Another status.
    pub fn set_status(&mut self, status: StatusCode) {
        self.headers.journal.note(|| ChangeKind::Status);
        *self.status = status;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &'static str, headers: &[(HeaderName, &'static str)]) -> Request {
        let headers = headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        Request::new(Method::GET, PathAndQuery::from_static(target), Version::HTTP_11, headers.collect())
    }

    #[test]
    fn host_is_read_without_port_also_for_ipv6() {
        for (value, host) in
            [("a.example", "a.example"), ("a:80", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]")]
        {
            assert_eq!(request("/", &[(HOST, value)]).host(), host);
        }
        assert_eq!(request("/", &[]).host(), "");
    }

    #[test]
    fn chosen_query_parameters_are_not_shown() {
        let shown = |target| request(target, &[]).target_without(|name| name == "to ken", "redacted");
        assert_eq!(
            shown("/a?b=1&to%20ken=x&to+ken=y=z&token=t&c"),
            "/a?b=1&to%20ken=redacted&to+ken=redacted&token=t&c"
        );
        assert_eq!((shown("/a"), shown("/a?")), ("/a".to_owned(), "/a?".to_owned()));
    }

    #[test]
    fn query_parameters_are_decoded_and_broken_escapes_are_kept() {
        let request = request("/?a=1&b=x%20y+z&c&d=%zz&e=%C3%A9&f=%4", &[]);
        let get = |name| request.query_param(name);
        assert_eq!(get("b").as_deref(), Some("x y z"));
        assert_eq!((get("c").as_deref(), get("missing")), (Some(""), None));
        assert_eq!(
            (get("d").as_deref(), get("e").as_deref(), get("f").as_deref()),
            (Some("%zz"), Some("é"), Some("%4"))
        );
    }

    #[test]
    fn cookies_are_found_across_lines() {
        let request = request("/", &[(COOKIE, "a=1; session=abc=="), (HOST, "x")]);
        assert_eq!((request.cookie("session"), request.cookie("b")), (Some("abc=="), None));
    }
}
