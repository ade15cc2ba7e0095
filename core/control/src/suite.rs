//! Policy tests: the cases of a file, each run through a gateway of its own.

mod judge;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use portcullis_config::{
    Diagnostic, Diagnostics, Given, LoadedSuite, Moment, SUITE_ENDING, Step, Suite, parse_suite,
};
use portcullis_plugin::{ArtifactStore, Clock, Coverage, Principal};
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::record::Record;
use serde_json::Value;

use crate::artifacts::Memory;
use crate::control::dry_services;
use crate::host::{Env, Services};
use crate::inputs::{Files, Inputs, absolute};
use crate::policies::Alone;
use crate::registry::Registry;
use crate::rehearsal::{Answer, Asked, PROPS, Play, Props, Rehearsal, Seen, Untold};
use crate::state::StateStore;
use crate::store::Stores;

pub use judge::Mismatch;

/// The upstream behind a policy that is tested alone.
const ORIGIN: &str = "origin";

/// What came of a file of tests.
#[derive(Debug)]
pub struct SuiteRun {
    /// The file.
    pub path: PathBuf,
    /// Its cases, in their order.
    pub cases: Vec<CaseRun>,
    /// How long all of it took.
    pub took: Duration,
    /// What it was run on.
    pub inputs: RunOn,
}

/// What tests were run on.
#[derive(Debug, Clone, Default)]
pub struct RunOn(Inputs);

/// What came of a case.
#[derive(Debug)]
pub struct CaseRun {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub took: Duration,
    /// What is not as expected; none if the case passed.
    pub mismatches: Vec<Mismatch>,
    /// The record of the last request.
    pub record: Option<Record>,
}

/// How suites are run.
#[derive(Clone)]
pub struct Tester {
    registry: Registry,
    env: Env,
    coverage: Option<Arc<Coverage>>,
    artifacts: Arc<dyn ArtifactStore>,
}

/// What a suite is about.
enum Subject {
    Policy(PathBuf),
    Gateway(PathBuf),
}

impl Tester {
    /// A tester of policies of these kinds. `coverage` is told which lines of scripts run.
    pub fn new(registry: Registry, coverage: Option<Arc<Coverage>>) -> Self {
        let env: Env = Arc::new(|name| std::env::var(name).ok());
        Tester { registry, env, coverage, artifacts: Arc::new(Memory::default()) }
    }

    /// The one that a build tests its policies with.
    pub(crate) fn of(services: &Services) -> Self {
        let artifacts = services.artifacts.clone().unwrap_or_else(|| Arc::new(Memory::default()));
        Tester { registry: services.registry.clone(), env: services.env.clone(), coverage: None, artifacts }
    }

    /// Runs the suite in a file. The errors are those of the file and of what it is about, so that no case could begin;
    /// with them comes what was read nevertheless.
    pub async fn run(&self, path: &Path) -> Result<SuiteRun, (Diagnostics, RunOn)> {
        let mut files = Files::default();
        let run = self.run_with(path, &mut files).await;
        let inputs = RunOn(files.inputs().clone());
        match run {
            Ok((run, _)) => Ok(SuiteRun { inputs, ..run }),
            Err(findings) => Err((findings, inputs)),
        }
    }

