//! What has to hold of whatever is said of a request's origin.

use std::net::IpAddr;

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::{ForwardedBy, Told, X_FORWARDED_FOR, client_address, is_claim, parse_node, remove_claims};

/// What strangers say of themselves goes no further; of what trusted proxies say, whoever trusts the gateway comes to
/// the same client, in whichever of the two spellings. The headers come as lines.
pub fn forwarded(lines: &[u8]) {
    let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().filter_map(|net| net.parse().ok()).collect();
    let gateway = IpAddr::from([10, 255, 255, 255]);
    for peer in [IpAddr::from([203, 0, 113, 9]), IpAddr::from([10, 0, 0, 1])] {
        let is_trusted = super::is_trusted(peer, &trusted);
        let mut headers = headers(lines);
        let client = client_address(peer, &headers, &trusted);
        remove_claims(peer, &trusted, &mut headers);
        assert!(is_trusted || !headers.keys().any(|name| is_claim(name.as_str())), "{headers:?}");
        let mut told = Told::new();
        ForwardedBy::new(peer, false).tell(peer, &trusted, &headers, &mut told);
        let told: HeaderMap = told.into_iter().collect();
        assert_eq!(client_address(gateway, &told, &trusted), client, "{told:?} of {headers:?}");
        let nodes = |name: HeaderName| -> Vec<String> {
            let line = String::from_utf8_lossy(told[name].as_bytes()).into_owned();
            line.split(',').map(|node| node.trim_ascii().to_owned()).collect()
        };
        let (addresses, elements) = (nodes(X_FORWARDED_FOR), nodes(FORWARDED));
        assert!(
            addresses.len() == elements.len() && (is_trusted || addresses == [peer.to_string()]),
            "{told:?}"
        );
        for (address, element) in addresses.iter().zip(&elements) {
            let node =
                element.strip_prefix("for=").and_then(|rest| rest.split(';').next()).unwrap_or_default();
            assert_eq!(parse_node(node.trim_matches('"')), parse_node(address), "{told:?}");
        }
    }
}

/// The lines that can stand in a head, their names in front of the first colon.
fn headers(lines: &[u8]) -> HeaderMap {
    let field = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        let name = HeaderName::from_bytes(name).ok()?;
        Some((name, HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in lines.split(|byte| *byte == b'\n').filter_map(field) {
        headers.append(name, value);
    }
    headers
}
