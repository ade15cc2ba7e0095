#![no_main]

#[allow(dead_code, reason = "each target uses its own")]
#[path = "../properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::path(bytes));