    /// The same with files that may be another build's, and the suite as it was read.
    pub(crate) async fn run_with(
        &self,
        path: &Path,
        files: &mut Files,
    ) -> Result<(SuiteRun, LoadedSuite), Diagnostics> {
        let begun = Instant::now();
        let loaded = self.load(path, files)?;
        let subject = self.subject(&loaded)?;
        let nanos = Arc::new(AtomicU64::new(0));
        let props = Arc::new(Props::default());
        let (config, alone) = match subject {
            Subject::Gateway(config) => (config, None),
            Subject::Policy(policy) => {
                let options = loaded.root.child("options").cloned();
                let options = options.map(|node| (loaded.source.clone(), node));
                let around = around(&loaded.suite);
                (absolute(Path::new(""), path), Some(Arc::new(Alone { policy, options, around })))
            }
        };
        let services = self.services(&loaded.suite, &nanos);
        let play = Play { alone, props: Some(props.clone()) };
        let mut own = files.beside();
        let rehearsal = match Rehearsal::of(&config, play, services, &mut own).await {
            Ok(rehearsal) => rehearsal,
            Err(findings) => {
                files.absorb(own);
                return Err(findings);
            }
        };
        let mut stage = Stage { rehearsal, props, nanos, is_fresh: true };
        let mut cases = Vec::new();
        for at in 0..loaded.suite.cases.len() {
            cases.push(stage.case(&loaded, at).await);
        }
        files.absorb(stage.rehearsal.into_files());
        let run = SuiteRun { path: path.to_owned(), cases, took: begun.elapsed(), inputs: RunOn::default() };
        Ok((run, loaded))
    }

    fn load(&self, path: &Path, files: &mut Files) -> Result<LoadedSuite, Diagnostics> {
        let refused = |message: String| Diagnostics::from(Diagnostic::error(path, message));
        let file = absolute(Path::new(""), path);
        let content = files.read_policy(&file).map_err(refused)?;
        let source = content.at(&file);
        parse_suite(path, source.text().map_err(refused)?, &*self.env)
    }

    fn subject(&self, loaded: &LoadedSuite) -> Result<Subject, Diagnostics> {
        let path = absolute(Path::new(""), &loaded.source.path);
        let dir = path.parent().unwrap_or(Path::new("/"));
        match &loaded.suite {
            Suite { policy: Some(policy), .. } => return Ok(Subject::Policy(absolute(dir, policy))),
            Suite { gateway: Some(gateway), .. } => return Ok(Subject::Gateway(absolute(dir, gateway))),
            _ => {}
        }
        let name = path.to_string_lossy();
        let stem = name.strip_suffix(SUITE_ENDING).unwrap_or(&name);
        let beside = self.registry.kinds().map(|kind| PathBuf::from(format!("{stem}.{}", kind.kind)));
        let beside =
            beside.filter(|path| self.registry.runner_of(path).is_some()).find(|path| path.is_file());
        let config = PathBuf::from(format!("{stem}.yaml"));
        match beside {
            Some(policy) => Ok(Subject::Policy(policy)),
            None if config.is_file() && loaded.suite.options.is_none() => Ok(Subject::Gateway(config)),
            None => {
                let shown = Path::new(stem).file_name().unwrap_or_default().to_string_lossy();
                let error = Diagnostic::error(&loaded.source.path, "there is nothing beside it to be tested");
                let endings = self.registry.endings();
                Err(Diagnostics::from(error.with_help(format!(
                    "name it `{shown}` with ending {endings} or `.yaml`, or write `policy: FILE` or `gateway: FILE`"
                ))))
            }
        }
    }

    fn services(&self, suite: &Suite, nanos: &Arc<AtomicU64>) -> Services {
        let clock = Clock::set_by(nanos.clone());
        let (variables, env) = (suite.variables.clone(), self.env.clone());
        let dry = dry_services(&self.registry, BTreeMap::new(), Arc::new(Metrics::new(1)));
        Services {
            state: StateStore::with(clock.clone()),
            stores: Stores::rehearsed(dry.metrics.store.clone(), clock.clone()),
            clock,
            artifacts: Some(self.artifacts.clone()),
            coverage: self.coverage.clone(),
            env: Arc::new(move |name| variables.get(name).cloned().or_else(|| env(name))),
            ..dry
        }
    }
}

