//! Who the client is behind proxies, and what the upstream is told of it.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Headers that frameworks believe like `X-Forwarded-*`.
const CLAIMS: [HeaderName; 4] = [
    X_REAL_IP,
    HeaderName::from_static("true-client-ip"),
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-rewrite-url"),
];

fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// The client's address: the peer's, unless the peer is a trusted proxy; then the nearest address in
/// `X-Forwarded-For`, read from the right, that is not one. `Forwarded` (RFC 7239) is not read: a
/// proxy that writes the one passes on whatever a client put into the other.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    let lines: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    for element in lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b',')) {
        if !is_trusted(client, trusted) {
            break;
        }
        // What can't be read hides whatever stands left of it.
        let address = std::str::from_utf8(element).ok().and_then(|text| parse_node(text.trim()));
        let Some(address) = address else { break };
        client = address.to_canonical();
    }
    client
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
    /// anybody else said is removed, whatever its name.
    pub(crate) fn apply(&self, peer: IpAddr, trusted: &[IpNet], headers: &mut HeaderMap) {
        if is_trusted(peer.to_canonical(), trusted) {
            add_to_list(headers, X_FORWARDED_FOR, &self.address);
        } else {
            remove_claims(headers);
            headers.insert(X_FORWARDED_FOR, self.address.clone());
        }
        headers.insert(FORWARDED, self.element.clone());
        headers.entry(X_FORWARDED_PROTO).or_insert_with(|| self.proto.clone());
        if let (false, Some(host)) = (headers.contains_key(X_FORWARDED_HOST), headers.get(HOST).cloned()) {
            headers.insert(X_FORWARDED_HOST, host);
        }
    }
}

/// Removes every header by which a proxy tells of a request's origin.
fn remove_claims(headers: &mut HeaderMap) {
    let is_claim = |name: &HeaderName| name.as_str().starts_with("x-forwarded-") || CLAIMS.contains(name);
    // Hardly any client sends one.
    while let Some(name) = headers.keys().find(|name| is_claim(name)).cloned() {
        headers.remove(name);
    }
}

fn add_to_list(headers: &mut HeaderMap, name: HeaderName, last: &HeaderValue) {
    let mut lines: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    lines.push(last.as_bytes());
    // Header values joined by a header value are one.
    let list = HeaderValue::from_bytes(&lines.join(&b", "[..])).unwrap_or_else(|_| last.clone());
    headers.insert(name, list);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = lines.iter().map(|(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        });
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
            ("10.0.0.1", &[("x-forwarded-for", "6.6.6.6, [2001:db9::7]:4711")], "2001:db9::7"),
            ("10.0.0.1", &[("forwarded", "for=8.8.8.8"), ("x-forwarded-for", "9.9.9.9")], "9.9.9.9"),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "\u{e9}, 9.9.9.9")],
                "9.9.9.9",
            ),
            (
                "10.0.0.1",
                &[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "9.9.9.9, \u{e9}")],
                "10.0.0.1",
            ),
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
        let said = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-forwarded-prefix", "/x"),
            ("host", "a.example"),
        ];
        let stranger = "203.0.113.9".parse().unwrap();
        let mut told = headers(&said);
        ForwardedBy::new(stranger, true).apply(stranger, &trusted, &mut told);
        assert_eq!(
            (&told[X_FORWARDED_FOR], &told[FORWARDED]),
            (&"203.0.113.9".parse().unwrap(), &"for=203.0.113.9;proto=https".parse().unwrap())
        );
        assert!(!told.contains_key("x-forwarded-prefix"));
        assert_eq!((told.get(X_REAL_IP), &told[X_FORWARDED_HOST]), (None, &"a.example".parse().unwrap()));
        let proxy = "10.0.0.1".parse().unwrap();
        let mut told = headers(&said);
        ForwardedBy::new(proxy, false).apply(proxy, &trusted, &mut told);
        assert_eq!(told[X_FORWARDED_FOR], "6.6.6.6, 10.0.0.1");
    }
}
