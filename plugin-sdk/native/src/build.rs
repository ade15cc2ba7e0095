//! What a plugin is given while it is built.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::ceiling::{self, Ceiling};
use crate::clock::Clock;
use crate::coverage::Coverage;
use crate::log::LogSink;
use crate::metrics::{Counter, Counters, Gauge, InstanceCounters};
use crate::offload::{CpuPool, Offload};
use crate::outbound::Outbound;
use crate::rate::{RateTable, Rates};
use crate::secret::{Secret, SecretRef};
use crate::store::{Keyspace, Store};
use crate::tasks::Tasks;

/// What the gateway offers while plugins are built; implemented by the control plane and by
/// [`PluginTester`](crate::PluginTester).
pub trait BuildHost {
    /// Reads a file, relative to the configuration's directory, and puts it under watch.
    fn file(&mut self, path: &str) -> Result<SourceFile, String>;

    /// Reads a file of data, such as a list; see [`BuildContext::data_file`].
    fn data_file(&mut self, path: &str) -> Result<SourceFile, String> {
        self.file(path)
    }

    /// Reads a secret; a file is put under watch.
    fn secret(&mut self, secret: &SecretRef) -> Result<Secret, String>;

    /// State that outlives reloads: the one kept under `key`, else what `make` makes.
    fn shared(
        &mut self,
        key: StateKey,
        make: &mut dyn FnMut() -> Arc<dyn Any + Send + Sync>,
    ) -> Arc<dyn Any + Send + Sync>;

    /// A cache that outlives reloads, of at most `entries` entries.
    fn cache(&mut self, key: StateKey, entries: u64) -> Arc<dyn Cache>;

    /// The state of an instance's limits, which outlives reloads.
    fn rates(&mut self, key: StateKey) -> Arc<RateTable>;

    /// The gateway's store.
    fn store(&mut self) -> Arc<dyn Store>;

    /// Whether the instance is to be in shadow.
    fn is_shadow(&self) -> bool {
        false
    }

    /// The most that the instance may be granted, if its table stands where that is limited.
    fn ceiling(&self) -> Option<Ceiling> {
        None
    }

    /// The clock.
    fn clock(&self) -> Clock {
        Clock::default()
    }

    /// Where to note which lines of scripts run; none unless their tests ask for it.
    fn coverage(&self) -> Option<Arc<Coverage>> {
        None
    }

    /// The way to a named upstream; none if the configuration has no such upstream.
    fn upstream(&mut self, name: &str) -> Option<Arc<dyn Outbound>>;

    /// The names of all upstreams, for error messages.
    fn upstream_names(&self) -> Vec<String>;

    /// Compiled code from earlier starts.
    fn artifacts(&self) -> Option<Arc<dyn ArtifactStore>>;

    /// The sink for lines to `target`: `stdout`, `stderr`, or a file's path.
    fn log_sink(&mut self, target: &str) -> Result<Arc<dyn LogSink>, String>;

    /// The counters of an instance, the same after a reload.
    fn counters(&mut self, instance: &Instance) -> Arc<InstanceCounters>;

    /// The number of the generation that is being built.
    fn generation(&self) -> u64;

    /// Threads for computations that would hold a worker.
    fn cpu_pool(&mut self) -> Arc<dyn CpuPool>;

    /// Threads for scripts that may wait, and stand still meanwhile.
    fn script_threads(&mut self) -> Arc<dyn CpuPool>;

    /// The way to run something beside requests.
    fn tasks(&mut self) -> Arc<dyn Tasks>;

    /// Takes a remark about a configuration that works but looks wrong.
    fn warn(&mut self, warning: BuildWarning);

    /// Takes a remark about what comes of this build; see [`BuildContext::notice`].
    fn notice(&mut self, notice: BuildWarning) {
        self.warn(notice);
    }
}

