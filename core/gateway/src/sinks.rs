//! Where log lines go, without ever holding up traffic.
//!
//! Each target has a thread that writes and a bounded buffer before it. A line that finds the buffer full, or
//! that the target does not take, is dropped and counted; whoever logs goes on at once.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_plugin::{LogSink, LogSinks};
use rustix::fs::{OFlags, fcntl_setfl};

/// Bytes that wait for a slow target at most: a second or two of a busy gateway.
const BYTES: usize = 8 << 20;
/// After this time a thread writes again to a target of exchanges, what has come meanwhile together: a busy log wakes it
/// rarely.
const GATHERING: Duration = Duration::from_millis(10);
/// Permissions of a log, and of what holds more of clients than a log does.
const LOG: u32 = 0o640;
const PRIVATE: u32 = 0o600;
/// What a buffer may keep for the next lines.
const KEPT: usize = 256 << 10;

/// All targets in use, each opened once.
pub(crate) struct Sinks {
    /// What relative paths are relative to.
    dir: PathBuf,
    known: Mutex<BTreeMap<String, Known>>,
}

/// A target; its counter outlives its sink, so that a reload that lets go of it resets nothing.
#[derive(Default)]
struct Known {
    sink: Weak<Sink>,
    dropped: Arc<AtomicU64>,
}

/// A buffer and the thread behind it, which ends with the buffer.
pub(crate) struct Sink(Arc<State>);

/// What both sides of the buffer see.
struct State {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    written: Condvar,
    dropped: Arc<AtomicU64>,
    reopen: AtomicBool,
    /// Bytes that a file and the one before it may have; 0 if others see to that.
    most: AtomicU64,
    gathering: Duration,
}

/// What is not written yet. Locked by those who log for as long as it takes to copy a line.
#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    count: u64,
    /// Bytes that were taken, and are being written.
    taken: usize,
    /// Somebody waits for it, or nothing more comes.
    is_urgent: bool,
    is_closed: bool,
}

/// What the thread writes to.
enum Output {
    File { path: PathBuf, mode: u32, file: File },
    Other(Box<dyn Write + Send>),
}

impl Sinks {
    /// No target yet; relative paths are relative to `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Sinks { dir: dir.to_owned(), known: Mutex::default() }
    }

    /// A sink of its own for the execution log, on standard error.
    pub(crate) fn execution(&self) -> io::Result<Arc<Sink>> {
        self.named("execution", Duration::ZERO, || Ok(Output::Other(Box::new(io::stderr()))))
    }

    /// Makes every file open anew before its next line: after a rotation.
    pub(crate) fn reopen(&self) {
        for sink in self.live() {
            sink.0.reopen.store(true, Ordering::Release);
        }
    }

    /// Waits until everything queued is written, at most for `patience` in all.
    pub(crate) fn flush(&self, patience: Duration) {
        let end = Instant::now() + patience;
        for sink in self.live() {
            sink.flush(end);
        }
    }

    /// Lines dropped so far, by target.
    pub(crate) fn dropped(&self) -> Vec<(String, u64)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(name, known)| (name.clone(), known.dropped.load(Ordering::Relaxed))).collect()
    }

    fn live(&self) -> Vec<Arc<Sink>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().filter_map(|known| known.sink.upgrade()).collect()
    }

    fn named(
        &self,
        name: &str,
        gathering: Duration,
        open: impl FnOnce() -> io::Result<Output>,
    ) -> io::Result<Arc<Sink>> {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(name.to_owned()).or_default();
        if let Some(sink) = known.sink.upgrade() {
            return Ok(sink);
        }
        let sink = Arc::new(Sink::start(name, open()?, known.dropped.clone(), gathering)?);
        known.sink = Arc::downgrade(&sink);
        Ok(sink)
    }
}

