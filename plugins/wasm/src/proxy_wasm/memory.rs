//! A guest's memory, as host functions read and write it: whatever a pointer or a length says, nothing beyond
//! it is touched.

use wasmtime::{Extern, Memory};

use super::abi::Status;
use super::host::Host;

pub(super) type Caller<'a> = wasmtime::Caller<'a, Host>;

/// Why a host function does not answer with what was asked for.
pub(super) enum Fault {
    Status(Status),
    /// The guest's allocator trapped, or something else that ends the call.
    Trap(wasmtime::Error),
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Fault::Status(status)
    }
}

const OUT_OF_BOUNDS: Fault = Fault::Status(Status::InvalidMemoryAccess);

fn memory(caller: &mut Caller<'_>) -> Result<Memory, Fault> {
    // While the module's own start runs, the instance is not there yet to be asked.
    if caller.data().memory.is_none()
        && let Some(Extern::Memory(memory)) = caller.get_export("memory")
    {
        caller.data_mut().memory = Some(memory);
    }
    caller.data().memory.ok_or(OUT_OF_BOUNDS)
}

/// The memory to read from, and what the host functions work on.
pub(super) fn parts<'a>(caller: &'a mut Caller<'_>) -> Result<(&'a [u8], &'a mut Host), Fault> {
    let memory = memory(caller)?;
    let (bytes, host) = memory.data_and_store_mut(caller);
    Ok((bytes, host))
}

pub(super) fn slice(memory: &[u8], at: u32, size: u32) -> Result<&[u8], Fault> {
    let (at, size) = (at as usize, size as usize);
    at.checked_add(size).and_then(|end| memory.get(at..end)).ok_or(OUT_OF_BOUNDS)
}

pub(super) fn write(caller: &mut Caller<'_>, at: u32, bytes: &[u8]) -> Result<(), Fault> {
    memory(caller)?.write(caller, at as usize, bytes).map_err(|_| OUT_OF_BOUNDS)
}

pub(super) fn write_number(caller: &mut Caller<'_>, at: u32, number: u32) -> Result<(), Fault> {
    write(caller, at, &number.to_le_bytes())
}

/// Gives the guest bytes in memory that it allocates itself: pointer and size are written where it says. Nothing
/// has no place.
pub(super) fn give(caller: &mut Caller<'_>, bytes: &[u8], pointer: u32, size: u32) -> Result<(), Fault> {
    let length = u32::try_from(bytes.len()).map_err(|_| Status::InternalFailure)?;
    let mut place = 0;
    if length > 0 {
        let allocate = caller.data().allocate.clone().ok_or(Status::InternalFailure)?;
        place = allocate.call(&mut *caller, length).map_err(Fault::Trap)?;
        if place == 0 {
            return Err(OUT_OF_BOUNDS);
        }
        write(caller, place, bytes)?;
    }
    write_number(caller, pointer, place)?;
    write_number(caller, size, length)
}
