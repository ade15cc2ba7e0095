//! What one plugin instance is offered while it is built, and the record of what it took.

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_plugin::{
    ArtifactStore, BuildHost, BuildWarning, Cache, Ceiling, Clock, Coverage, CpuPool, Instance,
    InstanceCounters, LogSink, LogSinks, Outbound, RateTable, Secret, SecretRef, SourceFile, StateKey, Store,
    Tasks,
};
use portcullis_proxy::WorkerTasks;
use portcullis_proxy::body::Budget;
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::upstream::{Upstream, UpstreamClient};

use crate::gate::Tested;
use crate::inputs::{Content, Files, Role, absolute};
use crate::offload::Pool;
use crate::registry::Registry;
use crate::rehearsal::Stage;
use crate::state::StateStore;
use crate::store::{OpenStore, Stores};
use crate::trust::{Trust, replaceable};

/// Looks up environment variables.
pub(crate) type Env = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What outlives generations and every build works with.
pub(crate) struct Services {
    pub(crate) registry: Registry,
    pub(crate) state: StateStore,
    pub(crate) stores: Stores,
    pub(crate) artifacts: Option<Arc<dyn ArtifactStore>>,
    pub(crate) sinks: Arc<dyn LogSinks>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) cpu: Arc<dyn CpuPool>,
    /// For scripts that may wait.
    pub(crate) scripts: Arc<Pool>,
    pub(crate) env: Env,
    pub(crate) clock: Clock,
    /// Notes which lines of scripts run; only tests pay for it.
    pub(crate) coverage: Option<Arc<Coverage>>,
    /// Which suites of tests have passed, and on what.
    pub(crate) tested: Tested,
    /// Where a rehearsal takes place.
    pub(crate) stage: Option<Stage>,
}

impl Services {
    /// The sink for `stdout`, `stderr` or a file relative to `dir`.
    pub(crate) fn sink(&self, dir: &Path, target: &str) -> Result<Arc<dyn LogSink>, String> {
        if matches!(target, "stdout" | "stderr") {
            return self.sinks.open(target);
        }
        self.sinks.open(&absolute(dir, Path::new(target)).to_string_lossy())
    }
}

/// The host of one instance's build.
pub(crate) struct Host<'h> {
    services: &'h Services,
    dir: &'h Path,
    files: &'h mut Files,
    upstreams: &'h [Arc<Upstream>],
    surroundings: Surroundings<'h>,
    ceiling: Option<&'h Ceiling>,
    taken: Taken,
}

/// What one instance's build is like, beside files and upstreams.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'h> {
    pub(crate) kind: &'h str,
    /// The number of the generation.
    pub(crate) generation: u64,
    pub(crate) is_shadow: bool,
    pub(crate) store: &'h Arc<OpenStore>,
    /// None if whatever is configured runs.
    pub(crate) trust: Option<&'h Trust>,
}

/// What an instance took from outside its table: it is built anew when any of it changes.
#[derive(Clone, Default)]
pub(crate) struct Taken {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) upstreams: Vec<(String, Option<Arc<Upstream>>)>,
    /// The store, if it took its part of it.
    pub(crate) store: Option<Arc<OpenStore>>,
    /// Whether it was in shadow when it took what differs there.
    pub(crate) in_shadow: Option<bool>,
    pub(crate) warnings: Vec<BuildWarning>,
    /// Remarks on this build alone.
    pub(crate) notices: Vec<BuildWarning>,
}

impl<'h> Host<'h> {
    pub(crate) fn new(
        services: &'h Services,
        dir: &'h Path,
        files: &'h mut Files,
        upstreams: &'h [Arc<Upstream>],
        surroundings: Surroundings<'h>,
    ) -> Self {
        Host { services, dir, files, upstreams, surroundings, ceiling: None, taken: Taken::default() }
    }

    /// For an instance that may be granted no more than this.
    pub(crate) fn below(self, ceiling: Option<&'h Ceiling>) -> Self {
        Host { ceiling, ..self }
    }

    /// What was taken.
    pub(crate) fn into_taken(self) -> Taken {
        self.taken
    }

    fn read(&mut self, role: Role, path: &str) -> Result<(PathBuf, Content), String> {
        let path = absolute(self.dir, Path::new(path));
        let result = match role {
            Role::Policy => self.files.read_policy(&path),
            Role::Data => self.files.read_data(&path),
        };
        if !self.taken.files.contains(&path) {
            self.taken.files.push(path.clone());
        }
        result.map(|content| (path, content))
    }
}

