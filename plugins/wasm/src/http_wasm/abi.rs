//! The words of the ABI (<https://http-wasm.io/http-handler-abi/>).

use wasmparser::{Parser, Payload};

use crate::Way;

/// Where the host functions are imported from.
pub(super) const MODULE: &str = "http_handler";

/// What a module exports.
pub(super) const HANDLE_REQUEST: &str = "handle_request";
pub(super) const HANDLE_RESPONSE: &str = "handle_response";

/// What a guest may enable.
pub(super) const BUFFER_REQUEST: u32 = 1;
pub(super) const BUFFER_RESPONSE: u32 = 2;
pub(super) const TRAILERS: u32 = 4;
pub(super) const FEATURES: u32 = BUFFER_REQUEST | BUFFER_RESPONSE | TRAILERS;

/// A part of a message that has headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderKind {
    Head(Way),
    Trailers(Way),
}

impl HeaderKind {
    pub(super) fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => HeaderKind::Head(Way::Request),
            1 => HeaderKind::Head(Way::Response),
            2 => HeaderKind::Trailers(Way::Request),
            3 => HeaderKind::Trailers(Way::Response),
            _ => return None,
        })
    }
}

/// Whose body it is.
pub(super) fn body_kind(number: u32) -> Option<Way> {
    match number {
        0 => Some(Way::Request),
        1 => Some(Way::Response),
        _ => None,
    }
}

/// Two halves of a result, of which the second is a length.
pub(super) fn pair(high: u32, length: usize) -> u64 {
    u64::from(high) << 32 | length as u64 & 0xffff_ffff
}

/// Values as guests read them, each with a zero behind it, and how many they are.
pub(super) fn write_values<'a>(values: impl Iterator<Item = &'a [u8]>) -> (u32, Vec<u8>) {
    let (mut count, mut written) = (0, Vec::new());
    for value in values {
        count += 1;
        written.extend_from_slice(value);
        written.push(0);
    }
    (count, written)
}

/// Whether a core module was made for http-wasm: it imports what only that has, or exports what that calls.
pub(crate) fn is_handler(module: &[u8]) -> bool {
    let (mut imports, mut exports) = (false, 0);
    for payload in Parser::new(0).parse_all(module).map_while(Result::ok) {
        match payload {
            Payload::ImportSection(section) => {
                imports |= section.into_imports().flatten().any(|import| import.module == MODULE);
            }
            Payload::ExportSection(section) => {
                let known = |name: &str| name == HANDLE_REQUEST || name == HANDLE_RESPONSE;
                exports += section.into_iter().flatten().filter(|export| known(export.name)).count();
            }
            _ => {}
        }
    }
    imports || exports == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_told_by_what_it_imports_or_exports() {
        let is = |body: &str| is_handler(&wat::parse_str(format!("(module {body})")).unwrap());
        assert!(is(r#"(import "http_handler" "log" (func (param i32 i32 i32)))"#));
        let request = r#"(func (export "handle_request") (result i64) (i64.const 1))"#;
        let response = r#"(func (export "handle_response") (param i32 i32))"#;
        assert!(is(&format!("{request} {response}")));
        assert!(!is(request) && !is("") && !is_handler(b"\0asm\x01\0\0\0rubbish"));
    }

    #[test]
    fn values_end_with_a_zero_each() {
        assert_eq!(write_values([&b"a=b"[..], b"", b"c"].into_iter()), (3, b"a=b\0\0c\0".to_vec()));
        assert_eq!(write_values(std::iter::empty()), (0, Vec::new()));
        assert_eq!(pair(2, 28), 2 << 32 | 28);
    }
}