/// Which instance is being built.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its kind.
    pub kind: &'static str,
    /// Its name; the kind's unless the configuration gives one.
    pub name: Arc<str>,
    /// Version of its state's layout.
    pub state_schema: u32,
}

/// What identifies state across reloads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StateKey {
    /// Plugin kind.
    pub kind: &'static str,
    /// Instance name; empty for state of the kind itself.
    pub name: Arc<str>,
    /// Version of the state's layout.
    pub schema: u32,
}

/// A file as it was read.
#[derive(Debug, Clone)]
pub struct SourceFile {
    /// Where it stands, absolute.
    pub path: PathBuf,
    /// Its content.
    pub bytes: Bytes,
}

impl SourceFile {
    /// The content as text, or an error that names the first bad byte's line.
    pub fn text(&self) -> Result<&str, String> {
        std::str::from_utf8(&self.bytes).map_err(|error| {
            let line = 1 + self.bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            format!("`{}` is not UTF-8 text (line {line})", self.path.display())
        })
    }
}

/// A cache of bytes, bounded, with a lifetime per entry.
pub trait Cache: Send + Sync {
    /// What is kept under `key` and has not expired.
    fn get(&self, key: &str) -> Option<Bytes>;

    /// Keeps `value` under `key` for `lifetime`.
    fn insert(&self, key: &str, value: Bytes, lifetime: Duration);
}

/// A store of compiled code. What it returns is exactly what this installation stored under that
/// key: anything tampered with counts as absent.
pub trait ArtifactStore: Send + Sync {
    /// The artifact under `key`.
    fn load(&self, key: &str) -> Option<Vec<u8>>;

    /// Stores an artifact; a failure only costs time later.
    fn store(&self, key: &str, artifact: &[u8]);
}

/// What [`PluginType::build`](crate::PluginType::build) works with.
pub struct BuildContext<'a> {
    instance: Instance,
    host: &'a mut dyn BuildHost,
}

impl<'a> BuildContext<'a> {
    /// A context for one instance.
    pub fn new(instance: Instance, host: &'a mut dyn BuildHost) -> Self {
        BuildContext { instance, host }
    }

    /// The instance's name.
    pub fn name(&self) -> &Arc<str> {
        &self.instance.name
    }

