//! Workers: one thread per core, each with its own runtime, sockets, connections and generation.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use portcullis_plugin::{RequestId, RouteMeta};
use tokio::runtime::LocalRuntime;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle as Task};

use crate::admit::Place;
use crate::client::{Control, accept};
use crate::generation::{Generation, Listener};
use crate::logs::LogQueue;
use crate::metrics::{Counter, Metrics, Refused, count_as_worker};
use crate::record::{Records, WorkerNames};
use crate::socket::{self, Accepted, Acceptor, Address, BACKLOG, Listening, SocketFile};
use crate::upstream::{ReapGuard, reap_idle};

/// How long `on_log` hooks may take after the last exchange has ended.
const LAST_LOGS: Duration = Duration::from_secs(5);
/// Pause after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The data plane: all workers.
pub struct DataPlane {
    workers: Vec<(mpsc::UnboundedSender<Command>, Option<JoinHandle<()>>)>,
    /// What is listened at, by the address of the configuration.
    bound: Mutex<BTreeMap<Address, Held>>,
    /// What whoever started the process left open for it.
    inherited: Mutex<Vec<Sockets>>,
    /// Whether the files of its Unix sockets end with it.
    owns_files: Arc<AtomicBool>,
    records: Arc<Records>,
}

/// What is held of an address as long as it is listened at.
#[derive(Debug)]
struct Held {
    sockets: Sockets,
    /// Of a Unix socket, unless a service manager opened it.
    _file: Option<SocketFile>,
}

/// The sockets of an address: one per worker, or those that were inherited. A Unix socket is shared by the workers.
#[derive(Debug)]
pub struct Sockets {
    /// The address as configured.
    pub configured: Address,
    /// Whether a service manager opened them: then they stay open whatever this process does.
    pub is_managed: bool,
    /// The sockets.
    pub sockets: Vec<Listening>,
}

/// Sockets for addresses that are new, not yet accepting.
#[derive(Debug, Default)]
pub struct Bound {
    addresses: Vec<Held>,
    /// By worker.
    sockets: Vec<Vec<(Address, Listening)>>,
}

/// An address that can't be listened at.
#[derive(Debug)]
pub struct BindError {
    /// The address.
    pub address: Address,
    /// Why.
    pub source: io::Error,
}

enum Command {
    Swap { generation: Arc<Generation>, sockets: Vec<(Address, Listening)>, done: oneshot::Sender<()> },
    Drain { grace: Duration, done: oneshot::Sender<usize> },
}

impl DataPlane {
    /// Starts this many workers. They listen nowhere until the first [`swap`](Self::swap), and then at
    /// inherited sockets where there are some of their addresses.
    pub fn new(workers: usize, metrics: Arc<Metrics>, inherited: Vec<Sockets>) -> io::Result<Self> {
        Self::start(workers, metrics, inherited, run)
    }

    /// One worker whose log lines nobody hears, for requests that are made up.
    pub fn unheard(metrics: Arc<Metrics>) -> io::Result<Self> {
        Self::start(1, metrics, Vec::new(), |index, commands, metrics, records, retire| {
            let nobody = tracing::subscriber::NoSubscriber::default();
            tracing::subscriber::with_default(nobody, || run(index, commands, metrics, records, retire));
        })
    }

