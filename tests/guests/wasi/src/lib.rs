//! A policy that asks WASI for random bytes, as a library that knows nothing of policies would.

use portcullis_guest::*;

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn random_get(buffer: *mut u8, length: usize) -> u16;
}

struct Wasi;

impl Policy for Wasi {
    type Config = ();

    fn new(_: ()) -> Result<Self> {
        Ok(Wasi)
    }

    fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let mut byte = 0;
        // SAFETY: the buffer is as long as it is said to be.
        let failed = unsafe { random_get(&raw mut byte, 1) };
        exchange.request().set_header("x-random", format!("{byte} {failed}"))?;
        proceed()
    }
}

export!(Wasi: on_request);