    /// A typed slot for state per exchange.
    pub fn slot<T: Send + 'static>(&mut self) -> Slot<T> {
        Slot::new()
    }

    /// State of this instance that outlives reloads.
    pub fn shared<T: Send + Sync + 'static>(&mut self, make: impl FnOnce() -> T) -> Arc<T> {
        self.shared_under(self.instance.name.clone(), make)
    }

    /// State of all instances of this kind that outlives reloads, such as an engine.
    pub fn shared_by_kind<T: Send + Sync + 'static>(&mut self, make: impl FnOnce() -> T) -> Arc<T> {
        self.shared_under("".into(), make)
    }

    fn shared_under<T: Send + Sync + 'static>(&mut self, name: Arc<str>, make: impl FnOnce() -> T) -> Arc<T> {
        let key = StateKey { kind: self.instance.kind, name, schema: self.instance.state_schema };
        let mut make = Some(make);
        let mut made = None;
        let state = self.host.shared(key, &mut || {
            let fresh = make.take().map(|make| Arc::new(make()));
            made.clone_from(&fresh);
            fresh.map_or_else(|| Arc::new(()) as _, |fresh| fresh as _)
        });
        match (state.downcast::<T>(), made, make) {
            (Ok(state), ..) => state,
            // Another type under the same key: the plugin changed its layout without its number.
            (Err(_), Some(made), _) => made,
            (Err(_), None, Some(make)) => Arc::new(make()),
            (Err(_), None, None) => unreachable!("`make` is used up only by making"),
        }
    }

    /// A cache of this instance that outlives reloads.
    pub fn cache(&mut self, entries: u64) -> Arc<dyn Cache> {
        self.host.cache(self.key(), entries)
    }

    /// The limits of this instance, whose state outlives reloads. Of `max_keys` keys, all limits
    /// together, each may have a bucket of its own; they take up to 75 bytes each.
    pub fn rates(&mut self, max_keys: usize) -> Rates {
        Rates::new(self.host.rates(self.key()), self.host.clock(), max_keys)
    }

    /// This instance's part of the gateway's store: values with a lifetime, which survive reloads, and
    /// where the configuration says so restarts, and are shared with other gateways.
    pub fn store(&mut self) -> Keyspace {
        Keyspace::new(self.host.store(), &self.instance, self.host.is_shadow())
    }

    /// The clock that time is to be told by where it decides anything, so that tests can set it.
    pub fn clock(&self) -> Clock {
        self.host.clock()
    }

    /// Where to note which lines of scripts run; none unless their tests ask for it.
    pub fn coverage(&self) -> Option<Arc<Coverage>> {
        self.host.coverage()
    }

    /// Whether nothing that the instance decides is to hold.
    pub fn is_shadow(&self) -> bool {
        self.host.is_shadow()
    }

    pub(crate) fn ceiling(&self) -> Option<Ceiling> {
        self.host.ceiling()
    }

    /// What the instance's state goes by; what one in shadow notes, none in force ever sees.
    fn key(&self) -> StateKey {
        let Instance { kind, name, state_schema } = self.instance.clone();
        let name = if self.is_shadow() { format!("shadow/{name}").into() } else { name };
        StateKey { kind, name, schema: state_schema }
    }

    /// Reads a file, relative to the configuration's directory, and puts it under watch; `at` is the
    /// path of the setting that names it. It is part of the policy, like the configuration itself:
    /// its content is kept once it was accepted, so that a later start can fall back on it.
    pub fn file(&mut self, at: &str, path: &str) -> Result<SourceFile, BuildError> {
        self.host.file(path).map_err(|message| BuildError::at(at, message))
    }

    /// Reads a file of data, such as a list or a database: like [`file`](Self::file), but a change of
    /// it applies also while the policy on disk is broken, and nothing of it is kept.
    pub fn data_file(&mut self, at: &str, path: &str) -> Result<SourceFile, BuildError> {
        self.host.data_file(path).map_err(|message| BuildError::at(at, message))
    }

    /// Reads a secret; `at` is the path of the setting that names it.
    pub fn secret(&mut self, at: &str, secret: &SecretRef) -> Result<Secret, BuildError> {
        if self.ceiling().is_some_and(|ceiling| !ceiling.allows_secret(secret)) {
            return Err(ceiling::unnamed(at, "this secret", "grants.secrets"));
        }
        self.host.secret(secret).map_err(|message| BuildError::at(at, message))
    }

    /// The way to a named upstream; `at` is the path of the setting that names it.
    pub fn upstream(&mut self, at: &str, name: &str) -> Result<Arc<dyn Outbound>, BuildError> {
        if self.ceiling().is_some_and(|ceiling| !ceiling.allows_upstream(name)) {
            return Err(ceiling::unnamed(at, &format!("upstream `{name}`"), "grants.http.upstreams"));
        }
        self.host.upstream(name).ok_or_else(|| {
            let known = self.host.upstream_names().join("`, `");
            let help = if known.is_empty() {
                "there are no upstreams".into()
            } else {
                format!("there is `{known}`")
            };
            BuildError::at(at, format!("no upstream is named `{name}`")).help(help)
        })
    }

    /// Compiled code from earlier starts.
    pub fn artifacts(&self) -> Option<Arc<dyn ArtifactStore>> {
        self.host.artifacts()
    }

    /// The sink for lines to `target`; `at` is the path of the setting that names it.
    pub fn log_sink(&mut self, at: &str, target: &str) -> Result<Arc<dyn LogSink>, BuildError> {
        self.host.log_sink(target).map_err(|message| BuildError::at(at, message))
    }

    /// A counter of this instance that survives reloads. The metrics page has it as
    /// `portcullis_plugin_<kind>_<name>_total{plugin="<instance>"}`; `help` is one line on what it counts.
    pub fn counter(&mut self, name: &'static str, help: &'static str) -> Counter {
        self.counters(name, help, []).with([])
    }

    /// The same with labels, for the counter of each combination of their values. Names are lower
    /// case, and no label is `plugin`; together an instance has at most
    /// [`MAX_SERIES`](crate::MAX_SERIES) combinations.
    pub fn counters<const N: usize>(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Counters<N> {
        self.host.counters(&self.instance).family(name, help, labels)
    }

    /// A gauge of this instance in the generation that is being built. The metrics page has it as
    /// `portcullis_plugin_<kind>_<name>{plugin="<instance>",generation="<number>"}` as long as it is held.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let generation = self.host.generation();
        self.host.counters(&self.instance).gauge(name, help, generation)
    }

    /// The way to threads for what takes longer than the half millisecond that a hook may hold its
    /// worker for.
    pub fn offload(&mut self) -> Offload {
        Offload::new(self.host.cpu_pool())
    }

    /// The way to threads for what has to wait and can't be suspended, as a script. A piece of work that waits holds a
    /// thread; when none is left and the queue is full, the next is [`ErrorKind::Budget`](crate::ErrorKind::Budget).
    pub fn script_threads(&mut self) -> Offload {
        Offload::new(self.host.script_threads())
    }

    /// The way to run something beside requests: on the worker whose hook asks for it.
    pub fn tasks(&mut self) -> Arc<dyn Tasks> {
        self.host.tasks()
    }

    /// Remarks on something that works but looks wrong.
    pub fn warn(&mut self, at: &str, message: impl Into<String>) {
        self.host.warn(BuildWarning { path: at.to_owned(), message: message.into() });
    }

    /// Remarks on what comes of this build, such as counters that begin anew. Unlike a
    /// [warning](Self::warn) it is not repeated when a later reload keeps the instance as it is.
    pub fn notice(&mut self, at: &str, message: impl Into<String>) {
        self.host.notice(BuildWarning { path: at.to_owned(), message: message.into() });
    }
}

