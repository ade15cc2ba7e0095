//! Which lines of scripts ran while their tests did.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// How often each line of each script ran; see [`BuildHost::coverage`](crate::BuildHost::coverage). A script that is
/// built more than once is counted on.
#[derive(Debug, Default)]
pub struct Coverage(Mutex<BTreeMap<PathBuf, FileLines>>);

type FileLines = BTreeMap<u32, Arc<AtomicU64>>;

impl Coverage {
    /// The counter of a line that can run. Lines count from 1.
    pub fn line(&self, file: &Path, line: u32) -> Arc<AtomicU64> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.entry(file.to_owned()).or_default().entry(line).or_default().clone()
    }

    /// Every file, and how often each of its lines ran that can.
    pub fn files(&self) -> BTreeMap<PathBuf, BTreeMap<u32, u64>> {
        let files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts =
            |lines: &FileLines| lines.iter().map(|(line, count)| (*line, count.load(Relaxed))).collect();
        files.iter().map(|(file, lines)| (file.clone(), counts(lines))).collect()
    }
}
