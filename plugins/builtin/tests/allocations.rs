//! Plugins that let a request pass allocate nothing for it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use portcullis_plugin::{Decision, ExchangeBuilder, Hook, PluginTester, Principal};
use portcullis_plugins::BUILTIN;
use serde_json::{Value, json};

/// Counts the current thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
#[expect(unsafe_code, reason = "an allocator is the only way to count allocations")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // The thread may be past its locals' destruction.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
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

/// Allocations of a second request that is let pass.
fn allocations(kind: &str, table: Value) -> usize {
    let registration = BUILTIN.iter().find(|known| known.kind == kind).unwrap();
    let plugin = PluginTester::new().build_registered(registration, table).unwrap();
    let caller = Principal { id: "a".into(), ..Principal::default() };
    let request = ExchangeBuilder::get("/").header("x-tenant", "acme").route("orders", &[]);
    let mut exchange = request.peer("2001:db8::1").principal(caller).build();
    let mut pass = || match plugin.plugin().on_request(&mut exchange) {
        Hook::Ready(decision) => assert!(matches!(decision, Ok(Decision::Continue)), "{kind}"),
        Hook::Wait(_) => panic!("{kind} waits"),
    };
    pass();
    let before = ALLOCATIONS.get();
    pass();
    ALLOCATIONS.get() - before
}

#[test]
fn hooks_that_let_a_request_pass_allocate_nothing() {
    let bucket = json!({ "rate": "100/s" });
    let parts = json!(["client", "principal", "route", { "header": "x-tenant" }]);
    let limits: Vec<_> =
        (0..8).map(|at| json!({ "name": at.to_string(), "key": parts, "token_bucket": bucket })).collect();
    assert_eq!(allocations("ip_filter", json!({ "deny": ["10.0.0.0/8", "2001:db9::/32"] })), 0);
    assert_eq!(allocations("body_limit", json!({ "request": "1MiB" })), 0);
    assert_eq!(allocations("rate_limit", json!({ "limits": limits })), 0);
}
