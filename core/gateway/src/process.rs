//! The process itself: what must be set up once, and what the system says about it.
//!
//! The calls that Rust has no safe form for are all here.

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::panic;
use std::time::Duration;

/// Installs the crypto provider that all of the program uses.
pub(crate) fn install_crypto() {
    // An error means that a provider is already there, which can only be this one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Sends panics to the execution log, which must have been started.
pub(crate) fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("a panic without a message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        tracing::error!(target: "portcullis::panic", message, place, thread = thread.name().unwrap_or("unnamed"));
    }));
}

/// What the system says of the process, as far as it does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) threads: Option<u64>,
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) virtual_bytes: Option<u64>,
    pub(crate) open_files: Option<u64>,
    pub(crate) open_files_limit: Option<u64>,
}

impl Usage {
    /// What it is now; without `/proc` little is known.
    pub(crate) fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number = |key| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        // The listing itself holds one.
        let open = fs::read_dir("/proc/self/fd").ok().map(|open| (open.count() as u64).saturating_sub(1));
        Usage {
            cpu_seconds: clock(libc::CLOCK_PROCESS_CPUTIME_ID).as_secs_f64(),
            threads: number("Threads:"),
            resident_bytes: number("VmRSS:").map(|kib| kib * 1024),
            virtual_bytes: number("VmSize:").map(|kib| kib * 1024),
            open_files: open,
            open_files_limit: open_files_limit().ok().map(|limit| limit.rlim_cur),
        }
    }
}

#[allow(unsafe_code)]
fn open_files_limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer, for the length of the call.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Raises the limit of open files to what the system allows, and returns it: every connection is one.
#[allow(unsafe_code)]
pub(crate) fn raise_open_files() -> io::Result<u64> {
    let mut limit = open_files_limit()?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid value, for the length of the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Microseconds of the monotonic clock, which the service manager compares with its own.
pub(crate) fn monotonic_micros() -> u64 {
    u64::try_from(clock(libc::CLOCK_MONOTONIC).as_micros()).unwrap_or(u64::MAX)
}

#[allow(unsafe_code)]
fn clock(id: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the answer, for the length of the call.
    unsafe { libc::clock_gettime(id, &raw mut now) };
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Whether a process with this id is alive, whoever owns it.
#[allow(unsafe_code)]
pub(crate) fn is_alive(pid: i32) -> bool {
    // SAFETY: signal 0 only asks; nothing is sent.
    pid > 0
        && (unsafe { libc::kill(pid, 0) } == 0
            || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM))
}

/// Tells a process that this one has started, and that has not been waited for, to end.
#[allow(unsafe_code)]
pub(crate) fn terminate(child: u32) {
    if let Ok(pid) = i32::try_from(child) {
        // SAFETY: sends a signal, and fails if there is no such process.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}

/// Takes a descriptor that whoever started the process left open for it. To be asked for once, and before the process
/// opens anything itself.
#[allow(unsafe_code)]
pub(crate) fn inherited(descriptor: RawFd) -> io::Result<OwnedFd> {
    // Not for the programs that this one starts.
    // SAFETY: changes a flag of the descriptor, and fails if there is none of this number.
    if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as was just seen, and nobody else in the process has it: it was there at the start.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// The user the process runs as.
#[allow(unsafe_code)]
pub(crate) fn user_id() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_an_impossible_one_is_not() {
        assert!(is_alive(std::process::id() as i32));
        assert!(!is_alive(0) && !is_alive(-1) && !is_alive(i32::MAX));
    }

    #[test]
    fn the_limit_of_open_files_rises_to_the_hard_limit() {
        let raised = raise_open_files().unwrap();
        assert_eq!(raise_open_files().unwrap(), raised);
        assert!(raised > 0);
    }

    #[test]
    fn the_system_tells_what_the_process_uses() {
        let _file = fs::File::open("/proc/self/stat").unwrap();
        let usage = Usage::now();
        assert!(usage.threads >= Some(1) && usage.cpu_seconds > 0.0, "{usage:?}");
        assert!(usage.resident_bytes > Some(1 << 20) && usage.virtual_bytes > usage.resident_bytes);
        assert!(usage.open_files >= Some(4) && usage.open_files_limit >= usage.open_files);
        assert!(monotonic_micros() <= monotonic_micros());
    }
}
