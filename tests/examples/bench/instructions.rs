//! Counts instructions per request. Neither other processes nor the clock speed change them, so they show
//! differences of one per cent on a busy machine, where times need a quiet one.
//!
//! `perf` reads the processor's counters, of the contestant's processes alone, in user space and in the
//! kernel. Virtual machines often have none; then callgrind executes the contestant and counts, which is
//! slow, and sees nothing of the kernel.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::contestants::Running;
use crate::load::{Amount, load};
use crate::machine::{has, load_command};
use crate::process::Process;
use crate::report::{self, Sample};
use crate::workloads::{Client, Requests};
use crate::{Result, machine};

const EVENTS: &str = "instructions:u,instructions:k";

/// Requests before those that are counted: caches are warm, connections to the origin are open.
const WARM_UP: u64 = 500;

/// How long callgrind may take to answer.
const COMMAND: Duration = Duration::from_secs(60);

/// What counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    Perf,
    Callgrind,
}

impl Counter {
    /// The one that was asked for, or the best that is there.
    pub(crate) fn choose(wanted: Option<&str>) -> Result<Self> {
        match wanted {
            Some("perf") => Ok(Counter::Perf),
            Some("callgrind") => Ok(Counter::Callgrind),
            _ if counts() => Ok(Counter::Perf),
            _ if machine::has("valgrind") => Ok(Counter::Callgrind),
            _ => Err("neither do the processor's counters answer perf, nor is valgrind there".into()),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Counter::Perf => "perf: user space and kernel",
            Counter::Callgrind => "callgrind: user space only",
        }
    }

    /// Requests that are enough: callgrind has no noise, and is fifty times slower.
    pub(crate) fn requests(self) -> u64 {
        match self {
            Counter::Perf => 20_000,
            Counter::Callgrind => 2_000,
        }
    }

    /// What a contestant is started by.
    pub(crate) fn wrapper(self, dir: &str) -> Vec<String> {
        match self {
            Counter::Perf => Vec::new(),
            Counter::Callgrind => vec![
                "valgrind".into(),
                "--tool=callgrind".into(),
                format!("--callgrind-out-file={dir}/callgrind.%p"),
                // Without it a forked worker can't be talked to.
                "--trace-children=yes".into(),
                format!("--vgdb-prefix={dir}/vgdb"),
            ],
        }
    }
}

/// Whether the processor's counters can be had.
fn counts() -> bool {
    has("perf")
        && counted(Command::new("perf").args(["stat", "-x", ",", "-e", EVENTS, "--", "true"])).is_some()
}

fn counted(command: &mut Command) -> Option<[u64; 2]> {
    let output = command.output().ok()?;
    values(&String::from_utf8_lossy(&output.stderr))
}

/// The two counts of `perf stat -x,`: `123,,instructions:u,...`, one a line.
fn values(text: &str) -> Option<[u64; 2]> {
    let of = |event: &str| {
        let line = text.lines().find(|line| line.split(',').any(|field| field == event))?;
        line.split(',').next()?.parse().ok()
    };
    Some([of("instructions:u")?, of("instructions:k")?])
}

/// Counts what the contestant does for `count` requests.
pub(crate) fn count(
    running: &Running<'_>,
    requests: &'static Requests,
    counter: Counter,
    count: u64,
) -> Result<Sample> {
    let share = |of: u64| (of / weight(running, requests)).max(requests.connections as u64);
    let (count, warm_up) = (share(count), share(WARM_UP));
    load(running, requests, Amount::Exactly(warm_up))?.run()?;
    let per_request = |instructions: u64| instructions as f64 / count as f64;
    match counter {
        Counter::Perf => {
            let [user, kernel] = by_perf(running, requests, count)?;
            Ok(vec![
                (&report::USER_INSTRUCTIONS, per_request(user)),
                (&report::KERNEL_INSTRUCTIONS, per_request(kernel)),
                (&report::INSTRUCTIONS, per_request(user + kernel)),
            ])
        }
        Counter::Callgrind => {
            let user = by_callgrind(running, requests, count)?;
            Ok(vec![(&report::USER_INSTRUCTIONS, per_request(user))])
        }
    }
}

/// How many small requests one of these is worth, roughly.
fn weight(running: &Running<'_>, requests: &Requests) -> u64 {
    let is_large = requests.upload > 1 << 20 || requests.path.ends_with("10m");
    match requests.client {
        Client::Fresh if running.is_tls() => 10,
        _ if is_large => 50,
        _ => 1,
    }
}

/// perf watches the contestant for as long as the load generator, which it starts, runs.
fn by_perf(running: &Running<'_>, requests: &'static Requests, count: u64) -> Result<[u64; 2]> {
    let file = running.dir.join("counters");
    let family: Vec<String> = running.process.family().iter().map(u32::to_string).collect();
    let mut perf = load_command(&running.stand.cores, "perf");
    perf.args(["stat", "-x", ",", "-e", EVENTS, "-p", &family.join(","), "-o"]).arg(&file).arg("--");
    load(running, requests, Amount::Exactly(count))?.run_within(perf)?;
    let text = fs::read_to_string(file)?;
    values(&text).ok_or_else(|| format!("perf counted nothing: {text}").into())
}

/// callgrind counts from a reset to a dump, both on demand.
fn by_callgrind(running: &Running<'_>, requests: &'static Requests, count: u64) -> Result<u64> {
    let family = running.process.family();
    let tell = |word: &str| -> Result<()> {
        for id in &family {
            let mut vgdb = Command::new("vgdb");
            vgdb.arg(format!("--vgdb-prefix={}/vgdb", running.dir.display()));
            vgdb.args([&format!("--pid={id}"), "--wait=10", "-c", word]);
            Process::run(&mut vgdb, COMMAND)?;
        }
        Ok(())
    };
    tell("zero")?;
    load(running, requests, Amount::Exactly(count))?.run()?;
    tell("dump")?;
    let mut sum = 0;
    for id in &family {
        // The process itself writes, so the file is whole when the command has ended.
        let text = fs::read_to_string(running.dir.join(format!("callgrind.{id}.1")))?;
        let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
        sum += totals.ok_or("callgrind wrote no totals")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}
