//! `new`: policies that work as they are.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use portcullis_wasm::Language;

use super::Failure;
use crate::say;

/// What the host offers to scripts, in the form that Rhai's language server reads.
const DEFINITIONS: &str = "portcullis.d.rhai";

/// `portcullis new script NAME`
pub(super) fn script(name: &str, dir: &Path) -> Result<ExitCode, Failure> {
    judge(name)?;
    let path = dir.join(format!("{name}.rhai"));
    write(&path, portcullis_rhai::SCAFFOLD.replace("NAME", name).as_bytes())?;
    let tests = path.with_extension("test.yaml");
    write(&tests, portcullis_rhai::SCAFFOLD_TESTS.as_bytes())?;
    let definitions = dir.join(DEFINITIONS);
    // What an editor knows of the host's functions; the same for every script.
    fs::write(&definitions, portcullis_rhai::definitions())
        .map_err(|error| Failure::Run(format!("`{}` can't be written: {error}", definitions.display())))?;
    say::result(&format!(
        "wrote {path}, {tests} with its tests (`portcullis test {tests}`),\nand {DEFINITIONS} for editors that complete Rhai\n\n\
         Use it in a list of `plugins`:\n  - rhai: {{ file: {name}.rhai }}\n\
         or copy it into the policy directory, where it applies by being there:\n  \
         cp {path} policies/50-{name}.rhai",
        path = path.display(),
        tests = tests.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// `portcullis new wasm NAME --lang LANGUAGE`
pub(super) fn wasm(name: &str, language: Language, dir: &Path) -> Result<ExitCode, Failure> {
    judge(name)?;
    let root = dir.join(name);
    if root.exists() {
        return Err(exists(&root));
    }
    for (path, content) in portcullis_wasm::scaffold(name, language).map_err(Failure::Run)? {
        write(&root.join(path), &content)?;
    }
    say::result(&format!(
        "wrote {root}\n\n\
         Build it ({root}/README.md says what that takes):\n  \
         sh {root}/build.sh\n\
         run its tests:\n  \
         portcullis test {root}/{name}.test.yaml\n\
         then copy it into the policy directory, where it applies by being there:\n  \
         cp {root}/{name}.wasm policies/50-{name}.wasm",
        root = root.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// A name becomes a file, a crate and an instance, so it is what all three allow.
fn judge(name: &str) -> Result<(), Failure> {
    let starts = name.starts_with(|first: char| first.is_ascii_lowercase());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if starts && name.chars().all(allowed) && name.len() <= 64 {
        return Ok(());
    }
    let rule = "begin with a lowercase letter, go on with lowercase letters, digits, `-` and `_`, 64 at most";
    Err(Failure::Usage(format!("`{name}` can't be a policy's name: {rule}")))
}

/// Writes a new file and its directories; never over another.
fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let create = || {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        OpenOptions::new().write(true).create_new(true).open(path)?.write_all(content)
    };
    create().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(path),
        _ => Failure::Run(format!("`{}` can't be written: {error}", path.display())),
    })
}

fn exists(path: &Path) -> Failure {
    Failure::Usage(format!(
        "`{}` exists, and is left as it is: choose another name or `--dir`",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged() {
        for good in ["a", "block-path", "x_1"] {
            assert!(judge(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "1a", "../a", "A", "a b", "a/b", "ä", &"a".repeat(65)] {
            assert!(judge(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.rhai"), "mine").unwrap();
        assert!(matches!(script("a", dir.path()), Err(Failure::Usage(_))));
        assert_eq!(fs::read_to_string(dir.path().join("a.rhai")).unwrap(), "mine");
    }
}
