//! The words of the ABI: statuses, kinds of maps and buffers, and how maps are written.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use wasmparser::{ExternalKind, Parser, Payload};

pub(super) use crate::Way;

/// What every module exports under the name of the version that it was made for.
const MARK: &str = "proxy_abi_version_";

/// The versions that are known.
pub(super) const VERSIONS: [&str; 3] = ["0.1.0", "0.2.0", "0.2.1"];

/// What a host function answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Status {
    Ok = 0,
    NotFound = 1,
    BadArgument = 2,
    ParseFailure = 4,
    InvalidMemoryAccess = 6,
    Empty = 7,
    CasMismatch = 8,
    InternalFailure = 10,
    Unimplemented = 12,
}

/// The maps that a guest can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Map {
    RequestHeaders,
    RequestTrailers,
    ResponseHeaders,
    ResponseTrailers,
    /// Of the answer that is being told: an HTTP call's, or a gRPC call's metadata.
    CallHeaders,
    CallTrailers,
}

impl Map {
    pub(super) fn of(number: u32) -> Result<Self, Status> {
        Ok(match number {
            0 => Map::RequestHeaders,
            1 => Map::RequestTrailers,
            2 => Map::ResponseHeaders,
            3 => Map::ResponseTrailers,
            4 | 6 => Map::CallHeaders,
            5 | 7 => Map::CallTrailers,
            _ => return Err(Status::BadArgument),
        })
    }
}

/// The version of the ABI that a core module says it was made for, such as `0.2.1`.
pub(crate) fn version(module: &[u8]) -> Option<String> {
    let mut payloads = Parser::new(0).parse_all(module).map_while(Result::ok);
    payloads.find_map(|payload| {
        let Payload::ExportSection(exports) = payload else { return None };
        let mut functions = exports.into_iter().flatten().filter(|export| export.kind == ExternalKind::Func);
        functions.find_map(|export| Some(export.name.strip_prefix(MARK)?.replace('_', ".")))
    })
}

/// A map as guests read it: the number of pairs, the lengths of each name and value, then all of them,
/// each with a zero behind it.
pub(super) fn write_pairs<'a>(pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let (mut written, mut parts, mut count) = (vec![0; 4], Vec::new(), 0_u32);
    for (name, value) in pairs {
        count += 1;
        for part in [name, value] {
            written.extend_from_slice(&(part.len() as u32).to_le_bytes());
            parts.extend_from_slice(part);
            parts.push(0);
        }
    }
    if count == 0 {
        return Vec::new();
    }
    if let Some(head) = written.first_chunk_mut() {
        *head = count.to_le_bytes();
    }
    written.append(&mut parts);
    written
}

/// The pairs of a map that a guest wrote; none if the bytes are no such thing.
pub(super) fn read_pairs(written: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    // An empty map may be nothing at all, a zero, or no pairs.
    if written.iter().all(|byte| *byte == 0) && written.len() <= 4 {
        return Some(Vec::new());
    }
    let number = |at: usize| {
        let bytes = written.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let count = number(0)?;
    let mut at = count.checked_mul(8)?.checked_add(4)?;
    // Otherwise room would be made for as many as a guest can claim.
    if at > written.len() {
        return None;
    }
    let mut part = |length: usize| {
        let part = written.get(at..at.checked_add(length)?)?;
        at = at.checked_add(length)?.checked_add(1)?;
        Some(part)
    };
    (0..count).map(|pair| Some((part(number(4 + 8 * pair)?)?, part(number(8 + 8 * pair)?)?))).collect()
}

/// A header as a guest writes it.
pub(super) fn header(name: &[u8], value: &[u8]) -> Result<(HeaderName, HeaderValue), Status> {
    let name = HeaderName::from_bytes(name).map_err(|_| Status::BadArgument)?;
    let value = HeaderValue::from_maybe_shared(Bytes::copy_from_slice(value));
    Ok((name, value.map_err(|_| Status::BadArgument)?))
}

/// The headers among pairs; a name that begins with a colon is none.
pub(super) fn headers(pairs: &[(&[u8], &[u8])]) -> Result<HeaderMap, Status> {
    let plain = pairs.iter().filter(|(name, _)| !name.starts_with(b":"));
    plain.map(|(name, value)| header(name, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read_as_they_are_written() {
        let pairs: [(&[u8], &[u8]); 2] = [(b"a", b"1"), (b"b", b"22")];
        let written = write_pairs(pairs.into_iter());
        assert_eq!(written, b"\x02\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0a\x001\0b\x0022\0");
        assert_eq!(read_pairs(&written).unwrap(), pairs);
        assert_eq!(write_pairs(std::iter::empty()), b"");
        for empty in [&b""[..], b"\0", b"\0\0\0\0"] {
            assert_eq!(read_pairs(empty), Some(Vec::new()));
        }
    }

    #[test]
    fn lies_about_lengths_are_no_pairs() {
        let written = write_pairs([(&b"name"[..], &b"value"[..])].into_iter());
        for cut in 1..written.len() - 1 {
            assert_eq!(read_pairs(&written[..cut]), None, "{cut}");
        }
        for at in 0..12 {
            let mut lie = written.clone();
            lie[at] = 0xff;
            assert_eq!(read_pairs(&lie), None, "{at}");
        }
    }

    #[test]
    fn the_version_is_what_the_exports_say() {
        let module = |export: &str| wat::parse_str(format!("(module (func (export \"{export}\")))")).unwrap();
        assert_eq!(version(&module("proxy_abi_version_0_2_1")).as_deref(), Some("0.2.1"));
        assert_eq!(version(&module("proxy_abi_version_9_9")).as_deref(), Some("9.9"));
        assert_eq!(version(&module("on_request")), None);
        assert_eq!(version(b"\0asm\x01\0\0\0rubbish"), None);
    }
}
