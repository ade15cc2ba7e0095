//! A configuration and the files it names into a generation.
//!
//! A build collects every error it can find instead of stopping at the first, and takes over from
//! the running generation whatever is made of the same inputs: plugin instances, upstreams, TLS.
//! Its policy inputs may be ones that were accepted earlier, where those on disk are broken.

mod listeners;
mod plan;
mod plugins;
mod routes;
mod surroundings;
mod upstreams;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use portcullis_config::{Config, Diagnostic, Diagnostics, Loaded, Percent};
use portcullis_plugin::Slot;
use portcullis_proxy::generation::Generation;
use portcullis_proxy::record::{Names, RecordFile, RecordPlan};
use portcullis_proxy::routes::RouteTable;
use portcullis_proxy::sample::SamplePlan;
use portcullis_proxy::upstream::Upstream;

use crate::gate;
use crate::host::Services;
use crate::inputs::{Accepted, Files, Inputs, absolute};
use crate::policies;
use crate::rehearsal::isolate;
use crate::store::OpenStore;

pub(crate) use listeners::BuiltTls;
pub use listeners::listen_address;
pub(crate) use plan::{Planned, Scope, Whereabouts};
pub(crate) use plugins::BuiltPlugin;
pub(crate) use upstreams::{BuiltUpstream, Recipe};

/// A generation with what the next build may take over.
pub(crate) struct Built {
    pub(crate) generation: Arc<Generation>,
    pub(crate) loaded: Loaded,
    pub(crate) plugins: Vec<BuiltPlugin>,
    pub(crate) upstreams: Vec<BuiltUpstream>,
    pub(crate) tls: Vec<BuiltTls>,
    pub(crate) policies: Option<PathBuf>,
    pub(crate) inputs: Inputs,
    /// The policy inputs among them, with their contents.
    pub(crate) accepted: Arc<Accepted>,
    pub(crate) store: Arc<OpenStore>,
    pub(crate) warnings: Diagnostics,
}

impl Built {
    /// When the mode of one of its plugins becomes another.
    pub(crate) fn until(&self) -> Option<SystemTime> {
        self.plugins.iter().filter_map(|plugin| plugin.terms.until).min()
    }
}

/// A build that came to nothing.
pub(crate) struct Failed {
    pub(crate) findings: Diagnostics,
    /// What was read nevertheless; a change to any of it is worth another attempt.
    pub(crate) inputs: Inputs,
    /// The configuration, if nothing is wrong with it by itself.
    pub(crate) config: Option<Box<Config>>,
}

/// Builds the generation after `running` from the configuration at `path`, which like all policy
/// inputs is read from `accepted` if that is given.
pub(crate) fn build(
    path: &Path,
    services: &Services,
    running: Option<&Built>,
    accepted: Option<Arc<Accepted>>,
) -> Result<Built, Failed> {
    let mut files = Files::new(accepted);
    let mut config = None;
    let built = load(path, services, &mut files).and_then(|(loaded, errors)| {
        config = errors.is_empty().then(|| Box::new(loaded.config.clone()));
        Builder::new(&loaded, errors, services, running, &mut files).build()
    });
    // What was accepted has passed its tests.
    let built = if files.are_accepted() {
        built
    } else {
        built.and_then(|built| gate::pass(built, services, running, &mut files))
    };
    let inputs = files.inputs().clone();
    match built {
        Ok(built) => Ok(Built { inputs, accepted: files.accepted(), ..built }),
        Err(mut findings) => {
            findings.sort();
            Err(Failed { findings, inputs, config })
        }
    }
}

/// Builds for a rehearsal, whose files may be another build's. Nothing is tested: this is what tests run on.
pub(crate) fn build_from(path: &Path, services: &Services, files: &mut Files) -> Result<Built, Diagnostics> {
    let (loaded, errors) = load(path, services, files)?;
    Builder::new(&loaded, errors, services, None, files).build()
}

/// What can be read of the configuration, and its errors.
fn load(path: &Path, services: &Services, files: &mut Files) -> Result<(Loaded, Diagnostics), Diagnostics> {
    let refused = |message: String| Diagnostics::from(Diagnostic::error(path, message));
    if let Some((stage, alone)) =
        services.stage.as_ref().and_then(|stage| Some((stage, stage.play.alone.as_ref()?)))
    {
        let (mut loaded, errors) = portcullis_config::parse_partly(path, &alone.around, &*services.env)?;
        isolate(&mut loaded.config, &stage.sockets);
        return Ok((loaded, errors));
    }
    let file = absolute(Path::new(""), path);
    let content = files.read_policy(&file).map_err(refused)?;
    let source = content.at(&file);
    let text = source.text().map_err(refused)?;
    let (mut loaded, errors) = portcullis_config::parse_partly(path, text, &*services.env)?;
    if let Some(stage) = &services.stage {
        isolate(&mut loaded.config, &stage.sockets);
    }
    if content.world_writable {
        let warning = Diagnostic::error(path, "everybody can write this file").into_warning();
        loaded.warnings.push(warning.with_help(format!("`chmod o-w {}`", path.display())));
    }
    Ok((loaded, errors))
}

/// A share of all numbers of 32 bits; the whole is one short of it.
fn share_of(percent: Percent) -> u32 {
    (u64::from(u32::MAX) * u64::from(percent.0) / 100) as u32
}

