//! The machine: who runs on which core, and what a reader of the figures has to know of it.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::Result;
use crate::process::command;

/// The cores of each part, as `taskset` takes them.
pub(crate) struct Cores {
    pub(crate) contestant: String,
    pub(crate) origin: String,
    pub(crate) load: String,
    /// How many the load generator has.
    pub(crate) load_count: usize,
    /// What of this a reader has to know.
    pub(crate) note: &'static str,
}

impl Cores {
    /// Gives the contestant cores of its own if there are enough, and then the origin.
    pub(crate) fn share(workers: usize) -> Result<Self> {
        let all = allowed()?;
        let list = |cores: &[usize]| cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let own = if all.len() > workers { workers } else { 0 };
        let (contestant, rest) = all.split_at(own);
        let cores = match rest {
            _ if own == 0 => Cores {
                contestant: list(&all),
                origin: list(&all),
                load: list(&all),
                load_count: all.len(),
                note: "contestant, origin and load generator share all cores",
            },
            [origin, load @ ..] if !load.is_empty() => Cores {
                contestant: list(contestant),
                origin: origin.to_string(),
                load: list(load),
                load_count: load.len(),
                note: "contestant, origin and load generator have cores of their own",
            },
            _ => Cores {
                contestant: list(contestant),
                origin: list(rest),
                load: list(rest),
                load_count: rest.len(),
                note: "the contestant has its cores to itself; origin and load generator share one",
            },
        };
        Ok(cores)
    }
}

/// The cores that this process may use.
fn allowed() -> Result<Vec<usize>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let mut cores = Vec::new();
    for range in list.unwrap_or("0").trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>()?..=last.parse()?);
    }
    Ok(cores)
}

/// What the figures were measured on and with.
pub(crate) fn description(cores: &Cores, binary: &str) -> Value {
    let line = |program: &str, arguments: &[&str]| first_line(program, arguments);
    json!({
        "processor": processor(),
        "cores": std::thread::available_parallelism().map_or(1, |count| count.get()),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "placement": cores.note,
        "portcullis": line(binary, &["--version"]),
        "nginx": line("nginx", &["-v"]),
        "haproxy": line("haproxy", &["-v"]),
        "wrk": line("wrk", &["--version"]),
        "h2load": line("h2load", &["--version"]),
    })
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or("unknown", |(_, model)| model).to_owned()
}

/// The first line that a program says of itself, on whichever stream.
fn first_line(program: &str, arguments: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(arguments).output() else { return "not there".into() };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
}

/// Whether a program is there.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Moves this process, and with it what it starts without saying otherwise, to the load generator's cores.
pub(crate) fn settle(cores: &Cores) -> Result<()> {
    let id = std::process::id().to_string();
    let output = Command::new("taskset").args(["-a", "-c", "-p", &cores.load, &id]).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

/// A command on the load generator's cores.
pub(crate) fn load_command(cores: &Cores, program: impl AsRef<std::ffi::OsStr>) -> Command {
    command(&cores.load, program)
}
