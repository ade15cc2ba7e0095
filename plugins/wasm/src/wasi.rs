//! What toolchains expect of WASI preview 1: a guest can write to its log, read the clock and draw random numbers.
//! Everything else is there, so that every module links, and answers that it is not to be had.

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

/// Parts of one line that a guest may write in a call, and random bytes that it may draw.
const MAX_PARTS: u32 = 64;
const MAX_RANDOM: u32 = 64 << 10;

const DEFINED: [&str; 8] = [
    "fd_write",
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
    let (mut line, mut written) = (Vec::new(), 0_u32);
    for part in slice(memory, vector, 8 * count)?.chunks_exact(8) {
        let [a, b, c, d, e, f, g, h] = *part else { continue };
        let part = slice(memory, u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))?;
        written = written.saturating_add(part.len() as u32);
        // More is not logged, and need not be gathered.
        line.extend(part.iter().take(LOG_LINE.saturating_sub(line.len())));
    }
    let text = line.trim_ascii_end();
    if !text.is_empty() {
        host.log(level, text);
    }
    write_number(caller, written_to, written)?;
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