/// A build under way. It goes on after errors, in the configuration's values too, to find all there are.
struct Builder<'b> {
    loaded: &'b Loaded,
    dir: PathBuf,
    services: &'b Services,
    running: Option<&'b Built>,
    files: &'b mut Files,
    /// Whether the configuration's own values are without errors.
    sound: bool,
    findings: Diagnostics,
}

impl<'b> Builder<'b> {
    fn new(
        loaded: &'b Loaded,
        errors: Diagnostics,
        services: &'b Services,
        running: Option<&'b Built>,
        files: &'b mut Files,
    ) -> Self {
        let dir = absolute(Path::new(""), &loaded.dir);
        let sound = errors.is_empty();
        let findings = Diagnostics(errors.0.into_iter().chain(loaded.warnings.0.clone()).collect());
        Builder { loaded, dir, services, running, files, sound, findings }
    }

    /// The number of the generation that is being built.
    fn number(&self) -> u64 {
        self.running.map_or(1, |running| running.generation.number + 1)
    }

    fn build(mut self) -> Result<Built, Diagnostics> {
        let config = &self.loaded.config;
        let upstreams = self.upstreams();
        let dir = config.policies.as_ref().map(|policies| absolute(&self.dir, &policies.dir));
        let policies = self.policies();
        let planned = self.plan(policies);
        let known: Vec<Arc<Upstream>> = upstreams.iter().map(|built| built.upstream.clone()).collect();
        let (store, trust) = (self.store(), self.trust());
        let around = plugins::Around { store: &store, trust: trust.as_ref() };
        let plugins = self.plugins(planned, &known, around);
        let routes = self.routes(&known);
        let tls = self.tls();
        let table = self.table();
        let (Some(routes), Some(table), false) = (routes, table, self.findings.has_errors()) else {
            return Err(self.findings);
        };
        let listeners = self.listeners(&plugins, &tls);
        let records = self.records();
        let (Some(records), false) = (records, self.findings.has_errors()) else { return Err(self.findings) };
        let number = self.number();
        let generation = Generation {
            number,
            names: Names::new(number, &listeners),
            records,
            version: self.files.inputs().digest().short(),
            listeners,
            table,
            routes,
            unrouted: self.services.metrics.route(""),
            trusted_proxies: config.trusted_proxies.iter().map(|network| network.0).collect(),
            max_exchanges: u64::from(config.limits.exchanges.get())
                .div_ceil(self.services.metrics.workers() as u64),
            max_body: config.limits.body.bytes(),
            budget: self.services.budget.clone(),
        };
        Ok(Built {
            generation: Arc::new(generation),
            loaded: self.loaded.clone(),
            plugins,
            upstreams,
            tls,
            policies: dir,
            inputs: Inputs::default(),
            accepted: Arc::default(),
            store,
            warnings: self.findings,
        })
    }

    /// What workers remember; each has an equal share of it.
    fn records(&mut self) -> Option<RecordPlan> {
        let portcullis_config::Records { refused, passed, file } = &self.loaded.config.records;
        let file = match file {
            None => None,
            Some(file) => match self.services.sink(&self.dir, &file.path) {
                Ok(sink) => Some(RecordFile { sink, passed: share_of(file.passed) }),
                Err(error) => {
                    self.error("records.file.path", error);
                    return None;
                }
            },
        };
        let share = |all: u32| (all as usize).div_ceil(self.services.metrics.workers());
        Some(RecordPlan { refused: share(*refused), passed: share(*passed), file, samples: self.samples() })
    }

    /// Which requests are written as they came; an error has its finding.
    fn samples(&mut self) -> Option<SamplePlan> {
        let replay = self.loaded.config.replay.as_ref()?;
        let path = absolute(&self.dir, &replay.file);
        match self.services.sinks.open_bounded(&path.to_string_lossy(), replay.max_bytes.0) {
            Ok(sink) => Some(SamplePlan {
                sink,
                share: share_of(replay.percent),
                max_body: usize::try_from(replay.max_body.0).unwrap_or(usize::MAX),
                redact_query: replay.redact_query.clone(),
                redact: replay.redact.iter().filter_map(|name| name.as_str().parse().ok()).collect(),
                slot: Slot::new(),
            }),
            Err(error) => {
                self.error("replay.file", error);
                None
            }
        }
    }

    fn policies(&mut self) -> Vec<Planned> {
        let stage = self.services.stage.as_ref();
        if let Some(alone) = stage.and_then(|stage| stage.play.alone.as_ref()) {
            return policies::alone(alone, self.services, self.files, &mut self.findings)
                .into_iter()
                .collect();
        }
        match &self.loaded.config.policies {
            Some(policies) => policies::read(
                self.loaded,
                &self.dir,
                policies,
                self.services,
                self.files,
                &mut self.findings,
            ),
            None => Vec::new(),
        }
    }

    fn table(&mut self) -> Option<RouteTable> {
        let matches = self.matches()?;
        // Routes that want the same are among those errors.
        if !self.sound {
            return None;
        }
        RouteTable::new(matches)
            .map_err(|error| {
                let (index, message) = routes::conflict(&error, &self.loaded.config.routes);
                self.error(&format!("routes[{index}].match"), message);
            })
            .ok()
    }

    /// Notes an error at a path of the configuration.
    fn error(&mut self, path: &str, message: impl Into<String>) {
        self.findings.push(self.loaded.error(path, message));
    }
}

#[cfg(test)]
mod tests;