impl LogSinks for Sinks {
    fn open(&self, target: &str) -> Result<Arc<dyn LogSink>, String> {
        let opened = match target {
            "stdout" => self.named(target, GATHERING, || Ok(Output::Other(Box::new(io::stdout())))),
            "stderr" => self.named(target, GATHERING, || Ok(Output::Other(Box::new(io::stderr())))),
            path => {
                let path = self.dir.join(path);
                self.named(&path.to_string_lossy(), GATHERING, || {
                    open_file(&path, LOG).map(|file| Output::File { path: path.clone(), mode: LOG, file })
                })
            }
        };
        opened.map(|sink| sink as _).map_err(|error| format!("`{target}` can't be opened for logs: {error}"))
    }

    fn open_bounded(&self, path: &str, most: u64) -> Result<Arc<dyn LogSink>, String> {
        let path = self.dir.join(path);
        let opened = self.named(&path.to_string_lossy(), GATHERING, || {
            open_file(&path, PRIVATE).map(|file| Output::File { path: path.clone(), mode: PRIVATE, file })
        });
        let sink = opened.map_err(|error| format!("`{}` can't be written: {error}", path.display()))?;
        sink.0.most.store(most, Ordering::Relaxed);
        Ok(sink)
    }
}

impl Sink {
    fn start(name: &str, output: Output, dropped: Arc<AtomicU64>, gathering: Duration) -> io::Result<Self> {
        let state = Arc::new(State {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            written: Condvar::new(),
            dropped,
            reopen: AtomicBool::new(false),
            most: AtomicU64::new(0),
            gathering,
        });
        let writing = state.clone();
        thread::Builder::new().name(format!("log {name}")).spawn(move || writing.write_to(output))?;
        Ok(Sink(state))
    }

