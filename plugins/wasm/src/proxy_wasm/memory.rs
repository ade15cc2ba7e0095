//! What a host function gives a guest, and why it may not.

use super::abi::Status;
use super::host::Host;
use crate::memory::{self, OutOfBounds};

pub(super) use crate::memory::{parts, slice};

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

impl From<OutOfBounds> for Fault {
    fn from(_: OutOfBounds) -> Self {
        Fault::Status(Status::InvalidMemoryAccess)
    }
}

pub(super) fn write(caller: &mut Caller<'_>, at: u32, bytes: &[u8]) -> Result<(), Fault> {
    Ok(memory::write(caller, at, bytes)?)
}

pub(super) fn write_number(caller: &mut Caller<'_>, at: u32, number: u32) -> Result<(), Fault> {
    Ok(memory::write_number(caller, at, number)?)
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
            return Err(OutOfBounds.into());
        }
        write(caller, place, bytes)?;
    }
    write_number(caller, pointer, place)?;
    write_number(caller, size, length)
}
