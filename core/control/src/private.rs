//! Files of the gateway's own, which nobody else may change.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;

/// The user that could do everything anyway.
pub(crate) const ROOT: u32 = 0;

/// Write permission for group or others.
pub(crate) const OTHERS_WRITE: u32 = 0o022;

/// A directory in a state directory, both created if they are missing, and the user that files are
/// written as. Neither may be one that others could write to.
pub(crate) fn subdirectory(state_dir: &Path, name: &str) -> Result<(PathBuf, u32), String> {
    let dir = state_dir.join(name);
    for dir in [state_dir, &dir] {
        make(dir)?;
    }
    let me = owner_of_new_files(&dir).map_err(|error| cannot_use(&dir, &error))?;
    for dir in [state_dir, &dir] {
        belongs(dir, &[me, ROOT]).map_err(|error| cannot_use(dir, &error))?;
    }
    Ok((dir, me))
}

/// Whoever owns a file can give themselves any permission on it.
pub(crate) fn belongs(path: &Path, owners: &[u32]) -> io::Result<()> {
    if owners.contains(&path.symlink_metadata()?.uid()) {
        return Ok(());
    }
    Err(io::Error::other("it belongs to another user; remove it, a new one is made"))
}

/// Writes a file that only its owner can read, so that it appears whole or not at all.
pub(crate) fn write_new(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    write(path, parts, |_| Ok(()))
}

/// The same, and it is whole after a loss of power too.
pub(crate) fn write_durably(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    write(path, parts, File::sync_all)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

pub(crate) fn cannot_use(path: &Path, error: &io::Error) -> String {
    format!("cannot use `{}`: {error}", path.display())
}

/// Makes sure of a directory that nobody else can write to.
fn make(dir: &Path) -> Result<(), String> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| format!("cannot create `{}`: {error}", dir.display()))?;
    let metadata = dir.metadata().map_err(|error| format!("cannot look at `{}`: {error}", dir.display()))?;
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Err(format!("others can write to `{}`; `chmod go-w` it", dir.display()));
    }
    Ok(())
}

/// The user that this process writes files as.
fn owner_of_new_files(dir: &Path) -> io::Result<u32> {
    let probe = dir.join(format!("{}.probe", std::process::id()));
    write_new(&probe, &[])?;
    let owner = probe.symlink_metadata()?.uid();
    fs::remove_file(&probe)?;
    Ok(owner)
}

fn write(path: &Path, parts: &[&[u8]], finish: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| io::Error::other("no random numbers"))?;
    let temporary = path.with_extension(format!("{:016x}.tmp", u64::from_ne_bytes(random)));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        for part in parts {
            file.write_all(part)?;
        }
        finish(&file)?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}
