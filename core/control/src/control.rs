//! The handle on the control thread, and dry runs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_config::{Diagnostic, Diagnostics};
use portcullis_plugin::{Clock, LogSink, LogSinks};
use portcullis_proxy::DataPlane;
use portcullis_proxy::metrics::Metrics;
use rustix::fs::{Access, access};
use rustix::io::Errno;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::artifacts::Artifacts;
use crate::build::build;
use crate::gate::Tested;
use crate::host::{Env, Services};
use crate::last_good::LastGood;
use crate::offload::Pool;
use crate::registry::Registry;
use crate::reload::{ReloadOutcome, Reloader, Request, Sources, Trigger};
use crate::state::StateStore;
use crate::status::Status;
use crate::store::Stores;

/// Reload requests that wait for the one under way; further ones wait to be taken.
const QUEUE: usize = 16;

/// What the control plane needs to know besides the configuration.
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Where what survives a restart is kept; none keeps nothing.
    pub state_dir: Option<PathBuf>,
    /// Where the policy inputs of each generation are kept for a later start; none keeps none.
    pub last_good: Option<LastGood>,
    /// Whether a start with broken inputs serves the last good ones.
    pub fall_back: bool,
    /// Variables for `${NAME}` and `env:NAME`, before those of the environment.
    pub variables: BTreeMap<String, String>,
    /// Where log lines of plugins go.
    pub log_sinks: Arc<dyn LogSinks>,
}

/// The running control plane. It ends with its last handle.
#[derive(Clone)]
pub struct Control {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Arc<Status>>,
}

impl Control {
    /// Builds the first generation, puts it into effect, and from then on keeps `plane` at what is on
    /// disk. `metrics` must be those that `plane` was made with.
    ///
    /// The errors are those of the configuration and everything it names, all at once.
    pub async fn start(
        options: Options,
        registry: Registry,
        plane: Arc<DataPlane>,
        metrics: Arc<Metrics>,
    ) -> Result<Control, Diagnostics> {
        let sources = Sources {
            config: options.config.clone(),
            last_good: options.last_good.clone(),
            fall_back: options.fall_back,
        };
        let (requests, queue) = mpsc::channel(QUEUE);
        let (started, start) = oneshot::channel();
        let work = move || {
            let services = Arc::new(services(options, registry, metrics));
            run(services, sources, plane, queue, started);
        };
        let failed = |path: &Path, error: &dyn std::fmt::Display| {
            Diagnostics::from(Diagnostic::error(path, format!("the control plane cannot start: {error}")))
        };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(work)
            .map_err(|error| failed(Path::new(""), &error))?;
        let status = start.await.map_err(|error| failed(Path::new(""), &error))??;
        Ok(Control { requests, status })
    }

    /// Brings what runs to what is on disk, if it differs. Reloads happen one after the other.
    pub async fn reload(&self, trigger: Trigger) -> ReloadOutcome {
        let (done, wait) = oneshot::channel();
        let outcome = match self.requests.send(Request { trigger, done }).await {
            Ok(()) => wait.await.ok(),
            Err(_) => None,
        };
        outcome.unwrap_or_else(|| {
            let config = &self.status.borrow().config;
            ReloadOutcome::Refused(Diagnostic::error(config, "the control plane has ended").into())
        })
    }

    /// What runs, compared with what is on disk.
    pub async fn status(&self) -> Status {
        let status = self.status.borrow().clone();
        let inputs = status.inputs.clone();
        // Without an answer the runtime is ending.
        let drift = tokio::task::spawn_blocking(move || inputs.drift()).await.unwrap_or_default();
        Status { drift, ..Status::clone(&status) }
    }

    /// What runs, and word of every change of it; [`Status::drift`] is left empty.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }
}

type Started = oneshot::Sender<Result<watch::Receiver<Arc<Status>>, Diagnostics>>;

/// The life of the control thread.
fn run(
    services: Arc<Services>,
    sources: Sources,
    plane: Arc<DataPlane>,
    requests: mpsc::Receiver<Request>,
    started: Started,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error =
                Diagnostic::error(&sources.config, format!("the control plane cannot start: {error}"));
            // Whoever started this may be gone.
            return drop(started.send(Err(error.into())));
        }
    };
    runtime.block_on(async move {
        match Reloader::start(sources, services, plane).await {
            Ok(reloader) => {
                let _ = started.send(Ok(reloader.status()));
                reloader.run(requests).await;
            }
            Err(findings) => drop(started.send(Err(findings))),
        }
    });
}

