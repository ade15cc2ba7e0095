//! Functions on text: encodings, hashes, JSON, regular expressions.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;

use aws_lc_rs::{constant_time, digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use regex::{Regex, RegexBuilder};
use rhai::{Dynamic, ImmutableString};

use super::Api;
use crate::call::{Outcome, charge_operations};
use crate::value;

/// Bytes that encodings and hashes read at the price of one operation.
const BYTES_PER_OPERATION: usize = 16;

/// What a hash costs before its first byte, in operations.
const HASH: usize = 10;

/// Bytes that a regular expression reads at the price of one operation.
const SEARCHED_PER_OPERATION: usize = 4;

/// What compiling a regular expression costs, and what each byte of it adds, in operations.
const COMPILE: (usize, usize) = (500, 25);

/// Bytes of a compiled expression.
const PATTERN_SIZE: usize = 256 * 1024;

/// Compiled expressions that a worker keeps.
const PATTERNS: usize = 64;

pub(super) fn register(api: &mut Api<'_>) {
    encodings(api);
    hashes(api);
    json(api);
    expressions(api);
}

fn encodings(api: &mut Api<'_>) {
    api.function(
        "base64_encode(text: string) -> string",
        "Base64 with padding (RFC 4648, 4).",
        r#"if base64_encode("hi?") != "aGk/" { throw "wrong"; }"#,
        |text: &str| read(text, |text| STANDARD.encode(text)),
    );
    api.function(
        "base64_decode(text: string) -> string | ()",
        "The text that was encoded; `()` if it is not Base64 or not UTF-8.",
        r#"if base64_decode("aGk/") != "hi?" { throw "wrong"; }"#,
        |text: &str| read(text, |text| utf8(STANDARD.decode(text).ok())),
    );
    api.function(
        "base64url_encode(text: string) -> string",
        "Base64 for URLs, without padding (RFC 4648, 5).",
        r#"if base64url_encode("hi?") != "aGk_" { throw "wrong"; }"#,
        |text: &str| read(text, |text| URL_SAFE_NO_PAD.encode(text)),
    );
    api.function(
        "base64url_decode(text: string) -> string | ()",
        "The text that was encoded; `()` if it is not Base64 for URLs or not UTF-8.",
        r#"if base64url_decode("aGk_") != "hi?" { throw "wrong"; }"#,
        |text: &str| read(text, |text| utf8(URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok())),
    );
    api.function(
        "url_encode(text: string) -> string",
        "Percent-encodes everything but letters, digits and `-._~` (RFC 3986, 2).",
        r#"if url_encode("a b/c") != "a%20b%2Fc" { throw "wrong"; }"#,
        |text: &str| read(text, percent_encode),
    );
    api.function(
        "url_decode(text: string) -> string | ()",
        "Undoes percent-encoding; `()` if an escape is broken or the result is not UTF-8.",
        r#"if url_decode("a%20b") != "a b" { throw "wrong"; }"#,
        |text: &str| read(text, |text| utf8(percent_decode(text))),
    );
}

fn hashes(api: &mut Api<'_>) {
    api.function(
        "sha256_hex(text: string) -> string",
        "SHA-256 in hexadecimal digits.",
        r#"if !sha256_hex("").starts_with("e3b0c442") { throw "wrong"; }"#,
        |text: &str| {
            charge_operations(HASH)?;
            read(text, |text| hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref()))
        },
    );
    api.function(
        "hmac_sha256_hex(key: string, text: string) -> string",
        "HMAC with SHA-256 (RFC 2104) in hexadecimal digits.",
        r#"let signature = hmac_sha256_hex("key", "text");"#,
        |key: &str, text: &str| {
            charge_operations(2 * HASH + key.len() / BYTES_PER_OPERATION)?;
            read(text, |text| {
                hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), text.as_bytes()).as_ref())
            })
        },
    );
    api.function(
        "constant_time_eq(a: string | (), b: string | ()) -> bool",
        "Whether two texts are the same, in a time that does not tell where they differ. `()` equals nothing.",
        r#"if !constant_time_eq("a", "a") { throw "wrong"; }"#,
        constant_time_eq,
    );
}

