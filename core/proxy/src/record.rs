//! What is remembered of exchanges that have ended: which plugins were asked, what each answered, who decided.
//!
//! A worker remembers in rings of its own: what was refused or failed, and what passed, so that the many do not
//! push out the few that somebody asks about. The places of a ring are used again and again: remembering allocates
//! nothing where paths are no longer than those before them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use http::Method;
use portcullis_plugin::{
    Attempt, Change, Cursor, Decider, End, Exchange, LogSink, Note, Outcome, RequestId, RouteMeta, Step, Used,
};
use serde::{Deserialize, Serialize};

use crate::chain::Chain;
use crate::generation::Listener;
use crate::metrics::Padded;
use crate::sample::SamplePlan;

/// Bytes of a path that are remembered, and of a host.
const MAX_TEXT: usize = 1024;

/// Steps that are remembered of an exchange.
const MAX_STEPS: usize = 256;

/// Exchanges that are looked at under one lock.
const AT_A_TIME: usize = 16;

/// What a generation wants remembered.
#[derive(Default)]
pub struct RecordPlan {
    /// Exchanges that were refused or failed, per worker.
    pub refused: usize,
    /// Others, per worker.
    pub passed: usize,
    /// Where records are written, too.
    pub file: Option<RecordFile>,
    /// Which requests are written as they came.
    pub samples: Option<SamplePlan>,
}

/// A file of records: all that was refused or failed, and some of what passed.
pub struct RecordFile {
    /// Takes a line of JSON per record.
    pub sink: Arc<dyn LogSink>,
    /// How many of 2^32 that passed are written.
    pub passed: u32,
}

/// What records call the parts of a generation.
#[derive(Debug, Default)]
pub struct Names {
    generation: u64,
    listeners: Vec<Arc<str>>,
    /// Plugin instances by their serial.
    plugins: BTreeMap<u64, Label>,
}

/// A plugin instance, as records name it.
#[derive(Debug)]
struct Label {
    name: Arc<str>,
    kind: &'static str,
    version: Arc<str>,
}

impl Names {
    /// The names of a generation's parts.
    pub fn new(generation: u64, listeners: &[Arc<Listener>]) -> Arc<Self> {
        let mut plugins = BTreeMap::new();
        for listener in listeners {
            let chains = listener.route_chains.iter().chain([&listener.chain]);
            for instance in chains.flat_map(|chain| chain.instances()) {
                plugins.entry(instance.serial).or_insert_with(|| Label {
                    name: instance.name.clone(),
                    kind: instance.kind,
                    version: instance.version.clone(),
                });
            }
        }
        let listeners = listeners.iter().map(|listener| listener.name.clone()).collect();
        Arc::new(Names { generation, listeners, plugins })
    }
}

/// A worker's own handle on a generation's names, so that reference counts stay with one core.
pub(crate) struct WorkerNames(pub(crate) Arc<Names>);

/// The memory of all workers.
pub struct Records {
    rings: Box<[Padded<Mutex<Rings>>]>,
    /// The same moment on both clocks.
    anchor: (Instant, SystemTime),
}

#[derive(Default)]
struct Rings {
    refused: Ring,
    passed: Ring,
}

#[derive(Default)]
struct Ring {
    places: Vec<Entry>,
    /// Where the next goes, once all places are taken.
    next: usize,
    /// How many have been kept so far.
    kept: usize,
}

/// An exchange that ended. The chain's places have become the instances' serials.
struct Entry {
    names: Arc<WorkerNames>,
    listener: usize,
    id: RequestId,
    began: Instant,
    client: IpAddr,
    method: Method,
    host: String,
    path: String,
    route: Option<Arc<RouteMeta>>,
    attempt: Option<Attempt>,
    decider: Option<Box<Decider>>,
    steps: Vec<(u64, Step)>,
    notes: Vec<Note>,
    changes: Vec<(u64, Change)>,
    unlisted: u32,
    outcome: Outcome,
}

/// An exchange that ended, for [`Records::keep`].
pub(crate) struct Ended<'a> {
    pub(crate) exchange: &'a mut Exchange,
    pub(crate) outcome: Outcome,
    pub(crate) chain: &'a Chain,
    pub(crate) names: &'a Arc<WorkerNames>,
    pub(crate) listener: usize,
}

impl Ended<'_> {
    /// Whether there may be a question about it.
    fn is_refused(&self) -> bool {
        let parts = self.exchange.core_ref();
        let is_refusal = parts.decider.as_ref().is_some_and(|decider| decider.reason.is_some());
        is_refusal
            || self.outcome.end != End::Complete
            || !parts.notes.iter().all(|note| note.reason.is_none())
    }
}

impl Records {
    /// A memory for this many workers.
    pub fn new(workers: usize) -> Self {
        let rings = (0..workers.max(1)).map(|_| Padded::default()).collect();
        Records { rings, anchor: (Instant::now(), SystemTime::now()) }
    }

