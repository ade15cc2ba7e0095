//! Policies that fail their own tests do not apply: a build runs the tests beside what it was built from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use portcullis_config::{Diagnostic, Diagnostics, TestGate};
use portcullis_proxy::metrics::Metrics;

use crate::build::Built;
use crate::control::dry_services;
use crate::host::Services;
use crate::inputs::{Files, Inputs};
use crate::replay;
use crate::suite::Tester;

/// Findings of one suite that are shown: the first is mostly the cause of the others.
const SHOWN: usize = 10;

/// The suites that passed, each with all that it was run on: the same is not run again.
#[derive(Default)]
pub(crate) struct Tested(Mutex<BTreeMap<PathBuf, Inputs>>);

/// Lets a build pass that does not change more than it may, as its tests and recorded requests have it.
pub(crate) fn pass(
    built: Built,
    services: &Services,
    running: Option<&Built>,
    files: &mut Files,
) -> Result<Built, Diagnostics> {
    let built = tests(built, services, files)?;
    match running.and_then(|running| flips(&built, running, services, files)) {
        None => Ok(built),
        Some(found) => Err(found),
    }
}

/// Lets a build pass of whose recorded requests not too many end in another way than they do with what runs.
fn flips(built: &Built, running: &Built, services: &Services, files: &Files) -> Option<Diagnostics> {
    let config = &built.loaded.config;
    let (most, replay) = (config.reload.max_flips?, config.replay.as_ref()?);
    let path = &built.loaded.source.path;
    // Other data over the same policy is not what is asked about.
    if *running.accepted == *files.accepted() {
        return None;
    }
    let at = |message: &str| built.loaded.error("reload.max_flips", message);
    let recorded = crate::inputs::absolute(&built.loaded.dir, &replay.file);
    let samples = match replay::samples(&recorded) {
        Ok(samples) if samples.is_empty() => return None,
        Ok(samples) => samples,
        // Nothing was recorded so far.
        Err(_) if !recorded.exists() => return None,
        Err(unreadable) => return Some(at(&unreadable).into()),
    };
    let kind =
        || Services { env: services.env.clone(), artifacts: services.artifacts.clone(), ..dry(services) };
    let before = (path.as_path(), kind(), Files::new(Some(running.accepted.clone())));
    let after = (path.as_path(), kind(), files.beside());
    let compared = unheard(path, async {
        tokio::time::timeout(config.reload.timeout.0, replay::compare(before, after, &samples)).await
    });
    match compared {
        Err(found) => Some(found),
        Ok(Err(_)) => Some(at("the recorded requests take longer than `reload.timeout`").into()),
        Ok(Ok(Err(found))) => Some(found),
        Ok(Ok(Ok(replayed))) => replayed.finding(most, at("")).map(Diagnostics::from),
    }
}

fn dry(services: &Services) -> Services {
    dry_services(&services.registry, BTreeMap::new(), Arc::new(Metrics::new(1)))
}

/// Runs what nobody is to hear of, on a runtime of its own.
fn unheard<T>(config: &Path, work: impl Future<Output = T>) -> Result<T, Diagnostics> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Diagnostics::from(Diagnostic::error(config, format!("the policies cannot be tried: {error}")))
    })?;
    let _unheard = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
    Ok(runtime.block_on(work))
}

/// Lets a build pass whose tests do, or are not asked.
fn tests(mut built: Built, services: &Services, files: &mut Files) -> Result<Built, Diagnostics> {
    let gate = built.loaded.config.reload;
    if gate.tests == TestGate::Off {
        return Ok(built);
    }
    let suites: Vec<_> = suites(&built, services, files);
    let due: Vec<_> = suites.into_iter().filter(|suite| !services.tested.knows(suite, files)).collect();
    if due.is_empty() {
        return Ok(built);
    }
    let found = run(&built, &due, services, files);
    match gate.tests {
        TestGate::Enforce if !found.is_empty() => Err(found),
        _ => {
            built.warnings.0.extend(found.0.into_iter().map(Diagnostic::into_warning));
            Ok(built)
        }
    }
}

