//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use portcullis_tests::repository;

use crate::{Result, contestants, workloads};

/// What there is to ask for; `tests/bench/run --help` shows it too.
pub(crate) const HELP: &str = include_str!("../../bench/options.txt");

/// What is to be done.
pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
    pub(crate) length: Duration,
    pub(crate) only: Vec<String>,
    pub(crate) contestants: Vec<String>,
    pub(crate) with: Vec<String>,
    pub(crate) workers: usize,
    pub(crate) instructions: bool,
    pub(crate) counter: Option<String>,
    pub(crate) requests: Option<u64>,
    pub(crate) binary: PathBuf,
    pub(crate) json: PathBuf,
    pub(crate) write_readme: bool,
}

/// What the command line asks for.
pub(crate) enum Wish {
    Run(Options),
    Help,
    List,
}

impl Options {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Wish> {
        let target = repository().join("target");
        let mut options = Options {
            quick: false,
            rounds: 5,
            length: Duration::from_secs(5),
            only: Vec::new(),
            contestants: Vec::new(),
            with: Vec::new(),
            workers: 1,
            instructions: false,
            counter: None,
            requests: None,
            binary: target.join("release/portcullis"),
            json: target.join("bench/results.json"),
            write_readme: false,
        };
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--quick" => {
                    options.quick = true;
                    options.rounds = 1;
                    options.length = Duration::from_secs(1);
                }
                "--rounds" => options.rounds = positive(&value()?)? as usize,
                "--seconds" => options.length = Duration::from_secs(positive(&value()?)?),
                "--only" => options.only = names(&value()?, workloads::ALL.iter().map(|known| known.name))?,
                "--contestants" => {
                    options.contestants = names(&value()?, contestants::ALL.iter().map(|known| known.name))?;
                }
                "--with" => {
                    let optional = contestants::ALL.iter().filter(|known| known.is_optional());
                    options.with = names(&value()?, optional.map(|known| known.name))?;
                }
                "--workers" => options.workers = positive(&value()?)? as usize,
                "--instructions" => options.instructions = true,
                "--counter" => {
                    options.counter = names(&value()?, ["perf", "callgrind"].into_iter())?.pop();
                }
                "--requests" => options.requests = Some(positive(&value()?)?),
                "--binary" => options.binary = value()?.into(),
                "--json" => options.json = value()?.into(),
                "--write-readme" => options.write_readme = true,
                "--list" => return Ok(Wish::List),
                "--help" | "-h" => return Ok(Wish::Help),
                other => return Err(format!("unknown option {other}; see --help").into()),
            }
        }
        Ok(Wish::Run(options))
    }

    /// Whether a name was asked for; all are, unless some are named.
    pub(crate) fn takes(list: &[String], name: &str) -> bool {
        list.is_empty() || list.iter().any(|wanted| wanted == name)
    }
}

fn positive(text: &str) -> Result<u64> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("`{text}` is not a positive number").into()),
    }
}

fn names<'a>(list: &str, known: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    let known: Vec<_> = known.collect();
    match list.split(',').find(|name| !known.contains(name)) {
        Some(unknown) => Err(format!("`{unknown}` is unknown; there are {}", known.join(", ")).into()),
        None => Ok(list.split(',').map(str::to_owned).collect()),
    }
}