fn json(api: &mut Api<'_>) {
    api.function(
        "json_parse(text: string) -> map | array | string | int | float | bool | ()",
        "Reads JSON (RFC 8259).",
        r#"if json_parse(`{"a":[1]}`).a[0] != 1 { throw "wrong"; }"#,
        value::parse,
    );
    api.function(
        "json_stringify(value) -> string",
        "Writes JSON.",
        r##"if json_stringify(#{ a: [1, ()] }) != `{"a":[1,null]}` { throw "wrong"; }"##,
        |value: Dynamic| value::stringify(&value),
    );
}

fn expressions(api: &mut Api<'_>) {
    api.function(
        "regex_is_match(pattern: string, text: string) -> bool",
        "Whether a regular expression matches anywhere in a text; in linear time.",
        r#"if !regex_is_match("^/v[0-9]+/", "/v2/x") { throw "wrong"; }"#,
        |pattern: &str, text: &str| search(pattern, text, |regex| Ok(regex.is_match(text))),
    );
    api.function(
        "regex_find(pattern: string, text: string) -> string | ()",
        "The first match, or its first group if the expression has one; `()` if there is none.",
        r#"if regex_find("v([0-9]+)", "/v2/x") != "2" { throw "wrong"; }"#,
        |pattern: &str, text: &str| search(pattern, text, |regex| Ok(find(regex, text))),
    );
    api.function(
        "regex_replace(pattern: string, text: string, replacement: string) -> string",
        "Replaces every match; `$1` or `${name}` stand for groups.",
        r#"if regex_replace("[0-9]", "a1b2", "-") != "a-b-" { throw "wrong"; }"#,
        |pattern: &str, text: &str, replacement: &str| {
            search(pattern, text, |regex| replace(regex, text, replacement))
        },
    );
}

fn read<T: Into<Dynamic>>(text: &str, work: impl FnOnce(&str) -> T) -> Outcome<Dynamic> {
    charge_operations(text.len() / BYTES_PER_OPERATION)?;
    Ok(work(text).into())
}

fn utf8(bytes: Option<Vec<u8>>) -> Dynamic {
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).map_or(Dynamic::UNIT, Dynamic::from)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|nibble| char::from_digit(nibble.into(), 16))
        .collect()
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push('%');
            encoded.push_str(&hex(&[byte]).to_ascii_uppercase());
        }
    }
    encoded
}

fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let [high, low, tail @ ..] = rest else { return None };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
        rest = tail;
    }
    Some(bytes)
}

fn constant_time_eq(left: Dynamic, right: Dynamic) -> Outcome<bool> {
    if left.is_unit() || right.is_unit() {
        return Ok(false);
    }
    let (left, right) = (value::text(left)?, value::text(right)?);
    charge_operations(left.len().max(right.len()) / BYTES_PER_OPERATION)?;
    Ok(constant_time::verify_slices_are_equal(left.as_bytes(), right.as_bytes()).is_ok())
}

fn find(regex: &Regex, text: &str) -> Dynamic {
    let found = match regex.captures_len() {
        1 => regex.find(text),
        _ => regex.captures(text).and_then(|groups| groups.get(1).or_else(|| groups.get(0))),
    };
    found.map_or(Dynamic::UNIT, |found| found.as_str().into())
}

