//! A reader of messages (RFC 9112) without any tolerance, and without anything of the gateway's own reading.

#![allow(clippy::panic, clippy::indexing_slicing, reason = "that is how a property fails")]

use bytes::Buf;
use portcullis_plugin::Request;

use crate::hops::is_hop_by_hop;
use crate::http1::split_authority;

/// A message as whoever reads it strictly reads it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The first line, then the fields but for their framing, sorted.
    pub(crate) head: Vec<String>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<String>,
}

/// How a body's end is told.
enum End {
    None,
    Length(usize),
    Chunked,
}

/// Reads the one request that these bytes are.
pub(crate) fn request(bytes: &[u8]) -> Seen {
    let (mut seen, end, mut rest) = head(bytes);
    let words: Vec<&str> = seen.head[0].split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else { panic!("not a request line: {words:?}") };
    assert!(!method.is_empty() && method.bytes().all(|byte| byte.is_ascii_graphic()), "{method}");
    assert!(target.starts_with('/') || (target == "*" && method == "OPTIONS"), "{target}");
    assert!(target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'), "{target}");
    let mut fields = seen.head.iter().skip(1).filter_map(|line| line.split_once(": "));
    let hosts: Vec<&str> = fields.clone().filter(|(name, _)| *name == "host").map(|(_, host)| host).collect();
    assert!(
        hosts.len() < 2 && hosts.iter().all(|host| split_authority(host.as_bytes()).is_some()),
        "{hosts:?}"
    );
    assert!(
        fields.all(|(name, value)| name != "expect" && (name != "te" || value == "trailers")),
        "{seen:?}"
    );
    body(&mut seen, &end, &mut rest);
    assert!(rest.is_empty(), "more than one request: {}", bytes.escape_ascii());
    seen
}

/// Reads the one response that these bytes are, to a request for a head alone or for all of it. The end of the
/// connection is the end of a body that has no other.
pub(crate) fn response(bytes: &[u8], is_head: bool) -> Seen {
    let (mut seen, end, mut rest) = head(bytes);
    let status = seen.head[0].split(' ').nth(1).unwrap_or_default();
    assert!(status.len() == 3 && status >= "200", "{status}");
    if !is_head && !matches!(status, "204" | "304") {
        match end {
            End::None => seen.body = std::mem::take(&mut rest).to_vec(),
            _ => body(&mut seen, &end, &mut rest),
        }
    }
    assert!(rest.is_empty(), "more than one response: {}", bytes.escape_ascii());
    seen
}

/// How a request as the gateway understands it is to be read.
pub(crate) fn described(request: &Request) -> Vec<String> {
    let first = format!("{} {} HTTP/1.1", request.method(), request.target());
    let kept = request.headers().iter().filter(|(name, value)| {
        !matches!(name.as_str(), "content-length" | "expect") && !is_hop_by_hop(name, value)
    });
    let fields = kept.map(|(name, value)| shown(name.as_str().as_bytes(), value.as_bytes()));
    sorted(first, fields.collect())
}

/// Lines of a head, sorted behind the first.
pub(super) fn sorted(first: String, mut fields: Vec<String>) -> Vec<String> {
    fields.sort();
    [vec![first], fields].concat()
}

/// A head, how it says that its body ends, and what follows.
fn head(bytes: &[u8]) -> (Seen, End, &[u8]) {
    let text = bytes.escape_ascii().to_string();
    let mut rest = bytes;
    let first = line(&mut rest);
    let (mut fields, mut end) = (Vec::new(), End::None);
    while let field @ [_, ..] = line(&mut rest) {
        let (name, value) = split_field(field);
        match name {
            b"content-length" => {
                let length = std::str::from_utf8(value)
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                let length = length.and_then(|digits| digits.parse().ok());
                let (Some(length), End::None) = (length, &end) else { panic!("{text}") };
                end = End::Length(length);
            }
            b"transfer-encoding" => {
                assert!(value == b"chunked" && matches!(end, End::None), "{text}");
                end = End::Chunked;
            }
            b"connection" | b"keep-alive" | b"upgrade" | b"proxy-connection" => panic!("{text}"),
            _ => {}
        }
        if !matches!(name, b"content-length" | b"transfer-encoding") {
            fields.push(shown(name, value));
        }
    }
    let head = sorted(String::from_utf8_lossy(first).into_owned(), fields);
    (Seen { head, ..Seen::default() }, end, rest)
}

fn body(seen: &mut Seen, end: &End, rest: &mut &[u8]) {
    match end {
        End::None => {}
        End::Length(length) => seen.body = rest.copy_to_bytes(*length).to_vec(),
        End::Chunked => {
            while let Some(size) = chunk_size(line(rest)).filter(|size| *size > 0) {
                seen.body.extend(rest.copy_to_bytes(size));
                assert!(line(rest).is_empty(), "a chunk does not end");
            }
            while let field @ [_, ..] = line(rest) {
                let (name, value) = split_field(field);
                seen.trailers.push(shown(name, value));
            }
        }
    }
}

/// A field as text, from which its bytes can be told.
pub(super) fn shown(name: &[u8], value: &[u8]) -> String {
    let escaped = |byte: &u8| match byte {
        b'\\' => "\\\\".to_owned(),
        b' '..=b'~' => char::from(*byte).to_string(),
        byte => format!("\\x{byte:02x}"),
    };
    let [name, value] = [name, value].map(|part| part.iter().map(escaped).collect::<String>());
    format!("{name}: {value}")
}

fn chunk_size(digits: &[u8]) -> Option<usize> {
    let size = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
    assert!(size.is_some(), "not a chunk's size: {}", digits.escape_ascii());
    size
}

/// The next line, which ends in CRLF and has no other CR or LF.
fn line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else { panic!("no line") };
    let (line, behind) = rest.split_at(end);
    assert!(!line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{}", line.escape_ascii());
    *rest = &behind[2..];
    line
}

fn split_field(field: &[u8]) -> (&[u8], &[u8]) {
    let colon = field.iter().position(|byte| *byte == b':');
    let Some((name, value)) = colon.and_then(|at| field.split_at_checked(at)) else { panic!("no field") };
    let is_name = |byte: &u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
    assert!(!name.is_empty() && name.iter().all(is_name), "{}", field.escape_ascii());
    let value = value.strip_prefix(b": ").unwrap_or_default();
    let is_padded = value.trim_ascii().len() < value.len();
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    assert!(!is_padded && !value.iter().any(is_control), "{}", field.escape_ascii());
    (name, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strict_reader_is_strict() {
        let reads = |bytes: &'static str| std::panic::catch_unwind(|| request(bytes.as_bytes())).is_ok();
        assert!(reads("GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
        assert!(reads("POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nab"));
        assert!(reads("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n"));
        for bad in [
            "GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nx: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nx : a\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\nab",
            "GET /#a HTTP/1.1\r\n\r\n",
        ] {
            assert!(!reads(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_response_is_read_to_its_end_and_no_further() {
        let read = |bytes: &[u8], is_head| std::panic::catch_unwind(|| response(bytes, is_head).body).ok();
        let two = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
        assert_eq!(read(&[&two[..], b"ab"].concat(), false).unwrap(), b"ab");
        assert_eq!((read(two, true).unwrap(), read(two, false)), (Vec::new(), None));
        assert_eq!(read(b"HTTP/1.1 200 OK\r\n\r\nuntil the end", false).unwrap(), b"until the end");
        for bad in
            ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 204 No\r\n\r\nx", "HTTP/1.1 200 OK\r\nx: a\0\r\n\r\n"]
        {
            assert_eq!(read(bad.as_bytes(), false), None, "{bad:?}");
        }
    }
}
