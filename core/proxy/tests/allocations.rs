//! What a request of a kept connection allocates from its head to the end of its response, all of it: connection,
//! exchange, route, attempt, response, metrics. A change that costs one more has to say so here.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use portcullis_plugin::{HookName, Needs};
use support::{Probe, Setup};

/// Counts the process's allocations: client and origin below make none.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
#[expect(unsafe_code, reason = "an allocator is the only way to count allocations")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// So many that what comes now and then, such as a timer that is armed anew, makes no difference.
const REQUESTS: usize = 1000;

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nserver: origin\r\ncontent-length: 5\r\n\r\nhello";

/// Reads up to these bytes.
fn read_to(stream: &mut TcpStream, end: &[u8]) -> bool {
    let (mut buffer, mut length) = ([0; 4096], 0);
    while !buffer[..length].ends_with(end) {
        match stream.read(&mut buffer[length..]) {
            Ok(0) | Err(_) => return false,
            Ok(read) => length += read,
        }
    }
    true
}

/// An origin whose requests end so.
fn origin(end: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while read_to(&mut stream, end) {
            stream.write_all(ANSWER).unwrap();
        }
    });
    address
}

/// Agrees with everything.
fn agree() -> Probe {
    let hooks = [HookName::OnRequest, HookName::OnUpstream, HookName::OnResponse, HookName::OnLog];
    Probe { needs: Needs::hooks(hooks), ..Probe::default() }
}

/// Allocations of one request like this among many, with so many plugins.
fn allocations(request: &[u8], end: &'static [u8], plugins: usize) -> usize {
    let gateway = (0..plugins).fold(Setup::to(origin(end)), |setup, _| setup.plugin(agree())).start();
    let mut stream = gateway.connect();
    let mut ask = |times| {
        for _ in 0..times {
            stream.write_all(request).unwrap();
            assert!(read_to(&mut stream, b"\r\n\r\nhello"));
        }
        ALLOCATIONS.load(SeqCst)
    };
    let before = ask(100);
    // What belongs to the last one before, or to the last one, may be counted or not.
    (ask(REQUESTS) - before + REQUESTS / 2) / REQUESTS
}

#[test]
fn a_request_allocates_as_often_as_is_written_here() {
    const GET: &[u8] =
        b"GET /api/orders?q=1 HTTP/1.1\r\nHost: gateway.test\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n";
    const POST: &[u8] = b"POST /api/orders HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 6\r\n\r\nposted";
    assert_eq!(allocations(GET, b"\r\n\r\n", 0), 13);
    assert_eq!(allocations(POST, b"posted", 0), 15);
    assert_eq!(allocations(GET, b"\r\n\r\n", 6), 23);
}
