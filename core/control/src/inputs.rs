//! What a generation was built from, by content.
//!
//! Everything a build reads goes through [`Files`], which reads a file once and notes what it was.
//! The notes, [`Inputs`], answer later whether anything on disk differs. A build may take its policy
//! inputs from an [`Accepted`] set instead of the disk; its data inputs are those on disk always.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN, digest};
use bytes::Bytes;
use portcullis_plugin::SourceFile;
use serde::{Deserialize, Serialize};

/// Bytes of a file at most: far more than any module or list needs, far less than memory.
const LARGEST: u64 = 64 << 20;

/// Write permission for everybody (`o+w`).
pub(crate) const WORLD_WRITABLE: u32 = 0o002;

/// A SHA-256 hash.
#[derive(Hash, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Digest([u8; SHA256_OUTPUT_LEN]);

impl Digest {
    /// The hash of some bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::from(digest(&SHA256, bytes))
    }

    /// The hash of several parts as if they were one.
    pub(crate) fn of_all<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        parts.into_iter().for_each(|part| context.update(part));
        Self::from(context.finish())
    }

    /// The hash of several parts, each with its length, so that no two lists of parts look alike.
    pub(crate) fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        Self::from(context.finish())
    }

    /// The bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The first characters, enough to tell versions apart.
    pub(crate) fn short(&self) -> Arc<str> {
        self.to_string().chars().take(12).collect::<String>().into()
    }
}

impl From<aws_lc_rs::digest::Digest> for Digest {
    fn from(digest: aws_lc_rs::digest::Digest) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest.as_ref());
        Digest(bytes)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an input is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It says what the gateway does: configuration, scripts, modules, schemas. All of these apply
    /// together or not at all, and are kept once they were accepted.
    Policy,
    /// It is what the gateway does that with: certificates, keys, secrets, lists. It applies also
    /// while policy inputs are broken, and is never kept: it may be secret.
    Data,
}

/// What was found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    role: Role,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// A file. Whether everybody may write it counts too: that decides whether it is used.
    File { content: Digest, world_writable: bool },
    /// A directory whose entries matter.
    Directory { names: Digest, world_writable: bool },
    /// No file that can be read.
    NoFile,
    /// No directory that can be listed.
    NoDirectory,
}

/// What was found at each path that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inputs(BTreeMap<PathBuf, Found>);

impl Inputs {
    /// What is on disk now at the same paths.
    pub(crate) fn now(&self) -> Inputs {
        Inputs(self.0.iter().map(|(path, found)| (path.clone(), found.again(path))).collect())
    }

    /// The paths at which `other` found something else. Both must be about the same paths.
    pub(crate) fn changed(&self, other: &Inputs) -> Vec<PathBuf> {
        let differs = |path: &PathBuf, found: &Found| other.0.get(path) != Some(found);
        self.0.iter().filter(|(path, found)| differs(path, found)).map(|(path, _)| path.clone()).collect()
    }

    /// The paths that differ on disk now.
    pub(crate) fn drift(&self) -> Vec<PathBuf> {
        self.changed(&self.now())
    }

    /// Those of one role.
    pub(crate) fn of(&self, role: Role) -> Inputs {
        let these = self.0.iter().filter(|(_, found)| found.role == role);
        Inputs(these.map(|(path, found)| (path.clone(), *found)).collect())
    }

    /// These, and of `others` those at further paths.
    pub(crate) fn or(mut self, others: &Inputs) -> Inputs {
        for (path, found) in &others.0 {
            self.0.entry(path.clone()).or_insert(*found);
        }
        self
    }

    /// Every path, and whether it was read as a directory.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&Path, bool)> {
        self.0.iter().map(|(path, found)| {
            (path.as_path(), matches!(found.what, What::Directory { .. } | What::NoDirectory))
        })
    }

    /// How many files there were.
    pub(crate) fn files(&self) -> usize {
        self.0.values().filter(|found| matches!(found.what, What::File { .. })).count()
    }

    /// One hash of all contents; paths count by name.
    pub(crate) fn digest(&self) -> Digest {
        let described = self.0.iter().map(|(path, found)| format!("{}\0{found:?}", path.display()));
        let described: Vec<_> = described.collect();
        Digest::of_parts(described.iter().map(|part| part.as_bytes()))
    }

    /// What serves as data anywhere is data.
    fn note(&mut self, path: &Path, found: Found) {
        let noted = self.0.entry(path.to_owned()).or_insert(found);
        if noted.role == Role::Policy {
            *noted = found;
        }
    }
}

