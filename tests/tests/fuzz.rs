//! The inputs that are kept for the fuzz targets of `tests/fuzz`, whoever found them, hold, and so do some thousands that
//! are made up; those for HTTP are in `core/proxy/src/http1/fuzz.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;
use std::fs;

use portcullis_tests::here;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

#[path = "../fuzz/properties.rs"]
mod properties;

fn replay(target: &str, property: fn(&[u8])) {
    let files: Vec<_> = fs::read_dir(here().join("fuzz/seeds").join(target)).unwrap().collect();
    assert!(files.len() > 3, "{} inputs for {target}", files.len());
    files.into_iter().for_each(|file| property(&fs::read(file.unwrap().path()).unwrap()));
}

#[test]
fn what_fuzzers_found_holds() {
    replay("path", properties::path);
    replay("config", properties::config);
    replay("proxy_protocol", properties::proxy_protocol);
}

/// Parts of paths of which servers make different things.
const PATHS: &[&str] = &[
    "/", "//", ".", "..", "./", "../", "/.", "/..", "%2e", "%2E", "%2f", "%5c", "\\", ";", ";x=1", "%3b",
    "%", "%4", "%41", "%7e", "%00", "%c3%a9", "%25", "%2", "a", "A", "~", "-", "\u{e9}", " ", "?", "#", "\"",
    "<", "{", "|", "\0",
];

/// Parts of headers of the PROXY protocol, of both versions.
const PROXIED: &[&[u8]] = &[
    b"PROXY ",
    b"TCP4",
    b"TCP6",
    b"UNKNOWN",
    b" ",
    b"192.0.2.1",
    b"0.0.0.0",
    b"2001:db8::1",
    b"::ffff:192.0.2.1",
    b"::",
    b"0",
    b"00",
    b"80",
    b"65535",
    b"65536",
    b"-1",
    b"\r\n",
    b"\n",
    b"\r",
    b"GET / HTTP/1.1\r\n",
    b"\0",
];

/// What version 2 begins with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Lines of configurations, right ones and others.
const LINES: &[&str] = &[
    "listeners:",
    "upstreams:",
    "routes:",
    "plugins: [stamp]",
    "limits: { body: 1MiB }",
    "limits: { body: ${NAME} }",
    "workers: 0",
    "workers: 99999999999999999999",
    "drain: 1s",
    "drain: -1s",
    "a: {{",
    "b: }",
    "? [c]",
    "- d",
    "e: &x 1",
    "f: *x",
    "<<: *x",
    "g: !!str 1",
    "--- ",
    "...",
    "${NAME}",
    "${",
    "${OTHER}",
    "\t",
    "\u{feff}",
    "# remark",
    "'",
    "\"",
    "  - { bind: 127.0.0.1:0 }",
    "  - bind: nowhere",
    "  api:",
    "    endpoints: [\"http://127.0.0.1:1\"]",
    "    endpoints: []",
    "    timeouts: { connect: 0s }",
    "    retries: { on: [600] }",
    "  - upstream: api",
    "    match: { path: '/{a}' }",
    "    match: { prefix: /../ }",
    "    redirect: { to: '{b' }",
    "    respond: { status: 1 }",
];

/// More cases if `PROPTEST_CASES` says so.
fn cases() -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.max(2000), failure_persistence: None, ..config }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn paths_have_one_normal_form(parts in vec(select(PATHS), 0..12)) {
        properties::path(format!("/{}", parts.concat()).as_bytes());
    }

    #[test]
    fn lines_of_the_proxy_protocol_mean_the_same_however_they_arrive(parts in vec(select(PROXIED), 0..12)) {
        properties::proxy_protocol(&[&b"PROXY "[..], &parts.concat()].concat());
    }

    #[test]
    fn addresses_of_the_proxy_protocol_mean_the_same_in_each_version(
        v6 in any::<bool>(),
        ends in any::<[[u16; 9]; 2]>(),
    ) {
        let line = ends.map(|[a, b, c, d, e, f, g, h, port]| {
            let address = std::net::Ipv6Addr::new(a, b, c, d, e, f, g, h);
            (if v6 { address.to_string() } else { format!("{}.{}.{}.{}", a >> 8, b >> 8, c >> 8, d >> 8) }, port)
        });
        let [(source, from), (destination, to)] = line;
        let family = if v6 { 6 } else { 4 };
        let line = format!("PROXY TCP{family} {source} {destination} {from} {to}\r\n");
        prop_assert!(portcullis_proxy::proxy_protocol::parse(line.as_bytes()).is_ok_and(|read| read.is_some()));
        properties::proxy_protocol(line.as_bytes());
    }

    #[test]
    fn binary_headers_of_the_proxy_protocol_mean_the_same_however_they_arrive(
        command in select(&[0x20, 0x21, 0x22, 0x11, 0xff_u8][..]),
        family in select(&[0x00, 0x11, 0x12, 0x21, 0x31, 0xff_u8][..]),
        length in select(&[0, 11, 12, 36, 40, 216, 4080, 4081, 65535_u16][..]),
        rest in vec(any::<u8>(), 0..260),
    ) {
        properties::proxy_protocol(&[SIGNATURE, &[command, family], &length.to_be_bytes(), &rest].concat());
    }

    #[test]
    fn configurations_are_read_or_what_is_wrong_is_shown(lines in vec(select(LINES), 0..12)) {
        properties::config(lines.join("\n").as_bytes());
    }
}

#[test]
fn every_target_has_inputs() {
    let names = |dir: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(here().join("fuzz").join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("fuzz_targets"), names("seeds"));
}
