//! Who the client is behind proxies, and what the upstream is told of it.

use std::net::{IpAddr, SocketAddr};

use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use smallvec::SmallVec;

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const CLAIMS_BEGIN: &str = "x-forwarded-";

/// Headers of this length that frameworks, and what is copied from page to page, believe like `X-Forwarded-*`. By length,
/// because every header of every request is looked up.
fn claims(length: usize) -> &'static [&'static str] {
    match length {
        6 => &["x-host"],
        9 => &["client-ip", "forwarded", "x-real-ip"],
        11 => &["x-client-ip", "x-forwarded", "x-remote-ip"],
        13 => &["forwarded-for", "x-remote-addr", "x-rewrite-url"],
        14 => &["true-client-ip", "x-original-url"],
        15 => &["x-original-host"],
        16 => &["cf-connecting-ip", "fastly-client-ip", "x-azure-clientip", "x-originating-ip"],
        18 => &["cf-connecting-ipv6"],
        19 => &["x-appengine-user-ip", "x-cluster-client-ip"],
        20 => &["x-http-host-override"],
        24 => &["x-envoy-external-address", "x-original-forwarded-for"],
        _ => &[],
    }
}

/// Whether a header of this name tells of a request's origin. Underscores count as dashes: to
/// whatever turns headers into variables (RFC 3875, 4.1.18) they are the same.
pub(crate) fn is_claim(name: &str) -> bool {
    let is = |claim: &str, name: &[u8]| {
        let mut pairs = claim.bytes().zip(name);
        pairs.all(|(claim, byte)| claim == if *byte == b'_' { b'-' } else { *byte })
    };
    let begin = name.as_bytes().get(..CLAIMS_BEGIN.len());
    begin.is_some_and(|begin| is(CLAIMS_BEGIN, begin))
        || claims(name.len()).iter().any(|claim| is(claim, name.as_bytes()))
}

/// Headers that the gateway sets towards an upstream.
pub(crate) type Told = SmallVec<[(HeaderName, HeaderValue); 6]>;

pub(crate) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address))
}

/// The client's address: the peer's, unless the peer is a trusted proxy; then the nearest address in
/// `X-Forwarded-For`, read from the right, that is not one. `Forwarded` (RFC 7239) is not read: a
/// proxy that writes the one passes on whatever a client put into the other.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    if !is_trusted(client, trusted) {
        return client;
    }
    let lines: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    for element in lines.iter().rev().flat_map(|line| line.rsplit(|byte| *byte == b',')) {
        if !is_trusted(client, trusted) {
            break;
        }
        // What can't be read hides whatever stands left of it.
        let address = std::str::from_utf8(element.trim_ascii()).ok().and_then(parse_node);
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
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"));
        // A client of a Unix socket has none (RFC 7239, 6.2).
        let (address, node) = match peer.is_unspecified() {
            true => ("unknown".to_owned(), "unknown".to_owned()),
            false => (peer.to_string(), node_of(peer)),
        };
        ForwardedBy {
            address: value(address),
            element: value(format!("for={node};proto={proto}")),
            proto: HeaderValue::from_static(proto),
        }
    }

    /// What the upstream is told of the client. What a trusted proxy said is kept and added to.
    pub(crate) fn tell(&self, peer: IpAddr, trusted: &[IpNet], headers: &HeaderMap, told: &mut Told) {
        // One pass is cheaper than looking for each by its hash.
        let (mut path, mut proto, mut host) = (false, false, false);
        for name in headers.keys().map(HeaderName::as_str).filter(|name| name.starts_with("x-forwarded-")) {
            path |= name == X_FORWARDED_FOR;
            proto |= name == X_FORWARDED_PROTO;
            host |= name == X_FORWARDED_HOST;
        }
        let (addresses, elements) = match path && is_trusted(peer.to_canonical(), trusted) {
            true => self.behind(headers),
            false => (self.address.clone(), self.element.clone()),
        };
        told.push((X_FORWARDED_FOR, addresses));
        told.push((FORWARDED, elements));
        if !proto {
            told.push((X_FORWARDED_PROTO, self.proto.clone()));
        }
        if let (false, Some(host)) = (host, headers.get(HOST)) {
            told.push((X_FORWARDED_HOST, host.clone()));
        }
    }
}

impl ForwardedBy {
    /// The addresses that proxies told of with the peer's, in both spellings: whichever an upstream
    /// believes, it comes to the same.
    fn behind(&self, headers: &HeaderMap) -> (HeaderValue, HeaderValue) {
        let lines = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
        let told: Vec<&[u8]> =
            lines.flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii).collect();
        let elements = told.iter().map(|node| {
            let address = std::str::from_utf8(node).ok().and_then(parse_node);
            address.map_or("for=unknown".to_owned(), |address| format!("for={}", node_of(address)))
        });
        let elements = elements.map(String::into_bytes).chain([self.element.as_bytes().to_vec()]);
        let elements = elements.collect::<Vec<_>>().join(&b", "[..]);
        let addresses = [&told[..], &[self.address.as_bytes()]].concat().join(&b", "[..]);
        // Header values joined by a header value are one.
        (
            HeaderValue::from_bytes(&addresses).unwrap_or_else(|_| self.address.clone()),
            HeaderValue::from_bytes(&elements).unwrap_or_else(|_| self.element.clone()),
        )
    }
}

