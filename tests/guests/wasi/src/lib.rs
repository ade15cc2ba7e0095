//! A policy that uses WASI, as a library that knows nothing of policies would: what the header `x-do` says, and what came
//! of it in `x-got`.

use portcullis_guest::*;

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    fn random_get(buffer: *mut u8, length: usize) -> u16;
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
    fn environ_sizes_get(count: *mut usize, size: *mut usize) -> u16;
    fn args_sizes_get(count: *mut usize, size: *mut usize) -> u16;
    fn fd_prestat_get(fd: u32, prestat: *mut [u32; 2]) -> u16;
    fn fd_write(fd: u32, parts: *const Part, count: usize, written: *mut usize) -> u16;
    fn poll_oneoff(wanted: *const Subscription, events: *mut [u64; 4], count: usize, ready: *mut usize) -> u16;
    fn proc_exit(code: u32) -> !;
}

#[repr(C)]
struct Part {
    at: *const u8,
    length: usize,
}

/// Of a clock.
#[repr(C)]
struct Subscription {
    user: u64,
    tag: u8,
    padding: u32,
    clock: u32,
    timeout: u64,
    precision: u64,
    flags: u16,
}

struct Wasi;

impl Policy for Wasi {
    type Config = ();

    fn new(_: ()) -> Result<Self> {
        Ok(Wasi)
    }

    fn on_request(&mut self, exchange: &Exchange) -> Result<Verdict> {
        let request = exchange.request();
        let wish = request.header("x-do").unwrap_or_default();
        let (wish, number) = match wish.rsplit_once(' ') {
            Some((first, number)) if number.parse::<u64>().is_ok() => (first, number.parse()?),
            _ => (&*wish, 0),
        };
        let got = match wish {
            "random" => {
                let mut bytes = [0_u8; 8];
                // SAFETY: the buffer is as long as it is said to be.
                let failed = unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) };
                format!("{failed} {bytes:?}")
            }
            "clock" => {
                let mut time = 0;
                // SAFETY: what is pointed to is there, here and below.
                let failed = unsafe { clock_time_get(0, 1, &raw mut time) };
                format!("{failed} {}", time / 1_000_000_000)
            }
            "world" => {
                let (mut variables, mut arguments, mut size, mut prestat) = (9, 9, 0, [0; 2]);
                let failed = unsafe {
                    environ_sizes_get(&raw mut variables, &raw mut size)
                        + args_sizes_get(&raw mut arguments, &raw mut size)
                };
                let directory = unsafe { fd_prestat_get(3, &raw mut prestat) };
                format!("{failed} {variables} {arguments} {directory}")
            }
            "print" => {
                for line in 0..number {
                    print(1, &format!("line {line}\nand more\n"));
                }
                print(2, "something is wrong");
                String::new()
            }
            "sleep" => {
                let wanted = wait(number);
                let (mut event, mut ready) = ([0; 4], 0);
                let failed = unsafe { poll_oneoff(&raw const wanted, &raw mut event, 1, &raw mut ready) };
                format!("{failed} {ready}")
            }
            "much random" => {
                let mut bytes = vec![0_u8; 100 << 10];
                let failed = unsafe { random_get(bytes.as_mut_ptr(), bytes.len()) };
                failed.to_string()
            }
            "many sleeps" => {
                let wanted = [const { wait(1) }; 300];
                let (mut events, mut ready) = ([[0; 4]; 300], 0);
                let failed = unsafe { poll_oneoff(wanted.as_ptr(), events.as_mut_ptr(), wanted.len(), &raw mut ready) };
                format!("{failed} {ready}")
            }
            // SAFETY: it does not return.
            "exit" => unsafe { proc_exit(3) },
            _ => String::new(),
        };
        request.set_header("x-got", got)?;
        proceed()
    }
}

const fn wait(millis: u64) -> Subscription {
    Subscription { user: 0, tag: 0, padding: 0, clock: 1, timeout: millis * 1_000_000, precision: 0, flags: 0 }
}

fn print(fd: u32, text: &str) {
    let part = Part { at: text.as_ptr(), length: text.len() };
    let mut written = 0;
    // SAFETY: the part is as long as it is said to be.
    unsafe { fd_write(fd, &raw const part, 1, &raw mut written) };
}

export!(Wasi: on_request);