    fn start(
        workers: usize,
        metrics: Arc<Metrics>,
        inherited: Vec<Sockets>,
        run: fn(usize, Commands, Arc<Metrics>, Arc<Records>, Retire),
    ) -> io::Result<Self> {
        let (retire, retired) = std::sync::mpsc::channel();
        // Dropping a generation can take a while: compiled modules are unmapped, files closed.
        std::thread::Builder::new()
            .name("retire".into())
            .spawn(move || retired.into_iter().for_each(drop))?;
        let records = Arc::new(Records::new(workers));
        let start = |index: usize| {
            let (sender, commands) = mpsc::unbounded_channel();
            let (metrics, records, retire) = (metrics.clone(), records.clone(), retire.clone());
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || run(index, commands, metrics, records, retire))?;
            Ok((sender, Some(thread)))
        };
        let workers = (0..workers.max(1)).map(start).collect::<io::Result<_>>()?;
        let owns_files = Arc::new(AtomicBool::new(true));
        Ok(DataPlane {
            workers,
            bound: Mutex::default(),
            inherited: Mutex::new(inherited),
            owns_files,
            records,
        })
    }

    /// What is remembered of exchanges that ended.
    pub fn records(&self) -> &Arc<Records> {
        &self.records
    }

    /// Says whether the files of Unix sockets end with this process, as they do unless it is said otherwise: those of
    /// sockets that another process listens at too stay.
    pub fn owns_files(&self, owns: bool) {
        self.owns_files.store(owns, Relaxed);
    }

    /// Binds those of `addresses` that are not bound yet. Nothing is accepted before the swap that
    /// the result is passed to.
    pub fn bind(&self, addresses: &[Address]) -> Result<Bound, BindError> {
        let known = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bound =
            Bound { addresses: Vec::new(), sockets: self.workers.iter().map(|_| Vec::new()).collect() };
        for address in addresses.iter().filter(|address| !known.contains_key(address)) {
            let at = |source| BindError { address: address.clone(), source };
            let is_ours = known.keys().any(|held| held.port() == address.port());
            let sockets = match self.inherited(address) {
                Some(sockets) => sockets,
                None => self.open(address, is_ours),
            };
            let sockets = sockets.map_err(at)?;
            deal(&sockets, &mut bound.sockets).map_err(at)?;
            let file = match address {
                Address::Unix(path) if !sockets.is_managed => {
                    Some(SocketFile::new(path.clone(), self.owns_files.clone()))
                }
                _ => None,
            };
            bound.addresses.push(Held { sockets, _file: file });
        }
        Ok(bound)
    }

    /// Handles on the sockets that were inherited for an address.
    fn inherited(&self, address: &Address) -> Option<io::Result<Sockets>> {
        let inherited = self.inherited.lock().unwrap_or_else(PoisonError::into_inner);
        inherited.iter().find(|sockets| sockets.configured == *address).map(Sockets::try_clone)
    }

    /// A group of sockets, one for each worker; of a Unix socket there is but one.
    fn open(&self, configured: &Address, is_ours: bool) -> io::Result<Sockets> {
        let mut sockets = Vec::new();
        match configured {
            Address::Unix(path) => sockets.push(Listening::unix(path)?),
            Address::Tcp(address) => {
                if address.port() != 0 && !is_ours {
                    // A group of sockets would silently share the port with another process of ours.
                    Listening::tcp(*address, false).map(drop)?;
                }
                let mut actual = *address;
                for _ in &self.workers {
                    let socket = Listening::tcp(actual, true)?;
                    if let Some(Address::Tcp(address)) = socket.address() {
                        actual = address;
                    }
                    sockets.push(socket);
                }
            }
        }
        Ok(Sockets { configured: configured.clone(), is_managed: false, sockets })
    }

    /// Handles on all sockets, for another process that is to listen at them.
    pub fn sockets(&self) -> io::Result<Vec<Sockets>> {
        let known = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let inherited = self.inherited.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = inherited.iter().filter(|sockets| !known.contains_key(&sockets.configured));
        known.values().map(|held| &held.sockets).chain(unused).map(Sockets::try_clone).collect()
    }

    /// Puts a generation into effect, and returns when every worker runs it. Addresses that it does
    /// not name are closed; their connections end with their next response.
    pub async fn swap(&self, generation: Arc<Generation>, bound: Bound) {
        {
            let mut known = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|address, _| {
                generation.listeners.iter().any(|listener| listener.bind.contains(address))
            });
            known.extend(bound.addresses.into_iter().map(|held| (held.sockets.configured.clone(), held)));
            open_files(&generation, &known);
            // What nobody opened anew and nobody listens at would keep clients waiting. A listener at a managed
            // socket may go and come back.
            let mut inherited = self.inherited.lock().unwrap_or_else(PoisonError::into_inner);
            inherited.retain(|sockets| sockets.is_managed);
        }
        let mut waiting = Vec::new();
        let mut sockets = bound.sockets.into_iter();
        for (worker, _) in &self.workers {
            let (done, wait) = oneshot::channel();
            let sockets = sockets.next().unwrap_or_default();
            if worker.send(Command::Swap { generation: generation.clone(), sockets, done }).is_ok() {
                waiting.push(wait);
            }
        }
        for wait in waiting {
            // A worker that ended takes no requests either.
            let _ = wait.await;
        }
    }

    /// The addresses listened at: as configured, and as they are (port 0 becomes a real one).
    pub fn addresses(&self) -> Vec<(Address, Address)> {
        let known = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(configured, held)| (configured.clone(), held.sockets.actual())).collect()
    }

    /// Stops listening, lets running exchanges end, and ends the workers. What still runs after
    /// `grace` is cut off; returns the number of those connections.
    pub async fn drain(&self, grace: Duration) -> usize {
        // With the last handle on them, sockets are closed.
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut waiting = Vec::new();
        for (worker, _) in &self.workers {
            let (done, wait) = oneshot::channel();
            if worker.send(Command::Drain { grace, done }).is_ok() {
                waiting.push(wait);
            }
        }
        let mut cut_off = 0;
        for wait in waiting {
            cut_off += wait.await.unwrap_or_default();
        }
        cut_off
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        for (commands, thread) in self.workers.drain(..) {
            drop(commands);
            if let Some(thread) = thread {
                // A worker that panicked has said so.
                let _ = thread.join();
            }
        }
    }
}

