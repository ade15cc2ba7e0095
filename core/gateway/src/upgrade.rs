//! Another version of the program takes over without a request being lost: it is started with this process's sockets
//! and arguments, and once it serves, this process drains and ends. If it does not come to that, nothing has changed.
//!
//! The two talk over the new process's standard input: the new one says `ready`, or `failed` and why; the old one `go`,
//! and the new one, when it has the other's place, `done`.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portcullis_proxy::Sockets;

use crate::notify::{self, Message};
use crate::sockets::{HANDED, Purpose};

/// How long a new process may take until it serves: it may have modules to compile, and this one serves meanwhile.
const START: Duration = Duration::from_secs(120);

/// How long either waits for the other's next word, once the new process serves: it has nothing else to do.
const TURN: Duration = Duration::from_secs(10);

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
        channel.set_read_timeout(Some(TURN))?;
        Ok(Predecessor { channel, pid: std::os::unix::process::parent_id() })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Says that this process serves, and waits for leave to go on alone.
    pub(crate) fn take_over(&self) -> io::Result<()> {
        (&self.channel).write_all(READY)?;
        (&self.channel).read_exact(&mut [0; GO.len()])
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
        channel.set_read_timeout(Some(START)).map_err(failed)?;
        // Descriptors that are inherited by whatever is started now, which is nothing else.
        let handed: Vec<(Purpose, OwnedFd)> = handed(sockets, admin)
            .into_iter()
            .map(|(purpose, socket)| Ok((purpose, rustix::io::dup(&socket)?)))
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        let sockets = handed.iter().map(|(purpose, socket)| format!(" {}={purpose}", socket.as_raw_fd()));
        let mut arguments = std::env::args_os();
        let child = Command::new(arguments.next().unwrap_or_else(|| OsString::from("portcullis")))
            .args(arguments)
            .stdin(OwnedFd::from(theirs))
            .env(HANDED, format!("{}:{}", std::process::id(), sockets.collect::<String>()))
            .spawn()
            .map_err(failed)?;
        drop(handed);
        let mut successor = Successor { channel, child };
        match successor.wait() {
            Ok(()) => Ok(successor),
            Err(why) => {
                // It may have ended by itself.
                let _ = successor.child.kill();
                let _ = successor.child.wait();
                Err(why)
            }
        }
    }

    fn wait(&mut self) -> Result<(), String> {
        let mut word = [0; READY.len()];
        match self.channel.read_exact(&mut word) {
            Ok(()) if word == *READY => Ok(()),
            Ok(()) if word == *FAILED => {
                let mut why = Vec::new();
                let _ = (&self.channel).take(LONGEST_REASON).read_to_end(&mut why);
                Err(String::from_utf8_lossy(&why).into_owned())
            }
            Ok(()) => Err("the new process is not this program".to_owned()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(format!("the new process did not serve within {START:?}"))
            }
            Err(_) => Err(match self.child.wait() {
                Ok(status) => format!("the new process ended with {status}"),
                Err(error) => format!("the new process is lost: {error}"),
            }),
        }
    }

    /// Lets it take this process's place; returns its process id.
    pub(crate) fn take_over(mut self, ending: &AtomicBool) -> Result<u32, String> {
        let pid = self.child.id();
        if ending.load(Ordering::SeqCst) {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return Err("it was told to end meanwhile".into());
        }
        // The service manager hears nobody else than the main process.
        notify::tell(&Message::MainPid(pid));
        let told = self.channel.set_read_timeout(Some(TURN)).and_then(|()| self.channel.write_all(GO));
        let done = told.and_then(|()| self.channel.read_exact(&mut [0; DONE.len()]));
        done.map(|()| pid).map_err(|error| {
            notify::tell(&Message::MainPid(std::process::id()));
            let _ = self.child.kill();
            let _ = self.child.wait();
            format!("the new process did not take over: {error}")
        })
    }
}

/// Every socket with what it is for.
fn handed(sockets: Vec<Sockets>, admin: Option<(SocketAddr, TcpListener)>) -> Vec<(Purpose, TcpListener)> {
    let mut handed: Vec<_> =
        admin.into_iter().map(|(address, socket)| (Purpose::Admin(address), socket)).collect();
    for Sockets { configured, is_managed, sockets } in sockets {
        let purpose = if is_managed { Purpose::Managed(configured) } else { Purpose::Listener(configured) };
        handed.extend(sockets.into_iter().map(|socket| (purpose, socket)));
    }
    handed
}
