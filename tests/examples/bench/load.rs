//! Sends a workload's requests: with wrk over HTTP/1.1 for a time, with h2load for a number of requests
//! and over HTTP/2, and with the client in `fresh.rs` where each request has a connection of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use portcullis_tests::here;

use crate::Result;
use crate::contestants::Running;
use crate::fresh::percentiles;
use crate::machine::load_command;
use crate::process::Process;
use crate::workloads::{Client, Requests};

/// What a load generator may take longer than it should before it is ended.
const GRACE: Duration = Duration::from_secs(30);

/// How long a number of requests may take, by instrumented contestants.
const LONGEST: Duration = Duration::from_secs(300);

/// Connections for a number of requests: few, so that opening them does not count.
const COUNTED_CONNECTIONS: usize = 8;

/// How much is sent.
#[derive(Clone, Copy)]
pub(crate) enum Amount {
    For(Duration),
    Exactly(u64),
}

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    /// Latencies that half and all but a hundredth of the requests stay within; 0 if that is not known.
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    /// Requests that got no answer.
    pub(crate) broken: u64,
}

/// A command that sends requests, and what reads its output.
pub(crate) struct Load {
    pub(crate) command: Command,
    limit: Duration,
    read: Read,
}

type Read = Box<dyn Fn(&str) -> Result<Outcome>>;

impl Load {
    /// Sends, and waits for the end.
    pub(crate) fn run(mut self) -> Result<Outcome> {
        let output = Process::run(&mut self.command, self.limit)?;
        (self.read)(&output)
    }

    /// The same by way of another command, which runs this one.
    pub(crate) fn run_within(mut self, mut wrapper: Command) -> Result<Outcome> {
        wrapper.arg(self.command.get_program()).args(self.command.get_args());
        self.command = wrapper;
        self.run()
    }
}

/// Prepares to send a workload's requests to a contestant.
pub(crate) fn load(running: &Running<'_>, requests: &'static Requests, amount: Amount) -> Result<Load> {
    let limit = match amount {
        Amount::For(length) => length + GRACE,
        Amount::Exactly(_) => LONGEST,
    };
    match (requests.client, amount) {
        (Client::Fresh, _) => fresh(running, requests, amount, limit),
        (Client::KeepAlive, Amount::For(length)) => Ok(wrk(running, requests, length, limit)),
        (Client::KeepAlive | Client::Multiplexed(_), _) => h2load(running, requests, amount, limit),
    }
}

fn url(running: &Running<'_>, path: &str) -> String {
    let scheme = if running.is_tls() { "https" } else { "http" };
    format!("{scheme}://{}{path}", running.address)
}

fn wrk(running: &Running<'_>, requests: &'static Requests, length: Duration, limit: Duration) -> Load {
    let cores = &running.stand.cores;
    let mut command = load_command(cores, "wrk");
    let threads = cores.load_count.min(requests.connections);
    command.args(["-t", &threads.to_string(), "-c", &requests.connections.to_string()]);
    command.args(["-d", &format!("{}s", length.as_secs()), "--timeout", "10s"]);
    command.args(requests.headers.iter().flat_map(|(name, value)| ["-H".into(), format!("{name}: {value}")]));
    command.arg("-s").arg(here().join("bench/load.lua")).arg(url(running, requests.path));
    let method = if requests.upload > 0 { "POST" } else { "GET" };
    command.args(["--", method, &requests.upload.to_string(), &requests.variety.to_string()]);
    let right = requests.status;
    let read = Box::new(move |output: &str| {
        let result = ResultLine::read(output)?;
        // wrk counts what is above 399 as an error of status.
        let wrong = if right < 400 { result.statuses } else { result.requests - result.statuses };
        result.outcome(wrong)
    });
    Load { command, limit, read }
}

fn fresh(
    running: &Running<'_>,
    requests: &'static Requests,
    amount: Amount,
    limit: Duration,
) -> Result<Load> {
    let mut command = load_command(&running.stand.cores, std::env::current_exe()?);
    let (seconds, count) = match amount {
        Amount::For(length) => (length.as_secs(), 0),
        Amount::Exactly(count) => (0, count),
    };
    command.args(["fresh", &running.address.to_string()]);
    match running.is_tls() {
        true => command.arg(running.stand.ca()),
        false => command.arg("-"),
    };
    command.args([requests.connections as u64, seconds, count].map(|number| number.to_string()));
    command.args([requests.path, &requests.status.to_string()]);
    command.args(requests.headers.iter().map(|(name, value)| format!("{name}:{value}")));
    let read = |output: &str| {
        let result = ResultLine::read(output)?;
        let wrong = result.statuses;
        result.outcome(wrong)
    };
    Ok(Load { command, limit, read: Box::new(read) })
}

