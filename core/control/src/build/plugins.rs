//! Plugin instances: built from their tables, or taken over from the running generation.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use portcullis_config::{
    Diagnostic, Diagnostics, INSTANCE_OPTIONS, InstanceOptions, Meanwhile, Mode, Moment, NodeError,
    OnError as ConfigOnError, Quarantine as ConfigQuarantine, Reader, Source,
};
use portcullis_plugin::{BuildContext, BuildError, BuildFailure, HookName, Plugin};
use portcullis_proxy::chain::{Chain, Instance, OnError};
use portcullis_proxy::metrics::PluginMetrics;
use portcullis_proxy::quarantine::{Quarantine, QuarantineTerms};
use portcullis_proxy::shadow::{Partial, Shadow, ShadowOptions, Share};
use portcullis_proxy::upstream::Upstream;

use super::{Builder, Planned, Scope};
use crate::host::{Host, Services, Surroundings, Taken};
use crate::inputs::{Digest, Found};
use crate::store::OpenStore;
use crate::trust::Trust;

/// How long one wait may take unless the instance says otherwise: longer than any healthy call, shorter
/// than a client's patience.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An instance and everything it was made of.
pub(crate) struct BuiltPlugin {
    pub(crate) scope: Scope,
    pub(crate) instance: Arc<Instance>,
    /// How it is used.
    pub(crate) terms: Terms,
    plugin: Arc<dyn Plugin>,
    recipe: Digest,
    files: Vec<(PathBuf, Found)>,
    taken: Taken,
}

/// What all instances are built with.
#[derive(Clone, Copy)]
pub(super) struct Around<'b> {
    pub(super) store: &'b Arc<OpenStore>,
    pub(super) trust: Option<&'b Trust>,
}

/// How a plugin is used, whatever it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    on_error: OnError,
    quarantine: Option<QuarantineTerms>,
    timeout: Duration,
    pub(crate) mode: Mode,
    percent: u8,
    /// When the mode becomes another.
    pub(crate) until: Option<SystemTime>,
}

impl Terms {
    /// The terms that hold now.
    fn of(options: &InstanceOptions) -> Self {
        let (on_error, quarantine) = match options.on_error {
            ConfigOnError::Deny => (OnError::Deny, None),
            ConfigOnError::Allow => (OnError::Allow, None),
            ConfigOnError::Quarantine(quarantine) => {
                let on_error = match quarantine.meanwhile {
                    Meanwhile::Deny => OnError::Deny,
                    Meanwhile::Allow => OnError::Allow,
                };
                (on_error, Some(quarantine_terms(quarantine)))
            }
        };
        let timeout = options.timeout.map_or(TIMEOUT, |timeout| timeout.0);
        let (mode, until) = match options.until {
            Some(Moment(until)) if until <= SystemTime::now() => match options.mode {
                Mode::Enforce => (Mode::Off, None),
                Mode::Shadow | Mode::Off => (Mode::Enforce, None),
            },
            until => (options.mode, until.map(|until| until.0)),
        };
        Terms { on_error, quarantine, timeout, mode, percent: options.percent.0, until }
    }
}

fn quarantine_terms(configured: ConfigQuarantine) -> QuarantineTerms {
    let ConfigQuarantine { failures, within, first, longest, .. } = configured;
    QuarantineTerms { failures: failures.get(), within: within.0, first: first.0, longest: longest.0 }
}

impl BuiltPlugin {
    /// The file that the instance runs, or the first that it read.
    pub(crate) fn file(&self) -> Option<&PathBuf> {
        self.files.first().map(|(path, _)| path)
    }
}