impl Found {
    fn again(&self, path: &Path) -> Found {
        let what = match self.what {
            What::Directory { .. } | What::NoDirectory => What::listed(&list(path)),
            What::File { .. } | What::NoFile => What::read(&read(path)),
        };
        Found { role: self.role, what }
    }
}

impl What {
    fn read<E>(result: &Result<Content, E>) -> What {
        result.as_ref().map_or(What::NoFile, |content| What::File {
            content: content.digest,
            world_writable: content.world_writable,
        })
    }

    fn listed<E>(result: &Result<Listing, E>) -> What {
        result.as_ref().map_or(What::NoDirectory, |listing| What::Directory {
            names: Digest::of_parts(listing.names.iter().map(|name| name.as_bytes())),
            world_writable: listing.world_writable,
        })
    }
}

/// Reads files for one build: each once, so that all of a build sees the same content.
#[derive(Default)]
pub(crate) struct Files {
    /// What policy inputs are read from, in place of the disk.
    accepted: Option<Arc<Accepted>>,
    contents: BTreeMap<PathBuf, Result<Content, String>>,
    listings: BTreeMap<PathBuf, Listing>,
    inputs: Inputs,
}

/// The policy inputs of a build that succeeded.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) files: BTreeMap<PathBuf, Content>,
    pub(crate) directories: BTreeMap<PathBuf, Listing>,
}

/// A file's content and what counts about its permissions.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    digest: Digest,
    pub(crate) world_writable: bool,
}

/// A directory's entries that matter, sorted, and what counts about its permissions. The name of a
/// directory ends in `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub(crate) names: Vec<String>,
    pub(crate) world_writable: bool,
}

impl Files {
    /// Files of which the policy inputs are those of a set, or those on disk.
    pub(crate) fn new(accepted: Option<Arc<Accepted>>) -> Self {
        Files { accepted, ..Files::default() }
    }

    /// Reads a policy input.
    pub(crate) fn read_policy(&mut self, path: &Path) -> Result<Content, String> {
        let result = match &self.accepted {
            Some(accepted) => accepted.file(path),
            None => self.read_disk(path),
        };
        self.inputs.note(path, Found { role: Role::Policy, what: What::read(&result) });
        result
    }

    /// Reads a data input.
    pub(crate) fn read_data(&mut self, path: &Path) -> Result<Content, String> {
        let result = self.read_disk(path);
        self.inputs.note(path, Found { role: Role::Data, what: What::read(&result) });
        result
    }

    /// Lists a directory of policy inputs, without hidden and temporary files.
    pub(crate) fn list(&mut self, path: &Path) -> Result<Listing, String> {
        let result = match &self.accepted {
            Some(accepted) => accepted.directory(path),
            None => list(path).map_err(|error| cannot("list", path, &error)),
        };
        self.inputs.note(path, Found { role: Role::Policy, what: What::listed(&result) });
        if let Ok(listing) = &result {
            self.listings.insert(path.to_owned(), listing.clone());
        }
        result
    }

    /// Whether what is found at a path is what was found earlier, which is read like then.
    pub(crate) fn again(&mut self, path: &Path, earlier: &Found) -> bool {
        let now = match (earlier.what, earlier.role) {
            (What::Directory { .. } | What::NoDirectory, _) => What::listed(&self.list(path)),
            (_, Role::Policy) => What::read(&self.read_policy(path)),
            (_, Role::Data) => What::read(&self.read_data(path)),
        };
        now == earlier.what
    }

    /// Whether everything is as it was found earlier.
    pub(crate) fn all_again(&mut self, earlier: &Inputs) -> bool {
        // Each is to be noted, so that a change of it is noticed.
        earlier.0.iter().fold(true, |same, (path, found)| self.again(path, found) && same)
    }

    /// Files for something that belongs to this build: what this one has read is read alike.
    pub(crate) fn beside(&self) -> Files {
        Files { contents: self.contents.clone(), ..Files::default() }
    }

    /// Takes over what was read beside this build.
    pub(crate) fn absorb(&mut self, beside: Files) {
        for (path, found) in &beside.inputs.0 {
            self.inputs.note(path, *found);
        }
        self.contents.extend(beside.contents);
        self.listings.extend(beside.listings);
    }

    /// Whether policy inputs are not those on disk, but were accepted earlier.
    pub(crate) fn are_accepted(&self) -> bool {
        self.accepted.is_some()
    }

    /// What was found at one path, if it was looked at.
    pub(crate) fn found(&self, path: &Path) -> Option<Found> {
        self.inputs.0.get(path).copied()
    }

