//! Keys of callers, as `portcullis key new` makes them.

use std::fs;

use tempfile::TempDir;

use crate::run_in;

/// What it makes under a secret, with these options: the key, and its line.
pub fn key(secret: &str, options: &[&str]) -> (String, String) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("secret"), format!("{secret}\n")).unwrap();
    let made = run_in(dir.path(), &[&["key", "new", "--hash-key", "file:secret"], options].concat());
    assert!(made.status.success(), "{}", made.err);
    let (key, line) = made.out.trim_end().split_once('\n').unwrap();
    assert!(!line.contains(key) && !made.err.contains(key), "{}", made.err);
    (key.to_owned(), line.to_owned())
}
