//! One measurement: a contestant is started, warmed up, measured at a workload, and ended.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::contestants::Running;
use crate::fresh;
use crate::load::{Amount, load};
use crate::process::within;
use crate::report::{self, Sample};
use crate::workloads::{Requests, Work};
use crate::{Result, instructions};

/// Before it is measured, a contestant has opened its connections and filled its caches.
const WARM_UP: Duration = Duration::from_secs(1);

/// Between two edits.
const EDITS: Duration = Duration::from_millis(100);

/// How long an edit may take to be in effect.
const RELOAD: Duration = Duration::from_secs(30);

/// Threads that open idle connections.
const OPENERS: usize = 4;

/// How a measurement is made.
#[derive(Clone, Copy)]
pub(crate) enum Method {
    /// Over time.
    Time(Duration),
    /// By counting what the processor does for this many requests.
    Instructions(instructions::Counter, u64),
}

/// Measures once.
pub(crate) fn measure(running: &Running<'_>, method: Method) -> Result<Sample> {
    match (&running.workload.work, method) {
        (Work::Requests(requests), Method::Time(length)) if running.contestant.is_edited() => {
            edited(running, requests, length)
        }
        (Work::Requests(requests), Method::Time(length)) => over_time(running, requests, length),
        (Work::Requests(requests), Method::Instructions(counter, count)) => {
            instructions::count(running, requests, counter, count)
        }
        (Work::Idle { connections }, _) => idle(running, *connections),
    }
}

fn over_time(running: &Running<'_>, requests: &'static Requests, length: Duration) -> Result<Sample> {
    load(running, requests, Amount::For(WARM_UP))?.run()?;
    let load = load(running, requests, Amount::For(length))?;
    let before = running.process.cpu();
    let outcome = load.run()?;
    // Whoever is edited may lose requests, and is shown to.
    if outcome.broken > outcome.requests / 1000 && !running.contestant.is_edited() {
        return Err(format!("{} requests of {} broke off", outcome.broken, outcome.requests).into());
    }
    let cpu = running.process.cpu() - before;
    let per_request = cpu.as_secs_f64() * 1e6 / outcome.requests as f64;
    Ok(vec![
        (&report::THROUGHPUT, outcome.requests as f64 / outcome.seconds),
        (&report::P50, outcome.p50_us as f64),
        (&report::P99, outcome.p99_us as f64),
        (&report::CPU, per_request),
        (&report::BROKEN, outcome.broken as f64),
        (&report::MEMORY, running.process.memory() as f64 / f64::from(1 << 20)),
    ])
}

/// The same while the policy is edited.
fn edited(running: &Running<'_>, requests: &'static Requests, length: Duration) -> Result<Sample> {
    let (stop, is_stopped) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let editor = scope.spawn(move || edit(running, &is_stopped));
        let sample = over_time(running, requests, length);
        drop(stop);
        let seen = editor.join().map_err(|_| "the editor panicked")??;
        let mut sample = sample?;
        sample.push((&report::RELOADS, seen));
        Ok(sample)
    })
}

/// Edits until the other end of the channel is gone. Returns how many editions were seen in effect, per
/// second of editing; the last one must be.
fn edit(running: &Running<'_>, is_stopped: &mpsc::Receiver<()>) -> Result<f64> {
    let (mut edition, mut seen, mut last_seen) = (0, 0, 0);
    let in_effect = || -> Option<u64> { running.ask("/").ok()?.header("x-policy")?.parse().ok() };
    let begin = std::time::Instant::now();
    while is_stopped.recv_timeout(EDITS) == Err(mpsc::RecvTimeoutError::Timeout) {
        if let Some(found) = in_effect().filter(|found| *found > last_seen) {
            (seen, last_seen) = (seen + 1, found);
        }
        edition += 1;
        running.edit(edition)?;
    }
    let rate = f64::from(seen) / begin.elapsed().as_secs_f64();
    let last = within(RELOAD, || (in_effect()? == edition).then_some(()));
    last.map(|()| rate).ok_or_else(|| format!("edit {edition} is not in effect").into())
}

/// What connections cost that nobody uses.
fn idle(running: &Running<'_>, connections: usize) -> Result<Sample> {
    let connections = connections.min(room()?);
    let before = running.process.memory();
    let open = || -> Result<Vec<TcpStream>> { (0..connections / OPENERS).map(|_| open(running)).collect() };
    let kept: Vec<Vec<TcpStream>> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..OPENERS).map(|_| scope.spawn(|| open().map_err(|e| e.to_string()))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a panic".to_owned())?);
        joined.collect::<Result<_, String>>()
    })?;
    let memory = running.process.memory();
    let count = kept.iter().map(Vec::len).sum::<usize>() as f64;
    Ok(vec![
        (&report::CONNECTIONS, count),
        (&report::PER_CONNECTION, memory.saturating_sub(before) as f64 / 1024.0 / count),
        (&report::MEMORY, memory as f64 / f64::from(1 << 20)),
    ])
}

/// Opens a connection and uses it once. The TLS session is let go: nothing more is said on it.
fn open(running: &Running<'_>) -> Result<TcpStream> {
    let tls = running.is_tls().then_some(&running.stand.tls);
    let (mut stream, session) = fresh::connect(running.address, tls)?;
    let request = fresh::request("bench.test", "/", &[], false);
    let mut answer = [0; 4096];
    let length = match session {
        None => {
            stream.write_all(request.as_bytes())?;
            stream.read(&mut answer)?
        }
        Some(mut session) => {
            let mut stream = rustls::Stream::new(&mut session, &mut stream);
            stream.write_all(request.as_bytes())?;
            stream.read(&mut answer)?
        }
    };
    match answer.get(..length).is_some_and(|answer| answer.starts_with(b"HTTP/1.1 200")) {
        true => Ok(stream),
        false => Err("a connection was not served".into()),
    }
}

/// How many connections the limit of open files leaves room for.
fn room() -> Result<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    Ok(soft.unwrap_or(1024).saturating_sub(100))
}
