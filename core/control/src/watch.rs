//! Notices that something a generation was built from may have changed.
//!
//! Files are replaced by renaming, directories by swapping a link, and both can be far from the path
//! that the configuration names. So what is watched are directories: the one that holds a file, the
//! one that holds each link on the way to it, and where the way ends because something does not
//! exist, the one in which it would appear. Whether anything really changed is not decided here;
//! contents are compared afterwards.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, PollWatcher, RecommendedWatcher, RecursiveMode};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// So long nothing must change before it is looked at: longer than an editor or `cp` pauses.
const QUIET: Duration = Duration::from_millis(50);

/// So long a constant change can put off the look.
const PATIENCE: Duration = Duration::from_millis(500);

/// Between two looks where the system cannot tell of changes.
const POLL: Duration = Duration::from_secs(2);

/// Links followed on the way to one file; the kernel's own limit (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// Watches the inputs of a generation.
pub struct Watch {
    watcher: Option<Box<dyn notify::Watcher + Send>>,
    polls: bool,
    /// The directories under watch and which directory each was: one that was replaced needs a new
    /// watch under the same name.
    watched: BTreeMap<PathBuf, Option<(u64, u64)>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    points: Mutex<Points>,
    changed: Notify,
}

/// Where changes matter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Points {
    /// Directories to watch.
    dirs: BTreeSet<PathBuf>,
    /// Entries of those that matter.
    entries: BTreeSet<PathBuf>,
    /// Directories of which every entry matters.
    whole: BTreeSet<PathBuf>,
}

impl Watch {
    /// A watch of nothing yet.
    #[expect(clippy::new_without_default, reason = "it starts threads")]
    pub fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let (watcher, polls) = watcher(&shared);
        Watch { watcher, polls, watched: BTreeMap::new(), shared }
    }

    /// Watches these paths, and no others any more; the flag says that a path is a directory of which
    /// every entry matters.
    pub fn watch<'p>(&mut self, paths: impl Iterator<Item = (&'p Path, bool)>) {
        let mut points = Points::default();
        paths.for_each(|(path, whole)| points.add(path, whole));
        let wanted: BTreeMap<_, _> = points.dirs.iter().map(|dir| (dir.clone(), identity(dir))).collect();
        *self.shared.points.lock().unwrap_or_else(PoisonError::into_inner) = points;
        if wanted == self.watched {
            return;
        }
        if let Err(error) = self.apply(&wanted) {
            if self.polls {
                tracing::warn!(%error, "some changes on disk will not be noticed");
            } else {
                tracing::warn!(%error, seconds = POLL.as_secs(), "watching files by polling");
                (self.watcher, self.polls) = (poll(&self.shared), true);
                self.watched.clear();
                let _ = self.apply(&wanted);
            }
        }
        // What changed before the new watches were there is found by looking once more.
        self.shared.changed.notify_one();
    }

    fn apply(&mut self, wanted: &BTreeMap<PathBuf, Option<(u64, u64)>>) -> notify::Result<()> {
        let Some(watcher) = &mut self.watcher else { return Ok(()) };
        for (dir, _) in self.watched.iter().filter(|(dir, was)| wanted.get(*dir) != Some(*was)) {
            // A directory that is gone is not watched any more either.
            let _ = watcher.unwatch(dir);
        }
        let mut result = Ok(());
        for (dir, _) in wanted.iter().filter(|(dir, is)| self.watched.get(*dir) != Some(*is)) {
            match watcher.watch(dir, RecursiveMode::NonRecursive) {
                Err(error) if identity(dir).is_some() => result = Err(error),
                _ => {}
            }
        }
        self.watched.clone_from(wanted);
        result
    }

    /// Waits until something may have changed. May be dropped at any time.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Waits until changes pause.
    pub async fn settle(&self) {
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            let quiet = (Instant::now() + QUIET).min(patience);
            if timeout_at(quiet, self.changed()).await.is_err() {
                return;
            }
        }
    }
}

fn watcher(shared: &Arc<Shared>) -> (Option<Box<dyn notify::Watcher + Send>>, bool) {
    match notify::recommended_watcher(handler(shared)) {
        Ok(watcher) => {
            let watcher: RecommendedWatcher = watcher;
            (Some(Box::new(watcher)), false)
        }
        Err(error) => {
            tracing::warn!(%error, seconds = POLL.as_secs(), "watching files by polling");
            (poll(shared), true)
        }
    }
}

fn poll(shared: &Arc<Shared>) -> Option<Box<dyn notify::Watcher + Send>> {
    let config = notify::Config::default().with_poll_interval(POLL);
    match PollWatcher::new(handler(shared), config) {
        Ok(watcher) => Some(Box::new(watcher)),
        Err(error) => {
            tracing::error!(%error, "files cannot be watched; reload by signal or admin interface");
            None
        }
    }
}

fn handler(shared: &Arc<Shared>) -> impl FnMut(notify::Result<notify::Event>) + Send + 'static {
    let shared = shared.clone();
    move |event| {
        let matters = match event {
            Ok(event) => {
                let points = shared.points.lock().unwrap_or_else(PoisonError::into_inner);
                event.need_rescan() || (changes(event.kind) && points.concern(&event.paths))
            }
            // Something was missed; better to look in vain.
            Err(_) => true,
        };
        if matters {
            shared.changed.notify_one();
        }
    }
}

