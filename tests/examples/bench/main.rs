//! The benchmark: Portcullis beside nginx and HAProxy, on the same work, in turns.
//!
//! `tests/bench/run` installs what this needs, builds it, and runs it; `tests/bench/README.md` tells what
//! the figures mean. Every measurement is of a fresh process: started, checked to do the work, warmed up,
//! measured, ended ([`measure`]). Rounds go through all contestants before any has its next turn, so that
//! what changes on the machine meanwhile meets all of them.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that reports")]

mod contestants;
mod fresh;
mod instructions;
mod load;
mod machine;
mod measure;
mod options;
mod process;
mod report;
mod template;
mod workloads;

use std::error::Error;
use std::fs;
use std::process::ExitCode;

use serde_json::{Value, json};

use contestants::{Contestant, Running, Stand};
use instructions::Counter;
use machine::Cores;
use measure::{Method, measure};
use options::{Options, Wish};
use report::{Results, Sample};
use workloads::{Work, Workload};

pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [first, rest @ ..] if first == "fresh" => fresh::main(rest),
        _ => begin(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn begin(arguments: Vec<String>) -> Result<()> {
    match Options::parse(arguments.into_iter())? {
        Wish::Help => print!("usage: bench [OPTION]...\n\n{}", options::HELP),
        Wish::List => list(),
        Wish::Run(options) => run(&options)?,
    }
    Ok(())
}

fn list() {
    println!("workloads:");
    workloads::ALL.iter().for_each(|workload| println!("  {:<22}  {}", workload.name, workload.about));
    println!("\ncontestants:");
    contestants::ALL.iter().for_each(|known| println!("  {:<22}  {}", known.name, known.about));
}

/// What could not be had, and what went wrong.
#[derive(Default)]
struct Remarks {
    left_out: Vec<String>,
    failed: Vec<String>,
}

fn run(options: &Options) -> Result<()> {
    if !options.binary.is_file() {
        return Err(format!("{} is not there; name another with --binary", options.binary.display()).into());
    }
    let binary = options.binary.canonicalize()?;
    let method = method(options)?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().to_owned();
    process::end_on_signals(move || {
        let _ = fs::remove_dir_all(path);
    })?;
    let cores = Cores::share(options.workers)?;
    // Before it has fewer cores to see.
    let machine = machine::description(&cores, &binary.display().to_string());
    machine::settle(&cores)?;
    let stand = Stand::new(dir, cores, binary, options.workers)?;
    let (mut results, mut remarks) = (Vec::new(), Remarks::default());
    let wanted = workloads::ALL.iter().filter(|workload| Options::takes(&options.only, workload.name));
    for workload in wanted.filter(|workload| suits(workload, method)) {
        let result = compare(&stand, workload, options, method, &mut remarks);
        println!("{}", result.table());
        results.push(result);
    }
    conclude(options, method, machine, &results, &remarks)
}

fn method(options: &Options) -> Result<Method> {
    if !options.instructions {
        return Ok(Method::Time(options.length));
    }
    let counter = Counter::choose(options.counter.as_deref())?;
    Ok(Method::Instructions(counter, options.requests.unwrap_or(counter.requests())))
}

/// Memory takes no instructions.
fn suits(workload: &Workload, method: Method) -> bool {
    matches!((&workload.work, method), (Work::Requests(_), _) | (Work::Idle { .. }, Method::Time(_)))
}

/// Everybody's turns at one workload.
fn compare(
    stand: &Stand,
    workload: &'static Workload,
    options: &Options,
    method: Method,
    remarks: &mut Remarks,
) -> Results {
    let known = |name: &&str| contestants::ALL.iter().find(|contestant| contestant.name == *name);
    let takes_part = |contestant: &&Contestant| {
        let is_edited = contestant.is_edited() && matches!(method, Method::Instructions(..));
        let is_wanted = match contestant.is_optional() {
            true => options.with.iter().any(|wanted| wanted == contestant.name),
            false => Options::takes(&options.contestants, contestant.name),
        };
        is_wanted && !is_edited
    };
    let mut present = Vec::new();
    for contestant in workload.contestants.iter().filter_map(known).filter(takes_part) {
        match contestant.missing(stand) {
            Some(why) => remarks.left_out.push(format!("{}, {}: {why}", workload.name, contestant.name)),
            None => present.push(contestant),
        }
    }
    let mut rows: Vec<(&str, Vec<Sample>)> =
        present.iter().map(|contestant| (contestant.name, Vec::new())).collect();
    for round in 0..options.rounds {
        for (contestant, (_, samples)) in present.iter().zip(&mut rows) {
            eprintln!("{}: {}, round {} of {}", workload.name, contestant.name, round + 1, options.rounds);
            match turn(stand, contestant, workload, method) {
                Ok(sample) => samples.push(sample),
                Err(error) => {
                    let failed = format!("{}, {}: {error}", workload.name, contestant.name);
                    eprintln!("{failed}");
                    remarks.failed.push(failed);
                }
            }
        }
    }
    Results { workload, rows }
}

fn turn(
    stand: &Stand,
    contestant: &Contestant,
    workload: &'static Workload,
    method: Method,
) -> Result<Sample> {
    let wrapper = match method {
        Method::Time(_) => Vec::new(),
        Method::Instructions(counter, _) => {
            counter.wrapper(&stand.dir.path().join(contestant.name).display().to_string())
        }
    };
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let running = Running::start(stand, contestant, workload, &wrapper)?;
    measure(&running, method)
}

fn conclude(
    options: &Options,
    method: Method,
    machine: Value,
    results: &[Results],
    remarks: &Remarks,
) -> Result<()> {
    let setting = match method {
        Method::Time(length) => {
            json!({ "rounds": options.rounds, "seconds": length.as_secs(), "workers": options.workers })
        }
        Method::Instructions(counter, requests) => json!({
            "rounds": options.rounds, "requests": requests, "workers": options.workers, "counter": counter.name(),
        }),
    };
    let mut words = Vec::new();
    for (key, value) in setting.as_object().into_iter().flatten() {
        words.push(format!("{key} {}", value.as_str().map_or(value.to_string(), str::to_owned)));
    }
    if options.write_readme {
        report::write_readme(&machine, &format!("Taken with {}.", words.join(", ")), results)?;
    }
    let document = report::json(machine, setting, results, &remarks.left_out);
    if let Some(dir) = options.json.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&options.json, serde_json::to_string_pretty(&document)?)?;
    println!("figures: {}", options.json.display());
    remarks.left_out.iter().for_each(|what| println!("left out: {what}"));
    match remarks.failed.as_slice() {
        [] => Ok(()),
        failed => Err(format!("failed:\n{}", failed.join("\n")).into()),
    }
}