impl Sockets {
    /// The address as it is: port 0 becomes a real one.
    fn actual(&self) -> Address {
        let socket = self.sockets.first();
        socket.and_then(Listening::address).unwrap_or_else(|| self.configured.clone())
    }

    fn try_clone(&self) -> io::Result<Self> {
        let sockets = self.sockets.iter().map(Listening::try_clone).collect::<io::Result<_>>()?;
        Ok(Sockets { configured: self.configured.clone(), is_managed: self.is_managed, sockets })
    }
}

/// Lets clients connect to Unix sockets, whose permissions are the listener's. Those of a service manager are its own.
fn open_files(generation: &Generation, known: &BTreeMap<Address, Held>) {
    for listener in &generation.listeners {
        for address in &listener.bind {
            let is_ours = known.get(address).is_some_and(|held| !held.sockets.is_managed);
            if let (Address::Unix(path), true) = (address, is_ours)
                && let Err(error) = socket::open_file(path, listener.socket_mode)
            {
                tracing::error!(%address, %error, "its permissions can't be set");
            }
        }
    }
}

/// Deals handles on sockets to workers: each socket to one, or, where there are fewer sockets, one socket to
/// several, which then take turns at accepting.
fn deal(sockets: &Sockets, workers: &mut [Vec<(Address, Listening)>]) -> io::Result<()> {
    let turns = sockets.sockets.len().max(workers.len());
    for (turn, socket) in sockets.sockets.iter().cycle().take(turns).enumerate() {
        let socket = socket.try_clone()?;
        let at = turn % workers.len().max(1);
        if let Some(worker) = workers.get_mut(at) {
            worker.push((sockets.configured.clone(), socket));
        }
    }
    Ok(())
}

/// A worker's own handle on a generation, so that reference counts stay with one core.
pub(crate) struct WorkerGeneration {
    generation: Option<Arc<Generation>>,
    metas: Vec<Arc<RouteMeta>>,
    /// What records call the generation's parts, under a count of this worker's own.
    pub(crate) names: Arc<WorkerNames>,
    retire: std::sync::mpsc::Sender<Arc<Generation>>,
}

