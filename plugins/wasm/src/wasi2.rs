//! WASI 0.2 for guests whose toolchains can't do without: all of it is linked, and none of it gives power. There are no
//! files, sockets, environment variables and arguments; what is printed is logged; the clock stands at zero and random
//! bytes are a fixed sequence, unless `clock` and `random` are granted. Errors instead would end the start of
//! JavaScript and Python, which ask for both and rarely mean it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::component::{HasSelf, Linker, Resource, ResourceTable};
use wasmtime::{Result, bail};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::bindings::io::poll;
use wasmtime_wasi::p2::{self, DynPollable, OutputStream, Pollable, StreamResult, subscribe};
use wasmtime_wasi::{Deterministic, HostWallClock, WasiCtx, WasiCtxView, WasiView, async_trait};

use crate::bindings::host::Level;
use crate::host::{About, Host, LOG_LINE, LOG_LINES};

/// What is linked, by how imports begin. There is no `wasi:http`: a policy has an interface of its own for that.
const PACKAGES: [&str; 6] =
    ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];

/// Streams, pollables and the like that a guest may hold at once.
const MAX_RESOURCES: usize = 256;

/// Random bytes at once, where they are granted and where not.
const MAX_RANDOM: u64 = 64 << 10;

/// What is kept of what is printed in one call: as much as is logged.
const PRINTED: usize = LOG_LINES as usize * LOG_LINE;

/// Whether an import is of WASI, and linked.
pub(crate) fn offers(import: &str) -> bool {
    PACKAGES.iter().any(|package| import.starts_with(package)) && import.contains("@0.2.")
}

/// Links WASI for a component that imports some of it.
pub(crate) fn link(linker: &mut Linker<Host>) -> Result<()> {
    p2::add_to_linker_async(linker)?;
    // Waiting is the host's to count, and not everywhere possible.
    linker.allow_shadowing(true);
    monotonic_clock::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)?;
    poll::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

/// WASI's side of one instance.
pub(crate) struct Wasi {
    ctx: WasiCtx,
    table: ResourceTable,
    start: Instant,
    printed: [(Level, Printed); 2],
}

impl Wasi {
    fn new(about: &Arc<About>) -> Self {
        let printed = [(Level::Info, Printed::default()), (Level::Error, Printed::default())];
        let [(_, out), (_, err)] = &printed;
        let mut ctx = WasiCtx::builder();
        ctx.stdout(out.clone()).stderr(err.clone()).allow_tcp(false).allow_udp(false);
        ctx.wall_clock(Wall(about.clone())).max_random_size(MAX_RANDOM);
        if about.capabilities.random(0).is_err() {
            let fixed = || Deterministic::new((0..=u8::MAX).collect());
            ctx.secure_random(fixed()).insecure_random(fixed()).insecure_random_seed(0);
        }
        let mut table = ResourceTable::new();
        table.set_max_capacity(MAX_RESOURCES);
        Wasi { ctx: ctx.build(), table, start: Instant::now(), printed }
    }
}

impl Host {
    fn wasi(&mut self) -> &mut Wasi {
        let about = &self.about;
        self.wasi.get_or_insert_with(|| Box::new(Wasi::new(about)))
    }

    /// Logs what the guest printed in the call that ends.
    pub(crate) fn log_printed(&mut self) {
        let Some(wasi) = &self.wasi else { return };
        let printed = wasi.printed.each_ref().map(|(level, printed)| (*level, printed.take()));
        for (level, printed) in printed {
            String::from_utf8_lossy(&printed).lines().for_each(|line| self.say(level, line));
        }
    }

    fn subscribe(&mut self, wait: Duration) -> Result<Resource<DynPollable>> {
        if !wait.is_zero() {
            if let Err(denied) = self.about.capabilities.now() {
                bail!("the guest would sleep, and {denied}");
            }
            if !self.can_wait() {
                bail!("the guest would sleep, which `on_connection` and `configure` can't");
            }
        }
        let deadline = tokio::time::Instant::now().checked_add(wait);
        let table = &mut self.wasi().table;
        let deadline = table.push(Deadline(deadline.filter(|_| !wait.is_zero())))?;
        subscribe(table, deadline)
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let wasi = self.wasi();
        WasiCtxView { ctx: &mut wasi.ctx, table: &mut wasi.table }
    }
}

/// The time of day as the policy may see it.
struct Wall(Arc<About>);

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        let now = self.0.capabilities.now().unwrap_or(UNIX_EPOCH);
        now.duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

impl monotonic_clock::Host for Host {
    fn now(&mut self) -> Result<u64> {
        Ok(match self.about.capabilities.now() {
            Ok(_) => self.wasi().start.elapsed().as_nanos() as u64,
            Err(_) => 0,
        })
    }

    fn resolution(&mut self) -> Result<u64> {
        Ok(Duration::from_millis(1).as_nanos() as u64)
    }

    fn subscribe_instant(&mut self, when: u64) -> Result<Resource<DynPollable>> {
        let now = monotonic_clock::Host::now(self)?;
        self.subscribe(Duration::from_nanos(when.saturating_sub(now)))
    }

    fn subscribe_duration(&mut self, wait: u64) -> Result<Resource<DynPollable>> {
        self.subscribe(Duration::from_nanos(wait))
    }
}

/// When a sleep ends; none if at once.
struct Deadline(Option<tokio::time::Instant>);

#[async_trait]
impl Pollable for Deadline {
    async fn ready(&mut self) {
        if let Some(deadline) = self.0 {
            tokio::time::sleep_until(deadline).await;
        }
    }
}

impl poll::Host for Host {
    async fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> Result<Vec<u32>> {
        let start = Instant::now();
        let ready = poll::Host::poll(&mut self.wasi().table, pollables).await;
        self.waited(start);
        ready
    }
}

impl poll::HostPollable for Host {
    async fn block(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        let start = Instant::now();
        let ready = poll::HostPollable::block(&mut self.wasi().table, pollable).await;
        self.waited(start);
        ready
    }

    async fn ready(&mut self, pollable: Resource<DynPollable>) -> Result<bool> {
        poll::HostPollable::ready(&mut self.wasi().table, pollable).await
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> Result<()> {
        poll::HostPollable::drop(&mut self.wasi().table, pollable)
    }
}

/// What a guest printed in a call, as far as it is kept.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn take(&self) -> Vec<u8> {
        self.0.lock().map(|mut printed| std::mem::take(&mut *printed)).unwrap_or_default()
    }
}

impl IsTerminal for Printed {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Printed {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    // For other versions of WASI, which are not linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }
}

impl OutputStream for Printed {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if let Ok(mut printed) = self.0.lock() {
            let room = PRINTED.saturating_sub(printed.len());
            printed.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PRINTED)
    }
}

#[async_trait]
impl Pollable for Printed {
    async fn ready(&mut self) {}
}
