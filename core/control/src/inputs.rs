//! What a generation was built from, by content.
//!
//! Everything a build reads goes through [`Files`], which reads a file once and notes what it was.
//! The notes, [`Inputs`], answer later whether anything on disk differs.

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

/// Bytes of a file at most: far more than any module or list needs, far less than memory.
const LARGEST: u64 = 64 << 20;

/// Write permission for everybody (`o+w`).
const WORLD_WRITABLE: u32 = 0o002;

/// A SHA-256 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Digest([u8; SHA256_OUTPUT_LEN]);

impl Digest {
    /// The hash of some bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::from(digest(&SHA256, bytes))
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

/// What was found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
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

    /// Every path, and whether it was read as a directory.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (&Path, bool)> {
        self.0.iter().map(|(path, found)| {
            (path.as_path(), matches!(found, Found::Directory { .. } | Found::NoDirectory))
        })
    }

    /// One hash of all contents; paths count by name.
    pub(crate) fn digest(&self) -> Digest {
        let described = self.0.iter().map(|(path, found)| format!("{}\0{found:?}", path.display()));
        let described: Vec<_> = described.collect();
        Digest::of_parts(described.iter().map(|part| part.as_bytes()))
    }
}

impl Found {
    fn read<E>(result: &Result<Content, E>) -> Found {
        result.as_ref().map_or(Found::NoFile, |content| Found::File {
            content: content.digest,
            world_writable: content.world_writable,
        })
    }

    fn listed<E>(result: &Result<Listing, E>) -> Found {
        result.as_ref().map_or(Found::NoDirectory, |listing| Found::Directory {
            names: Digest::of_parts(listing.names.iter().map(|name| name.as_bytes())),
            world_writable: listing.world_writable,
        })
    }

    fn again(&self, path: &Path) -> Found {
        match self {
            Found::Directory { .. } | Found::NoDirectory => Found::listed(&list(path)),
            Found::File { .. } | Found::NoFile => Found::read(&read(path)),
        }
    }
}

/// Reads files for one build: each once, so that all of a build sees the same content.
#[derive(Default)]
pub(crate) struct Files {
    contents: BTreeMap<PathBuf, Result<Content, String>>,
    inputs: Inputs,
}

/// A file's content and what counts about its permissions.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    digest: Digest,
    pub(crate) world_writable: bool,
}

/// A directory's entries that matter, sorted, and what counts about its permissions.
pub(crate) struct Listing {
    pub(crate) names: Vec<String>,
    pub(crate) world_writable: bool,
}

impl Files {
    /// Reads a file.
    pub(crate) fn read(&mut self, path: &Path) -> Result<Content, String> {
        if let Some(known) = self.contents.get(path) {
            return known.clone();
        }
        let result = read(path).map_err(|error| cannot("read", path, &error));
        self.inputs.0.insert(path.to_owned(), Found::read(&result));
        self.contents.insert(path.to_owned(), result.clone());
        result
    }

    /// Lists a directory, without hidden and temporary files.
    pub(crate) fn list(&mut self, path: &Path) -> Result<Listing, String> {
        let result = list(path).map_err(|error| cannot("list", path, &error));
        self.inputs.0.insert(path.to_owned(), Found::listed(&result));
        result
    }

    /// What was found at one path, if it was looked at.
    pub(crate) fn found(&self, path: &Path) -> Option<Found> {
        self.inputs.0.get(path).copied()
    }

    /// Everything that was found so far.
    pub(crate) fn inputs(&self) -> &Inputs {
        &self.inputs
    }
}

impl Content {
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
    let world_writable = metadata.mode() & WORLD_WRITABLE != 0;
    Ok(Content { digest: Digest::of(&bytes), bytes: bytes.into(), world_writable })
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
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !is_temporary(&name) {
            names.push(name);
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
            let _ = files.read(&path(name));
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
        assert_eq!(&files.read(&path).unwrap().bytes[..], b"one");
        fs::write(&path, "two").unwrap();
        assert_eq!(&files.read(&path).unwrap().bytes[..], b"one");
        assert_eq!(files.inputs().drift(), [path]);
    }

    #[test]
    fn a_permission_that_decides_whether_a_file_is_used_is_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "").unwrap();
        let mut files = Files::default();
        assert!(!files.read(&path).unwrap().world_writable);
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
        assert!(files.read(dir.path()).err().unwrap().contains("cannot read"));
        assert!(files.read(Path::new("/dev/zero")).err().unwrap().ends_with("it is not a file"));
        let large = dir.path().join("large");
        File::create(&large).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(files.read(&large).err().unwrap().ends_with("it is larger than 64 MiB"));
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
}