impl WorkerGeneration {
    /// The index of the listener that is configured with this address.
    pub(crate) fn listener_at(&self, address: &Address) -> Option<usize> {
        self.listeners.iter().position(|listener| listener.bind.contains(address))
    }

    /// This worker's copy of what is constant of a route.
    pub(crate) fn meta(&self, route: usize) -> Option<&Arc<RouteMeta>> {
        self.metas.get(route)
    }
}

impl Deref for WorkerGeneration {
    type Target = Generation;

    #[expect(clippy::expect_used, reason = "taken in drop only")]
    fn deref(&self) -> &Generation {
        self.generation.as_deref().expect("present until dropped")
    }
}

impl Drop for WorkerGeneration {
    fn drop(&mut self) {
        if let Some(generation) = self.generation.take() {
            // Without a receiver the process is ending.
            let _ = self.retire.send(generation);
        }
    }
}

/// What one thread's tasks share.
pub(crate) struct Worker {
    generation: RefCell<Option<Rc<WorkerGeneration>>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) logs: LogQueue,
    pub(crate) records: Arc<Records>,
    pub(crate) index: usize,
    /// Counters of what was refused here so far, by reason.
    refusals: RefCell<Vec<(&'static str, Arc<Counter>)>>,
    random: Cell<u64>,
    /// Open connections: how to end them gently, and how to cut them off.
    running: RefCell<HashMap<u64, Running>>,
    accepted: Cell<u64>,
    open: Cell<usize>,
    closed: Notify,
}

/// An open connection, as its worker sees it.
struct Running {
    bound: Rc<Address>,
    control: Rc<Control>,
    task: Option<AbortHandle>,
}

impl Worker {
    /// The generation in effect now.
    #[expect(clippy::expect_used, reason = "sockets arrive with the first generation")]
    pub(crate) fn generation(&self) -> Rc<WorkerGeneration> {
        self.generation.borrow().clone().expect("a generation precedes the first connection")
    }

    /// Counts what the gateway itself answers.
    pub(crate) fn count_refusal(&self, reason: &'static str) {
        let mut refusals = self.refusals.borrow_mut();
        let at = refusals.iter().position(|(known, _)| *known == reason).unwrap_or_else(|| {
            refusals.push((reason, self.metrics.refusal(reason)));
            refusals.len() - 1
        });
        refusals[at].1.increment();
    }

    /// A fresh request id.
    pub(crate) fn request_id(&self) -> RequestId {
        RequestId::Bits(u128::from(self.lot()) << 64 | u128::from(self.lot()))
    }

    /// A number by lot (SplitMix64): ids must differ, they need not be secret.
    pub(crate) fn lot(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn spawn_connection(
        self: &Rc<Self>,
        stream: Accepted,
        peer: SocketAddr,
        bound: &Rc<Address>,
        place: Place,
    ) {
        let control = Rc::new(Control::default());
        let running = Running { bound: bound.clone(), control: control.clone(), task: None };
        let at = self.accepted.replace(self.accepted.get() + 1);
        self.running.borrow_mut().insert(at, running);
        self.open.set(self.open.get() + 1);
        self.metrics.connections.increment();
        self.metrics.connections_open.increment();
        let worker = self.clone();
        let open = Open { worker: worker.clone(), at };
        let bound = bound.clone();
        let task = tokio::task::spawn_local(async move {
            let (_open, mut place) = (open, place);
            accept(worker, stream, peer, bound, &mut place, &control).await;
        });
        if let Some(running) = self.running.borrow_mut().get_mut(&at) {
            running.task = Some(task.abort_handle());
        }
    }

    /// Closes a connection for which there is no room.
    pub(crate) fn refuse(&self, stream: &Accepted, client: IpAddr, listener: &Listener, why: Refused) {
        self.metrics.refuse(why);
        listener.gate.tell(&listener.name, client, why);
        // A reset leaves nothing behind in the kernel.
        stream.spoil();
    }

    /// Lets those connections end that `concerned` says.
    fn drain_connections(&self, concerned: impl Fn(&Address) -> bool) {
        for running in self.running.borrow().values() {
            if concerned(&running.bound) {
                running.control.drain();
            }
        }
    }
}

/// An open connection, accounted for until dropped.
struct Open {
    worker: Rc<Worker>,
    at: u64,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.running.borrow_mut().remove(&self.at);
        self.worker.open.set(self.worker.open.get() - 1);
        self.worker.metrics.connections_open.decrement();
        self.worker.closed.notify_one();
    }
}