impl Builder<'_> {
    /// Builds every instance, also after one failed: all errors are to be seen at once.
    pub(super) fn plugins(
        &mut self,
        planned: Vec<Planned>,
        upstreams: &[Arc<Upstream>],
        around: Around<'_>,
    ) -> Vec<BuiltPlugin> {
        let running = self.running.iter().flat_map(|running| &running.plugins);
        let running: HashMap<&str, &BuiltPlugin> =
            running.map(|plugin| (&*plugin.instance.name, plugin)).collect();
        let build = |planned: Planned| {
            let running = running.get(&*planned.name).copied();
            let built = self.plugin(&planned, running, upstreams, around)?;
            self.remark(&planned, &built);
            Some(built)
        };
        planned.into_iter().filter_map(build).collect()
    }

    fn plugin(
        &mut self,
        planned: &Planned,
        running: Option<&BuiltPlugin>,
        upstreams: &[Arc<Upstream>],
        around: Around<'_>,
    ) -> Option<BuiltPlugin> {
        let recipe = recipe(planned);
        let is_shadow = Terms::of(&planned.options).mode == Mode::Shadow;
        if let Some(running) = running.filter(|running| running.recipe == recipe)
            && running.taken.in_shadow.is_none_or(|before| before == is_shadow)
            && running.taken.store.as_ref().is_none_or(|store| Arc::ptr_eq(store, around.store))
            && self.is_trusted_alike()
            && self.unchanged(running, upstreams)
        {
            return Some(running.take_over(planned, self.services));
        }
        let Around { store, trust } = around;
        let surroundings = Surroundings {
            kind: planned.registration.kind,
            generation: self.number(),
            is_shadow,
            store,
            trust,
        };
        let mut host = Host::new(self.services, &self.dir, self.files, upstreams, surroundings)
            .below(planned.ceiling.as_deref());
        let result = make(planned, &mut host);
        let taken = host.into_taken();
        match result {
            Ok(made) => Some(self.built(planned, made, recipe, taken, running)),
            Err(errors) => {
                self.findings.0.extend(errors.0);
                None
            }
        }
    }

    /// Whether the running generation trusts the same keys.
    fn is_trusted_alike(&self) -> bool {
        self.running.is_some_and(|running| running.loaded.config.trust == self.loaded.config.trust)
    }

    /// Whether an instance would find everything that it took from outside its table as it was.
    fn unchanged(&mut self, running: &BuiltPlugin, upstreams: &[Arc<Upstream>]) -> bool {
        let same_upstream = |(name, taken): &(String, Option<Arc<Upstream>>)| {
            let found = upstreams.iter().find(|upstream| *upstream.name == **name);
            match (taken, found) {
                (Some(taken), Some(found)) => Arc::ptr_eq(taken, found),
                (taken, found) => taken.is_none() && found.is_none(),
            }
        };
        running.taken.upstreams.iter().all(same_upstream)
            && running.files.iter().all(|(path, found)| self.files.again(path, found))
    }

    fn built(
        &self,
        planned: &Planned,
        plugin: Arc<dyn Plugin>,
        recipe: Digest,
        taken: Taken,
        running: Option<&BuiltPlugin>,
    ) -> BuiltPlugin {
        let files = taken.files.iter();
        let files: Vec<_> = files.filter_map(|path| Some((path.clone(), self.files.found(path)?))).collect();
        let kind = planned.registration.kind;
        let terms = Terms::of(&planned.options);
        let metrics = self.services.metrics.plugin(&planned.name, kind);
        let version = version(recipe, &files);
        let name = planned.name.clone();
        let before = running.map(|running| &*running.instance).filter(|before| before.version == version);
        let instance = instance(name, kind, version, plugin.clone(), terms, metrics, before, self.services);
        BuiltPlugin { scope: planned.scope.clone(), instance, terms, plugin, recipe, files, taken }
    }

    /// What is odd about an instance that could be built.
    fn remark(&mut self, planned: &Planned, built: &BuiltPlugin) {
        for warning in built.taken.warnings.iter().chain(&built.taken.notices) {
            let found = planned.place.error(&planned.table, &warning.path, warning.message.clone());
            self.findings.push(found.into_warning());
        }
        let connection = built.instance.needs.wants(HookName::OnConnection);
        if connection && matches!(planned.scope, Scope::Route(_)) {
            let message = "it judges connections, before any route is known".to_owned();
            let error = planned.place.error(&planned.table, "", message);
            self.findings.push(error.with_help("put it into the listener's list or the gateway's"));
        }
    }
}