impl BuildHost for Host<'_> {
    fn file(&mut self, path: &str) -> Result<SourceFile, String> {
        let (path, content) = self.read(Role::Policy, path)?;
        // What a kind that runs files reads is code, whatever it is called.
        let registry = &self.services.registry;
        let runner = registry.runner_of(&path).or_else(|| registry.runner(self.surroundings.kind));
        if let Some(runner) = runner {
            if content.world_writable {
                return Err(world_writable(&path));
            }
            if let Some(refused) = replaceable(&path) {
                return Err(refused);
            }
            if let Some(trust) = self.surroundings.trust.filter(|trust| trust.wants(runner.kind)) {
                let mut read = |path: &Path| self.read(Role::Policy, &path.to_string_lossy());
                trust.verify(&path, &content.bytes, |path| read(path).map(|(_, found)| found.bytes))?;
            }
        }
        Ok(content.at(&path))
    }

    fn data_file(&mut self, path: &str) -> Result<SourceFile, String> {
        self.read(Role::Data, path).map(|(path, content)| content.at(&path))
    }

    fn secret(&mut self, secret: &SecretRef) -> Result<Secret, String> {
        match secret {
            SecretRef::Env(name) => match (self.services.env)(name) {
                None => Err(format!("environment variable `{name}` is not set")),
                Some(value) if value.is_empty() => Err(format!("environment variable `{name}` is empty")),
                Some(value) => Ok(Secret::new(value.into_bytes())),
            },
            SecretRef::File(path) => {
                let (path, content) = self.read(Role::Data, path)?;
                let secret = content.bytes.strip_suffix(b"\n").unwrap_or(&content.bytes);
                let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
                if secret.is_empty() {
                    return Err(format!("`{}` is empty", path.display()));
                }
                Ok(Secret::new(secret))
            }
        }
    }

    fn shared(
        &mut self,
        key: StateKey,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync> {
        self.services.state.shared(key, make)
    }

    fn cache(&mut self, key: StateKey, entries: u64) -> Arc<dyn Cache> {
        self.taken.in_shadow = Some(self.surroundings.is_shadow);
        self.services.state.cache(key, entries)
    }

    fn rates(&mut self, key: StateKey) -> Arc<RateTable> {
        self.taken.in_shadow = Some(self.surroundings.is_shadow);
        self.services.state.rates(key)
    }

    fn store(&mut self) -> Arc<dyn Store> {
        let Surroundings { store, is_shadow, .. } = self.surroundings;
        self.taken.in_shadow = Some(is_shadow);
        self.taken.store = Some(store.clone());
        store.clone()
    }

    fn ceiling(&self) -> Option<Ceiling> {
        self.ceiling.cloned()
    }

    fn is_shadow(&self) -> bool {
        self.surroundings.is_shadow
    }

    fn clock(&self) -> Clock {
        self.services.clock.clone()
    }

    fn coverage(&self) -> Option<Arc<Coverage>> {
        self.services.coverage.clone()
    }

    fn upstream(&mut self, name: &str) -> Option<Arc<dyn Outbound>> {
        let found = self.upstreams.iter().find(|upstream| &*upstream.name == name).cloned();
        self.taken.in_shadow = Some(self.surroundings.is_shadow);
        self.taken.upstreams.push((name.to_owned(), found.clone()));
        found.map(|upstream| Arc::new(UpstreamClient::new(upstream, self.services.budget.clone())) as _)
    }

    fn upstream_names(&self) -> Vec<String> {
        self.upstreams.iter().map(|upstream| upstream.name.to_string()).collect()
    }

    fn artifacts(&self) -> Option<Arc<dyn ArtifactStore>> {
        self.services.artifacts.clone()
    }

    fn log_sink(&mut self, target: &str) -> Result<Arc<dyn LogSink>, String> {
        self.services.sink(self.dir, target)
    }

    fn generation(&self) -> u64 {
        self.surroundings.generation
    }

    fn counters(&mut self, instance: &Instance) -> Arc<InstanceCounters> {
        self.services.metrics.plugin(&instance.name, instance.kind).own.clone()
    }

    fn cpu_pool(&mut self) -> Arc<dyn CpuPool> {
        self.services.cpu.clone()
    }

    fn script_threads(&mut self) -> Arc<dyn CpuPool> {
        self.services.scripts.clone()
    }

    fn tasks(&mut self) -> Arc<dyn Tasks> {
        Arc::new(WorkerTasks)
    }

    fn warn(&mut self, warning: BuildWarning) {
        self.taken.warnings.push(warning);
    }

    fn notice(&mut self, notice: BuildWarning) {
        self.taken.notices.push(notice);
    }
}

/// Why code that everybody could replace is not run.
pub(crate) fn world_writable(path: &Path) -> String {
    format!("`{0}` can be written by everybody, so it is not run; `chmod o-w {0}`", path.display())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use crate::testing;

    use super::*;

    #[test]
    fn a_file_is_found_beside_the_configuration_and_noted() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("list.txt"), "10.0.0.0/8").unwrap();
        let (services, mut files) = (testing::services(), Files::default());
        let memory = services.stores.memory();
        let mut host = Host::new(&services, dir.path(), &mut files, &[], testing::surroundings(&memory));
        assert_eq!(host.file("list.txt").unwrap().text(), Ok("10.0.0.0/8"));
        assert!(host.file("absent.txt").unwrap_err().ends_with("absent.txt` does not exist"));
        let noted = host.into_taken().files;
        assert_eq!(noted, [dir.path().join("list.txt"), dir.path().join("absent.txt")]);
    }

    #[test]
    fn code_that_everybody_could_replace_is_refused_but_a_list_is_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.script", "a.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o666)).unwrap();
        }
        let (services, mut files) = (testing::services(), Files::default());
        let memory = services.stores.memory();
        let mut host = Host::new(&services, dir.path(), &mut files, &[], testing::surroundings(&memory));
        assert!(host.file("a.script").unwrap_err().contains("can be written by everybody"));
        assert!(host.file("a.txt").is_ok());
    }

    #[test]
    fn secrets_come_from_the_environment_or_a_file_without_its_line_end() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), "s3cret\r\n").unwrap();
        fs::write(dir.path().join("empty"), "\n").unwrap();
        let (services, mut files) = (testing::services(), Files::default());
        let memory = services.stores.memory();
        let mut host = Host::new(&services, dir.path(), &mut files, &[], testing::surroundings(&memory));
        let secret = |host: &mut Host<'_>, text: &str| host.secret(&text.to_owned().try_into().unwrap());
        assert_eq!(secret(&mut host, "file:key").unwrap().expose(), b"s3cret");
        assert_eq!(secret(&mut host, "env:GIVEN").unwrap().expose(), b"given");
        assert!(secret(&mut host, "env:ABSENT").unwrap_err().contains("`ABSENT` is not set"));
        assert!(secret(&mut host, "file:empty").unwrap_err().contains("is empty"));
        assert!(secret(&mut host, "file:none").unwrap_err().contains("does not exist"));
    }
}