/// A typed place for state per exchange, unique in the process.
pub struct Slot<T> {
    id: u32,
    content: PhantomData<fn() -> T>,
}

impl<T> Slot<T> {
    /// A place of its own. Plugins get theirs from [`BuildContext::slot`].
    #[expect(clippy::new_without_default, reason = "every one is another")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Slot { id: NEXT.fetch_add(1, Ordering::Relaxed), content: PhantomData }
    }

    pub(crate) fn id(self) -> u32 {
        self.id
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

/// A remark about a configuration that works but looks wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildWarning {
    /// Path in the plugin's table, like [`BuildError::path`].
    pub path: String,
    /// Lower case, no full stop.
    pub message: String,
}

/// Why a plugin can't be built from its table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    /// Path in the plugin's table, e.g. `rules[2].cidr`; empty for the table itself.
    pub path: String,
    /// What is wrong: lower case, no full stop, names the thing.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// Where in a file that the table names, when the fault is there.
    pub position: Option<Box<SourcePosition>>,
}

/// A place in a file, e.g. a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourcePosition {
    /// The file.
    pub file: PathBuf,
    /// Its text.
    pub text: Arc<str>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl BuildError {
    /// The value at `path` is wrong.
    pub fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        BuildError { path: path.into(), message: message.into(), help: None, position: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same, located in another file.
    #[must_use]
    pub fn within(mut self, position: SourcePosition) -> Self {
        self.position = Some(Box::new(position));
        self
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.position {
            Some(place) => write!(f, "{}:{}:{}: ", place.file.display(), place.line, place.column)?,
            None if !self.path.is_empty() => write!(f, "{}: ", self.path)?,
            None => {}
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for BuildError {}
