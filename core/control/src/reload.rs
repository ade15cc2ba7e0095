//! The control thread: takes reasons to reload one after the other, and keeps the old generation
//! unless the new one is whole.

use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portcullis_config::{Config, Diagnostic, Diagnostics};
use portcullis_proxy::{BindError, DataPlane};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::build::{Built, Failed, build};
use crate::health::Checks;
use crate::host::Services;
use crate::inputs::Inputs;
use crate::status::{LastError, ReloadCounts, Status, now};
use crate::watch::Watch;

/// Builds in a row while files keep changing under them. After that the build stands as it is: what
/// it missed is noticed like any later change.
const ATTEMPTS: usize = 3;

/// Between two looks at state that nobody uses.
const SWEEP: Duration = Duration::from_secs(60);

/// What asked for a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// The admin interface.
    Admin,
    /// A change on disk.
    Watch,
}

/// What became of a reload.
#[derive(Debug, Clone)]
pub enum ReloadOutcome {
    /// What is on disk runs already.
    Unchanged,
    /// A new generation runs.
    Applied {
        /// Its number.
        number: u64,
    },
    /// The old generation runs on, because of these errors.
    Refused(Diagnostics),
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trigger::Signal => "signal",
            Trigger::Admin => "admin",
            Trigger::Watch => "watch",
        })
    }
}

/// A reload that somebody waits for.
pub(crate) struct Request {
    pub(crate) trigger: Trigger,
    pub(crate) done: oneshot::Sender<ReloadOutcome>,
}

/// Everything the control thread works with.
pub(crate) struct Reloader {
    config: PathBuf,
    services: Arc<Services>,
    plane: Arc<DataPlane>,
    running: Arc<Built>,
    checks: Checks,
    /// What the process began with: some settings are fixed then.
    fixed: Config,
    refused: Option<Refused>,
    status: watch::Sender<Arc<Status>>,
    watch: Watch,
}

/// An attempt that failed, and on what inputs: the same inputs are not worth another.
struct Refused {
    inputs: Inputs,
    findings: Diagnostics,
}

impl Reloader {
    /// Puts the first generation into effect.
    pub(crate) async fn start(
        config: PathBuf,
        services: Arc<Services>,
        plane: Arc<DataPlane>,
    ) -> Result<Self, Diagnostics> {
        let begun = Instant::now();
        let built = build_settled(&config, &services, None).await.map_err(|failed| failed.findings)?;
        let running = Arc::new(built);
        apply(&plane, &services, &running).await?;
        let status = Status { build_ms: millis(begun), ..Status::new(&config, &running, &plane.addresses()) };
        log_applied(&status, None, &[]);
        let fixed = running.loaded.config.clone();
        let (status, _) = watch::channel(Arc::new(status));
        let (mut checks, watch) = (Checks::default(), Watch::new());
        checks.follow(&running.upstreams);
        let mut reloader =
            Reloader { config, services, plane, running, checks, fixed, refused: None, status, watch };
        reloader.watch_inputs();
        Ok(reloader)
    }

    /// Where the status is published.
    pub(crate) fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    /// Reloads whenever there is reason to, until nobody can ask any more.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                request = requests.recv() => {
                    let Some(Request { trigger, done }) = request else { return };
                    let outcome = self.reload(trigger).await;
                    // Whoever asked may have stopped waiting.
                    let _ = done.send(outcome);
                }
                () = self.watch.changed() => {
                    self.watch.settle().await;
                    self.reload(Trigger::Watch).await;
                }
                _ = sweep.tick() => self.services.state.sweep(Instant::now()),
            }
        }
    }

    async fn reload(&mut self, trigger: Trigger) -> ReloadOutcome {
        let changed = self.drift().await;
        let outcome = match &self.refused {
            _ if changed.is_empty() => self.unchanged(trigger),
            Some(refused) if trigger == Trigger::Watch && still(&refused.inputs).await => {
                return ReloadOutcome::Refused(refused.findings.clone());
            }
            _ => self.attempt(trigger, &changed).await,
        };
        self.watch_inputs();
        self.services.state.sweep(Instant::now());
        outcome
    }

    /// What runs is what is on disk. A mistake that was undone is forgotten.
    fn unchanged(&mut self, trigger: Trigger) -> ReloadOutcome {
        let undone = self.refused.take().is_some();
        if undone || trigger != Trigger::Watch {
            tracing::info!(
                target: "portcullis::reload",
                %trigger,
                generation = self.running.generation.number,
                "reload: nothing has changed"
            );
        }
        self.publish(|status| {
            status.last_error = None;
            // A look that nobody asked for and that found nothing is no reload.
            status.reloads.unchanged += u64::from(undone || trigger != Trigger::Watch);
        });
        ReloadOutcome::Unchanged
    }

    async fn attempt(&mut self, trigger: Trigger, changed: &[PathBuf]) -> ReloadOutcome {
        let begun = Instant::now();
        let built = build_settled(&self.config, &self.services, Some(self.running.clone())).await;
        let built = match built {
            Ok(built) => Arc::new(self.with_remarks(built)),
            Err(failed) => return self.refuse(trigger, failed, begun),
        };
        if let Err(findings) = apply(&self.plane, &self.services, &built).await {
            return self.refuse(trigger, Failed { findings, inputs: built.inputs.clone() }, begun);
        }
        let number = built.generation.number;
        let old = std::mem::replace(&mut self.running, built);
        self.checks.follow(&self.running.upstreams);
        // Plugins that nobody needs any more end here; how is no concern of the next reload.
        drop(tokio::task::spawn_blocking(move || drop(old)));
        self.refused = None;
        let fresh = Status::new(&self.config, &self.running, &self.plane.addresses());
        self.publish(|status| {
            *status = Status {
                started: status.started,
                build_ms: millis(begun),
                reloads: ReloadCounts { applied: status.reloads.applied + 1, ..status.reloads },
                ..fresh
            };
        });
        log_applied(&self.status.borrow(), Some(trigger), changed);
        ReloadOutcome::Applied { number }
    }

    fn refuse(&mut self, trigger: Trigger, failed: Failed, begun: Instant) -> ReloadOutcome {
        let Failed { findings, inputs } = failed;
        tracing::error!(
            target: "portcullis::reload",
            %trigger,
            generation = self.running.generation.number,
            ms = millis(begun),
            "reload refused, the old generation stays\n{}",
            findings.render(false)
        );
        self.publish(|status| {
            status.last_error = Some(LastError { at: now(), trigger, diagnostics: findings.clone() });
            status.reloads.refused += 1;
        });
        self.refused = Some(Refused { inputs, findings: findings.clone() });
        ReloadOutcome::Refused(findings)
    }

    /// Adds warnings about changed settings that cannot take effect any more.
    fn with_remarks(&self, mut built: Built) -> Built {
        let (fixed, config) = (&self.fixed, &built.loaded.config);
        for (setting, changed) in [
            ("workers", fixed.workers != config.workers),
            ("state_dir", fixed.state_dir != config.state_dir),
            ("pid_file", fixed.pid_file != config.pid_file),
            ("admin", fixed.admin != config.admin),
            ("log", fixed.log != config.log),
        ] {
            if changed {
                let message = format!("`{setting}` is fixed while the gateway runs");
                let warning = built.loaded.error(setting, message).with_help("restart to change it");
                built.warnings.push(warning.into_warning());
            }
        }
        built
    }

    async fn drift(&self) -> Vec<PathBuf> {
        let running = self.running.clone();
        blocking(move || running.inputs.drift()).await
    }

    /// Watches what runs is made of, and what a refused attempt saw.
    fn watch_inputs(&mut self) {
        let refused = self.refused.iter().flat_map(|refused| refused.inputs.paths());
        self.watch.watch(self.running.inputs.paths().chain(refused));
    }

    fn publish(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
    }
}