/// The tests of this generation: beside the files that plugins run, and beside the configuration.
fn suites(built: &Built, services: &Services, files: &mut Files) -> Vec<PathBuf> {
    let code = built.plugins.iter().filter_map(|plugin| plugin.file());
    let code = code.filter(|path| services.registry.runner_of(path).is_some());
    let config = crate::inputs::absolute(Path::new(""), &built.loaded.source.path);
    let mut suites: Vec<_> = code.chain([&config]).map(|path| path.with_extension("test.yaml")).collect();
    suites.sort();
    suites.dedup();
    // One that is not there is noted, so that it is noticed when it comes.
    suites.retain(|suite| files.read_policy(suite).is_ok() || suite.is_file());
    suites
}

/// What is wrong with these suites, or what they find.
fn run(built: &Built, due: &[PathBuf], services: &Services, files: &mut Files) -> Diagnostics {
    let config = &built.loaded.source.path;
    let within = built.loaded.config.reload.timeout;
    let tester = Tester::of(services);
    let mut found = Diagnostics::default();
    let all = async {
        for suite in due {
            found.0.extend(one(&tester, suite, services, files).await.0);
        }
    };
    let is_over = unheard(config, async { tokio::time::timeout(within.0, all).await.is_err() });
    let is_over = match is_over {
        Ok(is_over) => is_over,
        Err(failed) => return failed,
    };
    if is_over {
        let late =
            built.loaded.error("reload.timeout", format!("the policies' tests take longer than {within}"));
        found.push(late.with_help("`portcullis test` tells how long each takes"));
    }
    found
}

async fn one(tester: &Tester, suite: &Path, services: &Services, files: &mut Files) -> Diagnostics {
    let mut own = files.beside();
    let run = tester.run_with(suite, &mut own).await;
    let found = match &run {
        Ok((run, _)) => {
            let cases =
                run.cases.iter().flat_map(|case| case.mismatches.iter().map(move |wrong| (case, wrong)));
            let findings = cases.map(|(case, wrong)| {
                let message = format!("the test `{}` fails: {}", case.name, wrong.finding.message);
                Diagnostic { message, ..(*wrong.finding).clone() }
            });
            Diagnostics(findings.take(SHOWN).collect())
        }
        Err(findings) => findings.clone(),
    };
    if found.is_empty() {
        services.tested.note(suite, own.inputs().clone());
    }
    files.absorb(own);
    found
}

impl Tested {
    /// Whether a suite has passed on just these files.
    fn knows(&self, suite: &Path, files: &mut Files) -> bool {
        let tested = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(suite).cloned();
        tested.is_some_and(|inputs| files.all_again(&inputs))
    }

    fn note(&self, suite: &Path, inputs: Inputs) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(suite.to_owned(), inputs);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::testing::{Site, services};

    use super::*;

    #[test]
    fn what_has_passed_is_tested_again_only_when_something_of_it_changes() {
        let site = Site::new("policies: { dir: policies }\nroutes: [{ respond: {} }]\n");
        let tests = |body: &str| {
            format!("cases: [{{ name: '${{GIVEN}}', expect: {{ status: 200, body: {body} }} }}]\n")
        };
        site.write("policies/a.script", "one");
        site.write("policies/a.test.yaml", &tests("one"));
        // Whoever reads the tests asks for the variable.
        let runs = Arc::new(AtomicUsize::new(0));
        let counting = runs.clone();
        let env = move |name: &str| {
            counting.fetch_add(usize::from(name == "GIVEN"), Ordering::Relaxed);
            Some("a case".to_owned())
        };
        let services = Services { env: Arc::new(env), ..services() };
        let build = || site.build(&services, None).map(drop);
        assert_eq!((build(), build(), runs.load(Ordering::Relaxed)), (Ok(()), Ok(()), 1));
        site.write("policies/a.script", "two");
        let refused = build().unwrap_err();
        assert!(refused.contains("the test `a case` fails"), "{refused}");
        assert!(refused.contains("expected one, got two"), "{refused}");
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        site.write("policies/a.test.yaml", &tests("two"));
        assert_eq!((build(), build(), runs.load(Ordering::Relaxed)), (Ok(()), Ok(()), 3));
        site.write("policies/a.yaml", "prefix: 't'\n");
        assert!(build().unwrap_err().contains("got ttwo"));
    }
}
