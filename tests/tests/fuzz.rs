//! The inputs that are kept for the fuzz targets of `tests/fuzz`, whoever found them, hold; those for HTTP/1 are replayed
//! in `core/proxy/src/http1/fuzz.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;
use std::fs;

use portcullis_tests::here;

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

#[test]
fn every_target_has_inputs() {
    let names = |dir: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(here().join("fuzz").join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("fuzz_targets"), names("seeds"));
}
