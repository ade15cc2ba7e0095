//! Whose code runs: files that must be signed, and files that anybody could replace.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use minisign_verify::{Error, PublicKey, Signature};

use crate::inputs::WORLD_WRITABLE;

/// What a signature's file is called: the signed file's whole name, and this.
pub(crate) const SIGNATURE: &str = "minisig";

/// In a directory with this bit everybody can only replace files of his own.
const STICKY: u32 = 0o1000;

/// The keys of which one must have signed code, and which code.
pub(crate) struct Trust {
    keys: Vec<PublicKey>,
    /// Kinds of plugins; none are all.
    kinds: Option<Vec<String>>,
}

impl Trust {
    /// The trust that a configuration wants; errors with the setting's path.
    pub(crate) fn new(
        config: &portcullis_config::Trust,
        runs: &dyn Fn(&str) -> bool,
    ) -> Result<Self, Vec<(String, String)>> {
        let mut errors = Vec::new();
        if config.keys.is_empty() {
            errors.push(("trust.keys".to_owned(), "at least one key is needed".to_owned()));
        }
        let mut keys = Vec::new();
        for (at, key) in config.keys.iter().enumerate() {
            match PublicKey::from_base64(key) {
                Ok(key) => keys.push(key),
                Err(_) => errors.push((
                    format!("trust.keys[{at}]"),
                    "this is no public key of minisign: the second line of its file is one".to_owned(),
                )),
            }
        }
        for (at, kind) in config.kinds.iter().flatten().enumerate() {
            if !runs(kind) {
                let message = format!("`{kind}` is no kind of plugin that runs files");
                errors.push((format!("trust.kinds[{at}]"), message));
            }
        }
        if errors.is_empty() { Ok(Trust { keys, kinds: config.kinds.clone() }) } else { Err(errors) }
    }

    /// Whether files that plugins of this kind run must be signed.
    pub(crate) fn wants(&self, kind: &str) -> bool {
        self.kinds.as_ref().is_none_or(|kinds| kinds.iter().any(|wanted| wanted == kind))
    }

    /// Whether one of the keys has signed a file. The signature is an input like the file itself.
    pub(crate) fn verify(
        &self,
        path: &Path,
        content: &[u8],
        read: impl FnOnce(&Path) -> Result<Bytes, String>,
    ) -> Result<(), String> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".");
        beside.push(SIGNATURE);
        let beside = PathBuf::from(beside);
        let found = read(&beside).map_err(|error| {
            format!("`{}` must be signed, and its signature can't be read: {error}", path.display())
        })?;
        let refused = |why: &str| format!("`{}` {why}", beside.display());
        let text = std::str::from_utf8(&found).map_err(|_| refused("is no signature of minisign"))?;
        let signature = Signature::decode(text).map_err(|_| refused("is no signature of minisign"))?;
        let verdicts = self.keys.iter().map(|key| key.verify(content, &signature, true));
        let mut why = "is by a key that is not trusted";
        for verdict in verdicts {
            match verdict {
                Ok(()) => return Ok(()),
                Err(Error::UnexpectedKeyId) => {}
                Err(_) => why = "does not match: the file is not as it was signed",
            }
        }
        Err(refused(why))
    }
}

/// Why code at a path is not run although its own permissions are tight: a directory above it in which everybody could
/// put something else in its place.
pub(crate) fn replaceable(path: &Path) -> Option<String> {
    // By the path that is configured and by the one that links lead to.
    let real = path.canonicalize().ok();
    let above = path.ancestors().skip(1).chain(real.iter().flat_map(|real| real.ancestors().skip(1)));
    let open = above.into_iter().find(|dir| {
        dir.metadata().is_ok_and(|found| found.mode() & WORLD_WRITABLE != 0 && found.mode() & STICKY == 0)
    })?;
    Some(format!(
        "everybody can replace `{}`, because `{1}` can be written by everybody, so it is not run; `chmod o-w {1}`",
        path.display(),
        open.display()
    ))
}
