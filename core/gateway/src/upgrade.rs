//! Another version of the program takes over without a request being lost: it is started with this process's sockets
//! and arguments, and once it serves, this process drains and ends. If it does not come to that, nothing has changed.
//!
//! The two talk over the new process's standard input: the new one says `ready`, or `failed` and why; the old one `go`,
//! and the new one, when it has the other's place, `done`.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use portcullis_proxy::{Listening, Sockets};

use crate::notify::{self, Message};
use crate::process;
use crate::sockets::{HANDED, Purpose};

/// How long a new process may take until it serves: it may have modules to compile, and this one serves meanwhile.
const START: Duration = Duration::from_secs(120);

/// How long either waits for the other's next word, once the new process serves: it has nothing else to do.
const TURN: Duration = Duration::from_secs(10);

/// How long a new process that hangs up may take to end by itself, so that it can be said how it did.
const END: Duration = Duration::from_secs(1);

/// Between two looks at whether a process has ended.
const LOOK: Duration = Duration::from_millis(10);

/// How much is read of why a new process failed.
const LONGEST_REASON: u64 = 64 << 10;

const READY: &[u8; 6] = b"ready\n";
const FAILED: &[u8; 6] = b"failed";
const GO: &[u8; 3] = b"go\n";
const DONE: &[u8; 5] = b"done\n";

/// The process that this one takes over from.
#[derive(Debug)]
pub(crate) struct Predecessor {
    channel: UnixStream,
    pid: u32,
}

/// A process that serves, and waits to take this one's place.
#[derive(Debug)]
pub(crate) struct Successor {
    channel: UnixStream,
    child: Child,
}

impl Predecessor {
    /// The one at the other end of standard input.
    pub(crate) fn new() -> io::Result<Self> {
        let channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Predecessor { channel, pid: std::os::unix::process::parent_id() })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Says that this process serves, and waits for leave to go on alone.
    pub(crate) fn take_over(&self) -> io::Result<()> {
        (&self.channel).write_all(READY)?;
        Patient::with(&self.channel, TURN).read_exact(&mut [0; GO.len()])
    }

    /// Says that this process is in its place.
    pub(crate) fn done(&self) {
        // It has been told to end, which it does without this.
        let _ = (&self.channel).write_all(DONE);
    }

    /// Says that this process does not come to serve, and why.
    pub(crate) fn failed(&self, why: &str) {
        // If nobody listens any more, nobody needs to know.
        let _ = (&self.channel).write_all(&[FAILED, why.as_bytes()].concat());
    }
}

impl Successor {
    /// Starts the program as this process was started, with these sockets, and waits until it serves.
    pub(crate) fn start(
        sockets: Vec<Sockets>,
        admin: Option<(SocketAddr, TcpListener)>,
    ) -> Result<Self, String> {
        let failed = |error: io::Error| format!("the new process can't be started: {error}");
        let (channel, theirs) = UnixStream::pair().map_err(failed)?;
        // Descriptors that are inherited by whatever is started now, which is nothing else.
        let handed: Vec<(Purpose, OwnedFd)> = handed(sockets, admin)
            .into_iter()
            .map(|(purpose, socket)| Ok((purpose, rustix::io::dup(&socket)?)))
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        let sockets = handed.iter().map(|(purpose, socket)| format!("{}={purpose}\n", socket.as_raw_fd()));
        let mut arguments = std::env::args_os();
        let child = Command::new(arguments.next().unwrap_or_else(|| OsString::from("portcullis")))
            .args(arguments)
            .stdin(OwnedFd::from(theirs))
            .env(HANDED, format!("{}:{}", std::process::id(), sockets.collect::<String>()))
            .spawn()
            .map_err(failed)?;
        drop(handed);
        let mut successor = Successor { channel, child };
        match successor.wait(START) {
            Ok(()) => Ok(successor),
            Err(why) => {
                // It serves nobody yet.
                successor.kill();
                Err(why)
            }
        }
    }

