//! The life of a gateway: start, reload when told, drain, end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use portcullis_config::{Admin as AdminConfig, AdminOptions, Config, Diagnostic, Diagnostics, Loaded};
use portcullis_control::{Control, LastGood, Options, Status, Trigger, utc};
use portcullis_proxy::metrics::Metrics;
use portcullis_proxy::{Address, DataPlane, Sockets};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::admin::{self, Admin};
use crate::cli::{Failure, RunOptions};
use crate::notify::{self, Message};
use crate::pid_file::PidFile;
use crate::places::{self, Configuration};
use crate::quickstart::Unpacked;
use crate::sinks::Sinks;
use crate::sockets::Inherited;
use crate::upgrade::{Predecessor, Successor};
use crate::{demo, kinds, process, quickstart, say, server, telemetry};

/// What the last log lines get to reach a slow target.
const FLUSH: Duration = Duration::from_secs(2);

/// Tasks of the control plane that do not end by themselves, such as a running build, are left behind.
const LEFT_BEHIND: Duration = Duration::from_millis(200);

/// How the gateway ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Every request ended, or had its grace.
    Drained,
    /// A second signal: nobody waits for anything.
    AtOnce,
}

/// What is to be run.
struct Plan {
    path: PathBuf,
    /// For the configuration, before those of the environment.
    variables: BTreeMap<String, String>,
    /// Whether a newcomer is to be shown around.
    tour: bool,
    /// Whether the files end with the process.
    unpacked: bool,
    /// Whether the last good files are served where these have errors.
    fall_back: bool,
}

/// `portcullis run`
pub(crate) fn run(options: &RunOptions) -> Result<ExitCode, Failure> {
    let mut inherited = Inherited::take().map_err(Failure::Run)?;
    let predecessor = inherited.predecessor.take();
    let ended = start(options, inherited, predecessor.as_ref());
    if let (Err(failure), Some(predecessor)) = (&ended, &predecessor) {
        predecessor.failed(&failure.text());
    }
    ended
}

fn start(
    options: &RunOptions,
    inherited: Inherited,
    predecessor: Option<&Predecessor>,
) -> Result<ExitCode, Failure> {
    let (mut plan, unpacked) = plan(options)?;
    if options.demo || plan.tour {
        let port =
            demo::start().map_err(|error| Failure::Run(format!("the demo upstream can't start: {error}")))?;
        plan.variables.insert(demo::VARIABLE.to_owned(), port.to_string());
    }
    process::install_crypto();
    let (loaded, last_good) = plan.load().map_err(Failure::Files)?;
    let sinks = Arc::new(Sinks::new(&loaded.dir));
    telemetry::start(loaded.config.log, &sinks).map_err(Failure::Usage)?;
    process::log_panics();
    let pid_file = loaded.config.pid_file.as_deref().map(|path| loaded.resolve(path));
    // It names the process to take over from until this one serves.
    let written = pid_file.as_deref().filter(|_| predecessor.is_none()).map(PidFile::create);
    let written = written.transpose().map_err(Failure::Run)?;
    if let Err(error) = process::raise_open_files() {
        tracing::warn!(target: "portcullis::run", %error, "the limit of open files can't be raised");
    }

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Run(format!("the control plane can't start: {error}")))?;
    let arrival = Arrival { inherited, predecessor, pid_file };
    let ended = runtime.block_on(serve(plan, &loaded, last_good, sinks.clone(), arrival));
    sinks.flush(FLUSH);
    drop(written);
    drop(unpacked);
    if ended.as_ref().is_ok_and(|end| *end == End::AtOnce) {
        // Returning would wait for threads that have work left.
        std::process::exit(0);
    }
    runtime.shutdown_timeout(LEFT_BEHIND);
    ended.map(|_| ExitCode::SUCCESS)
}