/// Builds until what was built is what is on disk.
async fn build_settled(
    config: &Path,
    services: &Arc<Services>,
    running: Option<Arc<Built>>,
) -> Result<Built, Failed> {
    let (config, services) = (config.to_owned(), services.clone());
    blocking(move || {
        let seen = running.as_ref().map_or_else(Inputs::default, |running| running.inputs.now());
        let work = || settle(|| build(&config, &services, running.as_deref()));
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            let error = Diagnostic::error(&config, "the build panicked; the log has the details");
            Err(Failed { findings: error.into(), inputs: seen })
        })
    })
    .await
}

fn settle(attempt: impl Fn() -> Result<Built, Failed>) -> Result<Built, Failed> {
    let mut built = attempt();
    for _ in 1..ATTEMPTS {
        let inputs = built.as_ref().map_or_else(|failed| &failed.inputs, |built| &built.inputs);
        if inputs.drift().is_empty() {
            break;
        }
        built = attempt();
    }
    built
}

/// Binds what is new and swaps; after an error nothing has changed.
async fn apply(plane: &DataPlane, services: &Services, built: &Built) -> Result<(), Diagnostics> {
    let config = &built.loaded.config;
    let addresses: Vec<SocketAddr> =
        config.listeners.iter().flat_map(|listener| &listener.bind).map(|address| address.0).collect();
    let bound = plane.bind(&addresses).map_err(|error| Diagnostics::from(bind_error(built, &error)))?;
    services.budget.resize(config.limits.whole_bodies.0);
    plane.swap(built.generation.clone(), bound).await;
    Ok(())
}

fn bind_error(built: &Built, error: &BindError) -> Diagnostic {
    let listeners = built.loaded.config.listeners.iter().enumerate();
    let binds = listeners.flat_map(|(listener, config)| {
        config.bind.iter().enumerate().map(move |(bind, address)| (listener, bind, address.0))
    });
    let found = binds.into_iter().find(|(_, _, address)| *address == error.address);
    let path = match found {
        Some((listener, bind, _)) => format!("listeners[{listener}].bind[{bind}]"),
        None => "listeners".to_owned(),
    };
    built.loaded.error(&path, format!("cannot listen at {}: {}", error.address, error.source))
}

/// Whether these inputs are still what is on disk.
async fn still(inputs: &Inputs) -> bool {
    let inputs = inputs.clone();
    blocking(move || inputs.drift().is_empty()).await
}

/// Runs what takes time off the control thread, which answers meanwhile.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("the runtime outlives its main task: {error}"),
        },
    }
}

fn log_applied(status: &Status, trigger: Option<Trigger>, changed: &[PathBuf]) {
    for warning in &status.warnings.0 {
        tracing::warn!(target: "portcullis::reload", "{}", warning.render(false).trim_end());
    }
    tracing::info!(
        target: "portcullis::reload",
        generation = status.generation,
        version = &*status.version,
        ms = status.build_ms,
        trigger = trigger.map(tracing::field::display),
        changed = (!changed.is_empty()).then(|| tracing::field::debug(changed.to_owned())),
        "generation applied"
    );
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use crate::testing::{Site, builds, services};

    use super::*;

    #[test]
    fn a_file_that_changes_under_a_build_is_built_again() {
        let site =
            Site::new("plugins: [{ stamp: { list: list.txt, write: later } }]\nroutes: [{ respond: {} }]\n");
        site.write("list.txt", "first");
        let services = services();
        let built = settle(|| build(&site.config(), &services, None)).ok().unwrap();
        assert!(built.inputs.drift().is_empty());
        assert_eq!(builds(&services, "stamp", ""), 2);
    }
}
