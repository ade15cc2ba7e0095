//! The memory of a core module, as host functions read and write it: whatever a pointer or a length says, nothing
//! beyond it is touched.

use std::fmt;

use tracing::Level;
use wasmtime::{Caller, Extern, Memory};

use crate::wasi::Line;

/// What the host functions of an instance of a core module work on.
pub(crate) trait CoreHost: 'static {
    /// The guest's memory, once it is known.
    fn memory(&mut self) -> &mut Option<Memory>;

    /// What the guest has written of a line.
    fn line(&mut self) -> &mut Line;

    /// Logs a line of the guest's.
    fn log(&mut self, level: Level, message: &[u8]);
}

/// A pointer or a length is not within the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfBounds;

impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a pointer or a length beyond the memory")
    }
}

impl std::error::Error for OutOfBounds {}

fn memory<T: CoreHost>(caller: &mut Caller<'_, T>) -> Result<Memory, OutOfBounds> {
    // While the module's own start runs, the instance is not there yet to be asked.
    if caller.data_mut().memory().is_none()
        && let Some(Extern::Memory(memory)) = caller.get_export("memory")
    {
        *caller.data_mut().memory() = Some(memory);
    }
    caller.data_mut().memory().ok_or(OutOfBounds)
}

/// The memory to read from, and what the host functions work on.
pub(crate) fn parts<'a, T: CoreHost>(
    caller: &'a mut Caller<'_, T>,
) -> Result<(&'a [u8], &'a mut T), OutOfBounds> {
    let memory = memory(caller)?;
    let (bytes, host) = memory.data_and_store_mut(caller);
    Ok((bytes, host))
}

pub(crate) fn slice(memory: &[u8], at: u32, size: u32) -> Result<&[u8], OutOfBounds> {
    let (at, size) = (at as usize, size as usize);
    at.checked_add(size).and_then(|end| memory.get(at..end)).ok_or(OutOfBounds)
}

pub(crate) fn write<T: CoreHost>(
    caller: &mut Caller<'_, T>,
    at: u32,
    bytes: &[u8],
) -> Result<(), OutOfBounds> {
    memory(caller)?.write(caller, at as usize, bytes).map_err(|_| OutOfBounds)
}

pub(crate) fn write_number<T: CoreHost>(
    caller: &mut Caller<'_, T>,
    at: u32,
    number: u32,
) -> Result<(), OutOfBounds> {
    write(caller, at, &number.to_le_bytes())
}
