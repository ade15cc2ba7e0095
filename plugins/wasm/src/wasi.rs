//! What toolchains expect of WASI preview 1: a guest can write to its log, read the clock and draw random numbers, and
//! sleeps without waiting. Everything else is there, so that every module links, and answers that it is not to be had.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use portcullis_plugin::Clock;
use tracing::Level;
use wasmtime::{Caller, FuncType, Linker, Val};

use crate::host::LOG_LINE;
use crate::memory::{CoreHost, OutOfBounds, parts, slice, write, write_number};

pub(crate) const MODULE: &str = "wasi_snapshot_preview1";
/// What it was called before.
pub(crate) const UNSTABLE: &str = "wasi_unstable";

/// Errors of WASI.
const BADF: u32 = 8;
const FAULT: u32 = 21;
const INVAL: u32 = 28;
const IO: u32 = 29;
const NOSYS: u32 = 52;
const NOTSUP: u32 = 58;

/// Parts of what a guest writes at once, things that it waits for at once, and random bytes that it may draw.
const MAX_PARTS: u32 = 64;
const MAX_SUBSCRIPTIONS: u32 = 64;
const MAX_RANDOM: u32 = 64 << 10;

/// Bytes of a thing to wait for, and of what came of it.
const SUBSCRIPTION: u32 = 48;
const EVENT: u32 = 32;

const DEFINED: [&str; 9] = [
    "fd_write",
    "poll_oneoff",
    "clock_time_get",
    "random_get",
    "environ_sizes_get",
    "environ_get",
    "args_sizes_get",
    "args_get",
    "proc_exit",
];

/// The guest ended itself.
#[derive(Debug)]
pub(crate) struct Exit(pub(crate) u32);

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it exits with code {}", self.0)
    }
}

impl std::error::Error for Exit {}

/// What a guest has written of a line: some runtimes write word by word.
#[derive(Debug)]
pub(crate) struct Line {
    level: Level,
    text: Vec<u8>,
}

impl Default for Line {
    fn default() -> Self {
        Line { level: Level::INFO, text: Vec::new() }
    }
}

/// Logs what a guest has begun to write and not ended.
pub(crate) fn flush(host: &mut impl CoreHost) {
    let Line { level, text } = std::mem::take(host.line());
    let text = text.trim_ascii_end();
    if !text.is_empty() {
        host.log(level, text);
    }
}

type Answer = Result<u32, OutOfBounds>;

fn answer(answer: Answer) -> u32 {
    answer.unwrap_or(FAULT)
}

pub(crate) fn define<T: CoreHost>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    for module in [MODULE, UNSTABLE] {
        linker.func_wrap(
            module,
            "fd_write",
            |mut caller: Caller<'_, T>, file: u32, parts: u32, count: u32, written_to: u32| {
                answer(fd_write(&mut caller, file, parts, count, written_to))
            },
        )?;
        linker.func_wrap(
            module,
            "clock_time_get",
            |mut caller: Caller<'_, T>, clock: u32, _: u64, to: u32| {
                answer(clock_time_get(&mut caller, clock, to))
            },
        )?;
        linker.func_wrap(module, "random_get", |mut caller: Caller<'_, T>, to: u32, size: u32| {
            answer(random_get(&mut caller, to, size))
        })?;
        linker.func_wrap(
            module,
            "poll_oneoff",
            |mut caller: Caller<'_, T>, of: u32, to: u32, count: u32, count_to: u32| {
                answer(poll_oneoff(&mut caller, of, to, count, count_to))
            },
        )?;
        for name in ["environ_sizes_get", "args_sizes_get"] {
            linker.func_wrap(module, name, |mut caller: Caller<'_, T>, count_to: u32, size_to: u32| {
                let nothing = write_number(&mut caller, count_to, 0);
                answer(nothing.and_then(|()| write_number(&mut caller, size_to, 0)).map(|()| 0))
            })?;
        }
        for name in ["environ_get", "args_get"] {
            linker.func_wrap(module, name, |_: u32, _: u32| 0_u32)?;
        }
        linker.func_wrap(module, "proc_exit", |code: u32| -> wasmtime::Result<()> {
            Err(wasmtime::Error::new(Exit(code)))
        })?;
    }
    Ok(())
}