fn services(options: Options, registry: Registry, metrics: Arc<Metrics>) -> Services {
    let artifacts = options.state_dir.as_deref().and_then(|dir| match Artifacts::open(dir) {
        Ok(artifacts) => Some(Arc::new(artifacts) as _),
        Err(reason) => {
            tracing::warn!(%reason, "compiled code is not kept between starts");
            None
        }
    });
    Services {
        registry,
        state: StateStore::default(),
        stores: Stores::new(metrics.store.clone()),
        artifacts,
        sinks: options.log_sinks,
        // Sized by each configuration that is applied.
        budget: metrics.whole_bodies.clone(),
        metrics,
        cpu: Arc::new(Pool::new()),
        // Sized like the budget.
        scripts: Arc::new(Pool::for_scripts()),
        env: env(options.variables),
        clock: Clock::default(),
        coverage: None,
        tested: Tested::default(),
        stage: None,
    }
}

/// What a configuration is built with that nobody is to see: no shared state, no log file, nothing written.
pub(crate) fn dry_services(
    registry: &Registry,
    variables: BTreeMap<String, String>,
    metrics: Arc<Metrics>,
) -> Services {
    Services {
        registry: registry.clone(),
        state: StateStore::default(),
        stores: Stores::isolated(metrics.store.clone()),
        artifacts: None,
        sinks: Arc::new(Discard),
        budget: metrics.whole_bodies.clone(),
        metrics,
        cpu: Arc::new(Pool::new()),
        scripts: Arc::new(Pool::for_scripts()),
        env: env(variables),
        clock: Clock::default(),
        coverage: None,
        tested: Tested::default(),
        stage: None,
    }
}

fn env(variables: BTreeMap<String, String>) -> Env {
    Arc::new(move |name| variables.get(name).cloned().or_else(|| std::env::var(name).ok()))
}

/// What a configuration that passed a dry run amounts to.
#[derive(Debug, Clone, Serialize)]
pub struct CheckSummary {
    /// Number of listeners.
    pub listeners: usize,
    /// Number of routes.
    pub routes: usize,
    /// Number of upstreams.
    pub upstreams: usize,
    /// Number of plugin instances, policies included.
    pub plugins: usize,
    /// Files read.
    pub files: usize,
    /// What is odd, though it works.
    pub warnings: Diagnostics,
}

/// Builds a whole generation, plugins included, and throws it away: no socket, no shared state, no
/// log file, nothing written. The errors are all there are.
pub fn check(
    config: &Path,
    registry: &Registry,
    variables: BTreeMap<String, String>,
) -> Result<CheckSummary, Diagnostics> {
    let services = dry_services(registry, variables, Arc::new(Metrics::new(1)));
    let built = build(config, &services, None, None).map_err(|failed| failed.findings)?;
    Ok(CheckSummary {
        listeners: built.generation.listeners.len(),
        routes: built.generation.routes.len(),
        upstreams: built.upstreams.len(),
        plugins: built.plugins.len(),
        files: built.inputs.files(),
        warnings: built.warnings,
    })
}

/// Sinks of a dry run: they write nothing, but fail where real ones would.
struct Discard;

impl LogSinks for Discard {
    fn open(&self, target: &str) -> Result<Arc<dyn LogSink>, String> {
        let opened = match target {
            "stdout" | "stderr" => Ok(()),
            path => could_append(Path::new(path)),
        };
        opened.map_err(|error| format!("`{target}` can't be opened for logs: {error}"))?;
        Ok(Arc::new(Discard))
    }
}

/// Whether a file could be opened for appending, or created, without doing either.
fn could_append(path: &Path) -> io::Result<()> {
    match access(path, Access::WRITE_OK) {
        Ok(()) if path.is_dir() => Err(Errno::ISDIR.into()),
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => Ok(access(path.parent().unwrap_or(path), Access::WRITE_OK | Access::EXEC_OK)?),
        Err(error) => Err(error.into()),
    }
}

impl LogSink for Discard {
    fn write(&self, _: &[u8]) {}
}

#[cfg(test)]
mod tests;
