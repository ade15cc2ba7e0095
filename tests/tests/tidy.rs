//! What holds for every file of the repository.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::path::{Path, PathBuf};

use portcullis_tests::repository;

/// More lines are where reviewing stops.
const LONGEST: usize = 700;

/// Files that are longer, each with its reason.
const LONGER: &[(&str, &str)] = &[];

/// Directories that are not ours.
const FOREIGN: [&str; 3] = ["target", ".git", ".cache"];

/// Every text file of the repository, with its path from the root.
fn files() -> Vec<(String, String)> {
    let (root, mut found) = (repository(), Vec::new());
    collect(&root, &mut found);
    let texts = found.into_iter().filter_map(|path| {
        let name = path.strip_prefix(&root).ok()?.to_str()?.to_owned();
        Some((name, fs::read_to_string(&path).ok()?))
    });
    let mut files: Vec<_> = texts.collect();
    assert!(files.len() > 100, "only {} files", files.len());
    files.sort();
    files
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && !FOREIGN.iter().any(|foreign| name == *foreign) {
            collect(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

fn sources() -> impl Iterator<Item = (String, String)> {
    files().into_iter().filter(|(name, _)| name.ends_with(".rs"))
}

/// This file names what it looks for, so no rule is about it.
fn others() -> impl Iterator<Item = (String, String)> {
    files().into_iter().filter(|(name, _)| name != "tests/tests/tidy.rs")
}

/// The lines in which `is` finds something, as `file:line: text`.
fn lines(files: impl Iterator<Item = (String, String)>, is: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in files {
        let hits = text.lines().enumerate().filter(|(_, line)| is(line));
        found.extend(hits.map(|(at, line)| format!("{name}:{}: {}", at + 1, line.trim())));
    }
    found
}

#[track_caller]
fn assert_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn no_file_is_too_long_to_review() {
    let long: Vec<_> =
        sources().filter(|(_, text)| text.lines().count() > LONGEST).map(|(name, _)| name).collect();
    let unexplained: Vec<_> =
        long.iter().filter(|name| !LONGER.iter().any(|(known, _)| known == name)).cloned().collect();
    assert_none(&format!("more than {LONGEST} lines, without a reason"), &unexplained);
    let outgrown: Vec<_> =
        LONGER.iter().map(|(name, _)| (*name).to_owned()).filter(|name| !long.contains(name)).collect();
    assert_none("no longer too long", &outgrown);
}

#[test]
fn no_test_is_ignored_or_sleeps() {
    let rust = || others().filter(|(name, _)| name.ends_with(".rs"));
    assert_none("ignored tests", &lines(rust(), |line| line.contains("#[ignore")));
    let elsewhere = rust().filter(|(name, _)| name != "tests/src/wait.rs");
    assert_none("sleeping threads", &lines(elsewhere, |line| line.contains("thread::sleep(")));
}

#[test]
fn plugins_do_not_use_the_door_of_the_core() {
    let plugins = others().filter(|(name, _)| name.starts_with("plugins/") && !name.contains("/tests"));
    assert_none("`.core()` is for the core", &lines(plugins, |line| line.contains(".core()")));
}

#[test]
fn nothing_is_left_for_later_or_left_over() {
    let sources = others().filter(|(name, _)| name.ends_with(".rs") || name.ends_with(".toml"));
    let unfinished = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "dbg!("];
    assert_none("unfinished", &lines(sources, |line| unfinished.iter().any(|word| line.contains(word))));
}

#[test]
fn nothing_tells_of_the_machine_it_was_written_on() {
    let places = ["/home/", "/root/", "/Users/"].map(|place| place.to_owned());
    // Addresses of pages tell of no machine, and examples of a home directory are nobody's.
    let is_told = |word: &str| !word.contains("://") && !word.contains("/home/u");
    let tells = |word: &str| places.iter().any(|place| word.contains(place)) && is_told(word);
    let found = lines(others(), |line| line.split_whitespace().any(tells));
    assert_none("paths of a machine", &found);
}

#[test]
fn every_shipped_file_is_named_by_a_test_or_in_the_docs() {
    let all = files();
    let shipped = all.iter().filter(|(name, _)| name.starts_with("config/") || name.starts_with("scripts/"));
    let naming: Vec<_> = all
        .iter()
        .filter(|(name, _)| name.ends_with(".rs") || name.ends_with(".md"))
        .filter(|(name, _)| !name.ends_with("tidy.rs"))
        .collect();
    for (name, _) in shipped.filter(|(name, _)| !name.ends_with(".gitkeep")) {
        let file = name.rsplit('/').next().unwrap();
        assert!(naming.iter().any(|(_, text)| text.contains(file)), "nothing names {name}");
    }
}

#[test]
fn every_crate_takes_the_workspaces_lints_and_has_no_features_of_its_own() {
    let manifests = files().into_iter().filter(|(name, _)| name.ends_with("Cargo.toml"));
    for (name, manifest) in manifests.filter(|(_, manifest)| !manifest.contains("[workspace]")) {
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} has lints of its own");
        // One build is the one that is tested.
        assert!(!manifest.contains("[features]"), "{name} has features");
    }
}

#[test]
fn scripts_say_what_runs_them_and_stop_at_errors() {
    for (name, text) in files().into_iter().filter(|(_, text)| text.starts_with("#!/")) {
        // Python stops by itself.
        let is_python = text.lines().next().is_some_and(|line| line.contains("python"));
        let strict = text.contains("\nset -eu") || is_python || name.ends_with(".wasm");
        assert!(strict, "{name} goes on after an error");
    }
}
