//! Compiled code kept on disk between starts.
//!
//! Whoever can make the gateway load an artifact runs code in it. So an artifact is sealed with a
//! key that only this installation has, together with its name; what does not verify counts as
//! absent. A directory that others could write to is not used at all.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac::{Context, HMAC_SHA256, Key, Tag};
use aws_lc_rs::rand;
use portcullis_plugin::ArtifactStore;

use crate::inputs::Digest;
use crate::private::{self, belongs, write_new};

/// Bytes of all artifacts together: some hundred compiled modules.
const CAPACITY: u64 = 512 << 20;

const TAG_LEN: usize = 32;
const KEY_LEN: usize = 32;

/// Any permission for group or others.
const OTHERS_ANY: u32 = 0o077;

/// Artifacts of a process that ends soon, such as a run of tests.
#[derive(Default)]
pub(crate) struct Memory(Mutex<HashMap<String, Vec<u8>>>);

impl ArtifactStore for Memory {
    fn load(&self, key: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn store(&self, key: &str, artifact: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), artifact.to_owned());
    }
}

/// A directory of sealed artifacts.
pub(crate) struct Artifacts {
    dir: PathBuf,
    key: Key,
    capacity: u64,
}

impl Artifacts {
    /// The artifacts of a state directory, which is created if it is missing. The error says why
    /// they cannot be kept there.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, String> {
        Self::with_capacity(state_dir, CAPACITY)
    }

    fn with_capacity(state_dir: &Path, capacity: u64) -> Result<Self, String> {
        let (dir, me) = private::subdirectory(state_dir, "artifacts")?;
        let path = state_dir.join("artifact.key");
        let key = key(&path, me).map_err(|error| private::cannot_use(&path, &error))?;
        Ok(Artifacts { dir, key, capacity })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(Digest::of(key.as_bytes()).to_string())
    }

    fn seal(&self, key: &str, artifact: &[u8]) -> Tag {
        let mut context = Context::with_key(&self.key);
        context.update(&(key.len() as u64).to_le_bytes());
        context.update(key.as_bytes());
        context.update(artifact);
        context.sign()
    }

    fn verified(&self, key: &str, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
        let (tag, artifact) = sealed.split_at_checked(TAG_LEN)?;
        verify_slices_are_equal(tag, self.seal(key, artifact).as_ref()).ok()?;
        sealed.drain(..TAG_LEN);
        Some(sealed)
    }

    fn write(&self, key: &str, artifact: &[u8]) -> io::Result<()> {
        if artifact.len() as u64 > self.capacity {
            return Ok(());
        }
        let path = self.path(key);
        write_new(&path, &[self.seal(key, artifact).as_ref(), artifact])?;
        self.evict(&path)
    }

    /// Removes what was longest unused until the rest fits; `kept` stays.
    fn evict(&self, kept: &Path) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in self.dir.read_dir()? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in files.iter().filter(|(_, _, path)| path != kept) {
            if total <= self.capacity {
                break;
            }
            fs::remove_file(path)?;
            total -= len;
        }
        Ok(())
    }
}

impl ArtifactStore for Artifacts {
    fn load(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.path(key);
        let sealed = fs::read(&path).ok()?;
        let Some(artifact) = self.verified(key, sealed) else {
            tracing::warn!(path = %path.display(), "an artifact does not verify and is removed");
            let _ = fs::remove_file(&path);
            return None;
        };
        // Eviction goes by the time of last use. Where it cannot be set, it goes by age.
        let _ = fs::File::options().append(true).open(&path).map(|file| file.set_modified(SystemTime::now()));
        Some(artifact)
    }

    fn store(&self, key: &str, artifact: &[u8]) {
        if let Err(error) = self.write(key, artifact) {
            tracing::warn!(dir = %self.dir.display(), %error, "an artifact cannot be kept");
        }
    }
}