/// Replaces match by match, so that the result is paid for while it grows.
fn replace(regex: &Regex, text: &str, replacement: &str) -> Outcome<ImmutableString> {
    let mut result = String::new();
    let mut copied = 0;
    for groups in regex.captures_iter(text) {
        let Some(whole) = groups.get(0) else { continue };
        let before = result.len();
        result.push_str(text.get(copied..whole.start()).unwrap_or_default());
        groups.expand(replacement, &mut result);
        copied = whole.end();
        charge_operations(2 + (result.len() - before) / BYTES_PER_OPERATION)?;
    }
    result.push_str(text.get(copied..).unwrap_or_default());
    Ok(result.into())
}

thread_local!(static COMPILED: RefCell<HashMap<Box<str>, Regex>> = RefCell::default());

/// Searches with a compiled expression. Each worker keeps its own, so that nothing is locked.
fn search<T>(pattern: &str, text: &str, work: impl FnOnce(&Regex) -> Outcome<T>) -> Outcome<T> {
    charge_operations(1 + text.len() / SEARCHED_PER_OPERATION)?;
    COMPILED.with(|compiled| {
        let mut compiled = compiled.try_borrow_mut().map_err(|error| error.to_string())?;
        if !compiled.contains_key(pattern) {
            let regex = compile(pattern)?;
            // Patterns made from requests must not pile up; the few that a policy has come back at once.
            if compiled.len() >= PATTERNS {
                compiled.clear();
            }
            compiled.insert(pattern.into(), regex);
        }
        compiled.get(pattern).map_or_else(|| Err("no expression".into()), work)
    })
}

fn compile(pattern: &str) -> Outcome<Regex> {
    charge_operations(COMPILE.0 + COMPILE.1 * pattern.len())?;
    let built = RegexBuilder::new(pattern).size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE).build();
    built.map_err(|error| {
        let reason = match error {
            regex::Error::CompiledTooBig(_) => Cow::Borrowed("it is too large"),
            error => error.to_string().lines().last().unwrap_or_default().to_owned().into(),
        };
        format!("`{pattern}` is not a regular expression: {reason}").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::metered;
    use crate::limits::Limits;

    #[test]
    fn what_cannot_be_decoded_is_unit() {
        assert!(utf8(percent_decode("%zz")).is_unit() && utf8(percent_decode("%f")).is_unit());
        assert!(utf8(percent_decode("%ff")).is_unit());
        assert_eq!(percent_decode("%C3%A9").unwrap(), "é".as_bytes());
    }

    #[test]
    fn replacing_is_paid_for_by_what_it_makes() {
        let regex = Regex::new("a").unwrap();
        let limits = Limits { operations: 1000, ..Limits::default() };
        metered(&limits, || {
            assert_eq!(replace(&regex, "banana", "$0$0").unwrap(), "baanaanaa");
            let error = replace(&regex, &"a".repeat(400), &"x".repeat(1000)).unwrap_err();
            assert!(matches!(*error, rhai::EvalAltResult::ErrorTerminated(..)));
        });
    }

    #[test]
    fn expressions_made_from_requests_do_not_pile_up() {
        let limits = Limits { operations: 10_000_000, ..Limits::default() };
        metered(&limits, || {
            for number in 0..3 * PATTERNS {
                assert!(
                    search(&format!("^{number}$"), &number.to_string(), |regex| Ok(regex.is_match("1")))
                        .is_ok()
                );
                assert!(COMPILED.with(|compiled| compiled.borrow().len()) <= PATTERNS);
            }
        });
    }

    #[test]
    fn compiling_an_expression_costs_and_has_a_bound() {
        let limits = Limits { operations: 2000, ..Limits::default() };
        metered(&limits, || {
            assert!(search("^a{2}$", "aa", |regex| Ok(regex.is_match("aa"))).unwrap());
            let error = search(r"\pL{200}", "aa", |_| Ok(())).unwrap_err().to_string();
            assert!(error.contains("too large"), "{error}");
            assert!(search("[", "aa", |_| Ok(())).unwrap_err().to_string().contains("regular expression"));
            assert!(search("another", "aa", |_| Ok(())).is_err(), "the budget is used up");
        });
    }
}