impl BuiltPlugin {
    /// The same plugin under the terms it has now.
    fn take_over(&self, planned: &Planned, services: &Services) -> BuiltPlugin {
        let terms = Terms::of(&planned.options);
        let old = &self.instance;
        let instance = if self.terms == terms {
            old.clone()
        } else {
            let (name, version, metrics) = (old.name.clone(), old.version.clone(), old.metrics.clone());
            instance(name, old.kind, version, self.plugin.clone(), terms, metrics, Some(old), services)
        };
        BuiltPlugin {
            scope: planned.scope.clone(),
            instance,
            terms,
            plugin: self.plugin.clone(),
            recipe: self.recipe,
            files: self.files.clone(),
            taken: Taken { notices: Vec::new(), ..self.taken.clone() },
        }
    }
}

/// A plugin under its terms; `before` is the instance of the same version that it follows.
#[expect(clippy::too_many_arguments, reason = "what an instance is made of")]
fn instance(
    name: Arc<str>,
    kind: &'static str,
    version: Arc<str>,
    plugin: Arc<dyn Plugin>,
    terms: Terms,
    metrics: Arc<PluginMetrics>,
    before: Option<&Instance>,
    services: &Services,
) -> Arc<Instance> {
    let Terms { on_error, quarantine, timeout, mode, percent, .. } = terms;
    let in_shadow = mode == Mode::Shadow;
    let share = Share { percent, plugin: name.clone() };
    let quarantine = quarantine.filter(|_| !in_shadow).map(|terms| {
        let before = before.and_then(|before| before.quarantine.as_ref());
        Quarantine::new(name.clone(), terms, (percent < 100).then(|| share.clone()), before)
    });
    let plugin: Arc<dyn Plugin> = match mode {
        Mode::Shadow => {
            let options = ShadowOptions {
                share,
                allows_errors: on_error == OnError::Allow,
                timeout,
                budget: services.budget.clone(),
                metrics: metrics.shadow.clone(),
            };
            Arc::new(Shadow::new(plugin, options))
        }
        Mode::Enforce if percent < 100 => Arc::new(Partial { plugin, share }),
        Mode::Enforce | Mode::Off => plugin,
    };
    let (needs, budget) = (plugin.needs(), plugin.budget());
    let serial = Instance::serial();
    Arc::new(Instance {
        name,
        kind,
        version,
        plugin,
        needs,
        on_error,
        quarantine,
        budget,
        timeout,
        in_shadow,
        metrics,
        serial,
    })
}

/// Instances by the list they stand in, each list in its order.
pub(super) struct Lists(HashMap<Scope, Vec<Arc<Instance>>>);

impl Lists {
    pub(super) fn new(plugins: &[BuiltPlugin]) -> Self {
        let mut lists: HashMap<Scope, Vec<Arc<Instance>>> = HashMap::new();
        for plugin in plugins.iter().filter(|plugin| plugin.terms.mode != Mode::Off) {
            lists.entry(plugin.scope.clone()).or_default().push(plugin.instance.clone());
        }
        Lists(lists)
    }

    /// Whether a list is empty.
    pub(super) fn is_empty(&self, scope: &Scope) -> bool {
        !self.0.contains_key(scope)
    }

    /// The lists of these scopes one after the other.
    pub(super) fn chain(&self, scopes: &[&Scope]) -> Arc<Chain> {
        let instances = scopes.iter().filter_map(|scope| self.0.get(scope)).flatten().cloned();
        Arc::new(Chain::new(instances.collect()))
    }
}