/// The installation's key, made at its first start.
fn key(path: &Path, me: u32) -> io::Result<Key> {
    if !path.exists() {
        let mut fresh = [0; KEY_LEN];
        rand::fill(&mut fresh).map_err(|_| io::Error::other("no random numbers"))?;
        write_new(path, &[&fresh])?;
    }
    belongs(path, &[me])?;
    let metadata = path.symlink_metadata()?;
    if !metadata.is_file() || metadata.mode() & OTHERS_ANY != 0 {
        return Err(io::Error::other("others can read or write it; remove it, a new one is made"));
    }
    let secret = fs::read(path)?;
    if secret.len() != KEY_LEN {
        return Err(io::Error::other("it is not a key; remove it, a new one is made"));
    }
    Ok(Key::new(HMAC_SHA256, &secret))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn an_artifact_outlives_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        Artifacts::open(&state).unwrap().store("wasm-1", b"code");
        let artifacts = Artifacts::open(&state).unwrap();
        assert_eq!(artifacts.load("wasm-1").as_deref(), Some(&b"code"[..]));
        assert!(artifacts.load("wasm-2").is_none());
        assert_eq!(state.join("artifact.key").metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(artifacts.path("wasm-1").metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_flipped_byte_counts_as_absent_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(dir.path()).unwrap();
        for at in [0, TAG_LEN - 1, TAG_LEN, TAG_LEN + 3] {
            artifacts.store("a", b"code");
            let path = artifacts.path("a");
            let mut sealed = fs::read(&path).unwrap();
            sealed[at] ^= 1;
            fs::write(&path, sealed).unwrap();
            assert!(artifacts.load("a").is_none() && !path.exists(), "byte {at}");
        }
        fs::write(artifacts.path("a"), b"short").unwrap();
        assert!(artifacts.load("a").is_none());
    }

    #[test]
    fn an_artifact_is_good_for_its_own_name_and_installation_only() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let artifacts = Artifacts::open(dir.path()).unwrap();
        artifacts.store("a", b"code");
        fs::copy(artifacts.path("a"), artifacts.path("b")).unwrap();
        assert!(artifacts.load("b").is_none() && artifacts.load("a").is_some());
        let foreign = Artifacts::open(other.path()).unwrap();
        fs::copy(artifacts.path("a"), foreign.path("a")).unwrap();
        assert!(foreign.load("a").is_none());
    }

    #[test]
    fn the_oldest_artifacts_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::with_capacity(dir.path(), 400).unwrap();
        let age = |key: &str, seconds| {
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            fs::File::options().append(true).open(artifacts.path(key)).unwrap().set_modified(time).unwrap();
        };
        artifacts.store("old", &[1; 100]);
        age("old", 1);
        artifacts.store("used", &[2; 100]);
        age("used", 0);
        assert!(artifacts.load("used").is_some());
        artifacts.store("new", &[3; 150]);
        assert!(artifacts.load("old").is_none());
        assert!(artifacts.load("used").is_some() && artifacts.load("new").is_some());
        artifacts.store("too large", &[4; 401]);
        assert!(artifacts.load("too large").is_none() && artifacts.load("new").is_some());
    }

    #[test]
    fn a_directory_or_key_that_others_reach_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        drop(Artifacts::open(dir.path()).unwrap());
        mode(dir.path(), 0o777);
        assert!(Artifacts::open(dir.path()).err().unwrap().contains("others can write"));
        mode(dir.path(), 0o755);
        mode(&dir.path().join("artifacts"), 0o775);
        assert!(Artifacts::open(dir.path()).err().unwrap().contains("others can write"));
        mode(&dir.path().join("artifacts"), 0o700);
        mode(&dir.path().join("artifact.key"), 0o644);
        assert!(Artifacts::open(dir.path()).err().unwrap().contains("others can read"));
        mode(&dir.path().join("artifact.key"), 0o600);
        // Only root can give files away.
        if std::os::unix::fs::chown(dir.path().join("artifact.key"), Some(4711), None).is_ok() {
            assert!(Artifacts::open(dir.path()).err().unwrap().contains("belongs to another user"));
        }
    }
}
