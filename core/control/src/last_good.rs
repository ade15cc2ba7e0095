//! The last good policy inputs, kept on disk for a start that finds broken ones.
//!
//! One file holds a whole set, so that it is replaced at once and never mixed with another:
//!
//! ```text
//! SHA-256 of all that follows, in hexadecimal
//! {"format":1, ..., "files":{"/etc/portcullis/portcullis.yaml":{"bytes":812, ...}, ...}, ...}
//! the contents of these files, one after the other
//! ```
//!
//! It holds no data input, hence no key and no secret. What does not add up is refused as a whole.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::inputs::{Accepted, Content, Digest, Listing, absolute};
use crate::private::{self, OTHERS_WRITE, ROOT};
use crate::status::now;

/// Bytes of a set at most: some dozen large modules. It is written whole at every change.
const LARGEST: u64 = 256 << 20;

/// Sets in a state directory that several gateways share: one for each configuration's path.
const SETS: usize = 16;

/// The form of the file.
const FORMAT: u32 = 1;

/// In the state directory.
const DIRECTORY: &str = "last-good";

/// Where the last good inputs of a configuration are kept.
#[derive(Debug, Clone)]
pub struct LastGood {
    state_dir: PathBuf,
    config: PathBuf,
}

/// A set as it was kept.
pub(crate) struct Kept {
    /// When it was accepted, seconds since 1970.
    pub(crate) at: u64,
    pub(crate) accepted: Arc<Accepted>,
}

#[derive(Serialize, Deserialize)]
struct Index {
    format: u32,
    config: PathBuf,
    at: u64,
    files: BTreeMap<PathBuf, Entry>,
    directories: BTreeMap<PathBuf, Listing>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    bytes: usize,
    world_writable: bool,
}

impl LastGood {
    /// The last good inputs of the configuration at this path, in this state directory.
    pub fn new(state_dir: &Path, config: &Path) -> Self {
        LastGood { state_dir: state_dir.to_owned(), config: absolute(Path::new(""), config) }
    }

    /// The text of the configuration among them. The error says why there is none.
    pub fn config(&self) -> Result<String, String> {
        let kept = self.load()?;
        let content = kept.accepted.files.get(&self.config);
        let source = content.map(|content| content.at(&self.config));
        let source = source.ok_or_else(|| self.damaged("it holds no configuration"))?;
        source.text().map(str::to_owned)
    }

    /// The set that was kept. The error says why there is none.
    pub(crate) fn load(&self) -> Result<Kept, String> {
        let path = self.path();
        if path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let why = "this configuration has not run yet with this state directory";
            return Err(format!("no good inputs are kept at `{}`: {why}", path.display()));
        }
        let (_, me) = private::subdirectory(&self.state_dir, DIRECTORY)?;
        let bytes = read(&path, me).map_err(|error| private::cannot_use(&path, &error))?;
        let (index, contents) = self.verified(bytes.into()).map_err(|why| self.damaged(why))?;
        let files = files(&index, contents).ok_or_else(|| self.damaged("its contents are incomplete"))?;
        let accepted = Accepted { files, directories: index.directories };
        Ok(Kept { at: index.at, accepted: Arc::new(accepted) })
    }

    /// Keeps this set in place of the one before.
    pub(crate) fn save(&self, accepted: &Accepted) -> Result<(), String> {
        let (dir, _) = private::subdirectory(&self.state_dir, DIRECTORY)?;
        let files = accepted.files.iter();
        let entry =
            |content: &Content| Entry { bytes: content.bytes.len(), world_writable: content.world_writable };
        let index = Index {
            format: FORMAT,
            config: self.config.clone(),
            at: now(),
            files: files.map(|(path, content)| (path.clone(), entry(content))).collect(),
            directories: accepted.directories.clone(),
        };
        let mut index = serde_json::to_vec(&index).map_err(|error| error.to_string())?;
        index.push(b'\n');
        let contents = accepted.files.values().map(|content| &content.bytes[..]);
        let parts: Vec<&[u8]> = [&index[..]].into_iter().chain(contents).collect();
        if parts.iter().map(|part| part.len() as u64).sum::<u64>() > LARGEST {
            return Err(format!("they are larger than {} MiB", LARGEST >> 20));
        }
        let digest = format!("{}\n", Digest::of_all(parts.iter().copied()));
        let parts: Vec<&[u8]> = [digest.as_bytes()].into_iter().chain(parts).collect();
        let path = self.path();
        private::write_durably(&path, &parts)
            .and_then(|()| make_room(&dir, &path))
            .map_err(|error| private::cannot_use(&path, &error))
    }

    fn path(&self) -> PathBuf {
        let name = Digest::of(self.config.as_os_str().as_encoded_bytes()).short();
        self.state_dir.join(DIRECTORY).join(&*name)
    }

    /// The index of an undamaged file, and the contents that it is about.
    fn verified(&self, bytes: Bytes) -> Result<(Index, Bytes), &'static str> {
        let end_of_line = |bytes: &Bytes| bytes.iter().position(|byte| *byte == b'\n');
        let end = end_of_line(&bytes).ok_or("it is cut off")?;
        let (digest, rest) = (bytes.slice(..end), bytes.slice(end + 1..));
        if Digest::of(&rest).to_string().as_bytes() != digest {
            return Err("its contents are not what was written");
        }
        let end = end_of_line(&rest).ok_or("it has no index")?;
        let index: Index = serde_json::from_slice(&rest[..end]).map_err(|_| "its index cannot be read")?;
        if index.format != FORMAT {
            return Err("another version of the gateway wrote it");
        }
        if index.config != self.config {
            return Err("it is of another configuration");
        }
        Ok((index, rest.slice(end + 1..)))
    }

    fn damaged(&self, why: &str) -> String {
        format!("the good inputs kept at `{}` cannot be used: {why}", self.path().display())
    }
}