/// What is to be run, and the files that had to be written for it.
fn plan(options: &RunOptions) -> Result<(Plan, Option<Unpacked>), Failure> {
    let (path, unpacked) = match places::configuration(options.config.named()) {
        Configuration::File(path) => {
            let variables = BTreeMap::new();
            let fall_back = options.last_good;
            return Ok((Plan { path, variables, tour: false, unpacked: false, fall_back }, None));
        }
        Configuration::Quickstart(path) => (path, None),
        Configuration::Embedded => {
            let unpacked = quickstart::unpack()
                .map_err(|error| Failure::Run(format!("the quickstart can't be written: {error}")))?;
            (unpacked.config(), Some(unpacked))
        }
    };
    let plan = Plan {
        path,
        variables: quickstart::ports(),
        tour: true,
        unpacked: unpacked.is_some(),
        fall_back: options.last_good,
    };
    Ok((plan, unpacked))
}

impl Plan {
    /// What the process itself needs to know of the configuration, and where the last good one is kept,
    /// which is taken where this one has errors. The control plane reads both again.
    fn load(&self) -> Result<(Loaded, LastGood), Diagnostics> {
        let (readable, errors) = match self.read() {
            Ok((loaded, errors)) if errors.is_empty() => {
                let last_good = places::last_good(&self.path, Some(&loaded));
                return Ok((loaded, last_good));
            }
            Ok((loaded, errors)) => (Some(loaded), errors),
            Err(errors) => (None, errors),
        };
        if !self.fall_back {
            return Err(self.all_errors(errors));
        }
        let last_good = places::last_good(&self.path, readable.as_ref());
        let parsed = last_good
            .config()
            .map_err(|reason| Diagnostic::error(&self.path, reason).into())
            .and_then(|text| portcullis_config::parse(&self.path, &text, &|name| self.variable(name)));
        match parsed {
            Ok(loaded) => Ok((loaded, last_good)),
            Err(further) => {
                let mut errors = self.all_errors(errors);
                errors.0.extend(further.0);
                Err(errors)
            }
        }
    }

    /// What can be read of the configuration, and its errors.
    fn read(&self) -> Result<(Loaded, Diagnostics), Diagnostics> {
        let text = portcullis_config::read_text(&self.path)?;
        portcullis_config::parse_partly(&self.path, &text, &|name| self.variable(name))
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned().or_else(|| std::env::var(name).ok())
    }

    /// What is wrong with the configuration and everything it names, when something in the file itself is.
    fn all_errors(&self, errors: Diagnostics) -> Diagnostics {
        let checked = portcullis_control::check(&self.path, &kinds::registry(), self.variables.clone());
        checked.err().unwrap_or(errors)
    }
}

/// How the process comes into its place.
struct Arrival<'p> {
    inherited: Inherited,
    predecessor: Option<&'p Predecessor>,
    pid_file: Option<PathBuf>,
}

impl Arrival<'_> {
    /// Takes the place of the process before this one, if there is one that serves.
    fn take_over(self) -> Result<Option<PidFile>, Failure> {
        let Some(predecessor) = self.predecessor else { return Ok(None) };
        let gone = |error| Failure::Run(format!("the process to take over from is gone: {error}"));
        predecessor.take_over().map_err(gone)?;
        let written = self.pid_file.map(|path| PidFile::take_over(&path, predecessor.pid()));
        predecessor.done();
        tracing::info!(target: "portcullis::run", from = predecessor.pid(), "taken over");
        // This process serves, and the other one has been told to end: there is no way back.
        Ok(written.transpose().unwrap_or_else(|reason| {
            tracing::error!(target: "portcullis::run", reason, "no PID file");
            None
        }))
    }
}