/// The configuration around a policy that is tested alone.
fn around(suite: &Suite) -> String {
    let names = suite.upstreams().into_iter().filter(|name| *name != ORIGIN);
    let upstreams: Vec<_> = [ORIGIN]
        .into_iter()
        .chain(names)
        .map(|name| {
            // A JSON string is a YAML string; the one thing it does not escape is interpolation.
            let name = Value::from(name).to_string().replace("${", "$${");
            format!("{name}: {{ endpoints: ['http://127.0.0.1:9'] }}")
        })
        .collect();
    format!(
        "admin: off\nlisteners: [{{ name: main, bind: '127.0.0.1:0' }}]\nupstreams: {{ {} }}\n\
         routes: [{{ name: all, upstream: {ORIGIN} }}]\n",
        upstreams.join(", ")
    )
}

/// A rehearsal with what is given beside requests.
struct Stage {
    rehearsal: Rehearsal,
    props: Arc<Props>,
    nanos: Arc<AtomicU64>,
    /// Whether nothing was asked yet.
    is_fresh: bool,
}

impl Stage {
    async fn case(&mut self, loaded: &LoadedSuite, at: usize) -> CaseRun {
        let begun = Instant::now();
        let case = &loaded.suite.cases[at];
        let mut run =
            CaseRun { name: case.name.clone(), took: Duration::ZERO, mismatches: Vec::new(), record: None };
        if let Err(findings) = self.begin().await {
            let path = format!("cases[{at}]");
            run.mismatches.push(Mismatch::failed(loaded, path, findings.render(false)));
            return run;
        }
        let mut given = case.given.over(&loaded.suite.given);
        let steps = case.steps();
        // A clock that a test moves stands still otherwise; at zero it goes by the machine's.
        let is_moved = steps.iter().any(|(_, step)| step.after.is_some());
        self.nanos.store(if is_moved { nanos_of(SystemTime::now()) } else { 0 }, Relaxed);
        self.tell_time(&given);
        'steps: for (path, step) in steps {
            let path = format!("cases[{at}]{path}");
            if let Some(after) = step.after {
                self.nanos.fetch_add(u64::try_from(after.0.as_nanos()).unwrap_or(u64::MAX >> 2), Relaxed);
            }
            self.tell_time(&step.given);
            given = step.given.over(&given);
            for _ in 0..step.times.get() {
                let (mismatches, record) = self.step(loaded, &path, &step, &given).await;
                // What is in the store now is what requests have made of it.
                given.store.clear();
                run.record = record;
                run.mismatches = mismatches;
                if !run.mismatches.is_empty() {
                    // What comes after it may only be its consequence.
                    break 'steps;
                }
            }
        }
        run.took = begun.elapsed();
        run
    }

    fn tell_time(&self, given: &Given) {
        if let Some(Moment(time)) = given.time {
            self.nanos.store(nanos_of(time), Relaxed);
        }
    }

    async fn begin(&mut self) -> Result<(), Diagnostics> {
        if std::mem::take(&mut self.is_fresh) { Ok(()) } else { self.rehearsal.renew().await }
    }

    async fn step(
        &self,
        loaded: &LoadedSuite,
        path: &str,
        step: &Step,
        given: &Given,
    ) -> (Vec<Mismatch>, Option<Record>) {
        let failed =
            |at: &str, why: String| (vec![Mismatch::failed(loaded, format!("{path}{at}"), why)], None);
        let known: Vec<_> = self.rehearsal.upstreams().collect();
        let named = given.upstreams.keys().chain(step.expect.upstreams.keys());
        if let Some(unknown) = named.into_iter().find(|name| !known.contains(&name.as_str())) {
            let known = known.join("`, `");
            return failed("", format!("there is no upstream `{unknown}`; there is `{known}`"));
        }
        if let Err(why) = self.give(given).await {
            return failed(".given", why);
        }
        let asked = match asked(&step.request) {
            Ok(asked) => asked,
            Err(why) => return failed(".request", why),
        };
        let mut told = match self.rehearsal.ask(&asked).await {
            Ok(told) => Some(told),
            Err(Untold::Refused) => None,
            Err(Untold::Failed(why)) => return failed(".request", why),
        };
        if let Some(told) = &mut told {
            told.record.steps.retain(|step| step.plugin != PROPS);
        }
        let seen = self.props.seen();
        let wrong = judge::judge(&step.expect, told.as_ref(), &seen);
        let mismatches = wrong.into_iter().map(|wrong| wrong.at(loaded, &format!("{path}.expect")));
        (mismatches.collect(), told.map(|told| told.record))
    }

    async fn give(&self, given: &Given) -> Result<(), String> {
        for (name, answer) in &given.upstreams {
            let answer = if answer.fails { Answer::Fails } else { Answer::Is(answered(answer)?) };
            self.rehearsal.answer(name, answer);
        }
        let kept = given
            .store
            .iter()
            .flat_map(|(instance, values)| values.iter().map(move |(key, value)| (instance, key, value)));
        for (instance, key, value) in kept {
            let value = body(Some(value), &mut HeaderMap::new());
            self.rehearsal.keep(instance, key, value).await?;
        }
        let principal = given.principal.clone().map(|given| Principal {
            id: given.id,
            issuer: given.issuer,
            roles: given.roles,
            scopes: given.scopes,
            claims: given.claims,
        });
        self.props.give(Seen { principal, facts: given.facts.clone() });
        Ok(())
    }
}