/// An address as RFC 7239, section 6 writes it.
fn node_of(address: IpAddr) -> String {
    if address.is_ipv6() { format!("\"[{address}]\"") } else { address.to_string() }
}

/// Removes every header by which a proxy tells of a request's origin, whatever its name, unless a
/// trusted proxy says so.
pub(crate) fn remove_claims(peer: IpAddr, trusted: &[IpNet], headers: &mut HeaderMap) {
    // Hardly any client sends one.
    while let Some(name) = headers.keys().find(|name| is_claim(name.as_str())) {
        if is_trusted(peer.to_canonical(), trusted) {
            return;
        }
        let name = name.clone();
        headers.remove(name);
    }
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
    fn claims_are_known_by_their_length_and_however_their_words_are_joined() {
        let known: Vec<&str> = (0..64).flat_map(claims).copied().collect();
        assert_eq!(known.len(), 23, "{known:?}");
        for length in 0..64 {
            for claim in claims(length) {
                assert_eq!(claim.len(), length, "{claim}");
                assert!(is_claim(claim) && is_claim(&claim.replace('-', "_")), "{claim}");
                assert!(
                    !is_claim(&format!("{claim}x")) && !is_claim(&format!("y{}", &claim[1..])),
                    "{claim}"
                );
            }
        }
        assert!(is_claim("x-forwarded-whatever") && is_claim("x_forwarded_for"));
        assert!(!is_claim("x-forwarde") && !is_claim("y-forwarded-for") && !is_claim(""));
    }

    #[test]
    fn what_strangers_say_is_replaced_and_what_proxies_say_is_added_to() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let said = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x_client-ip", "6.6.6.6"),
            ("x-forwarded-prefix", "/x"),
            ("host", "a.example"),
        ];
        let told = |peer: &str, tls| {
            let peer = peer.parse().unwrap();
            let (mut headers, mut told) = (headers(&said), Told::new());
            remove_claims(peer, &trusted, &mut headers);
            ForwardedBy::new(peer, tls).tell(peer, &trusted, &headers, &mut told);
            (headers, told.into_iter().collect::<HeaderMap>())
        };
        let (left, told_of_stranger) = told("203.0.113.9", true);
        assert_eq!(left.keys().collect::<Vec<_>>(), [HOST]);
        assert_eq!(told_of_stranger[X_FORWARDED_FOR], "203.0.113.9");
        assert_eq!(told_of_stranger[FORWARDED], "for=203.0.113.9;proto=https");
        assert_eq!(told_of_stranger[X_FORWARDED_HOST], "a.example");
        let (_, told_of_nobody) = told("0.0.0.0", false);
        assert_eq!(told_of_nobody[X_FORWARDED_FOR], "unknown");
        assert_eq!(told_of_nobody[FORWARDED], "for=unknown;proto=http");
        let (left, told_of_proxy) = told("10.0.0.1", false);
        assert_eq!(told_of_proxy[X_FORWARDED_FOR], "6.6.6.6, 10.0.0.1");
        assert_eq!(told_of_proxy[FORWARDED], "for=6.6.6.6, for=10.0.0.1;proto=http");
        assert_eq!((left.len(), &left["x-forwarded-prefix"]), (6, &"/x".parse::<HeaderValue>().unwrap()));
    }
    #[test]
    fn scheme_and_host_are_told_unless_a_proxy_has_told_them() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let told = |peer: &str, said: &[(&'static str, &'static str)]| {
            let (peer, mut told) = (peer.parse().unwrap(), Told::new());
            ForwardedBy::new(peer, true).tell(peer, &trusted, &headers(said), &mut told);
            told.into_iter().collect::<HeaderMap>()
        };
        let host = ("host", "a.example");
        assert_eq!(told("10.0.0.1", &[host, ("x-forwarded-port", "1")])[X_FORWARDED_PROTO], "https");
        let proxied = told("10.0.0.1", &[host, ("x-forwarded-proto", "http")]);
        assert!(!proxied.contains_key(X_FORWARDED_PROTO) && proxied[X_FORWARDED_HOST] == "a.example");
        assert!(!told("10.0.0.1", &[host, ("x-forwarded-host", "b")]).contains_key(X_FORWARDED_HOST));
        assert!(!told("10.0.0.1", &[]).contains_key(X_FORWARDED_HOST));
        // What a plugin said in a stranger's name.
        let plugin = told("203.0.113.9", &[host, ("x-forwarded-for", "6.6.6.6")]);
        assert_eq!(plugin[X_FORWARDED_FOR], "203.0.113.9");
        assert_eq!(plugin[FORWARDED], "for=203.0.113.9;proto=https");
    }
}