    fn flush(&self, end: Instant) {
        let mut waiting = self.0.lock();
        while waiting.taken + waiting.lines.len() > 0 {
            waiting.is_urgent = true;
            self.0.filled.notify_one();
            let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return;
            };
            let waited = self.0.written.wait_timeout(waiting, left);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl LogSink for Sink {
    fn write(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.taken + waiting.lines.len() + line.len() > BYTES {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let is_first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        waiting.count += 1;
        drop(waiting);
        if is_first {
            self.0.filled.notify_one();
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        (waiting.is_closed, waiting.is_urgent) = (true, true);
        self.0.filled.notify_one();
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes until nothing more can.
    fn write_to(&self, mut output: Output) {
        let mut lines = Vec::new();
        while let Some(count) = self.next(&mut lines) {
            if self.reopen.swap(false, Ordering::AcqRel) {
                output.reopen();
            }
            let most = self.most.load(Ordering::Relaxed);
            if most > 0 {
                output.make_room(lines.len() as u64, most);
            }
            if output.write(&lines).is_err() {
                self.dropped.fetch_add(count, Ordering::Relaxed);
            }
            lines.clear();
            lines.shrink_to(KEPT);
            self.rest();
        }
    }

    /// Takes the lines that wait, and says how many they are; none when there will be no more.
    fn next(&self, lines: &mut Vec<u8>) -> Option<u64> {
        let is_idle = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.is_closed;
        let waiting = self.filled.wait_while(self.lock(), is_idle);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        if waiting.lines.is_empty() {
            return None;
        }
        std::mem::swap(&mut waiting.lines, lines);
        (waiting.taken, waiting.is_urgent) = (lines.len(), waiting.is_closed);
        Some(std::mem::take(&mut waiting.count))
    }

    /// What was taken is written: lets others gather, unless somebody waits for them.
    fn rest(&self) {
        let mut waiting = self.lock();
        waiting.taken = 0;
        self.written.notify_all();
        let may_rest = |waiting: &mut Waiting| !waiting.is_urgent;
        drop(self.filled.wait_timeout_while(waiting, self.gathering, may_rest));
    }
}

impl Output {
    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        match self {
            Output::File { file, .. } => file.write_all(batch),
            Output::Other(writer) => writer.write_all(batch).and_then(|()| writer.flush()),
        }
    }

    /// Begins a new file where the next lines would make this one longer than its half of `most`.
    fn make_room(&mut self, next: u64, most: u64) {
        let Output::File { path, file, .. } = self else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if length == 0 || length + next <= most / 2 {
            return;
        }
        let mut before = path.clone().into_os_string();
        before.push(".1");
        match std::fs::rename(&*path, before) {
            Ok(()) => self.reopen(),
            Err(error) => {
                tracing::warn!(target: "portcullis::log", path = %path.display(), %error, "no room for more");
                // What can't be moved away begins anew: it is bounded in any case.
                let _ = file.set_len(0);
            }
        }
    }

    /// A file that can't be opened anew is written to as before: better a rotated file than none.
    fn reopen(&mut self) {
        if let Output::File { path, mode, file } = self {
            match open_file(path, *mode) {
                Ok(fresh) => *file = fresh,
                Err(error) => {
                    tracing::warn!(target: "portcullis::log", path = %path.display(), %error, "log file not reopened");
                }
            }
        }
    }
}

/// Opens for appending: a pipe without a reader is an error rather than a wait, one with a slow reader is waited for.
fn open_file(path: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(mode)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn lines_arrive_in_order_and_survive_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let sinks = Sinks::new(dir.path());
        let sink = sinks.open("access.log").unwrap();
        sink.write(b"one\n");
        sink.write(b"two\n");
        sinks.flush(PATIENCE);
        fs::rename(dir.path().join("access.log"), dir.path().join("access.log.1")).unwrap();
        sinks.reopen();
        sink.write(b"three\n");
        sinks.flush(PATIENCE);
        assert_eq!(fs::read_to_string(dir.path().join("access.log.1")).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(dir.path().join("access.log")).unwrap(), "three\n");
    }

    #[test]
    fn a_bounded_file_and_the_one_before_it_have_no_more_than_that() {
        let dir = tempfile::tempdir().unwrap();
        let sinks = Sinks::new(dir.path());
        let sink = sinks.open_bounded("replay.jsonl", 100).unwrap();
        for line in 0..20 {
            sink.write(format!("{line:019}\n").as_bytes());
            sinks.flush(PATIENCE);
        }
        let lines = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(lines("replay.jsonl").len() <= 50 && lines("replay.jsonl.1").len() <= 50);
        assert!(lines("replay.jsonl").ends_with("19\n"));
    }

    #[test]
    fn a_target_is_opened_once_however_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let sinks = Sinks::new(dir.path());
        let _one = sinks.open("a.log").unwrap();
        let _same = sinks.open(dir.path().join("a.log").to_str().unwrap()).unwrap();
        assert_eq!(sinks.dropped().len(), 1);
    }

    #[test]
    fn a_target_that_cannot_be_opened_says_so() {
        let sinks = Sinks::new(Path::new("/nonexistent"));
        let error = sinks.open("a.log").err().unwrap();
        assert!(error.starts_with("`a.log` can't be opened for logs: "), "{error}");
    }

    /// A target that takes nothing until it is let go.
    struct Stuck(Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_target_blocks_nobody_and_what_it_drops_is_counted() {
        let (release, gate) = sync_channel(0);
        let dropped = Arc::new(AtomicU64::new(0));
        let sink =
            Sink::start("stuck", Output::Other(Box::new(Stuck(gate))), dropped.clone(), GATHERING).unwrap();
        let line = [b'x'; 64 << 10];
        for _ in 0..1000 {
            sink.write(&line);
        }
        let fits = (BYTES / line.len()) as u64;
        assert_eq!(dropped.load(Ordering::Relaxed), 1000 - fits);
        let before = Instant::now();
        sink.flush(before + Duration::from_millis(20));
        assert!(before.elapsed() < PATIENCE);
        drop(release);
        sink.flush(Instant::now() + PATIENCE);
        assert!(sink.0.lock().lines.is_empty());
    }

    /// A disk that is full.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_the_target_refuses_is_counted() {
        let dropped = Arc::new(AtomicU64::new(0));
        let sink = Sink::start("full", Output::Other(Box::new(Full)), dropped.clone(), GATHERING).unwrap();
        sink.write(b"lost\n");
        sink.flush(Instant::now() + PATIENCE);
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
    }
}