/// A moment as clocks count that tests set.
pub(crate) fn nanos_of(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX >> 1).max(1)
}

impl RunOn {
    /// Every path, and whether it is a directory of which every entry matters.
    pub fn paths(&self) -> impl Iterator<Item = (&Path, bool)> {
        self.0.paths()
    }

    /// Whether anything of it is another now.
    pub fn has_changed(&self) -> bool {
        !self.0.drift().is_empty()
    }
}

impl SuiteRun {
    /// Whether every case passed.
    pub fn passed(&self) -> bool {
        self.cases.iter().all(|case| case.mismatches.is_empty())
    }
}

fn asked(asked: &portcullis_config::Asked) -> Result<Asked, String> {
    let mut headers = headers(&asked.headers)?;
    let body = body(asked.body.as_ref(), &mut headers);
    if !headers.contains_key(HOST) {
        headers.insert(HOST, HeaderValue::from_static("localhost"));
    }
    let method = Method::from_bytes(asked.method.as_str().as_bytes()).map_err(|error| error.to_string())?;
    let request = Request::builder().method(method).uri(asked.path.as_str()).body(body);
    let mut request = request.map_err(|error| error.to_string())?;
    *request.headers_mut() = headers;
    Ok(Asked { listener: asked.listener.clone(), client: asked.client, request })
}

fn answered(answer: &portcullis_config::Answer) -> Result<Response<Bytes>, String> {
    let mut headers = headers(&answer.headers)?;
    let mut response = Response::new(body(answer.body.as_ref(), &mut headers));
    *response.status_mut() = StatusCode::from_u16(answer.status.code()).map_err(|error| error.to_string())?;
    *response.headers_mut() = headers;
    Ok(response)
}

fn headers(given: &BTreeMap<portcullis_config::HeaderName, String>) -> Result<HeaderMap, String> {
    let pair = |(name, value): (&portcullis_config::HeaderName, &String)| {
        let wrong = |_| format!("`{name}` cannot have this value");
        let name = HeaderName::try_from(name.as_str()).map_err(|error| error.to_string())?;
        Ok((name, HeaderValue::try_from(value).map_err(wrong)?))
    };
    given.iter().map(pair).collect()
}

/// A text as it is, anything else as JSON, which the headers then say.
fn body(given: Option<&Value>, headers: &mut HeaderMap) -> Bytes {
    match given {
        None => Bytes::new(),
        Some(Value::String(text)) => text.clone().into(),
        Some(json) => {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
            json.to_string().into()
        }
    }
}