/// Reading is no change. Without this, comparing contents would set off the next comparison.
fn changes(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

impl Points {
    fn concern(&self, paths: &[PathBuf]) -> bool {
        paths.is_empty()
            || paths.iter().any(|path| {
                self.entries.contains(path)
                    || self.dirs.contains(path)
                    || path.parent().is_some_and(|parent| self.whole.contains(parent))
            })
    }

    /// Adds what leads to `path`, link by link.
    fn add(&mut self, path: &Path, whole: bool) {
        let mut at = PathBuf::new();
        let mut todo = steps(path);
        let mut links = 0;
        while let Some(step) = todo.pop_front() {
            let next = match step {
                Step::Root => PathBuf::from("/"),
                Step::Up => at.parent().unwrap_or(&at).to_owned(),
                Step::Down(name) => {
                    let next = at.join(name);
                    match next.symlink_metadata() {
                        Ok(metadata) if metadata.is_symlink() && links < MAX_LINKS => {
                            links += 1;
                            self.entry(&at, &next);
                            let target = next.read_link().unwrap_or_default();
                            steps(&target).into_iter().rev().for_each(|step| todo.push_front(step));
                            continue;
                        }
                        Ok(_) if !todo.is_empty() => {}
                        // The end of the way, or where it would go on.
                        Ok(_) => self.entry(&at, &next),
                        Err(_) => return self.entry(&at, &next),
                    }
                    next
                }
            };
            at = next;
        }
        if whole {
            self.dirs.insert(at.clone());
            self.whole.insert(at);
        }
    }

    fn entry(&mut self, dir: &Path, entry: &Path) {
        self.dirs.insert(dir.to_owned());
        self.entries.insert(entry.to_owned());
    }
}

enum Step {
    Root,
    Up,
    Down(OsString),
}

fn steps(path: &Path) -> VecDeque<Step> {
    let step = |component| match component {
        Component::RootDir => Some(Step::Root),
        Component::ParentDir => Some(Step::Up),
        Component::Normal(name) => Some(Step::Down(name.to_owned())),
        Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(step).collect()
}

fn identity(dir: &Path) -> Option<(u64, u64)> {
    dir.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A temporary directory under its real name.
    fn tempdir() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    fn points(path: &Path, whole: bool) -> Points {
        let mut points = Points::default();
        points.add(path, whole);
        points
    }

    fn set(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
        paths.iter().cloned().collect()
    }

    #[test]
    fn a_file_is_watched_through_its_directory() {
        let (_dir, root) = tempdir();
        fs::write(root.join("a"), "").unwrap();
        let found = points(&root.join("a"), false);
        assert_eq!((found.dirs, found.entries), (set(std::slice::from_ref(&root)), set(&[root.join("a")])));
    }

    #[test]
    fn every_link_on_the_way_is_watched() {
        // The layout of a Kubernetes ConfigMap.
        let (_dir, root) = tempdir();
        fs::create_dir(root.join("..1")).unwrap();
        fs::write(root.join("..1/a"), "").unwrap();
        symlink("..1", root.join("..data")).unwrap();
        symlink("..data/a", root.join("a")).unwrap();
        let found = points(&root.join("a"), false);
        assert_eq!(found.dirs, set(&[root.clone(), root.join("..1")]));
        assert_eq!(found.entries, set(&[root.join("a"), root.join("..data"), root.join("..1/a")]));
    }

    #[test]
    fn what_is_missing_is_watched_for_where_it_would_appear() {
        let (_dir, root) = tempdir();
        let found = points(&root.join("policies/sub"), true);
        assert_eq!(
            (found.dirs, found.entries),
            (set(std::slice::from_ref(&root)), set(&[root.join("policies")]))
        );
        assert!(found.whole.is_empty());
    }

    #[test]
    fn of_a_directory_every_entry_matters_of_others_only_the_named() {
        let (_dir, root) = tempdir();
        fs::create_dir(root.join("policies")).unwrap();
        let found = points(&root.join("policies"), true);
        assert!(found.concern(&[root.join("policies/10-new.rhai")]));
        assert!(found.concern(&[root.join("policies")]));
        assert!(!found.concern(&[root.join("unrelated.log")]));
    }

    #[test]
    fn a_ring_of_links_ends() {
        let (_dir, root) = tempdir();
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        assert_eq!(points(&root.join("a"), false).entries, set(&[root.join("a"), root.join("b")]));
    }

    #[test]
    fn reading_is_no_change() {
        assert!(!changes(EventKind::Access(AccessKind::Open(AccessMode::Any))));
        assert!(!changes(EventKind::Access(AccessKind::Close(AccessMode::Read))));
        assert!(changes(EventKind::Access(AccessKind::Close(AccessMode::Write))));
        assert!(changes(EventKind::Any));
    }

    #[tokio::test]
    async fn polling_notices_too() {
        let (_dir, root) = tempdir();
        let mut watch = Watch::new();
        (watch.watcher, watch.polls) = (poll(&watch.shared), true);
        watch.watch([(root.join("a").as_path(), false)].into_iter());
        watch.settle().await;
        fs::write(root.join("a"), "").unwrap();
        tokio::time::timeout(POLL * 10, watch.changed()).await.unwrap();
    }
}