/// Defines a function of WASI, unless it is one of those above, as one that is not to be had.
pub(crate) fn refuse<T: CoreHost>(
    linker: &mut Linker<T>,
    module: &str,
    name: &str,
    ty: FuncType,
) -> wasmtime::Result<()> {
    if DEFINED.contains(&name) {
        return Ok(());
    }
    let code = match name {
        "sched_yield" => 0,
        // No descriptor but standard output and error is open, which can be written to only.
        _ if name.starts_with("fd_") || name.starts_with("sock_") => BADF,
        _ => NOSYS,
    };
    let zeros: Vec<_> = ty.results().map(|ty| Val::default_for_ty(&ty).unwrap_or(Val::I32(0))).collect();
    linker.func_new(module, name, ty, move |_, _, results| {
        for (result, zero) in results.iter_mut().zip(&zeros) {
            *result = if matches!(zero, Val::I32(_)) { Val::I32(code as i32) } else { *zero };
        }
        Ok(())
    })?;
    Ok(())
}

fn fd_write<T: CoreHost>(
    caller: &mut Caller<'_, T>,
    file: u32,
    vector: u32,
    count: u32,
    written_to: u32,
) -> Answer {
    let level = match file {
        1 => Level::INFO,
        2 => Level::ERROR,
        _ => return Ok(BADF),
    };
    if count > MAX_PARTS {
        return Ok(INVAL);
    }
    let (memory, host) = parts(caller)?;
    if host.line().level != level {
        flush(host);
        host.line().level = level;
    }
    let mut written = 0_u32;
    for part in slice(memory, vector, 8 * count)?.chunks_exact(8) {
        let [a, b, c, d, e, f, g, h] = *part else { continue };
        let part = slice(memory, u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))?;
        written = written.saturating_add(part.len() as u32);
        for piece in part.split_inclusive(|byte| *byte == b'\n') {
            let text = &mut host.line().text;
            // More is not logged, and need not be gathered.
            text.extend(piece.iter().take(LOG_LINE.saturating_sub(text.len())));
            if piece.ends_with(b"\n") {
                flush(host);
                host.line().level = level;
            }
        }
    }
    write_number(caller, written_to, written)?;
    Ok(0)
}

/// Nobody waits: a time to sleep is over as soon as it begins, so that a guest that sleeps in a circle uses up its CPU.
fn poll_oneoff<T: CoreHost>(
    caller: &mut Caller<'_, T>,
    of: u32,
    to: u32,
    count: u32,
    count_to: u32,
) -> Answer {
    if !(1..=MAX_SUBSCRIPTIONS).contains(&count) {
        return Ok(INVAL);
    }
    let (memory, _) = parts(caller)?;
    let mut events = Vec::with_capacity((EVENT * count) as usize);
    for subscription in slice(memory, of, SUBSCRIPTION * count)?.chunks_exact(SUBSCRIPTION as usize) {
        let (user, kind) = (&subscription[..8], subscription[8]);
        // Zero is a clock; the others are descriptors, of which none is open.
        let code = if kind == 0 { 0 } else { BADF as u8 };
        events.extend(user);
        events.extend([code, 0, kind]);
        events.resize(events.len().next_multiple_of(EVENT as usize), 0);
    }
    write(caller, to, &events)?;
    write_number(caller, count_to, count)?;
    Ok(0)
}

fn clock_time_get<T: CoreHost>(caller: &mut Caller<'_, T>, clock: u32, to: u32) -> Answer {
    let time = match clock {
        0 => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        1 => Clock::default().now(),
        _ => return Ok(NOTSUP),
    };
    write(caller, to, &(time.as_nanos() as u64).to_le_bytes())?;
    Ok(0)
}

fn random_get<T: CoreHost>(caller: &mut Caller<'_, T>, to: u32, size: u32) -> Answer {
    if size > MAX_RANDOM {
        return Ok(INVAL);
    }
    let mut random = vec![0; size as usize];
    if rand::fill(&mut random).is_err() {
        return Ok(IO);
    }
    write(caller, to, &random)?;
    Ok(0)
}
