//! `test`: policies and configurations against the tests beside them.

mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use portcullis_config::SUITE_ENDING;
use portcullis_control::{RunOn, Tester, Watch};
use portcullis_plugin::Coverage;

use super::{Failure, TestOptions};
use crate::places::{self, Configuration};
use crate::{kinds, process, say};

use report::Outcome;

/// Directories within directories deeper than this are no place for tests, but perhaps a link in a circle.
const DEPTH: usize = 16;

/// `portcullis test`
pub(super) fn test(options: &TestOptions) -> Result<ExitCode, Failure> {
    process::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Run(error.to_string()))?;
    if options.watch {
        runtime.block_on(watch(options))
    } else {
        runtime.block_on(once(options)).map(|(code, _)| code)
    }
}

/// Runs everything, and again whenever anything of it changes.
async fn watch(options: &TestOptions) -> Result<ExitCode, Failure> {
    let mut watch = Watch::new();
    loop {
        let seen = suites(options).unwrap_or_default();
        let run_on = match once(options).await {
            Ok((_, run_on)) => run_on,
            Err(failure) => {
                say::remark(&format!("error: {}", failure.text()));
                Vec::new()
            }
        };
        say::remark("\nwaiting for changes; end with Ctrl-C");
        let directories: Vec<_> = roots(options).iter().map(|root| absolute(root)).collect();
        let directories = directories.iter().map(|root| (root.as_path(), root.is_dir()));
        watch.watch(run_on.iter().flat_map(RunOn::paths).chain(directories));
        // Reports that are written beside the tests are changes too.
        while !run_on.iter().any(RunOn::has_changed) && suites(options).unwrap_or_default() == seen {
            watch.changed().await;
            watch.settle().await;
        }
    }
}

/// Runs everything once; answers with what it was run on.
async fn once(options: &TestOptions) -> Result<(ExitCode, Vec<RunOn>), Failure> {
    let suites = suites(options)?;
    let coverage = (options.coverage || options.lcov.is_some()).then(|| Arc::new(Coverage::default()));
    let tester = Tester::new(kinds::registry(), coverage.clone());
    let (mut outcomes, mut run_on) = (Vec::new(), Vec::new());
    for suite in &suites {
        let run = tester.run(suite).await;
        let (read, run) = match run {
            Ok(run) => (run.inputs.clone(), Ok(run)),
            Err((findings, read)) => (read, Err(findings)),
        };
        run_on.push(read);
        let outcome = Outcome { path: suite.clone(), run };
        say::result(&report::shown(&outcome));
        outcomes.push(outcome);
    }
    say::result(&report::summary(&outcomes));
    if let Some(file) = &options.junit {
        write(file, &report::junit(&outcomes))?;
    }
    if let Some(coverage) = coverage {
        let files = coverage.files();
        if options.coverage {
            say::result(&report::coverage(&files));
        }
        if let Some(file) = &options.lcov {
            write(file, &report::lcov(&files))?;
        }
    }
    Ok((report::code(&outcomes), run_on))
}

/// The files of tests that are meant.
fn suites(options: &TestOptions) -> Result<Vec<PathBuf>, Failure> {
    let roots = roots(options);
    let mut suites = Vec::new();
    for root in &roots {
        if !root.exists() {
            return Err(Failure::Usage(format!("there is no `{}`", root.display())));
        }
        // Whoever names a file knows that it is one.
        if root.is_file() { suites.push(root.clone()) } else { collect(root, DEPTH, &mut suites) }
    }
    suites.sort();
    suites.dedup();
    if suites.is_empty() {
        let places: Vec<_> = roots.iter().map(|root| format!("`{}`", root.display())).collect();
        let places =
            if places.is_empty() { "here".to_owned() } else { format!("below {}", places.join(", ")) };
        return Err(Failure::Usage(format!(
            "there are no tests {places}: they are files whose names end in `{SUITE_ENDING}`"
        )));
    }
    Ok(suites)
}

/// Where to look: what was named, else what belongs to the configuration, else here.
fn roots(options: &TestOptions) -> Vec<PathBuf> {
    if !options.paths.is_empty() {
        return options.paths.clone();
    }
    let config = match places::configuration(options.config.clone()) {
        Configuration::File(path) => path,
        Configuration::Quickstart(_) | Configuration::Embedded => return vec![PathBuf::from(".")],
    };
    let mut roots = vec![config.with_extension("test.yaml")];
    if let Ok(loaded) = portcullis_config::load(&config) {
        roots.extend(loaded.config.policies.iter().map(|policies| loaded.resolve(&policies.dir)));
        roots.extend(scripts(&loaded));
    }
    roots.retain(|root| root.exists());
    roots
}

/// The tests beside the files that plugins of a configuration run.
fn scripts(loaded: &portcullis_config::Loaded) -> Vec<PathBuf> {
    let lists = [&loaded.config.plugins].into_iter();
    let lists = lists.chain(loaded.config.listeners.iter().map(|listener| &listener.plugins));
    let lists = lists.chain(loaded.config.routes.iter().map(|route| &route.plugins));
    let entries = lists.flatten().filter_map(|entry| match entry {
        portcullis_config::ChainEntry::Plugin(entry) => entry.table.child("file")?.text(),
        _ => None,
    });
    entries.map(|file| loaded.resolve(Path::new(file)).with_extension("test.yaml")).collect()
}

fn collect(dir: &Path, depth: usize, suites: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if name.starts_with('.') || name == "target" || name == "node_modules" {
            continue;
        }
        if name.ends_with(SUITE_ENDING) && path.is_file() {
            suites.push(path);
        } else if depth > 0 && path.is_dir() {
            collect(&path, depth - 1, suites);
        }
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn write(file: &Path, content: &str) -> Result<(), Failure> {
    fs::write(file, content)
        .map_err(|error| Failure::Run(format!("`{}` can't be written: {error}", file.display())))
}