/// From the first bind to the last request.
async fn serve(
    plan: Plan,
    loaded: &Loaded,
    last_good: LastGood,
    sinks: Arc<Sinks>,
    mut arrival: Arrival<'_>,
) -> Result<End, Failure> {
    let config = &loaded.config;
    let mut signals = Signals::new().map_err(|error| Failure::Run(format!("no signals: {error}")))?;
    let workers = workers(config);
    let metrics = Arc::new(Metrics::new(workers));
    let admin = Arc::new(Admin::new(metrics.clone(), sinks.clone()));
    let mut tasks = JoinSet::new();
    let admin_socket = admin_socket(&config.admin, &mut arrival.inherited)?;
    if let (Some(socket), None) = (&admin_socket, arrival.predecessor) {
        serve_admin(socket, &admin, &mut tasks)?;
    }

    let inherited = std::mem::take(&mut arrival.inherited).listeners(config);
    let data = DataPlane::new(workers, metrics.clone(), inherited);
    let data = Arc::new(data.map_err(|error| Failure::Run(format!("the workers can't start: {error}")))?);
    // Until this process serves, they are those of the process before it.
    data.owns_files(arrival.predecessor.is_none());

    let options = Options {
        config: std::path::absolute(&plan.path).unwrap_or_else(|_| plan.path.clone()),
        state_dir: Some(
            config.state_dir.as_deref().map_or_else(places::state_dir, |dir| loaded.resolve(dir)),
        ),
        // What ends with the process is no use to another.
        last_good: (!plan.unpacked).then_some(last_good),
        fall_back: plan.fall_back,
        variables: plan.variables,
        log_sinks: sinks.clone(),
    };
    let control = tokio::select! {
        control = Control::start(options, kinds::registry(), data.clone(), metrics) => control.map_err(Failure::Files)?,
        () = signals.stop.told() => return Ok(End::AtOnce),
    };
    admin.serving(control.clone(), data.records().clone());
    let addresses = data.addresses();
    for (_, address) in &addresses {
        tracing::info!(target: "portcullis::run", %address, workers, "listening");
    }
    if let (true, Some((_, Address::Tcp(gateway)))) = (plan.tour, addresses.first()) {
        sinks.flush(FLUSH);
        let admin_address = admin_socket.as_ref().and_then(|socket| socket.local_addr().ok());
        say::remark(&quickstart::tour(&plan.path, plan.unpacked, *gateway, admin_address));
    }
    let is_successor = arrival.predecessor.is_some();
    let taken_over = arrival.take_over();
    data.owns_files(taken_over.is_ok());
    let _pid_file = match taken_over {
        Ok(pid_file) => pid_file,
        Err(failure) => {
            // Who came since it listens shall not notice.
            drain(&data, config.drain.0, &mut signals.stop).await;
            return Err(failure);
        }
    };
    if let (Some(socket), true) = (&admin_socket, is_successor) {
        // Until now the process before this one has answered for both, and there is no way back to it.
        if let Err(failure) = serve_admin(socket, &admin, &mut tasks) {
            tracing::error!(target: "portcullis::run", "{}", failure.text());
        }
    }
    notify::tell(&Message::Ready(&summary(&control.subscribe().borrow())));

    let successor = || {
        let admin = match (&config.admin, &admin_socket) {
            (AdminConfig::On(options), Some(socket)) => Some((options.bind.0, socket.try_clone()?)),
            _ => None,
        };
        Ok((data.sockets()?, admin))
    };
    match until_ending(&mut signals, &control, &sinks, successor, config.drain.0).await {
        Ending::Stopped => {
            admin.draining();
            notify::tell(&Message::Stopping("draining"));
        }
        // Whoever asks now asks the other.
        Ending::Replaced => {
            data.owns_files(false);
            drop((tasks, admin_socket));
        }
    }
    Ok(drain(&data, config.drain.0, &mut signals.stop).await)
}

/// What a successor is given.
type Handed = (Vec<Sockets>, Option<(SocketAddr, std::net::TcpListener)>);

/// Why the gateway takes no more requests.
enum Ending {
    Stopped,
    /// Another process does.
    Replaced,
}