    /// Remembers an exchange of a worker; `lot` decides whether one that passed is written to the file.
    pub(crate) fn keep(&self, worker: usize, plan: &RecordPlan, ended: Ended<'_>, lot: impl FnOnce() -> u64) {
        let is_refused = ended.is_refused();
        let room = if is_refused { plan.refused } else { plan.passed };
        let file = plan.file.as_ref().filter(|file| is_refused || (lot() as u32) < file.passed);
        let Some(rings) = self.rings.get(worker) else { return };
        let mut rings = lock(&rings.0);
        let ring = if is_refused { &mut rings.refused } else { &mut rings.passed };
        match (room, file) {
            (0, None) => ring.shrink(0),
            (0, Some(file)) => {
                let mut entry = Entry::empty(ended.names);
                entry.fill(ended);
                write(file, &self.shown(&entry));
            }
            (room, file) => {
                let entry = ring.place(room, ended.names);
                entry.fill(ended);
                if let Some(file) = file {
                    write(file, &self.shown(entry));
                }
            }
        }
    }

    /// The exchange with this request id, if it is remembered; the latest of several.
    pub fn find(&self, id: &str) -> Option<Record> {
        let bits = u128::from_str_radix(id, 16).ok().filter(|_| id.len() == 32);
        let mut found: Option<(Instant, Record)> = None;
        for (worker, refused) in self.all() {
            self.each(worker, refused, |entry| {
                let is_it = match &entry.id {
                    RequestId::Bits(is) => bits == Some(*is),
                    RequestId::Text(text) => **text == *id,
                };
                // A ring tells the latest first.
                if is_it && found.as_ref().is_none_or(|(began, _)| *began < entry.began) {
                    found = Some((entry.began, self.shown(entry)));
                }
                if is_it { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
        }
        found.map(|(_, record)| record)
    }

    /// How many have been kept so far that were refused or failed, and how many that passed.
    pub fn kept(&self) -> (usize, usize) {
        self.rings.iter().fold((0, 0), |(refused, passed), rings| {
            let rings = lock(&rings.0);
            (refused.wrapping_add(rings.refused.kept), passed.wrapping_add(rings.passed.kept))
        })
    }

    /// The latest that were refused or failed, or that passed: at most `count`, the last first.
    pub fn latest(&self, refused: bool, count: usize, wanted: impl Fn(&Record) -> bool) -> Vec<Record> {
        let mut latest: Vec<(Instant, Record)> = Vec::new();
        for (worker, _) in self.all().filter(|(_, of)| *of == refused) {
            let mut left = count;
            self.each(worker, refused, |entry| {
                let record = self.shown(entry);
                if left > 0 && wanted(&record) {
                    left -= 1;
                    latest.push((entry.began, record));
                }
                if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
        }
        latest.sort_by_key(|(began, _)| std::cmp::Reverse(*began));
        latest.into_iter().take(count).map(|(_, record)| record).collect()
    }

    /// Every ring: its worker's, and whether it is the one of what was refused.
    fn all(&self) -> impl Iterator<Item = (&Mutex<Rings>, bool)> {
        self.rings.iter().flat_map(|rings| [(&rings.0, true), (&rings.0, false)])
    }

    /// Looks at a ring's exchanges from the latest on, a few at a time: the worker must not be kept waiting.
    fn each(&self, rings: &Mutex<Rings>, refused: bool, mut look: impl FnMut(&Entry) -> ControlFlow<()>) {
        let (mut at, mut kept) = (0, None);
        loop {
            let rings = lock(rings);
            let ring = if refused { &rings.refused } else { &rings.passed };
            // What has come meanwhile has pushed the others on.
            at += ring.kept.wrapping_sub(kept.unwrap_or(ring.kept));
            kept = Some(ring.kept);
            for _ in 0..AT_A_TIME {
                match ring.last_but(at) {
                    Some(entry) if look(entry).is_continue() => at += 1,
                    _ => return,
                }
            }
        }
    }

    fn shown(&self, entry: &Entry) -> Record {
        let (then, now) = self.anchor;
        let time = match entry.began.checked_duration_since(then) {
            Some(since) => now + since,
            None => now.checked_sub(then.duration_since(entry.began)).unwrap_or(now),
        };
        entry.shown(time)
    }
}

fn lock(rings: &Mutex<Rings>) -> MutexGuard<'_, Rings> {
    rings.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write(file: &RecordFile, record: &Record) {
    if let Ok(mut line) = serde_json::to_vec(record) {
        line.push(b'\n');
        file.sink.write(&line);
    }
}

impl Ring {
    /// The last but so many.
    fn last_but(&self, at: usize) -> Option<&Entry> {
        let back = self.places.len().checked_sub(at + 1)?;
        self.places.get((self.next + back) % self.places.len())
    }

    /// The place for the next of at most `room`, which is not 0.
    fn place(&mut self, room: usize, names: &Arc<WorkerNames>) -> &mut Entry {
        self.kept = self.kept.wrapping_add(1);
        if self.places.len() > room {
            self.shrink(room);
        }
        if self.places.len() < room {
            // The oldest is the first as long as places are added.
            self.places.rotate_left(self.next);
            self.next = 0;
            self.places.push(Entry::empty(names));
            let last = self.places.len() - 1;
            return &mut self.places[last];
        }
        let at = self.next;
        self.next = (at + 1) % room;
        &mut self.places[at]
    }

    /// Forgets all but the last `room`.
    fn shrink(&mut self, room: usize) {
        self.places.rotate_left(self.next);
        self.next = 0;
        self.places.drain(..self.places.len().saturating_sub(room));
        self.places.shrink_to_fit();
    }
}

impl Entry {
    fn empty(names: &Arc<WorkerNames>) -> Self {
        Entry {
            names: names.clone(),
            listener: 0,
            id: RequestId::Bits(0),
            began: Instant::now(),
            client: Ipv4Addr::UNSPECIFIED.into(),
            method: Method::GET,
            host: String::new(),
            path: String::new(),
            route: None,
            attempt: None,
            decider: None,
            steps: Vec::new(),
            notes: Vec::new(),
            changes: Vec::new(),
            unlisted: 0,
            outcome: Outcome {
                end: End::ClientGone,
                status: None,
                request_bytes: 0,
                response_bytes: 0,
                duration: std::time::Duration::ZERO,
                upstream_duration: None,
                grpc_status: None,
            },
        }
    }

    /// Takes over what is to be remembered; what may hold credentials (headers, bodies, queries, facts) is not.
    fn fill(&mut self, ended: Ended<'_>) {
        let Ended { exchange, outcome, chain, names, listener } = ended;
        let serial = |cursor: Cursor| {
            chain.instances().get(usize::from(cursor.plugin)).map_or(u64::MAX, |instance| instance.serial)
        };
        let parts = exchange.core();
        if !Arc::ptr_eq(&self.names, names) {
            self.names = names.clone();
        }
        self.listener = listener;
        self.id = parts.id.clone();
        (self.began, self.client) = (parts.began, parts.client);
        self.method.clone_from(parts.request.method());
        refill(&mut self.host, parts.request.host());
        refill(&mut self.path, parts.matched.path());
        self.route = parts.route.take();
        self.attempt = parts.attempt.take();
        self.decider = parts.decider.take();
        self.steps.clear();
        self.steps.extend(parts.steps.iter().take(MAX_STEPS).map(|step| (serial(step.cursor), *step)));
        std::mem::swap(&mut self.notes, &mut parts.notes);
        self.changes.clear();
        self.changes.extend(parts.changes.drain(..).map(|change| (serial(change.cursor), change)));
        (self.unlisted, self.outcome) = (parts.changes_unlisted, outcome);
    }

    fn shown(&self, time: SystemTime) -> Record {
        let Outcome { end, status, request_bytes, response_bytes, duration, upstream_duration, grpc_status } =
            &self.outcome;
        Record {
            id: self.id.to_string(),
            time: humantime::format_rfc3339_millis(time).to_string(),
            generation: self.names.0.generation,
            client: self.client,
            listener: self
                .names
                .0
                .listeners
                .get(self.listener)
                .map_or_else(String::new, |name| name.to_string()),
            method: self.method.to_string(),
            host: self.host.clone(),
            path: self.path.clone(),
            route: self.route.as_ref().map(|route| route.name.to_string()),
            status: status.map(|status| status.as_u16()),
            grpc_status: grpc_status.map(str::to_owned),
            end: end.as_str().to_owned(),
            micros: duration.as_micros() as u64,
            request_bytes: *request_bytes,
            response_bytes: *response_bytes,
            decided_by: self.decider.as_ref().map(|decider| self.decision(decider)),
            upstream: self.attempt.as_ref().map(|attempt| RecordAttempt {
                name: attempt.upstream.to_string(),
                endpoint: attempt.endpoint.to_string(),
                attempts: attempt.number,
                micros: upstream_duration.map(|duration| duration.as_micros() as u64),
            }),
            steps: self
                .steps
                .iter()
                .enumerate()
                .map(|(at, (serial, step))| self.step(at, *serial, step))
                .collect(),
            changes_unlisted: self.unlisted,
        }
    }

    fn decision(&self, decider: &Decider) -> Decision {
        let label =
            self.names.0.plugins.values().find(|label| decider.hook.is_some() && label.name == decider.by);
        let note = self
            .notes
            .iter()
            .rev()
            .find(|note| note.reason.is_some() && note.reason == decider.reason && !self.is_shadow(note));
        Decision {
            by: decider.by.to_string(),
            kind: label.map(|label| label.kind.to_owned()),
            version: label.map(|label| label.version.to_string()),
            hook: decider.hook.map(|hook| hook.as_str().to_owned()),
            reason: decider.reason.as_ref().map(|reason| reason.to_string()),
            rule: note.and_then(|note| note.rule.as_ref()).map(|rule| rule.to_string()),
        }
    }

    fn is_shadow(&self, note: &Note) -> bool {
        self.steps.get(note.step).is_some_and(|(_, step)| step.is_shadow)
    }

    fn step(&self, at: usize, serial: u64, step: &Step) -> RecordStep {
        let label = self.names.0.plugins.get(&serial);
        let note = self.notes.iter().find(|note| note.step == at);
        let changed = self.changes.iter().filter(|(_, change)| change.cursor == step.cursor);
        let text = |text: Option<&Box<str>>| text.map(|text| text.to_string());
        RecordStep {
            plugin: label.map_or_else(|| "?".to_owned(), |label| label.name.to_string()),
            kind: label.map_or_else(|| "?".to_owned(), |label| label.kind.to_owned()),
            version: label.map_or_else(|| "?".to_owned(), |label| label.version.to_string()),
            hook: step.cursor.hook.as_str().to_owned(),
            verdict: step.verdict.as_str().to_owned(),
            shadow: step.is_shadow,
            reason: note.and_then(|note| note.reason.as_ref()).map(|reason| reason.to_string()),
            rule: text(note.and_then(|note| note.rule.as_ref())),
            error: text(note.and_then(|note| note.error.as_ref())),
            changed: changed.map(|(_, change)| change.to_string()).collect(),
            at: step.at,
            micros: step.micros,
            used: note.map(|note| note.used).filter(|used| *used != Used::default()),
        }
    }
}

/// An exchange that has ended, as it is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The request id.
    pub id: String,
    /// When its head was there, RFC 3339.
    pub time: String,
    /// Number of the generation that it ran on.
    pub generation: u64,
    /// The client's address: the peer's, or what a trusted proxy said.
    pub client: IpAddr,
    /// The listener's name.
    pub listener: String,
    /// The method.
    pub method: String,
    /// The host that was asked for.
    pub host: String,
    /// The path as it came, normalised; without its query.
    pub path: String,
    /// The route's name; none if none was chosen.
    pub route: Option<String>,
    /// Status sent; none if nothing was.
    pub status: Option<u16>,
    /// How a call of gRPC ended, such as `UNAVAILABLE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<String>,
    /// How it ended: `complete`, `client_gone`, `upstream_failed` or `refused`.
    pub end: String,
    /// From the head to the end, microseconds.
    pub micros: u64,
    /// Request body bytes read from the client.
    pub request_bytes: u64,
    /// Response body bytes handed to the client's connection.
    pub response_bytes: u64,
    /// Who answered in place of the upstream; none if nobody did.
    pub decided_by: Option<Decision>,
    /// The last attempt; none if there was none.
    pub upstream: Option<RecordAttempt>,
    /// Which plugins were called, in this order.
    pub steps: Vec<RecordStep>,
    /// Changes beyond what is listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub changes_unlisted: u32,
}

/// Who answered, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// A plugin instance's name, or `core.<part>`.
    pub by: String,
    /// The plugin's kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Content hash of its table and files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// At which hook.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// The reason code; none if nothing was refused.
    pub reason: Option<String>,
    /// The rule, or the line of source, that it rests on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// Where a request was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordAttempt {
    /// The upstream's name.
    pub name: String,
    /// The endpoint of the last attempt.
    pub endpoint: String,
    /// How many attempts there were.
    pub attempts: u32,
    /// From the first attempt to the response's head, microseconds.
    pub micros: Option<u64>,
}

/// One call of a plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordStep {
    /// The plugin instance's name.
    pub plugin: String,
    /// Its kind.
    pub kind: String,
    /// Content hash of its table and files.
    pub version: String,
    /// The hook.
    pub hook: String,
    /// `continue`, `respond`, `drop`, `error`, or `filter` for a plugin that took the body as it passed.
    pub verdict: String,
    /// Whether the plugin is in shadow: that is what it would have answered and changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    /// The reason code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule, or the line of source, that the verdict rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it changed, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
    /// When it was called, microseconds after the exchange's beginning.
    pub at: u32,
    /// How long it took, microseconds.
    pub micros: u32,
    /// What it used up of its budget, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Writes at most [`MAX_TEXT`] bytes of `text` over what was there.
fn refill(place: &mut String, text: &str) {
    place.clear();
    place.push_str(text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default());
}

#[cfg(test)]
mod tests;