fn h2load(
    running: &Running<'_>,
    requests: &'static Requests,
    amount: Amount,
    limit: Duration,
) -> Result<Load> {
    let cores = &running.stand.cores;
    let mut command = load_command(cores, "h2load");
    let connections = match amount {
        Amount::For(_) => requests.connections,
        Amount::Exactly(_) => requests.connections.min(COUNTED_CONNECTIONS),
    };
    let threads = cores.load_count.min(connections);
    command.args(["-t", &threads.to_string(), "-c", &connections.to_string()]);
    match requests.client {
        Client::Multiplexed(streams) => command.args(["-m", &streams.to_string()]),
        _ => command.arg("--h1"),
    };
    command.args(requests.headers.iter().flat_map(|(name, value)| ["-H".into(), format!("{name}: {value}")]));
    if requests.upload > 0 {
        let body = running.dir.join("upload");
        fs::write(&body, vec![b'x'; requests.upload])?;
        command.arg("-d").arg(body);
    }
    if requests.variety > 0 {
        let targets =
            (0..requests.variety).map(|n| url(running, &requests.path.replace("{n}", &n.to_string())));
        let file = running.dir.join("targets");
        fs::write(&file, targets.collect::<Vec<_>>().join("\n"))?;
        command.arg("-i").arg(file);
    } else {
        command.arg(url(running, requests.path));
    }
    let times = match amount {
        Amount::Exactly(count) => {
            command.args(["-n", &count.to_string()]);
            None
        }
        Amount::For(length) => {
            let file = running.dir.join("times");
            // It appends.
            let _ = fs::remove_file(&file);
            command.args(["-D", &length.as_secs().to_string()]).arg("--log-file").arg(&file);
            Some((file, length))
        }
    };
    let right = requests.status;
    let read = Box::new(move |output: &str| summary(output, right, times.as_ref()));
    Ok(Load { command, limit, read })
}

/// The line that `load.lua` and `fresh.rs` end with.
struct ResultLine {
    requests: u64,
    micros: u64,
    statuses: u64,
    broken: u64,
    p50: u64,
    p99: u64,
}

impl ResultLine {
    fn read(output: &str) -> Result<Self> {
        let line = output.lines().find_map(|line| line.strip_prefix("result "));
        let line = line.ok_or_else(|| format!("no result in: {output}"))?;
        let number = |key: &str| -> Result<u64> {
            let mut pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
            let (_, value) =
                pairs.find(|(known, _)| *known == key).ok_or_else(|| format!("no {key}: {line}"))?;
            Ok(value.parse()?)
        };
        Ok(ResultLine {
            requests: number("requests")?,
            micros: number("micros")?,
            statuses: number("statuses")?,
            broken: number("broken")?,
            p50: number("p50")?,
            p99: number("p99")?,
        })
    }

    fn outcome(self, wrong: u64) -> Result<Outcome> {
        judge(self.requests, wrong)?;
        Ok(Outcome {
            broken: self.broken,
            requests: self.requests,
            seconds: self.micros as f64 / 1e6,
            p50_us: self.p50,
            p99_us: self.p99,
        })
    }
}

/// Figures of other work than was asked for say nothing.
fn judge(requests: u64, wrong: u64) -> Result<()> {
    match (requests, wrong) {
        (0, _) => Err("no request was answered".into()),
        (_, 0) => Ok(()),
        _ => Err(format!("{wrong} of {requests} answers have a wrong status").into()),
    }
}

/// What h2load says, with the time of each request from the file that it wrote, if any.
fn summary(output: &str, right: u16, times: Option<&(PathBuf, Duration)>) -> Result<Outcome> {
    let unread = || format!("unexpected output of h2load: {output}");
    let after = |begin: &str| output.lines().find_map(|line| line.strip_prefix(begin)).ok_or_else(unread);
    // `requests: 10 total, 10 started, 10 done, ...`, `status codes: 10 2xx, ...`
    let count = |line: &str, what: &str| -> Result<u64> {
        let mut parts = line.split(", ").filter_map(|part| part.trim().split_once(' '));
        let (number, _) = parts.find(|(_, name)| *name == what).ok_or_else(unread)?;
        Ok(number.parse()?)
    };
    let totals = after("requests: ")?;
    let done = count(totals, "done")?;
    let broken = count(totals, "errored")? + count(totals, "timeout")?;
    let class = format!("{}xx", right / 100);
    judge(done, done.saturating_sub(count(after("status codes: ")?, &class)?))?;
    let Some((file, length)) = times else {
        return Ok(Outcome { requests: done, seconds: 0.0, p50_us: 0, p99_us: 0, broken });
    };
    // Start, status, microseconds.
    let text = fs::read_to_string(file)?;
    let mut micros: Vec<u64> =
        text.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok()).collect();
    let [p50_us, p99_us] = percentiles(&mut micros);
    Ok(Outcome { requests: done, seconds: length.as_secs_f64(), p50_us, p99_us, broken })
}