    /// Everything that was found so far.
    pub(crate) fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The policy inputs that were read.
    pub(crate) fn accepted(&self) -> Arc<Accepted> {
        if let Some(accepted) = &self.accepted {
            return accepted.clone();
        }
        let is_policy = |path: &Path| self.found(path).is_some_and(|found| found.role == Role::Policy);
        let files = self.contents.iter().filter(|(path, _)| is_policy(path));
        let files = files.filter_map(|(path, result)| Some((path.clone(), result.clone().ok()?)));
        Arc::new(Accepted { files: files.collect(), directories: self.listings.clone() })
    }

    fn read_disk(&mut self, path: &Path) -> Result<Content, String> {
        if let Some(known) = self.contents.get(path) {
            return known.clone();
        }
        let result = read(path).map_err(|error| cannot("read", path, &error));
        self.contents.insert(path.to_owned(), result.clone());
        result
    }
}

impl Accepted {
    fn file(&self, path: &Path) -> Result<Content, String> {
        self.files.get(path).cloned().ok_or_else(|| absent(path))
    }

    fn directory(&self, path: &Path) -> Result<Listing, String> {
        self.directories.get(path).cloned().ok_or_else(|| absent(path))
    }

    /// One hash of it all.
    pub(crate) fn digest(&self) -> Digest {
        let files =
            self.files.iter().map(|(path, file)| format!("{path:?} {} {}", file.digest, file.world_writable));
        let directories = self.directories.iter().map(|(path, listing)| format!("{path:?} {listing:?}"));
        let described: Vec<_> = files.chain(directories).collect();
        Digest::of_parts(described.iter().map(|part| part.as_bytes()))
    }
}

/// Why a build from an accepted set goes no further: it asks for what the set's own build did not
/// read, because a variable in a path has another value now.
fn absent(path: &Path) -> String {
    format!("`{}` is not among the last good inputs", path.display())
}

impl Content {
    /// The content of a file that is not read from its place.
    pub(crate) fn new(bytes: Bytes, world_writable: bool) -> Self {
        Content { digest: Digest::of(&bytes), bytes, world_writable }
    }

    /// The content with its path, as plugins get it.
    pub(crate) fn at(&self, path: &Path) -> SourceFile {
        SourceFile { path: path.to_owned(), bytes: self.bytes.clone() }
    }
}

/// An absolute path with `.` and `..` resolved by name, not by following links: `/etc/x/../y` and
/// `/etc/y` are one input, and a swapped link stays visible.
pub(crate) fn absolute(dir: &Path, path: &Path) -> PathBuf {
    let joined = std::path::absolute(dir.join(path)).unwrap_or_else(|_| dir.join(path));
    let mut clean = PathBuf::new();
    for component in joined.components() {
        match component {
            std::path::Component::ParentDir if !clean.is_symlink() => {
                clean.pop();
            }
            component => clean.push(component),
        }
    }
    clean
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("`{}` does not exist", path.display()),
        io::ErrorKind::PermissionDenied => format!("no permission to {what} `{}`", path.display()),
        _ => {
            let mut message = String::new();
            // Writing to a string cannot fail.
            let _ = write!(message, "cannot {what} `{}`: {error}", path.display());
            message
        }
    }
}

fn read(path: &Path) -> io::Result<Content> {
    // Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let bytes = read_bounded(file, metadata.len())?;
    Ok(Content::new(bytes.into(), metadata.mode() & WORLD_WRITABLE != 0))
}

fn read_bounded(file: File, expected: u64) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::other(format!("it is larger than {} MiB", LARGEST >> 20));
    if expected > LARGEST {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(expected as usize);
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST { Err(too_large()) } else { Ok(bytes) }
}

fn list(path: &Path) -> io::Result<Listing> {
    let world_writable = path.metadata()?.mode() & WORLD_WRITABLE != 0;
    let mut names = Vec::new();
    for entry in path.read_dir()? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_temporary(&name) {
            names.push(if entry.path().is_dir() { name + "/" } else { name });
        }
    }
    names.sort();
    Ok(Listing { names, world_writable })
}

