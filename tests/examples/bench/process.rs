//! Processes that the benchmark starts: each is known by its id from its start to its end, and none
//! outlives the benchmark, however that ends.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// The unit of `/proc/PID/stat`, which Linux shows in hundredths of a second on every platform.
const TICK: Duration = Duration::from_millis(10);

/// How long a process may take to end when it is asked to, before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// A process that runs, and ends with this value.
pub(crate) struct Process {
    id: u32,
}

/// All processes that run.
static RUNNING: Mutex<Vec<Child>> = Mutex::new(Vec::new());

fn running() -> MutexGuard<'static, Vec<Child>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command that is bound to some cores.
pub(crate) fn command(cores: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program).stdin(Stdio::null());
    command
}

impl Process {
    /// Starts a server whose output goes to a file.
    pub(crate) fn start(command: &mut Command, output: File) -> Result<Self> {
        command.stdout(output.try_clone()?).stderr(output);
        Process::spawn(command)
    }

    /// Runs a tool to its end, which must be within `limit`; returns its standard output.
    pub(crate) fn run(command: &mut Command, limit: Duration) -> Result<String> {
        // Without a name, so that it is gone with the last who has it open.
        let mut errors = tempfile::tempfile()?;
        let (mut output, writer) = std::io::pipe()?;
        command.stdout(writer).stderr(errors.try_clone()?);
        let process = Process::spawn(command)?;
        // Closes this side of the pipe, so that it ends with the process.
        command.stdout(Stdio::null());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut text = String::new();
            let _ = sender.send(output.read_to_string(&mut text).map(|_| text));
        });
        let text =
            receiver.recv_timeout(limit).map_err(|_| format!("{command:?} took longer than {limit:?}"))??;
        let status = within(GRACE, || process.status());
        match status {
            Some(status) if status.success() => Ok(text),
            _ => {
                let mut why = String::new();
                errors.rewind()?;
                errors.read_to_string(&mut why)?;
                Err(format!("{command:?} failed: {text}{why}").into())
            }
        }
    }

    /// What is started is known before anybody can end what is known.
    fn spawn(command: &mut Command) -> Result<Self> {
        let mut running = running();
        let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let id = child.id();
        running.push(child);
        Ok(Process { id })
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// How it ended, if it has.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        let mut running = running();
        let child = running.iter_mut().find(|child| child.id() == self.id)?;
        child.try_wait().ok().flatten()
    }

    /// Its id and those of the processes that it started.
    pub(crate) fn family(&self) -> Vec<u32> {
        let mut parents = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some((id, parent)) = id.and_then(|id| Some((id, *stat(id)?.get(1)? as u32))) {
                parents.push((id, parent));
            }
        }
        let mut family = vec![self.id];
        let mut at = 0;
        while let Some(parent) = family.get(at).copied() {
            family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(id, _)| *id));
            at += 1;
        }
        family
    }

    /// CPU time that it and its family have used, in user space and in the kernel, with that of family
    /// members that have ended.
    pub(crate) fn cpu(&self) -> Duration {
        let ticks = |id: u32| -> u64 {
            // utime, stime, cutime, cstime (proc_pid_stat(5), fields 14 to 17).
            stat(id).and_then(|fields| Some(fields.get(11..15)?.iter().sum())).unwrap_or(0)
        };
        TICK * self.family().into_iter().map(ticks).sum::<u64>() as u32
    }

    /// Resident memory of it and its family in bytes; what they share counts once.
    pub(crate) fn memory(&self) -> u64 {
        let resident = |id: u32| -> Option<u64> {
            let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).ok()?;
            let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        self.family().into_iter().filter_map(resident).sum::<u64>() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        signal(self.id, "TERM");
        within(GRACE, || self.status());
        let mut running = running();
        if let Some(at) = running.iter().position(|child| child.id() == self.id) {
            let mut child = running.swap_remove(at);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The numbers behind the name in `/proc/PID/stat`; the first of them, a letter, is 0.
fn stat(id: u32) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

/// Sends a signal, such as `TERM`.
pub(crate) fn signal(id: u32, name: &str) {
    let arguments = ["-c", "kill -s \"$0\" \"$1\" 2> /dev/null", name, &id.to_string()];
    let _ = Command::new("sh").args(arguments).status();
}

/// Looks until there is something to see, for at most `limit`.
pub(crate) fn within<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Some(found) => return Some(found),
            None if Instant::now() >= end => return None,
            None => thread::park_timeout(PAUSE),
        }
    }
}

/// Ends every process, and this one, when it is interrupted; `last` is what else is to be done then.
pub(crate) fn end_on_signals(last: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (ready, is_ready) = mpsc::channel();
    thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else { return };
            let _ = ready.send(());
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        // Held to the end: whoever would start a process, or look after one, waits for that.
        let mut running = running();
        end_all(&mut running);
        last();
        std::process::exit(130);
    });
    is_ready.recv().map_err(|_| "signals can't be caught".into())
}

fn end_all(running: &mut [Child]) {
    running.iter().for_each(|child| signal(child.id(), "TERM"));
    within(GRACE, || {
        let ended = running.iter_mut().all(|child| matches!(child.try_wait(), Ok(Some(_))));
        ended.then_some(())
    });
    for child in running {
        let _ = child.kill();
        let _ = child.wait();
    }
}