/// Reloads when told, and tells of every reload, until told to stop or to let another process take over.
async fn until_ending(
    signals: &mut Signals,
    control: &Control,
    sinks: &Sinks,
    handed: impl Fn() -> std::io::Result<Handed>,
    grace: Duration,
) -> Ending {
    let mut status = control.subscribe();
    let mut reloads = JoinSet::new();
    let mut upgrades = JoinSet::new();
    // A successor of a process that is to end is not to begin.
    let ending = Arc::new(AtomicBool::new(false));
    loop {
        tokio::select! {
            () = signals.stop.told() => {
                ending.store(true, Ordering::SeqCst);
                return Ending::Stopped;
            }
            _ = signals.upgrade.recv() => match handed() {
                _ if !upgrades.is_empty() => {
                    tracing::warn!(target: "portcullis::run", "an upgrade is under way already");
                }
                Ok((sockets, admin)) => {
                    tracing::info!(target: "portcullis::run", "upgrading");
                    let ending = ending.clone();
                    upgrades.spawn_blocking(move || Successor::start(sockets, admin)?.take_over(&ending, grace));
                }
                Err(error) => tracing::error!(target: "portcullis::run", %error, "upgrade failed"),
            },
            Some(upgraded) = upgrades.join_next() => match upgraded {
                Ok(Ok(pid)) => {
                    tracing::info!(target: "portcullis::run", to = pid, "handed over");
                    return Ending::Replaced;
                }
                Ok(Err(reason)) => {
                    tracing::error!(target: "portcullis::run", "upgrade failed, this process serves on: {reason}");
                }
                // A panic has been logged.
                Err(_) => {}
            },
            _ = signals.hangup.recv() => {
                sinks.reopen();
                notify::tell(&Message::Reloading);
                let control = control.clone();
                // What comes of it, the control plane logs.
                reloads.spawn(async move { control.reload(Trigger::Signal).await });
            }
            Some(_) = reloads.join_next() => notify::tell(&Message::Ready(&summary(&status.borrow()))),
            Ok(()) = status.changed() => notify::tell(&Message::Status(&summary(&status.borrow_and_update()))),
        }
    }
}

async fn drain(data: &DataPlane, grace: Duration, stop: &mut Stop) -> End {
    tracing::info!(target: "portcullis::run", grace_ms = grace.as_millis() as u64, "draining");
    tokio::select! {
        cut_off = data.drain(grace) => {
            tracing::info!(target: "portcullis::run", cut_off, "stopped");
            End::Drained
        }
        () = stop.told() => {
            tracing::warn!(target: "portcullis::run", "stopped at once");
            End::AtOnce
        }
    }
}

/// The admin interface's socket, if there is one.
fn admin_socket(
    config: &AdminConfig,
    inherited: &mut Inherited,
) -> Result<Option<std::net::TcpListener>, Failure> {
    let AdminConfig::On(AdminOptions { bind }) = config else { return Ok(None) };
    let socket = inherited.admin(bind.0).map_or_else(|| std::net::TcpListener::bind(bind.0), Ok);
    let socket = socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
    socket.map(Some).map_err(|error| {
        Failure::Run(format!(
            "the admin interface can't listen at {bind}: {error}; set `admin: {{ bind: .. }}`"
        ))
    })
}

/// Serves the admin interface as long as `tasks` live.
fn serve_admin(
    socket: &std::net::TcpListener,
    admin: &Arc<Admin>,
    tasks: &mut JoinSet<()>,
) -> Result<(), Failure> {
    let failed = |error| Failure::Run(format!("the admin interface can't be served: {error}"));
    let listener = socket.try_clone().and_then(TcpListener::from_std).map_err(failed)?;
    let address = socket.local_addr().map_err(failed)?;
    tracing::info!(target: "portcullis::run", %address, "admin interface");
    let admin = admin.clone();
    tasks.spawn(server::serve(listener, admin::LIMITS, move |request| admin.clone().answer(request)));
    Ok(())
}

fn workers(config: &Config) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    config.workers.map_or(cores, |workers| workers.get() as usize)
}

/// One line for the service manager.
fn summary(status: &Status) -> String {
    let refused = match (status.last_good, &status.last_error) {
        (Some(at), _) => format!("; serving the last good inputs of {}", utc(at)),
        (None, Some(_)) => "; the last reload was refused".to_owned(),
        (None, None) => String::new(),
    };
    format!(
        "generation {}, {} routes, {} plugins{refused}",
        status.generation,
        status.routes,
        status.plugins.len()
    )
}

/// What the process is told from outside.
struct Signals {
    hangup: Signal,
    upgrade: Signal,
    stop: Stop,
}

/// Told to stop, in either way.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let stop =
            Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
        let (hangup, upgrade) = (signal(SignalKind::hangup())?, signal(SignalKind::user_defined2())?);
        Ok(Signals { hangup, upgrade, stop })
    }
}

impl Stop {
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