    fn wait(&mut self, limit: Duration) -> Result<(), String> {
        let mut word = [0; READY.len()];
        let mut channel = Patient::with(&self.channel, limit);
        match channel.read_exact(&mut word) {
            Ok(()) if word == *READY => Ok(()),
            Ok(()) if word == *FAILED => {
                let mut why = Vec::new();
                let _ = channel.take(LONGEST_REASON).read_to_end(&mut why);
                Err(String::from_utf8_lossy(&why).into_owned())
            }
            Ok(()) => Err("the new process is not this program".to_owned()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(format!("the new process did not serve within {limit:?}"))
            }
            Err(_) => Err(match self.ended(END) {
                Some(status) => format!("the new process ended with {status}"),
                None => "the new process hung up".to_owned(),
            }),
        }
    }

    /// Lets it take this process's place; returns its process id. If that fails, it has as long as `drain` to answer
    /// what it has taken in.
    pub(crate) fn take_over(mut self, ending: &AtomicBool, drain: Duration) -> Result<u32, String> {
        let pid = self.child.id();
        if ending.load(Ordering::SeqCst) {
            self.dismiss(drain);
            return Err("it was told to end meanwhile".into());
        }
        // The service manager hears nobody else than the main process.
        notify::tell(&Message::MainPid(pid));
        let told = self.channel.write_all(GO);
        let done = told.and_then(|()| Patient::with(&self.channel, TURN).read_exact(&mut [0; DONE.len()]));
        done.map(|()| pid).map_err(|error| {
            notify::tell(&Message::MainPid(std::process::id()));
            process::terminate(pid);
            self.dismiss(drain);
            format!("the new process did not take over: {error}")
        })
    }

    /// Hangs up, so that a process that waits for leave ends when it has answered what it has taken in.
    fn dismiss(&mut self, drain: Duration) {
        // Nobody is there to hear it if it has ended.
        let _ = self.channel.shutdown(Shutdown::Both);
        if self.ended(drain + TURN).is_none() {
            tracing::warn!(target: "portcullis::upgrade", pid = self.child.id(), "a new process that did not end was killed");
            self.kill();
        }
    }

    /// How it has ended, if it does in time.
    fn ended(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < end => park_timeout(LOOK),
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A channel that is read until a point in time, however small the pieces are that come.
struct Patient<'c> {
    channel: &'c UnixStream,
    end: Instant,
}

impl<'c> Patient<'c> {
    fn with(channel: &'c UnixStream, patience: Duration) -> Self {
        Patient { channel, end: Instant::now() + patience }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.channel.set_read_timeout(Some(left))?;
        self.channel.read(buffer)
    }
}

/// Every socket with what it is for.
fn handed(sockets: Vec<Sockets>, admin: Option<(SocketAddr, TcpListener)>) -> Vec<(Purpose, Listening)> {
    let admin = admin.into_iter().map(|(address, socket)| (Purpose::Admin(address), Listening::Tcp(socket)));
    let mut handed: Vec<_> = admin.collect();
    for Sockets { configured, is_managed, sockets } in sockets {
        let purpose = if is_managed { Purpose::Managed(configured) } else { Purpose::Listener(configured) };
        handed.extend(sockets.into_iter().map(|socket| (purpose.clone(), socket)));
    }
    handed
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// What is heard of a process that runs this script, within a time.
    fn heard(script: &str, limit: Duration) -> Result<(), String> {
        let (channel, theirs) = UnixStream::pair().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdin(OwnedFd::from(theirs)).stderr(Stdio::null());
        let child = shell.spawn().unwrap();
        drop(shell);
        let mut successor = Successor { channel, child };
        let heard = successor.wait(limit);
        successor.kill();
        heard
    }

    #[test]
    fn a_new_process_is_not_waited_for_without_end() {
        let (short, long) = (Duration::from_millis(200), Duration::from_secs(60));
        assert_eq!(heard("echo ready >&0; exec sleep 99", long), Ok(()));
        assert_eq!(heard("exit 3", long).unwrap_err(), "the new process ended with exit status: 3");
        assert_eq!(heard("exec sleep 99", short).unwrap_err(), "the new process did not serve within 200ms");
        assert_eq!(heard("exec <&- 0<&-; exec sleep 99", long).unwrap_err(), "the new process hung up");
        // However often a little comes.
        let drips = "printf failed >&0; while printf x >&0; do sleep 0.01; done";
        assert!(heard(drips, short).unwrap_err().starts_with('x'));
        let floods = "printf failed >&0; exec cat /dev/zero >&0";
        assert_eq!(heard(floods, long).unwrap_err().len() as u64, LONGEST_REASON);
    }
}
