//! The control thread: takes reasons to reload one after the other, and keeps the old generation
//! unless the new one is whole.
//!
//! While policy inputs are broken, data inputs still apply: over the policy inputs that run.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use portcullis_config::{Config, Diagnostic, Diagnostics};
use portcullis_proxy::{BindError, DataPlane};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::build::{Built, Failed, build, listen_address};
use crate::dns::{self, Lookups};
use crate::health::Checks;
use crate::host::Services;
use crate::inputs::{Accepted, Digest, Inputs, Role};
use crate::last_good::LastGood;
use crate::status::{LastError, ReloadCounts, Status, now, utc};
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
    /// The start of the process, which found broken inputs and serves the last good ones.
    Start,
    /// SIGHUP.
    Signal,
    /// The admin interface.
    Admin,
    /// A change on disk.
    Watch,
    /// The time until which a plugin's mode held.
    Time,
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
            Trigger::Start => "start",
            Trigger::Signal => "signal",
            Trigger::Admin => "admin",
            Trigger::Watch => "watch",
            Trigger::Time => "time",
        })
    }
}

/// Waits for a moment; for none for ever.
async fn passed(moment: Option<SystemTime>) {
    // Clocks are set: a long wait is cut into short ones.
    const LOOK: Duration = Duration::from_secs(60);
    let Some(moment) = moment else { return std::future::pending().await };
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.clamp(Duration::from_millis(1), LOOK)).await;
    }
}

/// A reload that somebody waits for.
pub(crate) struct Request {
    pub(crate) trigger: Trigger,
    pub(crate) done: oneshot::Sender<ReloadOutcome>,
}

/// What generations are built from.
pub(crate) struct Sources {
    /// The configuration.
    pub(crate) config: PathBuf,
    /// Where accepted inputs are kept.
    pub(crate) last_good: Option<LastGood>,
    /// Whether a start with broken inputs serves those.
    pub(crate) fall_back: bool,
}

