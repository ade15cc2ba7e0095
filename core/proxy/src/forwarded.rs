//! Who the client is behind proxies, and what the upstream is told of it.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// The client's address: the peer's, unless the peer is a trusted proxy; then the nearest address
/// that is not one, read from the right of `Forwarded` (RFC 7239) or, without it, `X-Forwarded-For`.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(client, trusted) {
        return client;
    }
    let named = if headers.contains_key(FORWARDED) { &FORWARDED } else { &X_FORWARDED_FOR };
    let lines: Vec<&str> = headers.get_all(named).iter().filter_map(|value| value.to_str().ok()).collect();
    for element in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let text = if named == FORWARDED { forwarded_for(element) } else { Some(element.trim()) };
        // What can't be read hides whatever stands left of it.
        let Some(address) = text.and_then(parse_node) else { break };
        client = address.to_canonical();
        if !is_trusted(client, trusted) {
            break;
        }
    }
    client
}

fn forwarded_for(element: &str) -> Option<&str> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then(|| value.trim_matches('"'))
    })
}

/// An address, with or without port; IPv6 in brackets if it has one.
fn parse_node(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip());
    }
    text.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

/// What a connection's requests have in common, formatted once per connection.
pub(crate) struct ForwardedBy {
    address: HeaderValue,
    element: HeaderValue,
    proto: HeaderValue,
}

impl ForwardedBy {
    pub(crate) fn new(peer: IpAddr, tls: bool) -> Self {
        let peer = peer.to_canonical();
        let proto = if tls { "https" } else { "http" };
        let node = if peer.is_ipv6() { format!("\"[{peer}]\"") } else { peer.to_string() };
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"));
        ForwardedBy {
            address: value(peer.to_string()),
            element: value(format!("for={node};proto={proto}")),
            proto: HeaderValue::from_static(proto),
        }
    }

    /// Tells the upstream about the client. What a trusted proxy said is kept and added to; what
    /// anybody else said is replaced.
    pub(crate) fn apply(&self, peer: IpAddr, trusted: &[IpNet], headers: &mut HeaderMap) {
        if is_trusted(peer.to_canonical(), trusted) {
            add_to_list(headers, X_FORWARDED_FOR, &self.address);
            add_to_list(headers, FORWARDED, &self.element);
            headers.entry(X_FORWARDED_PROTO).or_insert_with(|| self.proto.clone());
            if let (false, Some(host)) = (headers.contains_key(X_FORWARDED_HOST), headers.get(HOST).cloned())
            {
                headers.insert(X_FORWARDED_HOST, host);
            }
            return;
        }
        headers.insert(X_FORWARDED_FOR, self.address.clone());
        headers.insert(FORWARDED, self.element.clone());
        headers.insert(X_FORWARDED_PROTO, self.proto.clone());
        headers.remove(X_FORWARDED_PORT);
        headers.remove(X_REAL_IP);
        match headers.get(HOST).cloned() {
            Some(host) => headers.insert(X_FORWARDED_HOST, host),
            None => headers.remove(X_FORWARDED_HOST),
        };
    }
}

fn add_to_list(headers: &mut HeaderMap, name: HeaderName, last: &HeaderValue) {
    let mut list = String::new();
    for value in headers.get_all(&name).iter().filter_map(|value| value.to_str().ok()) {
        // Writing to a string does not fail.
        let _ = write!(list, "{value}, ");
    }
    list.push_str(last.to_str().unwrap_or("unknown"));
    headers.insert(name, HeaderValue::try_from(list).unwrap_or_else(|_| last.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        type Lines = &'static [(&'static str, &'static str)];
        let cases: &[(&str, Lines, &str)] = &[
            ("203.0.113.9", &[("x-forwarded-for", "1.2.3.4")], "203.0.113.9"),
            ("10.0.0.1", &[("x-forwarded-for", "1.2.3.4")], "1.2.3.4"),
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.9.9.9")], "1.2.3.4"),
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4")], "1.2.3.4"),
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, garbage")], "10.0.0.1"),
            (
                "10.0.0.1",
                &[("forwarded", "for=6.6.6.6, for=\"[2001:db9::7]:4711\";proto=https")],
                "2001:db9::7",
            ),
            ("10.0.0.1", &[("forwarded", "for=_hidden"), ("x-forwarded-for", "6.6.6.6")], "10.0.0.1"),
            ("::ffff:10.0.0.1", &[("x-forwarded-for", "1.2.3.4:55")], "1.2.3.4"),
            ("10.0.0.1", &[], "10.0.0.1"),
        ];
        for (peer, lines, client) in cases {
            let found = client_address(peer.parse().unwrap(), &headers(lines), &trusted);
            assert_eq!(found.to_string(), *client, "{peer} {lines:?}");
        }
    }

    #[test]
    fn what_strangers_say_is_replaced_and_what_proxies_say_is_added_to() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let said = [("x-forwarded-for", "6.6.6.6"), ("x-real-ip", "6.6.6.6"), ("host", "a.example")];
        let stranger = "203.0.113.9".parse().unwrap();
        let mut told = headers(&said);
        ForwardedBy::new(stranger, true).apply(stranger, &trusted, &mut told);
        assert_eq!(
            (&told[X_FORWARDED_FOR], &told[FORWARDED]),
            (&"203.0.113.9".parse().unwrap(), &"for=203.0.113.9;proto=https".parse().unwrap())
        );
        assert_eq!((told.get(X_REAL_IP), &told[X_FORWARDED_HOST]), (None, &"a.example".parse().unwrap()));
        let proxy = "10.0.0.1".parse().unwrap();
        let mut told = headers(&said);
        ForwardedBy::new(proxy, false).apply(proxy, &trusted, &mut told);
        assert_eq!(told[X_FORWARDED_FOR], "6.6.6.6, 10.0.0.1");
    }
}
