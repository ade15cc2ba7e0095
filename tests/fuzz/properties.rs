//! What has to hold for whatever bytes come, of what other crates may call; the properties of HTTP/1 are in
//! `core/proxy/src/http1/fuzz.rs`. Each of these functions panics if its property does not hold.

use std::path::Path;

use portcullis_proxy::proxy_protocol::{Header, Version, header, parse};

/// A normal form stays as it is, and a server that decodes everything finds at it what it would have found at the raw
/// path.
pub(crate) fn path(bytes: &[u8]) {
    let Ok(raw) = std::str::from_utf8(bytes) else { return };
    let Ok(normal) = portcullis_plugin::path::normalise(raw) else { return };
    assert_eq!(portcullis_plugin::path::normalise(&normal).as_deref(), Ok(&*normal), "{raw}");
    assert!(normal.starts_with('/') && normal.bytes().all(|byte| byte.is_ascii_graphic()), "{raw}");
    assert!(!normal.contains("//") && !normal.contains(['\\', ';', '?', '#']), "{raw}");
    assert_eq!(resolved(raw), resolved(&normal), "{raw}");
}

/// The names that lead from a server's root to a file, as one finds them that decodes first.
fn resolved(path: &str) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    for name in decoded(path).split(|byte| matches!(byte, b'/' | b'\\')) {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name.to_vec()),
        }
    }
    names
}

fn decoded(path: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), path);
    while let Some((plain, escape)) = rest.split_once('%') {
        bytes.extend_from_slice(plain.as_bytes());
        let digits = escape.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(digits.unwrap_or(b'%'));
        rest = escape.get(2..).unwrap_or_default();
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// A header of the PROXY protocol is the same however it arrives, and means the same when it is written again.
pub(crate) fn proxy_protocol(bytes: &[u8]) {
    let parsed = parse(bytes);
    for end in 0..bytes.len().min(300) {
        let begun = parse(&bytes[..end]);
        assert!(begun == Ok(None) || begun == parsed, "{begun:?} after {end} bytes, {parsed:?} in the end");
    }
    let Ok(Some((read, length))) = parsed else { return };
    assert!(length <= bytes.len(), "{length}");
    let Header::Client(client) = read else { return };
    for version in [Version::V1, Version::V2] {
        let written = header(version, Some(&client));
        // No address is one that nobody has.
        if client.source.ip().is_unspecified() {
            assert_eq!(parse(&written), Ok(Some((Header::Own, written.len()))));
            continue;
        }
        let Ok(Some((Header::Client(again), length))) = parse(&written) else { panic!("{client:?}") };
        let ends = |(one, other): (std::net::SocketAddr, std::net::SocketAddr)| {
            [one, other].map(|end| (end.ip().to_canonical(), end.port()))
        };
        let said = (client.source, client.destination);
        assert_eq!((ends((again.source, again.destination)), length), (ends(said), written.len()));
    }
}

/// A configuration is read, or what is wrong with it can be shown.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let environment = |name: &str| (name == "NAME").then(|| "value".to_owned());
    match portcullis_config::parse_partly(Path::new("fuzz.yaml"), text, &environment) {
        Ok((_, errors)) if errors.is_empty() => {}
        Ok((_, errors)) | Err(errors) => assert!(!errors.is_empty() && !errors.to_string().is_empty()),
    }
}