/// Everything the control thread works with.
pub(crate) struct Reloader {
    sources: Sources,
    services: Arc<Services>,
    plane: Arc<DataPlane>,
    running: Arc<Built>,
    checks: Checks,
    lookups: Lookups,
    /// The policy inputs that are kept on disk.
    kept: Option<Digest>,
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
        sources: Sources,
        services: Arc<Services>,
        plane: Arc<DataPlane>,
    ) -> Result<Self, Diagnostics> {
        let begun = Instant::now();
        let First { built, fixed, last_good, refused } = first(&sources, &services, &plane).await?;
        let mut status = Status::new(&sources.config, &built, &plane.addresses());
        status.build_ms = millis(begun);
        status.last_good = last_good;
        status.last_error = refused.as_ref().map(|refused| refused.error(Trigger::Start));
        log_applied(&status, None, &[]);
        let (status, _) = watch::channel(Arc::new(status));
        let (running, watch) = (Arc::new(built), Watch::new());
        let (mut checks, mut lookups) = (Checks::default(), Lookups::default());
        checks.follow(&running.upstreams);
        lookups.follow(&running.upstreams);
        let mut reloader = Reloader {
            sources,
            services,
            plane,
            running,
            checks,
            lookups,
            kept: None,
            fixed,
            refused,
            status,
            watch,
        };
        if last_good.is_none() {
            reloader.keep().await;
        }
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
                () = passed(self.running.until()) => {
                    // Nothing on disk has changed, and yet something else is to run.
                    self.attempt(Trigger::Time, &[]).await;
                    self.watch_inputs();
                }
                () = self.lookups.changed() => self.checks.follow(&self.running.upstreams),
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
            status.last_good = None;
            // A look that nobody asked for and that found nothing is no reload.
            status.reloads.unchanged += u64::from(undone || trigger != Trigger::Watch);
        });
        ReloadOutcome::Unchanged
    }

    async fn attempt(&mut self, trigger: Trigger, changed: &[PathBuf]) -> ReloadOutcome {
        let begun = Instant::now();
        let built = match self.take_effect(None).await {
            Ok(built) => built,
            Err(failed) => return self.refuse(trigger, failed, begun).await,
        };
        let number = built.generation.number;
        self.replace(built);
        self.refused = None;
        self.publish_generation(begun, |status| {
            status.last_error = None;
            status.last_good = None;
        });
        log_applied(&self.status.borrow(), Some(trigger), changed);
        self.keep().await;
        ReloadOutcome::Applied { number }
    }

    async fn refuse(&mut self, trigger: Trigger, failed: Failed, begun: Instant) -> ReloadOutcome {
        tracing::error!(
            target: "portcullis::reload",
            %trigger,
            generation = self.running.generation.number,
            ms = millis(begun),
            "reload refused, what ran before stays\n{}",
            failed.findings.render(false)
        );
        let mut refused = Refused { inputs: failed.inputs, findings: failed.findings };
        let renewed = self.renew(&mut refused).await;
        refused.inputs = refused.inputs.or(&self.running.inputs.of(Role::Data));
        let findings = refused.findings.clone();
        let note = |status: &mut Status| {
            status.last_error = Some(refused.error(trigger));
            status.reloads.refused += 1;
        };
        if renewed.is_empty() {
            self.publish(note);
        } else {
            self.publish_generation(begun, note);
            log_applied(&self.status.borrow(), Some(trigger), &renewed);
        }
        self.refused = Some(refused);
        ReloadOutcome::Refused(findings)
    }

    /// Puts data inputs that changed into effect over the policy inputs that run, because those on
    /// disk were refused; answers with their paths. What is wrong with them is added to the refusal.
    async fn renew(&mut self, refused: &mut Refused) -> Vec<PathBuf> {
        let (policy, data) = (self.drift_of(Role::Policy).await, self.drift_of(Role::Data).await);
        // With the same policy inputs, what was refused would be refused again.
        if policy.is_empty() || data.is_empty() {
            return Vec::new();
        }
        match self.take_effect(Some(self.running.accepted.clone())).await {
            Ok(built) => {
                self.replace(built);
                data
            }
            Err(failed) => {
                refused.add(failed);
                Vec::new()
            }
        }
    }

    async fn take_effect(&self, accepted: Option<Arc<Accepted>>) -> Result<Built, Failed> {
        let Reloader { sources, services, plane, running, .. } = self;
        let built = take_effect(&sources.config, services, plane, Some(running.clone()), accepted).await?;
        Ok(self.with_remarks(built))
    }

    fn replace(&mut self, built: Built) {
        let old = std::mem::replace(&mut self.running, Arc::new(built));
        self.checks.follow(&self.running.upstreams);
        self.lookups.follow(&self.running.upstreams);
        // Plugins that nobody needs any more end here; how is no concern of the next reload.
        drop(tokio::task::spawn_blocking(move || drop(old)));
    }

    /// Keeps the policy inputs that run for a later start, if they are not those that are kept.
    async fn keep(&mut self) {
        let Some(last_good) = self.sources.last_good.clone() else { return };
        let accepted = self.running.accepted.clone();
        let digest = accepted.digest();
        if self.kept == Some(digest) {
            return;
        }
        match blocking(move || last_good.save(&accepted)).await {
            Ok(()) => self.kept = Some(digest),
            Err(reason) => tracing::error!(
                target: "portcullis::reload",
                reason,
                "the inputs that run are not kept for a start with `--last-good`"
            ),
        }
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

    async fn drift_of(&self, role: Role) -> Vec<PathBuf> {
        let running = self.running.clone();
        blocking(move || running.inputs.of(role).drift()).await
    }

    /// Watches what runs is made of, and what a refused attempt saw.
    fn watch_inputs(&mut self) {
        let refused = self.refused.iter().flat_map(|refused| refused.inputs.paths());
        self.watch.watch(self.running.inputs.paths().chain(refused));
    }

    /// Publishes what runs now, after a reload that began then.
    fn publish_generation(&self, begun: Instant, change: impl FnOnce(&mut Status)) {
        let fresh = Status::new(&self.sources.config, &self.running, &self.plane.addresses());
        self.publish(|status| {
            *status = Status {
                started: status.started,
                build_ms: millis(begun),
                last_good: status.last_good,
                last_error: status.last_error.take(),
                reloads: ReloadCounts { applied: status.reloads.applied + 1, ..status.reloads },
                ..fresh
            };
            change(status);
        });
    }

    fn publish(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
    }
}

impl Refused {
    fn error(&self, trigger: Trigger) -> LastError {
        LastError { at: now(), trigger, diagnostics: self.findings.clone() }
    }

    /// Adds what is wrong with another attempt.
    fn add(&mut self, failed: Failed) {
        let further = failed.findings.0.into_iter().filter(|finding| !self.findings.0.contains(finding));
        let further: Vec<_> = further.collect();
        self.findings.0.extend(further);
        self.inputs = std::mem::take(&mut self.inputs).or(&failed.inputs.of(Role::Data));
    }
}

/// The first generation.
struct First {
    built: Built,
    /// The configuration that the process goes by.
    fixed: Config,
    /// When its policy inputs were accepted, if they are not those on disk.
    last_good: Option<u64>,
    refused: Option<Refused>,
}