/// What a worker is told.
type Commands = mpsc::UnboundedReceiver<Command>;

/// Where generations go in which nobody works any more.
type Retire = std::sync::mpsc::Sender<Arc<Generation>>;

fn run(index: usize, commands: Commands, metrics: Arc<Metrics>, records: Arc<Records>, retire: Retire) {
    count_as_worker(index);
    let runtime: LocalRuntime =
        match tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()) {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, index, "worker could not start"),
        };
    let worker = Rc::new(Worker {
        generation: RefCell::new(None),
        metrics,
        logs: LogQueue::default(),
        records,
        index,
        refusals: RefCell::default(),
        random: Cell::new(seed()),
        running: RefCell::default(),
        accepted: Cell::new(0),
        open: Cell::new(0),
        closed: Notify::new(),
    });
    runtime.block_on(async {
        let _reap = ReapGuard;
        tokio::task::spawn_local(reap_idle());
        let logs = tokio::task::spawn_local({
            let worker = worker.clone();
            async move { worker.logs.run().await }
        });
        obey(&worker, commands, &retire).await;
        worker.logs.close();
        if tokio::time::timeout(LAST_LOGS, logs).await.is_err() {
            tracing::warn!(index, "plugins did not finish their on_log in time");
        }
        worker.generation.take();
    });
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::thread::current().id())
}

/// Does what the control plane says until it says to end.
async fn obey(
    worker: &Rc<Worker>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    retire: &std::sync::mpsc::Sender<Arc<Generation>>,
) {
    let mut accepting: Vec<(Rc<Address>, Rc<Stop>, Task<()>)> = Vec::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Swap { generation, sockets, done } => {
                let metas = generation.routes.iter().map(|route| {
                    let RouteMeta { name, captures } = &*route.meta;
                    Arc::new(RouteMeta { name: name.clone(), captures: captures.clone() })
                });
                let metas = metas.collect();
                let own = WorkerGeneration {
                    names: Arc::new(WorkerNames(generation.names.clone())),
                    generation: Some(generation.clone()),
                    metas,
                    retire: retire.clone(),
                };
                let old = worker.generation.replace(Some(Rc::new(own)));
                let is_kept = |address: &Address| listener_at(&generation, address).is_some();
                // What was agreed on at a connection's beginning must not outlive the listener's word.
                let terms = |of: &Generation, at: &Address| listener_at(of, at).map(|found| found.terms);
                let is_same =
                    |at: &Address| old.as_ref().is_none_or(|old| terms(old, at) == terms(&generation, at));
                worker.drain_connections(|bound| !is_kept(bound) || !is_same(bound));
                drop(old);
                accepting.retain(|(address, stop, _)| {
                    let kept = is_kept(address);
                    if !kept {
                        stop.tell();
                    }
                    kept
                });
                for (address, socket) in sockets {
                    let (address, stop) = (Rc::new(address), Rc::new(Stop::default()));
                    let task = accept_at(worker.clone(), socket, address.clone(), stop.clone());
                    accepting.push((address, stop, tokio::task::spawn_local(task)));
                }
                // The control plane may have stopped waiting.
                let _ = done.send(());
            }
            Command::Drain { grace, done } => {
                for (_, stop, task) in accepting {
                    stop.tell();
                    // A task that panicked accepts nothing either.
                    let _ = task.await;
                }
                let cut_off = drain(worker, grace).await;
                let _ = done.send(cut_off);
                return;
            }
        }
    }
}