/// Whether a file is hidden, or what an editor or a copy leaves behind while it works.
fn is_temporary(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    name.starts_with(['.', '#', '~'])
        || name.ends_with(['~', '#'])
        || [".tmp", ".swp", ".swx", ".swo"].iter().any(|ending| lower.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn inputs_know_which_files_changed_appeared_and_went() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["same", "edited", "gone"] {
            fs::write(path(name), name).unwrap();
        }
        let mut files = Files::default();
        for name in ["same", "edited", "gone", "new"] {
            let _ = files.read_policy(&path(name));
        }
        assert!(files.inputs().drift().is_empty());
        fs::write(path("edited"), "else").unwrap();
        fs::write(path("same"), "same").unwrap();
        fs::write(path("new"), "").unwrap();
        fs::remove_file(path("gone")).unwrap();
        assert_eq!(files.inputs().drift(), [path("edited"), path("gone"), path("new")]);
    }

    #[test]
    fn a_file_is_read_once_per_build() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "one").unwrap();
        let mut files = Files::default();
        assert_eq!(&files.read_policy(&path).unwrap().bytes[..], b"one");
        fs::write(&path, "two").unwrap();
        assert_eq!(&files.read_policy(&path).unwrap().bytes[..], b"one");
        assert_eq!(files.inputs().drift(), [path]);
    }

    #[test]
    fn a_permission_that_decides_whether_a_file_is_used_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "").unwrap();
        let mut files = Files::default();
        assert!(!files.read_policy(&path).unwrap().world_writable);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(files.inputs().drift(), [path]);
    }

    #[test]
    fn a_listing_leaves_temporary_files_out() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.rhai", "a.rhai", ".a.rhai.swp", "a.rhai~", "#a#", "c.tmp", "..data"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let mut files = Files::default();
        assert_eq!(files.list(dir.path()).unwrap().names, ["a.rhai", "b.rhai"]);
        fs::write(dir.path().join("d.tmp"), "").unwrap();
        assert!(files.inputs().drift().is_empty());
        fs::rename(dir.path().join("d.tmp"), dir.path().join("d.rhai")).unwrap();
        assert_eq!(files.inputs().drift(), [dir.path()]);
    }

    #[test]
    fn a_missing_directory_that_appears_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let policies = dir.path().join("policies");
        let mut files = Files::default();
        assert!(files.list(&policies).err().unwrap().ends_with("does not exist"));
        fs::create_dir(&policies).unwrap();
        assert_eq!(files.inputs().drift(), [policies]);
    }

    #[test]
    fn only_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::default();
        assert!(files.read_policy(dir.path()).err().unwrap().contains("cannot read"));
        assert!(files.read_policy(Path::new("/dev/zero")).err().unwrap().ends_with("it is not a file"));
        let large = dir.path().join("large");
        File::create(&large).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(files.read_policy(&large).err().unwrap().ends_with("it is larger than 64 MiB"));
    }

    #[test]
    fn paths_are_cleaned_by_name_but_not_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("real")).unwrap();
        symlink(root.join("real"), root.join("link")).unwrap();
        assert_eq!(absolute(root, Path::new("real/../a")), root.join("a"));
        assert_eq!(absolute(root, Path::new("./link/./a")), root.join("link/a"));
        assert_eq!(absolute(root, Path::new("link/../a")), root.join("link/../a"));
        assert_eq!(absolute(root, Path::new("/etc/a")), Path::new("/etc/a"));
    }

    #[test]
    fn parts_are_told_apart() {
        let parts = |parts: &[&str]| Digest::of_parts(parts.iter().map(|part| part.as_bytes()));
        assert_ne!(parts(&["ab", "c"]), parts(&["a", "bc"]));
        assert_eq!(parts(&["a"]).to_string().len(), 64);
    }

    #[test]
    fn an_accepted_set_stands_in_for_policy_inputs_and_never_for_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["policy", "data"] {
            fs::write(path(name), "old").unwrap();
        }
        let mut files = Files::default();
        files.read_policy(&path("policy")).ok().unwrap();
        files.read_data(&path("data")).ok().unwrap();
        for name in ["policy", "data", "further"] {
            fs::write(path(name), "new").unwrap();
        }
        let mut files = Files::new(Some(files.accepted()));
        assert_eq!(&files.read_policy(&path("policy")).ok().unwrap().bytes[..], b"old");
        assert_eq!(&files.read_data(&path("data")).ok().unwrap().bytes[..], b"new");
        assert!(
            files.read_policy(&path("further")).err().unwrap().ends_with("not among the last good inputs")
        );
        assert!(files.read_policy(&path("data")).is_err());
        assert_eq!(files.inputs().of(Role::Policy).drift(), [path("further"), path("policy")]);
        assert!(files.inputs().of(Role::Data).drift().is_empty());
    }

    #[test]
    fn what_serves_as_data_anywhere_is_not_among_what_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        fs::write(&key, "secret").unwrap();
        for data_first in [true, false] {
            let mut files = Files::default();
            for turn in [data_first, !data_first] {
                let read = if turn { files.read_data(&key) } else { files.read_policy(&key) };
                read.ok().unwrap();
            }
            assert!(files.accepted().files.is_empty());
        }
    }
}
