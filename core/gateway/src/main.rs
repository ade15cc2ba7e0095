//! The `portcullis` program; everything it does is in the library, where tests reach it.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A request is a handful of small allocations on one thread: what this allocator is made for.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    portcullis::cli::main()
}