fn listener_at<'a>(generation: &'a Generation, address: &Address) -> Option<&'a Listener> {
    generation.listeners.iter().find(|listener| listener.bind.contains(address)).map(|listener| &**listener)
}

async fn drain(worker: &Rc<Worker>, grace: Duration) -> usize {
    worker.drain_connections(|_| true);
    let ended = async || {
        while worker.open.get() > 0 {
            worker.closed.notified().await;
        }
    };
    if tokio::time::timeout(grace, ended()).await.is_ok() {
        return 0;
    }
    let cut_off = worker.open.get();
    for running in worker.running.borrow().values() {
        if let Some(task) = &running.task {
            task.abort();
        }
    }
    // Their exchanges end with them, and are logged like others.
    ended().await;
    cut_off
}

/// Tells an accepting task to end.
#[derive(Default)]
struct Stop {
    told: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Stop {
    fn tell(&self) {
        self.told.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The next connection; none once told to end.
    fn poll_accept(
        &self,
        socket: &Acceptor,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<(Accepted, SocketAddr)>>> {
        if self.told.get() {
            return Poll::Ready(None);
        }
        let accepted = socket.poll_accept(cx).map(Some);
        if accepted.is_pending() {
            self.waker.set(Some(cx.waker().clone()));
        }
        accepted
    }
}

async fn accept_at(worker: Rc<Worker>, socket: Listening, address: Rc<Address>, stop: Rc<Stop>) {
    let socket = match socket.acceptor() {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(%address, %error, "listener could not start"),
    };
    while let Some(accepted) = poll_fn(|cx| stop.poll_accept(&socket, cx)).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_connection(&error) => continue,
            Err(error) => {
                tracing::error!(%address, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        take_in(&worker, &address, stream, peer);
    }
    // Closing a socket resets what its queue holds, so the queue is emptied first. Another process may
    // have the same socket, so that is not waited for without end.
    let Ok(socket) = socket.into_listening() else { return };
    for _ in 0..BACKLOG {
        let Ok((stream, peer)) = socket.accept() else { return };
        take_in(&worker, &address, stream, peer);
    }
}

/// Serves a connection unless that is too much, or its listener is gone.
fn take_in(worker: &Rc<Worker>, address: &Rc<Address>, stream: Accepted, peer: SocketAddr) {
    let generation = worker.generation();
    let Some(listener) = listener_at(&generation, address) else { return };
    let admitted = listener.gate.admit(listener.limits.connections).and_then(|mut place| {
        // Where proxies say whose connections they are, they have yet to say it.
        if listener.proxies.is_none() {
            place.take_for(peer.ip(), listener, &generation.trusted_proxies)?;
        }
        Ok(place)
    });
    match admitted {
        Ok(place) => worker.spawn_connection(stream, peer, address, place),
        Err(why) => worker.refuse(&stream, peer.ip(), listener, why),
    }
}

/// Whether an accept error concerns one connection only.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), ConnectionAborted | ConnectionReset | ConnectionRefused | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_and_every_worker_has_its_part() {
        let dealt = |sockets: usize, workers: usize| {
            let first = Listening::tcp("127.0.0.1:0".parse().unwrap(), false).unwrap();
            let configured = first.address().unwrap();
            let sockets = (0..sockets).map(|_| first.try_clone().unwrap()).collect();
            let mut dealt: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
            deal(&Sockets { configured, is_managed: true, sockets }, &mut dealt).unwrap();
            dealt.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!((dealt(1, 3), dealt(3, 3)), (vec![1, 1, 1], vec![1, 1, 1]));
        assert_eq!((dealt(3, 2), dealt(2, 3)), (vec![2, 1], vec![1, 1, 1]));
    }
}
