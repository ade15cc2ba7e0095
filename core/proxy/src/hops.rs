//! Headers that concern one connection only.

use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, TE};

use crate::http1::has_option;

/// Whether a header concerns one connection only (RFC 9110, 7.6.1). `TE: trailers` is end to end in
/// effect.
pub(crate) fn is_hop_by_hop(name: &HeaderName, value: &HeaderValue) -> bool {
    match name.as_str() {
        "te" => value != "trailers",
        name => matches!(
            name,
            "connection"
                | "http2-settings"
                | "keep-alive"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "proxy-connection"
                | "transfer-encoding"
                | "upgrade"
        ),
    }
}

/// Removes what must not be forwarded: the fixed headers, and those that `Connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none.
    if !headers.iter().any(|(name, value)| is_hop_by_hop(name, value)) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| name != TE && name != HOST)
        .collect();
    let wants_trailers = headers.get_all(TE).iter().any(|line| has_option(line.as_bytes(), b"trailers"));
    let fixed = headers.iter().filter(|(name, value)| is_hop_by_hop(name, value)).map(|(name, _)| name);
    let fixed: Vec<HeaderName> = fixed.cloned().collect();
    for name in named.into_iter().chain(fixed) {
        headers.remove(name);
    }
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_connection_names_goes_and_trailers_stay() {
        let pairs = [
            ("connection", "close, X-Secret, te, host, \u{e9}"),
            ("host", "a"),
            ("x-secret", "1"),
            ("te", "gzip, trailers, \u{e9}"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("x-other", "2"),
        ];
        let mut headers: HeaderMap = pairs
            .into_iter()
            .map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
            })
            .collect();
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("host", "a"), ("te", "trailers"), ("x-other", "2")]);
    }
    #[test]
    fn of_te_alone_trailers_stay() {
        let left = |value: &'static str| {
            let mut headers: HeaderMap = [(TE, HeaderValue::from_static(value))].into_iter().collect();
            strip_hop_by_hop(&mut headers);
            headers.remove(TE)
        };
        assert_eq!(left("trailers").unwrap(), "trailers");
        assert_eq!(left("Trailers").unwrap(), "trailers");
        assert_eq!((left("gzip"), left("")), (None, None));
    }
}