/// Builds one instance, or finds all errors in its table. A panic is an error like any other: it must not end the
/// gateway.
fn make(planned: &Planned, host: &mut Host<'_>) -> Result<Arc<dyn Plugin>, Diagnostics> {
    let Planned { registration, table, place, .. } = planned;
    let mut reader = table.reader(&place.path);
    loop {
        let attempt = catch_unwind(AssertUnwindSafe(|| attempt(planned, &reader, host)));
        match attempt {
            Ok(Ok(made)) => return Ok(made),
            Ok(Err(BuildFailure::Config(error))) if reader.note(&error) => {}
            Ok(Err(BuildFailure::Config(_))) => {
                let errors = reader.into_errors().into_iter();
                let advised = errors.map(|error| place.node_error(advised(error, registration.kind)));
                return Err(Diagnostics(advised.collect()));
            }
            Ok(Err(BuildFailure::Build(error))) => return Err(build_error(planned, error).into()),
            Err(panic) => {
                let message =
                    format!("`{}` panicked while it was built: {}", registration.kind, said(&*panic));
                return Err(place.error(table, "", message).into());
            }
        }
    }
}

/// The error with advice, if an option of every plugin was written among those of this kind.
fn advised(error: NodeError, kind: &str) -> NodeError {
    let is_named = |option: &&&str| error.message == format!("unknown key `{option}` in `{kind}`");
    match INSTANCE_OPTIONS.iter().find(is_named) {
        None => error,
        Some(option) => error.with_help(format!(
            "every plugin has it, so it stands beside: `{{ {option}: .., {kind}: {{ .. }} }}`"
        )),
    }
}

/// Builds once. After errors in the table the reader yields no value, so that nothing is built of a part of it.
fn attempt(
    planned: &Planned,
    reader: &Reader<'_>,
    host: &mut Host<'_>,
) -> Result<Arc<dyn Plugin>, BuildFailure> {
    let instance = portcullis_plugin::Instance {
        kind: planned.registration.kind,
        name: planned.name.clone(),
        state_schema: planned.registration.state_schema,
    };
    let mut context = BuildContext::new(instance, host);
    let mut table = <dyn erased_serde::Deserializer<'_>>::erase(reader.deserializer());
    (planned.registration.build)(&mut table, &mut context)
}

fn build_error(planned: &Planned, error: BuildError) -> Diagnostic {
    let diagnostic = match error.position {
        Some(position) => {
            let line = u32::try_from(position.line).unwrap_or(u32::MAX);
            let column = u32::try_from(position.column).unwrap_or(u32::MAX);
            Source::new(position.file, position.text).error_at(line, column, error.message)
        }
        None if is_policy(planned, &error.path) => {
            let apart =
                "if it only serves other policies, put it into a subdirectory and import it from there";
            let help = error.help.map_or(apart.to_owned(), |help| format!("{help}; {apart}"));
            return planned.place.error(&planned.table, &error.path, error.message).with_help(help);
        }
        None => planned.place.error(&planned.table, &error.path, error.message),
    };
    match error.help {
        Some(help) => diagnostic.with_help(help),
        None => diagnostic,
    }
}

/// Whether an error is about a policy file as a whole: it may have been none for its author.
fn is_policy(planned: &Planned, path: &str) -> bool {
    planned.place.policy.is_some() && path == "file"
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it did not say why")
}

/// A hash of what an instance is made of, apart from what it takes while it is built.
fn recipe(planned: &Planned) -> Digest {
    let table = planned.table.to_json().to_string();
    let ceiling = planned.ceiling.as_ref().map(|ceiling| format!("{ceiling:?}")).unwrap_or_default();
    Digest::of_parts([planned.registration.kind, &planned.name, &table, &ceiling].map(str::as_bytes))
}

fn version(recipe: Digest, files: &[(PathBuf, Found)]) -> Arc<str> {
    let files: Vec<_> = files.iter().map(|(_, found)| format!("{found:?}")).collect();
    let files = files.iter().map(|found| found.as_bytes());
    Digest::of_parts([recipe.as_bytes()].into_iter().chain(files)).short()
}