/// Puts the first generation into effect: what is on disk, or else what was good last.
async fn first(sources: &Sources, services: &Arc<Services>, plane: &DataPlane) -> Result<First, Diagnostics> {
    let Failed { findings, inputs, config } =
        match take_effect(&sources.config, services, plane, None, None).await {
            Ok(built) => {
                let fixed = built.loaded.config.clone();
                return Ok(First { built, fixed, last_good: None, refused: None });
            }
            Err(failed) => failed,
        };
    let mut refused = Refused { findings, inputs };
    let Some(last_good) = sources.last_good.clone().filter(|_| sources.fall_back) else {
        return Err(refused.findings);
    };
    let kept = match blocking(move || last_good.load()).await {
        Ok(kept) => kept,
        Err(reason) => {
            refused.findings.push(Diagnostic::error(&sources.config, reason));
            return Err(refused.findings);
        }
    };
    match take_effect(&sources.config, services, plane, None, Some(kept.accepted)).await {
        Ok(built) => {
            tracing::error!(
                target: "portcullis::reload",
                "serving the last good inputs of {}, because what is on disk is broken\n{}",
                utc(kept.at),
                refused.findings.render(false)
            );
            refused.inputs = refused.inputs.or(&built.inputs.of(Role::Data));
            let fixed = config.map_or_else(|| built.loaded.config.clone(), |config| *config);
            Ok(First { built, fixed, last_good: Some(kept.at), refused: Some(refused) })
        }
        Err(failed) => {
            let message = format!("the last good inputs of {} cannot be served either", utc(kept.at));
            refused.findings.push(Diagnostic::error(&sources.config, message));
            refused.add(failed);
            Err(refused.findings)
        }
    }
}

/// Builds from what is on disk, or with policy inputs that were accepted before, and swaps; after an
/// error nothing has changed.
async fn take_effect(
    config: &Path,
    services: &Arc<Services>,
    plane: &DataPlane,
    running: Option<Arc<Built>>,
    accepted: Option<Arc<Accepted>>,
) -> Result<Built, Failed> {
    let built = build_settled(config, services, running, accepted).await?;
    // Requests shall not come before endpoints do, if those can be found at all.
    dns::find(&built.upstreams).await;
    match apply(plane, services, &built).await {
        Ok(()) => Ok(built),
        Err(findings) => {
            let config = Some(Box::new(built.loaded.config));
            Err(Failed { findings, inputs: built.inputs, config })
        }
    }
}

/// Builds until what was built is what is on disk.
async fn build_settled(
    config: &Path,
    services: &Arc<Services>,
    running: Option<Arc<Built>>,
    accepted: Option<Arc<Accepted>>,
) -> Result<Built, Failed> {
    let (config, services) = (config.to_owned(), services.clone());
    blocking(move || {
        let seen = running.as_ref().map_or_else(Inputs::default, |running| running.inputs.now());
        let attempt = || build(&config, &services, running.as_deref(), accepted.clone());
        let settled = |inputs: &Inputs| match accepted {
            Some(_) => inputs.of(Role::Data).drift().is_empty(),
            None => inputs.drift().is_empty(),
        };
        catch_unwind(AssertUnwindSafe(|| settle(attempt, settled))).unwrap_or_else(|_| {
            let error = Diagnostic::error(&config, "the build panicked; the log has the details");
            Err(Failed { findings: error.into(), inputs: seen, config: None })
        })
    })
    .await
}

fn settle(
    attempt: impl Fn() -> Result<Built, Failed>,
    settled: impl Fn(&Inputs) -> bool,
) -> Result<Built, Failed> {
    let mut built = attempt();
    for _ in 1..ATTEMPTS {
        if settled(built.as_ref().map_or_else(|failed| &failed.inputs, |built| &built.inputs)) {
            break;
        }
        built = attempt();
    }
    built
}

/// Binds what is new and swaps; after an error nothing has changed.
pub(crate) async fn apply(plane: &DataPlane, services: &Services, built: &Built) -> Result<(), Diagnostics> {
    let config = &built.loaded.config;
    let addresses: Vec<_> =
        config.listeners.iter().flat_map(|listener| &listener.bind).map(listen_address).collect();
    let bound = plane.bind(&addresses).map_err(|error| Diagnostics::from(bind_error(built, &error)))?;
    services.budget.resize(config.limits.whole_bodies.0);
    services.metrics.store.follow(built.store.up.clone());
    services.scripts.resize(config.limits.waiting_scripts.get().into());
    plane.swap(built.generation.clone(), bound).await;
    services.metrics.forget_unused();
    Ok(())
}

fn bind_error(built: &Built, error: &BindError) -> Diagnostic {
    let listeners = built.loaded.config.listeners.iter().enumerate();
    let binds = listeners.flat_map(|(listener, config)| {
        config.bind.iter().enumerate().map(move |(bind, at)| (listener, bind, listen_address(at)))
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
        let built =
            settle(|| build(&site.config(), &services, None, None), |inputs| inputs.drift().is_empty());
        let built = built.ok().unwrap();
        assert!(built.inputs.drift().is_empty());
        assert_eq!(builds(&services, "stamp", ""), 2);
    }
}