fn read(path: &Path, me: u32) -> io::Result<Vec<u8>> {
    let metadata = path.symlink_metadata()?;
    private::belongs(path, &[me, ROOT])?;
    if !metadata.is_file() || metadata.mode() & OTHERS_WRITE != 0 {
        return Err(io::Error::other("others can write it"));
    }
    fs::read(path)
}

/// The contents cut into files; none if they are too few or too many.
fn files(index: &Index, mut contents: Bytes) -> Option<BTreeMap<PathBuf, Content>> {
    let mut files = BTreeMap::new();
    for (path, entry) in &index.files {
        if entry.bytes > contents.len() {
            return None;
        }
        let content = Content::new(contents.split_to(entry.bytes), entry.world_writable);
        files.insert(path.clone(), content);
    }
    contents.is_empty().then_some(files)
}

/// Removes the oldest sets, and what writing left behind when the process was killed, until there is
/// room; `kept` stays.
fn make_room(dir: &Path, kept: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in dir.read_dir()? {
        let entry = entry?;
        if entry.path() != kept {
            let modified = entry.metadata()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            others.push((modified, entry.path()));
        }
    }
    others.sort();
    let surplus = (others.len() + 1).saturating_sub(SETS);
    others.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::inputs::Files;
    use crate::testing::Site;

    use super::*;

    /// A set of a configuration, a script, and a directory with a subdirectory.
    fn accepted(site: &Site) -> Arc<Accepted> {
        site.write("policies/a.script", "\0\n\u{ff}");
        site.write("policies/lib/b.script", "");
        let mut files = Files::default();
        for path in ["portcullis.yaml", "policies/a.script", "policies/lib/b.script"] {
            files.read_policy(&site.path(path)).ok().unwrap();
        }
        files.list(&site.path("policies")).ok().unwrap();
        files.accepted()
    }

    #[test]
    fn what_is_kept_is_what_was_accepted() {
        let site = Site::new("routes: []\n");
        let accepted = accepted(&site);
        let last_good = LastGood::new(&site.path("state"), &site.config());
        assert!(last_good.load().err().unwrap().contains("no good inputs are kept"));
        last_good.save(&accepted).unwrap();
        let kept = last_good.load().ok().unwrap();
        assert!(kept.accepted == accepted && kept.at <= now());
        assert!(last_good.config().unwrap().ends_with("routes: []\n"));
        assert_eq!(kept.accepted.directories[&site.path("policies")].names, ["a.script", "lib/"]);
    }

    #[test]
    fn a_flipped_bit_or_a_missing_byte_is_found_wherever_it_is() {
        let site = Site::new("");
        let last_good = LastGood::new(&site.path("state"), &site.config());
        last_good.save(&accepted(&site)).unwrap();
        let good = fs::read(last_good.path()).unwrap();
        for at in 0..good.len() {
            let mut damaged = good.clone();
            damaged[at] ^= 1;
            fs::write(last_good.path(), &damaged).unwrap();
            assert!(last_good.load().is_err(), "byte {at}");
            fs::write(last_good.path(), &good[..at]).unwrap();
            assert!(last_good.load().is_err(), "cut at {at}");
        }
        fs::write(last_good.path(), &good).unwrap();
        assert!(last_good.load().is_ok());
    }

    #[test]
    fn a_set_is_good_for_its_own_configuration_only() {
        let site = Site::new("");
        let last_good = LastGood::new(&site.path("state"), &site.config());
        let other = LastGood::new(&site.path("state"), &site.path("other.yaml"));
        last_good.save(&accepted(&site)).unwrap();
        fs::copy(last_good.path(), other.path()).unwrap();
        assert!(other.load().err().unwrap().ends_with("it is of another configuration"));
    }

    #[test]
    fn the_oldest_sets_make_room() {
        let site = Site::new("");
        let accepted = accepted(&site);
        let of = |number: usize| LastGood::new(&site.path("state"), &site.path(&format!("{number}.yaml")));
        for number in 0..SETS + 3 {
            of(number).save(&accepted).unwrap();
            let file = fs::File::options().append(true).open(of(number).path()).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64)).unwrap();
        }
        let there: Vec<usize> = (0..SETS + 3).filter(|number| of(*number).path().exists()).collect();
        assert_eq!(there, (3..SETS + 3).collect::<Vec<_>>());
    }

    #[test]
    fn a_set_that_is_too_large_is_not_kept_and_the_one_before_stays() {
        let site = Site::new("");
        let last_good = LastGood::new(&site.path("state"), &site.config());
        last_good.save(&accepted(&site)).unwrap();
        let before = fs::read(last_good.path()).unwrap();
        let large = Content::new(vec![0; 1 << 20].into(), false);
        let files = (0..=256).map(|number| (site.path(&number.to_string()), large.clone()));
        let too_large = Accepted { files: files.collect(), directories: BTreeMap::new() };
        assert_eq!(last_good.save(&too_large).unwrap_err(), "they are larger than 256 MiB");
        assert_eq!(fs::read(last_good.path()).unwrap(), before);
    }
}
